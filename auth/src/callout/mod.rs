//! What the kinds have in common that ask somebody else: another server, another program.
//!
//! - Whoever is asked may be slow, dead or talk nonsense. None of that lets anybody in and none of
//!   it is held against a client: it is "can't tell now".
//! - Every wait has a limit and every queue a bound, so one log-in's trouble is not another's.
//! - Nothing that opens anything is repeated in a log or an error, whatever comes back.

#[cfg(feature = "_client")]
pub(crate) mod client;
#[cfg(feature = "_client")]
pub(crate) mod connect;
#[cfg(feature = "_contract")]
pub(crate) mod contract;
#[cfg(feature = "_client")]
mod health;
#[cfg(feature = "exec")]
mod lines;
#[cfg(feature = "_client")]
mod places;
#[cfg(feature = "exec")]
pub(crate) mod programs;
#[cfg(feature = "_contract")]
mod secrets;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(feature = "_client")]
pub(crate) mod tls;

use std::{
    hash::{BuildHasher, RandomState},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chinwag_core::{
    config::Span,
    plugin::{AuthenticatorContext, BuildError, Meter, SessionManagerContext, Verdict},
};

#[cfg(feature = "_contract")]
pub(crate) use self::secrets::{Secrets, without_tokens};

/// When to try again after something went wrong that may be right the next time.
pub(crate) const RETRY: Duration = Duration::from_secs(1);

/// How long one call may take where nothing is said.
const CALL: Duration = Duration::from_secs(2);
/// The most characters of another's words that are logged.
const LOGGED_CHARS: usize = 256;
/// The most characters of a name that is vouched for.
const NAME_CHARS: usize = 128;
/// The most roles, and characters of one.
const ROLES: usize = 64;
const ROLE_CHARS: usize = 64;

/// Whose table says who is asked.
pub(crate) struct Asker<'a> {
    /// The path of the table, such as `authenticators.NAME`, for logs and metrics.
    pub(crate) table: String,
    /// Where relative paths start from.
    pub(crate) base: &'a Path,
    pub(crate) meter: &'a Meter,
    /// How long an answer may take, all in all: a little less than whoever waits for it has, so that
    /// what went wrong is known and told before that.
    pub(crate) timeout: Duration,
}

impl<'a> Asker<'a> {
    /// The one that has `timeout` for a table.
    fn new(table: String, base: &'a Path, meter: &'a Meter, timeout: Duration) -> Self {
        Self {
            table,
            base,
            meter,
            timeout: timeout.mul_f64(0.9),
        }
    }
}

impl<'a> From<&'a AuthenticatorContext> for Asker<'a> {
    fn from(cx: &'a AuthenticatorContext) -> Self {
        let table = format!("authenticators.{}", cx.name);
        Self::new(table, &cx.base, &cx.meter, cx.timeout)
    }
}

impl<'a> From<&'a SessionManagerContext> for Asker<'a> {
    fn from(cx: &'a SessionManagerContext) -> Self {
        let table = format!("session_managers.{}", cx.name);
        Self::new(table, &cx.base, &cx.meter, cx.timeout)
    }
}

/// How many questions may wait where the table does not say.
#[cfg(feature = "_contract")]
pub(crate) const fn default_queue() -> usize {
    1000
}

/// Whether a question may have reached somebody who then gave no answer: what it asks for may have
/// been done. Clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Doubt(Arc<AtomicBool>);

impl Doubt {
    /// There is doubt from now on; says whether there was before.
    fn raise(&self) -> bool {
        self.0.swap(true, Ordering::AcqRel)
    }

    fn set(&self, is_there: bool) {
        self.0.store(is_there, Ordering::Release);
    }

    /// Of one who gives up a question and then looks here, and one who raises doubt and then looks
    /// whether the question is given up, at least one sees what the other did: both write.
    pub(crate) fn is_there(&self) -> bool {
        self.0.fetch_or(false, Ordering::AcqRel)
    }
}

/// A question has no answer. Why is in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoAnswer {
    /// When to try again.
    pub(crate) retry: Duration,
    /// Nobody was asked: too many other questions were.
    pub(crate) was_busy: bool,
}

impl From<NoAnswer> for Verdict {
    fn from(none: NoAnswer) -> Self {
        Self::Unavailable { retry: none.retry }
    }
}

/// `retry`, or up to as long again: those who were turned away together must not come back
/// together.
pub(crate) fn spread(retry: Duration) -> Duration {
    // Seeded anew for each; no more randomness is needed than that two differ.
    let random = RandomState::new().hash_one(()) % 1024;
    retry + retry.mul_f64(random as f64 / 1024.0)
}

/// How long one call may take out of the `timeout` for all: what `call_timeout` says, else two
/// seconds or less where there is no more.
///
/// # Errors
/// More than there is.
pub(crate) fn call_timeout(set: Option<Span>, timeout: Duration) -> Result<Duration, BuildError> {
    match set {
        None => Ok(CALL.min(timeout)),
        Some(Span(call)) if call <= timeout && !call.is_zero() => Ok(call),
        Some(_) => Err(BuildError::key(
            "call_timeout",
            format!(
                "`call_timeout` is above zero and at most nine tenths of `timeout`, here \
                 {timeout:?}: who waits would have given up"
            ),
        )),
    }
}

/// `text` on one line of at most 256 characters, with controls written out.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == LOGGED_CHARS {
            line.push('…');
            break;
        }
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

/// Whether the server takes this for a name that somebody vouches for.
pub(crate) fn is_name(name: &str) -> bool {
    let length = name.chars().count();
    (1..=NAME_CHARS).contains(&length) && !name.chars().any(|c| c.is_whitespace() || c.is_control())
}

/// Whether these can be a principal's roles: at most 64, each of 1 to 64 characters without space
/// or control.
pub(crate) fn are_roles(roles: &[String]) -> bool {
    roles.len() <= ROLES
        && roles
            .iter()
            .all(|role| is_name(role) && role.chars().count() <= ROLE_CHARS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_turned_away_together_come_back_apart() {
        let retry = Duration::from_secs(4);
        let all: std::collections::HashSet<_> = (0..64).map(|_| spread(retry)).collect();
        assert!(all.len() > 16, "{all:?}");
        assert!(all.iter().all(|it| (retry..2 * retry).contains(it)));
    }

    #[test]
    fn a_name_has_neither_space_nor_control() {
        for good in ["a", "Ærøskøbing", "auth0|12", &"x".repeat(128)] {
            assert!(is_name(good), "{good:?}");
        }
        for bad in ["", "a b", "a\n", "\u{a0}", "\u{7f}", &"x".repeat(129)] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_log_gets_one_line_and_not_too_long() {
        assert_eq!(one_line("a\nb\u{1b}[31m"), "a\\nb\\u{1b}[31m");
        assert_eq!(one_line(&"é".repeat(300)).chars().count(), LOGGED_CHARS + 1);
    }
}
