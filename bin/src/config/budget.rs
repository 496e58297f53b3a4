//! `memory_budget`: the most memory that the limits of a configuration allow, part by part.
//!
//! The sum is of everything that clients can make the server keep, all at its worst at once. What limits count is
//! taken from them; what things weigh beside that was measured on a 64-bit Linux with glibc and rounded up, and stands
//! below. It is the growth of resident memory that is meant.

use std::{collections::BTreeMap, fmt};

use chinwag_core::{
    HubConfig,
    config::{HistoryLimits, LimitsConfig, Rate, Size},
};
use chinwag_transports::{ListenerConfig, Wire};

#[cfg(any(feature = "http", feature = "exec"))]
use super::{Problems, Table};
use super::{document::Document, managers::ManagerDraft, sockets::ListeningSocket};

/// The program before anybody comes, with its metrics: 8 MiB measured.
const PROGRAM: u128 = 16 << 20;
/// A worker thread: its stack, the buffer it reads into, a compressor of 300 KiB, an arena of the allocator.
const WORKER: u128 = 2 << 20;
/// A session with its limits, its name and its place in the registry: 2 KiB measured.
const SESSION: u128 = 3 << 10;
/// A connection that rests, with its task and its deadlines: 2.5 KiB measured.
const CONNECTION: u128 = 3 << 10;
/// What HTTP has beside, while a request is read and answered: two buffers for heads of 16 KiB, one of 8 KiB, and the
/// parser's state.
const HTTP_TURN: u128 = 44 << 10;
/// What TLS has for a connection at most: 64 KiB of a message of its own that comes in pieces, which is more than what
/// comes of anything else (68 KiB measured with the state); a record of 16 KiB that the kernel did not take; keys.
const TLS: u128 = 88 << 10;
/// The same where clients are asked for certificates, which is most while hands are shaken: 88 KiB of what both sides
/// have said so far, of which 64 KiB are the greeting and 16 KiB the client's certificates; 64 KiB of the message that
/// comes next (137 KiB measured before any certificate); the certificates once more; what we have said and is not taken
/// yet; state and keys.
const TLS_ASKING: u128 = 184 << 10;
/// Sessions that a table of TLS keeps for clients that know no tickets.
const TLS_SESSIONS: u128 = 1024;
/// Each of them.
const TLS_SESSION: u128 = 512;
/// Each of them with the certificates of its client.
const TLS_SESSION_ASKING: u128 = 17 << 10;
/// One stay in a room, in the session, the room and its lane: 0.7 KiB measured.
const MEMBERSHIP: u128 = 1 << 10;
/// An empty room: 2.9 KiB measured, with one member.
const ROOM: u128 = 3 << 10;
/// What an event in a history weighs beside the bytes that are counted, at most: 300 bytes for the smallest.
const EVENT: u128 = 320;
/// What a byte counted in a queue may weigh, where many small events are in it.
const QUEUED: u128 = 3;
/// What a byte counted in a room's inbox may weigh; likewise, and each event there is a command to the lane.
const INBOX: u128 = 6;
/// A queue is found full only by the batch that is too much, of at most so many bytes or one event.
const BATCH: u128 = 64 << 10;
/// Keys of what is kept by key, be it rates, failures or homes; see `chinwag_core`'s limits.
const KEYS: u128 = 65_536;
/// Each, with its bucket or its record.
const KEY: u128 = 256;
/// A name that is a key or part of one: 128 characters of 4 bytes.
const NAME: u128 = 560;
/// The addresses from which a name has logged in last, 8 of them with their times.
const HOMES: u128 = 8 * 40;
/// Sessions remembered after their end, and bans.
const REMEMBERED: u128 = 10_000;
/// Each of them.
const TOMBSTONE: u128 = 320;
/// What a notice that waits for a session manager weighs beside the bytes that are counted: the facts of its session, and
/// its places in three tables.
const NOTICE: u128 = 1 << 10;
/// Log-ins that are judged to the end though nobody waits for the verdict; see `chinwag_core`'s sessions.
const UNATTENDED: u128 = 2048;
/// Each of them, with what it presents, which came in a frame of 8 KiB at most.
const LOGIN: u128 = 12 << 10;
/// What the password hashes that `chinwag passwd` makes are computed in.
const HASH: u128 = 19 << 20;
/// What the kernel may keep for one connection, which is nobody's resident memory: its buffers, doubled by its books.
const KERNEL: Size = Size(448 << 10);
/// Parts that advice is given about make up so much of the sum, in hundredths.
const MOST: u128 = 80;

