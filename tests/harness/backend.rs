//! Another server's part, played by the test: a session manager over HTTP that says what the test wants it to say and
//! remembers what it was told.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use http::{Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

use super::eventually;

/// What a back end does with a message.
pub(crate) enum Says {
    Json(Value),
    /// 500.
    Fails,
}

type Judge = Box<dyn Fn(&Value) -> Says + Send>;

/// A back end, until it is dropped.
pub(crate) struct Backend {
    pub(crate) addr: SocketAddr,
    shared: Arc<Shared>,
    serving: JoinSet<()>,
}

struct Shared {
    judge: Mutex<Judge>,
    told: Mutex<Vec<Value>>,
}

/// Lets everything begin and understands everything.
pub(crate) fn willing(message: &Value) -> Says {
    Says::Json(match message["type"].as_str() {
        Some("create" | "joined") => json!({"verdict": "allow"}),
        _ => json!({"verdict": "done"}),
    })
}

impl Backend {
    pub(crate) async fn start(judge: impl Fn(&Value) -> Says + Send + 'static) -> Self {
        let mut backend = Self {
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            shared: Arc::new(Shared {
                judge: Mutex::new(Box::new(judge)),
                told: Mutex::default(),
            }),
            serving: JoinSet::new(),
        };
        backend.come_back().await;
        backend
    }

    /// Ends its connections and refuses others.
    pub(crate) async fn go_away(&mut self) {
        self.serving.shutdown().await;
    }

    /// Listens again where it did, and knows what it knew.
    pub(crate) async fn come_back(&mut self) {
        let listener = TcpListener::bind(self.addr)
            .await
            .expect("the address is free");
        self.addr = listener.local_addr().expect("it is bound");
        self.serving
            .spawn(accept(listener, Arc::clone(&self.shared)));
    }

    /// From now on it says this.
    pub(crate) fn set(&self, judge: impl Fn(&Value) -> Says + Send + 'static) {
        *lock(&self.shared.judge) = Box::new(judge);
    }

    /// The table of a session manager there, called `backend`, with more lines.
    pub(crate) fn table(&self, more: &str) -> String {
        table(&[self.addr], more)
    }

    /// Every message so far.
    pub(crate) fn told(&self) -> Vec<Value> {
        lock(&self.shared.told).clone()
    }

    /// Forgets what it was told.
    pub(crate) fn forget(&self) {
        lock(&self.shared.told).clear();
    }

    /// Type, user, room and cause of every message that is about a session.
    pub(crate) fn brief(&self) -> Vec<String> {
        let told = self.told().into_iter();
        told.filter(|message| message["type"] != "hello")
            .map(|message| brief(&message))
            .collect()
    }

    /// Waits until it has been told this as often.
    pub(crate) async fn hears(&self, what: &str, times: usize) {
        eventually(
            &format!("the back end to hear {what:?} {times} times"),
            async || {
                let heard = self.brief().iter().filter(|it| *it == what).count();
                (heard >= times).then_some(())
            },
        )
        .await;
    }

    /// Where to steer the last session of that user, and with what.
    pub(crate) fn control(&self, user: &str) -> (String, String) {
        let told = self.told();
        let of_user = |it: &&Value| it["type"] == "create" && it["user"] == user;
        let create = told.iter().rev().find(of_user).expect("there was one");
        let text = |key: &str| {
            create["control"][key]
                .as_str()
                .expect("it is told")
                .to_owned()
        };
        (text("url"), text("token"))
    }
}

/// What `brief` says of one message.
pub(crate) fn brief(message: &Value) -> String {
    let words = ["type", "user", "room", "cause"].map(|key| message[key].as_str());
    words.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

/// The table of a session manager at these addresses, called `backend`, with more lines.
pub(crate) fn table(endpoints: &[SocketAddr], more: &str) -> String {
    let urls: Vec<String> = endpoints.iter().map(|it| format!("http://{it}/")).collect();
    format!("[session_managers.backend]\nkind = \"http\"\nendpoints = {urls:?}\n{more}\n")
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.expect("descriptors are left");
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let service = service_fn(|request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(shared.answer(request).await) }
            });
            // What the server does to a connection is its own affair.
            let _ended = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

impl Shared {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let mut body = request.into_body();
        let mut text = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            text.extend_from_slice(frame.data_ref().expect("no trailers"));
        }
        let message = serde_json::from_slice(&text).expect("JSON is posted");
        let says = lock(&self.judge)(&message);
        lock(&self.told).push(message);
        let (status, body) = match says {
            Says::Json(answer) => (200, answer.to_string()),
            Says::Fails => (500, String::new()),
        };
        let answer = Response::builder()
            .status(status)
            .header(header::CONTENT_TYPE, "application/json");
        answer.body(Full::from(body)).expect("a valid answer")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
