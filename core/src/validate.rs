//! The validators that every server has. A room's chain of them is part of its options.

use std::sync::Arc;

use crate::plugin::{Draft, Rejection, Validator};

/// The built-in validator of that name.
pub(crate) fn builtin(name: &str) -> Option<Arc<dyn Validator>> {
    Some(match name {
        "not_empty" => Arc::new(NotEmpty),
        "length" => Arc::new(Length),
        "control_chars" => Arc::new(ControlChars),
        HTML_ESCAPE => Arc::new(HtmlEscape),
        _ => return None,
    })
}

/// The names of the validators that every server has.
pub const BUILTIN_VALIDATORS: [&str; 4] = ["not_empty", "length", "control_chars", HTML_ESCAPE];

/// The one whose presence a room's `init` tells.
pub(crate) const HTML_ESCAPE: &str = "html_escape";

/// A message says something: a text beyond white space, or data.
struct NotEmpty;

impl Validator for NotEmpty {
    fn check(&self, draft: &mut Draft<'_>) -> Result<(), Rejection> {
        let blank = draft
            .text
            .as_ref()
            .is_none_or(|text| text.trim().is_empty());
        if blank && draft.data.is_none() {
            Err(Rejection::Empty)
        } else {
            Ok(())
        }
    }
}

/// `text` plus compact `data` within `message_bytes`.
struct Length;

impl Validator for Length {
    fn check(&self, draft: &mut Draft<'_>) -> Result<(), Rejection> {
        let text = draft.text.as_ref().map_or(0, String::len);
        let data = draft.data.as_ref().map_or(0, |data| data.get().len());
        if text + data > draft.limit {
            Err(Rejection::TooLong)
        } else {
            Ok(())
        }
    }
}

/// No control characters in a text but line feed and tab.
struct ControlChars;

impl Validator for ControlChars {
    fn check(&self, draft: &mut Draft<'_>) -> Result<(), Rejection> {
        let refused = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
        match &draft.text {
            Some(text) if text.chars().any(refused) => Err(Rejection::Rejected(
                "The text holds control characters other than line feed and tab.".into(),
            )),
            _ => Ok(()),
        }
    }
}

/// Writes `&`, `<`, `>`, `"` and `'` of a text as HTML entities.
struct HtmlEscape;

impl Validator for HtmlEscape {
    fn check(&self, draft: &mut Draft<'_>) -> Result<(), Rejection> {
        let Some(text) = &draft.text else {
            return Ok(());
        };
        if text.contains(['&', '<', '>', '"', '\'']) {
            let mut escaped = String::with_capacity(text.len() + 16);
            for c in text.chars() {
                match c {
                    '&' => escaped.push_str("&amp;"),
                    '<' => escaped.push_str("&lt;"),
                    '>' => escaped.push_str("&gt;"),
                    '"' => escaped.push_str("&quot;"),
                    '\'' => escaped.push_str("&#39;"),
                    _ => escaped.push(c),
                }
            }
            draft.text = Some(escaped);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        validator: &str,
        text: Option<&str>,
        data: Option<&str>,
    ) -> Result<Option<String>, Rejection> {
        let data = data.map(|data| serde_json::from_str(data).unwrap());
        let mut draft = Draft::new("u", "r", text.map(String::from), data, 10);
        builtin(validator)
            .unwrap()
            .check(&mut draft)
            .map(|()| draft.text)
    }

    #[test]
    fn an_empty_message_has_neither_words_nor_data() {
        assert_eq!(
            check("not_empty", Some(" \t\n\u{3000}"), None),
            Err(Rejection::Empty)
        );
        assert_eq!(check("not_empty", None, None), Err(Rejection::Empty));
        assert!(check("not_empty", Some(""), Some("null")).is_ok());
        assert!(check("not_empty", Some("x"), None).is_ok());
    }

    #[test]
    fn text_and_data_share_one_limit() {
        assert!(check("length", Some("12345"), Some("[1,2]")).is_ok());
        assert_eq!(
            check("length", Some("123456"), Some("[1,2]")),
            Err(Rejection::TooLong)
        );
        assert_eq!(
            check("length", Some("ääääää"), None),
            Err(Rejection::TooLong),
            "bytes count"
        );
    }

    #[test]
    fn line_feed_and_tab_are_the_controls_that_may_stay() {
        assert!(check("control_chars", Some("a\n\tb"), None).is_ok());
        for text in ["a\rb", "\u{0}", "\u{1b}[2J", "\u{85}", "\u{7f}"] {
            assert!(
                matches!(
                    check("control_chars", Some(text), None),
                    Err(Rejection::Rejected(_))
                ),
                "{text:?}"
            );
        }
    }

    #[test]
    fn escaping_covers_what_html_gives_meaning() {
        let escaped = check("html_escape", Some("<b a='1'>&\"x\"</b>"), None).unwrap();
        assert_eq!(
            escaped.as_deref(),
            Some("&lt;b a=&#39;1&#39;&gt;&amp;&quot;x&quot;&lt;/b&gt;")
        );
    }
}
