//! Authentication policies of the old API by level (semantics §14.2): service and port, service, namespace, mesh.
//!
//! Invariant: the first level that has a policy decides alone; of several policies of one level the oldest counts. Where a
//! PeerAuthentication stands at the same level or nearer to the workload, that one decides about mutual TLS.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use carrick_base::{Diagnostic, Labels, Severity};

use crate::{
    codes,
    endpoints::EndpointPart,
    model::{
        Origin, Port, Service,
        authz::{Action, Attribute, AuthzPolicy, AuthzRule, Term, Value},
        endpoint::carries_all,
        jwt::JwtRule,
        legacy::{Legacy, LegacyPort},
        service::Target,
    },
    read::finding,
};

/// All policies of the old API, by level.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LegacyIndex {
    mesh: Option<Arc<Legacy>>,
    namespaces: HashMap<Arc<str>, NamespaceLevel>,
}

/// A policy with the ports it names; none is all.
type OfPorts = (Vec<LegacyPort>, Arc<Legacy>);

#[derive(Debug, Default, PartialEq, Eq)]
struct NamespaceLevel {
    own: Option<Arc<Legacy>>,
    /// By service, oldest first.
    services: HashMap<Arc<str>, Vec<OfPorts>>,
}

impl LegacyIndex {
    /// Sorts policies into levels. `mesh` are those of the cluster-wide kind, of which only `default` counts.
    pub fn build(mut mesh: Vec<Legacy>, mut own: Vec<Legacy>, found: &mut Vec<Diagnostic>) -> Self {
        mesh.sort_by(|a, b| a.origin.cmp(&b.origin));
        own.sort_by(|a, b| a.origin.cmp(&b.origin));
        let mut index = Self::default();
        let void = |origin: &Origin, message: String| {
            finding(origin, codes::POLICY_WITHOUT_EFFECT, Severity::Warning, "", message)
        };
        for policy in mesh {
            if &*policy.origin.name.name == "default" {
                index.mesh = Some(Arc::new(policy));
            } else {
                found.push(void(&policy.origin, "only the one named default has an effect".to_owned()));
            }
        }
        for policy in own {
            let policy = Arc::new(policy);
            let level = index.namespaces.entry(policy.origin.namespace().clone()).or_default();
            for target in &policy.targets {
                let known = level.services.entry(target.service.clone()).or_default();
                known.push((target.ports.clone(), policy.clone()));
            }
            if !policy.targets.is_empty() {
                continue;
            }
            if &*policy.origin.name.name != "default" {
                found.push(void(&policy.origin, "a policy without targets must be named default".to_owned()));
            } else if let Some(older) = &level.own {
                found.push(void(&policy.origin, format!("{} is older", older.origin.name)));
            } else {
                level.own = Some(policy);
            }
        }
        index
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.mesh.is_none() && self.namespaces.is_empty()
    }

    /// The mesh's.
    pub fn mesh(&self) -> Option<&Arc<Legacy>> {
        self.mesh.as_ref()
    }

    /// Those of namespaces.
    pub fn of_namespaces(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Legacy>)> {
        self.namespaces.iter().filter_map(|(name, level)| level.own.as_ref().map(|p| (name, p)))
    }

    /// A namespace's.
    pub fn of_namespace(&self, namespace: &str) -> Option<&Arc<Legacy>> {
        self.namespaces.get(namespace)?.own.as_ref()
    }

    /// The one about a service port, if any names the service: an entry with the port before one without ports.
    pub fn of_port(&self, service: &Service, port: &Port) -> Option<&Arc<Legacy>> {
        let all = self.namespaces.get(service.namespace())?.services.get(service.short_name())?;
        let named = all.iter().find(|(ports, _)| ports.iter().any(|p| p.is(port)));
        named.or_else(|| all.iter().find(|(ports, _)| ports.is_empty())).map(|(_, policy)| policy)
    }

    /// The one for a workload's ports that no policy about services names.
    fn base(&self, namespace: &str) -> Option<&Arc<Legacy>> {
        self.namespaces.get(namespace).and_then(|n| n.own.as_ref()).or(self.mesh.as_ref())
    }

    /// Tokens that a workload takes, and what it denies without one. `services` are those of its namespace.
    pub(crate) fn tokens(
        &self,
        services: &[Arc<Service>],
        endpoints: &EndpointPart,
        namespace: &str,
        labels: &Labels,
    ) -> (Vec<Arc<JwtRule>>, Vec<Arc<AuthzPolicy>>) {
        if self.is_empty() {
            return (Vec::new(), Vec::new());
        }
        let mut by_policy: BTreeMap<Origin, (Arc<Legacy>, Vec<u16>)> = BTreeMap::new();
        for service in services {
            if service.selector.is_empty() || !carries_all(labels, &service.selector) {
                continue;
            }
            for port in &service.ports {
                let Some(policy) = self.of_port(service, port) else { continue };
                let (_, ports) = by_policy.entry(policy.origin.clone()).or_insert_with(|| (policy.clone(), Vec::new()));
                ports.extend(target_ports(endpoints, service, port));
            }
        }
        let named: Vec<u16> = by_policy.values().flat_map(|(_, ports)| ports.iter().copied()).collect();
        let (mut jwt, mut demands) = (Vec::new(), Vec::new());
        let base = self.base(namespace).map(|p| (p.clone(), Vec::new(), named));
        let services = by_policy.into_values().map(|(p, ports)| (p, ports, Vec::new()));
        for (policy, only, but) in services.chain(base) {
            jwt.extend(policy.jwt.iter().cloned());
            demands.extend(policy.demand.as_ref().map(|rule| Arc::new(demand(&policy.origin, rule, &only, &but))));
        }
        (jwt, demands)
    }
}

fn target_ports(endpoints: &EndpointPart, service: &Service, port: &Port) -> Vec<u16> {
    match &port.target {
        Target::Number(number) => vec![*number],
        Target::Name(_) => endpoints.of(&service.id, &port.slot).iter().map(|e| e.address.port()).collect(),
    }
}

fn demand(origin: &Origin, rule: &AuthzRule, only: &[u16], but: &[u16]) -> AuthzPolicy {
    let mut rule = rule.clone();
    let values = |ports: &[u16]| {
        let mut ports = ports.to_vec();
        ports.sort_unstable();
        ports.dedup();
        ports.into_iter().map(Value::Port).collect::<Vec<_>>()
    };
    if !only.is_empty() || !but.is_empty() {
        rule.when.push(Term { attribute: Attribute::DestinationPort, any: values(only), none: values(but) });
    }
    AuthzPolicy {
        origin: origin.clone(),
        selector: Labels::new(),
        gateways: None,
        action: Action::Deny,
        dry_run: false,
        // Tokens of the old API were never asked for on connections (§13.9), where the rule would deny everything (§12.10).
        requests_only: true,
        provider: "".into(),
        rules: vec![rule],
    }
}
