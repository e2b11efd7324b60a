//! All objects at one moment, indexed for the questions views ask.
//!
//! Invariant: immutable and cheap to clone; in parts, of which endpoints (they change most often) and policies for servers can be replaced
//! alone. A part that did not change stays the same `Arc`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use carrick_base::{Diagnostic, Hostname, Labels, NamespacedName, ObjectRef};

use serde_json::Value;

use crate::{
    EndpointInput, FetchedKeys, PolicyInput, Settings, SnapshotInput,
    auto_address::AutoAddresses,
    endpoints::{Around, EndpointPart, Facts, ServiceFacts},
    envoy_filters::EnvoyFilters,
    gateway_api::{self, GatewayService, Surroundings, Translated},
    gateways::GatewayIndex,
    legacy::LegacyIndex,
    locality,
    model::{Registry, Service, ServiceId, Workload},
    networks::Networks,
    peer_auth::PeerAuthIndex,
    policies::{PolicyPart, Reading},
    proxy::ProxyNode,
    read::{self, authorizer::Authorizers},
    rules::RuleIndex,
    scope::SidecarIndex,
    secrets::SecretIndex,
    security::{Security, SecurityIndex},
    telemetry::TelemetryIndex,
    virtual_services::VirtualServiceIndex,
};

/// All objects at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub(crate) config: Arc<Config>,
    pub(crate) policies: Arc<PolicyPart>,
    pub(crate) facts: Arc<Facts>,
    /// Addresses behind services without a virtual address; follows from `facts`.
    pub(crate) headless: Arc<HashSet<IpAddr>>,
    pub(crate) endpoints: Arc<EndpointPart>,
}

/// Everything but endpoints and pods, and policies for servers.
#[derive(Debug)]
pub(crate) struct Config {
    pub settings: Settings,
    /// Oldest first.
    pub services: Vec<Arc<Service>>,
    by_host: HashMap<Hostname, Arc<Service>>,
    by_id: HashMap<ServiceId, Arc<Service>>,
    by_namespace: HashMap<Arc<str>, Vec<Arc<Service>>>,
    /// Services of ServiceEntries that select workloads.
    selecting: HashMap<Arc<str>, Vec<Arc<Service>>>,
    pub envoy_filters: EnvoyFilters,
    pub gateway_api: BTreeMap<ObjectRef, Value>,
    pub gateway_services: Vec<GatewayService>,
    pub rules: RuleIndex,
    authorizers: Arc<Authorizers>,
    keys: FetchedKeys,
    /// What is wrong with it, sorted.
    found: Vec<Diagnostic>,
    pub legacy: LegacyIndex,
    pub sidecars: SidecarIndex,
    /// Labels that policies compare between clients and endpoints.
    pub compared: BTreeSet<Arc<str>>,
    pub virtual_services: VirtualServiceIndex,
    pub gateways: GatewayIndex,
    pub networks: Networks,
    pub secrets: SecretIndex,
    pub telemetry: TelemetryIndex,
}

impl Config {
    fn around(&self) -> Around<'_> {
        Around {
            settings: &self.settings,
            networks: &self.networks,
            services: &self.services,
            by_id: &self.by_id,
            by_namespace: &self.by_namespace,
            selecting: &self.selecting,
        }
    }

    fn reading(&self) -> Reading<'_> {
        Reading { settings: &self.settings, keys: &self.keys, authorizers: &self.authorizers, legacy: &self.legacy }
    }
}

