//! The DestinationRule and the VirtualServices of a service, in words.
//!
//! Invariant: a host is compared as the control plane resolves it (short names in the object's own namespace); the
//! rule shown is the one that a client in the pod's namespace takes.

use std::fmt::Write;

use serde_json::Value;

use super::{Subject, text};
use crate::proxy_config::dump::{list, number};

/// The rule for a host: of the pod's namespace, then of the service's, then of the root's.
pub fn destination_rule<'a>(subject: &Subject<'a>, host: &str) -> Option<&'a Value> {
    let own = subject.pod.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
    let service = host.split('.').nth(1).unwrap_or_default();
    [own, service, subject.root].into_iter().find_map(|namespace| {
        let mut found: Vec<&Value> = subject
            .objects
            .destination_rules
            .iter()
            .filter(|rule| text(rule, &["metadata", "namespace"]) == namespace)
            .filter(|rule| matches(text(rule, &["spec", "host"]), namespace, host))
            .collect();
        // The longest host is the most exact one.
        found.sort_by_key(|rule| std::cmp::Reverse(text(rule, &["spec", "host"]).trim_start_matches('*').len()));
        found.first().copied()
    })
}

/// The TLS mode that a rule sets for a port.
pub fn tls_mode(rule: &Value, port: u64) -> Option<&str> {
    let policy = rule.pointer("/spec/trafficPolicy")?;
    let own = list(policy, &["portLevelSettings"])
        .iter()
        .find(|settings| number(settings, &["port", "number"]) == Some(port))
        .map(|settings| text(settings, &["tls", "mode"]));
    own.into_iter().chain([text(policy, &["tls", "mode"])]).find(|mode| !mode.is_empty())
}

pub fn destination_rule_block(subject: &Subject<'_>, rule: &Value) -> String {
    let mut out = format!("DestinationRule: {} for \"{}\"\n", subject.named(rule), text(rule, &["spec", "host"]));
    let name = |subset: &&Value| text(subset, &["name"]).to_owned();
    let (matching, other): (Vec<&Value>, Vec<&Value>) = list(rule, &["spec", "subsets"])
        .iter()
        .partition(|subset| super::super::selects(subset.get("labels"), subject.labels()));
    let names = |subsets: &[&Value]| subsets.iter().map(name).collect::<Vec<_>>().join(",");
    match (matching.is_empty(), other.is_empty()) {
        (true, true) => {}
        (true, false) => {
            let _ =
                writeln!(out, "   WARNING POD DOES NOT MATCH ANY SUBSETS.  (Non matching subsets {})", names(&other));
        }
        (false, _) => {
            let _ = writeln!(out, "   Matching subsets: {}", names(&matching));
            if !other.is_empty() {
                let _ = writeln!(out, "      (Non-matching subsets {})", names(&other));
            }
        }
    }
    let Some(policy) = rule.pointer("/spec/trafficPolicy") else { return out + "   No Traffic Policy\n" };
    let told = |policy: &Value, indent: &str, lead: &str| {
        let mut out = String::new();
        let mode = text(policy, &["tls", "mode"]);
        if !mode.is_empty() {
            let _ = writeln!(out, "{indent}{lead}TLS Mode: {mode}");
        }
        let known = [
            ("loadBalancer", "load balancer"),
            ("connectionPool", "connection pool"),
            ("outlierDetection", "outlier detection"),
        ];
        let set: Vec<&str> =
            known.iter().filter(|(key, _)| policy.get(key).is_some()).map(|(_, words)| *words).collect();
        if !set.is_empty() {
            let _ = writeln!(out, "{indent}Policies: {}", set.join("/"));
        }
        out
    };
    let general = told(policy, "   ", "Traffic Policy ");
    let ports = list(policy, &["portLevelSettings"]);
    if general.is_empty() && ports.is_empty() {
        out += "   No Traffic Policy\n";
    }
    out += &general;
    if !ports.is_empty() {
        out += "   Port Level Settings:\n";
        for settings in ports {
            let _ = writeln!(out, "    {}:", number(settings, &["port", "number"]).unwrap_or(0));
            out += &told(settings, "      ", "");
        }
    }
    out
}

/// The VirtualServices that send anything to a host.
pub fn virtual_services<'a>(subject: &Subject<'a>, host: &str) -> Vec<&'a Value> {
    let sends = |found: &&Value| routes(found).any(|(_, destinations)| destinations.iter().any(|d| to(found, d, host)));
    subject.objects.virtual_services.iter().filter(sends).collect()
}

/// Every route of a VirtualService with its destinations.
fn routes(found: &Value) -> impl Iterator<Item = (&Value, &[Value])> {
    ["http", "tls", "tcp"].into_iter().flat_map(|kind| list(found, &["spec", kind])).map(|r| (r, list(r, &["route"])))
}

fn to(found: &Value, destination: &Value, host: &str) -> bool {
    matches(text(destination, &["destination", "host"]), text(found, &["metadata", "namespace"]), host)
}

pub fn virtual_service_block(subject: &Subject<'_>, found: &Value, host: &str) -> String {
    let mut out = format!("VirtualService: {}\n", subject.named(found));
    let (mut told, mut elsewhere) = (false, 0);
    for (route, destinations) in routes(found) {
        let (here, other): (Vec<&Value>, Vec<&Value>) = destinations.iter().partition(|d| to(found, d, host));
        elsewhere += if here.is_empty() { other.len() } else { 0 };
        for destination in &here {
            if let Some(weight) = number(destination, &["weight"]).filter(|_| destinations.len() > 1) {
                let to = text(destination, &["destination", "host"]);
                let _ = writeln!(out, "   Route to host \"{to}\" with weight {weight}%");
                told = true;
            }
        }
        if !here.is_empty() {
            for condition in list(route, &["match"]) {
                let _ = writeln!(out, "   Match: {}", matching(condition));
                told = true;
            }
        }
    }
    if !told {
        let count = list(found, &["spec", "http"]).len();
        let _ = match count {
            0 => writeln!(out, "   {} route(s)", routes(found).count()),
            count => writeln!(out, "   {count} HTTP route(s)"),
        };
    }
    if elsewhere > 0 {
        let _ = writeln!(out, "   {elsewhere} additional destination(s) that will not reach this pod");
    }
    out
}

fn matching(condition: &Value) -> String {
    let words = |value: &Value| {
        let (how, text) = value.as_object().and_then(|o| o.iter().next())?;
        let text = text.as_str()?;
        Some(match how.as_str() {
            "prefix" => format!("{text}*"),
            "regex" => format!("~{text}"),
            _ => text.to_owned(),
        })
    };
    let mut parts: Vec<String> = condition.get("uri").and_then(words).into_iter().collect();
    let headers: Vec<String> = condition
        .get("headers")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(name, value)| format!("{name}={}", words(value).unwrap_or_else(|| "*".into())))
        .collect();
    if !headers.is_empty() {
        parts.push(format!("when headers are {}", headers.join("; ")));
    }
    if parts.is_empty() { "*".into() } else { parts.join(" ") }
}

/// Whether a written host, short or with a wildcard, means a full one.
fn matches(written: &str, namespace: &str, host: &str) -> bool {
    match written.strip_prefix('*') {
        Some(suffix) => host.ends_with(suffix),
        None if written.contains('.') => written == host || host.strip_suffix(".svc.cluster.local") == Some(written),
        None => format!("{written}.{namespace}.svc.cluster.local") == host,
    }
}
