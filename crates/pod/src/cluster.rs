//! Services and their endpoints, as this machine's rules and names need them: Services and EndpointSlices in, plain values out.
//!
//! Invariant: pure and ordered, so that equal objects give equal values whatever their order; an endpoint counts only while it is ready.
//! Only IPv4: the pod network has no IPv6 addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use carrick_api::ServiceEntry;
use carrick_base::Hostname;
use carrick_capture::services::{Protocol, ServicePort};
use carrick_mesh::auto_address::AutoAddresses;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::dns::table::{DnsEndpoint, DnsHost, DnsPort, DnsService, DnsTable};

/// The label by which a slice names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// One service and what stands behind it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct ServiceView {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) cluster_ips: Vec<Ipv4Addr>,
    /// Addresses from outside that lead to this machine: `externalIPs`, and those of a balancer.
    pub(crate) external_ips: Vec<Ipv4Addr>,
    pub(crate) headless: bool,
    pub(crate) external_name: Option<String>,
    pub(crate) ports: Vec<PortView>,
}

/// One port of a service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct PortView {
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) node_port: Option<u16>,
    /// Ready endpoints with the host name they have, if any.
    pub(crate) endpoints: BTreeMap<SocketAddrV4, Option<String>>,
}

impl ServiceView {
    /// `name.namespace`.
    pub(crate) fn key(&self) -> String {
        format!("{}.{}", self.name, self.namespace)
    }

    /// Addresses that the service's name stands for.
    pub(crate) fn addresses(&self) -> BTreeSet<Ipv4Addr> {
        if self.headless {
            self.ports.iter().flat_map(|port| port.endpoints.keys()).map(|end| *end.ip()).collect()
        } else {
            self.cluster_ips.iter().copied().collect()
        }
    }
}

/// Joins services with their slices. `api` replaces the endpoints of `default/kubernetes`, which the API itself cannot always name.
pub(crate) fn view<'a>(
    services: impl IntoIterator<Item = &'a Service>,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    api: Option<SocketAddrV4>,
) -> Vec<ServiceView> {
    let mut by_service: BTreeMap<(&str, &str), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices {
        let name = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
        if let (Some(namespace), Some(name)) = (&slice.metadata.namespace, name)
            && slice.address_type == "IPv4"
        {
            by_service.entry((namespace, name)).or_default().push(slice);
        }
    }
    let mut views: Vec<ServiceView> = services
        .into_iter()
        .filter_map(|service| {
            let (namespace, name) = (service.metadata.namespace.as_deref()?, service.metadata.name.as_deref()?);
            let slices = by_service.get(&(namespace, name)).map(Vec::as_slice).unwrap_or_default();
            let mut view = one(namespace, name, service, slices);
            if let (Some(api), "default", "kubernetes") = (api, namespace, name) {
                view.ports.iter_mut().for_each(|port| port.endpoints = BTreeMap::from([(api, None)]));
            }
            Some(view)
        })
        .collect();
    views.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    views
}

fn one(namespace: &str, name: &str, service: &Service, slices: &[&EndpointSlice]) -> ServiceView {
    let spec = service.spec.clone().unwrap_or_default();
    let single = spec.cluster_ip.clone().into_iter().collect();
    let ips = spec.cluster_ips.clone().filter(|ips| !ips.is_empty()).unwrap_or(single);
    let external_name = (spec.type_.as_deref() == Some("ExternalName")).then_some(spec.external_name).flatten();
    let ports = spec.ports.unwrap_or_default();
    ServiceView {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        headless: ips.iter().any(|ip| ip == "None"),
        cluster_ips: ips.iter().filter_map(|ip| ip.parse().ok()).collect(),
        external_ips: external_ips(service),
        external_name,
        ports: ports
            .iter()
            .filter_map(|port| {
                let protocol = match port.protocol.as_deref() {
                    None | Some("TCP") => Protocol::Tcp,
                    Some("UDP") => Protocol::Udp,
                    Some(_) => return None,
                };
                let port_name = port.name.clone().unwrap_or_default();
                Some(PortView {
                    endpoints: endpoints(slices, &port_name),
                    name: port_name,
                    protocol,
                    port: u16::try_from(port.port).ok()?,
                    node_port: port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0),
                })
            })
            .collect(),
    }
}

