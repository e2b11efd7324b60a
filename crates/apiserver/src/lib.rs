//! The embedded Kubernetes-compatible API server: storage, list/watch/patch/apply, discovery, tables, tokens.
//!
//! Invariant: an answer is given only after the write is durable; lists and watches see one global order of revisions.
//! It knows nothing of the mesh: kinds come from `carrick-api`'s registry, per-kind behaviour from `controllers`.
//!
//! Who writes what: `store::Store` is the handle controllers use (`get`/`list`/`watch` are synchronous reads of the last
//! durable state; `create`/`update`/`modify`/`delete` return when durable; resources are named `plural` or `plural.group`,
//! objects are `serde_json::Value` in their storage version). `controllers::admit` defaults and validates,
//! `rbac::Rbac::new(Store)` implements `Authorizer`. Deleting a namespace marks it Terminating and keeps it while
//! `spec.finalizers` is not empty: the namespace controller empties it and then removes that finalizer with `Store::modify`,
//! which removes the object. A placed pod gets its grace period; its runner deletes it with grace 0.
//!
//! Map: `rest` (HTTP) → `auth` (who) → `authorize`/`rbac` (may they) → `admission`/`controllers` (is it good) →
//! `webhooks` (what others say) → `store` (Kubernetes object semantics) → `storage` (durable revisions).

pub mod admission;
mod auth;
pub mod authorize;
pub mod backup;
pub mod catalog;
pub mod check;
pub mod controllers;
mod custom;
pub mod error;
mod metrics;
mod quota;
pub mod rbac;
mod rest;
mod selector;
mod serve;
mod server;
pub mod storage;
pub mod store;
mod webhooks;

pub use admission::{AdmitContext, Operation};
pub use authorize::{Attributes, Authorizer, Decision, Rule, User};
pub use catalog::{Catalog, Resource};
pub use error::{ApiError, ApiResult, Cause, Subject};
#[doc(hidden)]
pub use rest::parse_anything;
pub use server::{ApiOptions, ApiServer, StartError};
pub use store::{DeleteOptions, Event, EventType, List, Store, Watch};
