//! A room: a fold over its log, the same on every node that reads the log.
//!
//! [`Fold`] is pure: it has no clock and does no I/O, and two folds that saw the same events are equal. [`Room`] keeps
//! one behind its lock, takes ordered events from the [`Log`](crate::log::Log), and posts what they mean to the room's
//! lane before the lock is released. So the order of the log is the order of the lane.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use serde_json::value::RawValue;

use crate::{
    ErrorCode, LeaveReason, Refusal,
    account::{Account, Holding, SHARE},
    adapter::{Answer, CallbackAdapter, Slot},
    clock::Instant,
    config::{HistoryLimits, Presence, RoomConfig},
    lane::{LaneCommand, LaneInbox},
    limit::Bucket,
    lock::Mutex,
    manager::{Child, EndCause},
    message::{Frame, List, Say, listed_len},
    names::Name,
    plugin::Validator,
    rooms::RoomPin,
    session::Session,
};

/// Ordered events that may wait for one before them. A log that runs further ahead has to deliver them again.
const MAX_HELD: usize = 1024;
/// What the fields of an `init`, `users` or `presence` take at most beside the names.
const LIST_OVERHEAD: usize = 1024;

/// Tells one stay of a session from every other member of its room.
pub(crate) type MemberKey = u64;

/// What a room is like, as its tables say.
pub(crate) struct RoomOptions {
    pub(crate) config: RoomConfig,
    pub(crate) validators: Vec<Arc<dyn Validator>>,
    /// Whether texts are HTML-escaped, which `init` tells.
    pub(crate) escapes: bool,
    /// Whether a table of its own matches the room.
    pub(crate) configured: bool,
}

/// One stay of a session in a room, shared by the session and the lane.
pub(crate) struct Membership {
    pub(crate) room: Arc<Room>,
    pub(crate) key: MemberKey,
    joined: AtomicBool,
    refused: AtomicBool,
    /// It alone was ended by the server, which its session is told.
    evicted: AtomicBool,
    /// What a manager, or a time of its own, needs to be kept.
    pub(crate) child: OnceLock<Box<Child>>,
    /// Where the lane keeps it; the lane's alone.
    pub(crate) place: AtomicU32,
    _held: Holding,
}

impl Membership {
    /// Not in the lane's list.
    pub(crate) const NOWHERE: u32 = u32::MAX;
    /// What it takes, whatever else is kept for it.
    const BYTES: usize = SHARE + size_of::<Self>();

    pub(crate) fn new(room: Arc<Room>, key: MemberKey, account: &Arc<Account>) -> Arc<Self> {
        Arc::new(Self {
            room,
            key,
            joined: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            evicted: AtomicBool::new(false),
            child: OnceLock::new(),
            place: AtomicU32::new(Self::NOWHERE),
            _held: account.hold(Self::BYTES),
        })
    }

    /// Whether the fold has taken the join.
    pub(crate) fn is_joined(&self) -> bool {
        self.joined.load(Ordering::Acquire)
    }

    /// The server ends it alone.
    pub(crate) fn evict(&self) {
        self.evicted.store(true, Ordering::Release);
    }

    /// Whoever keeps something for it is told that it is over. No lock may be held.
    pub(crate) fn end(&self, cause: EndCause) {
        if let Some(child) = self.child.get() {
            child.end(cause);
        }
    }

    /// Whether the fold has refused the join.
    pub(crate) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Acquire)
    }
}

/// A change of a room that wants its place in the log.
#[derive(Clone)]
pub struct Proposal {
    pub(crate) event: Event,
    pub(crate) name: Name,
    pub(crate) key: MemberKey,
    /// Milliseconds since the epoch, by the clock of the node that proposes.
    pub(crate) at: u64,
    /// When it was submitted, for the metric.
    pub(crate) submitted: Instant,
    /// Whom to answer on this node.
    pub(crate) ticket: Option<Ticket>,
    /// The stay that begins or ends on this node.
    pub(crate) membership: Option<Arc<Membership>>,
    /// Keeps an empty room from being given up before the join has its place.
    pub(crate) pin: Option<Arc<RoomPin>>,
}

impl std::fmt::Debug for Proposal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proposal")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Event {
    Join {
        /// Sessions of one user live side by side: a namesake is the same user once more.
        shared: bool,
    },
    Leave(LeaveReason),
    Message {
        text: Option<String>,
        data: Option<Box<RawValue>>,
    },
}

