//! The PROXY protocol, versions 1 and 2: what a trusted proxy says before the client's first byte.
//!
//! Framing is done here, since a header has to be whole before it is judged and may have no more than
//! [`LONGEST`] bytes; what it says is read by `ppp`. Nothing after the header is lost: bytes read beyond it are
//! handed on.

use std::net::IpAddr;

use bytes::{Bytes, BytesMut};
use chinwag_core::clock::Instant;
use ppp::{v1, v2};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::timeout_at,
};

/// The longest line of version 1, its CR LF included.
const LONGEST_LINE: usize = 107;
/// The head of version 2: signature, command, family and length.
const BINARY_HEAD: usize = 16;
/// The most that may follow the head of version 2: addresses and extensions.
const LONGEST_BODY: usize = 536;
/// The most bytes of any header.
pub(crate) const LONGEST: usize = BINARY_HEAD + LONGEST_BODY;

const TEXT_SIGNATURE: &[u8] = b"PROXY ";
const BINARY_SIGNATURE: &[u8] = v2::PROTOCOL_PREFIX;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opening {
    /// Too few bytes to tell.
    Incomplete,
    /// A whole header.
    Header {
        /// Its bytes.
        length: usize,
        /// The client, where the header names one: a proxy's own health check does not.
        client: Option<IpAddr>,
    },
    /// Begins like a header and is none.
    Invalid,
    /// Something else.
    Other,
}

/// Why a connection is closed before its first byte was heard.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProxyError {
    /// A proxy sent no header, or one that can't be read.
    #[error("the proxy sent no valid PROXY header")]
    Missing,
    /// Somebody who is no proxy sent a header.
    #[error("a PROXY header came from a peer that is none of the configured proxies")]
    Stranger,
    /// Nothing came in time.
    #[error("no PROXY header came in time")]
    Late,
    /// The peer has gone.
    #[error("the peer closed the connection before it sent anything")]
    Gone,
}

/// What was read before the client's first byte.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Read {
    /// The client that a proxy named.
    pub(crate) client: Option<IpAddr>,
    /// Bytes that follow the header and were read with it: at most [`LONGEST`].
    pub(crate) early: Bytes,
}

/// Reads the header that a trusted peer has to send, and refuses one from any other.
///
/// A peer that is not trusted is listened to until its first bytes show that they are no header: both versions begin
/// with bytes that no client of ours begins with. They are handed on.
///
/// # Errors
/// The connection has to be closed without an answer.
pub(crate) async fn read(
    socket: &mut (impl AsyncRead + Unpin),
    trusted: bool,
    deadline: Instant,
) -> Result<Read, ProxyError> {
    let mut bytes = BytesMut::with_capacity(LONGEST);
    loop {
        match (parse(&bytes), trusted) {
            (Opening::Header { length, client }, true) => {
                return Ok(Read {
                    client,
                    early: bytes.split_off(length).freeze(),
                });
            }
            (Opening::Other, false) => {
                return Ok(Read {
                    client: None,
                    early: bytes.freeze(),
                });
            }
            (Opening::Header { .. } | Opening::Invalid, false) => return Err(ProxyError::Stranger),
            (Opening::Invalid | Opening::Other, true) => return Err(ProxyError::Missing),
            (Opening::Incomplete, _) => (),
        }
        let mut room = (&mut *socket).take((LONGEST - bytes.len()) as u64);
        match timeout_at(deadline, room.read_buf(&mut bytes)).await {
            Ok(Ok(1..)) => (),
            Ok(Ok(0) | Err(_)) if bytes.is_empty() => return Err(ProxyError::Gone),
            Err(_elapsed) if bytes.is_empty() => return Err(ProxyError::Late),
            // A stranger who sent a few bytes that a header could begin with, and then no more, is judged by what
            // reads them.
            _ if !trusted => {
                return Ok(Read {
                    client: None,
                    early: bytes.freeze(),
                });
            }
            Ok(_) => return Err(ProxyError::Missing),
            Err(_elapsed) => return Err(ProxyError::Late),
        }
    }
}

