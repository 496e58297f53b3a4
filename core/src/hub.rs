//! The hub joins everything: transports come to it with connections and requests, and it holds what outlives them.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    CloseReason, End, ErrorCode, Lifecycle, Refusal, Telemetry,
    adapter::TryWrite,
    clock::{self, Instant, Origin, SystemWallClock, WallClock},
    config::{LimitsConfig, NamesConfig, RoomConfig, ServerConfig, SessionsConfig, Span},
    familiar::{Claim, Familiar},
    lane::{self, LaneContext, LaneInbox},
    limit::{KeyedBuckets, address_key},
    lock::Mutex,
    log::{EmbeddedLog, Log},
    message::Framing,
    names::{GuestPrefixes, check_room},
    plugin::{Credentials, Validator},
    pull::{Opened, PullSession},
    push::PushSession,
    reaper::Reaper,
    registry::{Found, Registry, SessionId},
    room::{Membership, RoomContext, RoomOptions},
    rooms::{OptionTable, RoomMetrics, RoomPattern, Rooms},
    scope::{Peer, Scope, ScopeConfig},
    session::{Session, Unattended},
    throttle::Failures,
    validate::{self, BUILTIN_VALIDATORS, HTML_ESCAPE},
    written::Noting,
};

/// Most bans that are kept; beyond, the one that ends first is forgotten.
const MAX_BANS: usize = 10_000;
/// Log-ins from one address that may be judged at a time until it has had to wait: a whole building may come back at
/// once.
const ADDRESS_CROWD: u32 = 4096;
/// Clients sent away at once come back over so long for every [`SPREAD_CLIENTS`] of them.
const SPREAD: Duration = Duration::from_secs(1);
const SPREAD_CLIENTS: usize = 200;

/// Everything the core takes from a configuration.
#[derive(Clone)]
pub struct HubConfig {
    /// `[server]`.
    pub server: ServerConfig,
    /// `[sessions]`.
    pub sessions: SessionsConfig,
    /// `[names]`.
    pub names: NamesConfig,
    /// `[limits]`.
    pub limits: LimitsConfig,
    /// `[room]`.
    pub room: RoomConfig,
    /// `[rooms.NAME]`: the table's name, what it matches, and its settings merged over `[room]`.
    pub rooms: Vec<(String, RoomPattern, RoomConfig)>,
    /// Validators by table name, the built-in ones excluded.
    pub validators: BTreeMap<String, Arc<dyn Validator>>,
    /// Who decides the order of events.
    pub log: Arc<dyn Log>,
    /// What stamps events.
    pub wall: Arc<dyn WallClock>,
}

impl Default for HubConfig {
    /// The defaults of every table, the embedded log and the system's clock.
    fn default() -> Self {
        Self {
            server: ServerConfig::default(),
            sessions: SessionsConfig::default(),
            names: NamesConfig::default(),
            limits: LimitsConfig::default(),
            room: RoomConfig::default(),
            rooms: Vec::new(),
            validators: BTreeMap::new(),
            log: Arc::new(EmbeddedLog),
            wall: Arc::new(SystemWallClock),
        }
    }
}

impl fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubConfig")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// A rule between settings that a configuration breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFault {
    /// The key at fault, as a path: `limits.frame_bytes`, `rooms.games.validators`.
    pub key: String,
    /// What is wrong and the way out.
    pub message: String,
}

/// Whom a ban is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum BanKey {
    Name(Arc<str>),
    Address(std::net::IpAddr),
}

/// Where sessions, rooms and limits live. Clones share one hub.
#[derive(Clone)]
pub struct Hub(Arc<Inner>);

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("sessions", &self.0.registry.len())
            .finish_non_exhaustive()
    }
}