/// The most memory that the limits allow.
pub(crate) struct Worst {
    parts: Vec<Part>,
    /// What the kernel may keep for all connections, which is not in the sum.
    kernel: u128,
}

/// One part of it.
struct Part {
    what: String,
    /// Key names with their values, and how they are multiplied.
    product: String,
    /// Those of the keys that lower it.
    keys: Vec<String>,
    bytes: u128,
}

/// What the sum is of.
pub(super) struct Counted<'a> {
    pub(super) hub: &'a HubConfig,
    pub(super) sockets: Vec<ListeningSocket<'a>>,
    /// That of `[control]`.
    pub(super) control: Option<&'a ListenerConfig>,
    /// Every `[tls.NAME]`, and whether it asks clients for certificates.
    pub(super) tls: BTreeMap<&'a str, bool>,
    /// What may wait for each session manager that tells of ends later.
    pub(super) notices: Vec<Notices<'a>>,
    /// Those of every password authenticator together.
    pub(super) hash_threads: usize,
    pub(super) workers: usize,
}

impl Counted<'_> {
    /// What a connection may have that speaks `wire`, through the table `tls` if any, and from which so many bytes are
    /// read at a time as the limit `read` has; and how that is shown. What grows while it comes, be it a line, a message
    /// or a body, is copied into a larger buffer.
    fn connection(&self, wire: Wire, tls: Option<&str>, read: (&str, Size)) -> (u128, String) {
        let mut each = CONNECTION;
        if wire == Wire::Http {
            each += HTTP_TURN;
        }
        let mut shown = Human(each).to_string();
        if let Some(tls) = tls {
            let asks = self.tls.get(tls).copied().unwrap_or_default();
            let tls = if asks { TLS_ASKING } else { TLS };
            each += tls;
            shown += &format!(" + TLS {}", Human(tls));
        }
        let (key, bytes) = read;
        shown += &format!(" + 2 x {}", with(key, bytes));
        (each.saturating_add(wide(bytes.0).saturating_mul(2)), shown)
    }
}

/// What may wait to be told to one session manager.
#[cfg_attr(
    not(any(feature = "http", feature = "exec")),
    allow(dead_code, reason = "none comes with this build")
)]
pub(super) struct Notices<'a> {
    manager: &'a str,
    queue: usize,
    bytes: Size,
}

/// What may wait for those of `managers` that come with chinwag, as their tables have it.
#[cfg(any(feature = "http", feature = "exec"))]
pub(super) fn notices<'a>(document: &Document, managers: &'a [ManagerDraft]) -> Vec<Notices<'a>> {
    managers
        .iter()
        .filter(|manager| manager.is_own())
        .map(|manager| {
            let path = manager.path.key("notices");
            let tables = document.root().get("session_managers");
            let table = tables.and_then(|all| all.as_dict()?.get(&manager.name)?.as_dict());
            let entries = table.and_then(|table| table.get("notices")?.as_dict().cloned());
            let table = Table::new(document, path, entries.unwrap_or_default());
            // What is wrong there has been told.
            let notices: Option<chinwag_auth::Notices> = table.read(&mut Problems::default());
            let notices = notices.unwrap_or_default();
            Notices {
                manager: &manager.name,
                queue: notices.queue,
                bytes: notices.bytes,
            }
        })
        .collect()
}

/// None come with this build.
#[cfg(not(any(feature = "http", feature = "exec")))]
pub(super) fn notices<'a>(_: &Document, _: &'a [ManagerDraft]) -> Vec<Notices<'a>> {
    Vec::new()
}

/// `name value`, or `name` alone where it speaks for itself.
fn with(key: &str, value: impl fmt::Display) -> String {
    format!("{key} {value}")
}

fn wide(number: usize) -> u128 {
    number as u128
}

