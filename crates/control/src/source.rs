//! The kinds of objects the control plane reads, and where changes of them come from.
//!
//! Invariant: [`KINDS`] is the only list of kinds; a kind that is added there is watched, kept, waited for at start and
//! compared when somebody asks whether a resource version has arrived.

pub(crate) mod kube;

use serde_json::Value;
use tokio::sync::mpsc;

/// A kind the control plane reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Namespaces.
    Namespace,
    /// Services.
    Service,
    /// Endpoint slices.
    EndpointSlice,
    /// Pods.
    Pod,
    /// PeerAuthentications.
    PeerAuthentication,
    /// DestinationRules.
    DestinationRule,
    /// ServiceEntries.
    ServiceEntry,
    /// WorkloadEntries.
    WorkloadEntry,
    /// Sidecars.
    Sidecar,
    /// Nodes.
    Node,
    /// VirtualServices.
    VirtualService,
    /// Gateways.
    Gateway,
    /// Secrets, for TLS.
    Secret,
    /// Config maps, for roots.
    ConfigMap,
    /// EnvoyFilters.
    EnvoyFilter,
    /// AuthorizationPolicies.
    AuthorizationPolicy,
    /// RequestAuthentications.
    RequestAuthentication,
    /// Telemetries.
    Telemetry,
    /// ProxyConfigs.
    ProxyConfig,
    /// Policies of the old authentication API.
    LegacyPolicy,
    /// MeshPolicies of the old authentication API.
    LegacyMeshPolicy,
    /// Classes of the Gateway API.
    GatewayClass,
    /// Gateways of the Gateway API.
    K8sGateway,
    /// ListenerSets.
    ListenerSet,
    /// HTTPRoutes.
    HttpRoute,
    /// GRPCRoutes.
    GrpcRoute,
    /// TLSRoutes.
    TlsRoute,
    /// TCPRoutes.
    TcpRoute,
    /// UDPRoutes.
    UdpRoute,
    /// BackendTLSPolicies.
    BackendTlsPolicy,
    /// ReferenceGrants.
    ReferenceGrant,
}

/// How a kind is found in the API.
#[derive(Debug, Clone, Copy)]
pub struct KindInfo {
    /// Which.
    pub kind: Kind,
    /// API group; empty for the core group.
    pub group: &'static str,
    /// The versions that are read, all of one form: the first of them that an API serves.
    pub versions: &'static [&'static str],
    /// The kind's name.
    pub name: &'static str,
    /// The resource's name in paths.
    pub plural: &'static str,
    /// Changes of it concern endpoints only, and take the short way.
    pub endpoints: bool,
}

impl Kind {
    /// It says what servers take, and from whom: changes of it leave the rest as it is.
    pub fn is_policy(self) -> bool {
        matches!(self, Self::PeerAuthentication | Self::AuthorizationPolicy | Self::RequestAuthentication)
    }
}

