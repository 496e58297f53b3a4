//! One run of load: members that listen, publishers among them that send at a pace, and what it all
//! cost.
//!
//! Nothing is counted until a warm-up has passed and all of it has been delivered. The counted
//! window then begins before a message is sent and ends when the last one has reached its last
//! member, so that deliveries and processor time belong to each other exactly.
//!
//! Latency runs from when a message was due to be sent, not from when it was: a client that a slow
//! server holds up does not hide the wait (coordinated omission). Where the pace is a number of
//! messages in flight there is no schedule, and it runs from the sending.

use std::{borrow::Cow, fmt::Write as _, io, time::Duration};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::{
    crowd::{Audience, Crowd, CrowdError, Venue, told},
    process::{self, Usage},
    sequence::{Arrival, Sequence},
    wire::Framing,
};

/// Digits at the beginning of every text: when it was due, in nanoseconds of the client's
/// stopwatch.
pub const STAMP_BYTES: usize = 16;
/// Longest text that a plan may ask for; the server's own limit is usually far below.
pub const MAX_PAYLOAD: usize = 256 * 1024;
/// A good limit for what is still on its way after the last message.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// Longest single wait for sockets.
const SLICE: Duration = Duration::from_millis(100);
/// The same while a phase ends.
const DRAIN_SLICE: Duration = Duration::from_millis(10);
/// Bytes that may wait for a publisher's socket before it is left to catch up.
const UNSENT_BYTES: usize = 64 * 1024;
/// Events kept to recognise them when the other members get them too.
const RECENT: usize = 1024;
/// Longest latency that is told apart, in microseconds.
const LATENCY_LIMIT_US: u64 = 60_000_000;

/// When messages are sent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pace {
    /// So many a second, evenly, by all publishers together; more than 0.
    PerSecond(f64),
    /// As many as keep this number on their way to members; at least 1.
    InFlight(u64),
}

/// One run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Whom and how to join. The room must be the run's own.
    pub venue: Venue,
    /// Members of the room; at least 1.
    pub members: usize,
    /// How many of them send in turns; 1 to `members`.
    pub publishers: usize,
    /// When they send.
    pub pace: Pace,
    /// Length of every text in bytes: [`STAMP_BYTES`] to [`MAX_PAYLOAD`].
    pub payload: usize,
    /// Time before anything counts.
    pub warm_up: Duration,
    /// The counted window.
    pub window: Duration,
    /// Longest time for all members to come in.
    pub gather_limit: Duration,
    /// Longest wait for all that is still on its way after the last message of a phase, and for a
    /// publisher that the server does not read.
    pub drain_limit: Duration,
    /// The server's process, to tell what it used.
    pub pid: Option<u32>,
}

/// How much memory connections without traffic take.
#[derive(Debug, Clone)]
pub struct IdlePlan {
    /// Whom and how to join.
    pub venue: Venue,
    /// Connections counted; at least 1.
    pub connections: usize,
    /// Connections made before, so that what a server takes once is not counted.
    pub before: usize,
    /// Whether they join the room or are only logged in.
    pub join: bool,
    /// Quiet time before each look at the memory.
    pub settle: Duration,
    /// Longest time for all to come in.
    pub gather_limit: Duration,
    /// The server's process.
    pub pid: u32,
}

