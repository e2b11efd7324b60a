//! Header mutations of routes, virtual hosts, route tables, weighted clusters.
//!
//! Invariant: `:`-headers and `host` cannot be targets (rejected by `decode`, as Envoy does). Applying is in `crate::mutate`.

use http::HeaderName;

use super::format::Format;

/// Mutations of one level. Removals come before additions, as in Envoy.
#[derive(Debug, Clone, Default)]
pub struct HeaderOps {
    /// Removed first.
    pub remove: Vec<HeaderName>,
    /// Then added, in order.
    pub add: Vec<HeaderAdd>,
}

impl HeaderOps {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.add.is_empty()
    }
}

/// One addition.
#[derive(Debug, Clone)]
pub struct HeaderAdd {
    /// Name.
    pub name: HeaderName,
    /// Value.
    pub value: Format,
    /// How.
    pub action: AppendAction,
    /// Add although the value is empty.
    pub keep_empty: bool,
}

/// `HeaderAppendAction`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AppendAction {
    /// One more value.
    AppendOrAdd,
    /// Only if absent.
    AddIfAbsent,
    /// Replace, or add.
    Overwrite,
    /// Replace, never add.
    OverwriteIfExists,
}
