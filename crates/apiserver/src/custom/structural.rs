//! What a definition's schema may be: structural, so that every value has one type that is said once, and what Kubernetes asks of
//! its own extensions.
//!
//! Invariant: a schema that passes can be pruned, defaulted and merged by. Findings are worded as Kubernetes words them; their number
//! is bounded. What it leaves to others: rules in CEL (`cel`).

use super::{Patterns, defaults, text, values};
use crate::error::Cause;
use carrick_api::schema::check::type_name;
use serde_json::{Map, Value, json};

const DEEPEST: usize = 64;
const FINDINGS: usize = 32;
const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
/// Of which a schema's root may have no others when the status is written apart.
const AT_THE_ROOT: &str = "[Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum MaxLength MinLength Pattern MaxItems MinItems UniqueItems MultipleOf Required Items Properties ExternalDocs Example XPreserveUnknownFields XValidations]";

/// Everything wrong with a version's schema, which is at `at`; `status` when its status is written apart.
pub fn check(schema: &Value, at: &str, status: bool) -> Vec<Cause> {
    let mut checker = Checker { causes: Vec::new() };
    let root = schema.get("type").and_then(Value::as_str).unwrap_or_default();
    if root.is_empty() {
        checker.report(Cause::required(format!("{at}.type"), "must not be empty at the root"));
    } else if root != "object" {
        checker.report(Cause::invalid(format!("{at}.type"), &json!(root), "must be object at the root"));
    }
    if schema.get("additionalProperties").is_some_and(|a| !a.is_null()) {
        checker.report(Cause::forbidden(format!("{at}.additionalProperties"), "must not be used at the root"));
    }
    if schema.get("nullable") == Some(&Value::Bool(true)) {
        checker.report(Cause::forbidden(format!("{at}.nullable"), "nullable cannot be true at the root"));
    }
    let apart = ["allOf", "anyOf", "oneOf", "not", "enum", "default", "maxProperties", "minProperties"];
    if status && apart.iter().any(|field| schema.get(field).is_some()) {
        let why = format!(
            "only {AT_THE_ROOT} fields are allowed at the root of the schema if the status subresource is enabled"
        );
        checker.report(Cause::invalid(at, &json!(type_name(schema)), why));
    }
    checker.schema(schema, at, Level::Root, 0);
    checker.causes
}

/// What a schema is of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Field,
    Items,
    /// `metadata` of the root, of which the server knows what it is.
    Metadata,
}

struct Checker {
    causes: Vec<Cause>,
}

fn flag(map: &Map<String, Value>, field: &str) -> bool {
    map.get(field) == Some(&Value::Bool(true))
}

fn unsupported(field: String, value: &Value, allowed: &[&str]) -> Cause {
    let listed: Vec<String> = allowed.iter().map(|a| format!("{a:?}")).collect();
    let message = format!("Unsupported value: {value}: supported values: {}", listed.join(", "));
    Cause { reason: "FieldValueNotSupported", message, field }
}

impl Checker {
    fn report(&mut self, cause: Cause) {
        if self.causes.len() < FINDINGS {
            self.causes.push(cause);
        }
    }

    fn schema(&mut self, schema: &Value, at: &str, level: Level, depth: usize) {
        let Some(map) = schema.as_object() else { return };
        if depth > DEEPEST {
            self.report(Cause::forbidden(at, "the schema is too deep"));
            return;
        }
        self.type_(map, at, level);
        self.unknown(map, at);
        self.pattern(map, at);
        self.embedded(map, at, level);
        self.list(map, at);
        self.map(map, at);
        self.default(schema, map, at, level);
        for field in ["allOf", "anyOf", "oneOf"] {
            for (index, part) in map.get(field).and_then(Value::as_array).into_iter().flatten().enumerate() {
                let int_or_text = flag(map, "x-kubernetes-int-or-string");
                self.junctor(part, map, &format!("{at}.{field}[{index}]"), int_or_text, depth);
            }
        }
        if let Some(part) = map.get("not") {
            self.junctor(part, map, &format!("{at}.not"), false, depth);
        }
        self.below(map, at, level, depth.saturating_add(1));
    }

