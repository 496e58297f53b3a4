//! The seam for session managers: what acquires and gives back the back-end resources of a session, and may watch and
//! steer it while it lives.
//!
//! What is guaranteed: for each session that [`create`] said yes to, [`ended`] comes once, and before it [`left`] once for
//! each stay in a room that [`joined`] said yes to, of those that end with it the youngest first; also when the server
//! stops or a task of the session's panics. A session that ends waits for no `joined`: that is dropped, and `ended` comes
//! when it is gone. A hook that panics is counted and stops no other; a `create` or `joined` that does lets nobody in.
//!
//! [`create`]: SessionManager::create
//! [`joined`]: SessionManager::joined
//! [`ended`]: SessionManager::ended
//! [`left`]: SessionManager::left

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    fmt,
    future::Future,
    net::IpAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use crate::{
    CloseReason, ErrorCode, LeaveReason, Lifecycle, Refusal, RoomPattern, Telemetry,
    account::{Account, Holding, SHARE},
    chain::{RETRY_LATER, unwind},
    clock::{self, AtomicInstant, Instant, Origin},
    control::{ControlDesk, Order},
    lock::Mutex,
    message::{Frame, Kind, Say, check_structure, compact},
    plugin::{BuildError, PrincipalLimits, TlsFacts},
    reaper::{Expire, Watching},
    room::Membership,
    session::Session,
    telemetry::{Hook, HookOutcome, Meter},
};

/// Tasks that one session, with all its stays, may have under way.
const MAX_TASKS: usize = 32;
/// Objects that a manager may send to a session that has not begun yet.
const MAX_EARLY: usize = 16;

/// A kind of session manager, as its table configures it. Derive `Deserialize` with `deny_unknown_fields`.
#[async_trait]
pub trait SessionManagerConfig: DeserializeOwned + Send + 'static {
    /// The table's `kind`.
    const KIND: &'static str;

    /// Makes the manager ready. What it needs may be out of reach for now: that is for [`SessionManager::is_ready`].
    ///
    /// # Errors
    /// One sentence for the operator, with the key at fault and a way out. Nothing starts then.
    async fn build(self, cx: SessionManagerContext) -> Result<Arc<dyn SessionManager>, BuildError>;
}

/// What a session manager is told about the server that it is built for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SessionManagerContext {
    /// The name of its table.
    pub name: String,
    /// The folder that relative paths start from: that of the configuration file.
    pub base: PathBuf,
    /// The table's `timeout`: a `create` or `joined` that takes longer is given up.
    pub timeout: Duration,
    /// For tasks of its own. Sessions end after its drain has begun: who has to tell somebody of that goes on until
    /// the last of them has.
    pub lifecycle: Lifecycle,
    /// Where somebody outside may steer sessions, if the server takes orders from there.
    pub control: Option<ControlDesk>,
    /// For series of its own.
    pub meter: Meter,
}

impl SessionManagerContext {
    /// A context for the table `name` with a timeout of five seconds, without orders from outside; change its fields
    /// as needed.
    #[must_use]
    pub fn new(name: impl Into<String>, base: impl Into<PathBuf>, lifecycle: Lifecycle) -> Self {
        Self {
            name: name.into(),
            base: base.into(),
            timeout: Duration::from_secs(5),
            lifecycle,
            control: None,
            meter: Meter::default(),
        }
    }
}

