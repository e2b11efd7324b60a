//! Which data planes a scenario is run with.
//!
//! Invariant: every scenario takes the same words.

use carrick_pod::Engine;

/// Which pairs of data planes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Engines {
    /// Native on both sides.
    Native,
    /// Envoy on both sides.
    Envoy,
    /// Native client to Envoy server, and the other way.
    Mixed,
    /// All four pairs.
    All,
}

impl Engines {
    /// Client and server of each run.
    pub fn pairs(self) -> &'static [(Engine, Engine)] {
        use Engine::{Envoy, Native};
        match self {
            Self::Native => &[(Native, Native)],
            Self::Envoy => &[(Envoy, Envoy)],
            Self::Mixed => &[(Native, Envoy), (Envoy, Native)],
            Self::All => &[(Native, Native), (Envoy, Envoy), (Native, Envoy), (Envoy, Native)],
        }
    }
}
