//! Sets of fields, as `fieldsV1` writes them.
//!
//! Invariant: a set is a tree whose nodes are fields (`f:name`), list items by key (`k:{…}`) or by value (`v:…`); a node
//! is a member itself when `member` is set. Paths into lists are by identity, never by index.

use carrick_api::schema::{Cursor, ListMerge, Type};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Deepest path that is followed.
const DEPTH: usize = 64;

/// One step into two values: its name, what there is of each, and the place in the schema.
type Step<'a> = (String, Option<&'a Value>, Option<&'a Value>, Option<Cursor<'a>>);

/// A set of fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSet {
    member: bool,
    children: BTreeMap<String, FieldSet>,
}

/// `k:{…}` of a list item; `None` when it lacks a key.
pub fn item_key(item: &Value, keys: &[Arc<str>]) -> Option<String> {
    let mut identity = Map::new();
    let mut sorted: Vec<&Arc<str>> = keys.iter().collect();
    sorted.sort();
    for key in sorted {
        match item.get(&**key) {
            Some(value) => {
                identity.insert(key.to_string(), value.clone());
            }
            // The one key that has a default.
            None if &**key == "protocol" => {
                identity.insert(key.to_string(), json!("TCP"));
            }
            None => return None,
        }
    }
    Some(format!("k:{}", Value::Object(identity)))
}

/// `v:…` of a scalar in a set.
pub fn item_value(item: &Value) -> String {
    format!("v:{item}")
}

impl FieldSet {
    fn leaf() -> Self {
        Self { member: true, children: BTreeMap::new() }
    }

    /// Everything that `value` sets.
    pub fn of(value: &Value, at: Option<Cursor<'_>>) -> Self {
        if is_nothing(Some(value)) {
            return Self::default();
        }
        Self::collect(value, at, 0)
    }

    fn collect(value: &Value, at: Option<Cursor<'_>>, depth: usize) -> Self {
        if depth >= DEPTH {
            return Self::leaf();
        }
        if at.is_some_and(Cursor::is_whole) {
            return Self::leaf();
        }
        let merges = at.and_then(Cursor::list_merge);
        match (value, merges) {
            (Value::Object(map), _) if !map.is_empty() => {
                let mut set = Self::default();
                for (key, child) in map {
                    let place = at.and_then(|at| at.field(key));
                    let mut below = Self::collect(child, place, depth + 1);
                    // That a map has a key says something; that an object has a field of its own does not.
                    below.member |=
                        !matches!(at.map(Cursor::ty), Some(Type::Object(object)) if object.fields.contains_key(&**key));
                    set.children.insert(format!("f:{key}"), below);
                }
                set
            }
            (Value::Array(list), Some(ListMerge::Map(keys))) => {
                let items = at.and_then(Cursor::items);
                let mut set = Self::default();
                for item in list {
                    let Some(key) = item_key(item, keys) else { return Self::leaf() };
                    let mut child = Self::collect(item, items, depth + 1);
                    child.member = true;
                    set.children.insert(key, child);
                }
                set
            }
            (Value::Array(list), Some(ListMerge::Set)) => {
                let children = list.iter().map(|item| (item_value(item), Self::leaf())).collect();
                Self { member: false, children }
            }
            // Empty maps, atomic lists, scalars.
            _ => Self::leaf(),
        }
    }

    /// What `new` sets otherwise than `old`, and what of `old` it has no longer; maps and list items that come or go are
    /// members themselves.
    pub fn compare(old: &Value, new: &Value, at: Option<Cursor<'_>>) -> (Self, Self) {
        Self::differ(Some(old), Some(new), at, 0)
    }

