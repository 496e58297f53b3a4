//! Connections on which the server speaks unasked: TCP and WebSocket.

use std::{collections::VecDeque, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};

use crate::{
    End, Error, Loss,
    client::{Order, Outlet, Work},
    lines::{LineReader, LineWriter},
    websocket::{FrameReader, FrameWriter},
    wire::{Bye, Object},
};

/// Commands that wait for their answers. The server answers in order and keeps as many slots.
const IN_FLIGHT: usize = 64;
/// How long closing in good order may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// What came.
#[derive(Debug)]
pub(crate) enum Incoming {
    Object(Object),
    /// A sign of life without a meaning of its own.
    Beat,
}

impl Incoming {
    pub(crate) fn object(bytes: &[u8]) -> Result<Self, Loss> {
        let text = std::str::from_utf8(bytes).ok();
        let object = text.and_then(Object::parse);
        object.map(Self::Object).ok_or_else(|| {
            let begin: String = String::from_utf8_lossy(bytes).chars().take(40).collect();
            Loss::Garbled(format!("it says {begin:?}"))
        })
    }
}

/// The two directions of a connection, so that a full socket never keeps it from being read.
pub(crate) struct Link {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
}

pub(crate) enum Reader {
    Lines(LineReader),
    WebSocket(FrameReader),
}

impl Reader {
    /// Cancel safe.
    async fn next(&mut self, limit: usize) -> Result<Option<Incoming>, Loss> {
        match self {
            Self::Lines(lines) => lines.next(limit).await,
            Self::WebSocket(frames) => frames.next(limit).await,
        }
    }
}

pub(crate) enum Writer {
    Lines(LineWriter),
    WebSocket(FrameWriter),
}

impl Writer {
    async fn push(&mut self, json: &str) -> Result<(), Loss> {
        match self {
            Self::Lines(lines) => {
                lines.push(json);
                Ok(())
            }
            Self::WebSocket(frames) => frames.push(json).await,
        }
    }

    /// Cancel safe.
    async fn flush(&mut self) -> Result<(), Loss> {
        match self {
            Self::Lines(lines) => lines.flush().await,
            Self::WebSocket(frames) => frames.flush().await,
        }
    }
}

/// Runs a connection to its end.
pub(crate) async fn drive(link: Link, mut orders: mpsc::Receiver<Order>, outlet: Outlet) {
    let Link { reader, writer } = link;
    let mut driver = Driver {
        writer,
        unflushed: false,
        pending: VecDeque::new(),
        parked: None,
        pulse: Pulse::new(),
        outlet,
    };
    let mut reader = reader;
    let end = driver.run(&mut reader, &mut orders).await;
    let Driver {
        mut writer,
        pending,
        mut parked,
        outlet,
        ..
    } = driver;
    let said_bye = matches!(end, Some(End::Bye(_)));
    if let Some(end) = end {
        outlet.end(end);
    }
    // Not before: who commands finds out by this that it is over, and asks how.
    drop((orders, pending));
    let close = async {
        match &mut writer {
            Writer::Lines(lines) => {
                let _ = lines.close().await;
            }
            Writer::WebSocket(frames) => {
                if !said_bye {
                    let _ = frames.close().await;
                }
                while let Ok(Some(_)) = reader.next(usize::MAX).await {}
            }
        }
    };
    let _ = timeout(FAREWELL, close).await;
    drop((reader, writer));
    if parked.is_some() {
        outlet.put(&mut parked).await;
    }
}

struct Driver {
    writer: Writer,
    unflushed: bool,
    /// In the order in which they were sent; at most [`IN_FLIGHT`] and a ping.
    pending: VecDeque<Pending>,
    /// An event that waits for a place in the queue. Meanwhile nothing is read.
    parked: Option<Object>,
    pulse: Pulse,
    outlet: Outlet,
}

/// A command that waits for its answer.
struct Pending {
    work: Work,
    id: u64,
    answer: oneshot::Sender<Result<Object, Error>>,
}

