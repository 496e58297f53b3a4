//! Behind a real nginx, as `configs/behind-proxy.toml` and `configs/nginx.conf` have it.
//!
//! Clients come from addresses of their own (all of 127.0.0.0/8 is this machine): to the server they are what the
//! proxy says, not the loopback addresses that no limit counts.

use std::{net::SocketAddr, path::Path, time::Duration};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{process::Command, time::timeout};

use crate::harness::{
    Client, Http, Nginx, Over, PATIENCE, Program, Request, Setup, Via, code, includes,
};

/// Members and their passwords.
const ALICE: (&str, &str) = ("alice", "wonderland");
const BOB: (&str, &str) = ("bob", "builder");
const CAROL: (&str, &str) = ("carol", "slow");
/// The name in both samples.
const HOST: &str = "chat.example.org";
/// Where clients come from.
const HERE: &str = "127.0.0.2";
const THERE: &str = "127.0.0.3";

/// The server of the sample, and what it was started from.
struct Behind {
    server: Program,
    _folder: TempDir,
}

impl Behind {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With pieces of the sample replaced, each of which must be there.
    async fn start_with(changes: &[(&str, &str)]) -> Self {
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/behind-proxy.toml");
        let mut document = std::fs::read_to_string(sample).unwrap();
        for (from, to) in changes {
            assert!(
                document.contains(from),
                "configs/behind-proxy.toml has no {from:?}"
            );
            document = document.replace(from, to);
        }
        // The users of the tests; the ports are moved as it is started.
        let folder = Setup::passwords().folder();
        let file = folder.path().join("behind-proxy.toml");
        std::fs::write(&file, document).unwrap();
        Self {
            server: Program::start_file(&file).await,
            _folder: folder,
        }
    }
}

fn login((user, password): (&str, &str)) -> Value {
    json!({"type": "login", "user": user, "password": password})
}

async fn member(addr: SocketAddr, over: Over, who: (&str, &str)) -> Client {
    let mut client = Client::connect(addr, over, who.0).await;
    client.log_in(login(who)).await;
    client
}

/// The way in for a transport.
fn door(nginx: &Nginx, over: Over) -> SocketAddr {
    match over {
        Over::Tcp => nginx.line(),
        Over::WebSocket | Over::Polling => nginx.web(),
    }
}

/// Alice over WebSocket, Bob over polling, Carol over TCP: all in the lobby, and past each other's joins.
async fn three_in_the_lobby(nginx: &Nginx) -> [Client; 3] {
    let mut alice = member(nginx.web(), Over::WebSocket, ALICE).await;
    let mut bob = member(nginx.web(), Over::Polling, BOB).await;
    let mut carol = member(nginx.line(), Over::Tcp, CAROL).await;
    alice.enter("lobby").await;
    bob.enter("lobby").await;
    carol.enter("lobby").await;
    for (client, others) in [(&mut alice, &["bob", "carol"][..]), (&mut bob, &["carol"])] {
        for other in others {
            assert_eq!(client.next_event().await["user"], *other);
        }
    }
    [alice, bob, carol]
}

