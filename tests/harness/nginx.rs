//! A real nginx with the configuration of `configs/nginx.conf`, and addresses to come from.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
};

use tempfile::TempDir;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket},
    process::{Child, Command},
    task::JoinSet,
    time::timeout,
};

use super::{PATIENCE, Program, eventually};

/// How often other ports are tried where somebody else was quicker to take one.
const ATTEMPTS: usize = 5;

/// An nginx in front of a program.
///
/// The sample is used as it stands but for ports, paths and certificates. Beside each listener with TLS there is one
/// without, since the clients of these tests speak none.
pub(crate) struct Nginx {
    child: Child,
    folder: TempDir,
    ports: Ports,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    redirect: SocketAddr,
    web: SocketAddr,
    web_tls: SocketAddr,
    line: SocketAddr,
    line_tls: SocketAddr,
}

impl Nginx {
    /// Starts it in front of `server`.
    pub(crate) async fn before(server: &Program) -> Self {
        Self::before_with(server, &[]).await
    }

    /// The same with pieces of the sample replaced, each of which must be there.
    pub(crate) async fn before_with(server: &Program, changes: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        // Its workers may be another user's.
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(folder.path(), open).expect("it is ours");
        make_certificate(folder.path()).await;
        for _ in 0..ATTEMPTS {
            let ports = free_ports().await;
            let document = configuration(folder.path(), &ports, server, changes);
            std::fs::write(folder.path().join("nginx.conf"), document).expect("a writable folder");
            if let Some(child) = launch(folder.path()).await {
                return Self {
                    child,
                    folder,
                    ports,
                };
            }
        }
        panic!("no free ports in {ATTEMPTS} attempts")
    }

    /// WebSocket, polling and the page, without TLS.
    pub(crate) fn web(&self) -> SocketAddr {
        self.ports.web
    }

    /// The same with TLS.
    pub(crate) fn web_tls(&self) -> SocketAddr {
        self.ports.web_tls
    }

    /// Lines, without TLS.
    pub(crate) fn line(&self) -> SocketAddr {
        self.ports.line
    }

    /// The same with TLS.
    pub(crate) fn line_tls(&self) -> SocketAddr {
        self.ports.line_tls
    }

    /// Plain HTTP, for those who have typed no scheme.
    pub(crate) fn redirect(&self) -> SocketAddr {
        self.ports.redirect
    }

    /// The certificate, which signs itself.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.folder.path().join("chat.pem")
    }

    /// Has it read its configuration anew, and waits until its workers are new ones.
    pub(crate) async fn reload(&self) {
        let old = self.workers();
        assert!(!old.is_empty(), "it has workers");
        let status = command(self.folder.path()).args(["-s", "reload"]).status();
        assert!(status.await.expect("nginx is installed").success());
        eventually("new workers", async || {
            (!self.workers().is_subset(&old)).then_some(())
        })
        .await;
    }

    /// Ends it, as a restart of the machine would.
    pub(crate) async fn stop(&mut self) {
        let status = command(self.folder.path()).args(["-s", "stop"]).status();
        assert!(status.await.expect("nginx is installed").success());
        let ended = timeout(PATIENCE, self.child.wait()).await;
        assert!(ended.expect("it ends").expect("it is our child").success());
    }

    /// Starts it again where it was.
    pub(crate) async fn start_again(&mut self) {
        self.child = launch(self.folder.path())
            .await
            .unwrap_or_else(|| panic!("somebody else has taken one of {:?}", self.ports));
    }

    /// The processes of its workers.
    fn workers(&self) -> BTreeSet<u32> {
        let pid = self.child.id().expect("it runs");
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.expect("it runs");
        children
            .split_whitespace()
            .map(|pid| pid.parse().expect("a number"))
            .collect()
    }
}

impl Drop for Nginx {
    /// Asks it to end: workers whose master is killed would stay.
    fn drop(&mut self) {
        if let Some(pid) = self.child.id() {
            let kill = std::process::Command::new("kill")
                .arg(pid.to_string())
                .status();
            kill.expect("kill is installed");
        }
    }
}

