//! `exportTo`: the namespaces that see an object.
//!
//! Invariant: `.` and the object's own namespace are one entry; all and none exclude others.

use std::collections::BTreeSet;

use super::{Findings, Node, names};

/// Judges the list of an object in `namespace`; nobody (`~`) may be named by service entries only.
pub(super) fn check(list: &Node<'_>, namespace: &str, nobody_may: bool, findings: &mut Findings) {
    let mut seen = BTreeSet::new();
    for entry in list.items() {
        let target = entry.text();
        match target {
            "." | "*" => {}
            "~" if nobody_may => {}
            "~" => findings.error(&entry.path, "~ (none) is only allowed on a ServiceEntry"),
            name if !names::is_dns_label(name) => findings.error(&entry.path, format!("invalid namespace {name:?}")),
            _ => {}
        }
        let own = !namespace.is_empty() && target == namespace;
        if !seen.insert(if own { "." } else { target }) {
            findings.error(&entry.path, format!("duplicate entry in exportTo: {target}"));
        }
    }
    if seen.len() > 1 && seen.contains("*") {
        findings.error(&list.path, "cannot have both public (\"*\") and non-public exportTo values");
    }
    if seen.len() > 1 && nobody_may && seen.contains("~") {
        findings.error(&list.path, "cannot export service entry to no one (~) and someone");
    }
}
