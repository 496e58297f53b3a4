//! Peers that guess, flood, stall and vanish, and a system that runs out of descriptors: whoever did it is ended, and
//! the others notice nothing.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream, process::Command, task::JoinSet, time::Instant};

use crate::harness::{
    COSTLY, Client, Over, PATIENCE, Program, STAFF, Setup, Sloth, code, eventually,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_wrong_log_ins_let_nobody_in_and_disturb_nobody() {
    let limits = r#"[limits]
        login_failures_per_ip = "unlimited"
        login_failures_per_name = "unlimited"
    "#;
    let server = Setup::passwords().and(limits).start().await;
    let (user, password, _) = STAFF[0];
    let mut alice = Client::connect(server.addr(Over::Tcp), Over::Tcp, user).await;
    alice
        .log_in(json!({"type": "login", "user": user, "password": password}))
        .await;
    let mut guessing = JoinSet::new();
    for over in Over::ALL {
        for guesser in 0..4 {
            let addr = server.addr(over);
            guessing.spawn(async move {
                // Five attempts are what a connection has.
                for round in 0..17 {
                    let mut client = Client::connect(addr, over, "guesser").await;
                    for attempt in 0..5 {
                        let user = if attempt % 2 == 0 { "alice" } else { "nobody" };
                        let guess = format!("guess-{guesser}-{round}-{attempt}");
                        let login = json!({"type": "login", "user": user, "password": guess});
                        assert_eq!(code(&client.try_log_in(login).await), "auth_failed");
                    }
                    if over != Over::Polling {
                        client.expect_bye("auth_failed").await;
                    }
                }
            });
        }
    }
    while !guessing.is_empty() {
        let begun = Instant::now();
        alice.ping().await;
        assert!(
            begun.elapsed() < Duration::from_secs(3),
            "a ping took {:?}",
            begun.elapsed()
        );
        let tick = tokio::time::timeout(Duration::from_millis(100), guessing.join_next()).await;
        if let Ok(Some(guesser)) = tick {
            guesser.unwrap();
        }
    }
    for over in Over::ALL {
        let mut bob = Client::connect(server.addr(over), over, "bob").await;
        bob.log_in(json!({"type": "login", "user": STAFF[1].0, "password": STAFF[1].1}))
            .await;
    }
    alice.ping().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_log_ins_at_once_are_served_or_told_to_come_back() {
    // They share a name, of which no more are judged at a time than may fail.
    let limits = "[limits]\nlogin_failures_per_name = \"unlimited\"\n";
    let server = Setup::passwords().and(limits).start().await;
    let (user, password, _) = COSTLY;
    let mut arriving = JoinSet::new();
    for n in 0..200 {
        let over = Over::ALL[n % 3];
        let addr = server.addr(over);
        arriving.spawn(async move {
            let mut client = Client::connect(addr, over, user).await;
            client
                .patient()
                .try_log_in(json!({"type": "login", "user": user, "password": password}))
                .await
        });
    }
    let mut outcomes = BTreeMap::new();
    for answer in arriving.join_all().await {
        let outcome = if answer["type"] == "session" {
            "session".to_owned()
        } else {
            code(&answer)
        };
        if outcome == "unavailable" {
            assert!(
                answer["retry_ms"].as_u64().is_some_and(|retry| retry > 0),
                "{answer}"
            );
        }
        *outcomes.entry(outcome).or_insert(0) += 1;
    }
    let known: u32 = ["session", "unavailable"]
        .iter()
        .filter_map(|outcome| outcomes.get(*outcome))
        .sum();
    assert_eq!(known, 200, "{outcomes:?}");
    // How many is a matter of the machine: those whose turn comes within the authenticator's time limit.
    assert!(outcomes.contains_key("session"), "{outcomes:?}");
    let (user, password, _) = STAFF[0];
    let mut alice = Client::connect(server.addr(Over::WebSocket), Over::WebSocket, user).await;
    alice
        .log_in(json!({"type": "login", "user": user, "password": password}))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_pipelined_commands_are_all_answered() {
    let limits =
        "[limits]\ncommands = \"unlimited\"\nsends = \"unlimited\"\nmember_queue = \"4MiB\"";
    let server = Setup::tables(limits).start().await;
    for over in Over::PUSH {
        let mut alice = Client::login(server.addr(over), over, over.table()).await;
        alice.enter(over.table()).await;
        let ids = 1000..6000;
        for id in ids.clone() {
            let command = if id % 2 == 0 {
                json!({"type": "send", "id": id, "room": over.table(), "text": "x"})
            } else {
                json!({"type": "leave", "id": id, "room": "nowhere"})
            };
            alice.send_command(command).await;
        }
        for id in ids {
            assert_eq!(alice.next_reply().await["id"], id, "{over:?}");
        }
        for _ in 0..2500 {
            assert_eq!(alice.next_event().await["type"], "message");
        }
        alice.ping().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_ends_the_one_who_floods() {
    for over in Over::ALL {
        let server = Setup::default().start().await;
        let mut bob = Client::login(server.addr(Over::Polling), Over::Polling, "bob").await;
        bob.enter("lobby").await;
        let mut alice = Client::login(server.addr(over), over, "alice").await;
        alice.enter("lobby").await;
        assert_eq!(bob.next_event().await["type"], "join");
        // 200 commands are the burst, 20 refusals the patience.
        let mut codes = BTreeMap::new();
        for _ in 0..1000 {
            if over == Over::Polling {
                let answer = alice.raw(r#"{"type":"leave","room":"nowhere"}"#).await;
                *codes.entry(code(&answer)).or_insert(0) += 1;
                if code(&answer) == "session_expired" {
                    break;
                }
            } else {
                alice.write(r#"{"type":"leave","room":"nowhere"}"#).await;
            }
        }
        assert_eq!(
            codes.contains_key("session_expired"),
            over == Over::Polling,
            "{codes:?}"
        );
        // The answers come first, as many as there were; the end follows.
        alice.drain_to_bye("abuse").await;
        let leave = bob.next_event().await;
        assert_eq!(
            (&leave["type"], &leave["reason"]),
            (&"leave".into(), &"evicted".into()),
            "{leave}"
        );
        bob.say("lobby", "quiet again").await;
        assert_eq!(bob.next_event().await["text"], "quiet again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_vanishes_in_the_middle_of_anything_leaves_nothing_behind() {
    let server = Program::start(&Setup::default()).await;
    let mut bob = Client::login(server.table("web"), Over::WebSocket, "bob").await;
    bob.enter("lobby").await;
    let before = server.descriptors();
    for round in 0..10 {
        for over in Over::PUSH {
            let name = format!("gone-{round}-{}", over.table());
            let mut client = Client::login(server.table(over.table()), over, &name).await;
            client.enter("lobby").await;
            client
                .send_command(json!({"type": "send", "room": "lobby", "text": "last words"}))
                .await;
            client.vanish();
        }
        for half in [
            "",
            "{\"type\":\"login\",\"user\":\"x\"}",
            "{\"type\":\"login\",\"user\":\"x\"}\n",
            "{",
        ] {
            let mut stream = TcpStream::connect(server.table("line")).await.unwrap();
            stream.write_all(half.as_bytes()).await.unwrap();
            stream.set_zero_linger().unwrap();
        }
    }
    let mut here: i32 = 0;
    let mut left = 0;
    while left < 20 {
        let event = bob.next_event().await;
        match event["type"].as_str() {
            Some("join") => here += 1,
            Some("leave") => {
                assert_eq!(event["reason"], "disconnected", "{event}");
                here -= 1;
                left += 1;
            }
            _ => assert_eq!(event["text"], "last words", "{event}"),
        }
    }
    assert_eq!(here, 0);
    let users = bob.command(json!({"type": "users", "room": "lobby"})).await;
    assert_eq!(users["users"], json!(["bob"]));
    // What is left is what was there before they came.
    eventually("closed descriptors", async || {
        (server.descriptors() <= before).then_some(())
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_descriptors_old_sessions_are_served_and_new_ones_wait() {
    let long = "login_timeout = \"60s\"\nfirst_byte_timeout = \"60s\"";
    let setup = Setup::tables("[server]\nshutdown_grace = \"1s\"")
        .on_all(long)
        .on(Over::WebSocket, "header_timeout = \"60s\"")
        .on(Over::Polling, "header_timeout = \"60s\"");
    let mut server = Program::start_in_shell(&setup, "ulimit -n 64").await;
    let mut members = Vec::new();
    for over in Over::ALL {
        let mut member = Client::login(server.table(over.table()), over, over.table()).await;
        member.join("lobby").await;
        // Both connections of a poller are open from here on.
        member.ping().await;
        members.push(member);
    }
    members[2]
        .events_until("its own join", |event| event["user"] == "poll")
        .await;
    let mut strangers = Vec::new();
    for n in 0..240 {
        let over = Over::ALL[n % 3];
        strangers.push(
            TcpStream::connect(server.table(over.table()))
                .await
                .unwrap(),
        );
    }
    eventually("the limit to be reached", async || {
        (server.descriptors() >= 60).then_some(())
    })
    .await;
    let (begun, ticks) = (Instant::now(), server.cpu_ticks());
    while begun.elapsed() < Duration::from_secs(2) {
        for n in 0..3 {
            let text = format!("{:?}", begun.elapsed());
            let seq = members[n].say("lobby", &text).await["seq"].clone();
            for member in &mut members {
                member
                    .events_until("the message", |event| event["seq"] == seq)
                    .await;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Hundredths of a second: a loop that spins on accept would use all of a core.
    let used = server.cpu_ticks() - ticks;
    let share = used as f64 / (begun.elapsed().as_secs_f64() * 100.0);
    assert!(
        share < 0.5,
        "{:.0} % of a core while nothing could be accepted",
        share * 100.0
    );
    assert!(server.is_running());
    drop(strangers);
    let freed = Instant::now();
    for over in Over::ALL {
        let name = format!("late-{}", over.table());
        Client::login(server.table(over.table()), over, &name).await;
    }
    assert!(
        freed.elapsed() < Duration::from_secs(5),
        "back after {:?}",
        freed.elapsed()
    );
    drop(members);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_for_a_reader_that_has_stopped_is_bounded() {
    const SLOTHS: usize = 16;
    const EACH: u64 = 512 << 10;
    let limits = "[limits]\nsends = \"unlimited\"\ncommands = \"unlimited\"";
    let server = Program::start(&Setup::tables(limits)).await;
    let mut speaker = Client::login(server.table("line"), Over::Tcp, "speaker").await;
    speaker.enter("lobby").await;
    // The room's history and the speaker's own buffers are full before anything is measured.
    let text = "x".repeat(4000);
    for _ in 0..400 {
        speaker.say("lobby", &text).await;
    }
    let mut sloths = Vec::new();
    for n in 0..SLOTHS {
        let over = Over::PUSH[n % 2];
        let addr = server.table(over.table());
        sloths.push(Sloth::join_with(addr, over, &format!("sloth{n}"), "lobby", None).await);
    }
    let ports: Vec<u16> = sloths.iter().map(Sloth::port).collect();
    let before = server.resident();
    let (mut cut, mut most_queued, mut most_resident) = (0, 0, 0);
    for said in 0..2000 {
        let seq = speaker.say("lobby", &text).await["seq"].clone();
        let seen = speaker
            .events_until("its own message", |event| event["seq"] == seq)
            .await;
        cut += seen.iter().filter(|event| event["type"] == "leave").count();
        if cut == SLOTHS {
            break;
        }
        if said % 25 == 0 {
            most_queued = most_queued.max(queued(&ports).await);
            most_resident = most_resident.max(server.resident().saturating_sub(before));
        }
    }
    assert_eq!(
        cut, SLOTHS,
        "8 MB were sent to each of those that do not read"
    );
    let of_process = most_resident / SLOTHS as u64;
    eprintln!("{most_queued} bytes in the kernel, {of_process} in the process");
    assert!(most_queued > 0, "the sockets were found");
    assert!(
        most_queued + of_process <= EACH,
        "{most_queued} in the kernel, {of_process} in the process"
    );
    speaker.ping().await;
    server.stop().await;
}

/// The most bytes that the kernel holds in the server's send queue to one of these client ports.
async fn queued(ports: &[u16]) -> u64 {
    let listing = Command::new("ss")
        .args(["-tnmHO", "state", "established"])
        .output()
        .await;
    let listing =
        String::from_utf8(listing.expect("ss is installed").stdout).expect("ss writes text");
    let lines = listing.lines().filter(|line| {
        // Receive queue, send queue, local, peer: the server's end has the client's port as its peer.
        let peer = line
            .split_whitespace()
            .nth(3)
            .and_then(|peer| peer.rsplit(':').next()?.parse().ok());
        peer.is_some_and(|port: u16| ports.contains(&port))
    });
    let queued = lines.filter_map(|line| {
        let memory = line.split_once("skmem:(")?.1;
        let queued = memory
            .split(',')
            .find_map(|field| field.strip_prefix('w'))?;
        queued.parse::<u64>().ok()
    });
    queued.max().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_every_port_does_no_harm() {
    let server = Setup::default().start().await;
    let mut alice = Client::login(server.addr(Over::Polling), Over::Polling, "alice").await;
    let mut dice = crate::harness::Seeded(42);
    for n in 0..90 {
        let mut stream = TcpStream::connect(server.addr(Over::ALL[n % 3]))
            .await
            .unwrap();
        let length = dice.next() % 3000;
        let bytes: Vec<u8> = (0..length).map(|_| dice.next() as u8).collect();
        if stream.write_all(&bytes).await.is_ok() && dice.percent(50) {
            stream.write_all(b"\r\n\r\n").await.ok();
        }
    }
    alice.ping().await;
    for over in Over::ALL {
        let mut client = Client::login(server.addr(over), over, over.table()).await;
        client.ping().await;
    }
    let begun = Instant::now();
    assert_eq!(server.shut_down().await, 0);
    assert!(begun.elapsed() < PATIENCE, "the garbage held up the drain");
    let _: Value = alice.gone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_in_the_middle_of_a_word_do_not_hold_up_a_drain() {
    let server = Setup::default().start().await;
    let mut strangers = Vec::new();
    for over in Over::ALL {
        for half in ["", "GET /v1/ws HT", "{\"type\":"] {
            let mut stranger = TcpStream::connect(server.addr(over)).await.unwrap();
            stranger.write_all(half.as_bytes()).await.unwrap();
            strangers.push(stranger);
        }
    }
    // One that has been answered shows that the others were accepted.
    Client::login(server.addr(Over::Tcp), Over::Tcp, "alice").await;
    let begun = Instant::now();
    assert_eq!(server.shut_down().await, 0);
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(5), "the drain took {took:?}");
}
