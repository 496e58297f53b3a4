//! Listening sockets and the one accept loop that every transport uses.
//!
//! What it guarantees: a socket that fails costs itself alone; running out of descriptors pauses accepting and neither
//! spins nor ends it nor delays a drain; the caps on connections hold before a byte is read or answered; a peer that is
//! slow to say who it is, or to shake hands, stalls nobody; what is counted for a connection is given back when its
//! [`Permit`] goes.
//!
//! What is deliberately absent: anything about the bytes that follow.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use chinwag_core::{
    Hub, Lifecycle, Peer, RefusedReason, TransportMetrics, address_key,
    clock::{self, Instant},
};
use parking_lot::Mutex;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{
    ClientAddress, ListenerConfig, Stream, Tls, address,
    proxy::{self, ProxyError},
    tls::{Alpn, Remote},
};

/// Connections that the kernel finishes and holds for us. The system may have a smaller limit of its own.
const BACKLOG: i32 = 4096;
/// How long accepting rests when the system has no descriptor or no memory left.
const PAUSE: Duration = Duration::from_millis(100);
/// What the kernel may hold for a reader that has stopped; it reserves twice as much for its own books.
const SEND_BUFFER: usize = 96 << 10;
/// What the kernel may hold of a writer that we do not read; likewise.
const RECEIVE_BUFFER: usize = 128 << 10;
/// Bytes not yet sent over which a socket is not writable: the rest waits where it is counted, in our own queues.
const UNSENT: u32 = 16 << 10;
/// How long bytes may stay unacknowledged, or a reader's window shut, before the kernel gives the connection up.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// How much more than `slow_after` that has to be: a slow reader is told so, a vanished one need not be.
const AFTER_SLOW: Duration = Duration::from_secs(5);

/// A connection that passed the caps, with the client's address known.
#[derive(Debug)]
#[non_exhaustive]
pub struct Accepted {
    /// The socket, non-blocking, with `TCP_NODELAY`, keep-alive and small buffers; where the listener has `tls`, with
    /// the handshake done.
    pub socket: Stream,
    /// Bytes of the client's that were read together with a PROXY header: to be taken before those of `socket`. None
    /// where there is TLS.
    pub early: Bytes,
    /// The client.
    pub peer: Peer,
    /// Counts the connection until its last clone is dropped: hold it for as long as the socket.
    pub permit: Permit,
    /// When the connection was accepted.
    pub at: Instant,
}

/// A bound socket that nothing is accepted from yet. [`BindContext::stream`](crate::BindContext::stream) makes it.
pub struct StreamListener {
    socket: TcpListener,
    address: SocketAddr,
    gate: Arc<Gate>,
    lifecycle: Lifecycle,
    episode: Episode,
}

