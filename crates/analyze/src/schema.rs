//! Each object by itself: its schema, and the rules of its kind.
//!
//! Invariant: the same judgement as at admission; only the words around it are the analysis's.

use carrick_api::kinds::{registry, split_api_version};
use carrick_api::validate;
use carrick_base::Severity;

use crate::objects::{Object, text};
use crate::report::Report;

/// Kinds that are judged.
pub(crate) const KINDS: &[&str] = &[
    "AuthorizationPolicy",
    "BackendTLSPolicy",
    "DestinationRule",
    "EnvoyFilter",
    "GRPCRoute",
    "Gateway",
    "HTTPRoute",
    "ListenerSet",
    "MeshConfig",
    "MeshPolicy",
    "PeerAuthentication",
    "Policy",
    "ProxyConfig",
    "ReferenceGrant",
    "RequestAuthentication",
    "ServiceEntry",
    "Sidecar",
    "TCPRoute",
    "TLSRoute",
    "Telemetry",
    "TrafficExtension",
    "UDPRoute",
    "VirtualService",
    "WasmPlugin",
    "WorkloadEntry",
    "WorkloadGroup",
];

/// The analyzer's name.
pub(crate) fn name(kind: &str) -> String {
    format!("schema.ValidationAnalyzer.{kind}")
}

/// Judges all objects of a kind's name, in whatever group.
pub(crate) fn check(kind: &str, report: &mut Report<'_>) {
    let objects = report.objects;
    let wanted = if kind == "MeshConfig" { "ConfigMap" } else { kind };
    let ours = |group: &str| group.ends_with("istio.io") || group.ends_with("networking.k8s.io") || group.is_empty();
    for ((group, name), list) in objects.all() {
        if name == wanted && ours(group) {
            list.iter().for_each(|object| one(object, report));
        }
    }
}

fn one(object: &Object, report: &mut Report<'_>) {
    let (_, version) = split_api_version(text(&object.value, "apiVersion"));
    let kind = registry().of_object(&object.value).filter(|kind| kind.custom);
    let wrong = kind.map(|kind| kind.schema(version).check(&object.value)).unwrap_or_default();
    for error in &wrong {
        report.add("IST0106", object, &error.path, format!("Schema validation error: {error}"));
    }
    if !wrong.is_empty() {
        return;
    }
    for finding in validate::object(&object.value) {
        let field = finding.field.as_str();
        let about = if field.is_empty() { String::new() } else { format!("{field}: ") };
        match (finding.code, finding.severity) {
            (validate::CODE, Severity::Error) => {
                report.add("IST0106", object, field, format!("Schema validation error: {about}{}", finding.message));
            }
            (validate::CODE, _) => {
                report.add("IST0133", object, field, format!("Schema validation warning: {about}{}", finding.message));
            }
            (code, severity) => report.add_as(code, severity, object, field, finding.message),
        }
    }
}
