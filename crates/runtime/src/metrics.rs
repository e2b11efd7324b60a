//! One registry of metrics and its text form.
//!
//! Invariant: the text is OpenMetrics as Prometheus reads it. Names and meanings belong to the crate that counts.

use std::sync::{Arc, Mutex};

pub use prometheus_client;
use prometheus_client::registry::Registry;

/// The `content-type` of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A shared registry.
#[derive(Clone, Default)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers metrics; called once at start by each part.
    pub fn register(&self, f: impl FnOnce(&mut Registry)) {
        f(&mut self.registry.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    }

    /// All metrics as text.
    pub fn render(&self) -> String {
        let registry = self.registry.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::metrics::counter::Counter;

    #[test]
    fn renders_what_is_registered() {
        let metrics = Metrics::new();
        let counter = Counter::<u64>::default();
        metrics.register(|r| r.register("knots", "tied", counter.clone()));
        counter.inc();
        assert!(metrics.render().contains("knots_total 1"), "{}", metrics.render());
    }
}