impl fmt::Debug for StreamListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamListener")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl StreamListener {
    /// Takes the address of `config`. Accepts nothing.
    pub(crate) fn bind(
        config: Arc<ListenerConfig>,
        secure: Option<Secure>,
        door: Arc<dyn Door>,
        lifecycle: Lifecycle,
    ) -> io::Result<Self> {
        let socket = listen(config.bind)?;
        let address = socket.local_addr()?;
        Ok(Self {
            socket,
            address,
            gate: Arc::new(Gate::new(config, secure, door)),
            lifecycle,
            episode: Episode::default(),
        })
    }

    /// The address taken; where the file says port 0, the port the system chose.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Accepts until the lifecycle drains, then closes the listening socket.
    ///
    /// Each connection is given to `on` in a task of its own on the lifecycle, which outlives this call. Connections
    /// over a cap are closed without a byte and counted. A panic in `on` costs its connection.
    pub async fn serve<F, Fut>(self, on: F)
    where
        F: Fn(Accepted) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let lifecycle = self.lifecycle.clone();
        self.serve_until(lifecycle.draining(), CancellationToken::new(), on)
            .await;
    }

    /// Accepts until `stop`, then cancels `stopped`, which also happens if this call is dropped.
    pub(crate) async fn serve_until<F, Fut>(
        mut self,
        stop: impl Future<Output = ()>,
        stopped: CancellationToken,
        on: F,
    ) where
        F: Fn(Accepted) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let on = Arc::new(on);
        let _stopped = stopped.clone().drop_guard();
        tokio::pin!(stop);
        loop {
            let (socket, from) = tokio::select! {
                biased;
                () = &mut stop => return,
                accepted = self.accept() => accepted,
            };
            let at = clock::now();
            let Some(arrival) = self.gate.admit(from.ip()) else {
                continue;
            };
            if let Err(error) = keep_in_shape(&socket, self.gate.unacknowledged) {
                // The peer has gone already; whoever reads the socket finds out.
                debug!(%error, peer = %from, "Socket options failed.");
            }
            let on = Arc::clone(&on);
            match arrival {
                Arrival::Direct { peer, permit } if self.gate.secure.is_none() => {
                    let accepted = Accepted {
                        socket: socket.into(),
                        early: Bytes::new(),
                        peer,
                        permit,
                        at,
                    };
                    // Called in the task, so that a panic of its own stays there too.
                    self.lifecycle.spawn(async move { on(accepted).await });
                }
                arrival => {
                    let (gate, stopped) = (Arc::clone(&self.gate), stopped.clone());
                    // Boxed: it is over soon, and the room it took would be kept for as long as the connection lasts.
                    let received = Box::pin(async move {
                        tokio::select! {
                            received = gate.receive(socket, from, arrival, at) => received,
                            () = stopped.cancelled() => None,
                        }
                    });
                    self.lifecycle.spawn(async move {
                        if let Some(accepted) = received.await {
                            on(accepted).await;
                        }
                    });
                }
            }
        }
    }

    /// The next connection. Never fails: a connection that died in the queue is passed over, and where the system is
    /// short of something, the wait is part of this future, so that a drain can interrupt it. Cancel safe.
    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.socket.accept().await {
                Ok(accepted) => {
                    self.episode.end(&self.address);
                    return accepted;
                }
                Err(error) => {
                    let door = &self.gate.door;
                    self.episode.endure(&error, door, &self.address).await;
                }
            }
        }
    }
}

/// Failures to accept, one after another: an episode is logged once.
#[derive(Debug, Default)]
pub(crate) struct Episode {
    lasts: bool,
}

impl Episode {
    /// Accepting has failed: where the system is short of something, this is counted and waited for.
    pub(crate) async fn endure(
        &mut self,
        error: &io::Error,
        door: &Arc<dyn Door>,
        listener: &impl fmt::Display,
    ) {
        if is_of_one_socket(error) {
            debug!(%error, "A connection ended before it was accepted.");
            return;
        }
        door.refused(RefusedReason::Descriptors);
        if !std::mem::replace(&mut self.lasts, true) {
            warn!(%error, %listener, "Accept failed; pausing.");
        }
        tokio::time::sleep(PAUSE).await;
    }

    /// Accepting has worked.
    pub(crate) fn end(&mut self, listener: &impl fmt::Display) {
        if std::mem::take(&mut self.lasts) {
            info!(%listener, "Accepting again.");
        }
    }
}

/// Errors of `accept` that speak of one connection and not of the listener.
fn is_of_one_socket(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// A listening socket. The buffer sizes are set here because accepted sockets inherit them, and because the window
/// that a peer is offered follows from the size at the handshake.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // Elsewhere the option means that two programs may share a port.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Frames leave at once, a stalled reader holds little, and a peer that vanished is noticed by the kernel.
#[cfg_attr(
    not(target_os = "linux"),
    expect(unused_variables, reason = "there is no such option")
)]
fn keep_in_shape(socket: &TcpStream, unacknowledged: Duration) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    let keep_alive = TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10));
    #[cfg(unix)]
    let keep_alive = keep_alive.with_retries(3);
    socket.set_tcp_keepalive(&keep_alive)?;
    #[cfg(target_os = "linux")]
    {
        socket.set_tcp_notsent_lowat(UNSENT)?;
        socket.set_tcp_user_timeout(Some(unacknowledged))?;
    }
    Ok(())
}

