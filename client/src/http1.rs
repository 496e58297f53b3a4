//! One keep-alive connection for requests, opened again where it was closed between two of them.

use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::http1::{Builder, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::{
    task::JoinSet,
    time::{Duration, timeout},
};

use crate::{
    ConnectError, Loss, Options, TlsFault,
    address::Address,
    stream::{Server, within},
};

/// The most that the head of an answer may take.
const HEAD_BYTES: usize = 16 << 10;
/// How long a connection that is closed may take to say why.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The request never reached the server.
    Unsent(ConnectError),
    /// It may have reached the server.
    Lost(Loss),
    /// The same, and nothing came in time.
    Late,
}

/// A connection, when there is one.
pub(crate) struct Http {
    sender: Option<SendRequest<Full<Bytes>>>,
    /// What drives the connection, and tells what was wrong with TLS; dropped with it.
    driver: JoinSet<Option<TlsFault>>,
}

/// A request less what all have in common.
pub(crate) struct Ask<'a> {
    pub(crate) method: Method,
    /// Below the URL's own path.
    pub(crate) path: &'a str,
    pub(crate) body: Option<Bytes>,
    /// The session's id as a header.
    pub(crate) bearer: Option<HeaderValue>,
    pub(crate) patience: Duration,
    /// The most bytes of the answer's body.
    pub(crate) limit: usize,
}

impl Http {
    pub(crate) fn new() -> Self {
        Self {
            sender: None,
            driver: JoinSet::new(),
        }
    }

    /// Opens the connection where there is none.
    pub(crate) async fn open(
        &mut self,
        server: &Server,
        options: &Options,
    ) -> Result<&mut SendRequest<Full<Bytes>>, ConnectError> {
        let usable = self.sender.take_if(|sender| !sender.is_closed());
        let sender = match usable {
            Some(sender) => sender,
            None => {
                let address = &server.address;
                let stream = within(address, options, server.connect()).await?;
                let handshake = Builder::new()
                    .max_header_size(HEAD_BYTES)
                    .handshake(TokioIo::new(stream))
                    .await;
                let (sender, connection) = handshake.map_err(|error| ConnectError::NotChinwag {
                    url: address.to_string(),
                    why: error.to_string(),
                })?;
                self.driver.abort_all();
                self.driver.detach_all();
                self.driver.spawn(async move {
                    // All else that goes wrong is told to the request, or means that the connection is closed.
                    let error = connection.await.err()?;
                    TlsFault::beneath(&error).cloned()
                });
                sender
            }
        };
        Ok(self.sender.insert(sender))
    }

    /// Sends a request and reads the whole answer. A request that found the connection closed is sent over another.
    pub(crate) async fn ask(
        &mut self,
        server: &Server,
        options: &Options,
        ask: Ask<'_>,
    ) -> Result<Answer, Trouble> {
        let patience = ask.patience;
        let answer = timeout(patience, Box::pin(self.exchange(server, options, ask))).await;
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            failed => {
                // Whatever else comes on this connection would be taken for the answer to another request.
                self.sender = None;
                failed.unwrap_or(Err(Trouble::Late))
            }
        }
    }

    async fn exchange(
        &mut self,
        server: &Server,
        options: &Options,
        ask: Ask<'_>,
    ) -> Result<Answer, Trouble> {
        let limit = ask.limit;
        let mut request = request(&server.address, ask);
        let mut again = true;
        let response = loop {
            let sender = self.open(server, options).await.map_err(Trouble::Unsent)?;
            let sent = match sender.ready().await {
                Ok(()) => sender.try_send_request(request).await,
                Err(_) if again => {
                    self.renew().await?;
                    again = false;
                    continue;
                }
                Err(error) => return Err(Trouble::Lost(self.last_words(&error).await)),
            };
            match sent {
                Ok(response) => break response,
                Err(mut error) => match error.take_message() {
                    // It was closed between two requests, which servers may do at any time.
                    Some(unsent) if again => {
                        self.renew().await?;
                        again = false;
                        request = unsent;
                    }
                    _ => return Err(Trouble::Lost(self.last_words(error.error()).await)),
                },
            }
        };
        let status = response.status();
        let body = read(response.into_body(), limit)
            .await
            .map_err(Trouble::Lost)?;
        Ok(Answer { status, body })
    }

    /// Gives up a connection that was found closed, unless another one would end in the same way.
    async fn renew(&mut self) -> Result<(), Trouble> {
        match self.fault().await {
            Some(fault) => Err(Trouble::Lost(Loss::Tls(fault))),
            None => {
                self.sender = None;
                Ok(())
            }
        }
    }

    /// Why a request has failed. A request that found the connection closed does not know.
    async fn last_words(&mut self, error: &hyper::Error) -> Loss {
        if error.is_closed() || error.is_canceled() {
            return self.fault().await.map_or(Loss::Closed, Loss::Tls);
        }
        loss(error)
    }

    /// What was wrong with TLS on the connection, which is closed.
    async fn fault(&mut self) -> Option<TlsFault> {
        let ended = timeout(LAST_WORDS, self.driver.join_next()).await;
        ended.ok()??.ok()?
    }
}

fn request(address: &Address, ask: Ask<'_>) -> Request<Full<Bytes>> {
    let mut request = Request::builder()
        .method(ask.method)
        .uri(format!("{}{}", address.path, ask.path))
        .header(header::HOST, address.authority())
        .header(
            header::USER_AGENT,
            concat!("chinwag-client/", env!("CARGO_PKG_VERSION")),
        );
    if let Some(bearer) = ask.bearer {
        request = request.header(header::AUTHORIZATION, bearer);
    }
    if ask.body.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    request
        .body(Full::new(ask.body.unwrap_or_default()))
        .expect("every part was a part of a URL, or is a constant")
}

async fn read(mut body: Incoming, limit: usize) -> Result<Bytes, Loss> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| loss(&error))?;
        if let Ok(data) = frame.into_data() {
            if bytes.len() + data.len() > limit {
                return Err(Loss::TooLarge(limit));
            }
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes.freeze())
}

fn loss(error: &hyper::Error) -> Loss {
    if let Some(fault) = TlsFault::beneath(error) {
        Loss::Tls(fault.clone())
    } else if error.is_parse() {
        Loss::Garbled(error.to_string())
    } else {
        Loss::Closed
    }
}
