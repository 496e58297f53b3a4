//! What a session's principal may do beyond and short of everybody, and until when.

use crate::{
    ErrorCode, Refusal, RoomPattern,
    clock::Instant,
    config::{LimitsConfig, Rate},
    limit::Bucket,
    plugin::Principal,
};

/// What sets a principal apart. Most have nothing, and their sessions keep no room for it.
pub(crate) struct Standing {
    roles: Vec<String>,
    rooms: Option<Vec<RoomPattern>>,
    /// What the authenticator knows the credential by.
    pub(crate) credential: Option<String>,
    /// When the session ends because its principal does.
    pub(crate) expires: Option<Instant>,
    pub(crate) sends: Option<Bucket>,
    pub(crate) commands: Option<Bucket>,
    pub(crate) rooms_per_session: Option<usize>,
    pub(crate) message_bytes: Option<usize>,
}

impl Standing {
    /// `None`: the principal is like everybody. `expires`: its `expires_at` by the server's own clock.
    pub(crate) fn of(
        principal: Principal,
        expires: Option<Instant>,
        limits: &LimitsConfig,
    ) -> Option<Box<Self>> {
        let own = principal.limits;
        let bucket = |rate: Option<Rate>| rate.map(Bucket::new);
        let standing = Self {
            roles: principal.roles,
            rooms: principal.rooms,
            credential: principal.credential,
            expires,
            sends: bucket(own.sends),
            commands: bucket(own.commands),
            rooms_per_session: own.rooms_per_session,
            message_bytes: own
                .message_bytes
                .map(|bytes| bytes.0.min(limits.message_bytes.0)),
        };
        let is_plain = standing.roles.is_empty()
            && standing.rooms.is_none()
            && standing.credential.is_none()
            && expires.is_none()
            && standing.sends.is_none()
            && standing.commands.is_none()
            && standing.rooms_per_session.is_none()
            && standing.message_bytes.is_none();
        (!is_plain).then(|| Box::new(standing))
    }

    /// Whether it may enter the room of that name.
    pub(crate) fn may_enter(&self, room: &str) -> bool {
        self.rooms
            .as_ref()
            .is_none_or(|rooms| rooms.iter().any(|pattern| pattern.matches(room)))
    }

    /// Whether it has one of `roles`.
    pub(crate) fn has_one_of(&self, roles: &[String]) -> bool {
        roles.iter().any(|role| self.roles.contains(role))
    }
}

/// The refusal of what a principal may not do in a room.
pub(crate) fn forbidden(message: &str) -> Refusal {
    Refusal::new(ErrorCode::Forbidden, message)
}
