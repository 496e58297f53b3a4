//! The client over TLS, before servers with good certificates and bad ones.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use chinwag_client::{
    Client, ConnectError, End, Error, Fields, Identity, Login, Loss, Options, TlsFault, TlsFiles,
};
use futures_util::{SinkExt, StreamExt};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
    version::{TLS12, TLS13},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_tungstenite::{accept_async, tungstenite::Message};

const PATIENCE: Duration = Duration::from_secs(10);
const SCHEMES: [&str; 3] = ["tls", "wss", "https"];
const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// Somebody who signs.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn root(name: &str) -> Self {
        let mut params = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn under(&self, name: &str) -> Self {
        let mut params = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::signed_by(params, key, &self.0).unwrap())
    }

    /// A certificate for `localhost` and `127.0.0.1`, unless `edit` has it otherwise.
    fn server(&self, edit: impl FnOnce(&mut CertificateParams)) -> Shown {
        let mut params = named("server");
        params.subject_alt_names = vec![
            SanType::DnsName("localhost".try_into().unwrap()),
            SanType::IpAddress([127, 0, 0, 1].into()),
        ];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        edit(&mut params);
        self.sign(params)
    }

    fn client(&self, name: &str) -> Shown {
        let mut params = named(name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Shown {
        let key = KeyPair::generate().unwrap();
        Shown::of(&params.signed_by(&key, &*self.0).unwrap(), key)
    }
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// A certificate with its key.
struct Shown {
    chain: Vec<CertificateDer<'static>>,
    pem: String,
    key: KeyPair,
}

impl Shown {
    fn of(certificate: &Certificate, key: KeyPair) -> Self {
        Self {
            chain: vec![certificate.der().clone()],
            pem: certificate.pem(),
            key,
        }
    }
}

/// A folder with the files of a client.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn put(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Those who trust `ca` and show nothing.
    fn trusting(&self, ca: &Authority) -> TlsFiles {
        TlsFiles {
            ca: vec![self.put("ca.pem", ca.0.pem())],
            identity: None,
        }
    }

    fn identity(&self, shown: &Shown) -> Identity {
        Identity {
            cert: self.put("cert.pem", &shown.pem),
            key: self.put("key.pem", shown.key.serialize_pem()),
        }
    }
}

/// What a server of these tests is.
struct Setup {
    shown: Shown,
    versions: Vec<&'static SupportedProtocolVersion>,
    /// Who signs the certificates that clients have to show.
    clients: Option<CertificateDer<'static>>,
}

impl Setup {
    fn of(shown: Shown) -> Self {
        Self {
            shown,
            versions: VERSIONS.into(),
            clients: None,
        }
    }

    fn config(self) -> Arc<ServerConfig> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&self.versions)
            .unwrap();
        let builder = match self.clients {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                roots.add(ca).unwrap();
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let key = PrivateKeyDer::try_from(self.shown.key.serialize_der()).unwrap();
        let mut config = builder.with_single_cert(self.shown.chain, key).unwrap();
        config.alpn_protocols = ["h2", "http/1.1", "chinwag"].map(Vec::from).into();
        Arc::new(config)
    }

    /// Welcomes whoever logs in, whatever they speak. Tells of each handshake which protocol of ALPN and whose
    /// certificate it has.
    async fn start(self) -> Server {
        let acceptor = TlsAcceptor::from(self.config());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (to, met) = mpsc::channel(64);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut each = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, to) = (acceptor.clone(), to.clone());
                each.spawn(async move {
                    match acceptor.accept(stream).into_fallible().await {
                        Ok(stream) => {
                            let (_, tls) = stream.get_ref();
                            let alpn = tls.alpn_protocol().map(<[u8]>::to_vec);
                            let shown = tls.peer_certificates().map(|chain| chain[0].clone());
                            to.send((alpn, shown)).await.unwrap();
                            welcome(stream).await;
                        }
                        // Else what is not read yet would have the system take the alert back.
                        Err((_, mut stream)) => {
                            let _ = stream.shutdown().await;
                            let _ = stream.read_to_end(&mut Vec::new()).await;
                        }
                    }
                });
            }
        });
        Server {
            addr,
            met,
            _tasks: tasks,
        }
    }
}

struct Server {
    addr: SocketAddr,
    met: mpsc::Receiver<Met>,
    _tasks: JoinSet<()>,
}

