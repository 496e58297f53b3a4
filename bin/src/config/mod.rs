//! From the text of a configuration to everything a server needs, or to every mistake in it at once.
//!
//! [`Draft::read`] parses the document, lays the environment over it and reads each table into its own type;
//! [`Draft::build`] applies the rules between tables, asks the core, and builds authenticators and validators, since
//! they too may find fault with their tables. Nothing is bound here, so `chinwag check` is these two steps alone.

mod budget;
mod check;
mod document;
mod environment;
mod managers;
mod near;
#[cfg(feature = "web")]
mod page;
mod problem;
mod read;
mod reader;
mod sockets;
mod tables;
mod tls;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fmt::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use chinwag_core::{
    ChainLink, ConfigFault, Hub, HubConfig, Lifecycle, Log, RoomPattern, Shadow,
    config::{LimitsConfig, NamesConfig, RoomConfig, ServerConfig, SessionsConfig, Span},
    plugin::{
        AuthenticatorContext, BuildError, ControlDesk, Draft as Message, Meter, Rejection,
        Validator, ValidatorContext,
    },
};
use chinwag_transports::{
    ListenerConfig, Wire,
    tls::{ClientCert, Tls},
};
use figment::value::Value;
use tracing::{debug, info, warn};

#[cfg(feature = "web")]
pub(crate) use self::page::PageConfig;
pub use self::problem::{ConfigError, Problem, Severity};
use self::{
    budget::{Counted, notices},
    document::{Document, KeyPath, Part},
    problem::{Place, words},
    reader::Reader,
    tables::ClusterConfig,
};
pub(crate) use self::{
    budget::{Human, Worst},
    managers::{ControlConfig, LoadedManager, OnUnreachable},
    problem::Problems,
    read::Table,
    sockets::{Listening, sockets},
    tables::{LogConfig, LogFormat, MetricsConfig},
};
use crate::plugins::{Plugins, ReadyToBind, ReadyToBuild, ReadyToValidate};

/// The document that applies where no file is named.
pub(crate) const BUILTIN: &str = include_str!("../builtin.toml");

/// Kinds of transport that come with chinwag, and whether this build has them.
pub(crate) const OWN_TRANSPORTS: [(&str, bool); 3] = [
    ("http-polling", cfg!(feature = "http-polling")),
    ("tcp", cfg!(feature = "tcp")),
    ("websocket", cfg!(feature = "websocket")),
];

/// A configuration as somebody wrote it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    /// What messages call it: the file's name as it was given.
    pub(crate) name: &'a str,
    pub(crate) text: &'a str,
    /// The folder that relative paths start from.
    pub(crate) base: &'a Path,
    /// Whether it is the built-in document, whose choices need no warning.
    pub(crate) builtin: bool,
}

/// A configuration that has been read; what is wrong so far is with it.
pub(crate) struct Draft {
    document: Document,
    problems: Problems,
    base: PathBuf,
    builtin: bool,
    server: ServerConfig,
    sessions: SessionsConfig,
    names: NamesConfig,
    limits: LimitsConfig,
    room: RoomConfig,
    rooms: Vec<RoomDraft>,
    tls: Vec<tls::TlsDraft>,
    transports: Vec<TransportDraft>,
    authenticators: Vec<AuthenticatorDraft>,
    managers: Vec<managers::ManagerDraft>,
    control: Option<managers::ControlDraft>,
    validators: Vec<ValidatorDraft>,
    metrics: Option<MetricsConfig>,
    #[cfg(feature = "web")]
    page: Option<page::PageDraft>,
    log: LogConfig,
    cluster: ClusterConfig,
    /// Who decides the order of events.
    order: Arc<dyn Log>,
    /// Where the series of plugins go.
    meter: Meter,
}

struct RoomDraft {
    path: KeyPath,
    name: String,
    /// `None` where it can match no room.
    pattern: Option<RoomPattern>,
    config: RoomConfig,
}

