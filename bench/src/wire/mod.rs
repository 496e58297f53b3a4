//! How objects are laid onto a byte stream and cut out of it again: lines and WebSocket frames in
//! both directions, and beside them [`http`], [`mqtt`] and [`nats`] as a client needs them.
//!
//! Enough of RFC 6455 for two programs that know each other: no extensions and no fragments.
//! Anything else is an error and never skipped.

pub mod http;
pub mod mqtt;
pub mod nats;

use std::ops::Range;

use serde::Serialize;

/// The longest frame or line taken, in bytes, header left out. A server's objects may be 256 KiB.
pub const MAX_FRAME: usize = 512 * 1024;

/// How objects follow each other on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Framing {
    /// One object a line, ended by LF.
    Lines,
    /// One object per text message.
    #[value(name = "websocket")]
    WebSocket,
}

impl Framing {
    /// The word that command lines and reports use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lines => "lines",
            Self::WebSocket => "websocket",
        }
    }
}

/// Who writes a frame. Only a client masks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The side that connected.
    Client,
    /// The side that accepted.
    Server,
}

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One object.
    Text,
    /// The end of the connection; a code may follow in the payload.
    Close,
    /// To be answered by [`Kind::Pong`] with the same payload.
    Ping,
    /// The answer to a ping.
    Pong,
}

/// One frame or line within the bytes it was cut from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// What it is for. Lines are always text.
    pub kind: Kind,
    /// Where its payload lies; still masked if there is a mask.
    pub payload: Range<usize>,
    /// The mask of a client's frame.
    pub mask: Option<[u8; 4]>,
    /// Where the next frame begins.
    pub end: usize,
}

/// Bytes that are no frame that this program takes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// A frame or line over [`MAX_FRAME`].
    #[error("a frame is longer than {MAX_FRAME} bytes")]
    TooLong,
    /// A part of a fragmented message.
    #[error("a message is fragmented")]
    Fragmented,
    /// An opcode that is neither text nor control.
    #[error("a frame has the opcode {0:#x}")]
    Opcode(u8),
    /// A bit that only an extension may set.
    #[error("a frame has reserved bits set")]
    Reserved,
    /// An HTTP answer that this program can't take apart.
    #[error("an HTTP answer {0}")]
    Http(&'static str),
    /// A packet that is no MQTT 3.1.1, or none that a subscriber at QoS 0 is sent.
    #[error("an MQTT packet begins with {0:#04x}")]
    Mqtt(u8),
    /// A line that is not part of the NATS protocol.
    #[error("a line is no part of the NATS protocol: {0:?}")]
    Nats(String),
}

/// Cuts the first frame or line out of `bytes`; `None` while it is incomplete. Empty lines are
/// passed over.
///
/// # Errors
/// What can't become a frame however much follows.
pub fn cut(framing: Framing, bytes: &[u8]) -> Result<Option<Piece>, WireError> {
    match framing {
        Framing::Lines => cut_line(bytes),
        Framing::WebSocket => cut_frame(bytes),
    }
}

fn cut_line(bytes: &[u8]) -> Result<Option<Piece>, WireError> {
    let mut start = 0;
    while let Some(length) = memchr::memchr(b'\n', &bytes[start..]) {
        let line = &bytes[start..start + length];
        let text = line.strip_suffix(b"\r").unwrap_or(line);
        if text.len() > MAX_FRAME {
            return Err(WireError::TooLong);
        }
        let end = start + length + 1;
        if !text.is_empty() {
            let payload = start..start + text.len();
            return Ok(Some(Piece {
                kind: Kind::Text,
                payload,
                mask: None,
                end,
            }));
        }
        start = end;
    }
    if bytes.len() - start > MAX_FRAME {
        Err(WireError::TooLong)
    } else {
        Ok(None)
    }
}

