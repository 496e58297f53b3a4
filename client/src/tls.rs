//! TLS: whom a client believes, what it shows of itself, and what is wrong where two can't agree.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, InconsistentKeys, InvalidMessage,
    RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
};

use crate::ConnectError;

/// The most bytes of a file: more than the bundles of whole systems have.
const FILE_BYTES: u64 = 4 << 20;
/// The most names of a certificate that a message lists.
const NAMES: usize = 5;

/// The files of a client's side of TLS, all in PEM form. They are read once by each
/// [`Client::connect`](crate::Client::connect); what polling connects later on goes by what was read then, so that a
/// session shows one certificate from its beginning to its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificates of those who may sign a server's, each file with one or more. Default: none, which means those
    /// that the system trusts, or `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
    pub ca: Vec<PathBuf>,
    /// What is shown to a server that asks for it. Default: nothing.
    pub identity: Option<Identity>,
}

/// The files of a client's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, then those between it and whoever the server trusts.
    pub cert: PathBuf,
    /// Its private key, not encrypted; may be in the same file.
    pub key: PathBuf,
}

impl TlsFiles {
    pub(crate) fn is_empty(&self) -> bool {
        self.ca.is_empty() && self.identity.is_none()
    }

    /// Reads the files, for `url`. Blocks.
    pub(crate) fn read(&self, url: &str) -> Result<ClientConfig, ConnectError> {
        let mut roots = RootCertStore::empty();
        for path in &self.ca {
            for certificate in certificates(path)? {
                let added = roots.add(certificate);
                added.map_err(|error| at_fault(path, in_words(error)))?;
            }
        }
        if self.ca.is_empty() {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        if roots.is_empty() {
            return Err(ConnectError::Tls {
                url: url.into(),
                fault: TlsFault::NobodyTrusted,
            });
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has what the default versions need")
            .with_root_certificates(roots);
        let Some(Identity { cert, key }) = &self.identity else {
            return Ok(builder.with_no_client_auth());
        };
        let chain = certificates(cert)?;
        builder
            .with_client_auth_cert(chain, private_key(key)?)
            .map_err(|error| match error {
                Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => at_fault(
                    key,
                    format_args!("does not belong to the certificate in {}", cert.display()),
                ),
                Error::InvalidCertificate(_) => at_fault(cert, in_words(error)),
                error => at_fault(key, format_args!("can't be used: {error}")),
            })
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
    let bytes = bytes(path)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| at_fault(path, damaged(&error)))?;
    if certificates.is_empty() {
        let why = if is_der(&bytes) {
            "has no certificate in PEM form; it looks like DER, which `openssl x509 -inform der` turns into PEM"
        } else {
            "has no certificate in PEM form, which begins with -----BEGIN CERTIFICATE-----"
        };
        return Err(at_fault(path, why));
    }
    Ok(certificates)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, ConnectError> {
    let bytes = bytes(path)?;
    let has = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    if has(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || has(b"Proc-Type: 4,ENCRYPTED") {
        return Err(at_fault(
            path,
            "the private key is encrypted; `openssl pkey` writes it without a password",
        ));
    }
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| match error {
        pem::Error::NoItemsFound if is_der(&bytes) => at_fault(
            path,
            "has no private key in PEM form; it looks like DER, which `openssl pkey -inform der` turns into PEM",
        ),
        pem::Error::NoItemsFound => at_fault(
            path,
            "has no private key in PEM form, which begins with -----BEGIN PRIVATE KEY-----",
        ),
        error => at_fault(path, damaged(&error)),
    })
}

fn bytes(path: &Path) -> Result<Vec<u8>, ConnectError> {
    let unread = |error: io::Error| at_fault(path, format_args!("can't be read: {error}"));
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unread)?;
    file.take(FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(unread)?;
    if bytes.len() as u64 > FILE_BYTES {
        let most = FILE_BYTES >> 20;
        return Err(at_fault(path, format_args!("has over {most} MiB")));
    }
    Ok(bytes)
}

/// Whether it begins as a sequence does.
fn is_der(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x30])
}

/// Without what stands in the file, which may be a key.
fn damaged(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "is damaged: an -----END line is missing",
        pem::Error::Base64Decode(_) => "is damaged: what is between its lines is no Base64",
        _ => "is damaged: it is no well-formed PEM",
    }
}

fn at_fault(path: &Path, why: impl fmt::Display) -> ConnectError {
    ConnectError::File {
        path: path.into(),
        why: why.to_string(),
    }
}

