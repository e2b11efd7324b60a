//! Rules of definitions in CEL, before any object is held against them: their types and what they may cost.
//!
//! Invariant: a rule that passes uses only what its schema declares, and its estimated cost is below the limits at which Kubernetes
//! refuses a definition. What it leaves to others: running rules (the crate `kube-cel`).

mod cost;
mod declared;
mod judge;
mod table;
mod types;

use crate::error::Cause;
use declared::Declared;
pub use declared::escaped;
use judge::{Old, judge};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use types::Type;

/// Of one expression.
const LIMIT: u64 = 10_000_000;
/// Of all of a version's.
const TOTAL: u64 = 100_000_000;
const REQUEST: u64 = 3 << 20;
/// How many of the dearest are named when all together are too dear.
const NAMED: usize = 4;
const DEEPEST: usize = 64;
const REASONS: [&str; 4] = ["FieldValueRequired", "FieldValueForbidden", "FieldValueInvalid", "FieldValueDuplicate"];
const TRY: &str = "(try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)";

/// Whether a path is one that a rule above it names as its `fieldPath`.
pub fn names_field(schema: &Value, path: &str) -> bool {
    let (above, last) = path.rsplit_once('.').unwrap_or(("", path));
    let mut steps = above.split('.').map(|s| s.split('[').next().unwrap_or(s)).filter(|s| !s.is_empty());
    let place = steps.try_fold(schema, |schema, step| {
        let own = schema.get("properties").and_then(|p| p.get(step)).or_else(|| schema.get("additionalProperties"))?;
        Some(own.get("items").unwrap_or(own))
    });
    let rules = place.and_then(|p| p.get("x-kubernetes-validations")).and_then(Value::as_array);
    rules.into_iter().flatten().any(|rule| {
        rule.get("fieldPath").and_then(Value::as_str).is_some_and(|field| field.trim_start_matches('.') == last)
    })
}

