//! The floor: one thread, one epoll, one non-blocking write of bytes encoded once per member and
//! message.
//!
//! It answers `login`, `join`, `send`, `ping` and `logout` as the protocol says and nothing else; a connection is in one
//! room at most. There are no limits, checks, history or names to keep unique: whatever a server costs above this is
//! what it asks for those. A whole round of readiness is read before anything is written; where messages are to go out
//! together, and more than one has come, it gives way to those who may send more before it writes.
//!
//! It is for loopback and a client that is trusted; still nothing grows without bound: a member
//! that does not read is dropped, and so is one whose frame never ends.

use std::{
    borrow::Cow,
    collections::HashMap,
    io::{self, Read, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use mio::{
    Events, Interest, Poll, Token, Waker,
    net::{TcpListener, TcpStream},
};
use serde::{Deserialize, Serialize};
use slab::Slab;
use tungstenite::handshake::derive_accept_key;

use crate::{
    clock,
    wire::{self, Framing, Kind, Role},
};

/// Bytes that may wait for a member that does not read; one that needs more is dropped.
const PARKED_BYTES: usize = 1024 * 1024;
/// Rooms there may be.
const ROOMS: usize = 100_000;
/// Bytes taken from one connection in one turn.
const READ_BYTES: usize = 64 * 1024;
/// How often it gives way and looks for more messages before it writes together those that it has.
const LOOKS: usize = 4;
const LISTENER: Token = Token(usize::MAX);
const STOP: Token = Token(usize::MAX - 1);

/// How messages that arrived in one turn go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One write for each message and member.
    Lone,
    /// One write for each member, with all messages of the turn. Where there are several, a turn lasts a little longer,
    /// for those that follow on their heels.
    Batch,
}

impl Mode {
    /// The word that command lines and reports use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lone => "lone",
            Self::Batch => "batch",
        }
    }
}

/// A bound floor. See the [module](self).
#[derive(Debug)]
pub struct Floor {
    poll: Poll,
    listener: TcpListener,
    local_addr: SocketAddr,
    framing: Framing,
    mode: Mode,
    stop: Stop,
}

/// Ends a [`Floor::run`] from another thread.
#[derive(Debug, Clone)]
pub struct Stop {
    asked: Arc<AtomicBool>,
    waker: Arc<Waker>,
}

impl Stop {
    /// Makes `run` return soon.
    ///
    /// # Errors
    /// If the loop could not be woken.
    pub fn stop(&self) -> io::Result<()> {
        self.asked.store(true, Ordering::Release);
        self.waker.wake()
    }
}

impl Floor {
    /// Takes `addr`; port 0 lets the system choose.
    ///
    /// # Errors
    /// If the address can't be had.
    pub fn bind(addr: SocketAddr, framing: Framing, mode: Mode) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut listener = TcpListener::bind(addr)?;
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)?;
        let waker = Arc::new(Waker::new(poll.registry(), STOP)?);
        let stop = Stop {
            asked: Arc::new(AtomicBool::new(false)),
            waker,
        };
        Ok(Self {
            local_addr: listener.local_addr()?,
            poll,
            listener,
            framing,
            mode,
            stop,
        })
    }

    /// The address taken.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// What ends [`Floor::run`].
    #[must_use]
    pub fn stopper(&self) -> Stop {
        self.stop.clone()
    }

    /// Serves until it is stopped.
    ///
    /// # Errors
    /// If waiting fails, or accepting, say for want of descriptors. A connection that fails is
    /// dropped in silence.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(1024);
        let mut scratch = vec![0; READ_BYTES];
        let mut conns: Slab<Conn> = Slab::new();
        let mut house = House::new(self.framing);
        // Connections that had more than one read's worth. Readiness is told on its edge only, so
        // that they have to be remembered.
        let mut unread: Vec<usize> = Vec::new();
        let mut looks = 0;
        while !self.stop.asked.load(Ordering::Acquire) {
            let timeout = if unread.is_empty() && looks == 0 {
                None
            } else {
                Some(Duration::ZERO)
            };
            match self.poll.poll(&mut events, timeout) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            }
            for key in std::mem::take(&mut unread) {
                serve(
                    &mut conns,
                    key,
                    false,
                    &mut house,
                    &mut scratch,
                    &mut unread,
                );
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(&mut conns)?,
                    STOP => (),
                    Token(key) => {
                        if event.is_writable()
                            && let Some(conn) = conns.get_mut(key)
                        {
                            conn.flush();
                        }
                        let closed = event.is_read_closed() || event.is_error();
                        if event.is_readable() || closed {
                            serve(
                                &mut conns,
                                key,
                                closed,
                                &mut house,
                                &mut scratch,
                                &mut unread,
                            );
                        }
                    }
                }
            }
            if self.mode == Mode::Batch && house.untold > 1 && looks < LOOKS {
                looks += 1;
                // Whoever has more to send may need this processor for it.
                thread::yield_now();
                continue;
            }
            looks = 0;
            house.tell(&mut conns, self.mode);
        }
        Ok(())
    }

    fn accept(&mut self, conns: &mut Slab<Conn>) -> io::Result<()> {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            if stream.set_nodelay(true).is_err() {
                // Gone before it was taken.
                continue;
            }
            let entry = conns.vacant_entry();
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll
                .registry()
                .register(&mut stream, Token(entry.key()), interest)?;
            entry.insert(Conn::new(stream, self.framing));
        }
    }
}

