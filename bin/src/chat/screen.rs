//! The bottom of the terminal: the prompt with the line being typed, and everything else above it.
//!
//! One task draws, so lines that come in and keys that are typed never get into each other's way. What goes above the
//! prompt is the terminal's: it wraps it, scrolls it away, and lets it be copied.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

use super::editor::Editor;

/// What is drawn at the bottom, and how large the terminal is.
pub(crate) struct Screen<W> {
    out: W,
    columns: usize,
    lines: usize,
    /// The widths of the rows that are drawn, and where in them the cursor is. Empty: nothing is drawn.
    drawn: Vec<usize>,
    cursor: (usize, usize),
    prompt: String,
    /// How the prompt is written, with its colours.
    painted: String,
}

impl<W: Write> Screen<W> {
    /// `size`: columns and lines.
    pub(crate) fn new(out: W, size: (u16, u16)) -> Self {
        let mut screen = Self {
            out,
            columns: 0,
            lines: 0,
            drawn: Vec::new(),
            cursor: (0, 0),
            prompt: String::new(),
            painted: String::new(),
        };
        screen.measure(size);
        screen
    }

    /// Sets what stands before the line: plain, and as it is written.
    pub(crate) fn set_prompt(&mut self, plain: String, painted: String) {
        (self.prompt, self.painted) = (plain, painted);
    }

    /// Writes text above the prompt. Each of its lines ends in a line feed.
    ///
    /// # Errors
    /// The terminal is gone.
    pub(crate) fn print(&mut self, text: &str, editor: &Editor) -> io::Result<()> {
        let mut out = self.erase();
        out.push_str(&text.replace('\n', "\r\n"));
        self.draw(&mut out, editor);
        self.write(&out)
    }

    /// Draws the prompt anew.
    ///
    /// # Errors
    /// The terminal is gone.
    pub(crate) fn refresh(&mut self, editor: &Editor) -> io::Result<()> {
        self.print("", editor)
    }

    /// The terminal has another size: columns and lines.
    ///
    /// # Errors
    /// The terminal is gone.
    pub(crate) fn resize(&mut self, size: (u16, u16), editor: &Editor) -> io::Result<()> {
        self.measure(size);
        // Terminals wrap what is too wide for them now: the cursor is that much further down.
        let rows = |width: &usize| width.saturating_sub(1) / self.columns;
        let (row, column) = self.cursor;
        let wrapped: usize = self.drawn.iter().take(row).map(rows).sum();
        self.cursor.0 += wrapped + column / self.columns;
        self.refresh(editor)
    }

    /// Leaves an empty screen with the prompt at its top.
    ///
    /// # Errors
    /// The terminal is gone.
    pub(crate) fn clear(&mut self, editor: &Editor) -> io::Result<()> {
        let mut out = String::from("\x1b[H\x1b[2J");
        self.draw(&mut out, editor);
        self.write(&out)
    }

    /// Takes the prompt away, for good or until it is drawn again, and writes text in its place.
    ///
    /// # Errors
    /// The terminal is gone.
    pub(crate) fn leave(&mut self, text: &str) -> io::Result<()> {
        let out = self.erase() + &text.replace('\n', "\r\n");
        self.write(&out)
    }

    fn measure(&mut self, (columns, lines): (u16, u16)) {
        // A terminal that does not know its size says 0.
        let or = |size: u16, default| if size == 0 { default } else { size.into() };
        self.columns = or(columns, 80).max(2);
        self.lines = or(lines, 24);
    }

    /// What takes the prompt away, and brings the cursor to where it began.
    fn erase(&mut self) -> String {
        let mut out = String::from("\r");
        if self.cursor.0 > 0 {
            let _ = write!(out, "\x1b[{}A", self.cursor.0);
        }
        out.push_str("\x1b[J");
        self.drawn.clear();
        self.cursor = (0, 0);
        out
    }

    fn draw(&mut self, out: &mut String, editor: &Editor) {
        let layout = Layout::of(
            self.columns,
            &self.prompt,
            editor.before_cursor(),
            editor.text(),
        );
        // Where the line is larger than the terminal, the part with the cursor is shown.
        let most = self.lines.saturating_sub(1).max(1);
        let first = (layout.cursor.0 + 1).saturating_sub(most);
        let shown = layout.rows.iter().enumerate().skip(first).take(most);
        for (at, row) in shown {
            if at > first {
                out.push_str("\r\n");
            }
            match row.text.strip_prefix(&*self.prompt) {
                Some(rest) if at == 0 => {
                    out.push_str(&self.painted);
                    out.push_str(rest);
                }
                _ => out.push_str(&row.text),
            }
            self.drawn.push(row.width);
        }
        self.cursor = (layout.cursor.0 - first, layout.cursor.1);
        let below = self.drawn.len() - 1 - self.cursor.0;
        if below > 0 {
            let _ = write!(out, "\x1b[{below}A");
        }
        out.push('\r');
        if self.cursor.1 > 0 {
            let _ = write!(out, "\x1b[{}C", self.cursor.1);
        }
    }

