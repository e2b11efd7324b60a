//! One delta (incremental) xDS stream of a proxy, as a state machine.
//!
//! Invariants (xDS protocol, "Incremental xDS"; spec §20.3–20.6): at most one unanswered response per type, later
//! changes wait and merge; a resource is sent when the peer does not hold its version, asks for it again, or has to warm
//! a cluster with it; an answer with a nonce other than the last counts for its subscriptions only. A refused response
//! is not repeated until something of its type changes, and then goes out again whole, because the peer may have kept
//! none of it. Which peers may see what, and time, are the business of others.

use super::held::{Held, Holding};
use super::names::{NameSets, Names};
use super::status::{Nack, SessionStatus, TypeStatus};
use super::wire::DeltaResponse;
use super::{ProtocolError, check_limits};
use crate::{Changes, Resource, ResourceSet, TypeMap, TypeUrl};
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// A stream and everything known of its peer.
#[derive(Debug)]
pub struct DeltaSession {
    seed: u64,
    counter: u64,
    target: ResourceSet,
    types: BTreeMap<TypeUrl, DeltaType>,
    /// Endpoints that have to be sent because a cluster that uses them was sent after they were. Envoy keeps a new or
    /// changed cluster warming, and its answer back, until it gets them, but does not ask when it holds them.
    owed: BTreeSet<Arc<str>>,
    status: SessionStatus,
    name_sets: Arc<NameSets>,
}

#[derive(Debug, Default)]
struct DeltaType {
    wildcard: bool,
    /// Names asked for explicitly.
    names: Names,
    held: Held,
    /// Names to send again although the peer holds them.
    again: BTreeSet<Arc<str>>,
    /// Refused when sent alone: not sent again before they change.
    refused: BTreeSet<Arc<str>>,
    /// Refused together with others and not tried alone: go with the next change.
    suspects: BTreeSet<Arc<str>>,
    /// Parts of refused responses to be tried by themselves.
    retry: VecDeque<Vec<Arc<str>>>,
    /// How many more such parts a change may cost.
    retries_left: u32,
    /// The peer waits for an answer even if it is empty.
    must_answer: bool,
    outstanding: Option<Outstanding>,
    /// A response that was not answered in time; its answer still counts until another response goes out.
    late: Option<Outstanding>,
    /// What is held is what the shared set of `held` says, but for names in `again`.
    settled: bool,
}

#[derive(Debug)]
struct Outstanding {
    nonce: Arc<str>,
    generation: u64,
    /// Nothing was left out of it.
    complete: bool,
    names: Vec<Arc<str>>,
}

/// Responses that finding the refused resources of one change may cost: enough for a few bad ones among thousands.
const MAX_RETRIES: u32 = 64;

/// What a response would hold.
#[derive(Debug, Default)]
struct Difference {
    upserts: Vec<Arc<Resource>>,
    removed: Vec<Arc<str>>,
    /// Removals kept back until nothing refers to the resources any more.
    deferred: bool,
}

impl Difference {
    fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removed.is_empty()
    }
}

impl DeltaSession {
    /// A new stream. `seed` makes its nonces differ from those of other streams.
    pub fn new(seed: u64) -> Self {
        Self::sharing(seed, Arc::default())
    }

