//! How many bytes are held for a stay in a room, and for its session: counted as they come and go.
//!
//! What is counted is what can be known without asking anybody: the stay itself, the contexts and tasks of its manager,
//! and whatever a plug-in says that it holds. Events on their way to the client are not: those of all its rooms share
//! one queue, which `chinwag_queued_bytes` has, and telling them apart would cost something at each delivery.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use metrics::Gauge;

/// What an allocation that is shared costs beside what is in it.
pub(crate) const SHARE: usize = 2 * size_of::<usize>();

/// The bytes held for one thing.
#[derive(Default)]
pub(crate) struct Account {
    bytes: AtomicUsize,
    /// Where they are told, all of those that have the same one together.
    gauge: Option<Gauge>,
    /// What is held for this is held for that too.
    above: Option<Arc<Account>>,
}

impl Account {
    /// An account that `gauge` tells of.
    pub(crate) fn told(gauge: Gauge, above: Option<Arc<Self>>) -> Arc<Self> {
        Arc::new(Self {
            bytes: AtomicUsize::new(0),
            gauge: Some(gauge),
            above,
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Counts so many bytes until what comes back is dropped.
    pub(crate) fn hold(self: &Arc<Self>, bytes: usize) -> Holding {
        self.change(bytes, true);
        Holding {
            account: Arc::clone(self),
            bytes,
        }
    }

    fn change(&self, bytes: usize, is_more: bool) {
        let mut account = Some(self);
        while let Some(Self {
            bytes: all,
            gauge,
            above,
        }) = account
        {
            if is_more {
                all.fetch_add(bytes, Ordering::Relaxed);
            } else {
                all.fetch_sub(bytes, Ordering::Relaxed);
            }
            // Exact: memory is far smaller than 2^53 bytes.
            match gauge {
                Some(gauge) if is_more => gauge.increment(bytes as f64),
                Some(gauge) => gauge.decrement(bytes as f64),
                None => (),
            }
            account = above.as_deref();
        }
    }
}

/// Bytes that are held for a stay or a session, counted until this is dropped.
#[must_use = "what is dropped is not counted"]
pub struct Holding {
    account: Arc<Account>,
    bytes: usize,
}

impl fmt::Debug for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Holding").field(&self.bytes).finish()
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        self.account.change(self.bytes, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_counts_upwards_until_it_is_dropped() {
        let session = Arc::new(Account::default());
        let stays = [1, 2].map(|_| Account::told(Gauge::noop(), Some(Arc::clone(&session))));
        let own = session.hold(5);
        let mut held = vec![stays[0].hold(10), stays[0].hold(20), stays[1].hold(40)];
        let bytes = || (session.bytes(), stays[0].bytes(), stays[1].bytes());
        assert_eq!(bytes(), (75, 30, 40));
        drop(held.remove(1));
        assert_eq!(bytes(), (55, 10, 40));
        drop((held, own));
        assert_eq!(bytes(), (0, 0, 0));
    }
}
