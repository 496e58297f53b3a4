//! What applications hold: the client, and its two halves.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

use crate::{
    ConnectError, End, EndCode, Error, Loss,
    address::{Address, Transport},
    lines, polling, push,
    stream::{Server, within},
    tls::TlsFiles,
    websocket,
    wire::{Bye, Event, Fields, Init, Object, Refusal, Sent, Session, Users},
};

/// Commands that wait for the connection to take them; whoever sends more waits with them.
const ORDERS: usize = 16;
/// What a server reads before log-in.
const STRANGER_BYTES: usize = 8 << 10;

/// The first `id` that clients number their own commands with; below it are those for [`Handle::ask`].
pub const FIRST_OWN_ID: u64 = 1 << 52;

/// How a client behaves. Every wait has a limit.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long connecting may take, with reading files, TLS and the handshake of the transport. Default: 10 s.
    pub connect_timeout: Duration,
    /// How long a command waits for its answer; and how long nothing may come after a ping until the connection counts
    /// as lost. Default: 10 s.
    pub answer_timeout: Duration,
    /// How many events wait to be read; at least 1. Default: 256.
    pub event_queue: usize,
    /// The most bytes of what the server sends at once, an object or the answer to a poll, even where the server says
    /// that its own are larger. Default: 4 MiB.
    pub most_bytes: usize,
    /// How long a poll waits for events at the server, which may cut it; at least a second. Default: 25 s.
    pub poll_wait: Duration,
    /// Puts every answer into the stream of events as well, as [`Event::Other`] where it is no event, and the `bye`
    /// too. For those who want all that the server says, in order; see [`Events::next_object`]. Default: no.
    pub answers_too: bool,
    /// Whom to believe and what to show over TLS. With a URL for plain text, files named here are an error. Default:
    /// whom the system believes, and nothing.
    pub tls: TlsFiles,
    /// Sends passwords and tokens in plain text (`tcp://`, `ws://`, `http://`) to other machines, too. Where this is
    /// not set such a log-in is [`Error::Exposed`]. This machine is `localhost` and its loopback addresses. Leaves out
    /// no check of TLS. Default: no.
    pub insecure: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            answer_timeout: Duration::from_secs(10),
            event_queue: 256,
            most_bytes: 4 << 20,
            poll_wait: Duration::from_secs(25),
            answers_too: false,
            tls: TlsFiles::default(),
            insecure: false,
        }
    }
}

/// Who wants in.
#[derive(Clone, Default, Serialize)]
pub struct Login {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<Box<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<Box<str>>,
    protocol: u32,
}

impl Login {
    /// Under a name, as guests come in.
    #[must_use]
    pub fn name(user: &str) -> Self {
        Self {
            user: Some(user.into()),
            protocol: 1,
            ..Self::default()
        }
    }

    /// With a name and its password.
    #[must_use]
    pub fn password(user: &str, password: &str) -> Self {
        Self {
            password: Some(password.into()),
            ..Self::name(user)
        }
    }

    /// As whom the client's certificate names; see [`TlsFiles::identity`].
    #[must_use]
    pub fn certificate() -> Self {
        Self {
            protocol: 1,
            ..Self::default()
        }
    }

    /// With a token.
    #[must_use]
    pub fn token(token: &str) -> Self {
        Self {
            token: Some(token.into()),
            protocol: 1,
            ..Self::default()
        }
    }

    fn is_secret(&self) -> bool {
        self.password.is_some() || self.token.is_some()
    }
}

