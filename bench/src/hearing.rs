//! What members heard: whether each was sent every event once, in order, the same as all others, and how long each
//! message took.
//!
//! A server that numbers its events is checked by these numbers for every member, joins and leaves included, and by the
//! numbers that the messages carry for each event: the same message under two numbers of the server is a fault, too.
//! One that does not number is checked by the numbers in the messages alone.

use std::{collections::VecDeque, time::Duration};

use hdrhistogram::Histogram;

use crate::{
    link::{HEAD_BYTES, Trouble},
    object::{Incoming, same_event},
    sequence::{Arrival, Sequence},
};

/// Events kept of all rooms together, to recognise them when the other members get them too; a room has a power of
/// two of them, within these bounds.
const RECENT: usize = 8192;
const ROOM_RECENT: (usize, usize) = (16, 1024);
/// Messages of a room that are waited for at one time. Beyond it the oldest is given up: if it comes after all, it
/// counts as delivered, and its latency is that of the moment when it was given up.
pub const WAITED_FOR: usize = 65_536;
/// Longest latency that is told apart, in microseconds.
const LATENCY_LIMIT_US: u64 = 60_000_000;
/// What texts are filled up with: words in no order, so that compressing them is about as much work as it is for
/// people's.
const WORDS: [&str; 32] = [
    "the", "and", "you", "that", "was", "for", "it", "is", "we", "not", "have", "this", "what",
    "there", "when", "tomorrow", "server", "please", "release", "works", "again", "somebody",
    "thanks", "branch", "question", "42", "ok!", "really?", "meeting", "morning", "little",
    "which",
];

/// The ears of a crowd. See the [module](self).
#[derive(Debug)]
pub struct Hearing {
    /// Whether the server numbers events.
    numbers: bool,
    /// What stands in every text behind its number.
    filler: Vec<u8>,
    rooms: Vec<Room>,
    members: Vec<Member>,
    /// What was wrong with the events of members until they left.
    left: Wrong,
    /// Rooms whose members were sent as many deliveries as one message has, since somebody asked.
    freed: Vec<usize>,
    latency: Histogram<u64>,
    /// How many of those in `latency` had not come when they were added.
    not_come: u64,
    delivered: u64,
    acknowledged: u64,
    split: u64,
    /// Summaries that a member was sent after a later one.
    disordered: u64,
    presence: Presence,
    departures: Vec<(Duration, u64)>,
}

/// What members were told about each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Presence {
    /// `join` and `leave` events.
    pub events: u64,
    /// `presence` objects.
    pub summaries: u64,
    /// Names in those objects.
    pub names: u64,
}

/// What was wrong, over the whole run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wrong {
    /// Events that a member should have been sent and was not.
    pub lost: u64,
    /// Events that a member was sent again.
    pub repeated: u64,
    /// Events, and presence in batches, that a member was sent after a later one. Also messages that the server has
    /// numbered in another order than their sender.
    pub reordered: u64,
    /// Events that had another content for one member than for another under the same number.
    pub split: u64,
    /// Deliveries of messages that had reached as many members as there are.
    pub surplus: u64,
}

#[derive(Debug)]
struct Member {
    room: usize,
    /// `None` for who is not in the room.
    sequence: Option<Sequence>,
    /// Whether nothing is expected of it any more. What it is sent still has to be in order, without gaps.
    stopped: bool,
    /// Members of the room as far as this one was told; `None` where rooms don't tell.
    knows: Option<u64>,
    /// As of which count of changes it knows that, where presence is batched.
    rev: u64,
    /// The latest summary that it was sent.
    summary: u64,
}

#[derive(Debug)]
struct Room {
    name: Box<str>,
    /// Members that messages are to reach.
    members: u64,
    highest: u64,
    /// The messages of each publisher, where the server has numbers of its own.
    voices: Vec<Voice>,
    /// Messages sent before this phase.
    before: u64,
    /// Messages sent in this phase, and deliveries of them.
    sent: u64,
    heard: u64,
    /// The latest messages, from that with the number `settled + 1`, as far as they or one before them is waited for.
    waited: VecDeque<Waited>,
    settled: u64,
    /// Deliveries that were given up and may come yet.
    given_up: u64,
    surplus: u64,
    /// The latest events by their number, modulo the length.
    recent: Vec<Recent>,
    /// The latest summary of who came and went: all members get the same.
    summary: Summary,
}

/// A message on its way.
#[derive(Debug, Clone, Copy)]
struct Waited {
    due: Duration,
    /// Members that have it.
    heard: u64,
}

/// The messages of one publisher in the order in which the server has numbered them.
#[derive(Debug)]
struct Voice {
    /// Its name, as the server has told it.
    user: Box<str>,
    sequence: Sequence,
    /// The server's number of the latest message.
    latest: u64,
    disordered: u64,
}

#[derive(Debug, Default)]
struct Summary {
    object: Vec<u8>,
    told: Told,
}

/// What a summary says.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    names: u64,
    count: u64,
    /// As of which count of changes.
    rev: u64,
}

#[derive(Debug, Clone, Default)]
struct Recent {
    seq: u64,
    what: What,
    object: Vec<u8>,
}

