//! The tables that are the program's own: where it is watched, how it logs, which log orders events.

use std::{fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Deserializer, de};
use tracing_subscriber::filter::{LevelFilter, Targets};

use super::near;

/// `[metrics]`: the listener of `/metrics`, `/livez` and `/readyz`. Without the table there is none.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MetricsConfig {
    /// Address and port; port 0 lets the system choose.
    pub(crate) bind: SocketAddr,
    /// Allows plaintext on an address that other machines reach.
    #[serde(default)]
    pub(crate) insecure: bool,
    /// The name of a `[tls.NAME]` that it speaks; absent: plain text.
    #[serde(default)]
    pub(crate) tls: Option<String>,
}

/// `[log]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LogConfig {
    /// How a line looks.
    pub(crate) format: LogFormat,
    /// Which lines there are.
    pub(crate) level: LogLevel,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    /// Text where standard error is a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Which log lines there are: a level, or levels by module, such as `info,chinwag_transports=debug`.
#[derive(Debug, Clone)]
pub(crate) struct LogLevel(pub(crate) Targets);

impl Default for LogLevel {
    fn default() -> Self {
        Self(Targets::new().with_default(LevelFilter::INFO))
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A word alone may be a module to the parser below, so that "inof" would be one that nothing is called.
        for part in text.split(',') {
            let level = part.split_once('=').map_or(part, |(_module, level)| level);
            if !LEVELS.contains(&level.trim()) {
                let hint = near::hint(level, LEVELS, "there are");
                return Err(format!("unknown level `{level}`{hint}"));
            }
        }
        text.parse()
            .map(Self)
            .map_err(|error| format!("no filter of levels: {error}"))
    }
}

impl<'de> Deserialize<'de> for LogLevel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// `[cluster]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ClusterConfig {
    /// What orders the events of a room.
    pub(crate) log: LogEngine,
}

/// What orders the events of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum LogEngine {
    /// This process alone.
    #[default]
    Embedded,
}

impl<'de> Deserialize<'de> for LogEngine {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "embedded" => Ok(Self::Embedded),
            "nats" => Err(de::Error::custom(
                "\"nats\" is not built yet; only \"embedded\" is accepted",
            )),
            other => Err(de::Error::custom(format_args!(
                "unknown log {other:?}; only \"embedded\" is accepted"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_a_word_or_words_by_module() {
        for text in ["info", "off", "warn,chinwag_core=trace", "chinwag=debug"] {
            assert!(text.parse::<LogLevel>().is_ok(), "{text}");
        }
        for text in ["", "inof", "chinwag_core", "info,", "info,chinwag=loud"] {
            assert!(text.parse::<LogLevel>().is_err(), "{text}");
        }
        assert_eq!(
            "inof".parse::<LogLevel>().unwrap_err(),
            "unknown level `inof`; did you mean `info`?"
        );
    }
}
