//! What the server tells about itself, to Debian's own Prometheus, and whether it adds up.

use std::{path::Path, process::Stdio, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    task::JoinSet,
    time::timeout,
};

use crate::harness::{Client, Http, Over, PATIENCE, Program, Request, Setup, eventually, scrape};

const LIVE: &str = "chinwag_sessions";
const CREATED: &str = "chinwag_sessions_created_total";
const ENDED: &str = "chinwag_sessions_ended_total";
const CONNECTIONS: &str = "chinwag_connections";
const RESERVATIONS: &str = "chinwag_reservations";
const ROOMS: &str = "chinwag_rooms";
const MEMBERS: &str = "chinwag_members";

/// Sessions that come and go between two looks at the memory in use.
const CHURN: usize = 5_000;

/// Members of one room who talk until they are dropped.
async fn load(server: &Program) -> JoinSet<()> {
    let mut talking = JoinSet::new();
    for over in Over::ALL {
        let mut client = Client::login(server.table(over.table()), over, over.table()).await;
        client.enter("load").await;
        talking.spawn(async move {
            loop {
                client.say("load", "hello").await;
                // What comes between is taken up; the pause keeps the talk within the rate.
                let until = tokio::time::Instant::now() + Duration::from_millis(150);
                while tokio::time::Instant::now() < until {
                    client.try_event(Duration::from_millis(150)).await;
                }
            }
        });
    }
    talking
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_finds_nothing_to_say_during_churn() {
    let server = Program::start(&quick()).await;
    let talking = load(&server).await;
    for round in 0..3 {
        come_and_go(&server, 60, round).await;
        let text = scrape(server.metrics()).await;
        let mut promtool = Command::new("promtool");
        promtool
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut promtool = promtool
            .stderr(Stdio::piped())
            .spawn()
            .expect("promtool is installed");
        let mut stdin = promtool.stdin.take().unwrap();
        stdin.write_all(text.as_bytes()).await.unwrap();
        drop(stdin);
        let output = timeout(PATIENCE, promtool.wait_with_output())
            .await
            .unwrap()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let said = said + &String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && said.trim().is_empty(),
            "{said}\n{text}"
        );
    }
    drop(talking);
}

/// Debian's Prometheus with the repository's configuration, pointed at a server.
struct Prometheus {
    _child: Child,
    _log: JoinSet<()>,
    http: Http,
    _folder: tempfile::TempDir,
}

