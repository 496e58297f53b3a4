//! What the conformance kit asks of a third party's authenticator, asked of those that chinwag has.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use chinwag::{
    Plugins,
    core::plugin::{
        AuthRequest, Authenticator, AuthenticatorConfig, AuthenticatorContext, BuildError,
        Principal, Verdict,
    },
};
use chinwag_conformance::{COSTLY, Gatekeeper, Login, STAFF, strike_out};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

fn staff() -> Vec<Login> {
    let login = |(user, password, _)| Login::password(user, password);
    STAFF.map(login).to_vec()
}

fn credentials(user: &str, password: &str) -> Value {
    json!({"user": user, "password": password})
}

/// The keys of `password` with a file of `users`.
fn passwords(folder: &Path, users: &str) -> String {
    std::fs::write(folder.join("users.txt"), users).unwrap();
    "kind = \"password\"\nfile = \"users.txt\"".into()
}

/// `password`, with hashes that all cost the same: how long an unknown user takes is up to one of them.
struct Passwords;

#[async_trait]
impl Gatekeeper for Passwords {
    fn keys(&self, folder: &Path) -> String {
        let users = STAFF.map(|(user, _, hash)| format!("{user}:{hash}\n"));
        passwords(folder, &users.concat())
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

    async fn take_out(&self, folder: &Path, login: &Login) {
        strike_out(&folder.join("users.txt"), &login.user);
    }

    async fn with_role(&self, folder: &Path, role: &str) -> Login {
        let [(user, password, hash), (other, _, others)] = STAFF;
        let users = format!("{user}:{hash}:{role}\n{other}:{others}\n");
        std::fs::write(folder.join("users.txt"), users).unwrap();
        Login::password(user, password)
    }
}

mod password {
    use super::Passwords;
    chinwag_conformance::authenticator!(
        Passwords,
        without outages = "It depends on nobody.",
        without silence = "It depends on nobody.",
        without expiry = "Its users have no end.",
        without rooms = "Its file has no rooms.",
    );
}

/// `password`, with a user whose hash is of ordinary cost: an answer without it would be noticed.
struct Costly;

#[async_trait]
impl Gatekeeper for Costly {
    fn keys(&self, folder: &Path) -> String {
        let (user, _, hash) = COSTLY;
        passwords(folder, &format!("{user}:{hash}\n"))
    }

    fn good(&self) -> Vec<Login> {
        let (user, password, _) = COSTLY;
        vec![Login::password(user, password)]
    }

