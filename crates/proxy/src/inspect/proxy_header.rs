//! The PROXY protocol, versions 1 and 2 (haproxy's proxy-protocol.txt): who the client is, said by the load balancer in front.
//!
//! Invariant: nothing behind the header is consumed, nothing in it is believed but two addresses of one family, and what is neither a
//! header nor surely something else is waited for within its bounds only. Whether a header is wanted is the listener's.

use carrick_proxy_core::model::listener::ProxyHeader;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V1: &[u8] = b"PROXY ";
/// Longest line of version 1, with its end.
const V1_MAX: usize = 107;

/// Client and destination.
pub type Addresses = (SocketAddr, SocketAddr);

/// What the first bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Undecided.
    NeedMore,
    /// No header; fine if it is optional.
    Absent,
    /// A header of so many bytes. Without addresses (`LOCAL`, `UNKNOWN`) those of the connection hold.
    Found(usize, Option<Addresses>),
    /// A header that cannot be believed.
    Bad,
}

/// Looks at the first bytes of a connection.
pub fn parse(seen: &[u8], wanted: ProxyHeader) -> Verdict {
    let could_be = |signature: &[u8]| signature.starts_with(seen) || seen.starts_with(signature);
    let whole = |signature: &[u8]| seen.len() >= signature.len();
    match (could_be(V2), could_be(V1)) {
        (true, _) if whole(V2) => {
            if wanted.v2 {
                v2(seen)
            } else {
                Verdict::Bad
            }
        }
        (_, true) if whole(V1) => {
            if wanted.v1 {
                v1(seen)
            } else {
                Verdict::Bad
            }
        }
        (false, false) => Verdict::Absent,
        _ => Verdict::NeedMore,
    }
}

fn v1(seen: &[u8]) -> Verdict {
    let window = seen.get(..V1_MAX).unwrap_or(seen);
    let Some(end) = window.iter().position(|b| *b == b'\n') else {
        return if seen.len() >= V1_MAX { Verdict::Bad } else { Verdict::NeedMore };
    };
    let line = window.get(..end).and_then(|line| line.strip_suffix(b"\r"));
    let Some(line) = line.and_then(|line| std::str::from_utf8(line).ok()) else { return Verdict::Bad };
    let length = end.saturating_add(1);
    let mut words = line.split(' ').skip(1);
    match words.next() {
        Some("UNKNOWN") => return Verdict::Found(length, None),
        Some("TCP4" | "TCP6") => {}
        _ => return Verdict::Bad,
    }
    let six = line.starts_with("PROXY TCP6");
    let (Some(from), Some(to), Some(from_port), Some(to_port), None) =
        (words.next(), words.next(), words.next(), words.next(), words.next())
    else {
        return Verdict::Bad;
    };
    let address = |ip: &str, port: &str| {
        let ip: IpAddr = ip.parse().ok()?;
        let plain = port.bytes().all(|b| b.is_ascii_digit());
        (ip.is_ipv6() == six && plain).then_some(())?;
        Some(SocketAddr::new(ip, port.parse().ok()?))
    };
    match (address(from, from_port), address(to, to_port)) {
        (Some(from), Some(to)) => Verdict::Found(length, Some((from, to))),
        _ => Verdict::Bad,
    }
}

fn v2(seen: &[u8]) -> Verdict {
    let (Some(command), Some(family), Some(high), Some(low)) = (seen.get(12), seen.get(13), seen.get(14), seen.get(15))
    else {
        return Verdict::NeedMore;
    };
    let body = usize::from(u16::from_be_bytes([*high, *low]));
    let length = body.saturating_add(16);
    match command {
        0x20 | 0x21 => {}
        _ => return Verdict::Bad,
    }
    let Some(rest) = seen.get(16..length) else { return Verdict::NeedMore };
    if *command == 0x20 {
        return Verdict::Found(length, None);
    }
    let addresses = match family {
        0x11 => read(rest, |ip: [u8; 4]| Ipv4Addr::from(ip).into()),
        0x21 => read(rest, |ip: [u8; 16]| Ipv6Addr::from(ip).into()),
        _ => None,
    };
    // What follows the addresses are TLVs, which say nothing that we would act on.
    addresses.map_or(Verdict::Bad, |addresses| Verdict::Found(length, Some(addresses)))
}

