//! All kinds through TLS: the same conversations as in plain text, and what certificates change.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::Duration,
};

use async_trait::async_trait;
use chinwag_core::{
    ChainLink, Hub, HubConfig, Lifecycle, Revocations, ScopeConfig, Telemetry,
    config::{Rate, Size, Span},
    plugin::{AuthRequest, Authenticator, Principal, TlsFacts, Verdict},
};
use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use rcgen::CertificateParams;
use rustls::{
    SupportedProtocolVersion,
    pki_types::ServerName,
    version::{TLS12, TLS13},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest},
};

use crate::{
    Alpn, BindContext, BindError, ClientCert, Listeners, PollingConfig, TcpConfig, Tls,
    TransportConfig, WebSocketConfig,
    config::tests::listener,
    tls::{
        pki::Identity,
        tests::{VERSIONS, World},
    },
};

/// Asks for certificates, needs none, and knows a list of revoked ones.
const OPTIONAL: &str =
    ",\"client_ca\":\"ca.pem\",\"client_cert\":\"optional\",\"crl\":[\"crl.pem\"]";
/// Nothing here takes so long unless it never comes.
const PATIENCE: Duration = Duration::from_secs(30);

/// What an authenticator was told of one log-in.
#[derive(Debug)]
struct Asked {
    transport: Arc<str>,
    tls: Option<Arc<TlsFacts>>,
    headers: Vec<(String, String)>,
}

/// Lets in whoever has a certificate, under its common name, and everybody else under a name of their choice.
#[derive(Default)]
struct Doorman(Mutex<Vec<Asked>>);

#[async_trait]
impl Authenticator for Doorman {
    async fn authenticate(&self, request: &AuthRequest) -> Verdict {
        self.0.lock().push(Asked {
            transport: Arc::clone(&request.transport),
            tls: request.tls.clone(),
            headers: request.headers.clone(),
        });
        let certificate = request
            .tls
            .as_ref()
            .and_then(|tls| tls.certificate.as_ref());
        match (certificate, &request.credentials.user) {
            (Some(certificate), _) => {
                Verdict::Allow(Principal::vouched(certificate.common_names[0].as_str()))
            }
            (None, Some(user)) => Verdict::Allow(Principal::chosen("", user.as_str())),
            (None, None) => Verdict::Abstain,
        }
    }

    fn headers(&self) -> &[String] {
        static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| {
            ["X-Device", "user-agent", "Cookie"]
                .map(String::from)
                .into()
        });
        &NAMES
    }
}

/// A server with TCP on one port, WebSocket and polling on another.
struct Server {
    world: World,
    tls: Arc<Tls>,
    hub: Hub,
    doorman: Arc<Doorman>,
    lines: SocketAddr,
    web: SocketAddr,
}

impl Server {
    async fn start(table: &str) -> Self {
        Self::start_with(table, &json!({})).await
    }

