//! The real clock. A load generator measures real time and is never paused, so it has no use for a
//! clock that can be.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Time since a moment of one's own, monotonic.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts at zero.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "measures real time, which no test may pause"
    )]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// Milliseconds since the Unix epoch by the system's clock, for `at` fields.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "the floor stamps messages as the server does"
)]
pub fn unix_millis() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}
