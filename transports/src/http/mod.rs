//! The HTTP listener: one per bind, shared by every transport that names it, with their routes told apart by path.
//!
//! What it guarantees: every stage of a connection has a time limit; a request has exactly one `Host`, one that is
//! served, and an unambiguous body; every answer is an object of the protocol that no cache keeps; a panic in a route
//! costs one request; while the server drains, polls are answered until nobody is left to be told.
//!
//! HTTP/1.1 (and 1.0) only, and `http1::Builder` rather than a builder that finds the version out: that one holds a
//! silent connection for ever.

mod answer;
mod authorization;
mod body;
mod connection;
mod encode;
mod host;
mod socket;

use std::{
    collections::{BTreeMap, HashMap, btree_map, hash_map::Entry},
    convert::Infallible,
    fmt, io,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{Arc, OnceLock},
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use chinwag_core::{ErrorCode, Lifecycle, Peer, Refusal, RefusedReason, Scope};
use http::{HeaderMap, Method, Request, StatusCode, header};
use hyper::{
    body::{Body, Incoming},
    service::Service,
    upgrade::OnUpgrade,
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

#[cfg(any(test, feature = "http-polling"))]
pub(crate) use answer::Template;
pub(crate) use answer::closing;
pub use answer::{
    Answer, bad_request, empty, json, method_not_allowed, refused, refused_as, refused_with, status,
};
pub use authorization::{bearer, credentials};
pub use body::{BodyError, read as read_body};
pub(crate) use host::Hosts;

use crate::{
    Accepted, BindError, ClientAddress, ListenerConfig, Permit, Stream, StreamListener,
    accept::{Door, Secure},
    address,
    origin::Scheme,
};
use answer::Outgoing;
use socket::{End, HttpSocket, Watch, drive};

/// What answers the requests to one path.
///
/// A connection's requests run one after another. When the client goes away, the call is dropped at its next await.
/// A panic is answered with `internal` and costs that request alone.
#[async_trait]
pub trait HttpRoute: Send + Sync + 'static {
    /// Answers one request. An upgrade is answered with 101; [`upgraded`] then yields the socket.
    async fn handle(&self, request: Request<Incoming>, peer: &HttpPeer) -> Answer;
}

/// The same for a route with many requests that wait, and many answers: it lets go of what it does not need while it
/// waits, say of the head, and gives answers that differ in their bodies alone by an [`answer::Template`].
pub(crate) trait Route: Send + Sync + 'static {
    /// Answers one request.
    fn answer(self: Arc<Self>, request: Request<Incoming>, peer: HttpPeer) -> Coming;
}

/// An answer to come, which owns what it needs.
pub(crate) type Coming = Pin<Box<dyn Future<Output = Outgoing> + Send>>;

/// A route of anybody's.
struct Plain(Arc<dyn HttpRoute>);

impl Route for Plain {
    fn answer(self: Arc<Self>, request: Request<Incoming>, peer: HttpPeer) -> Coming {
        Box::pin(async move { self.0.handle(request, &peer).await.into() })
    }
}

/// Who sends a request.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HttpPeer {
    /// The client, as the listener's `client_address` names it. Behind a proxy it may be another one with every
    /// request of a connection.
    pub peer: Peer,
    /// Counts the connection; an upgraded one asks [`admit_upgrade`](Self::admit_upgrade) for its own.
    pub permit: Permit,
    /// Whether the client is known to have come over TLS, to here or to a trusted proxy that says so with
    /// `X-Forwarded-Proto: https`.
    pub secure: bool,
    /// Whether a header named the client, who was then not counted when the connection was accepted.
    named: bool,
    /// Whether the connection goes through TLS, be it a proxy's.
    is_encrypted: bool,
}

