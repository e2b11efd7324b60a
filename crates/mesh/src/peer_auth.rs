//! Which mode a workload's port is in: the levels of PeerAuthentication (semantics §1).
//!
//! Invariant: of several policies of one level the oldest counts and the others are void as a whole; nothing is merged between
//! two policies of one level.

use std::{collections::BTreeMap, sync::Arc};

use carrick_base::{Diagnostic, Labels, Severity};

use crate::{
    codes,
    legacy::LegacyIndex,
    model::{MtlsMode, PeerAuth, Port, Service, endpoint::carries_all, legacy::Legacy},
    parts::ModeSource,
    read::finding,
    shards::Shards,
};

/// All policies, by level.
#[derive(Debug, Clone, Default)]
pub struct PeerAuthIndex {
    mesh: Option<Arc<PeerAuth>>,
    namespaces: Shards<Arc<str>, NamespacePolicies>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct NamespacePolicies {
    own: Option<Arc<PeerAuth>>,
    /// Oldest first.
    workloads: Vec<Arc<PeerAuth>>,
}

/// A mode and the policy it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Decided {
    /// The mode.
    pub mode: MtlsMode,
    /// The policy.
    pub from: ModeSource,
}

/// What holds for one workload.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Effective {
    /// For ports without a level of their own.
    pub workload: Decided,
    /// By workload port.
    pub ports: BTreeMap<u16, Decided>,
}

impl Effective {
    /// What holds for one workload port.
    pub fn port(&self, port: u16) -> &Decided {
        self.ports.get(&port).unwrap_or(&self.workload)
    }
}

impl PeerAuthIndex {
    /// Puts a namespace's policies, by level, in the place of those it had.
    ///
    /// Policies of the old API stand in where no PeerAuthentication of their level is.
    pub(crate) fn set(
        &mut self,
        namespace: &Arc<str>,
        mut policies: Vec<PeerAuth>,
        legacy: &LegacyIndex,
        root: &str,
        found: &mut Vec<Diagnostic>,
    ) {
        policies.sort_by(|a, b| a.origin.cmp(&b.origin));
        let is_root = **namespace == *root;
        let (mut mesh, mut own) = (None, NamespacePolicies::default());
        for policy in policies {
            let policy = Arc::new(policy);
            report_ineffective(&policy, root, found);
            if policy.selector.is_empty() {
                let level = if is_root { &mut mesh } else { &mut own.own };
                match level {
                    None => *level = Some(policy),
                    Some(older) => found.push(shadowed(&policy, older)),
                }
            } else if !is_root {
                own.workloads.push(policy);
            }
        }
        if is_root {
            if let Some(old) = legacy.mesh() {
                stand_in(&mut mesh, old, found);
            }
            self.mesh = mesh;
        }
        if let Some(old) = legacy.of_namespace(namespace) {
            stand_in(&mut own.own, old, found);
        }
        if own == NamespacePolicies::default() {
            self.namespaces.remove(namespace);
        } else {
            self.namespaces.insert(namespace.clone(), own);
        }
    }

    /// What holds for a workload's port that stands behind a service port: a policy of the old API about the service decides
    /// unless a PeerAuthentication for the workload says a mode (§14.2).
    pub fn of_service_port(effective: &Decided, legacy: &LegacyIndex, service: &Service, port: &Port) -> Decided {
        match (legacy.of_port(service, port), &effective.from) {
            (None, _) | (Some(_), ModeSource::Workload(_) | ModeSource::Port(_)) => effective.clone(),
            (Some(old), _) => Decided { mode: old.mode, from: ModeSource::Service(old.origin.name.clone()) },
        }
    }

    /// The mode of a namespace as its clients guess it: no workload policy is looked at (§1.8).
    pub fn namespace_hint(&self, namespace: &str) -> Decided {
        let mut decided = Decided { mode: MtlsMode::Permissive, from: ModeSource::Default };
        if let Some(policy) = &self.mesh {
            take(&mut decided, policy, ModeSource::Mesh);
        }
        if let Some(policy) = self.namespaces.get(namespace).and_then(|n| n.own.as_ref()) {
            take(&mut decided, policy, ModeSource::Namespace);
        }
        decided
    }

    /// What holds for a workload of these labels (§1.5).
    pub fn effective(&self, namespace: &str, labels: &Labels) -> Effective {
        let mut workload = self.namespace_hint(namespace);
        let policies = self.namespaces.get(namespace).map_or(&[][..], |n| &n.workloads);
        let Some(policy) = policies.iter().find(|p| carries_all(labels, &p.selector)) else {
            return Effective { workload, ports: BTreeMap::new() };
        };
        take(&mut workload, policy, ModeSource::Workload);
        let level = |(port, mode): (&u16, &Option<MtlsMode>)| {
            let decided = match mode {
                Some(mode) => Decided { mode: *mode, from: ModeSource::Port(policy.origin.name.clone()) },
                None => workload.clone(),
            };
            (*port, decided)
        };
        let ports = policy.ports.iter().map(level).collect();
        Effective { workload, ports }
    }

    /// All policies that have a say for a workload, the mesh's first.
    pub fn applied(&self, namespace: &str, labels: &Labels) -> Vec<Arc<PeerAuth>> {
        let own = self.namespaces.get(namespace);
        let workload = own.and_then(|n| n.workloads.iter().find(|p| carries_all(labels, &p.selector)));
        self.mesh.iter().chain(own.and_then(|n| n.own.as_ref())).chain(workload).cloned().collect()
    }
}

fn take(decided: &mut Decided, policy: &PeerAuth, source: fn(carrick_base::NamespacedName) -> ModeSource) {
    if let Some(mode) = policy.mode {
        *decided = Decided { mode, from: source(policy.origin.name.clone()) };
    }
}

fn stand_in(level: &mut Option<Arc<PeerAuth>>, old: &Legacy, found: &mut Vec<Diagnostic>) {
    match level {
        Some(new) => {
            let message =
                format!("PeerAuthentication {} is of the same level; peers have no effect here", new.origin.name);
            found.push(finding(&old.origin, codes::POLICY_SHADOWED, Severity::Warning, "spec.peers", message));
        }
        None => {
            *level = Some(Arc::new(PeerAuth {
                origin: old.origin.clone(),
                selector: Labels::new(),
                mode: Some(old.mode),
                ports: BTreeMap::new(),
            }));
        }
    }
}

fn shadowed(policy: &PeerAuth, older: &PeerAuth) -> Diagnostic {
    let message = format!("{} is older and of the same level; this policy has no effect", older.origin.name);
    finding(&policy.origin, codes::POLICY_SHADOWED, Severity::Warning, "", message)
}

fn report_ineffective(policy: &PeerAuth, root: &str, found: &mut Vec<Diagnostic>) {
    if !policy.selector.is_empty() && **policy.origin.namespace() == *root {
        let message = "a policy of the root namespace with a selector has no effect on any workload";
        found.push(finding(&policy.origin, codes::POLICY_WITHOUT_EFFECT, Severity::Warning, "spec.selector", message));
    }
    if policy.selector.is_empty() && !policy.ports.is_empty() {
        let message = "port levels need a selector; they have no effect";
        found.push(finding(
            &policy.origin,
            codes::POLICY_WITHOUT_EFFECT,
            Severity::Warning,
            "spec.portLevelMtls",
            message,
        ));
    }
}
