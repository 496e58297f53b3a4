//! The authenticators and session managers that come with chinwag: who may log in and under which
//! name, and who else has a say in a session.
//!
//! Each kind is a configuration type behind a cargo feature of the same name; a program hands it to
//! the server and a table's `kind` picks it. Nothing here knows a transport, or what sessions and rooms
//! are made of: credentials come in, a verdict goes out; session managers hear of sessions and stays
//! and steer them by what the core gives them.

#[cfg(feature = "anonymous")]
mod anonymous;
#[cfg(feature = "_callout")]
mod callout;
#[cfg(feature = "certificate")]
mod certificate;
#[cfg(feature = "exec")]
mod exec;
#[cfg(any(feature = "_client", feature = "exec", feature = "password"))]
mod fair;
#[cfg(feature = "http")]
mod http;
#[cfg(feature = "jwt")]
mod jwt;
#[cfg(feature = "_contract")]
mod manager;
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
#[cfg(feature = "exec")]
pub use manager::ExecManager;
#[cfg(feature = "http")]
pub use manager::HttpManager;
#[cfg(feature = "_contract")]
pub use manager::Notices;
#[cfg(feature = "password")]
pub use password::Password;
