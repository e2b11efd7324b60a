//! PKCS#12 (RFC 7292): certificates encrypted together, the key by itself, and a seal over both.
//!
//! Invariant: every salt and vector is new and random. Rounds are those that cert-manager's readers are used to; the password is
//! as strong as whoever chose it.

use std::num::NonZeroU32;

use aws_lc_rs::cipher::{AES_256, EncryptionContext, PaddedBlockEncryptingKey, UnboundCipherKey};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::{digest, hmac, pbkdf2};
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockEncryptMut as _, InnerIvInit as _, KeyIvInit as _};
use rustls_pki_types::CertificateDer;

use super::{KeystoreError, Pkcs12Profile, numbered, random, sha1, utf16};
use crate::der::{self, SEQUENCE};

const DATA: &[u32] = &[1, 2, 840, 113_549, 1, 7, 1];
const ENCRYPTED_DATA: &[u32] = &[1, 2, 840, 113_549, 1, 7, 6];
const SHROUDED_KEY: &[u32] = &[1, 2, 840, 113_549, 1, 12, 10, 1, 2];
const CERTIFICATE: &[u32] = &[1, 2, 840, 113_549, 1, 12, 10, 1, 3];
const X509: &[u32] = &[1, 2, 840, 113_549, 1, 9, 22, 1];
const FRIENDLY_NAME: &[u32] = &[1, 2, 840, 113_549, 1, 9, 20];
const LOCAL_KEY_ID: &[u32] = &[1, 2, 840, 113_549, 1, 9, 21];
/// Java's mark of a certificate that is trusted, and for what: any use.
const TRUSTED_USAGE: &[u32] = &[2, 16, 840, 1, 113_894, 746_875, 1, 1];
const ANY_USAGE: &[u32] = &[2, 5, 29, 37, 0];
const BY_TRIPLE_DES: &[u32] = &[1, 2, 840, 113_549, 1, 12, 1, 3];
const BY_RC2_40: &[u32] = &[1, 2, 840, 113_549, 1, 12, 1, 6];
const PBES2: &[u32] = &[1, 2, 840, 113_549, 1, 5, 13];
const PBKDF2: &[u32] = &[1, 2, 840, 113_549, 1, 5, 12];
const HMAC_SHA256: &[u32] = &[1, 2, 840, 113_549, 2, 9];
const AES_256_CBC: &[u32] = &[2, 16, 840, 1, 101, 3, 4, 1, 42];
const SHA1: &[u32] = &[1, 3, 14, 3, 2, 26];
const SHA256: &[u32] = &[2, 16, 840, 1, 101, 3, 4, 2, 1];

/// Rounds between password and key.
const ROUNDS: u32 = 2048;

