//! Changes reach the proxies they concern, nothing else is sent, and the debug pages tell the truth about it.

use crate::fixture::{Proxy, World, authority, count, local, node, slice};
use carrick_control::source::Kind;
use carrick_xds::TypeUrl::{self, Cluster, Endpoint, Listener};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

const IP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 244, 0, 1));

fn strict(namespace: &str, app: Option<&str>) -> Value {
    let mut spec = json!({"mtls": {"mode": "STRICT"}});
    if let Some(app) = app {
        spec["selector"] = json!({"matchLabels": {"app": app}});
    }
    json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "default", "namespace": namespace, "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec})
}

async fn distributed(world: &World, version: u64) -> Value {
    world.json(&format!("/debug/distribution?resourceVersion={version}&wait=20")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_reaches_the_proxies_it_concerns() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut world = World::new(authority(dir.path())).await;
    world.service("shop", "web", 1);
    world.service("shop", "api", 2);
    assert_eq!(world.get("/ready").await.0, 503);
    let start = |world: &World, name: &str, ip: u8| {
        let address = Ipv4Addr::new(10, 244, 0, ip).into();
        Proxy::start(world.connector(Some(world.identity("shop", name))), node("shop", name, address), None)
    };
    // Connected before anything is known: nothing is sent, not even "nothing".
    let mut web = start(&world, "web", 1);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(web.updates(), 0);
    world.list().await;
    assert_eq!(world.get("/ready").await.0, 200);
    let mut api = start(&world, "api", 2);
    for proxy in [&mut web, &mut api] {
        let names = ["outbound|80||web.shop.svc.cluster.local", "outbound|80||api.shop.svc.cluster.local"];
        proxy
            .until("both services", |g| {
                count(g, &Listener) > 0
                    && names.iter().all(|n| g.held.get(&Endpoint).is_some_and(|m| m.contains_key(*n)))
            })
            .await;
    }
    let first = distributed(&world, 0).await;
    assert_eq!(first["proxies"].as_array().map(Vec::len), Some(2), "{first}");

    let (before_web, before_api) = (web.updates(), api.updates());
    let version = world.apply(Kind::PeerAuthentication, strict("shop", Some("web"))).await;
    let answer = distributed(&world, version).await;
    assert_eq!(answer["complete"], json!(true), "{answer}");
    assert_eq!(answer["snapshot"]["resourceVersion"], json!(version), "{answer}");
    let elapsed = answer["elapsedSeconds"].as_f64().expect("a time");
    assert!(elapsed > 0.0 && elapsed < 5.0, "{answer}");
    // The workload policy changes listeners of its workload only.
    let updates = |proxy: &Proxy, from: usize| proxy.got.lock().expect("got").updates[from..].to_vec();
    let of_web = updates(&web, before_web);
    assert!(
        of_web.iter().any(|(t, names, _)| *t == Listener && names.iter().any(|n| n == "virtualInbound")),
        "{of_web:?}"
    );
    let of_api = updates(&api, before_api);
    assert!(of_api.iter().all(|(t, ..)| *t != Listener), "{of_api:?}");

    // The same object again, with a new version: contained at once, nothing is sent.
    let (before_web, before_api) = (web.updates(), api.updates());
    let version = world.apply(Kind::PeerAuthentication, strict("shop", Some("web"))).await;
    let answer = distributed(&world, version).await;
    assert_eq!(answer["complete"], json!(true));
    assert_eq!((web.updates(), api.updates()), (before_web, before_api));

    // Endpoints alone.
    let mut more = slice("shop", "api", &["10.244.0.2", "10.244.9.9"]);
    // An address that is no pod's; a pod that has not the address would make it out of date.
    more["endpoints"][1]["targetRef"] = json!(null);
    let version = world.apply(Kind::EndpointSlice, more).await;
    distributed(&world, version).await;
    let of_web = updates(&web, before_web);
    assert_eq!(of_web.iter().map(|(t, ..)| t.clone()).collect::<Vec<_>>(), [Endpoint], "{of_web:?}");

    // Gone again.
    let before = web.updates();
    let version = world.delete(Kind::PeerAuthentication, "shop", "default").await;
    distributed(&world, version).await;
    assert!(updates(&web, before).iter().any(|(t, ..)| *t == Listener));

    let syncz = world.json("/debug/syncz").await;
    let proxies = syncz["proxies"].as_array().expect("proxies");
    assert_eq!(proxies[0]["name"], json!("api.shop"));
    assert_eq!(proxies[0]["identity"], json!("spiffe://cluster.local/ns/shop/sa/api"));
    assert_eq!(proxies[0]["controlPlane"], json!("carrick-test"));
    for t in proxies[0]["types"].as_array().expect("types") {
        assert_eq!(t["sentNonce"], t["ackedNonce"], "{t}");
        assert_ne!(t["sentNonce"], json!(""), "{t}");
    }
    let dump = world.get("/debug/config_dump?proxyID=web.shop").await;
    assert!(dump.0 == 200 && dump.1.contains("virtualInbound"), "{dump:?}");
    assert_eq!(world.get("/debug/config_dump?proxyID=nobody").await.0, 404);
    let registry = world.json("/debug/registryz").await;
    assert_eq!(registry.as_array().map(Vec::len), Some(2), "{registry}");
    let endpoints = world.json("/debug/endpointz").await.to_string();
    assert!(endpoints.contains("10.244.9.9:8080"), "{endpoints}");
    assert_eq!(world.get("/debug/distribution?resourceVersion=999999&wait=0").await.0, 504);
    assert_eq!(world.get("/debug/distribution?resourceVersion=x").await.0, 400);
    let (_, metrics) = world.get("/metrics").await;
    assert!(metrics.lines().any(|l| l == "pilot_xds 2"), "{metrics}");
    for name in [
        "pilot_xds_pushes",
        "pilot_total_xds_rejects",
        "pilot_proxy_convergence_time",
        "pilot_pushcontext_init_seconds",
        "pilot_services",
        "pilot_k8s_cfg_events",
        "citadel_server_csr_count",
        "citadel_server_success_cert_issuance_count",
        "citadel_server_authentication_failure_count",
        "citadel_server_csr_parsing_err_count",
        "citadel_server_root_cert_expiry_timestamp",
    ] {
        let is_value =
            |line: &&str| line.starts_with(name) && line.split(' ').nth(1).is_some_and(|v| v.parse::<f64>().is_ok());
        assert!(metrics.lines().any(|line| is_value(&line)), "{name}: {metrics}");
    }
    web.stop().await;
    api.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_shown_and_costs_nobody_else_anything() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut world = World::new(authority(dir.path())).await;
    world.service("shop", "web", 1);
    world.service("shop", "api", 2);
    world.list().await;
    let bad = "outbound|80||api.shop.svc.cluster.local";
    let connector = world.connector(Some(world.identity("shop", "web")));
    let mut proxy = Proxy::refusing(connector, node("shop", "web", IP), None, &[bad]);
    proxy
        .until("the other cluster", |g| {
            g.held.get(&Cluster).is_some_and(|m| m.contains_key("outbound|80||web.shop.svc.cluster.local"))
                && count(g, &Listener) > 0
        })
        .await;
    let answer = distributed(&world, 0).await;
    assert!(answer["proxies"][0]["refused"]["error"].as_str().is_some_and(|e| e.contains("not here")), "{answer}");
    assert!(!proxy.got.lock().expect("got").held[&Cluster].contains_key(bad));
    let syncz = world.json("/debug/syncz").await.to_string();
    assert!(syncz.contains("outbound|80||api.shop.svc.cluster.local: not here"), "{syncz}");
    proxy.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxies_outlive_the_control_plane_and_come_back_for_nothing() {
    let dir = tempfile::tempdir().expect("tempdir");
    let authority = authority(dir.path());
    let address = lasting_port();
    let mut world = World::start(authority.clone(), address).await;
    world.service("shop", "web", 1);
    world.list().await;
    let mut proxy = Proxy::start(world.connector(Some(world.identity("shop", "web"))), node("shop", "web", IP), None);
    let complete = |g: &crate::fixture::Got| count(g, &Listener) > 0 && count(g, &Endpoint) > 0;
    proxy.until("everything", complete).await;
    distributed(&world, 0).await;
    let before = proxy.updates();
    drop(world);
    proxy.until("the loss", |g| !g.reasons.is_empty()).await;
    assert!(complete(&proxy.got.lock().expect("got")), "it keeps what it had");

    let mut world = World::start(authority, address).await;
    world.service("shop", "web", 1);
    world.list().await;
    let start = Instant::now();
    loop {
        let state = world.json("/debug/distribution").await;
        if state["proxies"][0]["acknowledged"].as_u64().is_some_and(|n| n > 0) {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{state}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(proxy.updates(), before, "nothing changed, nothing is sent");
    proxy.stop().await;
}

/// A port that stays free between two lives of a server: outside the range the kernel takes callers' ports from. Inside it a
/// client that reconnects to the dead server's port is now and then given that very port, and holds it by talking to itself.
fn lasting_port() -> std::net::SocketAddr {
    let free = |port: &u16| std::net::TcpListener::bind(local(*port)).is_ok();
    // Runs of this test at the same time begin at different ports.
    let begin = 20_000 + u16::try_from(std::process::id() % 10_000).expect("small");
    local((begin..32_000).find(free).expect("a free port"))
}

/// `cargo test --release -p carrick-control --test it -- --ignored --nocapture three_hundred`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn three_hundred_proxies_and_services() {
    let dir = tempfile::tempdir().expect("tempdir");
    let authority = authority(dir.path());
    let mut world = World::new(authority.clone()).await;
    let fill =
        |world: &mut World| (0..300).for_each(|n| world.service(&format!("ns-{}", n % 10), &format!("svc-{n}"), n + 1));
    fill(&mut world);
    world.list().await;
    let mut proxies = Vec::new();
    let start = Instant::now();
    for n in 0..300u32 {
        let (namespace, name) = (format!("ns-{}", n % 10), format!("svc-{n}"));
        let connector = world.connector(Some(world.identity(&namespace, &name)));
        let ip = Ipv4Addr::from(0x0af4_0001 + n).into();
        proxies.push(Proxy::start(connector, node(&namespace, &name, ip), None));
    }
    for proxy in &mut proxies {
        proxy.until("everything", |g| count(g, &Endpoint) >= 300 && count(g, &Listener) > 0).await;
    }
    println!("300 proxies connected and complete: {:?}", start.elapsed());
    let report = |what: &str, answer: Value| println!("{what}: {} s", answer["elapsedSeconds"]);
    let version = world.apply(Kind::PeerAuthentication, strict("istio-system", None)).await;
    report("mesh-wide STRICT", distributed(&world, version).await);
    let version = world.delete(Kind::PeerAuthentication, "istio-system", "default").await;
    report("and back", distributed(&world, version).await);
    let version = world.apply(Kind::EndpointSlice, slice("ns-1", "svc-1", &["10.244.0.2", "10.244.9.9"])).await;
    report("one endpoint", distributed(&world, version).await);
    let rule = json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
        "metadata": {"name": "all", "namespace": "istio-system", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"host": "*.local", "trafficPolicy": {"tls": {"mode": "DISABLE"}}}});
    let version = world.apply(Kind::DestinationRule, rule).await;
    report("a rule for all clusters", distributed(&world, version).await);
    let updates: usize = proxies.iter().map(Proxy::updates).sum();
    let address = world.control.xds_addr();
    drop(world);
    let mut world = World::start(authority, address).await;
    fill(&mut world);
    let rule = json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
        "metadata": {"name": "all", "namespace": "istio-system", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"host": "*.local", "trafficPolicy": {"tls": {"mode": "DISABLE"}}}});
    world.put(Kind::DestinationRule, rule);
    let slice = slice("ns-1", "svc-1", &["10.244.0.2", "10.244.9.9"]);
    world.put(Kind::EndpointSlice, slice);
    let start = Instant::now();
    world.list().await;
    loop {
        let state = world.json("/debug/distribution").await;
        let acked = state["proxies"]
            .as_array()
            .map_or(0, |p| p.iter().filter(|p| p["acknowledged"].as_u64().is_some_and(|n| n > 0)).count());
        if acked == 300 {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{acked}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!(
        "restart, 300 proxies back: {:?}, resources sent again: {}",
        start.elapsed(),
        proxies.iter().map(Proxy::updates).sum::<usize>() - updates
    );
    for t in TypeUrl::ORDERED {
        println!("{t:?}: {} held", proxies[0].got.lock().expect("got").held.get(&t).map_or(0, |m| m.len()));
    }
}
