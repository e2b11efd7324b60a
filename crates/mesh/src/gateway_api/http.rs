//! HTTPRoutes, to gateways and (by a Service as parent) in the mesh.
//!
//! Invariant: a rule none of whose backends can be reached answers 500; a prefix of a path means whole segments.

use std::{cmp::Reverse, sync::Arc};

use carrick_api::{
    gateway_api::{
        HttpRoute as Route, Reference,
        route::{BackendRef, HttpMatch as Match, Retry, Timeouts},
    },
    istio::virtual_service::{HttpDestination, HttpDirectResponse, HttpMatch, HttpRetry, HttpRoute, StringMatch},
    object::Meta,
    scalar::Duration,
    timestamp::Timestamp,
};
use carrick_base::ObjectRef;
use serde_json::{Value, json};

use super::{
    CONTROLLER, Translated,
    attach::{Hosts, Place, Rank},
    conditions::{Outcome, condition, of},
    filters::Filters,
    gateways::Gateways,
    references::{Backends, Unresolved},
};

const KIND: &str = "HTTPRoute";

pub(super) fn routes(
    all: &[Arc<Route>],
    gateways: &mut Gateways<'_>,
    backends: &Backends<'_>,
    hosts: &mut Hosts,
    out: &mut Translated,
) {
    let any = Match::default();
    for route in all {
        let rules: Vec<Rule> = route
            .spec
            .rules
            .iter()
            .enumerate()
            .map(|(number, rule)| {
                let mut made = Rule::of(KIND, &route.metadata, number, &rule.filters, &rule.backend_refs, backends);
                made.timeouts(rule.timeouts.as_ref(), rule.retry.as_ref());
                made.ignored = rule.session_persistence.as_ref().map(|_| "sessionPersistence");
                let all: &[Match] = if rule.matches.is_empty() { std::slice::from_ref(&any) } else { &rule.matches };
                made.branches = all.iter().map(Branch::of).collect();
                made
            })
            .collect();
        let parents =
            Parents { kind: KIND, meta: &route.metadata, refs: &route.spec.parent_refs, hosts: &route.spec.hostnames };
        parents.attach(&rules, gateways, backends, hosts, out);
    }
}

/// One way into a rule.
#[derive(Debug, Clone, Default)]
pub(super) struct Branch {
    pub(super) path: PathKind,
    pub(super) method: Option<String>,
    pub(super) headers: Vec<(String, StringMatch)>,
    pub(super) params: Vec<(String, StringMatch)>,
}

#[derive(Debug, Clone)]
pub(super) enum PathKind {
    Exact(String),
    Prefix(String),
    Regex(String),
}

impl Default for PathKind {
    fn default() -> Self {
        Self::Prefix("/".to_owned())
    }
}

impl Branch {
    fn of(matched: &Match) -> Self {
        let path = match &matched.path {
            None => PathKind::default(),
            Some(path) => {
                let value = path.value.clone().unwrap_or_else(|| "/".to_owned());
                match path.kind.as_deref() {
                    Some("Exact") => PathKind::Exact(value),
                    Some("RegularExpression") => PathKind::Regex(value),
                    _ => PathKind::Prefix(value),
                }
            }
        };
        Self {
            path,
            method: matched.method.clone(),
            headers: named(&matched.headers),
            params: named(&matched.query_params),
        }
    }
}

/// Named values; of several of one name the first counts.
pub(super) fn named(all: &[carrick_api::gateway_api::route::Named]) -> Vec<(String, StringMatch)> {
    let mut out: Vec<(String, StringMatch)> = Vec::new();
    for one in all {
        let name = one.name.to_ascii_lowercase();
        if !out.iter().any(|(n, _)| n.eq_ignore_ascii_case(&name)) {
            out.push((one.name.clone(), text(one.kind.as_deref(), &one.value)));
        }
    }
    out
}

pub(super) fn text(kind: Option<&str>, value: &str) -> StringMatch {
    match kind {
        Some("RegularExpression") => StringMatch { regex: Some(value.to_owned()), ..StringMatch::default() },
        _ => exact(value),
    }
}

