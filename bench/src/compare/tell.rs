//! What a comparison found, as tables and as a plot.

use std::collections::BTreeMap;

use super::{
    Outcome, Sample,
    case::{Case, Figure, Goal, Row},
};
use crate::{
    load::{Latency, Part},
    login_storm::Logins,
    peers::Contender,
    plot,
    process::Machine,
    report::Report,
    spread::Spread,
    table,
};

impl Outcome {
    /// A figure of a contender in a case, by repeat.
    fn figures(&self, case: &str, figure: Figure, contender: Contender) -> BTreeMap<u32, f64> {
        self.samples
            .iter()
            .filter(|sample| sample.case == case && sample.contender == contender)
            .filter_map(|sample| Some((sample.repeat, *sample.figures.get(&figure)?)))
            .collect()
    }

    fn spread(&self, case: &Case, figure: Figure, contender: Contender) -> Option<Spread> {
        Spread::of(self.figures(&case.name, figure, contender).into_values())
    }

    /// chinwag's figure, or what it has more, over that which it is set against, within each repeat.
    fn ratio(&self, case: &Case, figure: Figure, goal: Goal) -> Option<Spread> {
        let mut own = self.figures(&case.name, figure, Contender::Chinwag);
        let against = match goal {
            Goal::Added(case, _) => {
                let without = self.figures(case, figure, Contender::Chinwag);
                own.retain(|repeat, _| without.contains_key(repeat));
                for (repeat, figure) in &mut own {
                    *figure -= without[repeat];
                }
                self.figures(case, figure, Contender::Floor)
            }
            Goal::Floor(_) => self.figures(&case.name, figure, Contender::Floor),
            Goal::Peer(who, _) => self.figures(&case.name, figure, who),
            Goal::Own(case, _) | Goal::Beside(case) => {
                self.figures(case, figure, Contender::Chinwag)
            }
            Goal::Most(_) | Goal::Told => return None,
        };
        Spread::of(
            own.iter()
                .filter_map(|(repeat, figure)| Some(figure / against.get(repeat)?))
                .filter(|ratio| ratio.is_finite()),
        )
    }

    fn rows(&self) -> impl Iterator<Item = (&Case, &Row)> {
        self.cases
            .iter()
            .flat_map(|case| case.rows.iter().map(move |row| (case, row)))
    }

