//! The functions of Helm's templates that charts and injection templates use.
//!
//! Invariant: each gives what Helm's gives for the values that are passed; a name that is not here is an error.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::yaml;

/// A value as an action prints it.
pub fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Whether a condition holds.
pub fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}

/// Lays `over` on `base`: maps merge, everything else is replaced, and null takes a value away, as in Helm.
pub fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                if value.is_null() {
                    base.remove(key);
                } else {
                    merge(base.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
        }
        (base, over) => *base = over.clone(),
    }
}

/// The names of all functions here, `include` and `template` among them.
pub const KNOWN: &[&str] = &[
    "and",
    "append",
    "contains",
    "default",
    "dict",
    "empty",
    "eq",
    "ge",
    "gt",
    "hasKey",
    "hasPrefix",
    "hasSuffix",
    "include",
    "indent",
    "index",
    "join",
    "le",
    "len",
    "list",
    "lower",
    "lt",
    "mergeOverwrite",
    "ne",
    "nindent",
    "not",
    "or",
    "print",
    "printf",
    "quote",
    "replace",
    "template",
    "ternary",
    "toJson",
    "toString",
    "toYaml",
    "trim",
    "trimAll",
    "trimPrefix",
    "trimSuffix",
    "trunc",
    "upper",
];

/// Calls a function.
pub(crate) fn call(name: &str, arguments: Vec<Value>) -> Result<Value, String> {
    let wrong = || format!("{name} does not take {} arguments like these", arguments.len());
    Ok(match (name, arguments.as_slice()) {
        ("and", [.., last]) => arguments.iter().find(|v| !truth(v)).unwrap_or(last).clone(),
        ("or", [.., last]) => arguments.iter().find(|v| truth(v)).unwrap_or(last).clone(),
        ("not", [value]) => (!truth(value)).into(),
        ("eq", [first, rest @ ..]) if !rest.is_empty() => rest.contains(first).into(),
        ("ne", [first, second]) => (first != second).into(),
        ("empty", [value]) => (!truth(value)).into(),
        ("default", [_, value]) if truth(value) => value.clone(),
        ("default", [other, ..]) => other.clone(),
        ("quote", [value]) => json!(text(value)).to_string().into(),
        ("printf", [Value::String(format), values @ ..]) => printf(format, values).into(),
        ("toYaml", [value]) => yaml::block(value).into(),
        ("toJson", [value]) => to_json(value).into(),
        ("indent", [Value::Number(by), value]) => indent(by.as_u64(), &text(value)).into(),
        ("nindent", [Value::Number(by), value]) => format!("\n{}", indent(by.as_u64(), &text(value))).into(),
        ("trimPrefix", [Value::String(prefix), value]) => {
            let value = text(value);
            value.strip_prefix(prefix.as_str()).unwrap_or(&value).into()
        }
        ("index", [value, keys @ ..]) => keys.iter().fold(value.clone(), |value, key| {
            let found = match key {
                Value::String(key) => value.get(key),
                Value::Number(at) => at.as_u64().and_then(|at| value.get(usize::try_from(at).ok()?)),
                _ => None,
            };
            found.cloned().unwrap_or(Value::Null)
        }),
        ("list", _) => arguments.clone().into(),
        ("dict", pairs) if pairs.len().is_multiple_of(2) => {
            let pairs = pairs.chunks_exact(2).filter_map(|pair| match pair {
                [key, value] => Some((text(key), value.clone())),
                _ => None,
            });
            Value::Object(pairs.collect())
        }
        ("mergeOverwrite", [first, rest @ ..]) => {
            let mut merged = first.clone();
            rest.iter().for_each(|over| merge(&mut merged, over));
            merged
        }
        ("len", [Value::Array(list)]) => list.len().into(),
        ("len", [Value::Object(map)]) => map.len().into(),
        ("len", [Value::String(text)]) => text.len().into(),
        ("len", [Value::Null]) => 0.into(),
        ("lt" | "le" | "gt" | "ge", [Value::Number(a), Value::Number(b)]) => {
            let order = a.as_f64().partial_cmp(&b.as_f64());
            match name {
                "lt" => order.is_some_and(std::cmp::Ordering::is_lt),
                "le" => order.is_some_and(std::cmp::Ordering::is_le),
                "gt" => order.is_some_and(std::cmp::Ordering::is_gt),
                _ => order.is_some_and(std::cmp::Ordering::is_ge),
            }
            .into()
        }
        ("append", [list, value]) if list.is_array() || list.is_null() => {
            let mut list = list.as_array().cloned().unwrap_or_default();
            list.push(value.clone());
            list.into()
        }
        ("join", [Value::String(by), Value::Array(list)]) => list.iter().map(text).collect::<Vec<_>>().join(by).into(),
        ("hasKey", [Value::Object(map), Value::String(key)]) => map.contains_key(key).into(),
        ("ternary", [yes, no, condition]) => if truth(condition) { yes } else { no }.clone(),
        ("toString", [value]) => text(value).into(),
        ("print", values) => values.iter().map(text).collect::<String>().into(),
        ("lower", [value]) => text(value).to_lowercase().into(),
        ("upper", [value]) => text(value).to_uppercase().into(),
        ("trim", [value]) => text(value).trim().into(),
        ("trimAll", [Value::String(signs), value]) => text(value).trim_matches(|c| signs.contains(c)).into(),
        ("trimSuffix", [Value::String(suffix), value]) => {
            let value = text(value);
            value.strip_suffix(suffix.as_str()).unwrap_or(&value).into()
        }
        ("trunc", [Value::Number(length), value]) => {
            let length = length.as_u64().and_then(|length| usize::try_from(length).ok()).ok_or_else(wrong)?;
            text(value).chars().take(length).collect::<String>().into()
        }
        ("contains", [Value::String(part), value]) => text(value).contains(part.as_str()).into(),
        ("hasPrefix", [Value::String(part), value]) => text(value).starts_with(part.as_str()).into(),
        ("hasSuffix", [Value::String(part), value]) => text(value).ends_with(part.as_str()).into(),
        ("replace", [Value::String(from), Value::String(to), value]) => text(value).replace(from.as_str(), to).into(),
        (known, _) if KNOWN.contains(&known) => return Err(wrong()),
        _ => return Err(format!("there is no function {name:?} here")),
    })
}

fn printf(format: &str, values: &[Value]) -> String {
    let mut values = values.iter();
    let mut out = String::new();
    let mut parts = format.split('%');
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let mut rest = part.chars();
        match rest.next() {
            Some('s' | 'd' | 'v' | 't') => out.push_str(&values.next().map(text).unwrap_or_default()),
            Some('q') => out.push_str(&json!(values.next().map(text).unwrap_or_default()).to_string()),
            other => out.extend(std::iter::once('%').chain(other)),
        }
        out.push_str(rest.as_str());
    }
    out
}

fn indent(by: Option<u64>, text: &str) -> String {
    let blanks = " ".repeat(by.and_then(|by| usize::try_from(by).ok()).unwrap_or_default().min(64));
    text.split('\n').map(|line| format!("{blanks}{line}")).collect::<Vec<_>>().join("\n")
}

/// Go's JSON: keys sorted, and signs of HTML escaped.
fn to_json(value: &Value) -> String {
    sorted(value).to_string().replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e")
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<&String, Value> = map.iter().map(|(key, value)| (key, self::sorted(value))).collect();
            Value::Object(sorted.into_iter().map(|(key, value)| (key.clone(), value)).collect::<Map<_, _>>())
        }
        Value::Array(list) => list.iter().map(sorted).collect(),
        other => other.clone(),
    }
}