impl fmt::Debug for Login {
    /// Without what is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// A connection to a server, with all that one does on it.
///
/// Commands take `&self`; only [`next`](Self::next) wants the client for itself. To send and to read at the same time,
/// [split](Self::split) it.
#[derive(Debug)]
pub struct Client {
    handle: Handle,
    events: Events,
}

impl Client {
    /// Connects to `tcp://host[:port]` (4020), `ws://host[:port][/path]` (80, `/v1/ws`) or `http://host[:port][/base]`
    /// (80; polling), or with TLS to `tls://` (4020), `wss://` or `https://` (443), and starts the task that owns the
    /// connection. Nobody is logged in yet.
    ///
    /// Over TLS, 1.2 or 1.3, the server's certificate has to be for the URL's host, a name or an address.
    ///
    /// Not to be used outside of a tokio runtime with I/O and time.
    ///
    /// # Errors
    /// The URL or a file can't be used, nobody answers, whoever does is not to be trusted, or speaks something else. A
    /// server that refuses this client's certificate often says so in answer to the first command only:
    /// [`Loss::Tls`].
    pub async fn connect(url: &str, options: Options) -> Result<Self, ConnectError> {
        let address = Address::parse(url)?;
        let (order, orders) = mpsc::channel(ORDERS);
        let (event, events) = mpsc::channel(options.event_queue.max(1));
        let exposed = address.is_exposed() && !options.insecure;
        let exposed = exposed.then(|| address.to_string().into());
        let server = Server::new(address, &options).await?;
        let shared = Arc::new(Shared {
            options,
            exposed,
            next_id: AtomicU64::new(FIRST_OWN_ID),
            session: OnceLock::new(),
            end: OnceLock::new(),
        });
        let outlet = Outlet {
            objects: event,
            shared: Arc::clone(&shared),
        };
        let options = &shared.options;
        match server.address.transport {
            Transport::Tcp => {
                let link = lines::link(within(&server.address, options, server.connect()).await?);
                run(push::drive(link, orders, outlet));
            }
            Transport::WebSocket => {
                let upgraded = websocket::connect(&server, options);
                let link = within(&server.address, options, upgraded).await?;
                run(push::drive(link, orders, outlet));
            }
            Transport::Polling => {
                let link = polling::connect(server, options).await?;
                run(polling::drive(link, orders, outlet));
            }
        }
        Ok(Self {
            handle: Handle {
                orders: order,
                shared: Arc::clone(&shared),
            },
            events: Events {
                objects: events,
                shared,
            },
        })
    }

    /// The two halves, which may go to different tasks.
    #[must_use]
    pub fn split(self) -> (Handle, Events) {
        (self.handle, self.events)
    }

    /// The half that sends commands.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// See [`Events::next`].
    ///
    /// # Errors
    /// The connection has ended.
    pub async fn next(&mut self) -> Result<Event, End> {
        self.events.next().await
    }

    /// See [`Handle::login`].
    ///
    /// # Errors
    /// As there.
    pub async fn login(&self, login: Login) -> Result<Session, Error> {
        self.handle.login(login).await
    }

    /// See [`Handle::join`].
    ///
    /// # Errors
    /// As there.
    pub async fn join<'a>(&self, room: impl Into<Option<&'a str>>) -> Result<Init, Error> {
        self.handle.join(room).await
    }

    /// See [`Handle::send`].
    ///
    /// # Errors
    /// As there.
    pub async fn send(&self, room: &str, text: &str) -> Result<Sent, Error> {
        self.handle.send(room, text).await
    }

    /// See [`Handle::leave`].
    ///
    /// # Errors
    /// As there.
    pub async fn leave(&self, room: &str) -> Result<(), Error> {
        self.handle.leave(room).await
    }

    /// See [`Handle::users`].
    ///
    /// # Errors
    /// As there.
    pub async fn users(&self, room: &str, after: Option<&str>) -> Result<Users, Error> {
        self.handle.users(room, after).await
    }

    /// See [`Handle::logout`].
    ///
    /// # Errors
    /// As there.
    pub async fn logout(&self) -> Result<Bye, Error> {
        self.handle.logout().await
    }
}

/// The half that sends commands. Clones are the same connection.
///
/// **Cancel safety** of all commands: who stops waiting does not take a command back; it may or may not be carried out,
/// and its answer is dropped.
#[derive(Clone)]
pub struct Handle {
    orders: mpsc::Sender<Order>,
    shared: Arc<Shared>,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

impl Handle {
    /// Logs in: the first command on a connection. It may be repeated after a refusal, as often as the server allows.
    ///
    /// # Errors
    /// Refused (`auth_failed`, `name_in_use`, …), [`Error::Exposed`], or as any command.
    pub async fn login(&self, login: Login) -> Result<Session, Error> {
        if login.is_secret() {
            self.may_tell_secrets()?;
        }
        self.command(Work::Login, "login", &login).await
    }

    /// Whether a log-in with a password or a token would be sent: to be asked before somebody is asked for one.
    ///
    /// # Errors
    /// [`Error::Exposed`] where it would not.
    pub fn may_tell_secrets(&self) -> Result<(), Error> {
        let exposed = self.shared.exposed.clone();
        exposed.map_or(Ok(()), |url| Err(Error::Exposed(url)))
    }

    /// The session, once logged in.
    #[must_use]
    pub fn session(&self) -> Option<&Session> {
        self.shared.session.get()
    }

    /// How the connection ended, once it has.
    #[must_use]
    pub fn end(&self) -> Option<&End> {
        self.shared.end.get()
    }

    /// Joins a room; `None`: the server's default room, where it has one. The same is in the stream of events, before
    /// all events of the room. Joining a room again gives a fresh picture of it.
    ///
    /// # Errors
    /// Refused (`room_invalid`, `forbidden`, `too_many`, …), or as any command.
    pub async fn join<'a>(&self, room: impl Into<Option<&'a str>>) -> Result<Init, Error> {
        let room = InRoom { room: room.into() };
        self.command(Work::Join, "join", &room).await
    }

