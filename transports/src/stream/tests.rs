use std::{future::poll_fn, net::SocketAddr};

use chinwag_core::{Lifecycle, TlsFailure};
use rustls::{
    AlertDescription, ClientConfig, HandshakeKind,
    client::Resumption,
    pki_types::ServerName,
    version::{TLS12, TLS13},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    time::{Duration, timeout},
};
use tokio_rustls::{TlsConnector, client};

use super::*;
use crate::{
    Accepted, StreamListener,
    accept::{Door, Secure, tests::Record},
    config::tests::listener,
    tls::tests::{Log, Numbers, VERSIONS, World, followed},
};

/// A listener that speaks TLS and hands every connection to the test.
struct Server {
    world: World,
    tls: Arc<Tls>,
    numbers: Numbers,
    record: Arc<Record>,
    address: SocketAddr,
    accepted: mpsc::Receiver<Accepted>,
    lifecycle: Lifecycle,
}

impl Server {
    async fn start() -> Self {
        Self::start_with("", &json!({}), Alpn::CHINWAG).await
    }

    /// `table`: further keys of `[tls.public]`; `config`: of the listener.
    async fn start_with(table: &str, config: &Value, alpn: Alpn) -> Self {
        let world = World::new();
        let tls = world.load(table).await;
        let (numbers, lifecycle) = followed(&tls);
        let record = Record::new();
        let door: Arc<dyn Door> = record.clone();
        let secure = Secure {
            tls: Arc::clone(&tls),
            alpn,
        };
        let config = Arc::new(listener(config));
        let listener = StreamListener::bind(config, Some(secure), door, lifecycle.clone()).unwrap();
        let address = listener.local_addr();
        let (hand, accepted) = mpsc::channel(16);
        lifecycle.spawn(listener.serve(move |accepted| {
            let hand = hand.clone();
            async move { hand.send(accepted).await.unwrap() }
        }));
        Self {
            world,
            tls,
            numbers,
            record,
            address,
            accepted,
            lifecycle,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    fn config(&self) -> Arc<ClientConfig> {
        Arc::new(self.world.client(&TLS13).with(None))
    }

    async fn accepted(&mut self) -> Accepted {
        self.accepted.recv().await.unwrap()
    }

    /// Both ends of a connection.
    async fn meet(&mut self, config: Arc<ClientConfig>) -> (Accepted, Client) {
        let client = shake_hands(config, self.connect().await).await.unwrap();
        (self.accepted().await, client)
    }

    fn failed(&self, reason: TlsFailure) -> u64 {
        let reason = reason.label();
        self.numbers.counted(&format!(
            "chinwag_tls_failures_total{{tls=public,reason={reason}}}"
        ))
    }
}

type Client = client::TlsStream<TcpStream>;

async fn shake_hands(config: Arc<ClientConfig>, tcp: TcpStream) -> io::Result<Client> {
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(config).connect(name, tcp).await
}

async fn receive(stream: &Stream, buffer: &mut [u8]) -> io::Result<usize> {
    poll_fn(|cx| stream.poll_receive(cx, buffer)).await
}

async fn writable(stream: &Stream) {
    poll_fn(|cx| TryWrite::poll_write_ready(stream, cx))
        .await
        .unwrap();
}

/// Bytes of which none is like its neighbours.
fn pattern(length: usize) -> Vec<u8> {
    (0..=250).cycle().take(length).collect()
}

/// Whether the server closes the connection, whatever it says before.
async fn is_closed(client: &mut TcpStream) -> bool {
    let mut said = Vec::new();
    match client.read_to_end(&mut said).await {
        Ok(_) => true,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

#[tokio::test]
async fn bytes_go_both_ways_in_either_version() {
    let mut server = Server::start().await;
    for (version, name) in VERSIONS.into_iter().zip(["TLS1.2", "TLS1.3"]) {
        let config = Arc::new(server.world.client(version).with(None));
        let (accepted, mut client) = server.meet(config).await;
        let stream = accepted.socket;
        assert!(stream.is_encrypted() && stream.may_hold_back());
        assert_eq!(accepted.early, "");
        let tls = accepted.peer.tls.unwrap();
        assert_eq!(tls.facts().version, name);
        assert_eq!(tls.facts().local, server.address);
        assert_eq!(tls.facts().remote, client.get_ref().0.local_addr().unwrap());

        client.write_all(b"ping").await.unwrap();
        let mut buffer = [0; 16];
        assert_eq!(receive(&stream, &mut buffer).await.unwrap(), 4);
        assert_eq!(&buffer[..4], b"ping");
        assert_eq!(stream.try_write(b"pong").unwrap(), 4);
        assert!(!stream.holds_back());
        client.read_exact(&mut buffer[..4]).await.unwrap();
        assert_eq!(&buffer[..4], b"pong");
    }
}

#[tokio::test]
async fn what_the_kernel_does_not_take_waits_until_it_does() {
    let mut server = Server::start().await;
    for version in VERSIONS {
        let config = Arc::new(server.world.client(version).with(None));
        let (accepted, mut client) = server.meet(config).await;
        let stream = accepted.socket;
        let all = pattern(4 << 20);
        let mut written = 0;
        while !stream.holds_back() {
            written += stream.try_write(&all[written..]).unwrap();
            assert!(written < all.len(), "nobody reads: the kernel fills up");
        }
        let full = stream.try_write(&all[written..]).unwrap_err();
        assert_eq!(
            full.kind(),
            io::ErrorKind::WouldBlock,
            "nothing is piled up"
        );

        let write = async {
            while written < all.len() {
                writable(&stream).await;
                assert!(!stream.holds_back(), "who waits gets it out");
                match stream.try_write(&all[written..]) {
                    Ok(count) => written += count,
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            }
            poll_fn(|cx| stream.poll_close_write(cx)).await.unwrap();
        };
        let mut got = Vec::new();
        let ((), read) = tokio::join!(write, client.read_to_end(&mut got));
        read.unwrap();
        assert!(
            got == all,
            "{} of {} bytes, or other ones",
            got.len(),
            all.len()
        );
    }
}

#[tokio::test]
async fn it_is_a_stream_like_any_other() {
    let mut server = Server::start().await;
    let (accepted, mut client) = server.meet(server.config()).await;
    let mut stream = accepted.socket;
    let all = pattern(1 << 20);
    let serve = async {
        let mut got = vec![0; all.len()];
        stream.read_exact(&mut got).await.unwrap();
        stream.write_all(&got).await.unwrap();
        stream.flush().await.unwrap();
        assert!(!stream.holds_back());
        stream.shutdown().await.unwrap();
        // Its own end is still to come.
        assert_eq!(stream.read_u8().await.unwrap(), b'!');
    };
    let ask = async {
        client.write_all(&all).await.unwrap();
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        client.write_all(b"!").await.unwrap();
        got
    };
    let ((), got) = tokio::join!(serve, ask);
    assert!(got == all);
}

#[tokio::test]
async fn what_was_decrypted_is_read_before_the_socket_is_waited_for() {
    let mut server = Server::start().await;
    let (accepted, mut client) = server.meet(server.config()).await;
    let all = pattern(40_000);
    client.write_all(&all).await.unwrap();
    let mut got = Vec::new();
    let mut buffer = [0; 100];
    let read = async {
        while got.len() < all.len() {
            let count = receive(&accepted.socket, &mut buffer).await.unwrap();
            got.extend_from_slice(&buffer[..count]);
        }
    };
    timeout(Duration::from_secs(10), read).await.unwrap();
    assert!(got == all);
}

#[tokio::test]
async fn pieces_travel_in_one_record() {
    let mut server = Server::start().await;
    let (accepted, client) = server.meet(server.config()).await;
    let (mut tcp, _) = client.into_inner();
    let pieces = [[b'x'; 10]; PIECES];
    let slices = pieces.each_ref().map(|piece| IoSlice::new(piece));
    let written = accepted.socket.try_write_vectored(&slices).unwrap();
    assert_eq!(written, 10 * PIECES);
    drop(accepted);
    let mut wire = Vec::new();
    tcp.read_to_end(&mut wire).await.unwrap();
    // Tickets come first, and two bytes of goodbye last. To a record its head is added, the content's type and the tag.
    let length = written + 1 + 16;
    let goodbye = 5 + 2 + 1 + 16;
    let record = &wire[wire.len() - goodbye - length - 5..];
    let told = u16::try_from(length).unwrap().to_be_bytes();
    assert_eq!(record[..5], [0x17, 3, 3, told[0], told[1]]);
}

#[test]
fn records_are_made_of_pieces_in_order() {
    for sizes in [
        &[][..],
        &[0, 0],
        &[1],
        &[RECORD],
        &[RECORD + 1],
        &[3 * RECORD, 0, 5],
        &[1, RECORD - 1, 1],
        &[RECORD - 1, 2, 3 * RECORD],
        &[7; 200],
        &[0; 200],
    ] {
        let pieces: Vec<Vec<u8>> = sizes.iter().map(|&size| pattern(size)).collect();
        let slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut rest = Rest(&slices, 0);
        let mut all = Vec::new();
        let mut records = 0;
        loop {
            let mut record = [IoSlice::new(&[]); PIECES];
            let count = rest.take(&mut record);
            if count == 0 {
                break;
            }
            let bytes: Vec<u8> = record[..count]
                .iter()
                .flat_map(|piece| piece.to_vec())
                .collect();
            assert!((1..=RECORD).contains(&bytes.len()), "{sizes:?}");
            all.extend(bytes);
            records += 1;
        }
        assert!(all == pieces.concat(), "{sizes:?}");
        let least = all
            .len()
            .div_ceil(RECORD)
            .max(sizes.len().min(all.len()).div_ceil(PIECES));
        assert_eq!(records, least, "{sizes:?}");
    }
}

#[tokio::test]
async fn an_end_is_told_and_heard() {
    let mut server = Server::start().await;
    for version in VERSIONS {
        let config = Arc::new(server.world.client(version).with(None));
        let mut byte = [0];

        let (accepted, mut client) = server.meet(Arc::clone(&config)).await;
        poll_fn(|cx| accepted.socket.poll_close_write(cx))
            .await
            .unwrap();
        // Anything less than good order would be an error.
        assert_eq!(client.read(&mut byte).await.unwrap(), 0);

        let (accepted, mut client) = server.meet(Arc::clone(&config)).await;
        client.shutdown().await.unwrap();
        assert_eq!(receive(&accepted.socket, &mut byte).await.unwrap(), 0);
        assert_eq!(receive(&accepted.socket, &mut byte).await.unwrap(), 0);
        assert_eq!(accepted.socket.try_write(b"?").unwrap(), 1, "its own half");
        assert_eq!(client.read(&mut byte).await.unwrap(), 1);

        // A client that goes without a word has gone.
        let (accepted, client) = server.meet(Arc::clone(&config)).await;
        client.into_inner().0.shutdown().await.unwrap();
        assert_eq!(receive(&accepted.socket, &mut byte).await.unwrap(), 0);
    }
}

#[tokio::test]
async fn what_breaks_the_rules_ends_the_connection_and_is_told_so() {
    let mut server = Server::start().await;
    let (accepted, client) = server.meet(server.config()).await;
    let (mut tcp, _) = client.into_inner();
    let mut forged = vec![0x17, 3, 3, 0, 40];
    forged.extend([7; 40]);
    tcp.write_all(&forged).await.unwrap();
    let error = receive(&accepted.socket, &mut [0; 64]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert!(accepted.socket.try_write(b"x").is_err(), "it is over");
    let mut alert = [0; 5];
    tcp.read_exact(&mut alert).await.unwrap();
    assert_eq!(alert[..3], [0x17, 3, 3], "encrypted, as all that is said");
}

#[tokio::test]
async fn a_client_comes_back_with_its_ticket() {
    let mut server = Server::start().await;
    for version in VERSIONS {
        let mut config = server.world.client(version).with(None);
        config.resumption = Resumption::in_memory_sessions(8);
        let config = Arc::new(config);
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let (accepted, mut client) = server.meet(Arc::clone(&config)).await;
            accepted.socket.try_write(b"x").unwrap();
            client.read_u8().await.unwrap();
            let shaken = client.get_ref().1.handshake_kind().unwrap();
            // A round of its own for the key is full all the same.
            let is_full = shaken != HandshakeKind::Resumed;
            assert_eq!(is_full, kind == HandshakeKind::Full, "{shaken:?}");
        }
    }
}

#[tokio::test]
async fn a_slow_handshake_stalls_nobody() {
    let mut server = Server::start().await;
    let mut slow = server.connect().await;
    // The head of a record that does not come.
    slow.write_all(&[0x16, 3, 1, 1, 0]).await.unwrap();
    server.record.until(|seen| seen.open == 1).await;
    let (_quick, _client) = server.meet(server.config()).await;
    assert_eq!(server.record.seen().open, 2);
}

#[tokio::test(start_paused = true)]
async fn a_handshake_has_its_time() {
    let table = ",\"handshake_timeout\":\"3s\"";
    let server = Server::start_with(table, &json!({}), Alpn::CHINWAG).await;
    let began = chinwag_core::clock::now();
    let mut silent = server.connect().await;
    assert!(is_closed(&mut silent).await);
    assert_eq!(began.elapsed().as_secs(), 3);
    let seen = server.record.until(|seen| seen.open == 0).await;
    assert_eq!((seen.accepted, server.failed(TlsFailure::Timeout)), (1, 1));
}

#[tokio::test]
async fn plain_text_is_answered_with_an_alert() {
    let mut server = Server::start().await;
    for text in [
        "{\"type\":\"login\"}\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ] {
        let mut plain = server.connect().await;
        plain.write_all(text.as_bytes()).await.unwrap();
        let mut said = [0; 7];
        plain.read_exact(&mut said).await.unwrap();
        assert_eq!(said[0], 0x15, "an alert, for whoever looks at the wire");
        assert!(is_closed(&mut plain).await);
    }
    server.record.until(|seen| seen.open == 0).await;
    assert_eq!(server.failed(TlsFailure::Malformed), 2);
    assert!(server.accepted.try_recv().is_err());
}

#[tokio::test]
async fn a_drain_ends_handshakes_and_spares_connections() {
    let mut server = Server::start().await;
    let mut half = server.connect().await;
    half.write_all(&[0x16]).await.unwrap();
    server.record.until(|seen| seen.open == 1).await;
    let (accepted, mut client) = server.meet(server.config()).await;
    server.lifecycle.drain();
    assert!(is_closed(&mut half).await);
    accepted.socket.try_write(b"x").unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'x');
}

#[tokio::test]
async fn a_proxy_names_the_client_before_the_handshake() {
    const HEADER: &[u8] = b"PROXY TCP4 203.0.113.7 192.0.2.1 1 2\r\n";
    let config = json!({ "client_address": "proxy-protocol", "proxies": ["127.0.0.1"] });
    let mut server = Server::start_with("", &config, Alpn::CHINWAG).await;
    for is_together in [true, false] {
        let config = server.config();
        let mut tcp = server.connect().await;
        let client = if is_together {
            // The client's first bytes come with the header, in one piece.
            let together = Together(Some(HEADER), tcp);
            let name = ServerName::try_from("localhost").unwrap();
            let client = TlsConnector::from(config).connect(name, together).await;
            client.unwrap().into_inner().0.1
        } else {
            tcp.write_all(HEADER).await.unwrap();
            shake_hands(config, tcp).await.unwrap().into_inner().0
        };
        let accepted = server.accepted().await;
        assert_eq!(accepted.peer.address.to_string(), "203.0.113.7");
        let tls = accepted.peer.tls.unwrap();
        assert_eq!(
            tls.facts().remote,
            client.local_addr().unwrap(),
            "the proxy"
        );
    }

    let mut bare = server.connect().await;
    bare.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1]).await.unwrap();
    assert!(is_closed(&mut bare).await);
    let refused = server.record.seen().refused;
    assert_eq!(refused, [chinwag_core::RefusedReason::Proxy]);
}

#[tokio::test]
async fn a_refused_client_is_told_by_its_own_address_and_that_of_its_proxy() {
    let config = json!({ "client_address": "proxy-protocol", "proxies": ["127.0.0.1"] });
    let server = Server::start_with("", &config, Alpn::CHINWAG).await;
    let log = Log::default();
    let _guard = log.keep();
    for (header, told) in [
        (
            "PROXY TCP4 203.0.113.7 192.0.2.1 1 2\r\n",
            "client=203.0.113.7 proxy",
        ),
        ("PROXY UNKNOWN\r\n", "remote"),
    ] {
        let mut tcp = server.connect().await;
        tcp.write_all(header.as_bytes()).await.unwrap();
        tcp.write_all(b"no handshake").await.unwrap();
        let address = tcp.local_addr().unwrap();
        assert!(is_closed(&mut tcp).await);
        drop(tcp);
        server.record.until(|seen| seen.open == 0).await;
        let lines = log.lines("TLS was refused");
        let last = lines.last().expect("it was logged before the end");
        assert!(last.contains(&format!("{told}={address}")), "{last}");
    }
}

/// Sends some bytes together with the first that are written.
struct Together(Option<&'static [u8]>, TcpStream);

impl AsyncRead for Together {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.1).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Together {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Some(before) = self.0 else {
            return Pin::new(&mut self.1).poll_write(cx, bytes);
        };
        let together = [before, bytes].concat();
        let written = ready!(Pin::new(&mut self.1).poll_write(cx, &together))?;
        self.0 = None;
        Poll::Ready(Ok(written - before.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.1).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.1).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn whoever_is_dropped_is_told_that_this_is_the_end() {
    let mut server = Server::start().await;
    for version in VERSIONS {
        let config = Arc::new(server.world.client(version).with(None));
        let (accepted, mut client) = server.meet(config).await;
        accepted.socket.try_write(b"last words").unwrap();
        drop(accepted);
        let mut said = String::new();
        client.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "last words", "{version:?}");
    }
}

#[tokio::test]
async fn http_is_agreed_on_where_it_is_spoken() {
    let mut server = Server::start_with("", &json!({}), Alpn::HTTP).await;
    for version in VERSIONS {
        for (offers, agreed) in [
            (&["h2", "http/1.1"][..], Some(Some("http/1.1"))),
            (&[], Some(None)),
            (&["h2"], None),
        ] {
            let mut config = server.world.client(version).with(None);
            config.alpn_protocols = offers.iter().map(|&offer| offer.into()).collect();
            let client = shake_hands(Arc::new(config), server.connect().await).await;
            let Some(agreed) = agreed else {
                let error = client.map(drop).unwrap_err();
                let told = error.get_ref().and_then(|error| error.downcast_ref());
                let alert = AlertDescription::NoApplicationProtocol;
                assert_eq!(
                    told,
                    Some(&rustls::Error::AlertReceived(alert)),
                    "{version:?} {offers:?}: {error}"
                );
                continue;
            };
            let client = client.unwrap();
            let protocol = client.get_ref().1.alpn_protocol();
            assert_eq!(protocol, agreed.map(str::as_bytes), "{offers:?}");
            server.accepted().await;
        }
    }
    server.record.until(|seen| seen.open == 0).await;
    assert_eq!(server.failed(TlsFailure::Incompatible), 2);
}

#[tokio::test]
async fn changed_files_are_for_new_connections() {
    let mut server = Server::start().await;
    let (before, mut client) = server.meet(server.config()).await;
    server.world.folder.put("server.pem", "no certificate");
    server.tls.reload().await.unwrap_err();
    let (_as_before, _client) = server.meet(server.config()).await;

    let other = World::new();
    server.world.folder.put_server(&other.server());
    server.tls.reload().await.unwrap();
    assert!(
        shake_hands(server.config(), server.connect().await)
            .await
            .is_err(),
        "its certificate is of another CA now"
    );
    let config = Arc::new(other.client(&TLS12).with(None));
    let (_after, _client) = server.meet(config).await;
    before.socket.try_write(b"x").unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'x', "nobody is dropped");
}
