//! The wire, as types: what clients may send, what the server says, and the one encoding of each object.
//!
//! An object is encoded once, into a [`Frame`] that serves every framing. Nothing a client supplied is passed on as
//! bytes: texts and data are parsed and written anew.

use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer, de::IgnoredAny, ser::SerializeSeq};
use serde_json::value::RawValue;

use crate::{CloseReason, LeaveReason, Refusal, config::Presence, error::ErrorCode};

/// Deepest nesting of an object from a client.
const MAX_DEPTH: usize = 32;
/// The largest integer that a double holds exactly, and so the largest `id`.
const MAX_ID: u64 = (1 << 53) - 1;
/// The longest header of an unmasked WebSocket frame.
const MAX_HEADER: usize = 10;

/// How objects are told apart on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// One object a line, ended by LF.
    Lines,
    /// One object per unmasked WebSocket text frame.
    WebSocket,
}

impl Framing {
    /// What follows the last object of a connection, before it is closed.
    pub(crate) fn closing(self, code: u16, reason: &str) -> Vec<u8> {
        match self {
            Self::Lines => Vec::new(),
            Self::WebSocket => {
                let length = u8::try_from(2 + reason.len()).expect("close codes are short words");
                let mut frame = vec![0x88, length];
                frame.extend_from_slice(&code.to_be_bytes());
                frame.extend_from_slice(reason.as_bytes());
                frame
            }
        }
    }

    /// A sign of life that the peer must answer, where the framing has one.
    pub(crate) fn ping(self) -> Option<&'static [u8]> {
        match self {
            Self::Lines => None,
            Self::WebSocket => Some(&[0x89, 0]),
        }
    }
}

/// One encoded object: `[WebSocket header][JSON][LF]` in one buffer, so that every framing is a slice of it.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    buffer: Bytes,
    header: usize,
}

impl Frame {
    pub(crate) fn encode(value: &impl Serialize) -> Self {
        let mut buffer = Vec::with_capacity(256);
        buffer.resize(MAX_HEADER, 0);
        serde_json::to_writer(&mut buffer, value)
            .expect("wire types have no map with keys that are no strings");
        Self::finish(buffer)
    }

    /// A frame from JSON that was encoded elsewhere.
    pub(crate) fn from_json(json: &[u8]) -> Self {
        let mut buffer = Vec::with_capacity(MAX_HEADER + json.len() + 1);
        buffer.resize(MAX_HEADER, 0);
        buffer.extend_from_slice(json);
        Self::finish(buffer)
    }

    fn finish(mut buffer: Vec<u8>) -> Self {
        let length = buffer.len() - MAX_HEADER;
        buffer.push(b'\n');
        let (marker, extended) = match length {
            0..126 => (u8::try_from(length).expect("below 126"), 0),
            126..=0xFFFF => (126, 2),
            _ => (127, 8),
        };
        let header = 2 + extended;
        let start = MAX_HEADER - header;
        buffer[start] = 0x81;
        buffer[start + 1] = marker;
        buffer[start + 2..MAX_HEADER]
            .copy_from_slice(&(length as u64).to_be_bytes()[8 - extended..]);
        Self {
            buffer: Bytes::from(buffer).slice(start..),
            header,
        }
    }

    /// The bytes for a connection with that framing.
    pub(crate) fn framed(&self, framing: Framing) -> Bytes {
        match framing {
            Framing::Lines => self.buffer.slice(self.header..),
            Framing::WebSocket => self.buffer.slice(..self.buffer.len() - 1),
        }
    }

    /// The same, borrowed.
    pub(crate) fn as_framed(&self, framing: Framing) -> &[u8] {
        match framing {
            Framing::Lines => &self.buffer[self.header..],
            Framing::WebSocket => &self.buffer[..self.buffer.len() - 1],
        }
    }

    /// The object alone.
    pub(crate) fn json(&self) -> Bytes {
        self.buffer.slice(self.header..self.buffer.len() - 1)
    }

