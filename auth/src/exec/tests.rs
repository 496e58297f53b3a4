use std::{fs, path::PathBuf, time::Duration};

use chinwag_core::{Lifecycle, plugin::Credentials};
use tempfile::TempDir;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::*;
use crate::callout::testing::{
    Ears, PATIENCE, is_unavailable, judge, judge_from, let_in, log_in, request,
};

/// What every script begins with: `answer ID REST` writes an answer, and `ask` reads a question into
/// `line`, `id` and `user`.
const PRELUDE: &str = r#"
answer() { printf '{"id":%s,%s}\n' "$1" "$2"; }
ask() {
    IFS= read -r line || exit 0
    id=${line#*'"id":'} id=${id%%,*}
    user=${line#*'"user":"'} user=${user%%'"'*}
}
"#;

/// Lets everybody in, under the name of the program that was asked.
const ALLOW: &str = r#"while ask; do answer "$id" '"verdict":"allow","user":"'$$'"'; done"#;

/// A script in a folder of its own.
struct Script {
    folder: TempDir,
    lifecycle: Lifecycle,
}

impl Script {
    fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("auth"), format!("{PRELUDE}{script}\n")).unwrap();
        Self {
            folder,
            lifecycle: Lifecycle::new(),
        }
    }

    fn start(&self, table: &str) -> ExecAuthenticator {
        // A busy machine takes its time.
        self.start_within(PATIENCE, &format!("call_timeout = \"30s\"\n{table}"))
    }

    fn start_within(&self, timeout: Duration, table: &str) -> ExecAuthenticator {
        let table = format!("command = [\"sh\", \"auth\"]\n{table}");
        let folder = self.folder.path();
        let mut cx = AuthenticatorContext::new("backend", folder, self.lifecycle.clone());
        cx.timeout = timeout;
        toml::from_str::<Exec>(&table).unwrap().start(&cx).unwrap()
    }

    /// One program, asked one question at a time.
    fn start_one(&self) -> ExecAuthenticator {
        self.start("programs = 1")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.lifecycle.kill();
    }
}

fn user(name: &str) -> Credentials {
    Credentials::password(name, "wonderland")
}

/// Waits until `what` holds.
async fn until(what: impl Fn() -> bool) {
    timeout(PATIENCE, async {
        while !what() {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it comes about in time");
}

fn is_running(pid: &str) -> bool {
    // A zombie has nothing open any more and does nothing.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .starts_with(" Z")
    })
}

#[tokio::test]
async fn a_configuration_named_without_a_folder_has_its_programs_run_here() {
    let lifecycle = Lifecycle::new();
    let script = format!("{PRELUDE}{ALLOW}");
    let mut exec: Exec = toml::from_str("command = [\"sh\"]\nprograms = 1").unwrap();
    exec.command.extend(["-c".to_owned(), script]);
    let mut cx = AuthenticatorContext::new("backend", "", lifecycle.clone());
    cx.timeout = PATIENCE;
    let backend = exec.start(&cx).unwrap();
    let (verdict, _) = log_in(&backend, user("ann")).await;
    let_in(verdict);
}

#[tokio::test]
async fn a_program_answers_with_every_verdict() {
    let script = Script::new(
        r#"while ask; do case $user in
            alice) answer "$id" '"verdict":"allow","roles":["staff"],"v":1' ;;
            bob) answer "$id" '"verdict":"deny","reason":"no","public":"Go away."' ;;
            carol) answer "$id" '"verdict":"unavailable","retry_ms":9000' ;;
            dave) answer "$id" '"verdict":"allow","role":["staff"]' ;;
            *) answer "$id" '"verdict":"abstain"' ;;
        esac; done"#,
    );
    let authenticator = script.start_one();
    let verdict = judge(&authenticator, user("alice")).await;
    let Verdict::Allow(principal) = verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(principal.roles, ["staff"]);
    assert_eq!(let_in(Verdict::Allow(principal)), "alice");
    let verdict = judge(&authenticator, user("bob")).await;
    assert!(
        matches!(&verdict, Verdict::Deny { public: Some(text), .. } if text == "Go away."),
        "{verdict:?}"
    );
    let verdict = judge(&authenticator, user("carol")).await;
    assert!(
        matches!(verdict, Verdict::Unavailable { retry } if retry == Duration::from_secs(9)),
        "{verdict:?}"
    );
    let verdict = judge(&authenticator, user("dave")).await;
    assert!(is_unavailable(&verdict), "{verdict:?}");
    let verdict = judge(&authenticator, user("eve")).await;
    assert!(matches!(verdict, Verdict::Abstain), "{verdict:?}");
}