fn cut_frame(bytes: &[u8]) -> Result<Option<Piece>, WireError> {
    let [first, second, rest @ ..] = bytes else {
        return Ok(None);
    };
    if first & 0x70 != 0 {
        return Err(WireError::Reserved);
    }
    let kind = match first & 0x0f {
        0x0 => return Err(WireError::Fragmented),
        0x1 => Kind::Text,
        0x8 => Kind::Close,
        0x9 => Kind::Ping,
        0xa => Kind::Pong,
        opcode => return Err(WireError::Opcode(opcode)),
    };
    if first & 0x80 == 0 {
        return Err(WireError::Fragmented);
    }
    let (length, mut start) = match (second & 0x7f, rest) {
        (126, [a, b, ..]) => (usize::from(u16::from_be_bytes([*a, *b])), 4),
        (127, [a, b, c, d, e, f, g, h, ..]) => {
            let length = u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]);
            (usize::try_from(length).map_err(|_| WireError::TooLong)?, 10)
        }
        (126 | 127, _) => return Ok(None),
        (length, _) => (usize::from(length), 2),
    };
    if length > MAX_FRAME {
        return Err(WireError::TooLong);
    }
    let mask = if second & 0x80 == 0 {
        None
    } else {
        let Some(mask) = bytes[start..].first_chunk() else {
            return Ok(None);
        };
        start += 4;
        Some(*mask)
    };
    let end = start + length;
    Ok((bytes.len() >= end).then_some(Piece {
        kind,
        payload: start..end,
        mask,
        end,
    }))
}

/// Takes the mask off a client's payload.
pub fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    for (byte, key) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// Appends `object` to `out` as one line or text frame.
///
/// A client's mask is all zero: that is allowed, both ends then handle the payload as under any
/// other mask, and this program has nothing to hide from an intermediary.
pub fn put(framing: Framing, role: Role, object: &[u8], out: &mut Vec<u8>) {
    match framing {
        Framing::Lines => {
            out.extend_from_slice(object);
            out.push(b'\n');
        }
        Framing::WebSocket => put_frame(0x1, role, object, out),
    }
}

/// Appends the pong that answers a ping with `payload`.
pub fn put_pong(role: Role, payload: &[u8], out: &mut Vec<u8>) {
    put_frame(0xa, role, payload, out);
}

fn put_frame(opcode: u8, role: Role, payload: &[u8], out: &mut Vec<u8>) {
    let mask_bit = if role == Role::Client { 0x80 } else { 0 };
    out.push(0x80 | opcode);
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length @ ..=125), _) => out.push(mask_bit | length),
        (_, Ok(length)) => {
            out.push(mask_bit | 126);
            out.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            out.push(mask_bit | 127);
            out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    if role == Role::Client {
        out.extend_from_slice(&[0; 4]);
    }
    out.extend_from_slice(payload);
}

/// The code and reason of a close frame's payload; 1005, as RFC 6455 has it, where there is none.
#[must_use]
pub fn close_reason(payload: &[u8]) -> (u16, String) {
    match payload {
        [a, b, reason @ ..] => (
            u16::from_be_bytes([*a, *b]),
            String::from_utf8_lossy(reason).into_owned(),
        ),
        _ => (1005, String::new()),
    }
}

/// Where the head of an HTTP message ends, its empty line included.
#[must_use]
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    memchr::memmem::find(bytes, b"\r\n\r\n").map(|at| at + 4)
}

