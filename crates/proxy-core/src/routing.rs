//! From a request to a virtual host, a route, a cluster.
//!
//! Invariant: Envoy's order: exact domain, longest suffix wildcard, longest prefix wildcard, `*`; then the first route all of whose
//! conditions hold. Randomness is an argument: one random number per request serves fractions and weights, as in Envoy.

use std::sync::Arc;

use crate::model::Name;
use crate::model::metadata::Metadata;
use crate::model::route::{
    Action, Domains, PathMatch, RequireTls, Route, RouteAction, RouteMatch, RouteTable, Target, VirtualHost,
    WeightedCluster,
};
use crate::request::{RequestHead, is_grpc};

/// Facts about connection and request that routing may ask for.
#[derive(Debug, Clone, Copy, Default)]
pub struct RouteFacts<'a> {
    /// Random per request.
    pub random: u64,
    /// The client presented a certificate.
    pub tls_presented: bool,
    /// And it was validated.
    pub tls_validated: bool,
    /// The request came from an internal address.
    pub internal: bool,
    /// What filters told of the request so far.
    pub metadata: Option<&'a Metadata>,
}

/// Outcome of routing.
#[derive(Debug, Clone, Copy)]
pub enum RouteLookup<'a> {
    /// A route.
    Found {
        /// Its virtual host.
        virtual_host: &'a Arc<VirtualHost>,
        /// The route.
        route: &'a Arc<Route>,
    },
    /// The virtual host wants https: answer 301 to the same URL with `https`.
    RequiresTls {
        /// The virtual host.
        virtual_host: &'a Arc<VirtualHost>,
    },
    /// No virtual host, or no route in it: 404, flag NR.
    NotFound,
}

/// The cluster a route sends a request to.
#[derive(Debug, Clone, Copy)]
pub struct ClusterChoice<'a> {
    /// Cluster name.
    pub name: &'a str,
    /// The weighted entry, with its own mutations.
    pub weighted: Option<&'a WeightedCluster>,
}

impl RouteTable {
    /// Finds the route of a request.
    #[must_use]
    pub fn find<'a>(&'a self, request: &RequestHead<'_>, facts: &RouteFacts<'_>) -> RouteLookup<'a> {
        let Some(virtual_host) = self.virtual_host(request.authority) else { return RouteLookup::NotFound };
        // Whether TLS was there is what the header says (it was made sure of before), whatever scheme the target names.
        let plain = request.headers.get("x-forwarded-proto").is_none_or(|proto| proto != "https");
        let must_redirect = match virtual_host.require_tls {
            RequireTls::None => false,
            RequireTls::ExternalOnly => plain && !facts.internal,
            RequireTls::All => plain,
        };
        if must_redirect {
            return RouteLookup::RequiresTls { virtual_host };
        }
        match virtual_host.routes.iter().find(|r| r.matching.matches(request, facts, self.ignore_path_parameters)) {
            Some(route) => RouteLookup::Found { virtual_host, route },
            None => RouteLookup::NotFound,
        }
    }

    /// The virtual host for a Host header.
    #[must_use]
    pub fn virtual_host(&self, authority: &str) -> Option<&Arc<VirtualHost>> {
        let host = if self.ignore_port { without_port(authority) } else { authority };
        self.domains.find(host).and_then(|i| self.virtual_hosts.get(i))
    }
}

impl Domains {
    /// Index of the virtual host for a host name in any case.
    #[must_use]
    pub fn find(&self, host: &str) -> Option<usize> {
        if host.is_empty() {
            return None;
        }
        if self.exact.is_empty() && self.suffix.is_empty() && self.prefix.is_empty() {
            return self.any;
        }
        let lower;
        let host = if host.bytes().any(|b| b.is_ascii_uppercase()) {
            lower = host.to_ascii_lowercase();
            lower.as_str()
        } else {
            host
        };
        self.exact.get(host).copied().or_else(|| self.suffix(host)).or_else(|| self.prefix(host)).or(self.any)
    }

    fn suffix(&self, host: &str) -> Option<usize> {
        self.suffix.iter().filter(|(len, _)| *len < host.len()).find_map(|(len, names)| {
            let tail = host.get(host.len().checked_sub(*len)?..)?;
            names.get(tail).copied()
        })
    }

    fn prefix(&self, host: &str) -> Option<usize> {
        let candidates = self.prefix.iter().filter(|(len, _)| *len < host.len());
        candidates.filter_map(|(len, names)| names.get(host.get(..*len)?).copied()).next()
    }
}

/// A host without its port (brackets of IPv6 stay).
#[must_use]
pub fn without_port(authority: &str) -> &str {
    split_port(authority).0
}

/// Host and port text of an authority.
#[must_use]
pub fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => {
            // `::1` is an address, `[::1]:80` has a port.
            if host.contains(':') && !host.ends_with(']') { (authority, None) } else { (host, Some(port)) }
        }
        _ => (authority, None),
    }
}

