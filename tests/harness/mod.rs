//! What the tests are made of beyond the conformance kit, whose servers and clients they use: the real program, and who
//! stands between it and its clients.
//!
//! Nothing here uses the server's own types for the wire: a mistake in them would cancel itself out.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

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
pub(crate) use program::{PROGRAM, Program, scrape, sum};
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

/// Where a file of the repository is.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The blocks of a page of the repository that are fenced as `kind`, of which there is one at least.
pub(crate) fn blocks(page: &str, kind: &str) -> Vec<String> {
    let text = std::fs::read_to_string(repository(page)).expect("the page is there");
    let fenced = text.split("\n```").skip(1).step_by(2);
    let blocks: Vec<String> = fenced
        .filter_map(|block| block.strip_prefix(kind)?.strip_prefix('\n'))
        .map(|block| format!("{block}\n"))
        .collect();
    assert!(!blocks.is_empty(), "{page} has no {kind}");
    blocks
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