fn exact(value: &str) -> StringMatch {
    StringMatch { exact: Some(value.to_owned()), ..StringMatch::default() }
}

/// A rule, before it is known where it attaches.
#[derive(Debug)]
pub(super) struct Rule {
    name: String,
    number: usize,
    filters: Filters,
    destinations: Vec<HttpDestination>,
    timeout: Option<Duration>,
    retries: Option<HttpRetry>,
    pub(super) branches: Vec<Branch>,
    unresolved: Option<Unresolved>,
    /// What is asked for and not done.
    ignored: Option<&'static str>,
}

impl Rule {
    pub(super) fn of(
        kind: &str,
        meta: &Meta,
        number: usize,
        filters: &[carrick_api::gateway_api::route::Filter],
        refs: &[BackendRef],
        backends: &Backends<'_>,
    ) -> Self {
        let mut filters = Filters::of(filters, kind, &meta.namespace, backends);
        let (good, bad, lost) = backends.all(kind, &meta.namespace, refs);
        let mut unresolved = bad.or_else(|| filters.unresolved.clone());
        let mut destinations = Vec::new();
        let alone = refs.len() == 1;
        for (destination, weight, backend) in good {
            let own = Filters::of(&backend.filters, kind, &meta.namespace, backends);
            unresolved = unresolved.or(own.unresolved.clone());
            filters.take_backends(&own, alone);
            destinations.push(HttpDestination { destination: Some(destination), weight, headers: own.headers });
        }
        if lost > 0 && !destinations.is_empty() {
            // That share of the requests has nowhere to go, and is not given to the others.
            let nowhere = carrick_api::istio::virtual_service::Destination {
                host: crate::names::NOWHERE.to_owned(),
                ..Default::default()
            };
            destinations.push(HttpDestination { destination: Some(nowhere), weight: lost, headers: None });
        }
        if destinations.iter().all(|d| d.weight == 0) {
            destinations.clear();
        } else {
            destinations.retain(|d| d.weight > 0);
        }
        Self {
            name: format!("{}.{}.{number}", meta.namespace, meta.name),
            number,
            filters,
            destinations,
            timeout: None,
            retries: None,
            branches: Vec::new(),
            unresolved,
            ignored: None,
        }
    }

    /// Hosts of its backends.
    fn hosts(&self) -> impl Iterator<Item = &str> {
        self.destinations.iter().filter_map(|d| d.destination.as_ref()).map(|d| d.host.as_str())
    }

    fn timeouts(&mut self, timeouts: Option<&Timeouts>, retry: Option<&Retry>) {
        let read = |text: &Option<String>| {
            text.as_deref().and_then(|t| Duration::parse(t).ok()).filter(|d| !d.get().is_zero())
        };
        let (request, backend) = timeouts.map_or((None, None), |t| (read(&t.request), read(&t.backend_request)));
        // One try is the whole request, unless there may be more.
        self.timeout = if retry.is_some() { request } else { backend.or(request) };
        if let Some(retry) = retry {
            let codes: Vec<String> = retry.codes.iter().map(ToString::to_string).collect();
            // `reset` is also what ends a try that takes too long.
            let words = ["connect-failure", "refused-stream", "unavailable", "cancelled", "reset"].map(str::to_owned);
            self.retries = Some(HttpRetry {
                attempts: retry.attempts.unwrap_or(2),
                retry_on: words.into_iter().chain(codes).collect::<Vec<_>>().join(","),
                backoff: read(&retry.backoff),
                per_try_timeout: backend,
                ..HttpRetry::default()
            });
        }
    }