impl Worst {
    pub(super) fn of(counted: &Counted<'_>) -> Self {
        let Counted {
            hub,
            sockets,
            control,
            hash_threads,
            workers,
            ..
        } = counted;
        let limits = &hub.limits;
        let polls = sockets.iter().any(|socket| socket.has("http-polling"));
        let clients = Clients::of(limits, sockets, polls);
        let open = control.map_or(0, |control| wide(control.max_connections));
        let open = open.saturating_add(connections(sockets));
        let mut worst = Self {
            parts: Vec::new(),
            kernel: open.saturating_mul(wide(KERNEL.0)),
        };
        worst.add(
            "the program",
            format!("{} + workers {workers} x {}", Human(PROGRAM), Human(WORKER)),
            &[],
            PROGRAM.saturating_add(wide(*workers).saturating_mul(WORKER)),
        );
        for socket in sockets {
            worst.connections(socket, counted);
        }
        if let Some(control) = control {
            worst.control(control, counted);
        }
        worst.add(
            "sessions",
            format!("{} x {}", clients.shown, Human(SESSION)),
            &clients.keys(),
            clients.count.saturating_mul(SESSION),
        );
        worst.queues(limits, &clients, polls);
        if polls && !hub.sessions.remember_ended.is_zero() {
            let (queue, shown) = queue("limits.poll_queue.bytes", limits.poll_queue.bytes, limits);
            worst.add(
                "ended sessions whose clients may still fetch",
                format!("{REMEMBERED} x ({} + {shown})", Human(SESSION)),
                &["limits.poll_queue", "sessions.remember_ended"],
                REMEMBERED.saturating_mul(queue.saturating_add(SESSION)),
            );
        }
        worst.rooms(hub, &clients);
        worst.registries(limits);
        worst.add(
            "log-ins that are judged though their clients have gone",
            format!("{UNATTENDED} x {}", Human(LOGIN)),
            &[],
            UNATTENDED.saturating_mul(LOGIN),
        );
        for asks in [false, true] {
            let tables = counted.tls.values().filter(|&&asking| asking == asks);
            worst.tls_sessions(tables.count(), asks);
        }
        for notices in &counted.notices {
            worst.notices(notices);
        }
        if *hash_threads > 0 {
            worst.add(
                "hashing of passwords",
                format!("hash_threads {hash_threads} x {}", Human(HASH)),
                &["hash_threads"],
                wide(*hash_threads).saturating_mul(HASH),
            );
        }
        worst
    }

    pub(crate) fn bytes(&self) -> u128 {
        let parts = self.parts.iter().map(|part| part.bytes);
        parts.fold(0, u128::saturating_add)
    }

    fn add(&mut self, what: impl Into<String>, product: String, keys: &[&str], bytes: u128) {
        self.parts.push(Part {
            what: what.into(),
            product,
            keys: keys.iter().copied().map(String::from).collect(),
            bytes,
        });
    }

    fn connections(&mut self, socket: &ListeningSocket<'_>, counted: &Counted<'_>) {
        let limits = &counted.hub.limits;
        let names: Vec<&str> = socket.transports.iter().map(|&(name, _)| name).collect();
        let (mut each, mut shown) = counted.connection(
            socket.wire,
            socket.tls,
            ("limits.frame_bytes", limits.frame_bytes),
        );
        let key = socket.key();
        let mut keys = vec![key.as_str(), "limits.frame_bytes"];
        if socket.has("http-polling") {
            // An answer under way is a copy of what the queue still keeps.
            let (largest, bytes) = if limits.poll_queue.bytes >= limits.server_frame_bytes {
                ("limits.poll_queue.bytes", limits.poll_queue.bytes)
            } else {
                ("limits.server_frame_bytes", limits.server_frame_bytes)
            };
            each = each.saturating_add(wide(bytes.0));
            shown = format!("{shown} + {}", with(largest, bytes));
            keys.push("limits.poll_queue");
        }
        self.add(
            format!("connections of {}", names.join(" and ")),
            format!("{} x ({shown})", with(&key, socket.max_connections)),
            &keys,
            wide(socket.max_connections).saturating_mul(each),
        );
    }

    /// Those who give orders to sessions, in bodies that may be as large as what clients are sent.
    fn control(&mut self, listener: &ListenerConfig, counted: &Counted<'_>) {
        let body = (
            "limits.server_frame_bytes",
            counted.hub.limits.server_frame_bytes,
        );
        let (each, shown) = counted.connection(Wire::Http, listener.tls.as_deref(), body);
        let key = "control.max_connections";
        self.add(
            "connections of control",
            format!("{} x ({shown})", with(key, listener.max_connections)),
            &[key, body.0],
            wide(listener.max_connections).saturating_mul(each),
        );
    }

