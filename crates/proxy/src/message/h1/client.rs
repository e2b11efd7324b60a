//! A connection on which we ask: one request at a time, written and answered in the task of whoever asks.
//!
//! Invariant: a request that is given back was not begun. The body of a request goes on while its response is read, by whoever reads
//! that ([`Connection::drive`]). A connection is fit for another request only if both messages ended in order and nothing came unasked.

use super::body::{Decoder, Encoder};
use super::input::Input;
use super::names::Names;
use super::{read, write};
use crate::io::stream::Kind;
use crate::io::witness::Witness;
use crate::message::incoming::{Broken, Incoming};
use crate::message::output::Output;
use crate::message::request_body::RequestBody;
use crate::turn::give_way;
use bytes::{Bytes, BytesMut};
use carrick_proxy_core::model::hcm::HeaderCase;
use http::{Method, Response, request};
use http_body::{Body, Frame, SizeHint};
use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

/// A connection, as its pool, its request and its response hold it.
pub type Shared = Rc<RefCell<Connection>>;

/// Why there is no response.
#[derive(Debug)]
pub enum SendError {
    /// The connection had ended before; nothing of the request was written, here is its body again.
    Unsent(Box<RequestBody>),
    /// It broke off.
    Broken(Broken),
}

/// See the module.
pub struct Connection {
    /// Gone once another protocol has taken it over.
    stream: Option<Witness>,
    case: HeaderCase,
    input: Input,
    output: Output,
    names: Names,
    method: Method,
    /// What of the request is still to be written.
    sending: Option<(RequestBody, Encoder)>,
    /// The response's body.
    body: Decoder,
    /// A task of its own writes the request.
    pumped: bool,
    /// That task.
    pump: Option<Waker>,
    keep_alive: bool,
    failed: Option<Broken>,
}

impl Connection {
    /// A connection of which nothing has been used.
    pub fn new(stream: Witness, case: HeaderCase) -> Shared {
        Rc::new(RefCell::new(Connection {
            stream: Some(stream),
            case,
            input: Input::default(),
            output: Output::default(),
            names: Names::default(),
            method: Method::GET,
            sending: None,
            body: Decoder::Over,
            pumped: false,
            pump: None,
            keep_alive: true,
            failed: None,
        }))
    }

    /// Whether another request may follow.
    pub fn is_reusable(&self) -> bool {
        self.keep_alive
            && self.stream.is_some()
            && self.failed.is_none()
            && self.sending.is_none()
            && self.body.is_over()
            && self.output.is_empty()
            && self.input.bytes.is_empty()
            && !self.input.ended
    }

