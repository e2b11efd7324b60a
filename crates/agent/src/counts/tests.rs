//! Entries as Envoy sends them, and what is shown of them.

use std::collections::HashMap;

use carrick_proxy_core::peer::Peer;
use envoy_types::pb::envoy::data::accesslog::v3::{
    ConnectionProperties, HttpRequestProperties, HttpResponseProperties,
};
use envoy_types::pb::google::protobuf::{Duration, UInt32Value};

use super::*;

const SERVICES: &str = r#"[{"host":"shop.x.svc.cluster.local","name":"shop","namespace":"x"}]"#;

fn counts() -> Arc<Counts> {
    Counts::new(Workload {
        name: "web-v1".into(),
        namespace: "y".into(),
        app: "web".into(),
        version: "v1".into(),
        canonical_service: "web".into(),
        canonical_revision: "v1".into(),
        cluster: "Kubernetes".into(),
        ..Workload::default()
    })
}

fn plan(text: &str) -> Arc<Plan> {
    Arc::new(Plan::read(text).expect("a plan"))
}

fn common(tags: &[(&str, &str)]) -> AccessLogCommon {
    AccessLogCommon {
        duration: Some(Duration { seconds: 0, nanos: 7_000_000 }),
        upstream_cluster: "outbound|80||shop.x.svc.cluster.local".to_owned(),
        custom_tags: tags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<HashMap<_, _>>(),
        ..AccessLogCommon::default()
    }
}

fn request(tags: &[(&str, &str)], code: u32) -> HttpAccessLogEntry {
    HttpAccessLogEntry {
        common_properties: Some(common(tags)),
        request: Some(HttpRequestProperties {
            authority: "asked.example".to_owned(),
            request_headers_bytes: 100,
            request_body_bytes: 20,
            ..HttpRequestProperties::default()
        }),
        response: Some(HttpResponseProperties {
            response_code: Some(UInt32Value { value: code }),
            response_body_bytes: 3,
            ..HttpResponseProperties::default()
        }),
        ..HttpAccessLogEntry::default()
    }
}

