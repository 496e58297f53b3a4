//! Certificates of the tests' own making, good ones and bad ones, and clients that show them.

use std::{
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use chinwag_conformance::{Client, Delivery, FrontEnd, Http, Link, Over, Place, Setup, Stream};
use futures_util::FutureExt;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, PublicKeyData, RevokedCertParams, SanType, SignatureAlgorithm,
};
use rustls::{
    ClientConfig, RootCertStore, SignatureScheme, SupportedProtocolVersion,
    client::ResolvesClientCert,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    sign::CertifiedKey,
};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Addresses, PATIENCE};

/// Both versions that the server speaks.
pub(crate) const VERSIONS: [&SupportedProtocolVersion; 2] =
    [&rustls::version::TLS12, &rustls::version::TLS13];

/// So many days from now.
pub(crate) fn day(days: i64) -> OffsetDateTime {
    OffsetDateTime::now_utc() + Duration::days(days)
}

/// Parameters of a certificate that is good for 100 days.
fn params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = day(-10);
    params.not_after = day(100);
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params
}

/// A certificate with its key.
#[derive(Clone)]
pub(crate) struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: Arc<KeyPair>,
}

impl Identity {
    /// One that nobody but itself has signed.
    pub(crate) fn self_signed(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let chain = vec![params(name).self_signed(&key).unwrap().der().clone()];
        let key = Arc::new(key);
        Self { chain, key }
    }

    /// The same with the certificate of `above` behind it.
    pub(crate) fn followed_by(mut self, above: &Authority) -> Self {
        self.chain.push(above.0.der().clone());
        self
    }

    /// The same with the bytes of its certificate changed.
    pub(crate) fn altered(mut self, alter: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut der = self.chain[0].to_vec();
        alter(&mut der);
        self.chain[0] = der.into();
        self
    }

    /// The certificate of this one, with the key of another.
    pub(crate) fn with_key_of(mut self, other: &Self) -> Self {
        self.key = Arc::clone(&other.key);
        self
    }

    fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).unwrap()
    }

    /// Its certificates as PEM.
    pub(crate) fn pem(&self) -> String {
        self.chain
            .iter()
            .map(|der| pem("CERTIFICATE", der))
            .collect()
    }

    pub(crate) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }
}

