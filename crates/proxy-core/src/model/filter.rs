//! HTTP filters this engine runs, and filter state.
//!
//! Invariant: a filter that is not here was rejected by `decode`, except those in its inert table, which are left out.

use super::Name;
use super::format::Format;

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
