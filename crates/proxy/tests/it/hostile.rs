//! Clients that mean no good: each request of `hostile/requests.txt` against the engine, with what Envoy 1.40 answers beside it;
//! and floods.

use crate::support::*;
use carrick_proxy_core::model::listener::Direction;
use carrick_proxy_core::model::route::{Action, DirectResponse, PathMatch, RouteTable};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Everything to the application but `/admin`.
fn table() -> RouteTable {
    let mut table = all_to("app");
    let host = Arc::get_mut(&mut table.virtual_hosts[0]).unwrap();
    let mut other = all_to("app");
    let other = Arc::get_mut(&mut other.virtual_hosts[0]).unwrap();
    let mut admin = Arc::into_inner(other.routes.remove(0)).unwrap();
    admin.matching.path = PathMatch::Exact { value: "/admin".into(), ignore_case: false };
    let denied = DirectResponse { status: http::StatusCode::FORBIDDEN, body: "denied".into(), format: None };
    admin.action = Action::Direct(denied);
    host.routes.insert(0, Arc::new(admin));
    table
}

async fn engine() -> (Running, SocketAddr) {
    let (app, _) = echo_app().await;
    let at = free_port();
    let l = listener("l", at, Direction::Unspecified, vec![chain("c", http(table()))]);
    (start(config(vec![l], vec![(cluster("app"), Some(endpoints(&[app])))]), Default::default()), at)
}

/// The bytes of a line: escapes, and `{text*times}`.
fn bytes(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '\\' => {
                let kind = rest.chars().next().unwrap();
                rest = &rest[1..];
                match kind {
                    'r' => out.push(b'\r'),
                    'n' => out.push(b'\n'),
                    't' => out.push(b'\t'),
                    '\\' => out.push(b'\\'),
                    'x' => {
                        out.push(u8::from_str_radix(&rest[..2], 16).unwrap());
                        rest = &rest[2..];
                    }
                    other => panic!("escape {other}"),
                }
            }
            '{' => {
                let (inner, after) = rest.split_once('}').unwrap();
                let (text, times) = inner.rsplit_once('*').unwrap();
                out.extend(bytes(text).repeat(times.parse().unwrap()));
                rest = after;
            }
            c => out.extend(c.to_string().bytes()),
        }
    }
    out
}

/// Statuses of all answers, and whether the connection was ended.
async fn outcome(at: SocketAddr, request: Vec<u8>) -> (String, bool) {
    let mut tcp = TcpStream::connect(at).await.unwrap();
    let mut all = Vec::new();
    let exchange = async {
        let _ = tcp.write_all(&request).await;
        let mut buf = [0; 4096];
        loop {
            match tcp.read(&mut buf).await {
                Ok(0) | Err(_) => return true,
                Ok(n) => all.extend_from_slice(&buf[..n]),
            }
        }
    };
    let closed = tokio::time::timeout(Duration::from_millis(1500), exchange).await.unwrap_or(false);
    let text = String::from_utf8_lossy(&all).into_owned();
    let statuses: Vec<&str> = text
        .match_indices("HTTP/1.")
        .filter_map(|(i, _)| text.get(i + 9..i + 12))
        .filter(|s| s.parse::<u16>().is_ok())
        .collect();
    (if statuses.is_empty() { "-".to_owned() } else { statuses.join(",") }, closed)
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_can_be_read_in_two_ways() {
    let (_running, at) = engine().await;
    let cases: Vec<(String, String, Vec<u8>)> = include_str!("hostile/requests.txt")
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let mut parts = line.splitn(3, '|').map(str::to_owned);
            let mut next = || parts.next().unwrap();
            (next(), next(), bytes(&next()))
        })
        .collect();
    assert!(cases.len() > 100);
    let mut running = tokio::task::JoinSet::new();
    for (name, envoy, request) in cases {
        running.spawn(async move {
            let (ours, closed) = outcome(at, request).await;
            (name, envoy, ours, closed)
        });
    }
    let mut wrong = Vec::new();
    while let Some(done) = running.join_next().await {
        let (name, envoy, ours, closed) = done.unwrap();
        let refused = |s: &str| s == "-" || s.split(',').any(|s| s.starts_with('4') || s.starts_with('5'));
        // A refusal must be one here too, and with the same status; what Envoy takes may be refused, then with a status of the client's.
        let fine = ours == envoy || (!refused(&envoy) && refused(&ours) && ours.starts_with('4'));
        if !fine {
            wrong.push(format!("{name}: Envoy {envoy}, ours {ours}, closed {closed}"));
        }
    }
    wrong.sort();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// `GET http://a/` by static indexes and one literal.
const GET: &[u8] = b"\x82\x86\x84\x41\x01a";
/// `POST http://a/`.
const POST: &[u8] = b"\x83\x86\x84\x41\x01a";

#[derive(Debug, PartialEq)]
enum End {
    /// The engine ended the connection.
    Closed,
    /// It did not take all of it, or did, and goes on living.
    Bounded,
}

