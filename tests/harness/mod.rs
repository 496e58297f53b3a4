//! What the tests are made of beyond the conformance kit, whose servers and clients they use: the real program, and who
//! stands between it and its clients.
//!
//! Nothing here uses the server's own types for the wire: a mistake in them would cancel itself out.

use std::net::SocketAddr;

mod backend;
mod browser;
mod middlebox;
mod nginx;
mod pki;
mod program;
mod sloth;

pub(crate) use chinwag_conformance::{
    Answer, COSTLY, Client, Http, Over, PATIENCE, Request, STAFF, Seeded, Server, Setup, code,
    eventually, includes,
};

pub(crate) use backend::{Backend, Says, brief, table as manager_table, willing};
pub(crate) use browser::{Browser, Key, Page, Screen};
pub(crate) use middlebox::{Middlebox, Upgrade};
pub(crate) use nginx::{Nginx, Via};
pub(crate) use pki::{Authority, Encrypted, Identity, Pki, Secure, VERSIONS, day};
pub(crate) use program::{PROGRAM, Program, scrape};
pub(crate) use sloth::Sloth;

/// What says where each transport listens, so that the same client works on a server in this process or in another.
pub(crate) trait Addresses {
    fn of(&self, over: Over) -> SocketAddr;
}

impl Addresses for Server {
    fn of(&self, over: Over) -> SocketAddr {
        self.addr(over)
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
