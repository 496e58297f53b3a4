//! The way in: what a `login` presents, whom it is put to, and how a session begins.

use std::{sync::Arc, time::Duration};

use super::{
    Done, Pending, Phase, Session,
    judging::{Attempts, Judging},
    not_yet,
};
use crate::{
    CloseReason, ErrorCode, Refusal,
    clock::{self, Instant},
    config::DuplicateLogin,
    hub::BanKey,
    limit::address_key,
    manager::{AuthFacts, EndCause, Managed},
    message::{Command, Fields, Frame, Say, ToldLimits, field},
    names::{Name, counted_as, may_be_a_users},
    plugin::{AuthRequest, Credentials, Denial, PrincipalName, Verdict},
    registry::{Identity, SessionId, Taken},
    scope::Admitted,
    standing::Standing,
    telemetry::LoginOutcome,
    throttle::Held,
};

/// The most characters of the reason for a denial that are logged.
const LOGGED_CHARS: usize = 256;
/// The protocol's version.
const PROTOCOL: u32 = 1;

/// What a client is told after its log-in.
#[derive(Debug, Clone)]
pub(crate) struct Welcome {
    pub(crate) session: String,
    user: Arc<str>,
    timeout: Duration,
    limits: ToldLimits,
}

impl Welcome {
    pub(crate) fn say(&self, id: Option<u64>, with_session: bool) -> Say<'_> {
        let timeout_ms = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
        Say::Session {
            id,
            session: with_session.then_some(&*self.session),
            user: &self.user,
            timeout_ms,
            ping_every_ms: timeout_ms / 2,
            resumed: false,
            protocol: PROTOCOL,
            limits: self.limits,
        }
    }
}

impl Session {
    /// Reads a `login` as far as that needs nobody's verdict.
    pub(super) fn log_in(self: &Arc<Self>, command: &Command<'_>) -> Result<Done, Refusal> {
        let result = self.credentials(&command.fields);
        let login = match result {
            Ok(credentials) => self.begin_login(command.id, credentials),
            Err(refusal) => {
                self.count_failed_login(refusal.code);
                return Err(refusal);
            }
        };
        Ok(Done::Pending(login))
    }

    /// A log-in with those credentials, ready to be awaited.
    pub(crate) fn begin_login(
        self: &Arc<Self>,
        id: Option<u64>,
        credentials: Credentials,
    ) -> Pending {
        let session = Arc::clone(self);
        Box::pin(async move {
            match session.try_login(credentials).await {
                Ok(welcome) => Done::Replied(Frame::encode(&welcome.say(id, true)).into()),
                Err(refusal) => {
                    session.count_failed_login(refusal.code);
                    Done::Replied(session.refused(id, refusal))
                }
            }
        })
    }

    pub(crate) fn count_failed_login(&self, code: ErrorCode) {
        // What is not the peer's doing does not use up its attempts.
        if !matches!(
            code,
            ErrorCode::Unavailable
                | ErrorCode::ShuttingDown
                | ErrorCode::RateLimited
                | ErrorCode::TooMany
                | ErrorCode::Internal
        ) {
            self.state.lock().failed_logins += 1;
        }
    }

    /// Whether the connection has used up its attempts to log in.
    pub(crate) fn has_failed(&self) -> bool {
        let state = self.state.lock();
        state.phase == Phase::Fresh
            && state.failed_logins >= self.scope.hub.config.sessions.login_attempts
    }

    /// What a `login` object presents.
    pub(crate) fn credentials(&self, fields: &Fields<'_>) -> Result<Credentials, Refusal> {
        let protocol: Option<u32> = field("protocol", "an integer", fields.protocol)?;
        if protocol.is_some_and(|protocol| protocol != PROTOCOL) {
            return Err(Refusal::bad_request("protocol must be 1."));
        }
        let user: Option<String> = field("user", "a string", fields.user)?;
        let password: Option<String> = field("password", "a string", fields.password)?;
        let token: Option<String> = field("token", "a string", fields.token)?;
        let resume: Option<String> = field("resume", "a string", fields.resume)?;
        field::<bool>("cookie", "true or false", fields.cookie)?;
        let resumable: Option<bool> = field("resumable", "true or false", fields.resumable)?;
        let kinds = [password.is_some(), token.is_some(), resume.is_some()];
        if kinds.into_iter().filter(|there| *there).count() > 1 {
            return Err(Refusal::bad_request(
                "Only one of password, token and resume may be there.",
            ));
        }
        if token.is_some() && user.is_some() {
            return Err(Refusal::bad_request(
                "user and token can't both be there: a token says whose it is.",
            ));
        }
        if password.is_some() && user.is_none() {
            return Err(Refusal::bad_request("user must be there beside password."));
        }
        if resumable == Some(true) {
            return Err(not_yet("resumable"));
        }
        if let Some(id) = resume {
            return Err(self.scope.hub.cannot_resume(&id));
        }
        Ok(Credentials {
            user,
            password: password.map(Into::into),
            token: token.map(Into::into),
        })
    }

