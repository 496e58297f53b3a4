//! What a configuration file may say about the core, as types that carry their units and bounds.
//!
//! Every type refuses unknown keys. What is not built yet is refused by name: [`Later`] and its kin accept only the
//! value that means off. Reading files, merging the environment and blaming a line is the program's business.

use std::{fmt, time::Duration};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, Unexpected, Visitor},
    ser::SerializeStruct as _,
};

/// `[server]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// The room of a command that names none. Absent: every command names its room.
    pub default_room: Option<String>,
    /// Worker threads, which is also the number of lanes. 0: one per core.
    pub workers: usize,
    /// How long a drain may take before the rest is dropped.
    pub shutdown_grace: Span,
    /// The most memory that the limits may allow in all; a start with limits that allow more is refused. Zero: none.
    pub memory_budget: Size,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            default_room: None,
            workers: 0,
            shutdown_grace: Span::secs(10),
            memory_budget: Size(0),
        }
    }
}

/// `[sessions]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SessionsConfig {
    /// Silence after which a session expires; a transport may have its own. Zero: never.
    pub timeout: Span,
    /// Not built yet; only `"0s"`.
    pub resume_window: Later<Span>,
    /// What becomes of a log-in of an identity that has a session already.
    pub duplicate_login: DuplicateLogin,
    /// How long an ended session's id is answered with `session_expired`; at most 10,000 are remembered.
    pub remember_ended: Span,
    /// Whether it counts as a client's activity that its connection took what was written to it, pings aside. What
    /// waits in a queue does not count, and a polling client is active when it polls, as it does to acknowledge.
    pub delivery_is_activity: bool,
    /// Log-ins that may fail on one connection before it ends with `auth_failed`. At least 1.
    pub login_attempts: u32,
}

impl Default for SessionsConfig {
    fn default() -> Self {
        Self {
            timeout: Span::secs(30),
            resume_window: Later::default(),
            duplicate_login: DuplicateLogin::Replace,
            remember_ended: Span::secs(60),
            delivery_is_activity: false,
            login_attempts: 5,
        }
    }
}

/// A log-in of an identity that has a session already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DuplicateLogin {
    /// The old session ends with `replaced`.
    Replace,
    /// The new one is refused with `name_in_use`.
    Reject,
    /// So many may live side by side, at least 1; one more is refused with `too_many`. To the other members of a room
    /// they are one user: the first one's join and the last one's leave are told.
    Allow(usize),
}

impl DuplicateLogin {
    /// How many sessions one identity may have.
    #[must_use]
    pub const fn side_by_side(self) -> usize {
        match self {
            Self::Replace | Self::Reject => 1,
            Self::Allow(most) => most,
        }
    }
}

/// `[names]`: rules for names that clients choose.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NamesConfig {
    /// Fewest characters. At least 1.
    pub min: usize,
    /// Most characters; a name also has at most 128 bytes.
    pub max: usize,
    /// Which characters.
    pub charset: Charset,
    /// The canonical form that others see. Names are unique without regard to case whatever it says.
    pub case: Case,
}

impl Default for NamesConfig {
    fn default() -> Self {
        Self {
            min: 1,
            max: 32,
            charset: Charset::Ascii,
            case: Case::Preserve,
        }
    }
}

/// Which characters a chosen name may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Charset {
    /// Letters, digits, `_`, `-` and `.`.
    Ascii,
    /// What the PRECIS username profile admits; look-alikes count as the same name.
    Unicode,
}

/// The canonical form of a chosen name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Case {
    /// As the client wrote it.
    Preserve,
    /// ALL UPPER.
    Upper,
    /// all lower.
    Lower,
    /// First letter upper, the rest lower.
    Capitalize,
}

