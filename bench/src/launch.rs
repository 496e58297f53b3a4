//! A process that serves for a while: started, followed and ended by its handle, whatever happens.

use std::{
    collections::VecDeque,
    fmt,
    io::{self, BufRead, BufReader, Read},
    net::{SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use crate::clock::Stopwatch;

/// Longest time for a process to tell where it listens: one that is watched as it starts, on a machine that is busy,
/// takes seconds.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Lines of a process that are kept to explain its end, and the longest that is taken whole.
const TAIL_LINES: usize = 20;
const LINE_BYTES: u64 = 8 * 1024;
/// Time that a process which seems to be ending is given to be gone.
const END_LIMIT: Duration = Duration::from_secs(1);

/// Why a process does not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// A process could not be started.
    #[error("{program} could not be started")]
    Start {
        /// Which.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A process did not tell where it listens.
    #[error("{program} did not tell where it listens ({name}): {why}")]
    NotListening {
        /// Which.
        program: String,
        /// What it was asked for.
        name: String,
        /// What it did instead.
        why: String,
        /// What it said last.
        tail: Tail,
    },
}

impl LaunchError {
    /// What the process said last.
    #[must_use]
    pub fn tail(&self) -> Option<&Tail> {
        match self {
            Self::NotListening { tail, .. } => Some(tail),
            Self::Start { .. } => None,
        }
    }
}

/// The last lines of a process, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Tail(Vec<String>);

impl fmt::Display for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return writeln!(f, "  it said nothing");
        }
        writeln!(f, "  it last said:")?;
        self.0.iter().try_for_each(|line| writeln!(f, "    {line}"))
    }
}

/// How a program tells its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// As `listening ADDR` on stdout.
    OnStdout,
    /// In log lines with `listening`, `transport=NAME` and `addr=ADDR` on stderr.
    OnStderr,
    /// Not at all: it was told one, and listens there once it accepts a connection.
    Nothing(SocketAddr),
}

/// A process that is killed and waited for when this is dropped.
#[derive(Debug)]
pub struct Running {
    program: String,
    child: Child,
    tail: Arc<Mutex<VecDeque<String>>>,
    reader: thread::JoinHandle<()>,
}

impl Running {
    /// Starts `command` and waits until it listens. Returns the addresses of the transports in `names`, in their order;
    /// that of a program that does not name them stands for all.
    ///
    /// # Errors
    /// If it does not start, ends, or does not listen within half a minute.
    pub fn start(
        mut command: Command,
        speaks: Speaks,
        names: &[&str],
    ) -> Result<(Self, Vec<SocketAddr>), LaunchError> {
        let program = command.get_program().to_string_lossy().into_owned();
        // The other end is this process's alone: however that ends, a program that listens for it learns of it.
        command.stdin(Stdio::piped());
        match speaks {
            Speaks::OnStdout => command.stdout(Stdio::piped()),
            Speaks::OnStderr | Speaks::Nothing(_) => {
                command.stdout(Stdio::null()).stderr(Stdio::piped())
            }
        };
        let mut child = command.spawn().map_err(|source| LaunchError::Start {
            program: program.clone(),
            source,
        })?;
        let pipe: Box<dyn Read + Send> = match speaks {
            Speaks::OnStdout => Box::new(child.stdout.take().expect("stdout was piped")),
            _ => Box::new(child.stderr.take().expect("stderr was piped")),
        };
        let tail = Arc::default();
        let (found, addresses) = mpsc::sync_channel(16);
        let reader = {
            let tail = Arc::clone(&tail);
            thread::spawn(move || follow(pipe, &tail, &found))
        };
        let mut running = Self {
            program,
            child,
            tail,
            reader,
        };
        let listening = match speaks {
            Speaks::Nothing(addr) => running.accepts(addr).map(|()| vec![addr]),
            _ => running.tells(&addresses, names),
        };
        match listening {
            Ok(addrs) => Ok((running, addrs)),
            Err(why) => Err(LaunchError::NotListening {
                program: running.program.clone(),
                name: names.join(", "),
                why,
                tail: running.tail(),
            }),
        }
    }