impl Prometheus {
    async fn start(metrics: std::net::SocketAddr) -> Self {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/prometheus.yml");
        let config = std::fs::read_to_string(file).expect("configs/prometheus.yml");
        assert!(config.contains("127.0.0.1:9464"), "{config}");
        // Another port, and less patience between two scrapes; all else is as an operator would have it.
        let lines = config
            .lines()
            .map(|line| match line.split_once("scrape_interval:") {
                Some((indent, _)) => format!("{indent}scrape_interval: 1s\n"),
                None => line.replace("127.0.0.1:9464", &metrics.to_string()) + "\n",
            });
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, lines.collect::<String>()).unwrap();
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!(
            "--storage.tsdb.path={}",
            folder.path().join("data").display()
        ));
        command.args(["--web.listen-address=127.0.0.1:0", "--log.format=logfmt"]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command
            .kill_on_drop(true)
            .spawn()
            .expect("prometheus is installed");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let addr = timeout(PATIENCE * 3, async {
            while let Some(line) = lines.next_line().await.unwrap() {
                let addr = line
                    .split_once("Listening on\" address=")
                    .map(|(_, addr)| addr.trim_matches('"'));
                if let Some(addr) = addr {
                    return addr.parse().expect("an address");
                }
            }
            panic!("prometheus ended");
        });
        let http = Http::new(addr.await.expect("prometheus starts"));
        // Its log is read on, so that it never waits for us.
        let mut log = JoinSet::new();
        log.spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self {
            _child: child,
            _log: log,
            http,
            _folder: folder,
        }
    }

    /// The values of a query's series; none while it is still reading its own disk.
    async fn query(&mut self, query: &str) -> Vec<(Value, f64)> {
        let target = format!("/api/v1/query?query={query}");
        let answer = self.http.ask(&Request::new("GET", &target)).await;
        if answer.status == 503 {
            return Vec::new();
        }
        let body = answer.json();
        assert_eq!(body["status"], "success", "{body}");
        let result = body["data"]["result"].as_array().expect("a vector");
        let value = |series: &Value| series["value"][1].as_str().unwrap().parse().unwrap();
        result
            .iter()
            .map(|series| (series["metric"].clone(), value(series)))
            .collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_sees_a_server_under_load() {
    let server = Program::start(&Setup::default()).await;
    let talking = load(&server).await;
    let mut prometheus = Prometheus::start(server.metrics()).await;
    eventually("up to be 1", async || {
        let up = prometheus.query("up").await;
        matches!(&up[..], [(_, up)] if *up == 1.0).then_some(())
    })
    .await;
    eventually("three sessions, one on each transport", async || {
        let live = prometheus.query(LIVE).await;
        (live.iter().map(|(_, value)| value).sum::<f64>() == 3.0).then_some(())
    })
    .await;
    for name in [CREATED, ENDED, CONNECTIONS, ROOMS, MEMBERS, RESERVATIONS] {
        assert!(
            !prometheus.query(name).await.is_empty(),
            "{name} is not there"
        );
    }
    eventually("a rate of deliveries", async || {
        let rates = prometheus
            .query("rate(chinwag_deliveries_total[10s])")
            .await;
        (rates.iter().map(|(_, value)| value).sum::<f64>() > 1.0).then_some(())
    })
    .await;
    drop(talking);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_series_does_not_grow_with_users_and_rooms() {
    let server = Program::start(&quick()).await;
    let series = async || {
        let text = scrape(server.metrics()).await;
        let mut series: Vec<String> = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
            .map(|line| line.rsplit_once(' ').expect("a value").0.to_owned())
            .collect();
        series.sort();
        series
    };
    let mut clients = crowd(&server, 0..30).await;
    come_and_go(&server, 100, 1).await;
    let first = series().await;
    clients.extend(crowd(&server, 30..60).await);
    come_and_go(&server, 200, 2).await;
    let second = series().await;
    let fresh: Vec<_> = second
        .iter()
        .filter(|series| !first.contains(series))
        .collect();
    assert_eq!(first.len(), second.len(), "new: {fresh:?}");
    // Nothing that a client chose is in a label.
    assert!(
        !second
            .iter()
            .any(|series| series.contains("user7") || series.contains("room7"))
    );
}

async fn crowd(server: &Program, numbers: std::ops::Range<usize>) -> Vec<Client> {
    let mut clients = Vec::new();
    for n in numbers {
        let over = Over::ALL[n % 3];
        let mut client = Client::login(server.table(over.table()), over, &format!("user{n}")).await;
        client.enter(&format!("room{n}")).await;
        client.say(&format!("room{n}"), "hello").await;
        clients.push(client);
    }
    clients
}

#[tokio::test(flavor = "multi_thread")]
async fn it_all_adds_up_and_comes_back_after_thousands_of_sessions() {
    let server = Program::start(&quick()).await;
    let (mut resident, mut round) = (Vec::new(), 0);
    // What leaks leaks each time; the allocator takes another megabyte only now and then.
    loop {
        round += 1;
        come_and_go(&server, CHURN, 7).await;
        settled(&server, round * CHURN).await;
        let before = resident.last().copied();
        resident.push(server.resident());
        if before.is_some_and(|before| resident[round - 1] < before + (1 << 20)) {
            break;
        }
        assert!(
            round < 6,
            "identical rounds took more and more: {resident:?}"
        );
    }
    eprintln!("bytes in use after each round: {resident:?}");
    // Every way of ending that was gone is counted under its own reason.
    for reason in [
        "logout",
        "disconnected",
        "session_expired",
        "too_large",
        "protocol_error",
    ] {
        assert!(
            server.metric(ENDED, &format!("\"{reason}\"")).await > 0.0,
            "nobody ended by {reason}"
        );
    }
    server.stop().await;
}

/// Nothing is left of `sessions` that were.
async fn settled(server: &Program, sessions: usize) {
    for name in [LIVE, MEMBERS, RESERVATIONS, CONNECTIONS] {
        server.metric_becomes(name, "", 0.0).await;
    }
    let created = server.metric(CREATED, "").await;
    assert_eq!(created, sessions as f64);
    assert_eq!(
        server.metric(ENDED, "").await,
        created,
        "created - ended = live = 0"
    );
}

/// A server on which sessions that fell silent are soon gone, and nothing is remembered for long.
fn quick() -> Setup {
    let tables = r#"[sessions]
        remember_ended = "1s"
        [limits]
        room_creations = "unlimited"
        [server]
        shutdown_grace = "1s"
    "#;
    Setup::tables(tables).on(Over::Polling, "timeout = \"2s\"")
}

/// So many sessions come, say something in one of a few rooms, and end in every way there is, eight at a time.
async fn come_and_go(server: &Program, sessions: usize, seed: usize) {
    const AT_A_TIME: usize = 8;
    let addrs = Over::ALL.map(|over| server.table(over.table()));
    let mut lanes = JoinSet::new();
    for lane in 0..AT_A_TIME {
        lanes.spawn(async move {
            for n in (lane..sessions).step_by(AT_A_TIME) {
                let way = n % 9;
                let over = [0, 0, 0, 1, 1, 1, 1, 2, 2][way];
                let name = format!("churn{seed}-{n}");
                let mut client = Client::login(addrs[over], Over::ALL[over], &name).await;
                let room = format!("churn{}", n % 10);
                client.join(&room).await;
                client.say(&room, "hello").await;
                match way {
                    0 | 3 | 7 => {
                        let bye = client.command(json!({"type": "logout"})).await;
                        assert_eq!(bye["type"], "bye");
                    }
                    // Lost without a word; a poller then falls silent.
                    1 | 4 | 8 => client.vanish(),
                    2 => {
                        client.write(&"x".repeat(17_000)).await;
                        client.gone().await;
                    }
                    5 => {
                        client.close().await.unwrap();
                        client.gone().await;
                    }
                    _ => {
                        client.break_the_rules().await;
                        client.gone().await;
                    }
                }
            }
        });
    }
    lanes.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_is_counted_by_its_reason() {
    let server = Program::start(&Setup::passwords()).await;
    for over in Over::ALL {
        let mut client = Client::connect(server.table(over.table()), over, "x").await;
        for password in ["wrong", "wonderland"] {
            let login = json!({"type": "login", "user": "alice", "password": password});
            client.try_log_in(login).await;
        }
        client.raw("nonsense").await;
        client
            .command(json!({"type": "leave", "room": "nowhere"}))
            .await;
        assert_eq!(
            client.command(json!({"type": "logout"})).await["type"],
            "bye"
        );
    }
    for (name, labels, value) in [
        ("chinwag_auth_verdicts_total", "verdict=\"deny\"", 3.0),
        ("chinwag_auth_verdicts_total", "verdict=\"allow\"", 3.0),
        ("chinwag_errors_total", "code=\"auth_failed\"", 3.0),
        ("chinwag_errors_total", "code=\"bad_json\"", 3.0),
        ("chinwag_errors_total", "code=\"not_joined\"", 3.0),
        (ENDED, "reason=\"logout\"", 3.0),
        ("chinwag_strangers_ended_total", "", 0.0),
    ] {
        server.metric_becomes(name, labels, value).await;
    }
    let mut stranger = Client::connect(server.table("line"), Over::Tcp, "x").await;
    stranger.write("GET / HTTP/1.1\r").await;
    stranger.drain_to_bye("protocol_error").await;
    server
        .metric_becomes(
            "chinwag_strangers_ended_total",
            "reason=\"protocol_error\"",
            1.0,
        )
        .await;
    let evil = Request::bare("GET", "/v1/events").header("Host", "evil.example");
    assert_eq!(Http::new(server.table("poll")).ask(&evil).await.status, 421);
    server
        .metric_becomes("chinwag_refused_total", "reason=\"host\"", 1.0)
        .await;
}
