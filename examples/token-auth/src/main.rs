//! chinwag with an authenticator of its own: bearer tokens that stand in the configuration.

use std::{collections::BTreeMap, process::ExitCode, sync::Arc};

use async_trait::async_trait;
use chinwag::{Plugins, core::plugin::*};
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

/// A table of `kind = "tokens"`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Tokens {
    /// The token of each user; `CHINWAG_AUTHENTICATORS__NAME__TOKENS__ALICE_FILE` reads Alice's from a file.
    tokens: BTreeMap<String, SecretString>,
}

#[async_trait]
impl AuthenticatorConfig for Tokens {
    const KIND: &'static str = "tokens";

    async fn build(self, _: AuthenticatorContext) -> Result<Arc<dyn Authenticator>, BuildError> {
        if self
            .tokens
            .values()
            .any(|token| token.expose_secret().len() < 16)
        {
            return Err(BuildError::key("tokens", "a token has at least 16 bytes"));
        }
        Ok(Arc::new(self))
    }
}

#[async_trait]
impl Authenticator for Tokens {
    async fn authenticate(&self, request: &AuthRequest) -> Verdict {
        let Some(offered) = &request.credentials.token else {
            return Verdict::Abstain; // A password, or nothing: perhaps the next one in `auth` knows what to do with it.
        };
        let offered = offered.expose_secret().as_bytes();
        let mut verdict = Verdict::deny("no such token");
        for (user, token) in &self.tokens {
            // In constant time, and past the match to the end: how long it takes tells nothing of any token.
            if token.expose_secret().as_bytes().ct_eq(offered).into() {
                verdict = Verdict::Allow(Principal::vouched(user));
            }
        }
        verdict
    }
}

fn main() -> ExitCode {
    chinwag::run(Plugins::builtin().authenticator::<Tokens>())
}

#[cfg(test)]
mod conformance;
