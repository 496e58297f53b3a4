//! How bytes reach a client: a push outlet writes to the socket at once and queues only while the socket is full; a
//! pull outlet keeps what happened until the client has fetched and acknowledged it.
//!
//! Both are the [`CallbackAdapter`] that a lane hands batches to: synchronous, never blocking, never awaiting. Both
//! also hold the session's reply slots, which keep the replies in the order of the commands.

use std::{
    borrow::Cow,
    collections::{VecDeque, vec_deque},
    fmt, io,
    iter::Take,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use atomic_waker::AtomicWaker;
use bytes::{Buf, Bytes};
use tokio::{
    sync::{Semaphore, oneshot},
    time::Sleep,
};

use crate::{
    Refusal,
    clock::{self, Instant},
    config::QueueLimits,
    lock::{Mutex, MutexGuard},
    message::{Frame, Framing},
    telemetry::TransportMetrics,
};

/// What a queued piece costs beside its bytes: the handle and its share of the buffer's own account.
const PIECE_COST: usize = 64;
/// Replies of one read turn are gathered up to here, then written.
const CORK_BYTES: usize = 16 << 10;
/// An answer to a poll is laid out under its lock while no more is kept than this; else the lane, and with it whoever
/// publishes, would wait for the copy.
const BRIEF_BYTES: usize = 16 << 10;
/// Most pieces handed to one vectored write.
const MAX_SLICES: usize = 64;

/// A non-blocking writer: a socket, or the pipe of a test.
pub trait TryWrite: Send + Sync + 'static {
    /// Writes what the other end takes now.
    ///
    /// # Errors
    /// `WouldBlock` when it takes nothing now; anything else means that the connection is lost.
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;

    /// The same for several pieces in order.
    ///
    /// # Errors
    /// As [`TryWrite::try_write`].
    fn try_write_vectored(&self, slices: &[io::IoSlice<'_>]) -> io::Result<usize>;

    /// Ready when a write may take something again, and what the writer itself holds back is gone.
    ///
    /// # Errors
    /// The connection is lost.
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Whether it may hold back what it has taken, as encryption does. Asked once.
    fn may_hold_back(&self) -> bool {
        false
    }

    /// Whether it holds something back now, which [`poll_write_ready`](Self::poll_write_ready) has to get out.
    fn holds_back(&self) -> bool {
        false
    }
}

/// What a lane hands to a member: some events of one room, laid out once for each way of framing in use.
pub(crate) struct Batch {
    frames: Vec<Frame>,
    laid: [Option<Layout>; 2],
}

struct Layout {
    bytes: Bytes,
    /// Where each event begins, and the end of the last.
    starts: Vec<usize>,
}

impl Batch {
    pub(crate) fn new(frames: Vec<Frame>) -> Self {
        Self {
            frames,
            laid: [None, None],
        }
    }

    pub(crate) fn frames(&self, skip: usize) -> &[Frame] {
        self.frames.get(skip..).unwrap_or_default()
    }

    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }

    /// The events from the `skip`-th on, as one piece. Laid out when first asked for.
    pub(crate) fn framed(&mut self, framing: Framing, skip: usize) -> Cow<'_, Bytes> {
        let layout =
            self.laid[framing as usize].get_or_insert_with(|| Layout::new(&self.frames, framing));
        if skip == 0 {
            // Nearly every member: not even the count of references is touched for it.
            Cow::Borrowed(&layout.bytes)
        } else {
            Cow::Owned(layout.bytes.slice(layout.starts[skip]..))
        }
    }
}

impl Layout {
    fn new(frames: &[Frame], framing: Framing) -> Self {
        if let [frame] = frames {
            let bytes = frame.framed(framing);
            return Self {
                starts: vec![0, bytes.len()],
                bytes,
            };
        }
        let mut bytes = Vec::with_capacity(
            frames
                .iter()
                .map(|frame| frame.as_framed(framing).len())
                .sum(),
        );
        let mut starts = Vec::with_capacity(frames.len() + 1);
        for frame in frames {
            starts.push(bytes.len());
            bytes.extend_from_slice(frame.as_framed(framing));
        }
        starts.push(bytes.len());
        Self {
            bytes: bytes.into(),
            starts,
        }
    }
}

/// What became of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// Written, or queued within bounds.
    Taken(usize),
    /// The queue is over its bound: a slow consumer.
    Full,
    /// The connection is lost.
    Lost,
    /// The session has ended.
    Closed,
}

