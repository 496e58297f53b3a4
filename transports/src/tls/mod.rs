//! TLS, as a table `[tls.NAME]` configures it: who the server is, which clients it trusts, and what became of them.
//!
//! - rustls with aws-lc-rs, TLS 1.2 and 1.3, and of both only what is safe. A handshake has a time limit.
//! - Clients' certificates are judged along their whole way to a CA in `client_ca`. Where `crl` names lists, each of
//!   these certificates has to be covered by one that is in date and signed by its issuer: what no list tells of is
//!   refused, and when a list is out of date so is everything that it tells of.
//! - A connection that resumes an earlier one is judged anew, since the certificate may have ended meanwhile.
//! - Files are read again when they change, or on [`Tls::reload`]. New handshakes use the new ones; connections go on.
//!   A file that can't be used changes nothing and is told in the log and as a metric, once and then by the hour; one
//!   that can't be read just now is tried again.
//! - Files that don't come, say over a network that has failed, hold up their own table alone and one thread; that is
//!   told too.
//!
//! Deliberately absent: OCSP, several certificates by server name, early data, renegotiation, key logs.

mod certificate;
mod failure;
mod material;
#[cfg(test)]
pub(crate) mod pki;
#[cfg(test)]
pub(crate) mod tests;
mod watch;

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    pin::pin,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use chinwag_core::{
    Lifecycle, TlsExpiry, TlsFailure, TlsLink, TlsMetrics,
    clock::{self, Instant, SystemWallClock, WallClock},
    config::Span,
    plugin::{BuildError, Certificate, TlsFacts},
};
use parking_lot::{Mutex, RwLock};
use rustls::{
    HandshakeKind, ProtocolVersion, ServerConfig, ServerConnection,
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    task::spawn_blocking,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tracing::{debug, error, info, warn};

use self::{
    certificate::read,
    material::{ClientVerifier, Files, Material, Unusable, Wall},
    watch::{Due, Watch},
};

/// How often files are looked at. A change has to last from one look to the next, so it is taken within twice that.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it is said again that files can't be used, for as long as they can't.
const REMIND_EVERY: Duration = Duration::from_secs(3600);
/// For how long a client's certificate is not judged again while nothing has changed.
const FRESH: Duration = Duration::from_secs(10);
/// How long a refused client may take to read why.
const LINGER: Duration = Duration::from_secs(1);
/// How much of what it still sends is read meanwhile.
const LINGER_BYTES: usize = 64 << 10;

/// The table `[tls.NAME]`. Relative paths start from the folder of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct TlsConfig {
    /// The server's certificate as PEM, followed by those that lead to a root. At most 4 MiB, as the next two.
    pub cert: PathBuf,
    /// Its private key as PEM, not encrypted.
    pub key: PathBuf,
    /// The CAs as PEM that may have signed clients' certificates. Needed where `client_cert` asks for them.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
    /// Whether clients are asked for a certificate. Default: they are not.
    #[serde(default)]
    pub client_cert: ClientCert,
    /// Lists of revoked certificates, as PEM or DER, each at most 64 MiB. Empty, the default: nothing is revoked.
    /// Otherwise every certificate between a client and its CA needs a list by its issuer; of several by one issuer
    /// the newest is believed. Where `client_ca` has one CA with several keys, each key needs a list of its own.
    #[serde(default)]
    pub crl: Vec<PathBuf>,
    /// For the whole handshake. Above zero; default 10 s.
    #[serde(default = "ten_seconds")]
    pub handshake_timeout: Span,
}

fn ten_seconds() -> Span {
    Span::secs(10)
}

/// Whether clients are asked for a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientCert {
    /// They are not.
    #[default]
    None,
    /// They are, and may have none. One that is not good is refused all the same.
    Optional,
    /// They are, and get no connection without one.
    Required,
}

/// Where a table stands, for [`TlsConfig::load`].
#[non_exhaustive]
pub struct TlsContext {
    /// The name of the table.
    pub name: Arc<str>,
    /// The folder that relative paths start from.
    pub base: PathBuf,
    /// What certificates are held against.
    pub clock: Arc<dyn WallClock>,
}

impl fmt::Debug for TlsContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsContext")
            .field("name", &self.name)
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

impl TlsContext {
    /// The table `name` of a file in the folder `base`, by the system's clock.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, base: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            base: base.into(),
            clock: Arc::new(SystemWallClock),
        }
    }
}

