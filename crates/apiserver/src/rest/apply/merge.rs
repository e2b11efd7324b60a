//! Merging an applied configuration into an object, and taking fields out of one.
//!
//! Invariant: maps merge unless they are one whole, lists merge by the keys of the schema, everything else is replaced; what the configuration
//! does not name stays.

use super::fields::{FieldSet, item_key, item_value};
use carrick_api::schema::{Cursor, ListMerge};
use serde_json::{Map, Value};

/// Merges `config` into `target`.
pub fn merge(target: &mut Value, config: &Value, at: Option<Cursor<'_>>) {
    match (config, at.and_then(Cursor::list_merge)) {
        (Value::Object(config), _) if !at.is_some_and(Cursor::is_whole) => {
            if !target.is_object() {
                *target = Value::Object(Map::new());
            }
            let Some(map) = target.as_object_mut() else { return };
            for (key, value) in config.iter().filter(|(_, v)| !v.is_null()) {
                merge(map.entry(key.clone()).or_insert(Value::Null), value, at.and_then(|at| at.field(key)));
            }
        }
        (Value::Array(config), Some(ListMerge::Map(keys))) => {
            if !target.is_array() {
                *target = Value::Array(Vec::new());
            }
            let Some(list) = target.as_array_mut() else { return };
            for item in config {
                let identity = item_key(item, keys);
                let found = list.iter_mut().find(|have| identity.is_some() && item_key(have, keys) == identity);
                match found {
                    Some(found) => merge(found, item, at.and_then(Cursor::items)),
                    None => list.push(item.clone()),
                }
            }
        }
        (Value::Array(config), Some(ListMerge::Set)) => {
            if !target.is_array() {
                *target = Value::Array(Vec::new());
            }
            let Some(list) = target.as_array_mut() else { return };
            for item in config {
                if !list.contains(item) {
                    list.push(item.clone());
                }
            }
        }
        _ => *target = config.clone(),
    }
}

/// Removes the members of `gone`; maps and lists that become empty by it go too.
pub fn remove(target: &mut Value, gone: &FieldSet, at: Option<Cursor<'_>>) {
    for (step, below) in gone.children().filter(|(_, b)| !b.is_empty()) {
        let Some((kind, name)) = step.split_once(':') else { continue };
        match (kind, &mut *target) {
            ("f", Value::Object(map)) => {
                let whole = below.is_member() && below.children().next().is_none();
                if let Some(child) = map.get_mut(name)
                    && !whole
                {
                    remove(child, below, at.and_then(|at| at.field(name)));
                }
                if whole || map.get(name).is_some_and(is_empty) {
                    map.shift_remove(name);
                }
            }
            ("k", Value::Array(list)) => {
                let Some(ListMerge::Map(keys)) = at.and_then(Cursor::list_merge) else { continue };
                if below.is_member() {
                    list.retain(|item| item_key(item, keys).as_deref() != Some(step));
                } else if let Some(item) = list.iter_mut().find(|item| item_key(item, keys).as_deref() == Some(step)) {
                    remove(item, below, at.and_then(Cursor::items));
                }
            }
            ("v", Value::Array(list)) => list.retain(|item| item_value(item) != step),
            _ => {}
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}
