//! From the text of a configuration to everything a server needs, or to every mistake in it at once.
//!
//! [`Draft::read`] parses the document, lays the environment over it and reads each table into its own type;
//! [`Draft::build`] applies the rules between tables, asks the core, and builds authenticators and validators, since
//! they too may find fault with their tables. Nothing is bound here, so `chinwag check` is these two steps alone.

mod check;
mod document;
mod environment;
mod near;
mod problem;
mod read;
mod tables;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fmt::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use chinwag_core::{
    ChainLink, ConfigFault, Hub, HubConfig, Lifecycle, RoomPattern,
    config::{LimitsConfig, NamesConfig, RoomConfig, ServerConfig, SessionsConfig, Span},
    plugin::{Authenticator, AuthenticatorContext, BuildError, Validator},
};
use chinwag_transports::{ListenerConfig, Wire};
use figment::value::{Dict, Num, Value};
use serde::de::DeserializeOwned;
use tracing::{debug, info, warn};

pub use self::problem::{ConfigError, Problem, Severity};
use self::{
    document::{Document, KeyPath, Part},
    near::{hint, nearest},
    problem::Place,
    tables::ClusterConfig,
};
pub(crate) use self::{
    problem::Problems,
    read::Table,
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

/// Kinds of authenticator that come with chinwag, and whether this build has them.
const OWN_AUTHENTICATORS: [(&str, bool); 2] = [
    ("anonymous", cfg!(feature = "anonymous")),
    ("password", cfg!(feature = "password")),
];

/// Kinds of authenticator that are planned.
const LATER_AUTHENTICATORS: [&str; 4] = ["certificate", "exec", "http", "jwt"];

const TABLES: [&str; 12] = [
    "authenticators",
    "cluster",
    "limits",
    "log",
    "metrics",
    "names",
    "room",
    "rooms",
    "server",
    "sessions",
    "transports",
    "validators",
];

const LATER_TABLES: [&str; 3] = ["session_managers", "tls", "web"];

/// How long an authenticator may take where its table does not say.
const AUTHENTICATOR_TIMEOUT: Span = Span::secs(5);

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
    /// Tables with mistakes: rules between keys say nothing useful of them.
    faulty: BTreeSet<KeyPathText>,
    base: PathBuf,
    builtin: bool,
    server: ServerConfig,
    sessions: SessionsConfig,
    names: NamesConfig,
    limits: LimitsConfig,
    room: RoomConfig,
    rooms: Vec<RoomDraft>,
    transports: Vec<TransportDraft>,
    authenticators: Vec<AuthenticatorDraft>,
    validators: Vec<ValidatorDraft>,
    metrics: Option<MetricsConfig>,
    log: LogConfig,
    cluster: ClusterConfig,
}

/// A path as messages show it.
type KeyPathText = String;

struct RoomDraft {
    path: KeyPath,
    name: String,
    pattern: RoomPattern,
    config: RoomConfig,
}

struct TransportDraft {
    path: KeyPath,
    name: String,
    kind: String,
    wire: Option<Wire>,
    /// `None` where the key is missing or wrong.
    auth: Option<Vec<String>>,
    /// `None` where one of its keys is wrong.
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
    pub(crate) hub: HubConfig,
    pub(crate) transports: Vec<LoadedTransport>,
    /// The names of all authenticators.
    pub(crate) authenticators: Vec<String>,
    pub(crate) metrics: Option<MetricsConfig>,
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
    pub(crate) listener: ListenerConfig,
    pub(crate) auth: Vec<ChainLink>,
    pub(crate) ready: Box<dyn ReadyToBind>,
}

impl Loaded {
    /// Faults that the core found although its check found none.
    pub(crate) fn refuse(document: &Document, faults: &[ConfigFault]) -> ConfigError {
        let mut problems = Problems::default();
        for fault in faults {
            problems.error(place_of(document, &fault.key), message_of(fault));
        }
        problems
            .into_result()
            .expect_err("the core refuses with at least one fault")
    }

