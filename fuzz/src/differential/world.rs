//! What every case has in common: pods, services, an outside host and a gateway, at addresses of one /24 of loopback.
//!
//! Invariant: addresses are written with [`HOME`] as their network, always of the same length, so that the same resources are moved to
//! the network of a case and an engine by exchanging bytes alone.

use serde_json::{Value, json};

/// The network in objects and in what is compared.
pub const HOME: &str = "127.100.100.";

/// Last parts of addresses.
pub const CLIENT: u8 = 1;
pub const SERVER_V1: u8 = 2;
pub const SERVER_V2: u8 = 3;
pub const PLAIN: u8 = 4;
pub const ABROAD: u8 = 6;
pub const GATEWAY: u8 = 9;
/// A caller without a sidecar.
pub const OUTSIDE: u8 = 20;
pub const STRANGER: u8 = 7;
pub const SERVER_VIP: u8 = 100;
pub const PLAIN_VIP: u8 = 101;
pub const SECOND_VIP: u8 = 102;
pub const ABROAD_VIP: u8 = 110;
/// An address that belongs to nobody.
pub const NOBODY: u8 = 200;
/// Where what goes to nobody known arrives.
pub const BEYOND: u8 = 250;

/// Ports of the application that answers for everybody.
pub const ECHO_HTTP: u16 = 18080;
pub const ECHO_TLS: u16 = 18443;
pub const ECHO_TCP: u16 = 19000;

/// Proxies of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Client,
    Server,
    Gateway,
}

impl Part {
    pub const ALL: [Self; 3] = [Self::Client, Self::Server, Self::Gateway];

    /// Pod, namespace, last part of the address, letter in names of resources.
    pub fn pod(self) -> (&'static str, &'static str, u8, char) {
        match self {
            Self::Client => ("client", "web", CLIENT, 'c'),
            Self::Server => ("server-v1", "app", SERVER_V1, 's'),
            Self::Gateway => ("gateway", "istio-system", GATEWAY, 'g'),
        }
    }
}

/// The objects that are always there.
pub fn objects() -> Vec<Value> {
    let mut all = Vec::new();
    for namespace in ["web", "app", "istio-system"] {
        all.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": {"kubernetes.io/metadata.name": namespace}}}));
    }
    for (name, namespace, account, last, sidecar, labels) in [
        ("client", "web", "client", CLIENT, true, json!({"app": "client"})),
        ("server-v1", "app", "server", SERVER_V1, true, json!({"app": "server", "version": "v1"})),
        ("server-v2", "app", "server", SERVER_V2, false, json!({"app": "second", "version": "v2"})),
        ("plain", "app", "plain", PLAIN, false, json!({"app": "plain"})),
        ("gateway", "istio-system", "gateway", GATEWAY, true, json!({"istio": "ingressgateway"})),
    ] {
        all.push(pod(name, namespace, account, last, sidecar, labels));
    }
    all.extend(service("server", "app", SERVER_VIP, &[("http", 8080), ("tcp", 8081)], &json!({"app": "server"})));
    all.push(slice("server-v1", "server", "app", &[("http", 8080), ("tcp", 8081)], SERVER_V1, "server-v1"));
    // A service of its own: which of two endpoints is chosen would be chance.
    all.extend(service("second", "app", SECOND_VIP, &[("http", 8080), ("tcp", 8081)], &json!({"app": "second"})));
    all.push(slice("second", "second", "app", &[("http", ECHO_HTTP), ("tcp", ECHO_TCP)], SERVER_V2, "server-v2"));
    all.extend(service("plain", "app", PLAIN_VIP, &[("http", 8080), ("http-tls", 8443)], &json!({"app": "plain"})));
    all.push(slice("plain", "plain", "app", &[("http", ECHO_HTTP), ("http-tls", ECHO_TLS)], PLAIN, "plain"));
    let ports = [("http", 8080), ("https", 8443)];
    all.extend(service("gateway", "istio-system", 120, &ports, &json!({"istio": "ingressgateway"})));
    all.push(slice("gateway", "gateway", "istio-system", &ports, GATEWAY, "gateway"));
    all.push(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": "abroad", "namespace": "web"},
        "spec": {"hosts": ["api.example.com"], "addresses": [at(ABROAD_VIP)], "location": "MESH_EXTERNAL", "resolution": "STATIC",
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": ECHO_HTTP},
                      {"number": 8081, "name": "tcp", "protocol": "TCP", "targetPort": ECHO_TCP}],
            "endpoints": [{"address": at(ABROAD)}]}}));
    all
}

/// An address of home.
pub fn at(last: u8) -> String {
    format!("{HOME}{last}")
}

fn pod(name: &str, namespace: &str, account: &str, last: u8, sidecar: bool, mut labels: Value) -> Value {
    if sidecar {
        labels["security.istio.io/tlsMode"] = json!("istio");
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"serviceAccountName": account, "containers": [{"name": "app"}]},
        "status": {"phase": "Running", "podIP": at(last), "podIPs": [{"ip": at(last)}],
                   "conditions": [{"type": "Ready", "status": "True"}]}})
}

fn service(name: &str, namespace: &str, vip: u8, ports: &[(&str, u16)], selector: &Value) -> [Value; 1] {
    let ports: Vec<Value> = ports
        .iter()
        .map(|(name, port)| json!({"name": name, "port": port, "targetPort": port, "protocol": "TCP"}))
        .collect();
    [json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterIP": at(vip), "clusterIPs": [at(vip)], "selector": selector, "ports": ports}})]
}

fn slice(name: &str, service: &str, namespace: &str, ports: &[(&str, u16)], last: u8, pod: &str) -> Value {
    let ports: Vec<Value> =
        ports.iter().map(|(name, port)| json!({"name": name, "port": port, "protocol": "TCP"})).collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": ports,
        "endpoints": [{"addresses": [at(last)], "conditions": {"ready": true},
                       "targetRef": {"kind": "Pod", "name": pod, "namespace": namespace}}]})
}
