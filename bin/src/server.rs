//! A running server: everything that a configuration names, bound, serving, and able to stop.

use std::{
    collections::BTreeMap, fmt, io, net::SocketAddr, path::Path, pin::pin, sync::Arc,
    time::Duration,
};

use chinwag_core::{
    ConfigFault, Hub, Lifecycle, ScopeConfig, Telemetry, TlsMetrics, clock, plugin::Meter,
};
#[cfg(feature = "http")]
use chinwag_transports::HttpListener;
use chinwag_transports::{BindContext, BindError, Listeners, LocalAddr, Transport, tls::Tls};
use tokio::{
    sync::{Notify, Semaphore},
    time::timeout,
};
use tracing::{error, info, instrument::WithSubscriber, subscriber::NoSubscriber, warn};

#[cfg(feature = "http")]
use crate::control;
#[cfg(unix)]
use crate::descriptors;
#[cfg(feature = "web")]
use crate::web;
use crate::{
    config::{ConfigError, Draft, Loaded, LoadedManager, LoadedTransport, OnUnreachable, Source},
    metrics::{self, Endpoint, Health},
    plugins::{Plugins, ReadyToBind},
};

/// How long answers of the metrics endpoint may take once all else has stopped.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// The part of the grace that is kept for tasks to end once every session was told; a tenth of a short grace.
const CLOSING: Duration = Duration::from_secs(1);

/// How many TLS tables are read anew at a time: lists of revoked certificates may be large.
const RELOADS: usize = 8;

/// A running server. Dropping it drops every task at once; [`shut_down`](Self::shut_down) says goodbye first.
///
/// Any number may run in one process: nothing is global, each has its own metrics.
#[must_use = "a server that is dropped stops"]
pub struct Server {
    hub: Hub,
    life: Life,
    /// The metrics endpoint has a life of its own, so that a drain can be watched to its end.
    watch: Life,
    addresses: BTreeMap<String, LocalAddr>,
    metrics: Option<SocketAddr>,
    control: Option<SocketAddr>,
    health: Arc<Health>,
    grace: Duration,
    /// Each asks for the files of a TLS table to be read anew.
    reloads: Vec<Arc<Notify>>,
}

impl Server {
    /// Starts what `document`, the text of a TOML file, names: reads and checks everything, binds every listener, and
    /// only then serves. Relative paths in it start from `base`. The environment is not read. The soft limit of the
    /// process on open descriptors is raised where the listeners may need more.
    ///
    /// # Errors
    /// The configuration is wrong, or a listener could not be bound. Nothing is left running then.
    pub async fn start(plugins: Plugins, document: &str, base: &Path) -> Result<Self, StartError> {
        let source = Source {
            name: "configuration",
            text: document,
            base,
            builtin: false,
        };
        let draft = Draft::read(&plugins, source, [])?;
        Self::launch(draft).await
    }