/// The protocol of ALPN and the client's certificate.
type Met = (Option<Vec<u8>>, Option<CertificateDer<'static>>);

impl Server {
    fn url(&self, scheme: &str, host: &str) -> String {
        format!("{scheme}://{host}:{}", self.addr.port())
    }

    async fn met(&mut self) -> Met {
        timeout(PATIENCE, self.met.recv()).await.unwrap().unwrap()
    }
}

/// The answer to a log-in.
fn answer(command: &str) -> String {
    let fields = Fields::parse(command).unwrap();
    let id = fields.field("id").unwrap().get().to_owned();
    format!(r#"{{"type":"session","id":{id},"session":"K","user":"ada"}}"#)
}

/// Lets somebody in, over lines or HTTP or a WebSocket, and says nothing more.
async fn welcome(stream: TlsStream<TcpStream>) {
    let mut stream = BufReader::new(stream);
    // A client that was not satisfied says nothing.
    let first = match stream.fill_buf().await {
        Ok(bytes) => bytes.first().copied(),
        Err(_) => return,
    };
    match first {
        None => (),
        Some(b'{') => {
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            let session = answer(&line) + "\n";
            stream.write_all(session.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
        Some(b'P') => {
            let (mut length, mut line) = (0, String::new());
            while line != "\r\n" {
                line.clear();
                assert!(stream.read_line(&mut line).await.unwrap() > 0);
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.unwrap();
            let session = answer(std::str::from_utf8(&body).unwrap());
            let length = session.len();
            let answer =
                format!("HTTP/1.1 201 Created\r\ncontent-length: {length}\r\n\r\n{session}");
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
        // Another connection of one who is in already.
        Some(_) if is_poll(stream.buffer()) => {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
        Some(_) => {
            let mut socket = accept_async(stream).await.unwrap();
            while let Some(Ok(message)) = socket.next().await {
                if let Message::Text(text) = message {
                    let session = answer(&text);
                    socket.send(Message::text(session)).await.unwrap();
                }
            }
        }
    }
}

fn is_poll(head: &[u8]) -> bool {
    head.starts_with(b"GET /v1/events")
}

fn options(tls: &TlsFiles) -> Options {
    Options {
        tls: tls.clone(),
        connect_timeout: PATIENCE,
        ..Options::default()
    }
}

/// What is wrong with TLS to `url`, found out at once or by logging in.
async fn fault(url: &str, tls: &TlsFiles) -> TlsFault {
    match Client::connect(url, options(tls)).await {
        Err(ConnectError::Tls { fault, url: told }) => {
            assert!(told.starts_with(url), "{told}");
            fault
        }
        Err(other) => panic!("{url}: {other:?}"),
        Ok(client) => match client.login(Login::certificate()).await {
            Err(Error::Ended(End::Lost(Loss::Tls(fault))) | Error::Lost(Loss::Tls(fault))) => fault,
            other => panic!("{url}: {other:?}"),
        },
    }
}

#[tokio::test]
async fn a_good_certificate_for_the_host_is_enough_on_every_transport() {
    let (ca, folder) = (Authority::root("ca"), Folder::new());
    let tls = folder.trusting(&ca);
    for version in VERSIONS {
        let mut setup = Setup::of(ca.server(|_| ()));
        setup.versions = vec![version];
        let mut server = setup.start().await;
        for scheme in SCHEMES {
            for host in ["localhost", "127.0.0.1"] {
                let url = server.url(scheme, host);
                let client = Client::connect(&url, options(&tls)).await.unwrap();
                let session = client.login(Login::name("ada")).await.unwrap();
                assert_eq!(&*session.user, "ada", "{url}");
                let (alpn, shown) = server.met().await;
                let expected = if scheme == "tls" {
                    "chinwag"
                } else {
                    "http/1.1"
                };
                assert_eq!(alpn.as_deref(), Some(expected.as_bytes()), "{url}");
                assert_eq!(shown, None);
                drop(client);
                while server.met.try_recv().is_ok() {}
            }
        }
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_good_is_refused_and_told_why() {
    let (ca, folder) = (Authority::root("ca"), Folder::new());
    let tls = folder.trusting(&ca);
    let intermediate = ca.under("intermediate");
    let self_signed = {
        let mut params = named("server");
        params.subject_alt_names = vec![SanType::DnsName("localhost".try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        Shown::of(&params.self_signed(&key).unwrap(), key)
    };
    let is_untrusted = |fault: &TlsFault| *fault == TlsFault::Untrusted;
    type Right<'a> = &'a dyn Fn(&TlsFault) -> bool;
    let cases: [(&str, Shown, Right<'_>, &str); 9] = [
        (
            "signed by another CA",
            Authority::root("other").server(|_| ()),
            &is_untrusted,
            "not trusted",
        ),
        (
            "signed by a CA of the same name",
            Authority::root("ca").server(|_| ()),
            &is_untrusted,
            "not trusted",
        ),
        (
            "an intermediate one is missing",
            intermediate.server(|_| ()),
            &is_untrusted,
            "not trusted",
        ),
        ("self-signed", self_signed, &is_untrusted, "not trusted"),
        (
            "expired",
            ca.server(|params| params.not_after = date_time_ymd(2020, 1, 1)),
            &|fault| matches!(fault, TlsFault::Expired(ago) if ago.as_secs() > 86_400 * 365),
            "has expired, ",
        ),
        (
            "not yet valid",
            ca.server(|params| params.not_before = date_time_ymd(3000, 1, 1)),
            &|fault| matches!(fault, TlsFault::NotYetValid(_)),
            "not valid yet",
        ),
        (
            "for another name",
            ca.server(|params| {
                params.subject_alt_names = vec![
                    SanType::DnsName("chat.example.org".try_into().unwrap()),
                    SanType::IpAddress([192, 0, 2, 1].into()),
                ];
            }),
            &|fault| matches!(fault, TlsFault::WrongName { .. }),
            "for chat.example.org, 192.0.2.1, and not for localhost",
        ),
        (
            "for no name",
            ca.server(|params| {
                params
                    .distinguished_name
                    .push(DnType::CommonName, "localhost");
                params.subject_alt_names = Vec::new();
            }),
            &|fault| matches!(fault, TlsFault::WrongName { .. }),
            "a common name alone does not count",
        ),
        (
            "for clients",
            ca.server(|params| {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }),
            &|fault| matches!(fault, TlsFault::Unacceptable(_)),
            "not made for this use",
        ),
    ];
    for (what, shown, right, words) in cases {
        let server = Setup::of(shown).start().await;
        for scheme in SCHEMES {
            let fault = fault(&server.url(scheme, "localhost"), &tls).await;
            assert!(right(&fault), "{what}, {scheme}: {fault:?}");
            assert!(fault.to_string().contains(words), "{what}: {fault}");
        }
    }
    // The intermediate one is sent along, and all is well.
    let mut shown = intermediate.server(|_| ());
    shown.chain.push(intermediate.0.der().clone());
    let server = Setup::of(shown).start().await;
    let url = server.url("tls", "localhost");
    Client::connect(&url, options(&tls)).await.unwrap();
    // A CA's certificate that is used as the server's own, as `openssl req -x509` makes them.
    let mut params = named("ca and server");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.subject_alt_names = vec![SanType::DnsName("localhost".try_into().unwrap())];
    let both = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let tls = TlsFiles {
        ca: vec![folder.put("both.pem", both.pem())],
        identity: None,
    };
    let key = KeyPair::from_pem(&both.key().serialize_pem()).unwrap();
    let shown = Shown::of(both.as_ref(), key);
    let server = Setup::of(shown).start().await;
    let fault = fault(&server.url("tls", "localhost"), &tls).await;
    assert!(fault.to_string().contains("sign another one"), "{fault}");
}

#[tokio::test]
async fn a_certificate_of_the_clients_is_shown_to_those_who_ask() {
    let (ca, folder) = (Authority::root("ca"), Folder::new());
    let nothing = folder.trusting(&ca);
    let alice = ca.client("alice");
    let with = |identity| TlsFiles {
        identity: Some(identity),
        ..nothing.clone()
    };
    let known = with(folder.identity(&alice));
    let other = Folder::new();
    let unknown = with(other.identity(&Authority::root("other").client("alice")));
    for version in VERSIONS {
        let mut setup = Setup::of(ca.server(|_| ()));
        setup.versions = vec![version];
        setup.clients = Some(ca.0.der().clone());
        let mut server = setup.start().await;
        for scheme in SCHEMES {
            let url = server.url(scheme, "localhost");
            let what = format!("{url}, {:?}", version.version);
            assert_eq!(
                fault(&url, &nothing).await,
                TlsFault::WantsCertificate,
                "{what}"
            );
            let refused = fault(&url, &unknown).await;
            assert!(
                matches!(refused, TlsFault::Refused(_)),
                "{what}: {refused:?}"
            );
            assert!(server.met.try_recv().is_err(), "{what}: neither was let in");
            let client = Client::connect(&url, options(&known)).await.unwrap();
            client.login(Login::certificate()).await.unwrap();
            let (_, shown) = server.met().await;
            assert_eq!(shown.as_ref(), alice.chain.first(), "{what}");
            drop(client);
            while server.met.try_recv().is_ok() {}
        }
    }
    // One file may have both.
    let both = alice.pem.clone() + &alice.key.serialize_pem();
    let path = folder.put("both.pem", both);
    let tls = with(Identity {
        cert: path.clone(),
        key: path,
    });
    let mut setup = Setup::of(ca.server(|_| ()));
    setup.clients = Some(ca.0.der().clone());
    let server = setup.start().await;
    let url = server.url("wss", "127.0.0.1");
    let client = Client::connect(&url, options(&tls)).await.unwrap();
    client.login(Login::certificate()).await.unwrap();
}

#[tokio::test]
async fn plain_text_and_tls_are_told_apart_by_those_who_meet() {
    let (ca, folder) = (Authority::root("ca"), Folder::new());
    let tls = folder.trusting(&ca);
    let server = Setup::of(ca.server(|_| ())).start().await;
    for scheme in ["tcp", "ws", "http"] {
        let url = server.url(scheme, "localhost");
        let fault = fault(&url, &TlsFiles::default()).await;
        assert_eq!(fault, TlsFault::Expected, "{url}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut plain = JoinSet::new();
    plain.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut hello = [0; 5];
            stream.read_exact(&mut hello).await.unwrap();
            let answer = b"HTTP/1.1 400 Bad Request\r\n\r\n";
            stream.write_all(answer).await.unwrap();
            let _ = stream.shutdown().await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    });
    for scheme in SCHEMES {
        let url = format!("{scheme}://localhost:{port}");
        assert_eq!(fault(&url, &tls).await, TlsFault::PlainText, "{url}");
    }
}

#[tokio::test]
async fn a_handshake_has_the_time_that_connecting_has() {
    let (ca, folder) = (Authority::root("ca"), Folder::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut silent = JoinSet::new();
    silent.spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(stream);
        }
    });
    for scheme in SCHEMES {
        let options = Options {
            connect_timeout: Duration::from_millis(300),
            ..options(&folder.trusting(&ca))
        };
        let begun = Instant::now();
        let url = format!("{scheme}://127.0.0.1:{port}");
        let late = Client::connect(&url, options).await.unwrap_err();
        assert!(matches!(late, ConnectError::Late { .. }), "{late:?}");
        assert!(begun.elapsed() < PATIENCE);
    }
    // And one that is cut off is told from one that is late.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut hasty = JoinSet::new();
    hasty.spawn(async move { while let Ok((_, _)) = listener.accept().await {} });
    let url = format!("tls://127.0.0.1:{port}");
    assert_eq!(fault(&url, &folder.trusting(&ca)).await, TlsFault::HungUp);
}

#[tokio::test]
async fn a_server_that_goes_without_a_goodbye_is_a_connection_that_was_closed() {
    let (ca, folder) = (Authority::root("ca"), Folder::new());
    let acceptor = TlsAcceptor::from(Setup::of(ca.server(|_| ())).config());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("tls://{}", listener.local_addr().unwrap());
    let mut server = JoinSet::new();
    server.spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        stream.write_all(b"{\"type\":\"weather\"}\n").await.unwrap();
        stream.flush().await.unwrap();
        // Below TLS, which would have said goodbye.
        stream.get_mut().0.shutdown().await.unwrap();
        let _ = stream.get_mut().0.read_to_end(&mut Vec::new()).await;
    });
    let mut client = Client::connect(&url, options(&folder.trusting(&ca)))
        .await
        .unwrap();
    timeout(PATIENCE, client.next()).await.unwrap().unwrap();
    let end = timeout(PATIENCE, client.next()).await.unwrap().unwrap_err();
    assert!(matches!(end, End::Lost(Loss::Closed)), "{end:?}");
}

#[tokio::test]
async fn much_goes_both_ways_however_little_fits_at_once() {
    const LINES: usize = 200;
    let (ca, folder) = (Authority::root("ca"), Folder::new());
    let acceptor = TlsAcceptor::from(Setup::of(ca.server(|_| ())).config());
    let socket = TcpSocket::new_v4().unwrap();
    // Soon full, and slow to drain.
    socket.set_recv_buffer_size(4 << 10).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let url = format!("tls://{}", listener.local_addr().unwrap());
    let mut server = JoinSet::new();
    server.spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(acceptor.accept(stream).await.unwrap());
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let welcome = answer(&line).replace('}', ",\"limits\":{\"frame_bytes\":100000}}\n");
        stream.write_all(welcome.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        for seq in 1..=LINES {
            line.clear();
            stream.read_line(&mut line).await.unwrap();
            let fields = Fields::parse(&line).unwrap();
            let id = fields.field("id").unwrap().get();
            let sent = format!(
                "{{\"type\":\"sent\",\"id\":{id},\"room\":\"r\",\"seq\":{seq},\"at\":0}}\n"
            );
            stream.write_all(sent.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
        }
    });
    let client = Client::connect(&url, options(&folder.trusting(&ca)))
        .await
        .unwrap();
    client.login(Login::name("ada")).await.unwrap();
    let text = "x".repeat(20_000);
    let mut sends = JoinSet::new();
    for _ in 0..LINES {
        let (handle, text) = (client.handle().clone(), text.clone());
        sends.spawn(async move { handle.send("r", &text).await.unwrap().seq });
    }
    let mut seqs = timeout(PATIENCE, sends.join_all()).await.unwrap();
    seqs.sort_unstable();
    assert!(seqs.into_iter().eq(1..=LINES as u64));
}

#[tokio::test]
async fn a_file_that_can_not_be_used_is_named_and_never_repeated() {
    const ENCRYPTED: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nc2VjcmV0c2VjcmV0\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let (ca, folder) = (Authority::root("ca"), Folder::new());
    let (alice, bob) = (ca.client("alice"), ca.client("bob"));
    let good = folder.identity(&alice);
    let ca_pem = folder.put("ca.pem", ca.0.pem());
    let key_pem = alice.key.serialize_pem();
    let secret = key_pem.lines().nth(1).unwrap().to_owned();
    let nowhere = folder.0.path().join("nowhere.pem");
    let damaged = key_pem.replace("-----END", "-----ENDS");
    let with_ca = |ca: PathBuf| TlsFiles {
        ca: vec![ca],
        identity: None,
    };
    let with_key = |key: PathBuf| TlsFiles {
        ca: vec![ca_pem.clone()],
        identity: Some(Identity {
            key,
            ..good.clone()
        }),
    };
    for (files, at_fault, words) in [
        (with_ca(nowhere.clone()), &nowhere, "can't be read"),
        (
            with_ca(good.key.clone()),
            &good.key,
            "no certificate in PEM",
        ),
        (
            with_ca(folder.put("ca.der", ca.0.der())),
            &folder.0.path().join("ca.der"),
            "openssl x509",
        ),
        (
            with_ca(folder.put("empty", "")),
            &folder.0.path().join("empty"),
            "no certificate in PEM",
        ),
        (
            with_ca("/dev/zero".into()),
            &"/dev/zero".into(),
            "over 4 MiB",
        ),
        (with_key(nowhere.clone()), &nowhere, "can't be read"),
        (with_key(good.cert.clone()), &good.cert, "no private key"),
        (
            with_key(folder.put("key.der", alice.key.serialize_der())),
            &folder.0.path().join("key.der"),
            "openssl pkey",
        ),
        (
            with_key(folder.put("encrypted", ENCRYPTED)),
            &folder.0.path().join("encrypted"),
            "encrypted",
        ),
        (
            with_key(folder.put("damaged", damaged)),
            &folder.0.path().join("damaged"),
            "damaged",
        ),
        (
            with_key(folder.put("bob.key", bob.key.serialize_pem())),
            &folder.0.path().join("bob.key"),
            "does not belong to the certificate",
        ),
    ] {
        let options = options(&files);
        let error = Client::connect("tls://127.0.0.1:1", options)
            .await
            .unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(&error, ConnectError::File { path, .. } if path == at_fault),
            "{error:?}"
        );
        assert!(text.contains(words), "{words}: {text}");
        assert!(!format!("{text}{error:?}").contains(&secret), "{error:?}");
        assert!(!text.contains("c2VjcmV0"), "{text}");
    }
    // Who names certificates does not want to be overheard.
    let error = Client::connect("ws://127.0.0.1:1", options(&with_ca(ca_pem)))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, ConnectError::Url(text) if text.contains("plain text")),
        "{error:?}"
    );
    let error = Client::connect("tls://a_b..c:1", Options::default())
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Url(_)), "{error:?}");
}

#[tokio::test]
async fn what_files_say_is_read_anew_by_each_connection() {
    let (old, new, folder) = (
        Authority::root("old"),
        Authority::root("new"),
        Folder::new(),
    );
    let tls = folder.trusting(&old);
    let server = Setup::of(new.server(|_| ())).start().await;
    let url = server.url("https", "localhost");
    assert_eq!(fault(&url, &tls).await, TlsFault::Untrusted);
    assert_eq!(folder.trusting(&new), tls, "the same path");
    Client::connect(&url, options(&tls)).await.unwrap();
}

/// A line-based server that welcomes everybody. Connecting to `0.0.0.0` leads here and is, for all that the URL tells,
/// another machine.
async fn elsewhere() -> (String, mpsc::Receiver<String>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("tcp://0.0.0.0:{}", listener.local_addr().unwrap().port());
    let (to, heard) = mpsc::channel(16);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap() > 0 {
                let session = answer(&line) + "\n";
                stream.write_all(session.as_bytes()).await.unwrap();
                to.send(line).await.unwrap();
            }
        }
    });
    (url, heard, tasks)
}

