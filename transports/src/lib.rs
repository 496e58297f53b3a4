//! The front ends: TCP lines, WebSocket and HTTP polling, and what they share: listeners, the accept loop, TLS, client
//! addresses and the direct writer. Rooms and authenticators are not known here.

mod accept;
mod address;
mod config;
mod duplex;
#[cfg(feature = "http")]
pub mod http;
mod lines;
#[cfg(feature = "http")]
pub mod origin;
mod own;
mod plugin;
#[cfg(feature = "http-polling")]
mod polling;
mod proxy;
#[cfg(feature = "websocket")]
mod socket;
mod stream;
#[cfg(feature = "tcp")]
mod tcp;
#[cfg(test)]
#[cfg(all(feature = "tcp", feature = "websocket", feature = "http-polling"))]
mod tests;
pub mod tls;
#[cfg(feature = "websocket")]
mod websocket;

#[cfg(feature = "http")]
pub use crate::http::{HttpListener, HttpPeer, HttpRoute};
#[cfg(feature = "http")]
pub use crate::origin::Origins;
pub use accept::{Accepted, Permit, StreamListener};
pub use config::{ClientAddress, ListenerConfig};
pub use duplex::{Duplex, Shared};
pub use own::{Incoming, Listen, LocalAddr};
pub use plugin::{BindContext, BindError, Listeners, ServeError, Transport, TransportConfig, Wire};
#[cfg(feature = "http-polling")]
pub use polling::{IdPlace, PollingConfig};
pub use stream::Stream;
#[cfg(feature = "tcp")]
pub use tcp::TcpConfig;
pub use tls::{Alpn, ClientCert, Tls, TlsConfig, TlsContext};
#[cfg(feature = "websocket")]
pub use websocket::WebSocketConfig;
