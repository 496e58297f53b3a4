//! `chinwag chat`: talking from a terminal, or line by line from a pipe.
//!
//! This module gets somebody in, by asking for what is missing, and turns every way in which that or the talk ends into
//! words and an exit code. The talk itself is [`interactive`] or [`piped`].

mod editor;
mod harmless;
mod interactive;
mod piped;
mod screen;
mod show;

use std::{
    env,
    fmt::{self, Display},
    io::{self, IsTerminal},
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
};

use chinwag_client::{
    Client, ConnectError, End, EndCode, Error, ErrorCode, Identity, Init, Login, Loss, Options,
    Refusal, Session, TlsFault, TlsFiles,
};
use jiff::tz::TimeZone;
use secrecy::{ExposeSecret, SecretString};

use self::show::Show;
use crate::{
    cli::{Failure, Signals, USAGE},
    terminal::Silence,
};

/// The credentials were not accepted, or the name.
const DENIED: u8 = 3;
/// The server refused for another reason, or ended the session.
const REFUSED: u8 = 4;
/// No server could be reached.
const UNREACHABLE: u8 = 5;
/// The connection was lost.
const LOST: u8 = 6;

/// Where the password may be instead of being asked for.
const PASSWORD: &str = "CHINWAG_PASSWORD";
/// What to do where somebody else answers.
const WRONG_DOOR: &str = "Are the URL's scheme, port and path those of the server?";
/// How often a password is asked for.
const QUESTIONS: usize = 3;
/// How many other names are tried where nobody chose the first.
const OTHER_NAMES: u32 = 3;

/// The command line of `chat`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The server: tcp://HOST[:PORT], ws://HOST[:PORT][/PATH] or http://HOST[:PORT][/PATH], which polls; the same with
    /// TLS: tls://, wss:// or https://
    #[arg(default_value = "tcp://127.0.0.1:4020")]
    url: String,
    /// Your name there [default: with --cert the one in it, else that of $USER]
    #[arg(long, short, value_name = "NAME")]
    user: Option<String>,
    /// The room to join [default: the server's default room]
    #[arg(long, short)]
    room: Option<String>,
    /// Ask for a password at once, and not only when the server wants one
    #[arg(long)]
    password: bool,
    /// Who may have signed the server's certificate, in PEM form; may be repeated
    /// [default: those whom the system trusts]
    #[arg(long, value_name = "FILE")]
    ca: Vec<PathBuf>,
    /// Your certificate in PEM form, for servers that ask for one
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// The private key of your certificate [default: in the file of --cert]
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Send a password in plain text to another machine, where everybody on the way can read it
    #[arg(long)]
    insecure: bool,
    /// Read commands and write what comes from the server, one JSON object a line
    #[arg(long)]
    json: bool,
    /// When to use colours; `auto`: on a terminal, unless NO_COLOR is set
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: Colour,
}

impl Arguments {
    fn tls(&self) -> TlsFiles {
        let identity = self.cert.clone().map(|cert| Identity {
            key: self.key.clone().unwrap_or_else(|| cert.clone()),
            cert,
        });
        TlsFiles {
            ca: self.ca.clone(),
            identity,
        }
    }

