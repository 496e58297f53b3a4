//! A session whose client comes by with requests: commands are answered in the request that brought them, and what
//! happens in between waits in the outlet until it is fetched and acknowledged.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::{Sleep, sleep_until, timeout_at};

use crate::{
    CloseReason, End, ErrorCode, Refusal,
    adapter::{Answer, Look, Outlet, Page, PullOutlet},
    chain::unwind,
    clock::{self, Instant},
    hub::expired,
    message::{Command, Frame, Kind},
    plugin::Credentials,
    room::Behind,
    scope::{Peer, Scope},
    session::{
        Done, Ending, Session,
        login::{Welcome, login_overran},
    },
};

/// Commands of one session that wait for their turn or run.
const MAX_COMMANDS: usize = 64;

/// A polling session that has just begun.
#[derive(Debug)]
pub struct Opened {
    /// The session.
    pub session: PullSession,
    /// The client asked for its id in a cookie.
    pub cookie: bool,
    /// The session was taken over from another connection.
    pub resumed: bool,
    id: Option<u64>,
    welcome: Welcome,
}

impl Opened {
    /// The session's id: a secret.
    #[must_use]
    pub fn session_id(&self) -> &str {
        &self.welcome.session
    }

    /// The `session` object; without the id where that travels in a cookie.
    #[must_use]
    pub fn reply(&self, with_id: bool) -> Bytes {
        Frame::encode(&self.welcome.say(self.id, with_id)).json()
    }
}

/// The answer to one command of a polling client.
#[derive(Debug)]
pub struct Reply {
    /// The object.
    pub json: Bytes,
    /// Where the command was refused: what a status is made of.
    pub refusal: Option<Refusal>,
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        Self {
            json: answer.frame.map(|frame| frame.json()).unwrap_or_default(),
            refusal: answer.refusal.map(|refusal| *refusal),
        }
    }
}

/// A handle on a polling session. Dropping it changes nothing: the session lives on between requests.
#[derive(Clone)]
pub struct PullSession {
    session: Arc<Session>,
}

impl fmt::Debug for PullSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PullSession").field(&self.session).finish()
    }
}

impl PullSession {
    pub(crate) fn new(session: Arc<Session>) -> Self {
        Self { session }
    }

    pub(crate) async fn open(
        scope: &Arc<Scope>,
        peer: Peer,
        body: &[u8],
        header: Option<Credentials>,
    ) -> Result<Opened, Refusal> {
        let limits = scope.hub.config.limits.poll_queue;
        let session = Session::new(
            Arc::clone(scope),
            peer,
            Outlet::Pull(PullOutlet::new(limits, &scope.metrics)),
            clock::now(),
        );
        let counted = |refusal: Refusal| {
            scope.hub.telemetry.refused_command(refusal.code);
            refusal
        };
        let body = if body.iter().all(u8::is_ascii_whitespace) && header.is_some() {
            b"{}"
        } else {
            body
        };
        let command = Command::parse(body, Some(Kind::Login))
            .map_err(|malformed| counted(malformed.refusal))?;
        if command.kind != Some(Kind::Login) {
            return Err(counted(Refusal::bad_request(
                "type must be \"login\" here.",
            )));
        }
        let mut credentials = session.credentials(&command.fields).map_err(counted)?;
        if let Some(header) = header {
            let is_another = credentials.user.is_some() && credentials.user != header.user;
            if credentials.password.is_some() || credentials.token.is_some() || is_another {
                return Err(counted(Refusal::bad_request(
                    "Credentials stand in the header and in the body.",
                )));
            }
            credentials = header;
        }
        let cookie = crate::message::field("cookie", "true or false", command.fields.cookie)?
            .unwrap_or(false);
        let deadline = clock::now() + scope.login_timeout;
        let welcome = timeout_at(deadline, session.try_login(credentials)).await;
        let welcome = welcome.unwrap_or_else(|_| Err(login_overran()));
        let welcome = welcome.map_err(counted)?;
        session.tell_early();
        Ok(Opened {
            session: Self::new(session),
            cookie,
            resumed: false,
            id: command.id,
            welcome,
        })
    }

    fn outlet(&self) -> &PullOutlet {
        match &self.session.outlet {
            Outlet::Pull(pull) => pull,
            Outlet::Push(_) => unreachable!("made with a pull outlet"),
        }
    }

