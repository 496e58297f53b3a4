//! A map with a bound, for keys that strangers choose.

use std::hash::Hash;

use indexmap::IndexMap;

use crate::clock::Instant;

/// Most keys of one map.
pub(crate) const MAX_KEYS: usize = 65_536;
/// Entries that are looked at to find one that may go.
const LOOKED_AT: usize = 8;

/// At most [`MAX_KEYS`] keys, each with a value. In a full map one goes for a new one, so that whoever fills it keeps
/// nobody out.
#[derive(Debug)]
pub(crate) struct Bounded<K, V> {
    /// Clients choose the keys: hashed with a secret.
    entries: IndexMap<K, V>,
    /// Where the next search for an entry that may go begins: it goes round, so that each is looked at in its turn.
    hand: usize,
}

impl<K: Hash + Eq, V> Bounded<K, V> {
    pub(crate) fn new() -> Self {
        Self {
            entries: IndexMap::new(),
            hand: 0,
        }
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key)
    }

    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key)
    }

    pub(crate) fn remove(&mut self, key: &K) {
        self.entries.swap_remove(key);
    }

    /// The value of `key`, which is `new` if there was none. `goes_at` says of a value in whose order it may go for a
    /// new one, or that it may not. `None`: the map is full and none of some that were looked at may go.
    pub(crate) fn get_or_insert(
        &mut self,
        key: K,
        new: V,
        goes_at: impl Fn(&V) -> Option<Instant>,
    ) -> Option<&mut V> {
        let count = self.entries.len();
        if count >= MAX_KEYS && !self.entries.contains_key(&key) {
            let looked_at = (0..LOOKED_AT).map(|step| (self.hand + step) % count);
            let first = looked_at
                .filter_map(|index| Some((goes_at(&self.entries[index])?, index)))
                .min();
            self.hand = (self.hand + LOOKED_AT) % count;
            let (_, index) = first?;
            self.entries.swap_remove_index(index);
        }
        Some(self.entries.entry(key).or_insert(new))
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}
