//! The injector's configuration, as the ConfigMap `istio-sidecar-injector` holds it: key `config` (policy, selectors, templates)
//! and key `values`.
//!
//! Invariant: the built-in templates are in this program; a configuration adds fragments of a pod, and Go templates that give such.
//! A Go template with the name of a built-in one is an Istio installation's own copy, and ours is used; one that cannot be executed
//! is an error that names it.

use std::collections::BTreeMap;

use carrick_base::Selector;
use carrick_base::label::Requirement;
use serde_json::Value;

use crate::template::{BUILT_IN, Own, Program};
use crate::values::Values;

/// How pods are injected.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whether a pod that says nothing is injected where its namespace is.
    pub policy_enabled: bool,
    /// Templates of a pod that names none.
    pub default_templates: Vec<String>,
    /// Other names for lists of templates.
    pub aliases: BTreeMap<String, Vec<String>>,
    /// Templates besides the built-in ones.
    pub templates: BTreeMap<String, Own>,
    /// Pods that are never injected unless they ask for it.
    pub never_inject: Vec<Selector>,
    /// Pods that are always injected unless they refuse.
    pub always_inject: Vec<Selector>,
    /// Annotations that every injected pod gets.
    pub injected_annotations: BTreeMap<String, String>,
    pub values: Values,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            policy_enabled: true,
            default_templates: vec!["sidecar".to_owned()],
            aliases: BTreeMap::new(),
            templates: BTreeMap::new(),
            never_inject: Vec::new(),
            always_inject: Vec::new(),
            injected_annotations: BTreeMap::new(),
            values: Values::default(),
        }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Not YAML, or not an object.
    #[error("{what}: {reason}")]
    Unreadable { what: &'static str, reason: String },
    /// `policy` is neither.
    #[error("config: policy {0:?} is neither \"enabled\" nor \"disabled\"")]
    Policy(String),
    /// A Go template that uses what there is not here.
    #[error("config: template {name:?}: {reason}")]
    GoTemplate { name: String, reason: String },
    /// A template that is no pod.
    #[error("config: template {name:?}: {reason}")]
    Template { name: String, reason: String },
    /// A selector that cannot be read.
    #[error("config: {list}[{at}]: {reason}")]
    Selector { list: &'static str, at: usize, reason: String },
}

/// The object in a YAML text; an empty text is an empty object.
fn object(what: &'static str, text: &str) -> Result<Value, SettingsError> {
    let unreadable = |reason: String| SettingsError::Unreadable { what, reason };
    let mut documents = carrick_api::parse::documents(text.as_bytes()).map_err(|e| unreadable(e.to_string()))?;
    match (documents.pop(), documents.is_empty()) {
        (None, _) => Ok(Value::Object(serde_json::Map::new())),
        (Some(value), true) if value.is_object() => Ok(value),
        _ => Err(unreadable("expected one object".to_owned())),
    }
}

impl Settings {
    /// Reads the texts of `config` and `values`.
    ///
    /// # Errors
    /// [`SettingsError`] of the first thing that cannot be used.
    pub fn read(config: &str, values: &str) -> Result<Self, SettingsError> {
        let config = object("config", config)?;
        let values = Values::new(&object("values", values)?);
        let policy_enabled = match config.get("policy").map(crate::values::plain).as_deref() {
            None | Some("" | "enabled") => true,
            Some("disabled") => false,
            Some(other) => return Err(SettingsError::Policy(other.to_owned())),
        };
        let mut default_templates = texts(config.get("defaultTemplates"));
        if default_templates.is_empty() {
            default_templates.push("sidecar".to_owned());
        }
        let fields = |name: &str| config.get(name).and_then(Value::as_object).into_iter().flatten();
        let mut templates = BTreeMap::new();
        for (name, text) in fields("templates") {
            if let Some(own) = template(name, text)? {
                templates.insert(name.clone(), own);
            }
        }
        Ok(Self {
            policy_enabled,
            default_templates,
            aliases: fields("aliases").map(|(name, list)| (name.clone(), texts(Some(list)))).collect(),
            templates,
            never_inject: selectors(&config, "neverInjectSelector")?,
            always_inject: selectors(&config, "alwaysInjectSelector")?,
            injected_annotations: fields("injectedAnnotations")
                .map(|(name, value)| (name.clone(), crate::values::plain(value)))
                .collect(),
            values,
        })
    }
}

fn texts(list: Option<&Value>) -> Vec<String> {
    list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// The template that a text is; `None` for a program under the name of a built-in one.
fn template(name: &str, text: &Value) -> Result<Option<Own>, SettingsError> {
    let value = match text {
        Value::String(text) if text.contains("{{") => {
            if BUILT_IN.contains(&name) || FOR_OTHERS.contains(&name) {
                return Ok(None);
            }
            let program =
                Program::read(text).map_err(|reason| SettingsError::GoTemplate { name: name.to_owned(), reason })?;
            return Ok(Some(Own::Program(program)));
        }
        Value::String(text) => object("template", text)
            .map_err(|error| SettingsError::Template { name: name.to_owned(), reason: error.to_string() })?,
        other => other.clone(),
    };
    let fits = value.as_object().is_some_and(|map| map.keys().all(|key| matches!(key.as_str(), "metadata" | "spec")));
    if fits {
        return Ok(Some(Own::Fragment(value)));
    }
    let reason = "expected a fragment of a pod: metadata, spec".to_owned();
    Err(SettingsError::Template { name: name.to_owned(), reason })
}

/// Istio's templates of what its controllers deploy; they are not for pods that people write.
const FOR_OTHERS: &[&str] = &["waypoint", "kube-gateway", "agentgateway", "agentgateway-waypoint"];

fn selectors(config: &Value, list: &'static str) -> Result<Vec<Selector>, SettingsError> {
    let items = config.get(list).and_then(Value::as_array).into_iter().flatten();
    let read = items
        .enumerate()
        .map(|(at, item)| selector(item).map_err(|reason| SettingsError::Selector { list, at, reason }));
    // An empty selector would select every pod, which nobody means by writing nothing.
    read.filter(|selector| !matches!(selector, Ok(s) if s.is_empty())).collect()
}

/// A selector as Kubernetes' objects write it.
fn selector(value: &Value) -> Result<Selector, String> {
    let mut all = Vec::new();
    for (key, wanted) in value.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
        all.push(Requirement::In(key.clone(), vec![crate::values::plain(wanted)]));
    }
    for expression in value.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
        let key = expression.get("key").and_then(Value::as_str).unwrap_or_default().to_owned();
        let values = texts(expression.get("values"));
        all.push(match expression.get("operator").and_then(Value::as_str).unwrap_or_default() {
            "In" => Requirement::In(key, values),
            "NotIn" => Requirement::NotIn(key, values),
            "Exists" => Requirement::Exists(key),
            "DoesNotExist" => Requirement::NotExists(key),
            other => return Err(format!("operator {other:?} is none of In, NotIn, Exists, DoesNotExist")),
        });
    }
    Ok(Selector::new(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_read() {
        let config = "policy: disabled\ndefaultTemplates: [sidecar, extra]\naliases: {both: [sidecar, extra]}\n\
            neverInjectSelector:\n- matchExpressions: [{key: job, operator: Exists}]\n- {}\n\
            injectedAnnotations: {a/b: c}\ntemplates:\n  sidecar: 'x: {{ .Values }}'\n  extra: |\n    metadata: {labels: {x: y}}\n";
        let settings = Settings::read(config, "{\"global\": {\"hub\": \"h\"}}").unwrap();
        assert!(!settings.policy_enabled);
        assert_eq!(settings.default_templates, ["sidecar", "extra"]);
        assert_eq!(settings.never_inject.len(), 1);
        assert_eq!(settings.templates.keys().collect::<Vec<_>>(), ["extra"]);
        assert_eq!(settings.values.text("global.hub"), "h");
        let plain = Settings::read("", "").unwrap();
        assert!(plain.policy_enabled);
        assert_eq!(plain.default_templates, ["sidecar"]);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let error = |config: &str| Settings::read(config, "").unwrap_err().to_string();
        assert!(
            error("templates: {mine: '{{ fetch .Spec }}'}")
                .contains("template \"mine\": there is no function \"fetch\"")
        );
        assert!(error("templates: {mine: '{{ if .Spec }}'}").contains("template \"mine\": a condition is not ended"));
        assert!(error("templates: {mine: 'kind: Pod'}").contains("expected a fragment of a pod"));
        assert!(error("policy: off").contains("neither"));
        assert!(
            error("neverInjectSelector: [{matchExpressions: [{key: a, operator: Is}]}]")
                .contains("neverInjectSelector[0]")
        );
    }
}
