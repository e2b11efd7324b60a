//! All objects the control plane has seen, typed, with their resource versions.
//!
//! Invariant: what is not a change of anything the mesh reads (a heartbeat in a pod's status, a version) is not told as
//! one; an object that cannot be read is kept out, alone, with the reason.

use crate::keys::Wanted;
use crate::source::{Change, Kind, Name};
use carrick_api::gateway_api::{
    BackendTlsPolicy, GatewayClass, GrpcRoute, HttpRoute, K8sGateway, ListenerSet, ReferenceGrant, TcpRoute, TlsRoute,
    UdpRoute,
};
use carrick_api::istio::authorization_policy::{AuthorizationAction, AuthorizationRule};
use carrick_api::scalar::Duration;
use carrick_api::{
    AuthorizationPolicy, ConfigMap, DestinationRule, EndpointSlice, EnvoyFilter, Gateway, LegacyPolicy, MeshConfig,
    Namespace, Node, PeerAuthentication, Pod, ProxyConfig, RequestAuthentication, Secret, Service, ServiceEntry,
    Sidecar, Telemetry, VirtualService, WorkloadEntry, from_value,
};
use carrick_mesh::gateway_api::GatewayApiInput;
use carrick_mesh::{EndpointInput, FetchedKeys, KeySource, PolicyInput, RemoteEndpoints, RemoteInput, SnapshotInput};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How long fetching keys may take when their rule says nothing.
const KEY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

#[derive(Debug)]
struct Table<T> {
    objects: BTreeMap<Name, Arc<T>>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { objects: BTreeMap::new() }
    }
}

impl<T: DeserializeOwned + PartialEq> Table<T> {
    /// Whether anything the mesh reads changed.
    fn apply(&mut self, name: &Name, value: &Value) -> Result<bool, String> {
        match from_value::<T>(value) {
            Ok(object) => {
                if self.objects.get(name).is_some_and(|known| **known == object) {
                    return Ok(false);
                }
                self.objects.insert(name.clone(), Arc::new(object));
                Ok(true)
            }
            Err(error) => {
                self.objects.remove(name);
                Err(error.message)
            }
        }
    }

    fn all(&self) -> Vec<Arc<T>> {
        self.objects.values().cloned().collect()
    }

    /// Those of the namespaces that count.
    fn within(&self, counted: &Counted) -> Vec<Arc<T>> {
        self.objects.iter().filter(|((namespace, _), _)| counted.has(namespace)).map(|(_, o)| o.clone()).collect()
    }
}

/// Namespaces whose objects count; `None` is all of them.
struct Counted(Option<BTreeSet<String>>);

impl Counted {
    fn has(&self, namespace: &str) -> bool {
        self.0.as_ref().is_none_or(|chosen| chosen.contains(namespace))
    }
}

/// Every object, by kind.
#[derive(Debug, Default)]
pub(crate) struct Known {
    namespaces: Table<Namespace>,
    services: Table<Service>,
    endpoint_slices: Table<EndpointSlice>,
    pods: Table<Pod>,
    peer_authentications: Table<PeerAuthentication>,
    destination_rules: Table<DestinationRule>,
    service_entries: Table<ServiceEntry>,
    workload_entries: Table<WorkloadEntry>,
    sidecars: Table<Sidecar>,
    nodes: Table<Node>,
    virtual_services: Table<VirtualService>,
    gateways: Table<Gateway>,
    secrets: Table<Secret>,
    config_maps: Table<ConfigMap>,
    envoy_filters: Table<EnvoyFilter>,
    classes: Table<GatewayClass>,
    k8s_gateways: Table<K8sGateway>,
    listener_sets: Table<ListenerSet>,
    http_routes: Table<HttpRoute>,
    grpc_routes: Table<GrpcRoute>,
    tls_routes: Table<TlsRoute>,
    tcp_routes: Table<TcpRoute>,
    udp_routes: Table<UdpRoute>,
    backend_tls_policies: Table<BackendTlsPolicy>,
    reference_grants: Table<ReferenceGrant>,
    authorization_policies: Table<AuthorizationPolicy>,
    request_authentications: Table<RequestAuthentication>,
    telemetries: Table<Telemetry>,
    proxy_configs: Table<ProxyConfig>,
    legacy_policies: Table<LegacyPolicy>,
    legacy_mesh_policies: Table<LegacyPolicy>,
    versions: BTreeMap<Kind, BTreeMap<Name, u64>>,
}

/// What a change came to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Something the mesh reads is different now.
    pub(crate) changed: bool,
    /// The highest resource version in the change.
    pub(crate) version: u64,
    /// Objects that could not be read: name and reason.
    pub(crate) broken: Vec<(Name, String)>,
}

