//! From where users have logged in.
//!
//! Whoever guesses at somebody's password elsewhere uses up what strangers may get wrong for that name. The user,
//! coming from where the name has logged in before, is counted by a record of its own and need not wait for them.

use std::{net::IpAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;

use crate::{
    bounded::Bounded,
    clock::{self, Instant},
};

/// For so long after the last log-in it is known from where a name has logged in.
const KNOWN_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

/// Whose failures are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Claim {
    /// A name from wherever it has not logged in yet.
    Anywhere(Arc<str>),
    /// A name from an address from which it has.
    From(Arc<str>, IpAddr),
}

/// Pairs of a name and an address that have logged in, as far as there is room: else the oldest of some goes.
#[derive(Debug)]
pub(crate) struct Familiar(Mutex<Bounded<(Arc<str>, IpAddr), Instant>>);

impl Familiar {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Bounded::new()))
    }

    /// By what the failures of `name` from `address` are counted.
    pub(crate) fn claim(&self, name: Arc<str>, address: IpAddr) -> Claim {
        let pair = (name, address);
        let last = self.0.lock().get(&pair).copied();
        let (name, address) = pair;
        match last {
            Some(last) if last.elapsed() < KNOWN_FOR => Claim::From(name, address),
            _ => Claim::Anywhere(name),
        }
    }

    /// `name` has logged in from `address`.
    pub(crate) fn remember(&self, name: Arc<str>, address: IpAddr) {
        let now = clock::now();
        let mut known = self.0.lock();
        if let Some(last) = known.get_or_insert((name, address), now, |last| Some(*last)) {
            *last = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::bounded::MAX_KEYS;

    #[tokio::test(start_paused = true)]
    async fn a_name_is_known_for_a_month_from_where_it_has_logged_in() {
        let (familiar, home) = (Familiar::new(), IpAddr::from([192, 0, 2, 7]));
        let is_known =
            |name: &str, address| matches!(familiar.claim(name.into(), address), Claim::From(..));
        assert!(!is_known("alice", home));
        familiar.remember("alice".into(), home);
        assert!(is_known("alice", home));
        assert!(!is_known("alice", [192, 0, 2, 8].into()) && !is_known("bob", home));
        advance(KNOWN_FOR / 2).await;
        familiar.remember("alice".into(), home);
        advance(KNOWN_FOR - Duration::from_secs(1)).await;
        assert!(is_known("alice", home), "counted from the last log-in");
        advance(Duration::from_secs(1)).await;
        assert!(!is_known("alice", home));
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_always_room_for_the_newest() {
        let (familiar, home) = (Familiar::new(), IpAddr::from([192, 0, 2, 7]));
        for n in 0..MAX_KEYS + 100 {
            let name: Arc<str> = n.to_string().into();
            familiar.remember(Arc::clone(&name), home);
            assert!(matches!(familiar.claim(name, home), Claim::From(..)), "{n}");
        }
        assert_eq!(familiar.0.lock().len(), MAX_KEYS);
    }
}
