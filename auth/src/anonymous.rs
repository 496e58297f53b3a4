//! `kind = "anonymous"`: everybody gets in under the name they choose, and nobody vouches for it.
//!
//! What such a name may look like is not judged here: the rules of `[names]` are applied to it
//! after the verdict.

use std::sync::Arc;

use async_trait::async_trait;
use chinwag_core::plugin::{
    AuthRequest, Authenticator, AuthenticatorConfig, AuthenticatorContext, BuildError, Principal,
    Verdict,
};
use serde::Deserialize;

/// The most characters a prefix may have.
const PREFIX_CHARS: usize = 16;

/// The table of an authenticator that lets in whoever gives a name.
///
/// A password that comes with the name is ignored, so that a client which always sends one works
/// too. A log-in by token, or without a name, is left to the next authenticator.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Anonymous {
    /// Put before every chosen name: at most 16 letters, digits or ASCII signs. Names that other
    /// authenticators vouch for are refused where they begin with it, in any case or look. Empty,
    /// the default, means none, and is refused beside authenticators of other kinds, where a guest
    /// could take a member's name.
    pub prefix: String,
    /// Whether machines other than this one may log in without a password. Default `false`:
    /// building fails when a transport that asks this authenticator can be reached from elsewhere.
    pub allow_public: bool,
}

#[async_trait]
impl AuthenticatorConfig for Anonymous {
    const KIND: &'static str = "anonymous";

    async fn build(self, cx: AuthenticatorContext) -> Result<Arc<dyn Authenticator>, BuildError> {
        self.check(&cx)?;
        if !cx.public_transports.is_empty() {
            let message = format!(
                "anybody who reaches {} logs in without a password",
                listed(&cx.public_transports)
            );
            cx.warnings.add("allow_public", message);
        }
        Ok(Arc::new(AnonymousAuthenticator {
            prefix: self.prefix,
        }))
    }
}

impl Anonymous {
    fn check(&self, cx: &AuthenticatorContext) -> Result<(), BuildError> {
        let visible = |c: char| c.is_ascii_graphic() || c.is_alphanumeric();
        if self.prefix.chars().count() > PREFIX_CHARS || !self.prefix.chars().all(visible) {
            return Err(BuildError::key(
                "prefix",
                format!(
                    "`prefix` may have at most {PREFIX_CHARS} characters, each a letter, \
                     a digit or an ASCII sign and none a space: try \"guest-\""
                ),
            ));
        }
        if self.prefix.is_empty() && cx.has_others {
            return Err(BuildError::key(
                "prefix",
                "without a `prefix` a guest could take the name of a user of the other \
                 authenticators: set one, such as \"guest-\"",
            ));
        }
        if !self.allow_public && !cx.public_transports.is_empty() {
            return Err(BuildError::key(
                "allow_public",
                format!(
                    "anybody who reaches {} could log in without a password: bind to 127.0.0.1 \
                     or [::1], name another authenticator in `auth`, or set `allow_public = true`",
                    listed(&cx.public_transports),
                ),
            ));
        }
        Ok(())
    }
}

/// The tables of these transports.
fn listed(transports: &[String]) -> String {
    let tables = transports.iter().map(|name| format!("transports.{name}"));
    tables.collect::<Vec<_>>().join(", ")
}

struct AnonymousAuthenticator {
    prefix: String,
}

#[async_trait]
impl Authenticator for AnonymousAuthenticator {
    async fn authenticate(&self, request: &AuthRequest) -> Verdict {
        match (&request.credentials.user, &request.credentials.token) {
            (Some(user), None) => Verdict::Allow(Principal::chosen(&self.prefix, user)),
            _ => Verdict::Abstain,
        }
    }

