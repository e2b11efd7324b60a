//! The Gateway API: definitions that are too old, policies that pass gateways by.
//!
//! Invariant: a definition that does not say its version is not judged.

use crate::objects::{labels, selects};
use crate::report::Report;

const GATEWAY: &str = "gateway.networking.k8s.io/gateway-name";
const BUNDLE: &str = "gateway.networking.k8s.io/bundle-version";

/// Definitions with the first version whose form we read.
const MINIMUMS: [(&str, (u32, u32)); 4] = [
    ("grpcroutes.gateway.networking.k8s.io", (1, 1)),
    ("backendtlspolicies.gateway.networking.k8s.io", (1, 4)),
    ("tlsroutes.gateway.networking.k8s.io", (1, 5)),
    ("tcproutes.gateway.networking.k8s.io", (1, 6)),
];

pub(crate) fn selectors(report: &mut Report<'_>) {
    let objects = report.objects;
    let kinds = [
        ("security.istio.io", "AuthorizationPolicy"),
        ("security.istio.io", "RequestAuthentication"),
        ("telemetry.istio.io", "Telemetry"),
        ("extensions.istio.io", "WasmPlugin"),
    ];
    for policy in kinds.into_iter().flat_map(|(group, kind)| objects.of(group, kind)) {
        if policy.at("/spec/selector").is_null() || !policy.at("/spec/targetRef").is_null() {
            continue;
        }
        let wanted = labels(policy.at("/spec/selector/matchLabels"));
        for pod in objects.pods().iter().filter(|pod| pod.namespace() == policy.namespace()) {
            let own = pod.labels();
            if let Some(gateway) = own.get(GATEWAY).filter(|_| selects(&wanted, &own)) {
                report.add(
                    "IST0166",
                    policy,
                    "",
                    format!("Ineffective selector on Kubernetes Gateway {gateway}. Use the TargetRef field instead."),
                );
            }
        }
    }
}

pub(crate) fn versions(report: &mut Report<'_>) {
    let objects = report.objects;
    for definition in objects.of("apiextensions.k8s.io", "CustomResourceDefinition") {
        let installed = definition.annotations().get(BUNDLE).copied().unwrap_or_default().to_owned();
        let Some((_, needed)) = MINIMUMS.iter().find(|(name, _)| *name == definition.name()) else { continue };
        if parse(&installed).is_some_and(|found| found < *needed) {
            report.add("IST0176", definition, "", format!(
                "Gateway API CRD {:?} is at version {:?} but Istio requires at least {:?}; resources of this kind will not be processed. Upgrade the Gateway API CRDs to satisfy the minimum version.",
                definition.name(),
                installed.trim_start_matches('v'),
                format!("{}.{}.0", needed.0, needed.1),
            ));
        }
    }
}

fn parse(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.strip_prefix('v')?.split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}
