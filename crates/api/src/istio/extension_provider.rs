//! `meshConfig.extensionProviders`: external authorizers, by HTTP and by gRPC, and who is told of requests (`telemetry_provider`).
//!
//! Invariant: kept as written; which cluster a service means is decided in `mesh`. Of a kind that is not known only its name is kept.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::telemetry_provider::{FileLog, GrpcLog, OpenTelemetry, OtelLog, Zipkin};
use crate::scalar::{Duration, nullable, nullable_map};

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtensionProvider {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envoy_ext_authz_http: Option<HttpAuthorizer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envoy_ext_authz_grpc: Option<GrpcAuthorizer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envoy_file_access_log: Option<FileLog>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envoy_otel_als: Option<OtelLog>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envoy_http_als: Option<GrpcLog>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub envoy_tcp_als: Option<GrpcLog>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opentelemetry: Option<OpenTelemetry>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zipkin: Option<Zipkin>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<Prometheus>,
    /// Kinds that are none of the above, by name.
    #[serde(flatten)]
    pub others: BTreeMap<String, Other>,
}

/// The mesh's own metrics; nothing to say about them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Prometheus {}

/// Settings of a kind that is not known.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Other(pub Value);

impl PartialEq for Other {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Other {}

impl std::hash::Hash for Other {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        // Equal objects may have their keys in another order.
        self.0.is_null().hash(state);
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpAuthorizer {
    /// `host` or `namespace/host`.
    #[serde(deserialize_with = "nullable")]
    pub service: String,
    #[serde(deserialize_with = "nullable")]
    pub port: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub path_prefix: String,
    #[serde(deserialize_with = "nullable")]
    pub fail_open: bool,
    #[serde(deserialize_with = "nullable")]
    pub clear_route_cache: bool,
    /// A status code as text.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub status_on_error: String,
    /// The old name of `includeRequestHeadersInCheck`.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub include_headers_in_check: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub include_request_headers_in_check: Vec<String>,
    #[serde(deserialize_with = "nullable_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub include_additional_headers_in_check: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include_request_body_in_check: Option<RequestBody>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub headers_to_upstream_on_allow: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub headers_to_downstream_on_deny: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub headers_to_downstream_on_allow: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcAuthorizer {
    /// `host` or `namespace/host`.
    #[serde(deserialize_with = "nullable")]
    pub service: String,
    #[serde(deserialize_with = "nullable")]
    pub port: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    #[serde(deserialize_with = "nullable")]
    pub fail_open: bool,
    #[serde(deserialize_with = "nullable")]
    pub clear_route_cache: bool,
    /// A status code as text.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub status_on_error: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub include_request_body_in_check: Option<RequestBody>,
}

/// How much of a request's body the authorizer sees.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestBody {
    #[serde(deserialize_with = "nullable")]
    pub max_request_bytes: u32,
    #[serde(deserialize_with = "nullable")]
    pub allow_partial_message: bool,
    #[serde(deserialize_with = "nullable")]
    pub pack_as_bytes: bool,
}
