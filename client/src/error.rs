//! What can go wrong, for those who react to it: before there is a connection, with one command, and for good.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use crate::{
    address::Address,
    tls::TlsFault,
    wire::{Bye, Refusal},
};

/// There is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The URL is not one that this client can use; the text says why. Never holds what stands before an `@`.
    #[error("{0}")]
    Url(String),
    /// A file of [`Options::tls`](crate::Options::tls) can't be used.
    #[error("{}: {why}", .path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why. Never holds what stands in it.
        why: String,
    },
    /// Somebody answers, and TLS with them fails.
    #[error("can't connect to {url}: {fault}")]
    Tls {
        /// Where.
        url: String,
        /// Why.
        fault: TlsFault,
    },
    /// Nobody answers there.
    #[error("can't connect to {url}: {source}")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        source: io::Error,
    },
    /// Nobody answered within [`Options::connect_timeout`](crate::Options::connect_timeout).
    #[error("can't connect to {url}: no answer within {after:?}")]
    Late {
        /// Where.
        url: String,
        /// The limit.
        after: Duration,
    },
    /// The server refused the connection itself, in the protocol's words.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Whoever listens there does not speak this protocol over this transport.
    #[error("{url} is no chinwag server for this: {why}")]
    NotChinwag {
        /// Where.
        url: String,
        /// What it said instead.
        why: String,
    },
}

impl ConnectError {
    /// What the system, or TLS, says of a connection.
    pub(crate) fn lost(address: &Address, source: io::Error) -> Self {
        let url = address.to_string();
        match TlsFault::inside(&source) {
            Some(fault) => Self::Tls {
                url,
                fault: fault.clone(),
            },
            None => Self::Unreachable { url, source },
        }
    }
}

/// A command was not carried out, or nobody knows.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server refused it; all else is as it was.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It is larger than what the server takes; nothing was sent.
    #[error("a command of {bytes} bytes, and the server takes {limit}")]
    TooLarge {
        /// Of the command.
        bytes: usize,
        /// `frame_bytes`, or 8 KiB before log-in.
        limit: usize,
    },
    /// It holds a password, a token or a session's id, which others on the way could read: the URL asks for plain text
    /// to another machine, and [`Options::insecure`](crate::Options::insecure) does not allow it. Nothing was sent.
    #[error("secrets do not go to {0} in plain text, for everybody on the way to read")]
    Exposed(Box<str>),
    /// The `id` is no integer below [`FIRST_OWN_ID`](crate::FIRST_OWN_ID), or a command under way has it; nothing was
    /// sent.
    #[error("id must be an integer below 2^52 that no command under way has, and is {0}")]
    Id(String),
    /// No answer came within [`Options::answer_timeout`](crate::Options::answer_timeout). The server may have carried
    /// it out.
    #[error("no answer within {0:?}; it may have arrived all the same")]
    NoAnswer(Duration),
    /// Its request was lost, over HTTP polling; the session may go on. The server may have carried it out.
    #[error("{0}; it may have arrived all the same")]
    Lost(Loss),
    /// The answer was none that this client understands.
    #[error("the server's answer makes no sense: {0}")]
    Senseless(String),
    /// The connection has ended. A command that was on its way may have been carried out.
    #[error(transparent)]
    Ended(#[from] End),
}

/// How a connection ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum End {
    /// The server said goodbye, or says of the session that it has ended.
    #[error(transparent)]
    Bye(#[from] Bye),
    /// It was lost: without a goodbye.
    #[error(transparent)]
    Lost(#[from] Loss),
}

/// How a connection was lost.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Loss {
    /// It was closed from the other end.
    #[error("the connection was closed without a goodbye")]
    Closed,
    /// Nothing came for that long although it was asked for.
    #[error("the server has fallen silent for {0:?}")]
    Silent(Duration),
    /// The system says so.
    #[error("the connection broke: {0}")]
    Io(Arc<io::Error>),
    /// TLS failed when it seemed to be agreed upon: the server may judge a client's certificate after its own part of
    /// the handshake.
    #[error("no connection that can be used: {0}")]
    Tls(TlsFault),
    /// The server sent more at once than it said it would.
    #[error("the server sent an object of over {0} bytes")]
    TooLarge(usize),
    /// What came is none of this protocol.
    #[error("this is no chinwag server, or something between changes what it says: {0}")]
    Garbled(String),
    /// Somebody else polls for this session.
    #[error("another client polls for this session")]
    Superseded,
    /// The server does not know the session any more: it was started anew.
    #[error("the server no longer knows the session")]
    Forgotten,
}

impl From<io::Error> for Loss {
    fn from(error: io::Error) -> Self {
        match TlsFault::inside(&error) {
            Some(fault) => Self::Tls(fault.clone()),
            None => Self::Io(Arc::new(error)),
        }
    }
}