/// Whose command a proposal came from.
#[derive(Clone)]
pub(crate) struct Ticket {
    pub(crate) session: Arc<Session>,
    pub(crate) slot: Slot,
    pub(crate) id: Option<u64>,
}

impl Ticket {
    fn answer(&self, say: &Say<'_>) {
        self.session
            .outlet
            .complete(self.slot, Frame::encode(say).into());
    }

    /// Only counted as refused, never as a violation: this runs under the room's lock, and perhaps the session's.
    fn refuse(&self, refusal: Refusal) {
        let telemetry = &self.session.scope.hub.telemetry;
        telemetry.refused_command(refusal.code);
        let frame = Frame::from_json(&refusal.to_json(self.id));
        self.session
            .outlet
            .complete(self.slot, Answer::refused(frame, refusal));
    }
}

/// A change of membership, for a room that tells presence in batches.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) name: Arc<str>,
    pub(crate) joined: bool,
    pub(crate) rev: u64,
    pub(crate) count: usize,
    /// Without it the count alone is told.
    pub(crate) named: bool,
}

/// What the members are told of a change of membership.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    pub(crate) event: Option<Frame>,
    pub(crate) change: Option<Change>,
}

/// The state of a room as its events made it.
#[derive(Debug)]
pub(crate) struct Fold {
    room: Arc<str>,
    epoch: String,
    seq: u64,
    rev: u64,
    form: Presence,
    /// In the order of names.
    members: BTreeMap<Arc<str>, Member>,
    ring: Ring,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    shown: Arc<str>,
    key: MemberKey,
    /// Further stays of the same user.
    more: Vec<MemberKey>,
}

impl Member {
    fn has(&self, key: MemberKey) -> bool {
        self.key == key || self.more.contains(&key)
    }
}

impl Fold {
    pub(crate) fn new(room: Arc<str>, epoch: String, config: &RoomConfig) -> Self {
        Self {
            room,
            epoch,
            seq: 0,
            rev: 0,
            form: config.presence,
            members: BTreeMap::new(),
            ring: Ring {
                limits: config.history,
                events: VecDeque::new(),
                bytes: 0,
            },
        }
    }

    fn is_member(&self, name: &Name, key: MemberKey) -> bool {
        self.members
            .get(&name.order)
            .is_some_and(|member| member.has(key))
    }

    /// A member comes. A namesake of an earlier stay goes first, but for one that `shared` makes the same member: then
    /// nobody is told anything.
    ///
    /// Refused where the room is full.
    fn join(
        &mut self,
        config: &RoomConfig,
        name: &Name,
        key: MemberKey,
        shared: bool,
        at: u64,
    ) -> Result<[Told; 2], Refusal> {
        let namesake = self.members.get_mut(&name.order);
        if let Some(member) = namesake
            && (shared || member.has(key))
        {
            if !member.has(key) {
                member.more.push(key);
            }
            return Ok([Told::default(), Told::default()]);
        }
        let namesake = self.members.get(&name.order).map(|member| member.key);
        if namesake.is_none() && self.members.len() >= config.members {
            let message = format!("The room has its {} members already.", config.members);
            return Err(Refusal::new(ErrorCode::TooMany, message));
        }
        let gone = namesake
            .and_then(|key| self.leave(config, name, key, LeaveReason::Replaced, at))
            .unwrap_or_default();
        self.members.insert(
            Arc::clone(&name.order),
            Member {
                shown: Arc::clone(&name.shown),
                key,
                more: Vec::new(),
            },
        );
        let event = |room: &str, seq| {
            Frame::encode(&Say::Join {
                room,
                seq,
                at,
                user: &name.shown,
            })
        };
        let come = self.tell(event, &name.shown, true, at);
        let batch_over = config.presence_auto_batch;
        if self.form == Presence::Each && batch_over > 0 && self.members.len() > batch_over {
            self.form = Presence::Batched;
        }
        Ok([gone, come])
    }

