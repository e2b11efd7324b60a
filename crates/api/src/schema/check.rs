//! A value beside its schema: unknown fields, wrong types, values outside an enum.
//!
//! Invariant: every finding names its field by the path Kubernetes would print; `null` counts as absent for fields. The
//! wording is Kubernetes' own, so that people can search for it.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use super::{Cursor, EnumType, IntRange, Keys, Schema, Type};
use crate::quantity::{Quantity, is_quantity};
use crate::scalar::Duration;
use crate::timestamp::Timestamp;

/// One thing wrong with a field.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    /// Path from the object's root, e.g. `spec.servers[0].port`.
    pub path: String,
    pub reason: Reason,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq)]
pub enum Reason {
    /// The schema has no such field.
    Unknown,
    /// A required field is absent.
    Required,
    /// The value has another JSON type.
    WrongType { expected: &'static str, found: &'static str, value: String },
    /// The value is not one of an enum's.
    Unsupported { value: String, supported: Vec<Arc<str>> },
    /// The value has the right type but not the right form.
    Invalid { value: String, message: String },
}

impl FieldError {
    /// Whether this is an unknown field, which only strict decoding refuses.
    pub fn is_unknown(&self) -> bool {
        self.reason == Reason::Unknown
    }

    /// The `reason` of a Kubernetes `StatusCause`.
    pub fn cause(&self) -> &'static str {
        match self.reason {
            Reason::Unknown => "FieldValueInvalid",
            Reason::Required => "FieldValueRequired",
            Reason::WrongType { .. } => "FieldValueTypeInvalid",
            Reason::Unsupported { .. } => "FieldValueNotSupported",
            Reason::Invalid { .. } => "FieldValueInvalid",
        }
    }

    /// The message without the path, as a `StatusCause` carries it.
    pub fn message(&self) -> String {
        match &self.reason {
            Reason::Unknown => format!("unknown field {:?}", self.path),
            Reason::Required => "Required value".to_owned(),
            Reason::WrongType { expected, found, .. } => {
                format!("Invalid value: {found:?}: {} in body must be of type {expected}: {found:?}", self.path)
            }
            Reason::Unsupported { value, supported } => {
                let names: Vec<_> = supported.iter().map(|s| format!("{s:?}")).collect();
                format!("Unsupported value: {value}: supported values: {}", names.join(", "))
            }
            Reason::Invalid { value, message } => format!("Invalid value: {value}: {message}"),
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason {
            Reason::Unknown => f.write_str(&self.message()),
            _ => write!(f, "{}: {}", self.path, self.message()),
        }
    }
}

impl Schema {
    /// Compares a value with the schema and returns everything that is wrong, in document order.
    pub fn check(&self, value: &Value) -> Vec<FieldError> {
        let mut checker = Checker { path: String::new(), errors: Vec::new() };
        checker.value(self.cursor(), value);
        checker.errors
    }

    /// Removes fields that the schema does not know, as a server does that was not asked to be strict. Returns the paths
    /// removed.
    pub fn prune(&self, value: &mut Value) -> Vec<String> {
        let mut removed = Vec::new();
        prune(self.cursor(), value, &mut String::new(), &mut removed);
        removed
    }

    /// Writes every quantity in its one form, as Kubernetes does when it reads one: `0.5Gi` is `512Mi`.
    pub fn canonical(&self, value: &mut Value) {
        canonical(self.cursor(), value);
    }
}

fn canonical(at: Cursor<'_>, value: &mut Value) {
    match (at.ty(), value) {
        (Type::Quantity, value) => {
            if let Some(quantity) = Quantity::of(value) {
                *value = quantity.to_string().into();
            }
        }
        (Type::Object(_) | Type::Map { .. }, Value::Object(map)) => {
            for (key, child) in map {
                if let Some(place) = at.field(key) {
                    canonical(place, child);
                }
            }
        }
        (Type::List { .. }, Value::Array(items)) => {
            if let Some(place) = at.items() {
                items.iter_mut().for_each(|item| canonical(place, item));
            }
        }
        _ => {}
    }
}

struct Checker {
    path: String,
    errors: Vec<FieldError>,
}

impl Checker {
    fn report(&mut self, reason: Reason) {
        self.errors.push(FieldError { path: self.path.clone(), reason });
    }

    fn below<R>(&mut self, step: Step<'_>, run: impl FnOnce(&mut Self) -> R) -> R {
        let length = push(&mut self.path, step);
        let result = run(self);
        self.path.truncate(length);
        result
    }

    fn value(&mut self, at: Cursor<'_>, value: &Value) {
        match (at.ty(), value) {
            (Type::Any | Type::Ref(_), _) => {}
            (Type::Object(object), Value::Object(map)) => {
                for (key, child) in map {
                    self.below(Step::Field(key), |this| match at.field(key) {
                        None if object.open => {}
                        None => this.report(Reason::Unknown),
                        Some(_) if child.is_null() => {}
                        Some(place) => this.value(place, child),
                    });
                }
                for name in object.required.iter().filter(|_| object.enforce_required) {
                    if map.get(&**name).is_none_or(Value::is_null) {
                        self.below(Step::Field(name), |this| this.report(Reason::Required));
                    }
                }
            }
            (Type::Map { keys, .. }, Value::Object(map)) => {
                for (key, child) in map {
                    self.below(Step::Field(key), |this| {
                        if *keys == Keys::Number && key.parse::<u32>().is_err() {
                            this.report(Reason::Invalid {
                                value: format!("{key:?}"),
                                message: "key must be a port number".to_owned(),
                            });
                        }
                        if let Some(place) = at.field(key).filter(|_| !child.is_null()) {
                            this.value(place, child);
                        }
                    });
                }
            }
            (Type::List { .. }, Value::Array(items)) => {
                let Some(place) = at.items() else { return };
                for (index, item) in items.iter().enumerate() {
                    self.below(Step::Index(index), |this| this.value(place, item));
                }
            }
            (ty, value) => self.scalar(ty, value),
        }
    }

