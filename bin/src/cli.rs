//! The program: its commands, its exit codes and the way from a signal to a clean end.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fmt::Display,
    fs::{self, File},
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use chinwag_core::Lifecycle;
use chinwag_transports::{
    Wire,
    tls::{ClientCert, Tls},
};
use clap::{Parser, Subcommand};
use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
};
use tracing::{info, warn};

use crate::{
    Plugins, Server, StartError,
    config::{BUILTIN, ConfigError, Draft, Loaded, Source},
    logging,
};

/// The configuration is wrong, or a command could not do its work.
pub(crate) const FAILED: u8 = 1;
/// A listener could not be bound, or a session manager that is needed at the start not be reached.
const NOT_BOUND: u8 = 2;
/// The command line is wrong; 64 as in sysexits.h.
pub(crate) const USAGE: u8 = 64;

/// How long work on other threads, such as hashing a password, is waited for at the end.
pub(crate) const LAST_WORK: Duration = Duration::from_secs(1);

/// Real-time rooms over TCP, WebSocket and HTTP polling, deployed from one TOML file.
#[derive(Debug, Parser)]
#[command(name = "chinwag", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server until SIGTERM or SIGINT; SIGHUP has it read certificates anew
    Serve {
        /// The TOML file; without it a built-in one for this machine alone
        #[arg(long, short, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Check a file as `serve` would read it, environment included, and say every mistake in it
    Check {
        /// The TOML file
        file: PathBuf,
    },
    /// Talk: at a terminal, or line by line from a pipe
    #[cfg(feature = "chat")]
    #[command(after_help = crate::chat::HELP)]
    Chat(crate::chat::Arguments),
    /// Load a server, check every delivery and tell what it costs
    #[cfg(all(feature = "bench", target_os = "linux"))]
    Bench(Box<chinwag_bench::command::Bench>),
    /// Try out who gets in
    #[cfg(feature = "auth-test")]
    #[command(subcommand)]
    Auth(crate::authtest::Command),
    /// Make certificates for trying out TLS
    #[cfg(feature = "cert")]
    #[command(subcommand)]
    Cert(crate::cert::Command),
    /// Set a user's password in a file for `kind = "password"`: asked twice, or one line of standard input
    Passwd {
        /// The password file; made where there is none
        file: PathBuf,
        /// The user, added where the file has none of that name
        user: String,
    },
}

const EXAMPLES: &str = "\
Without a command chinwag serves its built-in configuration on loopback:
  WebSocket and HTTP polling   127.0.0.1:8080
  lines of JSON over TCP       127.0.0.1:4020
  metrics and health           127.0.0.1:9464

