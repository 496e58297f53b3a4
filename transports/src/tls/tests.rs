use std::{collections::BTreeMap, net::Ipv4Addr, path::Path, sync::atomic::AtomicU64, task::Poll};

use chinwag_core::clock::WallClock;
use futures_util::future::join_all;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use rcgen::{
    DnType, DnValue, ExtendedKeyUsagePurpose, KeyPair, PKCS_RSA_SHA256, RsaKeySize, SanType,
};
use rustls::{
    ClientConfig, RootCertStore, SignatureScheme, SupportedProtocolVersion,
    client::{ResolvesClientCert, Resumption},
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateRevocationListDer, ServerName},
    server::danger::ClientCertVerifier,
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use tokio::{
    io::{DuplexStream, duplex},
    sync::mpsc,
};
use tokio_rustls::{TlsConnector, client};

use super::{
    pki::{
        Authority, DAY, Folder, Identity, NOW, Spki, TestClock, by_sha1, day, pem, self_signed,
        signed_by_leaf,
    },
    *,
};

pub(crate) const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// A server with its own CA, that trusts the clients of another one, and its clock.
pub(crate) struct World {
    server_ca: Authority,
    pub(crate) ca: Authority,
    pub(crate) folder: Folder,
    clock: Arc<TestClock>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with_ca(Authority::root("clients"))
    }

    fn with_ca(ca: Authority) -> Self {
        let server_ca = Authority::root("servers");
        let folder = Folder::of(&server_ca.server());
        folder.put("ca.pem", ca.pem());
        Self {
            server_ca,
            ca,
            folder,
            clock: TestClock::new(),
        }
    }

    /// Another certificate of the server's.
    pub(crate) fn server(&self) -> Identity {
        self.server_ca.server()
    }

    async fn try_load(&self, table: &str) -> Result<Arc<Tls>, Vec<BuildError>> {
        let table = format!("{{\"cert\":\"server.pem\",\"key\":\"server.key\"{table}}}");
        let config: TlsConfig = serde_json::from_str(&table).unwrap();
        let mut cx = TlsContext::new("public", self.folder.path());
        cx.clock = Arc::clone(&self.clock) as Arc<dyn WallClock>;
        config.load(cx).await
    }

    pub(crate) async fn load(&self, table: &str) -> Arc<Tls> {
        self.try_load(table).await.unwrap()
    }

    /// One that asks for certificates, and knows a list of revoked ones.
    pub(crate) async fn load_strict(&self, revoked: &[u64]) -> Arc<Tls> {
        self.folder.put("crl.pem", self.ca.crl(-1, revoked));
        self.load(STRICT).await
    }

    pub(crate) fn client(&self, version: &'static SupportedProtocolVersion) -> ClientBuilder {
        let mut roots = RootCertStore::empty();
        roots.add(self.server_ca.der()).unwrap();
        ClientBuilder {
            roots,
            version,
            clock: Arc::clone(&self.clock),
        }
    }
}

pub(crate) const STRICT: &str =
    ",\"client_ca\":\"ca.pem\",\"client_cert\":\"required\",\"crl\":[\"crl.pem\"]";

pub(crate) struct ClientBuilder {
    roots: RootCertStore,
    version: &'static SupportedProtocolVersion,
    clock: Arc<TestClock>,
}

impl ClientBuilder {
    pub(crate) fn with(self, identity: Option<&Identity>) -> ClientConfig {
        let provider = Arc::new(default_provider());
        let clock = Arc::new(Wall(self.clock));
        let builder = ClientConfig::builder_with_details(Arc::clone(&provider), clock)
            .with_protocol_versions(&[self.version])
            .unwrap()
            .with_root_certificates(self.roots);
        match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let key = provider
                    .key_provider
                    .load_private_key(identity.key_der())
                    .unwrap();
                let shown = CertifiedKey::new(identity.chain.clone(), key);
                builder.with_client_cert_resolver(Arc::new(Shows(Arc::new(shown))))
            }
        }
    }
}

/// Shows what it has, whatever the server asks for and whether or not the key fits.
#[derive(Debug)]
struct Shows(Arc<CertifiedKey>);

