//! `chinwag auth test`: a log-in put to the authenticators of a transport without a server, step by step.
//!
//! They are built as the server builds them and asked as it asks them. What is not there without a server is left out:
//! bans, throttles, session managers, and whether the name is free.

use std::{
    fmt::Write as _,
    fs,
    io::{self, IsTerminal, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use chinwag_core::{
    ChainLink, Judgement, Lifecycle, Witness, ask_chain,
    clock::{SystemWallClock, WallClock},
    config::{Rate, Span},
    plugin::{
        AuthRequest, Certificate, Credentials, Principal, PrincipalLimits, PrincipalName, TlsFacts,
        Verdict,
    },
};
use chinwag_transports::tls::{ClientCert, read_certificate};
use secrecy::SecretString;
use serde_json::{Map, Value, json};

use crate::{
    Plugins,
    cli::{self, Configuration, Failure},
    config::{Loaded, LoadedTransport},
    logging,
    terminal::Silence,
};

/// Denied; as `chat` has it.
const DENIED: u8 = 3;
/// Let in by an authenticator, and refused for the name or since its time is over.
const REFUSED: u8 = 4;
/// An authenticator could not tell.
const UNAVAILABLE: u8 = 5;

/// What the program that asks says of itself where an authenticator wants to know of a connection's encryption.
const CIPHER: (&str, &str) = ("TLS1.3", "TLS_AES_256_GCM_SHA384");

const HELP: &str = "\
The password, or with --token the token, is asked for at a terminal, and else
the first line of standard input. With --cert neither is: the certificate is
all that is presented, beside the user if there is one.

Each authenticator is a line: its number, its name, what it said, how long that
took, and why. A shadow stands below whom it shadows.

Examples:
  chinwag auth test --config chat.toml --transport web --user alice
  chinwag auth test --config chat.toml --transport web --token < token.txt
  chinwag auth test --config chat.toml --transport line --cert alice.pem

Exit codes:
  0   let in
  1   the configuration is wrong, or the test could not be made
  3   denied, or the certificate is not good
  4   refused: nobody can have that name, or its time is over
  5   unavailable: an authenticator could not tell
  64  the command line is wrong
";

/// The command line of `auth`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Put a log-in to the authenticators of a transport, and say what each makes of it
    #[command(after_help = HELP)]
    Test(Arguments),
}

/// The command line of `auth test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The TOML file; without it the built-in one
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The transport whose `auth` is asked
    #[arg(long, short, value_name = "NAME")]
    transport: String,
    /// The user who logs in
    #[arg(long, short, value_name = "NAME", required_unless_present_any = ["token", "cert"])]
    user: Option<String>,
    /// Present the user's name alone, without a password, as guests do
    #[arg(long, requires = "user", conflicts_with_all = ["token", "cert"])]
    no_password: bool,
    /// Present a token in place of user and password
    #[arg(long, conflicts_with_all = ["user", "cert"])]
    token: bool,
    /// Present a client certificate: a PEM file, with what leads to the CA behind it
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// The client's address
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
    /// A header of the client's HTTP request, for authenticators that want to see it
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once(':')
        .ok_or("a header is a name, a colon and a value")?;
    Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
}

/// Runs the command to its end.
pub(crate) fn run(plugins: &Plugins, command: &Command) -> Result<(), Failure> {
    let Command::Test(arguments) = command;
    let configuration = match &arguments.config {
        Some(path) => Configuration::file(path)?,
        None => Configuration::builtin(),
    };
    let draft = configuration.read(plugins)?;
    logging::begin(draft.log());
    let certificate = arguments.cert.as_deref().map(certificate).transpose()?;
    let runtime = cli::runtime(2)?;
    let lifecycle = Lifecycle::new();
    let tested: Result<Report, Failure> = runtime.block_on(async {
        let loaded = draft.build(&lifecycle).await?;
        let transport = transport(&loaded, &arguments.transport)?;
        // Asked for once all else is right.
        let credentials = arguments.credentials()?;
        Ok(test(arguments, &loaded, transport, credentials, certificate).await)
    });
    lifecycle.kill();
    runtime.shutdown_timeout(cli::LAST_WORK);
    let report = tested?;
    let text = if arguments.json {
        report.json().to_string()
    } else {
        report.text()
    };
    // A closed pipe is not ours to mend.
    let _ = writeln!(io::stdout(), "{}", text.trim_end());
    match report.end.code() {
        0 => Ok(()),
        code => Err(Failure {
            message: String::new(),
            code,
        }),
    }
}

