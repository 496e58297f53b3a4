//! Many connections of one client on one thread: connects them gently, logs them in, takes them
//! into the room, and hands everything they are then sent to an [`Audience`].
//!
//! A member that is refused, ended or disconnected ends the whole measurement, with what it was
//! told: figures of a crowd that melted away are worth nothing.

use std::{
    borrow::Cow,
    io::{self, Read, Write},
    net::SocketAddr,
    time::Duration,
};

use mio::{Events, Interest, Poll, Token, event::Event, net::TcpStream};
use serde::Deserialize;
use tungstenite::handshake::derive_accept_key;

use crate::{
    clock::Stopwatch,
    wire::{self, Framing, Kind, MAX_FRAME, Role, WireError},
};

/// Connections on their way into the room at one time: well within any listen backlog.
const UNDER_WAY: usize = 64;
/// Bytes that one read may bring.
const READ_BYTES: usize = 256 * 1024;
/// Longest stretch of an object that an error shows.
const SHOWN_BYTES: usize = 500;
/// The key of every upgrade: it guards against caches, of which there are none here.
const UPGRADE_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// Whom and how to join.
#[derive(Debug, Clone)]
pub struct Venue {
    /// The server's address.
    pub addr: SocketAddr,
    /// How it frames objects.
    pub framing: Framing,
    /// The room, of `a-z 0-9 . _ : -`.
    pub room: String,
}

/// What listens to a crowd.
pub trait Audience {
    /// `member` is in the room; its first event will have the number `seq + 1`.
    fn arrived(&mut self, member: usize, seq: u64);

    /// `member` was sent `object`, read at `at` of the crowd's stopwatch.
    ///
    /// # Errors
    /// What makes it useless to go on.
    fn heard(&mut self, member: usize, object: &[u8], at: Duration) -> Result<(), CrowdError>;
}

/// Why a crowd could not gather or stay.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CrowdError {
    /// The event loop itself failed.
    #[error("waiting for sockets failed")]
    Poll(#[source] io::Error),
    /// A member could not connect.
    #[error("{user} could not connect to {addr}")]
    Connect {
        /// The member.
        user: String,
        /// Where to.
        addr: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// A member's connection failed.
    #[error("the connection of {user} failed while it was {stage}")]
    Socket {
        /// The member.
        user: String,
        /// How far it had come.
        stage: &'static str,
        /// What happened.
        source: io::Error,
    },
    /// The server closed a member's connection without a word.
    #[error("the server closed the connection of {user} while it was {stage}")]
    Closed {
        /// The member.
        user: String,
        /// How far it had come.
        stage: &'static str,
    },
    /// The server closed a member's WebSocket.
    #[error("the server closed the WebSocket of {user} with {code} {reason:?}")]
    CloseFrame {
        /// The member.
        user: String,
        /// The close code.
        code: u16,
        /// The reason beside it.
        reason: String,
    },
    /// The server answered with `error` or `bye`, or with something that has no place there.
    #[error("{user} was {stage} and was told {object}")]
    Told {
        /// The member.
        user: String,
        /// How far it had come.
        stage: &'static str,
        /// What it was sent, cut if it is long.
        object: String,
    },
    /// The upgrade to WebSocket was refused.
    #[error("the upgrade of {user} was answered with {answer:?}")]
    Upgrade {
        /// The member.
        user: String,
        /// The beginning of the answer.
        answer: String,
    },
    /// The server sent bytes that are no frame.
    #[error("{user} was sent something that is no frame")]
    Wire {
        /// The member.
        user: String,
        /// What is wrong with it.
        source: WireError,
    },
    /// The crowd did not gather in time.
    #[error("{present} of {wanted} members were there after {limit:?}; {user} was {stage}")]
    TooLate {
        /// Members that are there.
        present: usize,
        /// Members there should be.
        wanted: usize,
        /// The time they had.
        limit: Duration,
        /// The first that is not there.
        user: String,
        /// How far it had come.
        stage: &'static str,
    },
    /// The server ends sessions that are silent, as receivers are.
    #[error(
        "the server ends silent sessions after {timeout_ms} ms; to measure it, set timeout = \"0s\" \
         on its transports"
    )]
    Impatient {
        /// Its time limit.
        timeout_ms: u64,
    },
}

/// The connections. See the [module](self).
#[derive(Debug)]
pub struct Crowd {
    poll: Poll,
    events: Events,
    members: Vec<Member>,
    scratch: Vec<u8>,
    shared: Shared,
}

