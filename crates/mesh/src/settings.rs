//! The mesh's settings, parsed (semantics §15).
//!
//! Invariant: durations are milliseconds, lists are sorted where order means nothing.

use std::sync::Arc;

/// The mesh's settings.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Settings {
    /// The namespace whose policies are mesh-wide.
    pub root_namespace: Arc<str>,
}