/// Why a run gave no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A plan that can't be carried out.
    #[error("{0}")]
    Plan(&'static str),
    /// The crowd could not gather or stay.
    #[error(transparent)]
    Crowd(#[from] CrowdError),
    /// What the process used could not be read.
    #[error("reading what process {pid} used failed")]
    Process {
        /// The process.
        pid: u32,
        /// Why.
        source: io::Error,
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

/// What a run found.
#[derive(Debug, Clone, Serialize)]
pub struct LoadReport {
    /// How the server framed.
    pub framing: Framing,
    /// Members of the room.
    pub members: usize,
    /// How many of them sent.
    pub publishers: usize,
    /// When they sent.
    pub pace: Pace,
    /// Bytes of each text.
    pub payload: usize,
    /// Length of the counted window, until its last delivery, in seconds.
    pub seconds: f64,
    /// Messages sent in it.
    pub messages: u64,
    /// Messages that the schedule had and that were not sent since the server did not read.
    pub unsent: u64,
    /// Times that a member was sent a message, repeats not counted.
    pub deliveries: u64,
    /// Deliveries that had not come when the plan's drain limit was over.
    pub missing: u64,
    /// Messages that were not answered by then.
    pub unanswered: u64,
    /// Deliveries in a second.
    pub deliveries_per_second: f64,
    /// Deliveries that one read of the client brought: over 1, messages shared a write or met in a
    /// socket.
    pub deliveries_per_read: f64,
    /// Events that a member should have been sent and was not, over the whole run.
    pub lost: u64,
    /// Events that a member was sent again.
    pub repeated: u64,
    /// Events that a member was sent after a later one.
    pub reordered: u64,
    /// Events that had another content for one member than for another under the same number.
    pub split: u64,
    /// From when a message was due to when a member had read it.
    pub latency_us: Latency,
    /// 99th percentile of how late the client itself sent, in microseconds. Part of the latency.
    pub sent_late_us: u64,
    /// What the server used, if its process was named.
    pub server: Option<ServerCost>,
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

/// What the server's process used in the window.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ServerCost {
    /// Processor time for one delivery in microseconds, user and kernel.
    pub cpu_us_per_delivery: f64,
    /// Times that a thread went to sleep, for one delivery.
    pub voluntary_switches_per_delivery: f64,
    /// Times that a thread was put off the processor, for one delivery.
    pub involuntary_switches_per_delivery: f64,
    /// Processor time in percent of one core.
    pub cpu_percent: f64,
    /// The same of this client: near 100, the client is the limit.
    pub client_cpu_percent: f64,
    /// The same of everything else on the machine: the smaller, the better the figures.
    pub other_cpu_percent: f64,
    /// Threads that ended in the window, whose time is missing here.
    pub threads_ended: usize,
    /// Resident memory at the end, in KiB.
    pub resident_kib: u64,
}

/// What an idle run found.
#[derive(Debug, Clone, Serialize)]
pub struct IdleReport {
    /// How the server framed.
    pub framing: Framing,
    /// Connections counted.
    pub connections: usize,
    /// Whether they were in the room.
    pub joined: bool,
    /// Resident memory before them, in KiB.
    pub before_kib: u64,
    /// Resident memory with them, in KiB.
    pub after_kib: u64,
    /// What one of them added, in KiB.
    pub kib_per_connection: f64,
}

impl LoadReport {
    /// How often something was not as it has to be: that every message is sent, answered, and
    /// delivered to every member once, in order, and the same to all. What is lost for good counts
    /// as missing, too.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.unsent
            + self.unanswered
            + self.missing
            + self.lost
            + self.repeated
            + self.reordered
            + self.split
    }
}

/// Carries out `plan`.
///
/// # Errors
/// If the plan is impossible, a member fails or is refused, or the server's process is gone.
pub fn run(plan: &Plan) -> Result<LoadReport, LoadError> {
    plan.check()?;
    let mut run = Run {
        crowd: Crowd::new(plan.venue.clone())?,
        hearing: Hearing::new(plan.payload),
        object: String::new(),
        padding: "x".repeat(plan.payload - STAMP_BYTES),
        published: 0,
        plan,
    };
    run.crowd
        .gather(plan.members, true, plan.gather_limit, &mut run.hearing)?;
    if !plan.warm_up.is_zero() {
        let warm_up = run.phase(plan.warm_up)?;
        if warm_up.missing > 0 {
            return Err(LoadError::WarmUp {
                missing: warm_up.missing,
                limit: plan.drain_limit,
            });
        }
    }
    run.hearing.begin_counting();
    let reads = run.crowd.reads();
    let before = Meter::read(plan.pid)?;
    let phase = run.phase(plan.window)?;
    let after = Meter::read(plan.pid)?;
    let reads = run.crowd.reads() - reads;
    let server = match plan.pid {
        Some(pid) => Some(ServerCost {
            resident_kib: process::resident_kib(pid)
                .map_err(|source| LoadError::Process { pid, source })?,
            ..after.since(&before, run.hearing.delivered, phase.took)
        }),
        None => None,
    };
    Ok(run.hearing.report(plan, &phase, reads, server))
}

/// Measures what idle connections take.
///
/// # Errors
/// If a member fails or is refused, or the server's process is gone.
pub fn idle(plan: &IdlePlan) -> Result<IdleReport, LoadError> {
    if plan.connections == 0 {
        return Err(LoadError::Plan("an idle run needs at least 1 connection"));
    }
    let pid = plan.pid;
    let mut crowd = Crowd::new(plan.venue.clone())?;
    let mut gather = |count| -> Result<u64, LoadError> {
        crowd.gather(count, plan.join, plan.gather_limit, &mut Deaf)?;
        let start = crowd.watch().elapsed();
        while let Some(left) = plan.settle.checked_sub(crowd.watch().elapsed() - start) {
            crowd.turn(left, &mut Deaf)?;
        }
        process::resident_kib(pid).map_err(|source| LoadError::Process { pid, source })
    };
    let before_kib = gather(plan.before)?;
    let after_kib = gather(plan.connections)?;
    Ok(IdleReport {
        framing: plan.venue.framing,
        connections: plan.connections,
        joined: plan.join,
        before_kib,
        after_kib,
        kib_per_connection: (after_kib as f64 - before_kib as f64) / plan.connections as f64,
    })
}

impl Plan {
    fn check(&self) -> Result<(), LoadError> {
        let refuse = |why| Err(LoadError::Plan(why));
        if self.members == 0 {
            return refuse("a room needs at least 1 member");
        }
        if self.publishers == 0 || self.publishers > self.members {
            return refuse(
                "publishers are members: there may be 1 to as many as there are members",
            );
        }
        if !(STAMP_BYTES..=MAX_PAYLOAD).contains(&self.payload) {
            return refuse("a text has 16 bytes, which tell when it was due, to 262144");
        }
        match self.pace {
            Pace::PerSecond(rate) if !(0.001..=1e6).contains(&rate) => {
                refuse("a rate is from 0.001 to 1000000 messages a second")
            }
            Pace::InFlight(0) => refuse("at least 1 message has to be in flight"),
            _ => Ok(()),
        }
    }
}

struct Run<'p> {
    plan: &'p Plan,
    crowd: Crowd,
    hearing: Hearing,
    object: String,
    /// What fills a text up to its length.
    padding: String,
    /// Messages sent so far, over all phases.
    published: u64,
}

/// What one phase came to.
struct Phase {
    messages: u64,
    unsent: u64,
    missing: u64,
    unanswered: u64,
    took: Duration,
}

/// What a pace says about the next message of a phase.
enum Next {
    /// It is to be sent at this time of the phase.
    Due(Duration),
    /// It may be sent.
    Now,
    /// It has to wait until others are delivered.
    Full,
    /// There is none.
    Over,
}

impl Pace {
    /// After `sent` messages, `open` of which are not delivered to all, in a phase of `length`.
    fn next(self, sent: u64, open: u64, length: Duration) -> Next {
        match self {
            Self::PerSecond(rate) => {
                let due = Duration::from_secs_f64(sent as f64 / rate);
                if due < length {
                    Next::Due(due)
                } else {
                    Next::Over
                }
            }
            Self::InFlight(most) if open < most => Next::Now,
            Self::InFlight(_) => Next::Full,
        }
    }

    /// How many messages of a phase of `length` the schedule still has after `sent`.
    fn left(self, sent: u64, length: Duration) -> u64 {
        (sent..)
            .take_while(|&sent| matches!(self.next(sent, 0, length), Next::Due(_)))
            .count() as u64
    }
}

impl Run<'_> {
    /// Publishes for `length` at the plan's pace, then waits until all of it is delivered, at most
    /// [`DRAIN_LIMIT`].
    fn phase(&mut self, length: Duration) -> Result<Phase, LoadError> {
        let members = self.plan.members as u64;
        let watch = self.crowd.watch();
        let start = watch.elapsed();
        let end = start + length;
        let heard = self.hearing.heard;
        let acknowledged = self.hearing.acknowledged;
        let mut messages = 0;
        let unsent = loop {
            let now = watch.elapsed();
            let open = (messages * members).saturating_sub(self.hearing.heard - heard);
            let wait = match self
                .plan
                .pace
                .next(messages, open.div_ceil(members), length)
            {
                Next::Due(due) if start + due > now => start + due - now,
                Next::Due(due) => {
                    if self.publish(start + due)? {
                        messages += 1;
                        continue;
                    }
                    if now > end + self.plan.drain_limit {
                        break self.plan.pace.left(messages, length);
                    }
                    SLICE
                }
                Next::Now if now < end => {
                    if self.publish(now)? {
                        messages += 1;
                        continue;
                    }
                    end - now
                }
                Next::Full if now < end => end - now,
                Next::Now | Next::Full | Next::Over => break 0,
            };
            self.crowd
                .turn(whole_milliseconds(wait), &mut self.hearing)?;
        };
        let drain_from = watch.elapsed();
        let (missing, unanswered) = loop {
            let missing = (messages * members).saturating_sub(self.hearing.heard - heard);
            let unanswered = messages.saturating_sub(self.hearing.acknowledged - acknowledged);
            let all = missing == 0 && unanswered == 0;
            if all || watch.elapsed() - drain_from > self.plan.drain_limit {
                break (missing, unanswered);
            }
            self.crowd.turn(DRAIN_SLICE, &mut self.hearing)?;
        };
        let took = (watch.elapsed() - start).max(length);
        Ok(Phase {
            messages,
            unsent,
            missing,
            unanswered,
            took,
        })
    }

    /// Sends the message that was due at `due`; false if the publisher's socket has to catch up
    /// first.
    fn publish(&mut self, due: Duration) -> Result<bool, LoadError> {
        let publisher = usize::try_from(self.published % self.plan.publishers as u64)
            .expect("less than the number of publishers, which is a usize");
        if self.crowd.unsent(publisher) > UNSENT_BYTES {
            return Ok(false);
        }
        self.published += 1;
        self.object.clear();
        let (id, room, padding) = (self.published, &self.plan.venue.room, &self.padding);
        let stamp = due.as_nanos();
        write!(
            self.object,
            r#"{{"type":"send","id":{id},"room":"{room}","text":"{stamp:0STAMP_BYTES$}{padding}"}}"#
        )
        .expect("writing to a string can't fail");
        self.hearing
            .sent_late
            .saturating_record(micros(self.crowd.watch().elapsed().saturating_sub(due)));
        self.crowd.send(publisher, self.object.as_bytes())?;
        Ok(true)
    }
}

