//! Envoy's v3 messages as JSON and back, with every `Any` expanded behind its `@type`.
//!
//! Invariant: what is shown is the message itself, read by reflection over Envoy's own descriptors; no second
//! model of a resource exists here. The descriptors (some hundred kilobytes, and a few megabytes decoded) are
//! loaded at the first call only, so that a proxy nobody asks for JSON does not pay for it.

mod patch;

use std::sync::OnceLock;

use prost::Message;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, SerializeOptions, prost_types::Any as ReflectAny,
};
use serde_json::Value;

pub use patch::{Lists, bytes_from_json, merge};

/// How fields are named in the JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// `filterChains`: protobuf's canonical JSON, as `istioctl proxy-config -o json` prints.
    Camel,
    /// `filter_chains`: as in the `.proto` file and in Envoy's own `/config_dump`.
    Proto,
}

/// Why a message cannot be shown or read.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// The descriptors built into this program cannot be loaded.
    #[error("the built-in descriptors cannot be read: {0}")]
    Descriptors(String),
    /// No descriptor of that name is built in.
    #[error("unknown message type {0:?}")]
    UnknownType(String),
    /// The bytes are not a message of that type.
    #[error("{type_name}: {reason}")]
    Decode {
        /// The full message name.
        type_name: String,
        /// What protobuf says.
        reason: String,
    },
    /// The message holds something JSON has no form for (an `Any` of an unknown type).
    #[error("{type_name}: {reason}")]
    Serialize {
        /// The full message name.
        type_name: String,
        /// What the serializer says.
        reason: String,
    },
}

/// The built-in descriptors, decoded at the first use.
///
/// # Errors
/// [`JsonError::Descriptors`] when they are damaged, which only a broken build can cause.
fn pool() -> Result<&'static DescriptorPool, JsonError> {
    static BYTES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/envoy.fds"));
    static POOL: OnceLock<Result<DescriptorPool, String>> = OnceLock::new();
    POOL.get_or_init(|| DescriptorPool::decode(BYTES).map_err(|e| e.to_string()))
        .as_ref()
        .map_err(|e| JsonError::Descriptors(e.clone()))
}

fn dynamic(type_name: &str, bytes: &[u8]) -> Result<DynamicMessage, JsonError> {
    let descriptor =
        pool()?.get_message_by_name(type_name).ok_or_else(|| JsonError::UnknownType(type_name.to_owned()))?;
    DynamicMessage::decode(descriptor, bytes)
        .map_err(|e| JsonError::Decode { type_name: type_name.to_owned(), reason: e.to_string() })
}

fn serialize(message: &DynamicMessage, names: Names) -> Result<Value, JsonError> {
    let options = SerializeOptions::new().use_proto_field_name(names == Names::Proto);
    message.serialize_with_options(serde_json::value::Serializer, &options).map_err(|e| JsonError::Serialize {
        type_name: prost_reflect::ReflectMessage::descriptor(message).full_name().to_owned(),
        reason: e.to_string(),
    })
}

/// A message as JSON.
///
/// # Errors
/// [`JsonError`] when its type, or that of an `Any` inside it, is not built in.
pub fn to_json<M: Message + prost::Name>(message: &M, names: Names) -> Result<Value, JsonError> {
    serialize(&dynamic(&M::full_name(), &message.encode_to_vec())?, names)
}

/// The content of an `Any` as JSON, without its `@type` (which [`any_to_json`] adds).
///
/// # Errors
/// As [`to_json`]; also when the bytes are not a message of that type.
pub fn bytes_to_json(type_url: &str, bytes: &[u8], names: Names) -> Result<Value, JsonError> {
    let type_name = type_url.rsplit('/').next().unwrap_or(type_url);
    serialize(&dynamic(type_name, bytes)?, names)
}

/// An `Any` as JSON: its content with `@type` first.
///
/// # Errors
/// As [`bytes_to_json`].
pub fn any_to_json(type_url: &str, bytes: &[u8], names: Names) -> Result<Value, JsonError> {
    let any = ReflectAny { type_url: type_url.to_owned(), value: bytes.to_vec() };
    serialize(&dynamic("google.protobuf.Any", &any.encode_to_vec())?, names)
}

