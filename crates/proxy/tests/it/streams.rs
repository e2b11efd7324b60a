//! TCP chains: half-close, server-first, original destinations, the loop guard.

use crate::support::*;
use carrick_proxy_core::model::cluster::Discovery;
use carrick_proxy_core::model::listener::Direction;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn to(at: SocketAddr, app: SocketAddr) -> carrick_proxy_core::RuntimeConfig {
    config(
        vec![listener("l", at, Direction::Outbound, vec![chain("c", tcp("app"))])],
        vec![(cluster("app"), Some(endpoints(&[app])))],
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn each_direction_ends_on_its_own() {
    let app = raw_server(|_, mut tcp| async move {
        let mut all = Vec::new();
        tcp.read_to_end(&mut all).await.unwrap();
        tcp.write_all(format!("{} bytes", all.len()).as_bytes()).await.unwrap();
    })
    .await;
    let at = free_port();
    let run = start(to(at, app), Default::default());
    let mut tcp = TcpStream::connect(at).await.unwrap();
    tcp.write_all(&vec![1; 300_000]).await.unwrap();
    tcp.shutdown().await.unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "300000 bytes");
    until("bytes are counted", || run.engine.stats().get("tcp.app.downstream_cx_rx_bytes_total") == 300_000).await;
    until("the connection is over", || run.engine.stats().get("cluster.app.upstream_cx_active") == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_first_is_heard() {
    let app = raw_server(|_, mut tcp| async move {
        tcp.write_all(b"220 ready\r\n").await.unwrap();
        let mut line = [0; 6];
        tcp.read_exact(&mut line).await.unwrap();
        tcp.write_all(b"250 ok\r\n").await.unwrap();
    })
    .await;
    let at = free_port();
    let _run = start(to(at, app), Default::default());
    let mut tcp = TcpStream::connect(at).await.unwrap();
    let mut greeting = [0; 11];
    tokio::time::timeout(Duration::from_secs(5), tcp.read_exact(&mut greeting)).await.unwrap().unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
    tcp.write_all(b"EHLO\r\n").await.unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "250 ok\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_upstream_closes_the_client_at_once() {
    let at = free_port();
    let run = start(to(at, free_port()), Default::default());
    let mut tcp = TcpStream::connect(at).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_secs(5), tcp.read_u8()).await.unwrap().is_err());
    assert_eq!(run.engine.stats().get("cluster.app.upstream_cx_connect_fail"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn redirected_connections_reach_virtual_listeners_and_passthrough() {
    let (app, _) = echo_app().await;
    let at = free_port();
    // 15001's part: hand over by original destination, else pass through.
    let mut main = listener("virtualOutbound", at, Direction::Outbound, vec![chain("pass", tcp("PassthroughCluster"))]);
    main.use_original_dst = true;
    let elsewhere: SocketAddr = "10.9.9.9:80".parse().unwrap();
    let mut hidden = listener(
        "0.0.0.0_80",
        "0.0.0.0:80".parse().unwrap(),
        Direction::Outbound,
        vec![chain("c", http(all_to("app")))],
    );
    hidden.bind_to_port = false;
    let mut pass = cluster("PassthroughCluster");
    pass.discovery = Discovery::OriginalDst;
    let c = config(vec![main, hidden], vec![(pass, None), (cluster("app"), Some(endpoints(&[app])))]);
    let _run = start_with(c.clone(), Default::default(), meant_for(elsewhere));
    let (status, body) = get(at, "/virtual").await;
    assert_eq!((status, body.contains("x-request-id")), (200, true), "{body}");
    drop(_run);
    let _run = start_with(c, Default::default(), meant_for(app));
    let (status, body) = get(at, "/through").await;
    assert_eq!((status, body.contains("x-request-id")), (200, false), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_meant_for_our_own_port_is_refused() {
    let at = free_port();
    let own = free_port();
    let mut main = listener("virtualOutbound", at, Direction::Outbound, vec![chain("pass", tcp("PassthroughCluster"))]);
    main.use_original_dst = true;
    let mut second =
        listener("virtualInbound", own, Direction::Inbound, vec![chain("pass", tcp("PassthroughCluster"))]);
    second.restore_original_dst = true;
    let mut pass = cluster("PassthroughCluster");
    pass.discovery = Discovery::OriginalDst;
    let run = start_with(config(vec![main, second], vec![(pass, None)]), Default::default(), meant_for(own));
    // The refusal can come before the client has noticed that it was connected.
    if let Ok(mut tcp) = TcpStream::connect(at).await {
        assert!(tokio::time::timeout(Duration::from_secs(5), tcp.read_u8()).await.unwrap().is_err());
    }
    until("the loop is counted", || {
        let s = run.engine.stats();
        s.counters().any(|(k, v)| k.ends_with("loop_refused") && v == 1)
    })
    .await;
}
