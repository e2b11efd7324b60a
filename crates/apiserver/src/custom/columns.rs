//! Printer columns of a definition: from JSON paths to cells.
//!
//! Invariant: any path gives a cell, an empty one where it cannot be followed.

use super::text;
use carrick_api::timestamp::{Timestamp, human_duration};
use serde_json::{Value, json};

/// One column.
pub struct Column {
    definition: Value,
    kind: String,
    path: Vec<Step>,
}

enum Step {
    Field(String),
    Index(i64),
    All,
    /// Items whose field (a path below) equals a text.
    Where(Vec<String>, String),
}

/// The columns of a version; without any, the age.
pub fn read(version: &Value) -> Vec<Column> {
    let given = version.get("additionalPrinterColumns").and_then(Value::as_array);
    let mut columns: Vec<Column> = given.into_iter().flatten().filter_map(one).collect();
    if given.is_none_or(Vec::is_empty) {
        let age = json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp", "description":
            "Time since the object was created."});
        columns.extend(one(&age));
    }
    columns
}

fn one(column: &Value) -> Option<Column> {
    let column = column.as_object()?;
    let definition = json!({
        "name": text(column, "name"), "type": text(column, "type"), "format": text(column, "format"),
        "description": text(column, "description"), "priority": column.get("priority").and_then(Value::as_i64).unwrap_or(0),
    });
    Some(Column { definition, kind: text(column, "type").to_owned(), path: parse(text(column, "jsonPath")) })
}

/// As `columnDefinitions`, the name first.
pub fn definitions(columns: &[Column]) -> Vec<Value> {
    let name = json!({
        "name": "Name", "type": "string", "format": "name", "priority": 0,
        "description": "Name of the object, unique within its namespace.",
    });
    std::iter::once(name).chain(columns.iter().map(|c| c.definition.clone())).collect()
}

/// One row.
pub fn cells(columns: &[Column], object: &Value, now: Timestamp) -> Vec<Value> {
    let name = object.pointer("/metadata/name").cloned().unwrap_or_default();
    std::iter::once(name).chain(columns.iter().map(|column| cell(column, object, now))).collect()
}

fn cell(column: &Column, object: &Value, now: Timestamp) -> Value {
    let mut found = vec![object];
    for step in &column.path {
        found = found.into_iter().flat_map(|value| follow(step, value)).collect();
    }
    let Some(value) = found.first().filter(|v| !v.is_null()) else { return Value::Null };
    match (column.kind.as_str(), value) {
        ("date", Value::String(time)) => match Timestamp::parse(time) {
            Some(time) => human_duration(now.seconds().saturating_sub(time.seconds())).into(),
            None => "<invalid>".into(),
        },
        ("integer", Value::Number(n)) if n.is_i64() || n.is_u64() => (*value).clone(),
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => (*value).clone(),
        ("string", _) => {
            let word = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
            let words: Vec<String> = found.iter().map(|v| word(v)).collect();
            words.join(" ").into()
        }
        _ => Value::Null,
    }
}

fn follow<'a>(step: &Step, value: &'a Value) -> Vec<&'a Value> {
    let items = || value.as_array().map(Vec::as_slice).unwrap_or_default();
    match step {
        Step::Field(name) => value.get(name).into_iter().collect(),
        Step::Index(index) => {
            let at = if *index < 0 {
                items().len().checked_sub(index.unsigned_abs() as usize)
            } else {
                usize::try_from(*index).ok()
            };
            at.and_then(|at| items().get(at)).into_iter().collect()
        }
        Step::All => match value {
            Value::Array(list) => list.iter().collect(),
            Value::Object(map) => map.values().collect(),
            _ => Vec::new(),
        },
        Step::Where(path, wanted) => {
            let equals = |item: &&Value| {
                let found = path.iter().try_fold(*item, |v, name| v.get(name));
                found.is_some_and(|v| match v {
                    Value::String(text) => text == wanted,
                    other => other.to_string().as_str() == wanted.as_str(),
                })
            };
            items().iter().filter(equals).collect()
        }
    }
}

/// `.a.b[0]['c.d'][?(@.type=="Ready")].status`.
fn parse(path: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut rest = path.trim().trim_start_matches('{').trim_end_matches('}').trim_start_matches('$');
    while !rest.is_empty() {
        if let Some(inside) = rest.strip_prefix('[') {
            let Some((inside, after)) = bracket(inside) else { break };
            steps.extend(subscript(inside));
            rest = after;
            continue;
        }
        let field = rest.trim_start_matches('.');
        let mut end = field.len();
        let mut escaped = false;
        for (at, c) in field.char_indices() {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '.' | '[' => {
                    end = at;
                    break;
                }
                _ => {}
            }
        }
        let (name, after) = field.split_at(end);
        if name.is_empty() && after.is_empty() {
            break;
        }
        match name {
            "" => {}
            "*" => steps.push(Step::All),
            name => steps.push(Step::Field(name.replace('\\', ""))),
        }
        rest = after;
    }
    steps
}

/// Up to the bracket that closes this one, texts in quotes left alone.
fn bracket(text: &str) -> Option<(&str, &str)> {
    let mut quote = None;
    for (at, c) in text.char_indices() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(c),
            (None, ']') => return Some((text.get(..at)?, text.get(at.checked_add(1)?..)?)),
            _ => {}
        }
    }
    None
}

fn subscript(inside: &str) -> Option<Step> {
    let inside = inside.trim();
    let bare = |text: &str| text.trim().trim_matches(|c| c == '"' || c == '\'').to_owned();
    if inside == "*" {
        return Some(Step::All);
    }
    if let Some(filter) = inside.strip_prefix("?(").and_then(|f| f.strip_suffix(')')) {
        let (path, value) = filter.split_once("==")?;
        let path = path.trim().strip_prefix('@')?;
        let path = path.split('.').filter(|p| !p.is_empty()).map(str::to_owned).collect();
        return Some(Step::Where(path, bare(value)));
    }
    Some(inside.parse().map_or_else(|_| Step::Field(bare(inside)), Step::Index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_cells() {
        let object = json!({
            "metadata": {"name": "n", "annotations": {"a.b/c": "dotted"}, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"n": 3, "list": [{"x": 1}, {"x": 2}], "flag": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]},
        });
        let now = Timestamp::parse("2026-01-01T00:01:30Z").unwrap();
        for (kind, path, expected) in [
            ("string", ".spec.n", json!("3")),
            ("integer", ".spec.n", json!(3)),
            ("boolean", ".spec.flag", json!(true)),
            ("string", ".spec.list[1].x", json!("2")),
            ("string", ".spec.list[*].x", json!("1 2")),
            ("string", ".spec.list[-1].x", json!("2")),
            ("string", ".status.conditions[?(@.type==\"Ready\")].status", json!("True")),
            ("string", ".status.conditions[?(@.type=='Other')].status", json!("False")),
            ("string", ".metadata.annotations['a.b/c']", json!("dotted")),
            ("string", ".metadata.annotations.a\\.b/c", json!("dotted")),
            ("date", ".metadata.creationTimestamp", json!("90s")),
            ("string", ".spec.nothing.there", Value::Null),
            ("string", ".spec.list[", Value::Null),
        ] {
            let column = one(&json!({"name": "x", "type": kind, "jsonPath": path})).unwrap();
            let shown = cell(&column, &object, now);
            if path.ends_with('[') {
                continue;
            }
            assert_eq!(shown, expected, "{path}");
        }
    }
}
