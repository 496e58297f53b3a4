//! Floor and server in turns on the same machine, so that what disturbs one disturbs the other.
//!
//! Every run gets a fresh process on a port of its own, and every repeat changes who comes first. A
//! ratio is taken within one repeat; reported are its median and spread. Processes are ended by
//! their handles, also when a run fails.

use std::{
    env, fmt,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde::Serialize;

use crate::{
    crowd::Venue,
    floor::Mode,
    launch::{LaunchError, Running, Speaks, Tail},
    load::{
        self, DRAIN_LIMIT, IdlePlan, IdleReport, LoadError, LoadReport, Pace, Plan, ServerCost,
    },
    process::Machine,
    report::{Spread, table},
    wire::Framing,
};

/// The room of every run.
const ROOM: &str = "bench";
/// Connections made before those that are counted as idle.
const BEFORE_IDLE: usize = 200;

/// What the server is started with: both transports on ports that the system chooses, everybody let
/// in, no rate in the way, nobody told of who comes and goes.
pub const SERVER_DOCUMENT: &str = r#"# Written by chinwag-bench for one measurement.
[server]
shutdown_grace = "1s"

[transports.line]
kind = "tcp"
bind = "127.0.0.1:0"
auth = ["guests"]
timeout = "0s"

[transports.web]
kind = "websocket"
bind = "127.0.0.1:0"
auth = ["guests"]
timeout = "0s"

[authenticators.guests]
kind = "anonymous"

[sessions]
resume_window = "0s"

[limits]
sends = "unlimited"
commands = "unlimited"

[room]
presence = "off"

[log]
format = "text"
level = "info"
"#;

/// The whole comparison.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// The server's program, started as `PROGRAM serve --config FILE`.
    pub server: PathBuf,
    /// This program, started as `PROGRAM floor …`.
    pub floor: PathBuf,
    /// Over which framings; at least one.
    pub framings: Vec<Framing>,
    /// Repeats of every run; at least 1.
    pub repeats: u32,
    /// Members of the room.
    pub members: usize,
    /// Messages a second of the lone workload.
    pub rate: f64,
    /// Members that send them.
    pub publishers: usize,
    /// Messages in flight of the batched workload, which one member sends; 0 leaves it out.
    pub in_flight: u64,
    /// Bytes of each text.
    pub payload: usize,
    /// Time before each counted window.
    pub warm_up: Duration,
    /// The counted window of the lone workload.
    pub window: Duration,
    /// The counted window of the batched workload.
    pub batched_window: Duration,
    /// Idle connections; 0 leaves them out.
    pub idle: usize,
    /// Quiet time before each look at the memory.
    pub settle: Duration,
    /// Longest time for all members of a run to come in.
    pub gather_limit: Duration,
    /// What the server is held to.
    pub limits: Limits,
}

/// What the server is held to. `None` holds it to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Limits {
    /// The median ratio of lone messages has to be below this.
    pub lone: Option<f64>,
    /// The same for messages in flight together.
    pub batched: Option<f64>,
    /// An idle connection may take at most so many KiB, in the median.
    pub idle_kib: Option<f64>,
}

/// Two ways to load a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Workload {
    /// Messages at a rate, each alone: the floor writes each by itself.
    Lone,
    /// Messages in flight together: the floor writes together what arrives together.
    Batched,
}

/// Floor and server under one workload over one framing.
#[derive(Debug, Clone, Serialize)]
pub struct Contest {
    /// The workload.
    pub workload: Workload,
    /// The framing.
    pub framing: Framing,
    /// The floor's runs, one a repeat.
    pub floor: Vec<LoadReport>,
    /// The server's, likewise.
    pub server: Vec<LoadReport>,
    /// The server's processor time for a delivery over the floor's, within each repeat.
    pub ratio: Spread,
    /// What the ratio has to be below.
    pub limit: Option<f64>,
}

/// What idle connections of one framing take.
#[derive(Debug, Clone, Serialize)]
pub struct Idle {
    /// The framing.
    pub framing: Framing,
    /// The server's runs.
    pub server: Vec<IdleReport>,
    /// KiB for one connection.
    pub kib: Spread,
    /// What it may be at most.
    pub limit: Option<f64>,
}

/// Everything that a comparison found.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Where, as found before the first run.
    pub machine: Machine,
    /// The contests.
    pub contests: Vec<Contest>,
    /// The idle connections.
    pub idle: Vec<Idle>,
}

