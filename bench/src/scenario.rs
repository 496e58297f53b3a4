//! Scenarios by name: what each loads a server with, and what it finds out.

use std::{fmt, str::FromStr, sync::atomic::Ordering, thread, time::Duration};

use serde::Serialize;

use crate::{
    clock::Stopwatch,
    cost::{self, Meter},
    hearing::Wrong,
    load::{ACQUAINT_LIMIT, DRAIN_LIMIT, Load, LoadError, Pace, Run},
    login_storm,
    progress::Progress,
    report::{Gather, Idle, Memory, Report, Storm},
    stalled::{self, Stalled},
    syscalls::Counting,
    target::{Names, Target},
};

/// Members that come in first, so that what a server takes once is not counted as theirs.
const FIRST: usize = 200;
/// Members of the small room beside the huge one, and what is said there in a second.
const SMALL: (usize, f64) = (10, 50.0);
/// Signs of life that come less often than this are not waited for.
const LONGEST_PERIOD: Duration = Duration::from_secs(120);
/// How long those that stopped reading are looked at in the end.
const FATES: Duration = Duration::from_secs(1);
/// A window that is over when somebody says so.
const ENDLESS: Duration = Duration::from_secs(3600);

/// What can be found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// Messages one at a time in a large room.
    Lone,
    /// Many messages on their way at once in a large room.
    Batched,
    /// Many small rooms: at a low rate, then with several messages on their way in each.
    ManyRooms,
    /// Connections without traffic.
    Idle,
    /// Everybody joins one room at once.
    JoinStorm,
    /// Many users log in at once with passwords, beside a room.
    LoginStorm,
    /// Some members stop reading.
    SlowReaders,
    /// A small room beside a huge one under full load.
    SmallBesideHuge,
    /// Messages one at a time, fetched by polls that wait.
    Polling,
}

impl Scenario {
    /// All of them, in the order in which they are told.
    pub const ALL: [Self; 9] = [
        Self::Lone,
        Self::Batched,
        Self::ManyRooms,
        Self::Idle,
        Self::JoinStorm,
        Self::LoginStorm,
        Self::SlowReaders,
        Self::SmallBesideHuge,
        Self::Polling,
    ];

    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lone => "lone",
            Self::Batched => "batched",
            Self::ManyRooms => "many-rooms",
            Self::Idle => "idle",
            Self::JoinStorm => "join-storm",
            Self::LoginStorm => "login-storm",
            Self::SlowReaders => "slow-readers",
            Self::SmallBesideHuge => "small-beside-huge",
            Self::Polling => "polling",
        }
    }

    /// What it does unless it is told otherwise.
    #[must_use]
    pub fn settings(self) -> Settings {
        let lone = Settings {
            members: 1000,
            rooms: 1,
            publishers: 20,
            payload: 128,
            paces: vec![("lone", Pace::PerSecond(20.0))],
            warm_up: Duration::from_secs(1),
            window: Duration::from_secs(5),
            settle: Duration::from_millis(200),
            stalled_percent: 0.0,
            gather_limit: Duration::from_secs(60),
            drain_limit: DRAIN_LIMIT,
            syscalls: None,
            gzip: false,
            whole_periods: false,
            logins: 0,
        };
        match self {
            Self::Lone => lone,
            Self::Batched => Settings {
                publishers: 1,
                paces: vec![("batched", Pace::InFlight(16))],
                ..lone
            },
            Self::ManyRooms => Settings {
                members: 5000,
                rooms: 500,
                publishers: 1,
                paces: vec![
                    ("low rate", Pace::PerSecond(1500.0)),
                    ("4 in flight", Pace::InFlight(4)),
                ],
                ..lone
            },
            Self::Idle => Settings {
                members: 5000,
                publishers: 1,
                paces: Vec::new(),
                window: Duration::from_secs(10),
                settle: Duration::from_secs(2),
                whole_periods: true,
                ..lone
            },
            Self::JoinStorm => Settings {
                members: 5000,
                publishers: 1,
                paces: Vec::new(),
                ..lone
            },
            Self::LoginStorm => Settings {
                members: 100,
                paces: vec![("room", Pace::PerSecond(50.0))],
                logins: 200,
                ..lone
            },
            Self::SlowReaders => Settings {
                payload: 1024,
                paces: vec![("lone", Pace::PerSecond(50.0))],
                window: Duration::from_secs(10),
                stalled_percent: 4.0,
                ..lone
            },
            Self::SmallBesideHuge => Settings {
                members: 4000,
                publishers: 1,
                paces: vec![("huge", Pace::InFlight(16))],
                ..lone
            },
            Self::Polling => Settings {
                members: 2000,
                paces: vec![("polling", Pace::PerSecond(10.0))],
                settle: Duration::from_secs(2),
                ..lone
            },
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|scenario| scenario.name() == name)
            .ok_or_else(|| {
                let names = Self::ALL.map(Self::name).join(", ");
                format!("no such scenario; there are {names}")
            })
    }
}

