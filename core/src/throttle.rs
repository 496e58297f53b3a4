//! Denied log-ins by address and by name, and how long they keep the next one waiting.
//!
//! A key may fail `burst` times at once and `rate` times in each `per`. Whoever uses that up waits: `per / rate` the
//! first time, twice as long after each further denial, up to the configured most. After a wait there is one attempt; a
//! denial makes the next wait, silence brings the burst back at the rate, and with the whole of it all is forgotten. So
//! over any length of time guesses come at the rate at most, and at less for whoever goes on.
//!
//! Only what was denied is held against anybody. But what is being judged may be denied, so no more of a key's attempts
//! are judged at a time than it may still fail: nobody gets ahead by guessing all at once. Where many who have nothing
//! to do with each other share a key, as they do an address, a larger crowd may be judged until it has had to wait.

use std::{hash::Hash, sync::Arc, time::Duration};

use crate::{
    bounded::Bounded,
    clock::{self, Instant},
    config::Rate,
    lock::Mutex,
};

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
    /// Attempts of a key that has not had to wait that may be judged at a time, where the burst allows for fewer.
    crowd: u32,
    table: Mutex<Table<K>>,
}

#[derive(Debug)]
struct Table<K> {
    records: Bounded<K, Record>,
    /// For keys that come when the table is full of records of which each is needed.
    shared: Record,
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
    /// Attempts that are being judged.
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

    /// The first to go for others is the one that would be clear first. Who has had to wait has to be remembered.
    fn goes_at(&self, now: Instant) -> Option<Instant> {
        let may_go = self.is_clear(now) || (self.waits == 0 && self.pending == 0);
        may_go.then_some(self.clear)
    }
}

/// Why an attempt is not judged now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Held {
    /// As many of the key's are being judged as may be: there is room soon.
    Crowd,
    /// Too many were denied: none for so long.
    Wait(Duration),
}

/// An attempt to log in, from before it is judged. Dropped, it costs nothing.
#[derive(Debug)]
pub(crate) struct Attempt<K: Hash + Eq> {
    failures: Arc<Failures<K>>,
    key: K,
    /// Whether the key had no record of its own when it began.
    is_shared: bool,
}

impl<K: Hash + Eq + Clone> Failures<K> {
    /// `rate`: what may be denied. `most`: the longest wait; where it is not above `per / rate`, waits don't grow.
    /// `crowd`: how many of a key's attempts are judged at a time until it has had to wait, if the burst has fewer.
    pub(crate) fn new(rate: Rate, most: Duration, crowd: u32) -> Arc<Self> {
        let Rate::Limited { rate, per, burst } = rate else {
            return Arc::new(Self(None));
        };
        let period = (per / rate.max(1)).max(Duration::from_nanos(1));
        Arc::new(Self(Some(Limited {
            period,
            burst: burst.max(1),
            most: most.max(period),
            crowd,
            table: Mutex::new(Table {
                records: Bounded::new(),
                shared: Record::new(clock::now()),
            }),
        })))
    }

    /// Begins an attempt of `key`'s, or says why it can't be judged now.
    pub(crate) fn attempt(self: &Arc<Self>, key: K) -> Result<Attempt<K>, Held> {
        let is_shared = match &self.0 {
            None => false,
            Some(limited) => limited.begin(key.clone())?,
        };
        Ok(Attempt {
            failures: Arc::clone(self),
            key,
            is_shared,
        })
    }

    /// Holds nothing against `key` any more, unless an attempt of its is being judged.
    pub(crate) fn forget(&self, key: &K) {
        let Some(limited) = &self.0 else {
            return;
        };
        let records = &mut limited.table.lock().records;
        if records.get(key).is_some_and(|record| record.pending == 0) {
            records.remove(key);
        }
    }
}

impl<K: Hash + Eq> Limited<K> {
    /// Whether the attempt is counted by the shared record.
    fn begin(&self, key: K) -> Result<bool, Held> {
        let mut table = self.table.lock();
        // Read under the lock: a record that somebody else has made meanwhile is not in the future.
        let now = clock::now();
        let Table { records, shared } = &mut *table;
        let own = records.get_or_insert(key, Record::new(now), |record| record.goes_at(now));
        let is_shared = own.is_none();
        let record = own.unwrap_or(shared);
        let wait = record.until.saturating_duration_since(now);
        if !wait.is_zero() {
            return Err(Held::Wait(wait));
        }
        let held = record.clear.saturating_duration_since(now);
        if held.is_zero() {
            record.waits = 0;
        }
        let used = held.div_duration_f64(self.period).ceil();
        // After a wait there is one attempt, whatever else is held against the key.
        let left = (f64::from(self.burst) - used).max(1.0);
        let crowd = if record.waits == 0 { self.crowd } else { 0 };
        if f64::from(record.pending) >= left.max(f64::from(crowd)) {
            return Err(Held::Crowd);
        }
        record.pending += 1;
        Ok(is_shared)
    }