/// What the accept loop asks of the server behind it.
#[async_trait]
pub(crate) trait Door: Send + Sync + 'static {
    /// `connects_per_ip`.
    ///
    /// # Errors
    /// The time after which the peer may come back.
    fn admit(&self, peer: &Peer) -> Result<(), Duration>;
    /// `slow_after`.
    fn slow_after(&self) -> Duration;
    /// A connection, or a request, was turned away.
    fn refused(&self, reason: RefusedReason);
    /// A connection passed the caps.
    fn opened(&self);
    /// A connection that had been opened is over.
    fn closed(&self);
    /// Bytes came from a client.
    #[cfg(feature = "http")]
    fn received(&self, bytes: usize);
    /// Waits until a drain is over and nobody has to be answered any more.
    #[cfg(feature = "http")]
    async fn drained(&self);
}

/// The door of a real server.
pub(crate) struct HubDoor {
    pub(crate) hub: Hub,
    pub(crate) metrics: Arc<TransportMetrics>,
}

#[async_trait]
impl Door for HubDoor {
    fn admit(&self, peer: &Peer) -> Result<(), Duration> {
        self.hub.admit(peer)
    }

    fn slow_after(&self) -> Duration {
        self.hub.limits().slow_after.0
    }

    fn refused(&self, reason: RefusedReason) {
        self.metrics.refused(reason);
    }

    fn opened(&self) {
        self.metrics.accepted.increment(1);
        self.metrics.open.increment(1.0);
    }

    fn closed(&self) {
        self.metrics.open.decrement(1.0);
    }

    #[cfg(feature = "http")]
    fn received(&self, bytes: usize) {
        self.metrics.bytes_in.increment(bytes as u64);
    }

    #[cfg(feature = "http")]
    async fn drained(&self) {
        self.hub.drained().await;
    }
}

/// What the connections of a listener shake hands by.
pub(crate) struct Secure {
    pub(crate) tls: Arc<Tls>,
    pub(crate) alpn: Alpn,
}

/// The caps of one listener and what is counted against them.
pub(crate) struct Gate {
    config: Arc<ListenerConfig>,
    /// `None`: plain text.
    secure: Option<Secure>,
    door: Arc<dyn Door>,
    unacknowledged: Duration,
    connections: AtomicUsize,
    /// Never more entries than connections: one is removed with its last connection.
    per_address: Mutex<HashMap<IpAddr, usize>>,
}

/// A connection that may be listened to.
enum Arrival {
    /// The client is the peer.
    Direct { peer: Peer, permit: Permit },
    /// The client's address is in a header to come.
    Announced { peer: IpAddr, seat: Seat },
}

/// What a connection holds until its client is known.
enum Seat {
    /// It comes by way of a proxy: the client, still unknown, is judged later.
    Proxied(Total),
    /// No proxy may name another: the peer is the client, and was judged.
    Own(Permit),
}

impl Gate {
    pub(crate) fn new(
        config: Arc<ListenerConfig>,
        secure: Option<Secure>,
        door: Arc<dyn Door>,
    ) -> Self {
        Self {
            unacknowledged: UNACKNOWLEDGED.max(door.slow_after() + AFTER_SLOW),
            config,
            secure,
            door,
            connections: AtomicUsize::new(0),
            per_address: Mutex::default(),
        }
    }

    #[cfg(feature = "http")]
    pub(crate) fn config(&self) -> &ListenerConfig {
        &self.config
    }

    pub(crate) fn door(&self) -> &Arc<dyn Door> {
        &self.door
    }

    /// The caps that can be judged before a byte was read. `None`: refused, counted, and to be closed.
    fn admit(self: &Arc<Self>, from: IpAddr) -> Option<Arrival> {
        let from = from.to_canonical();
        let total = Total::take(self)?;
        match self.config.client_address {
            ClientAddress::ProxyProtocol => {
                // A stranger must not hold connections that count against nobody.
                let seat = if self.config.trusts(from) {
                    Seat::Proxied(total)
                } else {
                    Seat::Own(self.admit_client(&address::direct(from), total)?)
                };
                Some(Arrival::Announced { peer: from, seat })
            }
            // A proxy's connection carries many clients, each request with its own.
            ClientAddress::XForwardedFor if self.config.trusts(from) => {
                let peer = address::direct(from);
                let permit = Permit::new(total, None);
                Some(Arrival::Direct { peer, permit })
            }
            ClientAddress::Peer | ClientAddress::XForwardedFor => {
                let peer = address::direct(from);
                let permit = self.admit_client(&peer, total)?;
                Some(Arrival::Direct { peer, permit })
            }
        }
    }

