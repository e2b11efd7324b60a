//! Active health checks of a cluster: one worker asks for all of them.
//!
//! Invariant: a host changes sides only after as many answers in a row as configured, except that its first answer counts alone;
//! checks end with the cluster's configuration. A cluster is checked from its first use on; until a host's first answer it counts as
//! healthy (Envoy asks before, and waits).

use super::choose::plain_target;
use super::cluster::ClusterState;
use super::connect::{Target, connect};
use crate::io::stream::Stream;
use crate::io::witness::Witness;
use crate::local::Local;
use crate::message::request_body::RequestBody;
use crate::message::{h1::client, h2};
use bytes::Bytes;
use carrick_proxy_core::model::cluster::{HealthCheck, HealthCheckKind};
use carrick_proxy_core::model::hcm::HeaderCase;
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How often the hosts are counted anew.
const ROUND: Duration = Duration::from_millis(500);

/// Of a connection for one question.
const OWN: h2::Own =
    h2::Own { table: 4096, streams: 0, window: 65535, connection: 65535, list: 16 * 1024, connect: false };

/// Starts checking.
pub(super) fn start(local: &Rc<Local>, state: &Rc<ClusterState>) {
    let (own, state) = (Rc::clone(local), Rc::clone(state));
    local.spawn(async move {
        let mut known: HashSet<SocketAddr> = HashSet::new();
        while !state.is_retired() {
            let now = targets(&own, &state);
            known.retain(|host| now.iter().any(|t| t.address == *host));
            for target in now {
                if known.insert(target.address) {
                    own.spawn(watch(Rc::clone(&own), Rc::clone(&state), target));
                }
            }
            tokio::time::sleep(ROUND).await;
        }
    });
}

fn targets(local: &Local, state: &ClusterState) -> Vec<Target> {
    let config = local.shared.config.load();
    let same = config.clusters.get(&state.cluster.name).is_some_and(|c| std::sync::Arc::ptr_eq(c, &state.cluster));
    let set = if same { config.endpoints.get(&state.cluster.name) } else { None };
    set.into_iter()
        .flat_map(|set| (0..set.endpoints.len()).filter_map(|i| plain_target(&state.cluster, set, i)))
        .collect()
}

/// Checks one host until it or the cluster is gone.
async fn watch(local: Rc<Local>, state: Rc<ClusterState>, target: Target) {
    let host = target.address;
    let mut healthy: Option<bool> = None;
    let mut row = 0_u32;
    loop {
        let mut good = true;
        let mut pause = Duration::from_secs(1);
        for check in &state.cluster.health_checks {
            good &=
                matches!(tokio::time::timeout(check.timeout, ask(&local, &state, &target, check)).await, Ok(Some(())));
            let jitter = u64::try_from(check.jitter.as_millis()).unwrap_or(0).saturating_add(1);
            let more = local.random().checked_rem(jitter).unwrap_or(0);
            pause = check.interval.saturating_add(Duration::from_millis(more));
            let needed = match healthy {
                None => 1,
                Some(true) => check.unhealthy_threshold,
                Some(false) => check.healthy_threshold,
            };
            row = if healthy == Some(good) { 0 } else { row.saturating_add(1) };
            if healthy != Some(good) && row >= needed {
                (healthy, row) = (Some(good), 0);
                state.shared.health(host, good);
            }
            if good { &state.stats.health_check_success } else { &state.stats.health_check_failure }.inc();
        }
        tokio::time::sleep(pause).await;
        if state.is_retired() || !targets(&local, &state).iter().any(|t| t.address == host) {
            state.shared.health(host, true);
            return;
        }
    }
}

