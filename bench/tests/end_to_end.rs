//! The load client against the floor, against servers that misbehave, and the comparison of the floor with itself.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as the tests do"
)]

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{self, Command},
    sync::{Arc, Condvar, Mutex, mpsc},
    thread::{self, JoinHandle},
    time::Duration,
};

use chinwag_bench::{
    clock::Stopwatch,
    crowd::Fate,
    floor::{Floor, Mode, Stop},
    hearing::Wrong,
    link::HEAD_BYTES,
    load::{DRAIN_LIMIT, Load, LoadError, MAX_PAYLOAD, Pace, Part, Run, Span},
    progress::Progress,
    report::Report,
    scenario::{self, Scenario, Settings, Subject},
    stream::TlsFiles,
    target::{Dialect, Names, Target},
    wire::{self, Framing},
};
use flate2::{Compression, write::GzEncoder};
use rustls::{ServerConfig, ServerConnection, pki_types::PrivateKeyDer};

const FRAMINGS: [Framing; 2] = [Framing::Lines, Framing::WebSocket];
const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const SHORT: Duration = Duration::from_millis(200);

/// A floor on a thread of this process, stopped at the end.
struct Running {
    target: Target,
    stop: Stop,
    thread: Option<JoinHandle<io::Result<()>>>,
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
fn a_number_of_messages_is_sent_and_not_one_more() {
    let floor = Running::start(Framing::Lines, Mode::Lone);
    let progress = Progress::nowhere();
    let mut run = Run::new(load(&floor.target), &progress).unwrap();
    run.gather(20, true).unwrap();
    let long = Duration::from_secs(60);
    for (in_flight, messages) in [(1, 3), (16, 16), (16, 5)] {
        let pace = Pace::InFlight(in_flight);
        let part = run
            .measure_span("some", pace, Span::Messages(messages, long), None)
            .unwrap();
        assert_eq!((part.messages, part.unsent), (messages, 0));
        assert_faultless(&(part, run.wrong()), messages * 20);
    }
    let none = Span::Messages(5, Duration::ZERO);
    let part = run
        .measure_span("none", Pace::InFlight(1), none, None)
        .unwrap();
    assert_eq!((part.messages, part.unsent), (0, 5));
    let at_a_rate = run.measure_span("rate", Pace::PerSecond(1.0), Span::Messages(5, long), None);
    assert!(matches!(at_a_rate, Err(LoadError::Plan(_))));
}

/// Speaks TLS in front of a floor, as long as the test runs. Returns how to come in.
fn through_tls(floor: &Target) -> Target {
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let (config, behind) = (Arc::new(config), floor.addr);
    let listener = TcpListener::bind(LOOPBACK).unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let tls = ServerConnection::new(Arc::clone(&config)).unwrap();
            join_up(socket.unwrap(), TcpStream::connect(behind).unwrap(), tls);
        }
    });
    let mut ca = tempfile::NamedTempFile::new().unwrap();
    ca.write_all(cert.pem().as_bytes()).unwrap();
    let files = TlsFiles {
        ca: vec![ca.path().to_owned()],
        ..TlsFiles::default()
    };
    Target {
        tls: Some(files.read("127.0.0.1").unwrap()),
        ..Target::here(floor.dialect, addr)
    }
}

/// Carries bytes between a client that speaks TLS and a server that does not, until one of them is gone.
fn join_up(client: TcpStream, server: TcpStream, tls: ServerConnection) {
    let inwards = Arc::new(Mutex::new(tls));
    let outwards = Arc::clone(&inwards);
    let (mut from_client, mut replies) = (client.try_clone().unwrap(), client.try_clone().unwrap());
    let (mut from_server, mut to_server) = (server.try_clone().unwrap(), server);
    let mut to_client = client;
    thread::spawn(move || -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        loop {
            let count = from_client.read(&mut buffer)?;
            let mut tls = inwards.lock().unwrap();
            let mut rest = &buffer[..count];
            while !rest.is_empty() {
                tls.read_tls(&mut rest)?;
                let state = tls.process_new_packets().map_err(io::Error::other)?;
                let mut plain = vec![0; state.plaintext_bytes_to_read()];
                tls.reader().read_exact(&mut plain)?;
                to_server.write_all(&plain)?;
            }
            while tls.wants_write() {
                tls.write_tls(&mut replies)?;
            }
            if count == 0 {
                return to_server.shutdown(Shutdown::Both);
            }
        }
    });
    thread::spawn(move || -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        loop {
            let count = from_server.read(&mut buffer)?;
            let mut tls = outwards.lock().unwrap();
            tls.writer().write_all(&buffer[..count])?;
            while tls.wants_write() {
                tls.write_tls(&mut to_client)?;
            }
            if count == 0 {
                return to_client.shutdown(Shutdown::Both);
            }
        }
    });
}