    /// The routes of one branch: a prefix that is rewritten needs two.
    fn made(&self, branch: &Branch, port: u16, mesh_port: u32) -> Vec<HttpRoute> {
        let condition = |uri: Option<StringMatch>| HttpMatch {
            uri,
            method: branch.method.as_deref().map(exact),
            headers: branch.headers.iter().cloned().collect(),
            query_params: branch.params.iter().cloned().collect(),
            port: mesh_port,
            ..HttpMatch::default()
        };
        let prefix = |p: &str| StringMatch { prefix: Some(p.to_owned()), ..StringMatch::default() };
        let ways: Vec<(Vec<HttpMatch>, String)> = match &branch.path {
            PathKind::Exact(path) => vec![(vec![condition(Some(exact(path)))], path.clone())],
            PathKind::Regex(pattern) => {
                let regex = StringMatch { regex: Some(pattern.clone()), ..StringMatch::default() };
                vec![(vec![condition(Some(regex))], "/".to_owned())]
            }
            PathKind::Prefix(path) => {
                let bare = path.trim_end_matches('/');
                if bare.is_empty() {
                    vec![(vec![condition(Some(prefix("/")))], "/".to_owned())]
                } else {
                    let below = format!("{bare}/");
                    let (own, under) = (condition(Some(exact(bare))), condition(Some(prefix(&below))));
                    if self.filters.by_prefix() {
                        vec![(vec![own], bare.to_owned()), (vec![under], below)]
                    } else {
                        vec![(vec![own, under], below)]
                    }
                }
            }
        };
        ways.into_iter().map(|(matches, prefix)| self.route(matches, &prefix, port)).collect()
    }

    fn route(&self, matches: Vec<HttpMatch>, prefix: &str, port: u16) -> HttpRoute {
        let mut out = HttpRoute {
            name: self.name.clone(),
            matches,
            headers: self.filters.headers.clone(),
            cors_policy: self.filters.cors.clone(),
            ..HttpRoute::default()
        };
        if self.filters.unknown.is_none()
            && let Some(redirect) = self.filters.redirect(prefix, port)
        {
            out.redirect = Some(redirect);
            return out;
        }
        if self.filters.unknown.is_some() || self.destinations.is_empty() {
            out.direct_response = Some(HttpDirectResponse { status: 500, body: None });
            return out;
        }
        out.route.clone_from(&self.destinations);
        out.mirrors.clone_from(&self.filters.mirrors);
        out.rewrite = self.filters.rewrite(prefix);
        out.timeout = self.timeout;
        out.retries.clone_from(&self.retries);
        out
    }
}

/// A route's parents.
#[derive(Debug)]
pub(super) struct Parents<'a> {
    pub(super) kind: &'static str,
    pub(super) meta: &'a Meta,
    pub(super) refs: &'a [Reference],
    pub(super) hosts: &'a [String],
}

