//! Byte streams: one connection in, one connection out, and the duplex engine between.
//!
//! Invariant: nothing is read from the client before the upstream stands, except what inspection needed; without an
//! upstream the client is closed, and one that breaks off resets it. Connection counts and bytes are recorded once, when the connection ends.

use crate::info::Info;
use crate::io::duplex::{Duplex, End};
use crate::io::stream::{Shown, Stream};
use crate::lifecycle::{Lease, Phase};
use crate::metrics::{KeyRef, TcpCell, principals};
use crate::names::flag;
use crate::upstream::choose::{self, Wish};
use crate::upstream::cluster::{ActiveConnection, ActiveRequest, ClusterState};
use crate::upstream::connect;
use crate::worker::Worker;
use carrick_proxy_core::expr::Val;
use carrick_proxy_core::facts::Facts;
use carrick_proxy_core::model::EndpointSet;
use carrick_proxy_core::model::expr::Expr;
use carrick_proxy_core::model::filter::UpstreamOverrides;
use carrick_proxy_core::model::listener::{ChainKind, Direction, TcpProxy};
use carrick_proxy_core::outlier::Outcome;
use carrick_proxy_core::routing::choose_tcp_cluster;
use carrick_proxy_core::xxhash::xxh64;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

/// Attempts to connect are spaced by this much.
const PAUSE: Duration = Duration::from_millis(50);

struct Upstream {
    stream: Stream,
    _counted: (ActiveConnection, ActiveRequest),
}

/// Serves a connection of a TCP chain to its end.
pub(crate) async fn serve(worker: Rc<Worker>, stream: Stream, info: Info, lease: Lease) {
    let ChainKind::Tcp(proxy) = &info.chain.kind else { return };
    let started = Instant::now();
    let stats = worker.stats.tcp(&proxy.stat_prefix);
    stats.downstream_cx_total.inc();
    stats.downstream_cx_active.inc();
    let mut record = Record {
        worker: &worker,
        info: &info,
        proxy,
        started,
        flags: flag::NONE,
        up: 0,
        down: 0,
        cluster: None,
        upstream: None,
        failure: None,
        refused: None,
        endpoint: None,
        shown: None,
        upstream_local: None,
        open: false,
    };
    let refusal = Box::pin(crate::rbac::refusal(&worker, &info));
    record.refused = tokio::select! {
        refused = refusal => refused,
        () = lease.reached(Phase::Cut) => Some(String::new()),
    };
    if let Some(why) = &record.refused {
        if why.starts_with("ext_authz") {
            record.flags = flag::UNAUTHORIZED;
        }
        stats.downstream_cx_active.dec();
        return;
    }
    let upstream = {
        let open = Box::pin(open(&worker, &info, proxy, &mut record));
        tokio::select! {
            u = open => u,
            () = lease.reached(Phase::Cut) => None,
        }
    };
    let Some(upstream) = upstream else {
        stats.downstream_cx_no_route.inc();
        stats.downstream_cx_active.dec();
        return;
    };
    record.opened();
    let age = proxy.max_connection_duration;
    let mut end_of_age = age.map(|d| Box::pin(tokio::time::sleep(d)));
    let mut duplex = Duplex::new(stream, upstream.stream, proxy.idle_timeout);
    let end = poll_fn(|cx| {
        if lease.poll_past(cx, Phase::Closing).is_ready() {
            return Poll::Ready(None);
        }
        if let Some(sleep) = &mut end_of_age
            && sleep.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(None);
        }
        duplex.poll(cx).map(Some)
    })
    .await;
    let moved = duplex.moved();
    (record.up, record.down) = (moved.up, moved.down);
    stats.downstream_cx_rx_bytes_total.add(moved.up);
    stats.downstream_cx_tx_bytes_total.add(moved.down);
    match end {
        Some(End::Finished) | None => {}
        Some(End::Idle) => {
            stats.idle_timeout.inc();
            record.flags = flag::STREAM_IDLE;
        }
        // A side that broke off breaks the other one off too, so that no end looks orderly that was not.
        Some(End::UpstreamFailed) => {
            record.flags = flag::UPSTREAM_CLOSED;
            duplex.streams().0.reset_on_drop();
        }
        Some(End::DownstreamFailed) => {
            record.flags = flag::DOWNSTREAM_CLOSED;
            duplex.streams().1.reset_on_drop();
        }
    }
    stats.downstream_cx_active.dec();
}

