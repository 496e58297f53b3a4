//! `[session_managers.NAME]`, which authenticators name, and `[control]`, where managers on other machines steer
//! sessions.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use chinwag_core::{
    Lifecycle,
    config::Span,
    plugin::{ControlDesk, ManagerLink, SessionManagerContext},
};
use chinwag_transports::{ListenerConfig, Wire, tls::Tls};
use figment::value::Value;
use serde::Deserialize;

use super::{
    Draft, Table,
    document::{KeyPath, Part},
    near::hint,
    reader::{Kinds, Reader},
    refuse,
};
use crate::plugins::ReadyToManage;

/// Kinds of session manager that come with chinwag, and whether this build has them.
const OWN_MANAGERS: [(&str, bool); 2] = [
    ("exec", cfg!(feature = "exec")),
    ("http", cfg!(feature = "http")),
];

/// Kinds whose managers take no orders by way of `[control]`.
const SPEAKS_OTHERWISE: &str = "exec";

/// How long a session manager may take where its table does not say.
const TIMEOUT: Span = Span::secs(5);

/// The most connections to `[control]` where it does not say: back ends are few.
const CONNECTIONS: i64 = 256;

/// What becomes of a start that finds a session manager out of reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnUnreachable {
    /// It goes on, and the log says so.
    #[default]
    Warn,
    /// Nothing starts.
    Fail,
    /// It goes on.
    Silent,
}

/// A session manager as its table has it.
pub(super) struct ManagerDraft {
    pub(super) path: KeyPath,
    pub(super) name: String,
    kind: String,
    timeout: Span,
    on_unreachable: OnUnreachable,
    ready: Option<Box<dyn ReadyToManage>>,
    /// The names of its kind's keys: a value may be a secret.
    own: String,
}

impl ManagerDraft {
    /// Whether it is of a kind that comes with chinwag.
    #[cfg(any(feature = "http", feature = "exec"))]
    pub(super) fn is_own(&self) -> bool {
        OWN_MANAGERS.iter().any(|(kind, _)| *kind == self.kind)
    }
}

/// A session manager, built.
pub(crate) struct LoadedManager {
    pub(crate) kind: String,
    pub(crate) link: ManagerLink,
    pub(crate) on_unreachable: OnUnreachable,
}

/// `[control]`, as it was read.
pub(super) struct ControlDraft {
    pub(super) listener: ListenerConfig,
    url: Option<String>,
    /// The keys that are written.
    own: String,
}

/// Where orders are taken.
#[cfg_attr(
    not(feature = "http"),
    expect(dead_code, reason = "nobody else takes orders")
)]
pub(crate) struct ControlConfig {
    pub(crate) listener: ListenerConfig,
    pub(crate) tls: Option<Arc<Tls>>,
    /// What back ends are told of the way there, without a slash at its end. Absent: the address that is bound.
    pub(crate) url: Option<String>,
    pub(crate) desk: ControlDesk,
}

