//! Servers under test, each in this process, made from a document like an operator's.

use std::{
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use chinwag::Plugins;
use tempfile::TempDir;
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};

use crate::{Client, Delivery, Http, Link, PATIENCE, late_log::LateLog, script};

/// What the receive buffer of a client that does not read is set to, so that little hides in it.
const SMALL: u32 = 4096;

/// A kind of transport, as the scenarios see it.
#[async_trait]
pub trait FrontEnd: fmt::Debug + Send + Sync + 'static {
    /// The name of its table in the documents that are made.
    fn name(&self) -> &str;

    /// The lines of its table, less `auth`: `kind = "…"`, where it listens (at no fixed port) and whatever else it
    /// needs. Relative paths start from a new folder for each server.
    fn keys(&self) -> String;

    /// Whole tables of the document that it needs beside its own, with their headings.
    fn tables(&self) -> String {
        String::new()
    }

    /// Adds its kind to the others. Nothing for those that chinwag has.
    fn plugins(&self, plugins: Plugins) -> Plugins {
        plugins
    }

    /// How it brings events to its clients.
    fn delivery(&self) -> Delivery {
        Delivery::Push
    }

    /// Connects one more client to `server`.
    ///
    /// # Errors
    /// The server does not listen, or turns the client away before it could say anything.
    async fn connect(&self, server: &Place<'_>) -> io::Result<Link>;

    /// The same for a client that will stop reading: the less its end of the connection can hold, the better.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    async fn connect_narrow(&self, server: &Place<'_>) -> io::Result<Link> {
        self.connect(server).await
    }
}

/// Where a server is to be found.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Place<'a> {
    /// The address that the transport took, where it is one of IP.
    pub addr: Option<SocketAddr>,
    /// The folder of the configuration.
    pub folder: &'a Path,
}

/// The kinds of transport that chinwag has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Over {
    /// `tcp`.
    Tcp,
    /// `websocket`.
    WebSocket,
    /// `http-polling`.
    Polling,
}

impl Over {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::WebSocket, Self::Polling];
    /// Those that keep a connection open.
    pub const PUSH: [Self; 2] = [Self::Tcp, Self::WebSocket];

    /// The name of its table.
    #[must_use]
    pub const fn table(self) -> &'static str {
        match self {
            Self::Tcp => "line",
            Self::WebSocket => "web",
            Self::Polling => "poll",
        }
    }

    /// What its table says of the `kind`.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::WebSocket => "websocket",
            Self::Polling => "http-polling",
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

    /// Connects a client to `addr`, in plain text.
    ///
    /// # Errors
    /// Nobody listens there, or no upgrade is to be had.
    pub async fn link(self, addr: SocketAddr) -> io::Result<Link> {
        self.link_with(addr, None).await
    }

    /// The same with a receive buffer of so many bytes.
    ///
    /// # Errors
    /// As [`link`](Self::link).
    pub async fn link_with(self, addr: SocketAddr, buffer: Option<u32>) -> io::Result<Link> {
        match self {
            Self::Tcp => Ok(Link::lines(dial(addr, buffer).await?)),
            Self::WebSocket => {
                let url = format!("ws://{addr}/v1/ws");
                Link::websocket(dial(addr, buffer).await?, &url).await
            }
            Self::Polling => Ok(Link::polling(Http::new(addr))),
        }
    }
}

