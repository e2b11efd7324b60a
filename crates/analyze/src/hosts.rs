//! Hosts that exist: services, service entries, and who sees them.
//!
//! Invariant: a short name belongs to the namespace of the object that says it; a host that several declare is the first
//! one's.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::objects::{Object, Objects, items, number, texts};

/// Suffix of a service's full name.
const CLUSTER: &str = "svc.cluster.local";

/// A host as seen from a namespace.
pub(crate) fn full(namespace: &str, host: &str) -> String {
    if host.starts_with('*') || host.contains('.') { host.to_owned() } else { format!("{host}.{namespace}.{CLUSTER}") }
}

/// Whether two hosts mean a common name; wildcards by their suffixes.
pub(crate) fn overlap(a: &str, b: &str) -> bool {
    match (a.strip_prefix('*'), b.strip_prefix('*')) {
        (Some(a), Some(b)) => a.ends_with(b) || b.ends_with(a),
        (Some(a), None) => b.ends_with(a),
        (None, Some(b)) => a.ends_with(b),
        (None, None) => a == b,
    }
}

/// The namespaces that an `exportTo` names: `*` for all.
pub(crate) fn scopes(export_to: &[&str], namespace: &str) -> Vec<String> {
    if export_to.is_empty() || export_to.contains(&"*") {
        return vec!["*".to_owned()];
    }
    let mut scopes: Vec<String> =
        export_to.iter().map(|scope| if *scope == "." { namespace } else { scope }.to_owned()).collect();
    scopes.sort();
    scopes.dedup();
    scopes
}

/// What is behind a host.
#[derive(Debug, Clone, Default)]
pub(crate) struct Host<'a> {
    /// Port numbers, in the order declared.
    pub(crate) ports: Vec<i64>,
    /// The service entry, when it is one.
    pub(crate) entry: Option<&'a Object>,
}

/// All hosts, by scope and full name.
pub(crate) struct Hosts<'a> {
    known: BTreeMap<(String, String), Host<'a>>,
}

impl<'a> Hosts<'a> {
    pub(crate) fn of(objects: &'a Objects) -> Self {
        let mut known = BTreeMap::new();
        let ports =
            |spec: &Value, field: &str| items(spec, "ports").iter().map(|p| number(p, field)).collect::<Vec<_>>();
        for entry in objects.networking("ServiceEntry") {
            for scope in scopes(&texts(entry.spec(), "exportTo"), entry.namespace()) {
                for host in texts(entry.spec(), "hosts") {
                    let host = full(entry.namespace(), host);
                    let value = Host { ports: ports(entry.spec(), "number"), entry: Some(entry) };
                    known.entry((scope.clone(), host)).or_insert(value);
                }
            }
        }
        for service in objects.of("", "Service") {
            let annotations = service.annotations();
            let export = annotations.get("networking.istio.io/exportTo").copied().unwrap_or_default();
            let export: Vec<&str> = export.split(',').map(str::trim).filter(|scope| !scope.is_empty()).collect();
            for scope in scopes(&export, service.namespace()) {
                let host = full(service.namespace(), service.name());
                known.insert((scope, host), Host { ports: ports(service.spec(), "port"), entry: None });
            }
        }
        Self { known }
    }

    /// The host that an object of a namespace means.
    pub(crate) fn find(&self, namespace: &str, export_to: &[&str], host: &str) -> Option<&Host<'a>> {
        let name = full(namespace, host);
        let mut wanted = vec!["*".to_owned()];
        if export_to.is_empty() {
            wanted.push(namespace.to_owned());
        }
        wanted.extend(export_to.iter().map(|scope| if *scope == "." { namespace } else { scope }.to_owned()));
        if let Some(found) = wanted.into_iter().find_map(|scope| self.known.get(&(scope, name.clone()))) {
            return Some(found);
        }
        let bare = host.trim_start_matches('*');
        let wide = self.known.iter().filter(|((scope, _), _)| scope == "*" || scope == namespace);
        wide.filter_map(|((_, host), value)| Some((host.strip_prefix('*')?, value)))
            .find(|(suffix, _)| bare.ends_with(suffix))
            .map(|(_, value)| value)
    }

    /// Whether a wildcard means any host that exists.
    pub(crate) fn any(&self, pattern: &str) -> bool {
        self.known.keys().any(|(_, host)| overlap(pattern, host))
    }
}

/// Whether a pod is in the mesh: it has a proxy, or will get one.
pub(crate) fn in_mesh(objects: &Objects, object: &Object, template: &str) -> bool {
    const INJECT: &str = "sidecar.istio.io/inject";
    let spec = object.at(&format!("{template}/spec"));
    let mut containers = items(spec, "containers").iter().chain(items(spec, "initContainers"));
    let is_proxy =
        |c: &Value| crate::objects::text(c, "name") == "istio-proxy" && !crate::objects::text(c, "image").is_empty();
    if containers.any(is_proxy) {
        return true;
    }
    for field in ["labels", "annotations"] {
        let wish = object.at(&format!("{template}/metadata/{field}"));
        if let Some(wish) = crate::objects::labels(wish).get(INJECT) {
            return *wish == "true";
        }
    }
    let namespace = objects.namespace_labels(object.namespace()).unwrap_or_default();
    namespace.get("istio-injection") == Some(&"enabled")
}

/// Whether a pod's traffic is taken by the node's proxy.
pub(crate) fn in_ambient(pod: &Object) -> bool {
    pod.annotations().get("ambient.istio.io/redirection") == Some(&"enabled")
}

/// Whether an object is part of Istio itself.
pub(crate) fn is_control_plane(object: &Object) -> bool {
    let labels = object.labels();
    labels.contains_key("istio") || labels.get("release") == Some(&"istio")
}