    /// Starts what `draft` names.
    pub(crate) async fn launch(draft: Draft) -> Result<Self, StartError> {
        let life = Life::default();
        let recorder = metrics::recorder();
        let rendered = recorder.handle();
        let meter = Meter::new(recorder);
        let loaded = draft.measured(meter.clone()).build(&life.0).await?;
        loaded.tell();
        #[cfg(unix)]
        descriptors::provide(&loaded);
        let Loaded {
            base,
            hub: config,
            tls,
            transports,
            authenticators,
            managers,
            #[cfg(feature = "http")]
            control,
            metrics,
            #[cfg(feature = "web")]
            page,
            document,
            ..
        } = loaded;
        let grace = config.server.shutdown_grace.0;
        let idle = config.sessions.timeout.0;
        let names: Vec<&str> = transports
            .iter()
            .map(|transport| transport.name.as_str())
            .collect();
        #[cfg(feature = "http")]
        let names = [names, control.iter().map(|_| control::NAME).collect()].concat();
        let told: Vec<&str> = managers.iter().map(|manager| &*manager.link.name).collect();
        let asked: Vec<&str> = authenticators.iter().map(String::as_str).collect();
        let shadows: Vec<(&str, &str)> = transports
            .iter()
            .flat_map(|transport| &transport.auth)
            .filter_map(|link| Some((&*link.name, &*link.shadow.as_ref()?.name)))
            .collect();
        let telemetry = Telemetry::new(meter.recorder(), &names, &asked, &shadows, &told);
        let hub = Hub::start(config, telemetry, life.0.clone())
            .map_err(|faults| Loaded::refuse(&document, &faults))?;

        for (name, table) in &tls {
            let metrics = TlsMetrics::register(meter.recorder(), name, &table.expiring());
            table.follow(&life.0, metrics);
        }

        let mut failures = Vec::new();
        let mut bound = Vec::new();
        let listeners = Listeners::default();
        #[cfg(feature = "web")]
        let mut shared = None;
        for transport in transports {
            let (name, speaks) = (transport.name.clone(), transport.tls.clone());
            let (ready, cx) = context(transport, &base, &hub, &listeners, idle);
            #[cfg(feature = "web")]
            if page.as_ref().is_some_and(|page| page.transport == name) {
                let scheme = if speaks.is_some() { "https" } else { "http" };
                shared = Some((cx.clone(), scheme));
            }
            let asked = cx.clone();
            let taken = ready.bind(cx).await;
            match taken.and_then(|transport| asked.check_tls().map(|()| transport)) {
                Ok(transport) => bound.push((name, speaks, transport)),
                Err(error) => failures.push(ListenError::Transport(error)),
            }
        }
        // Where a transport could not be bound there is enough to say already.
        #[cfg(feature = "web")]
        if failures.is_empty()
            && let (Some(page), Some((cx, scheme))) = (page, shared)
        {
            match web::serve(&cx, &page.settings).await {
                Ok(address) => info!("The chat page is at {scheme}://{address}/"),
                Err(error) => failures.push(ListenError::Page(error)),
            }
        }
        #[cfg(feature = "http")]
        let orders = match control {
            None => None,
            Some(control) => {
                let tls = control.tls.clone();
                match control::bind(&hub, control).await {
                    Ok(listener) => Some((listener, tls)),
                    Err(error) => {
                        failures.push(ListenError::Control(error));
                        None
                    }
                }
            }
        };
        let named = metrics.as_ref().and_then(|metrics| metrics.tls.as_ref());
        let watch_tls = named.and_then(|name| tls.get(name).cloned());
        let endpoint = match metrics {
            None => None,
            Some(metrics) => match Endpoint::bind(metrics.bind, watch_tls.clone()).await {
                Ok(endpoint) => Some(endpoint),
                Err(source) => {
                    failures.push(ListenError::Metrics {
                        address: metrics.bind,
                        source,
                    });
                    None
                }
            },
        };
        let clashes: Vec<ConfigFault> = failures.iter().filter_map(clash).collect();
        if !clashes.is_empty() {
            return Err(Loaded::refuse(&document, &clashes).into());
        }
        if !failures.is_empty() {
            return Err(StartError::Listen(failures));
        }

        let links = managers
            .iter()
            .map(|manager| manager.link.clone())
            .collect();
        let mut server = Self {
            hub,
            life,
            watch: Life::default(),
            addresses: BTreeMap::new(),
            metrics: endpoint.as_ref().map(Endpoint::address),
            control: None,
            health: Arc::new(Health::new(links)),
            grace,
            reloads: Vec::new(),
        };
        #[cfg(feature = "http")]
        if let Some((listener, tls)) = orders {
            server.take_orders(listener, tls.as_deref());
        }
        server.reach(managers).await?;
        for (name, speaks, transport) in bound {
            server.serve(name, speaks.as_deref(), transport);
        }
        server.hear_reloads(tls.into_values());
        let upkeep = metrics::upkeep(rendered.clone(), server.life.0.clone());
        server.life.0.spawn(upkeep);
        if let Some(endpoint) = endpoint {
            let tls = watch_tls.as_ref().map(|tls| &**tls.name());
            info!(transport = %"metrics", addr = %endpoint.address(), tls, "listening");
            let lifecycle = server.watch.0.clone();
            let (health, telemetry) = (server.health.clone(), server.hub.telemetry().clone());
            let serve = endpoint.serve(rendered, health, telemetry, lifecycle);
            server.watch.0.spawn(serve);
        }
        Ok(server)
    }

