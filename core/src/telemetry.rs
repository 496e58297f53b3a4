//! Every metric, by name, in one place. Handles are made once at start; what fans out adds to them per batch.
//!
//! Labels come from closed sets: configured transports and authenticators, end codes, error codes, verdicts. No user,
//! room, address or other word of a peer's is ever a label, so the number of series is fixed once the server runs.

#![expect(
    clippy::disallowed_macros,
    reason = "the one place where metrics are named"
)]

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};

use crate::{
    CloseReason, ErrorCode,
    control::Order,
    plugin::{Denial, Verdict},
};

/// The handles of one server.
#[derive(Debug)]
pub struct Telemetry {
    transports: BTreeMap<Box<str>, Arc<TransportMetrics>>,
    authenticators: BTreeMap<Box<str>, AuthenticatorMetrics>,
    /// By the name of who is shadowed.
    shadows: BTreeMap<Box<str>, ShadowMetrics>,
    managers: BTreeMap<Box<str>, ManagerMetrics>,
    errors: [Counter; ErrorCode::ALL.len()],
    pub(crate) reservations: Gauge,
    pub(crate) rooms: Gauge,
    pub(crate) rooms_created: Counter,
    pub(crate) rooms_removed: Counter,
    pub(crate) members: Gauge,
    pub(crate) messages: Counter,
    pub(crate) batch_events: Histogram,
    pub(crate) log_append_seconds: Histogram,
    pub(crate) lane_turn_seconds: Histogram,
}

/// The handles of one transport.
#[derive(Debug)]
pub struct TransportMetrics {
    /// Connections accepted.
    pub accepted: Counter,
    /// Connections open.
    pub open: Gauge,
    /// Bytes read from clients, framing included.
    pub bytes_in: Counter,
    refused: [Counter; RefusedReason::ALL.len()],
    pub(crate) created: Counter,
    pub(crate) live: Gauge,
    ended: [Counter; CloseReason::ALL.len()],
    strangers: [Counter; CloseReason::ALL.len()],
    logins: [Counter; LoginOutcome::ALL.len()],
    pub(crate) reaped: Counter,
    pub(crate) deliveries: Counter,
    pub(crate) bytes_out: Counter,
    pub(crate) queued: Gauge,
    pub(crate) stay_bytes: Gauge,
}

#[derive(Debug)]
struct AuthenticatorMetrics {
    verdicts: [Counter; VerdictLabel::ALL.len()],
    denials: [Counter; Denial::ALL.len()],
    seconds: Histogram,
}

#[derive(Debug)]
struct ShadowMetrics {
    /// By the verdict that stands, then by the shadow's.
    agree: [Counter; VerdictLabel::ALL.len()],
    differ: [[Counter; VerdictLabel::ALL.len()]; VerdictLabel::ALL.len()],
    skipped: Counter,
    seconds: Histogram,
}

/// What came of comparing a shadow's verdict with the one that stands.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Comparison {
    pub(crate) verdict: VerdictLabel,
    pub(crate) shadow: VerdictLabel,
    /// The verdicts are of one kind and, where somebody is let in, for the same user with the same rights.
    pub(crate) agrees: bool,
}

/// What became of a log-in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LoginOutcome {
    /// A session began.
    Session,
    /// An authenticator denied it.
    Denied,
    /// Every authenticator abstained.
    Unknown,
    /// An authenticator, or a session manager, could not tell.
    Unavailable,
    /// It was not judged: too many were denied before, or a ban is on.
    Throttled,
    /// The credentials were right, and something else was not: the name, a session manager's word, a bound.
    Refused,
    /// The client went, or its time was over, before the verdict.
    Abandoned,
}

impl LoginOutcome {
    const ALL: [Self; 7] = [
        Self::Session,
        Self::Denied,
        Self::Unknown,
        Self::Unavailable,
        Self::Throttled,
        Self::Refused,
        Self::Abandoned,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Denied => "denied",
            Self::Unknown => "unknown",
            Self::Unavailable => "unavailable",
            Self::Throttled => "throttled",
            Self::Refused => "refused",
            Self::Abandoned => "abandoned",
        }
    }
}

#[derive(Debug)]
struct ManagerMetrics {
    outcomes: [[Counter; HookOutcome::ALL.len()]; Hook::ALL.len()],
    seconds: [Histogram; Hook::ALL.len()],
    orders: [[Counter; 2]; Order::NAMES.len()],
    ready: Gauge,
}

/// A hook of a session manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Create,
    Joined,
    Left,
    Ended,
}

