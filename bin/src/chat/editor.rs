//! The line that is being typed: its text, its cursor, what was typed before, and the keys for all that.
//!
//! No terminal is known here. Keys go in; what is drawn is for [`Screen`](super::screen::Screen) to say.

use std::{collections::VecDeque, mem};

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use unicode_segmentation::{GraphemeCursor, UnicodeSegmentation};

use super::harmless;

/// Lines that are remembered.
const HISTORY: usize = 1000;
/// Bytes that a line may have: far more than a message, so that too long a one can still be cut.
const MOST: usize = 64 << 10;

/// What a key asks for beyond the line itself.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// The line has changed, or not.
    Nothing,
    /// It is to be said or done. It is still there; see [`Editor::take`].
    Submit,
    /// The word before the cursor is to be completed.
    Complete,
    /// Ctrl-C on an empty line, or Ctrl-D.
    Quit,
    /// Ctrl-L.
    Clear,
    /// Ctrl-Z.
    Suspend,
}

/// A line of text under way.
#[derive(Debug, Default)]
pub(crate) struct Editor {
    text: String,
    /// A byte between two graphemes.
    cursor: usize,
    /// Oldest first.
    history: VecDeque<String>,
    /// Which line of the history is shown, from the newest: 0 is none of them.
    shown: usize,
    /// What was being typed before the history was looked at.
    draft: String,
    /// What was cut last.
    cut: String,
}

impl Editor {
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The text up to the cursor.
    pub(crate) fn before_cursor(&self) -> &str {
        self.text.get(..self.cursor).unwrap_or_default()
    }

    /// Takes the line away, to be said or done, and remembers it.
    pub(crate) fn take(&mut self) -> String {
        let line = mem::take(&mut self.text);
        self.cursor = 0;
        self.shown = 0;
        self.draft.clear();
        if !line.trim().is_empty() && self.history.back() != Some(&line) {
            if self.history.len() == HISTORY {
                self.history.pop_front();
            }
            self.history.push_back(line.clone());
        }
        line
    }

    /// Puts text in at the cursor, less what would be no text: control characters and the like.
    pub(crate) fn insert(&mut self, text: &str) {
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        let text: String = text
            .replace('\t', "    ")
            .chars()
            .filter(|c| *c == '\n' || harmless::is_harmless(*c))
            .collect();
        if self.text.len() + text.len() <= MOST {
            self.text.insert_str(self.cursor, &text);
            self.move_to(self.cursor + text.len());
        }
    }

    /// Takes out what is between the cursor and `from`, before it, and puts `text` there.
    pub(crate) fn replace_from(&mut self, from: usize, text: &str) {
        self.text.replace_range(from..self.cursor, "");
        self.move_to(from);
        self.insert(text);
    }

    /// What is pasted is text, with the ends of its lines.
    pub(crate) fn paste(&mut self, text: &str) {
        self.insert(text.trim_end_matches(['\r', '\n']));
    }

    pub(crate) fn key(&mut self, key: KeyEvent) -> Wish {
        if key.kind == KeyEventKind::Release {
            return Wish::Nothing;
        }
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        let alt = key.modifiers.contains(KeyModifiers::ALT);
        match key.code {
            KeyCode::Enter if alt => self.insert("\n"),
            KeyCode::Enter => return Wish::Submit,
            KeyCode::Tab => return Wish::Complete,
            KeyCode::Char(c) if control && !alt => return self.control(c),
            KeyCode::Char('b') if alt => self.move_to(self.word_before()),
            KeyCode::Char('f') if alt => self.move_to(self.word_after()),
            KeyCode::Char('d') if alt => self.cut(self.cursor, self.word_after()),
            KeyCode::Backspace if alt || control => self.cut(self.word_before(), self.cursor),
            // Control and Alt together are how some keyboards reach ordinary characters.
            KeyCode::Char(c) if !alt || control => self.insert(c.encode_utf8(&mut [0; 4])),
            KeyCode::Backspace => self.delete(self.before(), self.cursor),
            KeyCode::Delete => self.delete(self.cursor, self.after()),
            KeyCode::Left if control || alt => self.move_to(self.word_before()),
            KeyCode::Right if control || alt => self.move_to(self.word_after()),
            KeyCode::Left => self.move_to(self.before()),
            KeyCode::Right => self.move_to(self.after()),
            KeyCode::Home => self.move_to(0),
            KeyCode::End => self.move_to(self.text.len()),
            KeyCode::Up => self.recall(self.shown + 1),
            KeyCode::Down => self.recall(self.shown.wrapping_sub(1)),
            _ => (),
        }
        Wish::Nothing
    }

