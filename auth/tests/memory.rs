//! What logging in costs in memory, as the system sees it. Alone in its file, and so in its process:
//! the numbers are those of a whole process.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "all of this is a test")]

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use chinwag_auth::{Password, password};
use chinwag_core::{
    Lifecycle,
    plugin::{
        AuthRequest, Authenticator, AuthenticatorConfig, AuthenticatorContext, Credentials, Verdict,
    },
};

/// KiB of the process that are in memory.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_ascii_whitespace().nth(1));
    kib.unwrap().parse().unwrap()
}

async fn log_in(authenticator: &Arc<dyn Authenticator>) {
    let request = AuthRequest::new(
        Credentials::password("alice", "a"),
        "web".into(),
        IpAddr::from(Ipv4Addr::LOCALHOST),
    );
    let verdict = authenticator.authenticate(&request).await;
    assert!(matches!(verdict, Verdict::Allow(_)), "{verdict:?}");
}

#[tokio::test]
async fn one_log_in_after_the_other_takes_the_memory_of_one() {
    let folder = tempfile::tempdir().unwrap();
    password::set(&folder.path().join("users"), "alice", &"a".into()).unwrap();
    let mut table = Password::new("users");
    table.hash_threads = 1;
    let cx = AuthenticatorContext::new("staff", folder.path(), Lifecycle::new());
    let staff = table.build(cx).await.unwrap();

    let mut seen = Vec::new();
    for _ in 0..12 {
        log_in(&staff).await;
        seen.push(resident());
    }
    let grown = seen.iter().max().unwrap() - seen[1];
    assert!(grown < 8 << 10, "grew by {grown} KiB: {seen:?}");
}
