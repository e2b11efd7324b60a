//! Why an agent does not run.
//!
//! Invariant: it says what could not be had; never holds key bytes.

/// Why an agent could not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A port, socket or thread could not be had.
    #[error("{what}: {source}")]
    Io {
        /// For what.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A configured value cannot be used.
    #[error("{0}")]
    Config(String),
    /// A part of it panicked; the process must end.
    #[error("the task {0} failed")]
    Task(String),
}
