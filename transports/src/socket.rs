//! A connection that is promised before it is there, as while a WebSocket's upgrade is answered.

use std::{
    io::{self, IoSlice},
    sync::OnceLock,
    task::{Context, Poll},
};

use chinwag_core::TryWrite;

use crate::{Stream, duplex::Duplex};

/// A connection's bytes, or the promise of them: until they are there, nothing can be written.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: OnceLock<Stream>,
    /// Known before the stream is there.
    is_encrypted: bool,
}

impl Socket {
    /// The promise of a stream.
    pub(crate) fn promised(is_encrypted: bool) -> Self {
        Self {
            stream: OnceLock::new(),
            is_encrypted,
        }
    }

    /// Keeps the promise. The first stream stays.
    pub(crate) fn connect(&self, stream: Stream) {
        debug_assert_eq!(self.is_encrypted, stream.is_encrypted(), "as promised");
        let _ = self.stream.set(stream);
    }
}

impl Duplex for Socket {
    fn poll_receive(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        self.stream
            .get()
            .map_or(Poll::Pending, |stream| stream.poll_receive(cx, buffer))
    }

    fn poll_close(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.get().map_or_else(
            || Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            |stream| stream.poll_close(cx),
        )
    }
}

impl TryWrite for Socket {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.get().map_or_else(
            || Err(io::ErrorKind::WouldBlock.into()),
            |stream| stream.try_write(bytes),
        )
    }

    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.stream.get().map_or_else(
            || Err(io::ErrorKind::WouldBlock.into()),
            |stream| stream.try_write_vectored(slices),
        )
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream
            .get()
            .map_or(Poll::Pending, |stream| stream.poll_write_ready(cx))
    }

    fn may_hold_back(&self) -> bool {
        self.is_encrypted
    }

    fn holds_back(&self) -> bool {
        self.stream.get().is_some_and(Stream::holds_back)
    }
}