    /// `table`: further keys of `[tls.public]`; `http`: of the listener of the HTTP kinds.
    async fn start_with(table: &str, http: &Value) -> Self {
        let world = World::new();
        world.folder.put("ca.pem", world.ca.pem());
        world.folder.put("crl.pem", world.ca.crl(-1, &[]));
        let tls = world.load(table).await;
        let mut config = HubConfig::default();
        config.server.workers = 1;
        config.limits.sends = Rate::Unlimited;
        config.limits.commands = Rate::Unlimited;
        config.limits.polls = Rate::Unlimited;
        config.limits.message_bytes = Size(16 << 10);
        config.limits.frame_bytes = Size(64 << 10);
        config.limits.member_queue = Size(16 << 20);
        config.limits.poll_queue.events = 1000;
        config.limits.poll_queue.bytes = Size(4 << 20);
        config.limits.slow_after = Span::secs(60);
        let telemetry = Telemetry::new(
            &metrics::NoopRecorder,
            &["lines", "socket", "poll"],
            &["doorman"],
            &[],
            &[],
        );
        let hub = Hub::start(config, telemetry, Lifecycle::new()).unwrap();
        let doorman = Arc::new(Doorman::default());
        let listeners = Listeners::new();
        let context = |name: &str, extra: &Value| {
            let mut extra = extra.clone();
            extra["tls"] = json!("public");
            context(&hub, name, &extra, &doorman, &listeners).with_tls(Some(Arc::clone(&tls)))
        };
        let polling: PollingConfig =
            serde_json::from_value(json!({ "session_id": ["header", "cookie"] })).unwrap();
        let lines = TcpConfig::default()
            .bind(context("lines", &json!({})))
            .await
            .unwrap();
        let socket = WebSocketConfig::default()
            .bind(context("socket", http))
            .await
            .unwrap();
        let poll = polling.bind(context("poll", http)).await.unwrap();
        let [at_lines, at_web, at_poll] =
            [&lines, &socket, &poll].map(|transport| transport.local_addr().ip().unwrap());
        assert_eq!(at_web, at_poll, "they share a bind");
        for transport in [lines, socket, poll] {
            hub.lifecycle()
                .spawn(async move { transport.serve().await.unwrap() });
        }
        Self {
            world,
            tls,
            hub,
            doorman,
            lines: at_lines,
            web: at_web,
        }
    }

    /// A certificate of somebody's.
    fn identity(&self, name: &str, serial: u64) -> Identity {
        self.world
            .ca
            .client(name, |params: &mut CertificateParams| {
                params.serial_number = Some(serial.into());
            })
    }

    async fn connect(
        &self,
        to: SocketAddr,
        version: &'static SupportedProtocolVersion,
        identity: Option<&Identity>,
    ) -> TlsStream<TcpStream> {
        let config = self.world.client(version).with(identity);
        let name = ServerName::try_from("localhost").unwrap();
        let tcp = TcpSocket::new_v4().unwrap();
        // The kernel keeps little for whoever does not read, and always the same.
        tcp.set_recv_buffer_size(32 << 10).unwrap();
        let tcp = tcp.connect(to).await.unwrap();
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, tcp);
        connecting.await.unwrap()
    }

    async fn lines(
        &self,
        version: &'static SupportedProtocolVersion,
        identity: Option<&Identity>,
    ) -> Lines {
        Lines(BufReader::new(
            self.connect(self.lines, version, identity).await,
        ))
    }

    async fn socket(
        &self,
        version: &'static SupportedProtocolVersion,
        identity: Option<&Identity>,
        headers: &[(&'static str, &'static str)],
    ) -> Socket {
        let stream = self.connect(self.web, version, identity).await;
        let mut request = "wss://localhost/v1/ws".into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        Socket(client_async(request, stream).await.unwrap().0)
    }

    async fn http(
        &self,
        version: &'static SupportedProtocolVersion,
        identity: Option<&Identity>,
    ) -> Http {
        Http(BufReader::new(
            self.connect(self.web, version, identity).await,
        ))
    }

    /// Revokes the certificate with that number.
    async fn revoke(&self, serial: u64) {
        let list = self.world.ca.crl(0, &[serial]);
        self.world.folder.put("crl.pem", list);
        self.tls.reload().await.unwrap();
    }

    fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.doorman.0.lock())
    }
}

fn context(
    hub: &Hub,
    name: &str,
    extra: &Value,
    doorman: &Arc<Doorman>,
    listeners: &Listeners,
) -> BindContext {
    let scope = hub.scope(ScopeConfig {
        name: name.to_owned(),
        auth: vec![ChainLink {
            name: "doorman".into(),
            authenticator: Arc::clone(doorman) as Arc<dyn Authenticator>,
            timeout: Duration::from_secs(5),
            revocations: Revocations::default(),
            manager: None,
            shadow: None,
        }],
        timeout: Duration::from_secs(60),
        login_timeout: Duration::from_secs(30),
        write_timeout: Duration::from_secs(10),
    });
    let listener = Arc::new(listener(extra));
    BindContext::new(name, listener, hub.clone(), scope, listeners.clone())
}