struct TransportDraft {
    path: KeyPath,
    name: String,
    kind: String,
    wire: Option<Wire>,
    /// `None` where the key is missing or wrong.
    auth: Option<Vec<String>>,
    /// A key that is wrong has its default, or something harmless, in its place.
    listener: Option<ListenerConfig>,
    ready: Option<Box<dyn ReadyToBind>>,
    /// The keys of its kind, as the document has them.
    own: String,
}

struct AuthenticatorDraft {
    path: KeyPath,
    name: String,
    kind: String,
    timeout: Span,
    /// Who is asked beside it, to be compared.
    shadow: Option<String>,
    /// Who is told of the sessions that it lets in.
    session_manager: Option<String>,
    ready: Option<Box<dyn ReadyToBuild>>,
    /// The names of its kind's keys: a value may be a secret.
    own: String,
}

struct ValidatorDraft {
    path: KeyPath,
    name: String,
    kind: String,
    ready: Option<Box<dyn ReadyToValidate>>,
}

/// A configuration without a mistake: all that a server is started from.
pub(crate) struct Loaded {
    /// The folder that relative paths start from.
    pub(crate) base: PathBuf,
    pub(crate) hub: HubConfig,
    /// Every `[tls.NAME]` by its name.
    pub(crate) tls: BTreeMap<String, Arc<Tls>>,
    pub(crate) transports: Vec<LoadedTransport>,
    /// The names of all authenticators.
    pub(crate) authenticators: Vec<String>,
    pub(crate) managers: Vec<LoadedManager>,
    pub(crate) control: Option<ControlConfig>,
    pub(crate) metrics: Option<MetricsConfig>,
    #[cfg(feature = "web")]
    pub(crate) page: Option<PageConfig>,
    /// What the limits allow at the worst, where there is a `memory_budget`.
    pub(crate) memory: Option<Worst>,
    pub(crate) warnings: Vec<Problem>,
    /// Table and what applies in it, defaults included and secrets left out.
    pub(crate) effective: Vec<(String, String)>,
    pub(crate) builtin: bool,
    /// Kept to blame what only starting finds out.
    pub(crate) document: Document,
}

pub(crate) struct LoadedTransport {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) wire: Wire,
    pub(crate) listener: ListenerConfig,
    /// What the listener's `tls` names.
    pub(crate) tls: Option<Arc<Tls>>,
    pub(crate) auth: Vec<ChainLink>,
    pub(crate) ready: Box<dyn ReadyToBind>,
}

impl Loaded {
    /// Faults that the core found although its check found none.
    pub(crate) fn refuse(document: &Document, faults: &[ConfigFault]) -> ConfigError {
        let mut problems = Problems::default();
        for fault in faults {
            problems.error(place_of(document, &fault.key), message_of(document, fault));
        }
        problems
            .into_result()
            .expect_err("the core refuses with at least one fault")
    }

    /// Whether the file has the key at this path, or a variable of the environment gives it.
    pub(crate) fn names(&self, path: &[&str]) -> bool {
        self.document.contains(&KeyPath::new(path.iter().copied()))
    }

    /// Logs what applies in each table and what may not be meant. The built-in document is no news to anybody.
    pub(crate) fn tell(&self) {
        for warning in &self.warnings {
            warn!("{}", warning.brief());
        }
        if let Some(worst) = &self.memory {
            info!(worst = %Human(worst.bytes()), budget = %self.hub.server.memory_budget, "memory");
        }
        for (table, settings) in &self.effective {
            if self.builtin {
                debug!(table, settings, "settings");
            } else {
                info!(table, settings, "settings");
            }
        }
    }
}

