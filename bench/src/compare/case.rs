//! What is played in a comparison, against whom, and which figures come of it.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use crate::{
    floor::Mode,
    load::Pace,
    peers::Contender,
    report::{Counted, Report},
    scenario::{Scenario, Settings},
    served::DEFAULT_TIMEOUT,
    target::{Dialect, Over},
};

/// Length of a window, where a case has none of its own. Processor time is counted to the nanosecond, so that 30,000
/// deliveries say as much as many more: what makes runs differ is the machine, and more of them help against that.
const WINDOW: Duration = Duration::from_millis(1200);
/// Time before each window that does not count.
const WARM_UP: Duration = Duration::from_millis(300);
/// How long system calls are counted: a few thousand writes tell all.
const TRACED: Duration = Duration::from_millis(500);
/// The same where memory is looked at, and not what goes on meanwhile.
const MOMENT: Duration = Duration::from_millis(300);
/// Longest quiet time before a look at memory.
const SETTLE: Duration = Duration::from_millis(500);
/// What a run takes besides windows and quiet times: starting, and members who come in.
const BESIDES: Duration = Duration::from_millis(800);
/// What it takes besides to see what became of readers that stopped.
const FATES: Duration = Duration::from_millis(500);
/// What it takes besides to have system calls counted.
const TRACING: Duration = Duration::from_millis(300);
/// Of so many repeats of a case other servers play one, where chinwag is not held to them.
const PEERS_EVERY: u32 = 3;
/// What a log-in with a password takes, one after another.
const LOG_IN: Duration = Duration::from_millis(30);

/// One load over one transport, with everybody who takes part in it.
#[derive(Debug, Clone, Serialize)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// The transport; peers speak their own protocol over it.
    pub over: Over,
    /// Who takes part.
    pub contenders: Vec<Contender>,
    /// How often it is played.
    pub repeats: u32,
    #[serde(skip)]
    pub(super) what: What,
    #[serde(skip)]
    pub(super) settings: Settings,
    /// How the floor writes.
    #[serde(skip)]
    pub(super) mode: Mode,
    /// What the table shows of it; nothing where another table does.
    #[serde(skip)]
    pub(super) rows: Vec<Row>,
    /// Whether a quick look leaves it out.
    #[serde(skip)]
    pub(super) is_long: bool,
    /// Whether it is played once, since it comes out the same each time.
    #[serde(skip)]
    pub(super) once: bool,
    /// After how long chinwag ends silent sessions, where that matters: nobody is silent too long elsewhere.
    #[serde(skip)]
    pub(super) timeout: Option<&'static str>,
}

/// What is done in a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Scenario(Scenario),
    /// The cost of fetching metrics.
    Scrape,
}

/// A row of the table.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) title: String,
    pub(super) figure: Figure,
    pub(super) goal: Goal,
}

