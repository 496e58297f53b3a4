//! `chinwag bench`: its command line, and how it is carried out.

use std::{
    env,
    error::Error,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::Args;

use crate::{
    crowd::CrowdError,
    interrupt,
    load::{LoadError, Pace},
    login_storm,
    process::{self, TooFewDescriptors},
    progress::Progress,
    report::Report,
    scenario::{self, Scenario, Settings, Subject},
    served::{ServeError, Served},
    sockets,
    stream::TlsFiles,
    target::{Dialect, Names, Over, Target, TargetError},
};

/// Where every user's password is taken from.
const PASSWORD: &str = "CHINWAG_PASSWORD";

/// The most users that log in at once: each has a thread here.
const MOST_LOGINS: usize = 2000;
/// How long system calls are counted at most: the server is slow meanwhile.
const TRACED: Duration = Duration::from_secs(2);
/// Longest time that a part of a run may take.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);

const HELP: &str = "\
Scenarios, with defaults that options override:
  lone               a room of 1,000, 20 messages a second
  batched            a room of 1,000, 16 messages on their way at any time
  many-rooms         500 rooms of 10: 1,500 messages a second in all, and then
                     4 on their way in each room
  idle               5,000 connections without traffic: memory, and bytes a
                     minute, over as long as signs of life take to come round
  join-storm         5,000 members join one room at once
  login-storm        200 users log in at once with passwords, beside a room of
                     100 with 50 messages a second
  slow-readers       4 of 100 members stop reading: what becomes of them, and
                     what it costs the others
  small-beside-huge  a room of 10 beside a saturated room of 4,000
  polling            2,000 polls that wait, 10 messages a second

Every member checks the number of every event, and every text. Latency runs from
when a message was due, so that a server that stops for a while can't hide it.

Examples:
  chinwag bench                        Try it, on a server of its own
  chinwag bench batched --over ws -n 5000
  chinwag bench lone tcp://127.0.0.1:4020
  chinwag bench idle http://127.0.0.1:8080 --json
  chinwag bench lone wss://chat.example --ca ca.pem

Limits of the server may get in the way; configs/bench.toml lifts them. Where
users need a password, it is taken from CHINWAG_PASSWORD.

Exit codes: 0 done, and each member was sent each event once, in order; 1 not
so, or it could not be done; 64 the command line is wrong
";

/// Load a server, check every delivery and tell what it costs
#[derive(Debug, Clone, Args)]
#[command(after_help = HELP)]
pub struct Bench {
    /// What to find out, see below; `lone` where it is left out
    #[arg(value_name = "SCENARIO")]
    first: Option<First>,
    /// tcp://HOST:PORT, ws://HOST:PORT/v1/ws or http://HOST:PORT; tls, wss or https through TLS.
    /// Without it a server is started for the time of the run
    url: Option<String>,
    /// The program to start as that server [default: this one]
    #[arg(long, value_name = "PATH", conflicts_with_all = ["url", "pid"])]
    server: Option<PathBuf>,
    /// How to come in there [default: tcp; http for polling]
    #[arg(
        long,
        conflicts_with = "url",
        value_name = "tcp|ws|http|tls|wss|https",
        hide_possible_values = true
    )]
    over: Option<Over>,
    #[command(flatten)]
    tls: TlsFiles,
    /// The server's process on this machine, to tell what it uses [default: that which listens there,
    /// if it can be found]
    #[arg(long)]
    pid: Option<u32>,
    /// Members of all rooms together
    #[arg(long, short = 'n', value_name = "N")]
    members: Option<usize>,
    /// Rooms, to which members go in turn
    #[arg(long, value_name = "N")]
    rooms: Option<usize>,
    /// How many members of each room send, in turns
    #[arg(long, value_name = "N")]
    publishers: Option<usize>,
    /// Messages a second, by all publishers together
    #[arg(long, value_name = "N", conflicts_with = "in_flight")]
    rate: Option<f64>,
    /// Instead of a rate: keep so many messages on their way in each room
    #[arg(long, value_name = "N")]
    in_flight: Option<u64>,
    /// Bytes of each text, 32 at least
    #[arg(long, value_name = "BYTES")]
    payload: Option<usize>,
    /// Length of the counted window, such as 10s
    #[arg(long, value_name = "TIME", value_parser = time)]
    duration: Option<Duration>,
    /// Time before it that does not count
    #[arg(long, value_name = "TIME", value_parser = time)]
    warm_up: Option<Duration>,
    /// Quiet time before each look at the server's memory
    #[arg(long, value_name = "TIME", value_parser = time)]
    settle: Option<Duration>,
    /// How many users log in at once, for login-storm
    #[arg(long, value_name = "N")]
    logins: Option<usize>,
    /// How many of 100 members stop reading, for slow-readers
    #[arg(long, value_name = "PERCENT")]
    stalled: Option<f64>,
    /// What users' names begin with; a number follows [default: one of this run's own]
    #[arg(long, value_name = "PREFIX")]
    user: Option<String>,
    /// The room, or what rooms' names begin with; nobody else may speak there [default: one of this
    /// run's own]
    #[arg(long, value_name = "PREFIX", value_parser = room)]
    room: Option<String>,
    /// Take compressed answers to polls, as browsers do
    #[arg(long)]
    gzip: bool,
    /// Also count system calls, with perf or else strace, in a window of their own
    #[arg(long)]
    syscalls: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Draw latency by percentile, where messages are sent
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// The first word: a scenario, or the address where that is left out.
#[derive(Debug, Clone)]
enum First {
    Scenario(Scenario),
    Url(String),
}

