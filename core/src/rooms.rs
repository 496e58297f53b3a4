//! The rooms of this node: created on first join, kept empty for a while, given up longest-empty first at the cap.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustc_hash::FxHashMap;

use crate::{
    ErrorCode, Refusal,
    clock::{self, Instant},
    config::Create,
    lane::{LaneCommand, LaneInbox},
    lock::Mutex,
    names::is_room_char,
    room::{Room, RoomContext, RoomOptions},
};

/// The names that a `[rooms.NAME]` table is for: one name, or a pattern in which `*` stands for any characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomPattern(String);

impl FromStr for RoomPattern {
    type Err = String;

    /// # Errors
    /// What could match no room's name.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.len() > 64 || !text.chars().all(|c| c == '*' || is_room_char(c))
        {
            return Err(format!(
                "{text:?} matches no room; rooms have 1 to 64 of a-z 0-9 . _ : - (and * here)"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl RoomPattern {
    /// Whether it is one name.
    #[must_use]
    pub fn is_exact(&self) -> bool {
        !self.0.contains('*')
    }

    /// Length of what stands before the first `*`.
    fn prefix_len(&self) -> usize {
        self.0.find('*').unwrap_or(self.0.len())
    }

    /// Exact beats pattern, then the longer literal prefix.
    fn rank(&self) -> (bool, usize) {
        (self.is_exact(), self.prefix_len())
    }

    /// Whether two patterns rank the same where both match: they differ in nothing before their first `*`.
    pub(crate) fn ties_with(&self, other: &Self) -> bool {
        self.rank() == other.rank()
            && self.0.get(..self.prefix_len()) == other.0.get(..other.prefix_len())
    }

    /// The pattern as it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a room of that name is one of them.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let Some(mut rest) = parts.next().and_then(|prefix| name.strip_prefix(prefix)) else {
            return false;
        };
        if self.is_exact() {
            return rest.is_empty();
        }
        let mut parts = parts.peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                return rest.ends_with(part);
            }
            match rest.split_once(part) {
                Some((_, after)) => rest = after,
                None => return false,
            }
        }
        true
    }
}

/// The options of every room: those of `[room]`, or of the best matching `[rooms.NAME]`.
pub(crate) struct OptionTable {
    pub(crate) default: Arc<RoomOptions>,
    pub(crate) patterns: Vec<(RoomPattern, Arc<RoomOptions>)>,
}

impl OptionTable {
    fn of(&self, name: &str) -> &Arc<RoomOptions> {
        let best = self
            .patterns
            .iter()
            .filter(|(pattern, _)| pattern.matches(name));
        best.max_by_key(|(pattern, _)| pattern.rank())
            .map_or(&self.default, |(_, options)| options)
    }
}

/// What the directory counts.
pub(crate) struct RoomMetrics {
    pub(crate) rooms: metrics::Gauge,
    pub(crate) created: metrics::Counter,
    pub(crate) removed: metrics::Counter,
}

pub(crate) struct Rooms {
    max: usize,
    context: Arc<RoomContext>,
    options: OptionTable,
    lanes: Vec<Arc<LaneInbox>>,
    metrics: RoomMetrics,
    next_id: AtomicU64,
    homes: RandomState,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Clients choose the names: hashed with a secret, as is the choice of the lane.
    rooms: HashMap<Arc<str>, Arc<Room>>,
    /// Empty rooms by when they became so: at the cap the first goes.
    empty: BTreeMap<(Instant, u64), Arc<Room>>,
    /// The same by when they are given up.
    due: BTreeMap<(Instant, u64), Arc<Room>>,
    /// When each became empty, and when it is given up.
    empty_since: FxHashMap<u64, (Instant, Instant)>,
}

/// Keeps a room from being given up.
pub(crate) struct RoomPin {
    rooms: Arc<Rooms>,
    pub(crate) room: Arc<Room>,
}

impl Drop for RoomPin {
    fn drop(&mut self) {
        self.room.pins.fetch_sub(1, Ordering::AcqRel);
        self.rooms.look_at(&self.room);
    }
}

/// What a room costs its first visitor: the rates of creation, asked only when one is really created.
pub(crate) trait MayCreate {
    fn may_create(&self) -> Result<(), Refusal>;
}

