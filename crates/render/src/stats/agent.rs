//! Istio's metrics with a stock Envoy: it sends access logs to the agent beside it, which counts them.
//!
//! What the agent needs and a log entry has not of itself are tags of the entry (`svc`, `peer`, `told`, …); what is different
//! from Istio's metrics is in the log's name, a JSON object. Proxies of the mesh tell each other the names of their workloads in
//! `x-envoy-peer-metadata`: a client on requests to endpoints with mesh TLS, from its node's metadata; what arrives is kept as
//! metadata of the request and taken off.
//!
//! Invariant: the header never reaches an application, nor an endpoint that is not in the mesh.

use carrick_mesh::view::telemetry::{Stats, StatsRules, Telemetry};
use envoy_types::pb::{
    envoy::{
        config::{
            accesslog::v3::{self as log, access_log},
            common::mutation_rules::v3::{HeaderMutation as Mutation, header_mutation::Action},
            core::v3::{
                ApiVersion, GrpcService, HeaderValue, HeaderValueOption, grpc_service,
                header_value_option::HeaderAppendAction,
            },
        },
        extensions::{
            access_loggers::grpc::v3::{CommonGrpcAccessLogConfig, HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig},
            filters::{
                http::{
                    header_mutation::v3::{HeaderMutation, Mutations},
                    header_to_metadata::v3::{
                        Config as HeaderToMetadata,
                        config::{KeyValuePair, Rule},
                    },
                    upstream_codec::v3::UpstreamCodec,
                },
                network::http_connection_manager::v3::HttpFilter,
            },
        },
        r#type::tracing::v3::{CustomTag, custom_tag},
    },
    google::protobuf::Any,
};
use serde_json::{Value as Json, json};

use super::{About, Side};
use crate::wire;

/// The static cluster of the agent's counter.
pub const CLUSTER: &str = "carrick-counts";
/// The filter that takes the header off.
const TAKE: &str = "carrick.peer";
/// Where what it said is kept.
const NAMESPACE: &str = "carrick.peer";
/// The name of the workload that sends a message.
const HEADER: &str = "x-envoy-peer-metadata";
/// The id of its node, which nobody reads.
const HEADER_ID: &str = "x-envoy-peer-metadata-id";
/// The header's value, for endpoints with a proxy of the mesh: what the agent put into the node's metadata. Empty adds no header.
const VALUE: &str = "%CEL(xds.upstream_host_metadata.filter_metadata['envoy.transport_socket_match']['tlsMode'] == 'istio' ? \
    xds.node.metadata['CARRICK_PEER'] : '')%";

fn rules(from: &Telemetry) -> Option<&StatsRules> {
    match &from.stats {
        Stats::Agent(rules) => Some(rules),
        Stats::Unsaid | Stats::Engine(_) => None,
    }
}

/// Whether connections are counted by the agent: then logs of connections are about their ends alone.
pub fn counts(from: &Telemetry) -> bool {
    rules(from).is_some_and(|rules| rules.counts)
}

/// The log that the agent counts.
pub fn access_log(from: &Telemetry, side: Side, about: About) -> Option<log::AccessLog> {
    let rules = rules(from).filter(|rules| rules.counts)?;
    let target = grpc_service::EnvoyGrpc { cluster_name: CLUSTER.to_owned(), ..Default::default() };
    let common = CommonGrpcAccessLogConfig {
        log_name: name(rules, side),
        grpc_service: Some(GrpcService {
            target_specifier: Some(grpc_service::TargetSpecifier::EnvoyGrpc(target)),
            ..GrpcService::default()
        }),
        transport_api_version: ApiVersion::V3.into(),
        custom_tags: tags(rules, side, about),
        ..CommonGrpcAccessLogConfig::default()
    };
    let (name, config): (_, Any) = match about {
        About::Requests => (
            "envoy.access_loggers.http_grpc",
            wire::any(&HttpGrpcAccessLogConfig { common_config: Some(common), ..HttpGrpcAccessLogConfig::default() }),
        ),
        About::Connections => {
            ("envoy.access_loggers.tcp_grpc", wire::any(&TcpGrpcAccessLogConfig { common_config: Some(common) }))
        }
    };
    Some(log::AccessLog {
        name: name.to_owned(),
        config_type: Some(access_log::ConfigType::TypedConfig(config)),
        ..log::AccessLog::default()
    })
}

