//! Networks (semantics §23): which one an endpoint is in, and the gateways through which it is reached from another.
//!
//! Invariant: an endpoint of another network that has gateways is never reached by its own address, which there may be somebody else's;
//! one that does not take mesh TLS is not reached at all, since the server name is all that the gateway can go by.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use carrick_api::{Namespace, Service, istio::mesh_networks::NetworkGateway};
use carrick_base::{Diagnostic, FieldPath, HostPattern, Hostname, Labels, ObjectRef, Severity};

use crate::{
    Settings, SnapshotInput, codes,
    locality::NETWORK,
    model::{endpoint::Endpoint, service::Prefix},
    proxy::ProxyNode,
    read::{self, finding},
};

/// The label of a gateway's Service that names its port.
const GATEWAY_PORT: &str = "networking.istio.io/gatewayPort";
/// The port of a gateway that names none.
const DEFAULT_PORT: u16 = 15443;
/// What a cluster is called that nobody named.
pub const DEFAULT_CLUSTER: &str = "Kubernetes";

/// One way into a network.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entrance {
    /// The cluster that has the gateway; empty when the mesh's configuration names its address.
    pub cluster: Arc<str>,
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
}

/// How an endpoint is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way<'a> {
    /// By its own address.
    Direct,
    /// Through these, all of them alike.
    Through(&'a [Entrance]),
}

/// Clusters and networks of the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Networks {
    /// The control plane's own cluster.
    own: Arc<str>,
    /// The network of what says nothing of its own, by cluster.
    defaults: BTreeMap<Arc<str>, Arc<str>>,
    ranges: Vec<(Prefix, Arc<str>)>,
    /// By network, each list sorted, those of a cluster together.
    entrances: BTreeMap<Arc<str>, Vec<Entrance>>,
    /// What every weight is multiplied by, so that each splits evenly among gateways.
    scale: u32,
    /// Most specific first.
    cluster_local: Vec<(HostPattern, bool)>,
}

impl Networks {
    /// Reads labels of root namespaces and gateways' Services of all clusters, and the mesh's configuration.
    pub fn build(input: &SnapshotInput, settings: &Settings, found: &mut Vec<Diagnostic>) -> Self {
        let own: Arc<str> = if input.cluster_id.is_empty() { DEFAULT_CLUSTER.into() } else { input.cluster_id.clone() };
        let here = (&own, &input.namespaces, &input.services);
        let clusters: Vec<_> = std::iter::once(here)
            .chain(input.remotes.iter().map(|r| (&r.cluster, &r.namespaces, &r.services)))
            .collect();
        let mut networks = Self {
            own: own.clone(),
            defaults: BTreeMap::new(),
            ranges: Vec::new(),
            entrances: BTreeMap::new(),
            scale: 1,
            cluster_local: cluster_local(input, settings),
        };
        for (name, network) in &input.mesh_networks.networks {
            let name: Arc<str> = name.as_str().into();
            for part in &network.endpoints {
                if !part.from_registry.is_empty() {
                    networks.defaults.insert(part.from_registry.as_str().into(), name.clone());
                } else if let Some(range) = Prefix::parse(&part.from_cidr) {
                    networks.ranges.push((range, name.clone()));
                } else {
                    found.push(unreadable(&name, format!("{:?} is no range of addresses", part.from_cidr)));
                }
            }
        }
        networks.ranges.sort();
        for (cluster, namespaces, _) in &clusters {
            if let Some(label) = root_label(namespaces, &settings.root_namespace) {
                networks.defaults.insert((*cluster).clone(), label);
            }
        }
        let mut all: BTreeMap<Arc<str>, BTreeSet<Entrance>> = BTreeMap::new();
        for (cluster, _, services) in &clusters {
            for service in services.iter() {
                let Some(network) = service.metadata.labels.get(NETWORK).filter(|n| !n.is_empty()) else { continue };
                let port = service.metadata.labels.get(GATEWAY_PORT).map_or(Some(DEFAULT_PORT), |p| p.parse().ok());
                let Some(port) = port.filter(|p| *p > 0) else {
                    report(
                        service,
                        "metadata.labels",
                        format!("{GATEWAY_PORT} is no port; the Service is no gateway"),
                        found,
                    );
                    continue;
                };
                let entrances =
                    addresses(service, found).map(|address| Entrance { cluster: (*cluster).clone(), address, port });
                all.entry(network.as_str().into()).or_default().extend(entrances);
            }
        }
        for (name, network) in &input.mesh_networks.networks {
            for gateway in &network.gateways {
                match configured(gateway, name, &clusters, &networks.defaults, settings) {
                    Ok(entrances) => all.entry(name.as_str().into()).or_default().extend(entrances),
                    Err(message) => found.push(unreadable(name, message)),
                }
            }
        }
        all.retain(|_, entrances| !entrances.is_empty());
        networks.entrances = all.into_iter().map(|(name, set)| (name, set.into_iter().collect())).collect();
        networks.scale = scale(&networks.entrances);
        networks
    }