    /// What waits for clients. Replies wait in no queue of their own: the log of this process answers at once, so that
    /// none stands behind another, and one to a polling client is held by the connection that has asked.
    fn queues(&mut self, limits: &LimitsConfig, clients: &Clients, polls: bool) {
        let (key, bytes) = match (clients.pushed, polls) {
            (true, true) if limits.poll_queue.bytes > limits.member_queue => {
                ("limits.poll_queue.bytes", limits.poll_queue.bytes)
            }
            (false, true) => ("limits.poll_queue.bytes", limits.poll_queue.bytes),
            _ => ("limits.member_queue", limits.member_queue),
        };
        let (each, shown) = queue(key, bytes, limits);
        let lowers = key.strip_suffix(".bytes").unwrap_or(key);
        let mut keys = clients.keys();
        keys.insert(0, lowers);
        self.add(
            "queues of clients that do not read",
            format!("{} x {shown}", clients.shown),
            &keys,
            clients.count.saturating_mul(each),
        );
    }

    fn rooms(&mut self, hub: &HubConfig, clients: &Clients) {
        let limits = &hub.limits;
        let rooms = with("limits.rooms", limits.rooms);
        let count = wide(limits.rooms);
        let tables = || std::iter::once(&hub.room).chain(hub.rooms.iter().map(|(_, _, room)| room));

        let stays = clients.count.saturating_mul(wide(limits.rooms_per_session));
        let members = tables().map(|room| room.members).max().unwrap_or(0);
        let places = count.saturating_mul(wide(members));
        let (bytes, shown, keys) = if stays <= places {
            let shown = with("limits.rooms_per_session", limits.rooms_per_session);
            let mut keys = clients.keys();
            keys.insert(0, "limits.rooms_per_session");
            (stays, format!("{} x {shown}", clients.shown), keys)
        } else {
            (
                places,
                format!("{rooms} x {}", with("room.members", members)),
                vec!["room.members", "limits.rooms"],
            )
        };
        self.add(
            "memberships",
            format!("{shown} x {}", Human(MEMBERSHIP)),
            &keys,
            bytes.saturating_mul(MEMBERSHIP),
        );
        self.add(
            "rooms",
            format!("{rooms} x {}", Human(ROOM)),
            &["limits.rooms"],
            count.saturating_mul(ROOM),
        );

        // A table for one name is for one room; any other may be that of all the rest.
        let (exact, patterns): (Vec<_>, Vec<_>) = hub
            .rooms
            .iter()
            .partition(|(_, pattern, _)| pattern.is_exact());
        let common = std::iter::once(("room".to_owned(), &hub.room))
            .chain(
                patterns
                    .iter()
                    .map(|(name, _, room)| (format!("rooms.{name}"), room)),
            )
            .max_by_key(|(_, room)| history(room.history));
        let exact_bytes = exact
            .iter()
            .map(|(_, _, room)| history(room.history))
            .fold(0, u128::saturating_add);
        if let Some((table, room)) = common {
            let rest = count.saturating_sub(wide(exact.len()));
            let HistoryLimits { events, bytes, .. } = room.history;
            let mut shown = format!(
                "{rooms} x ({} + {} x {})",
                with(&format!("{table}.history.bytes"), bytes),
                with("events", events),
                Human(EVENT)
            );
            if !exact.is_empty() {
                shown += &format!(
                    ", {} of them by tables of their own: {}",
                    exact.len(),
                    Human(exact_bytes)
                );
            }
            let history_key = format!("{table}.history");
            self.add(
                "history of rooms",
                shown,
                &[&history_key, "limits.rooms"],
                rest.saturating_mul(history(room.history))
                    .saturating_add(exact_bytes),
            );
        }
        self.inboxes(limits, clients, &rooms);
    }

    /// What was said and is not handed out yet: bounded by rooms, and where sends have a rate by what all may say while
    /// a lane is as late as a reader may be.
    fn inboxes(&mut self, limits: &LimitsConfig, clients: &Clients, rooms: &str) {
        let by_rooms = wide(limits.rooms)
            .saturating_mul(wide(limits.room_inbox.0))
            .saturating_mul(INBOX);
        let mut part = (
            by_rooms,
            format!(
                "{rooms} x {} x {INBOX}",
                with("limits.room_inbox", limits.room_inbox)
            ),
            vec!["limits.room_inbox", "limits.rooms"],
        );
        if let Rate::Limited { rate, per, burst } = limits.sends {
            let each = wide(limits.message_bytes.0).saturating_add(1 << 10);
            let late = limits.slow_after.0.as_nanos();
            let sends = u128::from(rate)
                .saturating_mul(late)
                .div_ceil(per.as_nanos().max(1))
                .saturating_add(u128::from(burst));
            let by_sends = clients.count.saturating_mul(sends).saturating_mul(each);
            if by_sends < by_rooms {
                part = (
                    by_sends,
                    format!(
                        "{} x {sends} by limits.sends in {} x ({} + 1KiB)",
                        clients.shown,
                        with("limits.slow_after", limits.slow_after),
                        with("limits.message_bytes", limits.message_bytes)
                    ),
                    [vec!["limits.sends", "limits.message_bytes"], clients.keys()].concat(),
                );
            }
        }
        let (bytes, shown, keys) = part;
        self.add("inboxes of rooms", shown, &keys, bytes);
    }