impl Hook {
    const ALL: [Self; 4] = [Self::Create, Self::Joined, Self::Left, Self::Ended];

    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Joined => "joined",
            Self::Left => "left",
            Self::Ended => "ended",
        }
    }
}

/// What became of calling a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HookOutcome {
    Ok,
    Refused,
    Unavailable,
    /// It panicked.
    Failed,
}

impl HookOutcome {
    const ALL: [Self; 4] = [Self::Ok, Self::Refused, Self::Unavailable, Self::Failed];

    const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
            Self::Failed => "failed",
        }
    }
}

/// What became of asking one authenticator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VerdictLabel {
    Allow,
    Deny,
    Abstain,
    Unavailable,
}

impl VerdictLabel {
    const ALL: [Self; 4] = [Self::Allow, Self::Deny, Self::Abstain, Self::Unavailable];

    pub(crate) const fn of(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Allow(_) => Self::Allow,
            Verdict::Deny { .. } => Self::Deny,
            Verdict::Abstain => Self::Abstain,
            Verdict::Unavailable { .. } => Self::Unavailable,
        }
    }

    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::Abstain => "abstain",
            Self::Unavailable => "unavailable",
        }
    }
}

/// Why a connection or an HTTP request was turned away, or given up, outside of any session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefusedReason {
    /// `max_connections` is reached.
    TooManyConnections,
    /// `max_connections_per_ip` is reached.
    TooManyPerAddress,
    /// `connects_per_ip` is spent.
    ConnectRate,
    /// A PROXY header is missing, malformed or from a peer that is no proxy.
    Proxy,
    /// Nothing came in `first_byte_timeout`.
    FirstByteTimeout,
    /// No whole request head came in `header_timeout`.
    HeaderTimeout,
    /// No whole request body came in `body_timeout`.
    BodyTimeout,
    /// A `Host` that is not served, or not exactly one.
    Host,
    /// An `Origin` that is not allowed.
    Origin,
    /// A request that breaks HTTP, or the rules of its path.
    BadRequest,
    /// No such path or method.
    NotFound,
    /// A head or body over its limit.
    TooLarge,
    /// The server stops.
    Draining,
    /// The process has no descriptor left for it.
    Descriptors,
    /// An HTTP answer was not read in `write_timeout`.
    WriteTimeout,
    /// An order without the token of its session.
    Token,
}

impl RefusedReason {
    const ALL: [Self; 16] = [
        Self::TooManyConnections,
        Self::TooManyPerAddress,
        Self::ConnectRate,
        Self::Proxy,
        Self::FirstByteTimeout,
        Self::HeaderTimeout,
        Self::BodyTimeout,
        Self::Host,
        Self::Origin,
        Self::BadRequest,
        Self::NotFound,
        Self::TooLarge,
        Self::Draining,
        Self::Descriptors,
        Self::WriteTimeout,
        Self::Token,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::TooManyConnections => "too_many_connections",
            Self::TooManyPerAddress => "too_many_per_address",
            Self::ConnectRate => "connect_rate",
            Self::Proxy => "proxy",
            Self::FirstByteTimeout => "first_byte_timeout",
            Self::HeaderTimeout => "header_timeout",
            Self::BodyTimeout => "body_timeout",
            Self::Host => "host",
            Self::Origin => "origin",
            Self::BadRequest => "bad_request",
            Self::NotFound => "not_found",
            Self::TooLarge => "too_large",
            Self::Draining => "draining",
            Self::Descriptors => "descriptors",
            Self::WriteTimeout => "write_timeout",
            Self::Token => "token",
        }
    }
}

/// Why a TLS handshake came to nothing, or a client's certificate is not good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsFailure {
    /// It took longer than `handshake_timeout`.
    Timeout,
    /// No version, cipher suite, group, signature or application protocol in common.
    Incompatible,
    /// No certificate, where one is required.
    NoCertificate,
    /// The certificate, or one that leads to it, is past its end.
    Expired,
    /// The certificate, or one that leads to it, is before its beginning.
    NotYetValid,
    /// No way leads from the certificate to a configured CA: another CA, none, one that may not sign, or a certificate
    /// between them is missing.
    UnknownCa,
    /// A signature is wrong: of a certificate, say by a CA of the same name or because it was altered, or of the
    /// handshake by whoever does not hold the key.
    BadSignature,
    /// A key or a signature of a kind that proves nothing: RSA below 2048 bits, SHA-1, an odd curve.
    Weak,
    /// The certificate is not for clients.
    WrongUsage,
    /// The certificate, or one that leads to it, is revoked.
    Revoked,
    /// The list of revoked certificates is past its next update.
    StaleCrl,
    /// No list tells whether the certificate is revoked, or the list can't be trusted.
    UnknownRevocation,
    /// The certificate can't be read, or breaks a rule of its own.
    BadCertificate,
    /// What came is no TLS, or breaks its rules.
    Malformed,
    /// The peer gave up with an alert, say because it does not trust the server's certificate.
    Alert,
    /// The connection was closed or lost.
    Closed,
    /// Anything else.
    Other,
}

