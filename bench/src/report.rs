//! Results as a person reads them.

use std::fmt;

use serde::Serialize;

use crate::load::{IdleReport, LoadReport, Pace};

/// The middle and the ends of some repeats.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The middle value; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// The spread of `values`; `None` if there are none.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            f64::midpoint(values[middle - 1], values[middle])
        } else {
            values[middle]
        };
        Some(Self { median, min, max })
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(2);
        write!(
            f,
            "{:.digits$} ({:.digits$}-{:.digits$})",
            self.median, self.min, self.max
        )
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PerSecond(rate) => write!(f, "{rate} messages/s"),
            Self::InFlight(count) => write!(f, "{count} in flight"),
        }
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            members,
            publishers,
            pace,
            payload,
            seconds,
            ..
        } = self;
        let framing = self.framing.name();
        let sending = format!("{publishers} of them sending {pace}, {payload} bytes each");
        writeln!(f, "{members} members over {framing}, {sending}")?;
        writeln!(
            f,
            "  messages    {}, delivered {} times in {seconds:.2} s: {:.0}/s, {:.2} a read",
            self.messages, self.deliveries, self.deliveries_per_second, self.deliveries_per_read,
        )?;
        writeln!(
            f,
            "  faults      {} lost, {} repeated, {} reordered, {} split",
            self.lost, self.repeated, self.reordered, self.split,
        )?;
        writeln!(
            f,
            "              {} not sent, {} not answered, {} not delivered in time",
            self.unsent, self.unanswered, self.missing,
        )?;
        let latency = self.latency_us;
        writeln!(
            f,
            "  latency     p50 {} us, p90 {}, p99 {}, p99.9 {}, max {} (99 % sent within {} us of due)",
            latency.p50, latency.p90, latency.p99, latency.p99_9, latency.max, self.sent_late_us,
        )?;
        let Some(server) = self.server else {
            return writeln!(f, "  server      not looked at: no --pid");
        };
        writeln!(
            f,
            "  server      {:.3} us CPU a delivery, resident {} KiB",
            server.cpu_us_per_delivery, server.resident_kib,
        )?;
        writeln!(
            f,
            "  switches    {:.4} voluntary a delivery, {:.4} involuntary",
            server.voluntary_switches_per_delivery, server.involuntary_switches_per_delivery,
        )?;
        if server.threads_ended > 0 {
            writeln!(
                f,
                "              {} threads ended meanwhile: their time is missing",
                server.threads_ended
            )?;
        }
        writeln!(
            f,
            "  processors  server {:.0} %, client {:.0} %, others {:.0} % of one",
            server.cpu_percent, server.client_cpu_percent, server.other_cpu_percent,
        )
    }
}

impl fmt::Display for IdleReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} idle connections over {}, {}: {:.2} KiB each (resident {} KiB before, {} after)",
            self.connections,
            self.framing.name(),
            if self.joined {
                "in the room"
            } else {
                "logged in"
            },
            self.kib_per_connection,
            self.before_kib,
            self.after_kib,
        )
    }
}

/// Rows as text, columns aligned to the left under their heads.
#[must_use]
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count());
        cells
            .chain([head[column].chars().count()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = String::new();
    let heads: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    for row in std::iter::once(&heads).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_odd_and_an_even_number_of_repeats() {
        let odd = Spread::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!(
            odd,
            Spread {
                median: 2.0,
                min: 1.0,
                max: 3.0
            }
        );
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn a_spread_shows_the_digits_asked_for() {
        assert_eq!(
            format!(
                "{:.1}",
                Spread {
                    median: 1.25,
                    min: 1.0,
                    max: 2.0
                }
            ),
            "1.2 (1.0-2.0)"
        );
    }

    #[test]
    fn columns_are_aligned() {
        let text = table(&["a", "long head"], &[vec!["cell".into(), "x".into()]]);
        assert_eq!(text, "a     long head\ncell  x\n");
    }
}
