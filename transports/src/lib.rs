//! The front ends: TCP lines, WebSocket and HTTP polling, and what they share: listeners, the accept loop, client
//! addresses and the direct writer. Rooms and authenticators are not known here.

mod accept;
mod address;
mod config;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "http")]
pub mod origin;
mod plugin;
#[cfg(feature = "http-polling")]
mod polling;
mod proxy;
#[cfg(any(feature = "tcp", feature = "websocket"))]
mod socket;
#[cfg(feature = "tcp")]
mod tcp;
pub mod tls;
#[cfg(feature = "websocket")]
mod websocket;

#[cfg(feature = "http")]
pub use crate::http::{HttpListener, HttpPeer, HttpRoute};
#[cfg(feature = "http")]
pub use crate::origin::Origins;
pub use accept::{Accepted, Permit, StreamListener};
pub use config::{ClientAddress, ListenerConfig};
pub use plugin::{BindContext, BindError, Listeners, ServeError, Transport, TransportConfig, Wire};
#[cfg(feature = "http-polling")]
pub use polling::{IdPlace, PollingConfig};
#[cfg(feature = "tcp")]
pub use tcp::TcpConfig;
#[cfg(feature = "websocket")]
pub use websocket::WebSocketConfig;
