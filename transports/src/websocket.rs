//! WebSocket: one object per text message.
//!
//! The handshake and the protocol are tungstenite's. It works without a socket here: what was read is fed to it from
//! the thread's buffer, and what it says by itself (pongs, closes) goes out through the session's outlet, in order with
//! everything else. Frames with events bypass it: they are the same bytes for every member.

use std::{
    borrow::Cow,
    future::poll_fn,
    io::{self, Read, Write},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use bytes::{Buf, Bytes};
use chinwag_core::{
    CloseReason, ErrorCode, Framing, Hub, PushSession, Refusal, RefusedReason, Scope, clock,
    plugin::BuildError,
};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use serde::Deserialize;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{
    self, Message,
    error::{CapacityError, ProtocolError},
    handshake::server::create_response,
    protocol::{Role, WebSocketConfig as Settings, WebSocketContext, frame::coding::CloseCode},
};

use crate::{
    BindContext, BindError, HttpListener, HttpPeer, HttpRoute, ListenerConfig, LocalAddr, Origins,
    Permit, ServeError, Stream, Transport, TransportConfig, Wire, duplex,
    http::{Answer, bad_request, credentials, refused, refused_as, upgraded},
    socket::Socket,
};

/// The sub-protocol, which clients may offer and need not.
const SUBPROTOCOL: &str = "chinwag.v1.json";
/// What tungstenite reads at a time from what it is fed. Each connection keeps such a buffer.
const READ_BUFFER: usize = 256;
/// Its own words are short: pongs and closes.
const WRITE_BUFFER: usize = 1024;
/// What a fragment of one byte takes: a message that comes so is still a message.
const FRAGMENT_COST: usize = 8;
/// What a control frame takes beside its payload.
const CONTROL_HEADER: usize = 6;

/// `kind = "websocket"`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WebSocketConfig {
    /// Where the upgrade is.
    pub path: String,
    /// The pages that may connect.
    pub origins: Origins,
    /// For conformance tests: a path that answers every message with itself. Loopback only.
    pub ws_echo: Option<String>,
}

impl Default for WebSocketConfig {
    fn default() -> Self {
        Self {
            path: "/v1/ws".into(),
            origins: Origins::default(),
            ws_echo: None,
        }
    }
}

#[async_trait]
impl TransportConfig for WebSocketConfig {
    const KIND: &'static str = "websocket";
    const WIRE: Wire = Wire::Http;

    fn check(&self, listener: &ListenerConfig) -> Result<(), Vec<BuildError>> {
        let mut faults = Vec::new();
        let is_path = |path: &str| {
            path.starts_with('/')
                && path
                    .bytes()
                    .all(|byte| byte.is_ascii_graphic() && byte != b'?')
        };
        if !is_path(&self.path) {
            faults.push(BuildError::key("path", "must be a path like \"/v1/ws\""));
        }
        if let Some(echo) = &self.ws_echo {
            if !is_path(echo) || *echo == self.path {
                faults.push(BuildError::key(
                    "ws_echo",
                    "must be a path of its own like \"/ws-echo\"",
                ));
            }
            if !listener.bind.ip().to_canonical().is_loopback() {
                faults.push(BuildError::key(
                    "ws_echo",
                    "is for conformance tests; bind a loopback address or leave it out",
                ));
            }
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(faults)
        }
    }

    fn paths(&self) -> Vec<(&'static str, Cow<'_, str>)> {
        let echo = self.ws_echo.iter().map(|path| ("ws_echo", path));
        std::iter::once(("path", &self.path))
            .chain(echo)
            .map(|(key, path)| (key, path.into()))
            .collect()
    }

    async fn bind(self, cx: BindContext) -> Result<Box<dyn Transport>, BindError> {
        let listener = cx.http().await?;
        let upgrade = |is_echo| {
            Arc::new(Upgrade {
                hub: cx.hub.clone(),
                scope: Arc::clone(&cx.scope),
                listener: Arc::clone(&cx.listener),
                origins: self.origins.clone(),
                is_echo,
            })
        };
        listener.route(&self.path, upgrade(false))?;
        if let Some(echo) = &self.ws_echo {
            listener.route(echo, upgrade(true))?;
        }
        Ok(Box::new(WebSocket { listener }))
    }
}

struct WebSocket {
    listener: HttpListener,
}

#[async_trait]
impl Transport for WebSocket {
    fn local_addr(&self) -> LocalAddr {
        self.listener.local_addr().into()
    }

    async fn serve(self: Box<Self>) -> Result<(), ServeError> {
        self.listener.serve().await;
        Ok(())
    }
}

/// Answers upgrade requests.
struct Upgrade {
    hub: Hub,
    scope: Arc<Scope>,
    listener: Arc<ListenerConfig>,
    origins: Origins,
    is_echo: bool,
}

#[async_trait]
impl HttpRoute for Upgrade {
    async fn handle(&self, request: Request<Incoming>, peer: &HttpPeer) -> Answer {
        self.upgrade(request, peer)
            .await
            .unwrap_or_else(|refusal| refusal)
    }
}

