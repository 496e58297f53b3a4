//! One crowd under load: members that listen, publishers among them that send at a pace, and what came of it.
//!
//! Nothing is counted until a warm-up has passed and all of it has been delivered. The counted window then begins
//! before a message is sent and ends when the last one has reached its last member, so that deliveries and processor
//! time belong to each other exactly.
//!
//! Latency runs from when a message was due to be sent, not from when it was: a client that a slow server holds up
//! does not hide the wait (coordinated omission). What had not come in the end, or could not even be sent, counts with
//! the time that it had been waited for by then. Where the pace is a number of messages in flight there is no schedule,
//! and latency runs from the sending.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::{
    clock::Stopwatch,
    cost::{Cost, Meter, MeterError},
    crowd::{Crowd, CrowdError, Fate, SLICE, Traffic},
    hearing::{Hearing, Presence, WAITED_FOR, Wrong},
    link::HEAD_BYTES,
    plot::Curve,
    progress::Progress,
    target::{Dialect, Names, Target},
};

/// Longest text that a load may have; the server's own limit is usually far below.
pub const MAX_PAYLOAD: usize = 256 * 1024;
/// Longest wait for all that is still on its way after the last message of a phase, and for a publisher that the
/// server does not read.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// A good limit for members to have heard of each other before anything is sent: a room that tells rarely does not
/// hold up a run.
pub const ACQUAINT_LIMIT: Duration = Duration::from_secs(5);
/// The same wait at its end, and that for a publisher's socket.
const MOMENT: Duration = Duration::from_millis(2);
/// Bytes that may wait for a publisher's socket before it is left to catch up.
const UNSENT_BYTES: usize = 64 * 1024;
/// How long everybody listens after the last delivery for what should not come.
const AFTERTHOUGHT: Duration = Duration::from_millis(100);
/// Steps in which messages that were not sent are added to the latencies, however many they are.
const UNSENT_STEPS: u64 = 10_000;

/// When messages are sent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pace {
    /// So many a second, evenly, by all publishers of all rooms together; more than 0.
    PerSecond(f64),
    /// As many as keep this number on their way to members in each room; 1 to [`WAITED_FOR`].
    InFlight(u64),
}

/// How much is sent in a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// As much as the pace has for this length.
    Time(Duration),
    /// This number of messages of all rooms together, by a pace of messages in flight. Where they can't be sent
    /// within the time beside it, the rest is not sent.
    Messages(u64, Duration),
}

/// Who takes part, and how.
#[derive(Debug, Clone)]
pub struct Load {
    /// The server.
    pub target: Target,
    /// The names of users and rooms. The rooms must be the run's own.
    pub names: Names,
    /// Rooms; at least 1.
    pub rooms: usize,
    /// Members of all rooms together, who go to the rooms in turn; at least one each.
    pub members: usize,
    /// How many members of each room send, in turns; 1 to as many as there are.
    pub publishers: usize,
    /// Length of every text in bytes: [`HEAD_BYTES`] to [`MAX_PAYLOAD`].
    pub payload: usize,
    /// Longest time for all members to come in.
    pub gather_limit: Duration,
    /// Longest wait for what is still on its way; see [`DRAIN_LIMIT`].
    pub drain_limit: Duration,
    /// The clock, shared where several loads run beside each other.
    pub watch: Stopwatch,
}

