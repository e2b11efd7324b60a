//! Rules of `EnvoyFilter` (spec §24, §28).
//!
//! Invariant: what a patch's value says is judged where it is applied; here only whether applyTo, match and operation
//! belong together.

use super::{Findings, Node, attachment, expression};

const APPLY_TO: [&str; 12] = [
    "INVALID",
    "LISTENER",
    "FILTER_CHAIN",
    "NETWORK_FILTER",
    "HTTP_FILTER",
    "ROUTE_CONFIGURATION",
    "VIRTUAL_HOST",
    "HTTP_ROUTE",
    "CLUSTER",
    "EXTENSION_CONFIG",
    "BOOTSTRAP",
    "LISTENER_FILTER",
];
const OPERATIONS: [&str; 9] = [
    "INVALID",
    "MERGE",
    "ADD",
    "REMOVE",
    "INSERT_BEFORE",
    "INSERT_AFTER",
    "INSERT_FIRST",
    "REPLACE",
    "MERGE_AND_REPLACE_LIST",
];
const CONTEXTS: [&str; 5] = ["ANY", "SIDECAR_INBOUND", "SIDECAR_OUTBOUND", "GATEWAY", "WAYPOINT"];
const MANAGER: &str = "envoy.filters.network.http_connection_manager";

/// Names that filters had before, and have now.
const RENAMED: [(&str, &str); 28] = [
    ("envoy.buffer", "envoy.filters.http.buffer"),
    ("envoy.cors", "envoy.filters.http.cors"),
    ("envoy.csrf", "envoy.filters.http.csrf"),
    ("envoy.ext_authz", "envoy.filters.http.ext_authz"),
    ("envoy.fault", "envoy.filters.http.fault"),
    ("envoy.grpc_http1_bridge", "envoy.filters.http.grpc_http1_bridge"),
    ("envoy.grpc_json_transcoder", "envoy.filters.http.grpc_json_transcoder"),
    ("envoy.grpc_web", "envoy.filters.http.grpc_web"),
    ("envoy.gzip", "envoy.filters.http.gzip"),
    ("envoy.health_check", "envoy.filters.http.health_check"),
    ("envoy.http_dynamo_filter", "envoy.filters.http.dynamo"),
    ("envoy.ip_tagging", "envoy.filters.http.ip_tagging"),
    ("envoy.lua", "envoy.filters.http.lua"),
    ("envoy.rate_limit", "envoy.filters.http.ratelimit"),
    ("envoy.router", "envoy.filters.http.router"),
    ("envoy.squash", "envoy.filters.http.squash"),
    ("envoy.listener.http_inspector", "envoy.filters.listener.http_inspector"),
    ("envoy.listener.original_dst", "envoy.filters.listener.original_dst"),
    ("envoy.listener.original_src", "envoy.filters.listener.original_src"),
    ("envoy.listener.proxy_protocol", "envoy.filters.listener.proxy_protocol"),
    ("envoy.listener.tls_inspector", "envoy.filters.listener.tls_inspector"),
    ("envoy.client_ssl_auth", "envoy.filters.network.client_ssl_auth"),
    ("envoy.echo", "envoy.filters.network.echo"),
    ("envoy.http_connection_manager", MANAGER),
    ("envoy.mongo_proxy", "envoy.filters.network.mongo_proxy"),
    ("envoy.ratelimit", "envoy.filters.network.ratelimit"),
    ("envoy.redis_proxy", "envoy.filters.network.redis_proxy"),
    ("envoy.tcp_proxy", "envoy.filters.network.tcp_proxy"),
];

pub(super) fn check(object: &Node<'_>, findings: &mut Findings) {
    let spec = object.field("spec");
    findings.warning(
        &carrick_base::FieldPath::root(),
        "EnvoyFilter exposes internal implementation details that may change at any time. Prefer other APIs if possible, and exercise extreme caution, especially around upgrades.",
    );
    attachment::labels(&spec.field("workloadSelector"), "labels", findings);
    let targets = spec.field("targetRefs");
    if spec.field("workloadSelector").is_set() && !targets.is_empty() {
        findings.error(&spec.path, "only one of targetRefs or workloadSelector can be set");
    }
    attachment::targets(&targets, findings);
    for patch in spec.field("configPatches").items() {
        self::patch(&patch, findings);
    }
}

