//! A port of a pod by way of the API server, as `kubectl port-forward` reaches it: for pods of other machines and other clusters.
//!
//! Invariant: one connection, one port; it ends when its stream is dropped. Channels in a WebSocket (`v4.channel.k8s.io`): 0 is the data,
//! 1 the errors, and each begins with the port's number.

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{SinkExt, StreamExt};
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Message, protocol::Role};
use tokio_util::task::AbortOnDropHandle;

const PROTOCOL: &str = "v4.channel.k8s.io";
const DATA: u8 = 0;
const ERROR: u8 = 1;
/// Bytes of one message, and bytes that wait.
const PIECE: usize = 32 << 10;

/// A connection to a port.
pub(super) struct Forwarded {
    /// Both directions.
    pub(super) stream: DuplexStream,
    /// Carries them.
    pub(super) _pump: AbortOnDropHandle<()>,
}

/// Connects.
///
/// # Errors
/// The API server refuses, or speaks something else.
pub(super) async fn connect(client: &kube::Client, namespace: &str, pod: &str, port: u16) -> Result<Forwarded> {
    let key = base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 16]>());
    let request = Request::get(format!("/api/v1/namespaces/{namespace}/pods/{pod}/portforward?ports={port}"))
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, key)
        .header(header::SEC_WEBSOCKET_PROTOCOL, PROTOCOL)
        .body(Body::empty())?;
    let answer = client.send(request).await.context("the API server")?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = answer.status();
        let body = answer.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let said: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let said = said.get("message").and_then(|message| message.as_str()).unwrap_or_default().to_owned();
        bail!("the API server does not forward to pod {pod}: {status} {said}");
    }
    let spoken = answer.headers().get(header::SEC_WEBSOCKET_PROTOCOL).and_then(|value| value.to_str().ok());
    ensure!(spoken == Some(PROTOCOL), "the API server speaks {spoken:?}, not {PROTOCOL}");
    let upgraded = hyper::upgrade::on(answer).await.context("the API server hung up")?;
    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
    let (stream, other) = tokio::io::duplex(PIECE);
    let pump = AbortOnDropHandle::new(tokio::spawn(pump(socket, other)));
    Ok(Forwarded { stream, _pump: pump })
}

/// Carries bytes until one side ends.
async fn pump<S>(socket: WebSocketStream<S>, other: DuplexStream)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (mut sink, mut source) = socket.split();
    let (mut read, mut write) = tokio::io::split(other);
    let sending = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.clear();
            buffer.put_u8(DATA);
            match (&mut read).take(PIECE as u64).read_buf(&mut buffer).await {
                Ok(1..) if sink.send(Message::Binary(buffer.split().freeze())).await.is_ok() => {}
                _ => return,
            }
        }
    };
    let receiving = async {
        let mut begun = [false; 2];
        while let Some(Ok(message)) = source.next().await {
            let Message::Binary(bytes) = message else { continue };
            match take(bytes, &mut begun) {
                Taken::Data(bytes) if write.write_all(&bytes).await.is_err() => return,
                Taken::Data(_) | Taken::Nothing => {}
                Taken::Error(text) => {
                    tracing::warn!("port-forward: {text}");
                    return;
                }
            }
        }
    };
    tokio::select! { () = sending => {}, () = receiving => {} }
}

#[derive(Debug, PartialEq)]
enum Taken {
    Data(Bytes),
    Error(String),
    Nothing,
}

/// What a message says.
fn take(mut bytes: Bytes, begun: &mut [bool; 2]) -> Taken {
    if bytes.is_empty() {
        return Taken::Nothing;
    }
    let channel = bytes.split_to(1).first().copied().unwrap_or(u8::MAX);
    let Some(begun) = begun.get_mut(usize::from(channel)) else { return Taken::Nothing };
    if !std::mem::replace(begun, true) {
        // The port's number comes first.
        let number = bytes.len().min(2);
        let _ = bytes.split_to(number);
    }
    match channel {
        _ if bytes.is_empty() => Taken::Nothing,
        DATA => Taken::Data(bytes),
        ERROR => Taken::Error(String::from_utf8_lossy(&bytes).into_owned()),
        _ => Taken::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_channel_begins_with_the_port() {
        let mut begun = [false; 2];
        let mut said = |bytes: &'static [u8]| take(Bytes::from_static(bytes), &mut begun);
        assert_eq!(said(&[0, 0x98, 0x3a]), Taken::Nothing);
        assert_eq!(said(&[1, 0x98, 0x3a]), Taken::Nothing);
        assert_eq!(said(b"\0HTTP"), Taken::Data(Bytes::from_static(b"HTTP")));
        assert_eq!(said(b"\x01no"), Taken::Error("no".into()));
        assert_eq!(said(b""), Taken::Nothing);
        assert_eq!(said(b"\x07x"), Taken::Nothing);
    }
}