fn parse(bytes: &[u8]) -> Opening {
    if bytes.starts_with(TEXT_SIGNATURE) {
        parse_line(bytes)
    } else if bytes.starts_with(BINARY_SIGNATURE) {
        parse_binary(bytes)
    } else if TEXT_SIGNATURE.starts_with(bytes) || BINARY_SIGNATURE.starts_with(bytes) {
        Opening::Incomplete
    } else {
        Opening::Other
    }
}

fn parse_line(bytes: &[u8]) -> Opening {
    // `ppp` takes half an address for a wrong one, so the line is judged when it is whole.
    let longest = bytes.get(..LONGEST_LINE).unwrap_or(bytes);
    let Some(end) = longest.iter().position(|&byte| byte == b'\n') else {
        return if bytes.len() < LONGEST_LINE {
            Opening::Incomplete
        } else {
            Opening::Invalid
        };
    };
    let length = end + 1;
    let Ok(header) = v1::Header::try_from(&bytes[..length]) else {
        return Opening::Invalid;
    };
    if header.header.len() != length {
        return Opening::Invalid;
    }
    let client = match header.addresses {
        v1::Addresses::Tcp4(addresses) => Some(addresses.source_address.into()),
        v1::Addresses::Tcp6(addresses) => Some(addresses.source_address.into()),
        v1::Addresses::Unknown => None,
    };
    Opening::Header { length, client }
}

fn parse_binary(bytes: &[u8]) -> Opening {
    let Some(head) = bytes.get(..BINARY_HEAD) else {
        return Opening::Incomplete;
    };
    let body = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if body > LONGEST_BODY {
        return Opening::Invalid;
    }
    let length = BINARY_HEAD + body;
    let Some(whole) = bytes.get(..length) else {
        return Opening::Incomplete;
    };
    let Ok(header) = v2::Header::try_from(whole) else {
        return Opening::Invalid;
    };
    let client = match (header.command, header.addresses) {
        // The proxy speaks for itself, say to see whether we are alive.
        (v2::Command::Local, _) => None,
        (v2::Command::Proxy, v2::Addresses::IPv4(addresses)) => {
            Some(addresses.source_address.into())
        }
        (v2::Command::Proxy, v2::Addresses::IPv6(addresses)) => {
            Some(addresses.source_address.into())
        }
        (v2::Command::Proxy, v2::Addresses::Unspecified | v2::Addresses::Unix(_)) => None,
    };
    Opening::Header { length, client }
}

#[cfg(test)]
mod tests {
    use std::{net::Ipv4Addr, time::Duration};

