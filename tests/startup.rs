//! What a start promises of descriptors and of memory.

use std::path::Path;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

use crate::harness::{Addresses, Over, PATIENCE, PROGRAM, Program, Setup, Sloth, blocks};

/// What is logged where the file asks for more connections than can be had.
const WARNING: &str = "max_connections adds up to";
/// What is logged where only the default is more than that.
const NOTE: &str = "Descriptors are left for about";

/// The soft limit on open files of a process.
fn soft_limit(program: &Program) -> u64 {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", program.pid())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    line.split_whitespace().nth(3).unwrap().parse().unwrap()
}

fn logged(program: &Program, text: &str) -> Vec<String> {
    let lines = program.log().into_iter();
    lines.filter(|line| line.contains(text)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_soft_limit_on_descriptors_is_raised_to_what_the_listeners_need() {
    let setup = Setup::default()
        .only(&[Over::Tcp])
        .on(Over::Tcp, "max_connections = 200");
    let program = Program::start_in_shell(&setup, "ulimit -Sn 64; ulimit -Hn 4096").await;
    let soft = soft_limit(&program);
    assert!((200..4096).contains(&soft), "{soft}");
    assert_eq!(logged(&program, WARNING), [""; 0]);
    assert_eq!(logged(&program, NOTE), [""; 0]);
    // And they can be had.
    let mut clients = Vec::new();
    for n in 0..150 {
        let mut client = Line::connect(&program).await;
        client
            .command(
                json!({"type": "login", "user": format!("user{n}")}),
                "session",
            )
            .await;
        clients.push(client);
    }
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_more_connections_than_can_be_had_is_warned() {
    let setup = Setup::default()
        .only(&[Over::Tcp, Over::Polling])
        .on(Over::Tcp, "max_connections = 5000");
    let program = Program::start_in_shell(&setup, "ulimit -Sn 64; ulimit -Hn 1024").await;
    assert_eq!(soft_limit(&program), 1024);
    let warnings = logged(&program, WARNING);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].contains("WARN") && warnings[0].contains("up to 5000"),
        "{warnings:?}"
    );
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_leaves_the_number_to_the_server_is_told_and_not_warned() {
    let setup = Setup::default().on(Over::Tcp, "max_connections = 100");
    let program = Program::start_in_shell(&setup, "ulimit -n 1024").await;
    assert_eq!(logged(&program, WARNING), [""; 0]);
    let notes = logged(&program, NOTE);
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(
        notes[0].contains("INFO") && notes[0].contains("768"),
        "{notes:?}"
    );
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_orders_needs_descriptors_too() {
    let setup = Setup::default()
        .only(&[Over::Tcp])
        .on(Over::Tcp, "max_connections = 200")
        .and("[control]\nbind = \"127.0.0.1:0\"");
    let limit = "ulimit -Sn 64; ulimit -Hn 1024";
    let program = Program::start_in_shell(&setup, limit).await;
    let soft = soft_limit(&program);
    assert!(soft > 200 + 256 + 200, "{soft}: they may be 256 by default");
    assert_eq!(logged(&program, WARNING), [""; 0]);
    program.stop().await;

    let setup = setup.and("max_connections = 5000");
    let program = Program::start_in_shell(&setup, limit).await;
    let warnings = logged(&program, WARNING);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("up to 5200"), "{warnings:?}");
    program.stop().await;
}

/// Limits of a server that is to be small.
fn small(budget: &str) -> Setup {
    Setup::passwords_and_guests()
        .and(&format!(
            "[server]\nworkers = 2\nmemory_budget = \"{budget}\"\n\
             [sessions]\ntimeout = \"0s\"\nremember_ended = \"0s\"\n\
             [limits]\nsessions = 64\nrooms = 64\nrooms_per_session = 64\nroom_inbox = \"64KiB\"\n\
             member_queue = \"128KiB\"\npoll_queue = {{ events = 2000, bytes = \"128KiB\" }}\n\
             server_frame_bytes = \"16KiB\"\nslow_after = \"10m\"\n\
             sends = \"unlimited\"\ncommands = \"unlimited\"\nroom_creations = \"unlimited\"\n\
             connects_per_ip = \"unlimited\"\nlogin_failures_per_ip = \"unlimited\"\n\
             login_failures_per_name = \"unlimited\"\n\
             [room]\npresence = \"off\"\nhistory = {{ events = 200, bytes = \"128KiB\", age = \"1h\" }}\n"
        ))
        .on_all("max_connections = 64")
}

/// Exit code, standard output and standard error of `chinwag check`.
async fn check(setup: &Setup) -> (Option<i32>, String, String) {
    let folder = setup.folder();
    let file = folder.path().join("chinwag.toml");
    std::fs::write(&file, setup.document()).unwrap();
    Program::run(&["check", path(&file)], "").await
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn limits_that_could_exceed_the_budget_are_refused_with_the_sum() {
    let setup = small("32MiB");
    let folder = setup.folder();
    let file = folder.path().join("chinwag.toml");
    std::fs::write(&file, setup.document()).unwrap();
    for arguments in [
        &["check", path(&file)][..],
        &["serve", "--config", path(&file)],
    ] {
        let (exit, _, errors) = Program::run(arguments, "").await;
        assert_eq!(exit, Some(1), "{errors}");
        for part in [
            "error: server.memory_budget: the limits allow ",
            "which is over 32MiB:\n",
            "  192KiB  sessions: limits.sessions 64 x 3KiB\n",
            "  28MiB  queues of clients that do not read: \
             limits.sessions 64 x (3 x limits.member_queue 128KiB + 64KiB)\n",
            "  12MiB  history of rooms: limits.rooms 64 x (room.history.bytes 128KiB + events 200 x 320B)\n",
            "  19MiB  hashing of passwords: hash_threads ",
            "  in all\n",
            "limits.member_queue",
            "Not counted either: ",
        ] {
            assert!(errors.contains(part), "{part:?} is missing:\n{errors}");
        }
    }
}

#[tokio::test]
async fn limits_within_the_budget_are_shown_with_their_sum() {
    let (exit, output, errors) = check(&small("1GiB")).await;
    assert_eq!(exit, Some(0), "{errors}");
    assert!(
        output.contains("\nmemory at the worst, of 1GiB:\n"),
        "{output}"
    );
    assert!(output.contains("  in all\n"), "{output}");
    let (exit, output, _) = check(&small("0")).await;
    assert_eq!(exit, Some(0));
    assert!(!output.contains("memory"), "{output}");
}

#[tokio::test]
async fn the_guide_shows_what_the_program_says() {
    let [documents, said] = ["toml", "text"].map(|kind| blocks("docs/sizing.md", kind));
    assert_eq!((documents.len(), said.len()), (2, 3));
    let folder = Setup::passwords().folder();
    let file = folder.path().join("chat.toml");
    let check = async |document: &str| {
        std::fs::write(&file, document).unwrap();
        let (exit, output, errors) = Program::run(&["check", path(&file)], "").await;
        let told = (output + &errors).replace(path(&file), "chat.toml");
        (exit, told)
    };
    assert_eq!(check(&documents[0]).await, (Some(1), said[0].clone()));
    // The second takes the place of the last table of the first.
    let (last, _) = documents[1].split_once('\n').unwrap();
    let (before, _) = documents[0].split_once(last).unwrap();
    let mended = format!("{before}{}", documents[1]);
    assert_eq!(check(&mended).await, (Some(0), said[1].clone()));

    let mut program = tokio::process::Command::new("bash");
    program.args(["-c", "ulimit -n 1024; exec \"$@\"", "bash", PROGRAM]);
    program.args(["serve", "--config", path(&file)]);
    program
        .env("CHINWAG_TRANSPORTS__WEB__BIND", "127.0.0.1:0")
        .env("NO_COLOR", "1")
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true);
    let mut program = program.spawn().unwrap();
    let mut lines = BufReader::new(program.stderr.take().unwrap()).lines();
    let warning = said[2].trim_end();
    let read = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains(warning) {
                return true;
            }
        }
        false
    };
    assert!(timeout(PATIENCE, read).await.unwrap(), "{warning}");
}