impl Snapshot {
    /// Reads all objects. A broken one disables itself alone, and is told of.
    pub fn build(input: &SnapshotInput) -> (Self, Vec<Diagnostic>) {
        let (settings, mut found) = Settings::parse(&input.mesh_config);
        found.extend(input.findings.iter().cloned());
        let around = Surroundings {
            namespaces: &input.namespaces,
            services: &input.services,
            secrets: &input.secrets,
            config_maps: &input.config_maps,
            pods: &input.endpoints.pods,
            domain: &settings.domain_suffix,
            root: &settings.root_namespace,
        };
        let translated = gateway_api::translate(&input.gateway_api, around);
        let joined = joined(input, &translated);
        let input = joined.as_ref().unwrap_or(input);
        let automatic = AutoAddresses::allocate(&input.service_entries);
        let entries = read::service_entry::read_all(&input.service_entries, &settings, &automatic, &mut found);
        let mut services: Vec<_> =
            input.services.iter().map(|s| Arc::new(read::service::read(s, &settings, &mut found))).collect();
        let networks = Networks::build(input, &settings, &mut found);
        add_remote(&mut services, input, &settings, &networks);
        services.extend(entries.into_iter().map(Arc::new));
        services.sort_by(|a, b| a.origin.cmp(&b.origin));
        let rules = input.destination_rules.iter();
        let rules = rules.filter_map(|r| read::destination_rule::read(r, &settings, &mut found)).collect();
        let mut legacy = |kind, all: &[Arc<carrick_api::LegacyPolicy>]| -> Vec<_> {
            all.iter().map(|p| read::legacy_policy::read(kind, p, &input.keys, &mut found)).collect()
        };
        let (mesh_wide, own) =
            (legacy("MeshPolicy", &input.legacy_mesh_policies), legacy("Policy", &input.legacy_policies));
        let legacy = LegacyIndex::build(mesh_wide, own, &mut found);
        let rules = RuleIndex::build(rules, &settings.root_namespace, &mut found);
        let sidecars = input.sidecars.iter().map(|s| read::sidecar::read(s, &settings, &mut found)).collect();
        let mut by_host: HashMap<Hostname, Arc<Service>> = HashMap::new();
        for service in &services {
            // Kubernetes' own names come before those that entries give.
            let slot = by_host.entry(service.hostname.clone()).or_insert_with(|| service.clone());
            if slot.registry > service.registry {
                *slot = service.clone();
            }
        }
        let virtual_services = read::virtual_service::read_all(&input.virtual_services, &settings, &mut found);
        let gateways = input.gateways.iter().map(|g| read::gateway::read(g, &mut found)).collect();
        let mut by_namespace: HashMap<Arc<str>, Vec<Arc<Service>>> = HashMap::new();
        let mut selecting: HashMap<Arc<str>, Vec<Arc<Service>>> = HashMap::new();
        for service in &services {
            by_namespace.entry(service.namespace().clone()).or_default().push(service.clone());
            if service.registry == Registry::Entry && !service.selector.is_empty() {
                selecting.entry(service.namespace().clone()).or_default().push(service.clone());
            }
        }
        input.proxy_configs.iter().for_each(|c| read::proxy_config::look(c, &mut found));
        let authorizers = read::authorizer::read_all(&input.mesh_config, |host| by_host.get(host), &mut found);
        let telemetry = telemetry(input, &settings, &by_host, &mut found);
        let mut config = Config {
            by_host,
            by_id: services.iter().map(|s| (s.id.clone(), s.clone())).collect(),
            by_namespace,
            selecting,
            envoy_filters: EnvoyFilters::build(&input.envoy_filters, &settings.root_namespace),
            authorizers: Arc::new(authorizers),
            keys: input.keys.clone(),
            found: Vec::new(),
            telemetry,
            legacy,
            gateway_api: translated.statuses,
            gateway_services: translated.services,
            compared: compared(&rules, &settings, &services),
            sidecars: SidecarIndex::build(sidecars, &settings.root_namespace, &mut found),
            services,
            rules,
            virtual_services: VirtualServiceIndex::build(virtual_services, &mut found),
            gateways: GatewayIndex::build(gateways, &mut found),
            secrets: SecretIndex::build(&input.secrets, &input.config_maps, translated.granted),
            networks,
            settings,
        };
        let endpoints = EndpointPart::build(&input.endpoints, config.around());
        let facts = endpoints.facts(config.around());
        let policies = Arc::new(PolicyPart::build(&input.policies(), config.reading()));
        found.sort();
        config.found = found;
        let headless = Arc::new(headless_addresses(&facts));
        let (facts, endpoints) = (Arc::new(facts), Arc::new(endpoints));
        let snapshot = Self { config: Arc::new(config), policies, facts, headless, endpoints };
        let found = snapshot.diagnostics();
        (snapshot, found)
    }

