//! TLS on every listener: what is spoken there, what scanners make of it, and files that change while people are in.

use std::{
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

use crate::harness::{
    Addresses, Authority, Backend, Client, Over, PATIENCE, PROGRAM, Pki, Program, Request, Secure,
    Setup, VERSIONS, day, eventually, willing,
};

const RELOADS: &str = "chinwag_config_reloads_total";
const OK: &str = "what=\"tls\",name=\"door\",outcome=\"ok\"";
const FAILED: &str = "what=\"tls\",name=\"door\",outcome=\"failed\"";

/// The scenarios that hold on every transport hold over TLS.
mod battery {
    use chinwag_conformance::Kit;

    use crate::harness::Encrypted;

    chinwag_conformance::transport!(Kit::together(Encrypted::all()));
}

/// Three listeners that speak TLS, for guests.
fn guests(pki: &Pki) -> Setup {
    Setup::default()
        .and(&pki.table(""))
        .on_all("tls = \"door\"")
}

/// The program, its metrics behind TLS as well, and the folder of its file.
async fn with_metrics_over_tls(setup: &Setup) -> (TempDir, Program) {
    let document = setup
        .document()
        .replace("[metrics]\n", "[metrics]\ntls = \"door\"\n");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("chinwag.toml");
    std::fs::write(&file, document).unwrap();
    let server = Program::start_file(&file).await;
    (folder, server)
}

/// A guest on each transport, in the room `lobby`.
async fn crowd(server: &impl Addresses, client: &Secure) -> Vec<Client> {
    let mut crowd = Vec::new();
    for over in Over::ALL {
        let mut guest = client.connect(server, over, over.table()).await;
        let login = json!({"type": "login", "user": over.table()});
        guest.log_in(login).await;
        guest.join("lobby").await;
        crowd.push(guest);
    }
    crowd
}

/// Everybody hears everybody, as before.
async fn talks_on(crowd: &mut [Client], text: &str) {
    for n in 0..crowd.len() {
        let text = format!("{text} {n}");
        crowd[n].say("lobby", &text).await;
        for member in &mut *crowd {
            member
                .events_until(&text, |event| event["text"] == text)
                .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_and_its_transports_share_an_encrypted_port() {
    let pki = Pki::new();
    let document = pki.table("")
        + "[transports.web]\nkind = \"websocket\"\nbind = \"127.0.0.1:0\"\ntls = \"door\"\nauth = [\"guests\"]\n\
           [transports.poll]\nkind = \"http-polling\"\nbind = \"127.0.0.1:0\"\ntls = \"door\"\nauth = [\"guests\"]\n\
           session_id = [\"header\", \"cookie\"]\n\
           [web]\nbind = \"127.0.0.1:0\"\n\
           [authenticators.guests]\nkind = \"anonymous\"\n";
    let folder = tempfile::tempdir().unwrap();
    let plugins = chinwag::Plugins::builtin();
    let server = crate::harness::Server::start(plugins, &document, folder).await;
    assert_eq!(server.of(Over::WebSocket), server.of(Over::Polling));
    let mut http = pki.client().http(server.of(Over::Polling));
    let page = http.ask(&Request::new("GET", "/")).await;
    assert_eq!(page.status, 200, "{}", page.text());
    // What a browser sends along from the page itself.
    let login = Request::new("POST", "/v1/session")
        .header("Origin", "https://localhost")
        .json("{\"user\":\"ada\",\"cookie\":true}");
    let session = http.ask(&login).await;
    assert_eq!(session.status, 201, "{}", session.text());
    let cookie = session.header("set-cookie").unwrap();
    assert!(
        cookie.starts_with("__Host-") && cookie.contains("; Secure"),
        "{cookie}"
    );
    let elsewhere = Request::new("POST", "/v1/session")
        .header("Origin", "http://localhost")
        .json("{\"user\":\"eve\"}");
    let answer = http.ask(&elsewhere).await;
    assert_eq!(answer.status, 403, "another scheme is another origin");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_no_tls_is_counted_and_gets_nothing() {
    let pki = Pki::new();
    let server = Program::start(&guests(&pki)).await;
    for over in Over::ALL {
        for said in [
            &b"{\"type\":\"login\",\"user\":\"ada\"}\n"[..],
            b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n",
            &[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0],
        ] {
            let mut stream = TcpStream::connect(server.of(over)).await.unwrap();
            stream.write_all(said).await.unwrap();
            let mut heard = Vec::new();
            // The server may close while bytes of ours are unread.
            let read = timeout(PATIENCE, stream.read_to_end(&mut heard)).await;
            read.expect("it is closed").ok();
            let text = String::from_utf8_lossy(&heard);
            assert!(!text.contains("type") && !text.contains("HTTP"), "{text}");
        }
    }
    server
        .metric_becomes("chinwag_tls_failures_total", "reason=\"malformed\"", 9.0)
        .await;
    // A client that does not know the CA leaves by itself.
    let stranger = Secure::trusting(&Authority::root("strangers"));
    for over in Over::ALL {
        assert!(stranger.dial(server.of(over)).await.is_err());
    }
    server
        .metric_becomes("chinwag_tls_failures_total", "reason=\"alert\"", 3.0)
        .await;
    talks_on(&mut crowd(&server, &pki.client()).await, "hello").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_is_not_finished_in_time_is_cut_off() {
    let pki = Pki::new();
    let setup = Setup::default()
        .and(&pki.table("handshake_timeout = \"300ms\""))
        .on_all("tls = \"door\"");
    let server = Program::start(&setup).await;
    for over in Over::ALL {
        let mut stream = TcpStream::connect(server.of(over)).await.unwrap();
        stream.write_all(&[0x16, 3, 1, 2, 0]).await.unwrap();
        let read = timeout(PATIENCE, stream.read(&mut [0])).await;
        assert!(!matches!(read.expect("it is closed"), Ok(1..)));
    }
    server
        .metric_becomes("chinwag_tls_failures_total", "reason=\"timeout\"", 3.0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_told_over_tls_and_to_whom_the_table_says() {
    let pki = Pki::new();
    let setup = pki.by_certificate();
    let (_folder, server) = with_metrics_over_tls(&setup).await;
    let get = Request::new("GET", "/metrics");
    for version in VERSIONS {
        let scraper = pki.clients.client("prometheus", |_| ());
        let scraper = Secure::showing(&pki.servers, version, &scraper);
        let answer = scraper.http(server.metrics()).ask(&get).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let expiry = "chinwag_tls_expiry_timestamp_seconds{tls=\"door\",what=";
        for what in ["certificate", "client_ca", "crl"] {
            let series = format!("{expiry}\"{what}\"}}");
            assert!(answer.text().contains(&series), "{}", answer.text());
        }
    }
    // Nobody else, and not in plain text.
    let mut stream = pki.client().dial(server.metrics()).await.unwrap();
    stream.write_all(&get.bytes()).await.ok();
    assert!(!matches!(stream.read(&mut [0]).await, Ok(1..)));
    let mut stream = TcpStream::connect(server.metrics()).await.unwrap();
    stream.write_all(&get.bytes()).await.unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).await.ok();
    assert!(!heard.starts_with(b"HTTP"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_rests_when_the_server_stops_is_told_that_this_is_the_end() {
    let pki = Pki::new();
    let backend = Backend::start(willing).await;
    let setup = Setup::authenticator("kind = \"anonymous\"\nsession_manager = \"backend\"")
        .and(&backend.table(""))
        .and(&pki.table(""))
        .and("[control]\nbind = \"127.0.0.1:0\"\ntls = \"door\"\n")
        .and("[web]\nbind = \"127.0.0.1:0\"\n")
        .on_all("tls = \"door\"");
    let (_folder, server) = with_metrics_over_tls(&setup).await;
    let control = server.table("control");
    let http = [
        (server.of(Over::Polling), "/v1/session"),
        (server.of(Over::WebSocket), "/"),
        (control, "/v1/control/end"),
    ];
    let mut resting = Vec::new();
    for (addr, path) in http {
        let mut client = pki.client().dial(addr).await.unwrap();
        client
            .write_all(&Request::new("GET", path).bytes())
            .await
            .unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.unwrap());
        }
        resting.push((addr, client));
        // Another one says nothing at all, and a third stops in the middle of a word.
        resting.push((addr, pki.client().dial(addr).await.unwrap()));
        let mut client = pki.client().dial(addr).await.unwrap();
        client.write_all(b"GET / HT").await.unwrap();
        resting.push((addr, client));
    }
    let metrics = server.metrics();
    resting.push((metrics, pki.client().dial(metrics).await.unwrap()));
    server.stop().await;
    for (addr, mut client) in resting {
        let mut rest = Vec::new();
        let read = timeout(PATIENCE, client.read_to_end(&mut rest)).await;
        let end = read.expect("it is closed");
        assert!(end.is_ok(), "{addr}: {end:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_meant_for_another_protocol_is_refused() {
    let pki = Pki::new();
    let server = Program::start(&guests(&pki)).await;
    let incompatible = "reason=\"incompatible\"";
    // A browser that was led to a port of lines, by whoever stands between, posts to what it takes for the same server.
    let mut refused = 0.0;
    for (over, offers) in [
        (Over::Tcp, &["h2", "http/1.1"][..]),
        (Over::Tcp, &["http/1.1"]),
        (Over::Tcp, &["imap"]),
        (Over::WebSocket, &["chinwag"]),
        (Over::Polling, &["h2", "chinwag"]),
    ] {
        let client = pki.client().offering(offers);
        let met = client.dial(server.of(over)).await;
        assert!(met.is_err(), "{over:?} {offers:?}");
        refused += 1.0;
        server
            .metric_becomes("chinwag_tls_failures_total", incompatible, refused)
            .await;
    }
    for (over, offers) in [
        (Over::Tcp, &["chinwag"][..]),
        (Over::Tcp, &["http/1.1", "chinwag"]),
        (Over::Tcp, &[]),
        (Over::WebSocket, &["http/1.1"]),
        (Over::Polling, &["h2", "http/1.1"]),
        (Over::Polling, &[]),
    ] {
        let client = pki.client().offering(offers);
        let mut guest = client.connect(&server, over, "guest").await;
        guest
            .log_in(json!({"type": "login", "user": "guest"}))
            .await;
        guest.command(json!({"type": "logout"})).await;
    }
}

/// Certificates as Kubernetes mounts them: what the table names are links into a folder that is itself a link, and that
/// one is swapped.
struct Mounted(TempDir);

impl Mounted {
    fn new(pki: &Pki) -> Self {
        let mounted = Self(tempfile::tempdir().unwrap());
        mounted.swap(pki, "1");
        for name in ["server.pem", "server.key"] {
            symlink(Path::new("..data").join(name), mounted.0.path().join(name)).unwrap();
        }
        mounted
    }

    /// Has the links lead to copies of the present files.
    fn swap(&self, pki: &Pki, version: &str) {
        let folder = self.0.path().join(version);
        std::fs::create_dir(&folder).unwrap();
        for name in ["server.pem", "server.key"] {
            std::fs::copy(pki.at(name), folder.join(name)).unwrap();
        }
        let link = self.0.path().join("..data_tmp");
        symlink(version, &link).unwrap();
        std::fs::rename(link, self.0.path().join("..data")).unwrap();
    }

    fn table(&self) -> String {
        let at = |name| self.0.path().join(name);
        format!(
            "[tls.door]\ncert = {:?}\nkey = {:?}\n",
            at("server.pem"),
            at("server.key")
        )
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_certificates_are_for_newcomers_and_nobody_is_dropped() {
    let pki = Pki::new();
    let mounted = Mounted::new(&pki);
    let setup = Setup::default()
        .and(&mounted.table())
        .on_all("tls = \"door\"");
    let server = Program::start(&setup).await;
    let expiry = || async {
        let what = "tls=\"door\",what=\"certificate\"";
        server
            .metric("chinwag_tls_expiry_timestamp_seconds", what)
            .await
    };
    let before = expiry().await;
    let mut members = crowd(&server, &pki.client()).await;
    let successors = Authority::root("successors");
    pki.put_server(&successors.server_until(day(5)));
    mounted.swap(&pki, "2");
    server.metric_becomes(RELOADS, OK, 1.0).await;
    assert!(expiry().await < before - 80.0 * 86_400.0);
    for over in Over::ALL {
        let old = Secure::trusting(&pki.servers);
        assert!(old.dial(server.of(over)).await.is_err(), "{over:?}");
        let new = Secure::trusting(&successors);
        let mut late = new.connect(&server, over, "late").await;
        late.log_in(json!({"type": "login", "user": "late"})).await;
        late.command(json!({"type": "logout"})).await;
    }
    // Whoever polls comes with a new connection now and then, and had to be told of the new CA; the others stay.
    members.truncate(Over::PUSH.len());
    talks_on(&mut members, "still here").await;
    assert_eq!(server.metric(RELOADS, FAILED).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_new_file_changes_nothing_and_is_told() {
    let pki = Pki::new();
    let server = Program::start(&guests(&pki)).await;
    let mut members = crowd(&server, &pki.client()).await;
    let key = std::fs::read_to_string(pki.at("server.key")).unwrap();
    for (n, (file, content)) in [
        ("server.pem", "nothing"),
        (
            "server.key",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        pki.put(file, content);
        server
            .metric_becomes(RELOADS, FAILED, f64::from(n as u32 + 1))
            .await;
    }
    let log = server.log().join("\n");
    for words in [
        "those read before stay",
        "server.pem",
        "server.key",
        "ERROR",
    ] {
        assert!(log.contains(words), "{words}:\n{log}");
    }
    assert!(
        !log.contains("AAAA"),
        "what is in a key is nobody's business"
    );
    for over in Over::ALL {
        let mut new = pki.client().connect(&server, over, "new").await;
        new.log_in(json!({"type": "login", "user": "new"})).await;
        new.command(json!({"type": "logout"})).await;
    }
    talks_on(&mut members, "still here").await;
    pki.put_server(&pki.servers.server());
    assert_ne!(key, std::fs::read_to_string(pki.at("server.key")).unwrap());
    eventually("the good files", async || {
        (server.metric(RELOADS, OK).await > 0.0).then_some(())
    })
    .await;
    talks_on(&mut members, "and here").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_files_that_could_not_be_read_are_tried_again_though_they_stay_as_they_are() {
    let pki = Pki::new();
    let setup = Setup::default()
        .and(&pki.table("handshake_timeout = \"60s\""))
        .on_all("tls = \"door\"");
    let server = Program::start_in_shell(&setup, "ulimit -n 64").await;
    let logs = async |words: &str| {
        eventually(words, async || {
            let log = server.log();
            log.iter().any(|line| line.contains(words)).then_some(())
        })
        .await;
    };
    // Strangers who say nothing take all descriptors.
    let mut strangers = Vec::new();
    for _ in 0..100 {
        strangers.push(TcpStream::connect(server.of(Over::Tcp)).await.unwrap());
    }
    logs("Accept failed").await;
    let successors = Authority::root("successors");
    pki.put_server(&successors.server());
    logs("TLS files can't be read just now; those read before stay").await;
    drop(strangers);
    eventually("the new files", async || {
        (server.metric(RELOADS, OK).await > 0.0).then_some(())
    })
    .await;
    let new = Secure::trusting(&successors);
    new.connect(&server, Over::Tcp, "new").await;
    let told = server.log().join("\n");
    assert!(told.contains("Too many open files"), "{told}");
}

/// Takes a lease on a file and does not heed those who open it. The kernel lets them wait for
/// `/proc/sys/fs/lease-break-time`, by default 45 seconds, which is longer than it takes here.
const HOLDS: &str = r#"
import fcntl, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
file = open(sys.argv[1])
try:
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    print("held", flush=True)
except OSError as error:
    print(error, flush=True)
sys.stdin.read()
"#;

/// A file that keeps whoever opens it waiting, as one does on a disk that has gone away, until this lets go of it.
struct Held {
    holder: Child,
    path: PathBuf,
    _folder: TempDir,
}

impl Held {
    /// One with this content. It lies where the file system knows leases: those that are made of layers, as containers
    /// have, may not.
    async fn with(content: &str) -> Self {
        let mut refusals = Vec::new();
        for place in [Path::new("/dev/shm"), &std::env::temp_dir()] {
            match Self::at(place, content).await {
                Ok(held) => return held,
                Err(refusal) => refusals.push(format!("{}: {refusal}", place.display())),
            }
        }
        panic!("no file can be held: {refusals:?}");
    }

    async fn at(place: &Path, content: &str) -> Result<Self, String> {
        let folder = tempfile::tempdir_in(place).map_err(|error| error.to_string())?;
        let path = folder.path().join("held.pem");
        std::fs::write(&path, content).map_err(|error| error.to_string())?;
        let mut holder = Command::new("python3")
            .args(["-c", HOLDS])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("python3 is installed");
        let mut word = String::new();
        let mut told = BufReader::new(holder.stdout.as_mut().unwrap());
        let heard = timeout(PATIENCE, told.read_line(&mut word)).await;
        heard.expect("the holder is slow").unwrap();
        match word.trim_end() {
            "held" => Ok(Self {
                holder,
                path,
                _folder: folder,
            }),
            refusal => Err(refusal.to_owned()),
        }
    }

    /// Puts it in the place of another file.
    fn put(&self, path: &Path) {
        let link = path.with_extension("link");
        symlink(&self.path, &link).unwrap();
        std::fs::rename(link, path).unwrap();
    }

    /// Whoever waits for it goes on.
    async fn release(&mut self) {
        drop(self.holder.stdin.take());
        let end = timeout(PATIENCE, self.holder.wait()).await;
        assert!(end.expect("it lets go").unwrap().success());
    }
}

/// `[tls.<name>]` with files of its own.
fn attic(pki: &Pki, name: &str) -> String {
    for kind in ["pem", "key"] {
        let content = std::fs::read_to_string(pki.at(&format!("server.{kind}"))).unwrap();
        pki.put(&format!("{name}.{kind}"), &content);
    }
    format!(
        "[tls.{name}]\ncert = {:?}\nkey = {:?}\n",
        pki.at(&format!("{name}.pem")),
        pki.at(&format!("{name}.key"))
    )
}

const OVERDUE: &str = "chinwag_config_reload_overdue";

#[tokio::test(flavor = "multi_thread")]
async fn a_table_whose_files_are_slow_holds_up_no_others() {
    let pki = Pki::new();
    let server = Program::start(&guests(&pki).and(&attic(&pki, "attic"))).await;
    let held = Held::with(&std::fs::read_to_string(pki.at("attic.pem")).unwrap()).await;
    held.put(&pki.at("attic.pem"));
    for round in 1..4 {
        server.signal("HUP").await;
        server.metric_becomes(RELOADS, OK, f64::from(round)).await;
    }
    assert_eq!(server.metric(RELOADS, "name=\"attic\"").await, 0.0);
    // Nor does it hold up the end.
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_do_not_come_are_told_and_taken_when_they_do() {
    // As many as are read at a time when all are asked for.
    let names: Vec<String> = (1..=8).map(|n| format!("attic{n}")).collect();
    let pki = Pki::new();
    let tables: String = names.iter().map(|name| attic(&pki, name)).collect();
    let server = Program::start(&guests(&pki).and(&tables)).await;
    assert_eq!(server.metric(OVERDUE, "").await, 0.0);
    let mut held = Held::with(&std::fs::read_to_string(pki.at("attic1.pem")).unwrap()).await;
    for name in &names {
        held.put(&pki.at(&format!("{name}.pem")));
    }
    server.signal("HUP").await;
    server.metric_becomes(OVERDUE, "", 8.0).await;
    server.metric_becomes(RELOADS, OK, 1.0).await;
    assert_eq!(server.metric(OVERDUE, "name=\"door\"").await, 0.0);
    // They take no places from others either.
    server.signal("HUP").await;
    server.metric_becomes(RELOADS, OK, 2.0).await;
    assert_eq!(server.metric(RELOADS, "").await, 2.0);
    let told = |words: &str| {
        let is_told = |name: &&String| {
            let tls = format!("tls={name}");
            let says = |line: &&String| line.contains(words) && line.contains(&tls);
            server.log().iter().filter(says).count() == 1
        };
        names.iter().filter(is_told).count()
    };
    assert_eq!(told("TLS files have not come for so long"), 8);
    assert_eq!(told("TLS files have come after all"), 0);
    held.release().await;
    server.metric_becomes(OVERDUE, "", 0.0).await;
    for name in &names {
        let is_read = async || {
            let ok = format!("what=\"tls\",name=\"{name}\",outcome=\"ok\"");
            (server.metric(RELOADS, &ok).await > 0.0).then_some(())
        };
        eventually("the files", is_read).await;
    }
    assert_eq!(told("TLS files have come after all"), 8);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_has_certificates_read_anew_and_ends_nobody() {
    let pki = Pki::new();
    let server = Program::start(&guests(&pki)).await;
    let mut members = crowd(&server, &pki.client()).await;
    for round in 1..3 {
        server.signal("HUP").await;
        server.metric_becomes(RELOADS, OK, f64::from(round)).await;
    }
    std::fs::remove_file(pki.at("server.key")).unwrap();
    server.signal("HUP").await;
    eventually("a failed reload", async || {
        (server.metric(RELOADS, FAILED).await > 0.0).then_some(())
    })
    .await;
    let log = server.log().join("\n");
    for words in [
        "Reading TLS files anew.",
        "TLS files read anew.",
        "can't be read",
    ] {
        assert!(log.contains(words), "{words}:\n{log}");
    }
    talks_on(&mut members, "still here").await;
    for mut member in members {
        member.command(json!({"type": "logout"})).await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hangup_without_tls_changes_nothing() {
    let server = Program::start(&Setup::default()).await;
    let mut ada = Client::login(server.of(Over::Tcp), Over::Tcp, "ada").await;
    server.signal("HUP").await;
    eventually("a line in the log", async || {
        let says = |line: &String| line.contains("No [tls.NAME] has files to read anew");
        server.log().iter().any(says).then_some(())
    })
    .await;
    ada.ping().await;
    drop(ada);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_that_is_closed_takes_its_server_along() {
    let setup = Setup::default().only(&[Over::Tcp]);
    let folder = setup.folder();
    let (file, log) = (
        folder.path().join("chinwag.toml"),
        folder.path().join("log"),
    );
    std::fs::write(&file, setup.document()).unwrap();
    let command = format!("exec {PROGRAM} serve --config {file:?} 2>{log:?}");
    let mut terminal = Command::new("script")
        .args(["--quiet", "--command", &command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("script is installed");
    let says = async |words: &str| {
        eventually(words, async || {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            log.contains(words).then_some(())
        })
        .await;
    };
    says("listening").await;
    terminal.kill().await.unwrap();
    says("stopped").await;
}

/// Exit code, standard output and standard error of `chinwag check`.
async fn check(document: &str) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("chinwag.toml");
    std::fs::write(&file, document).unwrap();
    Program::run(&["check", file.to_str().unwrap()], "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_tells_what_each_listener_speaks_and_what_is_odd_about_its_files() {
    let pki = Pki::new();
    let document = pki.by_certificate().document();
    let (exit, output, errors) = check(&document).await;
    assert_eq!((exit, errors.as_str()), (Some(0), ""));
    for over in Over::ALL {
        let row = output
            .lines()
            .find(|line| line.contains(&format!("transports.{}", over.table())));
        let row = row.unwrap_or_else(|| panic!("{output}"));
        assert!(
            row.contains("TLS: door, client certificate required"),
            "{output}"
        );
    }
    let metrics = output.lines().find(|line| line.contains("metrics"));
    assert!(metrics.unwrap().contains("plain text"), "{output}");

    pki.put_server(&pki.servers.server_until(day(1)));
    let (exit, _, errors) = check(&document).await;
    assert_eq!(exit, Some(0), "{errors}");
    assert!(errors.contains("ends soon"), "{errors}");

    // A certificate that is over works, for clients that do not mind; nobody starts so unawares.
    pki.put_server(&pki.servers.server_until(day(-1)));
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(pki.at("server.key"), open).unwrap();
    pki.put("crl.pem", &pki.clients.crl_from(-40, &[]));
    let unused = document.clone() + &pki.table("").replace("[tls.door]", "[tls.window]");
    let (exit, output, errors) = check(&unused).await;
    assert_eq!(exit, Some(0), "{errors}");
    assert!(output.contains("warnings"), "{output}");
    for words in [
        "chinwag.toml:",
        "has expired",
        "every user of this machine can read or write the private key",
        "out of date",
        "tls.window: no listener names it",
    ] {
        assert!(errors.contains(words), "{words}:\n{errors}");
    }

    // Files that can't be used are mistakes, all of them at once.
    pki.put("server.pem", "nothing");
    std::fs::remove_file(pki.at("clients.pem")).unwrap();
    let (exit, _, errors) = check(&document).await;
    assert_eq!(exit, Some(1), "{errors}");
    for words in [
        "tls.door.cert",
        "has no certificate",
        "tls.door.client_ca",
        "can't be read",
    ] {
        assert!(errors.contains(words), "{words}:\n{errors}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_text_for_the_world_has_to_be_wanted() {
    let listener = "[transports.line]\nkind = \"tcp\"\nbind = \"0.0.0.0:0\"\nauth = [\"guests\"]\n";
    let guests = "[authenticators.guests]\nkind = \"anonymous\"\nallow_public = true\n";
    let (exit, _, errors) = check(&(listener.to_owned() + guests)).await;
    assert_eq!(exit, Some(1), "{errors}");
    assert!(
        errors.contains("tls = \"NAME\"") && errors.contains("insecure = true"),
        "both ways out: {errors}"
    );
    let pki = Pki::new();
    for way_out in [
        "insecure = true\n".to_owned(),
        format!("tls = \"door\"\n{}", pki.table("")),
    ] {
        let document = listener.to_owned() + &way_out + guests;
        let (exit, _, errors) = check(&document).await;
        assert_eq!(exit, Some(0), "{errors}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_printed_is_an_error_and_a_reader_who_has_gone_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let run = async |args: &[&str], output: Stdio| {
        let mut command = Command::new(PROGRAM);
        command.args(args).stdout(output).stderr(Stdio::piped());
        let child = command.kill_on_drop(true).spawn().unwrap();
        let ended = timeout(PATIENCE, child.wait_with_output()).await;
        let ended = ended.expect("it ends").unwrap();
        let errors = String::from_utf8_lossy(&ended.stderr).into_owned();
        (ended.status.code(), errors)
    };
    let full = || {
        Stdio::from(
            std::fs::OpenOptions::new()
                .write(true)
                .open("/dev/full")
                .unwrap(),
        )
    };
    let gone = || Stdio::from(std::io::pipe().unwrap().1);
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("chinwag.toml"), Setup::default().document()).unwrap();
    for (output, expected) in [(&full as &dyn Fn() -> Stdio, 1), (&gone, 0)] {
        let dir = at(&format!("pki{expected}"));
        for args in [&["cert", "dev", &dir][..], &["check", &at("chinwag.toml")]] {
            let (exit, errors) = run(args, output()).await;
            assert_eq!(exit, Some(expected), "{args:?}: {errors}");
            let told = errors.contains("can't write to standard output");
            assert_eq!(told, expected == 1, "{args:?}: {errors}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cert_dev_makes_and_prints_works_as_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("pki");
    let (exit, printed, errors) = Program::run(&["cert", "dev", dir.to_str().unwrap()], "").await;
    assert_eq!(exit, Some(0), "{errors}");
    let file = folder.path().join("chinwag.toml");
    std::fs::write(&file, &printed).unwrap();
    let server = Program::start_file(&file).await;
    let log = server.log().join("\n");
    assert!(!log.contains("WARN"), "{log}");
    // The printed commands, with the ports that were free.
    let command = |program: &str| {
        let lines: Vec<&str> = printed
            .lines()
            .skip_while(|line| !line.starts_with(&format!("#   {program} ")))
            .map(|line| line.trim_start_matches('#').trim())
            .collect();
        let end = lines.iter().position(|line| !line.ends_with('\\')).unwrap();
        lines[..=end]
            .join("\n")
            .replace(":4020", &format!(":{}", server.table("line").port()))
            .replace(":8080", &format!(":{}", server.table("poll").port()))
    };
    for (user, expected) in [("alice", 0), ("bob", 3)] {
        let command = command("chinwag").replace("alice.", &format!("{user}."));
        let words = command.replace("\\\n", " ");
        let args: Vec<&str> = words.split_whitespace().skip(1).collect();
        let (exit, said, errors) = Program::run(&args, "hello\n").await;
        assert_eq!(exit, Some(expected), "{command}:\n{said}{errors}");
    }
    let login = "{\"type\":\"login\"}\\n";
    for (command, input) in [(command("openssl"), login), (command("curl"), "")] {
        for (user, gets_in) in [("alice", true), ("bob", false)] {
            let command = command.replace("alice.", &format!("{user}."));
            let said = shell(&command, input).await;
            let session =
                said.contains("\"type\":\"session\"") && said.contains("alice@example.org");
            assert_eq!(session, gets_in, "{command}:\n{said}");
        }
    }
}

/// Runs `command` with `input`, which stays open until it has ended or something was said, and gives all that it said.
async fn shell(command: &str, input: &str) -> String {
    let mut child = Command::new("bash")
        .args(["-c", &format!("exec {command}")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.replace("\\n", "\n");
    stdin.write_all(input.as_bytes()).await.ok();
    let mut said = String::new();
    let mut stdout = child.stdout.take().unwrap();
    let mut bytes = [0; 4096];
    while let Ok(Ok(count @ 1..)) = timeout(PATIENCE, stdout.read(&mut bytes)).await {
        said += &String::from_utf8_lossy(&bytes[..count]);
        if said.contains("\n") || said.contains('}') {
            break;
        }
    }
    drop(stdin);
    child.kill().await.ok();
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_stops_reading_is_ended_when_its_time_is_over() {
    // Its queue has room for all that is sent.
    let limits = "[limits]\nsends = \"unlimited\"\ncommands = \"unlimited\"\nmessage_bytes = \"48KiB\"\n\
                  frame_bytes = \"160KiB\"\nmember_queue = \"64MiB\"\nslow_after = \"2s\"\n";
    let pki = Pki::new();
    let client = pki.client();
    let server = Program::start(&guests(&pki).and(limits)).await;
    let text = "x".repeat(40_000);
    for (over, other) in [(Over::Tcp, Over::WebSocket), (Over::WebSocket, Over::Tcp)] {
        let mut speaker = client.connect(&server, other, "speaker").await;
        speaker
            .log_in(json!({"type": "login", "user": "speaker"}))
            .await;
        speaker.join("lobby").await;
        let link = client.link(server.of(over), over).await.unwrap();
        let sloth = chinwag_conformance::Sloth::join(link, "sloth", "lobby").await;
        let transport = format!("transport=\"{}\"", over.table());
        let reason = format!("{transport},reason=\"slow_consumer\"");
        let mut said = 0;
        // Once its kernels are full, and a record waits for them, something is queued behind it: until it is ended.
        while server.metric("chinwag_queued_bytes", &transport).await == 0.0
            && server.metric("chinwag_sessions_ended_total", &reason).await == 0.0
        {
            assert!(said < 1000, "nothing was held up of 40 MB");
            for _ in 0..10 {
                speaker.say("lobby", &text).await;
                said += 1;
            }
        }
        let is_its_leave = |event: &Value| event["type"] == "leave" && event["user"] == "sloth";
        let events = speaker.events_until("its leave", is_its_leave).await;
        assert_eq!(events.last().unwrap()["reason"], "evicted");
        server
            .metric_becomes("chinwag_sessions_ended_total", &reason, 1.0)
            .await;
        let (heard, code) = sloth.wake().await;
        assert!(heard < said, "the rest was never sent");
        assert!(code.is_none_or(|code| code == "slow_consumer"));
        speaker.command(json!({"type": "logout"})).await;
    }
    server.stop().await;
}
