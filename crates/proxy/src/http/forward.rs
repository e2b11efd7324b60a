//! Sending a request upstream: endpoint, connection, attempt, retry.
//!
//! Invariant: a request is sent again only if its route's policy says so, or if the upstream has provably seen nothing of
//! it (see `io::witness`), or if it was a safe request (RFC 9110 §9.2.1) without body on a reused connection that ended before a byte of
//! response; and never once a response has begun to reach the client.

use super::connection::HttpConn;
use super::exchange::{Checkout, Exchange};
use super::head::{Head, Routed, decimal, weighted};
use super::mirror;
use super::reply::Failure;
use super::upgrade;
use crate::alarm::Alarm;
use crate::message::h1::client::SendError;
use crate::message::h1::maps;
use crate::message::h2::pipe::pipe;
use crate::message::h2::{Fault, Protocol};
use crate::message::incoming::{Broken, Incoming};
use crate::message::request_body::{Intake, REPLAY_LIMIT, Replay, RequestBody, Source};
use crate::upstream::choose::{self, Wish};
use crate::upstream::cluster::ClusterState;
use crate::upstream::connect::{ConnectError, Target};
use crate::upstream::pool::{self, Need, PoolKey, Taken};
use crate::worker::Live;
use carrick_proxy_core::balance::hash_request;
use carrick_proxy_core::model::cluster::{LbPolicy, TransportSocket};
use carrick_proxy_core::model::filter::UpstreamOverrides;
use carrick_proxy_core::model::hcm::HeaderCase;
use carrick_proxy_core::model::route::{RouteAction, SubsetLabels};
use carrick_proxy_core::outlier::Outcome;
use carrick_proxy_core::retry::{Reset, RetryDecision, RetryState};
use carrick_proxy_core::rewrite;
use carrick_proxy_core::routing::ClusterChoice;
use carrick_proxy_core::timeouts::Timeouts;
use http::header::{COOKIE, HOST, HeaderName, HeaderValue, SET_COOKIE, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, Response, Uri, Version, request};
use http_body::Body;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::time::Sleep;

const ATTEMPTS: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
/// How often a request of which nobody has seen anything is sent anew: a peer that is going away may say so on several connections.
const UNSEEN_RESENDS: u32 = 3;
const ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");
const EXPECTED_TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// Where a request goes.
pub(super) struct Forward<'a> {
    pub conn: &'a Rc<HttpConn>,
    pub limits: Timeouts,
    pub live: &'a Live,
    pub routed: &'a Routed,
    pub action: &'a RouteAction,
    pub cluster: &'a str,
    pub overrides: Rc<UpstreamOverrides>,
    pub upgrade: Option<&'a str>,
    /// Beginning of the body that a filter has read.
    pub read: Option<bytes::Bytes>,
}

/// The body of a request, as attempts draw on it.
enum Supply {
    Empty,
    /// Once only.
    Once(Option<Source>),
    /// Again, as long as it fits.
    Again(Replay),
}

impl Supply {
    fn next(&mut self) -> Option<RequestBody> {
        match self {
            Supply::Empty => Some(RequestBody::Empty),
            Supply::Once(source) => source.take().map(RequestBody::Streamed),
            Supply::Again(replay) => replay.again().map(RequestBody::Replayable),
        }
    }

    fn can_restart(&self) -> bool {
        match self {
            Supply::Empty => true,
            Supply::Once(source) => source.is_some(),
            Supply::Again(replay) => replay.can_restart(),
        }
    }
}

// One lives at a time, on its way from one function to the next.
#[allow(clippy::large_enum_variant)]
enum Attempt {
    /// With the request's head, where it is still there.
    Response(Response<Incoming>, Checkout, Option<request::Parts>),
    /// Nothing of the request has reached the upstream; here it is again.
    Unsent(Box<Request<RequestBody>>),
    /// `seen`: the upstream may have seen some of it. `reused`: on a connection that had served before.
    /// `unseen`: it provably has not, although something was sent.
    Failed {
        failure: Failure,
        reset: Reset,
        seen: bool,
        reused: bool,
        unseen: bool,
        /// The request's head, where it is still there.
        head: Option<Box<request::Parts>>,
    },
}