/// Everything that is read.
pub const KINDS: [KindInfo; 31] = [
    core(Kind::Namespace, "", "Namespace", "namespaces", false),
    core(Kind::Service, "", "Service", "services", false),
    core(Kind::EndpointSlice, "discovery.k8s.io", "EndpointSlice", "endpointslices", true),
    core(Kind::Pod, "", "Pod", "pods", true),
    core(Kind::PeerAuthentication, "security.istio.io", "PeerAuthentication", "peerauthentications", false),
    core(Kind::DestinationRule, "networking.istio.io", "DestinationRule", "destinationrules", false),
    core(Kind::ServiceEntry, "networking.istio.io", "ServiceEntry", "serviceentries", false),
    core(Kind::WorkloadEntry, "networking.istio.io", "WorkloadEntry", "workloadentries", true),
    core(Kind::Sidecar, "networking.istio.io", "Sidecar", "sidecars", false),
    core(Kind::Node, "", "Node", "nodes", true),
    core(Kind::VirtualService, "networking.istio.io", "VirtualService", "virtualservices", false),
    core(Kind::Gateway, "networking.istio.io", "Gateway", "gateways", false),
    core(Kind::Secret, "", "Secret", "secrets", false),
    core(Kind::ConfigMap, "", "ConfigMap", "configmaps", false),
    KindInfo {
        versions: &["v1alpha3"],
        ..core(Kind::EnvoyFilter, "networking.istio.io", "EnvoyFilter", "envoyfilters", false)
    },
    core(Kind::AuthorizationPolicy, "security.istio.io", "AuthorizationPolicy", "authorizationpolicies", false),
    core(Kind::RequestAuthentication, "security.istio.io", "RequestAuthentication", "requestauthentications", false),
    core(Kind::Telemetry, "telemetry.istio.io", "Telemetry", "telemetries", false),
    KindInfo {
        versions: &["v1beta1"],
        ..core(Kind::ProxyConfig, "networking.istio.io", "ProxyConfig", "proxyconfigs", false)
    },
    legacy(Kind::LegacyPolicy, "Policy", "policies"),
    legacy(Kind::LegacyMeshPolicy, "MeshPolicy", "meshpolicies"),
    gateway(Kind::GatewayClass, STABLE, "GatewayClass", "gatewayclasses"),
    gateway(Kind::K8sGateway, STABLE, "Gateway", "gateways"),
    gateway(Kind::ListenerSet, V1, "ListenerSet", "listenersets"),
    gateway(Kind::HttpRoute, STABLE, "HTTPRoute", "httproutes"),
    gateway(Kind::GrpcRoute, V1, "GRPCRoute", "grpcroutes"),
    gateway(Kind::TlsRoute, &["v1", "v1alpha3", "v1alpha2"], "TLSRoute", "tlsroutes"),
    gateway(Kind::TcpRoute, LAYER4, "TCPRoute", "tcproutes"),
    gateway(Kind::UdpRoute, LAYER4, "UDPRoute", "udproutes"),
    gateway(Kind::BackendTlsPolicy, &["v1", "v1alpha3"], "BackendTLSPolicy", "backendtlspolicies"),
    gateway(Kind::ReferenceGrant, STABLE, "ReferenceGrant", "referencegrants"),
];

const V1: &[&str] = &["v1"];
const STABLE: &[&str] = &["v1", "v1beta1"];
const LAYER4: &[&str] = &["v1", "v1alpha2"];

const fn core(kind: Kind, group: &'static str, name: &'static str, plural: &'static str, endpoints: bool) -> KindInfo {
    KindInfo { kind, group, versions: V1, name, plural, endpoints }
}

const fn gateway(kind: Kind, versions: &'static [&'static str], name: &'static str, plural: &'static str) -> KindInfo {
    KindInfo { kind, group: "gateway.networking.k8s.io", versions, name, plural, endpoints: false }
}

const fn legacy(kind: Kind, name: &'static str, plural: &'static str) -> KindInfo {
    KindInfo { kind, group: "authentication.istio.io", versions: &["v1alpha1"], name, plural, endpoints: false }
}

impl Kind {
    /// The row of [`KINDS`].
    pub fn info(self) -> &'static KindInfo {
        const FALLBACK: &KindInfo = &KINDS[0];
        KINDS.iter().find(|info| info.kind == self).unwrap_or(FALLBACK)
    }
}

/// Namespace (empty for cluster-wide objects) and name.
pub(crate) type Name = (String, String);

/// What happened to objects of a kind. Objects are as the API gives them, with their metadata.
#[derive(Debug, Clone)]
pub enum Change {
    /// One appeared or changed.
    Apply(Value),
    /// One went; its last state.
    Delete(Value),
    /// These are all there are: after the first list, and after a watch could not be resumed.
    Replace(Vec<Value>),
}

/// A change of one kind.
#[derive(Debug, Clone)]
pub struct Event {
    /// Of which kind.
    pub kind: Kind,
    /// What happened.
    pub change: Change,
}

/// Where objects come from.
pub enum Objects {
    /// A Kubernetes API, real or embedded.
    Kube(::kube::Client),
    /// Told by somebody else: tests and simulations.
    Told(mpsc::Receiver<Event>),
}

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kube(_) => "Kube",
            Self::Told(_) => "Told",
        })
    }
}
