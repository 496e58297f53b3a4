//! What the server's process used over a window, and what else the machine did meanwhile.

use std::{io, time::Duration};

use serde::Serialize;

use crate::process::{self, Usage};

/// What server, client and machine had used up to one moment.
#[derive(Debug, Clone)]
pub struct Meter {
    pid: u32,
    server: Usage,
    client: Usage,
    machine: Duration,
}

/// What a process could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("reading what process {pid} used failed; is it the server, and of this machine?")]
pub struct MeterError {
    pid: u32,
    source: io::Error,
}

/// What the server's process used in a window.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Cost {
    /// Processor time in seconds, user and kernel.
    pub cpu_seconds: f64,
    /// Processor time for one delivery in microseconds; null where nothing was delivered.
    pub cpu_us_per_delivery: Option<f64>,
    /// Times that a thread went to sleep, for one delivery.
    pub voluntary_switches_per_delivery: Option<f64>,
    /// Times that a thread was put off the processor, for one delivery.
    pub involuntary_switches_per_delivery: Option<f64>,
    /// Processor time in percent of one core.
    pub cpu_percent: f64,
    /// The same of this client: near 100, the client is the limit.
    pub client_cpu_percent: f64,
    /// The same of everything else on the machine: the smaller, the better the figures.
    pub other_cpu_percent: f64,
    /// Threads that ended in the window, whose time is missing here.
    pub threads_ended: usize,
    /// Resident memory at the end, in KiB.
    pub resident_kib: u64,
}

impl Meter {
    /// Reads the meters of the server with this id, of this process and of the machine.
    ///
    /// # Errors
    /// If there is no such process, or the kernel does not keep what is asked for.
    pub fn read(pid: u32) -> Result<Self, MeterError> {
        let read = || -> io::Result<Self> {
            Ok(Self {
                pid,
                server: Usage::of(pid)?,
                client: Usage::of(std::process::id())?,
                machine: process::machine_busy()?,
            })
        };
        read().map_err(|source| MeterError { pid, source })
    }

    /// What was used from `before` to now, over a window of `took` with so many deliveries.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn since(before: &Self, took: Duration, deliveries: u64) -> Result<Cost, MeterError> {
        let now = Self::read(before.pid)?;
        let server = now.server.since(&before.server);
        let client = now.client.since(&before.client).cpu;
        let machine = now.machine.saturating_sub(before.machine);
        let each = |amount: f64| (deliveries > 0).then(|| amount / deliveries as f64);
        let percent = |cpu: Duration| 100.0 * cpu.as_secs_f64() / took.as_secs_f64();
        Ok(Cost {
            cpu_seconds: server.cpu.as_secs_f64(),
            cpu_us_per_delivery: each(server.cpu.as_secs_f64() * 1e6),
            voluntary_switches_per_delivery: each(server.voluntary as f64),
            involuntary_switches_per_delivery: each(server.involuntary as f64),
            cpu_percent: percent(server.cpu),
            client_cpu_percent: percent(client),
            other_cpu_percent: percent(machine.saturating_sub(server.cpu + client)),
            threads_ended: server.threads_ended,
            resident_kib: resident(before.pid)?,
        })
    }
}

/// Resident memory of `pid` in KiB.
///
/// # Errors
/// If there is no such process.
pub fn resident(pid: u32) -> Result<u64, MeterError> {
    process::resident_kib(pid).map_err(|source| MeterError { pid, source })
}
