//! One place in an object as it was written: its value, if any, and its path.
//!
//! Invariant: reading is total: what is absent, `null` or of a wrong type reads as the field's zero value, as protobuf has
//! it, and whether it was set is asked apart. Wrong types are the schema's business.

use carrick_base::FieldPath;
use serde_json::Value;

use crate::scalar::Duration;

/// A value with its path.
#[derive(Debug, Clone)]
pub(crate) struct Node<'a> {
    value: Option<&'a Value>,
    pub(crate) path: FieldPath,
}

impl<'a> Node<'a> {
    /// The object itself.
    pub(crate) fn root(object: &'a Value) -> Self {
        Self { value: Some(object), path: FieldPath::root() }
    }

    /// A field; absent and `null` are the same.
    pub(crate) fn field(&self, name: &str) -> Self {
        let value = self.value.and_then(|value| value.get(name)).filter(|value| !value.is_null());
        Self { value, path: self.path.field(name) }
    }

    /// Whether anything was written here, be it empty.
    pub(crate) fn is_set(&self) -> bool {
        self.value.is_some()
    }

    /// What was written.
    pub(crate) fn value(&self) -> Option<&'a Value> {
        self.value
    }

    /// A text; empty when absent.
    pub(crate) fn text(&self) -> &'a str {
        self.value.and_then(Value::as_str).unwrap_or_default()
    }

    /// A whole number, also written as text; 0 when absent.
    pub(crate) fn number(&self) -> i128 {
        match self.value {
            Some(Value::Number(number)) => number.as_i128().unwrap_or_default(),
            Some(Value::String(text)) => text.parse().unwrap_or_default(),
            _ => 0,
        }
    }

    /// A number; 0 when absent.
    pub(crate) fn float(&self) -> f64 {
        self.value.and_then(Value::as_f64).unwrap_or_default()
    }

    /// A boolean; false when absent.
    pub(crate) fn flag(&self) -> bool {
        self.value.and_then(Value::as_bool).unwrap_or_default()
    }

    /// A protobuf enum, by name or by number; `names` in the order of their numbers, the first when absent.
    pub(crate) fn choice(&self, names: &[&'static str]) -> &'static str {
        let found = match self.value {
            Some(Value::String(text)) => names.iter().find(|name| *name == text),
            Some(Value::Number(number)) => {
                number.as_u64().and_then(|n| usize::try_from(n).ok()).and_then(|n| names.get(n))
            }
            _ => None,
        };
        found.or_else(|| names.first()).copied().unwrap_or_default()
    }

    /// A length of time; `None` when absent or unreadable.
    pub(crate) fn duration(&self) -> Option<Duration> {
        self.value.and_then(Value::as_str).and_then(|text| Duration::parse(text).ok())
    }

    /// The items of a list that are not `null`.
    pub(crate) fn items(&self) -> Vec<Node<'a>> {
        let list = self.value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let node = |(index, value)| Node { value: Some(value), path: self.path.index(index) };
        list.iter().enumerate().filter(|(_, value)| !value.is_null()).map(node).collect()
    }

    /// The texts of a list.
    pub(crate) fn texts(&self) -> Vec<&'a str> {
        self.items().iter().map(Node::text).collect()
    }

    /// The entries of a map; values that are `null` are kept, as absent ones.
    pub(crate) fn entries(&self) -> Vec<(&'a str, Node<'a>)> {
        let Some(Value::Object(map)) = self.value else { return Vec::new() };
        let node = |value: &'a Value, key: &str| Node {
            value: Some(value).filter(|v| !v.is_null()),
            path: self.path.key(key),
        };
        map.iter().map(|(key, value)| (key.as_str(), node(value, key))).collect()
    }

    /// Entries of a map or items of a list.
    pub(crate) fn len(&self) -> usize {
        match self.value {
            Some(Value::Array(list)) => list.len(),
            Some(Value::Object(map)) => map.len(),
            _ => 0,
        }
    }

    /// Whether there is nothing in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those of the fields that are set.
    pub(crate) fn set_among(&self, names: &[&'static str]) -> Vec<&'static str> {
        names.iter().copied().filter(|name| self.field(name).is_set()).collect()
    }
}
