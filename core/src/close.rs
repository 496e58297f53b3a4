//! Why a session ended, in the one vocabulary that peers, logs, metrics and hooks share.
//!
//! The table is that of `docs/protocol.md`, "The end of a session". A reason is never free text: what a peer may
//! read of the cause is the code and its advice.

use serde::Serialize;

/// Why a session ended. The wire code is the variant in snake case and is also the metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CloseReason {
    /// The client said `logout`, or closed its connection in good order.
    Logout,
    /// The server stops. Others see no leave.
    ShuttingDown,
    /// A frame over the limit: framing is lost.
    TooLarge,
    /// Nothing came from the client for its idle timeout.
    SessionExpired,
    /// The client took its data too slowly.
    SlowConsumer,
    /// A part that the session needs is out of reach.
    Unavailable,
    /// No log-in within `login_timeout`.
    LoginTimeout,
    /// The same identity logged in again.
    Replaced,
    /// Too many wrong log-ins on one connection.
    AuthFailed,
    /// The principal is no longer valid.
    AuthExpired,
    /// An operator or a hook ended the session.
    Kicked,
    /// Limits or rules were broken too often.
    Abuse,
    /// A rule of the transport was broken, or something that is no command came before log-in.
    ProtocolError,
    /// The connection was lost. Never told to the peer, who is gone.
    Disconnected,
}

impl CloseReason {
    /// Every reason, in the order of the protocol's table: the closed set behind the metric label.
    pub const ALL: [Self; 14] = [
        Self::Logout,
        Self::ShuttingDown,
        Self::TooLarge,
        Self::SessionExpired,
        Self::SlowConsumer,
        Self::Unavailable,
        Self::LoginTimeout,
        Self::Replaced,
        Self::AuthFailed,
        Self::AuthExpired,
        Self::Kicked,
        Self::Abuse,
        Self::ProtocolError,
        Self::Disconnected,
    ];

    /// The code as it stands on the wire, in logs and as a metric label.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Logout => "logout",
            Self::ShuttingDown => "shutting_down",
            Self::TooLarge => "too_large",
            Self::SessionExpired => "session_expired",
            Self::SlowConsumer => "slow_consumer",
            Self::Unavailable => "unavailable",
            Self::LoginTimeout => "login_timeout",
            Self::Replaced => "replaced",
            Self::AuthFailed => "auth_failed",
            Self::AuthExpired => "auth_expired",
            Self::Kicked => "kicked",
            Self::Abuse => "abuse",
            Self::ProtocolError => "protocol_error",
            Self::Disconnected => "disconnected",
        }
    }

    /// The WebSocket close code. A broken WebSocket rule has its own, more precise one (1002 or 1007).
    #[must_use]
    pub const fn websocket_code(self) -> u16 {
        match self {
            Self::Logout => 1000,
            Self::ShuttingDown => 1001,
            Self::TooLarge => 1009,
            Self::ProtocolError => 1002,
            Self::SessionExpired => 4001,
            Self::SlowConsumer => 4002,
            Self::Unavailable => 4004,
            Self::LoginTimeout => 4005,
            Self::Replaced => 4500,
            Self::AuthFailed => 4501,
            Self::AuthExpired => 4502,
            Self::Kicked => 4503,
            Self::Abuse => 4504,
            // Never sent: the peer is gone.
            Self::Disconnected => 1006,
        }
    }

    /// Whether the client may come back by itself; where not, `retry_ms` is null.
    #[must_use]
    pub const fn may_return(self) -> bool {
        matches!(
            self,
            Self::ShuttingDown
                | Self::TooLarge
                | Self::SessionExpired
                | Self::SlowConsumer
                | Self::Unavailable
                | Self::LoginTimeout
                | Self::Disconnected
        )
    }

    /// What the other members of a room read in `leave.reason`, or `None` where they see no leave.
    #[must_use]
    pub const fn leave_reason(self) -> Option<LeaveReason> {
        match self {
            Self::ShuttingDown => None,
            Self::Logout => Some(LeaveReason::Logout),
            Self::SessionExpired => Some(LeaveReason::Expired),
            Self::Replaced => Some(LeaveReason::Replaced),
            Self::Kicked => Some(LeaveReason::Kicked),
            Self::Disconnected => Some(LeaveReason::Disconnected),
            Self::TooLarge
            | Self::SlowConsumer
            | Self::Unavailable
            | Self::LoginTimeout
            | Self::AuthFailed
            | Self::AuthExpired
            | Self::Abuse
            | Self::ProtocolError => Some(LeaveReason::Evicted),
        }
    }

    /// One sentence for the person at the other end: what happened and what to do.
    #[must_use]
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Logout => "You have logged out.",
            Self::ShuttingDown => "The server is stopping; reconnect after retry_ms.",
            Self::TooLarge => {
                "A frame was over the limit; reconnect and do not send that object again."
            }
            Self::SessionExpired => {
                "Nothing was heard from you for the session's timeout; log in again."
            }
            Self::SlowConsumer => "You read too slowly and the queue is full; reconnect.",
            Self::Unavailable => "A part of the service is out of reach; reconnect after retry_ms.",
            Self::LoginTimeout => "No log-in came in time; reconnect and log in at once.",
            Self::Replaced => "The same identity logged in elsewhere.",
            Self::AuthFailed => "Too many failed log-ins on this connection.",
            Self::AuthExpired => "Your log-in is no longer valid; log in anew.",
            Self::Kicked => "You were removed.",
            Self::Abuse => "Limits or rules were broken too often.",
            Self::ProtocolError => "A rule of the protocol was broken.",
            Self::Disconnected => "The connection was lost.",
        }
    }
}

/// Why a member left a room, as the others read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaveReason {
    /// By the command `leave`.
    Left,
    /// The session logged out.
    Logout,
    /// The session fell silent.
    Expired,
    /// Another log-in of the same identity took its place.
    Replaced,
    /// An operator or a hook removed the member.
    Kicked,
    /// The server ended the session for a cause of its own.
    Evicted,
    /// The connection was lost.
    Disconnected,
}

impl LeaveReason {
    /// The word as it stands on the wire.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Left => "left",
            Self::Logout => "logout",
            Self::Expired => "expired",
            Self::Replaced => "replaced",
            Self::Kicked => "kicked",
            Self::Evicted => "evicted",
            Self::Disconnected => "disconnected",
        }
    }
}
