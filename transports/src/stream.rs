//! The bytes of a connection, in plain or through TLS, for the task that reads them and for lanes that write.
//!
//! What it guarantees: in plain text it is the socket, without a lock, a copy or a system call of its own. Through TLS a
//! write encrypts and hands the kernel what it takes; of what was encrypted at most one record, which has 16 KiB, stays
//! behind, and [`TryWrite::holds_back`] tells of it. Whatever was decrypted is read before the socket is waited for. A
//! connection that rests keeps its keys and a few kilobytes for the next record's head.
//!
//! What is deliberately absent: the handshake, which [`Tls`] does before there is a stream.

use std::{
    fmt,
    io::{self, IoSlice, Read, Write},
    net::Shutdown,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use chinwag_core::TryWrite;
use parking_lot::Mutex;
use rustls::ServerConnection;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

use crate::tls::{Alpn, Remote, Tls, TlsPeer};

/// Plain bytes of one TLS record.
const RECORD: usize = 16 << 10;
/// Most pieces that are gathered into one record.
const PIECES: usize = 64;

/// A connection, in plain or through TLS, whose handshake is over.
///
/// One task reads, through [`poll_receive`](Self::poll_receive) or [`AsyncRead`]. Anybody may write, through
/// [`TryWrite`]; whoever waits for writability is one task too. As [`AsyncRead`] and [`AsyncWrite`] it is a stream like
/// any other: flush it before you wait for an answer, and shut it down to say that no more is sent. Dropped, it says so
/// through TLS all the same, as far as the kernel takes that at once.
pub struct Stream {
    tcp: TcpStream,
    /// Boxed: most of what is plain should not grow by it.
    tls: Option<Box<Mutex<ServerConnection>>>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("is_encrypted", &self.is_encrypted())
            .finish_non_exhaustive()
    }
}

impl From<TcpStream> for Stream {
    fn from(tcp: TcpStream) -> Self {
        Self { tcp, tls: None }
    }
}

impl Stream {
    /// Shakes hands over `tcp`, of which `early` was read already and which comes from `remote`, as [`Tls::accept`] does.
    /// `None`: the connection is over, and `tls` has counted why.
    pub async fn shake_hands(
        tcp: TcpStream,
        early: Bytes,
        tls: &Arc<Tls>,
        alpn: Alpn,
        remote: Remote,
    ) -> Option<(Self, TlsPeer)> {
        let local = tcp.local_addr().ok()?;
        let opening = Opening { early, tcp };
        let (stream, peer) = tls.accept(opening, alpn, local, remote).await.ok()?;
        let (opening, mut connection) = stream.into_inner();
        debug_assert!(opening.early.is_empty(), "one read takes all of it");
        // What is held back is bounded by those who write: at most a record.
        connection.set_buffer_limit(None);
        let stream = Self {
            tcp: opening.tcp,
            tls: Some(Box::new(Mutex::new(connection))),
        };
        Some((stream, peer))
    }

    /// Whether it goes through TLS.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// Reads once into `buffer`, which has room. `Ok(0)`: the client has closed its side. Pending: the task is woken
    /// when there is more. Through TLS fewer bytes than `buffer` takes do not mean that there are no more.
    ///
    /// # Errors
    /// The connection is lost, or what came breaks the rules of TLS; the client was told so.
    pub fn poll_receive(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        match &self.tls {
            None => poll_tcp(&self.tcp, cx, |mut tcp| tcp.read(buffer)),
            Some(tls) => self.poll_decrypt(&mut tls.lock(), cx, buffer),
        }
    }

