//! Back ends in this process, and ears for what is logged.

use std::{
    fs,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use chinwag_core::plugin::{AuthRequest, Authenticator, Credentials, Verdict};
use parking_lot::Mutex;
use tracing::subscriber::DefaultGuard;

/// Longer than anything in a test takes that is to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A page or schema of the project's documentation.
pub(crate) fn documentation(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    fs::read_to_string(root.join(path)).expect("it is there")
}

pub(crate) fn schema(name: &str) -> jsonschema::Validator {
    let text = documentation(&format!("schemas/{name}.json"));
    let schema = serde_json::from_str(&text).expect("a schema is JSON");
    jsonschema::validator_for(&schema).expect("a schema is sound")
}

/// A log-in with `credentials`.
pub(crate) fn request(credentials: Credentials) -> AuthRequest {
    AuthRequest::new(credentials, "web".into(), IpAddr::from(Ipv4Addr::LOCALHOST))
}

pub(crate) async fn judge(authenticator: &dyn Authenticator, credentials: Credentials) -> Verdict {
    authenticator.authenticate(&request(credentials)).await
}

/// The same from the address that ends in `host`.
#[cfg(feature = "_contract")]
pub(crate) async fn judge_from(
    authenticator: &dyn Authenticator,
    host: u8,
    credentials: Credentials,
) -> Verdict {
    let mut request = request(credentials);
    request.address = IpAddr::from([192, 0, 2, host]);
    authenticator.authenticate(&request).await
}

/// The name that the verdict lets in.
///
/// # Panics
/// If it lets nobody in.
pub(crate) fn let_in(verdict: Verdict) -> String {
    use chinwag_core::plugin::PrincipalName;
    match verdict {
        Verdict::Allow(principal) => match principal.name {
            PrincipalName::Vouched(name) => name,
            PrincipalName::Chosen { .. } => panic!("{principal:?}"),
        },
        _ => panic!("{verdict:?}"),
    }
}

pub(crate) fn is_unavailable(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Unavailable { .. })
}

/// Logs in as a client does: again when told to, until there is an answer. Says how often it took.
pub(crate) async fn log_in(
    authenticator: &dyn Authenticator,
    credentials: Credentials,
) -> (Verdict, u32) {
    for tries in 1.. {
        match judge(authenticator, credentials.clone()).await {
            Verdict::Unavailable { retry } => {
                assert!(retry >= Duration::from_millis(100), "{retry:?}");
                tokio::time::sleep(retry).await;
            }
            verdict => return (verdict, tries),
        }
    }
    unreachable!("the loop ends with an answer")
}

/// Everything that is logged on this thread while it lives, of all crates and levels.
pub(crate) struct Ears {
    heard: Arc<Mutex<Vec<u8>>>,
    _guard: DefaultGuard,
}

impl Ears {
    pub(crate) fn open() -> Self {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let writer = Arc::clone(&heard);
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(move || Writer(Arc::clone(&writer)))
            .finish();
        Self {
            heard,
            _guard: tracing::subscriber::set_default(subscriber),
        }
    }

    pub(crate) fn heard(&self) -> String {
        String::from_utf8(self.heard.lock().clone()).expect("logs are text")
    }
}

struct Writer(Arc<Mutex<Vec<u8>>>);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(feature = "_client")]
pub(crate) use self::backend::{Answer, Backend, pipes};

#[cfg(feature = "_client")]
mod backend {
    use std::{collections::BTreeMap, future::pending, pin::Pin};

