//! Session managers elsewhere: another server, another program.
//!
//! What is guaranteed beyond the trait: every message about a session has its key and a stay has a
//! number within it, so that whoever is told twice can tell; whatever may have been begun there, and
//! is not known to have been refused, is told to end; nothing that opens anything is in a log.

mod contract;
#[cfg(feature = "exec")]
mod exec;
#[cfg(feature = "http")]
mod http;
mod notices;
#[cfg(feature = "exec")]
mod orders;
#[cfg(test)]
mod tests;

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use chinwag_core::{
    Lifecycle,
    plugin::{
        AuthFacts, Context, ControlError, EndCause, Refused, SessionControl, SessionData,
        SessionManager, Stay,
    },
};
use parking_lot::Mutex;
use secrecy::SecretString;

#[cfg(feature = "exec")]
pub use self::exec::ExecManager;
#[cfg(feature = "http")]
pub use self::http::HttpManager;
pub use self::notices::Notices;
use self::{
    contract::{Answer, Asked, Message},
    notices::{Heard, Notice, Outbox},
};
use crate::callout::{Doubt, Secrets};

/// How many notices are told at the same time, at most.
const TELLERS: usize = 8;
/// How long connections and programs may take to end once everything is told.
const LEAVE: Duration = Duration::from_secs(2);

/// The way to whoever manages the sessions.
trait Line: Send + Sync + 'static {
    /// Asks, and gives what `read` makes of the answer. What is in `secrets` is kept out of logs, and
    /// `doubt` is there when somebody may have got the message and gave no answer.
    ///
    /// # Errors
    /// When to try again; why is in the log.
    fn say<T: Send>(
        &self,
        message: &Message<'_>,
        secrets: &Secrets,
        read: impl Fn(&[u8]) -> Result<T, String> + Send + Sync,
        doubt: &Doubt,
    ) -> impl Future<Output = Result<T, Duration>> + Send;

    /// Lets the other side steer a session until what comes back is dropped.
    fn admit(&self, facts: &AuthFacts, control: &SessionControl) -> Admission;
}

/// The other side's right to steer a session.
#[derive(Default)]
struct Admission {
    /// To be told with the session's beginning: where to go and what to show.
    told: Option<(String, SecretString)>,
    _held: Option<Box<dyn Any + Send + Sync>>,
}

/// A manager at the other end of a line.
struct Remote<L> {
    line: Arc<L>,
    outbox: Arc<Outbox>,
    wants_stays: bool,
    /// The last call that was made had an answer.
    is_ready: Arc<AtomicBool>,
}

/// What is kept of a session, in its context.
struct Held {
    facts: Arc<AuthFacts>,
    data: Option<Arc<SessionData>>,
    /// What the other side was told and must not come back in its answers.
    secrets: Secrets,
    /// `None`: it is over.
    admission: Mutex<Option<Admission>>,
}

impl Held {
    /// That it is over, or that `stay` of it is.
    fn notice(
        &self,
        data: Option<Arc<SessionData>>,
        cause: EndCause,
        stay: Option<&Stay>,
    ) -> Notice {
        Notice {
            key: Arc::clone(&self.facts.key),
            user: Arc::clone(&self.facts.user),
            data,
            cause,
            stay: stay.map(|stay| (stay.number, Arc::clone(&stay.room))),
        }
    }
}

impl<L: Line> Remote<L> {
    /// `own` is the life of all that the line needs: it outlives the drain of `lifecycle` until
    /// everything is told.
    fn start(
        line: L,
        outbox: Outbox,
        wants_stays: bool,
        tellers: usize,
        lifecycle: &Lifecycle,
        own: Lifecycle,
    ) -> Self {
        let remote = Self {
            line: Arc::new(line),
            outbox: Arc::new(outbox),
            wants_stays,
            is_ready: Arc::new(AtomicBool::new(false)),
        };
        for _ in 0..tellers.clamp(1, TELLERS) {
            let (line, outbox) = (Arc::clone(&remote.line), Arc::clone(&remote.outbox));
            let (ears, is_ready) = (own.clone(), Arc::clone(&remote.is_ready));
            own.spawn(async move {
                loop {
                    let (key, notice) = tokio::select! {
                        next = outbox.next() => next,
                        () = ears.draining() => return,
                    };
                    let heard = tell(&*line, &notice, &is_ready).await;
                    outbox.settle(key, heard);
                }
            });
        }
        let (outbox, ears) = (Arc::clone(&remote.outbox), lifecycle.clone());
        lifecycle.spawn(async move {
            let last = Last {
                own,
                outbox: Arc::clone(&outbox),
            };
            ears.draining().await;
            outbox.hurry();
            outbox.told().await;
            last.own.shut_down(LEAVE).await;
        });
        remote
    }

