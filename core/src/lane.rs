//! Lanes: one task per core that owns the member lists of its rooms and hands every event to every member.
//!
//! A lane is a round robin over rooms that have something to say. It takes a quantum of members of one room, then of
//! the next, and yields to its runtime after a turn's worth of writes, so that a huge room never starves a small one.
//! Nobody else touches a member list, so no lock guards it. Handing over never blocks: see
//! [`CallbackAdapter`](crate::adapter::CallbackAdapter).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustc_hash::FxHashMap;
use tokio::{
    sync::{Notify, oneshot},
    time::sleep_until,
};
use tokio_util::sync::CancellationToken;

use crate::{
    CloseReason, Telemetry,
    adapter::{Answer, Batch, CallbackAdapter, Delivery, Slot},
    clock::{self, Instant, WallClock},
    lock::Mutex,
    message::{Frame, List, Say, listed_len},
    room::{Change, Membership, Room, Told},
    scope::Scope,
    session::Session,
};

/// Members of one room that are served before the next room has its turn.
const QUANTUM: usize = 32;
/// Members served before the lane yields to its runtime.
const TURN: usize = 256;
/// The same by the clock, looked at after each quantum: a write of a whole batch takes ten times as long as that of a
/// single event, and a small room that shares the lane waits for a turn to end.
const TURN_TIME: Duration = Duration::from_micros(500);
/// Commands other than events that are carried out before the events among them are walked.
const COMMANDS: usize = 64;
/// Bytes of events that are laid out in one batch; a larger event goes alone.
const BATCH_BYTES: usize = 64 << 10;
/// Events in one batch.
const BATCH_EVENTS: usize = 512;

/// What a room asks of its lane. Commands of one room are carried out in order.
pub(crate) enum LaneCommand {
    Join {
        session: Arc<Session>,
        membership: Arc<Membership>,
        slot: Slot,
        init: Frame,
        told: Told,
    },
    Leave {
        membership: Arc<Membership>,
        /// What the leaver is told, in answer to its command or unasked.
        left: Option<(Option<Slot>, Frame)>,
        told: Told,
    },
    Publish(Frame),
    Tell(Told),
    Reply {
        membership: Arc<Membership>,
        slot: Slot,
        init: Frame,
    },
    /// Tells the presence that is pending when this is reached: by then that of the commands before is in it.
    Presence,
    /// Answers `slot` with nothing, after everything before.
    Flush {
        membership: Arc<Membership>,
        slot: Slot,
    },
    /// The room was given up.
    Forget,
}

impl LaneCommand {
    /// Bytes of the event in it, which count towards the room's backlog.
    pub(crate) fn event_len(&self) -> usize {
        match self {
            Self::Publish(frame) => frame.len(),
            Self::Join { told, .. } | Self::Leave { told, .. } | Self::Tell(told) => {
                told.event.as_ref().map_or(0, Frame::len)
            }
            Self::Reply { .. } | Self::Presence | Self::Flush { .. } | Self::Forget => 0,
        }
    }
}

/// Where rooms leave their commands. Events in it are bounded by each room's backlog, over which publishers wait; the
/// rest by what sessions may ask for at a time.
#[derive(Default)]
pub(crate) struct LaneInbox {
    posted: Mutex<Posted>,
    filled: Notify,
    closed: AtomicBool,
}

#[derive(Default)]
struct Posted {
    commands: Vec<(Arc<Room>, LaneCommand)>,
    barriers: Vec<oneshot::Sender<()>>,
}

impl LaneInbox {
    pub(crate) fn post(&self, room: Arc<Room>, command: LaneCommand) {
        let was_empty = {
            let mut posted = self.posted.lock();
            if self.closed.load(Ordering::Relaxed) {
                return;
            }
            posted.commands.push((room, command));
            posted.commands.len() == 1
        };
        if was_empty {
            self.filled.notify_one();
        }
    }

