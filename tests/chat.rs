//! The terminal client: from pipes, and on a real terminal.

use std::{
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpListener,
    process::{Child, ChildStdin, ChildStdout, Command},
    task::JoinSet,
    time::timeout,
};

use crate::{
    client::{tls_url, url},
    harness::{Addresses, Client, Over, PATIENCE, PROGRAM, Program, Setup, eventually},
};

/// A server with a default room.
fn lobby() -> Setup {
    Setup::tables("[server]\ndefault_room = \"lobby\"")
}

/// Somebody else in the lobby.
async fn bob(server: &impl Addresses) -> Client {
    let mut bob = Client::login(server.of(Over::Tcp), Over::Tcp, "bob").await;
    bob.join("lobby").await;
    bob
}

/// The next message that is not `client`'s own: who and what.
async fn heard(client: &mut Client) -> (String, String) {
    let own = client.name.clone();
    let is_message = |event: &Value| event["type"] == "message" && event["user"] != own;
    let events = client.events_until("a message", is_message).await;
    let last = events.last().unwrap();
    let word = |field: &str| last[field].as_str().unwrap().to_owned();
    (word("user"), word("text"))
}

/// The command with nothing of this process's that would matter to it.
fn chat(args: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .arg("chat")
        .args(args)
        .envs([("TZ", "UTC"), ("USER", "ada"), ("TERM", "xterm")])
        .env_remove("CHINWAG_PASSWORD")
        .env_remove("NO_COLOR")
        .kill_on_drop(true);
    command
}

/// `chinwag chat` with pipes instead of a terminal.
struct Pipes {
    child: Child,
    input: Option<ChildStdin>,
    output: Option<Lines<BufReader<ChildStdout>>>,
}

/// How it ended.
struct Ended {
    code: Option<i32>,
    output: Vec<String>,
    errors: String,
}

impl Pipes {
    fn start(args: &[&str]) -> Self {
        Self::run(chat(args))
    }

    fn run(mut command: Command) -> Self {
        let pipes = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = pipes.spawn().expect("the program starts");
        let output = child.stdout.take().expect("it is piped");
        Self {
            input: child.stdin.take(),
            output: Some(BufReader::new(output).lines()),
            child,
        }
    }

    async fn say(&mut self, lines: &str) {
        let input = self.input.as_mut().expect("it is not closed");
        input
            .write_all(lines.as_bytes())
            .await
            .expect("somebody reads it");
    }

    async fn hear(&mut self) -> String {
        let line = self.output.as_mut().expect("it is not closed").next_line();
        let line = timeout(PATIENCE, line).await.expect("a line").unwrap();
        line.expect("it is not the end")
    }

    /// The next object with that `type`.
    async fn hear_object(&mut self, kind: &str) -> Value {
        loop {
            let object: Value = serde_json::from_str(&self.hear().await).expect("an object a line");
            if object["type"] == kind {
                return object;
            }
        }
    }

