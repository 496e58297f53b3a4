//! One client, whatever the transport: what it may do next, what it holds, and how it ends.
//!
//! A session owns everything that the server keeps for its client: the name, the memberships, the outlet with its
//! queue, the limits, its place with the reaper. Ending is one step that can come from any side, happens once, and
//! frees all of it. A session touches no socket; the wall clock only stamps what it proposes.

mod judging;
pub(crate) mod login;

pub(crate) use judging::Unattended;
#[cfg(test)]
pub(crate) use judging::{UNATTENDED, UNATTENDED_PER_ADDRESS};

use std::{
    borrow::Cow,
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::value::RawValue;

use crate::{
    CloseReason, End, ErrorCode, Granted, LeaveReason, Refusal,
    adapter::{Answer, Batch, CallbackAdapter, Delivery, LastWords, Outlet, Slot},
    clock::{self, AtomicInstant, Instant},
    config::OnAbuse,
    hub::BanKey,
    limit::{Bucket, address_key},
    lock::Mutex,
    manager::{Child, EndCause, Managed},
    message::{self, Command, Fields, Frame, Kind, Say, compact, field},
    names::{Name, check_room},
    plugin::{Draft, Rejection},
    reaper::{Expire, Watching},
    registry::{Ended, Reservation, SessionId},
    room::{Event, Membership, Proposal, Room, Ticket},
    rooms::{MayCreate, RoomPin},
    scope::{Peer, Scope},
    standing::{Standing, forbidden},
};

/// The largest object before log-in.
const STRANGER_FRAME_BYTES: usize = 8 << 10;
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
    pub(crate) held_up: AtomicBool,
    /// Speaks no chat: an echo for tests, which never logs in.
    pub(crate) is_echo: AtomicBool,
    /// Rules were broken too often; the session ends once the answer is out.
    is_abusive: AtomicBool,
    sends: Bucket,
    commands: Bucket,
    violations: Bucket,
    polls: Bucket,
    creations: OnceLock<Bucket>,
    /// What sets its principal apart, where anything does; from the log-in on.
    standing: OnceLock<Box<Standing>>,
    /// Held while the session ends, from the first change to the last. Hooks may end other sessions meanwhile, and so have
    /// several of these taken at once; none waits for another in a circle, since an end that has begun is seen before.
    ending: parking_lot::Mutex<()>,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    id: Option<SessionId>,
    name: Option<Name>,
    memberships: Vec<Arc<Membership>>,
    reservation: Option<Reservation>,
    watching: Option<Watching>,
    managed: Option<Arc<Managed>>,
    muted_until: Option<Instant>,
    failed_logins: u32,
    /// Whether the name is the client's own choice: a ban is then by address.
    is_anonymous: bool,
    /// Of the client's HTTP request, until it has logged in.
    headers: Vec<(String, String)>,
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
    /// Has to be awaited by whoever runs the session, which takes no other command before.
    Pending(Pending),
    /// A log-out: these slots are answered, with nothing, once everything so far has reached the client. Then whoever
    /// runs the session ends it.
    LogOut(Vec<Slot>),
    /// The session has ended.
    Ended,
}

/// A command that waits for somebody's word.
pub(crate) type Pending = Pin<Box<dyn Future<Output = Done> + Send>>;

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