/// Runs attempts until there is a response or a reason to give up; the flag says that retries were used up.
pub(super) async fn run(
    plan: &Forward<'_>,
    head: &mut Head,
    body: Incoming,
    exchange: &mut Exchange,
) -> Result<Response<Incoming>, (Failure, bool)> {
    let worker = &plan.conn.worker;
    let Some(state) = worker.upstreams.get(&worker.local, &plan.live.config, plan.cluster) else {
        return Err((Failure::NoCluster(plan.action.cluster_not_found), false));
    };
    exchange.cluster = Some(Rc::clone(&state));
    let policy = plan.action.retry.as_deref().or(plan.routed.virtual_host.retry.as_deref());
    // RetryState reads the head once; it keeps the policy only.
    let mut retry = if plan.upgrade.is_some() { None } else { RetryState::new(policy, &head.view()) };
    let has_body = !body.is_end_stream() || plan.read.as_ref().is_some_and(|r| !r.is_empty());
    let mut mirrors = if plan.upgrade.is_some() { Vec::new() } else { mirror::chosen(plan, head, has_body) };
    let per_try = plan.limits.per_try;
    let limit = plan.limits.global;
    let supply = if plan.upgrade.is_some() || !has_body {
        Supply::Empty
    } else {
        // Short bodies are kept in any case: the connection may be gone without the upstream having seen anything.
        let short = body.size_hint().exact().is_some_and(|n| n <= REPLAY_LIMIT as u64);
        let taps = mirrors.iter_mut().filter_map(|m| m.tap()).collect();
        exchange.received.grpc.set(exchange.is_grpc);
        let source = Source::new(body, Rc::clone(&exchange.received), taps).after(plan.read.clone());
        if retry.is_some() || short { Supply::Again(Replay::new(source)) } else { Supply::Once(Some(source)) }
    };
    for mirror in mirrors {
        mirror.send(plan, head);
    }
    let started = Instant::now();
    let longest = plan.limits.max_stream.or(state.cluster.max_stream_duration);
    let end = |limit: Option<Duration>| limit.map(|l| Box::pin(tokio::time::sleep(l)));
    let mut waits = Waits {
        response: end(limit),
        stream: end(longest),
        idle: plan.limits.idle.map(|l| Alarm::new(l, plan.conn.spare.take())),
        received: Rc::clone(&exchange.received),
        seen: 0,
    };
    let tried = {
        let mut tries = pin!(attempts(plan, &state, head, supply, &mut retry, per_try, limit, exchange));
        std::future::poll_fn(|cx| match tries.as_mut().poll(cx) {
            Poll::Ready(done) => Poll::Ready(Ok(done)),
            Poll::Pending => waits.poll(cx).map(Err),
        })
        .await
    };
    let response = match tried {
        Ok(done) => done?,
        Err(over) => {
            if matches!(over, Failure::Timeout) {
                state.stats.upstream_rq_timeout.inc();
                plan.conn.stats.downstream_rq_timeout.inc();
            }
            tracing::debug!(cluster = %state.cluster.name, "gave up after {:?}: {over:?}", started.elapsed());
            return Err((over, false));
        }
    };
    exchange.deadline = waits.response.or(waits.stream);
    exchange.idle = waits.idle;
    if let Some(idle) = &mut exchange.idle {
        idle.stir();
    }
    Ok(response)
}

/// What ends the wait for a response.
struct Waits {
    response: Option<Pin<Box<Sleep>>>,
    stream: Option<Pin<Box<Sleep>>>,
    idle: Option<Alarm>,
    received: Rc<Intake>,
    seen: u64,
}

impl Waits {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        let over = |sleep: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>| {
            sleep.as_mut().is_some_and(|s| s.as_mut().poll(cx).is_ready())
        };
        if over(&mut self.response, cx) {
            return Poll::Ready(Failure::Timeout);
        }
        if over(&mut self.stream, cx) {
            return Poll::Ready(Failure::MaxDuration);
        }
        if let Some(idle) = &mut self.idle {
            while idle.poll(cx).is_ready() {
                // A client that still sends is not idle.
                if std::mem::replace(&mut self.seen, self.received.get()) == self.received.get() {
                    return Poll::Ready(Failure::StreamIdle);
                }
                idle.stir();
            }
        }
        Poll::Pending
    }
}

