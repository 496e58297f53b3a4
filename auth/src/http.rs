//! `kind = "http"`: another server says who a peer is.
//!
//! What is sent and what may come back is in `docs/callouts.md`.

use std::{path::PathBuf, sync::Arc};

use ::http::Method;
use async_trait::async_trait;
use chinwag_core::{
    config::Span,
    plugin::{
        AuthRequest, Authenticator, AuthenticatorConfig, AuthenticatorContext, BuildError, Verdict,
    },
};
use secrecy::SecretString;
use serde::Deserialize;

use crate::callout::{
    self, Doubt,
    client::{self, Client, Keys, Question},
    connect::Reach,
    contract::{self, Applicant, Headers},
};

/// The table of an authenticator that asks HTTP endpoints.
///
/// Each log-in with a password, a token or a client certificate goes to the next healthy endpoint
/// as a `POST` of JSON. The answer 200 with a verdict in JSON, of at most 64 KiB, stands. Anything
/// else (another status, a redirect, another type, an answer that is late or makes no sense) lets
/// the next endpoint be asked while there is time, and in the end tells the client to try again:
/// nobody gets in by it and nobody is refused for it. Log-ins with a name alone are left to the
/// next authenticator.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Http {
    /// 1 to 16 URLs that answer alike. Plain `http` only to this machine, unless `insecure`.
    pub endpoints: Vec<String>,
    /// The headers of the client's request that are passed on, at most 32. Default none. Those that
    /// carry credentials can't be.
    #[serde(default)]
    pub headers: Headers,
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
    /// How many log-ins may wait for one of these to end, at most 10,000, in turns by address;
    /// further ones are told to try again, first those whose address has most waiting. Default 1000.
    /// 0 means that none waits.
    #[serde(default = "callout::default_queue")]
    pub queue: usize,
    /// Whether plain `http` may go to other machines: passwords are then readable on the way.
    /// Default `false`.
    #[serde(default)]
    pub insecure: bool,
}

#[async_trait]
impl AuthenticatorConfig for Http {
    const KIND: &'static str = "http";

    async fn build(self, cx: AuthenticatorContext) -> Result<Arc<dyn Authenticator>, BuildError> {
        let built = self.start(&cx, Reach::Network).await?;
        Ok(Arc::new(built))
    }
}

impl Http {
    async fn start(
        self,
        cx: &AuthenticatorContext,
        reach: Reach,
    ) -> Result<HttpAuthenticator, BuildError> {
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
        Ok(HttpAuthenticator {
            headers: self.headers,
            client: Client::start(settings, &cx.lifecycle).await?,
        })
    }
}

struct HttpAuthenticator {
    headers: Headers,
    client: Arc<Client>,
}

#[async_trait]
impl Authenticator for HttpAuthenticator {
    fn headers(&self) -> &[String] {
        self.headers.names()
    }

    async fn authenticate(&self, request: &AuthRequest) -> Verdict {
        let Some(body) = contract::ask(request, &self.headers, None) else {
            return Verdict::Abstain;
        };
        let question = Question {
            party: request.address.into(),
            method: Method::POST,
            body: body.into(),
        };
        let doubt = Doubt::default();
        let applicant = Applicant::of(request);
        let read = |answer: &[u8]| contract::read(answer, &applicant);
        let answer = self.client.ask(&question, read, &doubt);
        answer.await.unwrap_or_else(Verdict::from)
    }
}

#[cfg(test)]
mod tests;
