//! A chinwag server of one's own, started for a measurement and ended after it.

use std::{
    env, fs, io,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
};

use tempfile::TempDir;

use crate::{
    command::chain,
    launch::{LaunchError, Running, Speaks},
    stream::{Tls, TlsError, TlsFiles},
    target::{Over, Target},
};

/// What it is started with, but for the addresses: it listens on ports that the system chooses.
pub const DOCUMENT: &str = include_str!("../bench.toml");

/// The setting that says after how long silence ends a session, and what it is where nobody sets it.
pub const TIMEOUT: &str = "CHINWAG_SESSIONS__TIMEOUT";
/// The same.
pub const DEFAULT_TIMEOUT: &str = "30s";

/// The tables of the document that listen: lines, WebSocket, polling and metrics.
const LISTENERS: [&str; 4] = ["line", "web", "poll", "metrics"];

/// The folder of certificates, beside the document.
const KEYS: &str = "keys";
/// Where the server is, as its certificate has it.
const HERE: &str = "127.0.0.1";
/// What the document has besides for TLS, and the settings that name this table.
const TLS_TABLE: &str = "
[tls.bench]
cert = \"keys/server.pem\"
key = \"keys/server.key\"
";
const TLS_SETTINGS: [&str; 3] = [
    "CHINWAG_TRANSPORTS__LINE__TLS",
    "CHINWAG_TRANSPORTS__WEB__TLS",
    "CHINWAG_TRANSPORTS__POLL__TLS",
];

/// The password file, beside the document.
const USERS: &str = "users.txt";
/// What the document has besides for users with passwords, and the settings by which only they get in. Guests have to
/// have a prefix beside them, even where nobody asks for guests.
const USERS_TABLE: &str = "
[authenticators.members]
kind = \"password\"
file = \"users.txt\"
";
const USERS_SETTINGS: [(&str, &str); 4] = [
    ("CHINWAG_TRANSPORTS__LINE__AUTH", "members"),
    ("CHINWAG_TRANSPORTS__WEB__AUTH", "members"),
    ("CHINWAG_TRANSPORTS__POLL__AUTH", "members"),
    ("CHINWAG_AUTHENTICATORS__ANYONE__PREFIX", "~"),
];

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Its configuration could not be written.
    #[error("writing the server's configuration failed")]
    Document(#[source] io::Error),
    /// It made no certificates.
    #[error("the server's program has to make certificates, and did not: {0}")]
    Certificates(String),
    /// What it made is no good.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// It did not start.
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

impl ServeError {
    /// The error with its causes, and the last words of a server that did not start.
    #[must_use]
    pub fn explain(&self) -> String {
        match self {
            Self::Launch(error) => match error.tail() {
                Some(tail) => format!("{}\n{tail}", chain(self)),
                None => chain(self),
            },
            _ => chain(self),
        }
    }
}

/// A running server, killed when this is dropped.
#[derive(Debug)]
pub struct Served {
    running: Running,
    addrs: Vec<SocketAddr>,
    tls: Option<Tls>,
    _folder: TempDir,
}

impl Served {
    /// Starts `PROGRAM serve --config FILE` with [`DOCUMENT`]. Through TLS where that is wanted, on every listener but
    /// that of the metrics, with certificates that `PROGRAM cert dev` makes.
    ///
    /// # Errors
    /// If it does not start, or does not listen.
    pub fn start(program: &Path, with_tls: bool) -> Result<Self, ServeError> {
        Self::start_as(program, Command::new(program), with_tls, &[])
    }

    /// The same as `command` does it, such as a tool that runs `program`, to which the server's own arguments are
    /// added, with `settings` in its environment.
    ///
    /// # Errors
    /// As for [`Served::start`].
    pub fn start_as(
        program: &Path,
        command: Command,
        with_tls: bool,
        settings: &[(&str, &str)],
    ) -> Result<Self, ServeError> {
        let folder = folder().map_err(ServeError::Document)?;
        if !with_tls {
            return Self::launch(command, folder, DOCUMENT, settings, None);
        }
        let keys = folder.path().join(KEYS);
        make_certificates(program, &keys)?;
        let files = TlsFiles {
            ca: vec![keys.join("ca.pem")],
            ..TlsFiles::default()
        };
        let tls = files.read(HERE)?;
        let document = format!("{DOCUMENT}{TLS_TABLE}");
        let through_tls = TLS_SETTINGS.map(|name| (name, "bench"));
        let settings = [settings, &through_tls].concat();
        Self::launch(command, folder, &document, &settings, Some(tls))
    }

    /// The same in plain text, where only these users get in: lines of a password file.
    ///
    /// # Errors
    /// As for [`Served::start`].
    pub fn start_for(program: &Path, users: &str) -> Result<Self, ServeError> {
        let folder = folder().map_err(ServeError::Document)?;
        fs::write(folder.path().join(USERS), users).map_err(ServeError::Document)?;
        let document = format!("{DOCUMENT}{USERS_TABLE}");
        Self::launch(
            Command::new(program),
            folder,
            &document,
            &USERS_SETTINGS,
            None,
        )
    }

    fn launch(
        mut command: Command,
        folder: TempDir,
        document: &str,
        settings: &[(&str, &str)],
        tls: Option<Tls>,
    ) -> Result<Self, ServeError> {
        let file = folder.path().join("bench.toml");
        fs::write(&file, document).map_err(ServeError::Document)?;
        command.args(["serve", "--config"]).arg(file);
        // What the caller has set for another server must not bend this one.
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("CHINWAG_") {
                command.env_remove(name);
            }
        }
        command
            .env("NO_COLOR", "1")
            // It ends with this process, also if that is killed.
            .env("CHINWAG_UNTIL_EOF", "1")
            .env("CHINWAG_LOG__FORMAT", "text")
            .env("CHINWAG_LOG__LEVEL", "info")
            .env("CHINWAG_METRICS__BIND", "127.0.0.1:0");
        for table in ["LINE", "WEB", "POLL"] {
            command.env(format!("CHINWAG_TRANSPORTS__{table}__BIND"), "127.0.0.1:0");
        }
        command.envs(settings.iter().copied());
        let (running, addrs) = Running::start(command, Speaks::OnStderr, &LISTENERS)?;
        Ok(Self {
            running,
            addrs,
            tls,
            _folder: folder,
        })
    }

    /// How to come in over a transport.
    #[must_use]
    pub fn target(&self, over: Over) -> Target {
        let at = match over {
            Over::Tcp | Over::Tls => 0,
            Over::Ws | Over::Wss => 1,
            Over::Http | Over::Https => 2,
        };
        Target {
            tls: self.tls.clone(),
            ..Target::here(over.dialect(), self.addrs[at])
        }
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

fn folder() -> io::Result<TempDir> {
    tempfile::Builder::new().prefix("chinwag-bench-").tempdir()
}

fn make_certificates(program: &Path, folder: &Path) -> Result<(), ServeError> {
    let output = Command::new(program)
        .args(["cert", "dev"])
        .arg(folder)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| ServeError::Certificates(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(ServeError::Certificates(said.trim().to_owned()))
}
