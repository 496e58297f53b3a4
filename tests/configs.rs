//! Every shape of deployment: the files in `configs/`, every subset of the kinds, listeners apart and shared.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::harness::{Client, Http, Over, Program, Request, STAFF, Server, Setup, code};

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs");
    let files = std::fs::read_dir(folder)
        .expect("configs/ is there")
        .map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files
        .filter(|file| file.extension().is_some_and(|end| end == "toml"))
        .collect();
    files.sort();
    assert!(files.len() >= 6, "{files:?}");
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_passes_the_check() {
    for file in files() {
        let (code, said, errors) = Program::run(&["check", file.to_str().unwrap()], "").await;
        assert_eq!(code, Some(0), "{}: {said}{errors}", file.display());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_binds_and_lets_its_users_in() {
    let mut pages = 0;
    for file in files() {
        let document = std::fs::read_to_string(&file).unwrap();
        let server = Program::start_file(&file).await;
        // Behind a proxy there has to be one.
        let direct = !document.contains("client_address");
        if document.contains("[web]") {
            let page = Http::new(server.table("web"))
                .ask(&Request::new("GET", "/"))
                .await;
            assert_eq!(page.status, 200, "{}", file.display());
            pages += 1;
        }
        for over in Over::ALL {
            let table = format!("[transports.{}]", over.table());
            if direct && document.contains(&table) {
                let mut client = Client::connect(server.table(over.table()), over, "alice").await;
                let login = json!({"type": "login", "user": "alice", "password": "wonderland"});
                let session = client.log_in(login).await;
                assert_eq!(session["user"], "alice", "{}", file.display());
                let bye = client.command(json!({"type": "logout"})).await;
                assert_eq!(code(&bye), "logout");
            }
        }
        server.stop().await;
    }
    assert!(pages >= 3, "only {pages} examples have the page");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_subset_of_the_kinds_serves() {
    for subset in 1..8 {
        let kinds: Vec<Over> = Over::ALL
            .into_iter()
            .enumerate()
            .filter(|(n, _)| subset & (1 << n) != 0)
            .map(|(_, over)| over)
            .collect();
        let server = Setup::default().only(&kinds).start().await;
        let mut members = Vec::new();
        for over in &kinds {
            let mut member = Client::login(server.addr(*over), *over, over.table()).await;
            member.join("lobby").await;
            members.push(member);
        }
        members[0].say("lobby", "hello").await;
        for member in &mut members {
            member
                .events_until("the message", |event| event["text"] == "hello")
                .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_a_kind_may_let_in_different_people() {
    for over in Over::ALL {
        let (kind, setup) = (over.kind(), Setup::passwords_and_guests());
        let two = format!(
            "[transports.members]\nkind = \"{kind}\"\nbind = \"127.0.0.5:0\"\nauth = [\"staff\"]\n\
             [transports.visitors]\nkind = \"{kind}\"\nbind = \"127.0.0.6:0\"\nauth = [\"guests\"]\n\
             [transports.nobody]\nkind = \"{kind}\"\nbind = \"127.0.0.7:0\"\n"
        );
        let server = setup.and(&two).start().await;
        let (user, password, _) = STAFF[0];
        let login = json!({"type": "login", "user": user, "password": password});
        let mut alice = Client::connect(server.table("members"), over, "alice").await;
        assert_eq!(alice.log_in(login.clone()).await["user"], user);
        let guest = json!({"type": "login", "user": "eve"});
        let mut eve = Client::connect(server.table("visitors"), over, "eve").await;
        assert_eq!(eve.log_in(guest.clone()).await["user"], "~eve");
        let mut wrong = Client::connect(server.table("members"), over, "wrong").await;
        assert_eq!(code(&wrong.try_log_in(guest.clone()).await), "auth_failed");
        // A transport that names no authenticator lets nobody in.
        let mut nobody = Client::connect(server.table("nobody"), over, "nobody").await;
        assert_eq!(code(&nobody.try_log_in(guest).await), "auth_failed");
        assert_eq!(code(&nobody.try_log_in(login).await), "auth_failed");
        // They meet in the same rooms all the same.
        alice.enter("lobby").await;
        eve.enter("lobby").await;
        assert_eq!(alice.next_event().await["user"], "~eve");
        // A session's id is of use on its own transport's authenticators alone.
        if over == Over::Polling {
            let id = eve.session_id().to_owned();
            let poll = Request::new("GET", "/v1/events").bearer(&id);
            let answer = Http::new(server.table("members")).ask(&poll).await;
            assert_eq!(answer.status, 401, "{}", answer.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn websocket_and_polling_may_share_a_port() {
    let table = |name: &str, kind: &str, more: &str| {
        format!(
            "[transports.{name}]\nkind = \"{kind}\"\nbind = \"127.0.0.1:0\"\nauth = [\"guests\"]\n{more}\n"
        )
    };
    let document = table("web", "websocket", "")
        + &table("other", "websocket", "path = \"/other\"")
        + &table("poll", "http-polling", "poll_pace = \"10ms\"")
        + "[authenticators.guests]\nkind = \"anonymous\"\n";
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(chinwag::Plugins::builtin(), &document, folder).await;
    assert_eq!(server.table("web"), server.table("poll"));
    assert_eq!(server.table("web"), server.table("other"));
    let mut alice = Client::login(server.table("web"), Over::WebSocket, "alice").await;
    let mut bob = Client::login(server.table("web"), Over::Polling, "bob").await;
    alice.enter("lobby").await;
    bob.enter("lobby").await;
    alice.next_event().await;
    alice.say("lobby", "one port").await;
    assert_eq!(bob.next_event().await["text"], "one port");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_transport_can_t_share_a_port() {
    let table = |name: &str, kind: &str| {
        format!(
            "[transports.{name}]\nkind = \"{kind}\"\nbind = \"127.0.0.1:4999\"\nauth = [\"guests\"]\n"
        )
    };
    let guests = "[authenticators.guests]\nkind = \"anonymous\"\n";
    let document = table("line", "tcp") + &table("web", "websocket") + guests;
    let folder = tempfile::tempdir().unwrap();
    let started =
        chinwag::Server::start(chinwag::Plugins::builtin(), &document, folder.path()).await;
    let error = started.expect_err("it is refused").to_string();
    assert!(
        error.contains("line") && error.contains("web") && error.contains("bind"),
        "{error}"
    );
}
