//! Which of several endpoints to ask: a circuit breaker for each.
//!
//! An endpoint that can't be reached rests at once; one that is slow or says that it is overloaded
//! does so after a few times in a row. A rest grows from one second to thirty. After it, where
//! others are healthy, reaching the endpoint is tried aside, so that no log-in pays for it; only
//! then one log-in is its trial. Where none is healthy, a log-in is the trial right away, since it
//! has nothing to lose.
//!
//! An answer that makes no sense does not make an endpoint rest: else a peer who found out how to
//! provoke one could shut out all others.

use std::{sync::Arc, time::Duration};

use chinwag_core::clock::Instant;
use parking_lot::Mutex;

/// How often in a row an endpoint that can be reached may be sick before it rests.
const STRIKES: u32 = 3;
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(30);
/// How often the same endpoint's faults are worth a warning.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// What is known of an endpoint.
#[derive(Debug)]
pub(super) struct Health(Mutex<State>);

#[derive(Debug)]
struct State {
    strikes: u32,
    rest: Option<Rest>,
    warned: Option<Instant>,
}

#[derive(Debug)]
struct Rest {
    until: Instant,
    length: Duration,
    /// Somebody is finding out.
    on_trial: bool,
    /// It could be reached since: a log-in may try it even where others are healthy.
    reachable: bool,
}

/// What may be asked of an endpoint now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Anything.
    Healthy,
    /// This one call, which decides.
    Trial(Trial),
    /// To be reached, which decides whether it may have a trial.
    Probe(Trial),
    /// Nothing for so long.
    Resting(Duration),
}

/// The one who finds out whether an endpoint is well again. Dropped without a result, somebody else
/// may.
#[derive(Debug)]
pub(super) struct Trial(Arc<Health>);

impl PartialEq for Trial {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Trial {}

impl Drop for Trial {
    fn drop(&mut self) {
        if let Some(rest) = &mut self.0.0.lock().rest {
            rest.on_trial = false;
        }
    }
}

/// How bad a fault was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// It can't be reached.
    Unreachable,
    /// It is slow or overloaded.
    Sick,
    /// It answered something else than a verdict.
    Odd,
}

