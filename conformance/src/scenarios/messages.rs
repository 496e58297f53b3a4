//! What may be said, and how it comes out at the other end.

use serde_json::{Value, json};

use crate::{Kit, code};

pub(crate) async fn a_message_reaches_every_member_and_its_sender(kit: &Kit) {
    kit.check(
        r#"
        alice, bob, carol in lobby
        alice > {"type":"send","room":"lobby","text":"hi"} -> {"type":"sent","room":"lobby","seq":4,"at":"*"}
        alice < {"type":"message","room":"lobby","seq":4,"at":"*","user":"alice","text":"hi","data":"-"}
        bob < {"type":"message","seq":4,"user":"alice","text":"hi"}
        carol < {"type":"message","seq":4,"user":"alice","text":"hi"}
        carol > say lobby good morning
        alice < message lobby carol good morning
        bob < message lobby carol good morning
        carol < message lobby carol good morning
        "#,
    )
    .await;
}

pub(crate) async fn the_answer_and_the_event_carry_the_same_number_and_time(kit: &Kit) {
    let server = kit.setup().start().await;
    for over in kit.all() {
        let mut alice = server.login(over, "alice").await;
        alice.enter(over).await;
        let sent = alice.say(over, "hello").await;
        let own = alice.next_event().await;
        assert_eq!((&sent["seq"], &sent["at"]), (&own["seq"], &own["at"]));
        alice.command(json!({"type": "logout"})).await;
        alice.expect_closed("logout").await;
    }
}

pub(crate) async fn data_is_any_json(kit: &Kit) {
    kit.check(
        r#"
        alice, bob in lobby
        alice > {"type":"send","room":"lobby","text":"a","data":{"color":"red","n":[1,2.5,-3e2,null,true,{}]}} -> sent
        bob < {"type":"message","text":"a","data":{"color":"red","n":[1,2.5,-300.0,null,true,{}]}}
        alice > {"type":"send","room":"lobby","data":[]} -> sent
        bob < {"type":"message","text":"-","data":[]}
        alice > {"type":"send","room":"lobby","text":"","data":0} -> sent
        bob < {"type":"message","data":0}
        alice > {"type":"send","room":"lobby","data":"two\nlines\u2028three"} -> sent
        bob < {"type":"message","data":"two\nlines\u2028three"}
        alice > {"type":"send","room":"lobby","data":{"emoji":"\ud83d\ude00"}} -> sent
        bob < {"type":"message","data":{"emoji":"😀"}}
        "#,
    )
    .await;
}

pub(crate) async fn unknown_fields_are_ignored(kit: &Kit) {
    kit.check(
        r#"
        alice, bob in lobby
        alice > {"type":"send","room":"lobby","text":"hi","colour":"red","x":{"y":[]}} -> {"type":"sent","colour":"-"}
        bob < {"type":"message","text":"hi","colour":"-","x":"-"}
        alice > {"type":"ping","room":9} -> pong
        "#,
    )
    .await;
}

pub(crate) async fn line_feeds_and_tabs_are_kept_and_other_controls_refused(kit: &Kit) {
    kit.check(
        r#"
        alice, bob in lobby
        alice > {"type":"send","room":"lobby","text":"two\nlines\tand a tab"} -> sent
        bob < {"type":"message","text":"two\nlines\tand a tab"}
        alice > {"type":"send","room":"lobby","text":"a bell\u0007"} -> error message_rejected control
        alice > {"type":"send","room":"lobby","text":"a nul\u0000"} -> error message_rejected
        alice > {"type":"send","room":"lobby","text":"an escape\u001b[2J"} -> error message_rejected
        alice > {"type":"send","room":"lobby","text":"a return\r"} -> error message_rejected
        alice > {"type":"send","room":"lobby","text":"a delete\u007f"} -> error message_rejected
        alice > say lobby fine
        bob < message lobby alice fine
        "#,
    )
    .await;
}

pub(crate) async fn a_message_says_something(kit: &Kit) {
    kit.check(
        r#"
        alice, bob in lobby
        alice > {"type":"send","room":"lobby","text":""} -> error message_empty
        alice > {"type":"send","room":"lobby","text":" \t\n "} -> error message_empty
        alice > say lobby fine
        bob < message lobby alice fine
        "#,
    )
    .await;
}