pub(super) fn with_key(
    profile: Pkcs12Profile,
    alias: &str,
    key: &[u8],
    chain: &[CertificateDer<'_>],
    password: &str,
) -> Result<Vec<u8>, KeystoreError> {
    let leaf = chain.first().ok_or(KeystoreError::Write)?;
    let own = [attribute(LOCAL_KEY_ID, der::value(der::OCTETS, &sha1(&[leaf]))), name(alias)];
    let bags = chain.iter().enumerate().map(|(index, der)| certificate(der, if index == 0 { &own } else { &[] }));
    let certificates = encrypted(profile, &bags.collect::<Vec<_>>(), password)?;
    let (algorithm, hidden) = encrypt(profile, key, password, false)?;
    let shrouded = der::of(SEQUENCE, &[algorithm, der::value(der::OCTETS, &hidden)]);
    let keys = data(&der::of(SEQUENCE, &[bag(SHROUDED_KEY, shrouded, &own)]));
    sealed(profile, &der::of(SEQUENCE, &[certificates, keys]), password)
}

pub(super) fn trusted(
    profile: Pkcs12Profile,
    alias: &str,
    certificates: &[CertificateDer<'_>],
    password: &str,
) -> Result<Vec<u8>, KeystoreError> {
    let bags = certificates.iter().enumerate().map(|(index, der)| {
        certificate(der, &[name(&numbered(alias, index)), attribute(TRUSTED_USAGE, der::oid(ANY_USAGE))])
    });
    let certificates = encrypted(profile, &bags.collect::<Vec<_>>(), password)?;
    sealed(profile, &der::of(SEQUENCE, &[certificates]), password)
}

fn bag(kind: &[u32], content: Vec<u8>, attributes: &[Vec<u8>]) -> Vec<u8> {
    let mut parts = vec![der::oid(kind), der::value(der::CONTEXT_0, &content)];
    if !attributes.is_empty() {
        // A set is written in the order of its members' bytes.
        let mut attributes = attributes.to_vec();
        attributes.sort();
        parts.push(der::of(der::SET, &attributes));
    }
    der::of(SEQUENCE, &parts)
}

fn certificate(der: &[u8], attributes: &[Vec<u8>]) -> Vec<u8> {
    let inner = der::value(der::CONTEXT_0, &der::value(der::OCTETS, der));
    bag(CERTIFICATE, der::of(SEQUENCE, &[der::oid(X509), inner]), attributes)
}

fn attribute(kind: &[u32], value: Vec<u8>) -> Vec<u8> {
    der::of(SEQUENCE, &[der::oid(kind), der::value(der::SET, &value)])
}

fn name(alias: &str) -> Vec<u8> {
    attribute(FRIENDLY_NAME, der::value(der::BMP_STRING, &utf16(alias)))
}

fn data(content: &[u8]) -> Vec<u8> {
    let content = der::value(der::CONTEXT_0, &der::value(der::OCTETS, content));
    der::of(SEQUENCE, &[der::oid(DATA), content])
}

fn encrypted(profile: Pkcs12Profile, bags: &[Vec<u8>], password: &str) -> Result<Vec<u8>, KeystoreError> {
    let weak = profile == Pkcs12Profile::LegacyRc2;
    let (algorithm, hidden) = encrypt(profile, &der::of(SEQUENCE, bags), password, weak)?;
    let info = der::of(SEQUENCE, &[der::oid(DATA), algorithm, der::value(der::IMPLICIT_0, &hidden)]);
    let content = der::of(SEQUENCE, &[der::number(0), info]);
    Ok(der::of(SEQUENCE, &[der::oid(ENCRYPTED_DATA), der::value(der::CONTEXT_0, &content)]))
}

/// The algorithm with its parameters, and the encrypted bytes. `weak` is RC2 with 40 bits.
fn encrypt(
    profile: Pkcs12Profile,
    bytes: &[u8],
    password: &str,
    weak: bool,
) -> Result<(Vec<u8>, Vec<u8>), KeystoreError> {
    if profile == Pkcs12Profile::Modern2023 {
        return modern(bytes, password);
    }
    let salt: [u8; 8] = random()?;
    let oid = if weak { BY_RC2_40 } else { BY_TRIPLE_DES };
    let parameters = der::of(SEQUENCE, &[der::value(der::OCTETS, &salt), der::number(ROUNDS)]);
    let algorithm = der::of(SEQUENCE, &[der::oid(oid), parameters]);
    let derive = |id, length| derive(&digest::SHA1_FOR_LEGACY_USE_ONLY, id, password, &salt, ROUNDS, length);
    let vector = derive(2, 8);
    // Room for the padding, which is at least a byte and at most a block.
    let mut room = bytes.to_vec();
    room.resize(bytes.len().saturating_add(8), 0);
    let length = match weak {
        true => {
            let cipher = rc2::Rc2::new_with_eff_key_len(&derive(1, 5), 40);
            let cipher = cbc::Encryptor::inner_iv_slice_init(cipher, &vector).map_err(|_| KeystoreError::Write)?;
            cipher.encrypt_padded_mut::<Pkcs7>(&mut room, bytes.len()).map(<[u8]>::len)
        }
        false => {
            let cipher = cbc::Encryptor::<des::TdesEde3>::new_from_slices(&derive(1, 24), &vector)
                .map_err(|_| KeystoreError::Write)?;
            cipher.encrypt_padded_mut::<Pkcs7>(&mut room, bytes.len()).map(<[u8]>::len)
        }
    };
    room.truncate(length.map_err(|_| KeystoreError::Write)?);
    Ok((algorithm, room))
}

fn modern(bytes: &[u8], password: &str) -> Result<(Vec<u8>, Vec<u8>), KeystoreError> {
    let (salt, vector): ([u8; 16], [u8; 16]) = (random()?, random()?);
    let rounds = NonZeroU32::new(ROUNDS).ok_or(KeystoreError::Write)?;
    let mut key = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, &salt, password.as_bytes(), &mut key);
    let cipher = UnboundCipherKey::new(&AES_256, &key).and_then(PaddedBlockEncryptingKey::cbc_pkcs7);
    let mut out = bytes.to_vec();
    let vector_of = EncryptionContext::Iv128(FixedLength::from(vector));
    cipher.and_then(|cipher| cipher.less_safe_encrypt(&mut out, vector_of)).map_err(|_| KeystoreError::Write)?;
    let hash = der::of(SEQUENCE, &[der::oid(HMAC_SHA256), der::null()]);
    let parameters = der::of(SEQUENCE, &[der::value(der::OCTETS, &salt), der::number(ROUNDS), hash]);
    let derivation = der::of(SEQUENCE, &[der::oid(PBKDF2), parameters]);
    let encryption = der::of(SEQUENCE, &[der::oid(AES_256_CBC), der::value(der::OCTETS, &vector)]);
    let both = der::of(SEQUENCE, &[derivation, encryption]);
    Ok((der::of(SEQUENCE, &[der::oid(PBES2), both]), out))
}

/// The container around its content, with a keyed hash over it.
fn sealed(profile: Pkcs12Profile, content: &[u8], password: &str) -> Result<Vec<u8>, KeystoreError> {
    let salt: [u8; 8] = random()?;
    let (hash, keyed, oid) = match profile {
        Pkcs12Profile::Modern2023 => (&digest::SHA256, hmac::HMAC_SHA256, SHA256),
        _ => (&digest::SHA1_FOR_LEGACY_USE_ONLY, hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, SHA1),
    };
    let key = derive(hash, 3, password, &salt, ROUNDS, hash.output_len());
    let seal = hmac::sign(&hmac::Key::new(keyed, &key), content);
    let algorithm = der::of(SEQUENCE, &[der::oid(oid), der::null()]);
    let seal = der::of(SEQUENCE, &[algorithm, der::value(der::OCTETS, seal.as_ref())]);
    let seal = der::of(SEQUENCE, &[seal, der::value(der::OCTETS, &salt), der::number(ROUNDS)]);
    Ok(der::of(SEQUENCE, &[der::number(3), data(content), seal]))
}

/// Bytes out of a password, as RFC 7292 appendix B.2 has it. `id` is 1 for a key, 2 for a vector, 3 for a seal.
fn derive(
    hash: &'static digest::Algorithm,
    id: u8,
    password: &str,
    salt: &[u8],
    rounds: u32,
    length: usize,
) -> Vec<u8> {
    let block = hash.block_len();
    let fill = |bytes: &[u8]| -> Vec<u8> {
        let whole = bytes.len().div_ceil(block).saturating_mul(block);
        bytes.iter().copied().cycle().take(whole).collect()
    };
    let mut ended = utf16(password);
    ended.extend([0, 0]);
    let mut input = fill(salt);
    input.extend(fill(&ended));
    let mut out = Vec::new();
    while out.len() < length {
        let mut context = digest::Context::new(hash);
        context.update(&vec![id; block]);
        context.update(&input);
        let mut made = context.finish();
        for _ in 1..rounds {
            made = digest::digest(hash, made.as_ref());
        }
        out.extend_from_slice(made.as_ref());
        // Each block of the input grows by the output, filled up, and one.
        let grow: Vec<u8> = made.as_ref().iter().copied().cycle().take(block).collect();
        for part in input.chunks_mut(block) {
            let mut carry = 1_u16;
            for (byte, add) in part.iter_mut().zip(&grow).rev() {
                let sum = u16::from(*byte).saturating_add(u16::from(*add)).saturating_add(carry);
                *byte = u8::try_from(sum & 0xff).unwrap_or(0);
                carry = sum >> 8;
            }
        }
    }
    out.truncate(length);
    out
}
