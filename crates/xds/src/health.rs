//! What an agent tells of its workload's health, on the stream it has anyway (spec §11.8).
//!
//! Invariant: the form is Istio's: a request of a type of its own that asks for nothing, with an error detail when the workload is ill. It
//! never reaches a session: there are no resources of that type.

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use envoy_types::pb::google::rpc::Status;

/// The type URL.
pub const TYPE_URL: &str = "type.googleapis.com/istio.v1.HealthInformation";
/// `INTERNAL` in gRPC.
const INTERNAL: i32 = 13;

/// A workload's health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It takes traffic.
    Healthy,
    /// It does not, for this reason.
    Ill(String),
}

impl Health {
    /// As a request on a delta stream.
    pub fn request(&self) -> DeltaDiscoveryRequest {
        let error_detail = match self {
            Self::Healthy => None,
            Self::Ill(message) => Some(Status { code: INTERNAL, message: message.clone(), details: Vec::new() }),
        };
        DeltaDiscoveryRequest { type_url: TYPE_URL.to_owned(), error_detail, ..Default::default() }
    }

    fn read(type_url: &str, detail: Option<&Status>) -> Option<Self> {
        (type_url == TYPE_URL).then(|| detail.map_or(Self::Healthy, |status| Self::Ill(status.message.clone())))
    }

    /// Of a request on a delta stream; `None` when it is about something else.
    pub fn of_delta(request: &DeltaDiscoveryRequest) -> Option<Self> {
        Self::read(&request.type_url, request.error_detail.as_ref())
    }

    /// Of a request on a state-of-the-world stream; `None` when it is about something else.
    pub fn of_sotw(request: &DiscoveryRequest) -> Option<Self> {
        Self::read(&request.type_url, request.error_detail.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_states_survive_the_wire() {
        for health in [Health::Healthy, Health::Ill("connection refused".into())] {
            assert_eq!(Health::of_delta(&health.request()), Some(health));
        }
        assert_eq!(Health::of_delta(&DeltaDiscoveryRequest::default()), None);
        assert_eq!(
            Health::of_sotw(&DiscoveryRequest { type_url: TYPE_URL.into(), ..Default::default() }),
            Some(Health::Healthy)
        );
    }
}
