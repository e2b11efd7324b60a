//! Every served resource, as the server needs it: names, versions, scope, subresources, columns, schema.
//!
//! Invariant: a resource is found by `plural.group` or by its URL parts, and a stored object is always in the first
//! (storage) version. The content comes from `carrick-api`'s registry; nothing per kind is written here.
//! What it leaves to others: what objects mean.

use carrick_api::kinds::{Kind, Registry};
use carrick_api::timestamp::Timestamp;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

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
    /// Whether objects are kept; reviews are answered and forgotten.
    pub stored: bool,
    /// Subresources without the resource's name.
    pub subresources: Vec<String>,
    /// Columns, cells and schema.
    pub shape: &'static Kind,
}

impl Resource {
    fn of(kind: &'static Kind) -> Self {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let id = if kind.group.is_empty() { kind.plural.to_owned() } else { format!("{}.{}", kind.plural, kind.group) };
        Self {
            id: id.into(),
            group: kind.group.into(),
            versions: owned(kind.versions),
            kind: kind.kind.into(),
            plural: kind.plural.into(),
            singular: kind.singular.into(),
            short_names: owned(kind.short_names),
            categories: owned(kind.categories),
            namespaced: kind.namespaced,
            has_status: kind.has_status(),
            stored: kind.stored,
            subresources: owned(kind.subresources),
            shape: kind,
        }
    }

    /// The cells of an object's table row.
    pub fn cells(&self, object: &Value, now: std::time::SystemTime) -> Vec<Value> {
        self.shape.cells(object, Timestamp::from_system(now))
    }

    /// Name of the list kind.
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }
    /// `v1` or `group/version` of the stored form.
    pub fn storage_api_version(&self) -> String {
        self.api_version(self.versions.first().map_or("v1", String::as_str))
    }

    /// `v1` or `group/version`.
    pub fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    /// Verbs every stored resource has.
    pub fn verbs(&self) -> &'static [&'static str] {
        self.shape.verbs()
    }
}

/// All resources.
#[derive(Clone, Default)]
pub struct Catalog {
    by_id: Arc<BTreeMap<String, Arc<Resource>>>,
    order: Arc<Vec<Arc<Resource>>>,
}

impl Catalog {
    /// Everything in `carrick-api`'s registry.
    pub fn of(registry: &'static Registry) -> Self {
        Self::new(registry.iter().map(Resource::of).collect())
    }

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
        let owned = |versions: Vec<&str>| versions.into_iter().map(str::to_owned).collect();
        carrick_api::kinds::registry().groups().into_iter().map(|(g, v)| (g.to_owned(), owned(v))).collect()
    }
}
