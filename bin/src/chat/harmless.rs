//! What others wrote, made harmless for a terminal: it is read, and never obeyed.

/// Whether a character is shown as itself: it moves no cursor, changes no mode and turns no text around.
pub(crate) fn is_harmless(c: char) -> bool {
    !c.is_control() && !turns(c) && !matches!(c, '\u{2028}' | '\u{2029}')
}

/// Embeddings, overrides and isolates: they make text read in another order than it was written in.
fn turns(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A text on one line: control characters become their pictures, line feeds too, and what turns text around is gone.
pub(crate) fn line(text: &str) -> String {
    text.chars().filter_map(shown).collect()
}

/// The same for each of a text's lines.
pub(crate) fn lines(text: &str) -> impl Iterator<Item = String> {
    text.split('\n')
        .map(|text| line(text.trim_end_matches('\r')))
}

fn shown(c: char) -> Option<char> {
    match c {
        '\n' => Some('⏎'),
        '\t' => Some(' '),
        '\u{7f}' => Some('␡'),
        '\0'..='\u{1f}' => char::from_u32('␀' as u32 + c as u32),
        '\u{2028}' | '\u{2029}' => Some('⏎'),
        c if turns(c) => None,
        c if c.is_control() => Some('\u{fffd}'),
        c => Some(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_acts_is_left() {
        for (text, shown) in [
            ("plain, ünïcode 日本 👩‍👧", "plain, ünïcode 日本 👩‍👧"),
            ("\u{1b}[2J\u{7}\u{7f}", "␛[2J␇␡"),
            ("\u{9b}2J", "\u{fffd}2J"),
            ("a\nb\tc\rd\u{2028}e", "a⏎b c␍d⏎e"),
            ("abc\u{202e}fed\u{2066}", "abcfed"),
        ] {
            assert_eq!(line(text), shown);
            assert!(line(text).chars().all(is_harmless));
        }
        for c in (0..=0x9f_u8).map(char::from) {
            assert!(line(&c.to_string()).chars().all(is_harmless), "{c:?}");
        }
    }

    #[test]
    fn lines_stay_lines() {
        let shown: Vec<String> = lines("one\r\ntwo\u{1b}").collect();
        assert_eq!(shown, ["one", "two␛"]);
    }
}
