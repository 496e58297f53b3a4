//! What the server says, as types. Fields that are missing or not known break nothing that does not need them.

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Deserializer, Serialize, de::MapAccess, de::Visitor, ser::SerializeMap};
use serde_json::value::RawValue;

use crate::words::{EndCode, ErrorCode, LeaveReason, Presence};

/// One object from the server, as it came.
#[derive(Clone)]
pub struct Object {
    json: Box<str>,
    kind: Box<str>,
    id: Option<u64>,
}

impl Object {
    /// `None`: not JSON, no object, or without a `type`.
    pub(crate) fn parse(json: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Head<'a> {
            #[serde(borrow)]
            r#type: Cow<'a, str>,
            #[serde(default)]
            id: Option<u64>,
        }
        let head: Head<'_> = serde_json::from_str(json).ok()?;
        Some(Self {
            kind: head.r#type.into(),
            id: head.id,
            json: json.into(),
        })
    }

    /// Its text.
    #[must_use]
    pub fn json(&self) -> &str {
        &self.json
    }

    /// Its `type`.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Its `id`: that of the command which it answers.
    #[must_use]
    pub fn id(&self) -> Option<u64> {
        self.id
    }

    /// Reads it as a type of one's own, say for a `type` of a later server.
    ///
    /// # Errors
    /// It does not have that shape.
    pub fn read<'a, T: Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.json)
    }

    /// Reads it as an event. What is no event that this version knows is [`Event::Other`].
    #[must_use]
    pub fn event(&self) -> Event {
        self.known_event()
            .unwrap_or_else(|| Event::Other(self.clone()))
    }

    fn known_event(&self) -> Option<Event> {
        Some(match &*self.kind {
            "init" => Event::Init(self.read().ok()?),
            "join" => Event::Join(self.read().ok()?),
            "leave" => Event::Leave(self.read().ok()?),
            "left" => Event::Left(self.read().ok()?),
            "message" => Event::Message(self.read().ok()?),
            "presence" => Event::Presence(self.read().ok()?),
            "signal" => Event::Signal(self.read().ok()?),
            "error" => Event::Refused(self.read().ok()?),
            _ => return None,
        })
    }
}

impl fmt::Debug for Object {
    /// Without what it says: a `session` holds a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object")
            .field("kind", &self.kind)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// What came to pass.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// What a room was like before the events that follow: after every join, one's own or not asked for.
    Init(Init),
    /// Somebody came in.
    Join(Join),
    /// Somebody else left.
    Leave(Leave),
    /// This session is no longer in a room: it left, or was taken out.
    Left(Left),
    /// Somebody said something.
    Message(Message),
    /// Who came and went, in a room that tells so by intervals.
    Presence(PresenceChange),
    /// A passing notice, such as that somebody is typing.
    Signal(Signal),
    /// Something was refused that this client can't match with a command.
    Refused(Refusal),
    /// An object of a type that this version does not know.
    Other(Object),
}

/// The answer to a log-in.
#[derive(Clone, Deserialize)]
pub struct Session {
    /// The session's id, which over HTTP is all that it takes to be its user.
    #[serde(default, rename = "session")]
    pub(crate) id: Option<Box<str>>,
    /// The user's name as everybody sees it.
    pub user: Box<str>,
    /// How long silence lasts until it ends the session, in milliseconds; 0: for ever.
    #[serde(default)]
    pub timeout_ms: u64,
    /// How often something has to be sent, in milliseconds; 0: never. [`Client`](crate::Client) sees to it.
    #[serde(default)]
    pub ping_every_ms: u64,
    /// The version of the protocol.
    #[serde(default)]
    pub protocol: u32,
    /// What the server takes and gives.
    #[serde(default)]
    pub limits: Limits,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("user", &self.user)
            .field("timeout_ms", &self.timeout_ms)
            .field("ping_every_ms", &self.ping_every_ms)
            .field("protocol", &self.protocol)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// Sizes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// The most of a message's text and compact data together.
    pub message_bytes: usize,
    /// The most of a command.
    pub frame_bytes: usize,
    /// The most of an object from the server.
    pub server_frame_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes: 4 << 10,
            frame_bytes: 16 << 10,
            server_frame_bytes: 256 << 10,
        }
    }
}

