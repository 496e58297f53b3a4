//! One task that looks at things when their time may have come.
//!
//! What is watched is asked for its deadline again each time: touching it costs its owner a store and the reaper
//! nothing. Weak references only, so what is dropped is forgotten; no lock is held while something is asked.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use rustc_hash::FxHashMap;
use tokio::{sync::Notify, time::sleep_until};

use crate::{
    Lifecycle,
    clock::{self, Instant},
    lock::Mutex,
};

/// Deadlines are met at most this late, and at most so often is anything looked at.
pub const TICK: Duration = Duration::from_millis(50);

/// Something whose time may come.
pub trait Expire: Send + Sync + 'static {
    /// Does what is due as of `now` and says when to look again; `None`: never.
    fn expire(self: Arc<Self>, now: Instant) -> Option<Instant>;
}

/// Watches any number of things. Clones share one watch.
pub struct Reaper<T>(Arc<Watch<T>>);

/// Keeps one thing watched; dropped, the thing is forgotten at once.
#[must_use = "what is not kept is not watched"]
pub struct Watching {
    forget: Arc<dyn Forget>,
    id: u64,
}

trait Forget: Send + Sync {
    fn forget(&self, id: u64);
}

struct Watch<T> {
    due: Mutex<Due<T>>,
    nearer: Notify,
}

struct Due<T> {
    queue: BTreeMap<(Instant, u64), Weak<T>>,
    /// When each thing is looked at next; absent while it is being looked at, or forgotten.
    at: FxHashMap<u64, Instant>,
    next: u64,
}

impl<T> Clone for Reaper<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for Reaper<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reaper").finish_non_exhaustive()
    }
}

impl fmt::Debug for Watching {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watching").field(&self.id).finish()
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.forget.forget(self.id);
    }
}

impl<T: Expire> Reaper<T> {
    /// A reaper whose task lives until the server drains or nobody can add to it any more.
    #[must_use]
    pub fn start(lifecycle: &Lifecycle) -> Self {
        let due = Due {
            queue: BTreeMap::new(),
            at: FxHashMap::default(),
            next: 0,
        };
        let watch = Arc::new(Watch {
            due: Mutex::new(due),
            nearer: Notify::new(),
        });
        let task = Arc::downgrade(&watch);
        let drain = lifecycle.clone();
        lifecycle.spawn(async move {
            tokio::select! {
                () = run(task) => (),
                // What is left to expire in a server that stops ends with it.
                () = drain.draining() => (),
            }
        });
        Self(watch)
    }

    /// Looks at `thing` at `at`, and from then on when it says, for as long as the handle is kept.
    pub fn watch(&self, thing: &Arc<T>, at: Instant) -> Watching {
        let (id, nearer) = {
            let mut due = self.0.due.lock();
            let id = due.next;
            due.next += 1;
            (id, due.add(id, Arc::downgrade(thing), at))
        };
        if nearer {
            self.0.nearer.notify_one();
        }
        Watching {
            forget: Arc::clone(&self.0) as Arc<dyn Forget>,
            id,
        }
    }
}

impl<T: Expire> Forget for Watch<T> {
    fn forget(&self, id: u64) {
        let mut due = self.due.lock();
        if let Some(at) = due.at.remove(&id) {
            due.queue.remove(&(at, id));
        }
    }
}

impl<T> Due<T> {
    /// Whether it is now the first in line.
    fn add(&mut self, id: u64, thing: Weak<T>, at: Instant) -> bool {
        self.queue.insert((at, id), thing);
        self.at.insert(id, at);
        self.queue
            .first_key_value()
            .is_some_and(|(first, _)| *first == (at, id))
    }
}

impl<T> Watch<T> {
    fn first(&self) -> Option<Instant> {
        self.due
            .lock()
            .queue
            .first_key_value()
            .map(|((at, _), _)| *at)
    }

    /// Takes the first that is due out of the queue; it stays known, so that it can be forgotten meanwhile.
    fn take_due(&self, now: Instant) -> Option<(u64, Weak<T>)> {
        let mut due = self.due.lock();
        let entry = due.queue.first_entry()?;
        let (at, id) = *entry.key();
        (at <= now).then(|| (id, entry.remove()))
    }

    fn again(&self, id: u64, thing: Weak<T>, at: Option<Instant>) {
        let mut due = self.due.lock();
        match at {
            // Forgotten while it was looked at.
            Some(_) if !due.at.contains_key(&id) => (),
            Some(at) => {
                due.add(id, thing, at);
            }
            None => {
                due.at.remove(&id);
            }
        }
    }
}

async fn run<T: Expire>(watch: Weak<Watch<T>>) {
    loop {
        let Some(watch) = watch.upgrade() else { return };
        let now = clock::now();
        let mut looked = 0_u32;
        while let Some((id, thing)) = watch.take_due(now) {
            let again = thing.upgrade().and_then(|thing| thing.expire(now));
            watch.again(
                id,
                thing,
                again.map(|at| at.max(now + Duration::from_millis(1))),
            );
            looked += 1;
            if looked.is_multiple_of(256) {
                tokio::task::yield_now().await;
            }
        }
        match watch.first() {
            None => watch.nearer.notified().await,
            Some(at) => tokio::select! {
                // A whole tick at least, so that a crowd of near deadlines is met in one go.
                () = sleep_until(at.max(now + TICK)) => (),
                () = watch.nearer.notified() => (),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    struct Timed {
        deadline: Mutex<Instant>,
        ended: AtomicU64,
        start: Instant,
    }

    impl Expire for Timed {
        fn expire(self: Arc<Self>, now: Instant) -> Option<Instant> {
            let deadline = *self.deadline.lock();
            if now < deadline {
                return Some(deadline);
            }
            let after = u64::try_from(now.duration_since(self.start).as_millis()).unwrap();
            self.ended.store(after, Ordering::Relaxed);
            None
        }
    }

    fn timed(after: Duration) -> Arc<Timed> {
        let start = clock::now();
        Arc::new(Timed {
            deadline: Mutex::new(start + after),
            ended: AtomicU64::new(0),
            start,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_touched_lives_and_what_is_silent_ends_within_a_tick() {
        let lifecycle = Lifecycle::new();
        let reaper = Reaper::start(&lifecycle);
        let (silent, touched) = (
            timed(Duration::from_secs(30)),
            timed(Duration::from_secs(30)),
        );
        let _watching = [&silent, &touched]
            .map(|thing| reaper.watch(thing, thing.start + Duration::from_secs(30)));
        for _ in 0..7 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            *touched.deadline.lock() = clock::now() + Duration::from_secs(30);
        }
        let ended = silent.ended.load(Ordering::Relaxed);
        assert!((30_000..=30_050).contains(&ended), "{ended}");
        assert_eq!(touched.ended.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_nearer_deadline_wakes_the_reaper() {
        let lifecycle = Lifecycle::new();
        let reaper = Reaper::start(&lifecycle);
        let far = timed(Duration::from_secs(3600));
        let _far = reaper.watch(&far, far.start + Duration::from_secs(3600));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let near = timed(Duration::from_secs(1));
        let _near = reaper.watch(&near, near.start + Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        assert_ne!(near.ended.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_forgotten_are_gone_at_once() {
        let lifecycle = Lifecycle::new();
        let reaper = Reaper::start(&lifecycle);
        let gone = timed(Duration::from_secs(1));
        let watching = reaper.watch(&gone, gone.start + Duration::from_secs(1));
        drop(watching);
        assert_eq!(Arc::weak_count(&gone), 0);
        assert!(reaper.0.due.lock().queue.is_empty() && reaper.0.due.lock().at.is_empty());
    }
}