#[allow(clippy::too_many_arguments)]
async fn attempts(
    plan: &Forward<'_>,
    state: &Rc<ClusterState>,
    head: &mut Head,
    mut supply: Supply,
    retry: &mut Option<RetryState<'_>>,
    per_try: Option<Duration>,
    limit: Option<Duration>,
    exchange: &mut Exchange,
) -> Result<Response<Incoming>, (Failure, bool)> {
    let worker = &plan.conn.worker;
    let high = plan.action.high_priority;
    let h2 = pool::speaks_h2(state.cluster.http, plan.conn.h2);
    // Nobody asks for a hash where hosts are chosen in another way, so no cookie is made either.
    let hashes = matches!(state.cluster.lb, LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. });
    let (hash, set_cookie) = if plan.action.hash.is_empty() || !hashes {
        (None, None)
    } else {
        hash_request(&plan.action.hash, &head.view(), Some(plan.conn.info.peer.ip()), worker.random())
    };
    let subset = subset(plan);
    let careful = plan.upgrade.is_none() && !(is_safe(&head.parts.method) && matches!(supply, Supply::Empty));
    let silent = retry.as_ref().and_then(RetryState::per_try_idle).is_some();
    // The head is given away where an attempt that failed gives it back as it was.
    let kept = plan.upgrade.is_none()
        && (per_try.is_some()
            || silent
            || plan.action.append_x_forwarded_host
            || rewritten_host(plan, head, "").is_some());
    let mut tried: Vec<SocketAddr> = Vec::new();
    let mut priorities: Vec<usize> = Vec::new();
    let mut fresh = false;
    let (mut resent, mut unseen_resends) = (false, 0_u32);
    let mut retrying = None;
    let mut unsent: Option<RequestBody> = None;
    loop {
        // Those of the latest attempts count from time to time only, as the policy says.
        let counted = retry.as_ref().and_then(|r| r.priorities_tried(priorities.len())).unwrap_or(0);
        let wish = Wish {
            subset: &subset,
            tried_priorities: priorities.get(..counted).unwrap_or_default(),
            authority: head.authority.to_str().ok(),
            client: Some((plan.conn.info.peer, plan.conn.info.local)),
            proxy_protocol: None,
            source: plan.conn.info.source(),
            restored: plan.conn.info.restored,
            from_header: original_dst_header(state, &head.parts.headers),
            tried: &tried,
            reselections: retry.as_ref().map_or(0, RetryState::reselections),
            hash,
            overrides: &plan.overrides,
            auto_sni: auto_sni(state, head, || rewritten_host(plan, head, "")),
        };
        let Some(chosen) = choose::choose(&worker.local, &plan.live.config, state, wish).await else {
            state.stats.upstream_cx_none_healthy.inc();
            return Err((Failure::NoHealthy, false));
        };
        let address = chosen.target.address;
        exchange.upstream = chosen.target.pipe.is_none().then_some(address);
        exchange.endpoint = chosen.endpoint;
        let priority = exchange.endpoint.as_ref().and_then(|(set, i)| set.endpoints.get(*i)).map_or(0, |e| e.priority);
        priorities.extend(usize::try_from(priority));
        let Some(active) = state.begin(address, high) else { return Err((Failure::Overflow, false)) };
        exchange.active = Some(active);
        let body = match unsent.take() {
            Some(body) => body,
            None => {
                let Some(body) = supply.next() else { return Err((Failure::Terminated, false)) };
                exchange.attempts = exchange.attempts.saturating_add(1);
                if h2 && plan.upgrade.is_some() {
                    let (to, piped) = pipe();
                    exchange.tunnel = Some(to);
                    RequestBody::Piped(piped)
                } else {
                    body
                }
            }
        };
        let preserve = state.cluster.http1.header_case == HeaderCase::Preserve;
        let mut request = build(plan, head, h2, body, kept, exchange.attempts, limit, &chosen.target, preserve);
        if let Some(trace) = &mut exchange.trace {
            trace.tell(&worker.local, request.headers_mut());
        }
        if let Some(l) = &mut exchange.logged
            && let Some(host) = rewritten_host(plan, head, &chosen.target.hostname)
            && let Ok(host) = host.to_str()
        {
            host.clone_into(&mut l.authority);
        }
        if plan.conn.exchanges() && plan.conn.outbound && exchange.meets_mesh() {
            worker.peers.tell(request.headers_mut());
        }
        let key = PoolKey {
            address,
            transport: Arc::clone(&chosen.target.transport),
            overrides: Rc::clone(&plan.overrides),
            auto_sni: chosen.target.auto_sni.clone(),
            h2,
            // Connections that tell who the client is are that client's own.
            downstream: (state.cluster.pool_per_downstream
                || chosen.target.source.is_some()
                || matches!(*chosen.target.transport, TransportSocket::ProxyProtocol { .. }))
            .then_some(plan.conn.info.id),
        };
        let need = Need { fresh, high, careful };
        let received = Rc::clone(&exchange.received);
        let one = attempt(plan, state, &key, &chosen.target, request, need, exchange);
        let silence = retry.as_ref().and_then(RetryState::per_try_idle);
        let over = if per_try.is_some() { Failure::PerTryTimeout } else { Failure::PerTryIdle };
        let outcome = match (per_try, silence) {
            (None, None) => one.await,
            (limit, silence) => within(limit, silence, &received, Box::pin(one)).await.unwrap_or_else(|| {
                state.stats.upstream_rq_per_try_timeout.inc();
                Attempt::Failed {
                    failure: over,
                    reset: Reset::PerTryTimeout,
                    seen: true,
                    reused: false,
                    unseen: false,
                    head: None,
                }
            }),
        };
        let now = || Instant::now();
        let (failure, reset, seen) = match outcome {
            Attempt::Response(mut response, checkout, sent) => {
                let status = response.status().as_u16();
                if state.cluster.outlier.is_some() {
                    state.outcome(worker, address, Outcome::Status(status), now());
                }
                if let Some(r) = retry
                    && supply.can_restart()
                    && let RetryDecision::After(pause) = r.on_response(
                        status,
                        response.headers(),
                        state.retry_allowed(high),
                        worker.random(),
                        &unix_seconds,
                    )
                {
                    drop(response);
                    drop(checkout);
                    restore(plan, head, sent.filter(|_| !kept));
                    exchange.active = None;
                    tried.push(address);
                    retrying = Some(state.retry());
                    tokio::time::sleep(pause).await;
                    continue;
                }
                if retrying.is_some() && status < 500 {
                    state.stats.upstream_rq_retry_success.inc();
                }
                if h2 && plan.upgrade.is_some_and(|kind| kind != "connect") {
                    upgrade::agreed(&mut response, plan.upgrade.unwrap_or_default());
                }
                if let Checkout::Http1(connection, _) = &checkout
                    && plan.conn.h2
                {
                    // A response that its client takes slowly must not hold the request up.
                    connection.pump(&worker.local);
                }
                if let Some(cookie) = set_cookie.and_then(|c| HeaderValue::from_str(&c).ok()) {
                    response.headers_mut().append(SET_COOKIE, cookie);
                }
                exchange.checkout = Some(checkout);
                if let Some(sent) = sent {
                    maps::give_back(sent.headers);
                }
                return Ok(response);
            }
            Attempt::Unsent(request) => {
                exchange.active = None;
                let (sent, body) = request.into_parts();
                restore(plan, head, Some(sent).filter(|_| !kept));
                if unseen_resends < UNSEEN_RESENDS {
                    // The connection had ended before anything was written: that is no attempt yet.
                    (unseen_resends, fresh) = (unseen_resends.saturating_add(1), true);
                    state.stats.upstream_rq_resent_unseen.inc();
                    unsent = Some(body);
                    continue;
                }
                (Failure::Terminated, Reset::ConnectFailure, false)
            }
            Attempt::Failed { failure, reset, seen, reused, unseen, head: sent } => {
                restore(plan, head, sent.map(|sent| *sent).filter(|_| !kept));
                exchange.active = None;
                let safe = is_safe(&head.parts.method) && matches!(supply, Supply::Empty) && reset == Reset::Remote;
                let refused = (reset == Reset::Refused || unseen) && supply.can_restart();
                let provably = refused && unseen_resends < UNSEEN_RESENDS;
                if plan.upgrade.is_none() && ((reused && safe && !resent) || provably) {
                    unseen_resends = unseen_resends.saturating_add(u32::from(provably));
                    (resent, fresh) = (resent || !provably, true);
                    state.stats.upstream_rq_resent_unseen.inc();
                    continue;
                }
                (failure, reset, seen)
            }
        };
        if matches!(reset, Reset::Remote | Reset::Refused) {
            state.stats.upstream_rq_rx_reset.inc();
        }
        if state.cluster.outlier.is_some() && reset != Reset::Overflow {
            state.outcome(worker, address, Outcome::LocalFailure, now());
        }
        let decision = match retry {
            Some(r) if supply.can_restart() => r.on_reset(reset, seen, state.retry_allowed(high), worker.random()),
            _ => RetryDecision::No,
        };
        match decision {
            RetryDecision::After(pause) => {
                tried.push(address);
                retrying = Some(state.retry());
                fresh = false;
                tokio::time::sleep(pause).await;
            }
            RetryDecision::LimitExceeded => {
                state.stats.upstream_rq_retry_limit_exceeded.inc();
                return Err((failure, true));
            }
            RetryDecision::No | RetryDecision::Overflow => return Err((failure, exchange.attempts > 1)),
        }
    }
}

