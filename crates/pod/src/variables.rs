//! The environment of a template's container: literals, fields of the pod, and `$(NAME)` in either.
//!
//! Invariant: pure, and as a kubelet does it: names defined earlier are expanded, unknown ones stay as they are written,
//! `$$` is a dollar. What comes from other objects is refused in words, never left out silently: there is no kubelet here.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Container;
use serde_json::{Value, json};

/// One variable.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) source: Source,
}

/// Where its value comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Source {
    /// Said by the manifest, with references to others.
    Text(String),
    /// Said by the caller: taken as it is.
    Exact(String),
    /// A field of the pod (`fieldRef.fieldPath`).
    Field(String),
}

/// What fields can tell.
pub(crate) struct Facts<'a> {
    pub(crate) name: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) uid: &'a str,
    pub(crate) node: &'a str,
    pub(crate) service_account: &'a str,
    pub(crate) pod_ip: &'a str,
    pub(crate) host_ip: &'a str,
    pub(crate) labels: &'a BTreeMap<String, String>,
    pub(crate) annotations: &'a BTreeMap<String, String>,
}

impl Facts<'_> {
    /// The field's value; `None` for a path that is no field a container may ask for.
    fn field(&self, path: &str) -> Option<String> {
        let entry = |map: &BTreeMap<String, String>, rest: &str| {
            let key = rest.strip_prefix("['")?.strip_suffix("']")?;
            Some(map.get(key).cloned().unwrap_or_default())
        };
        let text = match path {
            "metadata.name" => self.name,
            "metadata.namespace" => self.namespace,
            "metadata.uid" => self.uid,
            "spec.nodeName" => self.node,
            "spec.serviceAccountName" => self.service_account,
            "status.podIP" | "status.podIPs" => self.pod_ip,
            "status.hostIP" | "status.hostIPs" => self.host_ip,
            _ => {
                let labels = path.strip_prefix("metadata.labels").and_then(|rest| entry(self.labels, rest));
                let annotations = || path.strip_prefix("metadata.annotations").and_then(|r| entry(self.annotations, r));
                return labels.or_else(annotations);
            }
        };
        Some(text.to_owned())
    }
}

/// The container's variables, in order: the caller's in the place of those of the same name, and after them.
///
/// # Errors
/// In words, when a variable has a source that cannot be had here and the caller did not give it.
pub(crate) fn of(container: Option<&Container>, given: &[(String, String)]) -> Result<Vec<Variable>, String> {
    let none = BTreeMap::new();
    let known = Facts {
        name: "",
        namespace: "",
        uid: "",
        node: "",
        service_account: "",
        pod_ip: "",
        host_ip: "",
        labels: &none,
        annotations: &none,
    };
    let mut variables = Vec::new();
    for entry in container.and_then(|container| container.env.clone()).unwrap_or_default() {
        let said = given.iter().rev().find(|(name, _)| *name == entry.name);
        let source = match (said, entry.value_from) {
            (Some((_, value)), _) => Source::Exact(value.clone()),
            (None, None) => Source::Text(entry.value.unwrap_or_default()),
            (None, Some(from)) => match from.field_ref {
                Some(field) if known.field(&field.field_path).is_some() => Source::Field(field.field_path),
                other => {
                    let name = &entry.name;
                    let what = other.map_or("another object".to_owned(), |f| format!("field {}", f.field_path));
                    return Err(format!("the value of {name} comes from {what}: give it with --env {name}=…"));
                }
            },
        };
        variables.push(Variable { name: entry.name, source });
    }
    let exact =
        |(name, value): &(String, String)| Variable { name: name.clone(), source: Source::Exact(value.clone()) };
    let more = given.iter().filter(|(name, _)| !variables.iter().any(|known| known.name == *name)).map(exact);
    let more: Vec<Variable> = more.collect();
    variables.extend(more);
    Ok(variables)
}

/// The variables as an object's `env`.
pub(crate) fn object(variables: &[Variable]) -> Vec<Value> {
    let entry = |Variable { name, source }: &Variable| match source {
        Source::Text(value) => json!({"name": name, "value": value}),
        Source::Exact(value) => json!({"name": name, "value": value.replace("$(", "$$(")}),
        Source::Field(path) => {
            json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}})
        }
    };
    variables.iter().map(entry).collect()
}

/// Adds the variables' values to `env`; a name that is there already gets the new value.
pub(crate) fn resolve(variables: &[Variable], facts: &Facts<'_>, env: &mut Vec<(String, String)>) {
    for Variable { name, source } in variables {
        let value = match source {
            Source::Exact(value) => value.clone(),
            Source::Text(text) => expand(text, env),
            Source::Field(path) => facts.field(path).unwrap_or_default(),
        };
        env.retain(|(known, _)| known != name);
        env.push((name.clone(), value));
    }
}

fn expand(text: &str, env: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let reference = after.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        match reference.and_then(|(name, after)| Some((env.iter().find(|(known, _)| known == name)?, after))) {
            Some(((_, value), after)) => {
                out.push_str(value);
                rest = after;
            }
            None => {
                out.push('$');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(env: Value) -> Container {
        serde_json::from_value(json!({"name": "main", "env": env})).unwrap()
    }

    #[test]
    fn as_a_kubelet_does_it() {
        let env = json!([
            {"name": "A", "value": "1"},
            {"name": "B", "value": "$(A)-$(C)-$$(A)-$x-$(A"},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "URL", "value": "http://$(IP):80"},
            {"name": "TIER", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['tier']"}}},
            {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            {"name": "EMPTY"},
        ]);
        let refused = of(Some(&container(env.clone())), &[]).unwrap_err();
        assert_eq!(refused, "the value of S comes from another object: give it with --env S=…");
        let given = [("S".to_owned(), "$(A)".to_owned()), ("A".to_owned(), "2".to_owned())];
        let variables = of(Some(&container(env.clone())), &given[..1]).unwrap();
        let labels = BTreeMap::from([("tier".to_owned(), "back".to_owned())]);
        let facts = Facts {
            name: "p",
            namespace: "n",
            uid: "u",
            node: "m",
            service_account: "s",
            pod_ip: "10.244.0.9",
            host_ip: "10.244.0.1",
            labels: &labels,
            annotations: &BTreeMap::new(),
        };
        let mut env = vec![("A".to_owned(), "0".to_owned())];
        resolve(&variables, &facts, &mut env);
        let value = |name: &str| env.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect::<Vec<_>>();
        assert_eq!(value("A"), ["1"]);
        assert_eq!(value("B"), ["1-$(C)-$(A)-$x-$(A"]);
        assert_eq!(value("URL"), ["http://10.244.0.9:80"]);
        assert_eq!((value("TIER"), value("EMPTY"), value("S")), (vec!["back"], vec![""], vec!["$(A)"]));
        let stored = object(&variables);
        assert_eq!(stored[5], json!({"name": "S", "value": "$$(A)"}));
        assert_eq!(stored[2]["valueFrom"]["fieldRef"]["fieldPath"], "status.podIP");
        let mut env = Vec::new();
        resolve(
            &of(Some(&container(json!([{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)$(S)"}]))), &given)
                .unwrap(),
            &facts,
            &mut env,
        );
        let expected = [("A", "2"), ("B", "2$(S)"), ("S", "$(A)")];
        assert_eq!(
            env,
            expected.map(|(name, value)| (name.to_owned(), value.to_owned())),
            "the caller's, in its place"
        );
        let unknown = json!([{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "status.phase"}}}]);
        assert!(of(Some(&container(unknown)), &[]).unwrap_err().contains("field status.phase"));
    }
}
