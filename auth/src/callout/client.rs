//! Asks one of several HTTP endpoints, whichever is well.
//!
//! - At most so many calls are in flight and so many wait, in turns by address; what comes beyond
//!   that is turned away at once.
//! - A call has a limit, reaching an endpoint a shorter one, and all tries together that of the
//!   table. A call that fails goes on to the next endpoint while there is time.
//! - One that is dead has one call wait for its limit to be reached, however many come at once.
//! - Only a complete, well-formed answer with status 200 counts. Redirects are not followed and
//!   proxies of the environment not used: the request carries credentials, and goes where the
//!   configuration says.

use std::{
    error::Error,
    fmt, fs,
    future::Future,
    net::IpAddr,
    path::PathBuf,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
#[cfg(feature = "http")]
use chinwag_core::config::Span;
use chinwag_core::{
    CallOutcome, CalloutMetrics, Lifecycle,
    clock::{self, Instant},
    config::Size,
    plugin::{BuildError, Meter},
};
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, USER_AGENT},
};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper_util::{
    client::legacy::{
        Client as Pool,
        connect::{CaptureConnection, capture_connection},
    },
    rt::TokioTimer,
};
use parking_lot::RwLock;
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    sync::Notify,
    task::spawn_blocking,
    time::{timeout, timeout_at},
};
use tokio_rustls::TlsConnector;
use tower_service::Service as _;
use tracing::{debug, info, warn};

#[cfg(feature = "http")]
use super::{Asker, call_timeout};
use super::{
    Doubt, NoAnswer, RETRY,
    connect::{Connector, Reach, is_awaited},
    health::{Fault, Health, Trial, Turn},
    one_line,
    places::{Place, Places},
    spread,
    tls::TlsFiles,
};
use crate::{
    fair::Party,
    watch::{Unusable, Watch, follow},
};

/// The most endpoints.
const ENDPOINTS: usize = 16;
/// The most calls in flight, and the most that wait.
pub(crate) const MAX_CALLS: usize = 10_000;
/// How long a connection without a call is kept, and how many are.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const KEPT_ALIVE: usize = 16;
/// The largest head of an answer.
const HEAD_BYTES: usize = 16 << 10;
/// The largest answer to those whose table has [`Keys`].
#[cfg(feature = "http")]
pub(crate) const ANSWER_BYTES: usize = 64 << 10;

/// Whom to ask and how.
pub(crate) struct Settings {
    /// The path of the table, `authenticators.NAME`, for logs and metrics.
    pub(crate) table: String,
    pub(crate) meter: Meter,
    /// From [`endpoints`].
    pub(crate) endpoints: Vec<Uri>,
    pub(crate) tls: TlsFiles,
    pub(crate) bearer: Option<Bearer>,
    pub(crate) reach: Reach,
    /// For reaching an endpoint, TLS included.
    pub(crate) connect_timeout: Duration,
    /// For one try, reaching the endpoint included.
    pub(crate) call_timeout: Duration,
    /// For all tries, waiting for a turn included.
    pub(crate) timeout: Duration,
    /// The most calls in flight.
    pub(crate) calls: usize,
    /// The most that wait for one to end.
    pub(crate) queue: usize,
    /// The largest answer.
    pub(crate) answer_bytes: usize,
}

/// What endpoints know this server by.
#[derive(Debug, Clone)]
#[cfg_attr(
    not(feature = "http"),
    expect(
        dead_code,
        reason = "a key set is public: no other kind has to say who asks"
    )
)]
pub(crate) enum Bearer {
    Token(SecretString),
    File(PathBuf),
}

/// One question, the same for every endpoint.
pub(crate) struct Question {
    /// Whose turn it takes.
    pub(crate) party: Party,
    pub(crate) method: Method,
    /// JSON, or empty.
    pub(crate) body: Bytes,
}

/// The keys of a table that say which endpoints are asked, and how.
#[cfg(feature = "http")]
pub(crate) struct Keys {
    pub(crate) endpoints: Vec<String>,
    pub(crate) bearer: Option<SecretString>,
    pub(crate) bearer_file: Option<PathBuf>,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) connect_timeout: Span,
    pub(crate) call_timeout: Option<Span>,
    pub(crate) calls: usize,
    pub(crate) queue: usize,
    pub(crate) insecure: bool,
}

#[cfg(feature = "http")]
pub(crate) const fn default_connect_timeout() -> Span {
    Span::millis(500)
}

