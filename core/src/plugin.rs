//! The seam for what others may bring: authenticators and validators.
//!
//! A plugin is a configuration type that knows how to build itself: `kind` in its table picks the type, the rest of
//! the table is the type. Transports have the same pair of traits in `chinwag-transports`, since they touch sockets.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use secrecy::SecretString;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::{
    Lifecycle, Revocations, RoomPattern,
    config::{Rate, Size},
    lock::Mutex,
};

pub use crate::{
    account::Holding,
    control::{ControlDesk, NoPass, Order, Pass},
    manager::{
        AuthFacts, Context, ControlError, EndCause, Filter, ManagerLink, Refused, SessionControl,
        SessionData, SessionManager, SessionManagerConfig, SessionManagerContext, Stay,
    },
    telemetry::Meter,
};

/// A kind of authenticator, as its table configures it. Derive `Deserialize` with `deny_unknown_fields`.
#[async_trait]
pub trait AuthenticatorConfig: DeserializeOwned + Send + 'static {
    /// The table's `kind`.
    const KIND: &'static str;

    /// Makes the authenticator ready: reads its files, checks what its table says against the rest.
    ///
    /// # Errors
    /// One sentence for the operator, with the key at fault and a way out. Nothing starts then.
    async fn build(self, cx: AuthenticatorContext) -> Result<Arc<dyn Authenticator>, BuildError>;
}

/// What an authenticator is told about the server that it is built for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct AuthenticatorContext {
    /// The name of its table.
    pub name: String,
    /// The folder that relative paths start from: that of the configuration file.
    pub base: PathBuf,
    /// The transports that ask it and can be reached from other machines.
    pub public_transports: Vec<String>,
    /// Whether authenticators of other kinds are configured beside it.
    pub has_others: bool,
    /// The table's `timeout`: a verdict that takes longer is given up. Who asks elsewhere stays below it.
    pub timeout: Duration,
    /// For tasks of its own, such as watching a file.
    pub lifecycle: Lifecycle,
    /// To end sessions whose principal is no longer good.
    pub revocations: Revocations,
    /// For series of its own.
    pub meter: Meter,
    /// For what the operator should hear of a table that is in order.
    pub warnings: Warnings,
}

impl AuthenticatorContext {
    /// A context for the table `name`, alone on a loopback server and with a timeout of five seconds; change its
    /// fields as needed.
    #[must_use]
    pub fn new(name: impl Into<String>, base: impl Into<PathBuf>, lifecycle: Lifecycle) -> Self {
        Self {
            name: name.into(),
            base: base.into(),
            public_transports: Vec::new(),
            has_others: false,
            timeout: Duration::from_secs(5),
            lifecycle,
            revocations: Revocations::default(),
            meter: Meter::default(),
            warnings: Warnings::default(),
        }
    }
}

/// What the operator is told of a table from which something was built all the same: at each start, and by
/// `chinwag check` with the place. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Warnings(Arc<Mutex<Vec<(&'static str, String)>>>);

impl Warnings {
    /// Says one sentence about a `key` of the table. Only before the plugin is built: later nobody looks.
    pub fn add(&self, key: &'static str, message: impl Into<String>) {
        self.0.lock().push((key, message.into()));
    }

    /// What was said so far, keys and sentences, once.
    #[must_use]
    pub fn take(&self) -> Vec<(&'static str, String)> {
        std::mem::take(&mut self.0.lock())
    }
}

/// Why a plugin could not be built, in one sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct BuildError {
    /// The key of its table that is at fault, where one is.
    pub key: Option<&'static str>,
    message: String,
}

impl BuildError {
    /// An error about the plugin as a whole.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            key: None,
            message: message.into(),
        }
    }

    /// An error about one key of its table.
    #[must_use]
    pub fn key(key: &'static str, message: impl Into<String>) -> Self {
        Self {
            key: Some(key),
            message: message.into(),
        }
    }
}

/// Says who a peer is.
#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    /// Judges one log-in. Cancelled when it takes longer than the table's `timeout`; the verdict is then
    /// [`Verdict::Unavailable`].
    ///
    /// A denial is the peer's fault and counts against it; [`Verdict::Unavailable`] is ours and never does. Takes the
    /// same time for an unknown user as for a wrong password. A log-in whose client has gone is judged to its end, so
    /// that guessing and hanging up is not free.
    async fn authenticate(&self, request: &AuthRequest) -> Verdict;

    /// Does what [`authenticate`](Self::authenticate) does for a user that it does not know, for the cost alone. Called
    /// when an authenticator before it in the chain has denied a password: by its time such an answer must not differ
    /// from that to an unknown user, whom all are asked about. Cancelled like `authenticate`. Default: nothing.
    async fn pretend(&self, _request: &AuthRequest) {}

    /// What it puts before the names that clients choose, see [`PrincipalName::Chosen`]. Names that anybody vouches for
    /// must not begin with it, in any case or look: they are refused, since a guest could sit on them. Asked once.
    /// Default, as with an empty one: none.
    fn guest_prefix(&self) -> Option<&str> {
        None
    }

    /// The headers of HTTP requests that it wants to see in [`AuthRequest::headers`], in any case. Asked once. Default:
    /// none.
    fn headers(&self) -> &[String] {
        &[]
    }
}

