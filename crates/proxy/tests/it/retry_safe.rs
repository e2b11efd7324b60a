//! Upstreams that close connections whenever they like: no request is lost for it, without any retry policy.

use crate::support::*;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Reads a request with its body by `content-length`; `None` at the end.
async fn read_request(tcp: &mut TcpStream) -> Option<usize> {
    let mut seen = Vec::new();
    let mut byte = [0; 1];
    while !seen.ends_with(b"\r\n\r\n") {
        match tcp.read(&mut byte).await {
            Ok(1..) => seen.push(byte[0]),
            _ => return None,
        }
    }
    let head = String::from_utf8_lossy(&seen).to_ascii_lowercase();
    let length = head.lines().find_map(|l| l.strip_prefix("content-length: ")?.trim().parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    tcp.read_exact(&mut body).await.ok()?;
    Some(length)
}

/// How a server ends connections.
#[derive(Clone, Copy)]
enum Ending {
    /// After this long without a request.
    Idle(u64),
    /// At random moments after answers.
    Random,
    /// Its sending side first, after some answers; the rest later.
    HalfClose,
}

/// A server that counts what it has read, request by request.
fn server(listener: TcpListener, ending: Ending, read: Arc<AtomicUsize>) -> tokio::task::JoinHandle<()> {
    let seed = Arc::new(AtomicU64::new(0x9e37_79b9));
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let (read, seed) = (Arc::clone(&read), Arc::clone(&seed));
            tokio::spawn(async move {
                let random = || {
                    let old = seed.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
                    (old ^ (old >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33
                };
                let mut served = 0;
                loop {
                    let patience = match ending {
                        _ if served == 0 => Duration::from_secs(10),
                        Ending::Idle(ms) => Duration::from_millis(ms),
                        Ending::Random => Duration::from_micros(random() % 3000),
                        Ending::HalfClose => Duration::from_secs(10),
                    };
                    // Patience ends with the first byte, as a server's idle timeout does.
                    if !matches!(tokio::time::timeout(patience, tcp.peek(&mut [0])).await, Ok(Ok(1))) {
                        return;
                    }
                    match read_request(&mut tcp).await {
                        Some(_) => read.fetch_add(1, Ordering::SeqCst),
                        None => return,
                    };
                    served += 1;
                    if tcp.write_all(OK).await.is_err() {
                        return;
                    }
                    if matches!(ending, Ending::HalfClose) && random() % 4 == 0 {
                        tcp.shutdown().await.unwrap();
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        return;
                    }
                }
            });
        }
    })
}

async fn load(at: SocketAddr, clients: usize, each: usize, pause: Duration, methods: &[&str]) -> usize {
    let mut tasks = Vec::new();
    for number in 0..clients {
        let methods: Vec<String> = methods.iter().map(|m| (*m).to_owned()).collect();
        tasks.push(tokio::spawn(async move {
            let mut client = Client::connect(at).await;
            let mut bad = 0;
            for i in 0..each {
                let method = &methods[(i + number) % methods.len()];
                let body = if method == "POST" { "some body" } else { "" };
                let request = http::Request::builder().method(method.as_str()).uri("/");
                let (parts, text) = client.send(request, body).await.unwrap();
                if parts.status != 200 {
                    eprintln!("{method}: {} {text}", parts.status);
                    bad += 1;
                }
                if !pause.is_zero() && i % 3 == 0 {
                    tokio::time::sleep(pause).await;
                }
            }
            bad
        }));
    }
    let mut bad = 0;
    for task in tasks {
        bad += task.await.unwrap();
    }
    bad
}

const ALL: &[&str] = &["GET", "POST", "PUT", "DELETE"];