fn certificate(path: &Path) -> Result<Certificate, Failure> {
    let unread = |error: &dyn std::fmt::Display| {
        Failure::new(format_args!("--cert {}: {error}", path.display()))
    };
    let pem = fs::read(path).map_err(|error| unread(&format_args!("can't be read: {error}")))?;
    read_certificate(&pem).map_err(|error| unread(&error))
}

fn transport<'a>(loaded: &'a Loaded, name: &str) -> Result<&'a LoadedTransport, Failure> {
    let mut all = loaded.transports.iter();
    all.find(|transport| transport.name == name).ok_or_else(|| {
        let names = loaded.transports.iter().map(|other| other.name.as_str());
        let names = names.collect::<Vec<_>>().join(", ");
        Failure::new(format_args!(
            "no transport is called {name:?}; there are {names}"
        ))
    })
}

impl Arguments {
    /// What is presented. Asks for what is secret in it.
    fn credentials(&self) -> Result<Credentials, Failure> {
        if self.token {
            return Ok(Credentials::token(ask("Token: ")?));
        }
        match &self.user {
            Some(user) if !self.no_password && self.cert.is_none() => {
                let password = ask(&format!("Password for {user}: "))?;
                Ok(Credentials::password(user, password))
            }
            Some(user) => Ok(Credentials::name(user)),
            None => Ok(Credentials::default()),
        }
    }

    /// The same in words.
    fn presents(&self) -> String {
        let user = self.user.as_deref();
        match (self.token, self.cert.is_some()) {
            (true, _) => "a token".into(),
            (_, true) => match user {
                Some(user) => format!("user {user} with a certificate"),
                None => "a certificate".into(),
            },
            _ => format!(
                "user {} with{} password",
                user.unwrap_or_default(),
                if self.no_password { "out a" } else { " a" }
            ),
        }
    }
}

/// Asks at a terminal, without showing what is typed; else takes one line of standard input.
fn ask(question: &str) -> Result<SecretString, Failure> {
    let asked = if io::stdin().is_terminal() {
        Silence::keep().and_then(|terminal| terminal.ask(question))
    } else {
        cli::first_line(io::stdin().lock(), SECRET_BYTES)
    };
    asked.map_err(|error| Failure::new(format_args!("can't read what to present: {error}")))
}

/// More than any frame before a log-in may have.
const SECRET_BYTES: u64 = 16 << 10;

async fn test(
    arguments: &Arguments,
    loaded: &Loaded,
    transport: &LoadedTransport,
    credentials: Credentials,
    certificate: Option<Certificate>,
) -> Report {
    let mut report = Report {
        transport: transport.name.clone(),
        presents: arguments.presents(),
        address: arguments.address,
        certificate: None,
        steps: Vec::new(),
        unasked: Vec::new(),
        end: End::Denied(None),
    };
    let name: Arc<str> = transport.name.as_str().into();
    let mut request = AuthRequest::new(credentials, name, arguments.address);
    let wanted = |name: &str| {
        let mut headers = transport
            .auth
            .iter()
            .flat_map(|link| link.authenticator.headers());
        headers.any(|header| header.eq_ignore_ascii_case(name))
    };
    request.headers = arguments.headers.clone();
    request.headers.retain(|(name, _)| wanted(name));
    match door(transport, certificate.as_ref()) {
        Ok(()) => {}
        Err(why) => {
            report.certificate = Some(why);
            report.unasked = names(&transport.auth);
            return report;
        }
    }
    if transport.tls.is_some() {
        let remote = SocketAddr::new(arguments.address, 0);
        let mut facts = TlsFacts::new(CIPHER.0, CIPHER.1, transport.listener.bind, remote);
        facts.certificate = certificate.map(Arc::new);
        request.tls = Some(Arc::new(facts));
    }
    let mut steps = Steps(Vec::new());
    let asked = ask_chain(&transport.auth, &request, &mut steps).await;
    report.end = match asked {
        Some((_, verdict)) => End::of(verdict, loaded),
        None => End::Denied(None),
    };
    for (link, step) in transport.auth.iter().zip(steps.0) {
        let shadow = match &link.shadow {
            None => None,
            Some(shadow) => {
                let judgement = shadow.judge(&request).await;
                Some((shadow.name.to_string(), judgement))
            }
        };
        report.steps.push(Step {
            authenticator: link.name.to_string(),
            judgement: step,
            shadow,
        });
    }
    let asked = report.steps.len();
    report.unasked = names(transport.auth.get(asked..).unwrap_or_default());
    report
}