    fn registries(&mut self, limits: &LimitsConfig) {
        let limited = |rates: &[Rate]| {
            let rates = rates.iter().filter(|rate| **rate != Rate::Unlimited);
            wide(rates.count())
        };
        let addresses = limited(&[
            limits.connects_per_ip,
            limits.login_failures_per_ip,
            limits.room_creations,
        ]);
        self.add(
            "rates and failed log-ins by address",
            format!("{addresses} x {KEYS} x {}", Human(KEY)),
            &[],
            addresses * KEYS * KEY,
        );
        let failures = limits.login_failures_per_name;
        // Failures of those who have logged in from where they are have a table of their own.
        let names = limited(&[limits.sends_per_user, failures, failures]);
        self.add(
            "rates and failed log-ins by name",
            format!("{names} x {KEYS} x {}", Human(KEY + NAME)),
            &[],
            names * KEYS * (KEY + NAME),
        );
        self.add(
            "from where names have logged in",
            format!("{KEYS} x {}", Human(KEY + NAME + HOMES)),
            &[],
            KEYS * (KEY + NAME + HOMES),
        );
        self.add(
            "bans and ended sessions",
            format!(
                "{REMEMBERED} x {} + {REMEMBERED} x {}",
                Human(TOMBSTONE + NAME),
                Human(TOMBSTONE)
            ),
            &[],
            REMEMBERED * (TOMBSTONE + NAME) + REMEMBERED * TOMBSTONE,
        );
    }

    /// Sessions that TLS keeps for clients that come back without a ticket.
    fn tls_sessions(&mut self, tables: usize, asks: bool) {
        let (whose, each) = if asks {
            (" with their certificates", TLS_SESSION_ASKING)
        } else {
            ("", TLS_SESSION)
        };
        if tables > 0 {
            self.add(
                format!("TLS sessions of clients without tickets{whose}"),
                format!("{tables} x {TLS_SESSIONS} x {}", Human(each)),
                &[],
                wide(tables).saturating_mul(TLS_SESSIONS * each),
            );
        }
    }

    /// Ends of sessions that nobody wants to hear of now.
    fn notices(&mut self, notices: &Notices<'_>) {
        let Notices {
            manager,
            queue,
            bytes,
        } = *notices;
        let key = format!("session_managers.{manager}.notices");
        self.add(
            format!("ends that {manager} is still to be told"),
            format!(
                "{} x {} + {}",
                with(&format!("{key}.queue"), queue),
                Human(NOTICE),
                with("bytes", bytes)
            ),
            &[&key],
            wide(queue)
                .saturating_mul(NOTICE)
                .saturating_add(wide(bytes.0)),
        );
    }

    /// Why `budget` is not enough, with the sum and the keys to lower.
    pub(super) fn refusal(&self, budget: Size) -> String {
        let mut text = format!(
            "the limits allow {}, which is over {budget}:\n{self}\n",
            Human(self.bytes())
        );
        let mut largest: Vec<&Part> = self.parts.iter().collect();
        largest.sort_by_key(|part| std::cmp::Reverse(part.bytes));
        let (mut keys, mut told): (Vec<&str>, u128) = (Vec::new(), 0);
        for part in largest {
            for key in &part.keys {
                if !keys.contains(&key.as_str()) {
                    keys.push(key);
                }
            }
            told = told.saturating_add(part.bytes);
            if told >= self.bytes() / 100 * MOST {
                break;
            }
        }
        text += &format!(
            "  Nearly all of it follows from {}: lower these.\n",
            keys.join(", ")
        );
        text += &format!(
            "  Not counted either: what the allocator loses, often a fifth; what the files of TLS and users hold; what \
             back ends and plug-ins attach to sessions; password hashes that take more than {}.",
            Human(HASH)
        );
        text
    }
}