impl TlsConfig {
    /// A table with that certificate and key, and defaults for the rest.
    #[must_use]
    pub fn new(cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        Self {
            cert: cert.into(),
            key: key.into(),
            client_ca: None,
            client_cert: ClientCert::None,
            crl: Vec::new(),
            handshake_timeout: ten_seconds(),
        }
    }

    /// Rules between the keys. Looks at no file.
    ///
    /// # Errors
    /// Every broken rule, with the key at fault.
    pub fn check(&self) -> Result<(), Vec<BuildError>> {
        let mut faults = Vec::new();
        let mut fault = |key, message| faults.push(BuildError::key(key, message));
        if self.handshake_timeout.is_zero() {
            fault(
                "handshake_timeout",
                "must be above zero: no stage may last for ever",
            );
        }
        match (self.client_cert, &self.client_ca) {
            (ClientCert::None, Some(_)) => fault(
                "client_ca",
                "has no effect while client_cert is \"none\"; say \"optional\" or \"required\"",
            ),
            (ClientCert::Optional | ClientCert::Required, None) => fault(
                "client_cert",
                "needs client_ca = \"FILE\": the CAs that may have signed clients' certificates",
            ),
            _ => (),
        }
        if self.client_cert == ClientCert::None && !self.crl.is_empty() {
            fault(
                "crl",
                "has no effect while client_cert is \"none\"; say \"optional\" or \"required\"",
            );
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(faults)
        }
    }

    /// Reads the files. Nothing is watched yet: that begins with [`Tls::follow`].
    ///
    /// # Errors
    /// Every broken rule of [`check`](Self::check), or else every file that can't be used, with the key at fault.
    pub async fn load(self, cx: TlsContext) -> Result<Arc<Tls>, Vec<BuildError>> {
        self.check()?;
        let TlsContext { name, base, clock } = cx;
        let files = Files {
            cert: base.join(&self.cert),
            key: base.join(&self.key),
            client_cert: self.client_cert,
            client_ca: self.client_ca.map(|path| base.join(path)),
            crl: self.crl.iter().map(|path| base.join(path)).collect(),
        };
        let wall = Arc::new(Wall(clock));
        let clock = Arc::clone(&wall);
        let (files, watch, material) = blocking(move || {
            let watch = Watch::new(files.paths());
            let material = files.read(&clock, None);
            (files, watch, material)
        })
        .await?;
        let material = material.map_err(|unusable| unusable.faults)?;
        Ok(Arc::new(Tls {
            name,
            files,
            handshake_timeout: self.handshake_timeout.0,
            wall,
            material: RwLock::new(Arc::new(material)),
            following: Arc::new(tokio::sync::Mutex::new(Following {
                watch,
                trouble: None,
            })),
            ears: Mutex::default(),
            metrics: OnceLock::new(),
        }))
    }
}

/// What is spoken inside, by its name in the handshake (ALPN). A client that offers protocols without the one that is
/// spoken is refused; one that offers none is not. So what a browser was made to send to a port of lines, thinking it
/// HTTP, gets no answer that could pass for one by a server of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alpn(&'static str);

impl Alpn {
    /// HTTP/1.1, as `http/1.1`.
    pub const HTTP: Self = Self::new("http/1.1");
    /// Lines of JSON, and whatever else has no name of its own, as `chinwag`.
    pub const CHINWAG: Self = Self::new("chinwag");

    /// The protocol `name`, of 1 to 255 bytes. What is registered with IANA should be spoken by no other protocol: its
    /// clients would take the answers for real.
    ///
    /// # Panics
    /// The name is empty, or too long. In a constant that is an error of the compiler's.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        assert!(
            matches!(name.len(), 1..=255),
            "the name of a protocol has 1 to 255 bytes"
        );
        Self(name)
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.0
    }
}

/// One TLS table, loaded: shakes hands, and keeps up with its files.
pub struct Tls {
    name: Arc<str>,
    files: Files,
    handshake_timeout: Duration,
    wall: Arc<Wall>,
    material: RwLock<Arc<Material>>,
    /// Held while files are read and what comes of it is put in force, on a thread that may block. Whoever waits for it
    /// holds no thread.
    following: Arc<tokio::sync::Mutex<Following>>,
    /// Who wants to know of reloads; as many as were wired.
    ears: Mutex<Vec<Arc<Hear>>>,
    metrics: OnceLock<Arc<TlsMetrics>>,
}

