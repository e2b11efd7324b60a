//! Every kind that is served: names, versions, schema, table columns. The registry is the one place that knows them all.
//!
//! Invariant: names, short names and columns are those that Kubernetes and Istio's CRDs have, so that `kubectl`'s output
//! is what people know. Schemas are built when first asked for.

mod cert_manager;
mod columns;
mod gateway_api;
mod istio;
mod kubernetes;
mod print;

use std::collections::BTreeSet;
use std::sync::OnceLock;

use serde_json::Value;

pub use self::columns::Column;
use self::istio::TextShape;
use crate::schema::{Converted, Schema};
use crate::timestamp::Timestamp;

/// One kind, in all its versions.
pub struct Kind {
    /// The API group, empty for the core group.
    pub group: &'static str,
    /// Served versions; the first is the one stored and preferred.
    pub versions: &'static [&'static str],
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    /// False for the review kinds, which are answered and forgotten: only `create` is served.
    pub stored: bool,
    /// Whether the kind is one that Kubernetes defines by a CRD: such kinds know no strategic merge patch, and errors in
    /// them are validation errors rather than decoding errors.
    pub custom: bool,
    /// `status` and others, without the kind's name.
    pub subresources: &'static [&'static str],
    /// Columns of a table; the first is the name.
    pub columns: &'static [Column],
    /// Makes an object one of the version named, where versions differ by more than that.
    pub convert: Option<fn(&mut Value, &str)>,
    shape: Shape,
    cells: fn(&Value, Timestamp) -> Vec<Value>,
    schemas: OnceLock<Vec<Schema>>,
}

enum Shape {
    Kubernetes(fn() -> Converted),
    /// One of Kubernetes' types for each version.
    Versions(&'static [fn() -> Converted]),
    /// Defined by the text files of `schemas/`.
    Text(TextShape),
}

impl Kind {
    /// The storage version.
    pub fn storage_version(&self) -> &'static str {
        self.versions.first().copied().unwrap_or("v1")
    }

    /// `apiVersion` of this kind at a version.
    pub fn api_version(&self, version: &str) -> String {
        if self.group.is_empty() { version.to_owned() } else { format!("{}/{version}", self.group) }
    }

    /// `apiVersion` of the stored form.
    pub fn storage_api_version(&self) -> String {
        self.api_version(self.storage_version())
    }

    /// Whether the version is served.
    pub fn serves(&self, version: &str) -> bool {
        self.versions.contains(&version)
    }

    /// Whether objects have a `status` of their own, written through the subresource only.
    pub fn has_status(&self) -> bool {
        self.subresources.contains(&"status")
    }

    /// The verbs of the main resource, as discovery lists them.
    pub fn verbs(&self) -> &'static [&'static str] {
        // Not all namespaces at once.
        if self.group.is_empty() && self.plural == "namespaces" {
            &["create", "delete", "get", "list", "patch", "update", "watch"]
        } else if self.stored {
            &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
        } else {
            &["create"]
        }
    }

    /// The schema at a version; unserved versions get the storage version's.
    pub fn schema(&self, version: &str) -> &Schema {
        let schemas = self.schemas.get_or_init(|| self.build_schemas());
        let index = self.versions.iter().position(|v| *v == version).unwrap_or(0);
        // `build_schemas` makes one schema per version, and there is at least one version.
        &schemas[index]
    }

    fn build_schemas(&self) -> Vec<Schema> {
        match &self.shape {
            Shape::Kubernetes(convert) => {
                let converted = convert();
                let schema = Schema::new(&converted.root, converted.definitions.into());
                vec![schema; self.versions.len().max(1)]
            }
            Shape::Versions(all) => all
                .iter()
                .map(|convert| {
                    let converted = convert();
                    Schema::new(&converted.root, converted.definitions.into())
                })
                .collect(),
            Shape::Text(shape) => istio::schemas(self, shape),
        }
    }

    /// The cells of an object's row, one per column.
    pub fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        (self.cells)(object, now)
    }
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kind").field("group", &self.group).field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// All kinds.
#[derive(Debug)]
pub struct Registry {
    kinds: Vec<Kind>,
}

