//! Values: setting one by its path as `--set` does.
//!
//! Invariant: what is on the way to a path is made, and what was there gives way.

use serde_json::{Map, Value};

use crate::ChartError;

/// Sets `a.b[0].c=value`; a dot that is part of a name is written `\.`.
///
/// # Errors
/// When there is no `=`, or the path is not one.
pub fn set(values: &mut Value, assignment: &str) -> Result<(), ChartError> {
    let wrong = || ChartError::Values(format!("--set {assignment:?}: expected PATH=VALUE"));
    let (path, text) = assignment.split_once('=').ok_or_else(wrong)?;
    let value = match text {
        "null" => Value::Null,
        "true" => true.into(),
        "false" => false.into(),
        "{}" => Value::Object(Map::new()),
        number if number.parse::<i64>().is_ok_and(|n| n.to_string() == number) => {
            number.parse::<i64>().unwrap_or_default().into()
        }
        list if list.starts_with('{') && list.ends_with('}') => {
            list.trim_matches(['{', '}']).split(',').map(|item| Value::from(item.trim())).collect()
        }
        text => text.into(),
    };
    let steps = steps(path).ok_or_else(wrong)?;
    let mut at = values;
    for step in &steps {
        at = match step {
            Step::Name(name) => {
                if !at.is_object() {
                    *at = Value::Object(Map::new());
                }
                at.as_object_mut().ok_or_else(wrong)?.entry(name.clone()).or_insert(Value::Null)
            }
            Step::Index(index) => {
                if !at.is_array() {
                    *at = Value::Array(Vec::new());
                }
                let list = at.as_array_mut().ok_or_else(wrong)?;
                if *index > 64 {
                    return Err(wrong());
                }
                while list.len() <= *index {
                    list.push(Value::Null);
                }
                list.get_mut(*index).ok_or_else(wrong)?
            }
        };
    }
    *at = value;
    Ok(())
}

enum Step {
    Name(String),
    Index(usize),
}

fn steps(path: &str) -> Option<Vec<Step>> {
    let mut steps = Vec::new();
    let mut name = String::new();
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => name.push(chars.next()?),
            '.' if !name.is_empty() => steps.push(Step::Name(std::mem::take(&mut name))),
            // After an index.
            '.' if !steps.is_empty() => {}
            '[' => {
                if !name.is_empty() {
                    steps.push(Step::Name(std::mem::take(&mut name)));
                }
                let digits: String = chars.by_ref().take_while(|c| *c != ']').collect();
                steps.push(Step::Index(digits.parse().ok()?));
            }
            '.' => return None,
            c => name.push(c),
        }
    }
    if !name.is_empty() {
        steps.push(Step::Name(name));
    }
    (!steps.is_empty()).then_some(steps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge;
    use serde_json::json;

    #[test]
    fn paths_name_values() {
        let mut values = json!({"a": {"b": 1, "c": 2}});
        for assignment in ["a.b=3", "d[1].e=x", r"labels.a\.b/c=true", "a.c=null", "hosts={a, b}"] {
            set(&mut values, assignment).unwrap();
        }
        assert_eq!(
            values,
            json!({"a": {"b": 3, "c": null}, "d": [null, {"e": "x"}], "labels": {"a.b/c": true}, "hosts": ["a", "b"]})
        );
        for wrong in ["a", "=1", ".a=1", "a[x]=1", "a[99999999]=1"] {
            assert!(set(&mut values, wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn null_takes_away() {
        let mut base = json!({"a": {"b": 1, "c": [1]}});
        merge(&mut base, &json!({"a": {"b": null, "c": [2], "d": {"e": 1}}}));
        assert_eq!(base, json!({"a": {"c": [2], "d": {"e": 1}}}));
    }
}
