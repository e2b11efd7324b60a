//! The spans of a request: begun when it is routed, told to the upstream with each attempt, sent when it has ended.
//!
//! Invariant: what is decided is `proxy-core`'s. A request that is not sampled costs its context and no record.

use super::connection::HttpConn;
use super::head::Head;
use crate::export::{Entry, Head as Kind};
use crate::local::Local;
use carrick_proxy_core::facts::Facts;
use carrick_proxy_core::model::Name;
use carrick_proxy_core::model::listener::Direction;
use carrick_proxy_core::model::route::Route;
use carrick_proxy_core::model::tracing::{Tracer, Tracing};
use carrick_proxy_core::otlp::{self, Span, Status};
use carrick_proxy_core::trace::{self, Context, DECORATOR, Reason};
use http::{HeaderMap, HeaderValue};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SERVER: i32 = 2;
const CLIENT: i32 = 3;
const FAILED: i32 = 2;

/// A request's place in its trace.
pub(super) struct Trace {
    tracing: Arc<Tracing>,
    tracer: Arc<Tracer>,
    pub context: Context,
    route: Option<Arc<Route>>,
    name: String,
    /// For the caller, who may name its span by it.
    told: Option<Name>,
    egress: bool,
    attempts: Vec<Attempt>,
    /// Hexadecimal, for logs.
    pub shown: (String, String),
}

struct Attempt {
    span: [u8; 8],
    began: Instant,
    ended: Option<Instant>,
}

