//! What is wrong with one object, as data: Istio's admission rules, one file per kind.
//!
//! Invariant: an object is judged alone; nothing here sees another object. Types and unknown fields are the schema's
//! business, so a value that passed the schema is expected, and a wrong type is reported, not assumed away.

mod connection_pool;
mod destination_rule;
mod load_balancer;
mod names;
mod peer_authentication;
mod selector;
mod tls;

pub use names::{is_label_key, is_label_value};

use carrick_base::{Diagnostic, FieldPath, ObjectRef, Severity};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::kinds::split_api_version;
use crate::object::from_value;
use crate::scalar::Duration;

/// Istio's code for an object that does not follow its schema or its rules.
pub const CODE: &str = "IST0106";

/// Judges an object by the rules of its kind. Errors mean the object is to be refused; warnings are shown to the user.
///
/// An object of a kind without rules yields nothing.
pub fn object(value: &Value) -> Vec<Diagnostic> {
    let mut findings = Findings::of(value);
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
    let (group, _) = split_api_version(text("apiVersion"));
    if group.ends_with(".istio.io") {
        dry_run(value, text("kind"), &mut findings);
    }
    match (group, text("kind")) {
        ("security.istio.io", "PeerAuthentication") => typed(value, &mut findings, peer_authentication::check),
        ("networking.istio.io", "DestinationRule") => typed(value, &mut findings, destination_rule::check),
        _ => {}
    }
    findings.list
}

/// Whether some of the findings forbid the object.
pub fn has_errors(findings: &[Diagnostic]) -> bool {
    findings.iter().any(|finding| finding.severity == Severity::Error)
}

fn typed<T: DeserializeOwned>(value: &Value, findings: &mut Findings, check: fn(&T, &mut Findings)) {
    match from_value::<T>(value) {
        Ok(object) => check(&object, findings),
        Err(error) => findings.error(&FieldPath::root(), error.message),
    }
}

/// `istio.io/dry-run` only means something on an authorization policy that allows or denies.
fn dry_run(value: &Value, kind: &str, findings: &mut Findings) {
    const ANNOTATION: &str = "istio.io/dry-run";
    let Some(wish) = value.pointer("/metadata/annotations").and_then(|a| a.get(ANNOTATION)).and_then(Value::as_str)
    else {
        return;
    };
    let path = FieldPath::new("metadata.annotations").key(ANNOTATION);
    let action = value.pointer("/spec/action").and_then(Value::as_str).unwrap_or("ALLOW");
    if kind != "AuthorizationPolicy" || !matches!(action, "ALLOW" | "DENY") {
        findings.error(&path, format!("unsupported annotation {ANNOTATION}: only an AuthorizationPolicy with action ALLOW or DENY can be tried"));
    } else if !matches!(
        wish,
        "1" | "t" | "T" | "true" | "TRUE" | "True" | "0" | "f" | "F" | "false" | "FALSE" | "False"
    ) {
        findings.error(&path, format!("annotation {ANNOTATION} must be a boolean, not {wish:?}"));
    }
}

/// Collects what is found about one object.
pub(crate) struct Findings {
    object: ObjectRef,
    list: Vec<Diagnostic>,
}

impl Findings {
    fn of(value: &Value) -> Self {
        let meta =
            |field: &str| value.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or_default();
        let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
        Self { object: ObjectRef::new(kind, meta("namespace"), meta("name")), list: Vec::new() }
    }

    fn add(&mut self, severity: Severity, field: &FieldPath, message: String) {
        self.list.push(Diagnostic { code: CODE, severity, object: self.object.clone(), field: field.clone(), message });
    }

    /// The object is to be refused.
    pub(crate) fn error(&mut self, field: &FieldPath, message: impl Into<String>) {
        self.add(Severity::Error, field, message.into());
    }

    /// The object is accepted, and its author told.
    pub(crate) fn warning(&mut self, field: &FieldPath, message: impl Into<String>) {
        self.add(Severity::Warning, field, message.into());
    }

    /// A percentage between 0 and 100.
    pub(crate) fn percent(&mut self, field: &FieldPath, value: f64) {
        if !(0.0..=100.0).contains(&value) {
            self.error(field, format!("percentage {value} is not in range 0..100"));
        }
    }

    /// A duration of at least a millisecond, in whole milliseconds.
    pub(crate) fn duration(&mut self, field: &FieldPath, value: Option<Duration>) {
        let Some(value) = value else { return };
        let nanos = value.get().as_nanos();
        if nanos < 1_000_000 {
            self.error(field, "duration must be greater than 1ms");
        } else if nanos % 1_000_000 != 0 {
            self.error(field, "only durations to ms precision are supported");
        }
    }

    /// A count that may not be negative.
    pub(crate) fn non_negative(&mut self, field: &FieldPath, value: i32) {
        if value < 0 {
            self.error(field, format!("must be non-negative, not {value}"));
        }
    }

    /// A port number.
    pub(crate) fn port(&mut self, field: &FieldPath, value: u32) {
        if !(1..=65535).contains(&value) {
            self.error(field, format!("port number {value} must be in the range 1..65535"));
        }
    }
}
