//! Sidecars that Istio injected, at our control plane: the certificate and the streams that `pilot-agent` asks for, in its words.
//!
//! Invariant: what is sent here is what Istio's agent sends (its node's metadata, its own requests between Envoy's, no node but in the
//! first request); no code of ours that speaks for our own agents is used.

use crate::fixture::{World, authority, connector};
use carrick_pki::Identity;
use carrick_pki::ca_service::{CertificateClient, IstioCertificateRequest};
use carrick_xds::client::open_channel;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use futures_util::{Stream, stream};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::Request;

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
const ENDPOINT: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const NAMES: &str = "type.googleapis.com/istio.networking.nds.v1.NameTable";
const PROXY_CONFIG: &str = "type.googleapis.com/istio.mesh.v1alpha1.ProxyConfig";
const HEALTH: &str = "type.googleapis.com/istio.v1.HealthInformation";

/// The node as Istio's agent writes it into Envoy's bootstrap.
fn node() -> Node {
    let metadata = json!({
        "NAME": "web-7d9f-abcde", "NAMESPACE": "shop", "SERVICE_ACCOUNT": "web", "CLUSTER_ID": "Kubernetes",
        "ISTIO_VERSION": "1.27.0", "MESH_ID": "cluster.local", "INTERCEPTION_MODE": "REDIRECT",
        "INSTANCE_IPS": "10.244.0.1,fe80::1", "WORKLOAD_NAME": "web", "NODE_NAME": "node-1",
        "OWNER": "kubernetes://apis/apps/v1/namespaces/shop/deployments/web",
        "LABELS": { "app": "web", "security.istio.io/tlsMode": "istio", "service.istio.io/canonical-revision": "latest" },
        "ANNOTATIONS": { "istio.io/rev": "default", "sidecar.istio.io/status": "{}" },
        "APP_CONTAINERS": "web", "POD_PORTS": "[\n    {\"containerPort\":8080,\"protocol\":\"TCP\"}\n]",
        "DNS_CAPTURE": "true", "DNS_AUTO_ALLOCATE": "true", "ENVOY_PROMETHEUS_PORT": 15090, "ENVOY_STATUS_PORT": 15021,
        "PILOT_SAN": ["istiod.istio-system.svc"], "PLATFORM_METADATA": {}, "UNPRIVILEGED_POD": "true",
        "PROXY_CONFIG": { "concurrency": 2, "discoveryAddress": "istiod.istio-system.svc:15012", "statusPort": 15020,
            "drainDuration": "45s", "proxyMetadata": { "ISTIO_META_DNS_CAPTURE": "true" } },
    });
    let fields = metadata.as_object().expect("an object").iter().map(|(key, v)| (key.clone(), value(v))).collect();
    Node {
        id: "sidecar~10.244.0.1~web-7d9f-abcde.shop~shop.svc.cluster.local".to_owned(),
        cluster: "web.shop".to_owned(),
        metadata: Some(Struct { fields }),
        user_agent_name: "envoy".to_owned(),
        ..Node::default()
    }
}

fn value(json: &serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Number(number) => Kind::NumberValue(number.as_f64().expect("a number")),
        serde_json::Value::String(text) => Kind::StringValue(text.clone()),
        serde_json::Value::Array(list) => {
            Kind::ListValue(envoy_types::pb::google::protobuf::ListValue { values: list.iter().map(value).collect() })
        }
        serde_json::Value::Object(map) => {
            Kind::StructValue(Struct { fields: map.iter().map(|(key, v)| (key.clone(), value(v))).collect() })
        }
        other => panic!("{other}"),
    };
    Value { kind: Some(kind) }
}

/// An RSA key and a request that names the workload, as Istio's agent makes them.
fn request(dir: &std::path::Path) -> (String, String) {
    let (key, csr) = (dir.join("key.pem"), dir.join("csr.pem"));
    let made = Command::new("openssl")
        .args(["req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", "/O=", "-sha256"])
        .args(["-addext", "subjectAltName=critical,URI:spiffe://cluster.local/ns/shop/sa/web"])
        .args(["-keyout", &key.display().to_string(), "-out", &csr.display().to_string()])
        .output()
        .expect("openssl");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let read = |path| std::fs::read_to_string(path).expect("readable");
    (read(&key), read(&csr))
}

fn told<T>(receiver: mpsc::Receiver<T>) -> impl Stream<Item = T> {
    stream::unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|item| (item, receiver)) })
}