/// What is wrong with the rules of a version's schema, which is at `path`.
pub fn check(schema: &Value, path: &str) -> Vec<Cause> {
    let mut checker = Checker::default();
    checker.schema(schema, path, &Place { root: true, times: Some(1), uncorrelated: None, depth: 0 });
    if checker.total > TOTAL {
        checker.costs.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
        for (_, at) in checker.costs.into_iter().take(NAMED) {
            let why = "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema";
            checker.causes.push(Cause::forbidden(at, why));
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        checker.causes.push(Cause::forbidden(path, exceeds(what, checker.total, TOTAL)));
    }
    checker.causes
}

/// What the rules of a schema cost together, estimated.
#[cfg(test)]
fn total(schema: &Value) -> u64 {
    let mut checker = Checker::default();
    checker.schema(schema, "", &Place { root: true, times: Some(1), uncorrelated: None, depth: 0 });
    checker.total
}

fn exceeds(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let factor = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!("{what} exceeds budget by factor of {factor} {TRY}")
}

#[derive(Default)]
struct Checker {
    causes: Vec<Cause>,
    total: u64,
    costs: Vec<(u64, String)>,
}

/// Where a schema is.
struct Place {
    root: bool,
    /// How many values of it an object can have; nothing where that is not bounded.
    times: Option<u64>,
    /// The list whose items cannot be told from each other, so that nothing in them has a value before.
    uncorrelated: Option<String>,
    depth: usize,
}

impl Checker {
    fn schema(&mut self, schema: &Value, path: &str, place: &Place) {
        let Some(map) = schema.as_object().filter(|_| place.depth <= DEEPEST) else { return };
        let rules =
            map.get("x-kubernetes-validations").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        if !rules.is_empty()
            && let Some(declared) = Declared::of(schema, place.root)
        {
            for (index, rule) in rules.iter().enumerate() {
                self.rule(rule, &declared, &format!("{path}.x-kubernetes-validations[{index}]"), place);
            }
        }
        let below = |times: Option<u64>, uncorrelated: Option<String>| Place {
            root: false,
            times,
            uncorrelated,
            depth: place.depth.saturating_add(1),
        };
        let bounded = |field: &str| {
            let bound = map.get(field).and_then(Value::as_i64).map(|n| u64::try_from(n).unwrap_or(0));
            Some(place.times?.saturating_mul(bound?))
        };
        for (name, property) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
            self.schema(
                property,
                &format!("{path}.properties[{name}]"),
                &below(place.times, place.uncorrelated.clone()),
            );
        }
        if let Some(values) = map.get("additionalProperties").filter(|v| v.is_object()) {
            let place = below(bounded("maxProperties"), place.uncorrelated.clone());
            self.schema(values, &format!("{path}.additionalProperties"), &place);
        }
        if let Some(items) = map.get("items").filter(|v| v.is_object()) {
            let told_apart = map.get("x-kubernetes-list-type").and_then(Value::as_str) == Some("map");
            let uncorrelated = place.uncorrelated.clone().or_else(|| (!told_apart).then(|| path.to_owned()));
            self.schema(items, &format!("{path}.items"), &below(bounded("maxItems"), uncorrelated));
        }
    }

    fn rule(&mut self, rule: &Value, declared: &Declared, at: &str, place: &Place) {
        let text = |field: &str| rule.get(field).and_then(Value::as_str).unwrap_or_default();
        let invalid = |field: String, why: String| Cause {
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {}: {why}", shown(rule)),
            field,
        };
        let (expression, message) = (text("rule"), text("message"));
        if expression.trim().is_empty() {
            self.causes.push(Cause::required(format!("{at}.rule"), "rule is not specified"));
            return;
        }
        if rule.get("message").is_some_and(|m| m.as_str().is_some_and(|m| !m.is_empty() && m.trim().is_empty())) {
            self.causes.push(Cause::required(format!("{at}.message"), "message must be non-empty if specified"));
        } else if message.contains(['\n', '\r']) {
            let why = "message must not contain line breaks";
            self.causes.push(Cause::invalid(format!("{at}.message"), &json!(message), why));
        } else if expression.contains(['\n', '\r']) && message.is_empty() {
            let why = "message must be specified if rule contains line breaks";
            self.causes.push(Cause::required(format!("{at}.message"), why));
        }
        if let Some(reason) = rule.get("reason").and_then(Value::as_str).filter(|r| !REASONS.contains(r)) {
            let listed: Vec<String> = REASONS.iter().map(|r| format!("{r:?}")).collect();
            let message = format!("Unsupported value: {reason:?}: supported values: {}", listed.join(", "));
            self.causes.push(Cause { reason: "FieldValueNotSupported", message, field: format!("{at}.reason") });
        }
        if let Some(path) = rule.get("fieldPath").and_then(Value::as_str)
            && !names_a_field(path, declared)
        {
            let why = format!("fieldPath must be a valid path: {path:?} names no field");
            self.causes.push(Cause::invalid(format!("{at}.fieldPath"), &json!(path), why));
        }
        let old = if rule.get("optionalOldSelf") == Some(&Value::Bool(true)) { Old::Optional } else { Old::Value };
        match judge(expression, declared, old, &Type::Bool) {
            Err(why) => self.causes.push(invalid(format!("{at}.rule"), why)),
            Ok(verdict) => {
                let times = place.times.unwrap_or_else(|| REQUEST / declared.smallest.saturating_add(1).max(1));
                let cost = verdict.cost.saturating_mul(times);
                self.observe(cost, format!("{at}.rule"), "estimated rule cost");
                if let Some(list) = place.uncorrelated.as_deref().filter(|_| verdict.uses_old) {
                    let why =
                        format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {list}");
                    self.causes.push(Cause::invalid(format!("{at}.rule"), &json!(expression), why));
                }
            }
        }
        if let Some(expression) = rule.get("messageExpression").and_then(Value::as_str) {
            let at = format!("{at}.messageExpression");
            match judge(expression, declared, old, &Type::Text) {
                Err(why) => {
                    let why = why.replacen("compilation failed", "messageExpression compilation failed", 1);
                    self.causes.push(invalid(at, why));
                }
                Ok(verdict) => self.observe(verdict.cost, at, "estimated messageExpression cost"),
            }
        }
    }

    fn observe(&mut self, cost: u64, at: String, what: &str) {
        self.total = self.total.saturating_add(cost);
        if cost > LIMIT {
            self.causes.push(Cause::forbidden(at.clone(), exceeds(what, cost, LIMIT)));
        }
        self.costs.push((cost, at));
    }
}

