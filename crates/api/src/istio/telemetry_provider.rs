//! `meshConfig.extensionProviders` that are told of requests: files, OpenTelemetry collectors, access log services, Zipkin.
//!
//! Invariant: kept as written; which cluster a service means is decided in `mesh`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::scalar::{Duration, nullable};

/// `envoyFileAccessLog`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FileLog {
    #[serde(deserialize_with = "nullable")]
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<LogFormat>,
    #[serde(deserialize_with = "nullable")]
    pub omit_empty_values: bool,
}

/// Text or labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LogFormat {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
}

/// A JSON object of format strings, perhaps with objects inside.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Labels(pub Map<String, Value>);

impl std::hash::Hash for Labels {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        // Equal maps may have their keys in another order.
        self.0.len().hash(state);
    }
}

/// `envoyOtelAls`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OtelLog {
    /// `host` or `namespace/host`.
    #[serde(deserialize_with = "nullable")]
    pub service: String,
    #[serde(deserialize_with = "nullable")]
    pub port: u32,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub log_name: String,
    /// Here both may be there: the text is the body, the labels are the attributes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_format: Option<LogFormat>,
}

/// `envoyHttpAls` and `envoyTcpAls`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcLog {
    /// `host` or `namespace/host`.
    #[serde(deserialize_with = "nullable")]
    pub service: String,
    #[serde(deserialize_with = "nullable")]
    pub port: u32,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub log_name: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub filter_state_objects_to_log: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub additional_request_headers_to_log: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub additional_response_headers_to_log: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub additional_response_trailers_to_log: Vec<String>,
}

/// `opentelemetry`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OpenTelemetry {
    /// `host` or `namespace/host`.
    #[serde(deserialize_with = "nullable")]
    pub service: String,
    #[serde(deserialize_with = "nullable")]
    pub port: u32,
    /// 0: Envoy's limit, 256.
    #[serde(deserialize_with = "nullable")]
    pub max_tag_length: u32,
    /// OTLP over HTTP; over gRPC without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpService>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcService>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_detectors: Option<ResourceDetectors>,
    /// A sampler of another maker; not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dynatrace_sampler: Option<super::extension_provider::Other>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub service_attribute_enrichment: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpService {
    #[serde(deserialize_with = "nullable")]
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<Header>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcService {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub initial_metadata: Vec<Header>,
}

/// A header sent along; its value is given, or is that of an environment variable of the proxy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Header {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub value: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub env_name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceDetectors {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<super::extension_provider::Other>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dynatrace: Option<super::extension_provider::Other>,
}

/// `zipkin`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Zipkin {
    /// `host` or `namespace/host`.
    #[serde(deserialize_with = "nullable")]
    pub service: String,
    #[serde(deserialize_with = "nullable")]
    pub port: u32,
    #[serde(deserialize_with = "nullable")]
    pub max_tag_length: u32,
    #[serde(rename = "enable64bitTraceId", deserialize_with = "nullable")]
    pub enable_64bit_trace_id: bool,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub path: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<Header>,
    /// `USE_B3` or `USE_B3_WITH_W3C_PROPAGATION`.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub trace_context_option: String,
}
