//! From where users have logged in.
//!
//! Whoever guesses at somebody's password elsewhere uses up what strangers may get wrong for that name. The user,
//! coming from where the name has logged in before, is counted by a record of its own and need not wait for them.

use std::{net::IpAddr, sync::Arc, time::Duration};

use crate::{
    bounded::Bounded,
    clock::{self, Instant},
    lock::Mutex,
};

/// For so long after the last log-in it is known from where a name has logged in.
const KNOWN_FOR: Duration = Duration::from_secs(30 * 24 * 3600);
/// Addresses that are known of a name.
const HOMES: usize = 8;

/// Whose failures are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Claim {
    /// A name from wherever it has not logged in yet.
    Anywhere(Arc<str>),
    /// A name from an address from which it has.
    From(Arc<str>, IpAddr),
}

/// The last [`HOMES`] from which each name has logged in, and when, of as many names as there is room for: else the
/// one goes that has not logged in for the longest of some. Whoever logs in from everywhere takes one name's place.
#[derive(Debug)]
pub(crate) struct Familiar(Mutex<Bounded<Arc<str>, Vec<Home>>>);

/// From where a name has logged in.
#[derive(Debug)]
struct Home {
    address: IpAddr,
    last: Instant,
}

impl Familiar {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Bounded::new()))
    }

    /// By what the failures of `name` from `address` are counted.
    pub(crate) fn claim(&self, name: Arc<str>, address: IpAddr) -> Claim {
        let is_known = {
            let names = self.0.lock();
            let homes = names.get(&name).into_iter().flatten();
            homes
                .filter(|home| home.address == address)
                .any(|home| home.last.elapsed() < KNOWN_FOR)
        };
        if is_known {
            Claim::From(name, address)
        } else {
            Claim::Anywhere(name)
        }
    }

    /// `name` has logged in from `address`. Returns from where it is not known any more.
    pub(crate) fn remember(&self, name: Arc<str>, address: IpAddr) -> Option<IpAddr> {
        let mut names = self.0.lock();
        let last = |homes: &Vec<Home>| homes.last().map(|home| home.last);
        let homes = names.get_or_insert(name, Vec::new(), last)?;
        // In the order of their last log-ins.
        let gone = match homes.iter().position(|home| home.address == address) {
            Some(place) => {
                homes.remove(place);
                None
            }
            None if homes.len() == HOMES => Some(homes.remove(0).address),
            None => {
                // Most have one or two.
                homes.reserve_exact(1);
                None
            }
        };
        homes.push(Home {
            address,
            last: clock::now(),
        });
        gone
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

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
    async fn whoever_logs_in_from_everywhere_pushes_out_nobody_else() {
        let (familiar, home) = (Familiar::new(), IpAddr::from([192, 0, 2, 7]));
        let is_known =
            |name: &str, address| matches!(familiar.claim(name.into(), address), Claim::From(..));
        familiar.remember("alice".into(), home);
        familiar.remember("eve".into(), home);
        let network = |n: usize| {
            let bits = (0x2001_0db8_u128 << 96) | ((n as u128) << 64);
            IpAddr::from(Ipv6Addr::from(bits))
        };
        for n in 0..MAX_KEYS + 100 {
            familiar.remember("eve".into(), network(n));
            if n % (HOMES - 1) == 0 {
                familiar.remember("eve".into(), home);
            }
        }
        assert!(is_known("alice", home));
        assert!(is_known("eve", home), "used again and again");
        let newest = MAX_KEYS + 99;
        let of_eve = (0..=newest).filter(|&n| is_known("eve", network(n)));
        assert_eq!(of_eve.count(), HOMES - 1);
        assert!(is_known("eve", network(newest)));
        assert_eq!(familiar.remember("eve".into(), network(newest)), None);
        let gone = familiar.remember("eve".into(), network(0));
        assert!(gone.is_some_and(|gone| !is_known("eve", gone)), "{gone:?}");
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