Examples:
  chinwag                           Try it: then `nc 127.0.0.1 4020`, and type
                                    {\"type\":\"login\",\"user\":\"Alice\"}
  chinwag chat                      Talk to whoever is there
  chinwag check chat.toml           Find every mistake before anything starts
  chinwag serve --config chat.toml  Run it
  chinwag passwd users.txt alice    Let alice in
  CHINWAG_TRANSPORTS__WEB__BIND=127.0.0.1:81 chinwag serve --config chat.toml
                                    The same with another `bind` for
                                    [transports.web]

Exit codes:
  0   ended as asked, or nothing to complain of
  1   the configuration is wrong, or a command could not do its work
  2   a listener could not be bound
  64  the command line is wrong
`chat` and `auth test` have more of them; their `--help` lists these.
";

/// Runs the program with the kinds in `plugins`, on the arguments and the environment of the process. A `main` is this
/// one call.
///
/// Starts its own runtime: call it outside of one.
pub fn run(plugins: Plugins) -> ExitCode {
    run_with(&plugins, std::env::args_os())
}

fn run_with(plugins: &Plugins, arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let command = match Cli::try_parse_from(&arguments) {
        Ok(Cli { command }) => command,
        Err(mut error) => {
            hide_secrets(&mut error, &arguments);
            // Help and version come this way too, on standard output. A closed pipe is not ours to mend.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let done = match command {
        None => serve(plugins, None),
        Some(Command::Serve { config }) => serve(plugins, config.as_deref()),
        Some(Command::Check { file }) => check(plugins, &file),
        #[cfg(feature = "chat")]
        Some(Command::Chat(arguments)) => crate::chat::run(&arguments),
        #[cfg(all(feature = "bench", target_os = "linux"))]
        Some(Command::Bench(arguments)) => bench(&arguments),
        #[cfg(feature = "auth-test")]
        Some(Command::Auth(command)) => crate::authtest::run(plugins, &command),
        #[cfg(feature = "cert")]
        Some(Command::Cert(command)) => crate::cert::run(&command).and_then(answer),
        Some(Command::Passwd { file, user }) => passwd(&file, &user),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.message.is_empty() {
                say(io::stderr(), &failure.message);
            }
            ExitCode::from(failure.code)
        }
    }
}

/// Does not repeat what stands beside `--password` or `--token`, which take no value: it may well be one.
fn hide_secrets(error: &mut clap::Error, arguments: &[OsString]) {
    use clap::error::{ContextKind, ContextValue};
    let behind = |text: &str| {
        ["--password", "--token"].into_iter().any(|option| {
            let joined = format!("{option}={text}");
            arguments.iter().any(|argument| *argument == *joined)
                || arguments
                    .windows(2)
                    .any(|pair| pair[0] == *option && pair[1] == *text)
        })
    };
    for kind in [ContextKind::InvalidArg, ContextKind::InvalidValue] {
        if let Some(ContextValue::String(text)) = error.get(kind)
            && behind(text)
        {
            error.insert(kind, ContextValue::String("…".into()));
            // They quote it too.
            error.remove(ContextKind::Suggested);
        }
    }
}

/// What ends the program with something other than 0.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) message: String,
    pub(crate) code: u8,
}

impl Failure {
    pub(crate) fn new(message: impl Display) -> Self {
        Self {
            message: format!("error: {message}"),
            code: FAILED,
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self {
            message: error.to_string(),
            code: FAILED,
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self {
            message: error.to_string(),
            code: match error {
                StartError::Config(_) => FAILED,
                StartError::Listen(_) | StartError::Unreachable(_) => NOT_BOUND,
            },
        }
    }
}

/// Writes a line. Whoever closed the other end does not want it.
fn say(mut to: impl Write, text: impl Display) {
    let _ = writeln!(to, "{text}");
}

/// Writes what a command was asked for.
fn answer(text: impl Display) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    match writeln!(output, "{text}").and_then(|()| output.flush()) {
        // Whoever closed the other end does not want it.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(format_args!(
            "can't write to standard output: {error}"
        ))),
        _ => Ok(()),
    }
}

/// A configuration file with what is needed to read it.
pub(crate) struct Configuration {
    name: String,
    text: String,
    base: PathBuf,
    builtin: bool,
}

impl Configuration {
    pub(crate) fn builtin() -> Self {
        Self {
            name: "built-in configuration".into(),
            text: BUILTIN.into(),
            base: PathBuf::new(),
            builtin: true,
        }
    }

    pub(crate) fn file(path: &Path) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let bytes = fs::read(path)
            .map_err(|error| Failure::new(format_args!("{name}: can't be read: {error}")))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let line = error
                .as_bytes()
                .iter()
                .take(error.utf8_error().valid_up_to())
                .filter(|&&byte| byte == b'\n')
                .count()
                + 1;
            Failure::new(format_args!("{name}:{line}: not UTF-8"))
        })?;
        Ok(Self {
            name,
            text,
            base: path.parent().unwrap_or_else(|| Path::new("")).into(),
            builtin: false,
        })
    }

    pub(crate) fn read(&self, plugins: &Plugins) -> Result<Draft, ConfigError> {
        let source = Source {
            name: &self.name,
            text: &self.text,
            base: &self.base,
            builtin: self.builtin,
        };
        Draft::read(plugins, source, std::env::vars_os())
    }
}