impl Reader<'_> {
    pub(super) fn session_managers(&mut self) -> Vec<ManagerDraft> {
        let mut managers = Vec::new();
        for (name, path, entries) in self.named("session_managers") {
            let mut table = Table::new(self.document, path.clone(), entries);
            let kind = self.kind(
                &mut table,
                &Kinds {
                    known: self.plugins.session_managers().keys().copied().collect(),
                    own: &OWN_MANAGERS,
                },
            );
            let timeout = table.take("timeout", &mut self.problems).unwrap_or(TIMEOUT);
            if timeout.is_zero() {
                let key = path.key("timeout");
                let place = self.document.locate(&key, Part::Value);
                let message = format!("{key}: must be above zero: every log-in has a time limit");
                self.problems.error(place, message);
            }
            let on_unreachable = table
                .take("on_unreachable", &mut self.problems)
                .unwrap_or_default();
            let own = table.show_keys();
            let ready = kind
                .as_deref()
                .and_then(|kind| self.plugins.session_managers().get(kind))
                .and_then(|read| read(table, &mut self.problems));
            managers.push(ManagerDraft {
                path,
                name,
                kind: kind.unwrap_or_default(),
                timeout,
                on_unreachable,
                ready,
                own,
            });
        }
        managers
    }

    /// `[control]`: the keys of a listener, less those of sessions, and `url`.
    pub(super) fn control(&mut self) -> Option<ControlDraft> {
        let mut entries = self.entries("control")?.clone();
        let path = KeyPath::new(["control"]);
        if !cfg!(feature = "http") {
            let place = self.document.locate(&path, Part::Key);
            let message = "this binary is built without `http`; leave [control] out";
            self.problems.error(place, message.to_owned());
            return None;
        }
        for key in ["timeout", "login_timeout"] {
            if entries.remove(key).is_some() {
                let key = path.key(key);
                let place = self.document.locate(&key, Part::Key);
                let message = format!("{key}: nobody logs in here; say it of a transport");
                self.problems.error(place, message);
            }
        }
        let mut table = Table::new(self.document, path, entries.clone());
        let own = table.show_values();
        let url = table.take("url", &mut self.problems);
        let most = [("max_connections".to_owned(), Value::from(CONNECTIONS))];
        let table = table.over(&most.into_iter().collect());
        let listener = self.listener(table)?;
        Some(ControlDraft { listener, url, own })
    }
}

impl Draft {
    /// Applies the rules between session managers, the authenticators that name them, and `[control]`.
    pub(super) fn check_managers(&mut self) {
        let names: Vec<&str> = self.managers.iter().map(|it| it.name.as_str()).collect();
        // A table whose name is wrong has been reported; that nobody is called so need not be said again.
        let written = self.document.root().get("session_managers");
        let written = written.and_then(Value::as_dict);
        let mut used = BTreeSet::new();
        for authenticator in &self.authenticators {
            let Some(name) = authenticator.session_manager.as_deref() else {
                continue;
            };
            used.insert(name);
            if names.contains(&name) || written.is_some_and(|tables| tables.contains_key(name)) {
                continue;
            }
            let key = authenticator.path.key("session_manager");
            let message = if names.is_empty() {
                format!("{key}: there is no table [session_managers.{name}]; add it with `kind`")
            } else {
                let hint = hint(name, names.iter().copied(), "there are");
                format!("{key}: no session manager is called {name:?}{hint}")
            };
            let place = self.document.locate(&key, Part::Value);
            self.problems.error(place, message);
        }
        for manager in &self.managers {
            if !used.contains(manager.name.as_str()) {
                let place = self.document.locate(&manager.path, Part::Key);
                let message = format!(
                    "{}: no authenticator names it in `session_manager`",
                    manager.path
                );
                self.problems.warn(place, message);
            }
        }
        self.check_control();
    }

    fn check_control(&mut self) {
        let Some(control) = &self.control else {
            return;
        };
        let path = KeyPath::new(["control"]);
        let (bind, url) = (path.key("bind"), path.key("url"));
        let address = control.listener.bind;
        let mut errors = Vec::new();
        match &control.url {
            Some(text) => errors.extend(wrong_url(text).map(|why| (url.clone(), why.to_owned()))),
            None if address.ip().is_unspecified() && !self.problems.is_at_fault(&url) => {
                let message = "stands for every address of this machine, and back ends have to be told one; say \
                               url = \"https://NAME:PORT\"";
                errors.push((bind.clone(), message.to_owned()));
            }
            None => {}
        }
        let taken = self.taken_by(address).filter(|_| address.port() != 0);
        errors.extend(taken.map(|other| {
            let message =
                format!("{address} is taken by {other}; orders are taken on a listener of its own");
            (bind, message)
        }));
        let faults = control.listener.check(Wire::Http).err().unwrap_or_default();
        for fault in &faults {
            refuse(&self.document, &mut self.problems, &path, fault);
        }
        for (key, message) in errors {
            let place = self.document.locate(&key, Part::Value);
            self.problems.error(place, format!("{key}: {message}"));
        }
        if self
            .managers
            .iter()
            .all(|manager| manager.kind == SPEAKS_OTHERWISE)
        {
            let place = self.document.locate(&path, Part::Key);
            let message =
                "control: no session manager would steer sessions from there; kind \"http\" does";
            self.problems.warn(place, message.to_owned());
        }
    }

