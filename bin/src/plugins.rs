//! The kinds that a binary has: registered in the open, so that whoever reads `main` knows what a file may ask for.
//!
//! A kind is a configuration type; the registry keeps, for each, a plain function that reads a table into it. There is
//! no registration at link time and no global: two servers in one process may have different kinds.

use std::{borrow::Cow, collections::BTreeMap, fmt, sync::Arc};

use async_trait::async_trait;
use chinwag_core::{
    EmbeddedLog, Log,
    plugin::{
        Authenticator, AuthenticatorConfig, AuthenticatorContext, BuildError, SessionManager,
        SessionManagerConfig, SessionManagerContext, Validator, ValidatorConfig, ValidatorContext,
    },
};
use chinwag_transports::{
    BindContext, BindError, ListenerConfig, Transport, TransportConfig, Wire,
};

use crate::config::{Problems, Table};

/// The kinds of transport, authenticator, session manager and validator that a binary knows.
///
/// ```no_run
/// # use std::process::ExitCode;
/// fn main() -> ExitCode {
///     // .authenticator::<Ldap>() adds a kind of one's own.
///     chinwag::run(chinwag::Plugins::builtin())
/// }
/// ```
#[derive(Clone, Default)]
pub struct Plugins {
    transports: BTreeMap<&'static str, TransportKind>,
    authenticators: BTreeMap<&'static str, ReadAuthenticator>,
    session_managers: BTreeMap<&'static str, ReadManager>,
    validators: BTreeMap<&'static str, ReadValidator>,
    log: Option<Arc<dyn Log>>,
}

/// Reads a table into the configuration of a kind. `None` where it could not; the reasons are with the problems.
pub(crate) type ReadTransport = fn(Table<'_>, &mut Problems) -> Option<Box<dyn ReadyToBind>>;
pub(crate) type ReadAuthenticator = fn(Table<'_>, &mut Problems) -> Option<Box<dyn ReadyToBuild>>;
pub(crate) type ReadManager = fn(Table<'_>, &mut Problems) -> Option<Box<dyn ReadyToManage>>;
pub(crate) type ReadValidator = fn(Table<'_>, &mut Problems) -> Option<Box<dyn ReadyToValidate>>;

#[derive(Clone, Copy)]
pub(crate) struct TransportKind {
    pub(crate) wire: Wire,
    pub(crate) read: ReadTransport,
}

impl Plugins {
    /// No kinds at all: for a binary that lists every one it wants.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// The kinds that this build of chinwag has, one cargo feature for each: `tcp`, `websocket` and `http-polling`;
    /// `anonymous`, `password`, `certificate`, `http`, `exec` and `jwt`;
    /// for session managers `http` and `exec` again.
    #[must_use]
    pub fn builtin() -> Self {
        let plugins = Self::empty();
        #[cfg(feature = "tcp")]
        let plugins = plugins.transport::<chinwag_transports::TcpConfig>();
        #[cfg(feature = "websocket")]
        let plugins = plugins.transport::<chinwag_transports::WebSocketConfig>();
        #[cfg(feature = "http-polling")]
        let plugins = plugins.transport::<chinwag_transports::PollingConfig>();
        #[cfg(feature = "anonymous")]
        let plugins = plugins.authenticator::<chinwag_auth::Anonymous>();
        #[cfg(feature = "password")]
        let plugins = plugins.authenticator::<chinwag_auth::Password>();
        #[cfg(feature = "certificate")]
        let plugins = plugins.authenticator::<chinwag_auth::Certificate>();
        #[cfg(feature = "http")]
        let plugins = plugins.authenticator::<chinwag_auth::Http>();
        #[cfg(feature = "exec")]
        let plugins = plugins.authenticator::<chinwag_auth::Exec>();
        #[cfg(feature = "jwt")]
        let plugins = plugins.authenticator::<chinwag_auth::Jwt>();
        #[cfg(feature = "http")]
        let plugins = plugins.session_manager::<chinwag_auth::HttpManager>();
        #[cfg(feature = "exec")]
        let plugins = plugins.session_manager::<chinwag_auth::ExecManager>();
        plugins
    }

    /// Adds a kind of transport. What its table says is logged at start: a secret belongs to an authenticator.
    ///
    /// # Panics
    /// If the kind is taken: that is a bug in the binary, not in a file.
    #[must_use]
    pub fn transport<C: TransportConfig>(mut self) -> Self {
        let kind = TransportKind {
            wire: C::WIRE,
            read: |table, problems| Some(Box::new(table.read::<C>(problems)?)),
        };
        let taken = self.transports.insert(C::KIND, kind);
        assert!(taken.is_none(), "transport kind {:?} added twice", C::KIND);
        self
    }

    /// Adds a kind of authenticator.
    ///
    /// # Panics
    /// If the kind is taken: that is a bug in the binary, not in a file.
    #[must_use]
    pub fn authenticator<C: AuthenticatorConfig>(mut self) -> Self {
        let read: ReadAuthenticator = |table, problems| {
            Some(Box::new(BuildsAuthenticator(
                table.read_sound::<C>(problems)?,
            )))
        };
        let taken = self.authenticators.insert(C::KIND, read);
        assert!(
            taken.is_none(),
            "authenticator kind {:?} added twice",
            C::KIND
        );
        self
    }

    /// Adds a kind of session manager.
    ///
    /// # Panics
    /// If the kind is taken: that is a bug in the binary, not in a file.
    #[must_use]
    pub fn session_manager<C: SessionManagerConfig>(mut self) -> Self {
        let read: ReadManager =
            |table, problems| Some(Box::new(BuildsManager(table.read_sound::<C>(problems)?)));
        let taken = self.session_managers.insert(C::KIND, read);
        assert!(
            taken.is_none(),
            "session manager kind {:?} added twice",
            C::KIND
        );
        self
    }

    /// Adds a kind of validator.
    ///
    /// # Panics
    /// If the kind is taken: that is a bug in the binary, not in a file.
    #[must_use]
    pub fn validator<C: ValidatorConfig>(mut self) -> Self {
        let read: ReadValidator =
            |table, problems| Some(Box::new(BuildsValidator(table.read_sound::<C>(problems)?)));
        let taken = self.validators.insert(C::KIND, read);
        assert!(taken.is_none(), "validator kind {:?} added twice", C::KIND);
        self
    }

    /// Has another log than the embedded one decide the order of events, whatever `[cluster]` says. Called again, the
    /// last one stands.
    #[must_use]
    pub fn log(mut self, log: Arc<dyn Log>) -> Self {
        self.log = Some(log);
        self
    }

    /// The log of one's own, or the embedded one.
    pub(crate) fn chosen_log(&self) -> Arc<dyn Log> {
        self.log.clone().unwrap_or_else(|| Arc::new(EmbeddedLog))
    }

    pub(crate) fn transports(&self) -> &BTreeMap<&'static str, TransportKind> {
        &self.transports
    }

    pub(crate) fn authenticators(&self) -> &BTreeMap<&'static str, ReadAuthenticator> {
        &self.authenticators
    }

    pub(crate) fn session_managers(&self) -> &BTreeMap<&'static str, ReadManager> {
        &self.session_managers
    }

    pub(crate) fn validators(&self) -> &BTreeMap<&'static str, ReadValidator> {
        &self.validators
    }
}