/// The answer to one command.
#[derive(Debug)]
pub(crate) struct Answer {
    /// `None`: the slot is done with, and nothing is said.
    pub(crate) frame: Option<Frame>,
    /// Where the command was refused: what a status is made of.
    pub(crate) refusal: Option<Box<Refusal>>,
}

impl From<Frame> for Answer {
    fn from(frame: Frame) -> Self {
        Self {
            frame: Some(frame),
            refusal: None,
        }
    }
}

impl Answer {
    /// No answer that anybody sees.
    pub(crate) fn nothing() -> Self {
        Self {
            frame: None,
            refusal: None,
        }
    }

    pub(crate) fn refused(frame: Frame, refusal: Refusal) -> Self {
        Self {
            frame: Some(frame),
            refusal: Some(Box::new(refusal)),
        }
    }
}

/// The way from a lane to one member. Nothing here may block or await: a lane serves many rooms.
pub(crate) trait CallbackAdapter {
    /// Answers the command that holds `slot`: `init`, `left`, `sent`. Replies leave in the order of the slots.
    fn complete(&self, slot: Slot, reply: Answer) -> Delivery;
    /// The events of `batch` from the `skip`-th on.
    fn deliver(&self, batch: &mut Batch, skip: usize) -> Delivery;
    /// Takes the next slot, for a command that is answered later.
    fn reserve(&self) -> Slot;
}

/// The number of a reply slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot(u64);

/// The way to one client.
pub(crate) enum Outlet {
    Push(PushOutlet),
    Pull(PullOutlet),
}

impl CallbackAdapter for Outlet {
    fn complete(&self, slot: Slot, reply: Answer) -> Delivery {
        match self {
            Self::Push(push) => push.complete(slot, reply),
            Self::Pull(pull) => pull.complete(slot, reply),
        }
    }

    fn deliver(&self, batch: &mut Batch, skip: usize) -> Delivery {
        match self {
            Self::Push(push) => push.deliver(batch, skip),
            Self::Pull(pull) => pull.deliver(batch, skip),
        }
    }

    fn reserve(&self) -> Slot {
        match self {
            Self::Push(push) => push.reserve(),
            Self::Pull(pull) => pull.reserve(),
        }
    }
}

impl Outlet {
    /// Asks the client for a sign of life, where the framing can.
    pub(crate) fn ping(&self) {
        if let Self::Push(push) = self
            && let Some(ping) = push.framing.ping()
        {
            push.write(&Bytes::from_static(ping));
        }
    }

    /// Says the last words; whatever is handed over later is dropped.
    pub(crate) fn close(&self, last: &LastWords<'_>) {
        match self {
            Self::Push(push) => push.close(last),
            Self::Pull(pull) => pull.close(last.bye),
        }
    }
}

/// How a session takes leave of its client. A peer that is gone is told nothing.
#[derive(Debug, Default)]
pub(crate) struct LastWords<'a> {
    /// The last object.
    pub(crate) bye: Option<&'a Frame>,
    /// The code and the word of what the framing says at the end.
    pub(crate) closing: Option<(u16, &'static str)>,
    /// Whether to say it before what is queued, but for a piece that was begun.
    pub(crate) drop_queue: bool,
}

/// The way to a client that holds a connection open.
pub(crate) struct PushOutlet {
    socket: Arc<dyn TryWrite>,
    framing: Framing,
    limit: usize,
    /// The connection's task, which alone awaits writability and alone runs commands.
    pub(crate) waker: AtomicWaker,
    queued: metrics::Gauge,
    may_hold_back: bool,
    out: Mutex<Out>,
}

#[derive(Default)]
struct Out {
    queue: VecDeque<Bytes>,
    /// Bytes in `queue`, and [`PIECE_COST`] for each piece.
    cost: usize,
    /// A piece of which a part was written stands first: it must be finished.
    torn: bool,
    /// Replies of the read turn under way.
    cork: Vec<u8>,
    corked: bool,
    slots: VecDeque<Promise>,
    first_slot: u64,
    /// Slots not answered yet.
    unanswered: usize,
    state: State,
    /// When the socket last took something while it was full; `None` while nothing is queued or held back.
    blocked: Option<Instant>,
    /// There is something that only the connection's task can do.
    wake: bool,
}

/// A reply slot.
enum Promise {
    /// Not answered yet.
    Open,
    /// Answered, perhaps with nothing to say.
    Kept(Option<Frame>),
}