    fn bad(&self) -> Vec<Value> {
        Passwords.bad()
    }
}

mod costly_password {
    use super::Costly;
    chinwag_conformance::__passwords!([] Costly);
}

/// `http`, with a back end that may be out of reach.
#[derive(Default)]
struct Asked {
    mood: Arc<AtomicU8>,
    /// What else the back end says of somebody.
    said: Arc<Mutex<Value>>,
    work: Mutex<JoinSet<()>>,
}

/// What the back end does with a question.
const ANSWERS: u8 = 0;
const HANGS_UP: u8 = 1;
const IS_SILENT: u8 = 2;

impl Asked {
    /// Has the back end let `carol` in as well, and say that of her.
    fn says(&self, said: Value) -> Login {
        *self.said.lock().unwrap() = said;
        Login::password("carol", "slow")
    }
}

#[async_trait]
impl Gatekeeper for Asked {
    fn keys(&self, _: &Path) -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let (mood, said) = (Arc::clone(&self.mood), Arc::clone(&self.said));
        self.work.lock().unwrap().spawn(async move {
            let mut calls = JoinSet::new();
            while let Ok((call, _)) = listener.accept().await {
                calls.spawn(answer(call, Arc::clone(&mood), Arc::clone(&said)));
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

    async fn break_down(&self, _: &Path) {
        self.mood.store(HANGS_UP, Ordering::Relaxed);
    }

    async fn hush(&self, _: &Path) {
        self.mood.store(IS_SILENT, Ordering::Relaxed);
    }

    async fn mend(&self, _: &Path) {
        self.mood.store(ANSWERS, Ordering::Relaxed);
    }

    async fn short(&self, _: &Path, stay: Duration) -> Login {
        self.says(json!({ "stay": u64::try_from(stay.as_millis()).unwrap() }))
    }

    async fn confined(&self, _: &Path, rooms: &[&str]) -> Login {
        self.says(json!({ "rooms": rooms }))
    }

    async fn with_role(&self, _: &Path, role: &str) -> Login {
        self.says(json!({ "roles": [role] }))
    }
}

/// Answers the questions of one connection, unless it is in another mood.
async fn answer(call: TcpStream, mood: Arc<AtomicU8>, said: Arc<Mutex<Value>>) {
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
        let read = call.read_exact(&mut question).await;
        match mood.load(Ordering::Relaxed) {
            ANSWERS if read.is_ok() => (),
            IS_SILENT => std::future::pending().await,
            _ => return,
        }
        let question: Value = serde_json::from_slice(&question).unwrap();
        let verdict = verdict(&question, &said.lock().unwrap()).to_string();
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length:";
        let answer = format!("{head} {}\r\n\r\n{verdict}", verdict.len());
        if call.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// What the back end says to that; `said`: of `carol`.
fn verdict(question: &Value, said: &Value) -> Value {
    let is_offered = |(user, password, _): &(&str, &str, &str)| {
        question["user"] == *user && question["password"] == *password
    };
    if STAFF.iter().any(is_offered) {
        return json!({"verdict": "allow"});
    }
    if !is_offered(&COSTLY) || said.is_null() {
        return json!({"verdict": "deny"});
    }
    let mut verdict = said.clone();
    verdict["verdict"] = "allow".into();
    if let Some(stay) = verdict.as_object_mut().unwrap().remove("stay") {
        let now = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
        verdict["expires_at"] = (u64::try_from(now).unwrap() + stay.as_u64().unwrap()).into();
    }
    verdict
}

mod http {
    use super::Asked;
    chinwag_conformance::authenticator!(
        Asked::default(),
        without removal = "Its back end takes nothing back.",
        without passwords = "How long the back end takes is its own affair, and nobody pretends to ask it.",
    );
}

/// Gives its users away: who is unknown is told so at once.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Hasty {}

#[async_trait]
impl AuthenticatorConfig for Hasty {
    const KIND: &'static str = "hasty";

    async fn build(self, _: AuthenticatorContext) -> Result<Arc<dyn Authenticator>, BuildError> {
        Ok(Arc::new(self))
    }
}

#[async_trait]
impl Authenticator for Hasty {
    async fn authenticate(&self, request: &AuthRequest) -> Verdict {
        if request.credentials.user.as_deref() == Some("alice") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Verdict::deny("wrong in any case")
    }
}

/// The same of users that are others': it does not pretend.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Honest {}

#[async_trait]
impl AuthenticatorConfig for Honest {
    const KIND: &'static str = "honest";

    async fn build(self, _: AuthenticatorContext) -> Result<Arc<dyn Authenticator>, BuildError> {
        Ok(Arc::new(self))
    }
}

#[async_trait]
impl Authenticator for Honest {
    async fn authenticate(&self, _: &AuthRequest) -> Verdict {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Verdict::deny("wrong in any case")
    }
}

/// Lets in whoever comes, for ever and everywhere, whatever was said of them.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Easy {}

#[async_trait]
impl AuthenticatorConfig for Easy {
    const KIND: &'static str = "easy";

    async fn build(self, _: AuthenticatorContext) -> Result<Arc<dyn Authenticator>, BuildError> {
        Ok(Arc::new(self))
    }
}

#[async_trait]
impl Authenticator for Easy {
    async fn authenticate(&self, request: &AuthRequest) -> Verdict {
        match &request.credentials.user {
            Some(user) => Verdict::Allow(Principal::vouched(user)),
            None => Verdict::Abstain,
        }
    }
}

/// Has everybody wait while its back end is silent, also those whom it does not judge.
struct Waiting {
    /// A file that is there while the back end is silent.
    silent: PathBuf,
}

/// Its table.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct WaitingTable {}

#[async_trait]
impl AuthenticatorConfig for WaitingTable {
    const KIND: &'static str = "waiting";

    async fn build(self, cx: AuthenticatorContext) -> Result<Arc<dyn Authenticator>, BuildError> {
        Ok(Arc::new(Waiting {
            silent: cx.base.join(SILENT),
        }))
    }
}

#[async_trait]
impl Authenticator for Waiting {
    async fn authenticate(&self, request: &AuthRequest) -> Verdict {
        let is_silent = self.silent.exists();
        if is_silent {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        match &request.credentials.user {
            Some(user) if !STAFF.iter().any(|(name, ..)| name == user) => Verdict::Abstain,
            Some(user) if !is_silent => Verdict::Allow(Principal::vouched(user)),
            _ => Verdict::Unavailable {
                retry: Duration::ZERO,
            },
        }
    }
}

const SILENT: &str = "silent";

/// What is wrong on purpose: the scenarios have to find it.
struct Faulty(&'static str);

#[async_trait]
impl Gatekeeper for Faulty {
    fn plugins(&self, plugins: Plugins) -> Plugins {
        plugins
            .authenticator::<Hasty>()
            .authenticator::<Honest>()
            .authenticator::<Easy>()
            .authenticator::<WaitingTable>()
    }

    fn keys(&self, _: &Path) -> String {
        format!("kind = {:?}", self.0)
    }

    fn good(&self) -> Vec<Login> {
        staff()
    }

    fn bad(&self) -> Vec<Value> {
        vec![credentials("alice", "looking-glass")]
    }

    async fn hush(&self, folder: &Path) {
        std::fs::write(folder.join(SILENT), "").unwrap();
    }

    async fn mend(&self, folder: &Path) {
        std::fs::remove_file(folder.join(SILENT)).unwrap();
    }

    async fn break_down(&self, _: &Path) {}

    async fn short(&self, _: &Path, _: Duration) -> Login {
        staff().remove(0)
    }

    async fn confined(&self, _: &Path, _: &[&str]) -> Login {
        staff().remove(0)
    }

    async fn with_role(&self, _: &Path, _: &str) -> Login {
        staff().remove(0)
    }

    async fn take_out(&self, _: &Path, _: &Login) {}
}

mod faults {
    use super::Faulty;

    /// That scenario finds the fault of that kind.
    macro_rules! found {
        ($($name:ident($kind:literal, $scenario:literal, $words:literal);)+) => {
            $(
                #[test]
                #[should_panic(expected = $words)]
                fn $name() {
                    chinwag_conformance::run_authenticator($scenario, Faulty($kind));
                }
            )+
        };
    }

    found! {
        the_kit_finds_who_says_at_once_that_a_user_is_unknown(
            "hasty", "passwords::a_wrong_password_takes_as_long_as_an_unknown_user", "tells who is known"
        );
        the_kit_finds_who_does_not_pretend(
            "honest", "passwords::a_user_of_somebody_else_takes_as_long_as_an_unknown_one", "tells who is known"
        );
        the_kit_finds_who_lets_in_during_an_outage(
            "easy", "outages::an_outage_is_told_as_one_and_counts_against_nobody", "session"
        );
        the_kit_finds_who_lets_in_while_nobody_answers(
            "easy", "silence::a_silent_back_end_costs_those_who_ask_it_their_time_and_nobody_else", "session"
        );
        the_kit_finds_who_has_everybody_wait(
            "waiting", "silence::a_silent_back_end_costs_those_who_ask_it_their_time_and_nobody_else",
            "those who do not ask it wait as long"
        );
        the_kit_finds_who_forgets_the_rooms(
            "easy", "rooms::who_may_enter_some_rooms_enters_no_others", "den2"
        );
        the_kit_finds_who_forgets_the_roles(
            "easy", "roles::a_role_opens_the_rooms_that_ask_for_it", "forbidden"
        );
        the_kit_finds_who_forgets_the_end(
            "easy", "expiry::who_may_stay_for_a_while_is_logged_out_at_its_end_and_nobody_else", "bye"
        );
        the_kit_finds_who_takes_nobody_out(
            "easy", "removal::who_is_taken_out_is_logged_out_and_nobody_else", "bye"
        );
    }
}
