//! A member that does not read, over a connection whose port is known.

use std::net::SocketAddr;

use chinwag_conformance::Link;
use tokio::net::{TcpSocket, TcpStream};

use super::{Http, Over};

pub(crate) struct Sloth {
    /// Keeps the connection, as long as this is there.
    _connected: chinwag_conformance::Sloth,
    port: Option<u16>,
}

impl Sloth {
    /// Logs in, joins `room`, reads the `init` and nothing after it. Little hides in this end's kernel.
    pub(crate) async fn join(addr: SocketAddr, over: Over, name: &str, room: &str) -> Self {
        Self::join_with(addr, over, name, room, Some(4096)).await
    }

    /// The same with the system's ordinary receive buffer, or one of `buffer` bytes.
    pub(crate) async fn join_with(
        addr: SocketAddr,
        over: Over,
        name: &str,
        room: &str,
        buffer: Option<u32>,
    ) -> Self {
        let mut port = None;
        let mut dialled = async || {
            let stream = dial(addr, buffer).await;
            port = Some(stream.local_addr().expect("it is connected").port());
            stream
        };
        let link = match over {
            Over::Tcp => Link::lines(dialled().await),
            Over::WebSocket => {
                let url = format!("ws://{addr}/v1/ws");
                let link = Link::websocket(dialled().await, &url).await;
                link.expect("the server upgrades")
            }
            Over::Polling => Link::polling(Http::new(addr)),
        };
        Self {
            _connected: chinwag_conformance::Sloth::join(link, name, room).await,
            port,
        }
    }

    /// The port of its end, by which the server's socket is found in a listing.
    pub(crate) fn port(&self) -> u16 {
        let port = self.port;
        port.expect("a polling session has no connection of its own")
    }
}

async fn dial(addr: SocketAddr, buffer: Option<u32>) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    if let Some(bytes) = buffer {
        socket.set_recv_buffer_size(bytes).expect("a socket option");
    }
    socket.connect(addr).await.expect("the server listens")
}
