//! One connection of a member: its way in, what it says, and what it is sent, in each dialect.

use std::{io, mem, time::Duration};

use mio::{Interest, Token, event::Event, net::TcpStream};
use serde_json::json;
use tungstenite::handshake::derive_accept_key;

use crate::{
    crowd::{Context, Fate, append},
    hearing::Hearing,
    object::{Batch, Incoming, shown},
    stream::Stream,
    target::{Dialect, Target},
    wire::{
        self, Framing, Kind, MAX_FRAME, Role, WireError, http,
        mqtt::{self, Packet},
        nats::{self, Verb},
    },
};

/// Digits at the beginning of every text: when the message was due, in nanoseconds of the client's stopwatch, and
/// which of its room it was.
pub const HEAD_BYTES: usize = 32;
/// How long a poll asks the server to wait, in seconds: as long as it lets one unless it is told otherwise.
const WAIT_SECONDS: u64 = 30;
/// The key of every upgrade: it guards against caches, of which there are none here.
const UPGRADE_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// How far a member has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The connection does not stand yet.
    Connecting,
    /// The server has to speak first, or to agree to an upgrade.
    Opening,
    /// The log-in is not answered yet.
    LoggingIn,
    /// Logged in, and in no room.
    LoggedIn,
    /// The way into the room is not answered yet.
    Joining,
    /// A member of its room.
    Present,
    /// The way out of the room is not answered yet.
    Leaving,
}

impl Stage {
    /// What somebody is doing at this stage.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Opening => "opening the connection",
            Self::LoggingIn => "logging in",
            Self::LoggedIn => "logged in",
            Self::Joining => "joining",
            Self::Present => "present",
            Self::Leaving => "leaving",
        }
    }
}

/// What happened to a member.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Trouble {
    /// Its connection failed.
    #[error("the connection failed ({0})")]
    Socket(io::Error),
    /// It did not come to terms with the server over TLS.
    #[error("TLS failed ({0})")]
    Tls(rustls::Error),
    /// The server closed its connection without a word.
    #[error("the server closed the connection")]
    Closed,
    /// The server closed its WebSocket.
    #[error("the server closed the WebSocket with {code} ({reason})")]
    CloseFrame {
        /// The close code.
        code: u16,
        /// The reason beside it.
        reason: String,
    },
    /// A command was refused.
    #[error("it was refused with {code} ({message})")]
    Refused {
        /// The protocol's word.
        code: String,
        /// What the server says to it.
        message: String,
    },
    /// Its session was ended.
    #[error("its session was ended with {code} ({message})")]
    Bye {
        /// The protocol's word.
        code: String,
        /// What the server says to it.
        message: String,
    },
    /// The upgrade to WebSocket was refused.
    #[error("the upgrade was answered with {0}")]
    Upgrade(String),
    /// It was told something that has no place there.
    #[error("it was told {0}")]
    Told(String),
    /// It was sent bytes that are no frame.
    #[error("{0}")]
    Wire(#[from] WireError),
}

impl Trouble {
    /// The trouble with a connection.
    fn of(error: io::Error) -> Self {
        match error.downcast() {
            Ok(error) => Self::Tls(error),
            Err(error) => Self::Socket(error),
        }
    }

    /// The trouble of somebody who was told `object` when something else was due.
    pub(crate) fn told(object: &[u8]) -> Self {
        let Some(incoming) = Incoming::read(object) else {
            return Self::Told(shown(object));
        };
        let word =
            |text: Option<std::borrow::Cow<'_, str>>| shown(text.unwrap_or_default().as_bytes());
        match &*incoming.kind {
            "error" => Self::Refused {
                code: word(incoming.code),
                message: word(incoming.message),
            },
            "bye" => Self::Bye {
                code: word(incoming.code),
                message: word(incoming.message),
            },
            _ => Self::Told(shown(object)),
        }
    }
}

/// A connection. See the [module](self).
#[derive(Debug)]
pub(crate) struct Link {
    member: usize,
    /// Whether it only carries a polling member's commands.
    hand: bool,
    stream: Stream,
    stage: Stage,
    /// The beginning of a frame whose rest has not come.
    partial: Vec<u8>,
    outbox: Vec<u8>,
    /// A polling member's session.
    session: Box<str>,
    /// Requests that are not answered.
    asked: u64,
    stalled: bool,
    /// Whether what it says waits to be let go.
    held: bool,
    over: Option<Fate>,
}

