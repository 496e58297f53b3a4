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
        Self(bytes(
            "30819f300d06092a864886f70d010101050003818d0030818902818100f166474dcc7641d6510866\
             d82f0fea73e70e876d7dbde9d4de0e1f7ce9cacfedbc914edda23bff4ff10aa2b88919500ddbc0b7\
             53aa8adbf67420e8399521326728bca89f3e52768560a20bc91506ad9100b22ee3963bd6e74ae5ce\
             3640a4f41ae9800f033fd15a1039baff01c6fdb6294335f5f6058875e5e189135161a17d83020301\
             0001",
        ))
    }

    /// The curve P-192.
    pub(crate) fn p192() -> Self {
        Self(bytes(
            "3049301306072a8648ce3d020106082a8648ce3d03010103320004dacc241a8364f09d612f68d0e5\
             ed3a3de9c6c2c587ce9aa184a9ad7290fed9066e2c92ecd8fad001395d1a0795fe4346",
        ))
    }
}

/// A CA `clients` of the old days, good until the year 2126, and a list by it that revokes nobody: SHA-1 with RSA of
/// 1024 bits. PEM, as made by openssl.
pub(crate) fn by_sha1() -> (String, String) {
    let ca = bytes(
        "308201f13082015aa003020102021421c50f02a8841b05c77b6bae02c012e5ed431bd1300d06092a\
         864886f70d010105050030123110300e06035504030c07636c69656e74733020170d323631313233\
         3133323931375a180f32313236313033303133323931375a30123110300e06035504030c07636c69\
         656e747330819f300d06092a864886f70d010101050003818d00308189028181009e49ed01326785\
         97784fa9ad10239a9221208848c5ceef68d922ae2391ecc387e06aab6905a6443d01c94c4d4adfb8\
         24b0d44b420980d52bb29f0b9085081aa600bc8e7c0d3b610af8832c52da9583cd3fd305de1878d2\
         19f92257e55a85feda00405004875027a1f2e820dcaf2c08396a593b7799bd06b8e95966cc4eaab1\
         410203010001a3423040300f0603551d130101ff040530030101ff300e0603551d0f0101ff040403\
         020106301d0603551d0e041604144cf3f247b5472678f7fdcb6bbaaed46ea74f0d2b300d06092a86\
         4886f70d01010505000381810054d21bf8d5391dd195f2e21e869473fe067572e8971d64c467d94e\
         c8e23297b1c1aaf4e7eda9948c1b3924e8b335f399340aae1b167a5531a2afbc5f1b4b8b8c96425b\
         b412fe1cb97593c271c4d6abd6269b716dddac2bb8928e70f1b54f34d50859b07f6ea1aac0605c34\
         26ed6b13db26f4be80a5086d0b51341260de239e64",
    );
    let list = bytes(
        "3081eb3056020101300d06092a864886f70d010105050030123110300e06035504030c07636c6965\
         6e7473170d3236313132333133323931375a180f32313236313033303133323931375aa00e300c30\
         0a0603551d140403020101300d06092a864886f70d01010505000381810040cab73208ed8a94ce45\
         f5842822680a9502d843ecc3a71642058e968fe908ca45eda7628cad7bf23eaac80e8c56403de97f\
         ca711b97390f5b1a8c3bc507c5ac7f7257a3bee4ccd92e8812322dc0d3a5952f5c7b35c3cf675d1e\
         1f8bc8b79a832889d87b0fd904c67a50be2115b29a7dad90ce11f048d2044d2dd3652a9cd048",
    );
    (pem("CERTIFICATE", &ca), pem("X509 CRL", &list))
}

/// What hexadecimal digits tell.
fn bytes(digits: &str) -> Vec<u8> {
    let digit = |byte: u8| u8::try_from(char::from(byte).to_digit(16).unwrap()).unwrap();
    let pairs = digits.as_bytes().chunks(2);
    pairs
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
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
