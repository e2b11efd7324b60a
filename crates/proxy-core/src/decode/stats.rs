//! `istio.stats`: a `TypedStruct` of `stats.PluginConfig`.
//!
//! Invariant: a key that is not known, a metric or an expression that we could not serve, is refused with its place.

use envoy_types::pb::google::protobuf::{Any, Struct, Value as Json, value::Kind};

use super::bad::{At, Bad, decode, type_name};
use crate::expr;
use crate::model::expr::Expr;
use crate::model::stats::{Metric, Override, Stats, Value};

/// Name of the filter.
pub const NAME: &str = "istio.stats";
const CONFIG: &str = "stats.PluginConfig";

/// `xds.type.v3.TypedStruct`.
#[derive(Clone, PartialEq, prost::Message)]
struct TypedStruct {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Struct>,
}

/// Whether this is the filter.
#[must_use]
pub fn is_stats(name: &str, any: &Any) -> bool {
    name == NAME && matches!(type_name(any), "xds.type.v3.TypedStruct" | "udpa.type.v1.TypedStruct")
}

/// Its configuration.
pub fn stats(any: &Any) -> Result<Stats, Bad> {
    // Both are the same on the wire.
    let typed: TypedStruct = decode(any)?;
    let (url, value) = (typed.type_url, typed.value);
    if url.rsplit('/').next() != Some(CONFIG) {
        return Err(Bad::field("type_url", format_args!("expected {CONFIG}, found {url}")));
    }
    value.as_ref().map_or(Ok(Stats::default()), |v| plugin(v).at("value"))
}

fn plugin(config: &Struct) -> Result<Stats, Bad> {
    let mut out = Stats::default();
    for (key, value) in sorted(config) {
        match key {
            "metrics" => {
                for (i, one) in list(value).at(key)?.iter().enumerate() {
                    let made = object(one).and_then(|o| metric(o, &mut out.asked)).at_index(key, i)?;
                    out.overrides.push(made);
                }
            }
            "disable_host_header_fallback" | "disableHostHeaderFallback" => {
                out.disable_host_fallback = truth(value).at(key)?;
            }
            // The direction of the listener says it.
            "reporter" => match text(value).at(key)? {
                "" | "UNSPECIFIED" | "SERVER_GATEWAY" => {}
                _ => return Err(Bad::field(key, "unknown value")),
            },
            // Texts on the way of Istio's own counters, and when they are forgotten: there is nothing like it here.
            "debug"
            | "stat_prefix"
            | "field_separator"
            | "value_separator"
            | "tcp_reporting_duration"
            | "tcpReportingDuration"
            | "rotation_interval"
            | "graceful_deletion_interval"
            | "enable_http2_metrics" => {}
            _ => return Err(Bad::unsupported(key)),
        }
    }
    Ok(out)
}

fn metric(config: &Struct, asked: &mut Vec<Expr>) -> Result<Override, Bad> {
    let mut out = Override { metric: None, remove: Vec::new(), set: Vec::new(), drop: false };
    for (key, value) in sorted(config) {
        match key {
            "name" => {
                let name = text(value).at(key)?;
                let found = Metric::ALL.into_iter().find(|m| m.name() == name.trim_start_matches("istio_"));
                out.metric = match name {
                    "" => None,
                    _ => Some(found.ok_or_else(|| Bad::field(key, format_args!("unknown metric `{name}`")))?),
                };
            }
            "dimensions" => {
                for (label, value) in sorted(object(value).at(key)?) {
                    let value = text(value).and_then(|t| dimension(t, asked)).at(label).at(key)?;
                    if !is_label(label) {
                        return Err(Bad::field(format_args!("{key}.{label}"), "not a label name"));
                    }
                    out.set.push((label.into(), value));
                }
            }
            "tags_to_remove" | "tagsToRemove" => {
                let names = list(value).at(key)?.iter().enumerate().map(|(i, v)| text(v).at_index(key, i));
                out.remove = names.map(|n| n.map(Into::into)).collect::<Result<_, _>>()?;
            }
            "drop" => out.drop = truth(value).at(key)?,
            "match" => match text(value).at(key)? {
                "" => {}
                _ => return Err(Bad::unsupported(key)),
            },
            _ => return Err(Bad::unsupported(key)),
        }
    }
    Ok(out)
}

fn dimension(text: &str, asked: &mut Vec<Expr>) -> Result<Value, Bad> {
    let expr = expr::parse(text).map_err(Bad::new)?;
    if let Some(text) = expr.as_literal() {
        return Ok(Value::Literal(text.into()));
    }
    asked.push(expr);
    Ok(Value::Asked(asked.len().saturating_sub(1)))
}