/// A room as it was at `seq`: before the join that this answers.
#[derive(Debug, Clone, Deserialize)]
pub struct Init {
    /// The room.
    pub room: Box<str>,
    /// The first names, in order; there may be more of them than these.
    #[serde(default)]
    pub users: Vec<Box<str>>,
    /// How many members there are in all.
    #[serde(default)]
    pub count: usize,
    /// How the room tells who is there.
    pub presence: Presence,
    /// Which numbering `seq` belongs to.
    pub epoch: Box<str>,
    /// The number before that of the first event that follows.
    pub seq: u64,
    /// The count of changes of membership, where presence is batched.
    #[serde(default)]
    pub rev: Option<u64>,
    /// Whether what was missed since the join's `since` follows.
    #[serde(default)]
    pub recovered: bool,
    /// How texts are escaped in this room, if at all; see [`unescape_html`].
    #[serde(default)]
    pub escape: Option<Box<str>>,
}

/// Somebody came in.
#[derive(Debug, Clone, Deserialize)]
pub struct Join {
    /// Where.
    pub room: Box<str>,
    /// Its number in the room.
    pub seq: u64,
    /// When, in milliseconds since the Unix epoch by the server's clock.
    pub at: u64,
    /// Who.
    pub user: Box<str>,
}

/// Somebody else left.
#[derive(Debug, Clone, Deserialize)]
pub struct Leave {
    /// Where.
    pub room: Box<str>,
    /// Its number in the room.
    pub seq: u64,
    /// When, in milliseconds since the Unix epoch by the server's clock.
    pub at: u64,
    /// Who.
    pub user: Box<str>,
    /// Why.
    pub reason: LeaveReason,
}

/// This session is no longer in the room.
#[derive(Debug, Clone, Deserialize)]
pub struct Left {
    /// The room.
    pub room: Box<str>,
    /// Why; `None` where it was asked for.
    #[serde(default)]
    pub reason: Option<LeaveReason>,
}

/// Somebody said something.
#[derive(Debug, Clone, Deserialize)]
pub struct Message {
    /// Where.
    pub room: Box<str>,
    /// Its number in the room.
    pub seq: u64,
    /// When, in milliseconds since the Unix epoch by the server's clock.
    pub at: u64,
    /// Who.
    pub user: Box<str>,
    /// What, for people. Nobody vouches for what is in it.
    #[serde(default)]
    pub text: Option<Box<str>>,
    /// What, for programs: any JSON.
    #[serde(default)]
    pub data: Option<Box<RawValue>>,
}

/// Who came and went in an interval.
#[derive(Debug, Clone, Deserialize)]
pub struct PresenceChange {
    /// Where.
    pub room: Box<str>,
    /// When, in milliseconds since the Unix epoch by the server's clock.
    pub at: u64,
    /// The count of changes of membership.
    #[serde(default)]
    pub rev: Option<u64>,
    /// Whoever is there and was not, or was away meanwhile.
    #[serde(default)]
    pub joined: Vec<Box<str>>,
    /// Whoever is not there and was, or was there meanwhile.
    #[serde(default)]
    pub left: Vec<Box<str>>,
    /// How many members there are now.
    pub count: usize,
}

/// A passing notice.
#[derive(Debug, Clone, Deserialize)]
pub struct Signal {
    /// Where.
    pub room: Box<str>,
    /// Who.
    pub user: Box<str>,
    /// What: any JSON.
    #[serde(default)]
    pub data: Option<Box<RawValue>>,
}

/// The answer to a `send`: the room has it.
#[derive(Debug, Clone, Deserialize)]
pub struct Sent {
    /// Where.
    pub room: Box<str>,
    /// Its number in the room, which the `message` that everybody gets has too.
    pub seq: u64,
    /// When, in milliseconds since the Unix epoch by the server's clock.
    pub at: u64,
}

/// A page of names.
#[derive(Debug, Clone, Deserialize)]
pub struct Users {
    /// The room.
    pub room: Box<str>,
    /// Names, in order.
    #[serde(default)]
    pub users: Vec<Box<str>>,
    /// How many members there are in all.
    #[serde(default)]
    pub count: usize,
    /// Which numbering `seq` belongs to.
    pub epoch: Box<str>,
    /// As of which event it is true.
    pub seq: u64,
    /// The count of changes of membership, where presence is batched.
    #[serde(default)]
    pub rev: Option<u64>,
    /// The name to ask for the next page with, as `after`; `None` after the last.
    #[serde(default)]
    pub next: Option<Box<str>>,
}

/// A command was refused; all else is as it was.
#[derive(Debug, Clone, thiserror::Error, Deserialize)]
#[error("{message}")]
pub struct Refusal {
    /// Why, for programs.
    pub code: ErrorCode,
    /// What happened and what to do, for people.
    #[serde(default)]
    pub message: Box<str>,
    /// When to repeat it, in milliseconds from now, where that helps.
    #[serde(default)]
    pub retry_ms: Option<u64>,
    /// How the session ended, with [`ErrorCode::SessionExpired`].
    #[serde(default)]
    pub end: Option<EndCode>,
}