impl HttpPeer {
    /// The scheme that an `Origin` of the same site must have.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        if self.secure {
            Scheme::Https
        } else {
            Scheme::Either
        }
    }

    /// Whether the socket that an upgrade yields goes through TLS.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.is_encrypted
    }

    /// Spends one of `connects_per_ip` for what is like a connection of the client's: a new session.
    ///
    /// # Errors
    /// `rate_limited`, with the time to come back. Counted.
    pub fn admit(&self) -> Result<(), Refusal> {
        let door = self.permit.gate().door();
        door.admit(&self.peer).map_err(|retry| {
            door.refused(RefusedReason::ConnectRate);
            Refusal::new(
                ErrorCode::RateLimited,
                "Too many connections from your address; come back after retry_ms.",
            )
            .retry(retry)
        })
    }

    /// The permit of a connection that is about to be upgraded, to be held until its end. A client that a header
    /// named is judged and counted here; any other was when its connection was accepted.
    ///
    /// # Errors
    /// `rate_limited` over `connects_per_ip`, `too_many` over `max_connections_per_ip`. Counted.
    pub fn admit_upgrade(&self) -> Result<Permit, Refusal> {
        if !self.named {
            return Ok(self.permit.clone());
        }
        let permit = self.permit.count_for(&self.peer).ok_or_else(|| {
            Refusal::new(
                ErrorCode::TooMany,
                "Too many connections are open from your address.",
            )
            .retry(Duration::from_secs(1))
        })?;
        self.admit()?;
        Ok(permit)
    }

    /// The client as a log-in over `scope` needs it: with those of `headers`, which are its request's, that the
    /// authenticators ask for.
    #[must_use]
    pub fn logging_in(&self, headers: &HeaderMap, scope: &Scope) -> Peer {
        let mut peer = self.peer.clone();
        for name in scope.headers() {
            let mut lines = headers.get_all(name).iter();
            if let Some(first) = lines.next() {
                let mut value = String::from_utf8_lossy(first.as_bytes()).into_owned();
                for line in lines {
                    value.push_str(", ");
                    value.push_str(&String::from_utf8_lossy(line.as_bytes()));
                }
                peer.headers.push((name.clone(), value));
            }
        }
        peer
    }

    /// The sender of a request with `headers` on a connection of `peer`.
    fn of(peer: &Peer, permit: &Permit, headers: &HeaderMap) -> Self {
        let config = permit.gate().config();
        let proxied =
            config.client_address == ClientAddress::XForwardedFor && config.trusts(peer.address);
        let named = proxied
            .then(|| address::forwarded(headers, config))
            .flatten();
        // The last proxy's word is the last of the list.
        let says_https = proxied
            && headers
                .get_all("x-forwarded-proto")
                .iter()
                .next_back()
                .and_then(|line| line.as_bytes().rsplit(|&byte| byte == b',').next())
                .is_some_and(|scheme| scheme.trim_ascii().eq_ignore_ascii_case(b"https"));
        let (is_named, is_encrypted) = (named.is_some(), peer.tls.is_some());
        let mut client = named.map_or_else(|| peer.clone(), address::named);
        if proxied {
            // A proxy's TLS is its own, and so is its certificate, whether it says for whom it asks or not.
            client.tls = None;
        }
        Self {
            permit: permit.clone(),
            secure: says_https || (!is_named && is_encrypted),
            named: is_named,
            is_encrypted,
            peer: client,
        }
    }
}

/// Gives, once `request` was answered with 101, the socket under its connection, and bytes of the new protocol that
/// were read with the request and are counted as received already. `None`: there was another answer, the connection
/// ended before, or the request asks for no upgrade.
///
/// To be called with a request before it is answered, and once: a second call gives `None`. Where nobody waits for what
/// it gives any more, the connection is closed.
pub fn upgraded(
    request: &mut Request<Incoming>,
) -> impl Future<Output = Option<(Stream, Bytes)>> + Send + use<> {
    let promised = request.extensions_mut().remove::<PromisedSocket>();
    let socket = promised.and_then(|promised| promised.0.lock().take());
    async move { Some(socket?.await.ok()?.into_parts()) }
}

/// In a request that asks for an upgrade: where the socket comes out. In a lock, as extensions are cloned and shared.
#[derive(Clone)]
struct PromisedSocket(Arc<Mutex<Option<oneshot::Receiver<Box<HttpSocket>>>>>);

/// A transport's handle on the HTTP listener of its bind. [`BindContext::http`](crate::BindContext::http) makes it.
#[derive(Clone)]
pub struct HttpListener {
    shared: Arc<Shared>,
    /// The transport's table.
    name: Arc<str>,
}

impl fmt::Debug for HttpListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpListener")
            .field("name", &self.name)
            .field("address", &self.shared.address)
            .finish_non_exhaustive()
    }
}

/// What answers, by path.
type Routes = BTreeMap<String, Arc<dyn Route>>;

struct Shared {
    address: SocketAddr,
    config: Arc<ListenerConfig>,
    hosts: Hosts,
    door: Arc<dyn Door>,
    routes: RwLock<Arc<Routes>>,
    /// Taken by the first of the transports that serves.
    listener: Mutex<Option<StreamListener>>,
    stopped: CancellationToken,
}

