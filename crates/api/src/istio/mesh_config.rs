//! `MeshConfig`: settings of the whole mesh, with Istio's defaults.
//!
//! Invariant: `MeshConfig::default()` is what an absent configuration means; reading a partial one fills in the rest.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::extension_provider::ExtensionProvider;
use super::proxy_config::DefaultProxyConfig;
use super::sidecar::OutboundMode;
use super::traffic::{ConnectionPool, H2UpgradePolicy, LocalityLb, OutlierDetection, TcpKeepalive};
use crate::object::{ReadError, from_value};
use crate::scalar::{Duration, nullable, proto_enum};

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshConfig {
    pub proxy_listen_port: u16,
    pub proxy_inbound_listen_port: u16,
    /// 0: no HTTP proxy listener.
    pub proxy_http_port: u16,
    pub connect_timeout: Duration,
    /// Zero: wait for the first bytes without limit.
    pub protocol_detection_timeout: Duration,
    pub trust_domain: String,
    pub trust_domain_aliases: Vec<String>,
    pub root_namespace: String,
    pub enable_auto_mtls: bool,
    pub outbound_traffic_policy: MeshOutboundPolicy,
    pub inbound_traffic_policy: MeshInboundPolicy,
    pub default_service_export_to: Vec<String>,
    pub default_virtual_service_export_to: Vec<String>,
    pub default_destination_rule_export_to: Vec<String>,
    pub locality_lb_setting: LocalityLb,
    pub dns_refresh_rate: Duration,
    pub enable_prometheus_merge: bool,
    /// Empty: no access log.
    pub access_log_file: String,
    pub access_log_encoding: AccessLogEncoding,
    /// Empty: Istio's text or JSON format.
    pub access_log_format: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_keepalive: Option<TcpKeepalive>,
    #[serde(deserialize_with = "nullable")]
    pub path_normalization: PathNormalization,
    #[serde(rename = "meshMTLS", skip_serializing_if = "Option::is_none")]
    pub mesh_mtls: Option<MeshTls>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_defaults: Option<MeshTls>,
    pub h2_upgrade_policy: H2UpgradePolicy,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_traffic_policy: Option<DefaultTrafficPolicy>,
    /// Of routes that say nothing of retries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_http_retry_policy: Option<super::virtual_service::HttpRetry>,
    /// Trust domains besides ours whose roots are distributed; only the names are read here.
    pub ca_certificates: Vec<CaCertificate>,
    /// Who decides for policies with action `CUSTOM`, who is told of requests; by name.
    pub extension_providers: Vec<ExtensionProvider>,
    /// Providers of whoever names none.
    pub default_providers: DefaultProviders,
    /// Tracing by `default_config.tracing`, where no provider is named.
    pub enable_tracing: bool,
    /// Access logs of connections that no listener takes are Envoy's only; kept for validation.
    pub disable_envoy_listener_log: bool,
    /// Access logs by `access_log_service` of `default_config`; not supported.
    pub enable_envoy_access_log_service: bool,
    /// What every proxy has unless its pod or a `ProxyConfig` says otherwise.
    #[serde(deserialize_with = "nullable")]
    pub default_config: DefaultProxyConfig,
    /// What holds for services by host.
    pub service_settings: Vec<ServiceSettings>,
    /// Namespaces whose objects count, by their labels: any one selector is enough; none means all of them.
    pub discovery_selectors: Vec<crate::gateway_api::gateway::Selector>,
    /// Not part of Istio's schema: the DNS suffix of the cluster, which Istio takes from its command line.
    pub domain_suffix: String,
    pub enable_namespaces_by_default: bool,
}

