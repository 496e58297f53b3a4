//! What a delivery costs in counts that no noise touches, each with a bound: instructions, system calls, allocations,
//! and times that a thread goes to sleep.
//!
//! Time says little on a machine that others use, and a test of it fails for no reason. Counts do not: a lock, an
//! allocation or a formatted string more for each delivery shows in them on any machine, at any load.
//!
//! The server runs under `callgrind`, with a room whose members get bursts of messages: all of a burst is delivered to
//! all before the next one is sent, so that it does not matter how slow the server is. Counted is from before the first
//! burst to after the last one, without starting, coming in and stopping. Sleeps are counted in a second run without
//! valgrind, under which threads take turns.

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
    served::Served,
    table,
    target::{Names, Over, Target},
};

/// Longest wait for members to come in, for a burst and for a profile. Never needed in full: valgrind makes a
/// server fifty times slower, and a machine under load slower still.
const PATIENCE: Duration = Duration::from_secs(120);
/// What is set apart from the configuration of measurements. Members that do not hear of each other come in with less
/// work; the number of threads must not depend on the machine; and nobody is too slow.
const SETTINGS: [(&str, &str); 3] = [
    ("CHINWAG_SERVER__WORKERS", "2"),
    ("CHINWAG_ROOM__PRESENCE", "off"),
    ("CHINWAG_LIMITS__SLOW_AFTER", "10m"),
];
/// Length of each text in bytes, as in the scenarios.
const PAYLOAD: usize = 128;
/// How many functions are named where a bound is broken.
const NAMED: usize = 8;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Figure {
    Instructions,
    Atomics,
    Allocations,
    Syscalls,
    Sleeps,
}

impl Figure {
    const fn name(self) -> &'static str {
        match self {
            Self::Instructions => "instructions",
            Self::Atomics => "atomic instructions",
            Self::Syscalls => "system calls",
            Self::Allocations => "allocations",
            Self::Sleeps => "sleeps",
        }
    }

    const fn digits(self) -> usize {
        match self {
            Self::Instructions => 1,
            Self::Atomics => 2,
            Self::Syscalls | Self::Allocations => 3,
            Self::Sleeps => 4,
        }
    }
}

/// What a figure has to be for one delivery. Less than `least` means that something else was measured than what the
/// case is about, such as messages that share a write where none should.
#[derive(Debug, Clone, Copy)]
struct Bound {
    figure: Figure,
    least: f64,
    most: f64,
}

/// One load, and its bounds.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    over: Over,
    members: usize,
    /// Messages that are sent at once.
    burst: u64,
    bursts: u64,
    bounds: &'static [Bound],
}

const fn bound(figure: Figure, least: f64, most: f64) -> Bound {
    Bound {
        figure,
        least,
        most,
    }
}

/// Where the bounds come from: the release build of Rust 1.95 on Debian 12 (glibc 2.36, valgrind 3.19), counted some
/// ten times on two cores with up to nine programs besides. `most` is what was counted at most and a margin that is
/// less than what one thing more for each delivery would add: an allocation is 1 of these and, with its release, some
/// 150 instructions; a lock is 2 atomic instructions; a formatted number is hundreds of instructions.
const CASES: [Case; 6] = [
    Case {
        name: "lone-tcp",
        over: Over::Tcp,
        members: 1000,
        burst: 1,
        bursts: 100,
        bounds: LONE,
    },
    Case {
        name: "lone-ws",
        over: Over::Ws,
        members: 1000,
        burst: 1,
        bursts: 100,
        bounds: LONE,
    },
    Case {
        name: "batched-tcp",
        over: Over::Tcp,
        members: 1000,
        burst: 16,
        bursts: 20,
        bounds: BATCHED,
    },
    Case {
        name: "batched-ws",
        over: Over::Ws,
        members: 1000,
        burst: 16,
        bursts: 20,
        bounds: BATCHED,
    },
    Case {
        name: "small-room",
        over: Over::Tcp,
        members: 10,
        burst: 1,
        bursts: 3000,
        bounds: SMALL,
    },
    Case {
        name: "polling",
        over: Over::Http,
        members: 200,
        burst: 1,
        bursts: 20,
        bounds: POLLING,
    },
];