/// The system waits in whole milliseconds and rounds up, which would send late: waits the whole
/// ones and turns the rest over without waiting.
fn whole_milliseconds(wait: Duration) -> Duration {
    Duration::from_millis(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)).min(SLICE)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// What members heard.
struct Hearing {
    payload: usize,
    sequences: Vec<Option<Sequence>>,
    /// The latest events by their number, modulo the length.
    recent: Vec<Recent>,
    highest: u64,
    /// Messages delivered, over the whole run and since counting began.
    heard: u64,
    delivered: u64,
    acknowledged: u64,
    split: u64,
    latency: Histogram<u64>,
    sent_late: Histogram<u64>,
}

#[derive(Default, Clone)]
struct Recent {
    seq: u64,
    due: Duration,
    object: Vec<u8>,
}

impl Hearing {
    fn new(payload: usize) -> Self {
        let histogram =
            || Histogram::new_with_bounds(1, LATENCY_LIMIT_US, 3).expect("these bounds are valid");
        Self {
            payload,
            sequences: Vec::new(),
            recent: vec![Recent::default(); RECENT],
            highest: 0,
            heard: 0,
            delivered: 0,
            acknowledged: 0,
            split: 0,
            latency: histogram(),
            sent_late: histogram(),
        }
    }

    fn begin_counting(&mut self) {
        self.delivered = 0;
        self.latency.reset();
        self.sent_late.reset();
    }

