//! Events as lines of text, for people.

use std::fmt::Display;

use chinwag_client::{Init, LeaveReason, Message, PresenceChange, unescape_html};
use jiff::{Timestamp, tz::TimeZone};

use super::harmless;

/// Colours of names: those that are legible on dark and on light.
const NAMES: [u8; 6] = [31, 32, 33, 34, 35, 36];
const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";

/// Writes lines, in colours or without.
#[derive(Debug, Clone)]
pub(crate) struct Show {
    pub(crate) colours: bool,
    pub(crate) zone: TimeZone,
}

impl Show {
    /// Local time, as hours and minutes.
    fn time(&self, at: u64) -> String {
        let at = i64::try_from(at).ok();
        let at = at.and_then(|at| Timestamp::from_millisecond(at).ok());
        at.map_or_else(
            || "--:--".into(),
            |at| at.to_zoned(self.zone.clone()).strftime("%H:%M").to_string(),
        )
    }

    fn paint(&self, style: &str, text: impl Display) -> String {
        if self.colours {
            format!("\x1b[{style}m{text}\x1b[0m")
        } else {
            text.to_string()
        }
    }

    /// What somebody said: one line, or with `folded` off one for each of the text's own.
    ///
    /// `elsewhere`: the room, where it is not the one that is being looked at.
    pub(crate) fn message(&self, message: &Message, of: &Told<'_>, folded: bool) -> String {
        let time = self.paint(DIM, self.time(message.at));
        let user = harmless::line(&message.user);
        let user = if *message.user == *of.own_name {
            self.paint(BOLD, user)
        } else {
            self.paint(&colour(&message.user).to_string(), user)
        };
        let place = of.elsewhere.map_or_else(String::new, |room| {
            self.paint(DIM, format_args!("[{}]", harmless::line(room))) + " "
        });
        let text = message.text.as_deref().unwrap_or_default();
        let text = if of.escaped {
            unescape_html(text)
        } else {
            text.into()
        };
        let mut body = if folded {
            harmless::line(&text)
        } else {
            // What follows is indented, so that nobody writes a line that looks like somebody else's.
            harmless::lines(&text).collect::<Vec<_>>().join("\n      ")
        };
        if let Some(data) = &message.data {
            let data = self.paint(DIM, harmless::line(data.get()));
            body = if body.is_empty() {
                data
            } else {
                body + " " + &data
            };
        }
        format!("{time} {place}{user}: {body}\n")
    }

    /// Somebody came in.
    pub(crate) fn joined(&self, at: u64, user: &str, elsewhere: Option<&str>) -> String {
        self.quiet(
            at,
            elsewhere,
            format_args!("→ {} joined", harmless::line(user)),
        )
    }

    /// Somebody left.
    pub(crate) fn left(
        &self,
        at: u64,
        user: &str,
        reason: &LeaveReason,
        elsewhere: Option<&str>,
    ) -> String {
        let user = harmless::line(user);
        let why = match reason {
            LeaveReason::Left | LeaveReason::Logout => "",
            LeaveReason::Expired => " (fell silent)",
            LeaveReason::Replaced => " (logged in elsewhere)",
            LeaveReason::Kicked => " (was removed)",
            LeaveReason::Disconnected => " (lost the connection)",
            _ => " (was logged out)",
        };
        self.quiet(at, elsewhere, format_args!("← {user} left{why}"))
    }

    /// Who came and went in an interval, as counts. `None`: there is nothing to say.
    pub(crate) fn presence(
        &self,
        change: &PresenceChange,
        elsewhere: Option<&str>,
    ) -> Option<String> {
        let mut parts = Vec::new();
        if !change.joined.is_empty() {
            parts.push(format!("→ {} joined", change.joined.len()));
        }
        if !change.left.is_empty() {
            parts.push(format!("← {} left", change.left.len()));
        }
        if parts.is_empty() {
            return None;
        }
        parts.push(format!("{} here", change.count));
        Some(self.quiet(change.at, elsewhere, parts.join(", ")))
    }

    /// Where one is now.
    pub(crate) fn entered(&self, init: &Init, own_name: &str) -> String {
        let room = harmless::line(&init.room);
        let others = init.users.iter().filter(|user| ***user != *own_name);
        let mut names: Vec<String> = others.map(|user| harmless::line(user)).take(10).collect();
        let others = init.count.saturating_sub(usize::from(
            init.users.iter().any(|user| **user == *own_name),
        ));
        let who = match (others, names.len()) {
            (0, _) => "nobody else is here".into(),
            (count, 0) => format!("{count} others"),
            (count, named) => {
                if count > named {
                    names.push(format!("{} more", count - named));
                }
                format!("with {}", names.join(", "))
            }
        };
        self.notice(format_args!(
            "You are in {room} as {}: {who}.",
            harmless::line(own_name)
        ))
    }

