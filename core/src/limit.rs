//! Token buckets on the project's clock: one alone, or one for each of a bounded number of keys.

use std::{
    collections::{HashMap, hash_map},
    hash::Hash,
    net::IpAddr,
    num::NonZeroU32,
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    clock::Clock as _,
    middleware::NoOpMiddleware,
    nanos::Nanos,
    state::{InMemoryState, NotKeyed},
};

use crate::{
    bounded::MAX_KEYS,
    clock::{self, GovernorClock, Instant},
    config::Rate,
    lock::Mutex,
};

/// How often a full table is searched for buckets that are whole again.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// A token bucket; `unlimited` costs nothing.
#[derive(Debug)]
pub(crate) struct Bucket(
    Option<RateLimiter<NotKeyed, InMemoryState, GovernorClock, NoOpMiddleware<Nanos>>>,
);

impl Bucket {
    pub(crate) fn new(rate: Rate) -> Self {
        quota(rate).map_or(Self(None), Self::of)
    }

    fn of(quota: Quota) -> Self {
        let limiter = RateLimiter::direct_with_clock(quota, GovernorClock::default());
        Self(Some(limiter))
    }

    /// Takes a token, or says how long until there is one.
    pub(crate) fn take(&self) -> Result<(), Duration> {
        let Some(limiter) = &self.0 else {
            return Ok(());
        };
        limiter
            .check()
            .map_err(|not_until| not_until.wait_time_from(limiter.clock().now()))
    }
}

fn quota(rate: Rate) -> Option<Quota> {
    let Rate::Limited { rate, per, burst } = rate else {
        return None;
    };
    let period = (per / rate.max(1)).max(Duration::from_nanos(1));
    let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
    Quota::with_period(period).map(|quota| quota.allow_burst(burst))
}

/// A bucket for each key, of which there are at most [`MAX_KEYS`]; when all are in use, further keys share one.
#[derive(Debug)]
pub(crate) struct KeyedBuckets<K> {
    /// After so long without use a bucket is whole and need not be kept.
    refill: Duration,
    /// `None`: unlimited.
    limited: Option<(Quota, Mutex<Table<K>>)>,
}

#[derive(Debug)]
struct Table<K> {
    /// Clients choose the keys: hashed with a secret.
    buckets: HashMap<K, Entry>,
    shared: Entry,
    swept: Instant,
}

#[derive(Debug)]
struct Entry {
    bucket: Bucket,
    used: Instant,
}

impl Entry {
    fn new(quota: Quota, now: Instant) -> Self {
        Self {
            bucket: Bucket::of(quota),
            used: now,
        }
    }

    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        self.used = now;
        self.bucket.take()
    }
}

impl<K: Hash + Eq> KeyedBuckets<K> {
    pub(crate) fn new(rate: Rate) -> Self {
        let now = clock::now();
        let limited = quota(rate).map(|quota| {
            let table = Table {
                buckets: HashMap::new(),
                shared: Entry::new(quota, now),
                swept: now,
            };
            (quota, Mutex::new(table))
        });
        let refill = limited.as_ref().map_or(Duration::ZERO, |(quota, _)| {
            quota.burst_size_replenished_in()
        });
        Self { refill, limited }
    }

    /// Takes a token of `key`'s, or says how long until there is one.
    pub(crate) fn take(&self, key: K) -> Result<(), Duration> {
        let Some((quota, table)) = &self.limited else {
            return Ok(());
        };
        let now = clock::now();
        let mut table = table.lock();
        let table = &mut *table;
        if table.buckets.len() >= MAX_KEYS
            && now.saturating_duration_since(table.swept) >= SWEEP_EVERY
        {
            let refill = self.refill;
            table
                .buckets
                .retain(|_, entry| now.saturating_duration_since(entry.used) < refill);
            table.swept = now;
        }
        let full = table.buckets.len() >= MAX_KEYS;
        let entry = match table.buckets.entry(key) {
            hash_map::Entry::Occupied(entry) => entry.into_mut(),
            hash_map::Entry::Vacant(_) if full => &mut table.shared,
            hash_map::Entry::Vacant(entry) => entry.insert(Entry::new(*quota, now)),
        };
        entry.take(now)
    }
}

/// An address as limits see it: IPv6 by its /64, since a host has as many addresses of one as it likes.
pub fn address_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::time::advance;

    use super::*;

    const RATE: Rate = Rate::Limited {
        rate: 2,
        per: Duration::from_secs(1),
        burst: 3,
    };

    #[tokio::test(start_paused = true)]
    async fn a_bucket_gives_its_burst_then_its_rate() {
        let bucket = Bucket::new(RATE);
        for _ in 0..3 {
            assert_eq!(bucket.take(), Ok(()));
        }
        let wait = bucket.take().unwrap_err();
        assert!(
            wait <= Duration::from_millis(500) && !wait.is_zero(),
            "{wait:?}"
        );
        advance(wait).await;
        assert_eq!(bucket.take(), Ok(()));
        assert!(bucket.take().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn keys_do_not_share_until_the_table_is_full() {
        let buckets = KeyedBuckets::new(RATE);
        for key in 0..MAX_KEYS {
            assert_eq!(buckets.take(key), Ok(()));
        }
        for _ in 0..3 {
            assert_eq!(buckets.take(MAX_KEYS), Ok(()));
        }
        assert!(
            buckets.take(MAX_KEYS + 1).is_err(),
            "keys beyond the table share one bucket"
        );
        assert_eq!(buckets.take(0), Ok(()), "a key of the table has its own");
        advance(Duration::from_secs(3)).await;
        assert_eq!(buckets.take(MAX_KEYS + 1), Ok(()));
        assert_eq!(
            buckets.limited.as_ref().unwrap().1.lock().buckets.len(),
            1,
            "whole buckets are forgotten"
        );
    }

    #[test]
    fn an_ipv6_host_counts_as_its_network() {
        let key = |text: &str| address_key(text.parse().unwrap());
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:1"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
    }

    proptest! {
        #[test]
        fn never_more_than_burst_and_rate(steps in proptest::collection::vec(0_u64..700, 1..60)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let (bucket, start, mut taken) = (Bucket::new(RATE), clock::now(), 0_u128);
                for millis in steps {
                    advance(Duration::from_millis(millis)).await;
                    taken += u128::from(bucket.take().is_ok());
                    let allowed = 3 + start.elapsed().as_millis() * 2 / 1000;
                    assert!(taken <= allowed, "{taken} taken, {allowed} allowed");
                }
            });
        }
    }
}
