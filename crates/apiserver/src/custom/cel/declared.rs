//! What a rule knows of a schema: types with their fields, and how large values can get.
//!
//! Invariant: sizes are those that Kubernetes assumes: what a schema bounds, or else what fits into a request of 3 MiB. Fields have
//! the names that rules call them by.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Bytes of a request.
const REQUEST: u64 = 3 << 20;
/// Times and durations as JSON.
const DURATION: u64 = 32;
const DATE: u64 = 12;
const DATE_TIME: u64 = 24;

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Is {
    Dyn,
    Bool,
    Int,
    Double,
    Text,
    Bytes,
    Duration,
    Timestamp,
    List,
    Map,
    Object,
}

/// The type of a schema's values.
#[derive(Debug)]
pub struct Declared {
    pub is: Is,
    /// Characters, items or entries, at most; 0 for what has none.
    pub largest: u64,
    /// Bytes of its smallest JSON.
    pub smallest: u64,
    pub fields: BTreeMap<String, Declared>,
    /// Of a list's items or a map's values.
    pub element: Option<Box<Declared>>,
}

impl Declared {
    fn new(is: Is, smallest: u64, largest: u64) -> Self {
        Self { is, largest, smallest, fields: BTreeMap::new(), element: None }
    }

    /// The type of a schema; nothing where it says no type. `root` also knows what every object has.
    pub fn of(schema: &Value, root: bool) -> Option<Self> {
        let map = schema.as_object()?;
        let flag = |field: &str| map.get(field) == Some(&Value::Bool(true));
        if flag("x-kubernetes-int-or-string") {
            return Some(Self::new(Is::Dyn, 1, REQUEST - 2));
        }
        let type_ = map.get("type").and_then(Value::as_str).unwrap_or_default();
        let bound = |field: &str| map.get(field).and_then(Value::as_i64).map(|n| u64::try_from(n).unwrap_or(0));
        Some(match type_ {
            "boolean" => Self::new(Is::Bool, 4, 0),
            "number" => Self::new(Is::Double, 1, 0),
            "integer" => Self::new(Is::Int, 1, 0),
            "string" => text(map, bound("maxLength")),
            "array" => {
                let items = Self::of(map.get("items")?, false)?;
                let fitting = (REQUEST - 2) / items.smallest.saturating_add(1).max(1);
                let largest = bound("maxItems").unwrap_or(fitting);
                Self { element: Some(Box::new(items)), ..Self::new(Is::List, 2, largest) }
            }
            "object" => match map.get("additionalProperties").filter(|a| a.is_object()) {
                Some(values) if !root => {
                    let values = Self::of(values, false)?;
                    let fitting = (REQUEST - 2) / values.smallest.saturating_add(6);
                    let largest = bound("maxProperties").unwrap_or(fitting);
                    Self { element: Some(Box::new(values)), ..Self::new(Is::Map, 2, largest) }
                }
                _ => object(map, root || flag("x-kubernetes-embedded-resource")),
            },
            _ => return None,
        })
    }
}

fn text(map: &Map<String, Value>, max: Option<u64>) -> Declared {
    let format = map.get("format").and_then(Value::as_str).unwrap_or_default();
    let fixed = match format {
        "duration" => Some((Is::Duration, DURATION)),
        "date" => Some((Is::Timestamp, DATE)),
        "date-time" => Some((Is::Timestamp, DATE_TIME)),
        _ => None,
    };
    if let Some((is, largest)) = fixed {
        return Declared::new(is, 2, largest);
    }
    if format == "byte" {
        return Declared::new(Is::Bytes, 2, max.unwrap_or(REQUEST - 2));
    }
    let listed = map.get("enum").and_then(Value::as_array).filter(|e| !e.is_empty());
    let listed = listed.map(|all| all.iter().filter_map(Value::as_str).map(|t| t.len() as u64).max().unwrap_or(0));
    // Bounds count characters, of four bytes at most.
    let largest = max.map(|max| max.saturating_mul(4)).or(listed).unwrap_or(REQUEST - 2);
    Declared::new(Is::Text, 2, largest)
}

fn object(map: &Map<String, Value>, whole: bool) -> Declared {
    let mut declared = Declared::new(Is::Object, 2, 0);
    let required: Vec<&str> =
        map.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let mut properties = map.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
    if whole {
        for (name, schema) in [
            ("kind", json!({"type": "string"})),
            ("apiVersion", json!({"type": "string"})),
            (
                "metadata",
                json!({"type": "object", "properties": {"name": {"type": "string"}, "generateName": {"type": "string"}}}),
            ),
        ] {
            properties.insert(name.into(), schema);
        }
    }
    for (name, schema) in &properties {
        let Some(field) = Declared::of(schema, false) else { continue };
        if required.contains(&name.as_str()) && schema.get("default").is_none() {
            let own = (name.len() as u64).saturating_add(field.smallest).saturating_add(4);
            declared.smallest = declared.smallest.saturating_add(own);
        }
        if let Some(name) = escaped(name) {
            declared.fields.insert(name, field);
        }
    }
    declared
}

/// Words of the language that a field is not called by.
const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// What rules call a field; nothing for names that rules cannot call.
pub fn escaped(name: &str) -> Option<String> {
    let first = name.bytes().next()?;
    if first.is_ascii_digit() {
        return None;
    }
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'/')) {
        return None;
    }
    let name = name.replace("__", "__underscores__");
    Some(name.replace('.', "__dot__").replace('-', "__dash__").replace('/', "__slash__"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_that_fit_into_a_request() {
        let of = |schema: Value| Declared::of(&schema, false).map(|d| (d.is, d.smallest, d.largest));
        assert_eq!(of(json!({"type": "string", "maxLength": 10})), Some((Is::Text, 2, 40)));
        assert_eq!(of(json!({"type": "string", "enum": ["a", "abc"]})), Some((Is::Text, 2, 3)));
        assert_eq!(of(json!({"type": "string", "format": "duration"})), Some((Is::Duration, 2, 32)));
        assert_eq!(of(json!({"type": "array", "items": {"type": "string"}})), Some((Is::List, 2, 1_048_575)));
        assert_eq!(
            of(json!({"type": "object", "required": ["ab"], "properties": {"ab": {"type": "integer"}}})),
            Some((Is::Object, 9, 0))
        );
        assert_eq!(of(json!({"x-kubernetes-preserve-unknown-fields": true})), None);
        for (name, called) in
            [("a_b", "a_b"), ("a-b", "a__dash__b"), ("namespace", "__namespace__"), ("a__b", "a__underscores__b")]
        {
            assert_eq!(escaped(name).as_deref(), Some(called));
        }
    }
}