    /// The same, which has its names in common with other streams.
    pub fn sharing(seed: u64, name_sets: Arc<NameSets>) -> Self {
        Self {
            seed,
            counter: 0,
            target: ResourceSet::default(),
            types: BTreeMap::new(),
            owed: BTreeSet::new(),
            status: SessionStatus::default(),
            name_sets,
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
    pub fn on_request(&mut self, request: &DeltaDiscoveryRequest) -> Result<Vec<DeltaResponse>, ProtocolError> {
        if request.type_url.is_empty() {
            return Err(ProtocolError::NoType);
        }
        let type_url = TypeUrl::parse(&request.type_url);
        let first = !self.types.contains_key(&type_url);
        let names = self.types.get(&type_url).map_or(0, |t| t.names.len());
        check_limits(
            &type_url,
            self.types.len().saturating_add(usize::from(first)),
            names
                .saturating_add(request.resource_names_subscribe.len())
                .saturating_add(request.initial_resource_versions.len()),
        )?;
        // Envoy asks for clusters first, except while it warms some that an earlier stream sent: then only their endpoints,
        // sent whether it holds them or not, let it go on.
        let untold = first && type_url == TypeUrl::Endpoint && !self.types.contains_key(&TypeUrl::Cluster);
        let state = self.types.entry(type_url.clone()).or_default();
        let status = self.status.types.entry(type_url.clone()).or_default();
        if !request.response_nonce.is_empty() {
            state.answered(request, status);
        }
        state.subscribe(request, first && type_url.legacy_wildcard(), first, self.target.of(&type_url));
        state.names.share(&self.name_sets);
        if untold {
            state.held.clear();
        }
        status.wildcard = state.wildcard;
        status.names = state.names.len();
        Ok(self.pump())
    }

    /// Takes a new target; gives the responses to send, in push order.
    pub fn on_push(&mut self, set: ResourceSet) -> Vec<DeltaResponse> {
        self.target = set;
        self.status.target = self.target.generation();
        self.pump()
    }

    /// The nonces of unanswered responses.
    pub fn unanswered(&self) -> Vec<Arc<str>> {
        self.types.values().filter_map(|state| state.outstanding.as_ref()).map(|o| o.nonce.clone()).collect()
    }

    /// Waits no longer for these answers: Envoy keeps the answer to clusters back until they are warm, which may be never. What has changed since
    /// goes out; what was sent counts as acknowledged only when the answer comes after all.
    pub fn give_up(&mut self, nonces: &[Arc<str>]) -> Vec<DeltaResponse> {
        for state in self.types.values_mut() {
            if let Some(outstanding) = state.outstanding.take_if(|o| nonces.contains(&o.nonce)) {
                state.late = Some(outstanding);
            }
        }
        self.pump()
    }

    fn pump(&mut self) -> Vec<DeltaResponse> {
        let mut responses = Vec::new();
        // Generation 0: nothing is known yet, so nothing is told, least of all that something does not exist.
        if self.target.generation() == 0 {
            return responses;
        }
        // What refers to clusters comes first into force: only then do clusters and their endpoints go away.
        let defer = self.referrers_busy();
        self.pass(defer, &mut responses);
        // The last of it may have turned out to need no response; nothing else would bring the rest about.
        if defer && !self.referrers_busy() {
            self.pass(false, &mut responses);
        }
        self.status.summarize();
        responses
    }

    fn pass(&mut self, defer: bool, responses: &mut Vec<DeltaResponse>) {
        let order: Vec<TypeUrl> = self.types.keys().cloned().collect();
        for type_url in order {
            if type_url == TypeUrl::Endpoint {
                self.pay();
            }
            let defer = defer && matches!(type_url, TypeUrl::Cluster | TypeUrl::Endpoint);
            responses.extend(self.pump_type(&type_url, defer));
        }
    }

    fn referrers_busy(&self) -> bool {
        self.busy(&TypeUrl::Listener) || self.busy(&TypeUrl::Route)
    }

    /// Whether a type has something on its way to the peer, or about to be.
    fn busy(&self, type_url: &TypeUrl) -> bool {
        self.types.get(type_url).is_some_and(|state| {
            state.outstanding.is_some()
                || !state.retry.is_empty()
                || !state.difference(self.target.of(type_url), self.target.changes(type_url), false).is_empty()
        })
    }

    /// Marks the owed endpoints that are asked for to be sent again.
    fn pay(&mut self) {
        let Some(state) = self.types.get_mut(&TypeUrl::Endpoint) else { return };
        let clusters = self.target.of(&TypeUrl::Cluster);
        self.owed.retain(|name| {
            let asked_for = state.wildcard || state.names.contains(name);
            if asked_for {
                state.again.insert(name.clone());
            }
            !asked_for && clusters.is_some()
        });
    }

    /// The next response of a type.
    fn pump_type(&mut self, type_url: &TypeUrl, defer: bool) -> Option<DeltaResponse> {
        let state = self.types.get_mut(type_url)?;
        let status = self.status.types.entry(type_url.clone()).or_default();
        if state.outstanding.is_some() {
            return None;
        }
        let target = self.target.of(type_url);
        let (difference, whole) = state.next(target, self.target.changes(type_url), defer);
        if difference.is_empty() && !state.must_answer {
            // Without an answer nobody knows what the peer has.
            if !difference.deferred && state.late.is_none() {
                state.settled(target);
                status.generation = self.target.generation();
            }
            return None;
        }
        self.counter = self.counter.wrapping_add(1);
        let nonce: Arc<str> = Arc::from(format!("{:x}-{}", self.seed, self.counter));
        if *type_url == TypeUrl::Cluster {
            self.owed.extend(difference.upserts.iter().filter_map(|r| r.endpoints.clone()));
        }
        let response = DeltaResponse {
            version: self.target.version().clone(),
            type_url: type_url.clone(),
            nonce: nonce.clone(),
            resources: difference.upserts.clone(),
            removed: difference.removed.clone(),
        };
        status.sent_nonce = nonce.clone();
        status.sent_version = self.target.version().clone();
        status.pushes = status.pushes.saturating_add(1);
        state.sent(nonce, self.target.generation(), difference, whole.then_some(target).flatten());
        status.resources = state.resources(target);
        Some(response)
    }
}

/// What we call ourselves in responses.
pub(super) const IDENTIFIER: &str = "carrick";

impl DeltaType {
    /// An answer to a response: counts only for the last one sent.
    fn answered(&mut self, request: &DeltaDiscoveryRequest, status: &mut TypeStatus) {
        let theirs = |o: &mut Outstanding| *o.nonce == *request.response_nonce;
        let Some(outstanding) = self.outstanding.take_if(theirs).or_else(|| self.late.take_if(theirs)) else {
            return;
        };
        if let Some(error) = &request.error_detail {
            status.rejects = status.rejects.saturating_add(1);
            status.nack = Some(Nack {
                nonce: outstanding.nonce,
                version: status.sent_version.clone(),
                message: error.message.clone(),
            });
            self.halve(outstanding.names);
        } else {
            status.acked_nonce = outstanding.nonce;
            status.acked_version = status.sent_version.clone();
            for name in outstanding.names {
                self.refused.remove(&name);
                self.suspects.remove(&name);
            }
            // While something stays refused, people have to see why.
            if self.refused.is_empty() && self.suspects.is_empty() && self.retry.is_empty() {
                status.nack = None;
            }
        }
        if outstanding.complete {
            status.generation = outstanding.generation;
        }
    }

    fn halve(&mut self, mut names: Vec<Arc<str>>) {
        if names.len() <= 1 {
            self.refused.extend(names);
        } else if self.retries_left < 2 {
            self.suspects.extend(names);
        } else {
            self.retries_left = self.retries_left.saturating_sub(2);
            let second = names.split_off(names.len() / 2);
            self.retry.push_front(second);
            self.retry.push_front(names);
        }
    }

    /// Names that `target` has are kept as its own, which all peers share.
    fn subscribe(
        &mut self,
        request: &DeltaDiscoveryRequest,
        legacy_wildcard: bool,
        first: bool,
        target: Option<&Arc<TypeMap>>,
    ) {
        let shared = |name: &str| -> Arc<str> {
            let known = target.and_then(|target| target.get_key_value(name));
            known.map_or_else(|| Arc::from(name), |(name, _)| name.clone())
        };

        if first {
            self.held.clear();
            for (name, version) in &request.initial_resource_versions {
                self.held.set(shared(name), Holding::Version(Arc::from(version.as_str())));
            }
            if legacy_wildcard && request.resource_names_subscribe.is_empty() {
                self.wildcard = true;
                self.must_answer = self.held.is_empty();
            }
        }
        for name in &request.resource_names_subscribe {
            if name == "*" {
                // What the shared set has was held of these names only.
                if !self.wildcard && self.held.shared().is_some() {
                    self.held.narrow(&self.names);
                }
                self.settled = false;
                self.must_answer |= !self.wildcard && self.held.is_empty();
                self.wildcard = true;
                // What is on its way will find the peer interested again: it counts as held, in an unknown version.
                for name in self.outstanding.iter().flat_map(|outstanding| &outstanding.names) {
                    if self.held.get(name).is_none() {
                        self.held.set(name.clone(), Holding::Version(Arc::from("")));
                    }
                }
                continue;
            }
            let name = shared(name);
            // Asking for a name again means that the peer has dropped it, unless it has just told its version.
            if !first {
                self.again.insert(name.clone());
            }
            if !self.wildcard && !self.names.contains(&name) && self.held.shared().is_some() {
                self.held.remove(&name);
            }
            self.names.insert(name);
        }
        for name in &request.resource_names_unsubscribe {
            if name == "*" {
                self.wildcard = false;
                self.settled = false;
                continue;
            }
            self.names.remove(name);
            self.again.remove(name.as_str());
            self.refused.remove(name.as_str());
            self.suspects.remove(name.as_str());
            // The peer dropped it; where everything is asked for it has to be told again.
            let dropped = self.held.remove(name.as_str());
            if self.wildcard && dropped {
                self.again.insert(Arc::from(name.as_str()));
            }
        }
        if !self.wildcard {
            let names = &self.names;
            if !self.settled {
                self.held.narrow(names);
            }
            self.again.retain(|name| names.contains(name));
            self.refused.retain(|name| names.contains(name));
            self.suspects.retain(|name| names.contains(name));
            self.must_answer = false;
        }
    }

    /// What the peer has not as it is in `target`. Who is settled looks only at what is known to be different, and at what is to be sent again.
    fn difference(&self, target: Option<&Arc<TypeMap>>, changes: Option<&Changes>, defer: bool) -> Difference {
        let mut out = Difference::default();
        let known: Option<&[Arc<str>]> = match (target, self.held.shared()) {
            (Some(target), Some(shared)) if self.settled && Arc::ptr_eq(target, shared) => Some(&[]),
            (Some(_), Some(shared)) if self.settled => changes.and_then(|changes| changes.since(shared)),
            _ => None,
        };
        let empty = TypeMap::new();
        let target = target.map_or(&empty, |target| &**target);
        match known {
            Some(changed) => {
                let of_again = self.again.iter().filter(|name| !changed.contains(name));
                let asked_for = |name: &&Arc<str>| self.wildcard || self.names.contains(name);
                for name in changed.iter().chain(of_again).filter(asked_for) {
                    self.compare(name, target.get(name), defer, &mut out);
                }
            }
            None if self.wildcard => {
                for resource in target.values() {
                    self.compare(&resource.name, Some(resource), defer, &mut out);
                }
                for name in self.held.names().chain(self.names.iter()).chain(&self.again) {
                    if !target.contains_key(name) {
                        self.compare(name, None, defer, &mut out);
                    }
                }
            }
            None => {
                for name in self.names.iter() {
                    self.compare(name, target.get(name), defer, &mut out);
                }
            }
        }
        out.removed.sort_unstable();
        out.removed.dedup();
        out
    }

    fn compare(&self, name: &Arc<str>, resource: Option<&Arc<Resource>>, defer: bool, out: &mut Difference) {
        match (resource, self.held.get(name)) {
            (Some(resource), Some(Some(version))) if *version == resource.version && !self.again.contains(name) => {}
            (Some(resource), _) => out.upserts.push(resource.clone()),
            (None, Some(Some(_))) if defer => out.deferred = true,
            (None, Some(Some(_))) => out.removed.push(name.clone()),
            (None, _) if self.again.contains(name) => out.removed.push(name.clone()),
            (None, None) if self.names.contains(name) => out.removed.push(name.clone()),
            (None, _) => {}
        }
    }

    /// How many resources the peer has been given of those that are there.
    fn resources(&self, target: Option<&Arc<TypeMap>>) -> usize {
        match target {
            Some(target) if self.wildcard => target.len(),
            Some(target) if self.names.len() > target.len() => target.keys().filter(|n| self.names.contains(n)).count(),
            // Names of what is not there are few.
            Some(_) => self.names.len().saturating_sub(self.held.absences()),
            None => 0,
        }
    }

    /// What to send next: a part of a refused response, or what has changed and with it the suspects.
    /// Whether it is all that was missing.
    fn next(&mut self, target: Option<&Arc<TypeMap>>, changes: Option<&Changes>, defer: bool) -> (Difference, bool) {
        while let Some(names) = self.retry.pop_front() {
            let mut out = Difference::default();
            self.add(names, target, &mut out);
            if !out.is_empty() {
                return (out, false);
            }
        }
        let mut out = self.difference(target, changes, defer);
        if !out.is_empty() {
            self.retries_left = MAX_RETRIES;
            let sent: BTreeSet<&Arc<str>> = out.upserts.iter().map(|r| &r.name).chain(&out.removed).collect();
            let suspects = self.suspects.iter().filter(|name| !sent.contains(name)).cloned().collect();
            self.add(suspects, target, &mut out);
        }
        let whole = !out.deferred;
        (out, whole)
    }

    /// Adds the present state of names the peer still asks for.
    fn add(&self, names: Vec<Arc<str>>, target: Option<&Arc<TypeMap>>, out: &mut Difference) {
        for name in names {
            if !self.wildcard && !self.names.contains(&name) {
                continue;
            }
            match target.and_then(|target| target.get(&name)) {
                Some(resource) => out.upserts.push(resource.clone()),
                None => out.removed.push(name),
            }
        }
    }

    /// `whole`: what everything is like now, if nothing was left out.
    fn sent(&mut self, nonce: Arc<str>, generation: u64, difference: Difference, whole: Option<&Arc<TypeMap>>) {
        let mut names = Vec::with_capacity(difference.upserts.len().saturating_add(difference.removed.len()));
        for resource in &difference.upserts {
            self.held.sent(resource);
            self.again.remove(&resource.name);
            names.push(resource.name.clone());
        }
        for name in difference.removed {
            self.again.remove(&name);
            if self.names.contains(&name) {
                self.held.set(name.clone(), Holding::Absence);
            } else {
                self.held.remove(&name);
            }
            names.push(name);
        }
        self.must_answer = false;
        match whole {
            Some(target) => self.settled(Some(target)),
            None => self.settled = false,
        }
        self.late = None;
        self.outstanding = Some(Outstanding { nonce, generation, complete: !difference.deferred, names });
    }

    fn settled(&mut self, target: Option<&Arc<TypeMap>>) {
        self.settled = target.is_some();
        if let Some(target) = target {
            self.held.settle(target);
        }
    }
}
