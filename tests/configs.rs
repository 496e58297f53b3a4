//! Every shape of deployment: the files in `configs/`, every subset of the kinds, listeners apart and shared.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData, SigningKey};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::{
    certificates::is_refused,
    harness::{
        Client, Http, Over, Program, Request, STAFF, Secure, Server, Setup, blocks, code,
        repository,
    },
};

/// Where the configurations that ask a back end say where it is.
const ENDPOINTS: &str = "CHINWAG_AUTHENTICATORS__BACKEND__ENDPOINTS";

/// The examples, in a folder of their own: some name files that are nobody's but the operator's.
struct Examples {
    folder: TempDir,
    files: Vec<PathBuf>,
}

impl Examples {
    /// With certificates, made as the examples say.
    async fn copy() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Vec::new();
        for entry in std::fs::read_dir(repository("configs")).expect("configs/ is there") {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                let copy = folder.path().join(entry.file_name());
                std::fs::copy(entry.path(), &copy).unwrap();
                files.push(copy);
            }
        }
        files.retain(|file| file.extension().is_some_and(|end| end == "toml"));
        files.sort();
        assert!(files.len() >= 10, "{files:?}");
        let certs = folder.path().join("certs");
        let (code, _, errors) = Program::run(&["cert", "dev", certs.to_str().unwrap()], "").await;
        assert_eq!(code, Some(0), "{errors}");
        Self { folder, files }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_passes_the_check() {
    for file in Examples::copy().await.files {
        let (code, said, errors) = Program::run(&["check", file.to_str().unwrap()], "").await;
        assert_eq!(code, Some(0), "{}: {said}{errors}", file.display());
        assert_eq!(errors, "", "{}", file.display());
    }
}

