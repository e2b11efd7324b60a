//! A value beside a definition's schema: what must be there, bounds, patterns, enums, lists that are sets, and the
//! combinations of `allOf` and its kin.
//!
//! Invariant: findings are worded as Kubernetes words them and name the field by its path; the number of findings is
//! bounded. Types were checked before, so that a value of a wrong type is passed over here.

use crate::error::Cause;
use carrick_api::schema::check::type_name;
use regex::Regex;
use serde_json::{Map, Value};
use std::collections::HashMap;

const DEEPEST: usize = 64;
const FINDINGS: usize = 64;

/// The patterns of a schema, compiled once.
#[derive(Default)]
pub struct Patterns(HashMap<String, Regex>);

impl Patterns {
    /// All patterns in a schema; those that do not compile match nothing.
    pub fn of(schema: &Value) -> Self {
        let mut all = Self::default();
        all.collect(schema);
        all
    }

    fn collect(&mut self, schema: &Value) {
        match schema {
            Value::Object(map) => {
                if let Some(Value::String(pattern)) = map.get("pattern")
                    && let Ok(regex) = Regex::new(pattern)
                {
                    self.0.insert(pattern.clone(), regex);
                }
                map.values().for_each(|v| self.collect(v));
            }
            Value::Array(list) => list.iter().for_each(|v| self.collect(v)),
            _ => {}
        }
    }
}

/// The JSON pointer of a path such as `spec.list[0].name`.
pub fn pointer(path: &str) -> String {
    let mut pointer = String::new();
    for step in path.split(['.', '[']).map(|s| s.trim_end_matches(']')).filter(|s| !s.is_empty()) {
        pointer.push('/');
        pointer.push_str(&step.replace('~', "~0").replace('/', "~1"));
    }
    pointer
}

/// Everything wrong with `value`.
pub fn check(schema: &Value, patterns: &Patterns, value: &Value) -> Vec<Cause> {
    let mut checker = Checker { patterns, causes: Vec::new() };
    checker.value(schema, value, "", 0);
    checker.causes
}

struct Checker<'a> {
    patterns: &'a Patterns,
    causes: Vec<Cause>,
}

fn number(schema: &Map<String, Value>, field: &str) -> Option<f64> {
    schema.get(field).and_then(Value::as_f64)
}

fn count(schema: &Map<String, Value>, field: &str) -> Option<u64> {
    schema.get(field).and_then(Value::as_u64)
}

fn flag(schema: &Map<String, Value>, field: &str) -> bool {
    schema.get(field) == Some(&Value::Bool(true))
}

