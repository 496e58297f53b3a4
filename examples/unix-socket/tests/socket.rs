//! The program as its users start it, and the file of its socket.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    fs,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt},
        net::UnixListener,
    },
    path::Path,
    process::Output,
};

use chinwag_conformance::{Client, Deployment, Link, PATIENCE, Program};
use serde_json::json;
use tokio::{net::UnixStream, time::timeout};

const PROGRAM: &str = env!("CARGO_BIN_EXE_unix-socket");

/// The example, with `lines` more in the table of the transport.
fn example(lines: &str) -> Deployment {
    let at = "path = \"chinwag.sock\"";
    Deployment::of(env!("CARGO_MANIFEST_DIR")).with(at, &format!("{at}\n{lines}"))
}

async fn start(example: &Deployment) -> Program {
    Program::start(example.serve(PROGRAM), &["local"]).await
}

/// Runs it where it can't start.
async fn fails(example: &Deployment) -> Output {
    let mut command = example.serve(PROGRAM);
    let output = command.kill_on_drop(true).output();
    timeout(PATIENCE, output).await.expect("it ends").unwrap()
}

async fn connect(path: &str, name: &str) -> Client {
    let stream = UnixStream::connect(path).await.unwrap();
    Client::on(Link::lines(stream), "local", name)
}

#[tokio::test]
async fn users_talk_and_a_stop_takes_the_file_away() {
    let example = example("mode = \"0640\"");
    let program = start(&example).await;
    let path = program.address("local").to_owned();
    assert_eq!(Path::new(&path), example.file("chinwag.sock"));
    let file = fs::metadata(&path).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o640);
    let mut members = Vec::new();
    for name in ["alice", "bob"] {
        let mut client = connect(&path, name).await;
        client.log_in(json!({"type": "login", "user": name})).await;
        client.enter("lobby").await;
        members.push(client);
    }
    let [alice, bob] = &mut members[..] else {
        unreachable!()
    };
    assert_eq!(alice.next_event().await["user"], "bob");
    alice.say("lobby", "hello").await;
    for member in [&mut *alice, bob] {
        assert_eq!(member.next_event().await["text"], "hello");
    }
    let (status, ()) = tokio::join!(program.stop(), async {
        for member in &mut members {
            member.expect_bye("shutting_down").await;
        }
    });
    assert!(status.success());
    assert!(!Path::new(&path).exists());
}

#[tokio::test]
async fn what_a_dead_server_left_is_replaced_and_nothing_else_is() {
    let example = example("");
    let path = example.file("chinwag.sock");
    // Dropped, a listener of the standard library leaves its file.
    let alive = UnixListener::bind(&path).unwrap();
    let refused = fails(&example).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(
        said.contains("transports.local: can't bind") && said.contains("in use"),
        "{said}"
    );
    let before = fs::metadata(&path).unwrap().ino();
    drop(alive);
    let program = start(&example).await;
    let file = fs::metadata(&path).unwrap();
    assert!(file.file_type().is_socket());
    let mut alice = connect(program.address("local"), "alice").await;
    alice
        .log_in(json!({"type": "login", "user": "alice"}))
        .await;
    // Another server's file in its place is not ours to take away.
    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    assert!(program.stop().await.success());
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious", "{before}");
    let refused = fails(&example).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("no socket"), "{said}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn only_the_named_users_of_the_system_may_connect() {
    let own = fs::metadata("/proc/self").unwrap().uid();
    let other = format!("uids = [{}]", own + 1);
    let example = example(&other);
    let program = start(&example).await;
    connect(program.address("local"), "me").await.gone().await;
    assert!(program.stop().await.success());
    let example = example.with(&other, &format!("uids = [{own}]"));
    let program = start(&example).await;
    let mut me = connect(program.address("local"), "me").await;
    me.log_in(json!({"type": "login", "user": "me"})).await;
    assert!(program.stop().await.success());
}

#[tokio::test]
async fn what_is_wrong_in_the_table_is_told_with_its_place() {
    for (lines, place, says) in [
        ("mode = \"rw\"", ":12:8:", "permissions in octal"),
        ("mode = \"7777\"", ":12:8:", "permissions in octal"),
        ("backlog = 0", ":12:11:", "at least 1"),
        ("bind = \"127.0.0.1:0\"", ":12:1:", "unknown key `bind`"),
        ("max_connections = 0", ":12:19:", "at least 1"),
        ("hosts = [\"a\"]", ":12:1:", "unknown key `hosts`"),
        ("uid = [1]", ":12:1:", "did you mean `uids`?"),
    ] {
        let said = example(lines).mistakes(PROGRAM).await;
        assert!(
            said.contains(says) && said.contains(place),
            "{lines}: {said}"
        );
    }
}
