//! A client on any transport, with the memory that the protocol asks of one: what it is in, which event comes next there,
//! who is there.
//!
//! It is strict. Whatever arrives is judged on arrival: numbered events without gap or repeat, no event of a room that
//! it is not in, no raw line feed, every HTTP status as the table says.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, io,
    net::SocketAddr,
    time::Duration,
};

use async_trait::async_trait;
use futures_util::SinkExt;
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    },
};

use crate::{
    Closed, Delivery, Hear, Heard, Http, Link, Over, PATIENCE, Request, Seeded, link::Wire,
    roster::Roster, script::includes,
};

/// Objects that wait between a client's reader and its test.
const FEED: usize = 1 << 16;
/// The type of what a reader puts last, when its connection or session is over.
pub(crate) const CLOSED: &str = "#closed";

/// One client. Whatever goes wrong with it panics, and says what it had heard.
pub struct Client {
    /// The user, once it is logged in; before, what the test calls it.
    pub name: String,
    /// What it speaks over, for the text of a failure.
    pub over: String,
    wire: Wire,
    delivery: Delivery,
    objects: mpsc::Receiver<Value>,
    feed: Option<mpsc::Sender<Value>>,
    inbox: VecDeque<Value>,
    rooms: BTreeMap<String, Room>,
    next_id: u64,
    drops: Option<Seeded>,
    patience: Duration,
    heard: History,
    readers: JoinSet<()>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("name", &self.name)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

/// What a client knows of a room it is in.
#[derive(Debug)]
struct Room {
    epoch: String,
    /// The number of the last event.
    seq: u64,
    roster: Roster,
}

impl Client {
    /// A client on `link`, which has said nothing yet; `over` and `name` are for the text of a failure.
    #[must_use]
    pub fn on(link: Link, over: &str, name: &str) -> Self {
        let (feed, objects) = mpsc::channel(FEED);
        let mut client = Self {
            name: name.to_owned(),
            over: over.to_owned(),
            wire: link.wire,
            delivery: link.delivery,
            objects,
            feed: Some(feed),
            inbox: VecDeque::new(),
            rooms: BTreeMap::new(),
            next_id: 0,
            drops: None,
            patience: PATIENCE,
            heard: History::default(),
            readers: JoinSet::new(),
        };
        if let Some(hear) = link.hear {
            client.listen(hear);
        }
        client
    }

    /// From now on what `hear` hears is what arrives.
    fn listen(&mut self, hear: Box<dyn Hear>) {
        let feed = self.feed.take().expect("a client has one reader");
        self.readers.spawn(listen(hear, feed));
    }

    /// Connects to one of the kinds that chinwag has, and says nothing.
    pub async fn connect(addr: SocketAddr, over: Over, name: &str) -> Self {
        let link = timeout(PATIENCE, over.link(addr)).await;
        let link = link
            .expect("the server answers")
            .expect("the server listens");
        Self::on(link, &format!("{over:?}"), name)
    }

    /// Connects and logs in as a guest.
    pub async fn login(addr: SocketAddr, over: Over, name: &str) -> Self {
        let mut client = Self::connect(addr, over, name).await;
        client.log_in(json!({"type": "login", "user": name})).await;
        client
    }

    /// Polls from now on lose about a third of their answers, after the server has sent them.
    pub fn drop_answers(mut self, seed: u64) -> Self {
        self.drops = Some(Seeded(seed));
        self
    }

    /// From now on it waits six times as long, where the machine itself is the bottleneck.
    pub fn patient(&mut self) -> &mut Self {
        self.patience = PATIENCE * 6;
        self
    }

    /// Logs in with this object, which must succeed; gives the `session`.
    pub async fn log_in(&mut self, login: Value) -> Value {
        let session = self.try_log_in(login).await;
        assert_eq!(
            session["type"], "session",
            "{} ({}) got {session}",
            self.name, self.over
        );
        session
    }

