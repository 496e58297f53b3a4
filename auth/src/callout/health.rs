//! Which of several endpoints to ask: a circuit breaker for each.
//!
//! An endpoint that can't be reached rests at once; one that is slow or says that it is overloaded
//! does so after a few times in a row. A rest grows from one second to thirty. After it, where
//! others are healthy, reaching the endpoint is tried aside, so that no log-in pays for it; only
//! then one log-in is its trial. Where none is healthy, a log-in is the trial right away, since it
//! has nothing to lose.
//!
//! Whether one is there that nobody has reached lately is for one call to find out, by reaching for
//! it. Others that would have to do the same are passed on meanwhile, and those who had begun before
//! let go; else all that come at once would wait for one that is dead before the first of them knew.
//! What lately means depends on how long reaching it takes: across a slow link, that alone is no
//! reason to doubt.
//!
//! An answer that makes no sense does not make an endpoint rest: else a peer who found out how to
//! provoke one could shut out all others.

use std::{future::pending, sync::Arc, time::Duration};

use chinwag_core::clock::{self, Instant};
use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::Notify, time::sleep_until};

/// How often in a row an endpoint that can be reached may be sick before it rests.
const STRIKES: u32 = 3;
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(30);
/// How often the same endpoint's faults are worth a warning.
const WARN_EVERY: Duration = Duration::from_secs(10);
/// How long one that was there is taken to be there still, so that many may reach for it at once: so
/// much longer than it took to reach it the last time.
const LATELY: Duration = Duration::from_millis(100);

/// What is known of an endpoint.
#[derive(Debug)]
pub(super) struct Health {
    state: Mutex<State>,
    news: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    strikes: u32,
    rest: Option<Rest>,
    warned: Option<Instant>,
    /// When it was last reached, or answered.
    seen: Option<Instant>,
    /// How long reaching it took the last time.
    took: Duration,
    /// Somebody finds out whether it is there.
    is_sought: bool,
}

/// What is to be done about an endpoint that one wants a connection to.
enum Part {
    /// To reach for it: it is taken to be there until then.
    Trust(Instant),
    /// To find out whether it is there.
    FindOut,
    /// Nothing: another one finds out.
    None,
}

impl State {
    fn part(&mut self, now: Instant) -> Part {
        let trusted = self.seen.map(|seen| seen + self.took + LATELY);
        match trusted.filter(|until| now < *until) {
            Some(until) => Part::Trust(until),
            None if self.is_sought => Part::None,
            None => {
                self.is_sought = true;
                Part::FindOut
            }
        }
    }
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
        if let Some(rest) = &mut self.0.state.lock().rest {
            rest.on_trial = false;
        }
    }
}

/// Somebody who reaches for an endpoint. Whether it is there should be known before the one who finds
/// out drops this.
#[derive(Debug)]
pub(super) struct Reaching {
    health: Arc<Health>,
    since: Instant,
    finds_out: bool,
}

impl Reaching {
    /// It is there.
    pub(super) fn succeeded(self, now: Instant) {
        let mut state = self.health.state.lock();
        state.took = now - self.since;
        self.health.seen(state, now);
    }

    /// Waits until the endpoint has not been seen for so long that one is to find out whether it is
    /// there, and another one does. Cancel safe.
    pub(super) async fn let_go(&mut self) {
        while !self.finds_out {
            let part = self.health.state.lock().part(clock::now());
            match part {
                Part::Trust(until) => sleep_until(until).await,
                Part::FindOut => self.finds_out = true,
                Part::None => return,
            }
        }
        pending().await
    }
}

impl Drop for Reaching {
    fn drop(&mut self) {
        if self.finds_out {
            self.health.state.lock().is_sought = false;
            self.health.news.notify_waiters();
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
    /// `news` wakes those who wait for somebody to find out whether the endpoint is there.
    pub(super) fn new(news: &Arc<Notify>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            news: Arc::clone(news),
        })
    }

    /// What may be asked of it now; `others` says whether a healthy one is left.
    pub(super) fn turn(self: &Arc<Self>, now: Instant, others: bool) -> Turn {
        let mut state = self.state.lock();
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
        self.state.lock().rest.is_none()
    }

    /// Begins to reach for it. `None`: somebody does, and nobody has seen it lately.
    pub(super) fn reach(self: &Arc<Self>, now: Instant) -> Option<Reaching> {
        let finds_out = match self.state.lock().part(now) {
            Part::Trust(_) => false,
            Part::FindOut => true,
            Part::None => return None,
        };
        Some(Reaching {
            health: Arc::clone(self),
            since: now,
            finds_out,
        })
    }

    /// It was reached, or has answered.
    fn seen(&self, mut state: MutexGuard<'_, State>, now: Instant) {
        state.seen = Some(now);
        let others_wait = state.is_sought;
        drop(state);
        // It is there, and a kept connection may be free: nobody has to wait for a new one.
        if others_wait {
            self.news.notify_waiters();
        }
    }

    /// It could be reached: the next log-in may try it.
    pub(super) fn reached(&self) {
        if let Some(rest) = &mut self.state.lock().rest {
            rest.reachable = true;
        }
    }

    /// It did what it should. Says whether that is news.
    pub(super) fn succeeded(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        state.strikes = 0;
        let is_news = state.rest.take().is_some() | state.warned.take().is_some();
        self.seen(state, now);
        is_news
    }

