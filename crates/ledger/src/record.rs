//! One line of the ledger: `HASH JSON`, where the hash is that of the JSON's bytes and the JSON names the hash before.
//!
//! Invariant: writing and reading are inverse; a line that was written is never longer than [`LONGEST`].

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use carrick_base::SpiffeId;
use serde::{Deserialize, Serialize};

/// Longest line that is read.
pub(crate) const LONGEST: usize = 1 << 20;

/// The hash before the first record.
pub(crate) const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Whom or what a revocation is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Everything with this SPIFFE ID.
    Identity(String),
    /// One certificate, by its serial in lower-case hexadecimal without leading zeros.
    Serial(String),
}

/// Why a text names nothing that can be revoked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Not a SPIFFE ID.
    #[error("{0:?} is not a SPIFFE ID")]
    Identity(String),
    /// Not a serial number.
    #[error("{0:?} is not a serial number: up to 20 bytes in hexadecimal")]
    Serial(String),
}

impl Target {
    /// An identity, checked.
    ///
    /// # Errors
    /// It is no SPIFFE ID.
    pub fn identity(text: &str) -> Result<Self, TargetError> {
        let id: SpiffeId = text.parse().map_err(|_| TargetError::Identity(text.to_owned()))?;
        Ok(Self::Identity(id.to_string()))
    }

    /// A serial as people write it: any case, with or without colons and leading zeros.
    ///
    /// # Errors
    /// It is no number, or longer than certificates' serials are (RFC 5280 §4.1.2.2).
    pub fn serial(text: &str) -> Result<Self, TargetError> {
        let bare: String = text.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase()).collect();
        let bare = bare.strip_prefix("0x").unwrap_or(&bare);
        let short = bare.trim_start_matches('0');
        let sound = !short.is_empty() && short.len() <= 40 && short.bytes().all(|b| b.is_ascii_hexdigit());
        if sound { Ok(Self::Serial(short.to_owned())) } else { Err(TargetError::Serial(text.to_owned())) }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Identity(id) => f.write_str(id),
            Self::Serial(serial) => write!(f, "serial {serial}"),
        }
    }
}

/// What happened. Times are seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", rename_all_fields = "camelCase")]
pub enum Entry {
    /// A certificate is about to be signed.
    Intent {
        /// Lower-case hexadecimal.
        serial: String,
        /// The subject; empty for workloads.
        subject: String,
        /// All names.
        names: Vec<String>,
        /// SHA-256 of the signing key.
        issuer: String,
        /// Start of validity.
        not_before: u64,
        /// End of validity.
        not_after: u64,
        /// Who asked.
        asked_by: String,
    },
    /// It was signed.
    Issued {
        /// Which.
        serial: String,
        /// SHA-256 of its DER.
        sha256: String,
    },
    /// It was not, or nobody got it.
    Failed {
        /// Which.
        serial: String,
        /// Why.
        reason: String,
    },
    /// Certificates are not to be accepted any more, and no new ones are to be given.
    Revoked {
        /// Whose, or which.
        target: Target,
        /// Why; for people.
        reason: String,
        /// Who said so.
        by: String,
    },
    /// A revocation was taken back.
    Restored {
        /// Whose, or which.
        target: Target,
        /// Who said so.
        by: String,
    },
    /// A certificate that was signed elsewhere or before there was a ledger.
    Imported {
        /// Lower-case hexadecimal.
        serial: String,
        /// The subject.
        subject: String,
        /// All names.
        names: Vec<String>,
        /// The signer, as it is known.
        issuer: String,
        /// Start of validity.
        not_before: u64,
        /// End of validity.
        not_after: u64,
        /// Where it was found.
        from: String,
    },
    /// Something about the ledger itself.
    Note {
        /// In words.
        text: String,
    },
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// 1, 2, 3 …
    pub seq: u64,
    /// The hash of the record before.
    pub prev: String,
    /// When, in seconds since 1970.
    pub time: u64,
    /// What.
    #[serde(flatten)]
    pub entry: Entry,
}

impl Record {
    /// The line, with its end, and its hash.
    pub(crate) fn line(&self) -> Result<(Vec<u8>, String), serde_json::Error> {
        let json = serde_json::to_vec(self)?;
        let hash = hash(&json);
        let mut line = Vec::with_capacity(json.len().saturating_add(66));
        line.extend_from_slice(hash.as_bytes());
        line.push(b' ');
        line.extend_from_slice(&json);
        line.push(b'\n');
        Ok((line, hash))
    }

    /// Reads a line without its end; gives the hash too. The error says what is wrong with it.
    pub(crate) fn read(line: &[u8]) -> Result<(Self, String), String> {
        let (told, json) = line.split_at_checked(64).ok_or("it is too short for a record")?;
        let json = json.strip_prefix(b" ").ok_or("there is no space after the hash")?;
        let hash = hash(json);
        if told != hash.as_bytes() {
            return Err("its hash is not that of its content".to_owned());
        }
        let record = serde_json::from_slice(json).map_err(|e| format!("it cannot be read: {e}"))?;
        Ok((record, hash))
    }
}

fn hash(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |n: u8| DIGITS.get(usize::from(n & 15)).map_or('0', |b| char::from(*b));
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(*b)]).collect()
}

/// Seconds since 1970.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// The other way.
pub(crate) fn time(seconds: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_reads_back_and_every_changed_bit_is_seen() {
        let entry = Entry::Revoked {
            target: Target::identity("spiffe://cluster.local/ns/a/sa/b").unwrap(),
            reason: "stolen \"key\"\n".to_owned(),
            by: "ann".to_owned(),
        };
        let record = Record { seq: 7, prev: GENESIS.to_owned(), time: 1_700_000_000, entry };
        let (line, hash) = record.line().unwrap();
        let bare = line.strip_suffix(b"\n").unwrap();
        assert_eq!(Record::read(bare).unwrap(), (record, hash));
        for at in 0..bare.len() {
            for bit in 0..8 {
                let mut other = bare.to_vec();
                other[at] ^= 1 << bit;
                assert!(Record::read(&other).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn targets_as_people_write_them() {
        for (text, wanted) in [
            ("4A:0B", Some("4a0b")),
            ("0x00ff", Some("ff")),
            ("0", None),
            ("", None),
            ("xyz", None),
            ("4a 0b", None),
            (&"f".repeat(41), None),
        ] {
            assert_eq!(Target::serial(text).ok(), wanted.map(|t| Target::Serial(t.to_owned())), "{text}");
        }
        assert!(Target::identity("cluster.local/ns/a/sa/b").is_err());
    }
}
