//! Where to connect to, and how.

use std::fmt;

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
                "a URL begins with tcp://, ws:// or http://, as in tcp://127.0.0.1:4020".into(),
            ));
        };
        let (transport, port) = match scheme {
            "tcp" => (Transport::Tcp, 4020),
            "ws" => (Transport::WebSocket, 80),
            "http" => (Transport::Polling, 80),
            "tls" | "wss" | "https" => {
                return Err(wrong(
                    "TLS is not there yet; use tcp://, ws:// or http://, where the network can be trusted",
                ));
            }
            _ => return Err(wrong("the schemes are tcp://, ws:// and http://")),
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
                return Err(wrong("tcp:// has a host and a port, and no path"));
            }
            Transport::WebSocket if path.is_empty() => "/v1/ws",
            _ => path,
        };
        Ok(Self {
            transport,
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
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.transport {
            Transport::Tcp => "tcp",
            Transport::WebSocket => "ws",
            Transport::Polling => "http",
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
        let parts = |url: &str| {
            let address = Address::parse(url).unwrap();
            let Address {
                transport,
                host,
                port,
                path,
                ..
            } = address;
            (transport, host, port, path)
        };
        let expected =
            |transport, host: &str, port, path: &str| (transport, host.into(), port, path.into());
        for (url, address) in [
            (
                "tcp://localhost",
                expected(Transport::Tcp, "localhost", 4020, ""),
            ),
            ("tcp://[::1]:99/", expected(Transport::Tcp, "::1", 99, "")),
            (
                "ws://h:8080",
                expected(Transport::WebSocket, "h", 8080, "/v1/ws"),
            ),
            (
                "ws://h/chat/ws",
                expected(Transport::WebSocket, "h", 80, "/chat/ws"),
            ),
            ("http://h", expected(Transport::Polling, "h", 80, "")),
            (
                "http://h:81/base/",
                expected(Transport::Polling, "h", 81, "/base"),
            ),
        ] {
            assert_eq!(parts(url), address, "{url}");
        }
    }

    #[test]
    fn a_wrong_url_is_told_with_a_way_out_and_without_a_password() {
        for (url, words) in [
            ("localhost:4020", "begins with tcp://"),
            ("hunter2", "begins with tcp://"),
            ("wss://h", "TLS is not there yet"),
            ("tls://h", "TLS is not there yet"),
            ("https://h", "TLS is not there yet"),
            ("ftp://h", "the schemes are"),
            ("tcp://", "no URL"),
            ("tcp://h:99999", "port"),
            ("tcp://h:1/room", "no path"),
            ("ws://h/?a=b", "query"),
            ("http://ada:hunter2@h", "do not belong into a URL"),
            ("wss://ada:hunter2@h", "TLS"),
        ] {
            let error = Address::parse(url).unwrap_err().to_string();
            assert!(error.contains(words), "{url}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
