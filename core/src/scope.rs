//! What the sessions of one transport have in common.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use crate::{
    CloseReason,
    account::Account,
    chain::{ChainLink, Counting, RETRY_LATER, ask_chain},
    hub::Inner,
    plugin::{AuthRequest, Certificate, Denial, Principal, TlsFacts, Verdict},
    telemetry::{TlsFailure, TransportMetrics},
    written::Written,
};

/// Headers that carry credentials: nobody is told of them.
const CREDENTIAL_HEADERS: [&str; 3] = ["authorization", "cookie", "proxy-authorization"];

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

impl fmt::Debug for ScopeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopeConfig")
            .field("name", &self.name)
            .field("auth", &self.auth)
            .finish_non_exhaustive()
    }
}

/// The other end of a connection.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Peer {
    /// The client's address, as the listener's `client_address` names it.
    pub address: IpAddr,
    /// Loopback that no proxy named: exempt from limits on connections per address.
    pub exempt: bool,
    /// The client's own TLS. `None`: plain text, or a proxy's.
    pub tls: Option<Arc<dyn TlsLink>>,
    /// The headers of its HTTP request that the authenticators ask for, which are those of [`Scope::headers`]: each name
    /// once and in lower case. Forgotten after the log-in.
    pub headers: Vec<(String, String)>,
    /// When it last took what was written to it, where that is a sign of life.
    pub(crate) written: Option<Arc<Written>>,
}

/// The TLS of a connection, as its transport knows it.
pub trait TlsLink: fmt::Debug + Send + Sync + 'static {
    /// What authenticators are told.
    fn facts(&self) -> &Arc<TlsFacts>;

    /// Whether the client's certificate, where it has shown one, is still good. Asked at each log-in, which may be long
    /// after the handshake.
    ///
    /// # Errors
    /// What is wrong with it.
    fn check(&self) -> Result<(), TlsFailure>;
}

impl Peer {
    /// A client in plain text.
    #[must_use]
    pub const fn new(address: IpAddr, exempt: bool) -> Self {
        Self {
            address,
            exempt,
            tls: None,
            headers: Vec::new(),
            written: None,
        }
    }

    /// The certificate that the client has shown, which was good then.
    #[must_use]
    pub fn certificate(&self) -> Option<&Arc<Certificate>> {
        self.tls.as_ref()?.facts().certificate.as_ref()
    }

    /// What is to be said of a log-in because of the client's certificate, where that is no longer good.
    pub(crate) fn objection(&self) -> Option<Verdict> {
        let failure = self.tls.as_ref()?.check().err()?;
        let denial = match failure {
            // What is known of revoked certificates is out of date: that is no fault of the client's.
            TlsFailure::StaleCrl | TlsFailure::UnknownRevocation => {
                return Some(Verdict::Unavailable { retry: RETRY_LATER });
            }
            TlsFailure::Expired => Denial::Expired,
            TlsFailure::Revoked => Denial::Revoked,
            _ => Denial::Other,
        };
        let reason = format!(
            "the connection's certificate is no longer good: {}",
            failure.label()
        );
        Some(Verdict::deny_for(denial, reason))
    }

    /// Whether this may be the client that `opened` a session: one that showed a certificate then shows it again.
    pub(crate) fn may_be(&self, opened: &Self) -> bool {
        opened.certificate().is_none_or(|certificate| {
            self.certificate()
                .is_some_and(|shown| shown.fingerprint == certificate.fingerprint)
        })
    }
}

