//! The floor, chinwag and peers under the same loads on the same machine, so that what disturbs one disturbs all.
//!
//! Every run gets a fresh process. In each repeat the cases come in another order, and the contenders of a case too,
//! one right after the other: a ratio is taken within one repeat, and reported are its median and spread. Peers play
//! every repeat of the cases in which processor times are set side by side, and every third one of the others. It is a
//! report and no test: it fails where something did not run, or a message was lost, repeated or reordered, and never
//! for want of speed.

mod case;
mod tell;

use std::{
    collections::BTreeMap,
    env, fs,
    hash::{BuildHasher, RandomState},
    io::{self, Write},
    path::PathBuf,
    time::Duration,
};

use case::What;
pub use case::{Case, Figure};
use clap::Args;
use serde::Serialize;

use crate::{
    clock::Stopwatch,
    command::{chain, writable},
    cost::Meter,
    interrupt,
    load::{ACQUAINT_LIMIT, LoadError, Run},
    login_storm,
    peers::{self, Contender, Opponent, Programs},
    process::{self, Machine, TooFewDescriptors},
    progress::Progress,
    report::Report,
    scenario::{self, Scenario, Settings, Subject},
    scrape,
    target::Names,
};

/// How often metrics are fetched for the cost of one time.
const SCRAPES: u32 = 100;

