//! Taking back what an authenticator has said.

use std::{
    fmt,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{CloseReason, hub::Inner};

/// An authenticator's way to end sessions that it has let in: the user was removed, the password changed, the
/// certificate revoked. Clones are of one authenticator.
///
/// Before its server runs it does nothing: nobody is logged in.
#[derive(Clone, Default)]
pub struct Revocations(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// Set when a transport of a running server asks the authenticator.
    server: OnceLock<(Weak<Inner>, Arc<str>)>,
    /// Moves with every revocation, so that a log-in judged before one and admitted after it is noticed.
    round: AtomicU64,
}

/// One session that an authenticator let in.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Granted<'a> {
    /// The name that the authenticator vouched for.
    pub user: &'a str,
    /// What [`Principal::credential`](crate::plugin::Principal::credential) was.
    pub credential: Option<&'a str>,
}

impl fmt::Debug for Revocations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revocations").finish_non_exhaustive()
    }
}

impl Revocations {
    /// Ends with `auth_expired` every session of this authenticator for which `is_over` holds, and returns how many.
    /// Call it when the new state is in force: a log-in that was judged by the old one then ends as
    /// `unavailable`, and is judged anew when the client comes again.
    ///
    /// Anonymous sessions are none of it: nobody vouched for them.
    pub fn revoke(&self, is_over: impl Fn(Granted<'_>) -> bool) -> usize {
        self.0.round.fetch_add(1, Ordering::SeqCst);
        let Some((server, authenticator)) = self.0.server.get() else {
            return 0;
        };
        let Some(hub) = server.upgrade() else {
            return 0;
        };
        // Ended without a lock of the registry's held.
        let over: Vec<_> = hub
            .registry
            .vouched_by(authenticator)
            .into_iter()
            .filter(|session| session.granted(&is_over))
            .collect();
        for session in &over {
            session.end(CloseReason::AuthExpired);
        }
        over.len()
    }

    pub(crate) fn attach(&self, server: &Arc<Inner>, authenticator: &Arc<str>) {
        let attached = (Arc::downgrade(server), Arc::clone(authenticator));
        // Several transports may ask the same authenticator.
        let _ = self.0.server.set(attached);
    }

    pub(crate) fn round(&self) -> u64 {
        self.0.round.load(Ordering::SeqCst)
    }
}