impl Promise {
    /// What was promised, if it is there; it is then to be removed.
    fn take(&mut self) -> Self {
        match self {
            Self::Open => Self::Open,
            Self::Kept(frame) => Self::Kept(frame.take()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Open,
    /// The last object is queued.
    Closing,
    /// Lost, or given up: nothing is written any more.
    Dead,
}

/// What a push outlet has under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    /// Replies owed.
    pub(crate) owed: usize,
    /// Those of them that have no answer yet.
    pub(crate) unanswered: usize,
    /// The socket is full.
    pub(crate) is_blocked: bool,
}

/// How far a push outlet is, for the connection's task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing is queued.
    Idle,
    /// The socket is full, without progress since then.
    Blocked(Instant),
    /// Everything was written, and it was the last.
    Finished,
    /// The connection is lost.
    Lost,
}

impl PushOutlet {
    pub(crate) fn new(
        socket: Arc<dyn TryWrite>,
        framing: Framing,
        limit: usize,
        metrics: &TransportMetrics,
    ) -> Self {
        let queued = metrics.queued.clone();
        Self {
            may_hold_back: socket.may_hold_back(),
            socket,
            framing,
            limit,
            waker: AtomicWaker::new(),
            queued,
            out: Mutex::default(),
        }
    }

    /// Writes `bytes`, or queues what the socket does not take.
    pub(crate) fn write(&self, bytes: &Bytes) -> Delivery {
        let mut out = self.out.lock();
        let delivery = self.write_locked(&mut out, bytes);
        self.settle(out);
        delivery
    }

    /// A reply that is ready at once. It still waits for the replies before it.
    pub(crate) fn reply(&self, reply: Frame) -> Delivery {
        let mut out = self.out.lock();
        let delivery = if out.slots.is_empty() {
            self.write_reply(&mut out, &reply)
        } else {
            out.slots.push_back(Promise::Kept(Some(reply)));
            Delivery::Taken(0)
        };
        self.settle(out);
        delivery
    }

    /// How much is under way.
    pub(crate) fn load(&self) -> Load {
        let out = self.out.lock();
        Load {
            owed: out.slots.len(),
            unanswered: out.unanswered,
            is_blocked: out.blocked.is_some(),
        }
    }

    /// Gathers replies from now on, until [`PushOutlet::uncork`].
    pub(crate) fn cork(&self) {
        self.out.lock().corked = true;
    }

    /// Writes what was gathered.
    pub(crate) fn uncork(&self) -> Delivery {
        let mut out = self.out.lock();
        out.corked = false;
        let delivery = self.flush_cork(&mut out);
        self.settle(out);
        delivery
    }

    fn write_reply(&self, out: &mut Out, reply: &Frame) -> Delivery {
        if out.state != State::Open {
            return Delivery::Closed;
        }
        if !out.corked {
            return self.write_locked(out, &reply.framed(self.framing));
        }
        out.cork.extend_from_slice(reply.as_framed(self.framing));
        if out.cork.len() >= CORK_BYTES {
            self.flush_cork(out)
        } else {
            Delivery::Taken(0)
        }
    }

    fn flush_cork(&self, out: &mut Out) -> Delivery {
        if out.cork.is_empty() {
            return Delivery::Taken(0);
        }
        let cork = Bytes::from(std::mem::take(&mut out.cork));
        self.write_locked(out, &cork)
    }

