//! Rules of `WorkloadGroup` (spec §28, §11.7).
//!
//! Invariant: the template lacks what a workload brings itself, so it is not judged as an entry.

use super::{Findings, Node, header, workload_entry};

const NUMBERS: [&str; 5] =
    ["periodSeconds", "initialDelaySeconds", "timeoutSeconds", "successThreshold", "failureThreshold"];

pub(super) fn check(object: &Node<'_>, findings: &mut Findings) {
    let spec = object.field("spec");
    let template = spec.field("template");
    if !template.is_set() {
        findings.error(&template.path, "template is required");
    }
    let address = template.field("address").text();
    if address.starts_with("unix://") && !template.field("ports").is_empty() {
        findings.error(&template.path.field("ports"), format!("unix endpoint {address} must not include ports"));
    }
    workload_entry::ports(&template.field("ports"), None, findings);
    workload_entry::labels(&template.field("labels"), findings);
    workload_entry::labels(&spec.field("metadata").field("labels"), findings);
    let probe = spec.field("probe");
    if probe.is_set() {
        self::probe(&probe, findings);
    }
}

fn probe(probe: &Node<'_>, findings: &mut Findings) {
    for name in NUMBERS {
        let number = probe.field(name);
        if number.number() < 0 {
            findings.error(&number.path, format!("{name} must be non-negative"));
        }
    }
    let ways = probe.set_among(&["httpGet", "tcpSocket", "exec", "grpc"]);
    if ways.len() != 1 {
        findings
            .error(&probe.path, "unknown health check method: exactly one of httpGet, tcpSocket, exec, grpc is needed");
    }
    for way in ways {
        let how = probe.field(way);
        match way {
            "exec" if how.field("command").is_empty() => {
                findings.error(&how.path.field("command"), "exec.command is required");
            }
            "exec" => {}
            _ => findings.port_number(&how.field("port")),
        }
        let scheme = how.field("scheme");
        if way == "httpGet" && !matches!(scheme.text(), "" | "HTTP" | "HTTPS") {
            findings.error(&scheme.path, "httpGet.scheme must be one of \"HTTPS\", \"HTTP\"");
        }
        for header in how.field("httpHeaders").items() {
            let name = header.field("name");
            if !header::is_strict(name.text()) {
                findings.error(&name.path, format!("header name {:?} is not a valid header name", name.text()));
            }
        }
    }
}