/// What chinwag is held to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Goal {
    /// The floor in the same repeat, times this.
    Floor(f64),
    /// Another server in the same repeat, times this.
    Peer(Contender, f64),
    /// Its own figure of another case in the same repeat, times this.
    Own(&'static str, f64),
    /// What it has more than its own figure of another case, in the floor's figure of that case and repeat, times this.
    Added(&'static str, f64),
    /// So much at most.
    Most(f64),
    /// To nothing: it is set beside its own figure of another case in the same repeat.
    Beside(&'static str),
    /// To nothing: it is told.
    Told,
}

/// A figure that tables show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// The server's processor time for a delivery; of the first window.
    CpuUs,
    /// The same of the second window.
    CpuUsBusy,
    /// The server's processor time for what one read of the client brought, which is about one write; of the first
    /// window. Where messages share a write, a server may write less often and more at once.
    CpuUsRead,
    /// The same of the second window.
    CpuUsReadBusy,
    /// System calls for one that writes to a socket.
    CallsPerWrite,
    /// Times that a thread of the server went to sleep, for one delivery; of the first window.
    Sleeps,
    /// The share of answers to polls that came compressed; of the first window.
    CompressedPercent,
    /// Resident memory for a connection.
    KibPerConnection,
    /// What a connection without traffic brings both ways in a minute.
    IdleBytes,
    /// By how much the middle latency of those who read on changed.
    HealthyP50Percent,
    /// By how much the processor time for one of their deliveries changed.
    HealthyCpuPercent,
    /// What the worst reader that stopped made the kernel hold, and what all of them made the server hold on average.
    HeldKib,
    /// The middle latency of a small room beside a huge one.
    SmallP50Ms,
    /// The server's processor time for everybody joining at once.
    StormSeconds,
    /// The share of the server's processor time that goes into one fetch of metrics a second.
    ScrapePercent,
}

impl Figure {
    pub(super) const fn unit(self) -> &'static str {
        match self {
            Self::CpuUs | Self::CpuUsBusy => "µs a delivery",
            Self::CpuUsRead | Self::CpuUsReadBusy => "µs a read",
            Self::CallsPerWrite => "calls a write",
            Self::Sleeps => "sleeps a delivery",
            Self::KibPerConnection | Self::HeldKib => "KiB",
            Self::IdleBytes => "bytes a minute",
            Self::HealthyP50Percent
            | Self::HealthyCpuPercent
            | Self::ScrapePercent
            | Self::CompressedPercent => "%",
            Self::SmallP50Ms => "ms",
            Self::StormSeconds => "CPU s",
        }
    }

    pub(super) const fn digits(self) -> usize {
        match self {
            Self::Sleeps => 4,
            Self::CpuUs | Self::CpuUsBusy | Self::SmallP50Ms | Self::CallsPerWrite => 3,
            Self::CpuUsRead
            | Self::CpuUsReadBusy
            | Self::KibPerConnection
            | Self::StormSeconds
            | Self::ScrapePercent => 2,
            Self::HealthyP50Percent | Self::HealthyCpuPercent => 1,
            Self::HeldKib | Self::IdleBytes | Self::CompressedPercent => 0,
        }
    }

    /// What is told beside this figure, though no goal is set to it.
    pub(super) const fn companion(self) -> Option<Self> {
        match self {
            Self::CpuUs => Some(Self::CpuUsRead),
            Self::CpuUsBusy => Some(Self::CpuUsReadBusy),
            _ => None,
        }
    }

    /// This figure of a report; `None` where it was not looked at.
    pub(super) fn of(self, report: &Report) -> Option<f64> {
        let cpu = |at: usize| report.parts.get(at)?.server?.cpu_us_per_delivery;
        let a_read = |at: usize| Some(cpu(at)? * report.parts.get(at)?.deliveries_per_read);
        let stalled = report.stalled.as_ref();
        match self {
            Self::CpuUs => cpu(0),
            Self::CpuUsBusy => cpu(1),
            Self::CpuUsRead => a_read(0),
            Self::CpuUsReadBusy => a_read(1),
            Self::CallsPerWrite => match report.syscalls.as_ref()? {
                Counted::Counted(syscalls) => syscalls.per_write,
                Counted::NotAvailable(_) => None,
            },
            Self::Sleeps => {
                report
                    .parts
                    .first()?
                    .server?
                    .voluntary_switches_per_delivery
            }
            Self::CompressedPercent => report.parts.first()?.compressed_percent,
            Self::KibPerConnection => Some(report.memory?.kib_per_connection),
            Self::IdleBytes => {
                let idle = report.idle?;
                Some(idle.bytes_in_per_minute + idle.bytes_out_per_minute)
            }
            Self::HealthyP50Percent => Some(stalled?.healthy_p50_change_percent),
            Self::HealthyCpuPercent => stalled?.healthy_cpu_change_percent,
            Self::HeldKib => Some(stalled?.kernel_kib?.one + stalled?.process_kib_per_reader?),
            Self::SmallP50Ms => {
                let small = report.part("small beside it")?;
                Some(small.latency_us.p50 as f64 / 1000.0)
            }
            Self::StormSeconds => report.storm?.cpu_seconds,
            // Measured beside a report.
            Self::ScrapePercent => None,
        }
    }
}

