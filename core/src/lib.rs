//! The transport-agnostic core of chinwag: rooms, sessions, fan-out, limits and the plugin seam.
//!
//! Sockets, TLS, HTTP and files do not exist here. A transport hands in frames and gets bytes to write; everything in
//! between is this crate's business: bytes → frame → command → log → fold → batch → adapter → socket, one way only.

pub mod clock;
pub mod config;
pub mod plugin;
pub mod reaper;

mod account;
mod adapter;
mod bounded;
mod chain;
mod close;
mod control;
mod error;
mod familiar;
mod hub;
mod lane;
mod lifecycle;
mod limit;
mod lock;
mod log;
mod manager;
mod message;
mod names;
mod pull;
mod push;
mod registry;
mod revocation;
mod room;
mod rooms;
#[cfg(test)]
mod scenarios;
mod scope;
mod session;
mod standing;
mod telemetry;
mod throttle;
mod validate;
mod written;

pub use adapter::TryWrite;
pub use chain::{ChainLink, Judgement, Mishap, Shadow, Witness, ask_chain};
pub use close::{CloseReason, LeaveReason};
pub use error::{End, ErrorCode, Refusal};
pub use hub::{ConfigFault, Hub, HubConfig};
pub use lifecycle::Lifecycle;
pub use limit::address_key;
pub use log::{EmbeddedLog, Log};
pub use message::Framing;
pub use pull::{Opened, PullSession, Reply};
pub use push::PushSession;
pub use revocation::{Granted, Revocations};
pub use room::{Proposal, Room};
pub use rooms::RoomPattern;
pub use scope::{Peer, Scope, ScopeConfig, TlsLink};
pub use telemetry::{
    CallOutcome, CalloutMetrics, NoticeMetrics, NoticeOutcome, RefusedReason, Telemetry, TlsExpiry,
    TlsFailure, TlsMetrics, TransportMetrics,
};
pub use validate::BUILTIN_VALIDATORS;
