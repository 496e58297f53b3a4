//! The minimal clients of `examples/clients`, each run by its own tool chain against a real server, and what
//! `docs/clients.md` says about writing one.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    task::JoinSet,
    time::timeout,
};

use crate::harness::{
    Answer, Client, Http, Over, PATIENCE, Program, Request, Server, Setup, blocks, eventually,
    includes, repository,
};

/// Compilers and virtual machines share the processor with all the other tests.
const LONG: Duration = PATIENCE.saturating_mul(12);
/// The idle timeout of these servers, and that in their configuration.
const TIMEOUT: Duration = Duration::from_secs(3);
/// JSON for Java.
const GSON: &str = "/usr/share/java/gson.jar";
/// What is hard to quote, and would do harm if it were not.
const TYPED: &str = r#"she said "hi" \o/ <b>😀</b> & 'ü' %s ${x} \n"#;

/// One of the clients that talk through standard input and output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Python,
    Node,
    Java,
    CSharp,
    Cpp,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::Python,
        Self::Node,
        Self::Java,
        Self::CSharp,
        Self::Cpp,
    ];

    fn source(self) -> PathBuf {
        repository(match self {
            Self::Python => "examples/clients/python/chat.py",
            Self::Node => "examples/clients/node/chat.mjs",
            Self::Java => "examples/clients/java/Chat.java",
            Self::CSharp => "examples/clients/csharp/Chat.cs",
            Self::Cpp => "examples/clients/cpp/chat.cpp",
        })
    }

    const fn over(self) -> Over {
        match self {
            Self::Python | Self::Cpp => Over::Tcp,
            Self::Node => Over::Polling,
            Self::Java | Self::CSharp => Over::WebSocket,
        }
    }

    /// What comes before the name and the room on its command line.
    fn address(self, addr: SocketAddr) -> Vec<String> {
        match self.over() {
            Over::Tcp => vec![addr.ip().to_string(), addr.port().to_string()],
            Over::WebSocket => vec![format!("ws://{addr}/v1/ws")],
            Over::Polling => vec![format!("http://{addr}")],
        }
    }

    /// Builds it into `folder`, where it has to be built, and gives the command line that runs it.
    async fn build(self, folder: &Path) -> Vec<String> {
        let source = self.source().display().to_string();
        let target = folder.join("chat.exe").display().to_string();
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        match self {
            Self::Python => words(&["python3", &source]),
            Self::Node => words(&["node", &source]),
            Self::Java => {
                // `java Chat.java` does the same, and again each time it is run.
                let out = folder.display().to_string();
                let options = ["-Xlint:all", "-Werror", "-d", &out, "-cp", GSON];
                run(&[&["javac"], &options[..], &[&source]].concat()).await;
                words(&["java", "-cp", &format!("{GSON}:{out}"), "Chat"])
            }
            Self::CSharp => {
                let out = format!("-out:{target}");
                run(&[
                    "mcs",
                    "-warnaserror",
                    "-r:System.Runtime.Serialization",
                    &out,
                    &source,
                ])
                .await;
                words(&["mono", &target])
            }
            Self::Cpp => {
                let warnings = ["-Wall", "-Wextra", "-Werror"];
                let build = ["g++", "-std=c++17", "-pthread", "-o", &target, &source];
                run(&[&build[..], &warnings].concat()).await;
                words(&[&target])
            }
        }
    }
}

/// Runs a tool to its end, which must be a good one.
async fn run(words: &[&str]) {
    let mut command = Command::new(words[0]);
    let output = command.args(&words[1..]).kill_on_drop(true).output();
    let output = timeout(LONG, output).await.expect("it ends");
    let output = output.unwrap_or_else(|error| panic!("{} does not run: {error}", words[0]));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {said}");
}

/// A client that is built and may be run any number of times.
struct Built {
    kind: Kind,
    words: Vec<String>,
    _folder: TempDir,
}

impl Built {
    async fn new(kind: Kind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let words = kind.build(folder.path()).await;
        Self {
            kind,
            words,
            _folder: folder,
        }
    }

    fn run(&self, addr: SocketAddr, user: &str, room: &str) -> Running {
        self.run_with(addr, user, room, None)
    }

