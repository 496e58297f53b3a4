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
use bytes::Bytes;
use chinwag_core::{
    Lifecycle,
    plugin::{
        AuthFacts, Context, ControlError, EndCause, Order, Refused, SessionControl, SessionData,
        SessionManager, Stay,
    },
};
use parking_lot::Mutex;
use secrecy::SecretString;
use tokio::task::yield_now;

#[cfg(feature = "exec")]
pub use self::exec::ExecManager;
#[cfg(feature = "http")]
pub use self::http::HttpManager;
pub use self::notices::Notices;
use self::{
    contract::{Answer, Asked, Message, Session},
    notices::{Notice, Outbox},
};
use crate::{
    callout::{Doubt, NoAnswer, Secrets, without_tokens},
    fair::Party,
};

/// How many notices are told at the same time, at most.
const TELLERS: usize = 8;
/// How long connections and programs may take to end once everything is told.
const LEAVE: Duration = Duration::from_secs(2);

/// The way to whoever manages the sessions.
trait Line: Send + Sync + 'static {
    /// Asks, when it is `party`'s turn, and gives what `read` makes of the answer: before any order
    /// that comes behind it the same way is obeyed. `doubt` is there when somebody may have got the
    /// message and gave no answer.
    fn say<T: Send + 'static>(
        &self,
        party: Party,
        message: Bytes,
        read: impl Fn(&[u8]) -> Result<T, String> + Send + Sync + 'static,
        doubt: &Doubt,
    ) -> impl Future<Output = Result<T, NoAnswer>> + Send;

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

/// A line, and whether somebody is at its other end.
struct Contact<L> {
    line: L,
    /// The last call that was made had an answer.
    is_ready: AtomicBool,
}

impl<L: Line> Contact<L> {
    /// Says `message`. Whatever is said there goes through here, and so does every word of an answer
    /// that may get into a log.
    async fn say<T: Send + 'static>(
        &self,
        party: Party,
        message: Bytes,
        read: impl Fn(&[u8]) -> Result<T, String> + Send + Sync + 'static,
        doubt: &Doubt,
    ) -> Result<T, NoAnswer> {
        let read = move |answer: &[u8]| read(answer).map_err(|why| without_tokens(&why));
        let answer = self.line.say(party, message, read, doubt).await;
        let was_called = !answer.as_ref().is_err_and(|none| none.was_busy);
        if was_called {
            self.is_ready.store(answer.is_ok(), Ordering::Release);
        }
        answer
    }

    /// Says what is but told; `Some`: it is to be told again, not before so long.
    async fn tell(&self, message: Bytes) -> Result<Option<Duration>, NoAnswer> {
        let (read, doubt) = (contract::read_noted, Doubt::default());
        self.say(Party::SERVER, message, read, &doubt).await
    }
}

/// A manager at the other end of a line.
struct Remote<L> {
    contact: Arc<Contact<L>>,
    outbox: Arc<Outbox>,
    wants_stays: bool,
}

/// What is kept of a session, in its context.
struct Held {
    key: Arc<str>,
    user: Arc<str>,
    data: Option<Arc<SessionData>>,
    /// What the other side was told and the client must not be.
    secrets: Secrets,
    /// `None`: it is over.
    admission: Mutex<Option<Admission>>,
}

