//! Who may connect: RBAC of connections and authorizers that are asked about them, before anything of them is served.
//!
//! Invariant: asked once the handshake has shown who the peer is, and before an upstream is connected. Envoy waits for the first byte of
//! the client; whoever is refused there is refused here, only earlier. Without an authorizer's answer a connection is refused, unless
//! the filter says otherwise.

use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::call::{self, Call};
use crate::info::Info;
use crate::names::details;
use crate::worker::Worker;
use carrick_proxy_core::ext_authz::{Answer, Context, GRPC_PATH, connection_question, grpc_answer};
use carrick_proxy_core::facts::Facts;
use carrick_proxy_core::model::Name;
use carrick_proxy_core::model::ext_authz::{ExtAuthz, Service};
use carrick_proxy_core::model::filter::FilterStateKey;
use carrick_proxy_core::model::metadata::Metadata;
use carrick_proxy_core::rbac::Subject;
use http::header::{CONTENT_TYPE, HOST, HeaderValue, TE};
use http::{Method, Request};

/// Namespace of what an authorizer of connections tells.
const NAMESPACE: &str = "envoy.filters.network.ext_authz";
/// Longest answer of an authorizer.
const MAX_ANSWER: usize = 1024 * 1024;

/// Why a connection is refused, in Envoy's words; `None` if it is not. Dropped at any await, it has decided nothing.
pub(crate) async fn refusal(worker: &Rc<Worker>, info: &Info) -> Option<String> {
    if info.chain.rbac.is_empty() && info.chain.ext_authz.is_empty() {
        return None;
    }
    let state: Vec<(Name, String)> = info
        .chain
        .on_new_connection
        .iter()
        .filter_map(|set| match &set.key {
            FilterStateKey::Text(key) => Some((key.clone(), set.value.text(&facts(info)))),
            _ => None,
        })
        .collect();
    let mut metadata = Metadata::default();
    for (at, filter) in info.chain.rbac.iter().enumerate() {
        if let Some(refused) = asked(worker, info, at, &mut metadata).await {
            return Some(refused);
        }
        let subject = Subject {
            request: None,
            local: info.local,
            remote: info.peer,
            source: info.peer,
            direct: info.direct,
            server_name: info.server_name.as_deref().unwrap_or_default(),
            peer: info.certificate_names(),
            metadata: &metadata,
            route_metadata: None,
            filter_state: &state,
        };
        let decision = filter.decide(&subject);
        for counted in decision.counted.into_iter().flatten() {
            if let Some(counter) = filter.counters.get(counted as usize) {
                worker.stats.filter(None, counter);
            }
        }
        if let Some(details) = decision.details() {
            return Some(details);
        }
        let learned = decision.metadata;
        metadata.learn(carrick_proxy_core::rbac::NETWORK, learned);
    }
    asked(worker, info, info.chain.rbac.len(), &mut metadata).await
}

/// Asks the authorizers that stand after `at` RBAC filters.
async fn asked(worker: &Rc<Worker>, info: &Info, at: usize, metadata: &mut Metadata) -> Option<String> {
    for (_, filter) in info.chain.ext_authz.iter().filter(|(before, _)| *before == at) {
        let [ok, denied, error, mode_allowed, disabled] = &filter.counters;
        if filter.enabled_metadata.as_ref().is_some_and(|m| !m.matches(Some(metadata))) {
            worker.stats.filter(None, disabled);
            continue;
        }
        match ask(worker, info, filter, metadata).await {
            Answer::Approved(approved) => {
                worker.stats.filter(None, ok);
                metadata.learn(NAMESPACE, approved.metadata);
            }
            Answer::Denied(_) => {
                worker.stats.filter(None, denied);
                return Some(details::EXT_AUTHZ_DENIED.to_owned());
            }
            Answer::Failed => {
                worker.stats.filter(None, error);
                if !filter.failure_mode_allow {
                    return Some(details::EXT_AUTHZ_ERROR.to_owned());
                }
                worker.stats.filter(None, mode_allowed);
            }
        }
    }
    None
}

async fn ask(worker: &Rc<Worker>, info: &Info, filter: &ExtAuthz, metadata: &Metadata) -> Answer {
    // Connections are only asked about by gRPC.
    let Service::Grpc { cluster, authority, timeout, metadata: more } = &*filter.service else { return Answer::Failed };
    let tls = info.tls.as_ref();
    let peer = tls.and_then(|t| t.peer.as_ref());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let context = Context {
        remote: info.peer,
        local: info.local,
        principal: peer.map_or("", |p| p.uris().first().or(p.dns_names().first()).map_or(p.subject(), String::as_str)),
        own_principal: tls.and_then(|t| t.local.as_deref()).unwrap_or_default(),
        certificate: "",
        server_name: info.server_name.as_deref().unwrap_or_default(),
        protocol: "",
        metadata,
        time: (i64::try_from(now.as_secs()).unwrap_or(0), i32::try_from(now.subsec_nanos()).unwrap_or(0)),
        id: worker.random(),
        body: None,
        received: 0,
        partial: false,
    };
    let mut builder = Request::builder().method(Method::POST).uri(GRPC_PATH).version(http::Version::HTTP_11);
    if let Some(all) = builder.headers_mut() {
        all.extend(more.iter().cloned());
        if let Ok(authority) = HeaderValue::from_str(authority) {
            all.insert(HOST, authority);
        }
        all.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        all.insert(TE, HeaderValue::from_static("trailers"));
    }
    let Ok(request) = builder.body(()) else { return Answer::Failed };
    let call = Call {
        cluster,
        head: request.into_parts().0,
        body: connection_question(filter, &context),
        h2: true,
        timeout: *timeout,
        limit: MAX_ANSWER,
    };
    let live = worker.live();
    match call::ask(&worker.local, &worker.upstreams, &live.config, call).await {
        Ok(answer) => {
            let status = answer.trailers.get("grpc-status").or(answer.head.headers.get("grpc-status"));
            if status.is_some_and(|s| s == "0") { grpc_answer(&answer.body) } else { Answer::Failed }
        }
        Err(e) => {
            tracing::debug!(%cluster, "authorizer of connections: {e}");
            Answer::Failed
        }
    }
}

fn facts(info: &Info) -> Facts<'_> {
    Facts {
        local: Some(info.local),
        remote: Some(info.peer),
        direct_remote: Some(info.peer),
        server_name: info.server_name.as_deref(),
        peer_uri_san: info.tls.as_ref().and_then(|t| t.principal.as_deref()),
        ..Facts::default()
    }
}
