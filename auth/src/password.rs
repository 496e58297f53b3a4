//! `kind = "password"`: users with the hashes of their passwords in a file.
//!
//! - A log-in takes the same time whether or not the file has its user.
//! - Hashing happens on threads of its own, so that it never holds up a connection, and behind a
//!   bounded queue.
//! - Each of these threads keeps the memory of its last argon2id hash for the next one, at most what
//!   the largest hash in the file takes, and gives it back after two seconds without work.
//! - The file is read again when it changes; a faulty one changes nothing.
//!
//! Users whose line is gone or has another hash or other roles are logged out, with `auth_expired`.
//!
//! # Upper and lower case of user names
//!
//! A user logs in under the name exactly as the file spells it, yet the file can't have two users
//! whose names differ in upper and lower case alone.
//!
//! They can't both be there because a server takes such names for one: of two people with them, the
//! one who came second would find the name in use or end the session of the first.
//!
//! The other spellings don't log in because one user then has one name: the one that sessions,
//! rooms, messages and logs carry, whatever was typed. Which letters count as equal depends on the
//! version of Unicode, and an update must not decide whose password opens which account; for the
//! file it only decides whether a line is refused, which its owner is told at once. A spelling that
//! the file does not have is an unknown user like any other, left to the next authenticator after
//! the same work.

mod file;
mod hash;
mod memory;
mod pool;

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use async_trait::async_trait;
use chinwag_core::{
    Revocations,
    plugin::{
        AuthRequest, Authenticator, AuthenticatorConfig, AuthenticatorContext, BuildError,
        Credentials, Denial, Principal, Verdict,
    },
};
use parking_lot::RwLock;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::task::spawn_blocking;
use tracing::{error, info, warn};

use self::{
    file::User,
    hash::Hash,
    memory::Memory,
    pool::{Pool, Undone},
};
pub use self::{
    file::{BadLine, BadUser, Fault, FileError, Outcome, SetError, set},
    hash::{BadHash, HashFailed},
};
use crate::watch::{Unusable, Watch, follow};

/// The most bytes a password may have. A longer one is wrong, and costs no hash.
const PASSWORD_BYTES: usize = 1024;
const MAX_THREADS: usize = 256;
const MAX_QUEUE: usize = 10_000;
/// How long a hash thread without work keeps its memory. Longer than `RETRY`, so that those who come
/// again find it.
const KEEP: Duration = Duration::from_secs(2);
/// When to try again after the pool was full or a hash failed.
const RETRY: Duration = Duration::from_secs(1);

/// The table of an authenticator that checks passwords against a file.
///
/// The file has one `user:hash[:roles]` a line, with roles parted by commas; empty lines and lines
/// that begin with `#` are passed over. A hash is argon2id (`$argon2id$…`, as [`set`] makes it) or
/// bcrypt as htpasswd writes it (`$2a$`, `$2b$`, `$2y$`). A user name has 1 to 128 characters
/// without space, control or colon and does not begin with `#`; it is matched as it is spelled, and
/// no two may differ in upper and lower case alone.
///
/// A wrong password is denied, and so is one of more than 1024 bytes, for bcrypt more than 72.
/// Users who are not in the file are left to the next authenticator, after the same work as for a
/// wrong password; tokens and log-ins without user or password are so at once. A log-in that finds
/// every thread busy and the queue full is told to try again, and one that is given up is not
/// hashed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Password {
    /// The file; a relative path starts from the folder of the configuration. Looked at every
    /// second, so that a change works within two.
    pub file: PathBuf,
    /// How many passwords may be hashed at the same time, each on a thread and a core of its own:
    /// at most 256. 0, the default, means one less than there are cores, and at least 1. Each takes
    /// as much memory as the hash it computes, 19 MiB for one that [`set`] made and 2 GiB at most,
    /// and gives that back after two seconds without work.
    #[serde(default)]
    pub hash_threads: usize,
    /// How many log-ins may wait for such a thread, at most 10,000, in turns by address; further ones
    /// are told to try again in a second, first those whose address has most waiting. Default 64. 0
    /// means that none waits.
    #[serde(default = "default_queue")]
    pub hash_queue: usize,
}

