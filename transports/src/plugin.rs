//! The seam for transports: a configuration type that binds itself.

use std::{
    borrow::Cow,
    fmt, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use chinwag_core::{Hub, Scope};
use serde::de::DeserializeOwned;
use tracing::info;

#[cfg(feature = "http")]
use crate::{HttpListener, http::Binds};
use crate::{
    ListenerConfig, LocalAddr, StreamListener, Tls,
    accept::{Door, Gate, HubDoor, Secure},
    tls::Alpn,
};

/// A kind of front end, as its table configures it, less the keys of [`ListenerConfig`]. Derive `Deserialize` with
/// `deny_unknown_fields`.
#[async_trait]
pub trait TransportConfig: DeserializeOwned + Send + Sync + 'static {
    /// The table's `kind`.
    const KIND: &'static str;
    /// What it speaks on its bind: HTTP kinds may share one.
    const WIRE: Wire;

    /// Rules between its own keys and those of its listener.
    ///
    /// # Errors
    /// Key at fault (if one is) and a sentence for the operator, for each broken rule.
    fn check(
        &self,
        _listener: &ListenerConfig,
    ) -> Result<(), Vec<chinwag_core::plugin::BuildError>> {
        Ok(())
    }

    /// The paths that [`bind`](Self::bind) will claim of its HTTP listener, each with the key of the table that
    /// chooses it, or `"kind"` where none does. A clash with a transport on the same bind is then told, at that key,
    /// before anything is bound. None by default, as for a kind that speaks no HTTP.
    fn paths(&self) -> Vec<(&'static str, Cow<'_, str>)> {
        Vec::new()
    }

    /// Whether clients on other machines reach it: whoever lets in everybody refuses to do so there. Asked of kinds
    /// whose [`WIRE`](Self::WIRE) is [`Wire::Other`]; for the rest `bind` tells. Yes, unless it says otherwise.
    fn is_public(&self) -> bool {
        true
    }

    /// Takes the socket but accepts nothing: a failure here stops start-up and drops nobody.
    ///
    /// # Errors
    /// The address can't be had.
    async fn bind(self, cx: BindContext) -> Result<Box<dyn Transport>, BindError>;
}

/// What a kind speaks on its bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// A protocol of its own: the bind is its alone.
    Stream,
    /// HTTP: several transports may share the bind, told apart by path.
    Http,
    /// Not by an address of IP: the table has no `bind`, and of the keys of [`ListenerConfig`] those that
    /// [`ListenerConfig::keys`] names. `listener.bind` means nothing then.
    Other,
}

/// A bound front end: owns sockets and bytes, knows no room.
#[async_trait]
pub trait Transport: Send {
    /// The address taken; where the file says port 0, the port the system chose.
    fn local_addr(&self) -> LocalAddr;

    /// Accepts until the hub's lifecycle drains; an HTTP kind goes on until the hub has drained, since clients that
    /// poll connect anew for their last events. Connections are spawned on the lifecycle and outlive this call.
    ///
    /// # Errors
    /// Only what ends the listener. A failing connection ends itself, is counted and not returned.
    async fn serve(self: Box<Self>) -> Result<(), ServeError>;
}

/// What a transport is bound with.
#[derive(Clone)]
#[non_exhaustive]
pub struct BindContext {
    /// The name of its table.
    pub name: Arc<str>,
    /// The folder that relative paths start from: that of the configuration file.
    pub base: PathBuf,
    /// The keys that every transport has.
    pub listener: Arc<ListenerConfig>,
    /// Where sessions live.
    pub hub: Hub,
    /// What its sessions have in common.
    pub scope: Arc<Scope>,
    tls: Option<Arc<Tls>>,
    /// Whether the transport has taken what speaks by `tls`. Clones share it.
    took_tls: Arc<AtomicBool>,
    #[cfg_attr(
        not(feature = "http"),
        expect(dead_code, reason = "only HTTP kinds share a bind")
    )]
    listeners: Listeners,
}

impl fmt::Debug for BindContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BindContext")
            .field("name", &self.name)
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}

impl BindContext {
    /// The context of the table `name`. All transports of a server are given the same `listeners`.
    #[must_use]
    pub fn new(
        name: impl Into<Arc<str>>,
        listener: Arc<ListenerConfig>,
        hub: Hub,
        scope: Arc<Scope>,
        listeners: Listeners,
    ) -> Self {
        Self {
            name: name.into(),
            base: PathBuf::new(),
            listener,
            hub,
            scope,
            tls: None,
            took_tls: Arc::default(),
            listeners,
        }
    }

    /// The same for a configuration in the folder `base`. Without it, relative paths start from where the process runs.
    #[must_use]
    pub fn with_base(mut self, base: impl Into<PathBuf>) -> Self {
        self.base = base.into();
        self
    }

    /// The same with the table that the listener's `tls` names, if it names one. From now on a session of this transport
    /// ends with `auth_expired` when the table's changed files no longer vouch for the certificate that its connection
    /// has shown.
    ///
    /// To be called once. All transports on one bind are given the same table.
    #[must_use]
    pub fn with_tls(mut self, tls: Option<Arc<Tls>>) -> Self {
        if let Some(tls) = &tls {
            let scope = Arc::downgrade(&self.scope);
            tls.on_reload(move |judge| {
                if let Some(scope) = scope.upgrade() {
                    let over =
                        scope.revoke_certificates(|certificate| judge.check(certificate).is_err());
                    if over > 0 {
                        info!(
                            transport = %scope.name(), sessions = over,
                            "Sessions have ended whose certificates are trusted no more."
                        );
                    }
                }
            });
        }
        self.tls = tls;
        self
    }

