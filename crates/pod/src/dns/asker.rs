//! Whose socket a question came from: the user who owns it, as the kernel tells in `/proc/net`.
//!
//! Invariant: to be called on a thread inside of the pod's network namespace, while the asker waits; what cannot be found out is nobody's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Whether a user's socket is at this address of the calling thread's network namespace.
pub(crate) fn is_user(peer: SocketAddr, stream: bool, user: u32) -> bool {
    let files = if stream { ["tcp", "tcp6"] } else { ["udp", "udp6"] };
    files.iter().any(|file| {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default();
        owner(&text, peer) == Some(user)
    })
}

/// The owner of the socket at an address, in the kernel's table of sockets.
fn owner(text: &str, peer: SocketAddr) -> Option<u32> {
    text.lines().skip(1).find_map(|line| {
        let mut words = line.split_whitespace();
        let (ip, port) = words.nth(1)?.split_once(':')?;
        let own = u16::from_str_radix(port, 16).ok()? == peer.port();
        // After the local address: remote, state, queues, timer, retransmits, then the user.
        let user = words.nth(5)?.parse().ok()?;
        let ip = parse(ip)?;
        (own && (ip == peer.ip() || ip.is_unspecified())).then_some(user)
    })
}

/// An address as the kernel writes it: words of 32 bits in the machine's order.
fn parse(text: &str) -> Option<IpAddr> {
    let word = |at: usize| u32::from_str_radix(text.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (place, at) in bytes.chunks_exact_mut(4).zip([0, 8, 16, 24]) {
                place.copy_from_slice(&word(at)?);
            }
            Some(Ipv6Addr::from(bytes).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_socket() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let peer = socket.local_addr().unwrap();
        let me = nix::unistd::getuid().as_raw();
        assert!(is_user(peer, false, me), "{peer}");
        assert!(!is_user(peer, false, me + 1));
        assert!(!is_user(peer, true, me));
        let anywhere = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let port = anywhere.local_addr().unwrap().port();
        assert!(is_user(SocketAddr::from(([127, 0, 0, 1], port)), false, me));
        let six = std::net::UdpSocket::bind("[::]:0").unwrap();
        assert!(is_user(SocketAddr::from(([127, 0, 0, 1], six.local_addr().unwrap().port())), false, me));
    }
}
