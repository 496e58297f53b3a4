//! The real program in a process of its own, and what the system tells about it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    task::JoinSet,
    time::timeout,
};

use super::{Addresses, Http, Over, PATIENCE, Request, Setup, eventually};

/// The path of the program.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_chinwag");

/// The name under which the metrics listener is logged.
const METRICS: &str = "metrics";
/// And the one where session managers give orders.
const CONTROL: &str = "control";

pub(crate) struct Program {
    child: Child,
    addrs: BTreeMap<String, SocketAddr>,
    log: Arc<Mutex<Vec<String>>>,
    _reader: JoinSet<()>,
    _folder: Option<TempDir>,
}

impl Addresses for Program {
    fn of(&self, over: Over) -> SocketAddr {
        self.table(over.table())
    }
}

impl Program {
    /// Starts it with what `setup` says.
    pub(crate) async fn start(setup: &Setup) -> Self {
        Self::start_in_shell(setup, "").await
    }

    /// The same, in a shell that runs `before` first, say to lower a limit.
    pub(crate) async fn start_in_shell(setup: &Setup, before: &str) -> Self {
        let folder = setup.folder();
        let file = folder.path().join("chinwag.toml");
        std::fs::write(&file, setup.document()).expect("a writable folder");
        let mut command = Command::new("bash");
        command.args([
            "-c",
            &format!("{before}\nexec \"$@\""),
            "bash",
            PROGRAM,
            "serve",
            "--config",
        ]);
        command.arg(&file);
        let mut program = Self::spawn(command, &listeners(&setup.document())).await;
        program._folder = Some(folder);
        program
    }

    /// Starts it with a file as it stands.
    pub(crate) async fn start_file(file: &Path) -> Self {
        Self::start_file_with(file, &[]).await
    }

    /// The same with more variables in its environment.
    pub(crate) async fn start_file_with(file: &Path, variables: &[(&str, String)]) -> Self {
        let document = std::fs::read_to_string(file).expect("a readable file");
        let mut command = Command::new(PROGRAM);
        command.arg("serve").arg("--config").arg(file);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        let page = document.lines().any(|line| line.starts_with("[web]"));
        Self::spawn_elsewhere(command, &listeners(&document), page).await
    }

    /// Starts it in that folder, with a file there that is named without the folder.
    pub(crate) async fn start_in(folder: &Path, file: &str) -> Self {
        let document = std::fs::read_to_string(folder.join(file)).expect("a readable file");
        let mut command = Command::new(PROGRAM);
        command.current_dir(folder);
        command.args(["serve", "--config", file]);
        let page = document.lines().any(|line| line.starts_with("[web]"));
        Self::spawn_elsewhere(command, &listeners(&document), page).await
    }

    /// Starts it without any argument, as the README does first.
    pub(crate) async fn start_alone() -> Self {
        let names = ["web", "poll", "line", METRICS].map(String::from);
        Self::spawn_elsewhere(Command::new(PROGRAM), &names, true).await
    }

    /// Runs `command` with every bind moved to a free port, and with a log that can be read here: the file is
    /// overridden by the environment. The page, where there is one, goes with its transports.
    async fn spawn_elsewhere(mut command: Command, expected: &[String], page: bool) -> Self {
        command
            .env("CHINWAG_LOG__FORMAT", "text")
            .env("CHINWAG_LOG__LEVEL", "info");
        for name in expected {
            let key = match name.as_str() {
                CONTROL | METRICS => format!("CHINWAG_{}__BIND", name.to_uppercase()),
                name => format!("CHINWAG_TRANSPORTS__{}__BIND", name.to_uppercase()),
            };
            command.env(key, "127.0.0.1:0");
        }
        if page {
            command.env("CHINWAG_WEB__BIND", "127.0.0.1:0");
        }
        Self::spawn(command, expected).await
    }

