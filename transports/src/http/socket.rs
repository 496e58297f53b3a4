//! The socket under an HTTP connection, and how long each stage of the connection may last.
//!
//! hyper's own timer knows one limit for a head and counts the rest between two requests into it, and it has none for
//! a response that nobody reads. So the socket, which sees every byte come and go, tells a [`Watch`] what stage the
//! connection is in, and [`drive`] ends it when a stage has lasted too long. A request's body and its handler have
//! limits of their own, set by whoever waits for them.
//!
//! hyper answers a head that it can't parse with a status alone; the socket puts the protocol's `error` object in its
//! place.

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use chinwag_core::{
    RefusedReason,
    clock::{self, Instant},
};
use http::StatusCode;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::{Client, answer};
use crate::{ListenerConfig, Stream, accept::Door};

/// How long a connection that has brought a good request may rest before the next one. Proxies keep connections open
/// for a minute and are surprised by a server that closes first.
const REST: Duration = Duration::from_secs(75);
/// How long requests under way may take once the server has drained. What they could still do is answered by then;
/// half a request never holds a shutdown.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(500);
/// Each so many bytes of an answer have the time that the listener grants for writing: a slow reader gets its answer,
/// one that takes a byte now and then does not hold it for ever.
const STRETCH: usize = 16 << 10;
/// The most that is read before hyper is there to take it: more than nearly every request has.
const AHEAD: usize = 4 << 10;
/// The most that is read and thrown away of what a client still sends when it has got its last answer.
const LINGER_BYTES: usize = 16 << 20;

/// What an HTTP connection is in the middle of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing of the next request has come.
    Idle,
    /// Part of a head has come.
    Head,
    /// A route has the request.
    Handling,
    /// The route has answered, and the answer is being written.
    Responding,
    /// The last answer was written; what the client still sends is thrown away.
    Closing,
}

/// The stage of one connection and when it has lasted too long.
pub(super) struct Watch {
    door: Arc<dyn Door>,
    first_byte: Duration,
    header: Duration,
    write: Duration,
    /// Whether bytes were asked for since somebody looked. By itself, for all who look are of one task.
    asked: AtomicBool,
    state: Mutex<State>,
}

struct State {
    stage: Stage,
    deadline: Option<Instant>,
    /// When it is over whatever the stage.
    end: Option<Instant>,
    /// Bytes of the answer that were written since its deadline was set.
    written: usize,
    /// Whether any byte came.
    heard: bool,
    /// Whether a request was good: a stranger may not rest as long.
    proven: bool,
    /// Whether an answer has gone to the kernel since somebody looked.
    answered: bool,
}

impl Watch {
    /// A connection that was accepted just now.
    pub(super) fn new(config: &ListenerConfig, door: Arc<dyn Door>) -> Self {
        let first_byte = config.first_byte_timeout.0;
        Self {
            door,
            first_byte,
            header: config.header_timeout.0,
            write: config.write_timeout.0,
            asked: AtomicBool::new(false),
            state: Mutex::new(State {
                stage: Stage::Idle,
                deadline: Some(clock::now() + first_byte),
                end: None,
                written: 0,
                heard: false,
                proven: false,
                answered: false,
            }),
        }
    }

    pub(super) fn stage(&self) -> Stage {
        self.state.lock().stage
    }

    /// The end of the stage, or of everything once the listener has stopped.
    fn deadline(&self) -> Option<Instant> {
        let state = self.state.lock();
        match (state.deadline, state.end) {
            (Some(deadline), Some(end)) => Some(deadline.min(end)),
            (deadline, end) => deadline.or(end),
        }
    }

    /// Whether a client waits for an answer, or might lose the last one.
    fn is_answering(&self) -> bool {
        use Stage::{Closing, Handling, Responding};
        matches!(self.stage(), Handling | Responding | Closing)
    }

    /// The listener has stopped.
    fn stop(&self) {
        self.state.lock().end = Some(clock::now() + LAST_WORDS);
    }

    fn received(&self, bytes: usize) {
        self.door.received(bytes);
        self.began();
    }

    /// Part of a head is there.
    fn began(&self) {
        let mut state = self.state.lock();
        state.heard = true;
        if state.stage == Stage::Idle {
            state.stage = Stage::Head;
            state.deadline = Some(clock::now() + self.header);
        }
    }

    /// Bytes are asked for.
    fn asks(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }

    /// Whether the last of an answer has gone to the kernel since the last call.
    pub(super) fn take_answered(&self) -> bool {
        std::mem::take(&mut self.state.lock().answered)
    }

    /// Whether bytes were asked for since the last call.
    pub(super) fn take_asked(&self) -> bool {
        let asked = self.asked.load(Ordering::Relaxed);
        self.asked.store(false, Ordering::Relaxed);
        asked
    }

    /// Whether nothing is under way.
    pub(super) fn is_resting(&self) -> bool {
        self.stage() == Stage::Idle
    }

    /// Whether the connection is to end with the answer under way.
    pub(super) fn is_stopping(&self) -> bool {
        self.state.lock().end.is_some()
    }

    /// A route gets a request. Whether the answers before it have all gone to the kernel.
    pub(super) fn handling(&self) -> bool {
        let mut state = self.state.lock();
        let all_written = state.stage != Stage::Responding;
        state.stage = Stage::Handling;
        state.deadline = None;
        all_written
    }

    /// The route has answered; `good`: the client has shown that it knows what it is doing.
    pub(super) fn responding(&self, good: bool) {
        let mut state = self.state.lock();
        state.stage = Stage::Responding;
        state.deadline = Some(clock::now() + self.write);
        state.written = 0;
        state.proven |= good;
    }

    fn wrote(&self, bytes: usize) {
        let mut state = self.state.lock();
        if state.stage == Stage::Responding {
            state.written += bytes;
            if state.written >= STRETCH {
                state.written = 0;
                state.deadline = Some(clock::now() + self.write);
            }
        }
    }

    /// Everything that was to be written has gone to the kernel.
    fn flushed(&self) {
        let mut state = self.state.lock();
        if state.stage == Stage::Responding {
            state.stage = Stage::Idle;
            state.answered = true;
            let rest = if state.proven { REST } else { self.first_byte };
            state.deadline = Some(clock::now() + rest);
        }
    }

    /// Whether no request waits for an answer: bytes to be written now are hyper's own answer to a head that it can't
    /// parse.
    pub(super) fn is_unasked(&self) -> bool {
        matches!(self.state.lock().stage, Stage::Idle | Stage::Head)
    }

    fn closing(&self) {
        let mut state = self.state.lock();
        if state.stage != Stage::Closing {
            state.stage = Stage::Closing;
            state.deadline = Some(clock::now() + self.write);
        }
    }

    /// Counts a connection that was ended because its stage had lasted too long.
    pub(super) fn count_late(&self) {
        let (stage, heard, stopping) = {
            let state = self.state.lock();
            (state.stage, state.heard, state.end.is_some())
        };
        match stage {
            Stage::Idle if !heard => self.door.refused(RefusedReason::FirstByteTimeout),
            Stage::Head => self.door.refused(RefusedReason::HeaderTimeout),
            Stage::Responding if !stopping => self.door.refused(RefusedReason::WriteTimeout),
            // Resting too long is no fault, a shutdown is not the client's, and who is closing has got its answer.
            Stage::Idle | Stage::Handling | Stage::Responding | Stage::Closing => (),
        }
    }
}

/// How a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// By itself, or by its client.
    Over(io::Result<()>),
    /// A stage has lasted too long.
    Late,
    /// The listener has stopped, and nobody waits for an answer.
    Stopped,
}

/// Runs `connection` until it ends, or a stage has lasted too long, or `stopped`: then a request under way is answered
/// within [`LAST_WORDS`].
pub(super) async fn drive(
    mut connection: Pin<&mut impl Future<Output = io::Result<()>>>,
    watch: &Watch,
    stopped: &CancellationToken,
) -> End {
    let mut stop = pin!(stopped.cancelled());
    let (mut listens, mut has_stopped) = (false, false);
    let mut armed = clock::now() + REST;
    let mut alarm = pin!(tokio::time::sleep_until(armed));
    poll_fn(|cx| {
        // Once it has heard of the task it need not be asked again until it has something to say.
        if !has_stopped && (!listens || stopped.is_cancelled()) {
            listens = true;
            has_stopped = stop.as_mut().poll(cx).is_ready();
        }
        if has_stopped && !watch.is_stopping() {
            if !watch.is_answering() {
                return Poll::Ready(End::Stopped);
            }
            watch.stop();
        }
        if let Poll::Ready(end) = connection.as_mut().poll(cx) {
            return Poll::Ready(End::Over(end));
        }
        let Some(deadline) = watch.deadline() else {
            // The alarm may still ring for a stage that is over; that costs one idle poll.
            return Poll::Pending;
        };
        // A later deadline leaves the alarm as it is, to look again when it rings: most are moved on with every
        // request, and the timers of all connections share a lock.
        if deadline < armed {
            armed = deadline;
            alarm.as_mut().reset(armed);
        }
        while alarm.as_mut().poll(cx).is_ready() {
            if deadline <= armed {
                return Poll::Ready(End::Late);
            }
            armed = deadline;
            alarm.as_mut().reset(armed);
        }
        Poll::Pending
    })
    .await
}