#[tokio::test(flavor = "multi_thread")]
async fn all_transports_meet_in_a_room() {
    let behind = Behind::start().await;
    let nginx = Nginx::before(&behind.server).await;
    let mut members = three_in_the_lobby(&nginx).await;
    for n in 0..30 {
        let text = format!("{n} \"<b>\" \u{1f600}");
        members[n % 3].say("lobby", &text).await;
        for member in &mut members {
            assert_eq!(member.next_event().await["text"], text);
        }
    }
    for member in &members {
        assert_eq!(member.roster("lobby"), ["alice", "bob", "carol"]);
    }
    // Answers of every size, and those that refuse.
    let [alice, bob, carol] = &mut members;
    let long = "x".repeat(4096);
    bob.say("lobby", &long).await;
    for member in [&mut *alice, bob, carol] {
        assert_eq!(member.next_event().await["text"], long);
        let refused = member
            .command(json!({"type": "send", "room": "attic", "text": "hello?"}))
            .await;
        assert_eq!(code(&refused), "not_joined");
        member.ping().await;
    }
    alice.command(json!({"type": "logout"})).await;
    alice.expect_closed("logout").await;
    for member in [&mut *bob, carol] {
        let leave = member.next_event().await;
        assert!(
            includes(
                &leave,
                &json!({"type": "leave", "user": "alice", "reason": "logout"})
            ),
            "{leave}"
        );
    }
    bob.command(json!({"type": "logout"})).await;
    assert_eq!(carol.next_event().await["reason"], "logout");
    carol.command(json!({"type": "logout"})).await;
    carol.expect_closed("logout").await;
    // The page comes by the same way, with all that protects it.
    let page = Http::new(nginx.web()).ask(&Request::new("GET", "/")).await;
    assert_eq!(page.status, 200, "{}", page.text());
    assert!(
        page.header("content-type")
            .is_some_and(|kind| kind.starts_with("text/html"))
    );
    assert!(page.header("content-security-policy").is_some());
    // Whoever has typed the name alone is sent on to TLS.
    let typed = Http::new(nginx.redirect())
        .ask(&Request::bare("GET", "/?room=x").header("Host", HOST))
        .await;
    assert_eq!(
        (typed.status, typed.header("location")),
        (301, Some("https://chat.example.org/?room=x"))
    );
    behind.server.stop().await;
}

/// A request with TLS: its status and body. `curl` checks the certificate and its name.
async fn https(nginx: &Nginx, path: &str, args: &[&str]) -> (u16, String) {
    let port = nginx.web_tls().port();
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "10", "--http1.1"]);
    curl.arg("--cacert").arg(nginx.certificate());
    curl.args(["--resolve", &format!("{HOST}:{port}:127.0.0.1")]);
    curl.args(["--write-out", "\n%{http_code}"]).args(args);
    let output = curl
        .arg(format!("https://{HOST}:{port}{path}"))
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE * 2, output)
        .await
        .expect("it ends")
        .expect("curl is installed");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = said.rsplit_once('\n').expect("the status is written last");
    let errors = String::from_utf8_lossy(&output.stderr);
    (
        status.parse().unwrap_or_else(|_| panic!("{said}{errors}")),
        body.to_owned(),
    )
}

const UPGRADE: [&str; 8] = [
    "-H",
    "Connection: Upgrade",
    "-H",
    "Upgrade: websocket",
    "-H",
    "Sec-WebSocket-Version: 13",
    "-H",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
];

