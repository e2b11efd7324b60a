//! Who may connect, and as what.

use crate::fixture::{Proxy, World, authority, count, node};
use carrick_xds::TypeUrl;
use std::net::Ipv4Addr;

fn refused(proxy: &Proxy, with: &str) -> bool {
    proxy.got.lock().expect("got").reasons.iter().any(|r| r.contains(with))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_proven_identity_gets_its_own_configuration() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut world = World::new(authority(dir.path())).await;
    world.service("shop", "web", 1);
    world.list().await;
    let ip = Ipv4Addr::new(10, 244, 0, 1).into();

    // By certificate.
    let mut proxy = Proxy::start(world.connector(Some(world.identity("shop", "web"))), node("shop", "web", ip), None);
    proxy.until("listeners", |g| count(g, &TypeUrl::Listener) > 0).await;
    proxy.stop().await;
    // By token.
    let mut proxy = Proxy::start(world.connector(None), node("shop", "web", ip), Some("shop/web"));
    proxy.until("listeners", |g| count(g, &TypeUrl::Listener) > 0).await;
    proxy.stop().await;

    for (what, identity, token, namespace, expected) in [
        ("no proof", None, None, "shop", "Unauthenticated"),
        ("a token of nobody", None, Some("nobody"), "shop", "Unauthenticated"),
        ("the reviewer is away", None, Some("down"), "shop", "Unavailable"),
        ("another namespace's token", None, Some("bank/web"), "shop", "PermissionDenied"),
        ("another account's token", None, Some("shop/api"), "shop", "PermissionDenied"),
        ("another namespace's certificate", Some(("bank", "web")), None, "shop", "PermissionDenied"),
        ("another account's certificate", Some(("shop", "api")), None, "shop", "PermissionDenied"),
        (
            "a certificate, and a token of the right one",
            Some(("bank", "web")),
            Some("shop/web"),
            "shop",
            "PermissionDenied",
        ),
    ] {
        let identity = identity.map(|(namespace, account)| world.identity(namespace, account));
        let mut proxy = Proxy::start(world.connector(identity), node(namespace, "web", ip), token);
        proxy.until(what, |g| !g.reasons.is_empty()).await;
        assert!(refused(&proxy, expected), "{what}: {:?}", proxy.got.lock().expect("got").reasons);
        assert_eq!(proxy.updates(), 0, "{what}");
        proxy.stop().await;
    }

    // A certificate of another authority does not get as far as that.
    let other = tempfile::tempdir().expect("tempdir");
    let stranger = World::new(authority(other.path())).await;
    let mut proxy =
        Proxy::start(world.connector(Some(stranger.identity("shop", "web"))), node("shop", "web", ip), None);
    proxy.until("the handshake to fail", |g| !g.reasons.is_empty()).await;
    assert_eq!(proxy.updates(), 0);
    proxy.stop().await;
    world.control.drain(std::time::Duration::from_secs(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_without_proof_serves_grpc_libraries_alone() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut world = World::with_plain_port(authority(dir.path())).await;
    world.service("shop", "web", 1);
    world.list().await;
    let ip = Ipv4Addr::new(10, 244, 0, 9).into();
    let plain = || carrick_xds::client::Connector::Plain {
        address: world.control.plain_xds_addr().expect("a port").to_string(),
    };

    let mut proxy = Proxy::start(plain(), node("shop", "web", ip), None);
    proxy.until("refusal", |g| !g.reasons.is_empty()).await;
    assert!(refused(&proxy, "Unauthenticated"));
    assert_eq!(proxy.updates(), 0);
    proxy.stop().await;

    let mut library = node("shop", "client", ip);
    library.metadata.get_or_insert_default().fields.insert("GENERATOR".into(), carrick_xds::node::text("grpc"));
    let mut proxy = Proxy::start(plain(), library, None);
    proxy.until("listeners", |g| count(g, &TypeUrl::Listener) > 0).await;
    {
        let got = proxy.got.lock().expect("got");
        assert!(got.held[&TypeUrl::Listener].contains_key("web.shop.svc.cluster.local:80"), "{:?}", got.held);
    }
    proxy.stop().await;
    world.control.drain(std::time::Duration::from_secs(2)).await;
}
