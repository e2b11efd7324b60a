//! `Telemetry`: what is measured, traced and logged.
//!
//! Invariant: values are kept as written; which objects act on a workload, and how they add up, is decided in `mesh`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{TargetReference, WorkloadSelector};
use crate::object::Object;
use crate::scalar::{Number, nullable, nullable_map, proto_enum};

pub type Telemetry = Object<TelemetrySpec>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TelemetrySpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetReference>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub target_refs: Vec<TargetReference>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub tracing: Vec<Tracing>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<Metrics>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub access_logging: Vec<AccessLogging>,
}

proto_enum! {
    /// Whose requests are meant: those that the workload takes, those that it makes.
    pub enum Mode {
        ClientAndServer = 0 "CLIENT_AND_SERVER",
        Client = 1 "CLIENT",
        Server = 2 "SERVER",
    } default ClientAndServer
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProviderRef {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ModeSelector {
    #[serde(deserialize_with = "nullable")]
    pub mode: Mode,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Tracing {
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    pub selects: Option<ModeSelector>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub providers: Vec<ProviderRef>,
    /// Percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub random_sampling_percentage: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disable_span_reporting: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disable_context_propagation: Option<bool>,
    #[serde(deserialize_with = "nullable_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub custom_tags: BTreeMap<String, CustomTag>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_request_id_for_trace_sampling: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_istio_tags: Option<bool>,
}

/// Exactly one of the fields.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CustomTag {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub literal: Option<TagText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<TagSource>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<TagSource>,
    /// A format string of Envoy's access logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub formatter: Option<TagText>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TagText {
    #[serde(deserialize_with = "nullable")]
    pub value: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TagSource {
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub default_value: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metrics {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub providers: Vec<ProviderRef>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<MetricsOverride>,
    /// How often connections that go on are counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reporting_interval: Option<crate::scalar::Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MetricsOverride {
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    pub selects: Option<MetricSelector>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    #[serde(deserialize_with = "nullable_map", skip_serializing_if = "BTreeMap::is_empty")]
    pub tag_overrides: BTreeMap<String, TagOverride>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MetricSelector {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<IstioMetric>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub custom_metric: String,
    #[serde(deserialize_with = "nullable")]
    pub mode: Mode,
}

proto_enum! {
    /// A metric of Istio's.
    pub enum IstioMetric {
        AllMetrics = 0 "ALL_METRICS",
        RequestCount = 1 "REQUEST_COUNT",
        RequestDuration = 2 "REQUEST_DURATION",
        RequestSize = 3 "REQUEST_SIZE",
        ResponseSize = 4 "RESPONSE_SIZE",
        TcpOpenedConnections = 5 "TCP_OPENED_CONNECTIONS",
        TcpClosedConnections = 6 "TCP_CLOSED_CONNECTIONS",
        TcpSentBytes = 7 "TCP_SENT_BYTES",
        TcpReceivedBytes = 8 "TCP_RECEIVED_BYTES",
        GrpcRequestMessages = 9 "GRPC_REQUEST_MESSAGES",
        GrpcResponseMessages = 10 "GRPC_RESPONSE_MESSAGES",
    } default AllMetrics
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TagOverride {
    #[serde(deserialize_with = "nullable")]
    pub operation: TagOperation,
    /// A CEL expression.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub value: String,
}

proto_enum! {
    /// What becomes of a label.
    pub enum TagOperation {
        Upsert = 0 "UPSERT",
        Remove = 1 "REMOVE",
    } default Upsert
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AccessLogging {
    #[serde(rename = "match", skip_serializing_if = "Option::is_none")]
    pub selects: Option<ModeSelector>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub providers: Vec<ProviderRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<LogFilter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LogFilter {
    /// A CEL expression.
    #[serde(deserialize_with = "nullable")]
    pub expression: String,
}
