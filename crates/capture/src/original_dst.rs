//! Where a redirected connection was going before the rules of this crate turned it around (`SO_ORIGINAL_DST`).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;

use socket2::SockRef;

/// The destination that the client dialled. For a connection that no rule redirected the kernel has no answer on some paths
/// (`ENOENT`) and the socket's own address on others.
///
/// # Errors
/// Not a TCP socket of an internet family, or the kernel does not track the connection.
pub fn original_dst(socket: &impl AsFd) -> io::Result<SocketAddr> {
    let socket = SockRef::from(socket);
    let local = socket
        .local_addr()?
        .as_socket()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not an internet socket"))?;
    let mapped = match local.ip() {
        IpAddr::V4(_) => true,
        IpAddr::V6(ip) => ip.to_ipv4_mapped().is_some(),
    };
    let original = if mapped { socket.original_dst_v4()? } else { socket.original_dst_v6()? };
    original
        .as_socket()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the original destination is no internet address"))
}