    /// Says something. `Ok` means that the room has it.
    ///
    /// # Errors
    /// Refused (`not_joined`, `message_too_long`, `rate_limited`, …), or as any command.
    pub async fn send(&self, room: &str, text: &str) -> Result<Sent, Error> {
        let message = NewMessage::<()> {
            room,
            text: Some(text),
            data: None,
        };
        self.command(Work::Other, "send", &message).await
    }

    /// Says something to programs: `data` is any JSON, and `text` may go with it.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn send_data(
        &self,
        room: &str,
        text: Option<&str>,
        data: &impl Serialize,
    ) -> Result<Sent, Error> {
        let message = NewMessage {
            room,
            text,
            data: Some(data),
        };
        self.command(Work::Other, "send", &message).await
    }

    /// Leaves a room. Nothing of it comes after [`Event::Left`].
    ///
    /// # Errors
    /// Refused (`not_joined`), or as any command.
    pub async fn leave(&self, room: &str) -> Result<(), Error> {
        let room = InRoom { room: Some(room) };
        self.command::<crate::Left>(Work::Leave, "leave", &room)
            .await
            .map(drop)
    }

    /// A page of the names in a room, in order: those after `after`, or the first ones.
    ///
    /// # Errors
    /// Refused (`not_joined`), or as any command.
    pub async fn users(&self, room: &str, after: Option<&str>) -> Result<Users, Error> {
        let page = Page { room, after };
        self.command(Work::Other, "users", &page).await
    }

    /// Asks for a sign of life; how long it took. Pings that the server wants are sent without this.
    ///
    /// # Errors
    /// As any command.
    pub async fn ping(&self) -> Result<Duration, Error> {
        let asked = Instant::now();
        let nothing = serde_json::Map::new();
        self.command::<serde::de::IgnoredAny>(Work::Other, "ping", &nothing)
            .await?;
        Ok(asked.elapsed())
    }

    /// Leaves all rooms and ends the session; what was already on its way still comes as events, then the end.
    ///
    /// # Errors
    /// As any command, but for a session that this has ended.
    pub async fn logout(&self) -> Result<Bye, Error> {
        let nothing = serde_json::Map::new();
        match self.command(Work::Logout, "logout", &nothing).await {
            Err(Error::Ended(End::Bye(bye))) if bye.code == EndCode::Logout => Ok(bye),
            other => other,
        }
    }

    /// Sends any command, also one that this version does not know, and gives the answer, also an `error`.
    ///
    /// The fields are sent as they are. Where there is no `id`, the client puts in one of its own. An `id` is an integer
    /// below [`FIRST_OWN_ID`] that no command under way has.
    ///
    /// # Errors
    /// As any command, but for a refusal; [`Error::Exposed`] for a log-in.
    pub async fn ask(&self, mut fields: Fields) -> Result<Object, Error> {
        let kind = fields
            .field("type")
            .and_then(|kind| serde_json::from_str::<String>(kind.get()).ok());
        let work = match kind.as_deref() {
            Some("login") => Work::Login,
            Some("join") => Work::Join,
            Some("leave") => Work::Leave,
            Some("logout") => Work::Logout,
            _ => Work::Other,
        };
        let is_secret = |field| fields.field(field).is_some();
        if work == Work::Login && ["password", "token", "resume"].into_iter().any(is_secret) {
            self.may_tell_secrets()?;
        }
        let id = match fields.field("id") {
            Some(id) => id
                .get()
                .parse()
                .ok()
                .filter(|id| *id < FIRST_OWN_ID)
                .ok_or_else(|| Error::Id(id.get().into()))?,
            None => {
                let id = self.shared.next_id();
                let number = RawValue::from_string(id.to_string()).expect("a number is JSON");
                fields.set("id", Some(number));
                id
            }
        };
        self.order(work, id, fields.to_string()).await
    }

    async fn command<T: DeserializeOwned>(
        &self,
        work: Work,
        kind: &str,
        fields: &impl Serialize,
    ) -> Result<T, Error> {
        #[derive(Serialize)]
        struct Command<'a, F> {
            r#type: &'a str,
            id: u64,
            #[serde(flatten)]
            fields: &'a F,
        }
        let id = self.shared.next_id();
        let command = Command {
            r#type: kind,
            id,
            fields,
        };
        let json = serde_json::to_string(&command)
            .map_err(|error| Error::Senseless(format!("data that is no JSON: {error}")))?;
        let answer = self.order(work, id, json).await?;
        if answer.kind() == "error" {
            return Err(answer
                .read::<Refusal>()
                .map_or_else(senseless, Error::Refused));
        }
        answer.read().map_err(senseless)
    }

    async fn order(&self, work: Work, id: u64, json: String) -> Result<Object, Error> {
        let shared = &self.shared;
        let limit = match shared.session.get() {
            Some(session) => session.limits.frame_bytes,
            None => STRANGER_BYTES,
        };
        if json.len() > limit {
            let bytes = json.len();
            return Err(Error::TooLarge { bytes, limit });
        }
        let (answer, answered) = oneshot::channel();
        let order = Order {
            work,
            id,
            json,
            answer,
        };
        let done = async {
            let sent = self.orders.send(order).await;
            sent.map_err(|_| shared.ended())?;
            answered.await.map_err(|_| shared.ended())?
        };
        let patience = shared.options.answer_timeout;
        timeout(patience, done)
            .await
            .unwrap_or(Err(Error::NoAnswer(patience)))
    }
}