    fn write_locked(&self, out: &mut Out, bytes: &Bytes) -> Delivery {
        if out.state != State::Open {
            return Delivery::Closed;
        }
        if !out.cork.is_empty() {
            self.flush_cork(out);
        }
        if !out.queue.is_empty() {
            return self.park(out, bytes.clone());
        }
        match self.socket.try_write(bytes) {
            Ok(written) => {
                self.note_left(out);
                if written == bytes.len() {
                    return Delivery::Taken(written);
                }
                out.torn = true;
                match self.park(out, bytes.slice(written..)) {
                    Delivery::Taken(rest) => Delivery::Taken(written + rest),
                    other => other,
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.park(out, bytes.clone())
            }
            Err(_) => {
                out.state = State::Dead;
                out.wake = true;
                Delivery::Lost
            }
        }
    }

    /// What is left in the queue, or held back by the socket, is for the task to get out. Called when the socket has
    /// just taken something, or there is less to take: the time without progress begins anew.
    fn note_left(&self, out: &mut Out) {
        let is_left = !out.queue.is_empty() || (self.may_hold_back && self.socket.holds_back());
        // It waits, or waits no more.
        out.wake |= out.blocked.is_some() != is_left;
        out.blocked = is_left.then(clock::now);
    }

    fn park(&self, out: &mut Out, bytes: Bytes) -> Delivery {
        let length = bytes.len();
        if out.blocked.is_none() {
            out.blocked = Some(clock::now());
            out.wake = true;
        }
        report(&self.queued, out.cost, out.cost + length + PIECE_COST);
        out.cost += length + PIECE_COST;
        out.queue.push_back(bytes);
        if out.cost > self.limit {
            Delivery::Full
        } else {
            Delivery::Taken(length)
        }
    }

    /// Wakes the task for what it alone can do, once the lock is released.
    fn settle(&self, mut out: MutexGuard<'_, Out>) {
        let wake = std::mem::take(&mut out.wake);
        drop(out);
        if wake {
            self.waker.wake();
        }
    }

    /// Writes what is queued, for the connection's task: registers its waker for writability where needed.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Progress {
        let mut out = self.out.lock();
        loop {
            match out.state {
                State::Dead => return Progress::Lost,
                State::Closing if out.queue.is_empty() && out.blocked.is_none() => {
                    return Progress::Finished;
                }
                State::Open | State::Closing => (),
            }
            let Some(since) = out.blocked else {
                return Progress::Idle;
            };
            match self.socket.poll_write_ready(cx) {
                Poll::Pending => return Progress::Blocked(since),
                Poll::Ready(Ok(())) => (),
                Poll::Ready(Err(_)) => {
                    out.state = State::Dead;
                    continue;
                }
            }
            if out.queue.is_empty() {
                out.blocked = None;
                continue;
            }
            let mut slices = [io::IoSlice::new(&[]); MAX_SLICES];
            let mut count = 0;
            for (slice, piece) in slices.iter_mut().zip(&out.queue) {
                *slice = io::IoSlice::new(piece);
                count += 1;
            }
            match self.socket.try_write_vectored(&slices[..count]) {
                Ok(written) => {
                    let before = out.cost;
                    out.advance(written);
                    report(&self.queued, before, out.cost);
                    self.note_left(&mut out);
                    // It is this task that gets it out.
                    out.wake = false;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(_) => out.state = State::Dead,
            }
        }
    }

    fn close(&self, last: &LastWords<'_>) {
        let mut out = self.out.lock();
        if out.state == State::Open {
            if last.drop_queue {
                let before = out.cost;
                out.keep_torn_piece();
                report(&self.queued, before, out.cost);
                self.note_left(&mut out);
            }
            self.flush_cork(&mut out);
            let mut words = Vec::new();
            if let Some(bye) = last.bye {
                words.extend_from_slice(bye.as_framed(self.framing));
            }
            if let Some((code, word)) = last.closing {
                words.extend_from_slice(&self.framing.closing(code, word));
            }
            if !words.is_empty() {
                self.write_locked(&mut out, &words.into());
            }
            if out.state == State::Open {
                out.state = State::Closing;
            }
        }
        out.slots = VecDeque::new();
        drop(out);
        self.waker.wake();
    }
}

impl CallbackAdapter for PushOutlet {
    fn complete(&self, slot: Slot, reply: Answer) -> Delivery {
        let mut out = self.out.lock();
        if out.state != State::Open {
            return Delivery::Closed;
        }
        let index = usize::try_from(slot.0.wrapping_sub(out.first_slot)).unwrap_or(usize::MAX);
        match out.slots.get_mut(index) {
            Some(place @ Promise::Open) => *place = Promise::Kept(reply.frame),
            // Answered before: a log may deliver twice.
            _ => return Delivery::Closed,
        }
        out.unanswered -= 1;
        let mut delivery = Delivery::Taken(0);
        while let Some(Promise::Kept(ready)) = out.slots.front_mut().map(Promise::take) {
            out.slots.pop_front();
            out.first_slot += 1;
            if let Some(ready) = ready {
                delivery = self.write_reply(&mut out, &ready);
            }
        }
        if out.slots.is_empty() {
            out.slots = VecDeque::new();
        }
        // The task may wait for this answer before it runs the next command; while corked it is running.
        out.wake |= !out.corked;
        self.settle(out);
        delivery
    }

    fn deliver(&self, batch: &mut Batch, skip: usize) -> Delivery {
        self.write(&batch.framed(self.framing, skip))
    }

