//! WorkloadEntries, and the endpoints of the same shape that a ServiceEntry holds (semantics §3.1, §11.3, §11.6).
//!
//! Invariant: a workload without a service account has no identity, and no mesh TLS unless its label says so.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use carrick_api::{Meta, WorkloadEntry, istio::workload_entry::WorkloadEntrySpec};
use carrick_base::{NamespacedName, SpiffeId};

use super::pod::{NETWORK, TLS_MODE};
use crate::{
    Settings,
    model::{Address, Locality, Port, TlsMode, Workload, service::Target},
};

/// A workload that is no pod, and where it is.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// Who it is.
    pub workload: Arc<Workload>,
    /// Address as written.
    address: Arc<str>,
}

/// A WorkloadEntry; `None` when it has no address of its own.
pub(crate) fn read(from: &WorkloadEntry, settings: &Settings) -> Option<Entry> {
    let mut labels = from.metadata.labels.clone();
    labels.extend(from.spec.labels.iter().map(|(k, v)| (k.clone(), v.clone())));
    entry(&from.spec, labels, &from.metadata, &from.metadata.name, !from.is_unhealthy(), settings)
}

/// An endpoint that a ServiceEntry holds.
pub(crate) fn inline(from: &WorkloadEntrySpec, holder: &Meta, settings: &Settings) -> Option<Entry> {
    entry(from, from.labels.clone(), holder, "", true, settings)
}

fn entry(
    from: &WorkloadEntrySpec,
    labels: BTreeMap<String, String>,
    meta: &Meta,
    workload_name: &str,
    ready: bool,
    settings: &Settings,
) -> Option<Entry> {
    if from.address.is_empty() {
        return None;
    }
    let tls_mode = match labels.get(TLS_MODE).map(String::as_str) {
        Some("istio") => TlsMode::Istio,
        Some(_) => TlsMode::Disabled,
        None if from.service_account.is_empty() => TlsMode::Disabled,
        None => TlsMode::Istio,
    };
    let account = Some(&from.service_account).filter(|a| !a.is_empty());
    let network = if from.network.is_empty() { labels.get(NETWORK) } else { Some(&from.network) };
    let ports = from.ports.iter().filter_map(|(name, n)| Some((name.as_str().into(), u16::try_from(*n).ok()?)));
    let locality = match labels.get("istio-locality") {
        Some(own) if from.locality.is_empty() => Locality::parse(own, '.'),
        _ => Locality::parse(&from.locality, '/'),
    };
    let workload = Workload {
        name: NamespacedName::new(&meta.namespace, &meta.name),
        ips: from.address.parse::<IpAddr>().into_iter().collect(),
        identity: account.map(|a| SpiffeId::istio(&settings.trust_domain, &meta.namespace, a)),
        tls_mode,
        ports: ports.collect(),
        workload_name: workload_name.into(),
        node: "".into(),
        locality,
        network: network.map(|n| n.as_str().into()).unwrap_or_default(),
        weight: from.weight.max(1),
        ready,
        labels,
    };
    Some(Entry { workload: Arc::new(workload), address: from.address.as_str().into() })
}

impl Entry {
    /// Where it is reached for a service port (§11.3): its own port of that name, else the port's target, else the port.
    pub fn address(&self, port: &Port) -> Address {
        let ports = &self.workload.ports;
        let target = match &port.target {
            Target::Number(number) => ports.get(&port.name).copied().unwrap_or(*number),
            Target::Name(name) => ports.get(name).or_else(|| ports.get(&port.name)).copied().unwrap_or(port.number),
        };
        Address::parse(&self.address, target)
    }
}
