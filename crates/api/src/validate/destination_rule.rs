//! Rules of `DestinationRule` (spec §28, §3.10, §4).
//!
//! Invariant: each block is judged where it stands: rule, subset or port level.

use std::collections::BTreeSet;
use std::net::IpAddr;

use carrick_base::FieldPath;

use super::{Findings, Node, connection_pool, export, load_balancer, names, selector, tls};
use crate::istio::destination_rule::{DestinationRule, PortTrafficPolicy, Subset, TrafficPolicy};
use crate::istio::traffic::{OutlierDetection, Tunnel};

pub(super) fn check(rule: &DestinationRule, findings: &mut Findings) {
    let spec = FieldPath::new("spec");
    let namespace = rule.metadata.namespace.as_str();
    if let Err(message) = names::wildcard_domain(&rule.spec.host) {
        findings.error(&spec.field("host"), message);
    }
    if let Some(policy) = &rule.spec.traffic_policy {
        traffic_policy(policy, namespace, &spec.field("trafficPolicy"), findings);
    }
    subsets(&rule.spec.subsets, namespace, &spec.field("subsets"), findings);
    selector::check(rule.spec.workload_selector.as_ref(), &spec.field("workloadSelector"), findings);
}

fn subsets(subsets: &[Subset], namespace: &str, path: &FieldPath, findings: &mut Findings) {
    let mut seen = BTreeSet::new();
    for (index, subset) in subsets.iter().enumerate() {
        let at = path.index(index);
        if subset.name.is_empty() {
            findings.error(&at.field("name"), "subset name cannot be empty");
        } else if !names::is_label(&subset.name) {
            findings.error(&at.field("name"), format!("subset name is invalid: {:?}", subset.name));
        } else if !seen.insert(subset.name.as_str()) {
            findings.error(&at.field("name"), format!("duplicate subset name {:?}", subset.name));
        }
        for (key, value) in &subset.labels {
            if !names::is_label_key(key) {
                findings.error(&at.field("labels").key(key), format!("invalid label key: {key:?}"));
            } else if !names::is_label_value(value) {
                findings.error(&at.field("labels").key(key), format!("invalid label value: {value:?}"));
            }
        }
        if let Some(policy) = &subset.traffic_policy {
            traffic_policy(policy, namespace, &at.field("trafficPolicy"), findings);
        }
    }
}

/// What a rule that selects clients may say about who sees it: its own namespace.
fn export_to(list: &Node<'_>, selected: bool, namespace: &str, findings: &mut Findings) {
    export::check(list, namespace, false, findings);
    let own = |target: &str| target == "." || (!namespace.is_empty() && target == namespace);
    for entry in list.items().iter().filter(|entry| selected && !own(entry.text())) {
        findings.error(&entry.path, "a rule with a workload selector can only be exported to \".\"");
    }
}

/// Fields that are judged as they were written, since nothing reads them in typed form.
pub(super) fn untyped(object: &Node<'_>, findings: &mut Findings) {
    let spec = object.field("spec");
    let namespace = object.field("metadata").field("namespace").text();
    export_to(&spec.field("exportTo"), spec.field("workloadSelector").is_set(), namespace, findings);
    let subsets = spec.field("subsets").items();
    let policies = std::iter::once(spec.field("trafficPolicy")).chain(subsets.iter().map(|s| s.field("trafficPolicy")));
    for policy in policies {
        let ports = policy.field("portLevelSettings").items();
        for level in std::iter::once(policy).chain(ports) {
            let outlier = level.field("outlierDetection");
            load_balancer::untyped(&level.field("loadBalancer"), outlier.is_set(), findings);
            for status in outlier.field("outlierDetectionHttpErrorCodes").items() {
                if !(100..600).contains(&status.number()) {
                    findings.error(&status.path, format!("HTTP status {} is not in range 100-599", status.number()));
                }
            }
        }
    }
}

