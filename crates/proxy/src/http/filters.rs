//! The filters of a request, in order, before it is routed; and what they do to its response.
//!
//! Invariant: one loop, one context; each decision is `proxy-core`'s. A filter sees what those before it left. The route is found again
//! only where a filter asks for it. A chain that is only the router never comes here.

mod ext_authz;

use super::connection::HttpConn;
use super::exchange::Exchange;
use super::head::{Head, Routed, set_path};
use super::reply::{Failure, Reply};
use crate::message::incoming::Incoming;
use crate::names::{details, flag};
use crate::worker::Live;
use bytes::Bytes;
use carrick_proxy_core::ext_authz::Change;
use carrick_proxy_core::facts::Facts;
use carrick_proxy_core::jwt::locate::Message;
use carrick_proxy_core::jwt::{self, Verdict};
use carrick_proxy_core::model::Name;
use carrick_proxy_core::model::filter::{FilterStateKey, FilterStateSet, HttpFilter, Step, StepHere, StepKind};
use carrick_proxy_core::model::hcm::HttpConnectionManager;
use carrick_proxy_core::model::jwt::{JwtAuthn, JwtHere};
use carrick_proxy_core::model::metadata::{Map, Metadata, Value};
use carrick_proxy_core::model::rbac::RbacFilter;
use carrick_proxy_core::model::route::{Action, RouteTable};
use carrick_proxy_core::model::steps::{Abort, CorsPolicy, Fault, HeaderMutations, LocalRateLimit};
use carrick_proxy_core::mutate::{Levels, Side};
use carrick_proxy_core::rbac::{self, Subject};
use carrick_proxy_core::routing::{RouteFacts, RouteLookup};
use carrick_proxy_core::steps::{Cors, Rate};
use http::{HeaderMap, StatusCode};
use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// What the filters found out about a request, and what they want of its response.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Dynamic metadata.
    pub metadata: Metadata,
    /// Changes of the response, with the place of their filter in the chain.
    respond: Vec<(usize, Respond)>,
    /// A fault delayed it.
    pub delayed: bool,
}

#[derive(Debug)]
enum Respond {
    Set(HeaderMap),
    Change(Vec<Change>),
    Mutate(Arc<HeaderMutations>),
}

impl Found {
    /// Changes a response's headers, the last filter first.
    pub fn respond(&mut self, status: u16, headers: &mut HeaderMap) {
        self.respond.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        for (_, respond) in &self.respond {
            match respond {
                Respond::Set(set) => {
                    for (name, value) in set {
                        headers.insert(name.clone(), value.clone());
                    }
                }
                Respond::Change(changes) => carrick_proxy_core::ext_authz::change(headers, changes),
                Respond::Mutate(mutations) => {
                    for ops in &mutations.response {
                        let facts =
                            Facts { status: Some(status), dynamic_metadata: Some(&self.metadata), ..Facts::default() };
                        ops.apply(Side::Response, headers, &facts);
                    }
                }
            }
        }
    }

    fn learn(&mut self, namespace: &str, values: Map<Value>) {
        if values.is_empty() {
            return;
        }
        self.metadata.learn(namespace, values);
    }
}

/// Where a request goes so far.
pub(super) enum Lookup {
    Route(Routed),
    RequiresTls,
    Nowhere,
}

/// Finds a request's route.
pub(super) fn look_up(table: Option<&Arc<RouteTable>>, head: &Head, facts: &RouteFacts<'_>) -> Lookup {
    let Some(table) = table else { return Lookup::Nowhere };
    match table.find(&head.view(), facts) {
        RouteLookup::Found { virtual_host, route } => Lookup::Route(Routed {
            virtual_host: Arc::clone(virtual_host),
            route: Arc::clone(route),
            table: Arc::clone(table),
        }),
        RouteLookup::RequiresTls { .. } => Lookup::RequiresTls,
        RouteLookup::NotFound => Lookup::Nowhere,
    }
}

/// Whether a chain has anything but the router and filter state.
pub(super) fn has_steps(hcm: &HttpConnectionManager) -> bool {
    hcm.filters.iter().any(|f| matches!(f, HttpFilter::Step(_)))
}

/// One request on its way through the chain.
pub(super) struct Run<'a> {
    pub conn: &'a Rc<HttpConn>,
    pub hcm: &'a HttpConnectionManager,
    pub live: &'a Live,
    pub table: Option<&'a Arc<RouteTable>>,
    pub facts: RouteFacts<'a>,
    pub lookup: Lookup,
    pub exchange: &'a mut Exchange,
    pub found: Found,
    /// The beginning of the body, if a filter read it.
    pub read: Option<Bytes>,
}

