//! Whole sessions without a socket: time is paused, and what a client reads is a pipe that can be stopped.

mod fairness;
mod logins;
mod managers;

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    io::{self, IoSlice},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use async_trait::async_trait;
use metrics::{NoopRecorder, Recorder};
use parking_lot::Mutex;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::sleep};

use crate::{
    ChainLink, CloseReason, Framing, Hub, HubConfig, Lifecycle, Log, Peer, Proposal, PushSession,
    Revocations, Room, Scope, ScopeConfig, Telemetry, TryWrite,
    clock::{self, WallClock},
    config::{DuplicateLogin, OnAbuse, Presence, Rate, Size, Span},
    plugin::{AuthRequest, Authenticator, Principal, Verdict},
};

const TIMEOUT: Duration = Duration::from_secs(30);

/// A pipe of a bounded capacity whose reader may stop.
#[derive(Default)]
struct Pipe(Mutex<Flow>);

#[derive(Default)]
struct Flow {
    bytes: Vec<u8>,
    /// Bytes that fit until the reader reads; `None`: any number.
    space: Option<usize>,
    writer: Option<Waker>,
    writes: usize,
}

impl Pipe {
    fn stop(&self) {
        self.0.lock().space = Some(0);
    }

    fn go_on(&self) {
        let waker = {
            let mut flow = self.0.lock();
            flow.space = None;
            flow.writer.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl TryWrite for Pipe {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut flow = self.0.lock();
        let fits = flow.space.unwrap_or(bytes.len()).min(bytes.len());
        if fits == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        flow.bytes.extend_from_slice(&bytes[..fits]);
        flow.writes += 1;
        if let Some(space) = &mut flow.space {
            *space -= fits;
        }
        Ok(fits)
    }

    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let joined: Vec<u8> = slices
            .iter()
            .flat_map(|slice| slice.iter().copied())
            .collect();
        self.try_write(&joined)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut flow = self.0.lock();
        if flow.space == Some(0) {
            flow.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

/// A writer that takes a record and holds back what its pipe does not, as encryption does.
struct Records {
    pipe: Arc<Pipe>,
    held: Mutex<Vec<u8>>,
}

impl Records {
    const LENGTH: usize = 100;

    /// Whether nothing is held back any more.
    fn flush(&self) -> bool {
        let mut held = self.held.lock();
        while !held.is_empty() {
            match self.pipe.try_write(&held) {
                Ok(count) => drop(held.drain(..count)),
                Err(_) => return false,
            }
        }
        true
    }
}

impl TryWrite for Records {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        if !self.flush() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut taken = 0;
        for record in bytes.chunks(Self::LENGTH) {
            self.held.lock().extend_from_slice(record);
            taken += record.len();
            if !self.flush() {
                break;
            }
        }
        Ok(taken)
    }

    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.try_write(&slices[0])
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            std::task::ready!(self.pipe.poll_write_ready(cx))?;
            if self.flush() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn may_hold_back(&self) -> bool {
        true
    }

    fn holds_back(&self) -> bool {
        !self.held.lock().is_empty()
    }
}

/// Lets everybody in: `user` alone is anonymous, with the password "right" it is a member.
struct Everybody;

#[async_trait]
impl Authenticator for Everybody {
    async fn authenticate(&self, request: &AuthRequest) -> Verdict {
        let Some(user) = &request.credentials.user else {
            return Verdict::Abstain;
        };
        match &request.credentials.password {
            None => Verdict::Allow(Principal::chosen("", user)),
            Some(password) if secrecy::ExposeSecret::expose_secret(password) == "right" => {
                Verdict::Allow(Principal::vouched(user))
            }
            Some(_) => Verdict::deny("wrong password"),
        }
    }
}

struct StoppedClock;

impl WallClock for StoppedClock {
    fn unix_millis(&self) -> u64 {
        1_795_305_600_000
    }
}

struct Stage {
    hub: Hub,
    scope: Arc<Scope>,
}

impl Stage {
    fn new(adjust: impl FnOnce(&mut HubConfig)) -> Self {
        Self::recorded(&NoopRecorder, adjust)
    }

    fn recorded(recorder: &dyn Recorder, adjust: impl FnOnce(&mut HubConfig)) -> Self {
        let mut config = HubConfig {
            wall: Arc::new(StoppedClock),
            ..HubConfig::default()
        };
        config.server.default_room = Some("lobby".into());
        config.server.workers = 2;
        adjust(&mut config);
        let telemetry = Telemetry::new(recorder, &["pipe"], &["all"], &[], &["backend"]);
        let hub = Hub::start(config, telemetry, Lifecycle::new()).expect("a sound configuration");
        let scope = Self::scope_of(&hub, Everybody);
        Self { hub, scope }
    }

    /// A transport that asks `authenticator` alone.
    fn scope_of(hub: &Hub, authenticator: impl Authenticator) -> Arc<Scope> {
        let link = ChainLink {
            name: "all".into(),
            authenticator: Arc::new(authenticator),
            timeout: Duration::from_secs(5),
            revocations: Revocations::default(),
            manager: None,
            shadow: None,
        };
        hub.scope(ScopeConfig {
            name: "pipe".into(),
            auth: vec![link],
            timeout: TIMEOUT,
            login_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
        })
    }

    fn peer() -> Peer {
        Peer::new([192, 0, 2, 7].into(), false)
    }

    fn connect(&self) -> Client {
        self.connect_framed(Framing::Lines)
    }

    fn connect_framed(&self, framing: Framing) -> Client {
        let pipe = Arc::new(Pipe::default());
        self.connect_to(Arc::clone(&pipe), pipe, framing)
    }

    /// A client that reads `pipe`, into which `writer` writes.
    fn connect_to(&self, pipe: Arc<Pipe>, writer: Arc<impl TryWrite>, framing: Framing) -> Client {
        let session = self
            .hub
            .connect(&self.scope, Self::peer(), writer, framing, clock::now());
        let (frames, inbox) = mpsc::channel(4096);
        let polls = Arc::new(AtomicUsize::new(0));
        let ended = Arc::new(Mutex::new(None));
        self.hub.lifecycle().spawn(drive(
            session,
            inbox,
            Arc::clone(&polls),
            Arc::clone(&ended),
        ));
        Client {
            pipe,
            frames,
            polls,
            ended,
            read: 0,
        }
    }

    async fn login(&self, user: &str) -> Client {
        let mut client = self.connect();
        let session = client.ask(json!({"type": "login", "user": user})).await;
        assert_eq!(session["type"], "session", "{session}");
        client
    }

    async fn member(&self, user: &str) -> Client {
        let mut client = self.login(user).await;
        let init = client.ask(json!({"type": "join"})).await;
        assert_eq!(init["type"], "init", "{init}");
        client
    }
}

/// What a connection's task does, with a channel for a socket's reading side.
async fn drive(
    mut session: PushSession,
    mut inbox: mpsc::Receiver<Vec<u8>>,
    polls: Arc<AtomicUsize>,
    ended: Arc<Mutex<Option<CloseReason>>>,
) {
    let reason = poll_fn(|cx| {
        polls.fetch_add(1, Ordering::Relaxed);
        loop {
            if let Poll::Ready(reason) = session.poll(cx) {
                return Poll::Ready(reason);
            }
            if !session.is_ready() {
                return Poll::Pending;
            }
            match inbox.poll_recv(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => session.peer_closed(false),
                Poll::Ready(Some(frame)) => {
                    session.handle_frame(&frame);
                    // As a read turn: everything that is there, then one write.
                    while session.is_ready()
                        && let Ok(frame) = inbox.try_recv()
                    {
                        session.handle_frame(&frame);
                    }
                }
            }
        }
    })
    .await;
    *ended.lock() = Some(reason);
}

struct Client {
    pipe: Arc<Pipe>,
    frames: mpsc::Sender<Vec<u8>>,
    polls: Arc<AtomicUsize>,
    ended: Arc<Mutex<Option<CloseReason>>>,
    /// Bytes of the pipe looked at.
    read: usize,
}

impl Client {
    /// Sends a command; to a session that has ended it goes nowhere.
    fn say(&self, command: &Value) {
        let sent = self.frames.try_send(command.to_string().into_bytes());
        assert!(!matches!(sent, Err(mpsc::error::TrySendError::Full(_))));
    }

    /// What has come since the last look.
    fn heard(&mut self) -> Vec<Value> {
        let flow = self.pipe.0.lock();
        let fresh = &flow.bytes[self.read..];
        let whole = fresh
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |end| end + 1);
        self.read += whole;
        fresh[..whole]
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).expect("an object a line"))
            .collect()
    }

