//! How a session manager outside of this process steers a session: orders in JSON, and the tokens that let one give
//! them.
//!
//! An order is taken whole or not at all, and acts before it is answered. A token is good for one session, and for as
//! long as that session has its manager; it is compared in constant time and shown to nobody.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_json::value::RawValue;
use subtle::ConstantTimeEq;

use crate::{
    ErrorCode, Refusal, RoomPattern,
    lock::Mutex,
    manager::{AuthFacts, ControlError, Filter, SessionControl},
    message::check_structure,
    registry::SessionId,
};

/// The most patterns in a filter.
const MAX_ROOMS: usize = 256;
/// The longest timeout that can be ordered: ten years, as in a configuration.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What a session is to do, as somebody outside says it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Order {
    /// [`SessionControl::set_filter`].
    Filter(Filter),
    /// [`SessionControl::set_timeout`].
    Timeout(Duration),
    /// [`SessionControl::send`].
    Send(Box<RawValue>),
    /// [`SessionControl::kick`].
    Kick(String),
    /// [`SessionControl::end`].
    End,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FilterFields {
    rooms: Option<Vec<String>>,
    commands: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TimeoutFields {
    timeout_ms: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SendFields {
    data: Box<RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KickFields {
    room: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EndFields {}

impl Order {
    /// The word for each order, in paths, in lines and as a metric label.
    pub const NAMES: [&'static str; 5] = ["filter", "timeout", "send", "kick", "end"];

    /// Its own word.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Filter(_) => "filter",
            Self::Timeout(_) => "timeout",
            Self::Send(_) => "send",
            Self::Kick(_) => "kick",
            Self::End => "end",
        }
    }

    /// Reads the order called `name` with these fields, a JSON object; nothing at all is an object without fields.
    ///
    /// | name | fields |
    /// | --- | --- |
    /// | `filter` | `rooms`: at most 256 names or patterns; `commands`; what is left out or `null` is not filtered |
    /// | `timeout` | `timeout_ms`: at most ten years; 0: never |
    /// | `send` | `data`: any JSON |
    /// | `kick` | `room` |
    /// | `end` | |
    ///
    /// # Errors
    /// `unknown_type`, `bad_json`, `bad_request` and `room_invalid`, with a sentence for whoever wrote it.
    pub fn read(name: &str, fields: &[u8]) -> Result<Self, Refusal> {
        let fields = if fields.trim_ascii().is_empty() {
            b"{}"
        } else {
            fields
        };
        match name {
            "filter" => {
                let FilterFields { rooms, commands } = read(fields)?;
                Self::filter(rooms, commands)
            }
            "timeout" => {
                let TimeoutFields { timeout_ms } = read(fields)?;
                Self::timeout(timeout_ms)
            }
            "send" => read(fields).map(|SendFields { data }| Self::Send(data)),
            "kick" => read(fields).map(|KickFields { room }| Self::Kick(room)),
            "end" => read(fields).map(|EndFields {}| Self::End),
            _ => Err(Refusal::new(
                ErrorCode::UnknownType,
                format!(
                    "There is no such order; there are {}.",
                    Self::NAMES.join(", ")
                ),
            )),
        }
    }

    /// [`Filter`] from text.
    ///
    /// # Errors
    /// `bad_request` for too many rooms and for what is no command that can be filtered, `room_invalid` for what is no
    /// name or pattern of rooms.
    pub fn filter(
        rooms: Option<Vec<String>>,
        commands: Option<Vec<String>>,
    ) -> Result<Self, Refusal> {
        if rooms.as_ref().is_some_and(|rooms| rooms.len() > MAX_ROOMS) {
            let message = format!("rooms has at most {MAX_ROOMS} names or patterns.");
            return Err(Refusal::bad_request(message));
        }
        let rooms = rooms.map(|rooms| {
            let patterns = rooms.iter().map(|room| room.parse::<RoomPattern>());
            patterns.collect::<Result<Vec<_>, _>>()
        });
        let rooms = rooms.transpose().map_err(|_| {
            Refusal::new(
                ErrorCode::RoomInvalid,
                "rooms has something that is no name or pattern of rooms.",
            )
        })?;
        let known = |command: &String| Filter::COMMANDS.contains(&command.as_str());
        if !commands.iter().flatten().all(known) {
            return Err(Refusal::bad_request(format!(
                "commands has something else than {}.",
                Filter::COMMANDS.join(", ")
            )));
        }
        Ok(Self::Filter(Filter { rooms, commands }))
    }

    /// The timeout of so many milliseconds; 0: never.
    ///
    /// # Errors
    /// `bad_request`: over ten years.
    pub fn timeout(timeout_ms: u64) -> Result<Self, Refusal> {
        let timeout = Duration::from_millis(timeout_ms);
        if timeout > LONGEST_TIMEOUT {
            return Err(Refusal::bad_request("timeout_ms is at most ten years."));
        }
        Ok(Self::Timeout(timeout))
    }
}

fn read<T: DeserializeOwned>(fields: &[u8]) -> Result<T, Refusal> {
    let bad_json = |_| Refusal::new(ErrorCode::BadJson, "The body is not JSON.");
    serde_json::from_slice::<IgnoredAny>(fields).map_err(bad_json)?;
    if !fields.trim_ascii_start().starts_with(b"{") {
        return Err(Refusal::new(
            ErrorCode::BadJson,
            "The body is a JSON object.",
        ));
    }
    check_structure(fields).map_err(Refusal::bad_request)?;
    serde_json::from_slice(fields)
        .map_err(|error| Refusal::bad_request(format!("The body does not fit: {error}.")))
}

impl From<ControlError> for Refusal {
    fn from(error: ControlError) -> Self {
        let (code, message) = match error {
            ControlError::Over => (ErrorCode::SessionExpired, "The session is over."),
            ControlError::Full => (
                ErrorCode::TooMany,
                "As many objects wait for the session to begin as may.",
            ),
            ControlError::TooLarge => (
                ErrorCode::TooLarge,
                "The object would be larger than clients expect (server_frame_bytes).",
            ),
            ControlError::Unfit => (ErrorCode::BadRequest, "data can't be passed on."),
            ControlError::NotJoined => (ErrorCode::NotJoined, "The session is not in that room."),
        };
        Self::new(code, message)
    }
}

/// The sessions that may be steered from outside, by token. Clones are one desk. It holds a session for as long as the
/// session's manager keeps its [`Pass`].
#[derive(Clone, Default)]
pub struct ControlDesk(Arc<Desk>);

#[derive(Default)]
struct Desk {
    url: OnceLock<String>,
    /// By the session's key. The keys are random: nobody chooses them.
    sessions: Mutex<HashMap<Arc<str>, Entry>>,
}

struct Entry {
    secret: SecretString,
    control: SessionControl,
}

/// Why a token opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPass {
    /// The session that it names is over, or never was.
    Over,
    /// It is none, or not the right one.
    Wrong,
}

impl fmt::Debug for ControlDesk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlDesk")
            .field("url", &self.0.url.get())
            .field("sessions", &self.0.sessions.lock().len())
            .finish()
    }
}

