//! JWT authentication: providers, requirements, and where they apply.
//!
//! Invariant: every provider that a requirement names is in range of [`JwtAuthn::providers`]. Reading and verifying tokens is in
//! `crate::jwt`; how remote keys arrive is the caller's business.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use super::Name;
use super::matcher::StringMatcher;
use super::route::RouteMatch;
use crate::jws::keys::KeySet;

/// `JwtAuthentication`.
#[derive(Debug)]
pub struct JwtAuthn {
    /// Providers in order of their names.
    pub providers: Vec<Provider>,
    /// Rules in order: the first that matches tells the requirement; `None` = no token is looked at.
    pub rules: Vec<(RouteMatch, Option<Arc<Requirement>>)>,
    /// Requirements that routes may name.
    pub map: Vec<(Name, Arc<Requirement>)>,
    /// CORS preflights pass.
    pub bypass_cors_preflight: bool,
    /// Say nothing in refusals.
    pub strip_failure_response: bool,
    /// Names of the counters: allowed, denied, preflights that passed.
    pub counters: [Name; 3],
}

/// What a route says of the filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwtHere {
    /// Nothing is required.
    Off,
    /// The requirement of this name.
    Named(Name),
}

/// `JwtProvider`.
#[derive(Debug)]
pub struct Provider {
    /// Name in the filter.
    pub name: Name,
    /// Issuer; empty = any.
    pub issuer: Name,
    /// Accepted audiences, without scheme and trailing slash; empty = any.
    pub audiences: Vec<Box<str>>,
    /// Accepted subjects.
    pub subjects: Option<StringMatcher>,
    /// Tokens without `exp` are refused.
    pub require_expiration: bool,
    /// Longest time from now to `exp`.
    pub max_lifetime: Option<Duration>,
    /// Leave the token in the request.
    pub forward: bool,
    /// Where tokens are looked for: headers with what stands before the token.
    pub from_headers: Vec<(HeaderName, Box<str>)>,
    /// Query parameters.
    pub from_params: Vec<Name>,
    /// Cookies.
    pub from_cookies: Vec<Name>,
    /// Header for the payload, base64url.
    pub payload_header: Option<HeaderName>,
    /// With padding.
    pub payload_header_padded: bool,
    /// Key of dynamic metadata for the payload.
    pub payload_metadata: Option<Name>,
    /// Key of dynamic metadata for the header.
    pub header_metadata: Option<Name>,
    /// Claims of which the metadata hold lists instead of space-separated texts.
    pub space_delimited: Vec<Name>,
    /// Tolerated difference of clocks in seconds. Default 60.
    pub clock_skew: u64,
    /// Claims that become headers: path of the claim, header.
    pub claim_headers: Vec<(Vec<Name>, HeaderName)>,
    /// Find the route again afterwards.
    pub clear_route_cache: bool,
    /// The keys.
    pub keys: Keys,
}

/// Where keys come from.
#[derive(Debug, Clone)]
pub enum Keys {
    /// Here.
    Local(Arc<KeySet>),
    /// Fetched.
    Remote(Arc<Remote>),
}

/// `RemoteJwks`.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Remote {
    /// Cluster.
    pub cluster: Name,
    /// Host to ask for.
    pub host: Name,
    /// Path with query.
    pub path: Name,
    /// Time limit.
    pub timeout: Duration,
    /// How long keys are good. Default 10 minutes.
    pub cache: Duration,
}

/// `JwtRequirement`.
#[derive(Debug)]
pub enum Requirement {
    /// A token of this provider.
    Provider(usize),
    /// The same, with other audiences.
    Audiences(usize, Vec<Box<str>>),
    /// One of them.
    Any(Vec<Requirement>),
    /// All of them.
    All(Vec<Requirement>),
    /// Tokens are looked at, and whatever they are is fine.
    AllowMissingOrFailed,
    /// No token is fine, a bad one is not.
    AllowMissing,
}