#[test]
fn members_who_come_through_tls_are_told_every_message_too() {
    for (framing, scheme) in [(Framing::Lines, "tls://"), (Framing::WebSocket, "wss://")] {
        let floor = Running::start(framing, Mode::Lone);
        let target = through_tls(&floor.target);
        assert!(target.to_string().starts_with(scheme), "{target}");
        let done = measure(load(&target), Pace::PerSecond(100.0), SHORT).unwrap();
        assert_faultless(&done, 20 * 20);
        // What is counted went over the wire: each record has 22 bytes more than it carries.
        let plain = measure(load(&floor.target), Pace::PerSecond(100.0), SHORT).unwrap();
        let more = done.0.wire_bytes_per_delivery - plain.0.wire_bytes_per_delivery;
        assert!((10.0..=30.0).contains(&more), "{more}");
        let many = measure(load(&target), Pace::InFlight(16), SHORT).unwrap();
        assert_faultless(&many, many.0.messages * 20);
    }
}

#[test]
fn a_client_that_trusts_nobody_there_is_told_what_to_name() {
    let floor = Running::start(Framing::Lines, Mode::Lone);
    let target = Target {
        tls: through_tls(&floor.target).tls,
        ..through_tls(&floor.target)
    };
    let error = measure(load(&target), Pace::PerSecond(1.0), SHORT).unwrap_err();
    assert!(error.to_string().contains("--ca FILE"), "{error}");
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
        names: Names {
            room: "r".to_owned(),
            ..Names::own()
        },
        members: 1,
        publishers: 1,
        drain_limit: Duration::from_millis(50),
        ..load(target)
    }
}

const FIVE: (Pace, Duration) = (Pace::PerSecond(100.0), Duration::from_millis(50));

