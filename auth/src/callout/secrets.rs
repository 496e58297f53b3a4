//! Keeps what a log-in presents out of what is logged, also where somebody sends it back.

use chinwag_core::plugin::Credentials;
use secrecy::{ExposeSecret, SecretString};

use super::one_line;

/// What a log-in presents and nobody may read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Secrets(Vec<SecretString>);

impl Secrets {
    pub(crate) fn of(credentials: &Credentials) -> Self {
        let presented = [&credentials.password, &credentials.token];
        let some = presented.into_iter().flatten();
        Self(
            some.filter(|it| !it.expose_secret().is_empty())
                .cloned()
                .collect(),
        )
    }

    /// A token alone.
    #[cfg(feature = "http")]
    pub(crate) fn of_token(token: &SecretString) -> Self {
        Self(vec![token.clone()])
    }

    /// Whether `text` repeats a secret, as it is or as JSON writes it.
    pub(crate) fn are_in(&self, text: &str) -> bool {
        self.0.iter().any(|secret| {
            let secret = secret.expose_secret();
            let quoted = SecretString::from(serde_json::Value::from(secret).to_string());
            let quoted = quoted.expose_secret().trim_matches('"');
            text.contains(secret) || (!quoted.is_empty() && text.contains(quoted))
        })
    }

    /// `text` as a log may have it: on one line, not too long, and without any of these.
    pub(crate) fn scrub(&self, text: &str) -> String {
        if self.are_in(text) {
            "(left out: it repeats a credential)".to_owned()
        } else {
            one_line(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_repeats_a_credential_is_left_out() {
        let secrets = Secrets::of(&Credentials::password("alice", "hun\"ter\\2"));
        for told in ["wrong: hun\"ter\\2!", r#"{"password":"hun\"ter\\2"}"#] {
            let scrubbed = secrets.scrub(told);
            assert!(!scrubbed.contains("ter"), "{scrubbed}");
        }
        assert_eq!(secrets.scrub("wrong for alice"), "wrong for alice");
    }

    #[test]
    fn an_empty_secret_is_none() {
        let secrets = Secrets::of(&Credentials::password("alice", ""));
        assert_eq!(secrets.scrub("all is well"), "all is well");
    }
}
