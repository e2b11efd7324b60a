//! Every served resource, as the server needs it: names, versions, scope, subresources, columns, schema.
//!
//! Invariant: a resource is found by `plural.group` or by its URL parts, and a stored object is always in the first
//! (storage) version. The content comes from `carrick-api`'s registry and, for kinds that users define, from their
//! CustomResourceDefinitions; nothing per kind is written here.
//! What it leaves to others: what objects mean.

use crate::custom::Definition;
use carrick_api::kinds::{Kind, Registry};
use carrick_api::schema::Schema;
use carrick_api::timestamp::Timestamp;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::watch;

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
    /// How an object of one version becomes one of another.
    pub conversion: Conversion,
    /// Where `/scale` reads and writes, for kinds that have it.
    pub scale: Option<ScalePaths>,
    /// Columns, cells and schema.
    pub shape: Shape,
}

/// Fields of an object that `/scale` shows, as JSON pointers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScalePaths {
    /// How many there should be.
    pub wanted: String,
    /// How many there are.
    pub counted: String,
    /// Their selector: a text, or a label selector.
    pub selector: Option<String>,
}

impl ScalePaths {
    /// Kubernetes' own kinds.
    fn usual() -> Self {
        let owned = |text: &str| text.to_owned();
        Self {
            wanted: owned("/spec/replicas"),
            counted: owned("/status/replicas"),
            selector: Some(owned("/spec/selector")),
        }
    }

    /// A definition's `subresources.scale`, with paths like `.spec.replicas`.
    fn defined(scale: &Value) -> Option<Self> {
        let pointer = |field: &str| {
            let path = scale.get(field)?.as_str()?.strip_prefix('.')?;
            Some(format!("/{}", path.replace('.', "/")))
        };
        Some(Self {
            wanted: pointer("specReplicasPath").filter(|p| p.starts_with("/spec/"))?,
            counted: pointer("statusReplicasPath").filter(|p| p.starts_with("/status/"))?,
            selector: pointer("labelSelectorPath"),
        })
    }
}

/// How versions of a kind differ.
#[derive(Clone)]
pub enum Conversion {
    /// By their name alone.
    Same,
    /// By something that is known here: makes an object one of the version named.
    BuiltIn(fn(&mut Value, &str)),
    /// By what a webhook says: `spec.conversion.webhook`.
    Webhook(Arc<Value>),
}

/// Where a resource's content comes from.
#[derive(Clone)]
pub enum Shape {
    /// Built in.
    Kind(&'static Kind),
    /// Somebody's CustomResourceDefinition.
    Custom(Arc<Definition>),
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
            scale: kind.subresources.contains(&"scale").then(ScalePaths::usual),
            conversion: kind.convert.map_or(Conversion::Same, Conversion::BuiltIn),
            shape: Shape::Kind(kind),
        }
    }

    /// What a CustomResourceDefinition serves; `None` when that is nothing.
    pub fn defined(object: &Value) -> Option<Self> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let texts = |pointer: &str| {
            let list = object.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
            list.filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>()
        };
        let (group, kind, plural) = (text("/spec/group"), text("/spec/names/kind"), text("/spec/names/plural"));
        let is = |version: &Value, field: &str| version.get(field) == Some(&Value::Bool(true));
        let all = object.pointer("/spec/versions").and_then(Value::as_array)?;
        let mut served: Vec<&Value> = all.iter().filter(|v| is(v, "served")).collect();
        served.sort_by_key(|v| !is(v, "storage"));
        let first = *served.first()?;
        let has = |subresource: &str| first.pointer(&format!("/subresources/{subresource}")).is_some();
        let definition = Definition::read(&served, &group, &kind);
        let names = definition.versions();
        if plural.is_empty() || names.is_empty() {
            return None;
        }
        let scale = first.pointer("/subresources/scale").and_then(ScalePaths::defined);
        let served = [("status", has("status")), ("scale", scale.is_some())];
        let subresources = served.into_iter().filter(|(_, is)| *is).map(|(name, _)| name.to_owned()).collect();
        let webhook =
            object.pointer("/spec/conversion/webhook").filter(|_| text("/spec/conversion/strategy") == "Webhook");
        let conversion = webhook.map_or(Conversion::Same, |w| Conversion::Webhook(Arc::new(w.clone())));
        Some(Self {
            id: format!("{plural}.{group}").into(),
            conversion,
            group,
            versions: names,
            kind,
            singular: text("/spec/names/singular"),
            short_names: texts("/spec/names/shortNames"),
            categories: texts("/spec/names/categories"),
            namespaced: text("/spec/scope") == "Namespaced",
            has_status: has("status"),
            stored: true,
            subresources,
            scale,
            plural,
            shape: Shape::Custom(Arc::new(definition)),
        })
    }

    /// The schema at a version.
    pub fn schema(&self, version: &str) -> &Schema {
        match &self.shape {
            Shape::Kind(kind) => kind.schema(version),
            Shape::Custom(definition) => definition.schema(version),
        }
    }

    /// Whether the kind is one that Kubernetes defines by a CRD, built in here or not.
    pub fn is_custom(&self) -> bool {
        match &self.shape {
            Shape::Kind(kind) => kind.custom,
            Shape::Custom(_) => true,
        }
    }

    /// The definition, for kinds that are not built in.
    pub fn definition(&self) -> Option<&Definition> {
        match &self.shape {
            Shape::Kind(_) => None,
            Shape::Custom(definition) => Some(definition),
        }
    }

    /// The columns of a table, as `columnDefinitions`.
    pub fn columns(&self, version: &str) -> Vec<Value> {
        match &self.shape {
            Shape::Kind(kind) => kind
                .columns
                .iter()
                .map(|c| {
                    json!({
                        "name": c.name, "type": c.type_, "format": c.format,
                        "description": c.description, "priority": c.priority,
                    })
                })
                .collect(),
            Shape::Custom(definition) => definition.columns(version),
        }
    }

    /// The cells of an object's table row.
    pub fn cells(&self, version: &str, object: &Value, now: std::time::SystemTime) -> Vec<Value> {
        let now = Timestamp::from_system(now);
        match &self.shape {
            Shape::Kind(kind) => kind.cells(object, now),
            Shape::Custom(definition) => definition.cells(version, object, now),
        }
    }

    /// The OpenAPI components of a version, and the name of the resource's own.
    pub fn components(&self, version: &str) -> (String, Map<String, Value>) {
        let schema = self.schema(version);
        let mut components = schema.openapi_components();
        if let Shape::Custom(definition) = &self.shape {
            components.insert(schema.root_name().to_owned(), definition.component(version));
        }
        (schema.root_name().to_owned(), components)
    }

    /// What whoever uses a version that is going is told.
    pub fn outdated(&self, version: &str) -> Option<String> {
        if &*self.id == "endpoints" {
            return Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice".into());
        }
        self.definition()?.outdated(version).map(|told| {
            told.unwrap_or_else(|| {
                let (own, kind) = (self.api_version(version), &self.kind);
                let newer = self.versions.iter().filter(|v| self.definition().is_some_and(|d| d.outdated(v).is_none()));
                match newer.min_by_key(|v| carrick_api::kinds::version_rank(v)) {
                    Some(newer) => format!("{own} {kind} is deprecated; use {} {kind}", self.api_version(newer)),
                    None => format!("{own} {kind} is deprecated"),
                }
            })
        })
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
        match &self.shape {
            Shape::Kind(kind) => kind.verbs(),
            // In this order.
            Shape::Custom(_) => &["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"],
        }
    }
}

