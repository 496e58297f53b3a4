//! The example runs as it stands, and lets in who brings a token.

use chinwag_conformance::{Client, Deployment, Over, Program, code};
use serde_json::json;

#[tokio::test]
async fn a_token_gets_its_user_in_and_nothing_else_does() {
    let example = Deployment::of(env!("CARGO_MANIFEST_DIR"));
    let mut command = example.serve(env!("CARGO_BIN_EXE_token-auth"));
    command
        .env("CHINWAG_TRANSPORTS__LINE__BIND", "127.0.0.1:0")
        .env("CHINWAG_TRANSPORTS__POLL__BIND", "127.0.0.1:0");
    let program = Program::start(command, &["line", "poll"]).await;
    for (transport, over) in [("line", Over::Tcp), ("poll", Over::Polling)] {
        let addr = program.address(transport).parse().unwrap();
        let mut client = Client::connect(addr, over, "somebody").await;
        for login in [
            json!({"token": "replace-this-by-32-random-bytez"}),
            json!({"user": "alice", "password": "replace-this-by-32-random-bytes"}),
            json!({"user": "alice"}),
        ] {
            let mut login = login;
            login["type"] = "login".into();
            assert_eq!(code(&client.try_log_in(login).await), "auth_failed");
        }
        let login = json!({"type": "login", "token": "replace-this-by-32-random-bytes"});
        assert_eq!(client.log_in(login).await["user"], "alice");
        let bye = client.command(json!({"type": "logout"})).await;
        assert_eq!(code(&bye), "logout");
    }
    assert!(program.stop().await.success());
}