    /// Logs in with this object; gives the `session` or the `error`.
    pub async fn try_log_in(&mut self, login: Value) -> Value {
        let answer = match &mut self.wire {
            Wire::Poll {
                http,
                session: session @ None,
                ..
            } => {
                let request = Request::new("POST", "/v1/session").json(&login);
                let answer = http.ask_within(&request, self.patience).await;
                let body = answer.json();
                let expected = if body["type"] == "session" {
                    201
                } else {
                    status_of(&body)
                };
                assert_eq!(answer.status, expected, "{body}");
                if answer.status == 201 {
                    let id = body["session"]
                        .as_str()
                        .expect("a session has an id")
                        .to_owned();
                    let poll = Poll::new(http.another(), &id, self.drops.clone());
                    *session = Some(id);
                    self.listen(Box::new(poll));
                }
                self.heard(&body);
                body
            }
            _ => self.command(login).await,
        };
        if let Some(user) = answer["user"].as_str() {
            user.clone_into(&mut self.name);
        }
        answer
    }

    /// Sends a command, under an `id` of its own where it has none, and gives its answer.
    pub async fn command(&mut self, command: Value) -> Value {
        let id = self.send_command(command).await;
        self.reply(id).await
    }

    /// Sends a command and does not wait; gives its `id`.
    pub async fn send_command(&mut self, mut command: Value) -> u64 {
        let id = command["id"].as_u64().unwrap_or_else(|| {
            self.next_id += 1;
            self.next_id
        });
        command["id"] = id.into();
        self.write(&command.to_string()).await;
        id
    }

    /// Waits for the answer to the command `id`; events that come first stay for [`Self::next_event`].
    pub async fn reply(&mut self, id: u64) -> Value {
        if let Some(answer) = self.polled_answer() {
            // Without a session, a request is refused before its body is looked at.
            assert!(
                answer["id"] == id || answer["code"] == "not_logged_in",
                "{answer}"
            );
            return answer;
        }
        loop {
            let object = self
                .arrival(&format!("the answer to command {id}"), self.patience)
                .await;
            if object["id"] == id {
                return object;
            }
            assert_ne!(
                object["type"], CLOSED,
                "{} waited for an answer{}",
                self.name, self.heard
            );
            self.inbox.push_back(object);
        }
    }

    /// Sends a frame as it stands, be it a command or not, and gives the next object that is no event.
    pub async fn raw(&mut self, frame: &str) -> Value {
        self.write(frame).await;
        self.next_reply().await
    }

    /// The next object that is no event, whatever its `id`.
    pub async fn next_reply(&mut self) -> Value {
        if let Some(answer) = self.polled_answer() {
            return answer;
        }
        if let Some(at) = self.inbox.iter().position(|object| !is_event(object)) {
            return self.inbox.remove(at).expect("its position was just found");
        }
        loop {
            let object = self.arrival("any answer", self.patience).await;
            if !is_event(&object) {
                return object;
            }
            assert_ne!(
                object["type"], CLOSED,
                "{} waited for an answer{}",
                self.name, self.heard
            );
            self.inbox.push_back(object);
        }
    }

    /// The next event: of a room, or the end of the session.
    pub async fn next_event(&mut self) -> Value {
        self.event_within("an event", PATIENCE).await
    }

    /// The next event, with a deadline of its own and `what` for the panic's text.
    pub async fn event_within(&mut self, what: &str, patience: Duration) -> Value {
        let object = match self.inbox.pop_front() {
            Some(object) => object,
            None => self.arrival(what, patience).await,
        };
        assert!(
            is_event(&object),
            "{} got an answer that it did not ask for: {object}",
            self.name
        );
        object
    }

    /// The next event if there is one within `patience`.
    pub async fn try_event(&mut self, patience: Duration) -> Option<Value> {
        let deadline = Instant::now() + patience;
        while self.inbox.is_empty() {
            let object = timeout_at(deadline, self.objects.recv()).await.ok()??;
            let judged = self.judge(object);
            self.inbox.extend(judged);
        }
        self.inbox.pop_front()
    }

