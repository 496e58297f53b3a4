//! The load client against the floor, against servers that misbehave, and the comparison of the floor with itself.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as the tests do"
)]

use std::{
    io::{BufRead, BufReader, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::{self, Command},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Duration,
};

use chinwag_bench::{
    clock::Stopwatch,
    floor::{Floor, Mode, Stop},
    hearing::Wrong,
    link::HEAD_BYTES,
    load::{DRAIN_LIMIT, Load, LoadError, MAX_PAYLOAD, Pace, Part, Run},
    progress::Progress,
    report::Report,
    scenario::{self, Scenario, Settings, Subject},
    target::{Dialect, Names, Target},
    wire::Framing,
};

const FRAMINGS: [Framing; 2] = [Framing::Lines, Framing::WebSocket];
const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const SHORT: Duration = Duration::from_millis(200);

/// A floor on a thread of this process, stopped at the end.
struct Running {
    target: Target,
    stop: Stop,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Running {
    fn start(framing: Framing, mode: Mode) -> Self {
        let floor = Floor::bind(LOOPBACK, framing, mode).unwrap();
        let target = Target::here(Dialect::Chinwag(framing), floor.local_addr());
        let stop = floor.stopper();
        Self {
            target,
            stop,
            thread: Some(thread::spawn(move || floor.run())),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.stop().unwrap();
        let ended = self.thread.take().unwrap().join().unwrap();
        if !thread::panicking() {
            ended.unwrap();
        }
    }
}

fn load(target: &Target) -> Load {
    Load {
        target: target.clone(),
        names: Names::own(),
        rooms: 1,
        members: 20,
        publishers: 3,
        payload: 128,
        gather_limit: Duration::from_secs(20),
        drain_limit: DRAIN_LIMIT,
        watch: Stopwatch::start(),
    }
}

/// Everybody comes in, and one window is measured.
fn measure(load: Load, pace: Pace, window: Duration) -> Result<(Part, Wrong), LoadError> {
    let members = load.members;
    let progress = Progress::nowhere();
    let mut run = Run::new(load, &progress)?;
    run.gather(members, true)?;
    let part = run.measure("it", pace, window, Some(process::id()))?;
    Ok((part, run.wrong()))
}

fn assert_faultless((part, wrong): &(Part, Wrong), deliveries: u64) {
    assert_eq!(part.deliveries, deliveries, "{part:?}");
    assert_eq!(
        (part.unsent, part.missing, part.unanswered, *wrong),
        (0, 0, 0, Wrong::default()),
        "{part:?}"
    );
}

#[test]
fn every_member_is_told_every_message_once_in_order() {
    for framing in FRAMINGS {
        for mode in [Mode::Lone, Mode::Batch] {
            let floor = Running::start(framing, mode);
            let done = measure(load(&floor.target), Pace::PerSecond(100.0), SHORT).unwrap();
            assert_faultless(&done, 20 * 20);
            let (part, _) = done;
            assert!(part.latency_us.p50 > 0 && part.latency_us.max >= part.latency_us.p99);
            assert!(part.server.unwrap().cpu_us_per_delivery.unwrap() > 0.0);
            assert!(part.wire_bytes_per_delivery > 128.0);
        }
    }
}

#[test]
fn messages_in_flight_are_many_and_faultless_too() {
    for framing in FRAMINGS {
        for mode in [Mode::Lone, Mode::Batch] {
            let floor = Running::start(framing, mode);
            let done = measure(load(&floor.target), Pace::InFlight(16), SHORT).unwrap();
            assert!(done.0.messages >= 16, "{done:?}");
            assert_faultless(&done, done.0.messages * 20);
        }
    }
}

#[test]
fn rooms_are_kept_apart() {
    let floor = Running::start(Framing::Lines, Mode::Batch);
    for pace in [Pace::PerSecond(200.0), Pace::InFlight(2)] {
        let load = Load {
            rooms: 6,
            ..load(&floor.target)
        };
        // Two rooms have four members, and four have three.
        let (part, wrong) = measure(load, pace, SHORT).unwrap();
        assert_eq!((part.missing, wrong), (0, Wrong::default()), "{part:?}");
        assert!(part.deliveries >= part.messages * 3 && part.deliveries < part.messages * 4);
    }
}

#[test]
fn long_texts_pass_through_every_kind_of_header() {
    for framing in FRAMINGS {
        for payload in [HEAD_BYTES, 100_000] {
            let floor = Running::start(framing, Mode::Batch);
            let load = Load {
                payload,
                ..load(&floor.target)
            };
            let done = measure(load, Pace::InFlight(2), SHORT).unwrap();
            assert_faultless(&done, done.0.messages * 20);
        }
    }
}

#[test]
fn a_floor_outlives_its_members() {
    let floor = Running::start(Framing::Lines, Mode::Lone);
    for _ in 0..3 {
        let done = measure(load(&floor.target), Pace::PerSecond(100.0), SHORT).unwrap();
        assert_faultless(&done, 20 * 20);
    }
}

#[test]
fn loads_that_can_not_be_carried_out_are_refused() {
    let target = Target::here(Dialect::Mqtt, LOOPBACK);
    let good = Load {
        publishers: 1,
        ..load(&target)
    };
    let refused = |load: Load, pace| matches!(measure(load, pace, SHORT), Err(LoadError::Plan(_)));
    for (rooms, members, publishers, payload) in [
        (0, 20, 1, 128),
        (21, 20, 1, 128),
        (1, 0, 1, 128),
        (1, 20, 0, 128),
        (1, 20, 21, 128),
        (1, 20, 1, HEAD_BYTES - 1),
        (1, 20, 1, MAX_PAYLOAD + 1),
        // MQTT promises order for each publisher alone.
        (1, 20, 2, 128),
    ] {
        let load = Load {
            rooms,
            members,
            publishers,
            payload,
            ..good.clone()
        };
        assert!(refused(load.clone(), Pace::InFlight(1)), "{load:?}");
    }
    for pace in [
        Pace::PerSecond(0.0),
        Pace::PerSecond(f64::NAN),
        Pace::InFlight(0),
    ] {
        assert!(matches!(pace.check(), Err(LoadError::Plan(_))), "{pace:?}");
    }
}

/// A server of lines for one member, which answers each command with what `script` says.
fn scripted(
    mut script: impl FnMut(&str) -> Vec<String> + Send + 'static,
) -> (Target, JoinHandle<()>) {
    let listener = TcpListener::bind(LOOPBACK).unwrap();
    let addr = listener.local_addr().unwrap();
    let thread = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut writer: TcpStream = stream.try_clone().unwrap();
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            for answer in script(&line) {
                // The client may have left on an earlier answer: that is what some tests are about.
                if writeln!(writer, "{answer}").is_err() {
                    return;
                }
            }
        }
    });
    let target = Target::here(Dialect::Chinwag(Framing::Lines), addr);
    (target, thread)
}

