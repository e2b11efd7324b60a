//! Codes of the findings this crate makes; Istio's where Istio has one for the case.
//!
//! Invariant: a code's meaning never changes.

/// A policy that another, older one of the same level makes void.
pub const POLICY_SHADOWED: &str = "CRK0101";
/// A policy, or part of one, that has no effect where it stands.
pub const POLICY_WITHOUT_EFFECT: &str = "CRK0102";
/// A rule, or part of one, that an older rule for the same host makes void.
pub const RULE_SHADOWED: &str = "CRK0103";
/// A TLS block that cannot be honoured; traffic of its hosts is refused rather than sent in plaintext.
pub const TLS_REFUSED: &str = "CRK0104";
/// A field that is not supported yet.
pub const UNSUPPORTED: &str = "CRK0105";
/// Keys for tokens that could not be had so far; the tokens are refused.
pub const KEYS_MISSING: &str = "CRK0106";
/// A name that leads nowhere: a delegate, a secret.
pub const UNRESOLVED: &str = "CRK0121";
/// A server, or part of one, that another one of the same port makes void.
pub const SERVER_CONFLICT: &str = "CRK0122";
/// A value that cannot be read; the object is left out.
pub const UNREADABLE: &str = "IST0106";