fn traffic_policy(policy: &TrafficPolicy, namespace: &str, path: &FieldPath, findings: &mut Findings) {
    if *policy == TrafficPolicy::default() {
        findings.error(path, "traffic policy must have at least one field");
        return;
    }
    if policy.tunnel.is_some() && policy.proxy_protocol.is_some() {
        findings.error(path, "tunnel and proxyProtocol must not be set together");
    }
    if let Some(settings) = &policy.load_balancer {
        load_balancer::check(settings, policy.outlier_detection.is_some(), &path.field("loadBalancer"), findings);
    }
    if let Some(pool) = &policy.connection_pool {
        connection_pool::check(pool, &path.field("connectionPool"), findings);
    }
    if let Some(outlier) = &policy.outlier_detection {
        outlier_detection(outlier, &path.field("outlierDetection"), findings);
    }
    if let Some(settings) = &policy.tls {
        tls::check(settings, namespace, &path.field("tls"), findings);
    }
    if let Some(settings) = &policy.tunnel {
        tunnel(settings, &path.field("tunnel"), findings);
    }
    if let Some(percent) = policy.retry_budget.as_ref().and_then(|budget| budget.percent) {
        findings.percent(&path.field("retryBudget").field("percent"), percent.0);
    }
    for (index, settings) in policy.port_level_settings.iter().enumerate() {
        port_level(settings, namespace, &path.field("portLevelSettings").index(index), findings);
    }
}

fn port_level(settings: &PortTrafficPolicy, namespace: &str, path: &FieldPath, findings: &mut Findings) {
    match &settings.port {
        Some(port) => findings.port(&path.field("port").field("number"), port.number),
        None => findings.error(&path.field("port"), "portTrafficPolicy must have valid port"),
    }
    let PortTrafficPolicy { port: _, load_balancer, connection_pool, outlier_detection: outlier, tls: settings } =
        settings;
    if load_balancer.is_none() && connection_pool.is_none() && outlier.is_none() && settings.is_none() {
        findings.error(path, "port traffic policy must have at least one field");
    }
    if let Some(balancer) = load_balancer {
        load_balancer::check(balancer, outlier.is_some(), &path.field("loadBalancer"), findings);
    }
    if let Some(pool) = connection_pool {
        connection_pool::check(pool, &path.field("connectionPool"), findings);
    }
    if let Some(outlier) = outlier {
        outlier_detection(outlier, &path.field("outlierDetection"), findings);
    }
    if let Some(settings) = settings {
        tls::check(settings, namespace, &path.field("tls"), findings);
    }
}

fn outlier_detection(outlier: &OutlierDetection, path: &FieldPath, findings: &mut Findings) {
    findings.duration(&path.field("baseEjectionTime"), outlier.base_ejection_time);
    findings.duration(&path.field("interval"), outlier.interval);
    if outlier.consecutive_errors != 0 {
        let message = "outlier detection consecutive errors is deprecated, use consecutiveGatewayErrors or consecutive5xxErrors instead";
        findings.warning(&path.field("consecutiveErrors"), message);
    }
    if !outlier.split_external_local_origin_errors && outlier.consecutive_local_origin_failures.is_some_and(|n| n > 0) {
        let message = "outlier detection consecutive local origin failures is specified, but split external local origin errors is set to false";
        findings.error(&path.field("consecutiveLocalOriginFailures"), message);
    }
    findings.percent(&path.field("maxEjectionPercent"), f64::from(outlier.max_ejection_percent));
    findings.percent(&path.field("minHealthPercent"), f64::from(outlier.min_health_percent));
}

fn tunnel(tunnel: &Tunnel, path: &FieldPath, findings: &mut Findings) {
    if !matches!(tunnel.protocol.as_str(), "" | "CONNECT" | "POST") {
        findings.error(
            &path.field("protocol"),
            format!("tunnel protocol must be CONNECT or POST, not {:?}", tunnel.protocol),
        );
    }
    if tunnel.target_host.is_empty() {
        findings.error(&path.field("targetHost"), "target host cannot be empty");
    } else if tunnel.target_host.parse::<IpAddr>().is_err() && names::fqdn(&tunnel.target_host).is_err() {
        findings.error(
            &path.field("targetHost"),
            format!("{:?} is neither an address nor a host name", tunnel.target_host),
        );
    }
    findings.port(&path.field("targetPort"), tunnel.target_port);
}
