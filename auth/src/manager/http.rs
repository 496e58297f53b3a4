//! `kind = "http"`: another server manages sessions.

use std::{path::PathBuf, sync::Arc};

use ::http::Method;
use async_trait::async_trait;
use bytes::Bytes;
use chinwag_core::{
    Lifecycle, NoticeMetrics,
    config::Span,
    plugin::{
        AuthFacts, BuildError, ControlDesk, SessionControl, SessionManager, SessionManagerConfig,
        SessionManagerContext,
    },
};
use secrecy::SecretString;
use serde::Deserialize;

use super::{Admission, Line, Notices, Outbox, Remote};
use crate::{
    callout::{
        self, Doubt, NoAnswer,
        client::{self, Client, Keys, Question},
        connect::Reach,
    },
    fair::Party,
};

/// The table of a session manager at HTTP endpoints.
///
/// Each question and each notice goes to the next healthy endpoint as a `POST` of JSON; what comes
/// back is taken as it is for authenticators. Where nobody can say whether a session may begin, the
/// client is told to try again. With a table `[control]`, the manager may steer sessions at any time.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct HttpManager {
    /// 1 to 16 URLs that know the same sessions. Plain `http` only to this machine, unless
    /// `insecure`.
    pub endpoints: Vec<String>,
    /// Whether it is asked about each stay in a room, and told when that is over. Default `false`:
    /// who joins waits for nobody.
    #[serde(default)]
    pub stays: bool,
    /// How long and how often it is told that something is over.
    #[serde(default)]
    pub notices: Notices,
    /// What this server is known by: sent as `Authorization: Bearer`. Never logged.
    pub bearer: Option<SecretString>,
    /// The file with it instead, read anew when it changes.
    pub bearer_file: Option<PathBuf>,
    /// Who may have signed the endpoints' certificates, in PEM form. Default: whom the system
    /// trusts. Read anew when it changes, as are the next two.
    pub ca: Option<PathBuf>,
    /// The certificate that is shown to endpoints, in PEM form with its chain.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// How long reaching an endpoint may take, TLS included. Above zero; default half a second.
    #[serde(default = "client::default_connect_timeout")]
    pub connect_timeout: Span,
    /// How long an endpoint may take to answer, reaching it included: at most nine tenths of
    /// `timeout`. Default two seconds, or less where `timeout` is short.
    pub call_timeout: Option<Span>,
    /// The most calls in flight, 1 to 10,000. Default 64.
    #[serde(default = "client::default_calls")]
    pub calls: usize,
    /// How many questions may wait for one of these to end, at most 10,000, in turns by the clients'
    /// addresses. Default 1000. 0 means that none waits.
    #[serde(default = "callout::default_queue")]
    pub queue: usize,
    /// Whether plain `http` may go to other machines: tokens are then readable on the way. Default
    /// `false`.
    #[serde(default)]
    pub insecure: bool,
}

#[async_trait]
impl SessionManagerConfig for HttpManager {
    const KIND: &'static str = "http";

    async fn build(self, cx: SessionManagerContext) -> Result<Arc<dyn SessionManager>, BuildError> {
        Ok(Arc::new(self.start(&cx, Reach::Network).await?))
    }
}

impl HttpManager {
    pub(super) async fn start(
        self,
        cx: &SessionManagerContext,
        reach: Reach,
    ) -> Result<Remote<Endpoints>, BuildError> {
        self.notices.check()?;
        let keys = Keys {
            endpoints: self.endpoints,
            bearer: self.bearer,
            bearer_file: self.bearer_file,
            ca: self.ca,
            cert: self.cert,
            key: self.key,
            connect_timeout: self.connect_timeout,
            call_timeout: self.call_timeout,
            calls: self.calls,
            queue: self.queue,
            insecure: self.insecure,
        };
        let settings = keys.settings(cx.into(), reach)?;
        let own = Lifecycle::new();
        let line = Endpoints {
            client: Client::start(settings, &own).await?,
            desk: cx.control.clone(),
        };
        let metrics = NoticeMetrics::register(&cx.meter, &cx.name);
        let outbox = Outbox::new(cx.name.clone(), self.notices, metrics);
        let tellers = self.calls / 2;
        let remote = Remote::start(line, outbox, self.stays, tellers, &cx.lifecycle, own);
        Ok(remote)
    }
}

/// Endpoints, and where they may come back to.
pub(super) struct Endpoints {
    client: Arc<Client>,
    desk: Option<ControlDesk>,
}

impl Line for Endpoints {
    async fn say<T: Send + 'static>(
        &self,
        party: Party,
        message: Bytes,
        read: impl Fn(&[u8]) -> Result<T, String> + Send + Sync + 'static,
        doubt: &Doubt,
    ) -> Result<T, NoAnswer> {
        let question = Question {
            party,
            method: Method::POST,
            body: message,
        };
        self.client.ask(&question, read, doubt).await
    }

    fn admit(&self, facts: &AuthFacts, control: &SessionControl) -> Admission {
        let admitted = self.desk.as_ref().and_then(|desk| {
            let url = desk.url()?.to_owned();
            Some((url, desk.admit(facts, control)?))
        });
        let Some((url, pass)) = admitted else {
            return Admission::default();
        };
        Admission {
            told: Some((url, pass.token().clone())),
            _held: Some(Box::new(pass)),
        }
    }
}
