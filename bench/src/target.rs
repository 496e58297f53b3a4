//! Whom to load: an address, what is spoken there, and under which names.

use std::{
    fmt, io,
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    time::Duration,
};

use serde::Serialize;

use crate::{
    stream::{Tls, TlsError, TlsFiles},
    wire::Framing,
};

/// How long a server may take to accept the very first connection.
const REACH_LIMIT: Duration = Duration::from_secs(5);
/// The port of lines where a URL names none; that of the server's built-in configuration.
const LINE_PORT: u16 = 4020;

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// The chinwag protocol over TCP or WebSocket.
    Chinwag(Framing),
    /// The chinwag protocol over HTTP polling, with polls that wait.
    Polling,
    /// MQTT 3.1.1 at QoS 0; a room is a topic.
    Mqtt,
    /// The NATS protocol; a room is a subject.
    Nats,
    /// Text over WebSocket, which the server hands to everybody who came by the same path; a room is a path.
    Broadcast,
}

/// The ways into a chinwag server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Over {
    /// Lines over TCP
    Tcp,
    /// WebSocket
    Ws,
    /// HTTP polling
    Http,
    /// Lines through TLS
    Tls,
    /// WebSocket through TLS
    Wss,
    /// HTTP polling through TLS
    Https,
}

impl Over {
    /// The word that command lines, URLs and reports use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Ws => "ws",
            Self::Http => "http",
            Self::Tls => "tls",
            Self::Wss => "wss",
            Self::Https => "https",
        }
    }

    /// Whether it is through TLS.
    #[must_use]
    pub const fn is_tls(self) -> bool {
        matches!(self, Self::Tls | Self::Wss | Self::Https)
    }

    /// What a chinwag server speaks there.
    #[must_use]
    pub const fn dialect(self) -> Dialect {
        match self {
            Self::Tcp | Self::Tls => Dialect::Chinwag(Framing::Lines),
            Self::Ws | Self::Wss => Dialect::Chinwag(Framing::WebSocket),
            Self::Http | Self::Https => Dialect::Polling,
        }
    }

    /// The port where a URL names none.
    const fn port(self) -> u16 {
        match self {
            Self::Tcp | Self::Tls => LINE_PORT,
            Self::Ws | Self::Http => 80,
            Self::Wss | Self::Https => 443,
        }
    }
}

impl Dialect {
    /// Whether the server numbers events itself. Elsewhere the numbers that this program writes into its messages
    /// have to do, which are in order for each sender alone.
    #[must_use]
    pub const fn numbers(self) -> bool {
        matches!(self, Self::Chinwag(_) | Self::Polling)
    }

    const fn scheme(self, is_tls: bool) -> &'static str {
        match (self, is_tls) {
            (Self::Chinwag(Framing::Lines), false) => "tcp",
            (Self::Chinwag(Framing::Lines), true) => "tls",
            (Self::Chinwag(Framing::WebSocket) | Self::Broadcast, false) => "ws",
            (Self::Chinwag(Framing::WebSocket) | Self::Broadcast, true) => "wss",
            (Self::Polling, false) => "http",
            (Self::Polling, true) => "https",
            (Self::Mqtt, _) => "mqtt",
            (Self::Nats, _) => "nats",
        }
    }
}

/// A server. See the [module](self).
#[derive(Debug, Clone)]
pub struct Target {
    /// What it speaks.
    pub dialect: Dialect,
    /// Where it listens.
    pub addr: SocketAddr,
    /// Its name with its port, for `Host`.
    pub host: String,
    /// For WebSocket the path of the upgrade; for polling what stands before `/v1/`.
    pub path: String,
    /// Whether answers to polls may come compressed.
    pub gzip: bool,
    /// How to speak TLS there; `None` for plain text.
    pub tls: Option<Tls>,
}

/// Why a URL can't be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// It is no URL of a chinwag server.
    #[error("{url:?} is no address to load: {why}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Its name has no address.
    #[error("{host} has no address")]
    Resolve {
        /// The name.
        host: String,
        /// Why not.
        #[source]
        source: Option<io::Error>,
    },
    /// TLS can't be spoken there.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// What TLS needs was named for plain text.
    #[error("--ca, --cert and --key are for tls://, wss:// and https://")]
    PlainText,
    /// Nobody answers there.
    #[error("nobody answers at {host} (without a URL, bench starts a server of its own)")]
    Reach {
        /// Where.
        host: String,
        /// Why not.
        source: io::Error,
    },
}

