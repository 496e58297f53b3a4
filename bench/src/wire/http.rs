//! Answers of an HTTP/1.1 server, as a client that polls reads them: a status and a body of known length.

use std::{io::Read, ops::Range};

use flate2::bufread::GzDecoder;

use super::{MAX_FRAME, WireError, head_end, header};

/// The longest head that is taken.
const MAX_HEAD: usize = 16 * 1024;

/// One answer within the bytes it was cut from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// Where the body lies.
    pub body: Range<usize>,
    /// Whether the server closes the connection after it.
    pub last: bool,
    /// Whether the body is compressed with gzip.
    pub gzip: bool,
}

/// Cuts the first answer out of `bytes`; `None` while it is incomplete.
///
/// # Errors
/// What is no answer of HTTP/1.1 with a `Content-Length`, is encoded in another way than with gzip, or is longer than
/// the longest frame.
pub fn cut(bytes: &[u8]) -> Result<Option<Answer>, WireError> {
    let Some(end) = head_end(bytes) else {
        return if bytes.len() > MAX_HEAD {
            Err(WireError::TooLong)
        } else {
            Ok(None)
        };
    };
    let head = std::str::from_utf8(&bytes[..end])
        .map_err(|_| WireError::Http("has a head of odd bytes"))?;
    let status = head
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .ok_or(WireError::Http("does not begin with HTTP/1.1 and a status"))?;
    let length: usize = header(head, "content-length")
        .and_then(|value| value.parse().ok())
        .ok_or(WireError::Http("has no Content-Length"))?;
    if length > MAX_FRAME {
        return Err(WireError::TooLong);
    }
    let last = header(head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let gzip = match header(head, "content-encoding") {
        None => false,
        Some(coding) if coding.eq_ignore_ascii_case("gzip") => true,
        Some(_) => return Err(WireError::Http("has an unknown Content-Encoding")),
    };
    let body = end..end + length;
    Ok((bytes.len() >= body.end).then_some(Answer {
        status,
        body,
        last,
        gzip,
    }))
}

/// Puts the text of a body that is compressed with gzip into `text`.
///
/// # Errors
/// If it is no such body, or its text is longer than the longest frame.
pub fn inflate(body: &[u8], text: &mut Vec<u8>) -> Result<(), WireError> {
    text.clear();
    let mut limited = GzDecoder::new(body).take(MAX_FRAME as u64 + 1);
    limited
        .read_to_end(text)
        .map_err(|_| WireError::Http("is not compressed as it says"))?;
    if text.len() > MAX_FRAME {
        return Err(WireError::TooLong);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 ";

    #[test]
    fn an_answer_ends_with_its_body() {
        let answer = cut(ANSWER).unwrap().unwrap();
        assert_eq!((answer.status, answer.last), (200, false));
        assert_eq!(&ANSWER[answer.body.clone()], b"{}");
        assert_eq!(cut(&ANSWER[..answer.body.end - 1]), Ok(None));
    }

    #[test]
    fn a_server_may_say_that_it_closes() {
        let answer = b"HTTP/1.1 429 X\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        let answer = cut(answer).unwrap().unwrap();
        assert_eq!((answer.status, answer.last), (429, true));
        assert!(answer.body.is_empty());
    }

    fn zipped(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_body_may_be_compressed_and_is_not_inflated_without_bound() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n";
        assert!(cut(answer).unwrap().unwrap().gzip);
        assert!(!cut(ANSWER).unwrap().unwrap().gzip);
        let mut text = b"old".to_vec();
        inflate(&zipped(b"{}"), &mut text).unwrap();
        assert_eq!(text, b"{}");
        inflate(&zipped(&[b'x'; MAX_FRAME]), &mut text).unwrap();
        for bad in [
            &zipped(&[b'x'; MAX_FRAME + 1])[..],
            &zipped(b"{}")[..9],
            b"{}",
        ] {
            assert!(inflate(bad, &mut text).is_err());
        }
    }

    #[test]
    fn what_has_no_length_or_is_no_answer_is_refused() {
        for bytes in [
            &b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 0\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n",
            &[b'x'; MAX_HEAD + 1],
        ] {
            assert!(cut(bytes).is_err());
        }
    }
}
