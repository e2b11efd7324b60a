//! Route tables: virtual hosts by domain, routes in order, what each does.
//!
//! Invariant: every virtual host index in [`Domains`] is in range; domains are lower case; no domain occurs twice.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, StatusCode};

use super::Name;
use super::filter::{FilterStateSet, StepHere};
use super::format::Format;
use super::headers::HeaderOps;
use super::matcher::{CookieMatcher, HeaderMatcher, MetadataMatcher, QueryMatcher, RegexRewrite};
use super::metadata::Metadata;
use super::retry::RetryPolicy;
use super::tracing::RouteTracing;
use crate::template::{PathTemplate, TemplateRewrite};

/// A route configuration.
#[derive(Debug, Default)]
pub struct RouteTable {
    /// Resource name.
    pub name: Name0,
    /// Virtual hosts in resource order.
    pub virtual_hosts: Vec<Arc<VirtualHost>>,
    /// Finds one by host name.
    pub domains: Domains,
    /// The port in the host is not looked at.
    pub ignore_port: bool,
    /// `;parameters` in path segments are not looked at.
    pub ignore_path_parameters: bool,
    /// Order of mutations: table last (false) or table first (true).
    pub most_specific_wins: bool,
    /// Mutations of requests.
    pub request: HeaderOps,
    /// Mutations of responses.
    pub response: HeaderOps,
    /// Headers removed from requests that come from outside.
    pub internal_only_headers: Vec<HeaderName>,
    /// Per-filter configuration.
    pub per_filter: PerFilter,
}

/// A name that may be empty.
pub type Name0 = Box<str>;

/// Domain index: exact, then longest suffix wildcard, then longest prefix wildcard, then `*`.
#[derive(Debug, Default)]
pub struct Domains {
    /// Whole names.
    pub exact: HashMap<Name, usize>,
    /// `*suffix`: by length of suffix, longest first.
    pub suffix: Vec<(usize, HashMap<Box<str>, usize>)>,
    /// `prefix*`: by length of prefix, longest first.
    pub prefix: Vec<(usize, HashMap<Box<str>, usize>)>,
    /// `*`.
    pub any: Option<usize>,
}

/// A virtual host.
#[derive(Debug)]
pub struct VirtualHost {
    /// Name.
    pub name: Name,
    /// Its domains as written (display).
    pub domains: Vec<Name>,
    /// Routes in order; the first that matches is taken.
    pub routes: Vec<Arc<Route>>,
    /// Plain requests are redirected to https.
    pub require_tls: RequireTls,
    /// Mutations of requests.
    pub request: HeaderOps,
    /// Mutations of responses.
    pub response: HeaderOps,
    /// Write `x-envoy-attempt-count` to requests.
    pub include_request_attempt_count: bool,
    /// And to responses.
    pub include_attempt_count_in_response: bool,
    /// Retries of routes without their own.
    pub retry: Option<Arc<RetryPolicy>>,
    /// Per-filter configuration.
    pub per_filter: PerFilter,
    /// Free-form.
    pub metadata: Metadata,
}

/// `VirtualHost.TlsRequirementType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RequireTls {
    /// No.
    #[default]
    None,
    /// For external requests.
    ExternalOnly,
    /// For all.
    All,
}

/// A route.
#[derive(Debug)]
pub struct Route {
    /// Name.
    pub name: Name,
    /// When it applies.
    pub matching: RouteMatch,
    /// What happens.
    pub action: Action,
    /// Mutations of requests.
    pub request: HeaderOps,
    /// Mutations of responses.
    pub response: HeaderOps,
    /// Per-filter configuration.
    pub per_filter: PerFilter,
    /// Free-form.
    pub metadata: Metadata,
    /// Name in statistics.
    pub stat_prefix: Name,
    /// What is traced.
    pub tracing: RouteTracing,
}

/// `typed_per_filter_config` of the filters we run, by filter name.
#[derive(Debug, Clone, Default)]
pub struct PerFilter {
    /// Filters switched off here.
    pub disabled: Vec<Name>,
    /// `set_filter_state` values, by filter name.
    pub set_filter_state: Vec<(Name, Vec<FilterStateSet>)>,
    /// Configuration of steps, by filter name; it also switches on what is off by default.
    pub steps: Vec<(Name, StepHere)>,
}

