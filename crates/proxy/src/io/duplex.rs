//! The one engine that copies bytes both ways: TCP proxying, passthrough, WebSocket and CONNECT.
//!
//! Invariant: each direction ends on its own (half-close is passed on after everything read has been written); an
//! error on either side ends both; an idle connection holds no buffer, since reads go through one scratch buffer per
//! thread and only what is not written yet is kept. Little that has come is written when all who are ready have read (see [`crate::turn`]).

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

const SCRATCH: usize = 64 * 1024;
/// So few bytes wait for others to read theirs, before they are written; more are written at once, for they would have to be copied.
const LITTLE: usize = 2048;

thread_local! {
    static SCRATCH_BUFFER: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// Why copying ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Both sides ended in order.
    Finished,
    /// Nothing moved for the idle time.
    Idle,
    /// The side that came to us failed.
    DownstreamFailed,
    /// The side that we connected to failed.
    UpstreamFailed,
}

/// Bytes that went through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// From downstream to upstream.
    pub up: u64,
    /// From upstream to downstream.
    pub down: u64,
}

/// A copy under way. Poll it to the end with [`run`], or read [`Duplex::moved`] when giving up early.
pub struct Duplex<A, B> {
    down: A,
    up: B,
    to_up: Half,
    to_down: Half,
    moved: Moved,
    idle: Option<(Duration, Pin<Box<Sleep>>)>,
    stirred: bool,
}

/// One direction: what is held back, and how far its end has come.
#[derive(Default)]
struct Half {
    held: Vec<u8>,
    at: usize,
    stage: Stage,
    flush: bool,
    /// How reading ended, while what came before it is held: it may not be told again.
    over: Option<Over>,
}

#[derive(Default, PartialEq, Eq, Clone, Copy)]
enum Stage {
    #[default]
    Copying,
    Ending,
    Ended,
}

enum Failed {
    Reading,
    Writing,
}

/// Why reading has paused.
enum Came {
    /// There is no more room.
    Full,
    /// Nothing more is there yet.
    Later,
    Over(Over),
}

/// How reading ended.
#[derive(Clone, Copy)]
enum Over {
    End,
    Broken,
}

/// Reads what is there, so that one write passes it on: several TLS records, or a burst of small ones. A socket that gave less than it
/// was asked for is not asked again by a system call.
fn fill<R: AsyncRead + Unpin>(cx: &mut Context<'_>, from: &mut R, buf: &mut ReadBuf<'_>) -> Came {
    loop {
        let before = buf.filled().len();
        match Pin::new(&mut *from).poll_read(cx, buf) {
            Poll::Pending => return Came::Later,
            Poll::Ready(Ok(())) if buf.filled().len() == before => return Came::Over(Over::End),
            Poll::Ready(Ok(())) if buf.remaining() == 0 => return Came::Full,
            Poll::Ready(Ok(())) => {}
            // A TLS peer that closes without close_notify: for opaque bytes that is an end like TCP's own.
            Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => return Came::Over(Over::End),
            Poll::Ready(Err(_)) => return Came::Over(Over::Broken),
        }
    }
}

impl<A, B> Duplex<A, B>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    /// Copies between `down` (who came to us) and `up` (whom we called). `idle`: longest time in which nothing moves.
    pub fn new(down: A, up: B, idle: Option<Duration>) -> Self {
        let idle = idle.map(|d| (d, Box::pin(tokio::time::sleep(d))));
        Duplex {
            down,
            up,
            to_up: Half::default(),
            to_down: Half::default(),
            moved: Moved::default(),
            idle,
            stirred: false,
        }
    }

    /// Bytes so far.
    pub fn moved(&self) -> Moved {
        self.moved
    }

    /// Both streams, for closing them as the end demands.
    pub fn streams(&self) -> (&A, &B) {
        (&self.down, &self.up)
    }

    /// Drives both directions.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let before = self.moved;
        let to_up = self.to_up.poll(cx, &mut self.down, &mut self.up, &mut self.moved.up);
        let to_down = self.to_down.poll(cx, &mut self.up, &mut self.down, &mut self.moved.down);
        self.stirred |= before != self.moved;
        match (to_up, to_down) {
            (Poll::Ready(Err(Failed::Reading)), _) | (_, Poll::Ready(Err(Failed::Writing))) => {
                return Poll::Ready(End::DownstreamFailed);
            }
            (Poll::Ready(Err(Failed::Writing)), _) | (_, Poll::Ready(Err(Failed::Reading))) => {
                return Poll::Ready(End::UpstreamFailed);
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(End::Finished),
            _ => {}
        }
        if let Some((limit, sleep)) = &mut self.idle {
            // Re-armed only when it fires, so that traffic costs no timer work.
            while sleep.as_mut().poll(cx).is_ready() {
                if !std::mem::take(&mut self.stirred) {
                    return Poll::Ready(End::Idle);
                }
                sleep.as_mut().reset(Instant::now() + *limit);
            }
        }
        Poll::Pending
    }
}

/// Copies to the end.
pub async fn run<A, B>(duplex: &mut Duplex<A, B>) -> End
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    std::future::poll_fn(|cx| duplex.poll(cx)).await
}

