//! Rules of `Sidecar` (spec §28, §8, §2.8).
//!
//! Invariant: listeners that would be bound twice are refused; the one without a port is the last.

use std::collections::{BTreeMap, BTreeSet};

use super::host::Place;
use super::{Findings, Node, attachment, connection_pool, host, names, server_tls, virtual_service};
use crate::istio::traffic::ConnectionPool;
use crate::object::from_value;
use crate::protocol::Protocol;

pub(super) fn check(object: &Node<'_>, findings: &mut Findings) {
    let spec = object.field("spec");
    let namespace = object.field("metadata").field("namespace").text();
    attachment::labels(&spec.field("workloadSelector"), "labels", findings);
    let (ingress, egress) = (spec.field("ingress"), spec.field("egress"));
    let policy = spec.field("outboundTrafficPolicy");
    if ingress.is_empty() && egress.is_empty() && !policy.is_set() && !spec.field("inboundConnectionPool").is_set() {
        findings.error(&spec.path, "sidecar: empty configuration provided");
        return;
    }
    if namespace == super::ROOT_NAMESPACE && !spec.field("workloadSelector").field("labels").is_empty() {
        findings.warning(
            &spec.path.field("workloadSelector"),
            "a sidecar with a workload selector in the root namespace applies to workloads of that namespace only",
        );
    }
    let mut numbers = BTreeSet::new();
    for listener in ingress.items() {
        self::ingress(&listener, &mut numbers, findings);
    }
    pool(&spec.field("inboundConnectionPool"), findings);
    self::egress(&egress, namespace, findings);
    outbound(&policy, findings);
}

fn pool(pool: &Node<'_>, findings: &mut Findings) {
    // What cannot be read has been told by the schema.
    if let Some(Ok(settings)) = pool.value().map(from_value::<ConnectionPool>) {
        connection_pool::check(&settings, &pool.path, findings);
    }
}

fn port_name(port: &Node<'_>, findings: &mut Findings) {
    let name = port.field("name");
    if !name.text().is_empty() {
        findings.port_name(&name.path, name.text());
    }
    if port.field("targetPort").number() > 0 {
        findings.error(&port.path.field("targetPort"), "targetPort has no impact on Sidecars");
    }
    findings.protocol(&port.field("protocol"));
}

fn bound_to(bind: &Node<'_>, findings: &mut Findings) {
    if !bind.text().is_empty() && !names::is_ip(bind.text()) {
        findings.error(&bind.path, format!("{} is not a valid IP", bind.text()));
    }
}

fn ingress(listener: &Node<'_>, numbers: &mut BTreeSet<i128>, findings: &mut Findings) {
    let port = listener.field("port");
    if !port.is_set() {
        findings.error(&port.path, "sidecar: port is required for ingress listeners");
        return;
    }
    port_name(&port, findings);
    let number = port.field("number");
    findings.port_number(&number);
    bound_to(&listener.field("bind"), findings);
    if !numbers.insert(number.number()) {
        findings.error(&number.path, "sidecar: ports on IP bound listeners must be unique");
    }
    default_endpoint(&listener.field("defaultEndpoint"), findings);
    let protocol = Protocol::parse(port.field("protocol").text());
    let tls = listener.field("tls");
    if tls.is_set() {
        ingress_tls(&tls, protocol, findings);
    }
    let settings = listener.field("connectionPool");
    pool(&settings, findings);
    if settings.field("http").is_set() && !protocol.is_some_and(Protocol::is_http) {
        findings.warning(
            &settings.path.field("http"),
            format!(
                "sidecar: HTTP connection pool settings are configured for port {} but its protocol is not HTTP ({}); only TCP settings will apply",
                number.number(),
                port.field("protocol").text()
            ),
        );
    }
}

fn ingress_tls(tls: &Node<'_>, protocol: Option<Protocol>, findings: &mut Findings) {
    for field in ["subjectAltNames", "credentialNames", "tlsCertificates"] {
        if !tls.field(field).is_empty() {
            findings.error(&tls.path.field(field), format!("sidecar: {field} is not supported in ingress tls"));
        }
    }
    if tls.field("httpsRedirect").flag() {
        findings.error(&tls.path.field("httpsRedirect"), "sidecar: httpsRedirect is not supported");
    }
    if !tls.field("credentialName").text().is_empty() {
        findings.error(&tls.path.field("credentialName"), "sidecar: credentialName is not currently supported");
    }
    let mode = server_tls::mode(tls);
    if matches!(mode, "ISTIO_MUTUAL" | "AUTO_PASSTHROUGH") {
        findings.error(
            &tls.path.field("mode"),
            format!("configuration is invalid: cannot set mode to {mode} in sidecar ingress tls"),
        );
    }
    if !matches!(protocol, Some(Protocol::Https | Protocol::Tls)) {
        findings.error(&tls.path, "server cannot have TLS settings for non HTTPS/TLS ports");
    }
    server_tls::check(tls, findings);
}

