//! The address by which a machine is reached: the one that its packets to the control plane carry.
//!
//! Invariant: nothing is sent to find out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs, UdpSocket};

use anyhow::{Context, Result, ensure};

/// The machine's own address on the way to `host:port`.
///
/// # Errors
/// No address of the host, or no way there.
pub fn own(server: &str) -> Result<IpAddr> {
    let there = server.to_socket_addrs().with_context(|| server.to_owned())?.next();
    let there = there.with_context(|| format!("{server} has no address"))?;
    let any: IpAddr = if there.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(there).with_context(|| format!("no way to {server}"))?;
    let own = socket.local_addr()?.ip();
    ensure!(
        !own.is_loopback() || there.ip().is_loopback(),
        "this machine has no address of its own on the way to {server}: give one with --ip"
    );
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_tells() {
        assert_eq!(own("127.0.0.1:9").unwrap(), IpAddr::from([127, 0, 0, 1]));
        assert!(own("no-such-host.invalid:9").is_err());
    }
}