pub(crate) struct Inner {
    pub(crate) config: HubConfig,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) lifecycle: Lifecycle,
    pub(crate) origin: Origin,
    pub(crate) registry: Arc<Registry>,
    pub(crate) rooms: Arc<Rooms>,
    pub(crate) reaper: Reaper<Session>,
    /// Stays with a time of their own.
    pub(crate) stays: Reaper<Membership>,
    pub(crate) log: Arc<dyn Log>,
    pub(crate) wall: Arc<dyn WallClock>,
    pub(crate) sends_per_user: KeyedBuckets<Arc<str>>,
    pub(crate) failures_per_ip: Arc<Failures<std::net::IpAddr>>,
    /// Of names where they have not logged in yet.
    pub(crate) failures_of_strangers: Arc<Failures<Claim>>,
    /// Of names where they have: in a table of their own, so that strangers who fill the other keep nobody out of it.
    pub(crate) failures_of_familiar: Arc<Failures<Claim>>,
    /// From where names have logged in.
    pub(crate) familiar: Familiar,
    /// Those of all transports' authenticators.
    pub(crate) guest_prefixes: GuestPrefixes,
    /// Places for log-ins that are judged though their client has gone.
    pub(crate) unattended: Arc<Unattended>,
    pub(crate) creations_per_ip: KeyedBuckets<std::net::IpAddr>,
    connects_per_ip: KeyedBuckets<std::net::IpAddr>,
    lanes: Vec<Arc<LaneInbox>>,
    bans: Mutex<HashMap<BanKey, Instant>>,
    next_key: AtomicU64,
    draining: AtomicBool,
    /// Clients that a drain sends away, over whom their return is spread.
    sent_away: AtomicU64,
    drained: CancellationToken,
    /// When a drain sends away whoever has not taken its last words.
    drain_deadline: OnceLock<Instant>,
    /// A polling session that has ended was given its last events.
    pub(crate) rest_given: Notify,
}

impl Hub {
    /// The rules between settings that `config` breaks, all of them.
    #[must_use]
    pub fn check(config: &HubConfig) -> Vec<ConfigFault> {
        let mut faults = Vec::new();
        let mut rule = |holds: bool, key: &str, message: String| {
            if !holds {
                faults.push(ConfigFault {
                    key: key.to_owned(),
                    message,
                });
            }
        };
        let limits = &config.limits;
        let (message, frame, server) = (
            limits.message_bytes,
            limits.frame_bytes,
            limits.server_frame_bytes,
        );
        let least = message.0.saturating_mul(3).saturating_add(1 << 10);
        rule(
            frame.0 >= least,
            "limits.frame_bytes",
            format!("must be at least 3 x message_bytes + 1KiB, which is {least}"),
        );
        rule(
            frame.0 <= 16 << 20,
            "limits.frame_bytes",
            "must be at most 16MiB".into(),
        );
        let least = message.0.saturating_add(1 << 10).max(4 << 10);
        rule(
            server.0 >= least,
            "limits.server_frame_bytes",
            format!("must be at least 4KiB, and message_bytes + 1KiB: {least}"),
        );
        rule(
            limits.member_queue >= server,
            "limits.member_queue",
            format!("must be at least server_frame_bytes, which is {server}"),
        );
        rule(
            limits.poll_queue.bytes >= server,
            "limits.poll_queue",
            format!("its bytes must be at least server_frame_bytes, which is {server}"),
        );
        for (key, value) in [
            ("limits.message_bytes", message.0),
            ("limits.poll_queue", limits.poll_queue.events),
            ("limits.page_names", limits.page_names),
            ("limits.page_events", limits.page_events),
            ("limits.room_inbox", limits.room_inbox.0),
            ("limits.rooms_per_session", limits.rooms_per_session),
            ("limits.rooms", limits.rooms),
            ("limits.sessions", limits.sessions),
            ("names.min", config.names.min),
        ] {
            rule(value > 0, key, "must be above zero".into());
        }
        rule(
            !limits.slow_after.is_zero(),
            "limits.slow_after",
            "must be above zero".into(),
        );
        rule(
            config.sessions.login_attempts > 0,
            "sessions.login_attempts",
            "must be above zero".into(),
        );
        rule(
            config.names.max >= config.names.min,
            "names.max",
            "must be at least names.min".into(),
        );
        rule(
            config.names.max <= 128,
            "names.max",
            "must be at most 128".into(),
        );
        rule(
            config.server.workers <= 1024,
            "server.workers",
            "must be at most 1024".into(),
        );
        if let Some(default) = &config.server.default_room
            && let Err(refusal) = check_room(default)
        {
            rule(false, "server.default_room", refusal.message);
        }
        for name in config.validators.keys() {
            let is_builtin = BUILTIN_VALIDATORS.contains(&name.as_str());
            rule(
                !is_builtin,
                &format!("validators.{name}"),
                "is the name of a built-in validator".into(),
            );
        }
        let own = |name: &String, room: &RoomConfig| (format!("rooms.{name}"), room.clone());
        let tables = std::iter::once(("room".to_owned(), config.room.clone()));
        for (table, room) in
            tables.chain(config.rooms.iter().map(|(name, _, room)| own(name, room)))
        {
            rule(
                room.members > 0,
                &format!("{table}.members"),
                "must be above zero".into(),
            );
            rule(
                room.presence_interval >= Span::millis(10),
                &format!("{table}.presence_interval"),
                "must be at least 10ms".into(),
            );
            for validator in &room.validators {
                let known = BUILTIN_VALIDATORS.contains(&validator.as_str())
                    || config.validators.contains_key(validator);
                let all = BUILTIN_VALIDATORS
                    .into_iter()
                    .chain(config.validators.keys().map(String::as_str));
                let all = all.collect::<Vec<_>>().join(", ");
                let message = format!("there is no validator {validator:?}; there are {all}");
                rule(known, &format!("{table}.validators"), message);
            }
        }
        for (index, (name, pattern, _)) in config.rooms.iter().enumerate() {
            for (other_name, other, _) in config.rooms.iter().take(index) {
                rule(
                    !pattern.ties_with(other),
                    &format!("rooms.{name}"),
                    format!(
                        "match {:?} ties with {:?} of rooms.{other_name}: neither is the more precise",
                        pattern.as_str(),
                        other.as_str()
                    ),
                );
            }
        }
        faults
    }

