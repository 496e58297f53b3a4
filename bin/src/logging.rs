//! Log lines: on standard error, as text for people or as one JSON object a line for machines.

use std::io::{self, IsTerminal};

use tracing_subscriber::{Layer, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::{LogConfig, LogFormat};

/// Begins to log. Where the process logs already, in a program of somebody else's, that stays as it is.
pub(crate) fn begin(config: &LogConfig) {
    let terminal = io::stderr().is_terminal();
    // Where a line can't be written, saying so on the same standard error would panic: a terminal that was closed would
    // end the drain that its closing began.
    let lines = fmt::layer()
        .with_writer(io::stderr)
        .log_internal_errors(false);
    let json = match config.format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let lines = if json {
        // Fields beside the message rather than below `fields`: shorter to query.
        lines.json().flatten_event(true).boxed()
    } else {
        let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
        lines.with_ansi(colours).boxed()
    };
    // An error says that there is a subscriber already.
    let _ = tracing_subscriber::registry()
        .with(config.level.0.clone())
        .with(lines)
        .try_init();
}
