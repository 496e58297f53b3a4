//! Asking authenticators: one after the other, each in its time, and its shadow beside it.
//!
//! The first Allow, Deny or Unavailable stands; when all abstain, nobody gets in. An authenticator that is late or
//! panics is unavailable. What a shadow says is compared and counted, and changes nothing: nobody waits for it, and no
//! more of it than [`SHADOWS`] log-ins is under way at a time.

use std::{
    fmt,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::timeout,
};

use crate::{
    Lifecycle, Revocations, Telemetry, clock,
    manager::ManagerLink,
    plugin::{AuthRequest, Authenticator, Principal, Verdict},
    telemetry::{Comparison, VerdictLabel},
};

/// When a client may try again after an authenticator or a session manager has overrun its time or panicked, or while
/// nobody can tell what is revoked.
pub(crate) const RETRY_LATER: Duration = Duration::from_secs(5);
/// Log-ins that one shadow may be judging at a time; those beyond it does not see.
const SHADOWS: usize = 64;

/// One authenticator of a chain.
#[derive(Clone)]
pub struct ChainLink {
    /// The name of its table.
    pub name: Arc<str>,
    /// The authenticator.
    pub authenticator: Arc<dyn Authenticator>,
    /// How long a verdict may take; then it counts as [`Verdict::Unavailable`].
    pub timeout: Duration,
    /// What the authenticator was built with, to take back what it said.
    pub revocations: Revocations,
    /// Who is told of the sessions that it lets in.
    pub manager: Option<ManagerLink>,
    /// Who is asked beside it, to be compared.
    pub shadow: Option<Shadow>,
}

/// An authenticator that is tried out beside another: it sees the same log-ins and decides none.
#[derive(Clone)]
pub struct Shadow {
    /// The name of its table.
    pub name: Arc<str>,
    authenticator: Arc<dyn Authenticator>,
    timeout: Duration,
    free: Arc<Semaphore>,
}

/// What one authenticator said of a log-in, and how long that took.
#[derive(Debug, Clone)]
pub struct Judgement {
    /// The verdict; [`Verdict::Unavailable`] where it was late or panicked.
    pub verdict: Verdict,
    /// From asking to the verdict.
    pub took: Duration,
    /// Why there is no verdict of its own.
    pub mishap: Option<Mishap>,
}

/// Why an authenticator gave no verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mishap {
    /// It took longer than its table's `timeout`.
    Late,
    /// It panicked.
    Panicked,
}

impl fmt::Display for Mishap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Late => "it overran its time",
            Self::Panicked => "it panicked",
        })
    }
}

/// Whoever watches a chain being asked.
pub trait Witness: Send {
    /// `link` is about to be asked.
    fn asking(&mut self, _link: &ChainLink) {}
    /// `link` has spoken.
    fn heard(&mut self, link: &ChainLink, judgement: &Judgement);
}

/// Asks `chain` in order. Returns whose verdict stands, and it; `None`: all abstained, which is a denial.
///
/// After a denial of a password the rest of the chain does what a log-in by somebody unknown would cost there, so that
/// the time till the answer does not tell whether there is such a user.
pub async fn ask_chain<'a>(
    chain: &'a [ChainLink],
    request: &AuthRequest,
    witness: &mut impl Witness,
) -> Option<(&'a ChainLink, Verdict)> {
    let mut rest = chain.iter();
    while let Some(link) = rest.next() {
        witness.asking(link);
        let judgement = judge(&*link.authenticator, link.timeout, request).await;
        witness.heard(link, &judgement);
        match judgement.verdict {
            Verdict::Abstain => (),
            verdict => {
                if matches!(verdict, Verdict::Deny { .. }) && request.credentials.password.is_some()
                {
                    for link in rest {
                        let pretend = unwind(link.authenticator.pretend(request));
                        // For its cost alone.
                        let _ = timeout(link.timeout, pretend).await;
                    }
                }
                return Some((link, verdict));
            }
        }
    }
    None
}

async fn judge(
    authenticator: &dyn Authenticator,
    limit: Duration,
    request: &AuthRequest,
) -> Judgement {
    let began = clock::now();
    let judged = timeout(limit, unwind(authenticator.authenticate(request))).await;
    let took = began.elapsed();
    let (verdict, mishap) = match judged {
        Ok(Some(verdict)) => (verdict, None),
        Ok(None) => (unavailable(), Some(Mishap::Panicked)),
        Err(_) => (unavailable(), Some(Mishap::Late)),
    };
    Judgement {
        verdict,
        took,
        mishap,
    }
}

const fn unavailable() -> Verdict {
    Verdict::Unavailable { retry: RETRY_LATER }
}

/// `None`: it panicked.
pub(crate) async fn unwind<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        // It is never polled again after a panic.
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        polled.map_or(Poll::Ready(None), |poll| poll.map(Some))
    })
    .await
}

impl Judgement {
    /// Whether `other` came to the same: a verdict of the same kind and, where somebody is let in, for the same user with
    /// the same rights. Reasons and ends in time may differ.
    #[must_use]
    pub fn agrees_with(&self, other: &Self) -> bool {
        Said::of(&self.verdict).is_as(&Said::of(&other.verdict))
    }
}