/// A client that hears objects and says some.
trait Talks {
    async fn say(&mut self, object: &Value);
    /// The next object. `None`: the server has closed the connection in good order.
    async fn hear(&mut self) -> Option<Value>;

    async fn hear_type(&mut self, kind: &str) -> Value {
        let heard = async {
            loop {
                let object = self.hear().await.expect("the server is not done");
                if object["type"] == kind {
                    return object;
                }
            }
        };
        timeout(PATIENCE, heard).await.unwrap()
    }

    async fn log_in(&mut self, user: &str) -> Value {
        self.say(&json!({ "type": "login", "user": user })).await;
        self.hear_type("session").await
    }

    async fn join(&mut self, room: &str) {
        self.say(&json!({ "type": "join", "room": room })).await;
        self.hear_type("init").await;
    }

    /// That the server says so and then closes.
    async fn hears_goodbye(&mut self, code: &str) {
        assert_eq!(self.hear_type("bye").await["code"], code);
        assert_eq!(timeout(PATIENCE, self.hear()).await.unwrap(), None);
    }
}

struct Lines(BufReader<TlsStream<TcpStream>>);

impl Talks for Lines {
    async fn say(&mut self, object: &Value) {
        let line = format!("{object}\n");
        self.0.get_mut().write_all(line.as_bytes()).await.unwrap();
    }

    async fn hear(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        (!line.is_empty()).then(|| serde_json::from_str(&line).unwrap())
    }
}

struct Socket(WebSocketStream<TlsStream<TcpStream>>);

impl Talks for Socket {
    async fn say(&mut self, object: &Value) {
        let text = Message::text(object.to_string());
        self.0.send(text).await.unwrap();
    }

    async fn hear(&mut self) -> Option<Value> {
        loop {
            match self.0.next().await?.unwrap() {
                Message::Text(text) => return Some(serde_json::from_str(&text).unwrap()),
                Message::Close(_) | Message::Ping(_) => (),
                message => panic!("{message:?}"),
            }
        }
    }
}

/// A connection that carries one request after the other.
struct Http(BufReader<TlsStream<TcpStream>>);

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HashMap<String, String>,
    body: Value,
}

impl Http {
    async fn ask(
        &mut self,
        method: &str,
        target: &str,
        lines: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let mut request = format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n");
        for (name, value) in lines {
            request += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            request += "Content-Type: application/json\r\n";
        }
        request += &format!("Content-Length: {}\r\n\r\n{body}", body.len());
        let stream = self.0.get_mut();
        stream.write_all(request.as_bytes()).await.unwrap();
        timeout(PATIENCE, self.answer()).await.unwrap()
    }

    async fn answer(&mut self) -> Answer {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = HashMap::new();
        loop {
            line.clear();
            self.0.read_line(&mut line).await.unwrap();
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                break;
            };
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        let mut body = vec![0; headers["content-length"].parse().unwrap()];
        self.0.read_exact(&mut body).await.unwrap();
        Answer {
            status,
            headers,
            body: serde_json::from_slice(&body).unwrap(),
        }
    }

    /// The id of a new session.
    async fn log_in(&mut self, user: &str) -> String {
        let body = json!({ "user": user }).to_string();
        let answer = self.ask("POST", "/v1/session", &[], &body).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.body["session"].as_str().unwrap().to_owned()
    }

    async fn command(&mut self, id: &str, command: &Value) -> Answer {
        let bearer = format!("Bearer {id}");
        let lines = [("Authorization", &*bearer)];
        self.ask("POST", "/v1/commands", &lines, &command.to_string())
            .await
    }

    async fn poll(&mut self, id: &str, query: &str) -> Answer {
        let bearer = format!("Bearer {id}");
        let lines = [("Authorization", &*bearer)];
        self.ask("GET", &format!("/v1/events{query}"), &lines, "")
            .await
    }
}

