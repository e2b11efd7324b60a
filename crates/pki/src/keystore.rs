//! Keys and certificates in the containers that programs outside the PEM world read: PKCS#12 and Java's JKS.
//!
//! Invariant: a private key is never in a container in the clear, and the whole is sealed with the password, so that a wrong
//! one is noticed. Which password, and where the container goes, is the caller's decision.

mod jks;
mod pkcs12;

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use crate::key::PrivateKey;

/// How a PKCS#12 container is encrypted and sealed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Pkcs12Profile {
    /// RC2 with 40 bits for certificates, triple DES for keys, SHA-1: for the oldest of readers.
    #[default]
    LegacyRc2,
    /// Triple DES, SHA-1.
    LegacyDes,
    /// AES-256 by PBKDF2 with SHA-256, sealed with SHA-256.
    Modern2023,
}

impl Pkcs12Profile {
    /// A profile by cert-manager's name; empty is `LegacyRC2`. `None` for an unknown one.
    pub fn by_name(name: &str) -> Option<Self> {
        match name {
            "" | "LegacyRC2" => Some(Self::LegacyRc2),
            "LegacyDES" => Some(Self::LegacyDes),
            "Modern2023" => Some(Self::Modern2023),
            _ => None,
        }
    }
}

/// The kind of a container.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// PKCS#12 (RFC 7292).
    Pkcs12(Pkcs12Profile),
    /// Java's own, of before Java 9.
    Jks,
}

/// Why there is no container.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeystoreError {
    /// The password has a form that the container's readers do not take.
    #[error("the keystore's password {0}")]
    Password(&'static str),
    /// The key is of a kind that cannot be written as PKCS#8.
    #[error("the key cannot be put into a keystore")]
    Key,
    /// The cryptographic library failed, or something is too long for the format.
    #[error("writing the keystore failed")]
    Write,
}

/// A container with a key and its chain, leaf first, under a name.
///
/// # Errors
/// See [`KeystoreError`].
pub fn with_key(
    format: Format,
    alias: &str,
    key: &PrivateKey,
    chain: &[CertificateDer<'_>],
    password: &str,
    now: SystemTime,
) -> Result<Vec<u8>, KeystoreError> {
    check(password)?;
    let key = key.to_pkcs8_der().ok_or(KeystoreError::Key)?;
    match format {
        Format::Pkcs12(profile) => pkcs12::with_key(profile, alias, &key, chain, password),
        Format::Jks => jks::with_key(alias, &key, chain, password, now),
    }
}

/// A container with certificates that are trusted. In PKCS#12 they are marked as Java wants it.
///
/// # Errors
/// See [`KeystoreError`].
pub fn trusted(
    format: Format,
    alias: &str,
    certificates: &[CertificateDer<'_>],
    password: &str,
    now: SystemTime,
) -> Result<Vec<u8>, KeystoreError> {
    check(password)?;
    match format {
        Format::Pkcs12(profile) => pkcs12::trusted(profile, alias, certificates, password),
        Format::Jks => jks::trusted(alias, certificates, password, now),
    }
}

/// A keyed hash over texts that only a holder of the key can make: for noticing that something was made with other texts.
pub fn mark(key: &PrivateKey, parts: &[String]) -> String {
    // The same bytes whatever form the key was read from.
    let own = key.to_traditional_pem().unwrap_or_else(|| key.to_pem());
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, own.as_bytes());
    let mut context = aws_lc_rs::hmac::Context::with_key(&key);
    for part in parts {
        context.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        context.update(part.as_bytes());
    }
    context.sign().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name of the nth of several certificates.
fn numbered(alias: &str, index: usize) -> String {
    if index == 0 { alias.to_owned() } else { format!("{alias}-{index}") }
}

fn check(password: &str) -> Result<(), KeystoreError> {
    if password.is_empty() {
        return Err(KeystoreError::Password("is empty"));
    }
    // The formats take sixteen bits for a character.
    if password.chars().any(|c| u32::from(c) > 0xffff) {
        return Err(KeystoreError::Password("has a character beyond the basic plane of Unicode"));
    }
    Ok(())
}

/// The password as big-endian UTF-16.
fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

fn sha1(parts: &[&[u8]]) -> Vec<u8> {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY);
    parts.iter().for_each(|part| context.update(part));
    context.finish().as_ref().to_vec()
}

fn random<const N: usize>() -> Result<[u8; N], KeystoreError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| KeystoreError::Write)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_of_the_key_and_the_texts_alone() {
        use crate::key::KeyAlgorithm;
        for algorithm in [KeyAlgorithm::EcdsaP256, KeyAlgorithm::Ed25519] {
            let key = PrivateKey::generate(algorithm).unwrap();
            let texts = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
            let own = mark(&key, &texts("ab", "c"));
            for text in [key.to_traditional_pem().unwrap(), key.to_pkcs8_pem().unwrap()] {
                assert_eq!(mark(&PrivateKey::from_pem(text.as_bytes()).unwrap(), &texts("ab", "c")), own);
            }
            assert_ne!(mark(&key, &texts("a", "bc")), own);
            assert_ne!(mark(&PrivateKey::generate(algorithm).unwrap(), &texts("ab", "c")), own);
        }
    }

    #[test]
    fn passwords_that_readers_do_not_take_are_refused() {
        let make = |password| trusted(Format::Jks, "ca", &[], password, SystemTime::UNIX_EPOCH);
        assert_eq!(make(""), Err(KeystoreError::Password("is empty")));
        assert!(matches!(make("\u{1f511}"), Err(KeystoreError::Password(_))));
        assert!(make("changeit").is_ok());
    }
}
