//! One guest and one caller: what the caller types goes in, what the guest writes comes out, the end is told.
//!
//! Invariant: at most a few pieces of [`PIECE`] bytes wait in each direction; a side that does not read stops the other. When the caller is
//! gone, the guest is dropped.

use crate::pods::{Ended, Guest, PodsError, Size};
use crate::status;
use bytes::Bytes;
use std::future::Future;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

/// Largest piece of output.
pub(crate) const PIECE: usize = 32 << 10;
/// Pieces that wait in one direction.
const WAITING: usize = 4;
/// For output that comes after the guest's end, of processes that it left behind.
const LINGER: Duration = Duration::from_secs(1);

/// Where output belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    Stdout,
    Stderr,
}

/// From the caller.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Input {
    Stdin(Bytes),
    StdinEnd,
    Resize(Size),
}

/// To the caller; the status is the last.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Data(Channel, Bytes),
    End(Channel),
    Status(Bytes),
}

/// The guest's ends of both directions.
pub(crate) struct Channels {
    pub(crate) input: mpsc::Receiver<Input>,
    pub(crate) output: mpsc::Sender<Output>,
}

/// The caller's ends.
pub(crate) struct Caller {
    pub(crate) input: mpsc::Sender<Input>,
    pub(crate) output: mpsc::Receiver<Output>,
}

pub(crate) fn channels() -> (Channels, Caller) {
    let (input, typed) = mpsc::channel(WAITING);
    let (output, shown) = mpsc::channel(WAITING);
    (Channels { input: typed, output }, Caller { input, output: shown })
}

/// Runs the guest until it has ended or the caller is gone.
pub(crate) async fn run(guest: impl Future<Output = Result<Guest, PodsError>>, channels: Channels) {
    let Channels { mut input, output } = channels;
    let asked = tokio::select! {
        guest = guest => guest,
        () = output.closed() => return,
    };
    let Guest { stdin, stdout, stderr, mut resize, ended } = match asked {
        Ok(guest) => guest,
        Err(error) => {
            // A caller that is gone needs no answer.
            let _ = output.send(Output::Status(status::of_error(&error))).await;
            return;
        }
    };
    let feed = async {
        let mut stdin = stdin;
        while let Some(input) = input.recv().await {
            match input {
                Input::Stdin(bytes) => {
                    let failed = match stdin.as_mut() {
                        Some(pipe) => pipe.write_all(&bytes).await.is_err() || pipe.flush().await.is_err(),
                        None => false,
                    };
                    // It reads no more; the rest is thrown away, as a shell's pipe would.
                    if failed {
                        stdin = None;
                    }
                }
                Input::StdinEnd => stdin = None,
                Input::Resize(size) => {
                    if let Some(resize) = resize.as_mut() {
                        resize(size);
                    }
                }
            }
        }
    };
    let show = async {
        tokio::join!(copy(stdout, Channel::Stdout, &output), copy(stderr, Channel::Stderr, &output));
    };
    let work = async {
        tokio::pin!(show);
        let mut ended = ended;
        let mut shown = false;
        let end = loop {
            tokio::select! {
                end = &mut ended => break end,
                () = &mut show, if !shown => shown = true,
            }
        };
        if !shown && tokio::time::timeout(LINGER, &mut show).await.is_err() {
            tracing::debug!("output is still open at the end of its process");
        }
        end
    };
    let end: Ended = tokio::select! {
        end = work => end,
        () = async { feed.await; std::future::pending().await } => return,
        () = output.closed() => return,
    };
    for last in [Output::End(Channel::Stdout), Output::End(Channel::Stderr), Output::Status(status::of_end(&end))] {
        if output.send(last).await.is_err() {
            return;
        }
    }
}

async fn copy(from: Option<Box<dyn AsyncRead + Send + Unpin>>, channel: Channel, output: &mpsc::Sender<Output>) {
    let Some(mut from) = from else { return };
    let mut buffer = bytes::BytesMut::new();
    loop {
        buffer.reserve(PIECE);
        let mut room = (&mut from).take(PIECE as u64);
        match room.read_buf(&mut buffer).await {
            // A terminal whose other side is gone ends with an error.
            Ok(0) | Err(_) => return,
            Ok(_) => {
                if output.send(Output::Data(channel, buffer.split().freeze())).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// A terminal's size as callers write it.
pub(crate) fn size(value: &serde_json::Value) -> Option<Size> {
    let number = |key: &str| value.get(key).and_then(serde_json::Value::as_u64).and_then(|n| u16::try_from(n).ok());
    Some(Size { width: number("Width")?, height: number("Height")? })
}
