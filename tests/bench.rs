//! `chinwag bench`: every scenario against the real server, small and short, and what its reports say.

use std::{path::Path, process::Stdio};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    process::{Child, Command},
    task::JoinSet,
};

use crate::harness::{Over, PROGRAM, Program, Setup, eventually};

/// The exit code, what it printed as JSON, and what it said on stderr.
async fn bench(args: &str) -> (Option<i32>, Value, String) {
    let words: Vec<&str> = ["bench"].into_iter().chain(args.split(' ')).collect();
    let (code, output, errors) = Program::run(&[&words[..], &["--json"]].concat(), "").await;
    let report = serde_json::from_str(&output).unwrap_or(Value::Null);
    (code, report, errors)
}

/// A run without faults, whose figures add up.
async fn sound(args: &str) -> Value {
    let (code, report, errors) = bench(args).await;
    assert_eq!(code, Some(0), "{args}: {errors}");
    assert_eq!(errors, "", "{args}: progress is for terminals alone");
    assert_eq!(report["faults"]["total"], 0, "{args}: {report}");
    for part in report["parts"].as_array().unwrap() {
        let number = |name: &str| part[name].as_u64().unwrap();
        let (messages, members, rooms) = (number("messages"), number("members"), number("rooms"));
        assert!(messages > 0, "{args}: {part}");
        assert_eq!(
            number("deliveries"),
            messages * members / rooms,
            "{args}: {part}"
        );
        let latency = &part["latency_us"];
        let rising: Vec<u64> = ["p50", "p90", "p99", "p99_9", "max"]
            .iter()
            .map(|name| latency[name].as_u64().unwrap())
            .collect();
        assert!(rising[0] > 0 && rising.is_sorted(), "{args}: {part}");
    }
    report
}

