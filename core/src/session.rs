//! One client, whatever the transport: what it may do next, what it holds, and how it ends.
//!
//! A session owns everything that the server keeps for its client: the name, the memberships, the outlet with its
//! queue, the limits, its place with the reaper. Ending is one step that can come from any side, happens once, and
//! frees all of it. A session touches no socket; the wall clock only stamps what it proposes.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::value::RawValue;
use tokio::time::{Sleep, sleep_until, timeout_at};

use crate::{
    CloseReason, End, ErrorCode, LeaveReason, Refusal,
    adapter::{
        Answer, CallbackAdapter, Delivery, LastWords, Load, Outlet, Progress, PushOutlet, Slot,
        TryWrite,
    },
    clock::{self, AtomicInstant, Instant},
    config::{DuplicateLogin, OnAbuse},
    hub::BanKey,
    limit::{Bucket, address_key},
    message::{
        self, Command, Fields, Frame, Framing, Kind, Malformed, Say, ToldLimits, compact, field,
    },
    names::{Name, check_room},
    plugin::{Credentials, Draft, Principal, PrincipalName, Rejection, Verdict},
    reaper::{Expire, Watching},
    registry::{Ended, Identity, Reservation, SessionId, Taken},
    room::{Event, Membership, Proposal, Room, Ticket},
    rooms::{MayCreate, RoomPin},
    scope::{Peer, Scope},
};

/// The protocol's version.
const PROTOCOL: u32 = 1;
/// The largest object before log-in.
const STRANGER_FRAME_BYTES: usize = 8 << 10;
/// Replies that a session may be owed while it runs further commands.
const MAX_OWED: usize = 64;
/// Sends that may await the log while a session runs further commands.
const MAX_UNANSWERED: usize = 16;
/// Names in a `users` page that asks for no number.
const DEFAULT_PAGE: usize = 100;

/// One client.
pub(crate) struct Session {
    pub(crate) scope: Arc<Scope>,
    pub(crate) outlet: Outlet,
    pub(crate) peer: Peer,
    /// Tells this session from every other of the process.
    pub(crate) key: u64,
    opened: Instant,
    /// When the client was last heard.
    active: AtomicInstant,
    /// The server itself does not read the client now: its idle clock stands still.
    held_up: AtomicBool,
    /// Speaks no chat: an echo for tests, which never logs in.
    is_echo: AtomicBool,
    /// Rules were broken too often; the session ends once the answer is out.
    is_abusive: AtomicBool,
    sends: Bucket,
    commands: Bucket,
    violations: Bucket,
    polls: Bucket,
    creations: OnceLock<Bucket>,
    /// Held while the session ends, from the first change to the last.
    ending: Mutex<()>,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    id: Option<SessionId>,
    name: Option<Name>,
    memberships: Vec<Arc<Membership>>,
    reservation: Option<Reservation>,
    watching: Option<Watching>,
    muted_until: Option<Instant>,
    failed_logins: u32,
    /// Whether the name is the client's own choice: a ban is then by address.
    is_anonymous: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Connected, not logged in.
    Fresh,
    Active,
    Ended(End),
}

/// What has become of a command.
pub(crate) enum Done {
    /// Answered.
    Replied(Answer),
    /// Will be answered through its slot; no other command runs before.
    Barrier,
    /// Will be answered through its slot. Who sends on waits while that room is behind.
    Slot(Arc<Room>),
    /// A log-in: whoever runs the session awaits it.
    LogIn(LogIn),
    /// A log-out: these slots are answered, with nothing, once everything so far has reached the client. Then whoever
    /// runs the session ends it.
    LogOut(Vec<Slot>),
    /// The session has ended.
    Ended,
}

/// How a session ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ending {
    pub(crate) reason: CloseReason,
    /// The command that the `bye` answers.
    pub(crate) id: Option<u64>,
    /// A WebSocket close code more precise than the reason's.
    pub(crate) close_code: Option<u16>,
    /// Whether there is anybody to say `bye` to.
    pub(crate) is_told: bool,
}

impl Ending {
    pub(crate) fn of(reason: CloseReason) -> Self {
        let is_told = reason != CloseReason::Disconnected;
        Self {
            reason,
            id: None,
            close_code: None,
            is_told,
        }
    }
}

/// A log-in under way.
pub(crate) type LogIn = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// What a client is told after its log-in.
#[derive(Debug, Clone)]
pub(crate) struct Welcome {
    pub(crate) session: String,
    user: Arc<str>,
    timeout: Duration,
    limits: ToldLimits,
}

impl Welcome {
    pub(crate) fn say(&self, id: Option<u64>, with_session: bool) -> Say<'_> {
        let timeout_ms = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
        Say::Session {
            id,
            session: with_session.then_some(&*self.session),
            user: &self.user,
            timeout_ms,
            ping_every_ms: timeout_ms / 2,
            resumed: false,
            protocol: PROTOCOL,
            limits: self.limits,
        }
    }
}

