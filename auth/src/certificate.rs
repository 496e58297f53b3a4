//! `kind = "certificate"`: the name stands in the certificate that the client has shown when it
//! connected.
//!
//! The certificate itself was judged by then: who signed it, whether it is in date, whether it is
//! revoked. Left to be found out is whom it names, and a certificate authority may sign the oddest
//! names. So there has to be exactly one of the configured kind, and it has to be one that nobody
//! can mistake for another.
//!
//! # The one form of a name
//!
//! A name is what the certificate says, with these parts in lower case since they mean the same in
//! both: a DNS name; the domain of an e-mail address; scheme and authority of a URI. Everything else
//! stays as it was signed. (To a server names that differ in case alone are one user all the same.)
//!
//! # What is refused
//!
//! - No name of the configured kind, or more than one, be they equal.
//! - `*` anywhere, white space, line breaks and other controls, bytes that are no text, and more
//!   than 128 characters.
//! - DNS names that are not letters, digits, `-` and `_` between dots, or end with a dot. Names in
//!   other scripts have to come in their ASCII form (`xn--…`), and stay in it.
//! - E-mail addresses with a quoted local part, in other characters than ASCII, or not at a DNS name.
//! - URIs without a scheme, with a user or with `%`, which could spell one name in two ways.
//! - Common names beyond ASCII that are not in the form that PRECIS (RFC 8265) gives user names, that
//!   mix scripts (but for those that are always mixed, as in Japanese), or of which every letter
//!   looks like one of ASCII.

use std::sync::Arc;

use async_trait::async_trait;
use chinwag_core::plugin::{
    self, AuthRequest, Authenticator, AuthenticatorConfig, AuthenticatorContext, BuildError,
    Denial, Principal, Verdict,
};
use precis_core::profile::PrecisFastInvocation;
use precis_profiles::UsernameCasePreserved;
use serde::Deserialize;
use tracing::info;
use unicode_security::{RestrictionLevel, RestrictionLevelDetection, skeleton};

/// The most characters of a name.
const NAME_CHARS: usize = 128;
/// The most characters between two dots of a DNS name.
const LABEL_CHARS: usize = 63;

/// The table of an authenticator that takes the name from the client's certificate.
///
/// A client that gives a name of its own beside the certificate is denied if it is another one.
/// Log-ins without a certificate, with a password or with a token are left to the next
/// authenticator. A session ends when its certificate does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Certificate {
    /// Where the name stands. Default: `"san-email"`.
    pub user: NameFrom,
    /// The roles of whoever logs in this way. Default: none.
    pub roles: Vec<String>,
}

/// Where in a certificate the name stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NameFrom {
    /// The e-mail address among the subject's alternative names.
    #[default]
    SanEmail,
    /// The DNS name among them.
    SanDns,
    /// The URI among them.
    SanUri,
    /// The common name of the subject.
    SubjectCn,
}

#[async_trait]
impl AuthenticatorConfig for Certificate {
    const KIND: &'static str = "certificate";

    async fn build(self, cx: AuthenticatorContext) -> Result<Arc<dyn Authenticator>, BuildError> {
        Ok(Arc::new(CertificateAuthenticator {
            name: cx.name,
            table: self,
        }))
    }
}

struct CertificateAuthenticator {
    name: String,
    table: Certificate,
}

