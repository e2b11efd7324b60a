//! `/openapi/v3` and `/openapi/v2`: the schemas, and paths enough for kubectl to see what the server can do.
//!
//! Invariant: documents are made from the catalog and only change with it; a document's hash names its content, so that
//! clients may keep it for ever. Strategic merge patch is not advertised: clients then use what they have compiled in.
//! What it leaves to others: the component schemas (`carrick-api`).

mod gnostic;
mod second;

use super::respond::{self, Answer};
use crate::catalog::{Catalog, Resource};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, ETAG, HeaderValue};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Documents by `api/v1` or `apis/group/version`, with their hashes.
type Documents = BTreeMap<String, (String, Bytes)>;

/// What has been made so far.
#[derive(Default)]
pub struct OpenApi {
    /// Of groups that nobody defines kinds in.
    built_in: OnceLock<Documents>,
    /// Of the other groups, at a state of the catalog.
    custom: Mutex<Option<(u64, Arc<Documents>)>>,
    /// Version 2 at a state of the catalog: as JSON and as protobuf.
    second: Mutex<Option<(u64, Bytes, Bytes)>>,
}

fn documents(catalog: &Catalog, wanted: impl Fn(&str) -> bool) -> Documents {
    let mut documents = BTreeMap::new();
    for (group, versions) in catalog.groups().into_iter().filter(|(group, _)| wanted(group)) {
        for version in versions {
            let bytes = Bytes::from(respond::line(&document(catalog, &group, &version)));
            let hash = Sha256::digest(&bytes).iter().take(16).map(|b| format!("{b:02X}")).collect();
            documents.insert(root_path(&group, &version), (hash, bytes));
        }
    }
    documents
}

impl OpenApi {
    fn built_in(&self, catalog: &Catalog) -> &Documents {
        let groups: BTreeSet<&str> = carrick_api::kinds::registry().iter().map(|k| k.group).collect();
        self.built_in.get_or_init(|| documents(catalog, |group| groups.contains(group)))
    }

    fn custom(&self, catalog: &Catalog) -> Arc<Documents> {
        let now = *catalog.changes().borrow();
        let mut made = self.custom.lock().unwrap_or_else(PoisonError::into_inner);
        match &*made {
            Some((at, documents)) if *at == now => documents.clone(),
            _ => {
                let groups: BTreeSet<String> =
                    catalog.iter().filter(|r| r.definition().is_some()).map(|r| r.group.clone()).collect();
                let fresh = Arc::new(documents(catalog, |group| groups.contains(group)));
                *made = Some((now, fresh.clone()));
                fresh
            }
        }
    }

    /// Answers `/openapi/v2`, in protobuf where that is asked for: clients older than version 3 know nothing else.
    pub fn second(&self, catalog: &Catalog, accept: &str) -> Answer {
        let now = *catalog.changes().borrow();
        let mut made = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        if made.as_ref().is_none_or(|(at, ..)| *at != now) {
            let document = second::document(catalog);
            *made = Some((now, respond::line(&document).into(), gnostic::encode(&document).into()));
        }
        let (json, protobuf) = made.as_ref().map(|(_, j, p)| (j.clone(), p.clone())).unwrap_or_default();
        if accept.contains("proto-openapi") || accept.contains("protobuf") {
            // Clients parse this as a media type, in which their own name for it would be an error.
            respond::raw(200, "application/com.github.proto-openapi.spec.v2.v1.0+protobuf", protobuf)
        } else {
            respond::raw(200, "application/json", json)
        }
    }

    /// Answers `/openapi/v3…`; `None` for what is not there. Building all documents takes a while the first time, so
    /// call it where blocking is allowed.
    pub fn answer(&self, catalog: &Catalog, path: &str) -> Option<Answer> {
        let rest = path.strip_prefix("/openapi/v3")?;
        let (built_in, custom) = (self.built_in(catalog), self.custom(catalog));
        if rest.is_empty() {
            let all = built_in.iter().filter(|(name, _)| !custom.contains_key(*name)).chain(custom.iter());
            let paths: Map<String, Value> = all
                .map(|(name, (hash, _))| {
                    (name.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{name}?hash={hash}")}))
                })
                .collect();
            return Some(respond::json(200, &json!({"paths": paths})));
        }
        let name = rest.trim_start_matches('/');
        let (hash, bytes) = custom.get(name).or_else(|| built_in.get(name))?;
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
        let (root, all) = resource.components(version);
        for (name, mut component) in all {
            if name == root
                && let Some(map) = component.as_object_mut()
            {
                map.insert("x-kubernetes-group-version-kind".into(), json!([kind(&resource, version)]));
                components.insert(name, component);
            } else {
                components.entry(name).or_insert(component);
            }
        }
        let reference = json!({"$ref": format!("#/components/schemas/{root}")});
        add_paths(&mut paths, &resource, version, &reference);
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