/// The codes of a poll's last event and of an error.
fn code(object: &Value) -> &str {
    let last = object["events"].as_array().and_then(|events| events.last());
    last.unwrap_or(object)["code"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_conversation_goes_over_every_kind() {
    let server = Server::start("").await;
    for version in VERSIONS {
        let mut alice = server.lines(version, None).await;
        let mut bob = server.socket(version, None, &[]).await;
        let mut carol = server.http(version, None).await;
        alice.log_in("alice").await;
        alice.join("lobby").await;
        bob.log_in("bob").await;
        bob.join("lobby").await;
        let id = carol.log_in("carol").await;
        let joined = json!({ "type": "join", "room": "lobby" });
        assert_eq!(carol.command(&id, &joined).await.status, 200);

        let hello = json!({ "type": "send", "room": "lobby", "text": "hello" });
        bob.say(&hello).await;
        assert_eq!(alice.hear_type("message").await["user"], "bob");
        assert_eq!(bob.hear_type("message").await["text"], "hello");
        let heard = carol.poll(&id, "?wait=10").await;
        let last = heard.body["events"].as_array().unwrap().last().unwrap();
        assert_eq!(last["text"], "hello", "{heard:?}");

        // A poll that waits on one connection hears of what another one does.
        let next = heard.body["next"].to_string();
        let query = format!("?wait=10&ack={next}");
        let (heard, ()) = tokio::join!(carol.poll(&id, &query), alice.say(&hello));
        assert_eq!(heard.body["events"][0]["user"], "alice", "{heard:?}");

        for goodbye in [json!({ "type": "logout" })] {
            alice.say(&goodbye).await;
            alice.hears_goodbye("logout").await;
            bob.say(&goodbye).await;
            bob.hears_goodbye("logout").await;
            let bye = carol.command(&id, &goodbye).await;
            assert_eq!(code(&bye.body), "logout");
        }
    }
}

/// Sends several messages before any is read. About five are all that the kernel takes: in some of the rounds it is full
/// at the last one, and what is held back of that has to come by itself. In the last round much more is queued.
async fn lags(mut reader: impl Talks, mut writer: impl Talks) {
    let rounds = [3, 4, 5, 6, 7].repeat(20).into_iter().chain([100]);
    reader.log_in("reader").await;
    reader.join("flood").await;
    writer.log_in("writer").await;
    writer.join("flood").await;
    // One record each.
    let text = "x".repeat(14_000);
    for (round, messages) in rounds.enumerate() {
        for number in 0..messages {
            let data = json!([round, number]);
            let message = json!({ "type": "send", "room": "flood", "text": text, "data": data });
            writer.say(&message).await;
            writer.hear_type("sent").await;
        }
        for number in 0..messages {
            let message = reader.hear_type("message").await;
            assert_eq!(message["data"], json!([round, number]));
        }
    }
    writer.say(&json!({ "type": "logout" })).await;
    assert_eq!(reader.hear_type("leave").await["user"], "writer");
    reader.say(&json!({ "type": "logout" })).await;
    reader.hears_goodbye("logout").await;
}

#[tokio::test]
async fn whoever_reads_late_gets_everything() {
    let server = Server::start("").await;
    let lines = server.lines(&TLS13, None).await;
    lags(lines, server.lines(&TLS13, None).await).await;
    let socket = server.socket(&TLS12, None, &[]).await;
    lags(socket, server.socket(&TLS12, None, &[]).await).await;
}

#[tokio::test]
async fn a_big_answer_gets_through_to_a_poll() {
    let server = Server::start("").await;
    let mut alice = server.http(&TLS13, None).await;
    let id = alice.log_in("alice").await;
    let joined = json!({ "type": "join", "room": "lobby" });
    alice.command(&id, &joined).await;
    let text = "x".repeat(4000);
    for _ in 0..150 {
        let message = json!({ "type": "send", "room": "lobby", "text": text });
        assert_eq!(alice.command(&id, &message).await.status, 200);
    }
    let all = alice.poll(&id, "?wait=10").await;
    assert_eq!(all.body["events"].as_array().unwrap().len(), 151);
}

#[tokio::test]
async fn a_request_through_tls_is_https() {
    let server = Server::start("").await;
    let mut client = server.http(&TLS13, None).await;
    let body = r#"{"user":"alice","cookie":true}"#;
    let plain = [("Origin", "http://localhost")];
    let refused = client.ask("POST", "/v1/session", &plain, body).await;
    assert_eq!((refused.status, code(&refused.body)), (403, "forbidden"));
    let safe = [("Origin", "https://localhost")];
    let answer = client.ask("POST", "/v1/session", &safe, body).await;
    assert_eq!(answer.status, 201);
    let cookie = &answer.headers["set-cookie"];
    assert!(cookie.starts_with("__Host-chinwag="), "{cookie}");
    assert!(cookie.ends_with("; Secure"), "{cookie}");
    let cookie = cookie.split(';').next().unwrap();
    let lines = [("Cookie", cookie), ("X-Chinwag", "1")];
    assert_eq!(
        client.ask("GET", "/v1/events", &lines, "").await.status,
        200
    );
}

#[tokio::test]
async fn authenticators_see_tls_and_the_headers_that_they_ask_for() {
    let server = Server::start(OPTIONAL).await;
    let alice = server.identity("alice", 7);
    server
        .lines(&TLS12, Some(&alice))
        .await
        .log_in("alice")
        .await;
    let headers = [
        ("x-device", "one"),
        ("x-device", "two"),
        ("x-other", "no"),
        ("cookie", "secret=1"),
    ];
    let mut socket = server.socket(&TLS13, Some(&alice), &headers).await;
    socket.log_in("alice").await;
    let mut poll = server.http(&TLS13, None).await;
    let lines = [("User-Agent", "client/1")];
    poll.ask("POST", "/v1/session", &lines, r#"{"user":"bob"}"#)
        .await;

    let asked = server.asked();
    let told: Vec<_> = asked
        .iter()
        .map(|asked| {
            let tls = asked.tls.as_ref().unwrap();
            let certificate = tls.certificate.as_ref();
            let headers = asked.headers.iter();
            let headers: Vec<_> = headers.map(|(name, value)| (&**name, &**value)).collect();
            (
                &*asked.transport,
                tls.version,
                certificate.map(|certificate| certificate.common_names[0].as_str()),
                headers,
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("lines", "TLS1.2", Some("alice"), vec![]),
            (
                "socket",
                "TLS1.3",
                Some("alice"),
                vec![("x-device", "one, two")]
            ),
            ("poll", "TLS1.3", None, vec![("user-agent", "client/1")]),
        ]
    );
    let facts = asked[0].tls.as_ref().unwrap();
    assert_eq!(facts.server_name.as_deref(), Some("localhost"));
    assert_eq!(facts.local, server.lines);
}

#[tokio::test]
async fn a_proxy_s_certificate_is_not_its_clients() {
    let behind = json!({ "client_address": "x-forwarded-for", "proxies": ["127.0.0.1"] });
    let server = Server::start_with(OPTIONAL, &behind).await;
    let proxy = server.identity("proxy", 7);
    let named = [("x-forwarded-for", "203.0.113.7")];
    let mut socket = server.socket(&TLS13, Some(&proxy), &named).await;
    assert_eq!(socket.log_in("alice").await["user"], "alice");
    // Its own bytes are encrypted all the same.
    socket.join("lobby").await;

    let mut client = server.http(&TLS13, Some(&proxy)).await;
    let body = r#"{"user":"bob","cookie":true}"#;
    for (scheme, name) in [("https", "__Host-chinwag="), ("http", "chinwag=")] {
        let lines = [named[0], ("X-Forwarded-Proto", scheme)];
        let answer = client.ask("POST", "/v1/session", &lines, body).await;
        assert!(answer.headers["set-cookie"].starts_with(name), "{answer:?}");
        let bearer = answer.headers["set-cookie"].split(';').next().unwrap();
        let lines = [
            named[0],
            ("X-Forwarded-Proto", scheme),
            ("Cookie", bearer),
            ("X-Chinwag", "1"),
        ];
        client.ask("DELETE", "/v1/session", &lines, "").await;
    }
    assert!(server.asked().iter().all(|asked| asked.tls.is_none()));

    // Nor where it does not say for whom it asks, or nothing that can be read.
    for lines in [&[][..], &[("x-forwarded-for", "203.0.113.7, unknown")]] {
        let mut client = server.http(&TLS13, Some(&proxy)).await;
        let answer = client
            .ask("POST", "/v1/session", lines, r#"{"user":"eve"}"#)
            .await;
        assert_eq!(answer.status, 201, "{answer:?}");
        let id = answer.body["session"].as_str().unwrap();
        let bearer = format!("Bearer {id}");
        let lines = [lines, &[("Authorization", &*bearer)]].concat();
        client.ask("DELETE", "/v1/session", &lines, "").await;
    }
    assert!(server.asked().iter().all(|asked| asked.tls.is_none()));
}

#[tokio::test]
async fn a_polling_session_belongs_to_the_certificate_that_opened_it() {
    let server = Server::start(OPTIONAL).await;
    let (alice, bob) = (server.identity("alice", 7), server.identity("bob", 8));
    for version in VERSIONS {
        let id = server
            .http(version, Some(&alice))
            .await
            .log_in("alice")
            .await;
        for (identity, status) in [(None, 401), (Some(&bob), 401), (Some(&alice), 200)] {
            let mut client = server.http(version, identity).await;
            let ping = client.command(&id, &json!({ "type": "ping" })).await;
            let polled = client.poll(&id, "").await;
            assert_eq!((ping.status, polled.status), (status, status));
            if status == 401 {
                assert_eq!(code(&polled.body), "not_logged_in", "as if there were none");
            }
        }
        // The events of one that has ended are its own too.
        let mut owner = server.http(version, Some(&alice)).await;
        owner.command(&id, &json!({ "type": "logout" })).await;
        let mut thief = server.http(version, Some(&bob)).await;
        let stolen = thief.poll(&id, "").await;
        assert!(stolen.body["events"].is_null(), "{stolen:?}");

        let id = server.http(version, None).await.log_in("guest").await;
        let mut shown = server.http(version, Some(&bob)).await;
        assert_eq!(shown.poll(&id, "").await.status, 200, "bound to none");
        shown.command(&id, &json!({ "type": "logout" })).await;
    }
}

#[tokio::test]
async fn a_revoked_certificate_ends_its_sessions_and_no_other() {
    let server = Server::start(OPTIONAL).await;
    let (alice, bob) = (server.identity("alice", 7), server.identity("bob", 8));
    let alices = |_| server.identity("alice", 7);
    let (second, third) = (alices(2), alices(3));
    for version in VERSIONS {
        server
            .world
            .folder
            .put("crl.pem", server.world.ca.crl(-1, &[]));
        server.tls.reload().await.unwrap();

        // One identity has one session: let each be somebody else's, with numbers that are revoked together.
        let mut lines = server.lines(version, Some(&alice)).await;
        lines.log_in("alice").await;
        let mut other = server.lines(version, Some(&bob)).await;
        other.log_in("bob").await;
        let mut guest = server.lines(version, None).await;
        guest.log_in("guest").await;
        let mut waiting = server.lines(version, Some(&second)).await;
        // By an answer it knows that the server, too, has finished the handshake.
        waiting.say(&json!({ "type": "ping" })).await;
        waiting.hear().await.unwrap();
        server.revoke(7).await;
        lines.hears_goodbye("auth_expired").await;
        waiting.say(&json!({ "type": "login" })).await;
        assert_eq!(waiting.hear_type("error").await["code"], "auth_failed");
        for client in [&mut other, &mut guest] {
            client.say(&json!({ "type": "ping" })).await;
            client.hear_type("pong").await;
            client.say(&json!({ "type": "logout" })).await;
            client.hears_goodbye("logout").await;
        }

        server
            .world
            .folder
            .put("crl.pem", server.world.ca.crl(-1, &[]));
        server.tls.reload().await.unwrap();
        let mut socket = server.socket(version, Some(&third), &[]).await;
        socket.log_in("alice").await;
        server.revoke(7).await;
        socket.hears_goodbye("auth_expired").await;

        server
            .world
            .folder
            .put("crl.pem", server.world.ca.crl(-1, &[]));
        server.tls.reload().await.unwrap();
        let mut poll = server.http(version, Some(&alice)).await;
        let id = poll.log_in("alice").await;
        let (ended, ()) = tokio::join!(poll.poll(&id, "?wait=10"), server.revoke(7));
        assert_eq!(code(&ended.body), "auth_expired", "{ended:?}");
    }
}

#[tokio::test]
async fn a_client_of_the_other_sort_is_told_soon() {
    // TLS to a listener in plain text.
    let world = World::new();
    let mut config = HubConfig::default();
    config.server.workers = 1;
    let telemetry = Telemetry::new(
        &metrics::NoopRecorder,
        &["lines", "poll"],
        &["doorman"],
        &[],
        &[],
    );
    let hub = Hub::start(config, telemetry, Lifecycle::new()).unwrap();
    let (doorman, listeners) = (Arc::default(), Listeners::new());
    let cx = |name| context(&hub, name, &json!({}), &doorman, &listeners);
    let lines = TcpConfig::default().bind(cx("lines")).await.unwrap();
    let poll = PollingConfig::default().bind(cx("poll")).await.unwrap();
    for transport in [lines, poll] {
        let address = transport.local_addr().ip().unwrap();
        hub.lifecycle()
            .spawn(async move { transport.serve().await.unwrap() });
        let config = Arc::new(world.client(&TLS13).with(None));
        let name = ServerName::try_from("localhost").unwrap();
        let tcp = TcpStream::connect(address).await.unwrap();
        let connecting = TlsConnector::from(config).connect(name, tcp);
        let error = timeout(PATIENCE, connecting).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    }
    assert!(doorman.0.lock().is_empty());
}

#[tokio::test]
async fn nothing_is_bound_without_the_table_that_it_names() {
    let server = Server::start("").await;
    let listeners = Listeners::new();
    let cx = |extra| context(&server.hub, "lines", &extra, &server.doorman, &listeners);
    let named = json!({ "tls": "public" });
    for bound in [
        TcpConfig::default().bind(cx(named.clone())).await,
        PollingConfig::default().bind(cx(named)).await,
        TcpConfig::default()
            .bind(cx(json!({})).with_tls(Some(Arc::clone(&server.tls))))
            .await,
    ] {
        match bound.map(|transport| transport.local_addr()) {
            Err(BindError::Address { source, .. }) => {
                assert_eq!(source.kind(), io::ErrorKind::InvalidInput);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A context of the transport `lines` whose listener is to speak TLS.
fn secure_context(server: &Server) -> BindContext {
    let named = json!({ "tls": "public" });
    let listeners = Listeners::new();
    context(&server.hub, "lines", &named, &server.doorman, &listeners)
        .with_tls(Some(Arc::clone(&server.tls)))
}

#[tokio::test]
async fn a_look_at_the_table_is_no_promise_to_speak_by_it() {
    let server = Server::start("").await;
    let looks = secure_context(&server);
    assert_eq!(looks.tls().unwrap().client_cert(), ClientCert::None);
    assert!(matches!(
        looks.check_tls(),
        Err(BindError::PlainText { .. })
    ));
    assert!(looks.clone().take_tls().is_some());
    assert!(looks.check_tls().is_ok(), "a clone has taken it");

    let listens = secure_context(&server);
    let _listener = listens.stream().await.unwrap();
    assert!(listens.check_tls().is_ok());
    let shares = secure_context(&server);
    let _listener = shares.http().await.unwrap();
    assert!(shares.check_tls().is_ok());
    let plain = context(
        &server.hub,
        "lines",
        &json!({}),
        &server.doorman,
        &Listeners::new(),
    );
    assert!(plain.tls().is_none() && plain.check_tls().is_ok());
}

#[tokio::test]
async fn a_stream_is_for_lines_or_for_a_protocol_with_a_name_of_its_own() {
    let server = Server::start("").await;
    let cx = secure_context(&server);
    for (listener, spoken) in [
        (cx.stream().await, "chinwag"),
        (cx.stream_of(Alpn::new("carrier/1")).await, "carrier/1"),
    ] {
        let listener = listener.unwrap();
        let address = listener.local_addr();
        let serving = listener.serve(|mut accepted| async move {
            let _ = accepted.socket.read_u8().await;
        });
        server.hub.lifecycle().spawn(serving);
        for offered in ["chinwag", "carrier/1"] {
            let mut config = server.world.client(&TLS13).with(None);
            config.alpn_protocols = vec![offered.into()];
            let name = ServerName::try_from("localhost").unwrap();
            let tcp = TcpStream::connect(address).await.unwrap();
            let connecting = TlsConnector::from(Arc::new(config)).connect(name, tcp);
            let shaken = timeout(PATIENCE, connecting).await.unwrap();
            let agreed = shaken.ok().map(|stream| {
                let agreed = stream.get_ref().1.alpn_protocol().unwrap();
                String::from_utf8(agreed.to_vec()).unwrap()
            });
            let expected = (offered == spoken).then(|| spoken.to_owned());
            assert_eq!(agreed, expected, "{offered} where {spoken} is spoken");
        }
    }
}

#[tokio::test]
async fn nothing_follows_an_upgrade_that_was_refused() {
    let server = Server::start("").await;
    let asks = [("Connection", "Upgrade"), ("Upgrade", "websocket")];
    let key = ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
    let version = ("Sec-WebSocket-Version", "13");
    let elsewhere = ("Origin", "https://evil.example");
    for ((path, lines, status, told), tls) in [
        (
            "/v1/ws",
            &[("Sec-WebSocket-Version", "8"), key][..],
            426,
            true,
        ),
        ("/v1/ws", &[key], 426, true),
        ("/v1/ws", &[version], 400, false),
        ("/v1/ws", &[version, key, elsewhere], 403, false),
        // Nor where there is nothing to upgrade.
        ("/v1/events", &[version, key], 401, false),
        ("/", &[version, key], 404, false),
    ]
    .into_iter()
    .flat_map(|case| VERSIONS.map(|tls| (case, tls)))
    {
        let mut client = server.http(tls, None).await;
        let lines = [&asks[..], lines].concat();
        let answer = client.ask("GET", path, &lines, "").await;
        assert_eq!(answer.status, status, "{answer:?}");
        let upgrade = answer.headers.get("upgrade").map(String::as_str);
        assert_eq!(upgrade, told.then_some("websocket"), "{answer:?}");
        let options = if told { "upgrade, close" } else { "close" };
        assert_eq!(answer.headers["connection"], options);
        // What a proxy might let through now, since it takes it for WebSocket, is nobody's request; and the end is one
        // in good order, through TLS too.
        let hidden = b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n";
        client.0.get_mut().write_all(hidden).await.unwrap();
        let mut rest = Vec::new();
        timeout(PATIENCE, client.0.read_to_end(&mut rest))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(rest, b"", "{path}");
    }
}

#[tokio::test]
async fn empty_lines_are_passed_over_and_a_flood_of_them_is_too_large() {
    let server = Server::start("").await;
    let mut alice = server.lines(&TLS13, None).await;
    alice.log_in("alice").await;
    // As many bytes as an object may have, again and again.
    let blank = "\n".repeat(64 << 10);
    for blank in [&blank, &blank, &"\r\n".repeat(32 << 10)] {
        alice.0.get_mut().write_all(blank.as_bytes()).await.unwrap();
        alice.say(&json!({ "type": "ping" })).await;
        alice.hear_type("pong").await;
    }
    alice.0.get_mut().write_all(blank.as_bytes()).await.unwrap();
    alice.0.get_mut().write_all(b"\n").await.unwrap();
    assert_eq!(alice.hear_type("error").await["code"], "too_large");
    alice.hears_goodbye("too_large").await;
}