pub(crate) async fn text_and_data_together_have_a_limit(kit: &Kit) {
    let longest = "x".repeat(4096);
    let (text, data) = ("x".repeat(4000), "y".repeat(94));
    kit.check(&format!(
        r#"
        alice, bob in lobby
        alice > {{"type":"send","room":"lobby","text":"{longest}"}} -> sent
        bob < message lobby alice {longest}
        alice > {{"type":"send","room":"lobby","text":"{longest}x"}} -> error message_too_long 4096
        alice > {{"type":"send","room":"lobby","text":"{text}","data":"{data}"}} -> sent
        bob < message lobby alice {text}
        alice > {{"type":"send","room":"lobby","text":"{text}","data":"{data}y"}} -> error message_too_long
        alice > {{"type":"send","room":"lobby","text":"{text}","data": [  "{data}"  ]}} -> error message_too_long
        "#
    ))
    .await;
}

pub(crate) async fn a_room_may_escape_html_and_says_so(kit: &Kit) {
    let tables =
        "[rooms.web]\nmatch = \"web\"\nvalidators = [\"not_empty\", \"length\", \"html_escape\"]";
    kit.check_with(
        kit.tables(tables),
        r#"
        alice > join web -> {"type":"init","escape":"html"}
        alice < join web alice
        alice > {"type":"send","room":"web","text":"<b>&\"'"} -> sent
        alice < {"type":"message","text":"&lt;b&gt;&amp;&quot;&#39;"}
        bob > join lobby -> {"type":"init","escape":"-"}
        "#,
    )
    .await;
}

pub(crate) async fn what_is_not_built_yet_is_refused_by_name(kit: &Kit) {
    kit.check(
        r#"
        alice, bob in lobby
        alice > {"type":"history","room":"lobby"} -> error bad_request yet
        alice > {"type":"signal","room":"lobby","data":{}} -> error bad_request yet
        alice > {"type":"send","room":"lobby","text":"x","key":"k"} -> error bad_request yet
        alice > say lobby fine
        bob < message lobby alice fine
        "#,
    )
    .await;
}

pub(crate) async fn pipelined_commands_are_answered_in_order(kit: &Kit) {
    let server = kit
        .tables("[limits]\nsends = \"unlimited\"\ncommands = \"unlimited\"")
        .start()
        .await;
    for over in kit.push() {
        let mut alice = server.login(over, "alice").await;
        alice.enter(over).await;
        let mut asked = Vec::new();
        for n in 0..200 {
            let command = match n % 4 {
                0 => json!({"type": "users", "room": over}),
                1 => json!({"type": "join", "room": over}),
                2 => json!({"type": "leave", "room": "nowhere"}),
                _ => json!({"type": "send", "room": over, "text": format!("{n}")}),
            };
            asked.push(alice.send_command(command).await);
        }
        let mut answered = Vec::new();
        for _ in &asked {
            answered.push(
                alice.next_reply().await["id"]
                    .as_u64()
                    .expect("an answer has its id"),
            );
        }
        assert_eq!(answered, asked, "{over:?}");
        let mut texts = Vec::new();
        for _ in 0..50 {
            texts.push(
                alice.next_event().await["text"]
                    .as_str()
                    .unwrap()
                    .parse::<u64>()
                    .unwrap(),
            );
        }
        assert!(texts.is_sorted() && texts.len() == 50, "{texts:?}");
        alice.command(json!({"type": "logout"})).await;
        alice.expect_closed("logout").await;
    }
}

pub(crate) async fn numbers_ids_and_texts_come_back_as_they_were_sent(kit: &Kit) {
    let server = kit.setup().start().await;
    for over in kit.all() {
        let mut alice = server.login(over, over).await;
        for id in [0, 1, (1_u64 << 53) - 1] {
            let pong = alice.command(json!({"type": "ping", "id": id})).await;
            assert_eq!(pong, json!({"type": "pong", "id": id}));
        }
        let quiet = alice.raw(r#"{"type":"ping"}"#).await;
        assert_eq!(
            quiet["id"],
            Value::Null,
            "a command without an id is answered without one"
        );
        let error = alice.raw(r#"{"type":"dance"}"#).await;
        assert_eq!(
            (code(&error), &error["id"]),
            ("unknown_type".into(), &Value::Null)
        );
    }
}