/// The log's name. The value of a changed label is in the tag `metric/label`.
fn name(rules: &StatsRules, side: Side) -> String {
    let reporter = if side == Side::Server { "destination" } else { "source" };
    let metrics: Vec<Json> = rules
        .metrics
        .iter()
        .map(|m| {
            let set: Vec<&str> = m.dimensions.iter().map(|(label, _)| &**label).collect();
            let removed: Vec<&str> = m.removed.iter().map(|label| &**label).collect();
            json!({"name": &*m.name, "drop": m.drop, "set": set, "removed": removed})
        })
        .collect();
    json!({"reporter": reporter, "metrics": metrics}).to_string()
}

fn tags(rules: &StatsRules, side: Side, about: About) -> Vec<CustomTag> {
    let tag = |name: &str, format: &str| CustomTag {
        tag: name.to_owned(),
        r#type: Some(custom_tag::Type::Value(format.to_owned())),
    };
    let mut all = vec![tag("svc", "%CLUSTER_METADATA(istio:services)%"), tag("flags", "%RESPONSE_FLAGS%")];
    if about == About::Requests {
        let message = if side == Side::Server { "request" } else { "response" };
        all.push(tag("type", "%REQ(CONTENT-TYPE)%"));
        all.push(tag("grpc", "%GRPC_STATUS_NUMBER%"));
        all.push(tag("told", &format!("%DYNAMIC_METADATA({NAMESPACE}:{message})%")));
    }
    let (own, theirs) = match side {
        Side::Server => ("%DOWNSTREAM_LOCAL_URI_SAN%", "%DOWNSTREAM_PEER_URI_SAN%"),
        Side::Client | Side::Gateway => ("%UPSTREAM_LOCAL_URI_SAN%", "%UPSTREAM_PEER_URI_SAN%"),
    };
    all.extend([tag("own", own), tag("theirs", theirs)]);
    if side != Side::Server {
        all.push(tag("peer", "%UPSTREAM_METADATA(istio:workload)%"));
    }
    for metric in &rules.metrics {
        let tcp = metric.name.starts_with("tcp_");
        if !metric.drop && tcp == (about == About::Connections) {
            let set = metric.dimensions.iter();
            all.extend(set.map(|(label, to)| tag(&format!("{}/{label}", metric.name), &format!("%CEL({to})%"))));
        }
    }
    all
}

/// What takes the names of others off messages: the first filter of requests.
pub fn take(from: &Telemetry, side: Side) -> Option<HttpFilter> {
    rules(from)?;
    let rule = |header: &str, key: &str| Rule {
        header: header.to_owned(),
        on_header_present: Some(KeyValuePair {
            metadata_namespace: NAMESPACE.to_owned(),
            key: key.to_owned(),
            ..KeyValuePair::default()
        }),
        remove: true,
        ..Rule::default()
    };
    let rules = |key: &str| vec![rule(HEADER, key), rule(HEADER_ID, "id")];
    let config = match side {
        Side::Server => HeaderToMetadata { request_rules: rules("request"), ..HeaderToMetadata::default() },
        Side::Client => HeaderToMetadata { response_rules: rules("response"), ..HeaderToMetadata::default() },
        // Whoever is outside of the mesh may not name a workload.
        Side::Gateway => HeaderToMetadata {
            request_rules: rules("request"),
            response_rules: rules("response"),
            ..HeaderToMetadata::default()
        },
    };
    Some(wire::http_filter(TAKE, wire::any(&config)))
}

/// The filters of a cluster whose endpoints are told who calls.
pub fn tell() -> Vec<HttpFilter> {
    let header = HeaderValueOption {
        header: Some(HeaderValue { key: HEADER.to_owned(), value: VALUE.to_owned(), ..HeaderValue::default() }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..HeaderValueOption::default()
    };
    let mutations = Mutations {
        request_mutations: vec![
            Mutation { action: Some(Action::Remove(HEADER.to_owned())) },
            Mutation { action: Some(Action::Append(header)) },
        ],
        ..Mutations::default()
    };
    let config = HeaderMutation { mutations: Some(mutations), ..HeaderMutation::default() };
    vec![
        wire::http_filter("envoy.filters.http.header_mutation", wire::any(&config)),
        wire::http_filter("envoy.filters.http.upstream_codec", wire::any(&UpstreamCodec {})),
    ]
}
