//! Who is next: a bounded queue in which nobody is behind all of somebody else's.
//!
//! - Addresses take turns, each with what came first from it. Whoever comes alone is next but for
//!   the turns of other addresses, however much one of them has waiting; and where all come from
//!   one address, all places and every turn are theirs.
//! - What the server wants on its own account is for all of them: it has every second turn, and a few
//!   places of its own beside theirs. So neither keeps the other out, however much comes.
//! - When the queue is full, what came last of whoever has most waiting makes room for one that has
//!   less. So coming often keeps nobody out but oneself.
//! - Who gave up keeps a place for a while at most: a full queue is searched for those once in as
//!   many arrivals as are a sixteenth of it.
//!
//! An IPv6 address is its /64 here, and whoever has a /48 has 65,536 of these, each with turns and
//! places like any other. What holds then are the bounds, and not the turns.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    net::IpAddr,
};

use chinwag_core::address_key;

/// How many of those that wait are looked at for each that finds the queue full.
const LOOKS: usize = 16;
/// How much of what the server wants may wait, beside what others do. It tells eight things at a time
/// and seldom asks for another.
pub(crate) const OWN: usize = 16;

/// Whose turn it may be: an address, IPv6 by its /64, or `None` for the server itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Party(Option<IpAddr>);

impl Party {
    /// The server, on its own account.
    pub(crate) const SERVER: Self = Self(None);

    /// Some address.
    #[cfg(all(test, feature = "password"))]
    pub(crate) const SOMEBODY: Self = Self(Some(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)));
}

impl From<IpAddr> for Party {
    fn from(address: IpAddr) -> Self {
        Self(Some(address_key(address)))
    }
}

/// What waits, by party.
#[derive(Debug)]
pub(crate) struct Fair<T> {
    /// Of addresses. None is empty.
    waiting: HashMap<Party, VecDeque<T>>,
    /// Each of those with how much it has.
    counts: BTreeSet<(usize, Party)>,
    /// Each of those once, the next one first.
    turns: VecDeque<Party>,
    /// How much they have together.
    len: usize,
    /// Of the server, at most [`OWN`].
    own: VecDeque<T>,
    /// The last turn was the server's.
    was_server: bool,
    /// How many may be looked at, saved up.
    looks: usize,
}

/// There is no room, and nobody has so much waiting that it should make some.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl<T> Default for Fair<T> {
    fn default() -> Self {
        Self {
            waiting: HashMap::new(),
            counts: BTreeSet::new(),
            turns: VecDeque::new(),
            len: 0,
            own: VecDeque::new(),
            was_server: false,
            looks: 0,
        }
    }
}

impl<T> Fair<T> {
    /// Has `item` wait, where at most `bound` of addresses may; gives what had to make room. Those that
    /// `is_gone` keep nobody out for long.
    pub(crate) fn push(
        &mut self,
        party: Party,
        item: T,
        bound: usize,
        is_gone: impl Fn(&T) -> bool,
    ) -> Result<Option<T>, Full> {
        if party == Party::SERVER {
            return self.push_own(item, is_gone).map(|()| None);
        }
        if self.len >= bound {
            self.looks += LOOKS;
            if self.looks >= self.len {
                self.looks = 0;
                self.retain(|item| !is_gone(item));
            }
        }
        let displaced = if self.len >= bound {
            Some(self.make_room(party)?)
        } else {
            None
        };
        let items = self.waiting.entry(party).or_default();
        if items.is_empty() {
            self.turns.push_back(party);
        }
        items.push_back(item);
        let count = items.len();
        self.count(party, count - 1, count);
        self.len += 1;
        Ok(displaced)
    }

    fn push_own(&mut self, item: T, is_gone: impl Fn(&T) -> bool) -> Result<(), Full> {
        if self.own.len() >= OWN {
            self.own.retain(|item| !is_gone(item));
        }
        if self.own.len() >= OWN {
            return Err(Full);
        }
        self.own.push_back(item);
        Ok(())
    }

