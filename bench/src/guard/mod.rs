//! What a write to a member costs in counts that no noise touches, each with a bound: instructions, system calls,
//! allocations, and times that a thread goes to sleep.
//!
//! Time says little on a machine that others use, and a test of it fails for no reason. Counts do not: a lock, an
//! allocation or a formatted string more for each write shows in them on any machine, at any load.
//!
//! The server runs under `callgrind`, with a room whose members get bursts of messages: all of a burst is delivered to
//! all before the next one is sent, so that it does not matter how slow the server is. Counted is from before a burst
//! to after the last one, without starting, coming in and stopping, and without the first bursts, with which come things
//! that happen once. Counts are told for each batch that a member is given, which the server itself counts, and how many
//! batches a burst makes is bounded, too. Sleeps are counted in another run without valgrind, under which threads take turns.

mod profile;

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use clap::Args;

use self::profile::{Profile, Watched};
use crate::{
    clock::Stopwatch,
    command::chain,
    interrupt,
    load::{Load, LoadError, Pace, Run, Span},
    process::{self, TooFewDescriptors},
    progress::Progress,
    report::Report,
    scenario::{Scenario, Subject},
    scrape,
    served::Served,
    table,
    target::{Names, Over},
};

/// Longest wait for members to come in, for a burst and for a profile. Never needed in full: valgrind makes a
/// server fifty times slower, and a machine under load slower still.
const PATIENCE: Duration = Duration::from_secs(120);
/// What is set apart from the configuration of measurements. Members that do not hear of each other come in with less
/// work, and nobody is too slow.
const SETTINGS: [(&str, &str); 3] = [
    ("CHINWAG_ROOM__PRESENCE", "off"),
    ("CHINWAG_ROOM__PRESENCE_INTERVAL", "1h"),
    ("CHINWAG_LIMITS__SLOW_AFTER", "10m"),
];
/// How many threads the server has for its tasks, which must not depend on the machine: two where sleeps are counted,
/// and one under callgrind, which lets them take turns anyhow: who steals whose task there is a matter of luck.
const WORKERS: &str = "CHINWAG_SERVER__WORKERS";
/// Length of each text in bytes, as in the scenarios.
const PAYLOAD: usize = 128;
/// How many functions are named where a bound is broken.
const NAMED: usize = 8;
/// Bursts before those that count.
const FIRST: u64 = 3;
/// A server that takes less than a twentieth of this time has nothing more to do.
const QUIET: Duration = Duration::from_millis(100);
/// How the server calls its count of batches.
const BATCHES: &str = "chinwag_batch_events_count";

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Figure {
    Instructions,
    Atomics,
    Allocations,
    Syscalls,
    Sleeps,
    /// Batches that a burst makes.
    Batches,
}

impl Figure {
    const fn name(self) -> &'static str {
        match self {
            Self::Instructions => "instructions",
            Self::Atomics => "atomic instructions",
            Self::Syscalls => "system calls",
            Self::Allocations => "allocations",
            Self::Sleeps => "sleeps",
            Self::Batches => "batches",
        }
    }

    const fn digits(self) -> usize {
        match self {
            Self::Instructions => 1,
            Self::Atomics | Self::Batches => 2,
            Self::Syscalls | Self::Allocations => 3,
            Self::Sleeps => 4,
        }
    }
}

/// What a figure has to be. Less than `least` means that something else was measured than what the case is about, such
/// as a room that was not told.
#[derive(Debug, Clone, Copy)]
struct Bound {
    figure: Figure,
    least: f64,
    /// The least and the most that was counted where the bound comes from.
    counted: (f64, f64),
    most: f64,
}

/// What the members do, and what a figure is told for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// They are sent messages, so many bursts of so many. Told for each batch that one of them is given: for one write,
    /// or one answer to a poll.
    Bursts(u64, u64),
    /// So many of them leave and come in again, so often. Told for one leaving and coming.
    ComeAndGo(usize, u64),
}

