//! TCP: one object a line, for programs in any language and people at a terminal.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chinwag_core::{Framing, Hub, Scope, clock};
use serde::Deserialize;

use crate::{
    Accepted, BindContext, BindError, LocalAddr, ServeError, StreamListener, Transport,
    TransportConfig, Wire, lines,
};

/// `kind = "tcp"`: no keys of its own.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpConfig {}

#[async_trait]
impl TransportConfig for TcpConfig {
    const KIND: &'static str = "tcp";
    const WIRE: Wire = Wire::Stream;

    async fn bind(self, cx: BindContext) -> Result<Box<dyn Transport>, BindError> {
        Ok(Box::new(Tcp {
            listener: cx.stream().await?,
            cx,
        }))
    }
}

struct Tcp {
    listener: StreamListener,
    cx: BindContext,
}

#[async_trait]
impl Transport for Tcp {
    fn local_addr(&self) -> LocalAddr {
        self.listener.local_addr().into()
    }

    async fn serve(self: Box<Self>) -> Result<(), ServeError> {
        let Self { listener, cx } = *self;
        let first_byte = cx.listener.first_byte_timeout.0;
        let (hub, scope) = (cx.hub, cx.scope);
        listener
            .serve(move |accepted| serve(accepted, hub.clone(), Arc::clone(&scope), first_byte))
            .await;
        Ok(())
    }
}

async fn serve(accepted: Accepted, hub: Hub, scope: Arc<Scope>, first_byte: Duration) {
    let Accepted {
        socket,
        early,
        peer,
        permit,
        at,
        ..
    } = accepted;
    // A handshake has been a sign of life.
    let silent_since = if socket.is_encrypted() {
        clock::now()
    } else {
        at
    };
    let overdue = early.is_empty().then(|| silent_since + first_byte);
    let stream = Arc::new(socket);
    let session = hub.connect(&scope, peer, Arc::clone(&stream) as _, Framing::Lines, at);
    lines::run(stream, session, early.to_vec(), overdue).await;
    drop(permit);
}