/// Told of every session that its authenticators let in; see the module's guarantees.
#[async_trait]
pub trait SessionManager: Send + Sync + 'static {
    /// Credentials were right: may the session begin? What is returned is the session's context, which validators and
    /// later hooks see. `control` may be kept and used for as long as the session lives, and already here.
    ///
    /// Dropped at an await when the client hangs up or the time is over: nothing is then told of the session again, so
    /// what was acquired so far must be given back by that drop.
    ///
    /// # Errors
    /// The client is told [`Refused`]'s reason, or to come again.
    async fn create(&self, facts: &AuthFacts, control: &SessionControl)
    -> Result<Context, Refused>;

    /// Whether [`joined`](Self::joined) and [`left`](Self::left) are wanted; asked once for each session. No by
    /// default: joins then wait for nobody.
    fn wants_stays(&self) -> bool {
        false
    }

    /// A session of its is about to enter a room: may it? What is returned is the context of the stay; look-ups in it
    /// go on in that of the session. Dropped as [`create`](Self::create) is, and when the session ends.
    ///
    /// # Errors
    /// The client is told; the session goes on.
    async fn joined(&self, _stay: &Stay) -> Result<Context, Refused> {
        Ok(Context::default())
    }

    /// A stay that was let in is over. Must not block.
    fn left(&self, _stay: &Stay, _cause: EndCause) {}

    /// A session that was let begin is over. Must not block.
    fn ended(&self, facts: &AuthFacts, context: &Context, cause: EndCause);

    /// Reaches for what it needs, once the server has started. What becomes of a failure is for its table's
    /// `on_unreachable` to say. Cancelled after the table's `timeout`.
    ///
    /// # Errors
    /// It can't do its work now, and why, for the operator.
    async fn reach(&self) -> Result<(), String> {
        Ok(())
    }

    /// Whether it could do its work now. Shown in `/readyz`'s answer and a metric; log-ins are tried all the same.
    fn is_ready(&self) -> bool {
        true
    }
}

/// Who begins a session and how, for session managers.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AuthFacts {
    /// Names the session in every call about it. It opens nothing, unlike the session's id.
    pub key: Arc<str>,
    /// The canonical name.
    pub user: Arc<str>,
    /// What the authenticator says that the user may do.
    pub roles: Vec<String>,
    /// The only rooms that it says the user may enter. `None`: all of them; empty: none.
    pub rooms: Option<Vec<RoomPattern>>,
    /// When the session ends at the latest, in milliseconds since the Unix epoch. `None`: no such end.
    pub expires_at: Option<u64>,
    /// The limits that it says hold for the user in place of those of `[limits]`.
    pub limits: PrincipalLimits,
    /// The table of the authenticator that let the user in.
    pub authenticator: Arc<str>,
    /// The table of the transport.
    pub transport: Arc<str>,
    /// The client's address.
    pub address: IpAddr,
    /// The TLS of the connection that logged in, where it has one of its own, with the certificate that the client
    /// showed.
    pub tls: Option<Arc<TlsFacts>>,
    /// The [`key`](Self::key) of a session that the same user still has, if that has a manager too. What becomes of it
    /// is for `duplicate_login` to say.
    pub existing: Option<Arc<str>>,
}

impl AuthFacts {
    /// The facts of a session of `user`, who has no roles, over a transport and by an authenticator without a name;
    /// change the fields as needed.
    #[must_use]
    pub fn new(key: impl Into<Arc<str>>, user: impl Into<Arc<str>>, address: IpAddr) -> Self {
        Self {
            key: key.into(),
            user: user.into(),
            roles: Vec::new(),
            rooms: None,
            expires_at: None,
            limits: PrincipalLimits::default(),
            authenticator: "".into(),
            transport: "".into(),
            address,
            tls: None,
            existing: None,
        }
    }
}

/// Why a manager lets a session, or a stay, not begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// It may not; the client reads the reason.
    Reason(String),
    /// Whoever has to say so can't be asked now.
    Unavailable {
        /// When to come again.
        retry: Duration,
    },
}

/// Why a session, or a stay in a room, is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndCause {
    /// The session ended so.
    Session(CloseReason),
    /// The stay alone ended so.
    Stay(LeaveReason),
    /// It was let begin and then could not, say because the name is in use.
    Refused,
}

impl EndCause {
    /// Whether the session is over, and not the stay alone: `kicked`, for one, may be either.
    #[must_use]
    pub const fn is_of_session(self) -> bool {
        matches!(self, Self::Session(_))
    }

    /// One word: the end code, the reason of the leave, or `refused`.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Session(reason) => reason.code(),
            Self::Stay(reason) => reason.code(),
            Self::Refused => "refused",
        }
    }
}

/// What managers attach to sessions and stays: at most one value of each type. A stay's goes on in its session's.
#[derive(Clone, Default)]
pub struct Context {
    values: HashMap<TypeId, Slot>,
    /// What the values are said to hold elsewhere.
    more: usize,
    parent: Option<Arc<Context>>,
    /// Counts it for as long as somebody has it.
    _held: Option<Arc<Holding>>,
}