/// One log-in, as an authenticator sees it.
///
/// Whether its user has a session already is not in it: whose log-in it is, is what the authenticator is asked. Session
/// managers are told, by [`AuthFacts::existing`].
#[derive(Debug)]
#[non_exhaustive]
pub struct AuthRequest {
    /// What the peer presents.
    pub credentials: Credentials,
    /// The name of the transport's table.
    pub transport: Arc<str>,
    /// The client's address, as the transport's `client_address` names it.
    pub address: IpAddr,
    /// Headers of the HTTP request that the log-in came with, each name once and in lower case: those that some
    /// authenticator of the transport asks for with [`Authenticator::headers`]. Those that carry credentials, such as
    /// `authorization` and `cookie`, are never among them; other transports have none.
    pub headers: Vec<(String, String)>,
    /// The connection's TLS, where it has one of its own.
    pub tls: Option<Arc<TlsFacts>>,
}

impl AuthRequest {
    /// A log-in with `credentials` over the transport named `transport` from `address`.
    #[must_use]
    pub fn new(credentials: Credentials, transport: Arc<str>, address: IpAddr) -> Self {
        Self {
            credentials,
            transport,
            address,
            headers: Vec::new(),
            tls: None,
        }
    }
}

/// How a connection is encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TlsFacts {
    /// `"TLS1.2"` or `"TLS1.3"`.
    pub version: &'static str,
    /// The cipher suite by its IANA name, such as `TLS_AES_256_GCM_SHA384`.
    pub cipher: String,
    /// The name that the client asked for, in lower case.
    pub server_name: Option<String>,
    /// The server's end of the connection.
    pub local: SocketAddr,
    /// The other end: the client, or a proxy in front of it.
    pub remote: SocketAddr,
    /// What the client proved to hold; already found to be signed by a configured CA, in date and not revoked.
    pub certificate: Option<Arc<Certificate>>,
}

impl TlsFacts {
    /// The facts of a connection without a client certificate or a server name; change its fields as needed.
    #[must_use]
    pub fn new(
        version: &'static str,
        cipher: impl Into<String>,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Self {
        Self {
            version,
            cipher: cipher.into(),
            server_name: None,
            local,
            remote,
            certificate: None,
        }
    }
}

/// A client's certificate, taken apart. Names are as the certificate has them, in its order, repeats included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Certificate {
    /// The client's certificate and what it sent to lead to a CA, each as DER.
    pub chain: Vec<Vec<u8>>,
    /// SHA-256 of the certificate, as 64 lower-case hexadecimal digits.
    pub fingerprint: String,
    /// The serial number as lower-case hexadecimal digits without leading zeroes.
    pub serial: String,
    /// The issuer's name as DER.
    pub issuer: Vec<u8>,
    /// The subject as RFC 4514 writes it, for people.
    pub subject: String,
    /// `CN` of the subject.
    pub common_names: Vec<String>,
    /// E-mail addresses of the subject's alternative names.
    pub emails: Vec<String>,
    /// DNS names of them.
    pub dns_names: Vec<String>,
    /// URIs of them.
    pub uris: Vec<String>,
    /// When it ends to be good, in milliseconds since the Unix epoch.
    pub expires_at: u64,
}

/// What a peer presents. At most one of `password` and `token` is there.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Credentials {
    /// The name the peer gives itself.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<SecretString>,
    /// A bearer token.
    pub token: Option<SecretString>,
}

impl Credentials {
    /// A name alone.
    #[must_use]
    pub fn name(user: impl Into<String>) -> Self {
        Self {
            user: Some(user.into()),
            ..Self::default()
        }
    }

    /// A name and a password.
    #[must_use]
    pub fn password(user: impl Into<String>, password: impl Into<SecretString>) -> Self {
        Self {
            user: Some(user.into()),
            password: Some(password.into()),
            token: None,
        }
    }

    /// A bearer token.
    #[must_use]
    pub fn token(token: impl Into<SecretString>) -> Self {
        Self {
            token: Some(token.into()),
            ..Self::default()
        }
    }
}