    /// A stay ends, and with a user's last one the member goes; `None` where there is no such stay.
    fn leave(
        &mut self,
        config: &RoomConfig,
        name: &Name,
        key: MemberKey,
        reason: LeaveReason,
        at: u64,
    ) -> Option<Told> {
        let member = self.members.get_mut(&name.order)?;
        if !member.has(key) {
            return None;
        }
        if let Some(last) = member.more.pop() {
            // Which one of them goes is told to nobody, so any may take any one's place.
            if let Some(place) = member.more.iter().position(|held| *held == key) {
                member.more[place] = last;
            } else if member.key == key {
                member.key = last;
            }
            return Some(Told::default());
        }
        let member = self.members.remove(&name.order)?;
        let event = |room: &str, seq| {
            Frame::encode(&Say::Leave {
                room,
                seq,
                at,
                user: &member.shown,
                reason,
            })
        };
        let told = self.tell(event, &member.shown, false, at);
        let batched_by_size = config.presence == Presence::Each && self.form == Presence::Batched;
        if batched_by_size && self.members.len() * 2 <= config.presence_auto_batch {
            self.form = Presence::Each;
        }
        Some(told)
    }

    fn tell(
        &mut self,
        event: impl FnOnce(&str, u64) -> Frame,
        name: &Arc<str>,
        joined: bool,
        at: u64,
    ) -> Told {
        self.rev += 1;
        if self.form == Presence::Each {
            self.seq += 1;
            let frame = event(&self.room, self.seq);
            self.ring.push(&frame, at);
            return Told {
                event: Some(frame),
                change: None,
            };
        }
        let change = Change {
            name: Arc::clone(name),
            joined,
            rev: self.rev,
            count: self.members.len(),
            named: self.form == Presence::Batched,
        };
        Told {
            event: None,
            change: Some(change),
        }
    }

    /// A member speaks; `None` where it is none.
    fn message(
        &mut self,
        name: &Name,
        key: MemberKey,
        text: Option<&str>,
        data: Option<&RawValue>,
        at: u64,
    ) -> Option<(u64, Frame)> {
        if !self.is_member(name, key) {
            return None;
        }
        self.seq += 1;
        let say = Say::Message {
            room: &self.room,
            seq: self.seq,
            at,
            user: &name.shown,
            text,
            data,
        };
        let frame = Frame::encode(&say);
        self.ring.push(&frame, at);
        Some((self.seq, frame))
    }

    /// The `init` of a joiner, as of now: before its own join is applied.
    fn init(&self, id: Option<u64>, options: &RoomOptions, frame_bytes: usize) -> Frame {
        let (names, _) = self.names(None, options.config.users_in_init, frame_bytes);
        let say = Say::Init {
            id,
            room: &self.room,
            users: List(names),
            count: self.members.len(),
            presence: self.form,
            epoch: &self.epoch,
            seq: self.seq,
            rev: self.told_rev(),
            recovered: false,
            escape: options.escapes.then_some("html"),
        };
        Frame::encode(&say)
    }

    fn page(
        &self,
        id: Option<u64>,
        after: Option<&str>,
        limit: usize,
        frame_bytes: usize,
    ) -> Frame {
        let (users, more) = self.names(after, limit, frame_bytes);
        let next = if more { users.last().copied() } else { None };
        let say = Say::Users {
            id,
            room: &self.room,
            users: List(users),
            count: self.members.len(),
            epoch: &self.epoch,
            seq: self.seq,
            rev: self.told_rev(),
            next,
        };
        Frame::encode(&say)
    }

    /// `rev` is told where presence is not told as numbered events.
    fn told_rev(&self) -> Option<u64> {
        (self.form != Presence::Each).then_some(self.rev)
    }

    /// Names after `after`, as many as fit, and whether there are more.
    fn names(&self, after: Option<&str>, limit: usize, frame_bytes: usize) -> (Vec<&str>, bool) {
        if self.form == Presence::Off {
            return (Vec::new(), false);
        }
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut room = frame_bytes.saturating_sub(LIST_OVERHEAD);
        let mut names = Vec::with_capacity(limit.min(self.members.len()));
        for member in self
            .members
            .range::<str, _>((from, Bound::Unbounded))
            .map(|(_, member)| member)
        {
            let bytes = listed_len(&member.shown);
            if names.len() >= limit || bytes > room {
                return (names, true);
            }
            room -= bytes;
            names.push(&*member.shown);
        }
        (names, false)
    }
}

