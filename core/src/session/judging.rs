//! Judging a log-in to its end, whatever becomes of its client, and holding a denial against whoever it came from.
//!
//! A client that has gone, or whose time is over, has not failed: only a verdict of Deny counts. But it can't guess and
//! leave before the answer either, since the verdict is awaited without it. At most [`UNATTENDED`] are at a time, and
//! [`UNATTENDED_PER_ADDRESS`] of one address; of those who leave while there are as many, nobody is judged, and the
//! address pays as for a denial if it left in time.

use std::{
    collections::{HashMap, hash_map::Entry},
    future::Future,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::runtime::Handle;

use crate::{
    clock::{self, Instant},
    familiar::Claim,
    hub::Inner,
    lock::Mutex,
    names::counted_as,
    plugin::{PrincipalName, Verdict},
    scope::{Admitted, Scope},
    telemetry::LoginOutcome,
    throttle::{Attempt, Held},
};

/// Log-ins without a client that may be judged at a time.
pub(crate) const UNATTENDED: usize = 2048;
/// Those of them that may come from one address once half of the places are taken: nobody takes all of them alone, and a
/// building whose clients all give up on a slow back end pays for that only where others need the places.
pub(crate) const UNATTENDED_PER_ADDRESS: usize = 256;

/// Whom the chain lets in, or its verdict; [`Verdict::Abstain`] where nobody knew the credentials.
pub(super) type Judged = Result<Admitted, Verdict>;

/// One log-in as it counts for its address and the name that it claims.
pub(super) struct Attempts {
    address: Attempt<IpAddr>,
    name: Option<Attempt<Claim>>,
    /// The name and the address to be remembered together if the log-in is let in.
    pair: Option<(Arc<str>, IpAddr)>,
    has_password: bool,
}

impl Attempts {
    /// Begins a log-in that claims `name`, as names are counted, or says why it can't be judged now.
    pub(super) fn begin(
        hub: &Inner,
        address: IpAddr,
        name: Option<Arc<str>>,
        has_password: bool,
    ) -> Result<Self, Held> {
        let pair = name.clone().map(|name| (name, address));
        let claim = name.map(|name| hub.familiar.claim(name, address));
        let address = hub.failures_per_ip.attempt(address);
        let name = claim.map(|claim| match claim {
            Claim::Anywhere(_) => hub.failures_of_strangers.attempt(claim),
            Claim::From(..) => hub.failures_of_familiar.attempt(claim),
        });
        match (address, name.transpose()) {
            (Ok(address), Ok(name)) => Ok(Self {
                address,
                name,
                pair,
                has_password,
            }),
            (Err(held), Ok(_)) | (Ok(_), Err(held)) => Err(held),
            (Err(one), Err(other)) => Err(one.max(other)),
        }
    }

    /// Holds what was judged against whoever tried, if it is a denial: what is our fault is held against nobody. Who is
    /// let in shows from where the user comes.
    pub(super) fn settle(self, hub: &Inner, judged: &Judged) {
        match judged {
            Err(Verdict::Deny { .. } | Verdict::Abstain) => {
                self.address.denied();
                if let Some(name) = self.name {
                    name.denied();
                }
            }
            // A name that anybody may choose says nothing. With a password it may be vouched for by another name than
            // the one that the password is for.
            Ok(admitted) => {
                if let PrincipalName::Vouched(vouched) = &admitted.principal.name
                    && let Some((name, address)) = self.pair
                    && (self.has_password || counted_as(vouched) == name)
                {
                    let gone = hub.familiar.remember(Arc::clone(&name), address);
                    if let Some(gone) = gone {
                        hub.failures_of_familiar.forget(&Claim::From(name, gone));
                    }
                }
            }
            Err(_) => (),
        }
    }
}

/// A log-in that is being judged.
pub(super) struct Judging {
    scope: Arc<Scope>,
    /// When the client's time to log in is over: then it is the server that leaves.
    deadline: Instant,
    /// `None` once it is judged.
    open: Option<Open>,
}

type Open = (Pin<Box<dyn Future<Output = Judged> + Send>>, Attempts);

impl Judging {
    pub(super) fn new(
        scope: &Arc<Scope>,
        deadline: Instant,
        attempts: Attempts,
        judging: impl Future<Output = Judged> + Send + 'static,
    ) -> Self {
        Self {
            scope: Arc::clone(scope),
            deadline,
            open: Some((Box::pin(judging), attempts)),
        }
    }
}

impl Future for Judging {
    type Output = Judged;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Judged> {
        let (judging, _) = self.open.as_mut().expect("not polled after its verdict");
        let judged = ready!(judging.as_mut().poll(cx));
        let (_, attempts) = self.open.take().expect("it was there just now");
        attempts.settle(&self.scope.hub, &judged);
        Poll::Ready(judged)
    }
}

impl Drop for Judging {
    fn drop(&mut self) {
        let Some((judging, attempts)) = self.open.take() else {
            return;
        };
        let hub = &self.scope.hub;
        self.scope.metrics.login(LoginOutcome::Abandoned);
        // With the runtime everything ends.
        if hub.is_draining() || Handle::try_current().is_err() {
            return;
        }
        let Some(place) = hub.unattended.take(*attempts.address.key()) else {
            if clock::now() < self.deadline {
                attempts.address.denied();
            }
            return;
        };
        let (ears, scope) = (hub.lifecycle.clone(), Arc::clone(&self.scope));
        hub.lifecycle.spawn(async move {
            tokio::select! {
                () = ears.draining() => (),
                judged = judging => attempts.settle(&scope.hub, &judged),
            }
            drop(place);
        });
    }
}

/// Places for log-ins that are judged though their client has gone.
#[derive(Default)]
pub(crate) struct Unattended(Mutex<Taken>);

#[derive(Default)]
struct Taken {
    all: usize,
    /// Clients choose the keys: hashed with a secret.
    by_address: HashMap<IpAddr, usize>,
}

impl Unattended {
    /// A place for a log-in from `address`; `None`: there is none, or none for that address.
    fn take(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let mut taken = self.0.lock();
        let Taken { all, by_address } = &mut *taken;
        if *all >= UNATTENDED {
            return None;
        }
        let own = by_address.entry(address).or_default();
        if *own >= UNATTENDED_PER_ADDRESS && *all >= UNATTENDED / 2 {
            return None;
        }
        *own += 1;
        *all += 1;
        Some(Place {
            places: Arc::clone(self),
            address,
        })
    }
}

/// A place, which is free again when this is dropped.
struct Place {
    places: Arc<Unattended>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock();
        taken.all -= 1;
        if let Entry::Occupied(mut own) = taken.by_address.entry(self.address) {
            *own.get_mut() -= 1;
            if *own.get() == 0 {
                own.remove();
            }
        }
    }
}
