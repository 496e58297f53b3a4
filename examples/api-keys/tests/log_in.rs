//! The program as its users start it.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::fs;

use chinwag_conformance::{Client, Over, Program, eventually};
use serde_json::json;
use tokio::process::Command;

fn binary() -> Command {
    Command::new(env!("CARGO_BIN_EXE_api-keys"))
}

/// The example's configuration and keys in a folder of their own.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let document =
        include_str!("../chinwag.toml").replace("# check_every = \"1s\"", "check_every = \"10ms\"");
    fs::write(folder.path().join("chinwag.toml"), document).unwrap();
    fs::write(folder.path().join("keys.txt"), include_str!("../keys.txt")).unwrap();
    folder
}

#[tokio::test]
async fn a_broken_file_changes_nothing_and_is_told() {
    let folder = folder();
    let mut command = binary();
    command
        .args(["serve", "--config"])
        .arg(folder.path().join("chinwag.toml"))
        .env("CHINWAG_TRANSPORTS__LINE__BIND", "127.0.0.1:0");
    let program = Program::start(command, &["line"]).await;
    let addr = program.address("line").parse().unwrap();
    let login = json!({"type": "login", "token": "replace-this-by-32-random-bytes"});
    let mut alice = Client::connect(addr, Over::Tcp, "alice").await;
    assert_eq!(alice.log_in(login.clone()).await["user"], "alice");
    fs::write(
        folder.path().join("keys.txt"),
        "alice:replace-this-by-32-random-bytes",
    )
    .unwrap();
    eventually("the mistake to be logged", async || {
        let log = program.log().join("\n");
        assert!(!log.contains("replace-this"), "{log}");
        log.contains("64 hexadecimal digits").then_some(())
    })
    .await;
    alice.ping().await;
    let mut again = Client::connect(addr, Over::Tcp, "again").await;
    again.log_in(login).await;
    assert!(program.stop().await.success());
}

#[tokio::test]
async fn what_is_wrong_in_the_table_is_told_with_its_place() {
    for (from, to, says) in [
        (
            "\"keys.txt\"",
            "\"gone.txt\"",
            ":17:8: error: authenticators.api.file: can't read",
        ),
        ("\"10ms\"", "\"0s\"", "check_every: must be above zero"),
        ("check_every", "check_every_", "did you mean `check_every`?"),
    ] {
        let folder = folder();
        let file = folder.path().join("chinwag.toml");
        let document = fs::read_to_string(&file).unwrap();
        assert!(document.contains(from), "{from}");
        fs::write(&file, document.replace(from, to)).unwrap();
        let output = binary().arg("check").arg(&file).output().await.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{to}: {said}");
        assert!(said.contains(says), "{to}: {said}");
    }
}