#[async_trait]
impl Authenticator for CertificateAuthenticator {
    async fn authenticate(&self, request: &AuthRequest) -> Verdict {
        let credentials = &request.credentials;
        let shown = request
            .tls
            .as_ref()
            .and_then(|tls| tls.certificate.as_ref());
        let Some(certificate) =
            shown.filter(|_| credentials.password.is_none() && credentials.token.is_none())
        else {
            return Verdict::Abstain;
        };
        let from = self.table.user;
        let name = match from.name(certificate) {
            Ok(name) => name,
            Err(Nameless(denial, reason)) => {
                // Whoever signed it should know.
                info!(
                    authenticator = %self.name, fingerprint = certificate.fingerprint, reason,
                    "A client's certificate names nobody."
                );
                return Verdict::deny_for(denial, reason);
            }
        };
        let is_other = |user: &String| from.canonical(user).as_ref() != Ok(&name);
        if credentials.user.as_ref().is_some_and(is_other) {
            return Verdict::deny_for(
                Denial::OtherUser,
                "the user is not the one that the certificate names",
            );
        }
        let mut principal = Principal::vouched(name).with_roles(self.table.roles.clone());
        principal.expires_at = Some(certificate.expires_at);
        principal.credential = Some(certificate.fingerprint.clone());
        Verdict::Allow(principal)
    }
}

/// Why a certificate names nobody: as it is counted, and in words.
#[derive(Debug, PartialEq, Eq)]
struct Nameless(Denial, &'static str);

impl NameFrom {
    /// The one name in a certificate, or why it has none.
    fn name(self, certificate: &plugin::Certificate) -> Result<String, Nameless> {
        let names = match self {
            Self::SanEmail => &certificate.emails,
            Self::SanDns => &certificate.dns_names,
            Self::SanUri => &certificate.uris,
            Self::SubjectCn => &certificate.common_names,
        };
        match names.as_slice() {
            [] => Err(Nameless(
                Denial::NoName,
                "the certificate has no name of the configured kind",
            )),
            [name] => self.canonical(name),
            _ => Err(Nameless(
                Denial::ManyNames,
                "the certificate has more than one name of the configured kind",
            )),
        }
    }

    /// The one form of a name, or why it is none.
    fn canonical(self, name: &str) -> Result<String, Nameless> {
        let bad = |reason| Nameless(Denial::BadName, reason);
        if name.is_empty() {
            return Err(Nameless(
                Denial::NoName,
                "the name in the certificate is empty",
            ));
        }
        if name.contains('*') {
            return Err(bad("the name in the certificate has a wildcard"));
        }
        if name.contains('\u{fffd}') {
            return Err(bad("the name in the certificate is no text"));
        }
        if name.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(bad(
                "the name in the certificate has a space or a control character",
            ));
        }
        if name.chars().count() > NAME_CHARS {
            return Err(bad("the name in the certificate is too long"));
        }
        match self {
            Self::SanEmail => {
                email(name).ok_or_else(|| bad("the certificate's e-mail address is malformed"))
            }
            Self::SanDns => {
                domain(name).ok_or_else(|| bad("the certificate's DNS name is malformed"))
            }
            Self::SanUri => uri(name).ok_or_else(|| bad("the certificate's URI is malformed")),
            Self::SubjectCn => {
                if is_plain(name) {
                    Ok(name.to_owned())
                } else {
                    Err(Nameless(
                        Denial::LookAlike,
                        "the name in the certificate can be mistaken for another",
                    ))
                }
            }
        }
    }
}

fn email(name: &str) -> Option<String> {
    let (local, host) = name.split_once('@')?;
    let is_atom = |atom: &str| {
        let is_part =
            |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'+-/=?^_`{|}~".contains(&byte);
        !atom.is_empty() && atom.bytes().all(is_part)
    };
    if !local.split('.').all(is_atom) {
        return None;
    }
    Some(format!("{local}@{}", domain(host)?))
}

fn domain(name: &str) -> Option<String> {
    let is_label = |label: &str| {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=LABEL_CHARS).contains(&label.len())
            && label.bytes().all(is_part)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.split('.')
        .all(is_label)
        .then(|| name.to_ascii_lowercase())
}