/// What an event is about.
#[derive(Debug, Clone, Copy, Default)]
enum What {
    /// The message of this number.
    Message(u64),
    #[default]
    Join,
    Leave,
}

impl Hearing {
    /// For members of `rooms` in turn, of which the first `publishers` of each room send texts of `payload` bytes in
    /// turns, to a server that numbers its events or does not.
    #[must_use]
    pub fn new(numbers: bool, payload: usize, rooms: &[String], publishers: usize) -> Self {
        let (least, most) = ROOM_RECENT;
        let recent = (RECENT / rooms.len().max(1)).clamp(least, most);
        let voices = if numbers { publishers } else { 0 };
        let room = |name: &String| Room {
            name: name.as_str().into(),
            members: 0,
            highest: 0,
            voices: std::iter::repeat_with(Voice::silent).take(voices).collect(),
            before: 0,
            sent: 0,
            heard: 0,
            waited: VecDeque::new(),
            settled: 0,
            given_up: 0,
            surplus: 0,
            recent: vec![Recent::default(); recent.next_power_of_two()],
            summary: Summary::default(),
        };
        Self {
            numbers,
            filler: filler(payload.saturating_sub(HEAD_BYTES)),
            rooms: rooms.iter().map(room).collect(),
            members: Vec::new(),
            left: Wrong::default(),
            freed: Vec::new(),
            latency: Histogram::new_with_bounds(1, LATENCY_LIMIT_US, 3)
                .expect("these bounds are valid"),
            not_come: 0,
            delivered: 0,
            acknowledged: 0,
            split: 0,
            disordered: 0,
            presence: Presence::default(),
            departures: Vec::new(),
        }
    }

    /// What stands in every text behind its number.
    #[must_use]
    pub fn filler(&self) -> &[u8] {
        &self.filler
    }

    /// The server has logged `member` in as `user`.
    pub fn named(&mut self, member: usize, user: &str) {
        let rooms = self.rooms.len();
        if let Some(voice) = self.rooms[member % rooms].voices.get_mut(member / rooms) {
            voice.user = user.into();
        }
    }

    /// `member` is in its room; its first event will have the number `seq + 1`. There were `count` others, where the
    /// room tells; as of `rev` changes, where it tells in batches.
    pub fn arrived(&mut self, member: usize, seq: u64, count: Option<u64>, rev: Option<u64>) {
        let rooms = self.rooms.len();
        while self.members.len() <= member {
            self.members.push(Member {
                room: self.members.len() % rooms,
                sequence: None,
                stopped: false,
                knows: None,
                rev: 0,
                summary: 0,
            });
        }
        let room = &mut self.rooms[member % rooms];
        room.members += 1;
        room.highest = room.highest.max(seq);
        self.members[member].sequence = Some(Sequence::after(seq));
        self.members[member].knows = count;
        self.members[member].rev = rev.unwrap_or(0);
    }

    /// `member` has left its room, where nobody speaks: nothing is expected of it until it arrives again. What was wrong
    /// until then stays so. Events after the last that it was sent are no loss: they may be of when it was gone.
    pub fn left(&mut self, member: usize) {
        let member = &mut self.members[member];
        if let Some(sequence) = member.sequence.take() {
            let last = sequence.next() - 1;
            self.left
                .add_member(&sequence, last, self.numbers || !member.stopped);
            if !member.stopped {
                self.rooms[member.room].members -= 1;
            }
        }
    }

    /// From now on nothing is expected of `member`: it may be sent less than the others.
    pub fn stop(&mut self, member: usize) {
        let member = &mut self.members[member];
        if member.sequence.is_some() && !member.stopped {
            member.stopped = true;
            self.rooms[member.room].members -= 1;
        }
    }

    /// A phase begins: whatever was on its way before does not count as sent.
    pub fn begin_phase(&mut self) {
        for room in &mut self.rooms {
            room.begin_phase();
        }
        self.freed.clear();
        self.acknowledged = 0;
    }

    /// What was delivered so far does not count.
    pub fn begin_counting(&mut self) {
        self.delivered = 0;
        self.latency.reset();
        self.not_come = 0;
        self.presence = Presence::default();
        self.departures.clear();
    }

    /// The next message was sent to `room` at `now`, which was due at `due`.
    pub fn sent(&mut self, room: usize, due: Duration, now: Duration) {
        let room = &mut self.rooms[room];
        room.sent += 1;
        let full = room.waited.len() == WAITED_FOR;
        let oldest = if full { room.waited.pop_front() } else { None };
        room.waited.push_back(Waited { due, heard: 0 });
        if let Some(oldest) = oldest {
            room.settled += 1;
            let missing = room.members.saturating_sub(oldest.heard);
            room.given_up += missing;
            self.did_not_come(oldest.due, now, missing);
        }
    }

    /// Messages of `room` that are on their way: what its members are owed, in whole messages. Of several that reach
    /// one member after the other together, this lets the next ones follow one by one.
    #[must_use]
    pub fn open(&self, room: usize) -> u64 {
        let room = &self.rooms[room];
        room.owed().div_ceil(room.members.max(1))
    }

