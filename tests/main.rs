//! The server from outside: real sockets, the real program, and clients that know the protocol's page alone.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::large_futures,
    clippy::string_slice,
    reason = "a test fails by panicking, and runs once"
)]

mod authtest;
mod battery;
mod bench;
mod browser;
mod certificates;
mod chat;
mod client;
mod clients;
mod configs;
mod faults;
mod gatekeepers;
mod harness;
mod managers;
mod metrics;
mod nginx;
mod order;
mod outage;
mod polling;
mod program;
mod readme;
mod rights;
mod scans;
mod secrets;
mod startup;
mod tcp;
mod tls;
mod web;
mod websocket;