fn is_label(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.chars().all(legal)
}

fn sorted(object: &Struct) -> Vec<(&str, &Json)> {
    let mut all: Vec<(&str, &Json)> = object.fields.iter().map(|(k, v)| (k.as_str(), v)).collect();
    all.sort_by_key(|(k, _)| *k);
    all
}

fn text(value: &Json) -> Result<&str, Bad> {
    match &value.kind {
        Some(Kind::StringValue(text)) => Ok(text),
        None | Some(Kind::NullValue(_)) => Ok(""),
        _ => Err(Bad::new("not a text")),
    }
}

fn truth(value: &Json) -> Result<bool, Bad> {
    match &value.kind {
        Some(Kind::BoolValue(value)) => Ok(*value),
        None | Some(Kind::NullValue(_)) => Ok(false),
        _ => Err(Bad::new("neither true nor false")),
    }
}

fn list(value: &Json) -> Result<&[Json], Bad> {
    match &value.kind {
        Some(Kind::ListValue(list)) => Ok(&list.values),
        None | Some(Kind::NullValue(_)) => Ok(&[]),
        _ => Err(Bad::new("not a list")),
    }
}

fn object(value: &Json) -> Result<&Struct, Bad> {
    match &value.kind {
        Some(Kind::StructValue(object)) => Ok(object),
        _ => Err(Bad::new("not an object")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    fn json(value: &serde_json::Value) -> Json {
        use serde_json::Value as V;
        Json {
            kind: Some(match value {
                V::Null => Kind::NullValue(0),
                V::Bool(b) => Kind::BoolValue(*b),
                V::Number(n) => Kind::NumberValue(n.as_f64().unwrap()),
                V::String(s) => Kind::StringValue(s.clone()),
                V::Array(a) => Kind::ListValue(envoy_types::pb::google::protobuf::ListValue {
                    values: a.iter().map(json).collect(),
                }),
                V::Object(o) => {
                    Kind::StructValue(Struct { fields: o.iter().map(|(k, v)| (k.clone(), json(v))).collect() })
                }
            }),
        }
    }

    fn read(value: serde_json::Value) -> Result<Stats, Bad> {
        let Some(Kind::StructValue(value)) = json(&value).kind else { panic!() };
        let typed = TypedStruct { type_url: "type.googleapis.com/stats.PluginConfig".to_owned(), value: Some(value) };
        let any =
            Any { type_url: "type.googleapis.com/xds.type.v3.TypedStruct".to_owned(), value: typed.encode_to_vec() };
        assert!(is_stats(NAME, &any));
        stats(&any)
    }

    #[test]
    fn overrides_of_metrics() {
        let stats = read(serde_json::json!({
            "disable_host_header_fallback": true,
            "metrics": [
                {"name": "requests_total", "dimensions": {"host": "request.host", "zone": "'a'"}, "tags_to_remove": ["response_flags"]},
                {"tags_to_remove": ["source_app"]},
                {"name": "request_bytes", "drop": true},
            ],
        }))
        .unwrap();
        assert!(stats.disable_host_fallback);
        let labels = || -> crate::model::stats::Labels {
            [("response_flags", "-"), ("source_app", "x")].map(|(k, v)| (k.to_owned(), v.to_owned())).into()
        };
        let shown = |metric| {
            let all = stats.labels(metric, labels(), &["h".into()])?;
            Some(all.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(","))
        };
        assert_eq!(shown(Metric::Requests).as_deref(), Some("host=h,zone=a"));
        assert_eq!(shown(Metric::Duration).as_deref(), Some("response_flags=-"));
        assert_eq!(shown(Metric::RequestBytes), None);
        for (value, field) in [
            (serde_json::json!({"metrics": [{"name": "nothing"}]}), "value.metrics[0].name"),
            (serde_json::json!({"metrics": [{"dimensions": {"a": "node.id"}}]}), "value.metrics[0].dimensions.a"),
            (serde_json::json!({"metrics": [{"dimensions": {"a b": "'x'"}}]}), "value.metrics[0].dimensions.a b"),
            (serde_json::json!({"metrics": [{"match": "true"}]}), "value.metrics[0].match"),
            (serde_json::json!({"definitions": []}), "value.definitions"),
        ] {
            assert_eq!(read(value).unwrap_err().field, field);
        }
    }
}
