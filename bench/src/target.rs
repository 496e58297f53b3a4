//! Whom to load: an address, what is spoken there, and under which names.

use std::{
    fmt, io,
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    time::Duration,
};

use serde::Serialize;

use crate::wire::Framing;

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
}

impl Over {
    /// The word that command lines, URLs and reports use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Ws => "ws",
            Self::Http => "http",
        }
    }

    /// What a chinwag server speaks there.
    #[must_use]
    pub const fn dialect(self) -> Dialect {
        match self {
            Self::Tcp => Dialect::Chinwag(Framing::Lines),
            Self::Ws => Dialect::Chinwag(Framing::WebSocket),
            Self::Http => Dialect::Polling,
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

    const fn scheme(self) -> &'static str {
        match self {
            Self::Chinwag(Framing::Lines) => "tcp",
            Self::Chinwag(Framing::WebSocket) | Self::Broadcast => "ws",
            Self::Polling => "http",
            Self::Mqtt => "mqtt",
            Self::Nats => "nats",
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
        }
    }

    /// Reads `tcp://HOST[:PORT]`, `ws://HOST[:PORT][/PATH]` or `http://HOST[:PORT][/BEFORE]` and picks the first of
    /// the host's addresses that accepts a connection.
    ///
    /// # Errors
    /// If it is none of these, has no address, or nobody answers there.
    pub fn reach(url: &str) -> Result<Self, TargetError> {
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
        write!(f, "{}://{}{}", self.dialect.scheme(), self.host, self.path)
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
    const FORMS: &str = "it is tcp://HOST:PORT, ws://HOST:PORT/v1/ws or http://HOST:PORT";
    let url: http::Uri = url.parse().map_err(|_| FORMS)?;
    let over = match url.scheme_str() {
        Some("tcp") => Over::Tcp,
        Some("ws") => Over::Ws,
        Some("http") => Over::Http,
        Some("wss" | "https" | "tls") => {
            return Err("bench speaks no TLS; load the plain listener behind it");
        }
        _ => return Err(FORMS),
    };
    let name = url.host().filter(|name| !name.is_empty()).ok_or(FORMS)?;
    let port = url.port_u16().unwrap_or(match over {
        Over::Tcp => LINE_PORT,
        Over::Ws | Over::Http => 80,
    });
    let path = url.path().trim_end_matches('/');
    let path = match over {
        Over::Tcp if path.is_empty() => "",
        Over::Tcp => return Err("tcp:// has no path"),
        Over::Ws if path.is_empty() => "/v1/ws",
        // Somebody may well give the path of the events.
        Over::Http => path.split("/v1").next().unwrap_or(""),
        Over::Ws => path,
    };
    Ok(Parts {
        over,
        name: name.to_owned(),
        port,
        path: path.to_owned(),
    })
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
    }

    #[test]
    fn other_urls_are_refused_with_a_way_out() {
        for url in ["", "lone", "127.0.0.1:4020", "ftp://127.0.0.1", "tcp://"] {
            assert!(parse(url).unwrap_err().contains("tcp://HOST:PORT"), "{url}");
        }
        assert!(parse("wss://127.0.0.1").unwrap_err().contains("TLS"));
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
        let error = Target::reach(&format!("tcp://{addr}")).unwrap_err();
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