impl ChainLink {
    /// The headers of HTTP requests that it and its shadow ask for.
    pub(crate) fn headers(&self) -> impl Iterator<Item = &String> {
        let shadow = self.shadow.iter();
        let shadow = shadow.flat_map(|shadow| shadow.authenticator.headers());
        self.authenticator.headers().iter().chain(shadow)
    }
}

impl fmt::Debug for ChainLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChainLink")
            .field("name", &self.name)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Shadow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shadow")
            .field("name", &self.name)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl Shadow {
    /// `link` as a shadow: its own sessions, shadow and manager are none of it.
    #[must_use]
    pub fn of(link: &ChainLink) -> Self {
        Self {
            name: Arc::clone(&link.name),
            authenticator: Arc::clone(&link.authenticator),
            timeout: link.timeout,
            free: Arc::new(Semaphore::new(SHADOWS)),
        }
    }

    /// What it says of `request`.
    pub async fn judge(&self, request: &AuthRequest) -> Judgement {
        judge(&*self.authenticator, self.timeout, request).await
    }
}

/// A chain asked in earnest: every verdict is counted, and the shadows are asked as well.
pub(crate) struct Counting<'a> {
    request: &'a Arc<AuthRequest>,
    telemetry: &'a Arc<Telemetry>,
    lifecycle: &'a Lifecycle,
    /// The revocations of who was asked last, when that was asked.
    pub(crate) round: u64,
    /// The shadow of who is being asked waits for that one's word.
    shadowing: Option<oneshot::Sender<Said>>,
}

/// A verdict as far as shadows are compared by it.
struct Said {
    label: VerdictLabel,
    principal: Option<Principal>,
}

impl Said {
    fn of(verdict: &Verdict) -> Self {
        Self {
            label: VerdictLabel::of(verdict),
            principal: match verdict {
                Verdict::Allow(principal) => Some(principal.clone()),
                _ => None,
            },
        }
    }

    fn is_as(&self, other: &Self) -> bool {
        self.label == other.label
            && match (&self.principal, &other.principal) {
                (Some(one), Some(other)) => one.may_as_much_as(other),
                _ => true,
            }
    }
}

impl<'a> Counting<'a> {
    pub(crate) const fn new(
        request: &'a Arc<AuthRequest>,
        telemetry: &'a Arc<Telemetry>,
        lifecycle: &'a Lifecycle,
    ) -> Self {
        Self {
            request,
            telemetry,
            lifecycle,
            round: 0,
            shadowing: None,
        }
    }

    fn shadow(&self, link: &ChainLink, shadow: &Shadow) -> Option<oneshot::Sender<Said>> {
        let Ok(permit) = Arc::clone(&shadow.free).try_acquire_owned() else {
            self.telemetry.shadow_skipped(&link.name);
            return None;
        };
        let (tell, said) = oneshot::channel();
        let compare = compare(
            Arc::clone(&link.name),
            shadow.clone(),
            Arc::clone(self.request),
            said,
            Arc::clone(self.telemetry),
            permit,
        );
        let ears = self.lifecycle.clone();
        self.lifecycle.spawn(async move {
            tokio::select! {
                () = ears.draining() => (),
                () = compare => (),
            }
        });
        Some(tell)
    }
}

impl Witness for Counting<'_> {
    fn asking(&mut self, link: &ChainLink) {
        self.round = link.revocations.round();
        let shadow = link.shadow.as_ref();
        self.shadowing = shadow.and_then(|shadow| self.shadow(link, shadow));
    }

    fn heard(&mut self, link: &ChainLink, judgement: &Judgement) {
        let seconds = judgement.took.as_secs_f64();
        self.telemetry
            .verdict(&link.name, &judgement.verdict, seconds);
        match judgement.mishap {
            Some(Mishap::Late) => {
                tracing::warn!(authenticator = %link.name, timeout = ?link.timeout, "An authenticator overran its time.");
            }
            Some(Mishap::Panicked) => {
                tracing::error!(authenticator = %link.name, "An authenticator panicked.");
            }
            None => (),
        }
        if let Some(tell) = self.shadowing.take() {
            // The shadow may be lost with the server's end.
            let _ = tell.send(Said::of(&judgement.verdict));
        }
    }
}

/// Has `shadow` judge what `link` judges, and counts whether they agree.
async fn compare(
    link: Arc<str>,
    shadow: Shadow,
    request: Arc<AuthRequest>,
    said: oneshot::Receiver<Said>,
    telemetry: Arc<Telemetry>,
    _permit: OwnedSemaphorePermit,
) {
    let judgement = shadow.judge(&request).await;
    drop(request);
    // Without a word, the log-in was given up before it was judged.
    let Ok(said) = said.await else { return };
    let would = Said::of(&judgement.verdict);
    let comparison = Comparison {
        verdict: said.label,
        shadow: would.label,
        agrees: said.is_as(&would),
    };
    telemetry.shadow(&link, comparison, judgement.took.as_secs_f64());
    if !comparison.agrees {
        tracing::debug!(
            authenticator = %link, shadow = %shadow.name, verdict = said.label.label(),
            shadow_verdict = would.label.label(), "A shadow differs."
        );
    }
}