/// One load, and its bounds.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    over: Over,
    members: usize,
    work: Work,
    /// How often it is counted: the run with the middle number of instructions is judged.
    runs: usize,
    bounds: &'static [Bound],
}

impl Case {
    /// What a figure is told for.
    const fn each(&self, figure: Figure) -> &'static str {
        match (figure, self.work, self.over) {
            (Figure::Batches, ..) => "a burst",
            (_, Work::ComeAndGo(..), _) => "a leave and join",
            (_, _, Over::Http | Over::Https) => "an answer",
            _ => "a write",
        }
    }
}

const fn bound(figure: Figure, least: f64, counted: (f64, f64), most: f64) -> Bound {
    Bound {
        figure,
        least,
        counted,
        most,
    }
}

/// Where the bounds come from: the release build of Rust 1.95 on Debian 12 (glibc 2.36, valgrind 3.19), counted some
/// ten times on two cores with up to nine programs besides. `most` is what was counted at most and a margin that is
/// less than what one thing more for each write would add: an allocation is 1 of these and, with its release, some
/// 150 instructions; a lock is 2 atomic instructions; a formatted number is hundreds of instructions.
const CASES: [Case; 9] = [
    Case {
        name: "lone-tcp",
        over: Over::Tcp,
        members: 1000,
        work: Work::Bursts(100, 1),
        runs: 1,
        bounds: LONE,
    },
    Case {
        name: "lone-ws",
        over: Over::Ws,
        members: 1000,
        work: Work::Bursts(100, 1),
        runs: 1,
        bounds: LONE,
    },
    Case {
        name: "lone-tls",
        over: Over::Tls,
        members: 100,
        work: Work::Bursts(100, 1),
        runs: 1,
        bounds: LONE_TLS,
    },
    Case {
        name: "batched-tcp",
        over: Over::Tcp,
        members: 1000,
        work: Work::Bursts(20, 16),
        runs: 1,
        bounds: BATCHED,
    },
    Case {
        name: "batched-ws",
        over: Over::Ws,
        members: 1000,
        work: Work::Bursts(20, 16),
        runs: 1,
        bounds: BATCHED,
    },
    Case {
        name: "small-room",
        over: Over::Tcp,
        members: 10,
        work: Work::Bursts(3000, 1),
        runs: 1,
        bounds: SMALL,
    },
    Case {
        name: "polling",
        over: Over::Http,
        members: 200,
        work: Work::Bursts(60, 1),
        runs: 3,
        bounds: POLLING,
    },
    Case {
        name: "join-leave-200",
        over: Over::Tcp,
        members: 200,
        work: Work::ComeAndGo(50, 40),
        runs: 1,
        bounds: JOIN_AND_LEAVE_200,
    },
    Case {
        name: "join-leave-10000",
        over: Over::Tcp,
        members: 10_000,
        work: Work::ComeAndGo(50, 40),
        runs: 1,
        bounds: JOIN_AND_LEAVE_10000,
    },
];

/// The write, and what a message takes once.
const LONE: &[Bound] = &[
    bound(Figure::Instructions, 100.0, (318.0, 332.0), 355.0),
    bound(Figure::Atomics, 1.0, (4.46, 4.5), 5.2),
    bound(Figure::Allocations, 0.001, (0.013, 0.015), 0.04),
    bound(Figure::Syscalls, 1.0, (1.01, 1.012), 1.03),
    bound(Figure::Sleeps, 0.001, (0.0038, 0.0055), 0.01),
    bound(Figure::Batches, 1.0, (1.0, 1.0), 1.05),
];

/// The same with encryption, for a tenth as many members, in each of whose writes there is more of the message.
const LONE_TLS: &[Bound] = &[
    bound(Figure::Instructions, 1000.0, (3850.0, 3885.0), 4050.0),
    bound(Figure::Atomics, 1.0, (10.15, 10.4), 11.5),
    bound(Figure::Allocations, 0.1, (1.14, 1.17), 1.6),
    bound(Figure::Syscalls, 1.0, (1.035, 1.06), 1.2),
    bound(Figure::Sleeps, 0.001, (0.009, 0.011), 0.03),
    bound(Figure::Batches, 1.0, (1.0, 1.0), 1.05),
];

