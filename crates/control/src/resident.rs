//! What a control plane does that lives in a cluster: its authority's key in a Secret, the roots in every namespace, and webhooks that
//! the API server believes.
//!
//! Invariant: nothing here is needed where the embedded API runs in the same process, which does the same by itself.

pub(crate) mod bundle;
mod key;
pub(crate) mod maps;
pub(crate) mod reload;

pub use key::{KeyError, authority};

use std::net::SocketAddr;

use tokio::sync::watch;

use crate::injector::Workloads;
use crate::webhooks::Inject;

/// How it lives there.
#[derive(Clone)]
pub struct Resident {
    /// Name of this control plane among several; `default` for the only one.
    pub revision: String,
    /// Where webhooks are answered.
    pub webhooks: SocketAddr,
    /// Who gives pods their sidecars.
    pub inject: Option<Inject>,
    /// Who knows what gateways of the Gateway API run on; none are deployed without.
    pub workloads: Option<Workloads>,
    /// Whether this replica makes what gateways run on, as one of each revision's does; always if nobody says.
    pub deploys: Option<watch::Receiver<bool>>,
}