/// What every member needs and none owns.
#[derive(Debug)]
struct Shared {
    venue: Venue,
    watch: Stopwatch,
    /// Whether members go on into the room once they are logged in.
    join: bool,
    present: usize,
    reads: u64,
    outgoing: Vec<u8>,
}

impl Crowd {
    /// Nobody yet.
    ///
    /// # Errors
    /// If the system gives no event loop.
    pub fn new(venue: Venue) -> Result<Self, CrowdError> {
        let shared = Shared {
            venue,
            watch: Stopwatch::start(),
            join: true,
            present: 0,
            reads: 0,
            outgoing: Vec::new(),
        };
        Ok(Self {
            poll: Poll::new().map_err(CrowdError::Poll)?,
            events: Events::with_capacity(1024),
            members: Vec::new(),
            scratch: vec![0; MAX_FRAME + READ_BYTES],
            shared,
        })
    }

    /// The clock of everything that the crowd reports.
    #[must_use]
    pub fn watch(&self) -> Stopwatch {
        self.shared.watch
    }

    /// Members that are logged in and, if they were to, have joined.
    #[must_use]
    pub fn present(&self) -> usize {
        self.shared.present
    }

    /// Reads that brought something, since the crowd was made.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.shared.reads
    }

    /// Brings in `count` more members under the names that follow, into the room if `join`, and
    /// returns when all are there.
    ///
    /// # Errors
    /// If one of them fails or is refused, or they are not there within `limit`.
    pub fn gather(
        &mut self,
        count: usize,
        join: bool,
        limit: Duration,
        audience: &mut impl Audience,
    ) -> Result<(), CrowdError> {
        self.shared.join = join;
        let wanted = self.members.len() + count;
        let start = self.shared.watch.elapsed();
        while self.shared.present < wanted {
            while self.members.len() < wanted
                && self.members.len() - self.shared.present < UNDER_WAY
            {
                self.connect()?;
            }
            if self.shared.watch.elapsed() - start > limit {
                return Err(self.too_late(wanted, limit));
            }
            self.turn(Duration::from_millis(100), audience)?;
        }
        Ok(())
    }

    fn too_late(&self, wanted: usize, limit: Duration) -> CrowdError {
        let absent = self
            .members
            .iter()
            .find(|member| member.stage != Stage::Present);
        let (index, stage) = absent.map_or((self.members.len(), Stage::Connecting), |member| {
            (member.index, member.stage)
        });
        let (present, user, stage) = (self.shared.present, user_name(index), stage.words());
        CrowdError::TooLate {
            present,
            wanted,
            limit,
            user,
            stage,
        }
    }

    fn connect(&mut self) -> Result<(), CrowdError> {
        let index = self.members.len();
        let addr = self.shared.venue.addr;
        let open = || -> io::Result<TcpStream> {
            let mut stream = TcpStream::connect(addr)?;
            // Reset at the end: run after run, waiting connections would fill the table of local
            // ports.
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll
                .registry()
                .register(&mut stream, Token(index), interest)?;
            Ok(stream)
        };
        let stream = open().map_err(|source| CrowdError::Connect {
            user: user_name(index),
            addr,
            source,
        })?;
        self.members.push(Member {
            index,
            stream,
            stage: Stage::Connecting,
            partial: Vec::new(),
            outbox: Vec::new(),
        });
        Ok(())
    }

    /// Waits at most `timeout` (zero: not at all; rounded up to milliseconds) for the server and
    /// reads all there is.
    ///
    /// # Errors
    /// If a member fails or is ended, or the audience has heard enough.
    pub fn turn(
        &mut self,
        timeout: Duration,
        audience: &mut impl Audience,
    ) -> Result<(), CrowdError> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other.map_err(CrowdError::Poll)?,
        }
        for event in &self.events {
            self.members[event.token().0].ready(
                event,
                &mut self.shared,
                &mut self.scratch,
                audience,
            )?;
        }
        Ok(())
    }

    /// Sends one object for `member`. What the socket does not take waits; see [`Crowd::unsent`].
    ///
    /// # Errors
    /// If the connection fails.
    pub fn send(&mut self, member: usize, object: &[u8]) -> Result<(), CrowdError> {
        self.members[member].send(object, &mut self.shared)
    }

    /// Bytes that wait for the socket of `member`.
    #[must_use]
    pub fn unsent(&self, member: usize) -> usize {
        self.members[member].outbox.len()
    }
}