/// Why a comparison gave no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompareError {
    /// A process did not start.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A run failed.
    #[error("measuring {program} over {framing} failed; it {state}")]
    Run {
        /// Which.
        program: String,
        /// Over which framing.
        framing: &'static str,
        /// Whether the process still runs.
        state: String,
        /// What it said last.
        tail: Tail,
        /// What happened.
        source: Box<LoadError>,
    },
    /// The server's document could not be written.
    #[error("writing the server's configuration failed")]
    Document(#[source] io::Error),
    /// A run whose ratio means nothing.
    #[error("the floor over {0} used no processor time: the window is too short")]
    Nothing(&'static str),
}

impl CompareError {
    /// What the process that failed said last.
    #[must_use]
    pub fn tail(&self) -> Option<&Tail> {
        match self {
            Self::Launch(LaunchError::NotListening { tail, .. }) | Self::Run { tail, .. } => {
                Some(tail)
            }
            _ => None,
        }
    }
}

impl Comparison {
    /// The most connections that a run will have.
    #[must_use]
    pub fn largest_crowd(&self) -> usize {
        let idle = if self.idle == 0 {
            0
        } else {
            self.idle + BEFORE_IDLE
        };
        self.members.max(idle)
    }

    /// Carries it out, telling `progress` of every run.
    ///
    /// # Errors
    /// If a process does not start or ends, or a run fails: figures of some repeats only would be
    /// no comparison.
    pub fn run(&self, mut progress: impl FnMut(&str)) -> Result<Outcome, CompareError> {
        let machine = Machine::look();
        let document = self.document().map_err(CompareError::Document)?;
        let runner = Runner {
            comparison: self,
            document: document.path(),
        };
        let mut workloads = vec![Workload::Lone];
        workloads.extend((self.in_flight > 0).then_some(Workload::Batched));
        let pairs: Vec<(Workload, Framing)> = workloads
            .iter()
            .flat_map(|&workload| {
                self.framings
                    .iter()
                    .map(move |&framing| (workload, framing))
            })
            .collect();
        let mut floors = vec![Vec::new(); pairs.len()];
        let mut servers = vec![Vec::new(); pairs.len()];
        for repeat in 0..self.repeats {
            for (at, &(workload, framing)) in pairs.iter().enumerate() {
                let floor_first = repeat % 2 == 0;
                for floor in [floor_first, !floor_first] {
                    let (who, program) = if floor {
                        (Program::Floor(workload.mode()), "floor")
                    } else {
                        (Program::Server, "server")
                    };
                    let report = runner.load(who, workload, framing)?;
                    let cpu = cpu(&report);
                    progress(&format!(
                        "repeat {} of {}: {} over {}: {program} {cpu:.3} us a delivery",
                        repeat + 1,
                        self.repeats,
                        workload.name(),
                        framing.name(),
                    ));
                    let reports = if floor { &mut floors } else { &mut servers };
                    reports[at].push(report);
                }
            }
        }
        let contests = pairs
            .into_iter()
            .zip(floors.into_iter().zip(servers))
            .map(|((workload, framing), (floor, server))| {
                self.contest(workload, framing, floor, server)
            })
            .collect::<Result<_, _>>()?;
        let idle = if self.idle == 0 {
            Vec::new()
        } else {
            self.idle_runs(&runner, &mut progress)?
        };
        Ok(Outcome {
            machine,
            contests,
            idle,
        })
    }

    fn document(&self) -> io::Result<tempfile::NamedTempFile> {
        let mut file = tempfile::Builder::new()
            .prefix("chinwag-bench-")
            .suffix(".toml")
            .tempfile()?;
        file.write_all(SERVER_DOCUMENT.as_bytes())?;
        file.flush()?;
        Ok(file)
    }

    fn contest(
        &self,
        workload: Workload,
        framing: Framing,
        floor: Vec<LoadReport>,
        server: Vec<LoadReport>,
    ) -> Result<Contest, CompareError> {
        let ratios = floor
            .iter()
            .zip(&server)
            .map(|(floor, server)| cpu(server) / cpu(floor));
        let ratio = Spread::of(ratios)
            .filter(|ratio| ratio.max.is_finite())
            .ok_or_else(|| CompareError::Nothing(framing.name()))?;
        let limit = match workload {
            Workload::Lone => self.limits.lone,
            Workload::Batched => self.limits.batched,
        };
        Ok(Contest {
            workload,
            framing,
            floor,
            server,
            ratio,
            limit,
        })
    }

    fn idle_runs(
        &self,
        runner: &Runner<'_>,
        progress: &mut impl FnMut(&str),
    ) -> Result<Vec<Idle>, CompareError> {
        let mut found = Vec::new();
        for &framing in &self.framings {
            let mut server = Vec::new();
            // Memory hardly varies: more repeats would only cost time.
            for _ in 0..self.repeats.min(3) {
                let report = runner.idle(framing)?;
                progress(&format!(
                    "idle over {}: {:.2} KiB a connection",
                    framing.name(),
                    report.kib_per_connection
                ));
                server.push(report);
            }
            let kib = Spread::of(server.iter().map(|report| report.kib_per_connection))
                .ok_or_else(|| CompareError::Nothing(framing.name()))?;
            found.push(Idle {
                framing,
                server,
                kib,
                limit: self.limits.idle_kib,
            });
        }
        Ok(found)
    }
}

fn cpu(run: &LoadReport) -> f64 {
    cost(run, |cost| cost.cpu_us_per_delivery)
}

/// A figure of the server's process. Every run here names its process.
fn cost(run: &LoadReport, figure: fn(&ServerCost) -> f64) -> f64 {
    run.server.as_ref().map_or(f64::NAN, figure)
}

impl Workload {
    /// The word that reports use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lone => "lone",
            Self::Batched => "batched",
        }
    }

    fn mode(self) -> Mode {
        match self {
            Self::Lone => Mode::Lone,
            Self::Batched => Mode::Batch,
        }
    }
}

