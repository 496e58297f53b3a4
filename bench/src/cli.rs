//! The command line.

use std::{
    env, io,
    io::Write,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    thread,
    time::Duration,
};

use clap::{Args, Parser, Subcommand};

use crate::{
    compare::{CompareError, Comparison, Limits},
    crowd::Venue,
    floor::{Floor, Mode},
    launch::Tail,
    load::{self, DRAIN_LIMIT, IdlePlan, LoadError, Pace, Plan},
    process::{self, TooFewDescriptors},
    wire::Framing,
};

/// Measures a chinwag server beside the floor: what a bare epoll loop needs for the same work.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Build it optimised (cargo build --release), or its figures mean nothing."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Floor(FloorArgs),
    Serve(ServeArgs),
    Load(LoadArgs),
    Idle(IdleArgs),
    Compare(CompareArgs),
}

/// Be the floor: one thread, one epoll, one write a member. Prints `listening ADDR`.
#[derive(Debug, Args)]
struct FloorArgs {
    /// Where to listen; port 0 lets the system choose.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// How objects are framed.
    #[arg(long, default_value = "lines")]
    framing: Framing,
    /// Whether messages that arrive together go out in one write.
    #[arg(long, default_value = "lone")]
    mode: Mode,
}

/// Be the floor in the shape of the server's program, to compare the floor with itself: both ratios
/// should be near 1.
#[derive(Debug, Args)]
struct ServeArgs {
    /// Taken since the server takes it, and not read.
    #[arg(long)]
    config: PathBuf,
}