/// Counted: 322 to 333 instructions, 4.5 to 4.7 atomic ones, 0.013 to 0.019 allocations, 1.016 to 1.028 system calls
/// (the write, and what a message takes once), 0.0044 to 0.0055 sleeps.
const LONE: &[Bound] = &[
    bound(Figure::Instructions, 100.0, 370.0),
    bound(Figure::Atomics, 1.0, 5.5),
    bound(Figure::Allocations, 0.001, 0.05),
    bound(Figure::Syscalls, 1.0, 1.04),
    bound(Figure::Sleeps, 0.001, 0.01),
];

/// Counted: 40 to 58 instructions, 0.37 to 0.65 atomic ones, 0.009 to 0.010 allocations, 0.067 to 0.103 system calls,
/// 0.0008 to 0.0012 sleeps. How many of the 16 messages share a write is a matter of luck: 1, or 2 writes take them.
const BATCHED: &[Bound] = &[
    bound(Figure::Instructions, 10.0, 80.0),
    bound(Figure::Atomics, 0.1, 0.9),
    bound(Figure::Allocations, 0.001, 0.02),
    bound(Figure::Syscalls, 0.06, 0.16),
    bound(Figure::Sleeps, 0.0001, 0.004),
];

/// Counted: 2,906 to 2,925 instructions, 21.9 to 22.3 atomic ones, 1.207 to 1.212 allocations, 1.305 to 1.310 system
/// calls, 0.098 to 0.100 sleeps. A tenth of what a message takes once is in each of its ten deliveries: an allocation
/// or a system call more for each message breaks the bound.
const SMALL: &[Bound] = &[
    bound(Figure::Instructions, 500.0, 3080.0),
    bound(Figure::Atomics, 2.0, 23.5),
    bound(Figure::Allocations, 0.1, 1.28),
    bound(Figure::Syscalls, 1.1, 1.38),
    bound(Figure::Sleeps, 0.01, 0.15),
];

/// Counted: 20,600 to 24,400 instructions, 160 to 203 atomic ones, 18.7 to 21.1 allocations, 2.06 to 2.20 system calls.
/// A delivery is a request and its answer.
const POLLING: &[Bound] = &[
    bound(Figure::Instructions, 5000.0, 26_500.0),
    bound(Figure::Atomics, 20.0, 220.0),
    bound(Figure::Allocations, 1.0, 23.0),
    bound(Figure::Syscalls, 2.0, 2.5),
];

/// Count what a delivery costs where noise does not touch it, and hold it to bounds
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
        let mut judged = Vec::new();
        for case in cases {
            let watch = Stopwatch::start();
            let counted = self.count(case).map_err(|why| GuardError::Run {
                case: case.name,
                why,
            })?;
            // Nobody may be there to read it, which is no reason to stop.
            let took = watch.elapsed().as_secs_f64();
            _ = writeln!(io::stderr(), "{}: counted in {took:.0} s", case.name);
            judged.extend(counted.judge(case));
        }
        let mut out = io::stdout().lock();
        out.write_all(told(&judged, &self.profiles).as_bytes())
            .and_then(|()| out.flush())
            .map_err(GuardError::Output)?;
        Ok(judged.iter().all(Judged::holds))
    }

    /// Plays a case under callgrind and by itself.
    fn count(&self, case: &Case) -> Result<Counted, String> {
        let file = self.profiles.join(format!("{}.callgrind", case.name));
        let watched =
            Watched::new(file).map_err(|error| format!("preparing a profile failed: {error}"))?;
        let mut command = watched.command();
        command.arg(&self.server);
        play(case, command, |served, target| {
            watched.dump(served.pid(), target.addr, PATIENCE)
        })?;
        // The first one has all that came before.
        let file = watched.profile(2);
        let profile = Profile::read(&file)
            .map_err(|error| format!("reading {} failed: {error}", file.display()))?;
        let (before, after) = play(case, Command::new(&self.server), |served, _| {
            process::Usage::of(served.pid())
        })?;
        Ok(Counted {
            profile,
            sleeps: after.since(&before).voluntary,
            deliveries: case.bursts * case.burst * case.members as u64,
        })
    }
}

/// Plays a case on a server started with `command`, and looks at that before the first burst and after the last one.
fn play<T>(
    case: &Case,
    command: Command,
    look: impl Fn(&Served, &Target) -> io::Result<T>,
) -> Result<(T, T), String> {
    let mut served = Served::start_as(command, &SETTINGS).map_err(|error| error.explain())?;
    load(case, &served, look).map_err(|why| format!("{why}; {}", served.running().epitaph()))
}