/// Connections that may be open at a time.
fn connections(sockets: &[ListeningSocket<'_>]) -> u128 {
    sockets
        .iter()
        .map(|socket| wide(socket.max_connections))
        .fold(0, u128::saturating_add)
}

/// Who may be served at a time.
struct Clients {
    count: u128,
    shown: String,
    /// The keys that bound them.
    keys: Vec<String>,
    /// Whether any keep a connection open and are written to.
    pushed: bool,
}

impl Clients {
    /// Without polling a session is a connection too, of which there may be fewer.
    fn of(limits: &LimitsConfig, sockets: &[ListeningSocket<'_>], polls: bool) -> Self {
        let connections = connections(sockets);
        let sessions = wide(limits.sessions);
        let pushed = sockets
            .iter()
            .flat_map(|socket| &socket.transports)
            .any(|&(_, kind)| kind != "http-polling");
        if !polls && connections < sessions {
            Self {
                count: connections,
                shown: format!("{connections} connections"),
                keys: sockets.iter().map(ListeningSocket::key).collect(),
                pushed,
            }
        } else {
            Self {
                count: sessions,
                shown: with("limits.sessions", limits.sessions),
                keys: vec!["limits.sessions".to_owned()],
                pushed,
            }
        }
    }

    fn keys(&self) -> Vec<&str> {
        self.keys.iter().map(String::as_str).collect()
    }
}

impl ListeningSocket<'_> {
    /// The key that bounds its connections.
    fn key(&self) -> String {
        let first = self.transports.first().map_or("", |&(name, _)| name);
        format!("transports.{first}.max_connections")
    }

    fn has(&self, kind: &str) -> bool {
        self.transports.iter().any(|&(_, own)| own == kind)
    }
}

/// What one queue may weigh.
fn queue(key: &str, bytes: Size, limits: &LimitsConfig) -> (u128, String) {
    let over = BATCH.max(wide(limits.server_frame_bytes.0));
    let each = wide(bytes.0).saturating_mul(QUEUED).saturating_add(over);
    let shown = format!("({QUEUED} x {} + {})", with(key, bytes), Human(over));
    (each, shown)
}

fn history(limits: HistoryLimits) -> u128 {
    if limits.events == 0 {
        return 0;
    }
    wide(limits.bytes.0).saturating_add(wide(limits.events).saturating_mul(EVENT))
}

/// The parts, one a line, and the sum.
impl fmt::Display for Worst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.parts {
            let Part {
                what,
                product,
                bytes,
                ..
            } = part;
            writeln!(f, "  {:>8}  {what}: {product}", Human(*bytes).to_string())?;
        }
        writeln!(f, "  {:>8}  in all", Human(self.bytes()).to_string())?;
        write!(
            f,
            "  Not in it: the kernel's buffers, at most {} for the connections, {KERNEL} each.",
            Human(self.kernel)
        )
    }
}

/// Bytes as people say them.
pub(crate) struct Human(pub(crate) u128);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let (mut unit, mut scale) = (0, 1_u128);
        while unit + 1 < UNITS.len() && self.0 / scale >= 1024 {
            unit += 1;
            scale <<= 10;
        }
        let whole = self.0 / scale;
        if whole >= 1024 {
            return f.write_str("too much to count");
        }
        // Rounded up: a sum that is over by little does not look as if it were not.
        let tenths = (self.0 % scale * 10).div_ceil(scale);
        let (whole, tenths) = (whole + tenths / 10, tenths % 10);
        if tenths == 0 {
            write!(f, "{whole}{}", UNITS[unit])
        } else {
            write!(f, "{whole}.{tenths}{}", UNITS[unit])
        }
    }
}

#[cfg(test)]
mod tests {
    use chinwag_core::config::{QueueLimits, Span};

    use super::*;
    use crate::config::{Listening, sockets};

    fn listener(keys: &str) -> ListenerConfig {
        toml::from_str(&format!("bind = \"127.0.0.1:1\"\n{keys}")).unwrap()
    }

    fn counted<'a>(hub: &'a HubConfig, listening: Vec<Listening<'a>>) -> Counted<'a> {
        Counted {
            hub,
            sockets: sockets(listening),
            control: None,
            tls: BTreeMap::new(),
            notices: Vec::new(),
            hash_threads: 0,
            workers: 1,
        }
    }

    fn worst(hub: &HubConfig, kinds: &[(&str, Wire)]) -> Worst {
        let listeners: Vec<_> = (0..kinds.len())
            .map(|port| toml::from_str(&format!("bind = \"127.0.0.1:{}\"", port + 1)).unwrap())
            .collect();
        let listening = kinds
            .iter()
            .zip(&listeners)
            .map(|(&(kind, wire), listener)| Listening {
                name: kind,
                kind,
                wire,
                listener,
            });
        Worst::of(&counted(hub, listening.collect()))
    }

