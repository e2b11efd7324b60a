//! Istio's metrics: both sides' labels, names told in headers, changes by `istio.stats`, and text that Prometheus can read.

use crate::support::*;
use carrick_proxy::{EngineOptions, Workload};
use carrick_proxy_core::RuntimeConfig;
use carrick_proxy_core::expr;
use carrick_proxy_core::model::cluster::{Cluster, Discovery, HttpProtocol, Transport};
use carrick_proxy_core::model::filter::HttpFilter;
use carrick_proxy_core::model::listener::{ChainKind, Direction};
use carrick_proxy_core::model::metadata::{Map, Metadata, Value};
use carrick_proxy_core::model::stats::{Metric, Override, Stats, Value as Label};
use carrick_proxy_core::peer::Peer;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const HOST: &str = "app.test.svc.cluster.local";

fn named(name: &str, options: EngineOptions) -> EngineOptions {
    let workload = Workload {
        name: name.to_owned(),
        namespace: "test".to_owned(),
        app: format!("{name}-app"),
        version: "v1".to_owned(),
        canonical_service: format!("{name}-svc"),
        canonical_revision: "v1".to_owned(),
        cluster: "Kubernetes".to_owned(),
        instance: format!("{name}-1"),
        service: format!("{name}.test"),
        zone: String::new(),
        node: format!("sidecar~127.0.0.1~{name}-1.test~test.svc.cluster.local"),
    };
    EngineOptions { workload, workers: 1, ..options }
}

fn text(value: &str) -> Value {
    Value::Text(value.into())
}

fn outbound_cluster(account: &str) -> Cluster {
    let mut c = cluster(&format!("outbound|80||{HOST}"));
    c.transport =
        Transport { matches: Vec::new(), default: Arc::new(client_tls(account, &["istio-http/1.1", "http/1.1"])) };
    let service = Map::from([("host", HOST), ("name", "app"), ("namespace", "test")].map(|(k, v)| (k.into(), text(v))));
    let istio = Map::from([("services".into(), Value::List(vec![Value::Object(service)]))]);
    c.metadata = Metadata(Map::from([("istio".into(), istio)]));
    c
}

/// A caller's side whose endpoint is a mesh proxy's, or only names its workload.
fn client_side(at: SocketAddr, server: SocketAddr, mesh: bool, kind: ChainKind) -> RuntimeConfig {
    let mut set = endpoints(&[server]);
    let of = |key: &str, value: &str| Map::from([(key.into(), text(value))]);
    let metadata = &mut set.endpoints[0].metadata.0;
    metadata.insert("istio".into(), of("workload", "app-from-eds;test;app-eds;v9;Kubernetes"));
    if mesh {
        metadata.insert("envoy.transport_socket_match".into(), of("tlsMode", "istio"));
    }
    config(
        vec![listener("out", at, Direction::Outbound, vec![chain("c", kind)])],
        vec![(outbound_cluster("app"), Some(set))],
    )
}

fn server_side(at: SocketAddr, kind: ChainKind) -> RuntimeConfig {
    let mut c = chain("0.0.0.0_80", kind);
    c.matching.transport_protocol = "tls".into();
    c.tls = Some(server_tls(&["h2", "http/1.1"]));
    let mut l = listener("virtualInbound", at, Direction::Inbound, vec![c]);
    l.restore_original_dst = true;
    let mut inbound = cluster("inbound|80||");
    inbound.discovery = Discovery::OriginalDst;
    inbound.http = HttpProtocol::UseDownstream;
    config(vec![l], vec![(inbound, None)])
}

/// A metric's samples: labels and value.
type Samples = BTreeMap<String, Vec<(BTreeMap<String, String>, f64)>>;