    use bytes::Bytes;
    use chinwag_core::Lifecycle;
    use http::{HeaderMap, Method, Request, Response, Uri};
    use http_body_util::{BodyExt, Full};
    use hyper::{body::Incoming, server::conn::http1, service::service_fn};
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, duplex};

    use super::*;
    use crate::callout::connect::{BoxFuture, Reach};

    /// An HTTP server whose behaviour a test changes as it goes.
    pub(crate) struct Backend {
        state: Mutex<State>,
    }

    #[derive(Default)]
    struct State {
        answer: Answer,
        connections: usize,
        asked: Vec<Asked>,
        /// Ends the connections there are.
        generation: Lifecycle,
    }

    /// A request that came.
    #[derive(Debug, Clone)]
    pub(crate) struct Asked {
        pub(crate) method: Method,
        pub(crate) uri: Uri,
        pub(crate) headers: HeaderMap,
        pub(crate) body: String,
    }

    /// What a back end does with connections and requests.
    #[derive(Debug, Clone, Default)]
    pub(crate) enum Answer {
        /// Connections are refused.
        Refuse,
        /// Connections come to nothing.
        Void,
        /// Requests are taken and not answered.
        #[default]
        Silence,
        /// After so long.
        After(Duration, Box<Answer>),
        /// 200 with this JSON.
        Json(String),
        /// 200 with what was asked.
        Echo,
        /// What this says to a request.
        By(fn(&serde_json::Value) -> Answer),
        /// This, with these headers.
        Http(u16, Vec<(&'static str, &'static str)>, Bytes),
        /// A body without a length that never ends.
        Endless,
        /// Half an answer, then nothing more.
        Half,
    }

    impl Answer {
        pub(crate) fn json(value: &serde_json::Value) -> Self {
            Self::Json(value.to_string())
        }

        pub(crate) fn allow(user: &str) -> Self {
            Self::json(&serde_json::json!({ "verdict": "allow", "user": user }))
        }
    }

    type Body = Pin<Box<dyn hyper::body::Body<Data = Bytes, Error = io::Error> + Send>>;

    impl Backend {
        pub(crate) fn new(answer: Answer) -> Arc<Self> {
            let backend = Arc::new(Self {
                state: Mutex::default(),
            });
            backend.set(answer);
            backend
        }

        pub(crate) fn set(&self, answer: Answer) {
            self.state.lock().answer = answer;
        }

        /// Ends all connections, as a restart does.
        pub(crate) fn hang_up(&self) {
            std::mem::take(&mut self.state.lock().generation).kill();
        }

        pub(crate) fn connections(&self) -> usize {
            self.state.lock().connections
        }

        pub(crate) fn asked(&self) -> Vec<Asked> {
            self.state.lock().asked.clone()
        }

        /// Serves one connection.
        pub(crate) fn serve(
            self: &Arc<Self>,
            stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        ) {
            let (it, generation) = {
                let mut state = self.state.lock();
                state.connections += 1;
                (Arc::clone(self), state.generation.clone())
            };
            generation.spawn(async move {
                let service = service_fn(|request| {
                    let it = Arc::clone(&it);
                    async move { it.handle(request).await }
                });
                // What a client does to a connection is its own affair.
                let _ended = http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }

        async fn open(self: Arc<Self>) -> io::Result<DuplexStream> {
            let answer = self.state.lock().answer.clone();
            match answer {
                Answer::Refuse => Err(io::ErrorKind::ConnectionRefused.into()),
                Answer::Void => pending().await,
                _ => {
                    let (ours, theirs) = duplex(64 << 10);
                    self.serve(theirs);
                    Ok(ours)
                }
            }
        }

        async fn handle(&self, request: Request<Incoming>) -> io::Result<Response<Body>> {
            let (head, body) = request.into_parts();
            let text = String::from_utf8(whole(body).await).expect("JSON is text");
            let mut answer = {
                let mut state = self.state.lock();
                state.asked.push(Asked {
                    method: head.method,
                    uri: head.uri,
                    headers: head.headers,
                    body: text.clone(),
                });
                state.answer.clone()
            };
            loop {
                let json = [("content-type", "application/json; charset=utf-8")];
                let (status, headers, body) = match answer {
                    Answer::By(choose) => {
                        answer = choose(&serde_json::from_str(&text).expect("JSON is asked"));
                        continue;
                    }
                    Answer::After(wait, then) => {
                        tokio::time::sleep(wait).await;
                        answer = *then;
                        continue;
                    }
                    Answer::Refuse | Answer::Void | Answer::Silence => pending().await,
                    Answer::Json(text) => (200, json.to_vec(), Bytes::from(text)),
                    Answer::Echo => (200, json.to_vec(), Bytes::from(text)),
                    Answer::Http(status, headers, body) => (status, headers, body),
                    Answer::Endless | Answer::Half => {
                        let ends = matches!(answer, Answer::Half);
                        let answer = Response::builder().header(json[0].0, json[0].1);
                        let body: Body = Box::pin(Spaces {
                            left: ends.then_some(1),
                        });
                        return Ok(answer.body(body).expect("a valid answer"));
                    }
                };
                let mut answer = Response::builder().status(status);
                for (name, value) in headers {
                    answer = answer.header(name, value);
                }
                let body: Body = Box::pin(Full::new(body).map_err(|never| match never {}));
                return Ok(answer.body(body).expect("a valid answer"));
            }
        }
    }

    impl Drop for Backend {
        fn drop(&mut self) {
            self.hang_up();
        }
    }

    async fn whole(mut body: Incoming) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            bytes.extend_from_slice(frame.data_ref().expect("no trailers"));
        }
        bytes
    }

    /// So many chunks of spaces, then silence; or chunks without end.
    struct Spaces {
        left: Option<usize>,
    }

    impl hyper::body::Body for Spaces {
        type Data = Bytes;
        type Error = io::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<io::Result<hyper::body::Frame<Bytes>>>> {
            match &mut self.left {
                Some(0) => return std::task::Poll::Pending,
                Some(left) => *left -= 1,
                None => {}
            }
            let chunk = Bytes::from(vec![b' '; 1024]);
            std::task::Poll::Ready(Some(Ok(hyper::body::Frame::data(chunk))))
        }
    }

    /// A network of these back ends, by host.
    pub(crate) fn pipes<const N: usize>(backends: [(&str, &Arc<Backend>); N]) -> Reach {
        let by_host: BTreeMap<String, Arc<Backend>> = backends
            .into_iter()
            .map(|(host, backend)| (host.to_owned(), Arc::clone(backend)))
            .collect();
        Reach::Pipes(Arc::new(move |uri: &Uri| -> BoxFuture<_> {
            let host = uri.host().unwrap_or_default();
            let backend = by_host.get(host).cloned();
            Box::pin(async move {
                match backend {
                    Some(backend) => backend.open().await,
                    None => Err(io::ErrorKind::NotFound.into()),
                }
            })
        }))
    }
}