    fn below(&mut self, map: &Map<String, Value>, at: &str, level: Level, depth: usize) {
        let properties = map.get("properties").and_then(Value::as_object);
        let additional = map.get("additionalProperties");
        if properties.is_some_and(|p| !p.is_empty()) && additional.is_some_and(|a| !a.is_null()) {
            let why = "additionalProperties and properties are mutual exclusive";
            self.report(Cause::forbidden(format!("{at}.additionalProperties"), why));
        }
        if additional == Some(&Value::Bool(false)) {
            let why = "additionalProperties cannot be set to false";
            self.report(Cause::forbidden(format!("{at}.additionalProperties"), why));
        }
        for (name, schema) in properties.into_iter().flatten() {
            let own = if level == Level::Root && name == "metadata" { Level::Metadata } else { Level::Field };
            self.schema(schema, &format!("{at}.properties[{name}]"), own, depth);
        }
        if let Some(schema) = additional.filter(|a| a.is_object()) {
            self.schema(schema, &format!("{at}.additionalProperties"), Level::Field, depth);
        }
        match map.get("items") {
            Some(items) if items.is_object() => self.schema(items, &format!("{at}.items"), Level::Items, depth),
            Some(items) if items.is_array() => {
                let why = "items must be a schema object and not an array";
                self.report(Cause::forbidden(format!("{at}.items"), why));
            }
            _ if text(map, "type") == "array" => {
                self.report(Cause::required(format!("{at}.items"), "must be specified"))
            }
            _ => {}
        }
    }

    fn type_(&mut self, map: &Map<String, Value>, at: &str, level: Level) {
        let (type_, at_type) = (text(map, "type"), format!("{at}.type"));
        let either = flag(map, "x-kubernetes-int-or-string");
        if either && !type_.is_empty() {
            self.report(Cause::forbidden(at_type.clone(), "must be empty if x-kubernetes-int-or-string is true"));
        }
        if type_.is_empty() && !either && !flag(map, "x-kubernetes-preserve-unknown-fields") {
            let what = match level {
                Level::Items => "array items",
                Level::Field => "object fields",
                Level::Root | Level::Metadata => "",
            };
            if !what.is_empty() {
                self.report(Cause::required(at_type.clone(), format!("must not be empty for specified {what}")));
            }
        }
        if type_ == "null" {
            let why = "type cannot be set to null, use nullable as an alternative";
            self.report(Cause::forbidden(at_type, why));
        } else if !type_.is_empty() && !TYPES.contains(&type_) {
            self.report(unsupported(at_type, &json!(type_), &TYPES));
        } else if level == Level::Metadata && type_ != "object" {
            self.report(Cause::invalid(at_type, &json!(type_), "must be object"));
        } else if level == Level::Root {
            for name in ["apiVersion", "kind"] {
                let own = map.get("properties").and_then(|p| p.get(name)?.get("type"));
                if let Some(own) = own.filter(|t| *t != "string") {
                    let field = format!("{at}.properties[{name}].type");
                    self.report(Cause::invalid(field, own, "must be string"));
                }
            }
        }
    }

    fn unknown(&mut self, map: &Map<String, Value>, at: &str) {
        for field in ["$ref", "$schema", "additionalItems", "definitions", "dependencies", "id", "patternProperties"] {
            if map.get(field).is_some_and(|v| !v.is_null()) {
                let field_name = field.trim_start_matches('$');
                let name = if field == "$ref" { "$ref" } else { field_name };
                self.report(Cause::forbidden(format!("{at}.{field}"), format!("{name} is not supported")));
            }
        }
        if flag(map, "uniqueItems") {
            let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
            self.report(Cause::forbidden(format!("{at}.uniqueItems"), why));
        }
    }

    fn pattern(&mut self, map: &Map<String, Value>, at: &str) {
        if let Some(pattern) = map.get("pattern").and_then(Value::as_str)
            && let Err(error) = regex::Regex::new(pattern)
        {
            let why = format!("must be a valid regular expression, but isn't: {error}");
            self.report(Cause::invalid(format!("{at}.pattern"), &json!(pattern), why));
        }
    }

    fn embedded(&mut self, map: &Map<String, Value>, at: &str, level: Level) {
        let embedded = flag(map, "x-kubernetes-embedded-resource");
        let properties = map.get("properties").and_then(Value::as_object);
        if embedded {
            let why = "must be object if x-kubernetes-embedded-resource is true";
            match text(map, "type") {
                "object" => {}
                "" => self.report(Cause::required(format!("{at}.type"), why)),
                other => self.report(Cause::invalid(format!("{at}.type"), &json!(other), why)),
            }
            if !flag(map, "x-kubernetes-preserve-unknown-fields") && properties.is_none_or(Map::is_empty) {
                let why = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
                self.report(Cause::required(format!("{at}.properties"), why));
            }
            if map.get("additionalProperties").is_some_and(|a| !a.is_null()) {
                let why = "must not be used if x-kubernetes-embedded-resource is set";
                self.report(Cause::forbidden(format!("{at}.additionalProperties"), why));
            }
        }
        if !embedded && level != Level::Root {
            return;
        }
        let Some(metadata) = properties.and_then(|p| p.get("metadata")).and_then(Value::as_object) else { return };
        let known = |name: &String| matches!(name.as_str(), "name" | "generateName");
        let fields = metadata.get("properties").and_then(Value::as_object);
        let other = metadata.keys().any(|k| !matches!(k.as_str(), "type" | "description" | "properties"));
        if other || fields.is_some_and(|f| !f.keys().all(known)) {
            let why =
                "must not specify anything other than name and generateName, but metadata is implicitly specified";
            self.report(Cause::forbidden(format!("{at}.properties[metadata]"), why));
        }
    }