impl TlsFailure {
    const ALL: [Self; 17] = [
        Self::Timeout,
        Self::Incompatible,
        Self::NoCertificate,
        Self::Expired,
        Self::NotYetValid,
        Self::UnknownCa,
        Self::BadSignature,
        Self::Weak,
        Self::WrongUsage,
        Self::Revoked,
        Self::StaleCrl,
        Self::UnknownRevocation,
        Self::BadCertificate,
        Self::Malformed,
        Self::Alert,
        Self::Closed,
        Self::Other,
    ];

    /// The word for it in metrics and logs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Incompatible => "incompatible",
            Self::NoCertificate => "no_certificate",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::UnknownCa => "unknown_ca",
            Self::BadSignature => "bad_signature",
            Self::Weak => "weak",
            Self::WrongUsage => "wrong_usage",
            Self::Revoked => "revoked",
            Self::StaleCrl => "stale_crl",
            Self::UnknownRevocation => "unknown_revocation",
            Self::BadCertificate => "bad_certificate",
            Self::Malformed => "malformed",
            Self::Alert => "alert",
            Self::Closed => "closed",
            Self::Other => "other",
        }
    }
}

/// What of a TLS table has an end in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsExpiry {
    /// The server's certificate, or one that leads to it.
    Certificate,
    /// A CA that clients' certificates are checked against.
    ClientCa,
    /// A list of revoked certificates: its next update is due.
    Crl,
}

impl TlsExpiry {
    const ALL: [Self; 3] = [Self::Certificate, Self::ClientCa, Self::Crl];

    /// The word for it in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::ClientCa => "client_ca",
            Self::Crl => "crl",
        }
    }
}

/// The handles of one TLS table.
#[derive(Debug)]
pub struct TlsMetrics {
    handshakes: [Counter; 2],
    failures: [Counter; TlsFailure::ALL.len()],
    seconds: Histogram,
    reloads: [Counter; 2],
    overdue: Gauge,
    expiry: [Option<Gauge>; TlsExpiry::ALL.len()],
}

impl TlsMetrics {
    /// Registers the series of the table `[tls.<table>]` with `recorder`. Of what ends in time only `expiring` is
    /// there: the gauge of a list that nobody configured would read as one that ended in 1970.
    #[must_use]
    pub fn register(
        recorder: &dyn metrics::Recorder,
        table: &str,
        expiring: &[TlsExpiry],
    ) -> Arc<Self> {
        let name = || table.to_owned();
        metrics::with_local_recorder(recorder, || {
            describe_tls();
            Arc::new(Self {
                handshakes: ["full", "resumed"].map(
                    |kind| counter!("chinwag_tls_handshakes_total", "tls" => name(), "kind" => kind),
                ),
                failures: TlsFailure::ALL.map(|reason| {
                    counter!("chinwag_tls_failures_total", "tls" => name(), "reason" => reason.label())
                }),
                seconds: histogram!("chinwag_tls_handshake_seconds", "tls" => name()),
                reloads: ["ok", "failed"].map(|outcome| {
                    counter!("chinwag_config_reloads_total", "what" => "tls", "name" => name(), "outcome" => outcome)
                }),
                overdue: gauge!("chinwag_config_reload_overdue", "what" => "tls", "name" => name()),
                expiry: TlsExpiry::ALL.map(|what| {
                    expiring.contains(&what).then(|| {
                        gauge!("chinwag_tls_expiry_timestamp_seconds", "tls" => name(), "what" => what.label())
                    })
                }),
            })
        })
    }

    /// Counts a handshake that led to a connection.
    pub fn shook(&self, is_resumed: bool, took: Duration) {
        self.handshakes[usize::from(is_resumed)].increment(1);
        self.seconds.record(took.as_secs_f64());
    }

    /// Counts one that did not, or a certificate that was found bad later.
    pub fn failed(&self, failure: TlsFailure) {
        self.failures[failure as usize].increment(1);
    }

    /// Counts that the table's files were read anew.
    pub fn reloaded(&self, is_ok: bool) {
        self.reloads[usize::from(!is_ok)].increment(1);
    }

