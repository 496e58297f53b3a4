//! `Origin` and CORS: which pages of a browser may speak to us.
//!
//! A request without an `Origin` comes from no page, or from a page that reads from its own origin, and is always
//! allowed. One with an `Origin` that is not allowed is answered with 403 before anything is done for it.

use chinwag_core::{ErrorCode, Refusal};
use http::{HeaderMap, HeaderValue, Method, header};
use serde::Deserialize;

use crate::http::{Answer, HttpPeer};

/// How long a browser may remember a preflight answer, in seconds. Browsers cap it at two hours.
const REMEMBER: HeaderValue = HeaderValue::from_static("7200");

/// The key `origins`: `["same"]`, a list of origins, of which `"same"` may be one, or `["*"]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Vec<String>")]
pub struct Origins(Allowed);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Allowed {
    Any,
    Some { same: bool, listed: Vec<Origin> },
}

/// An origin in its one form: lower case, without the port that its scheme has by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

/// What is known of the scheme that a page of ours was loaded with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// TLS, ours or that of a proxy that says so.
    Https,
    /// Plain text came in. A proxy may have taken TLS off before, so a page loaded with either scheme is the same
    /// site.
    Either,
}

impl Default for Origins {
    /// `["same"]`.
    fn default() -> Self {
        Self(Allowed::Some {
            same: true,
            listed: Vec::new(),
        })
    }
}

impl TryFrom<Vec<String>> for Origins {
    type Error = String;

    fn try_from(texts: Vec<String>) -> Result<Self, String> {
        if texts.iter().any(|text| text == "*") {
            return match texts.len() {
                1 => Ok(Self(Allowed::Any)),
                _ => Err("\"*\" stands alone: it already allows every origin".to_owned()),
            };
        }
        let mut same = false;
        let mut listed = Vec::new();
        for text in texts {
            if text == "same" {
                same = true;
                continue;
            }
            let Some(origin) = Origin::read(&text) else {
                return Err(format!(
                    "{text:?} is no origin; write one like \"https://chat.example.com\", without a path, \"same\" or \"*\""
                ));
            };
            listed.push(origin);
        }
        Ok(Self(Allowed::Some { same, listed }))
    }
}

impl Origin {
    fn read(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let wellformed = !scheme.is_empty()
            && scheme
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
            && !rest.is_empty()
            && rest
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !b"/?#@\\,*".contains(&byte));
        if !wellformed {
            return None;
        }
        let (host, port) = split_port(rest)?;
        if host.is_empty() {
            return None;
        }
        let scheme = scheme.to_ascii_lowercase();
        let port = port.filter(|&port| Some(port) != default_port(&scheme));
        Some(Self {
            host: host.to_ascii_lowercase(),
            scheme,
            port,
        })
    }

    /// Whether a page of this origin is one of the site `host`.
    fn is_of(&self, host: &str, scheme: Scheme) -> bool {
        let schemes: &[&str] = match scheme {
            Scheme::Https => &["https"],
            Scheme::Either => &["https", "http"],
        };
        let Some((name, port)) = split_port(host) else {
            return false;
        };
        let port = port.filter(|&port| Some(port) != default_port(&self.scheme));
        schemes.contains(&self.scheme.as_str())
            && self.host.eq_ignore_ascii_case(name)
            && self.port == port
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// Splits `host`, `host:port`, `[v6]` and `[v6]:port`. `None` where the port is none.
fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.rfind(':') {
        Some(colon) if !text.get(colon..)?.contains(']') => text.split_at(colon),
        _ => (text, ""),
    };
    let digits = port.strip_prefix(':').unwrap_or(port);
    let port = match digits {
        "" => None,
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(digits.parse().ok()?),
        _ => return None,
    };
    Some((host, port))
}

impl Origins {
    /// Whether a page of `origin` may speak to the site that the request names in its `Host`.
    ///
    /// `origin` and `host` are the headers' values. `null`, the origin of a page that hides its own, is allowed by
    /// `"*"` alone.
    #[must_use]
    pub fn allows(&self, origin: &str, host: &str, scheme: Scheme) -> bool {
        match &self.0 {
            Allowed::Any => true,
            Allowed::Some { same, listed } => Origin::read(origin).is_some_and(|origin| {
                (*same && origin.is_of(host, scheme)) || listed.contains(&origin)
            }),
        }
    }

    /// Judges a request by its headers. `Ok`: the origin to be named in the answer, if the request has one.
    ///
    /// # Errors
    /// `forbidden`: the origin is not allowed, or there are several.
    pub fn check<'a>(
        &self,
        headers: &'a HeaderMap,
        peer: &HttpPeer,
    ) -> Result<Option<&'a HeaderValue>, Refusal> {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let Some(origin) = origins.next() else {
            return Ok(None);
        };
        let host = headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok())
            .unwrap_or_default();
        let allowed = origins.next().is_none()
            && origin
                .to_str()
                .is_ok_and(|origin| self.allows(origin, host, peer.scheme()));
        if allowed {
            Ok(Some(origin))
        } else {
            Err(Refusal::new(
                ErrorCode::Forbidden,
                "Pages of this Origin may not use this server; it has to be in the transport's origins.",
            ))
        }
    }

    /// Whether cookies may be sent along by other origins: never where every origin is allowed.
    fn may_have_credentials(&self) -> bool {
        match &self.0 {
            Allowed::Any => false,
            Allowed::Some { .. } => true,
        }
    }

    /// Tells the browser that the page of `origin` may read `answer`. The origin is repeated exactly, so the answer
    /// varies with it. `cookies`: the page may have its cookies sent.
    pub fn permit(&self, answer: &mut Answer, origin: Option<&HeaderValue>, cookies: bool) {
        let headers = answer.headers_mut();
        headers.insert(header::VARY, HeaderValue::from_static("Origin"));
        let Some(origin) = origin else {
            return;
        };
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static("Retry-After"),
        );
        if cookies && self.may_have_credentials() {
            headers.insert(
                header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
                HeaderValue::from_static("true"),
            );
        }
    }
}