/// `[limits]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Bytes of `text` plus compact `data`.
    pub message_bytes: Size,
    /// Bytes of one object from a client.
    pub frame_bytes: Size,
    /// Bytes of one object to a client; longer lists are paged or split.
    pub server_frame_bytes: Size,
    /// Sends of one session.
    pub sends: Rate,
    /// Sends of one user, however many sessions.
    pub sends_per_user: Rate,
    /// Commands of one session.
    pub commands: Rate,
    /// Polls of one session that do not wait.
    pub polls: Rate,
    /// New connections from one address (IPv6: one /64); loopback is exempt unless a proxy named it.
    pub connects_per_ip: Rate,
    /// Denied log-ins from one address (IPv6: one /64). Whoever uses them up waits `per / rate`, and twice as long
    /// after each further denial.
    pub login_failures_per_ip: Rate,
    /// Denied log-ins for one name, however it is spelt; likewise. Those from an address from which the name has logged
    /// in are counted apart. No more are judged at a time than are left.
    pub login_failures_per_name: Rate,
    /// The longest of these waits; where it is not above `per / rate`, they don't grow.
    pub login_delay_max: Span,
    /// Most names in one `users` page.
    pub page_names: usize,
    /// Not built yet: most events in one `history` page. Only the default, 256.
    #[serde(deserialize_with = "page_events")]
    pub page_events: usize,
    /// Rooms that one session, and one address, may bring into being.
    pub room_creations: Rate,
    /// Broken rules of one session before `on_abuse` applies.
    pub violations: Rate,
    /// What becomes of a session over `violations`.
    pub on_abuse: OnAbuse,
    /// Bytes queued for a push member that does not read.
    pub member_queue: Size,
    /// How long a push member may go without taking a byte while some are queued.
    pub slow_after: Span,
    /// What is queued for a polling session until it acknowledges.
    pub poll_queue: QueueLimits,
    /// Bytes of one room that wait for its lane; over it, publishers are not read.
    pub room_inbox: Size,
    /// Rooms that one session may be in.
    pub rooms_per_session: usize,
    /// Rooms in all, empty ones included.
    pub rooms: usize,
    /// Sessions in all.
    pub sessions: usize,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let second = Span::secs(1);
        Self {
            message_bytes: Size(4 << 10),
            frame_bytes: Size(16 << 10),
            server_frame_bytes: Size(256 << 10),
            sends: Rate::of(10, second, 30),
            sends_per_user: Rate::Unlimited,
            commands: Rate::of(50, second, 200),
            polls: Rate::of(5, second, 20),
            connects_per_ip: Rate::of(200, second, 1000),
            login_failures_per_ip: Rate::of(1, second, 20),
            login_failures_per_name: Rate::of(1, Span::secs(10), 10),
            login_delay_max: Span::secs(60),
            page_names: 1000,
            page_events: 256,
            room_creations: Rate::of(1, second, 64),
            violations: Rate::of(20, Span::secs(60), 20),
            on_abuse: OnAbuse::End,
            member_queue: Size(256 << 10),
            slow_after: Span::secs(10),
            poll_queue: QueueLimits::default(),
            room_inbox: Size(1 << 20),
            rooms_per_session: 64,
            rooms: 100_000,
            sessions: 100_000,
        }
    }
}

fn page_events<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let events = usize::deserialize(deserializer)?;
    if events == LimitsConfig::default().page_events {
        return Ok(events);
    }
    Err(de::Error::custom(
        "history pages are not built yet; leave the key out",
    ))
}

/// The bounds of a queue that a client empties.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueLimits {
    /// Most events.
    pub events: usize,
    /// Most bytes.
    pub bytes: Size,
}

impl Default for QueueLimits {
    fn default() -> Self {
        Self {
            events: 1024,
            bytes: Size(256 << 10),
        }
    }
}

/// `[room]`, and, over it, `[rooms.NAME]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RoomConfig {
    /// Who may bring such a room into being.
    pub create: Create,
    /// How long an empty room is kept.
    pub linger: Span,
    /// Most members.
    pub members: usize,
    /// Most names in `init`.
    pub users_in_init: usize,
    /// How membership is told.
    pub presence: Presence,
    /// How often `batched` and `off` presence is told. At least 10 ms.
    pub presence_interval: Span,
    /// A room in `each` with more members than this tells presence in batches, until it has half as many. Zero: never.
    pub presence_auto_batch: usize,
    /// Silence of a member in this room, by commands that name it, after which its stay alone ends with `expired`.
    /// Zero: never.
    pub member_timeout: Span,
    /// Messages of the whole room.
    pub sends: Rate,
    /// Roles of which one is needed to enter. Empty: everybody may.
    pub join_roles: Vec<String>,
    /// Roles of which a member needs one to send. Empty: every member may.
    pub send_roles: Vec<String>,
    /// What the room keeps of its past.
    pub history: HistoryLimits,
    /// The checks that a message passes, in order: built-in ones and those of `[validators.NAME]`.
    pub validators: Vec<String>,
}