type Hear = dyn Fn(&Judge) + Send + Sync;

/// What keeping up with the files needs.
struct Following {
    watch: Watch,
    trouble: Option<Trouble>,
}

/// Files that can't be used.
struct Trouble {
    /// What is wrong with them, by key.
    faults: Vec<(Option<&'static str>, String)>,
    /// When that was told last.
    told: Instant,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("name", &self.name)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// How long a look at the files, with all that follows from it, may take before that is told as an error in the log
    /// and by `chinwag_config_reload_overdue`. It goes on; whoever waits for a [`reload`](Self::reload) longer than that
    /// should let nobody wait behind it.
    pub const PATIENCE: Duration = Duration::from_secs(5);

    /// The name of its table.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Whether clients are asked for a certificate.
    #[must_use]
    pub fn client_cert(&self) -> ClientCert {
        self.files.client_cert
    }

    /// What is odd about the files as they are now and keeps nothing from working, in sentences: a certificate that
    /// has expired, a key that others may read.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.current().warnings.clone()
    }

    /// What of its files has an end in time, for [`TlsMetrics::register`].
    #[must_use]
    pub fn expiring(&self) -> Vec<TlsExpiry> {
        self.files.expiring()
    }

    /// The configuration for a new handshake. Take it anew for each, so that changed files count.
    #[must_use]
    pub fn server_config(&self, alpn: Alpn) -> Arc<ServerConfig> {
        let mut config = self.current().config.clone();
        config.alpn_protocols = vec![alpn.name().into()];
        Arc::new(config)
    }