/// Reads Prometheus text, and refuses what a scrape would refuse.
fn parse(text: &str) -> Samples {
    let mut out = Samples::new();
    let (mut families, mut series) = (BTreeSet::new(), BTreeSet::new());
    let mut family = (String::new(), String::new());
    let legal = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
    };
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("name and kind");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(legal(name) && families.insert(name.to_owned()), "twice or no name: {line}");
            family = (name.to_owned(), kind.to_owned());
            continue;
        }
        let at = line.find(['{', ' ']).unwrap_or_else(|| panic!("{line}"));
        let (name, mut rest) = line.split_at(at);
        let stem = if family.1 == "histogram" {
            ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s)).unwrap_or(name)
        } else {
            name
        };
        assert!(legal(name) && stem == family.0, "{line} below {family:?}");
        let mut labels = BTreeMap::new();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            while !rest.starts_with('}') {
                let (label, after) = rest.trim_start_matches(',').split_once("=\"").unwrap_or_else(|| panic!("{line}"));
                assert!(legal(label), "{line}");
                let (mut value, mut chars) = (String::new(), after.char_indices());
                let end = loop {
                    match chars.next().unwrap_or_else(|| panic!("{line}")) {
                        (i, '"') => break i + 1,
                        (_, '\\') => value.push(match chars.next().unwrap().1 {
                            'n' => '\n',
                            c @ ('\\' | '"') => c,
                            c => panic!("\\{c} in {line}"),
                        }),
                        (_, c) => value.push(c),
                    }
                };
                assert!(labels.insert(label.to_owned(), value).is_none(), "{label} twice: {line}");
                rest = &after[end..];
            }
            rest = &rest[1..];
        }
        let value: f64 = rest.trim().parse().unwrap_or_else(|_| panic!("{line}"));
        assert!(series.insert((name.to_owned(), labels.clone())), "series twice: {line}");
        out.entry(name.to_owned()).or_default().push((labels, value));
    }
    out
}

fn one<'a>(samples: &'a Samples, name: &str) -> &'a (BTreeMap<String, String>, f64) {
    match samples.get(name).map(Vec::as_slice) {
        Some([one]) => one,
        other => panic!("{name}: {other:#?}"),
    }
}

fn assert_labels(labels: &BTreeMap<String, String>, expected: &[(&str, &str)]) {
    for (name, value) in expected {
        assert_eq!(labels.get(*name).map(String::as_str), Some(*value), "{name} in {labels:#?}");
    }
}

