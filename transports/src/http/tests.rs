use std::future::ready;

use http::HeaderValue;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};

use super::*;
use crate::{accept::tests::Record, config::tests::listener};

struct Server {
    listener: HttpListener,
    record: Arc<Record>,
    lifecycle: Lifecycle,
}

impl Server {
    fn start(config: &serde_json::Value, routes: &[(&str, Arc<dyn HttpRoute>)]) -> Self {
        let record = Record::new();
        let lifecycle = Lifecycle::new();
        let door: Arc<dyn Door> = record.clone();
        let config = Arc::new(listener(config));
        let listener =
            HttpListener::new("web".into(), config, None, door, lifecycle.clone()).unwrap();
        listener.route("/echo", Arc::new(Echo)).unwrap();
        for (path, route) in routes {
            listener.route(*path, Arc::clone(route)).unwrap();
        }
        let serving = listener.clone();
        lifecycle.spawn(async move { serving.serve().await });
        Self {
            listener,
            record,
            lifecycle,
        }
    }

    async fn connect(&self) -> Client {
        Client(
            TcpStream::connect(self.listener.local_addr())
                .await
                .unwrap(),
        )
    }

    /// What one connection answers to `request`.
    async fn ask(&self, request: &str) -> Reply {
        let mut client = self.connect().await;
        client.say(request).await;
        client.reply().await
    }
}

pub(crate) struct Client(pub(crate) TcpStream);

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// In lower case.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Reply {
    pub(crate) fn object(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// The code of an error, which every error has to tell in the same form.
    pub(crate) fn code(&self) -> String {
        let object = self.object();
        assert_eq!(object["type"], "error", "{self:?}");
        assert!(self.head.contains("cache-control: no-store"), "{self:?}");
        assert!(
            self.head.contains("content-type: application/json"),
            "{self:?}"
        );
        object["code"].as_str().unwrap().to_owned()
    }
}