impl Upgrade {
    async fn upgrade(
        &self,
        mut request: Request<Incoming>,
        peer: &HttpPeer,
    ) -> Result<Answer, Answer> {
        let metrics = self.scope.metrics();
        if request.method() != Method::GET {
            metrics.refused(RefusedReason::NotFound);
            return Err(crate::http::method_not_allowed("GET"));
        }
        if let Err(refusal) = self.origins.check(request.headers(), peer) {
            metrics.refused(RefusedReason::Origin);
            return Err(refused(&refusal));
        }
        if !request.body().is_end_stream() {
            metrics.refused(RefusedReason::BadRequest);
            return Err(refused(&bad_request("An upgrade has no body.")));
        }
        let upgrade = upgraded(&mut request);
        let (parts, _) = request.into_parts();
        let mut handshake = Request::new(());
        *handshake.method_mut() = parts.method;
        *handshake.version_mut() = parts.version;
        *handshake.headers_mut() = parts.headers;
        let response = create_response(&handshake).map_err(|error| {
            metrics.refused(RefusedReason::BadRequest);
            not_an_upgrade(&error)
        })?;
        let credentials = credentials(handshake.headers()).map_err(|refusal| refused(&refusal))?;
        let permit = peer.admit_upgrade().map_err(|refusal| refused(&refusal))?;

        let client = peer.logging_in(handshake.headers(), &self.scope);
        let socket = Arc::new(Socket::promised(peer.is_encrypted()));
        let mut session = self.hub.connect(
            &self.scope,
            client,
            Arc::clone(&socket) as _,
            Framing::WebSocket,
            // The clock of a log-in begins with the upgrade; what is before has limits of its own.
            clock::now(),
        );
        if self.is_echo {
            session.exempt_from_login();
        } else if let Some(credentials) = credentials {
            session
                .log_in_first(credentials)
                .await
                .map_err(|refusal| refused(&refusal))?;
        }

        let (mut parts, ()) = response.into_parts();
        if offers_subprotocol(handshake.headers()) {
            parts.headers.insert(
                header::SEC_WEBSOCKET_PROTOCOL,
                HeaderValue::from_static(SUBPROTOCOL),
            );
        }
        // Boxed, since a future keeps its arguments' room beside that of its variables.
        let connection = Box::new(Connection::new(socket, session, self.is_echo));
        self.hub.lifecycle().spawn(serve(
            upgrade,
            connection,
            permit,
            self.listener.write_timeout.0,
        ));
        Ok(Answer::from_parts(parts, Full::new(Bytes::new())))
    }
}

fn offers_subprotocol(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|offer| offer.to_str().ok())
        .flat_map(|offer| offer.split(','))
        .any(|offer| offer.trim() == SUBPROTOCOL)
}

fn not_an_upgrade(error: &tungstenite::Error) -> Answer {
    let message = format!("This path takes WebSocket upgrades: {error}.");
    let refusal = Refusal::new(ErrorCode::BadRequest, message);
    if !matches!(
        error,
        tungstenite::Error::Protocol(ProtocolError::MissingSecWebSocketVersionHeader)
    ) {
        return refused(&refusal);
    }
    // RFC 6455, section 4.4: the version that is spoken here is told. RFC 9110, section 7.8: `Upgrade` is for the next on
    // the way alone, and `Connection` has to say so.
    let mut answer = refused_as(StatusCode::UPGRADE_REQUIRED, &refusal);
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(
        header::SEC_WEBSOCKET_VERSION,
        HeaderValue::from_static("13"),
    );
    answer
}

/// Runs a connection from its upgrade on. The 101 has `write_timeout` to get out.
async fn serve(
    upgrade: impl Future<Output = Option<(Stream, Bytes)>>,
    mut connection: Box<Connection>,
    permit: Permit,
    write_timeout: Duration,
) {
    let Ok(Some((stream, early))) = timeout(write_timeout, upgrade).await else {
        return;
    };
    connection.socket.connect(stream);
    connection.unread = early;
    let reason = poll_fn(|cx| connection.poll(cx)).await;
    if reason != CloseReason::Disconnected {
        duplex::close(&*connection.socket).await;
    }
    drop(permit);
}

struct Connection {
    socket: Arc<Socket>,
    session: PushSession,
    protocol: WebSocketContext,
    /// Bytes read and not yet fed to the protocol.
    unread: Bytes,
    /// Whether the protocol may hold whole messages that the session was not ready for.
    may_hold: bool,
    /// Bytes fed since the last whole message, control frames aside.
    unfinished: usize,
    /// The size limit in force, which grows at log-in.
    limit: usize,
    is_echo: bool,
}