const SESSION: &str = r#"{"type":"session","id":1,"session":"s","user":"m1","timeout_ms":0}"#;
const INIT: &str = r#"{"type":"init","id":2,"room":"r","users":[],"count":0,"presence":"off","epoch":"e","seq":0}"#;

fn one_member(target: &Target) -> Load {
    Load {
        members: 1,
        publishers: 1,
        drain_limit: Duration::from_millis(50),
        ..load(target)
    }
}

const FIVE: (Pace, Duration) = (Pace::PerSecond(100.0), Duration::from_millis(50));

/// A server that lets one member in and answers the nth of five messages with those numbered `seqs[n]`, all with the
/// text of the nth.
fn numbering(seqs: &'static [&'static [u64]]) -> (Part, Wrong) {
    let mut sends = 0;
    let (target, server) = scripted(move |line| {
        if line.contains(r#""login""#) {
            return vec![SESSION.to_owned()];
        }
        if line.contains(r#""join""#) {
            return vec![INIT.to_owned()];
        }
        let text = line.split(r#""text":""#).nth(1).unwrap();
        let text = text.trim_end_matches(r#""}"#);
        let message = |seq: &u64| {
            format!(
                r#"{{"type":"message","room":"r","seq":{seq},"at":1,"user":"m1","text":"{text}"}}"#
            )
        };
        sends += 1;
        let sent = format!(r#"{{"type":"sent","room":"r","seq":{sends},"at":1}}"#);
        let messages = seqs[sends - 1].iter().map(message);
        std::iter::once(sent).chain(messages).collect()
    });
    let done = measure(one_member(&target), FIVE.0, FIVE.1).unwrap();
    server.join().unwrap();
    done
}

#[test]
fn repeated_and_reordered_messages_are_seen() {
    let (part, wrong) = numbering(&[&[1], &[3, 2], &[3], &[4], &[5]]);
    assert_eq!((wrong.lost, wrong.repeated, wrong.reordered), (0, 1, 1));
    assert_eq!((part.messages, part.deliveries), (5, 5));
}

#[test]
fn skipped_messages_are_lost_and_missing() {
    let (part, wrong) = numbering(&[&[1], &[3], &[4], &[6], &[]]);
    assert_eq!((wrong.lost, wrong.repeated, wrong.reordered), (2, 0, 0));
    assert_eq!((part.deliveries, part.missing), (4, 1));
}

#[test]
fn messages_that_nobody_answers_or_delivers_are_told() {
    let (target, server) = scripted(|line| {
        let answers = [(r#""login""#, SESSION), (r#""join""#, INIT)];
        let known = answers.iter().filter(|(command, _)| line.contains(command));
        known.map(|&(_, answer)| answer.to_owned()).collect()
    });
    let (part, _) = measure(one_member(&target), FIVE.0, FIVE.1).unwrap();
    server.join().unwrap();
    assert_eq!((part.messages, part.missing, part.unanswered), (5, 5, 5));
    assert_eq!(part.deliveries, 0);
}

/// The error of one member whose commands are answered so.
fn error_after(script: impl FnMut(&str) -> Vec<String> + Send + 'static) -> String {
    let (target, server) = scripted(script);
    let error = measure(one_member(&target), FIVE.0, FIVE.1).unwrap_err();
    server.join().unwrap();
    error.to_string()
}

#[test]
fn a_refused_member_is_told_why_and_what_to_do() {
    let refusal =
        r#"{"type":"error","id":1,"code":"rate_limited","message":"slowly","retry_ms":5}"#;
    let error = error_after(|_| vec![refusal.to_owned()]);
    for words in [
        "was logging in: it was refused with rate_limited (slowly)",
        "limits.connects_per_ip",
        "configs/bench.toml",
    ] {
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_limit_on_messages_is_told_by_its_key() {
    let refusal = r#"{"type":"error","id":1,"code":"rate_limited","message":"slowly"}"#;
    let error = error_after(move |line| {
        let answer = match line {
            login if login.contains(r#""login""#) => SESSION,
            join if join.contains(r#""join""#) => INIT,
            _ => refusal,
        };
        vec![answer.to_owned()]
    });
    assert!(
        error.contains("limits.sends") && error.contains("--publishers"),
        "{error}"
    );
}

#[test]
fn a_bye_in_the_middle_ends_the_run() {
    let bye = r#"{"type":"bye","code":"slow_consumer","message":"x","retry_ms":0}"#;
    let error = error_after(move |line| {
        let answer = match line {
            login if login.contains(r#""login""#) => SESSION,
            join if join.contains(r#""join""#) => INIT,
            _ => bye,
        };
        vec![answer.to_owned()]
    });
    assert!(
        error.contains("was present: its session was ended with slow_consumer (x)"),
        "{error}"
    );
}

#[test]
fn a_server_that_goes_away_is_told() {
    let listener = TcpListener::bind(LOOPBACK).unwrap();
    let addr = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        BufReader::new(stream)
            .read_line(&mut String::new())
            .unwrap();
    });
    let target = Target::here(Dialect::Chinwag(Framing::Lines), addr);
    let error = measure(one_member(&target), FIVE.0, FIVE.1).unwrap_err();
    server.join().unwrap();
    let error = error.to_string();
    assert!(
        error.contains("was logging in: the server closed the connection"),
        "{error}"
    );
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    let (target, server) = scripted(|_| Vec::new());
    let load = Load {
        gather_limit: Duration::from_millis(10),
        ..one_member(&target)
    };
    let error = measure(load, FIVE.0, FIVE.1).unwrap_err().to_string();
    server.join().unwrap();
    assert!(
        error.starts_with("0 of 1 members were there after 10ms"),
        "{error}"
    );
}

#[test]
fn silent_members_show_that_they_live() {
    let (pinged, ping) = mpsc::channel();
    let (target, server) = scripted(move |line| {
        if line.contains(r#""login""#) {
            let session =
                r#"{"type":"session","id":1,"session":"s","timeout_ms":40,"ping_every_ms":20}"#;
            return vec![session.to_owned()];
        }
        if line.contains(r#""join""#) {
            return vec![INIT.to_owned()];
        }
        assert_eq!(line, r#"{"type":"ping"}"#);
        // The test may have seen enough.
        _ = pinged.send(());
        vec![r#"{"type":"pong"}"#.to_owned()]
    });
    let progress = Progress::nowhere();
    let mut run = Run::new(one_member(&target), &progress).unwrap();
    run.gather(1, true).unwrap();
    while ping.try_recv().is_err() {
        run.rest(Duration::from_millis(10)).unwrap();
    }
    drop(run);
    server.join().unwrap();
}

/// A scenario against the floor, small and short.
fn play(scenario: Scenario, target: &Target) -> Report {
    let subject = Subject {
        target: target.clone(),
        pid: Some(process::id()),
        names: Names::own(),
    };
    let settings = scenario.settings();
    let settings = Settings {
        members: 40,
        rooms: settings.rooms.min(4),
        publishers: 2,
        warm_up: SHORT / 4,
        window: SHORT,
        settle: SHORT / 20,
        ..settings
    };
    scenario::run(scenario, &settings, &subject, &Progress::nowhere()).unwrap()
}

#[test]
fn scenarios_without_presence_play_on_the_floor_too() {
    let floor = Running::start(Framing::Lines, Mode::Batch);
    for scenario in [
        Scenario::Lone,
        Scenario::Batched,
        Scenario::ManyRooms,
        Scenario::Idle,
        Scenario::JoinStorm,
        Scenario::SmallBesideHuge,
    ] {
        let report = play(scenario, &floor.target);
        assert_eq!(report.faults.total, 0, "{report}");
        assert_eq!(report.gather.members, 40, "{report}");
        assert!(report.memory.is_some(), "{report}");
    }
}

#[test]
fn the_floor_is_compared_with_itself() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let own = env!("CARGO_BIN_EXE_chinwag-bench");
    let output = Command::new(own)
        .args([
            "compare",
            "--server",
            own,
            "--shrink",
            "50",
            "--repeats",
            "2",
        ])
        .args(["--only", "lone-1000-tcp,batched-ws"])
        .arg("--json")
        .arg(file("runs.json"))
        .arg("--markdown")
        .arg(file("table.md"))
        .arg("--svg")
        .arg(file("plot.svg"))
        .output()
        .unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    // Two cases, two contenders, two repeats.
    assert_eq!(errors.lines().count(), 8, "{errors}");
    let table = std::fs::read_to_string(file("table.md")).unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), table);
    assert!(
        table.contains("| 1,000 members, 16 in flight, WebSocket"),
        "{table}"
    );
    assert!(
        table.contains("In none of 8 runs was a message lost"),
        "{table}"
    );
    let runs = std::fs::read_to_string(file("runs.json")).unwrap();
    let runs: serde_json::Value = serde_json::from_str(&runs).unwrap();
    assert_eq!(runs["samples"].as_array().unwrap().len(), 8);
    assert!(
        std::fs::read_to_string(file("plot.svg"))
            .unwrap()
            .contains("<circle")
    );
}

#[test]
fn a_server_that_does_not_start_is_told_and_fails() {
    let own = env!("CARGO_BIN_EXE_chinwag-bench");
    // It tells a version, and knows no `serve`.
    let output = Command::new(own)
        .args([
            "compare",
            "--server",
            "/bin/ls",
            "--shrink",
            "50",
            "--repeats",
            "1",
        ])
        .args(["--only", "lone-1000-tcp"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("DID NOT RUN: chinwag of lone-1000-tcp"),
        "{text}"
    );
    assert!(
        text.contains("/bin/ls did not tell where it listens"),
        "{text}"
    );
}
