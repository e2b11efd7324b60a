//! WebSocket: channels in binary messages, or a plain stream of bytes.
//!
//! Invariant: a message is at most [`MESSAGE`] bytes; a caller that is silent is asked whether it lives, so that one that is gone is noticed.

use crate::handshake::Protocol;
use crate::pods::{Duplex, Want};
use crate::session::{Caller, Channel, Input, Output, PIECE, size};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use std::future::Future;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

/// Largest message that is taken.
const MESSAGE: usize = 2 << 20;
/// Between two questions whether the caller lives.
const PING_EVERY: Duration = Duration::from_secs(30);
/// For the caller to answer the closing of the connection.
const GOODBYE: Duration = Duration::from_secs(1);

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Ends the channel that the next byte names.
const CLOSE: u8 = 255;

async fn accept<S: AsyncRead + AsyncWrite + Unpin>(io: S) -> WebSocketStream<S> {
    let config = WebSocketConfig::default().max_message_size(Some(MESSAGE)).max_frame_size(Some(MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// Serves one session; `guest` runs it.
pub(crate) async fn remote<S>(io: S, protocol: Protocol, want: Want, caller: Caller, guest: impl Future<Output = ()>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let (mut sink, mut source) = accept(io).await.split();
    let Caller { input, mut output } = caller;
    let reading = async {
        while let Some(Ok(message)) = source.next().await {
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                // Some clients write channels as characters.
                Message::Text(text) => Bytes::from(text),
                Message::Close(_) => break,
                _ => continue,
            };
            if let Some(read) = read(protocol, bytes) {
                // A guest that has ended takes nothing more; its end is still to be told.
                let _ = input.send(read).await;
            }
        }
    };
    let writing = async {
        // An empty message says that the channels are there.
        let first = if want.stdout { STDOUT } else { ERROR };
        if sink.send(Message::binary(vec![first])).await.is_err() {
            return;
        }
        loop {
            let message = tokio::select! {
                out = output.recv() => match out {
                    Some(Output::Data(channel, bytes)) => data(channel, &bytes),
                    Some(Output::End(_)) => continue,
                    Some(Output::Status(status)) => prefixed(ERROR, &status),
                    None => break,
                },
                () = tokio::time::sleep(PING_EVERY) => Message::Ping(Bytes::new()),
            };
            if sink.send(message).await.is_err() {
                return;
            }
        }
        let _ = sink.send(goodbye()).await;
    };
    tokio::pin!(reading);
    tokio::select! {
        () = &mut reading => return,
        ((), ()) = async { tokio::join!(guest, writing) } => {}
    }
    let _ = tokio::time::timeout(GOODBYE, &mut reading).await;
}

/// A close with a code: without one, clients take it for a broken connection.
fn goodbye() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

fn data(channel: Channel, bytes: &[u8]) -> Message {
    prefixed(if channel == Channel::Stdout { STDOUT } else { STDERR }, bytes)
}

fn prefixed(channel: u8, bytes: &[u8]) -> Message {
    let mut out = BytesMut::with_capacity(bytes.len().saturating_add(1));
    out.put_u8(channel);
    out.put_slice(bytes);
    Message::Binary(out.freeze())
}

fn read(protocol: Protocol, mut bytes: Bytes) -> Option<Input> {
    if bytes.is_empty() {
        return None;
    }
    match bytes.split_to(1).first().copied()? {
        STDIN if !bytes.is_empty() => Some(Input::Stdin(bytes)),
        RESIZE => serde_json::from_slice(&bytes).ok().as_ref().and_then(size).map(Input::Resize),
        CLOSE if protocol == Protocol::V5 && bytes.first() == Some(&STDIN) => Some(Input::StdinEnd),
        _ => None,
    }
}

/// A WebSocket as a stream of bytes; the future moves them, and is done when both sides are.
pub(crate) async fn tunnel<S>(io: S) -> (impl AsyncRead + AsyncWrite + Send + Unpin, impl Future<Output = ()>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let (ours, theirs) = tokio::io::duplex(PIECE);
    let (mut sink, mut source) = accept(io).await.split();
    let moving = async move {
        let (mut from, mut to) = tokio::io::split(theirs);
        let inward = async {
            while let Some(Ok(message)) = source.next().await {
                let bytes = match message {
                    Message::Binary(bytes) => bytes,
                    Message::Close(_) => break,
                    _ => continue,
                };
                // Who reads no more may still have said something.
                let _ = to.write_all(&bytes).await;
            }
            let _ = to.shutdown().await;
        };
        let outward = async {
            let mut buffer = BytesMut::new();
            loop {
                buffer.reserve(PIECE);
                let message = tokio::select! {
                    read = from.read_buf(&mut buffer) => match read {
                        Ok(0) | Err(_) => break,
                        Ok(_) => Message::Binary(buffer.split().freeze()),
                    },
                    () = tokio::time::sleep(PING_EVERY) => Message::Ping(Bytes::new()),
                };
                if sink.send(message).await.is_err() {
                    return;
                }
            }
            let _ = sink.send(goodbye()).await;
        };
        tokio::pin!(inward);
        tokio::select! {
            () = &mut inward => {}
            () = outward => {
                let _ = tokio::time::timeout(GOODBYE, &mut inward).await;
            }
        }
    };
    (ours, moving)
}

/// Serves the older `port-forward`: for each port a channel of data and one of errors, both of which begin with the port's number.
pub(crate) async fn forward<S, D, F>(io: S, ports: &[u16], dial: D)
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
    D: Fn(u16) -> F,
    F: Future<Output = Result<Box<dyn Duplex>, crate::PodsError>>,
{
    let (mut sink, mut source) = accept(io).await.split();
    let (output, mut shown) = mpsc::channel::<Message>(4);
    let mut inputs = Vec::new();
    let mut working = Vec::new();
    for (number, port) in ports.iter().take(127).enumerate() {
        let Ok(channel) = u8::try_from(number.saturating_mul(2)) else { break };
        let (input, typed) = mpsc::channel::<Bytes>(4);
        inputs.push(input);
        working.push(one_port(channel, *port, dial(*port), typed, output.clone()));
    }
    drop(output);
    let reading = async {
        while let Some(Ok(message)) = source.next().await {
            let mut bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => Bytes::from(text),
                Message::Close(_) => break,
                _ => continue,
            };
            if bytes.is_empty() {
                continue;
            }
            let channel = bytes.split_to(1).first().copied().unwrap_or(CLOSE);
            let input = inputs.get(usize::from(channel / 2)).filter(|_| channel % 2 == 0);
            if let Some(input) = input {
                let _ = input.send(bytes).await;
            }
        }
    };
    let writing = async {
        loop {
            let message = tokio::select! {
                message = shown.recv() => match message { Some(message) => message, None => break },
                () = tokio::time::sleep(PING_EVERY) => Message::Ping(Bytes::new()),
            };
            if sink.send(message).await.is_err() {
                return;
            }
        }
        let _ = sink.send(goodbye()).await;
    };
    tokio::select! {
        () = reading => {}
        _ = async { tokio::join!(futures_util::future::join_all(working), writing) } => {}
    }
}

async fn one_port(
    channel: u8,
    port: u16,
    dial: impl Future<Output = Result<Box<dyn Duplex>, crate::PodsError>>,
    mut input: mpsc::Receiver<Bytes>,
    output: mpsc::Sender<Message>,
) {
    for channel in [channel, channel.saturating_add(1)] {
        if output.send(prefixed(channel, &port.to_le_bytes())).await.is_err() {
            return;
        }
    }
    let mut connection = match dial.await {
        Ok(connection) => connection,
        Err(error) => {
            let _ = output.send(prefixed(channel.saturating_add(1), error.to_string().as_bytes())).await;
            return;
        }
    };
    let (mut from, mut to) = tokio::io::split(&mut connection);
    let inward = async {
        while let Some(bytes) = input.recv().await {
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    let outward = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(PIECE);
            match from.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {
                    if output.send(prefixed(channel, &buffer.split())).await.is_err() {
                        return;
                    }
                }
            }
        }
    };
    tokio::select! {
        () = inward => {}
        () = outward => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::{Ended, Guest, Size};
    use crate::session::{Channels, channels, run};

    fn echo() -> Guest {
        let ((stdin, mut from), (stdout, mut to)) = (tokio::io::duplex(64), tokio::io::duplex(64));
        let ended = Box::pin(async move {
            let _ = tokio::io::copy(&mut from, &mut to).await;
            let _ = to.shutdown().await;
            Ended::Code(7)
        });
        Guest { stdin: Some(Box::new(stdin)), stdout: Some(Box::new(stdout)), stderr: None, resize: None, ended }
    }

    #[tokio::test]
    async fn what_is_typed_comes_back_and_the_end_is_told() {
        let (ours, theirs) = tokio::io::duplex(256);
        let want = Want { stdin: true, stdout: true, ..Want::default() };
        let (guest, caller) = channels();
        let serving = tokio::spawn(remote(ours, Protocol::V5, want, caller, run(async { Ok(echo()) }, guest)));
        let mut client = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
        assert_eq!(client.next().await.unwrap().unwrap(), Message::binary(vec![STDOUT]));
        let long = vec![b'x'; 100_000];
        let (mut sink, mut source) = client.split();
        let typing = async {
            for piece in long.chunks(30_000) {
                sink.send(prefixed(STDIN, piece)).await.unwrap();
            }
            sink.send(Message::binary(vec![CLOSE, STDIN])).await.unwrap();
        };
        let reading = async {
            let (mut text, mut status) = (Vec::new(), Vec::new());
            while let Some(Ok(Message::Binary(bytes))) = source.next().await {
                match bytes[0] {
                    STDOUT => text.extend_from_slice(&bytes[1..]),
                    ERROR => status.extend_from_slice(&bytes[1..]),
                    other => panic!("channel {other}"),
                }
            }
            (text, String::from_utf8(status).unwrap())
        };
        let ((), (text, status)) = tokio::join!(typing, reading);
        assert_eq!(text, long);
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        assert_eq!(status["details"]["causes"][0], serde_json::json!({"reason": "ExitCode", "message": "7"}));
        drop((sink, source));
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn a_caller_that_is_gone_ends_the_guest() {
        struct Told(Option<tokio::sync::oneshot::Sender<()>>);
        impl Drop for Told {
            fn drop(&mut self) {
                let _ = self.0.take().map(|told| told.send(()));
            }
        }
        let (ours, theirs) = tokio::io::duplex(256);
        let (told, dropped) = tokio::sync::oneshot::channel();
        let told = Told(Some(told));
        let ended = Box::pin(async move {
            let _told = told;
            std::future::pending::<Ended>().await
        });
        let guest = Guest { stdin: None, stdout: None, stderr: None, resize: None, ended };
        let (ends, caller) = channels();
        let serving = tokio::spawn(remote(ours, Protocol::V4, Want::default(), caller, run(async { Ok(guest) }, ends)));
        let mut client = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
        client.next().await.unwrap().unwrap();
        drop(client);
        dropped.await.unwrap();
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_typed_after_the_end_does_not_keep_it_from_being_told() {
        // The guest has ended, and its caller has not read that far.
        let (ours, theirs) = tokio::io::duplex(16);
        let (ends, caller) = channels();
        let Channels { input, output } = ends;
        drop(input);
        let guest = async move {
            output.send(Output::Status(Bytes::from(vec![b's'; 1000]))).await.unwrap();
        };
        let want = Want { stdin: true, ..Want::default() };
        let serving = tokio::spawn(remote(ours, Protocol::V5, want, caller, guest));
        let client = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
        let (mut sink, mut source) = client.split();
        assert_eq!(source.next().await.unwrap().unwrap(), Message::binary(vec![ERROR]));
        sink.send(Message::binary(vec![CLOSE, STDIN])).await.unwrap();
        assert_eq!(source.next().await.unwrap().unwrap().len(), 1001);
        assert!(source.next().await.unwrap().unwrap().is_close());
        drop((sink, source));
        serving.await.unwrap();
    }

    #[test]
    fn messages() {
        let read = |protocol, bytes: &'static [u8]| read(protocol, Bytes::from_static(bytes));
        assert_eq!(read(Protocol::V4, b"\x00hi"), Some(Input::Stdin(Bytes::from_static(b"hi"))));
        let size = Size { width: 80, height: 24 };
        assert_eq!(read(Protocol::V4, b"\x04{\"Width\":80,\"Height\":24}"), Some(Input::Resize(size)));
        assert_eq!(read(Protocol::V5, b"\xff\x00"), Some(Input::StdinEnd));
        for nothing in [&b""[..], b"\x00", b"\xff\x00", b"\xff", b"\x04{", b"\x09x"] {
            assert_eq!(read(Protocol::V4, nothing), None);
        }
    }
}
