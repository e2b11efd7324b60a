//! A connection's state: its streams, its windows, what has been read of it and what is to be written.
//!
//! Invariant: it belongs to one thread and is borrowed for one step at a time; whoever is told of something is woken, never called. Only the
//! connection's own task (`server`, `client`) reads and writes; those who hold a stream leave their wishes here and wake it.

mod streams;

use super::fault::{Fault, Reason};
use super::hpack::decode::Decoder;
use super::hpack::encode::Encoder;
use super::limits::Conduct;
use super::stream::Stream;
use super::{PREFACE, frame};
use crate::io::stream::Stream as Io;
use crate::message::output::Output;
use bytes::{Buf, BytesMut};
use frame::setting;
use http::Request;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::future::Future as _;
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use tokio::io::AsyncReadExt as _;

/// A connection, as its task and its streams hold it.
pub type Link = Rc<RefCell<Core>>;

/// The window that every connection and stream begins with (RFC 9113 §6.9.2).
pub const WINDOW: u32 = 65535;
/// Largest window (§6.9.1).
pub const WIDEST: i64 = 0x7fff_ffff;
/// What is read into at first, bytes; and after it was filled, at most.
const FIRST: usize = 4 * 1024;
const MOST: usize = 64 * 1024;
/// Reads in one turn.
const READS: usize = 8;

/// Which end of the connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// We are asked.
    Server,
    /// We ask.
    Client,
}

/// What we tell the peer (§6.5.2).
#[derive(Debug, Clone, Copy)]
pub struct Own {
    /// Table for its header blocks, bytes.
    pub table: u32,
    /// Streams that it may have open.
    pub streams: u32,
    /// A stream's window, bytes.
    pub window: u32,
    /// The connection's window, bytes.
    pub connection: u32,
    /// Header list, bytes.
    pub list: u32,
    /// It may use CONNECT for other protocols.
    pub connect: bool,
}

/// What the peer has told us.
#[derive(Debug)]
pub struct Peer {
    /// A stream's window.
    pub window: i64,
    /// Largest payload.
    pub frame: usize,
    /// Streams that we may have open.
    pub streams: u32,
    /// It has told us something.
    pub settled: bool,
    /// It has acknowledged what we told it.
    pub acknowledged: bool,
    /// It takes CONNECT for other protocols (RFC 8441 §3).
    pub connect: bool,
}

/// How far a goodbye of ours has come (§6.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goodbye {
    /// Not said.
    Unsaid,
    /// Announced; requests on their way still count.
    Announced,
    /// Said: no stream above this number is looked at.
    Said(u32),
}

/// A header block that is not whole yet.
#[derive(Debug)]
pub struct Block {
    /// Of which stream.
    pub stream: u32,
    /// Its first frame ends the stream.
    pub ends: bool,
    /// The stream claims to depend on itself.
    pub looped: bool,
    /// CONTINUATION frames so far.
    pub frames: u32,
    /// What is there.
    pub bytes: Vec<u8>,
}

/// Numbers of streams are their own hashes; a peer can make some of them meet, and wins nothing: there are few.
#[derive(Default)]
pub struct Numbers(u64);

