//! Reading a request's body: bounded in bytes and in time.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

/// Why a body was not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyError {
    /// Over the limit. Where the client announced the length, nothing was read.
    TooLarge,
    /// Not there in time.
    Late,
    /// The connection failed, or the framing is broken.
    Broken,
}

/// The whole body: of at most `limit` bytes, and all there `within` that time.
///
/// # Errors
/// See [`BodyError`]. The rest of the body is not read, and the connection closes after the answer, which says so.
pub async fn read(body: Incoming, limit: usize, within: Duration) -> Result<Bytes, BodyError> {
    if body.size_hint().lower() > limit as u64 {
        return Err(BodyError::TooLarge);
    }
    tokio::time::timeout(within, read_frames(body, limit))
        .await
        .unwrap_or(Err(BodyError::Late))
}

async fn read_frames(mut body: Incoming, limit: usize) -> Result<Bytes, BodyError> {
    let mut read = BytesMut::new();
    while let Some(frame) = body.frame().await {
        // Trailers say nothing to us.
        let Ok(data) = frame.map_err(|_| BodyError::Broken)?.into_data() else {
            continue;
        };
        if data.len() > limit - read.len() {
            return Err(BodyError::TooLarge);
        }
        if read.is_empty() && body.is_end_stream() {
            return Ok(data);
        }
        read.extend_from_slice(&data);
    }
    Ok(read.freeze())
}
