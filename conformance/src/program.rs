//! A server in a process of its own: a binary as its users start it.

use std::{
    collections::BTreeMap,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    task::JoinSet,
    time::timeout,
};

use crate::{PATIENCE, eventually};

/// A running program that became a server. Dropped, it is killed.
#[derive(Debug)]
pub struct Program {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    addresses: BTreeMap<String, String>,
    _reader: JoinSet<()>,
}

impl Program {
    /// Runs `command`, say `my-chinwag serve --config FILE`, and waits until these transports listen. It is told, by
    /// its environment, to log in a form that can be read here; free ports are for the caller to ask for, as with
    /// `CHINWAG_TRANSPORTS__LINE__BIND=127.0.0.1:0`.
    ///
    /// # Panics
    /// If it ends instead, or does not listen within [`PATIENCE`]; the text is what it logged.
    pub async fn start(mut command: Command, transports: &[&str]) -> Self {
        command
            .env("CHINWAG_LOG__FORMAT", "json")
            .env("CHINWAG_LOG__LEVEL", "info")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().expect("the program starts");
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
            log,
            addresses: BTreeMap::new(),
            _reader: reader,
        };
        let what = format!("{transports:?} to listen");
        eventually(&what, async || {
            program.addresses = program.log().iter().filter_map(|l| listening(l)).collect();
            if let Some(status) = program.child.try_wait().expect("it is our child") {
                panic!("{status}:\n{}", program.log().join("\n"));
            }
            let mut wanted = transports.iter();
            let all = wanted.all(|name| program.addresses.contains_key(*name));
            all.then_some(())
        })
        .await;
        program
    }

    /// Where that transport listens, as the log says it.
    ///
    /// # Panics
    /// If it does not.
    #[must_use]
    pub fn address(&self, transport: &str) -> &str {
        let log = || self.log().join("\n");
        let found = self.addresses.get(transport);
        found.unwrap_or_else(|| panic!("{transport} does not listen:\n{}", log()))
    }

    /// What it has logged so far, a JSON object a line.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.log.lock().expect("nobody panics with it").clone()
    }

    /// Asks it to end, as a service manager does, and waits until it has.
    ///
    /// # Panics
    /// If it does not end within twice [`PATIENCE`].
    pub async fn stop(mut self) -> ExitStatus {
        let pid = self.child.id().expect("it runs").to_string();
        let kill = Command::new("kill").args(["-TERM", &pid]).status().await;
        assert!(kill.expect("kill is installed").success());
        let exit = timeout(PATIENCE * 2, self.child.wait()).await;
        let exit = exit.unwrap_or_else(|_| panic!("still running:\n{}", self.log().join("\n")));
        exit.expect("it is our child")
    }
}

/// The transport and the address of a line that says `listening`.
fn listening(line: &str) -> Option<(String, String)> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    let field = |key: &str| Some(line[key].as_str()?.to_owned());
    (field("message")? == "listening").then_some((field("transport")?, field("addr")?))
}
