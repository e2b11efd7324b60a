//! A TLS connection as a stream: sealed records on its socket, plain bytes towards us.
//!
//! Invariant: bytes are decrypted in the buffer into which the kernel wrote them, and encrypted in the one from which it takes them;
//! both belong to the thread, so that a connection that waits holds what of a record has come and nothing more. What is sealed is written
//! before more is taken. Whatever breaks a connection is told to its peer, and stays broken.

#[cfg(test)]
mod tests;

use super::socket::Socket;
use carrick_pki::tls::{Broken, Library, MAX_CONTENT, OVERHEAD, Opened, Records, Step};
use rustls::Error;
use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Most bytes read at once: four records of the greatest size.
const READ: usize = 64 * 1024;
/// Room for a record that has begun to come before them.
const ROOM: usize = READ + MAX_CONTENT + 512;
/// Most bytes sealed before they are written, and what becomes of them: a record more for a change of keys.
const MOST: usize = 4 * MAX_CONTENT;
const SEALED: usize = MOST + 6 * OVERHEAD;
/// Pieces that are sealed together.
const PIECES: usize = 16;
/// Buffers of each kind that a thread keeps.
const SPARE: usize = 2;

thread_local! {
    static READS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    static WRITES: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

fn take<T>(from: &'static std::thread::LocalKey<RefCell<Vec<T>>>, make: impl FnOnce() -> T) -> T {
    from.try_with(|all| all.borrow_mut().pop()).ok().flatten().unwrap_or_else(make)
}

fn put_back<T>(to: &'static std::thread::LocalKey<RefCell<Vec<T>>>, buffer: T) {
    // A thread that is ending has no use for it.
    let _ = to.try_with(|all| {
        let mut all = all.borrow_mut();
        if all.len() < SPARE {
            all.push(buffer);
        }
    });
}

/// What has been read and not been dealt with.
#[derive(Default)]
struct Incoming {
    /// The thread's, while there is something in it that can be dealt with.
    buffer: Option<Box<[u8]>>,
    /// Sealed bytes in it.
    sealed: Range<usize>,
    /// Data in it that nobody has taken yet; before `sealed`.
    plain: Range<usize>,
    /// A record that has begun to come, while the thread has its buffer back.
    held: Vec<u8>,
}

impl Incoming {
    fn sealed(&mut self) -> &mut [u8] {
        match &mut self.buffer {
            Some(buffer) => buffer.get_mut(self.sealed.clone()).unwrap_or_default(),
            None => &mut self.held,
        }
    }

    fn done(&mut self, count: usize) {
        match &self.buffer {
            Some(_) => self.sealed.start = self.sealed.start.saturating_add(count).min(self.sealed.end),
            None => drop(self.held.drain(..count.min(self.held.len()))),
        }
    }

    /// Gives data to a reader; whether there was any.
    fn give(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let Some(data) = self.buffer.as_deref().and_then(|b| b.get(self.plain.clone())) else { return false };
        let some = data.get(..buf.remaining()).unwrap_or(data);
        if some.is_empty() {
            return false;
        }
        buf.put_slice(some);
        self.plain.start = self.plain.start.saturating_add(some.len());
        true
    }

    /// Gives the buffer back to the thread, and keeps what is of use in it: less than a record, where records are ours.
    fn rest(&mut self) {
        if !self.plain.is_empty() {
            return;
        }
        let Some(buffer) = self.buffer.take() else { return };
        self.held = buffer.get(self.sealed.clone()).unwrap_or_default().to_vec();
        (self.sealed, self.plain) = (0..0, 0..0);
        put_back(&READS, buffer);
    }

    /// Reads once. 0 at the end. Nothing is to be plain.
    fn poll_fill(&mut self, socket: &mut Socket, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.buffer.is_none() {
            // Most of the time when somebody asks there is nothing, and then no buffer is wanted.
            ready!(socket.poll_readable(cx))?;
        }
        let buffer = self.buffer.get_or_insert_with(|| take(&READS, || vec![0; ROOM].into_boxed_slice()));
        if !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            if let Some(room) = buffer.get_mut(..held.len()) {
                room.copy_from_slice(&held);
                self.sealed = 0..held.len();
            }
        } else if self.sealed.is_empty() {
            self.sealed = 0..0;
        } else if self.sealed.start > 0 {
            buffer.copy_within(self.sealed.clone(), 0);
            self.sealed = 0..self.sealed.len();
        }
        self.plain = 0..0;
        let end = self.sealed.end.saturating_add(READ).min(buffer.len());
        if self.sealed.end == end {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a handshake message without end")));
        }
        let mut read = ReadBuf::new(buffer.get_mut(self.sealed.end..end).unwrap_or_default());
        let polled = Pin::new(socket).poll_read(cx, &mut read);
        let count = read.filled().len();
        self.sealed.end = self.sealed.end.saturating_add(count);
        if count == 0 {
            self.rest();
        }
        polled.map_ok(|()| count)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            put_back(&READS, buffer);
        }
    }
}

