//! The two directions of a connection: its task reads, and lanes write.

use std::{
    cell::RefCell,
    fmt,
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
    time::Duration,
};

use atomic_waker::AtomicWaker;
use chinwag_core::TryWrite;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::timeout,
};

/// Bytes that one read takes at most; one buffer of this size serves all connections of a thread.
const SCRATCH: usize = 64 << 10;
/// How long a closing connection waits for the client to close too, so that a reset does not overtake the last words.
const LINGER: Duration = Duration::from_secs(1);
/// Reads after which a client that goes on sending is cut off.
const LINGER_READS: usize = 64;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; SCRATCH]);
}

/// A connection's bytes in both directions, shared by the task that reads them and the lanes that write.
///
/// What has [`AsyncRead`] and [`AsyncWrite`] is made one by [`Shared`]. A socket that can be written to by several
/// threads as it is, as those of tokio can, is spared a lock by an implementation of its own.
pub trait Duplex: TryWrite {
    /// Reads once into `buffer`, which has room. `Ok(0)`: the client has closed its side. Pending: the task is woken
    /// when there is more. Called by one task.
    ///
    /// # Errors
    /// The connection is lost.
    fn poll_receive(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Says that no more is sent. Called by the task that reads, when everything is written.
    ///
    /// # Errors
    /// The connection is lost.
    fn poll_close(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

impl Duplex for crate::Stream {
    fn poll_receive(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        self.poll_receive(cx, buffer)
    }

    fn poll_close(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_close_write(cx)
    }
}

/// Reads once and hands the bytes to `take`; an empty slice: the client has closed its side. Pending: the task is woken
/// when there is more.
pub(crate) fn poll_read<T>(
    duplex: &(impl Duplex + ?Sized),
    cx: &mut Context<'_>,
    take: impl FnOnce(&[u8]) -> T,
) -> Poll<io::Result<T>> {
    BUFFER.with_borrow_mut(|buffer| {
        let count = ready!(duplex.poll_receive(cx, buffer))?;
        Poll::Ready(Ok(take(&buffer[..count])))
    })
}

/// Closes the sending side and waits a little for the client's.
pub(crate) async fn close(duplex: &(impl Duplex + ?Sized)) {
    let farewell = async {
        if poll_fn(|cx| duplex.poll_close(cx)).await.is_err() {
            return;
        }
        for _ in 0..LINGER_READS {
            let read = poll_fn(|cx| poll_read(duplex, cx, <[u8]>::len)).await;
            if !matches!(read, Ok(1..)) {
                return;
            }
        }
    };
    // Either the client has closed, or it has had its time.
    let _ = timeout(LINGER, farewell).await;
}

/// Any stream as a [`Duplex`]: a lock around it, held for a poll, and a note of whether it takes more.
pub struct Shared<S> {
    stream: Mutex<Inner<S>>,
    room: Arc<Room>,
    /// What the stream wakes when it takes more, whoever has found it full.
    waker: Waker,
}

struct Inner<S> {
    inner: S,
    /// Whether it may have taken bytes that it has not passed on.
    unflushed: bool,
}

/// Whether there is room for more.
#[derive(Default)]
struct Room {
    is_full: AtomicBool,
    /// Who waits for it.
    task: AtomicWaker,
}

impl Wake for Room {
    fn wake(self: Arc<Self>) {
        self.is_full.store(false, Ordering::Release);
        self.task.wake();
    }
}

impl<S> fmt::Debug for Shared<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Shared<S> {
    /// Shares `stream`.
    #[must_use]
    pub fn new(stream: S) -> Self {
        let room = Arc::new(Room::default());
        Self {
            stream: Mutex::new(Inner {
                inner: stream,
                unflushed: false,
            }),
            waker: Arc::clone(&room).into(),
            room,
        }
    }

    /// Writes now or never; the task that waits for room is woken by what is registered here.
    fn write(
        &self,
        poll: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> io::Result<usize> {
        let mut stream = self.stream.lock();
        let mut cx = Context::from_waker(&self.waker);
        self.flush(&mut stream, &mut cx)?;
        if stream.unflushed {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // Before the attempt, so that a wake-up in the midst of it is not lost.
        self.room.is_full.store(true, Ordering::Release);
        let Poll::Ready(written) = poll(Pin::new(&mut stream.inner), &mut cx) else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        self.room.is_full.store(false, Ordering::Release);
        let written = written?;
        stream.unflushed = true;
        self.flush(&mut stream, &mut cx)?;
        Ok(written)
    }

    fn flush(&self, stream: &mut Inner<S>, cx: &mut Context<'_>) -> io::Result<()> {
        if stream.unflushed {
            self.room.is_full.store(true, Ordering::Release);
            if let Poll::Ready(flushed) = Pin::new(&mut stream.inner).poll_flush(cx) {
                self.room.is_full.store(false, Ordering::Release);
                stream.unflushed = false;
                flushed?;
            }
        }
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> TryWrite for Shared<S> {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.write(|stream, cx| stream.poll_write(cx, bytes))
    }

    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.write(|stream, cx| stream.poll_write_vectored(cx, slices))
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.room.task.register(cx.waker());
        let mut stream = self.stream.lock();
        // Looked at with the lock: whoever is writing now may yet find that there is room.
        while !self.room.is_full.load(Ordering::Acquire) {
            self.flush(&mut stream, &mut Context::from_waker(&self.waker))?;
            if !stream.unflushed {
                return Poll::Ready(Ok(()));
            }
        }
        Poll::Pending
    }

    fn may_hold_back(&self) -> bool {
        true
    }

    fn holds_back(&self) -> bool {
        self.stream.lock().unflushed
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Duplex for Shared<S> {
    fn poll_receive(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        let mut stream = self.stream.lock();
        ready!(Pin::new(&mut stream.inner).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    fn poll_close(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream.lock().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, BufWriter, duplex};

    use super::*;

    #[tokio::test]
    async fn a_full_stream_blocks_and_says_when_there_is_room_again() {
        let (near, mut far) = duplex(8);
        let shared = Arc::new(Shared::new(near));
        assert_eq!(shared.try_write(b"0123456789").unwrap(), 8);
        let full = shared.try_write(b"89").unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let waiting = Arc::clone(&shared);
        let mut ready = Box::pin(poll_fn(move |cx| waiting.poll_write_ready(cx)));
        tokio::select! {
            biased;
            _ = &mut ready => panic!("nobody has read"),
            () = tokio::task::yield_now() => {}
        }
        let mut read = [0; 5];
        far.read_exact(&mut read).await.unwrap();
        ready.await.unwrap();
        let pieces = [IoSlice::new(b"8"), IoSlice::new(b"9")];
        assert!(shared.try_write_vectored(&pieces).unwrap() > 0);
        drop(far);
        assert!(shared.try_write(b"x").is_err());
    }

    #[tokio::test]
    async fn what_a_stream_keeps_to_itself_is_got_out() {
        let (near, mut far) = duplex(4);
        // Takes more than the pipe behind it does.
        let shared = Shared::new(BufWriter::with_capacity(16, near));
        assert_eq!(shared.try_write(b"0123456789").unwrap(), 10);
        assert!(shared.holds_back());
        assert_eq!(
            shared.try_write(b"ab").unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        let mut read = Vec::new();
        let all = async {
            while read.len() < 10 {
                far.read_buf(&mut read).await.unwrap();
            }
        };
        let out = poll_fn(|cx| shared.poll_write_ready(cx));
        let (out, ()) = tokio::join!(out, all);
        out.unwrap();
        assert!(!shared.holds_back());
        assert_eq!(read, b"0123456789");
    }

    #[tokio::test]
    async fn reading_and_closing_are_those_of_the_stream() {
        let (near, mut far) = duplex(64);
        let shared = Shared::new(near);
        far.write_all(b"hello").await.unwrap();
        let read = poll_fn(|cx| poll_read(&shared, cx, <[u8]>::to_vec)).await;
        assert_eq!(read.unwrap(), b"hello");
        let heard = async {
            let mut rest = Vec::new();
            far.read_to_end(&mut rest).await.unwrap();
            drop(far);
            rest
        };
        let ((), rest) = tokio::join!(close(&shared), heard);
        assert_eq!(rest, b"");
        let read = poll_fn(|cx| poll_read(&shared, cx, <[u8]>::len)).await;
        assert_eq!(read.unwrap(), 0);
    }
}
