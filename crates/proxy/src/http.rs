//! HTTP connections from clients: which codec, its limits, and how a connection ends.
//!
//! Invariant: a codec frames messages, `proxy-core` decides; here they meet. A connection that is to leave is told so in
//! its protocol's way (`connection: close`, GOAWAY) and never cut while a request is under way before the deadline.

pub mod body;
mod connection;
pub mod exchange;
mod filters;
mod forward;
mod head;
mod http1;
mod mirror;
mod reply;
mod service;
mod trace;
mod upgrade;

use crate::info::Info;
use crate::io::stream::Stream;
use crate::lifecycle::{Lease, Phase};
use crate::message::h1::server::Line;
use crate::message::h2::{self, PREFACE};
use crate::upstream::pool::{CONNECTION_WINDOW, WINDOW};
use crate::worker::Worker;
use carrick_proxy_core::model::hcm::{Codec, HttpConnectionManager};
use connection::HttpConn;

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Sleep;

/// Bytes before a frame's payload.
const FRAME_HEAD: usize = 9;

/// Serves a connection of an HTTP chain to its end.
pub(crate) async fn serve(worker: Rc<Worker>, mut stream: Stream, info: Rc<Info>, lease: Lease) {
    let carrick_proxy_core::model::listener::ChainKind::Http(hcm) = &info.chain.kind else { return };
    if let Some(why) = Box::pin(crate::rbac::refusal(&worker, &info)).await {
        tracing::debug!(peer = %info.peer, "connection refused: {why}");
        return;
    }
    let begins = {
        let choice = Box::pin(beginning(hcm, &info, &mut stream));
        tokio::select! {
            begins = choice => begins,
            () = lease.reached(Phase::Closing) => None,
        }
    };
    let stats = worker.stats.http(&hcm.stat_prefix);
    let h2 = match begins {
        Some(Beginning::Http1) => false,
        Some(Beginning::Http2) => true,
        Some(Beginning::Broken) => {
            stats.downstream_cx_protocol_error.inc();
            return;
        }
        None => return,
    };
    if !h2 {
        let line = Rc::new(Line::new(stream, http1::limits(hcm)));
        let conn = HttpConn::new(worker, Rc::clone(&info), stats, lease, Some(Rc::clone(&line)));
        return http1::serve(Rc::new(conn), hcm, line).await;
    }
    let conn = Rc::new(HttpConn::new(worker, Rc::clone(&info), stats, lease, None));
    let service = |request| service::answer(Rc::clone(&conn), request);
    let alive = hcm.http2.keepalive_interval.map(|interval| h2::Alive::new(interval, hcm.http2.keepalive_timeout));
    let patience = h2::Patience { stalled: hcm.stream_idle_timeout, ..h2::Patience::default() };
    let mut server = h2::server::Server::new(stream, http2_options(hcm), alive, patience, service);
    let mut watch = Watch::new(hcm);
    let result = std::future::poll_fn(|cx| {
        if watch.poll(cx, &conn, || server.leave()).is_ready() {
            return Poll::Ready(Ok(()));
        }
        server.poll(cx)
    })
    .await;
    if let Err(e) = result {
        conn.stats.downstream_cx_protocol_error.inc();
        tracing::debug!(peer = %info.peer, "protocol error: {e}");
    }
}

/// What a client's first bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beginning {
    Http1,
    Http2,
    /// HTTP/2's preface without the SETTINGS that belong to it (RFC 9113 §3.4). The codec would not mind.
    Broken,
}

/// By the chain's codec; else by ALPN; else by the first bytes. `None`: the client left before that.
async fn beginning(hcm: &HttpConnectionManager, info: &Info, stream: &mut Stream) -> Option<Beginning> {
    let alpn = info.tls.as_ref().and_then(|t| t.alpn.as_deref()).map(|alpn| alpn == b"h2");
    let certain = match hcm.codec {
        Codec::Http1 => Some(false),
        Codec::Http2 => Some(true),
        Codec::Auto => alpn,
    };
    if certain == Some(false) {
        return Some(Beginning::Http1);
    }
    let otherwise = if certain == Some(true) { Beginning::Http2 } else { Beginning::Http1 };
    let look = stream.inspect(PREFACE.len().saturating_add(FRAME_HEAD), |seen| begins(seen, otherwise));
    let limit = hcm.request_headers_timeout.or(hcm.idle_timeout).unwrap_or(Duration::from_secs(3600));
    tokio::time::timeout(limit, look).await.ok()?.ok()?
}

