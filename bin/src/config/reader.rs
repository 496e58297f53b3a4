//! Reading each table of a document into its own type, with every mistake in it.

use std::fmt::Write;

use chinwag_core::{
    RoomPattern,
    config::{RoomConfig, Span},
};
use chinwag_transports::{ListenerConfig, Wire};
use figment::value::{Dict, Num, Value};
use serde::de::DeserializeOwned;

#[cfg(feature = "web")]
use super::page::PageDraft;
use super::{
    AuthenticatorDraft, MetricsConfig, OWN_TRANSPORTS, Problems, RoomDraft, Table, TransportDraft,
    ValidatorDraft,
    document::{Document, KeyPath, Part, Step},
    near::{hint, nearest},
    problem::Place,
};
use crate::plugins::Plugins;

/// Kinds of authenticator that come with chinwag, and whether this build has them.
const OWN_AUTHENTICATORS: [(&str, bool); 6] = [
    ("anonymous", cfg!(feature = "anonymous")),
    ("certificate", cfg!(feature = "certificate")),
    ("exec", cfg!(feature = "exec")),
    ("http", cfg!(feature = "http")),
    ("jwt", cfg!(feature = "jwt")),
    ("password", cfg!(feature = "password")),
];

const TABLES: [&str; 16] = [
    "authenticators",
    "cluster",
    "control",
    "limits",
    "log",
    "metrics",
    "names",
    "room",
    "rooms",
    "server",
    "session_managers",
    "sessions",
    "tls",
    "transports",
    "validators",
    "web",
];

/// How long an authenticator may take where its table does not say.
const AUTHENTICATOR_TIMEOUT: Span = Span::secs(5);

/// Stands in for a bind that could not be read. No rule is about it: the key is known to be at fault.
const ANYWHERE: &str = "127.0.0.1:0";

/// What reading the tables needs and finds.
pub(super) struct Reader<'d> {
    pub(super) plugins: &'d Plugins,
    pub(super) document: &'d Document,
    pub(super) problems: Problems,
}

/// A kind that a table may name, in the words of messages.
pub(super) struct Kinds<'a> {
    pub(super) known: Vec<&'a str>,
    pub(super) own: &'a [(&'a str, bool)],
}

impl<'d> Reader<'d> {
    /// Names at the top that are none of ours.
    pub(super) fn top_level(&mut self) {
        for key in self.document.root().keys() {
            let path = KeyPath::new([key.as_str()]);
            let left_out = key == "web" && !cfg!(feature = "web");
            if TABLES.contains(&key.as_str()) && !left_out {
                continue;
            }
            let message = if left_out {
                "this binary is built without `web`; leave [web] out".into()
            } else {
                format!("unknown key `{key}`{}", hint(key, TABLES, "there are"))
            };
            let place = self.document.locate(&path, Part::Key);
            self.problems.error(place, message);
            // What stands there is not known to the rules of the table that was meant.
            if let Some(meant) = nearest(key, TABLES)
                && !self.document.root().contains_key(meant)
            {
                self.problems.blame(KeyPath::new([meant]));
            }
        }
    }

    /// A table that is there at most once. Where it is missing, or where one of its keys is wrong, defaults apply.
    pub(super) fn table<T: DeserializeOwned + Default>(&mut self, name: &str) -> T {
        self.read(name).unwrap_or_default()
    }