impl HttpListener {
    /// The address taken; where the file says port 0, the port the system chose.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.address
    }

    /// Gives the requests to exactly `path` to `route`, which itself judges the method. Connections that are there
    /// already know nothing of it.
    ///
    /// # Errors
    /// [`BindError::Path`]: another transport on this bind has the path.
    pub fn route(
        &self,
        path: impl Into<String>,
        route: Arc<dyn HttpRoute>,
    ) -> Result<(), BindError> {
        self.claim(path.into(), Arc::new(Plain(route)))
    }

    /// The same for a [`Route`].
    pub(crate) fn claim(&self, path: String, route: Arc<dyn Route>) -> Result<(), BindError> {
        match Arc::make_mut(&mut self.shared.routes.write()).entry(path) {
            btree_map::Entry::Vacant(free) => {
                free.insert(route);
                Ok(())
            }
            btree_map::Entry::Occupied(taken) => Err(BindError::Path {
                transport: Arc::clone(&self.name),
                path: taken.key().clone(),
            }),
        }
    }

    /// Accepts until [`Hub::drain`](chinwag_core::Hub::drain) is over, which is later than its beginning: clients that
    /// poll connect anew to fetch what is queued for them and their `bye`. Then connections finish the answer under
    /// way and close. Without that call it goes on until the lifecycle drops it.
    ///
    /// Each transport on the bind calls it; the first call does the work.
    pub async fn serve(&self) {
        let Some(listener) = self.shared.listener.lock().take() else {
            return self.shared.stopped.cancelled().await;
        };
        let shared = Arc::clone(&self.shared);
        let door = Arc::clone(&shared.door);
        listener
            .serve_until(door.drained(), shared.stopped.clone(), move |accepted| {
                serve_connection(Arc::clone(&shared), accepted)
            })
            .await;
    }

    pub(crate) fn new(
        name: Arc<str>,
        config: Arc<ListenerConfig>,
        secure: Option<Secure>,
        door: Arc<dyn Door>,
        lifecycle: Lifecycle,
    ) -> io::Result<Self> {
        let hosts = Hosts::new(&config.hosts).map_err(io::Error::other)?;
        let listener =
            StreamListener::bind(Arc::clone(&config), secure, Arc::clone(&door), lifecycle)?;
        Ok(Self {
            shared: Arc::new(Shared {
                address: listener.local_addr(),
                config,
                hosts,
                door,
                routes: RwLock::default(),
                listener: Mutex::new(Some(listener)),
                stopped: CancellationToken::new(),
            }),
            name,
        })
    }

    /// The same listener for the transport `name`.
    pub(crate) fn for_transport(&self, name: Arc<str>) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            name,
        }
    }
}

/// One connection, from its first byte to its last, or until it is upgraded.
fn serve_connection(shared: Arc<Shared>, accepted: Accepted) -> impl Future<Output = ()> + Send {
    let routes = Arc::clone(&shared.routes.read());
    let client = Arc::new(Client {
        watch: Watch::new(&shared.config, Arc::clone(&shared.door)),
        routes,
        peer: accepted.peer,
        permit: accepted.permit,
        aside: Mutex::default(),
        waker: Mutex::new(Waker::noop().clone()),
        host: OnceLock::new(),
        upgrade: Mutex::default(),
        shared,
    });
    // Boxed, since it goes from hand to hand.
    let socket = Box::new(HttpSocket::new(
        accepted.socket,
        accepted.early,
        Arc::clone(&client),
    ));
    async move {
        let connection = pin!(connection::run(socket, Arc::clone(&client)));
        let peer = client.peer.address;
        let watch = &client.watch;
        match drive(connection, watch, &client.shared.stopped).await {
            End::Over(Ok(())) | End::Stopped => (),
            End::Over(Err(error)) => debug!(%error, %peer, "HTTP connection ended."),
            End::Late => {
                watch.count_late();
                debug!(stage = ?watch.stage(), %peer, "HTTP connection timed out.");
            }
        }
    }
}

/// What the requests of one connection have in common.
struct Client {
    watch: Watch,
    shared: Arc<Shared>,
    /// Those of the listener, without its lock, for which the requests of all connections would compete.
    routes: Arc<Routes>,
    peer: Peer,
    permit: Permit,
    /// What the service leaves for [`connection`] to do.
    aside: Mutex<Option<Aside>>,
    /// That of the connection's task, for the service, which hyper calls without one.
    waker: Mutex<Waker>,
    /// The `Host` of an earlier request, which is served: most connections have one for all their requests.
    host: OnceLock<Box<[u8]>>,
    /// Where the socket goes after the answer under way, which is a 101.
    upgrade: Mutex<Option<oneshot::Sender<Box<HttpSocket>>>>,
}