    fn run_with(
        &self,
        addr: SocketAddr,
        user: &str,
        room: &str,
        password: Option<&str>,
    ) -> Running {
        let mut command = Command::new(&self.words[0]);
        command
            .args(&self.words[1..])
            .args(self.kind.address(addr))
            .args([user, room]);
        // The plainest of surroundings: a client has to say by itself that it speaks UTF-8.
        command.env("LC_ALL", "C").env_remove("CHINWAG_PASSWORD");
        // Node 18, which is Debian's, calls `fetch` experimental each time.
        command.env("NODE_NO_WARNINGS", "1");
        command.envs(password.map(|password| ("CHINWAG_PASSWORD", password)));
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().expect("it was built");
        Running {
            keyboard: child.stdin.take(),
            screen: BufReader::new(child.stdout.take().expect("it is piped")).lines(),
            errors: child.stderr.take().expect("it is piped"),
            child,
        }
    }
}

/// One run of a client.
struct Running {
    child: Child,
    keyboard: Option<ChildStdin>,
    screen: Lines<BufReader<ChildStdout>>,
    errors: ChildStderr,
}

impl Running {
    async fn types(&mut self, text: &str) {
        let keyboard = self.keyboard.as_mut().expect("its input is not closed yet");
        keyboard.write_all(text.as_bytes()).await.expect("it reads");
        keyboard.flush().await.expect("it reads");
    }

    async fn shows(&mut self, expected: &str) {
        let line = timeout(LONG, self.screen.next_line()).await;
        let line = line.unwrap_or_else(|_| panic!("it never shows {expected:?}"));
        assert_eq!(line.unwrap().as_deref(), Some(expected));
    }

    /// The end of its input, then its own.
    async fn ends(mut self) -> (i32, String, String) {
        drop(self.keyboard.take());
        self.last_words().await
    }

    /// Its end, although there might be more input: exit code, the rest of its output, and what it says last.
    async fn last_words(mut self) -> (i32, String, String) {
        let (mut shown, mut words) = (String::new(), String::new());
        let ended = timeout(LONG, async {
            let rest = async {
                while let Some(line) = self.screen.next_line().await.unwrap() {
                    shown += &(line + "\n");
                }
            };
            tokio::join!(rest, self.errors.read_to_string(&mut words))
                .1
                .unwrap();
            self.child.wait().await.expect("it is our child")
        });
        let status = ended.await.unwrap_or_else(|_| panic!("it does not end"));
        let code = status.code();
        (
            code.unwrap_or_else(|| panic!("{status}: {words}")),
            shown,
            words,
        )
    }
}

/// A server on which silence ends a session soon, but not that of `bob`, who comes in by a door of his own.
async fn server_and_bob(more: &str) -> (Server, Client) {
    let seconds = TIMEOUT.as_secs();
    let patient = "[transports.patient]\nkind = \"tcp\"\nbind = \"127.0.0.5:0\"\nauth = [\"guests\"]\ntimeout = \"0s\"";
    let setup = Setup::tables(patient)
        .and(more)
        .on_all(&format!("timeout = \"{seconds}s\""));
    let server = setup.start().await;
    let mut bob = Client::login(server.table("patient"), Over::Tcp, "bob").await;
    bob.enter("lobby").await;
    (server, bob)
}

