//! What a back end grants, and for how long; what guessing costs; and how many sessions a user may have: on real
//! sockets, over every transport.

use std::{path::Path, time::Duration};

use futures_util::future::join_all;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use crate::{
    harness::{
        Addresses, Backend, Client, Http, Over, PATIENCE, Program, Request, STAFF, Says, Setup,
        code, includes, scrape,
    },
    outage::obey_within,
};

/// How long one user may stay: time to come in, also on a machine with other work to do.
const STAY: Duration = Duration::from_secs(6);
/// What such a machine may add to it.
const SLACK: Duration = Duration::from_secs(4);

/// Knows a member of the staff who may enter some rooms, and somebody who is there for a while.
fn judge(question: &Value) -> Says {
    assert_eq!(question["type"], "authenticate", "{question}");
    let now = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
    let end = u64::try_from(now).unwrap() + u64::try_from(STAY.as_millis()).unwrap();
    Says::Json(match question["user"].as_str() {
        Some("alice") => json!({
            "verdict": "allow", "roles": ["staff"], "rooms": ["lobby", "team:*"],
            "limits": {"message_bytes": 5},
        }),
        Some("visitor") => json!({"verdict": "allow", "expires_at": end}),
        Some("late") => json!({"verdict": "allow", "expires_at": 1}),
        Some("mallory") => json!({"verdict": "deny", "reason": "mallory is mallory"}),
        Some("suspended") => json!({"verdict": "deny", "public": "Your account is suspended."}),
        Some("echo") => {
            let password = question["password"].as_str().unwrap();
            json!({"verdict": "deny", "public": format!("{password} is wrong.")})
        }
        _ => json!({"verdict": "allow"}),
    })
}

fn table(backend: &Backend) -> String {
    format!(
        "kind = \"http\"\nendpoints = [\"http://{}/\"]\n",
        backend.addr
    )
}

fn login(user: &str) -> Value {
    json!({"type": "login", "user": user, "password": "x"})
}

