//! What a scenario found out, for people and for programs.

use std::fmt::{self, Write as _};

use serde::Serialize;

use crate::{
    cost::Cost,
    hearing::{Presence, Wrong},
    load::{Latency, Pace, Part},
    login_storm::Logins,
    plot::{self, time},
    process::Machine,
    scenario::{Scenario, Subject},
    stalled::Stalled,
    syscalls::Syscalls,
};

/// Everything that one run of a scenario found. As JSON, what was not looked at is null.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Which scenario.
    pub scenario: Scenario,
    /// Against whom.
    pub url: String,
    /// Where, as found before the run.
    pub machine: Machine,
    /// How everybody came in.
    pub gather: Gather,
    /// What connections take of the server's memory.
    pub memory: Option<Memory>,
    /// The windows in which messages were sent.
    pub parts: Vec<Part>,
    /// What idle connections cost.
    pub idle: Option<Idle>,
    /// How everybody joined at once.
    pub storm: Option<Storm>,
    /// How many users logged in at once.
    pub logins: Option<Logins>,
    /// What became of those that stopped reading.
    pub stalled: Option<Stalled>,
    /// System calls, if they were asked for.
    pub syscalls: Option<Counted>,
    /// What was not as it has to be.
    pub faults: Faults,
}

/// How members came in.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Gather {
    /// How many.
    pub members: usize,
    /// Whether they also joined their rooms.
    pub joined: bool,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// How many a second.
    pub per_second: f64,
    /// The server's processor time for each, in microseconds.
    pub server_cpu_us_per_member: Option<f64>,
}

/// What connections take of the server's memory.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Memory {
    /// Connections that are counted: a few that came first are not, nor what the server takes once.
    pub connections: usize,
    /// Resident memory before them, in KiB.
    pub before_kib: u64,
    /// Resident memory with them, in KiB.
    pub after_kib: u64,
    /// What one of them added, in KiB. The kernel's socket buffers are not in it.
    pub kib_per_connection: f64,
}

/// What idle connections cost.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Idle {
    /// How long nothing was sent, in seconds.
    pub seconds: f64,
    /// How often a connection shows all the same that it lives, in seconds: what the server told, or how long a poll
    /// waits. Null where neither is known or needed.
    pub period_seconds: Option<f64>,
    /// Bytes that the server sent on each connection, in a minute.
    pub bytes_in_per_minute: f64,
    /// Bytes that each client sent, in a minute.
    pub bytes_out_per_minute: f64,
    /// The server's processor time in percent of one core.
    pub server_cpu_percent: Option<f64>,
}

/// How everybody joined at once.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Storm {
    /// How many.
    pub members: usize,
    /// Until the last one was in, in seconds.
    pub seconds_until_in: f64,
    /// Until everybody knew how many there were.
    pub seconds_until_told: f64,
    /// What they were told about each other.
    pub presence: Presence,
    /// Bytes that the server sent for all that.
    pub bytes: u64,
    /// The server's processor time for all that, in seconds.
    pub cpu_seconds: Option<f64>,
    /// The same for one join, in microseconds.
    pub cpu_us_per_join: Option<f64>,
    /// Members that did not know in the end how many there were.
    pub ignorant: u64,
}

/// What was counted, or why it could not be.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Counted {
    /// The counts.
    Counted(Syscalls),
    /// Why there are none.
    NotAvailable(String),
}

impl From<Result<Syscalls, String>> for Counted {
    fn from(result: Result<Syscalls, String>) -> Self {
        result.map_or_else(Self::NotAvailable, Self::Counted)
    }
}

