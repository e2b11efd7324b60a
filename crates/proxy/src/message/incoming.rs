//! A message's body as it comes from a connection, whichever protocol that speaks.
//!
//! Invariant: one type for requests and responses of both protocols, so that filters and forwarding know neither. It ends once, in
//! order or with a [`Broken`].

use crate::message::{h1, h2};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// Why a message broke off, or never began.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// HTTP/2.
    #[error(transparent)]
    Http2(#[from] h2::Fault),
    /// The connection.
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    /// The peer ended it before the message was whole.
    #[error("connection closed before message completed")]
    Incomplete,
    /// What came is not HTTP, or too much of it.
    #[error("not HTTP: {0}")]
    NotHttp(&'static str),
}

impl Broken {
    /// Whether the peer had ended its side before it refused anything.
    pub fn is_end(&self) -> bool {
        let ended = |e: &io::Error| matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof);
        match self {
            Broken::Incomplete => true,
            Broken::NotHttp(_) => false,
            Broken::Io(e) => ended(e),
            Broken::Http2(e) => matches!(e, h2::Fault::Ended | h2::Fault::Unsent),
        }
    }
}

/// See the module.
pub enum Incoming {
    /// Nothing.
    Empty,
    /// A request's, on HTTP/1, with the request's number.
    Request(Rc<h1::server::Line>, u32),
    /// A response's, on HTTP/1.
    Response(h1::client::Shared),
    /// HTTP/2.
    Http2(h2::recv::Recv),
}

impl Incoming {
    /// Moves on what is still to be sent the other way on the same connection, while nobody reads.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        if let Incoming::Response(connection) = self {
            let mut connection = connection.borrow_mut();
            if connection.is_sending() {
                connection.drive(cx);
            }
        }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Incoming::Empty => Poll::Ready(None),
            Incoming::Request(line, number) => line.poll_body(*number, cx),
            Incoming::Response(connection) => connection.borrow_mut().poll_body(cx),
            Incoming::Http2(body) => body.poll_frame(cx).map(|f| f.map(|f| f.map_err(Broken::Http2))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Incoming::Empty => true,
            Incoming::Request(line, number) => line.body_is_over(*number),
            Incoming::Response(connection) => connection.borrow().body_is_over(),
            Incoming::Http2(body) => body.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Incoming::Empty => SizeHint::with_exact(0),
            Incoming::Request(line, number) => line.body_size(*number),
            Incoming::Response(connection) => connection.borrow().body_size(),
            Incoming::Http2(body) => body.size(),
        }
    }
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Incoming::Empty => "Empty",
            Incoming::Request(..) => "Request",
            Incoming::Response(_) => "Response",
            Incoming::Http2(_) => "Http2",
        })
    }
}