impl Health {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            strikes: 0,
            rest: None,
            warned: None,
        })))
    }

    /// What may be asked of it now; `others` says whether a healthy one is left.
    pub(super) fn turn(self: &Arc<Self>, now: Instant, others: bool) -> Turn {
        let mut state = self.0.lock();
        let Some(rest) = &mut state.rest else {
            return Turn::Healthy;
        };
        if now < rest.until {
            return Turn::Resting(rest.until - now);
        }
        if rest.on_trial {
            return Turn::Resting(FIRST_REST);
        }
        rest.on_trial = true;
        if others && !rest.reachable {
            Turn::Probe(Trial(Arc::clone(self)))
        } else {
            Turn::Trial(Trial(Arc::clone(self)))
        }
    }

    pub(super) fn is_healthy(&self) -> bool {
        self.0.lock().rest.is_none()
    }

    /// It could be reached: the next log-in may try it.
    pub(super) fn reached(&self) {
        if let Some(rest) = &mut self.0.lock().rest {
            rest.reachable = true;
        }
    }

    /// It did what it should. Says whether that is news.
    pub(super) fn succeeded(&self) -> bool {
        let mut state = self.0.lock();
        state.strikes = 0;
        state.rest.take().is_some() | state.warned.take().is_some()
    }

    /// It did not. `decides` where the call was the endpoint's trial. Says whether that is worth a
    /// warning.
    pub(super) fn failed(&self, fault: Fault, decides: bool, now: Instant) -> bool {
        let mut state = self.0.lock();
        match (&mut state.rest, fault) {
            (_, Fault::Odd) => {}
            // Calls that began before the rest have nothing to add to it.
            (Some(rest), _) if decides => {
                rest.length = (2 * rest.length).min(LONGEST_REST);
                rest.until = now + rest.length;
                rest.reachable = false;
            }
            (Some(_), _) => {}
            (None, _) => {
                state.strikes += 1;
                if fault == Fault::Unreachable || state.strikes >= STRIKES {
                    state.rest = Some(Rest {
                        until: now + FIRST_REST,
                        length: FIRST_REST,
                        on_trial: false,
                        reachable: false,
                    });
                }
            }
        }
        let is_due = state.warned.is_none_or(|warned| now >= warned + WARN_EVERY);
        if is_due {
            state.warned = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use chinwag_core::clock::now;

    use super::*;

    fn after(secs: u64) -> Instant {
        now() + Duration::from_secs(secs)
    }

    #[test]
    fn one_that_can_not_be_reached_rests_at_once_and_longer_each_time() {
        let health = Health::new();
        let mut at = now();
        health.failed(Fault::Unreachable, false, at);
        for rest in [1, 2, 4, 8, 16, 30, 30] {
            let rest = Duration::from_secs(rest);
            assert_eq!(health.turn(at, false), Turn::Resting(rest));
            at += rest;
            assert!(matches!(health.turn(at, false), Turn::Trial(_)));
            health.failed(Fault::Unreachable, true, at);
        }
        assert!(health.succeeded());
        assert_eq!(health.turn(at, false), Turn::Healthy);
        assert!(!health.succeeded(), "no news");
    }

    #[test]
    fn a_sick_one_rests_after_three_faults_in_a_row() {
        let health = Health::new();
        for _ in 0..2 {
            for _ in 0..STRIKES - 1 {
                health.failed(Fault::Sick, false, now());
            }
            health.succeeded();
        }
        assert!(health.is_healthy());
        for _ in 0..STRIKES {
            assert!(health.is_healthy());
            health.failed(Fault::Sick, false, now());
        }
        assert!(!health.is_healthy());
    }

    #[test]
    fn odd_answers_never_make_it_rest() {
        let health = Health::new();
        for _ in 0..1000 {
            health.failed(Fault::Odd, false, now());
        }
        assert!(health.is_healthy());
    }

    #[test]
    fn one_call_is_the_trial_and_one_given_up_leaves_it_to_the_next() {
        let health = Health::new();
        health.failed(Fault::Unreachable, false, now());
        let trial = health.turn(after(2), false);
        assert!(matches!(trial, Turn::Trial(_)));
        assert!(matches!(health.turn(after(2), false), Turn::Resting(_)));
        drop(trial);
        assert!(matches!(health.turn(after(2), false), Turn::Trial(_)));
    }

    #[test]
    fn beside_healthy_ones_it_has_to_be_reached_before_a_log_in_tries_it() {
        let health = Health::new();
        health.failed(Fault::Unreachable, false, now());
        assert!(matches!(health.turn(after(2), true), Turn::Probe(_)));
        health.failed(Fault::Unreachable, true, now());
        let probe = health.turn(after(3), true);
        assert!(matches!(probe, Turn::Probe(_)));
        health.reached();
        drop(probe);
        assert!(matches!(health.turn(after(3), true), Turn::Trial(_)));
        health.failed(Fault::Sick, true, after(3));
        assert!(matches!(health.turn(after(8), true), Turn::Probe(_)));
    }

    #[test]
    fn calls_from_before_the_rest_do_not_prolong_it() {
        let health = Health::new();
        let at = now();
        for _ in 0..64 {
            health.failed(Fault::Unreachable, false, at);
        }
        assert_eq!(health.turn(at, false), Turn::Resting(FIRST_REST));
    }

    #[test]
    fn warnings_are_rare() {
        let health = Health::new();
        let at = now();
        assert!(health.failed(Fault::Odd, false, at));
        assert!(!health.failed(Fault::Odd, false, at + WARN_EVERY / 2));
        assert!(health.failed(Fault::Odd, false, at + WARN_EVERY));
    }
}
