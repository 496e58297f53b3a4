//! A TCP socket that a connection's task reads and lanes write to.

use std::{
    cell::RefCell,
    io::{self, IoSlice, Read},
    net::Shutdown,
    sync::OnceLock,
    task::{Context, Poll},
    time::Duration,
};

use chinwag_core::TryWrite;
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream, time::timeout};

/// Bytes that one read takes at most; one buffer of this size serves all connections of a thread.
const SCRATCH: usize = 64 << 10;
/// How long a closing connection waits for the client to close too, so that a reset does not overtake the last words.
const LINGER: Duration = Duration::from_secs(1);
/// Reads after which a client that goes on sending is cut off.
const LINGER_READS: usize = 64;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH]);
}

/// A socket, or the promise of one: until it is there, nothing can be written.
#[derive(Debug, Default)]
pub(crate) struct Socket(OnceLock<TcpStream>);

impl Socket {
    #[cfg(feature = "tcp")]
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self(stream.into())
    }

    /// Keeps the promise. The first stream stays.
    #[cfg(feature = "websocket")]
    pub(crate) fn connect(&self, stream: TcpStream) {
        let _ = self.0.set(stream);
    }

    /// Reads once and hands the bytes to `take`. `None`: nothing to read now; an empty slice: the client has closed
    /// its side. Registers the task for more in the first case.
    pub(crate) fn poll_read<T>(
        &self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Poll<io::Result<T>> {
        let Some(stream) = self.0.get() else {
            return Poll::Pending;
        };
        BUFFER.with_borrow_mut(|buffer| {
            loop {
                if let Err(error) = std::task::ready!(stream.poll_read_ready(cx)) {
                    return Poll::Ready(Err(error));
                }
                let mut read = None;
                let result = stream.try_io(Interest::READABLE, || {
                    let count = (&*SockRef::from(stream)).read(buffer)?;
                    read = Some(count);
                    // A short read has emptied the socket: say so now, rather than by another call that finds nothing.
                    if count > 0 && count < buffer.len() {
                        return Err(io::ErrorKind::WouldBlock.into());
                    }
                    Ok(())
                });
                match (read, result) {
                    (Some(count), _) => return Poll::Ready(Ok(take(&buffer[..count]))),
                    (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => (),
                    (None, Err(error)) if error.kind() == io::ErrorKind::Interrupted => (),
                    (None, Err(error)) => return Poll::Ready(Err(error)),
                    (None, Ok(())) => unreachable!("an Ok comes with a count"),
                }
            }
        })
    }

    /// Closes the sending side and waits a little for the client's.
    pub(crate) async fn close(&self) {
        let Some(stream) = self.0.get() else { return };
        if SockRef::from(stream).shutdown(Shutdown::Write).is_err() {
            return;
        }
        let rest = async {
            for _ in 0..LINGER_READS {
                let read = std::future::poll_fn(|cx| self.poll_read(cx, <[u8]>::len)).await;
                if !matches!(read, Ok(1..)) {
                    return;
                }
            }
        };
        // Either the client has closed, or it has had its time.
        let _ = timeout(LINGER, rest).await;
    }
}

impl TryWrite for Socket {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.get().map_or_else(
            || Err(io::ErrorKind::WouldBlock.into()),
            |stream| stream.try_write(bytes),
        )
    }

    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.get().map_or_else(
            || Err(io::ErrorKind::WouldBlock.into()),
            |stream| stream.try_write_vectored(slices),
        )
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0
            .get()
            .map_or(Poll::Pending, |stream| stream.poll_write_ready(cx))
    }
}
