//! A small world for cases: pods and services in short form, expanded to the objects an API server would hold.
//!
//! Invariant: what is expanded goes through `carrick-api`'s typed objects, as real objects do; endpoint slices follow from services and pods.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use carrick_api::{EndpointSlice, MeshConfig, MeshNetworks, Pod, Service, from_value};
use carrick_mesh::{
    Counting, EndpointInput, FileCerts, Interception, ProxyKind, ProxyNode, RemoteEndpoints, RemoteInput,
    SnapshotInput, view::gateway::Topology,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// A world in short form.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct World {
    pub mesh: Option<Value>,
    pub pods: Vec<ShortPod>,
    pub services: Vec<ShortService>,
    /// Objects as they stand in manifests. Their `age` (higher is older) becomes a creation time.
    pub objects: Vec<Value>,
    /// MeshNetworks.
    pub networks: Option<Value>,
    pub remotes: Vec<Remote>,
}

/// Another cluster.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Remote {
    pub cluster: String,
    /// The network of its root namespace.
    pub network: Option<String>,
    pub pods: Vec<ShortPod>,
    pub services: Vec<ShortService>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShortPod {
    /// `name.namespace`
    pub pod: String,
    pub ip: String,
    pub labels: BTreeMap<String, String>,
    /// Whether it has a sidecar; yes unless told.
    pub sidecar: Option<bool>,
    pub account: Option<String>,
    pub not_ready: bool,
    /// Named container ports.
    pub ports: BTreeMap<String, u16>,
    pub node: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShortService {
    /// `name.namespace`
    pub service: String,
    /// Absent is headless.
    pub vip: Option<String>,
    /// `[name:]port[->target]`
    pub ports: Vec<String>,
    pub selector: BTreeMap<String, String>,
    pub external_name: Option<String>,
    pub annotations: BTreeMap<String, String>,
    pub app_protocol: Option<String>,
    pub age: i64,
    pub labels: BTreeMap<String, String>,
    pub external_ips: Vec<String>,
}

/// Reads an object as a typed one and keeps it.
fn take<T: DeserializeOwned>(all: &mut Vec<Arc<T>>, object: &Value) {
    let read = from_value(object).unwrap_or_else(|error| panic!("{error} in {object}"));
    all.push(Arc::new(read));
}

fn split(name: &str) -> (&str, &str) {
    name.split_once('.').unwrap_or((name, "default"))
}

/// 2024-01-01 less so many hours: higher ages are older.
fn created(age: i64) -> String {
    let hours = 24 * 27 - age;
    format!("2024-01-{:02}T{:02}:00:00Z", 1 + hours / 24, hours % 24)
}

impl World {
    /// This world with another one's objects added.
    pub fn with(&self, other: &World) -> World {
        let mut all = self.clone();
        all.mesh = other.mesh.clone().or(all.mesh);
        all.pods.extend(other.pods.iter().cloned());
        all.services.extend(other.services.iter().cloned());
        all.objects.extend(other.objects.iter().cloned());
        all.networks = other.networks.clone().or(all.networks);
        all.remotes.extend(other.remotes.iter().cloned());
        all
    }

    /// The objects an API server would hold.
    pub fn input(&self) -> SnapshotInput {
        let mut input = SnapshotInput {
            mesh_config: self.mesh.as_ref().map_or_else(MeshConfig::default, |m| from_value(m).expect("mesh config")),
            services: self.services.iter().map(|s| Arc::new(s.object())).collect(),
            endpoints: self.endpoints(),
            mesh_networks: self
                .networks
                .as_ref()
                .map_or_else(MeshNetworks::default, |n| from_value(n).expect("networks")),
            remotes: self.remotes.iter().map(Remote::input).collect(),
            ..SnapshotInput::default()
        };
        for object in &self.objects {
            let mut object = object.clone();
            let age = object.as_object_mut().and_then(|o| o.remove("age")).and_then(|a| a.as_i64()).unwrap_or(0);
            if object["metadata"]["creationTimestamp"].is_null() {
                object["metadata"]["creationTimestamp"] = created(age).into();
            }
            match object["kind"].as_str().expect("kind") {
                "PeerAuthentication" => take(&mut input.peer_authentications, &object),
                "DestinationRule" => take(&mut input.destination_rules, &object),
                "AuthorizationPolicy" => take(&mut input.authorization_policies, &object),
                "RequestAuthentication" => take(&mut input.request_authentications, &object),
                "Policy" => take(&mut input.legacy_policies, &object),
                "MeshPolicy" => take(&mut input.legacy_mesh_policies, &object),
                "ServiceEntry" => take(&mut input.service_entries, &object),
                "Sidecar" => take(&mut input.sidecars, &object),
                "WorkloadEntry" => take(&mut input.endpoints.workload_entries, &object),
                "Node" => take(&mut input.endpoints.nodes, &object),
                "VirtualService" => take(&mut input.virtual_services, &object),
                "Namespace" => take(&mut input.namespaces, &object),
                "Gateway" => take(&mut input.gateways, &object),
                "Telemetry" => take(&mut input.telemetries, &object),
                "Secret" => take(&mut input.secrets, &object),
                "EndpointSlice" => take(&mut input.endpoints.endpoint_slices, &object),
                kind => panic!("no such kind in cases: {kind}"),
            }
        }
        input
    }

    /// Pods, and the slices that follow from them.
    pub fn endpoints(&self) -> EndpointInput {
        EndpointInput {
            pods: self.pods.iter().map(|p| Arc::new(p.object())).collect(),
            endpoint_slices: self.services.iter().filter_map(|s| s.slice(&self.pods)).map(Arc::new).collect(),
            remotes: self.remotes.iter().map(Remote::endpoints).collect(),
            ..EndpointInput::default()
        }
    }

    /// The proxy of a pod, written `name.namespace`, with what a node's metadata may add (`!none`, `!files`, `!router` …).
    pub fn proxy(&self, text: &str) -> ProxyNode {
        let mut words = text.split_whitespace();
        let name = words.next().expect("a pod");
        let pod = self.pods.iter().find(|p| p.pod == name).unwrap_or_else(|| panic!("no pod {name}"));
        let (short, namespace) = split(&pod.pod);
        let ips: Vec<IpAddr> = pod.ip.split(',').map(|ip| ip.parse().expect("an address")).collect();
        let mut proxy = ProxyNode {
            id: format!("sidecar~{}~{short}.{namespace}~{namespace}.svc.cluster.local", ips[0]).into(),
            name: short.into(),
            namespace: namespace.into(),
            ips,
            service_account: pod.account().into(),
            ..ProxyNode::default()
        };
        for word in words {
            match word {
                "!none" => proxy.interception = Interception::None,
                "!dns" => proxy.dns_capture = true,
                "!router" => proxy.kind = ProxyKind::Router,
                "!envoy" => proxy.blind_reuse = true,
                "!counted" => proxy.counting = Counting::Agent,
                "!unprivileged" => proxy.unprivileged = true,
                "!behind" => {
                    let topology = Topology { trusted_proxies: 2, proxy_protocol: true, ..Topology::default() };
                    proxy.topology = Some(topology);
                }
                "!tproxy" => proxy.interception = Interception::Tproxy,
                "!files" => {
                    let files = FileCerts { chain: "/c/chain".into(), key: "/c/key".into(), root: "/c/root".into() };
                    proxy.client_certs = Some(files.clone());
                    proxy.server_certs = Some(files);
                }
                other => panic!("unknown word {other}"),
            }
        }
        proxy
    }
}

impl Remote {
    fn input(&self) -> RemoteInput {
        let root = json!({"metadata": {"name": "istio-system", "labels": {"topology.istio.io/network": self.network}}});
        let mut namespaces = Vec::new();
        if self.network.is_some() {
            take(&mut namespaces, &root);
        }
        let services = self.services.iter().map(|s| Arc::new(s.object())).collect();
        RemoteInput { cluster: self.cluster.as_str().into(), namespaces, services }
    }

    fn endpoints(&self) -> RemoteEndpoints {
        RemoteEndpoints {
            cluster: self.cluster.as_str().into(),
            pods: self.pods.iter().map(|p| Arc::new(p.object())).collect(),
            endpoint_slices: self.services.iter().filter_map(|s| s.slice(&self.pods)).map(Arc::new).collect(),
            nodes: Vec::new(),
        }
    }
}

impl ShortPod {
    fn account(&self) -> &str {
        self.account.as_deref().unwrap_or("default")
    }

    fn object(&self) -> Pod {
        let (name, namespace) = split(&self.pod);
        let mut labels = self.labels.clone();
        if self.sidecar != Some(false) {
            labels.insert("security.istio.io/tlsMode".to_owned(), "istio".to_owned());
        }
        let ports: Vec<_> = self.ports.iter().map(|(n, p)| json!({"name": n, "containerPort": p})).collect();
        let ips: Vec<&str> = self.ip.split(',').collect();
        from_value(&json!({
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": {
                "serviceAccountName": self.account(), "nodeName": self.node,
                "containers": [{"name": "app", "ports": ports}],
            },
            "status": {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": if self.not_ready { "False" } else { "True" }}],
                "podIP": ips[0],
                "podIPs": ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>(),
            },
        }))
        .expect("a pod")
    }
}

