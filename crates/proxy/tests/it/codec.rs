//! Bytes of which a codec makes no request, and requests refused before routing: the whole answers, beside a real Envoy's.
//!
//! Invariant: only what is different each time is taken out. Whether the connection ends is known by what the answer says of it.

use crate::lab::*;
use crate::support::*;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Heads with a place for one more field.
const HEADS: [(&str, &str); 17] = [
    ("a fragment", "GET /a#b HTTP/1.1\r\nhost: a\r\n%\r\n"),
    ("an unknown method", "get / HTTP/1.1\r\nhost: a\r\n%\r\n"),
    ("a name with a space in a HEAD", "HEAD / HTTP/1.1\r\nhost: a\r\nx y: a\r\n%\r\n"),
    ("no path", "OPTIONS * HTTP/1.1\r\nhost: a\r\n%\r\n"),
    (
        "length and coding",
        "POST / HTTP/1.1\r\n%host: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    ("two lengths", "POST / HTTP/1.1\r\n%host: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx"),
    ("another coding", "POST / HTTP/1.1\r\n%host: a\r\ntransfer-encoding: gzip\r\n\r\nx"),
    ("an old version", "GET / HTTP/1.0\r\nhost: a\r\n%\r\n"),
    ("a name with a space", "GET / HTTP/1.1\r\n%host: a\r\nx y: a\r\n\r\n"),
    ("no host", "GET / HTTP/1.1\r\n%\r\n"),
    ("a control character", "GET /a\u{1} HTTP/1.1\r\nhost: a\r\n%\r\n"),
    ("a target that is none", "GET a HTTP/1.1\r\nhost: a\r\n%\r\n"),
    ("a path with NUL", "GET /a%00 HTTP/1.1\r\nhost: a\r\n%\r\n"),
    ("an upgrade", "GET /a HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: foo\r\n%\r\n"),
    ("another host", "GET /a HTTP/1.1\r\nhost: b\r\n%\r\n"),
    ("an unknown cluster", "GET /nowhere HTTP/1.1\r\nhost: a\r\nx-a: one\r\n%\r\n"),
    ("a known one", "GET /a HTTP/1.1\r\nhost: a\r\nx-a: one\r\n%\r\n"),
];

async fn answer(to: SocketAddr, text: &str) -> Vec<String> {
    let mut tcp = TcpStream::connect(to).await.unwrap();
    tcp.write_all(text.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    let limit = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let text = String::from_utf8_lossy(&all).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.split("\r\n").find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                // What is different each time, and what the application nominates in `connection`, which we keep (see `lab`).
                let each_time = ["date: ", "x-request-id: ", "x-envoy-upstream-service-time: ", "x-hop: "];
                let kept = |line: &&str| !each_time.iter().any(|name| line.starts_with(name));
                let mut lines: Vec<String> = head.split("\r\n").filter(kept).map(str::to_owned).collect();
                lines.sort_unstable();
                lines.extend(body.lines().filter(kept).map(str::to_owned));
                return lines;
            }
        }
        let read = tokio::time::timeout_at(limit, tcp.read_buf(&mut all)).await;
        if !matches!(read, Ok(Ok(1..))) {
            return vec![format!("{read:?} after {text:?}")];
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_is_answered_as_envoy_answers_it() {
    let hosts = serde_json::json!([{"name": "a", "domains": ["a"],
        "response_headers_to_add": [{"header": {"key": "x-route", "value": "%REQ(x-a)% %PROTOCOL% %RESPONSE_CODE%"}}],
        "routes": [{"match": {"path": "/nowhere"}, "route": {"cluster": "nowhere"}, "request_headers_to_add": [
                {"header": {"key": "x-a", "value": "changed"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]},
            {"match": {"prefix": "/"}, "route": {"cluster": "app"}}]}]);
    let mut setup = Setup::new("codec").hosts(hosts);
    setup.routes = serde_json::json!({"validate_clusters": false});
    let (app, _) = echo_app().await;
    let envoy = Envoy::start(&[&setup], app).await;
    let (_native, ours) = native(&[&setup], app);
    let mut differences = Vec::new();
    for (name, head) in HEADS {
        for kind in ["", "content-type: application/grpc\r\n", "content-type: application/grpc+proto\r\n"] {
            let text = head.replace("%00", "\u{0}").replace('%', kind).replace('\u{0}', "%00");
            let (theirs, ours) = tokio::join!(answer(envoy.ports[0], &text), answer(ours[0], &text));
            if theirs != ours {
                differences.push(format!("{name} {kind:?}\n  Envoy: {theirs:?}\n  ours:  {ours:?}"));
            }
        }
    }
    assert!(differences.is_empty(), "{} differences\n{}", differences.len(), differences.join("\n"));
}