/// Runs a load; how many answers may be bad, of all.
async fn run(
    ending: Ending,
    clients: usize,
    each: usize,
    pause: Duration,
    (methods, most_bad): (&[&str], usize),
) -> carrick_proxy::Stats {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let app = listener.local_addr().unwrap();
    let read = Arc::new(AtomicUsize::new(0));
    let serving = server(listener, ending, Arc::clone(&read));
    let at = free_port();
    let run = start(plain_proxy(at, &[app]), Default::default());
    let bad = load(at, clients, each, pause, methods).await;
    serving.abort();
    assert!(bad <= most_bad, "{bad} answers that were not 200");
    let read = read.load(Ordering::SeqCst);
    assert!(read >= clients * each - bad, "{read}");
    let stats = run.engine.stats();
    // A request that the server had read is sent again only if it was a GET.
    assert!(read <= clients * each + usize::try_from(stats.get("cluster.app.upstream_rq_resent_unseen")).unwrap());
    stats
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_closed_at_random_moments_lose_no_request() {
    let stats = run(Ending::Random, 8, 300, Duration::from_millis(1), (&["GET"], 0)).await;
    assert!(stats.get("cluster.app.upstream_cx_total") > 100, "connections were closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_sent_again_keeps_clear_of_a_peer_that_closes() {
    // What is lost is lost before the peer has closed a single idle connection.
    run(Ending::Random, 8, 250, Duration::from_millis(1), (&["POST", "DELETE"], 3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_timeout_is_learned_and_kept_clear_of() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let app = listener.local_addr().unwrap();
    let serving = server(listener, Ending::Idle(60), Arc::default());
    let at = free_port();
    let run = start(plain_proxy(at, &[app]), Default::default());
    // Until the peer has closed one, nobody can know: a POST that crosses that is lost. So the lesson is a GET's.
    assert_eq!(load(at, 8, 12, Duration::from_millis(90), &["GET"]).await, 0);
    let learned = || run.engine.stats().get("cluster.app.upstream_cx_closed_idle") > 0;
    until("an idle connection is closed", learned).await;
    assert_eq!(load(at, 8, 60, Duration::from_millis(60), ALL).await, 0);
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn half_closed_connections_are_not_used_again() {
    // What is on its way when the server ends its side may yet be read, so only what is safe is sent again.
    run(Ending::HalfClose, 8, 250, Duration::from_millis(1), (&["GET"], 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_between_requests_is_not_noticed() {
    let bind = |at: SocketAddr| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(at).unwrap();
        socket.listen(64).unwrap()
    };
    let listener = bind((Ipv4Addr::LOCALHOST, 0).into());
    let app = listener.local_addr().unwrap();
    let read = Arc::new(AtomicUsize::new(0));
    let at = free_port();
    let run = start(plain_proxy(at, &[app]), Default::default());
    let mut client = Client::connect(at).await;
    let mut next = Some(listener);
    for round in 0..20 {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (listener, read) = (next.take().unwrap_or_else(|| bind(app)), Arc::clone(&read));
        let listener = listener.into_std().unwrap();
        runtime
            .spawn(async move { server(TcpListener::from_std(listener).unwrap(), Ending::Idle(10_000), read).await });
        for _ in 0..5 {
            let (parts, text) = client.send(http::Request::post("/"), "body").await.unwrap();
            assert_eq!(parts.status, 200, "round {round}: {text}");
        }
        // Ends the server with all its connections, as a process's end would.
        runtime.shutdown_background();
        let gone = || std::net::TcpStream::connect(app).is_err();
        until("the server is gone", gone).await;
    }
    assert_eq!(read.load(Ordering::SeqCst), 100, "each request once");
    assert_eq!(run.engine.stats().get("http.test.downstream_rq_5xx"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_connections_that_say_goodbye_lose_no_request() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let app = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut number = 0_u64;
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            number += 1;
            let life = Duration::from_millis(2 + number * 7 % 15);
            tokio::spawn(async move {
                let answer = hyper::service::service_fn(|r: http::Request<hyper::body::Incoming>| async move {
                    let body = http_body_util::BodyExt::collect(r.into_body()).await?.to_bytes();
                    Ok::<_, hyper::Error>(http::Response::new(http_body_util::Full::new(body)))
                });
                let builder = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
                let connection = builder.serve_connection(hyper_util::rt::TokioIo::new(tcp), answer);
                let mut connection = std::pin::pin!(connection);
                tokio::select! {
                    _ = connection.as_mut() => return,
                    () = tokio::time::sleep(life) => connection.as_mut().graceful_shutdown(),
                }
                let _ = connection.await;
            });
        }
    });
    let at = free_port();
    let mut h2 = cluster("app");
    h2.http = carrick_proxy_core::model::cluster::HttpProtocol::Http2;
    let c = config(vec![listener_of(at)], vec![(h2, Some(endpoints(&[app])))]);
    let run = start(c, Default::default());
    assert_eq!(load(at, 8, 250, Duration::ZERO, &["GET", "POST"]).await, 0);
    let connections = run.engine.stats().get("cluster.app.upstream_cx_total");
    assert!(connections > 20, "{connections} connections said goodbye");
}

fn listener_of(at: SocketAddr) -> carrick_proxy_core::model::Listener {
    crate::support::listener("l", at, Default::default(), vec![chain("c", crate::support::http(all_to("app")))])
}