/// Every case, in the order of the table, for floor, chinwag and `peers`.
pub(super) fn all(peers: &[Contender]) -> Vec<Case> {
    use Figure::{
        CallsPerWrite, CompressedPercent, CpuUs, CpuUsBusy, HealthyCpuPercent, HealthyP50Percent,
        HeldKib, IdleBytes, KibPerConnection, ScrapePercent, Sleeps, SmallP50Ms, StormSeconds,
    };
    use Goal::{Added, Beside, Floor, Most, Own, Peer, Told};
    use Over::{Http, Https, Tcp, Tls, Ws, Wss};
    use Scenario::{
        Batched, Idle, JoinStorm, LoginStorm, Lone, ManyRooms, Polling, SlowReaders,
        SmallBesideHuge,
    };
    let case = |name: &str, scenario, over| Case::new(name, What::Scenario(scenario), over, peers);
    let mut cases = Vec::new();
    for over in [Tcp, Ws] {
        let lone = case("lone-1000", Lone, over).lone(1000, 25.0).traced();
        cases.push(
            lone.row("1,000 members, lone", CpuUs, Floor(1.25))
                .row("1,000 members, lone", CallsPerWrite, Most(1.02))
                .row("1,000 members, lone", Sleeps, Most(0.01)),
        );
    }
    for over in [Tcp, Ws] {
        let lone = case("lone-5000", Lone, over).lone(5000, 5.0).long();
        cases.push(lone.row("5,000 members, lone", CpuUs, Floor(1.25)));
    }
    for over in [Tcp, Ws] {
        let title = "1,000 members, 16 in flight";
        let mut batched = case("batched", Batched, over).batching();
        batched = batched.row(title, CpuUs, Floor(1.4));
        if over == Ws {
            batched = batched.row(title, CpuUs, Peer(Contender::Uws, 1.0));
        }
        cases.push(batched);
    }
    for over in [Tcp, Ws] {
        let mut rooms = case("many-rooms", ManyRooms, over).batching();
        rooms.is_long = over == Ws;
        cases.push(
            rooms
                .row("500 rooms × 10, low rate", CpuUs, Floor(1.35))
                .row("500 rooms × 10, 4 in flight", CpuUsBusy, Floor(1.4)),
        );
    }
    let polling = case("polling", Polling, Http).lone(2000, 10.0);
    cases.push(polling.row("2,000 polls, lone", CpuUs, Own("lone-1000-tcp", 2.5)));
    // Answers over 1 KiB are compressed for those who take that; so few that the server's bound on it leaves none out.
    let plain = case("polling-2k", Polling, Http).lone(300, 10.0).long();
    let gzip = case("polling-gzip", Polling, Http).lone(300, 10.0).long();
    cases.push(
        plain
            .bytes(2048)
            .row("300 polls, 2 KiB a text", CpuUs, Beside("polling-http")),
    );
    let title = "300 polls, 2 KiB a text, gzip";
    cases.push(
        gzip.bytes(2048)
            .gzip()
            .row(title, CpuUs, Beside("polling-2k-http"))
            .row("of these answers, compressed", CompressedPercent, Told),
    );
    for (over, goal) in [
        (Tcp, Most(4.0)),
        (Ws, Most(4.0)),
        (Http, Most(13.0)),
        (Tls, Most(12.0)),
        (Wss, Most(12.0)),
        (Https, Beside("idle-http")),
    ] {
        let mut idle = case("idle", Idle, over);
        idle.settings.window = MOMENT;
        if over.dialect() == Dialect::Polling || over.is_tls() {
            // Those who come through TLS shake hands, which takes a thousand times as long as a message.
            idle.settings.members = 2000;
        }
        idle.is_long = matches!(over, Wss | Https);
        cases.push(idle.row(idle_title(over), KibPerConnection, goal));
    }
    // Signs of life come twice in a timeout, and a poll waits for half a minute.
    for (over, seconds) in [(Tcp, 15), (Ws, 15), (Http, 30)] {
        let mut idle = case("idle-pings", Idle, over).lasting(seconds).long();
        idle.settings.members = 500;
        idle.settings.whole_periods = true;
        idle.timeout = Some(DEFAULT_TIMEOUT);
        idle.once = true;
        cases.push(idle.row(idle_title(over), IdleBytes, Told));
    }
    let lone = case("lone-1000", Lone, Tls).lone(1000, 25.0);
    cases.push(lone.row("1,000 members, lone", CpuUs, Added("lone-1000-tcp", 0.45)));
    for over in [Tcp, Ws] {
        // The queue of a reader that stops is full after half of the time.
        let mut slow = case("slow-readers", SlowReaders, over)
            .bytes(4000)
            .lone(1000, 60.0)
            .lasting(4);
        slow.is_long = over == Ws;
        let all = Most(10.0);
        cases.push(
            slow.row("4 % stalled, p50 of the others", HealthyP50Percent, all)
                .row(
                    "4 % stalled, CPU of the others",
                    HealthyCpuPercent,
                    Most(5.0),
                )
                .row("4 % stalled, held for the worst", HeldKib, Most(512.0)),
        );
    }
    for over in [Tcp, Ws] {
        let mut small = case("small-beside-huge", SmallBesideHuge, over).batching();
        small.is_long = over == Ws;
        cases.push(small.row("10 beside a huge room, p50", SmallP50Ms, Most(1.0)));
    }
    for over in [Tcp, Ws] {
        let mut storm = case("join-storm", JoinStorm, over);
        storm.is_long = over == Ws;
        cases.push(storm.row("5,000 join at once", StormSeconds, Most(2.0)));
    }
    cases.push(case("login-storm", LoginStorm, Tcp).long());
    let scrape = Case::new("scrape", What::Scrape, Tcp, peers).lone(1000, 25.0);
    cases.push(scrape.row("metrics fetched each second", ScrapePercent, Most(2.0)));
    cases
}

