//! What members heard: whether each was sent every event once, in order, the same as all others, and how long each
//! message took.
//!
//! A server that numbers its events is checked by these numbers, joins and leaves included. One that does not is
//! checked by the numbers that the messages carry.

use std::time::Duration;

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
/// Longest latency that is told apart, in microseconds.
const LATENCY_LIMIT_US: u64 = 60_000_000;

/// The ears of a crowd. See the [module](self).
#[derive(Debug)]
pub struct Hearing {
    /// Whether the server numbers events.
    numbers: bool,
    payload: usize,
    rooms: Vec<Room>,
    members: Vec<Member>,
    /// Rooms that had a message delivered to all since somebody asked.
    freed: Vec<usize>,
    latency: Histogram<u64>,
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
    /// Events, and presence in batches, that a member was sent after a later one.
    pub reordered: u64,
    /// Events that had another content for one member than for another under the same number.
    pub split: u64,
}

#[derive(Debug)]
struct Member {
    room: usize,
    /// `None` for who is not in the room, or stopped listening.
    sequence: Option<Sequence>,
    /// Members of the room as far as this one was told; `None` where rooms don't tell.
    knows: Option<u64>,
    /// As of which count of changes it knows that, where presence is batched.
    rev: u64,
    /// The latest summary that it was sent.
    summary: u64,
}

#[derive(Debug)]
struct Room {
    /// Members that messages are to reach.
    members: u64,
    highest: u64,
    /// Messages sent in this phase, and deliveries of them.
    sent: u64,
    heard: u64,
    /// The latest events by their number, modulo the length.
    recent: Vec<Recent>,
    /// The latest summary of who came and went: all members get the same.
    summary: Summary,
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
    /// A message that was due at this time.
    Message(Duration),
    #[default]
    Join,
    Leave,
}