    fn deliver(&mut self, due: Duration, at: Duration) {
        self.heard += 1;
        self.delivered += 1;
        self.latency
            .saturating_record(micros(at.saturating_sub(due)));
    }

    /// Everything that is not the next event, byte for byte as another member got it.
    fn examine(&mut self, member: usize, object: &[u8], at: Duration) -> Result<(), CrowdError> {
        let refuse = || told(member, "present", object);
        let incoming: Incoming<'_> = serde_json::from_slice(object).map_err(|_| refuse())?;
        match (&*incoming.kind, incoming.seq) {
            ("message", Some(seq)) => {
                let due = self.stamp(incoming.text.as_deref()).ok_or_else(refuse)?;
                self.highest = self.highest.max(seq);
                if self.sequence(member).arrive(seq) != Arrival::Repeated {
                    self.deliver(due, at);
                }
                let recent = &mut self.recent[slot(seq)];
                if recent.seq < seq {
                    recent.seq = seq;
                    recent.due = due;
                    recent.object.clear();
                    recent.object.extend_from_slice(object);
                } else if recent.seq == seq && !same_event(&recent.object, object) {
                    self.split += 1;
                }
            }
            ("join" | "leave", Some(seq)) => {
                self.highest = self.highest.max(seq);
                self.sequence(member).arrive(seq);
            }
            ("sent", Some(seq)) => {
                self.highest = self.highest.max(seq);
                self.acknowledged += 1;
            }
            ("message" | "join" | "leave" | "sent" | "error" | "bye" | "left" | "init", _) => {
                return Err(refuse());
            }
            _ => (),
        }
        Ok(())
    }