impl ShortService {
    fn object(&self) -> Service {
        let (name, namespace) = split(&self.service);
        let ports: Vec<Value> = self.ports.iter().map(|p| self.port(p).0).collect();
        let vips: Vec<&str> = self.vip.as_deref().unwrap_or("None").split(',').collect();
        let mut spec = json!({"ports": ports, "selector": self.selector});
        match &self.external_name {
            Some(target) => {
                spec["type"] = "ExternalName".into();
                spec["externalName"] = target.as_str().into();
            }
            None => {
                spec["clusterIP"] = vips[0].into();
                spec["clusterIPs"] = json!(vips);
            }
        }
        let metadata = json!({
            "name": name, "namespace": namespace, "creationTimestamp": created(self.age),
            "annotations": self.annotations, "labels": self.labels,
        });
        spec["externalIPs"] = json!(self.external_ips);
        from_value(&json!({"metadata": metadata, "spec": spec})).expect("a service")
    }

    /// A port, and its target as written.
    fn port(&self, text: &str) -> (Value, Option<String>) {
        let (left, target) = match text.split_once("->") {
            Some((left, target)) => (left, Some(target.to_owned())),
            None => (text, None),
        };
        let (name, number) = left.split_once(':').unwrap_or(("", left));
        let (number, transport) = number.split_once('/').unwrap_or((number, "TCP"));
        let number: u16 = number.parse().expect("a port");
        let mut port = json!({"name": name, "port": number, "protocol": transport});
        if let Some(target) = &target {
            port["targetPort"] = target.parse::<u16>().map_or_else(|_| json!(target), |n| json!(n));
        }
        if let Some(protocol) = &self.app_protocol {
            port["appProtocol"] = protocol.as_str().into();
        }
        (port, target.or_else(|| Some(number.to_string())))
    }