/// Who opens and seals.
#[derive(Debug)]
enum Session {
    /// TLS 1.3.
    Ours(Box<Records>),
    /// TLS 1.2.
    Theirs(Library),
}

/// See the module.
pub struct TlsStream {
    socket: Socket,
    session: Session,
    incoming: Incoming,
    /// Data that the library has opened and nobody has taken yet, and how much of it has been taken: of TLS 1.2, and what came with the
    /// end of the handshake.
    data: (Vec<u8>, usize),
    /// Sealed bytes that the kernel did not take yet, and how many of them it has.
    waiting: (Vec<u8>, usize),
    resumed: bool,
    /// The peer will send nothing more, and said so.
    over: bool,
    /// We have said so.
    closed: bool,
    broken: Option<Error>,
}

impl std::fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsStream").field("session", &self.session).finish_non_exhaustive()
    }
}

fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// A handshake under way.
#[derive(Debug)]
pub struct Handshake {
    socket: Socket,
    incoming: Incoming,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Incoming({} bytes)", self.sealed.len().saturating_add(self.held.len()))
    }
}

impl Handshake {
    /// On a socket of which nothing has been read.
    pub fn new(socket: Socket) -> Self {
        Handshake { socket, incoming: Incoming::default() }
    }

    /// Reads until `decide` gives an answer for what has come; that is still there for the handshake. `None`: the peer ended before.
    ///
    /// # Errors
    /// Those of the socket.
    pub async fn look<T>(&mut self, mut decide: impl FnMut(&[u8]) -> Option<T>) -> io::Result<Option<T>> {
        loop {
            let (incoming, socket) = (&mut self.incoming, &mut self.socket);
            if poll_fn(|cx| incoming.poll_fill(socket, cx)).await? == 0 {
                return Ok(None);
            }
            let decided = decide(incoming.sealed());
            if decided.is_some() {
                return Ok(decided);
            }
            if incoming.sealed().len() >= READ {
                return Ok(None);
            }
        }
    }

    /// The socket, for an answer that is no TLS library's.
    pub fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// Shakes hands to the end. `judge` looks at what was agreed on before the first byte of data.
    ///
    /// # Errors
    /// What the TLS library or the socket says; the alert has been sent as far as the kernel took it.
    pub async fn finish<T>(
        mut self,
        mut library: Library,
        judge: impl FnOnce(&Library) -> io::Result<T>,
    ) -> io::Result<(TlsStream, T)> {
        use tokio::io::AsyncWriteExt as _;
        let (mut out, mut data) = (Vec::new(), Vec::new());
        let over = loop {
            let (done, step) = library.step(self.incoming.sealed(), &mut out, &mut data);
            self.incoming.done(done);
            // What comes behind the handshake is not the library's any more, though it may have seen the first of it.
            let finished = !library.state().is_handshaking() && !library.state().wants_write();
            match step {
                Ok(step) if finished => break step == Step::Closed,
                Ok(Step::Again) => continue,
                Ok(Step::More | Step::Open) => {}
                Ok(Step::Closed) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) => {
                    library.last_words(&mut out);
                    let _ = poll_fn(|cx| Poll::Ready(Pin::new(&mut self.socket).poll_write(cx, &out).is_ready())).await;
                    return Err(invalid(error));
                }
            }
            if !out.is_empty() {
                self.socket.write_all(&out).await?;
                out.clear();
            }
            let (incoming, socket) = (&mut self.incoming, &mut self.socket);
            if poll_fn(|cx| incoming.poll_fill(socket, cx)).await? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof"));
            }
        };
        if !out.is_empty() {
            self.socket.write_all(&out).await?;
        }
        let judged = judge(&library)?;
        let resumed = library.state().handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        let session = match library.into_records().map_err(invalid)? {
            Ok(records) => Session::Ours(Box::new(records)),
            Err(library) => Session::Theirs(library),
        };
        let Handshake { socket, mut incoming } = self;
        if incoming.sealed.is_empty() {
            incoming.rest();
        }
        let stream = TlsStream {
            socket,
            session,
            incoming,
            data: (data, 0),
            waiting: (Vec::new(), 0),
            resumed,
            over,
            closed: false,
            broken: None,
        };
        Ok((stream, judged))
    }
}

impl TlsStream {
    /// The socket underneath.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Whether its handshake took a session up again.
    pub fn resumed(&self) -> bool {
        self.resumed
    }

