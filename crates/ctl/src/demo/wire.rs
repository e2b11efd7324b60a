//! What really crosses the wire: frames of the pod network, read from a packet socket.
//!
//! Invariant: only frames between the two addresses asked for are kept; nothing is sent. Needs root.

use std::{
    net::Ipv4Addr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context, Result};

/// `ETH_P_ALL` in network byte order, as packet sockets want it.
const ALL_PROTOCOLS: u16 = (libc::ETH_P_ALL as u16).to_be();
/// Bytes kept of one capture; a capture is of a few requests.
const LIMIT: usize = 8 << 20;

/// A running capture of the TCP payloads between two addresses.
pub struct Capture {
    stop: Arc<AtomicBool>,
    reader: JoinHandle<Payloads>,
}

/// The payloads that crossed, in the order seen.
#[derive(Debug, Default)]
pub struct Payloads(Vec<Vec<u8>>);

impl Capture {
    /// Starts to listen for packets between `a` and `b`.
    ///
    /// # Errors
    /// When a packet socket cannot be opened (not root).
    pub fn start(a: Ipv4Addr, b: Ipv4Addr) -> Result<Self> {
        // SAFETY: a plain system call; the result is checked, and owned from then on.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, i32::from(ALL_PROTOCOLS));
            if fd < 0 {
                return Err(std::io::Error::last_os_error()).context("packet socket (needs root)");
            }
            OwnedFd::from_raw_fd(fd)
        };
        let wait = libc::timeval { tv_sec: 0, tv_usec: 50_000 };
        // SAFETY: `wait` outlives the call and its size is given.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                (&raw const wait).cast(),
                size_of::<libc::timeval>() as libc::socklen_t,
            )
        };
        if set < 0 {
            return Err(std::io::Error::last_os_error()).context("packet socket timeout");
        }
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let reader = std::thread::Builder::new()
            .name("capture".into())
            .spawn(move || read(&socket, (a, b), &told))
            .context("capture thread")?;
        Ok(Self { stop, reader })
    }

    /// Ends the capture; packets of the last 200 ms are still taken in.
    ///
    /// # Errors
    /// When the reading thread died.
    pub fn finish(self) -> Result<Payloads> {
        std::thread::sleep(std::time::Duration::from_millis(200));
        self.stop.store(true, Ordering::Relaxed);
        self.reader.join().map_err(|_| anyhow::anyhow!("the capture thread died"))
    }
}

fn read(socket: &OwnedFd, pair: (Ipv4Addr, Ipv4Addr), stop: &AtomicBool) -> Payloads {
    let mut found = Payloads::default();
    let mut kept = 0;
    let mut frame = vec![0_u8; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        // SAFETY: the buffer is valid for its whole length.
        let got = unsafe { libc::recv(socket.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
        let Ok(got) = usize::try_from(got) else { continue };
        let payload = frame.get(..got).and_then(|packet| tcp_payload(packet, pair));
        if let Some(payload) = payload.filter(|payload| kept + payload.len() <= LIMIT) {
            kept += payload.len();
            found.0.push(payload.to_vec());
        }
    }
    found
}

/// The TCP payload of an IPv4 packet between the two addresses (RFC 791, RFC 9293); `None` for anything else.
fn tcp_payload(packet: &[u8], (a, b): (Ipv4Addr, Ipv4Addr)) -> Option<&[u8]> {
    let first = *packet.first()?;
    if first >> 4 != 4 || *packet.get(9)? != 6 {
        return None;
    }
    let address = |at: usize| -> Option<Ipv4Addr> {
        let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(octets.into())
    };
    let ends = (address(12)?, address(16)?);
    if ends != (a, b) && ends != (b, a) {
        return None;
    }
    let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    let header = usize::from(first & 0x0f) * 4;
    let segment = packet.get(header..total.min(packet.len()))?;
    let offset = usize::from(*segment.get(12)? >> 4) * 4;
    segment.get(offset..).filter(|payload| !payload.is_empty())
}

impl Payloads {
    /// Whether these bytes crossed in the clear.
    pub fn contain(&self, needle: &[u8]) -> bool {
        self.0.iter().any(|payload| payload.windows(needle.len()).any(|window| window == needle))
    }

    /// Whether encrypted records of application data crossed (TLS record type 23, RFC 8446 §5.2).
    pub fn carry_tls(&self) -> bool {
        self.0.iter().any(|payload| payload.starts_with(&[0x17, 0x03, 0x03])) || self.contain(&[0x17, 0x03, 0x03])
    }

    /// Whether a ServerHello that chose TLS 1.3 crossed: its `supported_versions` extension (RFC 8446 §4.2.1)
    /// holds 0x0304.
    pub fn negotiated_tls13(&self) -> bool {
        self.0.iter().any(|payload| {
            let server_hello = payload.first() == Some(&0x16) && payload.get(5) == Some(&0x02);
            server_hello && payload.windows(6).any(|w| w == [0x00, 0x2b, 0x00, 0x02, 0x03, 0x04])
        })
    }

    /// Whether anything at all crossed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_payloads_between_the_pair_are_kept() {
        let (a, b) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let mut packet = vec![0x45, 0, 0, 45, 0, 0, 0, 0, 64, 6, 0, 0];
        packet.extend(a.octets());
        packet.extend(b.octets());
        let mut tcp = vec![0_u8; 20];
        tcp[12] = 5 << 4;
        packet.extend(tcp);
        packet.extend(b"hello");
        assert_eq!(tcp_payload(&packet, (a, b)), Some(&b"hello"[..]));
        assert_eq!(tcp_payload(&packet, (b, a)), Some(&b"hello"[..]));
        assert_eq!(tcp_payload(&packet, (a, Ipv4Addr::LOCALHOST)), None);
        for cut in 0..packet.len() {
            let _ = tcp_payload(&packet[..cut], (a, b));
        }
    }

    #[test]
    fn tls_is_told_from_plain() {
        let plain = Payloads(vec![b"GET / HTTP/1.1\r\n".to_vec()]);
        assert!(plain.contain(b"HTTP/1.1") && !plain.carry_tls() && !plain.negotiated_tls13());
        let hello = [&[0x16, 3, 3, 0, 60, 2, 0, 0][..], &[0, 0x2b, 0, 2, 3, 4]].concat();
        assert!(Payloads(vec![hello]).negotiated_tls13());
        assert!(Payloads(vec![vec![0x17, 3, 3, 0, 1, 9]]).carry_tls());
    }
}
