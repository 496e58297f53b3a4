//! Many clients on one thread: connects them gently, logs them in, takes them into their rooms, and hands everything
//! that they are then sent to a [`Hearing`].
//!
//! A member that is refused, ended or disconnected ends the whole measurement with what it was told: figures of a
//! crowd that melted away are worth nothing. Only members that were told to [stall](Crowd::stall) may be ended.

use std::{
    io::{self, Write as _},
    mem,
    ops::{AddAssign, Range},
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use mio::{Events, Interest, Poll, Registry, Token, unix::SourceFd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::{
    clock::Stopwatch,
    hearing::Hearing,
    hint, interrupt,
    link::{Link, Stage, Trouble},
    target::{Dialect, Names, Target},
    wire::MAX_FRAME,
};

/// Connections on their way into the room at one time: well within any listen backlog.
const UNDER_WAY: usize = 64;
/// Bytes that one read may bring.
const READ_BYTES: usize = 256 * 1024;
/// Longest single wait for sockets.
pub(crate) const SLICE: Duration = Duration::from_millis(100);
const ALARM: Token = Token(usize::MAX);

/// Why a crowd could not gather or stay.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CrowdError {
    /// The event loop itself failed.
    #[error("waiting for sockets failed")]
    Poll(#[source] io::Error),
    /// Somebody asked the run to stop.
    #[error("interrupted")]
    Interrupted,
    /// A connection could not even be begun.
    #[error("{user} could not open a connection")]
    Open {
        /// The member.
        user: String,
        /// Why not.
        source: io::Error,
    },
    /// A member got into trouble.
    #[error("{user} was {}: {trouble}{}", .stage.words(), hint::after(.trouble, *.stage))]
    Member {
        /// The member.
        user: String,
        /// How far it had come.
        stage: Stage,
        /// What happened to it.
        trouble: Trouble,
    },
    /// The crowd did not gather in time.
    #[error("{present} of {wanted} members were there after {limit:?}; {user} was {}", .stage.words())]
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
        stage: Stage,
    },
}

/// What went over the connections, as the sockets saw it: without the headers of TCP and IP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Reads that brought something.
    pub reads: u64,
    /// Bytes that the server sent.
    pub bytes_in: u64,
    /// Bytes that the members sent.
    pub bytes_out: u64,
    /// Answers to polls, and those among them that came compressed.
    pub answers: u64,
    /// The same.
    pub compressed: u64,
}

impl Traffic {
    /// What there was since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            reads: self.reads - before.reads,
            bytes_in: self.bytes_in - before.bytes_in,
            bytes_out: self.bytes_out - before.bytes_out,
            answers: self.answers - before.answers,
            compressed: self.compressed - before.compressed,
        }
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, more: Self) {
        self.reads += more.reads;
        self.bytes_in += more.bytes_in;
        self.bytes_out += more.bytes_out;
        self.answers += more.answers;
        self.compressed += more.compressed;
    }
}

/// What became of a member that stalled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Still connected.
    There,
    /// Ended with this code.
    Bye(String),
    /// Disconnected without a word that could be read.
    Cut,
}

/// The connections. See the [module](self).
#[derive(Debug)]
pub struct Crowd {
    poll: Poll,
    events: Events,
    alarm: Alarm,
    /// The members in order, and after them the hands of those that need a second connection to speak.
    links: Vec<Link>,
    members: usize,
    hands: Vec<Option<usize>>,
    scratch: Vec<u8>,
    pings: Pings,
    cx: Context,
}

/// What every connection needs and none owns.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) target: Target,
    pub(crate) names: Names,
    pub(crate) rooms: Vec<String>,
    pub(crate) watch: Stopwatch,
    /// Whether members go on into their rooms once they are logged in.
    pub(crate) join: bool,
    /// Members that are where they should be.
    pub(crate) there: usize,
    pub(crate) traffic: Traffic,
    /// How often members send a sign of life by themselves; zero: never.
    pub(crate) ping_every: Duration,
    /// How often a connection without traffic has some all the same, whoever begins; zero: never, or nobody told.
    pub(crate) period: Duration,
    /// What fills a text up to its length.
    pub(crate) padding: Vec<u8>,
    /// Where a member's connection is registered if it needs another one.
    pub(crate) registry: Registry,
    /// Buffers that are kept so that nothing is allocated for a message.
    pub(crate) object: Vec<u8>,
    pub(crate) out: Vec<u8>,
    pub(crate) inflated: Vec<u8>,
}

