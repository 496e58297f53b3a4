//! Readers that stop reading: what they make the server and its kernel hold, how soon the server ends them, and what
//! all that costs those who read on.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::mpsc,
    thread,
    time::Duration,
};

use serde::Serialize;

use crate::{
    clock::Stopwatch,
    crowd::Fate,
    load::Part,
    process,
    sockets::{self, End},
};

/// How often the system is asked.
const EVERY: Duration = Duration::from_millis(250);

/// What came of them.
#[derive(Debug, Clone, Serialize)]
pub struct Stalled {
    /// How many stopped reading.
    pub readers: usize,
    /// How the server ended them, by code; `disconnected` where no code could be read.
    pub ended: BTreeMap<String, usize>,
    /// Those that it had not ended when the window was over.
    pub still_there: usize,
    /// Messages that were left out between others for them, by a server that numbers none. Where it does, that is a
    /// fault.
    pub passed_over: u64,
    /// From when they stopped until the others were told that the first, the middle and the last one had left, in
    /// seconds; where rooms don't tell, until the server closed the connection. A room that tells in batches adds up
    /// to its interval, a second unless configured otherwise.
    pub seconds_until_ended: Option<[f64; 3]>,
    /// The most that the server's kernel held for one of them, and for all on average, in KiB.
    pub kernel_kib: Option<Most>,
    /// What the server's own memory grew by at most, for each of them, in KiB.
    pub process_kib_per_reader: Option<f64>,
    /// Why the kernel could not be asked.
    pub not_available: Option<String>,
    /// By how much the middle latency of those who read on changed, in percent.
    pub healthy_p50_change_percent: f64,
    /// By how much the server's processor time for one of their deliveries changed, in percent.
    pub healthy_cpu_change_percent: Option<f64>,
}

/// The worst moment of one and of all.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Most {
    /// For one reader.
    pub one: f64,
    /// For all, divided by their number.
    pub average: f64,
}

/// Asks the system while a window goes on.
#[derive(Debug)]
pub struct Sampler {
    stop: mpsc::Sender<()>,
    thread: thread::JoinHandle<Samples>,
}

/// What the system said.
#[derive(Debug, Default)]
pub struct Samples {
    readers: usize,
    /// When they stopped.
    start: Duration,
    before_kib: Option<u64>,
    most_kib: u64,
    most_one: u64,
    most_all: u64,
    ended_after: BTreeMap<u16, Duration>,
    failed: Option<String>,
}

impl Sampler {
    /// Begins with the server's ends of the connections from these ports.
    #[must_use]
    pub fn start(server: SocketAddr, ports: Vec<u16>, pid: Option<u32>, watch: Stopwatch) -> Self {
        let (stop, stopped) = mpsc::channel();
        let ports: BTreeSet<u16> = ports.into_iter().collect();
        let start = watch.elapsed();
        let thread = thread::spawn(move || {
            let resident = || pid.and_then(|pid| process::resident_kib(pid).ok());
            let mut samples = Samples {
                readers: ports.len(),
                start,
                before_kib: resident(),
                ..Samples::default()
            };
            if !server.ip().is_loopback() && pid.is_none() {
                samples.failed = Some("the server is not on this machine".to_owned());
            }
            loop {
                samples.most_kib = samples.most_kib.max(resident().unwrap_or(0));
                if samples.failed.is_none() {
                    match sockets::server_ends(server, &ports) {
                        Ok(ends) => samples.take(&ports, &ends, watch.elapsed() - start),
                        Err(error) => samples.failed = Some(error.to_string()),
                    }
                }
                if stopped.recv_timeout(EVERY) != Err(mpsc::RecvTimeoutError::Timeout) {
                    return samples;
                }
            }
        });
        Self { stop, thread }
    }

    /// Ends, and tells.
    #[must_use]
    pub fn finish(self) -> Samples {
        drop(self.stop);
        self.thread.join().unwrap_or_default()
    }
}

impl Samples {
    fn take(&mut self, ports: &BTreeSet<u16>, ends: &BTreeMap<u16, End>, at: Duration) {
        self.most_one = ends
            .values()
            .map(|end| end.bytes)
            .fold(self.most_one, u64::max);
        self.most_all = self.most_all.max(ends.values().map(|end| end.bytes).sum());
        for port in ports {
            if ends.get(port).is_none_or(|end| !end.open) {
                self.ended_after.entry(*port).or_insert(at);
            }
        }
    }
}

/// What it comes to: `all` is the window in which everybody read, `some` the one in which some did not, and in which
/// the others were told of these departures.
#[must_use]
pub fn summary(
    all: &Part,
    some: &Part,
    fates: &[Fate],
    departures: &[(Duration, u64)],
    samples: Samples,
) -> Stalled {
    let mut ended = BTreeMap::new();
    let mut still_there = 0;
    for fate in fates {
        match fate {
            Fate::There => still_there += 1,
            Fate::Bye(code) => *ended.entry(code.clone()).or_default() += 1,
            Fate::Cut => *ended.entry("disconnected".to_owned()).or_default() += 1,
        }
    }
    let told = departures.iter().flat_map(|&(at, count)| {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        std::iter::repeat_n(at.saturating_sub(samples.start), count)
    });
    let mut after: Vec<Duration> = told.take(samples.readers).collect();
    if after.is_empty() {
        after.extend(samples.ended_after.values());
    }
    after.sort_unstable();
    let ends = match &after[..] {
        [] => None,
        [first, .., last] => Some([*first, after[after.len() / 2], *last]),
        [only] => Some([*only; 3]),
    };
    let readers = samples.readers.max(1) as f64;
    let cpu = |part: &Part| part.server.and_then(|used| used.cpu_us_per_delivery);
    let change = |before: f64, after: f64| 100.0 * (after / before - 1.0);
    Stalled {
        readers: samples.readers,
        ended,
        still_there,
        passed_over: 0,
        seconds_until_ended: ends.map(|ends| ends.map(|end| end.as_secs_f64())),
        kernel_kib: samples.failed.is_none().then(|| Most {
            one: samples.most_one as f64 / 1024.0,
            average: samples.most_all as f64 / 1024.0 / readers,
        }),
        process_kib_per_reader: samples
            .before_kib
            .map(|before| samples.most_kib.saturating_sub(before) as f64 / readers),
        not_available: samples.failed,
        healthy_p50_change_percent: change(
            all.latency_us.p50.max(1) as f64,
            some.latency_us.p50 as f64,
        ),
        healthy_cpu_change_percent: cpu(all).zip(cpu(some)).map(|(all, some)| change(all, some)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_is_ended_when_the_server_has_closed_it() {
        let ports = BTreeSet::from([1, 2, 3]);
        let end = |open, bytes| End { open, bytes };
        let mut samples = Samples::default();
        let at = Duration::from_secs;
        let all = [(1, end(true, 10)), (2, end(true, 30)), (3, end(true, 1))];
        samples.take(&ports, &BTreeMap::from(all), at(1));
        samples.take(
            &ports,
            &BTreeMap::from([(1, end(true, 20)), (2, end(false, 5))]),
            at(2),
        );
        samples.take(&ports, &BTreeMap::new(), at(3));
        assert_eq!((samples.most_one, samples.most_all), (30, 41));
        let after = BTreeMap::from([(1, at(3)), (2, at(2)), (3, at(2))]);
        assert_eq!(samples.ended_after, after);
    }
}
