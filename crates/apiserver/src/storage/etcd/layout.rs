//! Where objects lie in etcd: the keys that kube-apiserver uses, so that its tools find their way.
//!
//! Invariant: a key and its path say the same, both ways; a path that is none of ours is nobody's object.

use super::super::Key;
use std::collections::HashMap;
use std::sync::Arc;

/// Kubernetes' own resources whose path is not their plural.
const ELSEWHERE: [(&str, &str); 4] = [
    ("services", "services/specs"),
    ("endpoints", "services/endpoints"),
    ("nodes", "minions"),
    ("ingresses.networking.k8s.io", "ingress"),
];
/// Groups of Kubernetes whose resources lie under the group's name all the same.
const GROUPED: [&str; 2] = ["apiextensions.k8s.io", "apiregistration.k8s.io"];

/// The paths under one prefix.
#[derive(Debug, Clone)]
pub struct Layout {
    /// Ends with a slash.
    prefix: String,
    /// Resource → path, of Kubernetes' own resources.
    paths: HashMap<Arc<str>, String>,
    /// The other way.
    resources: HashMap<String, Arc<str>>,
}

impl Layout {
    /// The layout under `prefix` (`/registry`).
    pub fn new(prefix: &str) -> Self {
        let prefix = format!("/{}/", prefix.trim_matches('/'));
        let mut layout = Self { prefix, paths: HashMap::new(), resources: HashMap::new() };
        for kind in carrick_api::kinds::registry().iter().filter(|k| !k.custom && !GROUPED.contains(&k.group)) {
            let id: Arc<str> = if kind.group.is_empty() {
                kind.plural.into()
            } else {
                format!("{}.{}", kind.plural, kind.group).into()
            };
            let special = ELSEWHERE.iter().find(|(resource, _)| *resource == &*id);
            let path = special.map_or(kind.plural, |(_, path)| path);
            // Two kinds of one plural (events of two groups) share the path of the first.
            if layout.resources.contains_key(path) {
                continue;
            }
            layout.paths.insert(id.clone(), path.to_owned());
            layout.resources.insert(path.to_owned(), id);
        }
        layout
    }

    /// What all keys begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A key that is nobody's object, for what replicas tell each other.
    pub fn own(&self, name: &str) -> Vec<u8> {
        // No object lies there: a single segment below a group that has no resources.
        format!("{}carrick.dev/{name}", self.prefix).into_bytes()
    }

    /// Where an object lies.
    pub fn path(&self, key: &Key) -> Vec<u8> {
        let mut path = self.folder(&key.resource);
        if !key.namespace.is_empty() {
            path.push_str(&key.namespace);
            path.push('/');
        }
        path.push_str(&key.name);
        path.into_bytes()
    }

    /// Where the objects of a resource lie; ends with a slash.
    fn folder(&self, resource: &str) -> String {
        match self.paths.get(resource) {
            Some(path) => format!("{}{path}/", self.prefix),
            None => match resource.split_once('.') {
                Some((plural, group)) => format!("{}{group}/{plural}/", self.prefix),
                None => format!("{}{resource}/", self.prefix),
            },
        }
    }

    /// Whose object lies there.
    pub fn key(&self, path: &[u8]) -> Option<Key> {
        let rest = std::str::from_utf8(path).ok()?.strip_prefix(&self.prefix)?;
        let parts: Vec<&str> = rest.split('/').collect();
        if parts.iter().any(|p| p.is_empty()) {
            return None;
        }
        let (first, rest) = parts.split_first()?;
        let (resource, rest): (Arc<str>, &[&str]) = if first.contains('.') {
            let (plural, rest) = rest.split_first()?;
            (format!("{plural}.{first}").into(), rest)
        } else if let Some(resource) = self.resources.get(*first) {
            (resource.clone(), rest)
        } else {
            let (second, rest) = rest.split_first()?;
            (self.resources.get(&format!("{first}/{second}"))?.clone(), rest)
        };
        match rest {
            [name] => Some(Key { resource, namespace: "".into(), name: (*name).into() }),
            [namespace, name] => Some(Key { resource, namespace: (*namespace).into(), name: (*name).into() }),
            _ => None,
        }
    }
}

/// The end of the range of all keys that begin with `prefix`.
pub fn range_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return end;
        }
    }
    // Everything.
    vec![0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_lie_where_kubernetes_has_them() {
        let layout = Layout::new("/registry");
        for (resource, namespace, name, path) in [
            ("pods", "a", "b", "/registry/pods/a/b"),
            ("namespaces", "", "a", "/registry/namespaces/a"),
            ("services", "a", "b", "/registry/services/specs/a/b"),
            ("nodes", "", "a", "/registry/minions/a"),
            ("deployments.apps", "a", "b", "/registry/deployments/a/b"),
            ("leases.coordination.k8s.io", "a", "b", "/registry/leases/a/b"),
            ("endpointslices.discovery.k8s.io", "a", "b", "/registry/endpointslices/a/b"),
            ("clusterroles.rbac.authorization.k8s.io", "", "system:a", "/registry/clusterroles/system:a"),
            (
                "customresourcedefinitions.apiextensions.k8s.io",
                "",
                "things.example.com",
                "/registry/apiextensions.k8s.io/customresourcedefinitions/things.example.com",
            ),
            ("virtualservices.networking.istio.io", "a", "b", "/registry/networking.istio.io/virtualservices/a/b"),
            (
                "gatewayclasses.gateway.networking.k8s.io",
                "",
                "a",
                "/registry/gateway.networking.k8s.io/gatewayclasses/a",
            ),
            ("things.example.com", "a", "b.c", "/registry/example.com/things/a/b.c"),
        ] {
            let key = Key::new(resource, namespace, name);
            assert_eq!(String::from_utf8(layout.path(&key)).unwrap(), path);
            assert_eq!(layout.key(path.as_bytes()), Some(key), "{path}");
        }
        for kind in carrick_api::kinds::registry().iter().filter(|k| k.stored) {
            let id = if kind.group.is_empty() { kind.plural.into() } else { format!("{}.{}", kind.plural, kind.group) };
            let key = Key::new(&id, if kind.namespaced { "a" } else { "" }, "b");
            assert_eq!(layout.key(&layout.path(&key)), Some(key));
        }
        for other in
            ["/registry/pods/a/b/c", "/registry/pods", "/other/pods/a/b", "/registry/pods//b", "/registry/nothing/a/b"]
        {
            assert_eq!(layout.key(other.as_bytes()), None, "{other}");
        }
        assert_eq!(layout.key(&layout.own("tick")), None);
    }

    #[test]
    fn ranges_end_after_their_prefix() {
        assert_eq!(range_end(b"/registry/"), b"/registry0");
        assert_eq!(range_end(&[1, 255]), [2]);
        assert_eq!(range_end(&[255]), [0]);
    }
}
