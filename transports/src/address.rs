//! Client addresses: who may name them, and who is exempt from being counted.

use std::net::IpAddr;

use chinwag_core::Peer;

/// The other end of a connection whose client no proxy named.
pub(crate) fn direct(address: IpAddr) -> Peer {
    let address = address.to_canonical();
    Peer::new(address, address.is_loopback())
}

/// A client that a trusted proxy named: never exempt, whatever address it is said to have.
pub(crate) fn named(address: IpAddr) -> Peer {
    Peer::new(address.to_canonical(), false)
}

#[cfg(feature = "http")]
pub(crate) use forwarded::forwarded;

#[cfg(feature = "http")]
mod forwarded {
    use std::net::{IpAddr, SocketAddr};

    use http::HeaderMap;

    use crate::ListenerConfig;

    const HEADER: &str = "x-forwarded-for";

    /// The client's address as `X-Forwarded-For` has it: the right-most that is none of the proxies.
    ///
    /// Each proxy appends the address that it was reached from, so everything left of the first address that is no
    /// proxy's is the client's own invention. Where all are proxies, the left-most of them is the client. What can't
    /// be read as an address ends the search: the proxy before it stands for the client. `None`: no proxy named
    /// anybody.
    ///
    /// Only to be asked where the peer itself is a proxy.
    pub(crate) fn forwarded(headers: &HeaderMap, listener: &ListenerConfig) -> Option<IpAddr> {
        let mut client = None;
        // Several lines are one list, in order; the right-most entry is the last of the last line.
        for line in headers.get_all(HEADER).iter().rev() {
            for entry in line.as_bytes().rsplit(|&byte| byte == b',') {
                let entry = entry.trim_ascii();
                if entry.is_empty() {
                    continue;
                }
                let Some(address) = read(entry) else {
                    return client;
                };
                client = Some(address);
                if !listener.trusts(address) {
                    return client;
                }
            }
        }
        client
    }

    /// An address as proxies write it: plain, in brackets, with a port.
    fn read(entry: &[u8]) -> Option<IpAddr> {
        let entry = std::str::from_utf8(entry).ok()?;
        let address = entry
            .parse()
            .or_else(|_| entry.parse::<SocketAddr>().map(|with_port| with_port.ip()))
            .ok()
            .or_else(|| {
                let inner = entry.strip_prefix('[')?.strip_suffix(']')?;
                inner.parse().ok()
            })?;
        Some(address.to_canonical())
    }

    #[cfg(test)]
    mod tests {
        use http::HeaderValue;

        use super::*;
        use crate::config::tests::listener;

        #[test]
        fn the_right_most_address_that_is_no_proxy_is_the_clients() {
            let proxies = listener(&serde_json::json!({
                "client_address": "x-forwarded-for",
                "proxies": ["10.0.0.0/8", "2001:db8:1::/48"],
            }));
            for (lines, client) in [
                (&["203.0.113.7"][..], Some("203.0.113.7")),
                (&["198.51.100.1, 203.0.113.7"], Some("203.0.113.7")),
                (
                    &["198.51.100.1, 203.0.113.7, 10.0.0.2"],
                    Some("203.0.113.7"),
                ),
                (
                    &["198.51.100.1", "203.0.113.7", "10.1.1.1,10.0.0.2"],
                    Some("203.0.113.7"),
                ),
                (&["203.0.113.7:4711"], Some("203.0.113.7")),
                (&["[2001:db8:2::1]:4711"], Some("2001:db8:2::1")),
                (&["[2001:db8:2::1], 2001:db8:1::9"], Some("2001:db8:2::1")),
                (&["::ffff:203.0.113.7"], Some("203.0.113.7")),
                (&["203.0.113.7,, ,"], Some("203.0.113.7")),
                // All proxies: the one furthest away asks for itself.
                (&["10.0.0.9, 10.0.0.2"], Some("10.0.0.9")),
                // What can't be read hides what is left of it.
                (&["203.0.113.7, unknown, 10.0.0.2"], Some("10.0.0.2")),
                (&["203.0.113.7, unknown"], None),
                (&[""], None),
                (&[], None),
                // A client that writes a proxy's or a loopback address gains nothing.
                (&["127.0.0.1, 203.0.113.7"], Some("203.0.113.7")),
            ] {
                let mut headers = HeaderMap::new();
                for line in lines {
                    headers.append(HEADER, HeaderValue::from_static(line));
                }
                assert_eq!(
                    forwarded(&headers, &proxies),
                    client.map(|client| client.parse().unwrap()),
                    "{lines:?}"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_that_no_proxy_named_is_exempt() {
        assert!(direct("127.0.0.5".parse().unwrap()).exempt);
        assert!(direct("::ffff:127.0.0.1".parse().unwrap()).exempt);
        assert!(direct("::1".parse().unwrap()).exempt);
        assert!(!direct("192.0.2.1".parse().unwrap()).exempt);
        assert!(!named("127.0.0.1".parse().unwrap()).exempt);
    }
}
