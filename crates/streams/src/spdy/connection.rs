//! One SPDY connection: streams that the caller opens, each with two directions.
//!
//! Invariant: everything written goes through one queue, in order; a connection that is served to its end says so (GOAWAY) and lets the peer
//! read what was written. A peer that is silent is asked whether it lives.

use super::frame::{self, Frame, FrameError, Parser};
use super::headers::{BlockError, Inflater, empty_block};
use crate::session::PIECE;
use bytes::{Bytes, BytesMut};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};

/// Streams that the caller may have open at once.
const STREAMS: usize = 512;
/// Pieces that wait for whoever reads a stream.
const WAITING: usize = 4;
/// Frames that wait to be written.
const QUEUE: usize = 16;
/// Between two questions whether the peer lives.
const PING_EVERY: Duration = Duration::from_secs(30);
/// For the peer to read the last bytes.
const GOODBYE: Duration = Duration::from_secs(1);
/// RST_STREAM: the stream is refused.
const REFUSED: u32 = 3;

/// A piece of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    Data(Bytes),
    /// The caller sends no more.
    End,
    /// The caller gave the stream up.
    Reset,
}

/// A stream of the caller's.
pub(crate) struct Stream {
    id: u32,
    headers: Vec<(String, String)>,
    input: mpsc::Receiver<Received>,
    output: mpsc::Sender<Out>,
}

impl Stream {
    /// The value of a header, by its name in lower case.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    /// Both directions, apart.
    pub(crate) fn split(self) -> (Reader, Writer) {
        (Reader(self.input), Writer { id: self.id, output: self.output })
    }
}

/// What the caller sends on a stream.
pub(crate) struct Reader(mpsc::Receiver<Received>);

impl Reader {
    /// The next piece. Cancel safe.
    pub(crate) async fn next(&mut self) -> Received {
        self.0.recv().await.unwrap_or(Received::End)
    }
}

/// What the caller gets on a stream.
pub(crate) struct Writer {
    id: u32,
    output: mpsc::Sender<Out>,
}

impl Writer {
    /// Sends a piece; `false` when the connection is gone.
    pub(crate) async fn data(&self, mut bytes: Bytes) -> bool {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE));
            if self.output.send(Out::Data { stream: self.id, fin: false, bytes: piece }).await.is_err() {
                return false;
            }
        }
        true
    }

    /// Nothing more comes.
    pub(crate) async fn end(&self) {
        let _ = self.output.send(Out::Data { stream: self.id, fin: true, bytes: Bytes::new() }).await;
    }
}

/// Streams in the order in which they were opened.
pub(crate) type Streams = mpsc::Receiver<Stream>;

enum Out {
    Data {
        stream: u32,
        fin: bool,
        bytes: Bytes,
    },
    /// Written as it is.
    Raw(Bytes),
    /// The answer to a new stream.
    Reply(u32),
}

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Block(#[from] BlockError),
    #[error("a stream's number is not a new odd one")]
    Number,
}

/// Serves a connection until `work` is done or the peer is gone; `work` is dropped then.
pub(crate) async fn serve<S, F, W>(io: S, work: F)
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
    F: FnOnce(Streams) -> W,
    W: Future<Output = ()>,
{
    let (from, mut to) = tokio::io::split(io);
    let (output, queue) = mpsc::channel(QUEUE);
    // What has been handed out is bounded by `STREAMS`, so this queue never fills up.
    let (opened, streams) = mpsc::channel(STREAMS);
    let (done, stop) = oneshot::channel::<()>();
    let reading = read(from, opened, output);
    tokio::pin!(reading);
    let working = async {
        work(streams).await;
        drop(done);
        std::future::pending::<()>().await;
    };
    let outcome = tokio::select! {
        () = working => Ok(()),
        outcome = write(&mut to, queue, stop) => outcome.map_err(Broken::Io),
        outcome = &mut reading => return ended(outcome),
    };
    match outcome {
        Ok(()) => {
            let _ = tokio::time::timeout(GOODBYE, &mut reading).await;
        }
        broken => ended(broken),
    }
}

