//! The listener that watchers ask: `/metrics`, `/livez` and `/readyz`, apart from every transport.
//!
//! It lives a little longer than the rest, so that a drain can be watched, speaks TLS where it is told to, and costs a
//! bounded amount whoever connects:
//! one request a connection, few connections at a time, a time limit on each. Nobody can keep others out: whoever has
//! not asked yet makes room for the next, and a descriptor is held back for when the process has no other.

use std::{
    collections::{BTreeSet, VecDeque},
    convert::Infallible,
    fs::File,
    future::poll_fn,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use chinwag_core::{Lifecycle, Telemetry, plugin::ManagerLink};
use chinwag_transports::{
    Stream,
    tls::{Alpn, Tls},
};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

/// Connections at a time; one more ends the oldest.
const CONNECTIONS: usize = 64;

/// From accept to a whole request head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);

/// For a connection from its first byte to its last.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// How long accepting pauses after a failure, so that being out of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often histograms are folded: between two folds each sample is kept.
const UPKEEP: Duration = Duration::from_secs(5);

/// Upper bounds for what is measured in seconds: from a lane's turn to a slow authenticator.
const SECONDS: [f64; 12] = [
    1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0,
];

/// Upper bounds for counts of events.
const EVENTS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// The recorder of one server. Histograms have buckets, which can be summed over servers as quantiles can't.
pub(crate) fn recorder() -> PrometheusRecorder {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)
        .and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Suffix("_events".into()), &EVENTS)
        })
        .expect("the only error is a list without buckets")
        .build_recorder()
}

/// What is known of the server's health.
#[derive(Debug, Default)]
pub(crate) struct Health {
    draining: AtomicBool,
    /// Transports whose listener has failed; bounded by the number of transports.
    failed: Mutex<BTreeSet<String>>,
    managers: Vec<ManagerLink>,
}

impl Health {
    /// That of a server with these session managers.
    pub(crate) fn new(managers: Vec<ManagerLink>) -> Self {
        Self {
            managers,
            ..Self::default()
        }
    }

    /// Tells which session managers are out of reach.
    fn measure(&self, telemetry: &Telemetry) {
        for link in &self.managers {
            telemetry.manager_is_ready(&link.name, link.manager.is_ready());
        }
    }

    /// What does not make the server unready, and needs somebody's eye.
    fn warnings(&self) -> Vec<String> {
        self.managers
            .iter()
            .filter(|link| !link.manager.is_ready())
            .map(|link| format!("session manager {} is out of reach", link.name))
            .collect()
    }

    /// From now on the server is not ready.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// The listener of `transport` has failed: the server is not ready any more.
    pub(crate) fn fail(&self, transport: &str) {
        self.failed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(transport.into());
    }

    /// Why the server is not ready; empty when it is.
    fn reasons(&self) -> Vec<String> {
        let draining = self.draining.load(Ordering::Relaxed);
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        draining
            .then(|| "draining".to_owned())
            .into_iter()
            .chain(failed.iter().map(|name| format!("listener {name} failed")))
            .collect()
    }
}

/// Keeps the recorder's histograms small until the server drains.
pub(crate) async fn upkeep(handle: PrometheusHandle, lifecycle: Lifecycle) {
    loop {
        tokio::select! {
            () = lifecycle.draining() => return,
            () = sleep(UPKEEP) => handle.run_upkeep(),
        }
    }
}

/// The listener, bound and not yet accepting.
#[derive(Debug)]
pub(crate) struct Endpoint {
    listener: TcpListener,
    address: SocketAddr,
    /// `None`: plain text.
    tls: Option<Arc<Tls>>,
    spare: Arc<Spare>,
    /// Whether accepting has failed and not succeeded since: said once.
    failing: bool,
    header_timeout: Duration,
}

/// What the endpoint's answers are made from.
struct Watched {
    metrics: PrometheusHandle,
    health: Arc<Health>,
    telemetry: Arc<Telemetry>,
}

