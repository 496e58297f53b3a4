//! What others still have to be told: that stays and sessions are over.
//!
//! - Each notice is told until it is answered, so perhaps more than once; those of one session one
//!   after another, in their order, so that a session's stays end before it does.
//! - What can't be told is tried again, less and less often, within a number of tries and a time.
//!   What is over either, or over what may wait, is given up, counted and logged. That nobody was
//!   asked since too many others were is no try.
//! - When the server stops, what waits is tried as long as the grace lasts, however often that is.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use chinwag_core::{
    NoticeMetrics, NoticeOutcome,
    clock::{self, Instant},
    config::{Size, Span},
    plugin::{BuildError, Holding, Stay},
};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::{sync::Notify, time::timeout_at};
use tracing::warn;

use crate::callout::NoAnswer;

/// How long until the second try, and the longest between two, while the server runs and while it
/// stops.
const FIRST_REST: Duration = Duration::from_millis(250);
const LONGEST_REST: Duration = Duration::from_secs(5);
const LONGEST_LAST_REST: Duration = Duration::from_millis(500);
/// How often it is worth a line that notices are given up.
const WARN_EVERY: Duration = Duration::from_secs(10);
const MAX_QUEUE: usize = 10_000_000;
/// The least has room for any one.
const BYTES: RangeInclusive<Size> = Size(64 << 10)..=Size(1 << 30);

/// How long and how often notices are tried: a `notices` table of a session manager.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Notices {
    /// The most that wait, 1 to 10,000,000; the newest beyond that are given up. Default 100,000: at
    /// a stop, each session has one and each of its stays another.
    pub queue: usize,
    /// The most bytes of messages that wait, 64 KiB to 1 GiB; the newest beyond that are given up.
    /// Default 64 MiB: for each of as many as may wait by default, some 670 bytes.
    pub bytes: Size,
    /// How often each is tried before it is given up, at least once, while the server does not stop.
    /// Default 20.
    pub tries: u32,
    /// How long each is tried before it is given up, while the server does not stop. Above zero;
    /// default a minute.
    pub age: Span,
}

impl Default for Notices {
    fn default() -> Self {
        Self {
            queue: 100_000,
            bytes: Size(64 << 20),
            tries: 20,
            age: Span::secs(60),
        }
    }
}

impl Notices {
    pub(super) fn check(&self) -> Result<(), BuildError> {
        let sound = (1..=MAX_QUEUE).contains(&self.queue)
            && BYTES.contains(&self.bytes)
            && self.tries > 0
            && !self.age.is_zero();
        sound.then_some(()).ok_or_else(|| {
            let (least, most) = (BYTES.start(), BYTES.end());
            let message = format!(
                "`queue` is 1 to {MAX_QUEUE}, `bytes` {least} to {most}, `tries` at least 1, and `age` above zero: what \
                 is over would be told to nobody"
            );
            BuildError::key("notices", message)
        })
    }
}

/// One thing to tell.
#[derive(Debug, Clone)]
pub(super) struct Notice {
    /// That of the session.
    pub(super) key: Arc<str>,
    pub(super) message: Bytes,
}

/// What came of telling a notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    Yes,
    No,
    /// Nobody was asked: too many others were.
    Busy,
    /// Not now: it is to be told again, not before so long.
    Later(Duration),
}

impl From<Result<Option<Duration>, NoAnswer>> for Heard {
    fn from(told: Result<Option<Duration>, NoAnswer>) -> Self {
        match told {
            Ok(None) => Self::Yes,
            Ok(Some(retry)) => Self::Later(retry),
            Err(none) if none.was_busy => Self::Busy,
            Err(_) => Self::No,
        }
    }
}

/// What waits to be told.
pub(super) struct Outbox {
    manager: String,
    bounds: Notices,
    metrics: NoticeMetrics,
    state: Mutex<State>,
    /// Something is due, or may be earlier than it was.
    arrived: Notify,
    /// Something was told or given up, or a session is over.
    moved: Notify,
}

