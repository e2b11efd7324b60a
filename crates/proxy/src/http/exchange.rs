//! One request's record from its arrival to the end of its response: counters, log line, and what it holds upstream.
//!
//! Invariant: recorded exactly once, at the drop, whatever ended it; a connection goes back to its pool only when the
//! response ended in order.

use super::connection::HttpConn;
use super::filters::Found;
use super::trace::Trace;
use crate::alarm::Alarm;
use crate::counter::Counter;
use crate::io::stream::Shown;
use crate::message::h2::pipe::Writer;
use crate::message::request_body::Intake;
use crate::metrics::{GrpcFrames, KeyRef, Measured, principals};
use crate::names::{details, flag};
use crate::peers::is_mesh;
use crate::upstream::ClusterState;
use crate::upstream::cluster::ActiveRequest;
use crate::upstream::pool::{Home, Http1, StreamGuard};
use bytes::Bytes;
use carrick_proxy_core::expr::Val;
use carrick_proxy_core::facts::Facts;
use carrick_proxy_core::model::EndpointSet;
use carrick_proxy_core::model::expr::Expr;
use carrick_proxy_core::model::route::{Route, Target};
use carrick_proxy_core::peer::Peer;
use carrick_proxy_core::request::RequestHead;
use http::{HeaderMap, Method};
use http_body::Frame;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::Sleep;

/// What a request holds upstream until its response has ended.
pub enum Checkout {
    /// A whole connection.
    Http1(Http1, Home),
    /// A stream.
    Http2(StreamGuard),
}

/// The request as the access log shows it.
#[derive(Debug, Default)]
pub struct Logged {
    /// Method.
    pub method: Method,
    /// Path with query.
    pub path: String,
    /// Host.
    pub authority: String,
    /// Headers, as they were routed.
    pub headers: HeaderMap,
    /// Response headers.
    pub response: HeaderMap,
    /// Response trailers.
    pub trailers: HeaderMap,
}

impl Logged {
    /// As decisions and formats see it.
    pub(super) fn view<'a>(&'a self, scheme: &'a str) -> RequestHead<'a> {
        RequestHead {
            method: self.method.as_str(),
            path: &self.path,
            authority: &self.authority,
            scheme,
            headers: &self.headers,
        }
    }
}

/// See the module.
pub struct Exchange {
    pub(super) conn: Rc<HttpConn>,
    pub(super) started: Instant,
    /// Body bytes from the client; the request body counts them.
    pub(super) received: Rc<Intake>,
    pub(super) sent: u64,
    pub(super) status: u16,
    pub(super) flags: &'static str,
    pub(super) details: &'static str,
    /// Instead of `details`, where a filter has its own words.
    pub(super) own_details: Option<Box<str>>,
    /// What filters found out.
    pub(super) found: Option<Box<Found>>,
    pub(super) failure: Option<String>,
    pub(super) cluster: Option<Rc<ClusterState>>,
    pub(super) route: Option<Arc<Route>>,
    pub(super) endpoint: Option<(Arc<EndpointSet>, usize)>,
    pub(super) upstream: Option<SocketAddr>,
    pub(super) upstream_local: Option<SocketAddr>,
    /// Names of both ends of the upstream connection.
    pub(super) shown: Option<Arc<Shown>>,
    /// The workload at the other end.
    pub(super) peer: Option<Arc<Peer>>,
    /// The peer told us its names, so it is told ours.
    pub(super) told: bool,
    /// The client, as far as it is trusted.
    pub(super) client: Option<SocketAddr>,
    /// Protocol towards the upstream.
    pub(super) upstream_protocol: Option<&'static str>,
    /// Its place in a trace.
    pub(super) trace: Option<Box<Trace>>,
    /// The request's host, where metrics need it.
    pub(super) host: Option<Arc<str>>,
    answered: GrpcFrames,
    pub(super) attempts: u32,
    pub(super) responded: Option<Duration>,
    pub(super) is_grpc: bool,
    /// The request is a HEAD.
    pub(super) is_head: bool,
    /// The request came with a body, or said that one follows.
    pub(super) has_body: bool,
    /// The connection ends with the answer, where connections carry one request at a time.
    pub(super) closing: bool,
    pub(super) grpc_status: Option<i32>,
    pub(super) protocol: http::Version,
    pub(super) active: Option<ActiveRequest>,
    pub(super) checkout: Option<Checkout>,
    /// Writes to the upstream of a tunnel that is a stream.
    pub(super) tunnel: Option<Writer>,
    pub(super) logged: Option<Box<Logged>>,
    pub(super) idle: Option<Alarm>,
    pub(super) deadline: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

impl Exchange {
    /// A request that has just come.
    pub(super) fn new(conn: Rc<HttpConn>, protocol: http::Version) -> Box<Exchange> {
        conn.begin(protocol);
        Box::new(Exchange {
            conn,
            started: Instant::now(),
            received: Rc::default(),
            sent: 0,
            status: 0,
            flags: flag::NONE,
            details: "",
            own_details: None,
            found: None,
            failure: None,
            cluster: None,
            route: None,
            endpoint: None,
            upstream: None,
            upstream_local: None,
            shown: None,
            peer: None,
            told: false,
            client: None,
            upstream_protocol: None,
            trace: None,
            host: None,
            answered: GrpcFrames::default(),
            attempts: 0,
            responded: None,
            is_grpc: false,
            is_head: false,
            has_body: false,
            closing: false,
            grpc_status: None,
            protocol,
            active: None,
            checkout: None,
            tunnel: None,
            logged: None,
            idle: None,
            deadline: None,
            ended: false,
        })
    }

