//! One leaf certificate (spec §19.3).
//!
//! Invariant: everything in it is chosen here; the public key is the only thing taken from the request.

use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, SerialNumber, SubjectPublicKeyInfo,
};

use super::{CaError, Subject};

/// Allowance for clocks that are behind ours.
const BACKDATE: Duration = Duration::from_secs(120);

pub(super) struct Leaf {
    pub(super) pem: String,
    pub(super) not_after: SystemTime,
    pub(super) serial: String,
}

pub(super) fn sign(
    issuer: &Issuer<'static, KeyPair>,
    public_key: &SubjectPublicKeyInfo,
    subject: &Subject,
    ttl: Duration,
    now: SystemTime,
    signer_ends: SystemTime,
) -> Result<Leaf, CaError> {
    let not_after = now.checked_add(ttl).unwrap_or(signer_ends).min(signer_ends);
    let serial = random_serial()?;
    let mut params = CertificateParams::default();
    params.not_before = now.checked_sub(BACKDATE).unwrap_or(now).into();
    params.not_after = not_after.into();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.distinguished_name = DistinguishedName::new();
    match subject {
        // No subject: the names become critical (RFC 5280 §4.1.2.6).
        Subject::Workload(id) => params.subject_alt_names = vec![SanType::URI(ia5(id.as_str())?)],
        Subject::Server { dns, ips } => {
            if let Some(first) = dns.first() {
                params.distinguished_name.push(DnType::CommonName, first.as_str());
            }
            params.subject_alt_names = dns
                .iter()
                .map(|name| ia5(name).map(SanType::DnsName))
                .chain(ips.iter().map(|ip| Ok(SanType::IpAddress(*ip))))
                .collect::<Result<_, CaError>>()?;
            if params.subject_alt_names.is_empty() {
                return Err(CaError::Name(String::new()));
            }
        }
    }
    let certificate = params.signed_by(public_key, issuer).map_err(|e| CaError::Sign(e.to_string()))?;
    let serial: String = serial.iter().map(|b| format!("{b:02x}")).collect();
    Ok(Leaf { pem: certificate.pem(), not_after, serial })
}

fn ia5(name: &str) -> Result<Ia5String, CaError> {
    Ia5String::try_from(name).map_err(|_| CaError::Name(name.to_owned()))
}

/// 128 random bits, of which the two highest are fixed: positive, and always sixteen bytes.
pub(crate) fn random_serial() -> Result<[u8; 16], CaError> {
    let mut serial = [0u8; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| CaError::Sign("no randomness".to_owned()))?;
    serial[0] = (serial[0] & 0x7f) | 0x40;
    Ok(serial)
}
