//! `exec` and `attach`: a guest and a caller brought together over whichever transport was agreed upon.
//!
//! Invariant: when the connection ends, the guest is dropped.

use crate::pods::{Guest, PodsError, Want};
use crate::session::{channels, run};
use crate::{handshake::Handshake, spdy, websocket};
use std::future::Future;
use tokio::io::{AsyncRead, AsyncWrite};

/// Serves `exec` or `attach` on an upgraded connection, until the guest has ended or the caller is gone. `guest` is asked for when the
/// caller's streams are there.
pub async fn serve<S>(
    io: S,
    handshake: &Handshake,
    want: Want,
    guest: impl Future<Output = Result<Guest, PodsError>> + Send,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let (channels, caller) = channels();
    match handshake {
        Handshake::WebSocket { protocol, .. } => {
            websocket::remote(io, *protocol, want, caller, run(guest, channels)).await;
        }
        Handshake::Spdy { .. } => {
            spdy::serve(io, |streams| spdy::remote::serve(streams, want, caller, run(guest, channels))).await;
        }
    }
}
