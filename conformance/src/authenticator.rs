//! What the scenarios have to know of an authenticator.

use std::{fs, path::Path, time::Duration};

use async_trait::async_trait;
use chinwag::Plugins;
use serde_json::{Value, json};

/// An authenticator, as the scenarios see it: its table, and who gets in with what.
///
/// Each scenario starts servers of its own that ask it on all three transports. Some need an [ability](abilities) of the
/// gatekeeper beyond that, which is a method or two; what an authenticator has none of is said in the call of the macro,
/// with the reason. The tests of these are there and ignored, so that whoever runs them reads what was not tried.
///
/// ```
/// use std::path::Path;
///
/// use chinwag_conformance::{Gatekeeper, Login};
/// use serde_json::{Value, json};
///
/// struct Staff;
///
/// #[async_trait::async_trait]
/// impl Gatekeeper for Staff {
///     fn keys(&self, folder: &Path) -> String {
///         let hash = "alice:$2y$04$abcdefghijklmnopqrstuujZkTwHUiJ9XdZPwKfcfDo7dMp5DjlTu\n\
///                     bob:$2y$04$bcdefghijklmnopqrstuvuUd8AGwQ3lGZX7.yss8fwntXT6FctVdK\n";
///         std::fs::write(folder.join("staff.txt"), hash).unwrap();
///         "kind = \"password\"\nfile = \"staff.txt\"".into()
///     }
///
///     fn good(&self) -> Vec<Login> {
///         vec![
///             Login::password("alice", "wonderland"),
///             Login::password("bob", "builder"),
///         ]
///     }
///
///     fn bad(&self) -> Vec<Value> {
///         vec![json!({"user": "alice", "password": "looking-glass"})]
///     }
/// }
///
/// mod battery {
///     use super::Staff;
///     chinwag_conformance::authenticator!(
///         Staff,
///         without outages = "It depends on nobody.",
///         without silence = "It depends on nobody.",
///         without expiry = "Its users may stay for ever.",
///         without rooms = "Its file has none.",
///         without roles = "The file of this example has none.",
///         without removal = "This example is short.",
///     );
/// }
/// # fn main() {}
/// ```
#[async_trait]
pub trait Gatekeeper: Send + Sync + 'static {
    /// Adds its kind to the others.
    fn plugins(&self, plugins: Plugins) -> Plugins {
        plugins
    }

    /// The lines of its table: `kind = "…"` and its keys. Relative paths start from `folder`, which is new for each
    /// server: files that it needs are written there now.
    fn keys(&self, folder: &Path) -> String;

    /// Log-ins that let in, of two users at least.
    fn good(&self) -> Vec<Login>;

    /// The fields of log-ins that it refuses, whatever else is configured beside it.
    fn bad(&self) -> Vec<Value>;

    /// Makes what it depends on unreachable, until [`mend`](Self::mend). For [`outages`](abilities::outages).
    async fn break_down(&self, _folder: &Path) {
        undeclared("outages");
    }

    /// Has what it depends on take questions and answer none, until [`mend`](Self::mend). The table of
    /// [`keys`](Self::keys) has it give up after some seconds: less than one may be too little for the others to be
    /// looked at meanwhile, and [`PATIENCE`](crate::PATIENCE) is too long. For [`silence`](abilities::silence).
    async fn hush(&self, _folder: &Path) {
        undeclared("silence");
    }

    /// Ends what [`break_down`](Self::break_down) or [`hush`](Self::hush) began.
    async fn mend(&self, _folder: &Path) {
        undeclared("mend");
    }

    /// Takes a user out of what the authenticator knows, while a server runs: its sessions end and it may not come
    /// again. For [`removal`](abilities::removal).
    async fn take_out(&self, _folder: &Path, _login: &Login) {
        undeclared("removal");
    }

    /// What lets a user in whose session ends so long from now, or so long after the log-in; a second more or less is
    /// allowed. Called before the server starts, as are the next two, when [`keys`](Self::keys) has filled the folder.
    /// For [`expiry`](abilities::expiry).
    async fn short(&self, _folder: &Path, _stay: Duration) -> Login {
        undeclared("expiry")
    }

    /// What lets a user in who may enter these rooms, which are names and patterns, and no others. For
    /// [`rooms`](abilities::rooms).
    async fn confined(&self, _folder: &Path, _rooms: &[&str]) -> Login {
        undeclared("rooms")
    }

    /// What lets a user in who has that role, which none of [`good`](Self::good) has. For [`roles`](abilities::roles).
    async fn with_role(&self, _folder: &Path, _role: &str) -> Login {
        undeclared("roles")
    }

    /// The fields of a log-in with a wrong password of a user that it knows, and of one with a password of a user that
    /// it does not. For [`passwords`](abilities::passwords). Default: the first of [`good`](Self::good), with something
    /// put behind its password, and with another name.
    fn wrong_and_unknown(&self) -> [Value; 2] {
        let good = self.good().remove(0).fields;
        let [mut wrong, mut unknown] = [good.clone(), good];
        let password = wrong["password"]
            .as_str()
            .map(|right| format!("{right}-not"));
        let Some(password) = password else {
            undeclared("passwords")
        };
        wrong["password"] = password.clone().into();
        unknown["password"] = password.into();
        unknown["user"] = "nobody-of-that-name".into();
        [wrong, unknown]
    }
}

