//! One leaf certificate (spec §19.3).
//!
//! Invariant: everything in it is chosen here; the public key is the only thing taken from the request.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose, SanType,
    SerialNumber, SubjectPublicKeyInfo,
};

use super::key::CaKey;
use super::{CaError, Subject, backdate};
use crate::journal::{self, Issuance, Journal};

pub(super) struct Leaf {
    pub(super) pem: String,
    pub(super) not_after: SystemTime,
    pub(super) serial: String,
}

pub(super) fn sign(
    issuer: &Issuer<'static, CaKey>,
    public_key: &SubjectPublicKeyInfo,
    subject: &Subject,
    ttl: Duration,
    now: SystemTime,
    signer_ends: SystemTime,
    journal: Option<&Arc<dyn Journal>>,
) -> Result<Leaf, CaError> {
    let not_after = now.checked_add(ttl).unwrap_or(signer_ends).min(signer_ends);
    let serial = random_serial()?;
    let mut params = CertificateParams::default();
    let not_before = now.checked_sub(backdate(ttl)).unwrap_or(now);
    params.not_before = not_before.into();
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
    let serial = journal::hex(&serial);
    let issuance = issuance(&serial, subject, journal::key_id(issuer.key()), not_before, not_after);
    let certificate = journal::recorded(journal, &issuance, || {
        params.signed_by(public_key, issuer).map_err(|e| CaError::Sign(e.to_string()))
    })?;
    Ok(Leaf { pem: certificate.pem(), not_after, serial })
}

fn issuance(
    serial: &str,
    subject: &Subject,
    issuer: String,
    not_before: SystemTime,
    not_after: SystemTime,
) -> Issuance {
    let (subject, names, asked_by) = match subject {
        Subject::Workload(id) => (String::new(), vec![id.to_string()], id.to_string()),
        Subject::Server { dns, ips } => {
            let common = dns.first().map(|name| format!("CN={name}")).unwrap_or_default();
            (common, journal::names(dns, ips), "control plane".to_owned())
        }
    };
    Issuance { serial: serial.to_owned(), subject, names, issuer, not_before, not_after, asked_by }
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
