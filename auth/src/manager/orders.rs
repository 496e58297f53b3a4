//! The lines that a program writes to steer sessions, and what it hears of them: version 1.

use chinwag_core::{Refusal, plugin::Order};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::callout::contract::VERSION;

/// A line that a program writes unasked, as it stands.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    v: Option<u32>,
    session: String,
    order: String,
    with: Option<Box<RawValue>>,
    r#ref: Option<u64>,
}

/// An order that a program gives.
pub(super) struct Given {
    pub(super) session: String,
    /// Its name.
    pub(super) order: String,
    with: Option<Box<RawValue>>,
    /// Where the program wants to hear of it.
    pub(super) reference: Option<u64>,
}

impl Given {
    /// `None`: the line is no order.
    pub(super) fn read(line: &[u8]) -> Option<Self> {
        let line: Line = serde_json::from_slice(line).ok()?;
        line.v.is_none_or(|v| v == VERSION).then_some(Self {
            session: line.session,
            order: line.order,
            with: line.with,
            reference: line.r#ref,
        })
    }

    /// # Errors
    /// Those of [`Order::read`].
    pub(super) fn order(&self) -> Result<Order, Refusal> {
        let with = self.with.as_ref().map_or("", |with| with.get());
        Order::read(&self.order, with.as_bytes())
    }
}

/// What a program hears of an order that has a `ref`, as a line.
pub(super) fn outcome(reference: u64, refused: Option<&Refusal>) -> Vec<u8> {
    #[derive(Serialize)]
    struct Outcome<'a> {
        v: u32,
        r#type: &'static str,
        r#ref: u64,
        ok: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        code: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        message: Option<&'a str>,
    }
    let outcome = Outcome {
        v: VERSION,
        r#type: "outcome",
        r#ref: reference,
        ok: refused.is_none(),
        code: refused.map(|refusal| refusal.code.code()),
        message: refused.map(|refusal| refusal.message.as_str()),
    };
    let mut line =
        serde_json::to_vec(&outcome).expect("strings and numbers can be written as JSON");
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::callout::testing::{documentation, schema};

    #[test]
    fn a_line_that_is_no_order_is_none() {
        for line in [
            "{}",
            r#"{"session":"a"}"#,
            r#"{"order":"end"}"#,
            r#"{"session":"a","order":"end","v":2}"#,
            r#"{"session":"a","order":"end","with":{},"more":1}"#,
        ] {
            assert!(Given::read(line.as_bytes()).is_none(), "{line}");
        }
        let line = r#"{"session":"a","order":"timeout","with":{"timeout_ms":5},"ref":9}"#;
        let given = Given::read(line.as_bytes()).unwrap();
        assert_eq!((given.session.as_str(), given.reference), ("a", Some(9)));
        assert!(matches!(given.order(), Ok(Order::Timeout(it)) if it == Duration::from_millis(5)));
    }

    #[test]
    fn reader_and_schema_take_the_same_orders() {
        let schema = schema("session-order");
        for (line, is_good) in [
            (r#"{"session":"a","order":"end"}"#, true),
            (
                r#"{"session":"a","order":"end","with":{},"ref":0,"v":1}"#,
                true,
            ),
            (r#"{"session":"a","order":"filter"}"#, true),
            (
                r#"{"session":"a","order":"filter","with":{"rooms":null}}"#,
                true,
            ),
            (
                r#"{"session":"a","order":"filter","with":{"rooms":["a:*"],"commands":[]}}"#,
                true,
            ),
            (
                r#"{"session":"a","order":"timeout","with":{"timeout_ms":0}}"#,
                true,
            ),
            (
                r#"{"session":"a","order":"send","with":{"data":null}}"#,
                true,
            ),
            (
                r#"{"session":"a","order":"kick","with":{"room":"lobby"}}"#,
                true,
            ),
            (r#"{"session":"a","order":"explode"}"#, false),
            (
                r#"{"session":"a","order":"end","with":{"why":"so"}}"#,
                false,
            ),
            (
                r#"{"session":"a","order":"filter","with":{"rooms":["Lobby"]}}"#,
                false,
            ),
            (
                r#"{"session":"a","order":"filter","with":{"commands":["leave"]}}"#,
                false,
            ),
            (r#"{"session":"a","order":"timeout"}"#, false),
            (
                r#"{"session":"a","order":"timeout","with":{"timeout_ms":1e12}}"#,
                false,
            ),
            (r#"{"session":"a","order":"send","with":{}}"#, false),
            (r#"{"session":"a","order":"kick","with":{"room":7}}"#, false),
            (r#"{"session":"a","order":"end","ref":-1}"#, false),
        ] {
            let given = Given::read(line.as_bytes());
            let is_taken = given.is_some_and(|given| given.order().is_ok());
            assert_eq!(is_taken, is_good, "{line}");
            let value = serde_json::from_str(line).unwrap();
            assert_eq!(schema.is_valid(&value), is_good, "{line}");
        }
    }

    #[test]
    fn the_documentation_shows_orders_as_they_are() {
        let page = documentation("callouts.md");
        let (_, block) = page.split_once("```json session-order\n").unwrap();
        let (block, _) = block.split_once("```").unwrap();
        let schema = schema("session-order");
        assert!(block.lines().count() >= 3);
        for line in block.lines() {
            assert!(
                schema.is_valid(&serde_json::from_str(line).unwrap()),
                "{line}"
            );
            assert!(
                Given::read(line.as_bytes()).unwrap().order().is_ok(),
                "{line}"
            );
        }
        let outcome = String::from_utf8(outcome(7, None)).unwrap();
        assert!(page.contains(outcome.trim_end()), "{outcome}");
    }
}