async fn certificate(world: &World, dir: &std::path::Path) -> Identity {
    let (key, csr) = request(dir);
    let mut message = IstioCertificateRequest { csr, validity_duration: 86_400, metadata: None };
    // The signer of Kubernetes' requests; none.
    message.metadata.get_or_insert_default().fields.insert("CertSigner".to_owned(), Default::default());
    let mut request = Request::new(message);
    request.metadata_mut().insert("clusterid", "Kubernetes".parse().expect("header"));
    request.metadata_mut().insert("authorization", "Bearer shop/web".parse().expect("header"));
    let channel = open_channel(&world.connector(None)).await.expect("connects");
    let answer = CertificateClient::new(channel).create_certificate(request).await.expect("signed").into_inner();
    assert!(answer.cert_chain.len() > 1, "the agent takes fewer for none: {:?}", answer.cert_chain);
    let roots = answer.cert_chain.last().expect("roots");
    assert_eq!(roots.trim(), world.authority.roots().to_pem().trim(), "the last one is what peers are verified with");
    Identity::from_pem(answer.cert_chain[..answer.cert_chain.len() - 1].concat().as_bytes(), key.as_bytes())
        .expect("fits the key")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_istio_sidecar_gets_its_certificate_and_its_configuration() {
    let dir = tempfile::tempdir().expect("tempdir");
    let mut world = World::new(authority(dir.path())).await;
    world.service("shop", "web", 1);
    world.list().await;
    let identity = certificate(&world, dir.path()).await;
    assert_eq!(identity.spiffe.as_ref().map(|s| s.as_str()), Some("spiffe://cluster.local/ns/shop/sa/web"));

    let channel =
        open_channel(&connector(&world.authority, world.control.xds_addr(), Some(identity))).await.expect("mTLS");
    let (sender, receiver) = mpsc::channel(16);
    let ask = |type_url: &str, names: &[&str], node: Option<Node>| DeltaDiscoveryRequest {
        node,
        type_url: type_url.to_owned(),
        resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    };
    sender.send(ask(CLUSTER, &["*"], Some(node()))).await.expect("open");
    let requests = told(receiver);
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let mut answers = client.delta_aggregated_resources(requests).await.expect("a stream").into_inner();
    let mut got: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut listeners = String::new();
    let end = tokio::time::Instant::now() + Duration::from_secs(15);
    while ![CLUSTER, ENDPOINT, LISTENER, NAMES].iter().all(|wanted| got.contains_key(*wanted)) {
        let answer = tokio::time::timeout_at(end, answers.message()).await;
        let answer =
            answer.unwrap_or_else(|_| panic!("not in time: {:?}", got.keys())).expect("no error").expect("open");
        let names = answer.resources.iter().map(|r| r.name.clone()).collect::<Vec<_>>();
        let ack = DeltaDiscoveryRequest {
            type_url: answer.type_url.clone(),
            response_nonce: answer.nonce.clone(),
            ..Default::default()
        };
        sender.send(ack).await.expect("open");
        if answer.type_url == LISTENER {
            listeners = String::from_utf8_lossy(
                &answer
                    .resources
                    .iter()
                    .filter_map(|r| r.resource.as_ref())
                    .flat_map(|r| r.value.clone())
                    .collect::<Vec<_>>(),
            )
            .into_owned();
        }
        let first = !got.contains_key(&answer.type_url);
        got.entry(answer.type_url.clone()).or_default().extend(names);
        if first && answer.type_url == CLUSTER {
            let served = "outbound|80||web.shop.svc.cluster.local";
            assert!(got[CLUSTER].contains(served), "{:?}", got[CLUSTER]);
            sender.send(ask(ENDPOINT, &[served], None)).await.expect("open");
            sender.send(ask(LISTENER, &["*"], None)).await.expect("open");
            // The agent's own, between Envoy's.
            for own in [NAMES, PROXY_CONFIG, HEALTH] {
                sender.send(ask(own, &[], None)).await.expect("open");
            }
        }
    }
    assert!(got[LISTENER].contains("virtualInbound"), "{:?}", got[LISTENER]);
    for word in ["sds-grpc", "default", "ROOTCA"] {
        assert!(listeners.contains(word), "secrets are asked of the agent's socket, by its names: {word}");
    }
    drop(sender);

    // Agents that are told not to speak delta.
    let mut request = Request::new(told({
        let (sender, receiver) = mpsc::channel(16);
        let ask = |type_url: &str, node| DiscoveryRequest { node, type_url: type_url.to_owned(), ..Default::default() };
        sender.send(ask(LISTENER, Some(node()))).await.expect("open");
        for own in [NAMES, PROXY_CONFIG, HEALTH] {
            sender.send(ask(own, None)).await.expect("open");
        }
        tokio::spawn(async move { sender.closed().await });
        receiver
    }));
    request.metadata_mut().insert("authorization", "Bearer shop/web".parse().expect("header"));
    request.metadata_mut().insert("clusterid", "Kubernetes".parse().expect("header"));
    let channel = open_channel(&world.connector(None)).await.expect("TLS");
    let mut client = AggregatedDiscoveryServiceClient::new(channel);
    let mut answers = client.stream_aggregated_resources(request).await.expect("a stream").into_inner();
    let mut missing = BTreeSet::from([LISTENER.to_owned(), NAMES.to_owned()]);
    while !missing.is_empty() {
        let answer = tokio::time::timeout(Duration::from_secs(15), answers.message()).await;
        let answer = answer.unwrap_or_else(|_| panic!("not in time: {missing:?}")).expect("no error").expect("open");
        missing.remove(&answer.type_url);
    }
    world.control.drain(Duration::from_secs(2)).await;
}
