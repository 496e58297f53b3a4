//! The authenticator does what the server expects of one: the conformance kit's scenarios.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{fs, path::Path};

use api_keys::ApiKeys;
use async_trait::async_trait;
use chinwag::Plugins;
use chinwag_conformance::{Gatekeeper, Login, strike_out};
use serde_json::{Value, json};

const KEYS: [(&str, &str); 2] = [
    ("alice", "replace-this-by-32-random-bytes"),
    ("bob", "and-this-too-by-others-than-hers"),
];

struct Example;

#[async_trait]
impl Gatekeeper for Example {
    fn plugins(&self, plugins: Plugins) -> Plugins {
        plugins.authenticator::<ApiKeys>()
    }

    fn keys(&self, folder: &Path) -> String {
        fs::write(folder.join("keys.txt"), include_str!("../keys.txt")).unwrap();
        "kind = \"api-keys\"\nfile = \"keys.txt\"\ncheck_every = \"10ms\"".into()
    }

    fn good(&self) -> Vec<Login> {
        KEYS.map(|(user, key)| Login::token(user, key)).to_vec()
    }

    fn bad(&self) -> Vec<Value> {
        vec![
            json!({"token": "replace-this-by-32-random-bytez"}),
            json!({"token": "x"}),
        ]
    }

    async fn take_out(&self, folder: &Path, login: &Login) {
        strike_out(&folder.join("keys.txt"), &login.user);
    }
}

chinwag_conformance::authenticator!(
    Example,
    without outages = "It depends on nobody.",
    without silence = "It depends on nobody.",
    without expiry = "Its keys have no end.",
    without rooms = "Its file has no rooms.",
    without roles = "Its file has no roles.",
    without passwords = "It judges keys, which say whose they are.",
);
