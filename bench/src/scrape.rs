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

/// Fetches `/metrics` once; returns how many bytes the answer had.
///
/// # Errors
/// If there is no answer, or another one than 200.
pub fn fetch(addr: SocketAddr) -> io::Result<usize> {
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
    Ok(answer.len())
}