/// Why a run gave no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A load that can't be carried out.
    #[error("{0}")]
    Plan(&'static str),
    /// The crowd could not gather or stay.
    #[error(transparent)]
    Crowd(#[from] CrowdError),
    /// The server's process could not be asked.
    #[error(transparent)]
    Meter(#[from] MeterError),
    /// One of those who were to log in at once could not.
    #[error("{user} could not log in: {why}")]
    LogIn {
        /// Who.
        user: String,
        /// What happened to it.
        why: String,
    },
    /// The warm-up was not delivered.
    #[error("{missing} deliveries of the warm-up were missing {limit:?} after it")]
    WarmUp {
        /// How many.
        missing: u64,
        /// The time they had.
        limit: Duration,
    },
}

/// What one window came to.
#[derive(Debug, Clone, Serialize)]
pub struct Part {
    /// Which, where a scenario has several.
    pub name: String,
    /// Rooms.
    pub rooms: usize,
    /// Members of all rooms together that were to be sent every message.
    pub members: usize,
    /// Publishers of each room.
    pub publishers: usize,
    /// When they sent.
    pub pace: Pace,
    /// Bytes of each text.
    pub payload: usize,
    /// Length of the window until its last delivery, in seconds.
    pub seconds: f64,
    /// Messages sent in it.
    pub messages: u64,
    /// Messages that the schedule had and that were not sent since the server did not read.
    pub unsent: u64,
    /// Times that a member was sent a message, repeats not counted.
    pub deliveries: u64,
    /// Deliveries that had not come in the end.
    pub missing: u64,
    /// Messages that were not answered by then.
    pub unanswered: u64,
    /// Deliveries in a second.
    pub deliveries_per_second: f64,
    /// Deliveries that one read of the client brought: over 1, messages shared a write or met in a socket.
    pub deliveries_per_read: f64,
    /// Bytes that the server sent for one delivery, everything included but the headers of TCP and IP.
    pub wire_bytes_per_delivery: f64,
    /// How many of a hundred answers to polls came compressed, where members take that.
    pub compressed_percent: Option<f64>,
    /// From when a message was due to when a member had read it; from its sending where the pace is a number of
    /// messages in flight.
    pub latency_us: Latency,
    /// How many of these latencies belong to deliveries that had not come in the end. They count with how long they
    /// had been waited for, which is less than they would have taken.
    pub latency_at_least: u64,
    /// 99th percentile of how late the client itself sent, in microseconds. Part of the latency.
    pub sent_late_us: u64,
    /// What the server used, if its process is known.
    pub server: Option<Cost>,
    /// The latency for a plot.
    #[serde(skip)]
    pub curve: Curve,
}

/// Percentiles in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
#[expect(missing_docs, reason = "the names are the percentiles")]
pub struct Latency {
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
    pub max: u64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            p50: histogram.value_at_quantile(0.5),
            p90: histogram.value_at_quantile(0.9),
            p99: histogram.value_at_quantile(0.99),
            p99_9: histogram.value_at_quantile(0.999),
            max: histogram.max(),
        }
    }
}

impl Load {
    /// Checks that it can be carried out.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), LoadError> {
        let refuse = |why| Err(LoadError::Plan(why));
        if self.rooms == 0 || self.members < self.rooms {
            return refuse("there has to be at least 1 room, and a member for each");
        }
        if self.publishers == 0 || self.publishers > self.members / self.rooms {
            return refuse(
                "publishers are members: a room may have 1 to as many as it has members",
            );
        }
        if !(HEAD_BYTES..=MAX_PAYLOAD).contains(&self.payload) {
            return refuse(
                "a text has 32 bytes, which tell its number and when it was due, to 262144",
            );
        }
        if !self.target.dialect.numbers() && self.publishers > 1 {
            return refuse(
                "a server that does not number messages keeps those of one sender in order: ask \
                 for 1 publisher",
            );
        }
        Ok(())
    }
}

impl Pace {
    /// Checks that it is one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(self) -> Result<(), LoadError> {
        match self {
            Self::PerSecond(rate) if !(0.001..=1e6).contains(&rate) => Err(LoadError::Plan(
                "a rate is from 0.001 to 1000000 messages a second",
            )),
            Self::InFlight(most) if !(1..=WAITED_FOR as u64).contains(&most) => {
                Err(LoadError::Plan("1 to 65536 messages may be in flight"))
            }
            _ => Ok(()),
        }
    }
}

/// A load under way.
#[derive(Debug)]
pub struct Run<'p> {
    load: Load,
    crowd: Crowd,
    hearing: Hearing,
    progress: &'p Progress,
    sent_late: Histogram<u64>,
    /// Messages of each room so far, over all phases.
    numbers: Vec<u64>,
    stalled: Range<usize>,
    /// Whether messages that are sent at once leave in one write.
    together: bool,
    enough: Arc<AtomicBool>,
}

/// What one phase came to.
#[derive(Debug, Clone, Copy)]
struct Phase {
    messages: u64,
    unsent: u64,
    missing: u64,
    unanswered: u64,
    took: Duration,
}

