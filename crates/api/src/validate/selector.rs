//! Selectors of workloads, as the security kinds and destination rules have them.
//!
//! Invariant: a selector that selects everything by accident is told to its author.

use carrick_base::FieldPath;

use super::Findings;
use crate::istio::WorkloadSelector;

pub(super) fn check(selector: Option<&WorkloadSelector>, path: &FieldPath, findings: &mut Findings) {
    let Some(selector) = selector else { return };
    if selector.match_labels.is_empty() {
        findings.warning(path, "workload selector specified without labels");
    }
    let labels = path.field("matchLabels");
    for (key, value) in &selector.match_labels {
        let at = labels.key(key);
        if key.is_empty() {
            findings.error(&labels, "empty key is not supported in selector");
        } else if key.contains('*') || value.contains('*') {
            findings.error(&at, format!("wildcard is not supported in selector: \"{key}={value}\""));
        } else if value.chars().count() > 63 {
            findings.error(&at, format!("label value {value:?} is longer than 63 characters"));
        }
    }
}
