use std::net::Ipv4Addr;

use chinwag_core::{
    CloseReason, LeaveReason,
    plugin::{BuildError, ControlDesk, SessionManagerContext},
};
use futures_util::future::poll_immediate;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::*;
use crate::callout::testing::{Ears, PATIENCE};

/// Some session of Alice's.
fn facts(key: &str) -> AuthFacts {
    let mut facts = AuthFacts::new(key, "Alice", Ipv4Addr::LOCALHOST.into());
    facts.roles = vec!["staff".into()];
    facts.authenticator = "staff".into();
    facts.transport = "web".into();
    facts
}

fn logout() -> EndCause {
    EndCause::Session(CloseReason::Logout)
}

/// Begins a session that is over by the time that anybody steers it.
async fn create<L: Line>(manager: &Remote<L>, key: &str) -> Result<Context, Refused> {
    manager
        .create(&facts(key), &SessionControl::default())
        .await
}

fn held(context: &Context) -> Arc<Held> {
    context.shared().expect("it was let begin")
}

/// Asks about a stay of a session's in `room`, which then has its context.
#[cfg(feature = "http")]
async fn join<L: Line>(
    manager: &Remote<L>,
    held: &Held,
    number: u64,
    room: &str,
) -> Result<Stay, Refused> {
    let mut stay = Stay::new(Arc::new(facts(&held.key)), number, room);
    stay.context = Arc::new(manager.ask_joined(held, &stay).await?);
    Ok(stay)
}

