//! Addresses under which webhooks reach a control plane outside of the cluster.
//!
//! Invariant: only webhooks of an installation are looked at, by their names.

use serde_json::Value;

use crate::objects::{Object, items, text};
use crate::report::Report;

pub(crate) fn check(report: &mut Report<'_>) {
    let objects = report.objects;
    let group = "admissionregistration.k8s.io";
    let validating = objects.of(group, "ValidatingWebhookConfiguration").iter();
    let ours = |name: &str| name == "istiod-default-validator" || name.starts_with("istio-validator");
    for configuration in validating.filter(|c| ours(c.name())) {
        one(configuration, report);
    }
    let mutating = objects.of(group, "MutatingWebhookConfiguration").iter();
    for configuration in mutating.filter(|c| c.name().starts_with("istio-sidecar-injector")) {
        one(configuration, report);
    }
}

fn one(configuration: &Object, report: &mut Report<'_>) {
    for hook in items(&configuration.value, "webhooks") {
        let client = hook.get("clientConfig").unwrap_or(&Value::Null);
        let name = text(hook, "name");
        match client.get("url").and_then(Value::as_str) {
            Some(url) => match host(url) {
                None => invalid(configuration, url, name, "was provided in an invalid format", report),
                Some(host) if host.parse::<std::net::IpAddr>().is_ok() => {
                    report.add("IST0164", configuration, "", format!("The address ({url}) that was provided for the webhook ({name}) to reach the ingress gateway on the external control plane cluster is an IP address. This is not recommended for a production environment."));
                }
                Some(_) => {}
            },
            None if client.get("service").is_none_or(Value::is_null) => {
                invalid(configuration, "", name, "is blank", report);
            }
            None => {}
        }
    }
}

fn invalid(configuration: &Object, url: &str, name: &str, why: &str, report: &mut Report<'_>) {
    report.add("IST0163", configuration, "", format!("The hostname ({url}) that was provided for the webhook ({name}) to reach the ingress gateway on the external control plane cluster {why}. Traffic may not flow properly."));
}

/// The host of a URL; empty when it has none, `None` when it is no URL.
fn host(url: &str) -> Option<&str> {
    if url.bytes().any(|b| b <= b' ' || b == 0x7f) || url.starts_with(':') {
        return None;
    }
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    let (name, port) = match host.strip_prefix('[').and_then(|inside| inside.split_once(']')) {
        Some((name, port)) => (name, port.strip_prefix(':').unwrap_or_default()),
        None => host.split_once(':').unwrap_or((host, "")),
    };
    (port.is_empty() || port.bytes().all(|b| b.is_ascii_digit())).then_some(name)
}