    fn has_some(&self) -> bool {
        !self.posted.lock().commands.is_empty()
    }

    /// Resolves once everything posted before has been handed over.
    pub(crate) fn barrier(&self) -> oneshot::Receiver<()> {
        let (passed, wait) = oneshot::channel();
        {
            let mut posted = self.posted.lock();
            // A lane that is gone hands over nothing more: dropped, the barrier is passed.
            if !self.closed.load(Ordering::Relaxed) {
                posted.barriers.push(passed);
            }
        }
        self.filled.notify_one();
        wait
    }

    /// Takes nothing more and lets go of what is in it: for when the lane is gone.
    pub(crate) fn close(&self) {
        let mut posted = self.posted.lock();
        self.closed.store(true, Ordering::Relaxed);
        let rest = std::mem::take(&mut *posted);
        drop(posted);
        drop(rest);
    }
}

/// What a lane needs of its server.
pub(crate) struct LaneContext {
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) wall: Arc<dyn WallClock>,
    pub(crate) frame_bytes: usize,
}

/// Runs a lane until the server stops and everybody has been sent away.
pub(crate) async fn run(inbox: Arc<LaneInbox>, context: LaneContext, drained: CancellationToken) {
    struct CloseOnDrop(Arc<LaneInbox>);
    impl Drop for CloseOnDrop {
        fn drop(&mut self) {
            self.0.close();
        }
    }
    let inbox = CloseOnDrop(inbox);
    let mut lane = Lane::new(context);
    tokio::select! {
        () = lane.run(&inbox.0) => (),
        // The hub drains first: by then every accepted message was handed over.
        () = drained.cancelled() => (),
    }
}

/// Sessions to end once no member list is borrowed.
type Doomed = Vec<(Arc<Session>, CloseReason)>;

struct Lane {
    context: LaneContext,
    rooms: FxHashMap<u64, LaneRoom>,
    /// Rooms that have commands to carry out or a walk to finish.
    busy: VecDeque<u64>,
    /// When presence is due, by room.
    presence_due: BTreeSet<(Instant, u64)>,
    barriers: Vec<oneshot::Sender<()>>,
    doomed: Doomed,
    tally: Tally,
}

/// What was handed over in a turn; added to the metrics when it ends.
#[derive(Default)]
struct Tally {
    /// By transport: events and bytes. A server has a handful.
    transports: Vec<(Arc<Scope>, u64, u64)>,
}

struct LaneRoom {
    room: Arc<Room>,
    members: Vec<LaneMember>,
    commands: VecDeque<LaneCommand>,
    walk: Option<Walk>,
    is_busy: bool,
    presence: PendingPresence,
    forgotten: bool,
}

struct LaneMember {
    session: Arc<Session>,
    membership: Arc<Membership>,
    /// Events of the batch at hand that were before its time.
    skip: usize,
}

/// A batch on its way through the members.
struct Walk {
    batch: Batch,
    next: usize,
    /// Of the events in it, which are off the room's backlog once it is through.
    bytes: usize,
}

/// Changes of membership that are not told yet.
#[derive(Default)]
struct PendingPresence {
    /// By name: the state at the end. Ordered, since clients choose the names and could make hashes collide.
    changes: BTreeMap<Arc<str>, bool>,
    rev: u64,
    count: usize,
    named: bool,
    due: Option<Instant>,
}

impl Lane {
    fn new(context: LaneContext) -> Self {
        Self {
            context,
            rooms: FxHashMap::default(),
            busy: VecDeque::new(),
            presence_due: BTreeSet::new(),
            barriers: Vec::new(),
            doomed: Vec::new(),
            tally: Tally::default(),
        }
    }

