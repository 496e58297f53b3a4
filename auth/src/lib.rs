//! The authenticators that come with chinwag: who may log in, and under which name.
//!
//! Each kind is a configuration type behind a cargo feature of the same name; a program hands it to
//! the server and a table's `kind` picks it. Nothing here knows a transport, a session or a room:
//! credentials come in, a verdict goes out.

#[cfg(feature = "anonymous")]
mod anonymous;
#[cfg(feature = "_callout")]
mod callout;
#[cfg(feature = "certificate")]
mod certificate;
#[cfg(feature = "exec")]
mod exec;
#[cfg(feature = "http")]
mod http;
#[cfg(feature = "jwt")]
mod jwt;
#[cfg(feature = "password")]
pub mod password;
#[cfg(feature = "_watch")]
mod watch;

#[cfg(feature = "anonymous")]
pub use anonymous::Anonymous;
#[cfg(feature = "_contract")]
pub use callout::contract::Headers;
#[cfg(feature = "certificate")]
pub use certificate::{Certificate, NameFrom};
#[cfg(feature = "exec")]
pub use exec::Exec;
#[cfg(feature = "http")]
pub use http::Http;
#[cfg(feature = "jwt")]
pub use jwt::Jwt;
#[cfg(feature = "password")]
pub use password::Password;