/// What an authenticator says of a log-in.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// The peer is this principal; later authenticators are not asked.
    Allow(Principal),
    /// The peer is not who it says; later authenticators are not asked.
    Deny {
        /// Why, as metrics count it.
        denial: Denial,
        /// For the log, never for the peer: its first 256 characters on one line. Repeats no credential.
        reason: Cow<'static, str>,
        /// What the peer may read in place of the one text for every failed log-in.
        public: Option<String>,
    },
    /// Not a kind of credential, or not a user, that this authenticator knows: the next one is asked.
    Abstain,
    /// The authenticator can't tell now. Stops the chain; never told as a wrong password, never counted as a failure.
    Unavailable {
        /// When to try again.
        retry: Duration,
    },
}

impl Verdict {
    /// A denial for [`Denial::Other`] that tells the peer nothing beyond the one text; `reason` is for the log.
    #[must_use]
    pub fn deny(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::deny_for(Denial::Other, reason)
    }

    /// The same for another `denial`.
    #[must_use]
    pub fn deny_for(denial: Denial, reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Deny {
            denial,
            reason: reason.into(),
            public: None,
        }
    }
}

/// Why somebody is denied, as metrics count it: a closed set, whatever the reason in the log says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Denial {
    /// The password or the token is wrong.
    WrongSecret,
    /// No such user or credential, where whoever says so knows them all.
    Unknown,
    /// The credential is past its end.
    Expired,
    /// It is before its beginning.
    NotYetValid,
    /// It was taken back.
    Revoked,
    /// It is not signed, or not by a key or an algorithm that is trusted.
    Signature,
    /// It is for another server or purpose.
    Audience,
    /// It can't be read, or breaks a rule of its own.
    Malformed,
    /// It names nobody.
    NoName,
    /// It names more than one.
    ManyNames,
    /// What it names can be nobody's name here.
    BadName,
    /// What it names looks like another name.
    LookAlike,
    /// It is of another user than the one that the client gives.
    OtherUser,
    /// The user exists and may not log in.
    Suspended,
    /// Somebody who was asked elsewhere says so, in words of its own.
    BackEnd,
    /// Anything else.
    Other,
}

impl Denial {
    pub(crate) const ALL: [Self; 16] = [
        Self::WrongSecret,
        Self::Unknown,
        Self::Expired,
        Self::NotYetValid,
        Self::Revoked,
        Self::Signature,
        Self::Audience,
        Self::Malformed,
        Self::NoName,
        Self::ManyNames,
        Self::BadName,
        Self::LookAlike,
        Self::OtherUser,
        Self::Suspended,
        Self::BackEnd,
        Self::Other,
    ];

    /// The word for it in metrics and logs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::WrongSecret => "wrong_secret",
            Self::Unknown => "unknown",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Revoked => "revoked",
            Self::Signature => "signature",
            Self::Audience => "audience",
            Self::Malformed => "malformed",
            Self::NoName => "no_name",
            Self::ManyNames => "many_names",
            Self::BadName => "bad_name",
            Self::LookAlike => "look_alike",
            Self::OtherUser => "other_user",
            Self::Suspended => "suspended",
            Self::BackEnd => "back_end",
            Self::Other => "other",
        }
    }
}

/// Who a peer is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Principal {
    /// Its name and who vouches for it.
    pub name: PrincipalName,
    /// What it may do, in the deployment's own words.
    pub roles: Vec<String>,
    /// The only rooms it may enter. `None`: all of them; empty: none.
    pub rooms: Option<Vec<RoomPattern>>,
    /// When what it presented ends to be good, and its session with it, in milliseconds since the Unix epoch. `None`:
    /// never.
    pub expires_at: Option<u64>,
    /// Limits of its own.
    pub limits: PrincipalLimits,
    /// What the authenticator knows the credential by, for [`Revocations`]. Shown to nobody.
    pub credential: Option<String>,
}

/// Limits that hold for one principal in place of those of `[limits]`. `None` leaves that one as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct PrincipalLimits {
    /// `message_bytes`, at most that of `[limits]`: frames are bounded by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_bytes: Option<Size>,
    /// `sends`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sends: Option<Rate>,
    /// `commands`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commands: Option<Rate>,
    /// `rooms_per_session`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rooms_per_session: Option<usize>,
}

/// A principal's name and who vouches for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrincipalName {
    /// Chosen by the client and vouched for by nobody: the rules of `[names]` apply to `name`, and no session of
    /// another can be taken over with it.
    Chosen {
        /// Put before the name, so that nobody can sit on a member's name: that of [`Authenticator::guest_prefix`].
        prefix: String,
        /// What the client chose.
        name: String,
    },
    /// Vouched for by the authenticator: 1 to 128 characters without space or control.
    Vouched(String),
}