/// The last events of a room, bounded by number, bytes and age.
#[derive(Debug)]
struct Ring {
    limits: HistoryLimits,
    events: VecDeque<(u64, Frame)>,
    bytes: usize,
}

impl Ring {
    fn push(&mut self, frame: &Frame, at: u64) {
        if self.limits.events == 0 {
            return;
        }
        self.bytes += frame.len();
        self.events.push_back((at, frame.clone()));
        let oldest = at.saturating_sub(self.limits.age.as_millis());
        while let Some((then, first)) = self.events.front()
            && (self.events.len() > self.limits.events
                || self.bytes > self.limits.bytes.0
                || *then < oldest)
        {
            self.bytes -= first.len();
            self.events.pop_front();
        }
    }
}

/// A room of this node.
pub struct Room {
    pub(crate) name: Arc<str>,
    pub(crate) id: u64,
    pub(crate) options: Arc<RoomOptions>,
    pub(crate) lane: Arc<LaneInbox>,
    pub(crate) sends: Bucket,
    context: Arc<RoomContext>,
    ordered: Mutex<Ordered>,
    /// Members, for those who must not take the lock.
    members: AtomicUsize,
    /// Joins under way.
    pub(crate) pins: AtomicUsize,
    /// Bytes of events that the lane has not walked yet.
    backlog: AtomicUsize,
    /// Publishers that are not read until the backlog has shrunk.
    held_up: Mutex<HeldUp>,
    /// No longer in the directory.
    is_given_up: AtomicBool,
}

/// Publishers in the order in which they came to wait.
#[derive(Default)]
struct HeldUp {
    /// That of the last to come.
    place: u64,
    wakers: BTreeMap<u64, Waker>,
}

/// A publisher's wait until its room's lane has caught up.
///
/// The lane wakes the first that waits. Whoever goes on, or gives up, wakes the next while there is room, so that no
/// more go on than what they send has room for, give or take those that run at the same time.
pub(crate) struct Behind {
    room: Arc<Room>,
    place: u64,
}

impl Behind {
    /// `None`: the room is not behind.
    pub(crate) fn of(room: Arc<Room>) -> Option<Self> {
        if !room.is_backlogged() {
            return None;
        }
        let place = {
            let mut held_up = room.held_up.lock();
            held_up.place += 1;
            held_up.place
        };
        Some(Self { room, place })
    }

    /// Ready when the backlog is within its bound.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.room.is_backlogged() {
            return Poll::Ready(());
        }
        let waker = cx.waker().clone();
        let before = self.room.held_up.lock().wakers.insert(self.place, waker);
        drop(before);
        // The lane may have finished between the two looks.
        if self.room.is_backlogged() {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        let own = self.room.held_up.lock().wakers.remove(&self.place);
        drop(own);
        if !self.room.is_backlogged() {
            self.room.wake_first();
        }
    }
}

struct Ordered {
    fold: Fold,
    /// The index of the last event applied; the first is 1.
    applied: u64,
    held: BTreeMap<u64, Proposal>,
}

/// What all rooms of a server share.
#[derive(Debug)]
pub(crate) struct RoomContext {
    pub(crate) frame_bytes: usize,
    /// Over it, publishers are not read.
    pub(crate) inbox_bytes: usize,
    /// Set when the server stops: nothing more is accepted.
    pub(crate) stopped: AtomicBool,
    pub(crate) members: metrics::Gauge,
}

impl std::fmt::Debug for Room {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Room")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Room {
    pub(crate) fn new(
        name: Arc<str>,
        id: u64,
        epoch: String,
        options: Arc<RoomOptions>,
        context: Arc<RoomContext>,
        lane: Arc<LaneInbox>,
    ) -> Self {
        let fold = Fold::new(Arc::clone(&name), epoch, &options.config);
        Self {
            name,
            id,
            sends: Bucket::new(options.config.sends),
            options,
            lane,
            context,
            ordered: Mutex::new(Ordered {
                fold,
                applied: 0,
                held: BTreeMap::new(),
            }),
            members: AtomicUsize::new(0),
            pins: AtomicUsize::new(0),
            backlog: AtomicUsize::new(0),
            held_up: Mutex::default(),
            is_given_up: AtomicBool::new(false),
        }
    }