#[derive(Default)]
struct State {
    /// By the key of the session. None is empty.
    sessions: HashMap<Arc<str>, VecDeque<Waiting>>,
    /// When to tell the first notice of each session that nobody is telling right now. The number
    /// tells equal times apart.
    due: BTreeSet<(Instant, u64, Arc<str>)>,
    waiting: usize,
    /// Of their messages.
    bytes: usize,
    turns: u64,
    /// Sessions that may still have something to tell.
    open: usize,
    is_stopping: bool,
    /// Nobody tells anything any more.
    is_over: bool,
    warned: Option<Instant>,
    /// Given up since then and not said yet.
    unsaid: u64,
}

struct Waiting {
    message: Bytes,
    /// Counts them as held for the stay, where it is the end of one.
    _held: Option<Holding>,
    since: Instant,
    tries: u32,
}

impl State {
    fn is_due(&mut self, key: Arc<str>, at: Instant) {
        self.turns += 1;
        self.due.insert((at, self.turns, key));
    }
}

impl Outbox {
    pub(super) fn new(manager: String, bounds: Notices, metrics: NoticeMetrics) -> Self {
        Self {
            manager,
            bounds,
            metrics,
            state: Mutex::default(),
            arrived: Notify::new(),
            moved: Notify::new(),
        }
    }

    /// A session may have something to tell, until [`close`](Self::close).
    pub(super) fn open(&self) {
        self.state.lock().open += 1;
    }

    pub(super) fn close(&self) {
        self.state.lock().open -= 1;
        self.moved.notify_waiters();
    }

    /// Has it told; `stay` is whose end it is, if it is one's. Never blocks.
    pub(super) fn push(&self, notice: Notice, stay: Option<&Stay>) {
        let now = clock::now();
        let Notice { key, message } = notice;
        let bytes = message.len();
        let mut state = self.state.lock();
        let is_full =
            state.waiting >= self.bounds.queue || state.bytes + bytes > self.bounds.bytes.0;
        if state.is_over || is_full {
            self.give_up(&mut state, 1, now);
            return;
        }
        state.waiting += 1;
        state.bytes += bytes;
        self.metrics.waiting(state.waiting);
        let waiting = Waiting {
            message,
            _held: stay.map(|stay| stay.hold(bytes)),
            since: now,
            tries: 0,
        };
        let queue = state.sessions.entry(Arc::clone(&key)).or_default();
        queue.push_back(waiting);
        if queue.len() == 1 {
            state.is_due(key, now);
            drop(state);
            self.arrived.notify_one();
        }
    }

    /// Counts notices that nobody will hear, and says so now and then.
    fn give_up(&self, state: &mut State, many: u64, now: Instant) {
        self.metrics.count(NoticeOutcome::Undelivered, many);
        state.unsaid += many;
        let is_due = state.warned.is_none_or(|warned| now >= warned + WARN_EVERY);
        if is_due {
            state.warned = Some(now);
            let undelivered = std::mem::take(&mut state.unsaid);
            warn!(
                session_manager = self.manager,
                undelivered, "Ends of sessions or stays could not be told and are given up."
            );
        }
    }

    /// The next notice that is due, which is then to be [settled](Self::settle). Any number may wait for
    /// one. Cancel safe.
    pub(super) async fn next(&self) -> Notice {
        loop {
            let arrived = self.arrived.notified();
            let now = clock::now();
            let until = {
                let mut state = self.state.lock();
                match state.due.pop_first() {
                    Some((at, _, key)) if at <= now => {
                        let more = state.due.first().is_some_and(|(at, ..)| *at <= now);
                        let first = state.sessions.get(&key).and_then(VecDeque::front);
                        let first = first.expect("what is due has a notice");
                        let message = first.message.clone();
                        drop(state);
                        if more {
                            // One call for many arrivals would wake but one of those who wait.
                            self.arrived.notify_one();
                        }
                        return Notice { key, message };
                    }
                    Some(later) => {
                        let until = later.0;
                        state.due.insert(later);
                        Some(until)
                    }
                    None => None,
                }
            };
            match until {
                Some(until) => {
                    let _earlier = timeout_at(until, arrived).await;
                }
                None => arrived.await,
            }
        }
    }

