//! Endpoints of each cluster, with the decision which of them take mesh TLS (semantics §3.4) and which are reached through a gateway of
//! their network (§23.5).
//!
//! Invariant: an endpoint is marked only if its workload says that it speaks mesh TLS; a gateway stands only for marked ones.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use carrick_base::Labels;

use crate::{
    locality::{self, Spread},
    model::{Address, Endpoint, MtlsMode, Port, Service, ServiceId, TlsMode, Workload},
    networks::Way,
    parts::{Load, LoadEndpoint},
    peer_auth::{Effective, PeerAuthIndex},
    snapshot::Snapshot,
    telemetry,
};

/// What an endpoint assignment depends on, besides endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct LoadKey {
    pub cluster: Arc<str>,
    pub service: ServiceId,
    pub slot: Arc<str>,
    /// Labels of the subset.
    pub labels: Labels,
    /// What the client's rule says for all endpoints, if it has TLS; else each endpoint's policy decides.
    pub by_rule: Option<bool>,
    /// Which endpoints come first, if that matters.
    pub spread: Option<Spread>,
    /// Only endpoints that take mesh TLS, which then is the client's own (AUTO_PASSTHROUGH).
    pub mtls_only: bool,
    /// The client's network, where there is more than one.
    pub network: Option<Arc<str>>,
}

/// Policies of workloads by the workload's address, which is its snapshot's own.
pub(super) type Policies = HashMap<usize, Effective>;

/// Assignments of one snapshot by what they depend on, and the policies of workloads met on the way.
#[derive(Debug, Default)]
pub(super) struct LoadMemo {
    loads: HashMap<Arc<LoadKey>, Arc<Load>>,
    policies: Policies,
}

impl LoadMemo {
    pub fn clear(&mut self) {
        self.loads.clear();
        self.policies.clear();
    }

    /// These services have other endpoints.
    pub fn forget(&mut self, changed: &BTreeSet<ServiceId>) {
        self.loads.retain(|key, _| !changed.contains(&key.service));
        self.policies.clear();
    }
}

pub(super) fn derive(snapshot: &Snapshot, keys: &[Arc<LoadKey>], memo: &mut LoadMemo) -> Arc<[Arc<Load>]> {
    keys.iter().map(|key| remembered(snapshot, key, memo)).collect()
}

/// The assignments after `last`, of which those of the stale services alone are made again.
pub(super) fn renew(
    snapshot: &Snapshot,
    keys: &[Arc<LoadKey>],
    last: &[Arc<Load>],
    stale: &BTreeSet<ServiceId>,
    memo: &mut LoadMemo,
) -> Arc<[Arc<Load>]> {
    let of = |(key, last): (&Arc<LoadKey>, &Arc<Load>)| match stale.contains(&key.service) {
        true => remembered(snapshot, key, memo),
        false => last.clone(),
    };
    keys.iter().zip(last).map(of).collect()
}

fn remembered(snapshot: &Snapshot, key: &Arc<LoadKey>, LoadMemo { loads, policies }: &mut LoadMemo) -> Arc<Load> {
    if let Some(known) = loads.get(key) {
        return known.clone();
    }
    // EDS has addresses only; a name behind it could not be resolved by anybody.
    let all = snapshot.endpoints().of(&key.service, &key.slot).iter();
    let all = all.filter(|e| !matches!(e.address, Address::Name(..)));
    loads.entry(key.clone()).or_insert(Arc::new(load(snapshot, key, all, policies))).clone()
}

/// The assignment of these endpoints.
pub(super) fn load<'a>(
    snapshot: &Snapshot,
    key: &LoadKey,
    all: impl Iterator<Item = &'a Endpoint>,
    policies: &mut Policies,
) -> Load {
    let service = (!snapshot.legacy().is_empty()).then(|| snapshot.service_of(&key.service)).flatten();
    let service_port = service.and_then(|s| s.ports.iter().find(|p| p.slot == key.slot).map(|p| (&**s, p)));
    let networks = &snapshot.config.networks;
    let mut endpoints = Vec::new();
    for e in all.filter(|e| e.ready && e.carries(&key.labels)) {
        let mtls = takes_mtls(snapshot, e, key.by_rule, service_port, policies);
        let weight = e.weight().saturating_mul(networks.scale());
        match networks.way(key.network.as_deref(), e) {
            Way::Direct if mtls || !key.mtls_only => {
                let workload = e.workload.as_ref().map_or_else(|| "".into(), |w| describe(w, &e.cluster));
                let endpoint = LoadEndpoint { address: e.address.clone(), mtls, workload, weight, gateway_of: None };
                endpoints.push((e, endpoint));
            }
            // What came through one gateway is not sent on to the next, which might send it back.
            Way::Through(entrances) if mtls && !key.mtls_only => {
                let share = u32::try_from(entrances.len()).ok().and_then(|n| weight.checked_div(n)).unwrap_or(weight);
                endpoints.extend(entrances.iter().map(|entrance| {
                    let endpoint = LoadEndpoint {
                        address: Address::Ip(entrance.address, entrance.port),
                        mtls,
                        workload: "".into(),
                        weight: share,
                        gateway_of: Some(e.network.clone()),
                    };
                    (e, endpoint)
                }));
            }
            Way::Direct | Way::Through(_) => {}
        }
    }
    Load { cluster: key.cluster.clone(), groups: locality::arrange(endpoints, key.spread.as_ref()) }
}

fn takes_mtls(
    snapshot: &Snapshot,
    endpoint: &Endpoint,
    by_rule: Option<bool>,
    service_port: Option<(&Service, &Port)>,
    policies: &mut Policies,
) -> bool {
    let Some(workload) = endpoint.workload.as_ref().filter(|w| w.tls_mode == TlsMode::Istio) else { return false };
    if let Some(enabled) = by_rule {
        return enabled;
    }
    if !snapshot.settings().auto_mtls {
        return false;
    }
    let effective = policies
        .entry(Arc::as_ptr(workload) as usize)
        .or_insert_with(|| snapshot.peer_auth().effective(&workload.name.namespace, &workload.labels));
    let effective = effective.port(endpoint.address.port());
    let decided = match service_port {
        Some((service, port)) => &PeerAuthIndex::of_service_port(effective, snapshot.legacy(), service, port),
        None => effective,
    };
    decided.mode != MtlsMode::Disable
}

/// `<workload>;<namespace>;<canonical name>;<canonical revision>;<cluster>`; empty for what no object of its own stands for.
fn describe(workload: &Workload, cluster: &str) -> Arc<str> {
    if workload.workload_name.is_empty() {
        return "".into();
    }
    let (name, revision) = telemetry::canonical(&workload.labels);
    format!(
        "{};{};{};{};{cluster}",
        workload.workload_name,
        workload.name.namespace,
        name.unwrap_or(&workload.workload_name),
        revision
    )
    .into()
}