    async fn run(&mut self, inbox: &LaneInbox) {
        // Whether the last turn showed that several commands come at a time. Then readers go first, so that what
        // arrives together leaves together; at low rates that detour would only cost a wake.
        let mut crowded = false;
        loop {
            if self.busy.is_empty() {
                for passed in self.barriers.drain(..) {
                    let _ = passed.send(());
                }
                self.wait(inbox).await;
            }
            if crowded {
                tokio::task::yield_now().await;
            }
            let posted = std::mem::take(&mut *inbox.posted.lock());
            let taken = posted.commands.len();
            for (room, command) in posted.commands {
                self.enqueue(room, command);
            }
            self.barriers.extend(posted.barriers);
            crowded = taken > 1 || (taken == 0 && !self.busy.is_empty());
            self.flush_due_presence();
            self.turn(inbox);
            if !self.busy.is_empty() {
                tokio::task::yield_now().await;
            }
        }
    }

    async fn wait(&self, inbox: &LaneInbox) {
        let filled = inbox.filled.notified();
        match self.presence_due.first() {
            None => filled.await,
            Some(&(due, _)) => tokio::select! {
                () = filled => (),
                () = sleep_until(due) => (),
            },
        }
    }

    fn enqueue(&mut self, room: Arc<Room>, command: LaneCommand) {
        let lane_room = self
            .rooms
            .entry(room.id)
            .or_insert_with(|| LaneRoom::new(room));
        lane_room.commands.push_back(command);
        if !lane_room.is_busy {
            lane_room.is_busy = true;
            self.busy.push_back(lane_room.room.id);
        }
    }

    fn turn(&mut self, inbox: &LaneInbox) {
        if self.busy.is_empty() {
            return;
        }
        let began = clock::now();
        let mut budget = TURN;
        while budget > 0
            && let Some(id) = self.busy.pop_front()
        {
            let Some(room) = self.rooms.get_mut(&id) else {
                continue;
            };
            let mut served = 0;
            if room.walk.is_none() {
                served += room.lay_out(
                    &self.context,
                    &mut self.presence_due,
                    &mut self.tally,
                    &mut self.doomed,
                );
                if let Some(walk) = &room.walk {
                    // Exact: a batch has at most a few hundred events.
                    self.context
                        .telemetry
                        .batch_events
                        .record(walk.batch.len() as f64);
                }
            }
            served += room.serve(budget.min(QUANTUM), &mut self.tally, &mut self.doomed);
            budget -= served.clamp(1, budget);
            // Where nobody waits, a yield would be a system call or two that help nobody.
            if began.elapsed() >= TURN_TIME && (!self.busy.is_empty() || inbox.has_some()) {
                budget = 0;
            }
            if room.walk.is_some() || !room.commands.is_empty() {
                self.busy.push_back(id);
            } else if room.is_over() {
                self.rooms.remove(&id);
            } else {
                room.is_busy = false;
            }
            for (session, reason) in self.doomed.drain(..) {
                session.end(reason);
            }
        }
        self.tally.settle();
        let seconds = began.elapsed().as_secs_f64();
        self.context.telemetry.lane_turn_seconds.record(seconds);
    }

    fn flush_due_presence(&mut self) {
        let now = clock::now();
        while let Some(&(due, id)) = self.presence_due.first() {
            if due > now {
                return;
            }
            self.presence_due.pop_first();
            let Some(room) = self.rooms.get_mut(&id) else {
                continue;
            };
            room.presence.due = None;
            room.commands.push_back(LaneCommand::Presence);
            if !room.is_busy {
                room.is_busy = true;
                self.busy.push_back(id);
            }
        }
    }
}

impl LaneRoom {
    fn new(room: Arc<Room>) -> Self {
        Self {
            room,
            members: Vec::new(),
            commands: VecDeque::new(),
            walk: None,
            is_busy: false,
            presence: PendingPresence::default(),
            forgotten: false,
        }
    }