impl Known {
    /// The resource versions of all objects of a kind; `None` before it was listed.
    pub(crate) fn versions(&self, kind: Kind) -> Option<&BTreeMap<Name, u64>> {
        self.versions.get(&kind)
    }

    /// Takes a change over.
    pub(crate) fn take(&mut self, kind: Kind, change: Change) -> Outcome {
        let mut outcome = Outcome::default();
        match change {
            Change::Apply(value) => self.apply(kind, value, &mut outcome),
            Change::Delete(value) => {
                let (name, version) = identify(&value);
                outcome.version = version;
                self.versions.entry(kind).or_default().remove(&name);
                outcome.changed = self.remove(kind, &name);
            }
            Change::Replace(values) => {
                let before = self.versions.insert(kind, BTreeMap::new()).unwrap_or_default();
                for value in values {
                    self.apply(kind, value, &mut outcome);
                }
                let gone: Vec<Name> = {
                    let now = self.versions.entry(kind).or_default();
                    before.into_keys().filter(|name| !now.contains_key(name)).collect()
                };
                for name in gone {
                    outcome.changed |= self.remove(kind, &name);
                }
            }
        }
        outcome
    }

    fn apply(&mut self, kind: Kind, mut value: Value, outcome: &mut Outcome) {
        let (name, version) = identify(&value);
        outcome.version = outcome.version.max(version);
        self.versions.entry(kind).or_default().insert(name.clone(), version);
        // The version is not part of what the mesh reads; with it nothing would ever be equal.
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("resourceVersion");
            metadata.remove("managedFields");
        }
        let result = match kind {
            Kind::Namespace => self.namespaces.apply(&name, &value),
            Kind::Service => self.services.apply(&name, &value),
            Kind::EndpointSlice => self.endpoint_slices.apply(&name, &value),
            Kind::Pod => self.pods.apply(&name, &value),
            Kind::PeerAuthentication => self.peer_authentications.apply(&name, &value),
            Kind::DestinationRule => self.destination_rules.apply(&name, &value),
            Kind::ServiceEntry => self.service_entries.apply(&name, &value),
            Kind::WorkloadEntry => self.workload_entries.apply(&name, &value),
            Kind::Sidecar => self.sidecars.apply(&name, &value),
            Kind::Node => self.nodes.apply(&name, &value),
            Kind::VirtualService => self.virtual_services.apply(&name, &value),
            Kind::Gateway => self.gateways.apply(&name, &value),
            Kind::Secret => self.secrets.apply(&name, &value),
            Kind::ConfigMap => self.config_maps.apply(&name, &value),
            Kind::EnvoyFilter => self.envoy_filters.apply(&name, &value),
            Kind::GatewayClass => self.classes.apply(&name, &value),
            Kind::K8sGateway => self.k8s_gateways.apply(&name, &value),
            Kind::ListenerSet => self.listener_sets.apply(&name, &value),
            Kind::HttpRoute => self.http_routes.apply(&name, &value),
            Kind::GrpcRoute => self.grpc_routes.apply(&name, &value),
            Kind::TlsRoute => self.tls_routes.apply(&name, &value),
            Kind::TcpRoute => self.tcp_routes.apply(&name, &value),
            Kind::UdpRoute => self.udp_routes.apply(&name, &value),
            Kind::BackendTlsPolicy => self.backend_tls_policies.apply(&name, &value),
            Kind::ReferenceGrant => self.reference_grants.apply(&name, &value),
            Kind::AuthorizationPolicy => self.authorization_policies.apply(&name, &value).inspect_err(|_| {
                // Without it more would be let through than its author wanted, so that nothing is until it can be read.
                let closed = closed_policy(&value);
                self.authorization_policies.objects.insert(name.clone(), Arc::new(closed));
            }),
            Kind::RequestAuthentication => self.request_authentications.apply(&name, &value),
            Kind::Telemetry => self.telemetries.apply(&name, &value),
            Kind::ProxyConfig => self.proxy_configs.apply(&name, &value),
            Kind::LegacyPolicy => self.legacy_policies.apply(&name, &value),
            Kind::LegacyMeshPolicy => self.legacy_mesh_policies.apply(&name, &value),
        };
        match result {
            Ok(changed) => outcome.changed |= changed,
            Err(reason) => {
                outcome.changed = true;
                outcome.broken.push((name, reason));
            }
        }
    }

    fn remove(&mut self, kind: Kind, name: &Name) -> bool {
        match kind {
            Kind::Namespace => self.namespaces.objects.remove(name).is_some(),
            Kind::Service => self.services.objects.remove(name).is_some(),
            Kind::EndpointSlice => self.endpoint_slices.objects.remove(name).is_some(),
            Kind::Pod => self.pods.objects.remove(name).is_some(),
            Kind::PeerAuthentication => self.peer_authentications.objects.remove(name).is_some(),
            Kind::DestinationRule => self.destination_rules.objects.remove(name).is_some(),
            Kind::ServiceEntry => self.service_entries.objects.remove(name).is_some(),
            Kind::WorkloadEntry => self.workload_entries.objects.remove(name).is_some(),
            Kind::Sidecar => self.sidecars.objects.remove(name).is_some(),
            Kind::Node => self.nodes.objects.remove(name).is_some(),
            Kind::VirtualService => self.virtual_services.objects.remove(name).is_some(),
            Kind::Gateway => self.gateways.objects.remove(name).is_some(),
            Kind::Secret => self.secrets.objects.remove(name).is_some(),
            Kind::ConfigMap => self.config_maps.objects.remove(name).is_some(),
            Kind::EnvoyFilter => self.envoy_filters.objects.remove(name).is_some(),
            Kind::GatewayClass => self.classes.objects.remove(name).is_some(),
            Kind::K8sGateway => self.k8s_gateways.objects.remove(name).is_some(),
            Kind::ListenerSet => self.listener_sets.objects.remove(name).is_some(),
            Kind::HttpRoute => self.http_routes.objects.remove(name).is_some(),
            Kind::GrpcRoute => self.grpc_routes.objects.remove(name).is_some(),
            Kind::TlsRoute => self.tls_routes.objects.remove(name).is_some(),
            Kind::TcpRoute => self.tcp_routes.objects.remove(name).is_some(),
            Kind::UdpRoute => self.udp_routes.objects.remove(name).is_some(),
            Kind::BackendTlsPolicy => self.backend_tls_policies.objects.remove(name).is_some(),
            Kind::ReferenceGrant => self.reference_grants.objects.remove(name).is_some(),
            Kind::AuthorizationPolicy => self.authorization_policies.objects.remove(name).is_some(),
            Kind::RequestAuthentication => self.request_authentications.objects.remove(name).is_some(),
            Kind::Telemetry => self.telemetries.objects.remove(name).is_some(),
            Kind::ProxyConfig => self.proxy_configs.objects.remove(name).is_some(),
            Kind::LegacyPolicy => self.legacy_policies.objects.remove(name).is_some(),
            Kind::LegacyMeshPolicy => self.legacy_mesh_policies.objects.remove(name).is_some(),
        }
    }

    /// How many services there are.
    pub(crate) fn service_count(&self) -> usize {
        self.services.objects.len()
    }

    /// The namespaces that the mesh's `discoverySelectors` leave (semantics §15). The root namespace always counts: what
    /// holds for the whole mesh cannot be deselected by accident.
    fn counted(&self, mesh: &MeshConfig) -> Counted {
        if mesh.discovery_selectors.is_empty() {
            return Counted(None);
        }
        let chosen = |n: &&Arc<Namespace>| mesh.discovery_selectors.iter().any(|s| s.matches(&n.metadata.labels));
        let named = self.namespaces.objects.values().filter(chosen).map(|n| n.metadata.name.clone());
        Counted(Some(named.chain([mesh.root_namespace.clone()]).collect()))
    }

    /// What endpoints are made of.
    pub(crate) fn endpoints(&self, mesh: &MeshConfig) -> EndpointInput {
        let counted = &self.counted(mesh);
        EndpointInput {
            endpoint_slices: self.endpoint_slices.within(counted),
            // Every pod: who calls from a namespace that does not count still has its identity and its policies.
            pods: self.pods.all(),
            workload_entries: self.workload_entries.within(counted),
            nodes: self.nodes.all(),
            remotes: Vec::new(),
        }
    }

    /// Policies for servers. They count everywhere: without them a workload of a namespace that does not count would let in more than
    /// its author wanted.
    pub(crate) fn policies(&self) -> PolicyInput {
        PolicyInput {
            peer_authentications: self.peer_authentications.all(),
            authorization_policies: self.authorization_policies.all(),
            request_authentications: self.request_authentications.all(),
        }
    }

    /// What counts of another cluster, without its endpoints.
    pub(crate) fn remote(&self, cluster: &Arc<str>) -> RemoteInput {
        RemoteInput { cluster: cluster.clone(), namespaces: self.namespaces.all(), services: self.services.all() }
    }

    /// Another cluster's endpoints.
    pub(crate) fn remote_endpoints(&self, cluster: &Arc<str>) -> RemoteEndpoints {
        RemoteEndpoints {
            cluster: cluster.clone(),
            endpoint_slices: self.endpoint_slices.all(),
            pods: self.pods.all(),
            nodes: self.nodes.all(),
        }
    }

    /// Where the keys are that token rules name, with the time that fetching them may take.
    pub(crate) fn key_sources(&self) -> Wanted {
        let new = self.request_authentications.objects.values().flat_map(|p| &p.spec.jwt_rules);
        let new = new.map(|r| (KeySource::of(&r.issuer, &r.jwks_uri, &r.jwks), r.timeout.map(Duration::get)));
        let old = self.legacy_policies.objects.values().chain(self.legacy_mesh_policies.objects.values());
        let old = old.flat_map(|p| &p.spec.origins).filter_map(|o| o.jwt.as_ref());
        let old = old.map(|jwt| (KeySource::of(&jwt.issuer, &jwt.jwks_uri, &jwt.jwks), None));
        let mut all = Wanted::new();
        for (source, limit) in new.chain(old) {
            let Some(source) = source else { continue };
            let limit = limit.filter(|l| !l.is_zero()).unwrap_or(KEY_TIMEOUT);
            let known = all.entry(source).or_insert(limit);
            *known = (*known).max(limit);
        }
        all
    }

    /// What a snapshot is made of.
    pub(crate) fn input(&self, mesh_config: &MeshConfig, keys: FetchedKeys) -> SnapshotInput {
        let counted = &self.counted(mesh_config);
        let mut input = SnapshotInput {
            mesh_config: mesh_config.clone(),
            namespaces: self.namespaces.all(),
            services: self.services.within(counted),
            endpoints: self.endpoints(mesh_config),
            destination_rules: self.destination_rules.within(counted),
            service_entries: self.service_entries.within(counted),
            sidecars: self.sidecars.within(counted),
            virtual_services: self.virtual_services.within(counted),
            gateways: self.gateways.within(counted),
            secrets: self.secrets.all(),
            config_maps: self.config_maps.all(),
            envoy_filters: self.envoy_filters.within(counted),
            gateway_api: GatewayApiInput {
                classes: self.classes.all(),
                gateways: self.k8s_gateways.within(counted),
                listener_sets: self.listener_sets.within(counted),
                http_routes: self.http_routes.within(counted),
                grpc_routes: self.grpc_routes.within(counted),
                tls_routes: self.tls_routes.within(counted),
                tcp_routes: self.tcp_routes.within(counted),
                udp_routes: self.udp_routes.within(counted),
                backend_tls_policies: self.backend_tls_policies.within(counted),
                reference_grants: self.reference_grants.all(),
            },
            keys,
            telemetries: self.telemetries.within(counted),
            proxy_configs: self.proxy_configs.all(),
            legacy_policies: self.legacy_policies.all(),
            legacy_mesh_policies: self.legacy_mesh_policies.all(),
            ..SnapshotInput::default()
        };
        input.set_policies(self.policies());
        input
    }
}

