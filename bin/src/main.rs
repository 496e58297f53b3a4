//! The chinwag program.

use std::process::ExitCode;

use chinwag::Plugins;

fn main() -> ExitCode {
    chinwag::run(Plugins::builtin())
}
