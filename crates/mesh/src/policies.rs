//! The part of a snapshot that says what servers take, and from whom: PeerAuthentication, AuthorizationPolicy, RequestAuthentication.
//!
//! Invariant: a function of the policies, in any order; a part that follows another is what would be built from nothing
//! (`tests/it/policies.rs`), and reads only the policies of the namespaces in which one changed. What still looks at every policy is the
//! comparison of two lists, pointer by pointer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
};

use carrick_api::{AuthorizationPolicy, Meta, PeerAuthentication, RequestAuthentication};
use carrick_base::Diagnostic;

use crate::{
    FetchedKeys, PolicyInput, Settings,
    difference::difference,
    legacy::LegacyIndex,
    model::MtlsMode,
    peer_auth::PeerAuthIndex,
    read::{self, authorizer::Authorizers},
    security::SecurityIndex,
    shards::Shards,
    trust_domains::TrustDomains,
};

/// Policies, by whom they are for.
#[derive(Debug)]
pub struct PolicyPart {
    /// What it was made of.
    input: PolicyInput,
    pub(crate) peer_auth: PeerAuthIndex,
    pub(crate) security: SecurityIndex,
    /// What is wrong with them, by namespace.
    found: Shards<Arc<str>, Arc<[Diagnostic]>>,
    change: Option<(Weak<PolicyPart>, PolicyChange)>,
}

/// From one part to the next.
#[derive(Debug, Default)]
pub struct PolicyChange {
    /// Namespaces in which a policy is another.
    pub namespaces: BTreeSet<Arc<str>>,
    /// Those of them in which a PeerAuthentication is another: clients ask for the modes of the workloads there.
    pub peers: BTreeSet<Arc<str>>,
    /// In a whole namespace, or in the mesh, mutual TLS was switched off or on, which clients guess by (§1.8).
    pub hints: bool,
    /// Policies that were read.
    pub read: usize,
}

/// What does not change with policies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading<'a> {
    pub settings: &'a Settings,
    pub keys: &'a FetchedKeys,
    pub authorizers: &'a Arc<Authorizers>,
    pub legacy: &'a LegacyIndex,
}

/// The policies of one namespace.
#[derive(Default)]
struct Own<'a> {
    peer_authentications: Vec<&'a PeerAuthentication>,
    authorization_policies: Vec<&'a AuthorizationPolicy>,
    request_authentications: Vec<&'a RequestAuthentication>,
}

impl PolicyPart {
    /// Reads everything.
    pub(crate) fn build(input: &PolicyInput, reading: Reading<'_>) -> Self {
        let root = &reading.settings.root_namespace;
        let mut part = Self {
            input: input.clone(),
            peer_auth: PeerAuthIndex::default(),
            security: SecurityIndex::new(root, reading.authorizers),
            found: Shards::default(),
            change: None,
        };
        let named = input.peer_authentications.iter().map(|p| &p.metadata);
        let named = named.chain(input.authorization_policies.iter().map(|p| &p.metadata));
        let named = named.chain(input.request_authentications.iter().map(|p| &p.metadata));
        let mut namespaces: BTreeSet<Arc<str>> = named.map(|meta| meta.namespace.as_str().into()).collect();
        // Policies of the old API stand in where there is none.
        namespaces.extend(reading.legacy.of_namespaces().map(|(namespace, _)| namespace.clone()));
        namespaces.insert(root.clone());
        part.take(&namespaces, reading);
        part
    }

