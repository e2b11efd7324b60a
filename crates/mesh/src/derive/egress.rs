//! What a proxy's Sidecar lets it see (semantics §8.2, §8.3): the services of each egress listener.
//!
//! Invariant: without a Sidecar there is one listener of everything, for all ports; a port that has a listener of its own is not in the
//! listener of the other ports.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use carrick_base::Hostname;

use super::Scope;
use crate::{
    model::{
        Service, ServiceId,
        sidecar::{Egress, OutboundPolicy},
    },
    names, read,
    scope::{imports, visible},
    snapshot::Snapshot,
    virtual_services::HostIndex,
};

/// One egress listener and its services.
pub(super) struct Segment<'a> {
    /// The listener; `None` is the implicit one of everything.
    pub egress: Option<&'a Egress>,
    /// Services of it, oldest first.
    pub services: Vec<&'a Arc<Service>>,
}

impl Segment<'_> {
    /// Whether a service's port is in this listener.
    pub fn has(&self, port: u16) -> bool {
        match self.egress.and_then(|e| e.port.as_ref()) {
            Some(own) => own.proxy || own.number == 0 || own.number == port,
            None => true,
        }
    }
}

/// All egress listeners of a scope.
pub(super) fn segments<'a>(snapshot: &'a Snapshot, scope: &Scope) -> Vec<Segment<'a>> {
    let namespace = &scope.client.namespace;
    let Some(sidecar) = scope.sidecar.as_ref().and_then(|name| snapshot.sidecars().get(name)) else {
        let services = visible(snapshot.services(), namespace, &[read::sidecar::everything()]);
        return vec![Segment { egress: None, services }];
    };
    let of = |egress: &'a Egress| {
        let mut segment =
            Segment { egress: Some(egress), services: visible(snapshot.services(), namespace, &egress.hosts) };
        let services = std::mem::take(&mut segment.services);
        segment.services = services.into_iter().filter(|s| s.ports.iter().any(|p| segment.has(p.number))).collect();
        segment
    };
    sidecar.egress.iter().map(of).collect()
}

/// The VirtualServices a listener follows.
pub(super) fn rules<'a>(snapshot: &'a Snapshot, scope: &Scope, egress: Option<&Egress>) -> HostIndex<'a> {
    let namespace = &scope.client.namespace;
    HostIndex::build(snapshot.virtual_services(), |rule| {
        rule.export_to.allows(namespace) && egress.is_none_or(|e| imports(&e.hosts, namespace, rule))
    })
}

/// Services that no listener shows, but that the rules of one lead to: they are reached by these rules alone (§8.2).
pub(super) fn destinations<'a>(
    snapshot: &'a Snapshot,
    scope: &Scope,
    rules: &HostIndex<'_>,
    seen: &[(&'a Arc<Service>, BTreeSet<u16>)],
) -> Vec<(&'a Arc<Service>, BTreeSet<u16>)> {
    let namespace = &scope.client.namespace;
    let shown: HashSet<&Hostname> = seen.iter().map(|(service, _)| &service.hostname).collect();
    let mut out: BTreeMap<&ServiceId, (&Arc<Service>, BTreeSet<u16>)> = BTreeMap::new();
    for target in rules.all.iter().flat_map(|rule| rule.targets(namespace)) {
        if shown.contains(&target.host) {
            continue;
        }
        let named = |s: &&Arc<Service>| s.hostname == target.host && s.export_to.allows(namespace);
        let mut all = snapshot.services().iter().filter(named);
        let own = all.clone().find(|s| **s.namespace() == **namespace);
        let Some(service) = own.or_else(|| all.next()) else { continue };
        let ports = service.ports.iter().map(|p| p.number).filter(|p| target.port.is_none_or(|wanted| wanted == *p));
        out.entry(&service.id).or_insert_with(|| (service, BTreeSet::new())).1.extend(ports);
    }
    out.into_values().collect()
}

/// All services of all listeners, oldest first, with the ports that are seen.
pub(super) fn union<'a>(segments: &[Segment<'a>]) -> Vec<(&'a Arc<Service>, BTreeSet<u16>)> {
    let mut seen: BTreeMap<&ServiceId, (&Arc<Service>, BTreeSet<u16>)> = BTreeMap::new();
    for segment in segments {
        for service in &segment.services {
            let ports = service.ports.iter().map(|p| p.number).filter(|p| segment.has(*p));
            seen.entry(&service.id).or_insert_with(|| (service, BTreeSet::new())).1.extend(ports);
        }
    }
    let mut all: Vec<_> = seen.into_values().collect();
    all.sort_by(|a, b| a.0.origin.cmp(&b.0.origin).then_with(|| a.0.id.cmp(&b.0.id)));
    all
}

/// The cluster of traffic to what nobody declared (§8.5). A proxy that is not seen is no way out.
pub(super) fn rest(snapshot: &Snapshot, scope: &Scope, has_cluster: impl Fn(&str) -> bool) -> Arc<str> {
    let sidecar = scope.sidecar.as_ref().and_then(|name| snapshot.sidecars().get(name));
    match sidecar.and_then(|s| s.outbound.as_ref()) {
        None if snapshot.settings().allow_any => names::PASSTHROUGH.into(),
        Some(OutboundPolicy::AllowAny) => names::PASSTHROUGH.into(),
        None | Some(OutboundPolicy::RegistryOnly) => names::BLACK_HOLE.into(),
        Some(OutboundPolicy::Proxy { host, port, subset }) => {
            let cluster = names::outbound_cluster(*port, subset, host);
            if has_cluster(&cluster) { cluster } else { names::BLACK_HOLE.into() }
        }
    }
}