/// One value of a context.
#[derive(Clone)]
struct Slot {
    value: Arc<dyn Any + Send + Sync>,
    /// Of the value, where it is the context's alone.
    bytes: usize,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("values", &self.values.len())
            .finish_non_exhaustive()
    }
}

impl Context {
    /// The same with `value`, in place of another of its type.
    #[must_use]
    pub fn with<T: Send + Sync + 'static>(self, value: T) -> Self {
        self.insert(Arc::new(value), SHARE + size_of::<T>())
    }

    /// The same with a value that others keep as well, in place of another of its type.
    #[must_use]
    pub fn with_shared<T: Send + Sync + 'static>(self, value: Arc<T>) -> Self {
        self.insert(value, 0)
    }

    fn insert<T: Send + Sync + 'static>(mut self, value: Arc<T>, bytes: usize) -> Self {
        self.values.insert(TypeId::of::<T>(), Slot { value, bytes });
        self
    }

    /// The same, whose values hold `bytes` more than their own size, such as texts: for [`Stay::bytes`] and
    /// [`SessionControl::bytes`]. Called again, they add up.
    #[must_use]
    pub fn weighing(mut self, bytes: usize) -> Self {
        self.more = self.more.saturating_add(bytes);
        self
    }

    /// About what it takes, without what it goes on in.
    fn bytes(&self) -> usize {
        let slots = self.values.values();
        let slots = slots.map(|slot| size_of::<(TypeId, Slot)>() + slot.bytes);
        let own = SHARE + size_of::<Self>() + slots.sum::<usize>();
        own.saturating_add(self.more)
    }

    /// The value of that type, of the stay or else of its session.
    #[must_use]
    pub fn value<T: Send + Sync + 'static>(&self) -> Option<&T> {
        let own = self.values.get(&TypeId::of::<T>());
        own.and_then(|slot| slot.value.downcast_ref())
            .or_else(|| self.parent.as_ref()?.value())
    }

    /// [`value`](Self::value), to be kept.
    #[must_use]
    pub fn shared<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        match self.values.get(&TypeId::of::<T>()) {
            Some(own) => Arc::clone(&own.value).downcast().ok(),
            None => self.parent.as_ref()?.shared(),
        }
    }

    fn below(mut self, parent: &Arc<Self>) -> Self {
        self.parent = Some(Arc::clone(parent));
        self
    }

    fn kept_for(mut self, account: &Arc<Account>) -> Arc<Self> {
        self._held = Some(Arc::new(account.hold(self.bytes())));
        Arc::new(self)
    }
}

/// What a manager outside of this process attaches, as JSON. A stay's has what its session's has and, over it, its own.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SessionData(pub serde_json::Map<String, serde_json::Value>);

/// What a managed session may do. The default lets everything through.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Filter {
    /// The only rooms its commands may name. `None`: all.
    pub rooms: Option<Vec<RoomPattern>>,
    /// The only commands of `join`, `send`, `signal`, `users` and `history` that it may use; to leave, log out and
    /// ping it is always allowed. `None`: all.
    pub commands: Option<Vec<String>>,
}

impl Filter {
    /// The commands that can be filtered.
    pub const COMMANDS: [&'static str; 5] = ["join", "send", "signal", "users", "history"];

    /// A command is let through.
    pub(crate) fn allows(&self, kind: Kind, room: Option<&str>) -> bool {
        if matches!(kind, Kind::Login | Kind::Leave | Kind::Ping | Kind::Logout) {
            return true;
        }
        let is_named =
            |names: &Vec<String>| names.iter().any(|name| Kind::named(name) == Some(kind));
        let commands = self.commands.as_ref().is_none_or(is_named);
        let is_matched = |patterns: &Vec<RoomPattern>| {
            room.is_none_or(|room| patterns.iter().any(|pattern| pattern.matches(room)))
        };
        commands && self.rooms.as_ref().is_none_or(is_matched)
    }
}

/// A manager's hold on a session. Once the session is over, it does nothing. The default is one on a session that is.
#[derive(Clone, Default)]
pub struct SessionControl {
    session: Weak<Session>,
    managed: Weak<Managed>,
}

/// Why a hold on a session, or on a stay, does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The session is over.
    #[error("the session is over")]
    Over,
    /// It has 32 tasks, or 16 objects wait for it to begin.
    #[error("the session has as many tasks or early objects as it may")]
    Full,
    /// The object would be over `server_frame_bytes`.
    #[error("the object is larger than clients expect")]
    TooLarge,
    /// The object has more than 32 levels, half a surrogate pair, or a number beyond a double.
    #[error("the object is nothing that clients could read")]
    Unfit,
    /// The session is in no such room.
    #[error("the session is not in that room")]
    NotJoined,
}

