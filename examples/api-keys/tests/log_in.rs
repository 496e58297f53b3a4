//! The program as its users start it.

use std::fs;

use chinwag_conformance::{Client, Deployment, Over, Program, eventually};
use serde_json::json;

const PROGRAM: &str = env!("CARGO_BIN_EXE_api-keys");

/// The example as it stands, which looks at its file more often.
fn example() -> Deployment {
    let often = "check_every = \"10ms\"";
    Deployment::of(env!("CARGO_MANIFEST_DIR")).with("# check_every = \"1s\"", often)
}

#[tokio::test]
async fn a_broken_file_changes_nothing_and_is_told() {
    let example = example();
    let mut command = example.serve(PROGRAM);
    command.env("CHINWAG_TRANSPORTS__LINE__BIND", "127.0.0.1:0");
    let program = Program::start(command, &["line"]).await;
    let addr = program.address("line").parse().unwrap();
    let login = json!({"type": "login", "token": "replace-this-by-32-random-bytes"});
    let mut alice = Client::connect(addr, Over::Tcp, "alice").await;
    assert_eq!(alice.log_in(login.clone()).await["user"], "alice");
    fs::write(
        example.file("keys.txt"),
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
        let said = example().with(from, to).mistakes(PROGRAM).await;
        assert!(said.contains(says), "{to}: {said}");
    }
}
