//! An OCSP response that says a certificate is good (RFC 6960), for servers to staple.
//!
//! Invariant: only what a client of TLS looks at is in it: one certificate, by the SHA-1 names that RFC 6960 has clients ask for, signed by
//! its issuer itself. Nobody answers requests here.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

/// `id-pkix-ocsp-basic`, 1.3.6.1.5.5.7.48.1.1.
const BASIC: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 48, 1, 1];
/// `id-sha1`, 1.3.14.3.2.26.
const SHA1: &[u8] = &[0x2b, 14, 3, 2, 26];
/// `ecdsa-with-SHA256`, 1.2.840.10045.4.3.2.
const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
/// Said, and valid from then on.
const SINCE: &[u8] = b"20240101000000Z";
/// Valid until.
const UNTIL: &[u8] = b"20900101000000Z";

const INTEGER: u8 = 0x02;
const BITS: u8 = 0x03;
const OCTETS: u8 = 0x04;
const NULL: u8 = 0x05;
const OID: u8 = 0x06;
const ENUMERATED: u8 = 0x0a;
const TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;

/// What is said of whom.
pub struct Good<'a> {
    /// The issuer's name, DER.
    pub issuer: &'a [u8],
    /// Its public key, the bits alone.
    pub key: &'a [u8],
    /// The certificate's serial number, as DER has it.
    pub serial: &'a [u8],
}

/// The response, DER, with the signature that `sign` makes (ECDSA over SHA-256).
///
/// # Errors
/// Those of `sign`.
pub fn good<E>(of: &Good<'_>, sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>) -> Result<Vec<u8>, E> {
    let sha1 = |bytes: &[u8]| value(OCTETS, &[digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref()]);
    let algorithm = value(SEQUENCE, &[&value(OID, &[SHA1]), &value(NULL, &[])]);
    let certificate = value(SEQUENCE, &[&algorithm, &sha1(of.issuer), &sha1(of.key), &value(INTEGER, &[of.serial])]);
    let until = tagged(0, &value(TIME, &[UNTIL]));
    // `good` is an implicit NULL.
    let single = value(SEQUENCE, &[&certificate, &[0x80, 0], &value(TIME, &[SINCE]), &until]);
    let data = value(SEQUENCE, &[&tagged(1, of.issuer), &value(TIME, &[SINCE]), &value(SEQUENCE, &[&single])]);
    let signature = sign(&data)?;
    let signed = value(SEQUENCE, &[&value(OID, &[ECDSA_SHA256])]);
    let basic = value(SEQUENCE, &[&data, &signed, &value(BITS, &[&[0], &signature])]);
    let bytes = value(SEQUENCE, &[&value(OID, &[BASIC]), &value(OCTETS, &[&basic])]);
    Ok(value(SEQUENCE, &[&value(ENUMERATED, &[&[0]]), &tagged(0, &bytes)]))
}

/// Explicitly tagged.
fn tagged(number: u8, inner: &[u8]) -> Vec<u8> {
    value(0xa0 | number, &[inner])
}

/// A value of DER.
fn value(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let inner = parts.concat();
    let length = inner.len().to_be_bytes();
    let significant: Vec<u8> = length.into_iter().skip_while(|b| *b == 0).collect();
    let mut out = vec![tag];
    match inner.len() {
        short @ 0..128 => out.push(u8::try_from(short).unwrap_or(0)),
        _ => {
            out.push(0x80 | u8::try_from(significant.len()).unwrap_or(0));
            out.extend(significant);
        }
    }
    out.extend(inner);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_as_short_as_der_wants_them() {
        assert_eq!(value(OCTETS, &[&[7; 127]])[..2], [4, 127]);
        assert_eq!(value(OCTETS, &[&[7; 128]])[..3], [4, 0x81, 128]);
        assert_eq!(value(OCTETS, &[&[7; 300]])[..4], [4, 0x82, 1, 44]);
        assert_eq!(value(NULL, &[]), [5, 0]);
    }
}