    /// Bytes of the object.
    pub(crate) fn len(&self) -> usize {
        self.buffer.len() - self.header - 1
    }
}

/// The type of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Login,
    Join,
    Send,
    Signal,
    Leave,
    Users,
    History,
    Ping,
    Logout,
}

impl Kind {
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "login" => Self::Login,
            "join" => Self::Join,
            "send" => Self::Send,
            "signal" => Self::Signal,
            "leave" => Self::Leave,
            "users" => Self::Users,
            "history" => Self::History,
            "ping" => Self::Ping,
            "logout" => Self::Logout,
            _ => return None,
        })
    }
}

/// A well-formed command whose own fields were not looked at yet.
#[derive(Debug)]
pub(crate) struct Command<'a> {
    pub(crate) id: Option<u64>,
    /// `None`: a `type` that this server does not know.
    pub(crate) kind: Option<Kind>,
    pub(crate) fields: Fields<'a>,
}

/// Why a frame is no command, and the `id` to answer with.
#[derive(Debug)]
pub(crate) struct Malformed {
    pub(crate) id: Option<u64>,
    pub(crate) refusal: Refusal,
}

macro_rules! fields {
    ($($field:ident),* $(,)?) => {
        /// The fields that any command may have, unread. A field that is `null` is there.
        #[derive(Debug, Default, Deserialize)]
        #[serde(default)]
        pub(crate) struct Fields<'a> {
            #[serde(borrow, deserialize_with = "present")]
            id: Option<&'a RawValue>,
            #[serde(borrow, deserialize_with = "present", rename = "type")]
            kind: Option<&'a RawValue>,
            $(#[serde(borrow, deserialize_with = "present")] pub(crate) $field: Option<&'a RawValue>,)*
        }
    };
}
fields! {
    user, password, token, resume, resumable, rooms, cookie, protocol, room, since, text, data, key, after, before, limit,
}

fn present<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl<'a> Command<'a> {
    /// Reads a frame as far as its structure goes: `bad_json`, then `bad_request`.
    ///
    /// `assumed`: the type of an object that names none, where the transport implies one.
    pub(crate) fn parse(frame: &'a [u8], assumed: Option<Kind>) -> Result<Self, Malformed> {
        let malformed = |id, refusal| Malformed { id, refusal };
        let text = std::str::from_utf8(frame).map_err(|_| {
            malformed(
                None,
                Refusal::new(ErrorCode::BadJson, "The frame is not UTF-8."),
            )
        })?;
        serde_json::from_str::<IgnoredAny>(text).map_err(|error| {
            let place = error.column();
            malformed(
                None,
                Refusal::new(
                    ErrorCode::BadJson,
                    format!("The frame is not JSON (at byte {place})."),
                ),
            )
        })?;
        if !text.trim_ascii_start().starts_with('{') {
            return Err(malformed(
                None,
                Refusal::new(ErrorCode::BadJson, "A command is a JSON object."),
            ));
        }
        if let Err(fault) = check_structure(text.as_bytes()) {
            return Err(malformed(None, Refusal::bad_request(fault)));
        }
        let fields: Fields<'a> = serde_json::from_str(text)
            .map_err(|_| malformed(None, Refusal::bad_request("A field is there twice.")))?;
        let id = match fields.id {
            None => None,
            Some(raw) => Some(
                raw.get()
                    .parse()
                    .ok()
                    .filter(|&id| id <= MAX_ID)
                    .ok_or_else(|| {
                        malformed(
                            None,
                            Refusal::bad_request(
                                "id must be an integer from 0 to 9007199254740991.",
                            ),
                        )
                    })?,
            ),
        };
        let kind = match (fields.kind, assumed) {
            (None, Some(kind)) => Some(kind),
            (raw, _) => {
                let name: String = raw
                    .and_then(|raw| serde_json::from_str(raw.get()).ok())
                    .ok_or_else(|| {
                        malformed(
                            id,
                            Refusal::bad_request("type must be there and be a string."),
                        )
                    })?;
                Kind::named(&name)
            }
        };
        Ok(Self { id, kind, fields })
    }
}