const fn idle_title(over: Over) -> &'static str {
    match over.dialect() {
        Dialect::Polling => "a poll that waits",
        _ => "an idle connection",
    }
}

impl Case {
    fn new(name: &str, what: What, over: Over, peers: &[Contender]) -> Self {
        let settings = match what {
            What::Scenario(scenario) => scenario.settings(),
            What::Scrape => Scenario::Lone.settings(),
        };
        let mut case = Self {
            name: format!("{name}-{}", over.name()),
            over,
            contenders: Vec::new(),
            repeats: 0,
            what,
            // Who sends makes no difference to the work, and peers keep only one sender's messages in order.
            settings: Settings {
                publishers: 1,
                warm_up: WARM_UP,
                window: WINDOW,
                settle: SETTLE.min(settings.settle),
                whole_periods: false,
                ..settings
            },
            mode: Mode::Lone,
            rows: Vec::new(),
            is_long: false,
            once: false,
            timeout: None,
        };
        // Where others can play it at all: their joins and log-ins are not alike.
        let for_all = !name.starts_with("idle-pings")
            && matches!(
                what,
                What::Scenario(
                    Scenario::Lone
                        | Scenario::Batched
                        | Scenario::ManyRooms
                        | Scenario::Polling
                        | Scenario::Idle
                        | Scenario::SlowReaders
                        | Scenario::SmallBesideHuge
                )
            );
        let all = [Contender::Floor, Contender::Chinwag];
        case.contenders = all
            .iter()
            .chain(peers)
            .copied()
            .filter(|who| *who == Contender::Chinwag || (for_all && who.dialect(over).is_some()))
            .collect();
        case
    }

