//! The real program: its commands, its exit codes, its signals.

use std::{process::Stdio, time::Duration};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    process::Command,
    time::timeout,
};

use crate::harness::{
    Client, Http, Over, PATIENCE, PROGRAM, Program, Request, Setup, Sloth, eventually,
};

#[tokio::test(flavor = "multi_thread")]
async fn alone_it_serves_this_machine() {
    let server = Program::start_alone().await;
    assert_eq!(
        server.table("web"),
        server.table("poll"),
        "they share a port"
    );
    let mut members = Vec::new();
    for over in Over::ALL {
        let mut member = Client::login(server.table(over.table()), over, over.table()).await;
        let init = member.command(json!({"type": "join"})).await;
        assert_eq!(init["room"], "lobby", "{init}");
        members.push(member);
    }
    members[0].say("lobby", "hello").await;
    for member in &mut members {
        member
            .events_until("the message", |event| event["text"] == "hello")
            .await;
    }
    let health = Http::new(server.metrics())
        .ask(&Request::new("GET", "/readyz"))
        .await;
    assert_eq!(health.status, 200, "{}", health.text());
    let health = Http::new(server.metrics())
        .ask(&Request::new("GET", "/livez"))
        .await;
    assert_eq!(health.status, 200, "{}", health.text());
    let listen = async {
        for member in &mut members {
            member.expect_bye("shutting_down").await;
        }
    };
    tokio::join!(server.stop(), listen);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_command_line_is_64_and_help_has_examples() {
    for args in [
        &["serve", "--conf", "x"][..],
        &["dance"],
        &["check"],
        &["passwd", "file"],
    ] {
        let (code, _, errors) = Program::run(args, "").await;
        assert_eq!(code, Some(64), "{args:?}: {errors}");
        assert!(errors.contains("Usage"), "{args:?}: {errors}");
    }
    let (code, help, _) = Program::run(&["--help"], "").await;
    assert_eq!(code, Some(0));
    for word in ["serve", "check", "passwd", "Examples", "Exit codes"] {
        assert!(help.contains(word), "{word} is missing in:\n{help}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_is_1_and_every_mistake_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wrong.toml");
    let document = "[transports.line]\nkind = \"tpc\"\nbind = \"127.0.0.1:0\"\n[limits]\nsend = 7\nmessage_bytes = \"x\"\n";
    std::fs::write(&file, document).unwrap();
    for command in [&["check"][..], &["serve", "--config"]] {
        let args = [command, &[file.to_str().unwrap()]].concat();
        let (code, _, errors) = Program::run(&args, "").await;
        assert_eq!(code, Some(1), "{args:?}: {errors}");
        for words in [
            "wrong.toml:2:",
            "tpc",
            "wrong.toml:5:",
            "sends",
            "wrong.toml:6:",
        ] {
            assert!(errors.contains(words), "{words} is missing in:\n{errors}");
        }
    }
    let (code, _, errors) = Program::run(&["check", "no-such-file.toml"], "").await;
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("no-such-file.toml"), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_is_2() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = taken.local_addr().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("taken.toml");
    let document = format!(
        "[transports.line]\nkind = \"tcp\"\nbind = \"{addr}\"\nauth = [\"guests\"]\n\
         [authenticators.guests]\nkind = \"anonymous\"\n"
    );
    std::fs::write(&file, document).unwrap();
    let (code, _, errors) = Program::run(&["serve", "--config", file.to_str().unwrap()], "").await;
    assert_eq!(code, Some(2), "{errors}");
    assert!(errors.contains(&addr.to_string()), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_was_set_lets_its_user_in() {
    let limits =
        "[limits]\nlogin_failures_per_ip = \"unlimited\"\nlogin_failures_per_name = \"unlimited\"";
    let server = Setup::passwords().and(limits).start().await;
    let file = server.folder().join("users.txt");
    let file = file.to_str().unwrap();
    let (code, _, errors) = Program::run(&["passwd", file, "dave"], "correct horse\n").await;
    assert_eq!(code, Some(0), "{errors}");
    let lines = std::fs::read_to_string(file).unwrap();
    assert!(
        lines.contains("dave:$argon2id$") && !lines.contains("correct horse"),
        "{lines}"
    );
    assert!(
        lines.contains("alice:"),
        "the others are still there: {lines}"
    );
    // The running server reads the file again.
    eventually("dave to get in", async || {
        let mut dave = Client::connect(server.addr(Over::Tcp), Over::Tcp, "dave").await;
        let login = json!({"type": "login", "user": "dave", "password": "correct horse"});
        (dave.try_log_in(login).await["type"] == "session").then_some(())
    })
    .await;
    let (code, _, errors) = Program::run(&["passwd", file, "eve"], "").await;
    assert_eq!(code, Some(1), "no password is none: {errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_terminal_a_password_is_asked_twice_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("users.txt");
    let command = format!("{PROGRAM} passwd {} dave", file.display());
    for (typed, code) in [
        ("correct horse\ncorrect horse\n", 0),
        ("correct horse\ncorrect house\n", 1),
    ] {
        // A terminal of its own; each line is typed in the moment in which it is asked for.
        let mut terminal = Command::new("script")
            .args(["--quiet", "--return", "--command", &command, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("`script` is a part of every Debian");
        let mut keyboard = terminal.stdin.take().unwrap();
        let mut screen = terminal.stdout.take().unwrap();
        let mut shown = String::new();
        for (asked, line) in typed.split_inclusive('\n').enumerate() {
            while shown.matches(':').count() <= asked {
                let mut piece = [0; 256];
                let count = timeout(PATIENCE, screen.read(&mut piece)).await;
                let count = count.expect("a question").unwrap();
                assert!(count > 0, "no question: {shown}");
                shown += &String::from_utf8_lossy(&piece[..count]);
            }
            keyboard.write_all(line.as_bytes()).await.unwrap();
        }
        let mut rest = String::new();
        screen.read_to_string(&mut rest).await.unwrap();
        shown += &rest;
        let status = timeout(PATIENCE, terminal.wait()).await.expect("an end");
        assert_eq!(status.unwrap().code(), Some(code), "{shown}");
        assert!(!shown.contains("correct"), "{shown}");
    }
    let lines = std::fs::read_to_string(file).unwrap();
    assert!(lines.starts_with("dave:$argon2id$"), "{lines}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_drains_and_everyone_is_told() {
    let mut server = Program::start(&Setup::default()).await;
    let mut members = Vec::new();
    for over in Over::ALL {
        let mut member = Client::login(server.table(over.table()), over, over.table()).await;
        member.join("lobby").await;
        members.push(member);
    }
    for n in 0..20 {
        members[n % 3].say("lobby", &n.to_string()).await;
    }
    server.signal("TERM").await;
    for member in &mut members {
        member
            .events_until("the last message", |event| event["text"] == "19")
            .await;
        member.expect_bye("shutting_down").await;
    }
    assert_eq!(server.exit().await.code(), Some(0), "{:?}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_waits_is_not_ready_and_a_second_signal_ends_it() {
    let mut server = Program::start(&Setup::tables("[server]\nshutdown_grace = \"60s\"")).await;
    // A poller that does not poll is waited for as long as the grace allows.
    let _sloth = Sloth::join(server.table("poll"), Over::Polling, "sloth", "lobby").await;
    server.signal("TERM").await;
    eventually("not to be ready", async || {
        let health = Http::new(server.metrics())
            .ask(&Request::new("GET", "/readyz"))
            .await;
        (health.status == 503).then_some(())
    })
    .await;
    let login = Request::new("POST", "/v1/session").json(json!({"user": "late"}));
    let refused = Http::new(server.table("poll")).ask(&login).await;
    assert_eq!(refused.verdict(), "503 shutting_down");
    assert!(refused.header("retry-after").is_some());
    assert!(
        server.is_running(),
        "the poller has not had its bye: {:?}",
        server.log()
    );
    server.signal("TERM").await;
    let exit = server.exit().await;
    assert_ne!(exit.code(), Some(0), "this was no clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_grace_bounds_a_drain() {
    let mut server = Program::start(&Setup::tables("[server]\nshutdown_grace = \"500ms\"")).await;
    let _sloth = Sloth::join(server.table("poll"), Over::Polling, "sloth", "lobby").await;
    let begun = tokio::time::Instant::now();
    server.signal("INT").await;
    server.exit().await;
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "it took {:?}",
        begun.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_hold_no_secrets() {
    let server = Program::start(&Setup::passwords().log_level("debug")).await;
    let mut ids = Vec::new();
    for over in Over::ALL {
        let mut client = Client::connect(server.table(over.table()), over, "x").await;
        for password in ["hunter2-wrong", "wonderland"] {
            let login = json!({"type": "login", "user": "alice", "password": password});
            let answer = client.try_log_in(login).await;
            ids.extend(answer["session"].as_str().map(str::to_owned));
        }
        client.enter(over.table()).await;
        client.say(over.table(), "a private matter").await;
    }
    assert_eq!(ids.len(), 3);
    let log = server.log().join("\n");
    assert!(log.contains("DEBUG"), "it talks:\n{log}");
    for secret in
        ids.iter()
            .map(String::as_str)
            .chain(["hunter2", "wonderland", "a private matter"])
    {
        assert!(!log.contains(secret), "{secret} is in the log:\n{log}");
    }
}
