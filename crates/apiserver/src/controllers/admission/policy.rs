//! ValidatingAdmissionPolicies and their bindings: what is filled in, and what makes one useless.
//!
//! Invariant: every expression of a stored policy is one that can be read.

use serde_json::{Value, json};

use super::{check, default, section};
use crate::admission::AdmitContext;
use crate::custom::compile;
use crate::error::{ApiResult, Cause};

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn items<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn constraints(constraints: &mut Value) {
    for selector in ["namespaceSelector", "objectSelector"] {
        section(constraints, selector);
    }
    for field in ["resourceRules", "excludeResourceRules"] {
        for rule in constraints.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(rule) = rule.as_object_mut() {
                default(rule, "scope", "*");
            }
        }
    }
    if let Some(map) = constraints.as_object_mut() {
        default(map, "matchPolicy", "Equivalent");
    }
}

pub(super) fn policy(object: &mut Value, context: &AdmitContext<'_>) -> ApiResult<()> {
    if let Some(spec) = section(object, "spec") {
        default(spec, "failurePolicy", "Fail");
        if let Some(own) = spec.get_mut("matchConstraints").filter(|c| c.is_object()) {
            constraints(own);
        }
    }
    let now = |object: &Value| object.get("spec").cloned().unwrap_or_default();
    let generation = context.old.map_or(1, |old| {
        let known = old.pointer("/metadata/generation").and_then(Value::as_u64).unwrap_or(0);
        if now(old) == now(object) { known } else { known.saturating_add(1) }
    });
    if let Some(map) = object.as_object_mut() {
        // Types are not looked at, so there is nothing to tell about them.
        map.insert("status".into(), json!({"observedGeneration": generation, "typeChecking": {}}));
    }
    let mut causes = Vec::new();
    let spec = object.get("spec").cloned().unwrap_or_default();
    if !matches!(text(&spec, "failurePolicy"), "Fail" | "Ignore") {
        let message =
            format!("Unsupported value: {:?}: supported values: \"Fail\", \"Ignore\"", text(&spec, "failurePolicy"));
        causes.push(Cause { reason: "FieldValueNotSupported", message, field: "spec.failurePolicy".into() });
    }
    match spec.get("matchConstraints").filter(|c| c.is_object()) {
        None => causes.push(Cause::required("spec.matchConstraints", "")),
        Some(own) if items(own, "/resourceRules").is_empty() => {
            causes.push(Cause::required("spec.matchConstraints.resourceRules", ""));
        }
        Some(own) => {
            for (index, rule) in items(own, "/resourceRules").iter().enumerate() {
                super::webhook::rule_causes(
                    rule,
                    &format!("spec.matchConstraints.resourceRules[{index}]"),
                    &mut causes,
                );
            }
        }
    }
    if items(&spec, "/validations").is_empty() && items(&spec, "/auditAnnotations").is_empty() {
        let why = "validations or auditAnnotations must contain at least one item";
        for field in ["spec.validations", "spec.auditAnnotations"] {
            causes.push(Cause::required(field, why));
        }
    }
    for list in ["variables", "matchConditions", "validations"] {
        for (index, entry) in items(&spec, &format!("/{list}")).iter().enumerate() {
            for field in ["expression", "messageExpression"] {
                let at = format!("spec.{list}[{index}].{field}");
                match text(entry, field).trim() {
                    "" if field == "expression" => {
                        causes.push(Cause::required(at, "expression is not specified"));
                    }
                    "" => {}
                    expression => {
                        if let Err(why) = compile(expression) {
                            causes.push(Cause::invalid(at, &json!(expression), format!("compilation failed: {why}")));
                        }
                    }
                }
            }
        }
    }
    check(object, context, causes)
}

pub(super) fn binding(object: &mut Value, context: &AdmitContext<'_>) -> ApiResult<()> {
    if let Some(own) = object.pointer_mut("/spec/matchResources").filter(|c| c.is_object()) {
        constraints(own);
    }
    let mut causes = Vec::new();
    let spec = object.get("spec").cloned().unwrap_or_default();
    if text(&spec, "policyName").is_empty() {
        causes.push(Cause::required("spec.policyName", ""));
    }
    let actions = items(&spec, "/validationActions");
    if actions.is_empty() {
        causes.push(Cause::required("spec.validationActions", "at least one validation action is required"));
    }
    for (index, action) in actions.iter().enumerate() {
        if !matches!(action.as_str(), Some("Audit" | "Deny" | "Warn")) {
            let message = format!("Unsupported value: {action}: supported values: \"Audit\", \"Deny\", \"Warn\"");
            let field = format!("spec.validationActions[{index}]");
            causes.push(Cause { reason: "FieldValueNotSupported", message, field });
        }
    }
    let has = |wanted: &str| actions.iter().any(|a| a == wanted);
    if has("Deny") && has("Warn") {
        let why = "must not contain both Deny and Warn (repeating the same validation failure information in the API response and headers serves no purpose)";
        causes.push(Cause::invalid("spec.validationActions", &json!(actions), why));
    }
    check(object, context, causes)
}