    /// Adds what is waited for to the latencies, as if it came `now`: what they are at least.
    pub fn add_missing(&mut self, now: Duration) {
        for room in 0..self.rooms.len() {
            let members = self.rooms[room].members;
            for at in 0..self.rooms[room].waited.len() {
                let Waited { due, heard } = self.rooms[room].waited[at];
                self.did_not_come(due, now, members.saturating_sub(heard));
            }
        }
    }

    /// Adds messages of `room` that were never sent: so many, which were due at `due` or before.
    pub fn add_unsent(&mut self, room: usize, messages: u64, due: Duration, now: Duration) {
        let members = self.rooms[room].members;
        self.did_not_come(due, now, members.saturating_mul(messages));
    }

    fn did_not_come(&mut self, due: Duration, now: Duration, deliveries: u64) {
        if deliveries > 0 {
            let waited = micros(now.saturating_sub(due)).clamp(1, LATENCY_LIMIT_US);
            // Fails only beyond the bounds, which it is within.
            _ = self.latency.record_n(waited, deliveries);
            self.not_come = self.not_come.saturating_add(deliveries);
        }
    }

    /// Moves the rooms that had a message delivered to all into `rooms`.
    pub fn take_freed(&mut self, rooms: &mut Vec<usize>) {
        rooms.append(&mut self.freed);
    }

    /// Deliveries that this phase still waits for.
    #[must_use]
    pub fn owed(&self) -> u64 {
        self.rooms.iter().map(Room::owed).sum()
    }

