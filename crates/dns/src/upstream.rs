//! Names that are somebody else's: asked of the servers of a resolver configuration.
//!
//! Invariant: an answer is passed on only if it is one to the question (same id, from the server asked); every question ends within a bound.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// For one server, one try.
const PATIENCE: Duration = Duration::from_secs(2);

/// Servers of a resolver configuration.
#[derive(Clone, Debug)]
pub struct Upstream {
    resolv_conf: PathBuf,
    /// Ourselves, who are not asked.
    own: Option<SocketAddr>,
}

impl Upstream {
    /// Those of the file, but for `own`: the asker itself, where the file may name it.
    pub fn new(resolv_conf: impl Into<PathBuf>, own: Option<SocketAddr>) -> Self {
        Self { resolv_conf: resolv_conf.into(), own }
    }

    /// Servers as the file has them now; it changes when the machine moves between networks.
    fn servers(&self) -> Vec<SocketAddr> {
        let text = std::fs::read_to_string(&self.resolv_conf).unwrap_or_default();
        nameservers(&text).map(|ip| SocketAddr::new(ip, 53)).filter(|server| Some(*server) != self.own).collect()
    }

    /// The raw answer of the first server that gives one. Goes out of the calling thread's network namespace.
    pub async fn ask(&self, query: &[u8], stream: bool) -> Option<Vec<u8>> {
        for server in self.servers() {
            let answer = if stream {
                timeout(PATIENCE, over_tcp(server, query)).await
            } else {
                timeout(PATIENCE, over_udp(server, query)).await
            };
            if let Ok(Ok(answer)) = answer {
                return Some(answer);
            }
        }
        None
    }
}

/// Servers of a resolver configuration.
pub fn nameservers(text: &str) -> impl Iterator<Item = IpAddr> + '_ {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then_some(())?;
        // A zone (`%eth0`) cannot be parsed and is of no use to us.
        words.next()?.parse().ok()
    })
}

async fn over_udp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let local: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((local, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; 65_535];
    loop {
        let read = socket.recv(&mut buffer).await?;
        if buffer.get(..2) == query.get(..2) {
            buffer.truncate(read);
            return Ok(buffer);
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_framed(&mut stream, query).await?;
    read_framed(&mut stream).await
}

/// Writes one message with its length in front (RFC 1035 §4.2.2).
///
/// # Errors
/// The connection's; a message of more than 65,535 bytes.
pub async fn write_framed(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| std::io::Error::other("message over 65535 bytes"))?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

/// Reads one message with its length in front.
///
/// # Errors
/// The connection's.
pub async fn read_framed(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_resolv_conf() {
        let text = "# nameserver 9.9.9.9\nsearch x\nnameserver 10.0.0.2\nnameserver fe80::1%eth0\nnameserver ::1\nnameserver\n";
        let servers: Vec<String> = nameservers(text).map(|ip| ip.to_string()).collect();
        assert_eq!(servers, ["10.0.0.2", "::1"]);
    }
}
