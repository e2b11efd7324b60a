//! The difference between two JSON values as a JSON patch (RFC 6902).
//!
//! Invariant: applied to the first value it gives the second, and two equal values give no operation. Lists are compared place by
//! place; what a list has more or less is added or removed at its end.

use serde_json::{Value, json};

/// The operations that make `after` of `before`.
pub fn diff(before: &Value, after: &Value) -> Vec<Value> {
    let mut operations = Vec::new();
    walk("", before, after, &mut operations);
    operations
}

fn walk(path: &str, before: &Value, after: &Value, operations: &mut Vec<Value>) {
    match (before, after) {
        (before, after) if before == after => {}
        (Value::Object(before), Value::Object(after)) => {
            for key in before.keys().filter(|key| !after.contains_key(*key)) {
                operations.push(json!({"op": "remove", "path": format!("{path}/{}", escaped(key))}));
            }
            for (key, value) in after {
                let place = format!("{path}/{}", escaped(key));
                match before.get(key) {
                    Some(was) => walk(&place, was, value, operations),
                    None => operations.push(json!({"op": "add", "path": place, "value": value})),
                }
            }
        }
        (Value::Array(before), Value::Array(after)) => {
            for (at, (was, is)) in before.iter().zip(after).enumerate() {
                walk(&format!("{path}/{at}"), was, is, operations);
            }
            for at in (after.len()..before.len()).rev() {
                operations.push(json!({"op": "remove", "path": format!("{path}/{at}")}));
            }
            for (at, value) in after.iter().enumerate().skip(before.len()) {
                operations.push(json!({"op": "add", "path": format!("{path}/{at}"), "value": value}));
            }
        }
        (_, after) => operations.push(json!({"op": "replace", "path": path, "value": after})),
    }
}

/// RFC 6901 §3.
fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations() {
        assert_eq!(diff(&json!({"a": [1]}), &json!({"a": [1]})), Vec::<Value>::new());
        assert_eq!(
            diff(&json!({"a/b": 1, "l": [1, 2, 3], "x": 1}), &json!({"a/b": 2, "l": [1, 4], "y~": {}})),
            [
                json!({"op": "remove", "path": "/x"}),
                json!({"op": "replace", "path": "/a~1b", "value": 2}),
                json!({"op": "replace", "path": "/l/1", "value": 4}),
                json!({"op": "remove", "path": "/l/2"}),
                json!({"op": "add", "path": "/y~0", "value": {}}),
            ]
        );
        assert_eq!(diff(&json!([1]), &json!([1, 2, 3])).len(), 2);
    }
}