impl Endpoint {
    pub(crate) async fn bind(address: SocketAddr, tls: Option<Arc<Tls>>) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self {
            listener,
            address,
            tls,
            spare: Arc::new(Spare::new()),
            failing: false,
            header_timeout: HEADER_TIMEOUT,
        })
    }

    /// The address taken.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts until `lifecycle` drains.
    pub(crate) async fn serve(
        mut self,
        metrics: PrometheusHandle,
        health: Arc<Health>,
        telemetry: Arc<Telemetry>,
        lifecycle: Lifecycle,
    ) {
        let watched = Arc::new(Watched {
            metrics,
            health,
            telemetry,
        });
        let mut seats = Seats::new();
        loop {
            let accepted = async {
                let stream = self.accept().await;
                (stream, seats.take().await)
            };
            let (stream, seat) = tokio::select! {
                () = lifecycle.draining() => return,
                accepted = accepted => accepted,
            };
            let (watched, spare) = (watched.clone(), self.spare.clone());
            let (tls, header_timeout) = (self.tls.clone(), self.header_timeout);
            lifecycle.spawn(async move {
                let answered = timeout(CONNECTION_TIMEOUT, async {
                    if let Some(stream) = opened(stream, tls.as_ref()).await {
                        answer_one(stream, watched, &seat, header_timeout).await;
                    }
                });
                tokio::select! {
                    answered = answered => if answered.is_err() {
                        debug!("A metrics connection took too long.");
                    },
                    () = seat.taken_away.notified() => {
                        debug!("A metrics connection made room for another.");
                    }
                }
                // The connection is closed: before somebody else takes its descriptor.
                spare.hold();
            });
        }
    }

    /// The next connection. Never fails for one socket; any other error makes it pause. Cancel safe.
    async fn accept(&mut self) -> TcpStream {
        loop {
            self.spare.hold();
            let mut accepted = self.listener.accept().await;
            if accepted.is_err() && self.spare.give_up() {
                // The kernel asks for a descriptor before it looks whether anybody is there.
                match poll_fn(|cx| Poll::Ready(self.listener.poll_accept(cx))).await {
                    Poll::Ready(again) => accepted = again,
                    Poll::Pending => continue,
                }
            }
            match accepted {
                Ok((stream, _peer)) => {
                    self.failing = false;
                    return stream;
                }
                Err(error) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        warn!(%error, "Accept of a metrics connection failed; pausing.");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// A descriptor that is given up to accept with when there is no other, and held again once that connection is closed.
#[derive(Debug)]
struct Spare(Mutex<Option<File>>);

impl Spare {
    fn new() -> Self {
        Self(Mutex::new(Self::open()))
    }

    /// `None` where there is none even now, or no such file.
    fn open() -> Option<File> {
        File::open("/dev/null").ok()
    }

    fn hold(&self) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if held.is_none() {
            *held = Self::open();
        }
    }

    /// Whether there was one.
    fn give_up(&self) -> bool {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.take().is_some()
    }
}

/// The right of one connection to be there.
struct Seat {
    /// Whether a whole request has come.
    asked: AtomicBool,
    taken_away: Notify,
    _permit: OwnedSemaphorePermit,
}

/// The connections there are, oldest first: at most [`CONNECTIONS`].
struct Seats {
    free: Arc<Semaphore>,
    taken: VecDeque<Weak<Seat>>,
}

impl Seats {
    fn new() -> Self {
        Self {
            free: Arc::new(Semaphore::new(CONNECTIONS)),
            taken: VecDeque::new(),
        }
    }

    /// A seat for one more. Where there is none, the oldest connection that has not asked for anything loses its own,
    /// else the oldest of all, which does not read its answer.
    async fn take(&mut self) -> Arc<Seat> {
        if self.free.available_permits() == 0 {
            let all: Vec<Arc<Seat>> = self.taken.iter().filter_map(Weak::upgrade).collect();
            let silent = all.iter().find(|seat| !seat.asked.load(Ordering::Relaxed));
            if let Some(seat) = silent.or_else(|| all.first()) {
                seat.taken_away.notify_one();
            }
        }
        let permit = self.free.clone().acquire_owned().await;
        let seat = Arc::new(Seat {
            asked: AtomicBool::new(false),
            taken_away: Notify::new(),
            _permit: permit.expect("the semaphore is never closed"),
        });
        self.taken.retain(|seat| seat.strong_count() > 0);
        self.taken.push_back(Arc::downgrade(&seat));
        seat
    }
}

/// The connection, through TLS once hands are shaken. `None` where it came to nothing, which has been counted.
async fn opened(stream: TcpStream, tls: Option<&Arc<Tls>>) -> Option<Stream> {
    let Some(tls) = tls else {
        return Some(stream.into());
    };
    let remote = stream.peer_addr().ok()?.into();
    let shaken = Stream::shake_hands(stream, Bytes::new(), tls, Alpn::HTTP, remote).await;
    shaken.map(|(stream, _peer)| stream)
}

/// Answers the one request of a connection.
async fn answer_one(stream: Stream, watched: Arc<Watched>, seat: &Seat, header_timeout: Duration) {
    let service = service_fn(move |request: Request<Incoming>| {
        seat.asked.store(true, Ordering::Relaxed);
        let answer = watched.answer(request.method(), request.uri().path());
        std::future::ready(Ok::<_, Infallible>(answer))
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(16 << 10)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        debug!(%error, "A metrics connection failed.");
    }
}

impl Watched {
    fn render(&self) -> String {
        self.health.measure(&self.telemetry);
        self.metrics.render()
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let json = "application/json";
        let text = "text/plain; charset=utf-8";
        let (status, kind, body) = match path {
            _ if !matches!(path, "/metrics" | "/livez" | "/readyz") => (
                StatusCode::NOT_FOUND,
                text,
                "There are /metrics, /livez and /readyz.\n".into(),
            ),
            _ if method != Method::GET && method != Method::HEAD => {
                (StatusCode::METHOD_NOT_ALLOWED, text, "Only GET.\n".into())
            }
            "/metrics" => (
                StatusCode::OK,
                "text/plain; version=0.0.4; charset=utf-8",
                self.render(),
            ),
            "/livez" => (StatusCode::OK, json, "{\"live\":true}\n".into()),
            _ => {
                // A table's name has nothing that JSON would have to escape.
                let list = |name: &str, items: Vec<String>| match items.join("\",\"") {
                    none if none.is_empty() => none,
                    items => format!(",\"{name}\":[\"{items}\"]"),
                };
                let reasons = list("reasons", self.health.reasons());
                let warnings = list("warnings", self.health.warnings());
                let is_ready = reasons.is_empty();
                let status = if is_ready {
                    StatusCode::OK
                } else {
                    StatusCode::SERVICE_UNAVAILABLE
                };
                let body = format!("{{\"ready\":{is_ready}{reasons}{warnings}}}\n");
                (status, json, body)
            }
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use metrics::{Key, Label, Level, Metadata, Recorder};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpSocket,
    };

    use super::*;

    struct Running {
        address: SocketAddr,
        health: Arc<Health>,
        lifecycle: Lifecycle,
    }

    async fn run() -> Running {
        run_with(HEADER_TIMEOUT).await
    }

    async fn run_with(header_timeout: Duration) -> Running {
        let recorder = recorder();
        let key = Key::from_parts("spoons_total", vec![Label::new("size", "tea")]);
        recorder
            .register_counter(&key, &Metadata::new("test", Level::INFO, None))
            .increment(3);
        let mut endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap(), None)
            .await
            .unwrap();
        endpoint.header_timeout = header_timeout;
        let running = Running {
            address: endpoint.address(),
            health: Arc::default(),
            lifecycle: Lifecycle::new(),
        };
        let serve = endpoint.serve(
            recorder.handle(),
            running.health.clone(),
            Telemetry::new(&recorder, &[], &[], &[], &[]),
            running.lifecycle.clone(),
        );
        running.lifecycle.spawn(serve);
        running
    }

    /// Status line, headers and body of one answer.
    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        ask(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await
    }

    #[tokio::test]
    async fn metrics_are_shown_in_the_text_format() {
        let running = run().await;
        let answer = get(running.address, "/metrics").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(
            answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"),
            "{answer}"
        );
        assert!(
            answer.contains("spoons_total{size=\"tea\"} 3\n"),
            "{answer}"
        );
        assert_eq!(running.lifecycle.shut_down(Duration::from_secs(5)).await, 0);
    }

    #[tokio::test]
    async fn readiness_ends_with_the_drain_or_a_failed_listener_and_says_why() {
        let running = run().await;
        let answer = get(running.address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        running.health.fail("web");
        running.health.drain();
        let answer = get(running.address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(
            answer.ends_with(
                "{\"ready\":false,\"reasons\":[\"draining\",\"listener web failed\"]}\n"
            ),
            "{answer}"
        );
        let answer = get(running.address, "/livez").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }

    #[tokio::test]
    async fn other_paths_and_methods_are_refused() {
        let running = run().await;
        let answer = get(running.address, "/").await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        let answer = ask(
            running.address,
            "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
        assert!(answer.contains("allow: GET, HEAD\r\n"), "{answer}");
        let answer = ask(running.address, "HEAD /livez HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    }

    #[tokio::test]
    async fn a_connection_serves_one_request() {
        let running = run().await;
        let twice = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2);
        let answer = ask(running.address, &twice).await;
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 1, "{answer}");
    }

    #[tokio::test]
    async fn nobody_is_kept_out_by_those_who_say_nothing() {
        // Only by making room for each other do they go in the time of this test.
        let running = run_with(Duration::from_secs(3600)).await;
        let mut silent = Vec::new();
        for _ in 0..3 * CONNECTIONS {
            silent.push(TcpStream::connect(running.address).await.unwrap());
        }
        let answer = timeout(CONNECTION_TIMEOUT / 3, get(running.address, "/livez"));
        let answer = answer.await.expect("answered while others wait");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert_eq!(silent[0].read(&mut [0]).await.unwrap_or(0), 0);
        let mut youngest = silent.pop().unwrap().into_std().unwrap();
        let read = io::Read::read(&mut youngest, &mut [0]);
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[tokio::test]
    async fn who_has_asked_keeps_their_seat_longest() {
        let mut seats = Seats::new();
        let mut all = Vec::new();
        for _ in 0..CONNECTIONS {
            all.push(seats.take().await);
        }
        let leaves = |seat: &Seat| seat.taken_away.notified().now_or_never().is_some();
        all[0].asked.store(true, Ordering::Relaxed);
        assert!(seats.take().now_or_never().is_none());
        assert!(
            leaves(&all[1]) && !leaves(&all[0]),
            "the oldest that is silent"
        );
        drop(all.remove(1));
        all.push(seats.take().now_or_never().expect("there is room"));
        for seat in &all {
            seat.asked.store(true, Ordering::Relaxed);
        }
        assert!(seats.take().now_or_never().is_none());
        assert!(leaves(&all[0]) && !all[1..].iter().any(|seat| leaves(seat)));
        assert_eq!(seats.taken.len(), CONNECTIONS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_closed_soon() {
        let running = run().await;
        for said in ["", "GET /livez HT"] {
            let mut stream = TcpStream::connect(running.address).await.unwrap();
            let begun = chinwag_core::clock::now();
            stream.write_all(said.as_bytes()).await.unwrap();
            assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
            assert!(begun.elapsed() < Duration::from_secs(3), "{said}");
        }
    }

    /// Set in the process that may be left without descriptors.
    const ALONE: &str = "CHINWAG_TEST_ALONE";

    /// Takes every descriptor there is, so it has a process of its own, with few of them.
    #[cfg(unix)]
    #[test]
    fn a_scrape_needs_no_descriptor_of_the_others() {
        let output = std::process::Command::new("sh")
            .args(["-c", "ulimit -n 64 && exec \"$@\"", "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "metrics::tests::without_descriptors"])
            .env(ALONE, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("1 passed"), "{text}");
    }

    /// The part of the test above that takes every descriptor: it runs in the process that was made for it.
    #[tokio::test]
    async fn without_descriptors() {
        if std::env::var_os(ALONE).is_none() {
            return;
        }
        let running = run().await;
        // A client's own descriptor is there before there are no more.
        let sockets: Vec<_> = (0..3).map(|_| TcpSocket::new_v4().unwrap()).collect();
        let mut taken = Vec::new();
        while let Some(file) = Spare::open() {
            taken.push(file);
        }
        for socket in sockets {
            let request = async {
                let mut stream = socket.connect(running.address).await.unwrap();
                stream
                    .write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
                    .await
                    .unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.unwrap();
                (stream, answer)
            };
            let answered = timeout(CONNECTION_TIMEOUT / 3, request).await;
            let (stream, answer) = answered.expect("accepted with the spare descriptor");
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            // The server, which closed and took its spare again in one turn, keeps that; the client's goes to the others.
            drop(stream);
            taken.extend(Spare::open());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn upkeep_ends_with_the_drain() {
        let lifecycle = Lifecycle::new();
        let handle = recorder().handle();
        lifecycle.spawn(upkeep(handle, lifecycle.clone()));
        sleep(UPKEEP * 3).await;
        assert_eq!(lifecycle.shut_down(Duration::from_secs(1)).await, 0);
    }
}
