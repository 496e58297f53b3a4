//! Who takes part in a comparison: the floor, chinwag, and servers of others, each started afresh for every run.

use std::{
    env, fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::Serialize;

use crate::{
    floor::Mode,
    launch::{LaunchError, Running, Speaks},
    served::{ServeError, Served, TIMEOUT},
    target::{Dialect, Over, Target},
    wire::Framing,
};

/// A server of this comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Contender {
    /// The bare epoll loop
    #[value(skip)]
    Floor,
    /// The server that all this is about
    #[value(skip)]
    Chinwag,
    /// mosquitto as it comes
    Mosquitto,
    /// mosquitto without delays, limits of queues, searches for duplicates and logs
    MosquittoTuned,
    /// nats-server
    Nats,
    /// The package `ws` on Node.js
    Ws,
    /// uWebSockets on Node.js
    Uws,
}

impl Contender {
    /// The word that command lines and reports use.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Chinwag => "chinwag",
            Self::Mosquitto => "mosquitto",
            Self::MosquittoTuned => "mosquitto-tuned",
            Self::Nats => "nats",
            Self::Ws => "ws",
            Self::Uws => "uws",
        }
    }

    /// Whether it is the server of others.
    #[must_use]
    pub const fn is_peer(self) -> bool {
        !matches!(self, Self::Floor | Self::Chinwag)
    }

    /// What it speaks over a transport; `None` where it does not take part.
    #[must_use]
    pub const fn dialect(self, over: Over) -> Option<Dialect> {
        match (self, over) {
            (Self::Chinwag, _) | (Self::Floor, Over::Tcp | Over::Ws) => Some(over.dialect()),
            (Self::Mosquitto | Self::MosquittoTuned, Over::Tcp) => Some(Dialect::Mqtt),
            (Self::Nats, Over::Tcp) => Some(Dialect::Nats),
            (Self::Ws | Self::Uws, Over::Ws) => Some(Dialect::Broadcast),
            _ => None,
        }
    }
}

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The chinwag program.
    pub server: PathBuf,
    /// This program, which can be the floor.
    pub floor: PathBuf,
    /// Folders in which Node.js looks for packages, separated by colons.
    pub node_path: String,
}

