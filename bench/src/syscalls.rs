//! System calls of the server, counted by `strace`. That slows the server down, so that nothing else is measured
//! meanwhile.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use crate::clock::Stopwatch;

/// How long strace may take to come or to go.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many calls a report names.
const NAMED: usize = 6;

/// What was counted.
#[derive(Debug, Clone, Serialize)]
pub struct Syscalls {
    /// All calls of the window.
    pub total: u64,
    /// For one delivery.
    pub per_delivery: f64,
    /// For one call that writes to a socket; null without any.
    pub per_write: Option<f64>,
    /// The most frequent ones, by name.
    pub calls: BTreeMap<String, u64>,
}

/// A strace that counts.
#[derive(Debug)]
pub struct Counting {
    child: Child,
    pid: u32,
    folder: tempfile::TempDir,
}

impl Counting {
    /// Attaches to all threads of `pid`.
    ///
    /// # Errors
    /// If there is no strace, or it may not trace the process.
    pub fn attach(pid: u32) -> io::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("chinwag-bench-")
            .tempdir()?;
        let child = Command::new("strace")
            .args(["-f", "-c", "-U", "calls,name", "-o"])
            .arg(folder.path().join("counts"))
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut counting = Self { child, pid, folder };
        let start = Stopwatch::start();
        while !counting.is_attached()? {
            if start.elapsed() > PATIENCE {
                return Err(io::Error::other("strace does not attach"));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(counting)
    }

    /// Whether every thread has a tracer.
    fn is_attached(&mut self) -> io::Result<bool> {
        if self.child.try_wait()?.is_some() {
            let mut said = String::new();
            if let Some(mut pipe) = self.child.stderr.take() {
                pipe.read_to_string(&mut said)?;
            }
            return Err(io::Error::other(said.trim().to_owned()));
        }
        for task in fs::read_dir(format!("/proc/{}/task", self.pid))? {
            let status: PathBuf = task?.path().join("status");
            if fs::read_to_string(status)?.contains("TracerPid:\t0\n") {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Detaches and tells what there was in a window with so many deliveries.
    ///
    /// # Errors
    /// If strace does not end as it should.
    pub fn finish(mut self, deliveries: u64) -> io::Result<Syscalls> {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::other("strace has no process id"))?;
        kill_process(pid, Signal::INT)?;
        let start = Stopwatch::start();
        while self.child.try_wait()?.is_none() {
            if start.elapsed() > PATIENCE {
                return Err(io::Error::other("strace does not end"));
            }
            thread::sleep(Duration::from_millis(5));
        }
        let counts = counts(&fs::read_to_string(self.folder.path().join("counts"))?);
        if counts.is_empty() {
            return Err(io::Error::other("strace has counted nothing"));
        }
        Ok(summary(counts, deliveries))
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        // Fails only if it has ended and was waited for. The kernel detaches what it traced.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// Reads the table of `strace -c -U calls,name`.
fn counts(table: &str) -> BTreeMap<String, u64> {
    table
        .lines()
        .filter_map(|line| {
            let (count, name) = line.trim().split_once(char::is_whitespace)?;
            Some((name.trim().to_owned(), count.parse().ok()?))
        })
        .filter(|(name, _)| name != "total")
        .collect()
}

fn summary(counts: BTreeMap<String, u64>, deliveries: u64) -> Syscalls {
    const WRITES: [&str; 6] = ["write", "writev", "send", "sendto", "sendmsg", "sendmmsg"];
    let total: u64 = counts.values().sum();
    let writes: u64 = WRITES.iter().filter_map(|name| counts.get(*name)).sum();
    let mut frequent: Vec<(String, u64)> = counts.into_iter().collect();
    frequent.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    frequent.truncate(NAMED);
    Syscalls {
        total,
        per_delivery: total as f64 / deliveries.max(1) as f64,
        per_write: (writes > 0).then(|| total as f64 / writes as f64),
        calls: frequent.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_strace_is_read() {
        let table = "    calls syscall\n--------- ----------------\n      900 sendto\n       90 epoll_wait\n       10 recvfrom\n\
                     --------- ----------------\n     1000 total\n";
        let syscalls = summary(counts(table), 500);
        assert_eq!((syscalls.total, syscalls.per_delivery), (1000, 2.0));
        assert!((syscalls.per_write.unwrap() - 1000.0 / 900.0).abs() < 1e-9);
        assert_eq!(syscalls.calls.len(), 3);
    }

    #[test]
    fn without_writes_there_is_no_figure_for_them() {
        assert_eq!(summary(counts("10 futex\n"), 1).per_write, None);
    }
}
