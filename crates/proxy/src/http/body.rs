//! Response bodies on their way to the client: streamed, never collected.
//!
//! Invariant: a body knows how it ended, and its exchange is told exactly once, also by a drop.

use super::exchange::Exchange;
use crate::message::h2::Outgoing;
use crate::message::h2::pipe::Piped;
use crate::message::incoming::{Broken, Incoming};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The connection it came on.
    #[error(transparent)]
    Connection(#[from] Broken),
    /// A time limit.
    #[error("time limit reached")]
    TimedOut,
}

/// A response body on its way to the client.
#[derive(Debug)]
pub enum ResponseBody {
    /// None.
    Empty,
    /// Our own words.
    Full(Option<Bytes>),
    /// From upstream; the exchange is told what passes and how it ends.
    Upstream {
        /// What comes.
        body: Incoming,
        /// Whom to tell; set when the response is complete.
        exchange: Option<Box<Exchange>>,
    },
    /// The stream becomes a tunnel: its bytes.
    Piped(Piped),
    /// The connection becomes a byte stream; the exchange is there where the connection's own task begins that.
    Upgraded(super::upgrade::Start, Option<Box<Exchange>>),
}

impl ResponseBody {
    /// Moves on what is still to be sent upstream while the client takes nothing. Ready when it has taken nothing for too long.
    pub fn drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let ResponseBody::Upstream { body, exchange: Some(exchange) } = self else { return Poll::Pending };
        body.drive(cx);
        exchange.poll_limits(cx).map(|()| exchange.failed())
    }
}

impl Outgoing for ResponseBody {
    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        ResponseBody::drive(self, cx)
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            ResponseBody::Empty | ResponseBody::Upgraded(..) => Poll::Ready(None),
            ResponseBody::Piped(piped) => Pin::new(piped).poll_frame(cx).map(|f| f.map(|f| f.map_err(BodyError::from))),
            ResponseBody::Full(b) => Poll::Ready(b.take().filter(|b| !b.is_empty()).map(|b| Ok(Frame::data(b)))),
            ResponseBody::Upstream { body, exchange } => {
                let Some(exchange) = exchange else { return Poll::Ready(None) };
                let frame = match Pin::new(&mut *body).poll_frame(cx) {
                    Poll::Ready(f) => f,
                    Poll::Pending => {
                        return exchange.poll_limits(cx).map(|()| {
                            exchange.failed();
                            Some(Err(BodyError::TimedOut))
                        });
                    }
                };
                let over = match &frame {
                    None => true,
                    Some(Err(_)) => {
                        exchange.failed();
                        false
                    }
                    Some(Ok(f)) => {
                        exchange.passed(f);
                        // Nobody asks again once a length is reached, so the end is told here.
                        f.is_trailers() || body.is_end_stream()
                    }
                };
                if over {
                    // The connection goes back to its pool: what comes on it next is not of this response.
                    *body = Incoming::Empty;
                    exchange.finished();
                }
                Poll::Ready(frame.map(|f| f.map_err(BodyError::from)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ResponseBody::Empty | ResponseBody::Upgraded(..) => true,
            ResponseBody::Piped(piped) => piped.is_end_stream(),
            ResponseBody::Full(b) => b.as_ref().is_none_or(Bytes::is_empty),
            ResponseBody::Upstream { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ResponseBody::Empty | ResponseBody::Upgraded(..) => SizeHint::with_exact(0),
            ResponseBody::Piped(piped) => piped.size_hint(),
            ResponseBody::Full(b) => SizeHint::with_exact(b.as_ref().map_or(0, |b| b.len() as u64)),
            ResponseBody::Upstream { body, .. } => body.size_hint(),
        }
    }
}
