//! Free-form metadata (`google.protobuf.Struct` by namespace) in plain types.
//!
//! Invariant: nesting is bounded at build time.

use std::collections::BTreeMap;

use super::Name;

/// Namespace → object.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata(pub BTreeMap<Name, BTreeMap<Name, Value>>);

/// A JSON-like value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// null
    Null,
    /// A truth value.
    Bool(bool),
    /// A number.
    Number(f64),
    /// A text.
    Text(Name),
    /// A list.
    List(Vec<Value>),
    /// An object.
    Object(BTreeMap<Name, Value>),
}

impl Metadata {
    /// The object of a namespace.
    #[must_use]
    pub fn namespace(&self, name: &str) -> Option<&BTreeMap<Name, Value>> {
        self.0.get(name)
    }

    /// The value at a path below a namespace.
    #[must_use]
    pub fn at(&self, namespace: &str, path: &[Name]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.0.get(namespace)?.get(first)?, |value, key| match value {
            Value::Object(object) => object.get(key),
            _ => None,
        })
    }

    /// A text at `namespace.key`.
    #[must_use]
    pub fn text(&self, namespace: &str, key: &str) -> Option<&str> {
        match self.0.get(namespace)?.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}