impl Rooms {
    pub(crate) fn new(
        max: usize,
        context: RoomContext,
        options: OptionTable,
        lanes: Vec<Arc<LaneInbox>>,
        metrics: RoomMetrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            max,
            context: Arc::new(context),
            options,
            lanes,
            metrics,
            next_id: AtomicU64::new(1),
            homes: RandomState::new(),
            inner: Mutex::default(),
        })
    }

    /// The room of that name, created where it may be, pinned.
    pub(crate) fn enter(
        self: &Arc<Self>,
        name: &str,
        visitor: &impl MayCreate,
    ) -> Result<RoomPin, Refusal> {
        let mut inner = self.inner.lock();
        let room = if let Some(room) = inner.rooms.get(name) {
            let room = Arc::clone(room);
            inner.not_empty(room.id);
            room
        } else {
            let options = Arc::clone(self.options.of(name));
            if options.config.create == Create::Configured && !options.configured {
                return Err(Refusal::new(
                    ErrorCode::Forbidden,
                    "Only rooms of the configuration exist here.",
                ));
            }
            visitor.may_create()?;
            if inner.rooms.len() >= self.max && !self.give_up_longest_empty(&mut inner) {
                return Err(Refusal::new(
                    ErrorCode::TooMany,
                    "There are as many rooms as there may be.",
                ));
            }
            let room = Arc::new(self.create(name, options)?);
            inner
                .rooms
                .insert(Arc::clone(&room.name), Arc::clone(&room));
            self.metrics.created.increment(1);
            self.metrics.rooms.increment(1);
            room
        };
        Ok(self.pin(&room))
    }

    /// What a room of that name is like, whether or not there is one.
    pub(crate) fn options(&self, name: &str) -> &Arc<RoomOptions> {
        self.options.of(name)
    }

    fn create(&self, name: &str, options: Arc<RoomOptions>) -> Result<Room, Refusal> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut epoch = [0; 4];
        getrandom::fill(&mut epoch).map_err(|_| {
            Refusal::new(ErrorCode::Internal, "The server has no randomness to give.")
        })?;
        let epoch = epoch.iter().map(|byte| format!("{byte:02x}")).collect();
        let hash = self.homes.hash_one(name);
        let lane = usize::try_from(hash % self.lanes.len() as u64).unwrap_or(0);
        let lane = Arc::clone(&self.lanes[lane]);
        let context = Arc::clone(&self.context);
        Ok(Room::new(name.into(), id, epoch, options, context, lane))
    }

    /// Keeps `room` from being given up while something about it is under way.
    pub(crate) fn pin(self: &Arc<Self>, room: &Arc<Room>) -> RoomPin {
        room.pins.fetch_add(1, Ordering::AcqRel);
        RoomPin {
            rooms: Arc::clone(self),
            room: Arc::clone(room),
        }
    }

    /// Notes whether a room is empty now. May be called under the room's lock: this lock is taken after it.
    pub(crate) fn look_at(&self, room: &Arc<Room>) {
        if !room.is_empty() {
            return;
        }
        let mut inner = self.inner.lock();
        let known = inner
            .rooms
            .get(&room.name)
            .is_some_and(|known| known.id == room.id);
        if room.is_empty() && known && !inner.empty_since.contains_key(&room.id) {
            let now = clock::now();
            let due = now + room.options.config.linger.0;
            inner.empty_since.insert(room.id, (now, due));
            inner.empty.insert((now, room.id), Arc::clone(room));
            inner.due.insert((due, room.id), Arc::clone(room));
        }
    }

    /// Gives up rooms that have been empty for their `linger`.
    pub(crate) fn sweep(&self, now: Instant) {
        let mut inner = self.inner.lock();
        while let Some((&(due, _), room)) = inner.due.first_key_value()
            && due <= now
        {
            let room = Arc::clone(room);
            self.give_up(&mut inner, &room);
        }
    }

    fn give_up_longest_empty(&self, inner: &mut Inner) -> bool {
        let longest = inner
            .empty
            .first_key_value()
            .map(|(_, room)| Arc::clone(room));
        longest.is_some_and(|room| {
            self.give_up(inner, &room);
            true
        })
    }

    fn give_up(&self, inner: &mut Inner, room: &Arc<Room>) {
        inner.not_empty(room.id);
        inner.rooms.remove(&room.name);
        room.give_up();
        self.metrics.removed.increment(1);
        self.metrics.rooms.decrement(1);
        room.lane.post(Arc::clone(room), LaneCommand::Forget);
    }

    /// Has every room accept nothing more. After this each message was either refused or posted to its lane.
    pub(crate) fn stop(&self) {
        self.context.stopped.store(true, Ordering::SeqCst);
        let rooms: Vec<Arc<Room>> = self.inner.lock().rooms.values().cloned().collect();
        for room in rooms {
            room.fence();
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.inner.lock().rooms.len()
    }

    /// How often [`Rooms::sweep`] has to look.
    pub(crate) const SWEEP_EVERY: Duration = Duration::from_secs(1);
}

impl Inner {
    fn not_empty(&mut self, id: u64) {
        if let Some((since, due)) = self.empty_since.remove(&id) {
            self.empty.remove(&(since, id));
            self.due.remove(&(due, id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        pattern.parse::<RoomPattern>().unwrap().matches(name)
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        assert!(matches("lobby", "lobby") && !matches("lobby", "lobby2"));
        assert!(
            matches("game:*", "game:42")
                && matches("game:*", "game:")
                && !matches("game:*", "games")
        );
        assert!(matches("*:chat", "a:chat") && !matches("*:chat", "a:chat2"));
        assert!(matches("a*b*c", "a1b2c") && !matches("a*b*c", "acb"));
        assert!(matches("*", "anything") && matches("a**b", "ab"));
        assert!(!matches("a*a", "a"));
        for bad in ["", "Lobby", "a b", "a/b"] {
            assert!(bad.parse::<RoomPattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn exact_beats_pattern_and_longer_prefix_beats_shorter() {
        let rank = |pattern: &str| pattern.parse::<RoomPattern>().unwrap().rank();
        assert!(
            rank("game") > rank("game:a:*")
                && rank("game:*") > rank("g*")
                && rank("g*") > rank("*")
        );
        let tie = |a: &str, b: &str| {
            a.parse::<RoomPattern>()
                .unwrap()
                .ties_with(&b.parse().unwrap())
        };
        assert!(
            tie("game:*", "game:*x")
                && tie("a", "a")
                && !tie("game:*", "gate:*")
                && !tie("g*", "ga*")
        );
    }
}
