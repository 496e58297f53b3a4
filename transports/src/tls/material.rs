//! What the files of one table make: read, checked against each other, ready to shake hands with.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::digest::{Context, SHA256};
use chinwag_core::{TlsExpiry, TlsFailure, clock::WallClock, plugin::BuildError};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, InconsistentKeys,
    OtherError, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{
        CryptoProvider,
        aws_lc_rs::{Ticketer, default_provider},
    },
    pki_types::{
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime, pem, pem::PemObject,
    },
    server::{
        ServerSessionMemoryCache, VerifierBuilderError, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, SingleCertAndKey},
    time_provider::TimeProvider,
};
use webpki::BorrowedCertRevocationList;
use x509_parser::{
    asn1_rs::{Any, BitString, Tag},
    certificate::{Validity, X509Certificate},
    error::X509Error,
    extensions::GeneralName,
    prelude::FromDer,
    time::ASN1Time,
    verify::verify_signature,
    x509::{AlgorithmIdentifier, X509Name},
};

use super::{
    ClientCert,
    certificate::{Unreadable, distinguished_name, is_weak, parse, read},
    failure::{self, LongChain, WeakKey},
};

/// The most bytes of a file with certificates or a key.
const FILE_BYTES: u64 = 4 << 20;
/// The most bytes of a list of revoked certificates.
const CRL_BYTES: u64 = 64 << 20;
/// How long before its end a certificate is warned of, in seconds.
const SOON: u64 = 14 * 86_400;
/// How many sessions are kept for clients of TLS 1.2 that know no tickets.
const SESSIONS: usize = 1024;
/// Certificates between a client's and its CA. More than anybody has: the ways through them, all of which are tried, grow
/// like their factorial; through twelve of one name they took a tenth of a second.
const BETWEEN: usize = 4;
/// All bytes of them, of which a connection keeps a copy.
const CHAIN_BYTES: usize = 16 << 10;

/// The files of one table, by their whole paths.
#[derive(Debug)]
pub(super) struct Files {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    pub(super) client_cert: ClientCert,
    pub(super) client_ca: Option<PathBuf>,
    pub(super) crl: Vec<PathBuf>,
}

/// What the files make.
pub(super) struct Material {
    pub(super) generation: u64,
    pub(super) http: Arc<ServerConfig>,
    pub(super) plain: Arc<ServerConfig>,
    pub(super) clients: Option<Clients>,
    /// For those who are in, where others are trusted now: the age and the gaps of lists are not held against them.
    pub(super) inside: Option<Arc<ClientVerifier>>,
    /// What ends when, in seconds since the Unix epoch: the first of each kind.
    pub(super) ends: Vec<(TlsExpiry, u64)>,
    /// What is odd, in sentences.
    pub(super) warnings: Vec<String>,
}

/// How clients' certificates are judged at the door.
pub(super) struct Clients {
    pub(super) verifier: Arc<ClientVerifier>,
    /// Of all that the judgement rests on.
    digest: [u8; 32],
}

/// The wall clock, as rustls reads it.
pub(super) struct Wall(pub(super) Arc<dyn WallClock>);

impl fmt::Debug for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wall").finish_non_exhaustive()
    }
}

impl Wall {
    pub(super) fn unix_seconds(&self) -> u64 {
        self.0.unix_millis() / 1000
    }

    pub(super) fn now(&self) -> UnixTime {
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(self.unix_seconds()))
    }
}

impl TimeProvider for Wall {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.now())
    }
}