impl ControlDesk {
    /// Says where orders are taken; the first word stands.
    pub fn open_at(&self, url: impl Into<String>) {
        let _ = self.0.url.set(url.into());
    }

    /// Where orders are taken, once that is known: the path of an order is its name after this.
    #[must_use]
    pub fn url(&self) -> Option<&str> {
        self.0.url.get().map(String::as_str)
    }

    /// Lets whoever has the pass's token steer that session, until the pass is dropped. `None` where the system has no
    /// randomness to give.
    #[must_use]
    pub fn admit(&self, facts: &AuthFacts, control: &SessionControl) -> Option<Pass> {
        let secret = SecretString::from(SessionId::random()?.encode());
        let token = SecretString::from(format!("{}.{}", facts.key, secret.expose_secret()));
        let entry = Entry {
            secret,
            control: control.clone(),
        };
        let key = Arc::clone(&facts.key);
        self.0.sessions.lock().insert(Arc::clone(&key), entry);
        Some(Pass {
            desk: Arc::downgrade(&self.0),
            key,
            token,
        })
    }

    /// The session that `token` is for.
    ///
    /// # Errors
    /// See [`NoPass`].
    pub fn session(&self, token: &str) -> Result<SessionControl, NoPass> {
        let (key, secret) = token.split_once('.').ok_or(NoPass::Wrong)?;
        let sessions = self.0.sessions.lock();
        let entry = sessions.get(key).ok_or(NoPass::Over)?;
        let held = entry.secret.expose_secret().as_bytes();
        if held.ct_eq(secret.as_bytes()).into() {
            Ok(entry.control.clone())
        } else {
            Err(NoPass::Wrong)
        }
    }
}

