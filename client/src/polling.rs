//! HTTP polling: one connection for commands, one for the poll that waits.
//!
//! Answers and events travel apart here and may overtake each other. Nothing is given to the application while a `join`
//! waits for its answer, so that what it hears of a room begins with `init`; and nothing is acknowledged before the
//! application's queue has it.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{
    sync::{Mutex, mpsc, oneshot, watch},
    time::{sleep, timeout},
};

use crate::{
    ConnectError, End, EndCode, Error, ErrorCode, Loss, Options,
    client::{Order, Outlet, Work},
    http1::{Answer, Ask, Http, Trouble},
    stream::Server,
    wire::{Bye, Object, Refusal},
};

/// The most events of one answer.
const EVENTS: usize = 100;
/// How often in a row a poll may fail until the server counts as gone, and how long the first pause is.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(250);
/// The longest pause, whatever the server asks for.
const LONG_PAUSE: Duration = Duration::from_secs(60);
/// The most rooms; far more than servers let one session into.
const ROOMS: usize = 1 << 14;
/// How long a session that nobody is interested in any more may take to end.
const FAREWELL: Duration = Duration::from_secs(1);

/// The server was reached; the connection is the one for commands.
pub(crate) struct Link {
    server: Server,
    commands: Http,
}

pub(crate) async fn connect(server: Server, options: &Options) -> Result<Link, ConnectError> {
    let mut commands = Http::new();
    commands.open(&server, options).await?;
    Ok(Link { server, commands })
}

/// Runs a session to its end.
pub(crate) async fn drive(link: Link, orders: mpsc::Receiver<Order>, outlet: Outlet) {
    let Link { server, commands } = link;
    let (bearer, session) = watch::channel(None);
    let poller = Poller {
        server: &server,
        outlet: &outlet,
        rooms: &Mutex::new(HashMap::new()),
        session,
    };
    // Each says how it ended before the other's answers and queues are dropped: by then whoever waits looks for it.
    let poll = async { outlet.end(poller.poll().await) };
    tokio::select! {
        () = poller.command(commands, orders, bearer) => (),
        () = poll => (),
    }
}

/// What the two loops have in common.
struct Poller<'a> {
    server: &'a Server,
    outlet: &'a Outlet,
    /// The rooms joined, each with the `seq` of its `init`. Locked while something is given to the application, so that
    /// it comes in order.
    rooms: &'a Mutex<HashMap<Box<str>, u64>>,
    session: watch::Receiver<Option<HeaderValue>>,
}