/// Why two did not come to terms over TLS.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsFault {
    /// The system trusts nobody, and no [`TlsFiles::ca`] is named.
    #[error("this system trusts no certificate authority at all")]
    NobodyTrusted,
    /// The server's certificate is signed by nobody who is trusted, or an intermediate one is missing.
    #[error("its certificate is not trusted: nobody known here has signed it")]
    Untrusted,
    /// The server's certificate, or one above it, is no longer valid.
    #[error("its certificate has expired, {} ago", rough(*.0))]
    Expired(Duration),
    /// The server's certificate, or one above it, is not yet valid by this machine's clock.
    #[error("its certificate is not valid yet, but in {}; perhaps a clock is wrong", rough(*.0))]
    NotYetValid(Duration),
    /// The server's certificate is for others.
    #[error("its certificate is for {}, and not for {host}", listed(.names))]
    WrongName {
        /// Who the URL says it is.
        host: String,
        /// The names and addresses in the certificate.
        names: Vec<String>,
    },
    /// The server's certificate is unusable for another reason.
    #[error("its certificate is not accepted: {0}")]
    Unacceptable(String),
    /// The server lets nobody in who shows no certificate.
    #[error("it asks for a certificate of the client's")]
    WantsCertificate,
    /// The server does not accept the client's certificate.
    #[error("it refuses the client's certificate{0}")]
    Refused(&'static str),
    /// Whoever answers does not speak TLS.
    #[error("it does not speak TLS there")]
    PlainText,
    /// Whoever answers speaks TLS, and was spoken to without.
    #[error("it speaks TLS there, and was spoken to in plain text")]
    Expected,
    /// The connection was closed before the two had come to terms.
    #[error("it hung up in the midst of the TLS handshake")]
    HungUp,
    /// Anything else, in the words of the library.
    #[error("TLS failed: {0}")]
    Other(String),
}

impl TlsFault {
    /// The fault inside an error of a connection.
    pub(crate) fn inside(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// The same for an error that others have wrapped.
    pub(crate) fn beneath<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                return Self::inside(error);
            }
            next = error.source();
        }
        None
    }

    /// An error of rustls in the words of this crate; others stay as they are. `showed`: whether the client had a
    /// certificate to show.
    pub(crate) fn name(error: io::Error, showed: bool) -> io::Error {
        let found = error.get_ref().and_then(|inner| inner.downcast_ref());
        match found.map(|found| Self::of(found, showed)) {
            Some(fault) => fault.into(),
            None => error,
        }
    }

    fn of(error: &Error, showed: bool) -> Self {
        match error {
            Error::InvalidCertificate(error) => Self::of_certificate(error),
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => Self::PlainText,
            Error::AlertReceived(alert) => Self::of_alert(*alert, showed),
            error => Self::Other(error.to_string()),
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        match error {
            // The second: by somebody of the same name.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::Untrusted,
            CertificateError::ExpiredContext { time, not_after } => Self::Expired(
                Duration::from_secs(time.as_secs().saturating_sub(not_after.as_secs())),
            ),
            CertificateError::NotValidYetContext { time, not_before } => Self::NotYetValid(
                Duration::from_secs(not_before.as_secs().saturating_sub(time.as_secs())),
            ),
            CertificateError::NotValidForNameContext {
                expected,
                presented,
            } => Self::WrongName {
                host: expected.to_str().into_owned(),
                names: presented.iter().map(|name| bare(name)).collect(),
            },
            error => Self::Unacceptable(in_words(Error::InvalidCertificate(error.clone()))),
        }
    }

    fn of_alert(alert: AlertDescription, showed: bool) -> Self {
        let why = match alert {
            AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
                return Self::WantsCertificate;
            }
            AlertDescription::CertificateRevoked => ": it is revoked",
            AlertDescription::CertificateExpired => ": it has expired",
            AlertDescription::UnknownCA => ": nobody known there has signed it",
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied => "",
            _ => return Self::Other(format!("the server says {alert:?}")),
        };
        // Some have no other word for one that is missing.
        if showed {
            Self::Refused(why)
        } else {
            Self::WantsCertificate
        }
    }
}

impl From<TlsFault> for io::Error {
    fn from(fault: TlsFault) -> Self {
        Self::new(io::ErrorKind::InvalidData, fault)
    }
}

/// What rustls says of a certificate, for those who do not know rustls.
fn in_words(error: Error) -> String {
    let Error::InvalidCertificate(error) = error else {
        return error.to_string();
    };
    let words = match &error {
        CertificateError::BadEncoding => "it is damaged",
        CertificateError::Revoked => "it is revoked",
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "it is not made for this use"
        }
        CertificateError::Other(other) => match other.0.downcast_ref() {
            Some(webpki::Error::CaUsedAsEndEntity) => {
                "it is that of a certificate authority, which has to sign another one for the server"
            }
            Some(webpki::Error::UnsupportedCertVersion) => "it is no X.509 version 3",
            Some(other) => return other.to_string(),
            None => return other.to_string(),
        },
        other => return other.to_string(),
    };
    words.into()
}

/// A name in a certificate without the kind that the library puts around it.
fn bare(name: &str) -> String {
    let inner = name
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'));
    inner.unwrap_or(name).trim_matches('"').into()
}

fn listed(names: &[String]) -> String {
    let shown = names.get(..NAMES).unwrap_or(names).join(", ");
    match names.len() {
        0 => "no name (a common name alone does not count)".into(),
        count if count > NAMES => format!("{shown} and {} more", count - NAMES),
        _ => shown,
    }
}

/// A time as people tell it.
fn rough(time: Duration) -> String {
    let seconds = time.as_secs();
    let (count, unit) = match seconds {
        0..120 => (seconds, "second"),
        120..7_200 => (seconds / 60, "minute"),
        7_200..172_800 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    let s = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{s}")
}
