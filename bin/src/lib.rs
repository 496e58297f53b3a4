//! chinwag: real-time rooms over TCP, WebSocket and HTTP polling, deployed from one TOML file.
//!
//! This crate reads the file, wires the parts together and runs them. The parts are elsewhere: rooms and sessions in
//! [`core`], front ends in [`transports`], authenticators in [`auth`]; a kind of one's own needs nothing but what is
//! re-exported here.
//!
//! A binary with kinds of its own is one call:
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! fn main() -> ExitCode {
//!     chinwag::run(chinwag::Plugins::builtin())
//! }
//! ```
//!
//! [`Server`] starts the same thing inside another program, or inside a test.

#[cfg(feature = "auth-test")]
mod authtest;
#[cfg(feature = "cert")]
mod cert;
#[cfg(feature = "chat")]
mod chat;
mod cli;
mod config;
#[cfg(feature = "http")]
mod control;
#[cfg(test)]
mod dependencies;
#[cfg(unix)]
mod descriptors;
mod logging;
mod metrics;
mod plugins;
mod server;
#[cfg(any(feature = "auth-test", feature = "chat", feature = "password"))]
mod terminal;
#[cfg(feature = "web")]
mod web;

pub use chinwag_auth as auth;
pub use chinwag_core as core;
pub use chinwag_transports as transports;

pub use cli::run;
pub use config::{ConfigError, Problem, Severity};
pub use plugins::Plugins;
pub use server::{ListenError, Server, StartError};

// Never called by name: its feature keeps trace lines of the WebSocket library, made at each poll, out of releases.
use log as _;