    /// The room's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes the event that has place `index` in the room's log; the first place is 1.
    ///
    /// Events may come repeatedly and out of order: repeats are dropped, and what comes early waits, at most 1,024
    /// places ahead, for what is before it.
    pub fn apply(self: &Arc<Self>, index: u64, proposal: Proposal) {
        let mut ordered = self.ordered.lock();
        if index <= ordered.applied || index > ordered.applied + MAX_HELD as u64 {
            return;
        }
        ordered.held.insert(index, proposal);
        while let Some(next) = {
            let next = ordered.applied + 1;
            ordered.held.remove(&next)
        } {
            self.apply_locked(&mut ordered, next);
        }
    }

    /// Takes an event whose place is the next: for a log whose order is the order of these calls.
    pub fn apply_next(self: &Arc<Self>, proposal: Proposal) {
        let mut ordered = self.ordered.lock();
        self.apply_locked(&mut ordered, proposal);
    }

    fn apply_locked(self: &Arc<Self>, ordered: &mut Ordered, proposal: Proposal) {
        ordered.applied += 1;
        let Proposal {
            event,
            name,
            key,
            at,
            submitted,
            ticket,
            membership,
            pin,
        } = proposal;
        let fold = &mut ordered.fold;
        let config = &self.options.config;
        match event {
            Event::Message { text, data } => {
                if self.context.stopped.load(Ordering::Acquire) {
                    return refuse(ticket, ErrorCode::ShuttingDown, "The server is stopping.");
                }
                match fold.message(&name, key, text.as_deref(), data.as_deref(), at) {
                    None => refuse(
                        ticket,
                        ErrorCode::NotJoined,
                        "You are no member of this room any more.",
                    ),
                    Some((seq, frame)) => {
                        self.publish(frame);
                        if let Some(Ticket { session, .. }) = &ticket {
                            let telemetry = &session.scope.hub.telemetry;
                            telemetry.messages.increment(1);
                            telemetry
                                .log_append_seconds
                                .record(submitted.elapsed().as_secs_f64());
                        }
                        if let Some(ticket) = ticket {
                            ticket.answer(&Say::Sent {
                                id: ticket.id,
                                room: &self.name,
                                seq,
                                at,
                            });
                        }
                    }
                }
            }
            Event::Join { shared } => {
                let init = ticket
                    .as_ref()
                    .map(|ticket| fold.init(ticket.id, &self.options, self.context.frame_bytes));
                match fold.join(config, &name, key, shared, at) {
                    Err(refusal) => {
                        if let Some(membership) = membership {
                            membership.refused.store(true, Ordering::Release);
                            if let Some(Ticket { session, .. }) = &ticket
                                && membership.child.get().is_some()
                            {
                                // Hooks run without the room's lock.
                                let lifecycle = &session.scope.hub.lifecycle;
                                lifecycle.spawn(async move { membership.end(EndCause::Refused) });
                            }
                        }
                        if let Some(ticket) = ticket {
                            ticket.refuse(refusal);
                        }
                    }
                    Ok([gone, told]) => {
                        self.count_members(fold.members.len());
                        self.post(LaneCommand::Tell(gone));
                        match (membership, ticket, init) {
                            (Some(membership), Some(Ticket { session, slot, .. }), Some(init)) => {
                                membership.joined.store(true, Ordering::Release);
                                self.post(LaneCommand::Join {
                                    session,
                                    membership,
                                    slot,
                                    init,
                                    told,
                                });
                            }
                            // A member of another node.
                            _ => self.post(LaneCommand::Tell(told)),
                        }
                    }
                }
                drop(pin);
            }
            Event::Leave(reason) => {
                let told = fold
                    .leave(config, &name, key, reason, at)
                    .unwrap_or_default();
                self.count_members(fold.members.len());
                match membership {
                    Some(membership) => {
                        let say = |id, reason| {
                            let room = &self.name;
                            Frame::encode(&Say::Left { id, room, reason })
                        };
                        let left = match ticket {
                            Some(ticket) => Some((Some(ticket.slot), say(ticket.id, None))),
                            None if membership.evicted.load(Ordering::Acquire) => {
                                Some((None, say(None, Some(reason))))
                            }
                            None => None,
                        };
                        self.post(LaneCommand::Leave {
                            membership,
                            left,
                            told,
                        });
                    }
                    None => self.post(LaneCommand::Tell(told)),
                }
                drop(pin);
            }
        }
    }