impl Contest {
    /// Whether the ratio is within its limit and no run had a fault.
    #[must_use]
    pub fn held(&self) -> bool {
        let faultless = |run: &LoadReport| run.faults() == 0;
        self.in_limit() && self.floor.iter().chain(&self.server).all(faultless)
    }

    fn in_limit(&self) -> bool {
        self.limit.is_none_or(|limit| self.ratio.median < limit)
    }
}

impl Idle {
    /// Whether it is within its limit.
    #[must_use]
    pub fn held(&self) -> bool {
        self.limit.is_none_or(|limit| self.kib.median <= limit)
    }
}

impl Outcome {
    /// Whether every limit is held and no run had a fault.
    #[must_use]
    pub fn held(&self) -> bool {
        self.contests.iter().all(Contest::held) && self.idle.iter().all(Idle::held)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine {
            cores,
            cpu,
            kernel,
            load,
            unoptimised,
        } = &self.machine;
        writeln!(f, "machine: {cores} cores, {cpu}, Linux {kernel}")?;
        writeln!(f, "load averages before: {load}")?;
        if *unoptimised {
            writeln!(
                f,
                "this is a build without optimisation: NO FIGURE HERE IS WORTH ANYTHING"
            )?;
        }
        writeln!(
            f,
            "\nCPU us a delivery, median (min-max); ratio within each repeat\n"
        )?;
        write!(f, "{}", self.cost_table())?;
        writeln!(
            f,
            "\nmedians beside them; rates and latencies want a quiet machine\n"
        )?;
        write!(f, "{}", self.detail_table())?;
        if !self.idle.is_empty() {
            writeln!(f, "\nidle connections in the room, KiB each\n")?;
            write!(f, "{}", self.idle_table())?;
        }
        let verdict = if self.held() {
            "all limits are held"
        } else {
            "A LIMIT IS MISSED OR A RUN HAD A FAULT"
        };
        writeln!(f, "\n{verdict}")
    }
}

impl Outcome {
    fn cost_table(&self) -> String {
        let figure = |runs: &[LoadReport]| {
            Spread::of(runs.iter().map(cpu))
                .map_or_else(String::new, |spread| format!("{spread:.3}"))
        };
        let row = |contest: &Contest| {
            vec![
                contest.workload.name().to_owned(),
                contest.framing.name().to_owned(),
                figure(&contest.floor),
                figure(&contest.server),
                contest.ratio.to_string(),
                verdict("<", contest.limit, contest.in_limit()),
            ]
        };
        let rows: Vec<_> = self.contests.iter().map(row).collect();
        table(
            &["workload", "framing", "floor", "server", "ratio", "limit"],
            &rows,
        )
    }

    fn detail_table(&self) -> String {
        let row = |contest: &Contest, who: &str, runs: &[LoadReport]| {
            let median = |digits: usize, value: fn(&LoadReport) -> f64| {
                let spread = Spread::of(runs.iter().map(value));
                spread.map_or_else(String::new, |spread| format!("{:.digits$}", spread.median))
            };
            let faults: u64 = runs.iter().map(LoadReport::faults).sum();
            vec![
                contest.workload.name().to_owned(),
                contest.framing.name().to_owned(),
                who.to_owned(),
                median(0, |run| run.deliveries_per_second),
                median(2, |run| run.deliveries_per_read),
                median(0, |run| run.latency_us.p50 as f64),
                median(0, |run| run.latency_us.p99 as f64),
                median(4, |run| {
                    cost(run, |cost| cost.voluntary_switches_per_delivery)
                }),
                median(0, |run| cost(run, |cost| cost.client_cpu_percent)),
                median(0, |run| cost(run, |cost| cost.other_cpu_percent)),
                if faults == 0 {
                    "none".to_owned()
                } else {
                    format!("{faults} FAULTS")
                },
            ]
        };
        let rows: Vec<_> = self
            .contests
            .iter()
            .flat_map(|contest| {
                [
                    row(contest, "floor", &contest.floor),
                    row(contest, "server", &contest.server),
                ]
            })
            .collect();
        let head = [
            "workload",
            "framing",
            "who",
            "deliveries/s",
            "a read",
            "p50 us",
            "p99 us",
            "sleeps",
            "client %",
            "others %",
            "faults",
        ];
        table(&head, &rows)
    }

