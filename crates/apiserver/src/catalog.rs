//! Every served resource, as the server needs it: names, versions, scope, subresources, columns, schema.
//!
//! Invariant: a resource is found by `plural.group` or by its URL parts, and a stored object is always in the first
//! (storage) version. The content comes from `carrick-api`'s registry; nothing per kind is written here.
//! What it leaves to others: what objects mean.

use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One printed column.
#[derive(Clone)]
pub struct Column {
    /// Heading as Kubernetes gives it, `Ready`.
    pub name: String,
    /// `string`, `integer`, `date`, …
    pub kind: String,
    /// `name` for the name column, else empty.
    pub format: String,
    /// Shown by `describe`-like clients.
    pub description: String,
    /// 0 = always, 1 = with `-o wide`.
    pub priority: i32,
}

/// Computes the cells of one object, one per column; the time is for ages.
pub type Cells = Arc<dyn Fn(&Value, std::time::SystemTime) -> Vec<Value> + Send + Sync>;

/// One served resource.
#[derive(Clone)]
pub struct Resource {
    /// `plural` or `plural.group`; the store's name for it.
    pub id: Arc<str>,
    /// Group, empty for core.
    pub group: String,
    /// Served versions, the storage version first.
    pub versions: Vec<String>,
    /// Kind.
    pub kind: String,
    /// Plural.
    pub plural: String,
    /// Singular.
    pub singular: String,
    /// Short names.
    pub short_names: Vec<String>,
    /// Categories (`all`).
    pub categories: Vec<String>,
    /// Scope.
    pub namespaced: bool,
    /// Whether `/status` is a subresource, so that status and the rest are written apart.
    pub has_status: bool,
    /// Columns of the table.
    pub columns: Vec<Column>,
    /// Cells of the table.
    pub cells: Cells,
    /// Field tree for strict decoding and OpenAPI.
    pub schema: Arc<()>,
}

impl Resource {
    /// `v1` or `group/version` of the stored form.
    pub fn storage_api_version(&self) -> String {
        self.api_version(self.versions.first().map_or("v1", String::as_str))
    }

    /// `v1` or `group/version`.
    pub fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    /// Whether kubectl and clients know this kind's Go type, so that strategic merge is the patch they send.
    pub fn builtin(&self) -> bool {
        !self.group.contains('.') || self.group.ends_with(".k8s.io")
    }

    /// Verbs every stored resource has.
    pub const VERBS: [&'static str; 8] =
        ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
}

/// All resources.
#[derive(Clone, Default)]
pub struct Catalog {
    by_id: Arc<BTreeMap<String, Arc<Resource>>>,
    order: Arc<Vec<Arc<Resource>>>,
}

impl Catalog {
    /// A catalog of `resources`, in the order they are to be listed.
    pub fn new(resources: Vec<Resource>) -> Self {
        let order: Vec<Arc<Resource>> = resources.into_iter().map(Arc::new).collect();
        let by_id = order.iter().map(|r| (r.id.to_string(), r.clone())).collect();
        Self { by_id: Arc::new(by_id), order: Arc::new(order) }
    }

    /// By `plural.group`.
    pub fn get(&self, id: &str) -> Option<&Arc<Resource>> {
        self.by_id.get(id)
    }

    /// By URL parts; the version must be served.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        let found =
            if group.is_empty() { self.by_id.get(plural) } else { self.by_id.get(&format!("{plural}.{group}")) };
        found.filter(|r| r.versions.iter().any(|v| v == version))
    }

    /// All, in listing order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.order.iter()
    }

    /// Groups with their versions, preferred first, in listing order; core is the empty group.
    pub fn groups(&self) -> Vec<(String, Vec<String>)> {
        let mut groups: Vec<(String, Vec<String>)> = Vec::new();
        for resource in self.order.iter() {
            let index = match groups.iter().position(|(g, _)| *g == resource.group) {
                Some(index) => index,
                None => {
                    groups.push((resource.group.clone(), Vec::new()));
                    groups.len().saturating_sub(1)
                }
            };
            if let Some((_, versions)) = groups.get_mut(index) {
                for version in &resource.versions {
                    if !versions.contains(version) {
                        versions.push(version.clone());
                    }
                }
            }
        }
        groups
    }
}