impl Link {
    pub(crate) fn open(member: usize, hand: bool, target: &Target) -> io::Result<Self> {
        Ok(Self {
            member,
            hand,
            stream: Stream::open(target.addr, target.tls.as_ref())?,
            stage: Stage::Connecting,
            partial: Vec::new(),
            outbox: Vec::new(),
            session: Box::default(),
            asked: 0,
            stalled: false,
            held: false,
            over: None,
        })
    }

    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        self.stream.socket()
    }

    pub(crate) fn member(&self) -> usize {
        self.member
    }

    pub(crate) fn stage(&self) -> Stage {
        self.stage
    }

    pub(crate) fn session(&self) -> &str {
        &self.session
    }

    pub(crate) fn speak_for(&mut self, session: Box<str>) {
        self.session = session;
    }

    /// Bytes that wait for the socket.
    pub(crate) fn unsent(&self) -> usize {
        self.outbox.len()
    }

    /// From now on what it says waits.
    pub(crate) fn hold(&mut self) {
        self.held = true;
    }

    /// All that waits leaves in one write, as far as the socket takes it.
    pub(crate) fn let_go(&mut self, cx: &mut Context) -> Result<(), Trouble> {
        self.held = false;
        let done = self.flush();
        cx.traffic += self.stream.take_traffic();
        done
    }

    pub(crate) fn stall(&mut self) {
        self.stalled = true;
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.is_some()
    }

    pub(crate) fn fate(&self) -> Fate {
        self.over.clone().unwrap_or(Fate::There)
    }

    /// Whether this trouble is none to the crowd: whoever stalled may be ended, but never told what it should not be;
    /// and a hand that asks nothing may be let go.
    pub(crate) fn endure(&mut self, trouble: &Trouble) -> bool {
        let let_go =
            self.hand && self.asked == 0 && matches!(trouble, Trouble::Closed | Trouble::Socket(_));
        let ended = self.stalled && !matches!(trouble, Trouble::Told(_) | Trouble::Wire(_));
        if !ended && !let_go {
            return false;
        }
        self.over.get_or_insert_with(|| match trouble {
            Trouble::Bye { code, .. } => Fate::Bye(code.clone()),
            Trouble::CloseFrame { reason, .. } => Fate::Bye(reason.clone()),
            _ => Fate::Cut,
        });
        true
    }

    pub(crate) fn ready(
        &mut self,
        event: &Event,
        cx: &mut Context,
        scratch: &mut [u8],
        hearing: &mut Hearing,
    ) -> Result<(), Trouble> {
        if self.stage == Stage::Connecting && !self.connected(cx)? {
            return Ok(());
        }
        if event.is_writable() {
            self.flush()?;
            cx.traffic += self.stream.take_traffic();
        }
        let closed = event.is_read_closed() || event.is_error();
        if event.is_readable() || closed {
            self.read(closed, cx, scratch, hearing)?;
        }
        Ok(())
    }

    /// Whether the connection stands; if so, takes the next step.
    fn connected(&mut self, cx: &mut Context) -> Result<bool, Trouble> {
        let socket = self.stream.socket();
        if let Some(error) = socket.take_error().map_err(Trouble::Socket)? {
            return Err(Trouble::Socket(error));
        }
        match socket.peer_addr() {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(false),
            other => other.map_err(Trouble::Socket)?,
        };
        socket.set_nodelay(true).map_err(Trouble::Socket)?;
        if self.hand {
            // What it has to say waits in its outbox already.
            self.stage = Stage::Present;
            return Ok(true);
        }
        match cx.target.dialect {
            Dialect::Chinwag(Framing::Lines) | Dialect::Polling | Dialect::Mqtt => {
                self.log_in(cx)?
            }
            Dialect::Nats => self.stage = Stage::Opening,
            Dialect::Chinwag(Framing::WebSocket) | Dialect::Broadcast => {
                self.stage = Stage::Opening;
                let member = self.member;
                let broadcast = cx.target.dialect == Dialect::Broadcast;
                self.say(cx, |cx, out| {
                    let (path, slash, room) = match broadcast {
                        true => ("", "/", cx.room(member)),
                        false => (&*cx.target.path, "", ""),
                    };
                    append(
                        out,
                        format_args!(
                            "GET {path}{slash}{room} HTTP/1.1\r\nHost: {}\r\nUpgrade: websocket\r\n\
                             Connection: Upgrade\r\nSec-WebSocket-Key: {UPGRADE_KEY}\r\n\
                             Sec-WebSocket-Version: 13\r\n",
                            cx.target.host
                        ),
                    );
                    if !broadcast {
                        out.extend_from_slice(b"Sec-WebSocket-Protocol: chinwag.v1.json\r\n");
                    }
                    out.extend_from_slice(b"\r\n");
                })?;
            }
        }
        Ok(true)
    }

    fn log_in(&mut self, cx: &mut Context) -> Result<(), Trouble> {
        self.stage = Stage::LoggingIn;
        let user = cx.names.user(self.member);
        match cx.target.dialect {
            Dialect::Chinwag(_) | Dialect::Polling => {
                let mut login = json!({"type": "login", "id": 1, "user": user});
                if let Some(password) = &cx.names.password {
                    login["password"] = password.as_str().into();
                }
                self.command("/v1/session", &login, cx)
            }
            Dialect::Mqtt => self.say(cx, |_, out| mqtt::put_connect(&user, out)),
            Dialect::Nats => self.say(cx, |_, out| {
                out.extend_from_slice(
                    b"CONNECT {\"verbose\":false,\"pedantic\":false}\r\nPING\r\n",
                );
            }),
            Dialect::Broadcast => self.logged_in(cx),
        }
    }

    /// Logged in: on into the room, or there already.
    fn logged_in(&mut self, cx: &mut Context) -> Result<(), Trouble> {
        self.stage = Stage::LoggedIn;
        if cx.join {
            self.join(cx)
        } else {
            cx.there += 1;
            Ok(())
        }
    }

    pub(crate) fn join(&mut self, cx: &mut Context) -> Result<(), Trouble> {
        self.stage = Stage::Joining;
        let room = cx.room(self.member).to_owned();
        match cx.target.dialect {
            Dialect::Chinwag(_) | Dialect::Polling => {
                let join = json!({"type": "join", "id": 2, "room": room});
                self.command("/v1/commands", &join, cx)
            }
            Dialect::Mqtt => self.say(cx, |_, out| mqtt::put_subscribe(&room, out)),
            Dialect::Nats => self.say(cx, |_, out| {
                append(out, format_args!("SUB {room} 1\r\nPING\r\n"))
            }),
            // The path of the upgrade was the room.
            Dialect::Broadcast => Ok(()),
        }
    }

    /// Out of the room again, where the protocol has a word for it. Nobody may speak there until that is answered.
    pub(crate) fn leave(&mut self, cx: &mut Context) -> Result<(), Trouble> {
        self.stage = Stage::Leaving;
        let leave = json!({"type": "leave", "id": 3, "room": cx.room(self.member)});
        self.command("/v1/commands", &leave, cx)
    }

    fn arrived(&mut self, cx: &mut Context) {
        self.stage = Stage::Present;
        cx.there += 1;
    }

    pub(crate) fn ping(&mut self, cx: &mut Context) -> Result<(), Trouble> {
        if self.stalled || !matches!(self.stage, Stage::LoggedIn | Stage::Present) {
            return Ok(());
        }
        self.command("", &json!({"type": "ping"}), cx)
    }

    /// Sends an object of the chinwag protocol; over HTTP as a request for `path`.
    fn command(
        &mut self,
        path: &str,
        object: &serde_json::Value,
        cx: &mut Context,
    ) -> Result<(), Trouble> {
        let object = object.to_string();
        self.command_bytes(path, object.as_bytes(), cx)
    }

    fn command_bytes(
        &mut self,
        path: &str,
        object: &[u8],
        cx: &mut Context,
    ) -> Result<(), Trouble> {
        let session = mem::take(&mut self.session);
        let done = self.say(cx, |cx, out| match cx.target.dialect {
            Dialect::Polling => {
                append(
                    out,
                    format_args!(
                        "POST {}{path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
                         Content-Length: {}\r\n",
                        cx.target.path,
                        cx.target.host,
                        object.len()
                    ),
                );
                if !session.is_empty() {
                    append(out, format_args!("Authorization: Bearer {session}\r\n"));
                }
                out.extend_from_slice(b"\r\n");
                out.extend_from_slice(object);
            }
            Dialect::Chinwag(framing) => wire::put(framing, Role::Client, object, out),
            _ => unreachable!("only the chinwag protocol has objects"),
        });
        self.session = session;
        self.asked += 1;
        done
    }

    fn poll(&mut self, ack: u64, cx: &mut Context) -> Result<(), Trouble> {
        let session = mem::take(&mut self.session);
        let done = self.say(cx, |cx, out| {
            append(
                out,
                format_args!(
                    "GET {}/v1/events?ack={ack}&wait={WAIT_SECONDS} HTTP/1.1\r\nHost: {}\r\n\
                     Authorization: Bearer {session}\r\n",
                    cx.target.path, cx.target.host
                ),
            );
            if cx.target.gzip {
                out.extend_from_slice(b"Accept-Encoding: gzip\r\n");
            }
            out.extend_from_slice(b"\r\n");
        });
        self.session = session;
        self.asked += 1;
        done
    }

    /// Sends the `number`th message of the room, which was due at `due`.
    pub(crate) fn publish(
        &mut self,
        due: Duration,
        number: u64,
        cx: &mut Context,
    ) -> Result<(), Trouble> {
        let mut object = mem::take(&mut cx.object);
        object.clear();
        let due = u64::try_from(due.as_nanos()).unwrap_or(u64::MAX);
        let objects = cx.target.dialect.numbers();
        if objects {
            let room = cx.room(self.member);
            append(
                &mut object,
                format_args!(r#"{{"type":"send","id":{number},"room":"{room}","text":""#),
            );
        }
        append(&mut object, format_args!("{due:016}{number:016}"));
        object.extend_from_slice(&cx.padding);
        let done = if objects {
            object.extend_from_slice(b"\"}");
            self.command_bytes("/v1/commands", &object, cx)
        } else {
            let member = self.member;
            self.say(cx, |cx, out| match cx.target.dialect {
                Dialect::Mqtt => mqtt::put_publish(cx.room(member), &[&object], out),
                Dialect::Nats => nats::put_publish(cx.room(member), &[&object], out),
                _ => wire::put(Framing::WebSocket, Role::Client, &object, out),
            })
        };
        cx.object = object;
        done
    }

    /// Sends what `build` appends.
    fn say(
        &mut self,
        cx: &mut Context,
        build: impl FnOnce(&Context, &mut Vec<u8>),
    ) -> Result<(), Trouble> {
        let mut out = mem::take(&mut cx.out);
        out.clear();
        build(cx, &mut out);
        let done = self.write(&out);
        cx.traffic += self.stream.take_traffic();
        cx.out = out;
        done
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        let may_write = !self.held && self.stage != Stage::Connecting;
        let taken = if self.outbox.is_empty() && may_write {
            self.write_once(bytes)?
        } else {
            0
        };
        self.outbox.extend_from_slice(&bytes[taken..]);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Trouble> {
        self.stream.flush().map_err(Trouble::of)?;
        while !self.outbox.is_empty() {
            let outbox = mem::take(&mut self.outbox);
            let taken = self.write_once(&outbox)?;
            self.outbox = outbox;
            if taken == 0 {
                break;
            }
            self.outbox.drain(..taken);
        }
        Ok(())
    }

    fn write_once(&mut self, bytes: &[u8]) -> Result<usize, Trouble> {
        loop {
            match self.stream.write(bytes) {
                Ok(taken) => return Ok(taken),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) => return Err(Trouble::of(error)),
            }
        }
    }

    /// Reads until the socket is empty: to its end if the peer has `closed`, else until a read comes short, which
    /// spares the one that would find nothing.
    fn read(
        &mut self,
        closed: bool,
        cx: &mut Context,
        scratch: &mut [u8],
        hearing: &mut Hearing,
    ) -> Result<(), Trouble> {
        loop {
            let held = self.partial.len();
            scratch[..held].copy_from_slice(&self.partial);
            let count = match self.stream.read(&mut scratch[held..]) {
                Ok(0) => return Err(Trouble::Closed),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Trouble::of(error)),
            };
            cx.traffic += self.stream.take_traffic();
            let bytes = &scratch[..held + count];
            let at = cx.watch.elapsed();
            let mut used = 0;
            while let Some(end) = self.take(&bytes[used..], at, cx, hearing)? {
                used += end;
            }
            if used < bytes.len() && bytes.len() - used > MAX_FRAME {
                return Err(WireError::TooLong.into());
            }
            self.partial.clear();
            self.partial.extend_from_slice(&bytes[used..]);
            if held + count < scratch.len() && !closed && self.stream.is_empty_after_less() {
                return Ok(());
            }
        }
    }

    /// Handles the first frame of `bytes`; returns how many bytes it had, `None` while it is incomplete.
    fn take(
        &mut self,
        bytes: &[u8],
        at: Duration,
        cx: &mut Context,
        hearing: &mut Hearing,
    ) -> Result<Option<usize>, Trouble> {
        match cx.target.dialect {
            Dialect::Chinwag(Framing::WebSocket) | Dialect::Broadcast
                if self.stage == Stage::Opening =>
            {
                self.upgraded(bytes, cx, hearing)
            }
            Dialect::Chinwag(framing) => self.framed(framing, bytes, at, cx, hearing),
            Dialect::Broadcast => self.framed(Framing::WebSocket, bytes, at, cx, hearing),
            Dialect::Polling => self.answered(bytes, at, cx, hearing),
            Dialect::Mqtt => self.mqtt(bytes, at, cx, hearing),
            Dialect::Nats => self.nats(bytes, at, cx, hearing),
        }
    }

    fn upgraded(
        &mut self,
        bytes: &[u8],
        cx: &mut Context,
        hearing: &mut Hearing,
    ) -> Result<Option<usize>, Trouble> {
        let Some(end) = wire::head_end(bytes) else {
            return Ok(None);
        };
        let head = String::from_utf8_lossy(&bytes[..end]);
        let accept = derive_accept_key(UPGRADE_KEY.as_bytes());
        if !head.starts_with("HTTP/1.1 101 ")
            || wire::header(&head, "sec-websocket-accept") != Some(&accept)
        {
            // A server's reason stands in the body.
            return Err(match Trouble::told(&bytes[end..]) {
                refused @ Trouble::Refused { .. } => refused,
                _ => Trouble::Upgrade(shown(bytes)),
            });
        }
        if cx.target.dialect == Dialect::Broadcast {
            hearing.arrived(self.member, 0, None, None);
            self.arrived(cx);
        } else {
            self.log_in(cx)?;
        }
        Ok(Some(end))
    }

    fn framed(
        &mut self,
        framing: Framing,
        bytes: &[u8],
        at: Duration,
        cx: &mut Context,
        hearing: &mut Hearing,
    ) -> Result<Option<usize>, Trouble> {
        let Some(piece) = wire::cut(framing, bytes)? else {
            return Ok(None);
        };
        let payload = &bytes[piece.payload];
        match piece.kind {
            Kind::Text if self.stage == Stage::Present => {
                hearing.heard(self.member, payload, at)?;
            }
            Kind::Text => self.replied(payload, cx, hearing)?,
            Kind::Ping => self.say(cx, |_, out| wire::put_pong(Role::Client, payload, out))?,
            Kind::Pong => (),
            Kind::Close => {
                let (code, reason) = wire::close_reason(payload);
                let reason = shown(reason.as_bytes());
                return Err(Trouble::CloseFrame { code, reason });
            }
        }
        Ok(Some(piece.end))
    }

    /// An object on the way into the room.
    fn replied(
        &mut self,
        object: &[u8],
        cx: &mut Context,
        hearing: &mut Hearing,
    ) -> Result<(), Trouble> {
        let told = || Trouble::told(object);
        let reply = Incoming::read(object).ok_or_else(told)?;
        match (self.stage, &*reply.kind) {
            (Stage::LoggingIn, "session") => {
                // Over WebSocket the server asks for signs of life itself, and a poll that waits is one.
                let every = Duration::from_millis(reply.ping_every_ms);
                match cx.target.dialect {
                    Dialect::Polling => cx.period = Duration::from_secs(WAIT_SECONDS),
                    Dialect::Chinwag(Framing::Lines) => (cx.ping_every, cx.period) = (every, every),
                    _ => cx.period = every,
                }
                hearing.named(self.member, &reply.user.ok_or_else(told)?);
                self.session = reply.session.unwrap_or_default().into();
                self.logged_in(cx)
            }
            (Stage::Joining, "init") => {
                let seq = reply.seq.ok_or_else(told)?;
                let tells = reply.presence.is_none_or(|form| form != "off");
                let count = reply.count.filter(|_| tells);
                hearing.arrived(self.member, seq, count, reply.rev);
                self.arrived(cx);
                Ok(())
            }
            (Stage::Leaving, "left") => {
                hearing.left(self.member);
                self.stage = Stage::LoggedIn;
                cx.there -= 1;
                Ok(())
            }
            // Told before the answer, and nothing to who is on the way out.
            (Stage::Leaving, "presence") | (_, "pong") => Ok(()),
            _ => Err(told()),
        }
    }

    fn answered(
        &mut self,
        bytes: &[u8],
        at: Duration,
        cx: &mut Context,
        hearing: &mut Hearing,
    ) -> Result<Option<usize>, Trouble> {
        let Some(answer) = http::cut(bytes)? else {
            return Ok(None);
        };
        let (body, end) = (&bytes[answer.body.clone()], answer.body.end);
        self.asked = self.asked.saturating_sub(1);
        if self.stage == Stage::Present && !self.hand {
            cx.traffic.answers += 1;
            cx.traffic.compressed += u64::from(answer.gzip);
        }
        if answer.last {
            self.part(cx)?;
        }
        if answer.gzip {
            let mut text = mem::take(&mut cx.inflated);
            http::inflate(body, &mut text)?;
            self.answer(answer.status, &text, at, cx, hearing)?;
            cx.inflated = text;
        } else {
            self.answer(answer.status, body, at, cx, hearing)?;
        }
        Ok(Some(end))
    }

    /// The server closes the connection after an answer: what is said next needs another one.
    fn part(&mut self, cx: &Context) -> Result<(), Trouble> {
        if self.hand {
            self.over.get_or_insert(Fate::Cut);
            return Ok(());
        }
        let mut stream =
            Stream::open(cx.target.addr, cx.target.tls.as_ref()).map_err(Trouble::of)?;
        stream.socket().set_nodelay(true).map_err(Trouble::Socket)?;
        // Members are registered under their numbers. The old socket leaves the list by being closed.
        cx.registry
            .register(
                stream.socket(),
                Token(self.member),
                Interest::READABLE | Interest::WRITABLE,
            )
            .map_err(Trouble::Socket)?;
        self.stream = stream;
        Ok(())
    }

    fn answer(
        &mut self,
        status: u16,
        body: &[u8],
        at: Duration,
        cx: &mut Context,
        hearing: &mut Hearing,
    ) -> Result<(), Trouble> {
        if self.hand {
            return hearing.heard(self.member, body, at);
        }
        if !(200..300).contains(&status) {
            return Err(Trouble::told(body));
        }
        if self.stage != Stage::Present {
            self.replied(body, cx, hearing)?;
            if self.stage == Stage::Present {
                self.poll(0, cx)?;
            }
            return Ok(());
        }
        let batch: Batch<'_> = serde_json::from_slice(body).map_err(|_| Trouble::told(body))?;
        for event in &batch.events {
            hearing.heard(self.member, event.get().as_bytes(), at)?;
        }
        if batch.superseded {
            return Err(Trouble::Told(shown(body)));
        }
        self.poll(batch.next, cx)
    }

    fn mqtt(
        &mut self,
        bytes: &[u8],
        at: Duration,
        cx: &mut Context,
        hearing: &mut Hearing,
    ) -> Result<Option<usize>, Trouble> {
        let Some(piece) = mqtt::cut(bytes)? else {
            return Ok(None);
        };
        match (self.stage, piece.packet) {
            (Stage::Present, Packet::Message) => {
                hearing.heard(self.member, &bytes[piece.payload], at)?;
            }
            (Stage::LoggingIn, Packet::Connected(0)) => self.logged_in(cx)?,
            (Stage::Joining, Packet::Subscribed(0)) => {
                hearing.arrived(self.member, 0, None, None);
                self.arrived(cx);
            }
            (_, Packet::Pong) => (),
            (_, packet) => return Err(Trouble::Told(format!("{packet:?}"))),
        }
        Ok(Some(piece.end))
    }

    fn nats(
        &mut self,
        bytes: &[u8],
        at: Duration,
        cx: &mut Context,
        hearing: &mut Hearing,
    ) -> Result<Option<usize>, Trouble> {
        let Some(piece) = nats::cut(bytes)? else {
            return Ok(None);
        };
        let payload = &bytes[piece.payload];
        match (self.stage, piece.verb) {
            (Stage::Present, Verb::Message) => hearing.heard(self.member, payload, at)?,
            (Stage::Opening, Verb::Info) => self.log_in(cx)?,
            (Stage::LoggingIn, Verb::Pong) => self.logged_in(cx)?,
            (Stage::Joining, Verb::Pong) => {
                hearing.arrived(self.member, 0, None, None);
                self.arrived(cx);
            }
            (_, Verb::Ping) => self.say(cx, |_, out| out.extend_from_slice(b"PONG\r\n"))?,
            (_, Verb::Info | Verb::Pong | Verb::Good) => (),
            // nats-server says so before it hangs up, such as to those who don't read.
            (_, Verb::Refused) => {
                let (code, message) = (shown(payload), "-ERR".to_owned());
                return Err(Trouble::Bye { code, message });
            }
            (_, Verb::Message) => return Err(Trouble::Told(shown(payload))),
        }
        Ok(Some(piece.end))
    }
}