    /// Starts lanes, reaper and upkeep on `lifecycle`. Called within a tokio runtime.
    ///
    /// # Errors
    /// What [`Hub::check`] finds.
    pub fn start(
        config: HubConfig,
        telemetry: Arc<Telemetry>,
        lifecycle: Lifecycle,
    ) -> Result<Self, Vec<ConfigFault>> {
        let faults = Self::check(&config);
        if !faults.is_empty() {
            return Err(faults);
        }
        let workers = match config.server.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            workers => workers,
        };
        let lanes: Vec<Arc<LaneInbox>> = (0..workers).map(|_| Arc::default()).collect();
        let limits = &config.limits;
        let room_context = RoomContext {
            frame_bytes: limits.server_frame_bytes.0,
            inbox_bytes: limits.room_inbox.0,
            stopped: AtomicBool::new(false),
            members: telemetry.members.clone(),
        };
        let room_metrics = RoomMetrics {
            rooms: telemetry.rooms.clone(),
            created: telemetry.rooms_created.clone(),
            removed: telemetry.rooms_removed.clone(),
        };
        let rooms = Rooms::new(
            limits.rooms,
            room_context,
            option_table(&config),
            lanes.clone(),
            room_metrics,
        );
        let registry = Registry::new(
            limits.sessions,
            config.sessions.remember_ended.0,
            telemetry.reservations.clone(),
        );
        let drained = CancellationToken::new();
        for lane in &lanes {
            let context = LaneContext {
                telemetry: Arc::clone(&telemetry),
                wall: Arc::clone(&config.wall),
                frame_bytes: limits.server_frame_bytes.0,
            };
            lifecycle.spawn(lane::run(Arc::clone(lane), context, drained.clone()));
        }
        let (upkeep_rooms, upkeep_registry, ears) =
            (Arc::clone(&rooms), Arc::clone(&registry), lifecycle.clone());
        lifecycle.spawn(async move {
            loop {
                tokio::select! {
                    () = ears.draining() => return,
                    () = sleep(Rooms::SWEEP_EVERY) => (),
                }
                let now = clock::now();
                upkeep_rooms.sweep(now);
                upkeep_registry.sweep(now);
            }
        });
        let failures_per_name =
            || Failures::new(limits.login_failures_per_name, limits.login_delay_max.0, 0);
        Ok(Self(Arc::new(Inner {
            origin: Origin::new(),
            registry,
            rooms,
            reaper: Reaper::start(&lifecycle),
            stays: Reaper::start(&lifecycle),
            log: Arc::clone(&config.log),
            wall: Arc::clone(&config.wall),
            sends_per_user: KeyedBuckets::new(limits.sends_per_user),
            failures_per_ip: Failures::new(
                limits.login_failures_per_ip,
                limits.login_delay_max.0,
                ADDRESS_CROWD,
            ),
            failures_of_strangers: failures_per_name(),
            failures_of_familiar: failures_per_name(),
            familiar: Familiar::new(),
            guest_prefixes: GuestPrefixes::default(),
            unattended: Arc::default(),
            creations_per_ip: KeyedBuckets::new(limits.room_creations),
            connects_per_ip: KeyedBuckets::new(limits.connects_per_ip),
            lanes,
            bans: Mutex::default(),
            next_key: AtomicU64::new(1),
            draining: AtomicBool::new(false),
            sent_away: AtomicU64::new(0),
            drained,
            drain_deadline: OnceLock::new(),
            rest_given: Notify::new(),
            config,
            telemetry,
            lifecycle,
        })))
    }

    /// The life that everything of this server lives on.
    #[must_use]
    pub fn lifecycle(&self) -> &Lifecycle {
        &self.0.lifecycle
    }

    /// The server's metrics.
    #[must_use]
    pub fn telemetry(&self) -> &Arc<Telemetry> {
        &self.0.telemetry
    }

    /// The limits, which transports need to bound what they read.
    #[must_use]
    pub fn limits(&self) -> &LimitsConfig {
        &self.0.config.limits
    }

    /// What the sessions of one transport have in common. Its name was given to [`Telemetry::new`].
    #[must_use]
    pub fn scope(&self, config: ScopeConfig) -> Arc<Scope> {
        Scope::new(Arc::clone(&self.0), config)
    }

    /// Takes a token of `connects_per_ip`. Exempt peers always pass.
    ///
    /// # Errors
    /// When to come back.
    pub fn admit(&self, peer: &Peer) -> Result<(), Duration> {
        if peer.exempt {
            Ok(())
        } else {
            self.0.connects_per_ip.take(address_key(peer.address))
        }
    }

    /// A session for a connection that stays open and is written to through `socket`. `login_timeout` counts from
    /// `accepted`.
    #[must_use]
    pub fn connect(
        &self,
        scope: &Arc<Scope>,
        mut peer: Peer,
        mut socket: Arc<dyn TryWrite>,
        framing: Framing,
        accepted: Instant,
    ) -> PushSession {
        if self.0.config.sessions.delivery_is_activity {
            let (noting, written) = Noting::new(socket, framing, self.0.origin);
            socket = noting;
            peer.written = Some(written);
        }
        PushSession::new(scope, peer, socket, framing, accepted)
    }

    /// Logs a polling client in. `body`: a login object, whose `type` may be left out; it may be empty beside
    /// credentials of a header. Cancel safe: a call given up leaves nothing behind.
    ///
    /// # Errors
    /// As the log-in of any transport.
    pub async fn open(
        &self,
        scope: &Arc<Scope>,
        peer: Peer,
        body: &[u8],
        header: Option<Credentials>,
    ) -> Result<Opened, Refusal> {
        PullSession::open(scope, peer, body, header).await
    }

    /// The polling session with that id, for a request of `peer` that came over `scope`.
    ///
    /// A session that was opened with a certificate is there for whoever shows it again, and for nobody else.
    ///
    /// # Errors
    /// `not_logged_in` for an unknown id, `session_expired` for one that ended and has given everything, and
    /// `already_logged_in` for one that is attached to a push connection.
    pub fn find(&self, scope: &Arc<Scope>, peer: &Peer, id: &str) -> Result<PullSession, Refusal> {
        let unknown = || {
            Refusal::new(
                ErrorCode::NotLoggedIn,
                "The server knows no such session; log in.",
            )
        };
        let id = SessionId::parse(id).ok_or_else(unknown)?;
        let is_its =
            |session: &Session| Arc::ptr_eq(&session.scope, scope) && peer.may_be(&session.peer);
        match self.0.registry.find(id) {
            Found::Unknown => Err(unknown()),
            Found::Ended(ended) => match ended.rest {
                Some(session) if is_its(&session) => Ok(PullSession::new(session)),
                _ => Err(expired(ended.end)),
            },
            Found::Live(session) => match session.outlet {
                crate::adapter::Outlet::Push(_) => {
                    let message = "The session is attached to another connection.";
                    Err(Refusal::new(ErrorCode::AlreadyLoggedIn, message))
                }
                crate::adapter::Outlet::Pull(_) if is_its(&session) => {
                    Ok(PullSession::new(session))
                }
                crate::adapter::Outlet::Pull(_) => Err(unknown()),
            },
        }
    }

    /// Whether the server sends everybody away.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.0.is_draining()
    }

    /// Sends everybody away: begins to drain the lifecycle, takes no message more, hands over what was accepted, and
    /// ends every session with `shutting_down`. Returns when every polling client has fetched its `bye` or `grace` is
    /// over. Push connections finish on their own tasks, for which [`Lifecycle::shut_down`] waits.
    pub async fn drain(&self, grace: Duration) {
        let hub = &self.0;
        hub.draining.store(true, Ordering::SeqCst);
        hub.lifecycle.drain();
        let deadline = *hub.drain_deadline.get_or_init(|| clock::now() + grace);
        hub.rooms.stop();
        for lane in &hub.lanes {
            let _ = timeout(
                deadline.saturating_duration_since(clock::now()),
                lane.barrier(),
            )
            .await;
        }
        let sessions = hub.registry.everybody();
        hub.sent_away
            .store(sessions.len() as u64, Ordering::Relaxed);
        for (index, session) in sessions.into_iter().enumerate() {
            session.end(CloseReason::ShuttingDown);
            if index % 256 == 255 {
                tokio::task::yield_now().await;
            }
        }
        let fetched = async {
            loop {
                let more = hub.rest_given.notified();
                tokio::pin!(more);
                more.as_mut().enable();
                if !hub.registry.is_any_untold() {
                    return;
                }
                more.await;
            }
        };
        let _ = timeout(deadline.saturating_duration_since(clock::now()), fetched).await;
        hub.drained.cancel();
    }

    /// Resolves once [`Hub::drain`] is over: nobody needs a listener any more. Cancel safe.
    pub async fn drained(&self) {
        self.0.drained.cancelled().await;
    }

    /// Sessions live.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.0.registry.len()
    }

    /// Rooms, empty ones included.
    #[must_use]
    pub fn rooms(&self) -> usize {
        self.0.rooms.len()
    }
}