/// `127.0.0.1:port`, `0.0.0.0:port`, `[::1]:port`, `[::]:port`, `:port` or `unix://path`.
fn default_endpoint(endpoint: &Node<'_>, findings: &mut Findings) {
    let text = endpoint.text();
    if text.is_empty() {
        return;
    }
    if let Some(path) = text.strip_prefix("unix://") {
        if let Err(message) = names::unix_path(path) {
            findings.error(&endpoint.path, message);
        }
        return;
    }
    let form = "sidecar: defaultEndpoint must be of form 127.0.0.1:<port>,0.0.0.0:<port>,[::1]:port,[::]:port,unix://filepath or unset";
    let split = match text.strip_prefix('[') {
        Some(rest) => rest.split_once("]:"),
        None => text.split_once(':').filter(|(_, port)| !port.contains(':')),
    };
    match split {
        None => findings.error(&endpoint.path, form),
        Some((host, _)) if !matches!(host, "" | "127.0.0.1" | "0.0.0.0" | "::1" | "::") => {
            findings.error(&endpoint.path, form);
        }
        Some((_, port)) => match port.parse::<u32>() {
            Ok(number) => findings.port(&endpoint.path, number),
            Err(_) => findings.error(&endpoint.path, format!("sidecar: defaultEndpoint port ({port}) is not a number")),
        },
    }
}

fn egress(listeners: &Node<'_>, namespace: &str, findings: &mut Findings) {
    let (mut numbers, mut sockets) = (BTreeSet::new(), BTreeSet::new());
    let count = listeners.len();
    for (index, listener) in listeners.items().iter().enumerate() {
        let port = listener.field("port");
        if port.is_set() {
            egress_port(listener, &mut numbers, &mut sockets, findings);
        } else if index + 1 != count {
            findings.error(
                &port.path,
                "sidecar: the egress listener with empty port should be the last listener in the list",
            );
        }
        let hosts = listener.field("hosts");
        if hosts.is_empty() {
            findings.error(&hosts.path, "sidecar: egress listener must contain at least one host");
        }
        duplicates(&hosts, namespace, findings);
        for host in hosts.items() {
            host::scoped(&host, Place::Sidecar, findings);
        }
    }
}

fn egress_port<'a>(
    listener: &Node<'a>,
    numbers: &mut BTreeSet<i128>,
    sockets: &mut BTreeSet<&'a str>,
    findings: &mut Findings,
) {
    let (port, bind) = (listener.field("port"), listener.field("bind"));
    port_name(&port, findings);
    let number = port.field("number");
    if number.number() != 0 {
        findings.port_number(&number);
        bound_to(&bind, findings);
        if !numbers.insert(number.number()) {
            findings.error(&number.path, "sidecar: ports on IP bound listeners must be unique");
        }
        return;
    }
    match bind.text().strip_prefix("unix://") {
        None => findings.error(&bind.path, "sidecar: ports with 0 value must have a unix domain socket bind address"),
        Some(path) => {
            if let Err(message) = names::unix_path(path) {
                findings.error(&bind.path, message);
            }
        }
    }
    let mode = listener.field("captureMode");
    if mode.choice(&["DEFAULT", "IPTABLES", "NONE"]) == "IPTABLES" {
        findings.error(&mode.path, "sidecar: captureMode must be DEFAULT/NONE for unix domain socket listeners");
    }
    if !sockets.insert(bind.text()) {
        findings.error(&bind.path, "sidecar: unix domain socket values for listeners must be unique");
    }
}

/// Hosts that say what another one of the list says already.
fn duplicates(hosts: &Node<'_>, namespace: &str, findings: &mut Findings) {
    let mut by_namespace: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for host in hosts.items() {
        let Some((owner, service)) = host.text().split_once('/') else { continue };
        if owner.starts_with('~') {
            continue;
        }
        let known = by_namespace.entry(if owner == "." { namespace } else { owner }).or_default();
        let repeated = if service == "*" { !known.is_empty() } else { known.contains(service) || known.contains("*") };
        if repeated {
            findings.warning(&host.path, format!("duplicated egress host: {}", host.text()));
        }
        known.insert(service);
    }
    if by_namespace.len() > 1 && by_namespace.get("*").is_some_and(|services| services.contains("*")) {
        findings.warning(&hosts.path, "`*/*` host select all resources, no other hosts can be added");
    }
}

fn outbound(policy: &Node<'_>, findings: &mut Findings) {
    let mode = policy.field("mode").choice(&["REGISTRY_ONLY", "ALLOW_ANY", "ALLOW_ANY_DYNAMIC_DNS"]);
    if mode == "ALLOW_ANY_DYNAMIC_DNS" {
        findings.error(
            &policy.path.field("mode"),
            "sidecar: ALLOW_ANY_DYNAMIC_DNS mode is only supported in MeshConfig, not in Sidecar resource",
        );
        return;
    }
    let proxy = policy.field("egressProxy");
    if !proxy.is_set() {
        return;
    }
    if mode != "ALLOW_ANY" {
        findings
            .error(&proxy.path, "sidecar: egress_proxy must be set only with ALLOW_ANY outbound_traffic_policy mode");
        return;
    }
    let host = proxy.field("host");
    if let Err(message) = names::fqdn(host.text()) {
        findings.error(&host.path, message);
        return;
    }
    if !proxy.field("port").is_set() {
        findings.error(&proxy.path.field("port"), "sidecar: egress_proxy port must be non-nil");
        return;
    }
    virtual_service::destination(&proxy, findings);
}