impl Run<'_> {
    /// Runs the chain.
    ///
    /// # Errors
    /// The answer of the filter that ended it.
    pub async fn all(&mut self, head: &mut Head, body: &mut Incoming) -> Result<(), Failure> {
        let hcm = self.hcm;
        for (at, step) in hcm.filters.iter().enumerate().filter_map(|(at, f)| Some((at, f.step()?))) {
            if let StepKind::HeaderMutation(own) = &step.kind
                && self.runs(head, step)
            {
                for mutations in self.mutations(head, step, own) {
                    if !mutations.response.is_empty() {
                        self.found.respond.push((at, Respond::Mutate(mutations)));
                    }
                }
            }
        }
        for (at, step) in hcm.filters.iter().enumerate().filter_map(|(at, f)| Some((at, f.step()?))) {
            if self.runs(head, step) {
                self.step(at, step, head, body).await?;
            }
        }
        Ok(())
    }

    fn levels<R>(&self, head: &Head, f: impl FnOnce(&Levels<'_>) -> R) -> Option<R> {
        let Lookup::Route(routed) = &self.lookup else { return None };
        let view = head.view();
        let choice = routed.route.forward().and_then(|a| a.choose_cluster(&view, self.facts.random));
        Some(f(&routed.levels(choice.and_then(|c| c.weighted))))
    }

    fn runs(&self, head: &Head, step: &Step) -> bool {
        self.levels(head, |l| l.runs(step)).unwrap_or(!step.disabled)
    }

    fn here(&self, head: &Head, step: &Step) -> Option<StepHere> {
        self.levels(head, |l| l.here(&step.name).cloned()).flatten()
    }

    /// The filter's own mutations, then the routes', the least specific last.
    fn mutations(&self, head: &Head, step: &Step, own: &Arc<HeaderMutations>) -> Vec<Arc<HeaderMutations>> {
        let mut out = vec![Arc::clone(own)];
        self.levels(head, |l| {
            out.extend(l.all_here(&step.name).filter_map(|here| match here {
                StepHere::HeaderMutation(m) => Some(Arc::clone(m)),
                _ => None,
            }));
        });
        out
    }

    /// One step. What may wait for others is on the heap, as every request has room for it otherwise.
    async fn step(&mut self, at: usize, step: &Step, head: &mut Head, body: &mut Incoming) -> Result<(), Failure> {
        let here = self.here(head, step);
        match (&step.kind, &here) {
            (StepKind::Rbac(_), Some(StepHere::Rbac(rbac))) => self.rbac(rbac, None, head),
            (StepKind::Rbac(rbac), _) => self.rbac(rbac, Some(at), head),
            (StepKind::Jwt(jwt), here) => {
                let here = match here {
                    Some(StepHere::Jwt(here)) => Some(here),
                    _ => None,
                };
                Box::pin(self.jwt(jwt, here, head)).await
            }
            (StepKind::ExtAuthz(filter), here) => {
                let here = match here {
                    Some(StepHere::ExtAuthz(here)) => Some(&**here),
                    _ => None,
                };
                Box::pin(ext_authz::run(self, at, filter, here, head, body)).await
            }
            (StepKind::Fault(_), Some(StepHere::Fault(fault))) | (StepKind::Fault(fault), _) => {
                Box::pin(self.fault(fault, head)).await
            }
            (StepKind::Cors, Some(StepHere::Cors(policy))) => self.cors(at, policy, head),
            (StepKind::Cors, _) => Ok(()),
            (StepKind::LocalRateLimit(_), Some(StepHere::LocalRateLimit(limit)))
            | (StepKind::LocalRateLimit(limit), _) => self.rate(limit, head),
            (StepKind::HeaderMutation(own), _) => {
                for mutations in self.mutations(head, step, own) {
                    for ops in &mutations.request {
                        self.change_request(head, |headers, facts| ops.apply(Side::Request, headers, facts));
                    }
                }
                Ok(())
            }
        }
    }

    fn change_request(&self, head: &mut Head, f: impl FnOnce(&mut HeaderMap, &Facts<'_>)) {
        let mut headers = head.parts.headers.clone();
        let view = head.view();
        let facts = Facts {
            dynamic_metadata: Some(&self.found.metadata),
            ..super::service::request_facts(self.conn, self.exchange, &view)
        };
        f(&mut headers, &facts);
        head.parts.headers = headers;
    }

    fn count(&self, counter: &Name) {
        self.conn.worker.stats.filter(Some(&self.hcm.stat_prefix), counter);
    }

    fn clear_route(&mut self, head: &Head) {
        let facts = RouteFacts { metadata: Some(&self.found.metadata), ..self.facts };
        self.lookup = look_up(self.table, head, &facts);
        if let Lookup::Route(routed) = &self.lookup {
            self.exchange.route = Some(Arc::clone(&routed.route));
        }
    }

    /// `at`: its place, if it is the chain's own, which lives as long as the connection.
    fn rbac(&mut self, filter: &RbacFilter, at: Option<usize>, head: &Head) -> Result<(), Failure> {
        let info = &self.conn.info;
        let route = match &self.lookup {
            Lookup::Route(routed) => Some(&routed.route.metadata),
            _ => None,
        };
        let state = self.filter_state(head);
        let subject = Subject {
            request: Some(head.view()),
            local: info.local,
            remote: head.client,
            source: info.peer,
            direct: info.direct,
            server_name: info.server_name.as_deref().unwrap_or_default(),
            peer: info.certificate_names(),
            metadata: &self.found.metadata,
            route_metadata: route,
            filter_state: &state,
        };
        let decision = match at {
            Some(at) => filter.decide_left(&subject, &self.conn.left(at, || filter.left(&subject))),
            None => filter.decide(&subject),
        };
        for counted in decision.counted.into_iter().flatten() {
            if let Some(counter) = filter.counters.get(counted as usize) {
                self.count(counter);
            }
        }
        let (details, hint, learned) = (decision.details(), decision.log_hint, decision.metadata);
        self.found.learn(rbac::HTTP, learned);
        if let Some(hint) = hint {
            self.found.learn("envoy.common", Map::from([("access_log_hint".into(), Value::Bool(hint))]));
        }
        match details {
            None => Ok(()),
            Some(details) => {
                let body = Bytes::from_static(rbac::DENIED_BODY.as_bytes());
                Err(Reply::new(StatusCode::FORBIDDEN, body, details).into())
            }
        }
    }

    /// Texts in filter state, where there are any.
    fn filter_state(&self, head: &Head) -> Vec<(Name, String)> {
        let of_request = self.hcm.filters.iter().filter_map(|f| match f {
            HttpFilter::SetFilterState { on_request, .. } => Some(on_request),
            _ => None,
        });
        let mut out = Vec::new();
        for sets in std::iter::once(&self.conn.info.chain.on_new_connection).chain(of_request) {
            let view = head.view();
            for FilterStateSet { key, value, .. } in sets {
                if let FilterStateKey::Text(name) = key {
                    let text = value.text(&super::service::request_facts(self.conn, self.exchange, &view));
                    out.push((Arc::clone(name), text));
                }
            }
        }
        out
    }

    async fn jwt(&mut self, filter: &JwtAuthn, here: Option<&JwtHere>, head: &mut Head) -> Result<(), Failure> {
        let [allowed, denied, bypassed] = &filter.counters;
        let view = head.view();
        if filter.bypasses(&view) {
            self.count(bypassed);
            self.count(allowed);
            return Ok(());
        }
        let refused = |refusal: jwt::Refusal| -> Failure {
            let text = match refusal.text {
                Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
                Cow::Owned(text) => text.into(),
            };
            let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::UNAUTHORIZED);
            let mut reply = Reply::new(status, text, refusal.details);
            if let Some(value) = refusal.challenge.and_then(|c| http::HeaderValue::from_str(&c).ok()) {
                reply.headers.insert(http::header::WWW_AUTHENTICATE, value);
            }
            reply.into()
        };
        let requirement = match filter.requirement(here, &view, &self.facts) {
            Ok(Some(requirement)) => Arc::clone(requirement),
            Ok(None) => {
                self.count(allowed);
                return Ok(());
            }
            Err(refusal) => {
                self.count(denied);
                return Err(refused(refusal));
            }
        };
        let path = view.path.to_owned();
        let authority = head.authority.to_str().unwrap_or_default().to_owned();
        let scheme = head.scheme;
        let mut message = Message { headers: &mut head.parts.headers, path: Cow::Borrowed(&path) };
        if filter.has_token(&message) {
            let worker = &self.conn.worker;
            for remote in filter.remotes(&requirement) {
                worker.jwks.ensure(&worker.local, &worker.upstreams, &self.live.config, remote).await;
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let jwks = &self.conn.worker.jwks;
        let verdict = filter.check(&requirement, &mut message, (scheme, &authority), now, &|remote| jwks.get(remote));
        let new_path = match message.path {
            Cow::Owned(new) => Some(new),
            Cow::Borrowed(_) => None,
        };
        match verdict {
            Verdict::Bypassed => Ok(()),
            Verdict::Refused(refusal) => {
                self.count(denied);
                Err(refused(refusal))
            }
            Verdict::Passed(passed) => {
                self.count(allowed);
                if let Some(new) = new_path {
                    set_path(&mut head.parts, &new)?;
                }
                self.found.learn(jwt::NAMESPACE, passed.metadata);
                if passed.clear_route {
                    self.clear_route(head);
                }
                Ok(())
            }
        }
    }

    async fn fault(&mut self, fault: &Fault, head: &Head) -> Result<(), Failure> {
        let worker = Rc::clone(&self.conn.worker);
        let cluster = match &self.lookup {
            Lookup::Route(routed) => match &routed.route.action {
                Action::Forward(action) => {
                    action.choose_cluster(&head.view(), self.facts.random).map(|c| c.name.to_owned())
                }
                _ => None,
            },
            _ => None,
        };
        let view = head.view();
        if !fault.applies(&view, cluster.as_deref().unwrap_or_default()) {
            return Ok(());
        }
        let mut random = || worker.random();
        let (delay, abort) = (fault.delay(&view, &mut random), fault.abort(&view, &mut random));
        let most = fault.max_active.unwrap_or(u32::MAX);
        if delay.is_none() && abort.is_none() || worker.faults.get() >= most {
            return Ok(());
        }
        worker.faults.set(worker.faults.get().saturating_add(1));
        let _active = scopeguard(&worker.faults);
        if let Some(delay) = delay {
            self.found.delayed = true;
            self.count(&"fault.delays_injected".into());
            tokio::time::sleep(delay).await;
        }
        let Some(abort) = abort else { return Ok(()) };
        self.count(&"fault.aborts_injected".into());
        let body = fault.body.clone().unwrap_or(Bytes::from_static(b"fault filter abort"));
        let (status, grpc) = match abort {
            Abort::Http(status) => (status, None),
            // Envoy answers 200 to those who do not speak gRPC.
            Abort::Grpc(grpc) => (StatusCode::OK, Some(grpc)),
        };
        let mut reply = Reply::new(status, body, details::FAULT_ABORT.to_owned());
        reply.grpc = grpc;
        reply.flag = if self.found.delayed { flag::DELAYED_AND_ABORTED } else { flag::FAULT };
        Err(reply.into())
    }

    fn cors(&mut self, at: usize, policy: &CorsPolicy, head: &Head) -> Result<(), Failure> {
        // Only requests that are forwarded have a policy, as in Envoy.
        if !matches!(&self.lookup, Lookup::Route(r) if r.route.forward().is_some()) {
            return Ok(());
        }
        let worker = &self.conn.worker;
        match policy.decide(&head.view(), &mut || worker.random()) {
            Cors::None => Ok(()),
            Cors::Respond(headers) => {
                self.found.respond.push((at, Respond::Set(headers)));
                Ok(())
            }
            Cors::Preflight(headers) => {
                let mut reply = Reply::new(StatusCode::OK, Bytes::new(), details::CORS.to_owned());
                reply.headers = headers;
                reply.local = false;
                Err(reply.into())
            }
        }
    }

    fn rate(&mut self, limit: &LocalRateLimit, head: &mut Head) -> Result<(), Failure> {
        let worker = Rc::clone(&self.conn.worker);
        let now = worker.shared.started.elapsed();
        let rate = limit.decide(now, &mut || worker.random());
        let [enabled, ok, limited, enforced] = &limit.counters;
        let own = |counter: &Name| worker.stats.filter(None, counter);
        if rate != Rate::Off {
            own(enabled);
        }
        match rate {
            Rate::Off => Ok(()),
            Rate::Ok => {
                own(ok);
                Ok(())
            }
            Rate::NotEnforced => {
                own(limited);
                self.change_request(head, |headers, facts| limit.request.apply(Side::Request, headers, facts));
                Ok(())
            }
            Rate::Limited => {
                own(limited);
                own(enforced);
                let body = Bytes::from_static(b"local_rate_limited");
                let mut reply = Reply::new(limit.status, body, details::LOCAL_RATE_LIMITED.to_owned());
                let view = head.view();
                limit.response.apply(
                    Side::Response,
                    &mut reply.headers,
                    &super::service::request_facts(self.conn, self.exchange, &view),
                );
                reply.flag = flag::RATE_LIMITED;
                reply.grpc = Some(if limit.resource_exhausted { 8 } else { 14 });
                Err(reply.into())
            }
        }
    }
}

/// Counts down at its end.
struct Down<'a>(&'a std::cell::Cell<u32>);

fn scopeguard(counter: &std::cell::Cell<u32>) -> Down<'_> {
    Down(counter)
}

impl Drop for Down<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}