/// How often something was not as it has to be: that every message is sent, answered, and delivered to every member
/// once, in order, and the same to all. What is lost for good counts as missing, too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Faults {
    /// Messages that the schedule had and that were not sent, since the server did not read.
    pub unsent: u64,
    /// Messages that were not answered in time.
    pub unanswered: u64,
    /// Deliveries that did not come in time.
    pub missing: u64,
    /// Events that a member should have been sent and was not.
    pub lost: u64,
    /// Events that a member was sent again.
    pub repeated: u64,
    /// Events, and presence in batches, that a member was sent after a later one.
    pub reordered: u64,
    /// Events that had another content for one member than for another under the same number.
    pub split: u64,
    /// Deliveries of messages that had reached as many members as there are.
    pub surplus: u64,
    /// Members that did not learn how many there are.
    pub ignorant: u64,
    /// All of these.
    pub total: u64,
}

impl Faults {
    /// The faults in words, one a line; empty where there are none.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        [
            (self.lost, "events that a member was never sent"),
            (self.repeated, "events that a member was sent again"),
            (
                self.reordered,
                "events, or presence, that a member was sent after a later one",
            ),
            (
                self.split,
                "events that were told differently to two members",
            ),
            (
                self.surplus,
                "deliveries of messages that had reached everybody before",
            ),
            (self.missing, "deliveries that did not come in time"),
            (self.unanswered, "messages that were not answered in time"),
            (
                self.unsent,
                "messages that could not be sent, since the server did not read",
            ),
            (
                self.ignorant,
                "members that never learned how many members there are",
            ),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, words)| format!("{words}: {}", grouped(count)))
        .collect()
    }
}

impl Report {
    /// With nothing found out yet.
    #[must_use]
    pub fn new(scenario: Scenario, subject: &Subject) -> Self {
        Self {
            scenario,
            url: subject.target.to_string(),
            machine: Machine::look(),
            gather: Gather::default(),
            memory: None,
            parts: Vec::new(),
            idle: None,
            storm: None,
            logins: None,
            stalled: None,
            syscalls: None,
            faults: Faults::default(),
        }
    }

    /// Sums up what was wrong, `wrong` being what the crowds heard.
    pub fn judge(&mut self, wrong: &[Wrong]) {
        let mut faults = Faults {
            ignorant: self.storm.map_or(0, |storm| storm.ignorant),
            ..Faults::default()
        };
        // A server may have named any number.
        let add = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        for wrong in wrong {
            add(&mut faults.lost, wrong.lost);
            add(&mut faults.repeated, wrong.repeated);
            add(&mut faults.reordered, wrong.reordered);
            add(&mut faults.split, wrong.split);
            add(&mut faults.surplus, wrong.surplus);
        }
        for part in &self.parts {
            add(&mut faults.unsent, part.unsent);
            add(&mut faults.unanswered, part.unanswered);
            add(&mut faults.missing, part.missing);
        }
        faults.total = [
            faults.unsent,
            faults.unanswered,
            faults.missing,
            faults.lost,
            faults.repeated,
            faults.reordered,
            faults.split,
            faults.surplus,
            faults.ignorant,
        ]
        .into_iter()
        .fold(0, u64::saturating_add);
        self.faults = faults;
    }

    /// The part of this name.
    #[must_use]
    pub fn part(&self, name: &str) -> Option<&Part> {
        self.parts.iter().find(|part| part.name == name)
    }

    /// The latencies of all parts as a plot.
    #[must_use]
    pub fn svg(&self) -> String {
        let curves: Vec<_> = self.parts.iter().map(|part| part.curve.clone()).collect();
        let title = format!("chinwag bench {}: latency over {}", self.scenario, self.url);
        plot::latencies(&title, &curves)
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PerSecond(rate) => write!(f, "{rate} a second"),
            Self::InFlight(count) => write!(f, "{count} in flight"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} over {}\n", self.scenario, self.url)?;
        let mut lines = Lines::default();
        self.gathered(&mut lines);
        if let Some(idle) = &self.idle {
            idle.tell(&mut lines);
        }
        if let Some(storm) = &self.storm {
            storm.tell(&mut lines);
        }
        if let Some(logins) = &self.logins {
            logins.tell(&mut lines);
        }
        if !self.parts.is_empty() {
            parts(&self.parts, &mut lines);
        }
        if let Some(stalled) = &self.stalled {
            stalled.tell(&mut lines);
        }
        match &self.syscalls {
            Some(Counted::Counted(syscalls)) => syscalls.tell(&mut lines),
            Some(Counted::NotAvailable(why)) => {
                lines.add("system calls", format!("not available: {why}"));
            }
            None => (),
        }
        let words = self.faults.words();
        if words.is_empty() {
            lines.add(
                "faults",
                "none: each member was sent each event once, in order",
            );
        }
        for (at, words) in words.into_iter().enumerate() {
            lines.add(if at == 0 { "FAULTS" } else { "" }, words);
        }
        write!(f, "{lines}")?;
        if self.machine.unoptimised {
            writeln!(
                f,
                "\nThis program was built without optimisation (cargo build --release); its figures \
                 mean nothing."
            )?;
        }
        Ok(())
    }
}

