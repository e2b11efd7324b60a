//! Configuration that changes under traffic, and the end of the engine.

use crate::support::*;
use carrick_proxy_core::model::listener::Direction;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// PERMISSIVE or STRICT on one port: with STRICT the plain chain is gone.
fn mode(at: SocketAddr, app: SocketAddr, strict: bool) -> carrick_proxy_core::RuntimeConfig {
    let mut tls = chain("tls", http(all_to("app")));
    tls.matching.transport_protocol = "tls".into();
    tls.tls = Some(server_tls(&["h2", "http/1.1"]));
    let mut raw = chain("raw", http(all_to("app")));
    raw.matching.transport_protocol = "raw_buffer".into();
    let chains = if strict { vec![tls] } else { vec![tls, raw] };
    config(vec![listener("in", at, Direction::Inbound, chains)], vec![(cluster("app"), Some(endpoints(&[app])))])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_chain_lets_its_connections_finish_and_takes_no_new_ones() {
    let mesh = Mesh::new();
    let (app, _) = echo_app().await;
    let at = free_port();
    let run = start(mode(at, app, false), mesh.secrets("app"));
    let mut client = Client::connect(at).await;
    assert_eq!(client.get("/").await.unwrap().0.status, 200);
    run.engine.apply(Arc::new(mode(at, app, true))).unwrap();
    // The old connection gets one more answer, and is told to leave with it.
    let (parts, _) = client.get("/").await.unwrap();
    assert_eq!(
        (parts.status.as_u16(), parts.headers.get("connection").map(|v| v.as_bytes())),
        (200, Some(&b"close"[..]))
    );
    assert!(client.get("/").await.is_err());
    let mut fresh = Client::connect(at).await;
    assert!(fresh.get("/").await.is_err(), "new plaintext connections are refused");
    run.engine.apply(Arc::new(mode(at, app, false))).unwrap();
    assert_eq!(get(at, "/").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn switches_under_load_fail_no_request_of_a_chain_that_stays() {
    let mesh = Mesh::new();
    let (app, _) = echo_app().await;
    let (out, inn) = (free_port(), free_port());
    let run = start(mode(inn, app, false), mesh.secrets("app"));
    let mut upstream = cluster("up");
    upstream.transport.default = Arc::new(client_tls("app", &["istio-http/1.1", "istio", "http/1.1"]));
    let c = config(
        vec![listener("out", out, Direction::Outbound, vec![chain("c", http(all_to("up")))])],
        vec![(upstream, Some(endpoints(&[inn])))],
    );
    let client = start(c, mesh.secrets("caller"));
    let stop = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = (0..4)
        .map(|_| {
            let stop = Arc::clone(&stop);
            tokio::spawn(async move {
                let mut c = Client::connect(out).await;
                let mut n = 0;
                while !stop.load(Ordering::SeqCst) {
                    let (parts, body) = c.send(http::Request::post("/"), "x").await.unwrap();
                    assert_eq!(parts.status, 200, "{body}");
                    n += 1;
                }
                n
            })
        })
        .collect();
    for i in 0..40 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        run.engine.apply(Arc::new(mode(inn, app, i % 2 == 0))).unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    for l in load {
        assert!(l.await.unwrap() > 50);
    }
    // The TLS chain is a new value each time but the same chain, so its connections stayed.
    assert!(client.engine.stats().get("cluster.up.upstream_cx_total") <= 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_that_leave_take_their_connections_along() {
    let (a, _) = echo_app().await;
    let (b, _) = echo_app().await;
    let at = free_port();
    let first = plain_proxy(at, &[a]);
    let run = start(first.clone(), Default::default());
    let mut client = Client::connect(at).await;
    client.get("/").await.unwrap();
    let mut second = first;
    second.endpoints.insert("app".into(), Arc::new(endpoints(&[b])));
    run.engine.apply(Arc::new(second)).unwrap();
    let (parts, _) = client.get("/").await.unwrap();
    assert!(!parts.headers.contains_key("connection"), "the client's connection stays");
    until("the old endpoint's connection is gone", || run.engine.stats().get("cluster.app.upstream_cx_active") == 1)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_listener_stops_accepting() {
    let (app, _) = echo_app().await;
    let at = free_port();
    let run = start(plain_proxy(at, &[app]), Default::default());
    assert_eq!(get(at, "/").await.0, 200);
    run.engine.apply(Arc::new(config(vec![], vec![]))).unwrap();
    for _ in 0..200 {
        if TcpStream::connect(at).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("still accepting");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_is_reported_and_the_rest_works() {
    let (app, _) = echo_app().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (at, bad) = (free_port(), taken.local_addr().unwrap());
    let mut c = plain_proxy(at, &[app]);
    let other = listener("other", bad, Direction::Outbound, vec![chain("c", tcp("app"))]);
    let other = Arc::new(other);
    c.listeners.by_address.insert(bad, Arc::clone(&other));
    c.listeners.by_name.insert("other".into(), other);
    let (_sender, receiver) = tokio::sync::watch::channel(Default::default());
    let engine = carrick_proxy::Engine::start(Default::default(), receiver).unwrap();
    let errors = engine.apply(Arc::new(c)).unwrap_err();
    assert_eq!((errors.len(), errors[0].address), (1, bad));
    assert_eq!(get(at, "/").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn draining_waits_for_what_is_under_way_and_no_longer() {
    let (app, _) = echo_app().await;
    let at = free_port();
    let run = start(plain_proxy(at, &[app]), Default::default());
    let slow = tokio::spawn(async move { get(at, "/slow").await });
    let _idle = TcpStream::connect(at).await.unwrap();
    tokio::time::sleep(Duration::from_millis(150)).await;
    let begin = Instant::now();
    run.engine.drain(Duration::from_secs(3)).await;
    let took = begin.elapsed();
    assert_eq!(slow.await.unwrap().0, 200, "the request under way was answered");
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert!(TcpStream::connect(at).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_was_silent_during_the_switch_meets_the_new_policy() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mesh = Mesh::new();
    let (app, connections) = echo_app().await;
    let at = free_port();
    let run = start(mode(at, app, false), mesh.secrets("app"));
    let mut early = TcpStream::connect(at).await.unwrap();
    until("accepted", || run.engine.stats().get("listener.in.downstream_cx_active") == 1).await;
    run.engine.apply(Arc::new(mode(at, app, true))).unwrap();
    early.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let got = tokio::time::timeout(Duration::from_secs(5), early.read_u8()).await.unwrap();
    assert_eq!(got.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(connections.load(Ordering::SeqCst), 0);
}
