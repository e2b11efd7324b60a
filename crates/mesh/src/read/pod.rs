//! Pods, as workloads: their identity, whether they speak mesh TLS, their named ports.
//!
//! Invariant: ended pods and pods on the host's network own no address of the mesh, so they are no workloads.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use carrick_api::{Node, Pod};
use carrick_base::{NamespacedName, SpiffeId};

use crate::{
    Settings,
    model::{Locality, TlsMode, Workload},
};

/// The label by which a workload says that it speaks mesh TLS.
pub(crate) const TLS_MODE: &str = "security.istio.io/tlsMode";
/// Where a pod stands, in place of its node's labels.
const LOCALITY: &str = "istio-locality";
/// The network a workload is in.
pub(crate) const NETWORK: &str = "topology.istio.io/network";
const TEMPLATE_HASH: &str = "pod-template-hash";

/// Where a node stands, by its labels (semantics §27.4).
pub(crate) fn node(from: &Node) -> Locality {
    let label = |key: &str| from.metadata.labels.get(key).map(|v| Arc::from(v.as_str())).unwrap_or_default();
    Locality {
        region: label("topology.kubernetes.io/region"),
        zone: label("topology.kubernetes.io/zone"),
        subzone: label("topology.istio.io/subzone"),
    }
}

/// The workload, unless the pod has ended, has no address yet or is on the host's network.
pub(crate) fn read(from: &Pod, settings: &Settings, nodes: &HashMap<Arc<str>, Locality>) -> Option<Workload> {
    let ips: Vec<IpAddr> = from.ips().filter_map(|ip| ip.parse().ok()).collect();
    if from.is_terminal() || ips.is_empty() || from.spec.host_network {
        return None;
    }
    let labels = from.metadata.labels.clone();
    let tls_mode = match labels.get(TLS_MODE).map(String::as_str) {
        Some("istio") => TlsMode::Istio,
        _ => TlsMode::Disabled,
    };
    let containers = from.spec.containers.iter().chain(&from.spec.init_containers);
    let named = containers.flat_map(|c| &c.ports).filter(|p| !p.name.is_empty());
    let ports = named.filter_map(|p| Some((p.name.as_str().into(), from.port_named(&p.name)?))).collect();
    let node: Arc<str> = from.spec.node_name.as_str().into();
    let locality = match labels.get(LOCALITY) {
        Some(own) if own.contains('/') => Locality::parse(own, '/'),
        Some(own) => Locality::parse(own, '.'),
        None => nodes.get(&node).cloned().unwrap_or_default(),
    };
    Some(Workload {
        name: NamespacedName::new(&from.metadata.namespace, &from.metadata.name),
        identity: Some(SpiffeId::istio(&settings.trust_domain, &from.metadata.namespace, from.service_account())),
        workload_name: workload_name(from),
        network: labels.get(NETWORK).map(|n| n.as_str().into()).unwrap_or_default(),
        weight: 1,
        ready: from.is_ready(),
        locality,
        node,
        ips,
        labels,
        tls_mode,
        ports,
    })
}

/// The controller's name; a ReplicaSet of a Deployment gives the Deployment's.
fn workload_name(from: &Pod) -> Arc<str> {
    let Some(owner) = from.metadata.owner_references.iter().find(|o| o.controller) else {
        return from.metadata.name.as_str().into();
    };
    let deployment = from
        .metadata
        .labels
        .get(TEMPLATE_HASH)
        .filter(|_| owner.kind == "ReplicaSet")
        .and_then(|hash| owner.name.strip_suffix(hash.as_str()).and_then(|name| name.strip_suffix('-')));
    deployment.unwrap_or(&owner.name).into()
}
