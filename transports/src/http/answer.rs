//! Answers: every body is one JSON object of the protocol, and nothing is ever stored by a cache.

use std::sync::Arc;

use bytes::Bytes;
use chinwag_core::{ErrorCode, Refusal};
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;

use super::encode::{Head, says_close};

/// What a route answers with.
pub type Answer = Response<Full<Bytes>>;

/// An answer all but its body, for a route that gives many which differ in nothing else: its head is laid out once.
#[derive(Debug)]
pub(crate) struct Template {
    answer: Answer,
    head: Head,
}

#[cfg_attr(
    not(feature = "http-polling"),
    allow(dead_code, reason = "only polls have so many")
)]
impl Template {
    /// That of answers like this one, whose own body is left out.
    pub(crate) fn new(mut answer: Answer) -> Arc<Self> {
        *answer.body_mut() = Full::default();
        not_stored(&mut answer);
        let head = Head::of(&answer);
        Arc::new(Self { answer, head })
    }

    /// The answer with `body`.
    pub(crate) fn fill(self: &Arc<Self>, body: Bytes) -> Outgoing {
        Outgoing::Filled(Arc::clone(self), body)
    }

    pub(super) fn head(&self) -> &Head {
        &self.head
    }
}

/// An answer on its way out.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// One of its own. Boxed, since it is large and goes from hand to hand.
    Answer(Box<Answer>),
    /// One of many that are alike, and its body.
    Filled(Arc<Template>, Bytes),
}

impl Outgoing {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Answer(answer) => answer.status(),
            Self::Filled(template, _) => template.answer.status(),
        }
    }
}

impl From<Answer> for Outgoing {
    fn from(answer: Answer) -> Self {
        Self::Answer(Box::new(answer))
    }
}

impl From<Outgoing> for Answer {
    fn from(outgoing: Outgoing) -> Self {
        match outgoing {
            Outgoing::Answer(answer) => *answer,
            Outgoing::Filled(template, body) => template.answer.clone().map(|_| Full::new(body)),
        }
    }
}

/// Says that no cache keeps `answer`, where it says nothing of caches itself.
pub(super) fn not_stored(answer: &mut Answer) {
    answer
        .headers_mut()
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
}

/// An answer with a JSON body.
#[must_use]
pub fn json(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// An answer without a body: 204.
#[must_use]
pub fn empty() -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    let no_store = HeaderValue::from_static("no-store");
    answer.headers_mut().insert(header::CACHE_CONTROL, no_store);
    answer
}

/// The answer to what was refused: the `error` object under the status of its code, with the headers that go with
/// that status.
#[must_use]
pub fn refused(refusal: &Refusal) -> Answer {
    refused_as(status(refusal.code), refusal)
}

/// The same under a status that says more than the code does.
#[must_use]
pub fn refused_as(status: StatusCode, refusal: &Refusal) -> Answer {
    answer(status, refusal, refusal.to_json(None))
}

/// The same with an `error` object that was encoded elsewhere, say with the `id` of its command.
#[must_use]
pub fn refused_with(refusal: &Refusal, body: impl Into<Bytes>) -> Answer {
    answer(status(refusal.code), refusal, body)
}

fn answer(status: StatusCode, refusal: &Refusal, body: impl Into<Bytes>) -> Answer {
    let mut answer = json(status, body);
    let headers = answer.headers_mut();
    match status {
        StatusCode::UNAUTHORIZED => {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            headers.insert(header::RETRY_AFTER, retry_after(refusal));
        }
        _ => (),
    }
    answer
}

/// Whole seconds, rounded up: a client that obeys them does not come too early. Where the refusal names no time, one
/// second.
fn retry_after(refusal: &Refusal) -> HeaderValue {
    let seconds = refusal.retry_ms().map_or(1, |millis| millis.div_ceil(1000));
    HeaderValue::from(seconds.max(1))
}

/// A refusal that belongs to HTTP alone: the code is always `bad_request`.
#[must_use]
pub fn bad_request(message: impl Into<String>) -> Refusal {
    Refusal::new(ErrorCode::BadRequest, message)
}