/// What hyper is not asked to do.
enum Aside {
    /// To write the answer to a plain request.
    Answered(Finished),
    /// To wait for the answer to a plain request, and to write it.
    Waits(Work),
}

impl Client {
    /// The route of a request, and who asks; or the answer to a request that no route is asked about.
    #[expect(clippy::result_large_err, reason = "the answer is sent as it is")]
    fn route(&self, request: &Request<Incoming>) -> Result<(Arc<dyn Route>, HttpPeer), Answer> {
        let refuse = |reason| self.shared.door.refused(reason);
        let has_body = !request.body().is_end_stream();
        if has_body && has_doubtful_body(request.headers()) {
            refuse(RefusedReason::BadRequest);
            let refusal = bad_request("Transfer-Encoding is chunked, once, or not there.");
            return Err(closing(refused(&refusal)));
        }
        if !self.has_known_host(request) {
            match self.shared.hosts.check(request.uri(), request.headers()) {
                Ok(host) => drop(self.host.set(host.as_bytes().into())),
                Err(answer) => {
                    refuse(RefusedReason::Host);
                    return Err(answer);
                }
            }
        }
        if has_body && has_coded_body(request.headers()) {
            refuse(RefusedReason::BadRequest);
            return Err(answer::coded());
        }
        let Some(route) = self.routes.get(request.uri().path()) else {
            refuse(RefusedReason::NotFound);
            let refusal = bad_request("There is nothing at this path.");
            return Err(refused_as(StatusCode::NOT_FOUND, &refusal));
        };
        let peer = HttpPeer::of(&self.peer, &self.permit, request.headers());
        Ok((Arc::clone(route), peer))
    }

    /// Whether the one `Host` is the one that was found to be served, and the target names none.
    fn has_known_host(&self, request: &Request<Incoming>) -> bool {
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let (Some(host), None, Some(known)) = (hosts.next(), hosts.next(), self.host.get()) else {
            return false;
        };
        host.as_bytes() == &**known && request.uri().authority().is_none()
    }
}

/// What hyper gives requests to.
struct Answers(Arc<Client>);

impl Service<Request<Incoming>> for Answers {
    type Response = Answer;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, mut request: Request<Incoming>) -> Answering {
        let client = &self.0;
        let all_written = client.watch.handling();
        // In the place of hyper's own promise. To keep that one, hyper wants to run the connection to its end, and does
        // not end it in good order where nothing came of the upgrade.
        let upgrade = request.extensions_mut().remove::<OnUpgrade>().map(|_| {
            let (give, take) = oneshot::channel();
            let promised = PromisedSocket(Arc::new(Mutex::new(Some(take))));
            request.extensions_mut().insert(promised);
            give
        });
        let is_plain = all_written && upgrade.is_none() && connection::is_plain(&request);
        let has_body = !request.body().is_end_stream();
        // Browsers may ask anybody with OPTIONS: that proves nothing.
        let asks = request.method() != Method::OPTIONS;
        let is_tunnel = names_websocket(request.headers());
        let mut work = match client.route(&request) {
            Err(answer) => {
                let finished = Finished::of(answer.into(), asks, is_tunnel);
                return Answering {
                    client: Arc::clone(client),
                    answer: Promised::Now(Some(finished)),
                    has_body,
                    upgrade,
                };
            }
            Ok((route, peer)) => Work {
                asks,
                is_tunnel,
                answer: route.answer(request, peer),
            },
        };
        let answer = if is_plain {
            // Begun here, so that it lets go of the head before hyper looks for more bytes: then those have room in the
            // buffer that is there.
            let waker = client.waker.lock().clone();
            let begun = work.poll(&mut Context::from_waker(&waker));
            *client.aside.lock() = Some(match begun {
                Poll::Ready(answer) => Aside::Answered(answer),
                Poll::Pending => Aside::Waits(work),
            });
            Promised::Elsewhere
        } else {
            Promised::Later(work)
        };
        Answering {
            client: Arc::clone(client),
            answer,
            has_body,
            upgrade,
        }
    }
}

/// A route at work on one request.
struct Work {
    asks: bool,
    is_tunnel: bool,
    answer: Coming,
}