impl FromStr for First {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        if word.contains("://") {
            return Ok(Self::Url(word.to_owned()));
        }
        word.parse().map(Self::Scenario)
    }
}

/// Why nothing was found out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The command line asks for what does not go together.
    #[error("{0}")]
    Usage(String),
    /// There is nobody to load.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// No server could be started.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The run failed.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The run failed, and the server that was started for it has ended.
    #[error("{source}")]
    Served {
        /// What the run met with.
        source: LoadError,
        /// How the server has ended, and its last words.
        obituary: String,
    },
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

impl BenchError {
    /// Whether the command line is at fault.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Usage(_)
                | Self::Target(TargetError::Url { .. } | TargetError::PlainText)
                | Self::Load(LoadError::Plan(_))
        )
    }

    /// The error with its causes, and the last words of a server that is to blame.
    #[must_use]
    pub fn explain(&self) -> String {
        let text = match self {
            Self::Serve(error) => error.explain(),
            Self::Served { source, obituary } => format!("{}\n{obituary}", chain(source)),
            _ => chain(self),
        };
        text.trim_end().to_owned()
    }
}

/// An error and its causes in one line.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}

impl Bench {
    /// Does what the command line asks, with results on stdout and progress on a terminal. `own` is the program that
    /// is started where no other is named. Returns how many faults there were.
    ///
    /// # Errors
    /// If it could not be done.
    pub fn run(&self, own: Option<&Path>) -> Result<u64, BenchError> {
        let scenario = match self.first {
            Some(First::Scenario(scenario)) => scenario,
            Some(First::Url(_)) | None => Scenario::Lone,
        };
        let settings = self.settings(scenario)?;
        interrupt::heed().map_err(BenchError::Signals)?;
        let descriptors = process::raise_descriptor_limit().map_err(BenchError::DescriptorLimit)?;
        process::check_descriptors(settings.connections(), descriptors)?;
        if let Some(file) = &self.svg {
            writable(file).map_err(|source| BenchError::Output {
                to: file.display().to_string(),
                source,
            })?;
        }
        let progress = Progress::on_stderr();
        let (mut served, subject) = self.subject(scenario, &settings, own)?;
        let report = scenario::run(scenario, &settings, &subject, &progress).map_err(|error| {
            let served = served.as_mut().filter(|_| may_be_the_servers_end(&error));
            match served.and_then(|served| served.running().obituary()) {
                Some(obituary) => BenchError::Served {
                    source: error,
                    obituary,
                },
                None => error.into(),
            }
        })?;
        drop(progress);
        drop(served);
        self.tell(&report)?;
        Ok(report.faults.total)
    }

    fn url(&self) -> Result<Option<&str>, BenchError> {
        match (&self.first, &self.url) {
            (Some(First::Url(_)), Some(_)) => Err(BenchError::Usage(
                "the scenario comes first, then the address".to_owned(),
            )),
            (Some(First::Url(url)), None) | (_, Some(url)) => Ok(Some(url)),
            _ => Ok(None),
        }
    }