const fn default_queue() -> usize {
    64
}

#[async_trait]
impl AuthenticatorConfig for Password {
    const KIND: &'static str = "password";

    async fn build(self, cx: AuthenticatorContext) -> Result<Arc<dyn Authenticator>, BuildError> {
        let built: Arc<dyn Authenticator> = self.start(&cx).await?;
        Ok(built)
    }
}

impl Password {
    /// The table of that file and defaults for the rest.
    #[must_use]
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self {
            file: file.into(),
            hash_threads: 0,
            hash_queue: default_queue(),
        }
    }

    async fn start(
        self,
        cx: &AuthenticatorContext,
    ) -> Result<Arc<PasswordAuthenticator>, BuildError> {
        let threads = self.threads()?;
        let path = cx.base.join(self.file);
        let order = RandomState::new();
        let (watch, users) = {
            let (path, order) = (path.clone(), order.clone());
            spawn_blocking(move || {
                let watch = Watch::new(vec![path.clone()]);
                let users = Users::read(&path, &order);
                (watch, users)
            })
            .await
            .map_err(|error| {
                BuildError::new(format!("reading the password file failed: {error}"))
            })?
        };
        let users = users.map_err(|error| unreadable(&error))?;
        match users.by_name.len() {
            0 => warn!(authenticator = %cx.name, "The password file has no user yet."),
            count => info!(authenticator = %cx.name, users = count, "Password file read."),
        }
        let pool = Pool::new(threads, self.hash_queue, KEEP).map_err(|error| {
            BuildError::key(
                "hash_threads",
                format!("can't start {threads} hash threads: {error}"),
            )
        })?;
        let users = RwLock::new(Arc::new(users));
        let built = Arc::new(PasswordAuthenticator {
            name: cx.name.clone(),
            path,
            users,
            order,
            pool,
            revocations: cx.revocations.clone(),
        });
        follow(
            &cx.lifecycle,
            &built,
            watch,
            PasswordAuthenticator::read,
            PasswordAuthenticator::take,
        );
        Ok(built)
    }

    fn threads(&self) -> Result<usize, BuildError> {
        if self.hash_queue > MAX_QUEUE {
            return Err(BuildError::key(
                "hash_queue",
                format!(
                    "`hash_queue` may be {MAX_QUEUE} at most: those who wait longer give up anyway"
                ),
            ));
        }
        match self.hash_threads {
            0 => Ok(thread::available_parallelism()
                .map_or(1, |cores| cores.get() - 1)
                .max(1)),
            threads @ 1..=MAX_THREADS => Ok(threads),
            _ => Err(BuildError::key(
                "hash_threads",
                format!("`hash_threads` may be {MAX_THREADS} at most; 0 takes all cores but one"),
            )),
        }
    }
}

fn unreadable(error: &FileError) -> BuildError {
    let way_out = match error {
        FileError::Read { path, error } if error.kind() == io::ErrorKind::NotFound => {
            format!("`chinwag passwd {} NAME` makes it", path.display())
        }
        FileError::Lines { path, .. } => format!(
            "mend them by hand, or give a user a new password with `chinwag passwd {} NAME`",
            path.display()
        ),
        _ => "name a file that the server may read, with one user:hash[:roles] a line".to_owned(),
    };
    BuildError::key("file", format!("{error}; {way_out}"))
}

struct PasswordAuthenticator {
    name: String,
    path: PathBuf,
    users: RwLock<Arc<Users>>,
    /// A secret that picks which known user an unknown one is treated like.
    order: RandomState,
    pool: Pool<Result<bool, HashFailed>, Memory>,
    revocations: Revocations,
}

