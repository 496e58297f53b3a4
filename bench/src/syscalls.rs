//! System calls of the server, counted by `perf` where the kernel lets it, else by `strace`, in a window in which
//! nothing else is measured.
//!
//! strace stops the server at each call. A server that is slow finds more messages to write at once, so that it makes
//! fewer calls for a delivery than it would: a report says which of the two has counted.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use crate::clock::Stopwatch;

/// How long the program that counts may take to come or to go.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many calls a report names.
const NAMED: usize = 6;
/// Where the kernel lists what perf can count.
const TRACEPOINTS: &str = "/sys/kernel/tracing/events/syscalls";
/// Every call.
const ALL: &str = "raw_syscalls:sys_enter";
/// Calls that perf counts by their names: those that servers live on. Not every processor has all of them.
const OFTEN: [&str; 18] = [
    "accept4",
    "close",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_wait",
    "futex",
    "madvise",
    "read",
    "readv",
    "recvfrom",
    "recvmsg",
    "sched_yield",
    "sendmmsg",
    "sendmsg",
    "sendto",
    "timerfd_settime",
    "write",
    "writev",
];
/// Calls that write to sockets alone.
const SENDS: [&str; 5] = ["send", "sendto", "sendmsg", "sendmmsg", "writev"];

/// What was counted.
#[derive(Debug, Clone, Serialize)]
pub struct Syscalls {
    /// Which program has counted: `perf` or `strace`.
    pub by: &'static str,
    /// All calls of the window.
    pub total: u64,
    /// For one delivery.
    pub per_delivery: f64,
    /// For one call that writes to a socket; null without any. `write` is taken for one only where there is no other:
    /// beside them it wakes threads.
    pub per_write: Option<f64>,
    /// The most frequent ones, by name.
    pub calls: BTreeMap<String, u64>,
}

/// A program that counts.
#[derive(Debug)]
pub struct Counting {
    child: Child,
    tool: Tool,
    folder: tempfile::TempDir,
}

#[derive(Debug)]
enum Tool {
    /// What it is told, and what it answers.
    Perf(ChildStdin, mpsc::Receiver<()>),
    Strace,
}

impl Counting {
    /// Attaches to all threads of `pid`, with perf if possible.
    ///
    /// # Errors
    /// If there is neither perf nor strace, or none may look at the process.
    pub fn attach(pid: u32) -> io::Result<Self> {
        Self::perf(pid).or_else(|why| {
            Self::strace(pid)
                .map_err(|error| io::Error::other(format!("perf: {why}; strace: {error}")))
        })
    }

    fn perf(pid: u32) -> io::Result<Self> {
        let events: Vec<String> = std::iter::once(ALL.to_owned())
            .chain(countable(Path::new(TRACEPOINTS))?)
            .collect();
        let folder = folder()?;
        // It counts from when it is told to. What it is told comes by its stdin, and it answers on its stdout.
        let mut child = Command::new("perf")
            .args(["stat", "--control=fd:0,1", "-D", "-1", "-x,", "-o"])
            .arg(folder.path().join("counts"))
            .args(["-e", &events.join(","), "-p", &pid.to_string()])
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let commands = child.stdin.take().expect("stdin was piped");
        let answers = acknowledgements(child.stdout.take().expect("stdout was piped"));
        let tool = Tool::Perf(commands, answers);
        let mut counting = Self {
            child,
            tool,
            folder,
        };
        match counting.tell_perf("enable") {
            Ok(()) => Ok(counting),
            Err(error) => Err(counting.last_words().unwrap_or(error)),
        }
    }