impl fmt::Debug for SessionControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionControl").finish_non_exhaustive()
    }
}

impl SessionControl {
    fn live(&self) -> Result<(Arc<Session>, Arc<Managed>), ControlError> {
        let session = self
            .session
            .upgrade()
            .filter(|session| session.ended().is_none());
        let managed = self.managed.upgrade().filter(|managed| !managed.is_over());
        session.zip(managed).ok_or(ControlError::Over)
    }

    /// What the session may do from its next command on.
    ///
    /// # Errors
    /// The session is over.
    pub fn set_filter(&self, filter: Filter) -> Result<(), ControlError> {
        let (_, managed) = self.live()?;
        *managed.filter.lock() = Arc::new(filter);
        Ok(())
    }

    /// Silence after which the session expires, in place of the transport's; zero: never. A client is told its timeout
    /// when the session begins, so a shorter one later may surprise it.
    ///
    /// # Errors
    /// The session is over.
    pub fn set_timeout(&self, timeout: Duration) -> Result<(), ControlError> {
        let (session, managed) = self.live()?;
        *managed.timeout.lock() = Some(timeout);
        session.watch_anew();
        Ok(())
    }

    /// Sends the client a `system` object with this `data`. One sent before the session has begun follows its `session`
    /// object.
    ///
    /// # Errors
    /// The session is over, `data` too large, or nothing that a client could read.
    pub fn send(&self, data: &RawValue) -> Result<(), ControlError> {
        let (session, managed) = self.live()?;
        // What somebody else wrote is never passed on as bytes: they may hold line breaks, which end an object.
        check_structure(data.get().as_bytes()).map_err(|_| ControlError::Unfit)?;
        let data = compact(data).map_err(|_| ControlError::Unfit)?;
        let say = Say::System {
            at: session.scope.hub.wall.unix_millis(),
            data: &data,
        };
        let frame = Frame::encode(&say);
        if frame.len() > session.scope.hub.config.limits.server_frame_bytes.0 {
            return Err(ControlError::TooLarge);
        }
        let mut early = managed.early.lock();
        match &mut *early {
            Some(waiting) if waiting.len() >= MAX_EARLY => Err(ControlError::Full),
            Some(waiting) => {
                let held = managed.account.hold(frame.len());
                waiting.push((frame, held));
                Ok(())
            }
            None => {
                drop(early);
                session.tell(frame);
                Ok(())
            }
        }
    }

    /// Runs `task` until it ends or the session does.
    ///
    /// # Errors
    /// The session is over or has 32 tasks.
    pub fn spawn(
        &self,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), ControlError> {
        let (session, managed) = self.live()?;
        let lifecycle = &session.scope.hub.lifecycle;
        managed
            .tasks
            .spawn(lifecycle, &managed.stop, &managed.account, task)
    }

    /// Ends the session's stay in a room: the client gets an unasked `left`, the others a `leave`, both `kicked`.
    ///
    /// # Errors
    /// The session is over, or in no such room.
    pub fn kick(&self, room: &str) -> Result<(), ControlError> {
        let (session, _) = self.live()?;
        let membership = session.membership(room).ok_or(ControlError::NotJoined)?;
        session.evict(&membership, LeaveReason::Kicked);
        Ok(())
    }

    /// Does what somebody outside says. Counted.
    ///
    /// # Errors
    /// Those of the one of the other functions that the order stands for.
    pub fn obey(&self, order: Order) -> Result<(), ControlError> {
        let (session, managed) = self.live()?;
        let name = order.name();
        let done = match order {
            Order::Filter(filter) => self.set_filter(filter),
            Order::Timeout(timeout) => self.set_timeout(timeout),
            Order::Send(data) => self.send(&data),
            Order::Kick(room) => self.kick(&room),
            Order::End => {
                session.end(CloseReason::Kicked);
                Ok(())
            }
        };
        managed
            .telemetry
            .obeyed(&managed.link.name, name, done.is_ok());
        done
    }