/// The whole life of a client in a room with another member.
async fn it_converses(client: &Built) {
    let (server, mut bob) = server_and_bob("").await;
    let mut ann = client.run(server.addr(client.kind.over()), "ann", "lobby");
    let join = bob.event_within("ann's join", LONG).await;
    assert!(
        includes(&join, &json!({"type": "join", "user": "ann"})),
        "{join}"
    );
    ann.shows("* 1 in lobby: bob").await;

    ann.types(&format!("{TYPED}\n")).await;
    assert_eq!(
        bob.event_within("what ann typed", LONG).await["text"],
        TYPED
    );
    for (said, shown) in [
        (json!({"text": TYPED}), TYPED),
        (
            json!({"text": "one line\n* eve joined\tno"}),
            "one line * eve joined no",
        ),
        // What only looks like fields of a message is data.
        (
            json!({"text": "this", "data": {"type": "bye", "__type": "x", "user": "eve", "text": "that"}}),
            "this",
        ),
        (json!({"data": [1, {"text": null}]}), "(data)"),
    ] {
        let mut send = said.clone();
        send["type"] = "send".into();
        send["room"] = "lobby".into();
        assert_eq!(bob.command(send).await["type"], "sent");
        ann.shows(&format!("bob: {shown}")).await;
        bob.next_event().await;
    }
    let mut eve = Client::login(server.table("patient"), Over::Tcp, "eve").await;
    eve.enter("lobby").await;
    ann.shows("* eve joined").await;
    eve.command(json!({"type": "logout"})).await;
    ann.shows("* eve left").await;
    for event in ["join", "leave"] {
        assert_eq!(bob.next_event().await["type"], event);
    }

    // Nothing is typed for longer than the session may be silent, and nobody leaves.
    let silence = bob.try_event(TIMEOUT * 2 + TIMEOUT / 2).await;
    assert_eq!(silence, None);
    // It is told as an error, and the client goes on.
    ann.types(&format!("{}\nstill here\n", "x".repeat(5000)))
        .await;
    assert_eq!(bob.next_event().await["text"], "still here");

    let (code, shown, words) = ann.ends().await;
    assert_eq!(code, 0, "{words}");
    assert_eq!(shown, "", "nothing was left to be shown");
    assert!(
        words.starts_with("! ") && words.contains("logged out"),
        "{words}"
    );
    let leave = bob.next_event().await;
    assert!(
        includes(
            &leave,
            &json!({"type": "leave", "user": "ann", "reason": "logout"})
        ),
        "{leave}"
    );
}

/// Input that comes faster than the server takes it.
async fn it_loses_no_line_to_a_rate_limit(client: &Built) {
    let limits = "[limits]\nsends = { rate = 10, per = \"1s\", burst = 3 }";
    let (server, mut bob) = server_and_bob(limits).await;
    let mut ann = client.run(server.addr(client.kind.over()), "ann", "lobby");
    let lines: Vec<String> = (0..12).map(|n| format!("line {n}")).collect();
    // The last line has no end.
    ann.types(&lines.join("\n")).await;
    let (code, _, words) = ann.ends().await;
    assert_eq!(code, 0, "{words}");
    let events = bob
        .events_until("ann's leave", |event| event["type"] == "leave")
        .await;
    let said: Vec<&str> = events
        .iter()
        .filter_map(|event| event["text"].as_str())
        .collect();
    assert_eq!(said, lines);
}

/// Every way in which it can be turned away, and those in which it is sent away.
async fn it_tells_what_went_wrong(client: &Built) {
    let over = client.kind.over();
    let (server, bob) = server_and_bob("").await;
    let addr = server.addr(over);
    for (user, room, why) in [
        ("bob", "lobby", "name"),
        ("ann", "Lobby", "lower-case"),
        ("a b", "lobby", "name"),
    ] {
        let (code, _, words) = client.run(addr, user, room).last_words().await;
        assert_eq!(code, 1, "{words}");
        assert!(
            words.starts_with("Refused: ") && words.contains(why),
            "{words}"
        );
    }

    // It is in the room, and has open input, when the server stops.
    let mut ann = client.run(addr, "ann", "lobby");
    ann.shows("* 1 in lobby: bob").await;
    drop(bob);
    let ended = tokio::join!(ann.last_words(), server.shut_down()).0;
    let (code, _, words) = ended;
    assert_eq!(code, 1, "{words}");
    assert!(words.contains("stopping"), "{words}");

    let (code, _, words) = client.run(addr, "ann", "lobby").last_words().await;
    assert_eq!(code, 1, "{words}");
    assert!(words.starts_with("Lost: "), "{words}");
}