impl Context {
    pub(crate) fn room(&self, member: usize) -> &str {
        &self.rooms[member % self.rooms.len()]
    }
}

/// Whose turn it is to show a sign of life.
#[derive(Debug, Default)]
struct Pings {
    next: Duration,
    cursor: usize,
}

impl Crowd {
    /// Nobody yet. Members go to `rooms` in turn; `watch` is the clock of everything that is reported, and texts are
    /// filled up with `padding`.
    ///
    /// # Errors
    /// If the system gives no event loop.
    pub fn new(
        target: Target,
        names: Names,
        rooms: usize,
        padding: Vec<u8>,
        watch: Stopwatch,
    ) -> Result<Self, CrowdError> {
        let poll = Poll::new().map_err(CrowdError::Poll)?;
        let alarm = Alarm::new(&poll).map_err(CrowdError::Poll)?;
        let registry = poll.registry().try_clone().map_err(CrowdError::Poll)?;
        let rooms = names.rooms(rooms);
        Ok(Self {
            poll,
            alarm,
            events: Events::with_capacity(1024),
            links: Vec::new(),
            members: 0,
            hands: Vec::new(),
            scratch: vec![0; MAX_FRAME + READ_BYTES],
            pings: Pings::default(),
            cx: Context {
                target,
                names,
                rooms,
                watch,
                join: true,
                there: 0,
                traffic: Traffic::default(),
                ping_every: Duration::ZERO,
                period: Duration::ZERO,
                padding,
                registry,
                object: Vec::new(),
                out: Vec::new(),
                inflated: Vec::new(),
            },
        })
    }

    /// The clock of everything that the crowd reports.
    #[must_use]
    pub fn watch(&self) -> Stopwatch {
        self.cx.watch
    }

    /// Members that are logged in and, if they were to, have joined.
    #[must_use]
    pub fn present(&self) -> usize {
        self.cx.there
    }