impl ResolvesClientCert for Shows {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn address(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

type Served = Result<(TlsStream<DuplexStream>, TlsPeer), TlsFailure>;
type Connected = io::Result<client::TlsStream<DuplexStream>>;

/// A handshake and, where it leads to a connection, a byte each way: with TLS 1.3 a client hears only then what the
/// server thinks of its certificate, and gets its tickets.
async fn meet(tls: &Arc<Tls>, config: Arc<ClientConfig>, alpn: Alpn) -> (Served, Connected) {
    let (near, far) = duplex(1 << 16);
    let server = async {
        let (mut stream, peer) = tls.accept(near, alpn, address(1), address(2)).await?;
        stream.read_u8().await.unwrap();
        stream.write_u8(b'y').await.unwrap();
        stream.flush().await.unwrap();
        Ok((stream, peer))
    };
    let client = async {
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(config).connect(name, far).await?;
        stream.write_u8(b'x').await?;
        stream.flush().await?;
        stream.read_u8().await?;
        Ok(stream)
    };
    let (served, connected) = tokio::join!(server, client);
    assert_eq!(
        served.is_ok(),
        connected.is_ok(),
        "both ends agree: {served:?} {connected:?}"
    );
    (served, connected)
}

/// What a server makes of a client with that certificate.
async fn judge(
    world: &World,
    tls: &Arc<Tls>,
    version: &'static SupportedProtocolVersion,
    identity: Option<&Identity>,
) -> Result<Arc<TlsFacts>, TlsFailure> {
    let config = Arc::new(world.client(version).with(identity));
    let (served, _) = meet(tls, config, Alpn::CHINWAG).await;
    served.map(|(_, peer)| Arc::clone(peer.facts()))
}

/// That each of these clients is refused for its reason, by both versions.
async fn refuses(world: &World, tls: &Arc<Tls>, cases: &[(&str, Option<&Identity>, TlsFailure)]) {
    for version in VERSIONS {
        for (what, identity, reason) in cases {
            let verdict = judge(world, tls, version, *identity).await;
            assert_eq!(verdict.as_ref().err(), Some(reason), "{what}, {version:?}");
        }
    }
}

/// Remembers what was counted and set.
#[derive(Default)]
pub(crate) struct Numbers(Mutex<BTreeMap<String, Arc<AtomicU64>>>);

impl Numbers {
    fn at(&self, key: &Key) -> Arc<AtomicU64> {
        let labels: Vec<String> = key
            .labels()
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        let name = format!("{}{{{}}}", key.name(), labels.join(","));
        Arc::clone(self.0.lock().entry(name).or_default())
    }

    pub(crate) fn counted(&self, name: &str) -> u64 {
        let value = self.0.lock().get(name).cloned();
        value
            .unwrap_or_else(|| panic!("{name} is not registered"))
            .load(std::sync::atomic::Ordering::SeqCst)
    }

    fn gauged(&self, name: &str) -> f64 {
        f64::from_bits(self.counted(name))
    }
}

impl Recorder for Numbers {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.at(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.at(key))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

pub(crate) fn followed(tls: &Arc<Tls>) -> (Numbers, Lifecycle) {
    let (numbers, lifecycle) = (Numbers::default(), Lifecycle::new());
    let metrics = TlsMetrics::register(&numbers, "public", &tls.expiring());
    tls.follow(&lifecycle, metrics);
    (numbers, lifecycle)
}

/// Waits for what the watch on the files is to bring about. With the clock paused this takes no time.
async fn until(mut is_so: impl FnMut() -> bool) {
    let waited = timeout(Duration::from_secs(60), async {
        while !is_so() {
            tokio::time::sleep(LOOK_EVERY / 2).await;
        }
    });
    waited.await.expect("it never came to be so");
}

// What the table may say.

#[test]
fn a_table_has_defaults_for_all_but_certificate_and_key() {
    let config: TlsConfig = serde_json::from_str(r#"{"cert":"c","key":"k"}"#).unwrap();
    assert_eq!(config, TlsConfig::new("c", "k"));
    assert_eq!(config.handshake_timeout, Span::secs(10));
    assert!(config.check().is_ok());
    for wrong in [
        r#"{"cert":"c"}"#,
        r#"{"cert":"c","key":"k","crls":[]}"#,
        r#"{"cert":"c","key":"k","client_cert":"yes"}"#,
    ] {
        assert!(serde_json::from_str::<TlsConfig>(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn every_broken_rule_between_keys_is_told_with_its_key() {
    for (table, keys) in [
        (r#""client_cert":"required""#, vec!["client_cert"]),
        (r#""client_cert":"optional""#, vec!["client_cert"]),
        (
            r#""client_ca":"ca.pem","crl":["crl.pem"]"#,
            vec!["client_ca", "crl"],
        ),
        (
            r#""handshake_timeout":"0s","client_cert":"optional","client_ca":"a","crl":["c"]"#,
            vec!["handshake_timeout"],
        ),
    ] {
        let table = format!("{{\"cert\":\"c\",\"key\":\"k\",{table}}}");
        let config: TlsConfig = serde_json::from_str(&table).unwrap();
        let faults = config.check().unwrap_err();
        let found: Vec<_> = faults.iter().filter_map(|fault| fault.key).collect();
        assert_eq!(found, keys, "{table}");
    }
}

// What the files may hold.

#[tokio::test]
async fn every_file_that_can_not_be_used_is_told_with_its_key_and_a_way_out() {
    let world = World::new();
    let other = world.server_ca.server();
    let stranger = Authority::root("clients");
    let good = pem("CERTIFICATE", &other.chain[0]);
    let key = other.key.serialize_pem();
    let cut = good.split("-----END").next().unwrap().to_owned();
    let damaged = pem("CERTIFICATE", &other.chain[0][..100]);
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let legacy = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: x\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    let no_key = pem("PRIVATE KEY", b"no key");
    let crl = world.ca.crl(-1, &[]);
    let crl_cut = crl.replacen('M', "!", 1);
    let crl_damaged = pem("X509 CRL", b"0123456789");
    let foreign = stranger.crl(-1, &[]);
    let cases: &[(&str, &str, &[u8], &str)] = &[
        ("cert", "server.pem", b"", "has no certificate; it needs"),
        ("cert", "server.pem", key.as_bytes(), "but a private key"),
        ("cert", "server.pem", &other.chain[0], "DER"),
        ("cert", "server.pem", cut.as_bytes(), "cut off"),
        (
            "cert",
            "server.pem",
            damaged.as_bytes(),
            "certificate 1 is damaged",
        ),
        (
            "key",
            "server.pem",
            good.as_bytes(),
            "server.key: does not belong to the certificate in",
        ),
        (
            "key",
            "server.key",
            key.as_bytes(),
            "does not belong to the certificate in",
        ),
        ("key", "server.key", b"", "has no private key; it needs"),
        ("key", "server.key", good.as_bytes(), "but a certificate"),
        ("key", "server.key", other.key.serialized_der(), "DER"),
        ("key", "server.key", encrypted.as_bytes(), "is encrypted"),
        ("key", "server.key", legacy.as_bytes(), "is encrypted"),
        ("key", "server.key", no_key.as_bytes(), "can't be used"),
        ("client_ca", "ca.pem", b"", "has no certificate"),
        (
            "client_ca",
            "ca.pem",
            damaged.as_bytes(),
            "certificate 1 is damaged",
        ),
        ("crl", "crl.pem", b"", "has no list of revoked certificates"),
        (
            "crl",
            "crl.pem",
            good.as_bytes(),
            "has no list of revoked certificates",
        ),
        ("crl", "crl.pem", crl_cut.as_bytes(), "base64"),
        ("crl", "crl.pem", crl_damaged.as_bytes(), "damaged"),
        ("crl", "crl.pem", b"0123", "damaged"),
        (
            "crl",
            "crl.pem",
            foreign.as_bytes(),
            "not signed by the key of \"CN=clients\" in",
        ),
    ];
    world.folder.put("crl.pem", &crl);
    world.load(STRICT).await;
    for (key, file, content, text) in cases {
        let before = std::fs::read(world.folder.at(file)).unwrap();
        world.folder.put(file, content);
        let faults = world.try_load(STRICT).await.unwrap_err();
        world.folder.put(file, before);
        let [fault] = faults.as_slice() else {
            panic!("{file} {text}: {faults:?}")
        };
        assert_eq!(fault.key, Some(*key), "{fault}");
        let message = fault.to_string();
        assert!(message.contains(text), "{text}: {message}");
        assert!(
            message.contains(&*world.folder.path().to_string_lossy()),
            "{message}"
        );
        assert!(!message.contains("AAAA"), "no content of files: {message}");
    }
    for file in ["server.pem", "server.key", "ca.pem", "crl.pem"] {
        std::fs::remove_file(world.folder.at(file)).unwrap();
    }
    let faults = world.try_load(STRICT).await.unwrap_err();
    let keys: Vec<_> = faults.iter().filter_map(|fault| fault.key).collect();
    assert_eq!(
        keys,
        ["cert", "key", "client_ca"],
        "all at once: {faults:?}"
    );
    assert!(
        faults
            .iter()
            .all(|fault| fault.to_string().contains("can't be read"))
    );
}

#[tokio::test]
async fn a_list_whose_signature_nobody_can_check_is_told_at_the_start() {
    let world = World::new();
    let (old_ca, old_list) = by_sha1();
    let good = world.ca.crl(-1, &[]);
    // ECDSA with SHA-224, in both of the places that tell.
    let ecdsa = b"\x2a\x86\x48\xce\x3d\x04\x03";
    let mut sha224 = list_der(&good);
    for at in 0..sha224.len() - ecdsa.len() {
        if sha224[at..].starts_with(ecdsa) {
            sha224[at + ecdsa.len()] = 1;
        }
    }
    // A curve that nobody knows here: P-192 in the place of P-256.
    let p256 = b"\x2a\x86\x48\xce\x3d\x03\x01\x07";
    let mut odd_ca = world.ca.der().to_vec();
    let at = odd_ca.windows(p256.len()).position(|part| part == p256);
    odd_ca[at.unwrap() + p256.len() - 1] = 1;
    let sha224 = pem("X509 CRL", &sha224);
    for (what, ca, list, algorithm) in [
        ("SHA-1", &old_ca, &old_list, "1.2.840.113549.1.1.5"),
        ("SHA-224", &world.ca.pem(), &sha224, "1.2.840.10045.4.3.1"),
        (
            "P-192",
            &pem("CERTIFICATE", &odd_ca),
            &good,
            "1.2.840.10045.4.3.2",
        ),
    ] {
        world.folder.put("ca.pem", ca);
        world.folder.put("crl.pem", list);
        let faults = world.try_load(STRICT).await.unwrap_err();
        let [fault] = faults.as_slice() else {
            panic!("{what}: {faults:?}")
        };
        assert_eq!(fault.key, Some("crl"), "{what}");
        let message = fault.to_string();
        assert!(message.contains("is not supported"), "{what}: {message}");
        assert!(message.contains(algorithm), "{what}: {message}");
    }
}

#[tokio::test]
async fn a_list_by_a_strange_ca_whose_signature_nobody_can_check_keeps_out_whom_it_is_about_alone()
{
    let world = World::with_ca(Authority::root("others"));
    let between = world.ca.under("clients");
    let alice = numbered(&world.ca, 1);
    let revoked = numbered(&world.ca, 2);
    let below = numbered(&between, 1).followed_by(&between);
    let (_, old_list) = by_sha1();
    let good = world.ca.crl(-1, &[2]);
    // Of several lists by one issuer the newest is believed, whether or not it can be checked. That one is of 2026.
    let newer = format!("{old_list}{}{good}", between.crl(-1, &[]));
    let older = format!("{old_list}{}{good}", between.crl(-1300, &[]));
    for (lists, told, verdict) in [
        (
            format!("{good}{old_list}"),
            vec!["clients"],
            Some(TlsFailure::UnknownRevocation),
        ),
        (
            format!("{old_list}{good}"),
            vec!["clients"],
            Some(TlsFailure::UnknownRevocation),
        ),
        (newer, vec!["clients"; 2], None),
        (
            older,
            vec!["clients"; 3],
            Some(TlsFailure::UnknownRevocation),
        ),
        (
            old_list.clone(),
            vec!["clients", "others"],
            Some(TlsFailure::UnknownRevocation),
        ),
    ] {
        world.folder.put("crl.pem", &lists);
        let tls = world.load(STRICT).await;
        let warnings = tls.warnings();
        assert_eq!(warnings.len(), told.len(), "{warnings:?}");
        for (warning, name) in warnings.iter().zip(told) {
            assert!(warning.contains(&format!("\"CN={name}\"")), "{warning}");
        }
        let [unchecked] = warnings
            .iter()
            .filter(|warning| warning.contains("not supported, or not safe"))
            .collect::<Vec<_>>()[..]
        else {
            panic!("{warnings:?}")
        };
        for part in ["crl.pem", "1.2.840.113549.1.1.5", "is refused"] {
            assert!(unchecked.contains(part), "{unchecked}");
        }
        for version in VERSIONS {
            let verdict_on = async |identity| judge(&world, &tls, version, Some(identity)).await;
            let is_covered = lists.contains(&good);
            let uncovered = (!is_covered).then_some(TlsFailure::UnknownRevocation);
            let gone = uncovered.unwrap_or(TlsFailure::Revoked);
            assert_eq!(verdict_on(&alice).await.err(), uncovered);
            assert_eq!(verdict_on(&revoked).await.err(), Some(gone));
            assert_eq!(verdict_on(&below).await.err(), verdict);
        }
    }
}

#[tokio::test]
async fn a_file_without_end_is_refused() {
    let world = World::new();
    world.folder.put("server.pem", vec![b'\n'; (4 << 20) + 1]);
    let faults = world.try_load("").await.unwrap_err();
    assert!(faults[0].to_string().contains("over 4 MiB"), "{faults:?}");
}

#[cfg(unix)]
#[tokio::test]
async fn what_is_no_regular_file_is_refused_and_not_waited_for() {
    const PATIENCE: Duration = Duration::from_secs(20);
    type Make = fn(&Path);
    let world = World::new();
    let (tls, numbers) = counted(&world).await;
    let path = world.folder.at("server.pem");
    let kinds: [(&str, Make); 3] = [
        ("a pipe", |path| {
            let status = std::process::Command::new("mkfifo").arg(path).status();
            assert!(status.unwrap().success());
        }),
        ("a folder", |path| std::fs::create_dir(path).unwrap()),
        ("a device", |path| {
            std::os::unix::fs::symlink("/dev/zero", path).unwrap();
        }),
    ];
    for (times, (kind, make)) in (1..).zip(kinds) {
        std::fs::remove_file(&path)
            .or_else(|_| std::fs::remove_dir(&path))
            .unwrap();
        make(&path);
        let read = async { (world.try_load("").await.err(), tls.reload().await.err()) };
        let Ok((loaded, reloaded)) = timeout(PATIENCE, read).await else {
            // Whoever waits for the other end is let go, so that this test comes to its end.
            let other_end = std::fs::File::options().read(true).write(true).open(&path);
            drop(other_end);
            panic!("{kind} is waited for");
        };
        for faults in [loaded, reloaded] {
            let faults = faults.unwrap_or_else(|| panic!("{kind} is taken"));
            let [fault] = faults.as_slice() else {
                panic!("{kind}: {faults:?}")
            };
            assert_eq!(fault.key, Some("cert"), "{kind}");
            let message = fault.to_string();
            assert!(
                message.ends_with("server.pem: is not a regular file"),
                "{kind}: {message}"
            );
        }
        assert_eq!(failed(&numbers), times, "{kind}");
    }
    std::fs::remove_file(&path).unwrap();
    world.folder.put_server(&world.server());
    tls.reload().await.unwrap();
}

#[tokio::test]
async fn a_list_by_a_key_that_is_too_weak_is_told_as_that() {
    let world = World::new();
    let weak = world.ca.client_with_key("clients", Spki::rsa_1024());
    let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let strong = Authority::root_with("clients", rsa);
    world.folder.put("crl.pem", strong.crl(-1, &[]));
    for (ca, told) in [
        (pem("CERTIFICATE", &weak.chain[0]), "is too weak"),
        (world.ca.pem(), "is not signed by the key of"),
    ] {
        world.folder.put("ca.pem", ca);
        let faults = world.try_load(STRICT).await.unwrap_err();
        let [fault] = faults.as_slice() else {
            panic!("{faults:?}")
        };
        assert_eq!(fault.key, Some("crl"));
        assert!(fault.to_string().contains(told), "{fault}");
    }
}

#[tokio::test]
async fn what_is_odd_but_works_is_a_warning() {
    let world = World::new();
    let server = |edit: fn(&mut rcgen::CertificateParams)| {
        let identity = world.server_ca.client("server", |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.subject_alt_names = vec![SanType::DnsName("localhost".try_into().unwrap())];
            edit(params);
        });
        world.folder.put_server(&identity);
    };
    assert_eq!(world.load("").await.warnings(), [""; 0]);
    for (edit, text) in [
        (
            (|params| params.not_after = day(-1)) as fn(&mut rcgen::CertificateParams),
            "\"CN=server\" has expired at",
        ),
        (
            |params| params.not_before = day(1),
            "\"CN=server\" is not valid before",
        ),
        (
            |params| {
                params.not_before = day(-76);
                params.not_after = day(13);
            },
            "\"CN=server\" ends soon, at",
        ),
        (
            |params| params.subject_alt_names.clear(),
            "no DNS name or address",
        ),
        (
            |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
            "is not for servers",
        ),
    ] {
        server(edit);
        let warnings = world.load("").await.warnings();
        let [warning] = warnings.as_slice() else {
            panic!("{text}: {warnings:?}")
        };
        assert!(
            warning.contains(text) && warning.contains("server.pem"),
            "{warning}"
        );
    }
    server(|params| {
        params.not_before = day(-1);
        params.not_after = day(1);
    });
    assert_eq!(world.load("").await.warnings(), [""; 0], "short, and fresh");
    server(|_| ());
    let mut chain = std::fs::read(world.folder.at("server.pem")).unwrap();
    chain.extend(world.ca.pem().bytes());
    world.folder.put("server.pem", chain);
    let warnings = world.load("").await.warnings();
    assert!(warnings[0].contains("out of order"), "{warnings:?}");

    server(|_| ());
    for (list, texts) in [
        (world.ca.crl(-31, &[]), vec!["out of date since"]),
        (
            Authority::root("other").crl(-1, &[]),
            vec![
                "by \"CN=other\", which is not in",
                "no list in `crl` is by \"CN=clients\"",
            ],
        ),
    ] {
        world.folder.put("crl.pem", list);
        let warnings = world.load(STRICT).await.warnings();
        assert_eq!(warnings.len(), texts.len(), "{warnings:?}");
        for (warning, text) in warnings.iter().zip(texts) {
            assert!(warning.contains(text), "{warning}");
        }
    }
    let lonely = self_signed("lonely");
    world
        .folder
        .put("ca.pem", pem("CERTIFICATE", &lonely.chain[0]));
    let warnings = world
        .load(",\"client_ca\":\"ca.pem\",\"client_cert\":\"optional\"")
        .await
        .warnings();
    assert!(
        warnings[0].contains("\"CN=lonely\" is no CA"),
        "{warnings:?}"
    );
}

#[cfg(unix)]
#[tokio::test]
async fn a_key_that_others_can_read_is_a_warning() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    let path = world.folder.at("server.key");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let warnings = world.load("").await.warnings();
    assert!(warnings[0].contains("chmod o-rw"), "{warnings:?}");
}

// Who gets in.

#[tokio::test]
async fn a_good_client_is_let_in_and_known_by_its_certificate() {
    let world = World::new();
    let tls = world.load_strict(&[]).await;
    let alice = world.ca.client("alice", |params| {
        params.serial_number = Some(0x00ab_cdef.into());
        params.subject_alt_names = vec![
            SanType::Rfc822Name("alice@example.org".try_into().unwrap()),
            SanType::DnsName("alice.example.org".try_into().unwrap()),
            SanType::URI("spiffe://example.org/alice".try_into().unwrap()),
        ];
    });
    for (version, name) in VERSIONS.into_iter().zip(["TLS1.2", "TLS1.3"]) {
        let facts = judge(&world, &tls, version, Some(&alice)).await.unwrap();
        assert_eq!(facts.version, name);
        let is_suite = match name {
            "TLS1.3" => facts.cipher.starts_with("TLS_AES_"),
            _ => facts.cipher.starts_with("TLS_ECDHE_ECDSA_WITH_AES_"),
        };
        assert!(is_suite, "{}", facts.cipher);
        assert_eq!(facts.server_name.as_deref(), Some("localhost"));
        assert_eq!((facts.local, facts.remote), (address(1), address(2)));
        let certificate = facts.certificate.as_ref().unwrap();
        assert_eq!(certificate.chain, [alice.chain[0].to_vec()]);
        assert_eq!(certificate.subject, "CN=alice");
        assert_eq!(certificate.common_names, ["alice"]);
        assert_eq!(certificate.emails, ["alice@example.org"]);
        assert_eq!(certificate.dns_names, ["alice.example.org"]);
        assert_eq!(certificate.uris, ["spiffe://example.org/alice"]);
        assert_eq!(certificate.serial, "abcdef");
        assert_eq!(certificate.fingerprint.len(), 64);
        assert_eq!(certificate.expires_at, (NOW + 100 * DAY) * 1000);
        tls.judge(certificate).unwrap();
    }
}

#[tokio::test]
async fn clients_are_asked_for_a_certificate_as_the_table_says() {
    let world = World::new();
    let alice = world.ca.client("alice", |_| ());
    let mallory = self_signed("alice");
    for version in VERSIONS {
        let never = world.load("").await;
        for identity in [None, Some(&alice), Some(&mallory)] {
            let facts = judge(&world, &never, version, identity).await.unwrap();
            assert_eq!(facts.certificate, None, "nobody asked");
        }
        let optional = ",\"client_ca\":\"ca.pem\",\"client_cert\":\"optional\"";
        let maybe = world.load(optional).await;
        let facts = judge(&world, &maybe, version, None).await.unwrap();
        assert_eq!(facts.certificate, None);
        let facts = judge(&world, &maybe, version, Some(&alice)).await.unwrap();
        assert!(facts.certificate.is_some());
        let verdict = judge(&world, &maybe, version, Some(&mallory)).await;
        assert_eq!(verdict.err(), Some(TlsFailure::UnknownCa));
    }
}

#[tokio::test]
async fn every_bad_certificate_is_refused_for_its_own_reason() {
    let world = World::new();
    let tls = world.load_strict(&[13]).await;
    let ca = &world.ca;
    let expired = ca.client("alice", |params| params.not_after = day(-1));
    let early = ca.client("alice", |params| params.not_before = day(1));
    let elsewhere = Authority::root("elsewhere").client("alice", |_| ());
    let namesake = Authority::root("clients").client("alice", |_| ());
    let for_servers = ca.client("alice", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let revoked = ca.client("alice", |params| params.serial_number = Some(13.into()));
    let own = self_signed("alice");
    let own_as_ca = self_signed("clients");
    let by_leaf = signed_by_leaf(ca);
    let is_ca = ca.client("alice", |params| {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    });
    let short = ca.client_with_key("alice", Spki::rsa_1024());
    let narrow = ca.client_with_key("alice", Spki::p192());
    let good = || ca.client("alice", |_| ());
    let other_name = good().altered(|der| {
        let at = der.windows(5).position(|part| part == b"alice").unwrap();
        der[at] = b'A';
    });
    let other_signature = good().altered(|der| *der.last_mut().unwrap() ^= 1);
    let cut = good().altered(|der| der.truncate(der.len() / 2));
    let noise = good().altered(|der| der.fill(0xa5));
    let nothing = good().altered(Vec::clear);
    let long = (0..5).fold(good(), |long, _| long.followed_by(&Authority::root("any")));
    let not_its_own = Identity {
        chain: good().chain,
        key: KeyPair::generate().unwrap(),
    };
    refuses(
        &world,
        &tls,
        &[
            ("no certificate", None, TlsFailure::NoCertificate),
            ("expired", Some(&expired), TlsFailure::Expired),
            ("not yet valid", Some(&early), TlsFailure::NotYetValid),
            ("of another CA", Some(&elsewhere), TlsFailure::UnknownCa),
            (
                "of a CA of that name",
                Some(&namesake),
                TlsFailure::BadSignature,
            ),
            ("for servers", Some(&for_servers), TlsFailure::WrongUsage),
            ("revoked", Some(&revoked), TlsFailure::Revoked),
            ("self-signed", Some(&own), TlsFailure::UnknownCa),
            (
                "self-signed as the CA",
                Some(&own_as_ca),
                TlsFailure::BadSignature,
            ),
            ("signed by a leaf", Some(&by_leaf), TlsFailure::UnknownCa),
            ("a CA's own", Some(&is_ca), TlsFailure::WrongUsage),
            ("RSA of 1024 bits", Some(&short), TlsFailure::Weak),
            ("P-192", Some(&narrow), TlsFailure::Weak),
            ("another name", Some(&other_name), TlsFailure::BadSignature),
            (
                "another signature",
                Some(&other_signature),
                TlsFailure::BadSignature,
            ),
            ("cut", Some(&cut), TlsFailure::BadCertificate),
            ("noise", Some(&noise), TlsFailure::BadCertificate),
            ("nothing", Some(&nothing), TlsFailure::BadCertificate),
            (
                "too many beside it",
                Some(&long),
                TlsFailure::BadCertificate,
            ),
            (
                "somebody else's",
                Some(&not_its_own),
                TlsFailure::BadSignature,
            ),
        ],
    )
    .await;
    for version in VERSIONS {
        let verdict = judge(&world, &tls, version, Some(&good())).await;
        assert!(verdict.is_ok(), "the server goes on: {verdict:?}");
    }
}

#[tokio::test]
async fn signatures_by_broken_digests_prove_nothing() {
    let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let world = World::with_ca(Authority::root_with("clients", key));
    let tls = world.load_strict(&[]).await;
    let signed_with = |digest: u8| {
        world.ca.client("alice", |_| ()).altered(|der| {
            let sha256 = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b";
            for at in 0..der.len() - sha256.len() {
                if der[at..].starts_with(sha256) {
                    der[at + 8] = digest;
                }
            }
        })
    };
    let (md5, sha1) = (signed_with(4), signed_with(5));
    refuses(
        &world,
        &tls,
        &[
            ("MD5", Some(&md5), TlsFailure::Weak),
            ("SHA-1", Some(&sha1), TlsFailure::Weak),
        ],
    )
    .await;
}

#[tokio::test]
async fn the_whole_way_to_the_ca_is_judged() {
    let world = World::new();
    let middle = world
        .ca
        .under_with("middle", |params| params.serial_number = Some(5.into()));
    let late = world
        .ca
        .under_with("late", |params| params.not_after = day(-1));
    let last = world.ca.under_with("last", |params| {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    });
    let beyond = last.under("beyond");
    let alone = middle.client("alice", |_| ());
    let whole = middle.client("alice", |_| ()).followed_by(&middle);
    let gone = middle
        .client("bob", |params| params.serial_number = Some(7.into()))
        .followed_by(&middle);
    let outlived = late.client("alice", |_| ()).followed_by(&late);
    let too_deep = beyond
        .client("alice", |_| ())
        .followed_by(&beyond)
        .followed_by(&last);
    let lists = |root: &[u64]| world.ca.crl(-1, root) + &middle.crl(-1, &[7]);

    world.folder.put("crl.pem", lists(&[]));
    let tls = world.load(STRICT).await;
    for version in VERSIONS {
        let facts = judge(&world, &tls, version, Some(&whole)).await.unwrap();
        assert_eq!(facts.certificate.as_ref().unwrap().chain.len(), 2);
    }
    refuses(
        &world,
        &tls,
        &[
            (
                "a certificate is missing",
                Some(&alone),
                TlsFailure::UnknownCa,
            ),
            (
                "revoked by the one between",
                Some(&gone),
                TlsFailure::Revoked,
            ),
            (
                "the one between has expired",
                Some(&outlived),
                TlsFailure::Expired,
            ),
            ("too far down", Some(&too_deep), TlsFailure::UnknownCa),
        ],
    )
    .await;
    world.folder.put("crl.pem", lists(&[5]));
    let tls = world.load(STRICT).await;
    let all = [(
        "the one between is revoked",
        Some(&whole),
        TlsFailure::Revoked,
    )];
    refuses(&world, &tls, &all).await;
    world.folder.put("crl.pem", world.ca.crl(-1, &[]));
    let tls = world.load(STRICT).await;
    let all = [("nobody tells", Some(&whole), TlsFailure::UnknownRevocation)];
    refuses(&world, &tls, &all).await;
}

#[tokio::test]
async fn a_list_out_of_date_lets_nobody_in_and_says_so() {
    let world = World::new();
    let tls = world.load_strict(&[13]).await;
    let alice = world.ca.client("alice", |_| ());
    let revoked = world
        .ca
        .client("bob", |params| params.serial_number = Some(13.into()));
    for version in VERSIONS {
        judge(&world, &tls, version, Some(&alice)).await.unwrap();
    }
    world.clock.advance(30 * DAY);
    refuses(
        &world,
        &tls,
        &[
            ("good", Some(&alice), TlsFailure::StaleCrl),
            ("revoked", Some(&revoked), TlsFailure::StaleCrl),
        ],
    )
    .await;
    world.folder.put("crl.pem", world.ca.crl(29, &[13]));
    tls.reload().await.unwrap();
    for version in VERSIONS {
        judge(&world, &tls, version, Some(&alice)).await.unwrap();
    }
}

#[tokio::test]
async fn of_several_lists_the_newest_is_believed() {
    let world = World::new();
    let revoked = world
        .ca
        .client("bob", |params| params.serial_number = Some(13.into()));
    let (old, new) = (world.ca.crl(-40, &[]), world.ca.crl(-1, &[13]));
    for both in [old.clone() + &new, new + &old] {
        world.folder.put("crl.pem", both);
        let tls = world.load(STRICT).await;
        let all = [("revoked by the newer", Some(&revoked), TlsFailure::Revoked)];
        refuses(&world, &tls, &all).await;
    }
}

/// A CA with two keys of one name, both trusted, and a list by each with its own serial numbers.
fn put_rekeyed(world: &World, new: &Authority, old_revokes: &[u64], new_revokes: &[u64]) {
    world.folder.put("ca.pem", world.ca.pem() + &new.pem());
    let lists = world.ca.crl(-2, old_revokes) + &new.crl(-1, new_revokes);
    world.folder.put("crl.pem", lists);
}

fn numbered(ca: &Authority, serial: u64) -> Identity {
    ca.client("somebody", |params| {
        params.serial_number = Some(serial.into())
    })
}

#[tokio::test]
async fn the_clients_of_each_key_of_a_ca_are_held_against_the_list_of_that_key() {
    let world = World::new();
    let new = Authority::root("clients");
    put_rekeyed(&world, &new, &[1, 2], &[3]);
    let tls = world.load(STRICT).await;
    assert_eq!(tls.warnings(), [""; 0]);
    for version in VERSIONS {
        for (ca, serial) in [(&world.ca, 3), (&new, 1), (&new, 2)] {
            let verdict = judge(&world, &tls, version, Some(&numbered(ca, serial))).await;
            assert!(verdict.is_ok(), "{serial}: {verdict:?}");
        }
    }
    let (by_old, by_new) = (numbered(&world.ca, 1), numbered(&new, 3));
    let late = new.client("late", |params| params.not_after = day(-1));
    let namesake = Authority::root("clients").client("mallory", |_| ());
    let elsewhere = Authority::root("elsewhere").client("mallory", |_| ());
    refuses(
        &world,
        &tls,
        &[
            ("revoked by the old key", Some(&by_old), TlsFailure::Revoked),
            ("revoked by the new key", Some(&by_new), TlsFailure::Revoked),
            ("expired", Some(&late), TlsFailure::Expired),
            ("of a third key", Some(&namesake), TlsFailure::BadSignature),
            ("of another CA", Some(&elsewhere), TlsFailure::UnknownCa),
        ],
    )
    .await;
}

#[tokio::test]
async fn a_key_may_be_followed_by_one_of_another_kind() {
    let rsa = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let world = World::with_ca(Authority::root_with("clients", rsa));
    let new = Authority::root("clients");
    put_rekeyed(&world, &new, &[1], &[2]);
    let tls = world.load(STRICT).await;
    assert_eq!(tls.warnings(), [""; 0]);
    for (ca, good, revoked) in [(&world.ca, 2, 1), (&new, 1, 2)] {
        let verdict = judge(&world, &tls, &TLS13, Some(&numbered(ca, good))).await;
        assert!(verdict.is_ok(), "{verdict:?}");
        let revoked = numbered(ca, revoked);
        let all = [("revoked", Some(&revoked), TlsFailure::Revoked)];
        refuses(&world, &tls, &all).await;
    }
}

#[tokio::test]
async fn a_key_without_a_list_lets_nobody_in_whatever_other_keys_of_its_name_have() {
    let world = World::new();
    let new = Authority::root("clients");
    for (with, without) in [(&world.ca, &new), (&new, &world.ca)] {
        world.folder.put("ca.pem", world.ca.pem() + &new.pem());
        world.folder.put("crl.pem", with.crl(-1, &[]));
        let tls = world.load(STRICT).await;
        let warnings = tls.warnings();
        assert!(
            matches!(&*warnings, [one] if one.contains("signed by the key of certificate")),
            "{warnings:?}"
        );
        let verdict = judge(&world, &tls, &TLS13, Some(&numbered(with, 1))).await;
        assert!(verdict.is_ok(), "{verdict:?}");
        let other = numbered(without, 1);
        let all = [("no list", Some(&other), TlsFailure::UnknownRevocation)];
        refuses(&world, &tls, &all).await;
    }
}

#[tokio::test]
async fn a_certificate_renewed_for_the_same_key_changes_nothing() {
    let key = KeyPair::generate().unwrap();
    let again = KeyPair::from_pem(&key.serialize_pem()).unwrap();
    let world = World::with_ca(Authority::root_with("clients", key));
    let renewed = Authority::root_with("clients", again);
    world.folder.put("ca.pem", world.ca.pem() + &renewed.pem());
    let tls = world.load_strict(&[1]).await;
    assert_eq!(tls.warnings(), [""; 0]);
    let verdict = judge(&world, &tls, &TLS13, Some(&numbered(&world.ca, 2))).await;
    assert!(verdict.is_ok(), "{verdict:?}");
    let revoked = numbered(&world.ca, 1);
    let all = [("revoked", Some(&revoked), TlsFailure::Revoked)];
    refuses(&world, &tls, &all).await;
}

#[tokio::test]
async fn clients_are_told_of_every_ca() {
    let world = World::new();
    let other = Authority::root("other");
    put_rekeyed(&world, &Authority::root("clients"), &[], &[]);
    let mut all = std::fs::read_to_string(world.folder.at("ca.pem")).unwrap();
    all += &other.pem();
    all += &Authority::root("other").pem();
    world.folder.put("ca.pem", all);
    let tls = world.load(STRICT).await;
    let material = tls.current();
    let verifier = &material.clients.as_ref().unwrap().verifier;
    let names = verifier.root_hint_subjects().len();
    assert_eq!(names, 4, "two names, twice each");
    assert!(verifier.client_auth_mandatory());
}

fn list_der(list: &str) -> Vec<u8> {
    let der = CertificateRevocationListDer::from_pem_slice(list.as_bytes());
    der.unwrap().to_vec()
}

#[tokio::test]
async fn a_list_may_be_der() {
    let world = World::new();
    let revoked = world
        .ca
        .client("bob", |params| params.serial_number = Some(13.into()));
    let list = world.ca.crl(-1, &[13]);
    world.folder.put("crl.pem", list_der(&list));
    let tls = world.load(STRICT).await;
    let all = [("revoked", Some(&revoked), TlsFailure::Revoked)];
    refuses(&world, &tls, &all).await;
}

// What else may go wrong at the door.

#[tokio::test(start_paused = true)]
async fn a_handshake_has_a_time_limit() {
    let world = World::new();
    let tls = world.load(",\"handshake_timeout\":\"3s\"").await;
    let (near, _far) = duplex(1024);
    let began = clock::now();
    let verdict = tls
        .accept(near, Alpn::CHINWAG, address(1), address(2))
        .await;
    assert_eq!(verdict.err(), Some(TlsFailure::Timeout));
    assert_eq!(began.elapsed(), Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn a_refused_client_has_a_second_to_read_why_and_no_more() {
    let world = World::new();
    let tls = world.load("").await;
    let (near, mut far) = duplex(1024);
    far.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let began = clock::now();
    let verdict = tls.accept(near, Alpn::HTTP, address(1), address(2)).await;
    assert_eq!(verdict.err(), Some(TlsFailure::Malformed));
    assert_eq!(began.elapsed(), LINGER);
    let mut alert = Vec::new();
    far.read_to_end(&mut alert).await.unwrap();
    assert_eq!(alert.first(), Some(&21), "an alert: {alert:?}");
}

#[tokio::test]
async fn whoever_leaves_or_does_not_trust_the_server_is_counted_apart() {
    let world = World::new();
    let tls = world.load("").await;
    let (numbers, _lifecycle) = followed(&tls);
    let (near, far) = duplex(1024);
    drop(far);
    let verdict = tls
        .accept(near, Alpn::CHINWAG, address(1), address(2))
        .await;
    assert_eq!(verdict.err(), Some(TlsFailure::Closed));
    for version in VERSIONS {
        let mut client = world.client(version);
        client.roots = RootCertStore::empty();
        client.roots.add(world.ca.der()).unwrap();
        let (served, _) = meet(&tls, Arc::new(client.with(None)), Alpn::CHINWAG).await;
        assert_eq!(served.err(), Some(TlsFailure::Alert));
    }
    let failures = |reason| {
        numbers.counted(&format!(
            "chinwag_tls_failures_total{{tls=public,reason={reason}}}"
        ))
    };
    assert_eq!((failures("closed"), failures("alert")), (1, 2));
    assert_eq!(failures("other"), 0);
}

#[tokio::test]
async fn what_is_spoken_is_negotiated_with_those_who_negotiate() {
    const CARRIER: Alpn = Alpn::new("carrier/1");
    let world = World::new();
    let tls = world.load("").await;
    for version in VERSIONS {
        for (alpn, offered, agreed) in [
            (Alpn::HTTP, vec![], Ok(None)),
            (Alpn::HTTP, vec!["http/1.1"], Ok(Some("http/1.1"))),
            (Alpn::HTTP, vec!["h2", "http/1.1"], Ok(Some("http/1.1"))),
            (Alpn::HTTP, vec!["h2"], Err(TlsFailure::Incompatible)),
            (Alpn::CHINWAG, vec![], Ok(None)),
            (Alpn::CHINWAG, vec!["h2", "chinwag"], Ok(Some("chinwag"))),
            (
                Alpn::CHINWAG,
                vec!["http/1.1"],
                Err(TlsFailure::Incompatible),
            ),
            (Alpn::CHINWAG, vec!["h2"], Err(TlsFailure::Incompatible)),
            (CARRIER, vec![], Ok(None)),
            (CARRIER, vec!["chinwag", "carrier/1"], Ok(Some("carrier/1"))),
            (CARRIER, vec!["chinwag"], Err(TlsFailure::Incompatible)),
            (CARRIER, vec!["carrier"], Err(TlsFailure::Incompatible)),
        ] {
            let mut config = world.client(version).with(None);
            config.alpn_protocols = offered
                .iter()
                .map(|name| name.as_bytes().to_vec())
                .collect();
            let (served, _) = meet(&tls, Arc::new(config), alpn).await;
            let found = served.map(|(stream, _)| {
                let agreed = stream.get_ref().1.alpn_protocol();
                agreed.map(|name| String::from_utf8(name.to_vec()).unwrap())
            });
            assert_eq!(
                found,
                agreed.map(|name| name.map(str::to_owned)),
                "{alpn:?} {offered:?}"
            );
        }
    }
}

#[tokio::test]
async fn handshakes_are_counted_by_kind_and_reason() {
    let world = World::new();
    let tls = world.load_strict(&[]).await;
    let (numbers, _lifecycle) = followed(&tls);
    let alice = world.ca.client("alice", |_| ());
    judge(&world, &tls, &TLS13, Some(&alice)).await.unwrap();
    judge(&world, &tls, &TLS13, None).await.unwrap_err();
    assert_eq!(
        numbers.counted("chinwag_tls_handshakes_total{tls=public,kind=full}"),
        1
    );
    assert_eq!(
        numbers.counted("chinwag_tls_handshakes_total{tls=public,kind=resumed}"),
        0
    );
    assert_eq!(
        numbers.counted("chinwag_tls_failures_total{tls=public,reason=no_certificate}"),
        1
    );
}

// Coming back.

/// What becomes of a client that comes again with what its first connection gave it, after `between`.
async fn again(
    world: &World,
    tls: &Arc<Tls>,
    version: &'static SupportedProtocolVersion,
    identity: Option<&Identity>,
    between: impl AsyncFnOnce(),
) -> Result<(bool, Arc<TlsFacts>), TlsFailure> {
    let mut config = world.client(version).with(identity);
    config.resumption = Resumption::in_memory_sessions(8);
    let config = Arc::new(config);
    let (first, _connected) = meet(tls, Arc::clone(&config), Alpn::CHINWAG).await;
    assert!(!is_resumed(first.unwrap().0.get_ref().1));
    between().await;
    let (second, _connected) = meet(tls, config, Alpn::CHINWAG).await;
    second.map(|(stream, peer)| (is_resumed(stream.get_ref().1), Arc::clone(peer.facts())))
}

#[tokio::test]
async fn a_client_resumes_and_keeps_its_certificate() {
    let world = World::new();
    let tls = world.load_strict(&[]).await;
    let (numbers, _lifecycle) = followed(&tls);
    let alice = world.ca.client("alice", |_| ());
    for version in VERSIONS {
        let (is_resumed, facts) = again(&world, &tls, version, Some(&alice), async || ())
            .await
            .unwrap();
        assert!(is_resumed, "{version:?}");
        assert_eq!(facts.certificate.as_ref().unwrap().common_names, ["alice"]);
    }
    assert_eq!(
        numbers.counted("chinwag_tls_handshakes_total{tls=public,kind=resumed}"),
        2
    );
}

#[tokio::test]
async fn a_new_certificate_of_the_server_leaves_tickets_good() {
    let world = World::new();
    let tls = world.load_strict(&[]).await;
    let alice = world.ca.client("alice", |_| ());
    for version in VERSIONS {
        let renew = async || {
            world.folder.put_server(&world.server_ca.server());
            tls.reload().await.unwrap();
        };
        let (is_resumed, _) = again(&world, &tls, version, Some(&alice), renew)
            .await
            .unwrap();
        assert!(is_resumed, "{version:?}");
    }
}

#[tokio::test]
async fn resuming_is_no_way_around_the_end_of_a_certificate_or_a_list() {
    let world = World::new();
    let tls = world.load_strict(&[]).await;
    let alice = world.ca.client("alice", |params| params.not_after = day(1));
    let bob = world.ca.client("bob", |_| ());
    for version in VERSIONS {
        let verdict = again(&world, &tls, version, Some(&alice), async || {
            world.clock.advance(2 * DAY);
        })
        .await;
        assert_eq!(verdict.err(), Some(TlsFailure::Expired), "{version:?}");
        world.clock.rewind(2 * DAY);
        let verdict = again(&world, &tls, version, Some(&bob), async || {
            world.clock.advance(30 * DAY);
        })
        .await;
        assert_eq!(verdict.err(), Some(TlsFailure::StaleCrl), "{version:?}");
        world.clock.rewind(30 * DAY);
    }
}

#[tokio::test]
async fn resuming_is_no_way_around_a_revocation() {
    let world = World::new();
    let alice = world
        .ca
        .client("alice", |params| params.serial_number = Some(13.into()));
    let bob = world.ca.client("bob", |_| ());
    for version in VERSIONS {
        for (client, is_good) in [(&alice, false), (&bob, true)] {
            let tls = world.load_strict(&[]).await;
            let revoke = async || {
                world.folder.put("crl.pem", world.ca.crl(0, &[13]));
                tls.reload().await.unwrap();
            };
            let verdict = again(&world, &tls, version, Some(client), revoke).await;
            match verdict {
                Ok((is_resumed, _)) => assert!(is_good && !is_resumed, "judged from the start"),
                Err(failure) => assert!(!is_good && failure == TlsFailure::Revoked, "{failure:?}"),
            }
        }
    }
}

// New files.

#[tokio::test(start_paused = true)]
async fn changed_files_are_noticed_and_told_in_metrics() {
    let world = World::new();
    let tls = world.load_strict(&[]).await;
    let (numbers, lifecycle) = followed(&tls);
    let ends = |what| {
        numbers.gauged(&format!(
            "chinwag_tls_expiry_timestamp_seconds{{tls=public,what={what}}}"
        ))
    };
    let at = |days: u64| (NOW + days * DAY) as f64;
    assert_eq!(
        (ends("certificate"), ends("client_ca"), ends("crl")),
        (at(100), at(100), at(29))
    );
    let reloads = |outcome| {
        numbers.counted(&format!(
            "chinwag_config_reloads_total{{what=tls,name=public,outcome={outcome}}}"
        ))
    };
    world.folder.put("crl.pem", world.ca.crl(0, &[]));
    until(|| reloads("ok") == 1).await;
    assert_eq!(ends("crl"), at(30));

    // A broken file keeps the old one, and is not tried again and again.
    let before = tls.current();
    world.folder.put("server.pem", "nonsense");
    until(|| reloads("failed") == 1).await;
    tokio::time::sleep(10 * LOOK_EVERY).await;
    assert_eq!((reloads("ok"), reloads("failed")), (1, 1));
    assert!(Arc::ptr_eq(&before, &tls.current()));
    let alice = world.ca.client("alice", |_| ());
    judge(&world, &tls, &TLS13, Some(&alice)).await.unwrap();

    world.folder.put_server(&world.server_ca.server());
    until(|| reloads("ok") == 2).await;
    assert!(!Arc::ptr_eq(&before, &tls.current()));
    assert_eq!(lifecycle.shut_down(Duration::from_secs(1)).await, 0);
}

#[tokio::test]
async fn only_what_has_an_end_has_a_gauge_for_it() {
    let world = World::new();
    let tls = world.load("").await;
    let (numbers, _lifecycle) = followed(&tls);
    let gauges: Vec<_> = numbers
        .0
        .lock()
        .keys()
        .filter(|name| name.contains("expiry"))
        .cloned()
        .collect();
    assert_eq!(
        gauges,
        ["chinwag_tls_expiry_timestamp_seconds{tls=public,what=certificate}"]
    );
}

/// Keeps what is logged on this thread.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub(crate) fn keep(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(move || log.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    pub(crate) fn lines(&self, with: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().clone()).unwrap();
        let lines = text.lines().filter(|line| line.contains(with));
        lines.map(str::to_owned).collect()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_file_that_can_not_be_used_is_told_in_the_log_and_not_shown() {
    let world = World::new();
    let tls = world.load("").await;
    world
        .folder
        .put("server.key", "-----BEGIN PRIVATE KEY-----\nsecret!\n");
    let log = Log::default();
    let guard = log.keep();
    take(&tls).unwrap_err();
    drop(guard);
    let lines = log.lines("those read before stay");
    let [line] = lines.as_slice() else {
        panic!("{lines:?}")
    };
    for part in ["ERROR", "public", "key", "server.key: is cut off"] {
        assert!(line.contains(part), "{line}");
    }
    assert!(log.lines("secret").is_empty());
}

/// Reads the files on this thread, of which the log is kept.
fn take(tls: &Tls) -> Result<(), Vec<BuildError>> {
    tls.take(&mut tls.following.try_lock().unwrap(), Due::Changed)
}

fn look(tls: &Tls) {
    tls.look(&mut tls.following.try_lock().unwrap());
}

/// A table whose reloads are counted, and that is looked at by hand.
async fn counted(world: &World) -> (Arc<Tls>, Numbers) {
    let tls = world.load("").await;
    let numbers = Numbers::default();
    let metrics = TlsMetrics::register(&numbers, "public", &tls.expiring());
    assert!(tls.metrics.set(metrics).is_ok());
    (tls, numbers)
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn what_can_not_be_read_is_tried_again_ever_more_seldom_and_told_once() {
    let world = World::new();
    let (tls, numbers) = counted(&world).await;
    let log = Log::default();
    let _guard = log.keep();
    unreadable(&world, "server.key");
    look(&tls);
    assert_eq!(failed(&numbers), 0, "not at first sight");
    look(&tls);
    assert_eq!(failed(&numbers), 1);
    assert_eq!(
        tries(&tls, &log).await,
        [1, 3, 7, 15, 31, 63, 123, 183, 243]
    );
    let told = |what| log.lines(what).len();
    assert_eq!((failed(&numbers), told("just now")), (1, 1));

    // Another reason, and then none.
    unreadable(&world, "server.pem");
    look(&tls);
    look(&tls);
    assert_eq!(failed(&numbers), 2, "a change is not waited for");
    assert_eq!(told("just now"), 3, "two files now");
    for name in ["server.pem", "server.key"] {
        std::fs::remove_file(world.folder.at(name)).unwrap();
    }
    world.folder.put_server(&world.server());
    look(&tls);
    look(&tls);
    assert_eq!(told("read anew"), 1);
    assert_eq!(tries(&tls, &log).await, [0; 0]);
    assert_eq!((failed(&numbers), told("read anew")), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_not_there_is_noticed_when_it_comes_and_not_tried_again() {
    let world = World::new();
    let (tls, numbers) = counted(&world).await;
    let log = Log::default();
    let _guard = log.keep();
    let key = std::fs::read(world.folder.at("server.key")).unwrap();
    std::fs::remove_file(world.folder.at("server.key")).unwrap();
    look(&tls);
    look(&tls);
    assert_eq!(failed(&numbers), 1);
    assert_eq!(tries(&tls, &log).await, [0; 0]);
    assert_eq!(failed(&numbers), 1);
    world.folder.put("server.key", key);
    look(&tls);
    look(&tls);
    assert_eq!(log.lines("read anew").len(), 1);
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn files_that_can_not_be_used_are_told_once_and_then_by_the_hour() {
    let breaks: [fn(&World); 3] = [
        |world| std::fs::remove_file(world.folder.at("server.key")).unwrap(),
        |world| world.folder.put("server.key", "nonsense"),
        |world| unreadable(world, "server.key"),
    ];
    for is_broken in breaks {
        let world = World::new();
        let (tls, numbers) = counted(&world).await;
        let log = Log::default();
        let _guard = log.keep();
        is_broken(&world);
        look(&tls);
        look(&tls);
        let told = || (failed(&numbers), log.lines("those read before stay").len());
        assert_eq!(told(), (1, 1));
        let step = Duration::from_secs(10);
        for times in 2..=4 {
            let before = clock::now();
            while told().0 < times && before.elapsed() < 2 * REMIND_EVERY {
                tokio::time::advance(step).await;
                look(&tls);
            }
            // A look may have been for another try.
            let took = before.elapsed();
            assert!(took >= REMIND_EVERY && took <= REMIND_EVERY + step);
            assert_eq!(told(), (times, usize::try_from(times).unwrap()));
        }
        let path = world.folder.at("server.key");
        let _ = std::fs::remove_file(path);
        world.folder.put_server(&world.server());
        look(&tls);
        look(&tls);
        tokio::time::advance(2 * REMIND_EVERY).await;
        look(&tls);
        assert_eq!(told(), (4, 4), "it is over");
    }
}

/// How often it was counted that files can't be used.
fn failed(numbers: &Numbers) -> u64 {
    numbers.counted("chinwag_config_reloads_total{what=tls,name=public,outcome=failed}")
}

/// Makes a file one that is there and that nobody can read: a link to itself.
#[cfg(unix)]
fn unreadable(world: &World, name: &str) {
    std::fs::remove_file(world.folder.at(name)).unwrap();
    std::os::unix::fs::symlink(name, world.folder.at(name)).unwrap();
}

/// The seconds of the next 250 in which files are tried again in vain.
async fn tries(tls: &Tls, log: &Log) -> Vec<u64> {
    let mut tries = Vec::new();
    for second in 1..=250 {
        let before = log.lines("still can't be read").len();
        tokio::time::advance(LOOK_EVERY).await;
        look(tls);
        let now = log.lines("still can't be read").len();
        tries.extend((now > before).then_some(second));
    }
    tries
}

/// What has come of a table is on its way to somebody who does not come back, as from a disk that does not answer.
struct Stuck {
    entered: mpsc::Receiver<()>,
    /// Dropped, it lets go for good.
    release: std::sync::mpsc::Sender<()>,
}

impl Stuck {
    /// Of the next reload after which other clients are trusted than before.
    fn on(tls: &Tls) -> Self {
        let (enter, entered) = mpsc::channel(8);
        let (release, released) = std::sync::mpsc::channel();
        let released = Mutex::new(released);
        tls.on_reload(move |_| {
            enter.try_send(()).unwrap();
            let _ = released.lock().recv();
        });
        Self { entered, release }
    }

    /// Waits until a thread is stuck.
    async fn enter(&mut self) {
        self.entered.recv().await.unwrap();
    }
}

/// Moves the clock on and has everybody act who waited for that. While a thread is stuck, it does not move by itself.
async fn pass(time: Duration) {
    tokio::time::advance(time).await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn files_that_do_not_come_are_told_and_so_is_that_they_came() {
    let world = World::new();
    let tls = world.load_strict(&[]).await;
    let mut stuck = Stuck::on(&tls);
    let log = Log::default();
    let _guard = log.keep();
    let (numbers, _lifecycle) = followed(&tls);
    let overdue = || numbers.gauged("chinwag_config_reload_overdue{what=tls,name=public}");
    let told = || {
        let times = |words| log.lines(words).len();
        (times("have not come"), times("have come after all"))
    };
    let instant = Duration::from_millis(1);

    world.folder.put("crl.pem", world.ca.crl(0, &[1]));
    stuck.enter().await;
    pass(Tls::PATIENCE - instant).await;
    assert_eq!((overdue(), told()), (0.0, (0, 0)));
    pass(2 * instant).await;
    assert_eq!((overdue(), told()), (1.0, (1, 0)));
    let line = log.lines("have not come").remove(0);
    for part in ["ERROR", "tls=public", "patience=5s"] {
        assert!(line.contains(part), "{line}");
    }
    pass(2 * REMIND_EVERY).await;
    assert_eq!((overdue(), told()), (1.0, (1, 0)), "told once");

    stuck.release.send(()).unwrap();
    until(|| overdue() == 0.0).await;
    assert_eq!(told(), (1, 1));
    // It is looked at as before, and the next that is slow is told anew.
    world.folder.put("crl.pem", world.ca.crl(0, &[1, 2]));
    stuck.enter().await;
    pass(Tls::PATIENCE + instant).await;
    assert_eq!((overdue(), told()), (1.0, (2, 1)));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_list_is_told_though_files_do_not_come() {
    let world = World::new();
    let tls = world.load_strict(&[]).await;
    let mut stuck = Stuck::on(&tls);
    let log = Log::default();
    let _guard = log.keep();
    let (_numbers, _lifecycle) = followed(&tls);
    world.folder.put("crl.pem", world.ca.crl(0, &[1]));
    stuck.enter().await;
    pass(LOOK_EVERY).await;
    world.clock.advance(30 * DAY);
    pass(LOOK_EVERY).await;
    assert_eq!(log.lines("has just ended").len(), 1);
}

#[test]
fn files_that_do_not_come_hold_one_thread_however_often_they_are_asked_for() {
    const PATIENCE: Duration = Duration::from_secs(20);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = World::new();
        let tls = world.load_strict(&[]).await;
        let mut stuck = Stuck::on(&tls);
        let (_numbers, _lifecycle) = followed(&tls);
        world.folder.put("crl.pem", world.ca.crl(0, &[1]));
        stuck.enter().await;
        let mut reloads = Box::pin(join_all((0..5).map(|_| tls.reload())));
        tokio::select! {
            biased;
            _ = &mut reloads => panic!("nothing was stuck"),
            () = std::future::ready(()) => {}
        }
        let other = timeout(PATIENCE, spawn_blocking(|| ())).await;
        other.expect("a thread is free").unwrap();
        drop(stuck.release);
        let outcomes = timeout(PATIENCE, reloads).await.expect("they go on");
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    });
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_for_a_reload_is_told_each_time() {
    let world = World::new();
    let (tls, _numbers) = counted(&world).await;
    std::fs::remove_file(world.folder.at("server.key")).unwrap();
    let log = Log::default();
    let _guard = log.keep();
    for times in 1..=3 {
        take(&tls).unwrap_err();
        assert_eq!(log.lines("can't be read").len(), times);
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_list_is_told_once_when_it_comes() {
    let world = World::new();
    let tls = world.load_strict(&[]).await;
    let log = Log::default();
    let _guard = log.keep();
    let (_numbers, _lifecycle) = followed(&tls);
    tokio::time::sleep(10 * LOOK_EVERY).await;
    assert_eq!(log.lines("has just ended"), [""; 0]);
    world.clock.advance(30 * DAY);
    until(|| !log.lines("has just ended").is_empty()).await;
    tokio::time::sleep(10 * LOOK_EVERY).await;
    let lines = log.lines("has just ended");
    assert!(
        matches!(&*lines, [line] if line.contains("crl")),
        "{lines:?}"
    );
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn a_folder_swapped_by_its_link_is_a_change() {
    use std::os::unix::fs::symlink;
    let world = World::new();
    let (one, two) = (world.server_ca.server(), world.server_ca.server());
    // As Kubernetes lays out a secret: files are links into `..data`, which is a link to a folder.
    let at = |name: &str| world.folder.at(name);
    for (folder, identity) in [("..1", &one), ("..2", &two)] {
        std::fs::create_dir(at(folder)).unwrap();
        world.folder.put(
            &format!("{folder}/server.pem"),
            pem("CERTIFICATE", &identity.chain[0]),
        );
        world.folder.put(
            &format!("{folder}/server.key"),
            identity.key.serialize_pem(),
        );
    }
    symlink("..1", at("..data")).unwrap();
    for name in ["server.pem", "server.key"] {
        std::fs::remove_file(at(name)).unwrap();
        symlink(format!("..data/{name}"), at(name)).unwrap();
    }
    let tls = world.load("").await;
    let (_numbers, _lifecycle) = followed(&tls);
    let shown = async || {
        let config = Arc::new(world.client(&TLS13).with(None));
        let (_, connected) = meet(&tls, config, Alpn::CHINWAG).await;
        let stream = connected.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    assert_eq!(shown().await, one.chain[0]);
    let before = tls.current();
    symlink("..2", at("..next")).unwrap();
    std::fs::rename(at("..next"), at("..data")).unwrap();
    until(|| !Arc::ptr_eq(&before, &tls.current())).await;
    assert_eq!(shown().await, two.chain[0]);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_not_taken_without_its_key() {
    let world = World::new();
    let tls = world.load("").await;
    let (numbers, _lifecycle) = followed(&tls);
    let next = world.server_ca.server();
    let before = tls.current();
    world
        .folder
        .put("server.pem", pem("CERTIFICATE", &next.chain[0]));
    tokio::time::sleep(LOOK_EVERY + LOOK_EVERY / 2).await;
    world.folder.put("server.key", next.key.serialize_pem());
    until(|| !Arc::ptr_eq(&before, &tls.current())).await;
    let failed = "chinwag_config_reloads_total{what=tls,name=public,outcome=failed}";
    assert_eq!(numbers.counted(failed), 0, "half a pair was never tried");
}

#[tokio::test]
async fn a_reload_that_fails_says_why_and_changes_nothing() {
    let world = World::new();
    let tls = world.load("").await;
    let before = tls.current();
    world
        .folder
        .put("server.key", world.server_ca.server().key.serialize_pem());
    let faults = tls.reload().await.unwrap_err();
    assert_eq!(faults[0].key, Some("key"));
    assert!(Arc::ptr_eq(&before, &tls.current()));
    world.folder.put_server(&world.server_ca.server());
    tls.reload().await.unwrap();
    assert!(!Arc::ptr_eq(&before, &tls.current()));
}

#[tokio::test]
async fn those_inside_are_judged_anew_when_others_are_trusted() {
    let world = World::new();
    let tls = world.load_strict(&[]).await;
    let mut inside = Vec::new();
    for (name, serial) in [("alice", 1), ("bob", 2)] {
        let identity = world
            .ca
            .client(name, |params| params.serial_number = Some(serial.into()));
        let facts = judge(&world, &tls, &TLS13, Some(&identity)).await.unwrap();
        inside.push(facts.certificate.clone().unwrap());
    }
    let heard = Arc::new(Mutex::new(Vec::new()));
    let (ears, members) = (Arc::clone(&heard), inside.clone());
    tls.on_reload(move |judge| {
        let verdicts: Vec<_> = members
            .iter()
            .map(|member| judge.check(member).err())
            .collect();
        ears.lock().push(verdicts);
    });
    let heard = || std::mem::take(&mut *heard.lock());

    world.folder.put_server(&world.server_ca.server());
    tls.reload().await.unwrap();
    assert_eq!(
        heard(),
        [[None; 0]; 0],
        "nobody else is trusted than before"
    );
    world.folder.put("crl.pem", world.ca.crl(0, &[2]));
    tls.reload().await.unwrap();
    assert_eq!(heard(), [[None, Some(TlsFailure::Revoked)]]);
    assert_eq!(tls.judge(&inside[1]), Err(TlsFailure::Revoked));

    // An old list still tells who is revoked, but throws nobody out for its age.
    world.folder.put("crl.pem", world.ca.crl(-60, &[1]));
    tls.reload().await.unwrap();
    assert_eq!(heard(), [[Some(TlsFailure::Revoked), None]]);
    assert_eq!(
        tls.judge(&inside[1]),
        Err(TlsFailure::StaleCrl),
        "no newcomer"
    );

    let other = Authority::root("other");
    world.folder.put("ca.pem", other.pem());
    world.folder.put("crl.pem", other.crl(0, &[]));
    tls.reload().await.unwrap();
    assert_eq!(heard(), [[Some(TlsFailure::UnknownCa); 2]]);
}

#[tokio::test]
async fn those_inside_are_judged_by_the_list_of_the_key_that_has_signed_theirs() {
    let world = World::new();
    let new = Authority::root("clients");
    put_rekeyed(&world, &new, &[], &[]);
    let tls = world.load(STRICT).await;
    let mut inside = Vec::new();
    for ca in [&world.ca, &new] {
        let facts = judge(&world, &tls, &TLS13, Some(&numbered(ca, 1))).await;
        inside.push(facts.unwrap().certificate.clone().unwrap());
    }
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ears = Arc::clone(&heard);
    tls.on_reload(move |judge| {
        let verdicts = inside.iter().map(|member| judge.check(member).err());
        ears.lock().push(verdicts.collect::<Vec<_>>());
    });
    let heard = || std::mem::take(&mut *heard.lock());
    let revoked = Some(TlsFailure::Revoked);
    for (old_revokes, new_revokes, verdicts) in [
        (&[1][..], &[][..], [revoked, None]),
        (&[], &[1], [None, revoked]),
        (&[1], &[1], [revoked, revoked]),
        (&[2], &[2], [None, None]),
    ] {
        put_rekeyed(&world, &new, old_revokes, new_revokes);
        tls.reload().await.unwrap();
        assert_eq!(heard(), [verdicts.to_vec()]);
    }
    // A list that is missing throws nobody out; what the other one says is not about them.
    world.folder.put("crl.pem", new.crl(-1, &[1]));
    tls.reload().await.unwrap();
    assert_eq!(heard(), [vec![None, revoked]]);
    // And a key that is trusted no more throws out whom it has signed.
    world.folder.put("ca.pem", world.ca.pem());
    world.folder.put("crl.pem", world.ca.crl(-1, &[]));
    tls.reload().await.unwrap();
    assert_eq!(heard(), [vec![None, Some(TlsFailure::BadSignature)]]);
}

#[tokio::test]
async fn those_inside_are_judged_by_the_newest_list_that_can_be_checked() {
    let world = World::with_ca(Authority::root("others"));
    let between = world.ca.under("clients");
    let good = |revoked: &[u64]| {
        let below = between.crl(-1300, revoked);
        format!("{}{below}", world.ca.crl(-1, &[]))
    };
    world.folder.put("crl.pem", good(&[]));
    let tls = world.load(STRICT).await;
    let member = numbered(&between, 1).followed_by(&between);
    let (_, newer) = by_sha1();
    let inside = read(&member.chain).unwrap();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ears = Arc::clone(&heard);
    tls.on_reload(move |judge| ears.lock().push(judge.check(&inside).err()));
    let heard = || std::mem::take(&mut *heard.lock());
    for (lists, verdict) in [
        (format!("{newer}{}", good(&[])), None),
        (format!("{newer}{}", good(&[1])), Some(TlsFailure::Revoked)),
    ] {
        world.folder.put("crl.pem", lists);
        tls.reload().await.unwrap();
        assert_eq!(heard(), [verdict]);
        let newcomer = judge(&world, &tls, &TLS13, Some(&member)).await;
        assert_eq!(newcomer.err(), Some(TlsFailure::UnknownRevocation));
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_came_before_a_revocation_is_found_out_at_the_log_in() {
    let world = World::new();
    let tls = world.load_strict(&[]).await;
    let (numbers, _lifecycle) = followed(&tls);
    let alice = world
        .ca
        .client("alice", |params| params.serial_number = Some(13.into()));
    let config = Arc::new(world.client(&TLS13).with(Some(&alice)));
    let (served, _connected) = meet(&tls, Arc::clone(&config), Alpn::CHINWAG).await;
    let (_stream, peer) = served.unwrap();
    assert_eq!(peer.check(), Ok(()));

    // This one is in the middle of its handshake when the list changes.
    let (near, far) = duplex(1 << 16);
    let mut accepting = Box::pin(tls.accept(near, Alpn::CHINWAG, address(1), address(2)));
    std::future::poll_fn(|cx| {
        assert!(accepting.as_mut().poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
    world.folder.put("crl.pem", world.ca.crl(0, &[13]));
    tls.reload().await.unwrap();
    assert_eq!(peer.check(), Err(TlsFailure::Revoked));
    let name = ServerName::try_from("localhost").unwrap();
    let connecting = TlsConnector::from(config).connect(name, far);
    let (accepted, _connected) = tokio::join!(accepting, connecting);
    assert_eq!(accepted.err(), Some(TlsFailure::Revoked));
    let revoked = "chinwag_tls_failures_total{tls=public,reason=revoked}";
    assert_eq!(numbers.counted(revoked), 2);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_past_its_end_is_found_out_at_the_log_in() {
    let world = World::new();
    let tls = world.load_strict(&[]).await;
    let alice = world.ca.client("alice", |params| params.not_after = day(1));
    let config = Arc::new(world.client(&TLS13).with(Some(&alice)));
    let (served, _connected) = meet(&tls, config, Alpn::CHINWAG).await;
    let (_stream, peer) = served.unwrap();
    world.clock.advance(2 * DAY);
    tokio::time::advance(FRESH).await;
    assert_eq!(peer.check(), Err(TlsFailure::Expired));
}

// Names in certificates.

#[test]
fn odd_subjects_are_told_as_they_are() {
    let ca = Authority::root("clients");
    let read = |identity: &Identity| read(&identity.chain).unwrap();
    let two = read(&ca.client("alice", |params| {
        let again = DnType::CustomDnType(vec![2, 5, 4, 3]);
        params.distinguished_name.push(again, "mallory");
    }));
    assert_eq!(two.common_names, ["alice", "mallory"]);
    assert_eq!(two.subject, "CN=mallory,CN=alice");

    let none = read(&ca.client("x", |params| {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "Org, Inc. ");
        params
            .distinguished_name
            .push(DnType::CustomDnType(vec![1, 2, 3]), "?");
    }));
    assert_eq!(none.common_names, [""; 0]);
    assert_eq!(none.subject, "1.2.3=#0c013f,O=Org\\, Inc.\\ ");

    for (name, subject) in [
        ("*", "CN=*"),
        ("a\r\nb", "CN=a\\0d\\0ab"),
        ("a\0b", "CN=a\\00b"),
        (" #a\"b", "CN=\\ #a\\\"b"),
        ("p\u{430}ypal", "CN=p\u{430}ypal"),
    ] {
        let certificate = read(&ca.client(name, |_| ()));
        assert_eq!(certificate.common_names, [name]);
        assert_eq!(certificate.subject, subject);
    }
    let wide = DnValue::BmpString("Grüße".try_into().unwrap());
    let certificate = read(&ca.client("x", |params| {
        params.distinguished_name.push(DnType::CommonName, wide);
    }));
    assert_eq!(certificate.common_names, ["Grüße"]);
}

#[test]
fn names_that_are_no_text_still_count() {
    let ca = Authority::root("clients");
    let identity = ca
        .client("alice", |params| {
            params.subject_alt_names = vec![
                SanType::Rfc822Name("alice@example.org".try_into().unwrap()),
                SanType::DnsName("alice.example.org".try_into().unwrap()),
            ];
        })
        .altered(|der| {
            for name in ["alice@example.org", "alice.example.org"] {
                let at = der
                    .windows(17)
                    .position(|part| part == name.as_bytes())
                    .unwrap();
                der[at] = 0xff;
            }
            let common = der.windows(5).position(|part| part == b"alice").unwrap();
            der[common] = 0xff;
        });
    let certificate = read(&identity.chain).unwrap();
    for names in [
        &certificate.emails,
        &certificate.dns_names,
        &certificate.common_names,
    ] {
        assert_eq!(names.len(), 1, "{certificate:?}");
        assert!(names[0].contains('\u{fffd}'), "{names:?}");
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
        let _ = read(&[bytes.into()]);
    }

    #[test]
    fn no_change_to_a_certificate_makes_the_reader_panic(
        changes in proptest::collection::vec((proptest::num::usize::ANY, proptest::num::u8::ANY), 1..6),
        cut in proptest::option::of(proptest::num::usize::ANY),
    ) {
        static DER: OnceLock<Vec<u8>> = OnceLock::new();
        let mut der = DER
            .get_or_init(|| {
                let identity = Authority::root("clients").client("alice", |params| {
                    params.subject_alt_names = vec![
                        SanType::Rfc822Name("alice@example.org".try_into().unwrap()),
                        SanType::URI("spiffe://example.org/alice".try_into().unwrap()),
                    ];
                });
                identity.chain[0].to_vec()
            })
            .clone();
        for (place, byte) in changes {
            let place = place % der.len();
            der[place] = byte;
        }
        if let Some(cut) = cut {
            der.truncate(cut % (der.len() + 1));
        }
        let der = CertificateDer::from(der);
        if let Ok(certificate) = read(std::slice::from_ref(&der)) {
            proptest::prop_assert_eq!(certificate.fingerprint.len(), 64);
            let parsed = certificate::parse(&der).unwrap();
            let _ = certificate::is_weak(&parsed);
        }
    }
}