impl Report {
    fn gathered(&self, lines: &mut Lines) {
        let Gather {
            members,
            joined,
            seconds,
            per_second,
            server_cpu_us_per_member,
        } = self.gather;
        let joined = if joined {
            "logged in and joined"
        } else {
            "logged in"
        };
        let mut text = format!(
            "{} {joined} in {seconds:.2} s, {} a second",
            grouped(members as u64),
            whole(per_second)
        );
        if let Some(us) = server_cpu_us_per_member {
            write!(text, ", {us:.0} µs of the server's CPU each")
                .expect("writing to a string can't fail");
        }
        lines.add("members", text);
        match self.memory {
            Some(memory) => lines.add(
                "memory",
                format!(
                    "{:.2} KiB resident for a connection ({} → {} KiB)",
                    memory.kib_per_connection,
                    grouped(memory.before_kib),
                    grouped(memory.after_kib)
                ),
            ),
            None => lines.add(
                "server",
                "not looked at: its process is not known (--pid, or let bench start it)",
            ),
        }
    }
}

impl Idle {
    fn tell(&self, lines: &mut Lines) {
        lines.add(
            "idle",
            format!(
                "{:.0} bytes a minute to each client and {:.0} from it, in {:.1} s",
                self.bytes_in_per_minute, self.bytes_out_per_minute, self.seconds
            ),
        );
        let signs = match self.period_seconds {
            Some(period) if period > self.seconds => {
                format!("every {period} s: hardly any of them are in these bytes")
            }
            Some(period) => format!("every {period} s"),
            None => "none are asked for".to_owned(),
        };
        lines.add("signs of life", signs);
        if let Some(percent) = self.server_cpu_percent {
            lines.add("server CPU", format!("{percent:.2} % of a core"));
        }
    }
}

impl Storm {
    fn tell(&self, lines: &mut Lines) {
        lines.add(
            "storm",
            format!(
                "{} joined at once: all in after {:.2} s, all told after {:.2} s",
                grouped(self.members as u64),
                self.seconds_until_in,
                self.seconds_until_told
            ),
        );
        let Presence {
            events,
            summaries,
            names,
        } = self.presence;
        lines.add(
            "presence",
            format!(
                "{} joins told one by one, {} summaries with {} names, {} KiB in all",
                grouped(events),
                grouped(summaries),
                grouped(names),
                grouped(self.bytes / 1024)
            ),
        );
        if let (Some(seconds), Some(us)) = (self.cpu_seconds, self.cpu_us_per_join) {
            lines.add("server CPU", format!("{seconds:.2} s, {us:.0} µs a join"));
        }
    }
}

impl Logins {
    fn tell(&self, lines: &mut Lines) {
        lines.add(
            "log-ins",
            format!(
                "{} at once: all in after {:.1} s; for one {:.1} s (p50), {:.1} s (p99)",
                grouped(self.users as u64),
                self.seconds_until_in,
                self.seconds_p50,
                self.seconds_p99
            ),
        );
        lines.add(
            "unavailable",
            format!(
                "heard by {} of them, {} times in all",
                grouped(self.users_turned_away as u64),
                grouped(self.unavailable)
            ),
        );
    }
}