impl Driver {
    /// How it ended; `None`: nobody is interested any more.
    async fn run(
        &mut self,
        reader: &mut Reader,
        orders: &mut mpsc::Receiver<Order>,
    ) -> Option<End> {
        let (mut commanded, mut heard) = (true, true);
        while commanded || heard {
            let shared = &self.outlet.shared;
            let may_order = commanded && !self.unflushed && self.pending.len() < IN_FLIGHT;
            let due = self.pulse.due(shared.options.answer_timeout);
            let limit = shared.object_bytes();
            let blocked = self.parked.is_some();
            let done = tokio::select! {
                order = orders.recv(), if may_order => match order {
                    Some(order) => self.command(order).await,
                    None => {
                        commanded = false;
                        Ok(())
                    }
                },
                incoming = reader.next(limit), if !blocked => match incoming {
                    Ok(Some(incoming)) => {
                        self.pulse.beat();
                        if let Some(bye) = self.take(incoming) {
                            return Some(End::Bye(bye));
                        }
                        Ok(())
                    }
                    Ok(None) => return Some(End::Lost(Loss::Closed)),
                    Err(loss) => return Some(End::Lost(loss)),
                },
                flushed = self.writer.flush(), if self.unflushed => {
                    self.unflushed = false;
                    flushed
                }
                () = self.outlet.put(&mut self.parked), if blocked => {
                    // Whatever came in the meantime was not looked at.
                    self.pulse.rest();
                    Ok(())
                }
                () = self.outlet.deserted(), if heard => {
                    heard = false;
                    Ok(())
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() && !blocked => {
                    let patience = self.outlet.shared.options.answer_timeout;
                    if self.pulse.is_overdue(patience) {
                        return Some(End::Lost(Loss::Silent(patience)));
                    }
                    self.keep_alive().await
                }
            };
            if let Err(loss) = done {
                return Some(self.last_words(reader, loss).await);
            }
        }
        None
    }

    /// Nothing can be written any more. What the server said before is still to be read, perhaps a goodbye with the
    /// reason.
    async fn last_words(&mut self, reader: &mut Reader, loss: Loss) -> End {
        loop {
            self.outlet.put(&mut self.parked).await;
            let limit = self.outlet.shared.object_bytes();
            match timeout(FAREWELL, reader.next(limit)).await {
                Ok(Ok(Some(incoming))) => {
                    if let Some(bye) = self.take(incoming) {
                        return End::Bye(bye);
                    }
                }
                Ok(Err(reason @ Loss::Tls(_))) => return End::Lost(reason),
                _ => return End::Lost(loss),
            }
        }
    }

    async fn command(&mut self, order: Order) -> Result<(), Loss> {
        let Order {
            work,
            id,
            json,
            answer,
        } = order;
        if self.pending.iter().any(|pending| pending.id == id) {
            let _ = answer.send(Err(Error::Id(id.to_string())));
            return Ok(());
        }
        self.pending.push_back(Pending { work, id, answer });
        self.write(&json).await
    }

    async fn write(&mut self, json: &str) -> Result<(), Loss> {
        self.writer.push(json).await?;
        self.unflushed = true;
        self.pulse.spoke();
        Ok(())
    }

    async fn keep_alive(&mut self) -> Result<(), Loss> {
        self.pulse.asked();
        // One at a time: a server that has not read the last one has no use for another.
        let is_asked = self.pending.iter().any(|asked| asked.work == Work::Ping);
        if self.unflushed || is_asked {
            return Ok(());
        }
        let id = self.outlet.shared.next_id();
        // Nobody waits for the answer, which is not put into the stream either.
        self.pending.push_back(Pending {
            work: Work::Ping,
            id,
            answer: oneshot::channel().0,
        });
        self.write(&format!("{{\"type\":\"ping\",\"id\":{id}}}"))
            .await
    }

    /// Sees to what came; a goodbye is the last of it.
    fn take(&mut self, incoming: Incoming) -> Option<Bye> {
        let Incoming::Object(object) = incoming else {
            return None;
        };
        let bye = (object.kind() == "bye")
            .then(|| object.read::<Bye>().ok())
            .flatten();
        match self.answered(&object) {
            Some(Pending { work, answer, .. }) => {
                if work == Work::Login {
                    self.outlet.note(&object);
                    if let Some(session) = self.outlet.shared.session.get() {
                        self.pulse.every(session.ping_every_ms);
                    }
                }
                if work != Work::Ping && self.outlet.wants(&object) {
                    self.parked = Some(object.clone());
                }
                // Whoever stopped waiting does not want it.
                let _ = answer.send(Ok(object));
            }
            None => self.parked = Some(object),
        }
        if bye.is_some() && !self.outlet.shared.options.answers_too {
            self.parked = None;
        }
        bye
    }

    /// The command that an object answers.
    fn answered(&mut self, object: &Object) -> Option<Pending> {
        let at = match object.id() {
            Some(id) => self.pending.iter().position(|asked| asked.id == id),
            // The server could make nothing of the command, not even of its `id`. Pings have no faults, and all else
            // is answered in order.
            None if object.kind() == "error" => {
                let mut pending = self.pending.iter();
                pending.position(|asked| asked.work != Work::Ping)
            }
            None => None,
        };
        self.pending.remove(at?)
    }
}

/// When the server wants to hear something, and when it should have been heard of.
struct Pulse {
    /// `None`: silence is no matter.
    every: Option<Duration>,
    spoke: Instant,
    /// Since when a sign of life is awaited.
    asked: Option<Instant>,
}

impl Pulse {
    fn new() -> Self {
        Self {
            every: None,
            spoke: Instant::now(),
            asked: None,
        }
    }

    fn every(&mut self, ms: u64) {
        self.every = (ms > 0).then(|| Duration::from_millis(ms));
    }

    /// Something was written.
    fn spoke(&mut self) {
        self.spoke = Instant::now();
    }

    /// A ping is on its way.
    fn asked(&mut self) {
        self.spoke();
        self.asked.get_or_insert(self.spoke);
    }

    /// Something came.
    fn beat(&mut self) {
        self.asked = None;
    }

    /// Nothing could be heard for a while, and now it can.
    fn rest(&mut self) {
        if let Some(asked) = &mut self.asked {
            *asked = Instant::now();
        }
    }

    /// When there is something to do.
    fn due(&self, patience: Duration) -> Option<Instant> {
        let ping = self.spoke + self.every?;
        Some(self.asked.map_or(ping, |asked| ping.min(asked + patience)))
    }

    fn is_overdue(&self, patience: Duration) -> bool {
        self.asked.is_some_and(|asked| asked.elapsed() >= patience)
    }
}