/// Takes the head of an attempt back, for the next. What an attempt adds every one adds, but our names are for mesh peers only.
fn restore(plan: &Forward<'_>, head: &mut Head, sent: Option<request::Parts>) {
    if let Some(sent) = sent {
        (head.parts.headers, head.parts.uri) = (sent.headers, sent.uri);
        if plan.conn.exchanges() {
            plan.conn.worker.peers.take(&mut head.parts.headers);
        }
    }
}

fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Methods that change nothing, so that asking twice is asking once.
fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

#[allow(clippy::too_many_arguments)]
async fn attempt(
    plan: &Forward<'_>,
    state: &Rc<ClusterState>,
    key: &PoolKey,
    target: &Target,
    request: Request<RequestBody>,
    need: Need,
    exchange: &mut Exchange,
) -> Attempt {
    let worker = &plan.conn.worker;
    let taken = match pool::take(&worker.local, state, key, target, need).await {
        Ok(t) => t,
        Err(e) => {
            let (failure, reset) = match e {
                ConnectError::Overflow => (Failure::Overflow, Reset::Overflow),
                e => (Failure::Connect(e), Reset::ConnectFailure),
            };
            let head = Some(Box::new(request.into_parts().0));
            return Attempt::Failed { failure, reset, seen: false, reused: false, unseen: false, head };
        }
    };
    let mut witness = None;
    let (e, checkout, reused, sent) = match taken {
        Taken::Http1 { mut connection, home, reused } => {
            exchange.upstream_local = connection.local;
            exchange.upstream_protocol = Some("HTTP/1.1");
            exchange.shown.clone_from(&connection.shown);
            witness = (!reused || need.careful).then(|| connection.arm()).flatten().map(|b| (b, connection.fate()));
            let (parts, body) = request.into_parts();
            let result = connection.send(&parts, body, reused).await;
            if let (Ok(_), Some((_, fate))) = (&result, &witness) {
                fate.disarm();
            }
            match result {
                Ok(response) => return Attempt::Response(response, Checkout::Http1(connection, home), Some(parts)),
                Err(SendError::Unsent(body)) => {
                    return Attempt::Unsent(Box::new(Request::from_parts(parts, *body)));
                }
                Err(SendError::Broken(e)) => (e, Checkout::Http1(connection, home), reused, parts),
            }
        }
        Taken::Http2 { stream, reused } => {
            exchange.upstream_local = stream.local();
            exchange.upstream_protocol = Some("HTTP/2");
            exchange.shown = stream.shown();
            let (parts, body) = request.into_parts();
            match stream.sender().send(&parts, body).await {
                Ok(response) => return Attempt::Response(response, Checkout::Http2(stream), Some(parts)),
                Err(SendError::Unsent(body)) => {
                    return Attempt::Unsent(Box::new(Request::from_parts(parts, *body)));
                }
                Err(SendError::Broken(e)) => (e, Checkout::Http2(stream), reused, parts),
            }
        }
    };
    let (failure, reset) = judge(&e);
    // The connection has to be gone before its remains can tell.
    drop(checkout);
    let unseen = match witness {
        Some((before, fate)) => fate.unseen(before, e.is_end()).await,
        None => false,
    };
    let head = Some(Box::new(sent));
    Attempt::Failed { failure, reset, seen: reset != Reset::Refused && !unseen, reused, unseen, head }
}