    /// Asks the chain and, allowed, takes the name and begins. Cancel safe: the verdict is awaited all the same, and
    /// counts.
    pub(crate) async fn try_login(
        self: &Arc<Self>,
        credentials: Credentials,
    ) -> Result<Welcome, Refusal> {
        let (hub, metrics) = (&self.scope.hub, &self.scope.metrics);
        if hub.is_draining() {
            return Err(
                Refusal::new(ErrorCode::ShuttingDown, "The server is stopping.")
                    .retry(hub.retry_after_drain()),
            );
        }
        let attempts = self.attempt(&credentials).map_err(|held| {
            metrics.login(LoginOutcome::Throttled);
            throttled(held)
        })?;
        let objection = self.peer.objection();
        let judged = match objection.or_else(|| claims_nobody(&credentials)) {
            None => {
                let (scope, request) = (Arc::clone(&self.scope), self.auth_request(credentials));
                let judging = async move { scope.authenticate(request).await };
                let deadline = self.opened + self.scope.login_timeout;
                Judging::new(&self.scope, deadline, attempts, judging).await
            }
            Some(verdict) => {
                let judged = Err(verdict);
                attempts.settle(hub, &judged);
                judged
            }
        };
        match judged {
            Ok(admitted) => {
                let welcome = self.admit(admitted).await;
                metrics.login(match &welcome {
                    Ok(_) => LoginOutcome::Session,
                    Err(refusal) if refusal.code == ErrorCode::Unavailable => {
                        LoginOutcome::Unavailable
                    }
                    Err(_) => LoginOutcome::Refused,
                });
                welcome
            }
            Err(Verdict::Unavailable { retry }) => {
                metrics.login(LoginOutcome::Unavailable);
                let message = "Log-ins can't be checked now; try again after retry_ms.";
                Err(Refusal::new(ErrorCode::Unavailable, message).retry(retry))
            }
            Err(Verdict::Deny {
                denial,
                reason,
                public,
            }) => {
                metrics.login(LoginOutcome::Denied);
                let reason: String = reason.chars().take(LOGGED_CHARS).collect();
                let transport = &self.scope.name;
                tracing::debug!(%transport, denial = denial.label(), reason, "A log-in was denied.");
                let refusal = Refusal::auth_failed();
                Err(public.map_or(refusal, |public| {
                    Refusal::new(ErrorCode::AuthFailed, public)
                }))
            }
            Err(Verdict::Abstain) => {
                metrics.login(LoginOutcome::Unknown);
                tracing::debug!(transport = %self.scope.name, "No authenticator knows the credentials.");
                Err(Refusal::auth_failed())
            }
            Err(Verdict::Allow(_)) => unreachable!("who is allowed is admitted"),
        }
    }

    /// Begins an attempt, or says why it can't be judged now.
    fn attempt(&self, credentials: &Credentials) -> Result<Attempts, Held> {
        let hub = &self.scope.hub;
        let address = address_key(self.peer.address);
        let has_password = credentials.password.is_some();
        let presents = has_password || credentials.token.is_some();
        // Where nothing is presented for a name, or nobody can have it, that is no guess at anybody's password.
        let user = credentials.user.as_deref();
        let claimed = user.filter(|_| presents && claims_nobody(credentials).is_none());
        let ban = if presents {
            claimed.and_then(|name| hub.banned(&BanKey::Name(hub.config.names.key(name))))
        } else {
            hub.banned(&BanKey::Address(address))
        };
        let attempts = Attempts::begin(hub, address, claimed.map(counted_as), has_password);
        match (ban.map(Held::Wait), attempts) {
            (None, attempts) => attempts,
            (Some(ban), Ok(_)) => Err(ban),
            (Some(ban), Err(held)) => Err(ban.max(held)),
        }
    }

