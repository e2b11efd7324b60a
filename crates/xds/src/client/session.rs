//! The delta client as a state machine: what is asked for, what is held, what to answer.
//!
//! Invariant: a version is held only after the handler accepted it; every response gets exactly one answer, in order;
//! subscriptions on the wire equal the last interests told.

use super::{Interest, Nack, Update};
use crate::{Node, Resource, TypeUrl};
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use envoy_types::pb::google::rpc::Status;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// `INVALID_ARGUMENT` in gRPC.
const INVALID_ARGUMENT: i32 = 3;
/// Texts longer than this are cut: the server keeps them.
const MAX_NACK: usize = 4096;

#[derive(Debug, Default)]
struct Wanted {
    wildcard: bool,
    names: BTreeSet<Arc<str>>,
    held: BTreeMap<Arc<str>, Arc<str>>,
}

/// One server, over as many connections as it takes.
#[derive(Debug)]
pub struct ClientSession {
    node: Node,
    types: BTreeMap<TypeUrl, Wanted>,
    /// The node goes with the first request of a stream only.
    node_sent: bool,
}

/// A response that waits for the handler's verdict.
#[derive(Debug, PartialEq)]
#[must_use = "every response must be answered"]
pub struct Received {
    /// For the handler.
    pub update: Update,
    nonce: String,
    held: Vec<(Arc<str>, Arc<str>)>,
    removed: Vec<Arc<str>>,
}

impl ClientSession {
    /// A session that holds nothing yet.
    pub fn new(node: Node) -> Self {
        Self { node, types: BTreeMap::new(), node_sent: false }
    }

    /// Holds these from before: they are told with the first request, and so are not sent again.
    pub fn hold(&mut self, held: impl IntoIterator<Item = (TypeUrl, Arc<str>, Arc<str>)>) {
        for (type_url, name, version) in held {
            self.types.entry(type_url).or_default().held.insert(name, version);
        }
    }

    /// How many resources of a type are held.
    pub fn held(&self, type_url: &TypeUrl) -> usize {
        self.types.get(type_url).map_or(0, |wanted| wanted.held.len())
    }

    /// The name and version of all held resources of a type.
    pub fn versions(&self, type_url: &TypeUrl) -> impl Iterator<Item = (&Arc<str>, &Arc<str>)> {
        self.types.get(type_url).into_iter().flat_map(|wanted| wanted.held.iter())
    }

    /// A stream was opened: the first requests, with the versions held from earlier streams.
    pub fn on_connected(&mut self, interests: Vec<(TypeUrl, Interest)>) -> Vec<DeltaDiscoveryRequest> {
        self.node_sent = false;
        for wanted in self.types.values_mut() {
            wanted.wildcard = false;
            wanted.names.clear();
        }
        let mut requests = Vec::new();
        for (type_url, interest) in interests {
            let wanted = self.types.entry(type_url.clone()).or_default();
            wanted.take(interest);
            if !wanted.wildcard && wanted.names.is_empty() {
                continue;
            }
            requests.push(DeltaDiscoveryRequest {
                node: (!self.node_sent).then(|| self.node.clone()),
                type_url: type_url.as_str().to_owned(),
                // A wildcard is told in the legacy way where there is one, by naming nothing: every server knows that.
                resource_names_subscribe: if wanted.wildcard && !type_url.legacy_wildcard() {
                    vec!["*".to_owned()]
                } else {
                    wanted.names.iter().map(|name| name.to_string()).collect()
                },
                initial_resource_versions: wanted.versions(),
                ..Default::default()
            });
            self.node_sent = true;
        }
        for wanted in self.types.values_mut() {
            wanted.forget_unwanted();
        }
        requests
    }

