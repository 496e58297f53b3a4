//! Polling against a server whose answers come in whatever order a test wants, or not at all.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use chinwag_client::{Client, End, EndCode, Error, ErrorCode, Event, Login, Loss, Options};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

const PATIENCE: Duration = Duration::from_secs(10);

/// A request, and the way to answer it.
struct Asked {
    /// Method and target.
    what: String,
    body: String,
    answer: oneshot::Sender<(u16, String)>,
}

impl Asked {
    fn answer(self, status: u16, body: &str) {
        self.answer.send((status, body.into())).unwrap();
    }

    /// The `id` of the command in it.
    fn id(&self) -> String {
        let (_, id) = self.body.split_once("\"id\":").unwrap();
        id.chars().take_while(char::is_ascii_digit).collect()
    }
}

/// A server that hands every request to the test. Dropping one closes its connection.
struct Server {
    url: String,
    asked: mpsc::Receiver<Asked>,
    _connections: JoinSet<()>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/base", listener.local_addr().unwrap());
        let (to, asked) = mpsc::channel(16);
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let mut each = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                each.spawn(serve(stream, to.clone()));
            }
        });
        Self {
            url,
            asked,
            _connections: connections,
        }
    }

    async fn next(&mut self) -> Asked {
        let asked = timeout(PATIENCE, self.asked.recv()).await;
        asked.expect("a request").unwrap()
    }

    /// The next request, which is this one.
    async fn expect(&mut self, what: &str) -> Asked {
        let asked = self.next().await;
        assert_eq!(asked.what, what, "{}", asked.body);
        asked
    }

    /// Somebody who is logged in, and their first poll.
    async fn log_in(&mut self) -> (Client, Asked) {
        let options = Options {
            answer_timeout: Duration::from_secs(5),
            poll_wait: Duration::from_secs(7),
            ..Options::default()
        };
        let client = Client::connect(&self.url, options).await.unwrap();
        let welcome = async {
            let asked = self.expect("POST /base/v1/session").await;
            let id = asked.id();
            asked.answer(
                201,
                &format!(r#"{{"type":"session","id":{id},"session":"K3","user":"ada"}}"#),
            );
            self.expect(&poll(0)).await
        };
        let (session, poll) = tokio::join!(client.login(Login::name("ada")), welcome);
        session.unwrap();
        (client, poll)
    }
}

fn poll(ack: u64) -> String {
    format!("GET /base/v1/events?ack={ack}&wait=7&max=100")
}

