//! What the README tells people to type works as it stands there.

use std::{path::Path, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

use crate::harness::{PROGRAM, Program, blocks, repository};

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_readme_work() {
    let root = repository("").canonicalize().unwrap();
    let server = Program::start_alone().await;
    let line = server.table("line").port().to_string();
    let moved = [
        ("127.0.0.1 4020", format!("127.0.0.1 {line}")),
        ("127.0.0.1:4020", format!("127.0.0.1:{line}")),
        ("127.0.0.1:8080", server.table("web").to_string()),
        ("127.0.0.1:9464", server.metrics().to_string()),
    ];
    let folders = [
        Path::new(PROGRAM).parent().unwrap().to_owned(),
        root.join("target/tools/bin"),
    ];
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{}:{path}", folders[0].display(), folders[1].display());
    let commands = blocks("README.md", "sh");
    assert!(commands.len() >= 10, "some are missing: {commands:?}");
    for block in commands {
        let script = moved
            .iter()
            .fold(block.clone(), |script, (from, to)| script.replace(from, to));
        let mut command = Command::new("bash");
        command
            .args(["-euo", "pipefail", "-c", &script])
            .current_dir(&root)
            .env("PATH", &path);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(Duration::from_secs(30), command.output()).await;
        let output = output
            .unwrap_or_else(|_| panic!("it does not end:\n{block}"))
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        let told = format!("{block}\n-> {}\n{said}\n{errors}", output.status);
        assert!(
            output.status.success(),
            "{told}\n(bash tests/run --install gets the tools)"
        );
        assert!(
            !said.is_empty() && !said.contains("\"type\":\"error\""),
            "{told}"
        );
        if block.contains("\"send\"") {
            assert!(said.contains("\"type\":\"sent\""), "{told}");
        }
    }
    server.stop().await;
}

#[test]
fn the_authenticator_of_the_readme_is_the_example_that_is_tested() {
    let example = std::fs::read_to_string(repository("examples/token-auth/src/main.rs"));
    assert_eq!(blocks("README.md", "rust"), [example.unwrap()]);
}