/// Set floor, chinwag and peers beside each other, and print Markdown
///
/// Exits with 1 if something did not run, or if a message was lost, repeated or reordered.
#[derive(Debug, Clone, Args)]
pub struct Compare {
    /// The chinwag program
    #[arg(long, value_name = "PATH")]
    server: PathBuf,
    /// A look at the most important cases, in about four minutes with 3 repeats
    #[arg(long)]
    quick: bool,
    /// Repeats of every case, but 1 of what comes out the same [default: 11; quick: 3, and 1 of what hardly varies]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: Option<u32>,
    /// Other servers that take part; each has to be installed
    #[arg(long, value_delimiter = ',')]
    peers: Vec<Contender>,
    /// Only cases whose name contains one of these
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    only: Vec<String>,
    /// Divide all numbers of members and times by this, to try the comparison itself
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    shrink: u32,
    /// What is measured, such as a commit, for the report
    #[arg(long, value_name = "TEXT")]
    of: Option<String>,
    /// Write every run as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the tables to a file, too
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Draw the processor time of every contender
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Why there is no comparison.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompareError {
    /// This program could not be found, to be the floor.
    #[error("finding this program failed")]
    Own(#[source] io::Error),
    /// A server is not installed.
    #[error("{0} is not installed")]
    Missing(&'static str),
    /// There is nothing to do.
    #[error("no case is called that; there are {0}")]
    Nothing(String),
    /// The system did not tell or raise the limit of descriptors.
    #[error("raising the limit of open descriptors failed")]
    DescriptorLimit(#[source] io::Error),
    /// The system does not let signals be caught.
    #[error("listening to signals failed")]
    Signals(#[source] io::Error),
    /// There are not enough.
    #[error(transparent)]
    Descriptors(#[from] TooFewDescriptors),
    /// A result could not be written.
    #[error("writing {to} failed")]
    Output {
        /// Where to.
        to: String,
        /// Why not.
        source: io::Error,
    },
}

impl CompareError {
    /// The error with its causes.
    #[must_use]
    pub fn explain(&self) -> String {
        chain(self)
    }
}

/// What came of one run.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// Of which case.
    pub case: String,
    /// Against whom.
    pub contender: Contender,
    /// In which repeat, from 1.
    pub repeat: u32,
    /// The figures, by name and unit.
    pub figures: BTreeMap<Figure, f64>,
    /// Everything else.
    pub report: Report,
}

impl Sample {
    /// How often something was not as it has to be.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.report.faults.total
    }
}

/// Everything that a comparison found.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// What was measured.
    pub of: Option<String>,
    /// How it was called.
    pub command: String,
    /// Where, and what went on there before the first run.
    pub machine: Machine,
    /// The load averages after the last run.
    pub load_after: String,
    /// Who took part, with what they say of their version.
    pub contenders: BTreeMap<Contender, String>,
    /// What was played.
    pub cases: Vec<Case>,
    /// Every run.
    pub samples: Vec<Sample>,
    /// What did not run, and why.
    pub failures: Vec<String>,
}

impl Compare {
    /// Carries it out: tables on stdout, a line for each run on stderr. Returns whether everything ran, and every
    /// message came once, in order.
    ///
    /// # Errors
    /// If it can't begin, or its results can't be written.
    pub fn run(&self) -> Result<bool, CompareError> {
        let programs = Programs {
            server: self.server.clone(),
            floor: env::current_exe().map_err(CompareError::Own)?,
            node_path: peers::node_path(),
        };
        let mut contenders = BTreeMap::new();
        for contender in [Contender::Floor, Contender::Chinwag]
            .iter()
            .chain(&self.peers)
        {
            let version = peers::version(*contender, &programs)
                .ok_or_else(|| CompareError::Missing(contender.name()))?;
            contenders.insert(*contender, version);
        }
        let cases = self.cases()?;
        for file in [&self.json, &self.markdown, &self.svg]
            .into_iter()
            .flatten()
        {
            writable(file).map_err(|source| CompareError::Output {
                to: file.display().to_string(),
                source,
            })?;
        }
        interrupt::heed().map_err(CompareError::Signals)?;
        let descriptors =
            process::raise_descriptor_limit().map_err(CompareError::DescriptorLimit)?;
        for case in &cases {
            process::check_descriptors(case.settings.connections(), descriptors)?;
        }
        let mut outcome = Outcome {
            of: self.of.clone(),
            command: env::args().skip(1).collect::<Vec<_>>().join(" "),
            machine: Machine::look(),
            load_after: String::new(),
            contenders,
            cases,
            samples: Vec::new(),
            failures: Vec::new(),
        };
        outcome.play(&programs);
        outcome.load_after = Machine::look().load;
        self.write(&outcome)?;
        Ok(outcome.is_sound())
    }

    fn cases(&self) -> Result<Vec<Case>, CompareError> {
        let all = case::all(&self.peers);
        let names: Vec<&str> = all.iter().map(|case| &*case.name).collect();
        let names = names.join(", ");
        let wanted = |case: &Case| match &self.only[..] {
            [] => !(self.quick && case.is_long),
            parts => parts.iter().any(|part| case.name.contains(part)),
        };
        let cases: Vec<Case> = all
            .into_iter()
            .filter(wanted)
            .map(|case| {
                let repeats = match (self.quick, case.is_contest()) {
                    (false, _) => 11,
                    (true, true) => 3,
                    // Memory, and what is set against the same run, hardly varies.
                    (true, false) => 1,
                };
                Case {
                    repeats: match case.once {
                        true => 1,
                        false => self.repeats.unwrap_or(repeats),
                    },
                    ..case.shrunk(self.shrink)
                }
            })
            .collect();
        if cases.is_empty() {
            return Err(CompareError::Nothing(names));
        }
        Ok(cases)
    }

    fn write(&self, outcome: &Outcome) -> Result<(), CompareError> {
        let output = |to: &str, source| CompareError::Output {
            to: to.to_owned(),
            source,
        };
        let markdown = outcome.markdown();
        let mut out = io::stdout().lock();
        out.write_all(markdown.as_bytes())
            .and_then(|()| out.flush())
            .map_err(|error| output("the result", error))?;
        let json = || {
            serde_json::to_string_pretty(outcome)
                .expect("a report has text keys and finite numbers")
        };
        let files = [
            (
                &self.markdown,
                &(|| markdown.clone()) as &dyn Fn() -> String,
            ),
            (&self.json, &json),
            (&self.svg, &|| outcome.svg()),
        ];
        for (file, text) in files {
            if let Some(file) = file {
                fs::write(file, text())
                    .map_err(|error| output(&file.display().to_string(), error))?;
            }
        }
        Ok(())
    }
}

impl Outcome {
    /// Whether everything ran, and every message came once, in order.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.failures.is_empty() && self.samples.iter().all(|sample| sample.faults() == 0)
    }

    fn play(&mut self, programs: &Programs) {
        let repeats = self
            .cases
            .iter()
            .map(|case| case.repeats)
            .max()
            .unwrap_or(0);
        let dice = RandomState::new();
        let mut schedule = Schedule::of(&self.cases);
        for repeat in 1..=repeats {
            let mut cases: Vec<usize> = (0..self.cases.len())
                .filter(|&at| self.cases[at].repeats >= repeat)
                .collect();
            cases.sort_by_cached_key(|at| dice.hash_one((repeat, at)));
            for at in cases {
                let case = self.cases[at].clone();
                let mut contenders = case.contenders_of(repeat);
                contenders.sort_by_cached_key(|who| dice.hash_one((repeat, at, who)));
                for contender in contenders {
                    if interrupt::asked() {
                        // What ran so far is still worth telling; that it is not all fails.
                        self.failures.push("the rest: interrupted".to_owned());
                        return;
                    }
                    let line = self.sample(&case, contender, repeat, programs);
                    let left = schedule.done(&case);
                    // Nobody may be there to read it, which is no reason to stop.
                    _ = writeln!(io::stderr(), "{repeat} of {repeats}: {line}; {left}");
                }
            }
        }
    }

    /// Plays a case against a contender and keeps what came of it. Returns that in a line.
    fn sample(
        &mut self,
        case: &Case,
        contender: Contender,
        repeat: u32,
        programs: &Programs,
    ) -> String {
        let name = format!("{} of {}", contender.name(), case.name);
        match play(case, contender, programs) {
            Ok((figures, report)) => {
                let mut line = name.clone();
                for (figure, value) in &figures {
                    line += &format!(", {value:.*} {}", figure.digits(), figure.unit());
                }
                if report.faults.total > 0 {
                    line += &format!(", {} FAULTS", report.faults.total);
                }
                self.samples.push(Sample {
                    case: case.name.clone(),
                    contender,
                    repeat,
                    figures,
                    report,
                });
                line
            }
            Err(why) => {
                let failure = format!("{name}, repeat {repeat}: {why}");
                self.failures.push(failure);
                format!("{name} FAILED: {why}")
            }
        }
    }
}

/// How long what is left will take: as long, for what it has to wait for at least, as what was played so far.
#[derive(Debug)]
struct Schedule {
    watch: Stopwatch,
    done: Duration,
    left: Duration,
}

impl Schedule {
    fn of(cases: &[Case]) -> Self {
        Self {
            watch: Stopwatch::start(),
            done: Duration::ZERO,
            left: cases.iter().map(Case::all_at_least).sum(),
        }
    }

    /// One more run of `case` is done: what is left, in words.
    fn done(&mut self, case: &Case) -> String {
        self.done += case.at_least();
        self.left = self.left.saturating_sub(case.at_least());
        let pace = self.watch.elapsed().as_secs_f64() / self.done.as_secs_f64();
        remaining(self.left.as_secs_f64() * pace)
    }
}

fn remaining(seconds: f64) -> String {
    match seconds {
        0.0 => "that was all".to_owned(),
        ..90.0 => format!("about {seconds:.0} s left"),
        _ => format!("about {:.0} min left", seconds / 60.0),
    }
}

type Played = (BTreeMap<Figure, f64>, Report);

/// Plays one case against one contender, in a fresh process.
fn play(case: &Case, contender: Contender, programs: &Programs) -> Result<Played, String> {
    let mut names = Names::own();
    let Settings {
        members, logins, ..
    } = case.settings;
    let opponent = if logins > 0 {
        names.password = Some(login_storm::PASSWORD.to_owned());
        let users = login_storm::password_file(&names, members, logins);
        Opponent::start_for(&users, programs)
    } else if let Some(timeout) = case.timeout {
        Opponent::start_patient(case.over, timeout, programs)
    } else {
        Opponent::start(contender, case.over, case.mode, programs)
    };
    let mut opponent = opponent.map_err(|error| chain(&error))?;
    let subject = Subject {
        target: opponent.target(),
        pid: Some(opponent.pid()),
        names,
    };
    let progress = Progress::nowhere();
    let done = match case.what {
        What::Scenario(scenario) => scenario::run(scenario, &case.settings, &subject, &progress)
            .map(|report| (case.figures(&report), report))
            .map_err(|error| chain(&error)),
        What::Scrape => scrape_cost(case, &subject, &opponent, &progress),
    };
    done.map_err(|why| format!("{why}; {}", opponent.epitaph().trim_end()))
}

/// What share of the server's processor time one fetch of metrics a second would take, under the case's load.
fn scrape_cost(
    case: &Case,
    subject: &Subject,
    opponent: &Opponent,
    progress: &Progress,
) -> Result<Played, String> {
    let told = |error: LoadError| chain(&error);
    let (Some(metrics), Some(&(name, pace))) = (opponent.metrics(), case.settings.paces.first())
    else {
        return Err("there are no metrics".to_owned());
    };
    let settings = &case.settings;
    let mut run = Run::new(settings.load(subject, Stopwatch::start()), progress).map_err(told)?;
    run.gather(settings.members, true).map_err(told)?;
    run.acquaint(ACQUAINT_LIMIT).map_err(told)?;
    run.warm_up(pace, settings.warm_up).map_err(told)?;
    let part = run
        .measure(name, pace, settings.window, subject.pid)
        .map_err(told)?;
    let used = part.server.ok_or("the server's process is not known")?;
    let meter = Meter::read(opponent.pid()).map_err(|error| chain(&error))?;
    for _ in 0..SCRAPES {
        scrape::fetch(metrics).map_err(|error| format!("fetching metrics failed: {error}"))?;
    }
    let scraped =
        Meter::since(&meter, settings.window, u64::from(SCRAPES)).map_err(|error| chain(&error))?;
    let seconds_each = scraped.cpu_seconds / f64::from(SCRAPES);
    let percent = 100.0 * seconds_each / (used.cpu_percent / 100.0);
    let mut report = Report::new(Scenario::Lone, subject);
    report.parts.push(part);
    report.judge(&[run.verdict().map_err(told)?]);
    Ok((BTreeMap::from([(Figure::ScrapePercent, percent)]), report))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        floor::Mode,
        target::{Over, Target},
    };

    fn sample(case: &str, contender: Contender, repeat: u32, us: f64) -> Sample {
        let subject = Subject {
            target: Target::here(Over::Tcp.dialect(), ([127, 0, 0, 1], 1).into()),
            pid: None,
            names: Names::own(),
        };
        Sample {
            case: case.to_owned(),
            contender,
            repeat,
            // Two deliveries shared a read.
            figures: BTreeMap::from([(Figure::CpuUs, us), (Figure::CpuUsRead, 2.0 * us)]),
            report: Report::new(Scenario::Lone, &subject),
        }
    }

    fn outcome(samples: Vec<Sample>) -> Outcome {
        Outcome {
            of: None,
            command: "compare".to_owned(),
            machine: Machine::look(),
            load_after: String::new(),
            contenders: [Contender::Floor, Contender::Chinwag, Contender::Nats]
                .map(|who| (who, "1".to_owned()))
                .into(),
            cases: case::all(&[Contender::Nats]),
            samples,
            failures: Vec::new(),
        }
    }

    #[test]
    fn what_is_left_is_told_by_how_long_the_rest_took() {
        let case = Case {
            repeats: 2,
            ..case::all(&[])[0].clone()
        };
        let mut schedule = Schedule::of(std::slice::from_ref(&case));
        assert_eq!(schedule.left, 4 * case.at_least());
        for _ in 0..3 {
            assert!(schedule.done(&case).ends_with("left"));
        }
        assert_eq!(schedule.done(&case), "that was all");
        assert_eq!(remaining(89.0), "about 89 s left");
        assert_eq!(remaining(1234.0), "about 21 min left");
    }

    #[test]
    fn ratios_are_taken_within_a_repeat() {
        let case = "lone-1000-tcp";
        let idle = |case: &str, contender, kib| Sample {
            figures: BTreeMap::from([(Figure::KibPerConnection, kib)]),
            ..sample(case, contender, 1, 0.0)
        };
        // A machine that was twice as slow in the second repeat, for both.
        let mut outcome = outcome(vec![
            sample(case, Contender::Floor, 1, 2.0),
            sample(case, Contender::Chinwag, 1, 2.2),
            sample(case, Contender::Floor, 2, 4.0),
            sample(case, Contender::Chinwag, 2, 4.4),
            sample(case, Contender::Chinwag, 3, 100.0),
            sample("batched-ws", Contender::Chinwag, 1, 0.3),
            sample("batched-ws", Contender::Chinwag, 2, 0.6),
            sample("batched-ws", Contender::Uws, 1, 0.2),
            sample("batched-ws", Contender::Uws, 2, 0.5),
            idle("idle-ws", Contender::Floor, 3.0),
            idle("idle-ws", Contender::Chinwag, 4.5),
            sample("polling-http", Contender::Chinwag, 1, 4.4),
            sample("polling-gzip-http", Contender::Chinwag, 1, 4.4),
            sample("lone-1000-tls", Contender::Chinwag, 1, 2.9),
            sample(case, Contender::Nats, 1, 11.1),
        ]);
        // How wide the columns are is another matter.
        let text = outcome.markdown();
        let words: Vec<&str> = text.split_whitespace().collect();
        let text = words.join(" ");
        for row in [
            "| 3.000 (2.000–4.000) | 4.400 (2.200–100.000) | 1.10 | ≤ 1.25 × floor | yes | 6.00 : 8.80 | 1.10 |",
            "| 4.400 | 2.00 | ≤ 2.5 × lone-1000-tcp | yes | – | – |",
            "| 4.400 | – | beside polling-2k-http | – | – | – |",
            "| 2.900 | 0.35 | ≤ lone-1000-tcp + 0.45 × floor | yes | – | – |",
            "| 11.100 3.70× |",
            // More than uWebSockets in either repeat, while the floor is not there.
            "| – | 0.450 (0.300–0.600) | 1.35 (1.20–1.50) | ≤ 1 × uws | **no** | – | – |",
            "| 3.00 | 4.50 | – | ≤ 4 | **no** | – | – |",
            "In none of 15 runs",
        ] {
            assert!(text.contains(row), "{row} is missing in {text}");
        }
        let held = |outcome: &Outcome| {
            let text = outcome.markdown();
            let row = text.lines().find(|line| line.contains("× uws")).unwrap();
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            (cells[5].to_owned(), cells[7].to_owned())
        };
        // Within each repeat: a machine that is slow in one of them is no excuse, nor a fault.
        outcome.samples[8].figures.insert(Figure::CpuUs, 0.7);
        outcome.samples[5].figures.insert(Figure::CpuUs, 0.19);
        assert_eq!(
            held(&outcome),
            ("0.90 (0.86–0.95)".to_owned(), "yes".to_owned())
        );
        // Where it does not install, it is no goal.
        outcome
            .samples
            .retain(|sample| sample.contender != Contender::Uws);
        assert_eq!(held(&outcome), ("–".to_owned(), "–".to_owned()));
        assert!(outcome.is_sound());
        assert!(outcome.svg().contains("<circle"));
    }

    #[test]
    fn faults_and_what_did_not_run_are_told_and_fail() {
        let mut outcome = outcome(vec![sample("batched-ws", Contender::Chinwag, 1, 1.0)]);
        assert!(outcome.is_sound());
        outcome.samples[0].report.faults.lost = 3;
        outcome.samples[0].report.faults.total = 3;
        assert!(!outcome.is_sound());
        let text = outcome.markdown();
        assert!(
            text.contains("FAULTS: chinwag of batched-ws, repeat 1"),
            "{text}"
        );
        outcome.samples.clear();
        assert!(outcome.is_sound());
        let failure = "ws of batched-ws, repeat 1: gone".to_owned();
        outcome.failures.push(failure);
        assert!(!outcome.is_sound());
        assert!(outcome.markdown().contains("DID NOT RUN: ws of batched-ws"));
    }

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        compare: Compare,
    }

    fn cases(line: &[&str]) -> Result<Vec<Case>, CompareError> {
        let words = ["x", "--server", "chinwag"].iter().chain(line);
        let line = <Line as clap::Parser>::try_parse_from(words).unwrap();
        line.compare.cases()
    }

    #[test]
    fn a_quick_look_has_fewer_cases_and_repeats() {
        let (quick, full) = (cases(&["--quick"]).unwrap(), cases(&[]).unwrap());
        assert!(quick.len() < full.len());
        assert!(quick.iter().all(|case| case.repeats <= 3));
        let often = |case: &Case| if case.once { 1 } else { 11 };
        assert!(full.iter().all(|case| case.repeats == often(case)));
        let one = cases(&["--only", "batched-ws", "--repeats", "2"]).unwrap();
        assert_eq!(
            (one.len(), one[0].repeats, one[0].mode),
            (1, 2, Mode::Batch)
        );
        assert!(cases(&["--only", "nothing"]).is_err());
    }
}
