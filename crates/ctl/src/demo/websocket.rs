//! WebSocket for the lab (RFC 6455): the example service's echo, and the client that tries it.
//!
//! Invariant: a client's frames are masked and a server's are not (§5.1); what breaks that, or names a reserved bit, is an error. What
//! goes through between the two is somebody else's matter; here it is only compared.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{call::Call, curl::Answer};

/// The largest frame that is read.
const LARGEST: u64 = 16 << 20;
/// How long the other side may take for one answer.
const PATIENCE: Duration = Duration::from_secs(5);
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// What a client sends over one WebSocket.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exchange {
    /// Messages, each awaited before the next is sent.
    #[serde(default = "Exchange::some")]
    messages: u32,
    /// Bytes of each.
    #[serde(default)]
    size: usize,
}

impl Exchange {
    fn some() -> u32 {
        3
    }
}

/// The answer to a key (§4.2.2).
pub fn accept(key: &[u8]) -> String {
    let mut all = key.to_vec();
    all.extend_from_slice(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, &all);
    BASE64_STANDARD.encode(digest.as_ref())
}

#[derive(Debug, PartialEq, Eq)]
struct Frame {
    end: bool,
    kind: u8,
    payload: Vec<u8>,
}

async fn read(io: &mut (impl AsyncRead + Unpin), masked: bool) -> Result<Frame> {
    let [first, second] = [io.read_u8().await?, io.read_u8().await?];
    ensure!(first & 0x70 == 0, "a reserved bit is set");
    ensure!((second & 0x80 != 0) == masked, "the frame is masked as the other side's");
    let length = match second & 0x7f {
        126 => u64::from(io.read_u16().await?),
        127 => io.read_u64().await?,
        short => u64::from(short),
    };
    ensure!(length <= LARGEST, "a frame of {length} bytes");
    let mut mask = [0; 4];
    if masked {
        io.read_exact(&mut mask).await?;
    }
    let mut payload = vec![0; usize::try_from(length)?];
    io.read_exact(&mut payload).await?;
    xor(&mut payload, mask);
    Ok(Frame { end: first & 0x80 != 0, kind: first & 0x0f, payload })
}

async fn write(io: &mut (impl AsyncWrite + Unpin), frame: &Frame, mask: Option<[u8; 4]>) -> Result<()> {
    let bit = if mask.is_some() { 0x80 } else { 0 };
    let mut bytes = vec![frame.kind | if frame.end { 0x80 } else { 0 }];
    match frame.payload.len() {
        short @ 0..=125 => bytes.push(bit | u8::try_from(short)?),
        middle @ 126..=0xffff => {
            bytes.push(bit | 126);
            bytes.extend_from_slice(&u16::try_from(middle)?.to_be_bytes());
        }
        long => {
            bytes.push(bit | 127);
            bytes.extend_from_slice(&u64::try_from(long)?.to_be_bytes());
        }
    }
    bytes.extend_from_slice(&mask.unwrap_or_default()[..if mask.is_some() { 4 } else { 0 }]);
    let mut payload = frame.payload.clone();
    xor(&mut payload, mask.unwrap_or_default());
    bytes.extend_from_slice(&payload);
    io.write_all(&bytes).await?;
    io.flush().await?;
    Ok(())
}

fn xor(payload: &mut [u8], mask: [u8; 4]) {
    for (byte, mask) in payload.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// The service's side: `first` as a text, then every frame back, until the client closes.
///
/// # Errors
/// When the connection breaks or a frame is none.
pub async fn echo(mut io: impl AsyncRead + AsyncWrite + Unpin, first: String) -> Result<()> {
    write(&mut io, &Frame { end: true, kind: TEXT, payload: first.into_bytes() }, None).await?;
    loop {
        let mut frame = read(&mut io, true).await?;
        match frame.kind {
            PONG => continue,
            PING => frame.kind = PONG,
            _ => {}
        }
        write(&mut io, &frame, None).await?;
        if frame.kind == CLOSE {
            io.shutdown().await?;
            return Ok(());
        }
    }
}

/// The client's side, as an answer: status 101 and what the service saw, exit code 0 only when everything came back as it was sent
/// and both sides closed.
pub async fn call(call: &Call, exchange: &Exchange) -> Answer {
    let mut answer = Answer::default();
    if let Err(error) = run(call, exchange, &mut answer).await {
        answer.exit = 1;
        answer.error = format!("{error:#}");
    }
    answer
}

async fn run(call: &Call, exchange: &Exchange, answer: &mut Answer) -> Result<()> {
    let Some(mut io) = open(call, answer).await? else { return Ok(()) };
    for number in 0..exchange.messages {
        exchanged(&mut io, number, exchange.size).await.with_context(|| format!("message {number}"))?;
    }
    close(io).await
}

/// Opens one and sends a message after each pause until told to end, then closes; how many came back.
///
/// # Errors
/// When it is not opened, breaks, or a message does not come back.
pub async fn hold(call: &Call, pause: Duration, ended: impl Future<Output = ()>) -> Result<u64> {
    let mut answer = Answer::default();
    let mut io = open(call, &mut answer).await?.with_context(|| format!("it was not opened: {answer}"))?;
    let mut ended = std::pin::pin!(ended);
    let mut count = 0_u32;
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = &mut ended => break,
        }
        exchanged(&mut io, count, 100).await.with_context(|| format!("message {count}"))?;
        count += 1;
    }
    close(io).await?;
    Ok(count.into())
}

