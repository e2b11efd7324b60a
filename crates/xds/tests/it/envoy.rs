//! A real Envoy as the client of our server, delta and state of the world: warming, refusal, reconnection.
//!
//! Envoy is found by `CARRICK_ENVOY`, then as `envoy` in `PATH`; without it these tests fail. It speaks over Unix sockets
//! only, so nothing here takes a port.

use crate::grpc::{FixedSource, Served};
use carrick_xds::TypeUrl::{Cluster, Endpoint};
use carrick_xds::{Resource, ResourceSet};
use envoy_types::pb::envoy::config::cluster::v3 as cds;
use envoy_types::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, ConfigSource, SocketAddress, address::Address as AddressKind,
    config_source::ConfigSourceSpecifier, socket_address::PortSpecifier,
};
use envoy_types::pb::envoy::config::endpoint::v3 as eds;
use envoy_types::pb::google::protobuf::Duration as ProtoDuration;
use envoy_types::util::pack_any;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn binary() -> PathBuf {
    match std::env::var_os("CARRICK_ENVOY") {
        Some(path) => path.into(),
        None => "envoy".into(),
    }
}

struct Envoy {
    child: Child,
    admin: PathBuf,
    log: PathBuf,
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Envoy {
    fn start(dir: &Path, xds: &Path, api_type: &str) -> Self {
        let admin = dir.join("admin.sock");
        let log = dir.join("envoy.log");
        let bootstrap = json!({
            "node": {"id": "sidecar~10.0.0.1~web.shop~shop.svc.cluster.local", "cluster": "web.shop"},
            "admin": {"address": {"pipe": {"path": admin}}},
            "dynamic_resources": {
                "ads_config": {"api_type": api_type, "transport_api_version": "V3", "set_node_on_first_message_only": true,
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}]},
                "cds_config": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"},
                "lds_config": {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"},
            },
            "static_resources": {"clusters": [{
                "name": "xds", "type": "STATIC", "connect_timeout": "1s",
                "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {"http2_protocol_options": {}}}},
                "load_assignment": {"cluster_name": "xds", "endpoints": [{"lb_endpoints": [{"endpoint":
                    {"address": {"pipe": {"path": xds}}}}]}]}}]},
        });
        let config = dir.join("bootstrap.json");
        std::fs::write(&config, bootstrap.to_string()).expect("write bootstrap");
        let output = std::fs::File::create(&log).expect("log file");
        let child = Command::new(binary())
            .args(["--concurrency", "1", "--disable-hot-restart", "-l", "info", "-c"])
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .expect("Envoy: set CARRICK_ENVOY or put it into PATH");
        Self { child, admin, log }
    }

    async fn try_get(&self, path: &str) -> Option<Value> {
        let stream = tokio::net::UnixStream::connect(&self.admin).await.ok()?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        let driver = tokio::spawn(connection);
        let request = http::Request::get(path).header("host", "x").body(Empty::<&[u8]>::new()).ok()?;
        let body = sender.send_request(request).await.ok()?.into_body().collect().await.ok()?.to_bytes();
        driver.abort();
        serde_json::from_slice(&body).ok()
    }