impl<'p> Run<'p> {
    /// Nobody there yet.
    ///
    /// # Errors
    /// If the load is impossible, or the system gives no event loop.
    pub fn new(load: Load, progress: &'p Progress) -> Result<Self, LoadError> {
        load.check()?;
        let (target, names) = (load.target.clone(), load.names.clone());
        let numbers = load.target.dialect.numbers();
        let rooms = names.rooms(load.rooms);
        let hearing = Hearing::new(numbers, load.payload, &rooms, load.publishers);
        let padding = hearing.filler().to_vec();
        let stalled = load.members..load.members;
        Ok(Self {
            crowd: Crowd::new(target, names, load.rooms, padding, load.watch)?,
            hearing,
            sent_late: Histogram::new_with_bounds(1, 60_000_000, 3)
                .expect("these bounds are valid"),
            numbers: vec![0; load.rooms],
            progress,
            stalled,
            together: false,
            enough: Arc::default(),
            load,
        })
    }

    /// Lets members in until `wanted` are there; into their rooms if `join`. Returns how long it took.
    ///
    /// # Errors
    /// If one of them fails or is refused, or they are not there in time.
    pub fn gather(&mut self, wanted: usize, join: bool) -> Result<Duration, LoadError> {
        let start = self.load.watch.elapsed();
        while !self.crowd.admit(wanted, join)? {
            let took = self.load.watch.elapsed() - start;
            if took > self.load.gather_limit {
                return Err(self.crowd.too_late(wanted, self.load.gather_limit).into());
            }
            self.progress.tell(format_args!(
                "{} of {wanted} members are in",
                self.crowd.present()
            ));
            self.crowd.turn(SLICE, &mut self.hearing)?;
        }
        Ok(self.load.watch.elapsed() - start)
    }

    /// Tells everybody who is logged in to join, and returns how long it took until all were in.
    ///
    /// # Errors
    /// As for [`Run::gather`].
    pub fn storm(&mut self) -> Result<Duration, LoadError> {
        let start = self.load.watch.elapsed();
        self.crowd.join_all()?;
        self.gather(self.load.members, true)?;
        Ok(self.load.watch.elapsed() - start)
    }

    /// From now on messages of a publisher that are sent at once leave in one write, so that it is no matter of luck
    /// which of them the server reads together.
    pub fn send_together(&mut self) {
        self.together = true;
    }

    /// Has the last `count` members, none of whom has spoken yet, leave their rooms and come in again, so often. Nobody
    /// else may speak meanwhile, and rooms must not tell of it.
    ///
    /// # Errors
    /// If the server knows no such thing, or as for [`Run::gather`].
    pub fn come_and_go(&mut self, count: usize, times: u64) -> Result<(), LoadError> {
        let speaks = matches!(self.load.target.dialect, Dialect::Chinwag(_));
        if !speaks || count > self.load.members {
            return Err(LoadError::Plan(
                "members come and go over lines or WebSocket, and only as many as there are",
            ));
        }
        let who = self.load.members - count..self.load.members;
        for _ in 0..times {
            self.crowd.leave(who.clone())?;
            self.until(who.start)?;
            self.crowd.join(who.clone())?;
            self.until(who.end)?;
        }
        Ok(())
    }

    /// Waits until so many members are in their rooms.
    fn until(&mut self, present: usize) -> Result<(), LoadError> {
        let start = self.load.watch.elapsed();
        while self.crowd.present() != present {
            if self.load.watch.elapsed() - start > self.load.gather_limit {
                return Err(self.crowd.too_late(present, self.load.gather_limit).into());
            }
            self.crowd.turn(SLICE, &mut self.hearing)?;
        }
        Ok(())
    }

    /// Waits until everybody has heard of everybody, which is told after some time where presence is batched; at most
    /// for `limit`. Returns how many have not.
    ///
    /// # Errors
    /// If the crowd fails.
    pub fn acquaint(&mut self, limit: Duration) -> Result<u64, LoadError> {
        let start = self.load.watch.elapsed();
        loop {
            let ignorant = self.hearing.ignorant();
            if ignorant == 0 || self.load.watch.elapsed() - start > limit {
                return Ok(ignorant);
            }
            self.progress.tell(format_args!(
                "{ignorant} members have not heard of all others yet"
            ));
            self.crowd.turn(SLICE / 5, &mut self.hearing)?;
        }
    }

    /// Listens and sends nothing for `length`; returns what went over the connections.
    ///
    /// # Errors
    /// If the crowd fails.
    pub fn rest(&mut self, length: Duration) -> Result<Traffic, LoadError> {
        let (start, before) = (self.load.watch.elapsed(), self.crowd.traffic());
        while let Some(left) = length.checked_sub(self.load.watch.elapsed() - start) {
            self.progress.tell(format_args!(
                "quiet for another {:.0} s",
                left.as_secs_f64()
            ));
            self.crowd.turn(left, &mut self.hearing)?;
        }
        Ok(self.crowd.traffic().since(before))
    }