    fn idle_table(&self) -> String {
        let row = |idle: &Idle| {
            let count = idle.server.first().map_or(0, |report| report.connections);
            vec![
                idle.framing.name().to_owned(),
                count.to_string(),
                idle.kib.to_string(),
                verdict("<=", idle.limit, idle.held()),
            ]
        };
        let rows: Vec<_> = self.idle.iter().map(row).collect();
        table(&["framing", "connections", "server", "limit"], &rows)
    }
}

fn verdict(sign: &str, limit: Option<f64>, held: bool) -> String {
    let word = if held { "held" } else { "MISSED" };
    limit.map_or_else(
        || "-".to_owned(),
        |limit| format!("{sign} {limit:.2} {word}"),
    )
}

/// Which program a run is about.
#[derive(Debug, Clone, Copy)]
enum Program {
    Floor(Mode),
    Server,
}

struct Runner<'c> {
    comparison: &'c Comparison,
    document: &'c Path,
}

impl Runner<'_> {
    fn load(
        &self,
        program: Program,
        workload: Workload,
        framing: Framing,
    ) -> Result<LoadReport, CompareError> {
        let asked = self.comparison;
        let (publishers, pace, window) = match workload {
            Workload::Lone => (asked.publishers, Pace::PerSecond(asked.rate), asked.window),
            Workload::Batched => (1, Pace::InFlight(asked.in_flight), asked.batched_window),
        };
        self.against(program, framing, |venue, pid| {
            load::run(&Plan {
                venue,
                members: asked.members,
                publishers,
                pace,
                payload: asked.payload,
                warm_up: asked.warm_up,
                window,
                gather_limit: asked.gather_limit,
                drain_limit: DRAIN_LIMIT,
                pid: Some(pid),
            })
        })
    }

    fn idle(&self, framing: Framing) -> Result<IdleReport, CompareError> {
        self.against(Program::Server, framing, |venue, pid| {
            load::idle(&IdlePlan {
                venue,
                connections: self.comparison.idle,
                before: BEFORE_IDLE,
                join: true,
                settle: self.comparison.settle,
                gather_limit: self.comparison.gather_limit,
                pid,
            })
        })
    }

    /// Starts `program`, does `work` against it and ends it.
    fn against<R>(
        &self,
        program: Program,
        framing: Framing,
        work: impl FnOnce(Venue, u32) -> Result<R, LoadError>,
    ) -> Result<R, CompareError> {
        let name = transport_name(framing);
        let (mut running, addr) = match program {
            Program::Floor(mode) => {
                let mut command = Command::new(&self.comparison.floor);
                command.args([
                    "floor",
                    "--listen",
                    "127.0.0.1:0",
                    "--framing",
                    framing.name(),
                    "--mode",
                    mode.name(),
                ]);
                Running::start(command, Speaks::OnStdout, name)?
            }
            Program::Server => {
                let mut command = Command::new(&self.comparison.server);
                command
                    .args(["serve", "--config"])
                    .arg(self.document)
                    .env("NO_COLOR", "1");
                // What the caller has set for another server must not bend this one.
                for (name, _) in env::vars_os()
                    .filter(|(name, _)| name.to_string_lossy().starts_with("CHINWAG_"))
                {
                    command.env_remove(name);
                }
                Running::start(command, Speaks::OnStderr, name)?
            }
        };
        let venue = Venue {
            addr,
            framing,
            room: ROOM.to_owned(),
        };
        work(venue, running.pid()).map_err(|source| {
            let state = running.state();
            let (program, tail) = (running.program().to_owned(), running.tail());
            CompareError::Run {
                program,
                framing: framing.name(),
                state,
                tail,
                source: Box::new(source),
            }
        })
    }
}

/// The table's name in [`SERVER_DOCUMENT`].
fn transport_name(framing: Framing) -> &'static str {
    match framing {
        Framing::Lines => "line",
        Framing::WebSocket => "web",
    }
}
