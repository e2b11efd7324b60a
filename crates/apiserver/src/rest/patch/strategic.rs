//! Strategic merge patch: maps merge, lists merge by the key that the schema gives them.
//!
//! Invariant: directives (`$patch`, `$retainKeys`, `$deleteFromPrimitiveList/…`, `$setElementOrder/…`) never end up in
//! the result. Lists without a merge key are replaced.

use crate::error::{ApiError, ApiResult};
use carrick_api::schema::{Cursor, ListMerge};
use serde_json::{Map, Value};

const DIRECTIVE: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Merges `patch` into `target`; `at` is the place in the schema.
///
/// # Errors
/// `BadRequest` for directives that make no sense.
pub fn strategic(target: &mut Value, patch: &Value, at: Option<Cursor<'_>>) -> ApiResult<()> {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return Ok(());
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(map) = target.as_object_mut() else { return Ok(()) };
    match patch.get(DIRECTIVE).and_then(Value::as_str) {
        None | Some("merge") => {}
        Some("replace") => {
            map.clear();
        }
        Some("delete") => {
            map.clear();
            return Ok(());
        }
        Some(other) => return Err(wrong(&format!("unknown $patch type {other:?}"))),
    }
    if let Some(keep) = patch.get(RETAIN) {
        let keep = keep.as_array().ok_or_else(|| wrong("$retainKeys is not a list"))?;
        map.retain(|key, _| keep.iter().any(|k| k == key));
    }
    for (key, value) in patch {
        if key == DIRECTIVE || key == RETAIN || key.starts_with(ORDER) {
            continue;
        }
        if let Some(field) = key.strip_prefix(DELETE_FROM) {
            let gone = value.as_array().ok_or_else(|| wrong("$deleteFromPrimitiveList is not a list"))?;
            if let Some(list) = map.get_mut(field).and_then(Value::as_array_mut) {
                list.retain(|v| !gone.contains(v));
            }
            continue;
        }
        let place = at.and_then(|at| at.field(key));
        match value {
            Value::Null => {
                map.shift_remove(key);
            }
            Value::Object(_) if is_delete(value) => {
                map.shift_remove(key);
            }
            Value::Object(_) => strategic(map.entry(key.clone()).or_insert(Value::Null), value, place)?,
            Value::Array(items) => {
                let target = map.entry(key.clone()).or_insert_with(|| Value::Array(Vec::new()));
                if !target.is_array() {
                    *target = Value::Array(Vec::new());
                }
                if let Some(list) = target.as_array_mut() {
                    merge_list(list, items, place)?;
                }
            }
            _ => {
                map.insert(key.clone(), value.clone());
            }
        }
    }
    for (key, order) in patch {
        let Some(field) = key.strip_prefix(ORDER) else { continue };
        let order = order.as_array().ok_or_else(|| wrong("$setElementOrder is not a list"))?;
        let merge_key = at.and_then(|at| at.field(field)).and_then(Cursor::patch_merge_key);
        if let Some(list) = map.get_mut(field).and_then(Value::as_array_mut) {
            reorder(list, order, merge_key);
        }
    }
    Ok(())
}

fn wrong(why: &str) -> ApiError {
    ApiError::BadRequest(format!("unable to apply the strategic merge patch: {why}"))
}

fn directive(item: &Value) -> Option<&str> {
    item.get(DIRECTIVE).and_then(Value::as_str)
}

fn is_delete(item: &Value) -> bool {
    directive(item) == Some("delete")
}

/// A value as it would be merged into nothing.
fn fresh(item: &Value, at: Option<Cursor<'_>>) -> ApiResult<Value> {
    if !item.is_object() {
        return Ok(item.clone());
    }
    let mut new = Value::Object(Map::new());
    strategic(&mut new, item, at)?;
    Ok(new)
}