/// A socket that tells a [`Watch`] what goes through it.
pub(super) struct HttpSocket {
    socket: Stream,
    /// Bytes of the client's that were read and come before those of the socket.
    early: Bytes,
    client: Arc<Client>,
    /// Our answer to a head that can't be parsed, as far as it is not written.
    own: Bytes,
    /// Whether the write side was shut.
    shut: bool,
    lingered: usize,
}

impl HttpSocket {
    /// `early`: bytes that were read with a PROXY header.
    pub(super) fn new(socket: Stream, early: Bytes, client: Arc<Client>) -> Self {
        if !early.is_empty() {
            client.watch.received(early.len());
        }
        Self {
            socket,
            early,
            client,
            own: Bytes::new(),
            shut: false,
            lingered: 0,
        }
    }

    /// The socket, and bytes that come before those it has.
    pub(super) fn into_parts(self) -> (Stream, Bytes) {
        (self.socket, self.early)
    }

    /// Takes back what was read of requests to come.
    pub(super) fn unread(&mut self, ahead: Bytes) {
        // An empty one would keep hyper's buffer all the same.
        if ahead.is_empty() {
            return;
        }
        if self.early.is_empty() {
            self.early = ahead;
        } else {
            // Many small requests sent at once: they were read before what is still here.
            self.early = [&ahead[..], &self.early[..]].concat().into();
        }
    }

    /// Waits for the first bytes of a request, which are kept. `false`: the client has gone.
    pub(super) fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.early.is_empty() {
            self.poll_ahead(cx)
        } else {
            self.client.watch.began();
            Poll::Ready(true)
        }
    }

    /// Waits for the client to go away. What it sends meanwhile is kept; when there is some, no more is read, so that
    /// its end may be noticed later.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.early.is_empty() && !ready!(self.poll_ahead(cx)) {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// Reads what has come without anybody to take it. `false`: the client has gone.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut scratch = [MaybeUninit::uninit(); AHEAD];
        let mut buffer = ReadBuf::uninit(&mut scratch);
        let read = ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buffer));
        let bytes = buffer.filled();
        if read.is_err() || bytes.is_empty() {
            return Poll::Ready(false);
        }
        self.client.watch.received(bytes.len());
        self.early = Bytes::copy_from_slice(bytes);
        Poll::Ready(true)
    }

    /// Takes hyper's bytes for written and puts our own answer in their place.
    fn replace(&mut self, theirs: &[u8]) {
        if self.client.watch.stage() == Stage::Closing {
            return;
        }
        let (reason, own) = unparsable(theirs);
        self.client.watch.door.refused(reason);
        self.own = own;
        self.client.watch.closing();
    }

    fn poll_own(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.own.is_empty() {
            let written = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.own))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.own.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Reads and throws away until the client closes: closing a socket with unread bytes in it makes the kernel take
    /// back the last answer too.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut scratch = [0; 4096];
        while self.lingered < LINGER_BYTES {
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.socket).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => self.lingered += buffer.filled().len(),
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(())
    }
}

/// The whole answer to a head that hyper could not parse, in place of its own `theirs`, which begins with the status,
/// and what to count it as.
fn unparsable(theirs: &[u8]) -> (RefusedReason, Bytes) {
    let (reason, status, message) = if theirs.get(9..12) == Some(b"431") {
        (
            RefusedReason::TooLarge,
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "The head of a request has at most 16 KiB and 100 header lines.",
        )
    } else {
        (
            RefusedReason::BadRequest,
            StatusCode::BAD_REQUEST,
            "This could not be read as an HTTP/1.1 request.",
        )
    };
    let body = answer::bad_request(message).to_json(None);
    let head = format!(
        "HTTP/1.1 {} {}\r\ncontent-type: application/json\r\ncache-control: no-store\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n",
        status.as_str(),
        status.canonical_reason().unwrap_or_default(),
        body.len(),
    );
    (reason, [head.into_bytes(), body].concat().into())
}