    fn slice(&self, pods: &[ShortPod]) -> Option<EndpointSlice> {
        let (name, namespace) = split(&self.service);
        if self.selector.is_empty() || self.external_name.is_some() {
            return None;
        }
        let selected = |p: &&ShortPod| {
            split(&p.pod).1 == namespace && self.selector.iter().all(|(k, v)| p.labels.get(k) == Some(v))
        };
        let chosen: Vec<_> = pods.iter().filter(selected).collect();
        let endpoints: Vec<_> = chosen
            .iter()
            .map(|p| {
                json!({
                    "addresses": [p.ip.split(',').next()],
                    "conditions": {"ready": !p.not_ready},
                    "targetRef": {"kind": "Pod", "name": split(&p.pod).0, "namespace": namespace},
                })
            })
            .collect();
        let ports: Vec<_> = self
            .ports
            .iter()
            .filter_map(|text| {
                let (port, target) = self.port(text);
                let target = target?;
                let number = target.parse().ok().or_else(|| chosen.first()?.ports.get(&target).copied())?;
                Some(json!({"name": port["name"], "protocol": port["protocol"], "port": number}))
            })
            .collect();
        let metadata = json!({
            "name": format!("{name}-1"), "namespace": namespace, "labels": {"kubernetes.io/service-name": name},
        });
        let slice = json!({
            "metadata": metadata, "addressType": "IPv4", "endpoints": endpoints, "ports": ports,
        });
        Some(from_value(&slice).expect("a slice"))
    }
}
