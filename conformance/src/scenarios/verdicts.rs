//! What holds for every authenticator: told from outside, as a client has it.

use std::{
    io,
    sync::{Arc, Mutex, OnceLock},
};

use futures_util::future::join_all;
use serde_json::Value;
use tempfile::TempDir;
use tracing_subscriber::fmt::MakeWriter;

use crate::{Client, Gatekeeper, Http, Login, Over, Request, Server, Setup, code};

/// Nothing slows down those who fail on purpose, and one user may come in many times.
const GENEROUS: &str = r#"
[server]
shutdown_grace = "2s"
[limits]
login_failures_per_ip = "unlimited"
login_failures_per_name = "unlimited"
connects_per_ip = "unlimited"
[sessions]
duplicate_login = { allow = 100 }
login_attempts = 100
"#;

/// A server to be that asks `gatekeeper` alone, or before it lets in guests, and its folder.
pub(super) fn arrange(gatekeeper: &dyn Gatekeeper, guests: bool) -> (Setup, TempDir) {
    let setup = Setup::default().and(GENEROUS);
    let folder = setup.folder();
    let keys = gatekeeper.keys(folder.path());
    let setup = if guests {
        setup.for_users_of_and_guests(&keys)
    } else {
        setup.for_users_of(&keys)
    };
    (setup.plugins(|plugins| gatekeeper.plugins(plugins)), folder)
}

/// The server.
pub(super) async fn start(gatekeeper: &dyn Gatekeeper, guests: bool) -> Server {
    let (setup, folder) = arrange(gatekeeper, guests);
    setup.start_in(folder).await
}

/// Sends `login` over a connection of its own; the client with the answer.
pub(super) async fn try_login(server: &Server, over: Over, login: &Value) -> (Client, Value) {
    let mut client = server.connect(over.table(), "somebody").await;
    let answer = client.try_log_in(with_type(login)).await;
    (client, answer)
}

fn with_type(login: &Value) -> Value {
    let mut login = login.clone();
    login["type"] = "login".into();
    login
}

/// `login` gets its user in.
pub(super) async fn gets_in(server: &Server, over: Over, login: &Login) -> Client {
    let (client, answer) = try_login(server, over, &login.fields).await;
    assert_eq!(answer["type"], "session", "{over:?}: {answer}");
    assert_eq!(answer["user"], login.user, "{over:?}: {answer}");
    client
}

pub(crate) async fn the_right_credentials_let_their_user_in(gatekeeper: &dyn Gatekeeper) {
    let server = start(gatekeeper, false).await;
    let logins = gatekeeper.good();
    assert!(logins.len() > 1, "two users are needed to tell them apart");
    for over in Over::ALL {
        for login in &logins {
            let mut client = gets_in(&server, over, login).await;
            client.enter(over.table()).await;
            client.command(serde_json::json!({"type": "logout"})).await;
            client.expect_closed("logout").await;
        }
    }
}

pub(crate) async fn wrong_credentials_are_refused_and_the_next_ones_judged_anew(
    gatekeeper: &dyn Gatekeeper,
) {
    let server = start(gatekeeper, false).await;
    let bad = gatekeeper.bad();
    assert!(!bad.is_empty(), "somebody is always refused");
    for over in Over::ALL {
        let mut client = server.connect(over.table(), "somebody").await;
        for login in &bad {
            let answer = client.try_log_in(with_type(login)).await;
            assert_eq!(code(&answer), "auth_failed", "{over:?}: {answer}");
        }
        let good = &gatekeeper.good()[0];
        let answer = client.try_log_in(with_type(&good.fields)).await;
        assert_eq!(answer["user"], good.user, "{over:?}: {answer}");
    }
}

pub(crate) async fn what_it_does_not_judge_is_left_to_the_next(gatekeeper: &dyn Gatekeeper) {
    let server = start(gatekeeper, true).await;
    for over in Over::ALL {
        let guest = serde_json::json!({ "user": over.table() });
        let (_client, answer) = try_login(&server, over, &guest).await;
        assert_eq!(answer["user"], format!("~{}", over.table()), "{answer}");
        for login in &gatekeeper.good() {
            gets_in(&server, over, login).await;
        }
    }
}

