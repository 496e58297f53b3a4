//! Every way in which a session ends: its code, its close, and what the others see.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{Client, Kit, STAFF, Server, Sloth, eventually};

pub(crate) async fn a_logout_is_answered_with_bye_and_the_name_is_free(kit: &Kit) {
    kit.check(
        r#"
        alice in lobby
        alice > {"type":"logout"} -> {"type":"bye","id":"*","code":"logout","message":"*","retry_ms":null}
        bob > login ALICE
        "#,
    )
    .await;
}

pub(crate) async fn silence_ends_a_session_after_its_timeout(kit: &Kit) {
    for over in kit.all() {
        let server = kit
            .setup()
            .on_table(over, "timeout = \"400ms\"")
            .start()
            .await;
        let mut bob = witness(kit, &server, over).await;
        let sloth = Sloth::join(server.link(over).await.unwrap(), "alice", "lobby").await;
        sees(&mut bob, "join", Value::Null).await;
        sees(&mut bob, "leave", "expired".into()).await;
        let (_, code) = sloth.wake().await;
        assert_eq!(code.as_deref(), Some("session_expired"), "{over:?}");
        // Nothing of it is left: the name is free.
        server.login(over, "alice").await;
    }
}

pub(crate) async fn the_session_says_its_own_timeout(kit: &Kit) {
    for over in kit.all() {
        let server = kit.setup().on_table(over, "timeout = \"7s\"").start().await;
        let mut alice = server.connect(over, "alice").await;
        let session = alice
            .log_in(json!({"type": "login", "user": "alice"}))
            .await;
        assert_eq!(
            (&session["timeout_ms"], &session["ping_every_ms"]),
            (&7000.into(), &3500.into())
        );
        let server = kit.tables("[sessions]\ntimeout = \"0s\"").start().await;
        let mut alice = server.connect(over, "alice").await;
        let session = alice
            .log_in(json!({"type": "login", "user": "alice"}))
            .await;
        assert_eq!(
            (&session["timeout_ms"], &session["ping_every_ms"]),
            (&0.into(), &0.into())
        );
    }
}

pub(crate) async fn a_lost_connection_ends_its_session_at_once(kit: &Kit) {
    for over in kit.push() {
        let server = kit.setup().start().await;
        let mut bob = witness(kit, &server, over).await;
        let mut alice = server.login(over, "alice").await;
        alice.enter("lobby").await;
        sees(&mut bob, "join", Value::Null).await;
        alice.vanish();
        sees(&mut bob, "leave", "disconnected".into()).await;
        server.login(over, "alice").await;
    }
}

pub(crate) async fn a_close_in_good_order_ends_the_session(kit: &Kit) {
    for over in kit.push() {
        let server = kit.setup().start().await;
        let mut bob = witness(kit, &server, over).await;
        let mut alice = server.login(over, "alice").await;
        alice.enter("lobby").await;
        sees(&mut bob, "join", Value::Null).await;
        alice.close().await.expect("the server is there");
        let leave = bob.next_event().await;
        assert_eq!(leave["type"], "leave", "{leave}");
        let reason = leave["reason"].as_str();
        assert!(matches!(reason, Some("logout" | "disconnected")), "{leave}");
        alice.gone().await;
    }
}

pub(crate) async fn a_member_that_does_not_read_is_cut_and_the_others_lose_nothing(kit: &Kit) {
    let limits = r#"[limits]
        sends = "unlimited"
        commands = "unlimited"
        frame_bytes = "13KiB"
        server_frame_bytes = "80KiB"
        member_queue = "80KiB"
        poll_queue = { events = 100, bytes = "80KiB" }
        slow_after = "1s"
    "#;
    for over in kit.all() {
        let server = kit.tables(limits).start().await;
        let mut bob = witness(kit, &server, over).await;
        let mut speaker = server.login("line", "speaker").await;
        speaker.enter("lobby").await;
        bob.events_until("the speaker's join", |event| event["user"] == "speaker")
            .await;
        let sloth = Sloth::join(server.narrow_link(over).await.unwrap(), "sloth", "lobby").await;
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
        if kit.is_push(over) {
            assert!(code.is_none_or(|code| code == "slow_consumer"));
        } else {
            assert_eq!(code.as_deref(), Some("slow_consumer"));
        }
        server.login(over, "sloth").await;
    }
}

pub(crate) async fn a_drain_says_bye_to_everyone_after_what_was_accepted(kit: &Kit) {
    let server = kit.setup().start().await;
    let mut members = Vec::new();
    for over in kit.all() {
        let mut member = server.login(over, over).await;
        member.join("lobby").await;
        members.push(member);
    }
    for n in 0..20 {
        let member = n % members.len();
        members[member].say("lobby", &n.to_string()).await;
    }
    let doors: Vec<_> = kit.all().map(|over| server.door(over)).collect();
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
    for door in doors {
        eventually("the listener to be closed", async || {
            door.link().await.is_err().then_some(())
        })
        .await;
    }
}

pub(crate) async fn strangers_do_not_hold_up_a_drain(kit: &Kit) {
    let server = kit.setup().start().await;
    let mut strangers = Vec::new();
    for over in kit.all() {
        for _ in 0..3 {
            strangers.push(server.connect(over, "stranger").await);
        }
        // One that has been answered shows that the others were accepted.
        strangers.push(server.login(over, over).await);
    }
    let begun = tokio::time::Instant::now();
    assert_eq!(server.shut_down().await, 0);
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(5), "the drain took {took:?}");
}

pub(crate) async fn who_is_changed_in_the_password_file_or_taken_out_of_it_is_logged_out(
    kit: &Kit,
) {
    let many = "[sessions]\nduplicate_login = { allow = 9 }";
    let server = kit.setup().for_staff().and(many).start().await;
    let file = server.folder().join("users.txt");
    let [(alice, hers, her_hash), (bob, his, his_hash)] = STAFF;
    let members = async |user: &str, password: &str| {
        let mut members = Vec::new();
        for over in kit.all() {
            let mut member = server.connect(over, user).await;
            let login = json!({"type": "login", "user": user, "password": password});
            member.log_in(login).await;
            members.push(member);
        }
        members
    };
    let mut bobs = members(bob, his).await;
    // Her password until then, and what becomes of her line: a role more, another hash, nothing.
    for (password, line) in [
        (hers, format!("{alice}:{her_hash}:staff\n")),
        (hers, format!("{alice}:{his_hash}:staff\n")),
        (his, String::new()),
    ] {
        let alices = members(alice, password).await;
        std::fs::write(&file, format!("{line}{bob}:{his_hash}\n")).unwrap();
        for mut member in alices {
            member.expect_bye("auth_expired").await;
        }
        for member in &mut bobs {
            let pong = member.command(json!({"type": "ping"})).await;
            assert_eq!(pong["type"], "pong", "bob's line is as it was");
        }
    }
}

/// A member on another transport than the one under test, whose session can't fall silent.
async fn witness(kit: &Kit, server: &Server, than: &str) -> Client {
    let mut bob = server.login(kit.other(than), "bob").await;
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
