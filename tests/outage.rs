//! Whoever is asked who may come in is slow, dead, stopped or mad: nobody gets in by mistake, nobody is shut out for
//! it, and nobody waits longer than the file says.

use std::{
    net::SocketAddr,
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::harness::{
    Addresses, Client, Over, PATIENCE, Program, STAFF, Setup, allow_descriptors, code, eventually,
};

/// What the tables here say of a verdict.
const LIMIT: Duration = Duration::from_secs(3);
/// What a machine with other work to do may add to it.
const SLACK: Duration = Duration::from_secs(4);

/// Lets in whose password is "right-" and the name. The queue of connections is long: what a system does to a program
/// that is stopped is not what is tried here.
const BACK_END: &str = r#"
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        right = question["password"] == "right-" + question["user"]
        body = json.dumps({"verdict": "allow" if right else "deny"}).encode()
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
        command.args(["-c", BACK_END, &port.to_string()]);
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

fn login(user: &str, password: &str) -> Value {
    json!({"type": "login", "user": user, "password": password})
}

fn right(user: &str) -> Value {
    login(user, &format!("right-{user}"))
}

/// Logs in with an attempt on each connection until it is judged, coming back when it is told to. Gives the client and
/// the verdict.
async fn obey(addr: SocketAddr, over: Over, login: &Value) -> (Client, Value) {
    loop {
        let mut client = Client::connect(addr, over, "somebody").await;
        let begun = Instant::now();
        let answer = client.patient().try_log_in(login.clone()).await;
        let waited = begun.elapsed();
        assert!(waited < LIMIT + SLACK, "it took {waited:?}: {answer}");
        if code(&answer) != "unavailable" {
            return (client, answer);
        }
        let retry = answer["retry_ms"].as_u64().expect("it says when");
        assert!((1..=30_000).contains(&retry), "{answer}");
        drop(client);
        sleep(Duration::from_millis(retry)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_log_ins_while_the_back_end_is_stopped_are_all_let_in_later() {
    allow_descriptors(8192).await;
    let back_end = BackEnd::start(0).await;
    let server = Program::start(&Setup::authenticator(&back_end.table())).await;
    let (_first, answer) = obey(server.of(Over::Tcp), Over::Tcp, &right("first")).await;
    assert_eq!(answer["type"], "session", "{answer}");

    back_end.signal("STOP").await;
    let begun = Instant::now();
    let mut arriving = JoinSet::new();
    for n in 0..1000 {
        let (over, user) = (Over::ALL[n % 3], format!("user{n}"));
        let addr = server.of(over);
        arriving.spawn(async move { obey(addr, over, &right(&user)).await });
    }
    // Fewer than an address may fail.
    let mut guessing = JoinSet::new();
    for n in 0..10 {
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
    back_end.signal("CONT").await;

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
async fn a_back_end_that_restarts_under_load_costs_nobody_a_log_in() {
    let mut back_end = BackEnd::start(0).await;
    let server = Program::start(&Setup::authenticator(&back_end.table())).await;
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
        back_end = back_end.restart().await;
    }
    let all = timeout(Duration::from_secs(60), coming.join_all());
    all.await.expect("all are in within a minute");
    assert_eq!(
        server.metric("chinwag_errors_total", "rate_limited").await,
        0.0
    );
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

/// Has `over` log in as many: each is told to come again, in time, while others come in by another door.
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
    let (user, password, _) = STAFF[0];
    let begun = Instant::now();
    let mut client = Client::connect(side, Over::Tcp, user).await;
    client.log_in(login(user, password)).await;
    let waited = begun.elapsed();
    assert!(waited < LIMIT, "{what}: the others' door took {waited:?}");
    trying.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_answer_lets_nobody_in_and_holds_up_nobody_else() {
    for mood in Mood::BAD {
        let back_end = Moody::start(mood).await;
        let setup = Setup::authenticator(&table(back_end.address)).and(STAFF_DOOR);
        let server = Program::start(&setup).await;
        nobody_gets_in(&server, &format!("{mood:?}")).await;
        assert!(
            back_end.asked.load(Ordering::SeqCst) > 0,
            "{mood:?}: it was not asked"
        );
        *back_end.mood.lock().unwrap() = Mood::Good;
        let (_client, answer) = obey(server.of(Over::Tcp), Over::Tcp, &right("alice")).await;
        assert_eq!(answer["user"], "alice", "after {mood:?}: {answer}");
        assert_eq!(
            server.metric("chinwag_errors_total", "rate_limited").await,
            0.0
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_back_end_that_is_not_there_lets_nobody_in() {
    // Nobody listens on a port that was just given back.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = gone.local_addr().unwrap();
    drop(gone);
    let setup = Setup::authenticator(&table(address)).and(STAFF_DOOR);
    let server = Program::start(&setup).await;
    nobody_gets_in(&server, "nobody there").await;
}

/// A program that does what the name of the user says, and lets in everybody else.
const ASKED: &str = r#"
import json, os, sys, time
for line in sys.stdin:
    question = json.loads(line)
    user = question["user"]
    allow = json.dumps({"id": question["id"], "verdict": "allow"})
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

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_goes_wrong_is_started_anew_and_lets_nobody_in() {
    let table = format!(
        "kind = \"exec\"\ncommand = [\"python3\", \"-c\", '''{ASKED}''']\nprograms = 2\n\
         timeout = \"3s\"\ncall_timeout = \"1s\"\n"
    );
    let setup = Setup::authenticator(&table).and(STAFF_DOOR);
    let server = Program::start(&setup).await;
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
        let (_client, answer) = obey(server.of(Over::Tcp), Over::Tcp, &login("alice", "x")).await;
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
