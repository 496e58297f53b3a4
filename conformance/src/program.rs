//! A server in a process of its own: a binary as its users start it, on a configuration as they have it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    task::JoinSet,
    time::timeout,
};

use crate::{PATIENCE, eventually};

/// A configuration as it is shipped, `chinwag.toml` and the files beside it, in a folder of the test's own.
#[derive(Debug)]
pub struct Deployment(TempDir);

impl Deployment {
    /// A copy of the files in `folder`, without folders in it.
    ///
    /// # Panics
    /// If there is no `chinwag.toml`, or something can't be read or written.
    #[must_use]
    pub fn of(folder: impl AsRef<Path>) -> Self {
        let copy = tempfile::tempdir().expect("a temporary folder");
        for entry in fs::read_dir(folder).expect("a readable folder") {
            let entry = entry.expect("a readable folder");
            if entry.file_type().expect("a readable folder").is_file() {
                let to = copy.path().join(entry.file_name());
                fs::copy(entry.path(), to).expect("a readable file");
            }
        }
        let deployment = Self(copy);
        assert!(deployment.document().exists(), "there is a chinwag.toml");
        deployment
    }

    /// The same with `to` in place of `from` in `chinwag.toml`.
    ///
    /// # Panics
    /// If `from` does not stand there.
    #[must_use]
    pub fn with(self, from: &str, to: &str) -> Self {
        let document = fs::read_to_string(self.document()).expect("it was copied");
        assert!(document.contains(from), "{from:?} is not in:\n{document}");
        fs::write(self.document(), document.replace(from, to)).expect("a writable folder");
        self
    }

    /// Where that file of it is.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn document(&self) -> PathBuf {
        self.file("chinwag.toml")
    }

    /// What serves it, for [`Program::start`].
    #[must_use]
    pub fn serve(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("serve").arg("--config").arg(self.document());
        command
    }

    /// What `program check` finds wrong with it.
    ///
    /// # Panics
    /// If that is nothing, or it does not end within [`PATIENCE`].
    pub async fn mistakes(&self, program: &str) -> String {
        let mut command = Command::new(program);
        command.arg("check").arg(self.document()).kill_on_drop(true);
        let output = timeout(PATIENCE, command.output()).await;
        let output = output.expect("it ends").expect("the program starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        said
    }
}

/// A running program that became a server. Dropped, it is killed.
#[derive(Debug)]
pub struct Program {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    addresses: BTreeMap<String, String>,
    _reader: JoinSet<()>,
}

impl Program {
    /// Runs `command`, such as that of [`Deployment::serve`], and waits until these transports listen. It is told, by
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