impl Files {
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        [&self.cert, &self.key]
            .into_iter()
            .chain(&self.client_ca)
            .chain(&self.crl)
            .cloned()
            .collect()
    }

    /// What of these has an end in time.
    pub(super) fn expiring(&self) -> Vec<TlsExpiry> {
        let mut all = vec![TlsExpiry::Certificate];
        all.extend(self.client_ca.iter().map(|_| TlsExpiry::ClientCa));
        all.extend(self.crl.first().map(|_| TlsExpiry::Crl));
        all
    }

    /// Reads all files and checks them against each other. Tickets of `before` stay good as long as the same clients
    /// are trusted. Blocks.
    ///
    /// # Errors
    /// Every file that can't be used, with its key.
    pub(super) fn read(
        &self,
        wall: &Arc<Wall>,
        before: Option<&Material>,
    ) -> Result<Material, Vec<BuildError>> {
        let mut reading = Reading {
            now: wall.unix_seconds(),
            provider: Arc::new(default_provider()),
            faults: Vec::new(),
            warnings: Vec::new(),
            ends: Vec::new(),
        };
        let identity = reading.identity(&self.cert, &self.key);
        let trust = self
            .client_ca
            .as_deref()
            .and_then(|ca| reading.trust(ca, &self.crl));
        let Some(identity) = identity.filter(|_| reading.faults.is_empty()) else {
            return Err(reading.faults);
        };
        let known = before.and_then(|before| before.clients.as_ref());
        let is_known = known.map(|known| known.digest) == trust.as_ref().map(|trust| trust.digest);
        let mut clients = None;
        let mut inside = None;
        if let Some(trust) = trust {
            let verifier = match known.filter(|_| is_known) {
                Some(known) => Arc::clone(&known.verifier),
                None => trust.verifier(&reading.provider, Some(self.client_cert))?,
            };
            if before.is_some() && !is_known {
                inside = Some(trust.verifier(&reading.provider, None)?);
            }
            let digest = trust.digest;
            clients = Some(Clients { verifier, digest });
        }
        let verifier: Arc<dyn ClientCertVerifier> = match &clients {
            Some(clients) => Arc::clone(&clients.verifier) as Arc<dyn ClientCertVerifier>,
            None => WebPkiClientVerifier::no_client_auth(),
        };
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&reading.provider))
            .with_safe_default_protocol_versions()
            .expect("the provider has what the default versions need")
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
        config.time_provider = Arc::clone(wall) as Arc<dyn TimeProvider>;
        match before.filter(|_| is_known) {
            Some(before) => {
                config.ticketer = Arc::clone(&before.plain.ticketer);
                config.session_storage = Arc::clone(&before.plain.session_storage);
            }
            None => {
                config.ticketer = Ticketer::new().map_err(|error| {
                    vec![BuildError::new(format!(
                        "can't make keys for session tickets: {error}"
                    ))]
                })?;
                config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
            }
        }
        let mut http = config.clone();
        http.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Material {
            generation: before.map_or(0, |before| before.generation + 1),
            http: Arc::new(http),
            plain: Arc::new(config),
            clients,
            inside,
            ends: reading.ends,
            warnings: reading.warnings,
        })
    }
}

/// Files being read, and what was found wrong so far.
struct Reading {
    now: u64,
    provider: Arc<CryptoProvider>,
    faults: Vec<BuildError>,
    warnings: Vec<String>,
    ends: Vec<(TlsExpiry, u64)>,
}

impl Reading {
    fn fault(&mut self, key: &'static str, path: &Path, what: impl fmt::Display) {
        let message = format!("{}: {what}", path.display());
        self.faults.push(BuildError::key(key, message));
    }

    fn warn(&mut self, path: &Path, what: impl fmt::Display) {
        self.warnings.push(format!("{}: {what}", path.display()));
    }

