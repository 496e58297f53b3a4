//! `kind = "exec"`: a program on this machine says who a peer is.
//!
//! What it reads and what it may write is in `docs/callouts.md`.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use chinwag_core::{
    config::Span,
    plugin::{
        AuthRequest, Authenticator, AuthenticatorConfig, AuthenticatorContext, BuildError, Verdict,
    },
};
use serde::Deserialize;
use tracing::warn;

use crate::callout::{
    RETRY, Secrets, call_timeout,
    contract::{self, Headers},
    programs::{Programs, Settings},
    spread, within,
};

/// The longest answer.
const ANSWER_BYTES: usize = 64 << 10;
const MAX_PROGRAMS: usize = 256;
const MAX_IN_FLIGHT: usize = 1000;
const MAX_QUEUE: usize = 10_000;

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
    #[serde(default = "default_environment")]
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
    /// How many log-ins may wait for a program, at most 10,000; further ones are told to try again.
    /// Default 1000. 0 means that none waits.
    #[serde(default = "default_queue")]
    pub queue: usize,
    /// How long a program may take to answer: at most nine tenths of `timeout`. Default two
    /// seconds, or less where `timeout` is short.
    pub call_timeout: Option<Span>,
}

fn default_environment() -> Vec<String> {
    vec!["PATH".to_owned()]
}

const fn default_programs() -> usize {
    2
}

const fn default_in_flight() -> usize {
    1
}

const fn default_queue() -> usize {
    1000
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
        let numbers = [
            ("programs", self.programs, 1, MAX_PROGRAMS),
            ("in_flight", self.in_flight, 1, MAX_IN_FLIGHT),
            ("queue", self.queue, 0, MAX_QUEUE),
        ];
        for (key, value, least, most) in numbers {
            if !(least..=most).contains(&value) {
                return Err(BuildError::key(
                    key,
                    format!("`{key}` is {least} to {most}"),
                ));
            }
        }
        let Some((program, arguments)) = self.command.split_first() else {
            return Err(BuildError::key(
                "command",
                "`command` names a program and its arguments",
            ));
        };
        let program = find(program, &cx.base)?;
        let environment = self.environment.iter().filter_map(|name| {
            let value = env::var_os(name);
            if value.is_none() {
                warn!(authenticator = %cx.name, variable = name, "There is no such variable.");
            }
            Some((name.clone(), value?))
        });
        let timeout = within(cx.timeout);
        let settings = Settings {
            name: cx.name.clone(),
            program,
            arguments: arguments.to_vec(),
            folder: cx.base.clone(),
            environment: environment.collect(),
            programs: self.programs,
            in_flight: self.in_flight,
            queue: self.queue,
            call_timeout: call_timeout(self.call_timeout, timeout)?,
            timeout,
            answer_bytes: ANSWER_BYTES,
        };
        Ok(ExecAuthenticator {
            name: cx.name.clone(),
            headers: self.headers,
            programs: Programs::new(settings, &cx.lifecycle),
        })
    }
}

/// The file to run for `program`.
fn find(program: &str, base: &Path) -> Result<PathBuf, BuildError> {
    let is_program = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
    };
    let refuse = |why: String| BuildError::key("command", why);
    if program.contains('/') {
        // The program runs in another folder than the server.
        let path = std::path::absolute(base.join(program))
            .map_err(|error| refuse(format!("{program:?} can't be found: {error}")))?;
        let wrong = format!("{} is no file that may be executed", path.display());
        return Some(path).filter(is_program).ok_or_else(|| refuse(wrong));
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let mut candidates = env::split_paths(&path).map(|folder| folder.join(program));
    candidates.find(is_program).ok_or_else(|| {
        refuse(format!(
            "{program:?} is not in PATH; beside the configuration it is \"./{program}\""
        ))
    })
}

struct ExecAuthenticator {
    name: String,
    headers: Headers,
    programs: Programs,
}

#[async_trait]
impl Authenticator for ExecAuthenticator {
    async fn authenticate(&self, request: &AuthRequest) -> Verdict {
        let id = self.programs.id();
        let Some(question) = contract::ask(request, &self.headers, Some(id)) else {
            return Verdict::Abstain;
        };
        let secrets = Secrets::of(&request.credentials);
        let answer = match self.programs.ask(id, question, secrets).await {
            Ok(answer) => answer,
            Err(retry) => return Verdict::Unavailable { retry },
        };
        contract::read(&answer, request, &self.name).unwrap_or_else(|error| {
            warn!(authenticator = %self.name, error, "A program's answer makes no sense.");
            Verdict::Unavailable {
                retry: spread(RETRY),
            }
        })
    }
}

#[cfg(test)]
mod tests;