    /// Bytes that are held for the session on its manager's account, with those of its [stays](Stay::bytes): contexts,
    /// tasks, what was sent and can't be read yet, and what plug-ins [hold](Self::hold). Zero once the session is over.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.live()
            .map_or(0, |(_, managed)| managed.account.bytes())
    }

    /// Counts `bytes` as held for the session until what is returned is dropped: for what is kept of it elsewhere and
    /// is no [stay's](Stay::hold).
    ///
    /// # Errors
    /// The session is over.
    pub fn hold(&self, bytes: usize) -> Result<Holding, ControlError> {
        let (_, managed) = self.live()?;
        Ok(managed.account.hold(bytes))
    }

    /// Ends the session with `kicked`.
    pub fn end(&self) {
        if let Ok((session, _)) = self.live() {
            session.end(CloseReason::Kicked);
        }
    }
}

/// A session's stay in one room: a session below the session.
#[derive(Clone)]
#[non_exhaustive]
pub struct Stay {
    /// The facts of its session.
    pub facts: Arc<AuthFacts>,
    /// Tells the stays of one session apart, from 1 on: whoever comes back to a room begins another.
    pub number: u64,
    /// The room.
    pub room: Arc<str>,
    /// What [`SessionManager::joined`] returned; before that, what its session has.
    pub context: Arc<Context>,
    control: SessionControl,
    stop: CancellationToken,
    account: Arc<Account>,
}

impl fmt::Debug for Stay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stay")
            .field("facts", &self.facts)
            .field("number", &self.number)
            .field("room", &self.room)
            .finish_non_exhaustive()
    }
}

impl Stay {
    /// A stay of a session that is over, without a context; change the fields as needed.
    #[must_use]
    pub fn new(facts: Arc<AuthFacts>, number: u64, room: impl Into<Arc<str>>) -> Self {
        Self {
            facts,
            number,
            room: room.into(),
            context: Arc::default(),
            control: SessionControl::default(),
            stop: CancellationToken::new(),
            account: Arc::default(),
        }
    }

    /// Bytes that are held for the stay: its own, those of its context with what that is [weighing](Context::weighing),
    /// of the tasks that it has under way, and what plug-ins [hold](Self::hold). All stays of a transport together are
    /// `chinwag_stay_bytes`. Events that wait for the client are not in it: all rooms of a session share one queue.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.account.bytes()
    }

    /// Counts `bytes` as held for the stay until what is returned is dropped, which may be after its end: for what is
    /// kept of it elsewhere.
    pub fn hold(&self, bytes: usize) -> Holding {
        self.account.hold(bytes)
    }

    /// The hold on its session.
    #[must_use]
    pub fn control(&self) -> &SessionControl {
        &self.control
    }

    /// Runs `task` until it ends or the stay does.
    ///
    /// # Errors
    /// The session is over or has 32 tasks.
    pub fn spawn(
        &self,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), ControlError> {
        let (session, managed) = self.control.live()?;
        let lifecycle = &session.scope.hub.lifecycle;
        managed
            .tasks
            .spawn(lifecycle, &self.stop, &self.account, task)
    }

    /// Ends the stay as [`SessionControl::kick`] does.
    ///
    /// # Errors
    /// It is over.
    pub fn end(&self) -> Result<(), ControlError> {
        self.control.kick(&self.room)
    }
}

/// The session manager of an authenticator.
#[derive(Clone)]
pub struct ManagerLink {
    /// The name of its table.
    pub name: Arc<str>,
    /// The manager.
    pub manager: Arc<dyn SessionManager>,
    /// How long `create` and `joined` may take; above, the client is told `unavailable`.
    pub timeout: Duration,
}

impl fmt::Debug for ManagerLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ManagerLink")
            .field("name", &self.name)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// A count of tasks under way.
#[derive(Default)]
struct Tasks(Arc<AtomicUsize>);

