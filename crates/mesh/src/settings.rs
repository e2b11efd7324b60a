//! The mesh's settings, parsed (semantics §15).
//!
//! Invariant: durations are milliseconds; lists whose order means nothing are sorted and without duplicates.

use std::sync::Arc;

use carrick_api::{
    MeshConfig,
    istio::{
        mesh_config::{InboundMode, Normalization, TlsVersion},
        sidecar::OutboundMode,
        traffic::H2UpgradePolicy,
    },
};
use carrick_base::{Diagnostic, FieldPath, ObjectRef, Severity, TrustDomain};

use crate::{
    codes,
    model::{
        locality::LocalityPolicy,
        policy::{ConnectionPool, Keepalive, OutlierDetection},
        virtual_service::RetryRule,
    },
    parts::{ListenerSettings, PathNormalization},
    proxy::{ClientCertHeader, Topology},
    read::{traffic, virtual_service},
};

/// The mesh's settings.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Settings {
    /// The namespace whose policies are mesh-wide.
    pub root_namespace: Arc<str>,
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// Other names of the trust domain.
    pub trust_domain_aliases: Vec<Arc<str>>,
    /// All trust domains a server takes.
    pub accepted_trust_domains: Vec<Arc<str>>,
    /// The cluster's DNS suffix.
    pub domain_suffix: Arc<str>,
    /// Whether clients use mesh TLS on their own wherever the server can.
    pub auto_mtls: bool,
    /// Whether traffic to what nobody declared may leave.
    pub allow_any: bool,
    /// Whether inbound traffic goes to 127.0.0.1 rather than the pod's address.
    pub inbound_localhost: bool,
    /// Where outbound traffic is redirected to.
    pub outbound_port: u16,
    /// Where inbound traffic is redirected to.
    pub inbound_port: u16,
    /// Milliseconds to connect.
    pub connect_timeout: u64,
    /// What stands before gateways that say nothing themselves.
    pub topology: Topology,
    /// What every listener carries, but for telemetry, which follows from the workload.
    pub listener: ListenerSettings,
    /// Mesh TLS of version 1.3 only.
    pub min_tls13: bool,
    /// TLS 1.2 suites of mesh TLS; empty for the defaults.
    pub cipher_suites: Vec<Arc<str>>,
    /// HTTP/2 towards ports declared HTTP.
    pub h2_upgrade: bool,
    /// Keep-alive of upstream connections.
    pub tcp_keepalive: Option<Keepalive>,
    /// Limits where no rule has any.
    pub default_pool: Option<ConnectionPool>,
    /// Which endpoints come first where no rule says; `None` for no preference.
    pub locality: Option<Arc<LocalityPolicy>>,
    /// Milliseconds after which a name that could not be resolved is tried again.
    pub dns_refresh: u64,
    /// When a request is tried again where no rule says.
    pub default_retries: RetryRule,
    /// Outlier detection where no rule has any.
    pub default_outlier: Option<OutlierDetection>,
    /// `exportTo` of services that say nothing.
    pub service_export_to: Vec<String>,
    /// `exportTo` of rules that say nothing.
    pub rule_export_to: Vec<String>,
    /// `exportTo` of VirtualServices that say nothing.
    pub virtual_service_export_to: Vec<String>,
}

