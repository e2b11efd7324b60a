//! Roles and bindings in the form that decisions read, kept up to date from the store's history.
//!
//! Invariant: after `catch_up` the table says what the store says. A binding to a role that does not exist grants nothing.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use super::rules::PolicyRule;
use crate::authorize::User;
use crate::error::{ApiError, ApiResult};
use crate::store::{EventType, Store, Watch, name_of, namespace_of};

const SOURCES: [&str; 4] = [
    "roles.rbac.authorization.k8s.io",
    "clusterroles.rbac.authorization.k8s.io",
    "rolebindings.rbac.authorization.k8s.io",
    "clusterrolebindings.rbac.authorization.k8s.io",
];

/// Namespace (empty for cluster scope) and name.
type Place = (String, String);

/// The rules in force.
#[derive(Default)]
pub(super) struct Table {
    watches: Vec<(&'static str, Watch)>,
    roles: HashMap<Place, Vec<PolicyRule>>,
    /// By namespace, then name; cluster bindings are in the empty namespace.
    bindings: BTreeMap<String, BTreeMap<String, Binding>>,
}

struct Binding {
    /// How a decision names it.
    label: String,
    role: Place,
    subjects: Vec<Subject>,
}

enum Subject {
    User(String),
    Group(String),
}

impl Table {
    pub(super) fn catch_up(&mut self, store: &Store) -> ApiResult<()> {
        if self.watches.is_empty() {
            return self.start_over(store);
        }
        let mut changes = Vec::new();
        for (source, watch) in &mut self.watches {
            loop {
                match watch.ready() {
                    Ok(None) => break,
                    Ok(Some(event)) => changes.push((*source, event)),
                    Err(ApiError::Expired(_)) => return self.start_over(store),
                    Err(error) => return Err(error),
                }
            }
        }
        for (source, event) in changes {
            let place = (event.namespace().to_owned(), event.name().to_owned());
            let object = (event.kind != EventType::Deleted).then_some(&*event.object);
            self.set(source, place, object);
        }
        Ok(())
    }

    fn start_over(&mut self, store: &Store) -> ApiResult<()> {
        *self = Self::default();
        for source in SOURCES {
            let list = store.list(source, None);
            for object in &list.items {
                self.set(source, (namespace_of(object).to_owned(), name_of(object).to_owned()), Some(object));
            }
            self.watches.push((source, store.watch(source, list.revision)?));
        }
        Ok(())
    }

    fn set(&mut self, source: &str, place: Place, object: Option<&Value>) {
        let is_role = source.starts_with("roles.") || source.starts_with("clusterroles.");
        match (is_role, object) {
            (true, Some(role)) => _ = self.roles.insert(place, PolicyRule::list(role)),
            (true, None) => _ = self.roles.remove(&place),
            (false, Some(object)) => {
                let binding = Binding::of(object, &place);
                self.bindings.entry(place.0).or_default().insert(place.1, binding);
            }
            (false, None) => {
                if let Some(names) = self.bindings.get_mut(&place.0) {
                    names.remove(&place.1);
                }
            }
        }
    }

    /// The rules that bind a user, cluster-wide and in a namespace, each with the name of its binding.
    pub(super) fn rules_of<'a>(&'a self, user: &User, namespace: &str) -> Vec<(&'a str, &'a PolicyRule)> {
        let scopes: &[&str] = if namespace.is_empty() { &[""] } else { &["", namespace] };
        let bindings = scopes.iter().filter_map(|scope| self.bindings.get(*scope)).flat_map(BTreeMap::values);
        let mut found = Vec::new();
        for binding in bindings.filter(|binding| binding.binds(user)) {
            let rules = self.roles.get(&binding.role).into_iter().flatten();
            found.extend(rules.map(|rule| (binding.label.as_str(), rule)));
        }
        found
    }

    /// Which roles a user is bound to that are not there.
    pub(super) fn missing(&self, user: &User, namespace: &str) -> Vec<String> {
        let scopes: &[&str] = if namespace.is_empty() { &[""] } else { &["", namespace] };
        let bindings = scopes.iter().filter_map(|scope| self.bindings.get(*scope)).flat_map(BTreeMap::values);
        let gone = bindings.filter(|binding| binding.binds(user) && !self.roles.contains_key(&binding.role));
        gone.map(|binding| {
            let kind = if binding.role.0.is_empty() { "clusterrole" } else { "role" };
            format!("{kind}.rbac.authorization.k8s.io {:?} not found", binding.role.1)
        })
        .collect()
    }
}

impl Binding {
    fn of(object: &Value, (namespace, name): &Place) -> Self {
        let text = |value: &Value, field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let reference = object.get("roleRef").cloned().unwrap_or_default();
        let (kind, role) = (text(&reference, "kind"), text(&reference, "name"));
        let role_namespace = if kind == "Role" { namespace.clone() } else { String::new() };
        let subjects = object.get("subjects").and_then(Value::as_array).into_iter().flatten();
        let subjects = subjects.filter_map(|subject| {
            let name = text(subject, "name");
            match text(subject, "kind").as_str() {
                "User" => Some(Subject::User(name)),
                "Group" => Some(Subject::Group(name)),
                "ServiceAccount" => {
                    Some(Subject::User(format!("system:serviceaccount:{}:{name}", text(subject, "namespace"))))
                }
                _ => None,
            }
        });
        let label = if namespace.is_empty() {
            format!("ClusterRoleBinding {name:?} of {kind} {role:?}")
        } else {
            format!("RoleBinding \"{name}/{namespace}\" of {kind} {role:?}")
        };
        Self { label, role: (role_namespace, role), subjects: subjects.collect() }
    }

    fn binds(&self, user: &User) -> bool {
        self.subjects.iter().any(|subject| match subject {
            Subject::User(name) => *name == user.name,
            Subject::Group(group) => user.in_group(group),
        })
    }
}
