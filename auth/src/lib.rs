//! The authenticators that come with chinwag: who may log in, and under which name.
//!
//! Each kind is a configuration type behind a cargo feature of the same name; a program hands it to
//! the server and a table's `kind` picks it. Nothing here knows a transport, a session or a room:
//! credentials come in, a verdict goes out.

#[cfg(feature = "anonymous")]
mod anonymous;
#[cfg(feature = "password")]
pub mod password;

#[cfg(feature = "anonymous")]
pub use anonymous::Anonymous;
#[cfg(feature = "password")]
pub use password::Password;
