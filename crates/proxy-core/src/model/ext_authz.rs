//! External authorization: who is asked, what is sent, what is taken from the answer.
//!
//! Invariant: header matchers are lower case; the HTTP and the gRPC form exclude each other. Making the question and reading the
//! answer is in `crate::ext_authz`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};

use super::Name;
use super::matcher::{MetadataMatcher, StringMatcher};

/// `ExtAuthz`.
#[derive(Debug)]
pub struct ExtAuthz {
    /// Who is asked.
    pub service: Arc<Service>,
    /// Requests pass if nobody answers.
    pub failure_mode_allow: bool,
    /// And get `x-envoy-auth-failure-mode-allowed: true`.
    pub failure_header: bool,
    /// Send the body too.
    pub body: Option<BodySettings>,
    /// Find the route again afterwards.
    pub clear_route_cache: bool,
    /// Status if nobody answers. Default 403.
    pub status_on_error: StatusCode,
    /// Share of requests that are checked, parts per million.
    pub enabled: u32,
    /// Only requests with these metadata are checked.
    pub enabled_metadata: Option<MetadataMatcher>,
    /// Requests that are not checked are denied.
    pub deny_at_disable: bool,
    /// Send the client's certificate.
    pub peer_certificate: bool,
    /// Send the SNI.
    pub tls_session: bool,
    /// Namespaces of dynamic metadata that are sent.
    pub metadata_namespaces: Vec<Name>,
    /// Headers that are sent; `None` = all (gRPC), a few (HTTP).
    pub allowed_headers: Option<Vec<StringMatcher>>,
    /// Headers that are not.
    pub disallowed_headers: Vec<StringMatcher>,
    /// Names of the counters: ok, denied, error, failure_mode_allowed, disabled.
    pub counters: [Name; 5],
}

/// `BufferSettings`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodySettings {
    /// Longest body, bytes.
    pub max: usize,
    /// A longer one is cut instead of refused with 413.
    pub partial: bool,
    /// In `raw_body`.
    pub raw: bool,
}

/// Who is asked.
#[derive(Debug)]
pub enum Service {
    /// Over HTTP.
    Http(HttpService),
    /// `envoy.service.auth.v3.Authorization`.
    Grpc {
        /// Cluster.
        cluster: Name,
        /// `:authority`.
        authority: Name,
        /// Time limit. Default 200 ms.
        timeout: Duration,
        /// More headers.
        metadata: Vec<(HeaderName, HeaderValue)>,
    },
}

impl Service {
    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> &Name {
        match self {
            Self::Http(http) => &http.cluster,
            Self::Grpc { cluster, .. } => cluster,
        }
    }

    /// The time limit.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        match self {
            Self::Http(http) => http.timeout,
            Self::Grpc { timeout, .. } => *timeout,
        }
    }
}

/// The HTTP form.
#[derive(Debug)]
pub struct HttpService {
    /// Cluster.
    pub cluster: Name,
    /// Time limit.
    pub timeout: Duration,
    /// Before the path.
    pub path_prefix: Name,
    /// Instead of the path.
    pub path_override: Name,
    /// Set on the question.
    pub headers_to_add: Vec<(HeaderName, HeaderValue)>,
    /// Headers of the answer that replace the request's.
    pub upstream: Vec<StringMatcher>,
    /// Headers of the answer that are added to the request's.
    pub upstream_append: Vec<StringMatcher>,
    /// Headers of a denial for the client; `None` = all.
    pub client: Option<Vec<StringMatcher>>,
    /// Headers of an approval for the client.
    pub client_on_success: Vec<StringMatcher>,
    /// Headers of the answer that become dynamic metadata.
    pub metadata: Vec<StringMatcher>,
}

/// `CheckSettings` of a route.
#[derive(Debug, Default)]
pub struct ExtAuthzHere {
    /// For the authorizer.
    pub context: BTreeMap<String, String>,
    /// Do not send the body.
    pub no_body: bool,
    /// Send it like this.
    pub body: Option<BodySettings>,
}