fn load<T>(
    case: &Case,
    served: &Served,
    look: impl Fn(&Served, &Target) -> io::Result<T>,
) -> Result<(T, T), String> {
    let told = |error: LoadError| chain(&error);
    let look = |target: &Target| {
        look(served, target).map_err(|error| format!("looking at the server failed: {error}"))
    };
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
    let before = look(&subject.target)?;
    let mut report = Report::new(Scenario::Lone, &subject);
    for _ in 0..case.bursts {
        let span = Span::Messages(case.burst, PATIENCE);
        let part = run
            .measure_span(case.name, Pace::InFlight(case.burst), span, None)
            .map_err(told)?;
        report.parts.push(part);
    }
    let after = look(&subject.target)?;
    report.judge(&[run.verdict().map_err(told)?]);
    if report.faults.total > 0 {
        return Err(report.faults.words().join("; "));
    }
    Ok((before, after))
}

/// What a case came to.
#[derive(Debug)]
struct Counted {
    profile: Profile,
    /// Times that a thread went to sleep.
    sleeps: u64,
    deliveries: u64,
}

impl Counted {
    fn of(&self, figure: Figure) -> f64 {
        let count = match figure {
            Figure::Instructions => self.profile.instructions(),
            Figure::Atomics => self.profile.atomics(),
            Figure::Syscalls => self.profile.syscalls(),
            Figure::Allocations => self.profile.allocations(),
            Figure::Sleeps => self.sleeps,
        };
        count as f64 / self.deliveries as f64
    }

    fn judge(&self, case: &Case) -> Vec<Judged> {
        let judge = |&bound: &Bound| {
            let mut judged = Judged {
                case: case.name,
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
            Figure::Sleeps => Vec::new(),
        };
        functions
            .into_iter()
            .take(NAMED)
            .map(|(name, count)| (name.to_owned(), count as f64 / self.deliveries as f64))
            .collect()
    }
}

/// A figure beside its bound.
#[derive(Debug)]
struct Judged {
    case: &'static str,
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
            bound,
            found,
            blame,
        } = self;
        let (name, digits) = (bound.figure.name(), bound.figure.digits());
        if *found < bound.least {
            return format!(
                "\n{case}: {found:.digits$} {name} for a delivery, and less than {} can't be. Something else was \
                 measured than what the case is about: see to that first.\n",
                bound.least
            );
        }
        let mut text = format!(
            "\n{case}: {found:.digits$} {name} for a delivery, and at most {} are allowed.",
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

fn told(judged: &[Judged], profiles: &Path) -> String {
    let cells = |judged: &Judged| {
        let digits = judged.bound.figure.digits();
        vec![
            judged.case.to_owned(),
            judged.bound.figure.name().to_owned(),
            format!("{:.digits$}", judged.found),
            format!("{} to {}", judged.bound.least, judged.bound.most),
            if judged.holds() { "yes" } else { "**no**" }.to_owned(),
        ]
    };
    let head = ["case", "for a delivery", "counted", "bound", "held"];
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
            deliveries: 1000,
            sleeps,
        }
    }

    const BOUNDS: &[Bound] = &[
        bound(Figure::Instructions, 50.0, 200.0),
        bound(Figure::Atomics, 1.0, 4.5),
        bound(Figure::Allocations, 0.01, 0.1),
        bound(Figure::Syscalls, 1.0, 1.02),
        bound(Figure::Sleeps, 0.0001, 0.01),
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
    fn one_allocation_more_for_a_delivery_breaks_its_bound_and_is_blamed() {
        let counted = counted(150_000, 4000, 1030, 5);
        assert_eq!(broken(&counted), [Figure::Allocations]);
        let text = told(&judged(&counted), Path::new("profiles"));
        for part in [
            "1.030 allocations for a delivery, and at most 0.1",
            "1.030  deliver",
            "profiles/CASE.callgrind.2",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn one_lock_more_for_a_delivery_breaks_its_bound() {
        assert_eq!(broken(&counted(150_000, 6000, 30, 5)), [Figure::Atomics]);
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
    fn bounds_of_a_case_are_met_by_nothing_less_than_its_work() {
        for case in CASES {
            for bound in case.bounds {
                assert!(bound.least < bound.most, "{} {:?}", case.name, bound);
            }
            assert!(
                case.bounds
                    .iter()
                    .any(|bound| bound.figure == Figure::Allocations)
            );
        }
    }
}
