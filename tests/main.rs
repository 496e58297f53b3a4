//! The server from outside: real sockets, the real program, and clients that know the protocol's page alone.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::large_futures,
    clippy::string_slice,
    reason = "a test fails by panicking, and runs once"
)]

mod battery;
mod bench;
mod browser;
mod chat;
mod client;
mod clients;
mod configs;
mod faults;
mod harness;
mod metrics;
mod nginx;
mod order;
mod polling;
mod program;
mod readme;
mod startup;
mod tcp;
mod web;
mod websocket;