    /// The events up to and with the first that `last` recognises.
    pub async fn events_until(&mut self, what: &str, last: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            let event = self.event_within(what, PATIENCE).await;
            assert_ne!(
                event["type"], CLOSED,
                "{} waited for {what}{}",
                self.name, self.heard
            );
            let done = last(&event);
            events.push(event);
            if done {
                return events;
            }
        }
    }

    /// Joins; gives the `init`.
    pub async fn join(&mut self, room: &str) -> Value {
        let init = self.command(json!({"type": "join", "room": room})).await;
        assert_eq!(
            init["type"], "init",
            "{} ({}) got {init}",
            self.name, self.over
        );
        init
    }

    /// Joins and takes its own join event, which must be the next one; gives the `init`.
    pub async fn enter(&mut self, room: &str) -> Value {
        let init = self.join(room).await;
        let own = self.next_event().await;
        let expected = json!({"type": "join", "room": room, "user": self.name});
        assert!(
            includes(&own, &expected),
            "{} expected its own join, got {own}",
            self.name
        );
        init
    }

    /// Sends a message; gives the `sent`.
    pub async fn say(&mut self, room: &str, text: &str) -> Value {
        let sent = self
            .command(json!({"type": "send", "room": room, "text": text}))
            .await;
        assert_eq!(
            sent["type"], "sent",
            "{} ({}) got {sent}",
            self.name, self.over
        );
        sent
    }

    /// A `ping` that is answered: the session is alive.
    pub async fn ping(&mut self) {
        let pong = self.command(json!({"type": "ping"})).await;
        assert_eq!(
            pong["type"], "pong",
            "{} ({}) got {pong}",
            self.name, self.over
        );
    }

    /// The session ends with a `bye` of this code, after which the connection is closed as the table says.
    pub async fn expect_bye(&mut self, code: &str) -> Value {
        self.expect_bye_within(code, PATIENCE).await
    }

    /// The same with a deadline of its own.
    pub async fn expect_bye_within(&mut self, code: &str, patience: Duration) -> Value {
        let bye = self.event_within(&format!("bye {code}"), patience).await;
        assert_eq!(
            (&bye["type"], &bye["code"]),
            (&json!("bye"), &json!(code)),
            "{}: {bye}",
            self.name
        );
        let (_, comes_back) = closes_with(code);
        assert_eq!(bye["retry_ms"].is_u64(), comes_back, "retry_ms of {bye}");
        assert!(
            bye["message"].as_str().is_some_and(|text| !text.is_empty()),
            "{bye}"
        );
        self.expect_closed(code).await;
        bye
    }

    /// Answers and events are passed over until the session ends with this code.
    pub async fn drain_to_bye(&mut self, code: &str) {
        loop {
            let object = match self.inbox.pop_front() {
                Some(object) => object,
                None => self.arrival(&format!("bye {code}"), PATIENCE).await,
            };
            if object["type"] == "bye" || object["type"] == CLOSED {
                self.inbox.push_front(object);
                self.expect_bye(code).await;
                return;
            }
        }
    }

    /// The connection is closed, with the close code or the `end` that belongs to `code`.
    pub async fn expect_closed(&mut self, code: &str) {
        let mut closed = self
            .event_within(&format!("the close after {code}"), PATIENCE)
            .await;
        if self.is_pull() && closed["type"] == "bye" {
            // The answer to the command that ended the session was the first `bye`; the queue has its own.
            closed = self
                .event_within(&format!("the close after {code}"), PATIENCE)
                .await;
        }
        assert_eq!(
            closed["type"], CLOSED,
            "{}: something follows a bye: {closed}",
            self.name
        );
        if !closed["code"].is_null() {
            assert_eq!(closed["code"], closes_with(code).0, "{closed}");
        }
        if self.is_pull() || !closed["end"].is_null() {
            assert_eq!(closed["end"], code, "{closed}");
        }
    }

    fn is_pull(&self) -> bool {
        self.delivery == Delivery::Pull
    }

