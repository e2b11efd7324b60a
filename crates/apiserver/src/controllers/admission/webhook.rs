//! Configurations of admission webhooks: what is filled in, and what makes one useless.
//!
//! Invariant: a stored configuration can be acted on without asking again what its fields mean.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use std::collections::BTreeSet;

use super::{check, default, section, text};
use crate::admission::AdmitContext;
use crate::custom::compile;
use crate::error::{ApiResult, Cause};

pub(super) fn admit(object: &mut Value, context: &AdmitContext<'_>, mutating: bool) -> ApiResult<()> {
    let mut causes = Vec::new();
    let mut names = BTreeSet::new();
    let hooks = object.get_mut("webhooks").and_then(Value::as_array_mut);
    for (index, hook) in hooks.into_iter().flatten().enumerate() {
        complete(hook, mutating);
        let at = format!("webhooks[{index}]");
        hook_causes(hook, &at, mutating, &mut causes);
        let name = hook.get("name").and_then(Value::as_str).unwrap_or_default();
        if !names.insert(name.to_owned()) {
            causes.push(Cause {
                reason: "FieldValueDuplicate",
                message: format!("Duplicate value: {name:?}"),
                field: format!("{at}.name"),
            });
        }
    }
    check(object, context, causes)
}

fn complete(hook: &mut Value, mutating: bool) {
    for selector in ["namespaceSelector", "objectSelector"] {
        section(hook, selector);
    }
    if let Some(service) = hook.pointer_mut("/clientConfig/service").and_then(Value::as_object_mut) {
        default(service, "port", 443);
    }
    for rule in hook.get_mut("rules").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(rule) = rule.as_object_mut() {
            default(rule, "scope", "*");
        }
    }
    let Some(map) = hook.as_object_mut() else { return };
    default(map, "failurePolicy", "Fail");
    default(map, "matchPolicy", "Equivalent");
    default(map, "timeoutSeconds", 10);
    if mutating {
        default(map, "reinvocationPolicy", "Never");
    }
}

fn hook_causes(hook: &Value, at: &str, mutating: bool, causes: &mut Vec<Cause>) {
    let Some(map) = hook.as_object() else { return };
    let name = text(map, "name");
    if name.is_empty() {
        causes.push(Cause::required(format!("{at}.name"), ""));
    } else if name.split('.').count() < 3 || name.split('.').any(|part| !super::is_dns_label(part)) {
        let why = "should be a domain with at least three segments separated by dots";
        causes.push(Cause::invalid(format!("{at}.name"), &json!(name), why));
    }
    let mut choice = |field: &str, allowed: &[&str]| {
        let value = text(map, field);
        if !allowed.contains(&value) {
            causes.push(unsupported(format!("{at}.{field}"), &json!(value), allowed));
        }
    };
    choice("failurePolicy", &["Fail", "Ignore"]);
    choice("matchPolicy", &["Equivalent", "Exact"]);
    if mutating {
        choice("reinvocationPolicy", &["IfNeeded", "Never"]);
    }
    match map.get("sideEffects").and_then(Value::as_str) {
        None => {
            let field = format!("{at}.sideEffects");
            causes.push(Cause::required(field, "must specify one of None, NoneOnDryRun"));
        }
        Some("None" | "NoneOnDryRun") => {}
        Some(other) => {
            causes.push(unsupported(format!("{at}.sideEffects"), &json!(other), &["None", "NoneOnDryRun"]));
        }
    }
    let seconds = map.get("timeoutSeconds").and_then(Value::as_i64).unwrap_or(10);
    if !(1..=30).contains(&seconds) {
        let why = "the timeout value must be between 1 and 30 seconds";
        causes.push(Cause::invalid(format!("{at}.timeoutSeconds"), &json!(seconds), why));
    }
    versions(map.get("admissionReviewVersions"), at, causes);
    for (index, rule) in map.get("rules").and_then(Value::as_array).into_iter().flatten().enumerate() {
        rule_causes(rule, &format!("{at}.rules[{index}]"), causes);
    }
    client(map.get("clientConfig").unwrap_or(&Value::Null), &format!("{at}.clientConfig"), causes);
    for (index, condition) in map.get("matchConditions").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let expression = condition.get("expression").and_then(Value::as_str).unwrap_or_default();
        if let Err(why) = compile(expression) {
            let field = format!("{at}.matchConditions[{index}].expression");
            causes.push(Cause::invalid(field, &json!(expression), format!("compilation failed: {why}")));
        }
    }
}