    /// Shakes hands over `io` within `handshake_timeout`. `local` is this end of the connection, and `remote` the
    /// other, as an address or with the client that a proxy there has named. What fails is counted, and logged at
    /// debug; a client that was refused is given a second to read why.
    ///
    /// Dropping the future drops the connection.
    ///
    /// # Errors
    /// Why there is no connection.
    pub async fn accept<IO>(
        self: &Arc<Self>,
        io: IO,
        alpn: Alpn,
        local: SocketAddr,
        remote: impl Into<Remote>,
    ) -> Result<(TlsStream<IO>, TlsPeer), TlsFailure>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let remote = remote.into();
        let began = clock::now();
        let accepted = self.shake_hands(io, alpn, local, remote).await;
        match &accepted {
            Ok((stream, _)) => {
                if let Some(metrics) = self.metrics.get() {
                    let is_resumed = is_resumed(stream.get_ref().1);
                    metrics.shook(is_resumed, began.elapsed());
                }
            }
            Err(failure) => self.failed(*failure, remote),
        }
        accepted
    }

    async fn shake_hands<IO>(
        self: &Arc<Self>,
        io: IO,
        alpn: Alpn,
        local: SocketAddr,
        remote: Remote,
    ) -> Result<(TlsStream<IO>, TlsPeer), TlsFailure>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let generation = self.current().generation;
        let accept = TlsAcceptor::from(self.server_config(alpn))
            .accept(io)
            .into_fallible();
        match timeout(self.handshake_timeout, accept).await {
            Err(_elapsed) => Err(TlsFailure::Timeout),
            Ok(Err((error, mut io))) => {
                let failure = failure::of_io(&error);
                if !matches!(failure, TlsFailure::Closed | TlsFailure::Alert) {
                    linger(&mut io).await;
                }
                Err(failure)
            }
            Ok(Ok(stream)) => {
                let connection = stream.get_ref().1;
                let peer = TlsPeer {
                    tls: Arc::clone(self),
                    facts: Arc::new(facts(connection, local, remote.address)?),
                    remote,
                    // A resumed connection was not judged by anybody.
                    judged: Mutex::new(
                        (!is_resumed(connection)).then(|| (generation, clock::now())),
                    ),
                };
                peer.judge()?;
                Ok((stream, peer))
            }
        }
    }

    /// Judges a client's certificate by the files as they are now.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn judge(&self, certificate: &Certificate) -> Result<(), TlsFailure> {
        judge_by(&self.current(), certificate, self.wall.now())
    }

    /// Has `hear` called each time that other clients are trusted than before, because `client_ca` or `crl` changed:
    /// on a thread that may block, and when the new state is in force. It stays for as long as this does. The files are
    /// held while it hears: it must not wait for [`reload`](Self::reload), which waits for it.
    pub fn on_reload(&self, hear: impl Fn(&Judge) + Send + Sync + 'static) {
        self.ears.lock().push(Arc::new(hear));
    }

    /// Reads the files anew, whether or not they have changed, once a look at them that is under way has ended: that may
    /// take as long as the system likes. The outcome is counted and logged. Once begun, it goes on when the future is
    /// dropped.
    ///
    /// # Errors
    /// Every file that can't be used; then everything stays as it was.
    pub async fn reload(self: &Arc<Self>) -> Result<(), Vec<BuildError>> {
        self.alone(|tls, following| tls.take(following, Due::Changed))
            .await?
    }

    /// Begins to count, and to look at the files every second until the server drains or this is dropped. `metrics`
    /// were registered for what [`expiring`](Self::expiring) tells. To be called once.
    pub fn follow(self: &Arc<Self>, lifecycle: &Lifecycle, metrics: Arc<TlsMetrics>) {
        if self.metrics.set(metrics).is_err() {
            return;
        }
        self.tell_ends(&self.current());
        let (tls, ears) = (Arc::downgrade(self), lifecycle.clone());
        lifecycle.spawn(async move {
            tokio::select! {
                () = ears.draining() => {}
                // By itself, so that files that don't come hide no end.
                () = tell_of_ends(tls.clone()) => {}
                () = keep_up(tls) => {}
            }
        });
    }

    fn current(&self) -> Arc<Material> {
        Arc::clone(&self.material.read())
    }

    /// Does `work` on a thread that may block when nobody else does any: however often files are asked for that don't
    /// come, they hold one thread.
    async fn alone<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self, &mut Following) -> T + Send + 'static,
    ) -> Result<T, Vec<BuildError>> {
        let mut following = Arc::clone(&self.following).lock_owned().await;
        let tls = Arc::clone(self);
        blocking(move || work(&tls, &mut following)).await
    }

    /// Reads the files, puts them in force and tells who wants to know. Blocks.
    fn take(&self, following: &mut Following, due: Due) -> Result<(), Vec<BuildError>> {
        let before = self.current();
        let read = following
            .watch
            .take(|| self.files.read(&self.wall, Some(&before)));
        let is_unread = read.as_ref().is_err_and(|unusable| unusable.is_unread);
        following.watch.try_again(is_unread);
        let mut material = match read {
            Ok(material) => material,
            Err(Unusable { faults, .. }) => {
                let found = faults.iter().map(|fault| (fault.key, fault.to_string()));
                let trouble = Trouble {
                    faults: found.collect(),
                    told: clock::now(),
                };
                let known = following.trouble.as_ref();
                if due == Due::Again && known.is_some_and(|known| known.faults == trouble.faults) {
                    // What has been tried again in vain is no news.
                    debug!(tls = %self.name, "TLS files still can't be read.");
                } else {
                    let what = if is_unread {
                        "TLS files can't be read just now; those read before stay, and it is tried again."
                    } else {
                        "The changed TLS files can't be used; those read before stay."
                    };
                    self.complain(&trouble, what);
                    following.trouble = Some(trouble);
                }
                return Err(faults);
            }
        };
        following.trouble = None;
        if let Some(metrics) = self.metrics.get() {
            metrics.reloaded(true);
        }
        for warning in &material.warnings {
            warn!(tls = %self.name, "{warning}");
        }
        info!(tls = %self.name, "TLS files read anew.");
        let inside = material.inside.take();
        let material = Arc::new(material);
        self.tell_ends(&material);
        *self.material.write() = material;
        // Still held: nobody hears of what an older look found after a newer one.
        if let Some(verifier) = inside {
            let judge = Judge {
                verifier,
                now: self.wall.now(),
            };
            let ears = self.ears.lock().clone();
            for hear in ears {
                hear(&judge);
            }
        }
        Ok(())
    }

    /// Logs and counts that files can't be used.
    fn complain(&self, trouble: &Trouble, what: &str) {
        if let Some(metrics) = self.metrics.get() {
            metrics.reloaded(false);
        }
        for (key, error) in &trouble.faults {
            error!(tls = %self.name, key, %error, "{what}");
        }
    }

    /// Takes the files where they have changed and stand still, or are to be tried again; where they can't be used, says
    /// so again from time to time. Blocks.
    fn look(&self, following: &mut Following) {
        if let Some(due) = following.watch.look() {
            // Told where it happens.
            let _ = self.take(following, due);
        } else if let Some(trouble) = &mut following.trouble
            && trouble.told.elapsed() >= REMIND_EVERY
        {
            trouble.told = clock::now();
            self.complain(
                trouble,
                "The TLS files still can't be used; those read before stay.",
            );
        }
    }

    /// Logs and tells in metrics whether a look at the files takes long.
    fn overdue(&self, is_overdue: bool) {
        let (tls, patience) = (&self.name, Self::PATIENCE);
        if is_overdue {
            error!(%tls, ?patience, "TLS files have not come for so long; those read before stay until they do.");
        } else {
            info!(%tls, "TLS files have come after all.");
        }
        if let Some(metrics) = self.metrics.get() {
            metrics.overdue(is_overdue);
        }
    }

    fn tell_ends(&self, material: &Material) {
        if let Some(metrics) = self.metrics.get() {
            for (what, end) in &material.ends {
                metrics.expires(*what, *end);
            }
        }
    }

    fn failed(&self, failure: TlsFailure, remote: Remote) {
        let (name, reason, address) = (&self.name, failure.label(), remote.address);
        match remote.client {
            None => debug!(tls = %name, remote = %address, reason, "TLS was refused."),
            Some(client) => {
                debug!(tls = %name, %client, proxy = %address, reason, "TLS was refused.");
            }
        }
        if let Some(metrics) = self.metrics.get() {
            metrics.failed(failure);
        }
    }
}

