//! Judging a log-in to its end, whatever becomes of its client, and holding a denial against whoever it came from.
//!
//! A client that has gone, or whose time is over, has not failed: only a verdict of Deny counts. But it can't guess and
//! leave before the answer either, since the verdict is awaited without it. At most [`UNATTENDED`] are at a time; who
//! leaves while there are more pays as for a denial, and its log-in is not judged.

use std::{
    future::Future,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::runtime::Handle;

use crate::{
    hub::Inner,
    plugin::Verdict,
    scope::{Admitted, Scope},
    telemetry::LoginOutcome,
    throttle::Attempt,
};

/// Log-ins without a client that may be judged at a time.
pub(crate) const UNATTENDED: usize = 2048;

/// Whom the chain lets in, or its verdict; [`Verdict::Abstain`] where nobody knew the credentials.
pub(super) type Judged = Result<Admitted, Verdict>;

/// One log-in as it counts for its address and the name that it claims.
pub(super) struct Attempts {
    address: Attempt<IpAddr>,
    name: Option<Attempt<Arc<str>>>,
}

impl Attempts {
    /// Begins a log-in, or says how long to wait before one.
    pub(super) fn begin(
        hub: &Inner,
        address: IpAddr,
        name: Option<&Arc<str>>,
    ) -> Result<Self, Duration> {
        let address = hub.failures_per_ip.attempt(address);
        let name = name.map(|name| hub.failures_per_name.attempt(Arc::clone(name)));
        match (address, name.transpose()) {
            (Ok(address), Ok(name)) => Ok(Self { address, name }),
            (Err(wait), Ok(_)) | (Ok(_), Err(wait)) => Err(wait),
            (Err(one), Err(other)) => Err(one.max(other)),
        }
    }

    fn denied(self) {
        self.address.denied();
        if let Some(name) = self.name {
            name.denied();
        }
    }

    /// Holds what was judged against whoever tried, if it is a denial: what is our fault is held against nobody.
    pub(super) fn settle(self, judged: &Judged) {
        if let Err(Verdict::Deny { .. } | Verdict::Abstain) = judged {
            self.denied();
        }
    }
}

/// A log-in that is being judged.
pub(super) struct Judging {
    scope: Arc<Scope>,
    /// `None` once it is judged.
    open: Option<Open>,
}

type Open = (Pin<Box<dyn Future<Output = Judged> + Send>>, Attempts);

impl Judging {
    pub(super) fn new(
        scope: &Arc<Scope>,
        attempts: Attempts,
        judging: impl Future<Output = Judged> + Send + 'static,
    ) -> Self {
        Self {
            scope: Arc::clone(scope),
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
        attempts.settle(&judged);
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
        let Ok(place) = Arc::clone(&hub.unattended).try_acquire_owned() else {
            attempts.denied();
            return;
        };
        let ears = hub.lifecycle.clone();
        hub.lifecycle.spawn(async move {
            tokio::select! {
                () = ears.draining() => (),
                judged = judging => attempts.settle(&judged),
            }
            drop(place);
        });
    }
}
