//! Two engines and mutual TLS between them; and who is kept out.

use crate::support::*;
use carrick_pki::Quarantine;
use carrick_proxy::{Secret, Secrets};
use carrick_proxy_core::RuntimeConfig;
use carrick_proxy_core::model::cluster::{Discovery, HttpProtocol, Transport};
use carrick_proxy_core::model::listener::Direction;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn client_side(at: SocketAddr, server: SocketAddr, account: &str, h2: bool) -> RuntimeConfig {
    let mut c = cluster("outbound|80||app.test.svc.cluster.local");
    let alpn: &[&str] = if h2 { &["istio-h2", "istio", "h2"] } else { &["istio-http/1.1", "istio", "http/1.1"] };
    c.transport = Transport { matches: Vec::new(), default: Arc::new(client_tls(account, alpn)) };
    c.http = if h2 { HttpProtocol::Http2 } else { HttpProtocol::Http1 };
    config(
        vec![listener(
            "out",
            at,
            Direction::Outbound,
            vec![chain("c", http(all_to("outbound|80||app.test.svc.cluster.local")))],
        )],
        vec![(c, Some(endpoints(&[server])))],
    )
}

/// STRICT on a declared HTTP port, delivering to the original destination.
fn server_side(at: SocketAddr) -> RuntimeConfig {
    let mut c = chain("0.0.0.0_80", http(all_to("inbound|80||")));
    c.matching.transport_protocol = "tls".into();
    c.tls = Some(server_tls(&["h2", "http/1.1"]));
    let mut l = listener("virtualInbound", at, Direction::Inbound, vec![c]);
    l.restore_original_dst = true;
    let mut inbound = cluster("inbound|80||");
    inbound.discovery = Discovery::OriginalDst;
    inbound.http = HttpProtocol::UseDownstream;
    config(vec![l], vec![(inbound, None)])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_proves_both_identities() {
    let mesh = Mesh::new();
    let (app, _) = echo_app().await;
    for h2 in [false, true] {
        let (out, inn) = (free_port(), free_port());
        let server = start_with(server_side(inn), mesh.secrets("app"), meant_for(app));
        let client = start(client_side(out, inn, "app", h2), mesh.secrets("caller"));
        let mut c = Client::connect(out).await;
        for _ in 0..5 {
            let (parts, body) = c.get("/hello").await.unwrap();
            assert_eq!(parts.status, 200, "{body}");
            let xfcc = body.lines().find(|l| l.starts_with("x-forwarded-client-cert: ")).unwrap();
            assert!(xfcc.contains("By=spiffe://cluster.local/ns/test/sa/app;Hash="), "{xfcc}");
            assert!(xfcc.ends_with(";Subject=\"\";URI=spiffe://cluster.local/ns/test/sa/caller"), "{xfcc}");
            assert!(
                body.starts_with(if h2 { "GET http://app.test/hello HTTP/2.0" } else { "GET /hello HTTP/1.1" }),
                "{body}"
            );
        }
        let stats = server.engine.stats();
        assert_eq!(stats.get("listener.virtualInbound.ssl.handshake"), 1, "one connection for all");
        assert!(stats.prometheus().contains("connection_security_policy=\"mutual_tls\""));
        assert_eq!(client.engine.stats().get("cluster.outbound|80||app.test.svc.cluster.local.ssl.handshake"), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_another_name_gets_nothing() {
    let mesh = Mesh::new();
    let (app, _) = echo_app().await;
    let (out, inn) = (free_port(), free_port());
    let _server = start_with(server_side(inn), mesh.secrets("impostor"), meant_for(app));
    let client = start(client_side(out, inn, "app", false), mesh.secrets("caller"));
    let (status, body) = get(out, "/").await;
    assert_eq!(status, 503);
    assert!(body.ends_with("reset reason: remote connection failure"), "why is not told to clients: {body}");
    assert_eq!(client.engine.stats().get("cluster.outbound|80||app.test.svc.cluster.local.ssl.handshake"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused_by_a_strict_port() {
    let mesh = Mesh::new();
    let (app, connections) = echo_app().await;
    let inn = free_port();
    let server = start_with(server_side(inn), mesh.secrets("app"), meant_for(app));
    // Plaintext: a reset, never an HTTP status, never a wait.
    let mut tcp = TcpStream::connect(inn).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut buf = [0; 64];
    let got = tokio::time::timeout(Duration::from_secs(5), tcp.read(&mut buf)).await.unwrap();
    assert_eq!(got.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let unmatched = || server.engine.stats().get("listener.virtualInbound.no_filter_chain_match") == 1;
    until("the connection without a chain is counted", unmatched).await;
    // A certificate of another mesh.
    let (out, other) = (free_port(), Mesh::new());
    let mut secrets = other.secrets("caller");
    secrets.by_name.insert("ROOTCA".into(), Secret::Trust(Arc::new(mesh.authority.roots())));
    let _client = start(client_side(out, inn, "app", false), secrets);
    assert_eq!(get(out, "/").await.0, 503);
    assert_eq!(connections.load(std::sync::atomic::Ordering::SeqCst), 0, "the application saw nobody");
    // The client hears of it before the server has counted it.
    let counted = || server.engine.stats().get("listener.virtualInbound.ssl.connection_error") >= 1;
    until("the refusal is counted", counted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_secrets_nothing_is_served() {
    let (app, _) = echo_app().await;
    let (out, inn) = (free_port(), free_port());
    let mesh = Mesh::new();
    let server = start_with(server_side(inn), Default::default(), meant_for(app));
    let client = start(client_side(out, inn, "app", false), Default::default());
    let (status, body) = get(out, "/").await;
    assert_eq!(status, 503);
    assert!(body.ends_with("reset reason: remote connection failure"), "{body}");
    // They come later, and everything works without a restart.
    server.secrets.send_replace(Arc::new(mesh.secrets("app")));
    client.secrets.send_replace(Arc::new(mesh.secrets("caller")));
    assert_eq!(get(out, "/").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_drops_no_request_and_new_handshakes_use_the_new_leaf() {
    let mesh = Arc::new(Mesh::new());
    let (app, _) = echo_app().await;
    let (out, inn) = (free_port(), free_port());
    let server = start_with(server_side(inn), mesh.secrets("app"), meant_for(app));
    let mut config = client_side(out, inn, "app", false);
    // Few requests per connection, so that handshakes happen all the time.
    let name: Arc<str> = "outbound|80||app.test.svc.cluster.local".into();
    let mut c = cluster(&name);
    c.transport = Transport {
        matches: Vec::new(),
        default: Arc::new(client_tls("app", &["istio-http/1.1", "istio", "http/1.1"])),
    };
    c.max_requests_per_connection = Some(3);
    config.clusters.insert(name, Arc::new(c));
    let client = start(config, mesh.secrets("caller"));
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let done: Vec<Arc<AtomicU64>> = (0..3).map(|_| Arc::default()).collect();
    let load: Vec<_> = done
        .iter()
        .map(|done| {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(done));
            tokio::spawn(async move {
                let mut c = Client::connect(out).await;
                let mut hashes = std::collections::HashSet::new();
                while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                    let (parts, body) = c.get("/").await.unwrap();
                    assert_eq!(parts.status, 200, "{body}");
                    hashes.insert(body.split("Hash=").nth(1).unwrap()[..64].to_string());
                    done.fetch_add(1, Ordering::SeqCst);
                }
                hashes
            })
        })
        .collect();
    for _ in 0..8 {
        // However busy the machine is: three connections' worth of requests, so that one of them begins with the new leaf.
        let before: Vec<u64> = done.iter().map(|done| done.load(Ordering::SeqCst)).collect();
        let on = || done.iter().zip(&before).all(|(done, before)| done.load(Ordering::SeqCst) >= before + 9);
        until("everybody has sent nine more", on).await;
        server.secrets.send_replace(Arc::new(mesh.secrets("app")));
        client.secrets.send_replace(Arc::new(mesh.secrets("caller")));
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    for l in load {
        let hashes = l.await.unwrap();
        assert!(hashes.len() >= 8, "{} leaves seen", hashes.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_taken_up_again_until_anything_about_trust_changes() {
    let mesh = Mesh::new();
    let (app, _) = echo_app().await;
    let (out, inn) = (free_port(), free_port());
    let server = start_with(server_side(inn), mesh.secrets("app"), meant_for(app));
    let mut config = client_side(out, inn, "app", false);
    // A connection for each request.
    let name: Arc<str> = "outbound|80||app.test.svc.cluster.local".into();
    let mut c = cluster(&name);
    let offered = &["istio-http/1.1", "istio", "http/1.1"];
    c.transport = Transport { matches: Vec::new(), default: Arc::new(client_tls("app", offered)) };
    c.max_requests_per_connection = Some(1);
    config.clusters.insert(name, Arc::new(c));
    let client = start(config, mesh.secrets("caller"));
    let mut requests = Client::connect(out).await;
    let mut reused = async || {
        let count = || server.engine.stats().get("listener.virtualInbound.ssl.session_reused");
        let before = count();
        for _ in 0..3 {
            let (parts, body) = requests.get("/").await.unwrap();
            assert_eq!(parts.status, 200, "{body}");
            assert!(body.contains(";URI=spiffe://cluster.local/ns/test/sa/caller"), "whoever it is, is known: {body}");
        }
        count() - before
    };
    assert_eq!(reused().await, 2, "all but the first");
    assert_eq!(reused().await, 3);
    // Somebody else is quarantined; nothing that was agreed before the list counts any more.
    let listed = |account: &str, serial: &str| {
        let quarantine = Arc::new(Quarantine::new([], [serial.to_owned()]));
        Secrets { quarantine, ..mesh.secrets(account) }
    };
    server.secrets.send_replace(Arc::new(listed("app", "12")));
    assert_eq!(reused().await, 2, "the server's new list");
    client.secrets.send_replace(Arc::new(listed("caller", "12")));
    assert_eq!(reused().await, 2, "the client's new certificate");
    server.secrets.send_replace(Arc::new(mesh.secrets("app")));
    assert_eq!(reused().await, 2, "the server's new certificate");
    let counted = client.engine.stats().get("cluster.outbound|80||app.test.svc.cluster.local.ssl.session_reused");
    assert_eq!(counted, server.engine.stats().get("listener.virtualInbound.ssl.session_reused"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_in_small_pieces_is_still_a_hello() {
    let mesh = Mesh::new();
    let (app, _) = echo_app().await;
    let (out, inn) = (free_port(), free_port());
    let _server = start_with(server_side(inn), mesh.secrets("app"), meant_for(app));
    // A middleman that passes the client's bytes on 40 at a time.
    let middle = raw_server(move |_, down| async move {
        let up = TcpStream::connect(inn).await.unwrap();
        up.set_nodelay(true).unwrap();
        let (mut dr, mut dw) = down.into_split();
        let (mut ur, mut uw) = up.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut ur, &mut dw).await });
        let mut buf = [0; 40];
        while let Ok(n @ 1..) = dr.read(&mut buf).await {
            uw.write_all(&buf[..n]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let _client = start(client_side(out, middle, "app", false), mesh.secrets("caller"));
    assert_eq!(get(out, "/").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarantined_peer_is_cut_and_kept_out_and_others_notice_nothing() {
    let mesh = Mesh::new();
    let (app, _) = echo_app().await;
    let quarantined = |account: &str, who: &str| {
        let list = Quarantine::new([format!("spiffe://cluster.local/ns/test/sa/{who}")], []);
        Arc::new(Secrets { quarantine: Arc::new(list), ..mesh.secrets(account) })
    };
    for h2 in [false, true] {
        let inn = free_port();
        let server = start_with(server_side(inn), mesh.secrets("app"), meant_for(app));
        let (evil_out, good_out) = (free_port(), free_port());
        let _evil = start(client_side(evil_out, inn, "app", h2), mesh.secrets("evil"));
        let good = start(client_side(good_out, inn, "app", h2), mesh.secrets("good"));
        let (mut to_evil, mut to_good) = (Client::connect(evil_out).await, Client::connect(good_out).await);
        assert_eq!(to_evil.get("/").await.unwrap().0.status, 200);
        assert_eq!(to_good.get("/").await.unwrap().0.status, 200);
        let open = || server.engine.stats().get("listener.virtualInbound.downstream_cx_active");
        assert_eq!(open(), 2);

        // By the server: the open connection ends with nobody asking for anything, the other one stays.
        server.secrets.send_replace(quarantined("app", "evil"));
        until("the connection is cut", || open() == 1).await;
        assert_eq!(get(evil_out, "/").await.0, 503);
        assert_eq!(to_good.get("/").await.unwrap().0.status, 200);
        assert_eq!(good.engine.stats().get("cluster.outbound|80||app.test.svc.cluster.local.ssl.handshake"), 1);

        // By the client, of its server.
        server.secrets.send_replace(Arc::new(mesh.secrets("app")));
        assert_eq!(get(evil_out, "/").await.0, 200, "taken back");
        good.secrets.send_replace(quarantined("good", "app"));
        until("the client leaves", || open() == 1).await;
        let handshakes = || good.engine.stats().get("cluster.outbound|80||app.test.svc.cluster.local.ssl.handshake");
        let before = handshakes();
        assert_eq!(get(good_out, "/").await.0, 503);

        // One's own certificate is shown to nobody.
        good.secrets.send_replace(quarantined("good", "good"));
        assert_eq!(get(good_out, "/").await.0, 503);
        assert_eq!(handshakes(), before);
        good.secrets.send_replace(Arc::new(mesh.secrets("good")));
        assert_eq!(get(good_out, "/").await.0, 200);
    }
}
