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

use chinwag_conformance::{Client, Link, PATIENCE, Program};
use serde_json::json;
use tempfile::TempDir;
use tokio::{net::UnixStream, process::Command, time::timeout};

const DOCUMENT: &str = include_str!("../chinwag.toml");

/// A folder with the example's configuration, with `lines` more in the table of the transport.
fn folder(lines: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = "path = \"chinwag.sock\"";
    assert!(DOCUMENT.contains(at));
    let document = DOCUMENT.replace(at, &format!("{at}\n{lines}"));
    fs::write(folder.path().join("chinwag.toml"), document).unwrap();
    folder
}

fn command(action: &[&str], folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unix-socket"));
    command.args(action).arg(folder.join("chinwag.toml"));
    command
}

async fn start(folder: &Path) -> Program {
    Program::start(command(&["serve", "--config"], folder), &["local"]).await
}

/// Runs it where it can't start.
async fn fails(folder: &Path) -> Output {
    let mut command = command(&["serve", "--config"], folder);
    let output = command.kill_on_drop(true).output();
    timeout(PATIENCE, output).await.expect("it ends").unwrap()
}

async fn connect(path: &str, name: &str) -> Client {
    let stream = UnixStream::connect(path).await.unwrap();
    Client::on(Link::lines(stream), "local", name)
}

#[tokio::test]
async fn users_talk_and_a_stop_takes_the_file_away() {
    let folder = folder("mode = \"0640\"");
    let program = start(folder.path()).await;
    let path = program.address("local").to_owned();
    assert_eq!(Path::new(&path), folder.path().join("chinwag.sock"));
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
    let folder = folder("");
    let path = folder.path().join("chinwag.sock");
    // Dropped, a listener of the standard library leaves its file.
    let alive = UnixListener::bind(&path).unwrap();
    let refused = fails(folder.path()).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(
        said.contains("transports.local: can't bind") && said.contains("in use"),
        "{said}"
    );
    let before = fs::metadata(&path).unwrap().ino();
    drop(alive);
    let program = start(folder.path()).await;
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
    let refused = fails(folder.path()).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("no socket"), "{said}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[tokio::test]
async fn only_the_named_users_of_the_system_may_connect() {
    let own = fs::metadata("/proc/self").unwrap().uid();
    let folder = folder(&format!("uids = [{}]", own + 1));
    let program = start(folder.path()).await;
    connect(program.address("local"), "me").await.gone().await;
    assert!(program.stop().await.success());
    let document = folder.path().join("chinwag.toml");
    let text = fs::read_to_string(&document).unwrap();
    fs::write(
        &document,
        text.replace(&format!("[{}]", own + 1), &format!("[{own}]")),
    )
    .unwrap();
    let program = start(folder.path()).await;
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
        let folder = folder(lines);
        let output = command(&["check"], folder.path()).output().await.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{lines}: {said}");
        assert!(
            said.contains(says) && said.contains(place),
            "{lines}: {said}"
        );
    }
}