    /// What is said of the session once it has ended.
    fn expired(&self) -> Refusal {
        let unknown = End {
            reason: CloseReason::Disconnected,
            retry_ms: None,
        };
        expired(self.session.ended().unwrap_or(unknown))
    }

    fn expired_reply(&self, id: Option<u64>) -> Reply {
        let refusal = self.expired();
        Reply {
            json: refusal.to_json(id).into(),
            refusal: Some(refusal),
        }
    }

    /// The limit on one object from the client.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        self.session.frame_bytes()
    }

    /// Runs one command, after those that came before it. Given up before its turn, or while it waits for somebody's
    /// word as a join does for that of its manager, it is not run; given up later, it has run all the same. One that
    /// panics ends its session, as it does one with a connection of its own.
    pub async fn command(&self, body: &[u8]) -> Reply {
        match unwind(self.run(body)).await {
            Some(reply) => reply,
            None => {
                tracing::error!(transport = %self.session.scope.name, "A command panicked; its session ends.");
                self.session.end(CloseReason::Disconnected);
                self.expired_reply(None)
            }
        }
    }

    async fn run(&self, body: &[u8]) -> Reply {
        self.session.touch();
        let command = match Command::parse(body, None) {
            Ok(command) => command,
            Err(malformed) => return self.refuse(malformed.id, malformed.refusal),
        };
        let Some(_turn) = self.outlet().turn(MAX_COMMANDS).await else {
            return self.refuse(command.id, too_many_commands());
        };
        let mut done = self.session.execute(&command);
        while let Done::Pending(pending) = done {
            done = pending.await;
        }
        match done {
            Done::Replied(answer) => self.finish(answer),
            Done::Barrier => self.answered(command.id).await,
            Done::Slot(room) => {
                let reply = self.answered(command.id).await;
                // Who sends on waits while the room is behind.
                if let Some(behind) = Behind::of(room) {
                    poll_fn(|cx| behind.poll(cx)).await;
                }
                reply
            }
            Done::LogOut(slots) => self.log_out(command.id, slots.len()).await,
            Done::Pending(_) => unreachable!("awaited above"),
            Done::Ended => self.expired_reply(command.id),
        }
    }

    /// The answer to the slot that was reserved last.
    async fn answered(&self, id: Option<u64>) -> Reply {
        let answer = match self.outlet().take_reserved() {
            Some(answer) => answer.await.ok(),
            None => None,
        };
        answer.map_or_else(|| self.expired_reply(id), |answer| self.finish(answer))
    }

    fn finish(&self, answer: Answer) -> Reply {
        if self.session.is_abusive() {
            self.session.end(CloseReason::Abuse);
        }
        answer.into()
    }

    fn refuse(&self, id: Option<u64>, refusal: Refusal) -> Reply {
        let frame = self.session.refuse(id, &refusal);
        self.finish(Answer::refused(frame, refusal))
    }

    /// Counts what the transport found wrong with a request of this session's, and gives the refusal back.
    #[must_use]
    pub fn violated(&self, refusal: Refusal) -> Refusal {
        self.session.touch();
        self.refuse(None, refusal)
            .refusal
            .unwrap_or_else(|| Refusal::new(ErrorCode::Internal, "A refusal was lost."))
    }

    /// One poll: acknowledges everything below `ack`, then gives up to `max` of the oldest events, waiting for the
    /// first up to `wait`. A `wait` of zero spends the `polls` rate; a waiting poll is held until `pace` after the last
    /// answer that had events. The whole JSON body. Cancel safe: nothing is lost that was not acknowledged.
    ///
    /// # Errors
    /// `bad_request` for an `ack` beyond what was given, `rate_limited`, and `session_expired` once the `bye` was
    /// given.
    pub async fn poll(
        &self,
        ack: Option<u64>,
        wait: Duration,
        max: usize,
        pace: Duration,
    ) -> Result<Bytes, Refusal> {
        let began = clock::now();
        self.session.touch_at(began);
        let pull = self.outlet();
        if wait.is_zero() {
            self.session
                .take_poll()
                .map_err(|refusal| self.violated(refusal))?;
        }
        let _under_way = pull.under_way();
        let begun = pull.begin(ack).map_err(|given| {
            self.violated(Refusal::bad_request(format!(
                "ack is beyond {given}, the last next that was given."
            )))
        })?;
        if begun.is_over {
            self.session.rest_acknowledged();
            return Err(self.expired());
        }
        let number = begun.number;
        let mut timer = Timer {
            pull,
            sleep: begun.timer,
        };
        if wait.is_zero() {
            return Ok(self.give(max, began, false));
        }
        if let Some(last) = begun.last_full
            && last + pace > began
        {
            let held = (last + pace).min(began + wait);
            poll_fn(|cx| match pull.look(number, true, cx) {
                // A newer poll, and an end, still cut this short.
                Look::Ready | Look::Superseded => Poll::Ready(()),
                Look::Waiting => timer.poll(held, cx),
            })
            .await;
        }
        let is_superseded = poll_fn(|cx| match pull.look(number, false, cx) {
            Look::Ready => Poll::Ready(false),
            Look::Superseded => Poll::Ready(true),
            Look::Waiting => timer.poll(began + wait, cx).map(|()| false),
        })
        .await;
        let now = clock::now();
        self.session.touch_at(now);
        // What is kept when another poll has come is for that one.
        let max = if is_superseded { 0 } else { max };
        Ok(self.give(max, now, is_superseded))
    }

    fn give(&self, max: usize, now: Instant, superseded: bool) -> Bytes {
        let (body, is_told) = self.outlet().give(max, now, |page| body(&page, superseded));
        if is_told {
            self.session.scope.hub.rest_given.notify_waiters();
        }
        body
    }

    /// Ends the session as its client asked; the `bye` object, or the refusal where it had ended before. What was
    /// accepted so far still reaches the queue before the `bye`.
    pub async fn logout(&self) -> Reply {
        let Some(_turn) = self.outlet().turn(MAX_COMMANDS).await else {
            return self.refuse(None, too_many_commands());
        };
        if self.session.ended().is_some() {
            return self.expired_reply(None);
        }
        let slots = self.session.flush();
        self.log_out(None, slots.len()).await
    }

    async fn log_out(&self, id: Option<u64>, slots: usize) -> Reply {
        // Given up, the log-out happens all the same.
        struct EndOnDrop<'a>(&'a Arc<Session>);
        impl Drop for EndOnDrop<'_> {
            fn drop(&mut self) {
                self.0.end(CloseReason::Logout);
            }
        }
        let _end = EndOnDrop(&self.session);
        let flushed: Vec<_> = (0..slots)
            .filter_map(|_| self.outlet().take_reserved())
            .collect();
        for flushed in flushed {
            // Dropped where the session ends meanwhile.
            let _ = flushed.await;
        }
        if self.session.ended().is_some() {
            return self.expired_reply(id);
        }
        let bye = self.session.end_with(Ending {
            id,
            ..Ending::of(CloseReason::Logout)
        });
        Reply {
            json: bye.json(),
            refusal: None,
        }
    }
}