impl Connection {
    fn new(socket: Arc<Socket>, session: PushSession, is_echo: bool) -> Self {
        let limit = if is_echo {
            session.full_frame_bytes()
        } else {
            session.frame_bytes()
        };
        let settings = Settings::default()
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(0)
            .max_write_buffer_size(limit + WRITE_BUFFER)
            .max_message_size(Some(limit))
            .max_frame_size(Some(limit));
        let protocol = WebSocketContext::new(Role::Server, Some(settings));
        Self {
            socket,
            session,
            protocol,
            unread: Bytes::new(),
            may_hold: false,
            unfinished: 0,
            limit,
            is_echo,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        loop {
            if let Poll::Ready(reason) = self.session.poll(cx) {
                return Poll::Ready(reason);
            }
            if !self.session.is_ready() {
                return Poll::Pending;
            }
            if self.may_hold || !self.unread.is_empty() {
                let mut unread = std::mem::take(&mut self.unread);
                let fed = self.feed(&unread);
                if fed < unread.len() {
                    // Else the whole buffer would stay for nothing.
                    unread.advance(fed);
                    self.unread = unread;
                }
                continue;
            }
            let socket = Arc::clone(&self.socket);
            let read = duplex::poll_read(&*socket, cx, |bytes| {
                self.session.count_read(bytes.len());
                let fed = self.feed(bytes);
                self.unread = Bytes::copy_from_slice(&bytes[fed..]);
                bytes.len()
            });
            match read {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0) | Err(_)) => self.session.peer_closed(false),
                Poll::Ready(Ok(_)) => (),
            }
        }
    }

    /// Feeds the protocol and hands its messages to the session, for as long as that takes them. Returns how many bytes
    /// the protocol has taken.
    fn feed(&mut self, bytes: &[u8]) -> usize {
        self.raise_limit();
        let mut feed = Feed {
            input: bytes,
            output: Vec::new(),
        };
        self.may_hold = true;
        while self.session.is_ready() {
            let before = feed.input.len();
            let result = self.protocol.read(&mut feed);
            self.unfinished += before - feed.input.len();
            if !self.take(result, &mut feed) {
                self.may_hold = false;
                break;
            }
        }
        self.write_out(&mut feed);
        bytes.len() - feed.input.len()
    }

    fn raise_limit(&mut self) {
        let limit = if self.is_echo {
            self.limit
        } else {
            self.session.frame_bytes()
        };
        if limit > self.limit {
            self.limit = limit;
            self.protocol.set_config(|settings| {
                settings.max_write_buffer_size = limit + WRITE_BUFFER;
                settings.max_message_size = Some(limit);
                settings.max_frame_size = Some(limit);
            });
        }
    }

    /// Whether there may be another message.
    fn take(&mut self, result: tungstenite::Result<Message>, feed: &mut Feed<'_>) -> bool {
        match result {
            Ok(Message::Text(text)) => {
                self.unfinished = 0;
                // Whatever the protocol said by itself came before.
                self.write_out(feed);
                if self.is_echo {
                    self.echo(Message::Text(text), feed);
                } else {
                    self.session.handle_frame(text.as_bytes());
                }
                true
            }
            Ok(Message::Binary(data)) => {
                self.unfinished = 0;
                if self.is_echo {
                    self.echo(Message::Binary(data), feed);
                } else {
                    self.session
                        .refuse_frame("Objects travel in text messages.");
                }
                true
            }
            Ok(Message::Ping(payload) | Message::Pong(payload)) => {
                self.unfinished = self
                    .unfinished
                    .saturating_sub(payload.len() + CONTROL_HEADER);
                self.session.control_frame();
                true
            }
            Ok(Message::Close(Some(frame))) if !frame.code.is_allowed() => {
                self.session
                    .protocol_error(Some(CloseCode::Protocol.into()));
                false
            }
            Ok(Message::Close(frame)) => {
                // The reply to it is said on the next call; then nothing more is read.
                let _ = self.protocol.flush(feed);
                self.write_out(feed);
                let is_clean = frame.is_none_or(|frame| {
                    matches!(
                        frame.code,
                        CloseCode::Normal | CloseCode::Away | CloseCode::Status
                    )
                });
                self.session.peer_closed(is_clean);
                false
            }
            Ok(Message::Frame(_)) => true,
            Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                // Fragments without end never make a message that could be too long.
                if self.unfinished > FRAGMENT_COST * self.limit + READ_BUFFER {
                    self.session.frame_too_large();
                }
                false
            }
            Err(tungstenite::Error::Capacity(CapacityError::MessageTooLong { .. })) => {
                self.session.frame_too_large();
                false
            }
            Err(tungstenite::Error::Utf8(_)) => {
                self.session.protocol_error(Some(CloseCode::Invalid.into()));
                false
            }
            Err(_) => {
                self.session
                    .protocol_error(Some(CloseCode::Protocol.into()));
                false
            }
        }
    }

    fn write_out(&mut self, feed: &mut Feed<'_>) {
        if !feed.output.is_empty() {
            self.session.write_raw(std::mem::take(&mut feed.output));
        }
    }

    fn echo(&mut self, message: Message, feed: &mut Feed<'_>) {
        self.session.touch();
        if self
            .protocol
            .write(feed, message)
            .and_then(|()| self.protocol.flush(feed))
            .is_err()
        {
            self.session
                .protocol_error(Some(CloseCode::Protocol.into()));
        }
        self.write_out(feed);
    }
}

/// A stream without a socket: reads what was received, collects what is to be sent.
struct Feed<'a> {
    input: &'a [u8],
    output: Vec<u8>,
}

impl Read for Feed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.input.read(buffer)
    }
}

impl Write for Feed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
