//! Deliveries as signs of life, where `delivery_is_activity` asks for that: when a client's connection last took
//! something.
//!
//! What counts is bytes that the socket has taken, of anything but a ping: that asks for a sign of life and is none.
//! What waits in a queue does not count, and what encryption holds back counts when it has gone, again unless it is
//! pings alone. A polling client is written to only when it asks, which is a sign of life anyway.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use crate::{
    adapter::TryWrite,
    clock::{self, AtomicInstant, Instant, Origin},
    message::Framing,
};

/// When something was last written.
#[derive(Debug)]
pub(crate) struct Written {
    last: AtomicInstant,
    origin: Origin,
}

impl Written {
    pub(crate) fn last(&self) -> Instant {
        self.last.load(self.origin)
    }

    fn note(&self) {
        self.last.store(self.origin, clock::now());
    }
}

/// A socket that notes when it takes something.
pub(crate) struct Noting {
    socket: Arc<dyn TryWrite>,
    ping: Option<&'static [u8]>,
    /// It has taken something that counts, which may be held back still.
    has_taken: AtomicBool,
    written: Arc<Written>,
}

impl Noting {
    pub(crate) fn new(
        socket: Arc<dyn TryWrite>,
        framing: Framing,
        origin: Origin,
    ) -> (Arc<Self>, Arc<Written>) {
        let written = Arc::new(Written {
            last: AtomicInstant::new(origin, clock::now()),
            origin,
        });
        let noting = Self {
            socket,
            ping: framing.ping(),
            has_taken: AtomicBool::new(false),
            written: Arc::clone(&written),
        };
        (Arc::new(noting), written)
    }

    fn is_ping(&self, bytes: &[u8]) -> bool {
        self.ping == Some(bytes)
    }

    fn take(&self, taken: io::Result<usize>, is_ping: bool) -> io::Result<usize> {
        if matches!(taken, Ok(1..)) && !is_ping {
            self.has_taken.store(true, Ordering::Relaxed);
        }
        self.settle();
        taken
    }

    /// Notes what was taken, once nothing is held back.
    fn settle(&self) {
        if self.has_taken.load(Ordering::Relaxed) && !self.socket.holds_back() {
            self.has_taken.store(false, Ordering::Relaxed);
            self.written.note();
        }
    }
}

impl TryWrite for Noting {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.take(self.socket.try_write(bytes), self.is_ping(bytes))
    }

    fn try_write_vectored(&self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        let is_ping = slices.iter().all(|slice| self.is_ping(slice));
        self.take(self.socket.try_write_vectored(slices), is_ping)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let is_ready = ready!(self.socket.poll_write_ready(cx));
        if is_ready.is_ok() {
            self.settle();
        }
        Poll::Ready(is_ready)
    }

    fn may_hold_back(&self) -> bool {
        self.socket.may_hold_back()
    }

    fn holds_back(&self) -> bool {
        self.socket.holds_back()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::time::advance;

    use super::*;

    const SECOND: std::time::Duration = std::time::Duration::from_secs(1);

    /// Takes everything, and holds it back while the other end is full, as encryption does.
    #[derive(Default)]
    struct Encrypting {
        is_full: AtomicBool,
        holds_back: AtomicBool,
    }

    impl TryWrite for Encrypting {
        fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
            let is_full = self.is_full.load(Ordering::Relaxed);
            self.holds_back.store(is_full, Ordering::Relaxed);
            Ok(bytes.len())
        }

        fn try_write_vectored(&self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
            self.try_write(&slices[0])
        }

        fn poll_write_ready(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            if self.is_full.load(Ordering::Relaxed) {
                return Poll::Pending;
            }
            self.holds_back.store(false, Ordering::Relaxed);
            Poll::Ready(Ok(()))
        }

        fn may_hold_back(&self) -> bool {
            true
        }

        fn holds_back(&self) -> bool {
            self.holds_back.load(Ordering::Relaxed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_held_back_counts_when_it_has_gone_unless_it_is_a_ping() {
        let ping = Framing::WebSocket.ping().expect("WebSocket has one");
        let socket = Arc::new(Encrypting::default());
        let (noting, written) = Noting::new(
            Arc::clone(&socket) as Arc<dyn TryWrite>,
            Framing::WebSocket,
            Origin::new(),
        );
        let go_on = || {
            socket.is_full.store(false, Ordering::Relaxed);
            let mut cx = Context::from_waker(Waker::noop());
            assert!(noting.poll_write_ready(&mut cx).is_ready());
        };
        let began = written.last();
        let event = &b"event"[..];
        for pieces in [&[ping][..], &[event], &[event, ping], &[ping, event]] {
            let before = written.last();
            socket.is_full.store(true, Ordering::Relaxed);
            advance(SECOND).await;
            for piece in pieces {
                noting.try_write(piece).expect("it takes everything");
            }
            assert_eq!(written.last(), before, "held back");
            advance(SECOND).await;
            go_on();
            let expected = if pieces.contains(&event) {
                clock::now()
            } else {
                before
            };
            assert_eq!(written.last(), expected, "{pieces:?}");
        }
        assert_eq!(written.last(), began + SECOND * 8);
        advance(SECOND).await;
        go_on();
        assert_eq!(written.last(), began + SECOND * 8, "nothing was taken");
    }
}