    fn guest_prefix(&self) -> Option<&str> {
        Some(&self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use chinwag_core::{Lifecycle, plugin::Credentials};

    use super::*;

    fn context() -> AuthenticatorContext {
        AuthenticatorContext::new("guests", "/", Lifecycle::new())
    }

    fn table(text: &str) -> Anonymous {
        toml::from_str(text).unwrap()
    }

    async fn refusal(text: &str, cx: AuthenticatorContext) -> BuildError {
        match table(text).build(cx).await {
            Ok(_) => panic!("built from {text:?}"),
            Err(error) => error,
        }
    }

    async fn judge(text: &str, credentials: Credentials) -> Verdict {
        let built = table(text).build(context()).await.unwrap();
        let request =
            AuthRequest::new(credentials, "web".into(), IpAddr::from(Ipv4Addr::LOCALHOST));
        built.authenticate(&request).await
    }

    #[test]
    fn the_table_is_strict_and_has_defaults() {
        assert_eq!(
            table(""),
            Anonymous {
                prefix: String::new(),
                allow_public: false
            }
        );
        let error = toml::from_str::<Anonymous>("prefx = \"a\"")
            .unwrap_err()
            .to_string();
        assert!(error.contains("prefx"), "{error}");
    }

    #[tokio::test]
    async fn a_name_is_allowed_as_chosen_whatever_the_password() {
        for credentials in [
            Credentials::name("bob"),
            Credentials::password("bob", "secret"),
        ] {
            let verdict = judge("prefix = \"guest-\"", credentials).await;
            let Verdict::Allow(principal) = verdict else {
                panic!("{verdict:?}")
            };
            assert_eq!(principal, Principal::chosen("guest-", "bob"));
        }
    }

    #[tokio::test]
    async fn the_server_knows_what_guests_names_begin_with() {
        let built = table("prefix = \"~\"").build(context()).await.unwrap();
        assert_eq!(built.guest_prefix(), Some("~"));
    }

    #[tokio::test]
    async fn tokens_and_nameless_log_ins_are_left_to_others() {
        let mut both = Credentials::token("t");
        both.user = Some("bob".into());
        for credentials in [Credentials::token("t"), both, Credentials::default()] {
            let verdict = judge("", credentials).await;
            assert!(matches!(verdict, Verdict::Abstain), "{verdict:?}");
        }
    }

    #[tokio::test]
    async fn public_transports_need_consent() {
        let mut cx = context();
        cx.public_transports = vec!["line".into(), "web".into()];
        let error = refusal("", cx.clone()).await;
        assert_eq!(error.key, Some("allow_public"));
        let text = error.to_string();
        for part in [
            "transports.line, transports.web",
            "127.0.0.1",
            "allow_public = true",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let allowed = table("allow_public = true");
        assert!(allowed.clone().build(cx.clone()).await.is_ok());
        let warnings = cx.warnings.take();
        let [("allow_public", text)] = &warnings[..] else {
            panic!("{warnings:?}")
        };
        assert!(text.contains("transports.line, transports.web"), "{text}");
        cx.public_transports.clear();
        assert!(allowed.build(cx.clone()).await.is_ok());
        assert!(cx.warnings.take().is_empty(), "nobody reaches it");
    }

    #[tokio::test]
    async fn a_prefix_is_due_beside_other_kinds() {
        let mut cx = context();
        cx.has_others = true;
        assert_eq!(refusal("", cx.clone()).await.key, Some("prefix"));
        assert!(table("prefix = \"~\"").build(cx).await.is_ok());
    }

    #[tokio::test]
    async fn a_prefix_is_short_and_visible() {
        for bad in ["a b", "a\\tb", "a\\u200bb", "\\u0000", "12345678901234567"] {
            let error = refusal(&format!("prefix = \"{bad}\""), context()).await;
            assert_eq!(error.key, Some("prefix"), "{bad:?}");
        }
        for good in ["1234567890123456", "гость-", "~"] {
            assert!(
                table(&format!("prefix = \"{good}\""))
                    .build(context())
                    .await
                    .is_ok(),
                "{good}"
            );
        }
    }
}
