//! Fetching metrics as Prometheus does, but for the connection, which is a new one each time: the dearer way.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most that is taken for an answer.
const MOST: u64 = 16 * 1024 * 1024;

/// Fetches `/metrics` once; returns the answer with its head.
///
/// # Errors
/// If there is no answer, or another one than 200.
pub fn fetch(addr: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(
        format!("GET /metrics HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut answer = Vec::new();
    stream.take(MOST).read_to_end(&mut answer)?;
    if !answer.starts_with(b"HTTP/1.1 200 ") {
        return Err(io::Error::other(crate::object::shown(&answer)));
    }
    String::from_utf8(answer).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The value of the metric of this name, which has no labels, in what was fetched.
#[must_use]
pub fn value(metrics: &str, name: &str) -> Option<f64> {
    metrics
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .and_then(|value| value.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_found_by_its_whole_name() {
        let metrics =
            "HTTP/1.1 200 OK\r\n\r\n# TYPE a histogram\na_count_in_all 7\na_count 12\nb 1.5\n";
        assert_eq!(value(metrics, "a_count"), Some(12.0));
        assert_eq!(value(metrics, "b"), Some(1.5));
        assert_eq!(value(metrics, "a"), None);
    }
}