    /// What the chain is asked.
    fn auth_request(&self, credentials: Credentials) -> AuthRequest {
        let transport = Arc::clone(&self.scope.name);
        let mut request = AuthRequest::new(credentials, transport, self.peer.address);
        request.headers.clone_from(&self.state.lock().headers);
        request.tls = self.peer.tls.as_ref().map(|tls| Arc::clone(tls.facts()));
        request
    }

    /// Lets a principal in: its manager is asked, where it has one, and then the session begins.
    async fn admit(self: &Arc<Self>, admitted: Admitted) -> Result<Welcome, Refusal> {
        let hub = &self.scope.hub;
        let principal = &admitted.principal;
        let name = hub.config.names.canonical(&principal.name)?;
        let is_anonymous = matches!(principal.name, PrincipalName::Chosen { .. });
        if let Err(refusal) = hub.guest_prefixes.check(&principal.name, &name) {
            let authenticator = &admitted.link.name;
            hub.telemetry.denied(authenticator, Denial::BadName);
            tracing::debug!(transport = %self.scope.name, %authenticator, "A user's name begins as guests' names do.");
            return Err(refusal);
        }
        if !is_anonymous && let Some(wait) = hub.banned(&BanKey::Name(Arc::clone(&name.key))) {
            return Err(throttled(Held::Wait(wait)));
        }
        let identity = (!is_anonymous).then(|| Identity {
            authenticator: Arc::clone(&admitted.link.name),
            user: Arc::clone(&name.order),
        });
        let expires = match principal.expires_at {
            None => None,
            Some(at) => {
                let left = Duration::from_millis(at.saturating_sub(hub.wall.unix_millis()));
                if left.is_zero() {
                    tracing::debug!(transport = %self.scope.name, "A principal was let in after its end.");
                    return Err(Refusal::auth_failed());
                }
                // Beyond what the clock can tell is never.
                clock::now().checked_add(left)
            }
        };
        let managed = match &admitted.link.manager {
            None => None,
            Some(link) => {
                let existing = hub.registry.holder(&name.key, identity.as_ref());
                let facts = AuthFacts {
                    key: no_randomness(SessionId::random())?.encode().into(),
                    user: Arc::clone(&name.shown),
                    roles: principal.roles.clone(),
                    rooms: principal.rooms.clone(),
                    expires_at: principal.expires_at,
                    limits: principal.limits,
                    authenticator: Arc::clone(&admitted.link.name),
                    transport: Arc::clone(&self.scope.name),
                    address: self.peer.address,
                    tls: self.peer.tls.as_ref().map(|tls| Arc::clone(tls.facts())),
                    existing: existing.and_then(|session| session.hook_key()),
                };
                let managed = Managed::new(link, self, facts);
                managed.create().await?;
                Some(managed)
            }
        };
        let (round, revocations) = (admitted.round, admitted.link.revocations.clone());
        let is_stale = move || round != revocations.round();
        let standing = Standing::of(admitted.principal, expires, &hub.config.limits);
        let newcomer = Newcomer {
            name,
            identity,
            standing,
            expires,
            managed: managed.clone(),
        };
        let welcome = self.begin(newcomer, is_stale);
        if let (Err(_), Some(managed)) = (&welcome, managed) {
            managed.end(EndCause::Refused);
        }
        welcome
    }

