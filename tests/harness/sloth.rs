//! A member that does not read: what it is sent stays in the server's hands.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

use super::{Http, Over, PATIENCE, Request};

pub(crate) struct Sloth {
    link: Link,
}

enum Link {
    Line(BufReader<TcpStream>),
    Socket(Box<WebSocketStream<TcpStream>>),
    Poll { http: Http, id: String },
}

impl Sloth {
    /// Logs in, joins `room`, reads the `init` and nothing after it. Little hides in this end's kernel.
    pub(crate) async fn join(addr: SocketAddr, over: Over, name: &str, room: &str) -> Self {
        Self::join_with(addr, over, name, room, Some(4096)).await
    }

    /// The same with the system's ordinary receive buffer, or one of `buffer` bytes.
    pub(crate) async fn join_with(
        addr: SocketAddr,
        over: Over,
        name: &str,
        room: &str,
        buffer: Option<u32>,
    ) -> Self {
        let login = json!({"type": "login", "user": name}).to_string();
        let join = json!({"type": "join", "room": room}).to_string();
        let link = match over {
            Over::Tcp => {
                let mut stream = BufReader::new(dial(addr, buffer).await);
                for command in [login, join] {
                    stream
                        .write_all(format!("{command}\n").as_bytes())
                        .await
                        .expect("the server reads");
                    let mut line = String::new();
                    let read = timeout(PATIENCE, stream.read_line(&mut line)).await;
                    assert!(read.is_ok() && !line.contains("error"), "{line}");
                }
                Link::Line(stream)
            }
            Over::WebSocket => {
                let upgrade = client_async(format!("ws://{addr}/v1/ws"), dial(addr, buffer).await);
                let upgraded = timeout(PATIENCE, upgrade)
                    .await
                    .expect("the upgrade is answered");
                let mut socket = upgraded.expect("the server upgrades").0;
                for command in [login, join] {
                    socket
                        .send(Message::text(command))
                        .await
                        .expect("the server reads");
                    let answer = timeout(PATIENCE, socket.next()).await.expect("an answer");
                    let answer = answer.expect("an answer").expect("an answer");
                    assert!(!answer.to_string().contains("error"), "{answer}");
                }
                Link::Socket(Box::new(socket))
            }
            Over::Polling => {
                let mut http = Http::new(addr);
                let session = http
                    .ask(&Request::new("POST", "/v1/session").json(&login))
                    .await
                    .json();
                let id = session["session"].as_str().expect("a session").to_owned();
                let command = Request::new("POST", "/v1/commands").bearer(&id).json(join);
                assert_eq!(http.ask(&command).await.status, 200);
                Link::Poll { http, id }
            }
        };
        Self { link }
    }

    /// The port of its end, by which the server's socket is found in a listing.
    pub(crate) fn port(&self) -> u16 {
        let stream = match &self.link {
            Link::Line(stream) => stream.get_ref(),
            Link::Socket(socket) => socket.get_ref(),
            Link::Poll { .. } => panic!("a polling session has no connection of its own"),
        };
        stream.local_addr().expect("it is connected").port()
    }

    /// Reads again, to the end: how many objects there were, and the last one's `code` if it is a `bye`.
    pub(crate) async fn wake(self) -> (usize, Option<String>) {
        let mut objects = Vec::new();
        let read = async {
            match self.link {
                Link::Line(mut stream) => {
                    let mut line = String::new();
                    while matches!(stream.read_line(&mut line).await, Ok(1..)) {
                        objects.push(std::mem::take(&mut line));
                    }
                }
                Link::Socket(mut socket) => {
                    while let Some(Ok(message)) = socket.next().await {
                        if let Message::Text(text) = message {
                            objects.push(text.to_string());
                        }
                    }
                }
                Link::Poll { mut http, id } => {
                    let poll = Request::new("GET", "/v1/events").bearer(&id);
                    let answer = http.ask(&poll).await.json();
                    let events = answer["events"]
                        .as_array()
                        .cloned()
                        .unwrap_or_else(|| vec![answer]);
                    objects.extend(events.iter().map(ToString::to_string));
                }
            }
        };
        timeout(PATIENCE, read)
            .await
            .expect("the connection of a slow reader is closed");
        let last = objects
            .last()
            .and_then(|last| serde_json::from_str::<serde_json::Value>(last).ok());
        let code = last
            .filter(|last| last["type"] == "bye")
            .map(|bye| super::code(&bye));
        (objects.len(), code)
    }
}

async fn dial(addr: SocketAddr, buffer: Option<u32>) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    if let Some(bytes) = buffer {
        socket.set_recv_buffer_size(bytes).expect("a socket option");
    }
    socket.connect(addr).await.expect("the server listens")
}