/// Reads one field of a command.
pub(crate) fn field<'a, T: Deserialize<'a>>(
    name: &str,
    expected: &str,
    raw: Option<&'a RawValue>,
) -> Result<Option<T>, Refusal> {
    raw.map(|raw| serde_json::from_str(raw.get()))
        .transpose()
        .map_err(|_| Refusal::bad_request(format!("{name} must be {expected}.")))
}

/// What JSON's grammar allows and this protocol does not. `json` is valid JSON.
pub(crate) fn check_structure(json: &[u8]) -> Result<(), &'static str> {
    let mut depth = 0_usize;
    let mut at = 0;
    while let Some(&byte) = json.get(at) {
        match byte {
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err("Nesting is at most 32 deep.");
                }
                at += 1;
            }
            b'}' | b']' => {
                depth -= 1;
                at += 1;
            }
            b'"' => at = check_string(json, at + 1)?,
            b'-' | b'0'..=b'9' => {
                let length = json[at..]
                    .iter()
                    .take_while(|byte| {
                        matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E')
                    })
                    .count();
                let number = std::str::from_utf8(&json[at..at + length])
                    .ok()
                    .and_then(|n| n.parse::<f64>().ok());
                if !number.is_some_and(f64::is_finite) {
                    return Err("A number is beyond what a double can hold.");
                }
                at += length;
            }
            _ => at += 1,
        }
    }
    Ok(())
}

/// Returns where the string that began before `at` ends.
fn check_string(json: &[u8], mut at: usize) -> Result<usize, &'static str> {
    const UNPAIRED: &str = "A string holds an unpaired surrogate.";
    let unit = |at: usize| -> Option<u16> {
        let hex = json.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()
    };
    loop {
        match json.get(at) {
            None | Some(b'"') => return Ok(at + 1),
            Some(b'\\') => match unit(at) {
                Some(0xD800..=0xDBFF) => match unit(at + 6) {
                    Some(0xDC00..=0xDFFF) => at += 12,
                    _ => return Err(UNPAIRED),
                },
                Some(0xDC00..=0xDFFF) => return Err(UNPAIRED),
                Some(_) => at += 6,
                None => at += 2,
            },
            Some(_) => at += 1,
        }
    }
}

/// Writes valid JSON anew, without insignificant space. Order and repeated keys stay.
pub(crate) fn compact(json: &RawValue) -> Result<Box<RawValue>, Refusal> {
    let mut buffer = Vec::with_capacity(json.get().len());
    let mut from = serde_json::Deserializer::from_str(json.get());
    let mut to = serde_json::Serializer::new(&mut buffer);
    // A number may be finite to the check of the structure and not to the parser: at the very edge of a double.
    serde_transcode::transcode(&mut from, &mut to)
        .map_err(|_| Refusal::bad_request("data can't be written anew."))?;
    let text = String::from_utf8(buffer).expect("a serializer writes UTF-8");
    Ok(RawValue::from_string(text).expect("a serializer writes JSON"))
}

/// Everything the server says but `error`, which [`Refusal`] encodes.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Say<'a> {
    Session {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        session: Option<&'a str>,
        user: &'a str,
        timeout_ms: u64,
        ping_every_ms: u64,
        resumed: bool,
        protocol: u32,
        limits: ToldLimits,
    },
    Init {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        room: &'a str,
        users: List<'a>,
        count: usize,
        presence: Presence,
        epoch: &'a str,
        seq: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        rev: Option<u64>,
        recovered: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        escape: Option<&'static str>,
    },
    Join {
        room: &'a str,
        seq: u64,
        at: u64,
        user: &'a str,
    },
    Message {
        room: &'a str,
        seq: u64,
        at: u64,
        user: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        text: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        data: Option<&'a RawValue>,
    },
    Leave {
        room: &'a str,
        seq: u64,
        at: u64,
        user: &'a str,
        reason: LeaveReason,
    },
    Presence {
        room: &'a str,
        at: u64,
        rev: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        joined: Option<List<'a>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        left: Option<List<'a>>,
        count: usize,
    },
    Sent {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        room: &'a str,
        seq: u64,
        at: u64,
    },
    Left {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        room: &'a str,
        /// Where the client did not ask for it.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<LeaveReason>,
    },
    System {
        at: u64,
        data: &'a RawValue,
    },
    Users {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        room: &'a str,
        users: List<'a>,
        count: usize,
        epoch: &'a str,
        seq: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        rev: Option<u64>,
        next: Option<&'a str>,
    },
    Pong {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
    },
    Bye {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        code: CloseReason,
        message: &'static str,
        retry_ms: Option<u64>,
    },
}

