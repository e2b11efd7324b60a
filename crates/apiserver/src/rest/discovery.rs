//! What is served: `/api`, `/apis`, groups and resources, old form and aggregated.
//!
//! Invariant: made from the catalog alone, so that it cannot promise what is not served.
//! What it leaves to others: schemas (`openapi`).

use super::negotiate::Media;
use super::respond::{self, Answer};
use crate::catalog::{Catalog, Resource};
use http::header::{CONTENT_TYPE, HeaderValue, VARY};
use serde_json::{Value, json};
use std::sync::Arc;

/// Which version of aggregated discovery a client prefers over the plain form.
fn aggregated(accept: &str) -> Option<&'static str> {
    for media in Media::list(accept).iter().filter(|m| m.json()) {
        match (media.shape, media.group, media.version) {
            (Some("APIGroupDiscoveryList"), Some("apidiscovery.k8s.io"), Some("v2")) => return Some("v2"),
            (Some("APIGroupDiscoveryList"), Some("apidiscovery.k8s.io"), Some("v2beta1")) => return Some("v2beta1"),
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
            let (name, versions) = catalog.groups().into_iter().find(|(g, _)| !g.is_empty() && g == name)?;
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
        let items: Vec<Value> = catalog
            .groups()
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
        catalog.groups().iter().filter(|(g, _)| !g.is_empty()).map(|(g, versions)| group(g, versions)).collect();
    respond::json(200, &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
}

fn group(name: &str, versions: &[String]) -> Value {
    let versions: Vec<Value> =
        versions.iter().map(|v| json!({"groupVersion": format!("{name}/{v}"), "version": v})).collect();
    json!({"name": name, "versions": versions, "preferredVersion": versions.first()})
}

fn members<'a>(catalog: &Catalog, group: &'a str, version: &'a str) -> impl Iterator<Item = Arc<Resource>> {
    catalog.iter().filter(move |r| r.group == group && r.versions.iter().any(|v| v == version))
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
    let answer = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name, "resources": list});
    Some(respond::json(200, &answer))
}

fn discovered_group(catalog: &Catalog, group: &str, versions: &[String]) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .map(|version| {
            let resources: Vec<Value> = members(catalog, group, version).map(|r| discovered(&r, version)).collect();
            json!({"version": version, "resources": resources, "freshness": "Current"})
        })
        .collect();
    let meta = if group.is_empty() {
        json!({"creationTimestamp": null})
    } else {
        json!({"name": group, "creationTimestamp": null})
    };
    json!({"metadata": meta, "versions": versions})
}

fn discovered(resource: &Resource, version: &str) -> Value {
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": {"group": resource.group, "version": version, "kind": resource.kind},
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
                let (kind, verbs) = subresource(resource, version, name);
                json!({"subresource": name, "responseKind": kind, "verbs": verbs})
            })
            .collect();
        if !list.is_empty() {
            map.insert("subresources".into(), Value::Array(list));
        }
    }
    entry
}