impl AsyncRead for HttpSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.client.watch.asks();
        if !this.early.is_empty() {
            // They were counted when they came.
            let some = this.early.len().min(buffer.remaining());
            buffer.put_slice(&this.early.split_to(some));
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.socket).poll_read(cx, buffer))?;
        let read = buffer.filled().len() - before;
        if read > 0 {
            this.client.watch.received(read);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HttpSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.client.watch.is_unasked() {
            this.replace(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = ready!(Pin::new(&mut this.socket).poll_write(cx, bytes))?;
        this.client.watch.wrote(written);
        Poll::Ready(Ok(written))
    }

    /// Called when there is nothing left to write.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_own(cx))?;
        ready!(Pin::new(&mut this.socket).poll_flush(cx))?;
        this.client.watch.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.client.watch.closing();
        ready!(this.poll_own(cx))?;
        if !this.shut {
            ready!(Pin::new(&mut this.socket).poll_shutdown(cx))?;
            this.shut = true;
        }
        ready!(this.poll_linger(cx));
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::{accept::tests::Record, config::tests::listener};

    #[tokio::test(start_paused = true)]
    async fn each_stage_has_its_own_deadline() {
        let config = listener(&serde_json::json!({
            "first_byte_timeout": "3s",
            "header_timeout": "4s",
            "write_timeout": "5s",
        }));
        let record = Record::new();
        let watch = Watch::new(&config, record.clone());
        let left = || {
            watch
                .deadline()
                .map(|deadline| (deadline - clock::now()).as_secs())
        };
        assert_eq!((watch.stage(), left()), (Stage::Idle, Some(3)));

        watch.received(1);
        assert_eq!((watch.stage(), left()), (Stage::Head, Some(4)));
        advance(Duration::from_secs(1)).await;
        watch.received(1);
        assert_eq!(left(), Some(3), "a head that drips is no longer in coming");
        assert_eq!(record.seen().received, 2);

        watch.handling();
        assert_eq!((watch.stage(), left()), (Stage::Handling, None));
        watch.received(1);
        assert_eq!(watch.stage(), Stage::Handling, "of its body");

        watch.responding(false);
        assert_eq!((watch.stage(), left()), (Stage::Responding, Some(5)));
        advance(Duration::from_secs(2)).await;
        watch.wrote(STRETCH - 1);
        assert_eq!(left(), Some(3), "a reader that drips gets no more time");
        watch.wrote(1);
        assert_eq!(left(), Some(5), "one that reads does");
        watch.flushed();
        assert_eq!((watch.stage(), left()), (Stage::Idle, Some(3)));
        watch.flushed();
        watch.count_late();
        assert!(record.seen().refused.is_empty(), "it was heard");

        watch.received(1);
        watch.handling();
        watch.flushed();
        assert_eq!(watch.stage(), Stage::Handling, "nothing was to be written");
        watch.responding(true);
        watch.flushed();
        assert_eq!((watch.stage(), left()), (Stage::Idle, Some(REST.as_secs())));

        watch.received(1);
        watch.handling();
        watch.responding(true);
        watch.count_late();
        assert_eq!(record.seen().refused, [RefusedReason::WriteTimeout]);
        watch.stop();
        watch.count_late();
        assert_eq!(record.seen().refused.len(), 1, "cut short by the shutdown");
        watch.state.lock().end = None;

        watch.closing();
        assert_eq!((watch.stage(), left()), (Stage::Closing, Some(5)));
        advance(Duration::from_secs(1)).await;
        watch.closing();
        assert_eq!(left(), Some(4));
    }

    #[test]
    fn what_hyper_can_not_parse_is_answered_with_an_object() {
        for (theirs, status) in [
            (
                &b"HTTP/1.1 431 Request Header Fields Too Large\r\n\r\n"[..],
                "HTTP/1.1 431 ",
            ),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP/1.1 400 "),
            (b"", "HTTP/1.1 400 "),
        ] {
            let (_, own) = unparsable(theirs);
            let text = std::str::from_utf8(&own).unwrap();
            assert!(text.starts_with(status), "{text}");
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains("cache-control: no-store"), "{head}");
            assert!(head.contains("connection: close"), "{head}");
            assert!(
                head.contains(&format!("content-length: {}", body.len())),
                "{head}"
            );
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(body["type"], "error");
            assert_eq!(body["code"], "bad_request");
        }
    }
}