    /// That of a server with lines alone.
    fn over_lines<'a>(hub: &'a HubConfig, listener: &'a ListenerConfig) -> Counted<'a> {
        let line = Listening {
            name: "tcp",
            kind: "tcp",
            wire: Wire::Stream,
            listener,
        };
        counted(hub, vec![line])
    }

    fn bytes(worst: &Worst, what: &str) -> u128 {
        let part = worst.parts.iter().find(|part| part.what.starts_with(what));
        part.map_or(0, |part| part.bytes)
    }

    #[test]
    fn a_sum_that_no_number_holds_is_too_much_and_not_little() {
        let most = Size(usize::MAX);
        let mut hub = HubConfig::default();
        hub.limits.rooms = usize::MAX;
        hub.limits.sessions = usize::MAX;
        hub.limits.rooms_per_session = usize::MAX;
        hub.limits.room_inbox = most;
        hub.limits.member_queue = most;
        hub.limits.frame_bytes = most;
        hub.limits.poll_queue = QueueLimits {
            events: usize::MAX,
            bytes: most,
        };
        hub.room.history = HistoryLimits {
            events: usize::MAX,
            bytes: most,
            age: Span::secs(1),
        };
        hub.room.members = usize::MAX;
        let worst = worst(&hub, &[("http-polling", Wire::Http)]);
        assert_eq!(worst.bytes(), u128::MAX);
        let refusal = worst.refusal(Size(1 << 30));
        assert!(
            refusal.starts_with("the limits allow too much to count, which is over 1GiB:\n"),
            "{refusal}"
        );
    }

    #[test]
    fn who_holds_a_connection_is_bounded_by_those_too() {
        let mut hub = HubConfig::default();
        hub.limits.sessions = 1_000_000;
        let tcp = worst(&hub, &[("tcp", Wire::Stream)]);
        assert_eq!(bytes(&tcp, "sessions"), 100_000 * SESSION);
        assert_eq!(bytes(&tcp, "ended"), 0, "nobody comes back for anything");
        let both = worst(&hub, &[("tcp", Wire::Stream), ("http-polling", Wire::Http)]);
        assert_eq!(bytes(&both, "sessions"), 1_000_000 * SESSION);
        assert!(bytes(&both, "ended") > 0);
        hub.sessions.remember_ended = Span::secs(0);
        assert_eq!(
            bytes(&worst(&hub, &[("http-polling", Wire::Http)]), "ended"),
            0
        );
    }

    #[test]
    fn the_keys_to_lower_are_those_that_bound_the_sum() {
        let mut hub = HubConfig::default();
        hub.limits.sessions = 1_000_000;
        let refusal = worst(&hub, &[("tcp", Wire::Stream)]).refusal(Size(1 << 20));
        let advice = refusal.lines().find(|line| line.contains("lower these"));
        let advice = advice.expect("there is always a key");
        assert!(
            advice.contains("transports.tcp.max_connections"),
            "{refusal}"
        );
        assert!(!advice.contains("limits.sessions"), "{refusal}");
    }

    #[test]
    fn tls_and_the_kernel_take_their_part() {
        let hub = HubConfig::default();
        let (plain, encrypted) = (listener(""), listener("tls = \"site\""));
        let connections = wide(plain.max_connections);
        let plain = Worst::of(&over_lines(&hub, &plain));
        for (asks, each, session) in [
            (false, TLS, TLS_SESSION),
            (true, TLS_ASKING, TLS_SESSION_ASKING),
        ] {
            let mut counted = over_lines(&hub, &encrypted);
            counted.tls.insert("site", asks);
            let more = Worst::of(&counted).bytes() - plain.bytes();
            assert_eq!(more, connections * each + TLS_SESSIONS * session, "{asks}");
        }
        assert!(
            plain
                .to_string()
                .contains("kernel's buffers, at most 42.8GiB")
        );
    }