    #[cfg(feature = "http")]
    fn take_orders(&mut self, listener: HttpListener, speaks: Option<&Tls>) {
        let address = listener.local_addr();
        let tls = speaks.map(|tls| &**tls.name());
        info!(transport = %control::NAME, addr = %address, tls, "listening");
        self.control = Some(address);
        self.life.0.spawn(async move { listener.serve().await });
    }

    /// Reaches for the session managers; those whose tables ask for it have to be there.
    async fn reach(&self, managers: Vec<LoadedManager>) -> Result<(), StartError> {
        for LoadedManager {
            link,
            on_unreachable,
            ..
        } in managers
        {
            let name = link.name.clone();
            let reached = async move {
                let reached = timeout(link.timeout, link.manager.reach()).await;
                reached.unwrap_or_else(|_| Err("it did not answer in time".into()))
            };
            match on_unreachable {
                OnUnreachable::Fail => reached.await.map_err(|why| {
                    StartError::Unreachable(format!("session_managers.{name}: {why}"))
                })?,
                OnUnreachable::Warn => self.life.0.spawn(async move {
                    if let Err(why) = reached.await {
                        warn!(session_manager = %name, why, "A session manager is out of reach; each log-in tries again.");
                    }
                }),
                OnUnreachable::Silent => {
                    let reached = reached.with_subscriber(NoSubscriber::new());
                    self.life.0.spawn(async move { drop(reached.await) });
                }
            }
        }
        Ok(())
    }

    fn serve(&mut self, name: String, speaks: Option<&Tls>, transport: Box<dyn Transport>) {
        let address = transport.local_addr();
        let tls = speaks.map(|tls| &**tls.name());
        info!(transport = %name, addr = %address, tls, "listening");
        self.addresses.insert(name.clone(), address);
        let health = self.health.clone();
        self.life.0.spawn(async move {
            if let Err(error) = transport.serve().await {
                error!(transport = %name, error = %Chain(&error), "A listener failed; nobody new gets in there.");
                health.fail(&name);
            }
        });
    }

    /// Each table by itself: files that are slow to come hold up no others.
    fn hear_reloads(&mut self, tables: impl Iterator<Item = Arc<Tls>>) {
        let places = Arc::new(Semaphore::new(RELOADS));
        for tls in tables {
            let asked = Arc::new(Notify::new());
            self.reloads.push(asked.clone());
            let (places, lifecycle) = (places.clone(), self.life.0.clone());
            self.life.0.spawn(async move {
                let read = async {
                    loop {
                        asked.notified().await;
                        let place = places.acquire().await;
                        let place = place.expect("the semaphore is never closed");
                        // What came of it is logged and counted there.
                        let mut reload = pin!(tls.reload());
                        if timeout(Tls::PATIENCE, reload.as_mut()).await.is_err() {
                            // Files that don't come take no place from those that do.
                            drop(place);
                            let _ = reload.await;
                        }
                    }
                };
                tokio::select! {
                    () = lifecycle.draining() => {}
                    () = read => {}
                }
            });
        }
    }

    /// Has the files of every `[tls.NAME]` read anew, whether or not they have changed, and returns at once. What can't
    /// be used stays as it was; the outcome is logged and counted. Asked several times while a table is being read, it is
    /// read once more.
    pub fn reload(&self) {
        if self.reloads.is_empty() {
            info!("No [tls.NAME] has files to read anew; a changed configuration takes a restart.");
        } else {
            info!("Reading TLS files anew.");
            for reload in &self.reloads {
                reload.notify_one();
            }
        }
    }

    /// The address that a transport took; where the file says port 0, with the port that the system chose. `None`: there
    /// is no such transport, or it listens on something else than an address of IP.
    #[must_use]
    pub fn addr(&self, transport: &str) -> Option<SocketAddr> {
        self.addresses.get(transport)?.ip()
    }