/// What the sessions of one transport have in common.
pub struct Scope {
    pub(crate) hub: Arc<Inner>,
    pub(crate) name: Arc<str>,
    pub(crate) chain: Vec<ChainLink>,
    headers: Vec<String>,
    pub(crate) timeout: Duration,
    pub(crate) login_timeout: Duration,
    pub(crate) write_timeout: Duration,
    pub(crate) metrics: Arc<TransportMetrics>,
    /// For the stays that have no account of their own.
    pub(crate) stays: Arc<Account>,
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
            if let Some(prefix) = link.authenticator.guest_prefix() {
                hub.guest_prefixes.add(&hub.config.names, prefix);
            }
        }
        let mut headers: Vec<String> = config
            .auth
            .iter()
            .flat_map(ChainLink::headers)
            .map(|name| name.to_ascii_lowercase())
            .filter(|name| !CREDENTIAL_HEADERS.contains(&name.as_str()))
            .collect();
        headers.sort_unstable();
        headers.dedup();
        Arc::new(Self {
            hub,
            name: config.name.into(),
            chain: config.auth,
            headers,
            timeout: config.timeout,
            login_timeout: config.login_timeout,
            write_timeout: config.write_timeout,
            stays: Account::told(metrics.stay_bytes.clone(), None),
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

    /// The headers of HTTP requests that its authenticators ask for, in lower case: what a transport puts into
    /// [`Peer::headers`]. None that carry credentials.
    #[must_use]
    pub fn headers(&self) -> &[String] {
        &self.headers
    }

    /// Ends with `auth_expired` every session of this transport whose connection has shown a certificate for which
    /// `is_over` holds, whoever let it in, and returns how many. Call it when the new state is in force: a log-in under
    /// way asks [`TlsLink::check`] once more when it is done.
    pub fn revoke_certificates(&self, is_over: impl Fn(&Certificate) -> bool) -> usize {
        let is_over = |certificate: &Arc<Certificate>| is_over(certificate);
        let mut over = self.hub.registry.everybody();
        over.retain(|session| {
            std::ptr::eq(&*session.scope, self)
                && session.is_active()
                && session.peer.certificate().is_some_and(is_over)
        });
        for session in &over {
            session.end(CloseReason::AuthExpired);
        }
        over.len()
    }

    /// Asks the chain.
    ///
    /// # Errors
    /// The verdict that stands in the way; [`Verdict::Abstain`] where nobody knows the credentials.
    pub(crate) async fn authenticate(&self, request: AuthRequest) -> Result<Admitted, Verdict> {
        let request = Arc::new(request);
        let mut counting = Counting::new(&request, &self.hub.telemetry, &self.hub.lifecycle);
        match ask_chain(&self.chain, &request, &mut counting).await {
            Some((link, Verdict::Allow(principal))) => Ok(Admitted {
                principal,
                link: link.clone(),
                round: counting.round,
            }),
            Some((_, verdict)) => Err(verdict),
            None => Err(Verdict::Abstain),
        }
    }
}

/// A principal that an authenticator let in.
pub(crate) struct Admitted {
    pub(crate) principal: Principal,
    pub(crate) link: ChainLink,
    /// Its revocations when it was asked.
    pub(crate) round: u64,
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    /// A connection whose certificate has that fingerprint, if it has one, and is so good by now.
    #[derive(Debug)]
    struct Link(Arc<TlsFacts>, Result<(), TlsFailure>);

    impl TlsLink for Link {
        fn facts(&self) -> &Arc<TlsFacts> {
            &self.0
        }

        fn check(&self) -> Result<(), TlsFailure> {
            self.1
        }
    }

    fn peer(fingerprint: Option<&str>, good: Result<(), TlsFailure>) -> Peer {
        let address = SocketAddr::from(([192, 0, 2, 7], 1));
        let mut facts = TlsFacts::new("TLS1.3", "TLS_AES_256_GCM_SHA384", address, address);
        facts.certificate = fingerprint.map(|fingerprint| {
            Arc::new(Certificate {
                fingerprint: fingerprint.into(),
                ..Certificate::default()
            })
        });
        let mut peer = Peer::new(address.ip(), false);
        peer.tls = Some(Arc::new(Link(Arc::new(facts), good)));
        peer
    }

    #[test]
    fn a_certificate_that_is_no_longer_good_denies_and_what_nobody_knows_does_not() {
        let plain = Peer::new([192, 0, 2, 7].into(), false);
        assert!(plain.objection().is_none());
        assert!(peer(Some("a"), Ok(())).objection().is_none());
        for (failure, expected) in [
            (TlsFailure::Revoked, Some(Denial::Revoked)),
            (TlsFailure::Expired, Some(Denial::Expired)),
            (TlsFailure::UnknownCa, Some(Denial::Other)),
            (TlsFailure::StaleCrl, None),
            (TlsFailure::UnknownRevocation, None),
        ] {
            match (peer(Some("a"), Err(failure)).objection(), expected) {
                (Some(Verdict::Deny { denial, public, .. }), Some(expected)) => {
                    assert_eq!((denial, public), (expected, None));
                }
                (Some(Verdict::Unavailable { .. }), None) => (),
                (verdict, _) => panic!("{failure:?}: {verdict:?}"),
            }
        }
    }

    #[test]
    fn whoever_showed_a_certificate_shows_it_again() {
        let plain = Peer::new([192, 0, 2, 7].into(), false);
        let (none, one, other) = (
            peer(None, Ok(())),
            peer(Some("a"), Ok(())),
            peer(Some("b"), Ok(())),
        );
        for (opened, by, may) in [
            (&plain, &one, true),
            (&none, &one, true),
            (&none, &plain, true),
            (&one, &one, true),
            (&one, &other, false),
            (&one, &none, false),
            (&one, &plain, false),
        ] {
            assert_eq!(by.may_be(opened), may, "{opened:?} {by:?}");
        }
    }
}
