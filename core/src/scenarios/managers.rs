//! Session managers and stays: what they are told, and what they may do.

use std::sync::{OnceLock, atomic::AtomicU64};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, SharedString, Unit};
use serde_json::value::to_raw_value;
use tokio::sync::{Notify, oneshot};

use super::*;
use crate::{
    ErrorCode, PullSession, Refusal, RoomPattern,
    plugin::{
        AuthFacts, Context, ControlError, Draft, EndCause, Filter, ManagerLink, PrincipalLimits,
        Refused, Rejection, SessionControl, SessionManager, Stay, TlsFacts, Validator,
    },
    scope::TlsLink,
    telemetry::TlsFailure,
};

/// What a manager of the tests was told, in order, and how it answers.
#[derive(Default)]
struct Backend {
    told: Mutex<Vec<String>>,
    control: OnceLock<SessionControl>,
    /// The last stay.
    stay: Mutex<Option<Stay>>,
    /// The facts of the last session.
    facts: Mutex<Option<AuthFacts>>,
    /// The stays that were left, and whether their sessions had ended.
    left: Mutex<Vec<(u64, bool)>>,
    /// "slow" waits for it.
    go: Notify,
    ignores_stays: bool,
}

/// A question about a stay that nobody waits for any more.
struct GivenUp<'a>(&'a Backend);

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        self.0.note("gave up".into());
    }
}

/// A value in a session's context, and in a stay's.
struct Team(String);
struct Seat(String);

impl Backend {
    fn note(&self, what: String) {
        self.told.lock().push(what);
    }

    /// What was told since the last look.
    fn told(&self) -> Vec<String> {
        std::mem::take(&mut self.told.lock())
    }

    fn control(&self) -> &SessionControl {
        self.control.get().expect("a session was created")
    }
}

#[async_trait]
impl SessionManager for Arc<Backend> {
    async fn create(
        &self,
        facts: &AuthFacts,
        control: &SessionControl,
    ) -> Result<Context, Refused> {
        let existing = if facts.existing.is_some() {
            " again"
        } else {
            ""
        };
        self.note(format!("create {}{existing}", facts.user));
        *self.facts.lock() = Some(facts.clone());
        match &*facts.user {
            "suspended" => return Err(Refused::Reason("Your account is suspended.".into())),
            "unlucky" => {
                let retry = Duration::from_secs(7);
                return Err(Refused::Unavailable { retry });
            }
            "slow" => self.go.notified().await,
            "clumsy" => panic!("create"),
            "early" => {
                for n in 0..16 {
                    let data = to_raw_value(&json!({ "n": n })).expect("plain data");
                    control.send(&data).expect("room for it");
                }
                let data = to_raw_value(&json!(null)).expect("plain data");
                assert_eq!(control.send(&data), Err(ControlError::Full));
            }
            _ => (),
        }
        let _ = self.control.set(control.clone());
        Ok(Context::default().with(Team(format!("team of {}", facts.user))))
    }

    fn wants_stays(&self) -> bool {
        !self.ignores_stays
    }

    async fn joined(&self, stay: &Stay) -> Result<Context, Refused> {
        self.note(format!("joined {} {}", stay.facts.user, stay.room));
        assert!(
            stay.context.value::<Team>().is_some(),
            "that of the session"
        );
        if &*stay.room == "closed" {
            return Err(Refused::Reason("That table is full.".into()));
        }
        if &*stay.room == "slow" {
            let given_up = GivenUp(self);
            self.go.notified().await;
            std::mem::forget(given_up);
        }
        assert!(&*stay.room != "clumsy", "joined");
        *self.stay.lock() = Some(stay.clone());
        Ok(Context::default().with(Seat(format!("seat in {}", stay.room))))
    }

    fn left(&self, stay: &Stay, cause: EndCause) {
        let seat = stay.context.value::<Seat>().expect("it was let in");
        if &*stay.room == "last" {
            stay.control().end();
        }
        std::thread::yield_now();
        self.note(format!("left {} ({})", seat.0, cause.code()));
        self.left.lock().push((stay.number, cause.is_of_session()));
        assert!(&*stay.room != "boom", "boom");
    }

    fn ended(&self, facts: &AuthFacts, context: &Context, cause: EndCause) {
        let team = context.value::<Team>().expect("it was let begin");
        self.note(format!("ended {} ({})", team.0, cause.code()));
        match &*facts.user {
            "bomb" => panic!("bomb"),
            "leader" => self.control().end(),
            _ => (),
        }
    }
}

/// Refuses what the sender's context does not allow.
struct Seated;

