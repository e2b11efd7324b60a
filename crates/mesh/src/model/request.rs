//! What rules say of HTTP requests: what one must be, and what is changed, injected, retried or sent elsewhere (semantics §10.3–§10.7).
//!
//! Invariant: percentages are parts of a million, durations are milliseconds, and every pattern and header value has been checked.
//! Destinations are not here: they are resolved only for a proxy, in `parts`.

use std::sync::Arc;

/// What a request must be, all of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Condition {
    /// The path, without the query.
    pub path: PathTest,
    /// Letters' case in the path does not matter; not with a pattern.
    pub ignore_case: bool,
    /// Headers, the method, scheme and authority among them under their HTTP/2 names.
    pub headers: Vec<HeaderTest>,
    /// Query parameters.
    pub query: Vec<(Arc<str>, TextTest)>,
    /// Claims of the request's verified token.
    pub claims: Vec<ClaimTest>,
}

impl Condition {
    /// Whether every request meets it.
    pub fn is_any(&self) -> bool {
        let path = match &self.path {
            PathTest::Any => true,
            PathTest::Prefix(prefix) => &**prefix == "/",
            PathTest::Regex(regex) => &**regex == ".*",
            PathTest::Exact(_) => false,
        };
        path && self.headers.is_empty() && self.query.is_empty() && self.claims.is_empty()
    }
}

/// A test of the path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum PathTest {
    /// Any.
    #[default]
    Any,
    /// This one.
    Exact(Arc<str>),
    /// Begins with this, letter by letter.
    Prefix(Arc<str>),
    /// Matches this as a whole.
    Regex(Arc<str>),
}

/// A test of a text that may be absent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum TextTest {
    /// Is there.
    Present,
    /// Is this.
    Exact(Arc<str>),
    /// Begins with this.
    Prefix(Arc<str>),
    /// Matches this as a whole.
    Regex(Arc<str>),
}

/// A test of a header.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HeaderTest {
    /// Its name, lower case.
    pub name: Arc<str>,
    /// What it must be.
    pub test: TextTest,
    /// What it must not be; a missing header counts as not being it.
    pub inverted: bool,
}

/// A test of a claim of the verified token.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClaimTest {
    /// The way to the claim.
    pub path: Vec<Arc<str>>,
    /// What it, or one of its elements, must be.
    pub test: TextTest,
    /// What none may be.
    pub inverted: bool,
}

/// When a request is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Retries {
    /// How often.
    pub attempts: u32,
    /// Envoy's conditions, comma-separated.
    pub on: Arc<str>,
    /// Statuses that count as `retriable-status-codes`.
    pub codes: Vec<u32>,
    /// Milliseconds for one try; `None` for no limit.
    pub per_try_timeout: Option<u64>,
    /// Milliseconds of the first pause; `None` for the engine's.
    pub backoff: Option<u64>,
    /// Other localities are preferred to those tried.
    pub other_localities: bool,
    /// Other endpoints are preferred to those tried.
    pub other_endpoints: bool,
}

/// What is tried again unless something else is said (semantics §7.9).
pub const RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";

impl Retries {
    /// The mesh's default. With a consistent hash another endpoint would be the wrong one.
    pub fn standard(other_endpoints: bool) -> Self {
        Self {
            attempts: 2,
            on: RETRY_ON.into(),
            codes: Vec::new(),
            per_try_timeout: None,
            backoff: None,
            other_localities: false,
            other_endpoints,
        }
    }
}

/// Where a client is sent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Redirect {
    /// The status: 301, 302, 303, 307, 308.
    pub status: u16,
    /// The new authority; empty for the same.
    pub authority: Arc<str>,
    /// The new scheme; empty for the same.
    pub scheme: Arc<str>,
    /// The new path.
    pub path: Option<RedirectPath>,
    /// The new port.
    pub port: Option<u16>,
}

/// The path of a redirect.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RedirectPath {
    /// This.
    Whole(Arc<str>),
    /// This in place of the matched prefix.
    Matched(Arc<str>),
}

/// Changes of headers both ways.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct HeaderChanges {
    /// Of the request.
    pub request: HeaderChange,
    /// Of the response.
    pub response: HeaderChange,
}

/// Changes of headers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct HeaderChange {
    /// Replaced or added, as Envoy's format strings.
    pub set: Vec<(Arc<str>, Arc<str>)>,
    /// Added to what is there, as Envoy's format strings.
    pub add: Vec<(Arc<str>, Arc<str>)>,
    /// Removed.
    pub remove: Vec<Arc<str>>,
}

/// Faults injected.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fault {
    /// Milliseconds of delay, and for how many of a million requests.
    pub delay: Option<(u64, u32)>,
    /// The answer in place of forwarding, and for how many of a million requests.
    pub abort: Option<(Abort, u32)>,
}

/// An injected answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Abort {
    /// An HTTP status.
    Http(u16),
    /// A gRPC status.
    Grpc(u32),
}

/// Cross-origin requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Cors {
    /// Origins allowed; exactly `*` is any.
    pub origins: Vec<TextTest>,
    /// `access-control-allow-methods`.
    pub methods: Arc<str>,
    /// `access-control-allow-headers`.
    pub headers: Arc<str>,
    /// `access-control-expose-headers`.
    pub expose: Arc<str>,
    /// `access-control-max-age`, seconds.
    pub max_age: Option<u64>,
    /// `access-control-allow-credentials`.
    pub credentials: Option<bool>,
    /// Whether preflights of other origins go on to the destination; `None` for the engine's choice (they do).
    pub forward_unmatched: Option<bool>,
}