    /// The address that `/metrics`, `/livez` and `/readyz` took, where the file has `[metrics]`.
    #[must_use]
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics
    }

    /// The address that orders are taken at, where the file has `[control]`.
    #[must_use]
    pub fn control_addr(&self) -> Option<SocketAddr> {
        self.control
    }

    /// Where rooms and sessions live.
    #[must_use]
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Stops in good order within the file's `shutdown_grace`: is not ready any more, accepts nobody, finishes what was
    /// accepted, says goodbye to every session, waits for every task. Returns how many tasks outlived the grace and
    /// were dropped; 0 is a clean end.
    pub async fn shut_down(self) -> usize {
        let begun = clock::now();
        self.health.drain();
        info!(grace = ?self.grace, "draining");
        // Pollers that never ask again hold the drain to its end; listeners then still need a moment to close.
        let farewell = self.grace - (self.grace / 10).min(CLOSING);
        self.hub.drain(farewell).await;
        let rest = self.grace.saturating_sub(begun.elapsed());
        let dropped = self.life.0.shut_down(rest).await;
        self.watch.0.shut_down(LAST_ANSWERS).await;
        dropped
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("addresses", &self.addresses)
            .field("metrics", &self.metrics)
            .finish_non_exhaustive()
    }
}

/// A lifecycle whose tasks end with it, however its owner ends.
#[derive(Debug, Default)]
struct Life(Lifecycle);

impl Drop for Life {
    fn drop(&mut self) {
        self.0.kill();
    }
}

/// A transport with what it is bound with.
fn context(
    transport: LoadedTransport,
    base: &Path,
    hub: &Hub,
    listeners: &Listeners,
    idle: Duration,
) -> (Box<dyn ReadyToBind>, BindContext) {
    let listener = transport.listener;
    let scope = hub.scope(ScopeConfig {
        name: transport.name.clone(),
        auth: transport.auth,
        timeout: listener.timeout.map_or(idle, |own| own.0),
        login_timeout: listener.login_timeout.0,
        write_timeout: listener.write_timeout.0,
    });
    let cx = BindContext::new(
        transport.name,
        Arc::new(listener),
        hub.clone(),
        scope,
        listeners.clone(),
    )
    .with_base(base)
    .with_tls(transport.tls);
    (transport.ready, cx)
}

/// A failure that no free port mends: what the file says twice.
fn clash(error: &ListenError) -> Option<ConfigFault> {
    match error {
        ListenError::Transport(BindError::Path { transport, path }) => Some(ConfigFault {
            key: format!("transports.{transport}"),
            message: format!("another transport on the same bind has the path {path:?}"),
        }),
        ListenError::Transport(BindError::PlainText { transport, .. }) => Some(ConfigFault {
            key: format!("transports.{transport}.tls"),
            message: "this kind does not speak TLS: it has asked its BindContext for none of stream(), http() and tls(), \
                      and would listen in plain text"
                .into(),
        }),
        #[cfg(feature = "web")]
        ListenError::Page(BindError::Path { path, .. }) => Some(ConfigFault {
            key: "web.bind".into(),
            message: format!("a transport on the same bind has the page's path {path:?}"),
        }),
        _ => None,
    }
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration is wrong: every mistake in it.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Listeners that could not be bound: every one of them.
    #[error("{}", lines(.0))]
    Listen(Vec<ListenError>),
    /// A session manager with `on_unreachable = "fail"` that is out of reach: which, and why.
    #[error("error: {0}")]
    Unreachable(String),
}

