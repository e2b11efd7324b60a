//! The authority's revocation list.
//!
//! Invariant: it lists what it is told and nothing else, and outlives every certificate that could be on it: proxies that
//! are cut off from the authority keep it in force for as long as their own certificates live.

use std::time::{Duration, SystemTime};

use rcgen::{CertificateRevocationListParams, Issuer, KeyIdMethod, RevokedCertParams, SerialNumber, SigningKey};

use super::CaError;

/// The shortest life of a list.
const LEAST: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A list, PEM. `revoked` are serials in hexadecimal with the time of their revocation; `number` grows from list to list.
pub(super) fn sign(
    issuer: &Issuer<'_, impl SigningKey>,
    revoked: &[(String, SystemTime)],
    number: u64,
    longest: Duration,
    now: SystemTime,
) -> Result<String, CaError> {
    let end = now.checked_add(longest.max(LEAST)).ok_or_else(|| CaError::Sign("no end of the list".to_owned()))?;
    let entry = |(serial, since): &(String, SystemTime)| {
        let bytes = bytes(serial).ok_or_else(|| CaError::Name(serial.clone()))?;
        Ok(RevokedCertParams {
            serial_number: SerialNumber::from_slice(&bytes),
            revocation_time: (*since).into(),
            reason_code: None,
            invalidity_date: None,
        })
    };
    let list = CertificateRevocationListParams {
        this_update: now.into(),
        next_update: end.into(),
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: revoked.iter().map(entry).collect::<Result<_, CaError>>()?,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let sign = list.signed_by(issuer).and_then(|list| list.pem());
    sign.map_err(|e| CaError::Sign(e.to_string()))
}

/// A number in hexadecimal as bytes.
fn bytes(hex: &str) -> Option<Vec<u8>> {
    let padded = if hex.len().is_multiple_of(2) { hex.to_owned() } else { format!("0{hex}") };
    padded.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}