/// What stands for a policy that cannot be read: it denies everything, to the workloads it selects if that much can be read.
fn closed_policy(value: &Value) -> AuthorizationPolicy {
    let mut policy = AuthorizationPolicy::default();
    let part = |path: &str| value.pointer(path).cloned().unwrap_or(Value::Null);
    let (name, _) = identify(value);
    policy.metadata = from_value(&part("/metadata")).unwrap_or_default();
    (policy.metadata.namespace, policy.metadata.name) = name;
    policy.metadata.annotations.clear();
    policy.spec.selector = from_value(&part("/spec/selector")).unwrap_or_default();
    policy.spec.target_refs = from_value(&part("/spec/targetRefs")).unwrap_or_default();
    policy.spec.action = AuthorizationAction::Deny;
    policy.spec.rules = vec![AuthorizationRule::default()];
    policy
}

/// Name and resource version of an object.
pub(crate) fn identify(value: &Value) -> (Name, u64) {
    let text = |field: &str| {
        value.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    ((text("namespace"), text("name")), text("resourceVersion").parse().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn namespace(name: &str, version: u64, label: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Namespace",
               "metadata": {"name": name, "resourceVersion": version.to_string(), "labels": {"a": label}}})
    }

    #[test]
    fn only_real_changes_count() {
        let mut known = Known::default();
        assert!(known.versions(Kind::Namespace).is_none());
        let outcome =
            known.take(Kind::Namespace, Change::Replace(vec![namespace("x", 3, "1"), namespace("y", 5, "1")]));
        assert!(outcome.changed && outcome.version == 5);
        assert!(!known.take(Kind::Namespace, Change::Apply(namespace("x", 7, "1"))).changed, "only the version");
        assert!(known.take(Kind::Namespace, Change::Apply(namespace("x", 8, "2"))).changed);
        let again = vec![namespace("x", 8, "2"), namespace("y", 5, "1")];
        assert!(!known.take(Kind::Namespace, Change::Replace(again)).changed, "a new list of the same");
        let outcome = known.take(Kind::Namespace, Change::Replace(vec![namespace("x", 8, "2")]));
        assert!(outcome.changed, "y went while nobody watched");
        let outcome = known.take(Kind::Namespace, Change::Delete(namespace("x", 11, "2")));
        assert!(outcome.changed && outcome.version == 11);
        assert_eq!(known.versions(Kind::Namespace), Some(&BTreeMap::new()));
    }

    #[test]
    fn a_broken_object_is_out_alone() {
        let mut known = Known::default();
        let service = |name: &str, port: Value| {
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "n", "resourceVersion": "1"},
                   "spec": {"ports": [{"port": port}]}})
        };
        let outcome =
            known.take(Kind::Service, Change::Replace(vec![service("good", json!(80)), service("bad", json!({}))]));
        assert_eq!(outcome.broken.len(), 1, "{outcome:?}");
        assert_eq!(known.service_count(), 1);
    }

    #[test]
    fn only_namespaces_that_are_selected_count() {
        let mut known = Known::default();
        for (name, labels) in
            [("shop", json!({"mesh": "on"})), ("bank", json!({"mesh": "off"})), ("istio-system", json!({}))]
        {
            let space = json!({"metadata": {"name": name, "labels": labels, "resourceVersion": "1"}});
            known.take(Kind::Namespace, Change::Apply(space));
            let object = |spec: Value| json!({"metadata": {"name": "a", "namespace": name, "resourceVersion": "1"}, "spec": spec});
            known.take(Kind::Service, Change::Apply(object(json!({"ports": [{"port": 80}]}))));
            known.take(Kind::VirtualService, Change::Apply(object(json!({"hosts": ["a.b"]}))));
            known.take(Kind::PeerAuthentication, Change::Apply(object(json!({}))));
        }
        let seen = |mesh: Value| {
            let mesh: MeshConfig = from_value(&mesh).expect("a mesh configuration");
            let input = known.input(&mesh, FetchedKeys::default());
            let services: Vec<_> = input.services.iter().map(|s| s.metadata.namespace.clone()).collect();
            (services, input.virtual_services.len(), input.peer_authentications.len())
        };
        let all = ["bank", "istio-system", "shop"].map(str::to_owned).to_vec();
        let some = ["istio-system", "shop"].map(str::to_owned).to_vec();
        assert_eq!(seen(json!({})), (all.clone(), 3, 3));
        assert_eq!(seen(json!({"discoverySelectors": []})), (all.clone(), 3, 3));
        // Policies count everywhere.
        assert_eq!(seen(json!({"discoverySelectors": [{"matchLabels": {"mesh": "on"}}]})), (some.clone(), 2, 3));
        let expression = json!({"matchExpressions": [{"key": "mesh", "operator": "NotIn", "values": ["off"]}]});
        assert_eq!(seen(json!({"discoverySelectors": [expression]})), (some, 2, 3));
        let either = json!([{"matchLabels": {"mesh": "on"}}, {"matchLabels": {"mesh": "off"}}]);
        assert_eq!(seen(json!({"discoverySelectors": either})), (all, 3, 3));
    }

    #[test]
    fn an_unreadable_policy_denies_until_it_can_be_read() {
        let mut known = Known::default();
        let policy = |rules: Value| {
            json!({"metadata": {"name": "p", "namespace": "n", "resourceVersion": "1"},
                   "spec": {"selector": {"matchLabels": {"app": "a"}}, "rules": rules}})
        };
        let mut take = |rules: Value| {
            let outcome = known.take(Kind::AuthorizationPolicy, Change::Apply(policy(rules)));
            let policies = known.input(&MeshConfig::default(), FetchedKeys::default()).authorization_policies;
            (outcome.broken.len(), policies[0].spec.clone())
        };
        let (broken, spec) = take(json!("no list"));
        assert_eq!((broken, spec.action), (1, AuthorizationAction::Deny));
        assert_eq!(spec.rules, [AuthorizationRule::default()]);
        assert_eq!(spec.selector.map(|s| s.match_labels.len()), Some(1));
        let (broken, spec) = take(json!([]));
        assert_eq!((broken, spec.action), (0, AuthorizationAction::Allow));
    }
}