    /// Messages of this phase that the server acknowledged; all that were sent, where it does not.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        if self.numbers {
            self.acknowledged
        } else {
            self.rooms.iter().map(|room| room.sent).sum()
        }
    }

    /// Deliveries since counting began, repeats not counted.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// What members were told about each other since counting began.
    #[must_use]
    pub fn presence(&self) -> Presence {
        self.presence
    }

    /// When members were first told that others had left, and how many, since counting began.
    #[must_use]
    pub fn departures(&self) -> &[(Duration, u64)] {
        &self.departures
    }

    /// Members whose last word about the number of members is not the right one. None, where rooms don't tell.
    #[must_use]
    pub fn ignorant(&self) -> u64 {
        self.members
            .iter()
            .filter(|member| {
                member.sequence.is_some()
                    && !member.stopped
                    && member
                        .knows
                        .is_some_and(|knows| knows != self.rooms[member.room].members)
            })
            .count() as u64
    }

    /// From when a message was due to when a member had read it, in microseconds, since counting began.
    #[must_use]
    pub fn latency(&self) -> &Histogram<u64> {
        &self.latency
    }

    /// How many of these latencies are those of deliveries that had not come when they were added, and so what they
    /// are at least.
    #[must_use]
    pub fn not_come(&self) -> u64 {
        self.not_come
    }

    /// Messages that were left out between others for members that are stopped, where the server does not number them:
    /// it has promised nothing else.
    #[must_use]
    pub fn passed_over(&self) -> u64 {
        let stopped = self.members.iter().filter(|member| member.stopped);
        let sequences = stopped.filter_map(|member| member.sequence.as_ref());
        let left_out = sequences.map(|sequence| sequence.lost(sequence.next() - 1));
        if self.numbers {
            0
        } else {
            left_out.fold(0, u64::saturating_add)
        }
    }

    /// What was wrong so far.
    #[must_use]
    pub fn wrong(&self) -> Wrong {
        let mut wrong = self.left;
        add(&mut wrong.split, self.split);
        add(&mut wrong.reordered, self.disordered);
        for member in &self.members {
            if let Some(sequence) = &member.sequence {
                let last = if member.stopped {
                    sequence.next() - 1
                } else {
                    self.rooms[member.room].highest
                };
                wrong.add_member(sequence, last, self.numbers || !member.stopped);
            }
        }
        for room in &self.rooms {
            add(&mut wrong.surplus, room.surplus);
            for (turn, voice) in room.voices.iter().enumerate() {
                let last = room.said_by(turn as u64);
                add(&mut wrong.lost, voice.sequence.lost(last));
                add(&mut wrong.repeated, voice.sequence.repeated());
                add(&mut wrong.reordered, voice.disordered);
            }
        }
        wrong
    }

    /// `member` was sent `object`, read at `at` of the crowd's stopwatch.
    ///
    /// # Errors
    /// What makes it useless to go on.
    pub fn heard(&mut self, member: usize, object: &[u8], at: Duration) -> Result<(), Trouble> {
        // Nearly every object is the next event, byte for byte as another member got it: then it is known already, and
        // not parsing it leaves the processor to the server.
        let ear = &mut self.members[member];
        if let Some(sequence) = &mut ear.sequence {
            let next = sequence.next();
            let recent = self.rooms[ear.room].recent(next);
            if recent.seq == next && recent.object == object {
                sequence.arrive(next);
                let what = recent.what;
                self.took(member, what, at);
                return Ok(());
            }
        }
        if self.numbers {
            self.examine(member, object, at)
        } else {
            let room = self.members[member].room;
            let number = self
                .message(room, object)
                .ok_or_else(|| Trouble::Told(crate::object::shown(object)))?;
            self.numbered(member, number, What::Message(number), object, at);
            Ok(())
        }
    }

    /// The number of a message of `room` by its text; `None` if this is no text that this run has sent there.
    fn message(&self, room: usize, text: &[u8]) -> Option<u64> {
        let (due, number, rest) = head(text)?;
        let room = &self.rooms[room];
        let last = room.before + room.sent;
        let is_due = match room.waited(number) {
            Some(at) => room.waited[at].due == due,
            // What it was is forgotten.
            None => true,
        };
        (rest == self.filler && (1..=last).contains(&number) && is_due).then_some(number)
    }

    /// Everything that is not the next event as another member got it.
    fn examine(&mut self, member: usize, object: &[u8], at: Duration) -> Result<(), Trouble> {
        let room = self.members[member].room;
        let summary = &self.rooms[room].summary;
        if summary.object == object {
            let told = summary.told;
            self.summarised(member, told);
            return Ok(());
        }
        let refuse = || Trouble::told(object);
        let incoming = Incoming::read(object).ok_or_else(refuse)?;
        let stranger = incoming.room.as_deref() != Some(&*self.rooms[room].name);
        match (&*incoming.kind, incoming.seq) {
            ("message" | "join" | "leave" | "presence", _) if stranger => {
                return Err(refuse());
            }
            ("message", Some(seq)) => {
                let text = incoming.text.as_deref().unwrap_or_default();
                let number = self.message(room, text.as_bytes()).ok_or_else(refuse)?;
                let voice = &self.rooms[room].voices[self.rooms[room].turn(number)];
                if incoming.user.as_deref() != Some(&*voice.user) {
                    return Err(refuse());
                }
                self.numbered(member, seq, What::Message(number), object, at);
            }
            ("join", Some(seq)) => self.numbered(member, seq, What::Join, object, at),
            ("leave", Some(seq)) => self.numbered(member, seq, What::Leave, object, at),
            ("sent", Some(seq)) => {
                let room = &mut self.rooms[room];
                room.highest = room.highest.max(seq);
                self.acknowledged += 1;
            }
            // Long told to those who read on.
            ("presence", None) if self.members[member].stopped => (),
            ("presence", None) => {
                let told = Told {
                    names: incoming.joined.0 + incoming.left.0,
                    count: incoming.count.ok_or_else(refuse)?,
                    rev: incoming.rev.unwrap_or(0),
                };
                if incoming.left.0 > 0 {
                    self.departures.push((at, incoming.left.0));
                }
                let object = object.to_vec();
                self.rooms[room].summary = Summary { object, told };
                self.summarised(member, told);
            }
            ("message" | "join" | "leave" | "sent" | "error" | "bye" | "left" | "init", _) => {
                return Err(refuse());
            }
            _ => (),
        }
        Ok(())
    }

    fn summarised(&mut self, member: usize, told: Told) {
        self.presence.summaries += 1;
        self.presence.names += told.names;
        let member = &mut self.members[member];
        // Whoever goes by the protocol passes an older one over, and never learns of those that it names.
        self.disordered += u64::from(told.rev < member.summary);
        member.summary = member.summary.max(told.rev);
        if told.rev >= member.rev {
            member.rev = told.rev;
            member.knows = member.knows.and(Some(told.count));
        }
    }

    /// An event with its number.
    fn numbered(&mut self, member: usize, seq: u64, what: What, object: &[u8], at: Duration) {
        let Member {
            room,
            sequence: Some(sequence),
            ..
        } = &mut self.members[member]
        else {
            return;
        };
        let room = &mut self.rooms[*room];
        room.highest = room.highest.max(seq);
        let arrival = sequence.arrive(seq);
        let recent = room.recent_mut(seq);
        if recent.seq < seq {
            recent.seq = seq;
            recent.what = what;
            recent.object.clear();
            recent.object.extend_from_slice(object);
            match what {
                What::Message(number) => room.said(number, seq),
                What::Leave => self.departures.push((at, 1)),
                What::Join => (),
            }
        } else if recent.seq == seq && !same_event(&recent.object, object) {
            self.split += 1;
        }
        if arrival != Arrival::Repeated {
            self.took(member, what, at);
        }
    }

    fn took(&mut self, member: usize, what: What, at: Duration) {
        let member = &mut self.members[member];
        if member.stopped {
            return;
        }
        match what {
            What::Message(number) => {
                let room = &mut self.rooms[member.room];
                match room.deliver(number) {
                    Delivery::Counts(due) => self
                        .latency
                        .saturating_record(micros(at.saturating_sub(due))),
                    Delivery::GivenUp => (),
                    Delivery::Before | Delivery::Surplus => return,
                }
                self.delivered += 1;
                if room.heard.is_multiple_of(room.members) {
                    self.freed.push(member.room);
                }
            }
            What::Join | What::Leave => {
                self.presence.events += 1;
                if let Some(knows) = &mut member.knows {
                    *knows = match what {
                        What::Leave => knows.saturating_sub(1),
                        _ => *knows + 1,
                    };
                }
            }
        }
    }
}