#[tokio::test]
async fn secrets_do_not_go_to_other_machines_in_plain_text() {
    let (url, mut heard, _server) = elsewhere().await;
    let connect = async |insecure| {
        let options = Options {
            insecure,
            ..Options::default()
        };
        Client::connect(&url, options).await.unwrap()
    };
    let client = connect(false).await;
    let is_exposed = |error: &Error| {
        let text = error.to_string();
        assert!(!text.contains("hunter2") && text.contains(&url), "{text}");
        matches!(error, Error::Exposed(_))
    };
    for login in [Login::password("ada", "hunter2"), Login::token("hunter2")] {
        let error = client.login(login).await.unwrap_err();
        assert!(is_exposed(&error), "{error:?}");
    }
    for secret in ["password", "token", "resume"] {
        let command = format!(r#"{{"type":"login","user":"ada","{secret}":"hunter2"}}"#);
        let command = Fields::parse(&command).unwrap();
        let error = client.handle().ask(command).await.unwrap_err();
        assert!(is_exposed(&error), "{secret}: {error:?}");
    }
    assert!(is_exposed(&client.handle().may_tell_secrets().unwrap_err()));
    // A name is no secret.
    client.login(Login::name("ada")).await.unwrap();
    assert!(!heard.recv().await.unwrap().contains("hunter2"));
    // Who insists is heard, and so is who stays on this machine.
    let client = connect(true).await;
    client.handle().may_tell_secrets().unwrap();
    client
        .login(Login::password("ada", "hunter2"))
        .await
        .unwrap();
    assert!(heard.recv().await.unwrap().contains("hunter2"));
    let here = url.replace("0.0.0.0", "127.0.0.1");
    let client = Client::connect(&here, Options::default()).await.unwrap();
    client
        .login(Login::password("ada", "hunter2"))
        .await
        .unwrap();
    assert!(heard.recv().await.unwrap().contains("hunter2"));
}

#[test]
fn what_may_be_shown_of_the_options_holds_no_secret() {
    let (ca, folder) = (Authority::root("ca"), Folder::new());
    let alice = ca.client("alice");
    let options = Options {
        tls: TlsFiles {
            ca: Vec::new(),
            identity: Some(folder.identity(&alice)),
        },
        ..Options::default()
    };
    let shown = format!("{options:?}");
    let key: &Path = &folder.0.path().join("key.pem");
    assert!(shown.contains(key.to_str().unwrap()) && !shown.contains("PRIVATE"));
}