impl Draft {
    /// Reads every table. `variables` are those of the environment, or none where it is not to count.
    ///
    /// # Errors
    /// The document's syntax is wrong: then nothing else can be said of it.
    pub(crate) fn read(
        plugins: &Plugins,
        source: Source<'_>,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, ConfigError> {
        let mut problems = Problems::default();
        let variables = environment::overrides(variables, &mut problems);
        let parsed = Document::parse(source.name, source.text, variables, &mut problems);
        let Some(document) = parsed else {
            return Err(problems
                .into_result()
                .expect_err("a document that does not parse has an error"));
        };
        let mut reader = Reader {
            plugins,
            document: &document,
            problems,
        };
        reader.top_level();
        let server = reader.table("server");
        let sessions = reader.table("sessions");
        let names = reader.table("names");
        let limits = reader.table("limits");
        let (room, room_entries) = reader.room();
        let rooms = reader.rooms(&room_entries);
        let tls = reader.tls();
        let transports = reader.transports();
        let authenticators = reader.authenticators();
        let managers = reader.session_managers();
        let control = reader.control();
        let validators = reader.validators();
        let metrics = reader.metrics();
        #[cfg(feature = "web")]
        let page = reader.page();
        let log = reader.table("log");
        let cluster = reader.table("cluster");
        let problems = reader.problems;
        Ok(Self {
            document,
            problems,
            base: source.base.into(),
            builtin: source.builtin,
            server,
            sessions,
            names,
            limits,
            room,
            rooms,
            order: plugins.chosen_log(),
            tls,
            transports,
            authenticators,
            managers,
            control,
            validators,
            meter: Meter::default(),
            metrics,
            #[cfg(feature = "web")]
            page,
            log,
            cluster,
        })
    }

    /// `[server] workers`: the runtime has to be made before anything is built on it.
    pub(crate) fn workers(&self) -> usize {
        self.server.workers
    }

    /// `[log]`: logging begins before anything is built, so that what is built may log.
    pub(crate) fn log(&self) -> &LogConfig {
        &self.log
    }

    /// The same, with the series of plugins going to `meter`.
    pub(crate) fn measured(mut self, meter: Meter) -> Self {
        self.meter = meter;
        self
    }

    /// Applies the rules between tables and builds what the file names. Tasks of plugins run on `lifecycle`, which the
    /// caller ends on an error.
    ///
    /// # Errors
    /// Every mistake in the configuration.
    pub(crate) async fn build(mut self, lifecycle: &Lifecycle) -> Result<Loaded, ConfigError> {
        self.check_tables();
        let tls = self.load_tls().await;
        let desk = self.control.as_ref().map(|_| ControlDesk::default());
        let managers = self.build_managers(lifecycle, desk.as_ref()).await;
        let control = desk.and_then(|desk| self.loaded_control(&desk, &tls));
        let authenticators = self.build_authenticators(lifecycle, &managers).await;
        let validators = self.build_validators(lifecycle);
        let effective = self.effective();
        #[cfg(feature = "web")]
        let page = self.page();
        let hub = HubConfig {
            server: self.server,
            sessions: self.sessions,
            names: self.names,
            limits: self.limits,
            room: self.room,
            rooms: self
                .rooms
                .into_iter()
                .map(|room| {
                    (
                        room.name,
                        room.pattern.unwrap_or_else(unmatched),
                        room.config,
                    )
                })
                .collect(),
            validators,
            log: self.order,
            ..HubConfig::default()
        };
        let faults = Hub::check(&hub);
        for fault in &faults {
            let path = KeyPath::new(fault.key.split('.'));
            let inherited = inherited(&self.document, &fault.key);
            let excused = [Some(&path), inherited.as_ref()]
                .into_iter()
                .flatten()
                .any(|path| self.problems.excuse(path, &fault.message));
            // A fault that a room takes over from [room] has been told there.
            let told = inherited.is_some_and(|inherited| {
                let inherited = inherited.to_string();
                faults
                    .iter()
                    .any(|other| other.key == inherited && other.message == fault.message)
            });
            if !excused && !told {
                self.problems.error(
                    place_of(&self.document, &fault.key),
                    message_of(&self.document, fault),
                );
            }
        }
        let memory = (faults.is_empty() && hub.server.memory_budget.0 > 0).then(|| {
            let listening = self.transports.iter().filter_map(TransportDraft::listening);
            let asks = |tls: &Tls| tls.client_cert() != ClientCert::None;
            Worst::of(&Counted {
                hub: &hub,
                sockets: sockets(listening),
                control: self.control.as_ref().map(|control| &control.listener),
                tls: tls.iter().map(|(name, tls)| (&**name, asks(tls))).collect(),
                notices: notices(&self.document, &self.managers),
                hash_threads: hash_threads(&self.document, &self.authenticators),
                workers: cores(hub.server.workers),
            })
        });
        let key = KeyPath::new(["server", "memory_budget"]);
        if let Some(worst) = &memory
            && worst.bytes() > hub.server.memory_budget.0 as u128
        {
            self.problems.error(
                self.document.locate(&key, Part::Value),
                format!("{key}: {}", worst.refusal(hub.server.memory_budget)),
            );
        }
        let warnings = self.problems.into_result()?;
        let transports = self
            .transports
            .into_iter()
            .filter_map(|transport| {
                let auth = transport.auth.unwrap_or_default();
                let listener = transport.listener?;
                Some(LoadedTransport {
                    name: transport.name,
                    kind: transport.kind,
                    wire: transport.wire?,
                    tls: listener
                        .tls
                        .as_ref()
                        .and_then(|name| tls.get(name).cloned()),
                    listener,
                    auth: auth
                        .into_iter()
                        .filter_map(|name| authenticators.get(&name).cloned())
                        .collect(),
                    ready: transport.ready?,
                })
            })
            .collect();
        Ok(Loaded {
            base: self.base,
            hub,
            tls,
            transports,
            authenticators: authenticators.into_keys().collect(),
            managers: managers.into_values().collect(),
            control,
            metrics: self.metrics,
            #[cfg(feature = "web")]
            page,
            memory,
            warnings,
            effective,
            builtin: self.builtin,
            document: self.document,
        })
    }