#[tokio::test]
async fn a_program_is_started_when_it_is_needed_and_stays() {
    let script = Script::new(&format!("echo $$ >> started\n{ALLOW}"));
    let authenticator = script.start_one();
    let verdict = judge(&authenticator, Credentials::name("alice")).await;
    assert!(matches!(verdict, Verdict::Abstain), "{verdict:?}");
    assert!(!script.path("started").exists());
    let first = let_in(judge(&authenticator, user("alice")).await);
    for _ in 0..100 {
        assert_eq!(let_in(judge(&authenticator, user("alice")).await), first);
    }
    let started = fs::read_to_string(script.path("started")).unwrap();
    assert_eq!(started, format!("{first}\n"));
}

#[tokio::test]
async fn a_program_sees_only_the_variables_that_are_named() {
    // Set by whoever runs the tests.
    let shown = r#"while ask; do
        user=${CARGO_PKG_NAME:-none}
        answer "$id" '"verdict":"allow","user":"'$user'","roles":["'${PATH:+path}'"]'
    done"#;
    for (table, name) in [
        ("", "none"),
        (
            "environment = [\"PATH\", \"CARGO_PKG_NAME\", \"CHINWAG_NOT_THERE\"]",
            "chinwag-auth",
        ),
    ] {
        let script = Script::new(shown);
        let verdict = judge(&script.start(table), user("alice")).await;
        assert_eq!(let_in(verdict), name);
    }
}

#[tokio::test]
async fn what_a_program_does_wrong_starts_it_anew_and_is_told_as_unavailable() {
    let wrongs = [
        "echo nonsense",
        "echo",
        "echo '[]'",
        "echo '{\"verdict\":\"allow\"}'",
        "echo '{\"id\":\"'$id'\",\"verdict\":\"allow\"}'",
        "answer 4711 '\"verdict\":\"allow\"'",
        "answer \"$id\" '\"verdict\":\"allow\",\"user\":\"eve\"'; answer \"$id\" '\"verdict\":\"allow\"'",
        "head -c 70000 /dev/zero | tr '\\0' ' '; echo; sleep 1000",
        "exit 0",
        "exit 1",
        "kill -9 $$",
        "exec >&-; sleep 1000",
        "sleep 1000",
    ];
    for wrong in wrongs {
        let script = Script::new(&format!(
            "while ask; do if [ $user = eve ]; then {wrong}; else {}; fi; done",
            r#"answer "$id" '"verdict":"allow","user":"'$$'"'"#
        ));
        let table = "programs = 1\ncall_timeout = \"3s\"";
        let authenticator = script.start_within(PATIENCE, table);
        let first = let_in(log_in(&authenticator, user("alice")).await.0);
        let verdict = timeout(PATIENCE, judge(&authenticator, user("eve")))
            .await
            .unwrap();
        // The answer that came twice is good the first time.
        assert!(
            is_unavailable(&verdict) || wrong.matches("answer").count() == 2,
            "{wrong}: {verdict:?}"
        );
        let again = timeout(PATIENCE, log_in(&authenticator, user("alice"))).await;
        let second = let_in(again.unwrap().0);
        assert_ne!(first, second, "{wrong}");
        until(|| !is_running(&first)).await;
    }
}

#[tokio::test]
async fn an_answer_that_can_not_be_read_is_lost_to_its_asker_alone() {
    let script = Script::new(ALLOW);
    let authenticator = script.start_one();
    let program = let_in(log_in(&authenticator, user("alice")).await.0);
    let request = request(user("eve"));
    let id = authenticator.programs.id();
    let question = Question {
        id,
        party: request.address.into(),
        line: contract::ask(&request, &authenticator.headers, Some(id)).unwrap(),
        secrets: Secrets::of(&request.credentials),
    };
    let read = |_: &[u8]| -> Result<(), String> { panic!("a mistake of ours") };
    let doubt = Doubt::default();
    let answer = authenticator.programs.ask(question, read, &doubt);
    assert!(timeout(PATIENCE, answer).await.unwrap().is_err());
    let again = judge(&authenticator, user("alice")).await;
    assert_eq!(let_in(again), program);
}

