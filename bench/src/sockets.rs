//! What the kernel holds for the server's side of some connections, as `ss` of iproute2 tells.
//!
//! A reader that stalls fills the server's send buffer before anything grows in the server's own memory, so that its
//! resident memory alone would tell half of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io,
    net::{IpAddr, SocketAddr},
    process::{Command, Stdio},
};

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// Whether the server still has it open, as opposed to having closed it with data left to send.
    pub open: bool,
    /// Bytes that the kernel holds for it: read and not taken, written and not acknowledged, and set aside.
    pub bytes: u64,
}

/// Looks at the server's ends of the connections from `clients` to `server`, by the client's port. One that is not
/// in the answer is gone.
///
/// # Errors
/// If there is no `ss`, or it fails.
pub fn server_ends(server: SocketAddr, clients: &BTreeSet<u16>) -> io::Result<BTreeMap<u16, End>> {
    let mut filter = format!("sport = :{} and ( ", server.port());
    for (at, port) in clients.iter().enumerate() {
        let or = if at == 0 { "" } else { " or " };
        write!(filter, "{or}dport = :{port}").expect("writing to a string can't fail");
    }
    filter.push_str(" )");
    let output = Command::new("ss")
        .args(["-tnmHaO", &filter])
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("ss failed: {}", said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(end)
        .filter(|(port, _)| clients.contains(port))
        .collect())
}

/// The process of this machine that accepts connections to `addr`, where the system tells: one that listens on this
/// address, else one that listens on all.
#[must_use]
pub fn listener(addr: SocketAddr) -> Option<u32> {
    let output = Command::new("ss")
        .args(["-tlnpHO", &format!("sport = :{}", addr.port())])
        .stdin(Stdio::null())
        .output()
        .ok()?;
    who_listens(addr.ip(), &String::from_utf8_lossy(&output.stdout))
}

/// Reads lines such as `LISTEN 0 1024 127.0.0.1:4020 0.0.0.0:* users:(("chinwag",pid=7,fd=9))`.
fn who_listens(ip: IpAddr, lines: &str) -> Option<u32> {
    let listens = |line: &str| -> Option<(bool, u32)> {
        let local = line.split_whitespace().nth(3)?;
        let (host, _) = local.rsplit_once(':')?;
        // Behind a % stands an interface.
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let host = host.split('%').next()?;
        let exact = host.parse() == Ok(ip);
        let all = match ip {
            IpAddr::V4(_) => matches!(host, "0.0.0.0" | "*"),
            IpAddr::V6(_) => matches!(host, "::" | "*"),
        };
        let (_, rest) = line.split_once("pid=")?;
        let digits = rest.split(|character: char| !character.is_ascii_digit());
        let pid = digits.into_iter().next()?.parse().ok()?;
        (exact || all).then_some((exact, pid))
    };
    let found: Vec<(bool, u32)> = lines.lines().filter_map(listens).collect();
    let exact = found.iter().find(|(exact, _)| *exact);
    exact.or_else(|| found.first()).map(|(_, pid)| *pid)
}

/// Reads a line such as `ESTAB 0 0 127.0.0.1:4020 127.0.0.1:5555 skmem:(r0,rb131072,t0,tb46080,f0,w0,o0,bl0,d0)`.
fn end(line: &str) -> Option<(u16, End)> {
    let mut words = line.split_whitespace();
    let state = words.next()?;
    let peer = words.nth(3)?;
    let port = peer.rsplit(':').next()?.parse().ok()?;
    let memory = line.split_once("skmem:(")?.1.split_once(')')?.0;
    let field = |name: &str| {
        memory
            .split(',')
            .find_map(|field| field.strip_prefix(name)?.parse::<u64>().ok())
            .unwrap_or(0)
    };
    // "rb" and "tb" are bounds and do not parse as "r" and "t" with a number.
    let end = End {
        open: state == "ESTAB",
        bytes: field("r") + field("w") + field("f"),
    };
    Some((port, end))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_line_of_ss_is_read() {
        let line = "ESTAB 0 12 127.0.0.1:4020 127.0.0.1:5555 skmem:(r1,rb131072,t7,tb46080,f20,w300,o0,bl0,d0)";
        let open = End {
            open: true,
            bytes: 321,
        };
        assert_eq!(end(line), Some((5555, open)));
        let closed = line.replace("ESTAB", "FIN-WAIT-1");
        assert!(!end(&closed).unwrap().1.open);
        assert_eq!(end("ESTAB 0 0 a b"), None);
    }

    #[test]
    fn who_listens_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        assert_eq!(super::listener(addr), Some(std::process::id()));
        // Nobody else listens on that port now, whatever the address.
        let other = SocketAddr::from(([127, 0, 0, 2], addr.port()));
        assert_eq!(super::listener(other), None);
        drop(listener);
        assert_eq!(super::listener(addr), None);
    }

    #[test]
    fn who_listens_elsewhere_is_passed_over_and_the_exact_address_comes_first() {
        let line = |local: &str, pid: u32| {
            format!("LISTEN 0 128 {local}:4020 0.0.0.0:* users:((\"x\",pid={pid},fd=3))\n")
        };
        let lines = [
            line("127.0.0.2", 2),
            line("0.0.0.0", 4),
            line("127.0.0.1%lo", 5),
            line("[::1]", 6),
            line("*", 7),
        ]
        .concat();
        let found = |ip: &str| who_listens(ip.parse().unwrap(), &lines);
        assert_eq!(found("127.0.0.1"), Some(5));
        assert_eq!(found("127.0.0.2"), Some(2));
        assert_eq!(found("127.0.0.3"), Some(4));
        assert_eq!(found("::1"), Some(6));
        assert_eq!(found("::2"), Some(7));
        assert_eq!(
            who_listens([127, 0, 0, 3].into(), &line("127.0.0.1", 1)),
            None
        );
        assert_eq!(
            who_listens([127, 0, 0, 1].into(), "LISTEN 0 128 127.0.0.1:1 0.0.0.0:*"),
            None
        );
    }

    #[test]
    fn the_servers_end_of_a_connection_is_found_and_told_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let client = TcpStream::connect(addr).unwrap();
        let (server, _) = listener.accept().unwrap();
        let port = client.local_addr().unwrap().port();
        let ends = server_ends(addr, &BTreeSet::from([port])).unwrap();
        assert!(ends[&port].open);
        drop(server);
        let ends = server_ends(addr, &BTreeSet::from([port])).unwrap();
        assert!(ends.get(&port).is_none_or(|end| !end.open));
    }
}