    async fn ask<T: Send>(
        &self,
        message: &Message<'_>,
        secrets: &Secrets,
        read: impl Fn(&[u8]) -> Result<T, String> + Send + Sync,
        doubt: &Doubt,
    ) -> Result<T, Duration> {
        let answer = self.line.say(message, secrets, read, doubt).await;
        self.is_ready.store(answer.is_ok(), Ordering::Release);
        answer
    }

    /// Asks about a stay, of which nobody knows yet whether it begins.
    async fn ask_joined(&self, held: &Arc<Held>, stay: &Stay) -> Result<Context, Refused> {
        let unsettled = Unsettled {
            outbox: &self.outbox,
            held,
            stay: Some(stay),
            doubt: Doubt::default(),
            is_settled: false,
        };
        let message = Message::Joined {
            stay,
            data: held.data.as_deref(),
        };
        let read = |answer: &[u8]| {
            let mut answer = contract::read(answer, Asked::Joined, &held.secrets)?;
            if let (Answer::Allow(allowed), Some(all)) = (&mut answer, &held.data) {
                allowed.lay_over(&all.0)?;
            }
            Ok(answer)
        };
        let answer = self.ask(&message, &held.secrets, read, &unsettled.doubt);
        let allowed = settle(answer.await)?;
        unsettled.settle();
        // Without one of its own, look-ups go on in that of the session.
        let data = allowed.context.map(|all| Arc::new(SessionData(all)));
        Ok(with_data(data))
    }

    fn tell_left(&self, held: &Held, stay: &Stay, cause: EndCause) {
        let data = stay.context.shared();
        let notice = held.notice(data, cause, Some(stay));
        self.outbox.push(notice, Some(stay));
    }
}

/// A context with `data`, for plug-ins and notices.
fn with_data(data: Option<Arc<SessionData>>) -> Context {
    let context = Context::default();
    match data {
        None => context,
        Some(data) => {
            let bytes = contract::size(&data.0);
            context.with_shared(data).weighing(bytes)
        }
    }
}

fn settle(answer: Result<Answer, Duration>) -> Result<contract::Allowed, Refused> {
    match answer {
        Ok(Answer::Allow(allowed)) => Ok(allowed),
        Ok(Answer::Refuse(reason)) => Err(Refused::Reason(reason)),
        Ok(Answer::Unavailable(retry)) | Err(retry) => Err(Refused::Unavailable { retry }),
    }
}

/// Tells one notice; what came of it.
async fn tell(line: &impl Line, notice: &Notice, is_ready: &AtomicBool) -> Heard {
    let (secrets, doubt) = (Secrets::default(), Doubt::default());
    let message = notice.message();
    let told = line
        .say(&message, &secrets, contract::read_noted, &doubt)
        .await;
    is_ready.store(told.is_ok(), Ordering::Release);
    match told {
        Ok(None) => Heard::Yes,
        Ok(Some(retry)) => Heard::Later(retry),
        Err(_) => Heard::No,
    }
}

/// A session, or a stay, that the other side has been asked about. Dropped before that is settled, it
/// is told to end, unless nobody there can have heard of it.
struct Unsettled<'a> {
    outbox: &'a Outbox,
    held: &'a Arc<Held>,
    /// `None`: the session itself.
    stay: Option<&'a Stay>,
    doubt: Doubt,
    is_settled: bool,
}

