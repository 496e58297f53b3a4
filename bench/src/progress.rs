//! What is going on right now: one line on a terminal, written over and over. Elsewhere nothing.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::clock::Stopwatch;

/// How often the line changes.
const EVERY: Duration = Duration::from_millis(200);
/// Longest line: it must not wrap.
const WIDTH: usize = 79;

/// Where progress is told. Shared by the threads of a run.
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
    watch: Stopwatch,
    /// When the line may change again, in milliseconds of `watch`.
    next: AtomicU64,
    shown: Mutex<bool>,
}

impl Progress {
    /// On stderr, if that is a terminal.
    #[must_use]
    pub fn on_stderr() -> Self {
        Self::new(io::stderr().is_terminal())
    }

    /// Nowhere.
    #[must_use]
    pub fn nowhere() -> Self {
        Self::new(false)
    }

    fn new(terminal: bool) -> Self {
        Self {
            terminal,
            watch: Stopwatch::start(),
            next: AtomicU64::new(0),
            shown: Mutex::new(false),
        }
    }

    /// Tells what is going on, unless the line was written a moment ago.
    pub fn tell(&self, text: fmt::Arguments<'_>) {
        if self.terminal && self.is_due(millis(self.watch.elapsed())) {
            self.write(&line(text));
        }
    }

    /// Whether the line may change at `now`; if so, not again for a while.
    fn is_due(&self, now: u64) -> bool {
        let next = self.next.load(Ordering::Relaxed);
        // Of several threads that find it due, one writes.
        let later = now + millis(EVERY);
        now >= next
            && self
                .next
                .compare_exchange(next, later, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Leaves the line empty for what follows.
    pub fn clear(&self) {
        if self.terminal {
            self.write("\r\x1b[K");
        }
    }

    fn write(&self, text: &str) {
        let mut shown = self
            .shown
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        // Nobody may be there to read it, which is no reason to stop.
        _ = io::stderr().write_all(text.as_bytes());
        *shown = true;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        let shown = *self
            .shown
            .get_mut()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if shown {
            self.clear();
        }
    }
}

fn line(text: fmt::Arguments<'_>) -> String {
    let text: String = text.to_string().chars().take(WIDTH).collect();
    format!("\r\x1b[K{text}")
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_changes_now_and_then() {
        let progress = Progress::nowhere();
        let every = millis(EVERY);
        let times = [0, 1, every - 1, every, every + 1, 3 * every, 3 * every];
        let due = times.map(|now| progress.is_due(now));
        assert_eq!(due, [true, false, false, true, false, true, false]);
    }

    #[test]
    fn a_line_never_wraps() {
        assert_eq!(line(format_args!("{} of {}", 1, 2)), "\r\x1b[K1 of 2");
        assert_eq!(line(format_args!("{}", "x".repeat(200))).len(), WIDTH + 4);
    }
}
