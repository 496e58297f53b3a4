//! WebSocket: an object per text message. The protocol's rules are tungstenite's.

use std::io;

use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use http::StatusCode;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Error as WsError, Message, error::ProtocolError, protocol::WebSocketConfig},
};

use crate::{
    ConnectError, Loss, Options,
    address::Address,
    push::{Incoming, Link, Reader, Writer},
    stream::{Server, Stream},
    wire::Refusal,
};

/// Connects and upgrades. Sets no limit.
pub(crate) async fn connect(server: &Server, options: &Options) -> Result<Link, ConnectError> {
    let address = &server.address;
    let stream = server.connect().await?;
    let config = WebSocketConfig::default()
        .read_buffer_size(8 << 10)
        .max_message_size(Some(options.most_bytes))
        .max_frame_size(Some(options.most_bytes));
    let upgrade = client_async_with_config(address.to_string(), stream, Some(config));
    let upgraded = Box::pin(upgrade).await;
    let (socket, _) = upgraded.map_err(|error| refused(address, error))?;
    let (write, read) = socket.split();
    Ok(Link {
        reader: Reader::WebSocket(FrameReader(read)),
        writer: Writer::WebSocket(FrameWriter(write)),
    })
}

fn refused(address: &Address, error: WsError) -> ConnectError {
    let url = address.to_string();
    match error {
        WsError::Http(response) => {
            let status = response.status();
            let body = response.body().as_deref().unwrap_or_default();
            let why = if status == StatusCode::NOT_FOUND {
                format!("it knows no path {}", address.path)
            } else if let Ok(refusal) = serde_json::from_slice::<Refusal>(body) {
                return refusal.into();
            } else {
                // A proxy says it in words of its own.
                format!("it answered HTTP {status}")
            };
            ConnectError::NotChinwag { url, why }
        }
        WsError::Io(source) => ConnectError::lost(address, source),
        error => ConnectError::NotChinwag {
            url,
            why: error.to_string(),
        },
    }
}

pub(crate) struct FrameReader(SplitStream<WebSocketStream<Stream>>);

impl FrameReader {
    /// The next message of at most `limit` bytes; `None` at the end. Cancel safe.
    pub(crate) async fn next(&mut self, limit: usize) -> Result<Option<Incoming>, Loss> {
        loop {
            return match self.0.next().await {
                Some(Ok(Message::Text(text))) if text.len() > limit => Err(Loss::TooLarge(limit)),
                Some(Ok(Message::Text(text))) => Incoming::object(text.as_bytes()).map(Some),
                // Read on to the end, so that the closing handshake is complete.
                Some(Ok(Message::Close(_))) => continue,
                Some(Ok(_)) => Ok(Some(Incoming::Beat)),
                None => Ok(None),
                Some(Err(error)) => lost(error).map_or(Ok(None), Err),
            };
        }
    }
}

/// `None`: it is merely closed.
fn lost(error: WsError) -> Option<Loss> {
    Some(match error {
        WsError::ConnectionClosed
        | WsError::AlreadyClosed
        | WsError::Protocol(
            ProtocolError::ResetWithoutClosingHandshake | ProtocolError::SendAfterClosing,
        ) => return None,
        WsError::Io(error) => error.into(),
        error => Loss::Garbled(error.to_string()),
    })
}

pub(crate) struct FrameWriter(SplitSink<WebSocketStream<Stream>, Message>);

impl FrameWriter {
    /// Waits for room, then takes the object. Cancel safe: it is taken when this is done.
    pub(crate) async fn push(&mut self, json: &str) -> Result<(), Loss> {
        let pushed = self.0.feed(Message::text(json)).await;
        pushed.map_err(|error| lost(error).unwrap_or(Loss::Closed))
    }

    /// Writes all that was pushed. Cancel safe.
    pub(crate) async fn flush(&mut self) -> Result<(), Loss> {
        let flushed = self.0.flush().await;
        flushed.map_err(|error| lost(error).unwrap_or(Loss::Closed))
    }

    /// Says goodbye in WebSocket's own way.
    pub(crate) async fn close(&mut self) -> io::Result<()> {
        self.0.close().await.map_err(io::Error::other)
    }
}
