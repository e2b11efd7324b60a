//! What crosses the threads of an engine: settings, the configuration in force, secrets.
//!
//! Invariant: readers never wait; writers are the engine and the owner of the secrets.

use crate::joint::Joints;
use crate::options::EngineOptions;
use crate::secrets::Secrets;
use arc_swap::ArcSwap;
use carrick_pki::tls::TicketKeys;
use carrick_proxy_core::RuntimeConfig;
use std::sync::Arc;
use tokio::sync::watch;

/// What all workers read.
#[derive(Debug)]
pub(crate) struct Shared {
    pub options: EngineOptions,
    pub config: ArcSwap<RuntimeConfig>,
    pub secrets: watch::Receiver<Arc<Secrets>>,
    /// Keys of session tickets; none where sessions are not taken up.
    pub tickets: Option<Arc<TicketKeys>>,
    pub started: std::time::Instant,
    pub joints: Joints,
}
