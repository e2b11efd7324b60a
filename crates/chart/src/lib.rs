//! The Helm charts of `charts/`, rendered without Helm: what `carrick install` applies is what `helm install` would.
//!
//! Invariant: one source. Objects are written once, as Helm's templates; `gotemplate` reads the part of the template language that they
//! use and refuses the rest, and a test holds its rendering equal to Helm's. Everything is a function of its arguments; applying the
//! objects, and asking the cluster, is left to the command line.

mod chart;
mod install;
mod order;
mod values;

pub use carrick_gotemplate::merge;
pub use chart::{Chart, Release};
pub use install::{Installation, Piece, Profile, installation};
pub use order::ordered;
pub use values::set;

/// Why a chart does not render.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChartError {
    /// A template uses what is not understood here, or is wrong.
    #[error("{file}: {reason}")]
    Template {
        /// Which file.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// A value is not what it should be. The user's fault.
    #[error("{0}")]
    Values(String),
}