/// How much of everything.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Members of all rooms together.
    pub members: usize,
    /// Rooms.
    pub rooms: usize,
    /// Members of each room that send, in turns.
    pub publishers: usize,
    /// Bytes of each text.
    pub payload: usize,
    /// The windows one after another, each with a name; empty where nothing is sent.
    pub paces: Vec<(&'static str, Pace)>,
    /// Time before each window that does not count.
    pub warm_up: Duration,
    /// Length of each window.
    pub window: Duration,
    /// Quiet time before each look at the server's memory.
    pub settle: Duration,
    /// How many of a hundred members stop reading.
    pub stalled_percent: f64,
    /// Longest time for all members to come in.
    pub gather_limit: Duration,
    /// Longest wait for what is still on its way in the end.
    pub drain_limit: Duration,
    /// How long system calls are counted, in a window of their own, in which the server may be slow; if at all.
    pub syscalls: Option<Duration>,
    /// Whether those who poll take compressed answers.
    pub gzip: bool,
    /// Whether a window without traffic is made longer until each connection shows that it lives equally often, such
    /// as once or twice. What comes less often than every two minutes is not waited for.
    pub whole_periods: bool,
    /// Users that log in at once.
    pub logins: usize,
}

impl Settings {
    /// Connections that a scenario with these settings has open at most.
    #[must_use]
    pub fn connections(&self) -> usize {
        // A polling member that speaks has two. Whoever asks for more than can be counted is told that it is too many.
        self.publishers
            .saturating_mul(self.rooms)
            .saturating_add(self.members)
            .saturating_add(self.logins)
            .saturating_add(SMALL.0)
    }

    /// The crowd that these settings ask for.
    #[must_use]
    pub fn load(&self, subject: &Subject, watch: Stopwatch) -> Load {
        Load {
            target: Target {
                gzip: self.gzip,
                ..subject.target.clone()
            },
            names: subject.names.clone(),
            rooms: self.rooms,
            members: self.members,
            publishers: self.publishers,
            payload: self.payload,
            gather_limit: self.gather_limit,
            drain_limit: self.drain_limit,
            watch,
        }
    }

    /// How many members stop reading.
    #[must_use]
    pub fn stalled(&self) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of the number of members"
        )]
        let count = (self.members as f64 * self.stalled_percent / 100.0).ceil() as usize;
        count
    }
}

/// What a scenario runs against.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The server.
    pub target: Target,
    /// Its process, if it is of this machine.
    pub pid: Option<u32>,
    /// The names of users and rooms.
    pub names: Names,
}

/// Plays `scenario` against a server.
///
/// # Errors
/// If the settings are impossible, a member fails or is refused, or the server's process is gone.
pub fn run(
    scenario: Scenario,
    settings: &Settings,
    subject: &Subject,
    progress: &Progress,
) -> Result<Report, LoadError> {
    let stage = Stage {
        settings,
        subject,
        progress,
        watch: Stopwatch::start(),
        report: Report::new(scenario, subject),
    };
    match scenario {
        Scenario::Lone | Scenario::Batched | Scenario::ManyRooms | Scenario::Polling => {
            stage.windows()
        }
        Scenario::Idle => stage.idle(),
        Scenario::JoinStorm => stage.storm(),
        Scenario::LoginStorm => stage.login_storm(),
        Scenario::SlowReaders => stage.slow_readers(),
        Scenario::SmallBesideHuge => stage.small_beside_huge(),
    }
}

