//! All objects at one moment, indexed for the questions views ask.
//!
//! Invariant: immutable and cheap to clone; two parts, of which endpoints can be replaced alone (they change most often).

use std::sync::Arc;

use carrick_base::Diagnostic;

use crate::{EndpointInput, Settings, SnapshotInput};

/// All objects at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    settings: Arc<Settings>,
}

impl Snapshot {
    /// Reads all objects. A broken one disables itself alone and is told of.
    pub fn build(_input: &SnapshotInput) -> (Self, Vec<Diagnostic>) {
        unimplemented!()
    }

    /// The same snapshot with other endpoints and pods.
    #[must_use]
    pub fn with_endpoints(&self, _input: &EndpointInput) -> (Self, Vec<Diagnostic>) {
        unimplemented!()
    }

    /// Settings of the mesh.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}