    fn read<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        let entries = self.entries(name)?.clone();
        Table::new(self.document, KeyPath::new([name]), entries).read(&mut self.problems)
    }

    /// The entries of a top-level table, if it is there and is one.
    pub(super) fn entries(&mut self, name: &str) -> Option<&'d Dict> {
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
            self.problems.blame(KeyPath::new([name]));
        }
        entries
    }

    /// `[metrics]`, which opens a listener only where it is named.
    pub(super) fn metrics(&mut self) -> Option<MetricsConfig> {
        self.read("metrics")
    }

    /// `[web]`: the keys of a listener, less those of sessions.
    #[cfg(feature = "web")]
    pub(super) fn page(&mut self) -> Option<PageDraft> {
        let mut entries = self.entries("web")?.clone();
        let path = KeyPath::new(["web"]);
        for key in ["timeout", "login_timeout"] {
            if entries.remove(key).is_some() {
                let key = path.key(key);
                let place = self.document.locate(&key, Part::Key);
                let message =
                    format!("{key}: the page has no sessions of its own; say it of a transport");
                self.problems.error(place, message);
            }
        }
        let table = Table::new(self.document, path, entries);
        let own = table.show_values();
        let listener = self.listener(table)?;
        Some(PageDraft { listener, own })
    }

    /// `[room]`, and those of its entries that are right, which rooms of their own inherit.
    pub(super) fn room(&mut self) -> (RoomConfig, Dict) {
        let Some(entries) = self.entries("room") else {
            return (RoomConfig::default(), Dict::new());
        };
        let table = Table::new(self.document, KeyPath::new(["room"]), entries.clone());
        let (room, entries) = table.read_and_keep(&mut self.problems);
        (room.unwrap_or_default(), entries)
    }

    pub(super) fn rooms(&mut self, inherited: &Dict) -> Vec<RoomDraft> {
        let mut rooms = Vec::new();
        for (name, path, entries) in self.named("rooms") {
            let mut own = Table::new(self.document, path.clone(), entries);
            let text = own
                .take::<String>("match", &mut self.problems)
                .unwrap_or_else(|| name.clone());
            let pattern = text.parse::<RoomPattern>().map_err(|message| {
                let key = path.key("match");
                let place = self.document.locate(&key, Part::Value);
                self.problems.error(place, format!("{key}: {message}"));
                self.problems.blame(key);
            });
            if let Some(config) = own.over(inherited).read(&mut self.problems) {
                rooms.push(RoomDraft {
                    path,
                    name,
                    pattern: pattern.ok(),
                    config,
                });
            }
        }
        rooms
    }

    pub(super) fn transports(&mut self) -> Vec<TransportDraft> {
        let mut transports = Vec::new();
        for (name, path, entries) in self.named("transports") {
            let mut table = Table::new(self.document, path.clone(), entries);
            let kind = self.kind(
                &mut table,
                &Kinds {
                    known: self.plugins.transports().keys().copied().collect(),
                    own: &OWN_TRANSPORTS,
                },
            );
            let auth = table.take("auth", &mut self.problems);
            let plugin = kind
                .as_deref()
                .and_then(|kind| self.plugins.transports().get(kind));
            let wire = plugin.map(|plugin| plugin.wire);
            let mut common = table.split(ListenerConfig::keys(wire.unwrap_or(Wire::Http)));
            if wire == Some(Wire::Other) {
                common = common.over(&Dict::from([("bind".into(), Value::from(ANYWHERE))]));
            }
            let listener = self.listener(common);
            let own = table.show_values();
            let ready = plugin.and_then(|plugin| (plugin.read)(table, &mut self.problems));
            transports.push(TransportDraft {
                path,
                name,
                kind: kind.unwrap_or_default(),
                wire,
                auth,
                listener,
                ready,
                own,
            });
        }
        transports
    }

    /// The keys that every transport has. Without a bind that can be read the rest has rules all the same.
    pub(super) fn listener(&mut self, table: Table<'d>) -> Option<ListenerConfig> {
        let path = table.path().clone();
        let (listener, mut right) = table.read_and_keep(&mut self.problems);
        if listener.is_none() && self.problems.is_at_fault(&path.key("bind")) {
            right.insert("bind".into(), Value::from(ANYWHERE));
            return Table::new(self.document, path, right).read(&mut self.problems);
        }
        listener
    }

    pub(super) fn authenticators(&mut self) -> Vec<AuthenticatorDraft> {
        let mut authenticators = Vec::new();
        for (name, path, entries) in self.named("authenticators") {
            let mut table = Table::new(self.document, path.clone(), entries);
            let kind = self.kind(
                &mut table,
                &Kinds {
                    known: self.plugins.authenticators().keys().copied().collect(),
                    own: &OWN_AUTHENTICATORS,
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
            let session_manager = table.take("session_manager", &mut self.problems);
            let shadow = table.take("shadow", &mut self.problems);
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
                shadow,
                session_manager,
                ready,
                own,
            });
        }
        authenticators
    }

    pub(super) fn validators(&mut self) -> Vec<ValidatorDraft> {
        let mut validators = Vec::new();
        for (name, path, entries) in self.named("validators") {
            let mut table = Table::new(self.document, path.clone(), entries);
            let kind = self.kind(
                &mut table,
                &Kinds {
                    known: self.plugins.validators().keys().copied().collect(),
                    own: &[],
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
    pub(super) fn kind(&mut self, table: &mut Table<'d>, kinds: &Kinds<'_>) -> Option<String> {
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
            self.problems.blame(path.key("kind"));
            return None;
        }
        let kind: String = table.take("kind", &mut self.problems)?;
        if kinds.known.contains(&kind.as_str()) {
            return Some(kind);
        }
        let left_out = kinds.own.iter().any(|&(own, built)| own == kind && !built);
        let message = if left_out {
            format!("{path}: this binary is built without `{kind}`; {has}")
        } else {
            format!("{path}: unknown kind {kind:?}; {has}")
        };
        let key = path.key("kind");
        let place = self.document.locate(&key, Part::Value);
        self.problems.error(place, message);
        self.problems.blame(key);
        None
    }

    /// A table that only variables speak of is more likely a slip in their names than a table without a kind.
    fn misnamed(&self, path: &KeyPath, place: &Place) -> String {
        let (Place::Variable { .. }, [section, Step::Key(name)]) = (place, &*path.0) else {
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
    pub(super) fn named(&mut self, section: &str) -> Vec<(String, KeyPath, Dict)> {
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
                // The log calls the listeners of these tables so.
                Some(_) if section == "transports" && ["control", "metrics"].contains(&name.as_str()) => {
                    let message = format!("{path}: the name is taken by the listener of [{name}]");
                    self.problems.error(place, message);
                }
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
    /// The entries that are left, as they stand in the configuration, with a space before each.
    pub(super) fn show_values(&self) -> String {
        self.entries()
            .iter()
            .fold(String::new(), |mut text, (key, value)| {
                let _ = write!(text, " {key}=");
                show(value, &mut text);
                text
            })
    }

    /// The names alone.
    pub(super) fn show_keys(&self) -> String {
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