impl Session {
    /// `opened`: when the connection was accepted, from which its log-in has so long.
    pub(crate) fn new(scope: Arc<Scope>, peer: Peer, outlet: Outlet, opened: Instant) -> Arc<Self> {
        let now = clock::now();
        let limits = &scope.hub.config.limits;
        let polls = match &outlet {
            Outlet::Push(_) => crate::config::Rate::Unlimited,
            Outlet::Pull(_) => limits.polls,
        };
        Arc::new(Self {
            outlet,
            peer,
            key: scope.hub.next_key(),
            opened,
            active: AtomicInstant::new(scope.hub.origin, now),
            held_up: AtomicBool::new(false),
            is_echo: AtomicBool::new(false),
            is_abusive: AtomicBool::new(false),
            sends: Bucket::new(limits.sends),
            commands: Bucket::new(limits.commands),
            violations: Bucket::new(limits.violations),
            polls: Bucket::new(polls),
            creations: OnceLock::new(),
            ending: Mutex::new(()),
            state: Mutex::new(State {
                phase: Phase::Fresh,
                id: None,
                name: None,
                memberships: Vec::new(),
                reservation: None,
                watching: None,
                muted_until: None,
                failed_logins: 0,
                is_anonymous: false,
            }),
            scope,
        })
    }

    /// Has the reaper end the session if no log-in comes in time.
    pub(crate) fn watch_login(self: &Arc<Self>) {
        let watching = self
            .scope
            .hub
            .reaper
            .watch(self, self.opened + self.scope.login_timeout);
        self.state.lock().watching = Some(watching);
    }

    pub(crate) fn is_active(&self) -> bool {
        self.state.lock().phase == Phase::Active
    }

    pub(crate) fn ended(&self) -> Option<End> {
        match self.state.lock().phase {
            Phase::Ended(end) => Some(end),
            Phase::Fresh | Phase::Active => None,
        }
    }

    /// The client was heard.
    pub(crate) fn touch(&self) {
        self.touch_at(clock::now());
    }

    pub(crate) fn touch_at(&self, now: Instant) {
        self.active.store(self.scope.hub.origin, now);
    }

    /// The limit on one object from the client, which is tighter before log-in.
    pub(crate) fn frame_bytes(&self) -> usize {
        let limit = self.scope.hub.config.limits.frame_bytes.0;
        if self.is_active() {
            limit
        } else {
            limit.min(STRANGER_FRAME_BYTES)
        }
    }

    /// Takes a token of the rate for polls that do not wait.
    pub(crate) fn take_poll(&self) -> Result<(), Refusal> {
        let too_often = "Polls that do not wait come too often; poll with wait.";
        self.polls
            .take()
            .map_err(|wait| Refusal::new(ErrorCode::RateLimited, too_often).retry(wait))
    }

    /// The `error` object for a refusal, which is counted; too many, and the session will end or be muted.
    pub(crate) fn refuse(&self, id: Option<u64>, refusal: &Refusal) -> Frame {
        self.scope.hub.telemetry.refused_command(refusal.code);
        self.trace("A command was refused.", refusal.code.code());
        if refusal.code.is_violation() {
            self.violate();
        }
        Frame::from_json(&refusal.to_json(id))
    }

    /// Logs a step of the session, for whoever has asked for `debug`. The id is shown in short.
    fn trace(&self, step: &'static str, what: &str) {
        if tracing::enabled!(tracing::Level::DEBUG) {
            let id = self.state.lock().id;
            tracing::debug!(transport = %self.scope.name, session = ?id, what, "{step}");
        }
    }

    /// Counts a rule as broken.
    fn violate(&self) {
        if self.violations.take().is_ok() {
            return;
        }
        let hub = &self.scope.hub;
        match hub.config.limits.on_abuse {
            OnAbuse::End => self.is_abusive.store(true, Ordering::Release),
            OnAbuse::Mute(span) => {
                let now = clock::now();
                let mut state = self.state.lock();
                // Being refused while muted makes it no longer: who waits as told is heard.
                if state.muted_until.is_none_or(|until| until <= now) {
                    state.muted_until = Some(now + span);
                }
            }
            OnAbuse::Ban(span) => {
                hub.ban(self.ban_key(), span);
                self.is_abusive.store(true, Ordering::Release);
            }
        }
    }

    fn ban_key(&self) -> BanKey {
        let state = self.state.lock();
        match &state.name {
            Some(name) if !state.is_anonymous => BanKey::Name(Arc::clone(&name.key)),
            _ => BanKey::Address(address_key(self.peer.address)),
        }
    }

    fn refused(&self, id: Option<u64>, refusal: Refusal) -> Answer {
        Answer::refused(self.refuse(id, &refusal), refusal)
    }