    /// Deals with what has been read until there is data, or an end; false when more has to be read.
    fn open(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        if let Some(error) = &self.broken {
            return Err(invalid(error.clone()));
        }
        while !self.over && self.incoming.plain.is_empty() {
            match &mut self.session {
                Session::Ours(records) => match records.open(self.incoming.sealed()) {
                    Ok(Opened::More) => return Ok(false),
                    Ok(Opened::Data { at, end }) => {
                        let start = self.incoming.sealed.start;
                        self.incoming.plain = start.saturating_add(at.start)..start.saturating_add(at.end);
                        self.incoming.done(end);
                    }
                    Ok(Opened::Nothing { end }) => self.incoming.done(end),
                    Ok(Opened::Closed) => self.over = true,
                    Err(broken) => return Err(self.fail(broken, cx)),
                },
                Session::Theirs(library) => {
                    let mut out = Vec::new();
                    let (done, step) = library.step(self.incoming.sealed(), &mut out, &mut self.data.0);
                    self.incoming.done(done);
                    if step.is_err() {
                        library.last_words(&mut out);
                    }
                    self.waiting.0.append(&mut out);
                    let step = step.map_err(|error| self.fail(Broken { error, alert: None }, cx))?;
                    match step {
                        Step::Closed => self.over = true,
                        Step::Again if self.data.0.is_empty() => {}
                        Step::Again => return Ok(true),
                        Step::More | Step::Open => return Ok(false),
                    }
                }
            }
        }
        Ok(true)
    }

    /// Tells the peer, as far as the kernel takes it now.
    fn fail(&mut self, broken: Broken, cx: &mut Context<'_>) -> io::Error {
        if let (Session::Ours(records), Some(alert)) = (&mut self.session, broken.alert) {
            let _ = records.alert(alert, &mut self.waiting.0);
        }
        let _ = self.poll_drain(cx);
        self.closed = true;
        self.broken = Some(broken.error.clone());
        invalid(broken.error)
    }

    /// Writes what waits.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (bytes, at) = &mut self.waiting;
        while let Some(rest) = bytes.get(*at..).filter(|rest| !rest.is_empty()) {
            let count = ready!(Pin::new(&mut self.socket).poll_write(cx, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *at = at.saturating_add(count);
        }
        if *at > 0 {
            self.waiting = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }

    /// Seals these bytes, at most [`MOST`], and writes them; what the kernel does not take waits.
    fn poll_seal(&mut self, cx: &mut Context<'_>, data: &[&[u8]]) -> Poll<io::Result<usize>> {
        if self.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(self.poll_drain(cx))?;
        let mut out = take(&WRITES, || Vec::with_capacity(SEALED));
        out.clear();
        let taken = data.iter().fold(0_usize, |sum, piece| sum.saturating_add(piece.len()));
        let sealed = match &mut self.session {
            Session::Ours(records) => records.seal(data, &mut out),
            Session::Theirs(library) => {
                let (done, sealed) = library.seal(self.incoming.sealed(), Some(data), &mut out, &mut self.data.0);
                self.incoming.done(done);
                sealed
            }
        };
        let written = sealed.map_err(io::Error::other).and_then(|()| {
            let mut at = 0_usize;
            while let Some(rest) = out.get(at..).filter(|rest| !rest.is_empty()) {
                match Pin::new(&mut self.socket).poll_write(cx, rest) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(count)) => at = at.saturating_add(count),
                    Poll::Ready(Err(e)) => return Err(e),
                    Poll::Pending => {
                        self.waiting = (rest.to_vec(), 0);
                        break;
                    }
                }
            }
            Ok(taken)
        });
        put_back(&WRITES, out);
        Poll::Ready(written)
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            if let Some(data) = this.data.0.get(this.data.1..).filter(|data| !data.is_empty()) {
                let some = data.get(..buf.remaining()).unwrap_or(data);
                buf.put_slice(some);
                this.data.1 = this.data.1.saturating_add(some.len());
                if this.data.1 == this.data.0.len() {
                    this.data = (Vec::new(), 0);
                    if this.incoming.sealed.is_empty() {
                        this.incoming.rest();
                    }
                }
                return Poll::Ready(Ok(()));
            }
            if this.incoming.give(buf) {
                if this.incoming.sealed.is_empty() {
                    this.incoming.rest();
                }
                return Poll::Ready(Ok(()));
            }
            if this.over {
                return Poll::Ready(Ok(()));
            }
            if this.open(cx)? {
                continue;
            }
            match this.incoming.poll_fill(&mut this.socket, cx) {
                Poll::Ready(Ok(0)) => {
                    let why = "peer closed connection without sending TLS close_notify";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, why)));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_seal(cx, &[buf.get(..MOST).unwrap_or(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut all: [&[u8]; PIECES] = [&[]; PIECES];
        let (mut count, mut room) = (0_usize, MOST);
        for (to, from) in all.iter_mut().zip(bufs) {
            *to = from.get(..room).unwrap_or(from);
            (count, room) = (count.saturating_add(1), room.saturating_sub(to.len()));
        }
        self.poll_seal(cx, all.get(..count).unwrap_or_default())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_drain(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !std::mem::replace(&mut this.closed, true) {
            let waiting = &mut this.waiting.0;
            let said = match &mut this.session {
                Session::Ours(records) => records.close(waiting),
                Session::Theirs(library) => {
                    let (done, said) = library.seal(this.incoming.sealed(), None, waiting, &mut this.data.0);
                    this.incoming.done(done);
                    said
                }
            };
            said.map_err(io::Error::other)?;
        }
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}