/// The server's last word.
#[derive(Debug, Clone, thiserror::Error, Deserialize)]
#[error("{message}")]
pub struct Bye {
    /// Why, for programs.
    pub code: EndCode,
    /// What happened and what to do, for people.
    #[serde(default)]
    pub message: Box<str>,
    /// When to come back, in milliseconds from now; `None`: do not come back by yourself.
    #[serde(default)]
    pub retry_ms: Option<u64>,
}

/// Undoes HTML's escaping, as texts of a room have it whose `init` says `"escape":"html"`.
#[must_use]
pub fn unescape_html(text: &str) -> Cow<'_, str> {
    const ESCAPES: [(&str, char); 5] = [
        ("lt;", '<'),
        ("gt;", '>'),
        ("quot;", '"'),
        ("#39;", '\''),
        ("amp;", '&'),
    ];
    if !text.contains('&') {
        return text.into();
    }
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        plain.push_str(before);
        let known = ESCAPES
            .iter()
            .find_map(|(escape, character)| Some((after.strip_prefix(escape)?, *character)));
        let (after, character) = known.unwrap_or((after, '&'));
        plain.push(character);
        rest = after;
    }
    plain.push_str(rest);
    plain.into()
}

/// The fields of a JSON object, in order and as they were written.
#[derive(Debug, Clone, Default)]
pub struct Fields(Vec<(Box<str>, Box<RawValue>)>);

impl Fields {
    /// Reads the text of an object.
    ///
    /// # Errors
    /// It is not JSON, or no object.
    pub fn parse(json: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json)
    }

    /// The first field of that name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&RawValue> {
        let mut fields = self.0.iter();
        fields.find_map(|(key, value)| (**key == *name).then_some(&**value))
    }

    /// Gives a field another value, in its place; without a value it is taken out. A field that is not there is added
    /// at the end.
    pub fn set(&mut self, name: &str, value: Option<Box<RawValue>>) {
        let Some(value) = value else {
            self.0.retain(|(key, _)| **key != *name);
            return;
        };
        match self.0.iter_mut().find(|(key, _)| **key == *name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.into(), value)),
        }
    }
}

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_string(self).map_err(|_| fmt::Error)?;
        f.write_str(&json)
    }
}

impl Serialize for Fields {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        from.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_breaks_nothing() {
        let event = |json: &str| Object::parse(json).unwrap().event();
        let later = r#"{"type":"message","room":"lobby","seq":1,"at":2,"user":"Ada","text":"hi","mood":"fine"}"#;
        assert!(matches!(event(later), Event::Message(message) if &*message.user == "Ada"));
        assert!(
            matches!(event(r#"{"type":"weather","sun":true}"#), Event::Other(object) if object.kind() == "weather")
        );
        assert!(
            matches!(event(r#"{"type":"message","seq":"one"}"#), Event::Other(_)),
            "no panic"
        );
        for no_object in ["", "[]", "7", "{}", "{\"type\":7}", "{\"type\":\"x\""] {
            assert!(Object::parse(no_object).is_none(), "{no_object}");
        }
    }

    #[test]
    fn a_session_never_shows_its_id() {
        let json =
            r#"{"type":"session","session":"K3secret","user":"Ada","timeout_ms":1,"limits":{}}"#;
        let object = Object::parse(json).unwrap();
        let session: Session = object.read().unwrap();
        assert_eq!(session.id.as_deref(), Some("K3secret"));
        assert_eq!(session.limits, Limits::default());
        assert!(!format!("{session:?} {object:?}").contains("K3"));
    }

    #[test]
    fn escapes_of_html_are_undone_once() {
        for (escaped, plain) in [
            (
                "&lt;b&gt; &amp; &quot;x&quot; &#39;y&#39;",
                "<b> & \"x\" 'y'",
            ),
            ("&amp;lt;", "&lt;"),
            ("a & b &unknown; &", "a & b &unknown; &"),
            ("plain", "plain"),
        ] {
            assert_eq!(unescape_html(escaped), plain);
        }
    }

    #[test]
    fn fields_keep_their_order_and_their_writing() {
        let mut fields = Fields::parse(r#"{"z":1.50,"id":"x", "a":{"b": []}}"#).unwrap();
        assert_eq!(fields.field("id").unwrap().get(), "\"x\"");
        fields.set("id", Some(RawValue::from_string("7".into()).unwrap()));
        assert_eq!(fields.to_string(), r#"{"z":1.50,"id":7,"a":{"b": []}}"#);
        fields.set("id", None);
        assert_eq!(fields.to_string(), r#"{"z":1.50,"a":{"b": []}}"#);
        assert!(Fields::parse("[1]").is_err() && Fields::parse("{").is_err());
    }
}