    fn scalar(&mut self, ty: &Type, value: &Value) {
        let wrong = |expected| Some(Reason::WrongType { expected, found: type_name(value), value: value.to_string() });
        let invalid = |message: String| Some(Reason::Invalid { value: value.to_string(), message });
        let problem = match (ty, value) {
            (Type::Bool, Value::Bool(_)) | (Type::Number, Value::Number(_)) => None,
            (Type::String, Value::String(_)) | (Type::IntOrString, Value::String(_)) => None,
            (Type::IntOrString, Value::Number(n)) if n.is_i64() => None,
            (Type::Quantity, Value::Number(_)) => None,
            (Type::Quantity, Value::String(text)) => {
                if is_quantity(text) {
                    None
                } else {
                    invalid(
                        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
                            .to_owned(),
                    )
                }
            }
            (Type::Duration, Value::String(text)) => Duration::parse(text).err().and_then(&invalid),
            (Type::Time, Value::String(text)) => {
                if Timestamp::parse(text).is_some() {
                    None
                } else {
                    invalid(format!("{text:?} is not an RFC 3339 time"))
                }
            }
            (Type::Bytes, Value::String(text)) => {
                if is_base64(text) {
                    None
                } else {
                    invalid("illegal base64 data".to_owned())
                }
            }
            (Type::Int(range), Value::Number(number)) => match number.as_i128() {
                Some(n) => out_of_range(range, n).and_then(&invalid),
                None => wrong("integer"),
            },
            (Type::Int(range), Value::String(text)) if range.as_text => match text.parse::<i128>() {
                Ok(n) => out_of_range(range, n).and_then(&invalid),
                Err(_) => wrong("integer"),
            },
            (Type::Enum(choices), value) => unsupported(choices, value),
            (ty, _) => wrong(expected_name(ty)),
        };
        if let Some(reason) = problem {
            self.report(reason);
        }
    }
}

fn unsupported(choices: &EnumType, value: &Value) -> Option<Reason> {
    let known = match value {
        Value::String(text) => choices.values.iter().any(|(name, _)| **name == **text),
        Value::Number(number) => {
            let number = number.as_i64();
            if number.is_none() || choices.values.iter().all(|(_, n)| n.is_none()) {
                return Some(Reason::WrongType {
                    expected: "string",
                    found: type_name(value),
                    value: value.to_string(),
                });
            }
            choices.values.iter().any(|(_, n)| n.is_some() && *n == number)
        }
        _ => return Some(Reason::WrongType { expected: "string", found: type_name(value), value: value.to_string() }),
    };
    (!known).then(|| Reason::Unsupported {
        value: value.to_string(),
        supported: choices.values.iter().map(|(name, _)| name.clone()).collect(),
    })
}

fn out_of_range(range: &IntRange, number: i128) -> Option<String> {
    if number < i128::from(range.min) {
        Some(format!("should be greater than or equal to {}", range.min))
    } else if number > range.max {
        Some(format!("should be less than or equal to {}", range.max))
    } else {
        None
    }
}

fn expected_name(ty: &Type) -> &'static str {
    match ty {
        Type::Object(_) | Type::Map { .. } => "object",
        Type::List { .. } => "array",
        Type::Bool => "boolean",
        Type::Int(_) => "integer",
        Type::Number => "number",
        Type::IntOrString => "integer or string",
        _ => "string",
    }
}

/// The JSON type of a value, as schemas call it.
pub fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn is_base64(text: &str) -> bool {
    // Line breaks are allowed, as in Go's decoder.
    let bytes: Vec<u8> = text.bytes().filter(|b| !matches!(b, b'\n' | b'\r')).collect();
    let data = bytes.iter().take_while(|b| **b != b'=').count();
    let padding = bytes.len() - data;
    bytes.len().is_multiple_of(4)
        && padding <= 2
        && bytes.iter().take(data).all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/'))
        && bytes.iter().skip(data).all(|b| *b == b'=')
}

enum Step<'a> {
    Field(&'a str),
    Index(usize),
}

/// Appends a step and returns the length to truncate back to.
fn push(path: &mut String, step: Step<'_>) -> usize {
    use std::fmt::Write as _;
    let length = path.len();
    match step {
        Step::Field(name) => {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(name);
        }
        // Writing to a String cannot fail.
        Step::Index(index) => _ = write!(path, "[{index}]"),
    }
    length
}

fn prune(at: Cursor<'_>, value: &mut Value, path: &mut String, removed: &mut Vec<String>) {
    match (at.ty(), value) {
        (Type::Object(object), Value::Object(map)) => {
            map.retain(|key, child| {
                let length = push(path, Step::Field(key));
                let known = object.fields.contains_key(key.as_str());
                if known {
                    if let Some(place) = at.field(key) {
                        prune(place, child, path, removed);
                    }
                } else if !object.open {
                    removed.push(path.clone());
                }
                path.truncate(length);
                known || object.open
            });
        }
        (Type::Map { .. }, Value::Object(map)) => {
            for (key, child) in map {
                let length = push(path, Step::Field(key));
                if let Some(place) = at.field(key) {
                    prune(place, child, path, removed);
                }
                path.truncate(length);
            }
        }
        (Type::List { .. }, Value::Array(items)) => {
            let Some(place) = at.items() else { return };
            for (index, item) in items.iter_mut().enumerate() {
                let length = push(path, Step::Index(index));
                prune(place, item, path, removed);
                path.truncate(length);
            }
        }
        _ => {}
    }
}