impl Checker<'_> {
    fn report(&mut self, cause: Cause) {
        if self.causes.len() < FINDINGS {
            self.causes.push(cause);
        }
    }

    fn invalid(&mut self, path: &str, value: &Value, why: String) {
        self.report(Cause::invalid(path, value, format!("{path} in body {why}")));
    }

    fn value(&mut self, schema: &Value, value: &Value, path: &str, depth: usize) {
        let Some(schema) = schema.as_object().filter(|_| depth <= DEEPEST) else { return };
        if value.is_null() {
            return;
        }
        self.choice(schema, value, path);
        match value {
            Value::Number(n) => self.number(schema, n.as_f64().unwrap_or(0.0), value, path),
            Value::String(text) => self.text(schema, text, value, path),
            Value::Array(list) => self.list(schema, list, path, depth),
            Value::Object(map) => self.object(schema, map, path, depth),
            _ => {}
        }
        self.combinations(schema, value, path, depth);
    }

    fn choice(&mut self, schema: &Map<String, Value>, value: &Value, path: &str) {
        let Some(allowed) = schema.get("enum").and_then(Value::as_array) else { return };
        if !allowed.contains(value) {
            let listed: Vec<String> = allowed
                .iter()
                .map(|v| format!("{:?}", v.as_str().map_or_else(|| v.to_string(), str::to_owned)))
                .collect();
            self.report(Cause {
                reason: "FieldValueNotSupported",
                message: format!("Unsupported value: {value}: supported values: {}", listed.join(", ")),
                field: path.into(),
            });
        }
    }

    fn number(&mut self, schema: &Map<String, Value>, n: f64, value: &Value, path: &str) {
        let shown = |bound: f64| serde_json::Number::from_f64(bound).map_or_else(String::new, |_| bound.to_string());
        if let Some(max) = number(schema, "maximum") {
            match flag(schema, "exclusiveMaximum") {
                true if n >= max => self.invalid(path, value, format!("should be less than {}", shown(max))),
                false if n > max => {
                    self.invalid(path, value, format!("should be less than or equal to {}", shown(max)))
                }
                _ => {}
            }
        }
        if let Some(min) = number(schema, "minimum") {
            match flag(schema, "exclusiveMinimum") {
                true if n <= min => self.invalid(path, value, format!("should be greater than {}", shown(min))),
                false if n < min => {
                    self.invalid(path, value, format!("should be greater than or equal to {}", shown(min)));
                }
                _ => {}
            }
        }
        if let Some(factor) = number(schema, "multipleOf").filter(|f| *f != 0.0) {
            let ratio = n / factor;
            if (ratio - ratio.round()).abs() > 1e-9 {
                self.invalid(path, value, format!("should be a multiple of {}", shown(factor)));
            }
        }
    }

    fn text(&mut self, schema: &Map<String, Value>, text: &str, value: &Value, path: &str) {
        let length = text.chars().count() as u64;
        // Of these three the first that does not hold is told.
        if let Some(max) = count(schema, "maxLength").filter(|max| length > *max) {
            self.report(Cause {
                reason: "FieldValueTooLong",
                message: format!("Too long: may not be more than {max} bytes"),
                field: path.into(),
            });
        } else if let Some(min) = count(schema, "minLength").filter(|min| length < *min) {
            self.invalid(path, value, format!("should be at least {min} chars long"));
        } else if let Some(pattern) = schema.get("pattern").and_then(Value::as_str)
            && !self.patterns.0.get(pattern).is_some_and(|regex| regex.is_match(text))
        {
            self.invalid(path, value, format!("should match '{pattern}'"));
        }
        if let Some(format) = schema.get("format").and_then(Value::as_str)
            && !has_format(format, text)
        {
            let mut cause = Cause::invalid(path, value, format!("{path} in body must be of type {format}: {value}"));
            cause.reason = "FieldValueTypeInvalid";
            self.report(cause);
        }
    }

    fn list(&mut self, schema: &Map<String, Value>, list: &[Value], path: &str, depth: usize) {
        let length = list.len() as u64;
        if let Some(max) = count(schema, "maxItems").filter(|max| length > *max) {
            self.too_many(path, length, max);
        }
        if let Some(min) = count(schema, "minItems").filter(|min| length < *min) {
            self.invalid(path, &length.into(), format!("should have at least {min} items"));
        }
        match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
            Some("set") => self.duplicates(list, path, Value::clone),
            Some("map") => {
                let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
                let keys: Vec<&str> = keys.into_iter().flatten().filter_map(Value::as_str).collect();
                self.duplicates(list, path, |item| {
                    keys.iter()
                        .filter_map(|k| Some(((*k).to_owned(), item.get(*k)?.clone())))
                        .collect::<Map<_, _>>()
                        .into()
                });
            }
            _ => {}
        }
        if let Some(items) = schema.get("items") {
            for (index, item) in list.iter().enumerate() {
                self.value(items, item, &format!("{path}[{index}]"), depth.saturating_add(1));
            }
        }
    }

    fn duplicates(&mut self, list: &[Value], path: &str, key: impl Fn(&Value) -> Value) {
        let mut seen = std::collections::HashSet::new();
        for (index, item) in list.iter().enumerate() {
            let key = key(item);
            if !seen.insert(key.to_string()) {
                self.report(Cause {
                    reason: "FieldValueDuplicate",
                    message: format!("Duplicate value: {key}"),
                    field: format!("{path}[{index}]"),
                });
            }
        }
    }

    fn too_many(&mut self, path: &str, is: u64, max: u64) {
        self.report(Cause {
            reason: "FieldValueTooMany",
            message: format!("Too many: {is}: must have at most {max} items"),
            field: path.into(),
        });
    }

    fn object(&mut self, schema: &Map<String, Value>, map: &Map<String, Value>, path: &str, depth: usize) {
        let size = map.len() as u64;
        if let Some(max) = count(schema, "maxProperties").filter(|max| size > *max) {
            self.too_many(path, size, max);
        }
        if let Some(min) = count(schema, "minProperties").filter(|min| size < *min) {
            self.invalid(path, &size.into(), format!("should have at least {min} properties"));
        }
        let embedded = flag(schema, "x-kubernetes-embedded-resource");
        let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
        let named = ["apiVersion", "kind"].into_iter().filter(|_| embedded);
        for name in required.filter_map(Value::as_str).chain(named) {
            if map.get(name).is_none_or(Value::is_null) {
                self.report(Cause::required(below(name), ""));
            }
        }
        let properties = schema.get("properties").and_then(Value::as_object);
        for (name, child) in map {
            let own = properties.and_then(|p| p.get(name));
            let other = || schema.get("additionalProperties").filter(|s| s.is_object());
            if let Some(schema) = own.or_else(other) {
                self.value(schema, child, &below(name), depth.saturating_add(1));
            }
        }
    }

    fn combinations(&mut self, schema: &Map<String, Value>, value: &Value, path: &str, depth: usize) {
        let fits = |this: &Self, schema: &Value| {
            let mut other = Checker { patterns: this.patterns, causes: Vec::new() };
            other.value(schema, value, path, depth.saturating_add(1));
            if !has_type(schema, value) {
                Err(Vec::new())
            } else if other.causes.is_empty() {
                Ok(())
            } else {
                Err(other.causes)
            }
        };
        let list = |field: &str| schema.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        for each in list("allOf") {
            if let Err(causes) = fits(self, each) {
                causes.into_iter().for_each(|cause| self.report(cause));
            }
        }
        let any = list("anyOf");
        if !any.is_empty() && !any.iter().any(|s| fits(self, s).is_ok()) {
            self.combined(path, "must validate at least one schema (anyOf)");
            self.first(any.iter().find_map(|s| fits(self, s).err()));
        }
        let one = list("oneOf");
        if !one.is_empty() {
            match one.iter().filter(|s| fits(self, s).is_ok()).count() {
                1 => {}
                0 => {
                    self.combined(path, "must validate one and only one schema (oneOf). Found none valid");
                    self.first(one.iter().find_map(|s| fits(self, s).err()));
                }
                many => {
                    let why = format!("must validate one and only one schema (oneOf). Found {many} valid alternatives");
                    self.combined(path, &why);
                }
            }
        }
        if let Some(not) = schema.get("not")
            && fits(self, not).is_ok()
        {
            self.combined(path, "must not validate the schema (not)");
        }
    }

    /// Kubernetes names neither field nor value of these.
    fn combined(&mut self, path: &str, why: &str) {
        let why = format!("{path:?} {why}");
        self.report(Cause::invalid("<nil>", &Value::String(String::new()), why));
    }

    /// What the first alternative lacks.
    fn first(&mut self, causes: Option<Vec<Cause>>) {
        causes.into_iter().flatten().for_each(|cause| self.report(cause));
    }
}