impl Default for RoomConfig {
    fn default() -> Self {
        Self {
            create: Create::Anyone,
            linger: Span::secs(600),
            members: 100_000,
            users_in_init: 1000,
            presence: Presence::Each,
            presence_interval: Span::secs(1),
            presence_auto_batch: 200,
            member_timeout: Span::secs(0),
            sends: Rate::Unlimited,
            join_roles: Vec::new(),
            send_roles: Vec::new(),
            history: HistoryLimits::default(),
            validators: ["not_empty", "length", "control_chars"]
                .map(String::from)
                .to_vec(),
        }
    }
}

/// Who may bring a room into being.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Create {
    /// Whoever joins it first.
    Anyone,
    /// Only rooms that a `[rooms.NAME]` table matches exist.
    Configured,
}

/// How a room tells membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// Numbered join and leave events.
    Each,
    /// A summary once per interval.
    Batched,
    /// The count alone, once per interval.
    Off,
}

/// The bounds of a room's ring of past events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistoryLimits {
    /// Most events. Zero: none are kept.
    pub events: usize,
    /// Most bytes.
    pub bytes: Size,
    /// Oldest age, judged when an event is added.
    pub age: Span,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self {
            events: 256,
            bytes: Size(1 << 20),
            age: Span::secs(3600),
        }
    }
}

/// What becomes of a session that broke rules too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnAbuse {
    /// It ends with `abuse`.
    End,
    /// Its sends are refused for so long.
    Mute(Duration),
    /// It ends with `abuse`, and its principal (an anonymous one: its address) may not log in for so long.
    Ban(Duration),
}

/// A length of time, written `"30s"`, `"10m"`, `"100ms"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Span(pub Duration);

impl Span {
    /// So many seconds.
    #[must_use]
    pub const fn secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    /// So many milliseconds.
    #[must_use]
    pub const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// Whether it is zero, which usually means "never".
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0.is_zero()
    }

    /// Whole milliseconds, as `timeout_ms` and `retry_ms` carry them.
    #[must_use]
    pub fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_zero() {
            f.write_str("0s")
        } else {
            humantime::format_duration(self.0).fmt(f)
        }
    }
}

/// The longest time a file may name: ten years. It keeps deadlines far from overflow.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

fn parse_span(text: &str) -> Result<Duration, String> {
    let span = match text {
        "0" => Duration::ZERO,
        _ => humantime::parse_duration(text)
            .map_err(|_| format!("expected a time like \"30s\", got {text:?}"))?,
    };
    if span > LONGEST {
        return Err(format!("{text:?} is over ten years"));
    }
    Ok(span)
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SpanVisitor;
        impl Visitor<'_> for SpanVisitor {
            type Value = Span;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time with its unit, like \"30s\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                parse_span(text).map(Span).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(SpanVisitor)
    }
}

/// A number of bytes, written `"64KiB"`, `"1MiB"`, `"512"`, or as a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Size(pub usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0;
        match bytes {
            0 => f.write_str("0"),
            _ if bytes.is_multiple_of(1 << 30) => write!(f, "{}GiB", bytes >> 30),
            _ if bytes.is_multiple_of(1 << 20) => write!(f, "{}MiB", bytes >> 20),
            _ if bytes.is_multiple_of(1 << 10) => write!(f, "{}KiB", bytes >> 10),
            _ => write!(f, "{bytes}"),
        }
    }
}

fn parse_size(text: &str) -> Result<usize, String> {
    let wrong = || format!("expected a size like \"64KiB\", got {text:?}");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let scale = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    let number: usize = number.parse().map_err(|_| wrong())?;
    number
        .checked_mul(scale)
        .filter(|&bytes| bytes <= 1 << 40)
        .ok_or_else(|| format!("{text:?} is over 1024GiB"))
}