    /// Waits until the admin page shows what is asked for.
    async fn wait<T>(&self, path: &str, what: &str, mut found: impl FnMut(&Value) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            let page = self.try_get(path).await;
            if let Some(found) = page.as_ref().and_then(&mut found) {
                return found;
            }
            if start.elapsed() > Duration::from_secs(20) {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                panic!("{what}: not so after 20 s; {path} is {page:#?}\n{log}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until a cluster is active (not warming) with this connect timeout.
    async fn active(&self, name: &str, timeout: &str) {
        self.wait("/config_dump?resource=dynamic_active_clusters", &format!("{name} active with {timeout}"), |page| {
            page.get("configs")?.as_array()?.iter().find(|c| {
                c.pointer("/cluster/name").and_then(Value::as_str) == Some(name)
                    && c.pointer("/cluster/connect_timeout").and_then(Value::as_str) == Some(timeout)
            })?;
            Some(())
        })
        .await;
    }

    async fn endpoints(&self, name: &str) -> Vec<u64> {
        self.wait("/clusters?format=json", &format!("endpoints of {name}"), |page| {
            let clusters = page.get("cluster_statuses")?.as_array()?;
            let cluster = clusters.iter().find(|c| c.get("name").and_then(Value::as_str) == Some(name))?;
            let hosts = cluster.get("host_statuses")?.as_array()?;
            Some(hosts.iter().filter_map(|h| h.pointer("/address/socket_address/port_value")?.as_u64()).collect())
        })
        .await
    }
}

/// A timeout below zero makes a cluster that Envoy refuses (a balancing policy that EDS clusters cannot have).
fn cluster(name: &str, timeout: i64) -> Resource {
    let lb_policy =
        if timeout < 0 { cds::cluster::LbPolicy::ClusterProvided } else { cds::cluster::LbPolicy::default() };
    let eds_config = ConfigSource {
        resource_api_version: ApiVersion::V3.into(),
        // For ever: a cluster that does not get its endpoints again would never become active.
        initial_fetch_timeout: Some(ProtoDuration::default()),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..Default::default()
    };
    Resource::new(
        name,
        pack_any(cds::Cluster {
            name: name.into(),
            connect_timeout: Some(ProtoDuration { seconds: timeout.abs(), nanos: 0 }),
            lb_policy: lb_policy.into(),
            cluster_discovery_type: Some(cds::cluster::ClusterDiscoveryType::Type(
                cds::cluster::DiscoveryType::Eds.into(),
            )),
            eds_cluster_config: Some(cds::cluster::EdsClusterConfig {
                eds_config: Some(eds_config),
                ..Default::default()
            }),
            ..Default::default()
        }),
    )
}

fn endpoints(name: &str, port: u32) -> Resource {
    let address = Address {
        address: Some(AddressKind::SocketAddress(SocketAddress {
            address: "127.0.0.1".into(),
            port_specifier: Some(PortSpecifier::PortValue(port)),
            ..Default::default()
        })),
    };
    let endpoint = eds::Endpoint { address: Some(address), ..Default::default() };
    Resource::new(
        name,
        pack_any(eds::ClusterLoadAssignment {
            cluster_name: name.into(),
            endpoints: vec![eds::LocalityLbEndpoints {
                lb_endpoints: vec![eds::LbEndpoint {
                    host_identifier: Some(eds::lb_endpoint::HostIdentifier::Endpoint(endpoint)),
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        }),
    )
}

/// Two clusters with these timeouts, and the port behind the first.
fn at(generation: u64, a: i64, b: i64, port: u32) -> ResourceSet {
    ResourceSet::from_resources(
        generation,
        format!("v/{generation}"),
        [
            (Cluster, cluster("a", a)),
            (Cluster, cluster("b", b)),
            (Endpoint, endpoints("a", port)),
            (Endpoint, endpoints("b", 9)),
        ],
    )
}

async fn follows(api_type: &str) {
    let dir = tempfile::tempdir().expect("tempdir");
    let socket = dir.path().join("xds.sock");
    let source = FixedSource::new(at(1, 1, 1, 1001));
    let served = Served::unix(&socket, source.clone());
    let envoy = Envoy::start(dir.path(), &socket, api_type);
    envoy.active("a", "1s").await;
    assert_eq!(envoy.endpoints("a").await, [1001]);
    source.acknowledged(1).await;

    // A cluster changes, its endpoints do not: it must not stay in warming.
    source.set(at(2, 2, 1, 1001));
    source.acknowledged(2).await;
    envoy.active("a", "2s").await;
    assert_eq!(envoy.endpoints("a").await, [1001]);

    // Endpoints alone.
    source.set(at(3, 2, 1, 1003));
    source.acknowledged(3).await;
    assert_eq!(envoy.endpoints("a").await, [1003]);

    // Both at once.
    source.set(at(4, 4, 4, 1004));
    source.acknowledged(4).await;
    envoy.active("a", "4s").await;
    envoy.active("b", "4s").await;
    assert_eq!(envoy.endpoints("a").await, [1004]);

    // One is wrong: it is refused with its name, the other one is taken over.
    source.set(at(5, 5, -5, 1004));
    source.acknowledged(5).await;
    let nack = source.status().types[&Cluster].nack.clone().expect("refused");
    assert!(nack.message.contains("cluster(s) b"), "{}", nack.message);
    envoy.active("a", "5s").await;
    envoy.active("b", "4s").await;
    source.set(at(6, 6, 6, 1006));
    source.acknowledged(6).await;
    envoy.active("b", "6s").await;
    assert_eq!(source.status().types[&Cluster].nack, None);

    // The server goes and comes back: Envoy keeps what it has, and gets only what changed meanwhile.
    served.stop().await;
    assert_eq!(envoy.endpoints("a").await, [1006]);
    let again = FixedSource::new(at(7, 6, 7, 1006));
    let _served = Served::unix(&socket, again.clone());
    again.acknowledged(7).await;
    envoy.active("b", "7s").await;
    if api_type == "DELTA_GRPC" {
        // One response of each; listeners are asked for without a version, since there never were any.
        assert_eq!(again.sent(), [("CDS", 1), ("EDS", 1), ("LDS", 1)]);
    }

    // A cluster without endpoints of its own: Envoy is told that there are none, and does not wait.
    let mut resources: Vec<_> =
        vec![(Cluster, cluster("a", 6)), (Cluster, cluster("b", 7)), (Cluster, cluster("c", 8))];
    resources.extend([(Endpoint, endpoints("a", 1006)), (Endpoint, endpoints("b", 9))]);
    again.set(ResourceSet::from_resources(8, "v/8", resources));
    again.acknowledged(8).await;
    envoy.active("c", "8s").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_follows_delta() {
    follows("DELTA_GRPC").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_follows_the_state_of_the_world() {
    follows("GRPC").await;
}
