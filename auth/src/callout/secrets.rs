//! Keeps what logs in, and what steers sessions, out of what is logged, also where somebody sends it
//! back.

use chinwag_core::plugin::Credentials;
use secrecy::{ExposeSecret, SecretString};

use super::one_line;

/// How many characters the secret of a session's token has: 128 bits in base64url.
const TOKEN_CHARS: usize = 22;

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

    /// The token that steers a session. What comes before its dot is no secret.
    pub(crate) fn of_token(token: &SecretString) -> Self {
        let token = token.expose_secret();
        let secret = token.rsplit_once('.').map_or(token, |(_, secret)| secret);
        Self(vec![secret.into()])
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

/// `text`, in which a session manager is quoted, as a log may have it. Such a manager knows the tokens
/// of all its sessions and may put any of them anywhere; so with a word that is long enough to be one,
/// it is left out.
pub(crate) fn without_tokens(text: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let mut words = text.split(|c| !is_part(c));
    if words.any(|word| word.len() >= TOKEN_CHARS) {
        "(left out: it may have the token of a session)".to_owned()
    } else {
        one_line(text)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use chinwag_core::plugin::{AuthFacts, ControlDesk, SessionControl};

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
    fn what_has_the_token_of_any_session_is_left_out_and_what_has_none_is_not() {
        let facts = AuthFacts::new("k1", "alice", Ipv4Addr::LOCALHOST.into());
        let admit = || ControlDesk::default().admit(&facts, &SessionControl::default());
        for _ in 0..100 {
            let pass = admit().unwrap();
            let token = pass.token().expose_secret();
            let (_, secret) = token.split_once('.').unwrap();
            let secrets = Secrets::of_token(pass.token());
            for told in [token, secret] {
                let told = format!("unknown variant `{told}`, expected `done`");
                let left = without_tokens(&told);
                assert!(!left.contains(secret), "{left}");
                assert!(secrets.are_in(&told));
            }
        }
        let told = "unknown field `contextt`, expected one of `verdict`, `timeout_ms`\nat line 1";
        assert_eq!(without_tokens(told), told.replace('\n', "\\n"));
    }

    #[test]
    fn an_empty_secret_is_none() {
        let secrets = Secrets::of(&Credentials::password("alice", ""));
        assert_eq!(secrets.scrub("all is well"), "all is well");
    }
}
