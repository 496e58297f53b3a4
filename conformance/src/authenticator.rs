//! What the scenarios have to know of an authenticator.

use std::path::Path;

use async_trait::async_trait;
use chinwag::Plugins;
use serde_json::Value;

/// An authenticator, as the scenarios see it: its table, and who gets in with what.
///
/// Each scenario starts servers of its own that ask it on all three transports.
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
///             Login::new("alice", json!({"user": "alice", "password": "wonderland"})),
///             Login::new("bob", json!({"user": "bob", "password": "builder"})),
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
///     chinwag_conformance::authenticator!(Staff);
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

    /// Makes what it depends on unreachable, until [`mend`](Self::mend). `false`: it depends on nobody.
    async fn break_down(&self, _folder: &Path) -> bool {
        false
    }

    /// Ends the outage.
    async fn mend(&self, _folder: &Path) {}

    /// Takes a user out of what the authenticator knows: sessions end and it may not come again. `false`: that can't
    /// be done while a server runs.
    async fn take_out(&self, _folder: &Path, _login: &Login) -> bool {
        false
    }
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
}