struct Stage<'s> {
    settings: &'s Settings,
    subject: &'s Subject,
    progress: &'s Progress,
    watch: Stopwatch,
    report: Report,
}

impl<'s> Stage<'s> {
    fn load(&self) -> Load {
        self.settings.load(self.subject, self.watch)
    }

    /// Everybody comes in, and what that took is noted.
    fn gather(&mut self, join: bool) -> Result<Run<'s>, LoadError> {
        let mut run = Run::new(self.load(), self.progress)?;
        let (members, pid) = (self.settings.members, self.subject.pid);
        let first = FIRST.min(members / 10);
        let mut took = run.gather(first, join)?;
        let before = match pid {
            Some(pid) => {
                run.acquaint(ACQUAINT_LIMIT)?;
                run.rest(self.settings.settle)?;
                Some((pid, cost::resident(pid)?, Meter::read(pid)?))
            }
            None => None,
        };
        let rest = run.gather(members, join)?;
        took += rest;
        let counted = members - first;
        let mut cpu = None;
        if let Some((pid, before_kib, meter)) = before {
            cpu = Meter::since(&meter, rest, counted as u64)?.cpu_us_per_delivery;
            run.acquaint(ACQUAINT_LIMIT)?;
            run.rest(self.settings.settle)?;
            let after_kib = cost::resident(pid)?;
            self.report.memory = Some(Memory {
                connections: counted,
                before_kib,
                after_kib,
                kib_per_connection: (after_kib as f64 - before_kib as f64) / counted as f64,
            });
        } else {
            run.acquaint(ACQUAINT_LIMIT)?;
        }
        self.report.gather = Gather {
            members,
            joined: join,
            seconds: took.as_secs_f64(),
            per_second: members as f64 / took.as_secs_f64(),
            server_cpu_us_per_member: cpu,
        };
        Ok(run)
    }

    fn windows(mut self) -> Result<Report, LoadError> {
        let mut run = self.gather(true)?;
        for &(name, pace) in &self.settings.paces {
            run.warm_up(pace, self.settings.warm_up)?;
            let part = run.measure(name, pace, self.settings.window, self.subject.pid)?;
            self.report.parts.push(part);
        }
        self.count_syscalls(&mut run)?;
        self.done(&mut [run])
    }

    /// A window of its own, in which nothing else counts.
    fn count_syscalls(&mut self, run: &mut Run<'_>) -> Result<(), LoadError> {
        let (Some(window), Some(&(_, pace))) = (self.settings.syscalls, self.settings.paces.last())
        else {
            return Ok(());
        };
        let Some(pid) = self.subject.pid else {
            let why = "the server's process is not known: see --pid".to_owned();
            self.report.syscalls = Some(Err(why).into());
            return Ok(());
        };
        let counted = match Counting::attach(pid) {
            Ok(counting) => {
                let part = run.measure("system calls", pace, window, None)?;
                counting.finish(part.deliveries)
            }
            Err(error) => Err(error),
        };
        self.report.syscalls = Some(counted.map_err(|error| error.to_string()).into());
        Ok(())
    }

    fn idle(mut self) -> Result<Report, LoadError> {
        let mut run = self.gather(true)?;
        let meter = self.subject.pid.map(Meter::read).transpose()?;
        let period = run.period();
        let window = match period {
            Some(period) if self.settings.whole_periods => whole(self.settings.window, period),
            _ => self.settings.window,
        };
        let traffic = run.rest(window)?;
        let server = meter
            .map(|meter| Meter::since(&meter, window, 0))
            .transpose()?;
        let minutes = window.as_secs_f64() / 60.0;
        let each = |bytes: u64| bytes as f64 / self.settings.members as f64 / minutes;
        self.report.idle = Some(Idle {
            seconds: window.as_secs_f64(),
            period_seconds: period.map(|period| period.as_secs_f64()),
            bytes_in_per_minute: each(traffic.bytes_in),
            bytes_out_per_minute: each(traffic.bytes_out),
            server_cpu_percent: server.map(|used| used.cpu_percent),
        });
        self.done(&mut [run])
    }

    fn storm(mut self) -> Result<Report, LoadError> {
        let mut run = self.gather(false)?;
        run.rest(self.settings.settle)?;
        run.count_presence();
        let before = run.traffic();
        let meter = self.subject.pid.map(Meter::read).transpose()?;
        let start = self.watch.elapsed();
        let until_in = run.storm()?;
        let ignorant = run.acquaint(self.settings.gather_limit)?;
        let took = self.watch.elapsed() - start;
        let members = self.settings.members;
        let server = meter
            .map(|meter| Meter::since(&meter, took, members as u64))
            .transpose()?;
        let traffic = run.traffic().since(before);
        self.report.storm = Some(Storm {
            members,
            seconds_until_in: until_in.as_secs_f64(),
            seconds_until_told: took.as_secs_f64(),
            presence: run.presence(),
            bytes: traffic.bytes_in,
            cpu_seconds: server.map(|used| used.cpu_seconds),
            cpu_us_per_join: server.and_then(|used| used.cpu_us_per_delivery),
            ignorant,
        });
        self.done(&mut [run])
    }

    fn login_storm(mut self) -> Result<Report, LoadError> {
        let Some(&(_, pace)) = self.settings.paces.first() else {
            return Err(LoadError::Plan(
                "without messages there is no room to look at",
            ));
        };
        let (target, names) = (&self.subject.target, &self.subject.names);
        login_storm::check(target)?;
        let mut run = self.gather(true)?;
        let (pid, watch) = (self.subject.pid, self.watch);
        let (first, users) = (self.settings.members, self.settings.logins);
        run.warm_up(pace, self.settings.warm_up)?;
        let before = run.measure("before", pace, self.settings.window, pid)?;
        let enough = run.enough();
        let (logins, during) = thread::scope(|scope| {
            let room = scope.spawn(|| run.measure("during log-ins", pace, ENDLESS, pid));
            let logins = login_storm::log_in(target, names, first, users, watch);
            enough.store(true, Ordering::Release);
            (logins, room.join().expect("a run does not panic"))
        });
        self.report.logins = Some(logins?);
        self.report.parts = vec![before, during?];
        self.done(&mut [run])
    }

    fn slow_readers(mut self) -> Result<Report, LoadError> {
        let count = self.settings.stalled();
        if count == 0 || self.settings.members < count + self.settings.publishers.max(2) {
            return Err(LoadError::Plan(
                "somebody has to stall, and the publishers and at least 2 members have to read on",
            ));
        }
        if self.settings.rooms != 1 {
            return Err(LoadError::Plan("slow-readers plays in 1 room"));
        }
        let Some(&(_, pace)) = self.settings.paces.first() else {
            return Err(LoadError::Plan("without messages nobody is slow"));
        };
        let mut run = self.gather(true)?;
        let (pid, window) = (self.subject.pid, self.settings.window);
        run.warm_up(pace, self.settings.warm_up)?;
        // What is as it always is needs less time to show than what comes of readers that stop.
        let all = run.measure("all read", pace, window / 2, pid)?;
        run.stall(count)?;
        let ports = run.stalled_ports()?;
        let sampler = stalled::Sampler::start(self.subject.target.addr, ports, pid, self.watch);
        let some = run.measure("some stall", pace, window, pid)?;
        let samples = sampler.finish();
        let fates = run.fates(FATES)?;
        let stalled = Stalled {
            passed_over: run.passed_over(),
            ..stalled::summary(&all, &some, &fates, run.departures(), samples)
        };
        self.report.stalled = Some(stalled);
        self.report.parts = vec![all, some];
        self.done(&mut [run])
    }

    fn small_beside_huge(mut self) -> Result<Report, LoadError> {
        let Some(&(_, pace)) = self.settings.paces.first() else {
            return Err(LoadError::Plan("without messages no room is under load"));
        };
        let (members, rate) = SMALL;
        let names = &self.subject.names;
        let small = Load {
            names: Names {
                user: format!("{}s", names.user),
                room: format!("{}.small", names.room),
                ..names.clone()
            },
            rooms: 1,
            members,
            publishers: if self.subject.target.dialect.numbers() {
                members
            } else {
                1
            },
            payload: 128,
            ..self.load()
        };
        let mut huge = self.gather(true)?;
        let mut small = Run::new(small, self.progress)?;
        small.gather(members, true)?;
        small.acquaint(ACQUAINT_LIMIT)?;
        let (warm_up, window, pid) = (
            self.settings.warm_up,
            self.settings.window,
            self.subject.pid,
        );
        let small_pace = Pace::PerSecond(rate);
        small.warm_up(small_pace, warm_up)?;
        let alone = small.measure("small alone", small_pace, window, None)?;
        let enough = huge.enough();
        let (beside, load) = thread::scope(|scope| {
            let under_load = scope.spawn(|| huge.measure("huge", pace, ENDLESS, pid));
            let beside = small
                .warm_up(small_pace, warm_up)
                .and_then(|()| small.measure("small beside it", small_pace, window, None));
            enough.store(true, Ordering::Release);
            (beside, under_load.join().expect("a run does not panic"))
        });
        let (beside, load) = (beside?, load?);
        self.report.parts = vec![alone, beside, load];
        self.done(&mut [huge, small])
    }

    fn done(self, runs: &mut [Run<'_>]) -> Result<Report, LoadError> {
        let wrong: Vec<Wrong> = runs
            .iter_mut()
            .map(Run::verdict)
            .collect::<Result<_, _>>()?;
        let mut report = self.report;
        report.judge(&wrong);
        Ok(report)
    }
}

