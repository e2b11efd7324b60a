//! RequestAuthentication, parsed (semantics §13).
//!
//! Invariant: `jwks` is a key set that can be loaded; one that could not be had is a set whose private key nobody has.

use std::sync::Arc;

use carrick_base::Labels;

use super::Origin;

/// One RequestAuthentication.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JwtPolicy {
    /// The object.
    pub origin: Origin,
    /// Labels it selects; empty selects the namespace, or the mesh from the root namespace.
    pub selector: Labels,
    /// Names of the Gateways it is attached to; `None` when it has no target references.
    pub gateways: Option<Vec<Arc<str>>>,
    /// Its rules.
    pub rules: Vec<Arc<JwtRule>>,
}

/// One issuer's tokens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JwtRule {
    /// Who issues them; empty takes any issuer whose tokens the keys verify.
    pub issuer: Arc<str>,
    /// Of which a token must have one; empty takes any.
    pub audiences: Vec<Arc<str>>,
    /// The keys.
    pub jwks: Arc<str>,
    /// Headers it may be in, with what stands before it.
    pub from_headers: Vec<(Arc<str>, Arc<str>)>,
    /// Query parameters it may be in.
    pub from_params: Vec<Arc<str>>,
    /// Cookies it may be in.
    pub from_cookies: Vec<Arc<str>>,
    /// Whether the token goes on with the request.
    pub forward: bool,
    /// The header that the payload goes on in; empty for none.
    pub payload_header: Arc<str>,
    /// Headers that claims go on in: header, claim.
    pub claim_headers: Vec<(Arc<str>, Arc<str>)>,
    /// Claims that are lists written with spaces.
    pub space_delimited: Vec<Arc<str>>,
}

/// Where keys are that are not inline.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeySource {
    /// At this URL.
    Uri(Arc<str>),
    /// Where this issuer's discovery document says.
    Issuer(Arc<str>),
}

impl KeySource {
    /// Where a rule's keys are; `None` when they are inline, or nothing says where.
    pub fn of(issuer: &str, jwks_uri: &str, jwks: &str) -> Option<Self> {
        match (jwks.trim().is_empty(), jwks_uri.is_empty(), issuer.is_empty()) {
            (false, _, _) | (true, true, true) => None,
            (true, false, _) => Some(Self::Uri(jwks_uri.into())),
            (true, true, false) => Some(Self::Issuer(issuer.into())),
        }
    }
}
