//! One object a line: what TCP speaks, and whoever else has a stream.
//!
//! A line ends with LF, or CR LF; empty lines are passed over, as long as there are not too many. A line over the limit
//! can't be told from the next, so it ends the connection.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use chinwag_core::{
    CloseReason, Framing, PushSession,
    clock::{self, Instant},
};
use tokio::time::{Sleep, sleep_until};

use crate::{
    BindContext, Incoming,
    duplex::{self, Duplex},
};

/// For how long empty lines are counted together.
const BLANK_SPAN: Duration = Duration::from_secs(60);

impl BindContext {
    /// Serves one connection of this transport, one object a line in each direction, until its session ends: then the
    /// stream is closed once the last words are out, and dropped.
    ///
    /// To be run in a task of the connection's own. Dropped, it ends the session as `disconnected`.
    pub async fn serve_lines(&self, arrival: Incoming<impl Duplex>) {
        let Incoming {
            stream,
            peer,
            permit,
            at,
        } = arrival;
        let stream = Arc::new(stream);
        let socket = Arc::clone(&stream) as _;
        let session = self
            .hub
            .connect(&self.scope, peer, socket, Framing::Lines, at);
        let overdue = at + self.listener.first_byte_timeout.0;
        run(stream, session, Vec::new(), Some(overdue)).await;
        drop(permit);
    }
}

/// Drives `session` over `stream`, of which `early` was read already, until it has ended and the stream is closed.
/// `overdue`: when the first byte must be there.
pub(crate) async fn run<S: Duplex>(
    stream: Arc<S>,
    session: PushSession,
    early: Vec<u8>,
    overdue: Option<Instant>,
) {
    let mut connection = Connection {
        stream,
        session,
        unread: early,
        searched: 0,
        blank: Blank::default(),
        input: Input::Open,
        overdue: overdue.map(|overdue| Box::pin(sleep_until(overdue))),
    };
    let reason = poll_fn(|cx| connection.poll(cx)).await;
    if reason != CloseReason::Disconnected {
        duplex::close(&*connection.stream).await;
    }
}

struct Connection<S> {
    stream: Arc<S>,
    session: PushSession,
    /// Bytes read and not handed over: a line begun, or lines that wait for the session.
    unread: Vec<u8>,
    /// So many of them hold no line feed.
    searched: usize,
    blank: Blank,
    input: Input,
    /// Until the first byte.
    overdue: Option<Pin<Box<Sleep>>>,
}

/// Empty lines since the last object. No rate is spent on them, so there may not be more of them in a minute than an
/// object may have bytes: a flood of them is work like any other.
#[derive(Default)]
struct Blank {
    bytes: usize,
    since: Option<Instant>,
}

impl Blank {
    /// Counts a line of so many bytes, its end included. Whether there are no more than `most`.
    fn count(&mut self, bytes: usize, most: usize) -> bool {
        let now = clock::now();
        let since = self.since.get_or_insert(now);
        if now - *since >= BLANK_SPAN {
            *since = now;
            self.bytes = 0;
        }
        self.bytes += bytes;
        self.bytes <= most
    }
}

/// The client's side of the connection.
enum Input {
    Open,
    /// Ended, and every whole line was handed over or waits.
    Closed,
    /// Ended, and what was asked is being finished.
    Finished,
}

impl<S: Duplex> Connection<S> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        loop {
            if let Poll::Ready(reason) = self.session.poll(cx) {
                return Poll::Ready(reason);
            }
            if let Some(overdue) = &mut self.overdue
                && overdue.as_mut().poll(cx).is_ready()
            {
                self.overdue = None;
                self.session.login_overdue();
                continue;
            }
            if !self.session.is_ready() {
                return Poll::Pending;
            }
            if self.hand_over_unread() {
                continue;
            }
            match self.input {
                Input::Open => (),
                Input::Closed => {
                    // Whoever pipes a few commands in still sees what comes of them.
                    self.session.finish();
                    self.input = Input::Finished;
                    continue;
                }
                Input::Finished if self.session.is_settled() => {
                    self.session.peer_closed(false);
                    continue;
                }
                Input::Finished => return Poll::Pending,
            }
            let (session, unread, searched, blank) = (
                &mut self.session,
                &mut self.unread,
                &mut self.searched,
                &mut self.blank,
            );
            let read = duplex::poll_read(&*self.stream, cx, |bytes| {
                session.count_read(bytes.len());
                if unread.is_empty() {
                    // The common case: whole lines, straight from the thread's buffer.
                    let handed = hand_over(session, bytes, 0, blank);
                    unread.extend_from_slice(&bytes[handed.bytes..]);
                    *searched = handed.searched;
                } else {
                    unread.extend_from_slice(bytes);
                }
                bytes.len()
            });
            match read {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => self.input = Input::Closed,
                Poll::Ready(Ok(_)) => self.overdue = None,
                Poll::Ready(Err(_)) => self.session.peer_closed(false),
            }
        }
    }

    /// Whether anything was handed over.
    fn hand_over_unread(&mut self) -> bool {
        let handed = hand_over(
            &mut self.session,
            &self.unread,
            self.searched,
            &mut self.blank,
        );
        self.searched = handed.searched;
        if handed.bytes == self.unread.len() {
            self.unread = Vec::new();
        } else {
            self.unread.drain(..handed.bytes);
        }
        handed.bytes > 0 || handed.too_large
    }
}

struct HandedOver {
    /// Bytes done with.
    bytes: usize,
    /// So many of the bytes after those hold no line feed.
    searched: usize,
    too_large: bool,
}

/// Hands whole lines to the session for as long as it takes them. The first `searched` bytes hold no line feed.
fn hand_over(
    session: &mut PushSession,
    bytes: &[u8],
    mut searched: usize,
    blank: &mut Blank,
) -> HandedOver {
    let too_large = |session: &mut PushSession| {
        session.frame_too_large();
        HandedOver {
            bytes: bytes.len(),
            searched: 0,
            too_large: true,
        }
    };
    let mut done = 0;
    while session.is_ready() {
        let rest = &bytes[done..];
        let end = rest[searched..]
            .iter()
            .position(|&byte| byte == b'\n')
            .map(|at| searched + at);
        let line = &rest[..end.unwrap_or(rest.len())];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() > session.frame_bytes() {
            return too_large(session);
        }
        let Some(end) = end else {
            return HandedOver {
                bytes: done,
                searched: rest.len(),
                too_large: false,
            };
        };
        if !line.is_empty() {
            *blank = Blank::default();
            session.handle_frame(line);
        } else if !blank.count(end + 1, session.frame_bytes()) {
            return too_large(session);
        }
        done += end + 1;
        searched = 0;
    }
    HandedOver {
        bytes: done,
        searched,
        too_large: false,
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn empty_lines_of_a_minute_are_counted_together() {
        let mut blank = Blank::default();
        assert!(blank.count(4, 10));
        assert!(blank.count(6, 10));
        advance(BLANK_SPAN - Duration::from_millis(1)).await;
        assert!(!blank.count(1, 10));
        advance(Duration::from_millis(1)).await;
        assert!(blank.count(10, 10));
        assert!(!blank.count(1, 10));
    }
}
