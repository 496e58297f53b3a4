//! What is played in a comparison, against whom, and which figures come of it.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use crate::{
    floor::Mode,
    load::Pace,
    peers::Contender,
    report::Report,
    scenario::{Scenario, Settings},
    target::Over,
};

/// Length of a window, where a case has none of its own. Processor time is counted to the nanosecond, so that 30,000
/// deliveries say as much as many more: what makes runs differ is the machine, and more of them help against that.
const WINDOW: Duration = Duration::from_millis(1500);
/// Time before each window that does not count.
const WARM_UP: Duration = Duration::from_millis(400);
/// Longest quiet time before a look at memory.
const SETTLE: Duration = Duration::from_millis(500);
/// What a run takes besides windows and quiet times: starting, and members who come in.
const BESIDES: Duration = Duration::from_millis(800);

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
    /// What the table shows of it.
    #[serde(skip)]
    pub(super) rows: Vec<Row>,
    /// Whether a quick look leaves it out.
    #[serde(skip)]
    pub(super) is_long: bool,
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
    /// Its own figure of another case in the same repeat, times this.
    Own(&'static str, f64),
    /// What it has more than its own figure of another case, in the floor's figure of that case and repeat, times this.
    Added(&'static str, f64),
    /// So much at most.
    Most(f64),
    /// To nothing: it is set beside its own figure of another case in the same repeat.
    Beside(&'static str),
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
    /// Resident memory for a connection.
    KibPerConnection,
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
            Self::KibPerConnection | Self::HeldKib => "KiB",
            Self::HealthyP50Percent | Self::HealthyCpuPercent | Self::ScrapePercent => "%",
            Self::SmallP50Ms => "ms",
            Self::StormSeconds => "CPU s",
        }
    }

    pub(super) const fn digits(self) -> usize {
        match self {
            Self::CpuUs | Self::CpuUsBusy | Self::SmallP50Ms => 3,
            Self::CpuUsRead
            | Self::CpuUsReadBusy
            | Self::KibPerConnection
            | Self::StormSeconds
            | Self::ScrapePercent => 2,
            Self::HealthyP50Percent | Self::HealthyCpuPercent => 1,
            Self::HeldKib => 0,
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
    fn of(self, report: &Report) -> Option<f64> {
        let cpu = |at: usize| report.parts.get(at)?.server?.cpu_us_per_delivery;
        let a_read = |at: usize| Some(cpu(at)? * report.parts.get(at)?.deliveries_per_read);
        let stalled = report.stalled.as_ref();
        match self {
            Self::CpuUs => cpu(0),
            Self::CpuUsBusy => cpu(1),
            Self::CpuUsRead => a_read(0),
            Self::CpuUsReadBusy => a_read(1),
            Self::KibPerConnection => Some(report.memory?.kib_per_connection),
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
        CpuUs, CpuUsBusy, HealthyCpuPercent, HealthyP50Percent, HeldKib, KibPerConnection,
        ScrapePercent, SmallP50Ms, StormSeconds,
    };
    use Goal::{Added, Beside, Floor, Most, Own};
    use Over::{Http, Tcp, Tls, Ws};
    use Scenario::{
        Batched, Idle, JoinStorm, Lone, ManyRooms, Polling, SlowReaders, SmallBesideHuge,
    };
    let case = |name: &str, scenario, over| Case::new(name, What::Scenario(scenario), over, peers);
    let mut cases = Vec::new();
    for over in [Tcp, Ws] {
        let lone = case("lone-1000", Lone, over).lone(1000, 20.0);
        cases.push(lone.row("1,000 members, lone", CpuUs, Floor(1.25)));
    }
    for over in [Tcp, Ws] {
        let lone = case("lone-5000", Lone, over).lone(5000, 4.0).long();
        cases.push(lone.row("5,000 members, lone", CpuUs, Floor(1.25)));
    }
    for over in [Tcp, Ws] {
        let batched = case("batched", Batched, over).batching();
        cases.push(batched.row("1,000 members, 16 in flight", CpuUs, Floor(1.4)));
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
    // Answers over 1 KiB are compressed for those who take that.
    let plain = case("polling-2k", Polling, Http).lone(2000, 10.0).long();
    let gzip = case("polling-gzip", Polling, Http).lone(2000, 10.0).long();
    cases.push(
        plain
            .bytes(2048)
            .row("2,000 polls, 2 KiB a text", CpuUs, Beside("polling-http")),
    );
    cases.push(gzip.bytes(2048).gzip().row(
        "2,000 polls, 2 KiB a text, gzip",
        CpuUs,
        Beside("polling-2k-http"),
    ));
    for (over, most) in [(Tcp, 4.0), (Ws, 4.0), (Http, 13.0)] {
        let mut idle = case("idle", Idle, over).lasting(1);
        let mut title = "an idle connection";
        if over == Http {
            idle.settings.members = 2000;
            title = "a poll that waits";
        }
        cases.push(idle.row(title, KibPerConnection, Most(most)));
    }
    let lone = case("lone-1000", Lone, Tls).lone(1000, 20.0);
    cases.push(lone.row("1,000 members, lone", CpuUs, Added("lone-1000-tcp", 0.45)));
    let mut idle = case("idle", Idle, Tls).lasting(1);
    // Each of them shakes hands, which takes a thousand times as long as a message.
    idle.settings.members = 2000;
    cases.push(idle.row("an idle connection", KibPerConnection, Most(12.0)));
    cases.push(
        // The queue of a reader that stops is full after half of the time.
        case("slow-readers", SlowReaders, Tcp)
            .lasting(10)
            .row(
                "4 % stalled, p50 of the others",
                HealthyP50Percent,
                Most(10.0),
            )
            .row(
                "4 % stalled, CPU of the others",
                HealthyCpuPercent,
                Most(5.0),
            )
            .row("4 % stalled, held for the worst", HeldKib, Most(512.0)),
    );
    let small = case("small-beside-huge", SmallBesideHuge, Tcp);
    cases.push(small.row("10 beside a huge room, p50", SmallP50Ms, Most(1.0)));
    let storm = case("join-storm", JoinStorm, Tcp);
    cases.push(storm.row("5,000 join at once", StormSeconds, Most(2.0)));
    let scrape = Case::new("scrape", What::Scrape, Tcp, peers).lone(1000, 20.0);
    cases.push(scrape.row("metrics fetched each second", ScrapePercent, Most(2.0)));
    cases
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
                ..settings
            },
            mode: Mode::Lone,
            rows: Vec::new(),
            is_long: false,
        };
        let for_all = case.is_contest() || what == What::Scenario(Scenario::Idle);
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
            ..
        } = self.settings;
        let once = warm_up + window;
        let windows = match self.what {
            What::Scenario(Scenario::Idle) => window,
            What::Scenario(Scenario::JoinStorm) => settle,
            // Half a window in which all read.
            What::Scenario(Scenario::SlowReaders) => once + window / 2,
            // And one for the small room alone.
            What::Scenario(Scenario::SmallBesideHuge) => 2 * once,
            _ => once * u32::try_from(self.settings.paces.len()).unwrap_or(u32::MAX),
        };
        BESIDES + 2 * settle + windows
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
        window: settings.window / by,
        warm_up: settings.warm_up / by,
        settle: settings.settle / by,
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
            assert!(!case.rows.is_empty());
            for row in &case.rows {
                if let Goal::Own(other, _) | Goal::Added(other, _) | Goal::Beside(other) = row.goal
                {
                    assert!(all.iter().any(|case| case.name == other), "{other}");
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
        assert_eq!(*who("polling-http"), [Chinwag]);
        assert_eq!(*who("join-storm-tcp"), [Chinwag]);
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
    fn all_cases_with_all_peers_are_played_eleven_times_within_forty_minutes() {
        use Contender::{Mosquitto, MosquittoTuned, Nats, Uws, Ws};
        let once: Duration = all(&[Mosquitto, MosquittoTuned, Nats, Ws, Uws])
            .iter()
            .map(|case| case.at_least() * u32::try_from(case.contenders.len()).unwrap())
            .sum();
        assert!(11 * once < Duration::from_secs(40 * 60), "{:?}", 11 * once);
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