impl Target {
    /// A server of this machine that was started for the purpose.
    #[must_use]
    pub fn here(dialect: Dialect, addr: SocketAddr) -> Self {
        let path = match dialect {
            Dialect::Chinwag(Framing::WebSocket) => "/v1/ws",
            _ => "",
        };
        Self {
            dialect,
            addr,
            host: addr.to_string(),
            path: path.to_owned(),
            gzip: false,
            tls: None,
        }
    }

    /// Reads `tcp://HOST[:PORT]`, `ws://HOST[:PORT][/PATH]` or `http://HOST[:PORT][/BEFORE]`, or `tls`, `wss` or
    /// `https` for the same through TLS with `files`, and picks the first of the host's addresses that accepts a
    /// connection.
    ///
    /// # Errors
    /// If it is none of these, has no address, or nobody answers there; if the files are no good, or not for it.
    pub fn reach(url: &str, files: &TlsFiles) -> Result<Self, TargetError> {
        let Parts {
            over,
            name,
            port,
            path,
        } = parse(url).map_err(|why| TargetError::Url {
            url: url.to_owned(),
            why,
        })?;
        let host = format!("{name}:{port}");
        let resolve = |source| TargetError::Resolve {
            host: host.clone(),
            source,
        };
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        let tls = match over.is_tls() {
            true => Some(files.read(bare)?),
            false if files.is_empty() => None,
            false => return Err(TargetError::PlainText),
        };
        let addrs = (bare, port)
            .to_socket_addrs()
            .map_err(|error| resolve(Some(error)))?;
        let mut failed = None;
        for addr in addrs {
            match TcpStream::connect_timeout(&addr, REACH_LIMIT) {
                Ok(_) => {
                    return Ok(Self {
                        dialect: over.dialect(),
                        addr,
                        host,
                        path,
                        gzip: false,
                        tls,
                    });
                }
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            Some(source) => Err(TargetError::Reach { host, source }),
            None => Err(resolve(None)),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.dialect.scheme(self.tls.is_some());
        write!(f, "{scheme}://{}{}", self.host, self.path)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Parts {
    over: Over,
    name: String,
    port: u16,
    path: String,
}

fn parse(url: &str) -> Result<Parts, &'static str> {
    const FORMS: &str = "it is tcp://HOST:PORT, ws://HOST:PORT/v1/ws or http://HOST:PORT, and \
                         through TLS tls, wss or https";
    const PORTS: &str = "a port is a number from 1 to 65535";
    if url.contains(['?', '#', '@']) {
        return Err(
            "users, queries and fragments mean nothing here: it is tcp://HOST:PORT, \
             ws://HOST:PORT/v1/ws or http://HOST:PORT",
        );
    }
    let url: http::Uri = url.parse().map_err(|_| FORMS)?;
    let over = match url.scheme_str() {
        Some("tcp") => Over::Tcp,
        Some("ws") => Over::Ws,
        Some("http") => Over::Http,
        Some("tls") => Over::Tls,
        Some("wss") => Over::Wss,
        Some("https") => Over::Https,
        _ => return Err(FORMS),
    };
    let name = url.host().filter(|name| !name.is_empty()).ok_or(FORMS)?;
    let authority = url.authority().ok_or(FORMS)?.as_str();
    let port = match authority.strip_prefix(name).ok_or(FORMS)? {
        "" => over.port(),
        given => given
            .strip_prefix(':')
            .and_then(|digits| digits.parse().ok())
            .filter(|&port| port > 0)
            .ok_or(PORTS)?,
    };
    let path = url.path().trim_end_matches('/');
    let path = match over {
        Over::Tcp | Over::Tls if path.is_empty() => "",
        Over::Tcp | Over::Tls => return Err("tcp:// and tls:// have no path"),
        Over::Ws | Over::Wss if path.is_empty() => "/v1/ws",
        Over::Ws | Over::Wss => path,
        Over::Http | Over::Https => before_version(path).ok_or(
            "behind /v1 only events, session and commands are known; it is tcp://HOST:PORT, \
             ws://HOST:PORT/v1/ws or http://HOST:PORT",
        )?,
    };
    Ok(Parts {
        over,
        name: name.to_owned(),
        port,
        path: path.to_owned(),
    })
}

/// What stands before `/v1` in a path of HTTP polling: somebody may well give that of the events. `None` if something
/// unknown follows.
fn before_version(path: &str) -> Option<&str> {
    let known = ["/v1", "/v1/events", "/v1/session", "/v1/commands"];
    if let Some(before) = known.iter().find_map(|known| path.strip_suffix(known)) {
        return Some(before);
    }
    path.split('/').all(|part| part != "v1").then_some(path)
}

/// The names that members come in under.
#[derive(Debug, Clone)]
pub struct Names {
    /// What every user's name begins with; a number follows.
    pub user: String,
    /// The room, where there is one; else what every room's name begins with.
    pub room: String,
    /// The password of every user, where the server wants one.
    pub password: Option<String>,
}

impl Names {
    /// Names that no other run of this machine uses.
    #[must_use]
    pub fn own() -> Self {
        let pid = std::process::id();
        Self {
            user: format!("bench{pid}-"),
            room: format!("bench:{pid}"),
            password: None,
        }
    }

    /// The name of the member with this index.
    #[must_use]
    pub fn user(&self, index: usize) -> String {
        format!("{}{:05}", self.user, index + 1)
    }

    /// The names of so many rooms.
    #[must_use]
    pub fn rooms(&self, count: usize) -> Vec<String> {
        match count {
            1 => vec![self.room.clone()],
            _ => (1..=count)
                .map(|number| format!("{}:{number}", self.room))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(over: Over, name: &str, port: u16, path: &str) -> Result<Parts, &'static str> {
        Ok(Parts {
            over,
            name: name.to_owned(),
            port,
            path: path.to_owned(),
        })
    }

    #[test]
    fn urls_of_all_three_transports_are_read() {
        assert_eq!(
            parse("tcp://127.0.0.1:4021"),
            parts(Over::Tcp, "127.0.0.1", 4021, "")
        );
        assert_eq!(
            parse("tcp://localhost"),
            parts(Over::Tcp, "localhost", 4020, "")
        );
        assert_eq!(
            parse("ws://chat.example:8080"),
            parts(Over::Ws, "chat.example", 8080, "/v1/ws")
        );
        assert_eq!(
            parse("ws://[::1]/sockets/chat"),
            parts(Over::Ws, "[::1]", 80, "/sockets/chat")
        );
        for url in [
            "http://127.0.0.1:8080/chat",
            "http://127.0.0.1:8080/chat/",
            "http://127.0.0.1:8080/chat/v1/events",
        ] {
            assert_eq!(parse(url), parts(Over::Http, "127.0.0.1", 8080, "/chat"));
        }
        assert_eq!(
            parse("tls://localhost"),
            parts(Over::Tls, "localhost", 4020, "")
        );
        assert_eq!(
            parse("wss://chat.example"),
            parts(Over::Wss, "chat.example", 443, "/v1/ws")
        );
        assert_eq!(
            parse("https://[::1]:8443/chat/v1"),
            parts(Over::Https, "[::1]", 8443, "/chat")
        );
        assert_eq!(
            parse("http://127.0.0.1/v1x/v1"),
            parts(Over::Http, "127.0.0.1", 80, "/v1x")
        );
    }

    #[test]
    fn other_urls_are_refused_with_a_way_out() {
        for url in [
            "",
            "lone",
            "127.0.0.1:4020",
            "ftp://127.0.0.1",
            "tcp://",
            "tcp://me@127.0.0.1",
            "http://127.0.0.1:8080/?room=a",
            "ws://127.0.0.1:8080/v1/ws#a",
            "http://127.0.0.1:8080/v1/ws",
            "http://127.0.0.1:8080/chat/v1/rooms",
        ] {
            assert!(parse(url).unwrap_err().contains("tcp://HOST:PORT"), "{url}");
        }
        for url in [
            "tcp://127.0.0.1:99999",
            "http://127.0.0.1:70000",
            "tcp://127.0.0.1:0",
            "tcp://127.0.0.1:",
            "ws://[::1]:65536/v1/ws",
        ] {
            let why = parse(url).unwrap_err();
            assert!(
                why.contains("1 to 65535") || why.contains("HOST:PORT"),
                "{url}: {why}"
            );
        }
        assert!(parse("tcp://127.0.0.1/lobby").unwrap_err().contains("path"));
    }

    #[test]
    fn a_server_that_is_not_there_is_told() {
        // Taken, so that nobody else gets it, and not listening.
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let anywhere: SocketAddr = "127.0.0.1:0".parse().unwrap();
        socket.bind(&anywhere.into()).unwrap();
        let addr = socket.local_addr().unwrap().as_socket().unwrap();
        let error = Target::reach(&format!("tcp://{addr}"), &TlsFiles::default()).unwrap_err();
        assert!(matches!(error, TargetError::Reach { .. }), "{error}");
    }

    #[test]
    fn rooms_have_a_number_where_there_are_several() {
        let names = Names {
            room: "r".to_owned(),
            ..Names::own()
        };
        assert_eq!(names.rooms(1), ["r"]);
        assert_eq!(names.rooms(3), ["r:1", "r:2", "r:3"]);
    }
}
