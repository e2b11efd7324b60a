//! `carrick up`: control plane and embedded API in one process.
//!
//! Invariant: everything kept lies under the data folder; what other processes need (packet rules, names) outlives
//! this one.

use std::{path::PathBuf, time::Duration};

use anyhow::Result;

/// What `carrick up` is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder of everything that is kept.
    pub data_dir: PathBuf,
    /// Port of the Kubernetes API, on 127.0.0.1.
    pub api_port: u16,
    /// Port of xDS and the certificate authority.
    pub xds_port: u16,
    /// Port of metrics and debug pages, on 127.0.0.1.
    pub debug_port: u16,
    /// Namespace of the control plane and of mesh-wide policies.
    pub root_namespace: String,
    /// Trust domain of all identities.
    pub trust_domain: String,
    /// Key algorithm of a new root.
    pub ca_key_algorithm: String,
    /// Lifetime of a certificate whose request names none.
    pub workload_cert_ttl: Duration,
    /// Longest lifetime a workload may ask for.
    pub max_workload_cert_ttl: Duration,
    /// MeshConfig file.
    pub mesh_config: Option<PathBuf>,
    /// Whether the host's own name table gets the services.
    pub host_names: bool,
    /// Whether bridge and service rules are made.
    pub network: bool,
    /// What to log.
    pub log: String,
}

/// Runs until told to stop.
///
/// # Errors
/// When a part cannot start.
pub async fn run(options: Options) -> Result<()> {
    let _ = options;
    anyhow::bail!("not there yet")
}