fn undeclared(ability: &str) -> ! {
    panic!(
        "the gatekeeper has no method for `{ability}`; if there can be none, say `without {ability} = \"why\"`"
    )
}

/// What scenarios ask of a [`Gatekeeper`] beyond letting in and refusing. What is not there is named in the call of
/// [`authenticator!`](crate::authenticator), with the reason.
pub mod abilities {
    /// What it depends on can be out of reach: [`break_down`](crate::Gatekeeper::break_down) and
    /// [`mend`](crate::Gatekeeper::mend).
    pub mod outages {}
    /// What it depends on can stay silent: [`hush`](crate::Gatekeeper::hush) and [`mend`](crate::Gatekeeper::mend).
    pub mod silence {}
    /// Users can be taken out while the server runs: [`take_out`](crate::Gatekeeper::take_out).
    pub mod removal {}
    /// Users may stay for a while: [`short`](crate::Gatekeeper::short).
    pub mod expiry {}
    /// Users may enter some rooms alone: [`confined`](crate::Gatekeeper::confined).
    pub mod rooms {}
    /// Users have roles: [`with_role`](crate::Gatekeeper::with_role).
    pub mod roles {}
    /// Users have passwords, and nobody may learn from the time till the answer who is one:
    /// [`wrong_and_unknown`](crate::Gatekeeper::wrong_and_unknown).
    pub mod passwords {}
}

/// A log-in that lets in.
#[derive(Debug, Clone)]
pub struct Login {
    /// The name that the user then goes by.
    pub user: String,
    /// The fields of the `login` object, less its type.
    pub fields: Value,
}

impl Login {
    /// What lets `user` in.
    #[must_use]
    pub fn new(user: &str, fields: Value) -> Self {
        Self {
            user: user.to_owned(),
            fields,
        }
    }

    /// A name and a password.
    #[must_use]
    pub fn password(user: &str, password: &str) -> Self {
        Self::new(user, json!({"user": user, "password": password}))
    }

    /// A token that says whose it is.
    #[must_use]
    pub fn token(user: &str, token: &str) -> Self {
        Self::new(user, json!({"token": token}))
    }
}

/// Takes the line of `user` out of a file of lines that begin with `user:`.
///
/// # Panics
/// If there is none.
pub fn strike_out(file: &Path, user: &str) {
    let users = fs::read_to_string(file).expect("a readable file");
    let (gone, rest): (Vec<&str>, Vec<&str>) = users
        .split_inclusive('\n')
        .partition(|line| line.split_once(':').is_some_and(|(name, _)| name == user));
    assert!(!gone.is_empty(), "{user} is not in {}", file.display());
    fs::write(file, rest.concat()).expect("a writable file");
}
