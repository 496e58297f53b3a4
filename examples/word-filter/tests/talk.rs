//! The example runs as it stands, and two rooms treat the same word in two ways.

use chinwag_conformance::{Client, Deployment, Over, Program, code};
use serde_json::json;

const PROGRAM: &str = env!("CARGO_BIN_EXE_word-filter");

fn example() -> Deployment {
    Deployment::of(env!("CARGO_MANIFEST_DIR"))
}

#[tokio::test]
async fn a_word_is_masked_in_one_room_and_refused_in_another() {
    let example = example();
    let mut command = example.serve(PROGRAM);
    command.env("CHINWAG_TRANSPORTS__LINE__BIND", "127.0.0.1:0");
    let program = Program::start(command, &["line"]).await;
    let addr = program.address("line").parse().unwrap();
    let mut alice = Client::login(addr, Over::Tcp, "alice").await;
    for room in ["lobby", "quiet"] {
        alice.enter(room).await;
    }
    for (said, heard) in [
        ("Darn it, heck!", "**** it, ****!"),
        ("darning and blasts", "darning and blasts"),
        ("BLAST", "*****"),
    ] {
        alice.say("lobby", said).await;
        assert_eq!(alice.next_event().await["text"], heard);
    }
    let refused = json!({"type": "send", "room": "quiet", "text": "darn"});
    let refused = alice.command(refused).await;
    assert_eq!(code(&refused), "message_rejected");
    assert_eq!(refused["message"], "That is not said in quiet.");
    alice.say("quiet", "heck").await;
    assert_eq!(alice.next_event().await["text"], "heck");
    assert!(program.stop().await.success());
}

#[tokio::test]
async fn what_is_wrong_in_the_table_is_told_with_its_place() {
    for (from, to, says) in [
        (
            "also = [\"heck\"]",
            "also_ = [\"heck\"]",
            "did you mean `also`?",
        ),
        (
            "also = [\"heck\"]",
            "also = [\"oh my\"]",
            "\"oh my\" is no word",
        ),
        (
            "also = [\"heck\"]",
            "mask = \"…\"",
            "one visible ASCII character",
        ),
        ("\"refuse\"", "\"scold\"", "scold"),
        ("\"words.txt\"", "\"gone.txt\"", "can't read"),
    ] {
        let said = example().with(from, to).mistakes(PROGRAM).await;
        assert!(said.contains(says), "{to}: {said}");
        assert!(said.contains("chinwag.toml:"), "no place: {said}");
    }
}