/// An attempt within its time, and without a longer silence than allowed; `received` moves while the client still sends.
async fn within<F: Future<Output = Attempt>>(
    limit: Option<Duration>,
    silence: Option<Duration>,
    received: &Intake,
    mut one: Pin<Box<F>>,
) -> Option<Attempt> {
    let end = limit.map(|l| tokio::time::Instant::now() + l);
    loop {
        let seen = received.get();
        let quiet = silence.map(|s| tokio::time::Instant::now() + s);
        let next = match (end, quiet) {
            (Some(end), Some(quiet)) => end.min(quiet),
            (end, quiet) => end.or(quiet)?,
        };
        match tokio::time::timeout_at(next, &mut one).await {
            Ok(attempt) => return Some(attempt),
            Err(_) if end.is_none_or(|end| next < end) && received.get() != seen => {}
            Err(_) => return None,
        }
    }
}

/// The subset labels of a request: the route's, and the weighted cluster's over them.
fn subset(plan: &Forward<'_>) -> SubsetLabels {
    let own = weighted(plan.action, plan.cluster).and_then(|w| w.subset.as_ref());
    match (&plan.action.subset, own) {
        (Some(of_route), Some(own)) => {
            let mut merged = (**of_route).clone();
            merged.extend(own.iter().map(|(k, v)| (Arc::clone(k), v.clone())));
            Some(Arc::new(merged))
        }
        (of_route, own) => own.or(of_route.as_ref()).cloned(),
    }
}