impl Tasks {
    fn spawn(
        &self,
        lifecycle: &Lifecycle,
        stop: &CancellationToken,
        account: &Arc<Account>,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), ControlError> {
        struct Done(Arc<AtomicUsize>);
        impl Drop for Done {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::AcqRel);
            }
        }
        if self.0.fetch_add(1, Ordering::AcqRel) >= MAX_TASKS {
            self.0.fetch_sub(1, Ordering::AcqRel);
            return Err(ControlError::Full);
        }
        let (done, stop) = (Done(Arc::clone(&self.0)), stop.clone());
        let held = account.hold(size_of_val(&task));
        lifecycle.spawn(async move {
            let _done = (done, held);
            stop.run_until_cancelled(task).await;
        });
        Ok(())
    }
}

/// What is kept of a session that has a manager.
pub(crate) struct Managed {
    link: ManagerLink,
    telemetry: Arc<Telemetry>,
    pub(crate) facts: Arc<AuthFacts>,
    /// Set when `create` has said yes: `ended` is owed from then on.
    context: OnceLock<Arc<Context>>,
    wants_stays: bool,
    filter: Mutex<Arc<Filter>>,
    timeout: Mutex<Option<Duration>>,
    /// Objects for a client that has not read its `session` yet; `None` from then on.
    early: Mutex<Option<Vec<(Frame, Holding)>>>,
    tasks: Tasks,
    stop: CancellationToken,
    owed: Mutex<Owed>,
    control: SessionControl,
    /// How many stays it has asked about.
    stays: AtomicU64,
    account: Arc<Account>,
}

/// What a manager is still to be told of a session.
#[derive(Default)]
struct Owed {
    /// Stays that it has been asked about and not been told the end of.
    stays: usize,
    /// The session is over. There are no further stays from then on, and with the last of them gone that is told.
    end: Option<EndCause>,
}

/// A stay that a manager has been asked about. Until it is dropped the end of its session is not told.
struct OpenStay(Arc<Managed>);

impl Drop for OpenStay {
    fn drop(&mut self) {
        let end = {
            let mut owed = self.0.owed.lock();
            owed.stays -= 1;
            owed.end.filter(|_| owed.stays == 0)
        };
        if let Some(cause) = end {
            self.0.tell_ended(cause);
        }
    }
}

impl fmt::Debug for Managed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Managed")
            .field("facts", &self.facts)
            .finish_non_exhaustive()
    }
}

impl Managed {
    pub(crate) fn new(link: &ManagerLink, session: &Arc<Session>, facts: AuthFacts) -> Arc<Self> {
        Arc::new_cyclic(|managed| Self {
            wants_stays: link.manager.wants_stays(),
            link: link.clone(),
            telemetry: Arc::clone(&session.scope.hub.telemetry),
            facts: Arc::new(facts),
            context: OnceLock::new(),
            filter: Mutex::default(),
            timeout: Mutex::new(None),
            early: Mutex::new(Some(Vec::new())),
            tasks: Tasks::default(),
            stop: CancellationToken::new(),
            owed: Mutex::default(),
            control: SessionControl {
                session: Arc::downgrade(session),
                managed: Weak::clone(managed),
            },
            stays: AtomicU64::new(0),
            account: Arc::default(),
        })
    }

    /// Asks whether the session may begin.
    pub(crate) async fn create(&self) -> Result<(), Refusal> {
        let asked = async { self.link.manager.create(&self.facts, &self.control).await };
        let context = self.ask(Hook::Create, asked).await?;
        let _ = self.context.set(context.kept_for(&self.account));
        Ok(())
    }

    /// A stay that is about to be asked about; `None`: the session is over.
    fn open_stay(self: &Arc<Self>) -> Option<OpenStay> {
        let mut owed = self.owed.lock();
        if owed.end.is_some() {
            return None;
        }
        owed.stays += 1;
        Some(OpenStay(Arc::clone(self)))
    }

    /// Asks about a stay. `None`: the session has ended meanwhile, and waits for no answer.
    async fn joined(&self, stay: &Stay) -> Option<Result<Context, Refusal>> {
        let asked = async { self.link.manager.joined(stay).await };
        let asked = self.ask(Hook::Joined, asked);
        self.stop.run_until_cancelled(asked).await
    }

