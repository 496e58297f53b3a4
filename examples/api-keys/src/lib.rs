//! An authenticator of chinwag for programs that bring a key: a file says whose it is, and may change while the server
//! runs. Sessions of a key that is taken out end; a file with a mistake changes nothing, and the log says what is wrong.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, RwLock},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use aws_lc_rs::digest::{SHA256, digest};
use chinwag::core::{
    Lifecycle, Revocations,
    config::Span,
    plugin::{
        AuthRequest, Authenticator, AuthenticatorConfig, AuthenticatorContext, BuildError, Denial,
        Principal, Verdict,
    },
};
use secrecy::ExposeSecret;
use tokio::{fs, time::sleep};
use tracing::{info, warn};

/// A table of `kind = "api-keys"`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKeys {
    /// One `name:hash` a line, the hash being the SHA-256 of the key in hexadecimal digits; lines that begin with `#` are
    /// comments. A user may have several keys.
    file: PathBuf,
    /// How often the file is looked at. Above zero.
    #[serde(default = "one_second")]
    check_every: Span,
}

fn one_second() -> Span {
    Span::secs(1)
}

/// Users by the hash of their key. A key has as many random bits as its hash, so that one hash is enough, and finding
/// it in a map tells nothing of the key.
type Users = HashMap<String, String>;

struct Keys {
    users: RwLock<Arc<Users>>,
    revocations: Revocations,
}

#[async_trait]
impl AuthenticatorConfig for ApiKeys {
    const KIND: &'static str = "api-keys";

    async fn build(self, cx: AuthenticatorContext) -> Result<Arc<dyn Authenticator>, BuildError> {
        let every = self.check_every.0;
        if every.is_zero() {
            return Err(BuildError::key("check_every", "must be above zero"));
        }
        let path = cx.base.join(&self.file);
        let seen = stamp(&path).await;
        let users = read(&path).await;
        let users = users.map_err(|message| BuildError::key("file", message))?;
        let keys = Arc::new(Keys {
            users: RwLock::new(Arc::new(users)),
            revocations: cx.revocations,
        });
        let (watched, lifecycle) = (Arc::clone(&keys), cx.lifecycle.clone());
        cx.lifecycle
            .spawn(async move { watched.watch(&path, seen, every, &lifecycle).await });
        Ok(keys)
    }
}

#[async_trait]
impl Authenticator for Keys {
    async fn authenticate(&self, request: &AuthRequest) -> Verdict {
        let Some(key) = &request.credentials.token else {
            return Verdict::Abstain;
        };
        let hash = hex(digest(&SHA256, key.expose_secret().as_bytes()).as_ref());
        match self.users().get(&hash) {
            Some(user) => {
                let mut principal = Principal::vouched(user);
                // What the session is known by when the key is taken back.
                principal.credential = Some(hash);
                Verdict::Allow(principal)
            }
            None => Verdict::deny_for(Denial::Unknown, "no such key"),
        }
    }
}

impl Keys {
    fn users(&self) -> Arc<Users> {
        Arc::clone(&self.users.read().expect("nobody panics with it"))
    }

    /// Reads the file again whenever it has changed, until the server drains.
    async fn watch(
        &self,
        path: &Path,
        mut seen: Option<Stamp>,
        every: Duration,
        lifecycle: &Lifecycle,
    ) {
        loop {
            tokio::select! {
                () = lifecycle.draining() => return,
                () = sleep(every) => (),
            }
            let now = stamp(path).await;
            if now == seen {
                continue;
            }
            seen = now;
            match read(path).await {
                Ok(users) => self.replace(users),
                Err(error) => warn!(error, "The keys stay as they were."),
            }
        }
    }

    /// Puts `users` in force, and then ends the sessions of keys that are not among them, or are another's now.
    fn replace(&self, users: Users) {
        let users = Arc::new(users);
        *self.users.write().expect("nobody panics with it") = Arc::clone(&users);
        let ended = self.revocations.revoke(|granted| {
            let user = granted.credential.and_then(|hash| users.get(hash));
            user.is_none_or(|user| user != granted.user)
        });
        info!(keys = users.len(), ended, "The keys were read again.");
    }
}

/// What changes with a file.
type Stamp = (SystemTime, u64);

/// `None`: there is no such file.
async fn stamp(path: &Path) -> Option<Stamp> {
    let file = fs::metadata(path).await.ok()?;
    Some((file.modified().ok()?, file.len()))
}

async fn read(path: &Path) -> Result<Users, String> {
    let text = fs::read_to_string(path).await;
    let text = text.map_err(|error| format!("can't read {}: {error}", path.display()))?;
    let mut users = Users::new();
    for (line, number) in text.lines().map(str::trim).zip(1..) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |what| format!("{}:{number}: {what}", path.display());
        // Neither the line nor a part of it is repeated: it may hold a key by mistake.
        let (user, hash) = line
            .split_once(':')
            .ok_or_else(|| wrong("a line is NAME:HASH"))?;
        if hash.len() != 64 || !hash.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(wrong("a hash has 64 hexadecimal digits"));
        }
        if users.insert(hash.to_lowercase(), user.to_owned()).is_some() {
            return Err(wrong("this key is somebody's already"));
        }
    }
    Ok(users)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
