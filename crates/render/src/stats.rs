//! Istio's metrics (semantics §25.2), where objects change what is counted.
//!
//! The native engine counts by itself, as Istio's own Envoy does. What is different is told to it by a filter called
//! `istio.stats`, of requests before the router and of connections before the TCP proxy, whose configuration is an
//! `xds.type.v3.TypedStruct` with `type_url` `type.googleapis.com/stats.PluginConfig` and these fields of Istio's:
//!
//! ```json
//! {
//!   "disable_host_header_fallback": true,
//!   "tcp_reporting_duration": "15s",
//!   "metrics": [
//!     {"name": "requests_total", "dimensions": {"host": "request.host"}, "tags_to_remove": ["request_protocol"]},
//!     {"name": "request_bytes", "drop": true}
//!   ]
//! }
//! ```
//!
//! `name` is the metric's without `istio_` and always there, each at most once; `dimensions` are CEL expressions;
//! `disable_host_header_fallback` is there for servers and gateways, where a missing service's name is not taken from the request.
//! `reporter` is never there: the listener's direction says it.
//!
//! A stock Envoy has no such filter; see [`agent`].
//!
//! Invariant: where nothing is different the filter is not there.

pub mod agent;

use carrick_mesh::view::telemetry::{MetricRule, Stats, StatsRules, Telemetry};
use envoy_types::pb::{
    envoy::{config::listener::v3::Filter, extensions::filters::network::http_connection_manager::v3::HttpFilter},
    google::protobuf::Any,
};

use crate::wire::{
    self,
    stable::{Kind, List, Struct, TypedStruct, Value},
};

/// The filter's name.
pub const FILTER: &str = "istio.stats";
/// The type of its configuration.
pub const CONFIG: &str = "type.googleapis.com/stats.PluginConfig";

/// Whose traffic a filter counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What the workload asks for.
    Client,
    /// What the workload is asked for.
    Server,
    /// What a gateway forwards.
    Gateway,
}

/// What a filter's log is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// HTTP requests.
    Requests,
    /// Connections.
    Connections,
}

/// The filter of requests.
pub fn http_filter(from: &Telemetry, side: Side) -> Option<HttpFilter> {
    Some(wire::http_filter(FILTER, config(from, side)?))
}

/// The filter of connections.
pub fn network_filter(from: &Telemetry, side: Side) -> Option<Filter> {
    Some(wire::network_filter(FILTER, config(from, side)?))
}

fn config(from: &Telemetry, side: Side) -> Option<Any> {
    let Stats::Engine(rules) = &from.stats else { return None };
    let config = TypedStruct { type_url: CONFIG.to_owned(), value: Some(plugin(rules, side)) };
    Some(wire::any_as("xds.type.v3.TypedStruct", &config))
}

/// The configuration of Istio's filter.
fn plugin(rules: &StatsRules, side: Side) -> Struct {
    let mut fields = Struct::default();
    let mut set = |name: &str, value: Value| {
        fields.fields.insert(name.to_owned(), value);
    };
    if side != Side::Client {
        set("disable_host_header_fallback", Kind::Flag(true).into());
    }
    if rules.interval > 0 {
        let (seconds, millis) = (rules.interval / 1000, rules.interval % 1000);
        let text = if millis == 0 { format!("{seconds}s") } else { format!("{seconds}.{millis:03}s") };
        set("tcp_reporting_duration", text.as_str().into());
    }
    if !rules.metrics.is_empty() {
        let values = rules.metrics.iter().map(|m| Kind::Struct(metric(m)).into()).collect();
        set("metrics", Kind::List(List { values }).into());
    }
    fields
}

fn metric(from: &MetricRule) -> Struct {
    let mut out = Struct::from([("name", (&*from.name).into())]);
    if from.drop {
        out.fields.insert("drop".to_owned(), Kind::Flag(true).into());
    }
    if !from.dimensions.is_empty() {
        let fields = from.dimensions.iter().map(|(tag, to)| (tag.to_string(), (&**to).into())).collect();
        out.fields.insert("dimensions".to_owned(), Kind::Struct(Struct { fields }).into());
    }
    if !from.removed.is_empty() {
        let values = from.removed.iter().map(|tag| (&**tag).into()).collect();
        out.fields.insert("tags_to_remove".to_owned(), Kind::List(List { values }).into());
    }
    out
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
    use prost::Message;
    use serde_json::{Value as Json, json};

    use super::*;

    fn read(value: &Value) -> Json {
        match value.kind.as_ref().expect("a value") {
            Kind::Number(n) => json!(n),
            Kind::Text(text) => json!(text),
            Kind::Flag(flag) => json!(flag),
            Kind::Struct(fields) => fields.fields.iter().map(|(k, v)| (k.clone(), read(v))).collect(),
            Kind::List(list) => list.values.iter().map(read).collect(),
        }
    }

    #[test]
    fn the_native_engine_is_told_in_istios_words() {
        let rule = |name: &str, drop, dimensions: &[(&str, &str)], removed: &[&str]| MetricRule {
            name: name.into(),
            drop,
            dimensions: dimensions.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            removed: removed.iter().map(|tag| (*tag).into()).collect(),
        };
        let metrics = vec![
            rule("request_bytes", true, &[], &[]),
            rule("requests_total", false, &[("host", "request.host")], &["request_protocol"]),
        ];
        let stats = Stats::Engine(StatsRules { counts: true, metrics, interval: 1500 });
        let telemetry = Telemetry { stats, ..Telemetry::default() };
        let filter = http_filter(&telemetry, Side::Server).expect("there");
        let Some(ConfigType::TypedConfig(config)) = filter.config_type else { panic!("no configuration") };
        assert_eq!(
            (filter.name.as_str(), config.type_url.as_str()),
            (FILTER, "type.googleapis.com/xds.type.v3.TypedStruct")
        );
        let config = TypedStruct::decode(&*config.value).expect("readable");
        assert_eq!(config.type_url, CONFIG);
        let told = read(&Kind::Struct(config.value.expect("there")).into());
        let wanted = json!({
            "disable_host_header_fallback": true,
            "tcp_reporting_duration": "1.500s",
            "metrics": [
                {"name": "request_bytes", "drop": true},
                {"name": "requests_total", "dimensions": {"host": "request.host"}, "tags_to_remove": ["request_protocol"]},
            ],
        });
        assert_eq!(told, wanted);
        assert_eq!(http_filter(&Telemetry::default(), Side::Server), None);
    }
}