#[cfg(feature = "http")]
pub(crate) const fn default_calls() -> usize {
    64
}

#[cfg(feature = "http")]
impl Keys {
    /// What they come to for `asker`.
    ///
    /// # Errors
    /// Keys that exclude each other, one without the other of a pair, what is no endpoint, and a
    /// limit that is too long.
    pub(crate) fn settings(self, asker: Asker<'_>, reach: Reach) -> Result<Settings, BuildError> {
        let base = |path: PathBuf| asker.base.join(path);
        let bearer = match (self.bearer, self.bearer_file) {
            (Some(_), Some(_)) => {
                return Err(BuildError::key(
                    "bearer_file",
                    "there is `bearer` and `bearer_file`: leave one out",
                ));
            }
            (Some(token), None) => Some(Bearer::Token(token)),
            (None, file) => file.map(base).map(Bearer::File),
        };
        let identity = match (self.cert, self.key) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some((base(cert), base(key))),
            (cert, _) => {
                return Err(BuildError::key(
                    if cert.is_some() { "cert" } else { "key" },
                    "`cert` and `key` go together",
                ));
            }
        };
        let ca = self.ca.map(base);
        Ok(Settings {
            endpoints: endpoints("endpoints", &self.endpoints, self.insecure)?,
            tls: TlsFiles { ca, identity },
            bearer,
            reach,
            connect_timeout: self.connect_timeout.0,
            call_timeout: call_timeout(self.call_timeout, asker.timeout)?,
            calls: self.calls,
            queue: self.queue,
            answer_bytes: ANSWER_BYTES,
            table: asker.table,
            meter: asker.meter.clone(),
            timeout: asker.timeout,
        })
    }
}

/// Reads a list of endpoints; `key` is blamed.
///
/// # Errors
/// What is no URL, and plain HTTP to another machine unless `insecure`: credentials and keys would
/// go over the wire for all to read or change.
pub(crate) fn endpoints(
    key: &'static str,
    urls: &[String],
    insecure: bool,
) -> Result<Vec<Uri>, BuildError> {
    if urls.is_empty() || urls.len() > ENDPOINTS {
        return Err(BuildError::key(
            key,
            format!("`{key}` names 1 to {ENDPOINTS} URLs"),
        ));
    }
    urls.iter()
        .map(|url| endpoint(url, insecure).map_err(|why| BuildError::key(key, why)))
        .collect()
}

fn endpoint(url: &str, insecure: bool) -> Result<Uri, String> {
    // The URL itself is not repeated where it may hold a password.
    let wrong = || "expected a URL like \"https://auth.internal/v1/login\"".to_owned();
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(wrong());
    };
    if authority.as_str().contains('@') || url.contains('#') {
        return Err("a URL here has neither user nor fragment; `bearer` says who asks".into());
    }
    match scheme {
        "https" => Ok(uri),
        "http" if insecure || is_loopback(uri.host().unwrap_or_default()) => Ok(uri),
        "http" => Err(format!(
            "{} would be asked in plain text over the network: use https, or set `insecure = true`",
            authority.as_str()
        )),
        _ => Err(wrong()),
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The endpoints and the way to them.
pub(crate) struct Client {
    settings: Settings,
    endpoints: Arc<[Endpoint]>,
    /// Whose turn it is.
    next: AtomicUsize,
    /// An endpoint has been reached, or not.
    news: Arc<Notify>,
    metrics: Arc<CalloutMetrics>,
    /// Of calls in flight.
    places: Arc<Places>,
    lifecycle: Lifecycle,
    link: RwLock<Arc<Link>>,
}

pub(super) struct Endpoint {
    pub(super) uri: Uri,
    pub(super) health: Arc<Health>,
}

impl fmt::Display for Endpoint {
    /// Without the query, which may hold a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.uri.scheme_str().unwrap_or_default();
        let authority = self.uri.authority().map_or("", |it| it.as_str());
        write!(f, "{scheme}://{authority}{}", self.uri.path())
    }
}

/// A request, which whoever it had a connection to may have got: when this is dropped, also in the
/// middle of it all, there is doubt then. As long as somebody is only reached for, there is none.
struct Sent<'a> {
    connection: Option<CaptureConnection>,
    doubt: &'a Doubt,
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        let connection = self.connection.as_ref();
        if connection.is_some_and(|it| it.connection_metadata().is_some()) {
            self.doubt.raise();
        }
    }
}