    /// The answer to a command that is alone under way; events before it are dropped.
    async fn ask(&mut self, mut command: Value) -> Value {
        self.heard();
        command["id"] = json!(1);
        self.say(&command);
        for round in 0..1000 {
            tokio::task::yield_now().await;
            if round > 300 {
                // A log of the tests takes its time.
                sleep(Duration::from_millis(1)).await;
            }
            if let Some(answer) = self.heard().into_iter().find(|object| object["id"] == 1) {
                return answer;
            }
        }
        panic!("no answer to {command}");
    }

    async fn ended(&self) -> CloseReason {
        loop {
            if let Some(reason) = *self.ended.lock() {
                return reason;
            }
            sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Lets everything that can run without time passing run.
async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

fn texts(objects: &[Value]) -> Vec<&str> {
    objects
        .iter()
        .filter_map(|object| object["text"].as_str())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_silent_session_ends_at_its_timeout_and_the_others_hear_why() {
    let stage = Stage::new(|_| ());
    let mut bob = stage.member("bob").await;
    let mut alice = stage.member("alice").await;
    let began = clock::now();
    let pinger = async {
        for _ in 0..6 {
            sleep(TIMEOUT / 3).await;
            bob.say(&json!({"type": "ping"}));
        }
    };
    let reason = tokio::join!(alice.ended(), pinger).0;
    assert_eq!(reason, CloseReason::SessionExpired);
    let bye = alice.heard().pop().unwrap();
    assert_eq!(
        (&bye["code"], &bye["retry_ms"]),
        (&json!("session_expired"), &json!(0))
    );
    assert!(began.elapsed() >= TIMEOUT);
    let leave = bob
        .heard()
        .into_iter()
        .find(|event| event["type"] == "leave")
        .expect("a leave");
    assert_eq!(
        (&leave["user"], &leave["reason"]),
        (&json!("alice"), &json!("expired"))
    );
    assert!(bob.ended.lock().is_none(), "who pings stays");
}

#[tokio::test(start_paused = true)]
async fn detection_is_within_a_tick() {
    let stage = Stage::new(|_| ());
    let alice = stage.login("alice").await;
    let began = clock::now();
    assert_eq!(alice.ended().await, CloseReason::SessionExpired);
    let late = began.elapsed() - TIMEOUT;
    assert!(
        late <= crate::reaper::TICK + Duration::from_millis(2),
        "{late:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_websocket_is_pinged_at_half_its_timeout() {
    for delivery_is_activity in [false, true] {
        let stage =
            Stage::new(|config| config.sessions.delivery_is_activity = delivery_is_activity);
        let client = stage.connect_framed(Framing::WebSocket);
        client.say(&json!({"type": "login", "user": "alice"}));
        settle().await;
        let began = clock::now();
        let after_login = client.pipe.0.lock().bytes.len();
        sleep(TIMEOUT / 2 - Duration::from_millis(200)).await;
        assert_eq!(client.pipe.0.lock().bytes.len(), after_login);
        sleep(Duration::from_millis(400)).await;
        assert_eq!(&client.pipe.0.lock().bytes[after_login..], [0x89, 0]);
        assert_eq!(
            client.ended().await,
            CloseReason::SessionExpired,
            "unanswered, it does not help"
        );
        assert!(began.elapsed() < TIMEOUT + Duration::from_secs(1));
        let bytes = client.pipe.0.lock().bytes.clone();
        let code = 4001_u16.to_be_bytes();
        let close: Vec<u8> = [&[0x88, 17], &code[..], b"session_expired"].concat();
        assert!(bytes.ends_with(&close), "the close frame is the last");
    }
}

#[tokio::test(start_paused = true)]
async fn a_delivery_is_activity_once_the_socket_has_taken_it() {
    for holds_back in [false, true] {
        let stage = Stage::new(|config| {
            config.sessions.delivery_is_activity = true;
            config.limits.slow_after = Span::secs(3600);
        });
        let pipe = Arc::new(Pipe::default());
        let mut ann = if holds_back {
            let held = Mutex::default();
            let records = Records {
                pipe: Arc::clone(&pipe),
                held,
            };
            stage.connect_to(Arc::clone(&pipe), Arc::new(records), Framing::Lines)
        } else {
            stage.connect_to(Arc::clone(&pipe), Arc::clone(&pipe), Framing::Lines)
        };
        ann.ask(json!({"type": "login", "user": "ann"})).await;
        ann.ask(json!({"type": "join"})).await;
        let bob = stage.member("bob").await;
        for _ in 0..6 {
            sleep(TIMEOUT / 2).await;
            bob.say(&json!({"type": "send", "text": "hi"}));
        }
        assert!(ann.ended.lock().is_none(), "what she is told keeps her");
        pipe.stop();
        settle().await;
        // More than one record.
        bob.say(&json!({"type": "send", "text": "x".repeat(200)}));
        for _ in 0..2 {
            sleep(TIMEOUT / 3).await;
            bob.say(&json!({"type": "ping"}));
        }
        pipe.go_on();
        let written = clock::now();
        while ann.ended.lock().is_none() {
            sleep(Duration::from_millis(500)).await;
            bob.say(&json!({"type": "ping"}));
            assert!(written.elapsed() < TIMEOUT * 2, "never ended");
        }
        let lived = written.elapsed();
        assert_eq!(ann.ended().await, CloseReason::SessionExpired);
        assert!(
            lived >= TIMEOUT && lived < TIMEOUT + Duration::from_secs(1),
            "holds back: {holds_back}, {lived:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_whose_socket_takes_nothing_is_cut_in_time_though_its_room_talks() {
    let stage = Stage::new(|config| {
        config.sessions.delivery_is_activity = true;
        config.limits.slow_after = Span::secs(5);
    });
    let ann = stage.member("ann").await;
    let bob = stage.member("bob").await;
    ann.pipe.stop();
    let stopped = clock::now();
    while ann.ended.lock().is_none() {
        bob.say(&json!({"type": "send", "text": "hi"}));
        sleep(Duration::from_secs(1)).await;
        assert!(stopped.elapsed() < TIMEOUT, "what waits for her keeps her");
    }
    assert_eq!(ann.ended().await, CloseReason::SlowConsumer);
}

#[tokio::test(start_paused = true)]
async fn a_poller_that_never_comes_back_expires_though_its_room_talks() {
    let stage = Stage::new(|config| config.sessions.delivery_is_activity = true);
    let bob = stage.member("bob").await;
    let ann = stage.poller("ann").await;
    assert_eq!(command(&ann, json!({"type": "join"})).await["type"], "init");
    let mut acknowledged = None;
    for _ in 0..3 {
        bob.say(&json!({"type": "send", "text": "hi"}));
        sleep(TIMEOUT / 2).await;
        let page = poll(&ann, acknowledged, Duration::ZERO).await;
        assert!(!page["events"].as_array().expect("events").is_empty());
        acknowledged = page["next"].as_u64();
    }
    let left = clock::now();
    while stage.hub.sessions() == 2 {
        bob.say(&json!({"type": "send", "text": "hi"}));
        sleep(Duration::from_secs(1)).await;
        assert!(left.elapsed() < TIMEOUT * 2, "what waits for her keeps her");
    }
    let lived = left.elapsed();
    assert!(lived >= TIMEOUT, "{lived:?}");
    let refusal = ann.command(b"{\"type\":\"ping\"}").await.refusal;
    let end = refusal.and_then(|refusal| refusal.end).expect("it is over");
    assert_eq!(end.reason, CloseReason::SessionExpired);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_log_in_is_gone_in_time() {
    let stage = Stage::new(|_| ());
    let mut client = stage.connect();
    let began = clock::now();
    client.say(&json!({"type": "users"}));
    assert_eq!(client.ended().await, CloseReason::LoginTimeout);
    assert!((Duration::from_secs(10)..Duration::from_millis(10_100)).contains(&began.elapsed()));
    let heard = client.heard();
    assert_eq!(heard[0]["code"], "not_logged_in");
    assert_eq!(heard[1]["code"], "login_timeout");
}

#[tokio::test(start_paused = true)]
async fn no_task_runs_for_a_delivery_to_a_member_that_reads() {
    let stage = Stage::new(|config| config.limits.sends = Rate::Unlimited);
    let mut members = Vec::new();
    for n in 0..20 {
        members.push(stage.member(&format!("m{n}")).await);
    }
    let publisher = stage.member("publisher").await;
    settle().await;
    let polls = |members: &[Client]| -> usize {
        members
            .iter()
            .map(|member| member.polls.load(Ordering::Relaxed))
            .sum()
    };
    let (before, writes) = (polls(&members), members[0].pipe.0.lock().writes);
    for n in 0..50 {
        publisher.say(&json!({"type": "send", "text": n.to_string()}));
        settle().await;
    }
    assert_eq!(polls(&members), before, "the lane writes by itself");
    assert_eq!(
        members[0].pipe.0.lock().writes,
        writes + 50,
        "one write a message and member"
    );
    for member in &mut members {
        let expected: Vec<String> = (0..50).map(|n| n.to_string()).collect();
        assert_eq!(texts(&member.heard()), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_together_leaves_in_one_write() {
    let stage = Stage::new(|config| {
        config.limits.sends = Rate::Unlimited;
        config.limits.commands = Rate::Unlimited;
    });
    let mut reader = stage.member("reader").await;
    let publisher = stage.member("publisher").await;
    settle().await;
    reader.heard();
    let writes = reader.pipe.0.lock().writes;
    for n in 0..100 {
        publisher.say(&json!({"type": "send", "text": n.to_string()}));
    }
    settle().await;
    assert_eq!(texts(&reader.heard()).len(), 100);
    assert!(reader.pipe.0.lock().writes - writes <= 3);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_stops_reading_is_cut_at_its_bound_or_its_time() {
    let stage = Stage::new(|config| {
        config.limits.sends = Rate::Unlimited;
        config.limits.member_queue = Size(256 << 10);
    });
    let mut healthy = stage.member("healthy").await;
    let flooded = stage.member("flooded").await;
    flooded.pipe.stop();
    let publisher = stage.member("publisher").await;
    settle().await;
    healthy.heard();
    let text = "x".repeat(4000);
    let mut sent = 0;
    while flooded.ended.lock().is_none() && sent < 200 {
        publisher.say(&json!({"type": "send", "text": text}));
        settle().await;
        sent += 1;
        if sent > 70 {
            flooded.pipe.go_on();
        }
    }
    assert_eq!(flooded.ended().await, CloseReason::SlowConsumer);
    let bytes = flooded.pipe.0.lock().bytes.clone();
    let last = bytes
        .split(|&byte| byte == b'\n')
        .rfind(|line| !line.is_empty())
        .unwrap();
    let bye: Value = serde_json::from_slice(last).unwrap();
    assert_eq!(bye["code"], "slow_consumer");
    assert_eq!(
        texts(&healthy.heard()).len(),
        sent,
        "the others lose nothing"
    );

    let slow = stage.member("slow").await;
    slow.pipe.stop();
    let began = clock::now();
    publisher.say(&json!({"type": "send", "text": "one message is enough"}));
    sleep(Duration::from_secs(9)).await;
    assert!(slow.ended.lock().is_none());
    sleep(Duration::from_secs(2)).await;
    slow.pipe.go_on();
    assert_eq!(slow.ended().await, CloseReason::SlowConsumer);
    assert!(began.elapsed() >= Duration::from_secs(10));
    let leave = healthy
        .heard()
        .into_iter()
        .rfind(|event| event["type"] == "leave")
        .unwrap();
    assert_eq!(
        (&leave["user"], &leave["reason"]),
        (&json!("slow"), &json!("evicted"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_refused_send_comes_through_when_its_time_has_come() {
    let stage = Stage::new(|config| {
        config.limits.sends = Rate::Limited {
            rate: 1,
            per: Duration::from_secs(2),
            burst: 1,
        };
    });
    let mut alice = stage.member("alice").await;
    let send = json!({"type": "send", "text": "x"});
    assert_eq!(alice.ask(send.clone()).await["type"], "sent");
    let refused = alice.ask(send.clone()).await;
    assert_eq!(refused["code"], "rate_limited");
    let wait = refused["retry_ms"].as_u64().unwrap();
    assert!((1..=2000).contains(&wait));
    sleep(Duration::from_millis(wait)).await;
    assert_eq!(alice.ask(send).await["type"], "sent");
}

#[tokio::test(start_paused = true)]
async fn abuse_mutes_or_bans_for_its_time() {
    let few = Rate::Limited {
        rate: 1,
        per: Duration::from_secs(60),
        burst: 2,
    };
    let stage = Stage::new(|config| {
        config.limits.violations = few;
        config.limits.on_abuse = OnAbuse::Mute(Duration::from_secs(5));
    });
    let mut alice = stage.member("alice").await;
    for _ in 0..3 {
        assert_eq!(
            alice.ask(json!({"type": "send", "text": 7})).await["code"],
            "bad_request"
        );
    }
    let muted = alice.ask(json!({"type": "send", "text": "let me"})).await;
    assert_eq!(muted["code"], "rate_limited");
    assert_eq!(
        alice.ask(json!({"type": "ping"})).await["type"],
        "pong",
        "only sends are muted"
    );
    sleep(Duration::from_millis(muted["retry_ms"].as_u64().unwrap())).await;
    assert_eq!(
        alice.ask(json!({"type": "send", "text": "let me"})).await["type"],
        "sent"
    );

    let stage = Stage::new(|config| {
        config.limits.violations = few;
        config.limits.on_abuse = OnAbuse::Ban(Duration::from_secs(20));
    });
    let mut alice = stage.login("alice").await;
    for _ in 0..3 {
        alice.say(&json!({"type": "send", "text": 7}));
    }
    settle().await;
    assert_eq!(alice.heard().pop().unwrap()["code"], "abuse");
    let mut again = stage.connect();
    let refused = again.ask(json!({"type": "login", "user": "alice2"})).await;
    assert_eq!(
        refused["code"], "rate_limited",
        "an anonymous user is known by the address"
    );
    sleep(Duration::from_millis(refused["retry_ms"].as_u64().unwrap())).await;
    assert_eq!(
        stage
            .connect()
            .ask(json!({"type": "login", "user": "alice"}))
            .await["type"],
        "session"
    );
}

#[tokio::test(start_paused = true)]
async fn a_second_login_of_one_identity_replaces_or_is_refused() {
    let login = json!({"type": "login", "user": "Alice", "password": "right"});
    let stage = Stage::new(|_| ());
    let mut first = stage.connect();
    first.ask(login.clone()).await;
    first.ask(json!({"type": "join"})).await;
    let mut bob = stage.member("bob").await;
    let mut second = stage.connect();
    assert_eq!(second.ask(login.clone()).await["type"], "session");
    assert_eq!(first.ended().await, CloseReason::Replaced);
    settle().await;
    let leave = bob.heard().pop().unwrap();
    assert_eq!(
        (&leave["type"], &leave["reason"]),
        (&json!("leave"), &json!("replaced"))
    );
    let anonymous = stage
        .connect()
        .ask(json!({"type": "login", "user": "ALICE"}))
        .await;
    assert_eq!(anonymous["code"], "name_in_use");

    let stage = Stage::new(|config| config.sessions.duplicate_login = DuplicateLogin::Reject);
    let _first = {
        let mut first = stage.connect();
        first.ask(login.clone()).await;
        first
    };
    assert_eq!(
        stage.connect().ask(login.clone()).await["code"],
        "name_in_use"
    );

    let allow = |most| {
        Stage::new(move |config| config.sessions.duplicate_login = DuplicateLogin::Allow(most))
    };
    for most in 1..=3 {
        let stage = allow(most);
        let mut living = Vec::new();
        for _ in 0..most {
            let mut client = stage.connect();
            assert_eq!(client.ask(login.clone()).await["type"], "session");
            living.push(client);
        }
        assert_eq!(stage.connect().ask(login.clone()).await["code"], "too_many");
        living[0].ask(json!({"type": "logout"})).await;
        assert_eq!(stage.connect().ask(login.clone()).await["type"], "session");
    }
}

/// Lets users in as principals that are made on the spot.
struct Made<F>(F);

#[async_trait]
impl<F: Fn(&str) -> Principal + Send + Sync + 'static> Authenticator for Made<F> {
    async fn authenticate(&self, request: &AuthRequest) -> Verdict {
        let user = request.credentials.user.as_deref();
        user.map_or(Verdict::Abstain, |user| Verdict::Allow((self.0)(user)))
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_ends_with_its_principal_whatever_it_does() {
    let mut stage = Stage::new(|_| ());
    let life = 20_000;
    stage.scope = Stage::scope_of(
        &stage.hub,
        Made(move |user: &str| {
            let mut principal = Principal::vouched(user);
            let now = StoppedClock.unix_millis();
            principal.expires_at = match user {
                "late" => Some(now),
                "never" => Some(u64::MAX),
                _ => Some(now + life),
            };
            principal
        }),
    );
    let login = |user: &str| json!({"type": "login", "user": user});
    assert_eq!(
        stage.connect().ask(login("late")).await["code"],
        "auth_failed"
    );
    assert_eq!(stage.connect().ask(login("never")).await["type"], "session");
    let began = clock::now();
    let alice = stage.member("alice").await;
    let pinger = async {
        loop {
            sleep(Duration::from_secs(5)).await;
            alice.say(&json!({"type": "ping"}));
        }
    };
    let reason = tokio::select! {
        reason = alice.ended() => reason,
        () = pinger => unreachable!(),
    };
    assert_eq!(reason, CloseReason::AuthExpired);
    let lived = began.elapsed();
    let life = Duration::from_millis(life);
    assert!(
        lived >= life && lived < life + Duration::from_secs(1),
        "{lived:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn rooms_and_roles_say_who_may_enter_and_speak() {
    let mut stage = Stage::new(|config| {
        let mut table = |name: &str, pattern: &str, join: &[&str], send: &[&str]| {
            let mut room = config.room.clone();
            room.join_roles = join.iter().map(ToString::to_string).collect();
            room.send_roles = send.iter().map(ToString::to_string).collect();
            let pattern = pattern.parse().expect("a sound pattern");
            config.rooms.push((name.into(), pattern, room));
        };
        table("staff", "staff:*", &["staff", "admin"], &[]);
        table("news", "news", &[], &["editor"]);
    });
    stage.scope = Stage::scope_of(
        &stage.hub,
        Made(|user: &str| {
            let mut principal = Principal::vouched(user).with_roles(match user {
                "ann" => vec!["admin".into(), "editor".into()],
                _ => vec![],
            });
            if user == "visitor" {
                principal.rooms = Some(vec!["lobby".parse().expect("a sound pattern")]);
            }
            principal
        }),
    );
    let mut ann = stage.login("ann").await;
    let mut bob = stage.login("bob").await;
    let mut visitor = stage.login("visitor").await;
    let code = async |who: &mut Client, command: Value| {
        let answer = who.ask(command).await;
        let code = answer["code"].as_str().or_else(|| answer["type"].as_str());
        code.expect("an answer").to_owned()
    };
    let join = |room: &str| json!({"type": "join", "room": room});
    let send = |room: &str| json!({"type": "send", "room": room, "text": "hi"});
    for (command, expected) in [
        (join("staff:1"), "init"),
        (send("staff:1"), "sent"),
        (join("news"), "init"),
        (send("news"), "sent"),
    ] {
        assert_eq!(code(&mut ann, command.clone()).await, expected, "{command}");
    }
    for (command, expected) in [
        (join("staff:1"), "forbidden"),
        (send("staff:1"), "forbidden"),
        (join("news"), "init"),
        (send("news"), "forbidden"),
        (send("lobby"), "not_joined"),
    ] {
        assert_eq!(code(&mut bob, command.clone()).await, expected, "{command}");
    }
    for (command, expected) in [
        (join("lobby"), "init"),
        (send("lobby"), "sent"),
        (join("news"), "forbidden"),
        (json!({"type": "users", "room": "news"}), "forbidden"),
    ] {
        assert_eq!(
            code(&mut visitor, command.clone()).await,
            expected,
            "{command}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_principal_may_have_limits_of_its_own() {
    let mut stage = Stage::new(|config| config.limits.rooms_per_session = 2);
    stage.scope = Stage::scope_of(
        &stage.hub,
        Made(|user: &str| {
            let mut principal = Principal::vouched(user);
            if user == "tiny" {
                principal.limits.message_bytes = Some(Size(4));
                principal.limits.rooms_per_session = Some(1);
                principal.limits.sends = Some(Rate::Limited {
                    rate: 1,
                    per: Duration::from_secs(60),
                    burst: 2,
                });
            } else {
                principal.limits.message_bytes = Some(Size(1 << 30));
            }
            principal
        }),
    );
    let mut tiny = stage.connect();
    let session = tiny.ask(json!({"type": "login", "user": "tiny"})).await;
    assert_eq!(session["limits"]["message_bytes"], 4);
    tiny.ask(json!({"type": "join"})).await;
    let second = tiny.ask(json!({"type": "join", "room": "b"})).await;
    assert_eq!(second["code"], "too_many");
    let long = tiny.ask(json!({"type": "send", "text": "hello"})).await;
    assert_eq!(long["code"], "message_too_long");
    tiny.ask(json!({"type": "send", "text": "hell"})).await;
    let third = tiny.ask(json!({"type": "send", "text": "o"})).await;
    assert_eq!(third["code"], "rate_limited");

    let mut other = stage.connect();
    let session = other.ask(json!({"type": "login", "user": "other"})).await;
    let most = stage.hub.limits().message_bytes.0;
    assert_eq!(
        session["limits"]["message_bytes"], most,
        "no more than frames are made for"
    );
}

#[tokio::test(start_paused = true)]
async fn what_an_authenticator_takes_back_ends_sessions_and_log_ins_under_way() {
    /// Lets in at once, or for "slow" when it is told to.
    struct Slow(Arc<tokio::sync::Notify>);

    #[async_trait]
    impl Authenticator for Slow {
        async fn authenticate(&self, request: &AuthRequest) -> Verdict {
            let user = request.credentials.user.clone().unwrap_or_default();
            if user == "slow" {
                self.0.notified().await;
            }
            let mut principal = Principal::vouched(&user);
            principal.credential = Some(format!("card of {user}"));
            Verdict::Allow(principal)
        }
    }

    let stage = Stage::new(|_| ());
    let (go, revocations) = (Arc::new(tokio::sync::Notify::new()), Revocations::default());
    assert_eq!(revocations.revoke(|_| true), 0, "no server yet");
    let scope = stage.hub.scope(ScopeConfig {
        name: "pipe".into(),
        auth: vec![ChainLink {
            name: "all".into(),
            authenticator: Arc::new(Slow(Arc::clone(&go))),
            timeout: Duration::from_secs(5),
            revocations: revocations.clone(),
            manager: None,
            shadow: None,
        }],
        timeout: TIMEOUT,
        login_timeout: Duration::from_secs(10),
        write_timeout: Duration::from_secs(10),
    });
    let mut guest = stage.member("guest").await;
    let stage = Stage {
        hub: stage.hub,
        scope,
    };
    let alice = stage.member("alice").await;
    let mut bob = stage.member("bob").await;
    let mut slow = stage.connect();
    slow.say(&json!({"type": "login", "user": "slow"}));
    settle().await;
    let ended = revocations.revoke(|granted| {
        assert_ne!(granted.user, "guest", "nobody vouched for it");
        granted.credential == Some("card of alice")
    });
    assert_eq!(ended, 1);
    assert_eq!(alice.ended().await, CloseReason::AuthExpired);
    go.notify_one();
    assert_eq!(slow.ended().await, CloseReason::Unavailable);
    let said: Vec<Value> = slow.heard();
    assert_eq!(said.len(), 1, "judged by what was so before: {said:?}");
    assert!(said[0]["retry_ms"].as_u64() >= Some(1000), "{said:?}");
    go.notify_one();
    assert_eq!(
        stage
            .connect()
            .ask(json!({"type": "login", "user": "slow"}))
            .await["type"],
        "session"
    );
    for member in [&mut bob, &mut guest] {
        assert_eq!(member.ask(json!({"type": "ping"})).await["type"], "pong");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_writer_holds_back_goes_out_without_another_write() {
    let stage = Stage::new(|config| config.limits.sends = Rate::Unlimited);
    let pipe = Arc::new(Pipe::default());
    let writer = Records {
        pipe: Arc::clone(&pipe),
        held: Mutex::default(),
    };
    let mut reader = stage.connect_to(pipe, Arc::new(writer), Framing::Lines);
    reader.ask(json!({"type": "login", "user": "reader"})).await;
    reader.ask(json!({"type": "join"})).await;
    let mut publisher = stage.member("publisher").await;
    settle().await;
    reader.heard();
    for round in 0..3 {
        reader.pipe.stop();
        // One message stays back alone, more are parked behind it.
        for n in 0..=round {
            publisher
                .ask(json!({"type": "send", "text": n.to_string()}))
                .await;
        }
        settle().await;
        assert!(reader.heard().is_empty(), "the pipe is full");
        reader.pipe.go_on();
        settle().await;
        let expected: Vec<String> = (0..=round).map(|n| n.to_string()).collect();
        assert_eq!(texts(&reader.heard()), expected);
    }
    reader.pipe.stop();
    reader.say(&json!({"type": "logout"}));
    settle().await;
    assert!(
        reader.ended.lock().is_none(),
        "its last words are held back"
    );
    reader.pipe.go_on();
    assert_eq!(reader.ended().await, CloseReason::Logout);
    assert_eq!(reader.heard().pop().expect("a bye")["type"], "bye");

    let pipe = Arc::new(Pipe::default());
    let writer = Records {
        pipe: Arc::clone(&pipe),
        held: Mutex::default(),
    };
    let mut stalled = stage.connect_to(pipe, Arc::new(writer), Framing::Lines);
    stalled
        .ask(json!({"type": "login", "user": "stalled"}))
        .await;
    stalled.ask(json!({"type": "join"})).await;
    stalled.pipe.stop();
    publisher.ask(json!({"type": "send", "text": "last"})).await;
    assert_eq!(stalled.ended().await, CloseReason::SlowConsumer);
}

#[tokio::test(start_paused = true)]
async fn a_drain_hands_over_what_was_accepted_then_says_bye() {
    let stage = Stage::new(|config| {
        config.limits.sends = Rate::Unlimited;
        config.limits.commands = Rate::Unlimited;
    });
    let mut reader = stage.member("reader").await;
    let mut stranger = stage.connect();
    let opened = stage
        .hub
        .open(&stage.scope, Stage::peer(), br#"{"user":"poller"}"#, None)
        .await
        .unwrap();
    let reply = opened.session.command(br#"{"type":"join"}"#).await;
    assert!(reply.refusal.is_none());
    let mut publisher = stage.member("publisher").await;
    settle().await;
    reader.heard();
    for n in 0..300 {
        publisher.say(&json!({"type": "send", "text": n.to_string()}));
    }
    tokio::task::yield_now().await;
    let hub = stage.hub.clone();
    let began = clock::now();
    let drain = hub.drain(Duration::from_secs(10));
    let poll = async {
        sleep(Duration::from_secs(2)).await;
        let mut events = Vec::new();
        let mut ack = None;
        while events
            .last()
            .is_none_or(|event: &Value| event["type"] != "bye")
        {
            let body = opened
                .session
                .poll(ack, Duration::ZERO, 100, Duration::ZERO)
                .await
                .unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap();
            ack = body["next"].as_u64();
            events.extend(body["events"].as_array().unwrap().iter().cloned());
        }
        events
    };
    let (polled, ()) = tokio::join!(poll, drain);
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "it waits for pollers no longer than it must"
    );
    settle().await;
    let acknowledged = publisher
        .heard()
        .iter()
        .filter(|object| object["type"] == "sent")
        .count();
    assert!(acknowledged > 0);
    for heard in [reader.heard(), polled] {
        assert_eq!(
            texts(&heard).len(),
            acknowledged,
            "what was acknowledged is handed over"
        );
        let bye = heard.last().unwrap();
        assert_eq!(bye["code"], "shutting_down");
        assert!(bye["retry_ms"].as_u64().is_some_and(|retry| retry >= 1000));
        assert!(
            heard.iter().all(|object| object["type"] != "leave"),
            "a server that stops sends no leaves"
        );
    }
    assert_eq!(stranger.heard().pop().unwrap()["code"], "shutting_down");
    assert_eq!(hub.lifecycle().shut_down(Duration::from_secs(5)).await, 0);
}

#[tokio::test(start_paused = true)]
async fn an_empty_room_is_kept_for_its_linger() {
    let stage = Stage::new(|config| config.room.linger = Span::secs(60));
    let mut alice = stage.login("alice").await;
    let visit = async |alice: &mut Client| {
        let epoch = alice.ask(json!({"type": "join"})).await["epoch"].clone();
        alice.ask(json!({"type": "leave"})).await;
        epoch
    };
    let first = visit(&mut alice).await;
    sleep(Duration::from_secs(20)).await;
    assert_eq!(visit(&mut alice).await, first);
    for _ in 0..7 {
        sleep(Duration::from_secs(10)).await;
        alice.say(&json!({"type": "ping"}));
    }
    assert_ne!(visit(&mut alice).await, first, "a new room begins anew");
}

#[tokio::test(start_paused = true)]
async fn at_the_cap_the_longest_empty_room_goes_first() {
    let stage = Stage::new(|config| config.limits.rooms = 2);
    let mut alice = stage.login("alice").await;
    let join = |room: &str| json!({"type": "join", "room": room});
    for room in ["one", "two"] {
        alice.ask(join(room)).await;
    }
    assert_eq!(alice.ask(join("three")).await["code"], "too_many");
    for room in ["two", "one"] {
        alice.ask(json!({"type": "leave", "room": room})).await;
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(alice.ask(join("three")).await["type"], "init");
    assert_eq!(
        alice.ask(join("one")).await["seq"],
        2,
        "\"two\" was empty for longer"
    );
}

#[tokio::test(start_paused = true)]
async fn a_publisher_is_not_read_while_its_room_is_behind() {
    let stage = Stage::new(|config| {
        config.limits.sends = Rate::Unlimited;
        config.limits.commands = Rate::Unlimited;
        config.limits.room_inbox = Size(1 << 10);
    });
    let mut alice = stage.member("alice").await;
    settle().await;
    alice.heard();
    for n in 0..200 {
        alice.say(&json!({"type": "send", "text": n.to_string()}));
    }
    tokio::task::yield_now().await;
    let answered = alice
        .heard()
        .iter()
        .filter(|object| object["type"] == "sent")
        .count();
    assert!((1..40).contains(&answered), "{answered} were taken at once");
    settle().await;
    settle().await;
    let expected: Vec<String> = (0..200).map(|n| n.to_string()).collect();
    let all: Vec<u8> = alice.pipe.0.lock().bytes.clone();
    let all: Vec<Value> = all
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    assert_eq!(texts(&all), expected, "nothing is lost by waiting");
}

#[tokio::test(start_paused = true)]
async fn all_who_wait_for_their_room_go_on_though_some_of_them_hang_up() {
    const SENDS: usize = 10;
    let stage = Stage::new(|config| {
        config.limits.sends = Rate::Unlimited;
        config.limits.commands = Rate::Unlimited;
        config.limits.room_inbox = Size(1 << 10);
    });
    let mut members = Vec::new();
    for n in 0..20 {
        members.push((stage.member(&format!("m{n}")).await, 0));
    }
    settle().await;
    for (member, _) in &mut members {
        member.heard();
        for _ in 0..SENDS {
            member.say(&json!({"type": "send", "text": "x".repeat(300)}));
        }
    }
    let count = |members: &mut [(Client, usize)]| {
        for (member, sent) in members {
            let heard = member.heard();
            *sent += heard.iter().filter(|it| it["type"] == "sent").count();
        }
    };
    tokio::task::yield_now().await;
    count(&mut members);
    assert!(
        members.iter().any(|(_, sent)| *sent < SENDS),
        "nobody waits"
    );
    let mut number = 0;
    members.retain(|_| {
        number += 1;
        number % 3 != 1
    });
    settle().await;
    settle().await;
    count(&mut members);
    let sent: Vec<usize> = members.iter().map(|(_, sent)| *sent).collect();
    assert_eq!(sent, [SENDS; 13], "who hung up held up the others");
}

#[tokio::test(start_paused = true)]
async fn batched_presence_tells_once_an_interval_who_changed() {
    let stage = Stage::new(|config| config.room.presence = Presence::Batched);
    let mut alice = stage.member("alice").await;
    let init = stage.login("bob").await.ask(json!({"type": "join"})).await;
    assert_eq!(
        (&init["presence"], &init["rev"]),
        (&json!("batched"), &json!(1))
    );
    let mut carol = stage.member("carol").await;
    carol.ask(json!({"type": "leave"})).await;
    settle().await;
    assert_eq!(
        alice.heard(),
        Vec::<Value>::new(),
        "the interval is not over"
    );
    sleep(Duration::from_millis(1100)).await;
    let told = alice.heard();
    assert_eq!(told.len(), 1, "{told:?}");
    let sorted = |key: &str| {
        let mut names: Vec<_> = told[0][key]
            .as_array()
            .unwrap()
            .iter()
            .map(Value::to_string)
            .collect();
        names.sort();
        names.join(",")
    };
    assert_eq!(sorted("joined"), r#""alice""#);
    assert_eq!(
        sorted("left"),
        r#""bob","carol""#,
        "bob's connection was dropped, carol left"
    );
    assert_eq!((&told[0]["rev"], &told[0]["count"]), (&json!(5), &json!(1)));
    sleep(Duration::from_secs(5)).await;
    assert_eq!(
        alice.heard(),
        Vec::<Value>::new(),
        "nothing changed, nothing is said"
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_session_held_is_free_when_it_ends() {
    let stage = Stage::new(|_| ());
    let mut clients = Vec::new();
    for n in 0..50 {
        clients.push(stage.member(&format!("m{n}")).await);
    }
    assert_eq!(stage.hub.sessions(), 50);
    drop(clients);
    settle().await;
    assert_eq!(stage.hub.sessions(), 0);
    for n in 0..50 {
        drop(stage.member(&format!("m{n}")).await);
        settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_out_a_mute_as_told_is_heard() {
    let stage = Stage::new(|config| {
        config.limits.violations = Rate::Limited {
            rate: 1,
            per: Duration::from_secs(60),
            burst: 2,
        };
        config.limits.on_abuse = OnAbuse::Mute(Duration::from_secs(5));
    });
    let mut alice = stage.member("alice").await;
    for _ in 0..3 {
        alice.ask(json!({"type": "send", "text": 7})).await;
    }
    sleep(Duration::from_secs(3)).await;
    let send = json!({"type": "send", "text": "x"});
    let muted = alice.ask(send.clone()).await;
    let wait = muted["retry_ms"].as_u64().unwrap();
    assert!((1..=2000).contains(&wait), "{muted}");
    sleep(Duration::from_millis(wait)).await;
    assert_eq!(alice.ask(send).await["type"], "sent");
}

#[tokio::test(start_paused = true)]
async fn a_join_that_was_refused_does_not_count_as_a_room() {
    let stage = Stage::new(|config| {
        config.room.members = 1;
        config.limits.rooms_per_session = 3;
    });
    let mut holder = stage.login("holder").await;
    let mut alice = stage.login("alice").await;
    for room in ["a", "b", "c"] {
        let join = json!({"type": "join", "room": room});
        assert_eq!(holder.ask(join.clone()).await["type"], "init");
        assert_eq!(alice.ask(join).await["code"], "too_many");
    }
    let join = json!({"type": "join", "room": "free"});
    assert_eq!(alice.ask(join).await["type"], "init");
}

#[tokio::test(start_paused = true)]
async fn what_no_command_costs_still_has_a_rate() {
    let stage = Stage::new(|config| {
        config.limits.commands = Rate::Limited {
            rate: 1,
            per: Duration::from_secs(1),
            burst: 5,
        };
    });
    let mut alice = stage.login("alice").await;
    for _ in 0..100 {
        alice.say(&json!({"type": "dance"}));
    }
    settle().await;
    let heard = alice.heard();
    assert_eq!(heard[0]["code"], "unknown_type");
    assert_eq!(heard.last().unwrap()["code"], "abuse");
}

impl Stage {
    async fn poller(&self, user: &str) -> crate::PullSession {
        let body = json!({ "user": user }).to_string();
        let opened = self
            .hub
            .open(&self.scope, Self::peer(), body.as_bytes(), None);
        opened.await.expect("a log-in").session
    }
}

async fn command(session: &crate::PullSession, command: Value) -> Value {
    let reply = session.command(command.to_string().as_bytes()).await;
    serde_json::from_slice(&reply.json).expect("an object")
}

async fn poll(session: &crate::PullSession, ack: Option<u64>, wait: Duration) -> Value {
    let body = session.poll(ack, wait, 100, Duration::ZERO).await;
    serde_json::from_slice(&body.expect("an answer")).expect("an object")
}

#[tokio::test(start_paused = true)]
async fn a_drain_does_not_wait_for_pollers_that_left_before() {
    let stage = Stage::new(|_| ());
    let poller = stage.poller("poller").await;
    assert!(poller.logout().await.refusal.is_none());
    let began = clock::now();
    stage.hub.drain(Duration::from_secs(10)).await;
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_when_the_poll_that_waits_has_its_bye() {
    let stage = Stage::new(|_| ());
    let poller = stage.poller("poller").await;
    command(&poller, json!({"type": "join"})).await;
    settle().await;
    let began = clock::now();
    let waiting = async {
        let first = poll(&poller, None, Duration::from_secs(20)).await;
        poll(&poller, first["next"].as_u64(), Duration::from_secs(20)).await
    };
    let drain = async {
        sleep(Duration::from_millis(10)).await;
        stage.hub.drain(Duration::from_secs(10)).await;
    };
    let (last, ()) = tokio::join!(waiting, drain);
    assert_eq!(last["events"][0]["code"], "shutting_down");
    assert!(began.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_logout_that_is_given_up_happens_all_the_same() {
    let stage = Stage::new(|_| ());
    let poller = stage.poller("poller").await;
    for room in ["a", "b", "c"] {
        command(&poller, json!({"type": "join", "room": room})).await;
    }
    {
        let mut logout = std::pin::pin!(poller.logout());
        let first = poll_fn(|cx| Poll::Ready(logout.as_mut().poll(cx).is_ready())).await;
        assert!(!first, "it waits for the lanes");
    }
    settle().await;
    assert_eq!(stage.hub.sessions(), 0);
    let reply = command(&poller, json!({"type": "join", "room": "d", "id": 7})).await;
    assert_eq!(
        (
            &reply["id"],
            &reply["code"],
            &reply["end"],
            &reply["retry_ms"]
        ),
        (
            &json!(7),
            &json!("session_expired"),
            &json!("logout"),
            &Value::Null
        )
    );
    assert!(reply.as_object().unwrap().contains_key("retry_ms"));
}

#[tokio::test(start_paused = true)]
async fn a_log_in_under_way_when_the_drain_begins_is_refused() {
    struct Slow;
    #[async_trait]
    impl Authenticator for Slow {
        async fn authenticate(&self, request: &AuthRequest) -> Verdict {
            sleep(Duration::from_secs(2)).await;
            Everybody.authenticate(request).await
        }
    }
    let stage = Stage::new(|_| ());
    let scope = Stage::scope_of(&stage.hub, Slow);
    let login = stage
        .hub
        .open(&scope, Stage::peer(), br#"{"user":"late"}"#, None);
    let drain = async {
        sleep(Duration::from_secs(1)).await;
        stage.hub.drain(Duration::from_secs(10)).await;
    };
    let (opened, ()) = tokio::join!(login, drain);
    assert_eq!(opened.unwrap_err().code, crate::ErrorCode::ShuttingDown);
    assert_eq!(stage.hub.sessions(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_events_never_names_a_next_beyond_what_was_given() {
    let stage = Stage::new(|_| ());
    let poller = stage.poller("poller").await;
    command(&poller, json!({"type": "join"})).await;
    settle().await;
    let first = poll(&poller, None, Duration::ZERO).await;
    assert_eq!((&first["first"], &first["next"]), (&json!(1), &json!(2)));
    let superseded = poll(&poller, Some(2), Duration::from_secs(20));
    let newer = async {
        settle().await;
        let newer = poll(&poller, Some(2), Duration::from_secs(1)).await;
        command(&poller, json!({"type": "send", "text": "x"})).await;
        newer
    };
    let (superseded, newer) = tokio::join!(superseded, newer);
    assert_eq!(superseded["superseded"], true);
    for empty in [superseded, newer] {
        assert_eq!(
            (&empty["first"], &empty["next"]),
            (&json!(2), &json!(2)),
            "{empty}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_publisher_that_polls_waits_while_its_room_is_behind() {
    let stage = Stage::new(|config| {
        config.limits.sends = Rate::Unlimited;
        config.limits.commands = Rate::Unlimited;
        config.limits.room_inbox = Size(1 << 10);
    });
    let poller = stage.poller("poller").await;
    command(&poller, json!({"type": "join"})).await;
    let text = "x".repeat(2000);
    let mut send = std::pin::pin!(command(&poller, json!({"type": "send", "text": text})));
    let at_once = poll_fn(|cx| Poll::Ready(send.as_mut().poll(cx).is_ready())).await;
    assert!(!at_once, "the lane has to walk it first");
    assert_eq!(send.await["type"], "sent");
}

#[tokio::test(start_paused = true)]
async fn a_member_that_does_not_read_does_not_outlast_the_drain() {
    let stage = Stage::new(|_| ());
    let stuck = stage.member("stuck").await;
    settle().await;
    stuck.pipe.stop();
    stage.hub.drain(Duration::from_secs(3)).await;
    let began = clock::now();
    assert_eq!(
        stage
            .hub
            .lifecycle()
            .shut_down(Duration::from_secs(10))
            .await,
        0
    );
    assert!(
        began.elapsed() <= Duration::from_millis(3_100),
        "{:?}",
        began.elapsed()
    );
}

/// A log that takes its time: proposals get their places in order, and come back late, repeatedly and shuffled.
struct LateLog {
    queue: mpsc::Sender<(Arc<Room>, Proposal)>,
}

impl LateLog {
    fn start(seed: u64) -> Arc<Self> {
        let (queue, mut proposals) = mpsc::channel::<(Arc<Room>, Proposal)>(10_000);
        #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
        tokio::spawn(async move {
            let mut dice = seed | 1;
            let mut roll = move |sides: u64| {
                dice = dice
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (dice >> 33) % sides
            };
            let mut places: std::collections::HashMap<String, u64> =
                std::collections::HashMap::new();
            let mut kept: VecDeque<(Arc<Room>, u64, Proposal)> = VecDeque::new();
            while let Some(proposal) = proposals.recv().await {
                let mut arrived = vec![proposal];
                sleep(Duration::from_millis(roll(5))).await;
                while let Ok(more) = proposals.try_recv() {
                    arrived.push(more);
                }
                let mut out: Vec<(Arc<Room>, u64, Proposal)> = Vec::new();
                for (room, proposal) in arrived {
                    let place = places.entry(room.name().to_owned()).or_insert(0);
                    *place += 1;
                    out.push((room, *place, proposal));
                }
                for index in (1..out.len()).rev() {
                    out.swap(index, usize::try_from(roll(index as u64 + 1)).unwrap());
                }
                for (room, place, proposal) in out {
                    room.apply(place, proposal.clone());
                    if roll(3) == 0 {
                        kept.push_back((room, place, proposal));
                    }
                }
                if roll(2) == 0
                    && let Some((room, place, proposal)) = kept.pop_front()
                {
                    room.apply(place, proposal);
                }
            }
        });
        Arc::new(Self { queue })
    }
}

impl Log for LateLog {
    fn submit(&self, room: &Arc<Room>, proposal: Proposal) {
        self.queue
            .try_send((Arc::clone(room), proposal))
            .expect("a test proposes little");
    }
}

#[tokio::test(start_paused = true)]
async fn a_log_that_is_late_repeats_and_shuffles_changes_nothing_that_members_see() {
    let log = LateLog::start(7);
    let stage = Stage::new(move |config| {
        config.limits.sends = Rate::Unlimited;
        config.limits.commands = Rate::Unlimited;
        config.log = log;
    });
    let mut members = Vec::new();
    for n in 0..8 {
        let client = stage.login(&format!("m{n}")).await;
        client.say(&json!({"type": "join"}));
        members.push(client);
    }
    for (n, member) in members.iter().enumerate() {
        for i in 0..40 {
            member.say(&json!({"type": "send", "id": i, "text": format!("{n}:{i}")}));
            if i % 10 == 3 {
                member.say(&json!({"type": "ping", "id": 1000 + i}));
            }
        }
    }
    sleep(Duration::from_secs(20)).await;
    let mut orders = Vec::new();
    for (n, member) in members.iter_mut().enumerate() {
        let heard = member.heard();
        let ids: Vec<u64> = heard
            .iter()
            .filter_map(|object| object["id"].as_u64())
            .collect();
        let asked: Vec<u64> = (0..40)
            .flat_map(|i| {
                if i % 10 == 3 {
                    vec![i, 1000 + i]
                } else {
                    vec![i]
                }
            })
            .collect();
        assert_eq!(ids, asked, "replies come in the order of the commands");
        let init = heard
            .iter()
            .find(|object| object["type"] == "init")
            .unwrap();
        let numbered: Vec<u64> = heard
            .iter()
            .filter(|object| matches!(object["type"].as_str(), Some("join" | "message" | "leave")))
            .map(|object| object["seq"].as_u64().unwrap())
            .collect();
        let first = init["seq"].as_u64().unwrap() + 1;
        let dense: Vec<u64> = (first..first + numbered.len() as u64).collect();
        assert_eq!(numbered, dense, "member {n} sees neither gap nor repeat");
        let order: Vec<String> = texts(&heard).into_iter().map(String::from).collect();
        orders.push(order);
    }
    let longest = orders
        .iter()
        .max_by_key(|order| order.len())
        .unwrap()
        .clone();
    assert_eq!(longest.len(), 320);
    for order in &orders {
        assert!(longest.ends_with(order), "all see one order");
    }
}

fn any_frame() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(r#"{"type":"login","user":"alice"}"#.to_owned()),
        Just(r#"{"type":"login","user":"alice","password":"wrong"}"#.to_owned()),
        Just(r#"{"type":"join","id":1}"#.to_owned()),
        Just(r#"{"type":"join","room":"other"}"#.to_owned()),
        Just(r#"{"type":"send","id":2,"text":"hi"}"#.to_owned()),
        Just(r#"{"type":"send","room":"other","data":[1]}"#.to_owned()),
        Just(r#"{"type":"leave"}"#.to_owned()),
        Just(r#"{"type":"users","id":3}"#.to_owned()),
        Just(r#"{"type":"ping","id":4}"#.to_owned()),
        Just(r#"{"type":"logout","id":5}"#.to_owned()),
        Just(r#"{"type":"dance"}"#.to_owned()),
        "[{}\":a-z]{0,20}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    /// Whatever is sent, by whatever log, and whoever ends the session: the `bye` is the last object, and what a room
    /// says is framed by its `init` and its `left`.
    #[test]
    fn nothing_follows_a_bye(
        frames in proptest::collection::vec(any_frame(), 1..40),
        seed in any::<u64>(),
        late in any::<bool>(),
        replace_at in 0_usize..60,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let log = late.then(|| LateLog::start(seed));
            let stage = Stage::new(move |config| {
                config.limits.commands = Rate::Unlimited;
                if let Some(log) = log {
                    config.log = log;
                }
            });
            let other = stage.member("bob").await;
            let mut alice = stage.connect();
            for (index, frame) in frames.iter().enumerate() {
                let _ = alice.frames.try_send(frame.clone().into_bytes());
                other.say(&json!({"type": "send", "text": "noise"}));
                if index == replace_at {
                    sleep(TIMEOUT + Duration::from_secs(1)).await;
                }
                if index % 3 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            alice.say(&json!({"type": "logout"}));
            sleep(Duration::from_secs(11)).await;
            let heard = alice.heard();
            let bye = heard.iter().position(|object| object["type"] == "bye");
            prop_assert_eq!(bye, Some(heard.len() - 1), "{:?}", heard);
            let mut inside = std::collections::HashMap::new();
            for object in &heard {
                let room = object["room"].as_str().unwrap_or_default().to_owned();
                match object["type"].as_str().unwrap() {
                    "init" => { inside.insert(room, object["seq"].as_u64().unwrap()); }
                    "left" => { inside.remove(&room); }
                    "join" | "message" | "leave" => {
                        let last = inside.get_mut(&room);
                        prop_assert!(last.is_some(), "an event outside of a stay: {}", object);
                        let seq = object["seq"].as_u64().unwrap();
                        let last = last.unwrap();
                        prop_assert_eq!(seq, *last + 1);
                        *last = seq;
                    }
                    _ => (),
                }
            }
            Ok(())
        })?;
    }
}
