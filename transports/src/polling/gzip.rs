//! Compressed answers, for clients that accept them.
//!
//! What it guarantees: an answer is worth its compression or goes out as it is; compression takes a bounded share of
//! the processor, beyond which answers go out as they are; nothing is kept for a connection, and one compressor for
//! each thread that has ever needed it.
//!
//! Whoever sees the lengths of encrypted answers and can put guesses of his own into them may learn what else is in
//! them, if it is there again and again (BREACH). So the answer to a log-in, which has the session's id in it, is never
//! compressed. An event is given once, unless its answer was lost, and what comes with it is not for a stranger to
//! choose or to ask for: no page of another site can make a browser poll, with cookies either.

use std::{
    cell::RefCell,
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use chinwag_core::clock::{self, Instant};
use flate2::{Compress, Compression, FlushCompress, Status};
use http::{HeaderMap, HeaderValue, header};

use crate::http::Answer;

/// What is shorter leaves in one packet anyhow.
const LEAST: usize = 1 << 10;
/// What is longer would hold up a thread that others wait for; this takes less than a millisecond.
const MOST: usize = 256 << 10;
/// Bytes a second that a transport compresses, less than a tenth of one core; beyond, answers go out as they are.
const RATE: u64 = 16 << 20;
/// What an answer counts beside its bytes: a compressor is cleared for each, which takes as long as 2 KiB do.
const EACH: u64 = 2 << 10;
/// How far it may be ahead of that.
const AHEAD_NANOS: u64 = 500_000_000;
/// The window: most of what repeats in answers repeats within a few events.
const WINDOW_BITS: u8 = 13;
/// What deflate may add to bytes that it can't compress, with the frame of gzip.
const SLACK: usize = 64;

/// What a transport may still compress.
#[derive(Debug)]
pub(super) struct Gzip {
    origin: Instant,
    /// Until then, in nanoseconds from the origin, what was compressed is paid for.
    paid: AtomicU64,
}

impl Gzip {
    pub(super) fn new() -> Self {
        Self {
            origin: clock::now(),
            paid: AtomicU64::new(0),
        }
    }

    /// Compresses an answer, where that is worth it and may be done now. To be asked of clients that accept it.
    pub(super) fn apply(&self, body: Bytes) -> (Bytes, bool) {
        if !(LEAST..=MOST).contains(&body.len()) || !self.may_spend(body.len()) {
            return (body, false);
        }
        match compress(&body) {
            Some(smaller) => (smaller, true),
            None => (body, false),
        }
    }

    /// Takes so many bytes from what may be compressed.
    fn may_spend(&self, bytes: usize) -> bool {
        let now = u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // Exact: at most 256 KiB.
        let cost = (bytes as u64 + EACH) * 1_000_000_000 / RATE;
        self.paid
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |paid| {
                let from = paid.max(now);
                (from - now <= AHEAD_NANOS).then(|| from.saturating_add(cost))
            })
            .is_ok()
    }
}

/// Says of an answer that it is compressed.
pub(super) fn mark(answer: &mut Answer) {
    answer
        .headers_mut()
        .insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
}

/// `bytes` in gzip's format, if that is shorter.
fn compress(bytes: &[u8]) -> Option<Bytes> {
    thread_local! {
        static COMPRESSOR: RefCell<Option<Compress>> = const { RefCell::new(None) };
    }
    COMPRESSOR.with_borrow_mut(|kept| {
        let compressor =
            kept.get_or_insert_with(|| Compress::new_gzip(Compression::fast(), WINDOW_BITS));
        compressor.reset();
        let mut compressed = Vec::with_capacity(bytes.len() + SLACK);
        let end = compressor.compress_vec(bytes, &mut compressed, FlushCompress::Finish);
        let shorter = matches!(end, Ok(Status::StreamEnd)) && compressed.len() < bytes.len();
        // What is sent waits in memory for a slow reader: no more than it needs.
        compressed.shrink_to_fit();
        shorter.then(|| compressed.into())
    })
}

/// Whether a client accepts gzip, and does not like bytes as they are better (RFC 9110, 12.5.3).
pub(super) fn is_accepted(headers: &HeaderMap) -> bool {
    let (mut gzip, mut identity, mut any) = (None, None, None);
    let lines = headers.get_all(header::ACCEPT_ENCODING).iter();
    for element in lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
    {
        let (coding, parameters) = element.split_once(';').unwrap_or((element, ""));
        let coding = coding.trim();
        let weight = weight(parameters);
        if coding.eq_ignore_ascii_case("gzip") || coding.eq_ignore_ascii_case("x-gzip") {
            gzip = Some(weight);
        } else if coding.eq_ignore_ascii_case("identity") {
            identity = Some(weight);
        } else if coding == "*" {
            any = Some(weight);
        }
    }
    let gzip = gzip.or(any).unwrap_or(0);
    gzip > 0 && gzip >= identity.unwrap_or(0)
}

