//! Java's keystore, version 2.
//!
//! Invariant: as `sun.security.provider.JavaKeyStore` reads it: names in lower case, keys hidden by Sun's protector, the whole
//! sealed by SHA-1 over password, a phrase and the content.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;

use super::{KeystoreError, numbered, random, sha1, utf16};
use crate::der;

const MAGIC: u32 = 0xfeed_feed;
const VERSION: u32 = 2;
const KEY_ENTRY: u32 = 1;
const CERTIFICATE_ENTRY: u32 = 2;
/// What is hashed between the password and the content.
const PHRASE: &[u8] = b"Mighty Aphrodite";
/// Sun's key protector.
const PROTECTOR: &[u32] = &[1, 3, 6, 1, 4, 1, 42, 2, 17, 1, 1];

pub(super) fn with_key(
    alias: &str,
    key: &[u8],
    chain: &[CertificateDer<'_>],
    password: &str,
    now: SystemTime,
) -> Result<Vec<u8>, KeystoreError> {
    let mut store = Store::new(1);
    store.number(KEY_ENTRY);
    store.head(alias, now)?;
    store.bytes(&protect(key, password)?)?;
    store.number(u32::try_from(chain.len()).map_err(|_| KeystoreError::Write)?);
    for certificate in chain {
        store.certificate(certificate)?;
    }
    Ok(store.sealed(password))
}

pub(super) fn trusted(
    alias: &str,
    certificates: &[CertificateDer<'_>],
    password: &str,
    now: SystemTime,
) -> Result<Vec<u8>, KeystoreError> {
    let mut store = Store::new(u32::try_from(certificates.len()).map_err(|_| KeystoreError::Write)?);
    for (index, certificate) in certificates.iter().enumerate() {
        store.number(CERTIFICATE_ENTRY);
        store.head(&numbered(alias, index), now)?;
        store.certificate(certificate)?;
    }
    Ok(store.sealed(password))
}

struct Store(Vec<u8>);

impl Store {
    fn new(entries: u32) -> Self {
        let mut store = Self(Vec::new());
        [MAGIC, VERSION, entries].into_iter().for_each(|number| store.number(number));
        store
    }

    fn number(&mut self, number: u32) {
        self.0.extend(number.to_be_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), KeystoreError> {
        self.number(u32::try_from(bytes.len()).map_err(|_| KeystoreError::Write)?);
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    /// Java's `writeUTF`. It differs from UTF-8 for NUL and beyond the basic plane, which no name has.
    fn text(&mut self, text: &str) -> Result<(), KeystoreError> {
        let length = u16::try_from(text.len()).map_err(|_| KeystoreError::Write)?;
        if text.chars().any(|c| c == '\0' || u32::from(c) > 0xffff) {
            return Err(KeystoreError::Write);
        }
        self.0.extend(length.to_be_bytes());
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }

    fn head(&mut self, alias: &str, now: SystemTime) -> Result<(), KeystoreError> {
        self.text(&alias.to_lowercase())?;
        let millis = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        self.0.extend(u64::try_from(millis).unwrap_or(0).to_be_bytes());
        Ok(())
    }

    fn certificate(&mut self, certificate: &[u8]) -> Result<(), KeystoreError> {
        self.text("X.509")?;
        self.bytes(certificate)
    }

    fn sealed(mut self, password: &str) -> Vec<u8> {
        let seal = sha1(&[&utf16(password), PHRASE, &self.0]);
        self.0.extend(seal);
        self.0
    }
}

/// The key under a stream of hashes of password and salt, with its own hash behind it.
fn protect(key: &[u8], password: &str) -> Result<Vec<u8>, KeystoreError> {
    let password = utf16(password);
    let salt: [u8; 20] = random()?;
    let mut hidden = salt.to_vec();
    let mut stream = salt.to_vec();
    for block in key.chunks(20) {
        stream = sha1(&[&password, &stream]);
        hidden.extend(block.iter().zip(&stream).map(|(a, b)| a ^ b));
    }
    hidden.extend(sha1(&[&password, key]));
    let algorithm = der::of(der::SEQUENCE, &[der::oid(PROTECTOR), der::null()]);
    Ok(der::of(der::SEQUENCE, &[algorithm, der::value(der::OCTETS, &hidden)]))
}