impl Poller<'_> {
    /// Carries out commands, one after another. Done when nobody is interested any more.
    async fn command(
        &self,
        mut http: Http,
        mut orders: mpsc::Receiver<Order>,
        bearer: watch::Sender<Option<HeaderValue>>,
    ) {
        while let Some(order) = orders.recv().await {
            let mut rooms = match order.work {
                Work::Join => Some(self.rooms.lock().await),
                _ => None,
            };
            let answer = self.carry_out(&mut http, &order).await;
            let Order {
                work, answer: to, ..
            } = order;
            let Ok(object) = answer else {
                let _ = to.send(answer);
                continue;
            };
            if object.kind() == "session" {
                self.outlet.note(&object);
                let session = self.outlet.shared.session.get();
                let id = session.and_then(|session| session.id.as_deref());
                let header = id.and_then(|id| HeaderValue::try_from(format!("Bearer {id}")).ok());
                bearer.send_replace(header);
            }
            let bye = object.read::<Bye>().ok();
            let _ = to.send(Ok(object.clone()));
            if let (Work::Logout, Some(bye)) = (work, bye) {
                // The poll that waits gets what is still queued, and then the same goodbye.
                sleep(self.outlet.shared.options.answer_timeout).await;
                self.outlet.end(End::Bye(bye));
                return;
            }
            if self.outlet.wants(&object) {
                if rooms.is_none() {
                    rooms = Some(self.rooms.lock().await);
                }
                if let Some(rooms) = &mut rooms {
                    self.give(rooms, object).await;
                }
            }
        }
        // Nobody commands any more; whoever still listens keeps the session.
        self.outlet.deserted().await;
        if self.session.borrow().is_some() {
            let (answer, _) = oneshot::channel();
            let order = Order {
                work: Work::Logout,
                id: 0,
                json: "{\"type\":\"logout\"}".into(),
                answer,
            };
            let _ = timeout(FAREWELL, self.carry_out(&mut http, &order)).await;
        }
    }

    async fn carry_out(&self, http: &mut Http, order: &Order) -> Result<Object, Error> {
        let shared = &self.outlet.shared;
        let bearer = self.session.borrow().clone();
        let ask = Ask {
            method: Method::POST,
            // Beside a session, a log-in is a command like any other, and refused.
            path: match order.work {
                Work::Login if bearer.is_none() => "/v1/session",
                _ => "/v1/commands",
            },
            body: Some(Bytes::from(order.json.clone())),
            bearer,
            patience: shared.options.answer_timeout,
            limit: shared.object_bytes(),
        };
        match http.ask(self.server, &shared.options, ask).await {
            Ok(answer) => object(&answer).ok_or_else(|| Error::Senseless(odd(&answer))),
            Err(Trouble::Late) => Err(Error::NoAnswer(shared.options.answer_timeout)),
            Err(Trouble::Lost(loss)) => Err(Error::Lost(loss)),
            Err(Trouble::Unsent(error)) => Err(Error::Lost(unreachable(error))),
        }
    }

    /// Fetches events. Done when the session has ended.
    async fn poll(&self) -> End {
        let mut session = self.session.clone();
        let Ok(bearer) = session.wait_for(Option::is_some).await.map(|id| id.clone()) else {
            // The commands' loop has ended, and says how.
            return std::future::pending().await;
        };
        let mut http = Http::new();
        let mut ack = 0;
        let mut failures = 0;
        loop {
            let page = match self.fetch(&mut http, bearer.clone(), ack).await {
                Ok(page) => page,
                Err(Failure::Ended(end)) => return end,
                Err(Failure::Later(after)) => {
                    sleep(after).await;
                    continue;
                }
                Err(Failure::Lost(loss)) => {
                    failures += 1;
                    if failures == ATTEMPTS {
                        return End::Lost(loss);
                    }
                    sleep(PAUSE * 2_u32.pow(failures - 1)).await;
                    continue;
                }
            };
            failures = 0;
            for json in &page.events {
                let Some(object) = Object::parse(json.get()) else {
                    continue;
                };
                let bye = (object.kind() == "bye").then(|| object.read::<Bye>().ok());
                let mut rooms = self.rooms.lock().await;
                let wanted = bye.is_none() || self.outlet.shared.options.answers_too;
                if wanted && belongs(&rooms, &object) {
                    self.give(&mut rooms, object).await;
                }
                if let Some(Some(bye)) = bye {
                    return End::Bye(bye);
                }
                if rooms.len() > ROOMS {
                    let what = format!("it names more than {ROOMS} rooms");
                    return End::Lost(Loss::Garbled(what));
                }
            }
            ack = page.next;
            if page.superseded {
                return End::Lost(Loss::Superseded);
            }
        }
    }

    async fn fetch(
        &self,
        http: &mut Http,
        bearer: Option<HeaderValue>,
        ack: u64,
    ) -> Result<Page, Failure> {
        let shared = &self.outlet.shared;
        let wait = shared.options.poll_wait.max(Duration::from_secs(1));
        let path = format!("/v1/events?ack={ack}&wait={}&max={EVENTS}", wait.as_secs());
        let ask = Ask {
            method: Method::GET,
            path: &path,
            body: None,
            bearer,
            patience: wait + shared.options.answer_timeout,
            limit: shared.options.most_bytes,
        };
        let answer = http
            .ask(self.server, &shared.options, ask)
            .await
            .map_err(|trouble| match trouble {
                Trouble::Unsent(error) => Failure::Lost(unreachable(error)),
                Trouble::Lost(loss) => Failure::Lost(loss),
                Trouble::Late => Failure::Lost(Loss::Silent(wait + shared.options.answer_timeout)),
            })?;
        if answer.status == StatusCode::OK {
            return serde_json::from_slice(&answer.body)
                .map_err(|_| Failure::Ended(End::Lost(Loss::Garbled(odd(&answer)))));
        }
        let Ok(refusal) = serde_json::from_slice::<Refusal>(&answer.body) else {
            // A proxy may say so while the server is started anew.
            return Err(Failure::Lost(Loss::Garbled(odd(&answer))));
        };
        Err(match refusal.code {
            ErrorCode::SessionExpired => Failure::Ended(End::Bye(Bye {
                code: refusal.end.unwrap_or(EndCode::SessionExpired),
                message: refusal.message,
                retry_ms: refusal.retry_ms,
            })),
            ErrorCode::NotLoggedIn => Failure::Ended(End::Lost(Loss::Forgotten)),
            ErrorCode::RateLimited | ErrorCode::TooMany | ErrorCode::Unavailable => {
                let after = Duration::from_millis(refusal.retry_ms.unwrap_or(1000));
                Failure::Later(after.clamp(PAUSE, LONG_PAUSE))
            }
            _ => Failure::Ended(End::Lost(Loss::Garbled(refusal.message.into()))),
        })
    }

    /// Puts an object into the application's queue, and keeps account of rooms.
    async fn give(&self, rooms: &mut HashMap<Box<str>, u64>, object: Object) {
        #[derive(Deserialize)]
        struct Place {
            room: Box<str>,
            #[serde(default)]
            seq: u64,
        }
        match object.kind() {
            "init" => {
                if let Ok(place) = object.read::<Place>() {
                    rooms.insert(place.room, place.seq);
                }
            }
            "left" => {
                if let Ok(place) = object.read::<Place>() {
                    rooms.remove(&place.room);
                }
            }
            _ => (),
        }
        self.outlet.put(&mut Some(object)).await;
    }
}