/// Sends a beginning and then one thing over and over, reading nothing until the end.
async fn flood(at: SocketAddr, start: Vec<u8>, again: impl Fn(u32) -> Vec<u8>, times: u32) -> End {
    let mut tcp = TcpStream::connect(at).await.unwrap();
    let sending = async {
        tcp.write_all(&[HELLO, &frame(4, 0, 0, &[])].concat()).await?;
        tcp.write_all(&start).await?;
        let mut batch = Vec::new();
        for n in 0..times {
            batch.extend(again(n));
            if batch.len() > 16 * 1024 {
                tcp.write_all(&batch).await?;
                batch.clear();
            }
        }
        tcp.write_all(&batch).await
    };
    if let Ok(Err(_)) = tokio::time::timeout(Duration::from_secs(3), sending).await {
        return End::Closed;
    }
    let mut all = Vec::new();
    match tokio::time::timeout(Duration::from_secs(2), tcp.read_to_end(&mut all)).await {
        Ok(_) => End::Closed,
        Err(_) => End::Bounded,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_end_or_are_held_and_others_are_served() {
    let (running, at) = engine().await;
    // Requests that are taken back at once (CVE-2023-44487).
    let reset = |n: u32| [frame(1, 5, 2 * n + 1, GET), frame(3, 0, 2 * n + 1, &[0, 0, 0, 8])].concat();
    assert_eq!(flood(at, Vec::new(), reset, 20_000).await, End::Closed, "rapid reset");
    // A head without an end (CVE-2024-27316).
    let more = |_: u32| frame(9, 0, 1, &[0x00, 1, b'a', 1, b'b'].repeat(200));
    assert_eq!(flood(at, frame(1, 1, 1, GET), more, 20_000).await, End::Closed, "CONTINUATION");
    assert_eq!(
        flood(at, frame(1, 1, 1, GET), |_| frame(9, 0, 1, &[]), 200_000).await,
        End::Closed,
        "empty CONTINUATION"
    );
    // A table of headers that unpacks to far more than it weighs.
    let mut bomb = GET.to_vec();
    bomb.extend([0x40, 1, b'a', 0x7f, 0x81, 0x1e]);
    bomb.extend(vec![b'b'; 4000]);
    bomb.extend(vec![0xbe; 12_000]);
    let pieces: Vec<u8> = frame(1, 1, 1, &bomb[..16_000]);
    let _ = flood(at, pieces, |_| frame(9, 4, 1, &[0xbe; 4000]), 1).await;
    // Things that want an answer, from somebody who reads none; and things that say nothing.
    for (what, start, again) in [
        ("ping", Vec::new(), frame(6, 0, 0, &[7; 8])),
        ("settings", Vec::new(), frame(4, 0, 0, &[0, 4, 0, 1, 0, 0])),
        ("empty data", frame(1, 4, 1, POST), frame(0, 0, 1, &[])),
        ("padded data", frame(1, 4, 1, POST), frame(0, 8, 1, &[3, 0, 0, 0])),
        ("window", frame(1, 4, 1, POST), frame(8, 0, 1, &[0, 0, 0, 1])),
        ("priority", frame(1, 4, 1, POST), frame(2, 0, 1, &[0, 0, 0, 0, 7])),
        ("unknown", Vec::new(), frame(0xee, 0, 0, b"x")),
    ] {
        let before = resident();
        let _ = flood(at, start, |_| again.clone(), 300_000).await;
        let grown = resident().saturating_sub(before);
        assert!(grown < 160 << 20, "{what}: {grown} bytes more");
        assert_eq!(get(at, "/").await.0, 200, "{what}: others are served");
    }
    drop(running);
}

/// Resident memory of this process, bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Bodies that begin and do not go on, whole and in chunks: the stream's idle time ends them, with Envoy's status.
#[tokio::test(flavor = "multi_thread")]
async fn slow_bodies_are_ended() {
    let (app, _) = echo_app().await;
    let at = free_port();
    let mut manager = hcm(all_to("app"));
    manager.stream_idle_timeout = Some(Duration::from_millis(300));
    let kind = carrick_proxy_core::model::listener::ChainKind::Http(Box::new(manager));
    let plain = listener("plain", at, Direction::Unspecified, vec![chain("c", kind)]);
    let _running = start(config(vec![plain], vec![(cluster("app"), Some(endpoints(&[app])))]), Default::default());
    for body in ["Content-Length: 5\r\n\r\nx", "Transfer-Encoding: chunked\r\n\r\n5\r\nx"] {
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{body}").into_bytes();
        assert_eq!(outcome(at, request).await, ("504".to_owned(), true), "{body:?}");
    }
    assert_eq!(get(at, "/").await.0, 200);
}

/// Clients that ask and read nothing: what the application may send for them is bounded, and the stream's idle time ends them.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_piles_up_for_who_does_not_read() {
    let (app, sent, ended) = crate::h2_limits::endless().await;
    let (echo, _) = echo_app().await;
    let (at, echo_at) = (free_port(), free_port());
    let listening = |name: &str, at: SocketAddr, to: &str| {
        let mut manager = hcm(all_to(to));
        manager.stream_idle_timeout = Some(Duration::from_millis(500));
        let kind = carrick_proxy_core::model::listener::ChainKind::Http(Box::new(manager));
        listener(name, at, Direction::Unspecified, vec![chain("c", kind)])
    };
    let clusters = vec![(cluster("endless"), Some(endpoints(&[app]))), (cluster("app"), Some(endpoints(&[echo])))];
    let listeners = vec![listening("endless", at, "endless"), listening("echo", echo_at, "app")];
    let _running = start(config(listeners, clusters), Default::default());

    let mut tcp = TcpStream::connect(at).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    until("the application to be told", || ended.load(Ordering::SeqCst) == 1).await;
    let sent = sent.load(Ordering::SeqCst);
    assert!((1..32 << 20).contains(&sent), "{sent} bytes were taken for a client that reads none");

    // One request after the other without reading an answer.
    let before = resident();
    let mut tcp = TcpStream::connect(echo_at).await.unwrap();
    // Long ones, since their answers repeat them: few of those fill what kernels hold.
    let requests = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(4000)).repeat(20).into_bytes();
    let endless = async { while tcp.write_all(&requests).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(60), endless).await.expect("ended");
    let grown = resident().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
    assert_eq!(get(echo_at, "/").await.0, 200, "others are served");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_heads_and_giant_hellos_go_and_nothing_hangs() {
    let (app, _) = echo_app().await;
    let (at, tls_at) = (free_port(), free_port());
    let mut manager = hcm(all_to("app"));
    manager.request_headers_timeout = Some(Duration::from_millis(300));
    let plain = listener(
        "plain",
        at,
        Direction::Unspecified,
        vec![chain("c", carrick_proxy_core::model::listener::ChainKind::Http(Box::new(manager)))],
    );
    let mut secured = chain("t", http(all_to("app")));
    secured.matching.transport_protocol = "tls".into();
    secured.tls = Some(server_tls(&["h2", "http/1.1"]));
    secured.transport_socket_connect_timeout = Some(Duration::from_millis(500));
    let mut raw = chain("r", http(all_to("app")));
    raw.matching.transport_protocol = "raw_buffer".into();
    let mut tls = listener("tls", tls_at, Direction::Inbound, vec![secured, raw]);
    tls.listener_filters_timeout = Some(Duration::from_millis(500));
    tls.continue_on_listener_filters_timeout = false;
    let mesh = Mesh::new();
    let _running =
        start(config(vec![plain, tls], vec![(cluster("app"), Some(endpoints(&[app])))]), mesh.secrets("app"));
    let ends = |at: SocketAddr, bytes: Vec<u8>, half: bool| async move {
        let mut tcp = TcpStream::connect(at).await.unwrap();
        let _ = tcp.write_all(&bytes).await;
        if half {
            let _ = tcp.shutdown().await;
        }
        let mut all = Vec::new();
        tokio::time::timeout(Duration::from_secs(3), tcp.read_to_end(&mut all)).await.is_ok()
    };
    let record = |kind: u8, payload: &[u8]| {
        let mut out = vec![kind, 3, 1];
        out.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
        out.extend(payload);
        out
    };
    let giant: Vec<u8> = [&[1, 0, 0xff, 0xff][..], &[3, 3], &vec![0; 65_000]].concat();
    let hello = |n: usize| giant.chunks(16_000).take(n).flat_map(|part| record(22, part)).collect::<Vec<u8>>();
    for (what, at, bytes, half) in [
        ("a head that never ends", at, b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec(), false),
        ("a head cut off", at, b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec(), true),
        ("a body cut off", at, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nx".to_vec(), true),
        (
            "a chunked body cut off",
            at,
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nx".to_vec(),
            true,
        ),
        ("a hello cut off", tls_at, hello(1)[..700].to_vec(), true),
        ("a hello that never ends", tls_at, hello(1)[..700].to_vec(), false),
        ("a hello in giant pieces", tls_at, hello(4), false),
        ("a giant record", tls_at, [&[22, 3, 1, 0xff, 0xff][..], &vec![1; 70_000]].concat(), false),
        ("an empty record", tls_at, vec![22, 3, 1, 0, 0], false),
        ("an alert first", tls_at, record(21, &[2, 40]), false),
        ("SSL 2", tls_at, vec![0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10], true),
        (
            "TLS 1.0",
            tls_at,
            record(22, &[&[1, 0, 0, 41, 3, 1][..], &[9; 32], &[0, 0, 2, 0, 0x2f, 1, 0]].concat()),
            false,
        ),
    ] {
        assert!(ends(at, bytes, half).await, "{what}: still open");
    }
    assert_eq!(get(at, "/").await.0, 200);
}
