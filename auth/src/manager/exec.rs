//! `kind = "exec"`: a program on this machine manages sessions.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use chinwag_core::{
    Lifecycle, NoticeMetrics, Refusal,
    config::Span,
    plugin::{
        AuthFacts, BuildError, ControlError, SessionControl, SessionManager, SessionManagerConfig,
        SessionManagerContext,
    },
};
use parking_lot::Mutex;
use serde::Deserialize;
use tracing::debug;

use super::{
    Admission, Line, Notices, Outbox, Remote,
    contract::numbered,
    orders::{Given, outcome},
};
use crate::{
    callout::{
        self, Doubt, NoAnswer, Secrets,
        programs::{self, Keys, Programs, Question, Taken, Unasked},
    },
    fair::Party,
};

/// The longest line of a program.
const LINE_BYTES: usize = 256 << 10;

/// The table of a session manager in programs.
///
/// A program is started when the server starts, and stays. It reads a line of JSON for each question
/// and each notice and answers it with another; at any time it may write a line of its own to steer a
/// session. What ends it and what then happens is as for authenticators.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ExecManager {
    /// The program and its arguments, without a shell. A path starts from the folder of the
    /// configuration, where the program also runs; a bare name is looked up in `PATH`. Other users
    /// of the machine can read arguments: a secret does not belong there.
    pub command: Vec<String>,
    /// The variables of the server's environment that the program gets to see, and no others.
    /// Default `["PATH"]`.
    #[serde(default = "programs::default_environment")]
    pub environment: Vec<String>,
    /// Whether it is asked about each stay in a room, and told when that is over. Default `false`:
    /// who joins waits for nobody.
    #[serde(default)]
    pub stays: bool,
    /// How long and how often it is told that something is over.
    #[serde(default)]
    pub notices: Notices,
    /// How many programs may run at the same time, 1 to 256. Default 1; with more, any of them may be
    /// asked about any session, and what they know has to be in a place that they share.
    #[serde(default = "one")]
    pub programs: usize,
    /// How many questions and notices a program may have at once, 1 to 1000; it answers them in any
    /// order. Default 1.
    #[serde(default = "one")]
    pub in_flight: usize,
    /// How many questions may wait for a program, at most 10,000, in turns by the clients' addresses.
    /// Default 1000. 0 means that none waits.
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

const fn one() -> usize {
    1
}

#[async_trait]
impl SessionManagerConfig for ExecManager {
    const KIND: &'static str = "exec";

    async fn build(self, cx: SessionManagerContext) -> Result<Arc<dyn SessionManager>, BuildError> {
        Ok(Arc::new(self.start(&cx)?))
    }
}

impl ExecManager {
    pub(super) fn start(
        self,
        cx: &SessionManagerContext,
    ) -> Result<Remote<ProgramLine>, BuildError> {
        self.notices.check()?;
        let keys = Keys {
            command: self.command,
            environment: self.environment,
            programs: self.programs,
            in_flight: self.in_flight,
            queue: self.queue,
            call_timeout: self.call_timeout,
            start_timeout: self.start_timeout,
        };
        let settings = keys.settings(cx.into(), LINE_BYTES)?;
        let live = Arc::new(Live::default());
        let orders = orders(&live, settings.table.clone());
        let own = Lifecycle::new();
        let line = ProgramLine {
            programs: Programs::new(settings, Some(orders), &own),
            live,
        };
        let metrics = NoticeMetrics::register(&cx.meter, &cx.name);
        let outbox = Outbox::new(cx.name.clone(), self.notices, metrics);
        let tellers = self.programs * self.in_flight / 2;
        let remote = Remote::start(line, outbox, self.stays, tellers, &cx.lifecycle, own);
        Ok(remote)
    }
}

/// The sessions that programs may steer, by key.
#[derive(Default)]
struct Live(Mutex<HashMap<Arc<str>, SessionControl>>);

/// One of them, until it is dropped.
struct Entry {
    live: Arc<Live>,
    key: Arc<str>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.live.0.lock().remove(&self.key);
    }
}

/// Takes the lines that programs write unasked.
fn orders(live: &Arc<Live>, table: String) -> Unasked {
    let live = Arc::clone(live);
    Box::new(move |line| {
        let given = Given::read(line)?;
        let control = live.0.lock().get(given.session.as_str()).cloned();
        let done = given.order().and_then(|order| {
            let control = control.ok_or(ControlError::Over)?;
            control.obey(order).map_err(Refusal::from)
        });
        let order = &given.order;
        let mistake = match &done {
            Ok(()) => {
                debug!(table, order, "A program steers a session.");
                None
            }
            // A session may end while the program writes; anything else is the program's mistake.
            Err(refusal) if *refusal == ControlError::Over.into() => {
                debug!(table, order, "A program steers a session that is over.");
                None
            }
            Err(refusal) => Some(refusal.code.code()),
        };
        let told = |reference| outcome(reference, done.as_ref().err());
        Some(Taken {
            reply: given.reference.map(told),
            mistake,
        })
    })
}

/// Programs, and the sessions that they may steer.
pub(super) struct ProgramLine {
    programs: Programs,
    live: Arc<Live>,
}

impl Line for ProgramLine {
    async fn say<T: Send + 'static>(
        &self,
        party: Party,
        message: Bytes,
        read: impl Fn(&[u8]) -> Result<T, String> + Send + Sync + 'static,
        doubt: &Doubt,
    ) -> Result<T, NoAnswer> {
        let id = self.programs.id();
        let question = Question {
            id,
            party,
            line: numbered(&message, id),
            // A program needs no token to steer sessions, and is told none.
            secrets: Secrets::default(),
        };
        self.programs.ask(question, read, doubt).await
    }

    fn admit(&self, facts: &AuthFacts, control: &SessionControl) -> Admission {
        let key = Arc::clone(&facts.key);
        let live = Arc::clone(&self.live);
        live.0.lock().insert(Arc::clone(&key), control.clone());
        Admission {
            told: None,
            _held: Some(Box::new(Entry { live, key })),
        }
    }
}