/// The user name of the member with this index.
#[must_use]
pub fn user_name(index: usize) -> String {
    format!("m{:06}", index + 1)
}

#[derive(Debug)]
struct Member {
    index: usize,
    stream: TcpStream,
    stage: Stage,
    /// The beginning of a frame whose rest has not come.
    partial: Vec<u8>,
    outbox: Vec<u8>,
}

/// How far a member has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Connecting,
    Upgrading,
    LoggingIn,
    Joining,
    Present,
}

impl Stage {
    fn words(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Upgrading => "upgrading",
            Self::LoggingIn => "logging in",
            Self::Joining => "joining",
            Self::Present => "present",
        }
    }
}

impl Member {
    fn ready(
        &mut self,
        event: &Event,
        shared: &mut Shared,
        scratch: &mut [u8],
        audience: &mut impl Audience,
    ) -> Result<(), CrowdError> {
        if self.stage == Stage::Connecting && !self.connected(shared)? {
            return Ok(());
        }
        if event.is_writable() {
            self.flush()?;
        }
        let closed = event.is_read_closed() || event.is_error();
        if event.is_readable() || closed {
            self.read(closed, shared, scratch, audience)?;
        }
        Ok(())
    }

    /// Whether the connection stands; if so, takes the next step.
    fn connected(&mut self, shared: &mut Shared) -> Result<bool, CrowdError> {
        let addr = shared.venue.addr;
        let failed = |source| CrowdError::Connect {
            user: user_name(self.index),
            addr,
            source,
        };
        if let Some(error) = self.stream.take_error().map_err(failed)? {
            return Err(failed(error));
        }
        match self.stream.peer_addr() {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => return Ok(false),
            other => other.map_err(failed)?,
        };
        self.stream.set_nodelay(true).map_err(failed)?;
        match shared.venue.framing {
            Framing::Lines => self.log_in(shared)?,
            Framing::WebSocket => {
                self.stage = Stage::Upgrading;
                self.write(
                    format!(
                        "GET /v1/ws HTTP/1.1\r\nHost: {addr}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                         Sec-WebSocket-Key: {UPGRADE_KEY}\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Protocol: chinwag.v1.json\r\n\r\n"
                    )
                    .as_bytes(),
                )?;
            }
        }
        Ok(true)
    }

    fn log_in(&mut self, shared: &mut Shared) -> Result<(), CrowdError> {
        self.stage = Stage::LoggingIn;
        let login = format!(
            r#"{{"type":"login","id":1,"user":"{}"}}"#,
            user_name(self.index)
        );
        self.send(login.as_bytes(), shared)
    }

    fn send(&mut self, object: &[u8], shared: &mut Shared) -> Result<(), CrowdError> {
        let mut framed = std::mem::take(&mut shared.outgoing);
        framed.clear();
        wire::put(shared.venue.framing, Role::Client, object, &mut framed);
        let sent = self.write(&framed);
        shared.outgoing = framed;
        sent
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), CrowdError> {
        let taken = if self.outbox.is_empty() {
            self.write_once(bytes)?
        } else {
            0
        };
        self.outbox.extend_from_slice(&bytes[taken..]);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), CrowdError> {
        while !self.outbox.is_empty() {
            let outbox = std::mem::take(&mut self.outbox);
            let taken = self.write_once(&outbox)?;
            self.outbox = outbox;
            if taken == 0 {
                break;
            }
            self.outbox.drain(..taken);
        }
        Ok(())
    }

    fn write_once(&mut self, bytes: &[u8]) -> Result<usize, CrowdError> {
        loop {
            match self.stream.write(bytes) {
                Ok(taken) => return Ok(taken),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                Err(error) => return Err(self.socket_error(error)),
            }
        }
    }

    fn socket_error(&self, source: io::Error) -> CrowdError {
        CrowdError::Socket {
            user: user_name(self.index),
            stage: self.stage.words(),
            source,
        }
    }

    /// Reads until the socket is empty: to its end if the peer has `closed`, else until a read
    /// comes short, which spares the one that would find nothing.
    fn read(
        &mut self,
        closed: bool,
        shared: &mut Shared,
        scratch: &mut [u8],
        audience: &mut impl Audience,
    ) -> Result<(), CrowdError> {
        loop {
            let held = self.partial.len();
            scratch[..held].copy_from_slice(&self.partial);
            let count = match self.stream.read(&mut scratch[held..]) {
                Ok(0) => {
                    return Err(CrowdError::Closed {
                        user: user_name(self.index),
                        stage: self.stage.words(),
                    });
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.socket_error(error)),
            };
            shared.reads += 1;
            let used = self.take(&scratch[..held + count], shared, audience)?;
            self.partial.clear();
            self.partial.extend_from_slice(&scratch[used..held + count]);
            if held + count < scratch.len() && !closed {
                return Ok(());
            }
        }
    }

