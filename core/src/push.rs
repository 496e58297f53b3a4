//! A session on a connection that stays open: the transport's task hands it frames and polls it.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use tokio::time::{Sleep, sleep_until, timeout_at};

use crate::{
    CloseReason, ErrorCode, Refusal,
    adapter::{Answer, Delivery, Load, Outlet, Progress, PushOutlet, TryWrite},
    clock::{self, Instant},
    message::{Command, Frame, Framing, Kind, Malformed},
    plugin::Credentials,
    room::Behind,
    scope::{Peer, Scope},
    session::{Done, Ending, Pending, Session, login::login_overran},
};

/// Replies that a session may be owed while it runs further commands.
const MAX_OWED: usize = 64;
/// Sends that may await the log while a session runs further commands.
const MAX_UNANSWERED: usize = 16;

/// A session on a connection that stays open, driven by the connection's task. Dropped, it ends as `disconnected`.
///
/// The task gives it whole frames with [`handle_frame`](Self::handle_frame) while [`is_ready`](Self::is_ready), and
/// polls it whenever it is woken and before it waits: that writes replies, finishes what was begun, and tells when the
/// connection is to be closed.
pub struct PushSession {
    session: Arc<Session>,
    /// A command that waits for somebody's word.
    pending: Option<(Pending, Option<u64>)>,
    /// A command that waits until earlier ones are answered.
    held: Option<Box<[u8]>>,
    /// No other command before every reply is out.
    barrier: bool,
    /// A log-out under way, with the id of its command.
    logout: Option<Option<u64>>,
    /// The room that it sent to last is behind.
    behind: Option<Behind>,
    corked: bool,
    blocked: bool,
    crowded: bool,
    timer: Option<Pin<Box<Sleep>>>,
    closing_since: Option<Instant>,
}

impl PushSession {
    pub(crate) fn new(
        scope: &Arc<Scope>,
        peer: Peer,
        socket: Arc<dyn TryWrite>,
        framing: Framing,
        opened: Instant,
    ) -> Self {
        let limit = scope.hub.config.limits.member_queue.0;
        let outlet = Outlet::Push(PushOutlet::new(socket, framing, limit, &scope.metrics));
        let session = Session::new(Arc::clone(scope), peer, outlet, opened);
        scope.hub.registry.greet(&session);
        session.watch_login();
        if scope.hub.is_draining() {
            // The drain may have looked for strangers already.
            session.end(CloseReason::ShuttingDown);
        }
        Self {
            session,
            pending: None,
            held: None,
            barrier: false,
            logout: None,
            behind: None,
            corked: false,
            blocked: false,
            crowded: false,
            timer: None,
            closing_since: None,
        }
    }

    fn outlet(&self) -> &PushOutlet {
        match &self.session.outlet {
            Outlet::Push(push) => push,
            Outlet::Pull(_) => unreachable!("made with a push outlet"),
        }
    }

