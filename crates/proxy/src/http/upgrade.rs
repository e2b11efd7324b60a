//! Requests that turn their connection into a byte stream: WebSocket and other upgrades, CONNECT.
//!
//! Invariant: bytes go through the one duplex engine, and the exchange ends with them.

use super::connection::HttpConn;
use super::exchange::Exchange;
use crate::io::duplex::{Duplex, End};
use crate::lifecycle::Phase;
use crate::message::h1::client;
use crate::message::h2::pipe::{Piped, Tunnel};
use crate::names::flag;
use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{StatusCode, response::Parts};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use tokio::io::{AsyncRead, AsyncWrite};

/// Both halves of an upgrade that both sides agreed to.
pub struct Start {
    /// The client's; an HTTP/1 connection's own task has it.
    pub(super) down: Option<Tunnel>,
    pub(super) up: Up,
    /// What the client gets, where it has a stream.
    pub(super) answer: Option<Piped>,
}

/// The upstream's half.
pub enum Up {
    /// A whole connection.
    Http1(client::Shared),
    /// A stream.
    Http2(Option<Tunnel>),
}

impl std::fmt::Debug for Start {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Start").finish_non_exhaustive()
    }
}

/// Bytes both ways, whatever they come on.
trait Both: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Both for T {}
type Wire = Box<dyn Both>;

/// Whether a response says that the upstream switched.
pub(super) fn has_switched(kind: &str, _h2: bool, status: StatusCode) -> bool {
    status == StatusCode::SWITCHING_PROTOCOLS || (kind == "connect" && status.is_success())
}

/// Turns the response of an HTTP/1 upstream into what an HTTP/2 client expects (RFC 8441 §5).
pub(super) fn translate(parts: &mut Parts, h2: bool) {
    if h2 && parts.status == StatusCode::SWITCHING_PROTOCOLS {
        parts.status = StatusCode::OK;
        // `sec-websocket-accept` stays, as in Envoy: a proxy between may speak HTTP/1 to a client that asks for it.
        for name in [CONNECTION, UPGRADE] {
            parts.headers.remove(name);
        }
    }
}

/// Turns an HTTP/2 upstream's agreement to extended CONNECT into HTTP/1's.
pub(super) fn agreed<B>(response: &mut http::Response<B>, kind: &str) {
    if !response.status().is_success() {
        return;
    }
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    if let Ok(kind) = HeaderValue::from_str(kind) {
        headers.insert(UPGRADE, kind);
    }
}

impl Start {
    /// Begins in a task of its own.
    pub(super) fn begin(self, exchange: Box<Exchange>) {
        let worker = Rc::clone(&exchange.conn.worker);
        worker.spawn(self.run(exchange));
    }

    /// Copies until both ends are done; the exchange is recorded then.
    pub(super) async fn run(mut self, mut exchange: Box<Exchange>) {
        let conn = Rc::clone(&exchange.conn);
        let idle = conn.hcm().and_then(|h| h.stream_idle_timeout);
        let Some((down, up)) = self.halves(&conn) else {
            exchange.flags = flag::UPSTREAM_CLOSED;
            return;
        };
        // The connection to the upstream is no longer HTTP, so it does not go back to its pool.
        exchange.checkout = None;
        conn.stats.downstream_cx_upgrades_total.inc();
        conn.stats.downstream_cx_upgrades_active.inc();
        let mut duplex = Duplex::new(down, up, idle);
        let end = poll_fn(|cx| {
            if conn.lease.poll_past(cx, Phase::Closing).is_ready() {
                return Poll::Ready(None);
            }
            duplex.poll(cx).map(Some)
        })
        .await;
        let moved = duplex.moved();
        exchange.received.set(moved.up);
        exchange.sent = moved.down;
        exchange.flags = match end {
            Some(End::Finished) => flag::NONE,
            Some(End::Idle) => flag::STREAM_IDLE,
            Some(End::UpstreamFailed) => flag::UPSTREAM_CLOSED,
            Some(End::DownstreamFailed) | None => flag::DOWNSTREAM_CLOSED,
        };
        exchange.finished();
        conn.stats.downstream_cx_upgrades_active.dec();
    }

    /// Both wires, with what has come on them already.
    fn halves(&mut self, conn: &HttpConn) -> Option<(Wire, Wire)> {
        let down: Wire = match self.down.take() {
            Some(down) => Box::new(down),
            None => {
                let (mut stream, ahead) = conn.line.as_ref()?.take()?;
                stream.replay(ahead.freeze());
                Box::new(stream)
            }
        };
        let up: Wire = match &mut self.up {
            Up::Http1(connection) => {
                let (mut stream, ahead) = connection.borrow_mut().take()?;
                stream.replay(ahead.freeze());
                Box::new(stream)
            }
            Up::Http2(up) => Box::new(up.take()?),
        };
        Some((down, up))
    }
}
