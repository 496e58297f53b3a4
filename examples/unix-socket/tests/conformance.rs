//! The transport keeps what the server promises: the conformance kit's scenarios over it, and over mixes of it with the
//! transports that chinwag has.

use std::io;

use async_trait::async_trait;
use chinwag::Plugins;
use chinwag_conformance::{FrontEnd, Kit, Link, Place};
use tokio::net::UnixStream;
use unix_socket::Unix;

#[derive(Debug)]
struct OverUnix;

#[async_trait]
impl FrontEnd for OverUnix {
    fn name(&self) -> &str {
        "local"
    }

    fn keys(&self) -> String {
        "kind = \"unix\"\npath = \"chinwag.sock\"".into()
    }

    fn plugins(&self, plugins: Plugins) -> Plugins {
        plugins.transport::<Unix>()
    }

    async fn connect(&self, server: &Place<'_>) -> io::Result<Link> {
        let path = server.folder.join("chinwag.sock");
        Ok(Link::lines(UnixStream::connect(path).await?))
    }
}

chinwag_conformance::transport!(Kit::of(OverUnix));