    /// Tells whether the table's files are waited for longer than they should take to come.
    pub fn overdue(&self, is_overdue: bool) {
        self.overdue.set(f64::from(u8::from(is_overdue)));
    }

    /// Tells when the first of its kind ends, in seconds since the Unix epoch.
    pub fn expires(&self, what: TlsExpiry, unix_seconds: u64) {
        if let Some(gauge) = &self.expiry[what as usize] {
            // Exact until the year 285 million.
            #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
            gauge.set(unix_seconds as f64);
        }
    }
}

fn describe_tls() {
    describe_counter!(
        "chinwag_tls_handshakes_total",
        "TLS handshakes that led to a connection."
    );
    describe_counter!(
        "chinwag_tls_failures_total",
        "TLS handshakes that failed and certificates refused after one, by reason."
    );
    describe_histogram!(
        "chinwag_tls_handshake_seconds",
        Unit::Seconds,
        "Time that a TLS handshake took, the client's part included."
    );
    describe_counter!(
        "chinwag_config_reloads_total",
        "Files of the configuration read anew."
    );
    describe_gauge!(
        "chinwag_config_reload_overdue",
        "1 while files of the configuration are waited for that do not come, else 0."
    );
    describe_gauge!(
        "chinwag_tls_expiry_timestamp_seconds",
        Unit::Seconds,
        "When the first certificate, CA or list of revoked certificates ends, in Unix time."
    );
}

impl Telemetry {
    /// Registers every series with `recorder`; `transports`, `authenticators` and `managers` (of sessions) are the
    /// configured names; `shadows` pairs an authenticator's name with that of its shadow.
    #[must_use]
    pub fn new(
        recorder: &dyn metrics::Recorder,
        transports: &[&str],
        authenticators: &[&str],
        shadows: &[(&str, &str)],
        managers: &[&str],
    ) -> Arc<Self> {
        metrics::with_local_recorder(recorder, || {
            describe();
            Arc::new(Self {
                transports: transports
                    .iter()
                    .map(|&name| (name.into(), Arc::new(TransportMetrics::new(name))))
                    .collect(),
                authenticators: authenticators
                    .iter()
                    .map(|&name| (name.into(), AuthenticatorMetrics::new(name)))
                    .collect(),
                shadows: shadows
                    .iter()
                    .map(|&(name, shadow)| (name.into(), ShadowMetrics::new(name, shadow)))
                    .collect(),
                managers: managers
                    .iter()
                    .map(|&name| (name.into(), ManagerMetrics::new(name)))
                    .collect(),
                errors: ErrorCode::ALL
                    .map(|code| counter!("chinwag_errors_total", "code" => code.code())),
                reservations: gauge!("chinwag_reservations"),
                rooms: gauge!("chinwag_rooms"),
                rooms_created: counter!("chinwag_rooms_created_total"),
                rooms_removed: counter!("chinwag_rooms_removed_total"),
                members: gauge!("chinwag_members"),
                messages: counter!("chinwag_messages_total"),
                batch_events: histogram!("chinwag_batch_events"),
                log_append_seconds: histogram!("chinwag_log_append_seconds"),
                lane_turn_seconds: histogram!("chinwag_lane_turn_seconds"),
            })
        })
    }

    /// The handles of the transport with that table name.
    ///
    /// # Panics
    /// If the name was not given to [`Telemetry::new`]: that is a bug in the wiring.
    #[must_use]
    pub fn transport(&self, name: &str) -> &Arc<TransportMetrics> {
        self.transports
            .get(name)
            .expect("every configured transport was registered")
    }

    pub(crate) fn refused_command(&self, code: ErrorCode) {
        self.errors[code as usize].increment(1);
    }

    pub(crate) fn verdict(&self, authenticator: &str, verdict: &Verdict, seconds: f64) {
        if let Some(handles) = self.authenticators.get(authenticator) {
            handles.verdicts[VerdictLabel::of(verdict) as usize].increment(1);
            handles.seconds.record(seconds);
            if let Verdict::Deny { denial, .. } = verdict {
                handles.denials[*denial as usize].increment(1);
            }
        }
    }

    /// Counts somebody whom `authenticator` let in and who can't be, as far as that is for the hub to say.
    pub(crate) fn denied(&self, authenticator: &str, denial: Denial) {
        if let Some(handles) = self.authenticators.get(authenticator) {
            handles.denials[denial as usize].increment(1);
        }
    }

