//! SPIFFE identities as the mesh uses them (SPIFFE-ID standard §2; Istio's path form `ns/<ns>/sa/<sa>`).
//!
//! Invariant: a `SpiffeId` always has a non-empty trust domain and the canonical text form is kept, so that
//! comparing two of them is comparing strings. Which identities are trusted is decided elsewhere.

use std::{fmt, str::FromStr, sync::Arc};

const SCHEME: &str = "spiffe://";
/// Longest SPIFFE ID accepted, in bytes (SPIFFE-ID §2.3).
const MAX_ID_LEN: usize = 2048;
/// Longest trust domain accepted, in bytes (SPIFFE-ID §2.1).
const MAX_TRUST_DOMAIN_LEN: usize = 255;

/// Why a text is not a SPIFFE ID or trust domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// The text does not start with `spiffe://`.
    #[error("a SPIFFE ID starts with \"spiffe://\"")]
    Scheme,
    /// The trust domain is empty, too long or has a character outside `[a-z0-9._-]`.
    #[error("invalid trust domain {0:?}: lower-case letters, digits, '.', '-' and '_' only, 1 to 255 bytes")]
    TrustDomain(String),
    /// The path has an empty or dot segment, or a character outside the standard's set.
    #[error("invalid path {0:?}")]
    Path(String),
    /// The whole ID is longer than 2048 bytes.
    #[error("longer than 2048 bytes")]
    TooLong,
}

/// The part of an identity that names who vouches for it, e.g. `cluster.local`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Parses a trust domain.
    ///
    /// # Errors
    /// [`SpiffeError::TrustDomain`] when the text is empty, too long or holds other characters than the standard allows.
    pub fn new(text: &str) -> Result<Self, SpiffeError> {
        let ok = !text.is_empty()
            && text.len() <= MAX_TRUST_DOMAIN_LEN
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_'));
        if ok { Ok(Self(text.into())) } else { Err(SpiffeError::TrustDomain(text.to_owned())) }
    }

    /// The trust domain as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TrustDomain {
    /// Istio's default, `cluster.local`.
    fn default() -> Self {
        Self("cluster.local".into())
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A workload's identity: `spiffe://<trust domain>/<path>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Byte offset in `text` at which the path (with its leading `/`) starts.
    path_at: usize,
}

impl SpiffeId {
    /// The identity Istio gives to a service account: `spiffe://<td>/ns/<namespace>/sa/<service account>`.
    pub fn istio(trust_domain: &TrustDomain, namespace: &str, service_account: &str) -> Self {
        let text = format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}");
        let path_at = SCHEME.len() + trust_domain.as_str().len();
        Self { text: text.into(), path_at }
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain part.
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.text.get(SCHEME.len()..self.path_at).unwrap_or_default().into())
    }

    /// The path with its leading slash; empty for a trust domain's own ID.
    pub fn path(&self) -> &str {
        self.text.get(self.path_at..).unwrap_or_default()
    }

    /// The identity without `spiffe://`: how Istio's policies write a principal.
    pub fn principal(&self) -> &str {
        self.text.get(SCHEME.len()..).unwrap_or_default()
    }

    /// The namespace of an identity in Istio's form, else `None`.
    pub fn namespace(&self) -> Option<&str> {
        self.istio_parts().map(|(ns, _)| ns)
    }

    /// The service account of an identity in Istio's form, else `None`.
    pub fn service_account(&self) -> Option<&str> {
        self.istio_parts().map(|(_, sa)| sa)
    }

    fn istio_parts(&self) -> Option<(&str, &str)> {
        let mut parts = self.path().split('/').skip(1);
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("ns"), Some(ns), Some("sa"), Some(sa), None) => Some((ns, sa)),
            _ => None,
        }
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        if text.len() > MAX_ID_LEN {
            return Err(SpiffeError::TooLong);
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeError::Scheme)?;
        let (domain, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        TrustDomain::new(domain)?;
        if !path.is_empty() {
            let segment_ok = |s: &str| {
                !s.is_empty()
                    && s != "."
                    && s != ".."
                    && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            };
            if !path.split('/').skip(1).all(segment_ok) {
                return Err(SpiffeError::Path(path.to_owned()));
            }
        }
        Ok(Self { text: text.into(), path_at: SCHEME.len() + domain.len() })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn istio_identity_round_trips() {
        let id = SpiffeId::istio(&TrustDomain::default(), "basic", "kyc");
        assert_eq!(id.as_str(), "spiffe://cluster.local/ns/basic/sa/kyc");
        let parsed: SpiffeId = id.as_str().parse().unwrap();
        assert_eq!(parsed, id);
        assert_eq!((parsed.namespace(), parsed.service_account()), (Some("basic"), Some("kyc")));
        assert_eq!(parsed.trust_domain().as_str(), "cluster.local");
        assert_eq!(parsed.principal(), "cluster.local/ns/basic/sa/kyc");
    }

    #[test]
    fn malformed_identities_are_refused() {
        for bad in [
            "",
            "http://x/ns/a/sa/b",
            "spiffe://",
            "spiffe:///ns/a/sa/b",
            "spiffe://UPPER/ns/a/sa/b",
            "spiffe://td/ns//sa/b",
            "spiffe://td/ns/../sa/b",
            "spiffe://td/ns/a/sa/b/",
            "spiffe://td:80/ns/a/sa/b",
            "spiffe://td/ns/a%2f/sa/b",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn only_istio_paths_name_a_service_account() {
        for other in ["spiffe://td", "spiffe://td/ns/a", "spiffe://td/ns/a/sa/b/c", "spiffe://td/x/a/sa/b"] {
            let id: SpiffeId = other.parse().unwrap();
            assert_eq!(id.service_account(), None, "{other}");
        }
    }
}