/// Whether an event has a place after the `init` of its room, and before the end of its stay.
fn belongs(rooms: &HashMap<Box<str>, u64>, object: &Object) -> bool {
    #[derive(Deserialize)]
    struct Numbered<'a> {
        #[serde(borrow)]
        room: Option<std::borrow::Cow<'a, str>>,
        seq: Option<u64>,
    }
    if object.kind() == "init" {
        return true;
    }
    let Ok(Numbered {
        room: Some(room),
        seq,
    }) = object.read()
    else {
        return true;
    };
    match rooms.get(&*room) {
        Some(init) => seq.is_none_or(|seq| seq > *init),
        None => false,
    }
}

/// The answer to a poll.
#[derive(Deserialize)]
struct Page {
    events: Vec<Box<RawValue>>,
    next: u64,
    #[serde(default)]
    superseded: bool,
}

/// Why a poll gave nothing.
enum Failure {
    /// Nothing is wrong; only not now.
    Later(Duration),
    /// Perhaps another attempt works.
    Lost(Loss),
    Ended(End),
}

fn unreachable(error: ConnectError) -> Loss {
    match error {
        ConnectError::Unreachable { source, .. } => source.into(),
        ConnectError::Tls { fault, .. } => Loss::Tls(fault),
        ConnectError::Late { after, .. } => Loss::Silent(after),
        error => Loss::Garbled(error.to_string()),
    }
}

fn object(answer: &Answer) -> Option<Object> {
    Object::parse(std::str::from_utf8(&answer.body).ok()?)
}

/// An answer that is none of the protocol's.
fn odd(answer: &Answer) -> String {
    let text = String::from_utf8_lossy(&answer.body);
    let begin: String = text.chars().take(40).collect();
    format!("HTTP {} and {begin:?}", answer.status)
}