/// Load one room of a server and check and measure what its members are sent.
#[derive(Debug, Args)]
struct LoadArgs {
    #[command(flatten)]
    venue: VenueArgs,
    /// Members of the room.
    #[arg(long, default_value_t = 1000)]
    members: usize,
    /// How many of the members send, in turns.
    #[arg(long, default_value_t = 1)]
    publishers: usize,
    /// Messages a second, by all publishers together.
    #[arg(long, default_value_t = 20.0, conflicts_with = "in_flight")]
    rate: f64,
    /// Instead of a rate: keep so many messages on their way.
    #[arg(long)]
    in_flight: Option<u64>,
    /// Bytes of each text.
    #[arg(long, default_value_t = 128)]
    payload: usize,
    /// Time before anything counts.
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    warm_up: Duration,
    /// The counted window.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// The server's process, to tell what it uses.
    #[arg(long)]
    pid: Option<u32>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Measure the memory that idle connections of a server take.
#[derive(Debug, Args)]
struct IdleArgs {
    #[command(flatten)]
    venue: VenueArgs,
    /// Connections that are counted.
    #[arg(long, default_value_t = 5000)]
    members: usize,
    /// Connections made before, so that what the server takes once is not counted.
    #[arg(long, default_value_t = 200)]
    before: usize,
    /// Log in and do not join the room.
    #[arg(long)]
    no_join: bool,
    /// Quiet time before each look at the memory.
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    settle: Duration,
    /// The server's process.
    #[arg(long)]
    pid: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct VenueArgs {
    /// The server's address.
    #[arg(long)]
    addr: SocketAddr,
    /// How it frames objects.
    #[arg(long, default_value = "lines")]
    framing: Framing,
    /// The room. It must be this program's own: a message of somebody else ends the run.
    #[arg(long, default_value = "bench", value_parser = room)]
    room: String,
    /// Longest time for all members to come in.
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    gather_limit: Duration,
}

/// Start floor and server in turns, load both alike and set them beside each other.
///
/// Exits with 1 if a limit is missed or a member was not sent every message once, in order.
#[derive(Debug, Args)]
struct CompareArgs {
    /// The server's program, started as `PROGRAM serve --config FILE` with a file written for it.
    #[arg(long)]
    server: PathBuf,
    /// Framings to compare.
    #[arg(long, value_delimiter = ',', default_value = "lines,websocket")]
    framings: Vec<Framing>,
    /// Repeats of every run.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Members of the room.
    #[arg(long, default_value_t = 1000)]
    members: usize,
    /// Messages a second of the lone workload.
    #[arg(long, default_value_t = 20.0)]
    rate: f64,
    /// Members that send them, in turns.
    #[arg(long, default_value_t = 20)]
    publishers: usize,
    /// Messages in flight of the batched workload, which one member sends; 0 leaves it out.
    #[arg(long, default_value_t = 16)]
    in_flight: u64,
    /// Bytes of each text.
    #[arg(long, default_value_t = 128)]
    payload: usize,
    /// Time before each counted window.
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    warm_up: Duration,
    /// The counted window of the lone workload.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// The counted window of the batched workload.
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    batched_duration: Duration,
    /// Idle connections to measure; 0 leaves them out.
    #[arg(long, default_value_t = 5000)]
    idle: usize,
    /// Quiet time before each look at the memory.
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    settle: Duration,
    /// Longest time for all members of a run to come in.
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    gather_limit: Duration,
    /// The median ratio of the lone workload has to be below this; 0 holds it to nothing.
    #[arg(long, default_value_t = 1.5)]
    max_ratio: f64,
    /// The same for the batched workload.
    #[arg(long, default_value_t = 0.0)]
    max_batched_ratio: f64,
    /// An idle connection may take at most so many KiB; 0 holds it to nothing.
    #[arg(long, default_value_t = 6.0)]
    max_idle_kib: f64,
    /// Print JSON, every run included.
    #[arg(long)]
    json: bool,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    /// The floor could not listen or go on.
    #[error("the floor failed")]
    Floor(#[source] io::Error),
    /// A run failed.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A comparison failed.
    #[error(transparent)]
    Compare(#[from] CompareError),
    /// The system did not tell or raise the limit of descriptors.
    #[error("raising the limit of open descriptors failed")]
    DescriptorLimit(#[source] io::Error),
    /// There are not enough.
    #[error(transparent)]
    Descriptors(#[from] TooFewDescriptors),
    /// The output could not be written.
    #[error("writing the result failed")]
    Output(#[source] io::Error),
}

impl CliError {
    /// What the process that was measured said last, if that is what failed.
    #[must_use]
    pub fn tail(&self) -> Option<&Tail> {
        match self {
            Self::Compare(error) => error.tail(),
            _ => None,
        }
    }
}

impl Cli {
    /// Does what the command line asks, with results on stdout and progress on stderr. Returns
    /// whether all limits were held and no member missed anything.
    ///
    /// # Errors
    /// If it could not be done.
    pub fn run(self) -> Result<bool, CliError> {
        let descriptors = process::raise_descriptor_limit().map_err(CliError::DescriptorLimit)?;
        match self.command {
            Command::Floor(args) => {
                let floor =
                    Floor::bind(args.listen, args.framing, args.mode).map_err(CliError::Floor)?;
                say(&format!("listening {}\n", floor.local_addr()))?;
                floor.run().map_err(CliError::Floor)?;
                Ok(true)
            }
            Command::Serve(args) => args.run(),
            Command::Load(args) => {
                process::check_descriptors(args.members, descriptors)?;
                let report = load::run(&args.plan())?;
                answer(args.json, &report)?;
                Ok(report.faults() == 0)
            }
            Command::Idle(args) => {
                process::check_descriptors(args.members + args.before, descriptors)?;
                answer(args.json, &load::idle(&args.plan())?)?;
                Ok(true)
            }
            Command::Compare(args) => args.run(descriptors),
        }
    }
}

impl ServeArgs {
    fn run(self) -> Result<bool, CliError> {
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut threads = Vec::new();
        for (transport, framing) in [("line", Framing::Lines), ("web", Framing::WebSocket)] {
            let floor = Floor::bind(anywhere, framing, Mode::Batch).map_err(CliError::Floor)?;
            progress(&format!(
                "INFO listening transport={transport} addr={}",
                floor.local_addr()
            ));
            threads.push(thread::spawn(move || floor.run()));
        }
        for thread in threads {
            thread
                .join()
                .expect("the floor's loop does not panic")
                .map_err(CliError::Floor)?;
        }
        Ok(true)
    }
}

impl LoadArgs {
    fn plan(&self) -> Plan {
        Plan {
            venue: self.venue.venue(),
            members: self.members,
            publishers: self.publishers,
            pace: self
                .in_flight
                .map_or(Pace::PerSecond(self.rate), Pace::InFlight),
            payload: self.payload,
            warm_up: self.warm_up,
            window: self.duration,
            gather_limit: self.venue.gather_limit,
            drain_limit: DRAIN_LIMIT,
            pid: self.pid,
        }
    }
}

impl IdleArgs {
    fn plan(&self) -> IdlePlan {
        IdlePlan {
            venue: self.venue.venue(),
            connections: self.members,
            before: self.before,
            join: !self.no_join,
            settle: self.settle,
            gather_limit: self.venue.gather_limit,
            pid: self.pid,
        }
    }
}

impl VenueArgs {
    fn venue(&self) -> Venue {
        Venue {
            addr: self.addr,
            framing: self.framing,
            room: self.room.clone(),
        }
    }
}

impl CompareArgs {
    fn run(self, descriptors: u64) -> Result<bool, CliError> {
        let json = self.json;
        let comparison = self.comparison()?;
        process::check_descriptors(comparison.largest_crowd(), descriptors)?;
        let outcome = comparison.run(progress)?;
        answer(json, &outcome)?;
        Ok(outcome.held())
    }

    fn comparison(self) -> Result<Comparison, CliError> {
        let limit = |value: f64| (value > 0.0).then_some(value);
        Ok(Comparison {
            floor: env::current_exe().map_err(CliError::Floor)?,
            server: self.server,
            framings: self.framings,
            repeats: self.repeats,
            members: self.members,
            rate: self.rate,
            publishers: self.publishers,
            in_flight: self.in_flight,
            payload: self.payload,
            warm_up: self.warm_up,
            window: self.duration,
            batched_window: self.batched_duration,
            idle: self.idle,
            settle: self.settle,
            gather_limit: self.gather_limit,
            limits: Limits {
                lone: limit(self.max_ratio),
                batched: limit(self.max_batched_ratio),
                idle_kib: limit(self.max_idle_kib),
            },
        })
    }
}

/// A room's name as the protocol has it, so that it needs no escapes.
fn room(name: &str) -> Result<String, &'static str> {
    let fits =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._:-".contains(&byte);
    if (1..=64).contains(&name.len()) && name.bytes().all(fits) {
        Ok(name.to_owned())
    } else {
        Err("a room is 1 to 64 of a-z 0-9 . _ : -")
    }
}

fn answer(
    json: bool,
    result: &(impl serde::Serialize + std::fmt::Display),
) -> Result<(), CliError> {
    if json {
        let json =
            serde_json::to_string_pretty(result).map_err(|error| CliError::Output(error.into()))?;
        say(&(json + "\n"))
    } else {
        say(&result.to_string())
    }
}

fn say(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(CliError::Output)
}

fn progress(line: &str) {
    // Nobody may be there to read it, which is no reason to stop.
    _ = writeln!(io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn rooms_are_checked() {
        assert_eq!(room("bench:1"), Ok("bench:1".to_owned()));
        for name in ["", "Lobby", "a b", "\"", &"x".repeat(65)] {
            assert!(room(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_rate_and_a_number_in_flight_exclude_each_other() {
        let line = [
            "chinwag-bench",
            "load",
            "--addr",
            "127.0.0.1:1",
            "--rate",
            "5",
            "--in-flight",
            "2",
        ];
        assert!(Cli::try_parse_from(line).is_err());
    }
}
