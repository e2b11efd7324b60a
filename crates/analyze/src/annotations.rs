//! Annotations of Istio on Kubernetes' objects: known, in their place, and well formed.
//!
//! Invariant: only annotations of Istio's domains are judged.

use crate::objects::Object;
use crate::report::Report;

/// Where an annotation may stand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Any,
    Pod,
    Service,
    Namespace,
    /// An object of Istio's or the Gateway API's, by kind.
    Of(&'static str),
}

use Place::{Any, Namespace, Of, Pod, Service};

/// Names below `sidecar.istio.io/`, all of pods.
const SIDECAR: [&str; 24] = [
    "agentLogLevel",
    "bootstrapOverride",
    "componentLogLevel",
    "controlPlaneAuthPolicy",
    "discoveryAddress",
    "enableCoreDump",
    "extraStatTags",
    "inject",
    "interceptionMode",
    "logLevel",
    "nativeSidecar",
    "proxyCPU",
    "proxyCPULimit",
    "proxyImage",
    "proxyImageType",
    "proxyMemory",
    "proxyMemoryLimit",
    "rewriteAppHTTPProbers",
    "statsCompression",
    "statsHistogramBuckets",
    "statsInclusionPrefixes",
    "statsInclusionRegexps",
    "statsInclusionSuffixes",
    "status",
];

/// All others.
const OTHERS: [(&str, Place); 47] = [
    ("alpha.istio.io/canonical-serviceaccounts", Service),
    ("alpha.istio.io/identity", Pod),
    ("alpha.istio.io/kubernetes-serviceaccounts", Service),
    ("ambient.istio.io/bypass-inbound-capture", Pod),
    ("ambient.istio.io/dns-capture", Pod),
    ("ambient.istio.io/redirection", Pod),
    ("ambient.istio.io/waypoint-inbound-binding", Of("GatewayClass")),
    ("galley.istio.io/analyze-suppress", Any),
    ("gateway.istio.io/controller-version", Of("Gateway")),
    ("gateway.istio.io/name-override", Of("Gateway")),
    ("gateway.istio.io/service-account", Of("Gateway")),
    ("gateway.istio.io/tls-terminate-mode", Of("Gateway")),
    ("inject.istio.io/templates", Pod),
    ("install.operator.istio.io/chart-owner", Any),
    ("install.operator.istio.io/owner-generation", Any),
    ("install.operator.istio.io/version", Any),
    ("internal.istio.io/service-account", Pod),
    ("istio.io/autoRegistrationGroup", Of("WorkloadEntry")),
    ("istio.io/connectedAt", Of("WorkloadEntry")),
    ("istio.io/disconnectedAt", Of("WorkloadEntry")),
    ("istio.io/dry-run", Of("AuthorizationPolicy")),
    ("istio.io/reroute-virtual-interfaces", Pod),
    ("istio.io/rev", Pod),
    ("istio.io/workloadController", Of("WorkloadEntry")),
    ("kubernetes.io/ingress.class", Of("Ingress")),
    ("networking.istio.io/address-type", Of("Gateway")),
    ("networking.istio.io/exportTo", Service),
    ("networking.istio.io/service-type", Of("Gateway")),
    ("networking.istio.io/traffic-distribution", Service),
    ("prometheus.istio.io/merge-metrics", Pod),
    ("proxy.istio.io/config", Pod),
    ("proxy.istio.io/health-checks-enabled", Of("WorkloadEntry")),
    ("proxy.istio.io/overrides", Pod),
    ("readiness.status.sidecar.istio.io/applicationPorts", Pod),
    ("readiness.status.sidecar.istio.io/failureThreshold", Pod),
    ("readiness.status.sidecar.istio.io/initialDelaySeconds", Pod),
    ("readiness.status.sidecar.istio.io/periodSeconds", Pod),
    ("status.sidecar.istio.io/port", Pod),
    ("topology.istio.io/controlPlaneClusters", Namespace),
    ("traffic.istio.io/nodeSelector", Service),
    ("traffic.sidecar.istio.io/excludeInboundPorts", Pod),
    ("traffic.sidecar.istio.io/excludeInterfaces", Pod),
    ("traffic.sidecar.istio.io/excludeOutboundIPRanges", Pod),
    ("traffic.sidecar.istio.io/excludeOutboundPorts", Pod),
    ("traffic.sidecar.istio.io/includeInboundPorts", Pod),
    ("traffic.sidecar.istio.io/includeOutboundIPRanges", Pod),
    ("traffic.sidecar.istio.io/includeOutboundPorts", Pod),
];

const DEPRECATED: [&str; 6] = [
    "sidecar.istio.io/controlPlaneAuthPolicy",
    "sidecar.istio.io/discoveryAddress",
    "sidecar.istio.io/enableCoreDump",
    "sidecar.istio.io/inject",
    "sidecar.istio.io/statsInclusionPrefixes",
    "traffic.sidecar.istio.io/kubevirtInterfaces",
];

/// Written by Istio itself.
const IGNORED: [&str; 2] = ["sidecar.istio.io/status", "gateway.istio.io/controller-version"];

