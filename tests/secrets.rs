//! No secret comes out: not in a log at its most talkative, not in an error, not in a metric, not in what the program
//! prints. The test plants some everywhere and looks for them.

use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{
    Addresses, Client, Http, Over, Program, Request, STAFF, Setup, eventually, scrape,
};

const WRONG: &str = "planted-wrong-password";
const ECHOED: &str = "planted \"echoed\" \\ password";
const BEARER: &str = "planted-bearer-of-the-server";
const KEY: &str = "planted-key-that-tokens-are-signed-with";
const OPAQUE: &str = "planted-opaque-token";
const MESSAGE: &str = "planted private matter";

/// A program and a server that repeat what they are told wherever they can: in their reason, in place of an answer, and
/// on standard error.
const ECHO: &str = r#"
import json, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer

def judge(question, line):
    user = question.get("user") or ""
    told = str(question.get("password")) + str(question.get("token"))
    if user.startswith("reason"):
        return {"verdict": "deny", "reason": "no: " + told, "public": told[:100]}
    if user.startswith("raw"):
        return question
    return {"verdict": "abstain"}

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        line = self.rfile.read(int(self.headers["Content-Length"]))
        question = json.loads(line)
        body = json.dumps(judge(question, line)).encode()
        failed = (question.get("user") or "").startswith("fail")
        self.send_response(500 if failed else 200, self.headers["Authorization"])
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Echo", self.headers["Authorization"])
        self.end_headers()
        self.wfile.write(line if failed else body)
    def log_message(self, *_):
        pass

if len(sys.argv) > 1:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
for line in sys.stdin:
    question = json.loads(line)
    print("asked: " + line, file=sys.stderr, flush=True)
    print(json.dumps({"id": question["id"], **judge(question, line)}), flush=True)
"#;

/// Everything that must not come out.
fn secrets(token: &str) -> Vec<String> {
    let mut all: Vec<String> = [WRONG, BEARER, KEY, OPAQUE, MESSAGE, STAFF[0].1, token]
        .map(str::to_owned)
        .into();
    // As it is, as JSON writes it, and its first part alone.
    all.extend([
        ECHOED.to_owned(),
        json!(ECHOED).to_string(),
        "planted \\\"echo".into(),
    ]);
    all.push(ECHOED.split('"').next().unwrap().trim().to_owned() + " \"");
    let parts = token.split('.').map(str::to_owned);
    // The head says how it is signed, and is no secret.
    all.extend(parts.skip(1));
    for (user, password) in [
        (STAFF[0].0, STAFF[0].1),
        (STAFF[0].0, WRONG),
        ("reason", ECHOED),
    ] {
        all.push(BASE64_STANDARD.encode(format!("{user}:{password}")));
    }
    all
}

/// Fails where `text` has one of `secrets`.
fn holds_none(secrets: &[String], what: &str, text: &str) {
    for secret in secrets {
        let lines = text.lines().filter(|line| line.contains(secret.as_str()));
        let lines: Vec<&str> = lines.collect();
        assert!(
            lines.is_empty(),
            "{what} has {secret:?}:\n{}",
            lines.join("\n")
        );
    }
}

struct EchoServer {
    _child: tokio::process::Child,
    port: u16,
}

impl EchoServer {
    async fn start() -> Self {
        use tokio::io::AsyncBufReadExt;
        let mut command = tokio::process::Command::new("python3");
        command.args(["-c", ECHO, "serve"]).kill_on_drop(true);
        let mut child = command
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let mut output = tokio::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).await.unwrap();
        Self {
            _child: child,
            port: line.trim().parse().expect("it tells its port"),
        }
    }
}