/// What is made from files and may change with them.
struct Link {
    pool: Pool<Connector, Full<Bytes>>,
    connector: Connector,
    authorization: Option<HeaderValue>,
}

/// What is read from files.
struct Material {
    tls: Option<Arc<rustls::ClientConfig>>,
    authorization: Option<HeaderValue>,
}

/// Why an endpoint gave no answer.
enum Failure {
    /// Another call reaches for it, and has not found out yet whether it is there.
    Awaited,
    /// By this. As long as that is kept, other calls wait to hear of it.
    Unreachable(Box<dyn Error + Send + Sync>),
    TimedOut,
    /// There was less time left than a call may take, and it was not enough.
    CutShort,
    Broken(String),
    Status(StatusCode),
    NoJson,
    /// Than this.
    TooLarge(Size),
    Malformed(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Awaited => f.write_str("another call reaches for it"),
            Self::Unreachable(error) => {
                write!(f, "it can't be reached: {}", with_causes(&**error))
            }
            Self::TimedOut => f.write_str("it did not answer in time"),
            Self::CutShort => f.write_str("no time was left for it"),
            Self::Broken(why) => write!(f, "the connection failed: {why}"),
            Self::Status(status) => write!(f, "it answered with status {}", status.as_u16()),
            Self::NoJson => f.write_str("its answer is not of type application/json"),
            Self::TooLarge(most) => write!(f, "its answer is larger than {most}"),
            Self::Malformed(why) => write!(f, "its answer makes no sense: {why}"),
        }
    }
}

impl Failure {
    fn outcome(&self) -> CallOutcome {
        match self {
            Self::Awaited => CallOutcome::Resting,
            Self::Unreachable(_) => CallOutcome::Unreachable,
            Self::TimedOut | Self::CutShort => CallOutcome::Late,
            Self::Broken(_) => CallOutcome::Broken,
            Self::Status(_) | Self::NoJson | Self::TooLarge(_) | Self::Malformed(_) => {
                CallOutcome::Senseless
            }
        }
    }

    fn fault(&self) -> Option<Fault> {
        match self {
            Self::Unreachable(_) => Some(Fault::Unreachable),
            Self::TimedOut | Self::Broken(_) => Some(Fault::Sick),
            Self::Status(
                StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT,
            ) => Some(Fault::Sick),
            Self::Status(_) | Self::NoJson | Self::TooLarge(_) | Self::Malformed(_) => {
                Some(Fault::Odd)
            }
            Self::Awaited | Self::CutShort => None,
        }
    }
}

impl Client {
    /// Reads the files that `settings` names and follows them from then on. Reaches for nobody yet.
    ///
    /// # Errors
    /// Limits that can't be, and files that can't be used.
    pub(crate) async fn start(
        settings: Settings,
        lifecycle: &Lifecycle,
    ) -> Result<Arc<Self>, BuildError> {
        settings.check()?;
        let paths = settings.paths();
        let watch_and_read = spawn_blocking(move || {
            let watch = Watch::new(settings.paths());
            let material = settings.read();
            (settings, watch, material)
        });
        let (settings, watch, material) = watch_and_read
            .await
            .map_err(|error| BuildError::new(format!("reading its files failed: {error}")))?;
        let material = material.map_err(Unusable::into_fault)?;
        let places = Places::new(settings.calls, settings.queue);
        let news = Arc::default();
        let endpoints = settings.endpoints.iter().map(|uri| Endpoint {
            uri: uri.clone(),
            health: Health::new(&news),
        });
        let endpoints: Arc<[_]> = endpoints.collect();
        let executor = OnLifecycle::new(lifecycle, &places);
        let link = settings.link(material, &endpoints, executor);
        let shown: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
        let client = Arc::new(Self {
            metrics: CalloutMetrics::of_endpoints(&settings.meter, &settings.table, &shown),
            endpoints,
            next: AtomicUsize::new(0),
            news,
            places,
            lifecycle: lifecycle.clone(),
            link: RwLock::new(Arc::new(link)),
            settings,
        });
        if !paths.is_empty() {
            follow(lifecycle, &client, watch, Self::read, Self::take);
        }
        Ok(client)
    }

    fn read(&self) -> Result<Material, Unusable<BuildError>> {
        self.settings.read()
    }

