//! An HTTP/1 connection from its first byte to its last: one request after another, each answered before the next is looked at.
//!
//! Invariant: a client that goes takes its request with it. A connection carries another request only if both messages ended in order;
//! whoever is refused is answered and goes.

use super::body::ResponseBody;
use super::connection::HttpConn;
use super::{Timer, service};
use crate::lifecycle::Phase;
use crate::message::h1::body::Encoder;
use crate::message::h1::maps;
use crate::message::h1::read::{Head, Limits, Refused};
use crate::message::h1::server::Line;
use crate::message::h1::write::{self, To};
use crate::message::incoming::Incoming;
use crate::turn::give_way;
use carrick_proxy_core::model::hcm::{HeaderCase, HttpConnectionManager};
use http::header::{CONNECTION, CONTENT_TYPE, HOST};
use http::{HeaderValue, Method, Request};
use http_body::Body;
use std::future::{Future as _, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// How long a connection that we end waits for its client's end, as Envoy's.
const LINGER: Duration = Duration::from_secs(1);

/// What the codec is to know of a connection manager.
pub(super) fn limits(hcm: &HttpConnectionManager) -> Limits {
    Limits {
        bytes: usize::try_from(hcm.max_request_headers_bytes).unwrap_or(60 * 1024),
        fields: usize::try_from(hcm.max_headers_count).unwrap_or(100),
        accept_http_10: hcm.http1.accept_http_10,
        keep_case: hcm.http1.header_case == HeaderCase::Preserve,
    }
}

/// What is done after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    /// The next.
    Next,
    /// The connection is ended in order; the client may still be sending.
    End { lingers: bool },
    /// The connection is dropped as it is.
    Drop,
}

/// The next head; none when the connection is to end; an error without a refusal when it is to be cut.
type Next = Result<Option<Head<Request<()>>>, Option<Refused>>;

/// What ends a connection besides its messages.
struct Watch {
    seen: Phase,
    idle: Timer,
    served: u32,
    /// When it is old enough.
    age: Option<Instant>,
    old: Timer,
    /// Limits the time of a head that has begun.
    head: Option<Timer>,
}

/// Serves a connection to its end.
pub(super) async fn serve(conn: Rc<HttpConn>, hcm: &HttpConnectionManager, line: Rc<Line>) {
    let mut watch = Watch {
        seen: Phase::Serving,
        idle: Timer::new(hcm.idle_timeout),
        served: 0,
        age: hcm.max_connection_duration.map(|age| Instant::now() + age),
        old: Timer::new(hcm.max_connection_duration),
        head: None,
    };
    let after = loop {
        let next = poll_fn(|cx| watch.poll_head(cx, &conn, hcm, &line)).await;
        let (request, keep_alive) = match next {
            Ok(Some(head)) => received(head, &line),
            Ok(None) => break After::End { lingers: false },
            Err(Some(refused)) => (stand_in(refused), false),
            Err(None) => break After::Drop,
        };
        let told = line.refusal().is_some();
        let after = one(&conn, hcm, &line, &mut watch, request, keep_alive).await;
        if !told && line.refusal().is_some() {
            conn.stats.downstream_cx_protocol_error.inc();
        }
        if after != After::Next {
            break after;
        }
    };
    if let After::End { lingers } = after {
        let _ = tokio::time::timeout(LINGER, poll_fn(|cx| line.poll_end(cx, lingers))).await;
    }
    drop(line.take());
}

fn received(head: Head<Request<()>>, line: &Rc<Line>) -> (Request<Incoming>, bool) {
    let number = line.number();
    let body = if line.body_is_over(number) { Incoming::Empty } else { Incoming::Request(Rc::clone(line), number) };
    (head.message.map(|()| body), head.keep_alive)
}

/// A request in the place of one that was refused; it has what decides how that is answered: whether with a body, and whether in gRPC.
fn stand_in(refused: Refused) -> Request<Incoming> {
    let mut request = Request::new(Incoming::Empty);
    if refused.is_head {
        *request.method_mut() = Method::HEAD;
    }
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_static("refused"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    if let Some(kind) = refused.kind {
        headers.insert(CONTENT_TYPE, kind);
    }
    request
}

impl Watch {
    /// Follows the lease; true if the connection is to be cut.
    fn is_cut(&mut self, cx: &mut Context<'_>, conn: &HttpConn) -> bool {
        while let Poll::Ready(phase) = conn.lease.poll_past(cx, self.seen) {
            self.seen = phase;
            if phase == Phase::Cut {
                return true;
            }
            conn.stats.downstream_cx_drain_close.inc();
        }
        false
    }

    /// Whether no further request is taken. A draining connection is told with its next response, since closing it while it is idle could
    /// cross a request on its way.
    fn is_closing(&self) -> bool {
        self.seen >= Phase::Closing || self.age.is_some_and(|age| Instant::now() >= age)
    }

    /// The next head; none when the connection is to end; an error without a refusal when it is to be cut.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        conn: &HttpConn,
        hcm: &HttpConnectionManager,
        line: &Line,
    ) -> Poll<Next> {
        if self.is_cut(cx, conn) {
            return Poll::Ready(Err(None));
        }
        if let Poll::Ready(head) = line.poll_head(cx) {
            self.head = None;
            return Poll::Ready(head.map_err(Some));
        }
        if self.is_closing() || self.old.is_over(cx) {
            return Poll::Ready(Ok(None));
        }
        if self.idle.is_over(cx) && std::mem::replace(&mut self.served, conn.served.get()) == conn.served.get() {
            conn.stats.downstream_cx_idle_timeout.inc();
            return Poll::Ready(Ok(None));
        }
        let begun = hcm.request_headers_timeout.is_some() && line.has_begun();
        if begun && self.head.get_or_insert_with(|| Timer::new(hcm.request_headers_timeout)).is_over(cx) {
            return Poll::Ready(Ok(None));
        }
        Poll::Pending
    }
}

