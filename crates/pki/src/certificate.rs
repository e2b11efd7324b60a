//! What a certificate says, read out of its DER.
//!
//! Invariant: reading never panics and never trusts: nothing here verifies a signature. Verification is in `tls`.

mod known;

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use x509_parser::oid_registry::{
    OID_NIST_EC_P521, OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384, OID_SIG_ECDSA_WITH_SHA512,
};
use x509_parser::prelude::{GeneralName, X509Certificate};
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo};

/// Why a certificate is unreadable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Not an X.509 certificate.
    #[error("not an X.509 certificate")]
    Syntax,
    /// The subject alternative names do not parse or occur twice.
    #[error("unreadable subject alternative names")]
    Sans,
    /// A validity outside the range of time on this machine.
    #[error("unreadable validity")]
    Validity,
}

/// The parts of a certificate that are shown or compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateInfo {
    /// The subject as OpenSSL and RFC 2253 order it; empty for workloads.
    pub subject: String,
    /// The issuer.
    pub issuer: String,
    /// Lower-case hexadecimal without separators or leading zeros.
    pub serial: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
    /// URI names, in order.
    pub uris: Vec<String>,
    /// DNS names, in order.
    pub dns: Vec<String>,
    /// Address names, in order.
    pub ips: Vec<IpAddr>,
    /// E-mail names, in order.
    pub emails: Vec<String>,
    /// SHA-256 of the public key (SubjectPublicKeyInfo).
    pub spki_sha256: [u8; 32],
    /// Whether it is of X.509 version 3. Older ones have no names and no constraints.
    pub is_v3: bool,
    /// Whether it may sign others.
    pub is_ca: bool,
}

impl CertificateInfo {
    /// Reads `der`.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub fn read(der: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let (rest, cert) = x509_parser::parse_x509_certificate(der).map_err(|_| CertificateError::Syntax)?;
        if !rest.is_empty() {
            return Err(CertificateError::Syntax);
        }
        let mut info = Self {
            subject: cert.subject().to_string(),
            issuer: cert.issuer().to_string(),
            serial: hex(&cert.serial.to_bytes_be()),
            not_before: system_time(cert.validity().not_before.timestamp())?,
            not_after: system_time(cert.validity().not_after.timestamp())?,
            uris: Vec::new(),
            dns: Vec::new(),
            ips: Vec::new(),
            emails: Vec::new(),
            spki_sha256: sha256(cert.public_key().raw),
            is_v3: cert.version() == x509_parser::x509::X509Version::V3,
            is_ca: cert.is_ca(),
        };
        info.read_names(&cert)?;
        Ok(info)
    }

    /// The public key (SubjectPublicKeyInfo, DER) of a certificate; `None` when it does not parse.
    pub fn public_key(der: &CertificateDer<'_>) -> Option<Vec<u8>> {
        public_key(der)
    }

    fn read_names(&mut self, cert: &X509Certificate<'_>) -> Result<(), CertificateError> {
        let Some(names) = cert.subject_alternative_name().map_err(|_| CertificateError::Sans)? else {
            return Ok(());
        };
        for name in &names.value.general_names {
            match name {
                GeneralName::URI(uri) => self.uris.push((*uri).to_owned()),
                GeneralName::DNSName(dns) => self.dns.push((*dns).to_owned()),
                GeneralName::RFC822Name(email) => self.emails.push((*email).to_owned()),
                GeneralName::IPAddress(bytes) => {
                    self.ips.push(address(bytes).ok_or(CertificateError::Sans)?);
                }
                GeneralName::Invalid(..) => return Err(CertificateError::Sans),
                _ => {}
            }
        }
        Ok(())
    }
}

/// An address as certificates hold it: four or sixteen bytes.
pub(crate) fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut out = [0; 32];
    out.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
    out
}

/// The key itself inside of the public key of a certificate; `None` when it does not parse.
pub(crate) fn raw_public_key(der: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, cert) = x509_parser::parse_x509_certificate(der).ok()?;
    Some(cert.public_key().subject_public_key.data.to_vec())
}

/// SHA-256 of a certificate, hexadecimal: how certificates are told apart in reports.
pub fn fingerprint(der: &CertificateDer<'_>) -> String {
    hex_all(&sha256(der))
}

/// All bytes in hexadecimal.
pub(crate) fn hex_all(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The public key (SubjectPublicKeyInfo) of a certificate; `None` when it does not parse.
pub(crate) fn public_key(der: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, cert) = x509_parser::parse_x509_certificate(der).ok()?;
    Some(cert.public_key().raw.to_vec())
}

fn hex(bytes: &[u8]) -> String {
    let text: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let short = text.trim_start_matches('0');
    if short.is_empty() { "0".to_owned() } else { short.to_owned() }
}

fn system_time(seconds: i64) -> Result<SystemTime, CertificateError> {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    };
    time.ok_or(CertificateError::Validity)
}

/// Whether `issuer`'s key signed `certificate`; compares names too. Used for CA files only, never for peers.
pub(crate) fn is_signed_by(certificate: &CertificateDer<'_>, issuer: &CertificateDer<'_>) -> bool {
    let (Ok((_, certificate)), Ok((_, issuer))) =
        (x509_parser::parse_x509_certificate(certificate), x509_parser::parse_x509_certificate(issuer))
    else {
        return false;
    };
    let key = issuer.public_key();
    certificate.issuer().as_raw() == issuer.subject().as_raw()
        && (certificate.verify_signature(Some(key)).is_ok()
            || is_p521_signature(
                key,
                &certificate.signature_algorithm,
                certificate.tbs_certificate.as_ref(),
                &certificate.signature_value.data,
            ))
}

/// Whether a key on the curve P-521 signed a message: the one curve that the parser's own verification lacks.
pub(crate) fn is_p521_signature(
    key: &SubjectPublicKeyInfo<'_>,
    algorithm: &AlgorithmIdentifier<'_>,
    message: &[u8],
    signature: &[u8],
) -> bool {
    use aws_lc_rs::signature::{
        ECDSA_P521_SHA256_ASN1, ECDSA_P521_SHA384_ASN1, ECDSA_P521_SHA512_ASN1, UnparsedPublicKey,
    };
    let curve = key.algorithm.parameters.as_ref().and_then(|p| p.as_oid().ok());
    if curve != Some(OID_NIST_EC_P521) {
        return false;
    }
    let verifier = match &algorithm.algorithm {
        oid if *oid == OID_SIG_ECDSA_WITH_SHA512 => &ECDSA_P521_SHA512_ASN1,
        oid if *oid == OID_SIG_ECDSA_WITH_SHA384 => &ECDSA_P521_SHA384_ASN1,
        oid if *oid == OID_SIG_ECDSA_WITH_SHA256 => &ECDSA_P521_SHA256_ASN1,
        _ => return false,
    };
    UnparsedPublicKey::new(verifier, &key.subject_public_key.data).verify(message, signature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn junk_is_no_certificate() {
        for bytes in [&b""[..], b"\x30", b"\x30\x03\x02\x01\x01", &[0xff; 300]] {
            assert_eq!(CertificateInfo::read(&CertificateDer::from(bytes)), Err(CertificateError::Syntax));
        }
    }

    #[test]
    fn hexadecimal_serials() {
        assert_eq!(hex(&[0, 0x0a, 0xff]), "aff");
        assert_eq!(hex(&[0]), "0");
    }
}