async fn open(worker: &Rc<Worker>, info: &Info, proxy: &TcpProxy, record: &mut Record<'_>) -> Option<Upstream> {
    let live = worker.live();
    let mut overrides = UpstreamOverrides::default();
    if !info.chain.on_new_connection.is_empty() {
        let facts = Facts {
            local: Some(info.local),
            remote: Some(info.peer),
            direct_remote: Some(info.direct),
            server_name: info.server_name.as_deref(),
            peer_uri_san: info.tls.as_ref().and_then(|t| t.principal.as_deref()),
            ..Facts::default()
        };
        overrides.apply(&info.chain.on_new_connection, &facts);
    }
    let name = match &overrides.tcp_cluster {
        Some(name) => Arc::clone(name),
        None => Arc::clone(choose_tcp_cluster(&proxy.cluster, worker.random())?),
    };
    overrides.tcp_cluster = None;
    let Some(state) = worker.upstreams.get(&worker.local, &live.config, &name) else {
        record.flags = flag::NO_CLUSTER;
        return None;
    };
    record.cluster = Some(Rc::clone(&state));
    let overrides = Rc::new(overrides);
    let hash = proxy.hash_source_ip.then(|| xxh64(info.peer.ip().to_string().as_bytes(), 0));
    let asked = info.server_name.as_deref();
    let dynamic = info.chain.sni_port.and_then(|port| Some(format!("{}:{port}", asked?)));
    let mut tried = Vec::new();
    for attempt in 0..proxy.max_connect_attempts.max(1) {
        if attempt > 0 {
            tokio::time::sleep(PAUSE).await;
        }
        let wish = Wish {
            restored: info.restored,
            from_header: None,
            tried: &tried,
            reselections: u32::from(attempt > 0),
            hash,
            overrides: &overrides,
            auto_sni: None,
            subset: &proxy.subset,
            tried_priorities: &[],
            authority: dynamic.as_deref().or(asked),
            client: Some((info.peer, info.local)),
            proxy_protocol: None,
            source: info.source(),
        };
        let Some(chosen) = choose::choose(&worker.local, &live.config, &state, wish).await else {
            state.stats.upstream_cx_none_healthy.inc();
            record.flags = flag::NO_HEALTHY;
            return None;
        };
        let address = chosen.target.address;
        record.upstream = chosen.target.pipe.is_none().then_some(address);
        record.endpoint.clone_from(&chosen.endpoint);
        let (Some(counted), Some(request)) = (state.connection(false, false), state.begin(address, false)) else {
            record.flags = flag::OVERFLOW;
            return None;
        };
        match connect::connect(&worker.local, &state.cluster, &state.stats, &chosen.target, "").await {
            Ok(mut stream) => {
                record.shown.clone_from(&stream.shown);
                record.upstream_local = stream.socket().tcp().local_addr().ok();
                state.outcome(worker, address, Outcome::ConnectSuccess, Instant::now());
                if let Some(tunnel) = &proxy.tunnel {
                    let opened = crate::tunnel::open(&mut stream, tunnel, info);
                    let within = tokio::time::timeout(state.cluster.connect_timeout, opened).await;
                    if let Err(e) = within.unwrap_or(Err(crate::tunnel::NoTunnel::Timeout)) {
                        record.flags = flag::CONNECT_FAILED;
                        record.failure = Some(e.to_string());
                        tracing::debug!(cluster = %name, %address, "no tunnel: {e}");
                        tried.push(address);
                        continue;
                    }
                }
                return Some(Upstream { stream, _counted: (counted, request) });
            }
            Err(e) => {
                record.flags = e.flag();
                record.failure = Some(e.to_string());
                state.outcome(worker, address, Outcome::LocalFailure, Instant::now());
                tracing::debug!(cluster = %name, %address, "connect failed: {e}");
                tried.push(address);
            }
        }
    }
    None
}