    #[test]
    fn who_gives_orders_has_connections_too() {
        let hub = HubConfig::default();
        let line = listener("");
        let without = Worst::of(&over_lines(&hub, &line));
        let control = listener("max_connections = 200\ntls = \"site\"");
        let mut counted = over_lines(&hub, &line);
        counted.control = Some(&control);
        let with = Worst::of(&counted);
        let each = CONNECTION + HTTP_TURN + TLS + 2 * wide(hub.limits.server_frame_bytes.0);
        assert_eq!(with.bytes(), without.bytes() + 200 * each);
        assert_eq!(with.kernel, without.kernel + 200 * wide(KERNEL.0));
        assert_eq!(
            bytes(&with, "sessions"),
            bytes(&without, "sessions"),
            "nobody logs in there"
        );
        assert!(with.to_string().contains("control.max_connections 200 x ("));
    }

    #[test]
    fn what_waits_for_session_managers_is_counted_for_each() {
        let hub = HubConfig::default();
        let line = listener("");
        let mut counted = over_lines(&hub, &line);
        let before = Worst::of(&counted).bytes();
        for (manager, queue, bytes) in
            [("rooms", 1000, Size(1 << 30)), ("books", 10, Size(1 << 16))]
        {
            counted.notices.push(Notices {
                manager,
                queue,
                bytes,
            });
        }
        let worst = Worst::of(&counted);
        assert_eq!(
            worst.bytes() - before,
            1010 * NOTICE + (1 << 30) + (1 << 16)
        );
        let refusal = worst.refusal(Size(1 << 20));
        assert!(
            refusal.contains(": session_managers.rooms.notices.queue 1000 x 1KiB + bytes 1GiB\n"),
            "{refusal}"
        );
    }

    #[test]
    fn tables_by_name_and_by_address_are_counted_where_there_is_a_rate() {
        let mut hub = HubConfig::default();
        let (names, addresses) = (
            "rates and failed log-ins by name",
            "rates and failed log-ins by address",
        );
        let of = |hub: &HubConfig, what| bytes(&worst(hub, &[("tcp", Wire::Stream)]), what);
        let some = hub.limits.login_failures_per_name;
        assert_eq!(of(&hub, names), 2 * KEYS * (KEY + NAME));
        hub.limits.sends_per_user = some;
        assert_eq!(of(&hub, names), 3 * KEYS * (KEY + NAME));
        hub.limits.sends_per_user = Rate::Unlimited;
        hub.limits.login_failures_per_name = Rate::Unlimited;
        assert_eq!(of(&hub, names), 0);
        let homes = of(&hub, "from where names have logged in");
        assert_eq!(
            homes,
            KEYS * (KEY + NAME + HOMES),
            "that is known all the same"
        );
        assert_eq!(of(&hub, addresses), 3 * KEYS * KEY);
        hub.limits.connects_per_ip = Rate::Unlimited;
        assert_eq!(of(&hub, addresses), 2 * KEYS * KEY);
    }

    type Change = fn(&mut HubConfig);

    #[test]
    fn every_limit_that_is_raised_raises_the_sum() {
        let kinds = [("tcp", Wire::Stream), ("http-polling", Wire::Http)];
        let of = |change: Change| {
            let mut hub = HubConfig::default();
            // So low that none of them hides another.
            hub.limits.rooms = 100;
            hub.limits.rooms_per_session = 1;
            hub.limits.sends = Rate::Unlimited;
            hub.room.members = 1_000_000;
            change(&mut hub);
            worst(&hub, &kinds).bytes()
        };
        let before = of(|_| ());
        let changes: [(&str, Change); 9] = [
            ("sessions", |hub| hub.limits.sessions *= 2),
            ("rooms", |hub| hub.limits.rooms *= 2),
            ("rooms_per_session", |hub| hub.limits.rooms_per_session *= 2),
            ("member_queue", |hub| hub.limits.member_queue.0 *= 2),
            ("poll_queue", |hub| hub.limits.poll_queue.bytes.0 *= 2),
            ("room_inbox", |hub| hub.limits.room_inbox.0 *= 2),
            ("frame_bytes", |hub| hub.limits.frame_bytes.0 *= 2),
            ("history.bytes", |hub| hub.room.history.bytes.0 *= 2),
            ("history.events", |hub| hub.room.history.events *= 2),
        ];
        for (name, change) in changes {
            assert!(of(change) > before, "{name}");
        }
    }

    #[test]
    fn sizes_are_said_as_people_say_them() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1KiB"),
            (1025, "1.1KiB"),
            (1536, "1.5KiB"),
            (1 << 30, "1GiB"),
            (1 << 69, "512EiB"),
            (1 << 70, "too much to count"),
            (u128::MAX, "too much to count"),
        ] {
            assert_eq!(Human(bytes).to_string(), text);
        }
    }
}