    /// Whom to load, and the server if one had to be started.
    fn subject(
        &self,
        scenario: Scenario,
        settings: &Settings,
        own: Option<&Path>,
    ) -> Result<(Option<Served>, Subject), BenchError> {
        let new = Names::own();
        let mut names = Names {
            user: self.user.clone().unwrap_or(new.user),
            room: self.room.clone().unwrap_or(new.room),
            password: env::var(PASSWORD).ok(),
        };
        let (served, target, pid) = if let Some(url) = self.url()? {
            if let (Some(_), _) | (_, Some(_)) = (&self.server, &self.over) {
                return Err(BenchError::Usage(
                    "--server and --over are for a server that bench starts; the address says both"
                        .to_owned(),
                ));
            }
            let target = Target::reach(url, &self.tls)?;
            self.check_polls(scenario, target.dialect)?;
            let local = target.addr.ip().is_loopback();
            let found = || local.then(|| sockets::listener(target.addr)).flatten();
            let pid = self.pid.or_else(found);
            (None, target, pid)
        } else {
            let Some(program) = self.server.as_deref().or(own) else {
                return Err(BenchError::Usage(
                    "name an address, or the program to start with --server".to_owned(),
                ));
            };
            let over = self.over.unwrap_or(match scenario {
                Scenario::Polling => Over::Http,
                _ if self.gzip => Over::Http,
                _ => Over::Tcp,
            });
            self.check_polls(scenario, over.dialect())?;
            if !self.tls.is_empty() {
                return Err(BenchError::Usage(
                    "--ca, --cert and --key are for a server with an address; one that bench \
                     starts makes its own"
                        .to_owned(),
                ));
            }
            let served = if scenario == Scenario::LoginStorm {
                names.password = Some(login_storm::PASSWORD.to_owned());
                let (members, users) = (settings.members, settings.logins);
                let file = login_storm::password_file(&names, members, users);
                Served::start_for(program, &file)?
            } else {
                Served::start(program, over.is_tls())?
            };
            let (target, pid) = (served.target(over), served.pid());
            (Some(served), target, Some(pid))
        };
        let subject = Subject { target, pid, names };
        Ok((served, subject))
    }

    fn check_polls(&self, scenario: Scenario, dialect: Dialect) -> Result<(), BenchError> {
        let what = match (scenario, dialect) {
            (_, Dialect::Polling) => return Ok(()),
            (Scenario::Polling, _) => "polling",
            _ if self.gzip => "--gzip",
            _ => return Ok(()),
        };
        Err(BenchError::Usage(format!(
            "{what} goes over http://HOST:PORT"
        )))
    }

    fn settings(&self, scenario: Scenario) -> Result<Settings, BenchError> {
        let mut settings = scenario.settings();
        let silent = settings.paces.is_empty();
        let sends = [
            (self.rate.is_some(), "--rate"),
            (self.in_flight.is_some(), "--in-flight"),
            (self.payload.is_some(), "--payload"),
            (self.publishers.is_some(), "--publishers"),
            (self.syscalls, "--syscalls"),
            (self.svg.is_some(), "--svg"),
        ];
        let is_fixed = matches!(
            scenario,
            Scenario::LoginStorm | Scenario::SlowReaders | Scenario::SmallBesideHuge
        );
        let misplaced = [
            (
                self.stalled.is_some() && scenario != Scenario::SlowReaders,
                "--stalled",
            ),
            (
                self.logins.is_some() && scenario != Scenario::LoginStorm,
                "--logins",
            ),
            (
                self.rooms.is_some_and(|rooms| rooms > 1) && is_fixed,
                "--rooms",
            ),
            (self.syscalls && is_fixed, "--syscalls"),
        ];
        let sends = sends.into_iter().filter(|_| silent);
        if let Some((_, option)) = sends.chain(misplaced).find(|(given, _)| *given) {
            return Err(BenchError::Usage(format!(
                "{option} means nothing to {scenario}"
            )));
        }
        settings.members = self.members.unwrap_or(settings.members);
        settings.logins = self.logins.unwrap_or(settings.logins);
        if scenario == Scenario::LoginStorm && !(1..=MOST_LOGINS).contains(&settings.logins) {
            return Err(BenchError::Usage(format!("--logins is 1 to {MOST_LOGINS}")));
        }
        settings.rooms = self
            .rooms
            .unwrap_or_else(|| settings.rooms.min(settings.members).max(1));
        let room = settings.members / settings.rooms.max(1);
        settings.publishers = self
            .publishers
            .unwrap_or_else(|| settings.publishers.min(room).max(1));
        settings.payload = self.payload.unwrap_or(settings.payload);
        settings.window = self.duration.unwrap_or(settings.window);
        settings.warm_up = self.warm_up.unwrap_or(settings.warm_up);
        settings.settle = self.settle.unwrap_or(settings.settle);
        settings.stalled_percent = self.stalled.unwrap_or(settings.stalled_percent);
        settings.syscalls = self.syscalls.then(|| TRACED.min(settings.window));
        // Who asks for a length gets that.
        settings.whole_periods &= self.duration.is_none();
        settings.gzip = self.gzip;
        if !(0.0..100.0).contains(&settings.stalled_percent) {
            return Err(BenchError::Usage(
                "--stalled is a share of 100, from 0 to less than 100".to_owned(),
            ));
        }
        if settings.window.is_zero() {
            return Err(BenchError::Usage("--duration is more than 0s".to_owned()));
        }
        let pace = self
            .rate
            .map(Pace::PerSecond)
            .or_else(|| self.in_flight.map(Pace::InFlight));
        if let Some(pace) = pace {
            pace.check()?;
            let name = match pace {
                Pace::PerSecond(_) => "at a rate",
                Pace::InFlight(_) => "in flight",
            };
            settings.paces = vec![(name, pace)];
        }
        Ok(settings)
    }

