//! chinwag with an authenticator of its own: keys that may be given out and taken back while it runs.

use std::process::ExitCode;

use api_keys::ApiKeys;
use chinwag::Plugins;

fn main() -> ExitCode {
    chinwag::run(Plugins::builtin().authenticator::<ApiKeys>())
}