    /// Runs `command`, which becomes the server, and waits until all of these listeners are logged.
    async fn spawn(mut command: Command, expected: &[String]) -> Self {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = child
            .kill_on_drop(true)
            .spawn()
            .expect("the program starts");
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let mut reader = JoinSet::new();
        let shared = Arc::clone(&log);
        reader.spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                shared.lock().expect("nobody panics with it").push(line);
            }
        });
        let mut program = Self {
            child,
            addrs: BTreeMap::new(),
            log,
            _reader: reader,
            _folder: None,
        };
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            program.addrs = program
                .log()
                .iter()
                .filter_map(|line| listening(line))
                .collect();
            if expected.iter().all(|name| program.addrs.contains_key(name)) {
                return program;
            }
            let ended = program.child.try_wait().expect("it is our child");
            let late = tokio::time::Instant::now() > deadline;
            assert!(
                ended.is_none() && !late,
                "waited for {expected:?} to listen ({ended:?}):\n{}",
                program.log().join("\n")
            );
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// Runs it to its end with these arguments: exit code, standard output, standard error.
    pub(crate) async fn run(args: &[&str], input: &str) -> (Option<i32>, String, String) {
        let mut command = Command::new(PROGRAM);
        command.args(args).kill_on_drop(true);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let mut stdin = child.stdin.take().expect("it is piped");
        // A program that does not read its input may be gone already.
        stdin.write_all(input.as_bytes()).await.ok();
        drop(stdin);
        let output = timeout(PATIENCE, child.wait_with_output())
            .await
            .expect("the program ends");
        let output = output.expect("it is our child");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    }

    pub(crate) fn table(&self, name: &str) -> SocketAddr {
        let log = || self.log().join("\n");
        *self
            .addrs
            .get(name)
            .unwrap_or_else(|| panic!("{name} does not listen:\n{}", log()))
    }

    pub(crate) fn metrics(&self) -> SocketAddr {
        self.table(METRICS)
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().expect("nobody panics with it").clone()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_none()
    }

    /// Sends a signal by its name.
    pub(crate) async fn signal(&self, name: &str) {
        let kill = Command::new("kill")
            .args([&format!("-{name}"), &self.pid().to_string()])
            .status();
        assert!(kill.await.expect("kill is installed").success());
    }

    pub(crate) async fn exit(&mut self) -> ExitStatus {
        let exit = timeout(PATIENCE * 2, self.child.wait()).await;
        exit.unwrap_or_else(|_| panic!("still running:\n{}", self.log().join("\n")))
            .expect("our child")
    }

    /// Asks it to end and checks that it does so cleanly.
    pub(crate) async fn stop(mut self) {
        self.signal("TERM").await;
        let exit = self.exit().await;
        assert_eq!(exit.code(), Some(0), "{}", self.log().join("\n"));
    }

    /// Processor time used so far, in hundredths of a second.
    pub(crate) fn cpu_ticks(&self) -> u64 {
        let stat = self.proc("stat");
        // The second field is the name in brackets, which may hold spaces; user and system time are 14 and 15.
        let fields: Vec<&str> = stat
            .rsplit(')')
            .next()
            .expect("a name")
            .split_whitespace()
            .collect();
        let ticks = |field: usize| fields[field - 3].parse::<u64>().expect("a number");
        ticks(14) + ticks(15)
    }

    /// Memory in use that belongs to it alone or is written, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        self.status("VmRSS:") * 1024
    }

    /// Open descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        let folder = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("it runs");
        folder.count()
    }

    /// The sum of a metric's series, those whose labels hold `labels`.
    pub(crate) async fn metric(&self, name: &str, labels: &str) -> f64 {
        sum(&scrape(self.metrics()).await, name, labels)
    }

    /// Waits until a metric has a value.
    pub(crate) async fn metric_becomes(&self, name: &str, labels: &str, value: f64) {
        let mut last = f64::NAN;
        eventually(&format!("{name}{{{labels}}} to be {value}"), async || {
            last = self.metric(name, labels).await;
            if last != value {
                eprintln!("{name}{{{labels}}} is {last}");
            }
            (last == value).then_some(())
        })
        .await;
    }

    fn status(&self, key: &str) -> u64 {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok())
            .expect("a figure")
    }

    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.pid())).expect("it runs")
    }
}

/// The text of a scrape.
pub(crate) async fn scrape(metrics: SocketAddr) -> String {
    let answer = Http::new(metrics)
        .ask(&Request::new("GET", "/metrics"))
        .await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text()
}

/// The sum of the series called `name` whose labels hold `labels`.
pub(crate) fn sum(scrape: &str, name: &str, labels: &str) -> f64 {
    let series = scrape
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (of, with) = series.split_once('{').unwrap_or((series, ""));
            (of == name && with.contains(labels)).then(|| value.parse::<f64>().expect("a number"))
        });
    series.sum()
}

/// The names under which the listeners of a document are logged.
fn listeners(document: &str) -> Vec<String> {
    let tables = document
        .lines()
        .filter_map(|line| line.trim().strip_prefix('[')?.split(']').next());
    let names = tables.filter_map(|table| {
        if [CONTROL, METRICS].contains(&table) {
            Some(table)
        } else {
            table.strip_prefix("transports.")
        }
    });
    names.map(str::to_owned).collect()
}

/// The transport and the address of a line that says `listening`.
fn listening(line: &str) -> Option<(String, SocketAddr)> {
    let field = |key: &str| {
        let value = line
            .split_whitespace()
            .find_map(|word| word.strip_prefix(key))?;
        Some(value.trim_matches('"').to_owned())
    };
    if !line.contains("listening") {
        return None;
    }
    Some((field("transport=")?, field("addr=")?.parse().ok()?))
}
