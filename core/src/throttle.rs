//! Denied log-ins by address and by name, and how long they keep the next one waiting.
//!
//! A key may fail `burst` times at once and `rate` times in each `per`. Whoever uses that up waits: `per / rate` the
//! first time, twice as long after each further denial, up to the configured most. After a wait there is one attempt; a
//! denial makes the next wait, silence brings the burst back at the rate, and with the whole of it all is forgotten. So
//! over any length of time guesses come at the rate at most, and at less for whoever goes on.
//!
//! Only what was denied is held against anybody. While a key is waiting, or has waited lately, no more of its attempts
//! are judged at a time than it may fail: nobody gets ahead by guessing all at once.

use std::{
    collections::{HashMap, hash_map},
    hash::Hash,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

use crate::{
    clock::{self, Instant},
    config::Rate,
};

/// Most keys that are told apart; those beyond share one record.
const MAX_KEYS: usize = 65_536;
/// How often a full table is searched for records of which nothing is left.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// The longest that many denials at once are held against a key.
const LONGEST_MEMORY: Duration = Duration::from_secs(3600);

/// The denied log-ins of all keys of one sort.
#[derive(Debug)]
pub(crate) struct Failures<K>(Option<Limited<K>>);

#[derive(Debug)]
struct Limited<K> {
    /// In which one denial is forgotten, and the first wait.
    period: Duration,
    burst: u32,
    /// The longest wait.
    most: Duration,
    table: Mutex<Table<K>>,
}

#[derive(Debug)]
struct Table<K> {
    /// Clients choose the keys: hashed with a secret.
    records: HashMap<K, Record>,
    shared: Record,
    swept: Instant,
}

/// What is held against one key.
#[derive(Debug)]
struct Record {
    /// From then on nothing, unless there are more denials.
    clear: Instant,
    /// No attempt before.
    until: Instant,
    /// Waits so far, each twice as long as the one before.
    waits: u32,
    /// Attempts that are being judged, as far as they are counted.
    pending: u32,
}

impl Record {
    const fn new(now: Instant) -> Self {
        Self {
            clear: now,
            until: now,
            waits: 0,
            pending: 0,
        }
    }

    fn is_clear(&self, now: Instant) -> bool {
        self.clear <= now && self.pending == 0
    }
}

/// An attempt to log in, from before it is judged. Dropped, it costs nothing.
#[derive(Debug)]
pub(crate) struct Attempt<K: Hash + Eq> {
    failures: Arc<Failures<K>>,
    key: K,
    counted: Counted,
}

/// Where an attempt is counted while it is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Counted {
    Nowhere,
    Own,
    Shared,
}

impl<K: Hash + Eq + Clone> Failures<K> {
    /// `rate`: what may be denied. `most`: the longest wait; where it is not above `per / rate`, waits don't grow.
    pub(crate) fn new(rate: Rate, most: Duration) -> Arc<Self> {
        let Rate::Limited { rate, per, burst } = rate else {
            return Arc::new(Self(None));
        };
        let now = clock::now();
        let period = (per / rate.max(1)).max(Duration::from_nanos(1));
        Arc::new(Self(Some(Limited {
            period,
            burst: burst.max(1),
            most: most.max(period),
            table: Mutex::new(Table {
                records: HashMap::new(),
                shared: Record::new(now),
                swept: now,
            }),
        })))
    }

    /// Begins an attempt of `key`'s, or says how long it has to wait.
    pub(crate) fn attempt(self: &Arc<Self>, key: K) -> Result<Attempt<K>, Duration> {
        let counted = match &self.0 {
            None => Counted::Nowhere,
            Some(limited) => limited.begin(&key)?,
        };
        Ok(Attempt {
            failures: Arc::clone(self),
            key,
            counted,
        })
    }
}