    /// Runs one command, in the order of checks that the protocol gives.
    pub(crate) fn execute(self: &Arc<Self>, command: &Command<'_>) -> Done {
        let id = command.id;
        let answer = |result: Result<Done, Refusal>| {
            result.unwrap_or_else(|refusal| Done::Replied(self.refused(id, refusal)))
        };
        let Some(kind) = command.kind else {
            self.meter();
            return answer(Err(Refusal::new(
                ErrorCode::UnknownType,
                "The server knows no command of that type.",
            )));
        };
        let (is_fresh, muted_until) = {
            let state = self.state.lock();
            match state.phase {
                Phase::Ended(_) => return Done::Ended,
                Phase::Fresh => (true, None),
                Phase::Active => (false, state.muted_until),
            }
        };
        match (kind, is_fresh) {
            (Kind::Login, true) => return answer(self.log_in(command)),
            (Kind::Login, false) => {
                self.meter();
                return answer(Err(Refusal::new(
                    ErrorCode::AlreadyLoggedIn,
                    "There is a session already; log out first.",
                )));
            }
            (_, true) => return answer(Err(Refusal::new(ErrorCode::NotLoggedIn, "Log in first."))),
            (Kind::Logout, false) => return Done::LogOut(self.flush()),
            (_, false) => (),
        }
        if let Err(wait) = self.commands.take() {
            let refusal =
                Refusal::new(ErrorCode::RateLimited, "Commands come too often.").retry(wait);
            return answer(Err(refusal));
        }
        let fields = &command.fields;
        answer(match kind {
            Kind::Ping => Ok(Done::Replied(Frame::encode(&Say::Pong { id }).into())),
            Kind::Join => self.join(id, fields),
            Kind::Send => self
                .take_send(muted_until)
                .and_then(|()| self.send(id, fields)),
            Kind::Signal => self
                .take_send(muted_until)
                .and_then(|()| Err(not_yet("signal"))),
            Kind::Leave => self.leave(id, fields),
            Kind::Users => self.users(id, fields),
            Kind::History => Err(not_yet("history")),
            Kind::Login | Kind::Logout => unreachable!("handled above"),
        })
    }

    /// Spends the rate for commands on one that is refused before its rate is asked.
    fn meter(&self) {
        if self.is_active() && self.commands.take().is_err() {
            self.violate();
        }
    }

    /// Asks each room's lane to come by when it has handed over what was accepted so far.
    pub(crate) fn flush(self: &Arc<Self>) -> Vec<Slot> {
        let memberships = self.state.lock().memberships.clone();
        memberships
            .iter()
            .filter(|membership| membership.is_joined())
            .map(|membership| {
                let slot = self.outlet.reserve();
                membership.room.flush(membership, slot);
                slot
            })
            .collect()
    }

    fn take_send(&self, muted_until: Option<Instant>) -> Result<(), Refusal> {
        if let Some(until) = muted_until {
            let wait = until.saturating_duration_since(clock::now());
            if !wait.is_zero() {
                return Err(
                    Refusal::new(ErrorCode::RateLimited, "You are muted for a while.").retry(wait),
                );
            }
        }
        let too_often =
            |wait| Refusal::new(ErrorCode::RateLimited, "Messages come too often.").retry(wait);
        self.sends.take().map_err(too_often)?;
        let name = self.state.lock().name.clone();
        name.map_or(Ok(()), |name| {
            self.scope
                .hub
                .sends_per_user
                .take(name.key)
                .map_err(too_often)
        })
    }

    /// The room that a command names, or the default one.
    fn room_name<'a>(&'a self, fields: &Fields<'a>) -> Result<std::borrow::Cow<'a, str>, Refusal> {
        let named: Option<String> = field("room", "a string", fields.room)?;
        let name: std::borrow::Cow<'a, str> =
            match (named, &self.scope.hub.config.server.default_room) {
                (Some(name), _) => name.into(),
                (None, Some(default)) => default.as_str().into(),
                (None, None) => return Err(Refusal::bad_request("room must be there.")),
            };
        check_room(&name)?;
        Ok(name)
    }