async fn ask(local: &Local, state: &ClusterState, target: &Target, check: &HealthCheck) -> Option<()> {
    let mut target = target.clone();
    if let Some(port) = check.port {
        target.address.set_port(port);
    }
    let protocol = match &check.kind {
        HealthCheckKind::Http { h2: false, .. } => "http/1.1",
        HealthCheckKind::Http { h2: true, .. } => "h2",
        _ => "",
    };
    let mut stream = connect(local, &state.cluster, &state.stats, &target, protocol).await.ok()?;
    match &check.kind {
        HealthCheckKind::Tcp { send, receive } => {
            stream.write_all(send).await.ok()?;
            stream.flush().await.ok()?;
            expect(&mut stream, receive).await
        }
        HealthCheckKind::Http { method, host, path, headers, statuses, h2 } => {
            let host = if host.is_empty() { &state.cluster.name } else { host };
            let mut request = Request::builder().method(method).uri(format!("http://{}{path}", plain(host)));
            if !*h2 {
                request = Request::builder().method(method).uri(&**path).header(http::header::HOST, plain(host));
            }
            if let Some(all) = request.headers_mut() {
                all.extend(headers.iter().cloned());
                all.insert(http::header::USER_AGENT, http::HeaderValue::from_static("Envoy/HC"));
            }
            let (status, _, _) = exchange(local, stream, request.body(RequestBody::Empty).ok()?, *h2).await?;
            statuses.iter().any(|(start, end)| (*start..*end).contains(&status)).then_some(())
        }
        HealthCheckKind::Grpc { service, authority } => {
            let host = if authority.is_empty() { &state.cluster.name } else { authority };
            let request = Request::post(format!("http://{}/grpc.health.v1.Health/Check", plain(host)))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(RequestBody::whole(question(service)))
                .ok()?;
            let (status, headers, body) = exchange(local, stream, request, true).await?;
            let fine = headers.get("grpc-status").is_none_or(|s| s == "0");
            // One message: flag, length, field 1 = SERVING (1).
            (status == 200 && fine && body.get(5..7) == Some(&[0x08, 0x01])).then_some(())
        }
    }
}

/// Names of clusters hold characters that no host has.
fn plain(host: &str) -> String {
    host.chars().map(|c| if c.is_ascii_alphanumeric() || ".-:[]".contains(c) { c } else { '-' }).collect()
}

/// `HealthCheckRequest{service}` as a gRPC message.
fn question(service: &str) -> Bytes {
    let mut message = Vec::new();
    if let Ok(len @ 1..=127) = u8::try_from(service.len()) {
        message.extend([0x0a, len]);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend(u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    framed.extend(message);
    framed.into()
}

async fn expect(stream: &mut Stream, wanted: &[Vec<u8>]) -> Option<()> {
    let mut seen: Vec<u8> = Vec::new();
    let mut from = 0_usize;
    for part in wanted {
        loop {
            let rest = seen.get(from..).unwrap_or_default();
            if let Some(at) = rest.windows(part.len().max(1)).position(|w| w == part.as_slice()) {
                from = from.saturating_add(at).saturating_add(part.len());
                break;
            }
            if seen.len() > 64 * 1024 || stream.read_buf(&mut seen).await.ok()? == 0 {
                return None;
            }
        }
    }
    Some(())
}

/// One request on a connection of its own: status, headers with trailers, the start of the body.
async fn exchange(
    local: &Local,
    stream: Stream,
    request: Request<RequestBody>,
    h2: bool,
) -> Option<(u16, HeaderMap, Vec<u8>)> {
    let (request, body) = request.into_parts();
    let response = if h2 {
        // The connection ends with its only request.
        let (sender, task) = h2::client::connect(stream, OWN, None, h2::Patience::default());
        local.spawn(task);
        sender.send(&request, body).await.ok()?
    } else {
        let connection = client::Connection::new(Witness::new(stream).0, HeaderCase::Lower);
        client::send(&connection, &request, body, false).await.ok()?
    };
    let (parts, mut body) = response.into_parts();
    let (mut headers, mut start) = (parts.headers, Vec::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.ok()?;
        match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) if start.len() < 1024 => start.extend_from_slice(data),
            (_, Some(trailers)) => headers.extend(trailers.clone()),
            _ => {}
        }
    }
    Some((parts.status.as_u16(), headers, start))
}
