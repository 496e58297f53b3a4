//! Who is here: ids to sessions, names to their owners, and for a while the ids of those that have ended.
//!
//! A name is held by a [`Reservation`], which the session owns: an error anywhere between reserving a name and
//! registering the session drops the reservation, and with it the name is free again.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    fmt,
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rustc_hash::FxHashMap;

use crate::{
    CloseReason, End,
    clock::{self, Instant},
    lock::Mutex,
    session::Session,
};

/// Most ended sessions that are remembered.
const MAX_ENDED: usize = 10_000;

/// The id of a session: 128 random bits, written as 22 characters of base64url.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SessionId(u128);

impl SessionId {
    /// A fresh id, or `None` where the system has no randomness to give.
    pub(crate) fn random() -> Option<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).ok()?;
        Some(Self(u128::from_le_bytes(bytes)))
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        let read = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        (read == bytes.len()).then_some(Self(u128::from_le_bytes(bytes)))
    }

    pub(crate) fn encode(self) -> String {
        URL_SAFE_NO_PAD.encode(self.0.to_le_bytes())
    }
}

impl fmt::Debug for SessionId {
    /// A prefix only: the id is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.encode();
        write!(f, "{}…", text.get(..4).unwrap_or_default())
    }
}

/// Whom a name belongs to: the same user of the same authenticator. Anonymous users have none. Names that merely look
/// alike are of different users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) authenticator: Arc<str>,
    pub(crate) user: Arc<str>,
}

/// Sessions call it with themselves locked: whoever holds `inner` locks no session.
pub(crate) struct Registry {
    max_sessions: usize,
    remember: Duration,
    reservations: metrics::Gauge,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    sessions: FxHashMap<SessionId, Arc<Session>>,
    /// Connections that have not logged in yet, by key.
    strangers: FxHashMap<u64, Arc<Session>>,
    /// Clients choose the keys: hashed with a secret.
    names: HashMap<Arc<str>, Owner>,
    ended: FxHashMap<SessionId, Ended>,
    ended_order: VecDeque<(Instant, SessionId)>,
}

struct Owner {
    identity: Option<Identity>,
    /// The sessions of the identity; never empty.
    sessions: Vec<Arc<Session>>,
}

/// What is remembered of a session that ended.
#[derive(Clone)]
pub(crate) struct Ended {
    pub(crate) end: End,
    /// A polling session that has not fetched its last events yet.
    pub(crate) rest: Option<Arc<Session>>,
}

/// Why a name can't be had.
pub(crate) enum Taken {
    /// As many sessions of the same identity have it as may.
    Same(Vec<Arc<Session>>),
    /// Somebody else's have it.
    Other(Vec<Arc<Session>>),
}

impl Taken {
    /// Who has it; never empty. One that is about to let go still counts.
    pub(crate) fn holders(&self) -> &[Arc<Session>] {
        let (Self::Same(holders) | Self::Other(holders)) = self;
        holders
    }
}

/// What an id stands for.
pub(crate) enum Found {
    Live(Arc<Session>),
    Ended(Ended),
    Unknown,
}

/// A name held, perhaps beside other sessions of the same identity; with the last of them dropped, it is free.
pub(crate) struct Reservation {
    registry: Arc<Registry>,
    name: Arc<str>,
    /// The key of the session that holds it.
    holder: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let released = {
            let mut inner = self.registry.inner.lock();
            let Entry::Occupied(mut owner) = inner.names.entry(Arc::clone(&self.name)) else {
                unreachable!("a reservation is in the table until it is dropped");
            };
            let sessions = &mut owner.get_mut().sessions;
            let place = sessions
                .iter()
                .position(|session| session.key == self.holder);
            let released = place.map(|place| sessions.swap_remove(place));
            if sessions.is_empty() {
                owner.remove();
            }
            released
        };
        self.registry.reservations.decrement(1);
        // Outside the lock: this may be the session's last reference.
        drop(released);
    }
}

impl Registry {
    pub(crate) fn new(
        max_sessions: usize,
        remember: Duration,
        reservations: metrics::Gauge,
    ) -> Arc<Self> {
        Arc::new(Self {
            max_sessions,
            remember,
            reservations,
            inner: Mutex::default(),
        })
    }

    /// Holds `name` for `session`, or says who has it. An identity may hold it with `allowed` sessions side by side.
    pub(crate) fn reserve(
        self: &Arc<Self>,
        name: &Arc<str>,
        identity: Option<&Identity>,
        allowed: usize,
        session: &Arc<Session>,
    ) -> Result<Reservation, Taken> {
        let mut inner = self.inner.lock();
        match inner.names.entry(Arc::clone(name)) {
            Entry::Occupied(mut owner) => {
                let owner = owner.get_mut();
                let is_same = identity.is_some() && owner.identity.as_ref() == identity;
                if !is_same {
                    return Err(Taken::Other(owner.sessions.clone()));
                }
                if owner.sessions.len() >= allowed {
                    return Err(Taken::Same(owner.sessions.clone()));
                }
                owner.sessions.push(Arc::clone(session));
            }
            Entry::Vacant(place) => {
                place.insert(Owner {
                    identity: identity.cloned(),
                    sessions: vec![Arc::clone(session)],
                });
            }
        }
        self.reservations.increment(1);
        Ok(Reservation {
            registry: Arc::clone(self),
            name: Arc::clone(name),
            holder: session.key,
        })
    }