impl Stalled {
    fn tell(&self, lines: &mut Lines) {
        let ended: Vec<String> = self
            .ended
            .iter()
            .map(|(code, count)| format!("{count} {code}"))
            .collect();
        let ended = if ended.is_empty() {
            "none was ended".to_owned()
        } else {
            format!("ended: {}", ended.join(", "))
        };
        lines.add(
            "stalled",
            format!(
                "{} readers; {ended}; {} still there",
                self.readers, self.still_there
            ),
        );
        if self.passed_over > 0 {
            lines.add(
                "left out",
                format!("{} messages for them", grouped(self.passed_over)),
            );
        }
        if let Some([first, middle, last]) = self.seconds_until_ended {
            lines.add(
                "ended after",
                format!("{first:.1} s the first, {middle:.1} s the middle, {last:.1} s the last"),
            );
        }
        let process = self
            .process_kib_per_reader
            .map_or_else(|| "not looked at".to_owned(), |kib| format!("{kib:.0} KiB"));
        let kernel = match (&self.kernel_kib, &self.not_available) {
            (Some(most), _) => format!("{:.0} KiB (one: {:.0})", most.average, most.one),
            (None, Some(why)) => format!("not available ({why})"),
            (None, None) => "not looked at".to_owned(),
        };
        lines.add(
            "held for each",
            format!("at most {process} in the process, {kernel} in the kernel"),
        );
        let cpu = self
            .healthy_cpu_change_percent
            .map_or(String::new(), |change| format!(", CPU {change:+.1} %"));
        lines.add(
            "the others",
            format!("p50 {:+.1} %{cpu}", self.healthy_p50_change_percent),
        );
    }
}

impl Syscalls {
    fn tell(&self, lines: &mut Lines) {
        let mut text = format!("{:.4} a delivery (by {})", self.per_delivery, self.by);
        if let Some(each) = self.per_write {
            write!(text, ", {each:.3} a write").expect("writing to a string can't fail");
        }
        lines.add("system calls", text);
        let mut calls: Vec<_> = self.calls.iter().collect();
        calls.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let calls: Vec<String> = calls
            .into_iter()
            .map(|(name, count)| format!("{name} {}", grouped(*count)))
            .collect();
        lines.add("", calls.join(", "));
    }
}