impl fmt::Debug for Plugins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plugins")
            .field("transports", &self.transports.keys())
            .field("authenticators", &self.authenticators.keys())
            .field("session_managers", &self.session_managers.keys())
            .field("validators", &self.validators.keys())
            .finish()
    }
}

/// [`TransportConfig`] as an object: a transport whose table has been read.
#[async_trait]
pub(crate) trait ReadyToBind: Send + Sync {
    fn check(&self, listener: &ListenerConfig) -> Result<(), Vec<BuildError>>;
    fn paths(&self) -> Vec<(&'static str, Cow<'_, str>)>;
    fn is_public(&self) -> bool;
    async fn bind(self: Box<Self>, cx: BindContext) -> Result<Box<dyn Transport>, BindError>;
}

#[async_trait]
impl<C: TransportConfig> ReadyToBind for C {
    fn check(&self, listener: &ListenerConfig) -> Result<(), Vec<BuildError>> {
        TransportConfig::check(self, listener)
    }

    fn paths(&self) -> Vec<(&'static str, Cow<'_, str>)> {
        TransportConfig::paths(self)
    }

    fn is_public(&self) -> bool {
        TransportConfig::is_public(self)
    }

    async fn bind(self: Box<Self>, cx: BindContext) -> Result<Box<dyn Transport>, BindError> {
        TransportConfig::bind(*self, cx).await
    }
}

/// [`AuthenticatorConfig`] as an object: an authenticator whose table has been read.
#[async_trait]
pub(crate) trait ReadyToBuild: Send {
    async fn build(
        self: Box<Self>,
        cx: AuthenticatorContext,
    ) -> Result<Arc<dyn Authenticator>, BuildError>;
}

struct BuildsAuthenticator<C>(C);

#[async_trait]
impl<C: AuthenticatorConfig> ReadyToBuild for BuildsAuthenticator<C> {
    async fn build(
        self: Box<Self>,
        cx: AuthenticatorContext,
    ) -> Result<Arc<dyn Authenticator>, BuildError> {
        self.0.build(cx).await
    }
}

/// [`SessionManagerConfig`] as an object: a session manager whose table has been read.
#[async_trait]
pub(crate) trait ReadyToManage: Send {
    async fn build(
        self: Box<Self>,
        cx: SessionManagerContext,
    ) -> Result<Arc<dyn SessionManager>, BuildError>;
}

struct BuildsManager<C>(C);

#[async_trait]
impl<C: SessionManagerConfig> ReadyToManage for BuildsManager<C> {
    async fn build(
        self: Box<Self>,
        cx: SessionManagerContext,
    ) -> Result<Arc<dyn SessionManager>, BuildError> {
        self.0.build(cx).await
    }
}

/// [`ValidatorConfig`] as an object: a validator whose table has been read.
pub(crate) trait ReadyToValidate: Send {
    fn build(self: Box<Self>, cx: ValidatorContext) -> Result<Arc<dyn Validator>, BuildError>;
}

struct BuildsValidator<C>(C);

impl<C: ValidatorConfig> ReadyToValidate for BuildsValidator<C> {
    fn build(self: Box<Self>, cx: ValidatorContext) -> Result<Arc<dyn Validator>, BuildError> {
        self.0.build(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Loud;

    impl ValidatorConfig for Loud {
        const KIND: &'static str = "loud";
        fn build(self, _: ValidatorContext) -> Result<Arc<dyn Validator>, BuildError> {
            Err(BuildError::new("never built"))
        }
    }

    #[test]
    fn the_built_in_kinds_are_those_of_the_features() {
        let plugins = Plugins::builtin();
        let transports: Vec<_> = plugins.transports().keys().copied().collect();
        let mut expected = Vec::new();
        for (kind, built) in crate::config::OWN_TRANSPORTS {
            expected.extend(built.then_some(kind));
        }
        assert_eq!(transports, expected);
    }

    #[test]
    #[should_panic(expected = "validator kind \"loud\" added twice")]
    fn a_kind_that_is_taken_is_a_bug_of_the_binary() {
        let _ = Plugins::empty().validator::<Loud>().validator::<Loud>();
    }
}
