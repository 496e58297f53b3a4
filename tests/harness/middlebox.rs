//! A box between browser and server that treats WebSocket as some in offices and hotels do. Plain requests pass.

use std::{
    collections::VecDeque,
    future::pending,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy, copy_bidirectional, sink},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    task::JoinSet,
};

/// What happens to one upgrade to WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Upgrade {
    /// It passes.
    Pass,
    /// The box answers by itself: 403.
    Forbid,
    /// The box closes the connection.
    Close,
    /// The box says nothing at all.
    Ignore,
    /// The 101 passes and so does what the client says first; after that nothing in either direction. The server sees
    /// an open connection until [`Middlebox::release`], whatever the client does.
    Swallow,
}

pub(crate) struct Middlebox {
    addr: SocketAddr,
    upgrades: Arc<AtomicUsize>,
    order: watch::Sender<Order>,
    cut: Arc<Notify>,
    _work: JoinSet<()>,
}

/// What a box does to the WebSockets that have passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Pass,
    Swallow,
    Release,
}

/// What every connection of a box knows.
#[derive(Clone)]
struct Office {
    server: SocketAddr,
    script: Arc<Mutex<VecDeque<Upgrade>>>,
    upgrades: Arc<AtomicUsize>,
    order: watch::Receiver<Order>,
    cut: Arc<Notify>,
}

impl Middlebox {
    /// Stands before `server`; upgrades are treated in turn as `script` says, and those after its end pass.
    pub(crate) async fn before(
        server: SocketAddr,
        script: impl IntoIterator<Item = Upgrade>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("it is bound");
        let (order, orders) = watch::channel(Order::Pass);
        let office = Office {
            server,
            script: Arc::new(Mutex::new(script.into_iter().collect())),
            upgrades: Arc::default(),
            order: orders,
            cut: Arc::default(),
        };
        let upgrades = Arc::clone(&office.upgrades);
        let cut = Arc::clone(&office.cut);
        let mut work = JoinSet::new();
        work.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(office.clone().pass(client));
            }
        });
        Self {
            addr,
            upgrades,
            order,
            cut,
            _work: work,
        }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many upgrades were asked for so far.
    pub(crate) fn upgrades(&self) -> usize {
        self.upgrades.load(Ordering::Relaxed)
    }

    /// Closes the WebSockets that pass at present.
    pub(crate) fn cut(&self) {
        self.cut.notify_waiters();
    }

    /// From now on swallows what is said over the WebSockets that it let pass.
    pub(crate) fn swallow(&self) {
        self.order.send_replace(Order::Swallow);
    }

    /// Closes the connections to the server behind swallowed WebSockets, now and from now on.
    pub(crate) fn release(&self) {
        self.order.send_replace(Order::Release);
    }
}

impl Office {
    async fn pass(self, mut client: TcpStream) {
        let Ok(mut server) = TcpStream::connect(self.server).await else {
            return;
        };
        // A browser upgrades on a connection of its own, so the first head tells what the connection is for.
        let Some(head) = head(&mut client).await else {
            return;
        };
        let upgrade = String::from_utf8_lossy(&head)
            .to_ascii_lowercase()
            .contains("\r\nupgrade: websocket\r\n");
        let fate = if upgrade {
            self.upgrades.fetch_add(1, Ordering::Relaxed);
            let mut script = self.script.lock().expect("nobody panics with it");
            script.pop_front().unwrap_or(Upgrade::Pass)
        } else {
            Upgrade::Pass
        };
        match fate {
            Upgrade::Pass => {
                if server.write_all(&head).await.is_err() {
                    return;
                }
                tokio::select! {
                    // Either end may go away in whatever way: the other one is then told by a close.
                    _ = copy_bidirectional(&mut client, &mut server) => {}
                    () = self.cut.notified(), if upgrade => {}
                    () = self.ordered(Order::Swallow), if upgrade => self.hold(client, server).await,
                }
            }
            Upgrade::Forbid => {
                let no = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                client.write_all(no.as_bytes()).await.ok();
            }
            Upgrade::Close => {}
            Upgrade::Ignore => pending().await,
            Upgrade::Swallow => {
                if self.open(&head, &mut client, &mut server).await.is_ok() {
                    self.hold(client, server).await;
                }
            }
        }
    }

    /// Passes the upgrade and what the client says first.
    async fn open(
        &self,
        request: &[u8],
        client: &mut TcpStream,
        server: &mut TcpStream,
    ) -> std::io::Result<()> {
        server.write_all(request).await?;
        let answer = head(server)
            .await
            .ok_or(std::io::ErrorKind::UnexpectedEof)?;
        client.write_all(&answer).await?;
        let mut first = vec![0; 1 << 14];
        let read = client.read(&mut first).await?;
        server.write_all(&first[..read]).await
    }

    /// Waits until the box has this order.
    async fn ordered(&self, wanted: Order) {
        let mut order = self.order.clone();
        // The sender lives as long as the box.
        order.wait_for(|order| *order == wanted).await.ok();
    }

    /// Reads both sides and passes nothing, until the server closes its side or the box lets go of it.
    async fn hold(&self, mut client: TcpStream, mut server: TcpStream) {
        let (mut client_sink, mut server_sink) = (sink(), sink());
        let lose_client = async {
            copy(&mut client, &mut client_sink).await.ok();
            drop(client);
            pending::<()>().await;
        };
        tokio::select! {
            () = lose_client => {}
            _ = copy(&mut server, &mut server_sink) => {}
            () = self.ordered(Order::Release) => {}
        }
    }
}

/// Reads up to and with the empty line that ends a head, and nothing after it.
async fn head(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
        assert!(head.len() < 1 << 16, "a head without an end");
    }
    Some(head)
}
