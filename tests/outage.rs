//! Whoever is asked who may come in, or whether a session may begin, is slow, dead, stopped or mad: nobody gets in by
//! mistake, nobody is shut out for it, and nobody waits longer than the file says.

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpSocket, TcpStream},
    process::{Child, Command},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::harness::{
    Addresses, Backend, Client, Over, PATIENCE, Program, STAFF, Says, Setup, allow_descriptors,
    code, eventually,
};

/// What the tables here say of a verdict.
const LIMIT: Duration = Duration::from_secs(3);
/// What a machine with other work to do may add to it.
const SLACK: Duration = Duration::from_secs(4);

/// Says that a log-in is right whose password is "right-" and the name, and that every session may begin.
const ANSWER: &str = r#"
import json, os, signal, sys

def answer(question):
    if question["type"] == "authenticate":
        right = question["password"] == "right-" + question["user"]
        return {"verdict": "allow" if right else "deny"}
    return {"verdict": "allow" if question["type"] in ("create", "joined") else "done"}
"#;

/// Answers over HTTP. The queue of connections is long: what a system does to a program that is stopped is not what is
/// tried here.
const BACK_END: &str = r#"
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps(answer(question)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass

class Server(ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = True

server = Server(("127.0.0.1", int(sys.argv[1])), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"#;

/// A back end in a process of its own.
struct BackEnd {
    child: Child,
    port: u16,
}

impl BackEnd {
    /// `port` 0: any that is free.
    async fn start(port: u16) -> Self {
        let mut command = Command::new("python3");
        let script = format!("{ANSWER}{BACK_END}");
        command.args(["-c", &script, &port.to_string()]);
        command.stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("python3 is installed");
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let read = timeout(PATIENCE, output.read_line(&mut line)).await;
        read.expect("it starts").expect("it is piped");
        let port = line.trim().parse().expect("it tells its port");
        Self { child, port }
    }

    async fn signal(&self, name: &str) {
        let pid = self.child.id().expect("it runs").to_string();
        let mut kill = Command::new("kill");
        let sent = kill.args(["-s", name, &pid]).status().await;
        assert!(sent.unwrap().success());
    }

    async fn restart(mut self) -> Self {
        self.child.kill().await.expect("it is our child");
        Self::start(self.port).await
    }

    fn table(&self) -> String {
        table(SocketAddr::from(([127, 0, 0, 1], self.port)))
    }
}

fn table(address: SocketAddr) -> String {
    format!(
        "kind = \"http\"\nendpoints = [\"http://{address}/\"]\ntimeout = \"3s\"\ncall_timeout = \"1s\"\n"
    )
}

/// Answers line by line. While there is a file `stopped` in its folder, it stops instead; its processes are in `pids`.
const LINE_BY_LINE: &str = r#"
os.chdir(sys.argv[1])
with open("pids", "a") as pids:
    pids.write(f"{os.getpid()}\n")
for line in sys.stdin:
    question = json.loads(line)
    while os.path.exists("stopped"):
        os.kill(os.getpid(), signal.SIGSTOP)
    print(json.dumps({"id": question["id"], **answer(question)}), flush=True)
"#;

/// Programs of a table of kind `exec`, and the folder that they share.
struct Programs(TempDir);

impl Programs {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn table(&self) -> String {
        format!(
            "kind = \"exec\"\ncommand = [\"python3\", \"-c\", '''{ANSWER}{LINE_BY_LINE}''', {:?}]\nprograms = 2\n\
             in_flight = 16\ntimeout = \"3s\"\ncall_timeout = \"1s\"\n",
            self.0.path()
        )
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Stops those that run, and those that are started in their place.
    fn stop(&self) {
        std::fs::write(self.path("stopped"), "").expect("a writable folder");
    }

    fn go_on(&self) {
        std::fs::remove_file(self.path("stopped")).expect("they are stopped");
    }

    /// Kills all that run, of which there is one at least.
    async fn kill(&self) {
        let folder = self.0.path().to_str().expect("it is text");
        // By now another process may have the number of one that is no more.
        let is_ours = |pid: &&str| {
            let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
            command.is_ok_and(|command| command.contains(folder))
        };
        let running: Vec<String> = eventually("a program to run", async || {
            let pids = std::fs::read_to_string(self.path("pids")).expect("one has run");
            let running = pids.lines().filter(is_ours).map(str::to_owned).collect();
            Some(running).filter(|it: &Vec<_>| !it.is_empty())
        })
        .await;
        let mut kill = Command::new("kill");
        kill.arg("-9").args(running).stderr(Stdio::null());
        kill.status().await.expect("kill is installed");
    }
}

/// Guests whose sessions are managed by whoever that table asks. The guests' names begin with `~`.
fn managed(table: &str) -> Setup {
    let guests = "kind = \"anonymous\"\nprefix = \"~\"\nsession_manager = \"backend\"";
    Setup::authenticator(guests).and(&format!("[session_managers.backend]\n{table}"))
}

fn login(user: &str, password: &str) -> Value {
    json!({"type": "login", "user": user, "password": password})
}

fn right(user: &str) -> Value {
    login(user, &format!("right-{user}"))
}

/// Logs in with an attempt on each connection until it is judged, coming back when it is told to. Gives the client and
/// the verdict.
async fn obey(addr: SocketAddr, over: Over, login: &Value) -> (Client, Value) {
    obey_within(LIMIT + SLACK, addr, over, login).await
}

/// The same where an attempt may take so long.
pub(crate) async fn obey_within(
    limit: Duration,
    addr: SocketAddr,
    over: Over,
    login: &Value,
) -> (Client, Value) {
    loop {
        let mut client = Client::connect(addr, over, "somebody").await;
        let begun = Instant::now();
        let answer = client.patient().try_log_in(login.clone()).await;
        let waited = begun.elapsed();
        assert!(waited < limit, "it took {waited:?}: {answer}");
        if code(&answer) != "unavailable" {
            return (client, answer);
        }
        let retry = answer["retry_ms"].as_u64().expect("it says when");
        // Nobody rests for more than thirty seconds, and those who were turned away come back spread over as long again.
        assert!((1..=60_000).contains(&retry), "{answer}");
        drop(client);
        sleep(Duration::from_millis(retry)).await;
    }
}

/// A thousand log in while whoever is asked is stopped for ten seconds, some with wrong passwords where those matter,
/// and some that leave early.
async fn a_thousand_come_while(
    server: &Program,
    with_guesses: bool,
    stop: impl AsyncFnOnce(),
    go_on: impl AsyncFnOnce(),
) {
    allow_descriptors(8192).await;
    let (_first, answer) = obey(server.of(Over::Tcp), Over::Tcp, &right("first")).await;
    assert_eq!(answer["type"], "session", "{answer}");

    stop().await;
    let begun = Instant::now();
    let mut arriving = JoinSet::new();
    for n in 0..1000 {
        let (over, user) = (Over::ALL[n % 3], format!("user{n}"));
        let addr = server.of(over);
        arriving.spawn(async move { obey(addr, over, &right(&user)).await });
    }
    // Fewer than an address may fail.
    let mut guessing = JoinSet::new();
    let guesses = if with_guesses { 10 } else { 0 };
    for n in 0..guesses {
        let over = Over::ALL[n % 3];
        let addr = server.of(over);
        guessing
            .spawn(async move { obey(addr, over, &login(&format!("guest{n}"), "guess")).await });
    }
    // Some lose patience before there is a verdict. They have not failed.
    for n in 0..100 {
        let over = Over::PUSH[n % 2];
        let mut client = Client::connect(server.of(over), over, "hasty").await;
        client.send_command(right(&format!("hasty{n}"))).await;
        client.vanish();
    }
    sleep_until(begun + Duration::from_secs(10)).await;
    go_on().await;

    let all = timeout(Duration::from_secs(60), async {
        let mut inside = Vec::new();
        while let Some(arrived) = arriving.join_next().await {
            let (client, answer) = arrived.unwrap();
            assert_eq!(answer["type"], "session", "{answer}");
            inside.push(client);
        }
        while let Some(guessed) = guessing.join_next().await {
            let (_client, answer) = guessed.unwrap();
            assert_eq!(code(&answer), "auth_failed");
        }
        inside
    });
    let mut inside = all.await.expect("all are in within a minute");
    assert_eq!(inside.len(), 1000);
    let refused = server.metric("chinwag_errors_total", "rate_limited").await;
    assert_eq!(refused, 0.0, "nobody was throttled");
    server.metric_becomes("chinwag_sessions", "", 1001.0).await;
    for client in inside.iter_mut().step_by(100) {
        client.ping().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_log_ins_while_the_back_end_is_stopped_are_all_let_in_later() {
    let back_end = BackEnd::start(0).await;
    let server = Program::start(&Setup::authenticator(&back_end.table())).await;
    let stop = async || back_end.signal("STOP").await;
    a_thousand_come_while(&server, true, stop, async || back_end.signal("CONT").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_log_ins_while_the_programs_are_stopped_are_all_let_in_later() {
    let programs = Programs::new();
    let server = Program::start(&Setup::authenticator(&programs.table())).await;
    let stop = async || programs.stop();
    a_thousand_come_while(&server, true, stop, async || programs.go_on()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_log_ins_while_the_session_manager_is_stopped_all_have_sessions_later() {
    let back_end = BackEnd::start(0).await;
    let server = Program::start(&managed(&back_end.table())).await;
    let stop = async || back_end.signal("STOP").await;
    a_thousand_come_while(&server, false, stop, async || back_end.signal("CONT").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_log_ins_while_the_managing_programs_are_stopped_all_have_sessions_later() {
    let programs = Programs::new();
    let server = Program::start(&managed(&programs.table())).await;
    let stop = async || programs.stop();
    a_thousand_come_while(&server, false, stop, async || programs.go_on()).await;
}

/// Many log in, one after another, while whoever is asked is started anew three times.
async fn many_come_while_it_restarts(server: &Program, mut restart: impl AsyncFnMut()) {
    let done = Arc::new(AtomicUsize::new(0));
    let mut coming = JoinSet::new();
    for n in 0..12 {
        let over = Over::ALL[n % 3];
        let (addr, done) = (server.of(over), Arc::clone(&done));
        coming.spawn(async move {
            for round in 0..20 {
                // Each knows its own password, and now and then somebody else's.
                let (user, guess) = (format!("user{n}x{round}"), round % 20 == 7);
                let login = if guess {
                    login(&user, "guess")
                } else {
                    right(&user)
                };
                let (_client, answer) = obey(addr, over, &login).await;
                if guess {
                    assert_eq!(code(&answer), "auth_failed");
                } else {
                    assert_eq!(answer["type"], "session", "{answer}");
                }
                done.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    for round in 1..=3 {
        eventually("the load to come so far", async || {
            (done.load(Ordering::SeqCst) >= round * 40).then_some(())
        })
        .await;
        restart().await;
    }
    let all = timeout(Duration::from_secs(60), coming.join_all());
    all.await.expect("all are in within a minute");
    assert_eq!(
        server.metric("chinwag_errors_total", "rate_limited").await,
        0.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_back_end_that_restarts_under_load_costs_nobody_a_log_in() {
    let back_end = BackEnd::start(0).await;
    let server = Program::start(&Setup::authenticator(&back_end.table())).await;
    let mut running = Some(back_end);
    let restart = async || {
        let before = running.take().expect("one always runs");
        running = Some(before.restart().await);
    };
    many_come_while_it_restarts(&server, restart).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_are_killed_under_load_cost_nobody_a_log_in() {
    let programs = Programs::new();
    let server = Program::start(&Setup::authenticator(&programs.table())).await;
    many_come_while_it_restarts(&server, async || programs.kill().await).await;
    let failed = server.metric("chinwag_callout_programs_failed_total", "");
    assert!(failed.await >= 3.0, "they were killed");
}

/// A program that is asked by one address more than it can take, and by another once.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_kept_out_by_how_many_come_from_elsewhere() {
    const SHUT: &str = r#"
import json, os, sys, time
os.chdir(sys.argv[1])
for line in sys.stdin:
    question = json.loads(line)
    with open("asked", "a") as asked:
        asked.write(question["user"] + "\n")
    while not os.path.exists("open"):
        time.sleep(0.01)
    print(json.dumps({"id": question["id"], "verdict": "allow"}), flush=True)
"#;
    let folder = tempfile::tempdir().unwrap();
    let table = format!(
        "kind = \"exec\"\ncommand = [\"python3\", \"-c\", '''{SHUT}''', {:?}]\nprograms = 1\nqueue = 5\n\
         timeout = \"60s\"\ncall_timeout = \"50s\"\n",
        folder.path()
    );
    let setup = Setup::authenticator(&table).on_all("login_timeout = \"60s\"");
    let server = Program::start(&setup).await;
    let turned_away = async |many: usize| {
        let name = "chinwag_callout_calls_total";
        server
            .metric_becomes(name, "outcome=\"busy\"", many as f64)
            .await;
    };
    let mut crowd = JoinSet::new();
    for n in 0..20 {
        let addr = server.of(Over::Tcp);
        crowd.spawn(async move {
            let mut client = Client::connect(addr, Over::Tcp, "crowd").await;
            let answer = client
                .patient()
                .try_log_in(right(&format!("crowd{n}")))
                .await;
            (client, answer)
        });
    }
    turned_away(14).await;

    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 9], 0))).unwrap();
    let mut stranger = socket.connect(server.of(Over::Tcp)).await.unwrap();
    let line = format!("{}\n", right("stranger"));
    stranger.write_all(line.as_bytes()).await.unwrap();
    turned_away(15).await;
    std::fs::write(folder.path().join("open"), "").unwrap();
    let mut answer = String::new();
    let mut lines = BufReader::new(&mut stranger);
    let read = timeout(PATIENCE, lines.read_line(&mut answer));
    read.await.expect("an answer").unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["user"], "stranger", "{answer}");
    let answers = crowd.join_all().await;
    let inside = answers.iter().filter(|(_, it)| it["type"] == "session");
    assert_eq!(
        inside.count(),
        5,
        "the others hear that they may come again"
    );
    let asked = std::fs::read_to_string(folder.path().join("asked")).unwrap();
    let turn = asked.lines().position(|user| user == "stranger");
    assert_eq!(
        turn,
        Some(2),
        "after the one before it and one of the crowd: {asked}"
    );
}

/// A shadow that never answers, under load.
#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_that_hangs_under_load_changes_nothing_and_has_so_many_log_ins_at_a_time() {
    /// How many log-ins a shadow sees at the same time.
    const SHADOWED: usize = 64;
    let asked_first = Backend::start(|question| {
        let user = question["user"].as_str().unwrap_or_default();
        let right = question["password"] == format!("right-{user}");
        Says::Json(json!({"verdict": if right { "allow" } else { "deny" }}))
    })
    .await;
    let shadow = Moody::start(Mood::Hangs).await;
    let table = format!(
        "kind = \"http\"\nendpoints = [\"http://{}/\"]\nshadow = \"tried\"\n\
         [authenticators.tried]\nkind = \"http\"\nendpoints = [\"http://{}/\"]\ncalls = 1000\n\
         timeout = \"10m\"\ncall_timeout = \"9m\"\n",
        asked_first.addr, shadow.address
    );
    let server = Program::start(&Setup::authenticator(&table)).await;
    let mut coming = JoinSet::new();
    for n in 0..300 {
        let over = Over::ALL[n % 3];
        let (addr, is_guess) = (server.of(over), n % 30 == 7);
        coming.spawn(async move {
            let user = format!("user{n}");
            let login = if is_guess {
                login(&user, "guess")
            } else {
                right(&user)
            };
            let mut client = Client::connect(addr, over, &user).await;
            let answer = client.patient().try_log_in(login).await;
            let expected = if is_guess { "auth_failed" } else { "session" };
            let said = answer["code"].as_str().or_else(|| answer["type"].as_str());
            assert_eq!(said, Some(expected), "{answer}");
            client
        });
    }
    let _inside = coming.join_all().await;
    server.metric_becomes("chinwag_sessions", "", 290.0).await;
    let skipped = (300 - SHADOWED) as f64;
    server
        .metric_becomes("chinwag_shadow_skipped_total", "", skipped)
        .await;
    eventually("the shadow to be asked", async || {
        (shadow.asked.load(Ordering::SeqCst) >= SHADOWED).then_some(())
    })
    .await;
    assert_eq!(shadow.asked.load(Ordering::SeqCst), SHADOWED);
    let compared = server.metric("chinwag_shadow_verdicts_total", "").await;
    assert_eq!(compared, 0.0, "it has said nothing");
    assert_eq!(
        server.metric("chinwag_errors_total", "rate_limited").await,
        0.0
    );
    // Nor does it hold up the stop.
    server.stop().await;
}

/// What a back end may do instead of answering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Good,
    Silent,
    Hangs,
    Nonsense,
    NoHttp,
    Fails,
    Redirects,
    TooMuch,
    Half,
    Text,
}

impl Mood {
    const BAD: [Self; 9] = [
        Self::Silent,
        Self::Hangs,
        Self::Nonsense,
        Self::NoHttp,
        Self::Fails,
        Self::Redirects,
        Self::TooMuch,
        Self::Half,
        Self::Text,
    ];

    /// What it writes, and whether it then closes the connection. Each would let in whoever believed it.
    fn answer(self) -> (String, bool) {
        let allow = r#"{"verdict":"allow","user":"mallory"}"#;
        let http = |status: &str, kind: &str, length: usize, body: &str| {
            format!(
                "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}"
            )
        };
        let json = "application/json";
        match self {
            Self::Good => {
                let allow = r#"{"verdict":"allow"}"#;
                (http("200 OK", json, allow.len(), allow), false)
            }
            Self::Silent => (String::new(), true),
            Self::Hangs => (String::new(), false),
            Self::Nonsense => {
                let body = r#"{"verdict":"allow","user":"mallory","admin":true}"#;
                (http("200 OK", json, body.len(), body), false)
            }
            Self::NoHttp => (format!("{allow}\n"), true),
            Self::Fails => (
                http("500 Internal Server Error", json, allow.len(), allow),
                false,
            ),
            Self::Redirects => {
                let head = format!("302 Found\r\nLocation: http://127.0.0.1:1/{allow}");
                (http(&head, json, allow.len(), allow), false)
            }
            Self::TooMuch => {
                let body = format!("{}{allow}", " ".repeat(1 << 20));
                (http("200 OK", json, body.len(), &body), false)
            }
            Self::Half => (http("200 OK", json, allow.len() + 1, allow), true),
            Self::Text => (http("200 OK", "text/plain", allow.len(), allow), false),
        }
    }
}

/// A back end in this process, which counts what it is asked.
struct Moody {
    address: SocketAddr,
    mood: Arc<Mutex<Mood>>,
    asked: Arc<AtomicUsize>,
    _serving: JoinSet<()>,
}

impl Moody {
    async fn start(mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mood, asked) = (Arc::new(Mutex::new(mood)), Arc::new(AtomicUsize::new(0)));
        let mut serving = JoinSet::new();
        let (own, count) = (Arc::clone(&mood), Arc::clone(&asked));
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.spawn(converse(stream, Arc::clone(&own), Arc::clone(&count)));
            }
        });
        Self {
            address,
            mood,
            asked,
            _serving: serving,
        }
    }
}

async fn converse(mut stream: TcpStream, mood: Arc<Mutex<Mood>>, asked: Arc<AtomicUsize>) {
    while question(&mut stream).await.is_some() {
        asked.fetch_add(1, Ordering::SeqCst);
        let mood = *mood.lock().unwrap();
        let (answer, is_last) = mood.answer();
        let written = stream.write_all(answer.as_bytes()).await;
        if is_last || written.is_err() {
            return;
        }
    }
}

/// Reads one request.
async fn question(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.split("content-length: ").nth(1)?;
            let length: usize = length.split("\r\n").next()?.parse().ok()?;
            if body.len() >= length {
                return Some(bytes);
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

/// A door of its own for the staff, who are in a file.
const STAFF_DOOR: &str = "[authenticators.staff]\nkind = \"password\"\nfile = \"users.txt\"\n\
                          [transports.side]\nkind = \"tcp\"\nbind = \"127.0.0.1:0\"\nauth = [\"staff\"]\n";

/// Several log in: each is told to come again, in time, while others come in by another door.
async fn nobody_gets_in(server: &Program, what: &str) {
    let mut trying = JoinSet::new();
    for n in 0..9 {
        let over = Over::ALL[n % 3];
        let (addr, what) = (server.of(over), what.to_owned());
        trying.spawn(async move {
            let mut client = Client::connect(addr, over, "x").await;
            let begun = Instant::now();
            let answer = client.try_log_in(right(&format!("user{n}"))).await;
            let waited = begun.elapsed();
            assert_eq!(code(&answer), "unavailable", "{what} over {over:?}");
            assert!(answer["retry_ms"].as_u64() > Some(0), "{answer}");
            assert!(waited < LIMIT + SLACK, "{what}: it took {waited:?}");
        });
    }
    let side = server.table("side");
    // Somebody who comes by no other door: this session may still be there when that name is wanted again.
    let (user, password, _) = STAFF[1];
    let begun = Instant::now();
    let mut client = Client::connect(side, Over::Tcp, user).await;
    client.log_in(login(user, password)).await;
    let waited = begun.elapsed();
    assert!(waited < LIMIT, "{what}: the others' door took {waited:?}");
    trying.join_all().await;
}

/// Has `back_end` go through its moods, each before a server that asks it as `setup` says.
async fn moods(setup: impl Fn(&str) -> Setup, alice: &str) {
    for mood in Mood::BAD {
        let back_end = Moody::start(mood).await;
        let server = Program::start(&setup(&table(back_end.address)).and(STAFF_DOOR)).await;
        let before = back_end.asked.load(Ordering::SeqCst);
        nobody_gets_in(&server, &format!("{mood:?}")).await;
        let asked = back_end.asked.load(Ordering::SeqCst) - before;
        assert!(asked > 0, "{mood:?}: it was not asked");
        *back_end.mood.lock().unwrap() = Mood::Good;
        let (_client, answer) = obey(server.of(Over::Tcp), Over::Tcp, &right("alice")).await;
        assert_eq!(answer["user"], alice, "after {mood:?}: {answer}");
        assert_eq!(
            server.metric("chinwag_errors_total", "rate_limited").await,
            0.0
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_answer_lets_nobody_in_and_holds_up_nobody_else() {
    moods(Setup::authenticator, "alice").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_answer_of_a_session_manager_lets_no_session_begin_and_holds_up_nobody_else() {
    moods(managed, "~alice").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_back_end_that_is_not_there_lets_nobody_in() {
    // Nobody listens on a port that was just given back.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = gone.local_addr().unwrap();
    drop(gone);
    let setups: [fn(&str) -> Setup; 2] = [Setup::authenticator, managed];
    for setup in setups {
        let server = Program::start(&setup(&table(address)).and(STAFF_DOOR)).await;
        nobody_gets_in(&server, "nobody there").await;
    }
}

/// A program that does what the name of the user says, and lets in everybody else.
const ASKED: &str = r#"
import json, os, sys, time
for line in sys.stdin:
    question = json.loads(line)
    is_asked = question["type"] in ("authenticate", "create")
    user = question["user"].lstrip("~") if is_asked else ""
    allow = json.dumps({"id": question["id"], "verdict": "allow" if is_asked else "done"})
    if user == "slow":
        time.sleep(60)
    elif user == "dead":
        os._exit(7)
    elif user == "nonsense":
        print("{'verdict': 'allow'}", flush=True)
    elif user == "twice":
        print(allow + "\n" + allow, flush=True)
        continue
    elif user == "another":
        print(json.dumps({"id": question["id"] + 1000, "verdict": "allow"}), flush=True)
    elif user == "huge":
        print(" " * (1 << 20) + allow, flush=True)
    else:
        print(allow, flush=True)
"#;

/// Has programs go wrong in every way, before a server that asks them as `setup` says.
async fn wrong_programs(setup: impl Fn(&str) -> Setup) {
    let table = format!(
        "kind = \"exec\"\ncommand = [\"python3\", \"-c\", '''{ASKED}''']\nprograms = 2\n\
         timeout = \"3s\"\ncall_timeout = \"1s\"\n"
    );
    let server = Program::start(&setup(&table)).await;
    for user in ["slow", "dead", "nonsense", "another", "huge"] {
        for over in Over::ALL {
            let mut client = Client::connect(server.of(over), over, user).await;
            let begun = Instant::now();
            let answer = client.try_log_in(login(user, "x")).await;
            let waited = begun.elapsed();
            assert_eq!(code(&answer), "unavailable", "{user} over {over:?}");
            assert!(answer["retry_ms"].as_u64() > Some(0), "{answer}");
            assert!(waited < LIMIT + SLACK, "{user}: it took {waited:?}");
        }
        let good = login(&format!("after-{user}"), "x");
        let (_client, answer) = obey(server.of(Over::Tcp), Over::Tcp, &good).await;
        assert_eq!(answer["type"], "session", "after {user}: {answer}");
    }
    // Its first answer stands; that it says more ends it, and costs at most who came next a little time.
    let (_client, answer) = obey(server.of(Over::Tcp), Over::Tcp, &login("twice", "x")).await;
    assert_eq!(answer["type"], "session", "{answer}");
    let (_client, answer) = obey(server.of(Over::Tcp), Over::Tcp, &login("bob", "x")).await;
    assert_eq!(answer["type"], "session", "{answer}");
    assert_eq!(
        server.metric("chinwag_errors_total", "rate_limited").await,
        0.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_goes_wrong_is_started_anew_and_lets_nobody_in() {
    wrong_programs(Setup::authenticator).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_managing_program_that_goes_wrong_is_started_anew_and_lets_no_session_begin() {
    wrong_programs(managed).await;
}