fn merge_list(list: &mut Vec<Value>, patch: &[Value], at: Option<Cursor<'_>>) -> ApiResult<()> {
    let items = at.and_then(Cursor::items);
    let plain = || patch.iter().filter(|v| directive(v).is_none() || v.as_object().is_some_and(|m| m.len() > 1));
    if patch.iter().any(|v| directive(v) == Some("replace")) {
        *list = plain().map(|v| fresh(v, items)).collect::<ApiResult<_>>()?;
        return Ok(());
    }
    match at.and_then(Cursor::list_merge) {
        Some(ListMerge::Set) => {
            for item in patch {
                if !list.contains(item) {
                    list.push(item.clone());
                }
            }
        }
        Some(ListMerge::Map(keys)) if !keys.is_empty() => {
            let key: &str = keys.first().map_or("", |k| k);
            let before: Vec<Value> = list.iter().filter_map(|v| v.get(key).cloned()).collect();
            for item in patch {
                let id = item.get(key).ok_or_else(|| wrong(&format!("an item has no {key:?}")))?;
                if is_delete(item) {
                    list.retain(|v| v.get(key) != Some(id));
                } else if let Some(found) = list.iter_mut().find(|v| v.get(key) == Some(id)) {
                    strategic(found, item, items)?;
                } else {
                    list.push(fresh(item, items)?);
                }
            }
            place_patched(list, patch, &before, key);
        }
        _ => *list = patch.iter().filter(|v| !is_delete(v)).map(|v| fresh(v, items)).collect::<ApiResult<_>>()?,
    }
    Ok(())
}

/// Without a wish for an order, what was patched goes in the patch's order among what was not, new items before those
/// that they meet; as Kubernetes does it.
fn place_patched(list: &mut Vec<Value>, patch: &[Value], before: &[Value], key: &str) {
    let in_patch = |item: &Value| {
        let id = item.get(key);
        patch.iter().position(|p| id.is_some() && p.get(key) == id)
    };
    let was_at = |item: &Value| before.iter().position(|id| Some(id) == item.get(key));
    let (mut patched, others): (Vec<Value>, Vec<Value>) =
        std::mem::take(list).into_iter().partition(|item| in_patch(item).is_some());
    patched.sort_by_key(|item| in_patch(item));
    let (mut patched, mut others) = (patched.into_iter().peekable(), others.into_iter().peekable());
    while let (Some(left), Some(right)) = (patched.peek(), others.peek()) {
        let left_first = was_at(left).is_none_or(|l| was_at(right).is_none_or(|r| l < r));
        list.extend(if left_first { patched.next() } else { others.next() });
    }
    list.extend(patched);
    list.extend(others);
}

/// Items named in `order` come in that order; the others keep their place behind them.
fn reorder(list: &mut [Value], order: &[Value], merge_key: Option<&str>) {
    let rank = |item: &Value| {
        let position = order.iter().position(|wanted| match merge_key {
            Some(key) => wanted.get(key).is_some() && wanted.get(key) == item.get(key),
            None => wanted == item,
        });
        position.unwrap_or(usize::MAX)
    };
    list.sort_by_key(rank);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(old: Value, patch: Value) -> ApiResult<Value> {
        let kind = carrick_api::kinds::registry().find("", "pods").unwrap();
        let mut value = old;
        strategic(&mut value, &patch, Some(kind.schema("v1").cursor()))?;
        Ok(value)
    }

    #[test]
    fn lists_merge_by_key() {
        let old =
            json!({"spec": {"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "1"}]}});
        let patch = json!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "a"}], "containers": [
            {"name": "a", "image": "2", "args": ["y", "z"]}, {"name": "c"}, {"name": "b", "$patch": "delete"}]}});
        let new = json!({"spec": {"containers": [{"name": "c"}, {"name": "a", "image": "2", "args": ["y", "z"]}]}});
        assert_eq!(pod(old, patch).unwrap(), new);
    }

    #[test]
    fn directives() {
        let old = json!({"metadata": {"finalizers": ["a", "b"], "labels": {"x": "1", "y": "2"}}, "spec": {"nodeSelector": {"a": "b"}}});
        let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"],
            "labels": {"$patch": "replace", "z": "3"}}, "spec": {"nodeSelector": {"$patch": "delete"}}});
        let new = pod(old, patch).unwrap();
        assert_eq!(new["metadata"], json!({"finalizers": ["b", "c"], "labels": {"z": "3"}}));
        assert!(new.to_string().find('$').is_none());
        assert!(pod(json!({}), json!({"spec": {"$patch": "explode"}})).is_err());
        assert!(pod(json!({}), json!({"spec": {"containers": [{"image": "x"}]}})).is_err());
    }
}
