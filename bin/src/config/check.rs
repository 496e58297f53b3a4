//! Rules between tables that only the program can see: who shares a socket, who asks whom, who can be reached.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use chinwag_transports::Wire;
use figment::value::Value;

use super::{
    Draft, TransportDraft,
    document::{Document, KeyPath, Part, Step},
    near::hint,
    problem::Place,
    refuse,
};

/// Whether only this machine reaches `address`.
pub(super) fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// How two binds that can't be had by two sockets stand to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Overlap {
    Same,
    /// One is an unspecified address, which takes the port on the other too.
    Includes,
}

fn overlap(a: SocketAddr, b: SocketAddr) -> Option<Overlap> {
    if a.port() != b.port() {
        return None;
    }
    let (a, b) = (a.ip().to_canonical(), b.ip().to_canonical());
    let includes = |whole: IpAddr, part: IpAddr| match whole {
        IpAddr::V4(whole) => whole.is_unspecified() && part.is_ipv4(),
        // An IPv6 socket on [::] takes IPv4 as well where the system's default says so, as Linux does.
        IpAddr::V6(whole) => whole.is_unspecified(),
    };
    if a == b {
        Some(Overlap::Same)
    } else if includes(a, b) || includes(b, a) {
        Some(Overlap::Includes)
    } else {
        None
    }
}

impl Draft {
    /// Applies every rule between tables that needs nothing built.
    pub(super) fn check_tables(&mut self) {
        self.check_transports();
        self.check_shared_binds();
        self.check_metrics();
        self.check_auth();
        self.check_idle_timeouts();
        self.check_use_of_validators();
    }

    fn check_transports(&mut self) {
        if self.transports.is_empty() && !self.document.root().contains_key("transports") {
            self.problems.error(
                self.document.place(),
                "no transport: nothing would listen; add a table [transports.NAME] with `kind`, `bind` and `auth`",
            );
        }
        for transport in &self.transports {
            let Some(listener) = &transport.listener else {
                continue;
            };
            let of_listener = transport.wire.map(|wire| listener.check(wire));
            let of_kind = transport.ready.as_ref().map(|ready| ready.check(listener));
            let faults = of_listener
                .into_iter()
                .chain(of_kind)
                .filter_map(Result::err)
                .flatten();
            for fault in faults {
                refuse(&self.document, &mut self.problems, &transport.path, &fault);
            }
        }
    }

    fn check_shared_binds(&mut self) {
        let listening: Vec<_> = self
            .transports
            .iter()
            .filter_map(|transport| {
                Some((transport, transport.listener.as_ref()?, transport.wire?))
            })
            .collect();
        for (index, &(second, second_listener, second_wire)) in listening.iter().enumerate() {
            for &(first, first_listener, first_wire) in listening.iter().take(index) {
                let (a, b) = (first_listener.bind, second_listener.bind);
                let Some(overlap) = overlap(a, b) else {
                    continue;
                };
                let shared = first_wire == Wire::Http && second_wire == Wire::Http;
                if a.port() == 0 && !(shared && overlap == Overlap::Same) {
                    // The system chooses another port for each.
                    continue;
                }
                let bind = second.path.key("bind");
                let message = match overlap {
                    Overlap::Same if shared => {
                        let differing = first_listener.differs(second_listener);
                        if let Some(key) = differing {
                            let (place, message) = disagreement(&self.document, first, second, key);
                            self.problems.error(place, message);
                        }
                        continue;
                    }
                    Overlap::Same => {
                        let alone = if second_wire == Wire::Stream {
                            second
                        } else {
                            first
                        };
                        format!(
                            "{b} is the bind of {}; kind {:?} can't share one",
                            first.path, alone.kind
                        )
                    }
                    Overlap::Includes => format!(
                        "{b} and {a} of {} overlap; give both the same bind, or different ports",
                        first.path
                    ),
                };
                self.problems.error(
                    self.document.locate(&bind, Part::Value),
                    format!("{bind}: {message}"),
                );
            }
        }
    }

    fn check_metrics(&mut self) {
        let Some(metrics) = &self.metrics else {
            return;
        };
        let key = KeyPath::new(["metrics", "bind"]);
        let place = self.document.locate(&key, Part::Value);
        if !metrics.insecure && !is_loopback(metrics.bind.ip()) {
            self.problems.error(
                place.clone(),
                format!(
                    "{key}: this address is reached by other machines in plain text; bind a loopback address, or say \
                     insecure = true"
                ),
            );
        }
        let taken = self.transports.iter().find(|transport| {
            transport.listener.as_ref().is_some_and(|listener| {
                metrics.bind.port() != 0 && overlap(metrics.bind, listener.bind).is_some()
            })
        });
        if let Some(transport) = taken {
            self.problems.error(
                place,
                format!(
                    "{key}: {} is taken by {}; metrics have a listener of their own",
                    metrics.bind, transport.path
                ),
            );
        }
    }

