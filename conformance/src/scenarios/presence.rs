//! The three forms in which a room tells membership, and the change between them.

use std::time::Duration;

use serde_json::json;

use crate::{Client, Kit, PATIENCE};

const BATCHED: &str = "[room]\npresence = \"batched\"\npresence_interval = \"50ms\"";

pub(crate) async fn batched_presence_is_told_once_per_interval_outside_of_the_numbering(kit: &Kit) {
    kit.check_with(
        kit.tables(BATCHED),
        r#"
        alice > join lobby -> {"type":"init","presence":"batched","users":[],"count":0,"seq":0,"rev":0}
        alice < {"type":"presence","room":"lobby","at":"*","rev":1,"joined":["alice"],"count":1,"seq":"-"}
        bob > join lobby -> {"type":"init","presence":"batched","users":["alice"],"count":1,"seq":0,"rev":1}
        bob < {"type":"presence","rev":2,"joined":["bob"],"count":2}
        alice < {"type":"presence","rev":2,"joined":["bob"],"count":2}
        alice > say lobby hello
        alice < {"type":"message","seq":1}
        bob < {"type":"message","seq":1,"user":"alice"}
        bob > users lobby -> {"type":"users","users":["alice","bob"],"count":2,"rev":2,"seq":1}
        bob > leave lobby
        alice < {"type":"presence","rev":3,"left":["bob"],"count":1}
        "#,
    )
    .await;
}

pub(crate) async fn presence_may_be_off(kit: &Kit) {
    kit.check_with(
        kit.tables("[room]\npresence = \"off\"\npresence_interval = \"50ms\""),
        r#"
        alice > join lobby -> {"type":"init","presence":"off","count":0,"seq":0}
        alice < {"type":"presence","room":"lobby","count":1,"joined":"-","left":"-"}
        bob > join lobby -> {"type":"init","presence":"off","count":1,"seq":0}
        alice < {"type":"presence","count":2,"joined":"-","left":"-"}
        bob < {"type":"presence","count":2}
        bob > say lobby hello
        alice < {"type":"message","seq":1,"user":"bob","text":"hello"}
        bob > users lobby -> {"type":"users","users":[],"count":2,"next":null}
        bob > leave lobby
        alice < {"type":"presence","count":1}
        "#,
    )
    .await;
}

pub(crate) async fn who_comes_and_goes_within_an_interval_is_named_by_the_state_at_its_end(
    kit: &Kit,
) {
    let long = "[room]\npresence = \"batched\"\npresence_interval = \"700ms\"";
    let server = kit.tables(long).start().await;
    for over in kit.all() {
        let room = over;
        let mut alice = server.login(over, "alice").await;
        alice.join(room).await;
        alice
            .events_until("its own presence", |event| event["count"] == 1)
            .await;
        let mut bob = server.login(over, "bob").await;
        bob.join(room).await;
        bob.command(json!({"type": "leave", "room": room})).await;
        // The interval may end between the two; then there are two objects, and the last one says the same.
        let told = alice
            .events_until("bob to have left", |event| event["left"] == json!(["bob"]))
            .await;
        assert!(told.len() <= 2, "{told:?}");
        assert_eq!(told.last().unwrap()["count"], 1);
        assert_eq!(alice.roster(room), ["alice"]);
        for mut client in [alice, bob] {
            client.command(json!({"type": "logout"})).await;
        }
    }
}

pub(crate) async fn a_room_that_grows_turns_to_batches_and_back_at_half(kit: &Kit) {
    let room = "[room]\npresence_auto_batch = 4\npresence_interval = \"50ms\"";
    let server = kit.tables(room).start().await;
    let mut members = Vec::new();
    let mut forms = Vec::new();
    let ways: Vec<&str> = kit.all().collect();
    for n in 0..8 {
        let mut member = server
            .login(ways[n % ways.len()], &format!("user{n}"))
            .await;
        let init = member.join("lobby").await;
        forms.push(init["presence"].as_str().unwrap().to_owned());
        members.push(member);
    }
    assert_eq!(forms[..4], ["each"; 4], "{forms:?}");
    assert_eq!(forms[6..], ["batched"; 2], "{forms:?}");
    // The first user has lived through the change and knows everybody still.
    let all: Vec<String> = (0..8).map(|n| format!("user{n}")).collect();
    settle(&mut members[0], &all).await;
    while members.len() > 2 {
        let mut member = members.pop().unwrap();
        let left = member
            .command(json!({"type": "leave", "room": "lobby"}))
            .await;
        assert_eq!(left["type"], "left");
    }
    settle(&mut members[0], &all[..2]).await;
    let mut late = server.login(ways[0], "late").await;
    assert_eq!(late.join("lobby").await["presence"], "each");
    let told = members[0]
        .events_until("the join", |event| event["type"] == "join")
        .await;
    assert_eq!(told.last().unwrap()["user"], "late");
    assert_eq!(members[0].roster("lobby"), ["late", "user0", "user1"]);
}

/// Takes events until the roster is `expected`.
async fn settle(client: &mut Client, expected: &[String]) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while client.roster("lobby") != expected {
        let late = tokio::time::Instant::now() > deadline;
        assert!(
            !late,
            "the roster is {:?}, not {expected:?}",
            client.roster("lobby")
        );
        client.try_event(Duration::from_millis(100)).await;
    }
}
