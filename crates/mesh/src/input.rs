//! What a snapshot is built of: typed objects of `carrick-api`.
//!
//! Invariant: order does not matter. Reading bytes into these is `carrick-api`'s.

use std::sync::Arc;

use carrick_api::{
    AuthorizationPolicy, ConfigMap, DestinationRule, EndpointSlice, EnvoyFilter, Gateway, LegacyPolicy, MeshConfig,
    MeshNetworks, Namespace, Node, PeerAuthentication, Pod, ProxyConfig, RequestAuthentication, Secret, Service,
    ServiceEntry, Sidecar, Telemetry, VirtualService, WorkloadEntry,
};

use carrick_base::Diagnostic;

use crate::{FetchedKeys, gateway_api::GatewayApiInput};

/// All objects at one moment.
#[derive(Debug, Clone, Default)]
pub struct SnapshotInput {
    /// The mesh's settings.
    pub mesh_config: MeshConfig,
    /// Networks, and the gateways between them, as far as labels do not tell.
    pub mesh_networks: MeshNetworks,
    /// What the own cluster is called; empty for the default.
    pub cluster_id: Arc<str>,
    /// What other clusters hold, by cluster.
    pub remotes: Vec<RemoteInput>,
    /// All namespaces.
    pub namespaces: Vec<Arc<Namespace>>,
    /// All services.
    pub services: Vec<Arc<Service>>,
    /// Endpoints, and what stands behind them.
    pub endpoints: EndpointInput,
    /// All PeerAuthentications.
    pub peer_authentications: Vec<Arc<PeerAuthentication>>,
    /// All AuthorizationPolicies.
    pub authorization_policies: Vec<Arc<AuthorizationPolicy>>,
    /// All RequestAuthentications.
    pub request_authentications: Vec<Arc<RequestAuthentication>>,
    /// Keys that RequestAuthentications name and that were fetched.
    pub keys: FetchedKeys,
    /// All Policies of the old API.
    pub legacy_policies: Vec<Arc<LegacyPolicy>>,
    /// All MeshPolicies of the old API.
    pub legacy_mesh_policies: Vec<Arc<LegacyPolicy>>,
    /// All DestinationRules.
    pub destination_rules: Vec<Arc<DestinationRule>>,
    /// All ServiceEntries.
    pub service_entries: Vec<Arc<ServiceEntry>>,
    /// All Sidecars.
    pub sidecars: Vec<Arc<Sidecar>>,
    /// All VirtualServices.
    pub virtual_services: Vec<Arc<VirtualService>>,
    /// All Gateways.
    pub gateways: Vec<Arc<Gateway>>,
    /// All Secrets.
    pub secrets: Vec<Arc<Secret>>,
    /// All config maps, for the roots in them.
    pub config_maps: Vec<Arc<ConfigMap>>,
    /// All EnvoyFilters.
    pub envoy_filters: Vec<Arc<EnvoyFilter>>,
    /// All Telemetries.
    pub telemetries: Vec<Arc<Telemetry>>,
    /// All ProxyConfigs.
    pub proxy_configs: Vec<Arc<ProxyConfig>>,
    /// What was found wrong before anything was read, to be told with the rest.
    pub findings: Vec<Diagnostic>,
    /// All objects of the Gateway API.
    pub gateway_api: GatewayApiInput,
}

impl SnapshotInput {
    /// The policies for servers.
    pub fn policies(&self) -> PolicyInput {
        PolicyInput {
            peer_authentications: self.peer_authentications.clone(),
            authorization_policies: self.authorization_policies.clone(),
            request_authentications: self.request_authentications.clone(),
        }
    }

    /// Puts others in their place.
    pub fn set_policies(&mut self, policies: PolicyInput) {
        self.peer_authentications = policies.peer_authentications;
        self.authorization_policies = policies.authorization_policies;
        self.request_authentications = policies.request_authentications;
    }
}

/// Policies for servers: what they take, and from whom.
#[derive(Debug, Clone, Default)]
pub struct PolicyInput {
    /// All PeerAuthentications.
    pub peer_authentications: Vec<Arc<PeerAuthentication>>,
    /// All AuthorizationPolicies.
    pub authorization_policies: Vec<Arc<AuthorizationPolicy>>,
    /// All RequestAuthentications.
    pub request_authentications: Vec<Arc<RequestAuthentication>>,
}

/// The objects that change most often.
#[derive(Debug, Clone, Default)]
pub struct EndpointInput {
    /// All endpoint slices.
    pub endpoint_slices: Vec<Arc<EndpointSlice>>,
    /// All pods.
    pub pods: Vec<Arc<Pod>>,
    /// All WorkloadEntries.
    pub workload_entries: Vec<Arc<WorkloadEntry>>,
    /// All nodes.
    pub nodes: Vec<Arc<Node>>,
    /// Those of other clusters, by cluster.
    pub remotes: Vec<RemoteEndpoints>,
}

/// What another cluster holds. Its services are the mesh's; its configuration is its own.
#[derive(Debug, Clone, Default)]
pub struct RemoteInput {
    /// What the cluster is called.
    pub cluster: Arc<str>,
    /// All namespaces.
    pub namespaces: Vec<Arc<Namespace>>,
    /// All services.
    pub services: Vec<Arc<Service>>,
}

/// Endpoints of another cluster.
#[derive(Debug, Clone, Default)]
pub struct RemoteEndpoints {
    /// What the cluster is called.
    pub cluster: Arc<str>,
    /// All endpoint slices.
    pub endpoint_slices: Vec<Arc<EndpointSlice>>,
    /// All pods.
    pub pods: Vec<Arc<Pod>>,
    /// All nodes.
    pub nodes: Vec<Arc<Node>>,
}