    fn take(&self, read: Result<Material, Unusable<BuildError>>) {
        let table = &self.settings.table;
        match read {
            Ok(material) => {
                let executor = OnLifecycle::new(&self.lifecycle, &self.places);
                let link = self.settings.link(material, &self.endpoints, executor);
                *self.link.write() = Arc::new(link);
                info!(table, "Certificates and keys for calls read anew.");
            }
            Err(error) => warn!(
                table, %error,
                "Changed certificates or keys can't be used; those read before stay."
            ),
        }
    }

    /// Asks the endpoints in turn until one gives what `read` can make sense of. `doubt` is there
    /// when one of them may have got the question and gave no answer.
    pub(crate) async fn ask<T>(
        self: &Arc<Self>,
        question: &Question,
        read: impl Fn(&[u8]) -> Result<T, String>,
        doubt: &Doubt,
    ) -> Result<T, NoAnswer> {
        let deadline = clock::now() + self.settings.timeout;
        let _place = self.place(question.party, deadline).await?;
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let count = self.endpoints.len();
        let mut tried = vec![false; count];
        let mut soonest: Option<Duration> = None;
        // Around again as long as that may help: a resting endpoint is passed over for the healthy
        // ones, and is the last resort when they fail as well; of one that another call reaches for,
        // there is to be news.
        loop {
            let mut news = pin!(self.news.notified());
            news.as_mut().enable();
            let (mut was_asked, mut is_news_due) = (false, false);
            for turn in 0..count {
                let now = clock::now();
                let index = first.wrapping_add(turn) % count;
                if tried[index] || now >= deadline {
                    continue;
                }
                let others = (0..count).any(|other| {
                    other != index && !tried[other] && self.endpoints[other].health.is_healthy()
                });
                let trial = match self.endpoints[index].health.turn(now, others) {
                    Turn::Healthy => None,
                    Turn::Trial(trial) => Some(trial),
                    Turn::Probe(trial) => {
                        self.pass_over();
                        self.probe(index, trial);
                        continue;
                    }
                    Turn::Resting(rest) => {
                        self.pass_over();
                        soonest = Some(soonest.map_or(rest, |soonest| soonest.min(rest)));
                        continue;
                    }
                };
                let call = self.call(index, trial, question, &read, doubt, deadline);
                match call.await {
                    Ok(answer) => return Ok(answer),
                    Err(Failure::Awaited) => is_news_due = true,
                    Err(_counted) => (tried[index], was_asked) = (true, true),
                }
                self.pass_over();
            }
            if !was_asked && (!is_news_due || timeout_at(deadline, news).await.is_err()) {
                break;
            }
        }
        if !tried.contains(&true) {
            self.metrics.turned_away(CallOutcome::Resting);
        }
        Err(NoAnswer {
            retry: spread(soonest.unwrap_or(RETRY).max(RETRY)),
            was_busy: false,
        })
    }

    /// Waits until another call may be in flight.
    async fn place(&self, party: Party, deadline: Instant) -> Result<Place, NoAnswer> {
        let table = &self.settings.table;
        match timeout_at(deadline, self.places.take(party)).await {
            Ok(Ok(place)) => return Ok(place),
            Ok(Err(_busy)) => debug!(table, "Too many calls wait already."),
            Err(_elapsed) => debug!(table, "No call ended in time to begin another."),
        }
        self.metrics.turned_away(CallOutcome::Busy);
        Err(NoAnswer {
            retry: spread(RETRY),
            was_busy: true,
        })
    }

    /// Whose turn it was rests or gives no answer, and the next one is asked in its place. Else that
    /// one would have two turns.
    fn pass_over(&self) {
        self.next.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self, index: usize, failure: &Failure, decides: bool) {
        let (table, endpoint) = (&self.settings.table, &self.endpoints[index]);
        let Some(fault) = failure.fault() else {
            debug!(table, %endpoint, "No time was left for an endpoint.");
            return;
        };
        let is_news = endpoint.health.failed(fault, decides, clock::now());
        self.metrics.healthy(index, endpoint.health.is_healthy());
        if is_news {
            warn!(table, %endpoint, error = %failure, "An endpoint gives no answer.");
        } else {
            debug!(table, %endpoint, error = %failure, "An endpoint gives no answer.");
        }
    }