#[async_trait]
impl Authenticator for PasswordAuthenticator {
    async fn authenticate(&self, request: &AuthRequest) -> Verdict {
        let Some((user, password)) = presented(&request.credentials) else {
            return Verdict::Abstain;
        };
        let users = Arc::clone(&self.users.read());
        let known = users.by_name.get(user);
        let wrong = if known.is_some() {
            Verdict::deny_for(Denial::WrongSecret, "wrong password")
        } else {
            Verdict::Abstain
        };
        if password.expose_secret().len() > PASSWORD_BYTES {
            return wrong;
        }
        let hash = known.map_or_else(|| users.decoy(&self.order, user), |user| &user.hash);
        let checked = self.check(request, &users, hash, password).await;
        match (checked, known) {
            (Ok(Ok(true)), Some(user)) => Verdict::Allow(
                Principal::vouched(user.name.as_str()).with_roles(user.roles.clone()),
            ),
            (Ok(Ok(_)), _) => wrong,
            (Ok(Err(error)), _) => {
                error!(authenticator = %self.name, %error, "A password could not be checked.");
                Verdict::Unavailable { retry: RETRY }
            }
            (Err(Undone::Panicked), _) => {
                error!(authenticator = %self.name, "Checking a password panicked.");
                Verdict::Unavailable { retry: RETRY }
            }
            (Err(Undone::Full), _) => Verdict::Unavailable { retry: RETRY },
        }
    }

    async fn pretend(&self, request: &AuthRequest) {
        if let Some((user, password)) = presented(&request.credentials)
            && password.expose_secret().len() <= PASSWORD_BYTES
        {
            let users = Arc::clone(&self.users.read());
            // Whatever comes of it: the verdict is another's.
            let _ = self
                .check(request, &users, users.decoy(&self.order, user), password)
                .await;
        }
    }
}

/// The user and the password of a log-in with both.
fn presented(credentials: &Credentials) -> Option<(&String, &SecretString)> {
    match credentials {
        Credentials {
            user: Some(user),
            password: Some(password),
            token: None,
            ..
        } => Some((user, password)),
        _ => None,
    }
}

impl PasswordAuthenticator {
    async fn check(
        &self,
        request: &AuthRequest,
        users: &Users,
        hash: &Arc<Hash>,
        password: &SecretString,
    ) -> Result<Result<bool, HashFailed>, Undone> {
        let (hash, password, most) = (Arc::clone(hash), password.clone(), users.blocks);
        let check = self.pool.run(request.address.into(), move |memory| {
            // A hash that the file no longer has may have been larger than all that it has now.
            memory.limit(most);
            hash.check(&password, memory)
        });
        check.await
    }

    fn read(&self) -> Result<Users, Unusable<FileError>> {
        Users::read(&self.path, &self.order).map_err(|error| match error {
            FileError::Read { .. } => Unusable::Unread(error),
            _ => Unusable::Bad(error),
        })
    }

    fn take(&self, read: Result<Users, Unusable<FileError>>) {
        match read {
            Ok(users) => {
                let users = Arc::new(users);
                let before = std::mem::replace(&mut *self.users.write(), Arc::clone(&users));
                let count = users.by_name.len();
                let logged_out = self.revocations.revoke(|granted| {
                    let line = |users: &Users| users.by_name.get(granted.user).cloned();
                    match (line(&before), line(&users)) {
                        (Some(before), Some(now)) => !now.is_as(&before),
                        (_, now) => now.is_none(),
                    }
                });
                info!(
                    authenticator = %self.name, users = count, logged_out,
                    "Password file read anew."
                );
            }
            Err(error) => {
                warn!(
                    authenticator = %self.name, %error,
                    "The changed password file can't be used; the users read before stay."
                );
            }
        }
    }
}

/// The content of the file.
struct Users {
    by_name: HashMap<String, Arc<User>>,
    /// Every user's hash by the secret order of their names.
    ring: Vec<(u64, Arc<Hash>)>,
    nobodys: Arc<Hash>,
    /// How many blocks of memory the largest of all these hashes takes.
    blocks: usize,
}

