//! What the filters of a chain would say of a request, and which policy decided.
//!
//! Invariant: the same decisions as in the proxy, in the same order. What cannot be known here is told and assumed to pass: an external
//! authorizer's answer, what is left of a rate limit; of keys that are fetched none are here, so their tokens are refused.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderMap;

use super::{Caller, Connection, Decided, Verdict};
use crate::facts::Facts;
use crate::jwt::{self, locate::Message};
use crate::model::filter::{Step, StepHere, StepKind};
use crate::model::hcm::HttpConnectionManager;
use crate::model::listener::FilterChain;
use crate::model::metadata::Metadata;
use crate::model::route::RouteTable;
use crate::model::steps::{Abort, FaultKind};
use crate::mutate::{Levels, Side};
use crate::rbac::{self, DENIED_BODY, Peer, Subject};
use crate::request::RequestHead;
use crate::routing::{RouteFacts, RouteLookup};
use crate::steps::Cors;

/// A request on its way through the filters.
pub(super) struct Passing<'a, 'r> {
    pub chain: &'a FilterChain,
    pub table: &'a RouteTable,
    pub connection: &'a Connection<'a>,
    pub caller: &'a Caller<'a>,
    /// The client, as far as it is trusted.
    pub client: SocketAddr,
    pub request: RequestHead<'r>,
    pub headers: HeaderMap,
    pub path: String,
    pub facts: RouteFacts<'static>,
    pub lookup: RouteLookup<'a>,
    pub metadata: Metadata,
}

/// The RBAC filters of a chain, before anything else; false: closed.
pub(super) fn admits(
    chain: &FilterChain,
    connection: &Connection<'_>,
    caller: &Caller<'_>,
    verdict: &mut Verdict,
) -> bool {
    let metadata = Metadata::default();
    for (_, asked) in &chain.ext_authz {
        let words = format!("whoever serves {} is asked", asked.service.cluster());
        verdict.decided.push(Decided { filter: "network ext_authz".into(), what: words, status: None });
    }
    for filter in &chain.rbac {
        let client = caller.client.unwrap_or(connection.source);
        let decision = filter.decide(&subject(chain, connection, caller, client, None, &metadata));
        if let Some(details) = decision.details() {
            verdict.decided.push(Decided { filter: "network RBAC".into(), what: details, status: Some(0) });
            return false;
        }
        note_rbac(&"network RBAC".into(), &decision, verdict);
    }
    true
}

fn subject<'a>(
    chain: &FilterChain,
    connection: &'a Connection<'_>,
    caller: &'a Caller<'_>,
    client: SocketAddr,
    request: Option<RequestHead<'a>>,
    metadata: &'a Metadata,
) -> Subject<'a> {
    let server_name = match connection.opening {
        super::Opening::Tls { server_name, .. } => server_name.unwrap_or_default(),
        _ => "",
    };
    Subject {
        request,
        local: connection.destination,
        remote: client,
        source: connection.source,
        direct: connection.source,
        server_name,
        // Who is not asked for a certificate shows none.
        peer: chain.tls.as_ref().map(|tls| {
            let uris = if tls.validation.is_some() { caller.uris } else { &[] };
            Peer { uris, ..Peer::default() }
        }),
        metadata,
        route_metadata: None,
        filter_state: &[],
    }
}

fn note_rbac(filter: &crate::model::Name, decision: &rbac::Decision<'_>, verdict: &mut Verdict) {
    if let Some(policy) = decision.policy {
        verdict.decided.push(Decided {
            filter: Arc::clone(filter),
            what: format!("allowed by policy {policy}"),
            status: None,
        });
    }
    if let Some((allowed, policy)) = decision.shadow {
        let policy = policy.map_or("none", |p| p);
        let would = if allowed { "allow" } else { "deny" };
        verdict.decided.push(Decided {
            filter: Arc::clone(filter),
            what: format!("a dry run would {would}: policy {policy}"),
            status: None,
        });
    }
}