    /// The notice of that session that was [given](Self::next) has been told, or could not be. Whoever
    /// wants it later than it is kept, or while the server stops, is told again before that.
    pub(super) fn settle(&self, key: Arc<str>, heard: Heard) {
        let now = clock::now();
        let mut state = self.state.lock();
        let longest = if state.is_stopping {
            LONGEST_LAST_REST
        } else {
            LONGEST_REST
        };
        let Some(first) = state.sessions.get_mut(&key).and_then(VecDeque::front_mut) else {
            return; // Given up with all others, while it was told.
        };
        if heard != Heard::Busy {
            first.tries += 1;
        }
        let too_old = first.since + self.bounds.age.0;
        let is_spent = first.tries >= self.bounds.tries || now >= too_old;
        let doublings = first.tries.saturating_sub(1).min(16);
        // A server that stops goes on for as long as it may.
        if heard != Heard::Yes && (state.is_stopping || !is_spent) {
            self.metrics.count(NoticeOutcome::Retried, 1);
            let mut rest = FIRST_REST.saturating_mul(1 << doublings).min(longest);
            if !state.is_stopping {
                if let Heard::Later(asked) = heard {
                    rest = rest.max(asked);
                }
                rest = rest.min(too_old - now);
            }
            state.is_due(key, now + rest);
            drop(state);
            self.arrived.notify_one();
            return;
        }
        let queue = state.sessions.get_mut(&key).expect("it has a first notice");
        let first = queue.pop_front();
        let is_empty = queue.is_empty();
        state.bytes -= first.map_or(0, |first| first.message.len());
        state.waiting -= 1;
        self.metrics.waiting(state.waiting);
        if is_empty {
            state.sessions.remove(&key);
        } else {
            state.is_due(key, now);
        }
        if heard == Heard::Yes {
            self.metrics.count(NoticeOutcome::Delivered, 1);
        } else {
            self.give_up(&mut state, 1, now);
        }
        drop(state);
        if !is_empty {
            self.arrived.notify_one();
        }
        self.moved.notify_waiters();
    }

    /// The server stops: what rests is tried again soon, and rests are short from now on.
    pub(super) fn hurry(&self) {
        let now = clock::now();
        let mut state = self.state.lock();
        state.is_stopping = true;
        let due = std::mem::take(&mut state.due);
        state.due = due
            .into_iter()
            .map(|(at, turn, key)| (at.min(now + LONGEST_LAST_REST), turn, key))
            .collect();
        drop(state);
        self.arrived.notify_one();
    }

    /// Waits until every session is over and all was told or given up. Cancel safe.
    pub(super) async fn told(&self) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            {
                let state = self.state.lock();
                if state.open == 0 && state.waiting == 0 {
                    return;
                }
            }
            moved.await;
        }
    }

    /// Nobody tells anything any more: what waits, and what is still to come, is given up.
    pub(super) fn abandon(&self) {
        let mut state = self.state.lock();
        state.is_over = true;
        state.bytes = 0;
        let left = std::mem::take(&mut state.waiting) as u64;
        state.sessions.clear();
        state.due.clear();
        self.metrics.waiting(0);
        self.metrics.count(NoticeOutcome::Undelivered, left);
        let undelivered = left + std::mem::take(&mut state.unsaid);
        if undelivered > 0 {
            warn!(
                session_manager = self.manager,
                undelivered,
                "The server stops before these ends of sessions or stays could be told."
            );
        }
    }
}