impl Client {
    pub(crate) async fn say(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// One answer, with a body as long as it says.
    pub(crate) async fn reply(&mut self) -> Reply {
        read_reply(&mut self.0).await
    }

    /// Whether the server has closed, and said nothing before.
    pub(crate) async fn is_closed(&mut self) -> bool {
        match self.0.read_u8().await {
            Ok(_) => false,
            Err(error) => matches!(
                error.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
            ),
        }
    }
}

async fn read_reply(connection: &mut (impl AsyncRead + Unpin)) -> Reply {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let length = head.split_once("content-length: ").map_or(0, |(_, rest)| {
        rest.split("\r\n").next().unwrap().parse().unwrap()
    });
    let mut body = vec![0; length];
    connection.read_exact(&mut body).await.unwrap();
    let body = String::from_utf8(body).unwrap();
    Reply { status, head, body }
}

/// Answers with the client's address and the query or the body, of which it takes 1000 bytes.
struct Echo;

#[async_trait]
impl HttpRoute for Echo {
    async fn handle(&self, request: Request<Incoming>, peer: &HttpPeer) -> Answer {
        let query = request.uri().query().unwrap_or_default().to_owned();
        match read_body(request.into_body(), 1000, Duration::from_secs(5)).await {
            Ok(body) => {
                let body = query + &String::from_utf8_lossy(&body);
                let answer =
                    json!({ "body": body, "from": peer.peer.address, "secure": peer.secure });
                json(StatusCode::OK, answer.to_string())
            }
            Err(BodyError::TooLarge) => refused(&Refusal::new(ErrorCode::TooLarge, "Too large.")),
            Err(BodyError::Late) => {
                refused_as(StatusCode::REQUEST_TIMEOUT, &bad_request("Too late."))
            }
            Err(BodyError::Broken) => refused(&bad_request("Broken.")),
        }
    }
}

/// Hands each request's path to the test and answers when told to, with the answer of the test.
struct Held {
    began: mpsc::Sender<Guard>,
    go: CancellationToken,
    body: Bytes,
}

/// Tells when the request is over, in whatever way.
struct Guard(CancellationToken);

impl Held {
    fn new(body: impl Into<Bytes>) -> (Arc<Self>, mpsc::Receiver<Guard>) {
        let (began, begun) = mpsc::channel(4);
        let go = CancellationToken::new();
        let body = body.into();
        (Arc::new(Self { began, go, body }), begun)
    }
}

#[async_trait]
impl HttpRoute for Held {
    async fn handle(&self, _request: Request<Incoming>, _peer: &HttpPeer) -> Answer {
        let over = CancellationToken::new();
        let _over = over.clone().drop_guard();
        self.began.send(Guard(over)).await.unwrap();
        self.go.cancelled().await;
        json(StatusCode::OK, self.body.clone())
    }
}

struct Panics;

#[async_trait]
impl HttpRoute for Panics {
    async fn handle(&self, _request: Request<Incoming>, _peer: &HttpPeer) -> Answer {
        panic!("this panic is part of the test");
    }
}

const GET: &str = "GET /echo HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn post(body: &str) -> String {
    let length = body.len();
    format!("POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// The same through the query, without a body.
fn get_saying(text: &str) -> String {
    format!("GET /echo?{text} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

#[tokio::test]
async fn requests_of_a_connection_are_answered_in_order() {
    let server = Server::start(&json!({}), &[]);
    let mut client = server.connect().await;
    client
        .say(&format!("{}{}{GET}", post("one"), post("two")))
        .await;
    for expected in ["one", "two", ""] {
        let reply = client.reply().await;
        assert_eq!(reply.status, 200);
        assert!(reply.head.contains("cache-control: no-store"), "{reply:?}");
        let object = reply.object();
        assert_eq!(object["body"], expected);
    }
    let sent = post("one").len() + post("two").len() + GET.len();
    assert_eq!(server.record.seen().received, sent);
}

#[tokio::test]
async fn more_requests_than_a_buffer_holds_are_answered_in_order() {
    for form in [post, get_saying] {
        let server = Server::start(&json!({}), &[]);
        let (mut reader, mut writer) = server.connect().await.0.into_split();
        let requests: String = (0..1000).map(|number| form(&number.to_string())).collect();
        let sent = requests.len();
        let reading = async {
            for number in 0..1000 {
                let reply = read_reply(&mut reader).await;
                assert_eq!(reply.status, 200, "{number}: {reply:?}");
                assert_eq!(reply.object()["body"], number.to_string());
            }
        };
        let (said, ()) = tokio::join!(writer.write_all(requests.as_bytes()), reading);
        said.unwrap();
        assert_eq!(server.record.seen().received, sent);
    }
}

#[tokio::test]
async fn doubtful_requests_are_refused_with_an_object() {
    let server = Server::start(&json!({}), &[]);
    let many_lines = "X-Filler: x\r\n".repeat(101);
    let long_line = format!("X-Filler: {}\r\n", "x".repeat(20_000));
    for (request, status) in [
        ("GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(), 404),
        ("GET /echo HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET /echo HTTP/1.0\r\n\r\n".to_owned(), 400),
        ("GET /echo HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n".to_owned(), 400),
        ("GET /echo HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_owned(), 421),
        ("GET http://a.example/echo HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(), 400),
        (
            "POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n".to_owned(),
            400,
        ),
        (
            "POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                .to_owned(),
            400,
        ),
        (
            "POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n".to_owned(),
            400,
        ),
        (
            "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx".to_owned(),
            400,
        ),
        ("POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: +1\r\n\r\nx".to_owned(), 400),
        ("POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1, 1\r\n\r\nx".to_owned(), 400),
        (
            "POST /echo HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
            400,
        ),
        ("GET /echo HTTP/1.1\r\nHost: localhost\r\nX-Folded: a\r\n b\r\n\r\n".to_owned(), 400),
        ("GET /echo HTTP/1.1\r\nHost: localhost\r\nX-Bare: a\rb\r\n\r\n".to_owned(), 400),
        ("GET /echo HTTP/1.1\r\nHost: localhost\r\nX-Nul: a\0b\r\n\r\n".to_owned(), 400),
        ("GET /echo HTTP/1.1\r\nHost: localhost\r\nX-Spaced : a\r\n\r\n".to_owned(), 400),
        ("PROXY TCP4 203.0.113.7 192.0.2.1 1 2\r\n\r\n".to_owned(), 400),
        ("{\"type\":\"login\"}\r\n\r\n".to_owned(), 400),
        (format!("GET /echo HTTP/1.1\r\nHost: localhost\r\n{many_lines}\r\n"), 431),
        (format!("GET /echo HTTP/1.1\r\nHost: localhost\r\n{long_line}\r\n"), 431),
    ] {
        let refused = server.record.seen().refused.len();
        let reply = server.ask(&request).await;
        assert_eq!(reply.status, status, "{request:.60} {reply:?}");
        assert_eq!(reply.code(), "bad_request", "{request:.60}");
        assert_eq!(server.record.seen().refused.len(), refused + 1, "{request:.60}");
    }
    server.record.until(|seen| seen.open == 0).await;
}

#[tokio::test]
async fn after_a_body_with_two_ends_the_connection_is_closed() {
    let server = Server::start(&json!({}), &[]);
    let (length, chunked) = ("Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n");
    for lines in [[length, chunked], [chunked, length]] {
        let lines = lines.concat();
        let mut client = server.connect().await;
        // Somebody on the way may have taken the rest for a part of the body, or the other way round.
        client
            .say(&format!(
                "POST /echo HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n0\r\n\r\n{GET}"
            ))
            .await;
        let reply = client.reply().await;
        assert_eq!(reply.status, 200, "{lines}");
        assert!(reply.head.contains("\r\nconnection: close\r\n"), "{lines}");
        assert!(client.is_closed().await, "and no other answer: {lines}");
    }
}

#[tokio::test]
async fn an_answer_with_upgrade_says_so_in_connection() {
    fn required() -> Answer {
        let mut answer = refused_as(StatusCode::UPGRADE_REQUIRED, &bad_request("Upgrade."));
        let headers = answer.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("shout"));
        answer
    }
    let server = Server::start(
        &json!({}),
        &[
            ("/up", Arc::new(Says(required))),
            ("/up/last", Arc::new(Says(|| closing(required())))),
        ],
    );
    for (path, options) in [
        ("/up", vec!["upgrade"]),
        ("/up/last", vec!["upgrade", "close"]),
    ] {
        // hyper writes the answers to those that ask for an upgrade.
        for lines in ["", "Connection: upgrade\r\nUpgrade: shout\r\n"] {
            let mut client = server.connect().await;
            let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n");
            client.say(&request).await;
            let reply = client.reply().await;
            assert_eq!(reply.status, 426, "{request}");
            assert!(reply.head.contains("\r\nupgrade: shout\r\n"), "{reply:?}");
            let told: Vec<_> = reply
                .head
                .lines()
                .filter_map(|line| line.strip_prefix("connection: "))
                .flat_map(|line| line.split(", "))
                .collect();
            assert_eq!(told, options, "{request}");
            if options.contains(&"close") {
                assert!(client.is_closed().await, "{request}");
            } else {
                client.say(GET).await;
                assert_eq!(client.reply().await.status, 200, "{request}");
            }
        }
    }
}

/// As clients ask that would rather speak HTTP/2.
const HTTP2_WISH: &str =
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n";

#[tokio::test]
async fn a_connection_goes_on_after_an_upgrade_that_nobody_made() {
    for first in [GET, &post("x")] {
        let (held, mut begun) = Held::new("{}");
        let server = Server::start(&json!({}), &[("/held", held.clone())]);
        let mut client = server.connect().await;
        client
            .say(&first.replacen("\r\n\r\n", &format!("\r\n{HTTP2_WISH}\r\n"), 1))
            .await;
        assert_eq!(client.reply().await.status, 200);
        client.say(GET).await;
        let again = tokio::time::timeout(Duration::from_secs(10), client.reply()).await;
        assert_eq!(again.expect("it is answered").status, 200);
        client.say(&post("two")).await;
        assert_eq!(client.reply().await.object()["body"], "two");
        client
            .say("GET /held HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await;
        begun.recv().await.unwrap();
        held.go.cancel();
        assert_eq!(client.reply().await.status, 200);
    }
}

#[tokio::test]
async fn where_an_upgrade_was_offered_the_last_answer_still_arrives() {
    let much = "x".repeat(8 << 20);
    let length = much.len();
    let too_large = format!(
        "POST /echo HTTP/1.1\r\nHost: localhost\r\n{HTTP2_WISH}Content-Length: {length}\r\n\r\n{much}"
    );
    let too_long = format!("GET /echo HTTP/1.1\r\nHost: localhost\r\nX-Filler: {much}\r\n\r\n");
    let broken = format!("NO\r\n\r\n{much}");
    let server = Server::start(&json!({}), &[]);
    for (last, status) in [(&too_large, 413), (&too_long, 431), (&broken, 400)] {
        // As many as it takes for an answer that is lost now and then to be missed.
        for _ in 0..5 {
            let mut client = server.connect().await;
            client
                .say(&GET.replacen("\r\n\r\n", &format!("\r\n{HTTP2_WISH}\r\n"), 1))
                .await;
            assert_eq!(client.reply().await.status, 200);
            client.say(last).await;
            assert_eq!(client.reply().await.status, status);
            let mut rest = Vec::new();
            client.0.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"", "{status}");
        }
    }
}

#[tokio::test]
async fn nothing_follows_a_websocket_that_was_not_opened() {
    let server = Server::start(&json!({}), &[]);
    let filled = Arc::new(Fills(Template::new(json(StatusCode::CREATED, ""))));
    server
        .listener
        .claim("/template".to_owned(), filled)
        .unwrap();
    for (target, host, status) in [
        ("/echo", "localhost", 200),
        ("/template", "localhost", 201),
        ("/nothing", "localhost", 404),
        ("/", "localhost", 404),
        ("/echo", "evil.example", 421),
    ] {
        for (version, protocol) in [
            ("1.1", "websocket"),
            ("1.1", "WebSocket"),
            ("1.1", "h2c, websocket/13"),
            ("1.1", "h2c\r\nUpgrade: websocket"),
            ("1.0", "websocket"),
        ] {
            let request = format!(
                "GET {target} HTTP/{version}\r\nHost: {host}\r\nConnection: upgrade, keep-alive\r\n\
                 Upgrade: {protocol}\r\n\r\n"
            );
            let mut client = server.connect().await;
            client.say(&format!("{request}{GET}")).await;
            let reply = client.reply().await;
            assert_eq!(reply.status, status, "{request}");
            let closes = reply.head.matches("\r\nconnection: close\r\n").count();
            // Of version 1.0 that goes without saying.
            assert_eq!(closes, usize::from(version == "1.1"), "{request}{reply:?}");
            let mut rest = Vec::new();
            client.0.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"", "{request}");
        }
    }
}

#[tokio::test]
async fn the_preface_of_http2_is_counted() {
    let server = Server::start(&json!({}), &[]);
    for _ in 0..2 {
        let mut client = server.connect().await;
        client.say("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        let mut rest = Vec::new();
        client.0.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"");
    }
    // Whoever goes in the middle of a head has asked for nothing bad.
    let mut client = server.connect().await;
    client.say("GET /echo HT").await;
    drop(client);
    server.record.until(|seen| seen.open == 0).await;
    assert_eq!(server.record.seen().refused, [RefusedReason::BadRequest; 2]);
}

#[tokio::test]
async fn a_panic_costs_one_request() {
    let server = Server::start(&json!({}), &[("/panic", Arc::new(Panics))]);
    let mut client = server.connect().await;
    client
        .say("GET /panic HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.code().as_str()), (500, "internal"));
    client.say(GET).await;
    assert_eq!(client.reply().await.status, 200);
}

#[tokio::test]
async fn too_long_a_body_is_answered_before_it_comes() {
    let server = Server::start(&json!({}), &[]);
    // Nothing of the body is ever sent.
    let head = "POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1001\r\n\r\n";
    let reply = server.ask(head).await;
    assert_eq!((reply.status, reply.code().as_str()), (413, "too_large"));
    let expecting = "POST /echo HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 1001\r\n\r\n";
    assert_eq!(
        server.ask(expecting).await.status,
        413,
        "and no 100 before it"
    );
    // A chunked body is cut where it passes the limit.
    let mut client = server.connect().await;
    client
        .say("POST /echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    client
        .say(&format!("3e8\r\n{}\r\n", "x".repeat(1000)))
        .await;
    client.say("1\r\nx\r\n").await;
    assert_eq!(client.reply().await.status, 413);
    // What fits, fits.
    assert_eq!(server.ask(&post(&"x".repeat(1000))).await.status, 200);
}

#[tokio::test]
async fn an_answer_tells_whether_the_connection_stays_when_a_body_was_not_read() {
    let refusing = || refused(&Refusal::new(ErrorCode::Forbidden, "No."));
    let routes: [(&str, Arc<dyn HttpRoute>); 2] = [
        ("/no", Arc::new(Says(refusing))),
        ("/yes", Arc::new(Says(empty))),
    ];
    let server = Server::start(&json!({}), &routes);
    // Where nobody serves, what no route is asked about, and routes that look at no body, or at its length alone.
    for (path, lines, status) in [
        ("/echo", "Host: evil.example\r\n", 421),
        ("/nothing", "Host: localhost\r\n", 404),
        (
            "/echo",
            "Host: localhost\r\nContent-Encoding: gzip\r\n",
            415,
        ),
        ("/no", "Host: localhost\r\n", 403),
        ("/yes", "Host: localhost\r\n", 204),
        ("/echo", "Host: localhost\r\n", 413),
    ] {
        for expects in ["", "Expect: 100-continue\r\n"] {
            let head =
                format!("POST {path} HTTP/1.1\r\n{lines}{expects}Content-Length: 2000\r\n\r\n");
            for sent in [0, 1000] {
                let mut client = server.connect().await;
                client.say(&format!("{head}{}", "x".repeat(sent))).await;
                let reply = client.reply().await;
                assert_eq!(reply.status, status, "{head}");
                assert!(
                    reply.head.contains("\r\nconnection: close\r\n"),
                    "{head}{sent} bytes: {reply:?}"
                );
                assert!(client.is_closed().await, "{head}");
            }
            // With all of it there, there is no need to close.
            let mut client = server.connect().await;
            client.say(&format!("{head}{}", "x".repeat(2000))).await;
            let reply = client.reply().await;
            assert_eq!(reply.status, status, "{head}");
            assert!(!reply.head.contains("connection:"), "{head}{reply:?}");
            client.say(GET).await;
            assert_eq!(client.reply().await.status, 200, "{head}");
        }
    }
}

#[tokio::test]
async fn a_client_that_sends_before_it_reads_gets_its_answer() {
    let server = Server::start(&json!({}), &[]);
    let mut client = server.connect().await;
    let body = "x".repeat(8 << 20);
    client.say(&post(&body)).await;
    assert_eq!(client.reply().await.status, 413);
    assert!(client.is_closed().await);
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_closed() {
    let server = Server::start(&json!({ "first_byte_timeout": "3s" }), &[]);
    let begun = chinwag_core::clock::now();
    assert!(server.connect().await.is_closed().await);
    assert_eq!(begun.elapsed(), Duration::from_secs(3));
    let seen = server.record.until(|seen| seen.open == 0).await;
    assert_eq!(seen.refused, [RefusedReason::FirstByteTimeout]);
}

#[tokio::test(start_paused = true)]
async fn half_a_head_is_closed_at_its_limit() {
    let config = json!({ "first_byte_timeout": "60s", "header_timeout": "4s" });
    let server = Server::start(&config, &[]);
    let mut client = server.connect().await;
    client.say("GET /echo HTTP/1.1\r\nHo").await;
    assert!(client.is_closed().await);
    let seen = server.record.until(|seen| seen.open == 0).await;
    assert_eq!(seen.refused, [RefusedReason::HeaderTimeout]);

    // The same behind a good request.
    let mut client = server.connect().await;
    client.say(&format!("{}G", post("x"))).await;
    assert_eq!(client.reply().await.status, 200);
    client.say("ET").await;
    assert!(client.is_closed().await);
    server.record.until(|seen| seen.open == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_stranger_may_not_rest_as_long_as_a_client() {
    let server = Server::start(&json!({ "first_byte_timeout": "3s" }), &[]);
    for (request, status, rest) in [
        (GET, 200, 75),
        ("GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, 3),
    ] {
        let mut client = server.connect().await;
        client.say(request).await;
        assert_eq!(client.reply().await.status, status);
        let begun = chinwag_core::clock::now();
        assert!(client.is_closed().await);
        assert_eq!(begun.elapsed(), Duration::from_secs(rest), "{request}");
    }
    assert_eq!(server.record.seen().refused, [RefusedReason::NotFound]);
}

#[tokio::test(start_paused = true)]
async fn half_a_body_is_answered_at_its_limit() {
    let server = Server::start(&json!({}), &[]);
    let mut client = server.connect().await;
    client
        .say("POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf")
        .await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.code().as_str()), (408, "bad_request"));
    assert!(client.is_closed().await);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_reads_ends_the_connection() {
    let (held, mut begun) = Held::new(vec![b' '; 64 << 20]);
    held.go.cancel();
    let config = json!({ "write_timeout": "5s" });
    let server = Server::start(&config, &[("/held", held)]);
    let mut client = server.connect().await;
    client
        .say("GET /held HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    begun.recv().await.unwrap();
    let began = chinwag_core::clock::now();
    server
        .record
        .until(|seen| seen.accepted == 1 && seen.open == 0)
        .await;
    assert!(began.elapsed() >= Duration::from_secs(5));
    assert_eq!(server.record.seen().refused, [RefusedReason::WriteTimeout]);
}

#[tokio::test]
async fn a_body_in_a_coding_is_not_taken_for_what_it_is_not() {
    let server = Server::start(&json!({}), &[]);
    for (lines, status) in [
        ("Content-Encoding: gzip\r\n", 415),
        ("Content-Encoding: identity, br\r\n", 415),
        ("Content-Encoding: identity\r\nContent-Encoding: x\r\n", 415),
        ("Content-Encoding: Identity\r\n", 200),
        ("Content-Encoding: \r\n", 200),
    ] {
        let refused = server.record.seen().refused.len();
        let request = post("x").replacen("\r\n", &format!("\r\n{lines}"), 1);
        let reply = server.ask(&request).await;
        assert_eq!(reply.status, status, "{lines}");
        if status == 415 {
            assert_eq!(reply.code(), "bad_request", "{lines}");
            assert!(
                reply.head.contains("accept-encoding: identity"),
                "{reply:?}"
            );
            let seen = server.record.seen().refused;
            assert_eq!(seen[refused..], [RefusedReason::BadRequest], "{lines}");
        }
    }
}

#[tokio::test]
async fn a_client_that_goes_away_drops_its_request() {
    let (held, mut begun) = Held::new("{}");
    let server = Server::start(&json!({}), &[("/held", held)]);
    let mut client = server.connect().await;
    client
        .say("GET /held HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    let request = begun.recv().await.unwrap();
    assert!(!request.0.is_cancelled());
    drop(client);
    request.0.cancelled().await;
    server.record.until(|seen| seen.open == 0).await;
}

/// Upgrades to a protocol that repeats what it hears in upper case.
struct Upgrades(Lifecycle);

#[async_trait]
impl HttpRoute for Upgrades {
    async fn handle(&self, mut request: Request<Incoming>, peer: &HttpPeer) -> Answer {
        let permit = match peer.admit_upgrade() {
            Ok(permit) => permit,
            Err(refusal) => return refused(&refusal),
        };
        let upgrade = upgraded(&mut request);
        self.0.spawn(async move {
            let Some((mut socket, early)) = upgrade.await else {
                return;
            };
            socket.write_all(&early.to_ascii_uppercase()).await.unwrap();
            let mut bytes = [0; 64];
            while let Ok(read @ 1..) = socket.read(&mut bytes).await {
                let heard = bytes[..read].to_ascii_uppercase();
                socket.write_all(&heard).await.unwrap();
            }
            drop(permit);
        });
        let mut answer = json(StatusCode::SWITCHING_PROTOCOLS, "");
        let headers = answer.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("shout"));
        answer
    }
}

const UPGRADE: &str =
    "GET /up HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: shout\r\n";

#[tokio::test]
async fn an_upgrade_yields_the_socket_and_what_was_read_early() {
    let lifecycle = Lifecycle::new();
    let upgrades = Arc::new(Upgrades(lifecycle.clone()));
    let server = Server::start(&json!({}), &[("/up", upgrades)]);
    let mut client = server.connect().await;
    client.say(&format!("{UPGRADE}\r\nearly ")).await;
    assert_eq!(client.reply().await.status, 101);
    client.say("late").await;
    let mut heard = [0; 10];
    client.0.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"EARLY LATE");
    // The listener goes, the upgraded connection stays and stays counted.
    server.record.drain();
    server.listener.shared.stopped.cancelled().await;
    client.say("r").await;
    assert_eq!(client.0.read_u8().await.unwrap(), b'R');
    assert_eq!(server.record.seen().open, 1);
    drop(client);
    server.record.until(|seen| seen.open == 0).await;
}

#[tokio::test]
async fn behind_a_proxy_line_http_is_as_ever() {
    let config = json!({ "client_address": "proxy-protocol", "proxies": ["127.0.0.1"] });
    let server = Server::start(&config, &[]);
    let line = "PROXY TCP4 203.0.113.7 192.0.2.1 1 2\r\n";
    let reply = server.ask(&format!("{line}{}", post("x"))).await;
    let object = reply.object();
    assert_eq!(object["from"], "203.0.113.7");
    assert_eq!(object["body"], "x");
    assert_eq!(
        server.record.seen().received,
        post("x").len(),
        "less the proxy's line"
    );
}

fn forwarding() -> serde_json::Value {
    json!({
        "client_address": "x-forwarded-for",
        "proxies": ["127.0.0.1"],
        "max_connections_per_ip": 1,
    })
}

#[tokio::test]
async fn a_forwarded_client_is_known_by_each_request() {
    let server = Server::start(&forwarding(), &[]);
    let mut proxy = server.connect().await;
    for (lines, from, secure) in [
        (
            "X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\n",
            "203.0.113.7",
            true,
        ),
        (
            "X-Forwarded-For: 203.0.113.8\r\nX-Forwarded-Proto: http\r\n",
            "203.0.113.8",
            false,
        ),
        (
            "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https, http\r\n",
            "203.0.113.9",
            false,
        ),
        ("", "127.0.0.1", false),
    ] {
        proxy
            .say(&format!(
                "GET /echo HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n"
            ))
            .await;
        let object = proxy.reply().await.object();
        assert_eq!(
            (&object["from"], &object["secure"]),
            (&json!(from), &json!(secure)),
            "{lines}"
        );
    }
    let open = server.record.seen();
    assert_eq!(open.open, 1);
    assert!(open.asked.is_empty(), "a proxy's connection is nobody's");

    // Somebody else's headers say nothing.
    let config = json!({ "client_address": "x-forwarded-for", "proxies": ["192.0.2.1"] });
    let server = Server::start(&config, &[]);
    let reply = server
        .ask("GET /echo HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\n\r\n")
        .await;
    let object = reply.object();
    assert_eq!(
        (&object["from"], &object["secure"]),
        (&json!("127.0.0.1"), &json!(false))
    );
}

#[tokio::test]
async fn an_upgrade_counts_against_the_forwarded_client() {
    let lifecycle = Lifecycle::new();
    let upgrades = Arc::new(Upgrades(lifecycle.clone()));
    let server = Server::start(&forwarding(), &[("/up", upgrades)]);
    let request = |from: &str| format!("{UPGRADE}X-Forwarded-For: {from}\r\n\r\n");
    let mut first = server.connect().await;
    first.say(&request("203.0.113.7")).await;
    assert_eq!(first.reply().await.status, 101);
    let second = server.ask(&request("203.0.113.7")).await;
    assert_eq!((second.status, second.code().as_str()), (429, "too_many"));
    assert!(second.head.contains("retry-after: 1"), "{second:?}");
    let mut other = server.connect().await;
    other.say(&request("203.0.113.8")).await;
    assert_eq!(other.reply().await.status, 101);

    let asked = server.record.seen().asked;
    let asked: Vec<_> = asked.iter().map(|peer| peer.address.to_string()).collect();
    assert_eq!(asked, ["203.0.113.7", "203.0.113.8"]);
    server.record.admit_nobody();
    let third = server.ask(&request("203.0.113.9")).await;
    assert_eq!((third.status, third.code().as_str()), (429, "rate_limited"));
    assert!(third.head.contains("retry-after: 2"), "{third:?}");

    drop(first);
    server.record.until(|seen| seen.open <= 1).await;
}

#[tokio::test]
async fn a_drain_answers_until_nobody_is_left_to_be_told() {
    let (held, mut begun) = Held::new("{\"events\":[]}");
    let server = Server::start(&json!({}), &[("/held", held.clone())]);
    let mut idle = server.connect().await;
    idle.say(GET).await;
    assert_eq!(idle.reply().await.status, 200);
    let mut waiting = server.connect().await;
    waiting
        .say("GET /held HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    begun.recv().await.unwrap();
    let mut half = server.connect().await;
    half.say("GET /echo HTT").await;
    server.record.until(|seen| seen.open == 3).await;

    // The server drains; clients that poll still connect and are answered.
    server.lifecycle.drain();
    assert_eq!(server.ask(GET).await.status, 200);
    idle.say(GET).await;
    assert_eq!(idle.reply().await.status, 200);
    assert!(!server.listener.shared.stopped.is_cancelled());

    // Everybody was told: what rests is closed, what is under way is finished.
    server.record.drain();
    assert!(idle.is_closed().await);
    assert!(half.is_closed().await);
    assert_eq!(
        TcpStream::connect(server.listener.local_addr())
            .await
            .unwrap_err()
            .kind(),
        io::ErrorKind::ConnectionRefused
    );
    held.go.cancel();
    let last = waiting.reply().await;
    assert_eq!(last.status, 200);
    assert!(last.head.contains("connection: close"), "{last:?}");
    assert!(waiting.is_closed().await);
    assert_eq!(server.lifecycle.shut_down(Duration::from_secs(10)).await, 0);
}

#[tokio::test(start_paused = true)]
async fn half_a_request_never_holds_a_shutdown() {
    let (held, mut begun) = Held::new("{}");
    let server = Server::start(&json!({ "body_timeout": "30s" }), &[("/held", held)]);
    let mut stuck = server.connect().await;
    stuck
        .say("GET /held HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    begun.recv().await.unwrap();
    server.record.drain();
    server.lifecycle.drain();
    let began = chinwag_core::clock::now();
    assert_eq!(server.lifecycle.shut_down(Duration::from_secs(10)).await, 0);
    assert_eq!(began.elapsed(), socket::LAST_WORDS);
}

#[tokio::test]
async fn transports_share_a_bind_and_not_a_path() {
    let binds = Binds::default();
    let lifecycle = Lifecycle::new();
    let config = Arc::new(listener(&json!({})));
    let name = |text: &str| Arc::<str>::from(text);
    let bind = |text| {
        let made = || {
            HttpListener::new(
                name(text),
                Arc::clone(&config),
                None,
                Record::new(),
                lifecycle.clone(),
            )
        };
        binds.listener(&name(text), &config, made).unwrap()
    };
    let (web, poll) = (bind("web"), bind("poll"));
    assert_eq!(web.local_addr(), poll.local_addr(), "port 0, written twice");
    web.route("/v1/ws", Arc::new(Echo)).unwrap();
    poll.route("/v1/events", Arc::new(Echo)).unwrap();
    let taken = poll.route("/v1/ws", Arc::new(Echo)).unwrap_err();
    assert_eq!(
        taken.to_string(),
        "transports.poll: path \"/v1/ws\" of this bind is taken by another transport"
    );
    let (one, other) = (web.clone(), poll.clone());
    lifecycle.spawn(async move { one.serve().await });
    lifecycle.spawn(async move { other.serve().await });
    for path in ["/v1/ws", "/v1/events"] {
        let socket = TcpStream::connect(web.local_addr()).await.unwrap();
        let mut client = Client(socket);
        client
            .say(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
            .await;
        assert_eq!(client.reply().await.status, 200, "{path}");
    }
}

/// Answers at once with what it was made with.
struct Says(fn() -> Answer);

#[async_trait]
impl HttpRoute for Says {
    async fn handle(&self, _request: Request<Incoming>, _peer: &HttpPeer) -> Answer {
        (self.0)()
    }
}

/// Fills in what is left of an answer.
struct Fills(Arc<Template>);

impl Route for Fills {
    fn answer(self: Arc<Self>, _request: Request<Incoming>, _peer: HttpPeer) -> Coming {
        Box::pin(ready(self.0.fill(Bytes::from_static(b"[1]"))))
    }
}

#[tokio::test]
async fn an_answer_by_a_template_is_what_it_would_be_by_itself() {
    fn answer() -> Answer {
        let mut answer = json(StatusCode::CREATED, "[1]");
        let headers = answer.headers_mut();
        headers.remove(header::CACHE_CONTROL);
        headers.insert(header::VARY, HeaderValue::from_static("Origin"));
        answer
    }
    fn last() -> Answer {
        closing(answer())
    }
    let server = Server::start(
        &json!({}),
        &[
            ("/own", Arc::new(Says(answer))),
            ("/own/last", Arc::new(Says(last))),
        ],
    );
    for (path, answer) in [("/template", answer()), ("/template/last", last())] {
        let fills = Arc::new(Fills(Template::new(answer)));
        server.listener.claim(path.to_owned(), fills).unwrap();
    }
    // hyper writes the answers to those of version 1.0.
    for version in ["1.1", "1.0"] {
        for path in ["", "/last"] {
            let mut replies = Vec::new();
            for way in ["/own", "/template"] {
                let mut client = server.connect().await;
                let request = format!("GET {way}{path} HTTP/{version}\r\nHost: localhost\r\n\r\n");
                client.say(&request).await;
                let reply = client.reply().await;
                assert_eq!((reply.status, reply.body.as_str()), (201, "[1]"));
                assert!(reply.head.contains("cache-control: no-store"), "{reply:?}");
                let stays = path.is_empty() && version == "1.1";
                if stays {
                    client.say(GET).await;
                    assert_eq!(client.reply().await.status, 200, "{request}");
                } else {
                    assert!(client.is_closed().await, "{request}");
                }
                let lines = reply
                    .head
                    .lines()
                    .filter(|line| !line.starts_with("date: "));
                replies.push(lines.map(str::to_owned).collect::<Vec<_>>());
            }
            assert_eq!(replies[0], replies[1]);
        }
    }
}

#[tokio::test]
async fn an_answer_looks_alike_whoever_writes_it() {
    let server = Server::start(&json!({}), &[]);
    // hyper writes the answers to the last two, which it also closes after.
    let mut heads = Vec::new();
    for request in [
        GET,
        "GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: Keep-Alive\r\n\r\n",
        "GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        "GET /echo HTTP/1.0\r\nHost: localhost\r\n\r\n",
    ] {
        let mut client = server.connect().await;
        client.say(request).await;
        let reply = client.reply().await;
        assert_eq!(reply.status, 200, "{request}");
        assert_eq!(reply.object()["body"], "", "{request}");
        let (_, date) = reply.head.split_once("\r\ndate: ").unwrap();
        let date = date.lines().next().unwrap();
        assert!(date.len() == 29 && date.ends_with(" gmt"), "{date}");
        let mut lines: Vec<String> = reply
            .head
            .lines()
            .skip(1)
            .filter(|line| !line.starts_with("date: ") && !line.starts_with("connection: "))
            .map(str::to_owned)
            .collect();
        lines.sort_unstable();
        heads.push(lines);
        if request.contains("close") || request.contains("1.0") {
            assert!(client.is_closed().await, "{request}");
        } else {
            client.say(GET).await;
            assert_eq!(client.reply().await.status, 200, "it stays open");
        }
    }
    heads.dedup();
    assert_eq!(heads.len(), 1, "{heads:?}");
}

#[tokio::test]
async fn an_answer_without_a_body_has_no_length_and_one_that_closes_does() {
    let last = || closing(json(StatusCode::OK, "{}"));
    let server = Server::start(
        &json!({}),
        &[
            ("/empty", Arc::new(Says(empty))),
            ("/last", Arc::new(Says(last))),
        ],
    );
    let mut client = server.connect().await;
    client
        .say("OPTIONS /empty HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    let reply = client.reply().await;
    assert_eq!(reply.status, 204);
    assert!(!reply.head.contains("content-length"), "{reply:?}");
    client
        .say("GET /last HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "{}"));
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn what_is_ours_to_say_of_an_answer_is_said_once() {
    fn says(lines: &[(header::HeaderName, &'static str)]) -> Answer {
        let mut answer = json(StatusCode::OK, "{}");
        for (name, value) in lines {
            let value = HeaderValue::from_static(value);
            answer.headers_mut().append(name, value);
        }
        answer
    }
    let wordy = || {
        says(&[
            (header::TRANSFER_ENCODING, "chunked"),
            (header::CONTENT_LENGTH, "7"),
            (header::DATE, "yesterday"),
        ])
    };
    let list = || says(&[(header::CONNECTION, "keep-alive, Close")]);
    let lines = || says(&[(header::CONNECTION, "x-own"), (header::CONNECTION, "CLOSE")]);
    let other = || says(&[(header::CONNECTION, "closer, disclose")]);
    let server = Server::start(
        &json!({}),
        &[
            ("/wordy", Arc::new(Says(wordy))),
            ("/list", Arc::new(Says(list))),
            ("/lines", Arc::new(Says(lines))),
            ("/other", Arc::new(Says(other))),
        ],
    );
    for (path, closes) in [
        ("/wordy", false),
        ("/list", true),
        ("/lines", true),
        ("/other", false),
    ] {
        let mut client = server.connect().await;
        client
            .say(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
            .await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.body.as_str()), (200, "{}"), "{path}");
        let head = &reply.head;
        assert!(!head.contains("transfer-encoding"), "{head}");
        assert!(!head.contains("yesterday"), "{head}");
        for line in ["\r\ndate: ", "\r\ncontent-length: "] {
            assert_eq!(head.matches(line).count(), 1, "{head}");
        }
        if closes {
            assert!(client.is_closed().await, "{path}");
        } else {
            client.say(GET).await;
            assert_eq!(client.reply().await.status, 200, "{path}");
        }
    }
}

#[tokio::test]
async fn a_long_answer_arrives_whole() {
    let long = || json(StatusCode::OK, vec![b' '; 3 << 20]);
    let server = Server::start(&json!({}), &[("/long", Arc::new(Says(long)))]);
    let mut client = server.connect().await;
    for _ in 0..2 {
        client
            .say("GET /long HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await;
        assert_eq!(client.reply().await.body.len(), 3 << 20);
    }
}

#[tokio::test]
async fn an_answer_that_is_being_written_when_the_server_stops_arrives_whole() {
    const LONG: usize = 2 << 20;
    let lasts = [
        "Connection: close",
        "Upgrade: websocket\r\nConnection: Upgrade",
    ];
    for (last, stops_before) in lasts
        .into_iter()
        .flat_map(|last| [(last, false), (last, true)])
    {
        let (held, mut begun) = Held::new(vec![b' '; LONG]);
        let server = Server::start(&json!({}), &[("/held", held.clone())]);
        let stop = || {
            server.record.drain();
            server.lifecycle.drain();
        };
        let mut client = server.connect().await;
        client
            .say(&format!(
                "GET /held HTTP/1.1\r\nHost: localhost\r\n{last}\r\n\r\n"
            ))
            .await;
        begun.recv().await.unwrap();
        if stops_before {
            stop();
        }
        held.go.cancel();
        // Some of it is there, and the rest waits for this client to read.
        client.0.peek(&mut [0]).await.unwrap();
        if !stops_before {
            stop();
        }
        assert_eq!(client.reply().await.body.len(), LONG, "{last}");
        assert!(client.is_closed().await);
    }
}

#[tokio::test]
async fn a_client_that_says_no_more_still_gets_its_answer() {
    let server = Server::start(&json!({}), &[]);
    let mut client = server.connect().await;
    client.say(GET).await;
    client.0.shutdown().await.unwrap();
    assert_eq!(client.reply().await.status, 200);
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn what_comes_while_a_request_waits_is_answered_after_it() {
    let (held, mut begun) = Held::new("{\"held\":true}");
    let server = Server::start(&json!({}), &[("/held", held.clone())]);
    let mut client = server.connect().await;
    client
        .say("GET /held HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .await;
    begun.recv().await.unwrap();
    let two = format!("{}{GET}", post("two"));
    let (some, rest) = two.split_at(20);
    client.say(some).await;
    // Until the server has it.
    let so_far = "GET /held HTTP/1.1\r\nHost: localhost\r\n\r\n".len() + 20;
    server.record.until(|seen| seen.received == so_far).await;
    client.say(rest).await;
    held.go.cancel();
    assert_eq!(client.reply().await.object()["held"], true);
    for expected in ["two", ""] {
        assert_eq!(client.reply().await.object()["body"], expected);
    }
    let sent = so_far - 20 + two.len();
    assert_eq!(server.record.seen().received, sent, "none is counted twice");
}

/// Answers before the body is there, and keeps the body.
struct PutsAside(mpsc::Sender<Incoming>);

#[async_trait]
impl HttpRoute for PutsAside {
    async fn handle(&self, request: Request<Incoming>, _peer: &HttpPeer) -> Answer {
        self.0.send(request.into_body()).await.unwrap();
        json(StatusCode::OK, "{}")
    }
}

#[tokio::test(start_paused = true)]
async fn the_rest_of_a_body_is_never_taken_for_a_request() {
    let (keep, mut kept) = mpsc::channel(4);
    let server = Server::start(&json!({}), &[("/aside", Arc::new(PutsAside(keep)))]);
    for is_dropped in [false, true] {
        let mut client = server.connect().await;
        let length = GET.len() + 1;
        client
            .say(&format!(
                "POST /aside HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\nx"
            ))
            .await;
        assert_eq!(client.reply().await.status, 200);
        let body = kept.recv().await.filter(|_| !is_dropped);
        // The server may have closed already.
        let _ = client.0.write_all(GET.as_bytes()).await;
        assert!(client.is_closed().await, "and no other answer");
        drop(body);
    }
}