async fn dial(addr: SocketAddr, buffer: Option<u32>) -> io::Result<TcpStream> {
    let socket = match addr {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if let Some(bytes) = buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    let stream = socket.connect(addr).await?;
    // A dropped client resets its connection, as one does whose machine is gone.
    stream.set_zero_linger()?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[async_trait]
impl FrontEnd for Over {
    fn name(&self) -> &str {
        Self::table(*self)
    }

    fn keys(&self) -> String {
        let mut table = format!("kind = {:?}\nbind = {:?}\n", self.kind(), self.bind());
        if *self == Self::Polling {
            // Tests poll in earnest: what paces them is the server's work.
            table += "poll_pace = \"10ms\"\n";
        }
        table
    }

    fn delivery(&self) -> Delivery {
        match self {
            Self::Tcp | Self::WebSocket => Delivery::Push,
            Self::Polling => Delivery::Pull,
        }
    }

    async fn connect(&self, server: &Place<'_>) -> io::Result<Link> {
        let addr = server.addr.ok_or(io::ErrorKind::AddrNotAvailable)?;
        if *self == Self::Polling {
            let mut http = Http::new(addr);
            http.open().await?;
            return Ok(Link::polling(http));
        }
        self.link(addr).await
    }

    async fn connect_narrow(&self, server: &Place<'_>) -> io::Result<Link> {
        let addr = server.addr.ok_or(io::ErrorKind::AddrNotAvailable)?;
        self.link_with(addr, Some(SMALL)).await
    }
}

/// Members of the password file that [`Setup::passwords`] writes: name, password, hash. The hashes are bcrypt at its
/// lowest cost: the scenarios are about verdicts, not about hashing.
pub const STAFF: [(&str, &str, &str); 2] = [
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
pub const COSTLY: (&str, &str, &str) = (
    "carol",
    "slow",
    "$2y$10$cdefghijklmnopqrstuvwun/XRgbaul/JggGnHE12lEhwPojoA3wO",
);

/// What a server is configured to be: some transports for anonymous users, and what a test adds.
#[derive(Debug, Clone)]
pub struct Setup {
    front_ends: Vec<Arc<dyn FrontEnd>>,
    plugins: Plugins,
    log_level: &'static str,
    tables: String,
    keys: Vec<(String, String)>,
    auth: String,
    authenticators: String,
}

impl Default for Setup {
    /// The three transports that chinwag has.
    fn default() -> Self {
        Self::with(Over::ALL.map(|over| Arc::new(over) as _))
    }
}

impl Setup {
    /// These transports, for anonymous users.
    #[must_use]
    pub fn with(front_ends: impl IntoIterator<Item = Arc<dyn FrontEnd>>) -> Self {
        let front_ends: Vec<_> = front_ends.into_iter().collect();
        let builtin = Plugins::builtin();
        Self {
            plugins: front_ends
                .iter()
                .fold(builtin, |plugins, front_end| front_end.plugins(plugins)),
            front_ends,
            log_level: "info",
            tables: String::new(),
            keys: Vec::new(),
            auth: "[\"guests\"]".into(),
            authenticators: "[authenticators.guests]\nkind = \"anonymous\"\n".into(),
        }
    }

    /// The three transports that chinwag has, and these tables.
    #[must_use]
    pub fn tables(tables: &str) -> Self {
        Self::default().and(tables)
    }

    /// The three transports for [`STAFF`] alone, see [`for_staff`](Self::for_staff).
    #[must_use]
    pub fn passwords() -> Self {
        Self::default().for_staff()
    }

    /// The three transports for members and guests, see [`for_staff_and_guests`](Self::for_staff_and_guests).
    #[must_use]
    pub fn passwords_and_guests() -> Self {
        Self::default().for_staff_and_guests()
    }

    /// The three transports with one authenticator, see [`for_users_of`](Self::for_users_of).
    #[must_use]
    pub fn authenticator(lines: &str) -> Self {
        Self::default().for_users_of(lines)
    }

    /// Adds more tables.
    #[must_use]
    pub fn and(mut self, tables: &str) -> Self {
        self.tables += tables;
        self.tables += "\n";
        self
    }

    /// Leaves out every transport but these.
    #[must_use]
    pub fn only(mut self, kinds: &[Over]) -> Self {
        let is_wanted = |name: &str| kinds.iter().any(|over| Over::table(*over) == name);
        self.front_ends
            .retain(|front_end| is_wanted(front_end.name()));
        self
    }

    /// Logs more than usual.
    #[must_use]
    pub fn log_level(mut self, level: &'static str) -> Self {
        self.log_level = level;
        self
    }

    /// Adds a line to one transport's table.
    #[must_use]
    pub fn on(self, over: Over, line: &str) -> Self {
        self.on_table(over.table(), line)
    }

    /// Adds a line to the table of the transport that is called so.
    #[must_use]
    pub fn on_table(mut self, name: &str, line: &str) -> Self {
        self.keys.push((name.to_owned(), line.to_owned()));
        self
    }

    /// Adds a line to every transport's table.
    #[must_use]
    pub fn on_all(mut self, line: &str) -> Self {
        for front_end in &self.front_ends {
            let name = front_end.name().to_owned();
            self.keys.push((name, line.to_owned()));
        }
        self
    }

    /// Only those of [`STAFF`] and [`COSTLY`] get in, with their passwords.
    #[must_use]
    pub fn for_staff(mut self) -> Self {
        self.auth = "[\"staff\"]".into();
        self.authenticators =
            "[authenticators.staff]\nkind = \"password\"\nfile = \"users.txt\"\n".into();
        self
    }

    /// Guests may come in beside the staff, under names that begin with `~`.
    #[must_use]
    pub fn for_staff_and_guests(self) -> Self {
        let mut setup = self.for_staff();
        setup.auth = "[\"staff\", \"guests\"]".into();
        setup.authenticators += "[authenticators.guests]\nkind = \"anonymous\"\nprefix = \"~\"\n";
        setup
    }

    /// One authenticator, called `own`, whose table has these lines.
    #[must_use]
    pub fn for_users_of(mut self, lines: &str) -> Self {
        self.auth = "[\"own\"]".into();
        self.authenticators = format!("[authenticators.own]\n{lines}\n");
        self
    }

    /// The same, and guests beside its users, under names that begin with `~`.
    #[must_use]
    pub fn for_users_of_and_guests(self, lines: &str) -> Self {
        let mut setup = self.for_users_of(lines);
        setup.auth = "[\"own\", \"guests\"]".into();
        setup.authenticators += "[authenticators.guests]\nkind = \"anonymous\"\nprefix = \"~\"\n";
        setup
    }

    /// Asks another authenticator, whose table is called `name` and has these lines, before those that are asked by now.
    #[must_use]
    pub(crate) fn asking_first(mut self, name: &str, lines: &str) -> Self {
        self.auth = self.auth.replacen('[', &format!("[{name:?}, "), 1);
        self.authenticators += &format!("[authenticators.{name}]\n{lines}\n");
        self
    }

    /// Changes the kinds that there are.
    #[must_use]
    pub fn plugins(mut self, change: impl FnOnce(Plugins) -> Plugins) -> Self {
        self.plugins = change(self.plugins);
        self
    }

    /// The document.
    #[must_use]
    pub fn document(&self) -> String {
        let mut document = format!("{}\n{}", self.authenticators, self.tables);
        for front_end in &self.front_ends {
            document += &front_end.tables();
        }
        for front_end in &self.front_ends {
            let (name, keys, auth) = (front_end.name(), front_end.keys(), &self.auth);
            document += &format!("[transports.{name}]\n{keys}\nauth = {auth}\n");
            for (_, line) in self.keys.iter().filter(|(of, _)| of == name) {
                document += &format!("{line}\n");
            }
        }
        let level = self.log_level;
        document
            + "[metrics]\nbind = \"127.0.0.1:0\"\n"
            + &format!("[log]\nformat = \"text\"\nlevel = \"{level}\"\n")
    }

    /// A folder with the password file, which the document's relative paths start from.
    #[must_use]
    pub fn folder(&self) -> TempDir {
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
    pub async fn start(&self) -> Server {
        self.start_in(self.folder()).await
    }

    /// Starts one whose log is late, repeats and shuffles, as one across a network may.
    pub async fn start_late(&self) -> Server {
        let plugins = self.plugins.clone().log(LateLog::start(7));
        self.launch(plugins, self.folder()).await
    }

    /// Starts one in a folder of the caller's making.
    pub(crate) async fn start_in(&self, folder: TempDir) -> Server {
        self.launch(self.plugins.clone(), folder).await
    }

    async fn launch(&self, plugins: Plugins, folder: TempDir) -> Server {
        let mut server = Server::start(plugins, &self.document(), folder).await;
        server.front_ends.clone_from(&self.front_ends);
        server
    }

    /// Plays `script` over each of these mixes of transports, each time on a server of its own. The log makes no
    /// difference that anybody sees: each is played once over the embedded one and once over one that is late.
    pub(crate) async fn play(&self, mixes: &[Vec<String>], script: &str) {
        for mix in mixes {
            let server = self.start().await;
            script::play(&server, mix, script).await;
            drop(server);
            let server = self.start_late().await;
            script::play(&server, mix, script).await;
            drop(server);
        }
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    server: chinwag::Server,
    folder: TempDir,
    front_ends: Vec<Arc<dyn FrontEnd>>,
}

impl Server {
    /// Starts one from a document, whose relative paths begin in `folder`.
    pub async fn start(plugins: Plugins, document: &str, folder: TempDir) -> Self {
        let server = chinwag::Server::start(plugins, document, folder.path()).await;
        let server = server.unwrap_or_else(|error| panic!("{error}\n{document}"));
        Self {
            server,
            folder,
            front_ends: Vec::new(),
        }
    }

    /// Where that transport listens.
    #[must_use]
    pub fn addr(&self, over: Over) -> SocketAddr {
        self.table(over.table())
    }

    /// Where the transport with that name listens.
    #[must_use]
    pub fn table(&self, name: &str) -> SocketAddr {
        self.server
            .addr(name)
            .unwrap_or_else(|| panic!("no address of transport {name}"))
    }

    /// Where `/metrics` is.
    #[must_use]
    pub fn metrics(&self) -> SocketAddr {
        self.server.metrics_addr().expect("the document names it")
    }

    /// The folder of the document.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Drains; how many tasks had to be dropped.
    pub async fn shut_down(self) -> usize {
        self.server.shut_down().await
    }

    /// Connects a client to the transport of that name, which has said nothing yet.
    pub async fn connect(&self, transport: &str, name: &str) -> Client {
        let link = self.link(transport).await;
        let link = link.unwrap_or_else(|error| panic!("{name} can't connect: {error}"));
        Client::on(link, transport, name)
    }

    /// Connects a client and logs it in as a guest.
    pub async fn login(&self, transport: &str, name: &str) -> Client {
        let mut client = self.connect(transport, name).await;
        let login = serde_json::json!({"type": "login", "user": name});
        client.log_in(login).await;
        client
    }

    pub(crate) async fn link(&self, transport: &str) -> io::Result<Link> {
        self.door(transport).link().await
    }

    pub(crate) async fn narrow_link(&self, transport: &str) -> io::Result<Link> {
        let door = self.door(transport);
        timeout(PATIENCE, door.front_end.connect_narrow(&door.place())).await?
    }

    /// The way in by that transport, which may be tried when the server is gone too.
    pub(crate) fn door(&self, transport: &str) -> Door {
        let mut front_ends = self.front_ends.iter();
        let found = front_ends.find(|front_end| front_end.name() == transport);
        Door {
            front_end: Arc::clone(found.unwrap_or_else(|| panic!("no transport {transport}"))),
            addr: self.server.addr(transport),
            folder: self.folder.path().to_owned(),
        }
    }
}

pub(crate) struct Door {
    front_end: Arc<dyn FrontEnd>,
    addr: Option<SocketAddr>,
    folder: PathBuf,
}

impl Door {
    pub(crate) async fn link(&self) -> io::Result<Link> {
        timeout(PATIENCE, self.front_end.connect(&self.place())).await?
    }

    fn place(&self) -> Place<'_> {
        Place {
            addr: self.addr,
            folder: &self.folder,
        }
    }
}