fn names(links: &[ChainLink]) -> Vec<String> {
    links.iter().map(|link| link.name.to_string()).collect()
}

/// Whether the transport's handshake would let a client with this certificate come to its log-in.
fn door(transport: &LoadedTransport, certificate: Option<&Certificate>) -> Result<(), String> {
    let asks = transport.tls.as_ref().map(|tls| tls.client_cert());
    let Some(tls) = &transport.tls else {
        return match certificate {
            None => Ok(()),
            Some(_) => Err("the transport speaks no TLS, and so sees no certificate".into()),
        };
    };
    match (certificate, asks) {
        (None, Some(ClientCert::Required)) => {
            Err("the transport lets nobody in without a certificate".into())
        }
        (None, _) => Ok(()),
        (Some(_), None | Some(ClientCert::None)) => {
            Err("the transport does not ask for certificates".into())
        }
        (Some(certificate), _) => tls
            .judge(certificate)
            .map_err(|failure| format!("not good: {}", failure.label())),
    }
}

/// What each authenticator said.
struct Steps(Vec<Judgement>);

impl Witness for Steps {
    fn heard(&mut self, _: &ChainLink, judgement: &Judgement) {
        self.0.push(judgement.clone());
    }
}

/// All that came of it.
struct Report {
    transport: String,
    presents: String,
    address: IpAddr,
    /// Why the certificate, or its lack, ends it before anybody is asked.
    certificate: Option<String>,
    steps: Vec<Step>,
    unasked: Vec<String>,
    end: End,
}

struct Step {
    authenticator: String,
    judgement: Judgement,
    shadow: Option<(String, Judgement)>,
}

/// What a client would hear.
enum End {
    /// Under that name.
    LetIn(String, Box<Principal>),
    /// With what it reads in place of the one text.
    Denied(Option<String>),
    Refused(String),
    Unavailable(Duration),
}

impl End {
    fn of(verdict: Verdict, loaded: &Loaded) -> Self {
        match verdict {
            Verdict::Allow(principal) => {
                let links = loaded.transports.iter().flat_map(|other| &other.auth);
                let guests = links.filter_map(|link| link.authenticator.guest_prefix());
                let name = match loaded.hub.names.shown(&principal.name, guests) {
                    Ok(name) => name.to_string(),
                    Err(refusal) => return Self::Refused(refusal.message),
                };
                let now = SystemWallClock.unix_millis();
                if principal.expires_at.is_some_and(|at| at <= now) {
                    return Self::Refused("what was presented is past its end".into());
                }
                Self::LetIn(name, Box::new(principal))
            }
            Verdict::Deny { public, .. } => Self::Denied(public),
            Verdict::Abstain => Self::Denied(None),
            Verdict::Unavailable { retry } => Self::Unavailable(retry),
        }
    }

    const fn code(&self) -> u8 {
        match self {
            Self::LetIn(..) => 0,
            Self::Denied(_) => DENIED,
            Self::Refused(_) => REFUSED,
            Self::Unavailable(_) => UNAVAILABLE,
        }
    }

    const fn word(&self) -> &'static str {
        match self {
            Self::LetIn(..) => "let in",
            Self::Denied(_) => "denied",
            Self::Refused(_) => "refused",
            Self::Unavailable(_) => "unavailable",
        }
    }
}

