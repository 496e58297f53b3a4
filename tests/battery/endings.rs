//! Every way in which a session ends: its code, its close, and what the others see.

use serde_json::{Value, json};

use crate::harness::{Client, Over, STAFF, Server, Setup, Sloth, check, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_is_answered_with_bye_and_the_name_is_free() {
    check(
        r#"
        alice in lobby
        alice > {"type":"logout"} -> {"type":"bye","id":"*","code":"logout","message":"*","retry_ms":null}
        bob > login ALICE
        "#,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_ends_a_session_after_its_timeout() {
    for over in Over::ALL {
        let server = Setup::default()
            .on(over, "timeout = \"400ms\"")
            .start()
            .await;
        let mut bob = witness(&server, over).await;
        let sloth = Sloth::join(server.addr(over), over, "alice", "lobby").await;
        sees(&mut bob, "join", Value::Null).await;
        sees(&mut bob, "leave", "expired".into()).await;
        let (_, code) = sloth.wake().await;
        assert_eq!(code.as_deref(), Some("session_expired"), "{over:?}");
        // Nothing of it is left: the name is free.
        Client::login(server.addr(over), over, "alice").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_session_says_its_own_timeout() {
    for over in Over::ALL {
        let server = Setup::default().on(over, "timeout = \"7s\"").start().await;
        let mut alice = Client::connect(server.addr(over), over, "alice").await;
        let session = alice
            .log_in(json!({"type": "login", "user": "alice"}))
            .await;
        assert_eq!(
            (&session["timeout_ms"], &session["ping_every_ms"]),
            (&7000.into(), &3500.into())
        );
        let server = Setup::tables("[sessions]\ntimeout = \"0s\"").start().await;
        let mut alice = Client::connect(server.addr(over), over, "alice").await;
        let session = alice
            .log_in(json!({"type": "login", "user": "alice"}))
            .await;
        assert_eq!(
            (&session["timeout_ms"], &session["ping_every_ms"]),
            (&0.into(), &0.into())
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_connection_ends_its_session_at_once() {
    for over in Over::PUSH {
        let server = Setup::default().start().await;
        let mut bob = witness(&server, over).await;
        let mut alice = Client::login(server.addr(over), over, "alice").await;
        alice.enter("lobby").await;
        sees(&mut bob, "join", Value::Null).await;
        alice.vanish();
        sees(&mut bob, "leave", "disconnected".into()).await;
        Client::login(server.addr(over), over, "alice").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_in_good_order_is_a_logout() {
    let server = Setup::default().start().await;
    let mut bob = witness(&server, Over::WebSocket).await;
    let mut alice = Client::login(server.addr(Over::WebSocket), Over::WebSocket, "alice").await;
    alice.enter("lobby").await;
    sees(&mut bob, "join", Value::Null).await;
    alice.close().await;
    sees(&mut bob, "leave", "logout".into()).await;
    alice.gone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_of_input_ends_a_line_session() {
    let server = Setup::default().start().await;
    let mut bob = witness(&server, Over::Tcp).await;
    let mut alice = Client::login(server.addr(Over::Tcp), Over::Tcp, "alice").await;
    alice.enter("lobby").await;
    sees(&mut bob, "join", Value::Null).await;
    alice
        .write_bytes(br#"{"type":"send","room":"lobby","text":"half a li"#)
        .await;
    alice.close().await;
    let leave = bob.next_event().await;
    assert_eq!(leave["type"], "leave", "{leave}");
    assert!(
        ["disconnected", "logout"]
            .map(Value::from)
            .contains(&leave["reason"]),
        "{leave}"
    );
    alice.gone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_does_not_read_is_cut_and_the_others_lose_nothing() {
    let limits = r#"[limits]
        sends = "unlimited"
        commands = "unlimited"
        frame_bytes = "13KiB"
        server_frame_bytes = "80KiB"
        member_queue = "80KiB"
        poll_queue = { events = 100, bytes = "80KiB" }
        slow_after = "1s"
    "#;
    for over in Over::ALL {
        let server = Setup::tables(limits).start().await;
        let mut bob = witness(&server, over).await;
        let mut speaker = Client::login(server.addr(Over::Tcp), Over::Tcp, "speaker").await;
        speaker.enter("lobby").await;
        bob.events_until("the speaker's join", |event| event["user"] == "speaker")
            .await;
        let sloth = Sloth::join(server.addr(over), over, "sloth", "lobby").await;
        sees(&mut bob, "join", Value::Null).await;
        sees(&mut speaker, "join", Value::Null).await;
        let text = "x".repeat(4000);
        let is_cut = |event: &Value| event["type"] == "leave" && event["user"] == "sloth";
        let mut said = 0;
        let leave = 'cut: loop {
            assert!(
                said < 3000,
                "12 MB were sent to one that does not read ({over:?})"
            );
            said += 1;
            let seq = speaker.say("lobby", &text).await["seq"].clone();
            let mut seen = speaker
                .events_until("its own message", |event| event["seq"] == seq)
                .await;
            // The witness keeps step; that nothing is missing is what its own memory checks.
            seen.extend(
                bob.events_until("the same message", |event| event["seq"] == seq)
                    .await,
            );
            if let Some(leave) = seen.into_iter().find(is_cut) {
                break 'cut leave;
            }
        };
        assert_eq!(leave["reason"], "evicted", "{leave}");
        let (_, code) = sloth.wake().await;
        // To a reader that has stopped a bye is best effort; a poller is told in any case.
        if over == Over::Polling {
            assert_eq!(code.as_deref(), Some("slow_consumer"));
        } else {
            assert!(code.is_none_or(|code| code == "slow_consumer"));
        }
        Client::login(server.addr(over), over, "sloth").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_says_bye_to_everyone_after_what_was_accepted() {
    let server = Setup::default().start().await;
    let mut members = Vec::new();
    for over in Over::ALL {
        let mut member = Client::login(server.addr(over), over, over.table()).await;
        member.join("lobby").await;
        members.push(member);
    }
    for n in 0..20 {
        members[n % 3].say("lobby", &n.to_string()).await;
    }
    let addrs = Over::ALL.map(|over| server.addr(over));
    let listen = async {
        for member in &mut members {
            let events = member
                .events_until("the last message", |event| event["text"] == "19")
                .await;
            assert!(
                events.iter().all(|event| event["type"] != "leave"),
                "{events:?}"
            );
            let bye = member.expect_bye("shutting_down").await;
            assert!(bye["retry_ms"].as_u64().is_some(), "{bye}");
        }
    };
    let (dropped, ()) = tokio::join!(server.shut_down(), listen);
    assert_eq!(dropped, 0, "every task ended in peace");
    for addr in addrs {
        eventually("the listener to be closed", async || {
            tokio::net::TcpStream::connect(addr)
                .await
                .is_err()
                .then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_do_not_hold_up_a_drain() {
    let server = Setup::default().start().await;
    let mut strangers = Vec::new();
    for over in Over::ALL {
        for half in ["", "GET /v1/ws HT", "{\"type\":"] {
            let mut stranger = tokio::net::TcpStream::connect(server.addr(over))
                .await
                .unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stranger, half.as_bytes())
                .await
                .unwrap();
            strangers.push(stranger);
        }
    }
    // One that has been answered shows that the others were accepted.
    Client::login(server.addr(Over::Tcp), Over::Tcp, "alice").await;
    let begun = tokio::time::Instant::now();
    assert_eq!(server.shut_down().await, 0);
    let took = begun.elapsed();
    assert!(
        took < std::time::Duration::from_secs(5),
        "the drain took {took:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_taken_out_of_the_password_file_is_logged_out() {
    for over in Over::ALL {
        let server = Setup::passwords().start().await;
        let mut members = Vec::new();
        for (user, password, _) in STAFF {
            let mut member = Client::connect(server.addr(over), over, user).await;
            member
                .log_in(json!({"type": "login", "user": user, "password": password}))
                .await;
            members.push(member);
        }
        let file = server.folder().join("users.txt");
        let users = std::fs::read_to_string(&file).unwrap();
        let without: String = users
            .lines()
            .filter(|line| !line.starts_with("alice:"))
            .map(|line| format!("{line}\n"))
            .collect();
        assert_ne!(users, without);
        std::fs::write(&file, without).unwrap();
        members[0].expect_bye("auth_expired").await;
        let pong = members[1].command(json!({"type": "ping"})).await;
        assert_eq!(pong["type"], "pong", "bob's line is as it was");
    }
}

/// A member on another transport than the one under test, whose session cannot fall silent.
async fn witness(server: &Server, than: Over) -> Client {
    let over = if than == Over::WebSocket {
        Over::Polling
    } else {
        Over::WebSocket
    };
    let mut bob = Client::login(server.addr(over), over, "bob").await;
    bob.enter("lobby").await;
    bob
}

/// The very next event has this type and reason.
async fn sees(client: &mut Client, kind: &str, reason: Value) {
    let event = client.next_event().await;
    assert_eq!(
        (&event["type"], &event["reason"]),
        (&kind.into(), &reason),
        "{event}"
    );
}