    fn count_members(&self, now: usize) {
        let before = self.members.swap(now, Ordering::AcqRel);
        if now > before {
            self.context.members.increment(1);
        } else if now < before {
            self.context.members.decrement(1);
        }
    }

    fn publish(self: &Arc<Self>, frame: Frame) {
        self.owes(frame.len());
        self.lane
            .post(Arc::clone(self), LaneCommand::Publish(frame));
    }

    fn post(self: &Arc<Self>, command: LaneCommand) {
        if let LaneCommand::Tell(Told {
            event: None,
            change: None,
        }) = command
        {
            return;
        }
        self.owes(command.event_len());
        self.lane.post(Arc::clone(self), command);
    }

    /// A fresh `init` for one who is a member already. It goes through the lane, so that every event up to its `seq`
    /// has gone out before.
    pub(crate) fn init_again(
        self: &Arc<Self>,
        membership: &Arc<Membership>,
        slot: Slot,
        id: Option<u64>,
    ) {
        let ordered = self.ordered.lock();
        let init = ordered
            .fold
            .init(id, &self.options, self.context.frame_bytes);
        self.lane.post(
            Arc::clone(self),
            LaneCommand::Reply {
                membership: Arc::clone(membership),
                slot,
                init,
            },
        );
    }

    /// Has the lane answer `slot`, with nothing, once everything so far has gone out to that member.
    pub(crate) fn flush(self: &Arc<Self>, membership: &Arc<Membership>, slot: Slot) {
        let membership = Arc::clone(membership);
        self.post(LaneCommand::Flush { membership, slot });
    }

    /// A page of the members.
    pub(crate) fn page(&self, id: Option<u64>, after: Option<&str>, limit: usize) -> Frame {
        self.ordered
            .lock()
            .fold
            .page(id, after, limit, self.context.frame_bytes)
    }

    pub(crate) fn member_count(&self) -> usize {
        self.members.load(Ordering::Acquire)
    }

    /// Whether nobody is in it or on the way in.
    pub(crate) fn is_empty(&self) -> bool {
        self.member_count() == 0 && self.pins.load(Ordering::Acquire) == 0
    }

    pub(crate) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Release);
    }

    pub(crate) fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Acquire)
    }

    /// Waits for whoever is inside the lock: after this, what was set before is seen by every event to come.
    pub(crate) fn fence(&self) {
        drop(self.ordered.lock());
    }

    /// Whether publishers must wait for the lane.
    pub(crate) fn is_backlogged(&self) -> bool {
        self.backlog.load(Ordering::Acquire) > self.context.inbox_bytes
    }

    /// Has the publisher look that has waited the longest. It keeps its place until it goes on or gives up.
    fn wake_first(&self) {
        let first = {
            let held_up = self.held_up.lock();
            held_up.wakers.values().next().cloned()
        };
        if let Some(first) = first {
            first.wake();
        }
    }

    /// The lane has so many bytes more to walk.
    pub(crate) fn owes(&self, bytes: usize) {
        self.backlog.fetch_add(bytes, Ordering::AcqRel);
    }

    /// The lane has walked so many bytes.
    pub(crate) fn walked(&self, bytes: usize) {
        let before = self.backlog.fetch_sub(bytes, Ordering::AcqRel);
        if before > self.context.inbox_bytes && before - bytes <= self.context.inbox_bytes {
            self.wake_first();
        }
    }
}

