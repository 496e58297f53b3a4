//! What the scanners that people point at servers find: nothing.

use std::{process::Stdio, time::Duration};

use serde_json::Value;
use tokio::{process::Command, time::timeout};

use crate::harness::{Addresses, Over, Pki, Program, Setup};

/// They wait a lot, and CPU may be scarce.
const PATIENCE: Duration = Duration::from_secs(240);

/// Every cipher suite that may be offered.
const SUITES: [&str; 9] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-RSA-CHACHA20-POLY1305",
];

async fn start(pki: &Pki) -> Program {
    let setup = Setup::default()
        .and(&pki.table(""))
        .on_all("tls = \"door\"");
    Program::start(&setup).await
}

async fn output(command: &mut Command) -> String {
    let command = command.stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(PATIENCE, command.output()).await;
    let output = output.expect("it ends").expect("it is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

async fn sslscan(server: &Program, over: Over) {
    let address = server.of(over).to_string();
    let text = output(Command::new("sslscan").args(["--no-colour", &address])).await;
    for (version, state) in [
        ("SSLv2", "disabled"),
        ("SSLv3", "disabled"),
        ("TLSv1.0", "disabled"),
        ("TLSv1.1", "disabled"),
        ("TLSv1.2", "enabled"),
        ("TLSv1.3", "enabled"),
    ] {
        let is_so = |line: &str| line.split_whitespace().eq([version, state]);
        assert!(text.lines().any(is_so), "{over:?}: {version}:\n{text}");
    }
    for words in [
        "Session renegotiation not supported",
        "TLSv1.2 not vulnerable to heartbleed",
        "TLSv1.3 not vulnerable to heartbleed",
        "Signature Algorithm: ecdsa-with-SHA256",
    ] {
        assert!(text.contains(words), "{over:?}: {words}:\n{text}");
    }
    let suites: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("Preferred") || line.starts_with("Accepted"))
        .filter_map(|line| line.split_whitespace().nth(4))
        .collect();
    assert!(suites.len() >= 6, "{over:?}: {suites:?}:\n{text}");
    for suite in suites {
        assert!(SUITES.contains(&suite), "{over:?}: {suite}:\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sslscan_finds_nothing_on_any_transport() {
    let pki = Pki::new();
    let server = start(&pki).await;
    tokio::join!(
        sslscan(&server, Over::Tcp),
        sslscan(&server, Over::WebSocket),
        sslscan(&server, Over::Polling),
    );
}

/// What testssl.sh says in these sections: for each subject its severity and its words.
async fn testssl(server: &Program, sections: &[&str]) -> Vec<(String, String, String)> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("findings.json");
    let mut command = Command::new("testssl");
    command
        .current_dir(folder.path())
        .args([
            "--quiet",
            "--color",
            "0",
            "--warnings",
            "batch",
            "--nodns",
            "none",
        ])
        .args([
            "--connect-timeout",
            "10",
            "--openssl-timeout",
            "10",
            "--jsonfile",
        ])
        .arg(&file)
        .args(sections)
        .arg(server.of(Over::Polling).to_string());
    let text = output(&mut command).await;
    let findings = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{error}: {text}"));
    let findings: Value = serde_json::from_str(&findings).unwrap();
    let findings = findings.as_array().unwrap().iter();
    let word = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    findings
        .map(|finding| {
            let [id, severity, words] = ["id", "severity", "finding"].map(|key| word(finding, key));
            (id, severity, words)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn testssl_finds_nothing_but_that_the_client_picks_the_cipher() {
    let pki = Pki::new();
    let server = start(&pki).await;
    let (ciphers, flaws) = tokio::join!(
        testssl(
            &server,
            &["--protocols", "--standard", "--server-preference"]
        ),
        testssl(&server, &["--vulnerable"]),
    );
    for (id, severity, words) in ciphers.iter().chain(&flaws) {
        let is_fine = match id.as_str() {
            // All suites that are offered are good: the client knows best which is fast on its machine.
            "cipher_order" => true,
            // About the scanner's own OpenSSL.
            "engine_problem" => true,
            _ => ["OK", "INFO"].contains(&severity.as_str()),
        };
        assert!(is_fine, "{id}: {severity}: {words}");
    }
    // It looked, and is no newer one that has other words for these.
    for (findings, ids) in [
        (
            &ciphers,
            &[
                "SSLv3",
                "TLS1_2",
                "TLS1_3",
                "cipherlist_STRONG",
                "cipher_order",
            ][..],
        ),
        (
            &flaws,
            &[
                "heartbleed",
                "ROBOT",
                "secure_renego",
                "CRIME_TLS",
                "LUCKY13",
                "RC4",
            ],
        ),
    ] {
        for wanted in ids {
            let found = findings.iter().any(|(id, ..)| id == wanted);
            assert!(found, "{wanted} is missing: {findings:?}");
        }
    }
}
