//! Conditions that say no.
//!
//! Invariant: only conditions whose meaning is known are told; an unknown one may be good news.

use serde_json::Value;

use crate::objects::{items, text};
use crate::report::Report;

const ROUTE: &[&str] = &["Accepted", "Programmed", "ResolvedRefs"];
const BOUND: &[&str] = &["istio.io/WaypointBound"];

const KINDS: [(&str, &str, &[&str]); 7] = [
    ("", "Service", BOUND),
    ("networking.istio.io", "ServiceEntry", BOUND),
    ("networking.istio.io", "WorkloadEntry", BOUND),
    ("security.istio.io", "AuthorizationPolicy", &["ZtunnelAccepted", "WaypointAccepted"]),
    ("gateway.networking.k8s.io", "Gateway", ROUTE),
    ("gateway.networking.k8s.io", "HTTPRoute", ROUTE),
    ("gateway.networking.k8s.io", "GRPCRoute", ROUTE),
];

pub(crate) fn check(report: &mut Report<'_>) {
    let objects = report.objects;
    for (group, kind, known) in KINDS {
        for object in objects.of(group, kind) {
            let status = object.at("/status");
            let nested = items(status, "parents").iter().flat_map(|parent| items(parent, "conditions"));
            for condition in items(status, "conditions").iter().chain(nested) {
                let type_ = text(condition, "type");
                let partly = type_ == "WaypointAccepted" && text(condition, "reason") == "PartiallyInvalid";
                if partly || (known.contains(&type_) && text(condition, "status") == "False") {
                    report.add("IST0171", object, "", said(condition));
                }
            }
        }
    }
}

fn said(condition: &Value) -> String {
    format!(
        "A condition with a negative status is present: type={}, reason={}, message={}.",
        text(condition, "type"),
        text(condition, "reason"),
        text(condition, "message")
    )
}