    /// The table that the listener's `tls` names, to look at. `None`: plain text is spoken.
    #[must_use]
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_deref()
    }

    /// The same for a transport with a socket of its own, which takes it in [`bind`](TransportConfig::bind) and is
    /// trusted to do its part: hands are shaken over every connection with [`Tls::accept`], and what that tells of the
    /// peer goes into [`Peer::tls`](chinwag_core::Peer::tls).
    #[must_use]
    pub fn take_tls(&self) -> Option<Arc<Tls>> {
        self.took_tls.store(true, Ordering::Relaxed);
        self.tls.clone()
    }

    /// Whether a transport that was bound with this, or a clone of it, speaks TLS where its listener is to: it has taken
    /// [`stream`](Self::stream), [`http`](Self::http) or [`take_tls`](Self::take_tls).
    ///
    /// # Errors
    /// [`BindError::PlainText`]: it has not, and would speak plain text where the operator relies on TLS.
    pub fn check_tls(&self) -> Result<(), BindError> {
        match &self.tls {
            Some(tls) if !self.took_tls.load(Ordering::Relaxed) => Err(BindError::PlainText {
                transport: Arc::clone(&self.name),
                tls: Arc::clone(tls.name()),
            }),
            _ => Ok(()),
        }
    }

    /// Takes the bind for lines, or for a protocol of the transport's own that has no name: who offers protocols in a
    /// TLS handshake has to offer `chinwag` among them.
    ///
    /// # Errors
    /// As [`stream_of`](Self::stream_of).
    pub async fn stream(&self) -> Result<StreamListener, BindError> {
        self.stream_of(Alpn::CHINWAG).await
    }

    /// The same for the protocol `alpn`: who offers any in a TLS handshake has to offer that one.
    ///
    /// # Errors
    /// [`BindError::Address`]: the system refuses the address, say because another transport has it, or the table that
    /// the listener's `tls` names was not given to [`with_tls`](Self::with_tls).
    pub async fn stream_of(&self, alpn: Alpn) -> Result<StreamListener, BindError> {
        let lifecycle = self.hub.lifecycle().clone();
        self.secure(alpn)
            .and_then(|secure| {
                StreamListener::bind(Arc::clone(&self.listener), secure, self.door(), lifecycle)
            })
            .map_err(|source| self.refused(source))
    }

    /// The HTTP listener of the bind, which the transports that name the same address share: routes are told apart by
    /// path. Two tables with the same text and port 0 share one port too.
    ///
    /// The first of them gives the keys of the listener; that they agree is for the configuration to check.
    ///
    /// # Errors
    /// [`BindError::Address`]: the system refuses the address, or as [`stream`](Self::stream).
    #[cfg(feature = "http")]
    pub async fn http(&self) -> Result<HttpListener, BindError> {
        // Also where another transport has bound already.
        let secure = self.secure(Alpn::HTTP);
        let bind = || {
            HttpListener::new(
                Arc::clone(&self.name),
                Arc::clone(&self.listener),
                secure?,
                self.door(),
                self.hub.lifecycle().clone(),
            )
        };
        self.listeners
            .binds
            .listener(&self.name, &self.listener, bind)
            .map_err(|source| self.refused(source))
    }

    /// What connections shake hands by. Nothing is spoken in plain text because somebody forgot to hand over the table.
    fn secure(&self, alpn: Alpn) -> io::Result<Option<Secure>> {
        match (&self.listener.tls, self.take_tls()) {
            (None, None) => Ok(None),
            (Some(_), Some(tls)) => Ok(Some(Secure { tls, alpn })),
            (Some(name), None) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("the listener's tls = {name:?} was not loaded"),
            )),
            (None, Some(tls)) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("the listener does not name {:?} as its tls", tls.name()),
            )),
        }
    }

    /// The caps of a listener of the transport's own, with nothing counted against them yet.
    pub(crate) fn gate(&self) -> Arc<Gate> {
        Arc::new(Gate::new(Arc::clone(&self.listener), None, self.door()))
    }

    fn door(&self) -> Arc<dyn Door> {
        Arc::new(HubDoor {
            hub: self.hub.clone(),
            metrics: Arc::clone(self.hub.telemetry().transport(&self.name)),
        })
    }

    fn refused(&self, source: io::Error) -> BindError {
        BindError::Address {
            transport: Arc::clone(&self.name),
            address: self.listener.bind.into(),
            source,
        }
    }
}

/// The HTTP listeners of one server, by bind. Clones are one registry.
#[derive(Clone, Default)]
pub struct Listeners {
    #[cfg(feature = "http")]
    binds: Arc<Binds>,
}

impl Listeners {
    /// A server without listeners.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl fmt::Debug for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listeners").finish_non_exhaustive()
    }
}

/// Why a listener could not be bound.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The system refused the address.
    #[error("transports.{transport}: can't bind {address}")]
    Address {
        /// The table's name.
        transport: Arc<str>,
        /// What the file says.
        address: LocalAddr,
        /// Why.
        source: io::Error,
    },
    /// The listener's `tls` names a table, and the transport has not taken it: it would speak plain text.
    #[error(
        "transports.{transport}: this kind does not speak TLS, so tls = {tls:?} would be in vain"
    )]
    PlainText {
        /// The table's name.
        transport: Arc<str>,
        /// What its `tls` says.
        tls: Arc<str>,
    },
    /// Two transports claim one path of a shared bind.
    #[error("transports.{transport}: path {path:?} of this bind is taken by another transport")]
    Path {
        /// The table's name.
        transport: Arc<str>,
        /// The path.
        path: String,
    },
}

/// What ended a listener.
#[derive(Debug, thiserror::Error)]
#[error("the listener failed")]
pub struct ServeError(#[from] pub io::Error);
