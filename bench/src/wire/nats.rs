//! The client's side of the NATS protocol: lines, and messages with their length before them.

use std::ops::Range;

use super::{MAX_FRAME, WireError};

/// The longest line that is taken; the greeting is the longest there is.
const MAX_LINE: usize = 16 * 1024;

/// What the server sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// The greeting.
    Info,
    /// A message.
    Message,
    /// To be answered.
    Ping,
    /// The answer to a ping.
    Pong,
    /// A command was taken.
    Good,
    /// A command was refused, or the connection is over; the payload says why.
    Refused,
}

/// One command within the bytes it was cut from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// What it is.
    pub verb: Verb,
    /// The text of a message, or the reason of a refusal.
    pub payload: Range<usize>,
    /// Where the next one begins.
    pub end: usize,
}

/// Cuts the first command out of `bytes`; `None` while it is incomplete.
///
/// # Errors
/// A line that is none of the protocol's.
pub fn cut(bytes: &[u8]) -> Result<Option<Piece>, WireError> {
    let Some(length) = memchr::memchr(b'\n', bytes) else {
        return if bytes.len() > MAX_LINE {
            Err(WireError::TooLong)
        } else {
            Ok(None)
        };
    };
    let line = bytes[..length]
        .strip_suffix(b"\r")
        .unwrap_or(&bytes[..length]);
    let end = length + 1;
    let plain = |verb| {
        Ok(Some(Piece {
            verb,
            payload: end..end,
            end,
        }))
    };
    if let Some(fields) = line.strip_prefix(b"MSG ") {
        let digits = fields.rsplit(|&byte| byte == b' ').next().unwrap_or(b"");
        let size: usize = std::str::from_utf8(digits)
            .ok()
            .and_then(|digits| digits.parse().ok())
            .filter(|&size| size <= MAX_FRAME)
            .ok_or_else(|| odd(line))?;
        let payload = end..end + size;
        // CR LF follows the text.
        let end = payload.end + 2;
        return Ok((bytes.len() >= end).then_some(Piece {
            verb: Verb::Message,
            payload,
            end,
        }));
    }
    match line {
        b"PING" => plain(Verb::Ping),
        b"PONG" => plain(Verb::Pong),
        b"+OK" => plain(Verb::Good),
        _ if line.starts_with(b"INFO ") => plain(Verb::Info),
        _ if line.starts_with(b"-ERR ") => Ok(Some(Piece {
            verb: Verb::Refused,
            payload: 5..line.len(),
            end,
        })),
        _ => Err(odd(line)),
    }
}

fn odd(line: &[u8]) -> WireError {
    WireError::Nats(String::from_utf8_lossy(&line[..line.len().min(100)]).into_owned())
}

/// Appends a message to `subject`, whose text is that of `parts` in turn.
pub fn put_publish(subject: &str, parts: &[&[u8]], out: &mut Vec<u8>) {
    let size: usize = parts.iter().map(|part| part.len()).sum();
    out.extend_from_slice(format!("PUB {subject} {size}\r\n").as_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_cut_out_whole_and_never_early() {
        let bytes = b"MSG bench:1 1 5\r\nhe\nlo\r\nPING\r\n";
        let piece = cut(bytes).unwrap().unwrap();
        assert_eq!(piece.verb, Verb::Message);
        assert_eq!(&bytes[piece.payload.clone()], b"he\nlo");
        assert_eq!(cut(&bytes[..piece.end - 1]), Ok(None));
        assert_eq!(cut(&bytes[piece.end..]).unwrap().unwrap().verb, Verb::Ping);
    }

    #[test]
    fn a_refusal_carries_its_reason() {
        let bytes = b"-ERR 'maximum connections exceeded'\r\n";
        let piece = cut(bytes).unwrap().unwrap();
        assert_eq!(piece.verb, Verb::Refused);
        assert_eq!(&bytes[piece.payload], b"'maximum connections exceeded'");
    }

    #[test]
    fn lines_of_another_protocol_are_refused() {
        for bytes in [
            &b"HTTP/1.1 400\r\n"[..],
            b"MSG a 1 x\r\n",
            b"MSG a 1 99999999\r\n",
        ] {
            assert!(cut(bytes).is_err());
        }
    }

    #[test]
    fn a_message_is_put_with_its_length() {
        let mut out = Vec::new();
        put_publish("bench:1", &[b"he", b"llo"], &mut out);
        assert_eq!(out, b"PUB bench:1 5\r\nhello\r\n");
    }
}