/// Reads from the connection and does what it asks; drops it if it is over. Reads once and no more,
/// so that nobody is starved; but to the end where the peer has `closed`, since no edge will tell
/// of that again.
fn serve(
    conns: &mut Slab<Conn>,
    key: usize,
    closed: bool,
    house: &mut House,
    scratch: &mut [u8],
    unread: &mut Vec<usize>,
) {
    let Some(conn) = conns.get_mut(key) else {
        return;
    };
    loop {
        match conn.read(key, house, scratch) {
            Reading::Nothing => return,
            Reading::Part | Reading::Whole if closed => (),
            Reading::Part => return unread.push(key),
            Reading::Whole => return,
            Reading::Over => break,
        }
    }
    house.remove(conns, key);
}

/// All rooms.
struct House {
    framing: Framing,
    names: HashMap<Box<str>, usize>,
    rooms: Vec<Room>,
    /// Rooms with messages of this turn, and how many messages there are.
    dirty: Vec<usize>,
    untold: usize,
}

struct Room {
    seq: u64,
    members: Vec<usize>,
    /// Messages of this turn, as the members will get them, and where each ends.
    batch: Vec<u8>,
    ends: Vec<usize>,
}

/// Where a member is: in which room, and at which place of its list.
#[derive(Clone, Copy)]
struct Place {
    room: usize,
    at: usize,
}

impl House {
    fn new(framing: Framing) -> Self {
        Self {
            framing,
            names: HashMap::new(),
            rooms: Vec::new(),
            dirty: Vec::new(),
            untold: 0,
        }
    }

    /// Takes a member into the room of this name.
    fn join(&mut self, name: &str, key: usize) -> Result<Place, Ended> {
        let room = match self.names.get(name) {
            Some(room) => *room,
            None if self.rooms.len() == ROOMS => return Err(Ended),
            None => {
                self.names.insert(name.into(), self.rooms.len());
                self.rooms.push(Room {
                    seq: 0,
                    members: Vec::new(),
                    batch: Vec::new(),
                    ends: Vec::new(),
                });
                self.rooms.len() - 1
            }
        };
        let members = &mut self.rooms[room].members;
        members.push(key);
        Ok(Place {
            room,
            at: members.len() - 1,
        })
    }

    /// Numbers a message for the end of this turn; returns its number and time.
    fn message(&mut self, room: usize, name: &str, user: &str, text: &str) -> (u64, u64) {
        let framing = self.framing;
        let (which, room) = (room, &mut self.rooms[room]);
        room.seq += 1;
        self.untold += 1;
        let at = clock::unix_millis();
        let event = Object::Message {
            room: name,
            seq: room.seq,
            at,
            user,
            text,
        };
        put(framing, &event, &mut room.batch);
        room.ends.push(room.batch.len());
        if room.ends.len() == 1 {
            self.dirty.push(which);
        }
        (room.seq, at)
    }

    /// Tells this turn's messages to the members. This is what is measured.
    fn tell(&mut self, conns: &mut Slab<Conn>, mode: Mode) {
        let mut broken = Vec::new();
        self.untold = 0;
        for room in self.dirty.drain(..) {
            let room = &mut self.rooms[room];
            if mode == Mode::Batch {
                room.ends.clear();
                room.ends.push(room.batch.len());
            }
            let mut start = 0;
            for end in room.ends.drain(..) {
                let bytes = &room.batch[start..end];
                for &key in &room.members {
                    let conn = &mut conns[key];
                    if !conn.broken {
                        conn.write(bytes);
                        if conn.broken {
                            broken.push(key);
                        }
                    }
                }
                start = end;
            }
            room.batch.clear();
        }
        for key in broken {
            self.remove(conns, key);
        }
    }

