//! Which of the counted reasons an error is.

use std::{fmt, io};

use chinwag_core::TlsFailure;
use rustls::{CertificateError, Error};

/// A key that proves too little, as the reason inside a [`CertificateError`].
#[derive(Debug)]
pub(super) struct WeakKey;

impl fmt::Display for WeakKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the key is too weak")
    }
}

impl std::error::Error for WeakKey {}

/// More certificates, or longer ones, than lead from anybody to a CA.
#[derive(Debug)]
pub(super) struct LongChain;

impl fmt::Display for LongChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the chain is too long")
    }
}

impl std::error::Error for LongChain {}

/// Why a handshake over a socket failed.
pub(super) fn of_io(error: &io::Error) -> TlsFailure {
    if let Some(error) = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<Error>())
    {
        return of_error(error);
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::NotConnected
        | io::ErrorKind::TimedOut
        | io::ErrorKind::WriteZero => TlsFailure::Closed,
        _ => TlsFailure::Other,
    }
}

pub(super) fn of_error(error: &Error) -> TlsFailure {
    match error {
        Error::NoCertificatesPresented => TlsFailure::NoCertificate,
        Error::InvalidCertificate(error) => of_certificate(error),
        // Lists were read when they were loaded. What is found only now is that they do not fit their issuer.
        Error::InvalidCertRevocationList(_) => TlsFailure::UnknownRevocation,
        Error::AlertReceived(_) => TlsFailure::Alert,
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => TlsFailure::Incompatible,
        Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::InvalidMessage(_)
        | Error::PeerMisbehaved(_)
        | Error::DecryptError
        | Error::PeerSentOversizedRecord => TlsFailure::Malformed,
        _ => TlsFailure::Other,
    }
}

/// How much an error tells of a chain, compared to those of other anchors: nothing where an anchor has not signed it.
pub(super) fn weight(error: &Error) -> u8 {
    match of_error(error) {
        TlsFailure::UnknownCa => 0,
        // A signature of a kind that the anchor's key can't have made.
        TlsFailure::Weak => 1,
        TlsFailure::BadSignature => 2,
        _ => 3,
    }
}

fn of_certificate(error: &CertificateError) -> TlsFailure {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => TlsFailure::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            TlsFailure::NotYetValid
        }
        CertificateError::Revoked => TlsFailure::Revoked,
        CertificateError::UnknownIssuer => TlsFailure::UnknownCa,
        CertificateError::UnknownRevocationStatus => TlsFailure::UnknownRevocation,
        CertificateError::ExpiredRevocationList
        | CertificateError::ExpiredRevocationListContext { .. } => TlsFailure::StaleCrl,
        CertificateError::BadSignature => TlsFailure::BadSignature,
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            TlsFailure::Weak
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            TlsFailure::WrongUsage
        }
        CertificateError::Other(other) if other.0.is::<WeakKey>() => TlsFailure::Weak,
        CertificateError::Other(other) => other
            .0
            .downcast_ref()
            .map_or(TlsFailure::BadCertificate, of_path),
        _ => TlsFailure::BadCertificate,
    }
}

/// What rustls has no word of its own for.
fn of_path(error: &webpki::Error) -> TlsFailure {
    match error {
        // Somebody signed who may not, or not that far down, or not for such names.
        webpki::Error::EndEntityUsedAsCa
        | webpki::Error::PathLenConstraintViolated
        | webpki::Error::NameConstraintViolation
        | webpki::Error::MaximumPathDepthExceeded => TlsFailure::UnknownCa,
        webpki::Error::CaUsedAsEndEntity | webpki::Error::EmptyEkuExtension => {
            TlsFailure::WrongUsage
        }
        webpki::Error::SignatureAlgorithmMismatch => TlsFailure::BadSignature,
        _ => TlsFailure::BadCertificate,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{
        AlertDescription, CertRevocationListError, InvalidMessage, OtherError, PeerIncompatible,
        PeerMisbehaved,
    };

    use super::*;

    #[test]
    fn what_a_peer_does_wrong_is_told_apart() {
        for (error, reason) in [
            (Error::NoCertificatesPresented, TlsFailure::NoCertificate),
            (
                Error::InvalidMessage(InvalidMessage::InvalidContentType),
                TlsFailure::Malformed,
            ),
            (
                Error::PeerMisbehaved(PeerMisbehaved::MissingKeyShare),
                TlsFailure::Malformed,
            ),
            (
                Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon),
                TlsFailure::Incompatible,
            ),
            (Error::NoApplicationProtocol, TlsFailure::Incompatible),
            (
                Error::AlertReceived(AlertDescription::UnknownCA),
                TlsFailure::Alert,
            ),
            (
                Error::InvalidCertRevocationList(CertRevocationListError::BadSignature),
                TlsFailure::UnknownRevocation,
            ),
            (Error::FailedToGetRandomBytes, TlsFailure::Other),
        ] {
            assert_eq!(of_error(&error), reason, "{error:?}");
            let wrapped = io::Error::new(io::ErrorKind::InvalidData, error);
            assert_eq!(of_io(&wrapped), reason, "{wrapped:?}");
        }
        for kind in [
            io::ErrorKind::UnexpectedEof,
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::BrokenPipe,
        ] {
            assert_eq!(of_io(&kind.into()), TlsFailure::Closed);
        }
        assert_eq!(of_io(&io::ErrorKind::OutOfMemory.into()), TlsFailure::Other);
    }

    #[test]
    fn what_only_the_path_builder_has_words_for_is_told_apart_too() {
        let of = |error| of_certificate(&CertificateError::Other(OtherError(error)));
        assert_eq!(of(Arc::new(WeakKey)), TlsFailure::Weak);
        assert_eq!(
            of(Arc::new(webpki::Error::EndEntityUsedAsCa)),
            TlsFailure::UnknownCa
        );
        assert_eq!(
            of(Arc::new(webpki::Error::CaUsedAsEndEntity)),
            TlsFailure::WrongUsage
        );
        assert_eq!(
            of(Arc::new(webpki::Error::UnsupportedCertVersion)),
            TlsFailure::BadCertificate
        );
        assert_eq!(
            of(Arc::new(io::Error::other("?"))),
            TlsFailure::BadCertificate
        );
    }
}