    /// The endpoint is a mesh proxy.
    pub(super) fn meets_mesh(&self) -> bool {
        self.endpoint.as_ref().and_then(|(set, at)| set.endpoints.get(*at)).is_some_and(is_mesh)
    }

    /// A piece of the response body went by.
    pub fn passed(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            self.sent = self.sent.saturating_add(data.len() as u64);
            if self.is_grpc {
                self.answered.pass(data);
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            if let Some(l) = &mut self.logged {
                l.trailers.clone_from(trailers);
            }
            self.note_grpc(trailers);
        }
        if let Some(idle) = &mut self.idle {
            idle.stir();
        }
    }

    /// Reads the gRPC status of headers or trailers.
    pub fn note_grpc(&mut self, headers: &HeaderMap) {
        if self.is_grpc {
            let status = headers.get("grpc-status").and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
            self.grpc_status = status.or(self.grpc_status);
        }
    }

    /// Ready when the response has paused for too long or taken too long altogether.
    pub fn poll_limits(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(sleep) = &mut self.deadline
            && sleep.as_mut().poll(cx).is_ready()
        {
            self.flags = flag::UPSTREAM_TIMEOUT;
            return Poll::Ready(());
        }
        if let Some(idle) = &mut self.idle
            && idle.poll(cx).is_ready()
        {
            self.flags = flag::STREAM_IDLE;
            self.conn.stats.downstream_rq_idle_timeout.inc();
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// The response ended in order.
    pub fn finished(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        self.active = None;
        match self.checkout.take() {
            Some(Checkout::Http1(connection, home)) => home.give_back(&self.conn.worker.local, connection),
            Some(Checkout::Http2(stream)) => drop(stream),
            None => {}
        }
    }

    /// The upstream broke off in the middle of the response.
    pub fn failed(&mut self) {
        self.ended = true;
        self.checkout = None;
        if self.flags == flag::NONE {
            self.flags = flag::UPSTREAM_CLOSED;
        }
    }

    fn record(&mut self) {
        let conn = &self.conn;
        if !self.ended && self.flags == flag::NONE {
            self.flags = flag::DOWNSTREAM_CLOSED;
        }
        if self.flags == flag::NONE && self.found.as_ref().is_some_and(|f| f.delayed) {
            self.flags = flag::DELAYED;
        }
        let class = |two: &Counter, three: &Counter, four: &Counter, five: &Counter| match self.status / 100 {
            2 => two.inc(),
            3 => three.inc(),
            4 => four.inc(),
            5 => five.inc(),
            _ => {}
        };
        let s = &conn.stats;
        class(&s.downstream_rq_2xx, &s.downstream_rq_3xx, &s.downstream_rq_4xx, &s.downstream_rq_5xx);
        if let Some(state) = &self.cluster {
            let c = &state.stats;
            if self.attempts > 0 && self.status > 0 {
                c.upstream_rq_completed.inc();
                class(&c.upstream_rq_2xx, &c.upstream_rq_3xx, &c.upstream_rq_4xx, &c.upstream_rq_5xx);
            }
        }
        let took = self.started.elapsed();
        self.count(took);
        if self.logged.is_some() {
            self.log(took);
            if let Some(trace) = self.trace.as_deref().filter(|t| t.is_sent()) {
                self.with_facts(took, |facts| trace.finish(&self.conn.worker, facts, took));
            }
        }
        conn.end();
    }

    /// Istio's metrics.
    fn count(&self, took: Duration) {
        let conn = &self.conn;
        let (peer_principal, own_principal) = if conn.outbound {
            principals(self.shown.as_ref())
        } else {
            let tls = conn.info.tls.as_ref();
            (tls.and_then(|t| t.principal.as_ref()), tls.and_then(|t| t.local.as_ref()))
        };
        let config = conn.counted.as_ref();
        let answers = match config {
            Some(config) if !config.asked.is_empty() => self.with_facts(took, |facts| {
                let answer = |e: &Expr| e.eval(facts).and_then(Val::into_text).unwrap_or_else(|| "unknown".to_owned());
                config.asked.iter().map(|e| answer(e).into()).collect()
            }),
            _ => Vec::new(),
        };
        let endpoint = match (&self.peer, &self.endpoint) {
            (None, Some((set, at))) if conn.outbound => set.endpoints.get(*at),
            _ => None,
        };
        let of_endpoint = endpoint.and_then(|e| conn.worker.peers.of_endpoint(e));
        let key = KeyRef {
            outbound: conn.outbound,
            service: self.cluster.as_ref().map(|c| &c.service),
            host: self.host.as_ref().filter(|_| self.cluster.as_ref().is_none_or(|c| c.service.host.is_empty())),
            code: self.status,
            flags: self.flags,
            grpc: self.grpc_status,
            protocol: if self.is_grpc { "grpc" } else { "http" },
            mutual: conn.info.mutual(),
            peer: self.peer.as_ref().or(of_endpoint.as_ref()),
            peer_principal,
            own_principal,
            config,
            answers: &answers,
        };
        let measured = Measured {
            took,
            request_bytes: self.received.get(),
            response_bytes: self.sent,
            request_messages: self.received.messages(),
            response_messages: self.answered.count,
        };
        conn.worker.stats.sets.request(key, &mut conn.memo.borrow_mut(), &measured);
    }

    fn log(&self, took: Duration) {
        let Some(hcm) = self.conn.hcm() else { return };
        self.with_facts(took, |facts| {
            self.conn.worker.log.write(&hcm.access_logs, facts, self.status, took, self.flags)
        });
    }

    /// All that is known of the request, for logs and labels.
    fn with_facts<R>(&self, took: Duration, f: impl FnOnce(&Facts<'_>) -> R) -> R {
        let nothing;
        let l = match self.logged.as_deref() {
            Some(l) => l,
            None => {
                nothing = Logged::default();
                &nothing
            }
        };
        // Of a request that was answered before it was forwarded the route names the cluster.
        let live;
        let cluster = match (&self.cluster, &self.route) {
            (Some(state), _) => Some(&*state.cluster),
            (None, Some(route)) => match route.forward().map(|a| &a.target) {
                Some(Target::Cluster(name)) => {
                    live = self.conn.worker.live();
                    live.config.clusters.get(name).map(|c| &**c)
                }
                _ => None,
            },
            _ => None,
        };
        let grpc_told = self.grpc_status.and_then(|g| u16::try_from(g).ok());
        let of_http = (self.is_grpc && self.status > 0).then(|| super::reply::grpc_code(self.status));
        let asked = self.received.ended.get().map(|at| at.saturating_duration_since(self.started));
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let info = &self.conn.info;
        let tls = info.tls.as_ref();
        let peer = tls.and_then(|t| t.peer.as_ref());
        let fingerprint = peer.map(carrick_pki::tls::VerifiedPeer::sha256_hex);
        let metadata = self.endpoint.as_ref().and_then(|(set, i)| set.endpoints.get(*i)).map(|e| &e.metadata);
        let facts = Facts {
            request: Some(RequestHead {
                method: l.method.as_str(),
                path: &l.path,
                authority: &l.authority,
                scheme: if tls.is_some() { "https" } else { "http" },
                headers: &l.headers,
            }),
            status: Some(self.status),
            response: Some(&l.response),
            trailers: Some(&l.trailers),
            protocol: Some(super::protocol_name(self.protocol)),
            local: Some(info.local),
            remote: Some(self.client.unwrap_or(info.peer)),
            direct_remote: Some(info.direct),
            peer_uri_san: tls.and_then(|t| t.principal.as_deref()),
            local_uri_san: tls.and_then(|t| t.local.as_deref()),
            peer_subject: peer.map(carrick_pki::tls::VerifiedPeer::subject),
            peer_fingerprint: fingerprint.as_deref(),
            tls_version: tls.map(|t| t.version),
            tls_cipher: tls.map(|t| t.cipher.as_str()),
            server_name: info.server_name.as_deref(),
            upstream: self.upstream,
            upstream_local: self.upstream_local,
            upstream_tls: self.shown.as_ref().map(|s| s.version),
            hostname: Some(&self.conn.worker.hostname),
            cluster: cluster.map(|c| &*c.name),
            route: self.route.as_ref().map(|r| &*r.name),
            chain: Some(&info.chain.name),
            route_metadata: self.route.as_ref().map(|r| &r.metadata),
            cluster_metadata: cluster.map(|c| &c.metadata),
            endpoint_metadata: metadata,
            start: Some(crate::log::since_epoch(took)),
            duration_ms: Some(millis(took)),
            request_ms: asked.map(millis),
            // What we answered ourselves has no time of the upstream's.
            response_ms: self.responded.filter(|_| self.details == details::VIA_UPSTREAM).map(millis),
            bytes_received: self.received.get(),
            bytes_sent: self.sent,
            flags: (self.flags != flag::NONE).then_some(self.flags),
            code_details: Some(self.own_details.as_deref().unwrap_or(self.details)),
            dynamic_metadata: self.found.as_ref().map(|f| &f.metadata),
            upstream_failure: self.failure.as_deref(),
            // Looking for an endpoint is an attempt too.
            attempts: Some(self.attempts.max(u32::from(self.cluster.is_some()))),
            connection_id: Some(info.id),
            grpc_told,
            grpc_status: grpc_told.or(of_http),
            upstream_protocol: self.upstream_protocol,
            trace: self.trace.as_ref().map(|t| (t.shown.0.as_str(), t.shown.1.as_str())),
            ..Facts::default()
        };
        f(&facts)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.record();
        self.conn.spare.set(self.idle.take().map(Alarm::into_timer));
    }
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange").field("status", &self.status).finish_non_exhaustive()
    }
}