    /// Drops a connection, and takes it out of its room.
    fn remove(&mut self, conns: &mut Slab<Conn>, key: usize) {
        let Some(Place { room, at }) = conns.remove(key).place else {
            return;
        };
        let members = &mut self.rooms[room].members;
        members.swap_remove(at);
        if let Some(place) = members
            .get(at)
            .and_then(|&moved| conns[moved].place.as_mut())
        {
            place.at = at;
        }
    }
}

struct Conn {
    stream: TcpStream,
    upgraded: bool,
    place: Option<Place>,
    broken: bool,
    user: Box<str>,
    /// The beginning of a frame whose rest has not come.
    inbox: Vec<u8>,
    /// What the socket did not take.
    outbox: Vec<u8>,
}

/// What one read found.
enum Reading {
    /// Nothing: the socket is empty.
    Nothing,
    /// All there was: a short read has emptied the socket.
    Whole,
    /// As much as fits, so that there may be more.
    Part,
    /// The end of the connection.
    Over,
}

impl Conn {
    fn new(stream: TcpStream, framing: Framing) -> Self {
        let upgraded = framing == Framing::Lines;
        let (inbox, outbox) = (Vec::new(), Vec::new());
        Self {
            stream,
            upgraded,
            place: None,
            broken: false,
            user: Box::default(),
            inbox,
            outbox,
        }
    }

    fn read(&mut self, key: usize, house: &mut House, scratch: &mut [u8]) -> Reading {
        let count = match self.stream.read(scratch) {
            Ok(0) => return Reading::Over,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Reading::Nothing,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Reading::Part,
            Err(_) => return Reading::Over,
        };
        let mut held = std::mem::take(&mut self.inbox);
        let bytes = if held.is_empty() {
            &mut scratch[..count]
        } else {
            held.extend_from_slice(&scratch[..count]);
            &mut held[..]
        };
        let mut replies = Vec::new();
        let Ok(used) = self.take(key, house, bytes, &mut replies) else {
            return Reading::Over;
        };
        if used < bytes.len() {
            self.inbox = bytes[used..].to_vec();
        }
        if !replies.is_empty() {
            self.write(&replies);
        }
        if self.broken {
            Reading::Over
        } else if count == scratch.len() {
            Reading::Part
        } else {
            Reading::Whole
        }
    }

    /// Does what the frames in `bytes` say; returns how many bytes they were.
    fn take(
        &mut self,
        key: usize,
        house: &mut House,
        bytes: &mut [u8],
        replies: &mut Vec<u8>,
    ) -> Result<usize, Ended> {
        let mut used = 0;
        if !self.upgraded {
            let Some(end) = wire::head_end(bytes) else {
                return if bytes.len() > READ_BYTES {
                    Err(Ended)
                } else {
                    Ok(0)
                };
            };
            upgrade(&bytes[..end], replies)?;
            self.upgraded = true;
            used = end;
        }
        while let Some(piece) = wire::cut(house.framing, &bytes[used..]).map_err(|_| Ended)? {
            let payload = &mut bytes[used..][piece.payload];
            if let Some(mask) = piece.mask {
                wire::unmask(payload, mask);
            }
            match piece.kind {
                Kind::Text => self.command(key, house, payload, replies)?,
                Kind::Ping => wire::put_pong(Role::Server, payload, replies),
                Kind::Pong => (),
                Kind::Close => return Err(Ended),
            }
            used += piece.end;
        }
        Ok(used)
    }

    fn command(
        &mut self,
        key: usize,
        house: &mut House,
        object: &[u8],
        replies: &mut Vec<u8>,
    ) -> Result<(), Ended> {
        let command: Command<'_> = serde_json::from_slice(object).map_err(|_| Ended)?;
        let id = command.id;
        let name = command.room.as_deref().unwrap_or("lobby");
        let framing = house.framing;
        match &*command.kind {
            "login" => {
                self.user = command.user.as_deref().unwrap_or("").into();
                let session = Object::Session {
                    id,
                    session: &format!("{key:022}"),
                    user: &self.user,
                    timeout_ms: 0,
                    ping_every_ms: 0,
                    resumed: false,
                    protocol: 1,
                };
                put(framing, &session, replies);
            }
            "join" => {
                let place = match self.place {
                    Some(place) => place,
                    None => house.join(name, key)?,
                };
                self.place = Some(place);
                let room = &house.rooms[place.room];
                let init = Object::Init {
                    id,
                    room: name,
                    users: [],
                    count: room.members.len(),
                    presence: "off",
                    epoch: "floor",
                    seq: room.seq,
                    recovered: false,
                };
                put(framing, &init, replies);
            }
            "send" if let Some(place) = self.place => {
                let room = place.room;
                let text = command.text.as_deref().unwrap_or("");
                let (seq, at) = house.message(room, name, &self.user, text);
                let sent = Object::Sent {
                    id,
                    room: name,
                    seq,
                    at,
                };
                put(framing, &sent, replies);
            }
            "ping" => put(framing, &Object::Pong { id }, replies),
            "logout" => return Err(Ended),
            _ => {
                let message =
                    "the floor knows login, join, ping, logout and, once in the room, send";
                put(
                    framing,
                    &Object::Error {
                        id,
                        code: "unknown_type",
                        message,
                    },
                    replies,
                );
            }
        }
        Ok(())
    }

