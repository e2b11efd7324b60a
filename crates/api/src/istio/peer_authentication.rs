//! `PeerAuthentication`: which connections a workload accepts.
//!
//! Invariant: `portLevelMtls` keys are workload ports. Which policy wins is decided in `mesh`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::WorkloadSelector;
use crate::object::Object;
use crate::scalar::{nullable, optional_map, proto_enum};

pub type PeerAuthentication = Object<PeerAuthenticationSpec>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerAuthenticationSpec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// Absent means the same as mode `UNSET`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MutualTls>,
    /// Keyed by workload (target) port. `Some` of an empty map is refused by validation.
    #[serde(deserialize_with = "optional_map", skip_serializing_if = "Option::is_none")]
    pub port_level_mtls: Option<BTreeMap<u32, MutualTls>>,
}

impl PeerAuthenticationSpec {
    /// The mode of the whole policy.
    pub fn mode(&self) -> MutualTlsMode {
        self.mtls.as_ref().map(|m| m.mode).unwrap_or_default()
    }

    /// True when a selector with at least one label is present: such a policy is of the workload level.
    pub fn selects_workloads(&self) -> bool {
        self.selector.as_ref().is_some_and(|s| !s.match_labels.is_empty())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MutualTls {
    #[serde(deserialize_with = "nullable")]
    pub mode: MutualTlsMode,
}

proto_enum! {
    /// What a port accepts.
    pub enum MutualTlsMode {
        /// Inherit from the level above.
        Unset = 0 "UNSET",
        /// Plaintext only.
        Disable = 1 "DISABLE",
        /// Plaintext and mutual TLS.
        Permissive = 2 "PERMISSIVE",
        /// Mutual TLS only.
        Strict = 3 "STRICT",
    } default Unset
}