/// The line of a metric that has all these labels, and its value.
#[track_caller]
fn line(text: &str, metric: &str, labels: &[&str]) -> String {
    let found: Vec<&str> = text
        .lines()
        .filter(|l| l.starts_with(&format!("{metric}{{")) && labels.iter().all(|label| l.contains(label)))
        .collect();
    assert_eq!(found.len(), 1, "{metric} {labels:?} in\n{text}");
    found[0].rsplit(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn a_client_knows_the_endpoint_and_believes_what_it_says() {
    let counts = counts();
    let plan = plan(r#"{"reporter":"source","metrics":[]}"#);
    let endpoint =
        [("svc", SERVICES), ("peer", "shop-v2;x;shop;v2;Kubernetes"), ("theirs", "spiffe://td/ns/x/sa/shop")];
    counts.request(&plan, request(&endpoint, 200));
    counts.request(&plan, request(&endpoint, 200));
    let own =
        Peer { workload: "shop-v3".into(), namespace: "x".into(), app: "shop".into(), ..Peer::default() }.encode();
    counts.request(&plan, request(&[&endpoint[..], &[("told", own.as_str()), ("flags", "UF,URX")]].concat(), 503));
    let text = counts.prometheus();
    let labels = [
        "reporter=\"source\"",
        "source_workload=\"web-v1\"",
        "source_version=\"v1\"",
        "destination_workload=\"shop-v2\"",
        "destination_workload_namespace=\"x\"",
        "destination_principal=\"spiffe://td/ns/x/sa/shop\"",
        "destination_app=\"unknown\"",
        "destination_canonical_revision=\"v2\"",
        "destination_service=\"shop.x.svc.cluster.local\"",
        "destination_service_name=\"shop\"",
        "request_protocol=\"http\"",
        "response_code=\"200\"",
        "grpc_response_status=\"\"",
        "response_flags=\"-\"",
        "connection_security_policy=\"unknown\"",
    ];
    assert_eq!(line(&text, "istio_requests_total", &labels), "2");
    assert_eq!(line(&text, "istio_request_bytes_sum", &labels), "240");
    assert_eq!(line(&text, "istio_response_bytes_sum", &labels), "6");
    let bucket = |le: &'static str| [&labels[..], &[le]].concat();
    assert_eq!(line(&text, "istio_request_duration_milliseconds_bucket", &bucket("le=\"5\"")), "0");
    assert_eq!(line(&text, "istio_request_duration_milliseconds_bucket", &bucket("le=\"10\"")), "2");
    let told = ["destination_workload=\"shop-v3\"", "destination_app=\"shop\"", "response_flags=\"UF,URX\""];
    assert_eq!(line(&text, "istio_requests_total", &told), "1");
}

#[test]
fn a_server_says_who_called_and_how() {
    let counts = counts();
    let plan = plan(r#"{"reporter":"destination","metrics":[]}"#);
    let caller = Peer { workload: "cli".into(), namespace: "z".into(), ..Peer::default() }.encode();
    let tags =
        [("told", caller.as_str()), ("theirs", "spiffe://td/ns/z/sa/cli"), ("type", "application/grpc"), ("grpc", "5")];
    counts.request(&plan, request(&tags, 200));
    counts.request(&plan, request(&[("told", "forged")], 403));
    let text = counts.prometheus();
    let known = [
        "reporter=\"destination\"",
        "source_workload=\"cli\"",
        "source_principal=\"spiffe://td/ns/z/sa/cli\"",
        "destination_workload=\"web-v1\"",
        "destination_service_namespace=\"y\"",
        "request_protocol=\"grpc\"",
        "grpc_response_status=\"5\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    assert_eq!(line(&text, "istio_requests_total", &known), "1");
    let plain = ["source_workload=\"unknown\"", "response_code=\"403\"", "connection_security_policy=\"none\""];
    assert_eq!(line(&text, "istio_requests_total", &plain), "1");
}

#[test]
fn objects_change_labels_and_leave_out_metrics() {
    let counts = counts();
    let name = r#"{"reporter":"source","metrics":[
        {"name":"requests_total","drop":false,"set":["host","reporter"],"removed":["request_protocol"]},
        {"name":"request_bytes","drop":true,"set":[],"removed":[]}]}"#;
    let plan = plan(name);
    counts.request(&plan, request(&[("requests_total/host", "a.example"), ("requests_total/reporter", "me")], 200));
    let text = counts.prometheus();
    let row = text.lines().find(|l| l.starts_with("istio_requests_total")).expect("a line");
    assert!(row.contains("host=\"a.example\"") && row.contains("{reporter=\"me\""), "{row}");
    assert!(!row.contains("request_protocol"), "{row}");
    assert!(!text.contains("istio_request_bytes") && text.contains("istio_response_bytes"), "{text}");
    for bad in ["", "{}", "other", r#"{"reporter":"source","more":1}"#] {
        assert!(Plan::read(bad).is_err(), "{bad}");
    }
}

#[test]
fn connections_are_counted_when_they_begin_and_end() {
    let counts = counts();
    let plan = plan(r#"{"reporter":"source","metrics":[]}"#);
    let entry = |kind: AccessLogType, connected: bool| TcpAccessLogEntry {
        common_properties: Some(AccessLogCommon {
            access_log_type: kind.into(),
            upstream_local_address: connected.then(Default::default),
            ..common(&[("svc", SERVICES)])
        }),
        connection_properties: Some(ConnectionProperties { received_bytes: 5, sent_bytes: 9 }),
    };
    counts.connection(&plan, &entry(AccessLogType::TcpUpstreamConnected, true));
    let open = counts.prometheus();
    assert_eq!(line(&open, "istio_tcp_connections_opened_total", &["request_protocol=\"tcp\""]), "1");
    assert_eq!(line(&open, "istio_tcp_connections_closed_total", &[]), "0");
    counts.connection(&plan, &entry(AccessLogType::TcpConnectionEnd, true));
    counts.connection(&plan, &entry(AccessLogType::TcpConnectionEnd, false));
    let text = counts.prometheus();
    for (metric, value) in
        [("connections_opened", "2"), ("connections_closed", "2"), ("sent_bytes", "18"), ("received_bytes", "10")]
    {
        assert_eq!(line(&text, &format!("istio_tcp_{metric}_total"), &["response_flags=\"-\""]), value, "{metric}");
    }
    assert!(!text.contains("response_code"), "a connection has none");
}

#[test]
fn sets_are_bounded() {
    let mut sets: HashMap<Key, u32> = HashMap::new();
    for n in 0..MAX_SETS + 10 {
        *slot(&mut sets, Key { host: n.to_string().into(), ..Key::default() }) += 1;
    }
    assert_eq!(sets.len(), MAX_SETS + 1);
    assert_eq!(sets.get(&Key::default()), Some(&10));
}
