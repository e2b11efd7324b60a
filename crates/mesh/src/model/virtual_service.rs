//! VirtualServices, parsed and with their delegates merged in (semantics §10).
//!
//! Invariant: hosts are full names, gateways are places, patterns compile and header values are formats; what depends on the proxy (its
//! port, labels, namespace, gateway) is in [`Bound`], all else is final.

use std::sync::Arc;

use carrick_base::{HostPattern, Hostname, Labels, NamespacedName};

use super::{
    ExportTo, Origin,
    request::{Condition, Cors, Fault, HeaderChanges, Redirect, Retries},
    service::Prefix,
};

/// One VirtualService. Delegates are merged into their roots and are none themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtualService {
    /// The object.
    pub origin: Origin,
    /// Its hosts.
    pub hosts: Vec<HostPattern>,
    /// Where it holds.
    pub gateways: Vec<GatewayRef>,
    /// Who may use it.
    pub export_to: ExportTo,
    /// Rules for HTTP, first match wins.
    pub http: Vec<HttpRule>,
    /// Rules for TLS that is not terminated.
    pub tls: Vec<ConnectionRule>,
    /// Rules for any connection.
    pub tcp: Vec<ConnectionRule>,
}

impl VirtualService {
    /// Everywhere it leads to, for clients of a namespace.
    pub fn targets(&self, namespace: &str) -> impl Iterator<Item = &Target> {
        let is_for = move |bound: &Bound| bound.namespace.as_ref().is_none_or(|n| **n == *namespace);
        let http = self.http.iter().filter(move |r| r.matches.is_empty() || r.matches.iter().any(|m| is_for(&m.bound)));
        let http = http.flat_map(|rule| match &rule.action {
            RuleAction::Forward(forward) => {
                let mirrors = forward.mirrors.iter().map(|(target, _)| target);
                forward.destinations.iter().map(|d| &d.target).chain(mirrors).collect()
            }
            RuleAction::Redirect { .. } | RuleAction::Direct { .. } => Vec::new(),
        });
        let rest = self.tls.iter().chain(&self.tcp);
        let rest = rest.filter(move |r| r.matches.is_empty() || r.matches.iter().any(|m| is_for(&m.bound)));
        http.chain(rest.flat_map(|rule| rule.destinations.iter().map(|(target, _)| target)))
    }
}

/// Where a rule holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GatewayRef {
    /// At all sidecars.
    Mesh,
    /// At one Gateway.
    Named(NamespacedName),
}

/// What of a match depends on the proxy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Bound {
    /// The listener's or server's port.
    pub port: Option<u16>,
    /// Labels of the proxy.
    pub labels: Labels,
    /// Namespace of the proxy.
    pub namespace: Option<Arc<str>>,
    /// Where it holds; empty for all places of the VirtualService.
    pub gateways: Vec<GatewayRef>,
}

/// One rule for HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpRule {
    /// Its name; empty when unnamed.
    pub name: Arc<str>,
    /// Any of these; empty for all requests.
    pub matches: Vec<HttpLook>,
    /// What becomes of a request.
    pub action: RuleAction,
    /// Headers changed.
    pub headers: HeaderChanges,
    /// Faults injected.
    pub fault: Option<Fault>,
    /// Cross-origin requests.
    pub cors: Option<Cors>,
}

/// One way to match a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HttpLook {
    /// Its name; empty when unnamed.
    pub name: Arc<str>,
    /// Which proxies.
    pub bound: Bound,
    /// Which requests.
    pub condition: Condition,
    /// Prefix of statistics.
    pub stat_prefix: Arc<str>,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuleAction {
    /// Forwarded.
    Forward(Box<RuleForward>),
    /// Sent elsewhere.
    Redirect {
        /// Where to.
        redirect: Redirect,
        /// The port is that of the listener.
        from_request_port: bool,
    },
    /// Answered at once.
    Direct {
        /// The status.
        status: u16,
        /// The body.
        body: Arc<[u8]>,
    },
}

/// Forwarding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleForward {
    /// Where to; one at least, none with weight 0 among several.
    pub destinations: Vec<RuleDestination>,
    /// Milliseconds; 0 for no limit.
    pub timeout: u64,
    /// When it is tried again.
    pub retries: RetryRule,
    /// What is changed of the path.
    pub rewrite: Option<Rewrite>,
    /// The authority sent.
    pub authority: Option<Arc<str>>,
    /// Copies, with shares of a million.
    pub mirrors: Vec<(Target, u32)>,
}

/// When a request is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RetryRule {
    /// As the mesh does.
    Default,
    /// Never.
    Never,
    /// As the rule says.
    Own(Retries),
}

/// What is changed of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rewrite {
    /// This in place of what was matched.
    Path(Arc<str>),
    /// This in place of what a pattern finds.
    Regex {
        /// The pattern.
        pattern: Arc<str>,
        /// The replacement.
        with: Arc<str>,
    },
}

/// One destination of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleDestination {
    /// Which service.
    pub target: Target,
    /// Its share.
    pub weight: u32,
    /// Headers changed for it alone.
    pub headers: HeaderChanges,
    /// The authority sent to it alone.
    pub authority: Option<Arc<str>>,
}

/// A service, subset and port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// The service's full name.
    pub host: Hostname,
    /// The subset; empty for none.
    pub subset: Arc<str>,
    /// The port; `None` for the service's only one, else the listener's.
    pub port: Option<u16>,
}

/// One rule for connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionRule {
    /// Any of these; empty for all connections.
    pub matches: Vec<ConnectionLook>,
    /// Where to, by weight; one at least.
    pub destinations: Vec<(Target, u32)>,
}

/// One way to match a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectionLook {
    /// Which proxies.
    pub bound: Bound,
    /// Server names, sorted; empty for any.
    pub server_names: Vec<Arc<str>>,
    /// Destination networks; empty for any.
    pub networks: Vec<Prefix>,
}
