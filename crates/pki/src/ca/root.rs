//! The self-signed root certificate (spec §19.5).
//!
//! Invariant: it can sign certificates and nothing else. Keeping it is `files`' work.

use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, SerialNumber,
};

use super::{CaError, CaOptions, backdate, leaf};

/// The root's PEM. Its common name is the trust domain, followed by `label` when there is one.
pub(super) fn self_sign(key: &KeyPair, options: &CaOptions, label: &str, now: SystemTime) -> Result<String, CaError> {
    let name = options.trust_domain.as_str();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, name);
    let common = if label.is_empty() { name.to_owned() } else { format!("{name} {label}") };
    params.distinguished_name.push(DnType::CommonName, common);
    params.not_before = now.checked_sub(backdate(options.root_ttl)).unwrap_or(now).into();
    params.not_after = now.checked_add(options.root_ttl).ok_or(CaError::SignerExpired)?.into();
    params.serial_number = Some(SerialNumber::from_slice(&leaf::random_serial()?));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params.self_signed(key).map_err(|e| CaError::Sign(e.to_string()))?.pem())
}