    /// The caps, for a client whose address is known from the start.
    pub(crate) fn admit_known(self: &Arc<Self>, peer: &Peer) -> Option<Permit> {
        self.admit_client(peer, Total::take(self)?)
    }

    /// The caps of a client whose address is known.
    fn admit_client(self: &Arc<Self>, peer: &Peer, total: Total) -> Option<Permit> {
        let place = Place::take(self, peer)?;
        if self.door.admit(peer).is_err() {
            self.door.refused(RefusedReason::ConnectRate);
            return None;
        }
        Some(Permit::new(total, place))
    }

    /// Does what has to be done before the client's own bytes come: a PROXY header, then the handshake. `None`: the
    /// connection is over, which was counted.
    async fn receive(
        self: &Arc<Self>,
        mut socket: TcpStream,
        from: SocketAddr,
        arrival: Arrival,
        at: Instant,
    ) -> Option<Accepted> {
        let (mut peer, permit, early) = match arrival {
            Arrival::Direct { peer, permit } => (peer, permit, Bytes::new()),
            Arrival::Announced { peer, seat } => {
                self.introduce(&mut socket, peer, seat, at).await?
            }
        };
        let (socket, early) = match &self.secure {
            None => (socket.into(), early),
            Some(Secure { tls, alpn }) => {
                let is_other = peer.address != from.ip().to_canonical();
                let remote = Remote {
                    address: from,
                    client: is_other.then_some(peer.address),
                };
                let (stream, link) = Stream::shake_hands(socket, early, tls, *alpn, remote).await?;
                peer.tls = Some(Arc::new(link));
                (stream, Bytes::new())
            }
        };
        Some(Accepted {
            socket,
            early,
            peer,
            permit,
            at,
        })
    }

    /// Learns from the first bytes who the client is that came by way of `peer`. Those beyond the header are given back.
    async fn introduce(
        self: &Arc<Self>,
        socket: &mut TcpStream,
        peer: IpAddr,
        seat: Seat,
        at: Instant,
    ) -> Option<(Peer, Permit, Bytes)> {
        let deadline = at + self.config.first_byte_timeout.0;
        let read = match proxy::read(socket, self.config.trusts(peer), deadline).await {
            Ok(read) => read,
            Err(error) => {
                debug!(%error, %peer, "Connection refused.");
                self.door.refused(match error {
                    ProxyError::Missing | ProxyError::Stranger => RefusedReason::Proxy,
                    ProxyError::Late | ProxyError::Gone => RefusedReason::FirstByteTimeout,
                });
                return None;
            }
        };
        let peer = read
            .client
            .map_or_else(|| address::direct(peer), address::named);
        let permit = match seat {
            Seat::Own(permit) => permit,
            Seat::Proxied(total) => self.admit_client(&peer, total)?,
        };
        Some((peer, permit, read.early))
    }
}

/// The right to an open connection: counts against `max_connections`, against `max_connections_per_ip` and in the
/// gauge of open connections, until the last clone is dropped.
#[derive(Clone)]
pub struct Permit {
    #[cfg_attr(
        not(feature = "http"),
        expect(dead_code, reason = "held for its drop alone")
    )]
    total: Arc<Total>,
    /// Held for its drop alone; none where the client is exempt or not known yet.
    _place: Option<Arc<Place>>,
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").finish_non_exhaustive()
    }
}

impl Permit {
    fn new(mut total: Total, place: Option<Place>) -> Self {
        total.open();
        Self {
            total: Arc::new(total),
            _place: place.map(Arc::new),
        }
    }

    /// The same right, which counts against `peer` from now on. `None`: `peer` has too many; refused and counted.
    #[cfg(feature = "http")]
    pub(crate) fn count_for(&self, peer: &Peer) -> Option<Self> {
        let place = Place::take(&self.total.gate, peer)?;
        Some(Self {
            total: Arc::clone(&self.total),
            _place: place.map(Arc::new),
        })
    }