    fn poll_decrypt(
        &self,
        connection: &mut ServerConnection,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            match connection.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                // Whoever goes without saying so has gone all the same: objects tell their own ends.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Poll::Ready(Ok(0));
                }
                read => return Poll::Ready(read),
            }
            ready!(poll_tcp(&self.tcp, cx, |mut tcp| connection.read_tls(&mut tcp)))?;
            let processed = connection.process_new_packets();
            // An answer of the protocol's own, or the alert that says what was wrong. What the kernel does not take now
            // goes with the next write.
            let flushed = self.send_out(connection);
            processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            flushed?;
        }
    }

    /// Says that no more is sent, when what is held back has gone out, and through TLS its goodbye too. Polled again
    /// until it is ready.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn poll_close_write(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(tls) = &self.tls {
            // Said once, however often this is polled.
            tls.lock().send_close_notify();
            ready!(self.poll_write_ready(cx))?;
        }
        Poll::Ready(SockRef::from(&self.tcp).shutdown(Shutdown::Write))
    }

    /// Encrypts as much of `pieces` as the kernel takes, and at most a record more.
    fn encrypt(
        &self,
        connection: &mut ServerConnection,
        pieces: &[IoSlice<'_>],
    ) -> io::Result<usize> {
        if !self.send_out(connection)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut rest = Rest(pieces, 0);
        let mut written = 0;
        loop {
            let mut record = [IoSlice::new(&[]); PIECES];
            let count = rest.take(&mut record);
            if count == 0 {
                return Ok(written);
            }
            written += connection.writer().write_vectored(&record[..count])?;
            if !self.send_out(connection)? {
                return Ok(written);
            }
        }
    }

    /// Hands the kernel what it takes of what is encrypted. `false`: it is full.
    fn send_out(&self, connection: &mut ServerConnection) -> io::Result<bool> {
        while connection.wants_write() {
            match connection.write_tls(&mut Sending(&self.tcp)) {
                Ok(_) => (),
                Err(error) if is_passing(&error) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    #[cfg(test)]
    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }
}

impl Drop for Stream {
    /// Through TLS nobody goes without a goodbye, so that the client knows that it was not cut off by somebody else. What
    /// the kernel does not take at once is not waited for.
    fn drop(&mut self) {
        if let Some(mut tls) = self.tls.take() {
            let connection = tls.get_mut();
            connection.send_close_notify();
            let _ = self.send_out(connection);
        }
    }
}

impl TryWrite for Stream {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.tls {
            None => self.tcp.try_write(bytes),
            Some(tls) => self.encrypt(&mut tls.lock(), &[IoSlice::new(bytes)]),
        }
    }

    fn try_write_vectored(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.tls {
            None => self.tcp.try_write_vectored(slices),
            Some(tls) => self.encrypt(&mut tls.lock(), slices),
        }
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.tcp.poll_write_ready(cx))?;
            let Some(tls) = &self.tls else {
                return Poll::Ready(Ok(()));
            };
            if self.send_out(&mut tls.lock())? {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn may_hold_back(&self) -> bool {
        self.is_encrypted()
    }

    fn holds_back(&self) -> bool {
        self.tls
            .as_ref()
            .is_some_and(|tls| tls.lock().wants_write())
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.tls.is_none() {
            return Pin::new(&mut self.tcp).poll_read(cx, buffer);
        }
        let read = ready!(self.poll_receive(cx, buffer.initialize_unfilled()))?;
        buffer.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.tls.is_none() {
            return Pin::new(&mut self.tcp).poll_write(cx, bytes);
        }
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.tls.is_none() {
            return Pin::new(&mut self.tcp).poll_write_vectored(cx, slices);
        }
        loop {
            match self.try_write_vectored(slices) {
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
        self.poll_close_write(cx)
    }
}

/// Pieces still to be written, of the first of which so many bytes were.
struct Rest<'a, 'b>(&'a [IoSlice<'b>], usize);

impl<'a> Rest<'a, '_> {
    /// Takes up to a record's worth into `record`, and gives the number of pieces that it is made of.
    fn take(&mut self, record: &mut [IoSlice<'a>]) -> usize {
        let mut room = RECORD;
        let mut count = 0;
        while let (Some(slot), Some((first, after))) = (record.get_mut(count), self.0.split_first())
            && room > 0
        {
            let piece = &first[self.1..];
            if piece.len() > room {
                *slot = IoSlice::new(&piece[..room]);
                self.1 += room;
                return count + 1;
            }
            *self = Rest(after, 0);
            if !piece.is_empty() {
                *slot = IoSlice::new(piece);
                room -= piece.len();
                count += 1;
            }
        }
        count
    }
}

/// Has `read` read once from `tcp`, when there is something to read.
fn poll_tcp(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    mut read: impl FnMut(Receiving<'_>) -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(tcp.poll_read_ready(cx))?;
        match read(Receiving(tcp)) {
            Err(error) if is_passing(&error) => (),
            read => return Poll::Ready(read),
        }
    }
}

/// Nothing is wrong; it is only not the time.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// A socket to be read from. A short read has emptied it, which is noted at once rather than by another call that finds
/// it out.
struct Receiving<'a>(&'a TcpStream);

impl Read for Receiving<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut read = None;
        let result = self.0.try_io(Interest::READABLE, || {
            let count = (&*SockRef::from(self.0)).read(buffer)?;
            read = Some(count);
            if count > 0 && count < buffer.len() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(())
        });
        match (read, result) {
            (Some(count), _) => Ok(count),
            (None, Err(error)) => Err(error),
            (None, Ok(())) => unreachable!("an Ok comes with a count"),
        }
    }
}

/// A socket to be written to.
struct Sending<'a>(&'a TcpStream);

impl Write for Sending<'_> {
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

/// A socket of which the first bytes were read already.
struct Opening {
    early: Bytes,
    tcp: TcpStream,
}

impl AsyncRead for Opening {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            return Pin::new(&mut self.tcp).poll_read(cx, buffer);
        }
        let some = self.early.len().min(buffer.remaining());
        buffer.put_slice(&self.early.split_to(some));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Opening {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    // After a handshake that has failed tokio-rustls writes once more and gives up the rest: unless all pieces go in one
    // call, the alert stays behind what was to be sent before it.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
