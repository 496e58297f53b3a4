//! The listening sockets of a configuration: transports that share a bind share one.

use std::net::SocketAddr;

use chinwag_transports::{ListenerConfig, Wire};

/// A transport, as far as its socket is concerned.
#[derive(Clone, Copy)]
pub(crate) struct Listening<'a> {
    pub(crate) name: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) wire: Wire,
    pub(crate) listener: &'a ListenerConfig,
}

/// One listening socket.
pub(crate) struct ListeningSocket<'a> {
    bind: SocketAddr,
    pub(crate) wire: Wire,
    /// Those who share it agree on the number of connections.
    pub(crate) max_connections: usize,
    /// The name of the `[tls.NAME]` that is spoken.
    pub(crate) tls: Option<&'a str>,
    /// Name and kind of each.
    pub(crate) transports: Vec<(&'a str, &'a str)>,
}

/// The sockets of `transports`, in their order. Port 0 is one port for all HTTP kinds that name it at one address, and
/// another for each stream.
pub(crate) fn sockets<'a>(
    transports: impl IntoIterator<Item = Listening<'a>>,
) -> Vec<ListeningSocket<'a>> {
    let mut sockets: Vec<ListeningSocket<'a>> = Vec::new();
    for transport in transports {
        let named = (transport.name, transport.kind);
        let shared = sockets.iter_mut().find(|socket| {
            socket.bind == transport.listener.bind
                && socket.wire == Wire::Http
                && transport.wire == Wire::Http
        });
        match shared {
            Some(socket) => socket.transports.push(named),
            None => sockets.push(ListeningSocket {
                bind: transport.listener.bind,
                wire: transport.wire,
                max_connections: transport.listener.max_connections,
                tls: transport.listener.tls.as_deref(),
                transports: vec![named],
            }),
        }
    }
    sockets
}
