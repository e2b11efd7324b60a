//! Asking an external authorizer.
//!
//! Invariant: without an answer a request is refused, unless the filter says otherwise. What is asked and what an answer means is
//! `proxy-core`'s; here is the way there, and reading the body that is sent along.

use super::{Respond, Run};
use crate::call::{self, Call};
use crate::http::head::{Head, set_path};
use crate::http::reply::{Failure, Reply};
use crate::message::incoming::Incoming;
use crate::names::{details, flag};
use bytes::{Bytes, BytesMut};
use carrick_proxy_core::ext_authz::{Answer, Context, GRPC_PATH, NAMESPACE};
use carrick_proxy_core::ext_authz::{grpc_answer, grpc_question, http_answer, http_question};
use carrick_proxy_core::model::ext_authz::{BodySettings, ExtAuthz, ExtAuthzHere, Service};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode};
use http_body::Body;
use std::pin::Pin;
use std::time::{SystemTime, UNIX_EPOCH};

const ALLOWED_BY_FAILURE: HeaderName = HeaderName::from_static("x-envoy-auth-failure-mode-allowed");
/// Longest answer of an authorizer.
const MAX_ANSWER: usize = 1024 * 1024;

/// Asks, and does what the answer says.
pub(super) async fn run(
    run: &mut Run<'_>,
    at: usize,
    filter: &ExtAuthz,
    here: Option<&ExtAuthzHere>,
    head: &mut Head,
    body: &mut Incoming,
) -> Result<(), Failure> {
    let worker = std::rc::Rc::clone(&run.conn.worker);
    let [ok, denied, error, mode_allowed, disabled] = &filter.counters;
    let drawn = filter.enabled >= 1_000_000 || worker.random() % 1_000_000 < u64::from(filter.enabled);
    let meant = filter.enabled_metadata.as_ref().is_none_or(|m| m.matches(Some(&run.found.metadata)));
    if !drawn || !meant {
        run.count(disabled);
        if filter.deny_at_disable {
            let reply = Reply::new(filter.status_on_error, Bytes::new(), details::EXT_AUTHZ_DENIED.to_owned());
            return Err(reply.flagged(flag::UNAUTHORIZED).into());
        }
        return Ok(());
    }
    let settings = match here {
        Some(here) if here.no_body => None,
        here => here.and_then(|h| h.body).or(filter.body),
    };
    let partial = match settings {
        Some(settings) if head.upgrade.is_none() => read_body(run, settings, body).await?,
        _ => false,
    };
    let answer = ask(run, filter, here, head, partial).await;
    match answer {
        Answer::Approved(approved) => {
            run.count(ok);
            approved.apply(&mut head.parts.headers);
            if let Some(new) = approved.path(head.view().path) {
                set_path(&mut head.parts, &new)?;
            }
            if !approved.response.is_empty() {
                run.found.respond.push((at, Respond::Change(approved.response)));
            }
            run.found.learn(NAMESPACE, approved.metadata);
            if filter.clear_route_cache {
                run.clear_route(head);
            }
            Ok(())
        }
        Answer::Denied(refusal) => {
            run.count(denied);
            run.found.learn(NAMESPACE, refusal.metadata);
            let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::FORBIDDEN);
            let mut reply = Reply::new(status, refusal.body, details::EXT_AUTHZ_DENIED.to_owned());
            reply.changes = refusal.headers;
            Err(reply.flagged(flag::UNAUTHORIZED).into())
        }
        Answer::Failed => {
            run.count(error);
            if filter.failure_mode_allow {
                run.count(mode_allowed);
                if filter.failure_header {
                    head.parts.headers.insert(ALLOWED_BY_FAILURE, HeaderValue::from_static("true"));
                }
                return Ok(());
            }
            let reply = Reply::new(filter.status_on_error, Bytes::new(), details::EXT_AUTHZ_ERROR.to_owned());
            Err(reply.flagged(flag::UNAUTHORIZED).into())
        }
    }
}

