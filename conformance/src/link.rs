//! One client's connection: objects go out, objects come in, and at the end it tells how it was closed.

use std::{io, sync::Arc};

use async_trait::async_trait;
use futures_util::{
    SinkExt, StreamExt,
    future::BoxFuture,
    stream::{SplitSink, SplitStream},
};
use serde_json::{Value, json};
use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf, WriteHalf, split,
};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite::Message};

use crate::{Http, client::CLOSED};

/// A stream of bytes, of whatever make.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Duplex for T {}

/// A [`Duplex`] whose make does not matter any more.
pub type Stream = Box<dyn Duplex>;

/// How to get another stream to the server.
pub type Dial = Arc<dyn Fn() -> BoxFuture<'static, io::Result<Stream>> + Send + Sync>;

/// The client's side of a transport: what writes to the server.
#[async_trait]
pub trait Speak: Send + 'static {
    /// Sends one object, given as JSON without a line feed; or, in some scenarios, a text that is no object at all.
    ///
    /// # Errors
    /// The server does not read any more. What it said before that is for [`Hear`] to tell.
    async fn speak(&mut self, object: &str) -> io::Result<()>;

    /// Says that nothing more will come, in whatever way the transport has for that.
    ///
    /// # Errors
    /// The connection is lost already.
    async fn hang_up(&mut self) -> io::Result<()>;
}

/// The client's side of a transport: what reads from the server. Called by one task, which does nothing else.
#[async_trait]
pub trait Hear: Send + 'static {
    /// The next object, or how the connection ended. Not called again after an end. Need not be cancel safe.
    ///
    /// # Panics
    /// May panic where the server breaks the rules of the transport: that fails the scenario.
    async fn hear(&mut self) -> Heard;
}

/// What a client hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// One object, as it came: the kit checks that it is JSON in UTF-8 and has no line feed.
    Object(Vec<u8>),
    /// The connection, or the session where it has none of its own, is over.
    Closed(Closed),
}

/// How a connection ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Closed {
    /// The close code of WebSocket, where the transport has such: each end of a session has its own, see `bye` in the
    /// protocol's page. 1006 where the connection ended without one.
    pub code: Option<u16>,
    /// The word of the end, such as `logout`, where the transport tells it beside the `bye`.
    pub word: Option<String>,
    /// Whether it was broken rather than closed.
    pub reset: bool,
}

impl Closed {
    pub(crate) fn into_value(self) -> Value {
        let how = if self.reset { "reset" } else { "eof" };
        json!({ "type": CLOSED, "how": how, "code": self.code, "end": self.word })
    }
}

/// How a transport brings events to its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// A connection that stays: replies and events come in one order, and who loses it loses the session.
    Push,
    /// Requests: replies and events travel apart and may come twice; who is gone falls silent.
    Pull,
}

/// One client's connection, not yet logged in.
pub struct Link {
    pub(crate) wire: Wire,
    pub(crate) hear: Option<Box<dyn Hear>>,
    pub(crate) delivery: Delivery,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("delivery", &self.delivery)
            .finish_non_exhaustive()
    }
}

pub(crate) enum Wire {
    Lines(WriteHalf<Stream>),
    Socket(SplitSink<WebSocketStream<Stream>, Message>),
    Poll {
        http: Http,
        session: Option<String>,
        answers: std::collections::VecDeque<Value>,
    },
    Own(Box<dyn Speak>),
}

impl Link {
    /// A link of one's own make.
    pub fn new(speak: impl Speak, hear: impl Hear, delivery: Delivery) -> Self {
        Self {
            wire: Wire::Own(Box::new(speak)),
            hear: Some(Box::new(hear)),
            delivery,
        }
    }

    /// One object a line, over any stream.
    pub fn lines(stream: impl Duplex) -> Self {
        let (read, write) = split(Box::new(stream) as Stream);
        Self {
            wire: Wire::Lines(write),
            hear: Some(Box::new(Lines(BufReader::new(read)))),
            delivery: Delivery::Push,
        }
    }

    /// One object a WebSocket message: asks for the upgrade at `url`, such as `ws://127.0.0.1:8080/v1/ws`, over any
    /// stream.
    ///
    /// # Errors
    /// The server does not upgrade.
    pub async fn websocket(stream: impl Duplex, url: &str) -> io::Result<Self> {
        let upgrade = client_async(url, Box::new(stream) as Stream);
        let (socket, _) = upgrade.await.map_err(io::Error::other)?;
        let (write, read) = socket.split();
        Ok(Self {
            wire: Wire::Socket(write),
            hear: Some(Box::new(Messages(read))),
            delivery: Delivery::Push,
        })
    }

    /// Requests and polls at the usual paths.
    #[must_use]
    pub fn polling(http: Http) -> Self {
        Self {
            wire: Wire::Poll {
                http,
                session: None,
                answers: std::collections::VecDeque::new(),
            },
            hear: None,
            delivery: Delivery::Pull,
        }
    }
}

impl Wire {
    /// What [`Speak`] does, for those that need no session to know how.
    pub(crate) async fn speak(&mut self, frame: &str) -> io::Result<()> {
        match self {
            Self::Lines(write) => {
                write.write_all(format!("{frame}\n").as_bytes()).await?;
                write.flush().await
            }
            Self::Socket(write) => write
                .send(Message::text(frame))
                .await
                .map_err(io::Error::other),
            Self::Own(speak) => speak.speak(frame).await,
            Self::Poll { .. } => unreachable!("polls are written by the client"),
        }
    }

    pub(crate) async fn hang_up(&mut self) -> io::Result<()> {
        match self {
            Self::Lines(write) => write.shutdown().await,
            Self::Socket(write) => write.close().await.map_err(io::Error::other),
            Self::Own(speak) => speak.hang_up().await,
            // There is nothing to close.
            Self::Poll { .. } => Ok(()),
        }
    }
}

struct Lines(BufReader<ReadHalf<Stream>>);

#[async_trait]
impl Hear for Lines {
    async fn hear(&mut self) -> Heard {
        let mut line = Vec::new();
        match self.0.read_until(b'\n', &mut line).await {
            Ok(0) => Heard::Closed(Closed::default()),
            Err(_) => Heard::Closed(Closed {
                reset: true,
                ..Closed::default()
            }),
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                assert_eq!(line.last(), Some(&b'\n'), "half a line: {text}");
                line.pop();
                Heard::Object(line)
            }
        }
    }
}

struct Messages(SplitStream<WebSocketStream<Stream>>);

#[async_trait]
impl Hear for Messages {
    async fn hear(&mut self) -> Heard {
        let mut code = 1006;
        while let Some(Ok(message)) = self.0.next().await {
            match message {
                Message::Text(text) => return Heard::Object(text.as_bytes().to_vec()),
                Message::Close(frame) => code = frame.map_or(1005, |frame| u16::from(frame.code)),
                // The library answers pings by itself.
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("the server sent {other:?}"),
            }
        }
        Heard::Closed(Closed {
            code: Some(code),
            ..Closed::default()
        })
    }
}