    /// The other end is gone, in whatever way and whatever it said first; gives what the reader saw last.
    pub async fn gone(&mut self) -> Value {
        loop {
            let object = match self.inbox.pop_front() {
                Some(object) => object,
                None => self.arrival("the end of the connection", PATIENCE).await,
            };
            if object["type"] == CLOSED {
                return object;
            }
        }
    }

    /// Writes one frame.
    pub async fn write(&mut self, frame: &str) {
        let written = match &mut self.wire {
            Wire::Poll {
                http,
                session,
                answers,
            } => {
                let request = Request::new("POST", "/v1/commands");
                let request = match session {
                    Some(id) => request.bearer(id),
                    None => request,
                };
                let answer = http.ask(&request.json(frame)).await;
                let body = answer.json();
                assert_eq!(answer.status, status_of(&body), "{body}");
                answers.push_back(body);
                true
            }
            wire => wire.speak(frame).await.is_ok(),
        };
        if !written {
            // The server may close first; what it said before is for the reader to tell.
            eprintln!("{} ({}) could not write {frame:.100}", self.name, self.over);
        }
    }

    /// Writes bytes as they are, where the link is [lines](Link::lines).
    pub async fn write_bytes(&mut self, bytes: &[u8]) {
        match &mut self.wire {
            Wire::Lines(write) => {
                write.write_all(bytes).await.expect("the server reads");
                write.flush().await.expect("the server reads");
            }
            _ => panic!("{} has no stream of its own", self.name),
        }
    }

    /// Sends a WebSocket message of any kind, where the link is a [WebSocket](Link::websocket).
    pub async fn send_message(&mut self, message: Message) {
        match &mut self.wire {
            Wire::Socket(write) => write.send(message).await.expect("the server reads"),
            _ => panic!("{} has no WebSocket", self.name),
        }
    }

    /// Sends a WebSocket text that is no UTF-8.
    pub async fn break_the_rules(&mut self) {
        let text = Frame::message(vec![b'"', 0xff, b'"'], OpCode::Data(Data::Text), true);
        self.send_message(Message::Frame(text)).await;
    }

    /// Closes in good order, as far as the transport has a way: a FIN, a close frame, nothing at all.
    ///
    /// # Errors
    /// The server is gone already.
    pub async fn close(&mut self) -> io::Result<()> {
        self.wire.hang_up().await
    }

    /// Is gone without a word: a reset on the wire, or simply no further poll.
    pub fn vanish(self) {
        drop(self);
    }

    /// The id of a polling session.
    pub fn session_id(&self) -> &str {
        match &self.wire {
            Wire::Poll {
                session: Some(id), ..
            } => id,
            _ => panic!("{} has no polling session", self.name),
        }
    }

    /// Fetches the pages of a room that its `init` left out.
    pub async fn fetch_roster(&mut self, room: &str) {
        while let Some(after) = self.known(room).roster.more().map(str::to_owned) {
            let page = self
                .command(json!({"type": "users", "room": room, "after": after}))
                .await;
            assert_eq!(page["type"], "users", "{page}");
            self.known(room).roster.page(&page, Some(&after));
        }
    }

    /// Who is in the room, as far as this client has heard.
    pub fn roster(&self, room: &str) -> Vec<String> {
        self.rooms[room].roster.names()
    }

    fn known(&mut self, room: &str) -> &mut Room {
        let name = &self.name;
        self.rooms
            .get_mut(room)
            .unwrap_or_else(|| panic!("{name} is not in {room}"))
    }

    fn polled_answer(&mut self) -> Option<Value> {
        let Wire::Poll { answers, .. } = &mut self.wire else {
            return None;
        };
        let answer = answers.pop_front()?;
        self.judge(answer)
    }

