//! A VirtualService's rules for HTTP, as one listener's routes (semantics §10.3–§10.7).
//!
//! Invariant: order is kept; what follows a rule that matches everything is left out. A destination that nobody knows still names its
//! cluster, which does not exist and so answers 503.

use std::{collections::HashMap, sync::Arc};

use carrick_base::{HostPattern, Hostname, Labels};

use crate::{
    model::{
        endpoint::carries_all,
        policy::{HashKey, LoadBalancer},
        virtual_service::{
            Bound, GatewayRef, HttpLook, HttpRule, RetryRule, Rewrite, RuleAction, RuleForward, Target, VirtualService,
        },
    },
    names,
    parts::{
        ClientSocket, Cluster, Route, RouteAlpn, TcpForward, UpstreamHttp,
        cluster::MeshAlpn,
        route::{Action, Condition, Destination, Forward, PathRewrite, PathTest, Retries},
    },
};

/// What routes need to know of clusters.
#[derive(Debug, Clone, Default)]
pub(super) struct Traits {
    pub alpn: Option<RouteAlpn>,
    pub hash: Option<HashKey>,
    /// What its rule says of TCP connections.
    pub forward: Option<TcpForward>,
}

impl Traits {
    pub fn of(cluster: &Cluster) -> Self {
        let mesh_tls = match &cluster.socket {
            ClientSocket::Auto(tls) | ClientSocket::Mesh(tls) => Some(tls),
            _ => None,
        };
        let alpn = mesh_tls.filter(|tls| tls.alpn == MeshAlpn::ByRequest).map(|_| match cluster.http {
            UpstreamHttp::Http2 => RouteAlpn::Http2,
            UpstreamHttp::Http1 | UpstreamHttp::Downstream => RouteAlpn::ByRequest,
        });
        let hash = match &cluster.load_balancer {
            LoadBalancer::ConsistentHash(hash) => Some(hash.key.clone()),
            _ => None,
        };
        Self { alpn, hash, forward: Some(TcpForward::to(cluster)) }
    }
}

/// What a client can reach.
#[derive(Debug, Default)]
pub(super) struct Reach {
    ports: HashMap<Hostname, Vec<u16>>,
    clusters: HashMap<Arc<str>, Traits>,
    /// When a request is tried again where no rule says.
    retries: Option<RetryRule>,
}

impl Reach {
    /// What these clusters lead to.
    pub fn of(clusters: &[Arc<Cluster>], retries: &RetryRule) -> Self {
        let mut out = Self { retries: Some(retries.clone()), ..Self::default() };
        for cluster in clusters {
            if cluster.subset.is_empty() {
                out.ports.entry(cluster.hostname.clone()).or_default().push(cluster.port);
            }
            out.clusters.insert(cluster.name.clone(), Traits::of(cluster));
        }
        out
    }

    /// Whether a service has this name, or one of these.
    pub fn knows(&self, host: &HostPattern) -> bool {
        match host {
            HostPattern::Exact(name) => self.ports.contains_key(name),
            pattern => self.ports.keys().any(|name| pattern.matches(name)),
        }
    }

    /// The cluster of a target, asked for on a port (§10.5).
    pub fn cluster(&self, target: &Target, listener: u16) -> Arc<str> {
        let only = || match self.ports.get(&target.host).map(Vec::as_slice) {
            Some([port]) => *port,
            _ => listener,
        };
        names::outbound_cluster(target.port.unwrap_or_else(only), &target.subset, &target.host)
    }

    /// Connections to clusters by weight, otherwise as the first one's rule says.
    pub fn forward(&self, clusters: Vec<(Arc<str>, u32)>) -> TcpForward {
        let known = clusters.first().and_then(|(name, _)| self.clusters.get(name)?.forward.clone());
        let plain =
            || TcpForward { clusters: Vec::new(), idle_timeout: None, source_hash: false, tunnel: None, dynamic: None };
        TcpForward { clusters, ..known.unwrap_or_else(plain) }
    }

    /// When a request is tried again by a rule. With a consistent hash another endpoint would be the wrong one.
    pub fn retries(&self, rule: &RetryRule, hashed: bool) -> Option<Retries> {
        match (rule, &self.retries) {
            (RetryRule::Default, Some(own)) if *own != RetryRule::Default => self.retries(own, hashed),
            (RetryRule::Default, _) => Some(Retries::standard(!hashed)),
            (RetryRule::Never, _) => None,
            (RetryRule::Own(own), _) => {
                Some(Retries { other_endpoints: own.other_endpoints && !hashed, ..own.clone() })
            }
        }
    }

    fn traits(&self, cluster: &str) -> Traits {
        self.clusters.get(cluster).cloned().unwrap_or_default()
    }
}

/// Where routes are for.
#[derive(Debug)]
pub(super) struct Place<'a> {
    /// The listener's port, or the server's.
    pub port: u16,
    /// The mesh, or the Gateway.
    pub gateway: &'a GatewayRef,
    /// The proxy's namespace.
    pub namespace: &'a str,
    /// The proxy's labels.
    pub labels: &'a Labels,
    /// What it can reach.
    pub reach: &'a Reach,
}

