//! Deliveries as signs of life, where `delivery_is_activity` asks for that: when a client's connection last took
//! something.
//!
//! Only what the socket has taken counts. What waits in a queue, or is held back by encryption, does not, nor does a
//! ping: that asks for a sign of life. A polling client is written to only when it asks, which is one anyway.

use std::{
    io,
    sync::Arc,
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
            written: Arc::clone(&written),
        };
        (Arc::new(noting), written)
    }

    fn is_ping(&self, bytes: &[u8]) -> bool {
        self.ping == Some(bytes)
    }

    fn note(&self, taken: io::Result<usize>, is_ping: bool) -> io::Result<usize> {
        // What is held back is noted when it has gone.
        if matches!(taken, Ok(1..)) && !is_ping && !self.socket.holds_back() {
            self.written.note();
        }
        taken
    }
}

impl TryWrite for Noting {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.note(self.socket.try_write(bytes), self.is_ping(bytes))
    }

    fn try_write_vectored(&self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        let is_ping = slices.iter().all(|slice| self.is_ping(slice));
        self.note(self.socket.try_write_vectored(slices), is_ping)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let held_back = self.socket.holds_back();
        let is_ready = ready!(self.socket.poll_write_ready(cx));
        if held_back && is_ready.is_ok() {
            self.written.note();
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