    /// Counts what the shadow of `authenticator` said beside it.
    pub(crate) fn shadow(&self, authenticator: &str, comparison: Comparison, seconds: f64) {
        if let Some(handles) = self.shadows.get(authenticator) {
            let (verdict, shadow) = (comparison.verdict as usize, comparison.shadow as usize);
            if comparison.agrees {
                handles.agree[verdict].increment(1);
            } else {
                handles.differ[verdict][shadow].increment(1);
            }
            handles.seconds.record(seconds);
        }
    }

    /// Counts a log-in that the shadow of `authenticator` did not see: it was busy.
    pub(crate) fn shadow_skipped(&self, authenticator: &str) {
        if let Some(handles) = self.shadows.get(authenticator) {
            handles.skipped.increment(1);
        }
    }
}

impl Telemetry {
    pub(crate) fn hook(&self, manager: &str, hook: Hook, outcome: HookOutcome, took: Duration) {
        if let Some(handles) = self.managers.get(manager) {
            handles.outcomes[hook as usize][outcome as usize].increment(1);
            handles.seconds[hook as usize].record(took.as_secs_f64());
        }
    }

    /// Counts an order from outside, by its name.
    pub(crate) fn obeyed(&self, manager: &str, order: &str, is_ok: bool) {
        let index = Order::NAMES.iter().position(|name| *name == order);
        if let (Some(handles), Some(index)) = (self.managers.get(manager), index) {
            handles.orders[index][usize::from(!is_ok)].increment(1);
        }
    }

    /// Tells whether the session manager with that table name could do its work now.
    pub fn manager_is_ready(&self, manager: &str, is_ready: bool) {
        if let Some(handles) = self.managers.get(manager) {
            handles.ready.set(if is_ready { 1.0 } else { 0.0 });
        }
    }
}

/// Where the series of a plugin go. The default leads nowhere.
#[derive(Clone)]
pub struct Meter(Arc<dyn metrics::Recorder + Send + Sync>);

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter").finish_non_exhaustive()
    }
}

impl Default for Meter {
    fn default() -> Self {
        Self::new(metrics::NoopRecorder)
    }
}

impl Meter {
    /// A meter that registers with `recorder`.
    pub fn new(recorder: impl metrics::Recorder + Send + Sync + 'static) -> Self {
        Self(Arc::new(recorder))
    }

    /// The recorder itself.
    #[must_use]
    pub fn recorder(&self) -> &(dyn metrics::Recorder + Send + Sync) {
        &*self.0
    }
}

/// What became of one call to somebody outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallOutcome {
    /// An answer as the contract has it, whatever it says.
    Ok,
    /// The endpoint can't be reached, or the program not be started.
    Unreachable,
    /// No answer in time.
    Late,
    /// The connection failed, or the program ended.
    Broken,
    /// An answer that is none of the contract.
    Senseless,
    /// Not called at all: too many calls were under way.
    Busy,
    /// Not called at all: all that could be asked rest after a failure.
    Resting,
}

impl CallOutcome {
    const ALL: [Self; 7] = [
        Self::Ok,
        Self::Unreachable,
        Self::Late,
        Self::Broken,
        Self::Senseless,
        Self::Busy,
        Self::Resting,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unreachable => "unreachable",
            Self::Late => "late",
            Self::Broken => "broken",
            Self::Senseless => "senseless",
            Self::Busy => "busy",
            Self::Resting => "resting",
        }
    }
}

/// The handles of a plugin that asks endpoints or programs.
#[derive(Debug)]
pub struct CalloutMetrics {
    calls: [Counter; CallOutcome::ALL.len()],
    seconds: Histogram,
    /// One for each endpoint.
    healthy: Vec<Gauge>,
    /// Started and failed, of programs.
    programs: Option<[Counter; 2]>,
}

impl CalloutMetrics {
    /// The series of the table at `path` (`authenticators.NAME`), which asks these endpoints. They begin healthy.
    #[must_use]
    pub fn of_endpoints(meter: &Meter, path: &str, endpoints: &[String]) -> Arc<Self> {
        metrics::with_local_recorder(meter.recorder(), || {
            describe_gauge!(
                "chinwag_callout_endpoint_healthy",
                "Whether an endpoint is asked: 0 while it rests after a failure."
            );
            let healthy = endpoints.iter().map(|endpoint| {
                let gauge = gauge!("chinwag_callout_endpoint_healthy", "table" => path.to_owned(), "endpoint" => endpoint.clone());
                gauge.set(1.0);
                gauge
            });
            Self::register(path, healthy.collect(), None)
        })
    }

