//! TCP: one object a line, for programs in any language and people at a terminal.
//!
//! A line ends with LF, or CR LF; empty lines are passed over. A line over the limit can't be told from the next, so it
//! ends the connection.

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use chinwag_core::{CloseReason, Framing, Hub, PushSession, Scope};
use serde::Deserialize;
use tokio::time::{Sleep, sleep_until};

use crate::{
    Accepted, BindContext, BindError, ServeError, StreamListener, Transport, TransportConfig, Wire,
    socket::Socket,
};

/// `kind = "tcp"`: no keys of its own.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpConfig {}

#[async_trait]
impl TransportConfig for TcpConfig {
    const KIND: &'static str = "tcp";
    const WIRE: Wire = Wire::Stream;

    async fn bind(self, cx: BindContext) -> Result<Box<dyn Transport>, BindError> {
        Ok(Box::new(Tcp {
            listener: cx.stream().await?,
            cx,
        }))
    }
}

struct Tcp {
    listener: StreamListener,
    cx: BindContext,
}

#[async_trait]
impl Transport for Tcp {
    fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    async fn serve(self: Box<Self>) -> Result<(), ServeError> {
        let Self { listener, cx } = *self;
        let first_byte = cx.listener.first_byte_timeout.0;
        let (hub, scope) = (cx.hub, cx.scope);
        listener
            .serve(move |accepted| serve(accepted, hub.clone(), Arc::clone(&scope), first_byte))
            .await;
        Ok(())
    }
}

async fn serve(accepted: Accepted, hub: Hub, scope: Arc<Scope>, first_byte: Duration) {
    let Accepted {
        socket,
        early,
        peer,
        permit,
        at,
        ..
    } = accepted;
    let socket = Arc::new(Socket::new(socket));
    let session = hub.connect(&scope, peer, Arc::clone(&socket) as _, Framing::Lines, at);
    let overdue = early
        .is_empty()
        .then(|| Box::pin(sleep_until(at + first_byte)));
    let mut connection = Connection {
        socket,
        session,
        unread: early.to_vec(),
        searched: 0,
        input: Input::Open,
        overdue,
    };
    let reason = poll_fn(|cx| connection.poll(cx)).await;
    if reason != CloseReason::Disconnected {
        connection.socket.close().await;
    }
    drop(permit);
}

struct Connection {
    socket: Arc<Socket>,
    session: PushSession,
    /// Bytes read and not handed over: a line begun, or lines that wait for the session.
    unread: Vec<u8>,
    /// So many of them hold no line feed.
    searched: usize,
    input: Input,
    /// Until the first byte.
    overdue: Option<Pin<Box<Sleep>>>,
}

/// The client's side of the connection.
enum Input {
    Open,
    /// Ended, and every whole line was handed over or waits.
    Closed,
    /// Ended, and what was asked is being finished.
    Finished,
}

impl Connection {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        loop {
            if let Poll::Ready(reason) = self.session.poll(cx) {
                return Poll::Ready(reason);
            }
            if let Some(overdue) = &mut self.overdue
                && overdue.as_mut().poll(cx).is_ready()
            {
                self.overdue = None;
                self.session.login_overdue();
                continue;
            }
            if !self.session.is_ready() {
                return Poll::Pending;
            }
            if self.hand_over_unread() {
                continue;
            }
            match self.input {
                Input::Open => (),
                Input::Closed => {
                    // Whoever pipes a few commands in still sees what comes of them.
                    self.session.finish();
                    self.input = Input::Finished;
                    continue;
                }
                Input::Finished if self.session.is_settled() => {
                    self.session.peer_closed(false);
                    continue;
                }
                Input::Finished => return Poll::Pending,
            }
            let (session, unread, searched) =
                (&mut self.session, &mut self.unread, &mut self.searched);
            let read = self.socket.poll_read(cx, |bytes| {
                session.count_read(bytes.len());
                if unread.is_empty() {
                    // The common case: whole lines, straight from the thread's buffer.
                    let handed = hand_over(session, bytes, 0);
                    unread.extend_from_slice(&bytes[handed.bytes..]);
                    *searched = handed.searched;
                } else {
                    unread.extend_from_slice(bytes);
                }
                bytes.len()
            });
            match read {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => self.input = Input::Closed,
                Poll::Ready(Ok(_)) => self.overdue = None,
                Poll::Ready(Err(_)) => self.session.peer_closed(false),
            }
        }
    }

    /// Whether anything was handed over.
    fn hand_over_unread(&mut self) -> bool {
        let handed = hand_over(&mut self.session, &self.unread, self.searched);
        self.searched = handed.searched;
        if handed.bytes == self.unread.len() {
            self.unread = Vec::new();
        } else {
            self.unread.drain(..handed.bytes);
        }
        handed.bytes > 0 || handed.too_large
    }
}

struct HandedOver {
    /// Bytes done with.
    bytes: usize,
    /// So many of the bytes after those hold no line feed.
    searched: usize,
    too_large: bool,
}

/// Hands whole lines to the session for as long as it takes them. The first `searched` bytes hold no line feed.
fn hand_over(session: &mut PushSession, bytes: &[u8], mut searched: usize) -> HandedOver {
    let mut done = 0;
    while session.is_ready() {
        let rest = &bytes[done..];
        let end = rest[searched..]
            .iter()
            .position(|&byte| byte == b'\n')
            .map(|at| searched + at);
        let line = &rest[..end.unwrap_or(rest.len())];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.len() > session.frame_bytes() {
            session.frame_too_large();
            return HandedOver {
                bytes: bytes.len(),
                searched: 0,
                too_large: true,
            };
        }
        let Some(end) = end else {
            return HandedOver {
                bytes: done,
                searched: rest.len(),
                too_large: false,
            };
        };
        if !line.is_empty() {
            session.handle_frame(line);
        }
        done += end + 1;
        searched = 0;
    }
    HandedOver {
        bytes: done,
        searched,
        too_large: false,
    }
}