    /// Carries out commands up to a batch's worth, and lays out the events among them for one walk. Returns how many
    /// commands were answered.
    fn lay_out(
        &mut self,
        context: &LaneContext,
        due: &mut BTreeSet<(Instant, u64)>,
        tally: &mut Tally,
        doomed: &mut Doomed,
    ) -> usize {
        let mut frames: Vec<Frame> = Vec::new();
        let mut bytes = 0;
        let mut answers = 0;
        while let Some(command) = self.commands.front() {
            let length = command.event_len();
            let is_full = bytes + length > BATCH_BYTES || frames.len() >= BATCH_EVENTS;
            if (is_full && !frames.is_empty() && length > 0) || answers >= COMMANDS {
                break;
            }
            let Some(command) = self.commands.pop_front() else {
                break;
            };
            bytes += length;
            answers += usize::from(!matches!(
                command,
                LaneCommand::Publish(_) | LaneCommand::Tell(_) | LaneCommand::Presence
            ));
            match command {
                LaneCommand::Publish(frame) => frames.push(frame),
                LaneCommand::Presence => frames.extend(self.take_presence(context)),
                LaneCommand::Tell(told) => self.tell(told, &mut frames, context, due),
                LaneCommand::Join {
                    session,
                    membership,
                    slot,
                    init,
                    told,
                } => {
                    note(session.outlet.complete(slot, init.into()), &session, doomed);
                    let place = u32::try_from(self.members.len()).expect("fewer members than 2^32");
                    membership.place.store(place, Ordering::Relaxed);
                    self.members.push(LaneMember {
                        session,
                        membership,
                        skip: frames.len(),
                    });
                    self.tell(told, &mut frames, context, due);
                }
                LaneCommand::Reply {
                    membership,
                    slot,
                    init,
                } => {
                    if let Some(member) = self.member(&membership) {
                        member.catch_up(&frames, tally, doomed);
                        note(
                            member.session.outlet.complete(slot, init.into()),
                            &member.session,
                            doomed,
                        );
                    }
                }
                LaneCommand::Flush { membership, slot } => {
                    if let Some(member) = self.member(&membership) {
                        member.catch_up(&frames, tally, doomed);
                        member.session.outlet.complete(slot, Answer::nothing());
                    }
                }
                LaneCommand::Leave {
                    membership,
                    left,
                    told,
                } => {
                    if let Some(member) = self.member(&membership) {
                        if let Some((slot, left)) = left {
                            // Everything up to its leave is the leaver's still.
                            member.catch_up(&frames, tally, doomed);
                            let outlet = &member.session.outlet;
                            let delivery = match slot {
                                Some(slot) => outlet.complete(slot, left.into()),
                                None => outlet.deliver(&mut Batch::new(vec![left]), 0),
                            };
                            note(delivery, &member.session, doomed);
                        }
                        self.remove(&membership);
                    }
                    self.tell(told, &mut frames, context, due);
                }
                LaneCommand::Forget => {
                    self.forgotten = true;
                    if let Some(at) = self.presence.due.take() {
                        due.remove(&(at, self.room.id));
                    }
                }
            }
        }
        if !frames.is_empty() {
            self.walk = Some(Walk {
                batch: Batch::new(frames),
                next: 0,
                bytes,
            });
        }
        answers
    }

    fn tell(
        &mut self,
        told: Told,
        frames: &mut Vec<Frame>,
        context: &LaneContext,
        due: &mut BTreeSet<(Instant, u64)>,
    ) {
        if let Some(change) = told.change {
            self.presence.note(change);
            if self.presence.due.is_none() {
                let at = clock::now() + self.room.options.config.presence_interval.0;
                self.presence.due = Some(at);
                due.insert((at, self.room.id));
            }
        }
        if let Some(event) = told.event {
            // A room that turned back to events first sends what is pending.
            if self.presence.is_pending() {
                frames.extend(self.take_presence(context));
            }
            frames.push(event);
        }
    }