    fn list(&mut self, map: &Map<String, Value>, at: &str) {
        let keys: Vec<&Value> =
            map.get("x-kubernetes-list-map-keys").and_then(Value::as_array).into_iter().flatten().collect();
        let Some(kind) = map.get("x-kubernetes-list-type") else {
            if !keys.is_empty() {
                let why = "must be map if x-kubernetes-list-map-keys is non-empty";
                self.report(Cause::required(format!("{at}.x-kubernetes-list-type"), why));
            }
            return;
        };
        if text(map, "type") != "array" {
            let why = "must be array if x-kubernetes-list-type is specified";
            self.report(match text(map, "type") {
                "" => Cause::required(format!("{at}.type"), why),
                other => Cause::invalid(format!("{at}.type"), &json!(other), why),
            });
        }
        let items = map.get("items").and_then(Value::as_object);
        match kind.as_str() {
            Some("atomic") => {}
            Some("set") => {
                let items = items.cloned().unwrap_or_default();
                let atomic = match text(&items, "type") {
                    "object" => text(&items, "x-kubernetes-map-type") == "atomic",
                    "array" => text(&items, "x-kubernetes-list-type") == "atomic",
                    _ => true,
                };
                if !atomic {
                    let why = "must be atomic as item of a list with x-kubernetes-list-type=set";
                    self.report(Cause::invalid(format!("{at}.items.x-kubernetes-map-type"), &Value::Null, why));
                }
            }
            Some("map") => self.list_map(&keys, items, at),
            _ => {
                let field = format!("{at}.x-kubernetes-list-type");
                self.report(unsupported(field, kind, &["atomic", "map", "set"]));
            }
        }
        if !keys.is_empty() && kind != "map" {
            let why = "must be map if x-kubernetes-list-map-keys is non-empty";
            self.report(Cause::invalid(format!("{at}.x-kubernetes-list-type"), kind, why));
        }
        if matches!(kind.as_str(), Some("set" | "map")) && items.is_some_and(|i| flag(i, "nullable")) {
            let why =
                format!("cannot be nullable when x-kubernetes-list-type is {}", kind.as_str().unwrap_or_default());
            self.report(Cause::forbidden(format!("{at}.items.nullable"), why));
        }
    }

    fn list_map(&mut self, keys: &[&Value], items: Option<&Map<String, Value>>, at: &str) {
        let at_keys = format!("{at}.x-kubernetes-list-map-keys");
        if keys.is_empty() {
            self.report(Cause::required(at_keys.clone(), "must not be empty if x-kubernetes-list-type is map"));
        }
        let Some(items) = items else {
            let why = "must have a schema if x-kubernetes-list-type is map";
            self.report(Cause::required(format!("{at}.items"), why));
            return;
        };
        if text(items, "type") != "object" {
            let why = "must be object if parent array's x-kubernetes-list-type is map";
            self.report(Cause::invalid(format!("{at}.items.type"), &json!(text(items, "type")), why));
        }
        let required = items.get("required").and_then(Value::as_array);
        for (index, key) in keys.iter().enumerate() {
            let name = key.as_str().unwrap_or_default();
            let Some(own) = items.get("properties").and_then(|p| p.get(name)).and_then(Value::as_object) else {
                let why = "entries must all be names of item properties";
                self.report(Cause::invalid(format!("{at_keys}[{index}]"), key, why));
                continue;
            };
            let at_own = format!("{at}.items.properties[{name}]");
            if matches!(text(own, "type"), "object" | "array") {
                let why = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                self.report(Cause::invalid(format!("{at_own}.type"), &json!(text(own, "type")), why));
            }
            if flag(own, "nullable") {
                let why = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
                self.report(Cause::forbidden(format!("{at_own}.nullable"), why));
            }
            if own.get("default").is_none() && !required.is_some_and(|r| r.contains(key)) {
                let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                self.report(Cause::required(format!("{at_own}.default"), why));
            }
            if keys.get(..index).is_some_and(|before| before.contains(key)) {
                let message = format!("Duplicate value: {key}");
                self.report(Cause { reason: "FieldValueDuplicate", message, field: format!("{at_keys}[{index}]") });
            }
        }
    }

