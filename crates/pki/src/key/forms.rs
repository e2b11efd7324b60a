//! A key's bytes in the forms that programs ask for: PKCS#8 (RFC 5958), PKCS#1 (RFC 8017), SEC1 (RFC 5915).
//!
//! Invariant: only the wrapping changes. Bytes of a kind that is not known are not wrapped.

use rustls_pki_types::PrivateKeyDer;

use super::KeyAlgorithm;
use crate::der::{self, BIT_STRING, CONTEXT_0, CONTEXT_1, INTEGER, OCTETS, SEQUENCE};

const RSA: &[u32] = &[1, 2, 840, 113_549, 1, 1, 1];
const EC: &[u32] = &[1, 2, 840, 10_045, 2, 1];

fn curve(algorithm: KeyAlgorithm) -> Option<Vec<u8>> {
    match algorithm {
        KeyAlgorithm::EcdsaP256 => Some(der::oid(&[1, 2, 840, 10_045, 3, 1, 7])),
        KeyAlgorithm::EcdsaP384 => Some(der::oid(&[1, 3, 132, 0, 34])),
        KeyAlgorithm::EcdsaP521 => Some(der::oid(&[1, 3, 132, 0, 35])),
        _ => None,
    }
}

pub(super) fn pkcs8(key: &PrivateKeyDer<'_>, algorithm: KeyAlgorithm) -> Option<Vec<u8>> {
    let (kind, parameters) = match (key, curve(algorithm)) {
        (PrivateKeyDer::Pkcs8(_), _) => return first_version(key.secret_der()),
        (PrivateKeyDer::Pkcs1(_), None) => (der::oid(RSA), der::null()),
        (PrivateKeyDer::Sec1(_), Some(curve)) => (der::oid(EC), curve),
        _ => return None,
    };
    let algorithm = der::of(SEQUENCE, &[kind, parameters]);
    Some(der::of(SEQUENCE, &[der::number(0), algorithm, der::value(OCTETS, key.secret_der())]))
}

/// PKCS#8 in its first version (RFC 5208): the second, which repeats the public key, is beyond OpenSSL 3.0 and Java.
fn first_version(pkcs8: &[u8]) -> Option<Vec<u8>> {
    let (info, _) = der::expect(pkcs8, SEQUENCE)?;
    let (_, rest) = der::expect(info, INTEGER)?;
    let (algorithm, rest) = der::expect(rest, SEQUENCE)?;
    let (key, _) = der::expect(rest, OCTETS)?;
    Some(der::of(SEQUENCE, &[der::number(0), der::value(SEQUENCE, algorithm), der::value(OCTETS, key)]))
}

/// The PEM label and the bytes in the key's own form, out of PKCS#8.
pub(super) fn traditional(pkcs8: &[u8], algorithm: KeyAlgorithm) -> Option<(&'static str, Vec<u8>)> {
    if algorithm == KeyAlgorithm::Ed25519 {
        return Some(("PRIVATE KEY", pkcs8.to_vec()));
    }
    let (info, _) = der::expect(pkcs8, SEQUENCE)?;
    let (_, rest) = der::expect(info, INTEGER)?;
    let (_, rest) = der::expect(rest, SEQUENCE)?;
    let (inner, _) = der::expect(rest, OCTETS)?;
    let Some(curve) = curve(algorithm) else {
        return Some(("RSA PRIVATE KEY", inner.to_vec()));
    };
    // By itself the key has to name its curve, which inside PKCS#8 it may leave out.
    let (body, _) = der::expect(inner, SEQUENCE)?;
    let (_, rest) = der::expect(body, INTEGER)?;
    let (scalar, mut rest) = der::expect(rest, OCTETS)?;
    let mut parts = vec![der::number(1), der::value(OCTETS, scalar), der::value(CONTEXT_0, &curve)];
    while let Some((tag, content, after)) = der::read(rest) {
        if tag == CONTEXT_1 && content.first() == Some(&BIT_STRING) {
            parts.push(der::value(tag, content));
        }
        rest = after;
    }
    Some(("EC PRIVATE KEY", der::of(SEQUENCE, &parts)))
}