    fn control(&mut self, c: char) -> Wish {
        match c.to_ascii_lowercase() {
            'a' => self.move_to(0),
            'b' => self.move_to(self.before()),
            'c' if self.text.is_empty() => return Wish::Quit,
            'c' => {
                self.text.clear();
                self.move_to(0);
                self.shown = 0;
            }
            'd' if self.text.is_empty() => return Wish::Quit,
            'd' => self.delete(self.cursor, self.after()),
            'e' => self.move_to(self.text.len()),
            'f' => self.move_to(self.after()),
            'h' => self.delete(self.before(), self.cursor),
            'j' | 'm' => return Wish::Submit,
            'k' => self.cut(self.cursor, self.text.len()),
            'l' => return Wish::Clear,
            'n' => self.recall(self.shown.wrapping_sub(1)),
            'p' => self.recall(self.shown + 1),
            't' => self.swap(),
            'u' => self.cut(0, self.cursor),
            'w' => self.cut(self.blank_before(), self.cursor),
            'y' => self.insert(&self.cut.clone()),
            'z' => return Wish::Suspend,
            _ => (),
        }
        Wish::Nothing
    }

    fn move_to(&mut self, to: usize) {
        // What joins with its neighbours has no place for a cursor in the middle.
        let mut at = GraphemeCursor::new(to, self.text.len(), true);
        let whole = at.is_boundary(&self.text, 0).unwrap_or(true);
        self.cursor = if whole {
            to
        } else {
            at.next_boundary(&self.text, 0)
                .ok()
                .flatten()
                .unwrap_or(self.text.len())
        };
    }

    fn before(&self) -> usize {
        let last = self.before_cursor().graphemes(true).next_back();
        self.cursor - last.map_or(0, str::len)
    }

    fn after(&self) -> usize {
        let next = self.after_cursor().graphemes(true).next();
        self.cursor + next.map_or(0, str::len)
    }

    fn after_cursor(&self) -> &str {
        self.text.get(self.cursor..).unwrap_or_default()
    }

    /// Where the word before the cursor begins.
    fn word_before(&self) -> usize {
        let mut words = self.before_cursor().unicode_word_indices();
        words.next_back().map_or(0, |(at, _)| at)
    }

    /// Where the word after the cursor ends.
    fn word_after(&self) -> usize {
        let mut words = self.after_cursor().unicode_word_indices();
        words
            .next()
            .map_or(self.text.len(), |(at, word)| self.cursor + at + word.len())
    }

    /// Where that begins which has no blank before the cursor.
    fn blank_before(&self) -> usize {
        let before = self.before_cursor().trim_end();
        before.rfind(char::is_whitespace).map_or(0, |at| {
            at + before
                .get(at..)
                .and_then(|rest| rest.chars().next())
                .map_or(0, char::len_utf8)
        })
    }

    fn delete(&mut self, from: usize, to: usize) {
        self.text.replace_range(from..to, "");
        self.move_to(from);
    }

    fn cut(&mut self, from: usize, to: usize) {
        if from < to {
            self.cut = self.text.get(from..to).unwrap_or_default().into();
            self.delete(from, to);
        }
    }

    /// Swaps the graphemes around the cursor, at the end the last two.
    fn swap(&mut self) {
        if self.cursor == self.text.len() {
            self.move_to(self.before());
        }
        let (from, to) = (self.before(), self.after());
        let swapped = match (
            self.text.get(from..self.cursor),
            self.after_cursor().get(..to - self.cursor),
        ) {
            (Some(first), Some(second)) => format!("{second}{first}"),
            _ => return,
        };
        self.text.replace_range(from..to, &swapped);
        self.move_to(to);
    }