    fn strace(pid: u32) -> io::Result<Self> {
        let folder = folder()?;
        let child = Command::new("strace")
            .args(["-f", "-c", "-U", "calls,name", "-o"])
            .arg(folder.path().join("counts"))
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut counting = Self {
            child,
            tool: Tool::Strace,
            folder,
        };
        let start = Stopwatch::start();
        while !counting.is_traced(pid)? {
            if start.elapsed() > PATIENCE {
                return Err(io::Error::other("it does not attach"));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(counting)
    }

    /// Whether every thread has a tracer.
    fn is_traced(&mut self, pid: u32) -> io::Result<bool> {
        if self.child.try_wait()?.is_some() {
            let gone = io::Error::other("it has ended");
            return Err(self.last_words().unwrap_or(gone));
        }
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let status: PathBuf = task?.path().join("status");
            if fs::read_to_string(status)?.contains("TracerPid:\t0\n") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What the program said as it ended, if it has, and said something.
    fn last_words(&mut self) -> Option<io::Error> {
        let start = Stopwatch::start();
        while self.child.try_wait().ok()?.is_none() {
            if start.elapsed() > PATIENCE {
                return None;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let mut said = String::new();
        self.child.stderr.take()?.read_to_string(&mut said).ok()?;
        let line = said.lines().find(|line| !line.trim().is_empty())?;
        Some(io::Error::other(line.trim().to_owned()))
    }

    fn tell_perf(&mut self, command: &str) -> io::Result<()> {
        let Tool::Perf(commands, answers) = &mut self.tool else {
            return Ok(());
        };
        commands.write_all(format!("{command}\n").as_bytes())?;
        answers
            .recv_timeout(PATIENCE)
            .map_err(|_| io::Error::other("it does not answer"))
    }

    /// Detaches and tells what there was in a window with so many deliveries.
    ///
    /// # Errors
    /// If the program does not end as it should.
    pub fn finish(mut self, deliveries: u64) -> io::Result<Syscalls> {
        self.tell_perf("disable")?;
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::other("it has no process id"))?;
        kill_process(pid, Signal::INT)?;
        let start = Stopwatch::start();
        while self.child.try_wait()?.is_none() {
            if start.elapsed() > PATIENCE {
                return Err(io::Error::other("it does not end"));
            }
            thread::sleep(Duration::from_millis(5));
        }
        let counted = fs::read_to_string(self.folder.path().join("counts"))?;
        let (by, counts) = match self.tool {
            Tool::Perf(..) => ("perf", perf_counts(&counted)),
            Tool::Strace => ("strace", strace_counts(&counted)),
        };
        if counts.total == 0 {
            return Err(io::Error::other(format!("{by} has counted nothing")));
        }
        Ok(counts.summary(by, deliveries))
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        // Fails only if it has ended and was waited for. The kernel detaches what it traced.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn folder() -> io::Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("chinwag-bench-").tempdir()
}

/// The events of perf for calls of [`OFTEN`] that this kernel has.
fn countable(tracepoints: &Path) -> io::Result<Vec<String>> {
    // Without the right to read there, perf could count nothing either.
    fs::read_dir(tracepoints)?;
    Ok(OFTEN
        .iter()
        .map(|name| format!("sys_enter_{name}"))
        .filter(|event| tracepoints.join(event).exists())
        .map(|event| format!("syscalls:{event}"))
        .collect())
}

/// A message for each answer, until the pipe ends.
fn acknowledgements(pipe: ChildStdout) -> mpsc::Receiver<()> {
    let (told, answers) = mpsc::sync_channel(4);
    thread::spawn(move || {
        let mut pipe = BufReader::new(pipe).take(4096);
        let mut line = Vec::new();
        while matches!(pipe.read_until(b'\n', &mut line), Ok(1..)) {
            if line.ends_with(b"ack\n") && told.send(()).is_err() {
                return;
            }
            line.clear();
        }
    });
    answers
}

/// How often which call was made.
#[derive(Debug, Default)]
struct Counts {
    total: u64,
    by_name: BTreeMap<String, u64>,
}

/// Reads what `perf stat -x,` has written: `COUNT,UNIT,EVENT,…`.
fn perf_counts(table: &str) -> Counts {
    let mut counts = Counts::default();
    for line in table.lines() {
        let mut fields = line.split(',');
        let count = fields.next().and_then(|count| count.parse().ok());
        // What never happened has no number.
        let (Some(count), Some(event)) = (count, fields.nth(1)) else {
            continue;
        };
        if event == ALL {
            counts.total = count;
        } else if let Some(name) = event.strip_prefix("syscalls:sys_enter_") {
            counts.by_name.insert(name.to_owned(), count);
        }
    }
    counts
}

/// Reads the table of `strace -c -U calls,name`.
fn strace_counts(table: &str) -> Counts {
    let by_name: BTreeMap<String, u64> = table
        .lines()
        .filter_map(|line| {
            let (count, name) = line.trim().split_once(char::is_whitespace)?;
            Some((name.trim().to_owned(), count.parse().ok()?))
        })
        .filter(|(name, _)| name != "total")
        .collect();
    Counts {
        total: by_name.values().sum(),
        by_name,
    }
}

impl Counts {
    fn summary(self, by: &'static str, deliveries: u64) -> Syscalls {
        let count = |names: &[&str]| -> u64 {
            names
                .iter()
                .filter_map(|name| self.by_name.get(*name))
                .sum()
        };
        let sends = count(&SENDS);
        let writes = if sends > 0 { sends } else { count(&["write"]) };
        let mut frequent: Vec<(String, u64)> = self.by_name.into_iter().collect();
        frequent.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        frequent.truncate(NAMED);
        Syscalls {
            by,
            total: self.total,
            per_delivery: self.total as f64 / deliveries.max(1) as f64,
            per_write: (writes > 0).then(|| self.total as f64 / writes as f64),
            calls: frequent.into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_strace_is_read() {
        let table = "    calls syscall\n--------- ----------------\n      900 sendto\n       90 epoll_wait\n       10 recvfrom\n\
                     --------- ----------------\n     1000 total\n";
        let syscalls = strace_counts(table).summary("strace", 500);
        assert_eq!((syscalls.total, syscalls.per_delivery), (1000, 2.0));
        assert!((syscalls.per_write.unwrap() - 1000.0 / 900.0).abs() < 1e-9);
        assert_eq!(syscalls.calls.len(), 3);
    }

    #[test]
    fn without_writes_there_is_no_figure_for_them() {
        let syscalls = strace_counts("10 futex\n").summary("strace", 1);
        assert_eq!(syscalls.per_write, None);
    }

    #[test]
    fn the_table_of_perf_is_read() {
        let table = "# started on Mon Nov 23 06:54:49 2026\n\n1000,,raw_syscalls:sys_enter,123,100.00,,\n\
                     900,,syscalls:sys_enter_sendto,123,100.00,,\n<not counted>,,syscalls:sys_enter_writev,0,100.00,,\n";
        let syscalls = perf_counts(table).summary("perf", 500);
        assert_eq!((syscalls.total, syscalls.per_delivery), (1000, 2.0));
        assert_eq!(syscalls.calls, BTreeMap::from([("sendto".to_owned(), 900)]));
    }

    #[test]
    fn waking_a_thread_is_no_write_to_a_socket() {
        let with = |table| strace_counts(table).summary("strace", 1).per_write;
        assert_eq!(with("50 sendto\n50 write\n"), Some(2.0));
        assert_eq!(with("50 epoll_wait\n50 write\n"), Some(2.0));
    }

    #[test]
    fn calls_that_the_kernel_can_not_tell_apart_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sys_enter_sendto")).unwrap();
        fs::create_dir(folder.path().join("sys_enter_mount")).unwrap();
        assert_eq!(
            countable(folder.path()).unwrap(),
            ["syscalls:sys_enter_sendto"]
        );
        assert!(countable(&folder.path().join("none")).is_err());
    }
}