impl<K: Hash + Eq> Limited<K> {
    fn begin(&self, key: &K) -> Result<Counted, Duration> {
        let now = clock::now();
        let mut table = self.table.lock();
        let table = &mut *table;
        let is_full = table.records.len() >= MAX_KEYS;
        let (record, counted) = match table.records.get_mut(key) {
            Some(record) if record.is_clear(now) => {
                table.records.remove(key);
                return Ok(Counted::Nowhere);
            }
            Some(record) => (record, Counted::Own),
            None if is_full => (&mut table.shared, Counted::Shared),
            None => return Ok(Counted::Nowhere),
        };
        let wait = record.until.saturating_duration_since(now);
        if !wait.is_zero() {
            return Err(wait);
        }
        // Nothing is held against those who share one, or what is has not made them wait yet.
        if record.is_clear(now) || record.waits == 0 {
            return Ok(Counted::Nowhere);
        }
        let held = record.clear.saturating_duration_since(now);
        let used = held.div_duration_f64(self.period).ceil();
        // After a wait there is one attempt, whatever else is held against the key.
        let free = (f64::from(self.burst) - used).max(1.0);
        if f64::from(record.pending) >= free {
            return Err(self.period);
        }
        record.pending += 1;
        Ok(counted)
    }

    fn end(&self, key: &K, counted: Counted) {
        let mut table = self.table.lock();
        let record = match counted {
            Counted::Nowhere => None,
            Counted::Own => table.records.get_mut(key),
            Counted::Shared => Some(&mut table.shared),
        };
        if let Some(record) = record {
            record.pending = record.pending.saturating_sub(1);
        }
    }

    fn deny(&self, key: K) {
        let now = clock::now();
        let mut table = self.table.lock();
        let table = &mut *table;
        if table.records.len() >= MAX_KEYS
            && now.saturating_duration_since(table.swept) >= SWEEP_EVERY
        {
            table.records.retain(|_, record| !record.is_clear(now));
            table.swept = now;
        }
        let is_full = table.records.len() >= MAX_KEYS;
        let record = match table.records.entry(key) {
            hash_map::Entry::Occupied(entry) => entry.into_mut(),
            hash_map::Entry::Vacant(_) if is_full => &mut table.shared,
            hash_map::Entry::Vacant(entry) => entry.insert(Record::new(now)),
        };
        if record.clear <= now {
            record.waits = 0;
        }
        let burst = self.period.saturating_mul(self.burst);
        record.clear = record.clear.max(now) + self.period;
        // Part of a denial may be forgotten by now: what is left has no room for another whole one.
        if record.clear - now > burst - self.period {
            let growth = 1_u32.checked_shl(record.waits).unwrap_or(u32::MAX);
            let wait = self.period.saturating_mul(growth).min(self.most);
            record.waits = record.waits.saturating_add(1);
            record.until = now + wait;
            // One attempt is free when the wait is over.
            record.clear = record.clear.max(record.until + burst - self.period);
            let longest = LONGEST_MEMORY.max(wait + burst);
            record.clear = record.clear.min(now + longest);
        }
    }
}

impl<K: Hash + Eq> Attempt<K> {
    /// The attempt was denied.
    pub(crate) fn denied(self)
    where
        K: Clone,
    {
        if let Some(limited) = &self.failures.0 {
            limited.deny(self.key.clone());
        }
    }
}