/// Sixteen messages at once leave in one write.
const BATCHED: &[Bound] = &[
    bound(Figure::Instructions, 100.0, (620.0, 632.0), 660.0),
    bound(Figure::Atomics, 1.0, (5.6, 5.7), 6.5),
    bound(Figure::Allocations, 0.001, (0.14, 0.15), 0.2),
    bound(Figure::Syscalls, 1.0, (1.01, 1.02), 1.06),
    bound(Figure::Sleeps, 0.0001, (0.004, 0.02), 0.05),
    bound(Figure::Batches, 1.0, (1.0, 1.0), 1.2),
];

/// A tenth of what a message takes once is in each of its ten writes: an allocation or a system call more for each
/// message breaks the bound.
const SMALL: &[Bound] = &[
    bound(Figure::Instructions, 500.0, (2960.0, 2985.0), 3090.0),
    bound(Figure::Atomics, 2.0, (23.0, 23.2), 24.0),
    bound(Figure::Allocations, 0.1, (1.206, 1.21), 1.28),
    bound(Figure::Syscalls, 1.1, (1.303, 1.31), 1.38),
    bound(Figure::Sleeps, 0.01, (0.097, 0.1), 0.15),
    bound(Figure::Batches, 1.0, (1.0, 1.0), 1.05),
];

/// A request and its answer. How many answers a thread gives before it sleeps differs much.
const POLLING: &[Bound] = &[
    bound(Figure::Batches, 1.0, (1.0, 1.0), 1.2),
    bound(Figure::Instructions, 5000.0, (16_230.0, 16_350.0), 17_000.0),
    bound(Figure::Atomics, 20.0, (115.8, 117.3), 118.4),
    bound(Figure::Allocations, 1.0, (12.13, 12.15), 12.9),
    bound(Figure::Syscalls, 2.0, (2.03, 2.045), 2.5),
    bound(Figure::Sleeps, 0.001, (0.06, 0.4), 0.9),
];

/// Neither joining nor leaving looks at the other members: what a room fifty times as large adds are steps in trees. How
/// many answers share a write differs, and with it the number of locks.
const JOIN_AND_LEAVE_200: &[Bound] = &[
    bound(Figure::Instructions, 5000.0, (37_500.0, 37_850.0), 39_300.0),
    bound(Figure::Allocations, 1.0, (17.2, 17.3), 18.0),
    bound(Figure::Syscalls, 2.0, (4.1, 4.2), 5.0),
];

/// The same there.
const JOIN_AND_LEAVE_10000: &[Bound] = &[
    bound(Figure::Instructions, 5000.0, (41_000.0, 41_600.0), 43_000.0),
    bound(Figure::Allocations, 1.0, (17.2, 17.3), 18.0),
    bound(Figure::Syscalls, 2.0, (4.1, 4.2), 5.0),
];

/// Count what a write to a member costs where noise does not touch it, and hold it to bounds
///
/// Counts instructions, system calls, allocations and sleeps. Exits with 1 if a bound is broken. Needs valgrind, and
/// the server built as it is released, with line tables.
#[derive(Debug, Clone, Args)]
pub struct Guard {
    /// The chinwag program
    #[arg(long, value_name = "PATH")]
    server: PathBuf,
    /// Only cases whose name contains one of these
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    only: Vec<String>,
    /// Where the profiles are kept, for `callgrind_annotate`
    #[arg(long, value_name = "FOLDER", default_value = "target/guard")]
    profiles: PathBuf,
}