    fn join(self: &Arc<Self>, id: Option<u64>, fields: &Fields<'_>) -> Result<Done, Refusal> {
        #[derive(serde::Deserialize)]
        #[expect(
            dead_code,
            reason = "recovery is not built: what is said is checked and then answered with recovered:false"
        )]
        struct Since {
            epoch: String,
            seq: u64,
        }
        let since = "an object with epoch and seq";
        field::<Since>("since", since, fields.since)?;
        let room_name = self.room_name(fields)?;
        let hub = &self.scope.hub;
        if let Some(membership) = self.membership(&room_name) {
            let slot = self.outlet.reserve();
            membership.room.init_again(&membership, slot, id);
            return Ok(Done::Barrier);
        }
        let most = hub.config.limits.rooms_per_session;
        let (rooms, is_under_way) = {
            let mut state = self.state.lock();
            state.memberships.retain(|held| !held.is_refused());
            let is_under_way = |held: &Arc<Membership>| *held.room.name == *room_name;
            (
                state.memberships.len(),
                state.memberships.iter().any(is_under_way),
            )
        };
        if is_under_way {
            // Its request was given up, and its log has not answered yet.
            let refusal = Refusal::new(ErrorCode::Unavailable, "You are being let into that room.");
            return Err(refusal.retry(Duration::from_millis(100)));
        }
        if rooms >= most {
            let message = format!("You are in {most} rooms, which is the most; leave one first.");
            return Err(Refusal::new(ErrorCode::TooMany, message));
        }
        let pin = hub.rooms.enter(&room_name, &**self)?;
        let room = Arc::clone(&pin.room);
        self.trace("A session joins a room.", &room_name);
        let mut state = self.state.lock();
        // Under the lock from here: whoever ends the session meanwhile finds the membership, and leaves after the join.
        if state.phase != Phase::Active {
            return Ok(Done::Ended);
        }
        let name = state.name.clone().expect("an active session has a name");
        let membership = Membership::new(Arc::clone(&room), hub.next_key());
        state.memberships.push(Arc::clone(&membership));
        let slot = self.outlet.reserve();
        let ticket = Ticket {
            session: Arc::clone(self),
            slot,
            id,
        };
        let proposal = self.proposal(
            Event::Join,
            name,
            Some(&membership),
            Some(ticket),
            Some(pin),
        );
        hub.log.submit(&room, proposal);
        Ok(Done::Barrier)
    }

    fn leave(self: &Arc<Self>, id: Option<u64>, fields: &Fields<'_>) -> Result<Done, Refusal> {
        let room_name = self.room_name(fields)?;
        let membership = self.membership(&room_name).ok_or_else(not_joined)?;
        self.trace("A session leaves a room.", &room_name);
        let mut state = self.state.lock();
        let Some(place) = state
            .memberships
            .iter()
            .position(|held| Arc::ptr_eq(held, &membership))
        else {
            return Ok(Done::Ended);
        };
        state.memberships.remove(place);
        let name = state.name.clone().expect("a member has a name");
        let ticket = Ticket {
            session: Arc::clone(self),
            slot: self.outlet.reserve(),
            id,
        };
        let pin = self.scope.hub.rooms.pin(&membership.room);
        let event = Event::Leave(LeaveReason::Left);
        let proposal = self.proposal(event, name, Some(&membership), Some(ticket), Some(pin));
        self.scope.hub.log.submit(&membership.room, proposal);
        Ok(Done::Barrier)
    }

    fn send(self: &Arc<Self>, id: Option<u64>, fields: &Fields<'_>) -> Result<Done, Refusal> {
        let text: Option<String> = field("text", "a string", fields.text)?;
        let data: Option<&RawValue> = fields.data;
        if text.is_none() && data.is_none() {
            return Err(Refusal::bad_request("text or data must be there."));
        }
        if fields.key.is_some() {
            return Err(not_yet("key"));
        }
        let room_name = self.room_name(fields)?;
        let membership = self.membership(&room_name).ok_or_else(not_joined)?;
        let room = &membership.room;
        let too_often = |wait| {
            Refusal::new(ErrorCode::RateLimited, "The room gets messages too often.").retry(wait)
        };
        room.sends.take().map_err(too_often)?;
        let name = self.state.lock().name.clone().ok_or_else(not_joined)?;
        let hub = &self.scope.hub;
        let limit = hub.config.limits.message_bytes.0;
        let mut draft = Draft::new(
            &name.shown,
            &room.name,
            text,
            data.map(compact).transpose()?,
            limit,
        );
        for validator in &room.options.validators {
            validator
                .check(&mut draft)
                .map_err(|rejection| match rejection {
                    Rejection::Empty => {
                        Refusal::new(ErrorCode::MessageEmpty, "The message is empty.")
                    }
                    Rejection::TooLong => {
                        let message = format!("The message is over {limit} bytes.");
                        Refusal::new(ErrorCode::MessageTooLong, message)
                    }
                    Rejection::Rejected(reason) => Refusal::new(ErrorCode::MessageRejected, reason),
                })?;
        }
        let Draft { text, data, .. } = draft;
        // Escapes make a text longer; a validator may too.
        if message::told_len(text.as_deref(), data.as_deref())
            > hub.config.limits.server_frame_bytes.0
        {
            let message = "The message is too long once it is written for the members.";
            return Err(Refusal::new(ErrorCode::MessageTooLong, message));
        }
        let event = Event::Message { text, data };
        let ticket = Ticket {
            session: Arc::clone(self),
            slot: self.outlet.reserve(),
            id,
        };
        let proposal = self.proposal(event, name.clone(), Some(&membership), Some(ticket), None);
        hub.log.submit(room, proposal);
        Ok(Done::Slot(Arc::clone(room)))
    }

    fn users(self: &Arc<Self>, id: Option<u64>, fields: &Fields<'_>) -> Result<Done, Refusal> {
        let after: Option<String> = field("after", "a string", fields.after)?;
        let limit: Option<usize> = field("limit", "a positive integer", fields.limit)?;
        if limit == Some(0) {
            return Err(Refusal::bad_request("limit must be a positive integer."));
        }
        let room_name = self.room_name(fields)?;
        let membership = self.membership(&room_name).ok_or_else(not_joined)?;
        let hub = &self.scope.hub;
        let most = hub.config.limits.page_names;
        let limit = limit.unwrap_or(DEFAULT_PAGE).min(most);
        let after = after.map(|after| hub.config.names.order(&after));
        Ok(Done::Replied(
            membership.room.page(id, after.as_deref(), limit).into(),
        ))
    }

    fn proposal(
        &self,
        event: Event,
        name: Name,
        membership: Option<&Arc<Membership>>,
        ticket: Option<Ticket>,
        pin: Option<RoomPin>,
    ) -> Proposal {
        Proposal {
            event,
            name,
            key: membership.map_or(0, |membership| membership.key),
            at: self.scope.hub.wall.unix_millis(),
            submitted: clock::now(),
            ticket,
            membership: membership.cloned(),
            pin: pin.map(Arc::new),
        }
    }

    /// The session's stay in that room.
    fn membership(&self, room: &str) -> Option<Arc<Membership>> {
        let mut state = self.state.lock();
        let place = state
            .memberships
            .iter()
            .position(|membership| &*membership.room.name == room)?;
        if state.memberships[place].is_refused() {
            state.memberships.remove(place);
            return None;
        }
        let membership = &state.memberships[place];
        membership.is_joined().then(|| Arc::clone(membership))
    }

    /// Reads a `login` as far as that needs nobody's verdict.
    fn log_in(self: &Arc<Self>, command: &Command<'_>) -> Result<Done, Refusal> {
        let result = self.credentials(&command.fields);
        let login = match result {
            Ok(credentials) => self.begin_login(command.id, credentials),
            Err(refusal) => {
                self.count_failed_login(refusal.code);
                return Err(refusal);
            }
        };
        Ok(Done::LogIn(login))
    }

    /// A log-in with those credentials, ready to be awaited.
    pub(crate) fn begin_login(
        self: &Arc<Self>,
        id: Option<u64>,
        credentials: Credentials,
    ) -> LogIn {
        let session = Arc::clone(self);
        Box::pin(async move {
            match session.try_login(credentials).await {
                Ok(welcome) => Frame::encode(&welcome.say(id, true)).into(),
                Err(refusal) => {
                    session.count_failed_login(refusal.code);
                    session.refused(id, refusal)
                }
            }
        })
    }

    fn count_failed_login(&self, code: ErrorCode) {
        // What is not the peer's doing does not use up its attempts.
        if !matches!(
            code,
            ErrorCode::Unavailable
                | ErrorCode::ShuttingDown
                | ErrorCode::RateLimited
                | ErrorCode::TooMany
                | ErrorCode::Internal
        ) {
            self.state.lock().failed_logins += 1;
        }
    }

    /// Whether the connection has used up its attempts to log in.
    fn has_failed(&self) -> bool {
        let state = self.state.lock();
        state.phase == Phase::Fresh
            && state.failed_logins >= self.scope.hub.config.sessions.login_attempts
    }

    /// Whether rules were broken too often.
    pub(crate) fn is_abusive(&self) -> bool {
        self.is_abusive.load(Ordering::Acquire)
    }

    /// What a `login` object presents.
    pub(crate) fn credentials(&self, fields: &Fields<'_>) -> Result<Credentials, Refusal> {
        let protocol: Option<u32> = field("protocol", "an integer", fields.protocol)?;
        if protocol.is_some_and(|protocol| protocol != PROTOCOL) {
            return Err(Refusal::bad_request("protocol must be 1."));
        }
        let user: Option<String> = field("user", "a string", fields.user)?;
        let password: Option<String> = field("password", "a string", fields.password)?;
        let token: Option<String> = field("token", "a string", fields.token)?;
        let resume: Option<String> = field("resume", "a string", fields.resume)?;
        field::<bool>("cookie", "true or false", fields.cookie)?;
        let resumable: Option<bool> = field("resumable", "true or false", fields.resumable)?;
        let kinds = [password.is_some(), token.is_some(), resume.is_some()];
        if kinds.into_iter().filter(|there| *there).count() > 1 {
            return Err(Refusal::bad_request(
                "Only one of password, token and resume may be there.",
            ));
        }
        if token.is_some() && user.is_some() {
            return Err(Refusal::bad_request(
                "user and token can't both be there: a token says whose it is.",
            ));
        }
        if password.is_some() && user.is_none() {
            return Err(Refusal::bad_request("user must be there beside password."));
        }
        if resumable == Some(true) {
            return Err(not_yet("resumable"));
        }
        if let Some(id) = resume {
            return Err(self.scope.hub.cannot_resume(&id));
        }
        Ok(Credentials {
            user,
            password: password.map(Into::into),
            token: token.map(Into::into),
        })
    }

    /// Asks the chain and, allowed, takes the name and begins.
    pub(crate) async fn try_login(
        self: &Arc<Self>,
        credentials: Credentials,
    ) -> Result<Welcome, Refusal> {
        let hub = &self.scope.hub;
        if hub.is_draining() {
            return Err(
                Refusal::new(ErrorCode::ShuttingDown, "The server is stopping.")
                    .retry(hub.retry_after_drain()),
            );
        }
        let address = address_key(self.peer.address);
        let claimed = credentials.user.as_deref().filter(|user| user.len() <= 256);
        let claimed = claimed.map(|user| hub.config.names.key(user));
        let is_bare = credentials.password.is_none() && credentials.token.is_none();
        let wait = [
            claimed
                .as_ref()
                .filter(|_| !is_bare)
                .and_then(|name| hub.banned(&BanKey::Name(Arc::clone(name)))),
            is_bare
                .then(|| hub.banned(&BanKey::Address(address)))
                .flatten(),
            hub.failures_per_ip.dry(&address),
            claimed
                .as_ref()
                .and_then(|name| hub.failures_per_name.dry(name)),
        ];
        if let Some(wait) = wait.into_iter().flatten().max() {
            return Err(
                Refusal::new(ErrorCode::RateLimited, "Log-ins are refused for a while.")
                    .retry(wait),
            );
        }
        // Whoever hangs up before the verdict has had it judged all the same, and pays as for a denial.
        let mut attempt = Attempt {
            session: self,
            address,
            claimed,
            is_failure: true,
        };
        let (verdict, authenticator) = self
            .scope
            .authenticate(credentials, self.peer.address)
            .await;
        // Only a denial counts towards a throttle: what is our fault never does.
        attempt.is_failure = matches!(verdict, Verdict::Deny { .. });
        drop(attempt);
        match verdict {
            Verdict::Allow(principal) => self.admit(&principal, &authenticator),
            Verdict::Unavailable { retry } => {
                let message = "Log-ins can't be checked now; try again after retry_ms.";
                Err(Refusal::new(ErrorCode::Unavailable, message).retry(retry))
            }
            Verdict::Deny { reason, public } => {
                tracing::debug!(transport = %self.scope.name, reason, "A log-in was denied.");
                let refusal = Refusal::auth_failed();
                Err(public.map_or(refusal, |public| {
                    Refusal::new(ErrorCode::AuthFailed, public)
                }))
            }
            Verdict::Abstain => unreachable!("a chain never abstains"),
        }
    }

    /// Takes the principal's name, ends who had it before where the policy says so, and begins the session.
    fn admit(
        self: &Arc<Self>,
        principal: &Principal,
        authenticator: &Arc<str>,
    ) -> Result<Welcome, Refusal> {
        let hub = &self.scope.hub;
        let name = hub.config.names.canonical(&principal.name)?;
        let is_anonymous = matches!(principal.name, PrincipalName::Chosen { .. });
        if !is_anonymous && let Some(wait) = hub.banned(&BanKey::Name(Arc::clone(&name.key))) {
            return Err(
                Refusal::new(ErrorCode::RateLimited, "Log-ins are refused for a while.")
                    .retry(wait),
            );
        }
        let identity = (!is_anonymous).then(|| Identity {
            authenticator: Arc::clone(authenticator),
            user: Arc::clone(&name.key),
        });
        let in_use = || Refusal::new(ErrorCode::NameInUse, "Somebody has that name now.");
        let id = SessionId::random().ok_or_else(|| {
            Refusal::new(ErrorCode::Internal, "The server has no randomness to give.")
        })?;
        loop {
            let mut state = self.state.lock();
            if state.phase != Phase::Fresh {
                return Err(login_overran());
            }
            match hub.registry.reserve(&name.key, identity.as_ref(), self) {
                Err(Taken::Same(old) | Taken::Other(old)) if old.ended().is_some() => {
                    drop(state);
                    // It is about to let go of the name, and has to leave its rooms before.
                    drop(old.ending.lock());
                }
                Err(Taken::Same(old))
                    if hub.config.sessions.duplicate_login == DuplicateLogin::Replace =>
                {
                    drop(state);
                    // Synchronous: the old session is gone before the new one is told of its own.
                    old.end(CloseReason::Replaced);
                }
                Err(_) => return Err(in_use()),
                Ok(reservation) => {
                    if !hub.registry.register(id, self) {
                        drop(state);
                        drop(reservation);
                        return Err(Refusal::new(
                            ErrorCode::TooMany,
                            "There are as many sessions as there may be.",
                        ));
                    }
                    state.phase = Phase::Active;
                    state.id = Some(id);
                    state.name = Some(name.clone());
                    state.reservation = Some(reservation);
                    state.is_anonymous = is_anonymous;
                    self.scope.metrics.created.increment(1);
                    self.scope.metrics.live.increment(1);
                    break;
                }
            }
        }
        if hub.is_draining() {
            // The drain may have looked for sessions already.
            self.end(CloseReason::ShuttingDown);
            return Err(
                Refusal::new(ErrorCode::ShuttingDown, "The server is stopping.")
                    .retry(hub.retry_after_drain()),
            );
        }
        self.touch();
        let timeout = self.scope.timeout;
        let watching =
            (!timeout.is_zero()).then(|| hub.reaper.watch(self, clock::now() + timeout / 2));
        let before = {
            let mut state = self.state.lock();
            // Ended meanwhile: then nothing is left to watch.
            if state.phase == Phase::Active {
                std::mem::replace(&mut state.watching, watching)
            } else {
                watching
            }
        };
        drop(before);
        tracing::debug!(transport = %self.scope.name, session = ?id, "A session began.");
        let limits = &hub.config.limits;
        Ok(Welcome {
            session: id.encode(),
            user: name.shown,
            timeout,
            limits: ToldLimits {
                message_bytes: limits.message_bytes.0,
                frame_bytes: limits.frame_bytes.0,
                server_frame_bytes: limits.server_frame_bytes.0,
            },
        })
    }

    /// Ends the session, once: the client is told, its rooms are left, its name is free.
    pub(crate) fn end(self: &Arc<Self>, reason: CloseReason) {
        self.end_with(Ending::of(reason));
    }

    /// The same, with what there is to say about it. Returns the `bye`.
    pub(crate) fn end_with(self: &Arc<Self>, ending: Ending) -> Frame {
        let Ending {
            reason,
            id: command,
            close_code,
            is_told,
        } = ending;
        let hub = &self.scope.hub;
        let _ending = self.ending.lock();
        let retry_ms = reason.may_return().then(|| hub.retry_ms(reason));
        let bye = Frame::encode(&Say::Bye {
            id: command,
            code: reason,
            message: reason.advice(),
            retry_ms,
        });
        let end = End { reason, retry_ms };
        let (was_active, id, name, memberships, reservation, watching) = {
            let mut state = self.state.lock();
            let was_active = match state.phase {
                Phase::Ended(_) => return bye,
                Phase::Fresh => false,
                Phase::Active => true,
            };
            state.phase = Phase::Ended(end);
            let name = state.name.clone();
            let memberships = std::mem::take(&mut state.memberships);
            let (reservation, watching) = (state.reservation.take(), state.watching.take());
            (
                was_active,
                state.id,
                name,
                memberships,
                reservation,
                watching,
            )
        };
        drop(watching);
        if let (Some(name), Some(leave)) = (name, reason.leave_reason()) {
            // Children first, in the reverse of the order in which they came.
            for membership in memberships.into_iter().rev() {
                let pin = hub.rooms.pin(&membership.room);
                let event = Event::Leave(leave);
                let proposal =
                    self.proposal(event, name.clone(), Some(&membership), None, Some(pin));
                hub.log.submit(&membership.room, proposal);
            }
        }
        // Free before the client hears of its end: it may come back at once. Whoever asks for the name before this
        // waits for it.
        drop(reservation);
        if let Some(id) = id {
            let rest = self.is_pull().then(|| Arc::clone(self));
            hub.registry.end(id, Ended { end, rest });
        }
        let code = close_code.unwrap_or_else(|| reason.websocket_code());
        // An echo speaks the transport's protocol and no other.
        let speaks_chat = !self.is_echo.load(Ordering::Relaxed);
        self.outlet.close(&LastWords {
            bye: (is_told && speaks_chat).then_some(&bye),
            closing: is_told.then_some((code, reason.code())),
            drop_queue: reason == CloseReason::SlowConsumer,
        });
        if was_active {
            self.scope.metrics.ended(reason);
        } else {
            hub.registry.dismiss(self);
            self.scope.metrics.stranger_ended(reason);
        }
        tracing::debug!(transport = %self.scope.name, session = ?id, reason = reason.code(), "A session ended.");
        bye
    }

    /// A polling session that has ended has acknowledged its last events: they need not be kept.
    pub(crate) fn rest_acknowledged(&self) {
        let id = self.state.lock().id;
        if let Some(id) = id {
            self.scope.hub.registry.rest_acknowledged(id);
        }
    }

    pub(crate) fn is_pull(&self) -> bool {
        matches!(self.outlet, Outlet::Pull(_))
    }

    /// Whether a polling session that has ended was given its last events.
    pub(crate) fn is_told(&self) -> bool {
        match &self.outlet {
            Outlet::Push(_) => true,
            Outlet::Pull(pull) => pull.is_told(),
        }
    }
}