impl Serialize for Size {
    /// The number.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = Size;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size like \"64KiB\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                parse_size(text).map(Size).map_err(E::custom)
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Size, E> {
                usize::try_from(bytes)
                    .ok()
                    .filter(|&bytes| bytes <= 1 << 40)
                    .map(Size)
                    .ok_or_else(|| E::invalid_value(Unexpected::Unsigned(bytes), &self))
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
                u64::try_from(bytes)
                    .map_err(|_| E::invalid_value(Unexpected::Signed(bytes), &self))
                    .and_then(|bytes| self.visit_u64(bytes))
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

/// A token bucket: `{ rate = 10, per = "1s", burst = 30 }`, or `"unlimited"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// No limit.
    Unlimited,
    /// `burst` at once, then `rate` in each `per`.
    Limited {
        /// Tokens that come back in each `per`. At least 1.
        rate: u32,
        /// The time in which `rate` tokens come back. Above zero.
        per: Duration,
        /// Most tokens at once. At least 1.
        burst: u32,
    },
}

impl Rate {
    const fn of(rate: u32, per: Span, burst: u32) -> Self {
        Self::Limited {
            rate,
            per: per.0,
            burst,
        }
    }
}

impl Serialize for Rate {
    /// As it is written in a file.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self::Unlimited => serializer.serialize_str("unlimited"),
            Self::Limited { rate, per, burst } => {
                let mut bucket = serializer.serialize_struct("Rate", 3)?;
                bucket.serialize_field("rate", &rate)?;
                bucket.serialize_field("per", &Span(per).to_string())?;
                bucket.serialize_field("burst", &burst)?;
                bucket.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RateVisitor;
        impl<'de> Visitor<'de> for RateVisitor {
            type Value = Rate;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("{ rate = 10, per = \"1s\", burst = 30 } or \"unlimited\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Rate, E> {
                match text {
                    "unlimited" => Ok(Rate::Unlimited),
                    _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Rate, A::Error> {
                #[derive(Deserialize)]
                #[serde(deny_unknown_fields)]
                struct Bucket {
                    rate: u32,
                    per: Span,
                    burst: u32,
                }
                let Bucket { rate, per, burst } =
                    Bucket::deserialize(de::value::MapAccessDeserializer::new(map))?;
                if rate == 0 || burst == 0 || per.is_zero() {
                    return Err(de::Error::custom(
                        "rate, per and burst of a rate are above zero",
                    ));
                }
                Ok(Rate::Limited {
                    rate,
                    per: per.0,
                    burst,
                })
            }
        }
        deserializer.deserialize_any(RateVisitor)
    }
}

impl<'de> Deserialize<'de> for OnAbuse {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AbuseVisitor;
        impl Visitor<'_> for AbuseVisitor {
            type Value = OnAbuse;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"end\", \"mute:30s\" or \"ban:10m\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<OnAbuse, E> {
                let wrong = || E::invalid_value(Unexpected::Str(text), &self);
                if text == "end" {
                    return Ok(OnAbuse::End);
                }
                let (word, span) = text.split_once(':').ok_or_else(wrong)?;
                let span = parse_span(span)
                    .ok()
                    .filter(|span| !span.is_zero())
                    .ok_or_else(wrong)?;
                match word {
                    "mute" => Ok(OnAbuse::Mute(span)),
                    "ban" => Ok(OnAbuse::Ban(span)),
                    _ => Err(wrong()),
                }
            }
        }
        deserializer.deserialize_str(AbuseVisitor)
    }
}

impl<'de> Deserialize<'de> for DuplicateLogin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct DuplicateVisitor;
        impl<'de> Visitor<'de> for DuplicateVisitor {
            type Value = DuplicateLogin;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"replace\", \"reject\" or { allow = N } with N of at least 1")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<DuplicateLogin, E> {
                match text {
                    "replace" => Ok(DuplicateLogin::Replace),
                    "reject" => Ok(DuplicateLogin::Reject),
                    _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
                }
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<DuplicateLogin, A::Error> {
                #[derive(Deserialize)]
                #[serde(deny_unknown_fields)]
                struct Table {
                    allow: usize,
                }
                match Table::deserialize(de::value::MapAccessDeserializer::new(map))?.allow {
                    0 => Err(de::Error::custom("allow must be at least 1")),
                    most => Ok(DuplicateLogin::Allow(most)),
                }
            }
        }
        deserializer.deserialize_any(DuplicateVisitor)
    }
}