    /// Whether the certificate is all that there is to log in with.
    fn is_by_certificate(&self) -> bool {
        self.cert.is_some() && self.user.is_none() && !self.password
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Colour {
    Auto,
    Always,
    Never,
}

/// What `chat --help` says at its end.
pub(crate) const HELP: &str = "\
At a terminal: type and press Enter. Alt-Enter begins another line of the same
message, Tab completes names, the arrow keys bring back what you said. /help
lists the commands; Ctrl-D leaves.

From a pipe: each line that is not blank is said as it stands, as fast as the
server allows; each message that comes is a line of standard output. At the end
of the input it waits until the room has all of it, and logs out.

With --json each line is a command as in docs/protocol.md, with an `id` of yours
or none; where `room` is left out, it is the one joined. The output is what the
server sends, less the session's id, which is a secret.

The password is asked for where the server wants one, or taken from
CHINWAG_PASSWORD. It is no option: others can read a command line. In plain text
(tcp://, ws://, http://) it is sent within this machine only, unless --insecure
says otherwise.

With TLS (tls://, wss://, https://) the server's certificate has to be in date,
for the URL's host, and signed by somebody in --ca; nothing leaves that out.
With --cert and neither --user nor --password, the certificate alone logs you
in: no password is asked for or sent.

Examples:
  chinwag chat
  chinwag chat wss://chat.example.org --user ada --room games
  chinwag chat tls://localhost --ca ca.pem --cert alice.pem --key alice.key
  tail -f deploy.log | chinwag chat --user deploy --room ops

Exit codes:
  0   logged out, or the server stopped and said goodbye
  1   not every line of the input was sent, or standard output could not be
      written; standard error says which
  3   denied: the password, the name or your certificate
  4   refused, as a name that somebody has, or ended by the server: it says why
  5   unreachable: no server there, or none that can be trusted
  6   lost: the connection broke without a goodbye
  64  the command line is wrong, or a file that it names
";

/// Runs the command to its end.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // One more than is needed to talk: a terminal or a pipe that takes no more must not keep pings back.
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format_args!("can't start threads: {error}")))?;
    let done = runtime.block_on(Box::pin(talk(arguments)));
    // A thread may be waiting for a key, or for a name to be looked up.
    runtime.shutdown_background();
    done.map_err(|ending| ending.failure())
}

async fn talk(arguments: &Arguments) -> Result<(), Ending> {
    let mut signals = Signals::new()
        .map_err(|error| Ending::other(format_args!("can't hear signals: {error}")))?;
    let signals = &mut signals;
    let entered = tokio::select! {
        entered = Box::pin(enter(arguments)) => entered?,
        // A Ctrl-C at the question is also an answer to it; whichever is heard first, it says the same.
        signal = signals.next() => {
            return match signal {
                "SIGINT" if ASKING.load(Ordering::Relaxed) => Err(Ending::new(DENIED, NO_PASSWORD)),
                _ => Ok(()),
            };
        }
    };
    let show = Show {
        colours: match arguments.color {
            Colour::Always => true,
            Colour::Never => false,
            Colour::Auto => {
                io::stdout().is_terminal()
                    && !is_dumb()
                    && env::var_os("NO_COLOR").is_none_or(|no| no.is_empty())
            }
        },
        zone: TimeZone::system(),
    };
    if is_interactive(arguments) {
        interactive::talk(entered, show, signals).await
    } else {
        piped::talk(entered, show, arguments.json, signals).await
    }
}

/// Whether somebody sits at a terminal that can move its cursor.
fn is_interactive(arguments: &Arguments) -> bool {
    !arguments.json && io::stdin().is_terminal() && io::stdout().is_terminal() && !is_dumb()
}

fn is_dumb() -> bool {
    env::var_os("TERM").is_none_or(|term| term == "dumb" || term.is_empty())
}

/// Somebody who is in.
struct Entered {
    client: Client,
    session: Session,
    init: Init,
}

async fn enter(arguments: &Arguments) -> Result<Entered, Ending> {
    let options = Options {
        answers_too: arguments.json,
        tls: arguments.tls(),
        insecure: arguments.insecure,
        ..Options::default()
    };
    let client = Client::connect(&arguments.url, options).await?;
    let session = log_in(&client, arguments).await?;
    let room = arguments.room.as_deref();
    let init = match client.join(room).await {
        Ok(init) => init,
        Err(error) => {
            let _ = client.logout().await;
            let hint = match &error {
                Error::Refused(refusal) if refusal.code == ErrorCode::BadRequest => {
                    "Name a room with --room."
                }
                Error::Refused(_) => "--room names another.",
                _ => "",
            };
            return Err(Ending::from(error).hint(hint));
        }
    };
    Ok(Entered {
        client,
        session,
        init,
    })
}

async fn log_in(client: &Client, arguments: &Arguments) -> Result<Session, Ending> {
    if arguments.is_by_certificate() {
        return log_in_by_certificate(client, &arguments.url).await;
    }
    let chosen = arguments.user.clone();
    let may_rename = chosen.is_none();
    let mut user = chosen.unwrap_or_else(default_name);
    let mut password = match env::var(PASSWORD) {
        Ok(password) if !password.is_empty() => Some(SecretString::from(password)),
        Err(env::VarError::NotUnicode(_)) => {
            return Err(Ending::usage(format_args!("{PASSWORD} is not UTF-8")));
        }
        _ => None,
    };
    let mut questions = 0;
    let mut other_names = 0;
    if arguments.password {
        client.handle().may_tell_secrets()?;
        password = Some(ask(&user).await?);
        questions = 1;
    }
    let name = user.clone();
    loop {
        let login = match &password {
            Some(password) => Login::password(&user, password.expose_secret()),
            None => Login::name(&user),
        };
        let refusal = match client.login(login).await {
            Ok(session) => return Ok(session),
            Err(Error::Refused(refusal)) => refusal,
            Err(error) => return Err(not_let_in(error, &arguments.url)),
        };
        match refusal.code {
            // Where a password was given by the environment, somebody else decided on it.
            ErrorCode::AuthFailed
                if (password.is_none() || questions > 0)
                    && questions < QUESTIONS
                    && io::stdin().is_terminal() =>
            {
                if questions > 0 {
                    say(harmless::line(&refusal.message));
                }
                client.handle().may_tell_secrets()?;
                questions += 1;
                password = Some(ask(&user).await?);
            }
            // A second terminal of the same person's, say.
            ErrorCode::NameInUse
                if may_rename && password.is_none() && other_names < OTHER_NAMES =>
            {
                other_names += 1;
                user = format!("{name}-{}", other_names + 1);
            }
            ErrorCode::AuthFailed if arguments.cert.is_some() && password.is_none() => {
                let hint = "Without --user the certificate says who you are.";
                return Err(Ending::from(Error::Refused(refusal)).hint(hint));
            }
            _ => return Err(refused_login(refusal)),
        }
    }
}

/// Logs in as whom the certificate names, and nothing else.
async fn log_in_by_certificate(client: &Client, url: &str) -> Result<Session, Ending> {
    match client.login(Login::certificate()).await {
        Ok(session) => Ok(session),
        Err(Error::Refused(refusal)) => {
            let hint = match refusal.code {
                ErrorCode::AuthFailed => {
                    "With --user NAME you log in under that name, if need be with a password."
                }
                _ => "",
            };
            Err(Ending::from(Error::Refused(refusal)).hint(hint))
        }
        Err(error) => Err(not_let_in(error, url)),
    }
}

/// There is somebody, and they do not answer as a server would.
fn not_let_in(error: Error, url: &str) -> Ending {
    let text = match &error {
        Error::Ended(End::Lost(Loss::Tls(fault))) | Error::Lost(Loss::Tls(fault)) => {
            return Ending::of_tls(fault, format_args!("can't connect to {url}: {fault}"));
        }
        Error::Ended(End::Lost(loss)) | Error::Lost(loss) => loss.to_string(),
        Error::NoAnswer(after) => format!("no answer within {after:?}"),
        Error::Senseless(_) => error.to_string(),
        _ => return error.into(),
    };
    Ending::new(
        UNREACHABLE,
        format_args!("unreachable: {}", harmless::line(&text)),
    )
    .hint(WRONG_DOOR)
}

fn refused_login(refusal: Refusal) -> Ending {
    let hint = match refusal.code {
        ErrorCode::AuthFailed => {
            "--user names the user, --password asks for the password, CHINWAG_PASSWORD has it."
        }
        ErrorCode::NameInvalid | ErrorCode::NameInUse => "--user names another.",
        _ => "",
    };
    Ending::from(Error::Refused(refusal)).hint(hint)
}

/// The system's name for the user, made to fit the rules that servers have unless configured otherwise.
fn default_name() -> String {
    let name = env::var("USER").or_else(|_| env::var("LOGNAME"));
    fitted(&name.unwrap_or_default())
}

fn fitted(name: &str) -> String {
    let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    // Two characters are left for a number.
    let name: String = name.chars().filter(allowed).take(30).collect();
    if name.is_empty() {
        "guest".into()
    } else {
        name
    }
}

/// Whether somebody is being asked for a password, of whom there is one at most.
static ASKING: AtomicBool = AtomicBool::new(false);
const NO_PASSWORD: &str = "denied: no password was given";

/// Asks for a password at the terminal. The terminal is as it was before, whenever this is given up.
async fn ask(user: &str) -> Result<SecretString, Ending> {
    let unread = |error: io::Error| match error.kind() {
        // Ctrl-C and Ctrl-D; only the first ends the line of the question.
        io::ErrorKind::Interrupted => Ending::new(DENIED, NO_PASSWORD),
        io::ErrorKind::UnexpectedEof => Ending::new(DENIED, "\ndenied: no password was given"),
        _ => Ending::other(format_args!("can't ask for a password: {error}"))
            .hint("CHINWAG_PASSWORD has it where there is no terminal."),
    };
    let _silence = Silence::keep().map_err(unread)?;
    ASKING.store(true, Ordering::Relaxed);
    let question = format!("Password for {}: ", harmless::line(user));
    let asked = tokio::task::spawn_blocking(move || crate::terminal::ask(&question)).await;
    ASKING.store(false, Ordering::Relaxed);
    asked
        .unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(unread)
}

/// Words for whoever sits there, beside what is written on standard output.
fn say(text: impl Display) {
    use std::io::Write;
    let _ = writeln!(io::stderr(), "{text}");
}

/// How it ended, where that is not simply as asked.
#[derive(Debug)]
struct Ending {
    code: u8,
    text: String,
}

impl Ending {
    fn new(code: u8, text: impl Display) -> Self {
        Self {
            code,
            text: text.to_string(),
        }
    }

