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
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
        SignatureVerificationAlgorithm, UnixTime, pem, pem::PemObject,
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
    asn1_rs::{Any, BitString, Oid, Tag},
    certificate::{Validity, X509Certificate},
    extensions::GeneralName,
    prelude::FromDer,
    time::ASN1Time,
    x509::{SubjectPublicKeyInfo, X509Name},
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
    /// That of a handshake, but for what is spoken inside.
    pub(super) config: ServerConfig,
    pub(super) clients: Option<Clients>,
    /// For those who are in, where others are trusted now: the age and the gaps of lists are not held against them.
    pub(super) inside: Option<Arc<ClientVerifier>>,
    /// What ends when, in seconds since the Unix epoch: the first of each kind.
    pub(super) ends: Vec<(TlsExpiry, u64)>,
    /// What is odd, in sentences.
    pub(super) warnings: Vec<String>,
}

/// Why files can't be used.
#[derive(Debug)]
pub(super) struct Unusable {
    /// Everything that is wrong, with the key of each file.
    pub(super) faults: Vec<BuildError>,
    /// Whether the system would not let us read one that is there, which may pass without any change to it.
    pub(super) is_unread: bool,
}

impl From<Vec<BuildError>> for Unusable {
    fn from(faults: Vec<BuildError>) -> Self {
        Self {
            faults,
            is_unread: false,
        }
    }
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
    ) -> Result<Material, Unusable> {
        let mut reading = Reading {
            now: wall.unix_seconds(),
            provider: Arc::new(default_provider()),
            faults: Vec::new(),
            is_unread: false,
            warnings: Vec::new(),
            ends: Vec::new(),
        };
        let identity = reading.identity(&self.cert, &self.key);
        let trust = self
            .client_ca
            .as_deref()
            .and_then(|ca| reading.trust(ca, &self.crl));
        let Some(identity) = identity.filter(|_| reading.faults.is_empty()) else {
            return Err(Unusable {
                faults: reading.faults,
                is_unread: reading.is_unread,
            });
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
                config.ticketer = Arc::clone(&before.config.ticketer);
                config.session_storage = Arc::clone(&before.config.session_storage);
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
        Ok(Material {
            generation: before.map_or(0, |before| before.generation + 1),
            config,
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
    is_unread: bool,
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
        let mut bytes = Vec::new();
        let read = std::fs::metadata(path).and_then(|metadata| {
            if !metadata.is_file() {
                return Ok(false);
            }
            File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
            Ok(true)
        });
        match read {
            // To open a pipe would wait for somebody who writes to it, and hold up every later reload.
            Ok(false) => self.fault(key, path, "is not a regular file"),
            Ok(true) if bytes.len() as u64 <= most => return Some(bytes),
            Ok(true) => {
                let most = most >> 20;
                self.fault(key, path, format_args!("it has over {most} MiB"));
            }
            Err(error) => {
                // One that is not there is noticed when it comes.
                self.is_unread |= error.kind() != io::ErrorKind::NotFound;
                self.fault(key, path, format_args!("can't be read: {error}"));
            }
        }
        None
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
        let whole = certificates.iter().map(|der| der.as_ref());
        for part in whole.chain(lists.iter().map(|list| &list.der[..])) {
            context.update(&part.len().to_be_bytes());
            context.update(part);
        }
        let sets = deal(&anchors).into_iter().map(|places| {
            let counts = |list: &List| list.counts_for(&places, &anchors, &lists);
            let of_set = places.iter().map(|&place| roots.roots[place].clone());
            TrustSet {
                roots: Arc::new(of_set.collect()),
                lists: lists
                    .iter()
                    .filter(|list| counts(list))
                    .map(Arc::clone)
                    .collect(),
            }
        });
        Some(Trust {
            sets: sets.collect(),
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
    ) -> Option<Vec<Arc<List>>> {
        let mut lists: Vec<Arc<List>> = Vec::new();
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
                let (signers, is_known) = self.look_at_list(path, ca, anchors, &head);
                lists.push(Arc::new(List {
                    issuer: head.issuer.as_raw().to_vec(),
                    issued: head.this_update,
                    signers,
                    is_known,
                    der: der.clone(),
                }));
            }
        }
        if self.faults.len() > faults {
            return None;
        }
        for (place, anchor) in anchors.iter().enumerate().filter(|_| !paths.is_empty()) {
            if lists.iter().any(|list| list.signers.contains(&place)) {
                continue;
            }
            let name = distinguished_name(anchor.subject());
            let by = if lists.iter().any(|list| list.is_by_name_of(anchor)) {
                format!("signed by the key of certificate {}, {name:?}", place + 1)
            } else {
                format!("by {name:?}")
            };
            self.warn(
                ca,
                format_args!("no list in `crl` is {by}: whatever it has signed is refused"),
            );
        }
        lists.sort_by_key(|list| std::cmp::Reverse(list.issued));
        Some(lists)
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

    /// Warns of what will have people refused. Gives the places of the anchors that have signed the list, and whether the
    /// way in which it is signed is known.
    fn look_at_list(
        &mut self,
        path: &Path,
        ca: &Path,
        anchors: &[X509Certificate<'_>],
        head: &CrlHead<'_>,
    ) -> (Vec<usize>, bool) {
        let name = distinguished_name(&head.issuer);
        // The places of the anchors of its name, and whether the key of each has signed it.
        let checked: Vec<_> = anchors
            .iter()
            .enumerate()
            .filter(|(_, anchor)| anchor.subject().as_raw() == head.issuer.as_raw())
            .map(|(place, anchor)| (place, self.has_signed(anchor.public_key(), head)))
            .collect();
        let signers: Vec<usize> = checked
            .iter()
            .filter(|(_, has_signed)| *has_signed == Some(true))
            .map(|(place, _)| *place)
            .collect();
        let is_known = self
            .algorithms()
            .any(|algorithm| algorithm.signature_alg_id().as_ref() == head.algorithm);
        let is_foreign = checked.is_empty();
        let ca = ca.display();
        let algorithm = || {
            Oid::from_der(head.algorithm)
                .map_or_else(|_| "unknown".to_owned(), |(_, oid)| oid.to_id_string())
        };
        if is_foreign && !is_known {
            // Those whom it is about come with a CA in between, if at all, and are refused then. It must not keep the
            // lists beside it from being read.
            let algorithm = algorithm();
            self.warn(
                path,
                format_args!(
                    "the list is by {name:?}, which is not in {ca}, and signed in a way that is not supported, or not \
                     safe (algorithm {algorithm}): whatever an intermediate CA of that name has signed is refused"
                ),
            );
        } else if !is_known || (!is_foreign && checked.iter().all(|(_, signed)| signed.is_none())) {
            let algorithm = algorithm();
            self.fault(
                "crl",
                path,
                format_args!(
                    "the list by {name:?} is signed in a way that is not supported, or not safe (algorithm \
                     {algorithm}), so nobody could be let in by it; have it signed with SHA-256 by a usual key"
                ),
            );
        } else if is_foreign {
            self.warn(
                path,
                format_args!(
                    "the list is by {name:?}, which is not in {ca}: it counts only for certificates that an \
                     intermediate CA of that name has signed"
                ),
            );
        } else if signers.is_empty() && checked.iter().all(|(place, _)| is_weak(&anchors[*place])) {
            self.fault(
                "crl",
                path,
                format_args!(
                    "the key of {name:?} in {ca} is too weak to prove that it has signed the list; RSA needs 2048 bits"
                ),
            );
        } else if signers.is_empty() {
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
        (signers, is_known)
    }

    /// What signatures are checked by, here and at the door.
    fn algorithms(&self) -> impl Iterator<Item = &'static dyn SignatureVerificationAlgorithm> {
        let supported = self.provider.signature_verification_algorithms;
        supported.all.iter().copied()
    }

    /// Whether `key` has signed the list. `None`: nobody can tell, as there is no algorithm for such keys.
    fn has_signed(&self, key: &SubjectPublicKeyInfo<'_>, head: &CrlHead<'_>) -> Option<bool> {
        let (_, whole) = Any::from_der(key.raw).ok()?;
        let (_, kind) = Any::from_der(whole.data).ok()?;
        let mut fitting = self
            .algorithms()
            .filter(|algorithm| algorithm.public_key_alg_id().as_ref() == kind.data)
            .peekable();
        fitting.peek()?;
        let algorithm =
            fitting.find(|algorithm| algorithm.signature_alg_id().as_ref() == head.algorithm);
        let (key, signature) = (&key.subject_public_key.data, &head.signature.data);
        Some(algorithm.is_some_and(|algorithm| {
            algorithm
                .verify_signature(key, head.signed, signature)
                .is_ok()
        }))
    }
}

/// Whether there is little left: of time, and of what there was. A certificate that is made for a day has not ended soon
/// the moment it is there.
fn ends_soon(validity: &Validity, now: u64) -> bool {
    let end = unix(validity.not_after);
    let whole = end.saturating_sub(unix(validity.not_before));
    end.saturating_sub(now) < SOON.min(whole / 5)
}

/// A list of revoked certificates.
struct List {
    issuer: Vec<u8>,
    issued: ASN1Time,
    /// The places of the anchors whose keys have signed it.
    signers: Vec<usize>,
    /// Its signature can be checked, by whoever has the key.
    is_known: bool,
    der: CertificateRevocationListDer<'static>,
}

impl List {
    fn is_by_name_of(&self, anchor: &X509Certificate<'_>) -> bool {
        self.issuer == anchor.subject().as_raw()
    }

    /// Whether it counts where the anchors at `places` are trusted. What another key of the same CA has signed does not.
    fn counts_for(
        &self,
        places: &[usize],
        anchors: &[X509Certificate<'_>],
        all: &[Arc<Self>],
    ) -> bool {
        let is_ours = |list: &Self| list.signers.iter().any(|signer| places.contains(signer));
        let mut of_set = places.iter().map(|&place| &anchors[place]);
        // A key without a list of its own keeps those of the others: as they fit nothing that it has signed, all of that
        // is refused. If there were none, nobody would ask for one.
        !of_set.any(|anchor| self.is_by_name_of(anchor))
            || is_ours(self)
            || !all
                .iter()
                .any(|list| list.issuer == self.issuer && is_ours(list))
    }
}

/// Deals anchors out to sets, of which each has one key of a name at most. A CA that was given a new key is there with
/// both for a while, and a list of revoked certificates is found by the name of its issuer alone: judged by both at
/// once, the clients of one key would be held against the list of the other.
fn deal(anchors: &[X509Certificate<'_>]) -> Vec<Vec<usize>> {
    let mut sets: Vec<Vec<usize>> = Vec::new();
    for (place, anchor) in anchors.iter().enumerate() {
        let is_rival = |other: &usize| {
            let other = &anchors[*other];
            other.subject().as_raw() == anchor.subject().as_raw()
                && other.public_key().raw != anchor.public_key().raw
        };
        match sets.iter_mut().find(|set| !set.iter().any(is_rival)) {
            Some(set) => set.push(place),
            None => sets.push(vec![place]),
        }
    }
    sets
}

/// Whom the files trust.
struct Trust {
    /// One at least.
    sets: Vec<TrustSet>,
    digest: [u8; 32],
}

/// Anchors that are trusted together, and the lists that count with them.
struct TrustSet {
    roots: Arc<RootCertStore>,
    /// The newest first.
    lists: Vec<Arc<List>>,
}

impl Trust {
    /// A verifier for the door, or for those inside.
    fn verifier(
        &self,
        provider: &Arc<CryptoProvider>,
        door: Option<ClientCert>,
    ) -> Result<Arc<ClientVerifier>, Vec<BuildError>> {
        let (first, others) = self
            .sets
            .split_first()
            .expect("a file of CAs holds one at least");
        let hints = others.iter().flat_map(|set| set.roots.subjects());
        let others = others.iter().map(|set| set.judge(provider, door, []));
        Ok(Arc::new(ClientVerifier {
            first: first.judge(provider, door, hints)?,
            others: others.collect::<Result<_, _>>()?,
        }))
    }
}

impl TrustSet {
    /// `hints`: names of further CAs that clients are told of.
    fn judge(
        &self,
        provider: &Arc<CryptoProvider>,
        door: Option<ClientCert>,
        hints: impl IntoIterator<Item = DistinguishedName>,
    ) -> Result<Arc<dyn ClientCertVerifier>, Vec<BuildError>> {
        // At the door one that can't be checked keeps out whom it may be about. Nobody is thrown out for it; but neither
        // does it hide what an older one says of those inside.
        let lists = self
            .lists
            .iter()
            .filter(|list| list.is_known || door.is_some());
        let roots = Arc::clone(&self.roots);
        let mut builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider))
            .add_root_hint_subjects(hints)
            .with_crls(lists.map(|list| list.der.clone()));
        builder = if door.is_some() {
            builder.enforce_revocation_expiration()
        } else {
            builder.allow_unknown_revocation_status()
        };
        if door == Some(ClientCert::Optional) {
            builder = builder.allow_unauthenticated();
        }
        builder.build().map_err(|error| {
            let key = match error {
                VerifierBuilderError::InvalidCrl(_) => "crl",
                _ => "client_ca",
            };
            vec![BuildError::key(key, error.to_string())]
        })
    }
}

/// What stands before the entries of a list of revoked certificates. Those may be many, and are read once, where they
/// are needed.
struct CrlHead<'a> {
    issuer: X509Name<'a>,
    this_update: ASN1Time,
    next_update: ASN1Time,
    signed: &'a [u8],
    /// What is in the sequence that names it.
    algorithm: &'a [u8],
    signature: BitString<'a>,
}

impl<'a> CrlHead<'a> {
    fn read(der: &'a [u8]) -> Option<Self> {
        let (_, whole) = Any::from_der(der).ok()?;
        let (rest, list) = Any::from_der(whole.data).ok()?;
        let signed = whole.data.get(..whole.data.len() - rest.len())?;
        let (rest, algorithm) = Any::from_der(rest).ok()?;
        let (_, signature) = BitString::from_der(rest).ok()?;
        let (after, version) = Any::from_der(list.data).ok()?;
        let rest = if version.tag() == Tag::Integer {
            after
        } else {
            list.data
        };
        let (rest, _) = Any::from_der(rest).ok()?;
        let (rest, issuer) = X509Name::from_der(rest).ok()?;
        let (rest, this_update) = ASN1Time::from_der(rest).ok()?;
        let (_, next_update) = ASN1Time::from_der(rest).ok()?;
        Some(Self {
            issuer,
            this_update,
            next_update,
            signed,
            algorithm: algorithm.data,
            signature,
        })
    }
}

/// Judges clients' certificates: as webpki does, and less forgiving.
#[derive(Debug)]
pub(super) struct ClientVerifier {
    first: Arc<dyn ClientCertVerifier>,
    /// One for each further set of anchors. Whom one of them finds good is good.
    others: Vec<Arc<dyn ClientCertVerifier>>,
}

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

    /// The verdict of the set that has signed the chain. Where none lets it in, of what they say that which tells most.
    fn verify_path(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let judge = |judge: &Arc<dyn ClientCertVerifier>| {
            judge.verify_client_cert(end_entity, intermediates, now)
        };
        let mut verdict = judge(&self.first);
        for other in &self.others {
            let Err(before) = verdict else {
                break;
            };
            verdict = judge(other).map_err(|error| {
                if failure::weight(&error) > failure::weight(&before) {
                    error
                } else {
                    before
                }
            });
        }
        verdict
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn offer_client_auth(&self) -> bool {
        self.first.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.first.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.first.root_hint_subjects()
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
        let verified = self.verify_path(end_entity, intermediates, now)?;
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
        self.first.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.first.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.first.supported_verify_schemes()
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