    fn write(&mut self, out: &str) -> io::Result<()> {
        // In one piece: a terminal that shows halves would flicker.
        self.out.write_all(out.as_bytes())?;
        self.out.flush()
    }
}

#[derive(Debug, Default)]
struct Row {
    text: String,
    width: usize,
}

/// A line broken into rows.
#[derive(Debug)]
struct Layout {
    rows: Vec<Row>,
    cursor: (usize, usize),
}

impl Layout {
    fn of(columns: usize, prompt: &str, before: &str, text: &str) -> Self {
        let mut layout = Self {
            rows: vec![Row::default()],
            cursor: (0, 0),
        };
        layout.add(columns, prompt);
        let after = text.strip_prefix(before).unwrap_or_default();
        layout.add(columns, before);
        let row = layout.last();
        if row.width >= columns {
            // There is no place for a cursor behind the last column.
            layout.rows.push(Row::default());
        }
        layout.cursor = (layout.rows.len() - 1, layout.last().width);
        layout.add(columns, after);
        layout
    }

    fn add(&mut self, columns: usize, text: &str) {
        for grapheme in text.graphemes(true) {
            if grapheme == "\n" {
                self.rows.push(Row::default());
                continue;
            }
            let width = grapheme.width();
            if self.last().width + width > columns {
                self.rows.push(Row::default());
            }
            let row = self.last();
            row.text.push_str(grapheme);
            row.width += width;
        }
    }

    fn last(&mut self) -> &mut Row {
        self.rows
            .last_mut()
            .expect("it begins with one row and loses none")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(columns: usize, before: &str, after: &str) -> (Vec<String>, (usize, usize)) {
        let text = format!("{before}{after}");
        let layout = Layout::of(columns, "> ", before, &text);
        let rows = layout.rows.into_iter().map(|row| row.text).collect();
        (rows, layout.cursor)
    }

    #[test]
    fn a_line_is_broken_where_the_terminal_ends() {
        for (before, after, rows, cursor) in [
            ("", "", vec!["> "], (0, 2)),
            ("abc", "def", vec!["> abcdef"], (0, 5)),
            ("abcdefgh", "", vec!["> abcdef", "gh"], (1, 2)),
            ("abcdef", "", vec!["> abcdef", ""], (1, 0)),
            ("abcdef", "g", vec!["> abcdef", "g"], (1, 0)),
            ("a\nb", "\n", vec!["> a", "b", ""], (1, 1)),
            ("日本語日", "", vec!["> 日本語", "日"], (1, 2)),
            ("a日本語", "", vec!["> a日本", "語"], (1, 2)),
        ] {
            let rows: Vec<String> = rows.into_iter().map(Into::into).collect();
            assert_eq!(layout(8, before, after), (rows, cursor), "{before}|{after}");
        }
    }

    fn typed(text: &str) -> Editor {
        let mut editor = Editor::default();
        editor.insert(text);
        editor
    }

    fn screen(size: (u16, u16)) -> Screen<Vec<u8>> {
        let mut screen = Screen::new(Vec::new(), size);
        screen.set_prompt("> ".into(), "> ".into());
        screen
    }

    fn written(screen: &mut Screen<Vec<u8>>) -> String {
        String::from_utf8(std::mem::take(&mut screen.out)).unwrap()
    }

    #[test]
    fn what_comes_in_goes_above_the_line_that_is_typed() {
        let (mut screen, editor) = (screen((10, 5)), typed("0123456789"));
        screen.refresh(&editor).unwrap();
        assert_eq!(written(&mut screen), "\r\x1b[J> 01234567\r\n89\r\x1b[2C");
        screen.print("bob: hi\n", &editor).unwrap();
        assert_eq!(
            written(&mut screen),
            "\r\x1b[1A\x1b[Jbob: hi\r\n> 01234567\r\n89\r\x1b[2C"
        );
        screen.leave("gone\n").unwrap();
        assert_eq!(written(&mut screen), "\r\x1b[1A\x1b[Jgone\r\n");
    }

    #[test]
    fn a_line_larger_than_the_terminal_shows_the_part_with_the_cursor() {
        let (mut screen, editor) = (screen((10, 3)), typed(&"x".repeat(100)));
        screen.refresh(&editor).unwrap();
        assert_eq!(written(&mut screen), "\r\x1b[Jxxxxxxxxxx\r\nxx\r\x1b[2C");
    }

    #[test]
    fn a_narrower_terminal_has_wrapped_what_was_drawn() {
        let (mut screen, editor) = (screen((20, 10)), typed("0123456789"));
        screen.refresh(&editor).unwrap();
        written(&mut screen);
        screen.resize((5, 10), &editor).unwrap();
        assert_eq!(
            written(&mut screen),
            "\r\x1b[2A\x1b[J> 012\r\n34567\r\n89\r\x1b[2C"
        );
    }

    #[test]
    fn a_terminal_without_a_size_is_drawn_on() {
        let mut screen = screen((0, 0));
        screen.refresh(&typed("text")).unwrap();
        assert!(written(&mut screen).contains("> text"));
    }
}
