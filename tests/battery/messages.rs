//! What may be said, and how it comes out at the other end.

use serde_json::{Value, json};

use crate::harness::{Client, Over, Setup, check, check_with, code};

#[tokio::test(flavor = "multi_thread")]
async fn a_message_reaches_every_member_and_its_sender() {
    check(
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

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_and_the_event_carry_the_same_number_and_time() {
    let server = Setup::default().start().await;
    for over in Over::ALL {
        let mut alice = Client::login(server.addr(over), over, "alice").await;
        alice.enter(over.table()).await;
        let sent = alice.say(over.table(), "hello").await;
        let own = alice.next_event().await;
        assert_eq!((&sent["seq"], &sent["at"]), (&own["seq"], &own["at"]));
        alice.command(json!({"type": "logout"})).await;
        alice.expect_closed("logout").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn data_is_any_json() {
    check(
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

#[tokio::test(flavor = "multi_thread")]
async fn raw_line_feeds_between_tokens_do_not_survive() {
    let server = Setup::default().start().await;
    let mut bob = Client::login(server.addr(Over::Tcp), Over::Tcp, "bob").await;
    bob.enter("lobby").await;
    for over in [Over::WebSocket, Over::Polling] {
        let mut alice = Client::login(server.addr(over), over, over.table()).await;
        alice.enter("lobby").await;
        bob.events_until("the join", |event| event["type"] == "join")
            .await;
        let frame =
            "{\r\n\"type\":\"send\",\n\"room\":\"lobby\",\"data\":{\n\"a\":\r\n[1,\n2]\n}\n}";
        assert_eq!(alice.raw(frame).await["type"], "sent");
        // A line feed in the frame would cut bob's object in two, and his reader would say so.
        assert_eq!(bob.next_event().await["data"], json!({"a": [1, 2]}));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_fields_are_ignored() {
    check(
        r#"
        alice, bob in lobby
        alice > {"type":"send","room":"lobby","text":"hi","colour":"red","x":{"y":[]}} -> {"type":"sent","colour":"-"}
        bob < {"type":"message","text":"hi","colour":"-","x":"-"}
        alice > {"type":"ping","room":9} -> pong
        "#,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn line_feeds_and_tabs_are_kept_and_other_controls_refused() {
    check(
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

#[tokio::test(flavor = "multi_thread")]
async fn a_message_says_something() {
    check(
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

#[tokio::test(flavor = "multi_thread")]
async fn text_and_data_together_have_a_limit() {
    let longest = "x".repeat(4096);
    let (text, data) = ("x".repeat(4000), "y".repeat(94));
    check(&format!(
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

#[tokio::test(flavor = "multi_thread")]
async fn a_room_may_escape_html_and_says_so() {
    let tables =
        "[rooms.web]\nmatch = \"web\"\nvalidators = [\"not_empty\", \"length\", \"html_escape\"]";
    check_with(
        &Setup::tables(tables),
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

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_built_yet_is_refused_by_name() {
    check(
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

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_commands_are_answered_in_order() {
    let server = Setup::tables("[limits]\nsends = \"unlimited\"\ncommands = \"unlimited\"")
        .start()
        .await;
    for over in Over::PUSH {
        let mut alice = Client::login(server.addr(over), over, "alice").await;
        alice.enter(over.table()).await;
        let mut asked = Vec::new();
        for n in 0..200 {
            let command = match n % 4 {
                0 => json!({"type": "users", "room": over.table()}),
                1 => json!({"type": "join", "room": over.table()}),
                2 => json!({"type": "leave", "room": "nowhere"}),
                _ => json!({"type": "send", "room": over.table(), "text": format!("{n}")}),
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

#[tokio::test(flavor = "multi_thread")]
async fn numbers_ids_and_texts_come_back_as_they_were_sent() {
    let server = Setup::default().start().await;
    for over in Over::ALL {
        let mut alice = Client::login(server.addr(over), over, over.table()).await;
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
