//! `carrick validate -f`: manifests judged as at admission, without a cluster.
//!
//! Invariant: the same rules as the API's; every file is judged, and one wrong object is enough for a failure. Kinds
//! nobody knows are let be.

use std::path::PathBuf;

use anyhow::Result;
use carrick_analyze::{FileProblem, Object, read_file};
use carrick_api::kinds::{registry, split_api_version};
use carrick_api::{Protocol, validate};
use carrick_base::{Diagnostic, Severity};
use serde_json::{Value, json};

use crate::manifests;
use crate::output::{self, Format};

/// Exit code for text that cannot be read (sysexits' EX_DATAERR, as `istioctl`).
const DATA: u8 = 65;

/// Groups whose kinds are all known: another kind or version in them is a mistake.
const OURS: [&str; 6] = [
    "networking.istio.io",
    "security.istio.io",
    "telemetry.istio.io",
    "extensions.istio.io",
    "authentication.istio.io",
    "gateway.networking.k8s.io",
];

/// One thing to tell about an object.
struct Finding {
    file: String,
    /// `Kind/namespace/name`; empty for a whole file.
    object: String,
    severity: Severity,
    field: String,
    message: String,
    code: &'static str,
}

/// Judges the objects of all files and tells about each file.
///
/// # Errors
/// When a file cannot be read.
pub fn run(files: &[PathBuf], namespace: &str, istio_namespace: &str, format: Format) -> Result<u8> {
    let manifests = manifests::read(files, &mut |_| {})?;
    let (mut findings, mut unreadable) = (Vec::new(), false);
    let mut names = Vec::new();
    for manifest in &manifests {
        let (objects, problems) = read_file(&manifest.name, &manifest.text, namespace);
        for problem in problems.into_iter().filter(|problem| problem.syntax || problem.half) {
            unreadable |= problem.syntax;
            findings.push(undecoded(&problem));
        }
        for object in &objects {
            findings.extend(judge(object, &manifest.name, istio_namespace));
        }
        names.push(manifest.name.clone());
    }
    let failed = findings.iter().any(|finding| finding.severity == Severity::Error);
    if let Some(text) = output::machine(&findings.iter().map(value).collect(), format)? {
        print!("{text}");
    } else {
        tell(&names, &findings, failed);
    }
    Ok(match (failed, unreadable) {
        (_, true) => DATA,
        (true, false) => 1,
        (false, false) => 0,
    })
}

fn tell(names: &[String], findings: &[Finding], failed: bool) {
    for name in names {
        let warnings: Vec<String> = findings
            .iter()
            .filter(|finding| finding.file == *name && finding.severity != Severity::Error)
            .map(line)
            .collect();
        let listed = format!("\n\t{}\n", warnings.join("\n\t"));
        match (warnings.is_empty(), name == "-") {
            (false, true) => println!("{listed}"),
            (false, false) => println!("{name:?} has warnings: {listed}"),
            (true, true) if !failed => println!("validation succeed"),
            (true, false) if !failed => println!("{name:?} is valid"),
            _ => {}
        }
    }
    if failed {
        let errors: Vec<String> =
            findings.iter().filter(|finding| finding.severity == Severity::Error).map(line).collect();
        let many = if errors.len() == 1 { "error" } else { "errors" };
        eprintln!("Error: {} {many} occurred:\n\t{}\n", errors.len(), errors.join("\n\t"));
    }
}

fn line(finding: &Finding) -> String {
    let field = if finding.field.is_empty() { String::new() } else { format!("{}: ", finding.field) };
    if finding.object.is_empty() {
        return format!("* {field}{}", finding.message);
    }
    format!("* {}: {field}{}", finding.object, finding.message)
}

fn value(finding: &Finding) -> Value {
    json!({
        "file": finding.file,
        "object": finding.object,
        "level": finding.severity.to_string(),
        "code": finding.code,
        "field": finding.field,
        "message": finding.message,
    })
}

fn undecoded(problem: &FileProblem) -> Finding {
    Finding {
        file: problem.file.clone(),
        object: String::new(),
        severity: Severity::Error,
        field: String::new(),
        message: format!("failed to decode file {}: yaml: line {}: {}", problem.file, problem.line, problem.message),
        code: "",
    }
}

/// What is wrong with one object.
fn judge(object: &Object, file: &str, istio_namespace: &str) -> Vec<Finding> {
    let origin = &object.origin;
    let namespace = if object.namespace_given { origin.namespace.as_str() } else { "" };
    let finding = |severity, field: &str, message: String, code| Finding {
        file: file.to_owned(),
        object: format!("{}/{namespace}/{}", origin.kind, origin.name),
        severity,
        field: field.to_owned(),
        message,
        code,
    };
    let api_version = object.value.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    let (group, version) = split_api_version(api_version);
    let known = registry().of_object(&object.value);
    if known.is_none() && OURS.contains(&group) {
        let message = format!("no matches for kind {:?} in version {api_version:?}", origin.kind);
        return vec![finding(Severity::Error, "apiVersion", message, validate::CODE)];
    }
    if let Some(kind) = known.filter(|kind| kind.custom) {
        let wrong = kind.schema(version).check(&object.value);
        if !wrong.is_empty() {
            return wrong.iter().map(|error| finding(Severity::Error, "", error.to_string(), validate::CODE)).collect();
        }
        let unnamed = validate::metadata(&object.value);
        if !unnamed.is_empty() {
            let told = |found: Diagnostic| finding(found.severity, found.field.as_str(), found.message, found.code);
            return unnamed.into_iter().map(told).collect();
        }
    }
    let mut all: Vec<Finding> = validate::object(&object.value)
        .into_iter()
        .map(|found| finding(found.severity, found.field.as_str(), found.message, found.code))
        .collect();
    if origin.namespace != istio_namespace || !object.namespace_given {
        match origin.kind.as_str() {
            "Service" if api_version == "v1" => {
                all.extend(ports(object, namespace).into_iter().map(|m| finding(Severity::Error, "", m, "IST0118")));
            }
            "Deployment" if api_version == "apps/v1" => metrics_labels(object, namespace),
            _ => {}
        }
    }
    all
}