    /// Interests may have changed: what to tell the server.
    pub fn on_interests(&mut self, interests: Vec<(TypeUrl, Interest)>) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = Vec::new();
        for (type_url, interest) in interests {
            let known = self.types.contains_key(&type_url);
            let wanted = self.types.entry(type_url.clone()).or_default();
            let fresh = !known || (!wanted.wildcard && wanted.names.is_empty());
            let (was_wildcard, before) = (wanted.wildcard, std::mem::take(&mut wanted.names));
            wanted.take(interest);
            let mut subscribe: Vec<String> = wanted.names.difference(&before).map(|name| name.to_string()).collect();
            let mut unsubscribe: Vec<String> = before.difference(&wanted.names).map(|name| name.to_string()).collect();
            match (was_wildcard, wanted.wildcard) {
                (false, true) => subscribe.push("*".to_owned()),
                (true, false) => unsubscribe.push("*".to_owned()),
                _ => {}
            }
            let initial = if fresh { wanted.versions() } else { HashMap::new() };
            wanted.forget_unwanted();
            if subscribe.is_empty() && unsubscribe.is_empty() {
                continue;
            }
            requests.push(DeltaDiscoveryRequest {
                node: (!self.node_sent).then(|| self.node.clone()),
                type_url: type_url.as_str().to_owned(),
                resource_names_subscribe: subscribe,
                resource_names_unsubscribe: unsubscribe,
                initial_resource_versions: initial,
                ..Default::default()
            });
            self.node_sent = true;
        }
        requests
    }

    /// A response came. Give its update to the handler, then call [`ClientSession::answer`].
    ///
    /// # Errors
    /// A response that is wrong by itself (a resource of another type, one without a body) is refused: the request to
    /// send back.
    pub fn on_response(&mut self, response: DeltaDiscoveryResponse) -> Result<Received, Box<DeltaDiscoveryRequest>> {
        let type_url = TypeUrl::parse(&response.type_url);
        let mut upserts = Vec::with_capacity(response.resources.len());
        let mut held = Vec::with_capacity(response.resources.len());
        for resource in response.resources {
            let Some(body) = resource.resource else {
                let message = format!("{}: the resource has no body", resource.name);
                return Err(Box::new(refusal(&response.type_url, response.nonce, &message)));
            };
            if body.type_url != response.type_url {
                let message =
                    format!("{}: a resource of type {} in a response of another", resource.name, body.type_url);
                return Err(Box::new(refusal(&response.type_url, response.nonce, &message)));
            }
            let resource = Resource::with_version(resource.name.as_str(), resource.version.as_str(), body);
            held.push((resource.name.clone(), resource.version.clone()));
            upserts.push(resource);
        }
        let removed: Vec<Arc<str>> = response.removed_resources.iter().map(|name| Arc::from(name.as_str())).collect();
        Ok(Received {
            update: Update { type_url, upserts, removed: removed.clone() },
            nonce: response.nonce,
            held,
            removed,
        })
    }

    /// The handler's verdict on an update: remembers what is held now, and gives the request to send back.
    pub fn answer(&mut self, received: ReceivedParts, verdict: Result<(), Nack>) -> DeltaDiscoveryRequest {
        let ReceivedParts { type_url, nonce, held, removed } = received;
        if let Err(nack) = verdict {
            return refusal(type_url.as_str(), nonce, &nack.message);
        }
        let wanted = self.types.entry(type_url.clone()).or_default();
        for (name, version) in held {
            if wanted.wildcard || wanted.names.contains(&name) {
                wanted.held.insert(name, version);
            }
        }
        for name in removed {
            wanted.held.remove(&name);
        }
        DeltaDiscoveryRequest { type_url: type_url.as_str().to_owned(), response_nonce: nonce, ..Default::default() }
    }
}

/// What is left of a [`Received`] when the handler has taken the update.
#[derive(Debug)]
#[must_use = "every response must be answered"]
pub struct ReceivedParts {
    type_url: TypeUrl,
    nonce: String,
    held: Vec<(Arc<str>, Arc<str>)>,
    removed: Vec<Arc<str>>,
}

impl Received {
    /// The update for the handler, and what [`ClientSession::answer`] needs.
    pub fn split(self) -> (Update, ReceivedParts) {
        let type_url = self.update.type_url.clone();
        (self.update, ReceivedParts { type_url, nonce: self.nonce, held: self.held, removed: self.removed })
    }
}

impl Wanted {
    fn take(&mut self, interest: Interest) {
        match interest {
            Interest::Wildcard => {
                self.wildcard = true;
                self.names.clear();
            }
            Interest::Names(names) => {
                self.wildcard = false;
                self.names = names;
            }
        }
    }

    fn versions(&self) -> HashMap<String, String> {
        self.held
            .iter()
            .filter(|(name, _)| self.wildcard || self.names.contains(*name))
            .map(|(name, version)| (name.to_string(), version.to_string()))
            .collect()
    }

    fn forget_unwanted(&mut self) {
        if !self.wildcard {
            let names = &self.names;
            self.held.retain(|name, _| names.contains(name));
        }
    }
}

fn refusal(type_url: &str, nonce: String, message: &str) -> DeltaDiscoveryRequest {
    let cut = message.char_indices().map(|(at, _)| at).find(|at| *at >= MAX_NACK).unwrap_or(message.len());
    let message = message.get(..cut).unwrap_or_default().to_owned();
    DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        response_nonce: nonce,
        error_detail: Some(Status { code: INVALID_ARGUMENT, message, details: Vec::new() }),
        ..Default::default()
    }
}