/// The limits that a client is told at log-in.
#[derive(Debug, Clone, Copy, Serialize)]
#[expect(clippy::struct_field_names, reason = "these are the names on the wire")]
pub(crate) struct ToldLimits {
    pub(crate) message_bytes: usize,
    pub(crate) frame_bytes: usize,
    pub(crate) server_frame_bytes: usize,
}

/// A list of names, written from wherever they stand.
#[derive(Debug)]
pub(crate) struct List<'a>(pub(crate) Vec<&'a str>);

impl Serialize for List<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for name in &self.0 {
            list.serialize_element(name)?;
        }
        list.end()
    }
}

/// The most bytes that a `message` object with that text and data takes.
pub(crate) fn told_len(text: Option<&str>, data: Option<&RawValue>) -> usize {
    /// Room, user, numbers and field names.
    const REST: usize = 1024;
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\t' | b'\r' | 8 | 12 => 2,
        0..0x20 => 6,
        _ => 1,
    };
    let text = text.map_or(0, |text| text.bytes().map(escaped).sum::<usize>());
    text + data.map_or(0, |data| data.get().len()) + REST
}

/// Bytes that a name takes in a list: quotes, comma, and room for escapes.
pub(crate) fn listed_len(name: &str) -> usize {
    name.bytes()
        .map(|byte| if matches!(byte, b'"' | b'\\') { 2 } else { 1 })
        .sum::<usize>()
        + 3
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn code(frame: &str) -> Option<ErrorCode> {
        Command::parse(frame.as_bytes(), None)
            .err()
            .map(|malformed| malformed.refusal.code)
    }

    #[test]
    fn what_is_no_json_object_is_bad_json() {
        for frame in [
            "",
            "nonsense",
            "{",
            "[]",
            "7",
            "null",
            "\"x\"",
            "{\"type\":\"ping\"} x",
            "{'type':1}",
        ] {
            assert_eq!(code(frame), Some(ErrorCode::BadJson), "{frame}");
        }
        assert!(Command::parse(b"{\"type\":\"\xFF\"}", None).is_err());
    }

    #[test]
    fn structure_is_judged_before_fields() {
        let deep = |depth: usize| {
            format!(
                "{{\"type\":\"ping\",\"x\":{}{}}}",
                "[".repeat(depth),
                "]".repeat(depth)
            )
        };
        assert_eq!(code(&deep(31)), None);
        assert_eq!(code(&deep(32)), Some(ErrorCode::BadRequest));
        assert_eq!(code(&deep(5000)), Some(ErrorCode::BadRequest));
        for frame in [
            r#"{"type":"ping","x":"\ud800"}"#,
            r#"{"type":"ping","x":"\udc00\ud800"}"#,
            r#"{"type":"ping","x":"\ud800\u0041"}"#,
            r#"{"type":"ping","x":1e999}"#,
            r#"{"type":"ping","x":-1e999}"#,
            r#"{"type":"ping","id":-1}"#,
            r#"{"type":"ping","id":1.5}"#,
            r#"{"type":"ping","id":null}"#,
            r#"{"type":"ping","id":9007199254740992}"#,
            r#"{"type":7}"#,
            r#"{"id":1}"#,
            r#"{"type":"ping","type":"ping"}"#,
        ] {
            assert_eq!(code(frame), Some(ErrorCode::BadRequest), "{frame}");
        }
        for frame in [
            r#"{"type":"ping","x":"\ud83d\ude00 \\ud800"}"#,
            r#"{"type":"ping","id":9007199254740991}"#,
            r#"{"type":"ping","x":[1e308,0.1,-7]}"#,
        ] {
            assert_eq!(code(frame), None, "{frame}");
        }
    }

    #[test]
    fn an_unknown_type_keeps_its_id() {
        let command = Command::parse(br#"{"type":"dance","id":4,"extra":true}"#, None).unwrap();
        assert_eq!((command.id, command.kind), (Some(4), None));
    }

    #[test]
    fn the_type_may_be_implied() {
        assert_eq!(
            Command::parse(b"{}", Some(Kind::Login)).unwrap().kind,
            Some(Kind::Login)
        );
        assert!(Command::parse(b"{}", None).is_err());
    }

    #[test]
    fn data_is_written_anew() {
        let raw: Box<RawValue> =
            serde_json::from_str("{ \"b\" : [ 1 ,\n 2.50 ] ,\r\n \"a\" : \"x\\u0041\\n\" }")
                .unwrap();
        assert_eq!(compact(&raw).unwrap().get(), r#"{"b":[1,2.5],"a":"xA\n"}"#);
    }

    #[test]
    fn numbers_at_the_edge_of_a_double_make_no_panic_and_keep_their_value() {
        for number in [
            "1.7976931348623158e308",
            "17976931348623157000e289",
            "-1.7976931348623157e308",
            "0.1",
            "2.2250738585072011e-308",
            "123456789012345678901234567890",
        ] {
            let raw: Box<RawValue> = serde_json::from_str(number).unwrap();
            if let Ok(written) = compact(&raw) {
                let value = |text: &str| text.parse::<f64>().unwrap().to_bits();
                assert_eq!(value(written.get()), value(number), "{number}");
            }
        }
    }

    #[test]
    fn one_buffer_serves_every_framing() {
        for length in [0_usize, 1, 125, 126, 127, 65_535, 65_536, 70_000] {
            let json = format!("\"{}\"", "x".repeat(length.saturating_sub(2)));
            let frame = Frame::from_json(json.as_bytes());
            assert_eq!(frame.json(), json.as_bytes());
            assert_eq!(frame.framed(Framing::Lines), format!("{json}\n").as_bytes());
            let websocket = frame.framed(Framing::WebSocket);
            let (size, header) = match websocket[1] {
                126 => (
                    u64::from(u16::from_be_bytes([websocket[2], websocket[3]])),
                    4,
                ),
                127 => (u64::from_be_bytes(websocket[2..10].try_into().unwrap()), 10),
                short => (u64::from(short), 2),
            };
            assert_eq!(websocket[0], 0x81);
            assert_eq!(usize::try_from(size).unwrap(), json.len());
            assert_eq!(&websocket[header..], json.as_bytes());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_codec_panic(frame in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Command::parse(&frame, None);
        }

        #[test]
        fn near_json_does_not_make_the_codec_panic(frame in r#"[{}\[\]",:0-9eE+\-.\\udUDc8aft ]{0,60}"#) {
            let _ = Command::parse(frame.as_bytes(), None);
        }

        #[test]
        fn a_text_comes_back_as_it_was(text in any::<String>()) {
            let frame = serde_json::json!({"type": "send", "text": text}).to_string();
            let command = Command::parse(frame.as_bytes(), None).unwrap();
            let read: Option<String> = field("text", "a string", command.fields.text).unwrap();
            let event = Frame::encode(&Say::Message {
                room: "r", seq: 1, at: 0, user: "u", text: read.as_deref(), data: None,
            });
            prop_assert!(!event.json().contains(&b'\n') && !event.json().contains(&b'\r'));
            let back: serde_json::Value = serde_json::from_slice(&event.json()).unwrap();
            prop_assert_eq!(back["text"].as_str(), Some(text.as_str()));
        }
    }
}
