//! What a policy is attached to: workloads by labels, or objects by name.
//!
//! Invariant: one way of attaching; a selector that selects everything by accident is told to its author.

use super::{Findings, Node};

/// Kinds that a policy can be attached to, by group.
const TARGETS: [(&str, &str); 4] = [
    ("", "Service"),
    ("networking.istio.io", "ServiceEntry"),
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
];

/// `selector`, `targetRef` and `targetRefs` of the security, telemetry and extension kinds.
pub(super) fn policy(spec: &Node<'_>, findings: &mut Findings) {
    let ways =
        [spec.field("selector").is_set(), spec.field("targetRef").is_set(), !spec.field("targetRefs").is_empty()];
    if ways.iter().filter(|set| **set).count() > 1 {
        findings.error(&spec.path, "only one of targetRefs or selector can be set");
    }
    labels(&spec.field("selector"), "matchLabels", findings);
    let one = spec.field("targetRef");
    if one.is_set() {
        target(&one, findings);
    }
    targets(&spec.field("targetRefs"), findings);
}

/// A list of targets.
pub(super) fn targets(list: &Node<'_>, findings: &mut Findings) {
    if list.len() > 16 {
        findings.error(&list.path, format!("must have at most 16 items, not {}", list.len()));
    }
    for reference in list.items() {
        target(&reference, findings);
    }
}

fn target(reference: &Node<'_>, findings: &mut Findings) {
    if reference.field("name").text().is_empty() {
        findings.error(&reference.path.field("name"), "targetRef name must be set");
    }
    if !reference.field("namespace").text().is_empty() {
        findings.error(
            &reference.path.field("namespace"),
            "targetRef namespace must not be set; cross namespace referencing is not supported",
        );
    }
    let (group, kind) = (reference.field("group").text(), reference.field("kind").text());
    let group = if group == "core" { "" } else { group };
    if !TARGETS.contains(&(group, kind)) {
        let known: Vec<_> = TARGETS.iter().map(|(group, kind)| format!("{group}/{kind}")).collect();
        findings.error(
            &reference.path.field("kind"),
            format!("targetRef must be to one of {} but was {group}/{kind}", known.join(", ")),
        );
    }
}

/// A selector whose labels are in `field`.
pub(super) fn labels(selector: &Node<'_>, field: &str, findings: &mut Findings) {
    if !selector.is_set() {
        return;
    }
    let labels = selector.field(field);
    if labels.is_empty() {
        findings.warning(&selector.path, "workload selector specified without labels");
    }
    for (key, value) in labels.entries() {
        let text = value.text();
        if key.is_empty() {
            findings.error(&labels.path, "empty key is not supported in selector");
        } else if key.contains('*') || text.contains('*') {
            findings.error(&value.path, format!("wildcard is not supported in selector: \"{key}={text}\""));
        } else if text.chars().count() > 63 {
            findings.error(&value.path, format!("label value {text:?} is longer than 63 characters"));
        }
    }
}