/// The windows side by side, a column each.
fn parts(parts: &[Part], lines: &mut Lines) {
    let mut row = |name: &str, cell: &dyn Fn(&Part) -> String| {
        lines.row(name, parts.iter().map(cell).collect());
    };
    if parts.len() > 1 {
        row("", &|part| part.name.clone());
    }
    row("rooms", &|part| grouped(part.rooms as u64));
    row("members", &|part| grouped(part.members as u64));
    row("messages", &|part| {
        format!("{}, {}", grouped(part.messages), part.pace)
    });
    row("bytes each", &|part| grouped(part.payload as u64));
    row("deliveries", &|part| grouped(part.deliveries));
    row("  a second", &|part| whole(part.deliveries_per_second));
    row("  a read", &|part| {
        format!("{:.2}", part.deliveries_per_read)
    });
    row("  bytes", &|part| {
        format!("{:.0}", part.wire_bytes_per_delivery)
    });
    if parts.iter().any(|part| part.compressed_percent.is_some()) {
        row("  compressed", &|part| {
            let percent = part.compressed_percent;
            percent.map_or_else(|| "–".to_owned(), |percent| format!("{percent:.0} %"))
        });
    }
    // A rate has a schedule, and what a slow server holds up is late by it.
    row("latency from", &|part| match part.pace {
        Pace::PerSecond(_) => "when due".to_owned(),
        Pace::InFlight(_) => "sending: no schedule".to_owned(),
    });
    let mut latency = |name: &str, of: fn(&Latency) -> u64| {
        row(name, &|part| time(of(&part.latency_us) as f64));
    };
    latency("latency p50", |latency| latency.p50);
    latency("  p90", |latency| latency.p90);
    latency("  p99", |latency| latency.p99);
    latency("  p99.9", |latency| latency.p99_9);
    latency("  max", |latency| latency.max);
    if parts.iter().any(|part| part.latency_at_least > 0) {
        row("  at least, of", &|part| {
            format!("{} that never came", grouped(part.latency_at_least))
        });
    }
    row("sent late (p99)", &|part| time(part.sent_late_us as f64));
    if parts.iter().all(|part| part.server.is_none()) {
        return;
    }
    let none = || "–".to_owned();
    let mut used = |name: &str, cell: &dyn Fn(&Cost) -> String| {
        row(name, &|part| part.server.as_ref().map_or_else(none, cell));
    };
    let each = |figure: Option<f64>, digits: usize| {
        figure.map_or_else(none, |figure| format!("{figure:.digits$}"))
    };
    used("server CPU µs", &|cost| {
        format!("{} a delivery", each(cost.cpu_us_per_delivery, 3))
    });
    used("  of a core", &|cost| format!("{:.0} %", cost.cpu_percent));
    used("  sleeps", &|cost| {
        format!(
            "{} a delivery",
            each(cost.voluntary_switches_per_delivery, 4)
        )
    });
    used("  preempted", &|cost| {
        format!(
            "{} a delivery",
            each(cost.involuntary_switches_per_delivery, 4)
        )
    });
    used("client CPU", &|cost| {
        let limit = if cost.client_cpu_percent > 90.0 {
            ": the limit"
        } else {
            ""
        };
        format!("{:.0} %{limit}", cost.client_cpu_percent)
    });
    used("others' CPU", &|cost| {
        format!("{:.0} %", cost.other_cpu_percent)
    });
    if parts
        .iter()
        .any(|part| part.server.is_some_and(|cost| cost.threads_ended > 0))
    {
        used("threads ended", &|cost| cost.threads_ended.to_string());
    }
}

/// Lines of a name and what belongs to it, in columns.
#[derive(Debug, Default)]
struct Lines(Vec<(String, Vec<String>)>);

impl Lines {
    fn add(&mut self, name: &str, text: impl Into<String>) {
        self.0.push((name.to_owned(), vec![text.into()]));
    }

    fn row(&mut self, name: &str, cells: Vec<String>) {
        self.0.push((name.to_owned(), cells));
    }
}

impl fmt::Display for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |text: &str| text.chars().count();
        let first = self
            .0
            .iter()
            .map(|(name, _)| width(name))
            .max()
            .unwrap_or(0);
        let columns = self
            .0
            .iter()
            .filter(|(_, cells)| cells.len() > 1)
            .flat_map(|(_, cells)| cells)
            .map(|cell| width(cell))
            .max()
            .unwrap_or(0);
        for (name, cells) in &self.0 {
            let mut line = format!("  {name:first$}  ");
            for cell in cells {
                write!(line, "{cell:columns$}  ")?;
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A number with a comma between thousands.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn whole(number: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "rates are positive, and far below the greatest whole number"
    )]
    let number = number.round() as u64;
    grouped(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        let written = [0, 999, 1000, 1_234_567].map(grouped);
        assert_eq!(written, ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn columns_are_aligned_and_lone_lines_do_not_widen_them() {
        let mut lines = Lines::default();
        lines.add("faults", "a long line that stands alone");
        lines.row("a", vec!["µ".to_owned(), "2".to_owned()]);
        lines.row("b", vec!["333".to_owned(), "4".to_owned()]);
        assert_eq!(
            lines.to_string(),
            "  faults  a long line that stands alone\n  a       µ    2\n  b       333  4\n"
        );
    }

    #[test]
    fn faults_are_told_in_words() {
        let faults = Faults {
            lost: 1200,
            repeated: 1,
            total: 1201,
            ..Faults::default()
        };
        assert_eq!(
            faults.words(),
            [
                "events that a member was never sent: 1,200",
                "events that a member was sent again: 1"
            ]
        );
        assert!(Faults::default().words().is_empty());
    }
}