    /// Hands the batch to the next few members.
    fn serve(&mut self, quantum: usize, tally: &mut Tally, doomed: &mut Doomed) -> usize {
        let Some(walk) = &mut self.walk else { return 0 };
        let end = self.members.len().min(walk.next + quantum);
        let served = end - walk.next;
        for member in &mut self.members[walk.next..end] {
            let skip = std::mem::take(&mut member.skip);
            let events = walk.batch.len() - skip;
            if events == 0 {
                continue;
            }
            let delivery = member.session.outlet.deliver(&mut walk.batch, skip);
            if let Delivery::Taken(bytes) = delivery {
                tally.add(&member.session, events, bytes);
            } else {
                note(delivery, &member.session, doomed);
            }
        }
        walk.next = end;
        if end == self.members.len() {
            self.room.walked(walk.bytes);
            self.walk = None;
        }
        served
    }

    /// Whether nothing will come of the room any more.
    fn is_over(&self) -> bool {
        self.forgotten || (self.members.is_empty() && self.room.is_given_up())
    }

    fn member(&mut self, membership: &Arc<Membership>) -> Option<&mut LaneMember> {
        let place = membership.place.load(Ordering::Relaxed) as usize;
        self.members
            .get_mut(place)
            .filter(|member| Arc::ptr_eq(&member.membership, membership))
    }

    fn remove(&mut self, membership: &Membership) {
        let place = membership
            .place
            .swap(Membership::NOWHERE, Ordering::Relaxed);
        self.members.swap_remove(place as usize);
        if let Some(moved) = self.members.get(place as usize) {
            moved.membership.place.store(place, Ordering::Relaxed);
        }
        if self.members.is_empty() {
            self.members = Vec::new();
        }
    }

    /// The `presence` objects that say what is pending, as many as the frame limit asks for.
    fn take_presence(&mut self, context: &LaneContext) -> Vec<Frame> {
        let pending = std::mem::take(&mut self.presence);
        // The timer stands; when it fires there may be nothing left to say.
        self.presence.due = pending.due;
        self.presence.count = pending.count;
        self.presence.rev = pending.rev;
        if !pending.is_pending() {
            return Vec::new();
        }
        let at = context.wall.unix_millis();
        let say = |names: Option<(Vec<&str>, Vec<&str>)>| {
            let (joined, left) = names.map_or((None, None), |(joined, left)| {
                (Some(List(joined)), Some(List(left)))
            });
            Frame::encode(&Say::Presence {
                room: &self.room.name,
                at,
                rev: pending.rev,
                joined,
                left,
                count: pending.count,
            })
        };
        if !pending.named {
            return vec![say(None)];
        }
        let budget = context.frame_bytes.saturating_sub(1024);
        let mut frames = Vec::new();
        let (mut joined, mut left, mut bytes) = (Vec::new(), Vec::new(), 0);
        for (name, is_in) in &pending.changes {
            let length = listed_len(name);
            if bytes + length > budget {
                frames.push(say(Some((
                    std::mem::take(&mut joined),
                    std::mem::take(&mut left),
                ))));
                bytes = 0;
            }
            bytes += length;
            if *is_in { &mut joined } else { &mut left }.push(&**name);
        }
        frames.push(say(Some((joined, left))));
        frames
    }
}

impl LaneMember {
    /// Hands over the events laid out so far, before something that must come after them.
    fn catch_up(&mut self, frames: &[Frame], tally: &mut Tally, doomed: &mut Doomed) {
        let owed = frames.get(self.skip..).unwrap_or_default();
        self.skip = frames.len();
        if owed.is_empty() {
            return;
        }
        let mut batch = Batch::new(owed.to_vec());
        let delivery = self.session.outlet.deliver(&mut batch, 0);
        if let Delivery::Taken(bytes) = delivery {
            tally.add(&self.session, owed.len(), bytes);
        } else {
            note(delivery, &self.session, doomed);
        }
    }
}

