//! `/openapi/v3`: the schemas, and paths enough for kubectl to see what the server can do.
//!
//! Invariant: documents are made once from the catalog and never change while the server runs, so their hash may be
//! cached for ever by clients. Strategic merge patch is not advertised: clients then use what they have compiled in.
//! What it leaves to others: the component schemas (`carrick-api`).

use super::respond::{self, Answer};
use crate::catalog::{Catalog, Resource};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, ETAG, HeaderValue};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// Documents by `api/v1` or `apis/group/version`.
#[derive(Default)]
pub struct OpenApi {
    documents: OnceLock<BTreeMap<String, (String, Bytes)>>,
}

impl OpenApi {
    fn documents(&self, catalog: &Catalog) -> &BTreeMap<String, (String, Bytes)> {
        self.documents.get_or_init(|| {
            let mut documents = BTreeMap::new();
            for (group, versions) in catalog.groups() {
                for version in versions {
                    let bytes = Bytes::from(respond::line(&document(catalog, &group, &version)));
                    let hash = Sha256::digest(&bytes).iter().take(16).map(|b| format!("{b:02X}")).collect();
                    documents.insert(root_path(&group, &version), (hash, bytes));
                }
            }
            documents
        })
    }

    /// Answers `/openapi/v3…`; `None` for what is not there. Building all documents takes a while the first time, so
    /// call it where blocking is allowed.
    pub fn answer(&self, catalog: &Catalog, path: &str) -> Option<Answer> {
        let rest = path.strip_prefix("/openapi/v3")?;
        let documents = self.documents(catalog);
        if rest.is_empty() {
            let paths: Map<String, Value> = documents
                .iter()
                .map(|(name, (hash, _))| {
                    (name.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{name}?hash={hash}")}))
                })
                .collect();
            return Some(respond::json(200, &json!({"paths": paths})));
        }
        let (hash, bytes) = documents.get(rest.trim_start_matches('/'))?;
        let mut answer = respond::raw(200, "application/json", bytes.clone());
        let headers = answer.headers_mut();
        if let Ok(tag) = HeaderValue::from_str(&format!("\"{hash}\"")) {
            headers.insert(ETAG, tag);
        }
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        Some(answer)
    }
}

fn root_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

fn document(catalog: &Catalog, group: &str, version: &str) -> Value {
    let mut paths = Map::new();
    let mut components = Map::new();
    for resource in catalog.iter().filter(|r| r.group == group && r.versions.iter().any(|v| v == version)) {
        let schema = resource.shape.schema(version);
        for (name, mut component) in schema.openapi_components() {
            if name == schema.root_name()
                && let Some(map) = component.as_object_mut()
            {
                map.insert("x-kubernetes-group-version-kind".into(), json!([kind(resource, version)]));
                components.insert(name, component);
            } else {
                components.entry(name).or_insert(component);
            }
        }
        add_paths(&mut paths, resource, version, &schema.openapi_reference());
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": super::version::GIT_VERSION},
        "paths": paths,
        "components": {"schemas": components},
    })
}

fn kind(resource: &Resource, version: &str) -> Value {
    json!({"group": resource.group, "kind": resource.kind, "version": version})
}

fn add_paths(paths: &mut Map<String, Value>, resource: &Resource, version: &str, schema: &Value) {
    let base = format!("/{}", root_path(&resource.group, version));
    let scope = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{base}{scope}/{}", resource.plural);
    let gvk = kind(resource, version);
    let query = |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}});
    let write = [query("dryRun"), query("fieldManager"), query("fieldValidation")];
    let answers = json!({"200": {"description": "OK", "content": {"application/json": {"schema": schema}}}});
    let operation = |action: &str, parameters: &[Value], bodies: &[&str]| {
        let mut op = json!({
            "x-kubernetes-action": action, "x-kubernetes-group-version-kind": gvk,
            "parameters": parameters, "responses": answers,
        });
        if !bodies.is_empty()
            && let Some(map) = op.as_object_mut()
        {
            let content: Map<String, Value> =
                bodies.iter().map(|b| ((*b).to_owned(), json!({"schema": schema}))).collect();
            map.insert("requestBody".into(), json!({"content": content, "required": true}));
        }
        op
    };
    let mut whole = json!({"post": operation("post", &write, &["application/json"])});
    if resource.stored {
        let mut patch = write.to_vec();
        patch.push(query("force"));
        let bodies = ["application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json"];
        let item = json!({
            "get": operation("get", &[], &[]),
            "put": operation("put", &write, &["application/json"]),
            "patch": operation("patch", &patch, &bodies),
            "delete": operation("delete", &[query("dryRun")], &[]),
        });
        paths.insert(format!("{collection}/{{name}}"), item);
        if let Some(map) = whole.as_object_mut() {
            map.insert("get".into(), operation("list", &[query("labelSelector"), query("fieldSelector")], &[]));
            map.insert("delete".into(), operation("deletecollection", &[query("dryRun")], &[]));
        }
    }
    paths.insert(collection, whole);
}