#[tokio::test]
async fn a_check_lists_all_that_listens_and_who_is_told() {
    let document = "\
[transports.line]
kind = \"tcp\"
bind = \"127.0.0.1:4020\"
auth = [\"members\", \"guests\"]
[transports.web]
kind = \"websocket\"
bind = \"127.0.0.1:8080\"
auth = [\"members\"]
[web]
bind = \"127.0.0.1:8080\"
[metrics]
bind = \"127.0.0.1:9464\"
[control]
bind = \"127.0.0.1:9465\"
[authenticators.members]
kind = \"password\"
file = \"users.txt\"
session_manager = \"books\"
[authenticators.guests]
kind = \"anonymous\"
prefix = \"~\"
session_manager = \"rooms\"
[session_managers.books]
kind = \"http\"
endpoints = [\"http://127.0.0.1:1/\"]
[session_managers.rooms]
kind = \"exec\"
command = [\"cat\"]
[session_managers.spare]
kind = \"exec\"
command = [\"cat\"]
";
    let folder = Setup::passwords().folder();
    let file = folder.path().join("chinwag.toml");
    std::fs::write(&file, document).unwrap();
    let (exit, output, errors) = Program::run(&["check", path(&file)], "").await;
    assert_eq!(exit, Some(0), "{errors}");
    let rows: Vec<String> = output
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        rows,
        [
            "transports.line tcp 127.0.0.1:4020 plain text auth: members, guests",
            "transports.web websocket 127.0.0.1:8080 plain text auth: members",
            "web page 127.0.0.1:8080 plain text shared with transports.web",
            "control http 127.0.0.1:9465 plain text orders of session managers",
            "metrics http 127.0.0.1:9464 plain text",
            "session_managers.books http told of: members",
            "session_managers.rooms exec told of: guests",
            "session_managers.spare exec told of nobody",
        ],
        "{output}"
    );
}

/// The sum that `chinwag check` shows, in bytes.
async fn sum(setup: &Setup) -> u64 {
    let (exit, output, errors) = check(setup).await;
    assert_eq!(exit, Some(0), "{errors}");
    let line = output.lines().find(|line| line.ends_with("  in all"));
    let text = line.unwrap().split_whitespace().next().unwrap();
    let mebibytes: f64 = text.strip_suffix("MiB").unwrap().parse().unwrap();
    (mebibytes * f64::from(1 << 20)) as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_under_hostile_load_stays_within_its_budget() {
    let setup = small("1GiB");
    let allowed = sum(&setup).await;
    let program = Program::start(&setup).await;
    let before = program.resident();
    let mut peak = before;

    // Sessions that never poll, each alone with the one who talks: no other queue shares what waits for them, and small
    // events weigh most.
    let mut talker = Line::login(&program, "talker").await;
    let mut sloths = Vec::new();
    for n in 0..20 {
        let room = format!("small{n}");
        let addr = program.of(Over::Polling);
        sloths.push(Sloth::join(addr, Over::Polling, &format!("poll{n}"), &room).await);
        talker.join(&room).await;
    }
    for n in 0..20 {
        talker.say(&format!("small{n}"), "x", 700).await;
        peak = peak.max(program.resident());
    }
    // Readers that have stopped, until they are ended for it.
    for over in Over::PUSH {
        for n in 0..20 {
            let addr = program.of(over);
            sloths.push(Sloth::join(addr, over, &format!("push{n}"), "large").await);
        }
        talker.join("large").await;
        for _ in 0..30 {
            talker.say("large", &"y".repeat(3000), 10).await;
            peak = peak.max(program.resident());
        }
        // The talker is the one who is left.
        let left = f64::from(u8::from(over == Over::Tcp));
        let transport = format!("transport=\"{}\"", over.table());
        program
            .metric_becomes("chinwag_sessions", &transport, left)
            .await;
    }
    // Rooms full of history.
    for n in 0..40 {
        let room = format!("history{n}");
        talker.join(&room).await;
        talker.say(&room, &"z".repeat(3000), 45).await;
        peak = peak.max(program.resident());
    }
    let grown = peak - before;
    assert!(grown > 8 << 20, "the load was none: {grown} bytes");
    assert!(grown < allowed, "{grown} bytes, of {allowed}");
}

/// A client over TCP that sends many commands at a time.
struct Line {
    stream: BufReader<TcpStream>,
}

impl Line {
    async fn connect(program: &Program) -> Self {
        let stream = TcpStream::connect(program.of(Over::Tcp)).await.unwrap();
        Self {
            stream: BufReader::new(stream),
        }
    }

    async fn login(program: &Program, user: &str) -> Self {
        let mut line = Self::connect(program).await;
        line.command(json!({"type": "login", "user": user}), "session")
            .await;
        line
    }

    async fn join(&mut self, room: &str) {
        self.command(json!({"type": "join", "room": room}), "init")
            .await;
    }

    /// Sends a command and reads up to its answer.
    async fn command(&mut self, command: Value, answer: &str) {
        self.commands(&command, 1, answer).await;
    }

    async fn say(&mut self, room: &str, text: &str, times: usize) {
        let send = json!({"type": "send", "room": room, "text": text});
        // No more at a time than both ends' kernels hold, which leaves none of them waiting for the other.
        for _ in 0..times.div_ceil(10) {
            self.commands(&send, 10, "sent").await;
        }
    }

    async fn commands(&mut self, command: &Value, times: usize, answer: &str) {
        let commands = format!("{command}\n").repeat(times);
        self.stream.write_all(commands.as_bytes()).await.unwrap();
        let mut left = times;
        let mut line = String::new();
        while left > 0 {
            line.clear();
            let read = timeout(PATIENCE, self.stream.read_line(&mut line)).await;
            assert!(matches!(read, Ok(Ok(1..))), "the server closed");
            let object: Value = serde_json::from_str(&line).unwrap();
            assert_ne!(object["type"], "error", "{line}");
            left -= usize::from(object["type"] == answer);
        }
    }
}
