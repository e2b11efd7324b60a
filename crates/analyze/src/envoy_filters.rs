//! Operations of EnvoyFilters that depend on what others did before, or do nothing.
//!
//! Invariant: filters are looked at in the order given, since a later one depends on the names of earlier ones.

use serde_json::Value;

use crate::objects::{items, number, text};
use crate::report::Report;

pub(crate) fn check(report: &mut Report<'_>) {
    let mut versioned: Vec<String> = Vec::new();
    let objects = report.objects;
    for filter in objects.networking("EnvoyFilter") {
        let priority = number(filter.spec(), "priority");
        for (index, patch) in items(filter.spec(), "configPatches").iter().enumerate() {
            let Some(change) = patch.get("patch") else { break };
            let name = name_of(patch, change);
            let field = format!("spec.configPatches[{index}]");
            let apply_to = text(patch, "applyTo");
            let of_routes = matches!(apply_to, "ROUTE_CONFIGURATION" | "HTTP_ROUTE");
            let relative = match text(change, "operation") {
                "ADD" if of_routes => {
                    report.add(
                        "IST0153",
                        filter,
                        &field,
                        "The ADD operation will be ignored when applyTo is set to ROUTE_CONFIGURATION, or HTTP_ROUTE.",
                    );
                    false
                }
                "REMOVE" if of_routes => {
                    report.add("IST0154", filter, &field, "The REMOVE operation will be ignored when applyTo is set to ROUTE_CONFIGURATION, or HTTP_ROUTE.");
                    false
                }
                "REPLACE" if !matches!(apply_to, "NETWORK_FILTER" | "HTTP_FILTER" | "VIRTUAL_HOST") => {
                    report.add(
                        "IST0152",
                        filter,
                        &field,
                        "The REPLACE operation is only valid for HTTP_FILTER and NETWORK_FILTER.",
                    );
                    false
                }
                "REMOVE" | "REPLACE" | "INSERT_BEFORE" | "INSERT_AFTER" => true,
                _ => false,
            };
            if relative && priority == 0 {
                if versioned.contains(&name) {
                    report.add("IST0155", filter, &field, "This EnvoyFilter does not have a priority and has a relative patch operation (NSTERT_BEFORE/AFTER, REPLACE, MERGE, DELETE) and proxyVersion set which can cause the EnvoyFilter not to be applied during an upgrade. Using the INSERT_FIRST or ADD option or setting the priority may help in ensuring the EnvoyFilter is applied correctly.");
                } else {
                    report.add("IST0151", filter, &field, "This EnvoyFilter does not have a priority and has a relative patch operation set which can cause the EnvoyFilter not to be applied. Using the INSERT_FIRST of ADD option or setting the priority may help in ensuring the EnvoyFilter is applied correctly.");
                }
            }
            if patch.pointer("/match/proxy/proxyVersion").and_then(Value::as_str).is_some_and(|v| !v.is_empty()) {
                versioned.push(name);
            }
        }
    }
}

/// The name of the filter that a patch brings, or else of the one it looks for.
fn name_of(patch: &Value, change: &Value) -> String {
    let Some(value) = change.get("value").filter(|value| value.is_object()) else { return String::new() };
    let given = text(value, "name");
    let sought = patch.pointer("/match/listener/filterChain/filter/name").and_then(Value::as_str).unwrap_or_default();
    if given.is_empty() { sought.to_owned() } else { given.to_owned() }
}