/// A log-in that is being judged.
struct Attempt<'a> {
    session: &'a Session,
    address: std::net::IpAddr,
    /// The key of the name that it claims.
    claimed: Option<Arc<str>>,
    is_failure: bool,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        // Cut off by the server's own clock or its end: not the peer's doing.
        let is_ours = self.session.ended().is_some_and(|end| {
            matches!(
                end.reason,
                CloseReason::LoginTimeout | CloseReason::ShuttingDown
            )
        });
        if self.is_failure && !is_ours {
            let hub = &self.session.scope.hub;
            let _ = hub.failures_per_ip.take(self.address);
            if let Some(name) = self.claimed.take() {
                let _ = hub.failures_per_name.take(name);
            }
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl MayCreate for Session {
    fn may_create(&self) -> Result<(), Refusal> {
        let hub = &self.scope.hub;
        let rate = hub.config.limits.room_creations;
        let too_often =
            |wait| Refusal::new(ErrorCode::RateLimited, "You create rooms too often.").retry(wait);
        self.creations
            .get_or_init(|| Bucket::new(rate))
            .take()
            .map_err(too_often)?;
        hub.creations_per_ip
            .take(address_key(self.peer.address))
            .map_err(too_often)
    }
}

impl Expire for Session {
    fn expire(self: Arc<Self>, now: Instant) -> Option<Instant> {
        let phase = self.state.lock().phase;
        let scope = &self.scope;
        match phase {
            Phase::Ended(_) => None,
            Phase::Fresh if !self.is_echo.load(Ordering::Relaxed) => {
                let deadline = self.opened + scope.login_timeout;
                if now < deadline {
                    return Some(deadline);
                }
                scope.metrics.reaped.increment(1);
                self.end(CloseReason::LoginTimeout);
                None
            }
            Phase::Fresh | Phase::Active => {
                let polled = matches!(&self.outlet, Outlet::Pull(pull) if pull.is_polled());
                if polled || self.held_up.load(Ordering::Relaxed) {
                    self.touch_at(now);
                }
                if scope.timeout.is_zero() {
                    return None;
                }
                let last = self.active.load(scope.hub.origin);
                if now >= last + scope.timeout {
                    scope.metrics.reaped.increment(1);
                    self.end(CloseReason::SessionExpired);
                    return None;
                }
                let half = last + scope.timeout / 2;
                if now < half {
                    return Some(half);
                }
                self.outlet.ping();
                Some(last + scope.timeout)
            }
        }
    }
}

/// The log-in was not judged in its time.
pub(crate) fn login_overran() -> Refusal {
    let message = "The log-in took too long; try again.";
    Refusal::new(ErrorCode::Unavailable, message).retry(Duration::from_secs(1))
}

fn not_joined() -> Refusal {
    Refusal::new(
        ErrorCode::NotJoined,
        "You are no member of that room; join it first.",
    )
}

fn not_yet(what: &str) -> Refusal {
    Refusal::bad_request(format!("{what} is not yet built."))
}

/// A session on a connection that stays open, driven by the connection's task. Dropped, it ends as `disconnected`.
///
/// The task gives it whole frames with [`handle_frame`](Self::handle_frame) while [`is_ready`](Self::is_ready), and
/// polls it whenever it is woken and before it waits: that writes replies, finishes what was begun, and tells when the
/// connection is to be closed.
pub struct PushSession {
    session: Arc<Session>,
    login: Option<LogIn>,
    /// A command that waits until earlier ones are answered.
    held: Option<Box<[u8]>>,
    /// No other command before every reply is out.
    barrier: bool,
    /// A log-out under way, with the id of its command.
    logout: Option<Option<u64>>,
    /// The room whose lane is behind.
    behind: Option<Arc<Room>>,
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
            login: None,
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
        self.login.is_none()
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
        match self.session.execute(command) {
            Done::Replied(answer) => self.reply(answer),
            Done::LogIn(login) => self.login = Some(login),
            Done::Barrier => self.barrier = true,
            Done::LogOut(slots) => {
                self.barrier = !slots.is_empty();
                self.logout = Some(command.id);
            }
            Done::Slot(room) => {
                self.note_load();
                self.behind = room.is_backlogged().then_some(room);
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
        if let Err(wait) = self.session.commands.take() {
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
            self.poll_login(cx);
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
                self.login = None;
                self.held = None;
                self.behind = None;
            }
            let progress = self.outlet().poll_flush(cx);
            let load = self.note_load();
            // While the server, or a queue that the client still takes from, holds it up, its idle clock stands still;
            // a queue without progress has a time of its own.
            let held_up = self.login.is_some()
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

    fn poll_login(&mut self, cx: &mut Context<'_>) {
        if let Some(login) = &mut self.login
            && let Poll::Ready(answer) = login.as_mut().poll(cx)
        {
            self.login = None;
            self.reply(answer);
        }
    }

    fn poll_behind(&mut self, cx: &mut Context<'_>) {
        if let Some(room) = &self.behind
            && room.poll_backlog(cx).is_ready()
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