fn serve(plugins: &Plugins, file: Option<&Path>) -> Result<(), Failure> {
    let configuration = match file {
        Some(path) => Configuration::file(path)?,
        None => Configuration::builtin(),
    };
    let draft = configuration.read(plugins)?;
    logging::begin(draft.log());
    let runtime = runtime(draft.workers())?;
    let done = runtime.block_on(serve_until_asked(draft, configuration.builtin));
    match done {
        Ok(Ended::Drained) => {
            runtime.shutdown_timeout(LAST_WORK);
            Ok(())
        }
        Ok(Ended::Killed) => {
            runtime.shutdown_background();
            Err(Failure::new("stopped at once by a second signal"))
        }
        Err(failure) => {
            runtime.shutdown_timeout(LAST_WORK);
            Err(failure)
        }
    }
}

/// `workers` threads; 0: one per core. What is over the bound is refused later, by the check that the threads run.
pub(crate) fn runtime(workers: usize) -> Result<Runtime, Failure> {
    let mut builder = Builder::new_multi_thread();
    if workers > 0 {
        builder.worker_threads(workers.min(1024));
    }
    builder
        .enable_all()
        .thread_name("chinwag")
        .build()
        .map_err(|error| Failure::new(format_args!("can't start threads: {error}")))
}

enum Ended {
    Drained,
    Killed,
}

async fn serve_until_asked(draft: Draft, builtin: bool) -> Result<Ended, Failure> {
    // Before anything listens: from the first connection on, a signal is answered with a drain.
    let mut signals = Signals::new()
        .map_err(|error| Failure::new(format_args!("can't hear signals: {error}")))?;
    let server = Server::launch(draft).await?;
    if builtin && let Some(line) = server.addr("line") {
        info!(
            "Try it: `nc {} {}`, then type {{\"type\":\"login\",\"user\":\"Alice\"}} and {{\"type\":\"join\"}}. \
             `chinwag --help` says more.",
            line.ip(),
            line.port()
        );
    }
    let terminal = Terminal::of_this_process();
    let mut orphaned = std::pin::pin!(orphaned());
    let signal = loop {
        let signal = tokio::select! {
            signal = signals.next() => signal,
            () = &mut orphaned => ORPHANED,
        };
        if signal != HANGUP || terminal.is_closed() {
            break signal;
        }
        server.reload();
    };
    info!(signal, "Stopping; a second signal stops at once.");
    tokio::select! {
        dropped = server.shut_down() => {
            if dropped > 0 {
                warn!(tasks = dropped, "The grace was too short for some tasks; they were dropped.");
            }
            info!("stopped");
            Ok(Ended::Drained)
        }
        () = signals.again() => Ok(Ended::Killed),
    }
}

/// The name of the signal that means two things: the terminal was closed, or somebody wants files to be read anew.
const HANGUP: &str = "SIGHUP";

/// Where this is set, the server also stops when its standard input ends: for a program that starts one, keeps the other
/// end of the pipe, and may be killed before it can stop it.
const UNTIL_EOF: &str = "CHINWAG_UNTIL_EOF";

/// What is logged as the signal then.
const ORPHANED: &str = "end of input";

/// Waits until standard input has ended, if that is to be the end; else for ever.
async fn orphaned() {
    let (ended, end) = oneshot::channel::<()>();
    if std::env::var_os(UNTIL_EOF).is_some() {
        // A read can't be given up: the thread is not one that the runtime waits for when it ends.
        let reader = std::thread::Builder::new().name("chinwag-stdin".into());
        let reading = reader.spawn(move || {
            // Whatever it says, and however it ends.
            let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
            drop(ended);
        });
        if reading.is_ok() {
            let _ = end.await;
            return;
        }
    }
    std::future::pending().await
}

/// The terminal that the program was started at, where there is one.
struct Terminal(Option<File>);

impl Terminal {
    fn of_this_process() -> Self {
        Self(File::open("/dev/tty").ok())
    }

    /// Whether it was there and is no more. A process group that loses its terminal is not one that a service manager
    /// runs.
    fn is_closed(&self) -> bool {
        self.0.as_ref().is_some_and(|tty| !tty.is_terminal())
    }
}

