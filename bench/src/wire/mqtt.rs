//! MQTT 3.1.1 as a subscriber and publisher at QoS 0 speaks it.

use std::ops::Range;

use super::{MAX_FRAME, WireError};

/// What the server sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet {
    /// The answer to the log-in, with its return code; 0 is good.
    Connected(u8),
    /// The answer to a subscription, with its return code; over 0x7f it failed.
    Subscribed(u8),
    /// A message.
    Message,
    /// The answer to a ping.
    Pong,
}

/// One packet within the bytes it was cut from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// What it is.
    pub packet: Packet,
    /// The text of a message.
    pub payload: Range<usize>,
    /// Where the next one begins.
    pub end: usize,
}

/// Cuts the first packet out of `bytes`; `None` while it is incomplete.
///
/// # Errors
/// What a server does not send to such a client.
pub fn cut(bytes: &[u8]) -> Result<Option<Piece>, WireError> {
    let Some((&first, rest)) = bytes.split_first() else {
        return Ok(None);
    };
    if !matches!(first, 0x20 | 0x30 | 0x31 | 0x90 | 0xd0) {
        return Err(WireError::Mqtt(first));
    }
    let (mut length, mut start) = (0_usize, 1);
    loop {
        let Some(&byte) = rest.get(start - 1) else {
            return Ok(None);
        };
        length |= usize::from(byte & 0x7f) << (7 * (start - 1));
        start += 1;
        if byte & 0x80 == 0 {
            break;
        }
        if start > 4 {
            return Err(WireError::Mqtt(first));
        }
    }
    if length > MAX_FRAME {
        return Err(WireError::TooLong);
    }
    let end = start + length;
    let Some(body) = bytes.get(start..end) else {
        return Ok(None);
    };
    let (packet, payload) = match (first, body) {
        (0x20, [_, code]) => (Packet::Connected(*code), end..end),
        (0x90, [_, _, code]) => (Packet::Subscribed(*code), end..end),
        (0xd0, []) => (Packet::Pong, end..end),
        // QoS 0, kept or not: no packet id between topic and text.
        (0x30 | 0x31, [a, b, topic @ ..]) => {
            let topic_length = usize::from(u16::from_be_bytes([*a, *b]));
            if topic_length > topic.len() {
                return Err(WireError::Mqtt(first));
            }
            (Packet::Message, start + 2 + topic_length..end)
        }
        _ => return Err(WireError::Mqtt(first)),
    };
    Ok(Some(Piece {
        packet,
        payload,
        end,
    }))
}

/// Appends a log-in under `client`, without an account and without keep-alive.
pub fn put_connect(client: &str, out: &mut Vec<u8>) {
    let client = string(client);
    put_head(0x10, 10 + 2 + client.len(), out);
    out.extend_from_slice(b"\0\x04MQTT\x04\x02\0\0");
    put_string(client, out);
}

/// Appends a subscription to `topic` at QoS 0.
pub fn put_subscribe(topic: &str, out: &mut Vec<u8>) {
    let topic = string(topic);
    put_head(0x82, 2 + 2 + topic.len() + 1, out);
    out.extend_from_slice(&[0, 1]);
    put_string(topic, out);
    out.push(0);
}

/// Appends a message to `topic` at QoS 0, whose text is that of `parts` in turn.
pub fn put_publish(topic: &str, parts: &[&[u8]], out: &mut Vec<u8>) {
    let topic = string(topic);
    let text: usize = parts.iter().map(|part| part.len()).sum();
    put_head(0x30, 2 + topic.len() + text, out);
    put_string(topic, out);
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// What fits MQTT's length of 16 bits; names here are far shorter.
fn string(text: &str) -> &[u8] {
    &text.as_bytes()[..text.len().min(usize::from(u16::MAX))]
}

fn put_string(text: &[u8], out: &mut Vec<u8>) {
    let length = u16::try_from(text.len()).expect("string() has cut it");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(text);
}

fn put_head(first: u8, mut length: usize, out: &mut Vec<u8>) {
    out.push(first);
    loop {
        let low = u8::try_from(length & 0x7f).expect("seven bits");
        length >>= 7;
        out.push(if length == 0 { low } else { low | 0x80 });
        if length == 0 {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_cut_out_as_it_was_put_and_never_early() {
        for length in [0, 1, 100, 127, 128, 20_000] {
            let text = vec![b'x'; length];
            let mut bytes = Vec::new();
            put_publish(
                "bench:1",
                &[&text[..length / 2], &text[length / 2..]],
                &mut bytes,
            );
            let piece = cut(&bytes).unwrap().unwrap();
            assert_eq!((piece.packet, piece.end), (Packet::Message, bytes.len()));
            assert_eq!(&bytes[piece.payload], text);
            assert_eq!(cut(&bytes[..bytes.len() - 1]), Ok(None));
        }
    }

    #[test]
    fn the_way_in_has_the_bytes_that_the_standard_says() {
        let mut bytes = Vec::new();
        put_connect("m1", &mut bytes);
        assert_eq!(bytes, b"\x10\x0e\0\x04MQTT\x04\x02\0\0\0\x02m1");
        bytes.clear();
        put_subscribe("room", &mut bytes);
        assert_eq!(bytes, b"\x82\x09\0\x01\0\x04room\0");
    }

    #[test]
    fn answers_carry_their_code() {
        let packet = |bytes: &[u8]| cut(bytes).unwrap().unwrap().packet;
        assert_eq!(packet(b"\x20\x02\0\0"), Packet::Connected(0));
        assert_eq!(packet(b"\x20\x02\0\x05"), Packet::Connected(5));
        assert_eq!(packet(b"\x90\x03\0\x01\0"), Packet::Subscribed(0));
        assert_eq!(packet(b"\xd0\0"), Packet::Pong);
    }

    #[test]
    fn what_is_no_packet_for_a_subscriber_is_refused() {
        for bytes in [
            &b"\x32\x06\0\x01a\0\x01x"[..],
            b"\x30\x02\0\x05",
            b"\x20\x01\0",
            b"\x30\xff\xff\xff\xff\x01",
            b"HTTP/1.1",
        ] {
            assert!(cut(bytes).is_err(), "{bytes:?}");
        }
    }
}