    fn check_auth(&mut self) {
        let names: Vec<&str> = self
            .authenticators
            .iter()
            .map(|authenticator| authenticator.name.as_str())
            .collect();
        // A table whose name is wrong has been reported; that nobody is called so need not be said again.
        let written = self.document.root().get("authenticators");
        let mut used = BTreeSet::new();
        for transport in &self.transports {
            let key = transport.path.key("auth");
            let auth = transport.auth.as_deref().unwrap_or_default();
            for (index, name) in auth.iter().enumerate() {
                let element = key.join([Step::Index(index)]);
                let place = self.document.locate(&element, Part::Value);
                let known = names.contains(&name.as_str())
                    || written
                        .and_then(Value::as_dict)
                        .is_some_and(|tables| tables.contains_key(name));
                if !known {
                    let hint = hint(name, names.iter().copied(), "there are");
                    self.problems.error(
                        place,
                        format!("{element}: no authenticator is called {name:?}{hint}"),
                    );
                } else if auth.iter().take(index).any(|earlier| earlier == name) {
                    self.problems
                        .error(place, format!("{element}: {name:?} is asked already"));
                }
                used.insert(name.as_str());
            }
            let missing = !self.document.contains(&key);
            if missing || transport.auth.as_ref().is_some_and(Vec::is_empty) {
                self.problems.warn(
                    self.document.locate(&key, Part::Key),
                    format!(
                        "{}: nobody gets in without `auth`, the authenticators that it asks",
                        transport.path
                    ),
                );
            }
        }
        for authenticator in &self.authenticators {
            if !used.contains(authenticator.name.as_str()) {
                self.problems.warn(
                    self.document.locate(&authenticator.path, Part::Key),
                    format!("{}: no transport asks it in `auth`", authenticator.path),
                );
            }
        }
    }

    fn check_idle_timeouts(&mut self) {
        if self.builtin {
            return;
        }
        let mut inherited = false;
        for transport in &self.transports {
            let own = transport.listener.as_ref().map(|listener| listener.timeout);
            let key = transport.path.key("timeout");
            match own {
                Some(Some(timeout)) if timeout.is_zero() => self.problems.warn(
                    self.document.locate(&key, Part::Value),
                    format!("{key}: silence never ends a session of this transport"),
                ),
                Some(None) => inherited = true,
                _ => (),
            }
        }
        let key = KeyPath::new(["sessions", "timeout"]);
        if inherited && self.sessions.timeout.is_zero() {
            self.problems.warn(
                self.document.locate(&key, Part::Value),
                format!("{key}: silence never ends a session"),
            );
        }
    }

    fn check_use_of_validators(&mut self) {
        let used: BTreeSet<&str> = std::iter::once(&self.room)
            .chain(self.rooms.iter().map(|room| &room.config))
            .flat_map(|room| &room.validators)
            .map(String::as_str)
            .collect();
        for validator in &self.validators {
            if !used.contains(validator.name.as_str()) {
                self.problems.warn(
                    self.document.locate(&validator.path, Part::Key),
                    format!("{}: no room has it in `validators`", validator.path),
                );
            }
        }
    }
}

/// That two transports on one socket differ in `key`, blamed on the second unless only the first says something.
fn disagreement(
    document: &Document,
    first: &TransportDraft,
    second: &TransportDraft,
    key: &str,
) -> (Place, String) {
    let (mut here, mut there) = (second, first);
    if !document.contains(&second.path.key(key)) {
        (here, there) = (first, second);
    }
    let key = here.path.key(key);
    let message = format!(
        "{key}: differs from that of {}, which has the same bind and so the same listener",
        there.path
    );
    (document.locate(&key, Part::Value), message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binds_overlap_as_sockets_do() {
        let of = |a: &str, b: &str| overlap(a.parse().unwrap(), b.parse().unwrap());
        assert_eq!(of("127.0.0.1:80", "127.0.0.1:80"), Some(Overlap::Same));
        assert_eq!(
            of("[::ffff:127.0.0.1]:80", "127.0.0.1:80"),
            Some(Overlap::Same)
        );
        assert_eq!(of("0.0.0.0:80", "127.0.0.1:80"), Some(Overlap::Includes));
        assert_eq!(of("127.0.0.1:80", "0.0.0.0:80"), Some(Overlap::Includes));
        assert_eq!(of("[::]:80", "127.0.0.1:80"), Some(Overlap::Includes));
        assert_eq!(of("[::]:80", "0.0.0.0:80"), Some(Overlap::Includes));
        assert_eq!(of("[::1]:80", "127.0.0.1:80"), None);
        assert_eq!(of("0.0.0.0:80", "[::1]:80"), None);
        assert_eq!(of("127.0.0.1:80", "127.0.0.1:81"), None);
    }
}
