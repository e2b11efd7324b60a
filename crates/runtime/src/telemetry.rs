//! Logging set-up: one subscriber, text or JSON on standard error, with a level that can be changed while running.
//!
//! Invariant: set up once per process. What is logged, and with which fields, is left to the callers.

use std::sync::Arc;

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level is neither a level nor a list of `target=level`.
    #[error("log level {0:?}: {1}")]
    Level(String, String),
    /// Another subscriber is already there.
    #[error("logging is already set up: {0}")]
    Twice(#[from] TryInitError),
}

type SetLevel = dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync;

/// Changes the level of a running process.
#[derive(Clone)]
pub struct LogHandle {
    set: Arc<SetLevel>,
}

impl std::fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogHandle")
    }
}

impl LogHandle {
    /// Sets `level`: `warn`, or `info,carrick_xds=debug`.
    ///
    /// # Errors
    /// The level does not parse.
    pub fn set_level(&self, level: &str) -> Result<(), TelemetryError> {
        let filter = parse(level)?;
        (self.set)(filter).map_err(|e| TelemetryError::Level(level.to_owned(), e))
    }
}

/// Judges a level before anything is started with it.
///
/// # Errors
/// The level does not parse.
pub fn check(level: &str) -> Result<(), TelemetryError> {
    parse(level).map(|_| ())
}

fn parse(level: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder().parse(level).map_err(|e| TelemetryError::Level(level.to_owned(), e.to_string()))
}

/// Starts logging to standard error at `level`.
///
/// # Errors
/// A level that does not parse, or logging was set up before.
pub fn init(level: &str, json: bool) -> Result<LogHandle, TelemetryError> {
    let (filter, handle) = reload::Layer::new(parse(level)?);
    let registry = tracing_subscriber::registry().with(filter);
    if json {
        registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).try_init()?;
    } else {
        registry.with(fmt::layer().with_ansi(false).with_writer(std::io::stderr)).try_init()?;
    }
    Ok(LogHandle { set: Arc::new(move |filter| handle.reload(filter).map_err(|e| e.to_string())) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_level_is_refused() {
        assert!(parse("info,carrick_xds=debug").is_ok());
        assert!(matches!(parse("a=b=c"), Err(TelemetryError::Level(..))));
    }
}