/// The right to steer one session, held by its manager.
pub struct Pass {
    desk: Weak<Desk>,
    key: Arc<str>,
    token: SecretString,
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pass")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl Pass {
    /// What has to be shown; for whoever is to steer the session and for nobody else.
    #[must_use]
    pub fn token(&self) -> &SecretString {
        &self.token
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(desk) = self.desk.upgrade() {
            desk.sessions.lock().remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(name: &str, fields: &str) -> ErrorCode {
        Order::read(name, fields.as_bytes())
            .expect_err("it is no order")
            .code
    }

    #[test]
    fn every_order_has_its_fields() {
        for (name, fields) in [
            ("filter", ""),
            (
                "filter",
                r#"{"rooms":null,"commands":["join","send","signal","users","history"]}"#,
            ),
            ("filter", r#"{"rooms":[]}"#),
            ("timeout", r#"{"timeout_ms":0}"#),
            ("send", r#"{"data":null}"#),
            ("send", r#"{"data":{"a":[1,"\n"]}}"#),
            ("kick", r#"{"room":"lobby"}"#),
            ("end", "{}"),
            ("end", " "),
        ] {
            let order = Order::read(name, fields.as_bytes()).expect(fields);
            assert_eq!(order.name(), name);
        }
        let named: Vec<_> = Order::NAMES.to_vec();
        assert_eq!(named, ["filter", "timeout", "send", "kick", "end"]);
    }

    #[test]
    fn what_is_no_order_is_told_so() {
        for (name, fields, expected) in [
            ("Filter", "{}", ErrorCode::UnknownType),
            ("filter", "[]", ErrorCode::BadJson),
            ("filter", "{", ErrorCode::BadJson),
            ("filter", r#"{"room":["a"]}"#, ErrorCode::BadRequest),
            ("filter", r#"{"rooms":["Lobby"]}"#, ErrorCode::RoomInvalid),
            (
                "filter",
                r#"{"commands":["logout"]}"#,
                ErrorCode::BadRequest,
            ),
            ("filter", r#"{"commands":["sendd"]}"#, ErrorCode::BadRequest),
            ("timeout", "{}", ErrorCode::BadRequest),
            ("timeout", r#"{"timeout_ms":-1}"#, ErrorCode::BadRequest),
            (
                "timeout",
                r#"{"timeout_ms":18446744073709551615}"#,
                ErrorCode::BadRequest,
            ),
            ("send", "{}", ErrorCode::BadRequest),
            ("send", r#"{"data":"\ud800"}"#, ErrorCode::BadRequest),
            ("kick", r#"{"room":7}"#, ErrorCode::BadRequest),
            ("end", r#"{"why":"so"}"#, ErrorCode::BadRequest),
        ] {
            assert_eq!(code(name, fields), expected, "{name} {fields}");
        }
        let deep = format!(r#"{{"data":{}{}}}"#, "[".repeat(40), "]".repeat(40));
        assert_eq!(code("send", &deep), ErrorCode::BadRequest);
        let many = format!(r#"{{"rooms":[{}"a"]}}"#, r#""a","#.repeat(MAX_ROOMS));
        assert_eq!(code("filter", &many), ErrorCode::BadRequest);
    }
}
