//! `port-forward`: for every connection that the caller takes a pair of streams, one for bytes and one for what went wrong.
//!
//! Invariant: a connection that cannot be made is told on its own error stream and disturbs no other.

use crate::handshake::{Handshake, Protocol};
use crate::pods::{Duplex, Pods, PodsError, Target};
use crate::session::PIECE;
use crate::spdy::{self, Received, Stream, Streams};
use crate::websocket;
use bytes::{Bytes, BytesMut};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;

/// Pairs of which one half is there.
const HALVES: usize = 64;

/// Serves `port-forward` on an upgraded connection until the caller is gone. `ports` are those of the request, which only the oldest
/// protocol needs.
pub async fn serve<S>(io: S, handshake: &Handshake, ports: &[u16], pods: Arc<dyn Pods>, target: Target)
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    match handshake {
        Handshake::WebSocket { protocol: Protocol::Tunnel, .. } => {
            let (io, moving) = websocket::tunnel(io).await;
            tokio::join!(moving, spdy::serve(io, |streams| pairs(streams, pods, target)));
        }
        Handshake::WebSocket { .. } => {
            let (pods, target) = (&pods, &target);
            websocket::forward(io, ports, |port| async move { pods.dial(target, port).await }).await;
        }
        Handshake::Spdy { .. } => spdy::serve(io, |streams| pairs(streams, pods, target)).await,
    }
}

async fn pairs(mut streams: Streams, pods: Arc<dyn Pods>, target: Target) {
    let mut connections = JoinSet::new();
    let mut halves: HashMap<String, Stream> = HashMap::new();
    loop {
        let stream = tokio::select! {
            stream = streams.recv() => match stream { Some(stream) => stream, None => return },
            Some(_) = connections.join_next() => continue,
        };
        let number = stream.header("requestid").to_owned();
        let Some(first) = halves.remove(&number) else {
            // Whoever opens only halves loses them.
            if halves.len() >= HALVES {
                halves.clear();
            }
            halves.insert(number, stream);
            continue;
        };
        let (data, error) = match (first.header("streamtype"), stream.header("streamtype")) {
            ("data", "error") => (first, stream),
            ("error", "data") => (stream, first),
            _ => continue,
        };
        let (pods, target) = (pods.clone(), target.clone());
        connections.spawn(async move { one(data, error, pods, target).await });
    }
}

async fn one(data: Stream, error: Stream, pods: Arc<dyn Pods>, target: Target) {
    let port = data.header("port").to_owned();
    let (_, complaints) = error.split();
    let dialled = match port.parse::<u16>() {
        Ok(number) if number > 0 => pods.dial(&target, number).await,
        _ => Err(PodsError::Request(format!("{port:?} is no port"))),
    };
    match dialled {
        Ok(connection) => both_ways(data, connection).await,
        Err(why) => {
            let text = format!("error forwarding port {port} to pod {}, uid : {why}", target.uid);
            complaints.data(Bytes::from(text)).await;
            data.split().1.end().await;
        }
    }
    complaints.end().await;
}

async fn both_ways(data: Stream, connection: Box<dyn Duplex>) {
    let (mut reader, writer) = data.split();
    let (mut from, mut to) = tokio::io::split(connection);
    // It owns the stream's pieces: when it is done, what still comes is thrown away and stops nobody.
    let inward = async move {
        loop {
            match reader.next().await {
                Received::Data(bytes) => {
                    if to.write_all(&bytes).await.is_err() {
                        // The pod's side reads no more; what it still says is shown.
                        return false;
                    }
                }
                Received::End => {
                    let _ = to.shutdown().await;
                    return false;
                }
                Received::Reset => return true,
            }
        }
    };
    let outward = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(PIECE);
            match from.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {
                    if !writer.data(buffer.split().freeze()).await {
                        return;
                    }
                }
            }
        }
        writer.end().await;
    };
    tokio::pin!(outward);
    let given_up = tokio::select! {
        // The pod has said all; whatever the caller still sends is for nobody.
        () = &mut outward => return,
        given_up = inward => given_up,
    };
    if !given_up {
        outward.await;
    }
}