/// What `check` says of a document that stands in `folder`, and its exit code.
async fn check(folder: &Path, document: &str) -> (Option<i32>, String) {
    let file = folder.join("chinwag.toml");
    std::fs::write(&file, document).unwrap();
    let (code, _, errors) = Program::run(&["check", file.to_str().unwrap()], "").await;
    (code, errors)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_in_the_readme_passes_the_check() {
    let examples = Examples::copy().await;
    let documents = blocks("README.md", "toml");
    assert_eq!(documents.len(), 1);
    let checked = check(examples.folder.path(), &documents[0]).await;
    assert_eq!(checked, (Some(0), String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_wrong_with_the_tables_in_the_guides_but_that_they_are_parts() {
    /// What is said of a table that lacks the rest of its document, or the operator's files.
    const PARTS: [&str; 5] = [
        "no transport: ",
        "there is no table [tls.",
        "this listener asks for none",
        "No such file or directory",
        "is no file that may be executed",
    ];
    let folder = tempfile::tempdir().unwrap();
    for page in ["docs/auth.md", "docs/callouts.md", "docs/tls.md"] {
        for block in blocks(page, "toml") {
            // One key of a table that stands above it.
            let document = if block.starts_with('[') {
                block
            } else {
                format!("[session_managers.a]\nkind = \"exec\"\ncommand = [\"cat\"]\n{block}")
            };
            let wrong = async |document: &str| -> Vec<String> {
                let (_, errors) = check(folder.path(), document).await;
                let lines = errors.lines().filter(|line| line.contains(": error: "));
                let lines = lines.filter(|line| !PARTS.iter().any(|part| line.contains(part)));
                lines.map(str::to_owned).collect()
            };
            assert_eq!(wrong(&document).await, [""; 0], "{page}:\n{document}");
            let misspelt = format!("{document}\nno_such_key = 1\n");
            assert_eq!(wrong(&misspelt).await.len(), 1, "{page}:\n{misspelt}");
        }
    }
}

/// The folder of the back end that the examples ask.
fn http_auth() -> PathBuf {
    repository("examples/http-auth")
}

/// That back end, with these options, and where it listens.
async fn back_end(options: &[&str]) -> (Child, String) {
    let mut child = Command::new("./auth.py")
        .args(["--port", "0"])
        .args(options)
        .arg("users.json")
        .current_dir(http_auth())
        .stderr(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("python3 is installed");
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).await.unwrap();
    let address = line
        .trim()
        .strip_prefix("listening on ")
        .expect("an address");
    (child, format!("http://{address}/"))
}

/// A set of one key, and a token that it has signed.
fn token() -> (Value, String) {
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let set = json!({"keys": [{
        "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "x": URL_SAFE_NO_PAD.encode(key.der_bytes()),
    }]});
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    let claims = json!({
        "iss": "https://id.example.org/", "aud": "chat", "exp": now + 600,
        "preferred_username": "alice", "realm_access": {"roles": ["staff"]},
    });
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(json!({"alg": "EdDSA"})), part(claims));
    let signature = key.sign(message.as_bytes()).unwrap();
    (
        set,
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn every_example_binds_and_lets_its_users_in() {
    let examples = Examples::copy().await;
    let certs = examples.folder.path().join("certs");
    let (_back_end, endpoint) = back_end(&[]).await;
    let (keys, token) = token();
    let jwks = examples.folder.path().join("jwks.json");
    std::fs::write(&jwks, keys.to_string()).unwrap();
    let elsewhere = [
        (ENDPOINTS, endpoint),
        (
            "CHINWAG_AUTHENTICATORS__TOKENS__JWKS",
            jwks.to_str().unwrap().to_owned(),
        ),
    ];
    let mut pages = 0;
    for file in &examples.files {
        let document = std::fs::read_to_string(file).unwrap();
        let named = |table: &str| document.lines().any(|line| line.starts_with(table));
        let mut variables = elsewhere.to_vec();
        variables.retain(|(name, _)| {
            let table = name.split("__").nth(1).unwrap().to_lowercase();
            named(&format!("[authenticators.{table}]"))
        });
        let server = Program::start_file_with(file, &variables).await;
        let secure = named("[tls.").then(|| Secure::of_files(&certs, "alice"));
        let (login, user) = if named("kind = \"certificate\"") {
            (json!({"type": "login"}), "alice@example.org")
        } else if named("kind = \"jwt\"") {
            (json!({"type": "login", "token": token}), "alice")
        } else {
            let login = json!({"type": "login", "user": "alice", "password": "wonderland"});
            (login, "alice")
        };
        if named("[web]") {
            let mut http = match &secure {
                Some(secure) => secure.http(server.table("web")),
                None => Http::new(server.table("web")),
            };
            let page = http.ask(&Request::new("GET", "/")).await;
            assert_eq!(page.status, 200, "{}", file.display());
            pages += 1;
        }
        for over in Over::ALL {
            // Behind a proxy there has to be one.
            if named("client_address") || !named(&format!("[transports.{}]", over.table())) {
                continue;
            }
            let mut client = match &secure {
                Some(secure) => secure.connect(&server, over, "alice").await,
                None => Client::connect(server.table(over.table()), over, "alice").await,
            };
            let session = client.log_in(login.clone()).await;
            assert_eq!(session["user"], user, "{}, {over:?}", file.display());
            let bye = client.command(json!({"type": "logout"})).await;
            assert_eq!(code(&bye), "logout");
            if named("kind = \"certificate\"") {
                let bob = Secure::of_files(&certs, "bob");
                assert!(is_refused(&server, over, &bob).await, "bob, {over:?}");
            }
        }
        server.stop().await;
    }
    assert!(pages >= 5, "only {pages} examples have the page");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_back_end_in_python_is_asked_as_its_own_configuration_says() {
    let config = http_auth().join("chinwag.toml");
    let (_back_end, endpoint) = back_end(&["--bearer-file", "bearer.txt"]).await;
    let server = Program::start_file_with(&config, &[(ENDPOINTS, endpoint)]).await;
    let attempt = async |server: &Program, user: &str, password: &str| {
        let mut client = Client::connect(server.table("line"), Over::Tcp, user).await;
        let login = json!({"type": "login", "user": user, "password": password});
        let answer = client.patient().try_log_in(login).await;
        (client, answer)
    };
    let (mut alice, session) = attempt(&server, "alice", "wonderland").await;
    assert_eq!(session["user"], "alice", "{session}");
    alice.enter("lobby").await;
    let (mut bob, session) = attempt(&server, "bob", "can we fix it").await;
    assert_eq!(session["user"], "bob", "{session}");
    bob.enter("team:1").await;
    let join = json!({"type": "join", "room": "elsewhere"});
    assert_eq!(code(&bob.command(join).await), "forbidden");
    for (user, password, words) in [
        ("alice", "can we fix it", ""),
        ("nobody", "wonderland", ""),
        ("mallory", "let me in", "suspended"),
    ] {
        let (_, refused) = attempt(&server, user, password).await;
        assert_eq!(code(&refused), "auth_failed", "{user}: {refused}");
        let message = refused["message"].as_str().unwrap();
        assert!(message.contains(words), "{user}: {message}");
    }
    server.stop().await;

    // One that waits for another bearer has no answer for this server, and nobody gets in.
    let other = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(other.path(), "a-secret-of-two-others").unwrap();
    let bearer = ["--bearer-file", other.path().to_str().unwrap()];
    let (_stranger, endpoint) = back_end(&bearer).await;
    let server = Program::start_file_with(&config, &[(ENDPOINTS, endpoint)]).await;
    let (_, refused) = attempt(&server, "alice", "wonderland").await;
    assert_eq!(code(&refused), "unavailable", "{refused}");
    server.stop().await;
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
