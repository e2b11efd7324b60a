//! The few system calls that the standard library lacks. The only `unsafe` of this crate.
//!
//! Invariant: each function takes a descriptor that its caller keeps open for the length of the call.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, RawFd};

/// Where a redirected connection wanted to go (`SO_ORIGINAL_DST`), before NAT.
///
/// # Errors
/// The kernel knows no translation for this connection (it was not redirected).
pub fn original_dst(fd: &impl AsFd, v6: bool) -> io::Result<SocketAddr> {
    let sock = socket2::SockRef::from(fd);
    let addr = if v6 { sock.original_dst_v6()? } else { sock.original_dst_v4()? };
    addr.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Makes the close of `fd` send a reset instead of an orderly end, dropping what is unsent.
pub fn reset_on_close(fd: &impl AsFd) {
    let _ = socket2::SockRef::from(fd).set_linger(Some(std::time::Duration::ZERO));
}

/// Ends a connection in both directions now: whoever waits on it wakes and finds its end, and closing it drops what is
/// unsent. `fd` must be open: the caller proves it by holding the entry that is taken out before the socket is closed.
pub fn cut(fd: RawFd) {
    if fd < 0 {
        return;
    }
    // SAFETY: the entry for `fd` is still there, so its owner has not closed it, and cannot during this call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    reset_on_close(&fd);
    let _ = socket2::SockRef::from(&fd).shutdown(std::net::Shutdown::Both);
}

/// The state of an idle connection as the kernel knows it, without waiting for the event loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idle {
    /// Open, and nothing to read.
    Quiet,
    /// The peer sent something unasked, ended or reset the connection.
    Stirred,
}

/// Looks at an idle socket. `fd` must be open: the caller proves it by holding the connection that owns it.
pub fn idle_state(fd: RawFd) -> Idle {
    if fd < 0 {
        return Idle::Quiet;
    }
    // SAFETY: the caller holds the owner of `fd`, on the same thread, for the length of this call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let mut byte = [std::mem::MaybeUninit::<u8>::uninit(); 1];
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    match socket2::SockRef::from(&fd).recv_with_flags(&mut byte, flags) {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Idle::Quiet,
        _ => Idle::Stirred,
    }
}

/// Sets an integer socket option by numbers.
///
/// # Errors
/// What the kernel says.
pub fn set_option(fd: &impl std::os::fd::AsRawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let size = libc::socklen_t::try_from(std::mem::size_of::<i32>()).unwrap_or(4);
    // SAFETY: `value` lives through the call and `size` is its size; the descriptor is open, `fd` is borrowed.
    let result = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(&value).cast(), size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What the kernel knows of a TCP connection, from `TCP_INFO`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpState {
    /// No packet will come or go any more.
    pub closed: bool,
    /// Segments sent and not acknowledged.
    pub unacked: u32,
    /// Bytes that the peer's kernel has acknowledged in all.
    pub acked: u64,
}

/// Asks the kernel. `None` where it does not know (not TCP, or too old).
pub fn tcp_state(fd: RawFd) -> Option<TcpState> {
    const CLOSE: u8 = 7;
    const UNACKED: usize = 24;
    const ACKED: usize = 120;
    // The layout of `struct tcp_info` only ever grows (linux/tcp.h); its C library twins lack the newer fields.
    let mut info = [0_u8; 160];
    let mut len = libc::socklen_t::try_from(info.len()).ok()?;
    // SAFETY: `info` is `len` bytes long and lives through the call; a descriptor that is not open only gives an error.
    let result = unsafe {
        libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), std::ptr::from_mut(&mut len))
    };
    if result != 0 || usize::try_from(len).ok()? < ACKED + 8 {
        return None;
    }
    Some(TcpState {
        closed: *info.first()? == CLOSE,
        unacked: u32::from_ne_bytes(info.get(UNACKED..UNACKED + 4)?.try_into().ok()?),
        acked: u64::from_ne_bytes(info.get(ACKED..ACKED + 8)?.try_into().ok()?),
    })
}

/// A second descriptor for the same socket.
pub fn duplicate(fd: &impl AsFd) -> Option<std::os::fd::OwnedFd> {
    fd.as_fd().try_clone_to_owned().ok()
}

/// Lets a socket be bound to an address that is not ours (`IP_TRANSPARENT`), and marks its packets, if the mark is not 0.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN`.
pub fn borrow_address(fd: &impl AsFd, v6: bool, mark: u32) -> io::Result<()> {
    let socket = socket2::SockRef::from(fd);
    if v6 {
        socket.set_ip_transparent_v6(true)?
    } else {
        socket.set_ip_transparent_v4(true)?
    }
    if mark == 0 { Ok(()) } else { socket.set_mark(mark) }
}

/// Lets a bind to port 0 choose the port at connect (`IP_BIND_ADDRESS_NO_PORT`), where the kernel can.
pub fn bind_without_port(fd: &impl std::os::fd::AsRawFd) {
    let _ = set_option(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1);
}