    /// Shows a line of the history; 0: what was being typed.
    fn recall(&mut self, line: usize) {
        if line > self.history.len() {
            return;
        }
        if self.shown == 0 {
            self.draft = mem::take(&mut self.text);
        }
        self.shown = line;
        self.text = match line {
            0 => mem::take(&mut self.draft),
            line => self.history[self.history.len() - line].clone(),
        };
        self.move_to(self.text.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `text` with a `|` where the cursor is.
    fn seen(editor: &Editor) -> String {
        format!("{}|{}", editor.before_cursor(), editor.after_cursor())
    }

    fn editor(text: &str) -> Editor {
        let (before, after) = text.split_once('|').unwrap();
        let mut editor = Editor::default();
        editor.insert(after);
        editor.move_to(0);
        editor.insert(before);
        editor
    }

    /// What a text becomes by keys: names as in `C-w` and `M-b`, else plain characters.
    fn after(text: &str, keys: &[&str]) -> String {
        let mut editor = editor(text);
        for key in keys {
            press(&mut editor, key);
        }
        seen(&editor)
    }

    fn press(editor: &mut Editor, key: &str) -> Wish {
        let (modifiers, name) = match key.split_once('-') {
            Some(("C", name)) => (KeyModifiers::CONTROL, name),
            Some(("M", name)) => (KeyModifiers::ALT, name),
            _ => (KeyModifiers::NONE, key),
        };
        let code = match name {
            "left" => KeyCode::Left,
            "right" => KeyCode::Right,
            "up" => KeyCode::Up,
            "down" => KeyCode::Down,
            "home" => KeyCode::Home,
            "end" => KeyCode::End,
            "back" => KeyCode::Backspace,
            "del" => KeyCode::Delete,
            "enter" => KeyCode::Enter,
            name => KeyCode::Char(name.chars().next().unwrap()),
        };
        editor.key(KeyEvent::new(code, modifiers))
    }

    #[test]
    fn keys_edit_whole_characters() {
        for (text, keys, expected) in [
            ("hello|", &["left", "left", "x"][..], "helx|lo"),
            ("a👩‍👩‍👧b|", &["left", "back"], "a|b"),
            ("e\u{301}|", &["back"], "|"),
            ("日本|語", &["del", "left"], "日|本"),
            (
                "|",
                &["back", "left", "right", "del", "C-t", "C-w", "up", "down"],
                "|",
            ),
            ("one two three|", &["C-w"], "one two |"),
            ("wörter über|", &["C-w", "C-w"], "|"),
            ("one two|", &["M-b", "M-b", "M-f"], "one| two"),
            ("one two|", &["C-left", "M-d"], "one |"),
            ("one two|", &["C-a", "C-k", "C-y", "C-y"], "one twoone two|"),
            ("one |two", &["C-u"], "|two"),
            ("xy|", &["C-t"], "yx|"),
            ("x|yz", &["C-t"], "yx|z"),
            ("abc|", &["home", "C-f", "C-d", "C-e"], "ac|"),
            ("a|", &["M-enter", "b"], "a\nb|"),
        ] {
            assert_eq!(after(text, keys), expected, "{text} {keys:?}");
        }
    }

    #[test]
    fn what_joins_with_its_neighbour_leaves_no_cursor_within() {
        let mut editor = editor("👩|");
        editor.insert("\u{200d}");
        editor.insert("👧");
        assert_eq!(press(&mut editor, "left"), Wish::Nothing);
        assert_eq!(seen(&editor), "|👩\u{200d}👧");
    }

    #[test]
    fn history_is_walked_and_the_draft_kept() {
        let mut editor = Editor::default();
        for line in ["first", "second", "second", "  "] {
            editor.insert(line);
            assert_eq!(press(&mut editor, "enter"), Wish::Submit);
            assert_eq!(editor.take(), line);
        }
        editor.insert("draft");
        for (key, text) in [
            ("up", "second|"),
            ("up", "first|"),
            ("up", "first|"),
            ("down", "second|"),
            ("C-n", "draft|"),
            ("down", "draft|"),
            ("C-p", "second|"),
        ] {
            press(&mut editor, key);
            assert_eq!(seen(&editor), text, "{key}");
        }
    }

    #[test]
    fn history_is_bounded() {
        let mut editor = Editor::default();
        for n in 0..HISTORY + 10 {
            editor.insert(&n.to_string());
            editor.take();
        }
        assert_eq!(editor.history.len(), HISTORY);
        assert_eq!(editor.history.front().unwrap(), "10");
    }

    #[test]
    fn pasted_text_keeps_its_lines_and_loses_what_is_no_text() {
        let mut editor = Editor::default();
        editor.paste("one\r\n\ttwo\u{1b}[31m\u{202e}\n");
        assert_eq!(seen(&editor), "one\n    two[31m|");
        editor.paste(&"x".repeat(MOST));
        assert!(editor.text().len() < 100, "too much is not taken");
    }

    #[test]
    fn leaving_takes_an_empty_line() {
        let mut editor = editor("text|");
        assert_eq!(press(&mut editor, "C-d"), Wish::Nothing);
        assert_eq!(press(&mut editor, "C-c"), Wish::Nothing);
        assert_eq!(seen(&editor), "|");
        assert_eq!(press(&mut editor, "C-c"), Wish::Quit);
        assert_eq!(press(&mut editor, "C-d"), Wish::Quit);
        assert_eq!(press(&mut editor, "C-z"), Wish::Suspend);
    }
}