    /// Whether processor time is set beside that of others.
    pub(super) fn is_contest(&self) -> bool {
        use Scenario::{Batched, Lone, ManyRooms, Polling};
        matches!(
            self.what,
            What::Scenario(Lone | Batched | ManyRooms | Polling)
        )
    }

    /// Who takes part in this repeat, from 1. Peers don't in all, where they are there to be looked at.
    pub(super) fn contenders_of(&self, repeat: u32) -> Vec<Contender> {
        let all = self.is_contest() || repeat % PEERS_EVERY == 1;
        self.contenders
            .iter()
            .copied()
            .filter(|who| all || !who.is_peer())
            .collect()
    }

    /// How long all its runs have to wait for at least.
    pub(super) fn all_at_least(&self) -> Duration {
        (1..=self.repeats)
            .map(|repeat| {
                let runs = self.contenders_of(repeat).len();
                self.at_least() * u32::try_from(runs).unwrap_or(u32::MAX)
            })
            .sum()
    }

    /// The figures of its rows, out of a report.
    pub(super) fn figures(&self, report: &Report) -> BTreeMap<Figure, f64> {
        self.rows
            .iter()
            .flat_map(|row| std::iter::once(row.figure).chain(row.figure.companion()))
            .filter_map(|figure| Some((figure, figure.of(report)?)))
            .collect()
    }

    fn lone(mut self, members: usize, rate: f64) -> Self {
        self.settings.members = members;
        self.settings.paces = vec![("lone", Pace::PerSecond(rate))];
        self
    }

    /// The length of each text.
    fn bytes(mut self, payload: usize) -> Self {
        self.settings.payload = payload;
        self
    }

    /// System calls are counted, too.
    fn traced(mut self) -> Self {
        self.settings.syscalls = Some(TRACED);
        self
    }

    /// Those who poll take compressed answers.
    fn gzip(mut self) -> Self {
        self.settings.gzip = true;
        self
    }

    /// The floor writes together what came together.
    fn batching(mut self) -> Self {
        self.mode = Mode::Batch;
        self
    }

    fn long(mut self) -> Self {
        self.is_long = true;
        self
    }

    /// The length of its windows in seconds, whatever that of the others.
    fn lasting(mut self, seconds: u64) -> Self {
        self.settings.window = Duration::from_secs(seconds);
        self
    }

    fn row(mut self, title: &str, figure: Figure, goal: Goal) -> Self {
        let over = match self.over {
            Over::Tcp => "TCP",
            Over::Ws => "WebSocket",
            Over::Http => "polling",
            Over::Tls => "TLS",
            Over::Wss => "WebSocket through TLS",
            Over::Https => "polling through TLS",
        };
        self.rows.push(Row {
            title: format!("{title}, {over}"),
            figure,
            goal,
        });
        self
    }

    /// What one run of it waits for at least.
    pub(super) fn at_least(&self) -> Duration {
        let Settings {
            warm_up,
            window,
            settle,
            logins,
            ..
        } = self.settings;
        let once = warm_up + window;
        let windows = match self.what {
            What::Scenario(Scenario::Idle) => window,
            What::Scenario(Scenario::JoinStorm) => settle,
            What::Scenario(Scenario::LoginStorm) => {
                once + LOG_IN * u32::try_from(logins).unwrap_or(u32::MAX)
            }
            // Half a window in which all read.
            What::Scenario(Scenario::SlowReaders) => once + window / 2 + FATES,
            // And one for the small room alone.
            What::Scenario(Scenario::SmallBesideHuge) => 2 * once,
            _ => once * u32::try_from(self.settings.paces.len()).unwrap_or(u32::MAX),
        };
        let traced = self
            .settings
            .syscalls
            .map_or(Duration::ZERO, |window| window + TRACING);
        BESIDES + 2 * settle + windows + traced
    }

