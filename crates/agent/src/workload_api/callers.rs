//! Whether a caller on a Unix socket is in this process's network namespace, asked of the kernel (`sock_diag(7)`).
//!
//! Invariant: what is told is about the two sockets, not about process numbers, so that neither privilege nor another process namespace
//! stands in the way and nobody can take a number over; what cannot be found out is no.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const REQUEST: u16 = 1;
const SHOW_PEER: u32 = 4;
/// The attribute that names the other end.
const PEER: u16 = 2;
/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// It and `struct unix_diag_msg`.
const ANSWER: usize = HEADER + 16;

/// Whether the other end of `accepted` was made in the network namespace of this thread.
pub(super) fn is_near(accepted: impl AsFd) -> io::Result<bool> {
    let kernel = Kernel::open()?;
    let own = nix::sys::stat::fstat(accepted.as_fd())?.st_ino;
    let Some(own) = kernel.ask(own)? else { return Ok(false) };
    let Some(peer) = attribute(&own, PEER) else { return Ok(false) };
    // Sockets of other namespaces are not found.
    Ok(kernel.ask(peer.into())?.is_some())
}

struct Kernel(OwnedFd);

impl Kernel {
    fn open() -> io::Result<Self> {
        let kind = SockProtocol::NetlinkSockDiag;
        let fd = socket(AddressFamily::Netlink, SockType::Datagram, SockFlag::SOCK_CLOEXEC, kind)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(1))?;
        Ok(Self(fd))
    }

    /// The answer about one Unix socket by its inode; `None` when there is none of that number.
    fn ask(&self, inode: u64) -> io::Result<Option<Vec<u8>>> {
        let Ok(inode) = u32::try_from(inode) else { return Ok(None) };
        let mut request = Vec::with_capacity(40);
        request.extend(40_u32.to_ne_bytes());
        request.extend([SOCK_DIAG_BY_FAMILY, REQUEST].map(u16::to_ne_bytes).concat());
        request.extend([1_u32, 0].map(u32::to_ne_bytes).concat());
        // Family, protocol, padding; all states; the inode; what to show; any cookie.
        request.extend([u8::try_from(nix::libc::AF_UNIX).unwrap_or(1), 0, 0, 0]);
        request.extend([u32::MAX, inode, SHOW_PEER, u32::MAX, u32::MAX].map(u32::to_ne_bytes).concat());
        sendto(self.0.as_raw_fd(), &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut answer = vec![0; 4096];
        let length = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        answer.truncate(length);
        let kind = answer.get(4..6).map(|bytes| bytes == SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        Ok((kind == Some(true)).then_some(answer))
    }
}

/// A number among the attributes of an answer.
fn attribute(answer: &[u8], wanted: u16) -> Option<u32> {
    let mut rest = answer.get(ANSWER..)?;
    loop {
        let [a, b, c, d] = *rest.first_chunk()?;
        let (length, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]));
        if kind == wanted {
            return Some(u32::from_ne_bytes(*rest.get(4..)?.first_chunk()?));
        }
        rest = rest.get(length.next_multiple_of(4).max(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn both_ends_here() {
        let (one, other) = UnixStream::pair().unwrap();
        assert!(is_near(&one).unwrap() && is_near(&other).unwrap());
        drop(other);
        assert!(!is_near(&one).unwrap(), "an end that is gone is nowhere");
    }

    #[test]
    fn odd_answers_name_nothing() {
        assert_eq!(attribute(&[0; 20], PEER), None);
        let odd = [&[0; ANSWER][..], &[0, 0, 9, 0, 0, 0, 9, 0]].concat();
        assert_eq!(attribute(&odd, PEER), None);
        let cut = [&[0; ANSWER][..], &8_u16.to_ne_bytes(), &PEER.to_ne_bytes(), &[1, 2]].concat();
        assert_eq!(attribute(&cut, PEER), None);
    }
}