/// What an error before the response means.
fn judge(e: &Broken) -> (Failure, Reset) {
    match e {
        Broken::NotHttp(_) | Broken::Http2(Fault::Ours(..)) => (Failure::NotHttp, Reset::ProtocolError),
        Broken::Http2(Fault::Refused | Fault::Unsent) => {
            (Failure::Reset("remote refused stream reset".into()), Reset::Refused)
        }
        Broken::Http2(Fault::Reset(_)) => (Failure::Reset("remote reset".into()), Reset::Remote),
        Broken::Http2(Fault::Ended | Fault::Silent) | Broken::Io(_) | Broken::Incomplete => {
            (Failure::Terminated, Reset::Remote)
        }
    }
}

/// The request of one attempt. The head is kept only where it may be needed again.
#[allow(clippy::too_many_arguments)]
fn build(
    plan: &Forward<'_>,
    head: &mut Head,
    h2: bool,
    body: RequestBody,
    again: bool,
    number: u32,
    limit: Option<Duration>,
    target: &Target,
    preserve_case: bool,
) -> Request<RequestBody> {
    let mut headers = if again { head.parts.headers.clone() } else { std::mem::take(&mut head.parts.headers) };
    let uri = if again { head.parts.uri.clone() } else { std::mem::take(&mut head.parts.uri) };
    let mut method = head.parts.method.clone();
    let mut authority = head.authority.clone();
    if let Some(new) = rewritten_host(plan, head, &target.hostname) {
        if plan.action.append_x_forwarded_host {
            headers.append(HeaderName::from_static("x-forwarded-host"), authority.clone());
        }
        if !super::suppressed(plan.conn) {
            headers.insert(ORIGINAL_HOST, authority.clone());
        }
        authority = new;
    }
    if plan.routed.virtual_host.include_request_attempt_count {
        headers.insert(ATTEMPTS, decimal(number.into()));
    }
    if let Some(limit) = limit {
        headers.insert(EXPECTED_TIMEOUT, HeaderValue::from(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)));
    }
    let path = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let mut protocol = None;
    let (uri, version) = if h2 {
        headers.remove(HOST);
        if let Some(kind) = plan.upgrade.filter(|k| *k != "connect") {
            // An HTTP/1 upgrade becomes extended CONNECT (RFC 8441).
            method = Method::CONNECT;
            protocol = Some(Protocol::from(kind));
            headers.remove(UPGRADE);
            headers.remove(http::header::CONNECTION);
        }
        if plan.upgrade == Some("connect") {
            (Uri::try_from(authority.as_bytes()).unwrap_or(uri), Version::HTTP_2)
        } else {
            (absolute(head.scheme, &authority, path), Version::HTTP_2)
        }
    } else {
        if plan.conn.h2 {
            join_cookies(&mut headers);
            if let Some(kind) = plan.upgrade.filter(|k| *k != "connect") {
                // Extended CONNECT (RFC 8441) becomes an HTTP/1 upgrade.
                method = Method::GET;
                if let Ok(kind) = HeaderValue::from_str(kind) {
                    headers.insert(UPGRADE, kind);
                    headers.insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
                }
                headers.entry("sec-websocket-key").or_insert(HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
            }
        }
        let uri = if uri.authority().is_some() && method != Method::CONNECT { Uri::from(path) } else { uri };
        headers.insert(HOST, authority);
        (uri, Version::HTTP_11)
    };
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.version_mut() = version;
    *request.headers_mut() = headers;
    if let Some(protocol) = protocol {
        request.extensions_mut().insert(protocol);
    }
    if preserve_case && !h2 {
        // The names as they were written.
        *request.extensions_mut() = head.parts.extensions.clone();
    }
    request
}

