//! What is wrong with one object, as data: Istio's admission rules, one file per kind.
//!
//! Invariant: an object is judged alone; nothing here sees another object. Types and unknown fields are the schema's
//! business, so a value that passed the schema is expected, and a wrong type is reported, not assumed away.

use carrick_base::{Diagnostic, FieldPath, ObjectRef, Severity};
use serde_json::Value;

/// Judges an object by the rules of its kind. Errors mean the object is to be refused; warnings are shown to the user.
///
/// An object of a kind without rules yields nothing.
pub fn object(_value: &Value) -> Vec<Diagnostic> {
    Vec::new()
}

#[allow(unused)]
type Unused = (FieldPath, ObjectRef, Severity);