fn refuse(ticket: Option<Ticket>, code: ErrorCode, message: &str) {
    if let Some(ticket) = ticket {
        ticket.refuse(Refusal::new(code, message));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{Size, Span};

    fn name(user: &str) -> Name {
        Name {
            shown: user.into(),
            key: user.to_lowercase().into(),
            order: user.to_lowercase().into(),
        }
    }

    fn fold(config: &RoomConfig) -> Fold {
        Fold::new("r".into(), "e".into(), config)
    }

    fn json(frame: &Frame) -> serde_json::Value {
        serde_json::from_slice(&frame.json()).unwrap()
    }

    fn join(fold: &mut Fold, config: &RoomConfig, user: &str, key: MemberKey) -> Told {
        let [gone, told] = fold.join(config, &name(user), key, false, 0).unwrap();
        assert!(gone.event.is_none() && gone.change.is_none());
        told
    }

    #[test]
    fn numbers_are_dense_over_what_members_are_sent() {
        let config = RoomConfig::default();
        let mut fold = fold(&config);
        let told = join(&mut fold, &config, "Ann", 1);
        assert_eq!(json(&told.event.unwrap())["seq"], 1);
        let (seq, frame) = fold.message(&name("Ann"), 1, Some("hi"), None, 7).unwrap();
        assert_eq!((seq, json(&frame)["seq"].clone()), (2, 2.into()));
        assert!(
            fold.message(&name("Ann"), 2, Some("hi"), None, 7).is_none(),
            "another stay is no member"
        );
        let told = fold
            .leave(&config, &name("Ann"), 1, LeaveReason::Left, 8)
            .unwrap();
        assert_eq!(json(&told.event.unwrap())["seq"], 3);
        assert!(
            fold.leave(&config, &name("Ann"), 1, LeaveReason::Left, 8)
                .is_none()
        );
    }

    #[test]
    fn a_namesake_of_an_earlier_stay_goes_before_the_new_one_comes() {
        let config = RoomConfig::default();
        let mut fold = fold(&config);
        join(&mut fold, &config, "Ann", 1);
        let [gone, come] = fold.join(&config, &name("ANN"), 2, false, 0).unwrap();
        let (gone, come) = (json(&gone.event.unwrap()), json(&come.event.unwrap()));
        assert_eq!(
            (gone["type"].as_str(), gone["seq"].as_u64()),
            (Some("leave"), Some(2))
        );
        assert_eq!(
            (come["type"].as_str(), come["seq"].as_u64()),
            (Some("join"), Some(3))
        );
        assert!(
            fold.leave(&config, &name("Ann"), 1, LeaveReason::Replaced, 0)
                .is_none()
        );
    }

    #[test]
    fn the_stays_of_a_user_that_may_have_several_are_one_member() {
        let config = RoomConfig::default();
        let mut fold = fold(&config);
        let come = |fold: &mut Fold, key| {
            let [gone, come] = fold.join(&config, &name("Ann"), key, true, 0).unwrap();
            assert!(gone.event.is_none());
            come.event.is_some()
        };
        let told: Vec<bool> = [1, 2, 3, 2].map(|key| come(&mut fold, key)).to_vec();
        assert_eq!(told, [true, false, false, false]);
        assert_eq!(fold.names(None, 10, 1 << 18).0, ["Ann"]);
        for key in 1..=3 {
            assert!(
                fold.message(&name("Ann"), key, Some("hi"), None, 0)
                    .is_some()
            );
        }
        for (key, told) in [(1, false), (1, false), (3, false), (2, true)] {
            let leave = fold.leave(&config, &name("Ann"), key, LeaveReason::Left, 0);
            assert_eq!(
                leave.is_some_and(|leave| leave.event.is_some()),
                told,
                "{key}"
            );
            assert!(
                fold.message(&name("Ann"), key, Some("hi"), None, 0)
                    .is_none()
            );
        }
        assert!(fold.members.is_empty());
    }

    #[test]
    fn a_room_turns_to_batches_above_its_bound_and_back_at_half() {
        let config = RoomConfig {
            presence_auto_batch: 4,
            ..RoomConfig::default()
        };
        let mut fold = fold(&config);
        for key in 0..5 {
            let told = join(&mut fold, &config, &format!("u{key}"), key);
            assert!(
                told.event.is_some(),
                "the one that crosses is told the old way"
            );
        }
        let told = join(&mut fold, &config, "u5", 5);
        assert!(
            told.event.is_none()
                && told
                    .change
                    .is_some_and(|change| change.joined && change.rev == 6)
        );
        for key in (2..=5).rev() {
            let told = fold
                .leave(
                    &config,
                    &name(&format!("u{key}")),
                    key,
                    LeaveReason::Left,
                    0,
                )
                .unwrap();
            assert!(told.change.is_some());
        }
        let told = fold
            .leave(&config, &name("u1"), 1, LeaveReason::Left, 0)
            .unwrap();
        assert!(told.event.is_some(), "two members are half of four");
    }

    #[test]
    fn pages_follow_the_order_of_names_and_keep_to_the_frame() {
        let config = RoomConfig::default();
        let mut fold = fold(&config);
        for (key, user) in ["delta", "Bravo", "alpha", "Charlie"]
            .into_iter()
            .enumerate()
        {
            join(&mut fold, &config, user, key as u64);
        }
        let first = json(&fold.page(Some(1), None, 3, 1 << 18));
        assert_eq!(
            first["users"],
            serde_json::json!(["alpha", "Bravo", "Charlie"])
        );
        assert_eq!(
            (first["next"].as_str(), first["count"].as_u64()),
            (Some("Charlie"), Some(4))
        );
        let rest = json(&fold.page(None, Some("charlie"), 3, 1 << 18));
        assert_eq!(rest["users"], serde_json::json!(["delta"]));
        assert!(rest["next"].is_null());
        let narrow = json(&fold.page(None, None, 100, LIST_OVERHEAD + 18));
        assert_eq!(narrow["users"], serde_json::json!(["alpha", "Bravo"]));
    }

    #[test]
    fn a_full_room_refuses() {
        let config = RoomConfig {
            members: 1,
            ..RoomConfig::default()
        };
        let mut fold = fold(&config);
        join(&mut fold, &config, "a", 1);
        assert_eq!(
            fold.join(&config, &name("b"), 2, false, 0)
                .unwrap_err()
                .code,
            ErrorCode::TooMany
        );
        assert!(
            fold.join(&config, &name("a"), 3, false, 0).is_ok(),
            "one's own namesake makes place"
        );
    }

    #[test]
    fn the_ring_keeps_to_its_three_bounds() {
        let limits = HistoryLimits {
            events: 3,
            bytes: Size(100),
            age: Span::secs(1),
        };
        let mut ring = Ring {
            limits,
            events: VecDeque::new(),
            bytes: 0,
        };
        let frame = |bytes: usize| Frame::from_json(&vec![b'1'; bytes]);
        for at in 0..5 {
            ring.push(&frame(10), at);
        }
        assert_eq!((ring.events.len(), ring.bytes), (3, 30));
        ring.push(&frame(90), 5);
        assert_eq!((ring.events.len(), ring.bytes), (2, 100));
        ring.push(&frame(10), 2_000);
        assert_eq!(ring.events.len(), 1);
        ring.push(&frame(101), 2_001);
        assert_eq!((ring.events.len(), ring.bytes), (0, 0));
    }

    proptest! {
        /// Two folds that saw the same events are the same, and a client that applies what it is told, as sets, has
        /// the roster, whatever form presence takes on the way.
        #[test]
        fn a_client_that_applies_what_it_is_told_has_the_roster(
            steps in proptest::collection::vec((0_u64..12, any::<bool>()), 1..200),
            auto in 0_usize..8,
        ) {
            let config = RoomConfig { presence_auto_batch: auto, ..RoomConfig::default() };
            let (mut one, mut two) = (fold(&config), fold(&config));
            let mut roster = std::collections::BTreeSet::new();
            let mut last_seq = 0;
            for (user, come) in steps {
                let name = name(&format!("u{user}"));
                let told = |fold: &mut Fold| if come {
                    fold.join(&config, &name, user, false, 0).unwrap().into_iter().nth(1)
                } else {
                    fold.leave(&config, &name, user, LeaveReason::Left, 0)
                };
                let (told, again) = (told(&mut one), told(&mut two));
                prop_assert_eq!(format!("{told:?}"), format!("{again:?}"));
                let Some(told) = told else { continue };
                if let Some(event) = told.event {
                    let event = json(&event);
                    last_seq += 1;
                    prop_assert_eq!(event["seq"].as_u64(), Some(last_seq));
                    let user = event["user"].as_str().unwrap().to_owned();
                    if event["type"] == "join" { roster.insert(user); } else { roster.remove(&user); }
                }
                if let Some(change) = told.change {
                    let user = change.name.to_string();
                    if change.joined { roster.insert(user); } else { roster.remove(&user); }
                    prop_assert_eq!(change.count, roster.len());
                }
                let (names, more) = one.names(None, 100, 1 << 18);
                prop_assert!(!more);
                prop_assert_eq!(names, roster.iter().map(String::as_str).collect::<Vec<_>>());
                prop_assert_eq!(&one.members, &two.members);
            }
        }
    }
}