fn document(port: u16) -> String {
    format!(
        "[authenticators.tokens]\nkind = \"jwt\"\nalgorithms = [\"HS256\"]\nkey = \"users.txt.key\"\n\
         [authenticators.backend]\nkind = \"http\"\nendpoints = [\"http://127.0.0.1:{port}/\"]\nbearer = \"{BEARER}\"\n\
         shadow = \"program\"\n\
         [authenticators.program]\nkind = \"exec\"\ncommand = [\"python3\", \"-c\", '''{ECHO}''']\n\
         [limits]\nlogin_failures_per_ip = \"unlimited\"\nlogin_failures_per_name = \"unlimited\"\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_a_log_an_error_or_a_metric() {
    let back_end = EchoServer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, KEY).unwrap();
    let tables = document(back_end.port).replace("users.txt.key", key.to_str().unwrap());
    let setup = Setup::passwords()
        .and(&tables)
        .log_level("trace")
        .on(Over::Polling, "session_id = [\"header\", \"url\"]");
    let chain: Vec<String> = Over::ALL
        .map(|over| {
            let table = over.table().to_uppercase();
            format!("export CHINWAG_TRANSPORTS__{table}__AUTH=staff,tokens,backend,program")
        })
        .into();
    let server = Program::start_in_shell(&setup, &chain.join("\n")).await;
    let claims = json!({"sub": "carla", "exp": 4_000_000_000_u64, "iss": "planted-issuer"});
    let signed = |key: &str| {
        let key = EncodingKey::from_secret(key.as_bytes());
        encode(&Header::default(), &claims, &key).unwrap()
    };
    let token = signed(KEY);
    let secrets_of_all = secrets(&token);

    let mut ids: Vec<String> = Vec::new();
    let mut told: Vec<Value> = Vec::new();
    let (user, password, _) = STAFF[0];
    for over in Over::ALL {
        let mut kept = Vec::new();
        for login in [
            json!({"user": user, "password": WRONG}),
            json!({"user": user, "password": password}),
            json!({"user": "reason", "password": ECHOED}),
            json!({"user": "raw", "password": ECHOED}),
            json!({"user": "fail", "password": ECHOED}),
            json!({"user": "nobody", "password": WRONG}),
            json!({"token": token}),
            json!({"token": signed("another key, which is long enough too")}),
            json!({"token": OPAQUE}),
            json!({"user": user, "token": OPAQUE}),
            json!({"user": user, "password": {"deep": WRONG}}),
            json!({"resume": OPAQUE}),
        ] {
            let mut login = login;
            login["type"] = "login".into();
            let mut client = Client::connect(server.of(over), over, "x").await;
            let answer = client.try_log_in(login).await;
            if let Some(id) = answer["session"].as_str() {
                ids.push(id.to_owned());
                client.enter(over.table()).await;
                client.say(over.table(), MESSAGE).await;
                told.push(
                    client
                        .command(json!({"type": "leave", "room": MESSAGE}))
                        .await,
                );
                kept.push(client);
            } else {
                told.push(answer);
            }
        }
    }
    assert_eq!(ids.len(), 6, "a password and a token on each");
    for answer in &told {
        // The room's name, which is none, is no secret of anybody's.
        let answer = answer.to_string();
        holds_none(&secrets_of_all, "an answer", &answer);
    }

    // In headers, and an id in a URL.
    let basic = |user: &str, password: &str| {
        format!(
            "Basic {}",
            BASE64_STANDARD.encode(format!("{user}:{password}"))
        )
    };
    for header in [
        basic(user, password),
        basic(user, WRONG),
        basic("reason", ECHOED),
        format!("Bearer {token}"),
        format!("Bearer {OPAQUE}"),
    ] {
        let login = Request::new("POST", "/v1/session").header("Authorization", &header);
        let mut http = Http::new(server.of(Over::Polling));
        let answer = http.ask(&login.json("{}")).await;
        if answer.status == 201 {
            let id = answer.json()["session"].as_str().unwrap().to_owned();
            let target = format!("/v1/events?session={id}&ack=0");
            let events = http.ask(&Request::new("GET", &target)).await;
            assert_eq!(events.status, 200, "{}", events.text());
            ids.push(id);
        } else {
            holds_none(&secrets_of_all, "an answer", &answer.text());
        }
        let upgrade = Request::new("GET", "/v1/ws")
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("Authorization", &header);
        let mut stream = tokio::net::TcpStream::connect(server.of(Over::WebSocket))
            .await
            .unwrap();
        stream.write_all(&upgrade.bytes()).await.unwrap();
        let mut head = vec![0; 2048];
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut head));
        let count = read.await.expect("an answer").unwrap();
        let head = String::from_utf8_lossy(&head[..count]).into_owned();
        holds_none(&secrets_of_all, "an answer to an upgrade", &head);
    }
    assert!(ids.len() >= 8, "{}", ids.len());

    // What the program wrote on standard error has come through, less what it must not say.
    eventually("the program's words in the log", async || {
        let log = server.log();
        log.iter()
            .any(|line| line.contains("left out"))
            .then_some(())
    })
    .await;
    let mut all = secrets_of_all.clone();
    all.extend(ids.clone());
    let metrics = scrape(server.metrics()).await;
    holds_none(&all, "a metric", &metrics);
    assert!(
        metrics.contains("chinwag_shadow_verdicts_total"),
        "{metrics}"
    );
    let ready = Http::new(server.metrics())
        .ask(&Request::new("GET", "/readyz"))
        .await;
    holds_none(&all, "readiness", &ready.text());
    let log = server.log().join("\n");
    assert!(log.contains("TRACE") && log.contains("DEBUG"), "it talks");
    holds_none(&all, "the log", &log);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_program_prints_of_a_file_or_a_log_in_has_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("chinwag.toml");
    let path = file.to_str().unwrap();
    let transport =
        "[transports.line]\nkind = \"tcp\"\nbind = \"127.0.0.1:0\"\nauth = [\"backend\"]\n";
    let all = secrets("a.b.c");
    let all: Vec<String> = all.into_iter().filter(|it| it.len() > 3).collect();
    for wrong in [
        format!("bearer = {{ it = \"{BEARER}\" }}"),
        format!("bearer = \"{BEARER}"),
        format!("baerer = \"{BEARER}\""),
        format!("bearer = \"{BEARER}\"\nbearer_file = \"{OPAQUE}\""),
    ] {
        let table =
            "[authenticators.backend]\nkind = \"http\"\nendpoints = [\"http://127.0.0.1:1/\"]";
        std::fs::write(&file, format!("{transport}{table}\n{wrong}\n")).unwrap();
        for arguments in [
            &["check", path][..],
            &["serve", "--config", path],
            &["auth", "test", "--config", path, "-t", "line", "-u", "x"],
        ] {
            let (code, out, err) = Program::run(arguments, "x\n").await;
            assert_eq!(code, Some(1), "{arguments:?}: {out}{err}");
            holds_none(&all, &format!("{arguments:?}"), &format!("{out}{err}"));
        }
    }
    let back_end = EchoServer::start().await;
    let table = format!(
        "[authenticators.backend]\nkind = \"http\"\nendpoints = [\"http://127.0.0.1:{}/\"]\nbearer = \"{BEARER}\"\n\
         [log]\nlevel = \"trace\"\n",
        back_end.port
    );
    std::fs::write(&file, format!("{transport}{table}")).unwrap();
    for (user, expected) in [("reason", 3), ("raw", 5), ("fail", 5)] {
        for json in [None, Some("--json")] {
            let mut arguments = vec!["auth", "test", "--config", path, "-t", "line", "-u", user];
            arguments.extend(json);
            let (code, out, err) = Program::run(&arguments, &format!("{ECHOED}\n")).await;
            assert_eq!(code, Some(expected), "{out}{err}");
            holds_none(&all, &format!("{arguments:?}"), &format!("{out}{err}"));
        }
    }
    let (_, out, err) = Program::run(&["auth", "test", "-t", "line", "--token", OPAQUE], "").await;
    holds_none(&all, "a complaint", &format!("{out}{err}"));
}