    /// A session that has `name` already, if it is of the same identity.
    pub(crate) fn holder(
        &self,
        name: &Arc<str>,
        identity: Option<&Identity>,
    ) -> Option<Arc<Session>> {
        let inner = self.inner.lock();
        let owner = inner.names.get(name)?;
        let is_same = identity.is_some() && owner.identity.as_ref() == identity;
        is_same.then(|| owner.sessions.first().cloned()).flatten()
    }

    /// Knows a connection that has not logged in yet.
    pub(crate) fn greet(&self, session: &Arc<Session>) {
        self.inner
            .lock()
            .strangers
            .insert(session.key, Arc::clone(session));
    }

    /// Forgets a connection that ended before it logged in.
    pub(crate) fn dismiss(&self, session: &Session) {
        let stranger = self.inner.lock().strangers.remove(&session.key);
        drop(stranger);
    }

    /// Makes `session` known by `id`; `false` when there are as many sessions as there may be.
    pub(crate) fn register(&self, id: SessionId, session: &Arc<Session>) -> bool {
        let mut inner = self.inner.lock();
        if inner.sessions.len() >= self.max_sessions {
            return false;
        }
        inner.strangers.remove(&session.key);
        inner.sessions.insert(id, Arc::clone(session));
        true
    }

    /// Forgets a session, but for its tombstone.
    pub(crate) fn end(&self, id: SessionId, ended: Ended) {
        let now = clock::now();
        let mut dropped = Vec::new();
        // Whom a drain sends away is bounded by the number of sessions, and must find the last events.
        let is_drain = ended.end.reason == CloseReason::ShuttingDown;
        let is_full = |inner: &Inner| inner.ended_order.len() >= MAX_ENDED && !is_drain;
        {
            let mut inner = self.inner.lock();
            dropped.extend(inner.sessions.remove(&id));
            while let Some(&(at, old)) = inner.ended_order.front()
                && (is_full(&inner) || at + self.remember <= now)
            {
                inner.ended_order.pop_front();
                dropped.extend(inner.ended.remove(&old).and_then(|ended| ended.rest));
            }
            if !self.remember.is_zero() {
                inner.ended.insert(id, ended);
                inner.ended_order.push_back((now, id));
            }
        }
        // Outside the lock: these may be last references.
        drop(dropped);
    }

    /// Lets go of what a polling session had left to fetch.
    pub(crate) fn rest_acknowledged(&self, id: SessionId) {
        let rest = self
            .inner
            .lock()
            .ended
            .get_mut(&id)
            .and_then(|ended| ended.rest.take());
        drop(rest);
    }

    pub(crate) fn find(&self, id: SessionId) -> Found {
        let inner = self.inner.lock();
        if let Some(session) = inner.sessions.get(&id) {
            return Found::Live(Arc::clone(session));
        }
        inner
            .ended
            .get(&id)
            .map_or(Found::Unknown, |ended| Found::Ended(ended.clone()))
    }

    /// Forgets tombstones whose time is over. Called now and then, so that an idle server keeps none.
    pub(crate) fn sweep(&self, now: Instant) {
        let mut dropped = Vec::new();
        let mut inner = self.inner.lock();
        while let Some(&(at, old)) = inner.ended_order.front()
            && at + self.remember <= now
        {
            inner.ended_order.pop_front();
            dropped.extend(inner.ended.remove(&old));
        }
        drop(inner);
        drop(dropped);
    }

    /// Everybody, logged in or not; those who poll last.
    pub(crate) fn everybody(&self) -> Vec<Arc<Session>> {
        let inner = self.inner.lock();
        let all = inner.sessions.values().chain(inner.strangers.values());
        let mut everybody: Vec<Arc<Session>> = all.cloned().collect();
        everybody.sort_by_key(|session| session.is_pull());
        everybody
    }

    /// The sessions of everybody that `authenticator` vouched for.
    pub(crate) fn vouched_by(&self, authenticator: &str) -> Vec<Arc<Session>> {
        let inner = self.inner.lock();
        let is_its = |owner: &&Owner| {
            let identity = owner.identity.as_ref();
            identity.is_some_and(|identity| &*identity.authenticator == authenticator)
        };
        let owners = inner.names.values().filter(is_its);
        owners
            .flat_map(|owner| owner.sessions.iter().cloned())
            .collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.inner.lock().sessions.len()
    }

    /// Whether some polling session that a drain sent away was not given its last events yet.
    pub(crate) fn is_any_untold(&self) -> bool {
        let inner = self.inner.lock();
        let sent_away = |ended: &&Ended| ended.end.reason == CloseReason::ShuttingDown;
        let mut rests = inner
            .ended
            .values()
            .filter(sent_away)
            .filter_map(|ended| ended.rest.as_ref());
        rests.any(|session| !session.is_told())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_22_characters_and_comes_back() {
        let id = SessionId::random().unwrap();
        let text = id.encode();
        assert_eq!(text.len(), 22);
        assert_eq!(SessionId::parse(&text), Some(id));
        for bad in [
            "",
            "x",
            text.get(1..).unwrap(),
            &format!("{text}A"),
            "!!!!!!!!!!!!!!!!!!!!!!",
        ] {
            assert_eq!(SessionId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_log_shows_no_whole_id() {
        let id = SessionId::random().unwrap();
        assert!(format!("{id:?}").chars().count() <= 5);
    }
}
