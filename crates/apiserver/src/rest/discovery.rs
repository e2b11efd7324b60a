//! What is served: `/api`, `/apis`, groups and resources, old form and aggregated.
//!
//! Invariant: made from the catalog alone, so that it cannot promise what is not served.
//! What it leaves to others: schemas (`openapi`).

use super::negotiate::Media;
use super::respond::{self, Answer};
use crate::catalog::{Catalog, Resource};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONTENT_TYPE, HeaderValue, VARY};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::sync::Arc;

/// Which version of aggregated discovery a client prefers over the plain form.
fn aggregated(accept: &str) -> Option<&'static str> {
    for media in Media::list(accept).iter().filter(|m| m.json()) {
        match (media.shape, media.group, media.version) {
            (Some("APIGroupDiscoveryList"), Some("apidiscovery.k8s.io"), Some("v2")) => return Some("v2"),
            (None, _, _) => return None,
            _ => {}
        }
    }
    None
}

/// Answers a discovery path; `None` if it is none.
pub fn answer(catalog: &Catalog, path: &str, accept: &str) -> Option<Answer> {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    match parts.as_slice() {
        ["api"] => Some(root(catalog, accept, true)),
        ["apis"] => Some(root(catalog, accept, false)),
        ["api", version] => resources(catalog, "", version),
        ["apis", name] => {
            let (name, versions) = groups(catalog).into_iter().find(|(g, _)| !g.is_empty() && g == name)?;
            let mut group = group(&name, &versions);
            if let Some(map) = group.as_object_mut() {
                map.insert("kind".into(), json!("APIGroup"));
                map.insert("apiVersion".into(), json!("v1"));
            }
            Some(respond::json(200, &group))
        }
        ["apis", group, version] => resources(catalog, group, version),
        _ => None,
    }
}

fn root(catalog: &Catalog, accept: &str, core: bool) -> Answer {
    if let Some(version) = aggregated(accept) {
        let items: Vec<Value> = groups(catalog)
            .iter()
            .filter(|(g, _)| g.is_empty() == core)
            .map(|(g, versions)| discovered_group(catalog, g, versions))
            .collect();
        let list = json!({
            "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
            "metadata": {}, "items": items,
        });
        let mut answer = respond::json(200, &list);
        let content = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
        if let Ok(value) = HeaderValue::from_str(&content) {
            answer.headers_mut().insert(CONTENT_TYPE, value);
        }
        answer.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
        return answer;
    }
    if core {
        return respond::json(
            200,
            &json!({
                "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [],
            }),
        );
    }
    let groups: Vec<Value> =
        groups(catalog).iter().filter(|(g, _)| !g.is_empty()).map(|(g, versions)| group(g, versions)).collect();
    respond::json(200, &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
}

fn group(name: &str, versions: &[String]) -> Value {
    let versions: Vec<Value> =
        versions.iter().map(|v| json!({"groupVersion": format!("{name}/{v}"), "version": v})).collect();
    json!({"name": name, "versions": versions, "preferredVersion": versions.first()})
}

/// Resources of a version, by their names.
fn members(catalog: &Catalog, group: &str, version: &str) -> Vec<Arc<Resource>> {
    let mut members: Vec<_> =
        catalog.iter().filter(|r| r.group == group && r.versions.iter().any(|v| v == version)).collect();
    members.sort_by(|a, b| a.plural.cmp(&b.plural));
    members
}

/// Groups in the order in which Kubernetes lists its own, which decides between kinds of one name; others follow.
fn groups(catalog: &Catalog) -> Vec<(String, Vec<String>)> {
    const ORDER: [&str; 18] = [
        "",
        "apps",
        "events.k8s.io",
        "authentication.k8s.io",
        "authorization.k8s.io",
        "autoscaling",
        "batch",
        "certificates.k8s.io",
        "networking.k8s.io",
        "policy",
        "rbac.authorization.k8s.io",
        "storage.k8s.io",
        "admissionregistration.k8s.io",
        "apiextensions.k8s.io",
        "scheduling.k8s.io",
        "coordination.k8s.io",
        "node.k8s.io",
        "discovery.k8s.io",
    ];
    let mut groups = catalog.groups();
    groups.sort_by_key(|(name, _)| ORDER.iter().position(|known| known == name).unwrap_or(ORDER.len()));
    groups
}

/// By which clients see that what is stored is the same in another version.
fn storage_hash(resource: &Resource) -> String {
    let version = resource.versions.first().map_or("", String::as_str);
    // Two that Kubernetes stores as something else than they are served as.
    let (group, version) = match (resource.group.as_str(), resource.kind.as_str()) {
        ("events.k8s.io", _) => ("", version),
        ("apiextensions.k8s.io", _) => ("apiextensions.k8s.io", "v1beta1"),
        (group, _) => (group, version),
    };
    let digest = Sha256::digest(format!("{group}/{version}/{}", resource.kind));
    STANDARD.encode(digest.get(..8).unwrap_or_default())
}

/// Kind and verbs of a subresource.
fn subresource(resource: &Resource, version: &str, name: &str) -> (Value, Vec<&'static str>) {
    let own = json!({"group": resource.group, "version": version, "kind": resource.kind});
    match name {
        "token" => (json!({"group": "authentication.k8s.io", "version": "v1", "kind": "TokenRequest"}), vec!["create"]),
        "eviction" => (json!({"group": "policy", "version": "v1", "kind": "Eviction"}), vec!["create"]),
        "finalize" => (own, vec!["update"]),
        "scale" => (json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}), vec!["get", "patch", "update"]),
        "log" => (own, vec!["get"]),
        "attach" | "exec" | "portforward" => {
            let kind = match name {
                "attach" => "PodAttachOptions",
                "exec" => "PodExecOptions",
                _ => "PodPortForwardOptions",
            };
            (json!({"group": "", "version": version, "kind": kind}), vec!["create", "get"])
        }
        _ => (own, vec!["get", "patch", "update"]),
    }
}

