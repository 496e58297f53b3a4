//! `Authorization`: credentials where one logs in, a session's id everywhere else.

use base64::{Engine, prelude::BASE64_STANDARD};
use chinwag_core::{Refusal, plugin::Credentials};
use http::{HeaderMap, header};
use secrecy::SecretString;

use super::answer::bad_request;

/// The one `Authorization` header.
enum Authorization<'a> {
    None,
    /// Scheme and parameters.
    Some(&'a str, &'a str),
}

fn authorization(headers: &HeaderMap) -> Result<Authorization<'_>, Refusal> {
    let mut all = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = all.next() else {
        return Ok(Authorization::None);
    };
    if all.next().is_some() {
        return Err(bad_request("More than one Authorization header."));
    }
    let text = value
        .to_str()
        .map_err(|_| bad_request("The Authorization header can't be read."))?;
    let (scheme, parameters) = text.split_once(' ').unwrap_or((text, ""));
    Ok(Authorization::Some(scheme, parameters.trim()))
}

/// The credentials that a log-in brings in its header: `Basic` with a user and a password, or `Bearer` with a token.
///
/// # Errors
/// `bad_request`: several headers, another scheme, or `Basic` that can't be read. Never repeats what was sent.
pub fn credentials(headers: &HeaderMap) -> Result<Option<Credentials>, Refusal> {
    let Authorization::Some(scheme, parameters) = authorization(headers)? else {
        return Ok(None);
    };
    if scheme.eq_ignore_ascii_case("bearer") && !parameters.is_empty() {
        return Ok(Some(Credentials::token(parameters.to_owned())));
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let (user, password) = BASE64_STANDARD
            .decode(parameters)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .and_then(|text| {
                let (user, password) = text.split_once(':')?;
                Some((user.to_owned(), SecretString::from(password)))
            })
            .ok_or_else(|| {
                bad_request("Authorization Basic is the base64 of user:password in UTF-8.")
            })?;
        return Ok(Some(Credentials::password(user, password)));
    }
    Err(bad_request(
        "Authorization is Basic with user and password, or Bearer with a token.",
    ))
}

/// What stands after `Bearer`; `None` without such a header.
///
/// # Errors
/// `bad_request`: several headers.
pub fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    match authorization(headers)? {
        Authorization::Some(scheme, id)
            if scheme.eq_ignore_ascii_case("bearer") && !id.is_empty() =>
        {
            Ok(Some(id))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use secrecy::ExposeSecret;

    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(
                header::AUTHORIZATION,
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        headers
    }

    #[test]
    fn basic_is_a_user_and_a_password() {
        for (value, user, password) in [
            (
                "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
                "Aladdin",
                "open sesame",
            ),
            ("basic YTo=", "a", ""),
            ("BASIC Ojo6", "", "::"),
            ("Basic w6k6w6k=", "\u{e9}", "\u{e9}"),
        ] {
            let credentials = credentials(&headers(&[value])).unwrap().unwrap();
            assert_eq!(credentials.user.as_deref(), Some(user));
            assert_eq!(credentials.password.unwrap().expose_secret(), password);
            assert!(credentials.token.is_none());
        }
    }

    #[test]
    fn bearer_is_a_token_where_one_logs_in_and_an_id_elsewhere() {
        let headers = headers(&["Bearer abc.def"]);
        let token = credentials(&headers).unwrap().unwrap().token.unwrap();
        assert_eq!(token.expose_secret(), "abc.def");
        assert_eq!(bearer(&headers).unwrap(), Some("abc.def"));
    }

    #[test]
    fn what_can_not_be_read_is_refused_and_never_repeated() {
        for values in [
            &["Basic"][..],
            &["Basic c2VjcmV0"],
            &["Basic !!secret!!"],
            &["Basic /zo="],
            &["Bearer"],
            &["Bearer  "],
            &["Digest secret"],
            &["secret"],
            &["Bearer secret", "Bearer secret"],
            &["Bearer \u{fc}secret"],
        ] {
            let refusal = credentials(&headers(values)).unwrap_err();
            assert!(!refusal.message.contains("secret"), "{values:?}");
            assert_eq!(refusal.code.code(), "bad_request");
        }
        assert!(credentials(&headers(&[])).unwrap().is_none());
    }

    #[test]
    fn only_bearer_carries_an_id() {
        assert_eq!(bearer(&headers(&[])).unwrap(), None);
        assert_eq!(bearer(&headers(&["Basic YTo="])).unwrap(), None);
        assert_eq!(bearer(&headers(&["Bearer "])).unwrap(), None);
        assert_eq!(bearer(&headers(&["bearer  K3"])).unwrap(), Some("K3"));
        assert!(bearer(&headers(&["Bearer a", "Bearer a"])).is_err());
    }
}