fn ended(outcome: Result<(), Broken>) {
    if let Err(error) = outcome {
        tracing::debug!(%error, "a SPDY connection ended");
    }
}

async fn write<W: AsyncWrite + Unpin>(
    to: &mut W,
    mut queue: mpsc::Receiver<Out>,
    mut stop: oneshot::Receiver<()>,
) -> io::Result<()> {
    let mut first = true;
    let mut asked = 0_u32;
    loop {
        let out = tokio::select! {
            biased;
            Some(out) = queue.recv() => out,
            // The other end is dropped: the work is done, and what it wrote is in the queue.
            _ = &mut stop => break,
            () = tokio::time::sleep(PING_EVERY) => {
                // Even numbers are ours.
                asked = asked.wrapping_add(2);
                Out::Raw(frame::ping(asked))
            }
        };
        put(to, out, &mut first).await?;
        while let Ok(out) = queue.try_recv() {
            put(to, out, &mut first).await?;
        }
        to.flush().await?;
    }
    while let Ok(out) = queue.try_recv() {
        put(to, out, &mut first).await?;
    }
    to.write_all(&frame::go_away(0)).await?;
    to.shutdown().await
}

async fn put<W: AsyncWrite + Unpin>(to: &mut W, out: Out, first: &mut bool) -> io::Result<()> {
    match out {
        Out::Data { stream, fin, bytes } => {
            to.write_all(&frame::data_head(stream, fin, bytes.len())).await?;
            to.write_all(&bytes).await
        }
        Out::Raw(bytes) => to.write_all(&bytes).await,
        Out::Reply(stream) => {
            let block = empty_block(std::mem::take(first));
            to.write_all(&frame::syn_reply(stream, &block)).await
        }
    }
}