fn resources(catalog: &Catalog, group: &str, version: &str) -> Option<Answer> {
    let mut list = Vec::new();
    for resource in members(catalog, group, version) {
        let mut entry = json!({
            "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": resource.verbs(),
        });
        if let Some(map) = entry.as_object_mut() {
            if !resource.short_names.is_empty() {
                map.insert("shortNames".into(), json!(resource.short_names));
            }
            if !resource.categories.is_empty() {
                map.insert("categories".into(), json!(resource.categories));
            }
            if resource.stored {
                map.insert("storageVersionHash".into(), json!(storage_hash(&resource)));
            }
        }
        list.push(entry);
        for name in &resource.subresources {
            let (kind, verbs) = subresource(&resource, version, name);
            let mut entry = json!({
                "name": format!("{}/{name}", resource.plural), "singularName": "",
                "namespaced": resource.namespaced, "kind": kind.get("kind"), "verbs": verbs,
            });
            let foreign = kind.get("group").and_then(Value::as_str) != Some(resource.group.as_str());
            if foreign && let Some(map) = entry.as_object_mut() {
                map.insert("group".into(), kind.get("group").cloned().unwrap_or_default());
                map.insert("version".into(), kind.get("version").cloned().unwrap_or_default());
            }
            list.push(entry);
        }
    }
    if list.is_empty() {
        return None;
    }
    let name = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let mut answer = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": list});
    if let (true, Some(map)) = (group.is_empty(), answer.as_object_mut()) {
        // So it is.
        map.shift_remove("apiVersion");
    }
    Some(respond::json(200, &answer))
}

fn discovered_group(catalog: &Catalog, group: &str, versions: &[String]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| {
            let resources: Vec<Value> =
                members(catalog, group, version).iter().map(|r| discovered(r, version)).collect();
            json!({"version": version, "resources": resources, "freshness": "Current"})
        })
        .collect();
    let meta = if group.is_empty() { json!({}) } else { json!({"name": group}) };
    json!({"metadata": meta, "versions": versions})
}

fn discovered(resource: &Resource, version: &str) -> Value {
    let mut entry = json!({
        "resource": resource.plural,
        // What is of the group and version that it stands under does not name them again.
        "responseKind": {"group": "", "version": "", "kind": resource.kind},
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs(),
    });
    if let Some(map) = entry.as_object_mut() {
        if !resource.short_names.is_empty() {
            map.insert("shortNames".into(), json!(resource.short_names));
        }
        if !resource.categories.is_empty() {
            map.insert("categories".into(), json!(resource.categories));
        }
        let list: Vec<Value> = resource
            .subresources
            .iter()
            .map(|name| {
                let (mut kind, verbs) = subresource(resource, version, name);
                let own = kind.get("group").and_then(Value::as_str) == Some(&resource.group)
                    && kind.get("version").and_then(Value::as_str) == Some(version);
                if let (true, Some(map)) = (own, kind.as_object_mut()) {
                    map.insert("group".into(), json!(""));
                    map.insert("version".into(), json!(""));
                }
                json!({"subresource": name, "responseKind": kind, "verbs": verbs})
            })
            .collect();
        if !list.is_empty() {
            map.insert("subresources".into(), Value::Array(list));
        }
    }
    entry
}