    fn differ(old: Option<&Value>, new: Option<&Value>, at: Option<Cursor<'_>>, depth: usize) -> (Self, Self) {
        let (mut changed, mut removed) = (Self::default(), Self::default());
        if is_nothing(old) && is_nothing(new) || !parts(old, new, at, depth) {
            match (old, new) {
                (None, Some(_)) => changed.member = true,
                (Some(_), None) => removed.member = true,
                (Some(old), Some(new)) => changed.member = old != new,
                (None, None) => {}
            }
            return (changed, removed);
        }
        let steps: Vec<Step<'_>> = match at.and_then(Cursor::list_merge) {
            Some(ListMerge::Map(keys)) => {
                let name = |item: &Value| item_key(item, keys).unwrap_or_default();
                let items = at.and_then(Cursor::items);
                both(by_name(old, name), by_name(new, name)).map(|(key, old, new)| (key, old, new, items)).collect()
            }
            Some(_) => both(by_name(old, item_value), by_name(new, item_value))
                .map(|(key, old, new)| (key, old, new, None))
                .collect(),
            None => {
                let fields = both(fields_of(old), fields_of(new));
                fields.map(|(key, was, is)| (format!("f:{key}"), was, is, at.and_then(|at| at.field(key)))).collect()
            }
        };
        for (step, mut was, mut is, place) in steps {
            if place.is_some_and(Cursor::is_omitted) {
                (was, is) = (was.filter(|v| !is_nothing(Some(v))), is.filter(|v| !is_nothing(Some(v))));
            }
            // A field that every object has is in both of them.
            let always = place.is_some_and(Cursor::is_always) || (depth == 0 && step == "f:metadata");
            if always && old.is_some() && new.is_some() {
                let fields = |v: Option<&Value>| v.is_none_or(|v| v.is_object() || v.is_array());
                let empty = |v: Option<&Value>| is_nothing(v) || v == Some(&Value::String(String::new()));
                if empty(was) && empty(is) {
                    continue;
                }
                if fields(was) && fields(is) {
                    (was, is) = (was.or(Some(&Value::Null)), is.or(Some(&Value::Null)));
                }
            }
            if was.is_none() && is.is_none() {
                continue;
            }
            let (more, less) = Self::differ(was, is, place, depth + 1);
            if !more.is_empty() {
                changed.children.insert(step.clone(), more);
            }
            if !less.is_empty() {
                removed.children.insert(step, less);
            }
        }
        changed.member = old.is_none();
        removed.member = new.is_none();
        (changed, removed)
    }

    /// Reads `fieldsV1`; what is no set of fields counts as empty.
    pub fn parse(value: &Value) -> Self {
        Self::parse_at(value, 0)
    }

    fn parse_at(value: &Value, depth: usize) -> Self {
        let Some(map) = value.as_object() else { return Self::default() };
        if depth >= DEPTH {
            return Self::leaf();
        }
        let member = map.contains_key(".") || (map.is_empty() && depth > 0);
        let children = map.iter().filter(|(k, _)| *k != ".").map(|(k, v)| (k.clone(), Self::parse_at(v, depth + 1)));
        Self { member, children: children.collect() }
    }

    /// As `fieldsV1`.
    pub fn value(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.children.is_empty() {
            map.insert(".".into(), json!({}));
        }
        for (key, child) in &self.children {
            map.insert(key.clone(), child.value());
        }
        Value::Object(map)
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.values().all(Self::is_empty)
    }

    /// Nodes below, by step.
    pub fn children(&self) -> impl Iterator<Item = (&str, &Self)> {
        self.children.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// Whether the node itself is in the set.
    pub fn is_member(&self) -> bool {
        self.member
    }

    fn combine(&self, other: &Self, member: fn(bool, bool) -> bool, keep_own: bool, keep_other: bool) -> Self {
        let mut result = Self { member: member(self.member, other.member), children: BTreeMap::new() };
        let empty = Self::default();
        for (key, child) in &self.children {
            let combined = match other.children.get(key) {
                Some(theirs) => child.combine(theirs, member, keep_own, keep_other),
                None if keep_own => child.clone(),
                None => child.combine(&empty, member, keep_own, keep_other),
            };
            if !combined.is_empty() {
                result.children.insert(key.clone(), combined);
            }
        }
        if keep_other {
            for (key, child) in other.children.iter().filter(|(k, _)| !self.children.contains_key(*k)) {
                result.children.insert(key.clone(), child.clone());
            }
        }
        result
    }

    /// With every node above a member a member, too.
    pub fn with_parents(&self) -> Self {
        let children: BTreeMap<String, Self> =
            self.children.iter().map(|(k, v)| (k.clone(), v.with_parents())).collect();
        Self { member: self.member || !children.is_empty(), children }
    }

    /// In one or the other.
    pub fn union(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a || b, true, true)
    }

    /// In both.
    pub fn intersection(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a && b, false, false)
    }

    /// In this and not in `other`.
    pub fn minus(&self, other: &Self) -> Self {
        self.combine(other, |a, b| a && !b, true, false)
    }

    /// The members whose path satisfies `keep`.
    pub fn filter(&self, keep: &dyn Fn(&[&str]) -> bool) -> Self {
        let mut steps = Vec::new();
        self.filter_at(keep, &mut steps)
    }

    fn filter_at<'a>(&'a self, keep: &dyn Fn(&[&str]) -> bool, steps: &mut Vec<&'a str>) -> Self {
        // A list item is compared by its fields; that it exists is no value.
        let leaf = self.children.is_empty();
        let mut result = Self { member: self.member && leaf && keep(steps), children: BTreeMap::new() };
        for (key, child) in &self.children {
            steps.push(key);
            let kept = child.filter_at(keep, steps);
            steps.pop();
            if !kept.is_empty() {
                result.children.insert(key.clone(), kept);
            }
        }
        result
    }

    /// Members as people read them: `.spec.ports[port=80,protocol="TCP"].name`.
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.paths_at(&mut String::new(), &mut out);
        out
    }

    fn paths_at(&self, prefix: &mut String, out: &mut Vec<String>) {
        if self.member {
            out.push(prefix.clone());
        }
        for (key, child) in &self.children {
            let length = prefix.len();
            match key.split_once(':') {
                Some(("f", name)) => {
                    prefix.push('.');
                    prefix.push_str(name);
                }
                Some(("k", identity)) => prefix.push_str(&readable(identity)),
                Some((_, value)) => prefix.push_str(&format!("[={value}]")),
                None => prefix.push_str(key),
            }
            child.paths_at(prefix, out);
            prefix.truncate(length);
        }
    }
}