    fn tell(&self, report: &Report) -> Result<(), BenchError> {
        let text = if self.json {
            serde_json::to_string_pretty(report).map(|json| json + "\n")
        } else {
            Ok(report.to_string())
        };
        let output = |to: &str, source| BenchError::Output {
            to: to.to_owned(),
            source,
        };
        let mut out = io::stdout().lock();
        text.map_err(io::Error::from)
            .and_then(|text| out.write_all(text.as_bytes()))
            .and_then(|()| out.flush())
            .map_err(|error| output("the result", error))?;
        if let Some(file) = &self.svg {
            fs::write(file, report.svg())
                .map_err(|error| output(&file.display().to_string(), error))?;
        }
        Ok(())
    }
}

/// Whether a server that has ended could explain this.
fn may_be_the_servers_end(error: &LoadError) -> bool {
    !matches!(
        error,
        LoadError::Plan(_) | LoadError::Crowd(CrowdError::Interrupted)
    )
}

/// Finds out before a long run whether its result can be written there. The file is made if there is none.
pub(crate) fn writable(file: &Path) -> io::Result<()> {
    fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(file)
        .map(drop)
}

/// A length of time that a run may have.
fn time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if time > LONGEST {
        return Err("at most 7 days".to_owned());
    }
    Ok(time)
}

