use std::net::SocketAddr;

use chinwag_core::{
    ChainLink, HubConfig, Lifecycle, ScopeConfig, Telemetry,
    config::Rate,
    plugin::{AuthRequest, Authenticator, Principal, Verdict},
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::{net::TcpStream, sync::oneshot};

use super::*;
use crate::{
    Listeners,
    http::tests::{Client, Reply as Answered},
};

fn config(json: &str) -> Result<PollingConfig, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

fn faults(json: &str) -> Vec<&'static str> {
    let listener = crate::config::tests::listener(&serde_json::json!({}));
    match config(json).unwrap().check(&listener) {
        Ok(()) => Vec::new(),
        Err(faults) => faults.into_iter().filter_map(|fault| fault.key).collect(),
    }
}

#[test]
fn the_table_is_strict() {
    assert!(config("{}").is_ok());
    assert!(config("{}").unwrap().gzip, "on unless switched off");
    assert!(!config(r#"{"gzip":false}"#).unwrap().gzip);
    let error = config(r#"{"maxwait":"3s"}"#).unwrap_err();
    assert!(error.contains("maxwait"), "{error}");
    assert!(config(r#"{"session_id":["body"]}"#).is_err());
    assert!(config(r#"{"origins":["example.com"]}"#).is_err());

    assert_eq!(faults("{}"), [""; 0]);
    assert_eq!(
        faults(r#"{"session_id":[],"max_wait":"0s","max_events":0}"#),
        ["session_id", "max_wait", "poll_pace", "max_events"]
    );
    assert_eq!(
        faults(r#"{"session_id":["url","header","url"]}"#),
        ["session_id"]
    );
}

#[test]
fn numbers_of_a_query_are_whole() {
    for (query, expected) in [
        ("", Some((None, 0, None))),
        ("ack=7&wait=25&max=100", Some((Some(7), 25, Some(100)))),
        ("ack=0", Some((Some(0), 0, None))),
        ("wait=%32%35", Some((None, 25, None))),
        ("session=K3&other=x&flag", Some((None, 0, None))),
        (
            "ack=99999999999999999999999",
            Some((Some(u64::MAX), 0, None)),
        ),
        ("ack=", None),
        ("ack", None),
        ("ack=-1", None),
        ("ack=+1", None),
        ("ack=1.0", None),
        ("wait=1s", None),
        ("max=0", None),
        ("ack=1&ack=1", None),
        ("wait=1&wait=2", None),
    ] {
        let read = Query::read(query)
            .ok()
            .map(|query| (query.ack, query.wait, query.max));
        assert_eq!(read, expected, "{query}");
    }
}

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(
            header::HeaderName::try_from(*name).unwrap(),
            HeaderValue::try_from(*value).unwrap(),
        );
    }
    headers
}

fn find(lines: &[(&str, &str)], query: &str, places: &[IdPlace]) -> Result<String, u16> {
    session_id(&headers(lines), query, CookieForm::Plain, places)
        .map(|(id, place)| format!("{id} {place:?}"))
        .map_err(|refused| refused.status.as_u16())
}

#[test]
fn an_id_stands_in_one_configured_place() {
    use IdPlace::{Cookie, Header, Url};
    const ALL: &[IdPlace] = &[Header, Cookie, Url];
    let bearer = ("authorization", "Bearer K3");
    let cookie = ("cookie", "a=b; chinwag=K3; c=d");
    let guard = ("x-chinwag", "1");
    for (lines, query, places, expected) in [
        (&[bearer][..], "", ALL, Ok("K3 Header")),
        (&[bearer], "", &[Header][..], Ok("K3 Header")),
        (&[cookie, guard], "", ALL, Ok("K3 Cookie")),
        (&[], "ack=1&session=K3", ALL, Ok("K3 Url")),
        // Where it is not configured it is not looked for.
        (&[cookie, guard], "session=K3", &[Header], Err(401)),
        (&[bearer, cookie], "session=K3", &[Header], Ok("K3 Header")),
        (&[bearer], "", &[Url], Err(401)),
        (&[], "", ALL, Err(401)),
        // Two places, even with the same id.
        (&[bearer, cookie, guard], "", ALL, Err(400)),
        (&[bearer], "session=K3", ALL, Err(400)),
        (&[], "session=K3&session=K3", ALL, Err(400)),
        (&[cookie, cookie, guard], "", ALL, Err(400)),
        (&[bearer, bearer], "", ALL, Err(400)),
        // A cookie alone is what a page of another site could make a browser send.
        (&[cookie], "", ALL, Err(403)),
        (&[cookie, ("x-chinwag", "0")], "", ALL, Err(403)),
        // A cookie that is no session's does not ask for the guard.
        (
            &[("cookie", "chinwag=; __Host-chinwag=K3")],
            "",
            ALL,
            Err(401),
        ),
        (&[("authorization", "Basic YTpi")], "", ALL, Err(401)),
    ] {
        let expected = expected.map(str::to_owned);
        assert_eq!(find(lines, query, places), expected, "{lines:?} {query}");
    }
}

#[test]
fn a_cookie_is_bound_to_its_host_where_it_can_be() {
    assert_eq!(
        CookieForm::Plain.set("K3"),
        "chinwag=K3; Path=/; HttpOnly; SameSite=Strict"
    );
    assert_eq!(
        CookieForm::Secure.set("K3"),
        "__Host-chinwag=K3; Path=/; HttpOnly; SameSite=Strict; Secure"
    );
    let sent = headers(&[("cookie", "chinwag=plain; __Host-chinwag=secure")]);
    assert_eq!(CookieForm::Plain.find(&sent).collect::<Vec<_>>(), ["plain"]);
    assert_eq!(
        CookieForm::Secure.find(&sent).collect::<Vec<_>>(),
        ["secure"]
    );
}

#[test]
fn a_body_says_that_it_is_json() {
    for (types, body, fine) in [
        (&["application/json"][..], "{}", true),
        (&["Application/JSON; charset=utf-8"], "{}", true),
        (&["application/json"], "", true),
        (&[], "", true),
        (&[], "{}", false),
        (&["text/plain"], "{}", false),
        (&["text/plain"], "", false),
        (&["application/x-www-form-urlencoded"], "{}", false),
        (&["application/jsonp"], "{}", false),
        (&["application/json", "application/json"], "{}", false),
    ] {
        let lines: Vec<_> = types.iter().map(|&value| ("content-type", value)).collect();
        let refused = Media::of(&headers(&lines)).suits(body.as_bytes());
        assert_eq!(refused.is_ok(), fine, "{types:?} {body:?}");
        if let Err(refused) = refused {
            assert_eq!(refused.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
        }
    }
}

/// Takes a name alone, `secret` as anybody's password and the token `t-NAME`.
struct Doorman;

#[async_trait]
impl Authenticator for Doorman {
    async fn authenticate(&self, request: &AuthRequest) -> Verdict {
        let credentials = &request.credentials;
        if let Some(token) = &credentials.token {
            return match token.expose_secret().strip_prefix("t-") {
                Some(name) => Verdict::Allow(Principal::vouched(name)),
                None => Verdict::deny("unknown token"),
            };
        }
        match (&credentials.user, &credentials.password) {
            (Some(user), None) => Verdict::Allow(Principal::chosen("", user.as_str())),
            (Some(user), Some(password)) if password.expose_secret() == "secret" => {
                Verdict::Allow(Principal::vouched(user.as_str()))
            }
            _ => Verdict::deny("wrong password"),
        }
    }
}

struct Server {
    hub: Hub,
    address: SocketAddr,
}

impl Server {
    async fn start(polling: &Value, listener: &Value) -> Self {
        Self::start_with(polling, listener, |_| ()).await
    }

    async fn start_with(
        polling: &Value,
        listener: &Value,
        configure: impl FnOnce(&mut HubConfig),
    ) -> Self {
        let mut config = HubConfig::default();
        config.server.workers = 1;
        configure(&mut config);
        let telemetry = Telemetry::new(&metrics::NoopRecorder, &["poll"], &["doorman"], &[], &[]);
        let hub = Hub::start(config, telemetry, Lifecycle::new()).unwrap();
        let transport = bind(&hub, polling, listener, &Listeners::new())
            .await
            .unwrap();
        let address = transport.local_addr().ip().unwrap();
        hub.lifecycle()
            .spawn(async move { transport.serve().await.unwrap() });
        Self { hub, address }
    }

    async fn connect(&self) -> Client {
        Client(TcpStream::connect(self.address).await.unwrap())
    }

    async fn ask(
        &self,
        method: &str,
        target: &str,
        lines: &[(&str, &str)],
        body: &str,
    ) -> Answered {
        let mut client = self.connect().await;
        client.ask(method, target, lines, body).await
    }

    /// A logged-in client's id.
    async fn log_in(&self, user: &str) -> String {
        let body = json!({ "user": user }).to_string();
        let reply = self.ask("POST", "/v1/session", &[JSON], &body).await;
        assert_eq!(reply.status, 201, "{reply:?}");
        reply.object()["session"].as_str().unwrap().to_owned()
    }

    async fn command(&self, id: &str, command: &Value) -> Answered {
        let bearer = format!("Bearer {id}");
        let lines = [JSON, ("Authorization", &bearer)];
        self.ask("POST", "/v1/commands", &lines, &command.to_string())
            .await
    }

    async fn poll(&self, id: &str, query: &str) -> Answered {
        let bearer = format!("Bearer {id}");
        let target = format!("/v1/events{query}");
        self.ask("GET", &target, &[("Authorization", &bearer)], "")
            .await
    }
}

async fn bind(
    hub: &Hub,
    polling: &Value,
    listener: &Value,
    listeners: &Listeners,
) -> Result<Box<dyn Transport>, BindError> {
    let scope = hub.scope(ScopeConfig {
        name: "poll".to_owned(),
        auth: vec![ChainLink {
            revocations: chinwag_core::Revocations::default(),
            manager: None,
            shadow: None,
            name: "doorman".into(),
            authenticator: Arc::new(Doorman),
            timeout: Duration::from_secs(5),
        }],
        timeout: Duration::from_secs(30),
        login_timeout: Duration::from_secs(10),
        write_timeout: Duration::from_secs(10),
    });
    let listener = crate::config::tests::listener(listener);
    let config: PollingConfig = serde_json::from_value(polling.clone()).unwrap();
    config.check(&listener).unwrap();
    let cx = BindContext::new(
        "poll",
        Arc::new(listener),
        hub.clone(),
        scope,
        listeners.clone(),
    );
    config.bind(cx).await
}

const JSON: (&str, &str) = ("Content-Type", "application/json");

impl Client {
    async fn request(&mut self, method: &str, target: &str, lines: &[(&str, &str)], body: &str) {
        let mut request = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n");
        for (name, value) in lines {
            request += &format!("{name}: {value}\r\n");
        }
        request += &format!("Content-Length: {}\r\n\r\n{body}", body.len());
        self.say(&request).await;
    }

    async fn ask(
        &mut self,
        method: &str,
        target: &str,
        lines: &[(&str, &str)],
        body: &str,
    ) -> Answered {
        self.request(method, target, lines, body).await;
        self.reply().await
    }
}

/// The types of the events of a poll's answer.
fn types(reply: &Answered) -> Vec<String> {
    assert_eq!(reply.status, 200, "{reply:?}");
    let object = reply.object();
    let events = object["events"].as_array().unwrap();
    events
        .iter()
        .map(|event| event["type"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn a_conversation() {
    let server = Server::start(&json!({}), &json!({})).await;
    let body = json!({ "type": "login", "id": 1, "user": "Alice" }).to_string();
    let reply = server.ask("POST", "/v1/session", &[JSON], &body).await;
    assert_eq!(reply.status, 201);
    let session = reply.object();
    assert_eq!(
        (&session["type"], &session["id"], &session["user"]),
        (&json!("session"), &json!(1), &json!("Alice"))
    );
    assert!(!reply.head.contains("set-cookie"), "{reply:?}");
    let id = session["session"].as_str().unwrap();

    let joined = server
        .command(id, &json!({ "type": "join", "id": 2, "room": "lobby" }))
        .await;
    assert_eq!(
        (joined.status, &joined.object()["type"]),
        (200, &json!("init"))
    );
    let sent = server
        .command(
            id,
            &json!({ "type": "send", "id": 3, "room": "lobby", "text": "hi" }),
        )
        .await;
    assert_eq!((sent.status, &sent.object()["seq"]), (200, &json!(2)));

    let first = server.poll(id, "?wait=10&max=1").await;
    assert_eq!(types(&first), ["join"]);
    assert_eq!(
        (&first.object()["first"], &first.object()["next"]),
        (&json!(1), &json!(2))
    );
    // An answer that was lost is asked for again.
    assert_eq!(server.poll(id, "?wait=10&max=1").await.body, first.body);
    let second = server.poll(id, "?ack=2&wait=10").await;
    assert_eq!(types(&second), ["message"]);
    let beyond = server.poll(id, "?ack=4").await;
    assert_eq!(
        (beyond.status, beyond.code().as_str()),
        (400, "bad_request")
    );
    assert_eq!(
        server.poll(id, "?ack=1").await.body,
        second.body,
        "an old ack discards nothing"
    );
    assert_eq!(types(&server.poll(id, "?ack=3").await), [""; 0]);

    let bearer = format!("Bearer {id}");
    let lines = [("Authorization", &*bearer)];
    let bye = server.ask("DELETE", "/v1/session", &lines, "{}").await;
    assert_eq!((bye.status, &bye.object()["type"]), (200, &json!("bye")));
    let after = server.command(id, &json!({ "type": "ping" })).await;
    assert_eq!(
        (after.status, after.code().as_str()),
        (401, "session_expired")
    );
    assert_eq!(after.object()["end"], "logout");
    assert!(after.head.contains("www-authenticate: bearer"), "{after:?}");
}

#[tokio::test]
async fn a_poll_waits_and_gives_way_to_a_newer_one() {
    let server = Server::start(&json!({ "poll_pace": "0s" }), &json!({})).await;
    let id = server.log_in("Alice").await;
    let bearer = format!("Bearer {id}");
    let lines = [("Authorization", &*bearer)];
    let mut older = server.connect().await;
    older.request("GET", "/v1/events?wait=30", &lines, "").await;
    let mut newer = server.connect().await;
    // Whichever of the two came first is told by the other.
    newer.request("GET", "/v1/events?wait=30", &lines, "").await;
    let (told, mut waits) = tokio::select! {
        told = older.reply() => (told, newer),
        told = newer.reply() => (told, older),
    };
    assert_eq!(told.object()["superseded"], true, "{told:?}");
    server
        .command(&id, &json!({ "type": "join", "room": "lobby" }))
        .await;
    assert_eq!(types(&waits.reply().await), ["join"]);
}

#[tokio::test]
async fn a_client_that_goes_away_while_its_poll_waits_loses_nothing() {
    let server = Server::start(&json!({}), &json!({})).await;
    let id = server.log_in("Alice").await;
    let bearer = format!("Bearer {id}");
    for round in 0..3_u64 {
        let mut gone = server.connect().await;
        let target = format!("/v1/events?wait=30&ack={}", round + 1);
        gone.request("GET", &target, &[("Authorization", &bearer)], "")
            .await;
        drop(gone);
        let room = json!({ "type": "join", "room": format!("room-{round}") });
        assert_eq!(server.command(&id, &room).await.status, 200);
        let fetched = server
            .poll(&id, &format!("?wait=10&ack={}", round + 1))
            .await;
        assert_eq!(types(&fetched), ["join"]);
        assert_eq!(fetched.object()["next"], round + 2);
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_request_has_its_status() {
    let server = Server::start(&json!({}), &json!({})).await;
    let id = server.log_in("Alice").await;
    let bearer = format!("Bearer {id}");
    let auth = ("Authorization", &*bearer);
    let long = "x".repeat(16 * 1024);
    let login = "x".repeat(8193);
    let text = json!({ "type": "send", "room": "lobby", "text": "x".repeat(5000) }).to_string();
    for (method, target, lines, body, status, code) in [
        (
            "POST",
            "/v1/commands",
            &[auth, JSON][..],
            "{",
            400,
            "bad_json",
        ),
        ("POST", "/v1/commands", &[auth, JSON], "[]", 400, "bad_json"),
        ("POST", "/v1/commands", &[auth, JSON], "", 400, "bad_json"),
        (
            "POST",
            "/v1/commands",
            &[auth, JSON],
            "{}",
            400,
            "bad_request",
        ),
        (
            "POST",
            "/v1/commands",
            &[auth, JSON],
            r#"{"type":"dance"}"#,
            400,
            "unknown_type",
        ),
        (
            "POST",
            "/v1/commands",
            &[auth, JSON],
            r#"{"type":"login"}"#,
            409,
            "already_logged_in",
        ),
        (
            "POST",
            "/v1/commands",
            &[auth, JSON],
            r#"{"type":"join","room":"Lobby"}"#,
            400,
            "room_invalid",
        ),
        (
            "POST",
            "/v1/commands",
            &[auth, JSON],
            &*text,
            409,
            "not_joined",
        ),
        (
            "POST",
            "/v1/commands",
            &[auth, JSON],
            &*long,
            400,
            "bad_json",
        ),
        (
            "POST",
            "/v1/commands",
            &[auth, ("Content-Type", "text/plain")],
            "{}",
            415,
            "bad_request",
        ),
        ("POST", "/v1/commands", &[auth], "{}", 415, "bad_request"),
        (
            "POST",
            "/v1/commands",
            &[JSON],
            r#"{"type":"ping"}"#,
            401,
            "not_logged_in",
        ),
        (
            "POST",
            "/v1/commands",
            &[JSON, ("Authorization", "Bearer nonsense")],
            r#"{"type":"ping"}"#,
            401,
            "not_logged_in",
        ),
        (
            "POST",
            "/v1/commands",
            &[JSON, ("Authorization", "Bearer AAAAAAAAAAAAAAAAAAAAAA")],
            "{}",
            401,
            "not_logged_in",
        ),
        (
            "POST",
            "/v1/commands",
            &[JSON, auth, auth],
            r#"{"type":"ping"}"#,
            400,
            "bad_request",
        ),
        ("GET", "/v1/events?ack=x", &[auth], "", 400, "bad_request"),
        ("GET", "/v1/events", &[], "", 401, "not_logged_in"),
        ("POST", "/v1/session", &[JSON], "", 400, "bad_json"),
        (
            "POST",
            "/v1/session",
            &[JSON],
            r#"{"type":"ping"}"#,
            400,
            "bad_request",
        ),
        (
            "POST",
            "/v1/session",
            &[JSON],
            r#"{"user":"Alice","password":"wrong"}"#,
            401,
            "auth_failed",
        ),
        (
            "POST",
            "/v1/session",
            &[JSON],
            r#"{"user":"alice"}"#,
            409,
            "name_in_use",
        ),
        (
            "POST",
            "/v1/session",
            &[JSON],
            r#"{"user":"a b"}"#,
            400,
            "name_invalid",
        ),
        (
            "POST",
            "/v1/session",
            &[JSON, ("Authorization", "Digest x")],
            "",
            400,
            "bad_request",
        ),
        (
            "POST",
            "/v1/session",
            &[("Content-Type", "text/plain")],
            "{}",
            415,
            "bad_request",
        ),
        ("POST", "/v1/session", &[JSON], &login, 413, "too_large"),
    ] {
        let reply = server.ask(method, target, lines, body).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (status, code),
            "{method} {target} {lines:?} {body:.60}"
        );
        assert_eq!(
            reply.head.contains("www-authenticate: bearer"),
            status == 401,
            "{reply:?}"
        );
    }
    // A body over the limit is refused before it comes.
    let mut client = server.connect().await;
    client
        .say(&format!(
            "POST /v1/commands HTTP/1.1\r\nHost: localhost\r\nAuthorization: {bearer}\r\n\
             Content-Type: application/json\r\nContent-Length: 16385\r\n\r\n"
        ))
        .await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.code().as_str()), (413, "too_large"));

    for (target, allow) in [
        ("/v1/session", "post, delete, options"),
        ("/v1/commands", "post, options"),
        ("/v1/events", "get, options"),
    ] {
        let reply = server.ask("PUT", target, &[auth], "").await;
        assert_eq!((reply.status, reply.code().as_str()), (405, "bad_request"));
        assert!(
            reply.head.contains(&format!("allow: {allow}\r\n")),
            "{reply:?}"
        );
    }
}

#[tokio::test]
async fn a_header_logs_in_without_a_body() {
    let server = Server::start(&json!({}), &json!({})).await;
    for (header, body, status, user) in [
        ("Bearer t-Alice", "", 201, "Alice"),
        ("Basic Qm9iOnNlY3JldA==", "", 201, "Bob"),
        ("Bearer t-Eve", "{}", 201, "Eve"),
        ("Bearer other", "", 401, "auth_failed"),
        ("Basic Qm9iOndyb25n", "", 401, "auth_failed"),
        (
            "Bearer t-Alice",
            r#"{"user":"Bob","password":"secret"}"#,
            400,
            "bad_request",
        ),
    ] {
        let lines = [JSON, ("Authorization", header)];
        let reply = server.ask("POST", "/v1/session", &lines, body).await;
        assert_eq!(reply.status, status, "{header} {reply:?}");
        if status == 201 {
            assert_eq!(reply.object()["user"], user);
        } else {
            assert_eq!(reply.code(), user);
        }
    }
}

#[tokio::test]
async fn a_cookie_keeps_the_id_from_the_page() {
    let server = Server::start(&json!({ "session_id": ["header", "cookie"] }), &json!({})).await;
    let body = r#"{"user":"Alice","cookie":true}"#;
    let reply = server.ask("POST", "/v1/session", &[JSON], body).await;
    assert_eq!(reply.status, 201);
    assert!(reply.object().get("session").is_none(), "{reply:?}");
    let (_, cookie) = reply.head.split_once("set-cookie: ").unwrap();
    assert!(
        cookie.starts_with("chinwag=")
            && cookie.contains("; path=/; httponly; samesite=strict\r\n"),
        "{cookie}"
    );
    // The head is in lower case, and an id is not: ask again as a client without the cookie would.
    let plain = server.log_in("Bob").await;
    let cookie = format!("chinwag={plain}");
    let lines = [JSON, ("Cookie", &cookie), ("X-Chinwag", "1")];
    let ping = r#"{"type":"ping"}"#;
    let reply = server.ask("POST", "/v1/commands", &lines, ping).await;
    assert_eq!(
        (reply.status, &reply.object()["type"]),
        (200, &json!("pong"))
    );
    let reply = server.ask("POST", "/v1/commands", &lines[..2], ping).await;
    assert_eq!((reply.status, reply.code().as_str()), (403, "forbidden"));
    let bye = server.ask("DELETE", "/v1/session", &lines[1..], "").await;
    assert_eq!(bye.status, 200);
    assert!(
        bye.head.contains("set-cookie: chinwag=; path=/;"),
        "{bye:?}"
    );
    assert!(bye.head.contains("max-age=0"), "{bye:?}");

    // Behind TLS the cookie is bound to its host.
    let proxied = json!({ "client_address": "x-forwarded-for", "proxies": ["127.0.0.1"] });
    let server = Server::start(&json!({ "session_id": ["cookie"] }), &proxied).await;
    let lines = [
        JSON,
        ("X-Forwarded-For", "203.0.113.7"),
        ("X-Forwarded-Proto", "https"),
    ];
    let reply = server
        .ask("POST", "/v1/session", &lines, r#"{"user":"Alice"}"#)
        .await;
    assert_eq!(
        reply.status, 400,
        "no other place, and not asked for: {reply:?}"
    );
    let reply = server.ask("POST", "/v1/session", &lines, body).await;
    assert_eq!(reply.status, 201, "the name was free at once");
    assert!(
        reply.head.contains("set-cookie: __host-chinwag="),
        "{reply:?}"
    );
    assert!(reply.head.contains("; secure\r\n"), "{reply:?}");
}

#[tokio::test]
async fn pages_of_other_origins_are_judged_first() {
    let server = Server::start(
        &json!({ "origins": ["same", "https://App.example"], "session_id": ["header", "cookie"] }),
        &json!({}),
    )
    .await;
    let login = r#"{"user":"Alice"}"#;
    let evil = [JSON, ("Origin", "https://evil.example")];
    let reply = server.ask("POST", "/v1/session", &evil, login).await;
    assert_eq!((reply.status, reply.code().as_str()), (403, "forbidden"));
    assert!(
        !reply.head.contains("access-control-allow-origin"),
        "{reply:?}"
    );
    assert_eq!(server.hub.sessions(), 0);
    let reply = server.ask("OPTIONS", "/v1/session", &evil[1..], "").await;
    assert_eq!(reply.status, 403);

    let lines = [
        ("Origin", "https://app.example"),
        ("Access-Control-Request-Method", "DELETE"),
    ];
    let reply = server.ask("OPTIONS", "/v1/session", &lines, "").await;
    assert_eq!((reply.status, reply.body.as_str()), (204, ""));
    for line in [
        "access-control-allow-origin: https://app.example\r\n",
        "access-control-allow-methods: post, delete, options\r\n",
        "access-control-allow-headers: authorization, content-type, x-chinwag\r\n",
        "access-control-allow-credentials: true\r\n",
        "access-control-max-age: 7200\r\n",
        "vary: origin\r\n",
        "cache-control: no-store\r\n",
    ] {
        assert!(reply.head.contains(line), "{line} {reply:?}");
    }

    for origin in ["https://app.example", "http://localhost"] {
        let lines = [JSON, ("Origin", origin)];
        let reply = server
            .ask("POST", "/v1/session", &lines, r#"{"user":"wrong name"}"#)
            .await;
        assert_eq!(reply.status, 400);
        let echoed = format!("access-control-allow-origin: {origin}\r\n");
        assert!(
            reply.head.contains(&echoed),
            "a page may read its errors too: {reply:?}"
        );
    }
    let reply = server.ask("POST", "/v1/session", &[JSON], login).await;
    assert_eq!(reply.status, 201, "no page asks");
    assert!(reply.head.contains("vary: origin\r\n"), "{reply:?}");
}

#[tokio::test]
async fn polls_that_do_not_wait_have_a_rate() {
    let server = Server::start_with(&json!({}), &json!({}), |config| {
        config.limits.polls = Rate::Limited {
            rate: 1,
            per: Duration::from_secs(60),
            burst: 2,
        };
    })
    .await;
    let id = server.log_in("Alice").await;
    assert_eq!(server.poll(&id, "").await.status, 200);
    assert_eq!(server.poll(&id, "?wait=0").await.status, 200);
    let reply = server.poll(&id, "").await;
    assert_eq!((reply.status, reply.code().as_str()), (429, "rate_limited"));
    let retry_ms = reply.object()["retry_ms"].as_u64().unwrap();
    let seconds = retry_ms.div_ceil(1000);
    assert!(
        reply.head.contains(&format!("retry-after: {seconds}\r\n")),
        "{reply:?}"
    );
}

#[tokio::test]
async fn a_drain_tells_every_client_that_polls() {
    let server = Server::start(&json!({}), &json!({})).await;
    let (waiting, away) = (server.log_in("Alice").await, server.log_in("Bob").await);
    let join = json!({ "type": "join", "room": "lobby" });
    server.command(&away, &join).await;
    let bearer = format!("Bearer {waiting}");
    let mut poll = server.connect().await;
    poll.request(
        "GET",
        "/v1/events?wait=30",
        &[("Authorization", &bearer)],
        "",
    )
    .await;

    let hub = server.hub.clone();
    let (done, mut drained) = oneshot::channel();
    Lifecycle::new().spawn(async move {
        hub.drain(Duration::from_secs(30)).await;
        done.send(()).unwrap();
    });
    // The poll may have come just after the drain began; either way it brings the bye.
    assert_eq!(types(&poll.reply().await), ["bye"]);
    // A client that comes by later connects anew; its last events are there, and nobody new gets in.
    let reply = server
        .ask("POST", "/v1/session", &[JSON], r#"{"user":"Eve"}"#)
        .await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (503, "shutting_down")
    );
    assert!(reply.head.contains("retry-after: "), "{reply:?}");
    assert!(drained.try_recv().is_err(), "somebody has not been told");
    let rest = server.poll(&away, "?wait=10").await;
    assert_eq!(types(&rest), ["join", "bye"]);
    let rest = rest.object();
    assert_eq!(rest["events"][1]["code"], "shutting_down");
    assert!(rest["events"][1]["retry_ms"].as_u64().is_some());

    drained.await.unwrap();
    let lifecycle = server.hub.lifecycle().clone();
    assert_eq!(lifecycle.shut_down(Duration::from_secs(30)).await, 0);
    TcpStream::connect(server.address).await.unwrap_err();
}

#[tokio::test]
async fn two_tables_on_one_bind_can_not_have_the_same_paths() {
    let telemetry = Telemetry::new(&metrics::NoopRecorder, &["poll"], &[], &[], &[]);
    let hub = Hub::start(HubConfig::default(), telemetry, Lifecycle::new()).unwrap();
    let listeners = Listeners::new();
    let (polling, listener) = (json!({}), json!({}));
    let one = bind(&hub, &polling, &listener, &listeners).await.unwrap();
    let Err(error) = bind(&hub, &polling, &listener, &listeners).await else {
        panic!("two transports have one path");
    };
    assert!(matches!(error, BindError::Path { .. }), "{error}");
    let taken = json!({ "bind": one.local_addr().ip() });
    let Err(error) = bind(&hub, &polling, &taken, &Listeners::new()).await else {
        panic!("two listeners have one port");
    };
    assert!(matches!(error, BindError::Address { .. }), "{error}");
    hub.lifecycle().kill();
}

#[tokio::test(start_paused = true)]
async fn what_a_poll_asks_for_is_cut_to_what_is_configured() {
    let polling = json!({ "max_wait": "2s", "max_events": 1, "poll_pace": "0s" });
    let server = Server::start(&polling, &json!({})).await;
    let id = server.log_in("Alice").await;
    let begun = chinwag_core::clock::now();
    assert_eq!(types(&server.poll(&id, "?wait=3600").await), [""; 0]);
    assert_eq!(begun.elapsed(), Duration::from_secs(2));
    for room in ["one", "two"] {
        let join = json!({ "type": "join", "room": room });
        assert_eq!(server.command(&id, &join).await.status, 200);
    }
    assert_eq!(types(&server.poll(&id, "?wait=1&max=100").await), ["join"]);
}

#[tokio::test]
async fn a_body_that_means_nothing_has_its_limit_too() {
    let server = Server::start(&json!({}), &json!({})).await;
    let id = server.log_in("Alice").await;
    let bearer = format!("Bearer {id}");
    let lines = [("Authorization", &*bearer)];
    for (method, target) in [("GET", "/v1/events"), ("DELETE", "/v1/session")] {
        let body = "x".repeat(8193);
        let reply = server.ask(method, target, &lines, &body).await;
        assert_eq!((reply.status, reply.code().as_str()), (413, "too_large"));
    }
    let mut client = server.connect().await;
    for _ in 0..2 {
        let reply = client.ask("GET", "/v1/events", &lines, "{}").await;
        assert_eq!(reply.status, 200, "the next request is found behind it");
    }
}