    /// Takes the name, ends who had it before where the policy says so, and begins the session.
    fn begin(
        self: &Arc<Self>,
        newcomer: Newcomer,
        is_stale: impl FnOnce() -> bool,
    ) -> Result<Welcome, Refusal> {
        let hub = &self.scope.hub;
        let Newcomer {
            name,
            identity,
            standing,
            expires,
            managed,
        } = newcomer;
        let policy = hub.config.sessions.duplicate_login;
        let id = no_randomness(SessionId::random())?;
        loop {
            let mut state = self.state.lock();
            if state.phase != Phase::Fresh {
                return Err(login_overran());
            }
            let allowed = policy.side_by_side();
            let registry = &hub.registry;
            let taken = match registry.reserve(&name.key, identity.as_ref(), allowed, self) {
                Err(taken) => taken,
                Ok(reservation) => {
                    if !registry.register(id, self) {
                        drop(state);
                        drop(reservation);
                        return Err(Refusal::new(
                            ErrorCode::TooMany,
                            "There are as many sessions as there may be.",
                        ));
                    }
                    state.phase = Phase::Active;
                    state.headers = Vec::new();
                    state.id = Some(id);
                    state.name = Some(name.clone());
                    state.reservation = Some(reservation);
                    state.is_anonymous = identity.is_none();
                    state.managed = managed;
                    if let Some(standing) = standing {
                        // Once only: the session was fresh.
                        let _ = self.standing.set(standing);
                    }
                    self.scope.metrics.created.increment(1);
                    self.scope.metrics.live.increment(1);
                    break;
                }
            };
            // From here on others are locked, which this one must not be: they may be doing the same.
            drop(state);
            let mut holders = taken.holders().iter();
            if let Some(old) = holders.find(|held| held.ended().is_some()) {
                // It is about to let go of the name, and has to leave its rooms before.
                drop(old.ending.lock());
                continue;
            }
            match (taken, policy) {
                (Taken::Same(_), DuplicateLogin::Allow(_)) => {
                    let message =
                        format!("You have {allowed} sessions, which is the most; end one first.");
                    return Err(Refusal::new(ErrorCode::TooMany, message));
                }
                (Taken::Same(holders), DuplicateLogin::Replace) => {
                    for old in holders {
                        // Synchronous: the old session is gone before the new one is told of its own.
                        old.end(CloseReason::Replaced);
                    }
                }
                _ => {
                    let message = "Somebody has that name now.";
                    return Err(Refusal::new(ErrorCode::NameInUse, message));
                }
            }
        }
        if hub.is_draining() {
            // The drain may have looked for sessions already.
            self.end(CloseReason::ShuttingDown);
            return Err(
                Refusal::new(ErrorCode::ShuttingDown, "The server is stopping.")
                    .retry(hub.retry_after_drain()),
            );
        }
        if is_stale() || self.peer.objection().is_some() {
            self.end(CloseReason::Unavailable);
            let message = "What lets you in has just changed; log in again after retry_ms.";
            return Err(Refusal::new(ErrorCode::Unavailable, message).retry(Duration::from_secs(1)));
        }
        self.touch();
        let timeout = self.timeout();
        let idle = (!timeout.is_zero()).then(|| clock::now() + timeout / 2);
        let first = [idle, expires].into_iter().flatten().min();
        let watching = first.map(|first| hub.reaper.watch(self, first));
        let before = {
            let mut state = self.state.lock();
            // Ended meanwhile: then nothing is left to watch.
            if state.phase == Phase::Active {
                std::mem::replace(&mut state.watching, watching)
            } else {
                watching
            }
        };
        drop(before);
        tracing::debug!(transport = %self.scope.name, session = ?id, "A session began.");
        let limits = &hub.config.limits;
        Ok(Welcome {
            session: id.encode(),
            user: name.shown,
            timeout,
            limits: ToldLimits {
                message_bytes: self.message_bytes(),
                frame_bytes: limits.frame_bytes.0,
                server_frame_bytes: limits.server_frame_bytes.0,
            },
        })
    }
}

/// Who is about to begin a session.
struct Newcomer {
    name: Name,
    /// `None`: anonymous.
    identity: Option<Identity>,
    standing: Option<Box<Standing>>,
    expires: Option<Instant>,
    managed: Option<Arc<Managed>>,
}

fn no_randomness(id: Option<SessionId>) -> Result<SessionId, Refusal> {
    id.ok_or_else(|| Refusal::new(ErrorCode::Internal, "The server has no randomness to give."))
}

/// Back ends may trim what they are given: who puts space around a user's name is not that user.
fn claims_nobody(credentials: &Credentials) -> Option<Verdict> {
    let user = credentials.user.as_deref()?;
    let is_nobody = credentials.password.is_some() && !may_be_a_users(user);
    is_nobody.then(|| Verdict::deny_for(Denial::BadName, "no user can have the name"))
}

fn throttled(held: Held) -> Refusal {
    match held {
        Held::Wait(wait) => {
            let message = "Log-ins are refused for a while.";
            Refusal::new(ErrorCode::RateLimited, message).retry(wait)
        }
        Held::Crowd => {
            let message = "Others with that name or address are being checked; try again.";
            Refusal::new(ErrorCode::Unavailable, message).retry(Duration::from_secs(1))
        }
    }
}

/// The log-in was not judged in its time.
pub(crate) fn login_overran() -> Refusal {
    let message = "The log-in took too long; try again.";
    Refusal::new(ErrorCode::Unavailable, message).retry(Duration::from_secs(1))
}
