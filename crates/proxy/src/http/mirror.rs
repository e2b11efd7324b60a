//! Copies of requests for other clusters: sent and forgotten.
//!
//! Invariant: a copy never delays, fails or changes the request it was made from; it is sent once, and its answer is read and
//! thrown away. Its host ends in `-shadow` unless the route says otherwise, as Envoy's.

use super::exchange::Checkout;
use super::forward::{Forward, absolute, auto_sni, join_cookies};
use super::head::Head;
use crate::message::request_body::{RequestBody, TAP_DEPTH, Tapped};
use crate::upstream::choose::{self, Wish};
use crate::upstream::pool::{self, Need, PoolKey, Taken};
use carrick_proxy_core::facts::Facts;
use carrick_proxy_core::model::filter::UpstreamOverrides;
use carrick_proxy_core::model::route::{Mirror, MirrorTarget};
use carrick_proxy_core::mutate::Side;
use http::header::{HOST, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, Request, Version};
use http_body::Body as _;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// A copy without a limit of its own may take so long.
const LONGEST: Duration = Duration::from_secs(300);

/// A mirror that this request is copied to.
pub(super) struct Copied<'a> {
    mirror: &'a Mirror,
    cluster: Arc<str>,
    body: bool,
    pieces: Option<mpsc::Receiver<Tapped>>,
}

/// The mirrors that are to get this request.
pub(super) fn chosen<'a>(plan: &Forward<'a>, head: &Head, body: bool) -> Vec<Copied<'a>> {
    let drawn = |m: &&Mirror| plan.conn.worker.random() % 1_000_000 < u64::from(m.fraction);
    let all = plan.action.mirrors.iter().filter(drawn);
    all.filter_map(|mirror| {
        let cluster = match &mirror.target {
            MirrorTarget::Cluster(name) => Arc::clone(name),
            MirrorTarget::Header(name) => Arc::from(head.parts.headers.get(name)?.to_str().ok()?),
        };
        Some(Copied { mirror, cluster, body, pieces: None })
    })
    .collect()
}

impl Copied<'_> {
    /// Where the body's pieces are to be copied to.
    pub fn tap(&mut self) -> Option<mpsc::Sender<Tapped>> {
        if !self.body {
            return None;
        }
        let (sender, receiver) = mpsc::channel(TAP_DEPTH);
        self.pieces = Some(receiver);
        Some(sender)
    }

    /// Sends it, in a task of its own.
    pub fn send(self, plan: &Forward<'_>, head: &Head) {
        let worker = Rc::clone(&plan.conn.worker);
        let Some(state) = worker.upstreams.get(&worker.local, &plan.live.config, &self.cluster) else { return };
        let mut headers = head.parts.headers.clone();
        let host = self.host(plan, head);
        if !self.mirror.request.is_empty() {
            self.mirror.request.apply(
                Side::Request,
                &mut headers,
                &Facts { request: Some(head.view()), ..Facts::default() },
            );
        }
        let h2 = pool::speaks_h2(state.cluster.http, plan.conn.h2);
        let sni = auto_sni(&state, head, || None);
        let body = self.pieces.map_or(RequestBody::Empty, RequestBody::Tapped);
        let path = head.parts.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let request = request(&head.parts.method, headers, &host, head.scheme, path, h2, body, plan.conn.h2);
        let config = Arc::clone(&plan.live.config);
        let conn = Rc::clone(plan.conn);
        let limit = plan.limits.global.unwrap_or(LONGEST);
        state.stats.upstream_rq_shadow.inc();
        let task = async move {
            let overrides = Rc::new(UpstreamOverrides::default());
            let wish = Wish {
                restored: conn.info.restored,
                from_header: None,
                tried: &[],
                reselections: 0,
                hash: None,
                overrides: &overrides,
                auto_sni: sni,
                subset: &None,
                tried_priorities: &[],
                authority: host.to_str().ok(),
                client: Some((conn.info.peer, conn.info.local)),
                proxy_protocol: None,
                source: None,
            };
            let chosen = choose::choose(&worker.local, &config, &state, wish).await?;
            let target = chosen.target;
            let _active = state.begin(target.address, false)?;
            let key = PoolKey {
                address: target.address,
                transport: Arc::clone(&target.transport),
                overrides: Rc::clone(&overrides),
                auto_sni: target.auto_sni.clone(),
                h2,
                downstream: None,
            };
            let need = Need { fresh: false, high: false, careful: false };
            let (response, checkout) = match pool::take(&worker.local, &state, &key, &target, need).await.ok()? {
                Taken::Http1 { mut connection, home, reused } => {
                    let (request, body) = request.into_parts();
                    (connection.send(&request, body, reused).await.ok()?, Checkout::Http1(connection, home))
                }
                Taken::Http2 { stream, .. } => {
                    let (request, body) = request.into_parts();
                    (stream.sender().send(&request, body).await.ok()?, Checkout::Http2(stream))
                }
            };
            let mut body = response.into_body();
            while let Some(piece) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                piece.ok()?;
            }
            drop(body);
            if let Checkout::Http1(connection, home) = checkout {
                home.give_back(&worker.local, connection);
            }
            Some(())
        };
        plan.conn.worker.spawn(async move {
            let _ = tokio::time::timeout(limit, task).await;
        });
    }

    fn host(&self, plan: &Forward<'_>, head: &Head) -> HeaderValue {
        if let Some(literal) = self.mirror.host_rewrite.as_ref().and_then(|h| HeaderValue::from_str(h).ok()) {
            return literal;
        }
        let routed = super::forward::rewritten_host(plan, head, "").unwrap_or_else(|| head.authority.clone());
        if !self.mirror.host_suffix {
            return routed;
        }
        let text = routed.to_str().unwrap_or_default();
        let (name, port) = carrick_proxy_core::routing::split_port(text);
        let suffixed = match port {
            Some(port) => format!("{name}-shadow:{port}"),
            None => format!("{name}-shadow"),
        };
        HeaderValue::from_str(&suffixed).unwrap_or(routed)
    }
}

#[allow(clippy::too_many_arguments)]
fn request(
    method: &http::Method,
    mut headers: HeaderMap,
    host: &HeaderValue,
    scheme: &str,
    path: PathAndQuery,
    h2: bool,
    body: RequestBody,
    from_h2: bool,
) -> Request<RequestBody> {
    let mut request = Request::new(body);
    *request.method_mut() = method.clone();
    if h2 {
        headers.remove(HOST);
        *request.uri_mut() = absolute(scheme, host, path);
        *request.version_mut() = Version::HTTP_2;
    } else {
        if from_h2 {
            join_cookies(&mut headers);
        }
        headers.insert(HOST, host.clone());
        *request.uri_mut() = path.into();
    }
    *request.headers_mut() = headers;
    request
}