fn note(delivery: Delivery, session: &Arc<Session>, doomed: &mut Doomed) {
    let reason = match delivery {
        Delivery::Taken(_) | Delivery::Closed => return,
        Delivery::Full => CloseReason::SlowConsumer,
        Delivery::Lost => CloseReason::Disconnected,
    };
    doomed.push((Arc::clone(session), reason));
}

impl PendingPresence {
    fn note(&mut self, change: Change) {
        self.rev = change.rev;
        self.count = change.count;
        self.named = change.named;
        // Without names one entry stands for all: there is something to tell.
        let name = if change.named { change.name } else { "".into() };
        self.changes.insert(name, change.joined);
    }

    fn is_pending(&self) -> bool {
        !self.changes.is_empty()
    }
}

impl Tally {
    fn add(&mut self, session: &Arc<Session>, events: usize, bytes: usize) {
        let (events, bytes) = (events as u64, bytes as u64);
        for (known, all_events, all_bytes) in &mut self.transports {
            if Arc::ptr_eq(known, &session.scope) {
                *all_events += events;
                *all_bytes += bytes;
                return;
            }
        }
        self.transports
            .push((Arc::clone(&session.scope), events, bytes));
    }

    fn settle(&mut self) {
        for (scope, events, bytes) in &mut self.transports {
            scope.metrics.deliveries.increment(std::mem::take(events));
            scope.metrics.bytes_out.increment(std::mem::take(bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use metrics::NoopRecorder;

    use super::*;
    use crate::{
        clock::SystemWallClock,
        config::{Presence, RoomConfig},
        room::{RoomContext, RoomOptions},
    };

    fn change(rev: u64, name: &str) -> LaneCommand {
        LaneCommand::Tell(Told {
            event: None,
            change: Some(Change {
                name: name.into(),
                joined: true,
                rev,
                count: 1,
                named: true,
            }),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn presence_that_waits_behind_changes_tells_them_too() {
        let config = RoomConfig {
            presence: Presence::Batched,
            ..RoomConfig::default()
        };
        let interval = config.presence_interval.0;
        let options = RoomOptions {
            config,
            validators: Vec::new(),
            escapes: false,
            configured: false,
        };
        let context = RoomContext {
            frame_bytes: 1 << 16,
            inbox_bytes: 1 << 20,
            stopped: AtomicBool::new(false),
            members: metrics::Gauge::noop(),
        };
        let room = Arc::new(Room::new(
            "lobby".into(),
            1,
            "e".into(),
            Arc::new(options),
            Arc::new(context),
            Arc::default(),
        ));
        let mut lane = Lane::new(LaneContext {
            telemetry: Telemetry::new(&NoopRecorder, &[], &[], &[], &[]),
            wall: Arc::new(SystemWallClock),
            frame_bytes: 1 << 16,
        });
        let mut said = Vec::new();
        let mut lay_out = |lane: &mut Lane| {
            let room = lane.rooms.get_mut(&1).expect("it was enqueued");
            room.lay_out(
                &lane.context,
                &mut lane.presence_due,
                &mut lane.tally,
                &mut lane.doomed,
            );
            for frame in room
                .walk
                .take()
                .iter()
                .flat_map(|walk| walk.batch.frames(0))
            {
                let object: serde_json::Value =
                    serde_json::from_slice(&frame.json()).expect("an object");
                said.push(object["rev"].as_u64().expect("presence has one"));
            }
        };
        lane.enqueue(Arc::clone(&room), change(1, "ann"));
        lay_out(&mut lane);
        tokio::time::advance(interval).await;
        // It is due while others are on their way in already.
        lane.enqueue(Arc::clone(&room), change(2, "bob"));
        lane.flush_due_presence();
        lane.enqueue(Arc::clone(&room), change(3, "eve"));
        lay_out(&mut lane);
        tokio::time::advance(interval).await;
        lane.flush_due_presence();
        lay_out(&mut lane);
        assert!(said.is_sorted(), "{said:?}");
        assert_eq!(said.last(), Some(&3), "{said:?}");
    }
}
