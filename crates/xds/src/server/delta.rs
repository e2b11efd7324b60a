//! (being written)
use super::{ProtocolError, SessionStatus};
use crate::ResourceSet;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
pub struct DeltaSession {
    status: SessionStatus,
}
impl DeltaSession {
    pub fn new(_seed: u64) -> Self {
        Self { status: SessionStatus::default() }
    }
    pub fn on_request(&mut self, _r: &DeltaDiscoveryRequest) -> Result<Vec<DeltaDiscoveryResponse>, ProtocolError> {
        Ok(Vec::new())
    }
    pub fn on_push(&mut self, _s: ResourceSet) -> Vec<DeltaDiscoveryResponse> {
        Vec::new()
    }
    pub fn status(&self) -> &SessionStatus {
        &self.status
    }
}
