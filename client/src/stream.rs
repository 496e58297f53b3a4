//! The bytes below a transport.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustls::{ClientConfig, pki_types::ServerName};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::spawn_blocking,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    ConnectError, Options, TlsFault,
    address::{Address, Transport},
};

/// The first byte of what only TLS says: of an alert, and of a handshake.
const TLS_RECORDS: [u8; 2] = [0x15, 0x16];

/// A server as one connects to it, as often as one likes.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) address: Address,
    tls: Option<Tls>,
}

/// What is agreed on with a server before anything is said.
#[derive(Debug)]
struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Server {
    /// Reads the options' files, where the address asks for TLS.
    pub(crate) async fn new(address: Address, options: &Options) -> Result<Self, ConnectError> {
        let url = address.to_string();
        let files = options.tls.clone();
        if !address.tls {
            if !files.is_empty() {
                return Err(ConnectError::Url(format!(
                    "{url}: certificates are for tls://, wss:// and https://, and this is plain text"
                )));
            }
            return Ok(Self { address, tls: None });
        }
        let name = ServerName::try_from(address.host.clone()).map_err(|_| {
            ConnectError::Url(format!("{url}: no certificate can be for such a host"))
        })?;
        let reading = spawn_blocking(move || files.read(&url));
        let read = within(&address, options, async { Ok(reading.await) }).await?;
        let mut config = read.unwrap_or_else(|error| {
            Err(ConnectError::Tls {
                url: address.to_string(),
                fault: TlsFault::Other(format!("the files were not read: {error}")),
            })
        })?;
        let spoken: &[u8] = match address.transport {
            Transport::Tcp => b"chinwag",
            _ => b"http/1.1",
        };
        config.alpn_protocols = vec![spoken.to_vec()];
        let config = Arc::new(config);
        Ok(Self {
            address,
            tls: Some(Tls { config, name }),
        })
    }

    /// Connects, to the first of the host's addresses that answers, and shakes hands over TLS. Sets no limit: that is
    /// [`within`].
    pub(crate) async fn connect(&self) -> Result<Stream, ConnectError> {
        let address = &self.address;
        let unreachable = |source: io::Error| ConnectError::lost(address, source);
        let stream = TcpStream::connect((address.host.as_str(), address.port))
            .await
            .map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        // Where the session has no time-out there are no pings, and nobody but the kernel notices that a peer is gone.
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(30))
            .with_interval(Duration::from_secs(10));
        SockRef::from(&stream)
            .set_tcp_keepalive(&keepalive)
            .map_err(unreachable)?;
        let Some(Tls { config, name }) = &self.tls else {
            return Ok(Stream::Plain {
                stream,
                is_fresh: true,
            });
        };
        let connector = TlsConnector::from(Arc::clone(config));
        let showed = config.client_auth_cert_resolver.has_certs();
        let shaken = Box::pin(connector.connect(name.clone(), stream)).await;
        let stream = shaken.map_err(|error| {
            unreachable(match error.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                    TlsFault::HungUp.into()
                }
                _ => TlsFault::name(error, showed),
            })
        })?;
        Ok(Stream::Tls {
            stream: Box::new(stream),
            showed,
        })
    }
}

/// Runs what connecting takes within the options' limit.
pub(crate) async fn within<T>(
    address: &Address,
    options: &Options,
    work: impl Future<Output = Result<T, ConnectError>>,
) -> Result<T, ConnectError> {
    let after = options.connect_timeout;
    let done = timeout(after, work).await;
    done.unwrap_or_else(|_| {
        Err(ConnectError::Late {
            url: address.to_string(),
            after,
        })
    })
}

/// A connection to a server. Its errors hold a [`TlsFault`] where they are about TLS.
#[derive(Debug)]
pub(crate) enum Stream {
    Plain {
        stream: TcpStream,
        /// Whether nothing was heard yet.
        is_fresh: bool,
    },
    Tls {
        stream: Box<TlsStream<TcpStream>>,
        /// Whether there was a certificate to show.
        showed: bool,
    },
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain { stream, is_fresh } => {
                let before = buffer.filled().len();
                ready!(Pin::new(stream).poll_read(cx, buffer))?;
                if let Some(first) = buffer.filled().get(before)
                    && std::mem::take(is_fresh)
                    && TLS_RECORDS.contains(first)
                {
                    return Poll::Ready(Err(TlsFault::Expected.into()));
                }
                Poll::Ready(Ok(()))
            }
            Self::Tls { stream, showed } => {
                let read = ready!(Pin::new(stream).poll_read(cx, buffer));
                Poll::Ready(match read {
                    // It went without TLS's own goodbye, as whoever is killed does. All that is said here shows where
                    // it ends, so that nothing can be cut short unnoticed.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
                    Err(error) => Err(TlsFault::name(error, *showed)),
                    Ok(()) => Ok(()),
                })
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain { stream, .. } => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls { stream, .. } => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain { stream, .. } => Pin::new(stream).poll_flush(cx),
            Self::Tls { stream, .. } => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain { stream, .. } => Pin::new(stream).poll_shutdown(cx),
            Self::Tls { stream, .. } => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