async fn it_knows_passwords(client: &Built) {
    let server = Setup::passwords().start().await;
    let addr = server.addr(client.kind.over());
    for (password, code, expected) in [
        (Some("wonderland"), 0, "logged out"),
        (Some("wrong \"horse\""), 1, "Refused: "),
        (None, 1, "Refused: "),
    ] {
        let (exit, _, words) = client
            .run_with(addr, "alice", "lobby", password)
            .ends()
            .await;
        assert_eq!(exit, code, "{password:?}: {words}");
        assert!(words.contains(expected), "{password:?}: {words}");
        assert!(!words.contains("horse"), "{words}");
    }
}

/// In a room that tells joins and leaves once per interval, and escapes texts.
async fn it_takes_a_room_as_it_is(client: &Built) {
    let room = "[rooms.other]\nmatch = \"other\"\npresence = \"batched\"\npresence_interval = \"100ms\"\n\
                validators = [\"not_empty\", \"length\", \"html_escape\"]";
    let (server, mut bob) = server_and_bob(room).await;
    bob.join("other").await;
    let mut ann = client.run(server.addr(client.kind.over()), "ann", "other");
    ann.shows("* 1 in other: bob").await;
    let mut eve = Client::login(server.table("patient"), Over::Tcp, "eve").await;
    eve.join("other").await;
    ann.shows("* eve joined").await;
    bob.say("other", "&lt; <b> \"&amp;\" isn't").await;
    ann.shows("bob: &lt; <b> \"&amp;\" isn't").await;
    eve.command(json!({"type": "logout"})).await;
    ann.shows("* eve left").await;
    let (code, _, words) = ann.ends().await;
    assert_eq!(code, 0, "{words}");
}