    /// When a text was due; `None` if this run did not send it.
    fn stamp(&self, text: Option<&str>) -> Option<Duration> {
        let text = text.filter(|text| text.len() == self.payload)?;
        text.get(..STAMP_BYTES)?
            .parse()
            .ok()
            .map(Duration::from_nanos)
    }

    fn sequence(&mut self, member: usize) -> &mut Sequence {
        self.sequences[member]
            .as_mut()
            .expect("members are heard only after they arrived")
    }

    fn report(
        &self,
        plan: &Plan,
        phase: &Phase,
        reads: u64,
        server: Option<ServerCost>,
    ) -> LoadReport {
        let sum = |count: fn(&Sequence) -> u64| self.sequences.iter().flatten().map(count).sum();
        let seconds = phase.took.as_secs_f64();
        LoadReport {
            framing: plan.venue.framing,
            members: plan.members,
            publishers: plan.publishers,
            pace: plan.pace,
            payload: plan.payload,
            seconds,
            messages: phase.messages,
            unsent: phase.unsent,
            deliveries: self.delivered,
            missing: phase.missing,
            unanswered: phase.unanswered,
            deliveries_per_second: self.delivered as f64 / seconds,
            deliveries_per_read: self.delivered as f64 / reads.max(1) as f64,
            lost: self
                .sequences
                .iter()
                .flatten()
                .map(|sequence| sequence.lost(self.highest))
                .sum(),
            repeated: sum(Sequence::repeated),
            reordered: sum(Sequence::reordered),
            split: self.split,
            latency_us: Latency {
                p50: self.latency.value_at_quantile(0.5),
                p90: self.latency.value_at_quantile(0.9),
                p99: self.latency.value_at_quantile(0.99),
                p99_9: self.latency.value_at_quantile(0.999),
                max: self.latency.max(),
            },
            sent_late_us: self.sent_late.value_at_quantile(0.99),
            server,
        }
    }
}

