//! What a back end grants, and for how long; and what guessing costs: on real sockets, over every transport.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::{Instant, sleep};

use crate::harness::{Backend, Client, Over, Says, Setup, code};

/// How long one user may stay.
const STAY: Duration = Duration::from_secs(3);

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
    let server = Setup::authenticator(&table(&backend)).start().await;
    for over in Over::ALL {
        let mut bob = member(server.addr(over), over, "bob").await;
        let begun = Instant::now();
        let mut visitor = member(server.addr(over), over, "visitor").await;
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
            (least..STAY + Duration::from_secs(2)).contains(&stayed),
            "{over:?}: {stayed:?}"
        );
        bob.ping().await;
        drop(bob);
    }
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