    /// What is wrong in the objects.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let mut found: Vec<_> = self.config.found.iter().chain(self.policies.found()).cloned().collect();
        found.sort();
        found.dedup();
        found
    }

    /// The same snapshot with other policies for servers.
    #[must_use]
    pub fn with_policies(&self, input: &PolicyInput) -> Self {
        Self { policies: Arc::new(self.policies.follow(input, self.config.reading())), ..self.clone() }
    }

    /// The same snapshot with other endpoints and pods.
    #[must_use]
    pub fn with_endpoints(&self, input: &EndpointInput) -> Self {
        let around = self.config.around();
        let endpoints = Arc::new(self.endpoints.follow(input, around));
        let facts = match endpoints.changed_since(&self.endpoints) {
            Some(changed) => self.facts_after(&endpoints, changed),
            None => Some(endpoints.facts(around)).filter(|facts| *facts != *self.facts),
        };
        let Some(facts) = facts else { return Self { endpoints, ..self.clone() } };
        let headless = Arc::new(headless_addresses(&facts));
        Self { facts: Arc::new(facts), headless, endpoints, ..self.clone() }
    }

    /// The facts when these services have other endpoints; `None` if they are what they were.
    fn facts_after(&self, endpoints: &EndpointPart, changed: &BTreeSet<ServiceId>) -> Option<Facts> {
        let mut facts: Option<Facts> = None;
        for service in changed.iter().filter_map(|id| self.config.by_id.get(id)) {
            let now = endpoints.facts_of(service, &self.config.networks);
            if self.facts.get(&service.id) == now.as_ref() {
                continue;
            }
            let facts = facts.get_or_insert_with(|| (*self.facts).clone());
            match now {
                Some(now) => facts.insert(service.id.clone(), now),
                None => facts.remove(&service.id),
            };
        }
        facts
    }

    /// Settings of the mesh.
    pub fn settings(&self) -> &Settings {
        &self.config.settings
    }

    /// All services, oldest first.
    pub fn services(&self) -> &[Arc<Service>] {
        &self.config.services
    }

    /// The service of that full name.
    pub fn service(&self, host: &Hostname) -> Option<&Arc<Service>> {
        self.config.by_host.get(host)
    }

    /// The service of that id.
    pub fn service_of(&self, id: &ServiceId) -> Option<&Arc<Service>> {
        self.config.by_id.get(id)
    }

    /// Services of one namespace, oldest first.
    pub fn services_in(&self, namespace: &str) -> &[Arc<Service>] {
        self.config.by_namespace.get(namespace).map_or(&[], Vec::as_slice)
    }

    /// All policies that say what servers take.
    pub fn peer_auth(&self) -> &PeerAuthIndex {
        &self.policies.peer_auth
    }

    /// All policies about requests.
    pub fn security(&self) -> &SecurityIndex {
        &self.policies.security
    }

    /// All policies for servers.
    pub fn policies(&self) -> &PolicyPart {
        &self.policies
    }

    /// What is asked before a request reaches a workload of these labels: a sidecar's, or a gateway itself.
    pub fn security_of(&self, namespace: &str, labels: &Labels) -> Arc<Security> {
        let old = self.legacy().tokens(self.services_in(namespace), &self.endpoints, namespace, labels);
        self.security().of_workload(namespace, labels, old)
    }

    /// All policies of the old API.
    pub fn legacy(&self) -> &LegacyIndex {
        &self.config.legacy
    }

    /// All rules for clients.
    pub fn rules(&self) -> &RuleIndex {
        &self.config.rules
    }

    /// What is to be said on the Gateway API's objects: the `status` of each, without times of transition.
    pub fn gateway_api_statuses(&self) -> &BTreeMap<ObjectRef, Value> {
        &self.config.gateway_api
    }

    /// Services that the Gateway API's gateways are to have, as manifests.
    pub fn gateway_services(&self) -> &[GatewayService] {
        &self.config.gateway_services
    }

    /// Changes of the generated configuration, by proxy.
    pub fn envoy_filters(&self) -> &EnvoyFilters {
        &self.config.envoy_filters
    }

    /// All Sidecars.
    pub fn sidecars(&self) -> &SidecarIndex {
        &self.config.sidecars
    }

    /// All VirtualServices.
    pub fn virtual_services(&self) -> &VirtualServiceIndex {
        &self.config.virtual_services
    }

    /// All Gateways.
    pub fn gateways(&self) -> &GatewayIndex {
        &self.config.gateways
    }

    /// Clusters, networks and the gateways between them.
    pub fn networks(&self) -> &Networks {
        &self.config.networks
    }

    /// The network a proxy is in; `None` where there is but one.
    pub(crate) fn network_of(&self, proxy: &ProxyNode, labels: &Labels) -> Option<Arc<str>> {
        let workload = self.workload_of(proxy).map(|w| w.network.clone()).unwrap_or_default();
        self.config.networks.of_proxy(proxy, labels, &workload)
    }

    /// Secrets of the cluster.
    pub fn secrets(&self) -> &SecretIndex {
        &self.config.secrets
    }

    /// What is logged, traced and counted.
    pub fn telemetry(&self) -> &TelemetryIndex {
        &self.config.telemetry
    }

    /// Addresses and workloads.
    pub fn endpoints(&self) -> &EndpointPart {
        &self.endpoints
    }

    /// The workload behind a proxy: by its name, else by its addresses.
    pub fn workload_of(&self, proxy: &ProxyNode) -> Option<&Arc<Workload>> {
        let name = NamespacedName { namespace: proxy.namespace.clone(), name: proxy.name.clone() };
        let at_ip = || proxy.ips.iter().find_map(|ip| self.endpoints.workload_at(*ip));
        self.endpoints.workload(&name).or_else(at_ip).filter(|w| w.name.namespace == proxy.namespace)
    }

    pub(crate) fn facts_of(&self, service: &Service) -> Option<&ServiceFacts> {
        self.facts.get(&service.id)
    }
}

