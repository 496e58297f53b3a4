//! The closed sets of words on the wire, kept open: a later server may use a word that this client does not know, and
//! nothing breaks.

/// An enum of words with a last variant for those that are not known.
macro_rules! words {
    (
        $(#[$meta:meta])*
        pub enum $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)* }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$doc])* $variant,)*
            /// A word that this version does not know.
            Other(Box<str>),
        }

        impl $name {
            /// The word as it stands on the wire.
            #[must_use]
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $word,)*
                    Self::Other(word) => word,
                }
            }
        }

        impl From<&str> for $name {
            fn from(word: &str) -> Self {
                match word {
                    $($word => Self::$variant,)*
                    other => Self::Other(other.into()),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let word = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(from)?;
                Ok(Self::from(&*word))
            }
        }
    };
}

words! {
    /// The `code` of an `error`: why one command was refused.
    pub enum ErrorCode {
        /// Not JSON, or no object: a fault of this client.
        BadJson = "bad_json",
        /// No well-formed command; the message names the field.
        BadRequest = "bad_request",
        /// More than `frame_bytes`.
        TooLarge = "too_large",
        /// No command that the server knows.
        UnknownType = "unknown_type",
        /// There is no session here.
        NotLoggedIn = "not_logged_in",
        /// There is a session already.
        AlreadyLoggedIn = "already_logged_in",
        /// The log-in was denied.
        AuthFailed = "auth_failed",
        /// The credentials were right, and the service behind the server refused.
        SessionRefused = "session_refused",
        /// The session has ended; the refusal's `end` says how.
        SessionExpired = "session_expired",
        /// The name breaks the server's rules for names.
        NameInvalid = "name_invalid",
        /// Somebody else has the name.
        NameInUse = "name_in_use",
        /// Not a possible name of a room.
        RoomInvalid = "room_invalid",
        /// Not allowed.
        Forbidden = "forbidden",
        /// Only for members.
        NotJoined = "not_joined",
        /// Nothing in the message.
        MessageEmpty = "message_empty",
        /// More than `message_bytes`.
        MessageTooLong = "message_too_long",
        /// A rule for messages refused it.
        MessageRejected = "message_rejected",
        /// Too often; repeat after the refusal's `retry_ms`.
        RateLimited = "rate_limited",
        /// Over a cap on rooms, sessions or connections.
        TooMany = "too_many",
        /// Something that the server needs is out of reach.
        Unavailable = "unavailable",
        /// The server stops.
        ShuttingDown = "shutting_down",
        /// A fault of the server.
        Internal = "internal",
    }
}

words! {
    /// Why a session ended.
    pub enum EndCode {
        /// As asked.
        Logout = "logout",
        /// The server stops.
        ShuttingDown = "shutting_down",
        /// An object was over `frame_bytes`.
        TooLarge = "too_large",
        /// Silence for `timeout_ms`.
        SessionExpired = "session_expired",
        /// What was sent was taken too slowly.
        SlowConsumer = "slow_consumer",
        /// Something that the session needs is out of reach.
        Unavailable = "unavailable",
        /// No session in good time.
        LoginTimeout = "login_timeout",
        /// The same identity logged in elsewhere.
        Replaced = "replaced",
        /// Too many wrong log-ins.
        AuthFailed = "auth_failed",
        /// The credentials no longer hold.
        AuthExpired = "auth_expired",
        /// Removed by an operator.
        Kicked = "kicked",
        /// Limits or rules were broken too often.
        Abuse = "abuse",
        /// A rule of the protocol was broken.
        ProtocolError = "protocol_error",
        /// The server lost the connection; only told of a session that is asked for later.
        Disconnected = "disconnected",
    }
}

words! {
    /// Why a member left a room, or was taken out of it.
    pub enum LeaveReason {
        /// By command.
        Left = "left",
        /// Logged out.
        Logout = "logout",
        /// Fell silent.
        Expired = "expired",
        /// Logged in elsewhere.
        Replaced = "replaced",
        /// Was removed.
        Kicked = "kicked",
        /// The server ended the session.
        Evicted = "evicted",
        /// The connection was lost.
        Disconnected = "disconnected",
    }
}

words! {
    /// How a room tells who is there.
    pub enum Presence {
        /// A `join` or `leave` for each change.
        Each = "each",
        /// One `presence` per interval, with names.
        Batched = "batched",
        /// Counts alone.
        Off = "off",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_not_known_is_kept() {
        let code: ErrorCode = serde_json::from_str("\"name_in_use\"").unwrap();
        assert_eq!(code, ErrorCode::NameInUse);
        let code: ErrorCode = serde_json::from_str("\"on_holid\\u0061y\"").unwrap();
        assert_eq!(code, ErrorCode::Other("on_holiday".into()));
        assert_eq!(code.to_string(), "on_holiday");
    }
}