    /// What went over all connections since the crowd was made.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.cx.traffic
    }

    /// How often a connection without traffic has some all the same; `None` if it has none, or the server does not tell.
    #[must_use]
    pub fn period(&self) -> Option<Duration> {
        (!self.cx.period.is_zero()).then_some(self.cx.period)
    }

    /// Lets so many more members in, as far as the bound on those under way allows; [`Crowd::turn`] brings them on.
    /// Returns whether all `wanted` members are where they should be.
    ///
    /// # Errors
    /// If a connection can't be begun.
    pub fn admit(&mut self, wanted: usize, join: bool) -> Result<bool, CrowdError> {
        debug_assert!(
            self.hands.iter().all(Option::is_none),
            "members come before anybody speaks"
        );
        self.cx.join = join;
        while self.members < wanted && self.members - self.cx.there < UNDER_WAY {
            self.connect(self.members, false)?;
            self.members += 1;
            self.hands.push(None);
        }
        Ok(self.cx.there >= wanted)
    }

    /// Tells everybody who is logged in to join.
    ///
    /// # Errors
    /// If a connection fails.
    pub fn join_all(&mut self) -> Result<(), CrowdError> {
        self.cx.there = 0;
        self.join(0..self.members)
    }

    /// Tells `members`, who are logged in and in no room, to join.
    ///
    /// # Errors
    /// If a connection fails.
    pub fn join(&mut self, members: Range<usize>) -> Result<(), CrowdError> {
        self.cx.join = true;
        for at in members {
            let done = self.links[at].join(&mut self.cx);
            self.settle(at, done)?;
        }
        Ok(())
    }

    /// Tells `members`, who are in their rooms, to leave them.
    ///
    /// # Errors
    /// If a connection fails.
    pub fn leave(&mut self, members: Range<usize>) -> Result<(), CrowdError> {
        for at in members {
            let done = self.links[at].leave(&mut self.cx);
            self.settle(at, done)?;
        }
        Ok(())
    }

    /// The error of a crowd that did not gather in time.
    #[must_use]
    pub fn too_late(&self, wanted: usize, limit: Duration) -> CrowdError {
        let goal = if self.cx.join {
            Stage::Present
        } else {
            Stage::LoggedIn
        };
        let absent = self.links.iter().find(|link| link.stage() != goal);
        let (index, stage) = absent.map_or((self.members, Stage::Connecting), |link| {
            (link.member(), link.stage())
        });
        CrowdError::TooLate {
            present: self.cx.there,
            wanted,
            limit,
            user: self.cx.names.user(index),
            stage,
        }
    }

    fn connect(&mut self, member: usize, hand: bool) -> Result<usize, CrowdError> {
        let at = self.links.len();
        let mut link =
            Link::open(member, hand, &self.cx.target).map_err(|source| CrowdError::Open {
                user: self.cx.names.user(member),
                source,
            })?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll
            .registry()
            .register(link.stream(), Token(at), interest)
            .map_err(CrowdError::Poll)?;
        self.links.push(link);
        Ok(at)
    }

    /// Waits at most `timeout` (zero: not at all) for the server and reads all there is.
    ///
    /// # Errors
    /// If a member fails or is ended, or is told what it should not be.
    pub fn turn(&mut self, timeout: Duration, hearing: &mut Hearing) -> Result<(), CrowdError> {
        let wait = if timeout.is_zero() || timeout >= SLICE {
            timeout.min(SLICE)
        } else {
            // The system's own time limits are whole milliseconds, rounded up, which would send late.
            self.alarm.set(timeout).map_err(CrowdError::Poll)?;
            SLICE
        };
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            other => other.map_err(CrowdError::Poll)?,
        }
        if interrupt::asked() {
            return Err(CrowdError::Interrupted);
        }
        let events = mem::replace(&mut self.events, Events::with_capacity(0));
        let mut done = Ok(());
        for event in events.iter().filter(|event| event.token() != ALARM) {
            let at = event.token().0;
            let result = self.links[at].ready(event, &mut self.cx, &mut self.scratch, hearing);
            done = self.settle(at, result);
            if done.is_err() {
                break;
            }
        }
        self.events = events;
        done?;
        self.ping()
    }

    /// What trouble of one connection means for the crowd.
    fn settle(&mut self, at: usize, result: Result<(), Trouble>) -> Result<(), CrowdError> {
        let Err(trouble) = result else { return Ok(()) };
        let link = &mut self.links[at];
        if link.endure(&trouble) {
            // It may be closed for good: nothing more will come of it, and a hand is opened anew when it is needed.
            _ = self.poll.registry().deregister(link.stream());
            return Ok(());
        }
        Err(CrowdError::Member {
            user: self.cx.names.user(link.member()),
            stage: link.stage(),
            trouble,
        })
    }

    /// Signs of life of members that would otherwise be silent, spread over the time that they have.
    fn ping(&mut self) -> Result<(), CrowdError> {
        if self.cx.ping_every.is_zero() || self.members == 0 {
            return Ok(());
        }
        let now = self.cx.watch.elapsed();
        let apart = self.cx.ping_every / u32::try_from(self.members).unwrap_or(u32::MAX);
        // Not more than everybody once, however long nobody looked.
        self.pings.next = self.pings.next.max(now.saturating_sub(self.cx.ping_every));
        while self.pings.next <= now {
            let at = self.pings.cursor % self.members;
            self.pings.cursor = at + 1;
            self.pings.next += apart.max(Duration::from_nanos(1));
            let done = self.links[at].ping(&mut self.cx);
            self.settle(at, done)?;
        }
        Ok(())
    }

    /// Sends a message of `member` to its room: the `number`th, due at `due`. Where its socket has more to take than
    /// `unsent` bytes, nothing is sent and false returned.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn publish(
        &mut self,
        member: usize,
        due: Duration,
        number: u64,
        unsent: usize,
    ) -> Result<bool, CrowdError> {
        let at = self.mouth(member)?;
        if self.links[at].unsent() > unsent {
            return Ok(false);
        }
        let done = self.links[at].publish(due, number, &mut self.cx);
        self.settle(at, done)?;
        Ok(true)
    }

    /// What `member` says waits until it is [let go](Crowd::let_go).
    ///
    /// # Errors
    /// If it needs another connection to speak, and that can't be begun.
    pub fn hold(&mut self, member: usize) -> Result<(), CrowdError> {
        let at = self.mouth(member)?;
        self.links[at].hold();
        Ok(())
    }

    /// All that `member` said leaves in one write.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn let_go(&mut self, member: usize) -> Result<(), CrowdError> {
        let at = self.mouth(member)?;
        let done = self.links[at].let_go(&mut self.cx);
        self.settle(at, done)
    }

    /// The connection that `member` speaks through. A poll that waits keeps its connection busy, so that a polling
    /// member has a second one, opened when it first speaks and again where the server has closed it.
    fn mouth(&mut self, member: usize) -> Result<usize, CrowdError> {
        if self.cx.target.dialect != Dialect::Polling {
            return Ok(member);
        }
        if let Some(at) = self.hands[member].filter(|&at| !self.links[at].is_over()) {
            return Ok(at);
        }
        let session = self.links[member].session().into();
        let at = self.connect(member, true)?;
        self.links[at].speak_for(session);
        self.hands[member] = Some(at);
        Ok(at)
    }

    /// From now on `members` read nothing.
    ///
    /// # Errors
    /// If the system does not let go of their sockets.
    pub fn stall(&mut self, members: Range<usize>) -> Result<(), CrowdError> {
        for link in &mut self.links[members] {
            link.stall();
            self.poll
                .registry()
                .deregister(link.stream())
                .map_err(CrowdError::Poll)?;
        }
        Ok(())
    }

    /// The local ports of `members`, by which the system knows the other ends of their connections.
    ///
    /// # Errors
    /// If a socket has none.
    pub fn local_ports(&mut self, members: Range<usize>) -> Result<Vec<u16>, CrowdError> {
        self.links[members]
            .iter_mut()
            .map(|link| {
                let addr = link.stream().local_addr().map_err(CrowdError::Poll)?;
                Ok(addr.port())
            })
            .collect()
    }

    /// Lets `members` that stalled read again, for at most `limit`, to see what became of them.
    ///
    /// # Errors
    /// If the crowd fails.
    pub fn fates(
        &mut self,
        members: Range<usize>,
        limit: Duration,
        hearing: &mut Hearing,
    ) -> Result<Vec<Fate>, CrowdError> {
        for at in members.clone() {
            self.poll
                .registry()
                .register(
                    self.links[at].stream(),
                    Token(at),
                    Interest::READABLE | Interest::WRITABLE,
                )
                .map_err(CrowdError::Poll)?;
        }
        let start = self.cx.watch.elapsed();
        while self.links[members.clone()]
            .iter()
            .any(|link| !link.is_over())
            && self.cx.watch.elapsed() - start < limit
        {
            self.turn(SLICE / 2, hearing)?;
        }
        Ok(self.links[members].iter().map(Link::fate).collect())
    }
}

/// A wait that is exact to less than a millisecond, which those of epoll are not.
#[derive(Debug)]
struct Alarm(OwnedFd);

impl Alarm {
    fn new(poll: &Poll) -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        poll.registry()
            .register(&mut SourceFd(&timer.as_raw_fd()), ALARM, Interest::READABLE)?;
        Ok(Self(timer))
    }

    /// Rings once after `wait`, which is short and not zero. It need not be read: readiness is told on its edge.
    fn set(&self, wait: Duration) -> io::Result<()> {
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let value = Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        };
        let new = Itimerspec {
            it_interval: zero,
            it_value: value,
        };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &new)?;
        Ok(())
    }
}

/// Appends what `arguments` say to bytes that are kept.
pub(crate) fn append(out: &mut Vec<u8>, arguments: std::fmt::Arguments<'_>) {
    out.write_fmt(arguments)
        .expect("writing to a vector can't fail");
}