/// The signals that a program hears.
#[cfg(unix)]
pub(crate) struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    /// `None` under `nohup`, which is meant to outlive its terminal.
    hangup: Option<tokio::signal::unix::Signal>,
}

#[cfg(unix)]
impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let is_deaf =
            fs::read_to_string("/proc/self/status").is_ok_and(|text| ignores_hangup(&text));
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: if is_deaf {
                None
            } else {
                Some(signal(SignalKind::hangup())?)
            },
        })
    }

    /// The first that comes.
    pub(crate) async fn next(&mut self) -> &'static str {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.terminate.recv() => "SIGTERM",
            _ = hangup => HANGUP,
        }
    }

    /// Somebody insists. A hangup does not: a terminal that is closed often sends two, one of them by way of its shell.
    pub(crate) async fn again(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => (),
            _ = self.terminate.recv() => (),
        }
    }
}

/// Whether `status`, what Linux says of a process, has it ignore SIGHUP, the first signal of the mask. Other systems
/// don't tell, so that a hangup is always heard there.
#[cfg(unix)]
fn ignores_hangup(status: &str) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask & 1 == 1)
}

/// The signals that a program hears.
#[cfg(not(unix))]
pub(crate) struct Signals;

#[cfg(not(unix))]
impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self)
    }

    pub(crate) async fn next(&mut self) -> &'static str {
        if tokio::signal::ctrl_c().await.is_err() {
            // Nothing will ever ask: the server runs until it is killed.
            std::future::pending::<()>().await;
        }
        "Ctrl-C"
    }

    pub(crate) async fn again(&mut self) {
        self.next().await;
    }
}

fn check(plugins: &Plugins, file: &Path) -> Result<(), Failure> {
    let configuration = Configuration::file(file)?;
    let draft = configuration.read(plugins)?;
    let runtime = runtime(1)?;
    let lifecycle = Lifecycle::new();
    let loaded = runtime.block_on(draft.build(&lifecycle));
    lifecycle.kill();
    runtime.shutdown_timeout(LAST_WORK);
    let loaded = loaded?;
    for warning in &loaded.warnings {
        say(io::stderr(), format_args!("{warning}\n"));
    }
    answer(summary(&configuration.name, &loaded))
}

/// What listens and who is told of sessions: table, kind, address, what is spoken there, and what it is for.
fn tables(loaded: &Loaded) -> Vec<[String; 5]> {
    let mut rows: Vec<[String; 5]> = loaded
        .transports
        .iter()
        .map(|transport| {
            let auth: Vec<&str> = transport.auth.iter().map(|link| &*link.name).collect();
            [
                format!("transports.{}", transport.name),
                transport.kind.clone(),
                match transport.wire {
                    Wire::Other => "its own".into(),
                    Wire::Stream | Wire::Http => transport.listener.bind.to_string(),
                },
                speaks(transport.tls.as_deref()),
                if auth.is_empty() {
                    "nobody gets in".into()
                } else {
                    format!("auth: {}", auth.join(", "))
                },
            ]
        })
        .collect();
    #[cfg(feature = "web")]
    rows.extend(loaded.page.as_ref().and_then(|page| {
        let mut transports = loaded.transports.iter();
        let transport = transports.find(|transport| transport.name == page.transport)?;
        Some([
            "web".into(),
            "page".into(),
            transport.listener.bind.to_string(),
            speaks(transport.tls.as_deref()),
            format!("shared with transports.{}", transport.name),
        ])
    }));
    rows.extend(loaded.control.as_ref().map(|control| {
        [
            "control".into(),
            "http".into(),
            control.listener.bind.to_string(),
            speaks(control.tls.as_deref()),
            "orders of session managers".into(),
        ]
    }));
    rows.extend(loaded.metrics.as_ref().map(|metrics| {
        let tls = metrics.tls.as_ref().and_then(|name| loaded.tls.get(name));
        [
            "metrics".into(),
            "http".into(),
            metrics.bind.to_string(),
            speaks(tls.map(|tls| &**tls)),
            String::new(),
        ]
    }));
    rows.extend(loaded.managers.iter().map(|manager| {
        let name = &manager.link.name;
        let links = loaded
            .transports
            .iter()
            .flat_map(|transport| &transport.auth);
        // Several transports may ask the same authenticator.
        let whose: BTreeSet<&str> = links
            .filter(|link| link.manager.as_ref().is_some_and(|told| told.name == *name))
            .map(|link| &*link.name)
            .collect();
        let whose: Vec<&str> = whose.into_iter().collect();
        [
            format!("session_managers.{name}"),
            manager.kind.clone(),
            String::new(),
            String::new(),
            if whose.is_empty() {
                "told of nobody".into()
            } else {
                format!("told of: {}", whose.join(", "))
            },
        ]
    }));
    rows
}