/// Reads until the peer ends the connection.
async fn read<R: AsyncRead + Unpin>(
    mut from: R,
    opened: mpsc::Sender<Stream>,
    output: mpsc::Sender<Out>,
) -> Result<(), Broken> {
    let (mut parser, mut inflater) = (Parser::default(), Inflater::new());
    let mut buffer = BytesMut::new();
    let mut open: HashMap<u32, mpsc::Sender<Received>> = HashMap::new();
    let mut last = 0_u32;
    loop {
        while let Some(frame) = parser.next(&mut buffer)? {
            match frame {
                Frame::SynStream { stream, fin, block } => {
                    let headers = inflater.read(&block)?;
                    if stream % 2 == 0 || stream <= last {
                        return Err(Broken::Number);
                    }
                    last = stream;
                    open.retain(|_, input| !input.is_closed());
                    if open.len() >= STREAMS {
                        send(&output, Out::Raw(frame::reset(stream, REFUSED))).await;
                        continue;
                    }
                    let (input, pieces) = mpsc::channel(WAITING);
                    if !fin {
                        open.insert(stream, input);
                    }
                    send(&output, Out::Reply(stream)).await;
                    let new = Stream { id: stream, headers, input: pieces, output: output.clone() };
                    // Nobody takes streams any more: it ends as if it had been read.
                    let _ = opened.send(new).await;
                }
                Frame::Data { stream, fin, bytes } => {
                    if let Some(input) = open.get(&stream) {
                        if !bytes.is_empty() {
                            let _ = input.send(Received::Data(bytes)).await;
                        }
                        if fin {
                            open.remove(&stream);
                        }
                    }
                }
                Frame::Headers { stream, fin, block } => {
                    inflater.read(&block)?;
                    if fin {
                        open.remove(&stream);
                    }
                }
                Frame::Reset { stream } => {
                    if let Some(input) = open.remove(&stream) {
                        let _ = input.send(Received::Reset).await;
                    }
                }
                // Odd numbers are the caller's questions; even ones answer ours.
                Frame::Ping { id } if id % 2 == 1 => send(&output, Out::Raw(frame::ping(id))).await,
                Frame::GoAway | Frame::Ping { .. } | Frame::Other => {}
            }
        }
        buffer.reserve(PIECE);
        if from.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

/// A queue that is closed is the end of the connection, which the reader sees by itself.
async fn send(output: &mpsc::Sender<Out>, out: Out) {
    let _ = output.send(out).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spdy::headers::tests::{pack, packer};

    fn syn_stream(state: &mut flate2::Compress, stream: u32, fin: bool, pairs: &[(&str, &str)]) -> Vec<u8> {
        let block = pack(state, pairs);
        let mut out = vec![0x80, 3, 0, 1];
        let length = u32::try_from(block.len() + 10).unwrap() | if fin { 1 << 24 } else { 0 };
        out.extend(length.to_be_bytes());
        out.extend(stream.to_be_bytes());
        out.extend([0; 6]);
        out.extend(block);
        out
    }

    async fn echo(mut streams: Streams) {
        let Some(stream) = streams.recv().await else { return };
        assert_eq!(stream.header("streamtype"), "data");
        let (mut reader, writer) = stream.split();
        while let Received::Data(bytes) = reader.next().await {
            writer.data(bytes).await;
        }
        writer.end().await;
    }

    #[tokio::test]
    async fn a_stream_there_and_back() {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        let serving = tokio::spawn(serve(ours, echo));
        let mut state = packer();
        theirs.write_all(&syn_stream(&mut state, 1, false, &[("StreamType", "data")])).await.unwrap();
        theirs.write_all(&frame::ping(5)).await.unwrap();
        theirs.write_all(&frame::data_head(1, false, 5)).await.unwrap();
        theirs.write_all(b"hel").await.unwrap();
        theirs.write_all(b"lo").await.unwrap();
        theirs.write_all(&frame::data_head(1, true, 0)).await.unwrap();
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).await.unwrap();
        drop(theirs);
        serving.await.unwrap();
        let mut buffer = BytesMut::from(&all[..]);
        let (mut parser, mut text, mut seen) = (Parser::default(), Vec::new(), Vec::new());
        while let Some(frame) = parser.next(&mut buffer).unwrap() {
            match frame {
                Frame::Data { stream: 1, fin, bytes } => {
                    text.extend(bytes);
                    if fin {
                        seen.push("end");
                    }
                }
                Frame::Headers { stream: 1, .. } => seen.push("reply"),
                Frame::Ping { id: 5 } => seen.push("pong"),
                Frame::GoAway => seen.push("goodbye"),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(text, b"hello");
        assert_eq!(seen, ["reply", "pong", "end", "goodbye"]);
    }

    #[tokio::test]
    async fn streams_are_bounded_and_numbered() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let serving = tokio::spawn(serve(ours, |streams| async move {
            let _held = streams;
            std::future::pending::<()>().await;
        }));
        let mut state = packer();
        let count = u32::try_from(STREAMS).unwrap() + 3;
        for number in 0..count {
            theirs.write_all(&syn_stream(&mut state, number * 2 + 1, false, &[])).await.unwrap();
        }
        theirs.write_all(&frame::ping(9)).await.unwrap();
        let mut buffer = BytesMut::new();
        let (mut parser, mut replies, mut resets) = (Parser::default(), 0, 0);
        'reading: loop {
            while let Some(frame) = parser.next(&mut buffer).unwrap() {
                match frame {
                    Frame::Headers { .. } => replies += 1,
                    Frame::Reset { .. } => resets += 1,
                    Frame::Ping { .. } => break 'reading,
                    other => panic!("{other:?}"),
                }
            }
            theirs.read_buf(&mut buffer).await.unwrap();
        }
        assert_eq!((replies, resets), (STREAMS, 3));
        // A number for the second time ends the connection.
        theirs.write_all(&syn_stream(&mut state, 1, false, &[])).await.unwrap();
        let mut rest = Vec::new();
        theirs.read_to_end(&mut rest).await.unwrap();
        serving.await.unwrap();
    }
}