/// The registry of everything that is served.
pub fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(|| Registry {
        kinds: kubernetes::kinds()
            .into_iter()
            .chain(istio::kinds())
            .chain(gateway_api::kinds())
            .chain(cert_manager::kinds())
            .collect(),
    })
}

impl Registry {
    /// All kinds, Kubernetes' first.
    pub fn iter(&self) -> std::slice::Iter<'_, Kind> {
        self.kinds.iter()
    }

    /// The kind behind a URL's group and resource.
    pub fn find(&self, group: &str, plural: &str) -> Option<&Kind> {
        self.kinds.iter().find(|k| k.group == group && k.plural == plural)
    }

    /// The kind that an object of this group and kind name is.
    pub fn by_kind(&self, group: &str, kind: &str) -> Option<&Kind> {
        self.kinds.iter().find(|k| k.group == group && k.kind == kind)
    }

    /// The kind of an object, from its `apiVersion` and `kind`. `None` also when the version is not served.
    pub fn of_object(&self, object: &Value) -> Option<&Kind> {
        let (group, version) = split_api_version(object.get("apiVersion")?.as_str()?);
        self.by_kind(group, object.get("kind")?.as_str()?).filter(|k| k.serves(version))
    }

    /// The kind that a user's word means: plural, singular, short name or kind name, in any case, optionally followed by
    /// `.group`.
    pub fn by_word(&self, word: &str) -> Option<&Kind> {
        let word = word.to_ascii_lowercase();
        let (name, group) = match word.split_once('.') {
            Some((name, group)) => (name, Some(group)),
            None => (word.as_str(), None),
        };
        self.kinds.iter().find(|k| {
            let named = k.plural == name || k.singular == name || k.short_names.contains(&name);
            named
                && group
                    .is_none_or(|g| g == k.group || k.group.strip_prefix(g).is_some_and(|rest| rest.starts_with('.')))
        })
    }

    /// The groups with their versions, preferred version first, in the order discovery lists them.
    pub fn groups(&self) -> Vec<(&'static str, Vec<&'static str>)> {
        let mut groups: Vec<(&'static str, Vec<&'static str>)> = Vec::new();
        for kind in &self.kinds {
            let position = groups.iter().position(|(g, _)| *g == kind.group);
            let index = position.unwrap_or_else(|| {
                groups.push((kind.group, Vec::new()));
                groups.len() - 1
            });
            let Some((_, versions)) = groups.get_mut(index) else { continue };
            let known: BTreeSet<&str> = versions.iter().copied().collect();
            versions.extend(kind.versions.iter().filter(|v| !known.contains(**v)));
        }
        for (_, versions) in &mut groups {
            versions.sort_by_key(|v| version_rank(v));
        }
        groups
    }

    /// The kinds of one group and version.
    pub fn in_version<'a>(&'a self, group: &'a str, version: &'a str) -> impl Iterator<Item = &'a Kind> {
        self.kinds.iter().filter(move |k| k.group == group && k.serves(version))
    }
}

/// Splits `group/version`; the core group is empty.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// Kubernetes' order of versions: stable before beta before alpha, newer before older.
pub fn version_rank(version: &str) -> (u8, std::cmp::Reverse<u32>, std::cmp::Reverse<u32>) {
    use std::cmp::Reverse;
    let rest = version.strip_prefix('v').unwrap_or(version);
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (major, stage) = rest.split_at(digits);
    let major = major.parse().unwrap_or(0);
    if let Some(n) = stage.strip_prefix("beta") {
        (1, Reverse(major), Reverse(n.parse().unwrap_or(0)))
    } else if let Some(n) = stage.strip_prefix("alpha") {
        (2, Reverse(major), Reverse(n.parse().unwrap_or(0)))
    } else {
        (0, Reverse(major), Reverse(0))
    }
}