    /// The control plane's own cluster.
    pub fn own_cluster(&self) -> &Arc<str> {
        &self.own
    }

    /// The ways into each network.
    pub fn entrances(&self) -> &BTreeMap<Arc<str>, Vec<Entrance>> {
        &self.entrances
    }

    /// What every endpoint's weight is multiplied by.
    pub fn scale(&self) -> u32 {
        self.scale
    }

    /// The network of an address of a cluster: its own label's, else its cluster's, else its range's; empty when none is known.
    pub fn of(&self, cluster: &str, labelled: &Arc<str>, ip: Option<IpAddr>) -> Arc<str> {
        if !labelled.is_empty() {
            return labelled.clone();
        }
        let by_range =
            || ip.and_then(|ip| self.ranges.iter().find(|(range, _)| holds(range, ip)).map(|(_, name)| name));
        self.defaults.get(cluster).or_else(by_range).cloned().unwrap_or_default()
    }

    /// The network of a proxy: what its node says, else its labels, else its workload's. `None` where there is but one network.
    pub fn of_proxy(&self, proxy: &ProxyNode, labels: &Labels, workload: &Arc<str>) -> Option<Arc<str>> {
        if self.entrances.is_empty() {
            return None;
        }
        let label = labels.get(NETWORK).map(|n| Arc::from(n.as_str()));
        let mut told = [Some(proxy.network.clone()), label, Some(workload.clone())].into_iter().flatten();
        let told = told.find(|n| !n.is_empty()).unwrap_or_default();
        Some(self.of(&self.own, &told, proxy.ips.first().copied()))
    }

    /// How a client of that network reaches an endpoint (§23.5). Gateways of the endpoint's own cluster come first.
    pub fn way(&self, client: Option<&str>, endpoint: &Endpoint) -> Way<'_> {
        let elsewhere = client.is_some_and(|own| *own != *endpoint.network);
        let Some(all) = self.entrances.get(&endpoint.network).filter(|_| elsewhere) else { return Way::Direct };
        let start = all.partition_point(|e| e.cluster < endpoint.cluster);
        let end = all.partition_point(|e| e.cluster <= endpoint.cluster);
        match all.get(start..end) {
            Some(own) if !own.is_empty() => Way::Through(own),
            _ => Way::Through(all),
        }
    }

    /// Whether only endpoints of the own cluster stand behind a host (§23.7).
    pub fn is_cluster_local(&self, host: &Hostname) -> bool {
        self.cluster_local.iter().find(|(pattern, _)| pattern.matches(host)).is_some_and(|(_, local)| *local)
    }
}

fn root_label(namespaces: &[Arc<Namespace>], root: &str) -> Option<Arc<str>> {
    let root = namespaces.iter().find(|n| n.metadata.name == *root)?;
    root.metadata.labels.get(NETWORK).filter(|n| !n.is_empty()).map(|n| n.as_str().into())
}

/// Addresses under which a Service is reached from outside of its cluster.
fn addresses<'a>(service: &'a Service, found: &mut Vec<Diagnostic>) -> impl Iterator<Item = IpAddr> + use<'a> {
    for name in service.status.load_balancer.ingress.iter().map(|i| &i.hostname).filter(|n| !n.is_empty()) {
        let message = format!("{name} is a name, and names of gateways are not resolved; give the Service externalIPs");
        report(service, "status.loadBalancer", message, found);
    }
    let balancers = service.status.load_balancer.ingress.iter().map(|i| &i.ip);
    service.spec.external_ips.iter().chain(balancers).filter_map(|text| text.parse().ok())
}

/// What is read of one cluster: its id, namespaces and services.
type Registry<'a> = (&'a Arc<str>, &'a Vec<Arc<Namespace>>, &'a Vec<Arc<Service>>);