    fn quiet(&self, at: u64, elsewhere: Option<&str>, text: impl Display) -> String {
        let time = self.time(at);
        let place =
            elsewhere.map_or_else(String::new, |room| format!("[{}] ", harmless::line(room)));
        self.paint(DIM, format_args!("{time} {place}{text}")) + "\n"
    }

    /// What the program itself says.
    pub(crate) fn notice(&self, text: impl Display) -> String {
        self.paint(DIM, format_args!("— {text}")) + "\n"
    }

    /// What did not work.
    pub(crate) fn complaint(&self, text: impl Display) -> String {
        self.paint(RED, format_args!("! {text}")) + "\n"
    }

    /// A prompt: plain, and as it is written.
    pub(crate) fn prompt(&self, room: Option<&str>) -> (String, String) {
        let room = room.map_or_else(|| "(no room)".into(), harmless::line);
        let plain = format!("{room}> ");
        let painted = self.paint(BOLD, &plain);
        (plain, painted)
    }
}

/// What a message is told with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told<'a> {
    /// The name of whoever reads.
    pub(crate) own_name: &'a str,
    /// The message's room, where it is not the one that is looked at.
    pub(crate) elsewhere: Option<&'a str>,
    /// Whether the room's texts have HTML escaped.
    pub(crate) escaped: bool,
}

/// The same for a name each time.
fn colour(name: &str) -> u8 {
    let sum = name.bytes().fold(0_usize, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(byte.into())
    });
    NAMES[sum % NAMES.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(colours: bool) -> Show {
        Show {
            colours,
            zone: TimeZone::UTC,
        }
    }

    fn message(json: &str) -> Message {
        serde_json::from_str(json).unwrap()
    }

    const ADA: Told<'_> = Told {
        own_name: "ada",
        elsewhere: None,
        escaped: false,
    };

    #[test]
    fn a_message_is_time_name_and_text() {
        let hello = message(r#"{"room":"lobby","seq":1,"at":3661000,"user":"bob","text":"hello"}"#);
        let (plain, coloured) = (show(false), show(true));
        assert_eq!(plain.message(&hello, &ADA, true), "01:01 bob: hello\n");
        let elsewhere = Told {
            elsewhere: Some("games"),
            ..ADA
        };
        assert_eq!(
            plain.message(&hello, &elsewhere, true),
            "01:01 [games] bob: hello\n"
        );
        let line = coloured.message(&hello, &ADA, true);
        assert!(line.starts_with("\x1b[2m01:01\x1b[0m \x1b[3"), "{line:?}");
        let own = Told {
            own_name: "bob",
            ..ADA
        };
        assert!(
            coloured
                .message(&hello, &own, true)
                .contains("\x1b[1mbob\x1b[0m")
        );
    }

    #[test]
    fn a_message_never_acts_and_never_looks_like_another() {
        let text = r#"{"room":"r","seq":1,"at":0,"user":"e\u202eve","text":"\u001b[2Jx\n00:00 bob: no","data":{"a":"\u001b"}}"#;
        let message = message(text);
        let show = show(false);
        assert_eq!(
            show.message(&message, &ADA, true),
            "00:00 eve: ␛[2Jx⏎00:00 bob: no {\"a\":\"\\u001b\"}\n"
        );
        let line = show.message(&message, &ADA, false);
        assert!(line.contains("␛[2Jx\n      00:00 bob: no"), "{line:?}");
    }

    #[test]
    fn escaped_html_is_shown_as_it_was_written() {
        let escaped = message(r#"{"room":"r","seq":1,"at":0,"user":"bob","text":"&lt;b&gt;"}"#);
        let of = Told {
            escaped: true,
            ..ADA
        };
        assert_eq!(show(false).message(&escaped, &of, true), "00:00 bob: <b>\n");
    }

    #[test]
    fn batches_are_counts() {
        let change = |json: &str| show(false).presence(&serde_json::from_str(json).unwrap(), None);
        assert_eq!(
            change(r#"{"room":"r","at":0,"joined":["a","b"],"left":["c"],"count":812}"#),
            Some("00:00 → 2 joined, ← 1 left, 812 here\n".into())
        );
        assert_eq!(change(r#"{"room":"r","at":0,"count":812}"#), None);
    }

    #[test]
    fn a_time_beyond_the_calendar_is_no_time() {
        assert_eq!(show(false).time(u64::MAX), "--:--");
    }
}