    /// The tables, as Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = self.preamble();
        text += "\nMedian (least–greatest); ratios within each repeat.\n\n";
        text += &self.goals();
        if self.contenders.keys().any(|who| who.is_peer()) {
            text += "\nThe same on other servers: median (least–greatest), and the median over the floor's. Where \
                     chinwag is not held to others, those play every third repeat.\n\n";
            text += &self.beside();
        }
        text += "\nMedians beside them. Rates and latencies want a quiet machine.\n\n";
        text += &self.details();
        if self.cases.iter().any(|case| case.settings.logins > 0) {
            text += "\nA room of chinwag's before users log in at once with passwords, and while they do: \
                     median (least–greatest).\n\n";
            text += &self.log_ins();
        }
        for failure in &self.failures {
            text += &format!("\nDID NOT RUN: {failure}\n");
        }
        for sample in self.samples.iter().filter(|sample| sample.faults() > 0) {
            text += &told(sample);
        }
        if self.is_sound() {
            text += &format!(
                "\nIn none of {} runs was a message lost, repeated or reordered.\n",
                self.samples.len()
            );
        }
        text
    }

    fn preamble(&self) -> String {
        let Machine {
            cores,
            cpu,
            kernel,
            load,
            unoptimised,
        } = &self.machine;
        let mut text = format!(
            "- machine: {cores} cores, {cpu}, Linux {kernel}; load averages {load} before, {} after\n",
            self.load_after
        );
        if let Some(of) = &self.of {
            text += &format!("- measured: {of}\n");
        }
        text += &format!("- command: `chinwag-bench {}`\n", self.command);
        for (contender, version) in &self.contenders {
            text += &format!("- {}: {version}\n", contender.name());
        }
        if *unoptimised {
            text += "\n**Built without optimisation: no figure here is worth anything.**\n";
        }
        text
    }

    /// chinwag beside the floor and its goals.
    fn goals(&self) -> String {
        let cells = |(case, row): (&Case, &Row)| {
            let digits = row.figure.digits();
            let against_floor = matches!(row.goal, Goal::Floor(_));
            let own = self.spread(case, row.figure, Contender::Chinwag);
            let floor = self.spread(case, row.figure, Contender::Floor);
            let ratio = self.ratio(case, row.figure, row.goal);
            let (judged, most, goal) = match row.goal {
                Goal::Floor(most) => (ratio, most, format!("≤ {most} × floor")),
                Goal::Peer(who, most) => (ratio, most, format!("≤ {most} × {}", who.name())),
                Goal::Own(other, most) => (ratio, most, format!("≤ {most} × {other}")),
                Goal::Added(other, most) => (ratio, most, format!("≤ {other} + {most} × floor")),
                Goal::Most(most) => (own, most, format!("≤ {most}")),
                Goal::Beside(other) => (None, 0.0, format!("beside {other}")),
                Goal::Told => (None, 0.0, "–".to_owned()),
            };
            let held = judged.map(|spread| spread.median <= most);
            // The same for what one read of the client brought: medians, and no goal.
            let read = row.figure.companion().filter(|_| against_floor);
            let median = |contender| {
                let spread = self.spread(case, read?, contender)?;
                Some(format!("{:.2}", spread.median))
            };
            let a_read = match (median(Contender::Floor), median(Contender::Chinwag)) {
                (None, None) => none(),
                (floor, own) => format!(
                    "{} : {}",
                    floor.unwrap_or_else(none),
                    own.unwrap_or_else(none)
                ),
            };
            let read_ratio = read.and_then(|figure| self.ratio(case, figure, row.goal));
            vec![
                row.title.clone(),
                row.figure.unit().to_owned(),
                cell(floor, digits),
                cell(own, digits),
                cell(ratio, 2),
                goal,
                held.map_or("–", |held| if held { "yes" } else { "**no**" })
                    .to_owned(),
                a_read,
                read_ratio.map_or_else(none, |ratio| format!("{:.2}", ratio.median)),
            ]
        };
        let head = [
            "case",
            "unit",
            "floor",
            "chinwag",
            "ratio",
            "goal",
            "held",
            "µs a read",
            "its ratio",
        ];
        table::markdown(&head, self.rows().map(cells))
    }

    /// Everybody beside each other.
    fn beside(&self) -> String {
        let contenders: Vec<Contender> = self.contenders.keys().copied().collect();
        // A second bound has the figures of the first.
        let with_peers = |(case, row): &(&Case, &Row)| {
            case.contenders.iter().any(|who| who.is_peer()) && !matches!(row.goal, Goal::Peer(..))
        };
        let cells = |(case, row): (&Case, &Row)| {
            let floor = self.spread(case, row.figure, Contender::Floor);
            let of = |who: &Contender| {
                let spread = self.spread(case, row.figure, *who);
                let text = cell(spread, row.figure.digits());
                match (spread, floor, row.goal) {
                    (Some(spread), Some(floor), Goal::Floor(_)) if *who != Contender::Floor => {
                        format!("{text} {:.2}×", spread.median / floor.median)
                    }
                    _ => text,
                }
            };
            let title = format!("{}, {}", row.title, row.figure.unit());
            std::iter::once(title)
                .chain(contenders.iter().map(of))
                .collect()
        };
        let mut head = vec!["case"];
        head.extend(contenders.iter().map(|contender| contender.name()));
        table::markdown(&head, self.rows().filter(with_peers).map(cells))
    }

    /// What processor time alone does not tell.
    fn details(&self) -> String {
        let mut rows = Vec::new();
        for case in self.cases.iter().filter(|case| case.is_contest()) {
            for contender in &case.contenders {
                let runs: Vec<&Sample> = self
                    .samples
                    .iter()
                    .filter(|run| run.case == case.name && run.contender == *contender)
                    .collect();
                let calls = runs
                    .iter()
                    .filter_map(|run| Figure::CallsPerWrite.of(&run.report));
                let calls = Spread::of(calls);
                for (at, (window, _)) in case.settings.paces.iter().enumerate() {
                    let name = format!("{}, {window}", case.name);
                    let parts: Vec<&Part> = runs
                        .iter()
                        .filter_map(|run| run.report.parts.get(at))
                        .collect();
                    let mut cells = detail(&name, *contender, &parts);
                    cells.push(calls.map_or_else(none, |calls| format!("{:.3}", calls.median)));
                    rows.push(cells);
                }
            }
        }
        let head = [
            "case",
            "server",
            "deliveries/s",
            "a read",
            "µs a read",
            "bytes",
            "p50 ms",
            "p99 ms",
            "sleeps",
            "client %",
            "others %",
            "calls a write",
        ];
        table::markdown(&head, rows)
    }

    /// What log-ins with passwords cost a room beside them, and how long they take.
    fn log_ins(&self) -> String {
        let cells = |case: &Case| {
            let runs = self.samples.iter().filter(|run| run.case == case.name);
            let reports: Vec<&Report> = runs.map(|run| &run.report).collect();
            let room = |part: usize, figure: fn(&Latency) -> u64| {
                let parts = reports.iter().filter_map(|report| report.parts.get(part));
                let figures = parts.map(|part| figure(&part.latency_us) as f64 / 1000.0);
                cell(Spread::of(figures), 2)
            };
            let comers = |digits: usize, figure: fn(&Logins) -> f64| {
                let logins = reports.iter().filter_map(|report| report.logins.as_ref());
                cell(Spread::of(logins.map(figure)), digits)
            };
            vec![
                case.name.clone(),
                case.settings.members.to_string(),
                case.settings.logins.to_string(),
                room(0, |latency| latency.p50),
                room(0, |latency| latency.p99),
                room(1, |latency| latency.p50),
                room(1, |latency| latency.p99),
                comers(1, |logins| logins.seconds_until_in),
                comers(1, |logins| logins.seconds_p50),
                comers(1, |logins| logins.seconds_p99),
                comers(0, |logins| logins.users_turned_away as f64),
                comers(0, |logins| logins.unavailable as f64),
            ]
        };
        let head = [
            "case",
            "members",
            "log-ins",
            "before p50 ms",
            "before p99 ms",
            "during p50 ms",
            "during p99 ms",
            "all in s",
            "one in p50 s",
            "one in p99 s",
            "turned away",
            "unavailable",
        ];
        let storms = self.cases.iter().filter(|case| case.settings.logins > 0);
        table::markdown(&head, storms.map(cells))
    }

    /// Processor time of all contenders, as a plot.
    #[must_use]
    pub fn svg(&self) -> String {
        let is_cpu = |(_, row): &(&Case, &Row)| {
            matches!(row.figure, Figure::CpuUs | Figure::CpuUsBusy)
                && !matches!(row.goal, Goal::Peer(..))
        };
        let rows: Vec<plot::Row> = self
            .rows()
            .filter(is_cpu)
            .map(|(case, row)| plot::Row {
                name: row.title.clone(),
                figures: case
                    .contenders
                    .iter()
                    .filter_map(|who| {
                        let spread = self.spread(case, row.figure, *who)?;
                        let figures = [spread.median, spread.min, spread.max];
                        Some((who.name().to_owned(), figures))
                    })
                    .collect(),
            })
            .collect();
        plot::figures("Server CPU for one delivery (less is better)", "µs", &rows)
    }
}

