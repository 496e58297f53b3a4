//! Joining, leaving, and what a member knows of the room.

use std::time::Duration;

use serde_json::json;

use crate::{Kit, eventually};

pub(crate) async fn init_tells_the_room_before_the_joiner_and_the_join_follows(kit: &Kit) {
    kit.check(
        r#"
        alice > join lobby -> {"type":"init","room":"lobby","users":[],"count":0,"presence":"each","epoch":"*","seq":0,"recovered":false,"rev":"-","escape":"-"}
        alice < {"type":"join","room":"lobby","seq":1,"at":"*","user":"alice"}
        bob > join lobby -> {"type":"init","users":["alice"],"count":1,"seq":1}
        alice < {"type":"join","seq":2,"user":"bob"}
        bob < {"type":"join","seq":2,"user":"bob"}
        carol > join lobby -> {"type":"init","users":["alice","bob"],"count":2,"seq":2}
        alice < join lobby carol
        bob < join lobby carol
        carol < join lobby carol
        "#,
    )
    .await;
}

pub(crate) async fn joining_again_gives_a_fresh_init_and_nobody_sees_anything(kit: &Kit) {
    kit.check(
        r#"
        alice, bob in lobby
        alice > join lobby -> {"type":"init","users":["alice","bob"],"count":2,"seq":2,"recovered":false}
        alice > join lobby -> {"type":"init","users":["alice","bob"],"count":2,"seq":2}
        alice > say lobby hello
        alice < {"type":"message","seq":3,"text":"hello"}
        bob < {"type":"message","seq":3,"text":"hello"}
        "#,
    )
    .await;
}

pub(crate) async fn a_leaver_is_gone_before_the_others_are_told(kit: &Kit) {
    kit.check(
        r#"
        alice, bob, carol in lobby
        bob > leave lobby -> {"type":"left","room":"lobby","reason":"-"}
        alice < {"type":"leave","room":"lobby","seq":4,"at":"*","user":"bob","reason":"left"}
        carol < leave lobby bob left
        bob > leave lobby -> error not_joined
        bob > say lobby hello -> error not_joined
        bob > users lobby -> error not_joined
        alice > say lobby psst
        alice < message lobby alice psst
        carol < message lobby alice psst
        bob > join lobby -> {"type":"init","users":["alice","carol"],"count":2,"seq":5}
        bob < {"type":"join","seq":6,"user":"bob"}
        alice < join lobby bob
        carol < join lobby bob
        "#,
    )
    .await;
}

pub(crate) async fn who_logs_out_leaves_every_room(kit: &Kit) {
    kit.check(
        r"
        alice, bob in lobby
        alice, carol in games
        alice > logout
        bob < leave lobby alice logout
        carol < leave games alice logout
        bob > say lobby quiet here
        bob < message lobby bob quiet here
        ",
    )
    .await;
}

pub(crate) async fn rooms_are_apart(kit: &Kit) {
    kit.check(
        r"
        alice in lobby
        bob in games
        alice > say lobby one
        bob > say games two
        alice < message lobby alice one
        bob < message games bob two
        bob > say lobby three -> error not_joined
        alice > leave games -> error not_joined
        ",
    )
    .await;
}

pub(crate) async fn a_room_s_name_keeps_the_rules(kit: &Kit) {
    let (long, longest) = ("x".repeat(65), "x".repeat(64));
    kit.check(&format!(
        r#"
        alice > join Lobby -> error room_invalid lower
        alice > join a/b -> error room_invalid
        alice > {{"type":"join","room":""}} -> error room_invalid
        alice > {{"type":"join","room":"a b"}} -> error room_invalid
        alice > {{"type":"join","room":"caf\u00e9"}} -> error room_invalid
        alice > join {long} -> error room_invalid
        alice > {{"type":"join","room":7}} -> error bad_request room
        alice > say Lobby hello -> error room_invalid
        alice in {longest}
        alice in a-z_0:9.x
        "#
    ))
    .await;
}

pub(crate) async fn a_command_may_leave_out_the_default_room(kit: &Kit) {
    kit.check_with(
        kit.tables("[server]\ndefault_room = \"hall\""),
        r#"
        alice > {"type":"join"} -> {"type":"init","room":"hall"}
        alice < join hall alice
        alice > {"type":"send","text":"hello"} -> {"type":"sent","room":"hall","seq":2}
        alice < message hall alice hello
        alice > {"type":"users"} -> {"type":"users","room":"hall"}
        alice > {"type":"leave"} -> {"type":"left","room":"hall"}
        "#,
    )
    .await;
}

pub(crate) async fn without_a_default_room_every_command_names_its_own(kit: &Kit) {
    kit.check(
        r#"
        alice > {"type":"join"} -> error bad_request room
        alice > {"type":"send","text":"hello"} -> error bad_request room
        alice > {"type":"users"} -> error bad_request room
        alice > {"type":"leave"} -> error bad_request room
        "#,
    )
    .await;
}

