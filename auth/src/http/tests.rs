use std::{fs, net::Ipv4Addr, time::Duration};

use bytes::Bytes;
use chinwag_core::{
    Lifecycle,
    config::{Rate, Size},
    plugin::{Credentials, Denial, Principal},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::*;
use crate::{
    callout::testing::{
        Answer, Backend, Ears, PATIENCE, is_unavailable, judge, judge_from, let_in, log_in, pipes,
        request,
    },
    watch::LOOK_EVERY,
};

const ONE: &str = "endpoints = [\"http://a/\"]\ninsecure = true\n";
const THREE: &str = "endpoints = [\"http://a/\", \"http://b/\", \"http://c/\"]\ninsecure = true\n";

async fn try_start(
    table: &str,
    reach: Reach,
    cx: &AuthenticatorContext,
) -> Result<HttpAuthenticator, BuildError> {
    toml::from_str::<Http>(table)
        .unwrap()
        .start(cx, reach)
        .await
}

async fn start(table: &str, reach: Reach) -> HttpAuthenticator {
    let cx = AuthenticatorContext::new("backend", "/", Lifecycle::new());
    try_start(table, reach, &cx).await.unwrap()
}

/// An authenticator before one back end that answers so.
async fn with(answer: Answer) -> (HttpAuthenticator, Arc<Backend>) {
    let backend = Backend::new(answer);
    let authenticator = start(ONE, pipes([("a", &backend)])).await;
    (authenticator, backend)
}

fn alice() -> Credentials {
    Credentials::password("alice", "wonderland")
}

#[tokio::test(start_paused = true)]
async fn a_log_in_is_asked_about_and_let_in_with_all_that_the_answer_says() {
    let backend = Backend::new(Answer::json(&json!({
        "v": 1,
        "verdict": "allow",
        "user": "Alice",
        "roles": ["staff"],
        "rooms": ["lobby", "team:*"],
        "expires_at": 1_795_305_600_123_u64,
        "limits": {"message_bytes": "1KiB", "sends": {"rate": 1, "per": "1s", "burst": 2}},
    })));
    let table = "endpoints = [\"http://a/v1/login?x=1\"]\ninsecure = true\n\
                 headers = [\"User-Agent\"]\nbearer = \"b-secret\"\n";
    let authenticator = start(table, pipes([("a", &backend)])).await;

    let mut log_in = request(alice());
    log_in.headers = vec![
        ("user-agent".into(), "client/1".into()),
        ("x-other".into(), "no".into()),
    ];
    let Verdict::Allow(principal) = authenticator.authenticate(&log_in).await else {
        panic!("not let in")
    };
    let mut expected = Principal::vouched("Alice").with_roles(vec!["staff".into()]);
    expected.rooms = Some(vec!["lobby".parse().unwrap(), "team:*".parse().unwrap()]);
    expected.expires_at = Some(1_795_305_600_123);
    expected.limits.message_bytes = Some(Size(1024));
    expected.limits.sends = Some(Rate::Limited {
        rate: 1,
        per: Duration::from_secs(1),
        burst: 2,
    });
    assert_eq!(principal, expected);

    let asked = &backend.asked()[0];
    assert_eq!(asked.method, Method::POST);
    assert_eq!(asked.uri, "/v1/login?x=1");
    assert_eq!(asked.headers["host"], "a");
    assert_eq!(asked.headers["authorization"], "Bearer b-secret");
    assert_eq!(asked.headers["content-type"], "application/json");
    assert_eq!(
        serde_json::from_str::<Value>(&asked.body).unwrap(),
        json!({
            "v": 1,
            "type": "authenticate",
            "transport": "web",
            "address": "127.0.0.1",
            "user": "alice",
            "password": "wonderland",
            "headers": {"user-agent": "client/1"},
        })
    );
}

#[tokio::test(start_paused = true)]
async fn every_verdict_is_taken_for_what_it_is() {
    let (authenticator, backend) = with(Answer::json(&json!({
        "verdict": "deny", "reason": "no such user", "public": "Your account is suspended.",
    })))
    .await;
    let verdict = judge(&authenticator, alice()).await;
    let Verdict::Deny {
        denial,
        public,
        reason,
    } = verdict
    else {
        panic!("{verdict:?}")
    };
    assert_eq!(
        denial,
        Denial::BackEnd,
        "counted as its own, whatever it says"
    );
    assert_eq!(reason, "no such user");
    assert_eq!(public.as_deref(), Some("Your account is suspended."));

    backend.set(Answer::json(&json!({"verdict": "abstain"})));
    assert!(matches!(
        judge(&authenticator, alice()).await,
        Verdict::Abstain
    ));

    backend.set(Answer::json(
        &json!({"verdict": "unavailable", "retry_ms": 7000}),
    ));
    let verdict = judge(&authenticator, alice()).await;
    assert!(matches!(verdict, Verdict::Unavailable { retry } if retry == Duration::from_secs(7)));

    backend.set(Answer::json(&json!({"verdict": "allow"})));
    assert_eq!(let_in(judge(&authenticator, alice()).await), "alice");
    let nameless = judge(&authenticator, Credentials::token("t")).await;
    assert!(
        is_unavailable(&nameless),
        "allowed, and nobody knows whom: {nameless:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn without_a_password_or_token_nobody_is_asked() {
    let (authenticator, backend) = with(Answer::allow("alice")).await;
    for credentials in [Credentials::name("alice"), Credentials::default()] {
        let verdict = judge(&authenticator, credentials).await;
        assert!(matches!(verdict, Verdict::Abstain), "{verdict:?}");
    }
    assert_eq!(backend.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_verdict_lets_nobody_in_and_refuses_nobody() {
    let allow = Bytes::from_static(b"{\"verdict\":\"allow\",\"user\":\"eve\"}");
    let json = vec![("content-type", "application/json")];
    let zipped = vec![
        ("content-type", "application/json"),
        ("content-encoding", "gzip"),
    ];
    let moved = vec![
        ("content-type", "application/json"),
        ("location", "http://b/"),
    ];
    let mut answers = vec![
        Answer::Http(200, vec![], allow.clone()),
        Answer::Http(200, vec![("content-type", "text/html")], allow.clone()),
        Answer::Http(200, zipped, allow.clone()),
        Answer::Http(302, moved.clone(), allow.clone()),
        Answer::Http(307, moved, allow.clone()),
        Answer::Endless,
        Answer::Half,
        Answer::Silence,
        Answer::Refuse,
        Answer::Void,
        Answer::Echo,
        Answer::Json(format!(
            "{}{}",
            " ".repeat(client::ANSWER_BYTES),
            r#"{"verdict":"allow"}"#
        )),
        Answer::Json("[".repeat(10_000)),
    ];
    for status in [201, 204, 400, 401, 403, 404, 429, 500, 501, 502, 503, 504] {
        answers.push(Answer::Http(status, json.clone(), allow.clone()));
    }
    for text in [
        "",
        "null",
        "allow",
        "[]",
        "{}",
        r#"{"verdict":"Allow"}"#,
        r#"{"verdict":"allow","verdict":"deny"}"#,
        r#"{"verdict":"allow","v":2}"#,
        r#"{"verdict":"allow","role":["admin"]}"#,
        r#"{"verdict":"allow","user":""}"#,
        r#"{"verdict":"allow","user":"a b"}"#,
        r#"{"verdict":"allow","user":"a\nb"}"#,
        r#"{"verdict":"allow","roles":["a b"]}"#,
        r#"{"verdict":"allow","roles":"admin"}"#,
        r#"{"verdict":"allow","rooms":["Lobby"]}"#,
        r#"{"verdict":"allow","rooms":[""]}"#,
        r#"{"verdict":"allow","expires_at":"tomorrow"}"#,
        r#"{"verdict":"allow","expires_at":-1}"#,
        r#"{"verdict":"allow","limits":{"sands":"unlimited"}}"#,
        r#"{"verdict":"allow","limits":{"sends":{"rate":0,"per":"1s","burst":1}}}"#,
        r#"{"verdict":"allow","public":"hello"}"#,
        r#"{"verdict":"deny","user":"alice"}"#,
        r#"{"verdict":"deny","public":""}"#,
        r#"{"verdict":"deny","public":"a\nb"}"#,
        r#"{"verdict":"abstain","reason":"no"}"#,
        r#"{"verdict":"unavailable","retry_ms":-1}"#,
    ] {
        answers.push(Answer::Json(text.to_owned()));
    }
    for answer in answers {
        // Each time anew: else the breaker would answer for those that come later.
        let (a, b) = (
            Backend::new(answer.clone()),
            Backend::new(Answer::allow("eve")),
        );
        let authenticator = start(ONE, pipes([("a", &a), ("b", &b)])).await;
        let began = Instant::now();
        let verdict = judge(&authenticator, alice()).await;
        assert!(is_unavailable(&verdict), "{answer:?}: {verdict:?}");
        assert!(began.elapsed() <= Duration::from_secs(2), "{answer:?}");
        assert_eq!(b.connections(), 0, "{answer:?}: nobody follows a redirect");
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_endpoint_is_asked_where_one_has_no_verdict() {
    let bad = [
        Answer::Refuse,
        Answer::Void,
        Answer::Silence,
        Answer::Half,
        Answer::Json("nonsense".into()),
        Answer::Http(500, vec![], Bytes::new()),
    ];
    for answer in bad {
        let (a, b) = (
            Backend::new(answer.clone()),
            Backend::new(Answer::allow("alice")),
        );
        let authenticator = start(THREE, pipes([("a", &a), ("b", &b), ("c", &a)])).await;
        for _ in 0..6 {
            let name = let_in(judge(&authenticator, alice()).await);
            assert_eq!(name, "alice", "{answer:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn endpoints_take_turns() {
    let backends = [(); 3].map(|()| Backend::new(Answer::allow("alice")));
    let [a, b, c] = &backends;
    let authenticator = start(THREE, pipes([("a", a), ("b", b), ("c", c)])).await;
    for _ in 0..9 {
        let_in(judge(&authenticator, alice()).await);
    }
    assert_eq!(backends.map(|it| it.asked().len()), [3, 3, 3]);
}

#[tokio::test(start_paused = true)]
async fn those_beside_a_dead_endpoint_have_as_much_to_do_as_each_other() {
    let dead = Backend::new(Answer::Refuse);
    let (b, c) = (
        Backend::new(Answer::allow("alice")),
        Backend::new(Answer::allow("alice")),
    );
    let authenticator = start(THREE, pipes([("a", &dead), ("b", &b), ("c", &c)])).await;
    for _ in 0..20 {
        let_in(judge(&authenticator, alice()).await);
    }
    assert_eq!((b.asked().len(), c.asked().len()), (10, 10));
}

#[tokio::test(start_paused = true)]
async fn one_dead_endpoint_of_three_costs_its_connect_limit_once() {
    let dead = Backend::new(Answer::Void);
    let well = Backend::new(Answer::allow("alice"));
    let authenticator = start(THREE, pipes([("a", &dead), ("b", &well), ("c", &well)])).await;
    let mut spent = Duration::ZERO;
    for _ in 0..300 {
        let began = Instant::now();
        let_in(judge(&authenticator, alice()).await);
        spent += began.elapsed();
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(spent, client::default_connect_timeout().0);

    dead.set(Answer::allow("alice"));
    for _ in 0..60 {
        let_in(judge(&authenticator, alice()).await);
        sleep(Duration::from_secs(1)).await;
    }
    assert!(
        dead.asked().len() >= 10,
        "it is asked again when it is back"
    );
}

#[tokio::test(start_paused = true)]
async fn all_tries_together_stay_within_the_time_of_the_authenticator() {
    for answer in [Answer::Silence, Answer::Void, Answer::Half] {
        let slow = Backend::new(answer);
        let authenticator = start(THREE, pipes([("a", &slow), ("b", &slow), ("c", &slow)])).await;
        let began = Instant::now();
        let logins = (0..200).map(|_| judge(&authenticator, alice()));
        for verdict in futures_util::future::join_all(logins).await {
            assert!(is_unavailable(&verdict), "{verdict:?}");
        }
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{:?}",
            began.elapsed()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn while_everything_is_down_log_ins_hear_so_at_once() {
    let (authenticator, backend) = with(Answer::Refuse).await;
    judge(&authenticator, alice()).await;
    backend.set(Answer::Silence);
    let began = Instant::now();
    for _ in 0..100 {
        assert!(is_unavailable(&judge(&authenticator, alice()).await));
    }
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert_eq!(backend.connections(), 0);
}

#[tokio::test(start_paused = true)]
async fn nonsense_that_one_peer_provokes_does_not_shut_out_the_others() {
    let (authenticator, backend) = with(Answer::allow("alice")).await;
    for answer in [
        Answer::Http(500, vec![], Bytes::new()),
        Answer::Json("{}".into()),
    ] {
        backend.set(answer);
        for _ in 0..10 {
            let mallory = Credentials::password("mallory", "%00");
            assert!(is_unavailable(&judge(&authenticator, mallory).await));
        }
        backend.set(Answer::allow("alice"));
        let_in(judge(&authenticator, alice()).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_log_ins_while_the_back_end_is_stopped_all_get_in_afterwards() {
    // A process that is stopped still has its connections taken by the system; one that is gone
    // refuses them; a machine that is gone does not answer at all.
    for stopped in [Answer::Silence, Answer::Refuse, Answer::Void] {
        let backend = Backend::new(stopped.clone());
        let authenticator = Arc::new(start(ONE, pipes([("a", &backend)])).await);
        let began = Instant::now();
        let mut clients = JoinSet::new();
        for number in 0..1000 {
            let authenticator = Arc::clone(&authenticator);
            clients.spawn(async move {
                sleep(Duration::from_millis(number * 10)).await;
                log_in(&*authenticator, alice()).await
            });
        }
        sleep(Duration::from_secs(10)).await;
        backend.set(Answer::After(
            Duration::from_millis(20),
            Box::new(Answer::allow("alice")),
        ));
        backend.hang_up();
        let mut tries = 0;
        for (verdict, tried) in clients.join_all().await {
            assert_eq!(let_in(verdict), "alice", "{stopped:?}");
            tries += tried;
        }
        let took = began.elapsed();
        assert!(took < Duration::from_secs(60), "{stopped:?}: {took:?}");
        assert!(tries < 20_000, "{stopped:?}: {tries}");
    }
}

#[tokio::test(start_paused = true)]
async fn calls_in_flight_and_those_that_wait_are_bounded() {
    let slow = Answer::After(Duration::from_secs(1), Box::new(Answer::allow("alice")));
    let backend = Backend::new(slow);
    let table = format!("{ONE}calls = 2\nqueue = 1");
    let authenticator = start(&table, pipes([("a", &backend)])).await;
    let logins = (0..5).map(|_| async {
        let began = Instant::now();
        let verdict = judge(&authenticator, alice()).await;
        (is_unavailable(&verdict), began.elapsed().as_secs())
    });
    let mut all = futures_util::future::join_all(logins).await;
    all.sort_unstable();
    let expected = [(false, 1), (false, 1), (false, 2), (true, 0), (true, 0)];
    assert_eq!(all, expected);
    assert_eq!(backend.connections(), 2);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_behind_all_log_ins_of_another_address() {
    let slow = Answer::After(Duration::from_secs(1), Box::new(Answer::allow("alice")));
    let backend = Backend::new(slow);
    // More of them than a verdict has time for.
    let table = format!("{ONE}calls = 2\nqueue = 20");
    let authenticator = start(&table, pipes([("a", &backend)])).await;
    let log_in = |host: u8| {
        let authenticator = &authenticator;
        async move {
            let began = Instant::now();
            let verdict = judge_from(authenticator, host, alice()).await;
            (is_unavailable(&verdict), began.elapsed().as_secs())
        }
    };
    let crowd = (0..22).map(|_| log_in(1));
    let all: Vec<_> = crowd.chain((2..5).map(log_in)).collect();
    let all = futures_util::future::join_all(all).await;
    let (crowd, others) = all.split_at(22);
    assert!(crowd[..2].iter().all(|(is_unavailable, _)| !is_unavailable));
    assert_eq!(crowd[19..], [(true, 0); 3], "they made room");
    // When the first two calls end, the turns are the crowd's and that of the first of the others.
    assert_eq!(*others, [(false, 2), (false, 3), (false, 3)]);
}

#[tokio::test(start_paused = true)]
async fn a_log_in_that_is_given_up_frees_its_place() {
    let backend = Backend::new(Answer::Silence);
    let table = format!("{ONE}calls = 1\nqueue = 0");
    let authenticator = start(&table, pipes([("a", &backend)])).await;
    for _ in 0..100 {
        let given_up = timeout(Duration::from_millis(10), judge(&authenticator, alice()));
        assert!(given_up.await.is_err());
    }
    backend.set(Answer::allow("alice"));
    let_in(judge(&authenticator, alice()).await);
}

#[tokio::test(start_paused = true)]
async fn connections_are_kept_and_replaced_when_the_other_side_ends_them() {
    let (authenticator, backend) = with(Answer::allow("alice")).await;
    for _ in 0..100 {
        let_in(judge(&authenticator, alice()).await);
    }
    assert_eq!(backend.connections(), 1);
    for pause in [0, 1] {
        for _ in 0..10 {
            backend.hang_up();
            // Without a pause the two sides cross.
            sleep(Duration::from_millis(pause)).await;
            let_in(judge(&authenticator, alice()).await);
        }
    }
    let before = backend.connections();
    let_in(judge(&authenticator, alice()).await);
    assert_eq!(backend.connections(), before);
    sleep(Duration::from_secs(60)).await;
    let_in(judge(&authenticator, alice()).await);
    assert_eq!(
        backend.connections(),
        before + 1,
        "one that was idle for long is not used"
    );
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_the_call_in_flight_and_for_no_idle_connection() {
    let backend = Backend::new(Answer::allow("alice"));
    let lifecycle = Lifecycle::new();
    let cx = AuthenticatorContext::new("backend", "/", lifecycle.clone());
    let authenticator = try_start(ONE, pipes([("a", &backend)]), &cx).await.unwrap();
    let_in(judge(&authenticator, alice()).await);
    backend.set(Answer::After(
        Duration::from_secs(1),
        Box::new(Answer::allow("alice")),
    ));
    let began = Instant::now();
    let stop = async {
        tokio::task::yield_now().await;
        lifecycle.shut_down(Duration::from_secs(10)).await
    };
    let (verdict, dropped) = tokio::join!(judge(&authenticator, alice()), stop);
    let_in(verdict);
    assert_eq!(dropped, 0);
    assert_eq!(began.elapsed(), Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn no_secret_is_in_any_log_or_verdict_whatever_comes_back() {
    let ears = Ears::open();
    let echoed = |text: &str| {
        [
            Answer::Json(format!("{{\"{text}\":1}}")),
            Answer::Json(format!("{{\"verdict\":\"{text}\"}}")),
            Answer::Json(format!(
                "{{\"verdict\":\"allow\",\"expires_at\":\"{text}\"}}"
            )),
            Answer::Json(format!("{{\"verdict\":\"allow\",\"rooms\":[\"{text} \"]}}")),
            Answer::Json(format!("{{\"verdict\":\"deny\",\"reason\":\"{text}\"}}")),
            Answer::Json(format!(
                "{{\"verdict\":\"deny\",\"public\":\"not {text}\"}}"
            )),
            Answer::Json(text.to_owned()),
            Answer::Echo,
            Answer::Silence,
            Answer::Refuse,
        ]
    };
    let table = format!("{ONE}bearer = \"planted-bearer\"");
    for (credentials, secret) in [
        (
            Credentials::password("alice", "planted-password"),
            "planted-password",
        ),
        (Credentials::token("planted-token"), "planted-token"),
        (
            Credentials::password("alice", "planted\"quote"),
            "planted\\\"quote",
        ),
    ] {
        for answer in echoed(secret) {
            let backend = Backend::new(answer);
            let authenticator = start(&table, pipes([("a", &backend)])).await;
            let verdict = judge(&authenticator, credentials.clone()).await;
            assert!(!format!("{verdict:?}").contains("planted"), "{verdict:?}");
        }
    }
    let heard = ears.heard();
    assert!(heard.contains("An endpoint gives no answer."), "{heard}");
    let told = heard.lines().find(|line| line.contains("planted"));
    assert_eq!(told, None);
}

#[tokio::test(start_paused = true)]
async fn a_failing_back_end_is_warned_about_now_and_then_only() {
    let ears = Ears::open();
    let (authenticator, backend) = with(Answer::Http(500, vec![], Bytes::new())).await;
    for _ in 0..100 {
        judge(&authenticator, alice()).await;
    }
    backend.set(Answer::allow("alice"));
    judge(&authenticator, alice()).await;
    let heard = ears.heard();
    assert_eq!(heard.matches(" WARN ").count(), 1, "{heard}");
    assert!(heard.contains("it answered with status 500"), "{heard}");
    assert!(heard.contains("The endpoint answers again."), "{heard}");
}

#[tokio::test]
async fn a_table_that_can_not_work_is_refused_with_its_key() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("empty"), "").unwrap();
    fs::write(folder.path().join("two words"), "a b").unwrap();
    let cx = AuthenticatorContext::new("backend", folder.path(), Lifecycle::new());
    let local = "endpoints = [\"http://127.0.0.1:1/\"]\n";
    let secure = "endpoints = [\"https://a/\"]\n";
    for (table, key) in [
        ("endpoints = []", "endpoints"),
        ("endpoints = [\"a\"]", "endpoints"),
        ("endpoints = [\"/v1\"]", "endpoints"),
        ("endpoints = [\"ftp://a/\"]", "endpoints"),
        ("endpoints = [\"http://10.0.0.1/\"]", "endpoints"),
        ("endpoints = [\"http://auth.internal/\"]", "endpoints"),
        ("endpoints = [\"https://user:planted@a/\"]", "endpoints"),
        ("endpoints = [\"https://a/#b\"]", "endpoints"),
        (
            &format!("{local}bearer = \"a\"\nbearer_file = \"b\""),
            "bearer_file",
        ),
        (&format!("{local}bearer_file = \"none\""), "bearer_file"),
        (&format!("{local}bearer_file = \"two words\""), "bearer"),
        (&format!("{local}bearer = \"\""), "bearer"),
        (&format!("{local}ca = \"empty\""), ""),
        (&format!("{secure}ca = \"none\""), "ca"),
        (&format!("{secure}ca = \"empty\""), "ca"),
        (&format!("{secure}cert = \"empty\""), "cert"),
        (&format!("{secure}key = \"empty\""), "key"),
        (&format!("{local}calls = 0"), "calls"),
        (&format!("{local}queue = 10001"), "queue"),
        (
            &format!("{local}connect_timeout = \"0s\""),
            "connect_timeout",
        ),
        (
            &format!("{local}connect_timeout = \"3s\""),
            "connect_timeout",
        ),
        (&format!("{local}call_timeout = \"5s\""), "call_timeout"),
        (&format!("{local}call_timeout = \"0s\""), "call_timeout"),
    ] {
        let Err(error) = try_start(table, Reach::Network, &cx).await else {
            panic!("built from {table}")
        };
        assert_eq!(error.key.unwrap_or_default(), key, "{table}: {error}");
        assert!(!error.to_string().contains("planted"), "{error}");
    }
    for headers in ["a b", "", "Cookie", "authorization"] {
        let table = format!("{local}headers = [{headers:?}]");
        assert!(toml::from_str::<Http>(&table).is_err(), "{table}");
    }
    for good in [
        "http://localhost:1/",
        "http://[::1]:1/x",
        "https://a",
        "HTTPS://a/",
    ] {
        let table = format!("endpoints = [{good:?}]");
        assert!(
            try_start(&table, Reach::Network, &cx).await.is_ok(),
            "{good}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_bearer_in_a_file_is_read_anew_when_it_changes() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bearer");
    fs::write(&file, "first\n").unwrap();
    let backend = Backend::new(Answer::allow("alice"));
    let cx = AuthenticatorContext::new("backend", folder.path(), Lifecycle::new());
    let table = format!("{ONE}bearer_file = \"bearer\"");
    let authenticator = try_start(&table, pipes([("a", &backend)]), &cx)
        .await
        .unwrap();
    for (content, sent) in [
        ("first", "first"),
        ("second\n", "second"),
        ("no good", "second"),
    ] {
        fs::write(&file, content).unwrap();
        sleep(5 * LOOK_EVERY).await;
        let_in(judge(&authenticator, alice()).await);
        let asked = backend.asked();
        let header = &asked.last().unwrap().headers["authorization"];
        assert_eq!(header, &format!("Bearer {sent}"));
    }
    let ears = Ears::open();
    let bad = [&b"\xff"[..], b"no good either"];
    for content in bad {
        fs::write(&file, content).unwrap();
        sleep(5 * LOOK_EVERY).await;
    }
    let refused = "the bearer token is not visible ASCII";
    let heard = ears.heard();
    assert_eq!(heard.matches(refused).count(), bad.len(), "{heard}");
    assert!(!heard.contains("tried again"), "{heard}");
    fs::remove_file(&file).unwrap();
    sleep(5 * LOOK_EVERY).await;
    let heard = ears.heard();
    assert_eq!(heard.matches("it is tried again").count(), 1, "{heard}");
}

/// A back end on a port of this machine.
async fn listen(address: (Ipv4Addr, u16), backend: &Arc<Backend>) -> (u16, Lifecycle) {
    let listener = TcpListener::bind(address).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (lifecycle, backend) = (Lifecycle::new(), Arc::clone(backend));
    lifecycle.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            backend.serve(stream);
        }
    });
    (port, lifecycle)
}

#[tokio::test]
async fn a_back_end_that_is_started_anew_under_load_keeps_nobody_out() {
    let backend = Backend::new(Answer::allow("alice"));
    let (port, mut server) = listen((Ipv4Addr::LOCALHOST, 0), &backend).await;
    let table = format!("endpoints = [\"http://localhost:{port}/\"]");
    let authenticator = Arc::new(start(&table, Reach::Network).await);
    let mut clients = JoinSet::new();
    for _ in 0..20 {
        let authenticator = Arc::clone(&authenticator);
        clients.spawn(async move {
            for _ in 0..20 {
                let (verdict, _) = log_in(&*authenticator, alice()).await;
                assert_eq!(let_in(verdict), "alice");
            }
        });
    }
    for enough in [50, 100, 200] {
        timeout(PATIENCE, async {
            while backend.asked().len() < enough {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        server.kill();
        server.shut_down(PATIENCE).await;
        backend.hang_up();
        (_, server) = listen((Ipv4Addr::LOCALHOST, port), &backend).await;
    }
    timeout(PATIENCE, clients.join_all()).await.unwrap();
    server.kill();
}

/// For real sockets: a busy machine takes its time.
const PATIENT: &str = "connect_timeout = \"20s\"\ncall_timeout = \"40s\"\n";

fn patient(folder: &TempDir) -> AuthenticatorContext {
    let mut cx = AuthenticatorContext::new("backend", folder.path(), Lifecycle::new());
    cx.timeout = PATIENCE;
    cx
}

/// A certificate authority and what it signs.
struct Authority {
    certificate: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().unwrap();
        Self {
            certificate: rcgen::CertifiedIssuer::self_signed(params, key).unwrap(),
        }
    }

    fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// A certificate for `name`, and its key.
    fn sign(&self, name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let signed = params.signed_by(&key, &self.certificate).unwrap();
        (signed.pem(), key.serialize_pem())
    }
}

/// A back end with TLS that asks for a certificate of `clients`.
async fn listen_secure(
    name: &str,
    authority: &Authority,
    clients: Option<&Authority>,
    backend: &Arc<Backend>,
) -> (u16, Lifecycle) {
    use rustls::{
        RootCertStore, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    };
    let (cert, key) = authority.sign(name);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            let ca = clients.pem();
            roots
                .add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap())
                .unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let config = builder.with_single_cert(
        vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
        PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
    );
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config.unwrap()));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (lifecycle, backend) = (Lifecycle::new(), Arc::clone(backend));
    lifecycle.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                backend.serve(stream);
            }
        }
    });
    (port, lifecycle)
}

fn files<const N: usize>(files: [(&str, &str); N]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

#[tokio::test]
async fn only_an_endpoint_with_a_certificate_of_the_ca_for_its_name_is_asked() {
    let (ours, other) = (Authority::new("ours"), Authority::new("ours"));
    let folder = files([("ca.pem", &ours.pem())]);
    for (authority, name, is_asked) in [
        (&ours, "localhost", true),
        (&other, "localhost", false),
        (&ours, "elsewhere", false),
    ] {
        let backend = Backend::new(Answer::allow("alice"));
        let (port, server) = listen_secure(name, authority, None, &backend).await;
        let cx = patient(&folder);
        let table =
            format!("{PATIENT}endpoints = [\"https://localhost:{port}/\"]\nca = \"ca.pem\"");
        let authenticator = try_start(&table, Reach::Network, &cx).await.unwrap();
        let verdict = judge(&authenticator, alice()).await;
        assert_eq!(!is_unavailable(&verdict), is_asked, "{name}: {verdict:?}");
        assert_eq!(backend.asked().len(), usize::from(is_asked));
        server.kill();
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_and_read_anew_when_it_changes() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let strange = Authority::new("strange").sign("chinwag");
    let folder = files([
        ("ca.pem", &servers.pem()),
        ("cert.pem", &strange.0),
        ("key.pem", &strange.1),
    ]);
    let backend = Backend::new(Answer::allow("alice"));
    let (port, server) = listen_secure("localhost", &servers, Some(&clients), &backend).await;
    let cx = patient(&folder);
    let table = format!(
        "{PATIENT}endpoints = [\"https://localhost:{port}/\"]\nca = \"ca.pem\"\ncert = \"cert.pem\"\n\
         key = \"key.pem\""
    );
    let authenticator = try_start(&table, Reach::Network, &cx).await.unwrap();
    let verdict = judge(&authenticator, alice()).await;
    assert!(is_unavailable(&verdict), "{verdict:?}");

    let (cert, key) = clients.sign("chinwag");
    fs::write(folder.path().join("cert.pem"), cert).unwrap();
    fs::write(folder.path().join("key.pem"), key).unwrap();
    let (verdict, _) = timeout(PATIENCE, log_in(&authenticator, alice()))
        .await
        .unwrap();
    assert_eq!(let_in(verdict), "alice");
    server.kill();
}
