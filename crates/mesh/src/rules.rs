//! Which DestinationRule a client follows for a host, and what it says for a port and subset (semantics §4.1–§4.4).
//!
//! Invariant: the first namespace with a matching rule wins entirely, in the order client's, service's, root; within it the most
//! specific host. A port level replaces the four blocks as a group.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use carrick_base::{Diagnostic, HostPattern, Hostname, Labels, NamespacedName, Severity};

use crate::{
    codes,
    model::{
        DestinationRule, TrafficPolicy,
        endpoint::carries_all,
        locality::LocalityPolicy,
        policy::{LocalityChoice, PortedPolicy},
    },
    read::finding,
};

/// All rules, by namespace and host.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RuleIndex {
    root: Arc<str>,
    namespaces: HashMap<Arc<str>, HostRules>,
    /// Rules with a workload selector, by namespace.
    selective: HashMap<Arc<str>, Vec<Arc<DestinationRule>>>,
}

/// Rules of one namespace. In each list those with a workload selector come first, then the oldest.
#[derive(Debug, Default, PartialEq, Eq)]
struct HostRules {
    exact: HashMap<Hostname, Vec<Arc<DestinationRule>>>,
    /// Most specific first.
    wildcards: Vec<(HostPattern, Vec<Arc<DestinationRule>>)>,
}

impl HostRules {
    /// The rule of the most specific host that `usable` lets through.
    fn find(&self, host: &Hostname, usable: impl Fn(&DestinationRule) -> bool) -> Option<&Arc<DestinationRule>> {
        let exact = self.exact.get(host).into_iter();
        let wildcards = self.wildcards.iter().filter(|(pattern, _)| pattern.matches(host)).map(|(_, rules)| rules);
        exact.chain(wildcards).find_map(|rules| rules.iter().find(|r| usable(r)))
    }
}

/// Who asks for a rule: a client's namespace, and the rules with workload selectors that select it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Client {
    /// The client's namespace.
    pub namespace: Arc<str>,
    /// Names of the rules of that namespace whose workload selector selects the client, sorted.
    pub selected: Vec<NamespacedName>,
}

impl RuleIndex {
    /// Sorts, merges and indexes rules.
    pub fn build(mut rules: Vec<DestinationRule>, root: &Arc<str>, found: &mut Vec<Diagnostic>) -> Self {
        rules.sort_by(|a, b| a.origin.cmp(&b.origin));
        let mut grouped: HashMap<(Arc<str>, HostPattern), Vec<DestinationRule>> = HashMap::new();
        for rule in rules {
            let group = grouped.entry((rule.origin.namespace().clone(), rule.host.clone())).or_default();
            let twin = group.iter_mut().find(|r| {
                r.workload_selector.is_none() && rule.workload_selector.is_none() && r.export_to == rule.export_to
            });
            match twin {
                Some(older) => merge(older, rule, found),
                None => group.push(rule),
            }
        }
        let mut index = Self { root: root.clone(), ..Self::default() };
        for ((namespace, host), mut group) in grouped {
            group.sort_by_key(|r| r.workload_selector.is_none());
            let group: Vec<_> = group.into_iter().map(Arc::new).collect();
            let selective = group.iter().filter(|r| r.workload_selector.is_some()).cloned();
            index.selective.entry(namespace.clone()).or_default().extend(selective);
            let hosts = index.namespaces.entry(namespace).or_default();
            match host {
                HostPattern::Exact(name) => {
                    hosts.exact.insert(name, group);
                }
                pattern => hosts.wildcards.push((pattern, group)),
            }
        }
        for hosts in index.namespaces.values_mut() {
            hosts.wildcards.sort_by(|a, b| a.0.cmp(&b.0));
        }
        index
    }

