//! One state-of-the-world xDS stream of a proxy, as a state machine.
//!
//! Invariants (xDS protocol, "ACK/NACK and resource type instance version"; spec §20.3–20.6): at most one unanswered
//! response per type; a request whose nonce is not the last one sent is stale and ignored wholly; every response holds
//! all resources of the type that are asked for; a refused response is not repeated until something in it changes.

use super::status::{Nack, SessionStatus, TypeStatus};
use super::{ProtocolError, check_limits, delta::IDENTIFIER};
use crate::{Resource, ResourceSet, TypeMap, TypeUrl};
use envoy_types::pb::envoy::config::core::v3::ControlPlane;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use envoy_types::util::pack_any;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A stream and everything known of its peer.
#[derive(Debug)]
pub struct SotwSession {
    seed: u64,
    counter: u64,
    target: ResourceSet,
    types: BTreeMap<TypeUrl, SotwType>,
    status: SessionStatus,
}

#[derive(Debug, Default)]
struct SotwType {
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    /// Names were given once: from then on an empty list means nothing, not everything.
    ever_named: bool,
    /// The versions in the last response.
    sent: BTreeMap<Arc<str>, Arc<str>>,
    must_answer: bool,
    /// The last answer was a refusal: the peer may hold nothing of `sent`.
    refused: bool,
    /// Names were given up since the last response: if it is refused, what is left of it may be acceptable.
    narrowed: bool,
    last_nonce: Arc<str>,
    /// The generation of the unanswered response.
    outstanding: Option<u64>,
}

impl SotwSession {
    /// A new stream. `seed` makes its nonces differ from those of other streams.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            counter: 0,
            target: ResourceSet::default(),
            types: BTreeMap::new(),
            status: SessionStatus::default(),
        }
    }

    /// What was sent, acknowledged and refused so far.
    pub fn status(&self) -> &SessionStatus {
        &self.status
    }

    /// Takes a request; gives the responses to send, in order.
    ///
    /// # Errors
    /// [`ProtocolError`] ends the stream.
    pub fn on_request(&mut self, request: &DiscoveryRequest) -> Result<Vec<DiscoveryResponse>, ProtocolError> {
        if request.type_url.is_empty() {
            return Err(ProtocolError::NoType);
        }
        let type_url = TypeUrl::parse(&request.type_url);
        let first = !self.types.contains_key(&type_url);
        check_limits(&type_url, self.types.len().saturating_add(usize::from(first)), request.resource_names.len())?;
        let state = self.types.entry(type_url.clone()).or_default();
        let status = self.status.types.entry(type_url.clone()).or_default();
        if !first && !request.response_nonce.is_empty() {
            if *state.last_nonce != *request.response_nonce {
                return Ok(Vec::new());
            }
            state.answered(request, status);
        }
        state.subscribe(&request.resource_names, first, type_url.legacy_wildcard());
        status.wildcard = state.wildcard;
        status.names = state.names.len();
        Ok(self.pump())
    }

    /// Takes a new target; gives the responses to send, in push order.
    pub fn on_push(&mut self, set: ResourceSet) -> Vec<DiscoveryResponse> {
        self.target = set;
        self.status.target = self.target.generation();
        self.pump()
    }

    fn pump(&mut self) -> Vec<DiscoveryResponse> {
        let mut responses = Vec::new();
        // Generation 0: nothing is known yet.
        if self.target.generation() == 0 {
            return responses;
        }
        let order: Vec<TypeUrl> = self.types.keys().cloned().collect();
        for type_url in order {
            if let Some((response, warming)) = self.pump_type(&type_url) {
                responses.push(response);
                if warming && let Some(endpoints) = self.types.get_mut(&TypeUrl::Endpoint) {
                    // Envoy warms changed clusters until it gets their endpoints after the clusters.
                    endpoints.must_answer |= endpoints.wildcard || !endpoints.names.is_empty();
                }
            }
        }
        self.status.summarize();
        responses
    }

    /// The next response of a type, and whether endpoints have to follow it.
    fn pump_type(&mut self, type_url: &TypeUrl) -> Option<(DiscoveryResponse, bool)> {
        let state = self.types.get_mut(type_url)?;
        let status = self.status.types.entry(type_url.clone()).or_default();
        if state.outstanding.is_some() {
            return None;
        }
        let wanted = state.wanted(type_url, self.target.of(type_url));
        if !state.must_answer && state.equals_sent(&wanted) {
            status.generation = self.target.generation();
            return None;
        }
        let warming = *type_url == TypeUrl::Cluster
            && wanted.iter().any(|r| r.endpoints.is_some() && state.sent.get(&r.name) != Some(&r.version));
        self.counter = self.counter.wrapping_add(1);
        let nonce: Arc<str> = Arc::from(format!("{:x}-{}", self.seed, self.counter));
        status.sent_nonce = nonce.clone();
        status.sent_version = self.target.version().clone();
        status.pushes = status.pushes.saturating_add(1);
        status.resources = wanted.len();
        state.sent = wanted.iter().map(|r| (r.name.clone(), r.version.clone())).collect();
        state.must_answer = false;
        state.narrowed = false;
        state.last_nonce = nonce.clone();
        state.outstanding = Some(self.target.generation());
        let response = DiscoveryResponse {
            version_info: self.target.version().to_string(),
            resources: wanted.iter().map(|r| r.body.clone()).collect(),
            type_url: type_url.as_str().to_owned(),
            nonce: nonce.to_string(),
            control_plane: Some(ControlPlane { identifier: IDENTIFIER.to_owned() }),
            ..Default::default()
        };
        Some((response, warming))
    }
}