/// An upgrade without TLS, with these header fields.
fn upgrade(headers: &[(&str, &str)]) -> Request {
    let request = Request::bare("GET", "/v1/ws")
        .header("Connection", "Upgrade")
        .header("Upgrade", "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
    headers.iter().fold(request, |request, (name, value)| {
        request.header(name, value)
    })
}

fn post_login(who: (&str, &str)) -> Request {
    Request::new("POST", "/v1/session").json(login(who))
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_taken_off_and_the_server_knows_of_it() {
    let behind = Behind::start().await;
    let nginx = Nginx::before(&behind.server).await;
    let port = nginx.web_tls().port();
    let same = format!("https://{HOST}:{port}");
    // Only a page that was loaded with TLS itself is of the same origin: no answer can be had without it.
    let origins = [
        (same.as_str(), true),
        (&same.replace("https", "http"), false),
        ("https://chat.example.org", false),
        ("https://elsewhere.example", false),
    ];
    for (origin, allowed) in origins {
        let header = format!("Origin: {origin}");
        let body = login(ALICE).to_string();
        let post = [
            "-H",
            &header,
            "-H",
            "Content-Type: application/json",
            "-d",
            &body,
        ];
        let (status, said) = https(&nginx, "/v1/session", &post).await;
        assert_eq!(status, if allowed { 201 } else { 403 }, "{origin}: {said}");
        // An upgrade that is made never ends by itself: its status is in the head, and then the time is up.
        let wanted = [&UPGRADE[..], &["-H", &header, "--max-time", "1"]].concat();
        let (status, said) = https(&nginx, "/v1/ws", &wanted).await;
        assert_eq!(status, if allowed { 101 } else { 403 }, "{origin}: {said}");
    }
    // Without TLS the same page is another origin, whatever its client says of itself.
    let host = nginx.web().to_string();
    let origin = format!("http://{host}");
    for forged in [&[][..], &[("X-Forwarded-Proto", "https")]] {
        let headers = [&[("Host", host.as_str()), ("Origin", &origin)], forged].concat();
        let answer = Http::new(nginx.web()).ask(&upgrade(&headers)).await;
        assert_eq!(answer.status, 101, "{}", answer.text());
    }
    // Lines with TLS.
    let mut lines = Command::new("openssl");
    lines.args([
        "s_client",
        "-quiet",
        "-verify_return_error",
        "-verify_hostname",
        HOST,
    ]);
    lines
        .args(["-connect", &nginx.line_tls().to_string(), "-CAfile"])
        .arg(nginx.certificate());
    let said = talk(lines, &[login(BOB), json!({"type": "logout"})]).await;
    assert!(
        said.contains("\"session\"") && said.contains("\"bye\""),
        "{said}"
    );
}

/// Gives a program these lines, and gives what it writes until it ends.
async fn talk(mut command: Command, lines: &[Value]) -> String {
    use std::process::Stdio;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let pipes = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = pipes.kill_on_drop(true).spawn().expect("it is installed");
    let mut stdin = child.stdin.take().expect("it is piped");
    for line in lines {
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .await
            .unwrap();
    }
    stdin.flush().await.unwrap();
    // Its input stays open: the server closes.
    let mut said = String::new();
    let mut stdout = child.stdout.take().expect("it is piped");
    timeout(PATIENCE, stdout.read_to_string(&mut said))
        .await
        .expect("it ends")
        .unwrap();
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_passes_and_a_wrong_one_is_misdirected() {
    let behind = Behind::start().await;
    let nginx = Nginx::before(&behind.server).await;
    for (host, status) in [
        (HOST, 101),
        ("chat.example.org:4711", 101),
        ("Chat.Example.ORG", 101),
        ("localhost", 101),
        ("127.0.0.1:8080", 101),
        ("elsewhere.example", 421),
        ("chat.example.org.elsewhere.example", 421),
        ("chinwag", 421),
    ] {
        let answer = Http::new(nginx.web())
            .ask(&upgrade(&[("Host", host)]))
            .await;
        assert_eq!(answer.status, status, "{host}: {}", answer.text());
        if status == 421 {
            assert_eq!(answer.json()["type"], "error");
        }
    }
    let none = Http::new(nginx.web()).ask(&upgrade(&[])).await;
    assert_eq!(none.status, 400);
    let two = Http::new(nginx.web())
        .ask(&upgrade(&[("Host", HOST), ("Host", "elsewhere.example")]))
        .await;
    assert_eq!(two.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_a_little_too_large_hears_so_from_the_server() {
    let behind = Behind::start().await;
    let nginx = Nginx::before(&behind.server).await;
    let bob = member(nginx.web(), Over::Polling, BOB).await;
    let post = |bytes: usize| {
        let body = json!({"type": "send", "room": "lobby", "text": "x".repeat(bytes)});
        Request::new("POST", "/v1/commands")
            .bearer(bob.session_id())
            .json(body)
    };
    for bytes in [17 << 10, 60 << 10] {
        let answer = Http::new(nginx.web()).ask(&post(bytes)).await;
        assert_eq!(answer.verdict(), "413 too_large");
    }
    // Far too much does not even reach it.
    let answer = Http::new(nginx.web()).ask(&post(100 << 10)).await;
    assert_eq!(answer.verdict(), "413");
}

/// No more than so many of an address, and no others for an hour.
fn at_most(limit: &str, burst: usize) -> String {
    format!("{limit} = {{ rate = 1, per = \"1h\", burst = {burst} }}")
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_counted_for_the_real_client() {
    let old = "connects_per_ip = { rate = 20, per = \"1s\", burst = 100 }";
    let behind = Behind::start_with(&[(old, &at_most("connects_per_ip", 3))]).await;
    let nginx = Nginx::before(&behind.server).await;
    let here = [
        Via::new(HERE, nginx.web()).await,
        Via::new(HERE, nginx.line()).await,
    ];
    let there = [
        Via::new(THERE, nginx.web()).await,
        Via::new(THERE, nginx.line()).await,
    ];
    // Each transport spends one of them; the members stay all the same.
    let mut members = Vec::new();
    for (over, who) in [
        (Over::WebSocket, ALICE),
        (Over::Polling, BOB),
        (Over::Tcp, CAROL),
    ] {
        let via = &here[usize::from(over == Over::Tcp)];
        members.push(member(via.addr(), over, who).await);
    }
    let answer = Http::new(here[0].addr())
        .ask(&upgrade(&[("Host", HOST)]))
        .await;
    assert_eq!(answer.verdict(), "429 rate_limited");
    let answer = Http::new(here[0].addr()).ask(&post_login(ALICE)).await;
    assert_eq!(answer.verdict(), "429 rate_limited");
    let mut late = Client::connect(here[1].addr(), Over::Tcp, "late").await;
    late.write(&login(ALICE).to_string()).await;
    assert_eq!(
        late.gone().await["code"],
        Value::Null,
        "it is closed without a word"
    );

    // Who says that he is somebody else is still himself.
    for forged in [
        &[("X-Forwarded-For", "203.0.113.7")][..],
        &[("X-Forwarded-For", "203.0.113.7, 127.0.0.1")],
        &[("X-Forwarded-For", "127.0.0.1")],
        &[
            ("X-Forwarded-For", "203.0.113.7"),
            ("X-Forwarded-For", THERE),
        ],
        &[
            ("X-Real-IP", "203.0.113.7"),
            ("Forwarded", "for=203.0.113.7"),
        ],
    ] {
        let headers = [&[("Host", HOST)], forged].concat();
        let answer = Http::new(here[0].addr()).ask(&upgrade(&headers)).await;
        assert_eq!(answer.verdict(), "429 rate_limited", "{forged:?}");
        let post = forged
            .iter()
            .fold(post_login(ALICE), |post, (name, value)| {
                post.header(name, value)
            });
        let answer = Http::new(here[0].addr()).ask(&post).await;
        assert_eq!(answer.verdict(), "429 rate_limited", "{forged:?}");
    }
    let mut forged = Client::connect(here[1].addr(), Over::Tcp, "forged").await;
    let header = "PROXY TCP4 203.0.113.7 127.0.0.1 4711 4020\r\n";
    forged
        .write_bytes(format!("{header}{}\n", login(ALICE)).as_bytes())
        .await;
    assert_eq!(forged.gone().await["code"], Value::Null);

    // Nobody else is any the worse for it, and those who are in stay.
    for (over, who) in [
        (Over::WebSocket, ALICE),
        (Over::Polling, BOB),
        (Over::Tcp, CAROL),
    ] {
        let via = &there[usize::from(over == Over::Tcp)];
        member(via.addr(), over, who).await.ping().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failed_log_ins_are_counted_for_the_real_client() {
    let old = "login_failures_per_ip = { rate = 1, per = \"1s\", burst = 20 }";
    for over in Over::ALL {
        let behind = Behind::start_with(&[(old, &at_most("login_failures_per_ip", 3))]).await;
        let nginx = Nginx::before(&behind.server).await;
        let here = Via::new(HERE, door(&nginx, over)).await;
        let there = Via::new(THERE, door(&nginx, over)).await;
        for attempt in 0..3 {
            let mut guesser = Client::connect(here.addr(), over, "guesser").await;
            let refused = guesser.try_log_in(login(("alice", "guess"))).await;
            assert_eq!(code(&refused), "auth_failed", "{over:?}, attempt {attempt}");
        }
        // Now even the right one has to wait, from there; and over every other transport, too.
        for other in Over::ALL {
            let here = Via::new(HERE, door(&nginx, other)).await;
            let mut guesser = Client::connect(here.addr(), other, "guesser").await;
            let refused = guesser.try_log_in(login(ALICE)).await;
            assert_eq!(code(&refused), "rate_limited", "{over:?}, then {other:?}");
        }
        member(there.addr(), over, ALICE).await.ping().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_past_the_proxy_to_the_lines() {
    let behind = Behind::start().await;
    for first in [format!("{}\n", login(ALICE)), "PROXY nonsense\r\n".into()] {
        let mut direct = Client::connect(behind.server.table("line"), Over::Tcp, "direct").await;
        direct.write_bytes(first.as_bytes()).await;
        assert_eq!(
            direct.gone().await["code"],
            Value::Null,
            "it is closed without a word"
        );
    }
}

/// The times of the samples, each divided by twenty; those of lines, by two hundred.
const QUICK_SERVER: [(&str, &str); 3] = [
    ("timeout = \"1m\"", "timeout = \"3s\""),
    ("max_wait = \"30s\"", "max_wait = \"1500ms\""),
    ("timeout = \"10m\"", "timeout = \"3s\""),
];
const QUICK_NGINX: [(&str, &str); 2] = [
    ("proxy_read_timeout 90s;", "proxy_read_timeout 4500ms;"),
    ("proxy_timeout 15m;", "proxy_timeout 4500ms;"),
];
/// How long that nginx waits for a word.
const NGINX_WAITS: Duration = Duration::from_millis(4500);

#[tokio::test(flavor = "multi_thread")]
async fn who_is_quiet_is_not_cut_off() {
    let behind = Behind::start_with(&QUICK_SERVER).await;
    let nginx = Nginx::before_with(&behind.server, &QUICK_NGINX).await;
    let [mut alice, mut bob, mut carol] = three_in_the_lobby(&nginx).await;
    // A WebSocket is only pinged, poll after poll comes back empty, and a line pings as it was told to.
    let silence = NGINX_WAITS * 5 / 2;
    let pings = async {
        let until = tokio::time::Instant::now() + silence;
        while tokio::time::Instant::now() < until {
            carol.ping().await;
            assert_eq!(carol.try_event(Duration::from_millis(1500)).await, None);
        }
    };
    let quiet = tokio::join!(alice.try_event(silence), bob.try_event(silence), pings);
    assert_eq!(quiet, (None, None, ()));
    for member in [&mut alice, &mut bob, &mut carol] {
        member.ping().await;
    }
    // A poll that waits for as long as it may is answered by the server.
    let poll = Request::new("GET", "/v1/events?wait=60").bearer(bob.session_id());
    let begun = tokio::time::Instant::now();
    let answer = Http::new(nginx.web()).ask(&poll).await;
    assert_eq!((answer.status, &answer.json()["events"]), (200, &json!([])));
    assert!(begun.elapsed() >= Duration::from_secs(1) && begun.elapsed() < NGINX_WAITS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_with_less_patience_than_the_server_cuts_them_off() {
    let behind = Behind::start().await;
    let hasty = [
        ("proxy_read_timeout 90s;", "proxy_read_timeout 1s;"),
        ("proxy_timeout 15m;", "proxy_timeout 1s;"),
    ];
    let nginx = Nginx::before_with(&behind.server, &hasty).await;
    let mut alice = member(nginx.web(), Over::WebSocket, ALICE).await;
    let mut carol = member(nginx.line(), Over::Tcp, CAROL).await;
    let bob = Http::new(nginx.web()).ask(&post_login(BOB)).await.json();
    let poll = Request::new("GET", "/v1/events?wait=30").bearer(bob["session"].as_str().unwrap());
    let mut http = Http::new(nginx.web());
    let (answer, _, _) = tokio::join!(http.ask(&poll), alice.gone(), carol.gone());
    assert_eq!(answer.status, 504);
}

/// A polling member who opens a connection for each request, as those do who can't know whether the last one is still
/// any good.
struct Poller {
    addr: SocketAddr,
    id: String,
    ack: u64,
}

impl Poller {
    async fn join(addr: SocketAddr, who: (&str, &str)) -> Self {
        let session = Http::new(addr).ask(&post_login(who)).await;
        let id = session.json()["session"]
            .as_str()
            .expect("it is let in")
            .to_owned();
        let poller = Self { addr, id, ack: 0 };
        assert_eq!(
            poller
                .command(json!({"type": "join", "room": "lobby"}))
                .await["type"],
            "init"
        );
        poller
    }

    async fn command(&self, command: Value) -> Value {
        let request = Request::new("POST", "/v1/commands")
            .bearer(&self.id)
            .json(command);
        Http::new(self.addr).ask(&request).await.json()
    }

    /// What the next poll brings.
    async fn poll(&mut self) -> Vec<Value> {
        let request =
            Request::new("GET", &format!("/v1/events?wait=5&ack={}", self.ack)).bearer(&self.id);
        let answer = Http::new(self.addr).ask(&request).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answer = answer.json();
        self.ack = answer["next"].as_u64().expect("a number");
        answer["events"].as_array().expect("a list").clone()
    }

    /// The events up to and with the first that `last` recognises.
    async fn until(&mut self, last: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut events = Vec::new();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !events.iter().any(&last) {
            assert!(
                tokio::time::Instant::now() < deadline,
                "it never comes: {events:?}"
            );
            events.extend(self.poll().await);
        }
        events
    }
}

fn texts(events: &[Value]) -> Vec<&str> {
    events
        .iter()
        .filter_map(|event| event["text"].as_str())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_loses_nothing_that_was_accepted() {
    let behind = Behind::start_with(&[("[limits]\n", "[limits]\nsends = \"unlimited\"\n")]).await;
    let nginx = Nginx::before(&behind.server).await;
    let mut bob = Poller::join(nginx.web(), BOB).await;
    let mut alice = member(nginx.web(), Over::WebSocket, ALICE).await;
    let mut carol = member(nginx.line(), Over::Tcp, CAROL).await;
    alice.join("lobby").await;
    carol.join("lobby").await;

    // Everybody talks while nginx changes its workers three times, and Bob polls all the while.
    let is_over = |event: &Value| event["text"] == "over";
    let mut said = Vec::new();
    let talk = async {
        for round in 0..3 {
            let reload = nginx.reload();
            tokio::pin!(reload);
            for n in 0.. {
                for who in [&mut alice, &mut carol] {
                    let text = format!("{round}.{n} {}", who.name);
                    who.say("lobby", &text).await;
                    said.push(text);
                }
                let pause = Duration::from_millis(20);
                if timeout(pause, &mut reload).await.is_ok() {
                    break;
                }
            }
        }
        alice.say("lobby", "over").await;
    };
    let ((), heard) = tokio::join!(talk, bob.until(is_over));
    said.push("over".into());
    assert_eq!(texts(&heard), said);
    for who in [&mut alice, &mut carol] {
        assert_eq!(texts(&who.events_until("the end", is_over).await), said);
        // Their old connections are as good as new ones.
        who.ping().await;
    }
    let sent = bob
        .command(json!({"type": "send", "room": "lobby", "text": "me too"}))
        .await;
    assert_eq!(sent["type"], "sent");
    assert_eq!(carol.next_event().await["text"], "me too");
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_goes_away_and_comes_back() {
    let behind = Behind::start().await;
    let mut nginx = Nginx::before(&behind.server).await;
    let mut bob = Poller::join(nginx.web(), BOB).await;
    let mut alice = member(nginx.web(), Over::WebSocket, ALICE).await;
    let mut carol = member(nginx.line(), Over::Tcp, CAROL).await;
    alice.join("lobby").await;
    carol.join("lobby").await;
    carol.say("lobby", "last words").await;
    nginx.stop().await;
    alice.gone().await;
    carol.gone().await;
    // Both names are free before anybody is there to ask for them.
    behind
        .server
        .metric_becomes("chinwag_sessions", "", 1.0)
        .await;
    nginx.start_again().await;

    // Bob's session has no connection to lose: what was said reaches him, and that the others are gone.
    let mut events = Vec::new();
    let mut leaves = Vec::new();
    while leaves.len() < 2 {
        events = [events, bob.until(|event| event["type"] == "leave").await].concat();
        leaves = events
            .iter()
            .filter(|event| event["type"] == "leave")
            .collect();
    }
    assert_eq!(texts(&events), ["last words"]);
    for leave in leaves {
        assert_eq!(leave["reason"], "disconnected", "{leave}");
    }
    for (over, who) in [(Over::WebSocket, ALICE), (Over::Tcp, CAROL)] {
        let mut back = member(door(&nginx, over), over, who).await;
        back.join("lobby").await;
        back.say("lobby", who.0).await;
        bob.until(|event| event["text"] == who.0).await;
    }
}