    /// Logs what applies in each table and what may not be meant. The built-in document is no news to anybody.
    pub(crate) fn tell(&self) {
        for warning in &self.warnings {
            warn!("{}", warning.brief());
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
            faulty: BTreeSet::new(),
        };
        reader.top_level();
        let server = reader.table("server");
        let sessions = reader.table("sessions");
        let names = reader.table("names");
        let limits = reader.table("limits");
        let (room, room_entries) = reader.room();
        let rooms = reader.rooms(&room_entries);
        let transports = reader.transports();
        let authenticators = reader.authenticators();
        let validators = reader.validators();
        let metrics = reader.metrics();
        let log = reader.table("log");
        let cluster = reader.table("cluster");
        let Reader {
            problems, faulty, ..
        } = reader;
        Ok(Self {
            document,
            problems,
            faulty,
            base: source.base.into(),
            builtin: source.builtin,
            server,
            sessions,
            names,
            limits,
            room,
            rooms,
            transports,
            authenticators,
            validators,
            metrics,
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

    /// Applies the rules between tables and builds what the file names. Tasks of plugins run on `lifecycle`, which the
    /// caller ends on an error.
    ///
    /// # Errors
    /// Every mistake in the configuration.
    pub(crate) async fn build(mut self, lifecycle: &Lifecycle) -> Result<Loaded, ConfigError> {
        self.check_tables();
        let authenticators = self.build_authenticators(lifecycle).await;
        let validators = self.build_validators();
        let effective = self.effective();
        let hub = HubConfig {
            server: self.server,
            sessions: self.sessions,
            names: self.names,
            limits: self.limits,
            room: self.room,
            rooms: self
                .rooms
                .into_iter()
                .map(|room| (room.name, room.pattern, room.config))
                .collect(),
            validators,
            // [cluster] has no other log yet.
            ..HubConfig::default()
        };
        let faults = Hub::check(&hub);
        for fault in &faults {
            let path = KeyPath::new(fault.key.split('.'));
            let in_faulty = (1..=path.0.len())
                .map(|len| KeyPath(path.0.iter().take(len).cloned().collect()).to_string())
                .any(|table| self.faulty.contains(&table));
            // A fault that a room takes over from [room] has been told there.
            let told = inherited(&self.document, &fault.key).is_some_and(|inherited| {
                let inherited = inherited.to_string();
                faults
                    .iter()
                    .any(|other| other.key == inherited && other.message == fault.message)
            });
            // What a key that could not be read would have been is not known: its default proves nothing.
            if !in_faulty && !told {
                self.problems
                    .error(place_of(&self.document, &fault.key), message_of(fault));
            }
        }
        let warnings = self.problems.into_result()?;
        let transports = self
            .transports
            .into_iter()
            .filter_map(|transport| {
                let auth = transport.auth.unwrap_or_default();
                Some(LoadedTransport {
                    name: transport.name,
                    kind: transport.kind,
                    listener: transport.listener?,
                    auth: auth
                        .into_iter()
                        .filter_map(|name| {
                            let (authenticator, timeout) = authenticators.get(&name)?;
                            Some(ChainLink {
                                name: name.into(),
                                authenticator: authenticator.clone(),
                                timeout: *timeout,
                            })
                        })
                        .collect(),
                    ready: transport.ready?,
                })
            })
            .collect();
        Ok(Loaded {
            hub,
            transports,
            authenticators: authenticators.into_keys().collect(),
            metrics: self.metrics,
            warnings,
            effective,
            builtin: self.builtin,
            document: self.document,
        })
    }

    async fn build_authenticators(
        &mut self,
        lifecycle: &Lifecycle,
    ) -> BTreeMap<String, (Arc<dyn Authenticator>, Duration)> {
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
                    let public = transport
                        .listener
                        .as_ref()
                        .is_some_and(|listener| !check::is_loopback(listener.bind.ip()));
                    asks && public
                })
                .map(|transport| transport.name.clone())
                .collect();
            cx.has_others = kinds.iter().any(|kind| *kind != authenticator.kind);
            match ready.build(cx).await {
                Ok(made) => {
                    built.insert(authenticator.name.clone(), (made, authenticator.timeout.0));
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
        built
    }

    fn build_validators(&mut self) -> BTreeMap<String, Arc<dyn Validator>> {
        let mut built = BTreeMap::new();
        for validator in &mut self.validators {
            match validator.ready.take().map(ReadyToValidate::build) {
                Some(Ok(made)) => {
                    built.insert(validator.name.clone(), made);
                }
                Some(Err(error)) => {
                    refuse(&self.document, &mut self.problems, &validator.path, &error);
                }
                None => (),
            }
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
            let text = format!("{:?} {:?}", room.pattern, room.config);
            tables.push((room.path.to_string(), text));
        }
        for transport in &self.transports {
            let text = format!(
                "kind={} auth={:?} {:?}{}",
                transport.kind, transport.auth, transport.listener, transport.own
            );
            tables.push((transport.path.to_string(), text));
        }
        for authenticator in &self.authenticators {
            let text = format!(
                "kind={} timeout={}{}",
                authenticator.kind, authenticator.timeout, authenticator.own
            );
            tables.push((authenticator.path.to_string(), text));
        }
        for validator in &self.validators {
            tables.push((
                validator.path.to_string(),
                format!("kind={}", validator.kind),
            ));
        }
        if let Some(metrics) = &self.metrics {
            tables.push(("metrics".into(), format!("{metrics:?}")));
        }
        tables
    }
}

/// Where the core's `key` stands.
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

fn message_of(fault: &ConfigFault) -> String {
    format!("{}: {}", fault.key, fault.message)
}

/// Reports what a plugin says of its table.
fn refuse(document: &Document, problems: &mut Problems, table: &KeyPath, error: &BuildError) {
    let path = error
        .key
        .map_or_else(|| table.clone(), |key| table.key(key));
    problems.error(
        document.locate(&path, Part::Value),
        format!("{path}: {error}"),
    );
}

/// What reading the tables needs and finds.
struct Reader<'d> {
    plugins: &'d Plugins,
    document: &'d Document,
    problems: Problems,
    faulty: BTreeSet<KeyPathText>,
}

/// A kind that a table may name, in the words of messages.
struct Kinds<'a> {
    known: Vec<&'a str>,
    own: &'a [(&'a str, bool)],
    later: &'a [&'a str],
}