const REQUIREMENTS: &str = "https://istio.io/latest/docs/ops/deployment/application-requirements/";

/// Ports of a service that do not say their protocol.
fn ports(service: &Object, namespace: &str) -> Vec<String> {
    let shown = format!("{}/{namespace}/:", service.origin.name);
    let list = service.value.pointer("/spec/ports").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let text = |port: &Value, field: &str| port.get(field).and_then(Value::as_str).map(str::to_owned);
    let mut wrong = Vec::new();
    for port in list.iter().filter(|port| text(port, "protocol").is_none_or(|p| !p.eq_ignore_ascii_case("udp"))) {
        let known = |word: &str| Protocol::parse(word).is_some() || word.starts_with("kubernetes.io/");
        match (text(port, "appProtocol"), text(port, "name")) {
            (Some(word), _) if !known(&word) => wrong.push(format!("service {shown:?} doesn't follow Istio protocol selection. This is not recommended, See https://istio.io/latest/docs/ops/configuration/traffic-management/protocol-selection/")),
            (Some(_), _) => {}
            (None, None) => wrong.push(format!("service {shown:?} has an unnamed port. This is not recommended, See {REQUIREMENTS}")),
            (None, Some(name)) => {
                let word = name.split('-').next().unwrap_or_default();
                let of_two = name.split('-').take(2).collect::<Vec<_>>().join("-");
                if Protocol::parse(word).is_none() && Protocol::parse(&of_two).is_none() {
                    wrong.push(format!("service {shown:?} port {name:?} does not follow the Istio naming convention. See {REQUIREMENTS}"));
                }
            }
        }
    }
    wrong
}

/// Tells about a deployment whose metrics would carry no application and no version.
fn metrics_labels(deployment: &Object, namespace: &str) {
    let labels = deployment.value.pointer("/spec/template/metadata/labels");
    let has = |names: &[&str]| names.iter().any(|name| labels.and_then(|labels| labels.get(*name)).is_some());
    let service = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
    let revision = ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
    if !has(&service) || !has(&revision) {
        let shown = format!("{}/{namespace}:", deployment.origin.name);
        let own = labels.cloned().unwrap_or_else(|| json!({}));
        eprintln!("deployment {shown:?} may not provide Istio metrics and telemetry labels: {own}. See {REQUIREMENTS}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str) -> Vec<String> {
        let (objects, problems) = read_file("f.yaml", text, "default");
        let wrong = objects.iter().flat_map(|object| judge(object, "f.yaml", "istio-system"));
        problems
            .iter()
            .filter(|p| p.syntax || p.half)
            .map(undecoded)
            .chain(wrong)
            .map(|finding| line(&finding))
            .collect()
    }

    #[test]
    fn objects_are_judged_as_at_admission() {
        let good = "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec: {servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}\n";
        assert_eq!(findings(good), Vec::<String>::new());
        let bad = good.replace("80", "0");
        assert_eq!(
            findings(&bad),
            ["* Gateway//g: spec.servers[0].port.number: port number 0 must be in the range 1..65535"]
        );
        assert_eq!(
            findings(&good.replace("name: g}", "labels: {a: b}}")),
            ["* Gateway//: metadata.name: Required value: name or generateName is required"]
        );
        assert_eq!(
            findings(&good.replace("hosts", "hots")).first().unwrap(),
            "* Gateway//g: unknown field \"spec.servers[0].hots\""
        );
    }

    #[test]
    fn kinds_of_others_are_let_be_and_services_name_their_ports() {
        assert_eq!(
            findings("apiVersion: x.example/v1\nkind: Thing\nmetadata: {name: a}\nfoo: [1]\n"),
            Vec::<String>::new()
        );
        assert_eq!(findings("just: values\n"), Vec::<String>::new());
        assert!(findings("kind: PeerAuthentication\nspec: {}\n")[0].contains("Object 'apiVersion' is missing"));
        for (version, kind) in [("security.istio.io/v2", "PeerAuthentication"), ("security.istio.io/v1", "PeerAuthn")] {
            let found = findings(&format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n"));
            assert_eq!(
                found,
                [format!("* {kind}//a: apiVersion: no matches for kind {kind:?} in version {version:?}")]
            );
        }
        let service =
            |port: &str| format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\nspec: {{ports: [{port}]}}\n");
        for good in [
            "{name: http-a, port: 1}",
            "{name: grpc-web, port: 1}",
            "{port: 53, protocol: UDP}",
            "{port: 1, appProtocol: tcp}",
        ] {
            assert_eq!(findings(&service(good)), Vec::<String>::new(), "{good}");
        }
        assert!(findings(&service("{name: foo, port: 1}"))[0].contains("does not follow the Istio naming convention"));
        assert!(findings(&service("{port: 1}"))[0].contains("unnamed port"));
    }

    #[test]
    fn what_cannot_be_read_is_told_with_its_line() {
        let found = findings("apiVersion: v1\nkind: ConfigMap\n---\na: 1\na: 2\n");
        assert_eq!(found, ["* failed to decode file f.yaml: yaml: line 5: key \"a\" already set in map"]);
    }
}