    fn end(&self, key: &K, is_shared: bool) {
        let mut table = self.table.lock();
        let Some(record) = table.record(key, is_shared) else {
            return;
        };
        record.pending = record.pending.saturating_sub(1);
        if !is_shared && record.is_clear(clock::now()) {
            table.records.remove(key);
        }
    }

    fn deny(&self, key: &K, is_shared: bool) {
        let mut table = self.table.lock();
        let now = clock::now();
        let Some(record) = table.record(key, is_shared) else {
            return;
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
        }
    }
}

impl<K: Hash + Eq> Table<K> {
    /// The record of an attempt that is being judged, which therefore is there.
    fn record(&mut self, key: &K, is_shared: bool) -> Option<&mut Record> {
        if is_shared {
            Some(&mut self.shared)
        } else {
            self.records.get_mut(key)
        }
    }
}

impl<K: Hash + Eq> Attempt<K> {
    /// Whose attempt it is.
    pub(crate) const fn key(&self) -> &K {
        &self.key
    }

    /// The attempt was denied.
    pub(crate) fn denied(self) {
        if let Some(limited) = &self.failures.0 {
            limited.deny(&self.key, self.is_shared);
        }
    }
}

impl<K: Hash + Eq> Drop for Attempt<K> {
    fn drop(&mut self) {
        if let Some(limited) = &self.failures.0 {
            limited.end(&self.key, self.is_shared);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::time::advance;

    use super::*;
    use crate::bounded::MAX_KEYS;

    const SECOND: Duration = Duration::from_secs(1);

    fn failures<K: Hash + Eq + Clone>(per: Duration, burst: u32, most: u64) -> Arc<Failures<K>> {
        in_crowds(per, burst, most, 0)
    }

    fn in_crowds<K: Hash + Eq + Clone>(
        per: Duration,
        burst: u32,
        most: u64,
        crowd: u32,
    ) -> Arc<Failures<K>> {
        let rate = Rate::Limited {
            rate: 1,
            per,
            burst,
        };
        Failures::new(rate, Duration::from_secs(most), crowd)
    }

    /// How long the next attempt has to wait.
    fn wait<K: Hash + Eq + Clone>(failures: &Arc<Failures<K>>, key: K) -> Duration {
        match failures.attempt(key) {
            Err(Held::Wait(wait)) => wait,
            Err(Held::Crowd) => panic!("others are being judged"),
            Ok(_) => Duration::ZERO,
        }
    }

    fn is_crowded<K: Hash + Eq + Clone>(failures: &Arc<Failures<K>>, key: K) -> bool {
        matches!(failures.attempt(key), Err(Held::Crowd))
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
            let wait = wait(&failures, 'a');
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
        assert_eq!(wait(&failures, 'a'), SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_brings_back_the_burst_and_the_short_wait() {
        let failures = failures(SECOND, 3, 60);
        for _ in 0..3 {
            fail(&failures, 'a');
        }
        advance(SECOND).await;
        fail(&failures, 'a');
        assert_eq!(wait(&failures, 'a'), SECOND * 2);
        // The wait, one attempt that is free then, and two more.
        advance(SECOND * 4).await;
        for _ in 0..3 {
            fail(&failures, 'a');
        }
        assert_eq!(wait(&failures, 'a'), SECOND);
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

    #[test]
    fn who_comes_in_the_same_moment_as_another_need_not_wait() {
        let failures = in_crowds(SECOND, 20, 60, 4096);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        assert_eq!(wait(&failures, 'a'), Duration::ZERO);
                    }
                });
            }
        });
    }

    #[tokio::test(start_paused = true)]
    async fn who_guesses_all_at_once_is_not_ahead() {
        let failures = failures(SECOND, 3, 60);
        let first = [(); 3].map(|()| failures.attempt('a').unwrap());
        assert!(is_crowded(&failures, 'a'), "each of them may be denied");
        assert!(!is_crowded(&failures, 'b'));
        let [one, two, three] = first;
        drop(one);
        let again = failures.attempt('a').expect("one has cost nothing");
        for attempt in [two, three] {
            attempt.denied();
        }
        assert!(is_crowded(&failures, 'a'), "one is left, and under way");
        again.denied();
        assert_eq!(wait(&failures, 'a'), SECOND);
        advance(SECOND).await;
        // Then one at a time.
        let only = failures.attempt('a').unwrap();
        assert!(is_crowded(&failures, 'a'));
        drop(only);
        fail(&failures, 'a');
        assert_eq!(wait(&failures, 'a'), SECOND * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_may_be_judged_until_it_has_had_to_wait_and_its_denials_are_remembered() {
        let failures = in_crowds(SECOND * 10, 2, 60, 1000);
        let crowd: Vec<_> = (0..1000).map(|_| failures.attempt('a').unwrap()).collect();
        assert!(is_crowded(&failures, 'a'));
        for attempt in crowd {
            attempt.denied();
        }
        assert_eq!(wait(&failures, 'a'), SECOND * 60);
        // A thousand denials are forgotten at the rate, and two more that the waits have cost.
        advance(SECOND * 9990).await;
        let only = failures.attempt('a').unwrap();
        assert!(is_crowded(&failures, 'a'));
        drop(only);
        advance(SECOND * 30).await;
        let crowd: Vec<_> = (0..1000).map(|_| failures.attempt('a').unwrap()).collect();
        drop(crowd);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_kept_of_what_was_not_denied_or_is_forgotten() {
        let failures = failures(SECOND, 3, 60);
        let kept =
            |failures: &Failures<char>| failures.0.as_ref().unwrap().table.lock().records.len();
        drop([(); 3].map(|()| failures.attempt('a').unwrap()));
        assert_eq!(kept(&failures), 0);
        fail(&failures, 'a');
        assert_eq!(kept(&failures), 1);
        advance(SECOND).await;
        drop(failures.attempt('a'));
        assert_eq!(kept(&failures), 0);
        fail(&failures, 'a');
        let judged = failures.attempt('a').unwrap();
        failures.forget(&'a');
        assert_eq!(kept(&failures), 1, "it counts who is being judged");
        drop(judged);
        failures.forget(&'a');
        assert_eq!(kept(&failures), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nobody_waits() {
        let failures = Failures::new(Rate::Unlimited, SECOND, 0);
        for _ in 0..1000 {
            fail(&failures, 'a');
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waits_do_not_grow_where_the_most_is_short() {
        let failures = failures(SECOND * 10, 1, 0);
        for _ in 0..5 {
            fail(&failures, 'a');
            let wait = wait(&failures, 'a');
            assert_eq!(wait, SECOND * 10);
            advance(wait).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_fills_the_table_makes_nobody_else_wait() {
        let failures = failures(SECOND * 1000, 2, 60_000);
        fail(&failures, usize::MAX);
        fail(&failures, usize::MAX);
        for key in 0..MAX_KEYS {
            fail(&failures, key);
        }
        for key in MAX_KEYS..MAX_KEYS * 2 {
            fail(&failures, key);
            assert_eq!(wait(&failures, key + 1), Duration::ZERO, "{key}");
        }
        assert!(
            !wait(&failures, usize::MAX).is_zero(),
            "who has to wait is not forgotten for others"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn keys_share_a_record_where_each_of_the_others_has_to_wait() {
        let failures = failures(SECOND, 1, 60);
        for key in 0..MAX_KEYS {
            fail(&failures, key);
        }
        assert_eq!(wait(&failures, MAX_KEYS), Duration::ZERO);
        fail(&failures, MAX_KEYS);
        assert_eq!(wait(&failures, MAX_KEYS + 1), SECOND);
        assert_eq!(wait(&failures, 0), SECOND);
        advance(SECOND).await;
        // What is clear goes for others.
        fail(&failures, MAX_KEYS + 1);
        assert_eq!(wait(&failures, MAX_KEYS + 2), Duration::ZERO);
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

        #[test]
        fn side_by_side_never_more_than_burst_and_rate(
            steps in proptest::collection::vec((0_u64..1_500, 0_usize..6), 1..120),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(async {
                let failures = failures(SECOND, 3, 60);
                let (begun, mut denied, mut open) = (clock::now(), 0, Vec::<Attempt<char>>::new());
                for (millis, what) in steps {
                    match what {
                        0 => advance(Duration::from_millis(millis)).await,
                        1 => drop(open.pop()),
                        2 | 3 if !open.is_empty() => {
                            open.swap_remove(0).denied();
                            denied += 1;
                        }
                        _ => open.extend(failures.attempt('a')),
                    }
                    let allowed = 3 + begun.elapsed().as_secs();
                    assert!(denied <= allowed, "{denied} denied, {allowed} allowed");
                }
            });
        }
    }
}
