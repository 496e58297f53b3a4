//! What is wrong with a configuration, and where: the one form in which every mistake is reported.

use std::{error::Error, fmt, sync::Arc};

use super::document::KeyPath;

/// Where in a configuration something stands. Ordered as a reader meets it: the document from its first line to its
/// last, then the environment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// The document as a whole: what is missing has no line.
    Document { name: Arc<str> },
    /// Part of a line of the document.
    Line {
        name: Arc<str>,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// The line, without its end.
        text: String,
        /// How many characters are meant; at least 1.
        width: usize,
    },
    /// An environment variable.
    Variable { name: Arc<str> },
}

/// How bad a [`Problem`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Nothing starts.
    Error,
    /// Everything starts, though perhaps not as meant.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// One thing that is wrong with a configuration.
///
/// Displays as `file:line:column: error: message`, then the line with carets under the part at fault; or as
/// `VARIABLE: error: message` where the environment is to blame. No line feed at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub(crate) place: Place,
    pub(crate) severity: Severity,
    pub(crate) message: String,
}

impl Problem {
    /// How bad it is.
    #[must_use]
    pub fn severity(&self) -> Severity {
        self.severity
    }

    /// What is wrong, without the place.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Place and message in one line.
    pub(crate) fn brief(&self) -> String {
        let message = &self.message;
        match &self.place {
            Place::Document { name } | Place::Variable { name } => format!("{name}: {message}"),
            Place::Line {
                name, line, column, ..
            } => format!("{name}:{line}:{column}: {message}"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            severity, message, ..
        } = self;
        match &self.place {
            Place::Document { name } | Place::Variable { name } => {
                write!(f, "{name}: {severity}: {message}")
            }
            Place::Line {
                name,
                line,
                column,
                text,
                width,
            } => {
                writeln!(f, "{name}:{line}:{column}: {severity}: {message}")?;
                let gutter = line.to_string().len();
                writeln!(f, " {line} | {}", Printable(text))?;
                write!(f, " {:gutter$} | ", "")?;
                // A tab before the part stays one, so that the carets stand under it however wide tabs are.
                for c in text.chars().take(column - 1) {
                    f.write_str(if c == '\t' { "\t" } else { " " })?;
                }
                for _ in 0..*width {
                    f.write_str("^")?;
                }
                Ok(())
            }
        }
    }
}

/// A line for a terminal: control characters but tabs are replaced, so that a file can't steer the terminal.
struct Printable<'a>(&'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| {
            let shown = if c.is_control() && c != '\t' {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            };
            fmt::Write::write_char(f, shown)
        })
    }
}

/// A configuration that nothing starts from: every mistake in it, in the order of the file. What would only be warned
/// of is left out, since much of that goes away with the mistakes.
///
/// Displays one block for each [`Problem`], with an empty line between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<Problem>,
}

impl ConfigError {
    /// Every mistake, in the order of the file.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl Error for ConfigError {}

/// A message less the text that it was given in place of another type: it may be a secret.
fn without_quoted_value(message: String) -> String {
    let Some((before, rest)) = message.split_once("string \"") else {
        return message;
    };
    let after = rest.rsplit_once('"').map_or("", |(_, after)| after);
    format!("{before}a text{after}")
}

/// The problems found so far.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    found: Vec<Problem>,
    errors: usize,
    /// What could not be read, and so has its default or nothing in its place. No more than there are mistakes.
    at_fault: Vec<KeyPath>,
}

impl Problems {
    pub(crate) fn error(&mut self, place: Place, message: impl Into<String>) {
        self.errors += 1;
        self.push(place, Severity::Error, message.into());
    }

    pub(crate) fn warn(&mut self, place: Place, message: impl Into<String>) {
        self.push(place, Severity::Warning, message.into());
    }

    fn push(&mut self, place: Place, severity: Severity, message: String) {
        let message = match &place {
            Place::Variable { name } if name.starts_with("CHINWAG_AUTHENTICATORS__") => {
                without_quoted_value(message)
            }
            Place::Line { text, .. } if text.contains("\"*") || text.contains("'*") => {
                without_quoted_value(message)
            }
            _ => message,
        };
        self.found.push(Problem {
            place,
            severity,
            message,
        });
    }

    /// What stands at `key`, or was meant to, could not be read, which is reported elsewhere.
    pub(crate) fn blame(&mut self, key: KeyPath) {
        self.at_fault.push(key);
    }