    /// Ready when an idle connection is of no use any more: its peer has ended it, or says something unasked.
    pub fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(()) };
        self.input.rest();
        let read = ready!(self.input.poll_read(stream, 64, cx));
        self.keep_alive = false;
        if read.is_err() {
            self.input.ended = true;
        }
        Poll::Ready(())
    }

    /// The connection itself, with what was read behind the response, for another protocol.
    pub fn take(&mut self) -> Option<(Witness, BytesMut)> {
        Some((self.stream.take()?, std::mem::take(&mut self.input.bytes)))
    }

    fn begin(&mut self, parts: &request::Parts, body: RequestBody) -> Result<(), Broken> {
        let size = (!body.is_end_stream()).then(|| body.size_hint().exact());
        let encoder = write::request(&mut self.output.text, parts, self.case, size)?;
        self.sending = size.is_some().then_some((body, encoder));
        self.method.clone_from(&parts.method);
        self.pumped = false;
        // Until the response says so.
        self.keep_alive = false;
        Ok(())
    }

    /// Whether some of the request is still to be written.
    pub fn is_sending(&self) -> bool {
        self.sending.is_some() || !self.output.is_empty()
    }

    /// From now on [`pump`] writes.
    pub fn leave_to_pump(&mut self) {
        self.pumped = true;
    }

    /// Writes what can be written, and asks the request's body for more.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        if self.failed.is_none()
            && let Err(e) = self.write(cx)
        {
            self.sending = None;
            self.failed = Some(e);
        }
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), Broken> {
        let Some(stream) = &mut self.stream else { return Ok(()) };
        loop {
            let mut waits = false;
            while self.output.has_room()
                && let Some((body, encoder)) = &mut self.sending
            {
                let frame = match body.is_end_stream() {
                    true => None,
                    false => match Pin::new(body).poll_frame(cx) {
                        Poll::Ready(frame) => frame,
                        Poll::Pending => {
                            waits = true;
                            break;
                        }
                    },
                };
                match frame {
                    Some(frame) => encoder.put(frame?, &mut self.output)?,
                    None => {
                        encoder.end(&mut self.output)?;
                        self.sending = None;
                    }
                }
            }
            if self.output.is_empty() {
                return Ok(());
            }
            match self.output.poll_write(Pin::new(&mut *stream), cx) {
                Poll::Ready(written) => written?,
                Poll::Pending => return Ok(()),
            }
            if waits || self.sending.is_none() {
                return Ok(());
            }
        }
    }

    fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<()>, Broken>> {
        loop {
            let keep_case = self.case == HeaderCase::Preserve;
            match read::response(&mut self.input, &self.method, keep_case, &mut self.names)? {
                // Interim answers say nothing that we would pass on.
                Some(head) if head.message.status().is_informational() && !head.special => continue,
                Some(head) => {
                    (self.body, self.keep_alive) = (head.body, head.keep_alive && !head.special);
                    return Poll::Ready(Ok(head.message));
                }
                None => {}
            }
            let Some(stream) = &mut self.stream else { return Poll::Ready(Err(Broken::Incomplete)) };
            let read = match self.input.poll_read(stream, super::FIRST, cx) {
                Poll::Ready(read) => read,
                // Who cannot be written to any more may still have answered; if not, that was it.
                Poll::Pending => return self.failed.take().map_or(Poll::Pending, |e| Poll::Ready(Err(e))),
            };
            let end = match read {
                Ok(1..) => continue,
                Ok(0) => Broken::Incomplete,
                Err(e) => e.into(),
            };
            return Poll::Ready(Err(self.failed.take().unwrap_or(end)));
        }
    }

    /// The next piece of the response's body.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if !self.pumped && (self.sending.is_some() || !self.output.is_empty()) {
            self.drive(cx);
        }
        loop {
            match self.body.next(&mut self.input.bytes) {
                Ok(None) if self.body.is_over() => return Poll::Ready(None),
                Ok(None) => {}
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Err(_) => return Poll::Ready(Some(Err(self.broken(Broken::NotHttp("body"))))),
            }
            let Some(stream) = &mut self.stream else { return Poll::Ready(None) };
            let appetite = self.body.appetite();
            match ready!(self.input.poll_read(stream, appetite, cx)) {
                Ok(1..) => {
                    // What else is there already goes on with it.
                    while self.input.bytes.len() < appetite
                        && let Poll::Ready(Ok(1..)) = self.input.poll_read(stream, super::PIECE, cx)
                    {
                    }
                }
                Ok(0) if matches!(self.body, Decoder::UntilEnd) => self.body = Decoder::Over,
                Ok(0) => return Poll::Ready(Some(Err(self.broken(Broken::Incomplete)))),
                Err(e) => return Poll::Ready(Some(Err(self.broken(e.into())))),
            }
        }
    }

    fn broken(&mut self, why: Broken) -> Broken {
        (self.body, self.keep_alive) = (Decoder::Over, false);
        why
    }

    /// Whether the response's body has been read to its end.
    pub fn body_is_over(&self) -> bool {
        self.body.is_over()
    }

    /// What is known of the rest of the response's body.
    pub fn body_size(&self) -> SizeHint {
        self.body.size()
    }
}