/// The host that a request is sent with, if it is another. `endpoint`: the endpoint's own name, or empty.
pub(super) fn rewritten_host(plan: &Forward<'_>, head: &Head, endpoint: &str) -> Option<HeaderValue> {
    let weighs = matches!(plan.action.target, carrick_proxy_core::model::route::Target::Weighted(_));
    if plan.action.host_rewrite.is_none() && !weighs {
        return None;
    }
    let choice = ClusterChoice { name: plan.cluster, weighted: weighted(plan.action, plan.cluster) };
    let endpoint = (!endpoint.is_empty()).then_some(endpoint);
    let host = rewrite::host(plan.action, &choice, &head.view(), endpoint)?;
    HeaderValue::from_str(&host).ok()
}

pub(super) fn absolute(scheme: &str, authority: &HeaderValue, path: PathAndQuery) -> Uri {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(if scheme == "https" { Scheme::HTTPS } else { Scheme::HTTP });
    parts.authority = Authority::try_from(authority.as_bytes()).ok().or_else(|| Authority::try_from("unknown").ok());
    parts.path_and_query = Some(path.clone());
    Uri::from_parts(parts).unwrap_or_else(|_| Uri::from(path))
}

/// HTTP/1 has one cookie header (RFC 9113 §8.2.3).
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let all: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

fn original_dst_header(state: &ClusterState, headers: &HeaderMap) -> Option<SocketAddr> {
    let name = state.cluster.original_dst.header.as_ref()?;
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// The name that TLS upstream is to have: the host that the request is sent with, as far as that is known before an endpoint is chosen.
pub(super) fn auto_sni(
    state: &ClusterState,
    head: &Head,
    rewritten: impl FnOnce() -> Option<HeaderValue>,
) -> Option<Arc<str>> {
    if !state.cluster.auto_sni {
        return None;
    }
    let host;
    let text = match &state.cluster.auto_sni_header {
        Some(name) => head.parts.headers.get(name)?,
        None => {
            host = rewritten();
            host.as_ref().unwrap_or(&head.authority)
        }
    };
    Some(Arc::from(carrick_proxy_core::routing::without_port(text.to_str().ok()?)))
}
