//! HTTP/2 peers that mean no good, or that take their time: floods, bombs, windows that never open, servers that say anything.
//!
//! Invariant: each limit of the engine's `message::h2::limits` has its case here; whoever goes over it loses its connection or its stream,
//! and all others are served.

use crate::h2_frames::{get, *};
use crate::support::*;
use carrick_proxy_core::model::cluster::HttpProtocol;
use carrick_proxy_core::model::listener::ChainKind;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Frames that came: kind, stream, payload.
type Seen = Vec<(u8, u32, Vec<u8>)>;

/// Says something after the preface, and reads until `enough` or the end.
async fn says(at: SocketAddr, begin: &[u8], bytes: &[u8], enough: impl Fn(&Seen) -> bool) -> (Seen, bool) {
    let tcp = TcpStream::connect(at).await.unwrap();
    let (mut reader, mut writer) = tcp.into_split();
    let all = [PREFACE, begin, bytes].concat();
    // The other side may end it while we still write.
    let writing = tokio::spawn(async move {
        let _ = writer.write_all(&all).await;
        writer
    });
    let mut seen = Seen::new();
    let reading = async {
        loop {
            let mut head = [0; 9];
            if reader.read_exact(&mut head).await.is_err() {
                return true;
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            if reader.read_exact(&mut payload).await.is_err() {
                return true;
            }
            seen.push((head[3], u32::from_be_bytes(head[5..9].try_into().unwrap()), payload));
            if enough(&seen) {
                return false;
            }
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(10), reading).await.unwrap_or(false);
    drop(writing);
    (seen, ended)
}

fn code(payload: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(payload[at..at + 4].try_into().unwrap())
}

fn served(app: SocketAddr, idle: Duration) -> (Running, SocketAddr) {
    let at = free_port();
    let mut manager = hcm(all_to("app"));
    manager.stream_idle_timeout = Some(idle);
    let l = listener("l", at, Default::default(), vec![chain("c", ChainKind::Http(Box::new(manager)))]);
    (start(config(vec![l], vec![(cluster("app"), Some(endpoints(&[app])))]), Default::default()), at)
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_end_the_connection() {
    let (app, _) = echo_app().await;
    let (run, at) = served(app, Duration::from_secs(60));
    let begin = settings(4, 65535);
    let cancel = |stream| frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]);
    let odd = || (0..2000).map(|n| 2 * n + 1);
    let open = frame(HEADERS, END_STREAM, 1, &fields(&GET)[..10]);
    for (what, bytes) in [
        ("streams opened and given up", odd().flat_map(|id| [get(id), cancel(id)].concat()).collect::<Vec<u8>>()),
        (
            "streams that have to be reset",
            odd().flat_map(|id| [post(id), frame(WINDOW_UPDATE, 0, id, &[0; 4])].concat()).collect(),
        ),
        ("CONTINUATION", [open.clone(), frame(CONTINUATION, 0, 1, &[0; 16000]).repeat(40)].concat()),
        (
            "CONTINUATION of a byte",
            [
                &open[..],
                &b"\0\x01x\x7f\xff\xff\x01".map(|b| frame(CONTINUATION, 0, 1, &[b])).concat(),
                &frame(CONTINUATION, 0, 1, b"y").repeat(520),
            ]
            .concat(),
        ),
        ("CONTINUATION without anything", [open, frame(CONTINUATION, 0, 1, &[]).repeat(40)].concat()),
        ("SETTINGS", settings(4, 65535).repeat(300)),
        ("PING", frame(PING, 0, 0, &[7; 8]).repeat(20_000)),
        ("PRIORITY", frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 1]).repeat(300)),
        ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).repeat(300)),
        ("DATA without anything", [post(1), frame(DATA, 0, 1, &[]).repeat(300)].concat()),
        ("frames of an unknown kind", frame(0x42, 0, 0, &[]).repeat(300)),
    ] {
        let (seen, ended) = says(at, &begin, &bytes, |_| false).await;
        assert!(ended, "{what}: still open");
        let goodbye = seen.iter().find(|(kind, ..)| *kind == GOAWAY).map(|(_, _, payload)| code(payload, 4));
        assert!(matches!(goodbye, None | Some(11)), "{what}: {goodbye:?}");
    }
    let errors = || run.engine.stats().get("http.test.downstream_cx_protocol_error");
    until("all to be counted", || errors() >= 10).await;
    assert_eq!(get_plain(at).await, 200);
}

async fn get_plain(at: SocketAddr) -> u16 {
    crate::support::get(at, "/").await.0
}

