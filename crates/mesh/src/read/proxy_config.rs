//! ProxyConfig objects (semantics §15): what pods take when they start.
//!
//! Invariant: nothing here changes a view; a running proxy keeps what it started with.

use carrick_api::ProxyConfig;
use carrick_base::{Diagnostic, Severity};

use super::{finding, origin};
use crate::codes;

/// What of an object has no effect.
pub(crate) fn look(from: &ProxyConfig, found: &mut Vec<Diagnostic>) {
    if from.spec.image.is_some() {
        let message = "there are no images of other types; it changes nothing";
        let origin = origin("ProxyConfig", &from.metadata);
        found.push(finding(&origin, codes::UNSUPPORTED, Severity::Warning, "spec.image", message));
    }
}
