//! Values as YAML in blocks, as Helm's `toYaml` writes them.
//!
//! Invariant: what is written reads back as the same value; texts that could be read as anything else are quoted.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::Value;

/// Blocks without a final newline; keys sorted.
pub(crate) fn block(value: &Value) -> String {
    let mut out = String::new();
    write(value, 0, &mut out);
    out.trim_end_matches('\n').to_owned()
}

fn write(value: &Value, depth: usize, out: &mut String) {
    let blanks = "  ".repeat(depth);
    match value {
        Value::Object(map) if !map.is_empty() => {
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            for (key, value) in sorted {
                let _ = write!(out, "{blanks}{}:", scalar(key));
                // Lists stand below their key without an indent of their own.
                let inner = if value.is_array() { depth } else { depth.saturating_add(1) };
                below(value, inner, out);
            }
        }
        Value::Array(list) if !list.is_empty() => {
            for item in list {
                let mut inner = String::new();
                write(item, depth.saturating_add(1), &mut inner);
                let _ = writeln!(out, "{blanks}- {}", inner.trim_start_matches(' ').trim_end_matches('\n'));
            }
        }
        other => {
            let _ = writeln!(out, "{blanks}{}", leaf(other));
        }
    }
}

fn below(value: &Value, depth: usize, out: &mut String) {
    let nested = match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => false,
    };
    if nested {
        out.push('\n');
        write(value, depth, out);
    } else {
        let _ = writeln!(out, " {}", leaf(value));
    }
}

fn leaf(value: &Value) -> String {
    match value {
        Value::String(text) => scalar(text),
        other => other.to_string(),
    }
}

fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '~' | '+' | '(' | ')');
    let looks_else = text.parse::<f64>().is_ok()
        || matches!(
            text.to_ascii_lowercase().as_str(),
            "" | "~" | "null" | "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n" | ".inf" | ".nan"
        )
        || text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '.' | '~' | '+' | '='));
    if text.chars().all(plain) && !looks_else { text.to_owned() } else { Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_written_reads_back() {
        let value = json!({
            "a": {"b": [1, {"c": "x", "d": []}, [true, "true"]], "e": {}},
            "f": "a: b", "g": "1e3", "h": null, "i": ["1.5", "on", "- x", "#", "läuft\nweiter"], "": {"x": 1.5},
        });
        let read: Value = serde_saphyr::from_str(&block(&value)).unwrap();
        assert_eq!(read, value);
    }
}
