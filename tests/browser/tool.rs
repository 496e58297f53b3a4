//! Programs that people use to talk to a server from a terminal: in a pipe, or in a terminal that nobody sees.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::harness::{PATIENCE, PROGRAM, eventually};

pub(super) struct Tool {
    name: String,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    /// What it said since it was last asked.
    heard: Vec<String>,
    _child: Child,
}

impl Tool {
    /// Starts a program, with the tools that `tests/run` installs on its `PATH`.
    pub(super) fn start(command: &str, args: &[&str]) -> Self {
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin");
        let path = std::env::var("PATH").unwrap();
        let mut program = Command::new(command);
        program
            .args(args)
            .env("PATH", format!("{}:{path}", tools.display()))
            // Debian's scripts for Node find their libraries there with any other build of Node, too.
            .env("NODE_PATH", "/usr/share/nodejs")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        let mut child = program
            .spawn()
            .unwrap_or_else(|error| panic!("{command}: {error} (bash tests/run --install)"));
        Self {
            name: command.to_owned(),
            stdin: child.stdin.take().unwrap(),
            lines: BufReader::new(child.stdout.take().unwrap()).lines(),
            heard: Vec::new(),
            _child: child,
        }
    }

    /// Types a line.
    pub(super) async fn type_line(&mut self, line: &str) {
        let line = format!("{line}\n");
        self.stdin.write_all(line.as_bytes()).await.unwrap();
        self.stdin.flush().await.unwrap();
    }

    /// Waits for a line that holds all of `parts`; gives it.
    pub(super) async fn says(&mut self, parts: &[&str]) -> String {
        let fits = |line: &str| parts.iter().all(|part| line.contains(part));
        if let Some(at) = self.heard.iter().position(|line| fits(line)) {
            return self.heard.remove(at);
        }
        loop {
            let line = timeout(PATIENCE * 2, self.lines.next_line()).await;
            let line = match line {
                Ok(Ok(Some(line))) => line,
                other => panic!(
                    "{} was to say {parts:?}, but {other:?} after {:#?}",
                    self.name, self.heard
                ),
            };
            if fits(&line) {
                return line;
            }
            self.heard.push(line);
        }
    }

    /// Types `line` again and again until it says something, then forgets what it said. It loses what is typed before
    /// its connection is open.
    pub(super) async fn wake(&mut self, line: &str) {
        let awake = async {
            loop {
                self.type_line(line).await;
                let answer = self.lines.next_line();
                let briefly = std::time::Duration::from_millis(200);
                if let Ok(answer) = timeout(briefly, answer).await {
                    return answer.unwrap();
                }
            }
        };
        let answer = timeout(PATIENCE, awake).await;
        assert!(
            matches!(answer, Ok(Some(_))),
            "{} says nothing: {answer:?}",
            self.name
        );
    }

    /// Logs in and enters a room, in the words of the protocol.
    pub(super) async fn enter(&mut self, user: &str, room: &str) {
        self.type_line(&format!(r#"{{"type":"login","user":"{user}"}}"#))
            .await;
        self.says(&[r#""type":"session""#]).await;
        self.type_line(&format!(r#"{{"type":"join","room":"{room}"}}"#))
            .await;
        self.says(&[r#""type":"init""#]).await;
    }

    /// Sends a message in the words of the protocol.
    pub(super) async fn send(&mut self, room: &str, text: &str) {
        let command = serde_json::json!({"type": "send", "room": room, "text": text});
        self.type_line(&command.to_string()).await;
        self.says(&[r#""type":"sent""#]).await;
    }

    /// Waits for a message in the words of the protocol.
    pub(super) async fn receives(&mut self, sender: &str, text: &str) {
        let (sender, text) = (Value::from(sender), Value::from(text));
        let parts = [
            r#""type":"message""#,
            &format!(r#""user":{sender}"#),
            &format!(r#""text":{text}"#),
        ];
        self.says(&parts).await;
    }
}

/// A terminal that nobody sees: `tmux` on a server of its own, which ends with it.
pub(super) struct Terminal {
    socket: PathBuf,
    _folder: TempDir,
}

impl Terminal {
    /// Starts a shell, with the server's program on its `PATH`.
    pub(super) async fn start(columns: u32, rows: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("tmux");
        let terminal = Self {
            socket,
            _folder: folder,
        };
        let (columns, rows) = (columns.to_string(), rows.to_string());
        let size = ["-x", &columns, "-y", &rows];
        let new = ["-f", "/dev/null", "new-session", "-d"];
        let shell = ["bash", "--norc", "--noprofile"];
        terminal.tmux(&[&new[..], &size, &shell].concat()).await;
        terminal.shows("$").await;
        terminal
    }

    async fn tmux(&self, args: &[&str]) -> String {
        let programs = Path::new(PROGRAM).parent().unwrap();
        let path = std::env::var("PATH").unwrap();
        let mut tmux = Command::new("tmux");
        // The shell has its surroundings from the first of these.
        tmux.env("PATH", format!("{}:{path}", programs.display()))
            .env("TZ", "UTC")
            .env("LANG", "C.UTF-8")
            .env("PS1", "\\[\\e[1;32m\\]~\\[\\e[0m\\] $ ")
            .env_remove("TMUX")
            .env_remove("NO_COLOR");
        tmux.arg("-u").arg("-S").arg(&self.socket).args(args);
        let output = timeout(PATIENCE, tmux.output())
            .await
            .expect("tmux answers");
        let output = output.expect("tmux is installed");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {complaint}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(super) async fn type_text(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]).await;
    }

    pub(super) async fn type_line(&self, line: &str) {
        self.type_text(line).await;
        self.tmux(&["send-keys", "Enter"]).await;
    }

    /// Waits until this stands on it.
    pub(super) async fn shows(&self, text: &str) {
        eventually(&format!("{text:?} on the terminal"), async || {
            let shown = self.tmux(&["capture-pane", "-p"]).await;
            shown.contains(text).then_some(())
        })
        .await;
    }

    /// What it shows, with its colours as escape sequences.
    pub(super) async fn capture(&self) -> String {
        self.tmux(&["capture-pane", "-e", "-p"]).await
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let mut tmux = std::process::Command::new("tmux");
        tmux.arg("-S").arg(&self.socket).arg("kill-server");
        if let Err(error) = tmux.status() {
            eprintln!("tmux is not ended: {error}");
        }
    }
}
