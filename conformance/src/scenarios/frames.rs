//! Frames that are no commands: each is refused by name, and the session goes on.

use serde_json::Value;

use crate::{Kit, code};

pub(crate) async fn what_is_no_object_is_bad_json(kit: &Kit) {
    kit.check(
        r#"
        alice, bob in lobby
        alice > raw nonsense -> error bad_json
        alice > raw {"type":"ping" -> error bad_json
        alice > raw {"type":"ping"}} -> error bad_json
        alice > raw {"type":"ping",} -> error bad_json
        alice > raw [{"type":"ping"}] -> error bad_json
        alice > raw "ping" -> error bad_json
        alice > raw 7 -> error bad_json
        alice > raw null -> error bad_json
        alice > say lobby fine
        bob < message lobby alice fine
        "#,
    )
    .await;
}

pub(crate) async fn an_object_that_is_no_command_is_a_bad_request(kit: &Kit) {
    kit.check(
        r#"
        alice > login
        alice > raw {} -> error bad_request type
        alice > raw {"type":7} -> error bad_request type
        alice > raw {"type":null} -> error bad_request type
        alice > raw {"type":"ping","id":"one"} -> {"type":"error","code":"bad_request","id":"-"}
        alice > raw {"type":"ping","id":-1} -> {"type":"error","code":"bad_request","id":"-"}
        alice > raw {"type":"ping","id":1.5} -> {"type":"error","code":"bad_request","id":"-"}
        alice > raw {"type":"ping","id":9007199254740992} -> {"type":"error","code":"bad_request","id":"-"}
        alice > raw {"type":"ping","x":"\ud800"} -> error bad_request surrogate
        alice > raw {"type":"ping","x":"\udc00\ud800"} -> error bad_request surrogate
        alice > raw {"type":"ping","\ud800":1} -> error bad_request surrogate
        alice > raw {"type":"ping","x":1e999} -> error bad_request number
        alice > raw {"type":"ping","x":-1e999} -> error bad_request number
        alice > ping
        "#,
    )
    .await;
}

pub(crate) async fn nesting_has_a_limit(kit: &Kit) {
    // The command itself is the first level of 32.
    let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    let (deep, deeper, deepest) = (nested(31), nested(32), nested(4000));
    kit.check(&format!(
        r#"
        alice in lobby
        alice > raw {{"type":"send","room":"lobby","data":{deep}}} -> sent
        alice < {{"type":"message","data":{deep}}}
        alice > raw {{"type":"send","room":"lobby","data":{deeper}}} -> error bad_request nest
        alice > raw {{"type":"send","room":"lobby","data":{deepest}}} -> error bad_request nest
        alice > raw {{"type":"ping","x":{deeper}}} -> error bad_request nest
        alice > ping
        "#
    ))
    .await;
}

pub(crate) async fn structure_is_judged_before_the_type_and_the_type_before_the_fields(kit: &Kit) {
    kit.check(
        r#"
        alice > login
        alice > raw {"type":"dance","x":1e999} -> error bad_request
        alice > raw {"type":"dance","room":7} -> error unknown_type
        alice > raw {"type":"login","user":7} -> error already_logged_in
        alice > raw {"type":"send","room":"Lobby","text":7} -> error bad_request text
        alice > raw {"type":"send","room":"Lobby","text":"x"} -> error room_invalid
        alice > raw {"type":"send","room":"lobby","text":""} -> error not_joined
        "#,
    )
    .await;
}

pub(crate) async fn types_that_are_kept_for_later_are_unknown(kit: &Kit) {
    kit.check(
        r#"
        alice > {"type":"kick","user":"bob"} -> error unknown_type
        alice > {"type":"rooms"} -> error unknown_type
        alice > {"type":"session"} -> error unknown_type
        alice > {"type":"Ping"} -> error unknown_type
        "#,
    )
    .await;
}

pub(crate) async fn the_answer_to_a_bad_field_carries_the_id(kit: &Kit) {
    let server = kit.setup().start().await;
    for over in kit.all() {
        let mut alice = server.login(over, over).await;
        for frame in [
            r#"{"id":41,"type":"join","room":{}}"#,
            r#"{"type":"send","room":"lobby","text":7,"id":41}"#,
            r#"{"type":"join","id":41,"room":null}"#,
        ] {
            let error = alice.raw(frame).await;
            assert_eq!(
                (code(&error).as_str(), &error["id"]),
                ("bad_request", &Value::from(41)),
                "{frame}"
            );
        }
    }
}
