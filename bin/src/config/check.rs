//! Rules between tables that only the program can see: who shares a socket, who asks whom, who can be reached.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use chinwag_transports::{ListenerConfig, Wire};
use figment::value::Value;

use super::{
    Draft, TransportDraft,
    document::{Document, KeyPath, Part, Step},
    near::hint,
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
        self.check_tls();
        self.check_managers();
        self.check_transports();
        self.check_shared_binds();
        self.check_metrics();
        #[cfg(feature = "web")]
        self.check_page();
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
            // Where the kind is not known, so is what it speaks; every rule for HTTP holds for streams too.
            let of_listener = listener.check(transport.wire.unwrap_or(Wire::Http));
            let of_kind = transport.ready.as_ref().map(|ready| ready.check(listener));
            let faults = std::iter::once(of_listener)
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
            .filter(|transport| !self.problems.is_at_fault(&transport.path.key("bind")))
            .filter_map(|transport| Some((transport, transport.listener.as_ref()?)))
            .collect();
        for (index, &(second, second_listener)) in listening.iter().enumerate() {
            for &(first, first_listener) in listening.iter().take(index) {
                let (a, b) = (first_listener.bind, second_listener.bind);
                let Some(overlap) = overlap(a, b) else {
                    continue;
                };
                let streams: Vec<_> = [second, first]
                    .into_iter()
                    .filter(|transport| transport.wire != Some(Wire::Http))
                    .collect();
                if a.port() == 0 && !(streams.is_empty() && overlap == Overlap::Same) {
                    // The system chooses another port for each.
                    continue;
                }
                let bind = second.path.key("bind");
                let message = match (overlap, streams.first()) {
                    (Overlap::Same, None) => {
                        let document = &self.document;
                        let faults = disagreements(document, first, second)
                            .into_iter()
                            .chain(clashes(document, first, second));
                        for Clash { keys, message } in faults {
                            if keys.iter().any(|key| self.problems.is_at_fault(key)) {
                                continue;
                            }
                            let [here, _] = keys;
                            let place = document.locate(&here, Part::Value);
                            self.problems.error(place, format!("{here}: {message}"));
                        }
                        continue;
                    }
                    // What a kind that is not known would speak is not known either.
                    (Overlap::Same, Some(_)) if first.wire.is_none() || second.wire.is_none() => {
                        continue;
                    }
                    (Overlap::Same, Some(alone)) => format!(
                        "{b} is the bind of {}; kind {:?} can't share one",
                        first.path, alone.kind
                    ),
                    (Overlap::Includes, _) => format!(
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
        let insecure = metrics.insecure
            || self
                .problems
                .is_at_fault(&KeyPath::new(["metrics", "insecure"]));
        let tls =
            metrics.tls.is_some() || self.problems.is_at_fault(&KeyPath::new(["metrics", "tls"]));
        if !insecure && !tls && !is_loopback(metrics.bind.ip()) {
            self.problems.error(
                place.clone(),
                format!(
                    "{key}: this address is reached by other machines in plain text; name a table [tls.NAME] with \
                     tls = \"NAME\", bind a loopback address, or say insecure = true"
                ),
            );
        }
        if metrics.insecure && metrics.tls.is_some() {
            let key = KeyPath::new(["metrics", "insecure"]);
            self.problems.error(
                self.document.locate(&key, Part::Value),
                format!("{key}: allows plain text, and tls leaves none; take one of them out"),
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

    /// The table whose listener has that address, or takes it too.
    pub(super) fn taken_by(&self, address: SocketAddr) -> Option<String> {
        let transports = self.transports.iter().filter_map(|transport| {
            let listener = transport.listener.as_ref()?;
            Some((transport.path.to_string(), listener.bind))
        });
        let metrics = self.metrics.iter();
        let metrics = metrics.map(|metrics| ("metrics".to_owned(), metrics.bind));
        transports
            .chain(metrics)
            .find_map(|(name, bind)| overlap(address, bind).map(|_| name))
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
            let Some(shadow) = &authenticator.shadow else {
                continue;
            };
            let key = authenticator.path.key("shadow");
            let place = self.document.locate(&key, Part::Value);
            let is_written = written
                .and_then(Value::as_dict)
                .is_some_and(|tables| tables.contains_key(shadow));
            if *shadow == authenticator.name {
                self.problems.error(
                    place,
                    format!("{key}: it can't be its own shadow; name another authenticator"),
                );
            } else if !is_written {
                let others = names.iter().copied();
                let others = others.filter(|name| *name != authenticator.name);
                let hint = hint(shadow, others, "there are");
                self.problems.error(
                    place,
                    format!("{key}: no authenticator is called {shadow:?}{hint}"),
                );
            }
            used.insert(shadow.as_str());
        }
        for authenticator in &self.authenticators {
            if !used.contains(authenticator.name.as_str()) {
                self.problems.warn(
                    self.document.locate(&authenticator.path, Part::Key),
                    format!(
                        "{}: no transport asks it in `auth`, and it is nobody's `shadow`",
                        authenticator.path
                    ),
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

/// What two transports that share a socket can't both have.
struct Clash {
    /// Where it is told, and where the other of the two says it.
    keys: [KeyPath; 2],
    message: String,
}

/// The keys in which two transports on one socket differ, blamed on the second unless only the first says something.
fn disagreements(
    document: &Document,
    first: &TransportDraft,
    second: &TransportDraft,
) -> Vec<Clash> {
    let (Some(one), Some(other)) = (&first.listener, &second.listener) else {
        return Vec::new();
    };
    differing(one, other)
        .into_iter()
        .map(|key| {
            let (mut here, mut there) = (second, first);
            if !document.contains(&second.path.key(key)) {
                (here, there) = (first, second);
            }
            Clash {
                keys: [here.path.key(key), there.path.key(key)],
                message: format!(
                    "differs from that of {}, which has the same bind and so the same listener",
                    there.path
                ),
            }
        })
        .collect()
}

/// Every key in which two listeners differ although they must not. [`ListenerConfig::differs`] tells the first, so each
/// is made equal before the next is asked for.
pub(super) fn differing(one: &ListenerConfig, other: &ListenerConfig) -> Vec<&'static str> {
    let (from, mut to) = (one.clone(), other.clone());
    let mut keys = Vec::new();
    while let Some(key) = from.differs(&to) {
        keys.push(key);
        match key {
            "bind" => to.bind = from.bind,
            "insecure" => to.insecure = from.insecure,
            "max_connections" => to.max_connections = from.max_connections,
            "max_connections_per_ip" => to.max_connections_per_ip = from.max_connections_per_ip,
            "client_address" => to.client_address = from.client_address,
            "proxies" => to.proxies.clone_from(&from.proxies),
            "hosts" => to.hosts.clone_from(&from.hosts),
            "first_byte_timeout" => to.first_byte_timeout = from.first_byte_timeout,
            "header_timeout" => to.header_timeout = from.header_timeout,
            "body_timeout" => to.body_timeout = from.body_timeout,
            "write_timeout" => to.write_timeout = from.write_timeout,
            "tls" => to.tls.clone_from(&from.tls),
            _ => break,
        }
    }
    keys
}

/// The paths that two transports on one socket both claim, blamed on the second unless only the first names them.
fn clashes(document: &Document, first: &TransportDraft, second: &TransportDraft) -> Vec<Clash> {
    let (Some(one), Some(other)) = (&first.ready, &second.ready) else {
        return Vec::new();
    };
    let mut clashes: Vec<(KeyPath, KeyPath, &TransportDraft, Vec<String>)> = Vec::new();
    for (first_key, path) in one.paths() {
        for (second_key, same) in other.paths() {
            if path != same {
                continue;
            }
            let names = |transport: &TransportDraft, key| {
                key != "kind" && document.contains(&transport.path.key(key))
            };
            let (mut here, mut there) = ((second, second_key), (first, first_key));
            if names(first, first_key) && !names(second, second_key) {
                (here, there) = (there, here);
            }
            let (key, other_key) = (here.0.path.key(here.1), there.0.path.key(there.1));
            let same_keys = clashes
                .iter_mut()
                .find(|(a, b, ..)| *a == key && *b == other_key);
            match same_keys {
                Some((.., paths)) => paths.push(format!("{path:?}")),
                None => clashes.push((key, other_key, there.0, vec![format!("{path:?}")])),
            }
        }
    }
    clashes
        .into_iter()
        .map(|(key, other_key, there, paths)| {
            let (paths, verb) = (paths.join(", "), if paths.len() > 1 { "are" } else { "is" });
            Clash {
                message: format!(
                    "{paths} {verb} taken by {}, which has the same bind",
                    there.path
                ),
                keys: [key, other_key],
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_that_a_socket_has_is_compared() {
        let listener = |extra: &str| -> ListenerConfig {
            toml::from_str(&format!("bind = \"127.0.0.1:80\"\n{extra}")).unwrap()
        };
        let other = listener(
            "insecure = true\nmax_connections = 1\nmax_connections_per_ip = 1\n\
             client_address = \"proxy-protocol\"\nproxies = [\"::1\"]\nhosts = [\"a\"]\n\
             first_byte_timeout = \"1s\"\nheader_timeout = \"1s\"\nbody_timeout = \"1s\"\n\
             write_timeout = \"1s\"\ntls = \"a\"\ntimeout = \"1s\"\nlogin_timeout = \"1s\"\n",
        );
        let other = ListenerConfig {
            bind: "127.0.0.1:81".parse().unwrap(),
            ..other
        };
        let mut keys = differing(&listener(""), &other);
        keys.sort_unstable();
        let mut all = ListenerConfig::KEYS.to_vec();
        all.retain(|key| !["timeout", "login_timeout"].contains(key));
        all.sort_unstable();
        assert_eq!(keys, all);
    }

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