    fn reserve(&self) -> Slot {
        let mut out = self.out.lock();
        let slot = Slot(out.first_slot + out.slots.len() as u64);
        out.slots.push_back(Promise::Open);
        out.unanswered += 1;
        slot
    }
}

impl Drop for PullOutlet {
    fn drop(&mut self) {
        report(&self.queued, self.inner.get_mut().counted, 0);
    }
}

/// Tells the gauge of a queue that has grown or shrunk.
fn report(gauge: &metrics::Gauge, before: usize, after: usize) {
    // Exact: queues are far smaller than 2^53 bytes.
    if after > before {
        gauge.increment((after - before) as f64);
    } else if before > after {
        gauge.decrement((before - after) as f64);
    }
}

impl Drop for PushOutlet {
    fn drop(&mut self) {
        let cost = self.out.get_mut().cost;
        report(&self.queued, cost, 0);
    }
}

impl fmt::Debug for PushOutlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PushOutlet")
            .field("framing", &self.framing)
            .finish_non_exhaustive()
    }
}

impl Out {
    fn advance(&mut self, mut written: usize) {
        while let Some(first) = self.queue.front_mut() {
            if written < first.len() {
                self.torn |= written > 0;
                self.cost -= written;
                first.advance(written);
                return;
            }
            written -= first.len();
            self.cost -= first.len() + PIECE_COST;
            self.torn = false;
            self.queue.pop_front();
        }
        // A queue that was needed once is not kept for ever.
        self.queue = VecDeque::new();
    }

    /// Drops what is queued but the piece that was begun: the peer must see whole frames to the end.
    fn keep_torn_piece(&mut self) {
        let keep = usize::from(self.torn);
        self.cork = Vec::new();
        self.queue.truncate(keep);
        self.cost = self
            .queue
            .iter()
            .map(|piece| piece.len() + PIECE_COST)
            .sum();
    }
}

/// The way to a client that fetches what happened.
pub(crate) struct PullOutlet {
    limits: QueueLimits,
    queued: metrics::Gauge,
    /// Polls under way: they count as activity.
    polls: AtomicUsize,
    /// Commands that run or wait for their turn.
    commands: AtomicUsize,
    one_at_a_time: Semaphore,
    inner: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// The number of the first event kept. Events are numbered from 1.
    first: u64,
    events: VecDeque<Bytes>,
    cost: usize,
    /// As much of it as the gauge has.
    counted: usize,
    /// One past the last event ever given.
    given: u64,
    waiter: Option<Waker>,
    /// Grows with each poll: a waiting poll that finds another number was superseded.
    poll: u64,
    slots: VecDeque<(Slot, oneshot::Sender<Answer>)>,
    next_slot: u64,
    /// The receiving ends of slots just reserved, for whoever runs the command.
    reserved: VecDeque<oneshot::Receiver<Answer>>,
    closed: bool,
    /// When the last answer with events was given.
    last_full: Option<Instant>,
    /// That of the polls, between two of them.
    timer: Option<Pin<Box<Sleep>>>,
}

/// A poll that has begun.
pub(crate) struct Begun {
    pub(crate) number: u64,
    /// There is nothing to come for any more: the session has ended, and the client knows.
    pub(crate) is_over: bool,
    /// When the last answer with events was given.
    pub(crate) last_full: Option<Instant>,
    /// The timer that the poll before has left.
    pub(crate) timer: Option<Pin<Box<Sleep>>>,
}

/// Some events for one poll.
pub(crate) struct Page<'a> {
    pub(crate) events: Take<vec_deque::Iter<'a, Bytes>>,
    pub(crate) first: u64,
    pub(crate) next: u64,
}

/// Where a waiting poll stands.
pub(crate) enum Look {
    /// There is something to give, or nothing more will come.
    Ready,
    /// Not yet.
    Waiting,
    /// A newer poll has come.
    Superseded,
}

impl PullOutlet {
    pub(crate) fn new(limits: QueueLimits, metrics: &TransportMetrics) -> Self {
        let kept = Kept {
            first: 1,
            given: 1,
            ..Kept::default()
        };
        Self {
            limits,
            queued: metrics.queued.clone(),
            polls: AtomicUsize::new(0),
            commands: AtomicUsize::new(0),
            one_at_a_time: Semaphore::new(1),
            inner: Mutex::new(kept),
        }
    }

    fn append(&self, frames: &[Frame]) -> Delivery {
        let mut kept = self.inner.lock();
        if kept.closed {
            return Delivery::Closed;
        }
        // A poll that waits takes it at once; the gauge, which all sessions share, would step up and down again.
        let is_awaited = kept.events.is_empty() && self.is_polled();
        let mut bytes = 0;
        for frame in frames {
            let json = frame.json();
            bytes += json.len();
            kept.push(json);
        }
        if !is_awaited {
            kept.count(&self.queued);
        }
        let full = kept.events.len() > self.limits.events || kept.cost > self.limits.bytes.0;
        let waiter = kept.waiter.take();
        drop(kept);
        if let Some(waiter) = waiter {
            waiter.wake();
        }
        if full {
            Delivery::Full
        } else {
            Delivery::Taken(bytes)
        }
    }