async fn member(addr: std::net::SocketAddr, over: Over, user: &str) -> Client {
    let mut client = Client::connect(addr, over, user).await;
    client.log_in(login(user)).await;
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn rooms_roles_and_limits_of_a_principal_are_kept() {
    let backend = Backend::start(judge).await;
    let rooms = "[rooms.team]\nmatch = \"team:*\"\njoin_roles = [\"staff\"]\n";
    let setup = Setup::authenticator(&table(&backend)).and(rooms);
    for over in Over::ALL {
        let server = setup.start().await;
        let mut alice = member(server.addr(over), over, "alice").await;
        alice.enter("team:1").await;
        alice.enter("lobby").await;
        alice.say("lobby", "12345").await;
        for (command, expected) in [
            (json!({"type": "join", "room": "elsewhere"}), "forbidden"),
            (json!({"type": "users", "room": "elsewhere"}), "forbidden"),
            (
                json!({"type": "send", "room": "elsewhere", "text": "x"}),
                "forbidden",
            ),
            (
                json!({"type": "send", "room": "lobby", "text": "123456"}),
                "message_too_long",
            ),
        ] {
            let answer = alice.command(command.clone()).await;
            assert_eq!(code(&answer), expected, "{command} over {over:?}");
        }
        let mut bob = member(server.addr(over), over, "bob").await;
        let answer = bob.command(json!({"type": "join", "room": "team:1"})).await;
        assert_eq!(code(&answer), "forbidden", "{over:?}: no role");
        bob.join("elsewhere").await;
        bob.say("elsewhere", "123456").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_with_what_it_was_let_in_for() {
    let backend = Backend::start(judge).await;
    let setup = Setup::authenticator(&table(&backend));
    // Beside each other, since in each somebody has to stay for a while.
    join_all(Over::ALL.map(|over| stays_for_a_while(&setup, over))).await;
}

async fn stays_for_a_while(setup: &Setup, over: Over) {
    let server = setup.start().await;
    let mut bob = member(server.addr(over), over, "bob").await;
    bob.enter("lobby").await;
    let begun = Instant::now();
    let mut visitor = member(server.addr(over), over, "visitor").await;
    visitor.enter("lobby").await;
    visitor.ping().await;
    let answer = Client::connect(server.addr(over), over, "late")
        .await
        .try_log_in(login("late"))
        .await;
    assert_eq!(code(&answer), "auth_failed", "it is over before it began");
    visitor.expect_bye("auth_expired").await;
    let stayed = begun.elapsed();
    // The end was counted by the back end's clock, to the millisecond.
    let least = STAY - Duration::from_millis(50);
    assert!(
        (least..STAY + SLACK).contains(&stayed),
        "{over:?}: {stayed:?}"
    );
    let leave = json!({"type": "leave", "room": "lobby", "user": "visitor", "reason": "evicted"});
    bob.events_until("the visitor's leave", |event| includes(event, &leave))
        .await;
    bob.ping().await;
}

/// What the page about log-ins says that clients read.
const ONE_TEXT: &str = "The log-in failed; check the credentials.";

#[tokio::test(flavor = "multi_thread")]
async fn denials_read_the_same_but_for_what_a_back_end_makes_public_and_are_counted_as_its_own() {
    let backend = Backend::start(judge).await;
    let server = Setup::authenticator(&table(&backend)).start().await;
    let page = include_str!("../docs/auth.md");
    assert!(page.contains(ONE_TEXT), "the page tells the text");
    for over in Over::ALL {
        for (user, password, told) in [
            ("mallory", "x", ONE_TEXT),
            ("suspended", "x", "Your account is suspended."),
            ("echo", "secret", ONE_TEXT),
        ] {
            let login = json!({"type": "login", "user": user, "password": password});
            let mut client = Client::connect(server.addr(over), over, user).await;
            let denied = client.try_log_in(login).await;
            assert_eq!(code(&denied), "auth_failed", "{denied}");
            assert_eq!(denied["message"], told, "{user} over {over:?}");
        }
    }
    let metrics = scrape(server.metrics()).await;
    let series = "chinwag_auth_denials_total{authenticator=\"own\",reason=";
    let counted: Vec<&str> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix(series))
        .filter(|line| !line.ends_with(" 0"))
        .collect();
    assert_eq!(
        counted,
        ["\"back_end\"} 9"],
        "each of them, and as nothing else"
    );
}

/// As many sessions of one user as may be, which poll; another member; and what they see of each other.
async fn side_by_side(server: &Program) -> (Client, [Client; 2]) {
    let [(alice, secret, _), (bob, others, _)] = STAFF;
    let secret = json!({"type": "login", "user": alice, "password": secret});
    let others = json!({"type": "login", "user": bob, "password": others});
    let mut bob = Client::connect(server.of(Over::Tcp), Over::Tcp, bob).await;
    bob.log_in(others).await;
    bob.enter("lobby").await;
    let connect = async || {
        let addr = server.of(Over::Polling);
        Client::connect(addr, Over::Polling, alice).await
    };
    let mut pair = [connect().await, connect().await];
    for client in &mut pair {
        client.log_in(secret.clone()).await;
        client.join("lobby").await;
    }
    let one_more = connect().await.try_log_in(secret).await;
    assert_eq!(code(&one_more), "too_many", "{one_more}");
    let join = json!({"type": "join", "room": "lobby", "user": alice});
    assert!(includes(&bob.next_event().await, &join));
    pair[1].say("lobby", "here").await;
    let here = json!({"type": "message", "user": alice, "text": "here"});
    let next = bob.next_event().await;
    assert!(includes(&next, &here), "they are one member: {next}");
    (bob, pair)
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_side_by_side_that_poll_are_as_many_after_a_restart() {
    let setup = Setup::passwords()
        .only(&[Over::Tcp, Over::Polling])
        .and("[sessions]\nduplicate_login = { allow = 2 }");
    let mut ids: Vec<String> = Vec::new();
    for end in ["TERM", "KILL", "TERM"] {
        let mut server = Program::start(&setup).await;
        let (mut bob, mut pair) = side_by_side(&server).await;
        for id in &ids {
            let poll = Request::new("GET", "/v1/events?ack=0").bearer(id);
            let answer = Http::new(server.of(Over::Polling)).ask(&poll).await;
            assert_eq!(
                answer.verdict(),
                "401 not_logged_in",
                "one of another server"
            );
        }
        ids.extend(pair.iter().map(|client| client.session_id().to_owned()));
        if end == "TERM" {
            // One goes, and there is room for one more; the member stays until both have gone.
            pair[0].command(json!({"type": "logout"})).await;
            pair[1].say("lobby", "still").await;
            let still = bob.next_event().await;
            assert_eq!(still["text"], "still", "{still}");
            let (alice, secret, _) = STAFF[0];
            let secret = json!({"type": "login", "user": alice, "password": secret});
            let mut third = Client::connect(server.of(Over::Polling), Over::Polling, alice).await;
            third.log_in(secret).await;
            server.signal("TERM").await;
            for client in [&mut pair[1], &mut third, &mut bob] {
                client.drain_to_bye("shutting_down").await;
            }
            assert_eq!(server.exit().await.code(), Some(0));
        } else {
            server.signal(end).await;
            server.exit().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_in_javascript_is_started_from_its_own_folder_and_knows_its_users() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/exec-auth");
    let server = Program::start_in(&folder, "chinwag.toml").await;
    let line = server.table("line");
    let attempt = async |user: &str, password: &str| {
        let login = json!({"type": "login", "user": user, "password": password});
        // Its start may take longer than an answer has time for.
        obey_within(PATIENCE * 2, line, Over::Tcp, &login).await
    };
    let (mut alice, session) = attempt("alice", "wonderland").await;
    assert_eq!(session["user"], "alice", "{session}");
    alice.enter("lobby").await;
    let (mut bob, session) = attempt("bob", "can we fix it").await;
    assert_eq!(session["user"], "bob", "{session}");
    bob.enter("team:red").await;
    let elsewhere = bob.command(json!({"type": "join", "room": "attic"})).await;
    assert_eq!(code(&elsewhere), "forbidden");
    for (user, password, told) in [
        ("alice", "looking-glass", ONE_TEXT),
        ("eve", "x", ONE_TEXT),
        ("mallory", "let me in", "Your account is suspended."),
    ] {
        let (_client, denied) = attempt(user, password).await;
        assert_eq!(code(&denied), "auth_failed", "{user}: {denied}");
        assert_eq!(denied["message"], told, "{user}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_denial_makes_the_next_wait_longer_and_others_do_not_wait() {
    let backend = Backend::start(judge).await;
    let limits = "[limits]\nlogin_failures_per_name = { rate = 1, per = \"1s\", burst = 2 }\n\
                  login_delay_max = \"2s\"\n";
    let setup = Setup::authenticator(&table(&backend)).and(limits);
    // Beside each other, since each has to wait.
    join_all(Over::ALL.map(|over| guess(&setup, over))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_all_at_once_is_no_faster() {
    let backend = Backend::start(judge).await;
    let limits = "[limits]\nlogin_failures_per_name = { rate = 1, per = \"1h\", burst = 2 }\n";
    let setup = Setup::authenticator(&table(&backend)).and(limits);
    for over in Over::ALL {
        let server = setup.start().await;
        let addr = server.addr(over);
        let crowd = (0..30).map(|_| async {
            let mut client = Client::connect(addr, over, "mallory").await;
            code(&client.try_log_in(login("mallory")).await)
        });
        let mut codes = join_all(crowd).await;
        codes.retain(|code| code != "unavailable" && code != "rate_limited");
        assert_eq!(codes, ["auth_failed"; 2], "{over:?}");
    }
}

async fn guess(setup: &Setup, over: Over) {
    let server = setup.start().await;
    let attempt = async |user: &str| {
        let mut client = Client::connect(server.addr(over), over, user).await;
        client.try_log_in(login(user)).await
    };
    for _ in 0..2 {
        assert_eq!(code(&attempt("mallory").await), "auth_failed");
    }
    // The last is not longer than the longest; and some of each has passed since the denial.
    for expected in [1..=1000, 1001..=2000, 1001..=2000] {
        let refused = attempt("mallory").await;
        assert_eq!(code(&refused), "rate_limited", "{over:?}");
        let retry = refused["retry_ms"].as_u64().unwrap();
        assert!(
            expected.contains(&retry),
            "{over:?}: {retry}, not {expected:?}"
        );
        assert_eq!(attempt("alice").await["type"], "session");
        sleep(Duration::from_millis(retry)).await;
        let denied = attempt("mallory").await;
        assert_eq!(code(&denied), "auth_failed", "{over:?}: the wait is over");
        assert!(!denied.to_string().contains("mallory"), "{denied}");
    }
}