impl Principal {
    /// A principal whose name the authenticator vouches for.
    #[must_use]
    pub fn vouched(name: impl Into<String>) -> Self {
        Self {
            name: PrincipalName::Vouched(name.into()),
            ..Self::nobody()
        }
    }

    /// A principal that chose its own name.
    #[must_use]
    pub fn chosen(prefix: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            name: PrincipalName::Chosen {
                prefix: prefix.into(),
                name: name.into(),
            },
            ..Self::nobody()
        }
    }

    /// What a principal has unless its authenticator says more.
    const fn nobody() -> Self {
        Self {
            name: PrincipalName::Vouched(String::new()),
            roles: Vec::new(),
            rooms: None,
            expires_at: None,
            limits: PrincipalLimits {
                message_bytes: None,
                sends: None,
                commands: None,
                rooms_per_session: None,
            },
            credential: None,
        }
    }

    /// Whether `other` is the same user with the same rights, whatever it presented and whenever that ends.
    pub(crate) fn may_as_much_as(&self, other: &Self) -> bool {
        fn are_same<T: PartialEq>(some: &[T], others: &[T]) -> bool {
            some.iter().all(|it| others.contains(it)) && others.iter().all(|it| some.contains(it))
        }
        let are_rooms_same = match (&self.rooms, &other.rooms) {
            (Some(some), Some(others)) => are_same(some, others),
            (some, others) => some.is_none() && others.is_none(),
        };
        self.name == other.name
            && self.limits == other.limits
            && are_same(&self.roles, &other.roles)
            && are_rooms_same
    }

    /// The same principal with these roles.
    #[must_use]
    pub fn with_roles(mut self, roles: Vec<String>) -> Self {
        self.roles = roles;
        self
    }
}

/// A kind of validator, as its table configures it. Derive `Deserialize` with `deny_unknown_fields`.
pub trait ValidatorConfig: DeserializeOwned + Send + 'static {
    /// The table's `kind`.
    const KIND: &'static str;

    /// Makes the validator: reads its files, checks what its table says.
    ///
    /// # Errors
    /// One sentence for the operator, with the key at fault and a way out. Nothing starts then.
    fn build(self, cx: ValidatorContext) -> Result<Arc<dyn Validator>, BuildError>;
}

/// What a validator is told about the server that it is built for.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ValidatorContext {
    /// The name of its table.
    pub name: String,
    /// The folder that relative paths start from: that of the configuration file.
    pub base: PathBuf,
    /// For tasks of its own, such as watching a file.
    pub lifecycle: Lifecycle,
}

impl ValidatorContext {
    /// A context for the table `name`; change its fields as needed.
    #[must_use]
    pub fn new(name: impl Into<String>, base: impl Into<PathBuf>, lifecycle: Lifecycle) -> Self {
        Self {
            name: name.into(),
            base: base.into(),
            lifecycle,
        }
    }
}

/// Judges, and may change, a message before it is ordered.
///
/// Runs on the sender's own task, between the sender's rate limits and the room's log: it must not block.
pub trait Validator: Send + Sync + 'static {
    /// Judges `draft`.
    ///
    /// # Errors
    /// The message is refused with that reason; the session goes on.
    fn check(&self, draft: &mut Draft<'_>) -> Result<(), Rejection>;
}

/// A message on its way to be ordered.
#[derive(Debug)]
#[non_exhaustive]
pub struct Draft<'a> {
    /// The sender's canonical name.
    pub user: &'a str,
    /// The room's name.
    pub room: &'a str,
    /// `text`, where the message has one.
    pub text: Option<String>,
    /// `data` as compact JSON, where the message has some.
    pub data: Option<Box<RawValue>>,
    /// `message_bytes`.
    pub limit: usize,
    /// What the session's manager attached to this stay, or to the session.
    pub context: Option<&'a Context>,
}

impl<'a> Draft<'a> {
    /// A draft by `user` in `room`, of which `text` and `data` together may have `limit` bytes.
    #[must_use]
    pub fn new(
        user: &'a str,
        room: &'a str,
        text: Option<String>,
        data: Option<Box<RawValue>>,
        limit: usize,
    ) -> Self {
        Self {
            user,
            room,
            text,
            data,
            limit,
            context: None,
        }
    }
}

/// Why a message was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// `message_empty`.
    Empty,
    /// `message_too_long`.
    TooLong,
    /// `message_rejected`, with a reason for the sender.
    Rejected(String),
}