/// Why nothing could be said of the server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuardError {
    /// There is nothing to do.
    #[error("no case is called that; there are {0}")]
    Nothing(String),
    /// The tool that counts is missing.
    #[error("valgrind does not start; install it (Debian: apt-get install valgrind)")]
    Valgrind(#[source] io::Error),
    /// There is no place for profiles.
    #[error("preparing {} failed", .folder.display())]
    Folder {
        /// The folder of profiles.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The system does not let signals be caught, or tell or raise the limit of descriptors.
    #[error("preparing the run failed")]
    Prepare(#[source] io::Error),
    /// There are not enough descriptors.
    #[error(transparent)]
    Descriptors(#[from] TooFewDescriptors),
    /// A run failed.
    #[error("{case}: {why}")]
    Run {
        /// Of which case.
        case: &'static str,
        /// What happened.
        why: String,
    },
    /// The result could not be written.
    #[error("writing the result failed")]
    Output(#[source] io::Error),
}

impl GuardError {
    /// The error with its causes.
    #[must_use]
    pub fn explain(&self) -> String {
        chain(self).trim_end().to_owned()
    }
}

impl Guard {
    /// Counts, and prints the table. Returns whether all bounds hold.
    ///
    /// # Errors
    /// If something could not be counted: then nothing holds.
    pub fn run(&self) -> Result<bool, GuardError> {
        let wanted = |case: &&Case| {
            self.only.is_empty() || self.only.iter().any(|part| case.name.contains(part))
        };
        let cases: Vec<&Case> = CASES.iter().filter(wanted).collect();
        if cases.is_empty() {
            return Err(GuardError::Nothing(CASES.map(|case| case.name).join(", ")));
        }
        interrupt::heed().map_err(GuardError::Prepare)?;
        let descriptors = process::raise_descriptor_limit().map_err(GuardError::Prepare)?;
        for case in &cases {
            process::check_descriptors(case.members + 1, descriptors)?;
        }
        Command::new("valgrind")
            .arg("--version")
            .output()
            .map_err(GuardError::Valgrind)?;
        fs::create_dir_all(&self.profiles).map_err(|source| GuardError::Folder {
            folder: self.profiles.clone(),
            source,
        })?;
        let (mut judged, mut times) = (Vec::new(), Vec::new());
        for case in cases {
            let watch = Stopwatch::start();
            let counted = self.count(case).map_err(|why| GuardError::Run {
                case: case.name,
                why,
            })?;
            // Nobody may be there to read it, which is no reason to stop.
            let took = watch.elapsed().as_secs_f64();
            _ = writeln!(io::stderr(), "{}: counted in {took:.0} s", case.name);
            times.push((case, counted.cpu_us));
            judged.extend(counted.judge(case));
        }
        let text = timed(&times) + &told(&judged, &self.profiles);
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .map_err(GuardError::Output)?;
        Ok(judged.iter().all(Judged::holds))
    }

    /// Plays a case under callgrind and by itself.
    fn count(&self, case: &Case) -> Result<Counted, String> {
        let runs: Result<Vec<Counted>, String> =
            (0..case.runs).map(|_| self.profile(case)).collect();
        let counted = middle(runs?).ok_or("it is never counted")?;
        let plain = self.play(case, Command::new(&self.server), "2", |served| {
            process::Usage::of(served.pid())
        })?;
        let used = plain.after.since(&plain.before);
        Ok(Counted {
            sleeps: used.voluntary as f64 / plain.units,
            cpu_us: used.cpu.as_secs_f64() * 1e6 / plain.units,
            ..counted
        })
    }

    /// Under callgrind alone: without sleeps.
    fn profile(&self, case: &Case) -> Result<Counted, String> {
        let file = self.profiles.join(format!("{}.callgrind", case.name));
        let watched =
            Watched::new(file).map_err(|error| format!("preparing a profile failed: {error}"))?;
        let mut command = watched.command();
        command.arg(&self.server);
        let played = self.play(case, command, "1", |served| {
            // The cheapest place to come by, whatever the case is about.
            let door = served.target(Over::Tcp).addr;
            watched.dump(served.pid(), door, PATIENCE)
        })?;
        // The first one has all that came before.
        let file = watched.profile(2);
        let profile = Profile::read(&file)
            .map_err(|error| format!("reading {} failed: {error}", file.display()))?;
        Ok(Counted {
            profile,
            units: played.units,
            batches: played.batches,
            sleeps: 0.0,
            cpu_us: 0.0,
        })
    }

    /// Plays a case on a server started with `command`, with so many workers, and looks at that before what counts and
    /// after it.
    fn play<T>(
        &self,
        case: &Case,
        command: Command,
        workers: &str,
        look: impl Fn(&Served) -> io::Result<T>,
    ) -> Result<Played<T>, String> {
        let with_tls = case.over.is_tls();
        let settings = [&SETTINGS[..], &[(WORKERS, workers)]].concat();
        let mut served = Served::start_as(&self.server, command, with_tls, &settings)
            .map_err(|error| error.explain())?;
        load(case, &served, look).map_err(|why| format!("{why}; {}", served.running().epitaph()))
    }
}

/// The run with the middle number of instructions.
fn middle(mut runs: Vec<Counted>) -> Option<Counted> {
    let instructions = |run: &Counted| run.of(Figure::Instructions);
    runs.sort_by(|one, other| instructions(one).total_cmp(&instructions(other)));
    let middle = runs.len() / 2;
    runs.into_iter().nth(middle)
}

/// What came of playing a case.
#[derive(Debug)]
struct Played<T> {
    before: T,
    after: T,
    /// What there was of what figures are told for.
    units: f64,
    /// Batches for each burst.
    batches: f64,
}

fn load<T>(
    case: &Case,
    served: &Served,
    look: impl Fn(&Served) -> io::Result<T>,
) -> Result<Played<T>, String> {
    let told = |error: LoadError| chain(&error);
    let look = || look(served).map_err(|error| format!("looking at the server failed: {error}"));
    let subject = Subject {
        target: served.target(case.over),
        pid: None,
        names: Names::own(),
    };
    let load = Load {
        target: subject.target.clone(),
        names: subject.names.clone(),
        rooms: 1,
        members: case.members,
        publishers: 1,
        payload: PAYLOAD,
        gather_limit: PATIENCE,
        drain_limit: PATIENCE,
        watch: Stopwatch::start(),
    };
    let progress = Progress::on_stderr();
    let mut run = Run::new(load, &progress).map_err(told)?;
    run.gather(case.members, true).map_err(told)?;
    run.send_together();
    let mut report = Report::new(Scenario::Lone, &subject);
    let mut work = |run: &mut Run<'_>, is_first: bool| {
        match case.work {
            Work::Bursts(bursts, messages) => {
                for _ in 0..if is_first { FIRST } else { bursts } {
                    let (pace, span) =
                        (Pace::InFlight(messages), Span::Messages(messages, PATIENCE));
                    let part = run.measure_span(case.name, pace, span, None)?;
                    report.parts.push(part);
                }
            }
            Work::ComeAndGo(members, times) => {
                run.come_and_go(members, if is_first { 1 } else { times })?;
            }
        }
        Ok(())
    };
    work(&mut run, true).map_err(told)?;
    let batches_before = batches(served)?;
    until_quiet(&mut run, served)?;
    let before = look()?;
    work(&mut run, false).map_err(told)?;
    until_quiet(&mut run, served)?;
    let after = look()?;
    let batches = batches(served)? - batches_before;
    report.judge(&[run.verdict().map_err(told)?]);
    if report.faults.total > 0 {
        return Err(report.faults.words().join("; "));
    }
    let (units, batches) = match case.work {
        Work::Bursts(bursts, _) => (batches * case.members as f64, batches / bursts as f64),
        Work::ComeAndGo(members, times) => (members as f64 * times as f64, 0.0),
    };
    if units == 0.0 {
        return Err("the server has counted no batch".to_owned());
    }
    Ok(Played {
        before,
        after,
        units,
        batches,
    })
}

/// Waits until the server has nothing more to do: those who poll come again once they were answered.
fn until_quiet(run: &mut Run<'_>, served: &Served) -> Result<(), String> {
    let used = || {
        process::Usage::of(served.pid())
            .map_err(|error| format!("looking at the server failed: {error}"))
    };
    let watch = Stopwatch::start();
    loop {
        let before = used()?;
        run.rest(QUIET).map_err(|error| chain(&error))?;
        if used()?.since(&before).cpu < QUIET / 20 {
            return Ok(());
        }
        if watch.elapsed() > PATIENCE {
            return Err("the server goes on after all is said".to_owned());
        }
    }
}

/// Batches that the server has laid out so far.
fn batches(served: &Served) -> Result<f64, String> {
    let metrics = scrape::fetch(served.metrics())
        .map_err(|error| format!("fetching metrics failed: {error}"))?;
    Ok(scrape::value(&metrics, BATCHES).unwrap_or(0.0))
}

/// What a case came to.
#[derive(Debug)]
struct Counted {
    profile: Profile,
    /// What there was under callgrind of what figures are told for.
    units: f64,
    /// Batches for a burst.
    batches: f64,
    /// Times that a thread went to sleep, each unit of the other run.
    sleeps: f64,
    /// Processor time in microseconds, the same. It is told and not bounded: it is as much the machine's as the
    /// program's.
    cpu_us: f64,
}

impl Counted {
    fn of(&self, figure: Figure) -> f64 {
        let count = match figure {
            Figure::Instructions => self.profile.instructions(),
            Figure::Atomics => self.profile.atomics(),
            Figure::Syscalls => self.profile.syscalls(),
            Figure::Allocations => self.profile.allocations(),
            Figure::Batches => return self.batches,
            Figure::Sleeps => return self.sleeps,
        };
        count as f64 / self.units
    }

    fn judge(&self, case: &Case) -> Vec<Judged> {
        let judge = |&bound: &Bound| {
            let mut judged = Judged {
                case: case.name,
                each: case.each(bound.figure),
                bound,
                found: self.of(bound.figure),
                blame: Vec::new(),
            };
            if !judged.holds() {
                judged.blame = self.blame(bound.figure);
            }
            judged
        };
        case.bounds.iter().map(judge).collect()
    }

    /// The functions with the largest share of a figure, with it.
    fn blame(&self, figure: Figure) -> Vec<(String, f64)> {
        let functions = match figure {
            Figure::Instructions => self.profile.busiest(),
            Figure::Atomics => self.profile.sharing(),
            Figure::Syscalls => self.profile.callers_of_the_kernel(),
            Figure::Allocations => self.profile.allocating(),
            Figure::Batches | Figure::Sleeps => Vec::new(),
        };
        functions
            .into_iter()
            .take(NAMED)
            .map(|(name, count)| (name.to_owned(), count as f64 / self.units))
            .collect()
    }
}

/// A figure beside its bound.
#[derive(Debug)]
struct Judged {
    case: &'static str,
    /// What the figure is told for.
    each: &'static str,
    bound: Bound,
    found: f64,
    /// Where a broken bound comes from.
    blame: Vec<(String, f64)>,
}

impl Judged {
    fn holds(&self) -> bool {
        (self.bound.least..=self.bound.most).contains(&self.found)
    }

    /// What is wrong and what to do.
    fn told(&self) -> String {
        let Self {
            case,
            each,
            bound,
            found,
            blame,
        } = self;
        let (name, digits) = (bound.figure.name(), bound.figure.digits());
        if *found < bound.least {
            return format!(
                "\n{case}: {found:.digits$} {name} for {each}, and less than {} can't be. Something else was \
                 measured than what the case is about: see to that first.\n",
                bound.least
            );
        }
        let mut text = format!(
            "\n{case}: {found:.digits$} {name} for {each}, and at most {} are allowed.",
            bound.most
        );
        if !blame.is_empty() {
            text += " Most of them:\n";
            for (function, count) in blame {
                text += &format!("  {count:>10.digits$}  {function}\n");
            }
        }
        text
    }
}

/// The processor times, for who wants to know what the counts come to.
fn timed(times: &[(&Case, f64)]) -> String {
    let cells = |&(case, us): &(&Case, f64)| {
        let each = case.each(Figure::Instructions);
        vec![case.name.to_owned(), format!("{us:.1}"), each.to_owned()]
    };
    let head = ["case", "µs of processor time, on this machine now", "for"];
    table::markdown(&head, times.iter().map(cells)) + "\n"
}

fn told(judged: &[Judged], profiles: &Path) -> String {
    let cells = |judged: &Judged| {
        let digits = judged.bound.figure.digits();
        vec![
            judged.case.to_owned(),
            format!("{} for {}", judged.bound.figure.name(), judged.each),
            format!("{:.digits$}", judged.found),
            format!("{} to {}", judged.bound.counted.0, judged.bound.counted.1),
            format!("{} to {}", judged.bound.least, judged.bound.most),
            if judged.holds() { "yes" } else { "**no**" }.to_owned(),
        ]
    };
    let head = ["case", "what", "counted", "before", "bound", "held"];
    let mut text = table::markdown(&head, judged.iter().map(cells));
    let broken: Vec<&Judged> = judged.iter().filter(|judged| !judged.holds()).collect();
    if broken.is_empty() {
        return text;
    }
    for judged in broken {
        text += &judged.told();
    }
    text += &format!(
        "\nLines and callers: callgrind_annotate --tree=caller {}/CASE.callgrind.2\n\
         A cost that is worth it has its bound raised in bench/src/guard/mod.rs, with the reason.\n",
        profiles.display()
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(instructions: u64, atomics: u64, allocations: u64, sleeps: u64) -> Counted {
        let text = format!(
            "# callgrind format\nevents: Ir Ge sysCount\nfn=deliver\n1 {instructions} {atomics}\n\
             cfn=malloc\ncalls={allocations} 1\n1 0\nfn=send\n1 0 0 1000\n"
        );
        Counted {
            profile: profile::parse(&text).unwrap(),
            units: 1000.0,
            batches: 1.0,
            sleeps: sleeps as f64 / 1000.0,
            cpu_us: 7.0,
        }
    }

    const BOUNDS: &[Bound] = &[
        bound(Figure::Instructions, 50.0, (150.0, 150.0), 200.0),
        bound(Figure::Atomics, 1.0, (4.0, 4.0), 4.5),
        bound(Figure::Allocations, 0.01, (0.03, 0.03), 0.1),
        bound(Figure::Syscalls, 1.0, (1.0, 1.0), 1.02),
        bound(Figure::Sleeps, 0.0001, (0.005, 0.005), 0.01),
        bound(Figure::Batches, 1.0, (1.0, 1.0), 1.5),
    ];

    fn judged(counted: &Counted) -> Vec<Judged> {
        let case = Case {
            bounds: BOUNDS,
            ..CASES[0]
        };
        counted.judge(&case)
    }

    /// The figures whose bounds are broken.
    fn broken(counted: &Counted) -> Vec<Figure> {
        judged(counted)
            .iter()
            .filter(|judged| !judged.holds())
            .map(|judged| judged.bound.figure)
            .collect()
    }

    #[test]
    fn what_is_within_its_bounds_holds() {
        assert_eq!(broken(&counted(150_000, 4000, 30, 5)), []);
    }

    #[test]
    fn one_allocation_more_for_a_write_breaks_its_bound_and_is_blamed() {
        let counted = counted(150_000, 4000, 1030, 5);
        assert_eq!(broken(&counted), [Figure::Allocations]);
        let text = told(&judged(&counted), Path::new("profiles"));
        for part in [
            "1.030 allocations for a write, and at most 0.1",
            "1.030  deliver",
            "profiles/CASE.callgrind.2",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn processor_times_are_told_with_what_they_are_for() {
        let case = CASES
            .iter()
            .find(|case| matches!(case.work, Work::ComeAndGo(..)));
        let text = timed(&[(case.unwrap(), 23.46), (&CASES[0], 7.0)]);
        let rows: Vec<Vec<&str>> = text
            .lines()
            .skip(2)
            .map(|row| row.split('|').map(str::trim).collect())
            .collect();
        assert_eq!(
            rows[0][1..4],
            ["join-leave-200", "23.5", "a leave and join"]
        );
        assert_eq!(rows[1][1..4], ["lone-tcp", "7.0", "a write"]);
    }

    #[test]
    fn of_several_runs_the_middle_one_is_judged() {
        let run = |instructions| counted(instructions, 4000, 30, 5);
        let runs = [150_000, 999_000, 160_000].map(run).into();
        let middle = middle(runs).unwrap();
        assert_eq!(middle.of(Figure::Instructions), 160.0);
        assert!(CASES.iter().all(|case| case.runs % 2 == 1));
    }

    #[test]
    fn one_lock_more_for_a_write_breaks_its_bound() {
        assert_eq!(broken(&counted(150_000, 6000, 30, 5)), [Figure::Atomics]);
    }

    #[test]
    fn messages_that_share_no_write_any_more_break_a_bound() {
        let mut alone = counted(150_000, 4000, 30, 5);
        alone.batches = 2.0;
        assert_eq!(broken(&alone), [Figure::Batches]);
    }

    #[test]
    fn too_many_instructions_or_sleeps_break_their_bounds() {
        assert_eq!(
            broken(&counted(200_001, 4000, 30, 5)),
            [Figure::Instructions]
        );
        assert_eq!(broken(&counted(150_000, 4000, 30, 11)), [Figure::Sleeps]);
    }

    #[test]
    fn what_counts_nothing_does_not_hold_either() {
        let counted = counted(1000, 0, 0, 0);
        assert_eq!(
            broken(&counted),
            [
                Figure::Instructions,
                Figure::Atomics,
                Figure::Allocations,
                Figure::Sleeps
            ]
        );
        let text = told(&judged(&counted), Path::new("profiles"));
        assert!(text.contains("Something else was measured"), "{text}");
    }

    #[test]
    fn in_every_case_one_thing_more_for_each_unit_than_was_counted_breaks_a_bound() {
        for case in CASES {
            for bound in case.bounds {
                let holds = |found: f64| {
                    let each = case.each(bound.figure);
                    let (case, blame) = (case.name, Vec::new());
                    let judged = Judged {
                        case,
                        each,
                        bound: *bound,
                        found,
                        blame,
                    };
                    judged.holds()
                };
                let (fewest, most) = bound.counted;
                let told = format!("{}: {:?}", case.name, bound);
                assert!(fewest <= most && holds(fewest) && holds(most), "{told}");
                let usual = f64::midpoint(fewest, most);
                let one_more = match bound.figure {
                    Figure::Allocations | Figure::Syscalls | Figure::Sleeps | Figure::Batches => {
                        usual + 1.0
                    }
                    Figure::Atomics => usual + 2.0,
                    Figure::Instructions => usual * 1.2,
                };
                assert!(!holds(one_more), "{told}");
            }
            let mut figures = vec![Figure::Instructions, Figure::Allocations, Figure::Syscalls];
            if let Work::Bursts(..) = case.work {
                figures.push(Figure::Atomics);
            }
            for figure in figures {
                let is_bounded = |bound: &Bound| bound.figure == figure;
                assert!(
                    case.bounds.iter().any(is_bounded),
                    "{} {figure:?}",
                    case.name
                );
            }
        }
    }

    #[test]
    fn a_room_fifty_times_as_large_makes_joining_and_leaving_hardly_dearer() {
        let rooms: Vec<&Case> = CASES
            .iter()
            .filter(|case| matches!(case.work, Work::ComeAndGo(..)))
            .collect();
        let [small, large] = rooms[..] else {
            panic!("{rooms:?}")
        };
        assert_eq!(small.members * 50, large.members);
        let instructions = |case: &Case| {
            let mut bounds = case.bounds.iter();
            *bounds
                .find(|bound| bound.figure == Figure::Instructions)
                .unwrap()
        };
        let (few, many) = (instructions(small), instructions(large));
        assert!(many.most < few.counted.0 * 1.15);
        // One instruction for each other member breaks the bound.
        assert!(many.counted.0 + (large.members - small.members) as f64 > many.most);
    }
}
