//! A small HTTP/1.1 client by hand: the tests need every byte of a request under their control, also the wrong ones.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::FutureExt;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{Dial, PATIENCE, Stream};

/// One keep-alive connection, opened again where the server has closed it between two requests.
pub struct Http {
    dial: Dial,
    stream: Option<Stream>,
    unread: Vec<u8>,
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http")
            .field("is_open", &self.stream.is_some())
            .finish_non_exhaustive()
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    headers: Vec<(String, String)>,
    /// The body, with its chunks put together; compressed where the answer says so.
    pub body: Vec<u8>,
}

impl Answer {
    /// The only value of a header, if there is one.
    ///
    /// # Panics
    /// If there is more than one.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self
            .headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name));
        let value = values.next().map(|(_, v)| v.as_str());
        assert!(
            values.next().is_none(),
            "{name} comes twice: {:?}",
            self.headers
        );
        value
    }

    /// The body, which is always an object.
    ///
    /// # Panics
    /// If it is no JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| {
            panic!(
                "{error} in a body of status {}: {:?}",
                self.status,
                self.text()
            )
        })
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// `status code`, or the bare status where the body is no error.
    #[must_use]
    pub fn verdict(&self) -> String {
        let code = serde_json::from_slice::<Value>(&self.body).ok();
        match code.as_ref().and_then(|body| body["code"].as_str()) {
            Some(code) => format!("{} {code}", self.status),
            None => self.status.to_string(),
        }
    }
}

/// A request line, its header fields and a body, as they will be written.
#[derive(Debug, Clone)]
pub struct Request {
    head: String,
    body: Vec<u8>,
}

impl Request {
    /// Without any header field, not even `Host`.
    #[must_use]
    pub fn bare(method: &str, target: &str) -> Self {
        Self {
            head: format!("{method} {target} HTTP/1.1\r\n"),
            body: Vec::new(),
        }
    }

    /// With the host `localhost` and nothing else.
    #[must_use]
    pub fn new(method: &str, target: &str) -> Self {
        Self::bare(method, target).header("Host", "localhost")
    }

    /// Adds a header field.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.head += &format!("{name}: {value}\r\n");
        self
    }

    /// Adds `Authorization: Bearer`.
    #[must_use]
    pub fn bearer(self, id: &str) -> Self {
        self.header("Authorization", &format!("Bearer {id}"))
    }

    /// Adds a body that is called JSON, whether it is or not.
    #[must_use]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a body is often made on the spot"
    )]
    pub fn json(self, body: impl ToString) -> Self {
        self.header("Content-Type", "application/json")
            .body(body.to_string())
    }

    /// Adds a body with its length.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        let length = self.body.len().to_string();
        self.header("Content-Length", &length)
    }

    /// What goes out.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        [self.head.as_bytes(), b"\r\n", &self.body].concat()
    }
}

impl Http {
    /// To that address, in plain text.
    #[must_use]
    pub fn new(addr: SocketAddr) -> Self {
        Self::on(Arc::new(move || {
            async move { Ok(Box::new(TcpStream::connect(addr).await?) as Stream) }.boxed()
        }))
    }

    /// Over streams that `dial` opens.
    #[must_use]
    pub fn on(dial: Dial) -> Self {
        Self {
            dial,
            stream: None,
            unread: Vec::new(),
        }
    }

    /// Connects already now.
    ///
    /// # Errors
    /// The server does not listen.
    pub async fn open(&mut self) -> io::Result<()> {
        self.stream = Some((self.dial)().await?);
        Ok(())
    }

    /// A connection of its own to the same server.
    #[must_use]
    pub fn another(&self) -> Self {
        Self::on(Arc::clone(&self.dial))
    }

    /// Writes `request` and reads the whole answer.
    ///
    /// # Panics
    /// If there is none within [`PATIENCE`].
    pub async fn ask(&mut self, request: &Request) -> Answer {
        self.ask_within(request, PATIENCE).await
    }