    /// Handles the frames in `bytes`; returns how many bytes they were.
    fn take(
        &mut self,
        bytes: &[u8],
        shared: &mut Shared,
        audience: &mut impl Audience,
    ) -> Result<usize, CrowdError> {
        let at = shared.watch.elapsed();
        let mut used = 0;
        if self.stage == Stage::Upgrading {
            let Some(end) = wire::head_end(bytes) else {
                return if bytes.len() < MAX_FRAME {
                    Ok(0)
                } else {
                    Err(self.not_upgraded(bytes))
                };
            };
            let head = String::from_utf8_lossy(&bytes[..end]);
            let accept = derive_accept_key(UPGRADE_KEY.as_bytes());
            if !head.starts_with("HTTP/1.1 101 ")
                || wire::header(&head, "sec-websocket-accept") != Some(&accept)
            {
                return Err(self.not_upgraded(bytes));
            }
            self.log_in(shared)?;
            used = end;
        }
        let framing = shared.venue.framing;
        loop {
            let rest = &bytes[used..];
            let piece = wire::cut(framing, rest).map_err(|source| CrowdError::Wire {
                user: user_name(self.index),
                source,
            })?;
            let Some(piece) = piece else { return Ok(used) };
            let payload = &rest[piece.payload];
            match piece.kind {
                Kind::Text if self.stage == Stage::Present => {
                    audience.heard(self.index, payload, at)?
                }
                Kind::Text => self.answered(payload, shared, audience)?,
                Kind::Ping => {
                    let mut pong = Vec::new();
                    wire::put_pong(Role::Client, payload, &mut pong);
                    self.write(&pong)?;
                }
                Kind::Pong => (),
                Kind::Close => {
                    let (code, reason) = wire::close_reason(payload);
                    return Err(CrowdError::CloseFrame {
                        user: user_name(self.index),
                        code,
                        reason,
                    });
                }
            }
            used += piece.end;
        }
    }

    fn not_upgraded(&self, answer: &[u8]) -> CrowdError {
        CrowdError::Upgrade {
            user: user_name(self.index),
            answer: shown(answer),
        }
    }

    /// An object on the way into the room.
    fn answered(
        &mut self,
        object: &[u8],
        shared: &mut Shared,
        audience: &mut impl Audience,
    ) -> Result<(), CrowdError> {
        let told = || told(self.index, self.stage.words(), object);
        let answer: Answer<'_> = serde_json::from_slice(object).map_err(|_| told())?;
        match (self.stage, &*answer.kind) {
            (Stage::LoggingIn, "session") => {
                // Over WebSocket the server asks for the signs of life itself, and gets them.
                if answer.timeout_ms > 0 && shared.venue.framing == Framing::Lines {
                    return Err(CrowdError::Impatient {
                        timeout_ms: answer.timeout_ms,
                    });
                }
                if shared.join {
                    self.stage = Stage::Joining;
                    let join =
                        format!(r#"{{"type":"join","id":2,"room":"{}"}}"#, shared.venue.room);
                    self.send(join.as_bytes(), shared)?;
                } else {
                    self.stage = Stage::Present;
                    shared.present += 1;
                }
            }
            (Stage::Joining, "init") => {
                audience.arrived(self.index, answer.seq.ok_or_else(told)?);
                self.stage = Stage::Present;
                shared.present += 1;
            }
            _ => return Err(told()),
        }
        Ok(())
    }
}

/// The error of a member that was sent `object` while it was doing what `stage` says.
#[must_use]
pub fn told(member: usize, stage: &'static str, object: &[u8]) -> CrowdError {
    CrowdError::Told {
        user: user_name(member),
        stage,
        object: shown(object),
    }
}

fn shown(bytes: &[u8]) -> String {
    let cut = bytes.len().min(SHOWN_BYTES);
    let more = if cut < bytes.len() { "…" } else { "" };
    format!("{}{more}", String::from_utf8_lossy(&bytes[..cut]))
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    #[serde(default)]
    timeout_ms: u64,
    seq: Option<u64>,
}