/// Somebody who signs.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    pub(crate) fn root(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(Self::ca(name), key).unwrap())
    }

    /// One that this one has signed.
    pub(crate) fn under(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::signed_by(Self::ca(name), key, &self.0).unwrap())
    }

    fn ca(name: &str) -> CertificateParams {
        let mut params = params(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
    }

    /// A client's certificate, as `edit` has it.
    pub(crate) fn client(
        &self,
        common_name: &str,
        edit: impl FnOnce(&mut CertificateParams),
    ) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = params(common_name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        edit(&mut params);
        let chain = vec![params.signed_by(&key, &*self.0).unwrap().der().clone()];
        let key = Arc::new(key);
        Identity { chain, key }
    }

    /// A client's certificate that a certificate of this CA's has signed which is no CA's.
    pub(crate) fn client_by_leaf(&self, common_name: &str) -> Identity {
        let leaf = self.client("leaf", |_| ());
        let issuer = Issuer::new(params("leaf"), &*leaf.key);
        let key = KeyPair::generate().unwrap();
        let below = params(common_name).signed_by(&key, &issuer).unwrap();
        let chain = vec![below.der().clone(), leaf.chain[0].clone()];
        let key = Arc::new(key);
        Identity { chain, key }
    }

    /// A client's certificate for an RSA key of 1024 bits, which is not there: nobody gets as far as proving it.
    pub(crate) fn client_with_a_weak_key(&self, common_name: &str) -> Identity {
        let certificate = params(common_name).signed_by(&Rsa1024, &*self.0).unwrap();
        Identity {
            chain: vec![certificate.der().clone()],
            key: Arc::new(KeyPair::generate().unwrap()),
        }
    }

    /// A certificate for `localhost` and 127.0.0.1 to 127.0.0.3.
    pub(crate) fn server(&self) -> Identity {
        self.server_until(day(100))
    }

    /// The same with an end of its own.
    pub(crate) fn server_until(&self, end: OffsetDateTime) -> Identity {
        self.client("server", |params| {
            params.not_after = end;
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.subject_alt_names = vec![SanType::DnsName("localhost".try_into().unwrap())];
            params
                .subject_alt_names
                .extend((1..4).map(|last| SanType::IpAddress([127, 0, 0, last].into())));
        })
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A list that is in date and revokes these serial numbers.
    pub(crate) fn crl(&self, revoked: &[u64]) -> String {
        self.crl_from(-1, revoked)
    }

    /// A list that is good for 30 days from the day `issued` on.
    pub(crate) fn crl_from(&self, issued: i64, revoked: &[u64]) -> String {
        let params = CertificateRevocationListParams {
            this_update: day(issued),
            next_update: day(issued + 30),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked
                .iter()
                .map(|serial| RevokedCertParams {
                    serial_number: (*serial).into(),
                    revocation_time: day(issued),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.0).unwrap().pem().unwrap()
    }
}

/// The public key of a pair with 1024 bits.
struct Rsa1024;

impl PublicKeyData for Rsa1024 {
    fn subject_public_key_info(&self) -> Vec<u8> {
        let digits = "30819f300d06092a864886f70d010101050003818d0030818902818100f166474dcc7641d6510866\
                      d82f0fea73e70e876d7dbde9d4de0e1f7ce9cacfedbc914edda23bff4ff10aa2b88919500ddbc0b7\
                      53aa8adbf67420e8399521326728bca89f3e52768560a20bc91506ad9100b22ee3963bd6e74ae5ce\
                      3640a4f41ae9800f033fd15a1039baff01c6fdb6294335f5f6058875e5e189135161a17d83020301\
                      0001";
        let pairs = digits.as_bytes().chunks(2);
        pairs
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    fn der_bytes(&self) -> &[u8] {
        &[]
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

fn pem(kind: &str, der: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let text = STANDARD.encode(der);
    format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")
}

/// A server's certificate, a CA of clients' with its list, and the files of both.
#[derive(Debug)]
pub(crate) struct Pki {
    /// Has signed the server's certificate.
    pub(crate) servers: Authority,
    /// Has signed those of the clients.
    pub(crate) clients: Authority,
    folder: TempDir,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let pki = Self {
            servers: Authority::root("servers"),
            clients: Authority::root("clients"),
            folder: tempfile::tempdir().unwrap(),
        };
        pki.put_server(&pki.servers.server());
        pki.put("clients.pem", &pki.clients.pem());
        pki.put("crl.pem", &pki.clients.crl(&[]));
        pki
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Puts a file in the place of another at one stroke, as whoever renews certificates should.
    pub(crate) fn put(&self, name: &str, content: &str) {
        let new = self.at(&format!("{name}.new"));
        std::fs::write(&new, content).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        std::fs::rename(new, self.at(name)).unwrap();
    }

    pub(crate) fn put_server(&self, server: &Identity) {
        self.put("server.pem", &server.pem());
        self.put("server.key", &server.key_pem());
    }

    /// `[tls.door]` with the server's certificate and `more`.
    pub(crate) fn table(&self, more: &str) -> String {
        format!(
            "[tls.door]\ncert = {:?}\nkey = {:?}\n{more}\n",
            self.at("server.pem"),
            self.at("server.key")
        )
    }

    /// `[tls.door]`, by which clients need a certificate that no list revokes.
    pub(crate) fn strict(&self) -> String {
        self.table(&format!(
            "client_ca = {:?}\nclient_cert = \"required\"\ncrl = [{:?}]",
            self.at("clients.pem"),
            self.at("crl.pem")
        ))
    }

    /// Three listeners that know their clients by the common names of their certificates.
    pub(crate) fn by_certificate(&self) -> Setup {
        Setup::authenticator("kind = \"certificate\"\nuser = \"subject-cn\"")
            .and(&self.strict())
            .on_all("tls = \"door\"")
    }

    /// A client that trusts this server.
    pub(crate) fn client(&self) -> Secure {
        Secure::trusting(&self.servers)
    }
}

/// How a client shakes hands: whom it trusts, which version it speaks, what it shows. Clones share their tickets.
#[derive(Clone)]
pub(crate) struct Secure {
    config: Arc<ClientConfig>,
}

impl Secure {
    /// One that trusts those whom `ca` has signed, and shows nothing.
    pub(crate) fn trusting(ca: &Authority) -> Self {
        Self::with(ca.0.der().clone(), &VERSIONS, None)
    }

    /// The same with a certificate, in one version of TLS.
    pub(crate) fn showing(
        ca: &Authority,
        version: &'static SupportedProtocolVersion,
        identity: &Identity,
    ) -> Self {
        Self::with(ca.0.der().clone(), &[version], Some(identity))
    }

    /// One that trusts and shows what `chinwag cert dev` has put into `folder` for `user`.
    pub(crate) fn of_files(folder: &Path, user: &str) -> Self {
        let certificate = |name: String| CertificateDer::from_pem_file(folder.join(name)).unwrap();
        let key = std::fs::read_to_string(folder.join(format!("{user}.key"))).unwrap();
        let identity = Identity {
            chain: vec![certificate(format!("{user}.pem"))],
            key: Arc::new(KeyPair::from_pem(&key).unwrap()),
        };
        Self::with(certificate("ca.pem".into()), &VERSIONS, Some(&identity))
    }

    fn with(
        ca: CertificateDer<'static>,
        versions: &[&'static SupportedProtocolVersion],
        identity: Option<&Identity>,
    ) -> Self {
        let provider = Arc::new(default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(ca).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let key = provider.key_provider.load_private_key(identity.key_der());
                let shown = CertifiedKey::new(identity.chain.clone(), key.unwrap());
                builder.with_client_cert_resolver(Arc::new(Shows(Arc::new(shown))))
            }
        };
        Self {
            config: Arc::new(config),
        }
    }

    /// The same, which offers to speak one of these protocols.
    pub(crate) fn offering(&self, protocols: &[&str]) -> Self {
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols = protocols.iter().map(|&name| name.into()).collect();
        Self {
            config: Arc::new(config),
        }
    }

    /// A connection after the handshake. With TLS 1.3 the client hears only later what the server thinks of it.
    pub(crate) async fn dial(&self, addr: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(addr).await?;
        // A dropped client resets its connection, as one does whose machine is gone.
        stream.set_zero_linger()?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::clone(&self.config))
            .connect(name, stream)
            .await
    }
}

impl Secure {
    /// A client that has said nothing yet.
    ///
    /// # Errors
    /// The server does not listen, or turned it away already.
    pub(crate) async fn link(&self, addr: SocketAddr, over: Over) -> io::Result<Link> {
        match over {
            Over::Tcp => Ok(Link::lines(self.dial(addr).await?)),
            Over::WebSocket => {
                let stream = self.dial(addr).await?;
                Link::websocket(stream, &format!("wss://{addr}/v1/ws")).await
            }
            Over::Polling => {
                let mut http = self.http(addr);
                http.open().await?;
                Ok(Link::polling(http))
            }
        }
    }

    /// A client whose connection is to be had.
    pub(crate) async fn connect(&self, server: &impl Addresses, over: Over, name: &str) -> Client {
        let link = timeout(PATIENCE, self.link(server.of(over), over)).await;
        let link = link.expect("the server answers");
        let link = link.unwrap_or_else(|error| panic!("{name}, {over:?}: {error}"));
        Client::on(link, &format!("{over:?} over TLS"), name)
    }

    /// Requests over connections of this make.
    pub(crate) fn http(&self, addr: SocketAddr) -> Http {
        let secure = self.clone();
        Http::on(Arc::new(move || {
            let secure = secure.clone();
            async move { Ok(Box::new(secure.dial(addr).await?) as Stream) }.boxed()
        }))
    }
}

/// One of the kinds that chinwag has, over TLS.
#[derive(Debug, Clone)]
pub(crate) struct Encrypted {
    over: Over,
    pki: Arc<Pki>,
}

impl Encrypted {
    /// All three, with one certificate.
    pub(crate) fn all() -> [Self; 3] {
        let pki = Arc::new(Pki::new());
        Over::ALL.map(|over| Self {
            over,
            pki: Arc::clone(&pki),
        })
    }
}

#[async_trait]
impl FrontEnd for Encrypted {
    fn name(&self) -> &str {
        self.over.name()
    }

    fn keys(&self) -> String {
        FrontEnd::keys(&self.over) + "tls = \"door\"\n"
    }

    fn tables(&self) -> String {
        // One table is for all three.
        match self.over {
            Over::Tcp => self.pki.table(""),
            _ => String::new(),
        }
    }

    fn delivery(&self) -> Delivery {
        self.over.delivery()
    }

    async fn connect(&self, server: &Place<'_>) -> io::Result<Link> {
        let addr = server.addr.ok_or(io::ErrorKind::AddrNotAvailable)?;
        self.pki.client().link(addr, self.over).await
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
