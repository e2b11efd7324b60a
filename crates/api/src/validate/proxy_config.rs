//! Rules of `ProxyConfig`, the object (spec §15, §28).
//!
//! Invariant: what a proxy's environment may hold is the proxy's business.

use super::{Findings, Node, attachment};

pub(super) fn check(object: &Node<'_>, findings: &mut Findings) {
    let spec = object.field("spec");
    attachment::labels(&spec.field("selector"), "matchLabels", findings);
    let concurrency = spec.field("concurrency");
    if concurrency.number() < 0 {
        findings.error(&concurrency.path, "concurrency must be greater than or equal to 0");
    }
    for (name, value) in spec.field("environmentVariables").entries() {
        if value.text().len() > 2048 {
            findings.error(&value.path, format!("value of {name} may not be longer than 2048 bytes"));
        }
    }
}