impl Half {
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        moved: &mut u64,
    ) -> Poll<Result<(), Failed>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        if self.stage == Stage::Copying {
            let mut scratch = SCRATCH_BUFFER.take().unwrap_or_else(|| vec![0; SCRATCH].into_boxed_slice());
            let done = self.copy(cx, from, to, moved, &mut scratch);
            SCRATCH_BUFFER.set(Some(scratch));
            ready!(done)?;
            self.stage = Stage::Ending;
        }
        if self.stage == Stage::Ending {
            match ready!(Pin::new(to).poll_shutdown(cx)) {
                // The peer may be gone already: then its own direction says so.
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::NotConnected => {}
                Err(_) => return Poll::Ready(Err(Failed::Writing)),
            }
            self.stage = Stage::Ended;
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when `from` has ended and everything is written.
    fn copy<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        moved: &mut u64,
        scratch: &mut [u8],
    ) -> Poll<Result<(), Failed>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            while let Some(rest) = self.held.get(self.at..).filter(|r| !r.is_empty()) {
                let n = ready!(Pin::new(&mut *to).poll_write(cx, rest)).map_err(|_| Failed::Writing)?;
                if n == 0 {
                    return Poll::Ready(Err(Failed::Writing));
                }
                self.at = self.at.saturating_add(n);
                self.flush = true;
            }
            if !self.held.is_empty() {
                self.held = Vec::new();
                self.at = 0;
            }
            if let Some(over) = self.over.take() {
                return self.finish(over);
            }
            let mut buf = ReadBuf::new(scratch);
            let came = fill(cx, from, &mut buf);
            let read = buf.filled();
            *moved = moved.saturating_add(read.len() as u64);
            if matches!(came, Came::Later) && (1..=LITTLE).contains(&read.len()) {
                self.held = read.to_vec();
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            let mut rest = read;
            while !rest.is_empty() {
                match Pin::new(&mut *to).poll_write(cx, rest) {
                    Poll::Ready(Ok(0)) | Poll::Ready(Err(_)) => return Poll::Ready(Err(Failed::Writing)),
                    Poll::Ready(Ok(n)) => {
                        self.flush = true;
                        rest = rest.get(n..).unwrap_or_default();
                    }
                    Poll::Pending => {
                        self.held = rest.to_vec();
                        self.at = 0;
                        self.over = if let Came::Over(over) = came { Some(over) } else { None };
                        return Poll::Pending;
                    }
                }
            }
            match came {
                Came::Full => {}
                Came::Later => {
                    if self.flush {
                        ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(|_| Failed::Writing)?;
                        self.flush = false;
                    }
                    return Poll::Pending;
                }
                Came::Over(over) => return self.finish(over),
            }
        }
    }

    /// `poll_shutdown` flushes as well, and nothing is held here.
    fn finish(&mut self, over: Over) -> Poll<Result<(), Failed>> {
        self.flush = false;
        Poll::Ready(match over {
            Over::End => Ok(()),
            Over::Broken => Err(Failed::Reading),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn both_ways_with_half_close() {
        let (mut client, down) = duplex(16);
        let (up, mut server) = duplex(16);
        let copy = tokio::spawn(async move {
            let mut d = Duplex::new(down, up, None);
            let end = run(&mut d).await;
            (end, d.moved())
        });
        let request = vec![7u8; 5000];
        let sent = request.clone();
        let writer = tokio::spawn(async move {
            client.write_all(&sent).await.unwrap();
            client.shutdown().await.unwrap();
            let mut all = Vec::new();
            client.read_to_end(&mut all).await.unwrap();
            all
        });
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, request, "the server sees the end of the request");
        server.write_all(b"answer after the end").await.unwrap();
        server.shutdown().await.unwrap();
        assert_eq!(writer.await.unwrap(), b"answer after the end");
        assert_eq!(copy.await.unwrap(), (End::Finished, Moved { up: 5000, down: 20 }));
    }

    #[tokio::test]
    async fn idle_time_counts_from_the_last_byte() {
        let (mut client, down) = duplex(16);
        let (up, _server) = duplex(16);
        let start = Instant::now();
        let copy = tokio::spawn(async move { run(&mut Duplex::new(down, up, Some(Duration::from_millis(200)))).await });
        tokio::time::sleep(Duration::from_millis(120)).await;
        client.write_all(b"x").await.unwrap();
        assert_eq!(copy.await.unwrap(), End::Idle);
        assert!(start.elapsed() >= Duration::from_millis(320), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn an_upstream_that_vanishes_is_its_own_fault() {
        let (mut client, down) = duplex(16);
        let (up, server) = duplex(16);
        drop(server);
        let copy = tokio::spawn(async move { run(&mut Duplex::new(down, up, None)).await });
        client.write_all(b"hello").await.unwrap();
        assert_eq!(copy.await.unwrap(), End::UpstreamFailed);
    }

    /// Gives a few bytes, then breaks off once; afterwards it looks ended, as a socket does.
    struct Breaks(u8);

    impl AsyncRead for Breaks {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.0 += 1;
            match self.0 {
                1 => buf.put_slice(&[1; 100]),
                2 => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                _ => {}
            }
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Breaks {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_break_behind_bytes_that_wait_is_still_a_break() {
        // The other side takes 16 bytes at a time, so that the rest is held when the break has been seen.
        let (mut client, down) = duplex(16);
        let copy = tokio::spawn(async move { run(&mut Duplex::new(down, Breaks(0), None)).await });
        let mut got = [0; 100];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!((got, copy.await.unwrap()), ([1; 100], End::UpstreamFailed));
    }
}