    async fn signal(&self, name: &str) {
        let pid = self.child.id().expect("it runs").to_string();
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &pid])
            .status()
            .await;
        assert!(sent.expect("kill is installed").success());
    }

    /// Says these lines and no more, and waits.
    async fn end_after(mut self, lines: &str) -> Ended {
        // It may be gone already, before it has read them.
        let _ = self
            .input
            .take()
            .expect("once")
            .write_all(lines.as_bytes())
            .await;
        self.end().await
    }

    async fn end(mut self) -> Ended {
        let done = async {
            let mut output = Vec::new();
            if let Some(mut lines) = self.output.take() {
                while let Some(line) = lines.next_line().await.unwrap() {
                    output.push(line);
                }
            }
            let mut errors = String::new();
            let mut stderr = self.child.stderr.take().expect("it is piped");
            stderr.read_to_string(&mut errors).await.unwrap();
            let status: ExitStatus = self.child.wait().await.unwrap();
            Ended {
                code: status.code(),
                output,
                errors,
            }
        };
        timeout(PATIENCE, done).await.expect("it ends")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_said_and_what_is_said_is_a_line() {
    let server = lobby().start().await;
    for over in Over::ALL {
        let mut bob = bob(&server).await;
        let url = url(&server, over);
        let mut ada = Pipes::start(&[&url]);
        ada.say("hello\n").await;
        assert_eq!(
            heard(&mut bob).await,
            ("ada".into(), "hello".into()),
            "{over:?}"
        );
        bob.say("lobby", "one line\nand no other").await;
        let own = ada.hear().await;
        assert!(own.ends_with(" ada: hello"), "{own}");
        let line = ada.hear().await;
        assert!(line.ends_with(" bob: one line⏎and no other"), "{line}");
        let time = line.split(' ').next().unwrap();
        assert!(time.len() == 5 && time.as_bytes()[2] == b':', "{line}");
        // As they stand, but for those that say nothing; the last one needs no end.
        let ended = ada.end_after("\n//slash\n  \n/etc/passwd").await;
        assert_eq!(ended.code, Some(0), "{over:?}: {}", ended.errors);
        assert_eq!(heard(&mut bob).await.1, "//slash");
        assert_eq!(heard(&mut bob).await.1, "/etc/passwd");
        assert_eq!(ended.output.len(), 2, "{:?}", ended.output);
        let left = bob
            .events_until("her leave", |event| event["type"] == "leave")
            .await;
        assert_eq!(left.last().unwrap()["reason"], "logout", "{over:?}");
        bob.command(json!({"type": "logout"})).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_json_commands_go_in_and_all_comes_out() {
    let server = lobby().start().await;
    for over in Over::ALL {
        let url = url(&server, over);
        let mut ada = Pipes::start(&[&url, "--json", "--room", "games"]);
        let session = ada.hear_object("session").await;
        assert_eq!(session["user"], "ada");
        assert!(
            session["session"].is_null() && session["id"].is_null(),
            "a secret, and a number that nobody gave: {session}"
        );
        assert_eq!(ada.hear_object("init").await["room"], "games");
        ada.say("{\"id\":7,\"type\":\"send\",\"data\":[1.50]}\n")
            .await;
        let (mut sent, mut message) = (Value::Null, Value::Null);
        while sent.is_null() || message.is_null() {
            let object: Value = serde_json::from_str(&ada.hear().await).unwrap();
            match object["type"].as_str().unwrap() {
                "sent" => sent = object,
                "message" => message = object,
                _ => (),
            }
        }
        assert_eq!(sent["id"], 7, "{sent}");
        assert_eq!(
            (&message["room"], &message["seq"]),
            (&json!("games"), &sent["seq"])
        );
        ada.say("{\"type\":\"ping\"}\n").await;
        assert!(ada.hear_object("pong").await["id"].is_null());
        let ended = ada.end_after("{\"type\":\"users\",\"limit\":1}\n").await;
        assert_eq!(ended.code, Some(0), "{over:?}: {}", ended.errors);
        assert!(
            ended.output[0].contains("\"users\":[\"ada\"]"),
            "{:?}",
            ended.output
        );
        let bye: Value = serde_json::from_str(ended.output.last().unwrap()).unwrap();
        assert_eq!(
            (&bye["type"], &bye["code"]),
            (&json!("bye"), &json!("logout"))
        );
        assert_eq!(ended.errors, "", "objects say it all");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_json_what_is_wrong_is_told_and_the_rest_goes_on() {
    let server = lobby().start().await;
    let input = "hello\n{\"type\":\"dance\"}\n{\"type\":\"send\",\"id\":\"x\"}\n{\"type\":\"send\",\"text\":\"ok\"}\n";
    let ended = Pipes::start(&[&url(&server, Over::Tcp), "--json"])
        .end_after(input)
        .await;
    assert_eq!(ended.code, Some(1), "{}", ended.errors);
    let output = ended.output.join("\n");
    assert!(
        output.contains("\"unknown_type\"") && output.contains("\"text\":\"ok\""),
        "{output}"
    );
    for words in ["line 1", "line 3", "id must be", "not every line"] {
        assert!(ended.errors.contains(words), "{words}: {}", ended.errors);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_json_what_the_server_can_not_read_is_answered_at_once() {
    let server = lobby().start().await;
    for over in Over::ALL {
        // The server never gets to read the `id` of the first ones.
        let mut lines = "{\"type\":\"send\",\"text\":\"a\",\"text\":\"b\",\"id\":1}\n".repeat(3);
        lines += "{\"type\":\"login\",\"user\":\"eve\",\"id\":2}\n{\"type\":\"logout\",\"id\":3}\n";
        let ended = Pipes::start(&[&url(&server, over), "--json"])
            .end_after(&lines)
            .await;
        let said: Vec<Value> = ended
            .output
            .iter()
            .map(|line| serde_json::from_str(line).unwrap())
            .filter(|object: &Value| object["type"] == "error" || object["type"] == "bye")
            .map(|object| json!([object["id"], object["code"]]))
            .collect();
        let unread = json!([null, "bad_request"]);
        let expected = [
            unread.clone(),
            unread.clone(),
            unread,
            json!([2, "already_logged_in"]),
            json!([3, "logout"]),
        ];
        assert_eq!(said, expected, "{over:?}: {}", ended.errors);
        assert!(!ended.errors.contains("no answer"), "{}", ended.errors);
        assert_eq!(ended.code, Some(1), "{over:?}");
    }
}

/// A line-based server that answers whatever comes with these, in their order, and then no more.
async fn answering(answers: Vec<&'static str>) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("tcp://{}", listener.local_addr().unwrap());
    let mut answers = answers.into_iter();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        while stream.read_line(&mut line).await.is_ok_and(|read| read > 0) {
            let command: Value = serde_json::from_str(&line).unwrap();
            line.clear();
            if let Some(answer) = answers.next() {
                let answer = answer.replace("ID", &command["id"].to_string()) + "\n";
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    });
    (url, tasks)
}

const SESSION: &str = r#"{"type":"session","id":ID,"session":"K","user":"ada"}"#;
const INIT: &str =
    r#"{"type":"init","id":ID,"room":"lobby","presence":"each","epoch":"e","seq":0}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_lets_nobody_leave_is_left() {
    for answer in [
        r#"{"type":"error","id":ID,"code":"forbidden","message":"you stay"}"#,
        r#"{"type":"ok","id":ID}"#,
    ] {
        let (url, _server) = answering(vec![SESSION, INIT, answer]).await;
        let ended = Pipes::start(&[&url]).end_after("").await;
        assert_eq!(ended.code, Some(6), "{answer}: {}", ended.errors);
        assert!(ended.errors.contains("logging out: "), "{}", ended.errors);
    }
    // It says nothing at all; who insists does not wait for it.
    let (url, _server) = answering(vec![SESSION, INIT]).await;
    let mut ada = Pipes::start(&[&url]);
    let mut errors = BufReader::new(ada.child.stderr.take().unwrap()).lines();
    let welcome = timeout(PATIENCE, errors.next_line())
        .await
        .unwrap()
        .unwrap();
    assert!(welcome.unwrap().contains("You are in"));
    let status = eventually("its end", async || {
        ada.signal("INT").await;
        ada.child.try_wait().unwrap()
    });
    let status = timeout(Duration::from_secs(5), status)
        .await
        .expect("at once");
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn input_that_can_not_be_read_and_output_that_can_not_be_written_fail() {
    let server = lobby().start().await;
    let url = url(&server, Over::Tcp);
    let run = async |script: &str| {
        let script = script.replace("CHAT", &format!("{PROGRAM} chat {url} --user ada"));
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).kill_on_drop(true);
        let output = timeout(PATIENCE, shell.output())
            .await
            .expect("it ends")
            .unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), errors)
    };
    let (code, errors) = run("CHAT </").await;
    assert!(
        code == Some(1) && errors.contains("can't be read"),
        "{code:?} {errors}"
    );
    let (code, errors) = run("echo hello | CHAT >/dev/full").await;
    assert!(
        code == Some(1) && errors.contains("can't write"),
        "{code:?} {errors}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_long_is_not_sent_and_the_exit_code_says_so() {
    let server = lobby().and("[limits]\nmessage_bytes = 100").start().await;
    let mut bob = bob(&server).await;
    let long = "ü".repeat(51);
    let input = format!("first\n{long}\n\u{fffd}\nlast\n");
    let mut command = Pipes::start(&[&url(&server, Over::Tcp)]);
    let mut bytes = input.into_bytes();
    let replaced = bytes
        .windows(3)
        .position(|bytes| bytes == "\u{fffd}".as_bytes())
        .unwrap();
    bytes.splice(replaced..replaced + 3, [0xff]);
    let mut stdin = command.input.take().unwrap();
    stdin.write_all(&bytes).await.unwrap();
    drop(stdin);
    let ended = command.end().await;
    assert_eq!(heard(&mut bob).await.1, "first");
    assert_eq!(heard(&mut bob).await.1, "last");
    assert_eq!(ended.code, Some(1));
    for words in [
        "line 2: not sent: 102 bytes",
        "at most 100",
        "line 3: not sent: not UTF-8",
    ] {
        assert!(ended.errors.contains(words), "{words}: {}", ended.errors);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_lines_than_the_rate_allows_are_all_said_in_order() {
    let limits = "[limits]\nsends = { rate = 20, per = \"1s\", burst = 3 }\n\
                  violations = { rate = 1, per = \"1h\", burst = 5 }";
    let server = lobby().and(limits).start().await;
    let mut bob = bob(&server).await;
    let lines: String = (0..30).map(|n| format!("{n}\n")).collect();
    let ended = Pipes::start(&[&url(&server, Over::WebSocket)])
        .end_after(&lines)
        .await;
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    for n in 0..30 {
        assert_eq!(heard(&mut bob).await.1, n.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_end_has_its_exit_code_and_its_words() {
    let staff = Setup::passwords()
        .and("[server]\ndefault_room = \"lobby\"")
        .start()
        .await;
    for over in Over::ALL {
        let url = url(&staff, over);
        for (user, password, code, words) in [
            ("alice", Some("wonderland"), 0, "You are in lobby as alice."),
            ("alice", Some("hunter2"), 3, "denied: "),
            ("alice", None, 3, "--password"),
        ] {
            let mut command = chat(&[&url, "--user", user]);
            if let Some(password) = password {
                command.env("CHINWAG_PASSWORD", password);
            }
            let ended = Pipes::run(command).end_after("").await;
            assert_eq!(
                ended.code,
                Some(code),
                "{over:?} {password:?}: {}",
                ended.errors
            );
            assert!(ended.errors.contains(words), "{words}: {}", ended.errors);
            let said = format!("{:?}{}", ended.output, ended.errors);
            assert!(
                !said.contains("hunter2") && !said.contains("wonderland"),
                "{said}"
            );
        }
    }
    let guests = lobby().start().await;
    let _bob = bob(&guests).await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = nobody.local_addr().unwrap();
    drop(nobody);
    let (line, web) = (guests.addr(Over::Tcp), guests.addr(Over::WebSocket));
    for (args, code, words) in [
        (
            vec![format!("tcp://{line}"), "--user=b o b".into()],
            3,
            "--user names another",
        ),
        (
            vec![format!("tcp://{line}"), "--user=bob".into()],
            4,
            "--user names another",
        ),
        (
            vec![format!("tcp://{line}"), "--room=Lobby".into()],
            4,
            "--room names another",
        ),
        (vec![format!("tcp://{there}")], 5, "Does the server run"),
        (vec![format!("ws://{there}")], 5, "Does the server run"),
        (vec![format!("http://{there}")], 5, "Does the server run"),
        (vec![format!("tcp://{web}")], 5, "scheme, port and path"),
        (vec![format!("http://{line}")], 5, "scheme, port and path"),
        (
            vec![format!("ws://{web}/nowhere")],
            5,
            "it knows no path /nowhere",
        ),
        (vec!["ftp://localhost".into()], 64, "tls://, wss://"),
        (
            vec!["tls://localhost".into(), "--ca=/no/where".into()],
            64,
            "/no/where: can't be read",
        ),
        (
            vec![format!("tcp://{line}"), "--ca=/no/where".into()],
            64,
            "this is plain text",
        ),
        (
            vec!["tls://localhost".into(), "--key=/no/where".into()],
            64,
            "--cert",
        ),
        (
            vec!["http://ada:hunter2@localhost".into()],
            64,
            "do not belong into a URL",
        ),
        (vec!["localhost:4020".into()], 64, "tcp://"),
        (vec!["--colour".into()], 64, "Usage"),
        (vec!["--password=hunter2".into()], 64, "--password"),
        (
            ["tcp://localhost", "--password", "hunter2"]
                .map(String::from)
                .into(),
            64,
            "unexpected argument",
        ),
    ] {
        let list: Vec<&str> = args.iter().map(String::as_str).collect();
        let ended = Pipes::start(&list).end_after("").await;
        assert_eq!(ended.code, Some(code), "{args:?}: {}", ended.errors);
        assert!(ended.errors.contains(words), "{words}: {}", ended.errors);
        assert!(!ended.errors.contains("hunter2"), "{}", ended.errors);
    }
}

/// What `chinwag cert dev` makes, for all addresses where the tests' servers listen.
struct Made(TempDir);

impl Made {
    async fn new() -> Self {
        let made = Self(tempfile::tempdir().unwrap());
        let dir = made.at("");
        let hosts = ["--host", "127.0.0.2", "--host", "127.0.0.3"];
        let (code, _, errors) =
            Program::run(&[&["cert", "dev", &dir], &hosts[..]].concat(), "").await;
        assert_eq!(code, Some(0), "{errors}");
        made
    }

    fn at(&self, file: &str) -> String {
        self.0.path().join("pki").join(file).display().to_string()
    }

    /// A server with TLS on its three transports and a default room.
    fn server(&self, setup: Setup, more: &str) -> Setup {
        let (cert, key) = (self.at("server.pem"), self.at("server.key"));
        setup
            .and("[server]\ndefault_room = \"lobby\"")
            .and(&format!(
                "[tls.dev]\ncert = {cert:?}\nkey = {key:?}\n{more}"
            ))
            .on_all("tls = \"dev\"")
    }

    /// One that takes the name from the certificate.
    fn by_certificate(&self) -> Setup {
        let (ca, crl) = (self.at("ca.pem"), self.at("crl.pem"));
        let more = format!("client_ca = {ca:?}\nclient_cert = \"required\"\ncrl = [{crl:?}]");
        self.server(Setup::authenticator("kind = \"certificate\""), &more)
    }

    /// Options by which the server is trusted.
    fn trust(&self) -> [String; 2] {
        ["--ca".into(), self.at("ca.pem")]
    }

    /// The same, and those that show the certificate of `user`.
    fn shown(&self, user: &str) -> Vec<String> {
        let [ca, file] = self.trust();
        let (cert, key) = (
            self.at(&format!("{user}.pem")),
            self.at(&format!("{user}.key")),
        );
        vec![ca, file, "--cert".into(), cert, "--key".into(), key]
    }
}

/// Runs it to its end with these arguments, and nothing to say.
async fn run(url: &str, args: &[String]) -> Ended {
    let args: Vec<&str> = [url]
        .into_iter()
        .chain(args.iter().map(String::as_str))
        .collect();
    Pipes::start(&args).end_after("").await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_certificate_nothing_else_is_needed_and_without_one_it_is_asked_for() {
    let made = Made::new().await;
    let server = made.by_certificate().start().await;
    for over in Over::ALL {
        let url = tls_url(&server, over);
        // One for elsewhere is not sent along.
        let mut alice = chat(&[&url]);
        alice
            .args(made.shown("alice"))
            .env("CHINWAG_PASSWORD", "wonderland");
        let mut alice = Pipes::run(alice);
        alice.say("hello\n").await;
        let line = alice.hear().await;
        assert!(line.ends_with(" alice@example.org: hello"), "{line}");
        let ended = alice.end_after("").await;
        assert_eq!(ended.code, Some(0), "{over:?}: {}", ended.errors);
        // Both in one file, and named besides.
        let both = std::fs::read_to_string(made.at("alice.pem")).unwrap()
            + &std::fs::read_to_string(made.at("alice.key")).unwrap();
        std::fs::write(made.at("both.pem"), both).unwrap();
        let mut args = made.trust().to_vec();
        args.extend([
            "--cert".into(),
            made.at("both.pem"),
            "--user=alice@example.org".into(),
        ]);
        let ended = run(&url, &args).await;
        assert_eq!(ended.code, Some(0), "{over:?}: {}", ended.errors);
        let mut other = made.shown("alice");
        other.push("--user=bob".into());
        for (args, code, words) in [
            (made.trust().to_vec(), 3, "--cert FILE"),
            (made.shown("bob"), 3, "it is revoked"),
            (other, 3, "Without --user"),
            (Vec::new(), 5, "--ca FILE"),
        ] {
            let ended = run(&url, &args).await;
            assert_eq!(ended.code, Some(code), "{args:?}: {}", ended.errors);
            assert!(ended.errors.contains(words), "{words}: {}", ended.errors);
        }
        let plain = self::url(&server, over);
        let ended = run(&plain, &[]).await;
        assert_eq!(ended.code, Some(5), "{}", ended.errors);
        assert!(ended.errors.contains("tls://, wss://"), "{}", ended.errors);
    }
    // The way there is right, and the name is another.
    let elsewhere = format!("tls://0.0.0.0:{}", server.addr(Over::Tcp).port());
    let ended = run(&elsewhere, &made.shown("alice")).await;
    assert_eq!(ended.code, Some(5), "{}", ended.errors);
    assert!(
        ended.errors.contains("is for localhost, 127.0.0.1,"),
        "{}",
        ended.errors
    );
    let args = made.shown("alice").join(" ");
    let alice = Terminal::start(&format!("{} {args}", tls_url(&server, Over::WebSocket))).await;
    let screen = alice.prompt("lobby>").await.join("\n");
    assert!(!screen.contains("Password"), "{screen}");
    alice.press(&["C-d"]).await;
    alice.has_ended(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_leaves_this_machine_over_tls_alone() {
    let made = Made::new().await;
    let with_password = |url: &str, args: &[String]| {
        let mut command = chat(&[url, "--user", "alice"]);
        command.args(args).env("CHINWAG_PASSWORD", "wonderland");
        Pipes::run(command).end_after("")
    };
    let server = made.server(Setup::passwords(), "").start().await;
    for over in Over::ALL {
        let ended = with_password(&tls_url(&server, over), &made.trust()).await;
        assert_eq!(ended.code, Some(0), "{over:?}: {}", ended.errors);
    }
    let server = Setup::passwords()
        .and("[server]\ndefault_room = \"lobby\"")
        .start()
        .await;
    // It leads here, and is another machine for all that the URL tells.
    let elsewhere = format!("tcp://0.0.0.0:{}", server.addr(Over::Tcp).port());
    let ended = with_password(&elsewhere, &[]).await;
    assert_eq!(ended.code, Some(64), "{}", ended.errors);
    assert!(ended.errors.contains("--insecure"), "{}", ended.errors);
    assert!(!ended.errors.contains("wonderland"), "{}", ended.errors);
    let ended = with_password(&elsewhere, &["--insecure".into()]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.errors);
    // Nobody is asked for what would not be sent.
    for flag in ["", "--password"] {
        let ada = Terminal::start(&format!("{elsewhere} --user alice {flag}")).await;
        let screen = ada.has_ended(64).await.join("\n");
        assert!(
            screen.contains("--insecure") && !screen.contains("Password for"),
            "{screen}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_is_lost_and_one_that_stops_says_goodbye() {
    for over in Over::ALL {
        let mut server = Program::start(&lobby()).await;
        let mut ada = Pipes::start(&[&url(&server, over)]);
        ada.say("hello\n").await;
        ada.hear().await;
        server.signal("TERM").await;
        let ended = ada.end().await;
        assert_eq!(ended.code, Some(0), "{over:?}: {}", ended.errors);
        assert!(
            ended.errors.contains("The server is stopping"),
            "{}",
            ended.errors
        );
        server.exit().await;

        let server = Program::start(&lobby()).await;
        let mut ada = Pipes::start(&[&url(&server, over)]);
        ada.say("hello\n").await;
        ada.hear().await;
        server.signal("KILL").await;
        let ended = ada.end().await;
        assert_eq!(ended.code, Some(6), "{over:?}: {}", ended.errors);
        assert!(ended.errors.contains("lost: "), "{}", ended.errors);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_logs_out_and_a_reader_who_leaves_is_no_mistake() {
    let server = lobby().start().await;
    let mut bob = bob(&server).await;
    for signal in ["TERM", "INT", "HUP"] {
        let mut ada = Pipes::start(&[&url(&server, Over::Tcp)]);
        ada.say("hello\n").await;
        ada.hear().await;
        ada.signal(signal).await;
        let ended = ada.end().await;
        assert_eq!(ended.code, Some(0), "{signal}: {}", ended.errors);
        let left = bob
            .events_until("her leave", |event| event["type"] == "leave")
            .await;
        assert_eq!(left.last().unwrap()["reason"], "logout", "{signal}");
    }
    let mut ada = Pipes::start(&[&url(&server, Over::Tcp)]);
    ada.say("hello\n").await;
    ada.hear().await;
    ada.output = None;
    for n in 0..2 {
        bob.say("lobby", &n.to_string()).await;
    }
    // Whether it has noticed after the first one is the system's business.
    let ended = eventually("it to notice", async || {
        bob.say("lobby", "still there?").await;
        ada.child.try_wait().unwrap()
    })
    .await;
    assert_eq!(ended.code(), Some(0));
    let mut errors = String::new();
    ada.child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut errors)
        .await
        .unwrap();
    assert_eq!(errors, "You are in lobby as ada.\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_did_not_choose_a_name_gets_one_that_is_free() {
    let server = lobby().start().await;
    let mut first = Pipes::start(&[&url(&server, Over::Tcp)]);
    first.say("one\n").await;
    assert!(first.hear().await.ends_with(" ada: one"));
    let mut second = Pipes::start(&[&url(&server, Over::Polling)]);
    second.say("two\n").await;
    assert!(second.hear().await.ends_with(" ada-2: two"));
}

#[tokio::test(flavor = "multi_thread")]
async fn colours_are_for_those_who_want_them() {
    let server = lobby().start().await;
    let url = url(&server, Over::Tcp);
    for (args, coloured) in [
        (vec!["--color", "always"], true),
        (vec!["--color", "never"], false),
        (vec![], false),
    ] {
        let args = [&[url.as_str()], &args[..]].concat();
        let ended = Pipes::start(&args).end_after("plain\n").await;
        assert_eq!(ended.code, Some(0), "{}", ended.errors);
        assert_eq!(
            ended.output[0].contains('\u{1b}'),
            coloured,
            "{args:?}: {:?}",
            ended.output
        );
    }
}

/// A terminal: tmux with a server of its own.
struct Terminal {
    folder: TempDir,
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let kill = std::process::Command::new("tmux")
            .arg("-S")
            .arg(self.file("tmux"))
            .arg("kill-server")
            .stderr(Stdio::null())
            .status();
        if let Err(error) = kill {
            eprintln!("tmux: {error}");
        }
    }
}

impl Terminal {
    /// Runs `chinwag chat` with these arguments, between two looks at the terminal's modes.
    async fn start(args: &str) -> Self {
        Self::start_with("", args).await
    }

    /// The same with these assignments in its environment.
    async fn start_with(environment: &str, args: &str) -> Self {
        let terminal = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let folder = terminal.folder.path().display();
        let script = format!(
            "cd {folder}\nstty -a >before\n\
             env -u CHINWAG_PASSWORD -u NO_COLOR TZ=UTC USER=ada {environment} {PROGRAM} chat {args} &\n\
             echo $! >pid; fg >/dev/null; code=$?\n\
             while [ $code = 148 ]; do stty -a >stopped; read -r; fg >/dev/null; code=$?; done\n\
             echo \"code $code\" | tee code\nstty -a >after\ntouch done\nexec cat\n"
        );
        std::fs::write(terminal.file("script"), script).unwrap();
        let shell = format!("exec bash --norc --noprofile -m {folder}/script");
        terminal
            .tmux(&[
                "-f",
                "/dev/null",
                "new-session",
                "-d",
                "-x",
                "100",
                "-y",
                "30",
                &shell,
            ])
            .await;
        terminal
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn tmux(&self, args: &[&str]) -> String {
        let mut tmux = Command::new("tmux");
        tmux.arg("-S")
            .arg(self.file("tmux"))
            .args(args)
            .kill_on_drop(true);
        let output = timeout(PATIENCE, tmux.output())
            .await
            .expect("tmux answers");
        let output = output.expect("tmux is installed");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {errors}");
        String::from_utf8(output.stdout).expect("a screen is UTF-8")
    }

    /// Types characters as they are.
    async fn type_in(&self, text: &str) {
        self.tmux(&["send-keys", "-l", "--", text]).await;
    }

    /// Presses keys by their names.
    async fn press(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys", "--"], keys].concat()).await;
    }

    /// The lines on the screen, less the empty ones at its end.
    async fn screen(&self) -> Vec<String> {
        let text = self.tmux(&["capture-pane", "-p"]).await;
        text.trim_end().lines().map(str::to_owned).collect()
    }

    /// Waits until the screen is right.
    async fn shows(&self, what: &str, right: impl Fn(&[String]) -> bool) -> Vec<String> {
        let mut last = Vec::new();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while tokio::time::Instant::now() < deadline {
            last = self.screen().await;
            if right(&last) {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("waited in vain for {what}:\n{}", last.join("\n"));
    }

    /// Waits for a line with these words.
    async fn line(&self, words: &str) -> Vec<String> {
        self.shows(words, |screen| {
            screen.iter().any(|line| line.contains(words))
        })
        .await
    }

    /// Waits until the last line is this.
    async fn prompt(&self, line: &str) -> Vec<String> {
        self.shows(&format!("{line:?} at the end"), |screen| {
            screen.last().is_some_and(|last| last == line)
        })
        .await
    }

    async fn signal(&self, name: &str) {
        let pid = eventually("its number", async || read(&self.file("pid"))).await;
        let sent = Command::new("kill")
            .args([&format!("-{name}"), pid.trim()])
            .status()
            .await;
        assert!(sent.unwrap().success());
    }

    /// Waits until it has ended, with this exit code and the terminal as it was before.
    async fn has_ended(&self, code: i32) -> Vec<String> {
        eventually("its end", async || read(&self.file("done"))).await;
        let screen = self.screen().await;
        let told = read(&self.file("code")).unwrap();
        assert_eq!(told.trim(), format!("code {code}"), "{}", screen.join("\n"));
        let modes = |file| read(&self.file(file)).unwrap();
        assert_eq!(modes("before"), modes("after"), "the modes of the terminal");
        let flags = self
            .tmux(&["display-message", "-p", "#{cursor_flag} #{keypad_flag}"])
            .await;
        assert_eq!(flags.trim(), "1 0", "the cursor is seen");
        screen
    }
}

fn read(file: &Path) -> Option<String> {
    std::fs::read_to_string(file).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_in_leaves_the_line_that_is_typed_as_it_is() {
    const COUNT: usize = 200;
    let limits = "[limits]\nsends = \"unlimited\"\ncommands = \"unlimited\"";
    let server = lobby().and(limits).start().await;
    let mut bob = bob(&server).await;
    let ada = Terminal::start(&url(&server, Over::WebSocket)).await;
    ada.prompt("lobby>").await;
    let typed = "half of a line that is long enough to be broken into two rows, with 日本語 and a 👩‍👧 in it, before it is";
    let talk = async {
        for n in 0..COUNT {
            bob.say("lobby", &format!("message {n}")).await;
            // Fifty a second.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let typing = async {
        for word in typed.split_inclusive(' ') {
            ada.type_in(word).await;
        }
    };
    tokio::join!(talk, typing);
    ada.type_in(" sent").await;
    let last = format!("bob: message {}", COUNT - 1);
    let screen = ada
        .shows("all of it", |screen| {
            screen.iter().any(|line| line.contains(&last))
                && screen
                    .last()
                    .is_some_and(|line| line.ends_with("it is sent"))
        })
        .await;
    let (prompt, above) = (&screen[screen.len() - 2..], &screen[..screen.len() - 2]);
    let whole = format!("lobby> {typed} sent");
    assert_eq!(prompt.concat(), whole, "{}", screen.join("\n"));
    for (line, n) in above.iter().rev().zip((0..COUNT).rev()) {
        assert!(
            line.ends_with(&format!(" bob: message {n}")),
            "{n}:\n{}",
            screen.join("\n")
        );
    }
    assert_eq!(above.len(), 28, "the screen is full");
    ada.press(&["Enter"]).await;
    assert_eq!(
        heard(&mut bob).await.1,
        whole.strip_prefix("lobby> ").unwrap()
    );
    ada.prompt("lobby>").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_and_history_work_at_a_terminal() {
    let server = lobby().start().await;
    let mut bob = bob(&server).await;
    for over in Over::ALL {
        let ada = Terminal::start(&format!("{} --user Ada", url(&server, over))).await;
        ada.line("You are in lobby as Ada: with bob.").await;
        ada.type_in("hello").await;
        ada.press(&["Enter"]).await;
        assert_eq!(heard(&mut bob).await, ("Ada".into(), "hello".into()));
        ada.line(" Ada: hello").await;
        let screen = ada.prompt("lobby>").await;
        let said = screen.iter().filter(|line| line.contains("hello")).count();
        assert_eq!(said, 1, "once, as it was said:\n{}", screen.join("\n"));
        ada.press(&["Up"]).await;
        ada.prompt("lobby> hello").await;
        ada.press(&["Home", "x", "End", "BSpace", "y", "Enter"])
            .await;
        assert_eq!(heard(&mut bob).await.1, "xhelly");
        ada.type_in("//users are commands").await;
        ada.press(&["Enter"]).await;
        assert_eq!(heard(&mut bob).await.1, "/users are commands");
        ada.press(&["/users", "Enter"]).await;
        ada.line("2 in lobby: Ada, bob").await;
        ada.press(&["/help", "Enter"]).await;
        ada.line("/leave [ROOM]").await;
        ada.press(&["/dance", "Enter"]).await;
        ada.line("There is no such command.").await;
        ada.type_in("/join games").await;
        ada.press(&["Enter"]).await;
        ada.line("You are in games as Ada").await;
        ada.prompt("games>").await;
        bob.say("lobby", "where are you?").await;
        ada.line("[lobby] bob: where are you?").await;
        ada.press(&["/leave", "Enter"]).await;
        ada.line("You have left games and are back in lobby.").await;
        ada.prompt("lobby>").await;
        ada.press(&["/leave", "Enter"]).await;
        ada.prompt("(no room)>").await;
        ada.press(&["anybody?", "Enter"]).await;
        ada.line("You are in no room").await;
        ada.press(&["C-u"]).await;
        ada.press(&["/quit", "Enter"]).await;
        let screen = ada.has_ended(0).await;
        assert!(
            screen.iter().any(|line| line == "You have logged out."),
            "{screen:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_commands_are_completed() {
    let server = lobby().start().await;
    let mut bob = bob(&server).await;
    let ada = Terminal::start(&url(&server, Over::Tcp)).await;
    ada.prompt("lobby>").await;
    ada.type_in("B").await;
    ada.press(&["Tab"]).await;
    ada.type_in("look at /u").await;
    ada.press(&["Enter"]).await;
    assert_eq!(heard(&mut bob).await.1, "bob: look at /u");
    ada.type_in("/u").await;
    ada.press(&["Tab", "Enter"]).await;
    ada.line("2 in lobby: ada, bob").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pasted_is_one_message() {
    let server = lobby().start().await;
    let mut bob = bob(&server).await;
    let ada = Terminal::start(&url(&server, Over::Tcp)).await;
    ada.prompt("lobby>").await;
    ada.tmux(&["set-buffer", "first line\nsecond line\n"]).await;
    ada.tmux(&["paste-buffer", "-p"]).await;
    ada.prompt("second line").await;
    ada.press(&["Enter"]).await;
    assert_eq!(heard(&mut bob).await.1, "first line\nsecond line");
    let screen = ada.line("      second line").await;
    let first = screen
        .iter()
        .position(|line| line.ends_with(" ada: first line"));
    let second = screen.iter().position(|line| line == "      second line");
    assert_eq!(first.map(|at| at + 1), second, "{}", screen.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_long_stays_to_be_mended() {
    let server = lobby().and("[limits]\nmessage_bytes = 20").start().await;
    let mut bob = bob(&server).await;
    let ada = Terminal::start(&url(&server, Over::Tcp)).await;
    ada.prompt("lobby>").await;
    ada.type_in("this is more than twenty bytes").await;
    ada.press(&["Enter"]).await;
    ada.line("Too long: 30 bytes, and a message has at most 20.")
        .await;
    ada.prompt("lobby> this is more than twenty bytes").await;
    ada.press(&["C-w", "C-w", "Enter"]).await;
    assert_eq!(heard(&mut bob).await.1, "this is more than ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_of_another_size_is_drawn_anew() {
    let server = lobby().start().await;
    let mut bob = bob(&server).await;
    let ada = Terminal::start(&url(&server, Over::Tcp)).await;
    ada.prompt("lobby>").await;
    ada.type_in("forty characters, which is not too much.")
        .await;
    ada.prompt("lobby> forty characters, which is not too much.")
        .await;
    ada.tmux(&["resize-window", "-x", "30", "-y", "20"]).await;
    ada.prompt(" is not too much.").await;
    bob.say("lobby", "hello").await;
    let screen = ada.line("bob: hello").await;
    let end = &screen[screen.len() - 3..];
    assert!(end[0].ends_with("bob: hello"), "{}", screen.join("\n"));
    assert_eq!(
        end[1..],
        ["lobby> forty characters, which", " is not too much."].map(str::to_owned)[..]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_never_acts_on_the_terminal() {
    // Nobody checks what is said here.
    let server = lobby().and("[room]\nvalidators = []").start().await;
    let mut bob = bob(&server).await;
    let ada = Terminal::start(&url(&server, Over::Tcp)).await;
    ada.prompt("lobby>").await;
    ada.tmux(&["select-pane", "-T", "untouched"]).await;
    bob.say("lobby", "before").await;
    bob.say(
        "lobby",
        "\u{1b}[2J\u{1b}]0;taken over\u{7}\u{9b}2Ja\u{202e}b\rc\u{8}",
    )
    .await;
    bob.say("lobby", "after").await;
    let screen = ada.line("bob: after").await;
    let text = screen.join("\n");
    assert!(
        text.contains("bob: before"),
        "nothing is wiped away:\n{text}"
    );
    assert!(
        text.contains("bob: ␛[2J␛]0;taken over␇\u{fffd}2Jab␍c␈"),
        "{text}"
    );
    let title = ada.tmux(&["display-message", "-p", "#{pane_title}"]).await;
    assert_eq!(title.trim(), "untouched");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_asked_for_and_never_shown() {
    let limits =
        "[limits]\nlogin_failures_per_ip = \"unlimited\"\nlogin_failures_per_name = \"unlimited\"";
    let server = Setup::passwords()
        .and("[server]\ndefault_room = \"lobby\"")
        .and(limits)
        .start()
        .await;
    for (over, flag) in [(Over::Tcp, ""), (Over::Polling, "--password")] {
        let ada = Terminal::start(&format!("{} --user alice {flag}", url(&server, over))).await;
        ada.prompt("Password for alice:").await;
        ada.type_in("hunter2").await;
        ada.press(&["Enter"]).await;
        let asked_twice = |screen: &[String]| {
            screen
                .iter()
                .filter(|line| line.starts_with("Password for"))
                .count()
                == 2
        };
        ada.shows("the question again", asked_twice).await;
        ada.type_in("wonderland").await;
        ada.press(&["Enter"]).await;
        ada.line("You are in lobby as alice").await;
        ada.press(&["C-d"]).await;
        let text = ada.has_ended(0).await.join("\n");
        assert!(
            !text.contains("hunter2") && !text.contains("wonder"),
            "{text}"
        );
    }
    let ada = Terminal::start(&format!("{} --user alice", url(&server, Over::Tcp))).await;
    ada.prompt("Password for alice:").await;
    ada.signal("TERM").await;
    ada.has_ended(0).await;
    for key in ["C-c", "C-d"] {
        let ada = Terminal::start(&format!("{} --user alice", url(&server, Over::Tcp))).await;
        ada.prompt("Password for alice:").await;
        ada.press(&[key]).await;
        let screen = ada.has_ended(3).await;
        let told = |line: &String| line == "denied: no password was given";
        assert!(screen.iter().any(told), "{key}: {}", screen.join("\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn however_it_ends_the_terminal_is_as_before() {
    for (signal, code, words) in [
        ("TERM", 0, "The server is stopping."),
        ("KILL", 6, "lost: "),
    ] {
        let server = Program::start(&lobby()).await;
        let ada = Terminal::start(&url(&server, Over::Tcp)).await;
        ada.prompt("lobby>").await;
        ada.type_in("half a line").await;
        ada.prompt("lobby> half a line").await;
        server.signal(signal).await;
        let text = ada.has_ended(code).await.join("\n");
        assert!(
            text.contains(words) && text.contains("Not sent: half a line"),
            "{text}"
        );
        assert!(!text.contains("lobby> half"), "the prompt is gone:\n{text}");
    }
    let server = lobby().start().await;
    for end in ["TERM", "INT", "HUP", "C-c", "C-d"] {
        let ada = Terminal::start(&url(&server, Over::Tcp)).await;
        ada.prompt("lobby>").await;
        if end.starts_with("C-") {
            ada.press(&[end]).await;
        } else {
            ada.signal(end).await;
        }
        ada.has_ended(0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_one_gives_the_terminal_back_and_goes_on() {
    let server = lobby().start().await;
    let mut bob = bob(&server).await;
    let ada = Terminal::start(&url(&server, Over::Tcp)).await;
    ada.prompt("lobby>").await;
    ada.type_in("half").await;
    ada.prompt("lobby> half").await;
    ada.press(&["C-z"]).await;
    let stopped = eventually("it to stop", async || {
        read(&ada.file("stopped")).filter(|modes| !modes.is_empty())
    })
    .await;
    assert_eq!(read(&ada.file("before")).unwrap(), stopped);
    bob.say("lobby", "meanwhile").await;
    ada.press(&["Enter"]).await;
    ada.line("bob: meanwhile").await;
    ada.prompt("lobby> half").await;
    ada.type_in(" and half").await;
    ada.press(&["Enter"]).await;
    assert_eq!(heard(&mut bob).await.1, "half and half");
    ada.press(&["C-d"]).await;
    ada.has_ended(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_colours_unless_told_otherwise() {
    let server = lobby().start().await;
    let mut bob = bob(&server).await;
    for (environment, args, coloured) in [
        ("", "", true),
        ("NO_COLOR=1", "", false),
        ("NO_COLOR=1", "--color always", true),
        ("", "--color never", false),
    ] {
        let ada =
            Terminal::start_with(environment, &format!("{} {args}", url(&server, Over::Tcp))).await;
        ada.prompt("lobby>").await;
        bob.say("lobby", "hello").await;
        ada.line("bob: hello").await;
        let painted = ada.tmux(&["capture-pane", "-e", "-p"]).await;
        assert_eq!(
            painted.contains('\u{1b}'),
            coloured,
            "{environment} {args}: {painted:?}"
        );
        ada.press(&["C-d"]).await;
        ada.has_ended(0).await;
    }
}