/// What a connection was, written when it ends.
struct Record<'a> {
    worker: &'a Worker,
    info: &'a Info,
    proxy: &'a TcpProxy,
    started: Instant,
    flags: &'static str,
    up: u64,
    down: u64,
    cluster: Option<Rc<ClusterState>>,
    upstream: Option<SocketAddr>,
    failure: Option<String>,
    /// Refused by policy, and why.
    refused: Option<String>,
    /// The endpoint.
    endpoint: Option<(Arc<EndpointSet>, usize)>,
    shown: Option<Arc<Shown>>,
    upstream_local: Option<SocketAddr>,
    open: bool,
}

impl Record<'_> {
    fn opened(&mut self) {
        self.open = true;
        self.cell().opened.inc();
    }

    /// Where it is counted in Istio's metrics.
    fn cell(&self) -> Arc<TcpCell> {
        let outbound = match self.info.listener.direction {
            Direction::Outbound => true,
            Direction::Inbound => false,
            Direction::Unspecified => self.info.tls.is_none(),
        };
        let (peer_principal, own_principal) = if outbound {
            principals(self.shown.as_ref())
        } else {
            let tls = self.info.tls.as_ref();
            (tls.and_then(|t| t.principal.as_ref()), tls.and_then(|t| t.local.as_ref()))
        };
        let endpoint = self.endpoint.as_ref().and_then(|(set, at)| set.endpoints.get(*at)).filter(|_| outbound);
        let peer = endpoint.and_then(|e| self.worker.peers.of_endpoint(e));
        let config = self.info.chain.stats.as_ref();
        let answers: Vec<Box<str>> = config.map_or_else(Vec::new, |config| {
            let facts = self.facts(self.started.elapsed(), 0);
            let answer = |e: &Expr| e.eval(&facts).and_then(Val::into_text).unwrap_or_else(|| "unknown".to_owned());
            config.asked.iter().map(|e| answer(e).into()).collect()
        });
        self.worker.stats.sets.connection(KeyRef {
            outbound,
            service: self.cluster.as_ref().map(|c| &c.service),
            host: None,
            code: 0,
            flags: self.flags,
            grpc: None,
            protocol: "tcp",
            mutual: self.info.mutual(),
            peer: peer.as_ref(),
            peer_principal,
            own_principal,
            config,
            answers: &answers,
        })
    }

    fn facts(&self, took: Duration, millis: u64) -> Facts<'_> {
        let tls = self.info.tls.as_ref();
        Facts {
            local: Some(self.info.local),
            remote: Some(self.info.peer),
            direct_remote: Some(self.info.direct),
            peer_uri_san: tls.and_then(|t| t.principal.as_deref()),
            local_uri_san: tls.and_then(|t| t.local.as_deref()),
            tls_version: tls.map(|t| t.version),
            server_name: self.info.server_name.as_deref(),
            upstream: self.upstream,
            upstream_local: self.upstream_local,
            cluster: self.cluster.as_ref().map(|c| &*c.cluster.name),
            chain: Some(&self.info.chain.name),
            start: Some(crate::log::since_epoch(took)),
            hostname: Some(&self.worker.hostname),
            upstream_tls: self.shown.as_ref().map(|s| s.version),
            duration_ms: Some(millis),
            bytes_received: self.up,
            bytes_sent: self.down,
            flags: (self.flags != flag::NONE).then_some(self.flags),
            upstream_failure: self.failure.as_deref(),
            termination_details: self.refused.as_deref(),
            connection_id: Some(self.info.id),
            ..Facts::default()
        }
    }
}

impl Drop for Record<'_> {
    fn drop(&mut self) {
        if self.open {
            let cell = self.cell();
            cell.closed.inc();
            // As Istio has it: sent in the response, received in the request.
            cell.sent.add(self.down);
            cell.received.add(self.up);
        }
        if let Some(c) = &self.cluster {
            c.stats.upstream_cx_tx_bytes_total.add(self.up);
            c.stats.upstream_cx_rx_bytes_total.add(self.down);
        }
        if self.proxy.access_logs.is_empty() {
            return;
        }
        let took = self.started.elapsed();
        let facts = self.facts(took, u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        self.worker.log.write(&self.proxy.access_logs, &facts, 0, took, self.flags);
    }
}
