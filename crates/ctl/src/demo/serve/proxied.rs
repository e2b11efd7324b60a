//! The PROXY header that a port of the service may demand before everything else.
//!
//! Invariant: the header is read to its last byte and nothing after it; what is no header is refused.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt};

/// What a header of version 2 begins with; one of version 1 is longer than this.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Longest header of version 1.
const LONGEST: usize = 107;

/// The header's version and the client it names.
///
/// # Errors
/// When there is none, or it names nobody.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<(&'static str, SocketAddr)> {
    let mut start = [0; SIGNATURE.len()];
    stream.read_exact(&mut start).await?;
    if start == SIGNATURE { Ok(("v2", binary(stream).await?)) } else { Ok(("v1", text(start.to_vec(), stream).await?)) }
}

async fn text(mut line: Vec<u8>, stream: &mut (impl AsyncRead + Unpin)) -> Result<SocketAddr> {
    while !line.ends_with(b"\r\n") {
        ensure!(line.len() < LONGEST, "no PROXY header");
        line.push(stream.read_u8().await?);
    }
    let line = String::from_utf8(line)?;
    let mut words = line.split_ascii_whitespace();
    ensure!(words.next() == Some("PROXY"), "no PROXY header");
    let mut word = || words.next().context("a PROXY header that ends early");
    let (_family, source, _to, port) = (word()?, word()?, word()?, word()?);
    Ok(SocketAddr::new(source.parse()?, port.parse()?))
}

async fn binary(stream: &mut (impl AsyncRead + Unpin)) -> Result<SocketAddr> {
    let (_command, family) = (stream.read_u8().await?, stream.read_u8().await?);
    let mut body = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut body).await?;
    let mut body = body.as_slice();
    let (source, skip): (IpAddr, usize) = match family >> 4 {
        1 => (body.read_u32().await.map(std::net::Ipv4Addr::from)?.into(), 4),
        2 => (body.read_u128().await.map(std::net::Ipv6Addr::from)?.into(), 16),
        other => bail!("address family {other}"),
    };
    body.read_exact(&mut vec![0; skip]).await?;
    Ok(SocketAddr::new(source, body.read_u16().await?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_versions_are_read_and_nothing_more() {
        let mut v1 = &b"PROXY TCP4 10.0.0.1 10.0.0.2 4000 80\r\nGET /"[..];
        assert_eq!(read(&mut v1).await.unwrap(), ("v1", "10.0.0.1:4000".parse().unwrap()));
        assert_eq!(v1, b"GET /");
        let mut v2 = SIGNATURE.to_vec();
        v2.extend([0x21, 0x11, 0, 12, 10, 0, 0, 1, 10, 0, 0, 2, 0x0f, 0xa0, 0, 80, b'G']);
        let mut v2 = v2.as_slice();
        assert_eq!(read(&mut v2).await.unwrap(), ("v2", "10.0.0.1:4000".parse().unwrap()));
        assert_eq!(v2, b"G");
        assert!(read(&mut &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..]).await.is_err());
    }
}