    fn other(text: impl Display) -> Self {
        Self::new(crate::cli::FAILED, text)
    }

    fn usage(text: impl Display) -> Self {
        Self::new(USAGE, text)
    }

    /// Adds what to do about it.
    fn hint(mut self, hint: &str) -> Self {
        if !hint.is_empty() {
            self.text = self.text + "\n" + hint;
        }
        self
    }

    fn failure(self) -> Failure {
        Failure {
            message: self.text,
            code: self.code,
        }
    }
}

impl Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<ConnectError> for Ending {
    fn from(error: ConnectError) -> Self {
        let text = harmless::line(&error.to_string());
        match error {
            ConnectError::Url(_) => Self::usage(format_args!("wrong URL: {text}")),
            ConnectError::File { .. } => Self::usage(text),
            ConnectError::Tls { fault, .. } => Self::of_tls(&fault, text),
            ConnectError::Refused(refusal) => refused_login(refusal),
            ConnectError::NotChinwag { .. } => {
                Self::new(UNREACHABLE, format_args!("unreachable: {text}")).hint(WRONG_DOOR)
            }
            _ => Self::new(UNREACHABLE, format_args!("unreachable: {text}")).hint(
                "Does the server run, and is the address right? `chinwag` alone starts one here; \
                 `chinwag chat URL` names another.",
            ),
        }
    }
}

impl From<Error> for Ending {
    fn from(error: Error) -> Self {
        match error {
            Error::Exposed(_) => Self::usage(error).hint(
                "tls://, wss:// and https:// keep them secret; --insecure sends them all the same.",
            ),
            Error::Ended(end) => Self::of(&end).unwrap_or_else(|| Self::new(REFUSED, "logged out")),
            Error::Refused(refusal) => {
                let denied = matches!(
                    refusal.code,
                    ErrorCode::AuthFailed | ErrorCode::NameInvalid | ErrorCode::SessionRefused
                );
                let (code, word) = if denied {
                    (DENIED, "denied")
                } else {
                    (REFUSED, "refused")
                };
                let text = harmless::line(&refusal.message);
                Self::new(
                    code,
                    format_args!("{word}: {text} ({})", harmless::line(refusal.code.as_str())),
                )
                .hint(&come_back(refusal.retry_ms))
            }
            error => Self::new(
                LOST,
                format_args!("lost: {}", harmless::line(&error.to_string())),
            ),
        }
    }
}

impl Ending {
    /// The two never got as far as talking.
    fn of_tls(fault: &TlsFault, text: impl Display) -> Self {
        let (code, word) = match fault {
            TlsFault::WantsCertificate | TlsFault::Refused(_) => (DENIED, "denied"),
            _ => (UNREACHABLE, "unreachable"),
        };
        let hint = match fault {
            TlsFault::Untrusted | TlsFault::NobodyTrusted => {
                "--ca FILE names who may have signed it: the file that its operator gives out."
            }
            TlsFault::WrongName { .. } => "The URL has to name the server as its certificate does.",
            TlsFault::Expired(_) => "Its operator has to renew it.",
            TlsFault::WantsCertificate => "--cert FILE and --key FILE show yours.",
            TlsFault::Refused(_) => "--cert FILE and --key FILE show another one.",
            TlsFault::PlainText | TlsFault::HungUp => {
                "Does it take tcp://, ws:// or http:// there, which are without TLS?"
            }
            TlsFault::Expected => "tls://, wss:// and https:// speak TLS.",
            _ => "",
        };
        let text = harmless::line(&text.to_string());
        Self::new(code, format_args!("{word}: {text}")).hint(hint)
    }

