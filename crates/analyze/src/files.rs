//! Manifests as text → objects that know their file and line.
//!
//! Invariant: a document that cannot be read is told and the others of its file are used; what is no Kubernetes object
//! (a values file, a chart) is a problem only for who asks for one.

use carrick_api::parse::{self, ParseError};
use serde_json::Value;

use crate::objects::Object;

/// A part of a file that was not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileProblem {
    pub file: String,
    pub line: u64,
    pub message: String,
    /// Whether the text cannot be read at all; else it is only no Kubernetes object.
    pub syntax: bool,
    /// Whether it says one of `apiVersion` and `kind`, and so means to be an object.
    pub half: bool,
}

/// Reads a file's objects. Objects without a namespace get `namespace`, unless their kind has none.
pub fn read_file(file: &str, text: &str, namespace: &str) -> (Vec<Object>, Vec<FileProblem>) {
    let (mut objects, mut problems) = (Vec::new(), Vec::new());
    for (start, document) in documents(text) {
        let problem = |line, message, syntax, half| FileProblem { file: file.to_owned(), line, message, syntax, half };
        match parse::documents(document.as_bytes()) {
            Ok(values) => {
                for value in values {
                    flatten(value, &mut |result| match result {
                        Ok(value) => objects.push(placed(value, file, start, &document, namespace)),
                        Err((message, half)) => problems.push(problem(start, message, false, half)),
                    });
                }
            }
            Err(ParseError::Syntax { line, message, .. }) => {
                problems.push(problem(start + line.saturating_sub(1), message, true, false));
            }
            Err(error) => problems.push(problem(start, error.to_string(), true, false)),
        }
    }
    (objects, problems)
}

/// The documents with the number of their first line that says something.
fn documents(text: &str) -> Vec<(u64, String)> {
    let mut all: Vec<(u64, Vec<&str>)> = vec![(1, Vec::new())];
    for (number, line) in (1u64..).zip(text.lines()) {
        if line == "---" || line.starts_with("--- ") {
            all.push((number + 1, Vec::new()));
        } else if let Some((start, lines)) = all.last_mut() {
            // Blank lines and comments before the content belong to nobody.
            if lines.is_empty() && (line.trim().is_empty() || line.starts_with('#')) {
                *start = number + 1;
            } else {
                lines.push(line);
            }
        }
    }
    let filled = all.into_iter().filter(|(_, lines)| !lines.is_empty());
    filled.map(|(start, lines)| (start, lines.join("\n") + "\n")).collect()
}

/// The error of what is no object has whether it means to be one.
fn flatten(value: Value, sink: &mut dyn FnMut(Result<Value, (String, bool)>)) {
    let word = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (version, kind) = (word("apiVersion"), word("kind"));
    if version.is_empty() || kind.is_empty() {
        let missing = if version.is_empty() { "apiVersion" } else { "kind" };
        sink(Err((format!("Object '{missing}' is missing"), version.is_empty() != kind.is_empty())));
        return;
    }
    if kind != "List" && !(kind.ends_with("List") && value.get("items").is_some_and(Value::is_array)) {
        sink(Ok(value));
        return;
    }
    let items = value.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
    for mut item in items {
        // Items of a typed list leave out what the list says for all.
        if let Some(map) = item.as_object_mut().filter(|_| kind != "List") {
            map.entry("apiVersion").or_insert(version.clone().into());
            map.entry("kind").or_insert(kind.trim_end_matches("List").into());
        }
        flatten(item, sink);
    }
}

const CLUSTER_SCOPED: [&str; 14] = [
    "Namespace",
    "Node",
    "PersistentVolume",
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "MutatingWebhookConfiguration",
    "ValidatingWebhookConfiguration",
    "GatewayClass",
    "MeshPolicy",
    "StorageClass",
    "CSIDriver",
    "PriorityClass",
    "ClusterRbacConfig",
];

fn placed(mut value: Value, file: &str, line: u64, document: &str, namespace: &str) -> Object {
    let scoped = value.get("kind").and_then(Value::as_str).is_some_and(|kind| CLUSTER_SCOPED.contains(&kind));
    let own = value.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default().to_owned();
    if own.is_empty() && !scoped {
        let namespace = if namespace.is_empty() { "default" } else { namespace };
        if let Some(map) = value.as_object_mut() {
            let metadata = map.entry("metadata").or_insert_with(|| Value::Object(Default::default()));
            if let Some(metadata) = metadata.as_object_mut() {
                metadata.insert("namespace".into(), namespace.into());
            }
        }
    }
    let mut object = Object::new(value, None);
    object.namespace_given = !own.is_empty();
    object.origin.file = Some(file.to_owned());
    object.origin.line = line;
    object.text = Some(document.to_owned());
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_know_their_line() {
        let text = "# a\n\napiVersion: v1\nkind: Service\nmetadata: {name: a}\n---\n---\nfoo: bar\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n---\na: [\n";
        let (objects, problems) = read_file("f.yaml", text, "ns");
        let shown: Vec<_> = objects.iter().map(|o| (o.origin.friendly_name(), o.origin.line)).collect();
        assert_eq!(shown, [("Service ns/a".to_owned(), 3), ("Namespace b".to_owned(), 10)]);
        assert_eq!(problems.iter().map(|p| p.line).collect::<Vec<_>>(), [8, 14]);
    }

    #[test]
    fn lists_are_opened() {
        let text = "apiVersion: v1\nkind: ServiceList\nitems:\n- metadata: {name: a}\n";
        let (objects, _) = read_file("f", text, "");
        assert_eq!(objects.first().map(|o| o.origin.friendly_name()), Some("Service default/a".to_owned()));
    }
}