fn patch(entry: &Node<'_>, findings: &mut Findings) {
    let wanted = entry.field("match");
    let context = wanted.field("context").choice(&CONTEXTS);
    let classes = wanted.set_among(&["listener", "routeConfiguration", "cluster", "waypoint"]);
    if classes.len() > 1 {
        findings.error(&wanted.path, format!("only one of {} can be set", classes.join(", ")));
        return;
    }
    if wanted.is_set() && (context == "WAYPOINT") != classes.contains(&"waypoint") {
        findings.error(&wanted.path, "only support waypointMatch when context is WAYPOINT");
    }
    if context == "WAYPOINT" {
        let port = wanted.field("waypoint").field("portNumber");
        if port.is_set() {
            findings.port_number(&port);
        }
        return;
    }
    let apply_to = entry.field("applyTo").choice(&APPLY_TO);
    if apply_to == "INVALID" {
        findings.error(&entry.path.field("applyTo"), "Envoy filter: missing applyTo");
        return;
    }
    let patch = entry.field("patch");
    if !patch.is_set() {
        findings.error(&patch.path, "Envoy filter: missing patch");
        return;
    }
    let operation = patch.field("operation").choice(&OPERATIONS);
    if operation == "INVALID" {
        findings.error(&patch.path.field("operation"), "Envoy filter: missing patch operation");
        return;
    }
    let value = patch.field("value");
    if operation != "REMOVE" && !value.is_set() {
        findings.error(&value.path, "Envoy filter: missing patch value for non-remove operation");
        return;
    }
    if let Some(value) = value.value().filter(|value| !value.is_object()) {
        findings.error(&patch.path.field("value"), format!("Envoy filter: patch value must be an object, not {value}"));
    }
    version(&wanted.field("proxy").field("proxyVersion"), findings);
    let class = match apply_to {
        "LISTENER" | "FILTER_CHAIN" | "NETWORK_FILTER" | "HTTP_FILTER" => {
            Some(("listener", "listener class objects cannot have non listener match"))
        }
        "ROUTE_CONFIGURATION" | "VIRTUAL_HOST" | "HTTP_ROUTE" => {
            Some(("routeConfiguration", "http route class objects cannot have non route configuration match"))
        }
        "CLUSTER" => Some(("cluster", "cluster class objects cannot have non cluster match")),
        _ => None,
    };
    let Some((needed, message)) = class else { return };
    if classes.iter().any(|class| *class != needed) {
        findings.error(&wanted.path, format!("Envoy filter: applyTo for {message}"));
    } else if needed == "listener" {
        filter(&wanted.field("listener").field("filterChain").field("filter"), apply_to, findings);
    }
}

fn version(version: &Node<'_>, findings: &mut Findings) {
    let text = version.text();
    if text.len() > 1024 {
        findings.warning(&version.path, "Envoy filter: proxyVersion match exceeds 1024 characters and will be ignored");
    } else if let Err(message) = expression::compile(text) {
        findings.error(&version.path, format!("Envoy filter: invalid regex for proxy version, [{message}]"));
    }
}

fn filter(filter: &Node<'_>, apply_to: &str, findings: &mut Findings) {
    if !filter.is_set() {
        return;
    }
    if matches!(apply_to, "LISTENER" | "FILTER_CHAIN") {
        findings.warning(&filter.path, format!("Envoy filter: filter match has no effect when used with {apply_to}"));
    }
    let name = filter.field("name");
    if name.text().is_empty() {
        findings.error(&name.path, "Envoy filter: filter match has no name to match on");
        return;
    }
    let inner = filter.field("subFilter");
    if inner.is_set() {
        if apply_to != "HTTP_FILTER" {
            findings.error(&inner.path, "Envoy filter: subfilter match can be used with applyTo HTTP_FILTER only");
            return;
        }
        if !matches!(name.text(), MANAGER | "envoy.http_connection_manager") {
            findings.error(&inner.path, format!("Envoy filter: subfilter match requires filter match with {MANAGER}"));
            return;
        }
        if inner.field("name").text().is_empty() {
            findings.error(&inner.path.field("name"), "Envoy filter: subfilter match has no name to match on");
            return;
        }
    }
    for node in [name, inner.field("name")] {
        if let Some((old, new)) = RENAMED.iter().find(|(old, _)| *old == node.text()) {
            findings.warning(&node.path, format!("using deprecated filter name {old:?}; use {new:?} instead"));
        }
    }
}