    /// The series of the table at `path`, which asks programs that it starts.
    #[must_use]
    pub fn of_programs(meter: &Meter, path: &str) -> Arc<Self> {
        metrics::with_local_recorder(meter.recorder(), || {
            describe_counter!(
                "chinwag_callout_programs_started_total",
                "Programs started to be asked."
            );
            describe_counter!(
                "chinwag_callout_programs_failed_total",
                "Programs that could not be started, ended by themselves, or were ended for what they did."
            );
            let programs = [
                counter!("chinwag_callout_programs_started_total", "table" => path.to_owned()),
                counter!("chinwag_callout_programs_failed_total", "table" => path.to_owned()),
            ];
            Self::register(path, Vec::new(), Some(programs))
        })
    }

    fn register(path: &str, healthy: Vec<Gauge>, programs: Option<[Counter; 2]>) -> Arc<Self> {
        describe_counter!(
            "chinwag_callout_calls_total",
            "Calls to endpoints and programs, by what became of them."
        );
        describe_histogram!(
            "chinwag_callout_seconds",
            Unit::Seconds,
            "Time from a call to its answer, or to its failure."
        );
        Arc::new(Self {
            calls: CallOutcome::ALL.map(|outcome| {
                counter!("chinwag_callout_calls_total", "table" => path.to_owned(), "outcome" => outcome.label())
            }),
            seconds: histogram!("chinwag_callout_seconds", "table" => path.to_owned()),
            healthy,
            programs,
        })
    }

    /// Counts a call that was made.
    pub fn called(&self, outcome: CallOutcome, took: Duration) {
        self.calls[outcome as usize].increment(1);
        self.seconds.record(took.as_secs_f64());
    }

    /// Counts one that was not.
    pub fn turned_away(&self, outcome: CallOutcome) {
        self.calls[outcome as usize].increment(1);
    }

    /// Tells whether the endpoint of that index is asked.
    pub fn healthy(&self, endpoint: usize, is_healthy: bool) {
        if let Some(gauge) = self.healthy.get(endpoint) {
            gauge.set(if is_healthy { 1.0 } else { 0.0 });
        }
    }

    /// Counts a program that was started.
    pub fn started(&self) {
        if let Some([started, _]) = &self.programs {
            started.increment(1);
        }
    }

    /// Counts a program that failed, or could not be started.
    pub fn failed(&self) {
        if let Some([_, failed]) = &self.programs {
            failed.increment(1);
        }
    }
}

/// What became of a notice to a session manager outside of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoticeOutcome {
    /// It was answered.
    Delivered,
    /// It was not, and is tried again.
    Retried,
    /// It was given up: the bound on tries, time or number is reached, or the server stops.
    Undelivered,
}

impl NoticeOutcome {
    const ALL: [Self; 3] = [Self::Delivered, Self::Retried, Self::Undelivered];

    const fn label(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retried => "retried",
            Self::Undelivered => "undelivered",
        }
    }
}

/// The handles of a session manager that has notices to deliver.
#[derive(Debug)]
pub struct NoticeMetrics {
    outcomes: [Counter; NoticeOutcome::ALL.len()],
    waiting: Gauge,
}

impl NoticeMetrics {
    /// The series of the table `session_managers.<manager>`.
    #[must_use]
    pub fn register(meter: &Meter, manager: &str) -> Self {
        metrics::with_local_recorder(meter.recorder(), || {
            describe_counter!(
                "chinwag_session_manager_notices_total",
                "Ends of sessions and stays, by what became of telling them."
            );
            describe_gauge!(
                "chinwag_session_manager_notices_waiting",
                "Ends of sessions and stays that are still to be told."
            );
            Self {
                outcomes: NoticeOutcome::ALL.map(|outcome| {
                    counter!("chinwag_session_manager_notices_total", "session_manager" => manager.to_owned(), "outcome" => outcome.label())
                }),
                waiting: gauge!("chinwag_session_manager_notices_waiting", "session_manager" => manager.to_owned()),
            }
        })
    }

    /// Counts so many.
    pub fn count(&self, outcome: NoticeOutcome, many: u64) {
        self.outcomes[outcome as usize].increment(many);
    }

    /// Tells how many wait.
    pub fn waiting(&self, many: usize) {
        // Exact: their number is bounded far below 2^53.
        #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
        self.waiting.set(many as f64);
    }
}

