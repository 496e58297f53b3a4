//! TCP: an object a line.

use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

use crate::{
    Loss,
    push::{Incoming, Link, Reader, Writer},
    stream::Stream,
};

/// What is asked of the system at once.
const CHUNK: usize = 8 << 10;

pub(crate) fn link(stream: Stream) -> Link {
    let (read, write) = tokio::io::split(stream);
    Link {
        reader: Reader::Lines(LineReader {
            stream: read,
            buffer: BytesMut::new(),
            searched: 0,
        }),
        writer: Writer::Lines(LineWriter {
            stream: write,
            buffer: BytesMut::new(),
        }),
    }
}

pub(crate) struct LineReader {
    stream: ReadHalf<Stream>,
    buffer: BytesMut,
    /// How much of the buffer has no end of a line.
    searched: usize,
}

impl LineReader {
    /// The next line of at most `limit` bytes; `None` at the end. Cancel safe.
    pub(crate) async fn next(&mut self, limit: usize) -> Result<Option<Incoming>, Loss> {
        loop {
            let mut unsearched = self.buffer.iter().skip(self.searched);
            if let Some(length) = unsearched.position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.searched + length);
                self.buffer.advance(1);
                self.searched = 0;
                if line.len() > limit {
                    return Err(Loss::TooLarge(limit));
                }
                return Ok(Some(Incoming::object(&line)?));
            }
            self.searched = self.buffer.len();
            if self.searched > limit {
                return Err(Loss::TooLarge(limit));
            }
            self.buffer.reserve(CHUNK);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

pub(crate) struct LineWriter<W = WriteHalf<Stream>> {
    stream: W,
    buffer: BytesMut,
}

impl<W: AsyncWrite + Unpin> LineWriter<W> {
    pub(crate) fn push(&mut self, json: &str) {
        self.buffer.extend_from_slice(json.as_bytes());
        self.buffer.extend_from_slice(b"\n");
    }

    /// Says TLS's own goodbye, and that nothing more comes.
    pub(crate) async fn close(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }

    /// Writes all that was pushed. Cancel safe.
    pub(crate) async fn flush(&mut self) -> Result<(), Loss> {
        while !self.buffer.is_empty() {
            let written = self.stream.write(&self.buffer).await?;
            if written == 0 {
                return Err(Loss::Closed);
            }
            self.buffer.advance(written);
        }
        // TLS may still have some of it.
        Ok(self.stream.flush().await?)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::BufWriter;

    use super::*;

    #[tokio::test]
    async fn what_a_stream_below_still_has_is_flushed_too() {
        let mut writer = LineWriter {
            stream: BufWriter::new(Vec::new()),
            buffer: BytesMut::new(),
        };
        writer.push("{}");
        writer.flush().await.unwrap();
        assert_eq!(writer.stream.get_ref(), b"{}\n");
        assert!(writer.buffer.is_empty());
    }
}
