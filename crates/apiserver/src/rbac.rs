//! Role-based authorization: roles and bindings → may this user do that.
//!
//! Invariant: nothing is allowed that no rule allows (`system:masters` apart); a role or binding counts from the moment
//! its write was acknowledged, since the rules catch up with the store's history before each decision.

mod aggregate;
mod defaults;
mod rules;
mod table;

pub use self::aggregate::aggregated;
pub use self::defaults::default_objects;
pub use self::rules::PolicyRule;

use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use self::table::Table;
use crate::authorize::{Attributes, Authorizer, Decision, Rule, User};
use crate::store::Store;

/// The group that may do everything, without any role.
const MASTERS: &str = "system:masters";

/// Role-based authorization over the roles and bindings of a store.
pub struct Rbac {
    store: Store,
    table: Mutex<Table>,
}

impl Rbac {
    /// Reads its rules from `store`.
    pub fn new(store: Store) -> Self {
        Self { store, table: Mutex::default() }
    }

    fn with<T>(&self, decide: impl FnOnce(&Table) -> T) -> Result<T, crate::error::ApiError> {
        // The table is rebuilt from lists when in doubt; a poisoned lock is no reason to refuse everything for ever.
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.catch_up(&self.store)?;
        Ok(decide(&table))
    }

    /// Whether a user may do something to a resource; for checks inside the server.
    pub fn may(&self, user: &User, verb: &str, group: &str, resource: &str, namespace: &str, name: &str) -> bool {
        let attributes = Attributes {
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..Attributes::default()
        };
        self.authorize(user, &attributes).allowed()
    }

    /// Which of the rules the user does not have, in words. A namespace of "" asks for rights in all of them.
    pub fn not_covered(&self, user: &User, namespace: &str, wanted: &[PolicyRule]) -> Vec<String> {
        if user.in_group(MASTERS) {
            return Vec::new();
        }
        let held = self.with(|table| {
            table.rules_of(user, namespace).into_iter().map(|(_, rule)| rule.clone()).collect::<Vec<_>>()
        });
        let held = held.unwrap_or_default();
        // One by one, so that what is told is only what is missing.
        let parts = wanted.iter().flat_map(PolicyRule::parts);
        rules::compact(parts.filter(|rule| !rule.covered_by(&held)).collect()).iter().map(ToString::to_string).collect()
    }
}

impl Authorizer for Rbac {
    fn authorize(&self, user: &User, attributes: &Attributes) -> Decision {
        if user.in_group(MASTERS) {
            return Decision::Allow { reason: String::new() };
        }
        let found = self.with(|table| {
            let rules = table.rules_of(user, &attributes.namespace);
            let found =
                rules.into_iter().find(|(_, rule)| rule.allows(attributes)).map(|(source, _)| source.to_owned());
            found.ok_or_else(|| table.missing(user, &attributes.namespace))
        });
        match found {
            Ok(Ok(source)) => Decision::Allow { reason: format!("RBAC: allowed by {source} to {:?}", user.name) },
            Ok(Err(missing)) if missing.is_empty() => Decision::Deny { reason: String::new() },
            Ok(Err(missing)) => Decision::Deny { reason: format!("RBAC: {}", told(missing)) },
            Err(error) => Decision::Deny { reason: format!("RBAC: the rules cannot be read: {error}") },
        }
    }

    fn rules(&self, user: &User, namespace: &str) -> Vec<Rule> {
        let own =
            self.with(|table| table.rules_of(user, namespace).into_iter().map(|(_, rule)| rule.to_rule()).collect());
        let mut own: Vec<Rule> = own.unwrap_or_default();
        // They may do everything, whatever became of the binding that says so.
        if user.in_group(MASTERS) && !own.iter().any(|rule| rule.verbs == ["*"] && rule.resources == ["*"]) {
            let star = || vec!["*".to_owned()];
            own.push(Rule { verbs: star(), api_groups: star(), resources: star(), ..Rule::default() });
            own.push(Rule { verbs: star(), non_resource_urls: star(), ..Rule::default() });
        }
        own
    }
}

/// Several reasons as one.
fn told(mut reasons: Vec<String>) -> String {
    reasons.dedup();
    match reasons.as_slice() {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

/// Answers a SubjectAccessReview, LocalSubjectAccessReview or SelfSubjectAccessReview: returns it with its `status`.
/// `caller` is the subject of the self form; the others name theirs in the spec.
pub fn subject_access_review(authorizer: &dyn Authorizer, mut review: Value, caller: &User) -> Value {
    let spec = review.get("spec").cloned().unwrap_or_default();
    let itself = review.get("kind").and_then(Value::as_str) == Some("SelfSubjectAccessReview");
    let user = if itself { caller.clone() } else { named_user(&spec) };
    let text = |section: &Value, field: &str| section.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let attributes = match (spec.get("resourceAttributes"), spec.get("nonResourceAttributes")) {
        (Some(resource), _) if resource.is_object() => Attributes {
            verb: text(resource, "verb"),
            group: text(resource, "group"),
            version: text(resource, "version"),
            resource: text(resource, "resource"),
            subresource: text(resource, "subresource"),
            namespace: text(resource, "namespace"),
            name: text(resource, "name"),
            path: String::new(),
        },
        (_, Some(path)) => Attributes { verb: text(path, "verb"), path: text(path, "path"), ..Attributes::default() },
        _ => Attributes::default(),
    };
    let status = match authorizer.authorize(&user, &attributes) {
        Decision::Allow { reason } => json!({ "allowed": true, "reason": reason }),
        Decision::Deny { reason } if reason.is_empty() => json!({ "allowed": false }),
        Decision::Deny { reason } => json!({ "allowed": false, "reason": reason }),
    };
    if let Some(review) = review.as_object_mut() {
        review.insert("status".into(), status);
    }
    review
}

fn named_user(spec: &Value) -> User {
    let list = |value: Option<&Value>| -> Vec<String> {
        value.and_then(Value::as_array).into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let extra = spec.get("extra").and_then(Value::as_object).into_iter().flatten();
    User {
        name: spec.get("user").and_then(Value::as_str).unwrap_or_default().to_owned(),
        uid: spec.get("uid").and_then(Value::as_str).unwrap_or_default().to_owned(),
        groups: list(spec.get("groups")),
        extra: extra.map(|(key, value)| (key.clone(), list(Some(value)))).collect(),
    }
}