/// A figure that there is not.
fn none() -> String {
    "–".to_owned()
}

fn cell(spread: Option<Spread>, digits: usize) -> String {
    spread.map_or_else(none, |spread| {
        if spread.min == spread.max {
            format!("{:.digits$}", spread.median)
        } else {
            format!("{spread:.digits$}")
        }
    })
}

fn detail(name: &str, contender: Contender, parts: &[&Part]) -> Vec<String> {
    let median = |digits: usize, figure: &dyn Fn(&Part) -> Option<f64>| {
        let spread = Spread::of(parts.iter().filter_map(|part| figure(part)));
        spread.map_or_else(none, |spread| format!("{:.digits$}", spread.median))
    };
    vec![
        name.to_owned(),
        contender.name().to_owned(),
        median(0, &|part| Some(part.deliveries_per_second)),
        median(2, &|part| Some(part.deliveries_per_read)),
        median(2, &|part| {
            Some(part.server?.cpu_us_per_delivery? * part.deliveries_per_read)
        }),
        median(0, &|part| Some(part.wire_bytes_per_delivery)),
        median(2, &|part| Some(part.latency_us.p50 as f64 / 1000.0)),
        median(2, &|part| Some(part.latency_us.p99 as f64 / 1000.0)),
        median(4, &|part| part.server?.voluntary_switches_per_delivery),
        median(0, &|part| Some(part.server?.client_cpu_percent)),
        median(0, &|part| Some(part.server?.other_cpu_percent)),
    ]
}

fn told(sample: &Sample) -> String {
    let Report { faults, .. } = &sample.report;
    format!(
        "\nFAULTS: {} of {}, repeat {}: {}\n",
        sample.contender.name(),
        sample.case,
        sample.repeat,
        faults.words().join("; ")
    )
}
