//! Servers under test: one in this process, made from a document like an operator's.
//!
//! Everything that the tests know of the server's own interface is in this file and in `program.rs`.

use std::net::SocketAddr;

use tempfile::TempDir;

use super::late_log::LateLog;

/// Which of the three front ends a client speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Over {
    Tcp,
    WebSocket,
    Polling,
}

impl Over {
    pub(crate) const ALL: [Self; 3] = [Self::Tcp, Self::WebSocket, Self::Polling];
    /// Those that keep a connection open.
    pub(crate) const PUSH: [Self; 2] = [Self::Tcp, Self::WebSocket];

    /// The name of the transport's table.
    pub(crate) const fn table(self) -> &'static str {
        match self {
            Self::Tcp => "line",
            Self::WebSocket => "web",
            Self::Polling => "poll",
        }
    }

    /// Each has an address of its own: equal binds would share one listener and have to agree on its keys.
    const fn bind(self) -> &'static str {
        match self {
            Self::Tcp => "127.0.0.1:0",
            Self::WebSocket => "127.0.0.2:0",
            Self::Polling => "127.0.0.3:0",
        }
    }

    pub(crate) const fn kind(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::WebSocket => "websocket",
            Self::Polling => "http-polling",
        }
    }
}

/// Members of the password file that [`Setup::passwords`] writes. The hashes are bcrypt at its lowest cost: the tests
/// are about verdicts, not about hashing.
pub(crate) const STAFF: [(&str, &str, &str); 2] = [
    (
        "alice",
        "wonderland",
        "$2y$04$abcdefghijklmnopqrstuujZkTwHUiJ9XdZPwKfcfDo7dMp5DjlTu",
    ),
    (
        "bob",
        "builder",
        "$2y$04$bcdefghijklmnopqrstuvuUd8AGwQ3lGZX7.yss8fwntXT6FctVdK",
    ),
];

/// A member with a hash of ordinary cost, for tests about hashing under load.
pub(crate) const COSTLY: (&str, &str, &str) = (
    "carol",
    "slow",
    "$2y$10$cdefghijklmnopqrstuvwun/XRgbaul/JggGnHE12lEhwPojoA3wO",
);

/// What a test's server is configured to be: all three transports for anonymous users, and what the test adds.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    kinds: Vec<Over>,
    log_level: &'static str,
    tables: String,
    keys: Vec<(Over, String)>,
    auth: String,
    authenticators: String,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            kinds: Over::ALL.to_vec(),
            log_level: "info",
            tables: String::new(),
            // Tests poll in earnest: what paces them is the server's work.
            keys: vec![(Over::Polling, "poll_pace = \"10ms\"".into())],
            auth: "[\"guests\"]".into(),
            authenticators: "[authenticators.guests]\nkind = \"anonymous\"\n".into(),
        }
    }
}

impl Setup {
    /// Adds whole tables.
    pub(crate) fn tables(tables: &str) -> Self {
        Self::default().and(tables)
    }

    /// Adds more tables.
    pub(crate) fn and(mut self, tables: &str) -> Self {
        self.tables += tables;
        self.tables += "\n";
        self
    }

    /// Leaves out every transport but these.
    pub(crate) fn only(mut self, kinds: &[Over]) -> Self {
        self.kinds = kinds.to_vec();
        self
    }

    /// Logs more than usual.
    pub(crate) fn log_level(mut self, level: &'static str) -> Self {
        self.log_level = level;
        self
    }

    /// Adds a line to one transport's table.
    pub(crate) fn on(mut self, over: Over, line: &str) -> Self {
        self.keys.push((over, line.to_owned()));
        self
    }

    /// Adds a line to every transport's table.
    pub(crate) fn on_all(self, line: &str) -> Self {
        Over::ALL
            .into_iter()
            .fold(self, |setup, over| setup.on(over, line))
    }

    /// Only those of [`STAFF`] and [`COSTLY`] get in, with their passwords.
    pub(crate) fn passwords() -> Self {
        Self {
            auth: "[\"staff\"]".into(),
            authenticators: "[authenticators.staff]\nkind = \"password\"\nfile = \"users.txt\"\n"
                .into(),
            ..Self::default()
        }
    }

    /// One authenticator of the test's own, whose table has these lines.
    pub(crate) fn authenticator(lines: &str) -> Self {
        Self {
            auth: "[\"own\"]".into(),
            authenticators: format!("[authenticators.own]\n{lines}\n"),
            ..Self::default()
        }
    }

    /// Guests may come in beside the staff, under names that begin with `~`.
    pub(crate) fn passwords_and_guests() -> Self {
        let mut setup = Self::passwords();
        setup.auth = "[\"staff\", \"guests\"]".into();
        setup.authenticators += "[authenticators.guests]\nkind = \"anonymous\"\nprefix = \"~\"\n";
        setup
    }

    /// The document.
    pub(crate) fn document(&self) -> String {
        let mut document = format!("{}\n{}", self.authenticators, self.tables);
        for over in &self.kinds {
            let (table, kind, auth, bind) = (over.table(), over.kind(), &self.auth, over.bind());
            document += &format!(
                "[transports.{table}]\nkind = \"{kind}\"\nbind = \"{bind}\"\nauth = {auth}\n"
            );
            for (_, line) in self.keys.iter().filter(|(of, _)| of == over) {
                document += &format!("{line}\n");
            }
        }
        let level = self.log_level;
        document
            + "[metrics]\nbind = \"127.0.0.1:0\"\n"
            + &format!("[log]\nformat = \"text\"\nlevel = \"{level}\"\n")
    }

    /// A folder with the password file, which the document's relative paths start from.
    pub(crate) fn folder(&self) -> TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let users: String = STAFF
            .iter()
            .chain([&COSTLY])
            .map(|(user, _, hash)| format!("{user}:{hash}\n"))
            .collect();
        std::fs::write(folder.path().join("users.txt"), users).expect("a writable folder");
        folder
    }

    /// Starts a server in this process.
    pub(crate) async fn start(&self) -> Server {
        Server::start(chinwag::Plugins::builtin(), &self.document(), self.folder()).await
    }

    /// Starts one whose log is late, repeats and shuffles.
    pub(crate) async fn start_late(&self) -> Server {
        let plugins = chinwag::Plugins::builtin().log(LateLog::start(7));
        Server::start(plugins, &self.document(), self.folder()).await
    }
}

/// A running server.
pub(crate) struct Server {
    server: chinwag::Server,
    folder: TempDir,
}

impl Server {
    /// Starts one from a document, whose relative paths begin in `folder`.
    pub(crate) async fn start(plugins: chinwag::Plugins, document: &str, folder: TempDir) -> Self {
        let server = chinwag::Server::start(plugins, document, folder.path()).await;
        let server = server.unwrap_or_else(|error| panic!("{error}\n{document}"));
        Self { server, folder }
    }

    pub(crate) fn addr(&self, over: Over) -> SocketAddr {
        self.table(over.table())
    }

    pub(crate) fn table(&self, name: &str) -> SocketAddr {
        self.server
            .addr(name)
            .unwrap_or_else(|| panic!("no address of transport {name}"))
    }

    /// The folder of the document.
    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Drains; how many tasks had to be dropped.
    pub(crate) async fn shut_down(self) -> usize {
        self.server.shut_down().await
    }
}

/// What says where each transport listens, so that the same client works on a server in this process or in another.
pub(crate) trait Addresses {
    fn of(&self, over: Over) -> SocketAddr;
}

impl Addresses for Server {
    fn of(&self, over: Over) -> SocketAddr {
        self.addr(over)
    }
}
