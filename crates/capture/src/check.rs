//! Whether the rules are in place, found out as the proxy's user without any capability: by a connection that they must turn.
//!
//! Invariant: nothing is changed, and the answer comes within the time given. What is turned is the pod calling itself, which is the
//! only thing of the proxy's user that rules turn (semantics §17.3).

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::CaptureError;
use crate::sidecar::{Mode, SidecarCapture};

/// Where the connection is opened to; nobody listens there.
const TARGET: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 0, 6), 15002);
/// Between two tries: a plugin may still be at work.
const PERIOD: Duration = Duration::from_millis(500);

/// Waits until the rules are in place.
///
/// # Errors
/// [`CaptureError::NotInPlace`] when they are not within `limit`, or a port that is taken.
pub fn in_place(capture: &SidecarCapture, limit: Duration) -> Result<(), CaptureError> {
    if capture.mode == Mode::None {
        return Ok(());
    }
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, capture.inbound_port))
        .map_err(CaptureError::io(format!("listen on port {}", capture.inbound_port)))?;
    listener.set_nonblocking(true).map_err(CaptureError::io("listen"))?;
    let until = Instant::now().checked_add(limit);
    loop {
        if turned(&listener).map_err(CaptureError::io("connect to ourselves"))? {
            return Ok(());
        }
        if until.is_none_or(|until| Instant::now() >= until) {
            return Err(CaptureError::NotInPlace { table: format!("inet {}", capture.table) });
        }
        std::thread::sleep(PERIOD);
    }
}

/// Whether a connection to where nobody listens arrives at the listener.
fn turned(listener: &TcpListener) -> io::Result<bool> {
    let client = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // From another address than the one that rules let alone.
    client.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    match client.connect_timeout(&SocketAddr::from(TARGET).into(), PERIOD) {
        Ok(()) => {}
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::TimedOut) => {
            return Ok(false);
        }
        Err(error) => return Err(error),
    }
    match listener.accept() {
        Ok((_, peer)) => Ok(peer.ip() == Ipv4Addr::LOCALHOST),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}
