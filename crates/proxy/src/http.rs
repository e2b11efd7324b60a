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

use crate::exec::LocalExec;
use crate::info::Info;
use crate::io::stream::Stream;
use crate::lifecycle::{Lease, Phase};
use crate::message::h1::server::Line;
use crate::message::incoming::Incoming;
use crate::upstream::pool::{CONNECTION_WINDOW, WINDOW};
use crate::worker::Worker;
use carrick_proxy_core::model::hcm::{Codec, HttpConnectionManager};
use connection::HttpConn;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Sleep;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
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
    let service = {
        let conn = Rc::clone(&conn);
        service_fn(move |request: http::Request<hyper::body::Incoming>| {
            // The library moves it about, and it is large.
            let answer = Box::pin(service::answer(Rc::clone(&conn), request.map(Incoming::Http2)));
            async move { Ok::<_, Infallible>(answer.await) }
        })
    };
    let mut connection = Box::pin(http2_builder(hcm).serve_connection(TokioIo::new(stream), service));
    let result = drive(&conn, hcm, connection.as_mut(), |c| c.graceful_shutdown()).await;
    if let Err(e) = result
        && (e.is_parse() || e.is_parse_too_large())
    {
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

/// Polls an HTTP/2 connection while its lease allows: leaving, closing and cutting as phases come, and closing when idle.
async fn drive<C>(
    conn: &Rc<HttpConn>,
    hcm: &HttpConnectionManager,
    mut connection: Pin<&mut C>,
    leave: impl Fn(Pin<&mut C>),
) -> hyper::Result<()>
where
    C: Future<Output = hyper::Result<()>>,
{
    let mut seen = Phase::Serving;
    let mut idle = Timer::new(hcm.idle_timeout);
    let mut age = Timer::new(hcm.max_connection_duration);
    let mut served = 0;
    std::future::poll_fn(|cx| {
        while let Poll::Ready(phase) = conn.lease.poll_past(cx, seen) {
            seen = phase;
            match phase {
                Phase::Cut => return Poll::Ready(Ok(())),
                // A goodbye without a race.
                Phase::Draining | Phase::Closing => leave(connection.as_mut()),
                Phase::Serving => {}
            }
            conn.stats.downstream_cx_drain_close.inc();
        }
        if idle.is_over(cx) {
            if conn.active.get() == 0 && conn.served.get() == served {
                conn.stats.downstream_cx_idle_timeout.inc();
                leave(connection.as_mut());
            }
            served = conn.served.get();
        }
        if age.is_over(cx) {
            leave(connection.as_mut());
        }
        connection.as_mut().poll(cx)
    })
    .await
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

fn http2_builder(hcm: &HttpConnectionManager) -> http2::Builder<LocalExec> {
    let o = &hcm.http2;
    let mut b = http2::Builder::new(LocalExec);
    b.timer(TokioTimer::new())
        .max_concurrent_streams(o.max_concurrent_streams)
        .initial_stream_window_size(o.initial_stream_window.min(WINDOW))
        .initial_connection_window_size(o.initial_connection_window.min(CONNECTION_WINDOW))
        .header_table_size(o.hpack_table_size)
        .max_header_list_size(hcm.max_request_headers_bytes)
        .max_send_buf_size(256 * 1024);
    if let Some(interval) = o.keepalive_interval {
        b.keep_alive_interval(interval).keep_alive_timeout(o.keepalive_timeout);
    }
    if o.allow_connect || hcm.upgrades.iter().any(|u| u.enabled && &*u.kind == "websocket") {
        b.enable_connect_protocol();
    }
    b
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