#[tokio::test]
async fn a_program_that_takes_long_to_start_is_given_the_time() {
    let script = Script::new(&format!(
        "echo $$ >> started; until [ -e open ]; do sleep 0.01; done; {ALLOW}"
    ));
    let table = "programs = 1\ncall_timeout = \"100ms\"\nstart_timeout = \"1m\"";
    let authenticator = script.start_within(Duration::from_secs(1), table);
    for _ in 0..3 {
        assert!(is_unavailable(&judge(&authenticator, user("alice")).await));
    }
    fs::write(script.path("open"), "").unwrap();
    let (verdict, _) = log_in(&authenticator, user("alice")).await;
    let program = let_in(verdict);
    let started = fs::read_to_string(script.path("started")).unwrap();
    assert_eq!(started, format!("{program}\n"), "once");
}

#[tokio::test]
async fn a_program_that_never_gets_ready_is_started_anew() {
    let script = Script::new("echo $$ >> started; sleep 1000");
    let table = "programs = 1\ncall_timeout = \"100ms\"\nstart_timeout = \"500ms\"";
    let authenticator = script.start_within(Duration::from_secs(1), table);
    let started = || fs::read_to_string(script.path("started")).unwrap_or_default();
    timeout(PATIENCE, async {
        while started().lines().count() < 3 {
            let verdict = judge(&authenticator, user("alice")).await;
            assert!(is_unavailable(&verdict), "{verdict:?}");
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("it is started again and again");
    let first = started().lines().next().unwrap().to_owned();
    until(|| !is_running(&first)).await;
}

#[tokio::test]
async fn no_log_in_waits_longer_than_its_limit() {
    let script = Script::new("sleep 1000");
    let authenticator = script.start_within(Duration::from_secs(1), "programs = 1");
    let began = Instant::now();
    let all = (0..20).map(|_| judge(&authenticator, user("alice")));
    for verdict in futures_util::future::join_all(all).await {
        assert!(is_unavailable(&verdict), "{verdict:?}");
    }
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn a_program_may_answer_several_in_any_order() {
    let script = Script::new(
        r#"while ask; do a=$id u=$user; ask
            answer "$id" '"verdict":"allow","user":"'$user'"'
            answer "$a" '"verdict":"allow","user":"'$u'"'
        done"#,
    );
    let authenticator = script.start("programs = 1\nin_flight = 2");
    for _ in 0..20 {
        let (a, b) = tokio::join!(
            judge(&authenticator, user("a")),
            judge(&authenticator, user("b"))
        );
        assert_eq!((let_in(a), let_in(b)), ("a".into(), "b".into()));
    }
}

#[tokio::test]
async fn more_programs_answer_more_at_once() {
    // Each waits until all three have been asked.
    let script = Script::new(
        r#"while ask; do : > "asked-$user"
            until [ -e asked-a ] && [ -e asked-b ] && [ -e asked-c ]; do sleep 0.01; done
            answer "$id" '"verdict":"allow"'
        done"#,
    );
    let authenticator = script.start("programs = 3");
    let all = ["a", "b", "c"].map(|name| judge(&authenticator, user(name)));
    for verdict in futures_util::future::join_all(all).await {
        let_in(verdict);
    }
}

#[tokio::test]
async fn questions_that_wait_are_bounded() {
    let script = Script::new(
        r#"while ask; do : > asked; until [ -e open ]; do sleep 0.01; done
            answer "$id" '"verdict":"allow"'
        done"#,
    );
    let authenticator = Arc::new(script.start("programs = 1\nqueue = 2"));
    let mut in_time = JoinSet::new();
    for number in 0..3 {
        let authenticator = Arc::clone(&authenticator);
        in_time.spawn(async move { judge(&*authenticator, user("alice")).await });
        if number == 0 {
            until(|| script.path("asked").exists()).await;
        }
    }
    // The other two have to be in the queue before the next one comes.
    tokio::task::yield_now().await;
    let began = Instant::now();
    for _ in 0..100 {
        assert!(is_unavailable(&judge(&*authenticator, user("late")).await));
    }
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "they were turned away at once"
    );
    fs::write(script.path("open"), "").unwrap();
    for verdict in in_time.join_all().await {
        let_in(verdict);
    }
}

#[tokio::test]
async fn nobody_waits_behind_all_log_ins_of_another_address() {
    let script = Script::new(
        r#"while ask; do echo "$user" >> asked; until [ -e open ]; do sleep 0.01; done
            answer "$id" '"verdict":"allow"'
        done"#,
    );
    let authenticator = Arc::new(script.start("programs = 1\nqueue = 3"));
    let mut tasks = JoinSet::new();
    for (nth, (host, name)) in [(1, "a"), (1, "b"), (1, "c"), (1, "d"), (2, "x"), (3, "y")]
        .into_iter()
        .enumerate()
    {
        let authenticator = Arc::clone(&authenticator);
        tasks.spawn(async move {
            let verdict = judge_from(&*authenticator, host, user(name)).await;
            (name, !is_unavailable(&verdict))
        });
        if nth == 0 {
            until(|| script.path("asked").exists()).await;
        }
        // Each has to be in the queue before the next one comes.
        tokio::task::yield_now().await;
    }
    let first_two = [tasks.join_next().await, tasks.join_next().await];
    let displaced = first_two.map(|task| task.unwrap().unwrap());
    assert_eq!(displaced, [("d", false), ("c", false)]);
    fs::write(script.path("open"), "").unwrap();
    assert!(tasks.join_all().await.into_iter().all(|(_, is_in)| is_in));
    let asked = fs::read_to_string(script.path("asked")).unwrap();
    assert_eq!(asked, "a\nb\nx\ny\n");
}

#[tokio::test]
async fn nothing_that_a_program_started_outlives_it() {
    let family = format!("sleep 1000 & echo $! > child\n{ALLOW}");
    for end in ["drain", "kill", "drop", "fail"] {
        let script = Script::new(&family.replace(
            "while ask; do",
            "while ask; do [ $user = eve ] && echo bad;",
        ));
        let authenticator = script.start_one();
        let program = let_in(judge(&authenticator, user("alice")).await);
        let child = fs::read_to_string(script.path("child")).unwrap();
        let child = child.trim();
        assert!(is_running(&program) && is_running(child), "{end}");
        match end {
            "drain" => assert_eq!(script.lifecycle.shut_down(PATIENCE).await, 0),
            "kill" => script.lifecycle.kill(),
            "drop" => drop(authenticator),
            _ => assert!(is_unavailable(&judge(&authenticator, user("eve")).await)),
        }
        until(|| !is_running(&program) && !is_running(child)).await;
    }
}

#[tokio::test]
async fn a_stop_lets_programs_answer_and_then_leave() {
    let script = Script::new(
        r#"ask; : > asked; until [ -e open ]; do sleep 0.01; done
            answer "$id" '"verdict":"allow"'; ask
            "#,
    );
    fs::write(
        script.path("auth"),
        fs::read_to_string(script.path("auth"))
            .unwrap()
            .replace("|| exit 0", "|| { : > left; exit 0; }"),
    )
    .unwrap();
    let authenticator = Arc::new(script.start_one());
    let asking = Arc::clone(&authenticator);
    let mut asked = JoinSet::new();
    asked.spawn(async move { judge(&*asking, user("alice")).await });
    until(|| script.path("asked").exists()).await;
    let stop = async {
        script.lifecycle.drain();
        tokio::task::yield_now().await;
        fs::write(script.path("open"), "").unwrap();
        script.lifecycle.shut_down(PATIENCE).await
    };
    assert_eq!(stop.await, 0);
    let_in(asked.join_next().await.unwrap().unwrap());
    assert!(script.path("left").exists(), "it was told, not killed");
    let late = timeout(PATIENCE, judge(&*authenticator, user("late"))).await;
    assert!(is_unavailable(&late.unwrap()));
}

#[tokio::test]
async fn programs_that_die_under_load_keep_nobody_out() {
    let script = Script::new(
        r#"n=0; while ask; do n=$((n + 1)); [ $n -gt 25 ] && exit 1
            answer "$id" '"verdict":"allow"'
        done"#,
    );
    let authenticator = Arc::new(script.start("programs = 2\nin_flight = 4"));
    let mut clients = JoinSet::new();
    for _ in 0..20 {
        let authenticator = Arc::clone(&authenticator);
        clients.spawn(async move {
            for _ in 0..10 {
                let (verdict, _) = log_in(&*authenticator, user("alice")).await;
                assert_eq!(let_in(verdict), "alice");
            }
        });
    }
    timeout(PATIENCE, clients.join_all()).await.unwrap();
}

#[tokio::test]
async fn log_ins_while_no_program_can_run_all_get_in_afterwards() {
    let script = Script::new(&format!("[ -e open ] || exit 1\n{ALLOW}"));
    let authenticator = Arc::new(script.start("programs = 2\nin_flight = 8"));
    let mut clients = JoinSet::new();
    for _ in 0..1000 {
        let authenticator = Arc::clone(&authenticator);
        clients.spawn(async move { log_in(&*authenticator, user("alice")).await });
    }
    sleep(Duration::from_secs(1)).await;
    fs::write(script.path("open"), "").unwrap();
    for (verdict, tries) in timeout(PATIENCE, clients.join_all()).await.unwrap() {
        let_in(verdict);
        assert!(tries < 20, "{tries}");
    }
}

#[tokio::test]
async fn a_program_that_keeps_failing_rests_longer_and_longer() {
    let script = Script::new("echo >> started; exit 1");
    let authenticator = script.start_one();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        assert!(is_unavailable(&judge(&authenticator, user("alice")).await));
        sleep(Duration::from_millis(1)).await;
    }
    let started = fs::read_to_string(script.path("started")).unwrap().len();
    assert!((2..=6).contains(&started), "{started}");
}

#[tokio::test]
async fn what_a_program_says_is_logged_in_bounds_and_without_secrets() {
    let ears = Ears::open();
    let script = Script::new(
        r#"while ask; do
            echo "$line" >&2
            printf 'first\033line of %s\n' "$user" >&2
            head -c 5000 /dev/zero | tr '\0' 'x' >&2; echo >&2
            i=0; while [ $i -lt 100 ]; do echo "flood $i" >&2; i=$((i + 1)); done
            [ $user = bob ] && { echo last words >&2; exit 3; }
            answer "$id" '"verdict":"deny","reason":"'"${line#*planted}"'"'
        done"#,
    );
    let authenticator = script.start_one();
    for secret in ["planted-one", "planted\"two"] {
        judge(&authenticator, Credentials::password("alice", secret)).await;
        judge(&authenticator, Credentials::token(secret)).await;
    }
    // What was said before the answer may be read after it.
    until(|| ears.heard().contains("line of alice")).await;
    sleep(Duration::from_secs(1)).await;
    judge(
        &authenticator,
        Credentials::password("bob", "planted-three"),
    )
    .await;
    // The one before has failed as well.
    until(|| ears.heard().contains("exit status: 3")).await;
    let heard = ears.heard();
    assert!(!heard.contains('\u{1b}'), "{heard}");
    assert!(heard.contains("it repeats a credential"), "{heard}");
    let told = heard.lines().find(|line| line.contains("planted"));
    assert_eq!(told, None);
    assert!(heard.lines().all(|line| line.len() < 1000), "{heard}");
    let flood = heard.matches("flood").count();
    assert!((1..100).contains(&flood), "{flood}");
}

#[test]
fn a_command_that_can_not_run_is_refused_with_a_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let cx = AuthenticatorContext::new("backend", folder.path(), Lifecycle::new());
    fs::write(folder.path().join("plain"), "").unwrap();
    for (table, key, part) in [
        ("command = []", "command", "names a program"),
        ("command = [\"./none\"]", "command", "may be executed"),
        ("command = [\"./plain\"]", "command", "may be executed"),
        (
            "command = [\"chinwag-no-such-program\"]",
            "command",
            "is not in PATH",
        ),
        ("command = [\"sh\"]\nprograms = 0", "programs", "1 to 256"),
        (
            "command = [\"sh\"]\nstart_timeout = \"301s\"",
            "start_timeout",
            "at most 300s",
        ),
        (
            "command = [\"sh\"]\nin_flight = 0",
            "in_flight",
            "1 to 1000",
        ),
        ("command = [\"sh\"]\nqueue = 10001", "queue", "0 to 10000"),
        (
            "command = [\"sh\"]\ncall_timeout = \"5s\"",
            "call_timeout",
            "nine tenths",
        ),
    ] {
        let Err(error) = toml::from_str::<Exec>(table).unwrap().start(&cx) else {
            panic!("built from {table}")
        };
        assert_eq!(error.key, Some(key), "{table}");
        assert!(error.to_string().contains(part), "{table}: {error}");
    }
    for bad in ["", "command = \"sh\"", "command = [\"sh\"]\nprogram = 1"] {
        assert!(toml::from_str::<Exec>(bad).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn a_path_starts_from_the_folder_of_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/bin/sh", folder.path().join("shell")).unwrap();
    fs::write(folder.path().join("auth"), format!("{PRELUDE}{ALLOW}")).unwrap();
    let lifecycle = Lifecycle::new();
    let cx = AuthenticatorContext::new("backend", folder.path(), lifecycle.clone());
    let table = "command = [\"./shell\", \"auth\"]";
    let authenticator = toml::from_str::<Exec>(table).unwrap().start(&cx).unwrap();
    let_in(judge(&authenticator, user("alice")).await);
    lifecycle.kill();
}