/// The one timer of a session's polls, left armed from one to the next: each poll may wait longer than the one before,
/// and most are answered long before their time, so it need hardly ever be moved.
struct Timer<'a> {
    pull: &'a PullOutlet,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer<'_> {
    fn poll(&mut self, deadline: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self
            .sleep
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        if let Some(sleep) = self.sleep.take() {
            self.pull.keep_timer(sleep);
        }
    }
}

fn too_many_commands() -> Refusal {
    let message = format!("{MAX_COMMANDS} commands are under way, which is the most.");
    Refusal::new(ErrorCode::TooMany, message)
}

fn body(page: &Page<'_>, superseded: bool) -> Bytes {
    let (mut first, mut next) = (itoa::Buffer::new(), itoa::Buffer::new());
    let head = "{\"events\":[";
    let tail = [
        "],\"first\":",
        first.format(page.first),
        ",\"next\":",
        next.format(page.next),
        if superseded {
            ",\"superseded\":true}"
        } else {
            "}"
        },
    ];
    let events: usize = page.events.clone().map(|event| event.len() + 1).sum();
    let tail_len: usize = tail.iter().map(|piece| piece.len()).sum();
    // To the byte, less a comma: with room to spare, sharing it would take another allocation.
    let mut body = Vec::with_capacity(head.len() + events.saturating_sub(1) + tail_len);
    body.extend_from_slice(head.as_bytes());
    for (index, event) in page.events.clone().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(event);
    }
    for piece in tail {
        body.extend_from_slice(piece.as_bytes());
    }
    body.into()
}