impl<'a> Passing<'a, '_> {
    /// Runs the filters; the status of the one that answered.
    pub fn all(&mut self, manager: &'a HttpConnectionManager, verdict: &mut Verdict) -> Option<u16> {
        for step in manager.filters.iter().filter_map(|f| f.step()) {
            if !self.levels(|l| l.runs(step)).unwrap_or(!step.disabled) {
                continue;
            }
            let here = self.levels(|l| l.here(&step.name).cloned()).flatten();
            if let Some((status, what)) = self.step(step, here.as_ref(), verdict) {
                verdict.decided.push(Decided { filter: Arc::clone(&step.name), what, status: Some(status) });
                return Some(status);
            }
        }
        None
    }

    /// The request as it is now.
    pub fn head(&self) -> RequestHead<'_> {
        RequestHead { path: &self.path, headers: &self.headers, ..self.request }
    }

    fn levels<R>(&self, f: impl FnOnce(&Levels<'_>) -> R) -> Option<R> {
        let RouteLookup::Found { virtual_host, route } = self.lookup else { return None };
        let head = self.head();
        let choice = route.forward().and_then(|a| a.choose_cluster(&head, self.facts.random));
        let weighted = choice.and_then(|c| c.weighted);
        Some(f(&Levels { table: self.table, virtual_host, route, weighted }))
    }

    fn step(&mut self, step: &Step, here: Option<&StepHere>, verdict: &mut Verdict) -> Option<(u16, String)> {
        let mut next = self.facts.random;
        let mut random = move || {
            next = next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            next >> 16
        };
        match (&step.kind, here) {
            (StepKind::Rbac(_), Some(StepHere::Rbac(filter))) | (StepKind::Rbac(filter), _) => {
                let route_metadata = match self.lookup {
                    RouteLookup::Found { route, .. } => Some(&route.metadata),
                    _ => None,
                };
                let head = self.head();
                let whole = subject(self.chain, self.connection, self.caller, self.client, Some(head), &self.metadata);
                let decision = filter.decide(&Subject { route_metadata, ..whole });
                note_rbac(&step.name, &decision, verdict);
                let details = decision.details();
                let learned = decision.metadata;
                self.metadata.learn(rbac::HTTP, learned);
                details.map(|details| (403, format!("{DENIED_BODY}: {details}")))
            }
            (StepKind::Jwt(filter), here) => {
                let here = match here {
                    Some(StepHere::Jwt(here)) => Some(here),
                    _ => None,
                };
                self.jwt(step, filter, here, verdict)
            }
            (StepKind::ExtAuthz(filter), _) => {
                let meant = filter.enabled_metadata.as_ref().is_none_or(|m| m.matches(Some(&self.metadata)));
                if meant && filter.enabled > 0 {
                    let what = format!("asks the authorizer behind {}", filter.service.cluster());
                    verdict.decided.push(Decided { filter: Arc::clone(&step.name), what, status: None });
                }
                None
            }
            (StepKind::Fault(_), Some(StepHere::Fault(fault))) | (StepKind::Fault(fault), _) => {
                let head = self.head();
                let cluster = match self.lookup {
                    RouteLookup::Found { route, .. } => {
                        route.forward().and_then(|a| a.choose_cluster(&head, self.facts.random)).map(|c| c.name)
                    }
                    _ => None,
                };
                if !fault.applies(&head, cluster.unwrap_or_default()) {
                    return None;
                }
                let share = fault.abort.as_ref().map_or(0, |(_, share)| *share);
                if share > 0 && share < 1_000_000 && matches!(fault.abort, Some((FaultKind::Fixed(_), _))) {
                    let what = format!("aborts {} of a million requests", share);
                    verdict.decided.push(Decided { filter: Arc::clone(&step.name), what, status: None });
                }
                let status = match fault.abort(&head, &mut random)? {
                    Abort::Http(status) => status.as_u16(),
                    Abort::Grpc(_) => 200,
                };
                Some((status, "an injected fault".to_owned()))
            }
            (StepKind::Cors, Some(StepHere::Cors(policy))) => match policy.decide(&self.head(), &mut random) {
                Cors::Preflight(_) => Some((200, "a CORS preflight".to_owned())),
                Cors::None | Cors::Respond(_) => None,
            },
            (StepKind::Cors, _) | (StepKind::LocalRateLimit(_), _) => None,
            (StepKind::HeaderMutation(own), _) => {
                let mut all = vec![Arc::clone(own)];
                self.levels(|l| {
                    all.extend(l.all_here(&step.name).filter_map(|here| match here {
                        StepHere::HeaderMutation(m) => Some(Arc::clone(m)),
                        _ => None,
                    }));
                });
                for ops in all.iter().flat_map(|m| &m.request) {
                    let mut headers = self.headers.clone();
                    ops.apply(Side::Request, &mut headers, &Facts { request: Some(self.head()), ..Facts::default() });
                    self.headers = headers;
                }
                None
            }
        }
    }

    fn jwt(
        &mut self,
        step: &Step,
        filter: &crate::model::jwt::JwtAuthn,
        here: Option<&crate::model::jwt::JwtHere>,
        verdict: &mut Verdict,
    ) -> Option<(u16, String)> {
        let head = self.head();
        if filter.bypasses(&head) {
            return None;
        }
        let requirement = match filter.requirement(here, &head, &self.facts) {
            Ok(requirement) => Arc::clone(requirement?),
            Err(refusal) => return Some((refusal.status, refusal.text.into_owned())),
        };
        let path = self.path.clone();
        let mut message = Message { headers: &mut self.headers, path: Cow::Borrowed(&path) };
        let url = (self.request.scheme, self.request.authority);
        match filter.check(&requirement, &mut message, url, self.caller.now, &|_| None) {
            jwt::Verdict::Bypassed => None,
            jwt::Verdict::Refused(refusal) => Some((refusal.status, refusal.text.into_owned())),
            jwt::Verdict::Passed(passed) => {
                self.path = message.path.into_owned();
                self.metadata.learn(jwt::NAMESPACE, passed.metadata);
                for provider in &passed.providers {
                    let what = format!("a good token of provider {provider}");
                    verdict.decided.push(Decided { filter: Arc::clone(&step.name), what, status: None });
                }
                if passed.clear_route {
                    let facts = RouteFacts { metadata: Some(&self.metadata), ..self.facts };
                    self.lookup = self.table.find(&self.head(), &facts);
                }
                None
            }
        }
    }
}
