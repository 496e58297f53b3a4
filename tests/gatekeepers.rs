//! What the conformance kit asks of a third party's authenticator, asked of those that chinwag has.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use chinwag_conformance::{Gatekeeper, Login, STAFF};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

fn staff() -> Vec<Login> {
    let login = |(user, password, _)| Login::new(user, credentials(user, password));
    STAFF.map(login).to_vec()
}

fn credentials(user: &str, password: &str) -> Value {
    json!({"user": user, "password": password})
}

/// `password`, with the file that the kit's servers have in their folder.
struct Passwords;

#[async_trait]
impl Gatekeeper for Passwords {
    fn keys(&self, _: &Path) -> String {
        "kind = \"password\"\nfile = \"users.txt\"".into()
    }

    fn good(&self) -> Vec<Login> {
        staff()
    }

    fn bad(&self) -> Vec<Value> {
        vec![
            credentials("alice", "looking-glass"),
            credentials("mallory", "wonderland"),
        ]
    }

    async fn take_out(&self, folder: &Path, login: &Login) -> bool {
        let file = folder.join("users.txt");
        let users = std::fs::read_to_string(&file).unwrap();
        let stays = |line: &&str| !line.starts_with(&format!("{}:", login.user));
        let rest: Vec<&str> = users.lines().filter(stays).collect();
        std::fs::write(file, rest.join("\n")).unwrap();
        true
    }
}

mod password {
    use super::Passwords;
    chinwag_conformance::authenticator!(Passwords);
}

/// `http`, with a back end that may be out of reach.
#[derive(Default)]
struct Asked {
    is_down: Arc<AtomicBool>,
    work: Mutex<JoinSet<()>>,
}

#[async_trait]
impl Gatekeeper for Asked {
    fn keys(&self, _: &Path) -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let is_down = Arc::clone(&self.is_down);
        self.work.lock().unwrap().spawn(async move {
            let mut calls = JoinSet::new();
            while let Ok((call, _)) = listener.accept().await {
                calls.spawn(answer(call, Arc::clone(&is_down)));
            }
        });
        format!("kind = \"http\"\nendpoints = [\"http://{address}/\"]\ncall_timeout = \"4s\"")
    }

    fn good(&self) -> Vec<Login> {
        staff()
    }

    fn bad(&self) -> Vec<Value> {
        vec![credentials("alice", "looking-glass")]
    }

    async fn break_down(&self, _: &Path) -> bool {
        self.is_down.store(true, Ordering::Relaxed);
        true
    }

    async fn mend(&self, _: &Path) {
        self.is_down.store(false, Ordering::Relaxed);
    }
}

/// Answers the questions of one connection, until it is told to be down.
async fn answer(call: TcpStream, is_down: Arc<AtomicBool>) {
    let mut call = BufReader::new(call);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if !matches!(call.read_line(&mut line).await, Ok(1..)) {
                return;
            }
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        let mut question = vec![0; length];
        if call.read_exact(&mut question).await.is_err() || is_down.load(Ordering::Relaxed) {
            return;
        }
        let question: Value = serde_json::from_slice(&question).unwrap();
        let offered = (&question["user"], &question["password"]);
        let is_right = STAFF
            .iter()
            .any(|(user, password, _)| (&json!(user), &json!(password)) == offered);
        let verdict = if is_right { "allow" } else { "deny" };
        let verdict = json!({ "verdict": verdict }).to_string();
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length:";
        let answer = format!("{head} {}\r\n\r\n{verdict}", verdict.len());
        if call.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

mod http {
    use super::Asked;
    chinwag_conformance::authenticator!(Asked::default());
}
