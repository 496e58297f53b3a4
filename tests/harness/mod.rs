//! What the tests are made of: servers, clients that speak the wire from the protocol page alone, and scripts.
//!
//! Nothing here uses the server's own types for the wire: a mistake in them would cancel itself out.

use std::time::Duration;

use serde_json::Value;

mod browser;
mod client;
mod http;
mod late_log;
mod middlebox;
mod nginx;
mod program;
mod roster;
mod script;
mod server;
mod sloth;

pub(crate) use browser::{Browser, Key, Page, Screen};
pub(crate) use client::Client;
pub(crate) use http::{Answer, Http, Request};
pub(crate) use middlebox::{Middlebox, Upgrade};
pub(crate) use nginx::{Nginx, Via};
pub(crate) use program::{PROGRAM, Program, scrape};
pub(crate) use roster::Roster;
pub(crate) use script::{MIXES, PUSH_MIXES, check, check_on, check_with, includes};
pub(crate) use server::{Addresses, COSTLY, Over, STAFF, Server, Setup};
pub(crate) use sloth::Sloth;

/// How long a test waits for anything before it fails: long enough for a machine with other work to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A seeded stream of numbers (SplitMix64): what a test does at random it can do again.
#[derive(Debug, Clone)]
pub(crate) struct Seeded(pub(crate) u64);

impl Seeded {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// True in so many of a hundred cases.
    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.next() % 100 < chance
    }
}

/// Runs `probe` until it gives something; fails with `what` where it never does.
pub(crate) async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
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

/// Raises this process's own limit on open descriptors, where the system's default is too low for a crowd.
pub(crate) async fn allow_descriptors(many: usize) {
    let mut prlimit = tokio::process::Command::new("prlimit");
    prlimit.args([
        "--pid",
        &std::process::id().to_string(),
        &format!("--nofile={many}:"),
    ]);
    let status = prlimit.status().await.expect("prlimit is installed");
    assert!(
        status.success(),
        "{many} descriptors are not allowed here: raise the hard limit"
    );
}

/// The `code` of an `error` or a `bye`, else the whole object: for assertions that say what came.
pub(crate) fn code(object: &Value) -> String {
    object["code"]
        .as_str()
        .map_or_else(|| object.to_string(), str::to_owned)
}
