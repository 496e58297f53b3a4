//! Takes a certificate apart: the names that it vouches for, and what it is known by.
//!
//! Everything that names a client is kept, also what can't be read: text that is none becomes U+FFFD, so that it counts
//! where exactly one name is due and is never a name itself.

use std::fmt::Write;

use aws_lc_rs::digest::{SHA256, digest};
use chinwag_core::plugin::Certificate;
use rustls::pki_types::CertificateDer;
use x509_parser::{
    asn1_rs::{Any, Oid, Tag, ToDer, oid},
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::FromDer,
    public_key::PublicKey,
    x509::{AttributeTypeAndValue, X509Name},
};

/// The least bits of an RSA key.
const RSA_BITS: usize = 2048;
/// The least bits of an elliptic curve.
const CURVE_BITS: usize = 256;

/// The certificate is no X.509, or says the same thing twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unreadable;

/// A certificate as its parser sees it.
pub(super) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Unreadable> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(Unreadable),
    }
}

/// Takes apart the first certificate of `chain`. Whether it is any good is not looked at.
pub(super) fn read(chain: &[CertificateDer<'_>]) -> Result<Certificate, Unreadable> {
    let der = chain.first().ok_or(Unreadable)?;
    let parsed = parse(der)?;
    let mut certificate = Certificate::default();
    let names = parsed
        .subject_alternative_name()
        .map_err(|_| Unreadable)?
        .map(|extension| extension.value.general_names.as_slice());
    for name in names.unwrap_or_default() {
        match *name {
            GeneralName::RFC822Name(name) => certificate.emails.push(name.to_owned()),
            GeneralName::DNSName(name) => certificate.dns_names.push(name.to_owned()),
            GeneralName::URI(name) => certificate.uris.push(name.to_owned()),
            GeneralName::Invalid(Tag(1), bytes) => certificate.emails.push(lossy(bytes)),
            GeneralName::Invalid(Tag(2), bytes) => certificate.dns_names.push(lossy(bytes)),
            GeneralName::Invalid(Tag(6), bytes) => certificate.uris.push(lossy(bytes)),
            _ => (),
        }
    }
    certificate.common_names = parsed
        .subject()
        .iter_common_name()
        .map(|attribute| text(attribute.attr_value()))
        .collect();
    certificate.subject = distinguished_name(parsed.subject());
    certificate.issuer = parsed.issuer().as_raw().to_vec();
    certificate.serial = hex(parsed.raw_serial()).trim_start_matches('0').to_owned();
    if certificate.serial.is_empty() {
        certificate.serial.push('0');
    }
    certificate.fingerprint = hex(digest(&SHA256, der).as_ref());
    let end = parsed.validity().not_after.timestamp();
    certificate.expires_at = u64::try_from(end).unwrap_or(0).saturating_mul(1000);
    certificate.chain = chain.iter().map(|der| der.to_vec()).collect();
    Ok(certificate)
}

/// Whether the key proves too little. Kinds of key that nobody knows are found out when they are used.
pub(super) fn is_weak(certificate: &X509Certificate<'_>) -> bool {
    match certificate.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => bits(key.modulus) < RSA_BITS,
        Ok(PublicKey::EC(point)) => point.key_size() < CURVE_BITS,
        _ => false,
    }
}

fn bits(number: &[u8]) -> usize {
    let zeroes = number.iter().take_while(|&&byte| byte == 0).count();
    number.get(zeroes..).map_or(0, |rest| {
        let unused = rest.first().map_or(0, |first| first.leading_zeros());
        rest.len() * 8 - unused as usize
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Bytes that were no text to the parser: never a name.
fn lossy(bytes: &[u8]) -> String {
    format!("{}\u{fffd}", String::from_utf8_lossy(bytes))
}

/// The text of an attribute, in whichever of the many string types it comes.
fn text(value: &Any<'_>) -> String {
    let bytes = value.data;
    match value.tag() {
        Tag::Utf8String
        | Tag::PrintableString
        | Tag::Ia5String
        | Tag::NumericString
        | Tag::VisibleString => String::from_utf8_lossy(bytes).into_owned(),
        // Nobody agrees on what the upper half of T.61 means.
        Tag::T61String if bytes.is_ascii() => String::from_utf8_lossy(bytes).into_owned(),
        Tag::BmpString if bytes.len().is_multiple_of(2) => {
            let units = bytes
                .chunks_exact(2)
                .map(|unit| u16::from_be_bytes([unit[0], unit[1]]));
            char::decode_utf16(units)
                .map(|letter| letter.unwrap_or(char::REPLACEMENT_CHARACTER))
                .collect()
        }
        Tag::UniversalString if bytes.len().is_multiple_of(4) => bytes
            .chunks_exact(4)
            .map(|unit| {
                let point = u32::from_be_bytes([unit[0], unit[1], unit[2], unit[3]]);
                char::from_u32(point).unwrap_or(char::REPLACEMENT_CHARACTER)
            })
            .collect(),
        _ => lossy(bytes),
    }
}

/// A name as RFC 4514 writes it.
pub(super) fn distinguished_name(name: &X509Name<'_>) -> String {
    let mut parts: Vec<String> = name
        .iter()
        .map(|part| {
            let attributes: Vec<String> = part.iter().map(attribute).collect();
            attributes.join("+")
        })
        .collect();
    parts.reverse();
    parts.join(",")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let kind = attribute.attr_type();
    match keyword(kind) {
        Some(keyword) => format!("{keyword}={}", escaped(&text(attribute.attr_value()))),
        None => {
            let value = attribute.attr_value().to_der_vec().unwrap_or_default();
            format!("{kind}=#{}", hex(&value))
        }
    }
}

fn keyword(kind: &Oid<'_>) -> Option<&'static str> {
    [
        (oid!(2.5.4.3), "CN"),
        (oid!(2.5.4.5), "serialNumber"),
        (oid!(2.5.4.6), "C"),
        (oid!(2.5.4.7), "L"),
        (oid!(2.5.4.8), "ST"),
        (oid!(2.5.4.9), "STREET"),
        (oid!(2.5.4.10), "O"),
        (oid!(2.5.4.11), "OU"),
        (oid!(0.9.2342.19200300.100.1.1), "UID"),
        (oid!(0.9.2342.19200300.100.1.25), "DC"),
        (oid!(1.2.840.113549.1.9.1), "emailAddress"),
    ]
    .into_iter()
    .find_map(|(known, keyword)| (known == *kind).then_some(keyword))
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    let last = text.chars().count().saturating_sub(1);
    for (place, letter) in text.chars().enumerate() {
        match letter {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => escaped.extend(['\\', letter]),
            '#' if place == 0 => escaped.push_str("\\#"),
            ' ' if place == 0 || place == last => escaped.push_str("\\ "),
            _ if letter.is_control() => {
                for byte in letter.encode_utf8(&mut [0; 4]).bytes() {
                    let _ = write!(escaped, "\\{byte:02x}");
                }
            }
            _ => escaped.push(letter),
        }
    }
    escaped
}
