//! Messages out of JSON, and one message merged into another, by reflection: what an EnvoyFilter's patch does.
//!
//! Invariant: an unknown field is an error, never skipped. Merging is protobuf's (messages merge, lists grow, the rest is replaced), with two
//! exceptions that Istio makes: an `Any` of the same type is merged inside, and well-known wrappers and durations are replaced whole.

use prost::Message;
use prost_reflect::{
    DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, ReflectMessage, Value as Dynamic,
    prost_types::Any as ReflectAny,
};
use serde_json::Value;

use crate::{JsonError, dynamic, pool};

const ANY: &str = "google.protobuf.Any";

/// What becomes of lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lists {
    /// They grow.
    Append,
    /// They are replaced.
    Replace,
}

/// The bytes of a message given as JSON, in either naming of fields.
///
/// # Errors
/// [`JsonError::UnknownType`], or [`JsonError::Decode`] with the field that is wrong.
pub fn bytes_from_json(type_name: &str, json: &Value) -> Result<Vec<u8>, JsonError> {
    let descriptor =
        pool()?.get_message_by_name(type_name).ok_or_else(|| JsonError::UnknownType(type_name.to_owned()))?;
    DynamicMessage::deserialize_with_options(descriptor, json, &DeserializeOptions::new().deny_unknown_fields(true))
        .map(|message| message.encode_to_vec())
        .map_err(|e| JsonError::Decode { type_name: type_name.to_owned(), reason: e.to_string() })
}

/// `base` with `patch` merged into it; both are messages of that type.
///
/// # Errors
/// [`JsonError`] when either is not.
pub fn merge(type_name: &str, base: &[u8], patch: &[u8], lists: Lists) -> Result<Vec<u8>, JsonError> {
    let mut merged = dynamic(type_name, base)?;
    into(&mut merged, &dynamic(type_name, patch)?, lists)?;
    Ok(merged.encode_to_vec())
}

fn into(base: &mut DynamicMessage, patch: &DynamicMessage, lists: Lists) -> Result<(), JsonError> {
    if base.descriptor().full_name() == ANY {
        return into_any(base, patch, lists);
    }
    for (field, value) in patch.fields() {
        match value {
            Dynamic::List(more) if lists == Lists::Append => {
                if let Dynamic::List(list) = base.get_field_mut(&field) {
                    list.extend(more.iter().cloned());
                }
            }
            Dynamic::Map(more) => {
                if let Dynamic::Map(map) = base.get_field_mut(&field) {
                    for (key, value) in more {
                        match (map.get_mut(key), value) {
                            (Some(Dynamic::Message(known)), Dynamic::Message(value)) => into(known, value, lists)?,
                            _ => {
                                map.insert(key.clone(), value.clone());
                            }
                        }
                    }
                }
            }
            Dynamic::Message(message) if merges(&field) && base.has_field(&field) => {
                if let Dynamic::Message(known) = base.get_field_mut(&field) {
                    into(known, message, lists)?;
                }
            }
            other => base.set_field(&field, other.clone()),
        }
    }
    Ok(())
}

/// Whether a message is merged rather than replaced.
fn merges(field: &FieldDescriptor) -> bool {
    match field.kind() {
        Kind::Message(message) => message.full_name() == ANY || !message.full_name().starts_with("google.protobuf."),
        _ => false,
    }
}

fn into_any(base: &mut DynamicMessage, patch: &DynamicMessage, lists: Lists) -> Result<(), JsonError> {
    let read = |message: &DynamicMessage| {
        ReflectAny::decode(&*message.encode_to_vec())
            .map_err(|e| JsonError::Decode { type_name: ANY.to_owned(), reason: e.to_string() })
    };
    let (mut known, more) = (read(base)?, read(patch)?);
    if known.type_url == more.type_url {
        let type_name = known.type_url.rsplit('/').next().unwrap_or_default();
        known.value = merge(type_name, &known.value, &more.value, lists)?;
    } else {
        known = more;
    }
    *base = dynamic(ANY, &known.encode_to_vec())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Names, bytes_to_json};
    use serde_json::json;

    const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";

    fn merged(base: Value, patch: Value, lists: Lists) -> Value {
        let bytes = |json| bytes_from_json(CLUSTER, &json).expect("a cluster");
        let all = merge(CLUSTER, &bytes(base), &bytes(patch), lists).expect("merges");
        bytes_to_json(&format!("type.googleapis.com/{CLUSTER}"), &all, Names::Proto).expect("shows")
    }

    #[test]
    fn messages_merge_lists_grow_durations_are_replaced() {
        let base = json!({"name": "a", "connect_timeout": "10.5s", "circuit_breakers": {"thresholds": [{"max_connections": 1}]},
            "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": 5}}});
        let patch = json!({"connect_timeout": "1s", "circuit_breakers": {"thresholds": [{"max_connections": 2}]},
            "upstream_connection_options": {"tcp_keepalive": {"keepalive_probes": 3}}});
        let all = merged(base.clone(), patch.clone(), Lists::Append);
        assert_eq!(all["connect_timeout"], "1s");
        assert_eq!(all["circuit_breakers"]["thresholds"].as_array().map(Vec::len), Some(2));
        assert_eq!(
            all["upstream_connection_options"]["tcp_keepalive"],
            json!({"keepalive_time": 5, "keepalive_probes": 3})
        );
        let all = merged(base, patch, Lists::Replace);
        assert_eq!(all["circuit_breakers"]["thresholds"], json!([{"max_connections": 2}]));
    }

    #[test]
    fn an_any_merges_inside() {
        const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        let typed = |content: Value| {
            let mut any = json!({"@type": format!("type.googleapis.com/{OPTIONS}")});
            any.as_object_mut().expect("a map").extend(content.as_object().expect("a map").clone());
            json!({"name": "a", "typed_extension_protocol_options": {OPTIONS: any}})
        };
        let base = typed(json!({"explicit_http_config": {"http2_protocol_options": {}}}));
        let patch = typed(json!({"common_http_protocol_options": {"idle_timeout": "9s"}}));
        let all = merged(base, patch, Lists::Append);
        let options = &all["typed_extension_protocol_options"][OPTIONS];
        assert_eq!(options["common_http_protocol_options"]["idle_timeout"], "9s");
        assert!(options["explicit_http_config"].is_object(), "{options}");
    }

    #[test]
    fn an_unknown_field_is_named() {
        let error = bytes_from_json(CLUSTER, &json!({"nmae": "a"})).expect_err("no such field").to_string();
        assert!(error.contains("nmae"), "{error}");
    }
}
