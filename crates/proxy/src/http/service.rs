//! One request: refuse, clean, route, hand to `forward`, finish the response.
//!
//! Invariant: the order of phases is Envoy's connection manager's; each decision is `proxy-core`'s. Whatever happens, the
//! exchange records it and the client gets an answer.

use super::body::ResponseBody;
use super::connection::HttpConn;
use super::exchange::{Checkout, Exchange, Logged};
use super::filters::{self, Found, Lookup, look_up};
use super::forward::{self, Forward};
use super::head::{Head, decimal, prepare, set_path, weighted};
use super::reply::{self, Failure};
use super::{trace, upgrade};
use crate::message::h2::pipe::{Tunnel, pipe};
use crate::message::incoming::Incoming;
use crate::names::details;
use carrick_proxy_core::facts::Facts;
use carrick_proxy_core::hygiene::{LocalReply, hop};
use carrick_proxy_core::model::filter::{FilterStateSet, HttpFilter, UpstreamOverrides};
use carrick_proxy_core::model::format::{Operator, Part, Plain};
use carrick_proxy_core::model::hcm::{HttpConnectionManager, Upgrade};
use carrick_proxy_core::model::route::{Action, Route};
use carrick_proxy_core::mutate::Levels;
use carrick_proxy_core::request::{RequestHead, is_grpc};
use carrick_proxy_core::rewrite;
use carrick_proxy_core::routing::{ClusterChoice, RouteFacts};
use carrick_proxy_core::timeouts::timeouts;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use std::rc::Rc;
use std::sync::Arc;

/// What an answer of our own says of its body, and of its outcome in gRPC.
const FRAME: [HeaderName; 4] =
    [CONTENT_LENGTH, CONTENT_TYPE, HeaderName::from_static("grpc-status"), HeaderName::from_static("grpc-message")];
const SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
const ATTEMPTS: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The service of a connection.
pub(super) async fn answer(conn: Rc<HttpConn>, request: Request<Incoming>) -> Response<ResponseBody> {
    let mut exchange = Exchange::new(Rc::clone(&conn), request.version());
    let Some(hcm) = conn.hcm() else { return Response::new(ResponseBody::Empty) };
    let id = request.headers().get(REQUEST_ID).cloned();
    exchange.is_head = request.method() == Method::HEAD;
    exchange.has_body = !http_body::Body::is_end_stream(request.body());
    exchange.closing = hop::wants_close(request.headers());
    let (mut response, passed_on) = match handle(&conn, hcm, request, &mut exchange).await {
        Ok(response) => (response, true),
        // A body that broke off by the client's own fault is no failure of the upstream.
        Err(_) if conn.refusal().is_some() => {
            let failure = conn.refusal().map_or(Failure::NoRoute, Failure::Refused);
            (reply::respond(&failure, false, &mut exchange), false)
        }
        Err((failure, retried)) => (reply::respond(&failure, retried, &mut exchange), false),
    };
    let status = response.status().as_u16();
    let headers = response.headers_mut();
    if let Some(found) = &mut exchange.found {
        found.respond(status, headers);
    }
    finish(hcm, headers, passed_on);
    if hcm.request_id.always_set_in_response
        && let Some(id) = id
    {
        headers.insert(REQUEST_ID, id);
    }
    if conn.exchanges() && !conn.outbound {
        conn.worker.peers.take(response.headers_mut());
        if exchange.told {
            conn.worker.peers.tell(response.headers_mut());
        }
    }
    if let Some(trace) = &mut exchange.trace {
        trace.respond(response.headers_mut());
    }
    let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if !conn.h2
        && !switching
        && (exchange.closing || conn.is_leaving(hcm) || (exchange.protocol == http::Version::HTTP_10 && !passed_on))
    {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    exchange.status = response.status().as_u16();
    exchange.responded = Some(exchange.started.elapsed());
    if let Some(l) = &mut exchange.logged {
        l.response = response.headers().clone();
    }
    attach(response, exchange)
}

/// Gives the exchange to the body, so that it ends with it.
fn attach(mut response: Response<ResponseBody>, mut exchange: Box<Exchange>) -> Response<ResponseBody> {
    match std::mem::replace(response.body_mut(), ResponseBody::Empty) {
        ResponseBody::Upstream { body, exchange: None } => {
            if http_body::Body::is_end_stream(&body) {
                exchange.note_grpc(response.headers());
                exchange.finished();
            }
            *response.body_mut() = ResponseBody::Upstream { body, exchange: Some(exchange) };
        }
        ResponseBody::Full(Some(text)) => {
            exchange.sent = text.len() as u64;
            exchange.finished();
            *response.body_mut() = ResponseBody::Full(Some(text));
        }
        ResponseBody::Upgraded(mut start, _) if exchange.conn.h2 => {
            *response.body_mut() = start.answer.take().map_or(ResponseBody::Empty, ResponseBody::Piped);
            start.begin(exchange);
        }
        ResponseBody::Upgraded(start, _) => *response.body_mut() = ResponseBody::Upgraded(start, Some(exchange)),
        other => {
            exchange.finished();
            *response.body_mut() = other;
        }
    }
    response
}

/// Headers of every response.
fn finish(hcm: &HttpConnectionManager, headers: &mut http::HeaderMap, passed_on: bool) {
    if passed_on {
        hop::finish_response(hcm, headers);
    } else {
        // Our own answers carry our name in every mode.
        headers.insert(http::header::SERVER, hcm.server_name.clone());
        hop::append_via(hcm, headers);
    }
}

type Failed = (Failure, bool);

fn here(f: Failure) -> Failed {
    (f, false)
}

async fn handle(
    conn: &Rc<HttpConn>,
    hcm: &HttpConnectionManager,
    request: Request<Incoming>,
    exchange: &mut Exchange,
) -> Result<Response<ResponseBody>, Failed> {
    exchange.is_grpc = is_grpc(request.headers());
    let (parts, mut body) = request.into_parts();
    if http_body::Body::is_end_stream(&body) {
        exchange.received.ended.set(Some(exchange.started));
    }
    let mut head = prepare(conn, hcm, parts).map_err(|failure| {
        // Envoy's codec says so, which knows no gRPC.
        exchange.is_grpc &= !matches!(&failure, Failure::Refused(LocalReply::Status(_, details::NOMINATED)));
        here(failure)
    })?;
    let live = conn.worker.live();
    let table = live.config.route_table(&hcm.routes).map(Arc::clone);
    let internal_only = table.as_ref().map_or(&[][..], |t| &t.internal_only_headers);
    if !head.internal {
        hop::strip_internal(&mut head.parts.headers, hcm.addresses.use_remote_address, internal_only);
    }
    if conn.exchanges() {
        let told = conn.worker.peers.take(&mut head.parts.headers);
        if let Some(told) = told.filter(|_| !conn.outbound) {
            (exchange.told, exchange.peer) = (true, conn.peer(told));
        }
    }
    let facts = RouteFacts {
        random: conn.worker.random(),
        tls_presented: conn.info.mutual(),
        tls_validated: conn.info.mutual(),
        internal: head.internal,
        ..RouteFacts::default()
    };
    let mut lookup = look_up(table.as_ref(), &head, &facts);
    exchange.client = Some(head.client);
    if let Some(tracing) = &hcm.tracing {
        let route = match &lookup {
            Lookup::Route(routed) => Some(&routed.route),
            _ => None,
        };
        let name = |head: &Head, ask: &dyn Fn(&Facts<'_>) -> String| {
            let view = head.view();
            ask(&request_facts(conn, exchange, &view))
        };
        exchange.trace = trace::begin(conn, tracing, route, &mut head, name);
    }
    let asked = conn.counted.as_ref().is_some_and(|c| !c.asked.is_empty());
    if !hcm.access_logs.is_empty() || asked || exchange.trace.as_ref().is_some_and(|t| t.is_sent()) {
        note(&head, exchange);
    }
    let mut read = None;
    if filters::has_steps(hcm) {
        if let Lookup::Route(routed) = &lookup {
            exchange.route = Some(Arc::clone(&routed.route));
        }
        let found = Found::default();
        let table = table.as_ref();
        let mut run = filters::Run { conn, hcm, live: &live, table, facts, lookup, exchange, found, read };
        let result = run.all(&mut head, &mut body).await;
        (lookup, read) = (run.lookup, run.read);
        exchange.found = Some(Box::new(run.found));
        if let Err(failure) = result {
            return refused_on_its_way(conn, exchange, hcm, &head, &lookup, facts.random, failure);
        }
    }
    let routed = match lookup {
        Lookup::Route(routed) => routed,
        Lookup::RequiresTls => {
            let to = rewrite::https_location(&head.view());
            return Err(here(Failure::Redirect(StatusCode::MOVED_PERMANENTLY, to)));
        }
        Lookup::Nowhere => return Err(here(Failure::NoRoute)),
    };
    exchange.route = Some(Arc::clone(&routed.route));
    let action = match &routed.route.action {
        Action::Forward(action) => action,
        Action::Direct(direct) => {
            let text = match &direct.format {
                Some(f) => bytes::Bytes::from(f.text(&Facts { request: Some(head.view()), ..Facts::default() })),
                None => direct.body.clone(),
            };
            let failure = Failure::Direct(direct.status, text);
            return Ok(answer_here(conn, exchange, hcm, head.view(), &routed.levels(None), &here(failure)));
        }
        Action::Redirect(redirect) => {
            let (status, to) = rewrite::redirect(redirect, &routed.route.matching.path, &head.view());
            let failure = Failure::Redirect(status, to);
            return Ok(answer_here(conn, exchange, hcm, head.view(), &routed.levels(None), &here(failure)));
        }
    };
    let upgrade = match head.upgrade.take() {
        Some(kind) if allows(&action.upgrades, &kind).or_else(|| allows(&hcm.upgrades, &kind)).unwrap_or(false) => {
            Some(kind)
        }
        // A client that offers HTTP/2 is not refused for it (RFC 9113 §3.1 has no such upgrade any more).
        Some(kind) if kind == "h2c" => None,
        Some(_) => {
            let found = Lookup::Route(routed);
            let failure = Failure::UpgradeRefused;
            return refused_on_its_way(conn, exchange, hcm, &head, &found, facts.random, failure);
        }
        None => None,
    };
    // What comes on a stream that becomes a tunnel is no body.
    let ahead = (conn.h2 && upgrade.is_some()).then(|| std::mem::replace(&mut body, Incoming::Empty));
    if conn.outbound && !conn.counted.as_ref().is_some_and(|c| c.disable_host_fallback) {
        exchange.host = conn.host(&head.authority);
    }
    let view = head.view();
    let Some(choice) = action.choose_cluster(&view, facts.random) else {
        return Err(here(Failure::NoCluster(action.cluster_not_found)));
    };
    let levels = routed.levels(choice.weighted);
    let speaks = !levels.response_is_plain();
    if speaks && !live.config.clusters.contains_key(choice.name) {
        // Envoy's router says so before it changes anything of the request.
        let failure = Failure::NoCluster(action.cluster_not_found);
        return Ok(answer_here(conn, exchange, hcm, view, &levels, &here(failure)));
    }
    let overrides = overrides(conn, hcm, &routed.route, &levels, &choice, &view);
    let cluster = choice.name.to_string();
    let (mutated, new_path) =
        (!levels.request_is_plain(), rewrite::path(action, &routed.route.matching.path, view.path));
    let original_path = new_path.as_ref().map(|_| view.path.to_string());
    if mutated {
        let mut headers = head.parts.headers.clone();
        let known = exchange.found.as_ref().map(|f| &f.metadata);
        let facts = Facts { dynamic_metadata: known, ..request_facts(conn, exchange, &view) };
        levels.mutate_request(&mut headers, &facts);
        head.parts.headers = headers;
    }
    let rewritten = new_path.is_some();
    if let (Some(new), Some(old)) = (new_path, original_path) {
        set_path(&mut head.parts, &new).map_err(here)?;
        if let Ok(old) = HeaderValue::from_str(&old) {
            head.parts.headers.insert(HeaderName::from_static("x-envoy-original-path"), old);
        }
    }
    if exchange.logged.is_some() && (mutated || rewritten) {
        // Logs show a request as it goes on.
        note(&head, exchange);
    }
    hop::strip_request(&mut head.parts.headers, upgrade.is_some() && !conn.h2);
    conn.forward_client_cert(hcm, &mut head.parts.headers);
    // Mutations of the response may speak of the request.
    let asked = speaks.then(|| snapshot(&head));
    let scheme = head.scheme;
    let plan = Forward {
        conn,
        limits: timeouts(hcm, action, &head.view()),
        live: &live,
        routed: &routed,
        action,
        cluster: &cluster,
        overrides,
        upgrade: upgrade.as_deref(),
        read,
    };
    let response = match forward::run(&plan, &mut head, body, exchange).await {
        Ok(response) => response,
        // What the router answers itself goes back by the same route.
        Err(failed) => {
            let Some(asked) = asked else { return Err(failed) };
            let levels = routed.levels(weighted(action, &cluster));
            return Ok(answer_here(conn, exchange, hcm, asked.view(scheme), &levels, &failed));
        }
    };
    exchange.note_grpc(response.headers());
    exchange.details = details::VIA_UPSTREAM;
    let switched = match &upgrade {
        Some(kind) => upgrade::has_switched(kind, conn.h2, response.status()),
        None => false,
    };
    let took = exchange.started.elapsed().as_millis();
    let (mut parts, mut body) = response.into_parts();
    let mut tunnel = exchange.tunnel.take();
    let up = switched.then(|| match &exchange.checkout {
        Some(Checkout::Http1(connection, _)) => upgrade::Up::Http1(connection.wire()),
        _ => upgrade::Up::Http2(tunnel.take().map(|to| Tunnel::new(std::mem::replace(&mut body, Incoming::Empty), to))),
    });
    if let Some(mut refused) = tunnel {
        refused.end();
    }
    hop::strip_response(&mut parts.headers, switched);
    if conn.exchanges() && conn.outbound {
        let told = conn.worker.peers.take(&mut parts.headers);
        // Who is not of the mesh says nothing about it.
        if let Some(told) = told.filter(|_| exchange.meets_mesh()) {
            exchange.peer = conn.peer(told);
        }
    }
    let levels = routed.levels(weighted(action, &cluster));
    if !levels.response_is_plain() {
        let before = parts.headers.clone();
        let request = asked.as_ref().map(|asked| asked.view(scheme));
        let facts = Facts {
            request,
            status: Some(parts.status.as_u16()),
            response: Some(&before),
            protocol: Some(super::protocol_name(exchange.protocol)),
            local: Some(conn.info.local),
            remote: exchange.client.or(Some(conn.info.peer)),
            direct_remote: Some(conn.info.direct),
            upstream: exchange.upstream,
            cluster: Some(&cluster),
            route: Some(&routed.route.name),
            attempts: Some(exchange.attempts),
            ..Facts::default()
        };
        levels.mutate_response(&mut parts.headers, &facts);
    }
    if !suppressed(hcm) {
        parts.headers.insert(SERVICE_TIME, decimal(u64::try_from(took).unwrap_or(u64::MAX)));
    }
    if routed.virtual_host.include_attempt_count_in_response {
        parts.headers.insert(ATTEMPTS, decimal(exchange.attempts.into()));
    }
    let body = match up {
        Some(up) => {
            upgrade::translate(&mut parts, conn.h2);
            let (down, answer) = match ahead {
                Some(ahead) => {
                    let (to, answer) = pipe();
                    (Some(Tunnel::new(ahead, to)), Some(answer))
                }
                None => (None, None),
            };
            ResponseBody::Upgraded(upgrade::Start { down, up, answer }, None)
        }
        _ => ResponseBody::Upstream { body, exchange: None },
    };
    Ok(Response::from_parts(parts, body))
}

fn suppressed(hcm: &HttpConnectionManager) -> bool {
    hcm.filters.iter().any(|f| matches!(f, HttpFilter::Router(r) if r.suppress_envoy_headers))
}

fn allows(list: &[Upgrade], kind: &str) -> Option<bool> {
    list.iter().find(|u| &*u.kind == kind).map(|u| u.enabled)
}

fn note(head: &Head, exchange: &mut Exchange) {
    exchange.logged = Some(Box::new(snapshot(head)));
}

/// The request as it is now.
fn snapshot(head: &Head) -> Logged {
    let view = head.view();
    Logged {
        method: head.parts.method.clone(),
        path: view.path.to_string(),
        authority: view.authority.to_string(),
        headers: head.parts.headers.clone(),
        response: http::HeaderMap::new(),
        trailers: http::HeaderMap::new(),
    }
}

pub(super) fn request_facts<'a>(conn: &'a HttpConn, exchange: &Exchange, view: &RequestHead<'a>) -> Facts<'a> {
    let tls = conn.info.tls.as_ref();
    Facts {
        request: Some(*view),
        protocol: Some(super::protocol_name(exchange.protocol)),
        local: Some(conn.info.local),
        remote: exchange.client.or(Some(conn.info.peer)),
        direct_remote: Some(conn.info.direct),
        peer_uri_san: tls.and_then(|t| t.principal.as_deref()),
        local_uri_san: tls.and_then(|t| t.local.as_deref()),
        tls_version: tls.map(|t| t.version),
        server_name: conn.info.server_name.as_deref(),
        chain: Some(&conn.info.chain.name),
        connection_id: Some(conn.info.id),
        ..Facts::default()
    }
}

/// What filter state asks of the upstream connection. Kept per connection for a route whose values cannot differ between
/// its requests.
fn overrides(
    conn: &HttpConn,
    hcm: &HttpConnectionManager,
    route: &Arc<Route>,
    levels: &Levels<'_>,
    choice: &ClusterChoice<'_>,
    view: &RequestHead<'_>,
) -> Rc<UpstreamOverrides> {
    let chain = &conn.info.chain.on_new_connection;
    if chain.is_empty() && !hcm.filters.iter().any(|f| matches!(f, HttpFilter::SetFilterState { .. })) {
        return Rc::clone(&conn.plain_overrides);
    }
    let entry = choice.weighted.map_or(0, |w| std::ptr::from_ref(w) as usize);
    // The route is kept alive with the values, so that its address stays its own.
    if let Some((of, weighted, kept)) = &*conn.last_overrides.borrow()
        && Arc::ptr_eq(of, route)
        && *weighted == entry
    {
        return Rc::clone(kept);
    }
    let tls = conn.info.tls.as_ref();
    let facts = Facts {
        request: Some(*view),
        protocol: Some(if conn.h2 { "HTTP/2" } else { "HTTP/1.1" }),
        local: Some(conn.info.local),
        remote: Some(conn.info.peer),
        peer_uri_san: tls.and_then(|t| t.principal.as_deref()),
        server_name: conn.info.server_name.as_deref(),
        route: Some(&levels.route.name),
        ..Facts::default()
    };
    let mut made = UpstreamOverrides::default();
    made.apply(chain, &facts);
    let of_request = levels.upstream_overrides(&hcm.filters, &facts);
    made.alpn = of_request.alpn.or(made.alpn);
    made.sni = of_request.sni.or(made.sni);
    made.sans = of_request.sans.or(made.sans);
    let made = Rc::new(made);
    let levels_sets = [&levels.route.per_filter, &levels.virtual_host.per_filter]
        .into_iter()
        .chain(levels.weighted.map(|w| &w.per_filter));
    let fixed = hcm.filters.iter().all(|f| match f {
        HttpFilter::SetFilterState { on_request, .. } => is_fixed(on_request),
        HttpFilter::Router(_) | HttpFilter::Step(_) | HttpFilter::Stats(_) => true,
    }) && is_fixed(chain)
        && levels_sets.flat_map(|p| &p.set_filter_state).all(|(_, sets)| is_fixed(sets));
    if fixed {
        *conn.last_overrides.borrow_mut() = Some((Arc::clone(route), entry, Rc::clone(&made)));
    }
    made
}

/// Whether values depend on nothing but the connection.
fn is_fixed(sets: &[FilterStateSet]) -> bool {
    let fixed = |p: &Part| match p {
        Part::Literal(_) => true,
        Part::Value { op: Operator::ByProtocol { .. }, .. } => true,
        Part::Value { op, .. } => {
            matches!(op, Operator::Plain(Plain::Protocol | Plain::DownstreamPeerUriSan | Plain::RequestedServerName))
        }
    };
    sets.iter().all(|s| s.value.parts.iter().all(fixed))
}

/// What a filter or an upgrade that is not allowed came to: it goes back by the route that was found, where that leads on.
fn refused_on_its_way(
    conn: &HttpConn,
    exchange: &mut Exchange,
    hcm: &HttpConnectionManager,
    head: &Head,
    found: &Lookup,
    random: u64,
    failure: Failure,
) -> Result<Response<ResponseBody>, Failed> {
    let view = head.view();
    match found {
        Lookup::Route(routed) if failure.is_local() => match routed.route.forward() {
            Some(action) => {
                let weighted = action.choose_cluster(&view, random).and_then(|c| c.weighted);
                let levels = routed.levels(weighted);
                if levels.response_is_plain() {
                    return Err(here(failure));
                }
                Ok(answer_here(conn, exchange, hcm, view, &levels, &here(failure)))
            }
            None => Err(here(failure)),
        },
        _ => Err(here(failure)),
    }
}

/// An answer of our own with the changes that its route makes to responses.
fn answer_here(
    conn: &HttpConn,
    exchange: &mut Exchange,
    hcm: &HttpConnectionManager,
    request: RequestHead<'_>,
    levels: &Levels<'_>,
    (failure, retried): &Failed,
) -> Response<ResponseBody> {
    let mut response = reply::respond(failure, *retried, exchange);
    if !levels.response_is_plain() {
        let headers = response.headers_mut();
        // Envoy frames its answer after the route's changes, whatever those were. There is no status yet: `%RESPONSE_CODE%` is 0.
        let frame = FRAME.map(|name| (headers.remove(&name), name));
        let before = headers.clone();
        let facts = Facts { response: Some(&before), ..request_facts(conn, exchange, &request) };
        levels.mutate_response(headers, &facts);
        for (value, name) in frame {
            let own = name == CONTENT_TYPE && !exchange.is_grpc && headers.contains_key(&name);
            if let Some(value) = value.filter(|_| !own) {
                headers.insert(name, value);
            }
        }
    }
    response.headers_mut().insert(http::header::SERVER, hcm.server_name.clone());
    response
}
