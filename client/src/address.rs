//! Where to connect to, and how.

use std::{fmt, net::IpAddr};

use http::Uri;

use crate::ConnectError;

/// Which of the three transports a URL's scheme asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    WebSocket,
    Polling,
}

/// A URL, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) transport: Transport,
    /// Whether all of it goes through TLS.
    pub(crate) tls: bool,
    /// A name or an address, without the brackets of IPv6.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// Of the WebSocket, or before those of polling; empty for TCP. Never ends in a slash.
    pub(crate) path: String,
    authority: String,
}

impl Address {
    pub(crate) fn parse(url: &str) -> Result<Self, ConnectError> {
        let wrong = |why: &str| ConnectError::Url(format!("{}: {why}", without_user(url)));
        let Some((scheme, _)) = url.split_once("://") else {
            // Not repeated: it may be anything, a password meant for elsewhere too.
            return Err(ConnectError::Url(
                "a URL begins with one of tcp://, ws://, http://, tls://, wss:// and https://, as in \
                 tcp://127.0.0.1:4020"
                    .into(),
            ));
        };
        let (transport, tls, port) = match scheme {
            "tcp" => (Transport::Tcp, false, 4020),
            "tls" => (Transport::Tcp, true, 4020),
            "ws" => (Transport::WebSocket, false, 80),
            "wss" => (Transport::WebSocket, true, 443),
            "http" => (Transport::Polling, false, 80),
            "https" => (Transport::Polling, true, 443),
            _ => {
                return Err(wrong(
                    "the schemes are tcp://, ws:// and http://, and with TLS tls://, wss:// and https://",
                ));
            }
        };
        let uri: Uri = url
            .parse()
            .map_err(|error| wrong(&format!("no URL ({error})")))?;
        let authority = uri.authority().ok_or_else(|| wrong("a host is missing"))?;
        if authority.as_str().contains('@') {
            return Err(wrong(
                "users and passwords do not belong into a URL: others can read it",
            ));
        }
        let host = authority.host().trim_matches(['[', ']']);
        if host.is_empty() {
            return Err(wrong("a host is missing"));
        }
        // The parser takes a port that is out of range for none at all.
        let port = match authority.as_str().split_at(authority.host().len()).1 {
            "" => port,
            told => told
                .trim_start_matches(':')
                .parse()
                .map_err(|_| wrong("a port is a number up to 65535"))?,
        };
        if uri.query().is_some() {
            return Err(wrong("a query has no meaning here"));
        }
        let path = uri.path().trim_end_matches('/');
        let path = match transport {
            Transport::Tcp if !path.is_empty() => {
                return Err(wrong(
                    "tcp:// and tls:// have a host and a port, and no path",
                ));
            }
            Transport::WebSocket if path.is_empty() => "/v1/ws",
            _ => path,
        };
        Ok(Self {
            transport,
            tls,
            host: host.into(),
            port,
            path: path.into(),
            authority: authority.as_str().into(),
        })
    }

    /// What the header `Host` says.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    /// Whether others on the way could read what is said: it is plain text, and leaves this machine for all that the
    /// URL tells.
    pub(crate) fn is_exposed(&self) -> bool {
        let is_here = match self.host.parse::<IpAddr>() {
            Ok(ip) => ip.to_canonical().is_loopback(),
            Err(_) => self.host.eq_ignore_ascii_case("localhost"),
        };
        !self.tls && !is_here
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match (self.transport, self.tls) {
            (Transport::Tcp, false) => "tcp",
            (Transport::Tcp, true) => "tls",
            (Transport::WebSocket, false) => "ws",
            (Transport::WebSocket, true) => "wss",
            (Transport::Polling, false) => "http",
            (Transport::Polling, true) => "https",
        };
        write!(f, "{scheme}://{}{}", self.authority, self.path)
    }
}

/// A URL for a message: what stands before an `@` may be a password.
fn without_user(url: &str) -> String {
    match url.rsplit_once('@') {
        Some((before, after)) => {
            let scheme = before.split_once("://").map_or("", |(scheme, _)| scheme);
            format!("{scheme}://…@{after}")
        }
        None => url.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_transport_host_port_and_path() {
        use Transport::{Polling, Tcp, WebSocket};
        for (url, transport, tls, host, port, path) in [
            ("tcp://localhost", Tcp, false, "localhost", 4020, ""),
            ("tcp://[::1]:99/", Tcp, false, "::1", 99, ""),
            ("tls://h", Tcp, true, "h", 4020, ""),
            ("tls://127.0.0.1:1", Tcp, true, "127.0.0.1", 1, ""),
            ("ws://h:8080", WebSocket, false, "h", 8080, "/v1/ws"),
            ("ws://h/chat/ws", WebSocket, false, "h", 80, "/chat/ws"),
            ("wss://h", WebSocket, true, "h", 443, "/v1/ws"),
            ("wss://[::1]:81/x", WebSocket, true, "::1", 81, "/x"),
            ("http://h", Polling, false, "h", 80, ""),
            ("http://h:81/base/", Polling, false, "h", 81, "/base"),
            ("https://h/base", Polling, true, "h", 443, "/base"),
        ] {
            let address = Address::parse(url).unwrap();
            assert_eq!(
                (address.transport, address.tls, &*address.host),
                (transport, tls, host),
                "{url}"
            );
            assert_eq!((address.port, &*address.path), (port, path), "{url}");
            let scheme = url.split(':').next().unwrap();
            assert!(address.to_string().starts_with(scheme), "{address}");
        }
    }

    #[test]
    fn plain_text_is_exposed_unless_it_stays_on_this_machine() {
        for (url, exposed) in [
            ("tcp://localhost", false),
            ("http://LocalHost:1", false),
            ("ws://127.9.9.9", false),
            ("tcp://[::1]:1", false),
            ("tcp://[::ffff:127.0.0.1]:1", false),
            ("tcp://chat.example.org", true),
            ("tcp://localhost.example.org", true),
            ("ws://0.0.0.0", true),
            ("http://192.168.0.1", true),
            ("tcp://[fe80::1]", true),
            ("tls://chat.example.org", false),
            ("wss://192.0.2.1", false),
            ("https://h", false),
        ] {
            assert_eq!(Address::parse(url).unwrap().is_exposed(), exposed, "{url}");
        }
    }

    #[test]
    fn a_wrong_url_is_told_with_a_way_out_and_without_a_password() {
        for (url, words) in [
            ("localhost:4020", "begins with one of tcp://"),
            ("hunter2", "begins with one of tcp://"),
            ("ftp://h", "the schemes are"),
            ("tcp://", "no URL"),
            ("tcp://h:99999", "port"),
            ("tcp://h:1/room", "no path"),
            ("tls://h:1/room", "no path"),
            ("ws://h/?a=b", "query"),
            ("http://ada:hunter2@h", "do not belong into a URL"),
            ("wss://ada:hunter2@h", "do not belong into a URL"),
        ] {
            let error = Address::parse(url).unwrap_err().to_string();
            assert!(error.contains(words), "{url}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