impl<K: Hash + Eq> Drop for Attempt<K> {
    fn drop(&mut self) {
        if self.counted != Counted::Nowhere
            && let Some(limited) = &self.failures.0
        {
            limited.end(&self.key, self.counted);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn failures<K: Hash + Eq + Clone>(per: Duration, burst: u32, most: u64) -> Arc<Failures<K>> {
        let rate = Rate::Limited {
            rate: 1,
            per,
            burst,
        };
        Failures::new(rate, Duration::from_secs(most))
    }

    fn fail<K: Hash + Eq + Clone>(failures: &Arc<Failures<K>>, key: K) {
        failures.attempt(key).expect("it need not wait").denied();
    }

    #[tokio::test(start_paused = true)]
    async fn each_wait_is_twice_the_one_before_up_to_the_most() {
        let failures = failures(SECOND, 3, 5);
        for _ in 0..3 {
            fail(&failures, 'a');
        }
        for seconds in [1, 2, 4, 5, 5] {
            let wait = failures.attempt('a').unwrap_err();
            assert_eq!(wait, SECOND * seconds);
            advance(wait).await;
            fail(&failures, 'a');
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_burst_is_used_up_also_where_it_took_a_moment() {
        let failures = failures(SECOND, 2, 60);
        fail(&failures, 'a');
        advance(SECOND / 2).await;
        fail(&failures, 'a');
        assert_eq!(failures.attempt('a').unwrap_err(), SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_brings_back_the_burst_and_the_short_wait() {
        let failures = failures(SECOND, 3, 60);
        for _ in 0..3 {
            fail(&failures, 'a');
        }
        advance(SECOND).await;
        fail(&failures, 'a');
        assert_eq!(failures.attempt('a').unwrap_err(), SECOND * 2);
        // The wait, one attempt that is free then, and two more.
        advance(SECOND * 4).await;
        for _ in 0..3 {
            fail(&failures, 'a');
        }
        assert_eq!(failures.attempt('a').unwrap_err(), SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_denied_costs_nothing() {
        let failures = failures(SECOND, 1, 60);
        for _ in 0..100 {
            drop(failures.attempt('a').unwrap());
        }
        fail(&failures, 'a');
        advance(SECOND).await;
        for _ in 0..100 {
            drop(failures.attempt('a').unwrap());
        }
        assert!(failures.attempt('b').is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_guesses_all_at_once_is_not_ahead() {
        let failures = failures(SECOND, 3, 60);
        // Before anything is known of the key all are judged.
        let first: Vec<_> = (0..100).map(|_| failures.attempt('a').unwrap()).collect();
        for attempt in first {
            attempt.denied();
        }
        assert_eq!(failures.attempt('a').unwrap_err(), SECOND * 60);
        advance(SECOND * 60).await;
        // Then one at a time, for as long as the others' time is not over.
        let only = failures.attempt('a').unwrap();
        assert_eq!(failures.attempt('a').unwrap_err(), SECOND);
        drop(only);
        failures.attempt('a').unwrap().denied();
        assert_eq!(failures.attempt('a').unwrap_err(), SECOND * 60);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_of_denials_is_forgotten_in_an_hour() {
        let failures = failures(SECOND * 10, 2, 60);
        let crowd: Vec<_> = (0..10_000)
            .map(|_| failures.attempt('a').unwrap())
            .collect();
        for attempt in crowd {
            attempt.denied();
        }
        advance(LONGEST_MEMORY).await;
        fail(&failures, 'a');
        fail(&failures, 'a');
        assert_eq!(failures.attempt('a').unwrap_err(), SECOND * 10);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nobody_waits() {
        let failures = Failures::new(Rate::Unlimited, SECOND);
        for _ in 0..1000 {
            fail(&failures, 'a');
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waits_do_not_grow_where_the_most_is_short() {
        let failures = failures(SECOND * 10, 1, 0);
        for _ in 0..5 {
            fail(&failures, 'a');
            let wait = failures.attempt('a').unwrap_err();
            assert_eq!(wait, SECOND * 10);
            advance(wait).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn keys_do_not_share_until_the_table_is_full() {
        let failures = failures(SECOND, 2, 60);
        for key in 0..MAX_KEYS {
            fail(&failures, key);
        }
        for _ in 0..2 {
            fail(&failures, MAX_KEYS);
        }
        assert!(
            failures.attempt(MAX_KEYS + 1).is_err(),
            "keys beyond the table share one record"
        );
        fail(&failures, 0);
        assert!(
            failures.attempt(0).is_err(),
            "a key of the table has its own"
        );
        advance(SECOND * 3).await;
        fail(&failures, MAX_KEYS + 1);
        let kept =
            |failures: &Failures<usize>| failures.0.as_ref().unwrap().table.lock().records.len();
        assert_eq!(kept(&failures), 1, "what is clear is forgotten");
        assert!(failures.attempt(MAX_KEYS + 1).is_ok());
        advance(SECOND * 3).await;
        assert!(failures.attempt(MAX_KEYS + 1).is_ok());
        assert_eq!(kept(&failures), 0);
    }

    proptest! {
        #[test]
        fn one_by_one_never_more_than_burst_and_rate(
            steps in proptest::collection::vec(0_u64..4_000, 1..80),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(async {
                let failures = failures(SECOND, 3, 60);
                let (begun, mut denied) = (clock::now(), 0);
                for millis in steps {
                    advance(Duration::from_millis(millis)).await;
                    if let Ok(attempt) = failures.attempt('a') {
                        attempt.denied();
                        denied += 1;
                    }
                    let allowed = 3 + begun.elapsed().as_secs();
                    assert!(denied <= allowed, "{denied} denied, {allowed} allowed");
                }
            });
        }
    }
}