    /// Sends at `pace` for `length`, uncounted, until all of it is delivered.
    ///
    /// # Errors
    /// If the crowd fails, or not all is delivered.
    pub fn warm_up(&mut self, pace: Pace, length: Duration) -> Result<(), LoadError> {
        if length.is_zero() {
            return Ok(());
        }
        let missing = self.phase("warm-up", pace, Span::Time(length))?.missing;
        if missing > 0 {
            let limit = self.load.drain_limit;
            return Err(LoadError::WarmUp { missing, limit });
        }
        Ok(())
    }

    /// Sends at `pace` for `length`, and counts. With the server's process id it is told what that used.
    ///
    /// # Errors
    /// If the crowd fails.
    pub fn measure(
        &mut self,
        name: &str,
        pace: Pace,
        length: Duration,
        pid: Option<u32>,
    ) -> Result<Part, LoadError> {
        self.measure_span(name, pace, Span::Time(length), pid)
    }

    /// The same for as much as `span` has.
    ///
    /// # Errors
    /// As for [`Run::measure`], and if a number of messages is asked for at a rate.
    pub fn measure_span(
        &mut self,
        name: &str,
        pace: Pace,
        span: Span,
        pid: Option<u32>,
    ) -> Result<Part, LoadError> {
        self.hearing.begin_counting();
        self.sent_late.reset();
        let before = self.crowd.traffic();
        let meter = pid.map(Meter::read).transpose()?;
        let phase = self.phase(name, pace, span)?;
        let deliveries = self.hearing.delivered();
        let server = meter
            .map(|meter| Meter::since(&meter, phase.took, deliveries))
            .transpose()?;
        let traffic = self.crowd.traffic().since(before);
        let each = |amount: u64, of: u64| amount as f64 / of.max(1) as f64;
        let seconds = phase.took.as_secs_f64();
        let latency_at_least = self.hearing.not_come();
        let curve = match latency_at_least {
            0 => name.to_owned(),
            count => format!("{name} ({count} at least)"),
        };
        Ok(Part {
            name: name.to_owned(),
            rooms: self.load.rooms,
            members: self.stalled.start,
            publishers: self.load.publishers,
            pace,
            payload: self.load.payload,
            seconds,
            messages: phase.messages,
            unsent: phase.unsent,
            deliveries,
            missing: phase.missing,
            unanswered: phase.unanswered,
            deliveries_per_second: deliveries as f64 / seconds,
            deliveries_per_read: each(deliveries, traffic.reads),
            wire_bytes_per_delivery: each(traffic.bytes_in, deliveries),
            compressed_percent: (self.load.target.gzip && traffic.answers > 0)
                .then(|| 100.0 * each(traffic.compressed, traffic.answers)),
            latency_us: Latency::of(self.hearing.latency()),
            latency_at_least,
            sent_late_us: self.sent_late.value_at_quantile(0.99),
            server,
            curve: Curve::of(&curve, self.hearing.latency()),
        })
    }

    /// From now on the last `count` members read nothing, and nothing is expected of them.
    ///
    /// # Errors
    /// If their sockets can't be let go.
    pub fn stall(&mut self, count: usize) -> Result<(), LoadError> {
        self.stalled = self.load.members - count..self.load.members;
        for member in self.stalled.clone() {
            self.hearing.stop(member);
        }
        Ok(self.crowd.stall(self.stalled.clone())?)
    }

    /// The local ports of those that stalled.
    ///
    /// # Errors
    /// If a socket has none.
    pub fn stalled_ports(&mut self) -> Result<Vec<u16>, LoadError> {
        Ok(self.crowd.local_ports(self.stalled.clone())?)
    }

    /// Lets those that stalled read again, for at most `limit`, to see what became of them.
    ///
    /// # Errors
    /// If the crowd fails.
    pub fn fates(&mut self, limit: Duration) -> Result<Vec<Fate>, LoadError> {
        Ok(self
            .crowd
            .fates(self.stalled.clone(), limit, &mut self.hearing)?)
    }