/// The value of the header `name` in an HTTP head, without surrounding space.
#[must_use]
pub fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FRAMINGS: [Framing; 2] = [Framing::Lines, Framing::WebSocket];

    fn laid(framing: Framing, role: Role, object: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put(framing, role, object, &mut out);
        out
    }

    #[test]
    fn headers_have_the_bytes_that_the_standard_says() {
        assert_eq!(laid(Framing::WebSocket, Role::Server, b"hi"), b"\x81\x02hi");
        assert_eq!(
            laid(Framing::WebSocket, Role::Client, b"hi"),
            b"\x81\x82\0\0\0\0hi"
        );
        assert_eq!(
            laid(Framing::WebSocket, Role::Server, &[b'x'; 126])[..4],
            [0x81, 126, 0, 126]
        );
        assert_eq!(
            laid(Framing::WebSocket, Role::Server, &[b'x'; 65_536])[..10],
            [0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]
        );
        assert_eq!(laid(Framing::Lines, Role::Client, b"hi"), b"hi\n");
    }

    #[test]
    fn what_is_laid_out_is_cut_out_again_and_never_early() {
        for framing in FRAMINGS {
            for role in [Role::Client, Role::Server] {
                for length in [1, 125, 126, 127, 65_535, 65_536] {
                    let object = vec![b'x'; length];
                    let bytes = laid(framing, role, &object);
                    assert_eq!(cut(framing, &bytes[..bytes.len() - 1]), Ok(None));
                    let piece = cut(framing, &bytes).unwrap().unwrap();
                    assert_eq!((piece.kind, piece.end), (Kind::Text, bytes.len()));
                    assert_eq!(bytes[piece.payload], object);
                    assert_eq!(
                        piece.mask.is_some(),
                        framing == Framing::WebSocket && role == Role::Client
                    );
                }
            }
        }
    }

    #[test]
    fn the_example_of_the_standard_is_unmasked() {
        let mut bytes = *b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
        let piece = cut(Framing::WebSocket, &bytes).unwrap().unwrap();
        let payload = &mut bytes[piece.payload];
        unmask(payload, piece.mask.unwrap());
        assert_eq!(payload, b"Hello");
    }

    #[test]
    fn carriage_returns_and_empty_lines_are_no_content() {
        let bytes = b"\r\n\n{}\r\nrest";
        let piece = cut(Framing::Lines, bytes).unwrap().unwrap();
        assert_eq!(&bytes[piece.payload], b"{}");
        assert_eq!(&bytes[piece.end..], b"rest");
    }

    #[test]
    fn what_can_not_become_a_frame_is_refused() {
        let refused = |bytes: &[u8]| cut(Framing::WebSocket, bytes).unwrap_err();
        assert_eq!(refused(b"\x01\x02hi"), WireError::Fragmented);
        assert_eq!(refused(b"\x80\x02hi"), WireError::Fragmented);
        assert_eq!(refused(b"\x82\x02hi"), WireError::Opcode(2));
        assert_eq!(refused(b"\xc1\x02hi"), WireError::Reserved);
        assert_eq!(
            refused(b"\x81\x7f\xff\xff\xff\xff\xff\xff\xff\xff"),
            WireError::TooLong
        );
        assert_eq!(
            cut(Framing::Lines, &vec![b'x'; MAX_FRAME + 1]),
            Err(WireError::TooLong)
        );
    }

    #[test]
    fn a_close_frame_tells_its_code() {
        assert_eq!(
            close_reason(b"\x0f\xa1session_expired"),
            (4001, "session_expired".to_owned())
        );
        assert_eq!(close_reason(b""), (1005, String::new()));
    }

    #[test]
    fn headers_are_found_whatever_their_case() {
        let head = "GET / HTTP/1.1\r\nsec-websocket-KEY:  abc \r\n\r\n";
        assert_eq!(header(head, "Sec-WebSocket-Key"), Some("abc"));
        assert_eq!(header(head, "Host"), None);
        assert_eq!(head_end(head.as_bytes()), Some(head.len()));
    }

    proptest! {
        #[test]
        fn a_stream_is_cut_into_what_was_put_on_it(
            objects in prop::collection::vec("[ -~]{1,300}", 0..8),
            websocket: bool,
            server: bool,
        ) {
            let framing = if websocket { Framing::WebSocket } else { Framing::Lines };
            let role = if server { Role::Server } else { Role::Client };
            let mut bytes = Vec::new();
            for object in &objects {
                put(framing, role, object.as_bytes(), &mut bytes);
            }
            let mut found = Vec::new();
            let mut rest = &bytes[..];
            while let Some(piece) = cut(framing, rest).unwrap() {
                found.push(String::from_utf8(rest[piece.payload].to_vec()).unwrap());
                rest = &rest[piece.end..];
            }
            prop_assert!(rest.is_empty());
            prop_assert_eq!(found, objects);
        }

        #[test]
        fn no_bytes_make_the_cutter_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            for framing in FRAMINGS {
                if let Ok(Some(piece)) = cut(framing, &bytes) {
                    prop_assert!(piece.payload.end <= piece.end && piece.end <= bytes.len());
                }
            }
        }
    }
}
