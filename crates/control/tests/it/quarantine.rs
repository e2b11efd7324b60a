//! A quarantine reaches a proxy without any configuration, and the authority and the list agree.

use crate::fixture::{World, authority, node};
use carrick_control::source::Kind;
use carrick_pki::ca_service::{CertificateClient, IstioCertificateRequest};
use carrick_pki::{KeyAlgorithm, csr};
use carrick_runtime::drain;
use carrick_xds::TypeUrl;
use carrick_xds::client::{ClientOptions, Connector, Handler, Interest, Nack, Update, open_channel, run};
use carrick_xds::node::text;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tonic::{Code, Request, Status};

const EVIL: &str = "spiffe://cluster.local/ns/shop/sa/evil";

struct Ear(mpsc::UnboundedSender<Vec<u8>>);

impl Handler for Ear {
    fn interests(&self) -> Vec<(TypeUrl, Interest)> {
        vec![(TypeUrl::Secret, Interest::Names(BTreeSet::from(["carrick-quarantine".into()])))]
    }

    fn apply(&mut self, update: Update) -> Result<(), Nack> {
        update.upserts.into_iter().for_each(|resource| drop(self.0.send(resource.body.value)));
        Ok(())
    }
}

fn list(text: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "carrick-quarantine", "namespace": "istio-system"}, "data": {"entries": text}})
}

async fn ask(world: &World, token: &str) -> Result<(), Status> {
    request(&world.connector(None), Some(token)).await
}

/// A certificate is asked for over a new connection.
pub(crate) async fn request(way: &Connector, token: Option<&str>) -> Result<(), Status> {
    let (_, csr) = csr::new(KeyAlgorithm::default()).expect("a request");
    let channel = open_channel(way).await.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = Request::new(IstioCertificateRequest { csr, validity_duration: 0, metadata: None });
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("a header"));
    }
    CertificateClient::new(channel).create_certificate(request).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_reaches_proxies_at_once_and_the_authority_keeps_to_it() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut world = World::new(authority(dir.path())).await;
    let mut node = node("shop", "web", IpAddr::V4(Ipv4Addr::new(10, 244, 0, 1)));
    let fields = &mut node.metadata.get_or_insert_default().fields;
    fields.insert("GENERATOR".into(), text("carrick-trust"));
    fields.insert("CARRICK_ENGINE".into(), text("native"));
    fields.insert("CARRICK_SERIAL".into(), text("4a"));
    let (sender, mut heard) = mpsc::unbounded_channel();
    let (trigger, until) = drain::channel();
    let options = ClientOptions::new(world.connector(Some(world.identity("shop", "web"))), node);
    let following = tokio::spawn(async move { drop(run(options, Ear(sender), until).await) });
    let mut next = async || {
        let bytes = tokio::time::timeout(Duration::from_secs(20), heard.recv()).await.expect("a list").expect("open");
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let first = next().await;
    assert!(first.contains("carrick-quarantine 1") && !first.contains("identity"), "{first}");

    // Nothing was listed yet, so that no configuration can have been pushed: the list is not held up by that.
    ask(&world, "shop/evil").await.expect("a certificate");
    let start = Instant::now();
    let text = format!(r#"[{{"identity": "{EVIL}", "reason": "stolen", "by": "ann"}}]"#);
    let version = world.apply(Kind::ConfigMap, list(&text)).await;
    assert!(next().await.contains(EVIL));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let refused = ask(&world, "shop/evil").await.expect_err("quarantined");
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(refused.message(), format!("{EVIL} is quarantined: stolen"));
    ask(&world, "shop/web").await.expect("others get theirs");

    // Who shows a certificate of that identity gets no connection at all.
    let evil = world.connector(Some(world.identity("shop", "evil")));
    let begin = Instant::now();
    while request(&evil, None).await.is_err_and(|status| status.code() == Code::PermissionDenied) {
        assert!(begin.elapsed() < Duration::from_secs(20), "the handshake still goes through");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let refused = request(&evil, None).await.expect_err("quarantined");
    // The connection ends; in TLS 1.3 that may be seen by the first request only.
    assert!(matches!(refused.code(), Code::Unavailable | Code::Cancelled | Code::Unknown), "{refused}");
    request(&world.connector(Some(world.identity("shop", "web"))), None).await.expect("others are let in");

    let begin = Instant::now();
    let page = loop {
        let page = world.json("/debug/quarantine").await;
        if page["proxies"][0]["generation"] == page["generation"] {
            break page;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "{page}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(page["resourceVersion"], json!(version.to_string()));
    assert_eq!((&page["proxies"][0]["proxy"], &page["proxies"][0]["serial"]), (&json!("web.shop"), &json!("4a")));

    // Without a ledger nobody knows which certificates an identity has; a list without entries is one all the same.
    let (status, pem) = world.get("/debug/crl").await;
    assert_eq!(status, 200, "{pem}");
    let roots = world.authority.roots().clone().with_revocations(pem.as_bytes()).expect("a revocation list");
    assert!(roots.revocations_pem().starts_with("-----BEGIN X509 CRL-----"));

    // What cannot be read, and what is gone, lets nobody out.
    world.apply(Kind::ConfigMap, list("garbage")).await;
    world.delete(Kind::ConfigMap, "istio-system", "carrick-quarantine").await;
    world.apply(Kind::ConfigMap, list("[]")).await;
    assert!(!next().await.contains(EVIL), "the next list after the one that named it is the empty one");
    ask(&world, "shop/evil").await.expect("a certificate again");
    trigger.drain(Duration::from_secs(2)).await;
    following.await.expect("ends");
}