    /// Writes `bytes` once, or parks what the socket does not take.
    fn write(&mut self, bytes: &[u8]) {
        let taken = if self.outbox.is_empty() {
            write_once(&mut self.stream, bytes)
        } else {
            Ok(0)
        };
        match taken {
            Ok(taken) if self.outbox.len() + bytes.len() - taken <= PARKED_BYTES => {
                self.outbox.extend_from_slice(&bytes[taken..]);
            }
            _ => self.broken = true,
        }
    }

    /// Writes what was parked, now that there is room.
    fn flush(&mut self) {
        while !self.outbox.is_empty() {
            match write_once(&mut self.stream, &self.outbox) {
                Ok(0) => return,
                Ok(taken) => drop(self.outbox.drain(..taken)),
                // The same event tells of the end, so that reading will find it.
                Err(_) => return,
            }
        }
    }
}

/// What the socket took; nothing if it is full.
fn write_once(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match stream.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            taken => return taken,
        }
    }
}

/// That a connection is over, for whatever reason: to the floor all are one.
struct Ended;

fn upgrade(head: &[u8], replies: &mut Vec<u8>) -> Result<(), Ended> {
    let head = std::str::from_utf8(head).map_err(|_| Ended)?;
    let key = wire::header(head, "sec-websocket-key").ok_or(Ended)?;
    let accept = derive_accept_key(key.as_bytes());
    replies.extend_from_slice(
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        )
        .as_bytes(),
    );
    Ok(())
}

#[derive(Deserialize)]
struct Command<'c> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'c, str>,
    id: Option<u64>,
    #[serde(borrow)]
    user: Option<Cow<'c, str>>,
    #[serde(borrow)]
    room: Option<Cow<'c, str>>,
    #[serde(borrow)]
    text: Option<Cow<'c, str>>,
}

/// The objects as a server sends them, with the same fields in the same order.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Object<'o> {
    Session {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        session: &'o str,
        user: &'o str,
        timeout_ms: u64,
        ping_every_ms: u64,
        resumed: bool,
        protocol: u64,
    },
    Init {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        room: &'o str,
        users: [&'o str; 0],
        count: usize,
        presence: &'o str,
        epoch: &'o str,
        seq: u64,
        recovered: bool,
    },
    Sent {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        room: &'o str,
        seq: u64,
        at: u64,
    },
    Message {
        room: &'o str,
        seq: u64,
        at: u64,
        user: &'o str,
        text: &'o str,
    },
    Pong {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
    },
    Error {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        code: &'o str,
        message: &'o str,
    },
}

fn put(framing: Framing, object: &Object<'_>, out: &mut Vec<u8>) {
    let json = serde_json::to_vec(object)
        .expect("these objects hold strings and numbers, which always encode");
    wire::put(framing, Role::Server, &json, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_the_shape_of_a_servers() {
        let mut house = House::new(Framing::Lines);
        let place = house.join("bench", 7).ok().unwrap();
        let (seq, at) = house.message(place.room, "bench", "m000001", "a \"quoted\" text\n");
        let expected = format!(
            r#"{{"type":"message","room":"bench","seq":1,"at":{at},"user":"m000001","text":"a \"quoted\" text\n"}}"#
        );
        assert_eq!(seq, 1);
        assert_eq!(
            String::from_utf8(house.rooms[0].batch.clone()).unwrap(),
            expected + "\n"
        );
    }

    #[test]
    fn an_upgrade_is_answered_as_the_standard_shows() {
        let mut reply = Vec::new();
        let head = b"GET /v1/ws HTTP/1.1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        assert!(upgrade(head, &mut reply).is_ok());
        let reply = String::from_utf8(reply).unwrap();
        assert!(reply.starts_with("HTTP/1.1 101 "), "{reply}");
        assert_eq!(
            wire::header(&reply, "Sec-WebSocket-Accept"),
            Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
        );
    }

    #[test]
    fn an_upgrade_without_a_key_is_refused() {
        assert!(upgrade(b"GET / HTTP/1.1\r\n\r\n", &mut Vec::new()).is_err());
    }
}