    /// `None`: it ended cleanly.
    fn of(end: &End) -> Option<Self> {
        Some(match end {
            End::Bye(bye) => {
                let code = match bye.code {
                    EndCode::Logout | EndCode::ShuttingDown => return None,
                    EndCode::AuthFailed | EndCode::AuthExpired => DENIED,
                    EndCode::Disconnected => LOST,
                    _ => REFUSED,
                };
                let text = harmless::line(&bye.message);
                let word = harmless::line(bye.code.as_str());
                Self::new(code, format_args!("ended by the server: {text} ({word})"))
                    .hint(&come_back(bye.retry_ms))
            }
            End::Lost(loss) => Self::new(
                LOST,
                format_args!("lost: {}", harmless::line(&loss.to_string())),
            )
            .hint("What was said last may not have arrived. Start again to reconnect."),
        })
    }
}

/// What to say where the server ends a session in good order and not because it was asked to.
fn farewell(end: &End) -> Option<String> {
    match end {
        End::Bye(bye) if bye.code == EndCode::ShuttingDown => Some(format!(
            "The server is stopping. {}",
            come_back(bye.retry_ms)
        )),
        _ => None,
    }
}

fn come_back(retry_ms: Option<u64>) -> String {
    match retry_ms {
        Some(ms) if ms > 0 => format!("Try again in {} s.", ms.div_ceil(1000)),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_made_to_fit() {
        for (name, fit) in [
            ("ada", "ada"),
            ("DOMAIN\\ada lovelace", "DOMAINadalovelace"),
            ("ünsal", "nsal"),
            ("", "guest"),
            ("日本", "guest"),
        ] {
            assert_eq!(fitted(name), fit);
        }
        assert_eq!(fitted(&"x".repeat(99)).len(), 30);
    }
}
