//! What the sessions of one transport have in common.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use crate::{
    Revocations, Telemetry, clock,
    hub::Inner,
    manager::ManagerLink,
    plugin::{AuthRequest, Authenticator, Credentials, Principal, Verdict},
    telemetry::{TransportMetrics, VerdictLabel},
};

/// When a client may try again after an authenticator has overrun its time.
const RETRY_AFTER_OVERRUN: Duration = Duration::from_secs(5);

/// One transport, as the core sees it.
#[derive(Clone)]
pub struct ScopeConfig {
    /// The transport's table name.
    pub name: String,
    /// Whom to ask, in order; empty: nobody gets in.
    pub auth: Vec<ChainLink>,
    /// The idle timeout of its sessions. Zero: never.
    pub timeout: Duration,
    /// From connecting to a session.
    pub login_timeout: Duration,
    /// For the last bytes of a connection.
    pub write_timeout: Duration,
}

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
}

impl fmt::Debug for ChainLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChainLink")
            .field("name", &self.name)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ScopeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopeConfig")
            .field("name", &self.name)
            .field("auth", &self.auth)
            .finish_non_exhaustive()
    }
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The client's address, as the listener's `client_address` names it.
    pub address: IpAddr,
    /// Loopback that no proxy named: exempt from limits on connections per address.
    pub exempt: bool,
}

/// What the sessions of one transport have in common.
pub struct Scope {
    pub(crate) hub: Arc<Inner>,
    pub(crate) name: Arc<str>,
    pub(crate) chain: Vec<ChainLink>,
    pub(crate) timeout: Duration,
    pub(crate) login_timeout: Duration,
    pub(crate) write_timeout: Duration,
    pub(crate) metrics: Arc<TransportMetrics>,
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Scope {
    pub(crate) fn new(hub: Arc<Inner>, config: ScopeConfig) -> Arc<Self> {
        let metrics = Arc::clone(hub.telemetry.transport(&config.name));
        for link in &config.auth {
            link.revocations.attach(&hub, &link.name);
        }
        Arc::new(Self {
            hub,
            name: config.name.into(),
            chain: config.auth,
            timeout: config.timeout,
            login_timeout: config.login_timeout,
            write_timeout: config.write_timeout,
            metrics,
        })
    }

    /// The transport's table name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The transport's metrics.
    #[must_use]
    pub fn metrics(&self) -> &Arc<TransportMetrics> {
        &self.metrics
    }

    /// Asks the chain. The first Allow, Deny or Unavailable stands; all-Abstain denies.
    pub(crate) async fn authenticate(
        &self,
        credentials: Credentials,
        address: IpAddr,
    ) -> Result<Admitted<'_>, Verdict> {
        let request = AuthRequest::new(credentials, Arc::clone(&self.name), address);
        for link in &self.chain {
            let round = link.revocations.round();
            match link.ask(&request, &self.hub.telemetry).await {
                Verdict::Abstain => (),
                Verdict::Allow(principal) => {
                    return Ok(Admitted {
                        principal,
                        link,
                        round,
                    });
                }
                verdict => return Err(verdict),
            }
        }
        Err(Verdict::deny("no authenticator knows the credentials"))
    }
}

/// A principal that an authenticator let in.
pub(crate) struct Admitted<'a> {
    pub(crate) principal: Principal,
    pub(crate) link: &'a ChainLink,
    /// Its revocations when it was asked.
    pub(crate) round: u64,
}

impl ChainLink {
    async fn ask(&self, request: &AuthRequest, telemetry: &Telemetry) -> Verdict {
        let began = clock::now();
        let verdict =
            tokio::time::timeout(self.timeout, self.authenticator.authenticate(request)).await;
        let verdict = verdict.unwrap_or_else(|_| {
            tracing::warn!(authenticator = %self.name, timeout = ?self.timeout, "An authenticator overran its time.");
            Verdict::Unavailable { retry: RETRY_AFTER_OVERRUN }
        });
        let label = match &verdict {
            Verdict::Allow(_) => VerdictLabel::Allow,
            Verdict::Deny { .. } => VerdictLabel::Deny,
            Verdict::Abstain => VerdictLabel::Abstain,
            Verdict::Unavailable { .. } => VerdictLabel::Unavailable,
        };
        telemetry.verdict(&self.name, label, began.elapsed().as_secs_f64());
        verdict
    }
}