    /// Finds out aside whether a resting endpoint can be reached again.
    fn probe(self: &Arc<Self>, index: usize, trial: Trial) {
        let client = Arc::clone(self);
        self.lifecycle.spawn(async move {
            let endpoint = &client.endpoints[index];
            let mut connector = client.link.read().connector.clone();
            match connector.call(endpoint.uri.clone()).await {
                Ok(_reached) => endpoint.health.reached(),
                Err(error) if is_awaited(&error) => {}
                Err(error) => client.count(index, &Failure::Unreachable(error.into()), true),
            }
            drop(trial);
        });
    }

    /// Calls an endpoint, whose `trial` that may be, and takes note of what comes of it.
    async fn call<T>(
        &self,
        index: usize,
        trial: Option<Trial>,
        question: &Question,
        read: &impl Fn(&[u8]) -> Result<T, String>,
        doubt: &Doubt,
        deadline: Instant,
    ) -> Result<T, Failure> {
        let (table, endpoint) = (&self.settings.table, &self.endpoints[index]);
        let (before, began) = (doubt.is_there(), clock::now());
        let answer = self.try_once(endpoint, question, read, doubt, deadline);
        let answer = answer.await;
        let outcome = match &answer {
            Ok(_) => CallOutcome::Ok,
            Err(Failure::Awaited) => return answer,
            Err(failure) => failure.outcome(),
        };
        self.metrics.called(outcome, began.elapsed());
        match &answer {
            Ok(_) => {
                doubt.set(before);
                if endpoint.health.succeeded(clock::now()) {
                    info!(table, %endpoint, "The endpoint answers again.");
                }
                self.metrics.healthy(index, true);
            }
            Err(failure) => self.count(index, failure, trial.is_some()),
        }
        answer
    }

    async fn try_once<T>(
        &self,
        endpoint: &Endpoint,
        question: &Question,
        read: &impl Fn(&[u8]) -> Result<T, String>,
        doubt: &Doubt,
        deadline: Instant,
    ) -> Result<T, Failure> {
        let all = self.settings.call_timeout;
        let left = deadline.saturating_duration_since(clock::now());
        let exchange = async {
            match self.exchange(endpoint, question, read, doubt).await {
                // Perhaps a kept connection that the other side gave up in the same moment, as it
                // does when it is started anew.
                Err(Failure::Broken(_)) => self.exchange(endpoint, question, read, doubt).await,
                result => result,
            }
        };
        match timeout(all.min(left), exchange).await {
            Ok(result) => result,
            Err(_elapsed) if left < all => Err(Failure::CutShort),
            Err(_elapsed) => Err(Failure::TimedOut),
        }
    }

    async fn exchange<T>(
        &self,
        endpoint: &Endpoint,
        question: &Question,
        read: &impl Fn(&[u8]) -> Result<T, String>,
        doubt: &Doubt,
    ) -> Result<T, Failure> {
        let link = Arc::clone(&self.link.read());
        let mut request = Request::builder()
            .method(&question.method)
            .uri(&endpoint.uri)
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, concat!("chinwag/", env!("CARGO_PKG_VERSION")));
        if !question.body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(value) = &link.authorization {
            request = request.header(AUTHORIZATION, value);
        }
        let mut request = request
            .body(Full::new(question.body.clone()))
            .expect("the parts of the request are valid");
        let mut sent = Sent {
            connection: Some(capture_connection(&mut request)),
            doubt,
        };
        let answer = link.pool.request(request).await.map_err(|error| {
            if !error.is_connect() {
                return Failure::Broken(with_causes(&error));
            }
            // Nobody has got it, though there may have been a connection that ended before.
            sent.connection = None;
            let cause = error.source().and_then(|cause| cause.downcast_ref());
            if cause.is_some_and(is_awaited) {
                Failure::Awaited
            } else {
                Failure::Unreachable(error.into())
            }
        })?;
        if answer.status() != StatusCode::OK {
            return Err(Failure::Status(answer.status()));
        }
        if !is_json(&answer) {
            return Err(Failure::NoJson);
        }
        let body = read_body(answer.into_body(), self.settings.answer_bytes).await?;
        read(&body).map_err(Failure::Malformed)
    }
}