impl<'d> Reader<'d> {
    /// Names at the top that are none of ours.
    fn top_level(&mut self) {
        for key in self.document.root().keys() {
            let path = KeyPath::new([key.as_str()]);
            if TABLES.contains(&key.as_str()) {
                continue;
            }
            let message = if LATER_TABLES.contains(&key.as_str()) {
                format!("[{key}] is not built yet; leave it out")
            } else {
                format!("unknown key `{key}`{}", hint(key, TABLES, "there are"))
            };
            let place = self.document.locate(&path, Part::Key);
            self.problems.error(place, message);
        }
    }

    /// A table that is there at most once. Where it is missing, or where one of its keys is wrong, defaults apply.
    fn table<T: DeserializeOwned + Default>(&mut self, name: &str) -> T {
        self.read(name).unwrap_or_default()
    }

    fn read<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        let table = Table::new(
            self.document,
            KeyPath::new([name]),
            self.entries(name)?.clone(),
        );
        let before = self.problems.errors();
        let value = table.read(&mut self.problems);
        if self.problems.errors() > before {
            self.faulty.insert(name.into());
        }
        value
    }

    /// The entries of a top-level table, if it is there and is one.
    fn entries(&mut self, name: &str) -> Option<&'d Dict> {
        let value = self.document.root().get(name)?;
        let entries = value.as_dict();
        if entries.is_none() {
            let place = self.document.locate(&KeyPath::new([name]), Part::Key);
            let message = match value {
                Value::Array(..) => {
                    format!(
                        "{name}: expected a table, found a list; write [{name}] in single brackets"
                    )
                }
                _ => format!("{name}: expected a table; write [{name}]"),
            };
            self.problems.error(place, message);
        }
        entries
    }

    /// `[metrics]`, which opens a listener only where it is named.
    fn metrics(&mut self) -> Option<MetricsConfig> {
        self.read("metrics")
    }

    /// `[room]`, and those of its entries that are right, which rooms of their own inherit.
    fn room(&mut self) -> (RoomConfig, Dict) {
        let Some(entries) = self.entries("room") else {
            return (RoomConfig::default(), Dict::new());
        };
        let table = Table::new(self.document, KeyPath::new(["room"]), entries.clone());
        let before = self.problems.errors();
        let (room, entries) = table.read_and_keep(&mut self.problems);
        if self.problems.errors() > before {
            self.faulty.insert("room".into());
        }
        (room.unwrap_or_default(), entries)
    }

    fn rooms(&mut self, inherited: &Dict) -> Vec<RoomDraft> {
        let mut rooms = Vec::new();
        for (name, path, entries) in self.named("rooms") {
            let before = self.problems.errors();
            let mut own = Table::new(self.document, path.clone(), entries);
            let text = own
                .take::<String>("match", &mut self.problems)
                .unwrap_or_else(|| name.clone());
            let pattern = text.parse::<RoomPattern>().map_err(|message| {
                let key = path.key("match");
                let place = self.document.locate(&key, Part::Value);
                self.problems.error(place, format!("{key}: {message}"));
            });
            let config = own.over(inherited).read(&mut self.problems);
            if self.problems.errors() > before {
                self.faulty.insert(path.to_string());
            }
            if let (Ok(pattern), Some(config)) = (pattern, config) {
                rooms.push(RoomDraft {
                    path,
                    name,
                    pattern,
                    config,
                });
            }
        }
        rooms
    }

    fn transports(&mut self) -> Vec<TransportDraft> {
        let mut transports = Vec::new();
        for (name, path, entries) in self.named("transports") {
            let mut table = Table::new(self.document, path.clone(), entries);
            let kind = self.kind(
                &mut table,
                &Kinds {
                    known: self.plugins.transports().keys().copied().collect(),
                    own: &OWN_TRANSPORTS,
                    later: &[],
                },
            );
            let auth = table.take("auth", &mut self.problems);
            let listener = table
                .split(&ListenerConfig::KEYS)
                .read_sound(&mut self.problems);
            let own = table.show_values();
            let plugin = kind
                .as_deref()
                .and_then(|kind| self.plugins.transports().get(kind));
            let ready = plugin.and_then(|plugin| (plugin.read)(table, &mut self.problems));
            transports.push(TransportDraft {
                path,
                name,
                kind: kind.unwrap_or_default(),
                wire: plugin.map(|plugin| plugin.wire),
                auth,
                listener,
                ready,
                own,
            });
        }
        transports
    }

    fn authenticators(&mut self) -> Vec<AuthenticatorDraft> {
        let mut authenticators = Vec::new();
        for (name, path, entries) in self.named("authenticators") {
            let mut table = Table::new(self.document, path.clone(), entries);
            let kind = self.kind(
                &mut table,
                &Kinds {
                    known: self.plugins.authenticators().keys().copied().collect(),
                    own: &OWN_AUTHENTICATORS,
                    later: &LATER_AUTHENTICATORS,
                },
            );
            let timeout = table
                .take("timeout", &mut self.problems)
                .unwrap_or(AUTHENTICATOR_TIMEOUT);
            if timeout.is_zero() {
                let key = path.key("timeout");
                let place = self.document.locate(&key, Part::Value);
                self.problems.error(
                    place,
                    format!("{key}: must be above zero: every log-in has a time limit"),
                );
            }
            for key in ["session_manager", "shadow"] {
                table.refuse(key, &mut self.problems);
            }
            let own = table.show_keys();
            let ready = kind
                .as_deref()
                .and_then(|kind| self.plugins.authenticators().get(kind))
                .and_then(|read| read(table, &mut self.problems));
            authenticators.push(AuthenticatorDraft {
                path,
                name,
                kind: kind.unwrap_or_default(),
                timeout,
                ready,
                own,
            });
        }
        authenticators
    }

    fn validators(&mut self) -> Vec<ValidatorDraft> {
        let mut validators = Vec::new();
        for (name, path, entries) in self.named("validators") {
            let mut table = Table::new(self.document, path.clone(), entries);
            let kind = self.kind(
                &mut table,
                &Kinds {
                    known: self.plugins.validators().keys().copied().collect(),
                    own: &[],
                    later: &[],
                },
            );
            let ready = kind
                .as_deref()
                .and_then(|kind| self.plugins.validators().get(kind))
                .and_then(|read| read(table, &mut self.problems));
            validators.push(ValidatorDraft {
                path,
                name,
                kind: kind.unwrap_or_default(),
                ready,
            });
        }
        validators
    }

    /// Takes `kind` out of a table. `None` where this binary has no such kind, which is then reported.
    fn kind(&mut self, table: &mut Table<'d>, kinds: &Kinds<'_>) -> Option<String> {
        let path = table.path().clone();
        let has = if kinds.known.is_empty() {
            "this binary has none".into()
        } else {
            format!("this binary has {}", kinds.known.join(", "))
        };
        if !table.keys().any(|key| key == "kind") {
            let place = self.document.locate(&path, Part::Key);
            let meant = self.misnamed(&path, &place);
            self.problems
                .error(place, format!("{path}: missing key `kind`; {has}{meant}"));
            return None;
        }
        let kind: String = table.take("kind", &mut self.problems)?;
        if kinds.known.contains(&kind.as_str()) {
            return Some(kind);
        }
        let left_out = kinds.own.iter().any(|&(own, built)| own == kind && !built);
        let message = if left_out {
            format!("{path}: this binary is built without `{kind}`; {has}")
        } else if kinds.later.contains(&kind.as_str()) {
            format!("{path}: kind {kind:?} is not built yet; {has}")
        } else {
            format!("{path}: unknown kind {kind:?}; {has}")
        };
        let place = self.document.locate(&path.key("kind"), Part::Value);
        self.problems.error(place, message);
        None
    }

    /// A table that only variables speak of is more likely a slip in their names than a table without a kind.
    fn misnamed(&self, path: &KeyPath, place: &Place) -> String {
        let (Place::Variable { .. }, [section, document::Step::Key(name)]) = (place, &*path.0)
        else {
            return String::new();
        };
        let section = KeyPath(vec![section.clone()]).to_string();
        let others = self.document.root().get(&section).and_then(Value::as_dict);
        let names = others
            .into_iter()
            .flat_map(Dict::keys)
            .map(String::as_str)
            .filter(|other| other != name);
        nearest(name, names)
            .map(|near| format!("; or did you mean [{section}.{near}]?"))
            .unwrap_or_default()
    }

    /// The tables of a section: name, path and entries of each.
    fn named(&mut self, section: &str) -> Vec<(String, KeyPath, Dict)> {
        let Some(value) = self.document.root().get(section) else {
            return Vec::new();
        };
        let path = KeyPath::new([section]);
        let Some(tables) = value.as_dict() else {
            let place = self.document.locate(&path, Part::Key);
            let wrong = if matches!(value, Value::Array(..)) {
                format!("[[{section}]]")
            } else {
                format!("{section} = …")
            };
            self.problems.error(
                place,
                format!("{section}: each has a name: write [{section}.NAME] in place of {wrong}"),
            );
            return Vec::new();
        };
        let mut named = Vec::new();
        for (name, value) in tables {
            let path = path.key(name);
            let place = self.document.locate(&path, Part::Key);
            match value.as_dict() {
                None => self.problems.error(
                    place,
                    format!("{path}: expected a table; write [{section}.NAME] above the keys"),
                ),
                Some(_) if !is_name(name) => self.problems.error(
                    place,
                    format!(
                        "{path}: a table's name begins with a to z and goes on with a to z, 0 to 9 and single \
                         underscores"
                    ),
                ),
                // The log calls the listener of [metrics] so.
                Some(_) if section == "transports" && name == "metrics" => self.problems.error(
                    place,
                    format!("{path}: the name is taken by the listener of [metrics]"),
                ),
                Some(entries) => named.push((name.clone(), path, entries.clone())),
            }
        }
        named
    }
}