fn endpoints(slices: &[&EndpointSlice], port_name: &str) -> BTreeMap<SocketAddrV4, Option<String>> {
    let mut found = BTreeMap::new();
    for slice in slices {
        let ports = slice.ports.as_deref().unwrap_or_default();
        let number = ports
            .iter()
            .find(|port| port.name.as_deref().unwrap_or_default() == port_name)
            .and_then(|port| u16::try_from(port.port?).ok());
        let Some(number) = number else { continue };
        for endpoint in slice.endpoints.iter() {
            // Absent means ready.
            let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
            let address = endpoint.addresses.first().and_then(|address| address.parse::<Ipv4Addr>().ok());
            if let (true, Some(address)) = (ready, address) {
                found.insert(SocketAddrV4::new(address, number), endpoint.hostname.clone());
            }
        }
    }
    found
}

fn external_ips(service: &Service) -> Vec<Ipv4Addr> {
    let own = service.spec.iter().flat_map(|s| s.external_ips.iter().flatten());
    let balancer = service.status.iter().filter_map(|s| s.load_balancer.as_ref());
    let balancer = balancer.flat_map(|b| b.ingress.iter().flatten()).filter_map(|i| i.ip.as_ref());
    own.chain(balancer).filter_map(|ip| ip.parse().ok()).filter(|ip: &Ipv4Addr| !ip.is_loopback()).collect()
}

/// Ready endpoints by address of the service and port; a cluster IP is nobody else's.
pub(crate) fn ports(views: &[ServiceView]) -> BTreeMap<ServicePort, BTreeSet<SocketAddrV4>> {
    let mut ports = BTreeMap::new();
    for view in views.iter().filter(|view| !view.headless) {
        for (ip, port) in view.cluster_ips.iter().flat_map(|ip| view.ports.iter().map(move |port| (ip, port))) {
            let key = ServicePort { ip: *ip, protocol: port.protocol, port: port.port };
            ports.insert(key, port.endpoints.keys().copied().collect());
        }
    }
    for view in views.iter().filter(|view| !view.headless) {
        for (ip, port) in view.external_ips.iter().flat_map(|ip| view.ports.iter().map(move |port| (ip, port))) {
            let key = ServicePort { ip: *ip, protocol: port.protocol, port: port.port };
            ports.entry(key).or_insert_with(|| port.endpoints.keys().copied().collect());
        }
    }
    ports
}

/// Ready endpoints by node port.
pub(crate) fn node_ports(views: &[ServiceView]) -> BTreeMap<(Protocol, u16), BTreeSet<SocketAddrV4>> {
    let all = views.iter().flat_map(|view| &view.ports);
    all.filter_map(|port| Some(((port.protocol, port.node_port?), port.endpoints.keys().copied().collect()))).collect()
}

/// What the pods' DNS answers from.
pub(crate) fn dns(views: &[ServiceView]) -> DnsTable {
    let services = views.iter().map(|view| {
        let mut endpoints: BTreeMap<Ipv4Addr, DnsEndpoint> = BTreeMap::new();
        for port in view.ports.iter().filter(|_| view.headless) {
            for (address, host_name) in &port.endpoints {
                let entry = endpoints.entry(*address.ip()).or_insert_with(|| DnsEndpoint {
                    ip: *address.ip(),
                    host_name: host_name.clone(),
                    ports: BTreeMap::new(),
                });
                entry.ports.insert(port.name.clone(), address.port());
            }
        }
        let service = DnsService {
            ips: if view.headless { Vec::new() } else { view.cluster_ips.clone() },
            external_name: view.external_name.clone(),
            ports: view
                .ports
                .iter()
                .map(|port| DnsPort {
                    name: port.name.clone(),
                    protocol: if port.protocol == Protocol::Udp { "udp".into() } else { "tcp".into() },
                    port: port.port,
                })
                .collect(),
            endpoints: endpoints.into_values().collect(),
        };
        (view.key(), service)
    });
    DnsTable { services: services.collect(), hosts: BTreeMap::new() }
}