impl Inner {
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// A closing connection has until then; while the server drains, no longer than that lasts.
    pub(crate) fn latest_end(&self, deadline: Instant) -> Instant {
        let drain = self.drain_deadline.get();
        drain.map_or(deadline, |drain| deadline.min(*drain))
    }

    /// Tells one stay, or one session, from every other.
    pub(crate) fn next_key(&self) -> u64 {
        self.next_key.fetch_add(1, Ordering::Relaxed)
    }

    /// When a client that ended so may come back, in milliseconds.
    pub(crate) fn retry_ms(&self, reason: CloseReason) -> u64 {
        match reason {
            CloseReason::ShuttingDown => Span(self.retry_after_drain()).as_millis(),
            CloseReason::SlowConsumer | CloseReason::Unavailable => 1_000 + self.spread(1_000),
            _ => 0,
        }
    }

    /// A slot of its own for each client that is sent away by a drain: at least a second, and a second more for every
    /// [`SPREAD_CLIENTS`] of them.
    pub(crate) fn retry_after_drain(&self) -> Duration {
        let crowd = self.sent_away.load(Ordering::Relaxed) / SPREAD_CLIENTS as u64 + 1;
        let width = Span(SPREAD).as_millis().saturating_mul(crowd);
        SPREAD + Duration::from_millis(self.spread(width))
    }

