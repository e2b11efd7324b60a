//! `carrick experimental describe`: a pod or service, and every object that has a say in its traffic.
//!
//! Invariant: modes are told twice on purpose, as the objects say and as the proxy enforces them; where the two
//! differ the proxy is behind, and the text shows it.

mod rules;

use std::fmt::Write;

use serde_json::Value;

use super::{Objects, chains, peer};
use crate::proxy_config::dump::{Dump, list, number, text};

const LINE: &str = "--------------------\n";

/// What is described.
pub struct Subject<'a> {
    /// The pod.
    pub pod: &'a Value,
    /// The objects around it.
    pub objects: &'a Objects,
    /// Its proxy's dump, when it has a proxy.
    pub dump: Option<&'a Dump>,
    /// The namespace names are given without.
    pub namespace: &'a str,
    /// The namespace of mesh-wide objects.
    pub root: &'a str,
}

impl Subject<'_> {
    fn field(&self, pointer: &str) -> &str {
        self.pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    fn labels(&self) -> &Value {
        self.pod.pointer("/metadata/labels").unwrap_or(&Value::Null)
    }

    /// A name as people say it here: bare in the current namespace.
    fn named(&self, object: &Value) -> String {
        let dotted = super::dotted(object);
        dotted.strip_suffix(&format!(".{}", self.namespace)).map_or(dotted.clone(), str::to_owned)
    }
}

/// The report about a pod.
pub fn pod(subject: &Subject<'_>) -> String {
    let mut out = format!("Pod: {}\n", subject.named(subject.pod));
    let revision = subject.field("/metadata/labels/istio.io~1rev");
    if !revision.is_empty() {
        let _ = writeln!(out, "   Pod Revision: {revision}");
    }
    let ports = ports(subject.pod);
    match ports.is_empty() {
        true => out += "   Pod does not expose ports\n",
        false => out += &format!("   Pod Ports: {}\n", ports.join(", ")),
    }
    let phase = subject.field("/status/phase");
    if phase != "Running" {
        let _ = writeln!(out, "   Pod is not Running ({phase})");
        return out;
    }
    out += &not_ready(subject);
    let Some(dump) = subject.dump else {
        let _ = writeln!(out, "WARNING: {} is not part of mesh; no Istio sidecar", subject.named(subject.pod));
        return out;
    };
    for label in ["app", "version"] {
        if subject.labels().get(label).is_none() {
            let _ = writeln!(out, "Suggestion: add '{label}' label to pod for Istio telemetry.");
        }
    }
    out += LINE;
    let inbound = chains::inbound(dump);
    let services: Vec<&Value> = subject.objects.services.iter().filter(|service| selects(service, subject)).collect();
    for (at, found) in services.iter().enumerate() {
        if at > 0 {
            out += LINE;
        }
        out += &service_block(subject, found, &inbound);
    }
    if services.is_empty() {
        out += "WARNING: no service selects this pod\n";
    }
    out += LINE;
    out += &authentication(subject, &inbound);
    out += &exposure(subject, &services);
    out
}

fn ports(pod: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let containers = list(pod, &["spec", "initContainers"]).iter().chain(list(pod, &["spec", "containers"]));
    for container in containers {
        for port in list(container, &["ports"]) {
            let protocol = match text(port, &["protocol"]) {
                "" | "TCP" => String::new(),
                other => format!("/{other}"),
            };
            let number = number(port, &["containerPort"]).unwrap_or(0);
            found.push(format!("{number}{protocol} ({})", text(container, &["name"])));
        }
    }
    found
}

fn not_ready(subject: &Subject<'_>) -> String {
    let statuses = list(subject.pod, &["status", "containerStatuses"]);
    let waiting = statuses.iter().filter(|status| status.get("ready").and_then(Value::as_bool) == Some(false));
    waiting
        .map(|status| {
            format!("WARNING: Pod {} Container {} NOT READY\n", subject.named(subject.pod), text(status, &["name"]))
        })
        .collect()
}

fn selects(service: &Value, subject: &Subject<'_>) -> bool {
    let selector = service.pointer("/spec/selector").filter(|s| s.as_object().is_some_and(|s| !s.is_empty()));
    let same = text(service, &["metadata", "namespace"]) == subject.field("/metadata/namespace");
    same && selector.is_some() && super::selects(selector, subject.labels())
}