    fn bytes(&mut self, key: &'static str, path: &Path, most: u64) -> Option<Vec<u8>> {
        match slurp(path, most) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.fault(key, path, format_args!("can't be read: {error}"));
                None
            }
        }
    }

    /// The certificates in a file, at least one.
    fn certificates(
        &mut self,
        key: &'static str,
        path: &Path,
    ) -> Option<Vec<CertificateDer<'static>>> {
        let bytes = self.bytes(key, path, FILE_BYTES)?;
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
        match found {
            Err(error) => self.fault(key, path, Pem(&error)),
            Ok(found) if found.is_empty() => {
                let hint = if is_der(&bytes) {
                    "; it looks like DER: `openssl x509 -inform der` turns that into PEM"
                } else if contains(&bytes, b"PRIVATE KEY-----") {
                    ", but a private key: name that one with `key`"
                } else {
                    "; it needs \"-----BEGIN CERTIFICATE-----\""
                };
                self.fault(key, path, format_args!("has no certificate{hint}"));
            }
            Ok(found) => {
                for (place, der) in found.iter().enumerate() {
                    if parse(der).is_err() {
                        let place = place + 1;
                        self.fault(key, path, format_args!("certificate {place} is damaged"));
                        return None;
                    }
                }
                return Some(found);
            }
        }
        None
    }

    /// The server's certificate with its key.
    fn identity(&mut self, cert: &Path, key: &Path) -> Option<CertifiedKey> {
        let chain = self.certificates("cert", cert);
        let private = self.private_key(key);
        let (chain, private) = (chain?, private?);
        let identity = match CertifiedKey::from_der(chain.clone(), private, &self.provider) {
            Ok(identity) => identity,
            Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
                let cert = cert.display();
                self.fault(
                    "key",
                    key,
                    format_args!("does not belong to the certificate in {cert}"),
                );
                return None;
            }
            Err(Error::InvalidCertificate(_)) => {
                self.fault("cert", cert, "the first certificate is no X.509 version 3");
                return None;
            }
            Err(error) => {
                self.fault("key", key, format_args!("can't be used: {error}"));
                return None;
            }
        };
        let chain: Vec<_> = chain.iter().filter_map(|der| parse(der).ok()).collect();
        self.look_at_chain(cert, &chain);
        Some(identity)
    }

    /// Warns of what clients will not like.
    fn look_at_chain(&mut self, path: &Path, chain: &[X509Certificate<'_>]) {
        self.validity(TlsExpiry::Certificate, path, chain);
        let Some(leaf) = chain.first() else {
            return;
        };
        let names = leaf.subject_alternative_name().ok().flatten();
        let is_named = names.is_some_and(|names| {
            let mut names = names.value.general_names.iter();
            names.any(|name| matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_)))
        });
        if !is_named {
            self.warn(
                path,
                "the certificate has no DNS name or address among its alternative names; most clients will refuse it",
            );
        }
        let usage = leaf.extended_key_usage().ok().flatten();
        if usage.is_some_and(|usage| !usage.value.server_auth && !usage.value.any) {
            self.warn(
                path,
                "the certificate is not for servers; clients will refuse it",
            );
        }
        let is_broken = chain
            .iter()
            .zip(chain.iter().skip(1))
            .any(|(one, next)| one.issuer().as_raw() != next.subject().as_raw());
        if is_broken {
            self.warn(
                path,
                "the certificates are out of order: each is to be followed by that of its issuer",
            );
        }
    }

    fn private_key(&mut self, path: &Path) -> Option<PrivateKeyDer<'static>> {
        let bytes = self.bytes("key", path, FILE_BYTES)?;
        if contains(&bytes, b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
            || contains(&bytes, b"Proc-Type: 4,ENCRYPTED")
        {
            self.fault(
                "key",
                path,
                "is encrypted, and there is nobody to ask for its password; `openssl pkey` writes it without one",
            );
            return None;
        }
        match PrivateKeyDer::from_pem_slice(&bytes) {
            Ok(key) => {
                if is_open_to_others(path) {
                    self.warn(
                        path,
                        "every user of this machine can read or write the private key; `chmod o-rw` mends that",
                    );
                }
                Some(key)
            }
            Err(pem::Error::NoItemsFound) => {
                let hint = if is_der(&bytes) {
                    "; it looks like DER: `openssl pkey -inform der` turns that into PEM"
                } else if contains(&bytes, b"-----BEGIN CERTIFICATE-----") {
                    ", but a certificate: name that one with `cert`"
                } else {
                    "; it needs \"-----BEGIN PRIVATE KEY-----\""
                };
                self.fault("key", path, format_args!("has no private key{hint}"));
                None
            }
            Err(error) => {
                self.fault("key", path, Pem(&error));
                None
            }
        }
    }

    /// Notes the first end among `certificates` and warns of those that are not good now.
    fn validity(&mut self, what: TlsExpiry, path: &Path, certificates: &[X509Certificate<'_>]) {
        for certificate in certificates {
            let name = distinguished_name(certificate.subject());
            let validity = certificate.validity();
            if unix(validity.not_after) < self.now {
                let end = validity.not_after;
                self.warn(path, format_args!("{name:?} has expired at {end}"));
            } else if unix(validity.not_before) > self.now {
                let begin = validity.not_before;
                self.warn(path, format_args!("{name:?} is not valid before {begin}"));
            } else if ends_soon(validity, self.now) {
                let end = validity.not_after;
                self.warn(path, format_args!("{name:?} ends soon, at {end}"));
            }
        }
        let ends = certificates
            .iter()
            .map(|certificate| unix(certificate.validity().not_after));
        self.ends.extend(ends.min().map(|end| (what, end)));
    }

    fn trust(&mut self, ca: &Path, crl: &[PathBuf]) -> Option<Trust> {
        let certificates = self.certificates("client_ca", ca)?;
        let mut roots = RootCertStore::empty();
        for (place, certificate) in certificates.iter().enumerate() {
            if let Err(error) = roots.add(certificate.clone()) {
                let place = place + 1;
                self.fault(
                    "client_ca",
                    ca,
                    format_args!("certificate {place} can't be used: {error}"),
                );
                return None;
            }
        }
        let anchors: Vec<_> = certificates
            .iter()
            .filter_map(|der| parse(der).ok())
            .collect();
        self.validity(TlsExpiry::ClientCa, ca, &anchors);
        for anchor in anchors.iter().filter(|anchor| !anchor.is_ca()) {
            let name = distinguished_name(anchor.subject());
            self.warn(ca, format_args!("{name:?} is no CA: it may not sign"));
        }
        let lists = self.lists(ca, &anchors, crl)?;
        let mut context = Context::new(&SHA256);
        let certificates = certificates.iter().map(|der| der.as_ref());
        for part in certificates.chain(lists.iter().map(|der| der.as_ref())) {
            context.update(&part.len().to_be_bytes());
            context.update(part);
        }
        Some(Trust {
            roots: Arc::new(roots),
            lists,
            digest: context
                .finish()
                .as_ref()
                .try_into()
                .expect("SHA-256 has 32 bytes"),
        })
    }

    /// The lists of revoked certificates, the newest first: of several by one issuer that one is believed.
    fn lists(
        &mut self,
        ca: &Path,
        anchors: &[X509Certificate<'_>],
        paths: &[PathBuf],
    ) -> Option<Vec<CertificateRevocationListDer<'static>>> {
        let mut lists = Vec::new();
        let mut issuers: Vec<Vec<u8>> = Vec::new();
        let faults = self.faults.len();
        for path in paths {
            let Some(found) = self.lists_in(path) else {
                continue;
            };
            for der in found {
                let Some(head) = CrlHead::read(&der)
                    .filter(|_| BorrowedCertRevocationList::from_der(&der).is_ok())
                else {
                    self.fault(
                        "crl",
                        path,
                        "the list is damaged, or of a kind that is not known: version 2 with a next update is needed, \
                         whole and by the issuer itself",
                    );
                    continue;
                };
                self.look_at_list(path, ca, anchors, &head);
                issuers.push(head.issuer.as_raw().to_vec());
                lists.push((head.this_update, der.clone()));
            }
        }
        if self.faults.len() > faults {
            return None;
        }
        for anchor in anchors.iter().filter(|_| !paths.is_empty()) {
            let subject = anchor.subject();
            if !issuers.iter().any(|issuer| issuer == subject.as_raw()) {
                let name = distinguished_name(subject);
                self.warn(
                    ca,
                    format_args!(
                        "no list in `crl` is by {name:?}: whatever it has signed is refused"
                    ),
                );
            }
        }
        lists.sort_by_key(|(issued, _)| std::cmp::Reverse(*issued));
        Some(lists.into_iter().map(|(_, der)| der).collect())
    }

    fn lists_in(&mut self, path: &Path) -> Option<Vec<CertificateRevocationListDer<'static>>> {
        let bytes = self.bytes("crl", path, CRL_BYTES)?;
        if is_der(&bytes) {
            return Some(vec![bytes.into()]);
        }
        let found: Result<Vec<_>, _> =
            CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
        match found {
            Err(error) => self.fault("crl", path, Pem(&error)),
            Ok(found) if found.is_empty() => self.fault(
                "crl",
                path,
                "has no list of revoked certificates; it needs \"-----BEGIN X509 CRL-----\", or DER",
            ),
            Ok(found) => return Some(found),
        }
        None
    }

    fn look_at_list(
        &mut self,
        path: &Path,
        ca: &Path,
        anchors: &[X509Certificate<'_>],
        head: &CrlHead<'_>,
    ) {
        let name = distinguished_name(&head.issuer);
        let signers: Vec<_> = anchors
            .iter()
            .filter(|anchor| anchor.subject().as_raw() == head.issuer.as_raw())
            .collect();
        let ca = ca.display();
        if signers.is_empty() {
            self.warn(
                path,
                format_args!(
                    "the list is by {name:?}, which is not in {ca}: it counts only for certificates that an \
                     intermediate CA of that name has signed"
                ),
            );
        } else if signers.iter().all(|signer| {
            let verified = verify_signature(
                signer.public_key(),
                &head.algorithm,
                &head.signature,
                head.signed,
            );
            // What this check can't do is left to that at the door.
            verified == Err(X509Error::SignatureVerificationError)
        }) {
            self.fault(
                "crl",
                path,
                format_args!("the list is not signed by the key of {name:?} in {ca}"),
            );
        }
        let next = unix(head.next_update);
        if next <= self.now {
            let next = head.next_update;
            self.warn(
                path,
                format_args!(
                    "the list by {name:?} is out of date since {next}: whatever that CA has signed is refused"
                ),
            );
        }
        match self
            .ends
            .iter_mut()
            .find(|(what, _)| *what == TlsExpiry::Crl)
        {
            Some((_, end)) => *end = next.min(*end),
            None => self.ends.push((TlsExpiry::Crl, next)),
        }
    }
}