impl Validator for Seated {
    fn check(&self, draft: &mut Draft<'_>) -> Result<(), Rejection> {
        let context = draft.context.expect("the session has a manager");
        let team = &context.value::<Team>().expect("of the session").0;
        let seat = context.value::<Seat>().map(|seat| seat.0.as_str());
        draft.text = Some(format!("{team}, {}", seat.unwrap_or("no seat")));
        Ok(())
    }
}

/// A stage whose log-ins `backend` is told of.
fn managed(backend: &Arc<Backend>, adjust: impl FnOnce(&mut HubConfig)) -> Stage {
    manage(Stage::new(adjust), backend)
}

fn manage(stage: Stage, backend: &Arc<Backend>) -> Stage {
    manage_users_of(Everybody, stage, backend)
}

fn manage_users_of(who: impl Authenticator, stage: Stage, backend: &Arc<Backend>) -> Stage {
    let link = ChainLink {
        name: "all".into(),
        authenticator: Arc::new(who),
        timeout: Duration::from_secs(5),
        revocations: Revocations::default(),
        shadow: None,
        manager: Some(ManagerLink {
            name: "backend".into(),
            manager: Arc::new(Arc::clone(backend)),
            timeout: Duration::from_secs(3),
        }),
    };
    let scope = stage.hub.scope(ScopeConfig {
        name: "pipe".into(),
        auth: vec![link],
        timeout: TIMEOUT,
        login_timeout: Duration::from_secs(10),
        write_timeout: Duration::from_secs(10),
    });
    Stage {
        hub: stage.hub,
        scope,
    }
}

fn join(room: &str) -> Value {
    json!({"type": "join", "room": room})
}

fn send(room: &str) -> Value {
    json!({"type": "send", "room": room, "text": "hi"})
}

#[tokio::test(start_paused = true)]
async fn a_manager_lets_sessions_begin_or_says_why_not() {
    let backend = Arc::new(Backend::default());
    let stage = managed(&backend, |_| ());
    let mut client = stage.connect();
    let login = |user: &str| json!({"type": "login", "user": user});
    let refused = client.ask(login("suspended")).await;
    assert_eq!(
        (&refused["code"], &refused["message"]),
        (
            &json!("session_refused"),
            &json!("Your account is suspended.")
        )
    );
    let refused = client.ask(login("unlucky")).await;
    assert_eq!(
        (&refused["code"], &refused["retry_ms"]),
        (&json!("unavailable"), &json!(7000))
    );
    client.say(&login("slow"));
    sleep(Duration::from_millis(2900)).await;
    assert!(client.heard().is_empty());
    sleep(Duration::from_millis(200)).await;
    assert_eq!(
        client.heard()[0]["code"],
        "unavailable",
        "it overran its time"
    );
    assert_eq!(client.ask(login("ann")).await["type"], "session");
    client.ask(json!({"type": "logout"})).await;
    assert_eq!(
        backend.told(),
        [
            "create suspended",
            "create unlucky",
            "create slow",
            "create ann",
            "ended team of ann (logout)"
        ],
        "only what began is told to end"
    );
}