/// Absent, null or empty.
fn is_nothing(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(list)) => list.is_empty(),
        Some(_) => false,
    }
}

/// Whether two values are compared part by part, not as wholes.
fn parts(old: Option<&Value>, new: Option<&Value>, at: Option<Cursor<'_>>, depth: usize) -> bool {
    if depth >= DEPTH || at.is_some_and(Cursor::is_whole) {
        return false;
    }
    let given = || [old, new].into_iter().flatten().filter(|v| !v.is_null());
    match at.and_then(Cursor::list_merge) {
        Some(ListMerge::Atomic) => false,
        Some(ListMerge::Set) => given().all(Value::is_array),
        Some(ListMerge::Map(keys)) => {
            given().all(|v| v.as_array().is_some_and(|list| list.iter().all(|item| item_key(item, keys).is_some())))
        }
        None => given().all(Value::is_object),
    }
}

fn fields_of(value: Option<&Value>) -> BTreeMap<&str, &Value> {
    value.and_then(Value::as_object).into_iter().flatten().map(|(key, value)| (key.as_str(), value)).collect()
}

fn by_name(value: Option<&Value>, name: impl Fn(&Value) -> String) -> BTreeMap<String, &Value> {
    value.and_then(Value::as_array).into_iter().flatten().map(|item| (name(item), item)).collect()
}

/// What either has under a name.
fn both<'a, K: Ord + Clone>(
    old: BTreeMap<K, &'a Value>,
    mut new: BTreeMap<K, &'a Value>,
) -> impl Iterator<Item = (K, Option<&'a Value>, Option<&'a Value>)> {
    let mut all: Vec<_> = old.into_iter().map(|(key, was)| (key.clone(), Some(was), new.remove(&key))).collect();
    all.extend(new.into_iter().map(|(key, is)| (key, None, Some(is))));
    all.into_iter()
}

/// `k:{…}` as people read it.
pub fn readable(identity: &str) -> String {
    let parsed: Map<String, Value> = serde_json::from_str(identity).unwrap_or_default();
    let pairs: Vec<String> = parsed.iter().map(|(k, v)| format!("{k}={v}")).collect();
    format!("[{}]", pairs.join(","))
}

/// The value at a path of steps.
pub fn lookup<'a>(value: &'a Value, steps: &[&str], at: Option<Cursor<'_>>) -> Option<&'a Value> {
    let Some((step, rest)) = steps.split_first() else { return Some(value) };
    match step.split_once(':')? {
        ("f", name) => lookup(value.get(name)?, rest, at.and_then(|at| at.field(name))),
        ("k", _) => {
            let Some(ListMerge::Map(keys)) = at.and_then(Cursor::list_merge) else { return None };
            let found = value.as_array()?.iter().find(|item| item_key(item, keys).as_deref() == Some(*step))?;
            lookup(found, rest, at.and_then(Cursor::items))
        }
        _ => value.as_array()?.iter().find(|item| item_value(item) == **step),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_survive_their_written_form() {
        let text = json!({"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {"f:ports": {"k:{\"port\":80}": {".": {}, "f:port": {}}}}});
        let set = FieldSet::parse(&text);
        assert_eq!(set.value(), text);
        assert_eq!(
            set.paths(),
            [".metadata.labels", ".metadata.labels.app", ".spec.ports[port=80]", ".spec.ports[port=80].port"]
        );
    }

    #[test]
    fn algebra() {
        let a = FieldSet::parse(&json!({"f:x": {"f:a": {}, "f:b": {}}, "f:y": {}}));
        let b = FieldSet::parse(&json!({"f:x": {"f:b": {}, "f:c": {}}}));
        assert_eq!(a.union(&b).value(), json!({"f:x": {"f:a": {}, "f:b": {}, "f:c": {}}, "f:y": {}}));
        assert_eq!(a.intersection(&b).value(), json!({"f:x": {"f:b": {}}}));
        assert_eq!(a.minus(&b).value(), json!({"f:x": {"f:a": {}}, "f:y": {}}));
        assert!(a.minus(&a).is_empty());
        for odd in [json!(null), json!([]), json!("x"), json!({"f:a": 3})] {
            let _no_panic = FieldSet::parse(&odd).paths();
        }
    }
}