    use chinwag_core::clock;
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));
    const LINE: &[u8] = b"PROXY TCP4 203.0.113.7 192.0.2.1 56324 443\r\n";

    fn binary(version_command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap();
        [
            BINARY_SIGNATURE,
            &[version_command, family],
            &length.to_be_bytes(),
            body,
        ]
        .concat()
    }

    fn binary_v4() -> Vec<u8> {
        binary(
            0x21,
            0x11,
            &[203, 0, 113, 7, 192, 0, 2, 1, 0xdc, 0x04, 0x01, 0xbb],
        )
    }

    #[test]
    fn both_versions_name_the_client() {
        let v6 = [
            &"2001:db8::7"
                .parse::<std::net::Ipv6Addr>()
                .unwrap()
                .octets()[..],
            &[0; 16],
            &[0xdc, 0x04, 0x01, 0xbb],
        ]
        .concat();
        let with_extension = [
            &binary_v4()[16..],
            // An extension of a kind that nobody knows.
            &[0xee, 0, 3, 1, 2, 3],
        ]
        .concat();
        for (header, client) in [
            (LINE.to_vec(), Some("203.0.113.7")),
            (
                b"PROXY TCP6 2001:db8::7 2001:db8::1 56324 443\r\n".to_vec(),
                Some("2001:db8::7"),
            ),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN what ever\r\n".to_vec(), None),
            (binary_v4(), Some("203.0.113.7")),
            (binary(0x21, 0x21, &v6), Some("2001:db8::7")),
            (binary(0x21, 0x11, &with_extension), Some("203.0.113.7")),
            (binary(0x21, 0x00, &[]), None),
            (binary(0x21, 0x31, &[0; 216]), None),
            (binary(0x20, 0x11, &binary_v4()[16..]), None),
            (binary(0x20, 0x00, &[]), None),
        ] {
            let opening = Opening::Header {
                length: header.len(),
                client: client.map(|client| client.parse().unwrap()),
            };
            assert_eq!(parse(&header), opening, "{header:?}");
            for cut in 0..header.len() {
                assert_eq!(
                    parse(&header[..cut]),
                    Opening::Incomplete,
                    "{header:?} at {cut}"
                );
            }
            let followed = [&header, &b"{}\n"[..]].concat();
            assert_eq!(parse(&followed), opening, "{header:?}, and more");
        }
    }

    #[test]
    fn what_only_begins_like_a_header_is_invalid() {
        for bytes in [
            &b"PROXY TCP4 203.0.113.7 192.0.2.1 56324\r\n"[..],
            b"PROXY TCP4 203.0.113.7 192.0.2.1 56324 443\n",
            b"PROXY TCP4 203.0.113.777 192.0.2.1 56324 443\r\n",
            b"PROXY TCP4 2001:db8::7 2001:db8::1 56324 443\r\n",
            b"PROXY UDP4 203.0.113.7 192.0.2.1 56324 443\r\n",
            b"PROXY TCP4 203.0.113.7 192.0.2.1 56324 70000\r\n",
            b"PROXY \xff\xfe\r\n",
            b"PROXY \r\n",
        ] {
            assert_eq!(parse(bytes), Opening::Invalid, "{}", bytes.escape_ascii());
        }
        let endless = [TEXT_SIGNATURE, &[b'1'; LONGEST_LINE]].concat();
        assert_eq!(parse(&endless), Opening::Invalid);
        assert_eq!(parse(&endless[..LONGEST_LINE - 1]), Opening::Incomplete);
        for header in [
            binary(0x31, 0x11, &[0; 12]),
            binary(0x22, 0x11, &[0; 12]),
            binary(0x21, 0x41, &[0; 12]),
            binary(0x21, 0x11, &[0; 11]),
            binary(0x21, 0x00, &[0; LONGEST_BODY + 1]),
        ] {
            assert_eq!(parse(&header), Opening::Invalid, "{header:?}");
        }
        // The length alone is enough to refuse it: nothing waits for 64 KiB.
        let long = binary(0x21, 0x00, &[0; LONGEST_BODY + 1]);
        assert_eq!(parse(&long[..BINARY_HEAD]), Opening::Invalid);
        let longest = binary(0x21, 0x00, &[0; LONGEST_BODY]);
        assert!(matches!(
            parse(&longest),
            Opening::Header {
                length: LONGEST,
                ..
            }
        ));
    }

    #[test]
    fn what_clients_say_first_is_no_header() {
        for bytes in [
            &b"{\"type\":\"login\"}\n"[..],
            b"GET / HTTP/1.1\r\n",
            b"POST /",
            b"PROPFIND / HTTP/1.1\r\n",
            b"\r\n{}",
            b"\x16\x03\x01",
            b"proxy TCP4",
        ] {
            assert_eq!(parse(bytes), Opening::Other, "{}", bytes.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic_or_claim_more_than_it_has(
            start in prop_oneof![Just(&b""[..]), Just(TEXT_SIGNATURE), Just(BINARY_SIGNATURE), Just(&b"PROXY TCP4 "[..])],
            rest in proptest::collection::vec(any::<u8>(), 0..700),
        ) {
            let bytes = [start, &rest].concat();
            let whole = parse(&bytes);
            if let Opening::Header { length, .. } = whole {
                prop_assert!(length <= bytes.len().min(LONGEST));
            }
            // A verdict does not change as more comes in.
            for cut in 0..bytes.len() {
                let earlier = parse(&bytes[..cut]);
                prop_assert!(earlier == Opening::Incomplete || earlier == whole, "at {cut}: {earlier:?}, then {whole:?}");
            }
            if bytes.len() >= LONGEST {
                prop_assert_ne!(whole, Opening::Incomplete);
            }
        }

        #[test]
        fn a_header_is_read_however_it_is_cut(
            line in any::<bool>(),
            client in any::<Ipv4Addr>(),
            cuts in proptest::collection::vec(0_usize..80, 0..6),
            tail in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut sent = if line {
                format!("PROXY TCP4 {client} 192.0.2.1 1 2\r\n").into_bytes()
            } else {
                binary(0x21, 0x11, &[&client.octets()[..], &[192, 0, 2, 1, 0, 1, 0, 2]].concat())
            };
            let header = sent.len();
            sent.extend_from_slice(&tail);
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut % (sent.len() + 1)).collect();
            cuts.extend([0, sent.len()]);
            cuts.sort_unstable();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            let (read, rest) = runtime.block_on(async {
                let (mut near, mut far) = tokio::io::duplex(4096);
                let writer = async {
                    for pair in cuts.windows(2) {
                        far.write_all(&sent[pair[0]..pair[1]]).await.unwrap();
                        tokio::task::yield_now().await;
                    }
                    drop(far);
                };
                let reader = async {
                    let read = read(&mut near, true, clock::now() + Duration::from_secs(1)).await.unwrap();
                    let mut rest = read.early.to_vec();
                    near.read_to_end(&mut rest).await.unwrap();
                    (read, rest)
                };
                tokio::join!(reader, writer).0
            });
            prop_assert_eq!(read.client, Some(client.into()));
            prop_assert_eq!(&rest[..], &sent[header..]);
        }
    }

    async fn read_all(sent: &[u8], trusted: bool) -> Result<Read, ProxyError> {
        let (mut near, mut far) = tokio::io::duplex(4096);
        far.write_all(sent).await.unwrap();
        read(&mut near, trusted, clock::now() + Duration::from_secs(10)).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_has_to_send_a_header_and_others_may_not() {
        let with_tail = [LINE, b"{}\n"].concat();
        let read = read_all(&with_tail, true).await.unwrap();
        assert_eq!(read.client, Some(CLIENT));
        assert_eq!(read.early, "{}\n");
        assert_eq!(read_all(b"{}\n", true).await, Err(ProxyError::Missing));
        assert_eq!(read_all(LINE, false).await, Err(ProxyError::Stranger));
        assert_eq!(
            read_all(&binary_v4(), false).await,
            Err(ProxyError::Stranger)
        );
        let read = read_all(b"{}\n", false).await.unwrap();
        assert_eq!((read.client, &read.early[..]), (None, &b"{}\n"[..]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_has_a_deadline() {
        let begun = clock::now();
        let (mut near, mut far) = tokio::io::duplex(64);
        far.write_all(b"PROXY TC").await.unwrap();
        let deadline = begun + Duration::from_secs(10);
        assert_eq!(read(&mut near, true, deadline).await, Err(ProxyError::Late));
        assert_eq!(begun.elapsed(), Duration::from_secs(10));
        // From a stranger the same bytes are what it wanted to say.
        far.write_all(b"PR").await.unwrap();
        let deadline = clock::now() + Duration::from_secs(10);
        let said = read(&mut near, false, deadline).await.unwrap();
        assert_eq!(said.early, "PR");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_closes_is_gone() {
        let (mut near, far) = tokio::io::duplex(64);
        drop(far);
        let deadline = clock::now() + Duration::from_secs(10);
        assert_eq!(read(&mut near, true, deadline).await, Err(ProxyError::Gone));
        assert_eq!(
            read(&mut near, false, deadline).await,
            Err(ProxyError::Gone)
        );
    }
}
