//! What a comparison found, as tables and as a plot.

use std::collections::BTreeMap;

use super::{
    Outcome, Sample,
    case::{Case, Figure, Goal, Row},
};
use crate::{
    load::Part, peers::Contender, plot, process::Machine, report::Report, spread::Spread, table,
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
            Goal::Own(case, _) | Goal::Beside(case) => {
                self.figures(case, figure, Contender::Chinwag)
            }
            Goal::Most(_) => return None,
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
        if self.contenders.keys().any(|who| is_peer(*who)) {
            text += "\nThe same on other servers: median (least–greatest), and the median over the floor's.\n\n";
            text += &self.beside();
        }
        text += "\nMedians beside them. Rates and latencies want a quiet machine.\n\n";
        text += &self.details();
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
            let floor = self
                .spread(case, row.figure, Contender::Floor)
                .filter(|_| against_floor);
            let ratio = self.ratio(case, row.figure, row.goal);
            let (judged, most, goal) = match row.goal {
                Goal::Floor(most) => (ratio, most, format!("≤ {most} × floor")),
                Goal::Own(other, most) => (ratio, most, format!("≤ {most} × {other}")),
                Goal::Added(other, most) => (ratio, most, format!("≤ {other} + {most} × floor")),
                Goal::Most(most) => (own, most, format!("≤ {most}")),
                Goal::Beside(other) => (None, 0.0, format!("beside {other}")),
            };
            let held = judged.map(|spread| spread.median <= most);
            // The same for what one read of the client brought: medians, and no goal.
            let read = row.figure.companion().filter(|_| against_floor);
            let median = |contender| {
                let spread = self.spread(case, read?, contender)?;
                Some(format!("{:.2}", spread.median))
            };
            let none = || "–".to_owned();
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
        let with_peers =
            |(case, _): &(&Case, &Row)| case.contenders.iter().any(|who| is_peer(*who));
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
                for (at, (window, _)) in case.settings.paces.iter().enumerate() {
                    let name = format!("{}, {window}", case.name);
                    let parts: Vec<&Part> = self
                        .samples
                        .iter()
                        .filter(|run| run.case == case.name && run.contender == *contender)
                        .filter_map(|run| run.report.parts.get(at))
                        .collect();
                    rows.push(detail(&name, *contender, &parts));
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
        ];
        table::markdown(&head, rows)
    }

    /// Processor time of all contenders, as a plot.
    #[must_use]
    pub fn svg(&self) -> String {
        let is_cpu =
            |(_, row): &(&Case, &Row)| matches!(row.figure, Figure::CpuUs | Figure::CpuUsBusy);
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

const fn is_peer(contender: Contender) -> bool {
    !matches!(contender, Contender::Floor | Contender::Chinwag)
}

fn cell(spread: Option<Spread>, digits: usize) -> String {
    spread.map_or_else(
        || "–".to_owned(),
        |spread| {
            if spread.min == spread.max {
                format!("{:.digits$}", spread.median)
            } else {
                format!("{spread:.digits$}")
            }
        },
    )
}

fn detail(name: &str, contender: Contender, parts: &[&Part]) -> Vec<String> {
    let median = |digits: usize, figure: &dyn Fn(&Part) -> Option<f64>| {
        let spread = Spread::of(parts.iter().filter_map(|part| figure(part)));
        spread.map_or_else(
            || "–".to_owned(),
            |spread| format!("{:.digits$}", spread.median),
        )
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