impl Default for MeshConfig {
    fn default() -> Self {
        let all = || vec!["*".to_owned()];
        Self {
            proxy_listen_port: 15001,
            proxy_inbound_listen_port: 15006,
            proxy_http_port: 0,
            connect_timeout: Duration::from_secs(10),
            protocol_detection_timeout: Duration::default(),
            trust_domain: "cluster.local".to_owned(),
            trust_domain_aliases: Vec::new(),
            root_namespace: "istio-system".to_owned(),
            enable_auto_mtls: true,
            outbound_traffic_policy: MeshOutboundPolicy::default(),
            inbound_traffic_policy: MeshInboundPolicy::default(),
            default_service_export_to: all(),
            default_virtual_service_export_to: all(),
            default_destination_rule_export_to: all(),
            locality_lb_setting: LocalityLb { enabled: Some(true), ..LocalityLb::default() },
            dns_refresh_rate: Duration::from_secs(60),
            enable_prometheus_merge: true,
            access_log_file: String::new(),
            access_log_encoding: AccessLogEncoding::Text,
            access_log_format: String::new(),
            tcp_keepalive: None,
            path_normalization: PathNormalization::default(),
            mesh_mtls: None,
            tls_defaults: None,
            h2_upgrade_policy: H2UpgradePolicy::Default,
            default_traffic_policy: None,
            default_http_retry_policy: None,
            ca_certificates: Vec::new(),
            extension_providers: Vec::new(),
            default_providers: DefaultProviders::default(),
            enable_tracing: true,
            disable_envoy_listener_log: false,
            enable_envoy_access_log_service: false,
            default_config: DefaultProxyConfig::default(),
            service_settings: Vec::new(),
            domain_suffix: "cluster.local".to_owned(),
            discovery_selectors: Vec::new(),
            enable_namespaces_by_default: false,
        }
    }
}

impl MeshConfig {
    /// Reads a partial configuration; what is absent or `null` has its default.
    ///
    /// # Errors
    /// When a field has a wrong type or an enum an unknown value.
    pub fn read(value: &Value) -> Result<Self, ReadError> {
        match without_nulls(value) {
            Value::Null => Ok(Self::default()),
            value => from_value(&value),
        }
    }
}

/// A copy without nulls, at any depth: a null in an object stands for nothing.
pub fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(_, value)| !value.is_null());
            Value::Object(kept.map(|(key, value)| (key.clone(), without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshOutboundPolicy {
    pub mode: OutboundMode,
}

impl Default for MeshOutboundPolicy {
    fn default() -> Self {
        // Unlike an empty block in a Sidecar, the mesh's default lets unknown destinations through.
        Self { mode: OutboundMode::AllowAny }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshInboundPolicy {
    pub mode: InboundMode,
}

proto_enum! {
    /// Where inbound traffic is delivered.
    pub enum InboundMode {
        /// The pod's own address.
        Passthrough = 0 "PASSTHROUGH",
        /// 127.0.0.1.
        Localhost = 1 "LOCALHOST",
    } default Passthrough
}

proto_enum! {
    pub enum AccessLogEncoding {
        Text = 0 "TEXT",
        Json = 1 "JSON",
    } default Text
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PathNormalization {
    pub normalization: Normalization,
}

proto_enum! {
    /// How request paths are normalised before they are matched.
    pub enum Normalization {
        Default = 0 "DEFAULT",
        None = 1 "NONE",
        Base = 2 "BASE",
        MergeSlashes = 3 "MERGE_SLASHES",
        DecodeAndMergeSlashes = 4 "DECODE_AND_MERGE_SLASHES",
    } default Default
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshTls {
    pub min_protocol_version: TlsVersion,
    pub ecdh_curves: Vec<String>,
    pub cipher_suites: Vec<String>,
}

proto_enum! {
    /// Lowest TLS version; automatic means 1.2.
    pub enum TlsVersion {
        Auto = 0 "TLS_AUTO",
        V1_2 = 1 "TLSV1_2",
        V1_3 = 2 "TLSV1_3",
    } default Auto
}

/// What a host without a rule of its own gets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DefaultTrafficPolicy {
    pub connection_pool: Option<ConnectionPool>,
    pub outlier_detection: Option<OutlierDetection>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CaCertificate {
    pub pem: String,
    pub spiffe_bundle_url: String,
    pub trust_domains: Vec<String>,
}

/// Names of extension providers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DefaultProviders {
    pub tracing: Vec<String>,
    /// `None`, as Istio's installation has it: Prometheus. An empty list counts nothing.
    pub metrics: Option<Vec<String>>,
    pub access_logging: Vec<String>,
}

/// What holds for services of some hosts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSettings {
    #[serde(deserialize_with = "nullable")]
    pub settings: HostSettings,
    pub hosts: Vec<String>,
}

/// Settings of a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostSettings {
    /// Only endpoints of the client's own cluster are used.
    #[serde(deserialize_with = "nullable")]
    pub cluster_local: bool,
}