impl SotwType {
    /// An answer that carries the last nonce. Repeated ones change nothing.
    fn answered(&mut self, request: &DiscoveryRequest, status: &mut TypeStatus) {
        let Some(generation) = self.outstanding.take() else { return };
        self.refused = request.error_detail.is_some();
        self.must_answer |= self.refused && self.narrowed && (self.wildcard || !self.names.is_empty());
        if let Some(error) = &request.error_detail {
            status.rejects = status.rejects.saturating_add(1);
            status.nack = Some(Nack {
                nonce: self.last_nonce.clone(),
                version: status.sent_version.clone(),
                message: error.message.clone(),
            });
        } else {
            status.acked_nonce = self.last_nonce.clone();
            status.acked_version = status.sent_version.clone();
            status.nack = None;
        }
        status.generation = generation;
    }

    fn subscribe(&mut self, names: &[String], first: bool, legacy_wildcard: bool) {
        self.ever_named |= !names.is_empty();
        let wildcard =
            names.iter().any(|name| name == "*") || (names.is_empty() && legacy_wildcard && !self.ever_named);
        let names: BTreeSet<Arc<str>> =
            names.iter().filter(|name| *name != "*").map(|name| Arc::from(name.as_str())).collect();
        let more = (wildcard && !self.wildcard) || names.difference(&self.names).next().is_some();
        let fewer = self.names.difference(&names).next().is_some();
        if first {
            self.must_answer = wildcard || !names.is_empty();
        } else if more || (fewer && self.refused) {
            self.must_answer = true;
        }
        self.narrowed |= fewer;
        self.wildcard = wildcard;
        self.names = names;
        if !self.wildcard {
            // Dropped names are no reason for a response.
            let names = &self.names;
            self.sent.retain(|name, _| names.contains(name));
            self.must_answer &= !names.is_empty();
        }
    }

    fn wanted(&self, type_url: &TypeUrl, target: Option<&Arc<TypeMap>>) -> Vec<Arc<Resource>> {
        let all = target.into_iter().flat_map(|target| target.values().cloned());
        if self.wildcard {
            return all.collect();
        }
        let named = self.names.iter().map(|name| (name, target.and_then(|target| target.get(name)).cloned()));
        // This variant has no words for "does not exist", and Envoy warms a cluster until it hears of its endpoints.
        if *type_url == TypeUrl::Endpoint {
            return named.map(|(name, found)| found.unwrap_or_else(|| Arc::new(no_endpoints(name)))).collect();
        }
        named.filter_map(|(_, found)| found).collect()
    }

    fn equals_sent(&self, wanted: &[Arc<Resource>]) -> bool {
        wanted.len() == self.sent.len()
            && wanted.iter().all(|r| self.sent.get(&r.name).is_some_and(|version| *version == r.version))
    }
}

fn no_endpoints(name: &Arc<str>) -> Resource {
    let empty = ClusterLoadAssignment { cluster_name: name.to_string(), ..Default::default() };
    Resource::new(name.clone(), pack_any(empty))
}