    async fn build_authenticators(
        &mut self,
        lifecycle: &Lifecycle,
        managers: &BTreeMap<String, LoadedManager>,
    ) -> BTreeMap<String, ChainLink> {
        let kinds: Vec<String> = self
            .authenticators
            .iter()
            .map(|other| other.kind.clone())
            .collect();
        let mut built = BTreeMap::new();
        for authenticator in &mut self.authenticators {
            let Some(ready) = authenticator.ready.take() else {
                continue;
            };
            let mut cx =
                AuthenticatorContext::new(&authenticator.name, &self.base, lifecycle.clone());
            cx.public_transports = self
                .transports
                .iter()
                .filter(|transport| {
                    let asks = transport
                        .auth
                        .as_ref()
                        .is_some_and(|auth| auth.contains(&authenticator.name));
                    asks && transport.is_public()
                })
                .map(|transport| transport.name.clone())
                .collect();
            cx.has_others = kinds
                .iter()
                .any(|kind| !kind.is_empty() && *kind != authenticator.kind);
            cx.timeout = authenticator.timeout.0;
            cx.meter = self.meter.clone();
            let manager = authenticator.session_manager.as_ref();
            let manager = manager.and_then(|name| managers.get(name));
            let (timeout, revocations) = (cx.timeout, cx.revocations.clone());
            let warnings = cx.warnings.clone();
            match ready.build(cx).await {
                Ok(made) => {
                    for (key, message) in warnings.take() {
                        let path = authenticator.path.key(key);
                        self.problems.warn(
                            self.document.locate(&path, Part::Value),
                            format!("{path}: {message}"),
                        );
                    }
                    let link = ChainLink {
                        name: authenticator.name.as_str().into(),
                        authenticator: made,
                        timeout,
                        revocations,
                        manager: manager.map(|loaded| loaded.link.clone()),
                        shadow: None,
                    };
                    built.insert(authenticator.name.clone(), link);
                }
                Err(error) => {
                    refuse(
                        &self.document,
                        &mut self.problems,
                        &authenticator.path,
                        &error,
                    );
                }
            }
        }
        for authenticator in &self.authenticators {
            let shadow = authenticator.shadow.as_ref();
            let shadow = shadow.and_then(|name| built.get(name)).map(Shadow::of);
            if let Some(link) = built.get_mut(&authenticator.name) {
                link.shadow = shadow;
            }
        }
        built
    }

