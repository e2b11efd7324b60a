//! The header that tells an upstream the client's address (PROXY protocol versions 1 and 2), as Envoy writes it.
//!
//! Invariant: addresses of different families are told as unknown, never as something else. Reading such headers is not done here.

use std::net::{IpAddr, SocketAddr};

use crate::model::cluster::ProxyProtocol;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// The header for a client and the address it connected to; `None` = a connection of our own.
#[must_use]
pub fn header(version: ProxyProtocol, addresses: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    match version {
        ProxyProtocol::V1 => text(addresses).into_bytes(),
        ProxyProtocol::V2 => binary(addresses),
    }
}

fn text(addresses: Option<(SocketAddr, SocketAddr)>) -> String {
    let family = match addresses {
        Some((SocketAddr::V4(_), SocketAddr::V4(_))) => "TCP4",
        Some((SocketAddr::V6(_), SocketAddr::V6(_))) => "TCP6",
        _ => return "PROXY UNKNOWN\r\n".to_owned(),
    };
    addresses.map_or_else(String::new, |(from, to)| {
        format!("PROXY {family} {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port())
    })
}

fn binary(addresses: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let mut out = SIGNATURE.to_vec();
    let mut body = Vec::new();
    // Command LOCAL for connections of our own, PROXY for others.
    let (command, family) = match addresses.map(|(from, to)| (from, to, from.ip(), to.ip())) {
        Some((from, to, IpAddr::V4(a), IpAddr::V4(b))) => {
            body.extend(a.octets().into_iter().chain(b.octets()));
            body.extend(from.port().to_be_bytes().into_iter().chain(to.port().to_be_bytes()));
            (0x21, 0x11)
        }
        Some((from, to, IpAddr::V6(a), IpAddr::V6(b))) => {
            body.extend(a.octets().into_iter().chain(b.octets()));
            body.extend(from.port().to_be_bytes().into_iter().chain(to.port().to_be_bytes()));
            (0x21, 0x21)
        }
        _ => (0x20, 0x00),
    };
    out.extend([command, family]);
    out.extend(u16::try_from(body.len()).unwrap_or(0).to_be_bytes());
    out.extend(body);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_as_the_protocol_writes_them() {
        let pair = |a: &str, b: &str| Some((a.parse().unwrap(), b.parse().unwrap()));
        let four = pair("10.0.0.1:4000", "10.0.0.2:80");
        assert_eq!(header(ProxyProtocol::V1, four), b"PROXY TCP4 10.0.0.1 10.0.0.2 4000 80\r\n");
        let six = pair("[::1]:4000", "[::2]:80");
        assert_eq!(header(ProxyProtocol::V1, six), b"PROXY TCP6 ::1 ::2 4000 80\r\n");
        assert_eq!(header(ProxyProtocol::V1, pair("[::1]:1", "10.0.0.2:80")), b"PROXY UNKNOWN\r\n");
        let two = header(ProxyProtocol::V2, four);
        assert_eq!(&two[12..], [0x21, 0x11, 0, 12, 10, 0, 0, 1, 10, 0, 0, 2, 0x0f, 0xa0, 0, 80]);
        assert_eq!(header(ProxyProtocol::V2, six).len(), 16 + 36);
        assert_eq!(&header(ProxyProtocol::V2, None)[12..], [0x20, 0, 0, 0]);
    }
}
