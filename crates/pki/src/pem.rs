//! PEM in and out (RFC 7468).
//!
//! Invariant: what is written ends with a newline and is read back equal; anything unreadable is an error, never
//! skipped. Meaning of the bytes is left to the callers.

use base64::Engine as _;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

/// Why a PEM text was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// Not PEM, or a broken section.
    #[error("not readable as PEM: {0}")]
    Syntax(String),
    /// No section of the wanted kind.
    #[error("no {0} in it")]
    Missing(&'static str),
}

/// All certificates of a text, in order.
///
/// # Errors
/// A broken section, or no certificate at all.
pub fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(text).collect::<Result<_, _>>().map_err(|e| PemError::Syntax(e.to_string()))?;
    if certificates.is_empty() { Err(PemError::Missing("certificate")) } else { Ok(certificates) }
}

/// All revocation lists of a text, in order.
///
/// # Errors
/// A broken section, or no list at all.
pub fn revocation_lists(text: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, PemError> {
    let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|e| PemError::Syntax(e.to_string()))?;
    if lists.is_empty() { Err(PemError::Missing("revocation list")) } else { Ok(lists) }
}

/// The first private key of a text: PKCS#8, SEC1 or PKCS#1.
///
/// # Errors
/// A broken section, or no key. The error never holds key bytes.
pub fn private_key(text: &[u8]) -> Result<PrivateKeyDer<'static>, PemError> {
    match PrivateKeyDer::from_pem_slice(text) {
        Ok(key) => Ok(key),
        Err(rustls_pki_types::pem::Error::NoItemsFound) => Err(PemError::Missing("private key")),
        // The library's message may quote the line it stumbled over.
        Err(_) => Err(PemError::Syntax("broken private key section".to_owned())),
    }
}

/// One certificate as text.
pub fn encode_certificate(der: &[u8]) -> String {
    encode("CERTIFICATE", der)
}

/// Certificates, one after the other.
pub fn encode_certificates<'a>(ders: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> String {
    ders.into_iter().map(|der| encode_certificate(der)).collect()
}

pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at_checked(64).unwrap_or((rest, ""));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_at_every_line_boundary() {
        for len in [1usize, 47, 48, 49, 96, 1000] {
            let der = vec![7u8; len];
            let text = encode_certificate(&der);
            assert_eq!(certificates(text.as_bytes()).unwrap(), [CertificateDer::from(der)], "{len}");
        }
    }

    #[test]
    fn junk_is_refused() {
        assert_eq!(certificates(b"hello"), Err(PemError::Missing("certificate")));
        let broken = b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n";
        assert!(matches!(certificates(broken), Err(PemError::Syntax(_))));
        assert_eq!(private_key(b""), Err(PemError::Missing("private key")));
    }
}