/// Services of other clusters (semantics §23.2): one of a known name adds its identities, its endpoints come with the slices; another is
/// a service of its own, without the addresses that are somebody else's here.
fn add_remote(services: &mut Vec<Arc<Service>>, input: &SnapshotInput, settings: &Settings, networks: &Networks) {
    let mut known: HashMap<ServiceId, usize> = services.iter().enumerate().map(|(i, s)| (s.id.clone(), i)).collect();
    let mut taken: HashSet<IpAddr> = services.iter().flat_map(|s| s.vips.iter().copied()).collect();
    let mut remotes: Vec<_> = input.remotes.iter().collect();
    remotes.sort_by(|a, b| a.cluster.cmp(&b.cluster));
    for remote in remotes {
        for from in &remote.services {
            // What is wrong with it is its own cluster's to tell.
            let mut service = read::service::read(from, settings, &mut Vec::new());
            if networks.is_cluster_local(&service.hostname) {
                continue;
            }
            if let Some(own) = known.get(&service.id).and_then(|at| services.get_mut(*at)) {
                let new = service.identities.iter().any(|id| !own.identities.contains(id));
                if new {
                    Arc::make_mut(own).identities.append(&mut service.identities);
                }
                continue;
            }
            service.vips.retain(|ip| taken.insert(*ip));
            known.insert(service.id.clone(), services.len());
            services.push(Arc::new(service));
        }
    }
}

/// Labels that policies compare, without the values that some of them give.
fn compared(rules: &RuleIndex, settings: &Settings, services: &[Arc<Service>]) -> BTreeSet<Arc<str>> {
    let by_service = services.iter().filter_map(|s| s.distribution).map(|d| Arc::new(locality::of_distribution(d)));
    let policies = rules.locality_policies().chain(settings.locality.clone()).chain(by_service);
    let keys = policies.flat_map(|p| p.priority.clone());
    keys.map(|key| key.split_once('=').map_or(key.clone(), |(key, _)| key.into())).collect()
}

fn headless_addresses(facts: &Facts) -> HashSet<IpAddr> {
    facts.values().flat_map(|s| s.ports.values()).flat_map(|p| &p.addresses).map(|(ip, _)| *ip).collect()
}

fn telemetry(
    input: &SnapshotInput,
    settings: &Settings,
    by_host: &HashMap<Hostname, Arc<Service>>,
    found: &mut Vec<Diagnostic>,
) -> TelemetryIndex {
    let service = |host: &Hostname| by_host.get(host);
    let providers = read::provider::read_all(&input.mesh_config, service);
    let all = input.telemetries.iter().filter_map(|t| read::telemetry::read(t, &providers, found)).collect();
    let fallback = read::telemetry::mesh(&input.mesh_config, settings, &providers, service, found);
    TelemetryIndex::build(all, providers, fallback, &settings.root_namespace)
}

/// The objects with those that the Gateway API's come to; `None` when there are none.
fn joined(input: &SnapshotInput, translated: &Translated) -> Option<SnapshotInput> {
    let nothing = translated.gateways.is_empty()
        && translated.virtual_services.is_empty()
        && translated.destination_rules.is_empty();
    (!nothing).then(|| {
        let mut all = input.clone();
        all.gateways.extend(translated.gateways.iter().cloned());
        all.virtual_services.extend(translated.virtual_services.iter().cloned());
        all.destination_rules.extend(translated.destination_rules.iter().cloned());
        all
    })
}
