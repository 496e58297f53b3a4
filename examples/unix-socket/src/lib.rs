//! A transport of chinwag over Unix-domain sockets: one object a line, as over TCP, for programs on the same machine.
//!
//! The socket's file has its permissions before anybody can connect to it. One that a server left behind when it was
//! killed is replaced; one that somebody listens on, or a file that is no socket, is an error. A server that stops takes
//! its file away, unless another has put its own there.

use std::{
    fs, io,
    net::Ipv4Addr,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use chinwag::{
    core::{Peer, plugin::BuildError},
    transports::{
        BindContext, BindError, Listen, ListenerConfig, LocalAddr, ServeError, Shared, Transport,
        TransportConfig, Wire,
    },
};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{UnixListener, UnixStream};
use tracing::{debug, warn};

/// The bytes of the longest path that the system takes for a socket, on all systems that have them.
const LONGEST_PATH: usize = 103;

/// A table of `kind = "unix"`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unix {
    /// Where the socket is; a relative path starts from the folder of the configuration. At most 103 bytes in all.
    path: PathBuf,
    /// The permissions of its file, in octal.
    #[serde(default = "owner_only")]
    mode: String,
    /// Connections that may wait to be accepted. At least 1; the system may have a smaller limit of its own.
    #[serde(default = "backlog")]
    backlog: u16,
    /// The only users of the system that may connect, by number. Empty: all that `mode` lets.
    #[serde(default)]
    uids: Vec<u32>,
}

fn owner_only() -> String {
    "0600".into()
}

fn backlog() -> u16 {
    128
}

impl Unix {
    fn mode(&self) -> Option<u32> {
        let mode = u32::from_str_radix(&self.mode, 8).ok()?;
        (mode <= 0o777).then_some(mode)
    }
}

#[async_trait]
impl TransportConfig for Unix {
    const KIND: &'static str = "unix";
    const WIRE: Wire = Wire::Other;

    fn check(&self, _: &ListenerConfig) -> Result<(), Vec<BuildError>> {
        let mut faults = Vec::new();
        if self.path.as_os_str().is_empty() {
            faults.push(BuildError::key("path", "must name a file"));
        }
        if self.mode().is_none() {
            let message = "must be permissions in octal, from \"0000\" to \"0777\"";
            faults.push(BuildError::key("mode", message));
        }
        if self.backlog == 0 {
            faults.push(BuildError::key("backlog", "must be at least 1"));
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(faults)
        }
    }

    fn is_public(&self) -> bool {
        false
    }

    async fn bind(self, cx: BindContext) -> Result<Box<dyn Transport>, BindError> {
        let path = cx.base.join(&self.path);
        // `check` has refused what is no mode.
        let mode = self.mode().unwrap_or(0o600);
        let bound = listen(&path, mode, self.backlog.into());
        let (listener, file) = bound.map_err(|source| BindError::Address {
            transport: cx.name.clone(),
            address: LocalAddr::Other(path.display().to_string()),
            source,
        })?;
        Ok(Box::new(Local {
            listener: Listener {
                listener,
                uids: self.uids,
                file,
            },
            cx,
        }))
    }
}

/// A socket that listens. Until it does, whoever connects is refused: its file has its permissions by then.
fn listen(path: &Path, mode: u32, backlog: i32) -> io::Result<(UnixListener, OwnFile)> {
    if path.as_os_str().len() > LONGEST_PATH {
        let message = format!("the path of a socket has at most {LONGEST_PATH} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    make_room(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    // From here on it is taken away again, whatever goes wrong.
    let file = OwnFile::new(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    socket.listen(backlog)?;
    let listener = UnixListener::from_std(socket.into())?;
    Ok((listener, file))
}

/// Takes away what a dead server left at `path`, and nothing else.
fn make_room(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    if !found.file_type().is_socket() {
        let message = "there is something that is no socket";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
    }
}

/// The file of a socket of ours, taken away with it.
struct OwnFile {
    path: PathBuf,
    /// Device and number.
    is: (u64, u64),
}

impl OwnFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            is: identity(path)?,
        })
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        // Somebody may have taken it away, or put another there.
        if identity(&self.path).is_ok_and(|is| is == self.is)
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn!(%error, path = %self.path.display(), "The file of a socket stays behind.");
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

/// A bound transport.
struct Local {
    listener: Listener,
    cx: BindContext,
}

#[async_trait]
impl Transport for Local {
    fn local_addr(&self) -> LocalAddr {
        LocalAddr::Other(self.listener.file.path.display().to_string())
    }

    async fn serve(self: Box<Self>) -> Result<(), ServeError> {
        let Self { listener, cx } = *self;
        let session = Arc::new(cx.clone());
        cx.serve_own(listener, move |arrival| {
            let session = Arc::clone(&session);
            async move { session.serve_lines(arrival.map(Shared::new)).await }
        })
        .await;
        Ok(())
    }
}

struct Listener {
    listener: UnixListener,
    uids: Vec<u32>,
    file: OwnFile,
}

#[async_trait]
impl Listen for Listener {
    type Stream = UnixStream;

    async fn accept(&mut self) -> io::Result<(UnixStream, Peer)> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            if self.uids.is_empty() || self.lets_in(&stream) {
                // All are on this machine: no address tells one from another, and none is counted by it.
                return Ok((stream, Peer::new(Ipv4Addr::LOCALHOST.into(), true)));
            }
        }
    }
}

impl Listener {
    /// Whether the process at the other end may come in, as the system knows its user.
    fn lets_in(&self, stream: &UnixStream) -> bool {
        let uid = stream.peer_cred().map(|credentials| credentials.uid());
        let lets_in = uid.as_ref().is_ok_and(|uid| self.uids.contains(uid));
        if !lets_in {
            debug!(?uid, path = %self.file.path.display(), "A user of the system was turned away.");
        }
        lets_in
    }
}