fn unsupported(field: String, value: &Value, allowed: &[&str]) -> Cause {
    let listed: Vec<String> = allowed.iter().map(|a| format!("{a:?}")).collect();
    let message = format!("Unsupported value: {value}: supported values: {}", listed.join(", "));
    Cause { reason: "FieldValueNotSupported", message, field }
}

fn versions(list: Option<&Value>, at: &str, causes: &mut Vec<Cause>) {
    let field = format!("{at}.admissionReviewVersions");
    let list = list.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if list.is_empty() {
        causes.push(Cause::required(field, "must specify one of v1, v1beta1"));
    } else if !list.iter().any(|v| v == "v1" || v == "v1beta1") {
        let why = "must include at least one of v1, v1beta1";
        causes.push(Cause::invalid(field, &Value::Array(list.to_vec()), why));
    }
}

pub(super) fn rule_causes(rule: &Value, at: &str, causes: &mut Vec<Cause>) {
    for field in ["operations", "apiGroups", "apiVersions", "resources"] {
        if rule.get(field).and_then(Value::as_array).is_none_or(Vec::is_empty) {
            causes.push(Cause::required(format!("{at}.{field}"), ""));
        }
    }
    let resources = rule.get("resources").and_then(Value::as_array).cloned().unwrap_or_default();
    if resources.len() > 1 && resources.iter().any(|r| r == "*/*") {
        let why = "if '*/*' is present, must not specify other resources";
        causes.push(Cause::invalid(format!("{at}.resources"), &json!(resources), why));
    }
    const OPERATIONS: [&str; 5] = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
    let given = rule.get("operations").and_then(Value::as_array);
    for (index, operation) in given.into_iter().flatten().enumerate() {
        if !operation.as_str().is_some_and(|o| OPERATIONS.contains(&o)) {
            causes.push(unsupported(format!("{at}.operations[{index}]"), operation, &OPERATIONS));
        }
    }
    let scope = rule.get("scope").and_then(Value::as_str).unwrap_or_default();
    if !["*", "Cluster", "Namespaced"].contains(&scope) {
        causes.push(unsupported(format!("{at}.scope"), &json!(scope), &["*", "Cluster", "Namespaced"]));
    }
}

/// Where a webhook is.
pub(super) fn client(client: &Value, at: &str, causes: &mut Vec<Cause>) {
    let url = client.get("url").and_then(Value::as_str);
    let service = client.get("service").filter(|s| s.is_object());
    match (url, service) {
        (Some(url), None) => {
            let parsed = url.parse::<http::Uri>();
            let scheme = parsed.as_ref().ok().and_then(http::Uri::scheme_str).unwrap_or_default().to_owned();
            let good = parsed.is_ok_and(|u| u.host().is_some_and(|h| !h.is_empty()));
            if !good || scheme != "https" {
                // What is wrong with the scheme is told of the scheme alone.
                let url = if scheme.is_empty() || scheme == "https" { url } else { &scheme };
                let why = "'https' is the only allowed URL scheme; desired format: https://host[/path]";
                causes.push(Cause::invalid(format!("{at}.url"), &json!(url), why));
            }
        }
        (None, Some(service)) => {
            for field in ["name", "namespace"] {
                if service.get(field).and_then(Value::as_str).is_none_or(str::is_empty) {
                    causes.push(Cause::required(format!("{at}.service.{field}"), ""));
                }
            }
            let path = service.get("path").and_then(Value::as_str).unwrap_or("/");
            if !path.starts_with('/') {
                let why = "must start with a '/'";
                causes.push(Cause::invalid(format!("{at}.service.path"), &json!(path), why));
            }
        }
        _ => causes.push(Cause::required(at, "exactly one of url or service is required")),
    }
    if let Some(bundle) = client.get("caBundle").and_then(Value::as_str).filter(|b| !b.is_empty()) {
        let readable = STANDARD.decode(bundle).is_ok_and(|pem| CertificateDer::pem_slice_iter(&pem).any(|c| c.is_ok()));
        if !readable {
            let why = "unable to load root certificates: unable to parse bytes as PEM block";
            causes.push(Cause::invalid(format!("{at}.caBundle"), &json!("<bytes>"), why));
        }
    }
}
