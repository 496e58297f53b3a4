//! The server's objects, as far as this program looks into them.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

/// Longest stretch of an object that an error shows.
const SHOWN_BYTES: usize = 500;

/// Any object. Fields that it does not have are `None`, 0 or empty.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Incoming<'i> {
    #[serde(rename = "type", borrow)]
    pub(crate) kind: Cow<'i, str>,
    #[serde(borrow)]
    pub(crate) room: Option<Cow<'i, str>>,
    #[serde(borrow)]
    pub(crate) user: Option<Cow<'i, str>>,
    #[serde(borrow)]
    pub(crate) session: Option<Cow<'i, str>>,
    pub(crate) ping_every_ms: u64,
    pub(crate) seq: Option<u64>,
    pub(crate) count: Option<u64>,
    pub(crate) rev: Option<u64>,
    #[serde(borrow)]
    pub(crate) presence: Option<Cow<'i, str>>,
    pub(crate) joined: Names,
    pub(crate) left: Names,
    #[serde(borrow)]
    pub(crate) text: Option<Cow<'i, str>>,
    #[serde(borrow)]
    pub(crate) code: Option<Cow<'i, str>>,
    #[serde(borrow)]
    pub(crate) message: Option<Cow<'i, str>>,
}

impl<'i> Incoming<'i> {
    /// Reads `object`; `None` if it is none.
    pub(crate) fn read(object: &'i [u8]) -> Option<Self> {
        serde_json::from_slice(object).ok()
    }
}

/// What a poll is answered with.
#[derive(Debug, Deserialize)]
pub(crate) struct Batch<'b> {
    #[serde(borrow)]
    pub(crate) events: Vec<&'b RawValue>,
    pub(crate) next: u64,
    #[serde(default)]
    pub(crate) superseded: bool,
}

/// A list of names, of which only the number matters here.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Names(pub(crate) u64);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Count;
        impl<'de> Visitor<'de> for Count {
            type Value = Names;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Names, A::Error> {
                let mut count = 0;
                while list.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(Names(count))
            }
        }
        deserializer.deserialize_seq(Count)
    }
}

/// The beginning of `bytes` as text, for an error. Control characters are escaped: a server must not write to the
/// terminal of those who measure it.
pub(crate) fn shown(bytes: &[u8]) -> String {
    let cut = bytes.len().min(SHOWN_BYTES);
    let mut text = String::new();
    for character in String::from_utf8_lossy(&bytes[..cut]).chars() {
        if character.is_control() {
            text.extend(character.escape_default());
        } else {
            text.push(character);
        }
    }
    if cut < bytes.len() {
        text.push('…');
    }
    text
}

/// Whether two members were told the same, whatever the spelling.
pub(crate) fn same_event(one: &[u8], other: &[u8]) -> bool {
    let value = |bytes| serde_json::from_slice::<serde_json::Value>(bytes).ok();
    one == other || value(one) == value(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_counted_and_other_fields_passed_over() {
        let object = br#"{"type":"presence","joined":["a","b"],"left":[],"rev":3,"count":7}"#;
        let object = Incoming::read(object).unwrap();
        assert_eq!((object.joined, object.left), (Names(2), Names(0)));
        assert_eq!((&*object.kind, object.count), ("presence", Some(7)));
        assert!(Incoming::read(b"[1]").is_none() && Incoming::read(b"{").is_none());
    }

    #[test]
    fn the_events_of_a_poll_keep_their_bytes() {
        let body = br#"{"events":[{"a": 1},{"b":"}"}],"first":3,"next":5}"#;
        let batch: Batch<'_> = serde_json::from_slice(body).unwrap();
        let events: Vec<&str> = batch.events.iter().map(|event| event.get()).collect();
        assert_eq!(events, [r#"{"a": 1}"#, r#"{"b":"}"}"#]);
        assert_eq!((batch.next, batch.superseded), (5, false));
    }

    #[test]
    fn spelling_makes_no_difference_and_content_does() {
        assert!(same_event(br#"{"a":1,"b":2}"#, br#"{"b":2, "a":1}"#));
        assert!(!same_event(br#"{"a":1}"#, br#"{"a":2}"#));
    }

    #[test]
    fn control_characters_are_escaped_where_they_are_shown() {
        assert_eq!(shown(b"\x1b[2Jhi\r\n\x07"), r"\u{1b}[2Jhi\r\n\u{7}");
        assert_eq!(shown("grüße \u{9b}".as_bytes()), r"grüße \u{9b}");
    }

    #[test]
    fn long_objects_are_cut_where_they_are_shown() {
        assert_eq!(shown(b"short"), "short");
        assert_eq!(shown(&[b'x'; 600]).chars().count(), SHOWN_BYTES + 1);
    }
}