/// A room's name as the protocol has it, so that it needs no escapes, and short enough for a number behind it.
fn room(name: &str) -> Result<String, &'static str> {
    let fits =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._:-".contains(&byte);
    if (1..=56).contains(&name.len()) && name.bytes().all(fits) {
        Ok(name.to_owned())
    } else {
        Err("a room is 1 to 56 of a-z 0-9 . _ : -")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    #[command(name = "chinwag bench")]
    struct Line {
        #[command(flatten)]
        bench: Bench,
    }

    fn bench(line: &str) -> Bench {
        let words = ["chinwag bench"].into_iter().chain(line.split(' '));
        Line::try_parse_from(words.filter(|word| !word.is_empty()))
            .unwrap()
            .bench
    }

    fn settings(line: &str) -> Result<Settings, String> {
        let bench = bench(line);
        let scenario = match bench.first {
            Some(First::Scenario(scenario)) => scenario,
            _ => Scenario::Lone,
        };
        bench.settings(scenario).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_is_sound_and_help_fits_80_columns() {
        Line::command().debug_assert();
        let help = Line::command().term_width(80).render_help().to_string();
        for line in help.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        for scenario in Scenario::ALL {
            assert!(help.contains(scenario.name()), "{scenario} is missing");
        }
    }

    #[test]
    fn scenario_and_address_may_each_be_left_out() {
        assert_eq!(bench("").url().unwrap(), None);
        assert_eq!(bench("idle").url().unwrap(), None);
        assert_eq!(bench("tcp://a").url().unwrap(), Some("tcp://a"));
        assert_eq!(bench("idle ws://a").url().unwrap(), Some("ws://a"));
        assert!(bench("ws://a idle").url().is_err());
        assert!(Line::try_parse_from(["x", "loan"]).is_err());
    }

    #[test]
    fn defaults_give_way_to_options_and_follow_them() {
        let few = settings("lone -n 5").unwrap();
        assert_eq!((few.members, few.publishers, few.rooms), (5, 5, 1));
        let rooms = settings("many-rooms --members 20 --in-flight 2").unwrap();
        assert_eq!((rooms.rooms, rooms.paces.len()), (20, 1));
        assert_eq!(settings("many-rooms").unwrap().paces.len(), 2);
        assert!(settings("idle").unwrap().whole_periods);
        assert!(!settings("idle --duration 10s").unwrap().whole_periods);
        assert_eq!(
            settings("batched --duration 2s").unwrap().window,
            Duration::from_secs(2)
        );
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for line in [
            "idle --rate 5",
            "join-storm --payload 64",
            "idle --svg plot.svg",
            "join-storm --svg plot.svg",
            "lone --stalled 5",
            "slow-readers --stalled 100",
            "slow-readers --rooms 2",
            "lone --rate 0",
            "lone --in-flight 0",
            "lone --duration 0s",
        ] {
            assert!(settings(line).is_err(), "{line}");
        }
        for line in [
            &["--rate", "5", "--in-flight", "2"][..],
            &["lone", "tls://a", "--key", "alice.key"],
            &["lone", "tcp://a", "--server", "x"],
            &["--room", "Lobby"],
            &["--duration", "18446744073709551615s"],
            &["--warm-up", "8days"],
            &["--settle", "604801s"],
        ] {
            let words = ["x"].iter().chain(line);
            assert!(Line::try_parse_from(words).is_err(), "{line:?}");
        }
    }

    #[test]
    fn what_is_too_much_is_refused_before_anything_begins() {
        let most = usize::MAX;
        for line in [
            format!("lone -n {most}"),
            format!("lone -n {most} --rooms {most} --publishers {most}"),
            format!("lone -n 1 --rooms {most}"),
        ] {
            let error = bench(&line).run(None).unwrap_err();
            assert!(
                matches!(error, BenchError::Descriptors(_)),
                "{line}: {error}"
            );
        }
        assert!(settings("lone --duration 7days").is_ok());
        assert!(settings(&format!("lone --in-flight {}", u64::MAX)).is_err());
    }

    #[test]
    fn a_drawing_that_can_not_be_written_is_told_before_anything_begins() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("none/plot.svg");
        let line = format!("lone -n 1 --svg {}", file.display());
        let error = bench(&line).run(None).unwrap_err();
        assert!(matches!(error, BenchError::Output { .. }), "{error}");
    }

    #[test]
    fn a_server_that_dies_is_told_with_its_last_words_and_a_plan_is_no_fault_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("server");
        // Tells all addresses, where nobody is, and ends once somebody could have tried.
        let script = "#!/bin/sh\nfor name in line web poll metrics; do\n\
                      echo listening transport=$name addr=127.0.0.1:1 >&2\ndone\n\
                      echo out of luck >&2\nexit 7\n";
        fs::write(&program, script).unwrap();
        let runs = fs::Permissions::from_mode(0o755);
        fs::set_permissions(&program, runs).unwrap();
        let told = bench("lone -n 2")
            .run(Some(&program))
            .unwrap_err()
            .explain();
        for words in ["has ended with exit status: 7", "out of luck"] {
            assert!(told.contains(words), "{words} is missing in {told}");
        }
        let error = bench("lone -n 2 --publishers 3")
            .run(Some(&program))
            .unwrap_err();
        assert!(
            error.is_usage() && !error.explain().contains("luck"),
            "{error}"
        );
    }

    #[test]
    fn files_for_tls_are_for_addresses_that_speak_it() {
        let program = PathBuf::from("/nonexistent");
        for line in [
            "lone tcp://127.0.0.1:1 --ca ca.pem",
            "lone --ca ca.pem",
            "--over tls --cert a",
        ] {
            let error = bench(line).run(Some(&program)).unwrap_err();
            assert!(
                error.is_usage() && error.explain().contains("--ca"),
                "{line}: {error}"
            );
        }
        let error = bench("lone tls://127.0.0.1:1 --ca /nonexistent/ca.pem")
            .run(None)
            .unwrap_err();
        assert!(error.explain().contains("/nonexistent/ca.pem: "), "{error}");
    }

    #[test]
    fn compressed_answers_are_for_polls() {
        let program = PathBuf::from("/nonexistent");
        for line in ["lone --gzip --over tcp", "polling --over ws"] {
            let error = bench(line).run(Some(&program)).unwrap_err();
            assert!(error.is_usage(), "{line}: {error}");
        }
        // It goes over HTTP by itself, as far as there is a server.
        let error = bench("lone --gzip").run(Some(&program)).unwrap_err();
        assert!(matches!(error, BenchError::Serve(_)), "{error}");
        assert!(settings("lone --gzip").unwrap().gzip);
    }

    #[test]
    fn rooms_are_checked() {
        assert_eq!(room("bench:1"), Ok("bench:1".to_owned()));
        for name in ["", "Lobby", "a b", "\"", &"x".repeat(57)] {
            assert!(room(name).is_err(), "{name}");
        }
    }
}
