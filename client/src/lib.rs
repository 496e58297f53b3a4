//! A client of the chinwag chat server, over TCP, WebSocket or HTTP polling.
//!
//! ```no_run
//! use chinwag_client::{Client, Event, Login, Options};
//!
//! # async fn chat() -> Result<(), Box<dyn std::error::Error>> {
//! let mut client = Client::connect("tcp://127.0.0.1:4020", Options::default()).await?;
//! client.login(Login::name("ada")).await?;
//! let room = client.join("lobby").await?;
//! println!("{} are here", room.count);
//! client.send("lobby", "hello").await?;
//! while let Ok(event) = client.next().await {
//!     if let Event::Message(message) = event {
//!         println!("{}: {}", message.user, message.text.unwrap_or_default());
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! **One connection, one task.** [`Client::connect`] starts a task that owns the connection; it ends with it, or when
//! the [`Client`] and all its halves are dropped. It answers pings, sends those that are due, and matches answers to
//! commands by `id`, while events go on arriving.
//!
//! **Two halves.** [`Client::split`] gives a [`Handle`] that sends commands, as often cloned as needed, and [`Events`],
//! of which there is one. The stream of events alone tells everything about rooms in order: an [`Event::Init`] comes
//! before all else of a room, also where [`Handle::join`] returns the same, and an [`Event::Left`] after.
//!
//! **Everything is bounded.** Events wait in a queue of [`Options::event_queue`]. Where it is full the connection is
//! not read any further, so answers do not arrive either: an application that stops reading its events holds up itself,
//! then the server, which ends such a session with `slow_consumer`. Split the client where commands are sent without
//! events being read. Objects from the server have at most the bytes that its `session` tells.
//!
//! **Ends have a cause.** [`Events::next`] gives events until the end and then the [`End`]: the server's goodbye, with
//! its code and when to come back, or the loss of the connection.
//!
//! **Nobody listens in unasked.** `tls://`, `wss://` and `https://` are TLS 1.2 or 1.3, with the server's certificate
//! checked against the URL's host and those whom [`TlsFiles::ca`] or the system trusts; no option leaves that out.
//! Where the URL asks for plain text to another machine, log-ins with a password or a token are not sent, unless
//! [`Options::insecure`] says so. What is wrong with TLS has a word of its own each: [`TlsFault`].
//!
//! This version does not come back by itself after a loss, and does not resume sessions.

mod address;
mod client;
mod error;
mod http1;
mod lines;
mod polling;
mod push;
mod stream;
mod tls;
mod websocket;
mod wire;
mod words;

pub use client::{Client, Events, FIRST_OWN_ID, Handle, Login, Options};
pub use error::{ConnectError, End, Error, Loss};
pub use tls::{Identity, TlsFault, TlsFiles};
pub use wire::{
    Bye, Event, Fields, Init, Join, Leave, Left, Limits, Message, Object, PresenceChange, Refusal,
    Sent, Session, Signal, Users, unescape_html,
};
pub use words::{EndCode, ErrorCode, LeaveReason, Presence};
