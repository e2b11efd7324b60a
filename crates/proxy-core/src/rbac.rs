//! Evaluation of RBAC: who may ask for what, and which policy said so.
//!
//! Invariant: as Envoy 1.40: the first policy by name that matches is the effective one; ALLOW without a match denies; what the facts
//! do not have (a header, metadata, a peer) matches nothing, so a negated condition on it holds. The decision changes nothing but the
//! dynamic metadata it returns.

use std::net::SocketAddr;

use crate::model::Name;
use crate::model::metadata::{Map, Metadata, Value};
use crate::model::rbac::{Action, Condition, Policy, RbacFilter, Rules};
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

/// What one connection leaves open of a filter's rules: its requests need not be asked what its peer and its addresses have answered.
#[derive(Debug, Default)]
pub struct Left {
    rules: Vec<Open>,
    shadow: Vec<Open>,
}

/// A policy that may match requests of a connection: its place, and whether it matches all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Open {
    at: usize,
    certain: bool,
}

impl RbacFilter {
    /// Decides about a request or connection.
    #[must_use]
    pub fn decide(&self, subject: &Subject<'_>) -> Decision<'_> {
        self.decision(|rules, _| rules.matching(subject))
    }

    /// What is left to decide for the requests of the connection that `subject` is one of.
    #[must_use]
    pub fn left(&self, subject: &Subject<'_>) -> Left {
        let open = |rules: &Option<Rules>| rules.as_ref().map_or_else(Vec::new, |rules| rules.open(subject));
        Left { rules: open(&self.rules), shadow: open(&self.shadow) }
    }

    /// Decides as [`RbacFilter::decide`] would, about a request of the connection that `left` is of.
    #[must_use]
    pub fn decide_left(&self, subject: &Subject<'_>, left: &Left) -> Decision<'_> {
        self.decision(|rules, shadow| rules.matching_of(subject, if shadow { &left.shadow } else { &left.rules }))
    }

    /// By the first policy that matches, of the enforced rules and of the others (`true`).
    fn decision<'a>(&'a self, matching: impl Fn(&'a Rules, bool) -> Option<&'a Name>) -> Decision<'a> {
        let mut out = Decision::default();
        let [policy_key, result_key, shadow_policy_key, shadow_result_key] = &self.keys;
        let [allowed_text, denied_text] = &self.results;
        let result = |allowed| Value::Text(Name::clone(if allowed { allowed_text } else { denied_text }));
        if let Some(shadow) = &self.shadow {
            let policy = matching(shadow, true);
            let allowed = shadow.allows(policy.is_some());
            if let Some(policy) = policy {
                out.metadata.insert(Name::clone(shadow_policy_key), Value::Text(Name::clone(policy)));
            }
            out.metadata.insert(Name::clone(shadow_result_key), result(allowed));
            out.shadow = Some((allowed, policy));
            out.counted[1] = Some(if allowed { Counted::ShadowAllowed } else { Counted::ShadowDenied });
        }
        if let Some(rules) = &self.rules {
            let policy = matching(rules, false);
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
        self.policies.iter().find(|policy| policy.matches(subject)).map(|policy| &policy.name)
    }

    /// The policies that may match requests of a connection, up to one that matches them all.
    fn open(&self, subject: &Subject<'_>) -> Vec<Open> {
        let mut open = Vec::new();
        for (at, policy) in self.policies.iter().enumerate() {
            match policy.settled(subject) {
                Some(false) => {}
                Some(true) => {
                    open.push(Open { at, certain: true });
                    break;
                }
                None => open.push(Open { at, certain: false }),
            }
        }
        open
    }

    fn matching_of(&self, subject: &Subject<'_>, open: &[Open]) -> Option<&Name> {
        let policies = open.iter().filter_map(|open| Some((open.certain, self.policies.get(open.at)?)));
        policies
            .into_iter()
            .find(|(certain, policy)| *certain || policy.matches(subject))
            .map(|(_, policy)| &policy.name)
    }

    fn allows(&self, matched: bool) -> bool {
        match self.action {
            Action::Allow => matched,
            Action::Deny => !matched,
            Action::Log => true,
        }
    }
}

impl Policy {
    fn matches(&self, subject: &Subject<'_>) -> bool {
        self.permissions.iter().any(|c| c.holds(subject)) && self.principals.iter().any(|c| c.holds(subject))
    }

    /// Whether it matches all requests of a connection, or none; `None` where that depends on the request.
    fn settled(&self, subject: &Subject<'_>) -> Option<bool> {
        match (some_hold(&self.permissions, subject), some_hold(&self.principals, subject)) {
            (Some(false), _) | (_, Some(false)) => Some(false),
            (what, who) => what.and(who),
        }
    }
}

/// Whether all of the conditions hold, whatever the request.
fn all_hold(conditions: &[Condition], subject: &Subject<'_>) -> Option<bool> {
    settle(conditions, subject, false)
}

/// Whether one of the conditions holds, whatever the request.
fn some_hold(conditions: &[Condition], subject: &Subject<'_>) -> Option<bool> {
    settle(conditions, subject, true)
}

/// `decisive` if it is what one of the conditions comes to, even where others are open; the opposite if all come to that.
fn settle(conditions: &[Condition], subject: &Subject<'_>, decisive: bool) -> Option<bool> {
    let mut is_open = false;
    for condition in conditions {
        match condition.settled(subject) {
            Some(holds) if holds == decisive => return Some(decisive),
            Some(_) => {}
            None => is_open = true,
        }
    }
    (!is_open).then_some(!decisive)
}

impl Condition {
    /// Whether it holds for all requests of a connection, or for none; `None` where that depends on the request.
    fn settled(&self, subject: &Subject<'_>) -> Option<bool> {
        match self {
            Self::And(all) => all_hold(all, subject),
            Self::Or(of) => some_hold(of, subject),
            Self::Not(inner) => inner.settled(subject).map(|holds| !holds),
            Self::Any
            | Self::DestinationIp(_)
            | Self::DestinationPort(..)
            | Self::ServerName(_)
            | Self::Authenticated(_)
            | Self::DirectRemoteIp(_)
            | Self::SourceIp(_) => Some(self.holds(subject)),
            // The client's address as far as a header is believed is of the request, too.
            Self::Header(_)
            | Self::Path(_)
            | Self::Template(_)
            | Self::Metadata(_)
            | Self::RouteMetadata(_)
            | Self::RemoteIp(_)
            | Self::FilterState(..) => None,
        }
    }

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

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use proptest::prelude::*;

    use super::*;
    use crate::model::matcher::{StringMatcher, Text};

    /// A condition as plain data, since conditions cannot be copied.
    #[derive(Debug, Clone)]
    enum Plan {
        Any,
        Path(bool),
        Remote(bool),
        Port(bool),
        Peer(bool),
        Direct(bool),
        And(Vec<Plan>),
        Or(Vec<Plan>),
        Not(Box<Plan>),
    }

    fn plan() -> impl Strategy<Value = Plan> {
        let leaf = prop_oneof![
            Just(Plan::Any),
            any::<bool>().prop_map(Plan::Path),
            any::<bool>().prop_map(Plan::Remote),
            any::<bool>().prop_map(Plan::Port),
            any::<bool>().prop_map(Plan::Peer),
            any::<bool>().prop_map(Plan::Direct),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Plan::And),
                prop::collection::vec(inner.clone(), 0..3).prop_map(Plan::Or),
                inner.prop_map(|inner| Plan::Not(Box::new(inner))),
            ]
        })
    }

    /// `true` in a plan is what the connection or its first request is.
    fn condition(plan: &Plan) -> Condition {
        let exact = |value: &str| StringMatcher::Exact(Text { value: value.into(), ignore_case: false });
        let net = |ours: bool| if ours { "10.0.0.9/32" } else { "10.0.0.8/32" }.parse().unwrap();
        match plan {
            Plan::Any => Condition::Any,
            Plan::Path(ours) => Condition::Path(exact(if *ours { "/a" } else { "/b" })),
            Plan::Remote(ours) => Condition::RemoteIp(net(*ours)),
            Plan::Port(ours) => Condition::DestinationPort(if *ours { 80 } else { 81 }, 82),
            Plan::Peer(ours) => Condition::Authenticated(Some(exact(if *ours { "spiffe://a" } else { "spiffe://b" }))),
            Plan::Direct(ours) => Condition::DirectRemoteIp(net(*ours)),
            Plan::And(all) => Condition::And(all.iter().map(condition).collect()),
            Plan::Or(of) => Condition::Or(of.iter().map(condition).collect()),
            Plan::Not(inner) => Condition::Not(Box::new(condition(inner))),
        }
    }

    proptest! {
        /// What a connection leaves open decides as all of the rules do, about each of its requests.
        #[test]
        fn what_is_left_decides_the_same(
            policies in prop::collection::vec((prop::collection::vec(plan(), 0..3), prop::collection::vec(plan(), 0..3)), 0..5),
            first in 0..4_usize,
        ) {
            let policy = |(at, (what, who)): (usize, &(Vec<Plan>, Vec<Plan>))| Policy {
                name: format!("{at}").into(),
                permissions: what.iter().map(condition).collect(),
                principals: who.iter().map(condition).collect(),
            };
            let rules = Rules { action: Action::Allow, policies: policies.iter().enumerate().map(policy).collect() };
            let none = Metadata::default();
            let (headers, uris) = (HeaderMap::new(), ["spiffe://a".to_owned()]);
            let address = |text: &str| text.parse::<SocketAddr>().unwrap();
            let subjects = [("/a", "10.0.0.9:1"), ("/b", "10.0.0.9:1"), ("/a", "10.0.0.8:1"), ("/b", "10.0.0.8:1")].map(
                |(path, remote)| Subject {
                    request: Some(RequestHead { method: "GET", path, authority: "a", scheme: "http", headers: &headers }),
                    local: address("10.0.0.1:80"),
                    remote: address(remote),
                    source: address("10.0.0.9:1"),
                    direct: address("10.0.0.9:1"),
                    server_name: "",
                    peer: Some(Peer { uris: &uris, dns: &[], subject: "" }),
                    metadata: &none,
                    route_metadata: None,
                    filter_state: &[],
                },
            );
            let open = rules.open(&subjects[first]);
            for subject in &subjects {
                prop_assert_eq!(rules.matching_of(subject, &open), rules.matching(subject));
            }
        }
    }

    #[test]
    fn a_policy_for_others_is_asked_of_no_request() {
        let of = |plan: Plan| Policy {
            name: "p".into(),
            permissions: vec![Condition::Any],
            principals: vec![condition(&plan)],
        };
        let policies = vec![of(Plan::Peer(false)), of(Plan::Path(true)), of(Plan::Peer(true)), of(Plan::Any)];
        let rules = Rules { action: Action::Allow, policies };
        let none = Metadata::default();
        let uris = ["spiffe://a".to_owned()];
        let here = "10.0.0.1:80".parse().unwrap();
        let subject = Subject {
            request: None,
            local: here,
            remote: here,
            source: here,
            direct: here,
            server_name: "",
            peer: Some(Peer { uris: &uris, dns: &[], subject: "" }),
            metadata: &none,
            route_metadata: None,
            filter_state: &[],
        };
        assert_eq!(rules.open(&subject), [Open { at: 1, certain: false }, Open { at: 2, certain: true }]);
    }
}