impl Wrong {
    /// Adds what was wrong with the events of one member up to the number `last`: with all of them, or with those that
    /// came.
    fn add_member(&mut self, sequence: &Sequence, last: u64, is_owed_all: bool) {
        if is_owed_all {
            add(&mut self.lost, sequence.lost(last));
        }
        add(&mut self.repeated, sequence.repeated());
        add(&mut self.reordered, sequence.reordered());
    }
}

fn add(sum: &mut u64, more: u64) {
    *sum = sum.saturating_add(more);
}

/// What one delivery was to its message.
enum Delivery {
    /// One that was waited for, of a message that was due at this time.
    Counts(Duration),
    /// One of this phase that was given up.
    GivenUp,
    /// One of an earlier phase, whose figures are told.
    Before,
    /// One more than there are members.
    Surplus,
}

impl Room {
    fn begin_phase(&mut self) {
        self.before += self.sent;
        for waited in self.waited.drain(..) {
            self.given_up += self.members.saturating_sub(waited.heard);
        }
        self.settled = self.before;
        (self.sent, self.heard) = (0, 0);
    }

    fn owed(&self) -> u64 {
        (self.sent * self.members).saturating_sub(self.heard)
    }

    /// Where a message is waited for.
    fn waited(&self, number: u64) -> Option<usize> {
        let at = usize::try_from(number.checked_sub(self.settled + 1)?).ok()?;
        (at < self.waited.len()).then_some(at)
    }

    /// A member was sent the message of this number.
    fn deliver(&mut self, number: u64) -> Delivery {
        let members = self.members;
        let Some(at) = self.waited(number) else {
            if self.given_up == 0 {
                self.surplus += 1;
                return Delivery::Surplus;
            }
            self.given_up -= 1;
            if number <= self.before {
                return Delivery::Before;
            }
            self.heard += 1;
            return Delivery::GivenUp;
        };
        let waited = &mut self.waited[at];
        if waited.heard == members {
            self.surplus += 1;
            return Delivery::Surplus;
        }
        waited.heard += 1;
        self.heard += 1;
        let due = waited.due;
        if waited.heard == members {
            while self
                .waited
                .front()
                .is_some_and(|first| first.heard == members)
            {
                self.waited.pop_front();
                self.settled += 1;
            }
        }
        Delivery::Counts(due)
    }

    /// Which publisher has sent the message of this number.
    fn turn(&self, number: u64) -> usize {
        usize::try_from(number % self.voices.len() as u64)
            .expect("less than the number of publishers, which is a usize")
    }

    /// How many messages a publisher has sent so far. The message `number` was its
    /// `number.div_ceil(publishers)`th.
    fn said_by(&self, turn: u64) -> u64 {
        let publishers = self.voices.len() as u64;
        let first = if turn == 0 { publishers } else { turn };
        (self.before + self.sent + publishers - first) / publishers
    }

    /// The server has given the message of this number the place `seq`.
    fn said(&mut self, number: u64, seq: u64) {
        if self.voices.is_empty() {
            return;
        }
        let nth = number.div_ceil(self.voices.len() as u64);
        let turn = self.turn(number);
        self.voices[turn].said(nth, seq);
    }

    fn slot(&self, seq: u64) -> usize {
        usize::try_from(seq & (self.recent.len() as u64 - 1))
            .expect("less than the length of the ring, which is a usize")
    }

    fn recent(&self, seq: u64) -> &Recent {
        &self.recent[self.slot(seq)]
    }

    fn recent_mut(&mut self, seq: u64) -> &mut Recent {
        let slot = self.slot(seq);
        &mut self.recent[slot]
    }
}

impl Voice {
    fn silent() -> Self {
        Self {
            user: Box::default(),
            sequence: Sequence::after(0),
            latest: 0,
            disordered: 0,
        }
    }