    /// Whether `key`, or what it is part of, could not be read: what stands in its place proves nothing.
    pub(crate) fn is_at_fault(&self, key: &KeyPath) -> bool {
        self.at_fault.iter().any(|fault| key.is_within(fault))
    }

    /// Whether a rule that `key` is said to break need not be spoken of: the key could not be read, or another that
    /// the message names could not, be it beside `key` or in it.
    pub(crate) fn excuse(&self, key: &KeyPath, message: &str) -> bool {
        let beside = key.up();
        self.is_at_fault(key)
            || words(message)
                .flat_map(|word| [beside.key(word), key.key(word)])
                .any(|named| self.at_fault.iter().any(|fault| fault.is_within(&named)))
    }

    /// How many errors there are: compare two counts to learn whether what happened between them went well.
    pub(crate) fn errors(&self) -> usize {
        self.errors
    }

    /// The warnings, if there are only warnings.
    ///
    /// # Errors
    /// Every error, where there is one.
    pub(crate) fn into_result(mut self) -> Result<Vec<Problem>, ConfigError> {
        self.found.sort_by(|a, b| a.place.cmp(&b.place));
        if self.errors == 0 {
            return Ok(self.found);
        }
        self.found
            .retain(|problem| problem.severity == Severity::Error);
        Err(ConfigError {
            problems: self.found,
        })
    }
}

/// The words of a message, among which are the names of the keys that it speaks of.
pub(crate) fn words(message: &str) -> impl Iterator<Item = &str> {
    message
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_may_be_a_secret_is_not_quoted() {
        let told = |message: &str| without_quoted_value(message.into());
        assert_eq!(
            told("invalid type: string \"hunter2\", expected u32"),
            "invalid type: a text, expected u32"
        );
        assert_eq!(told("can't read \"users.txt\""), "can't read \"users.txt\"");
    }

    #[test]
    fn a_rule_is_excused_by_the_keys_that_it_is_about_and_by_no_other() {
        let key = |text: &str| KeyPath::new(text.split('.'));
        let excused = |at_fault: &str, of: &str, message: &str| {
            let mut problems = Problems::default();
            problems.blame(key(at_fault));
            problems.excuse(&key(of), message)
        };
        for at_fault in ["t", "t.a", "t.b", "t.b.c", "t.a.c"] {
            assert!(
                excused(at_fault, "t.a", "must be above b, or `c`"),
                "{at_fault}"
            );
        }
        for at_fault in ["t.d", "t.a.d", "u", "u.a", "u.b", "t.above_b"] {
            assert!(
                !excused(at_fault, "t.a", "must be above b, or `c`"),
                "{at_fault}"
            );
        }
        assert!(!excused("t.a", "t", "b is one too many"));
        assert!(excused("t.b", "t", "b is one too many"));
    }

    fn line(text: &str, column: usize, width: usize) -> String {
        Problem {
            place: Place::Line {
                name: "chat.toml".into(),
                line: 12,
                column,
                text: text.into(),
                width,
            },
            severity: Severity::Error,
            message: "no".into(),
        }
        .to_string()
    }

    #[test]
    fn carets_stand_under_the_part_whatever_is_before_it() {
        assert_eq!(
            line("a = 5", 5, 1),
            "chat.toml:12:5: error: no\n 12 | a = 5\n    |     ^"
        );
        assert_eq!(
            line("\tä = 5", 6, 1),
            "chat.toml:12:6: error: no\n 12 | \tä = 5\n    | \t    ^"
        );
    }

    #[test]
    fn a_file_can_not_steer_the_terminal() {
        assert!(!line("a = \"\u{1b}[2J\"", 5, 1).contains('\u{1b}'));
    }

    #[test]
    fn problems_come_in_the_order_of_the_file_then_of_the_environment() {
        let mut problems = Problems::default();
        problems.error(Place::Variable { name: "B".into() }, "4");
        problems.error(
            Place::Line {
                name: "f".into(),
                line: 10,
                column: 1,
                text: String::new(),
                width: 1,
            },
            "3",
        );
        let nine = Place::Line {
            name: "f".into(),
            line: 9,
            column: 1,
            text: String::new(),
            width: 1,
        };
        problems.warn(nine.clone(), "left out beside errors");
        problems.error(nine, "2");
        problems.error(Place::Document { name: "f".into() }, "1");
        let error = problems.into_result().unwrap_err();
        let messages: Vec<_> = error.problems().iter().map(Problem::message).collect();
        assert_eq!(messages, ["1", "2", "3", "4"]);
    }
}
