//! A connection's bytes, in plain or through TLS, for tasks that read and lanes that write.
//!
//! Through TLS a write encrypts and hands the kernel what it takes; at most one record stays behind when the kernel is
//! full, and whoever awaits writability gets it out. Reading decrypts into the caller's buffer. So an idle connection
//! keeps its keys and no buffers of its own but the few kilobytes in which the next record's head is read.

use std::{
    fmt,
    io::{self, IoSlice, Read, Write},
    net::Shutdown,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use chinwag_core::plugin::TlsFacts;
use parking_lot::Mutex;
use rustls::ServerConnection;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

/// Plaintext of one TLS record.
const RECORD: usize = 16 << 10;

/// A connection, in plain or through TLS. Reads belong to one task; anybody may write.
pub struct Stream {
    tcp: TcpStream,
    tls: Option<Box<Tls>>,
}

struct Tls {
    connection: Mutex<ServerConnection>,
    facts: Arc<TlsFacts>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

impl From<TcpStream> for Stream {
    fn from(tcp: TcpStream) -> Self {
        Self { tcp, tls: None }
    }
}

impl Stream {
    /// A connection whose handshake is over.
    pub(crate) fn encrypted(
        tcp: TcpStream,
        mut connection: ServerConnection,
        facts: Arc<TlsFacts>,
    ) -> Self {
        // What is held back is bounded by `try_write`, which never leaves more than a record.
        connection.set_buffer_limit(None);
        let tls = Tls {
            connection: Mutex::new(connection),
            facts,
        };
        Self {
            tcp,
            tls: Some(Box::new(tls)),
        }
    }

    /// How it is encrypted, if it is.
    #[must_use]
    pub fn tls(&self) -> Option<&Arc<TlsFacts>> {
        self.tls.as_ref().map(|tls| &tls.facts)
    }

    /// Reads once into `buffer`. `Ok(0)`: the client has closed its side. Registers the task for more while there is
    /// nothing.
    pub(crate) fn poll_read_some(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Some(tls) = &self.tls else {
            return poll_read_tcp(&self.tcp, cx, buffer);
        };
        loop {
            let mut connection = tls.connection.lock();
            match connection.reader().read(buffer) {
                // Whoever closes without saying so has closed all the same: objects tell their own ends.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Poll::Ready(Ok(0));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                read => return Poll::Ready(read),
            }
            drop(connection);
            ready!(self.tcp.poll_read_ready(cx))?;
            let mut connection = tls.connection.lock();
            let mut socket = Socket(&self.tcp);
            match connection.read_tls(&mut socket) {
                Ok(_) => (),
                Err(error) if is_passing(&error) => continue,
                Err(error) => return Poll::Ready(Err(error)),
            }
            let processed = connection.process_new_packets();
            // An answer of the protocol's own, or the alert that says what was wrong. What the kernel does not take
            // now goes with the next write, or with the next look.
            let _ = flush(&mut connection, &self.tcp);
            if let Err(error) = processed {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
            }
        }
    }

    pub(crate) fn try_write_some(&self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &self.tls else {
            return self.tcp.try_write(bytes);
        };
        let mut connection = tls.connection.lock();
        if !flush(&mut connection, &self.tcp)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut written = 0;
        for record in bytes.chunks(RECORD) {
            connection.writer().write_all(record)?;
            written += record.len();
            if !flush(&mut connection, &self.tcp)? {
                break;
            }
        }
        Ok(written)
    }

    pub(crate) fn try_write_slices(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.tls.is_none() {
            return self.tcp.try_write_vectored(slices);
        }
        let mut written = 0;
        for slice in slices {
            match self.try_write_some(slice) {
                Ok(count) => {
                    written += count;
                    if count < slice.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && written > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    /// Ready when a write may take something and nothing is held back.
    pub(crate) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.tcp.poll_write_ready(cx))?;
            let Some(tls) = &self.tls else {
                return Poll::Ready(Ok(()));
            };
            if flush(&mut tls.connection.lock(), &self.tcp)? {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Whether something was taken that the kernel does not have yet.
    pub(crate) fn holds_back(&self) -> bool {
        self.tls
            .as_ref()
            .is_some_and(|tls| tls.connection.lock().wants_write())
    }

    /// Says that no more is sent. What is held back and can't be sent now is lost.
    pub(crate) fn close_write(&self) -> io::Result<()> {
        if let Some(tls) = &self.tls {
            let mut connection = tls.connection.lock();
            connection.send_close_notify();
            let _ = flush(&mut connection, &self.tcp);
        }
        SockRef::from(&self.tcp).shutdown(Shutdown::Write)
    }
}

/// Hands the kernel what it takes of what is encrypted. `false`: it is full.
fn flush(connection: &mut ServerConnection, tcp: &TcpStream) -> io::Result<bool> {
    while connection.wants_write() {
        match connection.write_tls(&mut Socket(tcp)) {
            Ok(_) => (),
            Err(error) if is_passing(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Finishes the handshake of `connection` on `tcp`, of which `early` was read already. Cancel safe in that the
/// connection is lost.
///
/// # Errors
/// What rustls found wrong, with the alert sent; or the socket's own error.
pub(crate) async fn shake_hands(
    tcp: &TcpStream,
    connection: &mut ServerConnection,
    mut early: &[u8],
) -> Result<(), HandshakeError> {
    while !early.is_empty() {
        connection.read_tls(&mut early)?;
        process(tcp, connection)?;
    }
    loop {
        while connection.wants_write() {
            if !flush(connection, tcp)? {
                tcp.writable().await?;
            }
        }
        if !connection.is_handshaking() {
            return Ok(());
        }
        tcp.readable().await?;
        match connection.read_tls(&mut Socket(tcp)) {
            Ok(0) => return Err(HandshakeError::Io(io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => process(tcp, connection)?,
            Err(error) if is_passing(&error) => (),
            Err(error) => return Err(error.into()),
        }
    }
}

fn process(tcp: &TcpStream, connection: &mut ServerConnection) -> Result<(), HandshakeError> {
    connection.process_new_packets().map_err(|error| {
        // The peer is told what was wrong, if it still listens.
        let _ = flush(connection, tcp);
        HandshakeError::Tls(error)
    })?;
    Ok(())
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// By the rules of TLS.
    #[error("{0}")]
    Tls(rustls::Error),
    /// The connection was lost.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Nothing was wrong; it is only not the time.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// The kernel's side of a TLS connection. A short read or write has emptied or filled the socket, which is noted at
/// once rather than by another call that finds it out.
struct Socket<'a>(&'a TcpStream);

impl Read for Socket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut count = 0;
        let result = self.0.try_io(Interest::READABLE, || {
            count = (&*SockRef::from(self.0)).read(buffer)?;
            if count > 0 && count < buffer.len() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(())
        });
        match result {
            Err(error) if count == 0 => Err(error),
            _ => Ok(count),
        }
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn poll_read_tcp(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    loop {
        ready!(tcp.poll_read_ready(cx))?;
        match Socket(tcp).read(buffer) {
            Err(error) if is_passing(&error) => (),
            read => return Poll::Ready(read),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = ready!(self.poll_read_some(cx, buffer.initialize_unfilled()))?;
        buffer.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.try_write_slices(slices) {
                Err(error) if is_passing(&error) => ready!(self.poll_write_ready(cx))?,
                written => return Poll::Ready(written),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.holds_back() {
            return self.poll_write_ready(cx);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.holds_back() {
            ready!(self.poll_write_ready(cx))?;
        }
        Poll::Ready(self.close_write())
    }
}
