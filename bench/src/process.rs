//! What a process used and what the machine was doing meanwhile, read from `/proc`.

use std::{collections::BTreeMap, fs, io, path::Path, time::Duration};

use serde::Serialize;

/// Kernel ticks a second in `/proc/stat`: fixed for programs, whatever the kernel's own rate.
const TICKS_PER_SECOND: u64 = 100;
/// No such process, as Linux numbers it.
const ESRCH: i32 = 3;

/// What each thread of a process had used up to one moment.
#[derive(Debug, Clone, Default)]
pub struct Usage(BTreeMap<u32, ThreadUsage>);

#[derive(Debug, Clone, Copy, Default)]
struct ThreadUsage {
    cpu: Duration,
    voluntary: u64,
    involuntary: u64,
}

/// What a process used between two moments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Time on a processor, user and kernel, as the scheduler counted it. The kernel's work for a loopback connection
    /// up to the receiver's socket is part of it, unless the kernel accounts for interrupts apart
    /// (`CONFIG_IRQ_TIME_ACCOUNTING`). Of a thread that runs, it was counted at the last tick.
    pub cpu: Duration,
    /// Times a thread gave up the processor to wait.
    pub voluntary: u64,
    /// Times a thread was made to give up the processor.
    pub involuntary: u64,
    /// Threads that ended in between. What they used is not in the other figures.
    pub threads_ended: usize,
}

impl Usage {
    /// Reads what the threads of `pid` have used so far.
    ///
    /// # Errors
    /// If there is no such process, or the kernel does not keep scheduler statistics
    /// (`CONFIG_SCHED_INFO`).
    pub fn of(pid: u32) -> io::Result<Self> {
        let mut threads = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let entry = entry?;
            let Some(tid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            match thread_usage(&entry.path()) {
                Ok(usage) => _ = threads.insert(tid, usage),
                // ESRCH, which a thread that ends meanwhile gives, has no kind of its own.
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound
                        || error.raw_os_error() == Some(ESRCH) => {}
                Err(error) => return Err(error),
            }
        }
        if threads.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "no thread of the process has scheduler statistics",
            ));
        }
        Ok(Self(threads))
    }

    /// What was used since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Used {
        let mut used = Used::default();
        for (tid, now) in &self.0 {
            let then = before.0.get(tid).copied().unwrap_or_default();
            used.cpu += now.cpu.saturating_sub(then.cpu);
            used.voluntary += now.voluntary.saturating_sub(then.voluntary);
            used.involuntary += now.involuntary.saturating_sub(then.involuntary);
        }
        used.threads_ended = before
            .0
            .keys()
            .filter(|tid| !self.0.contains_key(tid))
            .count();
        used
    }
}

fn thread_usage(task: &Path) -> io::Result<ThreadUsage> {
    let schedstat = fs::read_to_string(task.join("schedstat"))?;
    let status = fs::read_to_string(task.join("status"))?;
    Ok(ThreadUsage {
        cpu: Duration::from_nanos(number(schedstat.split_whitespace().next(), "schedstat")?),
        voluntary: field(&status, "voluntary_ctxt_switches:")?,
        involuntary: field(&status, "nonvoluntary_ctxt_switches:")?,
    })
}

/// Resident memory of `pid` in KiB. The kernel's figure may be off by some hundred KiB; its socket
/// buffers are not in it.
///
/// # Errors
/// If there is no such process.
pub fn resident_kib(pid: u32) -> io::Result<u64> {
    field(
        &fs::read_to_string(format!("/proc/{pid}/status"))?,
        "VmRSS:",
    )
}

fn field(status: &str, name: &'static str) -> io::Result<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    number(
        value.and_then(|value| value.split_whitespace().next()),
        name,
    )
}

fn number(text: Option<&str>, name: &'static str) -> io::Result<u64> {
    text.and_then(|text| text.parse().ok()).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("no number for {name} in /proc"),
        )
    })
}

/// Time that all processors together have been busy since the machine started.
///
/// # Errors
/// If `/proc/stat` can't be read.
pub fn machine_busy() -> io::Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let all: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or("")
        .split_whitespace()
        .skip(1)
        .map_while(|text| text.parse().ok())
        .collect();
    let [user, nice, system, _idle, _io_wait, irq, soft_irq, ..] = all[..] else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "/proc/stat is not as expected",
        ));
    };
    Ok(Duration::from_millis(
        (user + nice + system + irq + soft_irq) * (1000 / TICKS_PER_SECOND),
    ))
}