/// Looks at the clock, and tells when something has ended.
async fn tell_of_ends(tls: Weak<Tls>) {
    let mut last = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(tls) = tls.upgrade() else {
            return;
        };
        let now = tls.wall.unix_seconds();
        for (what, end) in &tls.current().ends {
            if last.is_some_and(|last| last < *end) && *end <= now {
                let what = what.label();
                error!(tls = %tls.name, what, "What TLS rests on has just ended, and was not renewed.");
            }
        }
        last = Some(now);
    }
}

/// Looks at the files. Whatever else reads them, a look waits for it, and so tells of it when it takes long.
async fn keep_up(tls: Weak<Tls>) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(tls) = tls.upgrade() else {
            return;
        };
        let mut look = pin!(tls.alone(Tls::look));
        let looked = match timeout(Tls::PATIENCE, look.as_mut()).await {
            Ok(looked) => looked,
            Err(_elapsed) => {
                tls.overdue(true);
                let looked = look.await;
                tls.overdue(false);
                looked
            }
        };
        if looked.is_err() {
            error!(tls = %tls.name, "Whoever was to hear of changed TLS files panicked.");
        }
    }
}

/// Judges clients that are inside already by files that have just changed.
pub struct Judge {
    verifier: Arc<ClientVerifier>,
    now: UnixTime,
}

impl fmt::Debug for Judge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judge").finish_non_exhaustive()
    }
}

impl Judge {
    /// Whether `certificate` may stay. A list of revoked certificates that is out of date, or missing, keeps newcomers
    /// out but throws nobody out: what it says still counts.
    ///
    /// # Errors
    /// What is wrong with it: it is revoked, its CA is trusted no more, it has ended.
    pub fn check(&self, certificate: &Certificate) -> Result<(), TlsFailure> {
        match self.verifier.judge(&chain(certificate), self.now) {
            Err(TlsFailure::StaleCrl | TlsFailure::UnknownRevocation) => Ok(()),
            verdict => verdict,
        }
    }
}

/// Whence a connection comes, for [`Tls::accept`].
#[derive(Debug, Clone, Copy)]
pub struct Remote {
    /// Its other end.
    pub address: SocketAddr,
    /// The client, where a proxy is at the other end and has named it.
    pub client: Option<IpAddr>,
}

impl From<SocketAddr> for Remote {
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            client: None,
        }
    }
}

/// The other end of a connection.
#[derive(Debug)]
pub struct TlsPeer {
    tls: Arc<Tls>,
    facts: Arc<TlsFacts>,
    remote: Remote,
    /// By which state of the files, and when, its certificate was found to be good.
    judged: Mutex<Option<(u64, Instant)>>,
}

