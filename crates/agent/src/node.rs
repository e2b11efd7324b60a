//! The node this proxy says it is (spec §20.1).
//!
//! Invariant: namespace and service account in the metadata are those of the certificate that is asked for, so that the
//! control plane's comparison of the two can succeed.

use carrick_xds::NodeType;
use carrick_xds::node::{NodeId, list, map, text};
use envoy_types::pb::envoy::config::core::v3::{Locality, Node};
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value, value::Kind};
use serde_json::Value as Json;

use crate::config::{AgentConfig, EngineKind, Role};

/// The node of this agent.
pub fn node(config: &AgentConfig) -> Node {
    let own = &config.node;
    let ip = own.ips.first().copied().unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into());
    let kind = match config.role {
        Role::Sidecar => NodeType::Sidecar,
        Role::Gateway => NodeType::Router,
    };
    let id = NodeId::of(kind, ip, &own.name, &own.namespace, &own.cluster_domain);
    let mut fields: std::collections::HashMap<String, Value> =
        own.metadata.iter().map(|(key, value)| (key.clone(), to_value(value))).collect();
    let workload = own
        .labels
        .get("service.istio.io/canonical-name")
        .or_else(|| own.labels.get("app.kubernetes.io/name"))
        .or_else(|| own.labels.get("app"));
    let defaults = [
        ("CLUSTER_ID", text("Kubernetes")),
        ("MESH_ID", text(own.trust_domain.as_str())),
        ("INTERCEPTION_MODE", text("REDIRECT")),
        ("WORKLOAD_NAME", text(workload.unwrap_or(&own.name).as_str())),
    ];
    for (key, value) in defaults {
        fields.entry(key.to_owned()).or_insert(value);
    }
    let engine = match config.engine {
        EngineKind::Native => "native",
        EngineKind::Envoy { .. } => "envoy",
        EngineKind::Library { .. } => "library",
    };
    let ips = own.ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    for (key, value) in [
        ("NAME", text(own.name.as_str())),
        ("NAMESPACE", text(own.namespace.as_str())),
        ("SERVICE_ACCOUNT", text(own.service_account.as_str())),
        ("INSTANCE_IPS", text(ips)),
        ("LABELS", map(&own.labels)),
        ("ANNOTATIONS", map(&own.annotations)),
        ("ISTIO_VERSION", text(env!("CARGO_PKG_VERSION"))),
        ("CARRICK_ENGINE", text(engine)),
        ("PILOT_SAN", list([config.control_plane.server_name.as_str()])),
    ] {
        fields.insert(key.to_owned(), value);
    }
    if config.dns.is_some() {
        // The table of names is wanted, and services by their automatic addresses.
        for key in ["DNS_CAPTURE", "CARRICK_NAMES"] {
            fields.insert(key.to_owned(), text("true"));
        }
    }
    if matches!(config.engine, EngineKind::Envoy { .. }) {
        // Its access logs are counted here.
        fields.insert("CARRICK_COUNTS".to_owned(), text("true"));
    }
    let app = own.labels.get("app").unwrap_or(&own.name);
    Node {
        id: id.to_string(),
        cluster: format!("{app}.{}", own.namespace),
        metadata: Some(Struct { fields }),
        locality: own.labels.get("istio-locality").map(|text| locality(text)),
        ..Node::default()
    }
}

/// `region.zone.subzone`, as the label has it.
fn locality(text: &str) -> Locality {
    let mut parts = text.splitn(3, '.').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    Locality { region: next(), zone: next(), sub_zone: next() }
}

/// A value of the metadata by key, as text.
pub fn metadata_text(node: &Node, key: &str) -> Option<String> {
    carrick_xds::node::metadata_text(node, key).map(str::to_owned)
}

fn to_value(json: &Json) -> Value {
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(b) => Kind::BoolValue(*b),
        Json::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or_default()),
        Json::String(s) => Kind::StringValue(s.clone()),
        Json::Array(items) => Kind::ListValue(ListValue { values: items.iter().map(to_value).collect() }),
        Json::Object(fields) => {
            Kind::StructValue(Struct { fields: fields.iter().map(|(k, v)| (k.clone(), to_value(v))).collect() })
        }
    };
    Value { kind: Some(kind) }
}