/// Waits until `what` holds.
async fn until(what: impl Fn() -> bool) {
    timeout(PATIENCE, async {
        while !what() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it comes about in time");
}

#[test]
fn notices_have_bounds() {
    for good in ["", "queue = 1", "tries = 1\nage = \"1ms\""] {
        let notices: Notices = toml::from_str(good).unwrap();
        assert!(notices.check().is_ok(), "{good}");
    }
    for bad in [
        "queue = 0",
        "queue = 10000001",
        "bytes = \"63KiB\"",
        "bytes = \"2GiB\"",
        "tries = 0",
        "age = \"0s\"",
    ] {
        let notices: Notices = toml::from_str(bad).unwrap();
        assert_eq!(notices.check().unwrap_err().key, Some("notices"), "{bad}");
    }
    assert!(toml::from_str::<Notices>("triess = 1").is_err());
}

#[cfg(feature = "http")]
mod over_http {
    use super::{super::http::Endpoints, *};
    use crate::{
        callout::{
            connect::Reach,
            testing::{Answer, Backend, pipes},
        },
        fair::OWN,
    };

    const ONE: &str = "endpoints = [\"http://a/\"]\ninsecure = true\nstays = true\n";
    const THREE: &str =
        "endpoints = [\"http://a/\", \"http://b/\", \"http://c/\"]\ninsecure = true\n";

    /// A manager and the life of its server.
    struct Started {
        manager: Remote<Endpoints>,
        lifecycle: Lifecycle,
        desk: ControlDesk,
    }

    async fn try_start(table: &str, reach: Reach) -> Result<Started, BuildError> {
        let lifecycle = Lifecycle::new();
        let desk = ControlDesk::default();
        desk.open_at("http://127.0.0.1:1/v1/control");
        let mut cx = SessionManagerContext::new("backend", "/", lifecycle.clone());
        cx.control = Some(desk.clone());
        let table: HttpManager = toml::from_str(table).unwrap();
        Ok(Started {
            manager: table.start(&cx, reach).await?,
            lifecycle,
            desk,
        })
    }

    async fn start(table: &str, reach: Reach) -> Started {
        try_start(table, reach).await.unwrap()
    }

    /// A manager before one back end that answers so.
    async fn with(answer: Answer) -> (Started, Arc<Backend>) {
        let backend = Backend::new(answer);
        let started = start(ONE, pipes([("a", &backend)])).await;
        (started, backend)
    }

    /// Allows everything and understands everything.
    fn willing(message: &Value) -> Answer {
        Answer::json(&match message["type"].as_str() {
            Some("create") => json!({"verdict": "allow", "context": {"team": "red", "seat": 0}}),
            Some("joined") => json!({"verdict": "allow", "context": {"seat": 4}}),
            _ => json!({"verdict": "done"}),
        })
    }

    /// Allows everything and hears of no end.
    fn hard_of_hearing(message: &Value) -> Answer {
        match message["type"].as_str() {
            Some("left" | "ended") => Answer::Http(500, Vec::new(), "".into()),
            _ => willing(message),
        }
    }

    fn said(backend: &Backend) -> Vec<Value> {
        let asked = backend.asked().into_iter();
        asked
            .map(|asked| serde_json::from_str(&asked.body).unwrap())
            .collect()
    }

    /// Type, room and cause of everything that was said.
    fn brief(backend: &Backend) -> Vec<String> {
        let brief = |message: &Value| {
            let words = ["type", "session", "room", "cause"].map(|key| message[key].as_str());
            words.into_iter().flatten().collect::<Vec<_>>().join(" ")
        };
        said(backend).iter().map(brief).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_manager_hears_of_a_session_from_its_beginning_to_its_end() {
        let (started, backend) = with(Answer::By(willing)).await;
        let manager = &started.manager;
        let mut facts = facts("k1");
        facts.existing = Some("k0".into());
        let control = SessionControl::default();
        let context = manager.create(&facts, &control).await.unwrap();
        let data = context.value::<SessionData>().unwrap();
        assert_eq!(data.0["team"], "red", "plug-ins see what was attached");

        let held = held(&context);
        let stay = join(manager, &held, 1, "lobby").await.unwrap();
        let data = stay.context.value::<SessionData>().unwrap();
        assert_eq!(
            json!(data.0),
            json!({"team": "red", "seat": 4}),
            "its own over that of the session"
        );
        let left = EndCause::Stay(LeaveReason::Left);
        manager.tell_left(&held, &stay, left);
        let again = join(manager, &held, 2, "lobby").await.unwrap();
        manager.tell_left(&held, &again, logout());
        manager.ended(&facts, &context, logout());
        until(|| said(&backend).len() == 6).await;

        let mut said = said(&backend);
        let control = said[0].as_object_mut().unwrap().remove("control").unwrap();
        assert_eq!(control["url"], "http://127.0.0.1:1/v1/control");
        let token = control["token"].as_str().unwrap();
        assert!(token.starts_with("k1.") && token.len() >= 24, "{token}");
        assert_eq!(
            said[0],
            json!({
                "v": 1, "type": "create", "session": "k1", "user": "Alice", "roles": ["staff"],
                "authenticator": "staff", "transport": "web", "address": "127.0.0.1", "existing": "k0",
            })
        );
        let stay = |kind: &str, number: u64, more: Value| {
            let mut stay = json!({
                "v": 1, "type": kind, "session": "k1", "user": "Alice", "stay": number, "room": "lobby",
            });
            let more = more.as_object().unwrap().clone();
            stay.as_object_mut().unwrap().extend(more);
            stay
        };
        let team = json!({"team": "red", "seat": 0});
        let seated = json!({"team": "red", "seat": 4});
        let order = brief(&backend);
        for (message, expected) in [
            (
                "joined k1 lobby",
                stay("joined", 1, json!({"context": team})),
            ),
            (
                "left k1 lobby left",
                stay(
                    "left",
                    1,
                    json!({"context": seated, "over": "stay", "cause": "left"}),
                ),
            ),
            (
                "left k1 lobby logout",
                stay(
                    "left",
                    2,
                    json!({"context": seated, "over": "session", "cause": "logout"}),
                ),
            ),
        ] {
            let index = order.iter().position(|it| it == message).unwrap();
            assert_eq!(said[index], expected);
        }
        assert_eq!(
            said[5],
            json!({
                "v": 1, "type": "ended", "session": "k1", "user": "Alice", "context": team,
                "cause": "logout",
            })
        );
        assert_eq!(started.lifecycle.shut_down(Duration::from_secs(5)).await, 0);
        assert_eq!(
            brief(&backend).len(),
            6,
            "nothing is told twice that was answered"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_is_told_to_end_by_nobody() {
        let (started, backend) = with(Answer::json(
            &json!({"verdict": "refuse", "reason": "Your plan has ended."}),
        ))
        .await;
        let refused = create(&started.manager, "k1").await.unwrap_err();
        assert_eq!(refused, Refused::Reason("Your plan has ended.".into()));
        backend.set(Answer::json(
            &json!({"verdict": "unavailable", "retry_ms": 7000}),
        ));
        let refused = create(&started.manager, "k2").await.unwrap_err();
        let retry = Duration::from_secs(7);
        assert_eq!(refused, Refused::Unavailable { retry });
        assert_eq!(started.lifecycle.shut_down(Duration::from_secs(5)).await, 0);
        assert_eq!(brief(&backend), ["create k1", "create k2"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_have_begun_there_is_told_to_end() {
        let (started, backend) = with(Answer::Silence).await;
        let manager = &started.manager;
        let refused = create(manager, "slow").await.unwrap_err();
        assert!(
            matches!(refused, Refused::Unavailable { .. }),
            "{refused:?}"
        );
        let hung_up = timeout(Duration::from_millis(100), create(manager, "gone")).await;
        assert!(hung_up.is_err());
        for (key, answer) in [
            ("broken", Answer::Http(500, Vec::new(), "".into())),
            (
                "odd",
                Answer::json(&json!({"verdict": "allow", "contextt": {}})),
            ),
        ] {
            backend.set(answer);
            let refused = create(manager, key).await.unwrap_err();
            assert!(
                matches!(refused, Refused::Unavailable { .. }),
                "{refused:?}"
            );
        }
        backend.set(Answer::By(willing));
        let context = create(manager, "good").await.unwrap();
        backend.set(Answer::Silence);
        let held = held(&context);
        let joining = timeout(Duration::from_millis(100), join(manager, &held, 1, "lobby"));
        assert!(joining.await.is_err());
        backend.set(Answer::By(willing));
        manager.ended(&facts(&held.key), &context, logout());
        assert_eq!(started.lifecycle.shut_down(Duration::from_secs(9)).await, 0);
        let told = brief(&backend);
        for key in ["slow", "gone", "broken", "odd"] {
            let end = format!("ended {key} refused");
            assert!(told.contains(&end), "{end}: {told:?}");
        }
        let of_good: Vec<_> = told
            .iter()
            .filter(|it| it.contains("good") && !it.starts_with("create"))
            .collect();
        let ends = of_good.len() - 2;
        assert_eq!(
            of_good[ends..],
            ["left good lobby refused", "ended good logout"]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_told_to_end_what_nobody_can_have_heard_of() {
        for unreached in [Answer::Refuse, Answer::Void] {
            let (started, backend) = with(unreached).await;
            // Whoever waits for a connection may hang up meanwhile.
            let hung_up = timeout(Duration::from_millis(100), create(&started.manager, "k1"));
            assert!(!matches!(hung_up.await, Ok(Ok(_))));
            create(&started.manager, "k2").await.unwrap_err();
            backend.set(Answer::By(willing));
            assert_eq!(started.lifecycle.shut_down(Duration::from_secs(5)).await, 0);
            assert_eq!(brief(&backend), [""; 0]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_is_told_until_it_is_answered_and_in_order() {
        let (started, backend) = with(Answer::By(hard_of_hearing)).await;
        let manager = &started.manager;
        let context = create(manager, "k1").await.unwrap();
        let held = held(&context);
        let mut stays = Vec::new();
        for (number, room) in [(1, "a"), (2, "b")] {
            stays.push(join(manager, &held, number, room).await.unwrap());
        }
        for stay in stays.iter().rev() {
            manager.tell_left(&held, stay, logout());
        }
        manager.ended(&facts(&held.key), &context, logout());
        manager.ended(&facts(&held.key), &context, logout());
        sleep(Duration::from_secs(3)).await;
        let told = brief(&backend);
        assert!(told.len() > 5, "{told:?}");
        let is_first = |it: &String| it == "left k1 b logout";
        assert!(
            told[3..].iter().all(is_first),
            "one after another: {told:?}"
        );
        backend.set(Answer::json(&json!({"verdict": "unavailable"})));
        sleep(Duration::from_secs(10)).await;
        let before = brief(&backend).len();
        backend.set(Answer::By(willing));
        assert_eq!(started.lifecycle.shut_down(Duration::from_secs(9)).await, 0);
        let told = brief(&backend);
        assert_eq!(
            told[before..],
            ["left k1 b logout", "left k1 a logout", "ended k1 logout"],
            "each once from then on"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_that_waits_is_held_for_its_stay() {
        let (started, backend) = with(Answer::By(hard_of_hearing)).await;
        let context = create(&started.manager, "k1").await.unwrap();
        let held = held(&context);
        let stay = join(&started.manager, &held, 1, "lobby").await.unwrap();
        let before = stay.bytes();
        started.manager.tell_left(&held, &stay, logout());
        sleep(Duration::from_secs(1)).await;
        let waits = stay.bytes() - before;
        assert!((100..500).contains(&waits), "a message: {waits}");
        backend.set(Answer::By(willing));
        sleep(Duration::from_secs(6)).await;
        assert_eq!(stay.bytes(), before, "it was told");
        started.manager.ended(&facts(&held.key), &context, logout());
        assert_eq!(started.lifecycle.shut_down(Duration::from_secs(5)).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_that_nobody_answers_is_given_up() {
        let ears = Ears::open();
        let backend = Backend::new(Answer::By(hard_of_hearing));
        for bound in ["notices = { tries = 3 }", "notices = { age = \"1s\" }"] {
            let started = start(&format!("{ONE}{bound}\n"), pipes([("a", &backend)])).await;
            let before = brief(&backend).len();
            let context = create(&started.manager, "k1").await.unwrap();
            started.manager.ended(&facts("k1"), &context, logout());
            sleep(Duration::from_secs(30)).await;
            let told = brief(&backend).len() - before - 1;
            assert!((3..=4).contains(&told), "{bound}: {told}");
            assert_eq!(started.lifecycle.shut_down(Duration::from_secs(5)).await, 0);
        }
        let heard = ears.heard();
        assert_eq!(heard.matches("are given up").count(), 2, "{heard}");
        assert!(heard.contains("undelivered=1"), "{heard}");
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_server_stops_nothing_is_given_up_before_the_grace_is_over() {
        let backend = Backend::new(Answer::By(hard_of_hearing));
        for bound in ["notices = { tries = 3 }", "notices = { age = \"1s\" }"] {
            backend.set(Answer::By(hard_of_hearing));
            let started = start(&format!("{ONE}{bound}\n"), pipes([("a", &backend)])).await;
            let context = create(&started.manager, "k1").await.unwrap();
            let before = brief(&backend).len();
            let stopping = started.lifecycle.shut_down(Duration::from_secs(30));
            tokio::pin!(stopping);
            assert!(poll_immediate(&mut stopping).await.is_none());
            started.manager.ended(&facts("k1"), &context, logout());
            let early = timeout(Duration::from_secs(20), &mut stopping).await;
            assert!(early.is_err(), "{bound}: there is time left");
            backend.set(Answer::By(willing));
            assert_eq!(stopping.await, 0, "{bound}");
            let told = brief(&backend).len() - before;
            assert!(told > 3, "{bound}: {told}");
        }
    }

    /// A back end that takes a second for each answer once the session `k1` is there.
    async fn start_slow(table: &str) -> (Arc<Backend>, Started, Context) {
        let backend = Backend::new(Answer::By(willing));
        let started = start(table, pipes([("a", &backend)])).await;
        let context = create(&started.manager, "k1").await.unwrap();
        let slow = Answer::After(Duration::from_secs(1), Box::new(Answer::By(willing)));
        backend.set(slow);
        (backend, started, context)
    }

    #[tokio::test(start_paused = true)]
    async fn that_too_many_others_are_told_is_no_try_and_does_not_make_it_out_of_reach() {
        let table = format!("{ONE}calls = 1\nqueue = 0\nnotices = {{ tries = 1 }}\n");
        let (backend, started, context) = start_slow(&table).await;
        let manager = &started.manager;
        let end = async {
            let mut hellos: Vec<_> = (0..OWN).map(|_| manager.reach()).collect();
            for hello in &mut hellos {
                assert!(poll_immediate(hello).await.is_none(), "it waits");
            }
            manager.ended(&facts("k1"), &context, logout());
            sleep(Duration::from_millis(900)).await;
            assert!(manager.is_ready(), "nobody was asked");
            assert_eq!(brief(&backend), ["create k1", "create k2"]);
        };
        let (other, ()) = tokio::join!(create(manager, "k2"), end);
        other.unwrap();
        until(|| brief(&backend).contains(&"ended k1 logout".to_owned())).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_is_told_while_more_networks_than_may_wait_log_in() {
        let table = format!("{ONE}calls = 1\nqueue = 8\n");
        let (backend, started, context) = start_slow(&table).await;
        let manager = &started.manager;
        let flood = (0..64).map(|n: u16| async move {
            let mut facts = facts(&format!("flood-{n}"));
            facts.address = std::net::Ipv6Addr::from([0x2001, 0xdb8, 0, n, 0, 0, 0, 1]).into();
            manager.create(&facts, &SessionControl::default()).await
        });
        let end = async { manager.ended(&facts("k1"), &context, logout()) };
        let (flood, ()) = tokio::join!(futures_util::future::join_all(flood), end);
        let told = brief(&backend);
        assert_eq!(
            told[2], "ended k1 logout",
            "it has the first turn: {told:?}"
        );
        let count =
            |is: fn(&Result<Context, Refused>) -> bool| flood.iter().filter(|it| is(it)).count();
        assert!(
            count(Result::is_ok) >= 3,
            "the others have theirs: {told:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_endpoint_got_before_it_was_gone_is_told_to_end() {
        let (started, backend) = with(Answer::By(willing)).await;
        // Its connection is kept.
        let first = create(&started.manager, "k1").await.unwrap();
        backend.set(Answer::Silence);
        let gone = async {
            until(|| brief(&backend).contains(&"create k2".to_owned())).await;
            backend.set(Answer::Refuse);
            backend.hang_up();
        };
        let (second, ()) = tokio::join!(create(&started.manager, "k2"), gone);
        assert!(matches!(second, Err(Refused::Unavailable { .. })));
        backend.set(Answer::By(willing));
        started.manager.ended(&facts("k1"), &first, logout());
        assert_eq!(started.lifecycle.shut_down(Duration::from_secs(9)).await, 0);
        let told = brief(&backend);
        assert!(told.contains(&"ended k2 refused".to_owned()), "{told:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_ends_wait() {
        let ears = Ears::open();
        let backend = Backend::new(Answer::By(hard_of_hearing));
        let table = format!("{ONE}notices = {{ queue = 2 }}\n");
        let started = start(&table, pipes([("a", &backend)])).await;
        for n in 0..5 {
            let key = format!("k{n}");
            let context = create(&started.manager, &key).await.unwrap();
            started.manager.ended(&facts(&key), &context, logout());
        }
        backend.set(Answer::By(willing));
        assert_eq!(started.lifecycle.shut_down(Duration::from_secs(9)).await, 0);
        let told = brief(&backend);
        assert!(told.contains(&"ended k0 logout".to_owned()), "{told:?}");
        assert!(told.contains(&"ended k1 logout".to_owned()), "{told:?}");
        assert!(!told.contains(&"ended k4 logout".to_owned()), "{told:?}");
        assert!(ears.heard().contains("are given up"));
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_bytes_of_ends_wait() {
        let backend = Backend::new(Answer::By(|message| match message["type"].as_str() {
            Some("create") => {
                let team = "x".repeat(15_000);
                Answer::json(&json!({"verdict": "allow", "context": {"team": team}}))
            }
            _ => hard_of_hearing(message),
        }));
        let table = format!("{ONE}notices = {{ bytes = \"64KiB\" }}\n");
        let started = start(&table, pipes([("a", &backend)])).await;
        for n in 0..6 {
            let key = format!("k{n}");
            let context = create(&started.manager, &key).await.unwrap();
            started.manager.ended(&facts(&key), &context, logout());
        }
        backend.set(Answer::By(willing));
        sleep(Duration::from_secs(6)).await;
        let told = brief(&backend);
        for (key, is_told) in [("k0", true), ("k3", true), ("k4", false), ("k5", false)] {
            let end = format!("ended {key} logout");
            assert_eq!(told.contains(&end), is_told, "{end}: {told:?}");
        }
        let context = create(&started.manager, "again").await.unwrap();
        started.manager.ended(&facts("again"), &context, logout());
        assert_eq!(started.lifecycle.shut_down(Duration::from_secs(9)).await, 0);
        let told = brief(&backend);
        assert!(told.contains(&"ended again logout".to_owned()), "{told:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_to_be_told_later_is_told_later() {
        let later = |message: &Value| match message["type"].as_str() {
            Some("ended") => Answer::json(&json!({"verdict": "unavailable", "retry_ms": 9000})),
            _ => willing(message),
        };
        let (started, backend) = with(Answer::By(later)).await;
        let context = create(&started.manager, "k1").await.unwrap();
        started.manager.ended(&facts("k1"), &context, logout());
        let ends = || brief(&backend).len() - 1;
        sleep(Duration::from_millis(8900)).await;
        assert_eq!(ends(), 1, "not before");
        sleep(Duration::from_millis(200)).await;
        assert_eq!(ends(), 2);
        // An age of a minute ends all patience.
        sleep(Duration::from_secs(120)).await;
        assert_eq!(ends(), 8, "0, 9, … 54 s and the last at 60 s");
        assert_eq!(started.lifecycle.shut_down(Duration::from_secs(5)).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_that_comes_after_the_last_word_is_given_up_and_said() {
        let (started, backend) = with(Answer::By(hard_of_hearing)).await;
        let context = create(&started.manager, "k1").await.unwrap();
        assert_eq!(started.lifecycle.shut_down(Duration::from_secs(5)).await, 1);
        let ears = Ears::open();
        started.manager.ended(&facts("k1"), &context, logout());
        let heard = ears.heard();
        assert!(
            heard.contains("are given up") && heard.contains("undelivered=1"),
            "{heard}"
        );
        assert_eq!(brief(&backend), ["create k1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn contexts_are_shared_and_a_stay_without_one_copies_nothing() {
        let answer = |message: &Value| match message["room"].as_str() {
            Some("bare") => Answer::json(&json!({"verdict": "allow"})),
            Some("large") => {
                let seat = "x".repeat(10_000);
                Answer::json(&json!({"verdict": "allow", "context": {"seat": seat}}))
            }
            _ => {
                let team = "x".repeat(10_000);
                Answer::json(&json!({"verdict": "allow", "context": {"team": team}}))
            }
        };
        let (started, _backend) = with(Answer::By(answer)).await;
        let manager = &started.manager;
        let context = create(manager, "k1").await.unwrap();
        let held = held(&context);
        let kept = held.data.as_ref().unwrap();
        let seen = context.shared::<SessionData>().unwrap();
        assert!(Arc::ptr_eq(kept, &seen));
        let stay = join(manager, &held, 1, "bare").await.unwrap();
        assert!(
            stay.context.value::<SessionData>().is_none(),
            "look-ups go on in that of the session"
        );
        let refused = join(manager, &held, 2, "large").await;
        assert!(
            matches!(refused, Err(Refused::Unavailable { .. })),
            "together they are too large"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_waits_for_sessions_and_their_ends_but_not_for_ever() {
        let (started, backend) = with(Answer::By(willing)).await;
        let context = create(&started.manager, "k1").await.unwrap();
        let lifecycle = started.lifecycle.clone();
        let stopping = lifecycle.shut_down(Duration::from_secs(60));
        tokio::pin!(stopping);
        let early = timeout(Duration::from_secs(20), &mut stopping).await;
        assert!(early.is_err(), "a session is still there");
        backend.set(Answer::By(hard_of_hearing));
        started.manager.ended(&facts("k1"), &context, logout());
        let early = timeout(Duration::from_secs(5), &mut stopping).await;
        assert!(early.is_err(), "its end has not been heard");
        backend.set(Answer::By(willing));
        assert_eq!(stopping.await, 0);
        assert!(brief(&backend).contains(&"ended k1 logout".to_owned()));

        let ears = Ears::open();
        let (started, _backend) = with(Answer::By(hard_of_hearing)).await;
        let context = create(&started.manager, "k2").await.unwrap();
        started.manager.ended(&facts("k2"), &context, logout());
        assert_eq!(started.lifecycle.shut_down(Duration::from_secs(5)).await, 1);
        let heard = ears.heard();
        assert!(
            heard.contains("The server stops before") && heard.contains("undelivered=1"),
            "{heard}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_endpoint_of_three_costs_its_connect_limit_once() {
        let [a, b, c] = [Answer::Void, Answer::By(willing), Answer::By(willing)].map(Backend::new);
        let started = start(THREE, pipes([("a", &a), ("b", &b), ("c", &c)])).await;
        let mut slow = 0;
        for n in 0..12 {
            let before = tokio::time::Instant::now();
            create(&started.manager, &format!("k{n}")).await.unwrap();
            let took = before.elapsed();
            assert!(took <= Duration::from_millis(510), "{took:?}");
            slow += usize::from(took > Duration::from_millis(50));
        }
        assert_eq!(slow, 1);
        let (b, c) = (said(&b).len(), said(&c).len());
        assert!(b >= 4 && c >= 4, "the healthy ones take turns: {b} {c}");
    }

    /// Has 48 sessions begin, each so much later than the one before; gives how long each waited.
    async fn create_many<L: Line>(manager: &Remote<L>, apart: Duration) -> Vec<Duration> {
        let creates = (0..48).map(|n| async move {
            sleep(n * apart).await;
            let began = tokio::time::Instant::now();
            create(manager, &format!("k{n}")).await.unwrap();
            began.elapsed()
        });
        futures_util::future::join_all(creates).await
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_sessions_that_begin_at_once_one_waits_for_a_dead_endpoint() {
        let [a, b, c] = [
            Answer::By(willing),
            Answer::By(willing),
            Answer::By(willing),
        ];
        let [a, b, c] = [a, b, c].map(Backend::new);
        let reach = || pipes([("a", &a), ("b", &b), ("c", &c)]);
        for was_there in [false, true] {
            a.set(Answer::By(willing));
            let started = start(THREE, reach()).await;
            if was_there {
                for n in 0..12 {
                    create(&started.manager, &format!("before-{n}"))
                        .await
                        .unwrap();
                }
            }
            a.set(Answer::Void);
            a.hang_up();
            sleep(Duration::from_secs(1)).await;
            let asked = || (said(&b).len(), said(&c).len());
            let before = asked();
            let took = create_many(&started.manager, Duration::ZERO).await;
            let most = took.iter().max().unwrap();
            assert!(*most <= Duration::from_millis(510), "{most:?}");
            let slow = |took: &&Duration| **took > Duration::from_millis(50);
            assert_eq!(took.iter().filter(slow).count(), 1, "{took:?}");
            let after = asked();
            let (b, c) = (after.0 - before.0, after.1 - before.1);
            assert!(b >= 16 && c >= 16, "the healthy ones take turns: {b} {c}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn in_the_moment_of_its_death_one_waits_for_an_endpoint_as_well() {
        let [a, b, c] = [(); 3].map(|()| Backend::new(Answer::By(willing)));
        let started = start(THREE, pipes([("a", &a), ("b", &b), ("c", &c)])).await;
        for n in 0..12 {
            let key = format!("before-{n}");
            create(&started.manager, &key).await.unwrap();
        }
        a.set(Answer::Void);
        a.hang_up();
        // The last ones come when it should be known.
        let took = create_many(&started.manager, Duration::from_millis(4)).await;
        let most = took.iter().max().unwrap();
        assert!(*most <= Duration::from_millis(510), "{most:?}");
        let slow = |took: &&Duration| **took > Duration::from_millis(110);
        assert_eq!(took.iter().filter(slow).count(), 1, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_across_a_slow_link_has_its_share() {
        let slow = Answer::After(Duration::from_secs(4), Box::new(Answer::By(willing)));
        let (far, near) = (Backend::new(slow.clone()), Backend::new(slow));
        let (a, b) = (Arc::clone(&far), Arc::clone(&near));
        let reach = Reach::Pipes(Arc::new(move |uri| {
            let is_far = uri.host() == Some("a");
            let backend = Arc::clone(if is_far { &a } else { &b });
            Box::pin(async move {
                if is_far {
                    sleep(Duration::from_millis(300)).await;
                }
                let (ours, theirs) = tokio::io::duplex(64 << 10);
                backend.serve(theirs);
                Ok(ours)
            })
        }));
        let table = "endpoints = [\"http://a/\", \"http://b/\"]\ninsecure = true\ncall_timeout = \"4500ms\"";
        let started = start(table, reach).await;
        // None ends before the last begins, so that each needs a connection of its own.
        let creates = (0..60).map(|n| {
            let manager = &started.manager;
            async move {
                sleep(Duration::from_millis(n * 50)).await;
                create(manager, &format!("k{n}")).await.unwrap();
            }
        });
        futures_util::future::join_all(creates).await;
        let (far, near) = (said(&far).len(), said(&near).len());
        // While it is reached for the first time, nobody knows yet whether it is there.
        assert!(far >= 26 && near <= 34, "{far} {near}");
    }

    #[tokio::test(start_paused = true)]
    async fn while_all_endpoints_are_dead_nobody_waits_longer_than_to_reach_one() {
        let dead = Backend::new(Answer::Void);
        let started = start(THREE, pipes([("a", &dead), ("b", &dead), ("c", &dead)])).await;
        let began = tokio::time::Instant::now();
        let creates = (0..12).map(|n| {
            let manager = &started.manager;
            async move { create(manager, &format!("k{n}")).await.unwrap_err() }
        });
        futures_util::future::join_all(creates).await;
        assert!(
            began.elapsed() <= Duration::from_millis(510),
            "{:?}",
            began.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn whether_it_is_there_is_known_from_the_last_call() {
        let (started, backend) = with(Answer::Refuse).await;
        let manager = &started.manager;
        assert!(!manager.is_ready(), "nobody has asked yet");
        manager.reach().await.unwrap_err();
        assert!(!manager.is_ready());
        backend.set(Answer::By(willing));
        sleep(Duration::from_secs(2)).await;
        let context = create(manager, "k1").await.unwrap();
        assert!(manager.is_ready());
        manager.reach().await.unwrap();
        backend.set(Answer::json(&json!({"verdict": "unavailable"})));
        manager.reach().await.unwrap_err();
        assert!(!manager.is_ready());
        drop(context);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_opens_its_session_while_that_lives_and_is_never_logged() {
        static TOKEN: std::sync::OnceLock<String> = std::sync::OnceLock::new();
        let ears = Ears::open();
        let (started, backend) = with(Answer::Echo).await;
        create(&started.manager, "k1").await.unwrap_err();
        backend.set(Answer::By(|message| {
            let token = message["control"]["token"].as_str().unwrap_or_default();
            Answer::json(&json!({"verdict": token}))
        }));
        create(&started.manager, "k2").await.unwrap_err();
        backend.set(Answer::By(willing));
        let context = create(&started.manager, "k3").await.unwrap();
        let tokens: Vec<String> = said(&backend)
            .iter()
            .filter_map(|message| Some(message["control"]["token"].as_str()?.to_owned()))
            .collect();
        let (_, secret) = tokens[2].split_once('.').unwrap();
        let wrong = format!("k3.{}", &secret.chars().rev().collect::<String>());
        assert!(started.desk.session(&tokens[2]).is_ok());
        TOKEN.set(tokens[2].clone()).unwrap();
        backend.set(Answer::By(|_| {
            Answer::json(&json!({"verdict": TOKEN.get().unwrap()}))
        }));
        let held = held(&context);
        join(&started.manager, &held, 1, "lobby").await.unwrap_err();
        started.manager.reach().await.unwrap_err();
        let stay = Stay::new(Arc::new(facts("k3")), 2, "lobby");
        started.manager.tell_left(&held, &stay, logout());
        let is_told = |kind: &str| said(&backend).iter().any(|it| it["type"] == kind);
        until(|| is_told("left")).await;
        sleep(Duration::from_millis(10)).await;
        for (token, why) in [
            (wrong.as_str(), chinwag_core::plugin::NoPass::Wrong),
            ("k3.", chinwag_core::plugin::NoPass::Wrong),
            ("k3", chinwag_core::plugin::NoPass::Wrong),
            (&tokens[0], chinwag_core::plugin::NoPass::Over),
        ] {
            assert_eq!(started.desk.session(token).err(), Some(why), "{token}");
        }
        started.manager.ended(&facts("k3"), &context, logout());
        let over = started.desk.session(&tokens[2]).err();
        assert_eq!(over, Some(chinwag_core::plugin::NoPass::Over));
        let heard = ears.heard();
        let left_out = heard.matches("it may have the token of a session").count();
        assert!(left_out >= 4, "each kind of answer is quoted: {heard}");
        for token in tokens {
            let (_, secret) = token.split_once('.').unwrap();
            assert!(!heard.contains(secret), "{heard}");
        }
    }
}

#[cfg(feature = "exec")]
mod over_exec {
    use std::{fs, path::PathBuf};

    use chinwag_core::{
        ChainLink, Hub, HubConfig, Peer, Revocations, ScopeConfig, Telemetry,
        plugin::{AuthRequest, Authenticator, ManagerLink, Meter, Principal, Verdict},
    };
    use tempfile::TempDir;

    use super::{
        super::{ExecManager, exec::ProgramLine},
        *,
    };

    /// What every script begins with: `answer REST` answers the question that `ask` has read into
    /// `line`, `id`, `kind` and `session`, and notes.
    const PRELUDE: &str = r#"
answer() { printf '{"id":%s,%s}\n' "$id" "$1"; }
ask() {
    IFS= read -r line || exit 0
    printf '%s\n' "$line" >> heard
    id=${line#*'"id":'} id=${id%%,*}
    kind=${line#*'"type":"'} kind=${kind%%'"'*}
    session=${line#*'"session":"'} session=${session%%'"'*}
}
"#;

    /// Allows everything and understands everything.
    const WILLING: &str = r#"case $kind in
        create|joined) answer '"verdict":"allow"' ;;
        *) answer '"verdict":"done"' ;;
    esac"#;

    struct Script {
        folder: TempDir,
        lifecycle: Lifecycle,
    }

    impl Script {
        fn new(script: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let script = format!("{PRELUDE}{script}\n");
            fs::write(folder.path().join("manager"), script).unwrap();
            Self {
                folder,
                lifecycle: Lifecycle::new(),
            }
        }

        fn start(&self, table: &str) -> Remote<ProgramLine> {
            // A busy machine takes its time.
            let table = format!("command = [\"sh\", \"manager\"]\ncall_timeout = \"30s\"\n{table}");
            let table: ExecManager = toml::from_str(&table).unwrap();
            let folder = self.folder.path();
            let mut cx = SessionManagerContext::new("backend", folder, self.lifecycle.clone());
            cx.timeout = PATIENCE;
            table.start(&cx).unwrap()
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.path(name)).unwrap_or_default()
        }

        /// Type and session of what the programs were asked and told.
        fn heard(&self) -> Vec<String> {
            let brief = |line: &str| {
                let message: Value = serde_json::from_str(line).unwrap();
                let words = ["type", "session", "cause"].map(|key| message[key].as_str());
                words.into_iter().flatten().collect::<Vec<_>>().join(" ")
            };
            self.read("heard").lines().map(brief).collect()
        }
    }

    impl Drop for Script {
        fn drop(&mut self) {
            self.lifecycle.kill();
        }
    }

    #[tokio::test]
    async fn a_program_manages_sessions_and_leaves_when_all_is_told() {
        let script = Script::new(&format!(
            "echo $$ > pid\nwhile ask; do {WILLING}; done\ntouch left"
        ));
        let manager = script.start("");
        manager.reach().await.unwrap();
        assert!(manager.is_ready());
        let context = create(&manager, "k1").await.unwrap();
        script.lifecycle.drain();
        manager.ended(&facts("k1"), &context, logout());
        assert_eq!(script.lifecycle.shut_down(PATIENCE).await, 0);
        assert_eq!(script.heard(), ["hello", "create k1", "ended k1 logout"]);
        let pid = script.read("pid");
        let is_gone = !PathBuf::from(format!("/proc/{}", pid.trim())).exists();
        assert!(is_gone, "{pid}");
    }

    #[tokio::test]
    async fn a_program_is_told_no_end_of_what_it_was_not_asked_about() {
        let script = Script::new(&format!(
            "while ask; do until [ -e open ]; do sleep 0.01; done; {WILLING}; done"
        ));
        let manager = script.start("");
        let asked = async {
            until(|| !script.heard().is_empty()).await;
            let mut second = Box::pin(create(&manager, "k2"));
            assert!(poll_immediate(&mut second).await.is_none(), "it waits");
            drop(second);
            fs::write(script.path("open"), "").unwrap();
        };
        let (first, ()) = tokio::join!(create(&manager, "k1"), asked);
        manager.ended(&facts("k1"), &first.unwrap(), logout());
        assert_eq!(script.lifecycle.shut_down(PATIENCE).await, 0);
        assert_eq!(script.heard(), ["create k1", "ended k1 logout"]);
    }

    #[tokio::test]
    async fn a_program_that_is_killed_hears_of_ends_when_it_is_back() {
        let script = Script::new(&format!(
            "echo $$ >> pids\nwhile ask; do [ $kind = ended ] && [ ! -e open ] && kill -9 $$; {WILLING}; done"
        ));
        let manager = script.start("");
        let context = create(&manager, "k1").await.unwrap();
        manager.ended(&facts("k1"), &context, logout());
        until(|| script.read("pids").lines().count() >= 2).await;
        fs::write(script.path("open"), "").unwrap();
        let again = loop {
            match create(&manager, "k2").await {
                Ok(context) => break context,
                Err(Refused::Unavailable { retry }) => sleep(retry).await,
                Err(refused) => panic!("{refused:?}"),
            }
        };
        manager.ended(&facts("k2"), &again, logout());
        assert_eq!(script.lifecycle.shut_down(PATIENCE).await, 0);
        let heard = script.heard();
        let told = heard.iter().filter(|it| *it == "ended k1 logout").count();
        assert!(told >= 2, "{heard:?}");
        assert!(heard.contains(&"ended k2 logout".to_owned()), "{heard:?}");
    }

    #[tokio::test]
    async fn orders_that_make_no_sense_are_refused_and_the_program_goes_on() {
        let script = Script::new(
            r#"
            ask
            echo '{"session":"nobody","order":"end","ref":1}'
            echo '{"session":"nobody","order":"explode","ref":2}'
            echo '{"session":"nobody","order":"timeout","with":{},"ref":3}'
            echo '{"session":"nobody","order":"end"}'
            for n in 1 2 3; do IFS= read -r outcome; printf '%s\n' "$outcome" >> outcomes; done
            answer '"verdict":"done"'
            while ask; do answer '"verdict":"done"'; done"#,
        );
        let manager = script.start("");
        manager.reach().await.unwrap();
        manager.reach().await.unwrap();
        let outcomes = script.read("outcomes");
        let codes: Vec<_> = outcomes
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .map(|it| (it["ref"].as_u64().unwrap(), it["code"].clone()))
            .collect();
        assert_eq!(
            codes,
            [
                (1, json!("session_expired")),
                (2, json!("unknown_type")),
                (3, json!("bad_request"))
            ]
        );
        assert_eq!(
            script.heard().len(),
            2,
            "the same program: {:?}",
            script.heard()
        );
    }

    /// Lets everybody in.
    struct Everybody;

    #[async_trait]
    impl Authenticator for Everybody {
        async fn authenticate(&self, _: &AuthRequest) -> Verdict {
            Verdict::Allow(Principal::vouched("ann"))
        }
    }

    #[tokio::test]
    async fn what_an_answer_says_and_orders_take_effect_in_the_order_in_which_they_are_written() {
        let script = Script::new(
            r#"
            order() {
                printf '{"session":"%s","order":"filter","with":{"rooms":["%s"]},"ref":1}' "$session" "$1"
            }
            while ask; do
                [ $kind = create ] || { answer '"verdict":"done"'; continue; }
                said=$(printf '{"id":%s,"verdict":"allow","filter":{"rooms":["said"]}}' "$id")
                printf '%s\n%s\n%s\n' "$(order before)" "$said" "$(order after)"
                for n in 1 2; do IFS= read -r outcome; printf '%s\n' "$outcome" >> outcomes; done
            done"#,
        );
        let manager = ManagerLink {
            name: "backend".into(),
            manager: Arc::new(script.start("")),
            timeout: PATIENCE,
        };
        let meter = Meter::default();
        let telemetry = Telemetry::new(meter.recorder(), &["web"], &["all"], &[], &["backend"]);
        let hub = Hub::start(HubConfig::default(), telemetry, script.lifecycle.clone()).unwrap();
        let link = ChainLink {
            name: "all".into(),
            authenticator: Arc::new(Everybody),
            timeout: PATIENCE,
            revocations: Revocations::default(),
            manager: Some(manager),
            shadow: None,
        };
        let scope = hub.scope(ScopeConfig {
            name: "web".into(),
            auth: vec![link],
            timeout: PATIENCE,
            login_timeout: PATIENCE,
            write_timeout: PATIENCE,
        });
        let peer = Peer::new(Ipv4Addr::LOCALHOST.into(), false);
        let opened = hub.open(&scope, peer, br#"{"user":"ann"}"#, None);
        let session = opened.await.unwrap().session;
        until(|| script.read("outcomes").lines().count() == 2).await;
        assert_eq!(script.read("outcomes").matches("\"ok\":true").count(), 2);
        for (room, may) in [("before", false), ("said", false), ("after", true)] {
            let join = json!({"type": "join", "room": room}).to_string();
            let reply = session.command(join.as_bytes()).await;
            let reply = String::from_utf8_lossy(&reply.json).into_owned();
            assert_eq!(!reply.contains("forbidden"), may, "{room}: {reply}");
        }
    }

    #[tokio::test]
    async fn only_so_many_refused_orders_are_logged_and_none_is_repeated() {
        let script = Script::new(
            r#"
            ask
            for n in 0 1 2 3 4 5 6 7 8 9; do
                for m in 0 1 2 3 4 5 6 7 8 9; do
                    for order in filter s3cret; do
                        echo '{"session":"nobody","order":"'$order'","with":{"s3cret":'$m'}}'
                    done
                done
            done
            answer '"verdict":"done"'
            while ask; do answer '"verdict":"done"'; done"#,
        );
        let ears = Ears::open();
        let manager = script.start("");
        let began = chinwag_core::clock::now();
        manager.reach().await.unwrap();
        let heard = ears.heard();
        let lines = heard.matches("What a program wants is refused").count();
        let seconds = began.elapsed().as_secs() + 2;
        assert!(lines > 0 && lines as u64 <= 20 * seconds, "{heard}");
        assert!(
            heard.contains("bad_request") && heard.contains("unknown_type"),
            "{heard}"
        );
        assert!(!heard.contains("s3cret"), "{heard}");
    }

    #[tokio::test]
    async fn what_is_neither_answer_nor_order_ends_the_program() {
        for nonsense in [
            "hello",
            r#"{"order":"end"}"#,
            r#"{"session":"a","order":"end","reff":1}"#,
            r#"{"session":7,"order":"end"}"#,
        ] {
            let script = Script::new(&format!(
                "echo $$ >> pids\nask; echo '{nonsense}'; while ask; do {WILLING}; done"
            ));
            let manager = script.start("");
            manager.reach().await.unwrap_err();
        }
    }

    #[tokio::test]
    async fn a_program_that_never_reads_what_it_wants_to_know_is_ended() {
        let script = Script::new(
            r#"ask
            while :; do echo '{"session":"nobody","order":"end","ref":1}'; done"#,
        );
        let ears = Ears::open();
        let manager = script.start("");
        manager.reach().await.unwrap_err();
        until(|| ears.heard().contains("does not read what it wanted")).await;
    }
}