/// A verdict in a word, and the rest of it in words.
fn tell(judgement: &Judgement) -> (&'static str, String) {
    let told = match &judgement.verdict {
        Verdict::Allow(principal) => ("allow", told(principal)),
        Verdict::Deny {
            denial,
            reason,
            public,
        } => {
            let mut text = format!("{}: {}", denial.label(), one_line(reason));
            if let Some(public) = public {
                // Writing to a string does not fail.
                let _ = write!(text, " (the client reads {:?})", one_line(public));
            }
            ("deny", text)
        }
        Verdict::Abstain => ("abstain", String::new()),
        Verdict::Unavailable { retry } => ("unavailable", format!("again in {retry:?}")),
    };
    match judgement.mishap {
        None => told,
        Some(mishap) => (told.0, format!("{mishap}; {}", told.1)),
    }
}

/// Someone else's words, which may be anything.
fn one_line(text: &str) -> String {
    text.chars()
        .take(256)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// A principal's name, as its authenticator has it, and its rights.
fn told(principal: &Principal) -> String {
    let rights = rights(principal);
    let gap = if rights.is_empty() { "" } else { "; " };
    format!("as {}{gap}{rights}", one_line(&name(principal)))
}

fn name(principal: &Principal) -> String {
    match &principal.name {
        PrincipalName::Chosen { prefix, name } => format!("{prefix}{name}"),
        PrincipalName::Vouched(name) => name.clone(),
    }
}

/// What a principal has beside its name.
fn rights(principal: &Principal) -> String {
    let mut parts = Vec::new();
    if !principal.roles.is_empty() {
        parts.push(format!("roles: {}", principal.roles.join(", ")));
    }
    if let Some(rooms) = &principal.rooms {
        let rooms: Vec<&str> = rooms.iter().map(|room| room.as_str()).collect();
        parts.push(if rooms.is_empty() {
            "no rooms".into()
        } else {
            format!("rooms: {}", rooms.join(", "))
        });
    }
    if let Some(at) = principal.expires_at {
        let left = at.saturating_sub(SystemWallClock.unix_millis());
        let left = Span(Duration::from_secs(left / 1000));
        parts.push(format!("expires in {left}"));
    }
    for (limit, value) in limits(&principal.limits) {
        parts.push(format!("{limit}: {value}"));
    }
    one_line(&parts.join("; "))
}

/// The limits of its own that a principal has.
fn limits(limits: &PrincipalLimits) -> Vec<(&'static str, String)> {
    let rate = |rate: &Rate| match rate {
        Rate::Unlimited => "unlimited".to_owned(),
        Rate::Limited { rate, per, burst } => format!("{rate} in {per:?}, {burst} at once"),
    };
    [
        (
            "message_bytes",
            limits.message_bytes.map(|size| size.to_string()),
        ),
        ("sends", limits.sends.as_ref().map(rate)),
        ("commands", limits.commands.as_ref().map(rate)),
        (
            "rooms_per_session",
            limits.rooms_per_session.map(|rooms| rooms.to_string()),
        ),
    ]
    .into_iter()
    .filter_map(|(limit, value)| Some((limit, value?)))
    .collect()
}

fn millis(judgement: &Judgement) -> f64 {
    (judgement.took.as_secs_f64() * 1e5).round() / 100.0
}

impl Report {
    fn text(&self) -> String {
        let mut rows: Vec<[String; 5]> = Vec::new();
        if let Some(why) = &self.certificate {
            let row = ["", "certificate", "refused", "", why];
            rows.push(row.map(str::to_owned));
        }
        for (number, step) in (1..).zip(&self.steps) {
            let row = |number: String, name: &str, judgement: &Judgement| {
                let (word, rest) = tell(judgement);
                let took = format!("{:.1} ms", millis(judgement));
                [number, name.to_owned(), word.to_owned(), took, rest]
            };
            rows.push(row(
                number.to_string(),
                &step.authenticator,
                &step.judgement,
            ));
            if let Some((name, judgement)) = &step.shadow {
                let agrees = judgement.agrees_with(&step.judgement);
                let mut row = row(String::new(), name, judgement);
                let outcome = if agrees { "agrees" } else { "differs" };
                let rest = format!("shadow, {outcome}; {}", row[4]);
                row[4] = rest.trim_end_matches("; ").to_owned();
                rows.push(row);
            }
        }
        for name in &self.unasked {
            rows.push(["", name, "not asked", "", ""].map(str::to_owned));
        }
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
        let [first, second, third, fourth] = [0, 1, 2, 3].map(|column| width(column).unwrap_or(0));
        let mut text = format!(
            "transports.{} is asked for {}, from {}\n",
            self.transport, self.presents, self.address
        );
        for [number, name, word, took, rest] in &rows {
            let row = format!(
                "  {number:>first$}  {name:second$}  {word:third$}  {took:>fourth$}  {rest}"
            );
            let _ = writeln!(text, "{}", row.trim_end());
        }
        let word = self.end.word();
        let _ = match &self.end {
            End::LetIn(name, principal) => {
                let rights = rights(principal);
                let gap = if rights.is_empty() { "" } else { "; " };
                writeln!(text, "{word} as {name}{gap}{rights}")
            }
            End::Denied(None) if self.certificate.is_none() && self.is_unknown() => {
                writeln!(text, "{word}: no authenticator knows what was presented")
            }
            End::Denied(None) => writeln!(text, "{word}"),
            End::Denied(Some(public)) => {
                writeln!(text, "{word}; the client reads {:?}", one_line(public))
            }
            End::Refused(why) => writeln!(text, "{word}: {}", one_line(why)),
            End::Unavailable(retry) => writeln!(text, "{word}: try again in {retry:?}"),
        };
        text
    }

    /// Whether everybody abstained.
    fn is_unknown(&self) -> bool {
        let mut steps = self.steps.iter();
        steps.all(|step| matches!(step.judgement.verdict, Verdict::Abstain))
    }

    fn json(&self) -> Value {
        let steps: Vec<Value> = self
            .steps
            .iter()
            .map(|step| {
                let mut object = judged(&step.authenticator, &step.judgement);
                if let Some((name, judgement)) = &step.shadow {
                    let mut shadow = judged(name, judgement);
                    let agrees = judgement.agrees_with(&step.judgement);
                    shadow.insert("agrees".into(), agrees.into());
                    object.insert("shadow".into(), shadow.into());
                }
                object.into()
            })
            .collect();
        let mut report = json!({
            "transport": self.transport,
            "address": self.address,
            "steps": steps,
            "not_asked": self.unasked,
            "outcome": self.end.word(),
        });
        if let Some(why) = &self.certificate {
            report["certificate"] = why.as_str().into();
        }
        match &self.end {
            End::LetIn(name, principal) => {
                report["user"] = name.as_str().into();
                report["principal"] = principal_json(principal).into();
            }
            End::Denied(Some(public)) => report["message"] = public.as_str().into(),
            End::Refused(why) => report["message"] = why.as_str().into(),
            End::Unavailable(retry) => report["retry_ms"] = whole(*retry).into(),
            End::Denied(None) => {}
        }
        report
    }
}

fn whole(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn judged(name: &str, judgement: &Judgement) -> Map<String, Value> {
    let mut object = Map::new();
    let mut put = |key: &str, value: Value| object.insert(key.to_owned(), value);
    put("authenticator", name.into());
    put("verdict", tell(judgement).0.into());
    put("ms", millis(judgement).into());
    match &judgement.verdict {
        Verdict::Allow(principal) => {
            put("principal", principal_json(principal).into());
        }
        Verdict::Deny {
            denial,
            reason,
            public,
        } => {
            put("denial", denial.label().into());
            put("reason", (&**reason).into());
            put("public", public.as_deref().into());
        }
        Verdict::Abstain => {}
        Verdict::Unavailable { retry } => {
            put("retry_ms", whole(*retry).into());
        }
    }
    if let Some(mishap) = judgement.mishap {
        put("mishap", mishap.to_string().into());
    }
    object
}

fn principal_json(principal: &Principal) -> Map<String, Value> {
    let rooms = principal.rooms.as_ref();
    let rooms = rooms.map(|rooms| rooms.iter().map(|room| room.as_str()).collect::<Vec<_>>());
    let mut object = Map::new();
    object.insert("user".into(), name(principal).into());
    object.insert("roles".into(), json!(principal.roles));
    object.insert("rooms".into(), json!(rooms));
    object.insert("expires_at".into(), json!(principal.expires_at));
    let limits = limits(&principal.limits).into_iter();
    let limits: Map<String, Value> = limits
        .map(|(limit, value)| (limit.to_owned(), value.into()))
        .collect();
    object.insert("limits".into(), limits.into());
    object
}
