//! `Host`: exactly one, and one that is served here.
//!
//! A page of somebody else's whose name is made to resolve to this machine (DNS rebinding) sends its own name: that
//! is why names have to be configured. Addresses can't be rebound.

use std::net::{Ipv4Addr, Ipv6Addr};

use http::{HeaderMap, StatusCode, Uri, header, uri::Authority};

use super::answer::{self, Answer};

/// The names that are served beside IP literals and `localhost`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hosts(Vec<Host>);

/// A name in lower case, without a final dot, and the port if there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Host {
    name: String,
    port: Option<u16>,
}

impl Host {
    /// Reads `name`, `name:port`, `[v6]`, `[v6]:port`.
    fn read(text: &str) -> Option<Self> {
        let authority: Authority = text.parse().ok()?;
        let name = authority.host();
        // User information is no part of a host, and an authority may have some.
        let port = text.strip_prefix(name)?;
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            None => return None,
            // A port may be left empty.
            Some("") => None,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse().ok()?)
            }
            Some(_) => return None,
        };
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.is_empty() {
            return None;
        }
        Some(Self {
            name: name.to_ascii_lowercase(),
            port,
        })
    }

    /// Whether it can't be made to name another machine.
    fn is_literal(&self) -> bool {
        let inner = self
            .name
            .strip_prefix('[')
            .and_then(|name| name.strip_suffix(']'));
        match inner {
            Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
            None => self.name == "localhost" || self.name.parse::<Ipv4Addr>().is_ok(),
        }
    }
}

impl Hosts {
    /// The names of `hosts`; with a port they are served on that port alone.
    ///
    /// # Errors
    /// A sentence about the first that is no host.
    pub(crate) fn new(hosts: &[String]) -> Result<Self, String> {
        hosts
            .iter()
            .map(|text| {
                Host::read(text).ok_or_else(|| {
                    format!("{text:?} is no host; write a name like \"chat.example.com\", without a scheme or a path")
                })
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn serve(&self, host: &Host) -> bool {
        host.is_literal()
            || self.0.iter().any(|served| {
                served.name == host.name && (served.port.is_none() || served.port == host.port)
            })
    }

    /// The request's host, as the client wrote it.
    ///
    /// # Errors
    /// The answer to a request that has none, several, one that can't be read, or one that is not served.
    #[expect(clippy::result_large_err, reason = "the answer is sent as it is")]
    pub(crate) fn check<'a>(&self, uri: &Uri, headers: &'a HeaderMap) -> Result<&'a str, Answer> {
        // Two hosts, or a target that names another one, mean that somebody on the way saw another request.
        let malformed = |message| {
            let refusal = answer::bad_request(message);
            answer::closing(answer::refused_as(StatusCode::BAD_REQUEST, &refusal))
        };
        let mut all = headers.get_all(header::HOST).iter();
        let (Some(text), None) = (all.next(), all.next()) else {
            return Err(malformed("A request has exactly one Host header."));
        };
        let read = text
            .to_str()
            .ok()
            .and_then(|text| Some((text, Host::read(text)?)));
        let Some((text, host)) = read else {
            return Err(malformed("The Host header can't be read."));
        };
        let target = uri.authority().map(|target| Host::read(target.as_str()));
        if target.is_some_and(|target| target.as_ref() != Some(&host)) {
            return Err(malformed(
                "The request's target and its Host header differ.",
            ));
        }
        if !self.serve(&host) {
            let refusal = answer::bad_request(
                "This Host is not served here; its name has to be in the listener's hosts.",
            );
            return Err(answer::refused_as(
                StatusCode::MISDIRECTED_REQUEST,
                &refusal,
            ));
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn check(uri: &str, hosts: &[&str]) -> Result<String, u16> {
        let served = ["Chat.Example.com", "b.example:8443"].map(String::from);
        let served = Hosts::new(&served).unwrap();
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(
                header::HOST,
                HeaderValue::from_bytes(host.as_bytes()).unwrap(),
            );
        }
        match served.check(&uri.parse().unwrap(), &headers) {
            Ok(host) => Ok(host.to_owned()),
            Err(answer) => Err(answer.status().as_u16()),
        }
    }

    #[test]
    fn literals_localhost_and_configured_names_are_served() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:8080",
            "192.0.2.1:80",
            "[::1]",
            "[2001:db8::1]:8080",
            "localhost",
            "LocalHost:8080",
            "localhost.",
            "chat.example.com",
            "CHAT.example.com:8080",
            "chat.example.com.:8080",
            "chat.example.com:",
            "b.example:8443",
        ] {
            assert_eq!(check("/", &[host]), Ok(host.to_owned()), "{host}");
        }
        for host in [
            "evil.example",
            "chat.example.com.evil.example",
            "b.example",
            "b.example:443",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "[chat.example.com]",
        ] {
            assert!(
                matches!(check("/", &[host]), Err(421 | 400)),
                "{host}: {:?}",
                check("/", &[host])
            );
        }
        assert_eq!(check("/", &["evil.example"]), Err(421));
    }

    #[test]
    fn there_is_exactly_one_host() {
        assert_eq!(check("/", &[]), Err(400));
        assert_eq!(check("/", &["localhost", "localhost"]), Err(400));
        for host in [
            "",
            ":80",
            "localhost:abc",
            "localhost:99999",
            "localhost:8 0",
            "a@localhost",
            "localhost/",
            "localhost, localhost",
            "b\u{fc}cher.example",
        ] {
            assert_eq!(check("/", &[host]), Err(400), "{host:?}");
        }
    }

    #[test]
    fn an_absolute_target_names_the_same_host() {
        assert_eq!(
            check("http://localhost:8080/v1/events", &["localhost:8080"]),
            Ok("localhost:8080".to_owned())
        );
        assert_eq!(check("http://127.0.0.1/", &["localhost"]), Err(400));
        assert_eq!(check("http://evil.example/", &["evil.example"]), Err(421));
    }

    #[test]
    fn what_is_no_host_is_no_configuration() {
        for text in [
            "",
            "https://chat.example.com",
            "chat.example.com/x",
            "a b",
            "user@host",
        ] {
            let error = Hosts::new(&[text.to_owned()]).unwrap_err();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