/// Whether a request is a browser's question before the real one.
#[must_use]
pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// Says in `answer` what a page may send: `methods`, and the headers of the protocol.
pub fn answer_preflight(answer: &mut Answer, methods: &'static str) {
    let headers = answer.headers_mut();
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static(methods),
    );
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("Authorization, Content-Type, X-Chinwag"),
    );
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, REMEMBER);
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    fn origins(texts: &[&str]) -> Result<Origins, String> {
        Origins::try_from(
            texts
                .iter()
                .map(|&text| text.to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn same_is_the_host_with_its_port() {
        let same = Origins::default();
        for (origin, host, either, https) in [
            ("http://localhost:8080", "localhost:8080", true, false),
            ("https://chat.example.com", "chat.example.com", true, true),
            ("https://Chat.Example.com", "chat.example.COM", true, true),
            (
                "https://chat.example.com",
                "chat.example.com:443",
                true,
                true,
            ),
            (
                "http://chat.example.com",
                "chat.example.com:80",
                true,
                false,
            ),
            ("http://chat.example.com", "chat.example.com", true, false),
            ("http://[::1]:8080", "[::1]:8080", true, false),
            ("http://[::1]", "[::1]", true, false),
            (
                "https://chat.example.com:8443",
                "chat.example.com",
                false,
                false,
            ),
            (
                "https://chat.example.com",
                "chat.example.com:8443",
                false,
                false,
            ),
            (
                "https://chat.example.com",
                "chat.example.com:80",
                false,
                false,
            ),
            (
                "https://chat.example.com.evil.example",
                "chat.example.com",
                false,
                false,
            ),
            ("https://evil.example", "chat.example.com", false, false),
            ("ftp://chat.example.com", "chat.example.com", false, false),
            ("chat.example.com", "chat.example.com", false, false),
            (
                "https://chat.example.com/",
                "chat.example.com",
                false,
                false,
            ),
            (
                "https://user@chat.example.com",
                "chat.example.com",
                false,
                false,
            ),
            ("null", "null", false, false),
            ("", "", false, false),
            ("://", "", false, false),
        ] {
            assert_eq!(
                same.allows(origin, host, Scheme::Either),
                either,
                "{origin} at {host}"
            );
            assert_eq!(
                same.allows(origin, host, Scheme::Https),
                https,
                "{origin} at {host}, TLS"
            );
        }
    }

    #[test]
    fn a_list_allows_what_it_names() {
        let list = origins(&["https://app.example", "capacitor://localhost"]).unwrap();
        for (origin, allowed) in [
            ("https://app.example", true),
            ("https://APP.example:443", true),
            ("capacitor://localhost", true),
            ("http://app.example", false),
            ("https://app.example:8443", false),
            ("https://chat.example", false),
            ("null", false),
        ] {
            assert_eq!(
                list.allows(origin, "chat.example", Scheme::Either),
                allowed,
                "{origin}"
            );
        }
        let with_same = origins(&["same", "https://app.example"]).unwrap();
        assert!(with_same.allows("https://chat.example", "chat.example", Scheme::Either));
        assert!(with_same.allows("https://app.example", "chat.example", Scheme::Either));
        let nobody = origins(&[]).unwrap();
        assert!(!nobody.allows("https://chat.example", "chat.example", Scheme::Either));
        let any = origins(&["*"]).unwrap();
        assert!(any.allows("null", "chat.example", Scheme::Https));
    }

    #[test]
    fn what_is_no_origin_is_no_configuration() {
        for texts in [
            &["https://a.example/"][..],
            &["a.example"],
            &["null"],
            &[""],
            &["https://a.example:port"],
            &["https://a b"],
            &["*", "same"],
            &["Same"],
            &["https://*.example"],
        ] {
            assert!(origins(texts).is_err(), "{texts:?}");
        }
    }

    #[test]
    fn cookies_never_go_with_any_origin() {
        let origin = HeaderValue::from_static("https://app.example");
        for (list, credentials) in [(&["*"][..], false), (&["https://app.example"], true)] {
            let mut answer = crate::http::json(StatusCode::OK, "{}");
            origins(list)
                .unwrap()
                .permit(&mut answer, Some(&origin), true);
            let headers = answer.headers();
            assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], origin);
            assert_eq!(headers[header::VARY], "Origin");
            assert_eq!(
                headers.contains_key(header::ACCESS_CONTROL_ALLOW_CREDENTIALS),
                credentials,
                "{list:?}"
            );
        }
    }
}