impl TransportMetrics {
    fn new(transport: &str) -> Self {
        let name = || transport.to_owned();
        Self {
            accepted: counter!("chinwag_connections_total", "transport" => name()),
            open: gauge!("chinwag_connections", "transport" => name()),
            bytes_in: counter!("chinwag_received_bytes_total", "transport" => name()),
            refused: RefusedReason::ALL.map(
                |reason| counter!("chinwag_refused_total", "transport" => name(), "reason" => reason.label()),
            ),
            created: counter!("chinwag_sessions_created_total", "transport" => name()),
            live: gauge!("chinwag_sessions", "transport" => name()),
            ended: CloseReason::ALL.map(
                |reason| counter!("chinwag_sessions_ended_total", "transport" => name(), "reason" => reason.code()),
            ),
            strangers: CloseReason::ALL.map(
                |reason| counter!("chinwag_strangers_ended_total", "transport" => name(), "reason" => reason.code()),
            ),
            logins: LoginOutcome::ALL.map(
                |outcome| counter!("chinwag_logins_total", "transport" => name(), "outcome" => outcome.label()),
            ),
            reaped: counter!("chinwag_reaped_total", "transport" => name()),
            deliveries: counter!("chinwag_deliveries_total", "transport" => name()),
            bytes_out: counter!("chinwag_delivered_bytes_total", "transport" => name()),
            queued: gauge!("chinwag_queued_bytes", "transport" => name()),
            stay_bytes: gauge!("chinwag_stay_bytes", "transport" => name()),
        }
    }

    /// Counts a connection or request that was turned away before it reached any session.
    pub fn refused(&self, reason: RefusedReason) {
        self.refused[reason as usize].increment(1);
    }

    /// Counts the end of a connection that never had a session.
    pub(crate) fn stranger_ended(&self, reason: CloseReason) {
        self.strangers[reason as usize].increment(1);
    }

    /// Counts a log-in by what became of it.
    pub(crate) fn login(&self, outcome: LoginOutcome) {
        self.logins[outcome as usize].increment(1);
    }

    pub(crate) fn ended(&self, reason: CloseReason) {
        self.ended[reason as usize].increment(1);
        self.live.decrement(1);
    }
}

impl AuthenticatorMetrics {
    fn new(authenticator: &str) -> Self {
        let name = || authenticator.to_owned();
        Self {
            verdicts: VerdictLabel::ALL.map(|verdict| {
                counter!("chinwag_auth_verdicts_total", "authenticator" => name(), "verdict" => verdict.label())
            }),
            denials: Denial::ALL.map(|denial| {
                counter!("chinwag_auth_denials_total", "authenticator" => name(), "reason" => denial.label())
            }),
            seconds: histogram!("chinwag_auth_seconds", "authenticator" => name()),
        }
    }
}

impl ShadowMetrics {
    fn new(authenticator: &str, shadow: &str) -> Self {
        let names = || (authenticator.to_owned(), shadow.to_owned());
        let compared = |verdict: VerdictLabel, other: VerdictLabel, outcome: &'static str| {
            let (name, shadow) = names();
            counter!(
                "chinwag_shadow_verdicts_total", "authenticator" => name, "shadow" => shadow, "outcome" => outcome,
                "verdict" => verdict.label(), "shadow_verdict" => other.label()
            )
        };
        let all = VerdictLabel::ALL;
        let (name, shadow) = names();
        Self {
            agree: all.map(|verdict| compared(verdict, verdict, "agree")),
            differ: all.map(|verdict| {
                all.map(|other| {
                    // Verdicts of one kind differ only in whom they let in.
                    if verdict == other && verdict != VerdictLabel::Allow {
                        Counter::noop()
                    } else {
                        compared(verdict, other, "differ")
                    }
                })
            }),
            skipped: counter!(
                "chinwag_shadow_skipped_total", "authenticator" => name.clone(), "shadow" => shadow.clone()
            ),
            seconds: histogram!("chinwag_shadow_seconds", "authenticator" => name, "shadow" => shadow),
        }
    }
}

impl ManagerMetrics {
    fn new(manager: &str) -> Self {
        let name = || manager.to_owned();
        Self {
            outcomes: Hook::ALL.map(|hook| {
                HookOutcome::ALL.map(|outcome| {
                    counter!("chinwag_session_manager_calls_total", "session_manager" => name(), "hook" => hook.label(), "outcome" => outcome.label())
                })
            }),
            seconds: Hook::ALL.map(|hook| {
                histogram!("chinwag_session_manager_seconds", "session_manager" => name(), "hook" => hook.label())
            }),
            orders: Order::NAMES.map(|order| {
                ["ok", "refused"].map(|outcome| {
                    counter!("chinwag_session_manager_orders_total", "session_manager" => name(), "order" => order, "outcome" => outcome)
                })
            }),
            ready: gauge!("chinwag_session_manager_ready", "session_manager" => name()),
        }
    }
}

