//! A client's HTTP/1 bytes on their way to the codec: heads that could be read in two ways do not get there.
//!
//! Invariant: a refused head reaches the codec as an empty request that only carries the refusal to the service, which answers it and
//! closes; no byte behind it is looked at again. Everything else passes unchanged. What is refused is `proxy-core`'s `hygiene::wire`.

use crate::io::stream::Stream;
use bytes::{Buf, BytesMut};
use carrick_proxy_core::hygiene::wire::{self, Chunks, Framing, Refusal};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What the codec gets in the place of a refused head, and of one whose answer has no body.
const STAND_IN: &[u8] = b" / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n";
/// How much is read at once.
const READ: usize = 8 * 1024;

/// The refusal of a connection, once there is one.
pub type Verdict = Arc<OnceLock<Refusal>>;

#[derive(Debug)]
enum State {
    Head {
        searched: usize,
    },
    Length(u64),
    Chunked(Chunks),
    /// Another protocol, or bytes that the codec is to stumble over.
    Through,
    /// Refused.
    Over,
}

/// See the module.
#[derive(Debug)]
pub struct Guard {
    stream: Stream,
    state: State,
    /// Read and not yet judged.
    held: BytesMut,
    /// Judged and not yet taken.
    passed: BytesMut,
    limit: usize,
    accept_http_10: bool,
    verdict: Verdict,
}

impl Guard {
    /// Watches `stream`; heads longer than `limit` bytes are refused.
    pub fn new(stream: Stream, limit: usize, accept_http_10: bool, verdict: Verdict) -> Self {
        let (held, passed) = (BytesMut::new(), BytesMut::new());
        Guard { stream, state: State::Head { searched: 0 }, held, passed, limit, accept_http_10, verdict }
    }

    /// Moves what is decided from `held` to `passed`.
    fn judge(&mut self) {
        while !self.held.is_empty() {
            match &mut self.state {
                State::Head { searched } => {
                    let Some(end) = wire::head_end(&self.held, *searched) else {
                        *searched = self.held.len();
                        if self.held.len() > self.limit {
                            self.refuse(Refusal::TooLarge);
                        } else if !wire::may_begin(&self.held) {
                            self.refuse(Refusal::Malformed);
                        }
                        return;
                    };
                    let head = self.held.split_to(end);
                    let judged =
                        if end > self.limit { Err(Refusal::TooLarge) } else { wire::judge(&head, self.accept_http_10) };
                    match judged {
                        Err(refusal) => {
                            self.refuse_head(refusal, &head);
                            return;
                        }
                        Ok(framing) => {
                            self.passed.unsplit(head);
                            self.state = match framing {
                                Framing::Length(0) => State::Head { searched: 0 },
                                Framing::Length(length) => State::Length(length),
                                Framing::Chunked => State::Chunked(Chunks::default()),
                                Framing::Opaque => State::Through,
                            };
                        }
                    }
                }
                State::Length(left) => {
                    let step = usize::try_from(*left).unwrap_or(usize::MAX).min(self.held.len());
                    *left = left.saturating_sub(u64::try_from(step).unwrap_or(u64::MAX));
                    let over = *left == 0;
                    self.passed.unsplit(self.held.split_to(step));
                    if over {
                        self.state = State::Head { searched: 0 };
                    }
                }
                State::Chunked(chunks) => match chunks.take(&self.held) {
                    Ok(taken) => {
                        let over = *chunks == Chunks::Done;
                        self.passed.unsplit(self.held.split_to(taken));
                        if over {
                            self.state = State::Head { searched: 0 };
                        }
                    }
                    // The request is under way; the codec breaks its body off here, and its answer is ours.
                    Err(refusal) => {
                        let _ = self.verdict.set(refusal);
                        self.held.clear();
                        self.passed.extend_from_slice(b"\0");
                        self.state = State::Over;
                    }
                },
                State::Through => self.passed.unsplit(self.held.split()),
                State::Over => self.held.clear(),
            }
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.refuse_head(refusal, b"");
    }

    /// The stand-in has what decides how it is answered: whether with a body, and whether in gRPC. Where nothing of the head is believed
    /// that does not count either.
    fn refuse_head(&mut self, refusal: Refusal, head: &[u8]) {
        let _ = self.verdict.set(refusal);
        self.held.clear();
        let bodiless = refusal.is_of_a_request() && head.starts_with(b"HEAD ");
        self.passed.extend_from_slice(if bodiless { b"HEAD" } else { b"GET" });
        self.passed.extend_from_slice(STAND_IN);
        if refusal.is_of_a_request()
            && let Some(kind) = wire::field(head, b"content-type")
        {
            self.passed.extend_from_slice(b"content-type: ");
            self.passed.extend_from_slice(kind);
            self.passed.extend_from_slice(b"\r\n");
        }
        self.passed.extend_from_slice(b"\r\n");
        self.state = State::Over;
    }
}

impl AsyncRead for Guard {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.passed.has_remaining() {
                let n = this.passed.len().min(buf.remaining());
                buf.put_slice(&this.passed.split_to(n));
                return Poll::Ready(Ok(()));
            }
            match this.state {
                State::Through if this.held.is_empty() => return Pin::new(&mut this.stream).poll_read(cx, buf),
                // The answer closes the connection; until then the client is as if it were silent.
                State::Over => return Poll::Pending,
                // Most of a long body needs no second look and no copy.
                State::Length(left) if this.held.is_empty() && left >= buf.remaining() as u64 => {
                    let before = buf.filled().len();
                    ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
                    let n = buf.filled().len().saturating_sub(before) as u64;
                    this.state = match left.saturating_sub(n) {
                        0 => State::Head { searched: 0 },
                        left => State::Length(left),
                    };
                    return Poll::Ready(Ok(()));
                }
                _ => {}
            }
            this.held.reserve(READ);
            let before = this.held.len();
            let n = ready!(read_once(Pin::new(&mut this.stream), cx, &mut this.held))?;
            if n == 0 {
                // An end in the middle of something is the codec's to judge.
                this.state = State::Through;
                let rest = this.held.split();
                this.passed.unsplit(rest);
                if this.passed.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            debug_assert!(this.held.len() > before);
            this.judge();
        }
    }
}

/// Reads once into the spare room of `into`.
fn read_once(stream: Pin<&mut Stream>, cx: &mut Context<'_>, into: &mut BytesMut) -> Poll<io::Result<usize>> {
    let mut room = [0_u8; READ];
    let mut buf = ReadBuf::new(&mut room);
    ready!(stream.poll_read(cx, &mut buf))?;
    into.extend_from_slice(buf.filled());
    Poll::Ready(Ok(buf.filled().len()))
}

impl AsyncWrite for Guard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