    /// Waits for what is `asked`, in its time. A panic of its is counted and stops here.
    async fn ask(
        &self,
        hook: Hook,
        asked: impl Future<Output = Result<Context, Refused>>,
    ) -> Result<Context, Refusal> {
        let began = clock::now();
        let asked = tokio::time::timeout(self.link.timeout, unwind(asked)).await;
        let (answer, outcome) = match asked {
            Ok(Some(answer)) => {
                let outcome = match &answer {
                    Ok(_) => HookOutcome::Ok,
                    Err(Refused::Reason(_)) => HookOutcome::Refused,
                    Err(Refused::Unavailable { .. }) => HookOutcome::Unavailable,
                };
                (answer, outcome)
            }
            Ok(None) => {
                self.log_panic(hook);
                let retry = RETRY_LATER;
                (Err(Refused::Unavailable { retry }), HookOutcome::Failed)
            }
            Err(_) => {
                tracing::warn!(session_manager = %self.link.name, hook = hook.label(), timeout = ?self.link.timeout, "A session manager overran its time.");
                let retry = RETRY_LATER;
                (
                    Err(Refused::Unavailable { retry }),
                    HookOutcome::Unavailable,
                )
            }
        };
        self.telemetry
            .hook(&self.link.name, hook, outcome, began.elapsed());
        answer.map_err(|refused| match refused {
            Refused::Reason(reason) => Refusal::new(ErrorCode::SessionRefused, reason),
            Refused::Unavailable { retry } => {
                let message = "What has to allow it can't be asked now; try again after retry_ms.";
                Refusal::new(ErrorCode::Unavailable, message).retry(retry)
            }
        })
    }

    /// Calls a hook that only listens. A panic of its is counted and stops here.
    fn notify(&self, hook: Hook, call: impl FnOnce()) {
        let began = clock::now();
        let outcome = if catch_unwind(AssertUnwindSafe(call)).is_ok() {
            HookOutcome::Ok
        } else {
            self.log_panic(hook);
            HookOutcome::Failed
        };
        self.telemetry
            .hook(&self.link.name, hook, outcome, began.elapsed());
    }

    fn log_panic(&self, hook: Hook) {
        tracing::error!(session_manager = %self.link.name, hook = hook.label(), "A session manager panicked.");
    }

    pub(crate) fn filter(&self) -> Arc<Filter> {
        Arc::clone(&self.filter.lock())
    }

    pub(crate) fn timeout(&self) -> Option<Duration> {
        *self.timeout.lock()
    }

    /// What was sent before the client could read it, to be told before this is asked again; `None` if there is no more,
    /// and from then on it goes at once. Until then nothing overtakes what was taken.
    pub(crate) fn take_early(&self) -> Option<Vec<(Frame, Holding)>> {
        let mut early = self.early.lock();
        if early.as_ref().is_some_and(Vec::is_empty) {
            *early = None;
        }
        early.as_mut().map(std::mem::take)
    }

    pub(crate) fn context(&self) -> Option<&Arc<Context>> {
        self.context.get()
    }

    pub(crate) fn wants_stays(&self) -> bool {
        self.wants_stays
    }

    fn is_over(&self) -> bool {
        self.owed.lock().end.is_some()
    }

    /// The session is over: its tasks stop and, once, the manager is told, as soon as no stay is left to be told of.
    pub(crate) fn end(&self, cause: EndCause) {
        let is_last = {
            let mut owed = self.owed.lock();
            if owed.end.is_some() {
                return;
            }
            owed.end = Some(cause);
            owed.stays == 0
        };
        self.stop.cancel();
        if is_last {
            self.tell_ended(cause);
        }
    }

    fn tell_ended(&self, cause: EndCause) {
        if let Some(context) = self.context.get() {
            self.notify(Hook::Ended, || {
                self.link.manager.ended(&self.facts, context, cause);
            });
        }
    }
}

impl Drop for Managed {
    /// Whoever lost the session without ending it, by a panic, still owes the manager its notice.
    fn drop(&mut self) {
        self.end(EndCause::Session(CloseReason::Disconnected));
    }
}

/// What is kept of a stay that has a manager, or a time of its own.
pub(crate) struct Child {
    session: Weak<Session>,
    account: Arc<Account>,
    _held: Holding,
    /// What its manager knows of it.
    stay: Option<Stay>,
    /// Its end is owed to its manager.
    open: Mutex<Option<OpenStay>>,
    /// Zero: none.
    timeout: Duration,
    active: AtomicInstant,
    origin: Origin,
    watching: Mutex<Option<Watching>>,
}