fn describe() {
    describe_counter!(
        "chinwag_session_manager_calls_total",
        "Calls of session managers' hooks."
    );
    describe_histogram!(
        "chinwag_session_manager_seconds",
        Unit::Seconds,
        "Time that a session manager's hook took."
    );
    describe_counter!(
        "chinwag_session_manager_orders_total",
        "Orders that session managers outside gave to live sessions."
    );
    describe_gauge!(
        "chinwag_session_manager_ready",
        "Whether the session manager could do its work when it was last asked to."
    );
    describe_counter!("chinwag_connections_total", "Connections accepted.");
    describe_gauge!("chinwag_connections", "Connections open.");
    describe_counter!(
        "chinwag_received_bytes_total",
        Unit::Bytes,
        "Bytes read from clients."
    );
    describe_counter!(
        "chinwag_refused_total",
        "Connections and requests turned away before any session."
    );
    describe_counter!("chinwag_sessions_created_total", "Sessions begun.");
    describe_gauge!("chinwag_sessions", "Sessions live: begun less ended.");
    describe_counter!(
        "chinwag_sessions_ended_total",
        "Sessions ended, by end code."
    );
    describe_counter!(
        "chinwag_strangers_ended_total",
        "Connections ended before a log-in, by end code."
    );
    describe_counter!(
        "chinwag_reaped_total",
        "Sessions and log-ins ended for silence."
    );
    describe_counter!("chinwag_deliveries_total", "Events handed to members.");
    describe_counter!(
        "chinwag_delivered_bytes_total",
        Unit::Bytes,
        "Bytes of events handed to members."
    );
    describe_gauge!(
        "chinwag_queued_bytes",
        Unit::Bytes,
        "Bytes queued for clients that did not take them yet."
    );
    describe_gauge!(
        "chinwag_stay_bytes",
        Unit::Bytes,
        "Bytes held for stays in rooms: their own, what session managers attached, tasks, ends that are to be told."
    );
    describe_counter!("chinwag_errors_total", "Commands refused, by error code.");
    describe_gauge!(
        "chinwag_reservations",
        "Names reserved by log-ins or held by sessions."
    );
    describe_gauge!("chinwag_rooms", "Rooms, empty ones included.");
    describe_counter!("chinwag_rooms_created_total", "Rooms brought into being.");
    describe_counter!("chinwag_rooms_removed_total", "Rooms given up.");
    describe_gauge!(
        "chinwag_members",
        "Memberships: a session in three rooms counts three times."
    );
    describe_counter!("chinwag_messages_total", "Messages accepted.");
    describe_histogram!("chinwag_batch_events", "Events laid out in one batch.");
    describe_histogram!(
        "chinwag_log_append_seconds",
        Unit::Seconds,
        "From submitting a message to its place."
    );
    describe_histogram!(
        "chinwag_lane_turn_seconds",
        Unit::Seconds,
        "One turn of a lane."
    );
    describe_counter!("chinwag_logins_total", "Log-ins, by what became of them.");
    describe_counter!("chinwag_auth_verdicts_total", "Verdicts of authenticators.");
    describe_counter!(
        "chinwag_auth_denials_total",
        "Denials of authenticators, by reason."
    );
    describe_counter!(
        "chinwag_shadow_verdicts_total",
        "Verdicts of shadows beside those that stand; they agree where both let in the same user with the same rights."
    );
    describe_counter!(
        "chinwag_shadow_skipped_total",
        "Log-ins that a shadow did not see, since it was busy with others."
    );
    describe_histogram!(
        "chinwag_shadow_seconds",
        Unit::Seconds,
        "Time that a shadow took."
    );
    describe_histogram!(
        "chinwag_auth_seconds",
        Unit::Seconds,
        "Time that an authenticator took."
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_stand_at_their_own_index() {
        for (index, code) in ErrorCode::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, index);
        }
        for (index, reason) in CloseReason::ALL.into_iter().enumerate() {
            assert!(CloseReason::ALL.iter().position(|&other| other == reason) == Some(index));
            assert_eq!(reason as usize, index, "{reason:?}");
        }
        for (index, reason) in RefusedReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
        for (index, reason) in TlsFailure::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
        for (index, denial) in Denial::ALL.into_iter().enumerate() {
            assert_eq!(denial as usize, index);
        }
        for (index, outcome) in LoginOutcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index);
        }
        for (index, what) in TlsExpiry::ALL.into_iter().enumerate() {
            assert_eq!(what as usize, index);
        }
        for (index, outcome) in CallOutcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index);
        }
        for (index, outcome) in NoticeOutcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index);
        }
    }
}