/// Lists larger than allowed, whether sent or made of a table, are answered with 431, and the connection goes on.
#[tokio::test(flavor = "multi_thread")]
async fn large_lists_are_refused_alone() {
    let (app, _) = echo_app().await;
    let (_run, at) = served(app, Duration::from_secs(60));
    let long = "a".repeat(8000);
    let many: Vec<(&str, &str)> = GET.iter().copied().chain((0..9).map(|_| ("x-long", &*long))).collect();
    let block = fields(&many);
    let mut parts = block.chunks(16_000);
    let mut sent = frame(HEADERS, END_STREAM, 1, parts.next().unwrap());
    let rest: Vec<&[u8]> = parts.collect();
    for (n, part) in rest.iter().enumerate() {
        sent.extend(frame(CONTINUATION, if n + 1 == rest.len() { END_HEADERS } else { 0 }, 1, part));
    }
    // One field of 4,000 bytes put into the table, and then meant ten thousand times.
    let bomb = [&fields(&GET)[..], &[0x40, 1, b'x', 127, 0xa1, 0x1e], &[b'y'; 4000], &[0xbe; 10_000]].concat();
    let bytes = [sent, frame(HEADERS, BOTH, 3, &bomb), get(5)].concat();
    let done = |seen: &Seen| seen.iter().filter(|(kind, ..)| *kind == HEADERS).count() == 3;
    let (seen, ended) = says(at, &settings(4, 65535), &bytes, done).await;
    assert!(!ended, "{seen:?}");
    let mut answers: Vec<(u32, bool)> = seen
        .iter()
        .filter(|(kind, ..)| *kind == HEADERS)
        .map(|(_, stream, payload)| (*stream, payload.windows(3).any(|w| w == b"431")))
        .collect();
    answers.sort_unstable();
    assert_eq!(answers, [(1, true), (3, true), (5, false)]);
}