pub(crate) async fn log_ins_at_the_same_time_are_not_mixed_up(gatekeeper: &dyn Gatekeeper) {
    let server = start(gatekeeper, false).await;
    let (good, bad) = (gatekeeper.good(), gatekeeper.bad());
    let logins = (0..20).flat_map(|_| Over::ALL).enumerate();
    let judged = logins.map(async |(n, over)| {
        if n % 3 == 2 {
            let (_, answer) = try_login(&server, over, &bad[n % bad.len()]).await;
            assert_eq!(code(&answer), "auth_failed", "{over:?}: {answer}");
        } else {
            gets_in(&server, over, &good[n % good.len()]).await;
        }
    });
    join_all(judged).await;
}

pub(crate) async fn who_hangs_up_before_the_verdict_leaves_nothing_behind(
    gatekeeper: &dyn Gatekeeper,
) {
    let server = start(gatekeeper, false).await;
    let good = gatekeeper.good();
    for n in 0..60 {
        let over = Over::PUSH[n % 2];
        let mut client = server.connect(over.table(), "hasty").await;
        let login = with_type(&good[n % good.len()].fields);
        client.write(&login.to_string()).await;
        client.vanish();
    }
    for over in Over::ALL {
        gets_in(&server, over, &good[0]).await;
    }
    assert_eq!(server.shut_down().await, 0, "a task outlived the drain");
}

pub(crate) async fn no_secret_is_logged_measured_or_answered(gatekeeper: &dyn Gatekeeper) {
    keeps_secrets(gatekeeper, false).await;
}

/// Whatever comes of log-ins, also while what the authenticator depends on is away.
pub(super) async fn keeps_secrets(gatekeeper: &dyn Gatekeeper, is_away: bool) {
    let log = Log::all();
    let server = start(gatekeeper, false).await;
    let logins = gatekeeper.good().into_iter().map(|login| login.fields);
    let logins: Vec<Value> = logins.chain(gatekeeper.bad()).collect();
    let mut said = String::new();
    if is_away {
        gatekeeper.break_down(server.folder()).await;
    }
    for over in Over::ALL {
        for login in &logins {
            let (_, answer) = try_login(&server, over, login).await;
            said += &answer.to_string();
        }
    }
    if is_away {
        gatekeeper.mend(server.folder()).await;
    }
    let scrape = Request::new("GET", "/metrics");
    said += &Http::new(server.metrics()).ask(&scrape).await.text();
    assert_eq!(server.shut_down().await, 0);
    let logged = log.text();
    assert!(logged.contains("draining"), "the log is heard: {logged}");
    for login in &logins {
        for secret in ["password", "token"].map(|key| login[key].as_str()) {
            // Shorter ones are words that may stand there for other reasons.
            let Some(secret) = secret.filter(|secret| secret.len() >= 8) else {
                continue;
            };
            for (place, text) in [("the log", &logged), ("answers or metrics", &said)] {
                assert!(!text.contains(secret), "{secret:?} stands in {place}");
            }
        }
    }
}

/// What this process logs, at every level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// From now on.
    fn all() -> Self {
        static LOG: OnceLock<Log> = OnceLock::new();
        let start = || {
            let log = Self::default();
            let level = tracing_subscriber::filter::LevelFilter::TRACE;
            let started = tracing_subscriber::fmt()
                .with_max_level(level)
                .with_ansi(false)
                .with_writer(log.clone())
                .try_init();
            started.expect("no other log was started in this process");
            log
        };
        LOG.get_or_init(start).clone()
    }

    fn text(&self) -> String {
        let bytes = self.0.lock().expect("nobody panics with it");
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut log = self.0.lock().expect("nobody panics with it");
        log.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