/// The least multiple of `period` that is no shorter than `window`; that itself if the period is too long to be waited
/// for.
fn whole(window: Duration, period: Duration) -> Duration {
    if period.is_zero() || period > LONGEST_PERIOD {
        return window;
    }
    let times = window.as_nanos().div_ceil(period.as_nanos()).max(1);
    period * u32::try_from(times).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_made_longer_to_whole_periods_that_can_be_waited_for() {
        let seconds = Duration::from_secs;
        for (window, period, whole_window) in [
            (10, 15, 15),
            (15, 15, 15),
            (16, 15, 30),
            (10, 120, 120),
            (10, 121, 10),
            (10, 0, 10),
        ] {
            let made = whole(seconds(window), seconds(period));
            assert_eq!(made, seconds(whole_window), "{window} {period}");
        }
    }

    #[test]
    fn every_scenario_has_a_name_and_settings_that_can_be_carried_out() {
        for scenario in Scenario::ALL {
            assert_eq!(scenario.name().parse(), Ok(scenario));
            let settings = scenario.settings();
            assert!(settings.members / settings.rooms >= settings.publishers);
            for (_, pace) in settings.paces {
                pace.check().unwrap();
            }
        }
        assert!(
            "loan"
                .parse::<Scenario>()
                .unwrap_err()
                .contains("lone, batched")
        );
    }

    #[test]
    fn no_number_is_too_large_to_be_counted() {
        for (members, rooms, publishers) in [(usize::MAX, 1, 1), (1, usize::MAX, usize::MAX)] {
            let settings = Settings {
                members,
                rooms,
                publishers,
                ..Scenario::Lone.settings()
            };
            assert_eq!(settings.connections(), usize::MAX);
        }
    }

    #[test]
    fn a_share_of_the_members_stalls_and_never_less_than_asked_for() {
        let settings = |members| Settings {
            members,
            ..Scenario::SlowReaders.settings()
        };
        assert_eq!(settings(1000).stalled(), 40);
        assert_eq!(settings(10).stalled(), 1);
    }
}