impl Parents<'_> {
    /// Attaches rules to every parent that is ours, and says what came of it.
    pub(super) fn attach(
        &self,
        rules: &[Rule],
        gateways: &mut Gateways<'_>,
        backends: &Backends<'_>,
        hosts: &mut Hosts,
        out: &mut Translated,
    ) {
        let unresolved = rules.iter().find_map(|r| r.unresolved.clone());
        let mut unknown: Outcome = Ok(());
        if let Some(filter) = rules.iter().find_map(|r| r.filters.unknown.clone()) {
            unknown = Err(("UnsupportedValue", format!("filter {filter} is not known; its rule answers 500")));
        }
        let ignored = rules.iter().find_map(|r| r.ignored);
        let mut told = Vec::new();
        for parent in self.refs {
            let outcome = if parent.is("", "Service", carrick_api::gateway_api::GROUP, "Gateway") {
                Some(self.in_mesh(parent, rules, backends, hosts))
            } else {
                gateways.attach(parent, self.kind, &self.meta.namespace, self.hosts).map(|attachment| {
                    gateways.reach(&attachment, rules.iter().flat_map(Rule::hosts));
                    for (index, names) in attachment.listeners {
                        let Some(listener) = gateways.listeners.get(index) else { continue };
                        let (gateway, port) = (listener.made.clone(), listener.spec.port);
                        for host in names {
                            let namespace = gateway.split_once('/').map_or("", |(ns, _)| ns).to_owned();
                            let place = Place { gateway: gateway.clone(), host, namespace, export_to: Vec::new() };
                            self.place(&place, rules, port, 0, hosts);
                        }
                    }
                    attachment.outcome
                })
            };
            if let Some(outcome) = outcome {
                let outcome = outcome.and_then(|()| unknown.clone());
                let mut entry = self.parent(parent, &outcome, unresolved.as_ref());
                if let Some(field) = ignored
                    && let Some(all) = entry.get_mut("conditions").and_then(Value::as_array_mut)
                {
                    let words = format!("{field} is not done here; the rest of the rule is");
                    all.push(condition("PartiallyInvalid", true, "UnsupportedValue", &words, self.meta.generation));
                }
                told.push(entry);
            }
        }
        if !told.is_empty() {
            let reference = ObjectRef::new(self.kind, &self.meta.namespace, &self.meta.name);
            out.statuses.insert(reference, json!({"parents": told}));
        }
    }

    /// What is said of one parent.
    pub(super) fn parent(&self, parent: &Reference, accepted: &Outcome, unresolved: Option<&Unresolved>) -> Value {
        let resolved: Outcome = unresolved.cloned().map_or(Ok(()), Err);
        let generation = self.meta.generation;
        json!({
            "parentRef": reference(parent),
            "controllerName": CONTROLLER,
            "conditions": [
                of("Accepted", "Accepted", accepted, generation),
                of("ResolvedRefs", "ResolvedRefs", &resolved, generation),
            ],
        })
    }

    /// A service as parent: for the callers of the service in the mesh. From another namespace, for callers of that namespace only.
    fn in_mesh(&self, parent: &Reference, rules: &[Rule], backends: &Backends<'_>, hosts: &mut Hosts) -> Outcome {
        let there = parent.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(&self.meta.namespace);
        let known = |s: &&Arc<carrick_api::Service>| s.metadata.namespace == there && s.metadata.name == parent.name;
        if backends.around.services.iter().find(known).is_none() {
            return Err(("NoMatchingParent", format!("service {there}/{} does not exist", parent.name)));
        }
        let export_to = if there == self.meta.namespace { Vec::new() } else { vec![self.meta.namespace.clone()] };
        let place = Place {
            gateway: "mesh".to_owned(),
            host: format!("{}.{there}.svc.{}", parent.name, backends.around.domain),
            namespace: there.to_owned(),
            export_to,
        };
        self.place(&place, rules, 0, parent.port.map_or(0, u32::from), hosts);
        Ok(())
    }

    fn place(&self, place: &Place, rules: &[Rule], port: u16, mesh_port: u32, hosts: &mut Hosts) {
        for rule in rules {
            for (number, branch) in rule.branches.iter().enumerate() {
                let (path, length) = match &branch.path {
                    PathKind::Exact(p) => (0, p.len()),
                    PathKind::Prefix(p) if p.trim_end_matches('/').is_empty() => (3, 0),
                    PathKind::Prefix(p) => (1, p.trim_end_matches('/').len()),
                    PathKind::Regex(p) => (2, p.len()),
                };
                let rank = Rank {
                    path,
                    length: Reverse(length),
                    without_method: branch.method.is_none(),
                    headers: Reverse(branch.headers.len()),
                    params: Reverse(branch.params.len()),
                    created: self.meta.creation_timestamp.unwrap_or(Timestamp::MAX),
                    name: format!("{}/{}", self.meta.namespace, self.meta.name),
                    rule: rule.number,
                    branch: number,
                };
                for route in rule.made(branch, port, mesh_port) {
                    hosts.add(place, rank.clone(), route);
                }
            }
        }
    }
}

/// A reference as it was written.
pub(super) fn reference(to: &Reference) -> Value {
    let mut out = serde_json::to_value(to).unwrap_or_default();
    if let Some(map) = out.as_object_mut() {
        map.retain(|_, v| !v.is_null());
        map.entry("group").or_insert_with(|| carrick_api::gateway_api::GROUP.into());
        map.entry("kind").or_insert_with(|| "Gateway".into());
    }
    out
}