pub(crate) async fn rooms_may_be_the_configured_ones_alone(kit: &Kit) {
    let tables =
        "[room]\ncreate = \"configured\"\n[rooms.games]\nmatch = \"game:*\"\ncreate = \"anyone\"";
    kit.check_with(
        kit.tables(tables),
        r"
        alice > join lobby -> error forbidden
        alice in game:chess
        ",
    )
    .await;
}

pub(crate) async fn a_session_is_in_so_many_rooms(kit: &Kit) {
    kit.check_with(
        kit.tables("[limits]\nrooms_per_session = 2"),
        r"
        alice in one
        alice in two
        alice > join three -> error too_many room
        alice > join two
        alice > leave one
        alice in three
        ",
    )
    .await;
}

pub(crate) async fn a_room_has_so_many_members(kit: &Kit) {
    kit.check_with(
        kit.tables("[room]\nmembers = 1"),
        r"
        alice in lobby
        bob > join lobby -> error too_many member
        alice > leave lobby
        bob in lobby
        ",
    )
    .await;
}

pub(crate) async fn at_the_cap_an_empty_room_makes_way_and_one_in_use_does_not(kit: &Kit) {
    kit.check_with(
        kit.tables("[limits]\nrooms = 1"),
        r"
        alice in lobby
        bob > join games -> error too_many room
        alice > leave lobby
        bob in games
        ",
    )
    .await;
}

pub(crate) async fn new_rooms_have_a_rate(kit: &Kit) {
    kit.check_with(
        kit.tables("[limits]\nroom_creations = { rate = 1, per = \"1h\", burst = 2 }"),
        r#"
        alice in one
        alice in two
        alice > join three -> {"type":"error","code":"rate_limited","retry_ms":"*"}
        alice > join one
        "#,
    )
    .await;
}

pub(crate) async fn users_come_in_pages_in_order_of_name(kit: &Kit) {
    kit.check_with(
        kit.tables("[room]\nusers_in_init = 1"),
        r#"
        carol, alice, bob in lobby
        bob > join lobby -> {"type":"init","users":["alice"],"count":3}
        bob > users lobby -> {"type":"users","room":"lobby","users":["alice","bob","carol"],"count":3,"epoch":"*","seq":3,"next":null}
        bob > {"type":"users","room":"lobby","limit":2} -> {"type":"users","users":["alice","bob"],"count":3,"next":"bob"}
        bob > {"type":"users","room":"lobby","limit":2,"after":"bob"} -> {"type":"users","users":["carol"],"count":3,"next":null}
        bob > {"type":"users","room":"lobby","after":"aaron"} -> {"type":"users","users":["alice","bob","carol"]}
        bob > {"type":"users","room":"lobby","after":"zoe"} -> {"type":"users","users":[],"count":3,"next":null}
        bob > {"type":"users","room":"lobby","limit":"two"} -> error bad_request limit
        bob > {"type":"users","room":"lobby","limit":0} -> error bad_request limit
        "#,
    )
    .await;
}

pub(crate) async fn members_agree_on_the_epoch(kit: &Kit) {
    let server = kit.setup().start().await;
    let mut epochs = Vec::new();
    let mut members = Vec::new();
    for over in kit.all() {
        let mut member = server.login(over, over).await;
        epochs.push(
            member.enter("lobby").await["epoch"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
        members.push(member);
    }
    epochs.dedup();
    assert_eq!(epochs.len(), 1, "{epochs:?}");
}

pub(crate) async fn an_empty_room_lingers_with_its_numbering(kit: &Kit) {
    kit.check(
        r#"
        alice in lobby
        alice > leave lobby
        bob > join lobby -> {"type":"init","users":[],"count":0,"seq":2}
        "#,
    )
    .await;
}

pub(crate) async fn a_room_that_does_not_linger_begins_anew_under_another_epoch(kit: &Kit) {
    for over in kit.all() {
        let server = kit.tables("[room]\nlinger = \"0s\"").start().await;
        let mut alice = server.login(over, "alice").await;
        let first = alice.enter("lobby").await;
        // Empty rooms are given up by a sweep, which may be a moment away.
        let second = eventually("a new beginning", async || {
            let left = alice
                .command(json!({"type": "leave", "room": "lobby"}))
                .await;
            assert_eq!(left["type"], "left");
            tokio::time::sleep(Duration::from_millis(200)).await;
            let init = alice.join("lobby").await;
            (init["seq"] == 0).then_some(init)
        })
        .await;
        assert_ne!(second["epoch"], first["epoch"]);
    }
}

pub(crate) async fn nothing_is_recovered_yet_and_the_answer_says_so(kit: &Kit) {
    kit.check(
        r#"
        alice in lobby
        alice > say lobby one
        alice < message lobby alice one
        bob > {"type":"join","room":"lobby","since":{"epoch":"x","seq":1}} -> {"type":"init","recovered":false,"seq":2,"users":["alice"]}
        bob < join lobby bob
        alice < join lobby bob
        bob > {"type":"join","room":"lobby","since":7} -> error bad_request since
        "#,
    )
    .await;
}