/// Hosts of ServiceEntries that have addresses: their own, else automatic ones. Oldest first for each name.
pub(crate) fn hosts(entries: &[Arc<ServiceEntry>]) -> BTreeMap<String, Vec<DnsHost>> {
    let automatic = AutoAddresses::allocate(entries);
    let mut entries: Vec<_> = entries.iter().collect();
    entries.sort_by(|a, b| a.metadata.age_order().cmp(&b.metadata.age_order()));
    let mut hosts: BTreeMap<String, Vec<DnsHost>> = BTreeMap::new();
    for entry in entries {
        let own: Vec<Ipv4Addr> = entry.spec.addresses.iter().filter_map(|a| a.parse().ok()).collect();
        let namespace = &entry.metadata.namespace;
        let visible_in = match entry.spec.export_to.as_slice() {
            [] => None,
            all if all.iter().any(|token| token == "*") => None,
            all => Some(all.iter().map(|t| if t == "." { namespace.clone() } else { t.clone() }).collect()),
        };
        for host in &entry.spec.hosts {
            let name = Hostname::new(host);
            let of_host = automatic.of(entry, &name).into_iter().filter_map(|ip| match ip {
                IpAddr::V4(ip) => Some(ip),
                IpAddr::V6(_) => None,
            });
            let ips: Vec<Ipv4Addr> = own.iter().copied().chain(of_host).collect();
            if !ips.is_empty() {
                let host = DnsHost { namespace: namespace.clone(), visible_in: visible_in.clone(), ips };
                hosts.entry(name.as_str().to_owned()).or_default().push(host);
            }
        }
    }
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample(cluster_ip: &str) -> (Service, EndpointSlice) {
        let service = serde_json::from_value(json!({
            "metadata": {"name": "kyc", "namespace": "basic"},
            "spec": {"clusterIP": cluster_ip, "externalIPs": ["192.0.2.1", "10.96.1.2", "127.0.0.1"], "ports": [
                {"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080},
                {"name": "dns", "port": 53, "protocol": "UDP"},
            ]},
        }));
        let slice = serde_json::from_value(json!({
            "metadata": {"name": "kyc-x", "namespace": "basic", "labels": {SERVICE_NAME: "kyc"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": [
                {"addresses": ["10.244.0.5"], "conditions": {"ready": true}, "hostname": "kyc-0"},
                {"addresses": ["10.244.0.6"], "conditions": {"ready": false}},
                {"addresses": ["10.244.0.7"]},
            ],
        }));
        (service.unwrap(), slice.unwrap())
    }

    #[test]
    fn only_ready_endpoints_of_the_ports_own_name_count() {
        let (service, slice) = sample("10.96.1.2");
        let views = view([&service], [&slice], None);
        let ports = ports(&views);
        let ends = |protocol, port| {
            ports[&ServicePort { ip: "10.96.1.2".parse().unwrap(), protocol, port }]
                .iter()
                .map(SocketAddrV4::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(ends(Protocol::Tcp, 80), ["10.244.0.5:8080", "10.244.0.7:8080"]);
        assert!(ends(Protocol::Udp, 53).is_empty());
        let outside = |ip: &str| ServicePort { ip: ip.parse().unwrap(), protocol: Protocol::Tcp, port: 80 };
        assert_eq!(ports[&outside("192.0.2.1")].len(), 2);
        assert!(!ports.contains_key(&outside("127.0.0.1")));
        assert_eq!(node_ports(&views)[&(Protocol::Tcp, 30080)].len(), 2);
        let dns = &dns(&views).services["kyc.basic"];
        assert_eq!(dns.ips, [Ipv4Addr::new(10, 96, 1, 2)]);
        assert!(dns.endpoints.is_empty());
    }

    #[test]
    fn hosts_of_entries_have_addresses() {
        let entry = |name: &str, spec: serde_json::Value| -> Arc<ServiceEntry> {
            Arc::new(
                serde_json::from_value(json!({"metadata": {"name": name, "namespace": "a"}, "spec": spec})).unwrap(),
            )
        };
        let entries = [
            entry(
                "own",
                json!({"hosts": ["Own.example.com"], "addresses": ["192.0.2.1", "192.0.2.0/24"], "exportTo": ["."]}),
            ),
            entry("auto", json!({"hosts": ["auto.example.com"], "resolution": "DNS"})),
            entry("none", json!({"hosts": ["none.example.com"]})),
        ];
        let hosts = hosts(&entries);
        assert_eq!(hosts.keys().collect::<Vec<_>>(), ["auto.example.com", "own.example.com"]);
        assert_eq!(hosts["own.example.com"][0].ips, [Ipv4Addr::new(192, 0, 2, 1)]);
        assert_eq!(hosts["own.example.com"][0].visible_in, Some(["a".to_owned()].into()));
        assert_eq!(hosts["auto.example.com"][0].ips[0].octets()[..2], [240, 240]);
    }

    #[test]
    fn a_headless_service_is_its_endpoints() {
        let (service, slice) = sample("None");
        let views = view([&service], [&slice], None);
        assert!(ports(&views).is_empty());
        assert_eq!(views[0].addresses().len(), 2);
        let dns = &dns(&views).services["kyc.basic"];
        assert!(dns.ips.is_empty());
        assert_eq!(dns.endpoints[0].host_name.as_deref(), Some("kyc-0"));
        assert_eq!(dns.endpoints[0].ports["http"], 8080);
    }

    #[test]
    fn the_apis_own_service_can_be_given_an_endpoint() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "kubernetes", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443}]},
        }))
        .unwrap();
        let views = view([&service], [], Some("127.0.0.1:6443".parse().unwrap()));
        assert_eq!(ports(&views).into_values().next().unwrap().into_iter().next().unwrap().port(), 6443);
    }
}