/// Reads the body up to the limit, to be sent along and then upstream; true if there is more of it.
async fn read_body(run: &mut Run<'_>, settings: BodySettings, body: &mut Incoming) -> Result<bool, Failure> {
    let mut bytes = BytesMut::from(run.read.take().unwrap_or_default().as_ref());
    let mut ended = body.is_end_stream();
    if ended && bytes.is_empty() {
        return Ok(false);
    }
    while !ended && bytes.len() < settings.max.saturating_add(usize::from(!settings.partial)) {
        match std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    let received = &run.exchange.received;
                    received.set(received.get().saturating_add(data.len() as u64));
                    bytes.extend_from_slice(&data);
                }
                // Trailers of requests that are held back are lost; they say nothing to an authorizer.
                Err(_) => ended = true,
            },
            Some(Err(_)) => return Err(Failure::Terminated),
            None => ended = true,
        }
        ended = ended || body.is_end_stream();
    }
    if bytes.len() > settings.max && !settings.partial {
        let text = Bytes::from_static(b"Payload Too Large");
        let mut reply = Reply::new(StatusCode::PAYLOAD_TOO_LARGE, text, details::TOO_LARGE.to_owned());
        if !run.conn.h2 {
            // The rest of the body is not read.
            reply.headers.insert(http::header::CONNECTION, HeaderValue::from_static("close"));
        }
        return Err(reply.into());
    }
    run.read = Some(bytes.freeze());
    Ok(!ended)
}

async fn ask(run: &Run<'_>, filter: &ExtAuthz, here: Option<&ExtAuthzHere>, head: &Head, more: bool) -> Answer {
    let info = &run.conn.info;
    let tls = info.tls.as_ref();
    let peer = tls.and_then(|t| t.peer.as_ref());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let sent = run.read.as_ref().map(|b| match filter.body {
        Some(settings) if b.len() > settings.max => b.slice(..settings.max),
        _ => b.clone(),
    });
    let cut = matches!((&sent, &run.read), (Some(sent), Some(all)) if sent.len() < all.len());
    let context = Context {
        remote: head.client,
        local: info.local,
        principal: peer.map_or("", |p| p.uris().first().or(p.dns_names().first()).map_or(p.subject(), String::as_str)),
        own_principal: tls.and_then(|t| t.local.as_deref()).unwrap_or_default(),
        certificate: "",
        server_name: info.server_name.as_deref().unwrap_or_default(),
        protocol: crate::http::protocol_name(run.exchange.protocol),
        metadata: &run.found.metadata,
        time: (i64::try_from(now.as_secs()).unwrap_or(0), i32::try_from(now.subsec_nanos()).unwrap_or(0)),
        id: run.conn.worker.random(),
        body: sent.as_ref(),
        received: run.read.as_ref().map_or(0, |b| i64::try_from(b.len()).unwrap_or(i64::MAX)),
        partial: more || cut,
    };
    let view = head.view();
    let (mut builder, body, h2) = match &*filter.service {
        Service::Http(service) => {
            let (path, headers) = http_question(filter, service, &view, &context);
            let body = sent.clone().unwrap_or_default();
            let mut builder = Request::builder().method(head.parts.method.clone()).uri(path);
            if let Some(all) = builder.headers_mut() {
                *all = headers;
                all.insert(HOST, head.authority.clone());
                all.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
            }
            (builder, body, false)
        }
        Service::Grpc { authority, metadata, .. } => {
            let mut builder = Request::builder().method(Method::POST).uri(GRPC_PATH);
            if let Some(all) = builder.headers_mut() {
                all.extend(metadata.iter().cloned());
                if let Ok(authority) = HeaderValue::from_str(authority) {
                    all.insert(HOST, authority);
                }
                all.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                all.insert(http::header::TE, HeaderValue::from_static("trailers"));
            }
            (builder, grpc_question(filter, here, &view, &context), true)
        }
    };
    builder = builder.version(http::Version::HTTP_11);
    let Ok(request) = builder.body(()) else { return Answer::Failed };
    let call = Call {
        cluster: filter.service.cluster(),
        head: request.into_parts().0,
        body,
        h2,
        timeout: filter.service.timeout(),
        limit: MAX_ANSWER,
    };
    let worker = &run.conn.worker;
    match call::ask(&worker.local, &worker.upstreams, &run.live.config, call).await {
        Ok(answer) => match &*filter.service {
            Service::Http(service) => {
                http_answer(service, answer.head.status.as_u16(), &answer.head.headers, answer.body)
            }
            Service::Grpc { .. } => {
                let status = answer.trailers.get("grpc-status").or(answer.head.headers.get("grpc-status"));
                if status.is_some_and(|s| s == "0") { grpc_answer(&answer.body) } else { Answer::Failed }
            }
        },
        Err(e) => {
            tracing::debug!(cluster = %filter.service.cluster(), "authorizer: {e}");
            Answer::Failed
        }
    }
}
