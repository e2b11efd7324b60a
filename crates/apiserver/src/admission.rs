//! The call site of admission: what defaulting and validation are told about a write.
//!
//! Invariant: admission runs after decoding and authorization, on the object in its storage version, before the store
//! sees it; on a conflict retry it runs again. It may read the store, never write it.
//! What it leaves to others: the rules per kind (`controllers::admit`), the sequence (`rest`).

use crate::authorize::User;
use crate::store::Store;
use serde_json::Value;

/// The kind of write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A new object.
    Create,
    /// A replaced, patched or applied object.
    Update,
    /// A removal; the object given is the one that goes.
    Delete,
}

/// What a rule may look at.
pub struct AdmitContext<'a> {
    /// Every stored object.
    pub store: &'a Store,
    /// `plural` or `plural.group`.
    pub resource: &'a str,
    /// The kind, `Service`.
    pub kind: &'a str,
    /// `""`, `status`, …
    pub subresource: &'a str,
    /// Namespace, empty for cluster scope.
    pub namespace: &'a str,
    /// Who asks.
    pub user: &'a User,
    /// The object before the write, for `Update`.
    pub old: Option<&'a Value>,
    /// Nothing is going to be stored: make no allocation that must be given back.
    pub dry_run: bool,
}