impl Settings {
    /// Reads a mesh configuration. What cannot be honoured falls back to the stricter choice, with a finding.
    pub fn parse(config: &MeshConfig) -> (Self, Vec<Diagnostic>) {
        let mut found = Vec::new();
        let mut report = |field: &str, message: String| {
            found.push(Diagnostic {
                code: codes::UNSUPPORTED,
                severity: Severity::Warning,
                object: ObjectRef::new("MeshConfig", "", "mesh"),
                field: FieldPath::new(field),
                message,
            });
        };
        let trust_domain = TrustDomain::new(&config.trust_domain.replace('@', ".")).unwrap_or_else(|error| {
            report("trustDomain", format!("{error}; using cluster.local"));
            TrustDomain::default()
        });
        let aliases = sorted(config.trust_domain_aliases.iter().map(|a| a.replace('@', ".")));
        let others = config.ca_certificates.iter().flat_map(|c| c.trust_domains.iter().cloned());
        let accepted =
            sorted([trust_domain.to_string()].into_iter().chain(aliases.iter().map(ToString::to_string)).chain(others));
        let allow_any = match config.outbound_traffic_policy.mode {
            OutboundMode::RegistryOnly => false,
            OutboundMode::AllowAny => true,
            OutboundMode::AllowAnyDynamicDns => {
                report("outboundTrafficPolicy.mode", "ALLOW_ANY_DYNAMIC_DNS acts as ALLOW_ANY".to_owned());
                true
            }
        };
        let mesh_tls = config.mesh_mtls.clone().unwrap_or_default();
        let pool = config.default_traffic_policy.as_ref().and_then(|p| p.connection_pool.as_ref());
        let outlier = config.default_traffic_policy.as_ref().and_then(|p| p.outlier_detection.as_ref());
        let retries = config.default_http_retry_policy.as_ref().map(virtual_service::http::retries);
        let retries = retries.unwrap_or(Ok(RetryRule::Default)).unwrap_or_else(|(field, message)| {
            let field = field.strip_prefix(".retries").unwrap_or_default();
            report(&format!("defaultHttpRetryPolicy{field}"), format!("{message}; as if it were not there"));
            RetryRule::Default
        });
        let settings = Self {
            root_namespace: config.root_namespace.as_str().into(),
            trust_domain,
            trust_domain_aliases: aliases,
            accepted_trust_domains: accepted,
            domain_suffix: config.domain_suffix.as_str().into(),
            auto_mtls: config.enable_auto_mtls,
            allow_any,
            inbound_localhost: config.inbound_traffic_policy.mode == InboundMode::Localhost,
            outbound_port: config.proxy_listen_port,
            inbound_port: config.proxy_inbound_listen_port,
            connect_timeout: traffic::millis(config.connect_timeout),
            topology: topology(config),
            listener: ListenerSettings {
                detection_timeout: traffic::millis(config.protocol_detection_timeout),
                telemetry: Arc::default(),
                paths: match config.path_normalization.normalization {
                    Normalization::None => PathNormalization::None,
                    Normalization::Default | Normalization::Base => PathNormalization::Base,
                    Normalization::MergeSlashes => PathNormalization::MergeSlashes,
                    Normalization::DecodeAndMergeSlashes => PathNormalization::DecodeAndMergeSlashes,
                },
            },
            min_tls13: mesh_tls.min_protocol_version == TlsVersion::V1_3,
            cipher_suites: mesh_tls.cipher_suites.iter().map(|c| c.as_str().into()).collect(),
            h2_upgrade: config.h2_upgrade_policy == H2UpgradePolicy::Upgrade,
            tcp_keepalive: config.tcp_keepalive.as_ref().map(traffic::keepalive),
            default_pool: pool.map(traffic::connection_pool),
            locality: traffic::locality_policy(&config.locality_lb_setting).map(Arc::new),
            dns_refresh: traffic::millis(config.dns_refresh_rate),
            default_retries: retries,
            default_outlier: outlier.map(traffic::outlier_detection),
            service_export_to: config.default_service_export_to.clone(),
            rule_export_to: config.default_destination_rule_export_to.clone(),
            virtual_service_export_to: config.default_virtual_service_export_to.clone(),
        };
        (settings, found)
    }
}

fn topology(config: &MeshConfig) -> Topology {
    let Some(from) = &config.default_config.gateway_topology else { return Topology::default() };
    Topology {
        trusted_proxies: from.num_trusted_proxies,
        client_cert: ClientCertHeader::named(&from.forward_client_cert_details),
        proxy_protocol: from.proxy_protocol.is_some(),
    }
}

fn sorted(all: impl Iterator<Item = String>) -> Vec<Arc<str>> {
    let mut out: Vec<Arc<str>> = all.filter(|text| !text.is_empty()).map(Arc::from).collect();
    out.sort();
    out.dedup();
    out
}