/// A JSON message with its `@type` in the other naming: Envoy's `/config_dump` as `istioctl` shows it.
///
/// # Errors
/// As [`any_to_json`]; [`JsonError::Decode`] when the JSON is not the message its `@type` names. Fields newer
/// than the built-in descriptors are left out.
pub fn rename(json: &Value, names: Names) -> Result<Value, JsonError> {
    const ANY: &str = "google.protobuf.Any";
    let descriptor = pool()?.get_message_by_name(ANY).ok_or_else(|| JsonError::UnknownType(ANY.to_owned()))?;
    let message = DynamicMessage::deserialize_with_options(
        descriptor,
        json,
        &DeserializeOptions::new().deny_unknown_fields(false),
    )
    .map_err(|e| JsonError::Decode { type_name: ANY.to_owned(), reason: e.to_string() })?;
    serialize(&message, names)
}

/// Reads a message from JSON (either naming).
///
/// # Errors
/// [`JsonError::Decode`] naming what cannot be read; unknown fields are refused.
pub fn from_json<M: Message + prost::Name + Default>(json: &Value) -> Result<M, JsonError> {
    let type_name = M::full_name();
    let fail = |reason: String| JsonError::Decode { type_name: type_name.clone(), reason };
    let descriptor =
        pool()?.get_message_by_name(&type_name).ok_or_else(|| JsonError::UnknownType(type_name.clone()))?;
    let message = DynamicMessage::deserialize_with_options(
        descriptor,
        json,
        &DeserializeOptions::new().deny_unknown_fields(true),
    )
    .map_err(|e| fail(e.to_string()))?;
    M::decode(message.encode_to_vec().as_slice()).map_err(|e| fail(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::{
        envoy::{
            config::{
                core::v3::{TransportSocket, transport_socket::ConfigType},
                listener::v3::{FilterChain, FilterChainMatch, Listener},
            },
            extensions::transport_sockets::tls::v3::DownstreamTlsContext,
        },
        google::protobuf::{Any, BoolValue, Duration},
    };
    use serde_json::json;

    fn listener() -> Listener {
        let tls =
            DownstreamTlsContext { require_client_certificate: Some(BoolValue { value: true }), ..Default::default() };
        Listener {
            name: "virtualInbound".into(),
            listener_filters_timeout: Some(Duration { seconds: 1, nanos: 500_000_000 }),
            filter_chains: vec![FilterChain {
                filter_chain_match: Some(FilterChainMatch { transport_protocol: "tls".into(), ..Default::default() }),
                transport_socket: Some(TransportSocket {
                    name: "envoy.transport_sockets.tls".into(),
                    config_type: Some(ConfigType::TypedConfig(Any {
                        type_url: format!("type.googleapis.com/{}", <DownstreamTlsContext as prost::Name>::full_name()),
                        value: tls.encode_to_vec(),
                    })),
                }),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn anys_are_expanded_behind_their_type() {
        let shown = to_json(&listener(), Names::Camel).unwrap();
        assert_eq!(
            shown,
            json!({
                "name": "virtualInbound",
                "listenerFiltersTimeout": "1.500s",
                "filterChains": [{
                    "filterChainMatch": {"transportProtocol": "tls"},
                    "transportSocket": {
                        "name": "envoy.transport_sockets.tls",
                        "typedConfig": {
                            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                            "requireClientCertificate": true
                        }
                    }
                }]
            })
        );
        let proto = to_json(&listener(), Names::Proto).unwrap();
        assert_eq!(proto["filter_chains"][0]["filter_chain_match"]["transport_protocol"], "tls");
    }

    #[test]
    fn json_round_trips_and_unknown_fields_are_refused() {
        let shown = to_json(&listener(), Names::Proto).unwrap();
        assert_eq!(from_json::<Listener>(&shown).unwrap(), listener());
        let error = from_json::<Listener>(&json!({"nam": "x"})).unwrap_err().to_string();
        assert!(error.contains("nam"), "{error}");
    }

    #[test]
    fn renaming_keeps_the_message() {
        let bytes = listener().encode_to_vec();
        let type_url = "type.googleapis.com/envoy.config.listener.v3.Listener";
        let dumped = any_to_json(type_url, &bytes, Names::Proto).unwrap();
        assert_eq!(dumped["@type"], type_url);
        assert_eq!(rename(&dumped, Names::Camel).unwrap(), any_to_json(type_url, &bytes, Names::Camel).unwrap());
    }

    #[test]
    fn unknown_types_are_named() {
        let error = any_to_json("type.googleapis.com/no.such.Message", b"", Names::Camel).unwrap_err().to_string();
        assert!(error.contains("no.such.Message"), "{error}");
    }
}
