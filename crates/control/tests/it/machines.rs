//! Machines from their join token to the end of their WorkloadEntry, against the embedded API.

use crate::cluster::{client, object};
use crate::fixture::{Proxy, World, authority, local, node};
use carrick_apiserver::{ApiOptions, ApiServer};
use carrick_control::machines::{TokenRecord, TokenStore};
use carrick_control::{Control, ControlOptions};
use carrick_pki::ca_service::{CertificateClient, IstioCertificateRequest, PROFILE, ROOTS};
use carrick_pki::join::{JoinToken, fingerprint};
use carrick_pki::{Identity, KeyAlgorithm, PrivateKey, csr};
use carrick_xds::client::open_channel;
use carrick_xds::health::Health;
use carrick_xds::name_table::NameTable;
use carrick_xds::node::text;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, PostParams};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tonic::{Code, Response, Status};

const HOUR: Duration = Duration::from_secs(3600);

fn api(client: &kube::Client, kind: &str, plural: &str) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk("networking.istio.io", "v1", kind);
    Api::namespaced_with(
        client.clone(),
        "gopay",
        &ApiResource { plural: plural.to_owned(), ..ApiResource::from_gvk(&gvk) },
    )
}

async fn ask(
    world: &World,
    token: Option<&JoinToken>,
    key: &PrivateKey,
) -> Result<Response<carrick_pki::ca_service::IstioCertificateResponse>, Status> {
    let channel = open_channel(&world.connector(None)).await.expect("connects");
    let csr = csr::of(key).expect("a request");
    let mut request = tonic::Request::new(IstioCertificateRequest { csr, ..Default::default() });
    if let Some(token) = token {
        let header = format!("Bearer {}", *token.expose()).parse().expect("header");
        request.metadata_mut().insert("authorization", header);
    }
    CertificateClient::new(channel).create_certificate(request).await
}

fn key() -> PrivateKey {
    PrivateKey::generate(KeyAlgorithm::default()).expect("a key")
}

async fn entry_when(
    entries: &Api<DynamicObject>,
    what: &str,
    wanted: impl Fn(Option<&Value>) -> bool,
) -> Option<Value> {
    let look = async {
        loop {
            let found = entries.get_opt("ledger-192.0.2.7").await.expect("API");
            let found = found.map(|entry| serde_json::to_value(entry).expect("JSON"));
            if wanted(found.as_ref()) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), look).await.unwrap_or_else(|_| panic!("{what}"))
}

