//! The call site of authorization: who asks for what, and the answer.
//!
//! Invariant: the REST layer asks once per request, before it reads the body; nothing but `Decision::Allow` lets it go on.
//! What it leaves to others: the rules (`rbac`).

use std::collections::BTreeMap;

/// An authenticated caller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// `kubernetes-admin`, `system:serviceaccount:ns:name`, `system:anonymous`.
    pub name: String,
    /// Unique id; empty for certificates.
    pub uid: String,
    /// `system:masters`, `system:authenticated`, …
    pub groups: Vec<String>,
    /// More facts, such as the pod a token is bound to.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// The caller who showed nothing.
    pub fn anonymous() -> Self {
        Self { name: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()], ..Self::default() }
    }

    /// Whether the caller is in `group`.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// What is asked for. Resource requests have a `resource`; the others have only `verb` and `path`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `impersonate`; lower-case method for paths.
    pub verb: String,
    /// API group, empty for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural; empty for a non-resource request.
    pub resource: String,
    /// `status`, `token`, … or empty.
    pub subresource: String,
    /// Namespace, empty for cluster scope and for all namespaces.
    pub namespace: String,
    /// Object name, empty for collections.
    pub name: String,
    /// URL path of a non-resource request.
    pub path: String,
}

impl Attributes {
    /// Whether this is about an API resource and not a bare path.
    pub fn is_resource(&self) -> bool {
        !self.resource.is_empty()
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Go on.
    Allow {
        /// Which rule allowed it, for `auth can-i` and the audit; may be empty.
        reason: String,
    },
    /// Refused.
    Deny {
        /// Why; may be empty (no rule matched).
        reason: String,
    },
}

impl Decision {
    /// Whether the request may go on.
    pub fn allowed(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }
}

/// One rule as `kubectl auth can-i --list` shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// Verbs or `*`.
    pub verbs: Vec<String>,
    /// Groups or `*`.
    pub api_groups: Vec<String>,
    /// Resources, `a/b` for subresources, or `*`.
    pub resources: Vec<String>,
    /// Names; empty = all.
    pub resource_names: Vec<String>,
    /// Paths of non-resource rules.
    pub non_resource_urls: Vec<String>,
}

/// Decides; must be quick and must not block on IO: it is called on every request.
pub trait Authorizer: Send + Sync {
    /// The decision for one request.
    fn authorize(&self, user: &User, attributes: &Attributes) -> Decision;

    /// Everything `user` may do in `namespace`, for SelfSubjectRulesReview.
    fn rules(&self, user: &User, namespace: &str) -> Vec<Rule>;
}