const CALLER: &str = "spiffe://cluster.local/ns/test/sa/caller";
const APP: &str = "spiffe://cluster.local/ns/test/sa/app";

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_name_each_other() {
    let mesh = Mesh::new();
    let (app, _) = echo_app().await;
    let (out, inn) = (free_port(), free_port());
    let to = format!("outbound|80||{HOST}");
    let server = start_with(
        server_side(inn, http(all_to("inbound|80||"))),
        mesh.secrets("app"),
        named("server", meant_for(app)),
    );
    let client = start_with(
        client_side(out, inn, true, http(all_to(&to))),
        mesh.secrets("caller"),
        named("client", EngineOptions::default()),
    );
    let mut c = Client::connect(out).await;
    for _ in 0..3 {
        let request = http::Request::get("/hello").header("x-envoy-peer-metadata", "forged");
        let (parts, body) = c.send(request, "").await.unwrap();
        assert_eq!(parts.status, 200, "{body}");
        assert!(!body.contains("peer-metadata"), "the application saw {body}");
        assert!(!parts.headers.keys().any(|k| k.as_str().contains("peer-metadata")), "{:?}", parts.headers);
    }
    drop(c);
    let samples = parse(&server.engine.stats().prometheus());
    let (labels, count) = one(&samples, "istio_requests_total");
    assert_eq!(*count, 3.0);
    assert_labels(
        labels,
        &[
            ("reporter", "destination"),
            ("source_workload", "client"),
            ("source_workload_namespace", "test"),
            ("source_principal", CALLER),
            ("source_app", "client-app"),
            ("source_version", "v1"),
            ("source_cluster", "Kubernetes"),
            ("source_canonical_service", "client-svc"),
            ("source_canonical_revision", "v1"),
            ("destination_workload", "server"),
            ("destination_principal", APP),
            ("destination_canonical_service", "server-svc"),
            ("request_protocol", "http"),
            ("response_code", "200"),
            ("response_flags", "-"),
            ("grpc_response_status", ""),
            ("connection_security_policy", "mutual_tls"),
        ],
    );
    let samples = parse(&client.engine.stats().prometheus());
    let (labels, _) = one(&samples, "istio_requests_total");
    assert_labels(
        labels,
        &[
            ("reporter", "source"),
            ("source_workload", "client"),
            ("source_principal", CALLER),
            ("destination_workload", "server"),
            ("destination_app", "server-app"),
            ("destination_principal", APP),
            ("destination_service", HOST),
            ("destination_service_name", "app"),
            ("destination_service_namespace", "test"),
            ("connection_security_policy", "unknown"),
        ],
    );
    assert_eq!(labels.len(), 25, "{labels:#?}");
    let buckets = &samples["istio_request_duration_milliseconds_bucket"];
    assert!(buckets.windows(2).all(|w| w[0].1 <= w[1].1), "{buckets:?}");
    assert_eq!(one(&samples, "istio_response_bytes_count").1, 3.0);
    assert!(!samples.contains_key("istio_request_messages_total"), "only of gRPC");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_mesh_peers_are_told_and_believed() {
    let (app, _) = echo_app().await;
    let out = free_port();
    let to = format!("outbound|80||{HOST}");
    let mut config = client_side(out, app, false, http(all_to(&to)));
    let plain = Cluster { transport: cluster("x").transport, ..outbound_cluster("app") };
    config.clusters.insert(plain.name.clone(), Arc::new(plain));
    let run = start_with(config, Default::default(), named("client", EngineOptions::default()));
    let (status, body) = get(out, "/").await;
    assert!(status == 200 && !body.contains("peer-metadata"), "{body}");
    let samples = parse(&run.engine.stats().prometheus());
    let (labels, _) = one(&samples, "istio_requests_total");
    assert_labels(
        labels,
        &[
            ("destination_workload", "app-from-eds"),
            ("destination_canonical_service", "app-eds"),
            ("destination_canonical_revision", "v9"),
            ("destination_app", "unknown"),
            ("destination_principal", "unknown"),
            ("source_principal", "unknown"),
        ],
    );
    // Names are a claim of whoever calls; the certificate's namespace is more than a claim.
    let claim = Peer { workload: "w".into(), namespace: "other".into(), ..Peer::default() };
    let (inn, out, mesh) = (free_port(), free_port(), Mesh::new());
    let server = start_with(
        server_side(inn, http(all_to("inbound|80||"))),
        mesh.secrets("app"),
        named("server", meant_for(app)),
    );
    let mut config = client_side(out, inn, true, http(all_to(&to)));
    // A caller that says what it likes: an engine without a name of its own passes headers on.
    config.listeners.by_name.clear();
    let bare = listener("out", out, Direction::Unspecified, vec![chain("c", http(all_to(&to)))]);
    let bare = Arc::new(bare);
    config.listeners.by_address.insert(out, Arc::clone(&bare));
    config.listeners.by_name.insert(Arc::clone(&bare.name), bare);
    let _client = start(config, mesh.secrets("caller"));
    let request = http::Request::get("/").header("x-envoy-peer-metadata", claim.encode());
    let (parts, body) = Client::connect(out).await.send(request, "").await.unwrap();
    assert!(parts.status == 200 && !body.contains("peer-metadata"), "{body}");
    assert!(parts.headers.contains_key("x-envoy-peer-metadata"), "whoever told is told: {:?}", parts.headers);
    let samples = parse(&server.engine.stats().prometheus());
    let (labels, _) = one(&samples, "istio_requests_total");
    assert_labels(labels, &[("source_workload", "w"), ("source_workload_namespace", "test")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_and_their_bytes_are_counted_by_both_sides() {
    let mesh = Mesh::new();
    let echo = raw_server(|_, mut tcp| async move {
        let (mut read, mut write) = tcp.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await;
    let (out, inn) = (free_port(), free_port());
    let to = format!("outbound|80||{HOST}");
    let server =
        start_with(server_side(inn, tcp("inbound|80||")), mesh.secrets("app"), named("server", meant_for(echo)));
    let caller = client_side(out, inn, true, tcp(&to));
    let client = start_with(caller, mesh.secrets("caller"), named("client", EngineOptions::default()));
    let mut tcp = tokio::net::TcpStream::connect(out).await.unwrap();
    tcp.write_all(b"hello").await.unwrap();
    tcp.shutdown().await.unwrap();
    let mut back = Vec::new();
    tcp.read_to_end(&mut back).await.unwrap();
    assert_eq!(back, b"hello");
    for (run, reporter, peer) in [
        (&client, "source", ("destination_workload", "app-from-eds")),
        (&server, "destination", ("source_principal", CALLER)),
    ] {
        let closed = || {
            let samples = parse(&run.engine.stats().prometheus());
            let all = samples.get("istio_tcp_connections_closed_total").map(Vec::as_slice).unwrap_or_default();
            all.iter().any(|(_, n)| *n == 1.0)
        };
        until("closed", closed).await;
        let samples = parse(&run.engine.stats().prometheus());
        for name in ["tcp_connections_opened_total", "tcp_connections_closed_total"] {
            assert_eq!(one(&samples, &format!("istio_{name}")).1, 1.0);
        }
        for name in ["tcp_sent_bytes_total", "tcp_received_bytes_total"] {
            let (labels, bytes) = one(&samples, &format!("istio_{name}"));
            assert_eq!(*bytes, 5.0);
            assert_labels(labels, &[("reporter", reporter), ("request_protocol", "tcp"), peer]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_added_and_taken_away_and_metrics_left_out() {
    let (app, _) = echo_app().await;
    let at = free_port();
    let ask = |text: &str| expr::parse(text).unwrap();
    let stats = Stats {
        asked: vec![ask("request.method + ' ' + request.url_path"), ask("request.headers['x-tier']")],
        overrides: vec![
            Override {
                metric: Some(Metric::Requests),
                remove: vec!["response_code".into(), "source_app".into()],
                set: vec![
                    ("operation".into(), Label::Asked(0)),
                    ("tier".into(), Label::Asked(1)),
                    ("zone".into(), Label::Literal("a\"b".into())),
                ],
                drop: false,
            },
            Override { metric: Some(Metric::RequestBytes), remove: Vec::new(), set: Vec::new(), drop: true },
        ],
        disable_host_fallback: false,
    };
    let mut manager = hcm(all_to("app"));
    manager.filters.insert(0, HttpFilter::Stats(Arc::new(stats)));
    let config = config(
        vec![listener("l", at, Direction::Outbound, vec![chain("c", ChainKind::Http(Box::new(manager)))])],
        vec![(cluster("app"), Some(endpoints(&[app])))],
    );
    let run = start(config, Default::default());
    for (path, tier) in [("/a?x=1", Some("gold")), ("/fail", Some("gold")), ("/a?x=2", Some("gold")), ("/a", None)] {
        let mut request = http::Request::get(path);
        if let Some(tier) = tier {
            request = request.header("x-tier", tier);
        }
        let _ = Client::connect(at).await.send(request, "").await.unwrap();
    }
    let samples = parse(&run.engine.stats().prometheus());
    let shown: BTreeMap<(&str, &str), f64> =
        samples["istio_requests_total"].iter().map(|(l, n)| ((&*l["operation"], &*l["tier"]), *n)).collect();
    let expected = [(("GET /a", "gold"), 2.0), (("GET /a", "unknown"), 1.0), (("GET /fail", "gold"), 1.0)];
    assert_eq!(shown, BTreeMap::from(expected));
    let (labels, _) = &samples["istio_requests_total"][0];
    assert!(labels["zone"] == "a\"b" && !labels.contains_key("response_code") && !labels.contains_key("source_app"));
    // The cluster names no service, so the host does.
    assert_labels(labels, &[("destination_service", "app.test")]);
    assert!(!samples.contains_key("istio_request_bytes_count"));
    assert_eq!(samples["istio_response_bytes_count"].len(), 2, "by code only");
}