    /// Its `nth` message has the place `seq`. Places may become known in another order than theirs.
    fn said(&mut self, nth: u64, seq: u64) {
        match self.sequence.arrive(nth) {
            Arrival::New => {
                self.disordered += u64::from(seq < self.latest);
                self.latest = seq;
            }
            Arrival::Late => self.disordered += u64::from(seq > self.latest),
            Arrival::Repeated => (),
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// What stands behind the number of a text, so many bytes.
fn filler(bytes: usize) -> Vec<u8> {
    let mut filler = Vec::with_capacity(bytes + 16);
    let mut dice = 1_u32;
    while filler.len() < bytes {
        // Knuth's generator: the highest bits are the best.
        dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        filler.extend_from_slice(WORDS[(dice >> 27) as usize].as_bytes());
        filler.push(b' ');
    }
    filler.truncate(bytes);
    filler
}

/// When a text was due, its number, and what follows; `None` if it does not begin with these.
fn head(text: &[u8]) -> Option<(Duration, u64, &[u8])> {
    let number = |digits: &[u8]| {
        digits.iter().try_fold(0_u64, |number, byte| {
            let digit = byte.checked_sub(b'0').filter(|&digit| digit < 10)?;
            Some(number * 10 + u64::from(digit))
        })
    };
    let (due, rest) = text.split_at_checked(HEAD_BYTES / 2)?;
    let (which, rest) = rest.split_at_checked(HEAD_BYTES / 2)?;
    Some((Duration::from_nanos(number(due)?), number(which)?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYLOAD: usize = 40;
    const AT: Duration = Duration::from_millis(5);

    const DUE: Duration = Duration::from_millis(2);

    fn text(number: u64) -> String {
        let filler = String::from_utf8(filler(PAYLOAD - HEAD_BYTES)).unwrap();
        format!("{:016}{number:016}{filler}", DUE.as_nanos())
    }

    /// An event with the number `seq` of the server, which is the message `number` of its room.
    fn event(seq: u64, number: u64) -> String {
        let user = if number.is_multiple_of(2) { "b" } else { "a" };
        let text = text(number);
        format!(
            r#"{{"type":"message","room":"r","seq":{seq},"at":1,"user":"{user}","text":"{text}"}}"#
        )
    }

    fn message(seq: u64) -> String {
        event(seq, seq)
    }

    fn nobody(numbers: bool) -> Hearing {
        Hearing::new(numbers, PAYLOAD, &["r".to_owned()], 2)
    }

    /// Two members who both publish, the second one first.
    fn two_members(numbers: bool) -> Hearing {
        let mut hearing = nobody(numbers);
        for (member, user) in ["b", "a"].iter().enumerate() {
            hearing.named(member, user);
            hearing.arrived(member, 0, None, None);
        }
        hearing
    }

    /// The same, after so many messages were sent.
    fn after(numbers: bool, messages: u64) -> Hearing {
        let mut hearing = two_members(numbers);
        for _ in 0..messages {
            hearing.sent(0, DUE, DUE);
        }
        hearing
    }

    #[test]
    fn who_stopped_may_be_passed_over_by_a_server_that_numbers_nothing_and_by_no_other() {
        for numbers in [false, true] {
            let mut hearing = after(numbers, 4);
            hearing.stop(1);
            let object = |number| match numbers {
                true => message(number),
                false => text(number),
            };
            for number in 1..=4 {
                tell(&mut hearing, 0, &object(number));
            }
            for number in [1, 4] {
                tell(&mut hearing, 1, &object(number));
            }
            let expected = if numbers { (2, 0) } else { (0, 2) };
            assert_eq!((hearing.wrong().lost, hearing.passed_over()), expected);
        }
    }

    fn tell(hearing: &mut Hearing, member: usize, object: &str) {
        hearing.heard(member, object.as_bytes(), AT).unwrap();
    }

    fn tell_both(hearing: &mut Hearing, object: &str) {
        tell(hearing, 0, object);
        tell(hearing, 1, object);
    }

    #[test]
    fn deliveries_are_messages_times_members_and_none_is_wrong() {
        for numbers in [true, false] {
            let mut hearing = two_members(numbers);
            for seq in 1..=3 {
                hearing.sent(0, DUE, DUE);
                for member in 0..2 {
                    tell(
                        &mut hearing,
                        member,
                        &if numbers { message(seq) } else { text(seq) },
                    );
                }
            }
            assert_eq!((hearing.delivered(), hearing.owed()), (6, 0));
            assert_eq!(hearing.wrong(), Wrong::default());
            assert_eq!(hearing.latency().max() / 100, 30, "due at 2 ms, read at 5");
            let mut freed = Vec::new();
            hearing.take_freed(&mut freed);
            assert_eq!(freed, [0, 0, 0]);
        }
    }

    #[test]
    fn lost_repeated_and_reordered_events_are_told_apart() {
        for numbers in [true, false] {
            let mut hearing = after(numbers, 4);
            let object = |seq| if numbers { message(seq) } else { text(seq) };
            for seq in [1, 2, 3, 4] {
                tell(&mut hearing, 0, &object(seq));
            }
            for seq in [1, 1, 4, 3] {
                tell(&mut hearing, 1, &object(seq));
            }
            let wrong = hearing.wrong();
            assert_eq!(
                (wrong.lost, wrong.repeated, wrong.reordered, wrong.split),
                (1, 1, 1, 0)
            );
        }
    }

    #[test]
    fn what_was_wrong_until_a_member_left_stays_wrong_when_it_is_gone_and_when_it_is_back() {
        let mut hearing = after(true, 6);
        for seq in 1..=6 {
            tell(&mut hearing, 0, &message(seq));
        }
        // Three is lost, two is repeated, four is late; six may be of when it was gone.
        for seq in [1, 2, 2, 5, 4] {
            tell(&mut hearing, 1, &message(seq));
        }
        let expected = Wrong {
            lost: 1,
            repeated: 1,
            reordered: 1,
            ..Wrong::default()
        };
        hearing.left(1);
        assert_eq!(hearing.wrong(), expected);
        hearing.arrived(1, 6, None, None);
        assert_eq!(hearing.wrong(), expected);
        // A second time, with a fault more.
        tell(&mut hearing, 1, &message(6));
        hearing.left(1);
        let repeated = expected.repeated + 1;
        assert_eq!(
            hearing.wrong(),
            Wrong {
                repeated,
                ..expected
            }
        );
    }

    #[test]
    fn another_content_under_the_same_number_is_split() {
        let mut hearing = after(true, 1);
        tell(&mut hearing, 0, &message(1));
        tell(
            &mut hearing,
            1,
            &message(1).replace(r#""at":1"#, r#""at":2"#),
        );
        assert_eq!(hearing.wrong().split, 1);
    }

    #[test]
    fn a_message_under_two_numbers_of_the_server_is_seen() {
        let mut hearing = after(true, 2);
        for (seq, number) in [(1, 1), (2, 1), (3, 2), (4, 2)] {
            tell_both(&mut hearing, &event(seq, number));
        }
        let wrong = hearing.wrong();
        assert_eq!((wrong.lost, wrong.repeated, wrong.surplus), (0, 2, 4));
        assert_eq!((hearing.delivered(), hearing.owed()), (4, 0));
    }

    #[test]
    fn a_message_in_place_of_another_is_seen() {
        let mut hearing = after(true, 4);
        for (seq, number) in [(1, 1), (2, 1), (3, 3), (4, 3)] {
            tell_both(&mut hearing, &event(seq, number));
        }
        let wrong = hearing.wrong();
        assert_eq!((wrong.lost, wrong.repeated, wrong.surplus), (2, 2, 4));
        assert_eq!(hearing.owed(), 4);
    }

    #[test]
    fn two_messages_of_one_sender_in_the_wrong_order_are_seen_and_those_of_two_are_not() {
        // Odd ones are of one sender, even ones of the other.
        let mut hearing = after(true, 6);
        for (seq, number) in [2, 1, 5, 4, 3, 6].into_iter().enumerate() {
            tell_both(&mut hearing, &event(seq as u64 + 1, number));
        }
        let expected = Wrong {
            reordered: 1,
            ..Wrong::default()
        };
        assert_eq!(hearing.wrong(), expected);
    }

    #[test]
    fn places_that_become_known_late_make_no_disorder_of_senders() {
        let mut hearing = after(true, 3);
        tell(&mut hearing, 0, &message(3));
        tell(&mut hearing, 1, &message(1));
        tell(&mut hearing, 1, &message(2));
        tell(&mut hearing, 1, &message(3));
        let wrong = hearing.wrong();
        assert_eq!(
            (wrong.lost, wrong.reordered),
            (2, 0),
            "lost to the first member alone"
        );
    }

    #[test]
    fn what_this_run_has_not_sent_there_ends_it() {
        let good = message(1);
        let last = text(1).pop().unwrap().to_string();
        for (from, to) in [
            (r#""room":"r""#, r#""room":"s""#),
            (r#""user":"a""#, r#""user":"b""#),
            (&*text(1), &*text(3)),
            (&*text(1), &*text(0)),
            ("0000002000000", "0000002000001"),
            (&*last, "#"),
            (&*last, ""),
        ] {
            let mut hearing = after(true, 2);
            let (before, behind) = good.rsplit_once(from).unwrap();
            let bad = format!("{before}{to}{behind}");
            let trouble = hearing.heard(0, bad.as_bytes(), AT).unwrap_err();
            assert!(matches!(trouble, Trouble::Told(_)), "{bad}: {trouble}");
        }
        tell(&mut after(true, 2), 0, &good);
        let join = r#"{"type":"join","room":"s","seq":1,"at":1,"user":"c"}"#;
        assert!(after(true, 2).heard(0, join.as_bytes(), AT).is_err());
        let changed = text(1).replace("0000002000000", "0000002000001");
        assert!(after(false, 2).heard(0, changed.as_bytes(), AT).is_err());
    }

    #[test]
    fn what_never_came_is_in_the_latencies_with_how_long_it_was_waited_for() {
        let mut hearing = after(true, 3);
        hearing.begin_counting();
        tell_both(&mut hearing, &message(1));
        tell(&mut hearing, 0, &message(2));
        let now = DUE + Duration::from_secs(1);
        hearing.add_missing(now);
        assert_eq!((hearing.not_come(), hearing.latency().len()), (3, 6));
        hearing.add_unsent(0, 2, DUE, now);
        assert_eq!((hearing.not_come(), hearing.latency().len()), (7, 10));
        let at_least = |quantile| hearing.latency().value_at_quantile(quantile) >= 1_000_000;
        assert!(!at_least(0.3) && at_least(0.31));
    }

    #[test]
    fn what_is_given_up_is_not_forgotten() {
        let mut hearing = after(true, 1);
        for _ in 0..WAITED_FOR {
            hearing.sent(0, DUE, AT);
        }
        assert_eq!(
            (hearing.not_come(), hearing.rooms[0].waited.len()),
            (2, WAITED_FOR)
        );
        assert_eq!(hearing.owed(), 2 * (WAITED_FOR as u64 + 1));
        for seq in [1, 2] {
            tell_both(&mut hearing, &event(seq, 1));
        }
        assert_eq!((hearing.delivered(), hearing.wrong().surplus), (2, 2));
        assert_eq!(hearing.owed(), 2 * WAITED_FOR as u64);
    }

    #[test]
    fn what_comes_after_its_phase_is_neither_of_the_next_one_nor_too_much() {
        let mut hearing = after(true, 1);
        tell(&mut hearing, 0, &message(1));
        hearing.begin_phase();
        hearing.sent(0, DUE, DUE);
        tell(&mut hearing, 1, &message(1));
        assert_eq!((hearing.delivered(), hearing.owed()), (1, 2));
        assert_eq!(hearing.wrong().surplus, 0);
        tell_both(&mut hearing, &message(2));
        tell(&mut hearing, 0, &event(3, 1));
        assert_eq!((hearing.owed(), hearing.wrong().surplus), (0, 1));
    }

    #[test]
    fn messages_in_flight_are_those_that_have_not_reached_all() {
        let mut hearing = after(true, 2);
        assert_eq!((hearing.open(0), hearing.owed()), (2, 4));
        tell(&mut hearing, 0, &message(1));
        assert_eq!(hearing.open(0), 2);
        tell(&mut hearing, 1, &message(1));
        assert_eq!((hearing.open(0), hearing.owed()), (1, 2));
        hearing.begin_phase();
        assert_eq!(hearing.owed(), 0);
    }

    #[test]
    fn who_stalls_is_owed_nothing() {
        let mut hearing = two_members(true);
        hearing.stop(1);
        hearing.sent(0, DUE, DUE);
        tell(&mut hearing, 0, &message(1));
        assert_eq!((hearing.owed(), hearing.wrong()), (0, Wrong::default()));
        tell(&mut hearing, 1, &message(1));
        assert_eq!(hearing.delivered(), 1);
    }

    #[test]
    fn who_stalls_may_be_sent_less_and_nothing_out_of_order() {
        for (told, lost, repeated) in [
            (&[][..], 0, 0),
            (&[1, 2], 0, 0),
            (&[1, 3], 1, 0),
            (&[1, 2, 2], 0, 1),
        ] {
            let mut hearing = after(true, 4);
            for seq in 1..=4 {
                tell(&mut hearing, 0, &message(seq));
            }
            hearing.stop(1);
            for &seq in told {
                tell(&mut hearing, 1, &message(seq));
            }
            let expected = Wrong {
                lost,
                repeated,
                ..Wrong::default()
            };
            assert_eq!(hearing.wrong(), expected, "{told:?}");
        }
    }

    #[test]
    fn everybody_has_to_learn_the_number_of_members() {
        let mut hearing = nobody(true);
        let join =
            |seq| format!(r#"{{"type":"join","room":"r","seq":{seq},"at":1,"user":"u{seq}"}}"#);
        hearing.arrived(0, 0, Some(0), None);
        tell(&mut hearing, 0, &join(1));
        assert_eq!(hearing.ignorant(), 0);
        hearing.arrived(1, 1, Some(1), None);
        assert_eq!(hearing.ignorant(), 2);
        tell(&mut hearing, 0, &join(2));
        tell(&mut hearing, 1, &join(2));
        assert_eq!(hearing.ignorant(), 0);
        let summary = r#"{"type":"presence","room":"r","at":1,"rev":9,"joined":["a"],"left":["b","c"],"count":3}"#;
        hearing.arrived(2, 2, Some(2), None);
        for member in 0..3 {
            tell(&mut hearing, member, summary);
        }
        assert_eq!(hearing.ignorant(), 0);
        let presence = hearing.presence();
        assert_eq!(
            (presence.events, presence.summaries, presence.names),
            (3, 3, 9)
        );
        assert_eq!(hearing.departures(), [(AT, 2)], "told to three, and once");
    }

    #[test]
    fn summaries_out_of_order_are_told_and_older_ones_than_the_first_are_none() {
        let mut hearing = nobody(true);
        let summary = |rev| {
            format!(
                r#"{{"type":"presence","room":"r","at":1,"rev":{rev},"joined":["a"],"left":[],"count":{rev}}}"#
            )
        };
        hearing.arrived(0, 0, Some(6), Some(6));
        // Told as of 6 already; then one interval in two objects, and one that comes late.
        for (rev, knows) in [(5, 6), (8, 8), (8, 8), (7, 8)] {
            tell(&mut hearing, 0, &summary(rev));
            assert_eq!(hearing.members[0].knows, Some(knows));
        }
        assert_eq!(hearing.wrong().reordered, 1);
    }

    #[test]
    fn errors_and_foreign_messages_end_the_run() {
        let mut hearing = two_members(true);
        let error = r#"{"type":"error","id":1,"code":"rate_limited","message":"no"}"#;
        let trouble = hearing.heard(0, error.as_bytes(), AT).unwrap_err();
        assert!(matches!(trouble, Trouble::Refused { code, .. } if code == "rate_limited"));
        assert!(
            hearing.heard(0, message(1).as_bytes(), AT).is_err(),
            "nobody has sent anything"
        );
        assert!(two_members(false).heard(0, b"hello", AT).is_err());
        assert!(hearing.heard(0, br#"{"type":"new"}"#, AT).is_ok());
    }
}