fn place(annotation: &str) -> Option<Place> {
    if annotation
        .strip_prefix("sidecar.istio.io/")
        .is_some_and(|name| SIDECAR.contains(&name) || matches!(name, "userVolume" | "userVolumeMount"))
        || annotation == "traffic.sidecar.istio.io/kubevirtInterfaces"
    {
        return Some(Pod);
    }
    OTHERS.iter().find(|(name, _)| *name == annotation).map(|(_, place)| *place)
}

pub(crate) fn check(report: &mut Report<'_>) {
    let objects = report.objects;
    for (group, kind) in [("", "Namespace"), ("", "Service"), ("", "Pod"), ("apps", "Deployment")] {
        for object in objects.of(group, kind) {
            for (name, value) in object.annotations() {
                let domain = name.split('/').next().unwrap_or_default();
                let ours = domain.ends_with("istio.io") || name == "kubernetes.io/ingress.class";
                if ours && !IGNORED.contains(&name) {
                    one(object, kind, name, value, report);
                }
            }
        }
    }
}

fn one(object: &Object, kind: &str, name: &str, value: &str, report: &mut Report<'_>) {
    let field = format!("metadata.annotations[{name}]");
    let Some(place) = place(name) else {
        report.add("IST0108", object, &field, format!("Unknown annotation: {name}"));
        return;
    };
    let inject = name == "sidecar.istio.io/inject";
    if DEPRECATED.contains(&name) && !(inject && object.labels().contains_key(name)) {
        let instead = if inject { " in favor of the \"sidecar.istio.io/inject\" label" } else { "" };
        report.add(
            "IST0135",
            object,
            &field,
            format!("Annotation {name:?} has been deprecated{instead} and may not work in future Istio versions."),
        );
    }
    let where_ = match place {
        Any => return,
        Pod => "Pod",
        Service => "Service",
        Namespace => "Namespace",
        Of(kind) => kind,
    };
    if kind != where_ {
        report.add("IST0107", object, &field, format!("Misplaced annotation: {name} can only be applied to {where_}"));
    } else if let Err(problem) = judge(name, value) {
        report.add("IST0125", object, &field, format!("Invalid annotation {name}: {problem}"));
    }
}

/// The value of an annotation.
fn judge(name: &str, value: &str) -> Result<(), String> {
    let short = name.rsplit('/').next().unwrap_or_default();
    match short {
        "interceptionMode" if !matches!(value, "REDIRECT" | "TPROXY" | "NONE") => {
            Err(format!("interceptionMode invalid, use REDIRECT,TPROXY,NONE: {value}"))
        }
        "port" if name == "status.sidecar.istio.io/port" => {
            value.parse::<u16>().map(|_| ()).map_err(|_| format!("port invalid: {value:?} is not a port number"))
        }
        "initialDelaySeconds" | "periodSeconds" | "failureThreshold" => value
            .parse::<u32>()
            .map(|_| ())
            .map_err(|_| format!("strconv.ParseUint: parsing {value:?}: invalid syntax")),
        "includeOutboundIPRanges" if value == "*" => Ok(()),
        "includeOutboundIPRanges" | "excludeOutboundIPRanges" => ranges(value),
        "includeInboundPorts" | "includeOutboundPorts" if value == "*" => Ok(()),
        "includeInboundPorts" | "excludeInboundPorts" | "includeOutboundPorts" | "excludeOutboundPorts" => {
            ports(short, value)
        }
        "merge-metrics"
            if !matches!(
                value,
                "1" | "t" | "T" | "true" | "TRUE" | "True" | "0" | "f" | "F" | "false" | "FALSE" | "False"
            ) =>
        {
            Err(format!("strconv.ParseBool: parsing {value:?}: invalid syntax"))
        }
        "proxyCPU" | "proxyMemory" | "proxyCPULimit" | "proxyMemoryLimit"
            if !carrick_api::quantity::is_quantity(value) =>
        {
            Err("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
                .to_owned())
        }
        "config" if name == "proxy.istio.io/config" => match carrick_api::parse::documents(value.as_bytes()) {
            Ok(documents) if documents.iter().all(serde_json::Value::is_object) => Ok(()),
            Ok(_) => Err("failed to convert to apply proxy config: not an object".to_owned()),
            Err(error) => Err(format!("failed to convert to apply proxy config: {error}")),
        },
        _ => Ok(()),
    }
}

fn ranges(value: &str) -> Result<(), String> {
    for range in value.split(',').map(str::trim).filter(|range| !range.is_empty()) {
        let fits = range.split_once('/').is_some_and(|(address, bits)| {
            let most = match address.parse::<std::net::IpAddr>() {
                Ok(address) => {
                    if address.is_ipv4() {
                        32
                    } else {
                        128
                    }
                }
                Err(_) => return false,
            };
            bits.parse::<u8>().is_ok_and(|bits| bits <= most)
        });
        if !fits {
            return Err(format!("invalid CIDR address: {range}"));
        }
    }
    Ok(())
}

fn ports(name: &str, value: &str) -> Result<(), String> {
    for port in value.split(',').map(str::trim).filter(|port| !port.is_empty()) {
        if port.parse::<u16>().is_err() {
            return Err(format!("{name} invalid: failed parsing port {port:?}"));
        }
    }
    Ok(())
}