fn command(folder: &Path) -> Command {
    let mut command = Command::new("nginx");
    command.arg("-p").arg(folder).arg("-c");
    command.arg(folder.join("nginx.conf"));
    command.arg("-e").arg(folder.join("error.log"));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// Runs it until its sockets are bound; `None` where an address was taken.
async fn launch(folder: &Path) -> Option<Child> {
    let pid = folder.join("nginx.pid");
    let log = folder.join("error.log");
    std::fs::remove_file(&pid).ok();
    let mut start = command(folder);
    let start = start.args(["-g", "daemon off;"]).stderr(Stdio::null());
    let mut child = start.spawn().expect("nginx is installed");
    let mut ended = None;
    eventually("nginx to start", async || {
        ended = child.try_wait().expect("it is our child");
        // It is written once the addresses are taken.
        let ready = std::fs::read_to_string(&pid).is_ok_and(|pid| !pid.trim().is_empty());
        (ready || ended.is_some()).then_some(())
    })
    .await;
    let Some(status) = ended else {
        return Some(child);
    };
    let said = std::fs::read_to_string(&log).unwrap_or_default();
    assert!(
        said.contains("Address already in use"),
        "nginx ended with {status}:\n{said}"
    );
    None
}

/// The sample for these ports and this folder.
fn configuration(
    folder: &Path,
    ports: &Ports,
    server: &Program,
    changes: &[(&str, &str)],
) -> String {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/nginx.conf");
    let mut document = std::fs::read_to_string(sample).expect("the sample is there");
    let at = |name: &str| folder.join(name).display().to_string();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|what| format!("{what}_temp_path {};\n", at(what)))
        .collect();
    let Ports {
        redirect,
        web,
        web_tls,
        line,
        line_tls,
    } = ports;
    let adapted = [
        ("pid /run/nginx.pid;", format!("pid {};", at("nginx.pid"))),
        (
            "error_log /var/log/nginx/error.log;",
            format!("error_log {};", at("error.log")),
        ),
        ("http {", format!("http {{\n{temporary}")),
        ("/etc/ssl/private/chat.example.org.pem;", at("chat.pem;")),
        ("/etc/ssl/private/chat.example.org.key;", at("chat.key;")),
        ("listen 80;", format!("listen {redirect};")),
        (
            "listen 443 ssl;",
            format!("listen {web_tls} ssl; listen {web};"),
        ),
        (
            "listen 4021 ssl so_keepalive=on;",
            format!("listen {line_tls} ssl so_keepalive=on; listen {line} so_keepalive=on;"),
        ),
        (
            "server 127.0.0.1:8080;",
            format!("server {};", server.table("web")),
        ),
        (
            "proxy_pass 127.0.0.1:4020;",
            format!("proxy_pass {};", server.table("line")),
        ),
    ];
    let adapted = adapted.iter().map(|(from, to)| (*from, to.as_str()));
    for (from, to) in adapted.chain(changes.iter().copied()) {
        assert!(
            document.contains(from),
            "configs/nginx.conf has no {from:?}"
        );
        document = document.replace(from, to);
    }
    document
}

/// Ports that nobody uses at the moment: nginx can't be asked to choose.
async fn free_ports() -> Ports {
    let mut held = Vec::new();
    let mut port = async || {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("it is bound");
        held.push(listener);
        addr
    };
    Ports {
        redirect: port().await,
        web: port().await,
        web_tls: port().await,
        line: port().await,
        line_tls: port().await,
    }
}

async fn make_certificate(folder: &Path) {
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt"]);
    openssl.args(["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]);
    openssl.args(["-subj", "/CN=chat.example.org", "-addext"]);
    openssl.arg("subjectAltName=DNS:chat.example.org");
    openssl.arg("-keyout").arg(folder.join("chat.key"));
    openssl.arg("-out").arg(folder.join("chat.pem"));
    let output = openssl.output().await.expect("openssl is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

/// An address of this machine's to come from: what connects to it arrives at its target from there.
pub(crate) struct Via {
    addr: SocketAddr,
    _work: JoinSet<()>,
}

impl Via {
    /// Connections to `target` from `source`.
    pub(crate) async fn new(source: &str, target: SocketAddr) -> Self {
        let source: IpAddr = source.parse().expect("an address");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("it is bound");
        let mut work = JoinSet::new();
        work.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                connections.spawn(async move {
                    let socket = TcpSocket::new_v4().expect("a socket");
                    socket
                        .bind((source, 0).into())
                        .expect("all of 127.0.0.0/8 is this machine");
                    if let Ok(mut server) = socket.connect(target).await {
                        // Either end may close first, and how is not for this to judge.
                        copy_bidirectional(&mut client, &mut server).await.ok();
                    }
                });
            }
        });
        Self { addr, _work: work }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }
}