    /// The part after this one.
    pub(crate) fn follow(self: &Arc<Self>, input: &PolicyInput, reading: Reading<'_>) -> Self {
        let mut peers = touched(&self.input.peer_authentications, &input.peer_authentications, |p| &p.metadata);
        let mut namespaces =
            touched(&self.input.authorization_policies, &input.authorization_policies, |p| &p.metadata);
        namespaces
            .extend(touched(&self.input.request_authentications, &input.request_authentications, |p| &p.metadata));
        namespaces.extend(peers.iter().cloned());
        let mut part = Self {
            input: input.clone(),
            peer_auth: self.peer_auth.clone(),
            security: self.security.clone(),
            found: self.found.clone(),
            change: None,
        };
        let read = part.take(&namespaces, reading);
        let root = &reading.settings.root_namespace;
        let off = |part: &Self, namespace: &str| part.peer_auth.namespace_hint(namespace).mode == MtlsMode::Disable;
        let other = |namespace: &str| off(self, namespace) != off(&part, namespace);
        // A policy of the root namespace is the mesh's, which is that of a namespace without any.
        let hints = peers.iter().any(|namespace| other(namespace)) || peers.remove(root) && other("");
        part.change = Some((Arc::downgrade(self), PolicyChange { namespaces, peers, hints, read }));
        part
    }

    /// What is other than in the part that this one follows; `None` when it does not follow that one.
    pub fn changed_since(&self, before: &Self) -> Option<&PolicyChange> {
        let (follows, change) = self.change.as_ref()?;
        std::ptr::eq(follows.as_ptr(), before).then_some(change)
    }

    /// What is wrong with the policies.
    pub(crate) fn found(&self) -> impl Iterator<Item = &Diagnostic> {
        self.found.iter().flat_map(|(_, found)| found.iter())
    }

    /// Reads these namespaces' policies anew; gives how many there are.
    fn take(&mut self, namespaces: &BTreeSet<Arc<str>>, reading: Reading<'_>) -> usize {
        let mut own: BTreeMap<&str, Own<'_>> = namespaces.iter().map(|n| (&**n, Own::default())).collect();
        let input = self.input.clone();
        let mut read = 0_usize;
        for policy in &input.peer_authentications {
            if let Some(own) = own.get_mut(policy.metadata.namespace.as_str()) {
                own.peer_authentications.push(policy);
                read = read.saturating_add(1);
            }
        }
        for policy in &input.authorization_policies {
            if let Some(own) = own.get_mut(policy.metadata.namespace.as_str()) {
                own.authorization_policies.push(policy);
                read = read.saturating_add(1);
            }
        }
        for policy in &input.request_authentications {
            if let Some(own) = own.get_mut(policy.metadata.namespace.as_str()) {
                own.request_authentications.push(policy);
                read = read.saturating_add(1);
            }
        }
        let domains = TrustDomains::of(reading.settings);
        for namespace in namespaces {
            if let Some(own) = own.get(&**namespace) {
                self.take_own(namespace, own, reading, &domains);
            }
        }
        read
    }

    fn take_own(&mut self, namespace: &Arc<str>, own: &Own<'_>, reading: Reading<'_>, domains: &TrustDomains) {
        let mut found = Vec::new();
        let peers = own.peer_authentications.iter();
        let peers = peers.map(|p| read::peer_authentication::read(p, &mut found)).collect();
        self.peer_auth.set(namespace, peers, reading.legacy, &reading.settings.root_namespace, &mut found);
        let policies = own.authorization_policies.iter();
        let policies = policies.map(|p| read::authorization_policy::read(p, domains, &mut found)).collect();
        let jwt = own.request_authentications.iter();
        let jwt = jwt.map(|p| read::request_authentication::read(p, reading.keys, &mut found)).collect();
        self.security.set(namespace, policies, jwt, &mut found);
        if found.is_empty() {
            self.found.remove(namespace);
        } else {
            self.found.insert(namespace.clone(), found.into());
        }
    }
}

/// The namespaces in which an object went, came or is another.
fn touched<T>(before: &[Arc<T>], now: &[Arc<T>], meta: impl Fn(&T) -> &Meta) -> BTreeSet<Arc<str>> {
    let changed = difference(before, now, &meta);
    changed.gone.iter().chain(&changed.come).map(|object| meta(object).namespace.as_str().into()).collect()
}
