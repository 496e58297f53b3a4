//! The life of one connection: it rests, a request comes, the request is answered, it rests again.
//!
//! hyper reads every request and writes most answers. For that it holds buffers of 16 KiB, so it is only there while
//! there is something to read or to write: a connection that rests is a socket and its [`Watch`](super::socket::Watch)
//! alone, and so is one whose plain request waits for its answer, as polls do. The answer to such a request is then
//! written here.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use chinwag_core::RefusedReason;
use http::{Method, Request, Version, header};
use hyper::{
    body::{Body, Incoming},
    server::conn::http1::{self, Connection},
};
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWrite;

use super::{
    Answers, Aside, Client, Finished, Work,
    encode::Encoded,
    socket::{HttpSocket, Stage},
};

/// The most bytes of a request's head, and of what is read ahead of a slow route.
const HEAD: usize = 16 << 10;

/// Whether a request may be answered without hyper: it is all there, and says nothing that bears on how its answer is
/// framed or on what becomes of the connection.
pub(super) fn is_plain(request: &Request<Incoming>) -> bool {
    let mut connection = request.headers().get_all(header::CONNECTION).iter();
    let keeps = match (connection.next(), connection.next()) {
        (None, _) => true,
        (Some(only), None) => only.as_bytes().eq_ignore_ascii_case(b"keep-alive"),
        (Some(_), Some(_)) => false,
    };
    keeps
        && request.version() == Version::HTTP_11
        && !matches!(*request.method(), Method::HEAD | Method::CONNECT)
        && request.body().is_end_stream()
}

/// Serves `client` on `socket` until one of them has had enough, or the socket has been upgraded.
///
/// # Errors
/// What ended it before its time; of interest to a log.
pub(super) async fn run(mut socket: Box<HttpSocket>, client: Arc<Client>) -> io::Result<()> {
    loop {
        if !poll_fn(|cx| socket.poll_request(cx)).await {
            return shut(&mut socket).await;
        }
        let connection = http1::Builder::new()
            .max_buf_size(HEAD)
            // The watch has a limit for each stage in its place.
            .header_read_timeout(None)
            // Few bytes are copied with less effort than two pieces are handed over.
            .writev(false)
            .serve_connection(TokioIo::new(socket), Answers(Arc::clone(&client)));
        // Boxed, since it is large, and seldom there.
        let mut talking: Box<Talking> = Box::new(connection);
        let turn = poll_fn(|cx| poll_talk(&mut talking, &client, cx)).await;
        let parts = talking.into_parts();
        socket = parts.io.into_inner();
        socket.unread(parts.read_buf);
        let answer = match turn {
            Ok(Turn::Rests) => continue,
            Ok(Turn::Ends) => {
                let upgrade = client.upgrade.lock().take();
                let mut left = match upgrade {
                    None => socket,
                    Some(upgrade) => match upgrade.send(socket) {
                        Ok(()) => return Ok(()),
                        // Nobody waits for it any more.
                        Err(socket) => socket,
                    },
                };
                return shut(&mut left).await;
            }
            Ok(Turn::Answered(answer)) => answer,
            Ok(Turn::Waits(work)) => match wait(&mut socket, work).await {
                Some(answer) => answer,
                None => return Ok(()),
            },
            Err(error) => {
                if error.is_parse() && client.watch.is_unasked() {
                    // hyper has no answer to the preface of HTTP/2.
                    client.shared.door.refused(RefusedReason::BadRequest);
                }
                // It may be an answer that says what was wrong: that has to get there.
                shut(&mut socket).await?;
                return Err(io::Error::other(error));
            }
        };
        let mut encoded = Encoded::of(answer.begin(&client.watch), client.watch.is_stopping());
        poll_fn(|cx| poll_write(&mut socket, &mut encoded, cx)).await?;
        if encoded.closes {
            return shut(&mut socket).await;
        }
    }
}

/// What comes after hyper's turn.
enum Turn {
    /// The next request, some time.
    Rests,
    /// A plain request has its answer.
    Answered(Finished),
    /// A plain request waits for its answer.
    Waits(Work),
    /// No other request: the connection ends, or is upgraded.
    Ends,
}

type Talking = Connection<TokioIo<Box<HttpSocket>>, Answers>;

/// Has hyper read a request, and answer it where it is not a plain one.
fn poll_talk(
    talking: &mut Talking,
    client: &Client,
    cx: &mut Context<'_>,
) -> Poll<hyper::Result<Turn>> {
    let watch = &client.watch;
    if watch.is_stopping() {
        Pin::new(&mut *talking).graceful_shutdown();
    }
    {
        let mut waker = client.waker.lock();
        if !waker.will_wake(cx.waker()) {
            waker.clone_from(cx.waker());
        }
    }
    let mut has_answered = false;
    loop {
        watch.take_asked();
        if let Poll::Ready(end) = talking.poll_without_shutdown(cx) {
            // Where no other request comes, hyper is done when its buffer has the answer, and not when the client has.
            // It has tried to write it, and so will be woken.
            if end.is_ok() && watch.stage() == Stage::Responding {
                return Poll::Pending;
            }
            return Poll::Ready(end.map(|()| Turn::Ends));
        }
        match client.aside.lock().take() {
            Some(Aside::Answered(answer)) => return Poll::Ready(Ok(Turn::Answered(answer))),
            Some(Aside::Waits(work)) => return Poll::Ready(Ok(Turn::Waits(work))),
            None => (),
        }
        if watch.take_answered() {
            // Asked again, it looks for another request.
            has_answered = true;
        } else if has_answered && watch.is_resting() && watch.take_asked() {
            break;
        } else {
            return Poll::Pending;
        }
    }
    // Between two requests it stops at once, and gives back what it has read of the next. If however it looked for the
    // rest of a body that a route has put aside, it reads on, and nobody knows where the next request would begin.
    Pin::new(&mut *talking).graceful_shutdown();
    ready!(talking.poll_without_shutdown(cx))?;
    Poll::Ready(Ok(if watch.take_asked() {
        Turn::Ends
    } else {
        Turn::Rests
    }))
}

/// The answer to a plain request, the work on which was begun just now. `None`: the client has gone, and the work is
/// dropped.
async fn wait(socket: &mut HttpSocket, mut work: Work) -> Option<Finished> {
    let mut is_new = true;
    poll_fn(|cx| {
        // When it was begun it has heard of this task.
        if !std::mem::take(&mut is_new)
            && let Poll::Ready(answer) = work.poll(cx)
        {
            return Poll::Ready(Some(answer));
        }
        socket.poll_gone(cx).map(|()| None)
    })
    .await
}

fn poll_write(
    mut socket: &mut HttpSocket,
    encoded: &mut Encoded,
    cx: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    while encoded.bytes.has_remaining() {
        let written = ready!(Pin::new(&mut socket).poll_write(cx, encoded.bytes.chunk()))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        encoded.bytes.advance(written);
    }
    Pin::new(&mut socket).poll_flush(cx)
}

async fn shut(mut socket: &mut HttpSocket) -> io::Result<()> {
    poll_fn(|cx| Pin::new(&mut socket).poll_shutdown(cx)).await
}