impl Session {
    /// `opened`: when the connection was accepted, from which its log-in has so long.
    pub(crate) fn new(
        scope: Arc<Scope>,
        mut peer: Peer,
        outlet: Outlet,
        opened: Instant,
    ) -> Arc<Self> {
        let headers = std::mem::take(&mut peer.headers);
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
            standing: OnceLock::new(),
            ending: parking_lot::Mutex::default(),
            state: Mutex::new(State {
                phase: Phase::Fresh,
                id: None,
                name: None,
                memberships: Vec::new(),
                reservation: None,
                watching: None,
                managed: None,
                muted_until: None,
                failed_logins: 0,
                is_anonymous: false,
                headers,
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

    /// When the client was last heard, or written to where that counts.
    fn last_active(&self) -> Instant {
        let heard = self.active.load(self.scope.hub.origin);
        let written = self.peer.written.as_ref();
        written.map_or(heard, |written| heard.max(written.last()))
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

    /// Whether rules were broken too often.
    pub(crate) fn is_abusive(&self) -> bool {
        self.is_abusive.load(Ordering::Acquire)
    }

    fn ban_key(&self) -> BanKey {
        let state = self.state.lock();
        match &state.name {
            Some(name) if !state.is_anonymous => BanKey::Name(Arc::clone(&name.key)),
            _ => BanKey::Address(address_key(self.peer.address)),
        }
    }

    pub(crate) fn refused(&self, id: Option<u64>, refusal: Refusal) -> Answer {
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
        if let Err(wait) = self.take_command() {
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
        if self.is_active() && self.take_command().is_err() {
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

    /// Takes a token of the rate for commands, or says when there is one.
    pub(crate) fn take_command(&self) -> Result<(), Duration> {
        let own = self.standing.get().and_then(|own| own.commands.as_ref());
        own.unwrap_or(&self.commands).take()
    }

    /// `message_bytes` for this session.
    fn message_bytes(&self) -> usize {
        let own = self.standing.get().and_then(|own| own.message_bytes);
        own.unwrap_or(self.scope.hub.config.limits.message_bytes.0)
    }

    /// Whether `is_over` holds for it, if anybody vouched for it.
    pub(crate) fn granted(&self, is_over: impl Fn(Granted<'_>) -> bool) -> bool {
        let name = self.state.lock().name.clone();
        name.is_some_and(|name| {
            is_over(Granted {
                user: &name.shown,
                credential: self
                    .standing
                    .get()
                    .and_then(|own| own.credential.as_deref()),
            })
        })
    }

    /// Whether it may do what takes one of `roles`; where none is named, everybody may.
    fn has_one_of(&self, roles: &[String]) -> bool {
        roles.is_empty() || self.standing.get().is_some_and(|own| own.has_one_of(roles))
    }

    /// Whether it may enter a room, which need not be there.
    fn may_enter(&self, room: &str) -> Result<(), Refusal> {
        if self.standing.get().is_some_and(|own| !own.may_enter(room)) {
            return Err(forbidden("Your account may not enter that room."));
        }
        let options = self.scope.hub.rooms.options(room);
        if !self.has_one_of(&options.config.join_roles) {
            return Err(forbidden("Only some accounts may enter that room."));
        }
        Ok(())
    }

    /// The stay in a room that a command needs.
    fn stay(&self, room: &str) -> Result<Arc<Membership>, Refusal> {
        self.membership(room).ok_or_else(|| {
            self.may_enter(room).err().unwrap_or_else(|| {
                Refusal::new(
                    ErrorCode::NotJoined,
                    "You are no member of that room; join it first.",
                )
            })
        })
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
        let own = self.standing.get().and_then(|own| own.sends.as_ref());
        own.unwrap_or(&self.sends).take().map_err(too_often)?;
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
    fn room_name<'a>(&'a self, kind: Kind, fields: &Fields<'a>) -> Result<Cow<'a, str>, Refusal> {
        let named: Option<String> = field("room", "a string", fields.room)?;
        let name: Cow<'a, str> = match (named, &self.scope.hub.config.server.default_room) {
            (Some(name), _) => name.into(),
            (None, Some(default)) => default.as_str().into(),
            (None, None) => return Err(Refusal::bad_request("room must be there.")),
        };
        check_room(&name)?;
        let managed = self.state.lock().managed.clone();
        if managed.is_some_and(|managed| !managed.filter().allows(kind, Some(&name))) {
            return Err(forbidden("Your session may not do that there now."));
        }
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
        let room_name = self.room_name(Kind::Join, fields)?;
        let hub = &self.scope.hub;
        if let Some(membership) = self.membership(&room_name) {
            let slot = self.outlet.reserve();
            membership.room.init_again(&membership, slot, id);
            return Ok(Done::Barrier);
        }
        self.may_enter(&room_name)?;
        let own = self.standing.get().and_then(|own| own.rooms_per_session);
        let most = own.unwrap_or(hub.config.limits.rooms_per_session);
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
        let managed = self.state.lock().managed.clone();
        let timeout = hub.rooms.options(&room_name).config.member_timeout.0;
        if timeout.is_zero()
            && managed
                .as_ref()
                .is_none_or(|managed| !managed.wants_stays())
        {
            return self.enter(id, &room_name, None);
        }
        let (session, room_name) = (Arc::clone(self), room_name.into_owned());
        Ok(Done::Pending(Box::pin(async move {
            let child = Child::ask(&session, managed, &room_name, timeout).await;
            if session.ended().is_some() {
                return Done::Ended;
            }
            child
                .and_then(|child| session.enter(id, &room_name, child))
                .unwrap_or_else(|refusal| Done::Replied(session.refused(id, refusal)))
        })))
    }

    /// Proposes the join that was found to be in order.
    fn enter(
        self: &Arc<Self>,
        id: Option<u64>,
        room_name: &str,
        child: Option<Box<Child>>,
    ) -> Result<Done, Refusal> {
        let hub = &self.scope.hub;
        let pin = hub.rooms.enter(room_name, &**self)?;
        let room = Arc::clone(&pin.room);
        self.trace("A session joins a room.", room_name);
        let mut state = self.state.lock();
        // Under the lock from here: whoever ends the session meanwhile finds the membership, and leaves after the join.
        if state.phase != Phase::Active {
            return Ok(Done::Ended);
        }
        let name = state.name.clone().expect("an active session has a name");
        let account = child
            .as_ref()
            .map_or(&self.scope.stays, |child| child.account());
        let membership = Membership::new(Arc::clone(&room), hub.next_key(), account);
        if let Some(child) = child {
            let child = membership.child.get_or_init(|| child);
            child.watch(&membership);
        }
        state.memberships.push(Arc::clone(&membership));
        let slot = self.outlet.reserve();
        let ticket = Ticket {
            session: Arc::clone(self),
            slot,
            id,
        };
        let proposal = self.proposal(
            Event::Join {
                shared: hub.config.sessions.duplicate_login.side_by_side() > 1
                    && !state.is_anonymous,
            },
            name,
            Some(&membership),
            Some(ticket),
            Some(pin),
        );
        hub.log.submit(&room, proposal);
        Ok(Done::Barrier)
    }

    fn leave(self: &Arc<Self>, id: Option<u64>, fields: &Fields<'_>) -> Result<Done, Refusal> {
        let room_name = self.room_name(Kind::Leave, fields)?;
        let membership = self.stay(&room_name)?;
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
        drop(state);
        membership.end(EndCause::Stay(LeaveReason::Left));
        Ok(Done::Barrier)
    }

    /// Ends one stay from the server's side: the client is told by an unasked `left`.
    pub(crate) fn evict(self: &Arc<Self>, membership: &Arc<Membership>, reason: LeaveReason) {
        let mut state = self.state.lock();
        let held = |held: &Arc<Membership>| Arc::ptr_eq(held, membership);
        let Some(place) = state.memberships.iter().position(held) else {
            return;
        };
        state.memberships.remove(place);
        let name = state.name.clone().expect("a member has a name");
        tracing::debug!(transport = %self.scope.name, session = ?state.id, room = %membership.room.name, reason = reason.code(), "A session is put out of a room.");
        membership.evict();
        let pin = self.scope.hub.rooms.pin(&membership.room);
        let event = Event::Leave(reason);
        let proposal = self.proposal(event, name, Some(membership), None, Some(pin));
        self.scope.hub.log.submit(&membership.room, proposal);
        drop(state);
        membership.end(EndCause::Stay(reason));
    }

    /// How its manager's hooks know it.
    pub(crate) fn hook_key(&self) -> Option<Arc<str>> {
        let managed = self.state.lock().managed.clone();
        managed.map(|managed| Arc::clone(&managed.facts.key))
    }

    /// Hands the client an object of its manager's.
    pub(crate) fn tell(self: &Arc<Self>, frame: Frame) {
        match self.outlet.deliver(&mut Batch::new(vec![frame]), 0) {
            Delivery::Full => self.end(CloseReason::SlowConsumer),
            Delivery::Lost => self.end(CloseReason::Disconnected),
            Delivery::Taken(_) | Delivery::Closed => (),
        }
    }

    /// The client has its `session` object: what its manager had to say meanwhile follows.
    pub(crate) fn tell_early(self: &Arc<Self>) {
        let managed = self.state.lock().managed.clone();
        while let Some(early) = managed.as_ref().and_then(|managed| managed.take_early()) {
            for (frame, _) in early {
                self.tell(frame);
            }
        }
    }

    /// The idle timeout: its manager's word, or that of its transport.
    fn timeout(&self) -> Duration {
        let managed = self.state.lock().managed.clone();
        managed
            .and_then(|managed| managed.timeout())
            .unwrap_or(self.scope.timeout)
    }

    /// Its deadline has changed: the reaper looks at it now.
    pub(crate) fn watch_anew(self: &Arc<Self>) {
        let mut state = self.state.lock();
        if state.phase == Phase::Active {
            let watching = self.scope.hub.reaper.watch(self, clock::now());
            let before = state.watching.replace(watching);
            drop(state);
            drop(before);
        }
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
        let room_name = self.room_name(Kind::Send, fields)?;
        let membership = self.stay(&room_name)?;
        let room = &membership.room;
        if !self.has_one_of(&room.options.config.send_roles) {
            return Err(forbidden("Only some accounts may speak in that room."));
        }
        let too_often = |wait| {
            Refusal::new(ErrorCode::RateLimited, "The room gets messages too often.").retry(wait)
        };
        room.sends.take().map_err(too_often)?;
        let name = self.state.lock().name.clone();
        let name = name.expect("a member has a name");
        let hub = &self.scope.hub;
        let limit = self.message_bytes();
        let mut draft = Draft::new(
            &name.shown,
            &room.name,
            text,
            data.map(compact).transpose()?,
            limit,
        );
        let managed = self.state.lock().managed.clone();
        let child = membership.child.get().and_then(|child| child.context());
        draft.context = child
            .or_else(|| managed.as_ref()?.context())
            .map(Arc::as_ref);
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
        let room_name = self.room_name(Kind::Users, fields)?;
        let membership = self.stay(&room_name)?;
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
    pub(crate) fn membership(&self, room: &str) -> Option<Arc<Membership>> {
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
        if let Some(child) = membership.child.get() {
            child.touch();
        }
        membership.is_joined().then(|| Arc::clone(membership))
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
        let (was_active, id, name, memberships, reservation, watching, managed) = {
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
            let managed = state.managed.take();
            (
                was_active,
                state.id,
                name,
                memberships,
                reservation,
                watching,
                managed,
            )
        };
        drop(watching);
        // Stays first, the youngest before the oldest, then the session: whoever keeps something for them lets go of it.
        for membership in memberships.iter().rev() {
            membership.end(EndCause::Session(reason));
        }
        if let Some(managed) = managed {
            managed.end(EndCause::Session(reason));
        }
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
                let expires = self.standing.get().and_then(|own| own.expires);
                if expires.is_some_and(|expires| now >= expires) {
                    self.end(CloseReason::AuthExpired);
                    return None;
                }
                let sooner =
                    |next: Instant| Some(expires.map_or(next, |expires| expires.min(next)));
                let timeout = self.timeout();
                if timeout.is_zero() {
                    return expires;
                }
                let last = self.last_active();
                if now >= last + timeout {
                    scope.metrics.reaped.increment(1);
                    self.end(CloseReason::SessionExpired);
                    return None;
                }
                let half = last + timeout / 2;
                if now < half {
                    return sooner(half);
                }
                self.outlet.ping();
                sooner(last + timeout)
            }
        }
    }
}

fn not_yet(what: &str) -> Refusal {
    Refusal::bad_request(format!("{what} is not yet built."))
}