/// Answers one request.
async fn one(
    conn: &Rc<HttpConn>,
    hcm: &HttpConnectionManager,
    line: &Rc<Line>,
    watch: &mut Watch,
    request: Request<Incoming>,
    keep_alive: bool,
) -> After {
    let (method, version) = (request.method().clone(), request.version());
    let response = {
        let mut answer = pin!(service::answer(Rc::clone(conn), request));
        let answered = poll_fn(|cx| {
            if watch.is_cut(cx, conn) {
                return Poll::Ready(None);
            }
            match answer.as_mut().poll(cx) {
                Poll::Ready(response) => Poll::Ready(Some(response)),
                Poll::Pending => line.poll_gone(cx).map(|()| None),
            }
        });
        match answered.await {
            Some(response) => response,
            None => return After::Drop,
        }
    };
    let (parts, body) = response.into_parts();
    let keep_alive = keep_alive && !watch.is_closing() && line.refusal().is_none();
    let to = To { method: &method, version, keep_alive };
    let size = body.size_hint().exact();
    let (mut encoder, keep_alive) = line.put(|o| write::response(&mut o.text, &parts, to, hcm.http1.header_case, size));
    maps::give_back(parts.headers);
    let until_end = matches!(encoder, Encoder::UntilEnd);
    let mut body = match body {
        ResponseBody::Upgraded(start, Some(exchange)) => {
            let written = poll_fn(|cx| line.poll_write(cx)).await;
            if written.is_ok() {
                Box::pin(start.run(exchange)).await;
            }
            return After::Drop;
        }
        // What is recorded of a request is recorded before its client can know that it is over.
        body => (!matches!(encoder, Encoder::Length(0))).then_some(body),
    };
    give_way().await;
    // For the last of it, when the exchange is over.
    let mut flush: Option<Timer> = None;
    let written = poll_fn(|cx| {
        if watch.is_cut(cx, conn) {
            return Poll::Ready(Err(After::Drop));
        }
        let mut broken = false;
        loop {
            let mut waits = false;
            while !broken
                && !waits
                && line.put(|o| o.has_room())
                && let Some(body_now) = &mut body
            {
                let mut over = body_now.is_end_stream();
                if !over {
                    match Pin::new(&mut *body_now).poll_frame(cx) {
                        Poll::Ready(Some(Ok(frame))) => {
                            broken = line.put(|o| encoder.put(frame, o)).is_err();
                            over = body_now.is_end_stream();
                        }
                        Poll::Ready(Some(Err(_))) => broken = true,
                        Poll::Ready(None) => over = true,
                        Poll::Pending => waits = true,
                    }
                }
                if over && !broken {
                    body = None;
                    broken = line.put(|o| encoder.end(o)).is_err();
                }
            }
            match line.poll_write(cx) {
                // Half a body must not look whole.
                Poll::Ready(Ok(())) if broken => {
                    if until_end {
                        line.reset();
                    }
                    return Poll::Ready(Err(After::Drop));
                }
                Poll::Ready(Ok(())) if body.is_none() => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(())) if waits => return line.poll_gone(cx).map(|()| Err(After::Drop)),
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(After::Drop)),
                Poll::Pending => {
                    let late = match &mut body {
                        Some(body) => body.drive(cx).is_ready(),
                        None => flush.get_or_insert_with(|| Timer::new(hcm.stream_idle_timeout)).is_over(cx),
                    };
                    if late {
                        return Poll::Ready(Err(After::Drop));
                    }
                    return line.poll_gone(cx).map(|()| Err(After::Drop));
                }
            }
        }
    })
    .await;
    if let Err(after) = written {
        return after;
    }
    let whole = poll_fn(|cx| Poll::Ready(line.skip_body(cx))).await;
    // Behind CONNECT may come what is no HTTP.
    let again = keep_alive && whole && !watch.is_closing() && method != Method::CONNECT;
    if again { After::Next } else { After::End { lingers: !whole } }
}
