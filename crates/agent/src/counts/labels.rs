//! Istio's labels of a request or connection (spec §25.2), in Istio's order.
//!
//! Invariant: every label is there; what is not known is `unknown`. The other side's namespace is rather that of its certificate.

use carrick_proxy::Workload;
use carrick_proxy_core::peer::Peer;
use serde_json::Value;

use super::Key;
use super::plan::{Labels, Reporter};

/// A service's host, name and namespace; empty where not known.
#[derive(Default)]
struct Service {
    host: String,
    name: String,
    namespace: String,
}

impl Service {
    /// Of a cluster's metadata: a list of services.
    fn of(key: &Key) -> Self {
        let list: Value = serde_json::from_str(&key.service).unwrap_or_default();
        if let Some(first) = list.get(0) {
            let text = |name: &str| first.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            return Self { host: text("host"), name: text("name"), namespace: text("namespace") };
        }
        if key.cluster.ends_with("PassthroughCluster") || &*key.cluster == "BlackHoleCluster" {
            return Self { name: key.cluster.to_string(), ..Self::default() };
        }
        Self::default()
    }
}

/// What is known of the other side: what it says, else what its endpoint's metadata say.
fn peer(key: &Key) -> Peer {
    if let Some(peer) = Peer::decode(key.told.as_bytes()).filter(|p| !p.workload.is_empty()) {
        return peer;
    }
    let mut parts = key.endpoint.split(';').map(Box::<str>::from);
    let mut next = || parts.next().unwrap_or_default();
    Peer {
        workload: next(),
        namespace: next(),
        canonical_service: next(),
        canonical_revision: next(),
        cluster: next(),
        ..Peer::default()
    }
}

fn known(text: &str) -> String {
    if text.is_empty() { "unknown" } else { text }.to_owned()
}

/// The namespace of a mesh identity.
fn namespace(principal: &str) -> &str {
    principal.split_once("/ns/").and_then(|(_, rest)| rest.split('/').next()).unwrap_or_default()
}

/// All labels.
pub(super) fn labels(own: &Workload, key: &Key) -> Labels {
    let outbound = key.plan.reporter == Reporter::Source;
    let (service, peer) = (Service::of(key), peer(key));
    let proven = namespace(&key.theirs);
    let ours = [
        ("workload", own.name.as_str()),
        ("workload_namespace", &own.namespace),
        ("principal", &key.own),
        ("app", &own.app),
        ("version", &own.version),
        ("canonical_service", &own.canonical_service),
        ("canonical_revision", &own.canonical_revision),
        ("cluster", &own.cluster),
    ];
    let revision = if peer.canonical_revision.is_empty() { "latest" } else { &*peer.canonical_revision };
    let theirs = [
        ("workload", &*peer.workload),
        ("workload_namespace", if proven.is_empty() { &*peer.namespace } else { proven }),
        ("principal", &key.theirs),
        ("app", &peer.app),
        ("version", &peer.version),
        ("canonical_service", &peer.canonical_service),
        ("canonical_revision", revision),
        ("cluster", &peer.cluster),
    ];
    let mut out = Labels::with_capacity(28);
    let mut push = |name: &str, value: String| out.push((name.to_owned(), value));
    push("reporter", if outbound { "source" } else { "destination" }.to_owned());
    let sides = if outbound {
        [("source", ours), ("destination", theirs)]
    } else {
        [("source", theirs), ("destination", ours)]
    };
    for (side, values) in sides {
        for (what, value) in values {
            push(&format!("{side}_{what}"), known(value));
        }
    }
    let host = match service.host.as_str() {
        "" if outbound => &*key.host,
        "" if service.name.is_empty() => &own.canonical_service,
        host => host,
    };
    let name = if service.name.is_empty() { host } else { &service.name };
    let space = if service.namespace.is_empty() && !outbound { &own.namespace } else { &service.namespace };
    push("destination_service", known(host));
    push("destination_service_name", known(name));
    push("destination_service_namespace", known(space));
    push("request_protocol", key.protocol.to_owned());
    if key.protocol != "tcp" {
        push("response_code", key.code.to_string());
        push("grpc_response_status", key.grpc.to_string());
    }
    push("response_flags", if key.flags.is_empty() { "-" } else { &key.flags }.to_owned());
    let policy = match (outbound, key.theirs.is_empty()) {
        (true, _) => "unknown",
        (false, false) => "mutual_tls",
        (false, true) => "none",
    };
    push("connection_security_policy", policy.to_owned());
    out
}