    /// The next object from the reader, judged.
    async fn arrival(&mut self, what: &str, patience: Duration) -> Value {
        loop {
            let object = timeout(patience, self.objects.recv()).await;
            let who = format!("{} ({})", self.name, self.over);
            let object = object
                .unwrap_or_else(|_| panic!("{who} waited {patience:?} for {what}{}", self.heard))
                .unwrap_or_else(|| {
                    panic!(
                        "{who} waited for {what}, and its reader ended{}",
                        self.heard
                    )
                });
            if let Some(object) = self.judge(object) {
                return object;
            }
        }
    }

    /// Takes note of an object; `None` where the protocol says that a client drops it.
    fn judge(&mut self, object: Value) -> Option<Value> {
        self.heard(&object);
        let is_pull = self.is_pull();
        let room = object["room"].as_str().unwrap_or_default();
        match object["type"].as_str().expect("every object has a type") {
            "init" => self.arrived(room, &object),
            "left" => {
                self.rooms.remove(room);
            }
            "join" | "leave" | "message" | "presence" => {
                let Some(known) = self.rooms.get_mut(room) else {
                    // Replies and events of a polling session travel apart: these were queued before the `left`.
                    assert!(is_pull, "not in the room of {object}{}", self.heard);
                    return None;
                };
                if let Some(seq) = object["seq"].as_u64() {
                    if seq <= known.seq && is_pull {
                        return None;
                    }
                    assert_eq!(
                        seq,
                        known.seq + 1,
                        "{} got {object} after {}",
                        self.name,
                        known.seq
                    );
                    known.seq = seq;
                }
                known.roster.event(&object);
            }
            _ => {}
        }
        Some(object)
    }

    fn arrived(&mut self, room: &str, init: &Value) {
        let epoch = init["epoch"]
            .as_str()
            .expect("init has an epoch")
            .to_owned();
        let seq = init["seq"].as_u64().expect("init has a seq");
        let roster = Roster::new(init);
        let is_pull = self.is_pull();
        match self.rooms.get_mut(room) {
            // A fresh one for a member: a pushed one stands exactly where the events stand.
            Some(known) if known.epoch == epoch => {
                if !is_pull {
                    assert_eq!(
                        seq, known.seq,
                        "{} has had {} when {init} came",
                        self.name, known.seq
                    );
                }
                known.roster = roster;
            }
            _ => {
                self.rooms
                    .insert(room.to_owned(), Room { epoch, seq, roster });
            }
        }
    }

    fn heard(&mut self, object: &Value) {
        if self.heard.0.len() == 12 {
            self.heard.0.pop_front();
        }
        let text = object.to_string();
        self.heard.0.push_back(text.chars().take(300).collect());
    }
}

/// The last objects that a client received, for the text of a failure.
#[derive(Default)]
struct History(VecDeque<String>);

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("; it had heard:")?;
        self.0
            .iter()
            .try_for_each(|object| write!(f, "\n  {object}"))
    }
}

/// Passes on what is heard, and at last how it ended.
async fn listen(mut hear: Box<dyn Hear>, feed: mpsc::Sender<Value>) {
    loop {
        match hear.hear().await {
            Heard::Object(object) => feed.send(parse(&object)).await.ok(),
            Heard::Closed(closed) => {
                feed.send(closed.into_value()).await.ok();
                return;
            }
        };
    }
}

/// Polls as the protocol asks of a client: acknowledges what it has, and asks again for what got lost.
struct Poll {
    http: Http,
    session: String,
    drops: Option<Seeded>,
    ack: u64,
    /// Events of an answer that got lost: the next one begins with them.
    lost: Vec<Value>,
    /// Events of the last answer that were not handed on yet.
    events: VecDeque<Value>,
    is_stopping: bool,
}

impl Poll {
    fn new(http: Http, session: &str, drops: Option<Seeded>) -> Self {
        Self {
            http,
            session: session.to_owned(),
            drops,
            ack: 0,
            lost: Vec::new(),
            events: VecDeque::new(),
            is_stopping: false,
        }
    }