/// Whether `name` can be part of an environment variable and a metric label.
fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        && !name.contains("__")
        && !name.ends_with('_')
}

impl Table<'_> {
    /// Reports `key`, where it is there, as something that is planned.
    fn refuse(&mut self, key: &'static str, problems: &mut Problems) {
        let path = self.path().key(key);
        let there = self.split(&[key]).keys().next().is_some();
        if there {
            problems.error(
                self.document().locate(&path, Part::Key),
                format!("{path}: not built yet; leave the key out"),
            );
        }
    }

    /// The entries that are left, as they stand in the configuration, with a space before each.
    fn show_values(&self) -> String {
        self.entries()
            .iter()
            .fold(String::new(), |mut text, (key, value)| {
                let _ = write!(text, " {key}=");
                show(value, &mut text);
                text
            })
    }

    /// The names alone.
    fn show_keys(&self) -> String {
        self.keys()
            .fold(String::new(), |text, key| text + " " + key)
    }
}

fn show(value: &Value, text: &mut String) {
    // Writing to a string does not fail.
    let _ = match value {
        Value::String(_, string) => write!(text, "{string:?}"),
        Value::Char(_, c) => write!(text, "{c:?}"),
        Value::Bool(_, boolean) => write!(text, "{boolean}"),
        Value::Num(_, Num::I64(number)) => write!(text, "{number}"),
        Value::Num(_, number) => write!(text, "{:?}", number.to_f64()),
        Value::Empty(..) => Ok(()),
        Value::Array(_, items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    text.push(',');
                }
                show(item, text);
            }
            text.push(']');
            Ok(())
        }
        Value::Dict(_, entries) => {
            text.push('{');
            for (index, (key, item)) in entries.iter().enumerate() {
                let comma = if index > 0 { "," } else { "" };
                let _ = write!(text, "{comma}{key}=");
                show(item, text);
            }
            text.push('}');
            Ok(())
        }
    };
}

#[cfg(test)]
mod tests;
