//! Rates, and what becomes of those who break the rules too often.

use std::time::Duration;

use serde_json::json;

use crate::{Client, Kit, code, eventually};

pub(crate) async fn sends_have_a_rate_and_the_refusal_says_when(kit: &Kit) {
    kit.check_with(
        kit.tables("[limits]\nsends = { rate = 1, per = \"1h\", burst = 2 }"),
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

pub(crate) async fn a_refused_send_comes_through_when_its_time_has_come(kit: &Kit) {
    let limits = "[limits]\nsends = { rate = 4, per = \"1s\", burst = 1 }";
    for over in kit.all() {
        let server = kit.tables(limits).start().await;
        let mut alice = server.login(over, "alice").await;
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

pub(crate) async fn a_room_has_a_rate_of_its_own(kit: &Kit) {
    let room = "[rooms.slow]\nmatch = \"slow\"\nsends = { rate = 1, per = \"1h\", burst = 1 }";
    kit.check_with(
        kit.tables(room),
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

pub(crate) async fn a_user_has_a_rate_of_its_own(kit: &Kit) {
    kit.check_with(
        kit.tables("[limits]\nsends_per_user = { rate = 1, per = \"1h\", burst = 2 }"),
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

pub(crate) async fn commands_have_a_rate_and_a_logout_is_always_heard(kit: &Kit) {
    kit.check_with(
        kit.tables("[limits]\ncommands = { rate = 1, per = \"1h\", burst = 4 }"),
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

pub(crate) async fn who_breaks_the_rules_too_often_is_ended(kit: &Kit) {
    kit.check_with(
        kit.tables("[limits]\nviolations = { rate = 1, per = \"1h\", burst = 3 }"),
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

pub(crate) async fn who_breaks_the_rules_too_often_may_be_muted_instead(kit: &Kit) {
    let limits =
        "[limits]\nviolations = { rate = 1, per = \"1h\", burst = 2 }\non_abuse = \"mute:1h\"";
    kit.check_with(
        kit.tables(limits),
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

pub(crate) async fn a_ban_of_a_principal_keeps_it_out_and_nobody_else(kit: &Kit) {
    let limits =
        "[limits]\nviolations = { rate = 1, per = \"1h\", burst = 1 }\non_abuse = \"ban:1h\"";
    kit.check_with(
        kit.setup().for_staff().and(limits),
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

pub(crate) async fn a_ban_of_a_guest_is_one_of_its_address(kit: &Kit) {
    let limits =
        "[limits]\nviolations = { rate = 1, per = \"1h\", burst = 1 }\non_abuse = \"ban:1h\"";
    kit.check_with(
        kit.tables(limits),
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

pub(crate) async fn an_address_that_guesses_becomes_slow(kit: &Kit) {
    let limits = "[limits]\nlogin_failures_per_ip = { rate = 1, per = \"1h\", burst = 3 }";
    // The transports count together, so the last two mixes end one's guesses by another's.
    kit.check_with(
        kit.setup().for_staff().and(limits),
        r#"
        alice > login alice 1 -> error auth_failed
        bob > login bob 2 -> error auth_failed
        carol > login alice 3 -> error auth_failed
        alice > login bob 4 -> {"type":"error","code":"rate_limited","retry_ms":"*"}
        "#,
    )
    .await;
}

pub(crate) async fn a_listener_has_so_many_connections(kit: &Kit) {
    for over in kit.push() {
        let server = kit
            .setup()
            .on_table(over, "max_connections = 2")
            .start()
            .await;
        let mut alice = server.login(over, "alice").await;
        let mut bob = server.login(over, "bob").await;
        // Where there is a greeting before the first object, it may be missing already.
        if let Ok(link) = server.link(over).await {
            Client::on(link, over, "one too many").gone().await;
        }
        alice.ping().await;
        bob.ping().await;
        alice.vanish();
        eventually("a free place", async || {
            let link = server.link(over).await.ok()?;
            let mut carol = Client::on(link, over, "carol");
            // A connection that is kept has nothing to say yet.
            let said = carol.try_event(Duration::from_millis(100)).await;
            said.is_none().then_some(())
        })
        .await;
    }
}
