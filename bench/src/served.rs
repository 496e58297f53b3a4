//! A chinwag server of one's own, started for a measurement and ended after it.

use std::{
    env,
    io::{self, Write},
    net::SocketAddr,
    path::Path,
    process::Command,
};

use crate::{
    launch::{LaunchError, Running, Speaks},
    target::{Over, Target},
};

/// What it is started with, but for the addresses: it listens on ports that the system chooses.
pub const DOCUMENT: &str = include_str!("../../configs/bench.toml");

/// The tables of the document that listen: lines, WebSocket, polling and metrics.
const LISTENERS: [&str; 4] = ["line", "web", "poll", "metrics"];

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Its configuration could not be written.
    #[error("writing the server's configuration failed")]
    Document(#[source] io::Error),
    /// It did not start.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

/// A running server, killed when this is dropped.
#[derive(Debug)]
pub struct Served {
    running: Running,
    addrs: Vec<SocketAddr>,
    _document: tempfile::NamedTempFile,
}

impl Served {
    /// Starts `PROGRAM serve --config FILE` with [`DOCUMENT`].
    ///
    /// # Errors
    /// If it does not start, or does not listen.
    pub fn start(program: &Path) -> Result<Self, ServeError> {
        let document = document().map_err(ServeError::Document)?;
        let mut command = Command::new(program);
        command.args(["serve", "--config"]).arg(document.path());
        // What the caller has set for another server must not bend this one.
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("CHINWAG_") {
                command.env_remove(name);
            }
        }
        command
            .env("NO_COLOR", "1")
            .env("CHINWAG_LOG__FORMAT", "text")
            .env("CHINWAG_LOG__LEVEL", "info")
            .env("CHINWAG_METRICS__BIND", "127.0.0.1:0");
        for table in ["LINE", "WEB", "POLL"] {
            command.env(format!("CHINWAG_TRANSPORTS__{table}__BIND"), "127.0.0.1:0");
        }
        let (running, addrs) = Running::start(command, Speaks::OnStderr, &LISTENERS)?;
        Ok(Self {
            running,
            addrs,
            _document: document,
        })
    }

    /// How to come in over a transport.
    #[must_use]
    pub fn target(&self, over: Over) -> Target {
        let at = match over {
            Over::Tcp => 0,
            Over::Ws => 1,
            Over::Http => 2,
        };
        Target::here(over.dialect(), self.addrs[at])
    }

    /// Where its metrics are.
    #[must_use]
    pub fn metrics(&self) -> SocketAddr {
        self.addrs[3]
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// The process, to ask what it said.
    pub fn running(&mut self) -> &mut Running {
        &mut self.running
    }
}

fn document() -> io::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::Builder::new()
        .prefix("chinwag-bench-")
        .suffix(".toml")
        .tempfile()?;
    file.write_all(DOCUMENT.as_bytes())?;
    file.flush()?;
    Ok(file)
}