/// Why one listener could not be bound.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// That of a transport.
    #[error(transparent)]
    Transport(#[from] BindError),
    /// That of `[web]`.
    #[cfg(feature = "web")]
    #[error("web: the page can't be served")]
    Page(#[source] BindError),
    /// That of `[control]`.
    #[cfg(feature = "http")]
    #[error("control: orders can't be taken")]
    Control(#[source] BindError),
    /// That of `[metrics]`.
    #[error("metrics: can't bind {address}")]
    Metrics {
        /// What the file says.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// One line for each, causes included: a list has no single source to chain.
fn lines(errors: &[ListenError]) -> String {
    let lines: Vec<String> = errors
        .iter()
        .map(|error| format!("error: {}", Chain(error)))
        .collect();
    lines.join("\n")
}

/// An error with its causes behind it.
struct Chain<'a>(&'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use chinwag_transports::{ServeError, TransportConfig, Wire};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    /// A transport of somebody else's: says a word to whoever connects, and then waits until they go.
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Speaker {
        word: String,
        /// Whether it says that it speaks TLS.
        #[serde(default)]
        wary: bool,
    }

    struct Speaking {
        word: String,
        listener: TcpListener,
        lifecycle: Lifecycle,
    }

    #[async_trait]
    impl TransportConfig for Speaker {
        const KIND: &'static str = "speaker";
        const WIRE: Wire = Wire::Stream;

        async fn bind(self, cx: BindContext) -> Result<Box<dyn Transport>, BindError> {
            let address = cx.listener.bind;
            // A look is no promise.
            let _ = cx.tls();
            if self.wary {
                let _ = cx.take_tls();
            }
            let listener = TcpListener::bind(address).await;
            Ok(Box::new(Speaking {
                word: self.word,
                listener: listener.map_err(|source| BindError::Address {
                    transport: cx.name.clone(),
                    address: address.into(),
                    source,
                })?,
                lifecycle: cx.hub.lifecycle().clone(),
            }))
        }
    }

    #[async_trait]
    impl Transport for Speaking {
        fn local_addr(&self) -> LocalAddr {
            self.listener.local_addr().unwrap().into()
        }

        async fn serve(self: Box<Self>) -> Result<(), ServeError> {
            if self.word.is_empty() {
                return Err(ServeError(io::Error::other("nothing to say")));
            }
            loop {
                let (mut stream, _) = tokio::select! {
                    () = self.lifecycle.draining() => return Ok(()),
                    accepted = self.listener.accept() => accepted?,
                };
                stream.write_all(self.word.as_bytes()).await?;
                self.lifecycle.spawn(async move {
                    let _ = stream.read(&mut [0]).await;
                });
            }
        }
    }

    const DOCUMENT: &str = "
[server]
shutdown_grace = \"5s\"
[transports.a]
kind = \"speaker\"
bind = \"127.0.0.1:0\"
word = \"hello\"
[metrics]
bind = \"127.0.0.1:0\"
";

    async fn start(document: &str) -> Result<Server, StartError> {
        let plugins = Plugins::empty().transport::<Speaker>();
        Server::start(plugins, document, Path::new("")).await
    }

    /// Somebody who has been spoken to.
    async fn listen(server: &Server) -> TcpStream {
        let mut stream = TcpStream::connect(server.addr("a").unwrap()).await.unwrap();
        let mut word = [0; 5];
        stream.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"hello");
        stream
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_server_serves_and_is_watched_until_it_has_drained() {
        let server = start(DOCUMENT).await.unwrap();
        let watch = server.metrics_addr().unwrap();
        assert_eq!(server.addr("b"), None);
        assert!(get(watch, "/readyz").await.starts_with("HTTP/1.1 200 "));
        let metrics = get(watch, "/metrics").await;
        assert!(
            metrics.contains("\nchinwag_sessions{transport=\"a\"} 0\n"),
            "{metrics}"
        );
        assert!(
            metrics.contains("\n# TYPE chinwag_lane_turn_seconds histogram\n"),
            "{metrics}"
        );
        let listener = listen(&server).await;
        let down = server.shut_down();
        tokio::pin!(down);
        let answer = tokio::select! {
            biased;
            _ = &mut down => panic!("somebody is still there"),
            answer = get(watch, "/readyz") => answer,
        };
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(
            answer.ends_with("{\"ready\":false,\"reasons\":[\"draining\"]}\n"),
            "{answer}"
        );
        drop(listener);
        assert_eq!(down.await, 0);
        assert!(
            TcpStream::connect(watch).await.is_err(),
            "all listeners are gone"
        );
    }

    #[tokio::test]
    async fn who_outlives_the_grace_is_dropped_and_counted() {
        let server = start(DOCUMENT).await.unwrap();
        let mut listener = listen(&server).await;
        tokio::time::pause();
        let before = clock::now();
        assert_eq!(server.shut_down().await, 1);
        assert_eq!(before.elapsed().as_secs(), 5);
        assert_eq!(listener.read(&mut [0]).await.unwrap_or(0), 0);
    }

    #[tokio::test]
    async fn a_server_that_is_dropped_leaves_nothing_behind() {
        let server = start(DOCUMENT).await.unwrap();
        let watch = server.metrics_addr().unwrap();
        let mut listener = listen(&server).await;
        drop(server);
        assert_eq!(listener.read(&mut [0]).await.unwrap_or(0), 0);
        // The accept loop is dropped at its next turn, which a refused connection proves.
        while TcpStream::connect(watch).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_listener_that_fails_makes_the_server_unready() {
        let document = DOCUMENT.replace("hello", "");
        let server = start(&document).await.unwrap();
        let watch = server.metrics_addr().unwrap();
        loop {
            let answer = get(watch, "/readyz").await;
            if answer.starts_with("HTTP/1.1 503 ") {
                assert!(answer.contains("[\"listener a failed\"]"), "{answer}");
                break;
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(server.shut_down().await, 0);
    }

    #[cfg(target_os = "linux")] // For the number of the error.
    #[tokio::test]
    async fn every_address_that_can_not_be_had_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (taken, other) = (taken.local_addr().unwrap(), other.local_addr().unwrap());
        let document = DOCUMENT
            .replacen("127.0.0.1:0", &taken.to_string(), 1)
            .replace("127.0.0.1:0", &other.to_string());
        let error = start(&document).await.unwrap_err();
        assert!(matches!(&error, StartError::Listen(all) if all.len() == 2));
        let text = error.to_string();
        let why = io::Error::from_raw_os_error(98);
        assert_eq!(
            text,
            format!(
                "error: transports.a: can't bind {taken}: {why}\nerror: metrics: can't bind {other}: {why}"
            )
        );
    }

    #[tokio::test]
    async fn a_transport_that_would_ignore_its_tls_does_not_start() {
        let folder = tempfile::tempdir().unwrap();
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let put = |name, text| std::fs::write(folder.path().join(name), text).unwrap();
        put("server.pem", own.cert.pem());
        put("server.key", own.signing_key.serialize_pem());
        let table = "[tls.door]\ncert = \"server.pem\"\nkey = \"server.key\"\n";
        let document = DOCUMENT.replace("\nword", "\ntls = \"door\"\nword") + table;
        let started = async |document: &str| {
            let plugins = Plugins::empty().transport::<Speaker>();
            Server::start(plugins, document, folder.path()).await
        };
        let error = started(&document).await.unwrap_err();
        assert!(matches!(error, StartError::Config(_)), "{error}");
        let text = error.to_string();
        assert!(
            text.contains(
                "configuration:7:7: error: transports.a.tls: this kind does not speak TLS"
            ),
            "{text}"
        );
        let knowing = document.replace("\nword", "\nwary = true\nword");
        assert_eq!(started(&knowing).await.unwrap().shut_down().await, 0);
    }

    #[tokio::test]
    async fn nothing_starts_from_a_wrong_document() {
        let error =
            start("[transports.a]\nkind = \"speaker\"\nbind = \"127.0.0.1:0\"\nwordy = \"x\"")
                .await
                .unwrap_err();
        let text = error.to_string();
        for block in [
            "configuration:1:13: error: transports.a: missing key `word`\n 1 | [transports.a]\n   |             ^\n",
            "configuration:4:1: error: transports.a: unknown key `wordy`; did you mean `word`?\n 4 | wordy",
        ] {
            assert!(text.contains(block), "{text}");
        }
    }
}