    /// It did not. `decides` where the call was the endpoint's trial. Says whether that is worth a
    /// warning.
    pub(super) fn failed(&self, fault: Fault, decides: bool, now: Instant) -> bool {
        let mut state = self.state.lock();
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
    use futures_util::future::{join_all, poll_immediate};
    use tokio::time::{sleep, timeout};

    use super::*;

    fn health() -> Arc<Health> {
        Health::new(&Arc::default())
    }

    fn after(secs: u64) -> Instant {
        now() + Duration::from_secs(secs)
    }

    #[test]
    fn one_that_can_not_be_reached_rests_at_once_and_longer_each_time() {
        let health = health();
        let mut at = now();
        health.failed(Fault::Unreachable, false, at);
        for rest in [1, 2, 4, 8, 16, 30, 30] {
            let rest = Duration::from_secs(rest);
            assert_eq!(health.turn(at, false), Turn::Resting(rest));
            at += rest;
            assert!(matches!(health.turn(at, false), Turn::Trial(_)));
            health.failed(Fault::Unreachable, true, at);
        }
        assert!(health.succeeded(now()));
        assert_eq!(health.turn(at, false), Turn::Healthy);
        assert!(!health.succeeded(now()), "no news");
    }

    #[test]
    fn a_sick_one_rests_after_three_faults_in_a_row() {
        let health = health();
        for _ in 0..2 {
            for _ in 0..STRIKES - 1 {
                health.failed(Fault::Sick, false, now());
            }
            health.succeeded(now());
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
        let health = health();
        for _ in 0..1000 {
            health.failed(Fault::Odd, false, now());
        }
        assert!(health.is_healthy());
    }

    #[test]
    fn one_call_is_the_trial_and_one_given_up_leaves_it_to_the_next() {
        let health = health();
        health.failed(Fault::Unreachable, false, now());
        let trial = health.turn(after(2), false);
        assert!(matches!(trial, Turn::Trial(_)));
        assert!(matches!(health.turn(after(2), false), Turn::Resting(_)));
        drop(trial);
        assert!(matches!(health.turn(after(2), false), Turn::Trial(_)));
    }

    #[test]
    fn beside_healthy_ones_it_has_to_be_reached_before_a_log_in_tries_it() {
        let health = health();
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
        let health = health();
        let at = now();
        for _ in 0..64 {
            health.failed(Fault::Unreachable, false, at);
        }
        assert_eq!(health.turn(at, false), Turn::Resting(FIRST_REST));
    }

    #[test]
    fn one_at_a_time_reaches_for_what_nobody_has_seen_lately() {
        let health = health();
        let at = now();
        let first = health.reach(at).unwrap();
        assert!(health.reach(at).is_none(), "the first is to find out");
        drop(first);
        let second = health.reach(at).unwrap();
        assert!(health.reach(at).is_none(), "the first has not");
        second.succeeded(at);
        let many = [(); 9].map(|()| health.reach(at + LATELY / 2));
        assert!(many.iter().all(Option::is_some));
        let third = health.reach(at + LATELY).unwrap();
        assert!(health.reach(at + LATELY).is_none(), "that is too long ago");
        health.succeeded(at + LATELY);
        assert!(health.reach(at + LATELY).is_some(), "it has answered");
        drop((many, third));
        assert!(health.reach(after(9)).is_some(), "nobody else does");
    }

    #[test]
    fn one_that_took_long_to_reach_is_taken_to_be_there_for_as_long_again() {
        let health = health();
        let at = now();
        let took = 4 * LATELY;
        health.reach(at).unwrap().succeeded(at + took);
        let seen = at + took;
        let _first = health.reach(seen + LATELY).unwrap();
        assert!(health.reach(seen + took).is_some());
        let _finds_out = health.reach(seen + took + LATELY);
        assert!(health.reach(seen + took + LATELY).is_none(), "too long ago");
    }

    #[tokio::test(start_paused = true)]
    async fn of_those_who_reach_for_it_all_but_one_let_go_when_it_has_not_been_seen_for_long() {
        let health = health();
        health.succeeded(now());
        let began = now();
        let mut many = [(); 9].map(|()| health.reach(began).unwrap());
        let wait = many.iter_mut().map(|it| async {
            let has_let_go = timeout(9 * LATELY, it.let_go()).await.is_ok();
            (has_let_go, began.elapsed())
        });
        let answers = async {
            sleep(LATELY / 2).await;
            health.succeeded(now());
        };
        let (waited, ()) = tokio::join!(join_all(wait), answers);
        let (gone, stayed): (Vec<_>, Vec<_>) = waited.into_iter().partition(|(gone, _)| *gone);
        assert_eq!((gone.len(), stayed.len()), (8, 1));
        let is_due = |(_, after): &(bool, Duration)| {
            (3 * LATELY / 2..2 * LATELY).contains(after) // The answer counts.
        };
        assert!(gone.iter().all(is_due), "{gone:?}");
        assert!(health.reach(now()).is_none(), "the last one finds out");
    }

    #[tokio::test]
    async fn those_who_wait_hear_that_somebody_reaches_no_more() {
        let news = Arc::new(Notify::new());
        let health = Health::new(&news);
        let reaching = health.reach(now()).unwrap();
        let mut heard = std::pin::pin!(news.notified());
        heard.as_mut().enable();
        assert!(poll_immediate(heard.as_mut()).await.is_none());
        drop(reaching);
        assert!(poll_immediate(heard).await.is_some());
    }

    #[test]
    fn warnings_are_rare() {
        let health = health();
        let at = now();
        assert!(health.failed(Fault::Odd, false, at));
        assert!(!health.failed(Fault::Odd, false, at + WARN_EVERY / 2));
        assert!(health.failed(Fault::Odd, false, at + WARN_EVERY));
    }
}