/// A server that lets one member in and answers the nth of five messages with `events[n]`, each a number of its own and
/// which of the messages it carries.
fn numbering(events: &'static [&'static [(u64, usize)]]) -> (Part, Wrong) {
    let mut texts = Vec::new();
    let (target, server) = scripted(move |line| {
        if line.contains(r#""login""#) {
            return vec![SESSION.to_owned()];
        }
        if line.contains(r#""join""#) {
            return vec![INIT.to_owned()];
        }
        let text = line.split(r#""text":""#).nth(1).unwrap();
        texts.push(text.trim_end_matches(r#""}"#).to_owned());
        let message = |&(seq, which): &(u64, usize)| {
            let text = &texts[which - 1];
            format!(
                r#"{{"type":"message","room":"r","seq":{seq},"at":1,"user":"m1","text":"{text}"}}"#
            )
        };
        let sends = texts.len();
        let sent = format!(r#"{{"type":"sent","room":"r","seq":{sends},"at":1}}"#);
        let messages = events[sends - 1].iter().map(message);
        std::iter::once(sent).chain(messages).collect()
    });
    // What is to come has come by then, on a busy machine too.
    let load = Load {
        drain_limit: Duration::from_secs(1),
        ..one_member(&target)
    };
    let done = measure(load, FIVE.0, FIVE.1).unwrap();
    server.join().unwrap();
    done
}

#[test]
fn repeated_and_reordered_messages_are_seen() {
    let (part, wrong) = numbering(&[
        &[(1, 1)],
        &[],
        &[(3, 3), (2, 2)],
        &[(3, 3), (4, 4)],
        &[(5, 5)],
    ]);
    let expected = Wrong {
        repeated: 1,
        reordered: 1,
        ..Wrong::default()
    };
    assert_eq!(wrong, expected);
    assert_eq!((part.messages, part.deliveries), (5, 5));
}

#[test]
fn skipped_messages_are_lost_and_missing() {
    let (part, wrong) = numbering(&[&[(1, 1)], &[], &[(3, 3)], &[(4, 4)], &[]]);
    // To its member, and by its sender.
    assert_eq!((wrong.lost, wrong.repeated, wrong.reordered), (4, 0, 0));
    assert_eq!((part.deliveries, part.missing), (3, 2));
}

#[test]
fn a_server_that_numbers_well_and_publishes_a_message_twice_or_in_place_of_another_is_found_out() {
    let twice: &[&[(u64, usize)]] = &[
        &[(1, 1), (2, 1)],
        &[(3, 2), (4, 2)],
        &[(5, 3), (6, 3)],
        &[(7, 4), (8, 4)],
        &[(9, 5), (10, 5)],
    ];
    let instead: &[&[(u64, usize)]] = &[&[(1, 1)], &[(2, 1)], &[(3, 3)], &[(4, 3)], &[(5, 5)]];
    let swapped: &[&[(u64, usize)]] = &[&[], &[(1, 2), (2, 1)], &[], &[(3, 4), (4, 3)], &[(5, 5)]];
    let (part, wrong) = numbering(twice);
    assert_eq!((part.deliveries, wrong.repeated, wrong.lost), (5, 5, 0));
    assert!(wrong.surplus > 0, "{wrong:?}");
    let (part, wrong) = numbering(instead);
    assert_eq!((part.missing, wrong.repeated, wrong.lost), (2, 2, 2));
    assert_eq!(wrong.surplus, 2);
    let (part, wrong) = numbering(swapped);
    assert_eq!((part.missing, wrong.reordered, wrong.lost), (0, 2, 0));
}

#[test]
fn what_comes_once_too_often_after_all_else_is_seen() {
    // The server sends the last message again once its member is told that all have come.
    let (again, when) = mpsc::channel();
    let listener = TcpListener::bind(LOOPBACK).unwrap();
    let target = Target::here(
        Dialect::Chinwag(Framing::Lines),
        listener.local_addr().unwrap(),
    );
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut writer = stream.try_clone().unwrap();
        let mut lines = BufReader::new(stream).lines();
        let mut seq = 0;
        let mut event = String::new();
        for answer in [SESSION, INIT] {
            lines.next().unwrap().unwrap();
            writeln!(writer, "{answer}").unwrap();
        }
        while seq < 5 {
            let line = lines.next().unwrap().unwrap();
            let text = line.split(r#""text":""#).nth(1).unwrap();
            let text = text.trim_end_matches(r#""}"#);
            seq += 1;
            event = format!(
                r#"{{"type":"message","room":"r","seq":{seq},"at":1,"user":"m1","text":"{text}"}}"#
            );
            writeln!(writer, r#"{{"type":"sent","room":"r","seq":{seq},"at":1}}"#).unwrap();
            writeln!(writer, "{event}").unwrap();
        }
        when.recv().unwrap();
        writeln!(writer, "{event}").unwrap();
        // Until the client has gone.
        assert!(lines.next().is_none_or(|line| line.is_err()));
    });
    let progress = Progress::nowhere();
    let mut run = Run::new(one_member(&target), &progress).unwrap();
    run.gather(1, true).unwrap();
    let part = run.measure("it", FIVE.0, FIVE.1, None).unwrap();
    assert_eq!((part.missing, run.wrong()), (0, Wrong::default()));
    again.send(()).unwrap();
    // One look is short, and the server may be held up.
    let watch = Stopwatch::start();
    while run.verdict().unwrap().repeated == 0 {
        assert!(watch.elapsed() < Duration::from_secs(20), "nobody listens");
    }
    assert_eq!(run.wrong().repeated, 1);
    drop(run);
    server.join().unwrap();
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
    assert_eq!((part.deliveries, part.latency_at_least), (0, 5));
    // All of them were waited for until the drain was given up.
    let limit = u64::try_from(one_member(&target).drain_limit.as_micros()).unwrap();
    assert!(part.latency_us.p50 >= limit, "{part:?}");
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
            let session = r#"{"type":"session","id":1,"session":"s","user":"m1","timeout_ms":40,"ping_every_ms":20}"#;
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

#[test]
fn a_client_that_is_held_up_counts_from_when_a_message_was_due_and_not_from_when_it_was_sent() {
    const HELD_UP: Duration = Duration::from_millis(800);
    // All messages are due long before anything of them is read, and a small window leaves most of them unsent till then.
    let (pace, window) = (Pace::PerSecond(100.0), Duration::from_millis(300));
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind(&LOOPBACK.into()).unwrap();
    socket.listen(1).unwrap();
    let listener = TcpListener::from(socket);
    let target = Target::here(
        Dialect::Chinwag(Framing::Lines),
        listener.local_addr().unwrap(),
    );
    let (begun, begin) = mpsc::channel();
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut writer = stream.try_clone().unwrap();
        let mut lines = BufReader::new(stream).lines();
        for answer in [SESSION, INIT] {
            lines.next().unwrap().unwrap();
            writeln!(writer, "{answer}").unwrap();
        }
        let watch: Stopwatch = begin.recv().unwrap();
        // It is what is looked at: a server that stops for a while.
        thread::sleep(HELD_UP.saturating_sub(watch.elapsed()));
        for (at, line) in lines.map_while(Result::ok).enumerate() {
            let seq = at + 1;
            let text = line.split(r#""text":""#).nth(1).unwrap();
            let text = text.trim_end_matches(r#""}"#);
            writeln!(writer, r#"{{"type":"sent","room":"r","seq":{seq},"at":1}}"#).unwrap();
            writeln!(
                writer,
                r#"{{"type":"message","room":"r","seq":{seq},"at":1,"user":"m1","text":"{text}"}}"#
            )
            .unwrap();
        }
    });
    let load = Load {
        payload: MAX_PAYLOAD,
        drain_limit: DRAIN_LIMIT,
        ..one_member(&target)
    };
    let progress = Progress::nowhere();
    let mut run = Run::new(load, &progress).unwrap();
    run.gather(1, true).unwrap();
    begun.send(Stopwatch::start()).unwrap();
    let part = run.measure("it", pace, window, None).unwrap();
    assert_faultless(&(part.clone(), run.wrong()), 30);
    drop(run);
    server.join().unwrap();
    let late = Duration::from_micros(part.sent_late_us);
    assert!(
        late > Duration::from_millis(200),
        "it was not held up: {part:?}"
    );
    let (_, least) = part.curve.points[0];
    let waited = HELD_UP - window;
    assert!(
        Duration::from_micros(least) >= waited,
        "one took {least} µs, and each had waited for {waited:?} before it was read"
    );
}

#[test]
fn a_reader_that_stops_may_be_dropped_by_the_floor_and_that_is_no_fault() {
    for framing in FRAMINGS {
        let floor = Running::start(framing, Mode::Lone);
        let load = Load {
            members: 6,
            publishers: 1,
            payload: 200_000,
            ..load(&floor.target)
        };
        let progress = Progress::nowhere();
        let mut run = Run::new(load, &progress).unwrap();
        run.gather(6, true).unwrap();
        run.stall(1).unwrap();
        // More than its kernel and the floor hold for it.
        let span = Span::Messages(80, Duration::from_secs(60));
        let part = run
            .measure_span("some stall", Pace::InFlight(2), span, None)
            .unwrap();
        assert_faultless(&(part, run.wrong()), 80 * 5);
        assert_eq!(run.fates(Duration::from_secs(20)).unwrap(), [Fate::Cut]);
        assert_eq!((run.wrong(), run.passed_over()), (Wrong::default(), 0));
    }
}

/// A WebSocket server for one member, which pings it so often and does nothing else once it has joined.
fn pinging(every: Duration) -> (Target, JoinHandle<()>) {
    let listener = TcpListener::bind(LOOPBACK).unwrap();
    let framing = Framing::WebSocket;
    let target = Target::here(Dialect::Chinwag(framing), listener.local_addr().unwrap());
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = Vec::new();
        let read = |stream: &mut TcpStream, bytes: &mut Vec<u8>| {
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).unwrap();
            bytes.extend_from_slice(&buffer[..count]);
        };
        while wire::head_end(&bytes).is_none() {
            read(&mut stream, &mut bytes);
        }
        bytes.drain(..wire::head_end(&bytes).unwrap());
        let accept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
        write!(
            stream,
            "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        )
        .unwrap();
        let times = format!(
            r#""timeout_ms":{},"ping_every_ms":{}}}"#,
            2 * every.as_millis(),
            every.as_millis()
        );
        for answer in [&SESSION.replace(r#""timeout_ms":0}"#, &times), INIT] {
            let piece = loop {
                match wire::cut(framing, &bytes).unwrap() {
                    Some(piece) => break piece,
                    None => read(&mut stream, &mut bytes),
                }
            };
            bytes.drain(..piece.end);
            let mut frame = Vec::new();
            wire::put(framing, wire::Role::Server, answer.as_bytes(), &mut frame);
            stream.write_all(&frame).unwrap();
        }
        // Until the client has seen enough.
        while stream.write_all(&[0x89, 0]).is_ok() {
            thread::sleep(every);
        }
    });
    (target, server)
}

#[test]
fn idle_connections_are_looked_at_for_whole_periods_between_signs_of_life() {
    let (target, server) = pinging(Duration::from_millis(300));
    let subject = Subject {
        target,
        pid: None,
        names: Names {
            room: "r".to_owned(),
            ..Names::own()
        },
    };
    let settings = Settings {
        members: 1,
        window: Duration::from_millis(700),
        settle: Duration::ZERO,
        ..Scenario::Idle.settings()
    };
    let progress = Progress::nowhere();
    let report = scenario::run(Scenario::Idle, &settings, &subject, &progress).unwrap();
    server.join().unwrap();
    let idle = report.idle.unwrap();
    assert_eq!((idle.seconds, idle.period_seconds), (0.9, Some(0.3)));
    // Three pings of 2 bytes and pongs of 6, or one more or less at the ends of the window.
    let pings = idle.bytes_in_per_minute * 0.9 / 60.0 / 2.0;
    assert!((1.9..4.1).contains(&pings), "{idle:?}");
    let pongs = idle.bytes_out_per_minute * 0.9 / 60.0 / 6.0;
    assert!((1.9..4.1).contains(&pongs), "{idle:?}");
    let text = report.to_string();
    assert!(text.contains("every 0.3 s"), "{text}");
}

/// What a server for one polling member has on its mind.
#[derive(Default)]
struct Polled {
    events: Vec<String>,
    /// Answers after which it closed the connection, and answers that were compressed.
    closed: usize,
    zipped: usize,
    over: bool,
}

type SharedPolled = Arc<(Mutex<Polled>, Condvar)>;

/// A server for one polling member, which closes each connection but that of messages after one answer.
fn polled(shared: &SharedPolled) -> Target {
    let listener = TcpListener::bind(LOOPBACK).unwrap();
    let addr = listener.local_addr().unwrap();
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let shared = Arc::clone(&shared);
            thread::spawn(move || while answer(&stream, &shared).is_some() {});
        }
    });
    Target::here(Dialect::Polling, addr)
}

/// Answers one request; `None` if the connection is over with that.
fn answer(stream: &TcpStream, shared: &SharedPolled) -> Option<()> {
    let (mut request, mut byte) = (Vec::new(), [0]);
    while !request.ends_with(b"\r\n\r\n") {
        (&mut &*stream).read_exact(&mut byte).ok()?;
        request.push(byte[0]);
    }
    let head = String::from_utf8(request).unwrap();
    let length = wire::header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    (&mut &*stream).read_exact(&mut body).ok()?;
    let body = String::from_utf8(body).unwrap();
    let (state, news) = &**shared;
    let mut polled = state.lock().unwrap();
    let mut last = true;
    let answer = if let Some((_, rest)) = head.split_once("ack=") {
        let seen: usize = rest.split('&').next().unwrap().parse().unwrap();
        polled = news
            .wait_while(polled, |polled| polled.events.len() == seen && !polled.over)
            .unwrap();
        let events = polled.events.get(seen..)?.join(",");
        format!(r#"{{"events":[{events}],"next":{}}}"#, polled.events.len())
    } else if body.contains(r#""login""#) {
        SESSION.to_owned()
    } else if body.contains(r#""join""#) {
        INIT.to_owned()
    } else {
        last = false;
        let seq = polled.events.len() + 1;
        let text = body
            .split(r#""text":""#)
            .nth(1)
            .unwrap()
            .trim_end_matches(r#""}"#);
        polled.events.push(format!(
            r#"{{"type":"message","room":"r","seq":{seq},"at":1,"user":"m1","text":"{text}"}}"#
        ));
        news.notify_all();
        format!(r#"{{"type":"sent","room":"r","seq":{seq},"at":1}}"#)
    };
    let mut bytes = answer.into_bytes();
    let mut coding = "";
    if wire::header(&head, "accept-encoding") == Some("gzip") {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&bytes).unwrap();
        bytes = encoder.finish().unwrap();
        coding = "Content-Encoding: gzip\r\n";
        polled.zipped += 1;
    }
    polled.closed += usize::from(last);
    drop(polled);
    let connection = if last { "close" } else { "keep-alive" };
    let head = format!(
        "HTTP/1.1 200 OK\r\nConnection: {connection}\r\n{coding}Content-Length: {}\r\n\r\n",
        bytes.len()
    );
    (&mut &*stream)
        .write_all(&[head.as_bytes(), &bytes].concat())
        .ok()?;
    (!last).then_some(())
}

#[test]
fn polls_go_on_over_another_connection_where_the_server_closes_and_may_be_answered_compressed() {
    for gzip in [false, true] {
        let shared = SharedPolled::default();
        let target = Target {
            gzip,
            ..polled(&shared)
        };
        let load = Load {
            drain_limit: DRAIN_LIMIT,
            ..one_member(&target)
        };
        let done = measure(load, FIVE.0, FIVE.1).unwrap();
        assert_faultless(&done, 5);
        let (state, news) = &*shared;
        let mut polled = state.lock().unwrap();
        polled.over = true;
        news.notify_all();
        assert!(polled.closed >= 3, "a log-in, a join, and a poll at least");
        assert_eq!(polled.zipped > 0, gzip);
    }
}

#[test]
fn a_reader_that_stalls_may_be_ended_but_not_be_told_nonsense() {
    for (last, fine) in [
        (
            r#"{"type":"bye","code":"slow_consumer","message":"x","retry_ms":0}"#,
            true,
        ),
        (
            r#"{"type":"message","room":"r","seq":1,"at":1,"user":"m1","text":"nonsense"}"#,
            false,
        ),
    ] {
        let (stalled, when) = mpsc::channel();
        let listener = TcpListener::bind(LOOPBACK).unwrap();
        let addr = listener.local_addr().unwrap();
        let target = Target::here(Dialect::Chinwag(Framing::Lines), addr);
        let server = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut writer = stream.try_clone().unwrap();
            let mut lines = BufReader::new(stream).lines();
            for answer in [SESSION, INIT] {
                lines.next().unwrap().unwrap();
                writeln!(writer, "{answer}").unwrap();
            }
            when.recv().unwrap();
            writeln!(writer, "{last}").unwrap();
            assert!(lines.next().is_none_or(|line| line.is_err()));
        });
        let progress = Progress::nowhere();
        let mut run = Run::new(one_member(&target), &progress).unwrap();
        run.gather(1, true).unwrap();
        run.stall(1).unwrap();
        stalled.send(()).unwrap();
        let fates = run.fates(Duration::from_secs(20));
        match fates {
            Ok(fates) => assert!(fine && fates == [Fate::Bye("slow_consumer".to_owned())]),
            Err(error) => assert!(!fine, "{error}"),
        }
        drop(run);
        server.join().unwrap();
    }
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
        Scenario::SlowReaders,
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
        .args([
            "--only",
            "lone-1000-tcp,batched-ws,slow-readers-ws,small-beside-huge-tcp",
        ])
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
    // Four cases, two contenders, two repeats.
    assert_eq!(errors.lines().count(), 16, "{errors}");
    let table = std::fs::read_to_string(file("table.md")).unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), table);
    assert!(
        table.contains("| 1,000 members, 16 in flight, WebSocket"),
        "{table}"
    );
    assert!(
        table.contains("In none of 16 runs was a message lost"),
        "{table}"
    );
    let runs = std::fs::read_to_string(file("runs.json")).unwrap();
    let runs: serde_json::Value = serde_json::from_str(&runs).unwrap();
    assert_eq!(runs["samples"].as_array().unwrap().len(), 16);
    // What only chinwag is held to shows the floor, too.
    for title in ["4 % stalled, held for the worst", "10 beside a huge room"] {
        let row = table.lines().find(|line| line.contains(title)).unwrap();
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert!(cells[3] != "–" && cells[4] != "–", "{row}");
    }
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
