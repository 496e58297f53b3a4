//! `[tls.NAME]`: who a listener is and which clients it trusts. The files are read here, so that whatever is wrong with
//! them is found before anything listens.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use chinwag_transports::tls::{ClientCert, Tls, TlsConfig, TlsContext};
use figment::value::Value;

use super::{
    Draft, Table,
    document::{KeyPath, Part, Step},
    near::hint,
    reader::Reader,
    refuse,
};

/// The kind of authenticator that knows clients by their certificates and by nothing else.
const CERTIFICATE: &str = "certificate";

/// One table, as it was read.
pub(super) struct TlsDraft {
    pub(super) path: KeyPath,
    pub(super) name: String,
    /// `None` where `cert` or `key` is missing or wrong; another key that is wrong has its default.
    pub(super) config: Option<TlsConfig>,
    /// Whether every key could be read: else the files are not looked at, since other ones may be meant.
    is_sound: bool,
}

impl Reader<'_> {
    pub(super) fn tls(&mut self) -> Vec<TlsDraft> {
        let mut tables = Vec::new();
        for (name, path, entries) in self.named("tls") {
            let before = self.problems.errors();
            let table = Table::new(self.document, path.clone(), entries);
            let config = table.read(&mut self.problems);
            tables.push(TlsDraft {
                path,
                name,
                config,
                is_sound: self.problems.errors() == before,
            });
        }
        tables
    }
}

impl Draft {
    /// Applies the rules between `[tls.NAME]`, the listeners that name it and the authenticators that need it.
    pub(super) fn check_tls(&mut self) {
        self.check_names_of_tls();
        self.check_certificates();
    }

    fn check_names_of_tls(&mut self) {
        let names: Vec<&str> = self.tls.iter().map(|table| table.name.as_str()).collect();
        // A table whose name is wrong has been reported; that nobody is called so need not be said again.
        let written = self.document.root().get("tls").and_then(Value::as_dict);
        let mut used = BTreeSet::new();
        for (table, name) in self.users_of_tls() {
            let known = names.contains(&name.as_str())
                || written.is_some_and(|tables| tables.contains_key(&name));
            used.insert(name.clone());
            if known {
                continue;
            }
            let key = table.key("tls");
            let message = if names.is_empty() {
                format!("{key}: there is no table [tls.{name}]; add it with `cert` and `key`")
            } else {
                let hint = hint(&name, names.iter().copied(), "there are");
                format!("{key}: no table of [tls] is called {name:?}{hint}")
            };
            let place = self.document.locate(&key, Part::Value);
            self.problems.error(place, message);
            // Whether listeners agree on a name that is wrong is nobody's question.
            self.problems.blame(key);
        }
        for table in &self.tls {
            if !used.contains(table.name.as_str()) {
                let place = self.document.locate(&table.path, Part::Key);
                let message = format!("{}: no listener names it in `tls`", table.path);
                self.problems.warn(place, message);
            }
        }
    }

    /// The listeners that name a table, by their own tables.
    fn users_of_tls(&self) -> Vec<(KeyPath, String)> {
        let mut users: Vec<(KeyPath, String)> = self
            .transports
            .iter()
            .filter_map(|transport| {
                let name = transport.listener.as_ref()?.tls.clone()?;
                Some((transport.path.clone(), name))
            })
            .collect();
        let metrics = self.metrics.as_ref();
        let metrics = metrics.and_then(|metrics| metrics.tls.clone());
        users.extend(metrics.map(|name| (KeyPath::new(["metrics"]), name)));
        let control = self.control.as_ref();
        let control = control.and_then(|control| control.listener.tls.clone());
        users.extend(control.map(|name| (KeyPath::new(["control"]), name)));
        #[cfg(feature = "web")]
        {
            let page = self.page.as_ref();
            let page = page.and_then(|page| page.listener.tls.clone());
            users.extend(page.map(|name| (KeyPath::new(["web"]), name)));
        }
        users
    }

    /// Where clients are not asked for certificates, nobody can be known by one.
    fn check_certificates(&mut self) {
        for transport in &self.transports {
            let Some(listener) = &transport.listener else {
                continue;
            };
            let way_out = match &listener.tls {
                None if self.problems.is_at_fault(&transport.path.key("tls")) => continue,
                None => {
                    "name a [tls.NAME] with client_cert = \"required\" or \"optional\" in `tls`"
                        .to_owned()
                }
                Some(name) => {
                    let table = self.tls.iter().find(|table| table.name == *name);
                    let Some(config) = table
                        .filter(|table| table.is_sound)
                        .and_then(|table| table.config.as_ref())
                    else {
                        continue;
                    };
                    if config.client_cert != ClientCert::None {
                        continue;
                    }
                    format!(
                        "say client_cert = \"required\" or \"optional\", with client_ca, in [tls.{name}]"
                    )
                }
            };
            let key = transport.path.key("auth");
            let auth = transport.auth.as_deref().unwrap_or_default();
            for (index, name) in auth.iter().enumerate() {
                let asked = self.authenticators.iter().find(|other| other.name == *name);
                if asked.is_none_or(|asked| asked.kind != CERTIFICATE) {
                    continue;
                }
                let element = key.join([Step::Index(index)]);
                let place = self.document.locate(&element, Part::Value);
                self.problems.error(
                    place,
                    format!(
                        "{element}: {name:?} knows clients by their certificates, and this listener asks for none; \
                         {way_out}"
                    ),
                );
            }
        }
    }

    /// Reads the files of every table. What is wrong with them is reported, what is odd about them is warned of.
    pub(super) async fn load_tls(&mut self) -> BTreeMap<String, Arc<Tls>> {
        let mut loaded = BTreeMap::new();
        for table in &self.tls {
            let Some(config) = &table.config else {
                continue;
            };
            let made = if table.is_sound {
                let cx = TlsContext::new(table.name.as_str(), &self.base);
                config.clone().load(cx).await.map(Some)
            } else {
                config.check().map(|()| None)
            };
            match made {
                Ok(None) => (),
                Ok(Some(tls)) => {
                    let place = self.document.locate(&table.path, Part::Key);
                    for warning in tls.warnings() {
                        let message = format!("{}: {warning}", table.path);
                        self.problems.warn(place.clone(), message);
                    }
                    loaded.insert(table.name.clone(), tls);
                }
                Err(faults) => {
                    for fault in &faults {
                        refuse(&self.document, &mut self.problems, &table.path, fault);
                    }
                }
            }
        }
        loaded
    }
}