impl Settings {
    fn check(&self) -> Result<(), BuildError> {
        for (key, value) in [("calls", self.calls), ("queue", self.queue)] {
            if value > MAX_CALLS || (key == "calls" && value == 0) {
                return Err(BuildError::key(
                    key,
                    format!("`calls` is 1 to {MAX_CALLS} and `queue` at most {MAX_CALLS}"),
                ));
            }
        }
        if self.connect_timeout.is_zero() || self.call_timeout < self.connect_timeout {
            return Err(BuildError::key(
                "connect_timeout",
                "`connect_timeout` is above zero and at most `call_timeout`",
            ));
        }
        let secure = self.endpoints.iter().any(is_https);
        if !secure && !self.tls.paths().is_empty() {
            return Err(BuildError::new(
                "`ca`, `cert` and `key` are for endpoints with https, and there is none",
            ));
        }
        Ok(())
    }

    fn paths(&self) -> Vec<PathBuf> {
        let mut paths = self.tls.paths();
        if let Some(Bearer::File(path)) = &self.bearer {
            paths.push(path.clone());
        }
        paths
    }

    fn read(&self) -> Result<Material, Unusable<BuildError>> {
        let tls = self.endpoints.iter().any(is_https);
        let tls = tls.then(|| self.tls.read()).transpose()?;
        let token = match &self.bearer {
            None => None,
            Some(Bearer::Token(token)) => Some(token.clone()),
            Some(Bearer::File(path)) => {
                let bytes = fs::read(path).map_err(|error| {
                    let why = format!("{} can't be read: {error}", path.display());
                    Unusable::Unread(BuildError::key("bearer_file", why))
                })?;
                // What is not even UTF-8 is as bad as nothing.
                Some(String::from_utf8(bytes).unwrap_or_default().into())
            }
        };
        let authorization = token.map(|token| {
            let token = token.expose_secret().trim();
            let visible = !token.is_empty() && token.chars().all(|c| c.is_ascii_graphic());
            visible
                .then(|| HeaderValue::try_from(format!("Bearer {token}")).ok())
                .flatten()
                .map(|mut value| {
                    value.set_sensitive(true);
                    value
                })
                .ok_or_else(|| {
                    Unusable::Bad(BuildError::key(
                        "bearer",
                        "the bearer token is not visible ASCII without space",
                    ))
                })
        });
        Ok(Material {
            tls,
            authorization: authorization.transpose()?,
        })
    }

    fn link(&self, material: Material, endpoints: &Arc<[Endpoint]>, executor: OnLifecycle) -> Link {
        let connector = Connector {
            endpoints: Arc::clone(endpoints),
            reach: self.reach.clone(),
            tls: material.tls.map(TlsConnector::from),
            limit: self.connect_timeout,
        };
        let pool = Pool::builder(executor)
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(KEEP_ALIVE)
            .pool_max_idle_per_host(KEPT_ALIVE)
            .http1_max_buf_size(HEAD_BYTES)
            .build(connector.clone());
        Link {
            pool,
            connector,
            authorization: material.authorization,
        }
    }
}

pub(super) fn is_https(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
}

fn is_json(answer: &Response<Incoming>) -> bool {
    let headers = answer.headers();
    let essence = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .map(|essence| essence.trim().to_ascii_lowercase())
        .unwrap_or_default();
    let is_json = essence == "application/json" || essence.ends_with("+json");
    is_json && !headers.contains_key(CONTENT_ENCODING)
}

async fn read_body(mut body: Incoming, cap: usize) -> Result<Vec<u8>, Failure> {
    let too_large = || Failure::TooLarge(Size(cap));
    let declared = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if declared > cap {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(declared);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::Broken(with_causes(&error)))?;
        if let Ok(data) = frame.into_data() {
            if bytes.len() + data.len() > cap {
                return Err(too_large());
            }
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes)
}

/// An error and what caused it, on one line.
pub(super) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    one_line(&text)
}

/// Runs a pool's connections, which would else outlive a stop for as long as they are kept.
#[derive(Clone)]
struct OnLifecycle {
    lifecycle: Lifecycle,
    places: Arc<Places>,
}

impl OnLifecycle {
    fn new(lifecycle: &Lifecycle, places: &Arc<Places>) -> Self {
        Self {
            lifecycle: lifecycle.clone(),
            places: Arc::clone(places),
        }
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for OnLifecycle {
    fn execute(&self, connection: F) {
        let it = self.clone();
        self.lifecycle.spawn(async move {
            tokio::select! {
                () = connection => {}
                // What was begun is ended; then nobody needs a connection any more.
                () = async {
                    it.lifecycle.draining().await;
                    it.places.idle().await;
                } => {}
            }
        });
    }
}
