//! Whether a transport or an authenticator of yours keeps what chinwag promises: the server's own scenarios, played
//! against it.
//!
//! chinwag tests its own kinds with these: scripts in which users log in, join, talk and leave, over one transport and
//! over mixes of several, with every event checked for its number, order and content; and the ways in which sessions
//! end, from a log-out to a reader that has stopped. The clients know the protocol's page and none of the server's
//! types. The servers run in the process of the test, on ports and folders of their own.
//!
//! A transport is described by a [`FrontEnd`]: its table, and how a client connects. One line makes a test of each
//! scenario:
//!
//! ```
//! use chinwag_conformance::{FrontEnd, Kit, Link, Place};
//! use std::io;
//!
//! #[derive(Debug)]
//! struct Carrier;
//!
//! #[async_trait::async_trait]
//! impl FrontEnd for Carrier {
//!     fn name(&self) -> &str {
//!         "carrier"
//!     }
//!
//!     fn keys(&self) -> String {
//!         "kind = \"tcp\"\nbind = \"127.0.0.1:0\"".into() // Yours; `plugins` then adds its kind.
//!     }
//!
//!     async fn connect(&self, server: &Place<'_>) -> io::Result<Link> {
//!         let addr = server.addr.expect("it has an address");
//!         Ok(Link::lines(tokio::net::TcpStream::connect(addr).await?))
//!     }
//! }
//!
//! mod battery {
//!     use super::{Carrier, Kit};
//!     chinwag_conformance::transport!(Kit::of(Carrier));
//! }
//! # fn main() {}
//! ```
//!
//! For an authenticator see [`Gatekeeper`].

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::large_futures,
    clippy::string_slice,
    reason = "a scenario fails by panicking, and runs once"
)]

mod authenticator;
mod client;
mod http;
mod kit;
mod late_log;
mod link;
mod program;
mod roster;
mod scenarios;
mod script;
mod server;
mod sloth;

use std::time::Duration;

use serde_json::Value;

pub use authenticator::{Gatekeeper, Login, abilities, strike_out};
pub use client::Client;
pub use http::{Answer, Http, Request};
pub use kit::Kit;
pub use link::{Closed, Delivery, Dial, Duplex, Hear, Heard, Link, Speak, Stream};
pub use program::{Deployment, Program};
#[doc(hidden)]
pub use scenarios::{run_authenticator, run_transport};
pub use script::includes;
pub use server::{COSTLY, FrontEnd, Over, Place, STAFF, Server, Setup};
pub use sloth::Sloth;

/// How long a client waits for anything before its test fails: long enough for a machine with other work to do.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A seeded stream of numbers (SplitMix64): what a test does at random it can do again.
#[derive(Debug, Clone)]
pub struct Seeded(pub u64);

impl Seeded {
    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it has no end")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// True in so many of a hundred cases.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.next() % 100 < chance
    }
}

/// Runs `probe` until it gives something; panics with `what` where it never does.
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "waited {PATIENCE:?} in vain for: {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The `code` of an `error` or a `bye`, else the whole object: for assertions that say what came.
#[must_use]
pub fn code(object: &Value) -> String {
    object["code"]
        .as_str()
        .map_or_else(|| object.to_string(), str::to_owned)
}

/// The guide's examples, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/plugins.md")]
struct Guide;
