//! For transports with listeners of their own: the accept loop that all have, and their place in the caps.

use std::{fmt, io, net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use chinwag_core::{
    Peer,
    clock::{self, Instant},
};

use crate::{BindContext, Permit, accept::Episode};

/// What a transport listens on, where it is no address of IP.
#[async_trait]
pub trait Listen: Send {
    /// A connection.
    type Stream: Send + 'static;

    /// The next connection, and who is at its other end. Whom no address tells apart is given one of loopback, and is
    /// exempt. Must be cancel safe: it is given up when the server drains.
    ///
    /// # Errors
    /// None is to be had now, or the one that came is gone. It is asked again, after a pause where the system is short
    /// of something.
    async fn accept(&mut self) -> io::Result<(Self::Stream, Peer)>;
}

/// A connection that a listener of the transport's own has accepted, and that passed the caps.
#[derive(Debug)]
#[non_exhaustive]
pub struct Incoming<S> {
    /// The connection.
    pub stream: S,
    /// The client.
    pub peer: Peer,
    /// Counts the connection until its last clone is dropped: hold it for as long as the stream.
    pub permit: Permit,
    /// When the connection was accepted.
    pub at: Instant,
}

impl<S> Incoming<S> {
    /// The same connection with another stream, say the encrypted one that was made of it.
    pub fn map<T>(self, change: impl FnOnce(S) -> T) -> Incoming<T> {
        Incoming {
            stream: change(self.stream),
            peer: self.peer,
            permit: self.permit,
            at: self.at,
        }
    }
}

/// Where a transport listens.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum LocalAddr {
    /// An address of IP; where the file says port 0, with the port that the system chose.
    Ip(SocketAddr),
    /// Whatever else, as the operator knows it: a path, a name.
    Other(String),
}

impl LocalAddr {
    /// The address, where it is one of IP.
    #[must_use]
    pub const fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Other(_) => None,
        }
    }
}

impl From<SocketAddr> for LocalAddr {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

impl fmt::Display for LocalAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Other(place) => f.write_str(place),
        }
    }
}

impl BindContext {
    /// Accepts from a listener of the transport's own until the server drains, then drops it. Connections come in plain:
    /// where the operator names a table for TLS, the transport shakes hands itself, by [`take_tls`](Self::take_tls).
    ///
    /// Each connection is given to `on` in a task of its own on the server's lifecycle, which outlives this call. Those
    /// over `max_connections`, or over a cap of the client's address, are dropped at once and counted. A panic in `on`
    /// costs its connection. Running out of descriptors pauses accepting, and ends neither it nor a drain.
    pub async fn serve_own<L, F, Fut>(&self, mut listener: L, on: F)
    where
        L: Listen,
        F: Fn(Incoming<L::Stream>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let lifecycle = self.hub.lifecycle();
        let gate = self.gate();
        let on = Arc::new(on);
        let mut episode = Episode::default();
        loop {
            let accepted = async {
                loop {
                    match listener.accept().await {
                        Ok(accepted) => return accepted,
                        Err(error) => episode.endure(&error, gate.door(), &self.name).await,
                    }
                }
            };
            let (stream, peer) = tokio::select! {
                biased;
                () = lifecycle.draining() => return,
                accepted = accepted => accepted,
            };
            episode.end(&self.name);
            let at = clock::now();
            let Some(permit) = gate.admit_known(&peer) else {
                continue;
            };
            let on = Arc::clone(&on);
            let incoming = Incoming {
                stream,
                peer,
                permit,
                at,
            };
            // Called in the task, so that a panic of its own stays there too.
            lifecycle.spawn(async move { on(incoming).await });
        }
    }
}