/// The resources at one moment.
#[derive(Default)]
struct Served {
    by_id: BTreeMap<String, Arc<Resource>>,
    order: Vec<Arc<Resource>>,
    built_in: usize,
}

impl Served {
    fn of(built_in: &[Arc<Resource>], custom: impl Iterator<Item = Arc<Resource>>) -> Self {
        let mut order = built_in.to_vec();
        let mut by_id: BTreeMap<_, _> = order.iter().map(|r| (r.id.to_string(), r.clone())).collect();
        for resource in custom {
            // What is built in stays as it is: a CRD of it is kept, but changes nothing.
            if let std::collections::btree_map::Entry::Vacant(free) = by_id.entry(resource.id.to_string()) {
                free.insert(resource.clone());
                order.push(resource);
            }
        }
        Self { by_id, order, built_in: built_in.len() }
    }
}

/// All resources. Clones share them.
#[derive(Clone)]
pub struct Catalog {
    served: Arc<RwLock<Arc<Served>>>,
    changes: watch::Sender<u64>,
}

impl Catalog {
    /// Everything in `carrick-api`'s registry.
    pub fn of(registry: &'static Registry) -> Self {
        Self::new(registry.iter().map(Resource::of).collect())
    }

    /// A catalog of `resources`, in the order they are to be listed.
    pub fn new(resources: Vec<Resource>) -> Self {
        let order: Vec<Arc<Resource>> = resources.into_iter().map(Arc::new).collect();
        let served = Served::of(&order, std::iter::empty());
        Self { served: Arc::new(RwLock::new(Arc::new(served))), changes: watch::Sender::new(0) }
    }

    fn served(&self) -> Arc<Served> {
        self.served.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Serves exactly these kinds beside those that are built in.
    pub fn set_custom(&self, resources: Vec<Resource>) {
        let now = self.served();
        let built_in = now.order.get(..now.built_in).unwrap_or_default();
        let next = Served::of(built_in, resources.into_iter().map(Arc::new));
        *self.served.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Whether a kind comes with the server.
    pub fn is_built_in(&self, id: &str) -> bool {
        self.get(id).is_some_and(|r| matches!(r.shape, Shape::Kind(_)))
    }

    /// Counts changes of what is served.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// By `plural.group`.
    pub fn get(&self, id: &str) -> Option<Arc<Resource>> {
        self.served().by_id.get(id).cloned()
    }

    /// By URL parts; the version must be served.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        let found = if group.is_empty() { self.get(plural) } else { self.get(&format!("{plural}.{group}")) };
        found.filter(|r| r.versions.iter().any(|v| v == version))
    }

    /// All, in listing order.
    pub fn iter(&self) -> std::vec::IntoIter<Arc<Resource>> {
        self.served().order.clone().into_iter()
    }

    /// Groups with their versions, preferred first, in listing order; core is the empty group.
    pub fn groups(&self) -> Vec<(String, Vec<String>)> {
        let mut groups: Vec<(String, Vec<String>)> = Vec::new();
        for resource in self.iter() {
            let index = groups.iter().position(|(g, _)| *g == resource.group).unwrap_or_else(|| {
                groups.push((resource.group.clone(), Vec::new()));
                groups.len().saturating_sub(1)
            });
            let Some((_, versions)) = groups.get_mut(index) else { continue };
            for version in &resource.versions {
                if !versions.contains(version) {
                    versions.push(version.clone());
                }
            }
        }
        for (_, versions) in &mut groups {
            versions.sort_by_key(|v| carrick_api::kinds::version_rank(v));
        }
        groups
    }
}
