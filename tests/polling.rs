//! What holds for HTTP polling alone: requests and statuses, acknowledging, the ways an id travels.

use std::{sync::Arc, time::Duration};

use chinwag::core::plugin::{
    AuthRequest, Authenticator, AuthenticatorConfig, AuthenticatorContext, BuildError, Verdict,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

use crate::harness::{
    Answer, Client, Http, Over, PATIENCE, Request, Server, Setup, code, eventually, scrape, sum,
};

/// A polling session by hand.
struct Session {
    http: Http,
    id: String,
}

impl Session {
    async fn login(server: &Server, user: &str) -> Self {
        let mut http = Http::new(server.addr(Over::Polling));
        let login = Request::new("POST", "/v1/session").json(json!({"user": user}));
        let answer = http.ask(&login).await;
        assert_eq!(answer.status, 201, "{}", answer.text());
        let id = answer.json()["session"].as_str().expect("an id").to_owned();
        Self { http, id }
    }

    async fn ask(&mut self, request: Request) -> Answer {
        self.http.ask(&request.bearer(&self.id)).await
    }

    async fn command(&mut self, command: Value) -> Answer {
        self.ask(Request::new("POST", "/v1/commands").json(command))
            .await
    }

    async fn join(&mut self, room: &str) {
        let answer = self.command(json!({"type": "join", "room": room})).await;
        assert_eq!(
            (answer.status, &answer.json()["type"]),
            (200, &"init".into())
        );
    }

    async fn say(&mut self, text: &str) {
        let answer = self
            .command(json!({"type": "send", "room": "lobby", "text": text}))
            .await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    fn events(&self, query: &str) -> Request {
        Request::new("GET", &format!("/v1/events{query}")).bearer(&self.id)
    }

    async fn poll(&mut self, query: &str) -> Answer {
        let request = self.events(query);
        self.http.ask(&request).await
    }

    /// `first`, `next` and the numbers of the events of a poll that must succeed.
    async fn polled(&mut self, query: &str) -> (u64, u64, Vec<u64>) {
        let answer = self.poll(query).await;
        assert_eq!(answer.status, 200, "{query}: {}", answer.text());
        let body = answer.json();
        let seqs = body["events"].as_array().expect("events").iter();
        let seqs = seqs
            .map(|event| event["seq"].as_u64().unwrap_or_default())
            .collect();
        (
            body["first"].as_u64().expect("first"),
            body["next"].as_u64().expect("next"),
            seqs,
        )
    }
}

/// Alice has joined, and has said one, two and three: four events wait for her.
async fn four_events(setup: &Setup) -> (Server, Session) {
    let server = setup.start().await;
    let mut alice = Session::login(&server, "alice").await;
    alice.join("lobby").await;
    for text in ["one", "two", "three"] {
        alice.say(text).await;
    }
    // Fan-out is not ordered with the answers to commands.
    eventually("four events", async || {
        (alice.polled("").await.1 == 5).then_some(())
    })
    .await;
    (server, alice)
}

/// Bytes that the server has read of those who poll.
async fn bytes_read(server: &Server) -> f64 {
    let metrics = scrape(server.metrics()).await;
    sum(
        &metrics,
        "chinwag_received_bytes_total",
        "transport=\"poll\"",
    )
}

/// Waits until the server has read so many bytes more than it had: what they ask for is under way.
async fn until_read(server: &Server, before: f64, bytes: usize) {
    eventually("the request to be read", async || {
        (bytes_read(server).await >= before + bytes as f64).then_some(())
    })
    .await;
}

fn free_polls() -> Setup {
    Setup::tables("[limits]\npolls = \"unlimited\"")
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_acknowledgement_discards() {
    let (_server, mut alice) = four_events(&free_polls()).await;
    for query in ["", "?ack=0", "?ack=1", "?wait=0"] {
        assert_eq!(
            alice.polled(query).await,
            (1, 5, vec![1, 2, 3, 4]),
            "{query}"
        );
    }
    assert_eq!(alice.polled("?max=2").await, (1, 3, vec![1, 2]));
    assert_eq!(alice.polled("?ack=3&max=1").await, (3, 4, vec![3]));
    // Repeated and old ones discard nothing, and the answer starts at the oldest that is kept.
    assert_eq!(alice.polled("?ack=3").await, (3, 5, vec![3, 4]));
    assert_eq!(alice.polled("?ack=2").await, (3, 5, vec![3, 4]));
    assert_eq!(alice.polled("").await, (3, 5, vec![3, 4]));
    assert_eq!(alice.polled("?ack=5").await, (5, 5, vec![]));
    assert_eq!(alice.polled("?ack=1").await, (5, 5, vec![]));
    alice.say("four").await;
    assert_eq!(alice.polled("?ack=5&wait=5").await, (5, 6, vec![5]));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_of_what_was_never_given_is_refused() {
    let (_server, mut alice) = four_events(&free_polls()).await;
    assert_eq!(alice.poll("?ack=6").await.verdict(), "400 bad_request");
    assert_eq!(alice.polled("").await, (1, 5, vec![1, 2, 3, 4]));
    let queries = [
        "?ack=x",
        "?ack=-1",
        "?ack=1.5",
        "?ack=99999999999999999999",
        "?wait=x",
        "?max=x",
        "?wait=-1",
    ];
    for query in queries {
        assert_eq!(
            alice.poll(query).await.verdict(),
            "400 bad_request",
            "{query}"
        );
    }
    assert_eq!(
        alice.poll("?ack=1&ack=2").await.verdict(),
        "400 bad_request"
    );
    assert_eq!(alice.polled("").await, (1, 5, vec![1, 2, 3, 4]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_given_yet_can_t_be_acknowledged() {
    let (server, mut alice) = four_events(&free_polls()).await;
    let mut bob = Session::login(&server, "bob").await;
    bob.join("lobby").await;
    assert_eq!(
        bob.polled("?wait=5").await.1,
        2,
        "bob has his join, and so has alice's queue"
    );
    // Five was given by an earlier answer; six is in the queue and was in none.
    assert_eq!(alice.poll("?ack=6").await.verdict(), "400 bad_request");
    assert_eq!(alice.polled("?ack=5&wait=5").await, (5, 6, vec![5]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_poll_is_answered_by_the_first_event() {
    let server = Setup::default().start().await;
    let mut alice = Session::login(&server, "alice").await;
    let mut bob = Session::login(&server, "bob").await;
    alice.join("lobby").await;
    bob.join("lobby").await;
    assert_eq!(alice.polled("?wait=5").await.0, 1);
    eventually("both joins", async || {
        (alice.polled("?wait=1").await.1 == 3).then_some(())
    })
    .await;
    let (before, query) = (bytes_read(&server).await, "?ack=3&wait=20");
    let bytes = alice.events(query).bytes().len();
    let begun = Instant::now();
    let speaking = async {
        // The poll is under way when nothing is there to answer it.
        until_read(&server, before, bytes).await;
        bob.say("hello").await;
    };
    let (polled, ()) = tokio::join!(alice.polled(query), speaking);
    assert_eq!(polled, (3, 4, vec![3]));
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(8), "it took {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_is_cut_to_the_longest_and_ends_empty() {
    let server = Setup::default()
        .on(Over::Polling, "max_wait = \"1s\"")
        .start()
        .await;
    let mut alice = Session::login(&server, "alice").await;
    let begun = Instant::now();
    assert_eq!(alice.polled("?wait=600").await, (1, 1, vec![]));
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_millis(900) && took < Duration::from_secs(8),
        "it took {took:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn max_is_cut_too() {
    let setup = free_polls().on(Over::Polling, "max_events = 3");
    let server = setup.start().await;
    let mut alice = Session::login(&server, "alice").await;
    alice.join("lobby").await;
    for text in ["one", "two", "three"] {
        alice.say(text).await;
    }
    eventually("three of four events", async || {
        let (_, next, seqs) = alice.polled("?max=1000").await;
        assert!(seqs.len() <= 3, "{seqs:?}");
        (next == 4).then_some(())
    })
    .await;
    assert_eq!(alice.polled("?ack=4&wait=5").await, (4, 5, vec![4]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_poll_supersedes_the_waiting_one() {
    let server = Setup::default().start().await;
    let mut alice = Session::login(&server, "alice").await;
    let (before, older) = (bytes_read(&server).await, alice.events("?wait=20"));
    let mut other = Http::new(server.addr(Over::Polling));
    let waiting = async { other.ask(&older).await.json() };
    let newer = async {
        until_read(&server, before, older.bytes().len()).await;
        alice.polled("?wait=1").await
    };
    let (superseded, polled) = tokio::join!(waiting, newer);
    assert_eq!(superseded["superseded"], true, "{superseded}");
    assert_eq!(superseded["events"], json!([]), "{superseded}");
    assert_eq!(polled, (1, 1, vec![]));
}

#[tokio::test(flavor = "multi_thread")]
async fn polls_that_do_not_wait_have_a_rate_and_waiting_ones_are_paced() {
    let setup = Setup::tables("[limits]\npolls = { rate = 1, per = \"1h\", burst = 3 }");
    let server = setup.start().await;
    let mut alice = Session::login(&server, "alice").await;
    for _ in 0..3 {
        assert_eq!(alice.polled("").await, (1, 1, vec![]));
    }
    let refused = alice.poll("").await;
    assert_eq!(refused.verdict(), "429 rate_limited");
    assert!(
        refused.json()["retry_ms"]
            .as_u64()
            .is_some_and(|retry| retry > 0),
        "{}",
        refused.text()
    );
    let after = refused
        .header("retry-after")
        .expect("Retry-After")
        .parse::<u64>();
    assert!(after.is_ok_and(|seconds| seconds > 0));
    alice.join("lobby").await;
    assert_eq!(alice.polled("?wait=5").await, (1, 2, vec![1]));
    for _ in 0..20 {
        assert_eq!(alice.polled("?wait=5").await, (1, 2, vec![1]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pace_holds_a_waiting_poll_after_events() {
    let server = Setup::default().start().await;
    let mut alice = Session::login(&server, "alice").await;
    alice.join("lobby").await;
    let mut ack = alice.polled("?wait=5").await.1;
    // The tests' own server is set to 10 ms: twenty answers with events can't come at once.
    let begun = Instant::now();
    for n in 0..20 {
        alice.say(&n.to_string()).await;
        ack = alice.polled(&format!("?ack={ack}&wait=5")).await.1;
    }
    assert!(
        begun.elapsed() >= Duration::from_millis(150),
        "twenty polls in {:?}",
        begun.elapsed()
    );
    assert_eq!(ack, 22);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_in_may_leave_out_its_type_and_its_body() {
    let server = Setup::passwords().start().await;
    let mut http = Http::new(server.addr(Over::Polling));
    let basic = |credentials: &str| {
        Request::new("POST", "/v1/session").header("Authorization", &format!("Basic {credentials}"))
    };
    // "alice:wonderland" and "alice:wrong".
    let answer = http.ask(&basic("YWxpY2U6d29uZGVybGFuZA==").body("")).await;
    assert_eq!(
        (answer.status, &answer.json()["user"]),
        (201, &"alice".into())
    );
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(
        answer
            .header("content-type")
            .map(|kind| kind.starts_with("application/json")),
        Some(true)
    );
    let refused = http.ask(&basic("YWxpY2U6d3Jvbmc=").body("")).await;
    assert_eq!(refused.verdict(), "401 auth_failed");
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    let body = json!({"user": "bob", "password": "builder"});
    let twice = http
        .ask(&basic("YWxpY2U6d29uZGVybGFuZA==").json(&body))
        .await;
    assert_eq!(
        twice.verdict(),
        "400 bad_request",
        "credentials in two places"
    );
    let answer = http
        .ask(&Request::new("POST", "/v1/session").json(&body))
        .await;
    assert_eq!(answer.status, 201);
    let token = http
        .ask(
            &Request::new("POST", "/v1/session")
                .bearer("some-token")
                .body(""),
        )
        .await;
    assert_eq!(
        token.verdict(),
        "401 auth_failed",
        "a bearer token is a credential here"
    );
    let other = http
        .ask(&Request::new("POST", "/v1/session").json(json!({"type": "ping"})))
        .await;
    assert_eq!(other.status, 400, "{}", other.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_have_their_statuses() {
    let server = Setup::default().start().await;
    let mut alice = Session::login(&server, "alice").await;
    let addr = server.addr(Over::Polling);
    let ping = r#"{"type":"ping"}"#;
    let commands = || Request::new("POST", "/v1/commands");
    let id = alice.id.clone();
    let two_ids = || commands().bearer(&id).bearer(&id).json(ping);
    for (what, request, expected) in [
        ("a command", commands().bearer(&id).json(ping), "200"),
        ("no id", commands().json(ping), "401 not_logged_in"),
        (
            "an unknown id",
            commands().bearer("AAAAAAAAAAAAAAAAAAAAAA").json(ping),
            "401 not_logged_in",
        ),
        (
            "another scheme",
            commands().header("Authorization", "Basic YTpi").json(ping),
            "401 not_logged_in",
        ),
        ("two ids", two_ids(), "400 bad_request"),
        (
            "no media type",
            commands().bearer(&id).body(ping),
            "415 bad_request",
        ),
        (
            "a form",
            commands()
                .bearer(&id)
                .header("Content-Type", "text/plain")
                .body(ping),
            "415 bad_request",
        ),
        (
            "a media type with its charset",
            commands()
                .bearer(&id)
                .header("Content-Type", "application/json; charset=utf-8")
                .body(ping),
            "200",
        ),
        (
            "no JSON",
            commands().bearer(&id).json("nonsense"),
            "400 bad_json",
        ),
        ("no body", commands().bearer(&id).json(""), "400 bad_json"),
        (
            "too much",
            commands().bearer(&id).json(" ".repeat(16_385)),
            "413 too_large",
        ),
        (
            "an unknown path",
            Request::new("GET", "/v2/events").bearer(&id),
            "404 bad_request",
        ),
        (
            "an unknown type",
            commands().bearer(&id).json(r#"{"type":"dance"}"#),
            "400 unknown_type",
        ),
        (
            "not a member",
            commands()
                .bearer(&id)
                .json(r#"{"type":"leave","room":"x"}"#),
            "409 not_joined",
        ),
        (
            "no Host",
            Request::bare("POST", "/v1/commands").bearer(&id).json(ping),
            "400 bad_request",
        ),
        (
            "two Hosts",
            commands()
                .header("Host", "localhost")
                .bearer(&id)
                .json(ping),
            "400 bad_request",
        ),
        (
            "a foreign Host",
            Request::bare("POST", "/v1/commands")
                .header("Host", "evil.example")
                .bearer(&id)
                .json(ping),
            "421 bad_request",
        ),
        (
            "a foreign Origin",
            commands()
                .header("Origin", "http://evil.example")
                .json(ping),
            "403 forbidden",
        ),
        (
            "a long head",
            commands().header("X-Long", &"x".repeat(100_000)).json(ping),
            "431 bad_request",
        ),
    ] {
        let answer = Http::new(addr).ask(&request).await;
        assert_eq!(answer.verdict(), expected, "{what}: {}", answer.text());
        if answer.status >= 400 {
            assert_eq!(
                answer.json()["type"],
                "error",
                "{what}: the body is the object"
            );
        }
        if expected.starts_with("401") {
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{what}");
        }
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{what}");
    }
    for (method, path, allowed) in [
        ("GET", "/v1/session", &["POST", "DELETE"][..]),
        ("GET", "/v1/commands", &["POST"]),
        ("POST", "/v1/events", &["GET"]),
        ("PUT", "/v1/session", &["POST", "DELETE"]),
    ] {
        let answer = alice.ask(Request::new(method, path).json("{}")).await;
        assert_eq!(answer.status, 405, "{method} {path}");
        let allow = answer.header("allow").expect("Allow");
        assert!(
            allowed.iter().all(|method| allow.contains(method)),
            "{method} {path}: {allow}"
        );
    }
    assert_eq!(alice.command(json!({"type": "ping"})).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_is_refused_before_it_is_read() {
    let server = Setup::default().start().await;
    let alice = Session::login(&server, "alice").await;
    let head = Request::new("POST", "/v1/commands").bearer(&alice.id);
    let announced = head
        .header("Content-Type", "application/json")
        .header("Content-Length", "1000000");
    let mut http = Http::new(server.addr(Over::Polling));
    http.write(&announced.bytes()).await;
    let answer = timeout(PATIENCE, http.answer())
        .await
        .expect("an answer at once")
        .expect("an answer");
    assert_eq!(answer.verdict(), "413 too_large");

    let head = Request::new("POST", "/v1/commands").bearer(&alice.id);
    let chunked = head
        .header("Content-Type", "application/json")
        .header("Transfer-Encoding", "chunked");
    let mut http = Http::new(server.addr(Over::Polling));
    let chunk = format!("1000\r\n{}\r\n", "x".repeat(4096)).repeat(5);
    http.write(&[chunked.bytes(), chunk.into_bytes()].concat())
        .await;
    let answer = timeout(PATIENCE, http.answer())
        .await
        .expect("an answer")
        .expect("an answer");
    assert_eq!(answer.verdict(), "413 too_large");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_ends_its_connection_and_nothing_else() {
    let server = Setup::default()
        .on(Over::Polling, "body_timeout = \"300ms\"")
        .start()
        .await;
    let mut alice = Session::login(&server, "alice").await;
    let head = Request::new("POST", "/v1/commands").bearer(&alice.id);
    let half = head
        .header("Content-Type", "application/json")
        .header("Content-Length", "100");
    let mut stream = TcpStream::connect(server.addr(Over::Polling))
        .await
        .unwrap();
    stream.write_all(&half.bytes()).await.unwrap();
    stream.write_all(b"{\"type\":").await.unwrap();
    let mut said = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut said))
        .await
        .expect("an end")
        .ok();
    let said = String::from_utf8_lossy(&said);
    assert!(said.is_empty() || said.starts_with("HTTP/1.1 4"), "{said}");
    assert_eq!(alice.command(json!({"type": "ping"})).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_in_odd_framing_is_refused_and_the_connection_closed() {
    let server = Setup::default().start().await;
    let alice = Session::login(&server, "alice").await;
    let command = || Request::new("POST", "/v1/commands").bearer(&alice.id);
    let json = |request: Request| request.header("Content-Type", "application/json");
    let twice = json(command()).header("Transfer-Encoding", "chunked, chunked");
    let both = json(command())
        .header("Transfer-Encoding", "chunked")
        .header("Content-Length", "5");
    let lengths = json(command())
        .header("Content-Length", "2")
        .header("Content-Length", "3");
    for (what, request) in [
        ("chunked twice", twice),
        ("both", both),
        ("two lengths", lengths),
    ] {
        let mut http = Http::new(server.addr(Over::Polling));
        http.write(&[request.bytes(), b"0\r\n\r\n".to_vec()].concat())
            .await;
        let answer = timeout(PATIENCE, http.answer())
            .await
            .expect("an answer or an end");
        let status = answer.map(|answer| answer.status);
        assert!(
            status.is_none_or(|status| (400..500).contains(&status)),
            "{what}: {status:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_order() {
    let server = Setup::default().start().await;
    let alice = Session::login(&server, "alice").await;
    let mut requests = Vec::new();
    for id in 0..50 {
        let command = Request::new("POST", "/v1/commands").bearer(&alice.id);
        requests.extend(command.json(json!({"type": "ping", "id": id})).bytes());
    }
    let mut http = Http::new(server.addr(Over::Polling));
    http.write(&requests).await;
    for id in 0..50 {
        let answer = timeout(PATIENCE, http.answer())
            .await
            .expect("an answer")
            .expect("an answer");
        assert_eq!(answer.json(), json!({"type": "pong", "id": id}));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_is_told_by_the_queue_and_remembered_after_it() {
    let (server, mut alice) = four_events(&free_polls()).await;
    let (before, waiting) = (bytes_read(&server).await, alice.events("?ack=5&wait=20"));
    let bytes = waiting.bytes().len();
    let mut other = Http::new(server.addr(Over::Polling));
    let waiting = async { other.ask(&waiting).await };
    let ending = async {
        until_read(&server, before, bytes).await;
        alice.ask(Request::new("DELETE", "/v1/session")).await
    };
    let (woken, bye) = tokio::join!(waiting, ending);
    assert_eq!((bye.status, code(&bye.json())), (200, "logout".into()));
    let woken = woken.json();
    let events = woken["events"].as_array().expect("events");
    assert_eq!(
        events.last().map(code).as_deref(),
        Some("logout"),
        "the waiting poll gets bye: {woken}"
    );
    for (method, path) in [
        ("GET", "/v1/events"),
        ("POST", "/v1/commands"),
        ("DELETE", "/v1/session"),
    ] {
        let request = Request::new(method, path);
        let request = if method == "POST" {
            request.json(r#"{"type":"ping"}"#)
        } else {
            request
        };
        let gone = alice.ask(request).await;
        assert_eq!(gone.verdict(), "401 session_expired", "{method} {path}");
        let body = gone.json();
        assert_eq!(body["end"], "logout", "{body}");
        assert_eq!(gone.header("www-authenticate"), Some("Bearer"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_ended_gets_what_is_queued_and_then_bye() {
    let server = Setup::passwords().start().await;
    let mut http = Http::new(server.addr(Over::Polling));
    let login = Request::new("POST", "/v1/session")
        .json(json!({"user": "alice", "password": "wonderland"}));
    let id = http.ask(&login).await.json()["session"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut old = Session { http, id };
    old.join("lobby").await;
    old.say("one").await;
    assert_eq!(
        Http::new(server.addr(Over::Polling))
            .ask(&login)
            .await
            .status,
        201
    );
    let polled = old.poll("?wait=5").await.json();
    let kinds: Vec<&str> = polled["events"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|event| event["type"].as_str())
        .collect();
    assert_eq!(kinds, ["join", "message", "bye"], "{polled}");
    let again = old.poll("?ack=1").await.json();
    assert_eq!(
        again["events"], polled["events"],
        "that answer may get lost too"
    );
    let gone = old.poll("?ack=4").await.json();
    assert_eq!(
        (code(&gone).as_str(), &gone["end"]),
        ("session_expired", &"replaced".into()),
        "{gone}"
    );
    assert_eq!(
        gone["retry_ms"],
        Value::Null,
        "who was replaced does not come back: {gone}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_id_may_travel_in_a_cookie_where_configured() {
    let setup = Setup::default().on(
        Over::Polling,
        "session_id = [\"header\", \"cookie\", \"url\"]",
    );
    let server = setup.start().await;
    let mut http = Http::new(server.addr(Over::Polling));
    let login = json!({"user": "alice", "cookie": true});
    let login = Request::new("POST", "/v1/session")
        .header("X-Chinwag", "1")
        .json(login);
    let answer = http.ask(&login).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert_eq!(
        answer.json()["session"],
        Value::Null,
        "the body omits the id"
    );
    let cookie = answer.header("set-cookie").expect("a cookie").to_owned();
    for part in ["HttpOnly", "SameSite=Strict"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(
        !cookie.contains("Secure") && !cookie.contains("__Host-"),
        "no TLS here: {cookie}"
    );
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let id = cookie.split_once('=').expect("name and value").1.to_owned();
    let ping = r#"{"type":"ping"}"#;
    let commands = |target: &str| Request::new("POST", target).json(ping);
    let url = format!("/v1/commands?session={id}");
    for (what, request, status) in [
        (
            "cookie",
            commands("/v1/commands")
                .header("Cookie", &cookie)
                .header("X-Chinwag", "1"),
            200,
        ),
        (
            "cookie among others",
            commands("/v1/commands")
                .header("Cookie", &format!("a=b; {cookie}; c=d"))
                .header("X-Chinwag", "1"),
            200,
        ),
        (
            "cookie from a form",
            commands("/v1/commands").header("Cookie", &cookie),
            403,
        ),
        ("url", commands(&url), 200),
        ("bearer", commands("/v1/commands").bearer(&id), 200),
        ("url and bearer", commands(&url).bearer(&id), 400),
        (
            "url and cookie",
            commands(&url)
                .header("Cookie", &cookie)
                .header("X-Chinwag", "1"),
            400,
        ),
    ] {
        let answer = http.ask(&request).await;
        // Which refusal a request without X-Chinwag gets is left open; that it is refused is not.
        let refused = status == 403 && (400..500).contains(&answer.status);
        assert!(
            answer.status == status || refused,
            "{what}: {} {}",
            answer.status,
            answer.text()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_id_travels_in_the_header_alone_by_default() {
    let server = Setup::default().start().await;
    let mut alice = Session::login(&server, "alice").await;
    let ping = r#"{"type":"ping"}"#;
    let url = Request::new("POST", &format!("/v1/commands?session={}", alice.id)).json(ping);
    assert_eq!(alice.http.ask(&url).await.status, 401);
    let cookie = Request::new("POST", "/v1/session").header("X-Chinwag", "1");
    let answer = alice
        .http
        .ask(&cookie.json(json!({"user": "bob", "cookie": true})))
        .await;
    assert!(answer.header("set-cookie").is_none(), "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn configured_origins_may_ask_and_are_echoed_exactly() {
    let setup = Setup::default().on(Over::Polling, "origins = [\"https://app.example\"]");
    let server = setup.start().await;
    let mut http = Http::new(server.addr(Over::Polling));
    let preflight = |origin: &str| {
        Request::new("OPTIONS", "/v1/commands")
            .header("Origin", origin)
            .header("Access-Control-Request-Method", "POST")
            .header(
                "Access-Control-Request-Headers",
                "authorization, content-type",
            )
    };
    let answer = http.ask(&preflight("https://app.example")).await;
    assert!([200, 204].contains(&answer.status), "{}", answer.status);
    assert_eq!(
        answer.header("access-control-allow-origin"),
        Some("https://app.example")
    );
    let methods = answer
        .header("access-control-allow-methods")
        .expect("the methods");
    assert!(methods.contains("POST"), "{methods}");
    let headers = answer
        .header("access-control-allow-headers")
        .expect("the headers")
        .to_lowercase();
    assert!(
        headers.contains("authorization") && headers.contains("content-type"),
        "{headers}"
    );
    assert!(
        answer
            .header("vary")
            .is_some_and(|vary| vary.to_lowercase().contains("origin"))
    );
    let foreign = http.ask(&preflight("https://evil.example")).await;
    assert_eq!(foreign.header("access-control-allow-origin"), None);

    let login = Request::new("POST", "/v1/session").header("Origin", "https://app.example");
    let answer = http.ask(&login.json(json!({"user": "alice"}))).await;
    assert_eq!(answer.status, 201);
    assert_eq!(
        answer.header("access-control-allow-origin"),
        Some("https://app.example")
    );
    let refused = Request::new("POST", "/v1/session").header("Origin", "https://app.example");
    let refused = http.ask(&refused.json(json!({"user": "a b"}))).await;
    assert_eq!(refused.status, 400);
    assert_eq!(
        refused.header("access-control-allow-origin"),
        Some("https://app.example"),
        "errors too"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_session_s_id_is_no_key_to_polling() {
    let server = Setup::default().start().await;
    for over in Over::PUSH {
        let mut alice = Client::connect(server.addr(over), over, "alice").await;
        let session = alice
            .log_in(json!({"type": "login", "user": over.table()}))
            .await;
        let id = session["session"].as_str().unwrap();
        let mut http = Http::new(server.addr(Over::Polling));
        let answer = http
            .ask(&Request::new("GET", "/v1/events").bearer(id))
            .await;
        assert_eq!(answer.verdict(), "409 already_logged_in");
        let answer = http
            .ask(&Request::new("DELETE", "/v1/session").bearer(id))
            .await;
        assert_eq!(answer.verdict(), "409 already_logged_in");
        alice.ping().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poller_that_hangs_up_misses_nothing() {
    let server = Setup::default().start().await;
    let mut alice = Session::login(&server, "alice").await;
    alice.join("lobby").await;
    let ack = alice.polled("?wait=5").await.1;
    for _ in 0..5 {
        // The request is under way, and its connection is gone before there is an answer.
        let poll = Request::new("GET", &format!("/v1/events?ack={ack}&wait=20")).bearer(&alice.id);
        let mut stream = TcpStream::connect(server.addr(Over::Polling))
            .await
            .unwrap();
        stream.write_all(&poll.bytes()).await.unwrap();
        stream.set_zero_linger().unwrap();
        drop(stream);
    }
    alice.say("still here").await;
    // The server may come to one of those requests only now, and take it for the newer poll.
    eventually("an answer of its own", async || {
        let body = alice.poll(&format!("?ack={ack}&wait=5")).await.json();
        if body["superseded"] == true {
            return None;
        }
        assert_eq!(
            (&body["first"], &body["next"]),
            (&2.into(), &3.into()),
            "{body}"
        );
        assert_eq!(body["events"][0]["text"], "still here", "{body}");
        Some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_under_way_keeps_a_session_alive() {
    let setup = Setup::default().on(Over::Polling, "timeout = \"700ms\"\nmax_wait = \"2s\"");
    let server = setup.start().await;
    let mut alice = Session::login(&server, "alice").await;
    assert_eq!(alice.polled("?wait=2").await, (1, 1, vec![]));
    assert_eq!(alice.command(json!({"type": "ping"})).await.status, 200);
}

/// Alice with `count` events waiting for her, of which ten are over 1 KiB.
async fn with_events(setup: &Setup, count: usize) -> (Server, Session) {
    let server = setup.start().await;
    let mut alice = Session::login(&server, "alice").await;
    alice.join("lobby").await;
    for n in 1..count {
        alice
            .say(&format!(
                "message number {n}, the like of which was there before"
            ))
            .await;
    }
    eventually("all events", async || {
        (alice.polled("").await.1 == count as u64 + 1).then_some(())
    })
    .await;
    (server, alice)
}

/// What curl makes of an answer, with these arguments: the head in lower case, and the body.
async fn curl(server: &Server, arguments: &[&str], target: &str) -> (String, Vec<u8>) {
    let url = format!("http://{}{target}", server.addr(Over::Polling));
    let mut curl = tokio::process::Command::new("curl");
    curl.args(["--silent", "--show-error", "--include", "--max-time", "10"]);
    let output = curl.args(arguments).arg(url).output().await;
    let output = output.expect("curl is installed");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    let end = output
        .stdout
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .expect("a head");
    let head = String::from_utf8_lossy(&output.stdout[..end]).to_lowercase();
    (head, output.stdout[end + 4..].to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_answer_is_compressed_for_whom_accepts_it() {
    let (server, mut alice) = with_events(&free_polls(), 30).await;
    let plain = alice.poll("").await;
    assert_eq!(
        plain.header("content-encoding"),
        None,
        "nobody asked for it"
    );
    assert_eq!(plain.header("vary"), Some("Origin, Accept-Encoding"));
    assert!(plain.body.len() > 1024, "{}", plain.text());

    let bearer = format!("Authorization: Bearer {}", alice.id);
    let (head, body) = curl(&server, &["--compressed", "-H", &bearer], "/v1/events").await;
    assert!(head.contains("\r\ncontent-encoding: gzip\r\n"), "{head}");
    assert!(
        head.contains("\r\nvary: origin, accept-encoding\r\n"),
        "{head}"
    );
    assert!(!head.contains("transfer-encoding"), "{head}");
    let length = head.split("content-length: ").nth(1).expect("a length");
    let length: usize = length.lines().next().unwrap().parse().unwrap();
    assert!(
        length * 2 < plain.body.len(),
        "{length} of {}",
        plain.body.len()
    );
    // An answer that got lost is asked for again and says the same, in whatever coding.
    assert_eq!(String::from_utf8_lossy(&body), plain.text());
    let (_, again) = curl(
        &server,
        &["--compressed", "-H", &bearer],
        "/v1/events?ack=1&wait=5",
    )
    .await;
    assert_eq!(again, body);

    for accepts in [
        "gzip;q=0",
        "identity",
        "br, deflate",
        "*;q=0",
        "gzip;q=0.5, identity",
    ] {
        let accepts = format!("Accept-Encoding: {accepts}");
        let (head, body) = curl(&server, &["-H", &accepts, "-H", &bearer], "/v1/events").await;
        assert!(!head.contains("content-encoding"), "{accepts}: {head}");
        assert_eq!(String::from_utf8_lossy(&body), plain.text(), "{accepts}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_short_secret_or_has_no_body_goes_out_as_it_is() {
    let (server, mut alice) = with_events(&free_polls(), 3).await;
    let accepts = |request: Request| request.header("Accept-Encoding", "gzip");
    let short = alice.ask(accepts(Request::new("GET", "/v1/events"))).await;
    assert_eq!(
        (short.status, short.header("content-encoding")),
        (200, None)
    );
    let options = Request::new("OPTIONS", "/v1/events");
    let options = alice.ask(accepts(options)).await;
    assert_eq!(
        (options.status, options.header("content-encoding")),
        (204, None)
    );
    let bearer = format!("Authorization: Bearer {}", alice.id);
    let (head, body) = curl(
        &server,
        &["--head", "--compressed", "-H", &bearer],
        "/v1/events",
    )
    .await;
    assert!(
        head.starts_with("http/1.1 405") && body.is_empty(),
        "{head}"
    );
    assert!(!head.contains("content-encoding"), "{head}");
    // The answer with the session's id in it, made longer than what is short.
    let name = "n".repeat(32);
    let login =
        Request::new("POST", "/v1/session").json(json!({"user": name, "x": "y".repeat(2000)}));
    let answer = Http::new(server.addr(Over::Polling))
        .ask(&accepts(login))
        .await;
    assert_eq!(
        (answer.status, answer.header("content-encoding")),
        (201, None)
    );
    assert_eq!(answer.header("vary"), Some("Origin"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_is_compressed_too_and_a_refusal_is_not() {
    let setup = Setup::tables("[room]\npresence = \"each\"\n[limits]\nsessions = 1000");
    let server = setup.start().await;
    let mut alice = Session::login(&server, "alice").await;
    alice.join("lobby").await;
    for n in 0..60 {
        let mut other = Session::login(&server, &format!("somebody-with-a-long-name-{n}")).await;
        other.join("lobby").await;
    }
    let users = json!({"type": "users", "room": "lobby", "limit": 100}).to_string();
    let bearer = format!("Authorization: Bearer {}", alice.id);
    let json = "Content-Type: application/json";
    let arguments = ["--compressed", "-H", &bearer, "-H", json, "-d", &users];
    let (head, body) = curl(&server, &arguments, "/v1/commands").await;
    assert!(head.contains("\r\ncontent-encoding: gzip\r\n"), "{head}");
    let object: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(object["users"].as_array().map(Vec::len), Some(61));

    let nowhere = json!({"type": "users", "room": "nowhere", "x": "y".repeat(2000)}).to_string();
    let arguments = ["--compressed", "-H", &bearer, "-H", json, "-d", &nowhere];
    let (head, _) = curl(&server, &arguments, "/v1/commands").await;
    assert!(
        head.starts_with("http/1.1 409") && !head.contains("content-encoding"),
        "{head}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn compression_can_be_switched_off() {
    let setup = free_polls().on(Over::Polling, "gzip = false");
    let (server, alice) = with_events(&setup, 30).await;
    let bearer = format!("Authorization: Bearer {}", alice.id);
    let (head, _) = curl(&server, &["--compressed", "-H", &bearer], "/v1/events").await;
    assert!(!head.contains("content-encoding"), "{head}");
    assert!(head.contains("\r\nvary: origin\r\n"), "{head}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_comes_while_a_poll_waits_is_answered_after_it() {
    let server = Setup::default().start().await;
    let mut alice = Session::login(&server, "alice").await;
    let mut bob = Session::login(&server, "bob").await;
    alice.join("lobby").await;
    bob.join("lobby").await;
    eventually("both joins", async || {
        (alice.polled("?wait=1").await.1 == 3).then_some(())
    })
    .await;
    let ping = Request::new("POST", "/v1/commands")
        .bearer(&alice.id)
        .json(json!({"type": "ping", "id": 7}));
    let mut http = Http::new(server.addr(Over::Polling));
    // In pieces, so that part of the second comes while the first waits.
    let (first, second) = (alice.events("?ack=3&wait=20").bytes(), ping.bytes());
    let (before, pieces) = (
        bytes_read(&server).await,
        [&first[..], &second[..20]].concat(),
    );
    http.write(&pieces).await;
    until_read(&server, before, pieces.len()).await;
    bob.say("hello").await;
    let polled = http.answer().await.expect("an answer").json();
    assert_eq!(polled["events"][0]["text"], "hello", "{polled}");
    http.write(&second[20..]).await;
    let pong = http.answer().await.expect("an answer").json();
    assert_eq!((&pong["type"], &pong["id"]), (&"pong".into(), &7.into()));
}

/// An authenticator that can't tell.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Down {}

#[async_trait::async_trait]
impl AuthenticatorConfig for Down {
    const KIND: &'static str = "down";

    async fn build(self, _cx: AuthenticatorContext) -> Result<Arc<dyn Authenticator>, BuildError> {
        Ok(Arc::new(self))
    }
}

#[async_trait::async_trait]
impl Authenticator for Down {
    async fn authenticate(&self, _request: &AuthRequest) -> Verdict {
        Verdict::Unavailable {
            retry: Duration::from_secs(3),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_a_503_with_its_time() {
    let setup = Setup::authenticator("kind = \"down\"").only(&[Over::Polling]);
    let server = setup
        .plugins(|plugins| plugins.authenticator::<Down>())
        .start()
        .await;
    let login = Request::new("POST", "/v1/session").json(json!({"user": "alice"}));
    let answer = Http::new(server.addr(Over::Polling)).ask(&login).await;
    assert_eq!(answer.verdict(), "503 unavailable");
    assert_eq!(
        (answer.header("retry-after"), &answer.json()["retry_ms"]),
        (Some("3"), &3000.into())
    );
}