    /// Every validator of the document by its name: one that could not be built is there too, so that rooms are not
    /// blamed for naming it.
    fn build_validators(&mut self, lifecycle: &Lifecycle) -> BTreeMap<String, Arc<dyn Validator>> {
        let mut built: BTreeMap<String, Arc<dyn Validator>> = BTreeMap::new();
        for validator in &mut self.validators {
            let cx = ValidatorContext::new(&validator.name, &self.base, lifecycle.clone());
            let made = match validator.ready.take().map(|ready| ready.build(cx)) {
                Some(Ok(made)) => made,
                Some(Err(error)) => {
                    refuse(&self.document, &mut self.problems, &validator.path, &error);
                    Arc::new(Unbuilt)
                }
                None => Arc::new(Unbuilt),
            };
            built.insert(validator.name.clone(), made);
        }
        built
    }

    /// What applies in each table, defaults included; no secret is in any of the core's tables.
    fn effective(&self) -> Vec<(String, String)> {
        let mut tables = vec![
            ("server".into(), format!("{:?}", self.server)),
            ("sessions".into(), format!("{:?}", self.sessions)),
            ("names".into(), format!("{:?}", self.names)),
            ("limits".into(), format!("{:?}", self.limits)),
            ("room".into(), format!("{:?}", self.room)),
            (
                "log".into(),
                format!("{:?} {}", self.log.format, self.log.level),
            ),
            ("cluster".into(), format!("{:?}", self.cluster)),
        ];
        for room in &self.rooms {
            let pattern = room.pattern.clone().unwrap_or_else(unmatched);
            let text = format!("{pattern:?} {:?}", room.config);
            tables.push((room.path.to_string(), text));
        }
        for table in &self.tls {
            if let Some(config) = &table.config {
                tables.push((table.path.to_string(), format!("{config:?}")));
            }
        }
        for transport in &self.transports {
            let auth = transport.auth.as_deref().unwrap_or_default();
            let mut text = format!("kind={} auth={auth:?}{}", transport.kind, transport.own);
            match &transport.listener {
                Some(listener) if transport.wire == Some(Wire::Other) => {
                    let _ = write!(
                        text,
                        " timeout={:?} max_connections={} first_byte_timeout={:?} login_timeout={:?} write_timeout={:?}",
                        listener.timeout,
                        listener.max_connections,
                        listener.first_byte_timeout,
                        listener.login_timeout,
                        listener.write_timeout
                    );
                }
                Some(listener) => {
                    let _ = write!(text, " {listener:?}");
                }
                None => (),
            }
            tables.push((transport.path.to_string(), text));
        }
        for authenticator in &self.authenticators {
            let shadow = authenticator.shadow.as_ref();
            let manager = authenticator.session_manager.as_ref();
            let text = format!(
                "kind={} timeout={}{}{}{}",
                authenticator.kind,
                authenticator.timeout,
                shadow.map_or_else(String::new, |name| format!(" shadow={name}")),
                manager.map_or_else(String::new, |name| format!(" session_manager={name}")),
                authenticator.own
            );
            tables.push((authenticator.path.to_string(), text));
        }
        tables.extend(self.effective_managers());
        for validator in &self.validators {
            tables.push((
                validator.path.to_string(),
                format!("kind={}", validator.kind),
            ));
        }
        if let Some(metrics) = &self.metrics {
            tables.push(("metrics".into(), format!("{metrics:?}")));
        }
        #[cfg(feature = "web")]
        if let Some(page) = &self.page {
            tables.push(("web".into(), page.own.trim_start().into()));
        }
        tables
    }
}

