//! Kinds that users define: a CustomResourceDefinition as the server acts on it.
//!
//! Invariant: made from a definition that passed admission; immutable, replaced as a whole when the definition changes.
//! A value is defaulted, then its structure, bounds and rules are checked, in Kubernetes' words.
//! What it leaves to others: definitions' own rules (`check`), when they come into force (`controllers::definitions`).

mod cel;
pub mod check;
mod columns;
mod defaults;
mod structural;
mod values;

use crate::error::Cause;
use carrick_api::schema::Schema;
use carrick_api::timestamp::Timestamp;
use columns::Column;
use kube_cel::cel::Program;
use kube_cel::{CompiledSchema, RootContext, Validator, compile_schema};
use serde_json::{Map, Value, json};
use values::Patterns;

/// The resource of definitions.
pub const RESOURCE: &str = "customresourcedefinitions.apiextensions.k8s.io";

/// Kubernetes' own name for what empties a kind before its definition goes.
pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// What a definition says of its versions.
pub struct Definition {
    versions: Vec<Version>,
    group: String,
    kind: String,
}

struct Version {
    name: String,
    /// `openAPIV3Schema`.
    text: Value,
    schema: Schema,
    patterns: Patterns,
    rules: Option<CompiledSchema>,
    columns: Vec<Column>,
    /// Fields that one may select by, `spec.color`.
    selectable: Vec<String>,
    /// Whether it is going, and what its users are told instead of the usual.
    outdated: Option<Option<String>>,
}

/// What the compiler says, with the lines of the source shown as Kubernetes shows them.
fn indented(told: &str) -> String {
    told.replace("\n| ", "\n | ")
}

/// Whether a CEL expression can be used.
///
/// # Errors
/// Why not.
pub fn compile(expression: &str) -> Result<(), String> {
    Program::compile(expression).map(drop).map_err(|e| indented(&e.to_string()))
}

impl Version {
    fn read(version: &Value, group: &str, kind: &str) -> Option<Self> {
        let name = version.get("name").and_then(Value::as_str)?;
        let text = version.pointer("/schema/openAPIV3Schema").cloned().unwrap_or_else(|| json!({}));
        let reversed: Vec<&str> = group.rsplit('.').collect();
        let root = format!("{}.{name}.{kind}", reversed.join("."));
        Some(Self {
            schema: Schema::of_structural(&root, &text),
            patterns: Patterns::of(&text),
            rules: has_rules(&text).then(|| compile_schema(&cel::for_the_runner(&text))),
            columns: columns::read(version),
            selectable: {
                let fields = version.get("selectableFields").and_then(Value::as_array).into_iter().flatten();
                let path = |field: &Value| Some(field.get("jsonPath")?.as_str()?.trim_start_matches('.').to_owned());
                fields.filter_map(path).collect()
            },
            outdated: (version.get("deprecated") == Some(&Value::Bool(true)))
                .then(|| version.get("deprecationWarning").and_then(Value::as_str).map(str::to_owned)),
            name: name.to_owned(),
            text,
        })
    }
}

/// Whether rules could stumble over what is wrong.
fn blocks(causes: &[Cause]) -> bool {
    let reasons = ["NotSupported", "Required", "TooLong", "TooMany", "TypeInvalid"];
    causes.iter().any(|cause| reasons.iter().any(|reason| cause.reason.strip_prefix("FieldValue") == Some(reason)))
}

/// Rules were not asked.
fn unasked() -> Cause {
    let why = "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
    Cause::invalid("<nil>", &Value::Null, why)
}

fn has_rules(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => map.iter().any(|(key, value)| key == "x-kubernetes-validations" || has_rules(value)),
        Value::Array(list) => list.iter().any(has_rules),
        _ => false,
    }
}

impl Definition {
    /// The `served` versions of a definition, the one that is stored first.
    pub fn read(served: &[&Value], group: &str, kind: &str) -> Self {
        let versions = served.iter().filter_map(|v| Version::read(v, group, kind)).collect();
        Self { versions, group: group.to_owned(), kind: kind.to_owned() }
    }

    /// Names of the versions, the one that is stored first.
    pub fn versions(&self) -> Vec<String> {
        self.versions.iter().map(|v| v.name.clone()).collect()
    }

    fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|v| v.name == name).or_else(|| self.versions.first())
    }

    /// The structure at a version.
    pub fn schema(&self, version: &str) -> &Schema {
        static NOTHING: std::sync::LazyLock<Schema> =
            std::sync::LazyLock::new(|| Schema::of_structural("", &json!({})));
        self.version(version).map_or(&NOTHING, |v| &v.schema)
    }

    /// Columns as `columnDefinitions`.
    pub fn columns(&self, version: &str) -> Vec<Value> {
        self.version(version).map(|v| columns::definitions(&v.columns)).unwrap_or_default()
    }

    /// Cells of a row.
    pub fn cells(&self, version: &str, object: &Value, now: Timestamp) -> Vec<Value> {
        self.version(version).map(|v| columns::cells(&v.columns, object, now)).unwrap_or_default()
    }

    /// The schema as an OpenAPI component.
    pub fn component(&self, version: &str) -> Value {
        let mut text = self.version(version).map_or_else(|| json!({}), |v| v.text.clone());
        if let Some(map) = text.as_object_mut() {
            let properties = map.entry("properties").or_insert_with(|| json!({}));
            if let Some(properties) = properties.as_object_mut() {
                let own = [
                    (
                        "apiVersion",
                        json!({"type": "string", "description": "Group and version of this form of the object."}),
                    ),
                    ("kind", json!({"type": "string", "description": "Kind of the object."})),
                    (
                        "metadata",
                        json!({"description": "Standard object's metadata.", "allOf": [
                            {"$ref": "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"},
                        ]}),
                    ),
                ];
                for (name, schema) in own {
                    properties.insert(name.into(), schema);
                }
            }
        }
        text
    }

    /// Fields that one may select by.
    pub fn selectable(&self, version: &str) -> &[String] {
        self.version(version).map_or(&[], |v| &v.selectable)
    }

    /// Fills in what the schema has defaults for.
    pub fn default(&self, version: &str, object: &mut Value) {
        if let Some(version) = self.version(version) {
            defaults::apply(&version.text, object, 0);
        }
    }

    /// Whether a version is going, and what its users are told instead of the usual.
    pub fn outdated(&self, version: &str) -> Option<Option<String>> {
        self.version(version)?.outdated.clone()
    }

    /// What is wrong with a value beyond its structure. What an update does not touch is not held against it.
    pub fn check(&self, version: &str, object: &Value, old: Option<&Value>) -> Vec<Cause> {
        let Some(version) = self.version(version) else { return Vec::new() };
        let mut causes = values::check(&version.text, &version.patterns, object);
        let is_new = |path: &str| match old {
            None => true,
            Some(old) => {
                let pointer = values::pointer(path);
                // Whole objects and lists are new whenever anything in them is.
                old.pointer(&pointer) != object.pointer(&pointer)
            }
        };
        causes.retain(|cause| is_new(&cause.field));
        // Rules are asked only about values of which they can make sense.
        match &version.rules {
            Some(rules) if !blocks(&causes) => {
                let broken = self.broken_rules(version, rules, object, old);
                causes.extend(broken.into_iter().filter(|cause| is_new(&cause.field)));
            }
            Some(_) => causes.push(unasked()),
            None => {}
        }
        causes
    }

    /// What is told besides of a value of which some parts have `wrong` types: the rest, and that rules were not asked.
    pub fn besides(&self, version: &str, object: &Value, wrong: &[Cause]) -> Vec<Cause> {
        let Some(version) = self.version(version) else { return Vec::new() };
        let mut object = object.clone();
        defaults::apply(&version.text, &mut object, 0);
        let mut causes = values::check(&version.text, &version.patterns, &object);
        causes.retain(|cause| !wrong.iter().any(|w| w.field == cause.field));
        if version.rules.is_some() && (blocks(wrong) || blocks(&causes)) {
            causes.push(unasked());
        }
        causes
    }

    fn broken_rules(
        &self,
        version: &Version,
        rules: &CompiledSchema,
        object: &Value,
        old: Option<&Value>,
    ) -> Vec<Cause> {
        let root = RootContext {
            api_version: format!("{}/{}", self.group, version.name),
            api_group: self.group.clone(),
            kind: self.kind.clone(),
        };
        let outcome = Validator::new().validate_compiled_with_context(rules, object, old, Some(&root));
        let Err(errors) = outcome else { return Vec::new() };
        let one = |error: kube_cel::ValidationError| {
            // The value of a map is not shown, nor is one of its fields that the rule names besides.
            let place = |path: &str| object.pointer(&values::pointer(path)).unwrap_or(&Value::Null).clone();
            let named = cel::names_field(&version.text, &error.field_path);
            let value = if named { Value::Object(Map::new()) } else { place(&error.field_path) };
            // A map or a list is not shown.
            let shown = if value.is_object() || value.is_array() { String::new() } else { value.to_string() };
            let (reason, message) = match error.reason.as_deref() {
                Some("FieldValueRequired") => ("FieldValueRequired", format!("Required value: {}", error.message)),
                Some("FieldValueForbidden") => ("FieldValueForbidden", format!("Forbidden: {}", error.message)),
                Some("FieldValueDuplicate") => ("FieldValueDuplicate", format!("Duplicate value: {shown}")),
                _ if shown.is_empty() => ("FieldValueInvalid", format!("Invalid value: {}", error.message)),
                _ => ("FieldValueInvalid", format!("Invalid value: {shown}: {}", error.message)),
            };
            Cause { reason, message, field: error.field_path }
        };
        errors.into_vec().into_iter().map(one).collect()
    }
}

/// A map's text field.
fn text<'a>(map: &'a Map<String, Value>, field: &str) -> &'a str {
    map.get(field).and_then(Value::as_str).unwrap_or_default()
}