    fn map(&mut self, map: &Map<String, Value>, at: &str) {
        let Some(kind) = map.get("x-kubernetes-map-type") else { return };
        if text(map, "type") != "object" {
            let why = "must be object if x-kubernetes-map-type is specified";
            self.report(match text(map, "type") {
                "" => Cause::required(format!("{at}.type"), why),
                other => Cause::invalid(format!("{at}.type"), &json!(other), why),
            });
        }
        if !matches!(kind.as_str(), Some("atomic" | "granular")) {
            let field = format!("{at}.x-kubernetes-map-type");
            self.report(unsupported(field, kind, &["atomic", "granular"]));
        }
    }

    fn default(&mut self, schema: &Value, map: &Map<String, Value>, at: &str, level: Level) {
        let Some(default) = map.get("default") else { return };
        let field = format!("{at}.default");
        if matches!(level, Level::Root | Level::Metadata) {
            self.report(Cause::forbidden(field, "must not be set"));
            return;
        }
        let known =
            carrick_api::schema::Schema::of_structural("", &json!({"type": "object", "properties": {"d": schema}}));
        let mut whole = json!({"d": default});
        defaults::apply(&json!({"properties": {"d": schema}}), &mut whole, 0);
        let wrong_type = known.check(&whole).into_iter().next();
        let patterns = Patterns::of(schema);
        let completed = whole.get("d").unwrap_or(default);
        let nullable = flag(map, "nullable") && default.is_null();
        if let Some(finding) = wrong_type.filter(|_| !nullable) {
            // The name that it has here is none.
            let path = finding.path.trim_start_matches('d').trim_start_matches('.').to_owned();
            let finding = carrick_api::schema::FieldError { path: path.clone(), ..finding };
            let field = if path.is_empty() { field } else { format!("{field}.{path}") };
            self.report(Cause { reason: finding.cause(), message: finding.message(), field });
            return;
        }
        for cause in values::check(schema, &patterns, completed) {
            let at = if cause.field.is_empty() { field.clone() } else { format!("{field}.{}", cause.field) };
            self.report(Cause { field: at, ..cause });
        }
    }