/// An application whose answers never end; counts what it could send, and who has left it.
pub async fn endless() -> (SocketAddr, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (sent, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (writing, ending) = (Arc::clone(&sent), Arc::clone(&ended));
    let app = raw_server(move |_, mut tcp| {
        let (writing, ending) = (Arc::clone(&writing), Arc::clone(&ending));
        async move {
            if !read_head(&mut tcp).await {
                return;
            }
            let _ = tcp.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            let piece = [&b"4000\r\n"[..], &[b'x'; 16 << 10], b"\r\n"].concat();
            while tcp.write_all(&piece).await.is_ok() {
                writing.fetch_add(16 << 10, Ordering::SeqCst);
            }
            ending.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    (app, sent, ended)
}

/// A client that gives no window, and one that reads nothing: bounded, and ended by the stream's idle time.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_piles_up_for_who_takes_nothing() {
    let (app, sent, ended) = endless().await;
    let (_run, at) = served(app, Duration::from_millis(500));
    let reset = |seen: &Seen| seen.iter().any(|(kind, ..)| *kind == RST_STREAM);
    let (seen, closed) = says(at, &settings(4, 0), &get(1), reset).await;
    assert!(!closed && reset(&seen), "{seen:?}");
    assert!(!seen.iter().any(|(kind, ..)| *kind == DATA));
    until("the application to be told", || ended.load(Ordering::SeqCst) == 1).await;
    // All the window there can be, and nothing is read.
    let mut tcp = TcpStream::connect(at).await.unwrap();
    let window = frame(WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes());
    tcp.write_all(&[PREFACE, &settings(4, 0x7fff_ffff), &window, &get(1), &get(3)].concat()).await.unwrap();
    until("both to be ended", || ended.load(Ordering::SeqCst) == 3).await;
    let sent = sent.load(Ordering::SeqCst);
    assert!(sent < 64 << 20, "{sent} bytes were taken for clients that take none");
}

/// An answer that fits what is gathered, for a client that gives no window for its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_whole_answer_does_not_wait_for_ever() {
    let (app, _) = echo_app().await;
    let (run, at) = served(app, Duration::from_millis(500));
    let reset = |seen: &Seen| seen.iter().any(|(kind, ..)| *kind == RST_STREAM);
    let (seen, closed) = says(at, &settings(4, 3), &get(1), reset).await;
    assert!(!closed && reset(&seen), "{seen:?}");
    let data: Vec<usize> = seen.iter().filter(|(kind, ..)| *kind == DATA).map(|(_, _, p)| p.len()).collect();
    assert_eq!(data, [3]);
    assert_eq!(run.engine.stats().get("http.test.downstream_rq_active"), 0);
}

/// A window that shrinks below nothing while a body is on its way, and comes back (RFC 9113 §6.9.2).
#[tokio::test(flavor = "multi_thread")]
async fn windows_shrink_below_nothing_and_come_back() {
    let (app, ..) = endless().await;
    let (_run, at) = served(app, Duration::from_secs(60));
    let mut tcp = TcpStream::connect(at).await.unwrap();
    tcp.write_all(&[PREFACE, &settings(4, 1000), &get(1)].concat()).await.unwrap();
    let mut total = 0;
    for (least, then) in [
        (1000, [settings(4, 0), frame(WINDOW_UPDATE, 0, 1, &500_u32.to_be_bytes())].concat()),
        // 1000 - 1000 + 500 - 0: nothing until it is over what was used.
        (1000, frame(WINDOW_UPDATE, 0, 1, &700_u32.to_be_bytes())),
        (1200, settings(4, 100)),
        (1300, Vec::new()),
    ] {
        while total < least {
            let mut head = [0; 9];
            tokio::time::timeout(Duration::from_secs(5), tcp.read_exact(&mut head)).await.expect("more").unwrap();
            let mut payload = vec![0; usize::from(u16::from_be_bytes([head[1], head[2]]))];
            tcp.read_exact(&mut payload).await.unwrap();
            if head[3] == DATA {
                total += payload.len();
            }
        }
        assert_eq!(total, least);
        tcp.write_all(&then).await.unwrap();
    }
}

/// Bodies both ways through two engines with the library's peers and small windows: each byte once, in order.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_cross_small_windows() {
    let (app, _) = echo_app().await;
    let (first, second) = (free_port(), free_port());
    let h2 = |name: &str| {
        let mut c = cluster(name);
        c.http = HttpProtocol::Http2;
        c.http2.initial_stream_window = 70_000;
        c.http2.initial_connection_window = 70_000;
        c
    };
    let engine = |at, to: SocketAddr| {
        let mut manager = hcm(all_to("app"));
        manager.http2.initial_stream_window = 65_535;
        let l = listener("l", at, Default::default(), vec![chain("c", ChainKind::Http(Box::new(manager)))]);
        start(config(vec![l], vec![(h2("app"), Some(endpoints(&[to])))]), Default::default())
    };
    let _running = (engine(first, second), engine(second, app));
    let tcp = TcpStream::connect(first).await.unwrap();
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(3000)
        .handshake(TokioIo::new(tcp))
        .await
        .unwrap();
    tokio::spawn(connection);
    let all = (0..4_u8).map(|n| {
        let mut sender = sender.clone();
        let body: bytes::Bytes = (0..300_000_u32).map(|at| at.to_be_bytes()[3].wrapping_mul(n + 1)).collect();
        async move {
            let request = http::Request::post("http://app.test/mirror").body(Full::new(body.clone())).unwrap();
            let response = sender.send_request(request).await.unwrap();
            assert_eq!(response.headers()["content-type"], "application/grpc");
            assert!(response.into_body().collect().await.unwrap().to_bytes() == body);
        }
    });
    tokio::time::timeout(Duration::from_secs(30), futures_util::future::join_all(all)).await.expect("in time");
}

/// Servers that say anything: the client gets an answer of the proxy's, and the next request another connection.
#[tokio::test(flavor = "multi_thread")]
async fn servers_may_say_anything() {
    let status = |text: &'static str| fields(&[(":status", text)]);
    let window = |by: u32| frame(WINDOW_UPDATE, 0, 1, &by.to_be_bytes());
    let long = "a".repeat(8000);
    let large: Vec<(&str, &str)> = [(":status", "200")].into_iter().chain((0..9).map(|_| ("x", &*long))).collect();
    let large: Vec<u8> = {
        let block = fields(&large);
        let (first, rest) = block.split_at(16_000);
        let mut all = frame(HEADERS, 0, 1, first);
        rest.chunks(16_000).for_each(|part| all.extend(frame(CONTINUATION, 0, 1, part)));
        all.extend(frame(CONTINUATION, END_HEADERS, 1, &[]));
        all
    };
    let head = frame(HEADERS, END_HEADERS, 1, &status("200"));
    let cases: Vec<(&str, Vec<u8>, &[u16])> = vec![
        ("an answer", frame(HEADERS, BOTH, 1, &status("204")), &[204]),
        (
            "interim answers",
            [frame(HEADERS, END_HEADERS, 1, &status("103")).repeat(3), frame(HEADERS, BOTH, 1, &status("204"))]
                .concat(),
            &[204],
        ),
        ("interim answers without end", frame(HEADERS, END_HEADERS, 1, &status("103")).repeat(100), &[502]),
        ("switching protocols", frame(HEADERS, END_HEADERS, 1, &status("101")), &[502]),
        ("no status", frame(HEADERS, BOTH, 1, &fields(&[("x", "y")])), &[502]),
        ("a request", get(1), &[502]),
        ("a stream of its own", get(2), &[502]),
        ("PUSH_PROMISE", frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2, 0x88]), &[502]),
        (
            "a field of a connection",
            frame(HEADERS, BOTH, 1, &fields(&[(":status", "200"), ("connection", "close")])),
            &[502],
        ),
        (
            "a length without a body",
            frame(HEADERS, BOTH, 1, &fields(&[(":status", "200"), ("content-length", "9")])),
            &[502],
        ),
        ("a list too large", large, &[502]),
        ("no header block", frame(HEADERS, BOTH, 1, &[0xff, 0xff, 0xff]), &[502]),
        ("DATA before its head", frame(DATA, END_STREAM, 1, b"x"), &[502]),
        ("a window too large", [window(0x7fff_ffff), window(0x7fff_ffff)].concat(), &[502]),
        ("a reset", frame(RST_STREAM, 0, 1, &[0, 0, 0, 2]), &[503]),
        ("the end", Vec::new(), &[503]),
        ("no HTTP/2", b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), &[502]),
        (
            "more than its length",
            [
                frame(HEADERS, END_HEADERS, 1, &fields(&[(":status", "200"), ("content-length", "1")])),
                frame(DATA, END_STREAM, 1, b"xyz"),
            ]
            .concat(),
            &[200, 502],
        ),
        ("a body that is cut", [head.clone(), frame(DATA, 0, 1, b"xyz")].concat(), &[200]),
        (
            "trailers that do not end",
            [head.clone(), frame(HEADERS, END_HEADERS, 1, &fields(&[("x", "y")]))].concat(),
            &[200, 502],
        ),
        (
            "a body behind 204",
            [frame(HEADERS, END_HEADERS, 1, &status("204")), frame(DATA, END_STREAM, 1, b"xyz")].concat(),
            &[204],
        ),
        (
            "a body behind 304 that has a length",
            [
                frame(HEADERS, END_HEADERS, 1, &fields(&[(":status", "304"), ("content-length", "3")])),
                frame(DATA, END_STREAM, 1, b"xyz"),
            ]
            .concat(),
            &[304],
        ),
        (
            "an empty end behind 304 that has a length",
            [
                frame(HEADERS, END_HEADERS, 1, &fields(&[(":status", "304"), ("content-length", "3")])),
                frame(DATA, END_STREAM, 1, b""),
            ]
            .concat(),
            &[304],
        ),
        ("more than a window", [head, frame(DATA, 0, 1, &[0; 16384]).repeat(300)].concat(), &[200, 502]),
    ];
    for (what, answer, wanted) in cases {
        let answer = Arc::new(answer);
        let plain = what == "no HTTP/2";
        let app = raw_server(move |_, mut tcp| {
            let answer = Arc::clone(&answer);
            async move {
                let mut seen = vec![0; 4096];
                let mut have = 0;
                // Until the request's block has come, with its :authority.
                while !seen[..have].windows(4).any(|w| w == b"host") {
                    match tcp.read(&mut seen[have..]).await {
                        Ok(n @ 1..) => have += n,
                        _ => return,
                    }
                }
                let begin = if plain { Vec::new() } else { frame(SETTINGS, 0, 0, &[]) };
                let _ = tcp.write_all(&[&begin[..], &answer].concat()).await;
                // What was said is read before the end.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        let at = free_port();
        let mut h2 = cluster("app");
        h2.http = HttpProtocol::Http2;
        let l = listener("l", at, Default::default(), vec![chain("c", http(all_to("app")))]);
        let _running = start(config(vec![l], vec![(h2, Some(endpoints(&[app])))]), Default::default());
        let mut tcp = TcpStream::connect(at).await.unwrap();
        tcp.write_all(b"POST / HTTP/1.1\r\nHost: host\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            .await
            .unwrap();
        let mut got = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(5), tcp.read_to_end(&mut got)).await.expect(what);
        let text = String::from_utf8_lossy(&got);
        let status = text.get(9..12).and_then(|s| s.parse::<u16>().ok());
        assert!(status.is_some_and(|s| wanted.contains(&s)), "{what}: {text}");
    }
}
