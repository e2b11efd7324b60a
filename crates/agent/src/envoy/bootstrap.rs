//! Envoy's bootstrap: who it is, where its configuration and secrets come from, what it counts.
//!
//! Invariant: everything else comes over xDS; nothing secret is in it.

use std::io;
use std::path::Path;

use carrick_envoy_json::{Names, to_json};
use carrick_xds::Node;
use serde_json::{Value, json};

use crate::config::AgentConfig;

/// The bootstrap as JSON text.
pub fn bootstrap(config: &AgentConfig, node: &Node) -> io::Result<String> {
    let node = to_json(node, Names::Proto).map_err(|e| io::Error::other(e.to_string()))?;
    let domain = &config.node.cluster_domain;
    let metadata = node.get("metadata").cloned().unwrap_or_default();
    let ads = json!({"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"});
    let value = json!({
        "node": node,
        "layered_runtime": {"layers": [
            {"name": "static", "static_layer": {
                "re2.max_program_size.error_level": "32768",
            }},
            {"name": "admin", "admin_layer": {}},
        ]},
        // The pod's own limits are the kernel's; without one here Envoy warns at each start.
        "overload_manager": {"resource_monitors": [{
            "name": "envoy.resource_monitors.global_downstream_max_connections",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                "max_active_downstream_connections": "2147483647",
            },
        }]},
        "stats_config": stats(domain, &metadata),
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": config.ports.admin}}},
        "dynamic_resources": {
            "cds_config": ads,
            "lds_config": ads,
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
            },
        },
        "static_resources": {"clusters": [
            socket_cluster("sds-grpc", &config.sds_socket())?,
            socket_cluster("xds-grpc", &config.xds_socket())?,
            socket_cluster("carrick-counts", &config.counts_socket())?,
        ]},
    });
    Ok(format!("{value:#}\n"))
}

/// A gRPC server behind a Unix socket.
fn socket_cluster(name: &str, path: &Path) -> io::Result<Value> {
    // Envoy resolves it against its own working folder, which need not be ours.
    let path = std::path::absolute(path)?;
    let path = path.to_str().ok_or_else(|| io::Error::other("the state folder's name is not UTF-8"))?;
    Ok(json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            },
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": path}}}}]}],
        },
    }))
}

/// What is counted (Istio's selection: a proxy knows hundreds of clusters, and what the pod asks for), and which parts of
/// names are labels.
fn stats(domain: &str, metadata: &Value) -> Value {
    let domain = domain.replace('.', "\\.");
    let tag = |name: &str, regex: String| json!({"tag_name": name, "regex": regex});
    let pattern = |kind: &str, text: &str| json!({kind: text});
    let mut patterns: Vec<Value> =
        ["reporter=", "cluster_manager", "listener_manager", "server", "cluster.xds-grpc", "component"]
            .iter()
            .map(|p| pattern("prefix", p))
            .collect();
    for suffix in
        ["rbac.allowed", "rbac.denied", "shadow_allowed", "shadow_denied", "downstream_cx_active", "ssl.handshake"]
    {
        patterns.push(pattern("suffix", suffix));
    }
    patterns.extend(wished(metadata));
    json!({
        "use_all_default_tags": false,
        "stats_tags": [
            tag("cluster_name", format!("^cluster\\.((.+?(\\..+?\\.svc\\.{domain})?)\\.)")),
            tag("http_conn_manager_prefix", "^http\\.(((outbound_[^.]*|inbound_[^.]*|[0-9a-fA-F.:_\\[\\]]+[_;][0-9]+)\\.)|([^.]+)\\.)".to_owned()),
            tag("tcp_prefix", "^tcp\\.((.*?)\\.)\\w+?$".to_owned()),
            tag("response_code", "_rq(_(\\d{3}))$".to_owned()),
            tag("response_code_class", "_rq(_(\\dxx))$".to_owned()),
            tag("listener_address", "^listener\\.(((?:[_.[:digit:]]*|[_\\[\\]aAbBcCdDeEfF[:digit:]]*))\\.)".to_owned()),
        ],
        "stats_matcher": {"inclusion_list": {"patterns": patterns}},
    })
}

/// What else is to be counted: the pod's annotations, and where one says nothing `proxyStatsMatcher` of its proxy's
/// configuration (semantics §15).
fn wished(metadata: &Value) -> Vec<Value> {
    let mut patterns = Vec::new();
    for (kind, field, annotation) in [
        ("prefix", "inclusionPrefixes", "statsInclusionPrefixes"),
        ("suffix", "inclusionSuffixes", "statsInclusionSuffixes"),
        ("safe_regex", "inclusionRegexps", "statsInclusionRegexps"),
    ] {
        let noted = metadata.get("ANNOTATIONS").and_then(|all| all.get(format!("sidecar.istio.io/{annotation}")));
        let noted: Vec<&str> = noted.and_then(Value::as_str).into_iter().flat_map(|text| text.split(',')).collect();
        let matcher = metadata.get("PROXY_CONFIG").and_then(|own| own.get("proxyStatsMatcher"));
        let listed = matcher.and_then(|matcher| matcher.get(field)).and_then(Value::as_array);
        let listed = || listed.into_iter().flatten().filter_map(Value::as_str).collect();
        let texts: Vec<&str> = if noted.is_empty() { listed() } else { noted };
        for text in texts.into_iter().map(str::trim).filter(|text| !text.is_empty()) {
            let value = if kind == "safe_regex" { json!({"regex": text}) } else { json!(text) };
            patterns.push(json!({kind: value}));
        }
    }
    patterns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_says_what_else_is_counted() {
        let of = |metadata: Value| {
            let all = stats("cluster.local", &metadata)["stats_matcher"]["inclusion_list"]["patterns"].clone();
            let all: Vec<Value> = all.as_array().cloned().unwrap_or_default();
            all.get(
                stats("cluster.local", &Value::Null)["stats_matcher"]["inclusion_list"]["patterns"]
                    .as_array()
                    .map_or(0, Vec::len)..,
            )
            .map(<[Value]>::to_vec)
            .unwrap_or_default()
        };
        assert_eq!(of(json!({})), Vec::<Value>::new());
        let matcher = json!({"proxyStatsMatcher": {"inclusionPrefixes": ["cluster.outbound"], "inclusionSuffixes": ["upstream_rq_503"],
            "inclusionRegexps": [".*circuit_breakers.*"]}});
        assert_eq!(
            of(json!({"PROXY_CONFIG": matcher})),
            [
                json!({"prefix": "cluster.outbound"}),
                json!({"suffix": "upstream_rq_503"}),
                json!({"safe_regex": {"regex": ".*circuit_breakers.*"}}),
            ]
        );
        // An annotation stands in place of its list, not beside it.
        let noted = json!({"sidecar.istio.io/statsInclusionPrefixes": "http., tcp.,"});
        assert_eq!(
            of(json!({"PROXY_CONFIG": {"proxyStatsMatcher": {"inclusionPrefixes": ["x"]}}, "ANNOTATIONS": noted})),
            [json!({"prefix": "http."}), json!({"prefix": "tcp."})]
        );
    }
}