    /// The limit on one object from the client now: 8 KiB before log-in, then `frame_bytes`.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        self.session.frame_bytes()
    }

    /// Whether it takes another frame. While not, the connection is not read.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.pending.is_none()
            && self.held.is_none()
            && self.behind.is_none()
            && self.logout.is_none()
            && !self.barrier
            && !self.blocked
            && !self.crowded
            && self.closing_since.is_none()
    }

    /// Takes one object from the client. Only while [`is_ready`](Self::is_ready).
    pub fn handle_frame(&mut self, frame: &[u8]) {
        self.session.touch();
        self.cork();
        match Command::parse(frame, None) {
            Err(Malformed { id, refusal }) => {
                let is_stranger = !self.session.is_active();
                // What is no object before log-in is another protocol; an object with a fault is a failed log-in.
                let is_foreign = is_stranger && refusal.code == ErrorCode::BadJson;
                if is_stranger {
                    self.session.count_failed_login(refusal.code);
                }
                self.reply(self.session.refused(id, refusal));
                if is_foreign {
                    self.session.end(CloseReason::ProtocolError);
                }
            }
            Ok(command) => {
                let must_wait = matches!(command.kind, Some(Kind::Join | Kind::Leave));
                if must_wait && self.outlet().load().owed > 0 {
                    self.held = Some(frame.into());
                    return;
                }
                self.run(&command);
            }
        }
    }

    fn run(&mut self, command: &Command<'_>) {
        let done = self.session.execute(command);
        self.take(done, command.id);
    }

    /// `id`: of the command.
    fn take(&mut self, done: Done, id: Option<u64>) {
        match done {
            Done::Replied(answer) => self.reply(answer),
            Done::Pending(pending) => self.pending = Some((pending, id)),
            Done::Barrier => self.barrier = true,
            Done::LogOut(slots) => {
                self.barrier = !slots.is_empty();
                self.logout = Some(id);
            }
            Done::Slot(room) => {
                self.note_load();
                self.behind = Behind::of(room);
            }
            Done::Ended => (),
        }
    }

    fn reply(&mut self, answer: Answer) {
        if let Some(frame) = answer.frame {
            self.settle(self.outlet().reply(frame));
        }
        if self.session.has_failed() {
            self.session.end(CloseReason::AuthFailed);
        } else if self.session.is_abusive() {
            self.session.end(CloseReason::Abuse);
        }
        self.note_load();
    }

    /// Takes no further command while too much is under way, or the client does not take what it asked for.
    fn note_load(&mut self) -> Load {
        let load = self.outlet().load();
        self.barrier &= load.owed > 0;
        self.crowded = load.owed >= MAX_OWED || load.unanswered >= MAX_UNANSWERED;
        self.blocked = load.is_blocked;
        load
    }

    /// Ends the session whose queue is over its bound.
    fn settle(&self, delivery: Delivery) {
        if delivery == Delivery::Full {
            self.session.end(CloseReason::SlowConsumer);
        }
    }

    fn cork(&mut self) {
        if !self.corked {
            self.corked = true;
            self.outlet().cork();
        }
    }

    /// Judges credentials that came with the connection before it speaks the protocol: the `session` object is sent
    /// unasked, or the refusal is returned to be told in the transport's own way.
    ///
    /// # Errors
    /// The refusal of the log-in. The session is then of no more use.
    pub async fn log_in_first(&mut self, credentials: Credentials) -> Result<(), Refusal> {
        let deadline = clock::now() + self.session.scope.login_timeout;
        let welcome = timeout_at(deadline, self.session.try_login(credentials)).await;
        match welcome.unwrap_or_else(|_| Err(login_overran())) {
            Ok(welcome) => {
                self.outlet().reply(Frame::encode(&welcome.say(None, true)));
                self.session.tell_early();
                Ok(())
            }
            Err(refusal) => {
                self.session.refuse(None, &refusal);
                Err(refusal)
            }
        }
    }

    /// A frame over the limit came: framing is lost, so the connection ends after the `error`.
    pub fn frame_too_large(&mut self) {
        let limit = self.frame_bytes();
        let refusal = Refusal::new(
            ErrorCode::TooLarge,
            format!("An object may have {limit} bytes."),
        );
        self.outlet().reply(self.session.refuse(None, &refusal));
        self.session.end(CloseReason::TooLarge);
    }

    /// Something came that the framing allows and the protocol does not: answered, and counted.
    pub fn refuse_frame(&mut self, message: &str) {
        self.session.touch();
        self.cork();
        let was_active = self.session.is_active();
        self.reply(self.session.refused(None, Refusal::bad_request(message)));
        if !was_active {
            self.session.end(CloseReason::ProtocolError);
        }
    }

    /// The rules of the transport were broken; `close_code`: the WebSocket code that says which.
    pub fn protocol_error(&mut self, close_code: Option<u16>) {
        self.session.end_with(Ending {
            close_code,
            ..Ending::of(CloseReason::ProtocolError)
        });
    }

    /// The client was heard.
    pub fn touch(&self) {
        self.session.touch();
    }

    /// A control frame of the transport's came: a sign of life, but one that spends the rate for commands, so that a
    /// flood of them is a violation like any other.
    pub fn control_frame(&mut self) {
        self.session.touch();
        if let Err(wait) = self.session.take_command() {
            let refusal =
                Refusal::new(ErrorCode::RateLimited, "Control frames come too often.").retry(wait);
            self.session.refuse(None, &refusal);
        }
    }

    /// No byte came in time.
    pub fn login_overdue(&mut self) {
        if !self.session.is_active() {
            self.session.end(CloseReason::LoginTimeout);
        }
    }

    /// Makes it a session that never logs in and takes no command: for an echo, under conformance tests.
    pub fn exempt_from_login(&mut self) {
        self.session.is_echo.store(true, Ordering::Relaxed);
    }

    /// The limit on one object after log-in.
    #[must_use]
    pub fn full_frame_bytes(&self) -> usize {
        self.session.scope.hub.config.limits.frame_bytes.0
    }

    /// Whether everything that was asked is answered.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.is_ready() && self.outlet().load().owed == 0
    }

    /// Writes bytes of the transport's own, such as a pong, in order with everything else.
    pub fn write_raw(&self, bytes: Vec<u8>) {
        self.settle(self.outlet().write(&bytes.into()));
    }

    /// The client has closed its side; `clean`: in good order, as the transport's rules ask. There is nobody to say
    /// `bye` to.
    pub fn peer_closed(&mut self, clean: bool) {
        let reason = if clean {
            CloseReason::Logout
        } else {
            CloseReason::Disconnected
        };
        self.session.end_with(Ending {
            is_told: false,
            ..Ending::of(reason)
        });
    }

    /// Nothing more will come: what was accepted still goes out before [`is_settled`](Self::is_settled) holds.
    pub fn finish(&mut self) {
        self.barrier |= !self.session.flush().is_empty();
    }

    /// Counts bytes read from the client.
    pub fn count_read(&self, bytes: usize) {
        self.session.scope.metrics.bytes_in.increment(bytes as u64);
    }

    /// Does what is to be done without a frame. Ready: everything is written, or nothing more can be, and the
    /// connection is to be closed. Pending: the task is woken when there is more to do, or the session is ready again.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        self.outlet().waker.register(cx.waker());
        loop {
            self.poll_pending(cx);
            self.poll_behind(cx);
            self.poll_held();
            if let Some(id) = self.logout
                && self.outlet().load().owed == 0
            {
                self.logout = None;
                self.session.end_with(Ending {
                    id,
                    ..Ending::of(CloseReason::Logout)
                });
            }
            if self.corked {
                self.corked = false;
                self.settle(self.outlet().uncork());
            }
            if self.session.is_abusive() {
                self.session.end(CloseReason::Abuse);
            }
            let ended = self.session.ended();
            if ended.is_some() && self.closing_since.is_none() {
                self.closing_since = Some(clock::now());
                self.pending = None;
                self.held = None;
                self.behind = None;
            }
            let progress = self.outlet().poll_flush(cx);
            let load = self.note_load();
            // While the server, or a queue that the client still takes from, holds it up, its idle clock stands still;
            // a queue without progress has a time of its own.
            let held_up = self.pending.is_some()
                || self.behind.is_some()
                || self.barrier
                || self.crowded
                || self.blocked;
            self.session.held_up.store(held_up, Ordering::Relaxed);
            match progress {
                Progress::Finished => return Poll::Ready(self.reason()),
                Progress::Lost => {
                    self.session.end(CloseReason::Disconnected);
                    return Poll::Ready(self.reason());
                }
                Progress::Idle => {
                    self.timer = None;
                    // What waited for the replies may go on now: the answer may have come while this task was
                    // running, and then nobody wakes it.
                    if load.owed == 0 && (self.held.is_some() || self.logout.is_some()) {
                        continue;
                    }
                    return Poll::Pending;
                }
                Progress::Blocked(since) => {
                    let scope = &self.session.scope;
                    let deadline = match self.closing_since {
                        Some(closing) => scope.hub.latest_end(closing + scope.write_timeout),
                        None => since + scope.hub.config.limits.slow_after.0,
                    };
                    let timer = self
                        .timer
                        .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
                    if timer.deadline() != deadline {
                        timer.as_mut().reset(deadline);
                    }
                    if timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    if ended.is_some() {
                        return Poll::Ready(self.reason());
                    }
                    self.session.end(CloseReason::SlowConsumer);
                }
            }
        }
    }

    /// How the session ended.
    fn reason(&self) -> CloseReason {
        let end = self.session.ended();
        end.map_or(CloseReason::Disconnected, |end| end.reason)
    }

    fn poll_pending(&mut self, cx: &mut Context<'_>) {
        if let Some((pending, id)) = &mut self.pending
            && let Poll::Ready(done) = pending.as_mut().poll(cx)
        {
            let id = *id;
            self.pending = None;
            self.take(done, id);
            // After a log-in.
            self.session.tell_early();
        }
    }

    fn poll_behind(&mut self, cx: &mut Context<'_>) {
        if let Some(behind) = &self.behind
            && behind.poll(cx).is_ready()
        {
            self.behind = None;
        }
    }

    fn poll_held(&mut self) {
        if self.held.is_some() && self.outlet().load().owed == 0 {
            let frame = self.held.take().expect("just seen");
            self.cork();
            if let Ok(command) = Command::parse(&frame, None) {
                self.run(&command);
            }
        }
    }
}

impl Drop for PushSession {
    fn drop(&mut self) {
        self.session.end(CloseReason::Disconnected);
    }
}

impl fmt::Debug for PushSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PushSession")
            .field("session", &self.session)
            .finish_non_exhaustive()
    }
}