fn has_type(schema: &Value, value: &Value) -> bool {
    match schema.get("type").and_then(Value::as_str) {
        None => true,
        Some("number") => value.is_number(),
        Some(name) => name == type_name(value),
    }
}

/// Formats that Kubernetes checks; unknown ones are no condition.
fn has_format(format: &str, text: &str) -> bool {
    let matches = |pattern: &str| Regex::new(pattern).is_ok_and(|regex| regex.is_match(text));
    match format {
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "cidr" => text.split_once('/').is_some_and(|(ip, bits)| {
            let most = ip.parse::<std::net::IpAddr>().map(|ip| if ip.is_ipv4() { 32 } else { 128 });
            most.is_ok_and(|most| bits.parse::<u8>().is_ok_and(|b| b <= most))
        }),
        "uuid" | "uuid3" | "uuid4" | "uuid5" => uuid::Uuid::try_parse(text).is_ok(),
        "uri" => text.parse::<http::Uri>().is_ok_and(|u| u.scheme().is_some() || text.starts_with('/')),
        "email" => text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty()),
        "date" => matches(r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$"),
        "duration" => carrick_api::scalar::Duration::parse(text).is_ok(),
        "hostname" => {
            text.len() <= 255
                && matches(r"^[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?(\.[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?)*\.?$")
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn findings_are_worded_as_kubernetes_words_them() {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "required": ["must"], "properties": {
            "n": {"type": "integer", "minimum": 1, "maximum": 10, "multipleOf": 2},
            "s": {"type": "string", "pattern": "^a+$", "maxLength": 3, "minLength": 1},
            "e": {"type": "string", "enum": ["x", "y"]},
            "l": {"type": "array", "maxItems": 1, "items": {"type": "string", "format": "ipv4"}},
            "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "properties": {"name": {"type": "string"}}}},
            "either": {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}],
                "properties": {"a": {"type": "string"}, "b": {"type": "string"}}},
        }}}});
        let patterns = Patterns::of(&schema);
        let told = |spec: Value| {
            let causes = check(&schema, &patterns, &json!({"spec": spec}));
            causes.into_iter().map(|c| format!("{}: {}", c.field, c.message)).collect::<Vec<_>>()
        };
        for (spec, expected) in [
            (json!({"must": 1, "n": 2, "s": "aa", "e": "x", "either": {"a": ""}}), ""),
            (json!({}), "spec.must: Required value"),
            (
                json!({"must": 1, "n": 12}),
                "spec.n: Invalid value: 12: spec.n in body should be less than or equal to 10",
            ),
            (
                json!({"must": 1, "n": 0}),
                "spec.n: Invalid value: 0: spec.n in body should be greater than or equal to 1",
            ),
            (json!({"must": 1, "n": 3}), "spec.n: Invalid value: 3: spec.n in body should be a multiple of 2"),
            (json!({"must": 1, "s": "b"}), "spec.s: Invalid value: \"b\": spec.s in body should match '^a+$'"),
            (json!({"must": 1, "s": "aaaa"}), "spec.s: Too long: may not be more than 3 bytes"),
            (json!({"must": 1, "e": "z"}), "spec.e: Unsupported value: \"z\": supported values: \"x\", \"y\""),
            (json!({"must": 1, "l": ["1.1.1.1", "1.1.1.2"]}), "spec.l: Too many: 2: must have at most 1 items"),
            (
                json!({"must": 1, "l": ["1.1.1"]}),
                "spec.l[0]: Invalid value: \"1.1.1\": spec.l[0] in body must be of type ipv4: \"1.1.1\"",
            ),
            (json!({"must": 1, "set": ["a", "b", "a"]}), "spec.set[2]: Duplicate value: \"a\""),
            (
                json!({"must": 1, "map": [{"name": "a"}, {"name": "a"}]}),
                "spec.map[1]: Duplicate value: {\"name\":\"a\"}",
            ),
            (
                json!({"must": 1, "either": {}}),
                "<nil>: Invalid value: \"\": \"spec.either\" must validate one and only one schema (oneOf). Found none valid; spec.either.a: Required value",
            ),
        ] {
            assert_eq!(told(spec.clone()).join("; "), expected, "{spec}");
        }
    }
}
