//! The listener that watchers ask: `/metrics`, `/livez` and `/readyz`, apart from every transport.
//!
//! It lives a little longer than the rest, so that a drain can be watched, and costs a bounded amount whoever connects:
//! one request a connection, few connections at a time, a time limit on each.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use chinwag_core::Lifecycle;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

/// Connections at a time; more wait in the kernel's backlog.
const CONNECTIONS: usize = 64;

/// For a whole request head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

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
}

impl Health {
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
}

/// What the endpoint's answers are made from.
struct Watched {
    metrics: PrometheusHandle,
    health: Arc<Health>,
}

impl Endpoint {
    pub(crate) async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// The address taken.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts until `lifecycle` drains.
    pub(crate) async fn serve(
        self,
        metrics: PrometheusHandle,
        health: Arc<Health>,
        lifecycle: Lifecycle,
    ) {
        let watched = Arc::new(Watched { metrics, health });
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let accepted = async {
                let permit = permits.clone().acquire_owned().await;
                (permit, accept(&self.listener).await)
            };
            let (permit, stream) = tokio::select! {
                () = lifecycle.draining() => return,
                accepted = accepted => accepted,
            };
            let watched = watched.clone();
            lifecycle.spawn(async move {
                let _permit = permit;
                if timeout(CONNECTION_TIMEOUT, answer_one(stream, watched))
                    .await
                    .is_err()
                {
                    debug!("A metrics connection took too long.");
                }
            });
        }
    }
}

/// The next connection. Never fails for one socket; any other error makes it pause. Cancel safe.
async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _peer)) => return stream,
            Err(error) => {
                warn!(%error, "Accept of a metrics connection failed; pausing.");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Answers the one request of a connection.
async fn answer_one(stream: TcpStream, watched: Arc<Watched>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = watched.answer(request.method(), request.uri().path());
        std::future::ready(Ok::<_, Infallible>(answer))
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(16 << 10)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        debug!(%error, "A metrics connection failed.");
    }
}

impl Watched {
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
                self.metrics.render(),
            ),
            "/livez" => (StatusCode::OK, json, "{\"live\":true}\n".into()),
            _ => match self.health.reasons() {
                ready if ready.is_empty() => {
                    (StatusCode::OK, json, "{\"ready\":true}\n".to_owned())
                }
                // A table's name has nothing that JSON would have to escape.
                reasons => (
                    StatusCode::SERVICE_UNAVAILABLE,
                    json,
                    format!(
                        "{{\"ready\":false,\"reasons\":[\"{}\"]}}\n",
                        reasons.join("\",\"")
                    ),
                ),
            },
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
    use metrics::{Key, Label, Level, Metadata, Recorder};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    struct Running {
        address: SocketAddr,
        health: Arc<Health>,
        lifecycle: Lifecycle,
    }

    async fn run() -> Running {
        let recorder = recorder();
        let key = Key::from_parts("spoons_total", vec![Label::new("size", "tea")]);
        recorder
            .register_counter(&key, &Metadata::new("test", Level::INFO, None))
            .increment(3);
        let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap())
            .await
            .unwrap();
        let running = Running {
            address: endpoint.address(),
            health: Arc::default(),
            lifecycle: Lifecycle::new(),
        };
        let serve = endpoint.serve(
            recorder.handle(),
            running.health.clone(),
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

    #[tokio::test(start_paused = true)]
    async fn upkeep_ends_with_the_drain() {
        let lifecycle = Lifecycle::new();
        let handle = recorder().handle();
        lifecycle.spawn(upkeep(handle, lifecycle.clone()));
        sleep(UPKEEP * 3).await;
        assert_eq!(lifecycle.shut_down(Duration::from_secs(1)).await, 0);
    }
}