/// Conditions of a route; all must hold.
#[derive(Debug, Clone)]
pub struct RouteMatch {
    /// On the path.
    pub path: PathMatch,
    /// On headers.
    pub headers: Vec<HeaderMatcher>,
    /// On query parameters.
    pub query: Vec<QueryMatcher>,
    /// On cookies.
    pub cookies: Vec<CookieMatcher>,
    /// Only gRPC requests.
    pub grpc: bool,
    /// Whether a client certificate must (not) have been presented.
    pub tls_presented: Option<bool>,
    /// Whether a client certificate must (not) have been validated.
    pub tls_validated: Option<bool>,
    /// Taken for this share of requests only, in parts per million.
    pub fraction: Option<u32>,
    /// On dynamic metadata (claims of a token, say).
    pub metadata: Vec<MetadataMatcher>,
}

/// Condition on the path (without query), except `Connect`.
#[derive(Debug, Clone)]
pub enum PathMatch {
    /// Starts with.
    Prefix {
        /// Lower case if `ignore_case`.
        value: Box<str>,
        /// Case does not matter.
        ignore_case: bool,
    },
    /// Equal.
    Exact {
        /// Lower case if `ignore_case`.
        value: Box<str>,
        /// Case does not matter.
        ignore_case: bool,
    },
    /// Equal, or starts with this and `/`.
    SeparatedPrefix {
        /// Without trailing slash; lower case if `ignore_case`.
        value: Box<str>,
        /// Case does not matter.
        ignore_case: bool,
    },
    /// Matches whole.
    Regex(regex::bytes::Regex),
    /// Matches a template.
    Template(PathTemplate),
    /// CONNECT requests.
    Connect,
}

/// What a route does.
#[derive(Debug)]
pub enum Action {
    /// Forward.
    Forward(Box<RouteAction>),
    /// Answer with a redirect.
    Redirect(Box<Redirect>),
    /// Answer.
    Direct(DirectResponse),
}

/// Forwarding.
#[derive(Debug)]
pub struct RouteAction {
    /// Where to.
    pub target: Target,
    /// Answer if the cluster is unknown: 503, 404 or 500.
    pub cluster_not_found: StatusCode,
    /// Whole-request timeout; `None` = none. Envoy's default of 15 s is already applied.
    pub timeout: Option<Duration>,
    /// Stream idle timeout that replaces the connection manager's. Outer `None` = not given; inner `None` = off.
    pub idle_timeout: Option<Option<Duration>>,
    /// `grpc-timeout` handling.
    pub grpc_timeout: Option<GrpcTimeout>,
    /// Longest stream. Outer `None` = connection manager's; inner `None` = off.
    pub max_stream_duration: Option<Option<Duration>>,
    /// Retries.
    pub retry: Option<Arc<RetryPolicy>>,
    /// Path rewrite.
    pub path_rewrite: Option<PathRewrite>,
    /// Host rewrite.
    pub host_rewrite: Option<HostRewrite>,
    /// Write the former host to x-forwarded-host.
    pub append_x_forwarded_host: bool,
    /// Circuit limits of high priority.
    pub high_priority: bool,
    /// What consistent hashing looks at.
    pub hash: Vec<HashPolicy>,
    /// Upgrades that differ from the connection manager's.
    pub upgrades: Vec<Upgrade>,
    /// CONNECT ends here and its bytes go to the upstream as TCP (`connect_config`).
    pub terminate_connect: Option<TerminateConnect>,
    /// Copies of requests that are sent elsewhere, their answers thrown away.
    pub mirrors: Arc<[Mirror]>,
    /// Only endpoints of these subset labels (`metadata_match`, namespace `envoy.lb`).
    pub subset: SubsetLabels,
}

/// Labels that endpoints of a subset carry.
pub type SubsetLabels = Option<Arc<super::metadata::Map<super::metadata::Value>>>;

/// How a terminated CONNECT goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminateConnect {
    /// POST is treated like CONNECT.
    pub allow_post: bool,
    /// Tells the upstream the client's address.
    pub proxy_protocol: Option<super::cluster::ProxyProtocol>,
}

/// Where a copy goes.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// The cluster.
    pub target: MirrorTarget,
    /// Share of requests, in parts per million.
    pub fraction: u32,
    /// Adds `-shadow` to the host.
    pub host_suffix: bool,
    /// Host of the copy.
    pub host_rewrite: Option<Name>,
    /// Mutations of the copy.
    pub request: HeaderOps,
}