impl Place<'_> {
    /// Whether a match for HTTP is for this proxy. With gateways, neither labels nor namespace are looked at (§10.4).
    fn holds(&self, bound: &Bound) -> bool {
        if bound.port.is_some_and(|port| port != self.port) {
            return false;
        }
        if !bound.gateways.is_empty() {
            return bound.gateways.contains(self.gateway);
        }
        carries_all(self.labels, &bound.labels) && bound.namespace.as_ref().is_none_or(|n| **n == *self.namespace)
    }

    /// Whether a match for connections is for this proxy: all of it counts.
    pub fn holds_all(&self, bound: &Bound) -> bool {
        bound.port.is_none_or(|port| port == self.port)
            && (bound.gateways.is_empty() || bound.gateways.contains(self.gateway))
            && carries_all(self.labels, &bound.labels)
            && bound.namespace.as_ref().is_none_or(|n| **n == *self.namespace)
    }
}

/// The routes of a VirtualService at a place; none when all its matches are for others.
pub(super) fn routes(service: &VirtualService, place: &Place<'_>) -> Vec<Route> {
    let mut out = Vec::new();
    for rule in &service.http {
        if rule.matches.is_empty() {
            out.push(route(service, rule, &HttpLook::default(), place));
            return out;
        }
        for look in rule.matches.iter().filter(|look| place.holds(&look.bound)) {
            out.push(route(service, rule, look, place));
            if look.condition.is_any() {
                return out;
            }
        }
    }
    out
}

fn route(service: &VirtualService, rule: &HttpRule, look: &HttpLook, place: &Place<'_>) -> Route {
    let name = match (rule.name.is_empty(), look.name.is_empty()) {
        (_, true) => rule.name.clone(),
        (true, false) => look.name.clone(),
        (false, false) => format!("{}.{}", rule.name, look.name).into(),
    };
    let action = match &rule.action {
        RuleAction::Forward(forward) => Action::Forward(self::forward(forward, &look.condition, place)),
        RuleAction::Redirect { redirect, from_request_port } => {
            let mut redirect = redirect.clone();
            if *from_request_port {
                redirect.port = Some(place.port);
            }
            Action::Redirect(redirect)
        }
        RuleAction::Direct { status, body } => Action::Direct { status: *status, body: body.clone() },
    };
    Route {
        name,
        operation: operation(service, rule, &look.condition, place),
        condition: look.condition.clone(),
        action,
        headers: rule.headers.clone(),
        fault: rule.fault.clone(),
        cors: rule.cors.clone(),
        stat_prefix: look.stat_prefix.clone(),
        source: Some(service.origin.name.clone()),
    }
}

/// `<host>:<port><path>`: of the destination if there is one, else of the VirtualService.
fn operation(service: &VirtualService, rule: &HttpRule, condition: &Condition, place: &Place<'_>) -> Arc<str> {
    let path = match &condition.path {
        PathTest::Any => "/*".to_owned(),
        PathTest::Exact(path) | PathTest::Regex(path) => path.to_string(),
        PathTest::Prefix(path) => format!("{path}*"),
    };
    let alone = match &rule.action {
        RuleAction::Forward(forward) => match forward.destinations.as_slice() {
            [only] => Some(place.reach.cluster(&only.target, place.port)),
            _ => None,
        },
        _ => None,
    };
    let parts = alone.as_ref().map(|cluster| cluster.split('|').collect::<Vec<_>>());
    match parts.as_deref() {
        Some([_, port, _, host]) => format!("{host}:{port}{path}").into(),
        _ => format!("{}:{}{path}", service.origin.name.name, place.port).into(),
    }
}

fn forward(from: &RuleForward, condition: &Condition, place: &Place<'_>) -> Forward {
    let mut hash = None;
    let destinations = from
        .destinations
        .iter()
        .map(|d| {
            let cluster = place.reach.cluster(&d.target, place.port);
            let traits = place.reach.traits(&cluster);
            hash = hash.take().or(traits.hash);
            Destination {
                cluster,
                weight: d.weight,
                alpn: traits.alpn,
                headers: d.headers.clone(),
                authority: d.authority.clone(),
            }
        })
        .collect();
    let retries = place.reach.retries(&from.retries, hash.is_some());
    let path = from.rewrite.as_ref().map(|rewrite| match rewrite {
        // Without a match there is no matched part: the path is replaced.
        Rewrite::Path(path) if condition.path == PathTest::Any => PathRewrite::Whole(path.clone()),
        Rewrite::Path(path) => PathRewrite::Matched(path.clone()),
        Rewrite::Regex { pattern, with } => PathRewrite::Regex { pattern: pattern.clone(), with: with.clone() },
    });
    Forward {
        destinations,
        timeout: from.timeout,
        retries,
        path,
        authority: from.authority.clone(),
        mirrors: from.mirrors.iter().map(|(target, share)| (place.reach.cluster(target, place.port), *share)).collect(),
        hash,
        missing_is_500: from.destinations.iter().any(|d| d.target.host.as_str() == names::NOWHERE),
    }
}