fn senseless(error: serde_json::Error) -> Error {
    Error::Senseless(error.to_string())
}

/// The half that reads events.
pub struct Events {
    objects: mpsc::Receiver<Object>,
    shared: Arc<Shared>,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    /// The next event. After the last one, how the connection ended, now and ever after.
    ///
    /// **Cancel safe**: no event is lost.
    ///
    /// # Errors
    /// The connection has ended, by the server's goodbye or without.
    pub async fn next(&mut self) -> Result<Event, End> {
        self.next_object().await.map(|object| object.event())
    }

    /// The same, as the server wrote it.
    ///
    /// **Cancel safe**: no event is lost.
    ///
    /// # Errors
    /// The connection has ended, by the server's goodbye or without.
    pub async fn next_object(&mut self) -> Result<Object, End> {
        match self.objects.recv().await {
            Some(object) => Ok(object),
            None => Err(self.shared.told_end()),
        }
    }
}

/// What a transport has to know of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    Login,
    Join,
    Leave,
    Logout,
    /// A ping of the client's own.
    Ping,
    Other,
}

/// A command on its way to the task that owns the connection.
#[derive(Debug)]
pub(crate) struct Order {
    pub(crate) work: Work,
    pub(crate) id: u64,
    pub(crate) json: String,
    pub(crate) answer: oneshot::Sender<Result<Object, Error>>,
}

/// What the halves and the task have in common.
pub(crate) struct Shared {
    pub(crate) options: Options,
    /// The URL, where no secret may go.
    exposed: Option<Box<str>>,
    next_id: AtomicU64,
    pub(crate) session: OnceLock<Session>,
    end: OnceLock<End>,
}

impl Shared {
    /// The `id` that the next command gets.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// The most bytes of one object from the server.
    pub(crate) fn object_bytes(&self) -> usize {
        let told = self
            .session
            .get()
            .map_or(64 << 10, |session| session.limits.server_frame_bytes);
        told.min(self.options.most_bytes)
    }

    fn told_end(&self) -> End {
        // The task says how it ended before it drops its ends of the queues; else the runtime has dropped the task.
        let end = self.end.get().cloned();
        end.unwrap_or(End::Lost(Loss::Closed))
    }

    fn ended(&self) -> Error {
        Error::Ended(self.told_end())
    }
}

/// Where the task puts what came.
pub(crate) struct Outlet {
    objects: mpsc::Sender<Object>,
    pub(crate) shared: Arc<Shared>,
}

impl Outlet {
    /// Whether the stream of events wants an answer too.
    pub(crate) fn wants(&self, object: &Object) -> bool {
        self.shared.options.answers_too || matches!(object.kind(), "init" | "left")
    }

    /// Waits for a place in the queue, and for no place where nobody reads any more.
    ///
    /// **Cancel safe**: the object is put only when this is done.
    pub(crate) async fn put(&self, object: &mut Option<Object>) {
        let place = self.objects.reserve().await;
        if let (Ok(place), Some(object)) = (place, object.take()) {
            place.send(object);
        }
    }

    /// Done when nobody reads events any more.
    pub(crate) async fn deserted(&self) {
        self.objects.closed().await;
    }

    /// Says how it ended; the first word holds.
    pub(crate) fn end(&self, end: End) {
        let _ = self.shared.end.set(end);
    }

    /// Takes note of what an answer to a log-in says.
    pub(crate) fn note(&self, object: &Object) {
        if object.kind() == "session"
            && let Ok(session) = object.read()
        {
            let _ = self.shared.session.set(session);
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a client has no life cycle to wait for its task: that ends with its connection"
)]
pub(crate) fn run(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

#[derive(Serialize)]
struct InRoom<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    room: Option<&'a str>,
}

#[derive(Serialize)]
struct NewMessage<'a, D> {
    room: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a D>,
}

#[derive(Serialize)]
struct Page<'a> {
    room: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<&'a str>,
}