    /// Once this is true, nothing is sent any more: windows end before their time.
    #[must_use]
    pub fn enough(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.enough)
    }

    /// Messages that members who stopped reading were not sent, by a server that numbers none: its own rule.
    #[must_use]
    pub fn passed_over(&self) -> u64 {
        self.hearing.passed_over()
    }

    /// How often a member without traffic shows that it lives, as far as the server told or polls make it; `None` if
    /// it need not.
    #[must_use]
    pub fn period(&self) -> Option<Duration> {
        self.crowd.period()
    }

    /// What was wrong with what members heard so far.
    #[must_use]
    pub fn wrong(&self) -> Wrong {
        self.hearing.wrong()
    }

    /// Listens for a moment, since what is sent once too often may come last, and tells what was wrong with all that
    /// members heard.
    ///
    /// # Errors
    /// If the crowd fails.
    pub fn verdict(&mut self) -> Result<Wrong, LoadError> {
        self.rest(AFTERTHOUGHT)?;
        Ok(self.hearing.wrong())
    }

    /// What members were told about each other since counting began.
    #[must_use]
    pub fn presence(&self) -> Presence {
        self.hearing.presence()
    }

    /// When members were first told that others had left, and how many, since counting began.
    #[must_use]
    pub fn departures(&self) -> &[(Duration, u64)] {
        self.hearing.departures()
    }

    /// From now on presence is counted.
    pub fn count_presence(&mut self) {
        self.hearing.begin_counting();
    }

    /// What went over all connections so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.crowd.traffic()
    }

    /// Publishes what `span` has at `pace`, then waits until all of it is delivered and answered.
    fn phase(&mut self, name: &str, pace: Pace, span: Span) -> Result<Phase, LoadError> {
        pace.check()?;
        self.hearing.begin_phase();
        let watch = self.load.watch;
        let start = watch.elapsed();
        let (messages, unsent) = match (pace, span) {
            (Pace::PerSecond(rate), Span::Time(length)) => {
                self.at_rate(name, rate, start, length)?
            }
            (Pace::PerSecond(_), Span::Messages(..)) => {
                return Err(LoadError::Plan(
                    "a number of messages is sent by how many are in flight",
                ));
            }
            (Pace::InFlight(most), Span::Time(length)) => {
                (self.in_flight(name, most, u64::MAX, start, length)?, 0)
            }
            (Pace::InFlight(most), Span::Messages(all, limit)) => {
                let messages = self.in_flight(name, most, all, start, limit)?;
                (messages, all - messages)
            }
        };
        let drain_from = watch.elapsed();
        let (missing, unanswered) = loop {
            let missing = self.hearing.owed();
            let unanswered = messages.saturating_sub(self.hearing.acknowledged());
            let all = missing == 0 && unanswered == 0;
            if all || watch.elapsed() - drain_from > self.load.drain_limit {
                break (missing, unanswered);
            }
            self.crowd.turn(SLICE / 10, &mut self.hearing)?;
        };
        let now = watch.elapsed();
        self.hearing.add_missing(now);
        if let Pace::PerSecond(rate) = pace {
            self.add_unsent(messages..messages + unsent, rate, start, now);
        }
        let mut took = now - start;
        if let Span::Time(length) = span
            && !self.has_enough()
        {
            took = took.max(length);
        }
        Ok(Phase {
            messages,
            unsent,
            missing,
            unanswered,
            took,
        })
    }

    /// Sends by a schedule, whatever the server does. Returns how many messages were sent and how many were not, since
    /// the server did not read.
    fn at_rate(
        &mut self,
        name: &str,
        rate: f64,
        start: Duration,
        length: Duration,
    ) -> Result<(u64, u64), LoadError> {
        let rooms = self.load.rooms as u64;
        let all = scheduled(rate, length);
        let mut messages = 0;
        while messages < all {
            if self.has_enough() {
                return Ok((messages, 0));
            }
            let now = self.load.watch.elapsed();
            let due = start + Duration::from_secs_f64(messages as f64 / rate);
            let wait = if due > now {
                due - now
            } else {
                let room = usize::try_from(messages % rooms).expect("less than a usize");
                if self.publish(room, due)? {
                    messages += 1;
                    continue;
                }
                if now > start + length + self.load.drain_limit {
                    break;
                }
                MOMENT
            };
            self.tell(name, start, length);
            self.crowd.turn(wait, &mut self.hearing)?;
        }
        Ok((messages, all - messages))
    }

    /// Adds the messages of these numbers in the schedule, which were not sent, to the latencies. Where they are too
    /// many to be taken one by one, as the last of a group was due.
    fn add_unsent(&mut self, numbers: Range<u64>, rate: f64, start: Duration, now: Duration) {
        let step = (numbers.end - numbers.start).div_ceil(UNSENT_STEPS).max(1);
        let mut next = numbers.start;
        while next < numbers.end {
            let count = step.min(numbers.end - next);
            let room = usize::try_from(next % self.load.rooms as u64).expect("less than a usize");
            next += count;
            let due = start + Duration::from_secs_f64((next - 1) as f64 / rate);
            self.hearing.add_unsent(room, count, due, now);
        }
    }

    /// Sends as much as keeps `most` messages of each room on their way, but not more than `all` messages. Returns how
    /// many were sent.
    fn in_flight(
        &mut self,
        name: &str,
        most: u64,
        all: u64,
        start: Duration,
        length: Duration,
    ) -> Result<u64, LoadError> {
        let end = start + length;
        let mut messages = 0;
        // Rooms that may have fewer on their way than they should.
        let mut hungry: Vec<usize> = (0..self.load.rooms).collect();
        let mut stuck = Vec::new();
        loop {
            let now = self.load.watch.elapsed();
            if now >= end || messages == all || self.has_enough() {
                return Ok(messages);
            }
            for room in hungry.drain(..) {
                let publishers = self.together.then(|| self.publishers(room));
                for member in publishers.clone().into_iter().flatten() {
                    self.crowd.hold(member)?;
                }
                while self.hearing.open(room) < most && messages < all {
                    if !self.publish(room, self.load.watch.elapsed())? {
                        stuck.push(room);
                        break;
                    }
                    messages += 1;
                }
                for member in publishers.into_iter().flatten() {
                    self.crowd.let_go(member)?;
                }
            }
            let wait = if stuck.is_empty() { end - now } else { MOMENT };
            self.tell(name, start, length);
            self.crowd.turn(wait, &mut self.hearing)?;
            hungry.append(&mut stuck);
            self.hearing.take_freed(&mut hungry);
        }
    }

    fn publishers(&self, room: usize) -> impl Iterator<Item = usize> + Clone + use<> {
        let rooms = self.load.rooms;
        (0..self.load.publishers).map(move |turn| room + turn * rooms)
    }

    /// Sends the next message of `room`, which was due at `due`; false if the publisher's socket has to catch up first.
    fn publish(&mut self, room: usize, due: Duration) -> Result<bool, LoadError> {
        let number = self.numbers[room] + 1;
        let turn = usize::try_from(number % self.load.publishers as u64)
            .expect("less than the number of publishers, which is a usize");
        let member = room + turn * self.load.rooms;
        let now = self.load.watch.elapsed();
        if !self.crowd.publish(member, due, number, UNSENT_BYTES)? {
            return Ok(false);
        }
        self.numbers[room] = number;
        self.hearing.sent(room, due, now);
        let late = now.saturating_sub(due);
        let late = u64::try_from(late.as_micros()).unwrap_or(u64::MAX);
        self.sent_late.saturating_record(late);
        Ok(true)
    }

    fn has_enough(&self) -> bool {
        self.enough.load(Ordering::Acquire)
    }

    fn tell(&self, name: &str, start: Duration, length: Duration) {
        let passed = (self.load.watch.elapsed() - start).as_secs_f64();
        let heard = self.hearing.delivered() as f64;
        self.progress.tell(format_args!(
            "{name}: {passed:.1} of {:.1} s, {:.0} deliveries/s, p50 {:.2} ms",
            length.as_secs_f64(),
            heard / passed.max(0.001),
            self.hearing.latency().value_at_quantile(0.5) as f64 / 1000.0,
        ));
    }
}

/// How many messages a schedule of `rate` a second has in `length`: those that are due before its end.
fn scheduled(rate: f64, length: Duration) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate is at most a million, and a length some hours"
    )]
    // A hair less, so that a product that should be whole is not rounded up.
    let count = (rate * length.as_secs_f64() - 1e-6).ceil() as u64;
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_ends_before_its_length_is_over() {
        assert_eq!(scheduled(10.0, Duration::from_secs(2)), 20);
        assert_eq!(scheduled(10.0, Duration::from_millis(50)), 1);
        assert_eq!(scheduled(0.1, Duration::from_secs(1)), 1);
        assert_eq!(scheduled(10.0, Duration::ZERO), 0);
    }
}