/// The handshake and the service's first message, both told in the answer; `None` when the answer is another than 101.
async fn open(call: &Call, answer: &mut Answer) -> Result<Option<TokioIo<hyper::upgrade::Upgraded>>> {
    let uri: http::Uri = call.url.parse().context("url")?;
    let (host, port) = (uri.host().context("url: no host")?, uri.port_u16().unwrap_or(80));
    let tcp = tokio::net::TcpStream::connect((host, port)).await?;
    tcp.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await?;
    let connection = tokio::spawn(connection.with_upgrades());
    let key = BASE64_STANDARD.encode(*b"the sample nonce");
    let mut request = http::Request::get(uri.path_and_query().map_or("/", |p| p.as_str()))
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", &key);
    if !call.headers.keys().any(|name| name.eq_ignore_ascii_case("host")) {
        request = request.header("host", uri.authority().context("url: no host")?.as_str());
    }
    for (name, value) in &call.headers {
        request = request.header(name, value);
    }
    let mut response =
        tokio::time::timeout(PATIENCE, sender.send_request(request.body(Empty::<Bytes>::new())?)).await??;
    answer.status = response.status().as_u16();
    for (name, value) in response.headers() {
        answer.headers.insert(name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    if response.status() != http::StatusCode::SWITCHING_PROTOCOLS {
        answer.body = String::from_utf8_lossy(&response.into_body().collect().await?.to_bytes()).into_owned();
        connection.abort();
        return Ok(None);
    }
    let accepted = response.headers().get("sec-websocket-accept").context("no sec-websocket-accept")?;
    ensure!(accepted.as_bytes() == accept(key.as_bytes()).as_bytes(), "sec-websocket-accept: {accepted:?}");
    let mut io = TokioIo::new(hyper::upgrade::on(&mut response).await?);
    let first = within(read(&mut io, false)).await.context("the first frame")?;
    ensure!(first.kind == TEXT, "the first frame is no text");
    answer.body = String::from_utf8(first.payload)?;
    Ok(Some(io))
}

/// Both sides close, and nothing comes after.
async fn close(mut io: impl AsyncRead + AsyncWrite + Unpin) -> Result<()> {
    let close = Frame { end: true, kind: CLOSE, payload: 1000_u16.to_be_bytes().to_vec() };
    write(&mut io, &close, Some([9, 8, 7, 6])).await?;
    ensure!(within(read(&mut io, false)).await.context("close")? == close, "another answer to close");
    let mut rest = Vec::new();
    within(async { Ok(io.read_to_end(&mut rest).await?) }).await.context("the end of the connection")?;
    ensure!(rest.is_empty(), "{} bytes after close", rest.len());
    Ok(())
}

/// One message in two frames with a ping between them (§5.4), and all of it back.
async fn exchanged(io: &mut (impl AsyncRead + AsyncWrite + Unpin), number: u32, size: usize) -> Result<()> {
    let message: Vec<u8> = (0..size).map(|i| u8::try_from(i % 251).unwrap_or(0)).collect();
    let (begin, rest) = message.split_at(size / 2);
    let mask = Some(number.wrapping_mul(0x9e37_79b9).to_be_bytes());
    let ping = Frame { end: true, kind: PING, payload: number.to_be_bytes().to_vec() };
    let frames = [
        Frame { end: false, kind: BINARY, payload: begin.to_vec() },
        ping,
        Frame { end: true, kind: CONTINUATION, payload: rest.to_vec() },
    ];
    for mut frame in frames {
        write(io, &frame, mask).await?;
        if frame.kind == PING {
            frame.kind = PONG;
        }
        let back = within(read(io, false)).await?;
        if back != frame {
            bail!(
                "frame {} of {} bytes came back as {} of {}",
                frame.kind,
                frame.payload.len(),
                back.kind,
                back.payload.len()
            );
        }
    }
    Ok(())
}

async fn within<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(PATIENCE, future).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_the_rfc_is_answered_as_there() {
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[tokio::test]
    async fn messages_of_every_length_form_come_back() {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let serving = tokio::spawn(echo(server, "{}".into()));
        assert_eq!(read(&mut client, false).await.unwrap().payload, b"{}");
        for size in [0, 1, 250, 300, 140_000] {
            exchanged(&mut client, 7, size).await.unwrap();
        }
        write(&mut client, &Frame { end: true, kind: CLOSE, payload: Vec::new() }, Some([1; 4])).await.unwrap();
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_frame_without_a_mask_is_refused_by_a_server() {
        let (mut client, server) = tokio::io::duplex(1024);
        let serving = tokio::spawn(echo(server, String::new()));
        write(&mut client, &Frame { end: true, kind: TEXT, payload: Vec::new() }, None).await.unwrap();
        assert!(serving.await.unwrap().is_err());
    }
}