fn service_block(
    subject: &Subject<'_>,
    service: &Value,
    inbound: &std::collections::BTreeMap<u64, Vec<chains::Chain>>,
) -> String {
    let mut out = format!("Service: {}\n", subject.named(service));
    let ports = list(service, &["spec", "ports"]);
    let several = ports.len() > 1;
    for port in ports.iter().filter(|port| text(port, &["protocol"]) != "UDP") {
        let own = number(port, &["port"]).unwrap_or(0);
        let target = target(subject.pod, port).unwrap_or(own);
        let name = text(port, &["name"]);
        let protocol = protocol(name, text(port, &["appProtocol"]));
        let shown = if name.is_empty() { String::new() } else { format!("{name} ") };
        let _ = writeln!(out, "   Port: {shown}{own}/{protocol} targets pod port {target}");
    }
    let host = format!(
        "{}.{}.svc.cluster.local",
        text(service, &["metadata", "name"]),
        text(service, &["metadata", "namespace"])
    );
    let rule = rules::destination_rule(subject, &host);
    if let Some(rule) = rule {
        out += &rules::destination_rule_block(subject, rule);
    }
    for found in rules::virtual_services(subject, &host) {
        out += &rules::virtual_service_block(subject, found, &host);
    }
    for port in ports {
        let own = number(port, &["port"]).unwrap_or(0);
        let target = target(subject.pod, port).unwrap_or(own);
        let Some(chains) = inbound.get(&target) else { continue };
        let mut names: Vec<&str> =
            chains.iter().flat_map(|chain| &chain.rules).map(|(_, name)| name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let prefix = if several { format!("{own} ") } else { String::new() };
        if !names.is_empty() {
            let _ = writeln!(out, "{prefix}RBAC policies: {}", names.join(", "));
        }
        let _ = writeln!(out, "{prefix}{}", verdict(subject, chains::mode(chains), rule, own));
    }
    out
}

/// What the two ends come to together.
fn verdict(subject: &Subject<'_>, server: &str, rule: Option<&Value>, port: u64) -> String {
    let client = rule.and_then(|rule| rules::tls_mode(rule, port));
    match (server, client) {
        (server, None) => format!("Pod is {server}, clients configured automatically"),
        ("STRICT", Some("ISTIO_MUTUAL"))
        | ("DISABLE", Some("DISABLE"))
        | ("PERMISSIVE", Some("ISTIO_MUTUAL" | "DISABLE")) => {
            format!("Pod is {server} and clients are {}", client.unwrap_or_default())
        }
        (server, Some(client)) => format!(
            "WARNING TLS Conflict on {} port {port} (pod enforces {server}, clients speak {client})\n  \
             Check DestinationRule {}",
            subject.named(subject.pod),
            rule.map(|rule| subject.named(rule)).unwrap_or_default(),
        ),
    }
}

fn authentication(subject: &Subject<'_>, inbound: &std::collections::BTreeMap<u64, Vec<chains::Chain>>) -> String {
    let namespace = subject.field("/metadata/namespace");
    let found = peer::effective(&subject.objects.peer_authentications, subject.labels(), namespace, subject.root);
    let mut out = format!("Effective PeerAuthentication:\n   Workload mTLS mode: {}\n", found.mode);
    if !found.ports.is_empty() {
        out += "   Port Level mTLS mode:\n";
        for (port, mode) in &found.ports {
            let _ = writeln!(out, "      {port}: {mode}");
        }
    }
    if !found.applied.is_empty() {
        let _ = writeln!(out, "Applied PeerAuthentication:\n   {}", found.applied.join(", "));
    }
    if !inbound.is_empty() {
        out += "Enforced by the proxy:\n";
        for (port, chains) in inbound {
            let _ = writeln!(out, "   {port}: {}", chains::mode(chains));
        }
    }
    out
}

fn exposure(subject: &Subject<'_>, services: &[&Value]) -> String {
    let address = subject.objects.gateways.first().map(|pod| text(pod, &["status", "podIP"]));
    let Some(address) = address.filter(|address| !address.is_empty()) else {
        return "Skipping Gateway information (no ingress gateway pods)\n".into();
    };
    let mut out = String::new();
    for service in services {
        let (name, namespace) = (text(service, &["metadata", "name"]), text(service, &["metadata", "namespace"]));
        let host = format!("{name}.{namespace}.svc.cluster.local");
        for found in rules::virtual_services(subject, &host) {
            let gateways = list(found, &["spec", "gateways"]);
            if gateways.iter().any(|gateway| gateway.as_str() != Some("mesh")) {
                let _ = writeln!(out, "Exposed on Ingress Gateway http://{address}");
                out += &rules::virtual_service_block(subject, found, &host);
            }
        }
    }
    out
}

/// The number behind a service port: its target by number, or by a container port's name.
fn target(pod: &Value, port: &Value) -> Option<u64> {
    let wanted = port.get("targetPort")?;
    if let Some(number) = wanted.as_u64() {
        return Some(number);
    }
    list(pod, &["spec", "containers"])
        .iter()
        .flat_map(|container| list(container, &["ports"]))
        .find(|own| own.get("name") == Some(wanted))
        .and_then(|own| number(own, &["containerPort"]))
}

/// The protocol a port's name or appProtocol tells, in the words of `istioctl`.
fn protocol(name: &str, app_protocol: &str) -> String {
    let word = if app_protocol.is_empty() { name.split('-').next().unwrap_or_default() } else { app_protocol };
    match word.to_ascii_lowercase().as_str() {
        "http" => "HTTP".into(),
        "http2" | "h2c" => "HTTP2".into(),
        "https" => "HTTPS".into(),
        "grpc" => "gRPC".into(),
        "grpc-web" => "gRPC-Web".into(),
        "tcp" => "TCP".into(),
        "tls" => "TLS".into(),
        "mongo" => "Mongo".into(),
        "mysql" => "MySQL".into(),
        "redis" => "Redis".into(),
        _ => "auto-detect".into(),
    }
}

#[cfg(test)]
mod tests;