async fn serve(stream: TcpStream, to: mpsc::Sender<Asked>) {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut what, mut length, mut line) = (String::new(), 0, String::new());
        loop {
            line.clear();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            let text = line.trim_end();
            if text.is_empty() {
                break;
            }
            if what.is_empty() {
                text.trim_end_matches(" HTTP/1.1").clone_into(&mut what);
            }
            if let Some(value) = text.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        let (answer, answered) = oneshot::channel();
        let body = String::from_utf8(body).unwrap();
        if to.send(Asked { what, body, answer }).await.is_err() {
            return;
        }
        let Ok((status, body)) = answered.await else {
            return;
        };
        let answer = format!(
            "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        if stream.get_mut().write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn next(client: &mut Client) -> Result<Event, End> {
    timeout(PATIENCE, client.next()).await.expect("an event")
}

fn message(seq: u64) -> String {
    format!(r#"{{"type":"message","room":"r","seq":{seq},"at":0,"user":"bob","text":"x"}}"#)
}

fn page(first: u64, events: &[String]) -> String {
    let next = first + events.len() as u64;
    let events = events.join(",");
    format!(r#"{{"events":[{events}],"first":{first},"next":{next}}}"#)
}

#[tokio::test]
async fn events_that_overtake_the_init_wait_for_it() {
    let mut server = Server::start().await;
    let (mut client, waiting) = server.log_in().await;
    let answer = async {
        let join = server.expect("POST /base/v1/commands").await;
        waiting.answer(200, &page(1, &[message(18), message(19), message(20)]));
        // Time for the events to be given out, if that were not wrong.
        sleep(Duration::from_millis(50)).await;
        let id = join.id();
        join.answer(
            200,
            &format!(
                r#"{{"type":"init","id":{id},"room":"r","presence":"each","epoch":"e","seq":18}}"#
            ),
        );
        server.expect(&poll(4)).await
    };
    let (init, waiting) = tokio::join!(client.join("r"), answer);
    assert_eq!(init.unwrap().seq, 18);
    assert!(matches!(next(&mut client).await, Ok(Event::Init(init)) if init.seq == 18));
    for seq in [19, 20] {
        let event = next(&mut client).await.unwrap();
        assert!(
            matches!(&event, Event::Message(message) if message.seq == seq),
            "{event:?}"
        );
    }
    let leave = async {
        let leave = server.expect("POST /base/v1/commands").await;
        let id = leave.id();
        leave.answer(200, &format!(r#"{{"type":"left","id":{id},"room":"r"}}"#));
    };
    let (left, ()) = tokio::join!(client.leave("r"), leave);
    left.unwrap();
    let bye = r#"{"type":"bye","code":"kicked","message":"out","retry_ms":null}"#;
    waiting.answer(200, &page(4, &[message(21), bye.into()]));
    assert!(matches!(next(&mut client).await, Ok(Event::Left(_))));
    let end = next(&mut client).await.unwrap_err();
    assert!(
        matches!(&end, End::Bye(bye) if bye.code == EndCode::Kicked),
        "nothing of the room comes after: {end:?}"
    );
}

#[tokio::test]
async fn a_poll_whose_answer_is_lost_is_asked_again_and_a_command_is_not() {
    let mut server = Server::start().await;
    let (mut client, waiting) = server.log_in().await;
    let signal = r#"{"type":"error","code":"internal","message":"first"}"#.to_owned();
    waiting.answer(200, &page(1, &[signal]));
    assert!(matches!(next(&mut client).await, Ok(Event::Refused(_))));
    // Two in a row, with their connections.
    drop(server.expect(&poll(2)).await);
    drop(server.expect(&poll(2)).await);
    let waiting = server.expect(&poll(2)).await;
    let lose = async {
        drop(server.expect("POST /base/v1/commands").await);
    };
    let (sent, ()) = tokio::join!(client.send("r", "once"), lose);
    assert!(matches!(sent, Err(Error::Lost(Loss::Closed))), "{sent:?}");
    let answer = async {
        let ping = server.expect("POST /base/v1/commands").await;
        assert!(
            ping.body.contains("\"ping\""),
            "not the lost one: {}",
            ping.body
        );
        let id = ping.id();
        ping.answer(200, &format!(r#"{{"type":"pong","id":{id}}}"#));
    };
    let (pong, ()) = tokio::join!(client.handle().ping(), answer);
    pong.unwrap();
    // The third and the fourth in a row.
    drop(waiting);
    drop(server.expect(&poll(2)).await);
    let end = next(&mut client).await.unwrap_err();
    assert!(matches!(end, End::Lost(Loss::Closed)), "{end:?}");
}

#[tokio::test]
async fn the_end_of_a_session_is_told_however_it_is_learnt() {
    let gone = r#"{"type":"error","code":"session_expired","message":"","end":"replaced","retry_ms":null}"#;
    let unknown = r#"{"type":"error","code":"not_logged_in","message":""}"#;
    let superseded = r#"{"events":[],"first":1,"next":1,"superseded":true}"#;
    for (status, body) in [
        (401, gone),
        (401, unknown),
        (200, superseded),
        (200, "what?"),
    ] {
        let mut server = Server::start().await;
        let (mut client, waiting) = server.log_in().await;
        waiting.answer(status, body);
        let end = next(&mut client).await.unwrap_err();
        let right = match &end {
            End::Bye(bye) => body == gone && bye.code == EndCode::Replaced,
            End::Lost(Loss::Forgotten) => body == unknown,
            End::Lost(Loss::Superseded) => body == superseded,
            End::Lost(Loss::Garbled(_)) => status == 200,
            End::Lost(_) => false,
        };
        assert!(right, "{body}: {end:?}");
    }
}

#[tokio::test]
async fn a_poll_that_is_refused_is_repeated_after_a_pause_whatever_the_server_says() {
    let mut server = Server::start().await;
    let (_client, waiting) = server.log_in().await;
    let refused = Instant::now();
    waiting.answer(
        429,
        r#"{"type":"error","code":"rate_limited","message":"","retry_ms":0}"#,
    );
    let _waiting = server.expect(&poll(0)).await;
    assert!(refused.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn what_does_not_fit_its_bound_is_not_read() {
    let mut server = Server::start().await;
    let client = Client::connect(&server.url, Options::default())
        .await
        .unwrap();
    let large = async {
        let asked = server.expect("POST /base/v1/session").await;
        asked.answer(201, &"x".repeat(1 << 20));
    };
    let (session, ()) = tokio::join!(client.login(Login::name("ada")), large);
    assert!(
        matches!(session, Err(Error::Lost(Loss::TooLarge(_)))),
        "{session:?}"
    );
    let refuse = async {
        let asked = server.expect("POST /base/v1/session").await;
        let id = asked.id();
        asked.answer(
            409,
            &format!(r#"{{"type":"error","id":{id},"code":"name_in_use","message":"taken"}}"#),
        );
    };
    let (session, ()) = tokio::join!(client.login(Login::name("ada")), refuse);
    assert!(
        matches!(session, Err(Error::Refused(refusal)) if refusal.code == ErrorCode::NameInUse),
        "and what comes next is another answer"
    );
}

#[tokio::test]
async fn a_client_that_is_dropped_ends_its_session() {
    let mut server = Server::start().await;
    let (client, _waiting) = server.log_in().await;
    drop(client);
    let asked = server.expect("POST /base/v1/commands").await;
    assert_eq!(asked.body, "{\"type\":\"logout\"}");
}
