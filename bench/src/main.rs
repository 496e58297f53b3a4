//! `chinwag-bench`: see `bench/README.md`.

use std::{error::Error, io::Write, process::ExitCode};

use chinwag_bench::cli::Cli;
use clap::Parser;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let mut text = format!("chinwag-bench: {error}");
            let mut cause = error.source();
            while let Some(source) = cause {
                text.push_str(&format!(": {source}"));
                cause = source.source();
            }
            text.push('\n');
            if let Some(tail) = error.tail() {
                text.push_str(&tail.to_string());
            }
            // Where even stderr is closed, the exit code has to do.
            _ = std::io::stderr().write_all(text.as_bytes());
            ExitCode::FAILURE
        }
    }
}