/// Whether there is little left: of time, and of what there was. A certificate that is made for a day has not ended soon
/// the moment it is there.
fn ends_soon(validity: &Validity, now: u64) -> bool {
    let end = unix(validity.not_after);
    let whole = end.saturating_sub(unix(validity.not_before));
    end.saturating_sub(now) < SOON.min(whole / 5)
}

/// Whom the files trust.
struct Trust {
    roots: Arc<RootCertStore>,
    lists: Vec<CertificateRevocationListDer<'static>>,
    digest: [u8; 32],
}

impl Trust {
    /// A verifier for the door, or for those inside.
    fn verifier(
        &self,
        provider: &Arc<CryptoProvider>,
        door: Option<ClientCert>,
    ) -> Result<Arc<ClientVerifier>, Vec<BuildError>> {
        let roots = Arc::clone(&self.roots);
        let mut builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider))
            .with_crls(self.lists.iter().cloned());
        builder = if door.is_some() {
            builder.enforce_revocation_expiration()
        } else {
            builder.allow_unknown_revocation_status()
        };
        if door == Some(ClientCert::Optional) {
            builder = builder.allow_unauthenticated();
        }
        let inner = builder.build().map_err(|error| {
            let key = match error {
                VerifierBuilderError::InvalidCrl(_) => "crl",
                _ => "client_ca",
            };
            vec![BuildError::key(key, error.to_string())]
        })?;
        Ok(Arc::new(ClientVerifier(inner)))
    }
}