    /// Asks once; gives the word of the end if that was it.
    async fn ask(&mut self) -> Option<Value> {
        let ack = self.ack;
        let target = format!("/v1/events?ack={ack}&wait=20");
        let request = Request::new("GET", &target).bearer(&self.session);
        let answer = self
            .http
            .ask_within(&request, Duration::from_secs(20) + PATIENCE)
            .await;
        let body = answer.json();
        if answer.status == 401 {
            assert_eq!(body["code"], "session_expired", "{body}");
            return Some(body["end"].clone());
        }
        assert_eq!(answer.status, 200, "{body}");
        assert_ne!(
            body["superseded"], true,
            "there is one poll of a session here: {body}"
        );
        let events = body["events"].as_array().expect("an answer has events");
        let number = |key: &str| body[key].as_u64().expect("an answer is numbered");
        let (first, next) = (number("first"), number("next"));
        assert_eq!(
            next - first,
            events.len() as u64,
            "{first} and {next} do not fit the events"
        );
        assert_eq!(first, ack.max(1), "the oldest that is kept comes first");
        assert!(
            events.starts_with(&self.lost),
            "asked again, and got something else: {:?}, {events:?}",
            self.lost
        );
        self.lost.clear();
        let drops = self.drops.as_mut();
        if !events.is_empty() && drops.is_some_and(|drops| drops.percent(30)) {
            self.lost.clone_from(events);
            return None;
        }
        self.events.extend(events.iter().cloned());
        self.ack = next;
        // Nobody may be left to ask again.
        let last = events.last();
        self.is_stopping = last.is_some_and(|last| last["code"] == "shutting_down");
        None
    }
}

#[async_trait]
impl Hear for Poll {
    async fn hear(&mut self) -> Heard {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Heard::Object(event.to_string().into_bytes());
            }
            let end = if self.is_stopping {
                Some(json!("shutting_down"))
            } else {
                self.ask().await
            };
            if let Some(end) = end {
                return Heard::Closed(Closed {
                    word: end.as_str().map(str::to_owned),
                    ..Closed::default()
                });
            }
        }
    }
}

fn parse(frame: &[u8]) -> Value {
    assert!(
        !frame.iter().any(|byte| b"\r\n".contains(byte)),
        "a raw line feed in an object"
    );
    let text = std::str::from_utf8(frame).expect("the server writes UTF-8");
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

/// Whether an object comes of itself, not as the answer to a command.
fn is_event(object: &Value) -> bool {
    match object["type"].as_str().unwrap_or_default() {
        "join" | "leave" | "message" | "presence" | "signal" | "system" | "bye" | CLOSED => true,
        "left" => !object["reason"].is_null(),
        _ => false,
    }
}

/// The WebSocket close code of an end, and whether a client may come back by itself.
fn closes_with(code: &str) -> (u16, bool) {
    match code {
        "logout" => (1000, false),
        "shutting_down" => (1001, true),
        "too_large" => (1009, true),
        "session_expired" => (4001, true),
        "slow_consumer" => (4002, true),
        "unavailable" => (4004, true),
        "login_timeout" => (4005, true),
        "replaced" => (4500, false),
        "auth_failed" => (4501, false),
        "auth_expired" => (4502, false),
        "kicked" => (4503, false),
        "abuse" => (4504, false),
        "protocol_error" => (1002, false),
        other => panic!("no end is called {other}"),
    }
}

/// The HTTP status of an answer to a command.
fn status_of(body: &Value) -> u16 {
    if body["type"] != "error" {
        return 200;
    }
    match body["code"].as_str().expect("an error has a code") {
        "bad_json" | "bad_request" | "unknown_type" | "name_invalid" | "room_invalid"
        | "message_empty" | "message_too_long" | "message_rejected" => 400,
        "not_logged_in" | "auth_failed" | "session_expired" => 401,
        "session_refused" | "forbidden" => 403,
        "name_in_use" | "not_joined" | "already_logged_in" => 409,
        "too_large" => 413,
        "rate_limited" | "too_many" => 429,
        "unavailable" | "shutting_down" => 503,
        "internal" => 500,
        other => panic!("no error is called {other}"),
    }
}
