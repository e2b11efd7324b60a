//! The mesh's own authority as an issuer.

use std::sync::Arc;
use std::time::SystemTime;

use carrick_pki::{Authority, CaOptions};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::{World, value};

fn wish(fields: Value) -> Value {
    let mut spec = json!({"secretName": "mesh-tls", "duration": "24h", "privateKey": {"algorithm": "ECDSA"},
        "issuerRef": {"name": "mesh", "kind": "ClusterIssuer"}});
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_meshs_authority_signs_names_and_identities_of_ones_own_namespace() {
    let mut roots = String::new();
    let world = World::with(|folder, issuing| {
        let authority = Authority::load_or_create(&folder.join("ca"), CaOptions::default(), SystemTime::now()).unwrap();
        roots = authority.roots().to_pem();
        issuing.with_authority(Arc::new(authority))
    })
    .await;
    world.cert_manager("ClusterIssuer", "mesh", json!({"ca": {"secretName": "istio-ca-secret"}})).await;
    assert_eq!(world.ready("ClusterIssuer", "mesh", "True").await, "The mesh's authority signs");
    world
        .cert_manager(
            "Certificate",
            "web",
            wish(json!({"dnsNames": ["a.example", "web.example"], "commonName": "web.example"})),
        )
        .await;
    world.ready("Certificate", "web", "True").await;
    let (info, secret) = world.certificate("mesh-tls", |_| true).await;
    assert_eq!((info.subject.as_str(), info.is_ca), ("CN=web.example", false));
    assert_eq!(value(&secret, "ca.crt").unwrap(), roots.as_bytes());
    let own = json!({"secretName": "own", "uris": ["spiffe://cluster.local/ns/shop/sa/web"]});
    world.cert_manager("Certificate", "own", wish(own)).await;
    world.ready("Certificate", "own", "True").await;
    let (info, _) = world.certificate("own", |_| true).await;
    assert_eq!(info.uris, ["spiffe://cluster.local/ns/shop/sa/web"]);
    // Nobody gets what would be somebody else's, and the certificate that is there stays.
    let refused = [
        (json!({"uris": ["spiffe://cluster.local/ns/bank/sa/web"]}), "is no identity of this namespace"),
        (json!({"uris": ["spiffe://elsewhere/ns/shop/sa/web"]}), "is no identity of this namespace"),
        (json!({"isCA": true, "commonName": "x"}), "signs no other authorities"),
        (json!({"dnsNames": ["a.b"], "uris": ["spiffe://cluster.local/ns/shop/sa/web"]}), "not both"),
    ];
    for (index, (fields, why)) in refused.into_iter().enumerate() {
        let name = format!("bad{index}");
        let mut spec = wish(fields);
        spec["secretName"] = name.clone().into();
        world.cert_manager("Certificate", &name, spec).await;
        let event = world.event(&name, "Failed").await;
        assert!(event.message.as_deref().unwrap().contains(why), "{event:?}");
    }
    // A namespaced issuer elsewhere means a secret of its own.
    world.cert_manager("Issuer", "mesh", json!({"ca": {"secretName": "istio-ca-secret"}})).await;
    world.ready("Issuer", "mesh", "False").await;
    let api = world.api("cert-manager.io", "v1", "Certificate");
    let patch = json!({"spec": {"duration": "1h", "dnsNames": ["web.example", "new.example"]}});
    api.patch("web", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    world.certificate("mesh-tls", |info| info.dns.iter().any(|name| name == "new.example")).await;
}
