//! A key set at a URL: fetched when it is needed, kept for a while, and no longer.
//!
//! - A set is used as it is while it is young, used and fetched aside when it is older, and not used
//!   at all when it is too old.
//! - One fetch at a time, whoever asks; a log-in that gives up does not end it.
//! - A token with an unknown key makes it fetch at once, yet not more often than every ten seconds:
//!   for that long a set is new enough to say that there is no such key.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use chinwag_core::{
    Lifecycle,
    clock::{self, Instant},
};
use http::Method;
use jsonwebtoken::Algorithm;
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::{debug, info};

use super::keys::KeySet;
use crate::{
    callout::{
        Doubt, RETRY,
        client::{Client, Question},
        spread,
    },
    fair::Party,
};

/// How old a set may be to say that there is no such key.
const NEW: Duration = Duration::from_secs(10);
/// How long after a fetch that failed the next one begins.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Remote {
    pub(super) name: String,
    pub(super) client: Arc<Client>,
    pub(super) algorithms: Vec<Algorithm>,
    /// From this age on a set is fetched anew.
    pub(super) refresh: Duration,
    /// From this age on a set is not used.
    pub(super) stale: Duration,
    pub(super) lifecycle: Lifecycle,
    pub(super) state: Mutex<State>,
    /// Changes whenever a fetch has ended.
    pub(super) ended: watch::Sender<()>,
}

#[derive(Default)]
pub(super) struct State {
    keys: Option<(Arc<KeySet>, Instant)>,
    /// When to try again after the last fetch, and the last one failed.
    failed: Option<Instant>,
    is_fetching: bool,
}

impl Remote {
    /// The keys, not too old.
    ///
    /// # Errors
    /// When to try again.
    pub(super) async fn keys(self: &Arc<Self>) -> Result<Arc<KeySet>, Duration> {
        if let Some((keys, age)) = self.known() {
            if age < self.refresh {
                return Ok(keys);
            }
            if age < self.stale {
                let _resting = self.begin();
                return Ok(keys);
            }
        }
        self.fetch().await
    }

    /// The keys, new enough that one that is not there is nowhere.
    ///
    /// # Errors
    /// When to try again.
    pub(super) async fn newest(self: &Arc<Self>) -> Result<Arc<KeySet>, Duration> {
        match self.known() {
            Some((keys, age)) if age < NEW => Ok(keys),
            _ => self.fetch().await,
        }
    }

    fn known(&self) -> Option<(Arc<KeySet>, Duration)> {
        let state = self.state.lock();
        let (keys, fetched) = state.keys.as_ref()?;
        Some((
            Arc::clone(keys),
            clock::now().saturating_duration_since(*fetched),
        ))
    }

    /// Waits for a fetch, under way or begun here.
    async fn fetch(self: &Arc<Self>) -> Result<Arc<KeySet>, Duration> {
        let mut ended = self.ended.subscribe();
        self.begin()?;
        if ended.changed().await.is_err() {
            return Err(spread(RETRY));
        }
        match self.known() {
            Some((keys, _)) if self.state.lock().failed.is_none() => Ok(keys),
            _ => Err(spread(RETRY)),
        }
    }

    /// Begins a fetch unless one is under way, or has just failed.
    fn begin(self: &Arc<Self>) -> Result<(), Duration> {
        let mut state = self.state.lock();
        if state.is_fetching {
            return Ok(());
        }
        if let Some(rest) = state
            .failed
            .map(|until| until.saturating_duration_since(clock::now()))
            && !rest.is_zero()
        {
            return Err(spread(rest.max(RETRY)));
        }
        state.is_fetching = true;
        drop(state);
        let it = Arc::clone(self);
        self.lifecycle.spawn(async move {
            let question = Question {
                party: Party::SERVER,
                method: Method::GET,
                body: Bytes::new(),
            };
            let read = |answer: &[u8]| KeySet::set(answer, &it.algorithms, false);
            let fetched = it.client.ask(&question, read, &Doubt::default()).await;
            let now = clock::now();
            let mut state = it.state.lock();
            state.is_fetching = false;
            let authenticator = &it.name;
            match fetched {
                Ok(keys) => {
                    if state.keys.is_none() {
                        info!(authenticator, "The key set is fetched.");
                    } else {
                        debug!(authenticator, "The key set is fetched anew.");
                    }
                    state.keys = Some((Arc::new(keys), now));
                    state.failed = None;
                }
                // The client has said why.
                Err(_no_answer) => state.failed = Some(now + PAUSE),
            }
            drop(state);
            it.ended.send_replace(());
        });
        Ok(())
    }
}
