//! The Gateway API in Istio's words: its objects become Gateways, VirtualServices and DestinationRules, and conditions on themselves.
//!
//! Invariant: pure. What is attached, permitted and resolved is decided here alone; what the results mean for a proxy is decided by the same
//! code as for objects that people write. A listener or rule that cannot be honoured serves nobody, and its condition says why.

mod attach;
mod conditions;
mod deploy;
mod filters;
mod gateways;
mod grpc;
mod http;
mod parameters;
mod references;
mod streams;
mod tls_policies;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use carrick_api::{
    ConfigMap, DestinationRule, Gateway, Namespace, Pod, Secret, Service, VirtualService,
    gateway_api::{
        BackendTlsPolicy, GatewayClass, GrpcRoute, HttpRoute, K8sGateway, ListenerSet, ReferenceGrant, TcpRoute,
        TlsRoute, UdpRoute,
    },
};
use carrick_base::ObjectRef;
use serde_json::Value;

pub use deploy::{GatewayService, MANAGED_LABEL};
pub use parameters::Overlays;

/// The controller in the name of which classes are taken and conditions written: Istio's, so that its manifests work as they stand.
pub const CONTROLLER: &str = "istio.io/gateway-controller";
/// The classes that need no object: Istio's, and ours of the same meaning.
pub const CLASSES: [&str; 2] = ["istio", "carrick"];
/// On Gateways that are made here: the namespace of the pods they are for.
pub const ONLY_NAMESPACE: &str = "internal.carrick.dev/only-namespace";
/// The label of a gateway's pods.
pub const GATEWAY_LABEL: &str = "gateway.networking.k8s.io/gateway-name";

/// All objects of the Gateway API.
#[derive(Debug, Clone, Default)]
pub struct GatewayApiInput {
    /// Classes.
    pub classes: Vec<Arc<GatewayClass>>,
    /// Gateways.
    pub gateways: Vec<Arc<K8sGateway>>,
    /// More listeners.
    pub listener_sets: Vec<Arc<ListenerSet>>,
    /// Routes of requests.
    pub http_routes: Vec<Arc<HttpRoute>>,
    /// Routes of calls.
    pub grpc_routes: Vec<Arc<GrpcRoute>>,
    /// Routes by server name.
    pub tls_routes: Vec<Arc<TlsRoute>>,
    /// Routes of connections.
    pub tcp_routes: Vec<Arc<TcpRoute>>,
    /// Routes of datagrams.
    pub udp_routes: Vec<Arc<UdpRoute>>,
    /// TLS towards backends.
    pub backend_tls_policies: Vec<Arc<BackendTlsPolicy>>,
    /// References from other namespaces.
    pub reference_grants: Vec<Arc<ReferenceGrant>>,
}

impl GatewayApiInput {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
            && self.gateways.is_empty()
            && self.listener_sets.is_empty()
            && self.http_routes.is_empty()
            && self.grpc_routes.is_empty()
            && self.tls_routes.is_empty()
            && self.tcp_routes.is_empty()
            && self.udp_routes.is_empty()
            && self.backend_tls_policies.is_empty()
    }
}

/// What else the translation looks at.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings<'a> {
    /// Namespaces, for their labels.
    pub namespaces: &'a [Arc<Namespace>],
    /// Services, for backends and for the addresses of gateways.
    pub services: &'a [Arc<Service>],
    /// Secrets, for certificates.
    pub secrets: &'a [Arc<Secret>],
    /// Config maps, for the certificates of authorities and for parameters of gateways.
    pub config_maps: &'a [Arc<ConfigMap>],
    /// Pods, for the gateways that run.
    pub pods: &'a [Arc<Pod>],
    /// The cluster's DNS suffix.
    pub domain: &'a str,
    /// The control plane's namespace.
    pub root: &'a str,
}

/// What the objects mean, and what is to be said on them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Translated {
    /// Gateways.
    pub gateways: Vec<Arc<Gateway>>,
    /// VirtualServices.
    pub virtual_services: Vec<Arc<VirtualService>>,
    /// DestinationRules.
    pub destination_rules: Vec<Arc<DestinationRule>>,
    /// Secrets of other namespaces that proxies of a namespace (any, where it is empty) may have: SDS names.
    pub granted: BTreeSet<(String, String)>,
    /// Services that gateways are to have, as manifests.
    pub services: Vec<GatewayService>,
    /// The `status` of each object that is ours, without times of transition.
    pub statuses: BTreeMap<ObjectRef, Value>,
}

/// Translates everything.
pub fn translate(input: &GatewayApiInput, around: Surroundings<'_>) -> Translated {
    if input.is_empty() {
        return Translated::default();
    }
    let mut out = Translated::default();
    let grants = references::Grants::of(&input.reference_grants);
    let mut all = gateways::Gateways::of(input, around, &grants, &mut out);
    let backends = references::Backends { around, grants: &grants };
    let mut hosts = attach::Hosts::default();
    http::routes(&input.http_routes, &mut all, &backends, &mut hosts, &mut out);
    grpc::routes(&input.grpc_routes, &mut all, &backends, &mut hosts, &mut out);
    streams::tls(&input.tls_routes, &mut all, &backends, &mut out);
    streams::tcp(&input.tcp_routes, &mut all, &backends, &mut out);
    streams::udp(&input.udp_routes, &all, &mut out);
    all.enclosed().for_each(|listener| hosts.close(listener));
    hosts.finish(&mut out);
    tls_policies::policies(&input.backend_tls_policies, &backends, &all, &mut out);
    all.finish(&mut out);
    out
}