impl Users {
    fn read(path: &Path, order: &RandomState) -> Result<Self, FileError> {
        Ok(Self::new(file::read(path)?, order))
    }

    fn new(users: Vec<User>, order: &RandomState) -> Self {
        let mut ring: Vec<_> = users
            .iter()
            .map(|user| (order.hash_one(&user.name), Arc::clone(&user.hash)))
            .collect();
        ring.sort_unstable_by_key(|(place, _)| *place);
        let by_name = users
            .into_iter()
            .map(|user| (user.name.clone(), Arc::new(user)))
            .collect();
        let nobodys = Arc::new(Hash::nobodys());
        let largest = ring.iter().map(|(_, hash)| hash.blocks()).max();
        Self {
            by_name,
            ring,
            blocks: largest.unwrap_or_else(|| nobodys.blocks()),
            nobodys,
        }
    }

    /// The hash to check the password of an unknown user against, for its cost alone.
    ///
    /// Users may have hashes of different costs, and one fixed dummy would tell apart all whose
    /// cost is another. So an unknown name costs what some known user costs, in the proportions of
    /// the file, and always the same one, also when others come and go: the one that follows it in
    /// a secret order. In an empty file it is what a new hash costs.
    fn decoy(&self, order: &RandomState, name: &str) -> &Arc<Hash> {
        let place = order.hash_one(name);
        let next = self.ring.partition_point(|(known, _)| *known < place);
        self.ring
            .get(next)
            .or_else(|| self.ring.first())
            .map_or(&self.nobodys, |(_, hash)| hash)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        fs,
        net::{IpAddr, Ipv4Addr},
        sync::mpsc,
    };

    use argon2::Params;
    use chinwag_core::Lifecycle;
    use tempfile::TempDir;
    use tokio::{sync::oneshot, task::JoinSet};

    use super::{
        hash::{
            fresh,
            tests::{cheap, cheap_bcrypt},
        },
        pool::tests::{at_once, poll_once},
        *,
    };
    use crate::{fair::Party, watch::LOOK_EVERY};