/// A setting of something that is not built yet: only the value that means off is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Later<T>(T);

impl<'de, T: Deserialize<'de> + Default + PartialEq + fmt::Display> Deserialize<'de> for Later<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = T::deserialize(deserializer)?;
        let off = T::default();
        if value == off {
            Ok(Self(off))
        } else {
            Err(de::Error::custom(format_args!(
                "not built yet; only \"{off}\" (off) is accepted"
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T: for<'de> Deserialize<'de>>(json: &str) -> Result<T, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn units_are_read_and_shown() {
        for (text, bytes) in [
            ("64KiB", 65_536),
            ("1MiB", 1 << 20),
            ("512", 512),
            ("3kB", 3_000),
            ("0", 0),
        ] {
            assert_eq!(
                read::<Size>(&format!("{text:?}")),
                Ok(Size(bytes)),
                "{text}"
            );
        }
        for text in ["", "KiB", "-1", "1.5MiB", "9999999GiB", "64 KiB"] {
            assert!(read::<Size>(&format!("{text:?}")).is_err(), "{text}");
        }
        assert_eq!(read::<Span>("\"1m 30s\""), Ok(Span::secs(90)));
        assert!(
            read::<Span>("\"30\"").is_err(),
            "a number without a unit is a guess"
        );
        assert!(read::<Span>("\"100years\"").is_err());
        assert_eq!(Span::secs(90).to_string(), "1m 30s");
        assert_eq!(Size(65_536).to_string(), "64KiB");
    }

    #[test]
    fn a_rate_is_a_bucket_or_the_word_unlimited() {
        assert_eq!(read::<Rate>("\"unlimited\""), Ok(Rate::Unlimited));
        assert_eq!(
            read::<Rate>(r#"{"rate":1,"per":"10s","burst":2}"#),
            Ok(Rate::of(1, Span::secs(10), 2))
        );
        for rate in [Rate::Unlimited, Rate::of(1, Span::millis(90_500), 2)] {
            let written = serde_json::to_string(&rate).expect("a rate is JSON");
            assert_eq!(read::<Rate>(&written), Ok(rate), "{written}");
        }
        assert!(read::<Rate>(r#"{"rate":0,"per":"10s","burst":2}"#).is_err());
        assert!(
            read::<Rate>(r#"{"rate":1,"per":"10s","brust":2}"#)
                .unwrap_err()
                .contains("brust")
        );
    }

    #[test]
    fn abuse_has_three_answers() {
        assert_eq!(read::<OnAbuse>("\"end\""), Ok(OnAbuse::End));
        assert_eq!(
            read::<OnAbuse>("\"mute:30s\""),
            Ok(OnAbuse::Mute(Duration::from_secs(30)))
        );
        assert_eq!(
            read::<OnAbuse>("\"ban:10m\""),
            Ok(OnAbuse::Ban(Duration::from_secs(600)))
        );
        for text in ["mute", "mute:", "mute:0s", "end:1s", "ban:soon"] {
            assert!(read::<OnAbuse>(&format!("{text:?}")).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_not_built_yet_is_refused_by_name() {
        assert_eq!(read::<Later<Span>>("\"0s\""), Ok(Later(Span::secs(0))));
        assert!(
            read::<Later<Span>>("\"15s\"")
                .unwrap_err()
                .contains("not built yet")
        );
    }

    #[test]
    fn sessions_side_by_side_are_at_least_one() {
        assert_eq!(
            read::<DuplicateLogin>(r#"{"allow":3}"#),
            Ok(DuplicateLogin::Allow(3))
        );
        for text in [
            r#"{"allow":0}"#,
            r#"{"allow":3,"deny":1}"#,
            "{}",
            "3",
            "\"allow\"",
        ] {
            assert!(read::<DuplicateLogin>(text).is_err(), "{text}");
        }
    }
}