/// 405, with the methods that the path has, as `Allow` lists them: `"GET, OPTIONS"`.
#[must_use]
pub fn method_not_allowed(allow: &'static str) -> Answer {
    let refusal = bad_request(format!("This path takes {allow}."));
    let mut answer = refused_as(StatusCode::METHOD_NOT_ALLOWED, &refusal);
    let allow = HeaderValue::from_static(allow);
    answer.headers_mut().insert(header::ALLOW, allow);
    answer
}

/// 415, to a body with a `Content-Encoding`. `Accept-Encoding` says which there may be.
pub(crate) fn coded() -> Answer {
    let refusal = bad_request("A body is sent as it is, without a Content-Encoding.");
    let mut answer = refused_as(StatusCode::UNSUPPORTED_MEDIA_TYPE, &refusal);
    let identity = HeaderValue::from_static("identity");
    answer
        .headers_mut()
        .insert(header::ACCEPT_ENCODING, identity);
    answer
}

/// The same answer; the connection is closed after it.
pub(crate) fn closing(mut answer: Answer) -> Answer {
    if !says_close(answer.headers()) {
        let close = HeaderValue::from_static("close");
        answer.headers_mut().append(header::CONNECTION, close);
    }
    answer
}

/// The status of each code.
#[must_use]
pub fn status(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::BadJson
        | ErrorCode::BadRequest
        | ErrorCode::UnknownType
        | ErrorCode::NameInvalid
        | ErrorCode::RoomInvalid
        | ErrorCode::MessageEmpty
        | ErrorCode::MessageTooLong
        | ErrorCode::MessageRejected => StatusCode::BAD_REQUEST,
        ErrorCode::NotLoggedIn | ErrorCode::AuthFailed | ErrorCode::SessionExpired => {
            StatusCode::UNAUTHORIZED
        }
        ErrorCode::SessionRefused | ErrorCode::Forbidden => StatusCode::FORBIDDEN,
        ErrorCode::NameInUse | ErrorCode::NotJoined | ErrorCode::AlreadyLoggedIn => {
            StatusCode::CONFLICT
        }
        ErrorCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::RateLimited | ErrorCode::TooMany => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::Unavailable | ErrorCode::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_code_has_the_status_of_the_protocol() {
        for (status, codes) in [
            (
                400,
                &[
                    "bad_json",
                    "bad_request",
                    "unknown_type",
                    "name_invalid",
                    "room_invalid",
                    "message_empty",
                    "message_too_long",
                    "message_rejected",
                ][..],
            ),
            (401, &["not_logged_in", "auth_failed", "session_expired"]),
            (403, &["session_refused", "forbidden"]),
            (409, &["already_logged_in", "name_in_use", "not_joined"]),
            (413, &["too_large"]),
            (429, &["rate_limited", "too_many"]),
            (503, &["unavailable", "shutting_down"]),
            (500, &["internal"]),
        ] {
            let found: Vec<_> = ErrorCode::ALL
                .into_iter()
                .filter(|&code| self::status(code) == status)
                .map(ErrorCode::code)
                .collect();
            assert_eq!(found, codes, "{status}");
        }
    }

    #[test]
    fn refusals_carry_the_headers_of_their_status() {
        let header = |refusal: &Refusal, name| {
            let answer = refused(refusal);
            assert_eq!(answer.headers()[header::CACHE_CONTROL], "no-store");
            assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/json");
            let value = answer.headers().get(name);
            value.map(|value| value.to_str().unwrap().to_owned())
        };
        let refusal = Refusal::new(ErrorCode::AuthFailed, "No.");
        assert_eq!(
            header(&refusal, header::WWW_AUTHENTICATE).as_deref(),
            Some("Bearer")
        );
        assert_eq!(header(&refusal, header::RETRY_AFTER), None);
        for (millis, seconds) in [(1, "1"), (1000, "1"), (1001, "2"), (59_999, "60")] {
            let refusal =
                Refusal::new(ErrorCode::RateLimited, "Later.").retry(Duration::from_millis(millis));
            assert_eq!(
                header(&refusal, header::RETRY_AFTER).as_deref(),
                Some(seconds),
                "{millis}"
            );
        }
        let refusal = Refusal::new(ErrorCode::ShuttingDown, "Bye.");
        assert_eq!(
            header(&refusal, header::RETRY_AFTER).as_deref(),
            Some("1"),
            "always there with 503"
        );
    }
}
