//! Rules of `MeshConfig`, as a ConfigMap carries it (spec §15).
//!
//! Invariant: what is absent has Istio's default and is right; what is there is judged as the control plane reads it.

use carrick_base::FieldPath;
use serde_json::Value;

use super::{Findings, Node, connection_pool, load_balancer, names, virtual_service};
use crate::istio::traffic::{ConnectionPool, LocalityLb};
use crate::object::from_value;
use crate::parse;

/// Where the ConfigMap keeps it.
const KEY: &str = "mesh";

/// A ConfigMap that holds a mesh configuration, `istio` or `istio-REVISION`.
pub(super) fn config_map(object: &Value, findings: &mut Findings) {
    let root = Node::root(object);
    let name = root.field("metadata").field("name").text();
    let text = root.field("data").field(KEY);
    if !(name == "istio" || name.starts_with("istio-")) || !text.is_set() {
        return;
    }
    match parse::documents(text.text().as_bytes()) {
        Ok(documents) => {
            for document in documents {
                check(&document, findings);
            }
        }
        Err(error) => findings.error(&FieldPath::new("data").field(KEY), error.to_string()),
    }
}

/// A mesh configuration by itself.
pub(super) fn check(config: &Value, findings: &mut Findings) {
    let mesh = Node::root(config);
    for field in ["proxyListenPort", "proxyInboundListenPort"] {
        let port = mesh.field(field);
        if port.is_set() {
            findings.port_number(&port);
        }
    }
    let timeout = mesh.field("connectTimeout");
    findings.duration(&timeout.path, timeout.duration());
    if timeout.duration().is_some_and(|timeout| timeout.get().as_secs_f64() > 30.0) {
        findings.error(&timeout.path, "connect timeout must be between 1ms and 30s");
    }
    let detection = mesh.field("protocolDetectionTimeout");
    if detection.duration().is_some_and(|timeout| timeout.get().subsec_nanos() % 1_000_000 != 0) {
        findings.error(&detection.path, "only durations to ms precision are supported");
    }
    trust_domains(&mesh, findings);
    let locality = mesh.field("localityLbSetting");
    if let Some(Ok(settings)) = locality.value().map(from_value::<LocalityLb>) {
        load_balancer::locality(&settings, true, &locality.path, findings);
    }
    for settings in mesh.field("serviceSettings").items() {
        for host in settings.field("hosts").items() {
            if let Err(message) = names::wildcard_domain(host.text()) {
                findings.error(&host.path, message);
            }
        }
    }
    let curves = mesh.field("meshMTLS").field("ecdhCurves");
    if curves.is_set() {
        findings.error(&curves.path, "mesh TLS does not support ECDH curves configuration");
    }
    let pool = mesh.field("defaultTrafficPolicy").field("connectionPool");
    if let Some(Ok(settings)) = pool.value().map(from_value::<ConnectionPool>) {
        connection_pool::check(&settings, &pool.path, findings);
    }
    for field in ["defaultHttpRetryPolicy", "defaultInboundHttpRetryPolicy"] {
        virtual_service::retries(&mesh.field(field), findings);
    }
    providers(&mesh.field("extensionProviders"), findings);
    proxy(&mesh.field("defaultConfig"), findings);
}

fn trust_domains(mesh: &Node<'_>, findings: &mut Findings) {
    let own = mesh.field("trustDomain");
    let listed = mesh.field("trustDomainAliases").items();
    for domain in listed.into_iter().chain(own.is_set().then_some(own)) {
        let text = domain.text().strip_suffix('.').unwrap_or(domain.text());
        if domain.text().is_empty() {
            findings.error(&domain.path, "empty domain name not allowed");
        } else if !text.split('.').all(names::is_label) {
            findings.error(&domain.path, format!("trust domain name {:?} invalid", domain.text()));
        }
    }
}

/// Providers have a name of their own, and exactly one kind.
fn providers(list: &Node<'_>, findings: &mut Findings) {
    let mut seen = std::collections::BTreeSet::new();
    for provider in list.items() {
        let name = provider.field("name");
        if name.text().is_empty() {
            findings.warning(&name.path, "empty extension provider name");
        } else if !seen.insert(name.text()) {
            findings.warning(&name.path, format!("duplicate extension provider name {}", name.text()));
        }
        if provider.len() < 2 {
            findings.warning(&provider.path, "unsupported provider: nothing but a name is given");
        }
        for (kind, settings) in provider.entries() {
            let service = settings.field("service");
            if service.is_set() && service.text().is_empty() {
                findings.warning(&service.path, format!("{kind}: service must not be empty"));
            }
            let port = settings.field("port");
            if port.is_set() && !(1..=65535).contains(&port.number()) {
                findings.warning(
                    &port.path,
                    format!("invalid service port: port number {} must be in the range 1..65535", port.number()),
                );
            }
        }
    }
}

fn proxy(config: &Node<'_>, findings: &mut Findings) {
    let drain = config.field("drainDuration");
    findings.duration(&drain.path, drain.duration());
    if drain.duration().is_some_and(|drain| drain.get().subsec_nanos() != 0) {
        findings.error(&drain.path, "drain time only supports durations to seconds precision");
    }
    for field in ["proxyAdminPort", "statusPort"] {
        let port = config.field(field);
        if port.is_set() {
            findings.port_number(&port);
        }
    }
    let tracing = config.field("tracing");
    let services = [
        config.field("envoyAccessLogService").field("address"),
        config.field("envoyMetricsService").field("address"),
        config.field("discoveryAddress"),
        config.field("statsdUdpAddress"),
        tracing.field("zipkin").field("address"),
        tracing.field("datadog").field("address"),
        tracing.field("lightstep").field("address"),
    ];
    for address in services.iter().filter(|address| !address.text().is_empty()) {
        let text = address.text().replace("$(HOST_IP)", "127.0.0.1");
        let (host, port) = text.rsplit_once(':').unwrap_or((&text, ""));
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if port.parse::<u16>().map_or(true, |port| port == 0) {
            findings.error(&address.path, format!("{text:?} is not of form host:port"));
        } else if names::fqdn(host).is_err() && !names::is_ip(bare) {
            findings.error(&address.path, format!("{bare:?} is not a valid hostname or an IP address"));
        }
    }
    if config.field("proxyMetadata").field("ISTIO_META_DNS_AUTO_ALLOCATE").is_set() {
        findings.warning(
            &config.path.field("proxyMetadata"),
            "'ISTIO_META_DNS_AUTO_ALLOCATE' is deprecated; addresses are allocated in the objects' status now",
        );
    }
}
