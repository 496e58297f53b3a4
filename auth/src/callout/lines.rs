//! Lines of at most so many bytes.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// Reads lines ended by LF, without it.
pub(super) struct Lines<R> {
    from: BufReader<R>,
    cap: usize,
    long: Long,
    line: Vec<u8>,
    /// The line at hand was over the cap: the rest of it is passed over.
    skipping: bool,
}

/// What becomes of a line over the cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Long {
    /// An error.
    Refused,
    /// Its beginning.
    Cut,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(super) fn new(from: R, cap: usize, long: Long) -> Self {
        Self {
            from: BufReader::new(from),
            cap,
            long,
            line: Vec::new(),
            skipping: false,
        }
    }

    /// The next line; `None` at the end. Bytes after the last LF are no line. Cancel safe.
    ///
    /// # Errors
    /// Those of reading, and `InvalidData` for a line over the cap where that is refused.
    pub(super) async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let bytes = self.from.fill_buf().await?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let part = &bytes[..end.unwrap_or(bytes.len())];
            if !self.skipping {
                let fits = part.len().min(self.cap - self.line.len());
                self.line.extend_from_slice(&part[..fits]);
                self.skipping = fits < part.len();
            }
            let used = part.len() + usize::from(end.is_some());
            self.from.consume(used);
            if self.skipping && self.long == Long::Refused {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a line is too long",
                ));
            }
            if end.is_some() {
                self.skipping = false;
                return Ok(Some(std::mem::take(&mut self.line)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(text: &[u8], cap: usize, long: Long) -> io::Result<Vec<String>> {
        let mut lines = Lines::new(text, cap, long);
        let mut read = Vec::new();
        while let Some(line) = lines.next().await? {
            read.push(String::from_utf8(line).unwrap());
        }
        Ok(read)
    }

    #[tokio::test]
    async fn lines_end_with_a_line_feed() {
        let read = all(b"a\n\nbc\nd", 2, Long::Refused).await.unwrap();
        assert_eq!(read, ["a", "", "bc"]);
    }

    #[tokio::test]
    async fn a_long_line_is_refused_or_cut() {
        let text = b"ab\nabc\nab\n";
        let refused = all(text, 2, Long::Refused).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        assert_eq!(all(text, 2, Long::Cut).await.unwrap(), ["ab", "ab", "ab"]);
    }

    #[tokio::test]
    async fn a_line_may_be_longer_than_the_buffer() {
        let long = "x".repeat(100_000);
        let text = format!("{long}\n{long}y\nz\n");
        let read = all(text.as_bytes(), 100_000, Long::Cut).await.unwrap();
        assert_eq!(read, [&*long, &*long, "z"]);
    }
}