fn read<const N: usize>(bytes: &[u8], ip: impl Fn([u8; N]) -> IpAddr) -> Option<Addresses> {
    let (from, rest) = bytes.split_first_chunk::<N>()?;
    let (to, rest) = rest.split_first_chunk::<N>()?;
    let (from_port, rest) = rest.split_first_chunk::<2>()?;
    let (to_port, _) = rest.split_first_chunk::<2>()?;
    let port = |bytes: &[u8; 2]| u16::from_be_bytes(*bytes);
    Some((SocketAddr::new(ip(*from), port(from_port)), SocketAddr::new(ip(*to), port(to_port))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOTH: ProxyHeader = ProxyHeader { optional: false, v1: true, v2: true };

    fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut all = V2.to_vec();
        all.extend([command, family]);
        all.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        all.extend(body);
        all
    }

    fn found(length: usize, from: &str, to: &str) -> Verdict {
        Verdict::Found(length, Some((from.parse().unwrap(), to.parse().unwrap())))
    }

    #[test]
    fn texts() {
        let of = |text: &str| parse(text.as_bytes(), BOTH);
        assert_eq!(of("PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\nGET"), found(33, "1.2.3.4:9", "5.6.7.8:10"));
        assert_eq!(of("PROXY TCP6 ::1 ::2 9 10\r\n"), found(25, "[::1]:9", "[::2]:10"));
        assert_eq!(of("PROXY UNKNOWN\r\n"), Verdict::Found(15, None));
        assert_eq!(of("PROXY UNKNOWN ff:: 1\r\n"), Verdict::Found(22, None));
        for bad in [
            "PROXY TCP4 ::1 ::2 9 10\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 9\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 9 10 11\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 +9 10\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 9 65536\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 9 10\n",
            "PROXY UDP4 1.2.3.4 5.6.7.8 9 10\r\n",
            &format!("PROXY TCP4 {}", "1".repeat(100)),
        ] {
            assert_eq!(of(bad), Verdict::Bad, "{bad}");
        }
        for more in ["", "P", "PROXY", "PROXY TCP4 1.2"] {
            assert_eq!(of(more), Verdict::NeedMore, "{more}");
        }
        assert_eq!(of("PRI * HTTP/2.0"), Verdict::Absent);
        assert_eq!(parse(b"PROXY UNKNOWN\r\n", ProxyHeader { v1: false, ..BOTH }), Verdict::Bad);
    }

    #[test]
    fn binaries() {
        let four = [1, 2, 3, 4, 5, 6, 7, 8, 0, 9, 0, 10];
        let with_tlv = [&four[..], &[4, 0, 2, 7, 7]].concat();
        assert_eq!(parse(&binary(0x21, 0x11, &four), BOTH), found(28, "1.2.3.4:9", "5.6.7.8:10"));
        assert_eq!(parse(&binary(0x21, 0x11, &with_tlv), BOTH), found(33, "1.2.3.4:9", "5.6.7.8:10"));
        assert_eq!(parse(&binary(0x20, 0, &[]), BOTH), Verdict::Found(16, None));
        for (command, family, body) in [
            (0x21, 0x11, &four[..11]),
            (0x21, 0x12, &four[..]),
            (0x11, 0x11, &four[..]),
            (0x22, 0x11, &four[..]),
            (0x21, 0x21, &four[..]),
        ] {
            assert_eq!(parse(&binary(command, family, body), BOTH), Verdict::Bad, "{command:x} {family:x}");
        }
        let whole = binary(0x21, 0x11, &with_tlv);
        for cut in 0..whole.len() {
            assert_eq!(parse(&whole[..cut], BOTH), Verdict::NeedMore, "{cut}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(start in 0usize..3, bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let mut all = [&b""[..], V1, V2][start].to_vec();
            all.extend(bytes);
            let _ = parse(&all, BOTH);
        }
    }
}
