//! HTTP filters this engine runs, and filter state.
//!
//! Invariant: a filter that is not here was rejected by `decode`, except those in its inert table, which are left out.
//! What a filter decides is in the decision modules (`crate::rbac`, `crate::jwt`, `crate::steps`, …).

use std::sync::Arc;

use super::Name;
use super::ext_authz::{ExtAuthz, ExtAuthzHere};
use super::format::Format;
use super::jwt::{JwtAuthn, JwtHere};
use super::rbac::RbacFilter;
use super::stats::Stats;
use super::steps::{CorsPolicy, Fault, HeaderMutations, LocalRateLimit};

/// An HTTP filter.
#[derive(Debug, Clone)]
pub enum HttpFilter {
    /// `envoy.filters.http.router`: always last.
    Router(Router),
    /// `envoy.filters.http.set_filter_state`.
    SetFilterState {
        /// Filter name (key of per-route configuration).
        name: Name,
        /// What to set.
        on_request: Vec<FilterStateSet>,
    },
    /// `istio.stats`: what is counted of requests.
    Stats(Arc<Stats>),
    /// A filter that may look at a request, change it, or answer it.
    Step(Step),
}

impl HttpFilter {
    /// The step, if it is one.
    #[must_use]
    pub fn step(&self) -> Option<&Step> {
        match self {
            Self::Step(step) => Some(step),
            _ => None,
        }
    }
}

/// A filter that takes part in a request before it is routed.
#[derive(Debug, Clone)]
pub struct Step {
    /// Filter name (key of per-route configuration).
    pub name: Name,
    /// Off, unless a route has configuration for it.
    pub disabled: bool,
    /// What it does.
    pub kind: StepKind,
}

/// What a step does.
#[derive(Debug, Clone)]
pub enum StepKind {
    /// `envoy.filters.http.rbac`
    Rbac(Arc<RbacFilter>),
    /// `envoy.filters.http.jwt_authn`
    Jwt(Arc<JwtAuthn>),
    /// `envoy.filters.http.ext_authz`
    ExtAuthz(Arc<ExtAuthz>),
    /// `envoy.filters.http.fault`
    Fault(Arc<Fault>),
    /// `envoy.filters.http.cors`: does nothing without a policy of the route.
    Cors,
    /// `envoy.filters.http.local_ratelimit`
    LocalRateLimit(Arc<LocalRateLimit>),
    /// `envoy.filters.http.header_mutation`
    HeaderMutation(Arc<HeaderMutations>),
}

/// Configuration of a step at a route, virtual host, table or weighted cluster.
#[derive(Debug, Clone)]
pub enum StepHere {
    /// This one instead.
    Rbac(Arc<RbacFilter>),
    /// Which requirement.
    Jwt(JwtHere),
    /// Settings of the check.
    ExtAuthz(Arc<ExtAuthzHere>),
    /// This one instead.
    Fault(Arc<Fault>),
    /// The policy.
    Cors(Arc<CorsPolicy>),
    /// This one instead.
    LocalRateLimit(Arc<LocalRateLimit>),
    /// In addition.
    HeaderMutation(Arc<HeaderMutations>),
    /// The filter does not run here, by its own word.
    Off,
}

/// Router options.
#[derive(Debug, Clone, Default)]
pub struct Router {
    /// Add no `x-envoy-*` headers.
    pub suppress_envoy_headers: bool,
    /// Take the timeout from `x-envoy-expected-rq-timeout-ms`.
    pub respect_expected_rq_timeout: bool,
}

/// One value of filter state.
#[derive(Debug, Clone)]
pub struct FilterStateSet {
    /// Which object.
    pub key: FilterStateKey,
    /// Its text.
    pub value: Format,
    /// Do not set an empty value.
    pub skip_if_empty: bool,
}

/// Known objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilterStateKey {
    /// `envoy.network.application_protocols`: ALPN to offer upstream, comma separated.
    ApplicationProtocols,
    /// `envoy.network.upstream_server_name`: SNI.
    UpstreamServerName,
    /// `envoy.network.upstream_subject_alt_names`: names to accept, comma separated.
    UpstreamSubjectAltNames,
    /// `envoy.tcp_proxy.cluster`: cluster of a TCP proxy.
    TcpCluster,
    /// Any other, readable by `%FILTER_STATE(key:PLAIN)%` only.
    Text(Name),
}

/// What filter state asks of the upstream connection. Two requests with different values must not share a connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct UpstreamOverrides {
    /// ALPN to offer instead of the cluster's.
    pub alpn: Option<Vec<Name>>,
    /// SNI to send instead of the cluster's.
    pub sni: Option<Name>,
    /// SANs to accept instead of the cluster's.
    pub sans: Option<Vec<Name>>,
    /// Cluster of a TCP proxy.
    pub tcp_cluster: Option<Name>,
}
