//! What a session knows of its peer: per type what was sent, acknowledged and refused.
//!
//! Invariant: `acknowledged` never exceeds `target`, and equals it exactly when the peer has answered everything.

use crate::TypeUrl;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A refused response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nack {
    /// The nonce of the refused response.
    pub nonce: Arc<str>,
    /// Its version.
    pub version: Arc<str>,
    /// The peer's words.
    pub message: String,
}

/// One type on one stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TypeStatus {
    /// The nonce of the last response; empty before the first.
    pub sent_nonce: Arc<str>,
    /// The version text of the last response.
    pub sent_version: Arc<str>,
    /// The nonce of the last accepted response.
    pub acked_nonce: Arc<str>,
    /// The version text of the last accepted response.
    pub acked_version: Arc<str>,
    /// The last response was refused with this.
    pub nack: Option<Nack>,
    /// Whether everything of the type is asked for.
    pub wildcard: bool,
    /// How many names are asked for explicitly.
    pub names: usize,
    /// How many resources the peer has been given.
    pub resources: usize,
    /// Every change of this type up to this generation has been answered.
    pub generation: u64,
    /// Responses sent on this stream.
    pub pushes: u64,
    /// Responses refused on this stream.
    pub rejects: u64,
}

/// All types on one stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SessionStatus {
    /// The generation the proxy is to have.
    pub target: u64,
    /// The generation up to which the proxy has answered everything it asked for (accepted, or refused: see `nack`).
    pub acknowledged: u64,
    /// Per type.
    pub types: BTreeMap<TypeUrl, TypeStatus>,
}

impl SessionStatus {
    /// Whether the last response of some type was refused.
    pub fn refused(&self) -> Option<(&TypeUrl, &Nack)> {
        self.types.iter().find_map(|(t, s)| s.nack.as_ref().map(|n| (t, n)))
    }

    pub(super) fn summarize(&mut self) {
        self.acknowledged = self.types.values().map(|t| t.generation).min().unwrap_or(0).min(self.target);
    }
}
