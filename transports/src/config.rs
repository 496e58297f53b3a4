//! The keys that every transport's table may have, whatever its `kind`.

use std::net::{IpAddr, SocketAddr};

use chinwag_core::{config::Span, plugin::BuildError};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de};

use crate::Wire;

/// The listener of a transport. Transports that share a bind must agree on every key but `timeout` and
/// `login_timeout`, which are the transport's own.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// Address and port; port 0 lets the system choose.
    pub bind: SocketAddr,
    /// The idle timeout of its sessions; absent: that of `[sessions]`. Zero: never.
    #[serde(default)]
    pub timeout: Option<Span>,
    /// The name of the table `[tls.NAME]` that it shakes hands by. Absent: plain text.
    #[serde(default)]
    pub tls: Option<String>,
    /// Allows plain text on an address that other machines reach. Contradicts `tls`.
    #[serde(default)]
    pub insecure: bool,
    /// Most open connections. At least 1.
    #[serde(default = "max_connections")]
    pub max_connections: usize,
    /// Most open connections from one address (IPv6: one /64). Loopback that no proxy named is exempt.
    #[serde(default = "max_connections_per_ip")]
    pub max_connections_per_ip: usize,
    /// Where the client's address is read from.
    #[serde(default)]
    pub client_address: ClientAddress,
    /// The proxies that may name a client's address: networks (`10.0.0.0/8`) or single addresses.
    #[serde(default, deserialize_with = "networks")]
    pub proxies: Vec<IpNet>,
    /// HTTP kinds: values of `Host` that are served beside IP literals and `localhost`.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// From accept to the first byte, and once more from the end of a TLS handshake, which has a limit of its own. Above
    /// zero, as all of these.
    #[serde(default = "ten_seconds")]
    pub first_byte_timeout: Span,
    /// HTTP kinds: for a whole request head.
    #[serde(default = "ten_seconds")]
    pub header_timeout: Span,
    /// HTTP kinds: for a whole request body.
    #[serde(default = "thirty_seconds")]
    pub body_timeout: Span,
    /// From accept (of a connection) to a session.
    #[serde(default = "ten_seconds")]
    pub login_timeout: Span,
    /// For the last bytes of a connection, and for each 16 KiB of an HTTP response.
    #[serde(default = "ten_seconds")]
    pub write_timeout: Span,
}

impl ListenerConfig {
    /// The keys above: what the loader takes out of a transport's table before its kind reads the rest, where it listens
    /// on an address.
    pub const KEYS: [&'static str; 14] = [
        "bind",
        "timeout",
        "insecure",
        "max_connections",
        "max_connections_per_ip",
        "client_address",
        "proxies",
        "hosts",
        "first_byte_timeout",
        "header_timeout",
        "body_timeout",
        "login_timeout",
        "write_timeout",
        "tls",
    ];

