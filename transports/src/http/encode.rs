//! An answer as bytes, for plain requests: HTTP/1.1, a length that is known, and a connection that stays open unless
//! the answer says otherwise.

use std::{
    cell::Cell,
    io::Cursor,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::{Duration, UNIX_EPOCH},
};

use bytes::{Buf, BufMut, Bytes, buf::Chain};
use chinwag_core::clock::{SystemWallClock, WallClock};
use http::{HeaderMap, HeaderName, StatusCode, header};
use http_body_util::Full;
use hyper::body::Body;

use super::{Answer, Outgoing};

/// A body up to here is copied behind its head, so that both leave in one piece.
const ONE_PIECE: usize = 16 << 10;
/// Room for the length, the date, and that the connection is closed.
const REST: usize = 128;
/// `Sun, 06 Nov 1994 08:49:37 GMT`.
const DATE: usize = 29;
/// The last second that fits into it.
const LAST_SECOND: u64 = 253_402_300_799;

/// What is ours to say of an answer, whatever a route says: how long it is, that it comes in one piece, when, and what
/// becomes of the connection, where a route may say `close`. A route's `Upgrade` has its option (RFC 9110, section 7.8).
static OURS: [HeaderName; 4] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::DATE,
];

/// What there is to write of an answer before its length is known.
#[derive(Debug)]
pub(super) struct Head {
    /// The status and the headers, but for what is [ours](OURS).
    lines: Vec<u8>,
    /// Some never have a body, nor its length.
    has_body: bool,
    /// The connection is closed after it.
    closes: bool,
}

impl Head {
    pub(super) fn of(answer: &Answer) -> Self {
        let status = answer.status();
        let mut lines = Vec::with_capacity(256);
        lines.put_slice(b"HTTP/1.1 ");
        lines.put_slice(status.as_str().as_bytes());
        lines.put_u8(b' ');
        lines.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
        lines.put_slice(b"\r\n");
        for (name, value) in answer.headers() {
            if !OURS.contains(name) {
                lines.put_slice(name.as_str().as_bytes());
                lines.put_slice(b": ");
                lines.put_slice(value.as_bytes());
                lines.put_slice(b"\r\n");
            }
        }
        if answer.headers().contains_key(header::UPGRADE) {
            lines.put_slice(b"connection: upgrade\r\n");
        }
        Self {
            lines,
            has_body: !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED),
            closes: says_close(answer.headers()),
        }
    }
}

/// What is left to write of an answer.
pub(super) struct Encoded {
    pub(super) bytes: Chain<Cursor<Vec<u8>>, Bytes>,
    /// The connection is closed after it.
    pub(super) closes: bool,
}

impl Encoded {
    /// The bytes of an answer; `closes`: it is to be the last.
    pub(super) fn of(outgoing: Outgoing, closes: bool) -> Self {
        match outgoing {
            Outgoing::Answer(answer) => {
                let head = Head::of(&answer);
                Self::new(&head, whole(answer.into_body()), closes)
            }
            Outgoing::Filled(template, body) => Self::new(template.head(), body, closes),
        }
    }

    fn new(head: &Head, body: Bytes, closes: bool) -> Self {
        let closes = closes || head.closes;
        let mut rest = if head.has_body { body } else { Bytes::new() };
        let copied = if rest.len() <= ONE_PIECE {
            rest.len()
        } else {
            0
        };
        let mut piece = Vec::with_capacity(head.lines.len() + REST + copied);
        piece.put_slice(&head.lines);
        if closes {
            piece.put_slice(b"connection: close\r\n");
        }
        if head.has_body {
            piece.put_slice(b"content-length: ");
            piece.put_slice(itoa::Buffer::new().format(rest.len()).as_bytes());
            piece.put_slice(b"\r\n");
        }
        piece.put_slice(b"date: ");
        piece.put_slice(&date());
        piece.put_slice(b"\r\n\r\n");
        piece.put_slice(&rest.split_to(copied));
        Self {
            bytes: Cursor::new(piece).chain(rest),
            closes,
        }
    }
}

/// Whether one of the options of `Connection` is `close`, in whatever case and however many lines they are on.
pub(super) fn says_close(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|line| line.as_bytes().split(|&byte| byte == b','))
        .any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
}

/// The bytes of a body that has all of them.
fn whole(mut body: Full<Bytes>) -> Bytes {
    match Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
        _ => Bytes::new(),
    }
}

/// The `Date` of now, written anew once a second in each thread.
fn date() -> [u8; DATE] {
    thread_local! {
        static WRITTEN: Cell<(u64, [u8; DATE])> = const { Cell::new((u64::MAX, [b' '; DATE])) };
    }
    let second = (SystemWallClock.unix_millis() / 1000).min(LAST_SECOND);
    let (written, mut text) = WRITTEN.get();
    if written != second {
        let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
        // Exact: the format has no other length.
        text.copy_from_slice(date.as_bytes());
        WRITTEN.set((second, text));
    }
    text
}