/// Where figures were taken: they mean little without it.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Processors that this program may use.
    pub cores: usize,
    /// The first processor's name.
    pub cpu: String,
    /// The kernel's release.
    pub kernel: String,
    /// Load averages of the last 1, 5 and 15 minutes.
    pub load: String,
    /// Whether this program, and so the floor, was built without optimisation: then no figure is
    /// worth anything.
    pub unoptimised: bool,
}

impl Machine {
    /// Looks around. What can't be read is told as `unknown`.
    #[must_use]
    pub fn look() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let known = |text: &str| {
            if text.is_empty() {
                "unknown".to_owned()
            } else {
                text.to_owned()
            }
        };
        let cpu_info = read("/proc/cpuinfo");
        let model = cpu_info
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let load_average = read("/proc/loadavg");
        let load: Vec<&str> = load_average.split_whitespace().take(3).collect();
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            cpu: known(model.map_or("", |(_, name)| name.trim())),
            kernel: known(read("/proc/sys/kernel/osrelease").trim()),
            load: known(&load.join(" ")),
            unoptimised: cfg!(debug_assertions),
        }
    }
}

/// That more descriptors are needed than the process may have.
#[derive(Debug, thiserror::Error)]
#[error(
    "{wanted} connections need {needed} descriptors, and the limit of this process is {limit} even \
     after raising it to its hard limit; raise that (ulimit -Hn, LimitNOFILE=) or ask for fewer"
)]
pub struct TooFewDescriptors {
    /// Connections asked for.
    pub wanted: usize,
    /// Descriptors they need.
    pub needed: u64,
    /// Descriptors there may be.
    pub limit: u64,
}

/// Raises the limit of open descriptors as far as the hard limit lets, for this process and those
/// that it starts. Returns the limit in force.
///
/// # Errors
/// If the system refuses to tell or to set the limit.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    rlimit::increase_nofile_limit(u64::MAX)
}

/// Checks that `connections` fit under `limit`, with what a program has open besides.
///
/// # Errors
/// If they do not.
pub fn check_descriptors(connections: usize, limit: u64) -> Result<(), TooFewDescriptors> {
    const BESIDES: u64 = 64;
    let needed = (connections as u64).saturating_add(BESIDES);
    if needed > limit {
        Err(TooFewDescriptors {
            wanted: connections,
            needed,
            limit,
        })
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(threads: &[(u32, u64)]) -> Usage {
        let used = |&(tid, micros)| {
            (
                tid,
                ThreadUsage {
                    cpu: Duration::from_micros(micros),
                    voluntary: 1,
                    involuntary: 2,
                },
            )
        };
        Usage(threads.iter().map(used).collect())
    }

    #[test]
    fn usage_is_summed_over_threads_that_began_and_went_on() {
        let used = usage(&[(1, 10), (3, 5)]).since(&usage(&[(1, 4), (2, 100)]));
        assert_eq!(
            used,
            Used {
                cpu: Duration::from_micros(11),
                voluntary: 1,
                involuntary: 2,
                threads_ended: 1
            }
        );
    }

    #[test]
    fn the_own_process_has_used_something() {
        let before = Usage::of(std::process::id()).unwrap();
        let mut sum = 0_u64;
        while Usage::of(std::process::id())
            .unwrap()
            .since(&before)
            .cpu
            .is_zero()
        {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(resident_kib(std::process::id()).unwrap() > 0);
        assert!(!machine_busy().unwrap().is_zero());
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        // Beyond the highest id that Linux gives.
        assert!(Usage::of(1 << 23).is_err());
        assert!(resident_kib(1 << 23).is_err());
    }

    #[test]
    fn fields_are_read_from_status() {
        let status = "VmRSS:\t   123 kB\nvoluntary_ctxt_switches:\t7\n";
        assert_eq!(field(status, "VmRSS:").unwrap(), 123);
        assert_eq!(field(status, "voluntary_ctxt_switches:").unwrap(), 7);
        assert!(field(status, "nonvoluntary_ctxt_switches:").is_err());
    }

    #[test]
    fn connections_over_the_limit_are_refused_with_both_numbers() {
        assert!(check_descriptors(1_000, 1_064).is_ok());
        assert!(check_descriptors(usize::MAX, 1_063).is_err());
        let error = check_descriptors(1_000, 1_063).unwrap_err().to_string();
        assert!(
            error.contains("1000 connections need 1064") && error.contains("1063"),
            "{error}"
        );
    }
}