    /// Waits for the addresses of `names`.
    fn tells(
        &mut self,
        addresses: &mpsc::Receiver<Listening>,
        names: &[&str],
    ) -> Result<Vec<SocketAddr>, String> {
        let start = Stopwatch::start();
        let mut addrs = vec![None; names.len()];
        loop {
            match addresses.recv_timeout(START_LIMIT.saturating_sub(start.elapsed())) {
                Ok(Listening { transport, addr }) => {
                    for (slot, name) in addrs.iter_mut().zip(names) {
                        if transport.as_ref().is_none_or(|found| found == name) {
                            *slot = Some(addr);
                        }
                    }
                    if let Some(addrs) = addrs.iter().copied().collect() {
                        return Ok(addrs);
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    return Err(format!(
                        "{START_LIMIT:?} have passed, and it {}",
                        self.state()
                    ));
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(format!("it has closed its output and {}", self.state()));
                }
            }
        }
    }

    /// Waits until somebody accepts connections at `addr`.
    fn accepts(&mut self, addr: SocketAddr) -> Result<(), String> {
        let start = Stopwatch::start();
        loop {
            let Err(error) = TcpStream::connect_timeout(&addr, START_LIMIT) else {
                return Ok(());
            };
            if !matches!(self.child.try_wait(), Ok(None)) {
                return Err(format!("it {}", self.state()));
            }
            if start.elapsed() > START_LIMIT {
                return Err(format!("nobody accepts connections at {addr}: {error}"));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The process's id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The program, as it was started.
    #[must_use]
    pub fn program(&self) -> &str {
        &self.program
    }

    /// Whether it still runs, in words, once something has gone wrong. Waits a second for an end
    /// that shows in its connections before it shows in the process.
    pub fn state(&mut self) -> String {
        let start = Stopwatch::start();
        loop {
            match self.child.try_wait() {
                // Its last words may still be on their way.
                Ok(Some(_)) if !self.reader.is_finished() && start.elapsed() < END_LIMIT => (),
                Ok(Some(status)) => return format!("has ended with {status}"),
                Ok(None) if start.elapsed() >= END_LIMIT => return "is still running".to_owned(),
                Ok(None) => (),
                Err(error) => return format!("is in a state that is not known ({error})"),
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// What to say of the process once a run against it has failed: whether it still runs, and its last words.
    pub fn epitaph(&mut self) -> String {
        let state = self.state();
        format!("{} {state}\n{}", self.program, self.tail())
    }

    /// The same of a process that has ended; `None` of one that still runs a second later.
    pub fn obituary(&mut self) -> Option<String> {
        let epitaph = self.epitaph();
        let runs = matches!(self.child.try_wait(), Ok(None));
        (!runs).then_some(epitaph)
    }

    /// What it said last.
    #[must_use]
    pub fn tail(&self) -> Tail {
        Tail(
            self.tail
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
                .cloned()
                .collect(),
        )
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Either fails only if the process has ended and was waited for already. The reader ends
        // with the pipe, which children of the process may still hold: nobody waits for it.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Reads a process's output to its end, so that it never waits for a reader.
fn follow(pipe: impl Read, tail: &Mutex<VecDeque<String>>, found: &mpsc::SyncSender<Listening>) {
    let mut pipe = BufReader::new(pipe);
    let mut line = Vec::new();
    loop {
        line.clear();
        match pipe.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => (),
        }
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if let Some(listening) = listening(&text) {
            // Nobody needs more addresses than fit.
            _ = found.try_send(listening);
        }
        let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
        if tail.len() == TAIL_LINES {
            tail.pop_front();
        }
        tail.push_back(text);
    }
}

/// An address that a process tells.
#[derive(Debug, PartialEq, Eq)]
struct Listening {
    /// The name of the transport, where the process has several.
    transport: Option<String>,
    addr: SocketAddr,
}

/// Reads `listening ADDR`, or a log line with `listening`, `transport=NAME` and `addr=ADDR`.
fn listening(line: &str) -> Option<Listening> {
    let mut words = line
        .split_whitespace()
        .skip_while(|word| !word.eq_ignore_ascii_case("listening"))
        .skip(1)
        .peekable();
    if let Some(addr) = words.peek().and_then(|word| word.parse().ok()) {
        return Some(Listening {
            transport: None,
            addr,
        });
    }
    // The fields may stand before or after the message.
    let field = |name: &str| {
        line.split_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
            .map(|value| value.trim_matches('"').to_owned())
    };
    if !line.to_ascii_lowercase().contains("listening") {
        return None;
    }
    Some(Listening {
        transport: Some(field("transport")?),
        addr: field("addr")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn told(transport: Option<&str>, addr: &str) -> Option<Listening> {
        Some(Listening {
            transport: transport.map(str::to_owned),
            addr: addr.parse().unwrap(),
        })
    }

    #[test]
    fn addresses_are_read_from_logs_and_from_the_floor() {
        assert_eq!(
            listening("listening 127.0.0.1:4020"),
            told(None, "127.0.0.1:4020")
        );
        assert_eq!(
            listening(
                "2026-11-22T10:00:00Z  INFO chinwag: listening transport=web addr=127.0.0.1:8080"
            ),
            told(Some("web"), "127.0.0.1:8080"),
        );
        assert_eq!(
            listening(r#"INFO Listening. transport="line" addr=[::1]:4020"#),
            told(Some("line"), "[::1]:4020")
        );
    }

    #[test]
    fn other_lines_tell_no_address() {
        for line in [
            "",
            "listening",
            "listening soon",
            "INFO closed transport=web addr=127.0.0.1:1",
            "INFO listening addr=x",
        ] {
            assert_eq!(listening(line), None, "{line}");
        }
    }

    #[test]
    fn a_program_that_ends_at_once_is_told_with_its_last_words() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 'no such key: [limts]' >&2; exit 3"]);
        let Err(error) = Running::start(command, Speaks::OnStderr, &["line"]) else {
            panic!("it listens")
        };
        assert!(
            error.to_string().ends_with("has ended with exit status: 3"),
            "{error}"
        );
        let LaunchError::NotListening { tail, .. } = error else {
            panic!("{error}")
        };
        let tail = tail.to_string();
        assert_eq!(tail, "  it last said:\n    no such key: [limts]\n");
    }

    #[test]
    fn a_program_that_is_not_there_is_told() {
        let command = Command::new("/nonexistent/chinwag");
        assert!(matches!(
            Running::start(command, Speaks::OnStderr, &["line"]),
            Err(LaunchError::Start { .. })
        ));
    }

    #[test]
    fn every_transport_asked_for_is_waited_for() {
        let mut command = Command::new("sh");
        let lines =
            "listening transport=line addr=127.0.0.1:1\nlistening transport=web addr=127.0.0.1:2";
        command.args(["-c", "echo \"$1\" >&2; exec sleep 600", "sh", lines]);
        let names = ["web", "line"];
        let (running, addrs) = Running::start(command, Speaks::OnStderr, &names).unwrap();
        assert_eq!((addrs[0].port(), addrs[1].port()), (2, 1));
        drop(running);
    }

    #[test]
    fn a_process_is_gone_once_it_is_dropped() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo listening 127.0.0.1:1; exec sleep 600"]);
        let Ok((running, addrs)) = Running::start(command, Speaks::OnStdout, &["line"]) else {
            panic!("it starts")
        };
        let pid = running.child.id();
        assert_eq!(addrs[0].port(), 1);
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        drop(running);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