/// Writes the rest of a request in a task of its own, where nobody may read its response for long, until it is written or the connection is
/// gone.
pub async fn pump(connection: std::rc::Weak<RefCell<Connection>>) {
    poll_fn(|cx| {
        let Some(connection) = connection.upgrade() else { return Poll::Ready(()) };
        let mut connection = connection.borrow_mut();
        if !connection.pumped {
            return Poll::Ready(());
        }
        connection.drive(cx);
        connection.pump = connection.is_sending().then(|| cx.waker().clone());
        if connection.pump.is_some() { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(pump) = self.pump.take() {
            pump.wake();
        }
        // The other side of TLS is told that this is the end.
        if let Some(stream) = &mut self.stream
            && !matches!(stream.kind(), Kind::Plain(_))
        {
            let _ = tokio::io::AsyncWrite::poll_shutdown(Pin::new(stream), &mut Context::from_waker(Waker::noop()));
        }
    }
}

/// Sends a request and waits for the head of its response. `reused`: the connection has served before, and is looked at first.
///
/// # Errors
/// See [`SendError`]. If it is given up before its end, the connection is not to be used again.
pub async fn send(
    connection: &Shared,
    request: &request::Parts,
    body: RequestBody,
    reused: bool,
) -> Result<Response<Incoming>, SendError> {
    if reused && poll_fn(|cx| Poll::Ready(connection.borrow_mut().poll_idle(cx).is_ready())).await {
        return Err(SendError::Unsent(Box::new(body)));
    }
    connection.borrow_mut().begin(request, body).map_err(SendError::Broken)?;
    give_way().await;
    let response = poll_fn(|cx| {
        let mut connection = connection.borrow_mut();
        connection.drive(cx);
        connection.poll_response(cx)
    })
    .await
    .map_err(SendError::Broken)?;
    let over = connection.borrow().body.is_over();
    let body = if over { Incoming::Empty } else { Incoming::Response(Rc::clone(connection)) };
    Ok(response.map(|()| body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::socket::Socket;
    use http_body_util::BodyExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    async fn pair() -> (Shared, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (peer, _) = listener.accept().await.unwrap();
        let (witness, _) = Witness::new(Kind::Plain(Socket::new(own)).into());
        (Connection::new(witness, HeaderCase::Lower), peer)
    }

    async fn ask(connection: &Shared, body: &'static str, reused: bool) -> Result<Response<Incoming>, SendError> {
        let request = http::Request::post("/a").body(()).unwrap().into_parts().0;
        send(connection, &request, RequestBody::whole(body.into()), reused).await
    }

    #[tokio::test]
    async fn one_connection_carries_one_request_after_another() {
        let (connection, mut peer) = pair().await;
        for (answer, wanted, again) in [
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab", "ab", true),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n", "ab", true),
            ("HTTP/1.1 204 No Content\r\n\r\n", "", true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab", "a", false),
        ] {
            peer.write_all(b"").await.unwrap();
            let serve = async {
                let mut seen = vec![0; "POST /a HTTP/1.1\r\ncontent-length: 4\r\n\r\nbody".len()];
                peer.read_exact(&mut seen).await.unwrap();
                assert!(seen.ends_with(b"\r\ncontent-length: 4\r\n\r\nbody"));
                peer.write_all(answer.as_bytes()).await.unwrap();
            };
            let asked = async {
                let response = ask(&connection, "body", true).await.unwrap();
                response.into_body().collect().await.unwrap().to_bytes()
            };
            let (body, ()) = tokio::join!(asked, serve);
            assert_eq!((&*body, connection.borrow().is_reusable()), (wanted.as_bytes(), again), "{answer}");
        }
    }

    #[tokio::test]
    async fn what_was_not_begun_is_given_back() {
        let (connection, peer) = pair().await;
        drop(peer);
        poll_fn(|cx| connection.borrow_mut().poll_idle(cx)).await;
        assert!(matches!(ask(&connection, "", true).await, Err(SendError::Unsent(_))));
        let (connection, mut peer) = pair().await;
        let ask = ask(&connection, "x", false);
        let cut = async {
            let _ = peer.read(&mut [0; 100]).await;
            peer.write_all(b"HTTP/1.1 200").await.unwrap();
            drop(peer);
        };
        let (outcome, ()) = tokio::join!(ask, cut);
        assert!(matches!(outcome, Err(SendError::Broken(e)) if e.is_end()));
    }
}
