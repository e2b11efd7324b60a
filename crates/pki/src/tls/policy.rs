//! Which peers are accepted: roots, and names in the words of Envoy's string matcher.
//!
//! Invariant: an empty list of names accepts every name the roots vouch for (spec §5.4); a non-empty list needs one match.

use std::sync::Arc;

use regex::Regex;

use super::TlsError;
use crate::certificate::{CertificateInfo, sha256};
use crate::quarantine::Quarantine;
use crate::trust::TrustBundle;

/// A test of one subject alternative name, compared as text and with regard to case.
#[derive(Clone, Debug)]
pub enum SanMatch {
    /// Equal.
    Exact(String),
    /// Begins with; a trust domain's prefix ends in a slash, or it would accept longer domains.
    Prefix(String),
    /// Ends with.
    Suffix(String),
    /// Contains.
    Contains(String),
    /// Matches as a whole; see [`SanMatch::regex`].
    Regex(Regex),
}

impl SanMatch {
    /// A pattern for the whole name.
    ///
    /// # Errors
    /// The pattern does not compile or is too large.
    pub fn regex(pattern: &str) -> Result<Self, TlsError> {
        regex::RegexBuilder::new(&format!("^(?:{pattern})$"))
            .size_limit(1 << 20)
            .build()
            .map(Self::Regex)
            .map_err(|e| TlsError::Pattern(e.to_string()))
    }

    /// Whether `name` passes.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(text) => name == text,
            Self::Prefix(text) => name.starts_with(text.as_str()),
            Self::Suffix(text) => name.ends_with(text.as_str()),
            Self::Contains(text) => name.contains(text.as_str()),
            Self::Regex(regex) => regex.is_match(name),
        }
    }
}

/// A test of a leaf's names that is made elsewhere.
pub trait AcceptNames: std::fmt::Debug + Send + Sync {
    /// Whether one of the names is accepted.
    fn accepts(&self, info: &CertificateInfo) -> bool;
}

/// Whose certificates are accepted.
#[derive(Clone, Debug)]
pub struct PeerPolicy {
    /// Where chains must end, and what is revoked.
    pub roots: TrustBundle,
    /// One of these must match a name of the leaf; empty means any name.
    pub sans: Vec<SanMatch>,
    /// A further test of the names.
    pub names: Option<Arc<dyn AcceptNames>>,
    /// SHA-256 of accepted leaves (DER).
    pub hashes: Vec<[u8; 32]>,
    /// SHA-256 of accepted public keys. With `hashes`: one of either list must match; both empty means any.
    pub keys: Vec<[u8; 32]>,
    /// Whether the chain must end in `roots`. May be false only where hashes or keys say exactly who is meant.
    pub chain: bool,
    /// Most intermediates between leaf and root.
    pub max_intermediates: Option<usize>,
    /// Revocation lists are asked about the leaf only.
    pub revoke_leaf_only: bool,
    /// Who is refused though its certificate is good.
    pub quarantine: Arc<Quarantine>,
}

impl PeerPolicy {
    /// A policy of these roots and names.
    pub fn new(roots: TrustBundle, sans: Vec<SanMatch>) -> Self {
        Self {
            roots,
            sans,
            names: None,
            hashes: Vec::new(),
            keys: Vec::new(),
            chain: true,
            max_intermediates: None,
            revoke_leaf_only: false,
            quarantine: Arc::default(),
        }
    }

    /// Whether a leaf is looked at beyond its chain.
    pub(super) fn looks_at_leaf(&self) -> bool {
        !self.sans.is_empty() || self.names.is_some() || !self.hashes.is_empty() || !self.keys.is_empty()
    }

    /// Whether the leaf is one of those pinned.
    pub(super) fn pinned(&self, der: &[u8], info: &CertificateInfo) -> bool {
        (self.hashes.is_empty() && self.keys.is_empty())
            || self.keys.contains(&info.spki_sha256)
            || (!self.hashes.is_empty() && self.hashes.contains(&sha256(der)))
    }

    pub(super) fn accepts(&self, info: &CertificateInfo) -> bool {
        if self.names.as_ref().is_some_and(|names| !names.accepts(info)) {
            return false;
        }
        if self.sans.is_empty() {
            return true;
        }
        let ips: Vec<String> = info.ips.iter().map(ToString::to_string).collect();
        let mut all = info.uris.iter().chain(&info.dns).chain(&info.emails).chain(&ips);
        all.any(|name| self.sans.iter().any(|san| san.matches(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let cases = [
            (SanMatch::Prefix("spiffe://cluster.local/".into()), "spiffe://cluster.local/ns/a/sa/b", true),
            (SanMatch::Prefix("spiffe://cluster.local/".into()), "spiffe://cluster.local.evil/ns/a/sa/b", false),
            (SanMatch::Exact("spiffe://td/ns/a/sa/b".into()), "spiffe://td/ns/a/sa/bb", false),
            (SanMatch::Suffix("/sa/b".into()), "spiffe://td/ns/a/sa/b", true),
            (SanMatch::Contains("/ns/a/".into()), "spiffe://td/ns/b/sa/b", false),
            (SanMatch::regex("spiffe://td/.*").unwrap(), "x spiffe://td/ns", false),
            (SanMatch::regex("a|b").unwrap(), "b", true),
            (SanMatch::regex("a|b").unwrap(), "bc", false),
        ];
        for (san, name, expect) in cases {
            assert_eq!(san.matches(name), expect, "{san:?} {name}");
        }
        assert!(SanMatch::regex("(").is_err());
    }
}
