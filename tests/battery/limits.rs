//! Rates, and what becomes of those who break the rules too often.

use std::time::Duration;

use serde_json::json;
use tokio::{io::AsyncReadExt, net::TcpStream, time::timeout};

use crate::harness::{
    Client, MIXES, Over, PATIENCE, Setup, check_on, check_with, code, eventually,
};

#[tokio::test(flavor = "multi_thread")]
async fn sends_have_a_rate_and_the_refusal_says_when() {
    check_with(
        &Setup::tables("[limits]\nsends = { rate = 1, per = \"1h\", burst = 2 }"),
        r#"
        alice, bob in lobby
        alice > say lobby one
        alice > say lobby two
        alice > {"type":"send","room":"lobby","text":"three"} -> {"type":"error","code":"rate_limited","retry_ms":"*","message":"*"}
        bob > say lobby four
        bob < message lobby alice one
        bob < message lobby alice two
        bob < message lobby bob four
        alice > ping
        "#,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_send_comes_through_when_its_time_has_come() {
    let limits = "[limits]\nsends = { rate = 4, per = \"1s\", burst = 1 }";
    for over in Over::ALL {
        let server = Setup::tables(limits).start().await;
        let mut alice = Client::login(server.addr(over), over, "alice").await;
        alice.enter("lobby").await;
        alice.say("lobby", "one").await;
        let send = json!({"type": "send", "room": "lobby", "text": "two"});
        let refused = alice.command(send.clone()).await;
        assert_eq!(code(&refused), "rate_limited", "{refused}");
        let retry = refused["retry_ms"].as_u64().expect("it says when");
        assert!((1..=250).contains(&retry), "{refused}");
        tokio::time::sleep(Duration::from_millis(retry)).await;
        assert_eq!(alice.command(send).await["type"], "sent");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_has_a_rate_of_its_own() {
    let room = "[rooms.slow]\nmatch = \"slow\"\nsends = { rate = 1, per = \"1h\", burst = 1 }";
    check_with(
        &Setup::tables(room),
        r#"
        alice, bob in slow
        alice, bob in fast
        alice > say slow one
        bob > say slow two -> {"type":"error","code":"rate_limited","retry_ms":"*"}
        bob > say fast three
        bob > say fast four
        alice < message slow alice one
        alice < message fast bob three
        alice < message fast bob four
        "#,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_has_a_rate_of_its_own() {
    check_with(
        &Setup::tables("[limits]\nsends_per_user = { rate = 1, per = \"1h\", burst = 2 }"),
        r"
        alice, bob in lobby
        alice > say lobby one
        alice > say lobby two
        alice > say lobby three -> error rate_limited
        bob > say lobby four
        ",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_have_a_rate_and_a_logout_is_always_heard() {
    check_with(
        &Setup::tables("[limits]\ncommands = { rate = 1, per = \"1h\", burst = 4 }"),
        r#"
        alice > login
        alice > join lobby
        alice < join lobby alice
        alice > join lobby
        alice > join lobby
        alice > join lobby
        alice > {"type":"join","room":"lobby"} -> {"type":"error","code":"rate_limited","retry_ms":"*"}
        alice > {"type":"join","room":"LOBBY"} -> error rate_limited
        alice > {"type":"dance"} -> error unknown_type
        alice > logout
        "#,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_breaks_the_rules_too_often_is_ended() {
    check_with(
        &Setup::tables("[limits]\nviolations = { rate = 1, per = \"1h\", burst = 3 }"),
        r#"
        alice, bob in lobby
        alice > raw nonsense -> error bad_json
        alice > raw {} -> error bad_request
        alice > {"type":"send","room":"lobby","text":"\u0007"} -> error message_rejected
        alice > {"type":"dance"} -> error unknown_type
        alice > say nowhere x -> error not_joined
        alice > raw nonsense -> error bad_json
        alice < bye abuse
        bob < leave lobby alice evicted
        "#,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_breaks_the_rules_too_often_may_be_muted_instead() {
    let limits =
        "[limits]\nviolations = { rate = 1, per = \"1h\", burst = 2 }\non_abuse = \"mute:1h\"";
    check_with(
        &Setup::tables(limits),
        r#"
        alice, bob in lobby
        alice > raw nonsense -> error bad_json
        alice > raw nonsense -> error bad_json
        alice > say lobby still here
        alice < message lobby alice still here
        bob < message lobby alice still here
        alice > raw nonsense -> error bad_json
        alice > {"type":"send","room":"lobby","text":"x"} -> {"type":"error","code":"rate_limited","retry_ms":"*"}
        alice > ping
        bob > say lobby hush
        alice < message lobby bob hush
        bob < message lobby bob hush
        "#,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ban_of_a_principal_keeps_it_out_and_nobody_else() {
    let limits =
        "[limits]\nviolations = { rate = 1, per = \"1h\", burst = 1 }\non_abuse = \"ban:1h\"";
    check_with(
        &Setup::passwords().and(limits),
        r#"
        alice > login alice wonderland
        alice > raw nonsense -> error bad_json
        alice > raw nonsense -> error bad_json
        alice < bye abuse
        again > login alice wonderland -> {"type":"error","code":"rate_limited","retry_ms":"*"}
        third > login alice wrong -> error rate_limited
        third > login bob builder
        "#,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ban_of_a_guest_is_one_of_its_address() {
    let limits =
        "[limits]\nviolations = { rate = 1, per = \"1h\", burst = 1 }\non_abuse = \"ban:1h\"";
    check_with(
        &Setup::tables(limits),
        r#"
        alice > login
        alice > raw nonsense -> error bad_json
        alice > raw nonsense -> error bad_json
        alice < bye abuse
        bob > login bob -> {"type":"error","code":"rate_limited","retry_ms":"*"}
        "#,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_guesses_becomes_slow() {
    let limits = "[limits]\nlogin_failures_per_ip = { rate = 1, per = \"1h\", burst = 3 }";
    // The transports count together, so the last two mixes end one's guesses by another's.
    check_on(
        &Setup::passwords().and(limits),
        &MIXES,
        r#"
        alice > login alice 1 -> error auth_failed
        bob > login bob 2 -> error auth_failed
        carol > login alice 3 -> error auth_failed
        alice > login bob 4 -> {"type":"error","code":"rate_limited","retry_ms":"*"}
        "#,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_has_so_many_connections() {
    for over in Over::PUSH {
        let server = Setup::default()
            .on(over, "max_connections = 2")
            .start()
            .await;
        let mut alice = Client::login(server.addr(over), over, "alice").await;
        let mut bob = Client::login(server.addr(over), over, "bob").await;
        let mut stream = TcpStream::connect(server.addr(over)).await.unwrap();
        let mut refusal = Vec::new();
        let read = timeout(PATIENCE, stream.read_to_end(&mut refusal)).await;
        assert!(read.is_ok(), "a connection too many is closed");
        assert!(
            !String::from_utf8_lossy(&refusal).contains("session"),
            "{over:?}"
        );
        alice.ping().await;
        bob.ping().await;
        alice.vanish();
        eventually("a free place", async || {
            let stream = TcpStream::connect(server.addr(over)).await.ok()?;
            // A connection that is kept has nothing to say yet.
            let said = timeout(Duration::from_millis(100), stream.peek(&mut [0])).await;
            said.is_err().then_some(())
        })
        .await;
    }
}
