//! What a command may be refused with: the closed set of `error` codes on the wire.

use std::time::Duration;

use serde::Serialize;

/// The `code` of an `error` object. The wire word is the variant in snake case and is also the metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// Not JSON, or not an object.
    BadJson,
    /// JSON that is no well-formed command; the message names the field.
    BadRequest,
    /// Over `frame_bytes`.
    TooLarge,
    /// No command of this protocol.
    UnknownType,
    /// The command needs a session.
    NotLoggedIn,
    /// There is a session already.
    AlreadyLoggedIn,
    /// The log-in was denied: one text, whatever was wrong.
    AuthFailed,
    /// A session manager refused the session.
    SessionRefused,
    /// The session has ended; `end` says how.
    SessionExpired,
    /// The name breaks the rules for names.
    NameInvalid,
    /// Somebody has the name.
    NameInUse,
    /// No name of a room.
    RoomInvalid,
    /// The principal may not.
    Forbidden,
    /// Only for members.
    NotJoined,
    /// Nothing in the message.
    MessageEmpty,
    /// Over `message_bytes`.
    MessageTooLong,
    /// A validator refused it.
    MessageRejected,
    /// Too often; `retry_ms` says when.
    RateLimited,
    /// Over a cap on rooms, sessions or connections.
    TooMany,
    /// Something that the command needs is out of reach; `retry_ms` says when.
    Unavailable,
    /// The server stops.
    ShuttingDown,
    /// A fault of the server.
    Internal,
}

impl ErrorCode {
    /// Every code: the closed set behind the metric label.
    pub const ALL: [Self; 22] = [
        Self::BadJson,
        Self::BadRequest,
        Self::TooLarge,
        Self::UnknownType,
        Self::NotLoggedIn,
        Self::AlreadyLoggedIn,
        Self::AuthFailed,
        Self::SessionRefused,
        Self::SessionExpired,
        Self::NameInvalid,
        Self::NameInUse,
        Self::RoomInvalid,
        Self::Forbidden,
        Self::NotJoined,
        Self::MessageEmpty,
        Self::MessageTooLong,
        Self::MessageRejected,
        Self::RateLimited,
        Self::TooMany,
        Self::Unavailable,
        Self::ShuttingDown,
        Self::Internal,
    ];

    /// The code as it stands on the wire and as a metric label.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::BadJson => "bad_json",
            Self::BadRequest => "bad_request",
            Self::TooLarge => "too_large",
            Self::UnknownType => "unknown_type",
            Self::NotLoggedIn => "not_logged_in",
            Self::AlreadyLoggedIn => "already_logged_in",
            Self::AuthFailed => "auth_failed",
            Self::SessionRefused => "session_refused",
            Self::SessionExpired => "session_expired",
            Self::NameInvalid => "name_invalid",
            Self::NameInUse => "name_in_use",
            Self::RoomInvalid => "room_invalid",
            Self::Forbidden => "forbidden",
            Self::NotJoined => "not_joined",
            Self::MessageEmpty => "message_empty",
            Self::MessageTooLong => "message_too_long",
            Self::MessageRejected => "message_rejected",
            Self::RateLimited => "rate_limited",
            Self::TooMany => "too_many",
            Self::Unavailable => "unavailable",
            Self::ShuttingDown => "shutting_down",
            Self::Internal => "internal",
        }
    }

    /// Whether it counts as a violation of the session's.
    #[must_use]
    pub const fn is_violation(self) -> bool {
        matches!(
            self,
            Self::BadJson
                | Self::BadRequest
                | Self::TooLarge
                | Self::MessageRejected
                | Self::RateLimited
        )
    }
}

/// How a session ended, as those hear who ask for it later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Why.
    pub reason: crate::CloseReason,
    /// When to come back, in milliseconds; `None` where the client should not.
    pub retry_ms: Option<u64>,
}

/// A refusal of one command: what the `error` object says, less the `id`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which rule.
    pub code: ErrorCode,
    /// What happened and what to do, for a person. Never repeats a secret or another user's data.
    pub message: String,
    /// When to try again, where that helps. Told as `retry_ms`, rounded up.
    pub retry: Option<Duration>,
    /// How the session ended, with [`ErrorCode::SessionExpired`].
    pub end: Option<End>,
}

impl Refusal {
    /// A refusal without a time to come back.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retry: None,
            end: None,
        }
    }

    /// The same refusal, saying when to try again.
    #[must_use]
    pub fn retry(mut self, after: Duration) -> Self {
        self.retry = Some(after);
        self
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::BadRequest, message)
    }

    /// The one text for every failed log-in.
    pub(crate) fn auth_failed() -> Self {
        Self::new(
            ErrorCode::AuthFailed,
            "The log-in failed; check the credentials.",
        )
    }

    /// `retry_ms`: at least 1 where a time is given.
    #[must_use]
    pub fn retry_ms(&self) -> Option<u64> {
        self.retry.map(|after| {
            u64::try_from(after.as_nanos().div_ceil(1_000_000))
                .unwrap_or(u64::MAX)
                .max(1)
        })
    }

    /// The `error` object as JSON.
    #[must_use]
    pub fn to_json(&self, id: Option<u64>) -> Vec<u8> {
        #[derive(Serialize)]
        struct Wire<'a> {
            r#type: &'static str,
            #[serde(skip_serializing_if = "Option::is_none")]
            id: Option<u64>,
            code: ErrorCode,
            message: &'a str,
            /// The outer one: whether it is there. The inner one: `null`, where an end leaves nothing to wait for.
            #[serde(skip_serializing_if = "Option::is_none")]
            retry_ms: Option<Option<u64>>,
            #[serde(skip_serializing_if = "Option::is_none")]
            end: Option<crate::CloseReason>,
        }
        let wire = Wire {
            r#type: "error",
            id,
            code: self.code,
            message: &self.message,
            retry_ms: match self.end {
                Some(end) => Some(end.retry_ms),
                None => self.retry_ms().map(Some),
            },
            end: self.end.map(|end| end.reason),
        };
        serde_json::to_vec(&wire).expect("an error object has no map with keys that are no strings")
    }
}