/// What the server is said to have used for a delivery.
fn cpu(report: &Value, part: usize) -> f64 {
    report["parts"][part]["server"]["cpu_us_per_delivery"]
        .as_f64()
        .unwrap_or_else(|| panic!("the server was not looked at: {report}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn lone_messages_are_measured_over_every_transport_with_and_without_tls() {
    for over in ["tcp", "ws", "http", "tls", "wss", "https"] {
        let report = sound(&format!(
            "lone --over {over} -n 40 --duration 500ms --warm-up 100ms"
        ))
        .await;
        assert_eq!(report["scenario"], "lone");
        assert!(
            report["url"].as_str().unwrap().starts_with(over),
            "{report}"
        );
        assert_eq!(report["parts"][0]["messages"], 10);
        assert_eq!(report["parts"][0]["pace"]["per_second"], 20.0);
        assert!(cpu(&report, 0) > 0.0);
        assert!(
            report["parts"][0]["wire_bytes_per_delivery"]
                .as_f64()
                .unwrap()
                > 128.0
        );
        assert!(report["gather"]["per_second"].as_f64().unwrap() > 0.0);
        assert!(
            report["memory"]["kib_per_connection"].is_number(),
            "{report}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_in_flight_and_system_calls_are_measured() {
    let report = sound("batched -n 30 --over ws --duration 300ms --warm-up 50ms --syscalls").await;
    assert!(
        report["parts"][0]["messages"].as_u64().unwrap() >= 16,
        "{report}"
    );
    // Whether a process may be traced is up to the system; that it could not be is told.
    let counted = &report["syscalls"]["counted"]["per_delivery"];
    let told = &report["syscalls"]["not_available"];
    assert!(
        counted.as_f64().is_some_and(|calls| calls > 0.0) != told.is_string(),
        "{report}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn many_rooms_are_loaded_at_a_rate_and_in_flight() {
    let report = sound("many-rooms -n 60 --rooms 12 --duration 300ms --warm-up 50ms").await;
    let names: Vec<&Value> = report["parts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| &part["name"])
        .collect();
    assert_eq!(names, ["low rate", "4 in flight"]);
    assert_eq!(report["parts"][0]["messages"], 450);
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_are_weighed() {
    for over in ["tcp", "ws", "http"] {
        let report = sound(&format!(
            "idle --over {over} -n 50 --duration 200ms --settle 50ms"
        ))
        .await;
        assert_eq!(report["memory"]["connections"], 45);
        for bytes in ["bytes_in_per_minute", "bytes_out_per_minute"] {
            assert!(report["idle"][bytes].is_number(), "{report}");
        }
        assert!(report["idle"]["server_cpu_percent"].is_number(), "{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_log_ins_is_set_beside_a_room_that_talks_on() {
    // More than one hash thread and its queue of 64 take, so that some are turned away and come again.
    let args = "login-storm --logins 100 -n 20 --duration 300ms --warm-up 100ms";
    let report = sound(args).await;
    let names = |part: usize| report["parts"][part]["name"].as_str().unwrap();
    assert_eq!([names(0), names(1)], ["before", "during log-ins"]);
    let logins = &report["logins"];
    assert_eq!(logins["users"], 100);
    let figure = |name: &str| logins[name].as_f64().unwrap();
    let times = ["seconds_p50", "seconds_p99", "seconds_until_in"].map(figure);
    assert!(times[0] > 0.0 && times.is_sorted(), "{report}");
    assert!(
        figure("users_turned_away") <= figure("unavailable"),
        "{report}"
    );
    // The room is looked at for as long as the log-ins take, but for the moment before its first message.
    assert!(
        report["parts"][1]["seconds"].as_f64().unwrap() + 0.5 >= times[2],
        "{report}"
    );
    let (code, _, errors) = bench("login-storm --over ws").await;
    assert_eq!(code, Some(64), "{errors}");
    assert!(errors.contains("tcp://"), "{errors}");
}

/// `chinwag-bench compare`, whose program is another package's.
#[derive(Debug, clap::Parser)]
struct Comparison {
    #[command(flatten)]
    compare: chinwag_bench::compare::Compare,
}

#[test]
fn a_comparison_tells_of_log_ins_beside_a_room() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (json, table) = (file("runs.json"), file("table.md"));
    let line = "compare --only login-storm --shrink 5 --repeats 1".split(' ');
    let files = ["--server", PROGRAM, "--json", &json, "--markdown", &table];
    let comparison: Comparison = clap::Parser::try_parse_from(line.chain(files)).unwrap();
    let sound = comparison.compare.run().unwrap();
    let text = std::fs::read_to_string(table).unwrap();
    assert!(sound, "{text}");
    let runs: Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    let samples = runs["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 1, "{text}");
    let report = &samples[0]["report"];
    assert_eq!(report["logins"]["users"], 40, "{report}");
    assert_eq!(report["parts"][1]["name"], "during log-ins", "{report}");
    // Its row has all figures: of the room before and meanwhile, and of those who came in.
    let row = text
        .lines()
        .find(|line| line.starts_with("| login-storm-tcp "))
        .unwrap_or_else(|| panic!("{text}"));
    let figures: Vec<f64> = row
        .split('|')
        .skip(2)
        .filter_map(|cell| cell.trim().parse().ok())
        .collect();
    assert_eq!(figures.len(), 11, "{text}");
    assert_eq!(figures[..2], [20.0, 40.0], "{text}");
    assert!(figures[2..6].iter().all(|&figure| figure > 0.0), "{text}");
}

#[test]
fn a_comparison_tells_what_polls_came_compressed_and_what_comes_in_through_tls() {
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("table.md");
    let line =
        "compare --only polling-gzip,idle-wss,idle-pings,join-storm-ws --shrink 20 --repeats 1";
    let files = ["--server", PROGRAM, "--markdown", table.to_str().unwrap()];
    let words = line.split(' ').chain(files);
    let comparison: Comparison = clap::Parser::try_parse_from(words).unwrap();
    let sound = comparison.compare.run().unwrap();
    let text = std::fs::read_to_string(table).unwrap();
    assert!(sound, "{text}");
    let figure = |title: &str| -> f64 {
        let row = text.lines().find(|line| line.contains(title));
        let row = row.unwrap_or_else(|| panic!("{title} is missing in {text}"));
        let cell = row.split('|').nth(4).unwrap().trim();
        cell.parse().unwrap_or_else(|_| panic!("{row}"))
    };
    assert_eq!(figure("of these answers, compressed"), 100.0, "{text}");
    assert!(figure("5,000 join at once, WebSocket") > 0.0, "{text}");
    assert!(
        figure("an idle connection, WebSocket through TLS") > 0.0,
        "{text}"
    );
    for over in ["TCP", "WebSocket", "polling"] {
        let row = text.lines().filter(|line| line.contains("bytes a minute"));
        let row = row.filter(|line| line.contains(&format!(", {over} ")));
        assert_eq!(row.count(), 1, "{over} in {text}");
    }
}

#[test]
fn a_comparison_looks_at_idle_connections_with_the_timeout_that_servers_have() {
    let timeout = chinwag::core::config::SessionsConfig::default().timeout;
    assert_eq!(timeout.to_string(), chinwag_bench::served::DEFAULT_TIMEOUT);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_terminal_a_line_tells_how_far_it_is_and_makes_way_for_the_report() {
    // `script` is a terminal around a command, and tells what comes to it.
    let command = format!("{PROGRAM} bench lone -n 10 --duration 1s --warm-up 200ms");
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text:?}");
    let lines: Vec<&str> = text.split("\r\x1b[K").collect();
    let is_live = |line: &&&str| line.contains("deliveries/s, p50") && !line.contains('\n');
    let live = lines.iter().filter(is_live).count();
    // One in a fifth of a second, for a second.
    assert!((2..=8).contains(&live), "{live} in {text:?}");
    let last = lines.last().unwrap();
    assert!(last.starts_with("lone over tcp://"), "{text:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_joins_tells_everybody_of_everybody() {
    // Over `presence_auto_batch`: both ways of telling are seen.
    let report = sound("join-storm -n 300").await;
    let storm = &report["storm"];
    assert_eq!(
        (&storm["members"], &storm["ignorant"]),
        (&300.into(), &0.into())
    );
    assert!(
        storm["presence"]["events"].as_u64().unwrap() > 0,
        "{report}"
    );
    assert!(
        storm["presence"]["summaries"].as_u64().unwrap() > 0,
        "{report}"
    );
    assert!(storm["cpu_seconds"].as_f64().unwrap() > 0.0, "{report}");
    assert!(storm["seconds_until_in"].as_f64() <= storm["seconds_until_told"].as_f64());
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_stop_are_ended_and_those_who_read_on_miss_nothing() {
    // Much for each of them, so that a queue is full soon.
    let args = "slow-readers -n 20 --stalled 10 --publishers 4 --payload 4000 --in-flight 4";
    let report = sound(&format!("{args} --duration 2s --warm-up 50ms")).await;
    let stalled = &report["stalled"];
    assert_eq!(stalled["readers"], 2);
    assert_eq!(stalled["ended"]["slow_consumer"], 2, "{report}");
    assert_eq!(stalled["still_there"], 0);
    assert!(
        stalled["kernel_kib"]["average"].as_f64().unwrap() > 0.0,
        "{report}"
    );
    assert!(stalled["process_kib_per_reader"].is_number(), "{report}");
    let ended = stalled["seconds_until_ended"].as_array().unwrap();
    assert_eq!(ended.len(), 3, "{report}");
    assert!(
        ended.iter().all(|at| at.as_f64().unwrap() < 5.0),
        "{report}"
    );
    assert!(stalled["healthy_p50_change_percent"].is_number());
    assert_eq!(report["parts"][0]["members"], 20);
    assert_eq!(report["parts"][1]["members"], 18);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_room_is_measured_beside_a_huge_one() {
    let report = sound("small-beside-huge -n 100 --duration 400ms --warm-up 50ms").await;
    let parts = report["parts"].as_array().unwrap();
    let names: Vec<&str> = parts
        .iter()
        .map(|part| part["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["small alone", "small beside it", "huge"]);
    // The load lasts longer than what is measured beside it.
    assert!(
        parts[2]["seconds"].as_f64() > parts[1]["seconds"].as_f64(),
        "{report}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn polls_that_wait_are_loaded() {
    let report =
        sound("polling -n 40 --rate 40 --duration 500ms --warm-up 50ms --settle 50ms").await;
    assert!(
        report["url"].as_str().unwrap().starts_with("http://"),
        "{report}"
    );
    assert!(cpu(&report, 0) > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn polls_are_answered_compressed_where_that_is_asked_for() {
    let args = "lone --over http -n 20 --payload 3000 --duration 300ms --warm-up 50ms";
    for (option, is_smaller) in [("", false), (" --gzip", true)] {
        let report = sound(&format!("{args}{option}")).await;
        let bytes = report["parts"][0]["wire_bytes_per_delivery"].as_f64();
        assert_eq!(bytes.unwrap() < 3000.0, is_smaller, "{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_runs_is_found_by_its_address_and_drawn() {
    let server = Program::start(&Setup::tables("")).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("latency.svg");
    let args = format!(
        "bench lone ws://{} -n 10 --publishers 10 --duration 300ms --warm-up 0s --svg {}",
        server.table("web"),
        file.display()
    );
    let words: Vec<&str> = args.split(' ').collect();
    let (code, output, errors) = Program::run(&words, "").await;
    assert_eq!((code, &*errors), (Some(0), ""), "{output}");
    for words in [
        "10 logged in and joined",
        "latency p50",
        "a delivery",
        "none: each member was sent each event once, in order",
    ] {
        assert!(output.contains(words), "{words} is missing in:\n{output}");
    }
    assert_well_formed(&std::fs::read_to_string(&file).unwrap());
    server.stop().await;
}

/// Every tag of the drawing is closed, and within one root.
fn assert_well_formed(svg: &str) {
    let mut open = Vec::new();
    for tag in svg.split('<').skip(1) {
        let tag = tag.split('>').next().unwrap();
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{svg}");
        } else if !tag.ends_with('/') {
            open.push(tag.split(' ').next().unwrap());
        }
    }
    assert!(open.is_empty() && svg.starts_with("<svg "), "{svg}");
    assert_eq!(svg.matches("<polyline").count(), 1, "{svg}");
    assert!(!svg.contains("NaN"), "{svg}");
}

#[tokio::test(flavor = "multi_thread")]
async fn users_with_a_password_come_in_with_it_and_with_no_other() {
    let limits =
        "[limits]\nlogin_failures_per_ip = \"unlimited\"\nlogin_failures_per_name = \"unlimited\"";
    let server = Setup::passwords().and(limits).start().await;
    let file = server.folder().join("users.txt");
    let args = ["passwd", file.to_str().unwrap(), "load00001"];
    let (code, _, errors) = Program::run(&args, "correct horse\n").await;
    assert_eq!(code, Some(0), "{errors}");
    let url = format!("tcp://{}", server.addr(Over::Tcp));
    let run = async |password: &str| {
        let output = Command::new(PROGRAM)
            .args(["bench", "lone", &url, "-n", "1", "--user", "load"])
            .args(["--rate", "5", "--duration", "200ms", "--warm-up", "0s"])
            .env("CHINWAG_PASSWORD", password)
            .output()
            .await
            .unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), errors)
    };
    // The server reads the file again in its own time.
    eventually("the user to get in", async || {
        (run("correct horse").await.0 == Some(0)).then_some(())
    })
    .await;
    let (code, errors) = run("battery staple").await;
    assert_eq!(code, Some(1));
    for words in ["auth_failed", "--user PREFIX", "CHINWAG_PASSWORD"] {
        assert!(errors.contains(words), "{words} is missing in: {errors}");
    }
    assert!(!errors.contains("battery"), "{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_in_the_way_is_told_by_its_key() {
    let server = Program::start(&Setup::tables("")).await;
    let args = format!("batched tcp://{} -n 5 --duration 5s", server.table("line"));
    let (code, report, errors) = bench(&args).await;
    assert_eq!((code, report), (Some(1), Value::Null));
    for words in ["rate_limited", "limits.sends", "configs/bench.toml"] {
        assert!(errors.contains(words), "{words} is missing in: {errors}");
    }
    server.stop().await;
}

/// A server of lines that lets one member in and gives it every second message twice.
async fn stammering(listener: TcpListener) {
    let (stream, _) = listener.accept().await.unwrap();
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    let mut seq = 0;
    while let Ok(Some(line)) = lines.next_line().await {
        let command: Value = serde_json::from_str(&line).unwrap();
        let answer = match command["type"].as_str().unwrap() {
            "login" => {
                r#"{"type":"session","id":1,"session":"s","user":"u","timeout_ms":0}"#.to_owned()
            }
            "join" => {
                r#"{"type":"init","id":2,"room":"r","users":[],"count":0,"presence":"off","epoch":"e","seq":0}"#
                    .to_owned()
            }
            _ => {
                seq += 1;
                let text = &command["text"];
                let message =
                    format!(r#"{{"type":"message","room":"r","seq":{seq},"at":1,"user":"u","text":{text}}}"#);
                let sent = format!(r#"{{"type":"sent","room":"r","seq":{seq},"at":1}}"#);
                match seq % 2 {
                    0 => format!("{sent}\n{message}\n{message}"),
                    _ => format!("{sent}\n{message}"),
                }
            }
        };
        // The client leaves when it has seen enough.
        if writer
            .write_all(format!("{answer}\n").as_bytes())
            .await
            .is_err()
        {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_a_server_are_counted_told_and_fail_the_run() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("tcp://{}", listener.local_addr().unwrap());
    // Whether anybody answers there is looked at first.
    let mut server = JoinSet::new();
    server.spawn(async move {
        drop(listener.accept().await.unwrap());
        stammering(listener).await;
    });
    let args = format!(
        "lone {url} -n 1 --room r --rate 20 --duration 500ms --warm-up 0s --pid {}",
        std::process::id()
    );
    let (code, report, errors) = bench(&args).await;
    assert_eq!(code, Some(1), "{report}");
    assert_eq!(report["parts"][0]["deliveries"], 10, "{report}");
    let faults = &report["faults"];
    assert_eq!(faults["repeated"], 5, "{report}");
    assert_eq!((&faults["lost"], &faults["total"]), (&0.into(), &5.into()));
    assert!(errors.contains("5 faults"), "{errors}");
    server.join_all().await;
}

/// A long run, and the id of the server that it has started.
async fn long_run() -> (Child, String) {
    let run = Command::new(PROGRAM)
        .args(["bench", "idle", "-n", "10", "--duration", "10m"])
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let pid = run.id().unwrap();
    let server = eventually("the server to be started", async || {
        let children = format!("/proc/{pid}/task/{pid}/children");
        let children = std::fs::read_to_string(children).unwrap();
        children.split_whitespace().next().map(str::to_owned)
    })
    .await;
    (run, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_interrupted_leaves_no_server_behind() {
    let (mut run, server) = long_run().await;
    let pid = run.id().unwrap();
    // Before it heeds signals a run has started nothing.
    let killed = Command::new("kill").arg(pid.to_string()).status().await;
    assert!(killed.unwrap().success());
    let mut errors = String::new();
    let mut pipe = run.stderr.take().unwrap();
    pipe.read_to_string(&mut errors).await.unwrap();
    assert_eq!(run.wait().await.unwrap().code(), Some(1), "{errors}");
    assert!(errors.contains("interrupted"), "{errors}");
    assert!(
        !Path::new("/proc").join(&server).exists(),
        "{server} still runs"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_killed_leaves_no_server_behind() {
    let (mut run, server) = long_run().await;
    run.kill().await.unwrap();
    // Whoever takes over orphans may be slow to notice that one has ended.
    eventually("the server to end", async || {
        let stat = std::fs::read_to_string(format!("/proc/{server}/stat"));
        let runs = stat.is_ok_and(|stat| !stat.contains(") Z "));
        (!runs).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_command_line_is_64_and_nobody_there_is_1() {
    for args in [
        "loan",
        "lone ftp://a",
        "idle --rate 5",
        "polling tcp://127.0.0.1:1",
        "lone -n 0",
    ] {
        let (code, _, errors) = bench(args).await;
        // Nobody listens on port 1, which is found out before a transport is judged.
        let expected = if args.contains(":1") { 1 } else { 64 };
        assert_eq!(code, Some(expected), "{args}: {errors}");
    }
}