/// `otherwise` for what is not HTTP/2's preface; `None` while it could become that.
fn begins(seen: &[u8], otherwise: Beginning) -> Option<Beginning> {
    const SETTINGS: u8 = 4;
    const ACK: u8 = 1;
    match seen.strip_prefix(PREFACE) {
        Some(frame) => {
            let (kind, flags) = (*frame.get(3)?, *frame.get(4)?);
            Some(if kind == SETTINGS && flags & ACK == 0 { Beginning::Http2 } else { Beginning::Broken })
        }
        None if PREFACE.starts_with(seen) => None,
        None => Some(otherwise),
    }
}

/// Follows the lease of an HTTP/2 connection and its times: it leaves as phases come, when it is idle and when it is old.
struct Watch {
    seen: Phase,
    idle: Timer,
    age: Timer,
    served: u32,
}

impl Watch {
    fn new(hcm: &HttpConnectionManager) -> Self {
        let (idle, age) = (Timer::new(hcm.idle_timeout), Timer::new(hcm.max_connection_duration));
        Watch { seen: Phase::Serving, idle, age, served: 0 }
    }

    /// Ready when it is to be cut.
    fn poll(&mut self, cx: &mut Context<'_>, conn: &HttpConn, leave: impl Fn()) -> Poll<()> {
        while let Poll::Ready(phase) = conn.lease.poll_past(cx, self.seen) {
            self.seen = phase;
            match phase {
                Phase::Cut => return Poll::Ready(()),
                // A goodbye without a race.
                Phase::Draining | Phase::Closing => leave(),
                Phase::Serving => {}
            }
            conn.stats.downstream_cx_drain_close.inc();
        }
        if self.idle.is_over(cx) {
            if conn.active.get() == 0 && conn.served.get() == self.served {
                conn.stats.downstream_cx_idle_timeout.inc();
                leave();
            }
            self.served = conn.served.get();
        }
        if self.age.is_over(cx) {
            leave();
        }
        Poll::Pending
    }
}

/// A repeating timer that costs little while it does not fire.
struct Timer(Option<(Duration, Pin<Box<Sleep>>)>);

impl Timer {
    fn new(limit: Option<Duration>) -> Self {
        Timer(limit.map(|d| (d, Box::pin(tokio::time::sleep(d)))))
    }

    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        let Some((limit, sleep)) = &mut self.0 else { return false };
        if sleep.as_mut().poll(cx).is_pending() {
            return false;
        }
        sleep.as_mut().reset(tokio::time::Instant::now() + *limit);
        // Registered again; if the time is that short it fires on the next poll.
        let _ = sleep.as_mut().poll(cx);
        true
    }
}

fn http2_options(hcm: &HttpConnectionManager) -> h2::Own {
    let o = &hcm.http2;
    h2::Own {
        table: o.hpack_table_size,
        streams: o.max_concurrent_streams,
        window: o.initial_stream_window.min(WINDOW),
        connection: o.initial_connection_window.min(CONNECTION_WINDOW),
        list: hcm.max_request_headers_bytes,
        connect: o.allow_connect || hcm.upgrades.iter().any(|u| u.enabled && &*u.kind == "websocket"),
    }
}

/// Whether the router writes no `x-envoy-*` headers.
fn suppressed(conn: &HttpConn) -> bool {
    use carrick_proxy_core::model::filter::HttpFilter;
    conn.hcm().is_some_and(|h| h.filters.iter().any(|f| matches!(f, HttpFilter::Router(r) if r.suppress_envoy_headers)))
}

/// As the log writes it.
pub(crate) fn protocol_name(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_10 => "HTTP/1.0",
        http::Version::HTTP_2 => "HTTP/2",
        _ => "HTTP/1.1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preface_needs_its_settings() {
        let with = |rest: &[u8]| [PREFACE, rest].concat();
        for (seen, wanted) in [
            (b"GET / HTTP/1.1".to_vec(), Some(Beginning::Http1)),
            (b"PRI * HTTP/1.1".to_vec(), Some(Beginning::Http1)),
            (b"PRI ".to_vec(), None),
            (with(b""), None),
            (with(&[0, 0, 0, 4]), None),
            (with(&[0, 0, 0, 4, 0]), Some(Beginning::Http2)),
            (with(&[0, 0, 0, 4, 1]), Some(Beginning::Broken)),
            (with(&[0, 0, 9, 1, 5]), Some(Beginning::Broken)),
        ] {
            assert_eq!(begins(&seen, Beginning::Http1), wanted, "{seen:?}");
        }
    }
}
