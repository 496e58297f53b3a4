//! Reaches endpoints, TLS included, within a limit.
//!
//! Whether one is there that nobody has seen lately is for one call to find out, and no other reaches
//! for it meanwhile; those who do already let go.

use std::{
    error::Error,
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use chinwag_core::clock;
use http::Uri;
use hyper_util::{
    client::legacy::connect::{Connected, Connection, HttpConnector},
    rt::TokioIo,
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tower_service::Service;

use super::{
    client::{Endpoint, is_https, with_causes},
    health::Reaching,
};

/// How machines are reached.
#[derive(Clone)]
pub(crate) enum Reach {
    /// Over TCP.
    Network,
    /// Through pipes in this process, so that a test can stop the clock.
    #[cfg(test)]
    Pipes(Arc<Opener>),
}

#[cfg(test)]
type Opener = dyn Fn(&Uri) -> BoxFuture<io::Result<tokio::io::DuplexStream>> + Send + Sync;

pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Makes the connections of a pool.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) endpoints: Arc<[Endpoint]>,
    pub(super) reach: Reach,
    pub(super) tls: Option<TlsConnector>,
    pub(super) limit: Duration,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Wire>;
    type Error = io::Error;
    type Future = BoxFuture<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let it = self.clone();
        Box::pin(async move {
            let awaited = || io::Error::other(Awaited);
            let mut reaching = it.begin(&uri).ok_or_else(awaited)?;
            let limit = it.limit;
            let reached = tokio::select! {
                biased; // Who has reached it need not let go.
                reached = timeout(limit, it.connect(uri)) => reached,
                () = reaching.let_go() => return Err(awaited()),
            };
            match reached.unwrap_or_else(|_elapsed| Err(io::Error::other("it takes too long"))) {
                Ok(wire) => {
                    reaching.succeeded(clock::now());
                    Ok(wire)
                }
                Err(error) => Err(io::Error::other(Unreached {
                    error,
                    _reaching: reaching,
                })),
            }
        })
    }
}

#[derive(Debug)]
struct Awaited;

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("another call reaches for it")
    }
}

impl Error for Awaited {}

/// Nobody has tried: another one reaches for the endpoint, and has not found out yet whether it is
/// there.
pub(super) fn is_awaited(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|error| error.is::<Awaited>())
}

/// An endpoint can't be reached. Nobody else reaches for it before whoever hears of this has taken
/// note and dropped it.
#[derive(Debug)]
struct Unreached {
    error: io::Error,
    _reaching: Reaching,
}

impl fmt::Display for Unreached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl Error for Unreached {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

impl Connector {
    /// `None`: another one does, and is to find out whether it is there.
    fn begin(&self, uri: &Uri) -> Option<Reaching> {
        let is_there =
            |known: &Uri| known.scheme() == uri.scheme() && known.authority() == uri.authority();
        let mut endpoints = self.endpoints.iter();
        let endpoint = endpoints.find(|endpoint| is_there(&endpoint.uri));
        let endpoint = endpoint.expect("nothing but endpoints is reached for");
        endpoint.health.reach(clock::now())
    }

    async fn connect(self, uri: Uri) -> io::Result<TokioIo<Wire>> {
        let plain: Box<dyn Stream> = match &self.reach {
            Reach::Network => {
                let mut tcp = HttpConnector::new();
                tcp.enforce_http(false);
                tcp.set_nodelay(true);
                let reached = tcp.call(uri.clone()).await;
                Box::new(
                    reached
                        .map_err(|error| io::Error::other(with_causes(&error)))?
                        .into_inner(),
                )
            }
            #[cfg(test)]
            Reach::Pipes(open) => Box::new(open(&uri).await?),
        };
        let Some(tls) = self.tls.filter(|_| is_https(&uri)) else {
            return Ok(TokioIo::new(Wire(plain)));
        };
        let host = uri.host().unwrap_or_default();
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let name = ServerName::try_from(host).map_err(io::Error::other)?;
        Ok(TokioIo::new(Wire(Box::new(
            tls.connect(name, plain).await?,
        ))))
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection, encrypted or not.
pub(super) struct Wire(Box<dyn Stream>);

impl Connection for Wire {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
