//! Who is next: a bounded queue in which nobody is behind all of somebody else's.
//!
//! - Addresses take turns, each with what came first from it. Whoever comes alone is next but for
//!   the turns of other addresses, however much one of them has waiting; and where all come from
//!   one address, all places and every turn are theirs.
//! - When the queue is full, what came last of the address that has most waiting makes room for
//!   one that has less. So coming often keeps nobody out but oneself.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
};

use chinwag_core::address_key;

/// Whose turn it may be: an address, IPv6 by its /64, or `None` for the server itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Party(Option<IpAddr>);

impl Party {
    /// The server, on its own account.
    #[cfg(any(feature = "_client", feature = "exec", test))]
    pub(crate) const SERVER: Self = Self(None);
}

impl From<IpAddr> for Party {
    fn from(address: IpAddr) -> Self {
        Self(Some(address_key(address)))
    }
}

/// What waits, by party.
#[derive(Debug)]
pub(crate) struct Fair<T> {
    /// None is empty.
    waiting: HashMap<Party, VecDeque<T>>,
    /// Each of those once, the next one first.
    turns: VecDeque<Party>,
    len: usize,
}

/// There is no room, and nobody has so much waiting that it should make some.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl<T> Default for Fair<T> {
    fn default() -> Self {
        Self {
            waiting: HashMap::new(),
            turns: VecDeque::new(),
            len: 0,
        }
    }
}

impl<T> Fair<T> {
    /// Has `item` wait, where at most `bound` may; gives what had to make room. Those that `is_gone`
    /// keep nobody out.
    pub(crate) fn push(
        &mut self,
        party: Party,
        item: T,
        bound: usize,
        is_gone: impl Fn(&T) -> bool,
    ) -> Result<Option<T>, Full> {
        if self.len >= bound {
            self.retain(|item| !is_gone(item));
        }
        let displaced = if self.len >= bound {
            Some(self.make_room(party)?)
        } else {
            None
        };
        let own = self.waiting.entry(party).or_default();
        if own.is_empty() {
            self.turns.push_back(party);
        }
        own.push_back(item);
        self.len += 1;
        Ok(displaced)
    }

    /// Takes out what came last of whoever has most waiting, if that is still no less than `party`
    /// then has.
    fn make_room(&mut self, party: Party) -> Result<T, Full> {
        let own = self.waiting.get(&party).map_or(0, VecDeque::len);
        let most = self.waiting.iter_mut().max_by_key(|(_, items)| items.len());
        let (_, items) = most
            .filter(|(_, items)| items.len() > own + 1)
            .ok_or(Full)?;
        self.len -= 1;
        Ok(items.pop_back().expect("it is longer than another"))
    }

    /// What is next.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let party = self.turns.pop_front()?;
        let whose = "whose turn it may be has something waiting";
        let items = self.waiting.get_mut(&party).expect(whose);
        let item = items.pop_front().expect(whose);
        if items.is_empty() {
            self.waiting.remove(&party);
        } else {
            self.turns.push_back(party);
        }
        self.len -= 1;
        Some(item)
    }

    fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        for items in self.waiting.values_mut() {
            items.retain(&keep);
        }
        self.waiting.retain(|_, items| !items.is_empty());
        self.turns.retain(|party| self.waiting.contains_key(party));
        self.len = self.waiting.values().map(VecDeque::len).sum();
    }

    /// Everything, in no order.
    #[cfg(feature = "exec")]
    pub(crate) fn into_items(self) -> impl Iterator<Item = T> {
        self.waiting.into_values().flatten()
    }
}

#[cfg(test)]
mod tests {
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
    fn one_network_is_one_party() {
        let of = |text: &str| Party::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::2"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
