//! Rules of the legacy `Policy` and `MeshPolicy` (spec §14).
//!
//! Invariant: an object that says nothing about who may call is refused only where its kind never meant anything by it.

use super::{Findings, Node, names};

pub(super) fn check(object: &Node<'_>, mesh_wide: bool, findings: &mut Findings) {
    let spec = object.field("spec");
    let name = object.field("metadata").field("name");
    let targets = spec.field("targets");
    if mesh_wide && name.text() != "default" && !name.text().is_empty() {
        findings.error(
            &name.path,
            format!("authentication policy {:?}: a MeshPolicy must be named \"default\"", name.text()),
        );
    }
    if mesh_wide && !targets.is_empty() {
        findings.error(&targets.path, "a MeshPolicy cannot have targets");
    }
    if !mesh_wide && !name.text().is_empty() {
        if targets.is_empty() && name.text() != "default" {
            findings.error(
                &name.path,
                format!(
                    "authentication policy with no target rules must be named \"default\", found {:?}",
                    name.text()
                ),
            );
        }
        if !targets.is_empty() && name.text() == "default" {
            findings.error(&name.path, "authentication policy with name \"default\" must not have any target rules");
        }
    }
    for target in targets.items() {
        self::target(&target, findings);
    }
    let mut issuers = Vec::new();
    for (list, field) in [("peers", "jwt"), ("origins", "jwt")] {
        for method in spec.field(list).items() {
            jwt(&method.field(field), &mut issuers, findings);
        }
    }
    for origin in spec.field("origins").items() {
        if !origin.field("jwt").is_set() {
            findings.error(&origin.path.field("jwt"), "origin authentication method cannot be empty");
        }
    }
}

fn target(target: &Node<'_>, findings: &mut Findings) {
    let name = target.field("name");
    if !names::is_label(name.text()) {
        findings.error(
            &name.path,
            format!("target name {:?} must be a valid label: the short name of a service", name.text()),
        );
    }
    for port in target.field("ports").items() {
        let (number, by_name) = (port.field("number"), port.field("name"));
        if number.is_set() {
            findings.port_number(&number);
        } else if by_name.text().is_empty() {
            findings.error(&port.path, "port must be given by number or name");
        } else {
            findings.port_name(&by_name.path, by_name.text());
        }
    }
}

fn jwt<'a>(jwt: &Node<'a>, issuers: &mut Vec<&'a str>, findings: &mut Findings) {
    if !jwt.is_set() {
        return;
    }
    let either = |a: &str, b: &str| {
        let first = jwt.field(a);
        if first.is_set() { first } else { jwt.field(b) }
    };
    let issuer = jwt.field("issuer");
    if issuer.text().is_empty() {
        findings.error(&issuer.path, "issuer must be set");
    } else if issuers.contains(&issuer.text()) {
        findings.error(&issuer.path, format!("jwt with issuer {:?} already defined", issuer.text()));
    }
    issuers.push(issuer.text());
    for field in [jwt.field("audiences"), either("jwtHeaders", "jwt_headers"), either("jwtParams", "jwt_params")] {
        for value in field.items().iter().filter(|value| value.text().is_empty()) {
            findings.error(&value.path, "must be a non-empty string");
        }
    }
    let uri = either("jwksUri", "jwks_uri");
    if !uri.text().is_empty() && !uri.text().starts_with("http://") && !uri.text().starts_with("https://") {
        findings.error(&uri.path, format!("URI {:?} has no supported scheme", uri.text()));
    }
    if !uri.text().is_empty() && !jwt.field("jwks").text().is_empty() {
        findings.error(&jwt.path, "only one of jwks or jwksUri can be set");
    }
    for rule in either("triggerRules", "trigger_rules").items() {
        for (a, b) in [("excludedPaths", "excluded_paths"), ("includedPaths", "included_paths")] {
            let paths = if rule.field(a).is_set() { rule.field(a) } else { rule.field(b) };
            for path in paths.items() {
                let set = path.set_among(&["exact", "prefix", "suffix", "regex"]);
                if set.len() != 1 || set.iter().all(|field| path.field(field).text().is_empty()) {
                    findings.error(&path.path, "exactly one non-empty kind of match is needed");
                }
                if let Some(Err(message)) =
                    path.field("regex").value().and_then(|value| value.as_str()).map(super::expression::compile)
                {
                    findings.error(&path.path.field("regex"), message);
                }
            }
        }
    }
}