impl Held {
    /// That it is over, or that `stay` of it is.
    fn notice(&self, data: Option<&SessionData>, cause: EndCause, stay: Option<&Stay>) -> Notice {
        let session = Session {
            session: &self.key,
            user: &self.user,
        };
        let message = match stay {
            Some(stay) => Message::Left {
                session,
                stay: stay.into(),
                data,
                cause,
            },
            None => Message::Ended {
                session,
                data,
                cause,
            },
        };
        Notice {
            key: Arc::clone(&self.key),
            message: message.encode(),
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
        let is_ready = AtomicBool::new(false);
        let remote = Self {
            contact: Arc::new(Contact { line, is_ready }),
            outbox: Arc::new(outbox),
            wants_stays,
        };
        for _ in 0..tellers.clamp(1, TELLERS) {
            let (contact, outbox) = (Arc::clone(&remote.contact), Arc::clone(&remote.outbox));
            let ears = own.clone();
            own.spawn(async move {
                loop {
                    let Notice { key, message } = tokio::select! {
                        next = outbox.next() => next,
                        () = ears.draining() => return,
                    };
                    let heard = contact.tell(message).await.into();
                    outbox.settle(key, heard);
                    // Where nobody can be asked, nothing above has waited.
                    yield_now().await;
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

    /// Asks about a stay, of which nobody knows yet whether it begins.
    async fn ask_joined(&self, held: &Held, stay: &Stay) -> Result<Context, Refused> {
        let unsettled = Unsettled::new(&self.outbox, held, Some(stay));
        let message = Message::Joined {
            stay,
            data: held.data.as_deref(),
        };
        let (secrets, data) = (held.secrets.clone(), held.data.clone());
        let read = move |answer: &[u8]| {
            let mut answer = contract::read(answer, Asked::Joined, &secrets)?;
            if let (Answer::Allow(allowed), Some(all)) = (&mut answer, &data) {
                allowed.lay_over(&all.0)?;
            }
            Ok(answer)
        };
        let answer = self.ask(&message, read, &unsettled.doubt);
        let allowed = settle(answer.await)?;
        unsettled.settle();
        // Without one of its own, look-ups go on in that of the session.
        let data = allowed.context.map(|all| Arc::new(SessionData(all)));
        Ok(with_data(data))
    }

    async fn ask(
        &self,
        message: &Message<'_>,
        read: impl Fn(&[u8]) -> Result<Answer, String> + Send + Sync + 'static,
        doubt: &Doubt,
    ) -> Result<Answer, NoAnswer> {
        let (party, message) = (message.party(), message.encode());
        self.contact.say(party, message, read, doubt).await
    }

    fn tell_left(&self, held: &Held, stay: &Stay, cause: EndCause) {
        let notice = held.notice(stay.context.value(), cause, Some(stay));
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

/// Has a session begin as the answer says that lets it.
fn set_up(control: &SessionControl, orders: Vec<Order>) {
    for order in orders {
        match control.obey(order) {
            // Whoever hung up meanwhile is told to end like everybody else.
            Ok(()) | Err(ControlError::Over) => {}
            Err(error) => tracing::debug!(%error, "A session could not be set up as asked."),
        }
    }
}

fn settle(answer: Result<Answer, NoAnswer>) -> Result<contract::Allowed, Refused> {
    match answer {
        Ok(Answer::Allow(allowed)) => Ok(allowed),
        Ok(Answer::Refuse(reason)) => Err(Refused::Reason(reason)),
        Ok(Answer::Unavailable(retry)) | Err(NoAnswer { retry, .. }) => {
            Err(Refused::Unavailable { retry })
        }
    }
}

/// A session, or a stay, that the other side has been asked about. Dropped before that is settled, it
/// is told to end, unless nobody there can have heard of it.
struct Unsettled<'a> {
    outbox: &'a Outbox,
    held: &'a Held,
    /// `None`: the session itself.
    stay: Option<&'a Stay>,
    doubt: Doubt,
    is_settled: bool,
}

impl<'a> Unsettled<'a> {
    fn new(outbox: &'a Outbox, held: &'a Held, stay: Option<&'a Stay>) -> Self {
        Self {
            outbox,
            held,
            stay,
            doubt: Doubt::default(),
            is_settled: false,
        }
    }

    fn settle(mut self) {
        self.is_settled = true;
    }
}

impl Drop for Unsettled<'_> {
    fn drop(&mut self) {
        if self.is_settled {
            return;
        }
        if self.doubt.is_there() {
            let data = self.held.data.as_deref();
            let notice = self.held.notice(data, EndCause::Refused, self.stay);
            self.outbox.push(notice, self.stay);
        }
        if self.stay.is_none() {
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
        let admission = self.contact.line.admit(facts, control);
        let told = admission.told.clone();
        let told = told.as_ref().map(|(url, token)| (url.as_str(), token));
        let mut held = Held {
            key: Arc::clone(&facts.key),
            user: Arc::clone(&facts.user),
            data: None,
            secrets: told.map_or_else(Secrets::default, |(_, token)| Secrets::of_token(token)),
            admission: Mutex::new(Some(admission)),
        };
        self.outbox.open();
        let unsettled = Unsettled::new(&self.outbox, &held, None);
        let message = Message::Create {
            facts,
            control: told,
        };
        let (secrets, control) = (held.secrets.clone(), control.clone());
        let read = move |answer: &[u8]| {
            let mut answer = contract::read(answer, Asked::Create, &secrets)?;
            if let Answer::Allow(allowed) = &mut answer {
                set_up(&control, std::mem::take(&mut allowed.orders));
            }
            Ok(answer)
        };
        let answer = self.ask(&message, read, &unsettled.doubt);
        let allowed = settle(answer.await)?;
        unsettled.settle();
        held.data = allowed.context.map(|all| Arc::new(SessionData(all)));
        Ok(with_data(held.data.clone()).with(held))
    }

    fn wants_stays(&self) -> bool {
        self.wants_stays
    }

    async fn joined(&self, stay: &Stay) -> Result<Context, Refused> {
        match stay.context.value::<Held>() {
            Some(held) => self.ask_joined(held, stay).await,
            None => Ok(Context::default()),
        }
    }

    fn left(&self, stay: &Stay, cause: EndCause) {
        if let Some(held) = stay.context.value::<Held>() {
            self.tell_left(held, stay, cause);
        }
    }

    fn ended(&self, _: &AuthFacts, context: &Context, cause: EndCause) {
        let Some(held) = context.value::<Held>() else {
            return;
        };
        if held.admission.lock().take().is_none() {
            return;
        }
        let notice = held.notice(held.data.as_deref(), cause, None);
        self.outbox.push(notice, None);
        self.outbox.close();
    }

    async fn reach(&self) -> Result<(), String> {
        match self.contact.tell(Message::Hello.encode()).await {
            Ok(None) => Ok(()),
            Ok(Some(_)) => {
                self.contact.is_ready.store(false, Ordering::Release);
                Err("it says that it is not available".into())
            }
            Err(_) => Err("it does not answer".into()),
        }
    }

    fn is_ready(&self) -> bool {
        self.contact.is_ready.load(Ordering::Acquire)
    }
}