    /// The receiving end of the oldest slot reserved and not taken.
    pub(crate) fn take_reserved(&self) -> Option<oneshot::Receiver<Answer>> {
        self.inner.lock().reserved.pop_front()
    }

    fn close(&self, bye: Option<&Frame>) {
        let (waiter, slots) = {
            let mut kept = self.inner.lock();
            if let Some(bye) = bye {
                kept.push(bye.json());
                kept.count(&self.queued);
            }
            kept.closed = true;
            (kept.waiter.take(), std::mem::take(&mut kept.slots))
        };
        drop(slots);
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }

    /// Begins a poll: acknowledges, and ends the poll that waits.
    ///
    /// Errors with one past the last event given where `ack` is beyond it.
    pub(crate) fn begin(&self, ack: Option<u64>) -> Result<Begun, u64> {
        let mut kept = self.inner.lock();
        if let Some(ack) = ack {
            if ack > kept.given {
                return Err(kept.given);
            }
            while kept.first < ack
                && let Some(event) = kept.events.pop_front()
            {
                kept.first += 1;
                kept.cost -= event.len() + PIECE_COST;
            }
            kept.count(&self.queued);
        }
        kept.poll += 1;
        let is_finished = kept.closed && kept.events.is_empty();
        let begun = Begun {
            number: kept.poll,
            // An answer with the `bye` that got lost is asked for again by its `ack`; without one the end was seen.
            is_over: is_finished || (ack.is_none() && kept.is_told()),
            last_full: kept.last_full,
            timer: kept.timer.take(),
        };
        let waiter = kept.waiter.take();
        drop(kept);
        if let Some(waiter) = waiter {
            waiter.wake();
        }
        Ok(begun)
    }

    /// Whether the poll of that number has something to give, which does not matter while it is `held` back, or the
    /// session has ended; registers its waker where that is still to come.
    pub(crate) fn look(&self, number: u64, held: bool, cx: &mut Context<'_>) -> Look {
        let mut kept = self.inner.lock();
        if kept.poll != number {
            return Look::Superseded;
        }
        // One that has ended without a word, as by a panic, has nothing to give and never will.
        if kept.closed || (!held && !kept.events.is_empty()) {
            kept.waiter = None;
            return Look::Ready;
        }
        match &mut kept.waiter {
            Some(waiter) => waiter.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Look::Waiting
    }

    /// Gives the oldest events kept, of which `lay_out` makes the answer. Also returns whether the `bye` was given by
    /// now.
    pub(crate) fn give<T>(
        &self,
        max: usize,
        now: Instant,
        lay_out: impl FnOnce(Page<'_>) -> T,
    ) -> (T, bool) {
        let mut kept = self.inner.lock();
        let first = kept.first;
        let next = first + kept.events.len().min(max) as u64;
        kept.given = kept.given.max(next);
        if next > first {
            kept.last_full = Some(now);
        }
        let is_told = kept.is_told();
        let events = kept.events.iter().take(max);
        if kept.cost <= BRIEF_BYTES {
            let page = Page {
                events,
                first,
                next,
            };
            return (lay_out(page), is_told);
        }
        let taken: VecDeque<Bytes> = events.cloned().collect();
        drop(kept);
        let page = Page {
            events: taken.iter().take(max),
            first,
            next,
        };
        (lay_out(page), is_told)
    }

    /// Waits for one's turn to run a command; `None` when `most` are under way. Given up, the turn is free again.
    pub(crate) async fn turn(&self, most: usize) -> Option<impl Drop + '_> {
        struct Turn<'a> {
            _permit: Option<tokio::sync::SemaphorePermit<'a>>,
            under_way: &'a AtomicUsize,
        }
        impl Drop for Turn<'_> {
            fn drop(&mut self) {
                self.under_way.fetch_sub(1, Ordering::Relaxed);
            }
        }
        if self.commands.fetch_add(1, Ordering::Relaxed) >= most {
            self.commands.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let mut turn = Turn {
            _permit: None,
            under_way: &self.commands,
        };
        turn._permit = self.one_at_a_time.acquire().await.ok();
        Some(turn)
    }

    /// Whether the `bye` was given, perhaps in an answer that got lost.
    pub(crate) fn is_told(&self) -> bool {
        self.inner.lock().is_told()
    }