    #[cfg(feature = "http")]
    pub(crate) fn gate(&self) -> &Arc<Gate> {
        &self.total.gate
    }
}

/// One of `max_connections`.
struct Total {
    gate: Arc<Gate>,
    /// Whether the connection passed the other caps too and is in the gauge.
    opened: bool,
}

impl Total {
    fn take(gate: &Arc<Gate>) -> Option<Self> {
        let most = gate.config.max_connections;
        let taken = gate
            .connections
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| {
                (open < most).then_some(open + 1)
            });
        if taken.is_err() {
            gate.door.refused(RefusedReason::TooManyConnections);
            return None;
        }
        Some(Self {
            gate: Arc::clone(gate),
            opened: false,
        })
    }

    fn open(&mut self) {
        self.opened = true;
        self.gate.door.opened();
    }
}

impl Drop for Total {
    fn drop(&mut self) {
        self.gate.connections.fetch_sub(1, Ordering::Relaxed);
        if self.opened {
            self.gate.door.closed();
        }
    }
}

/// One of `max_connections_per_ip`.
struct Place {
    gate: Arc<Gate>,
    bucket: IpAddr,
}

impl Place {
    /// `None`: `peer` has too many. `Some(None)`: it is exempt and not counted.
    #[expect(
        clippy::option_option,
        reason = "refused and not counted are two things"
    )]
    fn take(gate: &Arc<Gate>, peer: &Peer) -> Option<Option<Self>> {
        if peer.exempt {
            return Some(None);
        }
        let bucket = address_key(peer.address);
        let mut per_address = gate.per_address.lock();
        let open = per_address.entry(bucket).or_default();
        if *open >= gate.config.max_connections_per_ip {
            drop(per_address);
            gate.door.refused(RefusedReason::TooManyPerAddress);
            return None;
        }
        *open += 1;
        Some(Some(Self {
            gate: Arc::clone(gate),
            bucket,
        }))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut per_address = self.gate.per_address.lock();
        if let Entry::Occupied(mut entry) = per_address.entry(self.bucket) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Weak;

    use serde_json::json;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::{mpsc, watch},
    };

    use super::*;
    use crate::config::tests::listener;

    /// A door that keeps a record, and that tests can wait on.
    #[cfg_attr(
        not(feature = "http"),
        allow(dead_code, reason = "HTTP's tests look at all of it")
    )]
    pub(crate) struct Record {
        seen: watch::Sender<Seen>,
        drained: CancellationToken,
    }

    #[derive(Debug, Clone, Default)]
    #[cfg_attr(
        not(feature = "http"),
        allow(dead_code, reason = "HTTP's tests look at all of it")
    )]
    pub(crate) struct Seen {
        pub(crate) accepted: usize,
        pub(crate) open: usize,
        pub(crate) received: usize,
        pub(crate) refused: Vec<RefusedReason>,
        pub(crate) asked: Vec<Peer>,
        pub(crate) closed_to_all: bool,
    }

    impl Record {
        pub(crate) fn new() -> Arc<Self> {
            Arc::new(Self {
                seen: watch::Sender::new(Seen::default()),
                drained: CancellationToken::new(),
            })
        }

        pub(crate) fn seen(&self) -> Seen {
            self.seen.borrow().clone()
        }

        /// Waits for what the server does in its own time.
        pub(crate) async fn until(&self, condition: impl FnMut(&Seen) -> bool) -> Seen {
            let mut seen = self.seen.subscribe();
            seen.wait_for(condition).await.unwrap().clone()
        }

        pub(crate) fn admit_nobody(&self) {
            self.seen.send_modify(|seen| seen.closed_to_all = true);
        }

        #[cfg(feature = "http")]
        pub(crate) fn drain(&self) {
            self.drained.cancel();
        }
    }

    #[async_trait]
    impl Door for Record {
        fn admit(&self, peer: &Peer) -> Result<(), Duration> {
            self.seen.send_modify(|seen| seen.asked.push(peer.clone()));
            if self.seen().closed_to_all {
                Err(Duration::from_millis(1500))
            } else {
                Ok(())
            }
        }

        fn slow_after(&self) -> Duration {
            Duration::from_secs(40)
        }

        fn refused(&self, reason: RefusedReason) {
            self.seen.send_modify(|seen| seen.refused.push(reason));
        }

        fn opened(&self) {
            self.seen.send_modify(|seen| {
                seen.accepted += 1;
                seen.open += 1;
            });
        }

        fn closed(&self) {
            self.seen.send_modify(|seen| seen.open -= 1);
        }

        #[cfg(feature = "http")]
        fn received(&self, bytes: usize) {
            self.seen.send_modify(|seen| seen.received += bytes);
        }

        #[cfg(feature = "http")]
        async fn drained(&self) {
            self.drained.cancelled().await;
        }
    }

    struct Server {
        address: SocketAddr,
        record: Arc<Record>,
        lifecycle: Lifecycle,
        gate: Weak<Gate>,
        accepted: mpsc::Receiver<Accepted>,
    }

    impl Server {
        /// Hands every accepted connection to the test.
        fn start(config: &serde_json::Value) -> Self {
            let record = Record::new();
            let lifecycle = Lifecycle::new();
            let door: Arc<dyn Door> = record.clone();
            let listener =
                StreamListener::bind(Arc::new(listener(config)), None, door, lifecycle.clone())
                    .unwrap();
            let address = listener.local_addr();
            let gate = Arc::downgrade(&listener.gate);
            let (hand, accepted) = mpsc::channel(16);
            lifecycle.spawn(listener.serve(move |accepted| {
                let hand = hand.clone();
                async move { hand.send(accepted).await.unwrap() }
            }));
            Self {
                address,
                record,
                lifecycle,
                gate,
                accepted,
            }
        }

        async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.address).await.unwrap()
        }

        async fn connect_saying(&self, bytes: &[u8]) -> TcpStream {
            let mut client = self.connect().await;
            client.write_all(bytes).await.unwrap();
            client
        }

        async fn accepted(&mut self) -> Accepted {
            self.accepted.recv().await.unwrap()
        }

        fn addresses_counted(&self) -> usize {
            let gate = self.gate.upgrade().unwrap();
            gate.per_address.lock().len()
        }
    }

    /// Whether the server closed without a word. A reset is a close too: what the client had sent was not read.
    async fn is_closed(client: &mut TcpStream) -> bool {
        let mut byte = [0];
        match client.read(&mut byte).await {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    const FROM_CLIENT: &[u8] = b"PROXY TCP4 203.0.113.7 192.0.2.1 1 2\r\n";
    const FROM_OTHER: &[u8] = b"PROXY TCP4 203.0.113.8 192.0.2.1 1 2\r\n";

    fn behind_proxy(mut extra: serde_json::Value) -> serde_json::Value {
        extra["client_address"] = json!("proxy-protocol");
        extra["proxies"] = json!(["127.0.0.1"]);
        extra
    }

    #[tokio::test]
    async fn a_connection_counts_until_its_permit_goes() {
        let mut server = Server::start(&json!({ "max_connections": 1 }));
        let _first = server.connect().await;
        let first = server.accepted().await;
        assert!(first.peer.exempt, "loopback that no proxy named");
        assert_eq!(server.record.seen().open, 1);

        let mut second = server.connect().await;
        assert!(is_closed(&mut second).await);
        let seen = server.record.seen();
        assert_eq!(seen.refused, [RefusedReason::TooManyConnections]);
        assert_eq!((seen.accepted, seen.open), (1, 1));

        let kept = first.permit.clone();
        drop(first);
        assert_eq!(server.record.seen().open, 1, "a clone holds it");
        drop(kept);
        assert_eq!(server.record.seen().open, 0);
        let _third = server.connect().await;
        server.accepted().await;
    }

    #[tokio::test]
    async fn an_address_has_its_own_cap() {
        let mut server = Server::start(&behind_proxy(json!({ "max_connections_per_ip": 1 })));
        let _client = server.connect_saying(FROM_CLIENT).await;
        let held = server.accepted().await;
        assert!(!held.peer.exempt);
        assert_eq!(held.peer.address.to_string(), "203.0.113.7");

        let mut again = server.connect_saying(FROM_CLIENT).await;
        assert!(is_closed(&mut again).await);
        let _other = server.connect_saying(FROM_OTHER).await;
        let other = server.accepted().await;
        assert_eq!(other.peer.address.to_string(), "203.0.113.8");
        let seen = server.record.seen();
        assert_eq!(seen.refused, [RefusedReason::TooManyPerAddress]);
        assert_eq!((seen.accepted, seen.open), (2, 2));

        drop((held, other));
        assert_eq!(
            server.addresses_counted(),
            0,
            "nothing is kept of who has gone"
        );
        let _client = server.connect_saying(FROM_CLIENT).await;
        server.accepted().await;
    }

    #[tokio::test]
    async fn one_customer_of_ipv6_is_one_address() {
        let mut server = Server::start(&behind_proxy(json!({ "max_connections_per_ip": 1 })));
        let line = |host| format!("PROXY TCP6 2001:db8:1:2::{host} 2001:db8::1 1 2\r\n");
        let _client = server.connect_saying(line(1).as_bytes()).await;
        let _held = server.accepted().await;
        let mut neighbour = server.connect_saying(line(2).as_bytes()).await;
        assert!(is_closed(&mut neighbour).await);
    }

    #[tokio::test]
    async fn who_comes_too_often_is_closed_without_a_byte() {
        let server = Server::start(&json!({}));
        server.record.admit_nobody();
        let mut client = server.connect().await;
        assert!(is_closed(&mut client).await);
        let seen = server.record.seen();
        assert_eq!(seen.refused, [RefusedReason::ConnectRate]);
        assert_eq!((seen.accepted, seen.open), (0, 0));
        assert_eq!(seen.asked.len(), 1);
    }

    #[tokio::test]
    async fn a_slow_header_stalls_nobody() {
        let mut server = Server::start(&behind_proxy(json!({})));
        let mut slow = server.connect_saying(b"PROXY TCP4 203").await;
        let _quick = server.connect_saying(FROM_OTHER).await;
        let quick = server.accepted().await;
        assert_eq!(quick.peer.address.to_string(), "203.0.113.8");
        slow.write_all(b".0.113.7 192.0.2.1 1 2\r\n{}\n")
            .await
            .unwrap();
        let slow = server.accepted().await;
        assert_eq!(slow.peer.address.to_string(), "203.0.113.7");
        assert_eq!(slow.early, "{}\n", "what follows the header is not lost");
    }

    #[tokio::test]
    async fn a_header_is_required_of_proxies_and_refused_from_others() {
        let server = Server::start(&behind_proxy(json!({})));
        let mut bare = server.connect_saying(b"{\"type\":\"login\"}\n").await;
        assert!(is_closed(&mut bare).await);
        assert_eq!(server.record.seen().refused, [RefusedReason::Proxy]);
        assert_eq!(server.record.seen().accepted, 0);

        let config = json!({ "client_address": "proxy-protocol", "proxies": ["192.0.2.0/24"] });
        let mut server = Server::start(&config);
        let mut liar = server.connect_saying(FROM_CLIENT).await;
        assert!(is_closed(&mut liar).await);
        assert_eq!(server.record.seen().refused, [RefusedReason::Proxy]);
        let _direct = server.connect_saying(b"{}\n").await;
        let direct = server.accepted().await;
        assert_eq!(direct.early, "{}\n");
        assert!(direct.peer.exempt);
    }

    #[tokio::test]
    async fn a_stranger_beside_the_proxies_is_judged_before_it_speaks() {
        let config = json!({ "client_address": "proxy-protocol", "proxies": ["192.0.2.0/24"] });
        let server = Server::start(&config);
        server
            .record
            .seen
            .send_modify(|seen| seen.closed_to_all = true);
        let mut silent = server.connect().await;
        assert!(is_closed(&mut silent).await, "without a byte of its own");
        assert_eq!(server.record.seen().refused, [RefusedReason::ConnectRate]);
    }

    #[tokio::test]
    async fn a_proxy_that_speaks_for_itself_is_the_client() {
        let mut server = Server::start(&behind_proxy(json!({})));
        let _health = server.connect_saying(b"PROXY UNKNOWN\r\n").await;
        let health = server.accepted().await;
        assert!(health.peer.address.is_loopback());
        assert!(health.peer.exempt);
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_that_does_not_come_ends_the_connection() {
        let server = Server::start(&behind_proxy(json!({ "first_byte_timeout": "3s" })));
        let begun = clock::now();
        let mut silent = server.connect().await;
        assert!(is_closed(&mut silent).await);
        assert_eq!(begun.elapsed(), Duration::from_secs(3));
        assert_eq!(
            server.record.seen().refused,
            [RefusedReason::FirstByteTimeout]
        );
    }

    #[tokio::test]
    async fn a_drain_closes_the_listener_and_what_has_not_said_who_it_is() {
        let mut server = Server::start(&behind_proxy(json!({})));
        let mut slow = server.connect_saying(b"PROXY").await;
        let mut client = server.connect_saying(FROM_CLIENT).await;
        let mut held = server.accepted().await;
        server.lifecycle.drain();
        assert!(is_closed(&mut slow).await);
        assert_eq!(
            TcpStream::connect(server.address).await.unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
        // Connections outlive the listener.
        held.socket.write_all(b"x").await.unwrap();
        assert!(!is_closed(&mut client).await);
        assert_eq!(server.lifecycle.shut_down(Duration::from_secs(10)).await, 0);
    }

    #[tokio::test]
    async fn a_panic_costs_one_connection() {
        let record = Record::new();
        let lifecycle = Lifecycle::new();
        let door: Arc<dyn Door> = record.clone();
        let listener = StreamListener::bind(
            Arc::new(listener(&json!({}))),
            None,
            door,
            lifecycle.clone(),
        )
        .unwrap();
        let address = listener.local_addr();
        let (hand, mut accepted) = mpsc::channel(1);
        lifecycle.spawn(listener.serve(move |mut connection| {
            let hand = hand.clone();
            async move {
                let said = connection.socket.read_u8().await.unwrap();
                assert_ne!(said, b'!', "this panic is part of the test");
                hand.send(connection).await.unwrap();
            }
        }));
        let mut bad = TcpStream::connect(address).await.unwrap();
        bad.write_all(b"!").await.unwrap();
        assert!(is_closed(&mut bad).await);
        record
            .until(|seen| seen.accepted == 1 && seen.open == 0)
            .await;
        let mut good = TcpStream::connect(address).await.unwrap();
        good.write_all(b"?").await.unwrap();
        assert!(accepted.recv().await.is_some());
    }

    #[tokio::test]
    async fn sockets_are_kept_in_shape() {
        let mut server = Server::start(&json!({}));
        let _client = server.connect().await;
        let Accepted { socket, .. } = server.accepted().await;
        let socket = socket.tcp();
        assert!(socket.nodelay().unwrap());
        let socket = SockRef::from(socket);
        assert!(socket.keepalive().unwrap());
        assert!(socket.send_buffer_size().unwrap() <= 2 * SEND_BUFFER);
        assert!(socket.recv_buffer_size().unwrap() <= 2 * RECEIVE_BUFFER);
        #[cfg(target_os = "linux")]
        {
            // The kernel never cuts a reader that is about to be told that it is slow.
            let patience = server.record.slow_after() + AFTER_SLOW;
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(patience));
            assert_eq!(socket.tcp_notsent_lowat().unwrap(), UNSENT);
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        }
    }

    #[test]
    fn only_the_failure_of_one_socket_is_passed_over() {
        for (code, one) in [
            (103, true),  // ECONNABORTED
            (104, true),  // ECONNRESET
            (4, true),    // EINTR
            (24, false),  // EMFILE
            (23, false),  // ENFILE
            (12, false),  // ENOMEM
            (105, false), // ENOBUFS
            (22, false),  // EINVAL
        ] {
            let error = io::Error::from_raw_os_error(code);
            assert_eq!(is_of_one_socket(&error), one, "{error}");
        }
    }
}