/// Stands in for a validator with a mistake in its table, which nothing starts from.
struct Unbuilt;

impl Validator for Unbuilt {
    fn check(&self, _draft: &mut Message<'_>) -> Result<(), Rejection> {
        Err(Rejection::Rejected(
            "nothing is sent before all is built".into(),
        ))
    }
}

/// Stands in for a pattern that can match no room. Nobody calls a room so, thus it ties with none that somebody wrote.
fn unmatched() -> RoomPattern {
    "-".repeat(64)
        .parse()
        .expect("a room's name may have 64 dashes")
}

/// Where the core's `key` stands.
impl TransportDraft {
    fn listening(&self) -> Option<Listening<'_>> {
        Some(Listening {
            name: &self.name,
            kind: &self.kind,
            wire: self.wire?,
            listener: self.listener.as_ref()?,
        })
    }

    /// Whether it can be reached from other machines.
    fn is_public(&self) -> bool {
        let is_elsewhere = |listener: &ListenerConfig| !check::is_loopback(listener.bind.ip());
        match self.wire {
            Some(Wire::Other) => self.ready.as_ref().is_some_and(|ready| ready.is_public()),
            _ => self.listener.as_ref().is_some_and(is_elsewhere),
        }
    }
}

/// The threads that hash passwords for all authenticators together.
fn hash_threads(document: &Document, authenticators: &[AuthenticatorDraft]) -> usize {
    let tables = document
        .root()
        .get("authenticators")
        .and_then(Value::as_dict);
    authenticators
        .iter()
        .filter(|authenticator| authenticator.kind == "password")
        .map(|authenticator| {
            let entries = tables.and_then(|tables| tables.get(&authenticator.name)?.as_dict());
            let entries = entries.cloned().unwrap_or_default();
            let mut table = Table::new(document, authenticator.path.clone(), entries);
            // What is wrong there has been told.
            match table.take("hash_threads", &mut Problems::default()) {
                None | Some(0) => cores(0).saturating_sub(1).max(1),
                Some(threads) => threads,
            }
        })
        .sum()
}

/// `threads`; 0: one for each core.
fn cores(threads: usize) -> usize {
    match threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    }
}

fn place_of(document: &Document, key: &str) -> Place {
    let path = inherited(document, key).unwrap_or_else(|| KeyPath::new(key.split('.')));
    document.locate(&path, Part::Value)
}

/// The key of `[room]` that a key of a room's own table is taken over from, where the table itself does not have it.
fn inherited(document: &Document, key: &str) -> Option<KeyPath> {
    let (_name, rest) = key.strip_prefix("rooms.")?.split_once('.')?;
    let from = KeyPath::new(std::iter::once("room").chain(rest.split('.')));
    let own = document.contains(&KeyPath::new(key.split('.')));
    (!own && document.contains(&from)).then_some(from)
}

/// What the core says, with the variables that set the other keys that it speaks of: the place shows only one.
fn message_of(document: &Document, fault: &ConfigFault) -> String {
    let ConfigFault { key, message } = fault;
    let mut text = format!("{key}: {message}");
    let (table, own) = key.rsplit_once('.').unwrap_or((key, ""));
    for word in words(message).collect::<BTreeSet<_>>() {
        let path = KeyPath::new(table.split('.').chain([word]));
        if word != own
            && let Some(variable) = document.variables(&path).first()
        {
            let _ = write!(text, " ({word} is set by {variable})");
        }
    }
    text
}

/// Reports what a plugin says of its table, unless that is about a key that could not be read.
fn refuse(document: &Document, problems: &mut Problems, table: &KeyPath, error: &BuildError) {
    let path = error
        .key
        .map_or_else(|| table.clone(), |key| table.key(key));
    let message = error.to_string();
    if !problems.excuse(&path, &message) {
        problems.error(
            document.locate(&path, Part::Value),
            format!("{path}: {message}"),
        );
    }
}

#[cfg(test)]
mod tests;