    /// Keeps the timer of a poll for the next one.
    pub(crate) fn keep_timer(&self, timer: Pin<Box<Sleep>>) {
        let other = self.inner.lock().timer.replace(timer);
        // Of a poll that this one superseded; dropped without the lock.
        drop(other);
    }

    /// Counts a poll as under way until the guard is dropped, also when its request is given up.
    pub(crate) fn under_way(&self) -> impl Drop + '_ {
        struct UnderWay<'a>(&'a AtomicUsize);
        impl Drop for UnderWay<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.polls.fetch_add(1, Ordering::Relaxed);
        UnderWay(&self.polls)
    }

    pub(crate) fn is_polled(&self) -> bool {
        self.polls.load(Ordering::Relaxed) > 0
    }
}

impl CallbackAdapter for PullOutlet {
    fn complete(&self, slot: Slot, reply: Answer) -> Delivery {
        let answer = {
            let mut kept = self.inner.lock();
            let place = kept.slots.iter().position(|(held, _)| *held == slot);
            place.and_then(|place| kept.slots.remove(place))
        };
        if let Some((_, answer)) = answer {
            // The request may have been given up; the command has run all the same.
            let _ = answer.send(reply);
        }
        Delivery::Taken(0)
    }

    fn deliver(&self, batch: &mut Batch, skip: usize) -> Delivery {
        self.append(batch.frames(skip))
    }

    fn reserve(&self) -> Slot {
        let mut kept = self.inner.lock();
        let slot = Slot(kept.next_slot);
        kept.next_slot += 1;
        let (answer, reply) = oneshot::channel();
        // Of a session that has ended nobody answers any more: dropped, the slot says so.
        if !kept.closed {
            kept.slots.push_back((slot, answer));
        }
        kept.reserved.push_back(reply);
        slot
    }
}

impl Kept {
    fn push(&mut self, json: Bytes) {
        self.cost += json.len() + PIECE_COST;
        self.events.push_back(json);
    }

    /// Tells the gauge what is kept by now.
    fn count(&mut self, gauge: &metrics::Gauge) {
        report(gauge, self.counted, self.cost);
        self.counted = self.cost;
    }

    fn is_told(&self) -> bool {
        self.closed && self.given == self.first + self.events.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicU64, task::Wake, time::Duration};

    use metrics::NoopRecorder;
    use tokio::time::advance;

    use super::*;
    use crate::Telemetry;

    /// Takes one piece at a time and holds it back until there is room for it, as encryption does.
    #[derive(Default)]
    struct Encrypting(Mutex<Wire>);

    #[derive(Default)]
    struct Wire {
        /// Pieces that the other end takes.
        room: usize,
        holds_back: bool,
    }

    impl Encrypting {
        fn make_room(&self, pieces: usize) {
            self.0.lock().room += pieces;
        }

        fn send_out(&self) -> bool {
            let mut wire = self.0.lock();
            if wire.holds_back && wire.room > 0 {
                wire.room -= 1;
                wire.holds_back = false;
            }
            !wire.holds_back
        }
    }

    impl TryWrite for Encrypting {
        fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
            if !self.send_out() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            self.0.lock().holds_back = true;
            self.send_out();
            Ok(bytes.len())
        }

        fn try_write_vectored(&self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
            self.try_write(&slices[0])
        }

        fn poll_write_ready(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            if self.send_out() {
                Poll::Ready(Ok(()))
            } else {
                Poll::Pending
            }
        }

        fn may_hold_back(&self) -> bool {
            true
        }

