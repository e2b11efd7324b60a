//! Fields and kinds that are going away.
//!
//! Invariant: what still works is told once per use; what is gone is told on its definition.

use serde_json::Value;

use crate::objects::{items, number, text};
use crate::report::Report;

const REMOVED: [&str; 4] = ["ClusterRbacConfig", "RbacConfig", "ServiceRole", "ServiceRoleBinding"];

pub(crate) fn check(report: &mut Report<'_>) {
    let objects = report.objects;
    for service in objects.networking("VirtualService") {
        for (index, route) in items(service.spec(), "http").iter().enumerate() {
            let delay = route.pointer("/fault/delay").unwrap_or(&Value::Null);
            if number(delay, "percent") > 0 {
                report.add(
                    "IST0002",
                    service,
                    &format!("spec.http[{index}].fault.delay.percent"),
                    "Deprecated: HTTPRoute.fault.delay.percent is deprecated; use HTTPRoute.fault.delay.percentage",
                );
            }
        }
    }
    for sidecar in objects.networking("Sidecar") {
        if !sidecar.at("/spec/outboundTrafficPolicy/egressProxy").is_null() {
            report.add(
                "IST0002",
                sidecar,
                "spec.outboundTrafficPolicy.egressProxy",
                "Deprecated: OutboundTrafficPolicy.EgressProxy ignored",
            );
        }
    }
    for definition in objects.of("apiextensions.k8s.io", "CustomResourceDefinition") {
        let kind = definition.text_at("/spec/names/kind");
        if text(definition.spec(), "group") == "rbac.istio.io" && REMOVED.contains(&kind) {
            report.add(
                "IST0002",
                definition,
                "",
                format!("Deprecated: Custom resource type rbac.istio.io {kind} is removed"),
            );
        }
    }
}
