//! `kind = "exec"`: a program on this machine says who a peer is.
//!
//! What it reads and what it may write is in `docs/callouts.md`.

use std::sync::Arc;

use async_trait::async_trait;
use chinwag_core::{
    config::Span,
    plugin::{
        AuthRequest, Authenticator, AuthenticatorConfig, AuthenticatorContext, BuildError, Verdict,
    },
};
use serde::Deserialize;

use crate::callout::{
    self, Doubt, Secrets,
    contract::{self, Applicant, Headers},
    programs::{self, Keys, Programs, Question},
};

/// The longest answer.
const ANSWER_BYTES: usize = 64 << 10;

/// The table of an authenticator that asks programs.
///
/// A program is started when a log-in first needs it, and stays. It reads a line of JSON for each
/// log-in with a password, a token or a client certificate, and writes one with the verdict, of at
/// most 64 KiB; what it writes to standard error is logged. A program that ends, writes anything
/// else or is late is killed with all that it started, and started anew after a rest of a tenth of
/// a second to thirty; those it was asked about are told to try again. Log-ins with a name alone
/// are left to the next authenticator.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Exec {
    /// The program and its arguments, without a shell. A path starts from the folder of the
    /// configuration, where the program also runs; a bare name is looked up in `PATH`. Other users
    /// of the machine can read arguments: a secret does not belong there.
    pub command: Vec<String>,
    /// The variables of the server's environment that the program gets to see, and no others.
    /// Default `["PATH"]`.
    #[serde(default = "programs::default_environment")]
    pub environment: Vec<String>,
    /// The headers of the client's request that are passed on, at most 32. Default none. Those that
    /// carry credentials can't be.
    #[serde(default)]
    pub headers: Headers,
    /// How many programs may run at the same time, 1 to 256. Default 2.
    #[serde(default = "default_programs")]
    pub programs: usize,
    /// How many log-ins a program may be asked about at once, 1 to 1000; it answers them in any
    /// order. Default 1.
    #[serde(default = "default_in_flight")]
    pub in_flight: usize,
    /// How many log-ins may wait for a program, at most 10,000, in turns by address; further ones are
    /// told to try again, first those whose address has most waiting. Default 1000. 0 means that none
    /// waits.
    #[serde(default = "callout::default_queue")]
    pub queue: usize,
    /// How long a program may take to answer: at most nine tenths of `timeout`. Default two
    /// seconds, or less where `timeout` is short.
    pub call_timeout: Option<Span>,
    /// How long a program that was just started may take for its first answer, at most five minutes.
    /// Default ten seconds. Whoever waits for it hears `unavailable` after `call_timeout` all the
    /// same. Less than that, and so 0, gives it no more time than for any other.
    #[serde(default = "programs::default_start")]
    pub start_timeout: Span,
}

const fn default_programs() -> usize {
    2
}

const fn default_in_flight() -> usize {
    1
}

#[async_trait]
impl AuthenticatorConfig for Exec {
    const KIND: &'static str = "exec";

    async fn build(self, cx: AuthenticatorContext) -> Result<Arc<dyn Authenticator>, BuildError> {
        let built = self.start(&cx)?;
        Ok(Arc::new(built))
    }
}

impl Exec {
    fn start(self, cx: &AuthenticatorContext) -> Result<ExecAuthenticator, BuildError> {
        let keys = Keys {
            command: self.command,
            environment: self.environment,
            programs: self.programs,
            in_flight: self.in_flight,
            queue: self.queue,
            call_timeout: self.call_timeout,
            start_timeout: self.start_timeout,
        };
        let settings = keys.settings(cx.into(), ANSWER_BYTES)?;
        Ok(ExecAuthenticator {
            headers: self.headers,
            programs: Programs::new(settings, None, &cx.lifecycle),
        })
    }
}

struct ExecAuthenticator {
    headers: Headers,
    programs: Programs,
}

#[async_trait]
impl Authenticator for ExecAuthenticator {
    fn headers(&self) -> &[String] {
        self.headers.names()
    }

    async fn authenticate(&self, request: &AuthRequest) -> Verdict {
        let id = self.programs.id();
        let Some(line) = contract::ask(request, &self.headers, Some(id)) else {
            return Verdict::Abstain;
        };
        let question = Question {
            id,
            party: request.address.into(),
            line,
            secrets: Secrets::of(&request.credentials),
        };
        let doubt = Doubt::default();
        let applicant = Applicant::of(request);
        let read = move |answer: &[u8]| contract::read(answer, &applicant);
        let answer = self.programs.ask(question, read, &doubt);
        answer.await.unwrap_or_else(Verdict::from)
    }
}

#[cfg(test)]
mod tests;