impl TlsLink for TlsPeer {
    fn facts(&self) -> &Arc<TlsFacts> {
        &self.facts
    }

    /// Costs next to nothing while the files stay the same, for ten seconds at a time. What is found wrong is counted.
    fn check(&self) -> Result<(), TlsFailure> {
        self.judge()
            .inspect_err(|failure| self.tls.failed(*failure, self.remote))
    }
}

impl TlsPeer {
    fn judge(&self) -> Result<(), TlsFailure> {
        let Some(certificate) = &self.facts.certificate else {
            return Ok(());
        };
        let material = self.tls.current();
        let is_fresh = self.judged.lock().is_some_and(|(generation, at)| {
            generation == material.generation && at.elapsed() < FRESH
        });
        if !is_fresh {
            judge_by(&material, certificate, self.tls.wall.now())?;
            *self.judged.lock() = Some((material.generation, clock::now()));
        }
        Ok(())
    }
}

fn judge_by(
    material: &Material,
    certificate: &Certificate,
    now: UnixTime,
) -> Result<(), TlsFailure> {
    let clients = material.clients.as_ref().ok_or(TlsFailure::UnknownCa)?;
    clients.verifier.judge(&chain(certificate), now)
}

fn chain(certificate: &Certificate) -> Vec<CertificateDer<'_>> {
    certificate
        .chain
        .iter()
        .map(|der| CertificateDer::from(der.as_slice()))
        .collect()
}

/// What authenticators are told of a connection between `local` and `remote` whose handshake is done. Whether a
/// certificate in a resumed connection is still good has to be asked apart: [`Tls::judge`].
///
/// # Errors
/// [`TlsFailure::BadCertificate`]: the client's certificate can't be read.
pub fn facts(
    connection: &ServerConnection,
    local: SocketAddr,
    remote: SocketAddr,
) -> Result<TlsFacts, TlsFailure> {
    let version = match connection.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLS1.3",
        _ => "TLS1.2",
    };
    let cipher = connection
        .negotiated_cipher_suite()
        .and_then(|suite| suite.suite().as_str())
        .unwrap_or_default()
        // rustls puts the version into the names of those of TLS 1.3.
        .replacen("TLS13_", "TLS_", 1);
    let mut facts = TlsFacts::new(version, cipher, local, remote);
    facts.server_name = connection.server_name().map(str::to_ascii_lowercase);
    if let Some(chain) = connection
        .peer_certificates()
        .filter(|chain| !chain.is_empty())
    {
        let certificate = read(chain).map_err(|_| TlsFailure::BadCertificate)?;
        facts.certificate = Some(Arc::new(certificate));
    }
    Ok(facts)
}

/// Takes apart a client's certificate in PEM form, with what leads from it to a CA behind it; a private key among them
/// is passed over. Whether it is any good is not looked at: see [`Tls::judge`].
///
/// # Errors
/// A sentence on what is wrong with the text.
pub fn read_certificate(pem: &[u8]) -> Result<Certificate, BuildError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(|error| BuildError::new(material::Pem(&error).to_string()))?;
    if chain.is_empty() {
        return Err(BuildError::new(
            "has no certificate; it needs \"-----BEGIN CERTIFICATE-----\"",
        ));
    }
    read(&chain).map_err(|_| BuildError::new("the first certificate is damaged"))
}

fn is_resumed(connection: &ServerConnection) -> bool {
    connection.handshake_kind() == Some(HandshakeKind::Resumed)
}

/// Lets a peer that was sent an alert read it: bytes of its own that nobody reads would have the system reset the
/// connection, alert and all.
async fn linger<IO: AsyncRead + AsyncWrite + Unpin>(io: &mut IO) {
    let drained = async {
        io.shutdown().await?;
        let mut bytes = [0; 1024];
        let mut left = LINGER_BYTES;
        loop {
            match io.read(&mut bytes).await? {
                0 => return io::Result::Ok(()),
                count if count >= left => return Ok(()),
                count => left -= count,
            }
        }
    };
    // Whatever comes of it, the connection ends.
    let _ = timeout(LINGER, drained).await;
}

/// Runs `work` where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Vec<BuildError>> {
    spawn_blocking(work).await.map_err(|error| {
        vec![BuildError::new(format!(
            "reading TLS files failed: {error}"
        ))]
    })
}