    /// A folder with a file `users` in it.
    fn folder(text: &str) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("users"), text).unwrap();
        folder
    }

    async fn try_start(
        table: &str,
        folder: &TempDir,
        lifecycle: &Lifecycle,
    ) -> Result<Arc<PasswordAuthenticator>, BuildError> {
        let cx = AuthenticatorContext::new("staff", folder.path(), lifecycle.clone());
        toml::from_str::<Password>(table).unwrap().start(&cx).await
    }

    async fn start(table: &str, folder: &TempDir) -> Arc<PasswordAuthenticator> {
        try_start(table, folder, &Lifecycle::new()).await.unwrap()
    }

    async fn judge(authenticator: &PasswordAuthenticator, credentials: Credentials) -> Verdict {
        let address = IpAddr::from(Ipv4Addr::LOCALHOST);
        authenticator
            .authenticate(&AuthRequest::new(credentials, "web".into(), address))
            .await
    }

    async fn log_in(authenticator: &PasswordAuthenticator, user: &str, password: &str) -> Verdict {
        judge(authenticator, Credentials::password(user, password)).await
    }

    fn is_wrong(verdict: &Verdict) -> bool {
        matches!(
            verdict,
            Verdict::Deny {
                denial: Denial::WrongSecret,
                public: None,
                ..
            }
        )
    }

    /// Keeps `threads` hash threads busy until the senders are dropped; they are busy when this
    /// returns.
    async fn occupy(
        authenticator: &Arc<PasswordAuthenticator>,
        threads: usize,
    ) -> (Vec<mpsc::Sender<()>>, JoinSet<()>) {
        let (mut gates, mut tasks) = (Vec::new(), JoinSet::new());
        for _ in 0..threads {
            let (gate, opened) = mpsc::channel::<()>();
            let (begun, started) = oneshot::channel();
            let authenticator = Arc::clone(authenticator);
            tasks.spawn(async move {
                let held = authenticator.pool.run(Party::SOMEBODY, move |_| {
                    begun.send(()).unwrap();
                    opened.recv().ok();
                    Ok(false)
                });
                held.await.unwrap().unwrap();
            });
            started.await.unwrap();
            gates.push(gate);
        }
        (gates, tasks)
    }

    #[test]
    fn the_table_is_strict_and_has_defaults() {
        let table: Password = toml::from_str("file = \"users\"").unwrap();
        assert_eq!(table, Password::new("users"));
        for bad in [
            "",
            "file = \"users\"\nthreads = 1",
            "file = \"users\"\nhash_threads = -1",
        ] {
            assert!(toml::from_str::<Password>(bad).is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_right_password_gives_a_vouched_name_with_its_roles() {
        let folder = folder(&format!(
            "alice:{}:admin,ops\nbob:{}\n",
            cheap("a"),
            cheap_bcrypt("b")
        ));
        let staff = start("file = \"users\"", &folder).await;
        for (user, password, roles) in [("alice", "a", &["admin", "ops"][..]), ("bob", "b", &[])] {
            let verdict = log_in(&staff, user, password).await;
            let Verdict::Allow(principal) = verdict else {
                panic!("{user}: {verdict:?}")
            };
            let roles = roles.iter().map(|role| (*role).to_owned()).collect();
            assert_eq!(principal, Principal::vouched(user).with_roles(roles));
        }
    }

    #[tokio::test]
    async fn a_wrong_password_is_denied() {
        let folder = folder(&format!(
            "alice:{}\nbob:{}\n",
            cheap("a"),
            cheap_bcrypt("b")
        ));
        let staff = start("file = \"users\"", &folder).await;
        let long = "x".repeat(PASSWORD_BYTES + 1);
        for (user, password) in [
            ("alice", "b"),
            ("alice", ""),
            ("alice", &*long),
            ("bob", "a"),
            ("bob", "b\0b"),
        ] {
            let verdict = log_in(&staff, user, password).await;
            assert!(is_wrong(&verdict), "{user}: {verdict:?}");
        }
    }

    #[tokio::test]
    async fn what_it_does_not_know_is_left_to_others() {
        let folder = folder(&format!("alice:{}\n", cheap("a")));
        let staff = start("file = \"users\"", &folder).await;
        let mut token_too = Credentials::password("alice", "a");
        token_too.token = Some("t".into());
        let mut no_user = Credentials::password("alice", "a");
        no_user.user = None;
        for credentials in [
            Credentials::token("t"),
            Credentials::name("alice"),
            Credentials::default(),
            token_too,
            no_user,
            Credentials::password("bob", "a"),
            Credentials::password("Alice", "a"),
            Credentials::password("bob", "x".repeat(PASSWORD_BYTES + 1)),
        ] {
            let verdict = judge(&staff, credentials.clone()).await;
            assert!(
                matches!(verdict, Verdict::Abstain),
                "{credentials:?}: {verdict:?}"
            );
        }
    }

    #[tokio::test]
    async fn an_unknown_user_is_hashed_for_like_a_known_one() {
        let folder = folder(&format!("alice:{}\n", cheap("a")));
        let staff = start(
            "file = \"users\"\nhash_threads = 1\nhash_queue = 0",
            &folder,
        )
        .await;
        let (gates, tasks) = occupy(&staff, 1).await;
        for user in ["alice", "bob"] {
            let verdict = at_once(log_in(&staff, user, "a")).await;
            assert!(
                matches!(verdict, Verdict::Unavailable { retry } if retry == RETRY),
                "{user} was judged without a hash thread: {verdict:?}"
            );
        }
        assert!(matches!(
            judge(&staff, Credentials::token("t")).await,
            Verdict::Abstain
        ));
        drop(gates);
        tasks.join_all().await;
        assert!(matches!(log_in(&staff, "bob", "a").await, Verdict::Abstain));
    }

    #[tokio::test]
    async fn what_it_pretends_is_a_hash_like_any_other() {
        let folder = folder(&format!("alice:{}\n", cheap("a")));
        let table = "file = \"users\"\nhash_threads = 1\nhash_queue = 1";
        let staff = start(table, &folder).await;
        let request = |credentials| {
            AuthRequest::new(credentials, "web".into(), IpAddr::from(Ipv4Addr::LOCALHOST))
        };
        let (gates, tasks) = occupy(&staff, 1).await;
        for user in ["alice", "bob"] {
            let request = request(Credentials::password(user, "a"));
            let mut pretend = Box::pin(staff.pretend(&request));
            assert!(poll_once(pretend.as_mut()).await.is_none(), "it waits");
        }
        let long = "x".repeat(PASSWORD_BYTES + 1);
        for other in [
            Credentials::token("t"),
            Credentials::name("alice"),
            Credentials::password("alice", long),
        ] {
            at_once(staff.pretend(&request(other))).await;
        }
        drop(gates);
        tasks.join_all().await;
        staff
            .pretend(&request(Credentials::password("bob", "a")))
            .await;
    }

    #[test]
    fn decoys_cost_what_the_files_hashes_cost_and_stay_the_same() {
        let order = RandomState::new();
        let text = |users: usize| {
            (0..users)
                .map(|n| format!("user{n}:{}\n", cheap_bcrypt("a")))
                .collect::<String>()
        };
        let folder = folder(&text(20));
        let path = folder.path().join("users");
        let address = |hash: &Arc<Hash>| Arc::as_ptr(hash).addr();
        let strangers: Vec<_> = (0..500).map(|n| format!("stranger{n}")).collect();
        let decoy = |users: &Users, name: &str| {
            let decoy = address(users.decoy(&order, name));
            let known = users
                .by_name
                .values()
                .find(|user| address(&user.hash) == decoy);
            known.expect("the hash of a known user").name.clone()
        };

        let users = Users::read(&path, &order).unwrap();
        let decoys: HashSet<_> = strangers.iter().map(|name| decoy(&users, name)).collect();
        assert!(decoys.len() > 5, "strangers share {} users", decoys.len());

        // With one more user nobody changes but those strangers who now precede that one.
        fs::write(&path, text(21)).unwrap();
        let more = Users::read(&path, &order).unwrap();
        for name in strangers {
            let (before, after) = (decoy(&users, &name), decoy(&more, &name));
            assert!(
                after == before || after == "user20",
                "{before} became {after}"
            );
        }

        let nobody = Users::new(Vec::new(), &order);
        assert!(Arc::ptr_eq(nobody.decoy(&order, "a"), &nobody.nobodys));
    }

    #[tokio::test]
    async fn two_hundred_at_once_are_allowed_or_told_to_come_again() {
        let folder = folder(&format!("alice:{}\n", cheap("a")));
        let staff = start(
            "file = \"users\"\nhash_threads = 2\nhash_queue = 8",
            &folder,
        )
        .await;
        let (gates, busy) = occupy(&staff, 2).await;
        let mut waiting = Vec::new();
        for _ in 0..200 {
            let mut verdict = Box::pin(log_in(&staff, "alice", "a"));
            match poll_once(verdict.as_mut()).await {
                None => waiting.push(verdict),
                Some(verdict) => {
                    assert!(
                        matches!(verdict, Verdict::Unavailable { .. }),
                        "{verdict:?}"
                    );
                }
            }
        }
        assert_eq!(waiting.len(), 8);
        drop(gates);
        busy.join_all().await;
        for verdict in waiting {
            let verdict = verdict.await;
            assert!(matches!(verdict, Verdict::Allow(_)), "{verdict:?}");
        }
    }

    #[tokio::test]
    async fn two_hundred_at_once_with_nothing_in_the_way() {
        let folder = folder(&format!("alice:{}\n", cheap("a")));
        let staff = start(
            "file = \"users\"\nhash_threads = 2\nhash_queue = 8",
            &folder,
        )
        .await;
        let mut tasks = JoinSet::new();
        for number in 0..200 {
            let staff = Arc::clone(&staff);
            let password = if number % 2 == 0 { "a" } else { "b" };
            tasks.spawn(async move { (password, log_in(&staff, "alice", password).await) });
        }
        let mut judged = 0;
        for (password, verdict) in tasks.join_all().await {
            match verdict {
                Verdict::Unavailable { .. } => {}
                Verdict::Allow(_) if password == "a" => judged += 1,
                Verdict::Deny { .. } if password == "b" => judged += 1,
                other => panic!("{password}: {other:?}"),
            }
        }
        assert!(judged >= 10, "only {judged} were judged");
    }

    #[tokio::test]
    async fn a_log_in_that_was_given_up_is_not_hashed() {
        let folder = folder(&format!("alice:{}\n", cheap("a")));
        let staff = start(
            "file = \"users\"\nhash_threads = 1\nhash_queue = 1",
            &folder,
        )
        .await;
        let (gates, busy) = occupy(&staff, 1).await;
        let mut given_up = Box::pin(log_in(&staff, "alice", "a"));
        assert!(poll_once(given_up.as_mut()).await.is_none(), "it waits");
        let verdict = at_once(log_in(&staff, "alice", "a")).await;
        assert!(
            matches!(verdict, Verdict::Unavailable { .. }),
            "{verdict:?}"
        );
        drop(given_up);

        // The thread is still held, so this place in the queue is that of the log-in that was given
        // up.
        let mut next = Box::pin(log_in(&staff, "alice", "a"));
        assert!(poll_once(next.as_mut()).await.is_none(), "it waits");
        drop(gates);
        busy.join_all().await;
        assert!(matches!(next.await, Verdict::Allow(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_works_within_two_looks() {
        let folder = folder(&format!("alice:{}\n", cheap("a")));
        let path = folder.path().join("users");
        let staff = start("file = \"users\"", &folder).await;
        assert!(matches!(log_in(&staff, "bob", "b").await, Verdict::Abstain));

        fs::write(
            &path,
            format!("alice:{}\nbob:{}\n", cheap("new"), cheap("b")),
        )
        .unwrap();
        tokio::time::sleep(2 * LOOK_EVERY + LOOK_EVERY / 2).await;
        assert!(matches!(
            log_in(&staff, "bob", "b").await,
            Verdict::Allow(_)
        ));
        assert!(is_wrong(&log_in(&staff, "alice", "a").await));
        assert!(matches!(
            log_in(&staff, "alice", "new").await,
            Verdict::Allow(_)
        ));
    }

    #[tokio::test]
    async fn memory_is_kept_for_the_largest_hash_of_the_file_and_no_larger_one() {
        let large = fresh(&"b".into(), Params::new(64, 1, 1, None).unwrap()).unwrap();
        let small = cheap("a");
        let folder = folder(&format!("alice:{small}\nbob:{large}\n"));
        let path = folder.path().join("users");
        let staff = start("file = \"users\"\nhash_threads = 1", &folder).await;
        let holds = async |blocks: usize| {
            let held = staff
                .pool
                .run(Party::SOMEBODY, move |memory| Ok(memory.held() == blocks));
            held.await.unwrap().unwrap()
        };
        for (user, password) in [("bob", "b"), ("alice", "a")] {
            let verdict = log_in(&staff, user, password).await;
            assert!(matches!(verdict, Verdict::Allow(_)), "{verdict:?}");
            assert!(holds(64).await, "after {user}");
        }

        fs::write(&path, format!("alice:{small}\n")).unwrap();
        staff.take(staff.read());
        assert!(is_wrong(&log_in(&staff, "alice", "b").await));
        assert!(holds(8).await, "after the file was read anew");
    }

    #[tokio::test(start_paused = true)]
    async fn a_faulty_or_missing_file_changes_nothing_until_it_is_mended() {
        let folder = folder(&format!("alice:{}\n", cheap("a")));
        let path = folder.path().join("users");
        let staff = start("file = \"users\"", &folder).await;
        let broken = format!("bob:{}\nalice:plain\n", cheap("b"));
        for change in [Some(broken), None] {
            match change {
                Some(text) => fs::write(&path, text).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            tokio::time::sleep(5 * LOOK_EVERY).await;
            assert!(matches!(
                log_in(&staff, "alice", "a").await,
                Verdict::Allow(_)
            ));
            assert!(matches!(log_in(&staff, "bob", "b").await, Verdict::Abstain));
        }
        fs::write(&path, format!("bob:{}\n", cheap("b"))).unwrap();
        tokio::time::sleep(5 * LOOK_EVERY).await;
        assert!(matches!(
            log_in(&staff, "bob", "b").await,
            Verdict::Allow(_)
        ));
        assert!(matches!(
            log_in(&staff, "alice", "a").await,
            Verdict::Abstain
        ));
    }

    #[tokio::test]
    async fn a_file_that_can_not_be_read_is_tried_again_and_a_faulty_one_is_not() {
        let folder = folder("");
        let path = folder.path().join("users");
        let staff = start("file = \"users\"", &folder).await;
        fs::write(&path, "alice:plain\n").unwrap();
        assert!(matches!(staff.read(), Err(Unusable::Bad(_))));
        fs::remove_file(&path).unwrap();
        assert!(matches!(staff.read(), Err(Unusable::Unread(_))));
    }

    #[tokio::test]
    async fn a_password_that_was_set_logs_in() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        assert_eq!(set(&path, "alice", &"a".into()).unwrap(), Outcome::Added);
        assert_eq!(
            set(&path, "alice", &"new".into()).unwrap(),
            Outcome::Replaced
        );
        let staff = start("file = \"users\"", &folder).await;
        assert!(matches!(
            log_in(&staff, "alice", "new").await,
            Verdict::Allow(_)
        ));
        assert!(is_wrong(&log_in(&staff, "alice", "a").await));
        assert!(matches!(
            log_in(&staff, "bob", "new").await,
            Verdict::Abstain
        ));
    }

    #[tokio::test]
    async fn what_can_not_work_is_refused_with_its_key_and_a_way_out() {
        let folder = folder("alice:plain\nbob\n");
        for (table, key, parts) in [
            (
                "file = \"users\"",
                "file",
                &["line 1: ", "line 2: ", "chinwag passwd"][..],
            ),
            (
                "file = \"none\"",
                "file",
                &["can't be read", "chinwag passwd"],
            ),
            ("file = \".\"", "file", &["not a regular file", "user:hash"]),
            (
                "file = \"users\"\nhash_threads = 257",
                "hash_threads",
                &["256", "0 takes"],
            ),
            (
                "file = \"users\"\nhash_queue = 10001",
                "hash_queue",
                &["10000"],
            ),
        ] {
            let Err(error) = try_start(table, &folder, &Lifecycle::new()).await else {
                panic!("{table} was built")
            };
            assert_eq!(error.key, Some(key), "{table}");
            let text = error.to_string();
            for part in parts {
                assert!(text.contains(part), "{table}: {text}");
            }
        }
    }

    #[test]
    fn by_default_one_core_is_left_to_the_server() {
        let table: Password = toml::from_str("file = \"users\"").unwrap();
        let cores = thread::available_parallelism().unwrap().get();
        assert_eq!(
            table.threads().unwrap(),
            if cores == 1 { 1 } else { cores - 1 }
        );
    }
}