/// In thousandths; 1000 where none is given, 0 where it can't be read.
fn weight(parameters: &str) -> u16 {
    let parameters = parameters.trim();
    if parameters.is_empty() {
        return 1000;
    }
    let value = parameters
        .split_once('=')
        .filter(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
        .map(|(_, value)| value.trim());
    let (whole, digits) = match value {
        Some(value) => value.split_once('.').unwrap_or((value, "")),
        None => return 0,
    };
    if digits.len() > 3 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return 0;
    }
    let thousandths: u16 = format!("{digits:0<3}").parse().unwrap_or(0);
    match whole {
        "0" => thousandths,
        "1" if thousandths == 0 => 1000,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn accepts(lines: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(
                header::ACCEPT_ENCODING,
                HeaderValue::from_bytes(line.as_bytes()).unwrap(),
            );
        }
        is_accepted(&headers)
    }

    #[test]
    fn gzip_is_accepted_by_name_or_by_star_unless_its_weight_says_no() {
        for lines in [
            &["gzip"][..],
            &["GZip"],
            &["x-gzip"],
            &["deflate, gzip, br"],
            &["deflate", "gzip"],
            &["gzip;q=1.0"],
            &["gzip ; q=0.001"],
            &["gzip; Q=0.5, *;q=0"],
            &["*"],
            &["*;q=0.1"],
            &["identity;q=0.5, gzip;q=0.5"],
            &["identity;q=0, gzip;q=0.1"],
        ] {
            assert!(accepts(lines), "{lines:?}");
        }
        for lines in [
            &[][..],
            &[""],
            &["identity"],
            &["br, deflate"],
            &["gzip;q=0"],
            &["gzip;q=0.000"],
            &["gzip;q=0, *"],
            &["*;q=0"],
            &["gzip;q=0.4, identity"],
            &["gzip;q=1.1"],
            &["gzip;q=0.0001"],
            &["gzip;q=x"],
            &["gzip;level=1"],
            &["gzippy"],
        ] {
            assert!(!accepts(lines), "{lines:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_compressed_comes_back_the_same() {
        let gzip = Gzip::new();
        let text = "{\"type\":\"message\",\"text\":\"hello\"},".repeat(1000);
        let noise: Vec<u8> = (0..10_000_u32)
            .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3])
            .collect();
        for (body, is_smaller) in [
            (text.as_bytes(), true),
            (&text.as_bytes()[..LEAST], true),
            (&text.as_bytes()[..LEAST - 1], false),
            (&vec![b' '; MOST], true),
            (&vec![b' '; MOST + 1], false),
            (b"", false),
        ] {
            let (sent, is_packed) = gzip.apply(Bytes::copy_from_slice(body));
            assert_eq!(is_packed, is_smaller, "{}", body.len());
            assert!(sent.len() < body.len() || !is_packed);
            assert_eq!(read(&sent, is_packed), body, "{}", body.len());
        }
        let (sent, is_packed) = gzip.apply(noise.clone().into());
        assert_eq!(read(&sent, is_packed), noise, "whatever becomes of it");
    }

    fn read(sent: &[u8], is_packed: bool) -> Vec<u8> {
        let mut read = Vec::new();
        if is_packed {
            let mut decoder = flate2::read::GzDecoder::new(sent);
            decoder.read_to_end(&mut read).unwrap();
        } else {
            read.extend_from_slice(sent);
        }
        read
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_its_share_of_the_processor_answers_go_out_as_they_are() {
        let gzip = Gzip::new();
        let body = Bytes::from(vec![b'x'; MOST]);
        let packed = |count: usize| (0..count).filter(|_| gzip.apply(body.clone()).1).count();
        let at_once = packed(1000);
        assert!(at_once > 1 && at_once < 1000, "{at_once}");
        assert_eq!(packed(1000), 0);
        tokio::time::advance(std::time::Duration::from_millis(250)).await;
        let each_second = usize::try_from(RATE).unwrap() / MOST;
        assert!(packed(1000).abs_diff(each_second / 4) <= 1);
    }
}