        fn holds_back(&self) -> bool {
            self.0.lock().holds_back
        }
    }

    fn outlet() -> (Arc<Encrypting>, PushOutlet) {
        let socket = Arc::new(Encrypting::default());
        let telemetry = Telemetry::new(&NoopRecorder, &["pipe"], &[], &[], &[]);
        let metrics = telemetry.transport("pipe");
        let outlet = PushOutlet::new(socket.clone(), Framing::Lines, 1 << 10, metrics);
        (socket, outlet)
    }

    fn pull_outlet() -> PullOutlet {
        let telemetry = Telemetry::new(&NoopRecorder, &["pipe"], &[], &[], &[]);
        PullOutlet::new(QueueLimits::default(), telemetry.transport("pipe"))
    }

    #[test]
    fn what_a_poll_that_waits_takes_at_once_is_not_counted_as_queued() {
        let gauge = Arc::new(AtomicU64::new(0));
        let mut outlet = pull_outlet();
        outlet.queued = metrics::Gauge::from_arc(Arc::clone(&gauge));
        let is_queued = |bytes: usize| gauge.load(Ordering::Relaxed) == (bytes as f64).to_bits();
        let events = [Frame::from_json(b"{}")];
        let cost = 2 + PIECE_COST;

        let poll = outlet.under_way();
        outlet.append(&events);
        assert!(is_queued(0));
        outlet.append(&events);
        assert!(is_queued(2 * cost), "not the first to come");
        drop(poll);
        outlet.give(2, clock::now(), |_| ());
        assert!(outlet.begin(Some(3)).is_ok());
        assert!(is_queued(0), "acknowledged");
        outlet.append(&events);
        assert!(is_queued(cost), "nobody waits for it");
        drop(outlet);
        assert!(is_queued(0));
    }

    #[test]
    fn a_poll_that_was_answered_is_not_woken_by_the_next() {
        #[derive(Default)]
        struct Woken(AtomicUsize);
        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        let outlet = pull_outlet();
        let poll = outlet.begin(None).map(|begun| begun.number).unwrap();
        assert!(matches!(outlet.look(poll, false, &mut cx), Look::Waiting));
        outlet.append(&[Frame::from_json(b"{}")]);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(
            matches!(outlet.look(poll, true, &mut cx), Look::Waiting),
            "held back"
        );
        assert!(matches!(outlet.look(poll, false, &mut cx), Look::Ready));
        assert!(outlet.begin(None).is_ok());
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert!(matches!(
            outlet.look(poll, false, &mut cx),
            Look::Superseded
        ));
    }

    #[test]
    fn a_large_answer_is_laid_out_while_others_append_and_is_numbered_all_the_same() {
        let outlet = pull_outlet();
        let events = [b'1', b'2'].map(|digit| Frame::from_json(&[digit; BRIEF_BYTES / 2]));
        outlet.append(&events);
        let give = |max| {
            let lay_out = |page: Page<'_>| {
                assert!(outlet.inner.try_lock().is_some(), "the lane would wait");
                outlet.append(&events[..1]);
                let firsts: Vec<u8> = page.events.map(|event| event[0]).collect();
                (page.first, page.next, firsts)
            };
            outlet.give(max, clock::now(), lay_out).0
        };
        assert_eq!(give(100), (1, 3, b"12".to_vec()));
        assert!(
            outlet.begin(Some(4)).is_err(),
            "what came meanwhile is not given"
        );
        assert!(outlet.begin(Some(2)).is_ok());
        assert_eq!(give(2), (2, 4, b"21".to_vec()));
        assert_eq!(give(0), (2, 2, Vec::new()));
        assert!(outlet.begin(Some(4)).is_ok());
    }

    fn flush(outlet: &PushOutlet) -> Progress {
        outlet.poll_flush(&mut Context::from_waker(Waker::noop()))
    }

    static PIECE: Bytes = Bytes::from_static(b"{}\n");

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_goes_on_is_not_blocked_since_it_first_was() {
        let (socket, outlet) = outlet();
        outlet.write(&PIECE);
        assert_eq!(flush(&outlet), Progress::Blocked(clock::now()));
        for _ in 0..5 {
            advance(Duration::from_secs(9)).await;
            // What was held back goes, and what is written now is held back in its place.
            socket.make_room(1);
            assert_eq!(outlet.write(&PIECE), Delivery::Taken(PIECE.len()));
            assert_eq!(flush(&outlet), Progress::Blocked(clock::now()));
        }
        socket.make_room(2);
        outlet.write(&PIECE);
        assert!(!outlet.load().is_blocked, "all of it has gone");
        assert_eq!(flush(&outlet), Progress::Idle);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_has_stopped_is_blocked_since_then() {
        let (socket, outlet) = outlet();
        socket.make_room(1);
        outlet.write(&PIECE);
        assert_eq!(flush(&outlet), Progress::Idle);
        outlet.write(&PIECE);
        let since = clock::now();
        for _ in 0..5 {
            advance(Duration::from_secs(9)).await;
            outlet.write(&PIECE);
            assert_eq!(flush(&outlet), Progress::Blocked(since));
        }
        socket.make_room(1);
        assert_eq!(
            flush(&outlet),
            Progress::Blocked(clock::now()),
            "some of it has gone"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn last_words_that_have_to_wait_are_no_progress() {
        let (_socket, outlet) = outlet();
        outlet.write(&PIECE);
        outlet.write(&PIECE);
        let since = clock::now();
        advance(Duration::from_secs(9)).await;
        let bye = Frame::from_json(b"{}");
        outlet.close(&LastWords {
            bye: Some(&bye),
            ..LastWords::default()
        });
        assert_eq!(flush(&outlet), Progress::Blocked(since));
    }
}