    /// A part of `allOf` and its kin says what values may be, and no more; the fields that it speaks of are outside too.
    fn junctor(&mut self, part: &Value, outside: &Map<String, Value>, at: &str, int_or_text: bool, depth: usize) {
        let Some(map) = part.as_object().filter(|_| depth <= DEEPEST) else { return };
        self.unknown(map, at);
        self.pattern(map, at);
        let typed = map.contains_key("type") && !(int_or_text && matches!(text(map, "type"), "integer" | "string"));
        for (field, there, how) in [
            ("type", typed, "empty"),
            ("description", !text(map, "description").is_empty(), "empty"),
            ("title", !text(map, "title").is_empty(), "empty"),
            ("default", map.contains_key("default"), "undefined"),
            ("additionalProperties", map.contains_key("additionalProperties"), "undefined"),
            ("nullable", flag(map, "nullable"), "false"),
            ("x-kubernetes-preserve-unknown-fields", flag(map, "x-kubernetes-preserve-unknown-fields"), "false"),
            ("x-kubernetes-embedded-resource", flag(map, "x-kubernetes-embedded-resource"), "false"),
            ("x-kubernetes-int-or-string", flag(map, "x-kubernetes-int-or-string"), "false"),
            ("x-kubernetes-list-type", map.contains_key("x-kubernetes-list-type"), "undefined"),
            ("x-kubernetes-list-map-keys", map.contains_key("x-kubernetes-list-map-keys"), "empty"),
            ("x-kubernetes-map-type", map.contains_key("x-kubernetes-map-type"), "undefined"),
            ("x-kubernetes-validations", map.contains_key("x-kubernetes-validations"), "empty"),
        ] {
            if there {
                self.report(Cause::forbidden(format!("{at}.{field}"), format!("must be {how} to be structural")));
            }
        }
        let deeper = depth.saturating_add(1);
        for (name, own) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let found = outside.get("properties").and_then(|p| p.get(name)).and_then(Value::as_object);
            let values = outside.get("additionalProperties").and_then(Value::as_object);
            let at = format!("{at}.properties[{name}]");
            match found.or(values) {
                Some(outside) => self.junctor(own, outside, &at, flag(outside, "x-kubernetes-int-or-string"), deeper),
                None => self.undefined(&at),
            }
        }
        if let Some(items) = map.get("items") {
            let at = format!("{at}.items");
            match outside.get("items").and_then(Value::as_object) {
                Some(outside) => self.junctor(items, outside, &at, flag(outside, "x-kubernetes-int-or-string"), deeper),
                None => self.undefined(&at),
            }
        }
        for field in ["allOf", "anyOf", "oneOf"] {
            for (index, part) in map.get(field).and_then(Value::as_array).into_iter().flatten().enumerate() {
                self.junctor(part, outside, &format!("{at}.{field}[{index}]"), int_or_text, deeper);
            }
        }
        if let Some(part) = map.get("not") {
            self.junctor(part, outside, &format!("{at}.not"), false, deeper);
        }
    }

    /// Something that `allOf` and its kin say, and the schema does not.
    fn undefined(&mut self, at: &str) {
        let mut outside = String::new();
        let mut rest = at;
        while let Some((before, after)) = ["allOf[", "anyOf[", "oneOf[", "not."]
            .iter()
            .filter_map(|j| rest.split_once(j))
            .min_by_key(|(b, _)| b.len())
        {
            outside.push_str(before);
            rest = after
                .split_once('.')
                .filter(|(index, _)| index.ends_with(']') && index.len() < 5)
                .map_or(after, |(_, rest)| rest);
        }
        outside.push_str(rest);
        self.report(Cause::required(outside, format!("because it is defined in {at}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_structural_is_named() {
        let told = |field: Value| {
            let causes = check(&json!({"type": "object", "properties": {"f": field}}), "s", false);
            causes.into_iter().map(|c| format!("{}: {}", c.field, c.message)).collect::<Vec<_>>().join("; ")
        };
        for (field, why) in [
            (json!({"type": "string", "default": "a"}), ""),
            (json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}), ""),
            (
                json!({"type": "object", "properties": {"a": {"type": "string"}}, "oneOf": [{"required": ["a"]}, {"not": {"anyOf": [{"required": ["a"]}]}}]}),
                "",
            ),
            (json!({}), "s.properties[f].type: Required value: must not be empty for specified object fields"),
            (
                json!({"type": "string", "default": 1}),
                "s.properties[f].default: Invalid value: \"integer\":  in body must be of type string",
            ),
            (json!({"type": "string", "pattern": "("}), "s.properties[f].pattern: Invalid value"),
            (
                json!({"type": "string", "enum": ["a"], "default": "b"}),
                "s.properties[f].default: Unsupported value: \"b\"",
            ),
            (
                json!({"type": "array", "items": {}}),
                "s.properties[f].items.type: Required value: must not be empty for specified array items",
            ),
            (
                json!({"type": "array", "uniqueItems": true, "items": {"type": "string"}}),
                "s.properties[f].uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
            ),
            (
                json!({"type": "object", "anyOf": [{"properties": {"a": {"enum": ["x"]}}}]}),
                "s.properties[f].properties[a]: Required value: because it is defined in s.properties[f].anyOf[0].properties[a]",
            ),
            (
                json!({"type": "object", "properties": {"a": {"type": "string"}}, "allOf": [{"properties": {"a": {"type": "string"}}}]}),
                "s.properties[f].allOf[0].properties[a].type: Forbidden: must be empty to be structural",
            ),
            (
                json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a"], "items": {"type": "object", "properties": {"a": {"type": "string"}}}}),
                "s.properties[f].items.properties[a].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
            ),
            (
                json!({"type": "object", "x-kubernetes-embedded-resource": true}),
                "s.properties[f].properties: Required value: must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
            ),
            (
                json!({"type": "object", "additionalProperties": {"type": "string"}, "properties": {"a": {"type": "string"}}}),
                "s.properties[f].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive",
            ),
            (
                json!({"type": "string", "x-kubernetes-list-type": "set"}),
                "s.properties[f].type: Invalid value: \"string\": must be array if x-kubernetes-list-type is specified",
            ),
        ] {
            let told = told(field.clone());
            assert!(told.starts_with(why) && why.is_empty() == told.is_empty(), "{field}: {told}");
        }
        let root = check(&json!({"type": "object", "oneOf": [{"required": ["a"]}]}), "s", true);
        assert!(root.iter().any(|c| c.message.contains("if the status subresource is enabled")));
    }
}
