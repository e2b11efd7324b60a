//! Evaluation of RBAC: who may ask for what, and which policy said so.
//!
//! Invariant: as Envoy 1.40: the first policy by name that matches is the effective one; ALLOW without a match denies; what the facts
//! do not have (a header, metadata, a peer) matches nothing, so a negated condition on it holds. The decision changes nothing but the
//! dynamic metadata it returns.

use std::net::SocketAddr;

use crate::model::Name;
use crate::model::metadata::{Map, Metadata, Value};
use crate::model::rbac::{Action, Condition, RbacFilter, Rules};
use crate::request::RequestHead;

/// Namespace of the HTTP filter's dynamic metadata.
pub const HTTP: &str = "envoy.filters.http.rbac";
/// Namespace of the network filter's dynamic metadata.
pub const NETWORK: &str = "envoy.filters.network.rbac";
/// The body of a denial.
pub const DENIED_BODY: &str = "RBAC: access denied";

/// What conditions may ask for.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The request; none on byte streams.
    pub request: Option<RequestHead<'a>>,
    /// Our address as the client meant it.
    pub local: SocketAddr,
    /// The client as far as it is trusted.
    pub remote: SocketAddr,
    /// The peer of the connection, as announced by a PROXY protocol header if there was one.
    pub source: SocketAddr,
    /// The peer of the connection.
    pub direct: SocketAddr,
    /// SNI.
    pub server_name: &'a str,
    /// The other side of TLS; `None` on plain connections.
    pub peer: Option<Peer<'a>>,
    /// Dynamic metadata so far.
    pub metadata: &'a Metadata,
    /// Metadata of the route.
    pub route_metadata: Option<&'a Metadata>,
    /// Texts in filter state.
    pub filter_state: &'a [(Name, String)],
}

/// Names in a verified client certificate; all empty without one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Peer<'a> {
    /// URI names.
    pub uris: &'a [String],
    /// DNS names.
    pub dns: &'a [String],
    /// Subject.
    pub subject: &'a str,
}

/// What is counted for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// `allowed`
    Allowed = 0,
    /// `denied`
    Denied = 1,
    /// `shadow_allowed`
    ShadowAllowed = 2,
    /// `shadow_denied`
    ShadowDenied = 3,
}

/// What a filter decided.
#[derive(Debug, Clone, Default)]
pub struct Decision<'a> {
    /// The enforced rules refuse; with the policy that did (`None`: no policy allowed it).
    pub denied: Option<Option<&'a Name>>,
    /// The policy of the enforced rules that matched.
    pub policy: Option<&'a Name>,
    /// What the shadow rules would have done, and by which policy.
    pub shadow: Option<(bool, Option<&'a Name>)>,
    /// Keys for the filter's namespace of dynamic metadata.
    pub metadata: Map<Value>,
    /// For `envoy.common` `access_log_hint`, with the LOG action.
    pub log_hint: Option<bool>,
    /// What to count.
    pub counted: [Option<Counted>; 2],
}

impl Decision<'_> {
    /// Response code details of a denial, as Envoy writes them.
    #[must_use]
    pub fn details(&self) -> Option<String> {
        let policy: &str = self.denied?.map_or("none", |p| p);
        let policy: String = policy.chars().map(|c| if c.is_ascii_whitespace() { '_' } else { c }).collect();
        Some(format!("rbac_access_denied_matched_policy[{policy}]"))
    }
}

impl RbacFilter {
    /// Decides about a request or connection.
    #[must_use]
    pub fn decide(&self, subject: &Subject<'_>) -> Decision<'_> {
        let mut out = Decision::default();
        let [policy_key, result_key, shadow_policy_key, shadow_result_key] = &self.keys;
        let result = |allowed| Value::Text(if allowed { "allowed" } else { "denied" }.into());
        if let Some(shadow) = &self.shadow {
            let policy = shadow.matching(subject);
            let allowed = shadow.allows(policy.is_some());
            if let Some(policy) = policy {
                out.metadata.insert(Name::clone(shadow_policy_key), Value::Text(Name::clone(policy)));
            }
            out.metadata.insert(Name::clone(shadow_result_key), result(allowed));
            out.shadow = Some((allowed, policy));
            out.counted[1] = Some(if allowed { Counted::ShadowAllowed } else { Counted::ShadowDenied });
        }
        if let Some(rules) = &self.rules {
            let policy = rules.matching(subject);
            let allowed = rules.allows(policy.is_some());
            if let Some(policy) = policy {
                out.metadata.insert(Name::clone(policy_key), Value::Text(Name::clone(policy)));
            }
            out.metadata.insert(Name::clone(result_key), result(allowed));
            out.policy = policy;
            if rules.action == Action::Log {
                out.log_hint = Some(policy.is_some());
            }
            if !allowed {
                out.denied = Some(policy);
            }
            out.counted[0] = Some(if allowed { Counted::Allowed } else { Counted::Denied });
        }
        out
    }
}

impl Rules {
    /// The first policy that matches.
    #[must_use]
    pub fn matching(&self, subject: &Subject<'_>) -> Option<&Name> {
        let found = self.policies.iter().find(|policy| {
            policy.permissions.iter().any(|c| c.holds(subject)) && policy.principals.iter().any(|c| c.holds(subject))
        });
        found.map(|policy| &policy.name)
    }

    fn allows(&self, matched: bool) -> bool {
        match self.action {
            Action::Allow => matched,
            Action::Deny => !matched,
            Action::Log => true,
        }
    }
}

impl Condition {
    /// Whether the condition holds.
    #[must_use]
    pub fn holds(&self, subject: &Subject<'_>) -> bool {
        let path = || subject.request.map(|r| r.path_only()).filter(|p| !p.is_empty());
        match self {
            Self::Any => true,
            Self::And(all) => all.iter().all(|c| c.holds(subject)),
            Self::Or(any) => any.iter().any(|c| c.holds(subject)),
            Self::Not(inner) => !inner.holds(subject),
            Self::Header(matcher) => subject.request.is_some_and(|r| matcher.matches(&r)),
            Self::Path(matcher) => path().is_some_and(|p| matcher.matches(p.as_bytes())),
            Self::Template(template) => path().is_some_and(|p| template.matches(p)),
            Self::DestinationIp(net) => net.contains(&subject.local.ip().to_canonical()),
            Self::DestinationPort(start, end) => (*start..*end).contains(&u32::from(subject.local.port())),
            Self::ServerName(matcher) => matcher.matches(subject.server_name.as_bytes()),
            Self::Metadata(matcher) => matcher.matches(Some(subject.metadata)),
            Self::RouteMetadata(matcher) => matcher.matches(subject.route_metadata),
            Self::Authenticated(None) => subject.peer.is_some(),
            Self::Authenticated(Some(matcher)) => subject.peer.is_some_and(|peer| {
                peer.uris.iter().chain(peer.dns).any(|name| matcher.matches(name.as_bytes()))
                    || matcher.matches(peer.subject.as_bytes())
            }),
            Self::DirectRemoteIp(net) => net.contains(&subject.direct.ip().to_canonical()),
            Self::SourceIp(net) => net.contains(&subject.source.ip().to_canonical()),
            Self::RemoteIp(net) => net.contains(&subject.remote.ip().to_canonical()),
            Self::FilterState(key, matcher) => {
                let value = subject.filter_state.iter().find(|(k, _)| k == key);
                value.is_some_and(|(_, text)| matcher.matches(text.as_bytes()))
            }
        }
    }
}