    /// Takes out what came last of whoever has most waiting, if that is still no less than `party`
    /// then has.
    fn make_room(&mut self, party: Party) -> Result<T, Full> {
        let own = self.waiting.get(&party).map_or(0, VecDeque::len);
        let most = self.counts.last().filter(|(count, _)| *count > own + 1);
        let (count, party) = *most.ok_or(Full)?;
        self.count(party, count, count - 1);
        self.len -= 1;
        let last = self.waiting.get_mut(&party).and_then(VecDeque::pop_back);
        Ok(last.expect("it has more than another"))
    }

    /// What is next.
    pub(crate) fn pop(&mut self) -> Option<T> {
        if (!self.was_server || self.turns.is_empty())
            && let Some(item) = self.own.pop_front()
        {
            self.was_server = true;
            return Some(item);
        }
        let party = self.turns.pop_front()?;
        self.was_server = false;
        let whose = "whose turn it may be has something waiting";
        let items = self.waiting.get_mut(&party).expect(whose);
        let item = items.pop_front().expect(whose);
        let count = items.len();
        if count == 0 {
            self.waiting.remove(&party);
        } else {
            self.turns.push_back(party);
        }
        self.count(party, count + 1, count);
        self.len -= 1;
        Some(item)
    }

    /// `party` has `now` where it had `before`.
    fn count(&mut self, party: Party, before: usize, now: usize) {
        self.counts.remove(&(before, party));
        if now > 0 {
            self.counts.insert((now, party));
        }
    }

    fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        for items in self.waiting.values_mut() {
            items.retain(&keep);
        }
        self.waiting.retain(|_, items| !items.is_empty());
        self.turns.retain(|party| self.waiting.contains_key(party));
        let counts = self.waiting.iter();
        self.counts = counts.map(|(party, items)| (items.len(), *party)).collect();
        self.len = self.waiting.values().map(VecDeque::len).sum();
    }

    /// Everything, in no order.
    #[cfg(feature = "exec")]
    pub(crate) fn into_items(self) -> impl Iterator<Item = T> {
        self.waiting.into_values().flatten().chain(self.own)
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, net::Ipv4Addr};

    use super::*;

    fn party(host: u8) -> Party {
        IpAddr::from([192, 0, 2, host]).into()
    }

    /// Has `host` wait with that number; what made room.
    fn push(
        queue: &mut Fair<(u8, u32)>,
        host: u8,
        number: u32,
        bound: usize,
    ) -> Result<Option<(u8, u32)>, Full> {
        queue.push(party(host), (host, number), bound, |_| false)
    }

    fn all(mut queue: Fair<(u8, u32)>) -> Vec<(u8, u32)> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn addresses_take_turns_and_what_comes_from_one_keeps_its_order() {
        let mut queue = Fair::default();
        for number in 0..4 {
            push(&mut queue, 1, number, 10).unwrap();
        }
        push(&mut queue, 2, 0, 10).unwrap();
        assert_eq!(queue.pop(), Some((1, 0)));
        push(&mut queue, 3, 0, 10).unwrap();
        push(&mut queue, 2, 1, 10).unwrap();
        let rest = [(2, 0), (1, 1), (3, 0), (2, 1), (1, 2), (1, 3)];
        assert_eq!(all(queue), rest);
    }

    #[test]
    fn where_all_come_from_one_address_it_has_the_whole_queue() {
        let mut queue = Fair::default();
        for number in 0..3 {
            assert_eq!(push(&mut queue, 1, number, 3), Ok(None));
        }
        assert_eq!(push(&mut queue, 1, 3, 3), Err(Full));
        assert_eq!(all(queue), [(1, 0), (1, 1), (1, 2)]);
        let mut none = Fair::default();
        assert_eq!(push(&mut none, 1, 0, 0), Err(Full));
    }

    #[test]
    fn who_has_most_waiting_makes_room_until_all_have_as_much() {
        let mut queue = Fair::default();
        for number in 0..6 {
            push(&mut queue, 1, number, 6).unwrap();
        }
        assert_eq!(push(&mut queue, 2, 0, 6), Ok(Some((1, 5))));
        assert_eq!(push(&mut queue, 3, 0, 6), Ok(Some((1, 4))));
        assert_eq!(push(&mut queue, 2, 1, 6), Ok(Some((1, 3))));
        assert_eq!(push(&mut queue, 2, 2, 6), Err(Full), "it would have most");
        assert_eq!(push(&mut queue, 1, 6, 6), Err(Full), "it has most");
        assert_eq!(push(&mut queue, 4, 0, 6), Ok(Some((1, 2))));
        let rest = [(1, 0), (2, 0), (3, 0), (4, 0), (1, 1), (2, 1)];
        assert_eq!(all(queue), rest);
    }

    #[test]
    fn who_gave_up_keeps_nobody_out_and_has_no_turn_left() {
        let mut queue = Fair::default();
        for number in 0..3 {
            push(&mut queue, 1, number, 4).unwrap();
        }
        push(&mut queue, 2, 0, 4).unwrap();
        let is_gone = |(host, number): &(u8, u32)| *host == 2 || *number < 2;
        let pushed = queue.push(party(1), (1, 3), 4, is_gone);
        assert_eq!(pushed, Ok(None));
        assert_eq!(push(&mut queue, 2, 1, 4), Ok(None));
        assert_eq!(all(queue), [(1, 2), (2, 1), (1, 3)]);
    }

    #[test]
    fn the_server_has_every_second_turn_while_others_wait() {
        let mut queue = Fair::default();
        for number in 0..4 {
            let pushed = queue.push(Party::SERVER, (0, number), 10, |_| false);
            assert_eq!(pushed, Ok(None));
            push(&mut queue, 1, number, 10).unwrap();
        }
        push(&mut queue, 2, 0, 10).unwrap();
        let first_six = [(0, 0), (1, 0), (0, 1), (2, 0), (0, 2), (1, 1)];
        assert_eq!([(); 6].map(|()| queue.pop().unwrap()), first_six);
        assert_eq!(all(queue), [(0, 3), (1, 2), (1, 3)]);
    }

    #[test]
    fn what_the_server_wants_has_places_of_its_own_and_takes_none_of_others() {
        let mut queue = Fair::default();
        let own =
            |queue: &mut Fair<_>, number| queue.push(Party::SERVER, (0, number), 3, |_| false);
        for host in 1..=3 {
            push(&mut queue, host, 0, 3).unwrap();
        }
        for number in (0..).take(OWN) {
            assert_eq!(own(&mut queue, number), Ok(None), "whoever else waits");
        }
        assert_eq!(own(&mut queue, 99), Err(Full));
        assert_eq!(push(&mut queue, 4, 0, 3), Err(Full));
        assert_eq!(queue.pop(), Some((0, 0)));
        assert_eq!(queue.pop(), Some((1, 0)));
        assert_eq!(
            push(&mut queue, 4, 0, 3),
            Ok(None),
            "the server has not taken it"
        );
        assert_eq!(own(&mut queue, 99), Ok(None));
        assert_eq!(all(queue).len(), 3 + OWN);
    }

    #[test]
    fn what_the_server_wants_no_more_keeps_nothing_else_of_its_out() {
        let mut queue = Fair::default();
        for number in (0..).take(OWN) {
            let pushed = queue.push(Party::SERVER, (0, number), 0, |_| false);
            assert_eq!(pushed, Ok(None));
        }
        let is_gone = |(_, number): &(u8, u32)| *number != 5;
        assert_eq!(queue.push(Party::SERVER, (0, 99), 0, is_gone), Ok(None));
        assert_eq!(all(queue), [(0, 5), (0, 99)]);
    }

    #[test]
    fn a_full_queue_is_searched_seldom_and_those_who_gave_up_are_found() {
        const BOUND: u32 = 128;
        let party = |number: u32| Party::from(IpAddr::from(Ipv4Addr::from_bits(number)));
        let looks = Cell::new(0);
        let mut queue = Fair::default();
        let mut push = |number: u32, gone: Option<u32>| {
            queue.push(party(number), number, BOUND as usize, |waiting| {
                looks.set(looks.get() + 1);
                Some(*waiting) == gone
            })
        };
        for number in 0..BOUND {
            push(number, None).unwrap();
        }
        for number in BOUND..11 * BOUND {
            assert_eq!(push(number, None), Err(Full));
        }
        assert_eq!(looks.get(), LOOKS * 10 * BOUND as usize);
        let tries = (1..=8).find(|_| push(BOUND, Some(7)).is_ok());
        assert_eq!(tries, Some(8), "as many as have been saved up for");
    }

    #[test]
    fn one_network_is_one_party() {
        let of = |text: &str| Party::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
