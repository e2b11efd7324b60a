//! What names stand for where a proxy's agent resolves them itself (semantics §21.2).
//!
//! Invariant: a name is told only if the proxy has a way there: services it sees, with the addresses its listeners listen for; of a service
//! without one, the addresses behind it.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::{Scope, egress, listeners};
use crate::{
    model::{Registry, Resolution, Service},
    parts::HostName,
    snapshot::Snapshot,
};

pub(super) fn derive(snapshot: &Snapshot, scope: &Scope) -> BTreeMap<Arc<str>, HostName> {
    let segments = egress::segments(snapshot, scope);
    let mut names = BTreeMap::new();
    for (service, _) in egress::union(&segments) {
        let addresses = addresses(snapshot, scope, service);
        if addresses.is_empty() {
            continue;
        }
        let kubernetes = service.registry == Registry::Kubernetes;
        let known = HostName {
            addresses,
            kubernetes: kubernetes.then(|| (service.short_name().clone(), service.namespace().clone())),
        };
        names.insert(service.hostname.as_str().into(), known);
    }
    names
}

fn addresses(snapshot: &Snapshot, scope: &Scope, service: &Service) -> Vec<IpAddr> {
    let own = listeners::addresses(service, scope.dns_capture);
    if !own.is_empty() || service.resolution != Resolution::Headless {
        return own.iter().copied().filter(|ip| !ip.is_unspecified()).collect();
    }
    let ready = snapshot.endpoints().of_service(&service.id).filter(|(_, endpoint)| endpoint.ready);
    let mut all: Vec<IpAddr> = ready.filter_map(|(_, endpoint)| endpoint.address.ip()).collect();
    all.sort_unstable();
    all.dedup();
    all
}