/// Why a contender does not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// chinwag did not start.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Another one did not.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// What it needs could not be written.
    #[error("preparing {name} failed")]
    Prepare {
        /// Which.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// A contender that runs, ended when this is dropped.
#[derive(Debug)]
pub struct Opponent {
    process: Process,
    target: Target,
    /// Its configuration or its script.
    _folder: Option<tempfile::TempDir>,
}

#[derive(Debug)]
enum Process {
    Served(Served),
    Running(Running),
}

impl Opponent {
    /// Starts `contender` for clients over `over`; the floor in this mode.
    ///
    /// # Errors
    /// If it does not start or does not listen, or never takes part over this transport.
    pub fn start(
        contender: Contender,
        over: Over,
        mode: Mode,
        programs: &Programs,
    ) -> Result<Self, PeerError> {
        let name = contender.name();
        let prepare = |source| PeerError::Prepare { name, source };
        let Some(dialect) = contender.dialect(over) else {
            return Err(prepare(io::Error::other("it does not speak that")));
        };
        let (command, speaks, folder) = match contender {
            Contender::Chinwag => {
                let served = Served::start(&programs.server, over.is_tls())?;
                return Ok(Self::of(served, over));
            }
            Contender::Floor => {
                let framing = match over {
                    Over::Ws => Framing::WebSocket,
                    _ => Framing::Lines,
                };
                let mut command = Command::new(&programs.floor);
                command.args(["floor", "--framing", framing.name(), "--mode", mode.name()]);
                (command, Speaks::OnStdout, None)
            }
            Contender::Mosquitto | Contender::MosquittoTuned => {
                let addr = free_address().map_err(prepare)?;
                let document = mosquitto_conf(addr, contender == Contender::MosquittoTuned);
                let (folder, file) = written("mosquitto.conf", &document).map_err(prepare)?;
                let mut command = Command::new(mosquitto());
                command.arg("-c").arg(file);
                (command, Speaks::Nothing(addr), Some(folder))
            }
            Contender::Nats => {
                let addr = free_address().map_err(prepare)?;
                let mut command = Command::new("nats-server");
                command.args(["-a", "127.0.0.1", "-p", &addr.port().to_string()]);
                (command, Speaks::Nothing(addr), None)
            }
            Contender::Ws | Contender::Uws => {
                let script = match contender {
                    Contender::Ws => include_str!("../peers/ws.cjs"),
                    _ => include_str!("../peers/uws.cjs"),
                };
                let (folder, file) = written("server.cjs", script).map_err(prepare)?;
                let mut command = Command::new("node");
                command.arg(file).env("NODE_PATH", &programs.node_path);
                (command, Speaks::OnStdout, Some(folder))
            }
        };
        let (running, addrs) = Running::start(command, speaks, &[name])?;
        Ok(Self {
            process: Process::Running(running),
            target: Target::here(dialect, addrs[0]),
            _folder: folder,
        })
    }

    /// Starts chinwag for clients over TCP, of whom only these get in: lines of a password file.
    ///
    /// # Errors
    /// If it does not start or does not listen.
    pub fn start_for(users: &str, programs: &Programs) -> Result<Self, PeerError> {
        let served = Served::start_for(&programs.server, users)?;
        Ok(Self::of(served, Over::Tcp))
    }

    /// Starts chinwag for clients over `over`, with this time after which it ends silent sessions.
    ///
    /// # Errors
    /// As for [`Opponent::start_for`].
    pub fn start_patient(
        over: Over,
        timeout: &str,
        programs: &Programs,
    ) -> Result<Self, PeerError> {
        let program = &programs.server;
        let settings = [(TIMEOUT, timeout)];
        let served = Served::start_as(program, Command::new(program), over.is_tls(), &settings)?;
        Ok(Self::of(served, over))
    }

    fn of(served: Served, over: Over) -> Self {
        Self {
            target: served.target(over),
            process: Process::Served(served),
            _folder: None,
        }
    }

    /// How to come in.
    #[must_use]
    pub fn target(&self) -> Target {
        self.target.clone()
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        match &self.process {
            Process::Served(served) => served.pid(),
            Process::Running(running) => running.pid(),
        }
    }

    /// Where its metrics are, if it has any.
    #[must_use]
    pub fn metrics(&self) -> Option<SocketAddr> {
        match &self.process {
            Process::Served(served) => Some(served.metrics()),
            Process::Running(_) => None,
        }
    }

    /// What to say of the process once a run against it has failed: whether it still runs, and its last words.
    pub fn epitaph(&mut self) -> String {
        match &mut self.process {
            Process::Served(served) => served.running().epitaph(),
            Process::Running(running) => running.epitaph(),
        }
    }
}

/// What the program says of its version; `None` where it is not there.
#[must_use]
pub fn version(contender: Contender, programs: &Programs) -> Option<String> {
    let said = |command: &mut Command| -> Option<String> {
        let output = command.stdin(Stdio::null()).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().next()?.trim().to_owned();
        (!line.is_empty()).then_some(line)
    };
    let package = |name: &str| {
        let script =
            format!("console.log(process.version, require('{name}/package.json').version)");
        let mut command = Command::new("node");
        command
            .args(["-e", &script])
            .env("NODE_PATH", &programs.node_path);
        let text = said(&mut command)?;
        let (node, version) = text.split_once(' ')?;
        Some(format!("{name} {version} on Node.js {node}"))
    };
    match contender {
        Contender::Floor => Some("a bare epoll loop".to_owned()),
        Contender::Chinwag => said(Command::new(&programs.server).arg("--version")),
        Contender::Mosquitto | Contender::MosquittoTuned => {
            said(Command::new(mosquitto()).arg("-h"))
        }
        Contender::Nats => said(Command::new("nats-server").arg("--version")),
        Contender::Ws => package("ws"),
        Contender::Uws => package("@trufflesuite/uws-js-unofficial"),
    }
}

/// Debian keeps it where only root looks.
fn mosquitto() -> &'static str {
    const SBIN: &str = "/usr/sbin/mosquitto";
    if Path::new(SBIN).exists() {
        SBIN
    } else {
        "mosquitto"
    }
}

fn mosquitto_conf(addr: SocketAddr, tuned: bool) -> String {
    let mut document = format!(
        "listener {} {}\nallow_anonymous true\n",
        addr.port(),
        addr.ip()
    );
    if tuned {
        document.push_str(
            "set_tcp_nodelay true\nmax_queued_messages 0\nmax_queued_bytes 0\n\
             allow_duplicate_messages true\nconnection_messages false\nlog_type error\nsys_interval 0\n",
        );
    }
    document
}

/// An address that was free a moment ago, for programs that can't choose one and say so.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

fn written(name: &str, text: &str) -> io::Result<(tempfile::TempDir, PathBuf)> {
    let folder = tempfile::Builder::new()
        .prefix("chinwag-bench-")
        .tempdir()?;
    let file = folder.path().join(name);
    fs::write(&file, text)?;
    Ok((folder, file))
}

/// Where Debian keeps the packages of Node.js, and before it what the environment says.
#[must_use]
pub fn node_path() -> String {
    const DEBIAN: &str = "/usr/share/nodejs";
    match env::var("NODE_PATH") {
        Ok(path) if !path.is_empty() => format!("{path}:{DEBIAN}"),
        _ => DEBIAN.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_take_part_where_they_speak() {
        let over = |contender: Contender| {
            [Over::Tcp, Over::Ws, Over::Http].map(|over| contender.dialect(over).is_some())
        };
        assert_eq!(over(Contender::Chinwag), [true, true, true]);
        assert_eq!(over(Contender::Floor), [true, true, false]);
        assert_eq!(over(Contender::Nats), [true, false, false]);
        assert_eq!(over(Contender::Uws), [false, true, false]);
    }

    #[test]
    fn a_tuned_mosquitto_differs_from_a_plain_one_by_its_configuration() {
        let addr = "127.0.0.1:1883".parse().unwrap();
        let plain = mosquitto_conf(addr, false);
        assert_eq!(plain, "listener 1883 127.0.0.1\nallow_anonymous true\n");
        assert!(mosquitto_conf(addr, true).starts_with(&plain));
    }
}
