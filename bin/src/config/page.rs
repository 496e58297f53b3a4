//! `[web]`: the chat page. It opens no listener of its own; it is served on the one of the transports that it uses.

use chinwag_transports::{ListenerConfig, Wire};

use super::{
    Draft, TransportDraft,
    check::differing,
    document::{KeyPath, Part},
};
use crate::web::{self, Passwords, Settings};

/// The kinds of transport that the page can speak to.
const WEBSOCKET: &str = "websocket";
const POLLING: &str = "http-polling";

/// `[web]`, as it was read.
pub(super) struct PageDraft {
    /// Keys that are not written count for nothing: they are those of the listener that the page is on.
    pub(super) listener: ListenerConfig,
    /// The keys that are written.
    pub(super) own: String,
}

/// A page to be served.
#[derive(Debug)]
pub(crate) struct PageConfig {
    /// The transport whose listener it is on.
    pub(crate) transport: String,
    pub(crate) settings: Settings,
}

impl Draft {
    /// Applies the rules between `[web]` and the transports.
    pub(super) fn check_page(&mut self) {
        let path = KeyPath::new(["web"]);
        let bind = path.key("bind");
        let Some(page) = &self.page else {
            return;
        };
        if self.problems.is_at_fault(&bind) {
            return;
        }
        let address = page.listener.bind;
        let Some(first) = self.used_by_page().next() else {
            // A bind or a kind that could not be read may be the one that was meant.
            let unclear = self.transports.iter().any(|transport| {
                ["bind", "kind"]
                    .iter()
                    .any(|key| self.problems.is_at_fault(&transport.path.key(key)))
            });
            if !unclear {
                let hint = self.transports.iter().find(|other| can_serve(other));
                let hint = hint.and_then(|other| Some((other, other.listener.as_ref()?.bind)));
                let hint = match hint {
                    Some((other, theirs)) => {
                        format!("say bind = \"{theirs}\", as {} does", other.path)
                    }
                    None => format!(
                        "add [transports.NAME] with kind = {WEBSOCKET:?} or {POLLING:?}, bind = \"{address}\" and auth"
                    ),
                };
                let message = format!(
                    "{bind}: no {WEBSOCKET} and no {POLLING} transport has this bind, so nobody could log in on the \
                     page; {hint}"
                );
                self.problems
                    .error(self.document.locate(&bind, Part::Value), message);
            }
            return;
        };

        let mut errors = Vec::new();
        if let Some(listener) = &first.listener {
            for key in differing(listener, &page.listener) {
                let own = path.key(key);
                let told = self.problems.is_at_fault(&own)
                    || self.problems.is_at_fault(&first.path.key(key));
                if self.document.contains(&own) && !told {
                    let message = format!(
                        "{own}: differs from that of {}, which has the same bind and so the same listener; leave it \
                         out here",
                        first.path
                    );
                    errors.push((own, message));
                }
            }
        }
        for transport in self.on_bind_of_page() {
            let claims = transport.ready.iter().flat_map(|ready| ready.paths());
            for (key, claimed) in
                claims.filter(|(_, claimed)| web::paths().any(|own| own == claimed))
            {
                let key = transport.path.key(key);
                let message = format!(
                    "{key}: {claimed:?} is taken by the page of [web], which has the same bind"
                );
                errors.push((key, message));
            }
        }
        for (key, message) in errors {
            self.problems
                .error(self.document.locate(&key, Part::Value), message);
        }
    }

    /// What the page is told and where it is served, once no rule is broken.
    pub(super) fn page(&self) -> Option<PageConfig> {
        let first = self.used_by_page().next()?;
        let of_kind = |kind| self.used_by_page().find(|transport| transport.kind == kind);
        let websocket = of_kind(WEBSOCKET).and_then(|transport| {
            let paths = transport.ready.as_ref()?.paths();
            let (_, path) = paths.into_iter().find(|(key, _)| *key == "path")?;
            Some(path.into_owned())
        });
        let polling = of_kind(POLLING);
        let used = [of_kind(WEBSOCKET), polling].into_iter().flatten();
        Some(PageConfig {
            transport: first.name.clone(),
            settings: Settings {
                websocket,
                polling: polling.is_some(),
                room: self.server.default_room.as_ref().map(ToString::to_string),
                password: self.passwords(used),
                names: web::rules(&self.names),
            },
        })
    }

    /// The transports on the page's bind that it can speak to.
    fn used_by_page(&self) -> impl Iterator<Item = &TransportDraft> {
        self.on_bind_of_page()
            .filter(|transport| can_serve(transport))
    }

    fn on_bind_of_page(&self) -> impl Iterator<Item = &TransportDraft> {
        let page = self.page.as_ref().map(|page| page.listener.bind);
        self.transports.iter().filter(move |transport| {
            let bind = transport.listener.as_ref().map(|listener| listener.bind);
            bind.is_some()
                && bind == page
                && !self.problems.is_at_fault(&transport.path.key("bind"))
        })
    }

    /// Guests have no password; all other kinds of authenticator ask for one.
    fn passwords<'a>(&'a self, used: impl Iterator<Item = &'a TransportDraft>) -> Passwords {
        let (mut guests, mut members) = (false, false);
        for name in used.flat_map(|transport| transport.auth.iter().flatten()) {
            let asked = self.authenticators.iter().find(|other| other.name == *name);
            match asked.map(|authenticator| authenticator.kind.as_str()) {
                Some("anonymous") => guests = true,
                _ => members = true,
            }
        }
        match (guests, members) {
            (_, false) => Passwords::None,
            (true, true) => Passwords::Optional,
            (false, true) => Passwords::Required,
        }
    }
}

fn can_serve(transport: &TransportDraft) -> bool {
    transport.wire == Some(Wire::Http) && [WEBSOCKET, POLLING].contains(&transport.kind.as_str())
}