fn healthy(entry: &Value) -> Option<&str> {
    let conditions = entry["status"]["conditions"].as_array()?;
    conditions.iter().find(|c| c["type"] == "Healthy")?["status"].as_str()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machines_life() {
    let dir = tempfile::tempdir().expect("tempdir");
    let server = ApiServer::start(ApiOptions::new(dir.path().join("api"), 0)).await.expect("API");
    let client = client(&server).await;
    let create = PostParams::default();
    for name in ["gopay", "istio-system"] {
        let namespaces: Api<Namespace> = Api::all(client.clone());
        if namespaces.get_opt(name).await.expect("API").is_none() {
            namespaces.create(&create, &object(json!({"metadata": {"name": name}}))).await.expect("namespace");
        }
    }
    let groups = api(&client, "WorkloadGroup", "workloadgroups");
    let group = json!({"apiVersion": "networking.istio.io/v1", "kind": "WorkloadGroup",
        "metadata": {"name": "ledger", "namespace": "gopay"},
        "spec": {"metadata": {"labels": {"app": "ledger"}}, "template": {"serviceAccount": "ledger", "ports": {"http": 8080}},
                 "probe": {"httpGet": {"port": 8080}}}});
    groups.create(&create, &object(group)).await.expect("group");
    let services: Api<k8s_openapi::api::core::v1::Service> = Api::namespaced(client.clone(), "gopay");
    let service = json!({"metadata": {"name": "ledger"},
        "spec": {"selector": {"app": "ledger"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}});
    let service = services.create(&create, &object(service)).await.expect("service");
    let cluster_ip = service.spec.and_then(|s| s.cluster_ip).expect("a cluster IP");

    let authority = authority(&dir.path().join("ca"));
    let mut options = ControlOptions::new(client.clone(), authority.clone(), Default::default());
    (options.xds_addr, options.debug_addr) = (local(0), local(0));
    options.machine_grace = Duration::from_millis(300);
    let control = Control::start(options).await.expect("starts");
    tokio::time::timeout(Duration::from_secs(10), control.ready()).await.expect("everything is listed");
    let world = World::of(control, authority);

    // Who comes with nothing is told the roots, and gets nothing.
    let status = ask(&world, None, &key()).await.expect_err("nothing shown");
    assert_eq!(status.code(), Code::Unauthenticated);
    let roots = status.metadata().get_bin(ROOTS).and_then(|v| v.to_bytes().ok()).expect("roots");
    let root = carrick_pki::pem::certificates(&roots).expect("PEM").remove(0);
    assert_eq!(fingerprint(&root), fingerprint(&world.authority.roots().roots()[0]));

    // One token, one key; the same key again.
    let store = TokenStore::new(client.clone(), "istio-system");
    let token = JoinToken::generate().expect("token");
    let of_group = ["gopay", "ledger", "ledger"];
    store.create(&token, &TokenRecord::new(&token, of_group, SystemTime::now(), HOUR)).await.expect("kept");
    let (first, second) = (key(), key());
    let (a, b) = tokio::join!(ask(&world, Some(&token), &first), ask(&world, Some(&token), &second));
    assert!(a.is_ok() != b.is_ok(), "exactly one of two at the same moment: {a:?} {b:?}");
    let (winner, answer, refused) = match (a, b) {
        (Ok(answer), Err(refused)) => (first, answer, refused),
        (Err(refused), Ok(answer)) => (second, answer, refused),
        _ => unreachable!(),
    };
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(refused.message().contains("already used at"), "{refused:?}");
    let told = answer.metadata().get_bin(PROFILE).and_then(|v| v.to_bytes().ok()).expect("a profile");
    let told: Value = serde_json::from_slice(&told).expect("JSON");
    assert_eq!(
        (&told["group"], &told["ports"], &told["labels"]),
        (&json!("ledger"), &json!({"http": 8080}), &json!({"app": "ledger"}))
    );
    let again = ask(&world, Some(&token), &winner).await.expect("cut off, and again");
    let chain = again.into_inner().cert_chain;
    let identity = Identity::from_pem(chain[0].as_bytes(), winner.to_pem().as_bytes()).expect("fits the key");
    assert_eq!(identity.spiffe.as_ref().map(|s| s.as_str()), Some("spiffe://cluster.local/ns/gopay/sa/ledger"));
    assert_eq!(store.list(Some("gopay")).await.expect("list")[0].record.state(SystemTime::now()), "used");

    // Expired, revoked, and for a group whose account is another by now.
    for (what, record, keep, reason) in [
        ("expired", TokenRecord::new(&token, of_group, SystemTime::now() - HOUR, HOUR), true, "expired"),
        ("revoked", TokenRecord::new(&token, of_group, SystemTime::now(), HOUR), false, "not known"),
        (
            "another account",
            TokenRecord::new(&token, ["gopay", "ledger", "admin"], SystemTime::now(), HOUR),
            true,
            "by now",
        ),
        (
            "another group",
            TokenRecord::new(&token, ["gopay", "gone", "ledger"], SystemTime::now(), HOUR),
            true,
            "is gone",
        ),
    ] {
        let token = JoinToken::generate().expect("token");
        store.create(&token, &TokenRecord { digest: token.digest(), ..record }).await.expect("kept");
        if !keep {
            assert!(store.delete(token.id()).await.expect("revoked"));
        }
        let status = ask(&world, Some(&token), &key()).await.expect_err(what);
        assert_eq!(status.code(), Code::Unauthenticated, "{what}");
        assert!(status.message().contains(reason), "{what}: {status:?}");
    }

    // It connects by its certificate: its entry is made; ill until it says otherwise.
    let entries = api(&client, "WorkloadEntry", "workloadentries");
    let ip: IpAddr = "192.0.2.7".parse().expect("an address");
    let machine = |group: &str, account: &str| {
        let mut node = node("gopay", account, ip);
        let fields = &mut node.metadata.get_or_insert_default().fields;
        fields.insert("AUTO_REGISTER_GROUP".into(), text(group));
        fields.insert("DNS_CAPTURE".into(), text("true"));
        fields.insert("LABELS".into(), carrick_xds::node::map([(&"app".to_owned(), &"ledger".to_owned())]));
        node
    };
    let (health, told) = watch::channel(None);
    let mut proxy =
        Proxy::telling(world.connector(Some(identity.clone())), machine("ledger", "ledger"), None, &[], Some(told));
    let entry = entry_when(&entries, "registered", |entry| entry.is_some()).await.expect("an entry");
    assert_eq!((&entry["spec"]["address"], &entry["spec"]["serviceAccount"]), (&json!("192.0.2.7"), &json!("ledger")));
    assert_eq!(entry["metadata"]["ownerReferences"][0]["kind"], "WorkloadGroup");
    proxy
        .until("names of the mesh", |got| {
            let tables = got.held.get(&NameTable::type_url()).into_iter().flat_map(|held| held.values());
            tables.filter_map(NameTable::read).any(|table| {
                table.table.get("ledger.gopay.svc.cluster.local").is_some_and(|name| name.ips == [cluster_ip.clone()])
            })
        })
        .await;
    for (told, expected) in
        [(Health::Healthy, "True"), (Health::Ill("HTTP status 503".into()), "False"), (Health::Healthy, "True")]
    {
        health.send_replace(Some(told));
        entry_when(&entries, expected, |entry| entry.is_some_and(|e| healthy(e) == Some(expected))).await;
    }

    // Others may not register in its place.
    for (group, account, reason) in
        [("gone", "ledger", "there is no WorkloadGroup"), ("ledger", "web", "may not register")]
    {
        let other = world.identity("gopay", account);
        let mut refused = Proxy::start(world.connector(Some(other)), machine(group, account), None);
        refused.until(reason, |got| got.reasons.iter().any(|told| told.contains(reason))).await;
        refused.stop().await;
    }

    // It goes, and comes back in time: the entry stays. It goes for good: the entry too.
    proxy.stop().await;
    entry_when(&entries, "marked", |e| {
        e.is_some_and(|e| e["metadata"]["annotations"]["istio.io/disconnectedAt"].is_string())
    })
    .await;
    let back = Proxy::start(world.connector(Some(identity)), machine("ledger", "ledger"), None);
    let entry = entry_when(&entries, "back", |e| {
        e.is_some_and(|e| e["metadata"]["annotations"]["istio.io/disconnectedAt"].is_null())
    })
    .await
    .expect("an entry");
    tokio::time::sleep(Duration::from_millis(600)).await;
    let still = entry_when(&entries, "still there", |entry| entry.is_some()).await.expect("an entry");
    assert_eq!(still["metadata"]["uid"], entry["metadata"]["uid"], "the same entry, after the grace of its absence");
    assert_eq!(healthy(&still), Some("True"), "what is known of its health stays");
    back.stop().await;
    entry_when(&entries, "removed", |entry| entry.is_none()).await;

    world.control.drain(Duration::from_secs(2)).await;
    server.drain(Duration::from_secs(2)).await;
}