/// What stands before the entries of a list of revoked certificates. Those may be many, and are read once, where they
/// are needed.
struct CrlHead<'a> {
    issuer: X509Name<'a>,
    this_update: ASN1Time,
    next_update: ASN1Time,
    signed: &'a [u8],
    algorithm: AlgorithmIdentifier<'a>,
    signature: BitString<'a>,
}

impl<'a> CrlHead<'a> {
    fn read(der: &'a [u8]) -> Option<Self> {
        let (_, whole) = Any::from_der(der).ok()?;
        let (rest, list) = Any::from_der(whole.data).ok()?;
        let signed = whole.data.get(..whole.data.len() - rest.len())?;
        let (rest, algorithm) = AlgorithmIdentifier::from_der(rest).ok()?;
        let (_, signature) = BitString::from_der(rest).ok()?;
        let (after, version) = Any::from_der(list.data).ok()?;
        let rest = if version.tag() == Tag::Integer {
            after
        } else {
            list.data
        };
        let (rest, _) = AlgorithmIdentifier::from_der(rest).ok()?;
        let (rest, issuer) = X509Name::from_der(rest).ok()?;
        let (rest, this_update) = ASN1Time::from_der(rest).ok()?;
        let (_, next_update) = ASN1Time::from_der(rest).ok()?;
        Some(Self {
            issuer,
            this_update,
            next_update,
            signed,
            algorithm,
            signature,
        })
    }
}