    /// With everything divided by `by`.
    pub(super) fn shrunk(self, by: u32) -> Self {
        Self {
            settings: shrunk(self.settings, by),
            ..self
        }
    }
}

fn shrunk(settings: Settings, by: u32) -> Settings {
    if by == 1 {
        return settings;
    }
    let less = by as usize;
    let members = (settings.members / less).max(20);
    Settings {
        members,
        rooms: settings.rooms.min(members / 10),
        logins: settings.logins.div_ceil(less),
        window: settings.window / by,
        warm_up: settings.warm_up / by,
        settle: settings.settle / by,
        syscalls: settings.syscalls.map(|window| window / by),
        whole_periods: false,
        ..settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        scenario::Subject,
        stalled::{Most, Stalled},
        target::{Names, Over::Tcp, Target},
    };

    #[test]
    fn every_case_can_be_carried_out_and_names_no_other_that_is_not_there() {
        use Contender::{Chinwag, Floor, Nats, Ws};
        let all = all(&[Nats, Ws]);
        for case in &all {
            assert!(case.contenders.contains(&Chinwag));
            assert!(case.settings.members / case.settings.rooms >= case.settings.publishers);
            assert_eq!(case.rows.is_empty(), case.settings.logins > 0);
            for row in &case.rows {
                match row.goal {
                    Goal::Own(other, _) | Goal::Added(other, _) | Goal::Beside(other) => {
                        assert!(all.iter().any(|case| case.name == other), "{other}");
                    }
                    // A bound that nobody ever plays against would hold nothing.
                    Goal::Peer(who, _) => assert!(who.dialect(case.over).is_some()),
                    Goal::Floor(_) => assert!(case.contenders.contains(&Floor), "{}", case.name),
                    Goal::Most(_) | Goal::Told => (),
                }
            }
        }
        let who = |name: &str| {
            &all.iter()
                .find(|case| case.name == name)
                .unwrap()
                .contenders
        };
        assert_eq!(*who("lone-1000-tcp"), [Floor, Chinwag, Nats]);
        assert_eq!(*who("lone-1000-ws"), [Floor, Chinwag, Ws]);
        assert_eq!(*who("slow-readers-tcp"), [Floor, Chinwag, Nats]);
        assert_eq!(*who("small-beside-huge-ws"), [Floor, Chinwag, Ws]);
        assert_eq!(*who("idle-tcp"), [Floor, Chinwag, Nats]);
        assert_eq!(*who("idle-wss"), [Chinwag]);
        assert_eq!(*who("idle-pings-tcp"), [Chinwag]);
        assert_eq!(*who("polling-http"), [Chinwag]);
        assert_eq!(*who("join-storm-tcp"), [Chinwag]);
        assert_eq!(*who("login-storm-tcp"), [Chinwag]);
        assert_eq!(*who("lone-1000-tls"), [Chinwag]);
    }

    #[test]
    fn the_worst_of_those_who_stall_is_judged() {
        let subject = Subject {
            target: Target::here(Tcp.dialect(), ([127, 0, 0, 1], 1).into()),
            pid: None,
            names: Names::own(),
        };
        let mut report = Report::new(Scenario::SlowReaders, &subject);
        report.stalled = Some(Stalled {
            readers: 40,
            ended: BTreeMap::new(),
            still_there: 0,
            passed_over: 0,
            seconds_until_ended: None,
            kernel_kib: Some(Most {
                one: 900.0,
                average: 300.0,
            }),
            process_kib_per_reader: Some(64.0),
            not_available: None,
            healthy_p50_change_percent: 0.0,
            healthy_cpu_change_percent: None,
        });
        assert_eq!(Figure::HeldKib.of(&report), Some(964.0));
    }

    #[test]
    fn all_cases_with_all_peers_are_played_eleven_times_within_three_quarters_of_an_hour() {
        use Contender::{Mosquitto, MosquittoTuned, Nats, Uws, Ws};
        let took: Duration = all(&[Mosquitto, MosquittoTuned, Nats, Ws, Uws])
            .into_iter()
            .map(|mut case| {
                case.repeats = if case.once { 1 } else { 11 };
                case.all_at_least()
            })
            .sum();
        assert!(took < Duration::from_secs(45 * 60), "{took:?}");
    }

    #[test]
    fn peers_play_every_repeat_of_a_contest_and_every_third_of_what_they_are_only_looked_at_for() {
        use Contender::{Chinwag, Floor, Uws};
        let all = all(&[Uws]);
        let who = |name: &str, repeat| {
            let case = all.iter().find(|case| case.name == name).unwrap();
            case.contenders_of(repeat)
        };
        for repeat in 1..=11 {
            assert_eq!(who("batched-ws", repeat), [Floor, Chinwag, Uws]);
            let idle = who("idle-ws", repeat);
            assert_eq!(idle[..2], [Floor, Chinwag]);
            assert_eq!(idle.len() == 3, [1, 4, 7, 10].contains(&repeat), "{repeat}");
        }
    }

    #[test]
    fn a_table_of_the_design_has_its_bounds_on_both_transports() {
        use Contender::{Chinwag, Uws};
        use Figure::{CallsPerWrite, Sleeps};
        let all = all(&[Uws]);
        let goals = |name: &str, figure: Figure| -> Vec<String> {
            let case = all.iter().find(|case| case.name == name).unwrap();
            assert!(case.contenders.contains(&Chinwag));
            let rows = case.rows.iter().filter(|row| row.figure == figure);
            rows.map(|row| format!("{:?}", row.goal)).collect()
        };
        for over in ["tcp", "ws"] {
            let of = |name: &str, figure| goals(&format!("{name}-{over}"), figure);
            assert_eq!(of("lone-1000", Figure::CpuUs), ["Floor(1.25)"]);
            assert_eq!(of("lone-1000", CallsPerWrite), ["Most(1.02)"]);
            assert_eq!(of("lone-1000", Sleeps), ["Most(0.01)"]);
            assert_eq!(of("lone-5000", Figure::CpuUs), ["Floor(1.25)"]);
            assert_eq!(of("many-rooms", Figure::CpuUs), ["Floor(1.35)"]);
            assert_eq!(of("many-rooms", Figure::CpuUsBusy), ["Floor(1.4)"]);
            assert_eq!(of("idle", Figure::KibPerConnection), ["Most(4.0)"]);
            assert_eq!(
                of("slow-readers", Figure::HealthyP50Percent),
                ["Most(10.0)"]
            );
            assert_eq!(of("slow-readers", Figure::HealthyCpuPercent), ["Most(5.0)"]);
            assert_eq!(of("slow-readers", Figure::HeldKib), ["Most(512.0)"]);
            assert_eq!(of("small-beside-huge", Figure::SmallP50Ms), ["Most(1.0)"]);
            assert_eq!(of("join-storm", Figure::StormSeconds), ["Most(2.0)"]);
        }
        assert_eq!(goals("batched-tcp", Figure::CpuUs), ["Floor(1.4)"]);
        assert_eq!(
            goals("batched-ws", Figure::CpuUs),
            ["Floor(1.4)", "Peer(Uws, 1.0)"]
        );
        for over in ["tls", "wss"] {
            let name = format!("idle-{over}");
            assert_eq!(goals(&name, Figure::KibPerConnection), ["Most(12.0)"]);
        }
        assert_eq!(goals("idle-http", Figure::KibPerConnection), ["Most(13.0)"]);
    }

    #[test]
    fn a_shrunk_case_is_small_and_still_one() {
        for case in all(&[]) {
            let window = case.settings.window;
            let settings = case.shrunk(50).settings;
            assert!(settings.members <= 100 && settings.members >= settings.rooms * 10);
            assert!(!settings.window.is_zero() && settings.window < window);
        }
    }
}