/// One gateway that the mesh's configuration names.
fn configured(
    gateway: &NetworkGateway,
    network: &str,
    clusters: &[Registry<'_>],
    defaults: &BTreeMap<Arc<str>, Arc<str>>,
    settings: &Settings,
) -> Result<Vec<Entrance>, String> {
    let port = u16::try_from(gateway.port).ok().filter(|p| *p > 0);
    let port = port.ok_or_else(|| format!("{} is no port", gateway.port))?;
    if gateway.registry_service_name.is_empty() {
        let address = gateway.address.parse();
        let address =
            address.map_err(|_| format!("{:?} is no address, and names are not resolved", gateway.address))?;
        return Ok(vec![Entrance { cluster: "".into(), address, port }]);
    }
    let wanted = Hostname::new(&gateway.registry_service_name);
    let inside = clusters.iter().filter(|(cluster, ..)| defaults.get(*cluster).is_some_and(|n| **n == *network));
    let mut out = Vec::new();
    for (cluster, _, services) in inside {
        let meta = |s: &Service| Hostname::service(&s.metadata.name, &s.metadata.namespace, &settings.domain_suffix);
        for service in services.iter().filter(|s| meta(s) == wanted) {
            let addresses = addresses(service, &mut Vec::new());
            out.extend(addresses.map(|address| Entrance { cluster: (*cluster).clone(), address, port }));
        }
    }
    Ok(out)
}

/// Hosts whose endpoints are their own cluster's alone: what every cluster has of its own, and what the mesh's configuration names.
fn cluster_local(input: &SnapshotInput, settings: &Settings) -> Vec<(HostPattern, bool)> {
    let domain = &settings.domain_suffix;
    let own = [format!("*.kube-system.svc.{domain}"), format!("kubernetes.default.svc.{domain}")];
    let mut all: BTreeMap<HostPattern, bool> = own.iter().map(|h| (HostPattern::new(h), true)).collect();
    for part in &input.mesh_config.service_settings {
        all.extend(part.hosts.iter().map(|h| (HostPattern::new(h), part.settings.cluster_local)));
    }
    all.into_iter().collect()
}

/// The least number that each network's, and each cluster's, count of gateways divides.
fn scale(entrances: &BTreeMap<Arc<str>, Vec<Entrance>>) -> u32 {
    let mut counts = BTreeSet::new();
    for list in entrances.values() {
        counts.insert(list.len());
        let mut by_cluster: BTreeMap<&str, usize> = BTreeMap::new();
        for entrance in list {
            *by_cluster.entry(&entrance.cluster).or_default() += 1;
        }
        counts.extend(by_cluster.into_values());
    }
    let common = |a: u32, b: u32| a.checked_div(divisor(a, b)).unwrap_or(a).saturating_mul(b);
    counts.into_iter().filter_map(|n| u32::try_from(n).ok()).filter(|n| *n > 0).fold(1, common)
}

fn divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { divisor(b, a.checked_rem(b).unwrap_or(0)) }
}

fn holds(range: &Prefix, ip: IpAddr) -> bool {
    let cut = |bits: u128, width: u32| {
        let gone = width.saturating_sub(u32::from(range.length));
        bits.checked_shr(gone).unwrap_or(0)
    };
    match (range.ip, ip) {
        (IpAddr::V4(a), IpAddr::V4(b)) => cut(a.to_bits().into(), 32) == cut(b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => cut(a.to_bits(), 128) == cut(b.to_bits(), 128),
        _ => false,
    }
}

fn report(service: &Service, field: &str, message: String, found: &mut Vec<Diagnostic>) {
    let origin = read::origin("Service", &service.metadata);
    found.push(finding(&origin, codes::UNSUPPORTED, Severity::Warning, field, message));
}

fn unreadable(network: &str, message: String) -> Diagnostic {
    Diagnostic {
        code: codes::UNREADABLE,
        severity: Severity::Error,
        object: ObjectRef::new("MeshNetworks", "", network),
        field: FieldPath::default(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_their_addresses() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        for (range, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.1.2.3/32", "10.1.2.3", "10.1.2.2"),
            ("fd00::/8", "fdff::1", "fe00::1"),
        ] {
            let range = Prefix::parse(range).expect("a range");
            assert!(holds(&range, ip(inside)) && !holds(&range, ip(outside)), "{range:?}");
        }
        assert!(holds(&Prefix::parse("0.0.0.0/0").expect("a range"), ip("9.9.9.9")));
    }

    #[test]
    fn weights_split_evenly() {
        let list = |clusters: &[&str]| -> Vec<Entrance> {
            let entrance = |c: &&str| Entrance { cluster: (*c).into(), address: IpAddr::from([192, 0, 2, 1]), port: 1 };
            clusters.iter().map(entrance).collect()
        };
        let all = BTreeMap::from([("a".into(), list(&["x", "x", "y"])), ("b".into(), list(&["z"]))]);
        assert_eq!(scale(&all), 6);
        assert_eq!(scale(&BTreeMap::new()), 1);
    }
}