fn uri(name: &str) -> Option<String> {
    let (scheme, rest) = name.split_once(':')?;
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let is_part =
        |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()+,;=".contains(&byte);
    if !is_scheme || rest.is_empty() || !rest.bytes().all(is_part) {
        return None;
    }
    let scheme = scheme.to_ascii_lowercase();
    let Some(rest) = rest.strip_prefix("//") else {
        return Some(format!("{scheme}:{rest}"));
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.is_empty() || authority.contains('@') {
        return None;
    }
    let authority = authority.to_ascii_lowercase();
    Some(format!("{scheme}://{authority}{path}"))
}

/// Whether a name is not easily taken for another one.
fn is_plain(name: &str) -> bool {
    if name.is_ascii() {
        return true;
    }
    // What PRECIS would change is refused and not mended: a name must not become somebody else's.
    if UsernameCasePreserved::enforce(name).ok().as_deref() != Some(name) {
        return false;
    }
    // The signs of ASCII belong to every script.
    let letters: String = name
        .chars()
        .filter(|letter| !letter.is_ascii_punctuation())
        .collect();
    letters.check_restriction_level(RestrictionLevel::HighlyRestrictive)
        && !skeleton(name).all(|letter| letter.is_ascii())
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};

    use chinwag_core::{
        Lifecycle,
        plugin::{Credentials, PrincipalName, TlsFacts},
    };

    use super::*;

    const ALICE: &str = "alice@example.org";

    fn certificate(edit: impl FnOnce(&mut plugin::Certificate)) -> plugin::Certificate {
        let mut certificate = plugin::Certificate::default();
        certificate.fingerprint = "f1".into();
        certificate.expires_at = 1_900_000_000_000;
        edit(&mut certificate);
        certificate
    }

    fn with_email(name: &str) -> plugin::Certificate {
        certificate(|certificate| certificate.emails = vec![name.into()])
    }

    async fn judge(
        table: &str,
        credentials: Credentials,
        certificate: Option<plugin::Certificate>,
    ) -> Verdict {
        let cx = AuthenticatorContext::new("devices", "/", Lifecycle::new());
        let table: Certificate = toml::from_str(table).unwrap();
        let built = table.build(cx).await.unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let mut request =
            AuthRequest::new(credentials, "web".into(), IpAddr::from(Ipv4Addr::LOCALHOST));
        let mut tls = TlsFacts::new("TLS1.3", "TLS_AES_256_GCM_SHA384", address, address);
        tls.certificate = certificate.map(Arc::new);
        request.tls = Some(Arc::new(tls));
        built.authenticate(&request).await
    }

    fn allowed(verdict: Verdict) -> Principal {
        match verdict {
            Verdict::Allow(principal) => principal,
            verdict => panic!("{verdict:?}"),
        }
    }

    fn denied(verdict: Verdict) -> (Denial, String) {
        match verdict {
            Verdict::Deny {
                denial,
                reason,
                public: None,
            } => (denial, reason.into_owned()),
            verdict => panic!("{verdict:?}"),
        }
    }

    #[test]
    fn a_table_is_strict_and_has_defaults() {
        let table: Certificate = toml::from_str("").unwrap();
        assert_eq!(table.user, NameFrom::SanEmail);
        assert!(table.roles.is_empty());
        for wrong in ["user = \"email\"", "usr = \"san-dns\"", "roles = \"admin\""] {
            assert!(toml::from_str::<Certificate>(wrong).is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn nothing_but_a_certificate_is_needed() {
        let verdict = judge(
            "roles = [\"member\"]",
            Credentials::default(),
            Some(with_email(ALICE)),
        );
        let principal = allowed(verdict.await);
        assert_eq!(principal.name, PrincipalName::Vouched(ALICE.into()));
        assert_eq!(principal.roles, ["member"]);
        assert_eq!(principal.expires_at, Some(1_900_000_000_000));
        assert_eq!(principal.credential.as_deref(), Some("f1"));
    }

    #[tokio::test]
    async fn other_kinds_of_credential_are_left_to_others() {
        let cx = AuthenticatorContext::new("devices", "/", Lifecycle::new());
        let built = Certificate::default().build(cx).await.unwrap();
        let plain = AuthRequest::new(
            Credentials::name("alice"),
            "line".into(),
            IpAddr::from(Ipv4Addr::LOCALHOST),
        );
        assert!(matches!(built.authenticate(&plain).await, Verdict::Abstain));
        for (credentials, shown) in [
            (Credentials::default(), None),
            (Credentials::name(ALICE), None),
            (
                Credentials::password("bob", "secret"),
                Some(with_email(ALICE)),
            ),
            (Credentials::token("secret"), Some(with_email(ALICE))),
        ] {
            let verdict = judge("", credentials, shown).await;
            assert!(matches!(verdict, Verdict::Abstain), "{verdict:?}");
        }
    }

    #[tokio::test]
    async fn a_name_beside_the_certificate_has_to_be_that_name() {
        for (user, is_same) in [
            (ALICE, true),
            ("alice@EXAMPLE.org", true),
            ("Alice@example.org", false),
            ("bob@example.org", false),
            ("alice", false),
            ("", false),
        ] {
            let shown = Some(with_email("alice@Example.ORG"));
            let verdict = judge("", Credentials::name(user), shown).await;
            if is_same {
                let name = allowed(verdict).name;
                assert_eq!(name, PrincipalName::Vouched(ALICE.into()));
            } else {
                let (denial, reason) = denied(verdict);
                assert_eq!(denial, Denial::OtherUser, "{user}");
                assert!(reason.contains("not the one"), "{user}: {reason}");
            }
        }
    }

    #[tokio::test]
    async fn exactly_one_name_of_the_configured_kind_counts() {
        let many = || {
            certificate(|certificate| {
                certificate.emails = vec![ALICE.into(), ALICE.into()];
                certificate.dns_names = vec!["Alice.Example.org".into()];
                certificate.common_names = vec!["Alice".into(), "Mallory".into()];
            })
        };
        for (user, name) in [
            ("san-email", Err((Denial::ManyNames, "more than one"))),
            ("san-dns", Ok("alice.example.org")),
            ("san-uri", Err((Denial::NoName, "no name"))),
            ("subject-cn", Err((Denial::ManyNames, "more than one"))),
        ] {
            let table = format!("user = \"{user}\"");
            let verdict = judge(&table, Credentials::default(), Some(many())).await;
            match name {
                Ok(name) => {
                    let found = allowed(verdict).name;
                    assert_eq!(found, PrincipalName::Vouched(name.into()));
                }
                Err((denial, words)) => {
                    let (found, reason) = denied(verdict);
                    assert_eq!(found, denial, "{user}");
                    assert!(reason.contains(words), "{user}: {reason}");
                }
            }
        }
    }

    #[test]
    fn names_have_one_form() {
        for (from, name, form) in [
            (
                NameFrom::SanEmail,
                "Al.Ice+x@Example.ORG",
                "Al.Ice+x@example.org",
            ),
            (
                NameFrom::SanDns,
                "XN--Bcher-KVA.Example",
                "xn--bcher-kva.example",
            ),
            (NameFrom::SanDns, "printer_7", "printer_7"),
            (
                NameFrom::SanUri,
                "SPIFFE://Example.org/Team/alice",
                "spiffe://example.org/Team/alice",
            ),
            (NameFrom::SanUri, "URN:example:Alice", "urn:example:Alice"),
            (NameFrom::SubjectCn, "Alice-7", "Alice-7"),
            (NameFrom::SubjectCn, "Ünsal", "Ünsal"),
            (NameFrom::SubjectCn, "Ольга", "Ольга"),
            (NameFrom::SubjectCn, "山田たろう", "山田たろう"),
            (NameFrom::SubjectCn, "ольга@пример", "ольга@пример"),
        ] {
            assert_eq!(from.canonical(name).as_deref(), Ok(form), "{name}");
            assert_eq!(from.canonical(form).as_deref(), Ok(form), "it stays so");
        }
    }

    #[test]
    fn names_that_are_none_are_refused_by_every_rule() {
        let long = "x".repeat(NAME_CHARS + 1);
        for from in [
            NameFrom::SanEmail,
            NameFrom::SanDns,
            NameFrom::SanUri,
            NameFrom::SubjectCn,
        ] {
            for (name, reason) in [
                ("", "empty"),
                ("*", "wildcard"),
                ("*.example.org", "wildcard"),
                ("a*@example.org", "wildcard"),
                ("alice\nbob", "space or a control"),
                ("alice\r\nbob", "space or a control"),
                ("alice\0", "space or a control"),
                ("alice smith", "space or a control"),
                ("alice\u{2028}bob", "space or a control"),
                ("alice\u{a0}smith", "space or a control"),
                ("al\u{fffd}ce", "no text"),
                (&long, "too long"),
            ] {
                let Nameless(denial, refused) = from.canonical(name).unwrap_err();
                assert!(refused.contains(reason), "{from:?} {name:?}: {refused}");
                let is_empty = name.is_empty();
                assert_eq!(denial == Denial::NoName, is_empty, "{denial:?}");
                assert_eq!(denial == Denial::BadName, !is_empty, "{denial:?}");
            }
        }
    }

    #[test]
    fn malformed_names_are_refused() {
        let label = "x".repeat(LABEL_CHARS + 1);
        for (from, names) in [
            (
                NameFrom::SanEmail,
                &[
                    "alice",
                    "@example.org",
                    "alice@",
                    "alice@@example.org",
                    "a@b@example.org",
                    ".alice@example.org",
                    "al..ice@example.org",
                    "\"alice\"@example.org",
                    "alice@[127.0.0.1]",
                    "alice@example.org.",
                    "alice@-example.org",
                    "älice@example.org",
                    "alice@exämple.org",
                ][..],
            ),
            (
                NameFrom::SanDns,
                &[
                    ".",
                    "a..b",
                    ".example.org",
                    "example.org.",
                    "-a.example.org",
                    "a-.example.org",
                    "a/b",
                    "alice@example.org",
                    "exämple.org",
                    &label,
                ][..],
            ),
            (
                NameFrom::SanUri,
                &[
                    "alice",
                    ":alice",
                    "urn:",
                    "1a:b",
                    "s_p:b",
                    "spiffe://",
                    "spiffe:///alice",
                    "https://alice@example.org/",
                    "https://example.org/%61lice",
                    "https://example.org/<alice>",
                    "https://exämple.org/",
                ][..],
            ),
        ] {
            for name in names {
                let Nameless(denial, refused) = from.canonical(name).unwrap_err();
                assert_eq!(denial, Denial::BadName, "{name}");
                assert!(refused.contains("malformed"), "{name}: {refused}");
            }
        }
    }

    #[test]
    fn look_alikes_are_refused() {
        for (name, what) in [
            ("p\u{430}ypal", "a Cyrillic a among Latin letters"),
            (
                "\u{430}\u{441}\u{435}",
                "Cyrillic letters that all look Latin",
            ),
            ("al\u{131}ce", "an i without its dot"),
            ("\u{ff41}lice", "a wide a"),
            ("al\u{200b}ice", "a space of no width"),
            ("ali\u{202e}ec", "writing turned around"),
            ("al\u{ad}ice", "a hyphen that hides"),
            ("\u{1d41a}lice", "a bold a"),
            ("u\u{308}nsal", "a mark apart from its letter"),
            ("αlice", "a Greek alpha among Latin letters"),
        ] {
            let Nameless(denial, refused) = NameFrom::SubjectCn.canonical(name).unwrap_err();
            assert_eq!(denial, Denial::LookAlike, "{what}");
            assert!(refused.contains("mistaken"), "{what}: {refused}");
        }
    }
}