    /// Those of them that a kind with this wire has.
    #[must_use]
    pub const fn keys(wire: Wire) -> &'static [&'static str] {
        match wire {
            Wire::Stream | Wire::Http => &Self::KEYS,
            Wire::Other => &[
                "timeout",
                "max_connections",
                "first_byte_timeout",
                "login_timeout",
                "write_timeout",
            ],
        }
    }

    /// Rules between these keys, and between them and what is spoken on the bind.
    ///
    /// # Errors
    /// Every broken rule, with the key at fault.
    pub fn check(&self, wire: Wire) -> Result<(), Vec<BuildError>> {
        let mut faults = Vec::new();
        let mut fault = |key, message: &str| faults.push(BuildError::key(key, message));

        let is_public = !self.bind.ip().to_canonical().is_loopback();
        match (&self.tls, self.insecure) {
            (None, false) if is_public => fault(
                "bind",
                "this address is reached by other machines in plain text; name a table [tls.NAME] with tls = \"NAME\", bind \
                 a loopback address behind a proxy that speaks TLS, or say insecure = true",
            ),
            (Some(_), true) => fault(
                "insecure",
                "allows plain text, and tls leaves none; take one of them out",
            ),
            _ => (),
        }
        for (key, count) in [
            ("max_connections", self.max_connections),
            ("max_connections_per_ip", self.max_connections_per_ip),
        ] {
            if count == 0 {
                fault(key, "must be at least 1");
            }
        }
        for (key, span) in [
            ("first_byte_timeout", self.first_byte_timeout),
            ("header_timeout", self.header_timeout),
            ("body_timeout", self.body_timeout),
            ("login_timeout", self.login_timeout),
            ("write_timeout", self.write_timeout),
        ] {
            if span.is_zero() {
                fault(key, "must be above zero: no stage may last for ever");
            }
        }
        match (self.client_address, self.proxies.is_empty()) {
            (ClientAddress::Peer, false) => fault(
                "proxies",
                "has no effect while client_address is \"peer\"; say \"proxy-protocol\" or \"x-forwarded-for\"",
            ),
            (ClientAddress::ProxyProtocol | ClientAddress::XForwardedFor, true) => fault(
                "client_address",
                "needs proxies = [\"ADDRESS/BITS\", ...]: only they may name a client's address",
            ),
            _ => (),
        }
        if wire == Wire::Stream {
            if self.client_address == ClientAddress::XForwardedFor {
                fault(
                    "client_address",
                    "only HTTP kinds have an X-Forwarded-For header; use \"proxy-protocol\"",
                );
            }
            if !self.hosts.is_empty() {
                fault("hosts", "only HTTP kinds have a Host header");
            }
            if self.header_timeout != ten_seconds() {
                fault("header_timeout", "only HTTP kinds have a head");
            }
            if self.body_timeout != thirty_seconds() {
                fault("body_timeout", "only HTTP kinds have a body");
            }
        }
        #[cfg(feature = "http")]
        if let Err(message) = crate::http::Hosts::new(&self.hosts) {
            fault("hosts", &message);
        }

        if faults.is_empty() {
            Ok(())
        } else {
            Err(faults)
        }
    }

    /// The first key in which two transports that share a bind differ although they must not: every key but
    /// `timeout` and `login_timeout` belongs to the socket that they share.
    #[must_use]
    pub fn differs(&self, other: &Self) -> Option<&'static str> {
        let pairs = [
            ("bind", self.bind == other.bind),
            ("tls", self.tls == other.tls),
            ("insecure", self.insecure == other.insecure),
            (
                "max_connections",
                self.max_connections == other.max_connections,
            ),
            (
                "max_connections_per_ip",
                self.max_connections_per_ip == other.max_connections_per_ip,
            ),
            (
                "client_address",
                self.client_address == other.client_address,
            ),
            ("proxies", self.proxies == other.proxies),
            ("hosts", self.hosts == other.hosts),
            (
                "first_byte_timeout",
                self.first_byte_timeout == other.first_byte_timeout,
            ),
            (
                "header_timeout",
                self.header_timeout == other.header_timeout,
            ),
            ("body_timeout", self.body_timeout == other.body_timeout),
            ("write_timeout", self.write_timeout == other.write_timeout),
        ];
        pairs
            .into_iter()
            .find_map(|(key, same)| (!same).then_some(key))
    }

    /// Whether `peer` is one of the proxies that may name a client's address.
    pub(crate) fn trusts(&self, peer: IpAddr) -> bool {
        self.proxies.iter().any(|net| net.contains(&peer))
    }
}

/// Where a client's address is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientAddress {
    /// The other end of the connection.
    #[default]
    Peer,
    /// A PROXY line (version 1 or 2), required from `proxies` and refused from others.
    ProxyProtocol,
    /// The right-most address of `X-Forwarded-For` that is none of `proxies`. HTTP kinds only.
    XForwardedFor,
}

fn max_connections() -> usize {
    100_000
}

fn max_connections_per_ip() -> usize {
    1000
}

fn ten_seconds() -> Span {
    Span::secs(10)
}

fn thirty_seconds() -> Span {
    Span::secs(30)
}

fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    Vec::<String>::deserialize(deserializer)?
        .into_iter()
        .map(|text| {
            text.parse::<IpNet>()
                .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
                .map_err(|_| {
                    de::Error::custom(format_args!(
                        "expected an address or a network like \"10.0.0.0/8\", got {text:?}"
                    ))
                })
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A loopback listener on a port of the system's choice, with every other key at its default.
    pub(crate) fn listener(extra: &serde_json::Value) -> ListenerConfig {
        let mut table = serde_json::json!({ "bind": "127.0.0.1:0" });
        for (key, value) in extra.as_object().unwrap() {
            table[key] = value.clone();
        }
        serde_json::from_value(table).unwrap()
    }

    fn keys_at_fault(wire: Wire, extra: &serde_json::Value) -> Vec<&'static str> {
        match listener(extra).check(wire) {
            Ok(()) => Vec::new(),
            Err(faults) => faults.into_iter().filter_map(|fault| fault.key).collect(),
        }
    }

    #[test]
    fn the_defaults_are_sound() {
        assert_eq!(keys_at_fault(Wire::Stream, &serde_json::json!({})), [""; 0]);
        assert_eq!(keys_at_fault(Wire::Http, &serde_json::json!({})), [""; 0]);
    }

    #[test]
    fn every_broken_rule_is_told_with_its_key() {
        for (wire, extra, keys) in [
            (
                Wire::Stream,
                serde_json::json!({ "bind": "0.0.0.0:0" }),
                vec!["bind"],
            ),
            (
                Wire::Stream,
                serde_json::json!({ "bind": "[::ffff:127.0.0.1]:0" }),
                vec![],
            ),
            (
                Wire::Stream,
                serde_json::json!({ "bind": "0.0.0.0:0", "insecure": true }),
                vec![],
            ),
            (
                Wire::Stream,
                serde_json::json!({ "bind": "0.0.0.0:0", "tls": "public" }),
                vec![],
            ),
            (
                Wire::Http,
                serde_json::json!({ "bind": "0.0.0.0:0", "tls": "public", "insecure": true }),
                vec!["insecure"],
            ),
            (
                Wire::Http,
                serde_json::json!({ "max_connections": 0, "header_timeout": "0s", "write_timeout": "0s" }),
                vec!["max_connections", "header_timeout", "write_timeout"],
            ),
            (
                Wire::Http,
                serde_json::json!({ "client_address": "x-forwarded-for" }),
                vec!["client_address"],
            ),
            (
                Wire::Http,
                serde_json::json!({ "proxies": ["10.0.0.0/8"] }),
                vec!["proxies"],
            ),
            (
                Wire::Stream,
                serde_json::json!({ "client_address": "x-forwarded-for", "proxies": ["10.0.0.0/8"], "hosts": ["a"], "header_timeout": "3s", "body_timeout": "3s" }),
                vec!["client_address", "hosts", "header_timeout", "body_timeout"],
            ),
            (
                Wire::Stream,
                serde_json::json!({ "client_address": "proxy-protocol", "proxies": ["::1/128"] }),
                vec![],
            ),
        ] {
            assert_eq!(keys_at_fault(wire, &extra), keys, "{extra}");
        }
    }

    #[test]
    fn transports_on_one_bind_agree_on_all_that_the_socket_has() {
        let one = listener(&serde_json::json!({}));
        let other = listener(&serde_json::json!({ "timeout": "9s", "login_timeout": "3s" }));
        assert_eq!(one.differs(&other), None);
        let other = listener(&serde_json::json!({ "hosts": ["chat.example"] }));
        assert_eq!(one.differs(&other), Some("hosts"));
        let other = listener(&serde_json::json!({ "tls": "public" }));
        assert_eq!(one.differs(&other), Some("tls"));
    }

    #[test]
    fn proxies_are_networks_or_single_addresses() {
        let config =
            listener(&serde_json::json!({ "proxies": ["10.0.0.0/8", "192.0.2.1", "::1"] }));
        for (address, trusted) in [
            ("10.9.8.7", true),
            ("192.0.2.1", true),
            ("192.0.2.2", false),
            ("::1", true),
            ("::2", false),
        ] {
            assert_eq!(
                config.trusts(address.parse().unwrap()),
                trusted,
                "{address}"
            );
        }
        let wrong = serde_json::json!({ "bind": "127.0.0.1:0", "proxies": ["10.0.0.0/33"] });
        let error = serde_json::from_value::<ListenerConfig>(wrong).unwrap_err();
        assert!(error.to_string().contains("10.0.0.0/33"), "{error}");
    }
}
