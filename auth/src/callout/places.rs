//! So many calls at a time, and those that wait for one to end, in [turns](Fair).

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::fair::{Fair, Party};

/// The places of all calls that may be in flight.
pub(super) struct Places {
    all: usize,
    /// How many may wait for one.
    queue: usize,
    state: Mutex<State>,
    /// No place is taken.
    idle: Notify,
}

struct State {
    /// Above zero only where nobody waits.
    free: usize,
    waiting: Fair<oneshot::Sender<Place>>,
}

/// One of them, given back when it is dropped.
pub(super) struct Place(Option<Arc<Places>>);

/// Too many wait for a place.
#[derive(Debug)]
pub(super) struct Busy;

impl Places {
    /// `all` is above zero.
    pub(super) fn new(all: usize, queue: usize) -> Arc<Self> {
        Arc::new(Self {
            all,
            queue,
            state: Mutex::new(State {
                free: all,
                waiting: Fair::default(),
            }),
            idle: Notify::new(),
        })
    }

    /// Waits for a place, as long as there is room to wait. Dropping the future gives it up.
    pub(super) async fn take(self: &Arc<Self>, party: Party) -> Result<Place, Busy> {
        let (displaced, turn) = {
            let mut state = self.state.lock();
            if state.free > 0 {
                state.free -= 1;
                return Ok(Place(Some(Arc::clone(self))));
            }
            let (give, turn) = oneshot::channel();
            let waiting = &mut state.waiting;
            let pushed = waiting.push(party, give, self.queue, oneshot::Sender::is_closed);
            (pushed.map_err(|_full| Busy)?, turn)
        };
        // Whoever had to make room hears of it by this.
        drop(displaced);
        turn.await.map_err(|_displaced| Busy)
    }

    /// Waits until nobody has a place. Cancel safe.
    pub(super) async fn idle(&self) {
        loop {
            let changed = self.idle.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.state.lock().free == self.all {
                return;
            }
            changed.await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(places) = self.0.take() else {
            return;
        };
        loop {
            let mut state = places.state.lock();
            let Some(next) = state.waiting.pop() else {
                state.free += 1;
                let is_idle = state.free == places.all;
                drop(state);
                if is_idle {
                    places.idle.notify_waiters();
                }
                return;
            };
            drop(state);
            match next.send(Self(Some(Arc::clone(&places)))) {
                Ok(()) => return,
                // That one gave up: the turn is the next one's.
                Err(mut unwanted) => unwanted.0 = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, time::Duration};

    use futures_util::future::poll_immediate;
    use tokio::time::timeout;

    use super::*;

    fn party(host: u8) -> Party {
        IpAddr::from([192, 0, 2, host]).into()
    }

    #[tokio::test]
    async fn a_place_goes_to_whoever_is_next() {
        let places = Places::new(1, 3);
        let held = places.take(party(1)).await.unwrap();
        let mut one = Box::pin(places.take(party(1)));
        let mut another = Box::pin(places.take(party(1)));
        let mut newest = Box::pin(places.take(party(1)));
        let mut alone = Box::pin(places.take(party(2)));
        for take in [&mut one, &mut another, &mut newest] {
            assert!(poll_immediate(take).await.is_none());
        }
        assert!(poll_immediate(&mut alone).await.is_none());
        assert!(newest.await.is_err(), "it has made room");
        drop(held);
        let held = poll_immediate(&mut one).await.unwrap().unwrap();
        assert!(poll_immediate(&mut alone).await.is_none());
        drop(held);
        assert!(poll_immediate(&mut another).await.is_none());
        let held = poll_immediate(&mut alone).await.unwrap().unwrap();
        drop(held);
        assert!(poll_immediate(&mut another).await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn who_gives_up_costs_no_place_even_in_the_moment_of_getting_it() {
        let places = Places::new(1, 20_000);
        let first = places.take(party(1)).await.unwrap();
        let takes = (0..20_000).map(|_| Box::pin(places.take(party(2))));
        let mut waiting: Vec<_> = takes.collect();
        for take in &mut waiting {
            assert!(poll_immediate(take).await.is_none());
        }
        let last = waiting.pop();
        // The place goes past all that gave up to the last, which then does not want it either.
        drop(waiting);
        drop(first);
        drop(last);
        let again = timeout(Duration::from_secs(60), places.take(party(1)));
        assert!(again.await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn it_is_idle_when_every_place_is_given_back() {
        let places = Places::new(2, 1);
        timeout(Duration::from_secs(60), places.idle())
            .await
            .unwrap();
        let (one, other) = (places.take(party(1)).await, places.take(party(1)).await);
        let mut idle = Box::pin(places.idle());
        assert!(poll_immediate(&mut idle).await.is_none());
        drop(one);
        assert!(poll_immediate(&mut idle).await.is_none());
        drop(other);
        assert!(poll_immediate(&mut idle).await.is_some());
    }
}
