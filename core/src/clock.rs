//! The two clocks: a monotonic one that rules every deadline and can be paused in tests, and a wall clock that only
//! stamps what people read.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, UNIX_EPOCH},
};

pub use tokio::time::Instant;

/// The monotonic now. Follows tokio's clock, so a paused test moves it by hand.
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}

/// Milliseconds since the Unix epoch for `at` fields. Order never depends on it.
pub trait WallClock: Send + Sync + 'static {
    /// Milliseconds since 1970-01-01T00:00:00Z; may step in either direction.
    fn unix_millis(&self) -> u64;
}

/// The system's wall clock.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemWallClock;

impl WallClock for SystemWallClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the system's wall clock"
    )]
    fn unix_millis(&self) -> u64 {
        std::time::SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| {
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            })
    }
}

/// An [`Instant`] that can be stored without a lock: milliseconds since the clock was made.
#[derive(Debug)]
pub struct AtomicInstant(AtomicU64);

/// The origin of [`AtomicInstant`]s; one per server.
#[derive(Debug, Clone, Copy)]
pub struct Origin(Instant);

impl Origin {
    /// An origin at this moment.
    #[must_use]
    pub fn new() -> Self {
        Self(now())
    }

    fn millis(self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.0).as_millis()).unwrap_or(u64::MAX)
    }
}

impl Default for Origin {
    fn default() -> Self {
        Self::new()
    }
}

impl AtomicInstant {
    /// Stores `at`, rounded down to the millisecond.
    #[must_use]
    pub fn new(origin: Origin, at: Instant) -> Self {
        Self(AtomicU64::new(origin.millis(at)))
    }

    /// Replaces the stored moment.
    pub fn store(&self, origin: Origin, at: Instant) {
        self.0.store(origin.millis(at), Ordering::Relaxed);
    }

    /// The stored moment.
    #[must_use]
    pub fn load(&self, origin: Origin) -> Instant {
        origin.0 + Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// governor's clock on [`now`], so that rate limits stand still with a paused test.
#[derive(Debug, Clone)]
pub struct GovernorClock(Instant);

impl Default for GovernorClock {
    fn default() -> Self {
        Self(now())
    }
}

impl governor::clock::Clock for GovernorClock {
    type Instant = governor::nanos::Nanos;

    fn now(&self) -> Self::Instant {
        now().saturating_duration_since(self.0).into()
    }
}