/// Judges clients' certificates: as webpki does, and less forgiving.
#[derive(Debug)]
pub(super) struct ClientVerifier(Arc<dyn ClientCertVerifier>);

impl ClientVerifier {
    /// What is wrong with a chain at `now`, if anything is.
    pub(super) fn judge(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), TlsFailure> {
        let (first, rest) = chain.split_first().ok_or(TlsFailure::NoCertificate)?;
        self.verify_client_cert(first, rest, now)
            .map(|_| ())
            .map_err(|error| failure::of_error(&error))
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let bytes = intermediates.iter().map(|one| one.len()).sum::<usize>();
        if intermediates.len() > BETWEEN || bytes + end_entity.len() > CHAIN_BYTES {
            return Err(CertificateError::Other(OtherError(Arc::new(LongChain))).into());
        }
        let verified = self.0.verify_client_cert(end_entity, intermediates, now)?;
        // Only what a trusted CA has signed comes this far.
        let unreadable = |Unreadable| CertificateError::BadEncoding;
        read(std::slice::from_ref(end_entity)).map_err(unreadable)?;
        if is_weak(&parse(end_entity).map_err(unreadable)?) {
            return Err(CertificateError::Other(OtherError(Arc::new(WeakKey))).into());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// A mistake in PEM, for people.
pub(super) struct Pem<'a>(pub(super) &'a pem::Error);

impl fmt::Display for Pem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            pem::Error::MissingSectionEnd { .. } => {
                f.write_str("is cut off: a line \"-----END …-----\" is missing")
            }
            pem::Error::IllegalSectionStart { .. } => {
                f.write_str("has a broken line \"-----BEGIN …-----\"")
            }
            pem::Error::Base64Decode(_) => f.write_str("is damaged: what should be base64 is not"),
            // Nothing else comes of bytes in memory.
            _ => f.write_str("is no PEM"),
        }
    }
}

/// Seconds since the Unix epoch; what is before it is as good as 0.
fn unix(time: ASN1Time) -> u64 {
    u64::try_from(time.timestamp()).unwrap_or(0)
}

fn slurp(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        let text = format!("it has over {} MiB", most >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}

/// Whether it begins as a sequence does.
fn is_der(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x30])
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[cfg(unix)]
fn is_open_to_others(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o006 != 0)
}

#[cfg(not(unix))]
fn is_open_to_others(_path: &Path) -> bool {
    false
}