/// What a file that is right would do.
fn summary(name: &str, loaded: &Loaded) -> String {
    let rows = tables(loaded);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(String::len)
            .max()
            .unwrap_or(0)
    };
    let (first, second, third, fourth) = (width(0), width(1), width(2), width(3));
    let mut text = match loaded.warnings.len() {
        0 => format!("{name}: ok"),
        1 => format!("{name}: ok, with 1 warning"),
        count => format!("{name}: ok, with {count} warnings"),
    };
    for [table, kind, bind, wire, auth] in &rows {
        let row =
            format!("  {table:first$}  {kind:second$}  {bind:third$}  {wire:fourth$}  {auth}");
        text = text + "\n" + row.trim_end();
    }
    if let Some(worst) = &loaded.memory {
        let budget = loaded.hub.server.memory_budget;
        text += &format!("\nmemory at the worst, of {budget}:\n{worst}");
    }
    text
}

/// What a listener speaks: plain text, or TLS by a table and with whose certificates.
fn speaks(tls: Option<&Tls>) -> String {
    let Some(tls) = tls else {
        return "plain text".into();
    };
    let name = tls.name();
    match tls.client_cert() {
        ClientCert::None => format!("TLS: {name}"),
        ClientCert::Optional => format!("TLS: {name}, client certificate optional"),
        ClientCert::Required => format!("TLS: {name}, client certificate required"),
    }
}

/// Loads a server; without an address one of this very program.
#[cfg(all(feature = "bench", target_os = "linux"))]
fn bench(arguments: &chinwag_bench::command::Bench) -> Result<(), Failure> {
    let own = std::env::current_exe().ok();
    match arguments.run(own.as_deref()) {
        Ok(0) => Ok(()),
        Ok(faults) => Err(Failure::new(format_args!("the run had {faults} faults"))),
        Err(error) => Err(Failure {
            message: format!("error: {}", error.explain()),
            code: if error.is_usage() { USAGE } else { FAILED },
        }),
    }
}

#[cfg(feature = "password")]
fn passwd(file: &Path, user: &str) -> Result<(), Failure> {
    use chinwag_auth::password::{self, Outcome};

    let password = ask_password(user)?;
    let outcome = password::set(file, user, &password).map_err(Failure::new)?;
    let what = match outcome {
        Outcome::Added => "added",
        Outcome::Replaced => "has a new password",
    };
    say(
        io::stdout(),
        format_args!("{}: {user} {what}", file.display()),
    );
    Ok(())
}

#[cfg(not(feature = "password"))]
fn passwd(_file: &Path, _user: &str) -> Result<(), Failure> {
    Err(Failure::new("this binary is built without `password`"))
}

/// Asks twice at a terminal, without showing what is typed; else takes one line of standard input.
#[cfg(feature = "password")]
fn ask_password(user: &str) -> Result<secrecy::SecretString, Failure> {
    use crate::terminal::Silence;

    let unread = |error: io::Error| Failure::new(format_args!("can't read a password: {error}"));
    if !io::stdin().is_terminal() {
        return first_line(io::stdin().lock(), PASSWORD_LINE).map_err(unread);
    }
    let terminal = Silence::keep().map_err(unread)?;
    let password = terminal
        .ask(&format!("Password for {user}: "))
        .map_err(unread)?;
    let again = terminal.ask("The same again: ").map_err(unread)?;
    if secrecy::ExposeSecret::expose_secret(&password)
        != secrecy::ExposeSecret::expose_secret(&again)
    {
        return Err(Failure::new(
            "the two passwords differ; nothing was changed",
        ));
    }
    Ok(password)
}