/// A rule as Kubernetes shows it: in JSON, as Go writes it.
fn shown(rule: &Value) -> String {
    let text = |field: &str| json!(rule.get(field).and_then(Value::as_str).unwrap_or_default());
    let or_null = |field: &str| rule.get(field).cloned().unwrap_or(Value::Null);
    let shown = json!({
        "Rule": text("rule"), "Message": text("message"), "MessageExpression": text("messageExpression"),
        "Reason": or_null("reason"), "FieldPath": text("fieldPath"), "OptionalOldSelf": or_null("optionalOldSelf"),
    });
    shown.to_string().replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026")
}

/// Whether a path such as `.spec.list` is one of a schema's; keys in brackets are taken as they are.
fn names_a_field(path: &str, declared: &Declared) -> bool {
    if !path.starts_with(['.', '[']) {
        return false;
    }
    let mut at = declared;
    for step in path.split('[').next().unwrap_or_default().split('.').skip(1) {
        let found = escaped(step).and_then(|name| at.fields.get(&name)).or(at.element.as_deref());
        match found {
            Some(next) => at = next,
            None => return false,
        }
    }
    true
}

/// Rules with their fields called as the crate that runs them calls them: it doubles every `_` of a name, Kubernetes none.
pub fn for_the_runner(schema: &Value) -> Value {
    let mut names = BTreeMap::new();
    collect(schema, &mut names);
    let mut out = schema.clone();
    if !names.is_empty() {
        rename(&mut out, &names);
    }
    out
}

/// What rules call fields, and what the runner does, where that is not the same.
type Names = BTreeMap<String, String>;

fn collect(schema: &Value, names: &mut Names) {
    match schema {
        Value::Object(map) => {
            for name in map.get("properties").and_then(Value::as_object).into_iter().flat_map(Map::keys) {
                if let Some(called) = escaped(name).filter(|called| name.contains('_') && !called.is_empty()) {
                    let runner = name.replace('_', "__").replace('.', "__dot__").replace('-', "__dash__");
                    names.insert(called, runner.replace('/', "__slash__"));
                }
            }
            map.values().for_each(|v| collect(v, names));
        }
        Value::Array(list) => list.iter().for_each(|v| collect(v, names)),
        _ => {}
    }
}

fn rename(schema: &mut Value, names: &Names) {
    match schema {
        Value::Object(map) => {
            for rule in map.get_mut("x-kubernetes-validations").and_then(Value::as_array_mut).into_iter().flatten() {
                for field in ["rule", "messageExpression"] {
                    if let Some(Value::String(text)) = rule.get_mut(field) {
                        *text = renamed(text, names);
                    }
                }
            }
            map.values_mut().for_each(|v| rename(v, names));
        }
        Value::Array(list) => list.iter_mut().for_each(|v| rename(v, names)),
        _ => {}
    }
}

/// An expression in which fields are called by the runner's names; texts stay as they are.
fn renamed(expression: &str, names: &Names) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let (mut out, mut rest, mut quote) = (String::with_capacity(expression.len()), expression, None);
    while let Some(next) = rest.chars().next() {
        let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let taken = match quote {
            None if word > 0 => {
                let name = rest.get(..word).unwrap_or_default();
                let is_field = out.ends_with('.') || out.ends_with(".?");
                out.push_str(names.get(name).filter(|_| is_field).map_or(name, String::as_str));
                word
            }
            Some(_) if next == '\\' => {
                let taken = next.len_utf8().saturating_add(rest.chars().nth(1).map_or(0, char::len_utf8));
                out.push_str(rest.get(..taken).unwrap_or_default());
                taken
            }
            open => {
                if matches!(next, '"' | '\'') && open.is_none_or(|q| q == next) {
                    quote = if open.is_none() { Some(next) } else { None };
                }
                out.push(next);
                next.len_utf8()
            }
        };
        rest = rest.get(taken..).unwrap_or_default();
    }
    out
}

#[cfg(test)]
mod tests;
