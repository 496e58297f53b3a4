//! An answer as bytes, for plain requests: HTTP/1.1, a length that is known, and a connection that stays open unless
//! the answer says otherwise.

use std::{
    cell::Cell,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::{Duration, UNIX_EPOCH},
};

use bytes::{Buf, BufMut, Bytes, buf::Chain};
use chinwag_core::clock::{SystemWallClock, WallClock};
use http::{HeaderValue, StatusCode, header};
use http_body_util::Full;
use hyper::body::Body;

use super::Answer;

/// A body up to here is copied behind its head, so that both leave in one piece.
const ONE_PIECE: usize = 16 << 10;
/// Room for a head, which most take less than.
const HEAD: usize = 256;
/// `Sun, 06 Nov 1994 08:49:37 GMT`.
const DATE: usize = 29;
/// The last second that fits into it.
const LAST_SECOND: u64 = 253_402_300_799;

/// What is left to write of an answer.
pub(super) struct Encoded {
    pub(super) bytes: Chain<Bytes, Bytes>,
    /// The connection is closed after it.
    pub(super) closes: bool,
}

impl Encoded {
    /// The bytes of `answer`; `closes`: it is to be the last.
    pub(super) fn of(mut answer: Answer, closes: bool) -> Self {
        if closes {
            let close = HeaderValue::from_static("close");
            answer.headers_mut().insert(header::CONNECTION, close);
        }
        let closes = answer
            .headers()
            .get(header::CONNECTION)
            .is_some_and(|value| value == "close");
        let (parts, body) = answer.into_parts();
        let body = whole(body);
        let copied = if body.len() <= ONE_PIECE {
            body.len()
        } else {
            0
        };
        let mut head = Vec::with_capacity(HEAD + copied);
        head.put_slice(b"HTTP/1.1 ");
        head.put_slice(parts.status.as_str().as_bytes());
        head.put_u8(b' ');
        head.put_slice(
            parts
                .status
                .canonical_reason()
                .unwrap_or_default()
                .as_bytes(),
        );
        head.put_slice(b"\r\n");
        for (name, value) in &parts.headers {
            // The length is that of the body, whatever a route says.
            if name != header::CONTENT_LENGTH {
                head.put_slice(name.as_str().as_bytes());
                head.put_slice(b": ");
                head.put_slice(value.as_bytes());
                head.put_slice(b"\r\n");
            }
        }
        let has_body = !matches!(
            parts.status,
            StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
        );
        if has_body {
            head.put_slice(b"content-length: ");
            head.put_slice(itoa::Buffer::new().format(body.len()).as_bytes());
            head.put_slice(b"\r\n");
        }
        head.put_slice(b"date: ");
        head.put_slice(&date());
        head.put_slice(b"\r\n\r\n");
        let mut rest = if has_body { body } else { Bytes::new() };
        if rest.len() <= ONE_PIECE {
            head.put_slice(&std::mem::take(&mut rest));
        }
        Self {
            bytes: Bytes::from(head).chain(rest),
            closes,
        }
    }
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