impl Child {
    /// Asks the session's manager about a stay in `room`, which has `timeout` of silence. `None`: nobody wants to know
    /// of it and nothing ends it alone, or the session is over.
    pub(crate) async fn ask(
        session: &Arc<Session>,
        managed: Option<Arc<Managed>>,
        room: &str,
        timeout: Duration,
    ) -> Result<Option<Box<Self>>, Refusal> {
        let managed = managed.filter(|managed| managed.wants_stays());
        if managed.is_none() && timeout.is_zero() {
            return Ok(None);
        }
        let above = managed.as_ref().map(|managed| Arc::clone(&managed.account));
        let account = Account::told(session.scope.metrics.stay_bytes.clone(), above);
        let held = account.hold(size_of::<Self>() + SHARE + size_of::<Account>());
        let (stay, open) = match managed {
            None => (None, None),
            Some(managed) => {
                // Dropped after what is asked, wherever this ends.
                let Some(open) = managed.open_stay() else {
                    return Ok(None);
                };
                let parent = managed.context().map(Arc::clone).unwrap_or_default();
                let mut stay = Stay {
                    facts: Arc::clone(&managed.facts),
                    number: managed.stays.fetch_add(1, Ordering::Relaxed) + 1,
                    room: room.into(),
                    context: Arc::clone(&parent),
                    control: managed.control.clone(),
                    stop: managed.stop.child_token(),
                    account: Arc::clone(&account),
                };
                let Some(context) = managed.joined(&stay).await else {
                    return Ok(None);
                };
                stay.context = context?.below(&parent).kept_for(&account);
                (Some(stay), Some(open))
            }
        };
        let origin = session.scope.hub.origin;
        Ok(Some(Box::new(Self {
            session: Arc::downgrade(session),
            account,
            _held: held,
            stay,
            open: Mutex::new(open),
            timeout,
            active: AtomicInstant::new(origin, clock::now()),
            origin,
            watching: Mutex::new(None),
        })))
    }

    /// Has the stay end when nothing is heard of it for too long.
    pub(crate) fn watch(&self, membership: &Arc<Membership>) {
        if self.timeout.is_zero() {
            return;
        }
        if let Some(session) = self.session.upgrade() {
            let at = clock::now() + self.timeout;
            *self.watching.lock() = Some(session.scope.hub.stays.watch(membership, at));
        }
    }

    /// A command named the room.
    pub(crate) fn touch(&self) {
        self.active.store(self.origin, clock::now());
    }

    pub(crate) fn context(&self) -> Option<&Arc<Context>> {
        self.stay.as_ref().map(|stay| &stay.context)
    }

    /// Whose the bytes of the stay are.
    pub(crate) fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// The stay is over: its tasks stop and, once, the manager is told. No lock is held by the caller.
    pub(crate) fn end(&self, cause: EndCause) {
        let watching = self.watching.lock().take();
        drop(watching);
        let open = self.open.lock().take();
        if let (Some(stay), Some(open)) = (&self.stay, open) {
            stay.stop.cancel();
            let managed = &open.0;
            managed.notify(Hook::Left, || managed.link.manager.left(stay, cause));
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end(EndCause::Refused);
    }
}

impl Expire for Membership {
    fn expire(self: Arc<Self>, now: Instant) -> Option<Instant> {
        let child = self.child.get()?;
        let due = child.active.load(child.origin) + child.timeout;
        if now < due {
            return Some(due);
        }
        if let Some(session) = child.session.upgrade() {
            session.evict(&self, LeaveReason::Expired);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_shares_what_it_keeps_and_goes_on_in_the_one_it_lies_below() {
        let (team, seat) = (Arc::new("red".to_owned()), Arc::new(7_u8));
        let session = Arc::new(Context::default().with_shared(Arc::clone(&team)).with(1_u8));
        let stay = Context::default()
            .with_shared(Arc::clone(&seat))
            .below(&session);
        assert!(Arc::ptr_eq(&stay.shared().expect("of the session"), &team));
        assert!(Arc::ptr_eq(&stay.shared().expect("its own"), &seat));
        assert_eq!((stay.value(), session.value()), (Some(&7_u8), Some(&1_u8)));
        assert!(stay.shared::<u32>().is_none());
    }
}