impl Hearing {
    /// For members of `rooms` rooms in turn, who are sent texts of `payload` bytes by a server that numbers its events
    /// or does not.
    #[must_use]
    pub fn new(numbers: bool, payload: usize, rooms: usize) -> Self {
        let (least, most) = ROOM_RECENT;
        let recent = (RECENT / rooms.max(1)).clamp(least, most);
        let room = || Room {
            members: 0,
            highest: 0,
            sent: 0,
            heard: 0,
            recent: vec![Recent::default(); recent.next_power_of_two()],
            summary: Summary::default(),
        };
        Self {
            numbers,
            payload,
            rooms: std::iter::repeat_with(room).take(rooms).collect(),
            members: Vec::new(),
            freed: Vec::new(),
            latency: Histogram::new_with_bounds(1, LATENCY_LIMIT_US, 3)
                .expect("these bounds are valid"),
            delivered: 0,
            acknowledged: 0,
            split: 0,
            disordered: 0,
            presence: Presence::default(),
            departures: Vec::new(),
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

    /// From now on nothing is expected of `member`.
    pub fn stop(&mut self, member: usize) {
        let member = &mut self.members[member];
        if member.sequence.take().is_some() {
            self.rooms[member.room].members -= 1;
        }
    }

    /// A phase begins: whatever was on its way before does not count as sent.
    pub fn begin_phase(&mut self) {
        for room in &mut self.rooms {
            (room.sent, room.heard) = (0, 0);
        }
        self.freed.clear();
        self.acknowledged = 0;
    }

    /// What was delivered so far does not count.
    pub fn begin_counting(&mut self) {
        self.delivered = 0;
        self.latency.reset();
        self.presence = Presence::default();
        self.departures.clear();
    }

    /// A message was sent to `room`.
    pub fn sent(&mut self, room: usize) {
        self.rooms[room].sent += 1;
    }

    /// Messages of `room` that have not reached all its members.
    #[must_use]
    pub fn open(&self, room: usize) -> u64 {
        let room = &self.rooms[room];
        room.owed().div_ceil(room.members.max(1))
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

    /// What was wrong so far.
    #[must_use]
    pub fn wrong(&self) -> Wrong {
        let mut wrong = Wrong {
            split: self.split,
            reordered: self.disordered,
            ..Wrong::default()
        };
        for member in &self.members {
            if let Some(sequence) = &member.sequence {
                wrong.lost += sequence.lost(self.rooms[member.room].highest);
                wrong.repeated += sequence.repeated();
                wrong.reordered += sequence.reordered();
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
            let (due, number) = head(object, self.payload)
                .ok_or_else(|| Trouble::Told(crate::object::shown(object)))?;
            self.numbered(member, number, What::Message(due), object, at);
            Ok(())
        }
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
        match (&*incoming.kind, incoming.seq) {
            ("message", Some(seq)) => {
                let text = incoming.text.as_deref().unwrap_or_default();
                let (due, _) = head(text.as_bytes(), self.payload).ok_or_else(refuse)?;
                self.numbered(member, seq, What::Message(due), object, at);
            }
            ("join", Some(seq)) => self.numbered(member, seq, What::Join, object, at),
            ("leave", Some(seq)) => self.numbered(member, seq, What::Leave, object, at),
            ("sent", Some(seq)) => {
                let room = &mut self.rooms[room];
                room.highest = room.highest.max(seq);
                self.acknowledged += 1;
            }
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
            if matches!(what, What::Leave) {
                self.departures.push((at, 1));
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
        match what {
            What::Message(due) => {
                self.delivered += 1;
                let late = at.saturating_sub(due).as_micros();
                self.latency
                    .saturating_record(u64::try_from(late).unwrap_or(u64::MAX));
                let room = &mut self.rooms[member.room];
                room.heard += 1;
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

impl Room {
    fn owed(&self) -> u64 {
        (self.sent * self.members).saturating_sub(self.heard)
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

/// When a text was due, and its number; `None` if this run did not send it.
fn head(text: &[u8], payload: usize) -> Option<(Duration, u64)> {
    if text.len() != payload {
        return None;
    }
    let number = |digits: &[u8]| {
        digits.iter().try_fold(0_u64, |number, byte| {
            let digit = byte.checked_sub(b'0').filter(|&digit| digit < 10)?;
            Some(number * 10 + u64::from(digit))
        })
    };
    let (due, rest) = text.split_at_checked(HEAD_BYTES / 2)?;
    let (which, _) = rest.split_at_checked(HEAD_BYTES / 2)?;
    Some((Duration::from_nanos(number(due)?), number(which)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYLOAD: usize = 40;
    const AT: Duration = Duration::from_millis(5);

    fn text(number: u64) -> String {
        format!("{:016}{number:016}xxxxxxxx", 2_000_000)
    }

    fn message(seq: u64) -> String {
        let text = text(seq);
        format!(r#"{{"type":"message","room":"r","seq":{seq},"at":1,"user":"a","text":"{text}"}}"#)
    }

    fn two_members(numbers: bool) -> Hearing {
        let mut hearing = Hearing::new(numbers, PAYLOAD, 1);
        hearing.arrived(0, 0, None, None);
        hearing.arrived(1, 0, None, None);
        hearing
    }

    fn tell(hearing: &mut Hearing, member: usize, object: &str) {
        hearing.heard(member, object.as_bytes(), AT).unwrap();
    }

    #[test]
    fn deliveries_are_messages_times_members_and_none_is_wrong() {
        for numbers in [true, false] {
            let mut hearing = two_members(numbers);
            for seq in 1..=3 {
                hearing.sent(0);
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
            let mut hearing = two_members(numbers);
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
    fn another_content_under_the_same_number_is_split() {
        let mut hearing = two_members(true);
        tell(&mut hearing, 0, &message(1));
        tell(
            &mut hearing,
            1,
            &message(1).replace(r#""at":1"#, r#""at":2"#),
        );
        assert_eq!(hearing.wrong().split, 1);
    }

    #[test]
    fn messages_in_flight_are_those_that_have_not_reached_all() {
        let mut hearing = two_members(true);
        hearing.sent(0);
        hearing.sent(0);
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
        hearing.sent(0);
        tell(&mut hearing, 0, &message(1));
        assert_eq!((hearing.owed(), hearing.wrong()), (0, Wrong::default()));
        tell(&mut hearing, 1, &message(1));
        assert_eq!(hearing.delivered(), 1);
    }

    #[test]
    fn everybody_has_to_learn_the_number_of_members() {
        let mut hearing = Hearing::new(true, PAYLOAD, 1);
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
        let mut hearing = Hearing::new(true, PAYLOAD, 1);
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
        let foreign = message(1).replace("0000", "hello");
        assert!(hearing.heard(0, foreign.as_bytes(), AT).is_err());
        assert!(two_members(false).heard(0, b"hello", AT).is_err());
        assert!(hearing.heard(0, br#"{"type":"new"}"#, AT).is_ok());
    }
}