async fn it_works(kind: Kind) {
    let client = Built::new(kind).await;
    it_converses(&client).await;
    it_loses_no_line_to_a_rate_limit(&client).await;
    it_tells_what_went_wrong(&client).await;
    it_knows_passwords(&client).await;
    it_takes_a_room_as_it_is(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_client_works() {
    it_works(Kind::Python).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_client_works() {
    it_works(Kind::Node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_java_client_works() {
    it_works(Kind::Java).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_csharp_client_works() {
    it_works(Kind::CSharp).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cpp_client_works() {
    it_works(Kind::Cpp).await;
}

/// A web server with the PHP page, and a browser that keeps its cookie.
struct PhpPage {
    _server: Child,
    _log: JoinSet<()>,
    http: Http,
    cookie: String,
}

impl PhpPage {
    async fn start(chinwag: SocketAddr) -> Self {
        let mut command = Command::new("php");
        command
            .args(["-S", "127.0.0.1:0"])
            .arg(repository("examples/clients/php/chat.php"));
        command.env("CHINWAG_URL", format!("http://{chinwag}"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut server = command
            .kill_on_drop(true)
            .spawn()
            .expect("php is installed");
        // The port that it was given stands in its first line: "… Development Server (http://127.0.0.1:4711) started".
        let mut lines = BufReader::new(server.stderr.take().expect("it is piped")).lines();
        let line = timeout(LONG, lines.next_line())
            .await
            .expect("it says that it has started");
        let line = line.unwrap().unwrap_or_default();
        let addr = line
            .split("http://")
            .nth(1)
            .and_then(|rest| rest.split(')').next()?.parse().ok());
        let addr: SocketAddr = addr.unwrap_or_else(|| panic!("no address: {line:?}"));
        let mut log = JoinSet::new();
        log.spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self {
            _server: server,
            _log: log,
            http: Http::new(addr),
            cookie: String::new(),
        }
    }

    async fn ask(&mut self, request: Request) -> Answer {
        let request = if self.cookie.is_empty() {
            request
        } else {
            request.header("Cookie", &self.cookie)
        };
        let answer = self.http.ask_within(&request, LONG).await;
        if let Some(cookie) = answer.header("set-cookie") {
            assert!(
                cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"),
                "{cookie}"
            );
            self.cookie = cookie.split(';').next().unwrap_or_default().to_owned();
        }
        answer
    }

    /// A page of it, which must be one that nobody can put a script into.
    async fn page(&mut self, target: &str) -> String {
        let answer = self.ask(Request::new("GET", target)).await;
        assert_eq!(answer.status, 200);
        let policy = answer
            .header("content-security-policy")
            .expect("it has a policy");
        assert!(
            policy.starts_with("default-src 'none';") && !policy.contains("unsafe"),
            "{policy}"
        );
        let page = answer.text();
        assert!(
            !page.contains("Warning") && !page.contains("Notice:"),
            "{page}"
        );
        page
    }

    /// The lines, the newest first.
    async fn lines(&mut self) -> Vec<String> {
        let page = self.page("/?lines").await;
        let lines = page
            .split("<p>")
            .skip(1)
            .filter_map(|line| line.split("</p>").next());
        lines.map(str::to_owned).collect()
    }

    /// Sends the form that is on the page, with these fields filled in.
    async fn submit(&mut self, fields: &[(&str, &str)]) {
        let page = self.page("/").await;
        let token = page
            .split("name=\"token\" value=\"")
            .nth(1)
            .and_then(|rest| rest.split('"').next());
        let token = token.unwrap_or_else(|| panic!("no form in {page}"));
        let answer = self.post(&[fields, &[("token", token)]].concat()).await;
        assert_eq!(
            (answer.status, answer.header("location")),
            (303, Some("/")),
            "{}",
            answer.text()
        );
    }

    async fn post(&mut self, fields: &[(&str, &str)]) -> Answer {
        let encode =
            |text: &str| -> String { text.bytes().map(|byte| format!("%{byte:02x}")).collect() };
        let pairs: Vec<String> = fields
            .iter()
            .map(|(name, value)| format!("{name}={}", encode(value)))
            .collect();
        let request =
            Request::new("POST", "/").header("Content-Type", "application/x-www-form-urlencoded");
        self.ask(request.body(pairs.join("&"))).await
    }

    async fn log_in(&mut self, user: &str, room: &str) {
        self.submit(&[
            ("user", user),
            ("password", ""),
            ("room", room),
            ("do", "Log in"),
        ])
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_php_page_works() {
    let (server, mut bob) = server_and_bob("").await;
    let mut page = PhpPage::start(server.addr(Over::Polling)).await;
    for (user, room, why) in [
        ("bob", "lobby", "name"),
        ("ann", "Lobby", "lower-case"),
        ("a b", "lobby", "name"),
    ] {
        page.log_in(user, room).await;
        let shown = page.page("/").await;
        assert!(shown.contains(why) && shown.contains("Log in"), "{shown}");
    }
    page.log_in("ann", "lobby").await;
    let join = bob.next_event().await;
    assert!(
        includes(&join, &json!({"type": "join", "user": "ann"})),
        "{join}"
    );
    assert_eq!(page.lines().await, ["* ann joined", "* 1 in lobby: bob"]);

    page.submit(&[("text", TYPED), ("do", "Send")]).await;
    assert_eq!(bob.next_event().await["text"], TYPED);
    bob.say("lobby", "<script>alert(\"1\")</script> & '\u{1f600}'")
        .await;
    bob.next_event().await;
    eventually("bob's line", async || {
        let lines = page.lines().await;
        let shown =
            "bob: &lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; &#039;\u{1f600}&#039;";
        (lines[0] == shown).then_some(())
    })
    .await;
    // What was refused is told, and stays in its field.
    page.submit(&[("text", "  "), ("do", "Send")]).await;
    let shown = page.page("/").await;
    assert!(
        shown.contains("empty") && shown.contains("value=\"  \""),
        "{shown}"
    );

    // A form of another site's has no token, or a wrong one.
    for token in [&[("token", "0123")][..], &[]] {
        let answer = page
            .post(&[token, &[("text", "forged"), ("do", "Send")]].concat())
            .await;
        assert_eq!(answer.status, 403);
    }
    // Without the cookie nobody sees what ann sees.
    let cookie = std::mem::take(&mut page.cookie);
    assert!(!page.page("/?lines").await.contains("bob"));
    page.cookie = cookie;

    // Who has the page open stays, for as long as it is: it polls every other second.
    let refreshed = tokio::time::Instant::now() + TIMEOUT * 2;
    while tokio::time::Instant::now() < refreshed {
        page.lines().await;
        assert_eq!(bob.try_event(Duration::from_millis(300)).await, None);
    }
    page.submit(&[("do", "Log out")]).await;
    let leave = bob.next_event().await;
    assert!(
        includes(
            &leave,
            &json!({"type": "leave", "user": "ann", "reason": "logout"})
        ),
        "{leave}"
    );

    // A page that was closed is a session that expires, and says so when it is opened again.
    page.log_in("ann", "lobby").await;
    assert_eq!(bob.next_event().await["type"], "join");
    let leave = bob.next_event().await;
    assert!(
        includes(
            &leave,
            &json!({"type": "leave", "user": "ann", "reason": "expired"})
        ),
        "{leave}"
    );
    let lines = page.lines().await;
    assert!(
        lines.iter().any(|line| line.contains("timeout")),
        "{lines:?}"
    );
    assert!(page.page("/").await.contains("Log in"));
}

#[test]
fn every_client_is_below_a_hundred_lines_and_on_the_page() {
    let page = std::fs::read_to_string(repository("docs/clients.md")).unwrap();
    let mut sources: BTreeSet<PathBuf> = Kind::ALL.into_iter().map(Kind::source).collect();
    sources.insert(repository("examples/clients/php/chat.php"));
    let mut found = BTreeSet::new();
    for folder in std::fs::read_dir(repository("examples/clients")).unwrap() {
        for entry in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let lines = text.lines().count();
            assert!(lines < 100, "{} has {lines} lines", path.display());
            let wide = text.lines().find(|line| line.chars().count() > 120);
            assert_eq!(wide, None, "{}", path.display());
            let link = path
                .strip_prefix(repository(""))
                .expect("it is in the repository")
                .display()
                .to_string();
            assert!(
                page.contains(&format!("(../{link})")),
                "docs/clients.md does not link to {link}"
            );
            found.insert(path);
        }
    }
    assert_eq!(found, sources, "every client is tested");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_transcript_on_the_page_is_what_happens() {
    let transcripts: Vec<String> = blocks("docs/clients.md", "text")
        .into_iter()
        .filter(|block| block.starts_with("> "))
        .collect();
    let [transcript] = &transcripts[..] else {
        panic!("{} transcripts", transcripts.len());
    };
    let server = Setup::default().start().await;
    let mut stream = TcpStream::connect(server.addr(Over::Tcp)).await.unwrap();
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read).lines();
    for turn in transcript.split("> ").skip(1) {
        let (typed, answers) = turn.split_once('\n').unwrap();
        write
            .write_all(format!("{typed}\n").as_bytes())
            .await
            .unwrap();
        let mut due: Vec<Value> = answers
            .lines()
            .map(|line| serde_json::from_str(line.strip_prefix("< ").unwrap()).unwrap())
            .collect();
        assert!(!due.is_empty(), "{typed} has no answer");
        // A reply and an event that it causes may come in either order.
        while !due.is_empty() {
            let line = timeout(PATIENCE, read.next_line()).await;
            let line = line
                .unwrap_or_else(|_| panic!("{due:?} never came"))
                .unwrap();
            let said: Value = serde_json::from_str(&line.expect("it is not closed yet")).unwrap();
            let at = due.iter().position(|due| is_as_written(&said, due));
            due.remove(
                at.unwrap_or_else(|| panic!("the page has {due:?}, the server said {said}")),
            );
        }
    }
    assert_eq!(
        timeout(PATIENCE, read.next_line()).await.unwrap().unwrap(),
        None,
        "the end"
    );
}

/// Whether an object has the fields of one on the page. A text with an ellipsis stands for any, and so does a time.
fn is_as_written(said: &Value, page: &Value) -> bool {
    page.as_object()
        .unwrap()
        .iter()
        .all(|(field, value)| match value {
            Value::String(text) if text.contains('…') => said[field].is_string(),
            _ if field == "at" => said[field].is_u64(),
            value => said.get(field) == Some(value),
        })
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_on_the_page_is_one() {
    let documents = blocks("docs/clients.md", "toml");
    assert_eq!(documents.len(), 1);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("try.toml");
    std::fs::write(&file, &documents[0]).unwrap();
    let (code, said, errors) = Program::run(&["check", file.to_str().unwrap()], "").await;
    assert_eq!(code, Some(0), "{said}{errors}");
}