/// The most that is read of a line with a password: one is shorter, and what is longer is refused.
#[cfg(feature = "password")]
const PASSWORD_LINE: u64 = 4096;

/// The first line of `input`, without its end, or as much of it as `most` bytes have.
#[cfg(any(feature = "password", feature = "auth-test"))]
pub(crate) fn first_line(input: impl io::BufRead, most: u64) -> io::Result<secrecy::SecretString> {
    let mut line = String::new();
    io::BufRead::read_line(&mut input.take(most), &mut line)?;
    let end = line.trim_end_matches(['\r', '\n']).len();
    line.truncate(end);
    Ok(line.into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_is_as_reviewed_and_fits_80_columns() {
        let mut command = Cli::command().term_width(80);
        command.build();
        let mut text = command.render_help().to_string();
        for name in ["serve", "check", "chat", "bench", "auth", "cert", "passwd"] {
            let sub = command.find_subcommand_mut(name).unwrap();
            text = text + "\n---- " + name + "\n" + &sub.render_help().to_string();
        }
        let widest = text.lines().map(str::len).max().unwrap();
        assert!(widest <= 80, "{widest}");
        insta::assert_snapshot!("help", text);
    }

    fn exit_code(arguments: &[&str]) -> String {
        let arguments = ["chinwag"].iter().chain(arguments).map(OsString::from);
        format!("{:?}", run_with(&Plugins::empty(), arguments))
    }

    #[test]
    fn every_kind_of_failure_has_its_exit_code() {
        let code = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(exit_code(&["--version"]), code(0));
        assert_eq!(exit_code(&["--sing"]), code(64));
        assert_eq!(exit_code(&["check"]), code(64));
        assert_eq!(exit_code(&["check", "/nonexistent.toml"]), code(1));
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        assert_eq!(
            exit_code(&["check", path]),
            code(1),
            "an empty file names no transport"
        );
        fs::write(path, b"a = 1\n\xff").unwrap();
        let error = Configuration::file(file.path()).err().unwrap();
        assert_eq!(error.message, format!("error: {path}:2: not UTF-8"));
        assert_eq!(
            Failure::from(StartError::Listen(Vec::new())).code,
            NOT_BOUND
        );
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_hangup_is_heard_and_never_insists() {
        use futures_util::FutureExt;

        let send = |signal: &str| {
            let pid = std::process::id().to_string();
            let sent = std::process::Command::new("kill")
                .args(["-s", signal, &pid])
                .status();
            assert!(sent.unwrap().success());
        };
        let (mut signals, mut others) = (Signals::new().unwrap(), Signals::new().unwrap());
        send("HUP");
        assert_eq!(signals.next().await, "SIGHUP");
        send("HUP");
        assert_eq!(signals.next().await, "SIGHUP", "the second has come");
        assert_eq!(others.again().now_or_never(), None, "but does not insist");
        send("TERM");
        others.again().await;
        assert_eq!(others.next().await, "SIGHUP");
        assert_eq!(signals.next().await, "SIGTERM");
    }

    #[cfg(unix)]
    #[test]
    fn a_hangup_that_is_ignored_stays_so() {
        assert!(ignores_hangup(
            "Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0\n"
        ));
        assert!(!ignores_hangup(
            "Name:\tx\nSigIgn:\t0000000000001000\nSigCgt:\t1\n"
        ));
        assert!(!ignores_hangup("SigIgn:\tx\n") && !ignores_hangup(""));
    }

    #[cfg(feature = "password")]
    #[test]
    fn a_password_is_one_line_without_its_end() {
        use secrecy::ExposeSecret;
        for (input, password) in [
            ("secret\n", "secret"),
            ("secret\r\nmore", "secret"),
            (" with space ", " with space "),
            ("", ""),
        ] {
            let read = first_line(input.as_bytes(), PASSWORD_LINE).unwrap();
            assert_eq!(read.expose_secret(), password);
        }
    }
}