impl Work {
    /// The answer as it is sent. What a panic may have left half done is dropped with the work.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Finished> {
        let answer = match catch_unwind(AssertUnwindSafe(|| self.answer.as_mut().poll(cx))) {
            Ok(answer) => ready!(answer),
            Err(_panic) => {
                // The panic hook has told what and where.
                error!("A route panicked; its request is answered with internal.");
                refused(&Refusal::new(
                    ErrorCode::Internal,
                    "A fault of the server; it has been logged.",
                ))
                .into()
            }
        };
        Poll::Ready(Finished::of(answer, self.asks, self.is_tunnel))
    }
}

/// An answer with what every answer has.
struct Finished {
    answer: Outgoing,
    /// The client has shown that it knows what it is doing.
    good: bool,
}

impl Finished {
    /// `asks`: the request was for more than a permission; `is_tunnel`: it was for what a proxy may take for a tunnel.
    fn of(mut answer: Outgoing, asks: bool, is_tunnel: bool) -> Self {
        if let Outgoing::Answer(answer) = &mut answer {
            answer::not_stored(answer);
        }
        let good = asks && answer.status().is_success();
        // Where nothing came of a WebSocket nothing follows: a proxy that did not look at the answer would take what
        // follows for WebSocket, and pass on requests that it has not judged.
        if is_tunnel && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            answer = closing(answer.into()).into();
        }
        Self { answer, good }
    }

    /// The answer, which is written from now on.
    fn begin(self, watch: &Watch) -> Outgoing {
        watch.responding(self.good);
        self.answer
    }
}

/// The answer to one request, to be written by hyper.
struct Answering {
    client: Arc<Client>,
    answer: Promised,
    /// Whether the request has a body, which its route may leave unread.
    has_body: bool,
    /// Where the socket goes after a 101, if the request asks for an upgrade.
    upgrade: Option<oneshot::Sender<Box<HttpSocket>>>,
}

enum Promised {
    Now(Option<Finished>),
    Later(Work),
    /// By [`connection`], which takes hyper's connection apart.
    Elsewhere,
}

impl Future for Answering {
    type Output = Result<Answer, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self {
            client,
            answer,
            has_body,
            upgrade,
        } = &mut *self;
        let finished = match answer {
            Promised::Now(finished) => finished.take().expect("not polled again after its answer"),
            Promised::Later(work) => {
                let finished = ready!(work.poll(cx));
                if *has_body {
                    // A body that the route has not read to its end was dropped with it. Asked once more, hyper looks
                    // for the rest first: if it is not all there, it closes the connection, and has to say so in the
                    // answer.
                    *answer = Promised::Now(Some(finished));
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                finished
            }
            Promised::Elsewhere => return Poll::Pending,
        };
        if finished.answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            *client.upgrade.lock() = upgrade.take();
        }
        Poll::Ready(Ok(finished.begin(&client.watch).into()))
    }
}

/// Whether two readers of a request could disagree on where its body ends. hyper takes any list of codings that ends
/// in `chunked`, and closes the connection where there is a length too.
fn has_doubtful_body(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => false,
        (Some(coding), None) => !coding.as_bytes().eq_ignore_ascii_case(b"chunked"),
        (Some(_), Some(_)) => true,
    }
}

/// Whether a body says that it is compressed, or otherwise not what it seems: taken for what it is not, it would be
/// called bad JSON.
fn has_coded_body(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .flat_map(|line| line.as_bytes().split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .any(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"))
}

/// Whether a request asks for WebSocket, be it on a path that has one or on another.
fn names_websocket(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::UPGRADE)
        .iter()
        .flat_map(|line| line.as_bytes().split(|&byte| byte == b','))
        .filter_map(|protocol| protocol.split(|&byte| byte == b'/').next())
        .any(|name| name.trim_ascii().eq_ignore_ascii_case(b"websocket"))
}

/// What is kept per bind, so that transports find the listener that is there.
#[derive(Default)]
pub(crate) struct Binds(Mutex<HashMap<SocketAddr, HttpListener>>);

impl Binds {
    /// The listener of `config.bind`, bound if nobody did before. Port 0, written twice, is one port.
    pub(crate) fn listener(
        &self,
        name: &Arc<str>,
        config: &Arc<ListenerConfig>,
        bind: impl FnOnce() -> io::Result<HttpListener>,
    ) -> io::Result<HttpListener> {
        match self.0.lock().entry(config.bind) {
            Entry::Occupied(there) => Ok(there.get().for_transport(Arc::clone(name))),
            Entry::Vacant(free) => Ok(free.insert(bind()?).clone()),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