impl Hasher for Numbers {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |all, b| all.wrapping_shl(8) | u64::from(*b));
    }
    fn write_u32(&mut self, number: u32) {
        self.0 = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Streams by their numbers.
pub type Streams = HashMap<u32, Stream, BuildHasherDefault<Numbers>>;

/// See the module.
pub struct Core {
    pub side: Side,
    pub own: Own,
    pub peer: Peer,
    io: Option<Io>,
    pub input: BytesMut,
    appetite: usize,
    /// The peer has ended its side.
    pub ended: bool,
    /// Bytes of the preface that are still to come.
    pub preface: usize,
    pub output: Output,
    pub decoder: Decoder,
    pub encoder: Encoder,
    /// For one header block at a time.
    pub scratch: Vec<u8>,
    pub streams: Streams,
    /// Streams that were there, and whether we have reset them.
    pub closed: VecDeque<(u32, bool)>,
    pub block: Option<Block>,
    pub send_window: i64,
    pub receive_window: i64,
    pub taken: u32,
    /// The last stream that the peer has opened.
    pub highest: u32,
    /// The next that we open.
    pub next: u32,
    pub goodbye: Goodbye,
    /// The peer takes no more streams.
    pub refuses: bool,
    /// Nobody will ask for more here.
    pub unused: bool,
    pub conduct: Conduct,
    /// Frames that we owe, since all was written last.
    pub owed: u32,
    /// Requests that have come.
    pub arrived: VecDeque<(u32, Request<()>)>,
    /// Jobs whose streams are gone.
    pub cancelled: Vec<(usize, u32)>,
    /// Jobs that can go on.
    pub stirred: Vec<usize>,
    /// Jobs that wait for the connection's window.
    pub starved: Vec<usize>,
    pub fault: Option<Fault>,
    /// The connection's task, and whether it is at work.
    pub task: Option<Waker>,
    pub busy: bool,
    /// Those who wait for the peer's settings.
    pub unsettled: Vec<Waker>,
    /// Something has come; a PING of ours was answered.
    pub heard: bool,
    pub ponged: bool,
}

impl Core {
    /// A connection on which nothing was said. Our settings are the first to be written.
    pub fn new(side: Side, own: Own, io: Option<Io>) -> Self {
        let mut output = Output::default();
        let mut settings = vec![(setting::WINDOW, own.window), (setting::LIST, own.list)];
        if own.table != 4096 {
            settings.push((setting::TABLE, own.table));
        }
        match side {
            Side::Server => settings.push((setting::STREAMS, own.streams)),
            Side::Client => {
                output.text.extend_from_slice(PREFACE);
                settings.push((setting::PUSH, 0));
            }
        }
        if own.connect {
            settings.push((setting::CONNECT, 1));
        }
        frame::settings(&mut output.text, &settings);
        if own.connection > WINDOW {
            frame::number(&mut output.text, frame::WINDOW_UPDATE, 0, own.connection.saturating_sub(WINDOW));
        }
        Core {
            side,
            own,
            peer: Peer {
                window: i64::from(WINDOW),
                frame: frame::LARGEST,
                streams: u32::MAX,
                settled: false,
                acknowledged: false,
                connect: false,
            },
            io,
            input: BytesMut::new(),
            appetite: FIRST,
            ended: false,
            preface: if side == Side::Server { PREFACE.len() } else { 0 },
            output,
            decoder: Decoder::new(usize::try_from(own.table).unwrap_or(0)),
            encoder: Encoder::default(),
            scratch: Vec::new(),
            streams: Streams::default(),
            closed: VecDeque::new(),
            block: None,
            send_window: i64::from(WINDOW),
            receive_window: i64::from(own.connection.max(WINDOW)),
            taken: 0,
            highest: 0,
            next: 1,
            goodbye: Goodbye::Unsaid,
            refuses: false,
            unused: false,
            conduct: Conduct::default(),
            owed: 0,
            arrived: VecDeque::new(),
            cancelled: Vec::new(),
            stirred: Vec::new(),
            starved: Vec::new(),
            fault: None,
            task: None,
            busy: false,
            unsettled: Vec::new(),
            heard: false,
            ponged: false,
        }
    }

    /// The connection's task begins a turn.
    pub fn begin_turn(&mut self, cx: &Context<'_>) {
        self.busy = true;
        match &mut self.task {
            Some(task) => task.clone_from(cx.waker()),
            None => self.task = Some(cx.waker().clone()),
        }
    }

    /// Has the connection's task look here, unless it is about to.
    pub fn wake(&self) {
        if !self.busy
            && let Some(task) = &self.task
        {
            task.wake_by_ref();
        }
    }

    /// Reads what is there, and acts on it. Whether more may be there.
    pub fn read(&mut self, cx: &mut Context<'_>) -> bool {
        for _ in 0..READS {
            let Some(io) = self.io.as_mut().filter(|_| !self.ended && self.fault.is_none()) else { return false };
            if self.input.capacity().saturating_sub(self.input.len()) < self.appetite.div_ceil(4) {
                self.input.reserve(self.appetite);
            }
            match pin!(io.read_buf(&mut self.input)).poll(cx) {
                Poll::Pending => {
                    if self.input.is_empty() && self.appetite > FIRST {
                        // What was only for large bodies is given back.
                        (self.input, self.appetite) = (BytesMut::new(), FIRST);
                    }
                    return false;
                }
                Poll::Ready(Ok(0) | Err(_)) => {
                    self.ended = true;
                    self.break_off(Fault::Ended);
                    return false;
                }
                Poll::Ready(Ok(_)) => {
                    if self.input.len() == self.input.capacity() {
                        self.appetite = self.appetite.saturating_mul(2).min(MOST);
                    }
                    self.heard = true;
                    self.parse();
                }
            }
        }
        true
    }

    /// Acts on what was read.
    pub fn parse(&mut self) {
        let mut input = std::mem::take(&mut self.input);
        let result = self.frames(&mut input);
        self.input = input;
        if let Err(fault) = result {
            self.break_off(fault);
        }
    }

    /// Writes what there is.
    ///
    /// # Errors
    /// Those of the connection.
    pub fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(io) = &mut self.io else { return Poll::Ready(Ok(())) };
        let written = self.output.poll_write(Pin::new(io), cx);
        if matches!(written, Poll::Ready(Ok(()))) {
            self.owed = 0;
        }
        written
    }

    /// Ends our side; then reads on to the peer's end, so that what it still sends does not cut off what we have said.
    pub fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(io) = &mut self.io else { return Poll::Ready(()) };
        match tokio::io::AsyncWrite::poll_shutdown(Pin::new(&mut *io), cx) {
            Poll::Ready(Ok(())) if !self.ended => {}
            Poll::Ready(_) => return Poll::Ready(()),
            Poll::Pending => return Poll::Pending,
        }
        for _ in 0..READS {
            self.input.clear();
            self.input.reserve(FIRST);
            match pin!(io.read_buf(&mut self.input)).poll(cx) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Lets go of the connection.
    pub fn close(&mut self) {
        self.break_off(Fault::Ended);
        self.io = None;
        self.input = BytesMut::new();
    }

    /// The connection is of no use any more; all that goes on on it breaks off.
    pub fn break_off(&mut self, fault: Fault) {
        if self.fault.is_some() {
            return;
        }
        self.fault = Some(fault);
        let written = self.output.written();
        if let Fault::Ours(reason, what) = fault {
            tracing::debug!(code = reason.0, "HTTP/2 connection: {what}");
            frame::goaway(&mut self.output.text, self.highest, reason.0);
        }
        let cancelled = &mut self.cancelled;
        self.streams.retain(|id, stream| {
            cancelled.extend(stream.job.take().map(|job| (job, *id)));
            stream.sent = true;
            if !stream.ended {
                let unseen = stream.position >= written && fault == Fault::Ended;
                stream.fault.get_or_insert(if unseen { Fault::Unsent } else { fault });
            }
            stream.wake();
            stream.held
        });
        self.arrived.clear();
        self.unsettled.drain(..).for_each(Waker::wake);
        self.wake();
    }

    /// Says goodbye: at first so that requests on their way are not lost.
    pub fn leave(&mut self) {
        if self.goodbye == Goodbye::Unsaid && self.fault.is_none() {
            self.goodbye = Goodbye::Announced;
            frame::goaway(&mut self.output.text, 0x7fff_ffff, Reason::NONE.0);
            frame::ping(&mut self.output.text, 0, super::LEAVING);
            self.wake();
        }
    }

    /// No more streams from now on.
    pub fn leave_now(&mut self) {
        if !matches!(self.goodbye, Goodbye::Said(_)) && self.fault.is_none() {
            self.goodbye = Goodbye::Said(self.highest);
            frame::goaway(&mut self.output.text, self.highest, Reason::NONE.0);
        }
    }

    /// Whether everything is done after a goodbye.
    pub fn has_left(&self) -> bool {
        matches!(self.goodbye, Goodbye::Said(_)) && self.streams.is_empty()
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        // The other side of TLS is told that this is the end.
        if let Some(io) = &mut self.io {
            let _ = tokio::io::AsyncWrite::poll_shutdown(Pin::new(io), &mut Context::from_waker(Waker::noop()));
        }
    }
}

/// Takes the preface off what was read, as far as it is there.
///
/// # Errors
/// It is another.
pub fn preface(left: &mut usize, input: &mut BytesMut) -> Result<(), Fault> {
    let wanted = PREFACE.get(PREFACE.len().saturating_sub(*left)..).unwrap_or_default();
    let have = wanted.len().min(input.len());
    if input.get(..have) != wanted.get(..have) {
        return Err(Fault::Ours(Reason::PROTOCOL, "not the preface"));
    }
    input.advance(have);
    *left = left.saturating_sub(have);
    Ok(())
}