impl Unsettled<'_> {
    fn settle(mut self) {
        self.is_settled = true;
    }
}

impl Drop for Unsettled<'_> {
    fn drop(&mut self) {
        if self.is_settled {
            return;
        }
        // Held, so that a stay of a session that ends meanwhile is not told after it.
        let mut admission = self.held.admission.lock();
        if self.doubt.is_there() && admission.is_some() {
            let data = self.held.data.clone();
            let notice = self.held.notice(data, EndCause::Refused, self.stay);
            self.outbox.push(notice, self.stay);
        }
        if self.stay.is_none() {
            drop(admission.take());
            self.outbox.close();
        }
    }
}

/// Ends what a manager needs, also when it is dropped before its work is done.
struct Last {
    own: Lifecycle,
    outbox: Arc<Outbox>,
}

impl Drop for Last {
    fn drop(&mut self) {
        self.own.kill();
        self.outbox.abandon();
    }
}

#[async_trait]
impl<L: Line> SessionManager for Remote<L> {
    async fn create(
        &self,
        facts: &AuthFacts,
        control: &SessionControl,
    ) -> Result<Context, Refused> {
        let admission = self.line.admit(facts, control);
        let told = admission.told.clone();
        let told = told.as_ref().map(|(url, token)| (url.as_str(), token));
        #[cfg(feature = "http")]
        let secrets = told.map_or_else(Secrets::default, |(_, token)| Secrets::of_token(token));
        #[cfg(not(feature = "http"))]
        let secrets = Secrets::default();
        let mut held = Arc::new(Held {
            facts: Arc::new(facts.clone()),
            data: None,
            secrets,
            admission: Mutex::new(Some(admission)),
        });
        self.outbox.open();
        let unsettled = Unsettled {
            outbox: &self.outbox,
            held: &held,
            stay: None,
            doubt: Doubt::default(),
            is_settled: false,
        };
        let message = Message::Create {
            facts,
            control: told,
        };
        let read = |answer: &[u8]| contract::read(answer, Asked::Create, &held.secrets);
        let answer = self.ask(&message, &held.secrets, read, &unsettled.doubt);
        let allowed = settle(answer.await)?;
        for order in allowed.orders {
            match control.obey(order) {
                // Whoever hung up meanwhile is told to end like everybody else.
                Ok(()) | Err(ControlError::Over) => {}
                Err(error) => tracing::debug!(%error, "A session could not be set up as asked."),
            }
        }
        unsettled.settle();
        let data = allowed
            .context
            .map(|context| Arc::new(SessionData(context)));
        Arc::get_mut(&mut held)
            .expect("nobody else has it yet")
            .data
            .clone_from(&data);
        Ok(with_data(data).with(held))
    }

    fn wants_stays(&self) -> bool {
        self.wants_stays
    }

    async fn joined(&self, stay: &Stay) -> Result<Context, Refused> {
        match stay.context.value::<Arc<Held>>() {
            Some(held) => self.ask_joined(held, stay).await,
            None => Ok(Context::default()),
        }
    }

    fn left(&self, stay: &Stay, cause: EndCause) {
        if let Some(held) = stay.context.value::<Arc<Held>>() {
            self.tell_left(held, stay, cause);
        }
    }

    fn ended(&self, _: &AuthFacts, context: &Context, cause: EndCause) {
        let Some(held) = context.value::<Arc<Held>>() else {
            return;
        };
        let mut admission = held.admission.lock();
        if admission.take().is_none() {
            return;
        }
        let notice = held.notice(held.data.clone(), cause, None);
        self.outbox.push(notice, None);
        self.outbox.close();
    }

    async fn reach(&self) -> Result<(), String> {
        let (secrets, doubt) = (Secrets::default(), Doubt::default());
        let asked = self.ask(&Message::Hello, &secrets, contract::read_noted, &doubt);
        match asked.await {
            Ok(None) => Ok(()),
            Ok(Some(_)) => {
                self.is_ready.store(false, Ordering::Release);
                Err("it says that it is not available".into())
            }
            Err(_) => Err("it does not answer".into()),
        }
    }

    fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Acquire)
    }
}
