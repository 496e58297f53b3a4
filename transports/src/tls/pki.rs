//! Certificates and lists for tests, good ones and bad ones, in a time of their own.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use chinwag_core::clock::WallClock;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData,
    RevokedCertParams, SanType, SignatureAlgorithm,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

/// When these tests happen: in the year 2030.
pub(crate) const NOW: u64 = 1_900_000_000;
pub(crate) const DAY: u64 = 86_400;

/// A clock that a test sets.
#[derive(Debug)]
pub(crate) struct TestClock(AtomicU64);

impl TestClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(NOW)))
    }

    pub(crate) fn advance(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }

    pub(crate) fn rewind(&self, seconds: u64) {
        self.0.fetch_sub(seconds, Ordering::SeqCst);
    }
}

impl WallClock for TestClock {
    fn unix_millis(&self) -> u64 {
        self.0.load(Ordering::SeqCst) * 1000
    }
}

/// So many days from the present of these tests.
pub(crate) fn day(days: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(NOW.cast_signed()).unwrap() + Duration::days(days)
}

/// Parameters good for 100 days.
pub(crate) fn params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = day(-10);
    params.not_after = day(100);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A certificate with its key.
pub(crate) struct Identity {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: KeyPair,
}

impl Identity {
    pub(crate) fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key.serialize_der()).unwrap()
    }

    /// The same with `above` behind it.
    pub(crate) fn followed_by(mut self, above: &Authority) -> Self {
        self.chain.push(above.der());
        self
    }

    /// The same with its first certificate changed.
    pub(crate) fn altered(mut self, alter: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut der = self.chain[0].to_vec();
        alter(&mut der);
        self.chain[0] = der.into();
        self
    }
}

/// Somebody who signs.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn root(name: &str) -> Self {
        Self::root_with(name, KeyPair::generate().unwrap())
    }

    pub(crate) fn root_with(name: &str, key: KeyPair) -> Self {
        Self(CertifiedIssuer::self_signed(ca_params(name), key).unwrap())
    }

    pub(crate) fn under(&self, name: &str) -> Self {
        self.under_with(name, |_| ())
    }

    pub(crate) fn under_with(&self, name: &str, edit: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = ca_params(name);
        edit(&mut params);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::signed_by(params, key, &self.0).unwrap())
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A client's certificate.
    pub(crate) fn client(&self, name: &str, edit: impl FnOnce(&mut CertificateParams)) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = params(name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        edit(&mut params);
        let chain = vec![params.signed_by(&key, &*self.0).unwrap().der().clone()];
        Identity { chain, key }
    }

    /// A client's certificate for a key that this test can't use: nobody gets as far as using it.
    pub(crate) fn client_with_key(&self, name: &str, spki: Spki) -> Identity {
        let certificate = params(name).signed_by(&spki, &*self.0).unwrap();
        Identity {
            chain: vec![certificate.der().clone()],
            key: KeyPair::generate().unwrap(),
        }
    }

    /// A certificate for `localhost`.
    pub(crate) fn server(&self) -> Identity {
        self.client("server", |params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.subject_alt_names = vec![SanType::DnsName("localhost".try_into().unwrap())];
        })
    }

    /// A list that is good for 30 days from `issued` on, with these serial numbers.
    pub(crate) fn crl(&self, issued: i64, revoked: &[u64]) -> String {
        crl(&self.0, issued, revoked)
    }
}

fn crl(issuer: &Issuer<'_, KeyPair>, issued: i64, revoked: &[u64]) -> String {
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
    params.signed_by(issuer).unwrap().pem().unwrap()
}

/// A self-signed certificate.
pub(crate) fn self_signed(name: &str) -> Identity {
    let key = KeyPair::generate().unwrap();
    let chain = vec![params(name).self_signed(&key).unwrap().der().clone()];
    Identity { chain, key }
}

/// A certificate that somebody's own certificate, which is no CA's, has signed; with that one behind it.
pub(crate) fn signed_by_leaf(ca: &Authority) -> Identity {
    let key = KeyPair::generate().unwrap();
    let leaf = params("leaf");
    let above = leaf.signed_by(&key, &*ca.0).unwrap();
    let issuer = Issuer::new(leaf, key);
    let key = KeyPair::generate().unwrap();
    let below = params("alice").signed_by(&key, &issuer).unwrap();
    let chain = vec![below.der().clone(), above.der().clone()];
    Identity { chain, key }
}

/// A public key as DER, of which no private half is needed.
pub(crate) struct Spki(Vec<u8>);

impl Spki {
    /// RSA of 1024 bits.
    pub(crate) fn rsa_1024() -> Self {
        Self::hex(
            "30819f300d06092a864886f70d010101050003818d0030818902818100f166474dcc7641d6510866\
             d82f0fea73e70e876d7dbde9d4de0e1f7ce9cacfedbc914edda23bff4ff10aa2b88919500ddbc0b7\
             53aa8adbf67420e8399521326728bca89f3e52768560a20bc91506ad9100b22ee3963bd6e74ae5ce\
             3640a4f41ae9800f033fd15a1039baff01c6fdb6294335f5f6058875e5e189135161a17d83020301\
             0001",
        )
    }

    /// The curve P-192.
    pub(crate) fn p192() -> Self {
        Self::hex(
            "3049301306072a8648ce3d020106082a8648ce3d03010103320004dacc241a8364f09d612f68d0e5\
             ed3a3de9c6c2c587ce9aa184a9ad7290fed9066e2c92ecd8fad001395d1a0795fe4346",
        )
    }

    fn hex(text: &str) -> Self {
        let digit = |byte: u8| u8::try_from(char::from(byte).to_digit(16).unwrap()).unwrap();
        let bytes = text
            .as_bytes()
            .chunks(2)
            .map(|pair| digit(pair[0]) << 4 | digit(pair[1]));
        Self(bytes.collect())
    }
}

impl PublicKeyData for Spki {
    fn subject_public_key_info(&self) -> Vec<u8> {
        self.0.clone()
    }

    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

/// A folder with files.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// One with the files `server.pem` and `server.key`.
    pub(crate) fn of(server: &Identity) -> Self {
        let folder = Self::new();
        folder.put_server(server);
        folder
    }

    pub(crate) fn put_server(&self, server: &Identity) {
        self.put("server.pem", pem("CERTIFICATE", &server.chain[0]));
        self.put("server.key", server.key.serialize_pem());
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub(crate) fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.at(name), content).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(self.at(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
    }
}

pub(crate) fn pem(kind: &str, der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in der.chunks(3) {
        let bits = three
            .iter()
            .fold(0, |bits, &byte| bits << 8 | usize::from(byte))
            << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = DIGITS[bits >> (18 - 6 * place) & 63];
            text.push(if place <= three.len() {
                digit.into()
            } else {
                '='
            });
        }
    }
    format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")
}