/// Cluster of a mirror.
#[derive(Debug, Clone)]
pub enum MirrorTarget {
    /// By name.
    Cluster(Name),
    /// Named by a header.
    Header(HeaderName),
}

/// Target of a route.
#[derive(Debug)]
pub enum Target {
    /// A cluster.
    Cluster(Name),
    /// The cluster named by a header.
    Header(HeaderName),
    /// By weight.
    Weighted(WeightedClusters),
}

/// Weighted clusters; the sum is > 0.
#[derive(Debug)]
pub struct WeightedClusters {
    /// The choices.
    pub clusters: Vec<WeightedCluster>,
    /// Sum of weights.
    pub total: u32,
}

/// One choice.
#[derive(Debug)]
pub struct WeightedCluster {
    /// Cluster.
    pub name: Name,
    /// Weight, may be 0.
    pub weight: u32,
    /// Mutations of requests.
    pub request: HeaderOps,
    /// Mutations of responses.
    pub response: HeaderOps,
    /// Host rewrite.
    pub host_rewrite: Option<Name>,
    /// Per-filter configuration.
    pub per_filter: PerFilter,
    /// Only endpoints of these subset labels, merged with the route's.
    pub subset: SubsetLabels,
}

/// `grpc-timeout` handling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrpcTimeout {
    /// Cap; `None` = the header as it is.
    pub max: Option<Duration>,
    /// Subtracted from the header.
    pub offset: Duration,
    /// It limits the whole stream (`grpc_timeout_header_max`: DEADLINE_EXCEEDED), not the response (`max_grpc_timeout`: UNAVAILABLE).
    pub of_stream: bool,
}

/// Path rewrite.
#[derive(Debug, Clone)]
pub enum PathRewrite {
    /// The matched prefix (or whole exact path) is replaced.
    Prefix(Box<str>),
    /// Every match is replaced.
    Regex(RegexRewrite),
    /// The whole path is replaced; the query stays.
    Full(Box<str>),
    /// Made from what the route's template captured.
    Template(TemplateRewrite),
}

/// Host rewrite.
#[derive(Debug, Clone)]
pub enum HostRewrite {
    /// This host.
    Literal(Name),
    /// The endpoint's host name (DNS clusters).
    Auto,
    /// From this header.
    Header(HeaderName),
    /// From the path.
    PathRegex(RegexRewrite),
}

/// What to hash.
#[derive(Debug, Clone)]
pub struct HashPolicy {
    /// Stop here if this one gave a hash.
    pub terminal: bool,
    /// The source.
    pub source: HashSource,
}

/// Source of a hash.
#[derive(Debug, Clone)]
pub enum HashSource {
    /// A request header.
    Header {
        /// Name.
        name: HeaderName,
        /// Rewrite before hashing.
        rewrite: Option<RegexRewrite>,
    },
    /// A cookie; made if it is missing and a lifetime is given.
    Cookie {
        /// Name.
        name: Name,
        /// Lifetime: `Some(0)` = session cookie; `None` = never made.
        ttl: Option<Duration>,
        /// Path attribute.
        path: Name,
        /// More attributes, `; Name=value` or `; Name`, ready to append.
        attributes: Name,
    },
    /// The client's address.
    SourceIp,
    /// A query parameter.
    Query(Name),
}

/// Redirect.
#[derive(Debug, Clone)]
pub struct Redirect {
    /// New scheme.
    pub scheme: Option<Name>,
    /// New host.
    pub host: Option<Name>,
    /// New port.
    pub port: Option<u16>,
    /// New path.
    pub path: Option<RedirectPath>,
    /// 301, 302, 303, 307, 308.
    pub status: StatusCode,
    /// Drop the query.
    pub strip_query: bool,
}

/// Path of a redirect.
#[derive(Debug, Clone)]
pub enum RedirectPath {
    /// Path and possibly query.
    Full(Box<str>),
    /// The matched prefix is replaced.
    Prefix(Box<str>),
    /// Every match is replaced.
    Regex(RegexRewrite),
}

/// Direct response.
#[derive(Debug, Clone)]
pub struct DirectResponse {
    /// Status.
    pub status: StatusCode,
    /// Body.
    pub body: bytes::Bytes,
    /// Formatted body, instead.
    pub format: Option<Format>,
}

/// An upgrade type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upgrade {
    /// Lower case.
    pub kind: Name,
    /// Allowed unless a route says otherwise.
    pub enabled: bool,
}