    /// What rules say of localities.
    pub fn locality_policies(&self) -> impl Iterator<Item = Arc<LocalityPolicy>> + '_ {
        let hosts = self.namespaces.values();
        let rules = hosts.flat_map(|h| h.exact.values().chain(h.wildcards.iter().map(|(_, rules)| rules))).flatten();
        let ported = rules.flat_map(|r| r.policy.iter().chain(r.subsets.iter().filter_map(|s| s.policy.as_ref())));
        let policies = ported.flat_map(|p| std::iter::once(&p.base).chain(p.ports.values()));
        policies.filter_map(|p| match &p.load_balancer.as_ref()?.locality {
            Some(LocalityChoice::Policy(policy)) => Some(policy.clone()),
            _ => None,
        })
    }

    /// A client of this namespace and these labels.
    pub fn client(&self, namespace: &Arc<str>, labels: &Labels) -> Client {
        let rules = self.selective.get(namespace).map_or(&[][..], Vec::as_slice);
        let selects = |r: &&Arc<DestinationRule>| r.workload_selector.as_ref().is_some_and(|s| carries_all(labels, s));
        let mut selected: Vec<_> = rules.iter().filter(selects).map(|r| r.origin.name.clone()).collect();
        selected.sort();
        Client { namespace: namespace.clone(), selected }
    }

    /// The rule that a client follows for a host of namespace `service`.
    pub fn lookup(&self, client: &Client, service: &str, host: &Hostname) -> Option<&Arc<DestinationRule>> {
        let own = &client.namespace;
        let in_root = **own == *self.root;
        let from_own = self.namespaces.get(own).and_then(|rules| {
            rules.find(host, |r| match r.workload_selector {
                Some(_) => client.selected.binary_search(&r.origin.name).is_ok(),
                None => !in_root || r.export_to.is_private_to(own),
            })
        });
        let exported = |r: &DestinationRule| r.workload_selector.is_none() && r.export_to.allows(own);
        let from = |namespace: &str| self.namespaces.get(namespace).and_then(|rules| rules.find(host, exported));
        from_own.or_else(|| from(service)).or_else(|| from(&self.root))
    }
}

/// Folds a younger rule of the same host and visibility into an older one (§4.3).
fn merge(older: &mut DestinationRule, younger: DestinationRule, found: &mut Vec<Diagnostic>) {
    let mut void = Vec::new();
    if younger.policy.is_some() {
        if older.policy.is_none() {
            older.policy = younger.policy;
        } else {
            void.push("spec.trafficPolicy".to_owned());
        }
    }
    let known: HashSet<_> = older.subsets.iter().map(|s| s.name.clone()).collect();
    for (index, subset) in younger.subsets.into_iter().enumerate() {
        if known.contains(&subset.name) {
            void.push(format!("spec.subsets[{index}]"));
        } else {
            older.subsets.push(subset);
        }
    }
    for field in void {
        let message = format!("{} is older and has this for the same host; it has no effect here", older.origin.name);
        found.push(finding(&younger.origin, codes::RULE_SHADOWED, Severity::Warning, &field, message));
    }
}

/// What a rule says for a service port and subset (§4.4). An unknown subset gives what the rule itself says.
pub fn effective(rule: &DestinationRule, subset: &str, port: u16) -> TrafficPolicy {
    let base = rule.policy.as_ref().map(|p| for_port(p, port)).unwrap_or_default();
    let own = rule.subsets.iter().find(|s| *s.name == *subset && !subset.is_empty()).and_then(|s| s.policy.as_ref());
    let Some(own) = own else { return base };
    if let Some(group) = own.ports.get(&port) {
        return group.clone();
    }
    let own = own.base.clone();
    TrafficPolicy {
        load_balancer: own.load_balancer.or(base.load_balancer),
        connection_pool: own.connection_pool.or(base.connection_pool),
        outlier_detection: own.outlier_detection.or(base.outlier_detection),
        tls: own.tls.or(base.tls),
        proxy_header: own.proxy_header.or(base.proxy_header),
        tunnel: own.tunnel.or(base.tunnel),
        retry_budget: own.retry_budget.or(base.retry_budget),
    }
}

fn for_port(policy: &PortedPolicy, port: u16) -> TrafficPolicy {
    policy.ports.get(&port).unwrap_or(&policy.base).clone()
}