#[tokio::test(start_paused = true)]
async fn whoever_hangs_up_while_a_manager_thinks_never_began() {
    let backend = Arc::new(Backend::default());
    let stage = managed(&backend, |_| ());
    let open = stage
        .hub
        .open(&stage.scope, Stage::peer(), br#"{"user":"slow"}"#, None);
    let hung_up = tokio::time::timeout(Duration::from_secs(1), open).await;
    assert!(hung_up.is_err());
    backend.go.notify_one();
    settle().await;
    assert_eq!(backend.told(), ["create slow"]);
    assert_eq!(stage.hub.sessions(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_could_not_begin_after_all_is_told_so() {
    let backend = Arc::new(Backend::default());
    let stage = managed(&backend, |_| ());
    let _ann = stage.login("ann").await;
    let mut other = stage.connect();
    let refused = other.ask(json!({"type": "login", "user": "Ann"})).await;
    assert_eq!(refused["code"], "name_in_use");
    assert_eq!(
        backend.told(),
        ["create ann", "create Ann", "ended team of Ann (refused)"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_manager_hears_of_the_session_that_its_user_still_has() {
    let backend = Arc::new(Backend::default());
    let stage = managed(&backend, |_| ());
    let login = json!({"type": "login", "user": "ann", "password": "right"});
    let mut first = stage.connect();
    first.ask(login.clone()).await;
    let mut second = stage.connect();
    assert_eq!(second.ask(login).await["type"], "session");
    assert_eq!(
        backend.told(),
        [
            "create ann",
            "create ann again",
            "ended team of ann (replaced)"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn stays_end_before_their_session_and_each_once() {
    for end in ["logout", "disconnected", "shutting_down", "kicked"] {
        let backend = Arc::new(Backend::default());
        let stage = managed(&backend, |_| ());
        let mut ann = stage.login("ann").await;
        for room in ["a", "b", "c", "boom"] {
            ann.ask(join(room)).await;
        }
        let refused = ann.ask(join("closed")).await;
        assert_eq!(
            (&refused["code"], &refused["message"]),
            (&json!("session_refused"), &json!("That table is full."))
        );
        ann.ask(json!({"type": "leave", "room": "b"})).await;
        let again = ann.ask(join("a")).await;
        assert_eq!(again["type"], "init", "one is in it already");
        match end {
            "logout" => drop(ann.ask(json!({"type": "logout"})).await),
            "disconnected" => drop(ann),
            "kicked" => backend.control().end(),
            _ => stage.hub.drain(Duration::from_secs(1)).await,
        }
        settle().await;
        assert_eq!(
            backend.told(),
            [
                "create ann",
                "joined ann a",
                "joined ann b",
                "joined ann c",
                "joined ann boom",
                "joined ann closed",
                "left seat in b (left)",
                // This one panics, which stops nobody.
                &format!("left seat in boom ({end})"),
                &format!("left seat in c ({end})"),
                &format!("left seat in a ({end})"),
                &format!("ended team of ann ({end})"),
            ]
        );
        drop(stage);
        settle().await;
        assert!(backend.told().is_empty(), "each once");
    }
}

/// A session of a member's, over polling.
async fn open(stage: &Stage, user: &str) -> PullSession {
    let login = json!({"user": user, "password": "right"}).to_string();
    let opened = stage
        .hub
        .open(&stage.scope, Stage::peer(), login.as_bytes(), None)
        .await;
    opened.expect("everybody is let in").session
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ends_waits_for_no_join_and_is_told_after_it() {
    for is_polling in [false, true] {
        for end in ["replaced", "kicked", "shutting_down", "disconnected"] {
            if is_polling && end == "disconnected" {
                continue; // There is no task of its own that could be lost.
            }
            let backend = Arc::new(Backend::default());
            let stage = managed(&backend, |_| ());
            let login = json!({"type": "login", "user": "ann", "password": "right"});
            let mut push = stage.connect();
            let (tell, told) = oneshot::channel();
            if is_polling {
                let session = open(&stage, "ann").await;
                stage.hub.lifecycle().spawn(async move {
                    let command = join("slow").to_string();
                    let _ = tell.send(session.command(command.as_bytes()).await);
                });
            } else {
                push.ask(login.clone()).await;
                push.say(&join("slow"));
            }
            settle().await;
            assert_eq!(backend.told(), ["create ann", "joined ann slow"]);
            let mut other = stage.connect();
            match end {
                "replaced" => {
                    assert_eq!(other.ask(login).await["type"], "session");
                    assert_eq!(backend.told.lock().remove(0), "create ann again");
                }
                "kicked" => backend.control().end(),
                // Its task is dropped in the midst, as by a panic.
                "disconnected" => stage.hub.lifecycle().kill(),
                _ => stage.hub.drain(Duration::from_secs(1)).await,
            }
            settle().await;
            assert_eq!(
                backend.told(),
                ["gave up", &format!("ended team of ann ({end})")],
                "polling: {is_polling}"
            );
            if is_polling {
                let refusal = told.await.expect("it is answered").refusal;
                let code = refusal.map(|refusal| refusal.code.code());
                assert_eq!(code, Some("session_expired"));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_join_that_is_let_in_as_its_session_ends_is_told_to_end_first() {
    let backend = Arc::new(Backend::default());
    let stage = managed(&backend, |_| ());
    let client = stage.login("ann").await;
    client.say(&join("slow"));
    settle().await;
    backend.go.notify_one();
    backend.control().end();
    settle().await;
    assert_eq!(
        backend.told(),
        [
            "create ann",
            "joined ann slow",
            "left seat in slow (refused)",
            "ended team of ann (kicked)"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ends_in_the_midst_of_a_leave_is_told_after_it() {
    let backend = Arc::new(Backend::default());
    let stage = managed(&backend, |_| ());
    let ann = open(&stage, "ann").await;
    ann.command(join("last").to_string().as_bytes()).await;
    let leave = json!({"type": "leave", "room": "last"}).to_string();
    ann.command(leave.as_bytes()).await;
    assert_eq!(
        backend.told()[2..],
        ["left seat in last (left)", "ended team of ann (kicked)"]
    );
}

#[tokio::test]
async fn a_session_that_ends_before_its_refused_stay_was_told_of_is_told_after_it() {
    let backend = Arc::new(Backend::default());
    let stage = managed(&backend, |config| config.room.members = 1);
    let bob = open(&stage, "bob").await;
    bob.command(join("a").to_string().as_bytes()).await;
    backend.told();
    let ann = open(&stage, "ann").await;
    let refused = ann.command(join("a").to_string().as_bytes()).await.refusal;
    assert_eq!(refused.map(|it| it.code), Some(ErrorCode::TooMany));
    // Whatever names the room now forgets the stay.
    ann.command(send("a").to_string().as_bytes()).await;
    ann.logout().await;
    settle().await;
    assert_eq!(
        backend.told(),
        [
            "create ann",
            "joined ann a",
            "left seat in a (refused)",
            "ended team of ann (logout)"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ends_may_end_others() {
    let backend = Arc::new(Backend::default());
    let stage = managed(&backend, |_| ());
    let _follower = open(&stage, "follower").await;
    let leader = open(&stage, "leader").await;
    backend.told();
    leader.logout().await;
    assert_eq!(
        backend.told(),
        [
            "ended team of leader (logout)",
            "ended team of follower (kicked)"
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stay_and_its_session_that_end_at_once_are_told_in_order() {
    let backend = Arc::new(Backend::default());
    let stage = managed(&backend, |_| ());
    let host = open(&stage, "host").await;
    host.command(join("a").to_string().as_bytes()).await;
    for round in 0..300 {
        let user = format!("ann{round}");
        let ann = open(&stage, &user).await;
        ann.command(join("a").to_string().as_bytes()).await;
        backend.told();
        let stay = backend.stay.lock().clone().expect("ann is in a room");
        let runtime = tokio::runtime::Handle::current();
        std::thread::scope(|threads| {
            threads.spawn(|| {
                let _runtime = runtime.enter();
                // It is over where the session was faster.
                let _ = stay.end();
            });
            threads.spawn(|| {
                let _runtime = runtime.enter();
                stay.control().end();
            });
        });
        let told = backend.told();
        let left = "left seat in a (kicked)";
        let ended = format!("ended team of {user} (kicked)");
        assert_eq!(told, [left, &ended], "round {round}");
    }
}

/// Counts calls of managers that failed, and the bytes that are held for stays.
#[derive(Debug, Default)]
struct Series {
    failures: Arc<AtomicU64>,
    stay_bytes: Arc<AtomicU64>,
}

impl Series {
    fn failures(&self) -> u64 {
        self.failures.load(Ordering::SeqCst)
    }

    fn stay_bytes(&self) -> f64 {
        f64::from_bits(self.stay_bytes.load(Ordering::SeqCst))
    }
}

impl Recorder for Series {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let is_failed = key.labels().any(|label| label.value() == "failed");
        if is_failed && key.name() == "chinwag_session_manager_calls_total" {
            Counter::from_arc(Arc::clone(&self.failures))
        } else {
            Counter::noop()
        }
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        if key.name() == "chinwag_stay_bytes" {
            Gauge::from_arc(Arc::clone(&self.stay_bytes))
        } else {
            Gauge::noop()
        }
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[tokio::test(start_paused = true)]
async fn a_manager_that_panics_lets_nobody_in_and_is_counted() {
    let series = Series::default();
    let backend = Arc::new(Backend::default());
    let stage = manage(Stage::recorded(&series, |_| ()), &backend);
    let mut client = stage.connect();
    let unavailable = (json!("unavailable"), json!(5000));
    let refused = client.ask(json!({"type": "login", "user": "clumsy"})).await;
    assert_eq!(
        (refused["code"].clone(), refused["retry_ms"].clone()),
        unavailable
    );
    assert_eq!(series.failures(), 1);
    let session = client.ask(json!({"type": "login", "user": "ann"})).await;
    assert_eq!(session["type"], "session", "the connection lives on");
    let refused = client.ask(join("clumsy")).await;
    assert_eq!(
        (refused["code"].clone(), refused["retry_ms"].clone()),
        unavailable
    );
    assert_eq!(series.failures(), 2);
    assert_eq!(client.ask(join("a")).await["type"], "init");
    client.ask(json!({"type": "logout"})).await;
    assert_eq!(
        backend.told(),
        [
            "create clumsy",
            "create ann",
            "joined ann clumsy",
            "joined ann a",
            "left seat in a (logout)",
            "ended team of ann (logout)"
        ],
        "what it failed at never began"
    );
}

#[tokio::test(start_paused = true)]
async fn a_stay_that_the_room_refuses_is_told_to_end() {
    let backend = Arc::new(Backend::default());
    let stage = managed(&backend, |config| config.room.members = 1);
    let mut ann = stage.login("ann").await;
    let mut bob = stage.login("bob").await;
    ann.ask(join("a")).await;
    backend.told();
    assert_eq!(bob.ask(join("a")).await["code"], "too_many");
    settle().await;
    assert_eq!(backend.told(), ["joined bob a", "left seat in a (refused)"]);
}

#[tokio::test(start_paused = true)]
async fn a_filter_acts_on_the_next_command() {
    let backend = Arc::new(Backend::default());
    let stage = managed(&backend, |_| ());
    let mut ann = stage.login("ann").await;
    for room in ["red:1", "blue:1"] {
        assert_eq!(ann.ask(join(room)).await["type"], "init");
    }
    let mut filter = Filter {
        rooms: Some(vec!["red:*".parse().expect("a sound pattern")]),
        ..Filter::default()
    };
    backend.control().set_filter(filter.clone()).expect("live");
    for (command, answer) in [
        (send("red:1"), "sent"),
        (send("blue:1"), "forbidden"),
        (join("blue:2"), "forbidden"),
        (join("red:2"), "init"),
        (json!({"type": "users", "room": "blue:1"}), "forbidden"),
        (json!({"type": "leave", "room": "blue:1"}), "left"),
        (json!({"type": "ping"}), "pong"),
    ] {
        let said = ann.ask(command.clone()).await;
        let code = said["code"].as_str().or_else(|| said["type"].as_str());
        assert_eq!(code, Some(answer), "{command}");
    }
    filter.commands = Some(vec!["users".into()]);
    backend.control().set_filter(filter).expect("live");
    for (command, answer) in [
        (send("red:1"), "forbidden"),
        (json!({"type": "users", "room": "red:1"}), "users"),
    ] {
        let said = ann.ask(command.clone()).await;
        let code = said["code"].as_str().or_else(|| said["type"].as_str());
        assert_eq!(code, Some(answer), "{command}");
    }
    backend
        .control()
        .set_filter(Filter::default())
        .expect("live");
    assert_eq!(ann.ask(send("red:1")).await["type"], "sent");
}

#[tokio::test(start_paused = true)]
async fn a_manager_sets_the_timeout() {
    let backend = Arc::new(Backend::default());
    let stage = managed(&backend, |_| ());
    let ann = stage.login("ann").await;
    let began = clock::now();
    sleep(Duration::from_secs(1)).await;
    let short = Duration::from_secs(4);
    backend.control().set_timeout(short).expect("live");
    assert_eq!(ann.ended().await, CloseReason::SessionExpired);
    let lived = began.elapsed();
    assert!(
        lived >= short && lived < short + Duration::from_secs(1),
        "{lived:?}"
    );
    assert_eq!(
        backend.control().set_timeout(short),
        Err(ControlError::Over),
        "a session that is over can't be steered"
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_manager_says_early_follows_the_session_object() {
    let backend = Arc::new(Backend::default());
    let stage = managed(&backend, |_| ());
    let mut client = stage.connect();
    client.say(&json!({"type": "login", "user": "early"}));
    settle().await;
    let said = client.heard();
    assert_eq!((said.len(), &said[0]["type"]), (17, &json!("session")));
    for (n, object) in said[1..].iter().enumerate() {
        assert_eq!(
            (&object["type"], &object["data"]["n"]),
            (&json!("system"), &json!(n))
        );
    }
    let data = to_raw_value(&json!({"late": true})).expect("plain data");
    backend.control().send(&data).expect("live");
    settle().await;
    assert_eq!(client.heard()[0]["data"], json!({"late": true}));
    let huge = to_raw_value(&"x".repeat(1 << 20)).expect("plain data");
    assert_eq!(backend.control().send(&huge), Err(ControlError::TooLarge));

    let opened = stage
        .hub
        .open(&stage.scope, Stage::peer(), br#"{"user":"EARLY2"}"#, None)
        .await;
    assert!(opened.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_manager_puts_a_session_out_of_a_room() {
    let backend = Arc::new(Backend::default());
    let stage = managed(&backend, |_| ());
    let mut ann = stage.login("ann").await;
    let mut bob = stage.login("bob").await;
    ann.ask(join("a")).await;
    bob.ask(join("a")).await;
    ann.ask(json!({"type": "ping"})).await;
    bob.ask(json!({"type": "ping"})).await;
    assert_eq!(backend.control().kick("b"), Err(ControlError::NotJoined));
    backend.control().kick("a").expect("ann is there");
    settle().await;
    let left = ann.heard();
    assert_eq!(
        left,
        [json!({"type": "left", "room": "a", "reason": "kicked"})]
    );
    let leave = bob.heard();
    assert_eq!(
        (leave.len(), &leave[0]["type"], &leave[0]["reason"]),
        (1, &json!("leave"), &json!("kicked"))
    );
    assert_eq!(ann.ask(send("a")).await["code"], "not_joined");
    assert_eq!(ann.ask(join("a")).await["type"], "init");
}

#[tokio::test(start_paused = true)]
async fn tasks_end_with_what_they_belong_to_and_are_bounded() {
    let backend = Arc::new(Backend::default());
    let stage = managed(&backend, |_| ());
    let mut ann = stage.login("ann").await;
    ann.ask(join("a")).await;
    let running = Arc::new(AtomicUsize::new(0));
    let task = || {
        struct Running(Arc<AtomicUsize>);
        impl Drop for Running {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        running.fetch_add(1, Ordering::SeqCst);
        let running = Running(Arc::clone(&running));
        async move {
            let _running = running;
            std::future::pending::<()>().await;
        }
    };
    let stay = backend.stay.lock().clone().expect("ann is in a room");
    for _ in 0..16 {
        stay.spawn(task()).expect("room for it");
        stay.control().spawn(task()).expect("room for it");
    }
    assert_eq!(stay.spawn(task()), Err(ControlError::Full));
    assert_eq!(running.load(Ordering::SeqCst), 32);
    ann.ask(json!({"type": "leave", "room": "a"})).await;
    settle().await;
    assert_eq!(running.load(Ordering::SeqCst), 16, "those of the stay");
    stay.control().spawn(task()).expect("room again");
    ann.ask(json!({"type": "logout"})).await;
    settle().await;
    assert_eq!(running.load(Ordering::SeqCst), 0);
    assert_eq!(stay.control().spawn(task()), Err(ControlError::Over));
}

#[tokio::test(start_paused = true)]
async fn validators_see_what_managers_attached() {
    for ignores_stays in [false, true] {
        let backend = Arc::new(Backend {
            ignores_stays,
            ..Backend::default()
        });
        let stage = managed(&backend, |config| {
            config.validators.insert("seated".into(), Arc::new(Seated));
            config.room.validators = vec!["seated".into()];
        });
        let mut ann = stage.member("ann").await;
        ann.ask(json!({"type": "ping"})).await;
        ann.say(&json!({"type": "send", "text": "hi"}));
        settle().await;
        let expected = if ignores_stays {
            "team of ann, no seat"
        } else {
            "team of ann, seat in lobby"
        };
        assert_eq!(texts(&ann.heard()), [expected]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_silent_in_a_room_leaves_it_alone() {
    let stage = Stage::new(|config| config.room.member_timeout = Span::secs(10));
    let mut ann = stage.member("ann").await;
    let mut bob = stage.member("bob").await;
    ann.ask(join("b")).await;
    ann.ask(json!({"type": "ping"})).await;
    let began = clock::now();
    loop {
        sleep(Duration::from_secs(2)).await;
        ann.say(&json!({"type": "ping"}));
        bob.say(&json!({"type": "send", "text": "I am here"}));
        ann.say(&json!({"type": "users", "room": "b"}));
        let left = ann
            .heard()
            .into_iter()
            .find(|object| object["type"] == "left");
        if let Some(left) = left {
            assert_eq!(
                left,
                json!({"type": "left", "room": "lobby", "reason": "expired"})
            );
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "never put out");
    }
    let lived = began.elapsed();
    assert!(lived >= Duration::from_secs(8), "{lived:?}");
    let leave = bob
        .heard()
        .into_iter()
        .find(|object| object["type"] == "leave")
        .expect("the others are told");
    assert_eq!(leave["reason"], "expired");
    assert_eq!(ann.ask(send("b")).await["type"], "sent", "the other stay");
    assert_eq!(bob.ask(json!({"type": "ping"})).await["type"], "pong");
}

#[tokio::test(start_paused = true)]
async fn a_manager_hears_of_a_stay_that_silence_ends_and_of_no_end_of_the_session() {
    let backend = Arc::new(Backend::default());
    let stage = managed(&backend, |config| {
        config.room.member_timeout = Span::secs(10)
    });
    let mut ann = stage.login("ann").await;
    ann.ask(join("a")).await;
    backend.told();
    for _ in 0..8 {
        sleep(Duration::from_secs(2)).await;
        ann.ask(json!({"type": "ping"})).await;
    }
    assert_eq!(backend.told(), ["left seat in a (expired)"]);
    ann.ask(join("a")).await;
    let stay = backend.stay.lock().take().expect("ann is there again");
    assert_eq!(stay.number, 2);
    ann.ask(json!({"type": "logout"})).await;
    assert_eq!(
        backend.told(),
        [
            "joined ann a",
            "left seat in a (logout)",
            "ended team of ann (logout)"
        ]
    );
    assert_eq!(*backend.left.lock(), [(1, false), (2, true)]);
}

#[tokio::test(start_paused = true)]
async fn a_kicked_stay_is_told_from_a_kicked_session() {
    let backend = Arc::new(Backend::default());
    let stage = managed(&backend, |_| ());
    let mut ann = stage.login("ann").await;
    for room in ["a", "b"] {
        ann.ask(join(room)).await;
    }
    backend.control().kick("a").expect("ann is there");
    backend.control().end();
    assert_eq!(
        backend.told()[3..],
        [
            "left seat in a (kicked)",
            "left seat in b (kicked)",
            "ended team of ann (kicked)"
        ]
    );
    assert_eq!(*backend.left.lock(), [(1, false), (2, true)]);
}

#[tokio::test(start_paused = true)]
async fn what_is_held_for_a_stay_is_counted_and_given_back() {
    let series = Series::default();
    let backend = Arc::new(Backend::default());
    let stage = manage(Stage::recorded(&series, |_| ()), &backend);
    let mut ann = stage.login("ann").await;
    let control = backend.control();
    let of_session = control.bytes();
    assert!(of_session > size_of::<Team>(), "its context: {of_session}");
    let held = control.hold(300).expect("it lives");
    assert_eq!(control.bytes(), of_session + 300);
    drop(held);
    assert_eq!(control.bytes(), of_session);
    assert_eq!(series.stay_bytes(), 0.0, "there is no stay yet");

    ann.ask(join("a")).await;
    let stay = backend.stay.lock().take().expect("ann is in a room");
    let bare = stay.bytes();
    assert!(bare > size_of::<Seat>(), "{bare}");
    // The stay's own context was attached after the hook had its copy.
    let told = |bytes: usize| {
        assert_eq!(stay.bytes(), bytes);
        assert_eq!(control.bytes(), of_session + bytes);
        assert_eq!(series.stay_bytes(), bytes as f64);
    };
    told(bare);
    let held = stay.hold(1000);
    told(bare + 1000);
    drop(held);
    told(bare);
    let large = [0_u8; 500];
    stay.spawn(async move {
        std::future::pending::<()>().await;
        assert_eq!(large.len(), 500);
    })
    .expect("there is room");
    assert!(stay.bytes() >= bare + 500, "{}", stay.bytes());
    let late = stay.hold(70);
    ann.ask(json!({"type": "leave", "room": "a"})).await;
    settle().await;
    told(70);
    drop(late);
    told(0);
    assert_eq!(control.bytes(), of_session);

    // Without a manager's interest a stay takes what it takes by itself.
    ann.ask(join("a")).await;
    backend.stay.lock().take();
    assert!(series.stay_bytes() > 0.0);
    ann.ask(json!({"type": "logout"})).await;
    settle().await;
    assert_eq!(series.stay_bytes(), 0.0);
    assert_eq!(control.bytes(), 0);
    assert_eq!(control.hold(1).err(), Some(ControlError::Over));
}

#[tokio::test(start_paused = true)]
async fn stays_that_no_manager_sees_are_counted_too() {
    for member_timeout in [0, 10] {
        let series = Series::default();
        let stage = Stage::recorded(&series, |config| {
            config.room.member_timeout = Span::secs(member_timeout);
        });
        let mut ann = stage.member("ann").await;
        let one = series.stay_bytes();
        assert!(one > 0.0);
        let _bob = stage.member("bob").await;
        assert_eq!(series.stay_bytes(), 2.0 * one);
        ann.ask(json!({"type": "leave"})).await;
        settle().await;
        assert_eq!(series.stay_bytes(), one);
        stage.hub.drain(Duration::from_secs(1)).await;
        drop(stage);
        settle().await;
        drop(ann);
        assert_eq!(series.stay_bytes(), 0.0, "member_timeout {member_timeout}");
    }
}

/// Brings its server down where the text says so.
struct Touchy;

impl Validator for Touchy {
    fn check(&self, draft: &mut Draft<'_>) -> Result<(), Rejection> {
        assert!(
            draft.text.as_deref() != Some("boom"),
            "a validator of the tests panics"
        );
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_session_s_own_task_ends_it_once_and_its_room_goes_on() {
    for is_polling in [false, true] {
        let backend = Arc::new(Backend::default());
        let stage = managed(&backend, |config| {
            config.validators.insert("touchy".into(), Arc::new(Touchy));
            config.room.validators = vec!["touchy".into()];
        });
        let mut bob = stage.login("bob").await;
        bob.ask(join("a")).await;
        backend.told();
        let boom = json!({"type": "send", "room": "a", "text": "boom"});
        let mut push = stage.connect();
        if is_polling {
            let ann = open(&stage, "ann").await;
            ann.command(join("a").to_string().as_bytes()).await;
            let refusal = ann.command(boom.to_string().as_bytes()).await.refusal;
            let code = refusal.map(|refusal| refusal.code.code());
            assert_eq!(code, Some("session_expired"));
        } else {
            push.ask(json!({"type": "login", "user": "ann", "password": "right"}))
                .await;
            push.ask(join("a")).await;
            push.say(&boom);
        }
        settle().await;
        assert_eq!(
            backend.told(),
            [
                "create ann",
                "joined ann a",
                "left seat in a (disconnected)",
                "ended team of ann (disconnected)"
            ],
            "polling: {is_polling}"
        );
        assert!(
            bob.heard()
                .iter()
                .any(|event| event["type"] == "leave" && event["user"] == "ann"),
            "polling: {is_polling}"
        );
        assert_eq!(bob.ask(send("a")).await["type"], "sent");
        let mut again = stage.login("ann").await;
        assert_eq!(again.ask(join("a")).await["type"], "init");
        drop(stage);
        settle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_poll_that_waits_is_answered_at_once_when_a_panic_ends_its_session() {
    let stage = Stage::new(|config| {
        config.validators.insert("touchy".into(), Arc::new(Touchy));
        config.room.validators = vec!["touchy".into()];
    });
    let ann = open(&stage, "ann").await;
    ann.command(join("a").to_string().as_bytes()).await;
    settle().await;
    let poll = async |ack, wait| {
        let body = ann.poll(ack, wait, 100, Duration::ZERO).await?;
        let page: Value = serde_json::from_slice(&body).expect("an object");
        Ok::<_, Refusal>(page)
    };
    let page = poll(None, Duration::ZERO).await.expect("her own join");
    let ack = page["next"].as_u64();
    let began = clock::now();
    let boom = async {
        settle().await;
        let boom = json!({"type": "send", "room": "a", "text": "boom"});
        ann.command(boom.to_string().as_bytes()).await
    };
    let (page, reply) = tokio::join!(poll(ack, TIMEOUT / 2), boom);
    assert!(reply.refusal.is_some_and(|refusal| refusal.end.is_some()));
    let page = page.expect("an answer, if an empty one");
    assert_eq!((&page["events"], page["next"].as_u64()), (&json!([]), ack));
    let refusal = poll(ack, TIMEOUT / 2).await.expect_err("it is over");
    assert_eq!(refusal.code, ErrorCode::SessionExpired);
    assert!(began.elapsed() < Duration::from_secs(1));
}

/// A connection with TLS of its own.
#[derive(Debug)]
struct Encrypted(Arc<TlsFacts>);

impl TlsLink for Encrypted {
    fn facts(&self) -> &Arc<TlsFacts> {
        &self.0
    }

    fn check(&self) -> Result<(), TlsFailure> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_manager_learns_all_that_the_authenticator_said_and_saw() {
    const END: u64 = 1_795_305_660_000;
    struct Dressed;

    #[async_trait]
    impl Authenticator for Dressed {
        async fn authenticate(&self, _: &AuthRequest) -> Verdict {
            let mut principal = Principal::vouched("ann").with_roles(vec!["staff".into()]);
            principal.rooms = Some(vec!["team:*".parse().expect("a sound pattern")]);
            principal.expires_at = Some(END);
            principal.limits.rooms_per_session = Some(3);
            Verdict::Allow(principal)
        }
    }

    let backend = Arc::new(Backend::default());
    let stage = manage_users_of(Dressed, Stage::new(|_| ()), &backend);
    let address = ([192, 0, 2, 7], 1).into();
    let tls = Arc::new(TlsFacts::new(
        "TLS1.3",
        "TLS_AES_256_GCM_SHA384",
        address,
        address,
    ));
    let mut peer = Stage::peer();
    peer.tls = Some(Arc::new(Encrypted(Arc::clone(&tls))));
    let opened = stage
        .hub
        .open(&stage.scope, peer, br#"{"token":"x"}"#, None)
        .await;
    assert!(opened.is_ok());
    let facts = backend.facts.lock().take().expect("it was asked");
    assert_eq!(
        (&*facts.user, &facts.roles[..]),
        ("ann", &["staff".to_owned()][..])
    );
    let rooms: Vec<&str> = facts
        .rooms
        .iter()
        .flatten()
        .map(RoomPattern::as_str)
        .collect();
    assert_eq!((rooms, facts.expires_at), (vec!["team:*"], Some(END)));
    let limits = PrincipalLimits {
        rooms_per_session: Some(3),
        ..PrincipalLimits::default()
    };
    assert_eq!(facts.limits, limits);
    assert!(facts.tls.is_some_and(|told| Arc::ptr_eq(&told, &tls)));

    let facts = {
        let stage = managed(&backend, |_| ());
        stage.login("bob").await;
        backend.facts.lock().take().expect("it was asked")
    };
    assert!(facts.tls.is_none() && facts.rooms.is_none() && facts.expires_at.is_none());
    assert_eq!(facts.limits, PrincipalLimits::default());
}
