//! The load client against the floor, against servers that misbehave, and the comparison against
//! itself.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as the tests do"
)]

use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process,
    thread::{self, JoinHandle},
    time::Duration,
};

use chinwag_bench::{
    compare::{CompareError, Comparison, Limits},
    crowd::{CrowdError, Venue},
    floor::{Floor, Mode, Stop},
    launch::LaunchError,
    load::{self, DRAIN_LIMIT, IdlePlan, LoadError, LoadReport, MAX_PAYLOAD, Pace, Plan},
    wire::Framing,
};

const FRAMINGS: [Framing; 2] = [Framing::Lines, Framing::WebSocket];
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A floor on a thread of this process, stopped at the end.
struct Running {
    addr: SocketAddr,
    stop: Stop,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Running {
    fn start(framing: Framing, mode: Mode) -> Self {
        let floor = Floor::bind(LOOPBACK, framing, mode).unwrap();
        let (addr, stop) = (floor.local_addr(), floor.stopper());
        Self {
            addr,
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

fn plan(addr: SocketAddr, framing: Framing, pace: Pace) -> Plan {
    Plan {
        venue: Venue {
            addr,
            framing,
            room: "bench".to_owned(),
        },
        members: 20,
        publishers: 3,
        pace,
        payload: 128,
        warm_up: Duration::from_millis(50),
        window: Duration::from_millis(300),
        gather_limit: Duration::from_secs(20),
        drain_limit: DRAIN_LIMIT,
        pid: Some(process::id()),
    }
}

fn assert_faultless(report: &LoadReport) {
    assert_eq!(report.faults(), 0, "{report}");
    assert_eq!(report.deliveries, report.messages * 20, "{report}");
}

#[test]
fn every_member_is_told_every_message_once_in_order() {
    for framing in FRAMINGS {
        for mode in [Mode::Lone, Mode::Batch] {
            let floor = Running::start(framing, mode);
            let report = load::run(&plan(floor.addr, framing, Pace::PerSecond(100.0))).unwrap();
            assert_faultless(&report);
            assert_eq!(report.messages, 30);
            assert!(report.latency_us.p50 > 0 && report.latency_us.max >= report.latency_us.p99);
            assert!(report.server.unwrap().cpu_us_per_delivery > 0.0);
        }
    }
}

#[test]
fn messages_in_flight_are_many_and_faultless_too() {
    for framing in FRAMINGS {
        for mode in [Mode::Lone, Mode::Batch] {
            let floor = Running::start(framing, mode);
            let report = load::run(&plan(floor.addr, framing, Pace::InFlight(16))).unwrap();
            assert_faultless(&report);
            assert!(report.messages >= 16, "{report}");
        }
    }
}

#[test]
fn long_texts_pass_through_every_kind_of_header() {
    for framing in FRAMINGS {
        for payload in [16, 100_000] {
            let floor = Running::start(framing, Mode::Batch);
            let plan = Plan {
                payload,
                ..plan(floor.addr, framing, Pace::InFlight(2))
            };
            assert_faultless(&load::run(&plan).unwrap());
        }
    }
}

#[test]
fn a_floor_outlives_its_members() {
    let floor = Running::start(Framing::Lines, Mode::Lone);
    for _ in 0..3 {
        let report = load::run(&plan(floor.addr, Framing::Lines, Pace::PerSecond(100.0))).unwrap();
        assert_faultless(&report);
    }
}

#[test]
fn idle_connections_are_counted_in_the_room_and_out_of_it() {
    for framing in FRAMINGS {
        for join in [true, false] {
            let floor = Running::start(framing, Mode::Lone);
            let report = load::idle(&IdlePlan {
                venue: plan(floor.addr, framing, Pace::InFlight(1)).venue,
                connections: 100,
                before: 10,
                join,
                settle: Duration::from_millis(10),
                gather_limit: Duration::from_secs(20),
                pid: process::id(),
            })
            .unwrap();
            assert_eq!((report.connections, report.joined), (100, join));
            assert!(report.before_kib > 0 && report.after_kib > 0);
        }
    }
}

#[test]
fn plans_that_can_not_be_carried_out_are_refused() {
    let good = plan(LOOPBACK, Framing::Lines, Pace::PerSecond(1.0));
    for bad in [
        Plan {
            members: 0,
            ..good.clone()
        },
        Plan {
            publishers: 0,
            ..good.clone()
        },
        Plan {
            publishers: 21,
            ..good.clone()
        },
        Plan {
            payload: MAX_PAYLOAD + 1,
            ..good.clone()
        },
        Plan {
            payload: 15,
            ..good.clone()
        },
        Plan {
            pace: Pace::PerSecond(0.0),
            ..good.clone()
        },
        Plan {
            pace: Pace::PerSecond(f64::NAN),
            ..good.clone()
        },
        Plan {
            pace: Pace::InFlight(0),
            ..good
        },
    ] {
        assert!(
            matches!(load::run(&bad), Err(LoadError::Plan(_))),
            "{bad:?}"
        );
    }
}

/// A server of lines for one member, which answers each command with what `script` says.
fn scripted(script: impl Fn(&str) -> Vec<String> + Send + 'static) -> (SocketAddr, JoinHandle<()>) {
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
    (addr, thread)
}

const SESSION: &str = r#"{"type":"session","id":1,"session":"s","user":"m000001","timeout_ms":0}"#;
const INIT: &str =
    r#"{"type":"init","id":2,"room":"bench","users":[],"count":1,"epoch":"e","seq":0}"#;

fn one_member(addr: SocketAddr) -> Plan {
    Plan {
        members: 1,
        publishers: 1,
        warm_up: Duration::ZERO,
        window: Duration::from_millis(50),
        ..plan(addr, Framing::Lines, Pace::PerSecond(100.0))
    }
}

/// A server that lets one member in and answers the nth `send` with the messages numbered
/// `seqs[n]`.
fn numbering(seqs: &'static [&'static [u64]]) -> (SocketAddr, JoinHandle<()>) {
    let sends = std::sync::atomic::AtomicUsize::new(0);
    scripted(move |line| {
        if line.contains(r#""login""#) {
            return vec![SESSION.to_owned()];
        }
        if line.contains(r#""join""#) {
            return vec![INIT.to_owned()];
        }
        let text = line
            .split(r#""text":""#)
            .nth(1)
            .unwrap()
            .trim_end_matches(r#""}"#);
        let send = sends.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let message = |seq| {
            format!(
                r#"{{"type":"message","room":"bench","seq":{seq},"at":1,"user":"m000001","text":"{text}"}}"#
            )
        };
        let sent = format!(
            r#"{{"type":"sent","room":"bench","seq":{},"at":1}}"#,
            send + 1
        );
        std::iter::once(sent)
            .chain(seqs[send].iter().map(message))
            .collect()
    })
}

#[test]
fn repeated_and_reordered_messages_are_seen() {
    let (addr, server) = numbering(&[&[1], &[3, 2], &[3], &[4], &[5]]);
    let report = load::run(&one_member(addr)).unwrap();
    server.join().unwrap();
    assert_eq!(
        (report.lost, report.repeated, report.reordered),
        (0, 1, 1),
        "{report}"
    );
    assert!(report.faults() > 0);
}

#[test]
fn skipped_messages_are_lost() {
    let (addr, server) = numbering(&[&[1], &[3], &[4], &[6, 7], &[8]]);
    let report = load::run(&one_member(addr)).unwrap();
    server.join().unwrap();
    assert_eq!(
        (report.lost, report.repeated, report.reordered),
        (2, 0, 0),
        "{report}"
    );
    assert!(report.faults() > 0);
}

#[test]
fn messages_that_nobody_answers_or_delivers_are_faults() {
    let (addr, server) = scripted(|line| {
        let answers = [(r#""login""#, SESSION), (r#""join""#, INIT)];
        let known = answers.iter().filter(|(command, _)| line.contains(command));
        known.map(|&(_, answer)| answer.to_owned()).collect()
    });
    let drain_limit = Duration::from_millis(10);
    let silent = Plan {
        drain_limit,
        ..one_member(addr)
    };
    let report = load::run(&silent).unwrap();
    server.join().unwrap();
    assert_eq!(
        (report.messages, report.missing, report.unanswered),
        (5, 5, 5),
        "{report}"
    );
    assert_eq!((report.deliveries, report.faults()), (0, 10), "{report}");
}

#[test]
fn what_a_refused_member_was_told_is_in_the_error() {
    let refusal = r#"{"type":"error","id":1,"code":"auth_failed","message":"no"}"#;
    let (addr, server) = scripted(|_| vec![refusal.to_owned()]);
    let error = load::run(&one_member(addr)).unwrap_err();
    server.join().unwrap();
    assert_eq!(
        error.to_string(),
        format!("m000001 was logging in and was told {refusal}")
    );
}

#[test]
fn a_bye_in_the_middle_ends_the_run() {
    let bye = r#"{"type":"bye","code":"slow_consumer","message":"x","retry_ms":0}"#;
    let (addr, server) = scripted(|line| {
        let answer = match line {
            login if login.contains(r#""login""#) => SESSION,
            join if join.contains(r#""join""#) => INIT,
            _ => bye,
        };
        vec![answer.to_owned()]
    });
    let error = load::run(&one_member(addr)).unwrap_err();
    server.join().unwrap();
    assert_eq!(
        error.to_string(),
        format!("m000001 was present and was told {bye}")
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
    let error = load::run(&one_member(addr)).unwrap_err();
    server.join().unwrap();
    assert_eq!(
        error.to_string(),
        "the server closed the connection of m000001 while it was logging in"
    );
}

#[test]
fn a_server_that_would_end_silent_members_is_refused() {
    let (addr, server) =
        scripted(|_| vec![SESSION.replace(r#""timeout_ms":0"#, r#""timeout_ms":30000"#)]);
    let error = load::run(&one_member(addr)).unwrap_err();
    server.join().unwrap();
    assert!(
        matches!(
            error,
            LoadError::Crowd(CrowdError::Impatient { timeout_ms: 30_000 })
        ),
        "{error}"
    );
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    let (addr, server) = scripted(|_| Vec::new());
    let plan = Plan {
        gather_limit: Duration::from_millis(10),
        ..one_member(addr)
    };
    let error = load::run(&plan).unwrap_err();
    server.join().unwrap();
    assert!(
        matches!(
            error,
            LoadError::Crowd(CrowdError::TooLate {
                present: 0,
                wanted: 1,
                ..
            })
        ),
        "{error}"
    );
}

#[test]
fn nobody_there_is_an_error_with_the_address() {
    // Taken, so that nobody else gets it, and not listening.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&LOOPBACK.into()).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    let error = load::run(&one_member(addr)).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("m000001 could not connect to {addr}")
    );
}

fn comparison(server: &str) -> Comparison {
    Comparison {
        server: PathBuf::from(server),
        floor: PathBuf::from(env!("CARGO_BIN_EXE_chinwag-bench")),
        framings: FRAMINGS.to_vec(),
        repeats: 2,
        members: 20,
        rate: 100.0,
        publishers: 2,
        in_flight: 4,
        payload: 64,
        warm_up: Duration::from_millis(20),
        window: Duration::from_millis(100),
        batched_window: Duration::from_millis(50),
        idle: 50,
        settle: Duration::from_millis(10),
        gather_limit: Duration::from_secs(20),
        limits: Limits {
            lone: None,
            batched: None,
            idle_kib: None,
        },
    }
}

#[test]
fn the_floor_is_compared_with_itself() {
    let comparison = comparison(env!("CARGO_BIN_EXE_chinwag-bench"));
    let mut runs = 0;
    let outcome = comparison.run(|_| runs += 1).unwrap();
    // Two workloads, framings and programs each, and the idle connections of two framings, twice.
    assert_eq!(runs, 2 * (8 + 2));
    assert_eq!((outcome.contests.len(), outcome.idle.len()), (4, 2));
    assert!(outcome.held(), "{outcome}");
    for contest in &outcome.contests {
        assert_eq!((contest.floor.len(), contest.server.len()), (2, 2));
        assert!(contest.ratio.min > 0.0, "{outcome}");
    }
}

#[test]
fn a_limit_that_is_missed_is_told() {
    let limits = Limits {
        lone: Some(f64::MIN_POSITIVE),
        batched: None,
        idle_kib: None,
    };
    let server = env!("CARGO_BIN_EXE_chinwag-bench");
    let framings = vec![Framing::Lines];
    let comparison = Comparison {
        limits,
        framings,
        repeats: 1,
        in_flight: 0,
        idle: 0,
        ..comparison(server)
    };
    let outcome = comparison.run(|_| ()).unwrap();
    assert!(!outcome.held());
    assert!(outcome.to_string().contains("MISSED"), "{outcome}");
}

#[test]
fn a_server_that_does_not_start_is_told_with_its_last_words() {
    // It knows no `serve --config FILE`, complains and ends.
    let error = comparison("/bin/ls").run(|_| ()).unwrap_err();
    assert!(
        matches!(
            error,
            CompareError::Launch(LaunchError::NotListening { .. })
        ),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains("/bin/ls did not tell where it listens (line): it has closed its output"),
        "{error}"
    );
    assert!(
        error.tail().unwrap().to_string().contains("ls: "),
        "{error:?}"
    );
}
