//! (being written)
use super::{ProtocolError, SessionStatus};
use crate::ResourceSet;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
pub struct SotwSession {
    status: SessionStatus,
}
impl SotwSession {
    pub fn new(_seed: u64) -> Self {
        Self { status: SessionStatus::default() }
    }
    pub fn on_request(&mut self, _r: &DiscoveryRequest) -> Result<Vec<DiscoveryResponse>, ProtocolError> {
        Ok(Vec::new())
    }
    pub fn on_push(&mut self, _s: ResourceSet) -> Vec<DiscoveryResponse> {
        Vec::new()
    }
    pub fn status(&self) -> &SessionStatus {
        &self.status
    }
}
