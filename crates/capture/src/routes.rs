//! Where packets go that bear the mark of TPROXY: to this machine, whoever they are addressed to (semantics §17.4).
//!
//! Invariant: putting them twice is putting them once; one family that the kernel lacks is no error, as nothing of it can arrive.
//! Works on the calling thread's network namespace. Spoken to the kernel itself (rtnetlink(7)), as images need not have `ip`.

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket};

use crate::CaptureError;

/// The mark of packets between the proxy and its application.
pub const MARK: u32 = 1337;
/// The table that marked packets are looked up in.
const TABLE: u8 = 133;

const NEW_ROUTE: u16 = 24;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;
const REQUEST_ACK: u16 = 0x1 | 0x4;
const CREATE_REPLACE: u16 = 0x400 | 0x100;
const CREATE_EXCLUSIVE: u16 = 0x400 | 0x200;

/// Puts rule and route in place, for both families.
///
/// # Errors
/// The kernel refuses (not root).
pub fn apply() -> Result<(), CaptureError> {
    for family in [libc::AF_INET, libc::AF_INET6] {
        let done = ask(NEW_ROUTE, CREATE_REPLACE, &route(family)).and_then(|()| {
            match ask(NEW_RULE, CREATE_EXCLUSIVE, &rule(family)) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
                other => other,
            }
        });
        match done {
            Err(error) if family == libc::AF_INET6 && lacks_family(&error) => {}
            other => other.map_err(CaptureError::io("bring marked packets to the proxy"))?,
        }
    }
    Ok(())
}

/// Takes the rules out; fine when they are not there. A route that nothing leads to stays.
pub fn remove() {
    for family in [libc::AF_INET, libc::AF_INET6] {
        let _ = ask(DELETE_RULE, 0, &rule(family));
    }
}

/// What the kernel says where IPv6 is compiled out or switched off.
fn lacks_family(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP | libc::EACCES | libc::EINVAL | libc::ENODEV)
    )
}

/// `ip rule … fwmark MARK lookup TABLE`: `struct fib_rule_hdr` and its attributes.
fn rule(family: i32) -> Vec<u8> {
    const TO_TABLE: u8 = 1;
    const PRIORITY: u16 = 6;
    const FWMARK: u16 = 10;
    let mut body = vec![family as u8, 0, 0, 0, TABLE, 0, 0, TO_TABLE, 0, 0, 0, 0];
    // Its place among the others is said, so that the same rule is known again.
    attribute(&mut body, PRIORITY, MARK);
    attribute(&mut body, FWMARK, MARK);
    body
}

/// `ip route … local default dev lo table TABLE`: `struct rtmsg` and its attributes.
fn route(family: i32) -> Vec<u8> {
    const STATIC: u8 = 4;
    const HOST: u8 = 254;
    const LOCAL: u8 = 2;
    const OUT_INTERFACE: u16 = 4;
    /// The loopback is the first of every namespace.
    const LOOPBACK: u32 = 1;
    let mut body = vec![family as u8, 0, 0, 0, TABLE, STATIC, HOST, LOCAL, 0, 0, 0, 0];
    attribute(&mut body, OUT_INTERFACE, LOOPBACK);
    body
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: u32) {
    body.extend(8_u16.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value.to_ne_bytes());
}

/// One request, and the kernel's verdict.
fn ask(kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    const HEADER: usize = 16;
    const ERROR: u16 = 2;
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, Some(SockProtocol::NetlinkRoute))?;
    let length = u32::try_from(HEADER.saturating_add(body.len())).map_err(|_| Errno::EMSGSIZE)?;
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((REQUEST_ACK | flags).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    sendto(socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0_u8; 512];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let answer = answer.get(..length).unwrap_or_default();
    let told = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let verdict = answer.get(HEADER..HEADER + 4).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (told, verdict) {
        (Some(ERROR), Some(0)) => Ok(()),
        (Some(ERROR), Some(code)) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}