    /// Builds every session manager, by name.
    pub(super) async fn build_managers(
        &mut self,
        lifecycle: &Lifecycle,
        desk: Option<&ControlDesk>,
    ) -> BTreeMap<String, LoadedManager> {
        let mut built = BTreeMap::new();
        for manager in &mut self.managers {
            let Some(ready) = manager.ready.take() else {
                continue;
            };
            let mut cx = SessionManagerContext::new(&manager.name, &self.base, lifecycle.clone());
            cx.timeout = manager.timeout.0;
            cx.control = desk.cloned();
            cx.meter = self.meter.clone();
            match ready.build(cx).await {
                Ok(made) => {
                    let link = ManagerLink {
                        name: manager.name.as_str().into(),
                        manager: made,
                        timeout: manager.timeout.0,
                    };
                    let loaded = LoadedManager {
                        kind: manager.kind.clone(),
                        link,
                        on_unreachable: manager.on_unreachable,
                    };
                    built.insert(manager.name.clone(), loaded);
                }
                Err(error) => refuse(&self.document, &mut self.problems, &manager.path, &error),
            }
        }
        built
    }

    /// `[control]`, once no rule is broken.
    pub(super) fn loaded_control(
        &self,
        desk: &ControlDesk,
        tls: &BTreeMap<String, Arc<Tls>>,
    ) -> Option<ControlConfig> {
        let control = self.control.as_ref()?;
        let name = control.listener.tls.as_ref();
        Some(ControlConfig {
            tls: name.and_then(|name| tls.get(name).cloned()),
            listener: control.listener.clone(),
            url: control
                .url
                .as_ref()
                .map(|url| url.trim_end_matches('/').to_owned()),
            desk: desk.clone(),
        })
    }

    /// What applies in these tables.
    pub(super) fn effective_managers(&self) -> Vec<(String, String)> {
        let mut tables: Vec<_> = self
            .managers
            .iter()
            .map(|manager| {
                let text = format!(
                    "kind={} timeout={} on_unreachable={:?}{}",
                    manager.kind, manager.timeout, manager.on_unreachable, manager.own
                );
                (manager.path.to_string(), text)
            })
            .collect();
        tables.extend(self.control.as_ref().map(|control| {
            let text = control.own.trim_start().to_owned();
            ("control".to_owned(), text)
        }));
        tables
    }
}

/// What is wrong with what back ends are told.
fn wrong_url(text: &str) -> Option<&'static str> {
    let wrong = "expected a URL like \"https://chat.internal:9465\", without query";
    let Ok(uri) = text.parse::<http::Uri>() else {
        return Some(wrong);
    };
    let host = uri.authority().map(http::uri::Authority::as_str);
    let is_sound = host.is_some_and(|host| !host.contains('@'))
        && matches!(uri.scheme_str(), Some("http" | "https"))
        && uri.query().is_none()
        && !text.contains('#');
    (!is_sound).then_some(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_where_and_nothing_else() {
        for good in [
            "http://127.0.0.1:9465",
            "https://chat.internal/",
            "https://[::1]:1/chat",
        ] {
            assert_eq!(wrong_url(good), None, "{good}");
        }
        for bad in [
            "chat.internal",
            "ftp://a",
            "http://a?b=c",
            "http://u@a",
            "http://a#b",
            "",
        ] {
            assert!(wrong_url(bad).is_some(), "{bad}");
        }
    }
}
