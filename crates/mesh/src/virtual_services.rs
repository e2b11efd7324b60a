//! All VirtualServices, for the two questions asked of them: which rules a service follows in the mesh, and which belong to a Gateway
//! (semantics §9.11, §10.2).
//!
//! Invariant: oldest first; of several for one host in the mesh the oldest alone counts, at a Gateway all do.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use carrick_base::{Diagnostic, HostPattern, Hostname, Labels, Severity};

use crate::{
    codes,
    model::virtual_service::{GatewayRef, VirtualService},
    read::finding,
};

/// All of them, oldest first.
#[derive(Debug, Default)]
pub struct VirtualServiceIndex {
    all: Vec<Arc<VirtualService>>,
    by_gateway: HashMap<GatewayRef, Vec<Arc<VirtualService>>>,
    /// Labels of proxies that some match asks for.
    label_keys: BTreeSet<String>,
}

impl VirtualServiceIndex {
    /// Sorts and indexes them.
    pub fn build(mut all: Vec<VirtualService>, found: &mut Vec<Diagnostic>) -> Self {
        all.sort_by(|a, b| a.origin.cmp(&b.origin));
        let mut index = Self { all: all.into_iter().map(Arc::new).collect(), ..Self::default() };
        for service in &index.all {
            let http = service.http.iter().flat_map(|r| r.matches.iter().map(|m| &m.bound));
            let rest = service.tls.iter().chain(&service.tcp).flat_map(|r| r.matches.iter().map(|m| &m.bound));
            index.label_keys.extend(http.chain(rest).flat_map(|b| b.labels.keys().cloned()));
            let places: BTreeSet<&GatewayRef> = service.gateways.iter().collect();
            for place in places {
                index.by_gateway.entry(place.clone()).or_default().push(service.clone());
            }
        }
        index.report_shadowed(found);
        index
    }

    fn report_shadowed(&self, found: &mut Vec<Diagnostic>) {
        let mut taken: HashMap<&HostPattern, &Arc<VirtualService>> = HashMap::new();
        for service in self.at(&GatewayRef::Mesh) {
            for (index, host) in service.hosts.iter().enumerate() {
                let older = *taken.entry(host).or_insert(service);
                // Only where everybody sees both is it certain that the younger one is never used.
                let both_seen = older.export_to == service.export_to || older.export_to == crate::model::ExportTo::All;
                if !Arc::ptr_eq(older, service) && both_seen {
                    let message = format!("{} is older and has rules for the same host in the mesh", older.origin.name);
                    let field = format!("spec.hosts[{index}]");
                    found.push(finding(&service.origin, codes::RULE_SHADOWED, Severity::Warning, &field, message));
                }
            }
        }
    }

    /// All, oldest first.
    pub fn all(&self) -> &[Arc<VirtualService>] {
        &self.all
    }

    /// Those that hold at a place, oldest first.
    pub fn at(&self, place: &GatewayRef) -> &[Arc<VirtualService>] {
        self.by_gateway.get(place).map_or(&[], Vec::as_slice)
    }

    /// Those labels of a proxy that can make a difference.
    pub fn relevant(&self, labels: &Labels) -> Labels {
        labels.iter().filter(|(key, _)| self.label_keys.contains(*key)).map(|(k, v)| (k.clone(), v.clone())).collect()
    }
}

/// Those a client in the mesh may use, by host.
#[derive(Debug, Default)]
pub struct HostIndex<'a> {
    exact: HashMap<&'a Hostname, &'a Arc<VirtualService>>,
    /// Most specific first.
    wildcards: Vec<(&'a HostPattern, &'a Arc<VirtualService>)>,
    /// With their hosts, oldest first.
    pub all: Vec<&'a Arc<VirtualService>>,
}

impl<'a> HostIndex<'a> {
    /// Those of the mesh that `usable` lets through.
    pub fn build(index: &'a VirtualServiceIndex, usable: impl Fn(&VirtualService) -> bool) -> Self {
        let mut out = Self::default();
        for service in index.at(&GatewayRef::Mesh).iter().filter(|s| usable(s)) {
            out.all.push(service);
            for host in &service.hosts {
                match host {
                    HostPattern::Exact(name) => {
                        out.exact.entry(name).or_insert(service);
                    }
                    pattern if !out.wildcards.iter().any(|(known, _)| *known == pattern) => {
                        out.wildcards.push((pattern, service));
                    }
                    _ => {}
                }
            }
        }
        out.wildcards.sort_by(|a, b| a.0.cmp(b.0));
        out
    }

    /// The one a host follows: of the most specific host, the oldest.
    pub fn of(&self, host: &Hostname) -> Option<&'a Arc<VirtualService>> {
        let wildcard = || self.wildcards.iter().find(|(pattern, _)| pattern.matches(host)).map(|(_, service)| *service);
        self.exact.get(host).copied().or_else(wildcard)
    }
}
