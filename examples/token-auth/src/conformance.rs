//! The authenticator does what the server expects of one: the conformance kit's scenarios.

use std::path::Path;

use chinwag::Plugins;
use chinwag_conformance::{Gatekeeper, Login};
use serde_json::{Value, json};

use super::Tokens;

const TOKENS: [(&str, &str); 2] = [
    ("alice", "replace-this-by-32-random-bytes"),
    ("bob", "and-this-too-by-others-than-hers"),
];

struct Example;

impl Gatekeeper for Example {
    fn plugins(&self, plugins: Plugins) -> Plugins {
        plugins.authenticator::<Tokens>()
    }

    fn keys(&self, _: &Path) -> String {
        let tokens = TOKENS.map(|(user, token)| format!("{user} = {token:?}"));
        format!("kind = \"tokens\"\ntokens = {{ {} }}", tokens.join(", "))
    }

    fn good(&self) -> Vec<Login> {
        TOKENS
            .map(|(user, token)| Login::token(user, token))
            .to_vec()
    }

    fn bad(&self) -> Vec<Value> {
        vec![json!({"token": "replace-this-by-32-random-bytez"})]
    }
}

chinwag_conformance::authenticator!(
    Example,
    without outages = "It depends on nobody.",
    without silence = "It depends on nobody.",
    without removal = "Its tokens stand in the configuration.",
    without expiry = "Its tokens have no end.",
    without rooms = "It knows no rooms.",
    without roles = "It knows no roles.",
    without passwords = "It judges tokens, which say whose they are.",
);