    /// Evenly spread numbers below `width`: the golden ratio's multiples fall into the widest gap left.
    fn spread(&self, width: u64) -> u64 {
        let turn = self.next_key().wrapping_mul(0x9E37_79B9_7F4A_7C15);
        u64::try_from((u128::from(turn) * u128::from(width)) >> 64).unwrap_or(0)
    }

    pub(crate) fn ban(&self, key: BanKey, span: Duration) {
        let now = clock::now();
        let mut bans = self.bans.lock();
        if bans.len() >= MAX_BANS {
            bans.retain(|_, until| *until > now);
        }
        if bans.len() >= MAX_BANS
            && let Some(first) = bans
                .iter()
                .min_by_key(|(_, until)| **until)
                .map(|(key, _)| key.clone())
        {
            bans.remove(&first);
        }
        bans.insert(key, now + span);
    }

    /// How long a ban still lasts.
    pub(crate) fn banned(&self, key: &BanKey) -> Option<Duration> {
        let mut bans = self.bans.lock();
        let wait = bans.get(key)?.saturating_duration_since(clock::now());
        if wait.is_zero() {
            bans.remove(key);
            return None;
        }
        Some(wait)
    }

    /// Why a session can't be resumed, which none can yet.
    pub(crate) fn cannot_resume(&self, id: &str) -> Refusal {
        match SessionId::parse(id).map(|id| self.registry.find(id)) {
            Some(Found::Ended(ended)) => expired(ended.end),
            _ => Refusal::new(
                ErrorCode::NotLoggedIn,
                "The server knows no session that could be resumed; log in.",
            ),
        }
    }
}

/// What is said of a session that has ended.
pub(crate) fn expired(end: End) -> Refusal {
    let mut refusal = Refusal::new(
        ErrorCode::SessionExpired,
        "The session has ended; log in again.",
    );
    refusal.end = Some(end);
    refusal
}

fn option_table(config: &HubConfig) -> OptionTable {
    let options = |room: &RoomConfig, configured: bool| {
        let validators = room.validators.iter().filter_map(|name| {
            validate::builtin(name).or_else(|| config.validators.get(name).cloned())
        });
        Arc::new(RoomOptions {
            validators: validators.collect(),
            escapes: room.validators.iter().any(|name| name == HTML_ESCAPE),
            configured,
            config: room.clone(),
        })
    };
    OptionTable {
        default: options(&config.room, false),
        patterns: config
            .rooms
            .iter()
            .map(|(_, pattern, room)| (pattern.clone(), options(room, true)))
            .collect(),
    }
}