impl Audience for Hearing {
    fn arrived(&mut self, member: usize, seq: u64) {
        if self.sequences.len() <= member {
            self.sequences.resize_with(member + 1, || None);
        }
        self.sequences[member] = Some(Sequence::after(seq));
    }

    fn heard(&mut self, member: usize, object: &[u8], at: Duration) -> Result<(), CrowdError> {
        // Nearly every object is the next event, byte for byte as another member got it: then it is
        // known already, and not parsing it leaves the processor to the server.
        if let Some(sequence) = self.sequences[member].as_mut() {
            let next = sequence.next();
            let recent = &self.recent[slot(next)];
            if recent.seq == next && recent.object == object {
                sequence.arrive(next);
                let due = recent.due;
                self.deliver(due, at);
                return Ok(());
            }
        }
        self.examine(member, object, at)
    }
}

/// Hears nothing but the end.
struct Deaf;

impl Audience for Deaf {
    fn arrived(&mut self, _member: usize, _seq: u64) {}

    fn heard(&mut self, member: usize, object: &[u8], _at: Duration) -> Result<(), CrowdError> {
        let incoming: Incoming<'_> =
            serde_json::from_slice(object).map_err(|_| told(member, "present", object))?;
        if matches!(&*incoming.kind, "error" | "bye" | "left") {
            return Err(told(member, "idle", object));
        }
        Ok(())
    }
}

fn slot(seq: u64) -> usize {
    usize::try_from(seq % RECENT as u64)
        .expect("less than the length of the ring, which is a usize")
}

/// Whether two members were told the same, whatever the spelling.
fn same_event(one: &[u8], other: &[u8]) -> bool {
    let value = |bytes| serde_json::from_slice::<serde_json::Value>(bytes).ok();
    one == other || value(one) == value(other)
}

#[derive(Deserialize)]
struct Incoming<'i> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'i, str>,
    seq: Option<u64>,
    #[serde(borrow)]
    text: Option<Cow<'i, str>>,
}

/// What server, client and machine had used up to one moment.
struct Meter {
    server: Usage,
    client: Usage,
    machine: Duration,
}

impl Meter {
    /// Reads nothing where there is no process to look at.
    fn read(pid: Option<u32>) -> Result<Self, LoadError> {
        let Some(pid) = pid else {
            return Ok(Self {
                server: Usage::default(),
                client: Usage::default(),
                machine: Duration::ZERO,
            });
        };
        let read = || -> io::Result<Self> {
            Ok(Self {
                server: Usage::of(pid)?,
                client: Usage::of(std::process::id())?,
                machine: process::machine_busy()?,
            })
        };
        read().map_err(|source| LoadError::Process { pid, source })
    }

    fn since(&self, before: &Self, deliveries: u64, took: Duration) -> ServerCost {
        let server = self.server.since(&before.server);
        let client = self.client.since(&before.client).cpu;
        let machine = self.machine.saturating_sub(before.machine);
        let per_delivery = |amount: f64| amount / deliveries.max(1) as f64;
        let percent = |cpu: Duration| 100.0 * cpu.as_secs_f64() / took.as_secs_f64();
        ServerCost {
            cpu_us_per_delivery: per_delivery(server.cpu.as_secs_f64() * 1e6),
            voluntary_switches_per_delivery: per_delivery(server.voluntary as f64),
            involuntary_switches_per_delivery: per_delivery(server.involuntary as f64),
            cpu_percent: percent(server.cpu),
            client_cpu_percent: percent(client),
            other_cpu_percent: percent(machine.saturating_sub(server.cpu + client)),
            threads_ended: server.threads_ended,
            resident_kib: 0,
        }
    }
}