impl RouteMatch {
    /// Whether a request fulfils all conditions.
    #[must_use]
    pub fn matches(&self, request: &RequestHead<'_>, facts: &RouteFacts<'_>, ignore_parameters: bool) -> bool {
        self.fraction.is_none_or(|ppm| facts.random % 1_000_000 < u64::from(ppm))
            && self.path.matches(request, ignore_parameters)
            && (!self.grpc || is_grpc(request.headers))
            && self.headers.iter().all(|m| m.matches(request))
            && (self.query.is_empty() || self.query.iter().all(|m| m.matches(request.query())))
            && self.cookies.iter().all(|m| m.matches(request))
            && self.tls_presented.is_none_or(|wanted| wanted == facts.tls_presented)
            && self.tls_validated.is_none_or(|wanted| wanted == facts.tls_validated)
            && self.metadata.iter().all(|m| m.matches(facts.metadata))
    }
}

impl PathMatch {
    /// Whether a request's path matches.
    #[must_use]
    pub fn matches(&self, request: &RequestHead<'_>, ignore_parameters: bool) -> bool {
        if let Self::Connect = self {
            return request.method.eq_ignore_ascii_case("CONNECT");
        }
        if request.path.is_empty() {
            return false;
        }
        let path = request.path_only();
        if ignore_parameters && path.contains(';') {
            return self.matches_text(&without_parameters(path));
        }
        self.matches_text(path)
    }

    /// Length of the matched prefix, for prefix rewrites; `None` where there is none (regex, CONNECT).
    #[must_use]
    pub fn matched_len(&self, path: &str) -> Option<usize> {
        match self {
            Self::Prefix { value, .. } | Self::SeparatedPrefix { value, .. } => Some(value.len()),
            Self::Exact { .. } => Some(path.len()),
            Self::Regex(_) | Self::Template(_) => Some(path.len()),
            Self::Connect => None,
        }
    }

    fn matches_text(&self, path: &str) -> bool {
        match self {
            Self::Connect => false,
            Self::Prefix { value, ignore_case } => starts(path, value, *ignore_case),
            Self::Exact { value, ignore_case } => path.len() == value.len() && starts(path, value, *ignore_case),
            Self::SeparatedPrefix { value, ignore_case } => {
                starts(path, value, *ignore_case) && matches!(path.as_bytes().get(value.len()), None | Some(b'/'))
            }
            Self::Regex(regex) => regex.is_match(path.as_bytes()),
            Self::Template(template) => template.matches(path),
        }
    }
}

fn starts(path: &str, value: &str, ignore_case: bool) -> bool {
    let head = path.as_bytes().get(..value.len());
    head.is_some_and(|h| if ignore_case { h.eq_ignore_ascii_case(value.as_bytes()) } else { h == value.as_bytes() })
}

fn without_parameters(path: &str) -> String {
    let segments = path.split('/').map(|segment| segment.split_once(';').map_or(segment, |(name, _)| name));
    segments.collect::<Vec<_>>().join("/")
}

impl Route {
    /// The forwarding action, if it is one.
    #[must_use]
    pub fn forward(&self) -> Option<&RouteAction> {
        match &self.action {
            Action::Forward(action) => Some(action),
            _ => None,
        }
    }
}

impl RouteAction {
    /// The cluster for a request; `None` if it is named by a header that is missing.
    #[must_use]
    pub fn choose_cluster<'a>(&'a self, request: &RequestHead<'a>, random: u64) -> Option<ClusterChoice<'a>> {
        match &self.target {
            Target::Cluster(name) => Some(ClusterChoice { name, weighted: None }),
            Target::Header(header) => {
                let name = request.headers.get(header)?.to_str().ok()?;
                (!name.is_empty()).then_some(ClusterChoice { name, weighted: None })
            }
            Target::Weighted(weighted) => {
                let mut at = random.checked_rem(u64::from(weighted.total))?;
                let chosen = weighted.clusters.iter().find(|c| {
                    let taken = at < u64::from(c.weight);
                    at = at.saturating_sub(u64::from(c.weight));
                    taken
                })?;
                Some(ClusterChoice { name: &chosen.name, weighted: Some(chosen) })
            }
        }
    }
}

/// The cluster of a TCP proxy.
#[must_use]
pub fn choose_tcp_cluster(target: &crate::model::listener::TcpTarget, random: u64) -> Option<&Name> {
    use crate::model::listener::TcpTarget;
    match target {
        TcpTarget::Cluster(name) => Some(name),
        TcpTarget::Weighted { clusters, total } => {
            let mut at = random.checked_rem(u64::from(*total))?;
            clusters.iter().find_map(|(name, weight)| {
                let taken = at < u64::from(*weight);
                at = at.saturating_sub(u64::from(*weight));
                taken.then_some(name)
            })
        }
    }
}