    /// The same with a deadline of its own, for polls that are held.
    ///
    /// # Panics
    /// If there is no answer within `patience`.
    pub async fn ask_within(&mut self, request: &Request, patience: Duration) -> Answer {
        let what = request.head.lines().next().unwrap_or_default().to_owned();
        timeout(patience, async {
            self.write(&request.bytes()).await;
            self.answer()
                .await
                .unwrap_or_else(|| panic!("closed before an answer to {what}"))
        })
        .await
        .unwrap_or_else(|_| panic!("no answer to {what} within {patience:?}"))
    }

    /// Writes bytes as they are, over a new connection if the server has closed the present one.
    ///
    /// # Panics
    /// If the server does not listen.
    pub async fn write(&mut self, bytes: &[u8]) {
        let unread = &mut self.unread;
        let is_open = self.stream.as_mut().is_some_and(|stream| {
            // A look, not a wait.
            let read = stream.read_buf(unread).now_or_never();
            !matches!(read, Some(Ok(0) | Err(_)))
        });
        if !is_open {
            self.unread.clear();
            self.open().await.expect("the server listens");
        }
        let stream = self.stream.as_mut().expect("it was opened above");
        // A server that has answered already may stop reading: the answer is what counts then.
        let written = async {
            stream.write_all(bytes).await?;
            stream.flush().await
        };
        if written.await.is_err() {
            eprintln!("The server did not read a whole request.");
        }
    }

    /// Reads one answer; `None` where the connection ends before its first byte.
    ///
    /// # Panics
    /// If what comes is no answer of HTTP, or breaks off.
    pub async fn answer(&mut self) -> Option<Answer> {
        let head = loop {
            if let Some(end) = find(&self.unread, b"\r\n\r\n") {
                break self.unread.drain(..end + 4).collect::<Vec<u8>>();
            }
            if !self.more().await {
                assert!(
                    self.unread.is_empty(),
                    "half a head: {:?}",
                    text_of(&self.unread)
                );
                return None;
            }
        };
        let head = String::from_utf8(head).expect("a head is ASCII");
        let mut lines = head.lines();
        let status_line = lines.next().unwrap_or_default();
        let status = status_line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let status: u16 = status.unwrap_or_else(|| panic!("no status line: {status_line:?}"));
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        let mut answer = Answer {
            status,
            headers,
            body: Vec::new(),
        };
        answer.body = if status < 200 || status == 204 || status == 304 {
            Vec::new()
        } else if let Some(length) = answer.header("content-length") {
            let length = length.parse().expect("Content-Length is a number");
            self.take(length).await
        } else if answer.header("transfer-encoding") == Some("chunked") {
            self.chunks().await
        } else {
            while self.more().await {}
            std::mem::take(&mut self.unread)
        };
        if answer
            .header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"))
        {
            self.stream = None;
        }
        Some(answer)
    }

    async fn take(&mut self, length: usize) -> Vec<u8> {
        while self.unread.len() < length {
            let (have, more) = (self.unread.len(), self.more().await);
            assert!(more, "closed after {have} of {length} bytes");
        }
        self.unread.drain(..length).collect()
    }

    async fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let line = loop {
                if let Some(end) = find(&self.unread, b"\r\n") {
                    break self.unread.drain(..end + 2).collect::<Vec<u8>>();
                }
                assert!(self.more().await, "closed inside of a chunked body");
            };
            let size = usize::from_str_radix(text_of(&line).trim(), 16).expect("a chunk's size");
            body.extend(self.take(size).await);
            self.take(2).await;
            if size == 0 {
                return body;
            }
        }
    }

    async fn more(&mut self) -> bool {
        let Some(stream) = &mut self.stream else {
            return false;
        };
        matches!(stream.read_buf(&mut self.unread).await, Ok(1..))
    }
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes
        .windows(needle.len())
        .position(|window| window == needle)
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
