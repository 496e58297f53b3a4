//! chinwag with a transport of its own: lines over a Unix-domain socket.

use std::process::ExitCode;

use chinwag::Plugins;
use unix_socket::Unix;

fn main() -> ExitCode {
    chinwag::run(Plugins::builtin().transport::<Unix>())
}