/// Marks a request, and begins its span where there is a tracer and a context that can be followed.
pub(super) fn begin(
    conn: &HttpConn,
    tracing: &Arc<Tracing>,
    route: Option<&Arc<Route>>,
    head: &mut Head,
    facts: impl FnOnce(&Head, &dyn Fn(&Facts<'_>) -> String) -> String,
) -> Option<Box<Trace>> {
    let worker = &conn.worker;
    let headers = &mut head.parts.headers;
    let reason = trace::decide(tracing, route.map(|r| &r.tracing), headers, || worker.random());
    let s = &conn.stats;
    match reason {
        Reason::None => &s.tracing_not_traceable,
        Reason::Sampling => &s.tracing_random_sampling,
        Reason::Forced => &s.tracing_service_forced,
        Reason::Client => &s.tracing_client_enabled,
    }
    .inc();
    let tracer = tracing.tracer.as_ref()?;
    let context = Context::of(headers, reason != Reason::None, || worker.random())?;
    let egress = conn.info.listener.direction == Direction::Outbound;
    let decorator = route.and_then(|r| r.tracing.decorator.as_ref()).filter(|(name, _)| !name.is_empty());
    let mut name = decorator.map(|(name, _)| name.to_string());
    let mut told = decorator.filter(|(_, propagate)| *propagate).map(|(name, _)| Arc::clone(name));
    if egress {
        if let Some(value) = told.take().and_then(|n| HeaderValue::from_str(&n).ok()) {
            headers.insert(DECORATOR, value);
        }
    } else if let Some(theirs) = headers.remove(DECORATOR)
        && let Some(theirs) = theirs.to_str().ok().filter(|t| !t.is_empty())
    {
        (name, told) = (Some(theirs.to_owned()), None);
    }
    if let Some(format) = &tracing.operation {
        name = Some(facts(head, &|facts| format.text(facts))).filter(|n| !n.is_empty());
    }
    let name = name.unwrap_or_else(|| match egress {
        true => format!("egress {}", head.authority.to_str().unwrap_or_default()),
        false => "ingress".to_owned(),
    });
    Some(Box::new(Trace {
        tracing: Arc::clone(tracing),
        tracer: Arc::clone(tracer),
        shown: (trace::hex(&context.trace), trace::hex(&context.span)),
        context,
        route: route.map(Arc::clone),
        name,
        told,
        egress,
        attempts: Vec::new(),
    }))
}

impl Trace {
    /// Whether a record is to be kept of the request.
    pub fn is_sent(&self) -> bool {
        self.context.sampled
    }

    /// Tells an attempt's upstream.
    pub fn tell(&mut self, local: &Local, headers: &mut HeaderMap) {
        let mut span = self.context.span;
        if self.tracing.spawn_upstream {
            span = local.random().max(1).to_be_bytes();
            let now = Instant::now();
            if let Some(last) = self.attempts.last_mut() {
                last.ended.get_or_insert(now);
            }
            self.attempts.push(Attempt { span, began: now, ended: None });
        }
        if !self.tracing.no_propagation {
            self.context.tell(span, headers);
        }
    }

    /// The operation's name, to the caller or from the upstream.
    pub fn respond(&mut self, headers: &mut HeaderMap) {
        if self.egress {
            if let Some(theirs) = headers.remove(DECORATOR)
                && let Some(theirs) = theirs.to_str().ok().filter(|t| !t.is_empty())
            {
                theirs.clone_into(&mut self.name);
            }
        } else if let Some(value) = self.told.as_ref().and_then(|n| HeaderValue::from_str(n).ok()) {
            headers.insert(DECORATOR, value);
        }
    }

    /// Sends the spans.
    pub fn finish(&self, local: &Local, facts: &Facts<'_>, took: Duration) {
        let now = Instant::now();
        let end = facts.start.unwrap_or_default() + took;
        let node = &local.shared.options.workload;
        let put = |span: Span| {
            let to = &self.tracer.collector;
            local.log.exports.put(to, || Kind::Spans(Arc::clone(&self.tracer)), Entry::Span(span));
        };
        let environment = |name: &str| match local.shared.options.expose_environment {
            true => std::env::var(name).ok(),
            false => None,
        };
        let tags = self.route.iter().flat_map(|r| &r.tracing.tags).chain(&self.tracing.tags);
        let tags: Vec<(&str, String)> =
            tags.filter_map(|t| Some((&*t.name, trace::tag(t, facts, &environment)?))).collect();
        let span = |id: [u8; 8],
                    parent: Option<[u8; 8]>,
                    name: &str,
                    kind: i32,
                    times: (Duration, Duration),
                    own: Vec<(&'static str, String)>| {
            let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
            let failed = facts.status.is_some_and(|s| s >= 500 || (kind == CLIENT && s >= 400));
            let below = parent == Some(self.context.span);
            let mut attributes = Vec::with_capacity(24);
            if !below {
                attributes.push(otlp::text("node_id", node.node.as_str()));
                attributes.push(otlp::text("zone", node.zone.as_str()));
            }
            attributes.extend(own.into_iter().map(|(k, v)| otlp::text(k, v)));
            attributes.extend(tags.iter().map(|(k, v)| otlp::text(k, v.as_str())));
            Span {
                trace_id: self.context.trace.to_vec(),
                span_id: id.to_vec(),
                trace_state: self.context.state.clone(),
                parent_span_id: parent.map(|p| p.to_vec()).unwrap_or_default(),
                name: name.to_owned(),
                kind,
                start_time_unix_nano: nanos(times.0),
                end_time_unix_nano: nanos(times.1),
                attributes,
                status: failed.then(|| Status { message: String::new(), code: FAILED }),
                flags: self.context.flags(below),
            }
        };
        for attempt in &self.attempts {
            let name = match &self.tracing.upstream_operation {
                Some(format) => format.text(facts),
                None => format!("router {} egress", facts.cluster.unwrap_or_default()),
            };
            let before = |at: Instant| end.saturating_sub(now.saturating_duration_since(at));
            let times = (before(attempt.began), before(attempt.ended.unwrap_or(now)));
            put(span(attempt.span, Some(self.context.span), &name, CLIENT, times, trace::upstream(facts)));
        }
        let kind = if self.egress && !self.tracing.spawn_upstream { CLIENT } else { SERVER };
        let times = (facts.start.unwrap_or_default(), end);
        let own = trace::downstream(facts, self.tracing.max_path);
        put(span(self.context.span, self.context.parent, &self.name, kind, times, own));
    }
}
