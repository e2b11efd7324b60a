//! Which policies act on a workload's requests, in the order they are asked (semantics §12.1–§12.3, §13.1).
//!
//! Invariant: policies of all levels act together, none overrides another. A CUSTOM policy whose authorizer is not known, or whose
//! authorizers differ, denies.

use std::sync::Arc;

use carrick_base::{Diagnostic, Labels, Severity};

use crate::{
    codes,
    model::{
        Origin,
        authz::{Action, Authorizer, AuthzPolicy},
        endpoint::carries_all,
        jwt::{JwtPolicy, JwtRule},
    },
    read::{authorizer::Authorizers, finding},
    shards::Shards,
};

/// The label of workloads that a Gateway of the Gateway API was deployed as.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// Everything that is asked before a request reaches a workload. The default lets everything through.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Security {
    /// What is done with requests that `custom_policies` match.
    pub custom: Custom,
    /// Policies with action CUSTOM.
    pub custom_policies: Vec<Arc<AuthzPolicy>>,
    /// Policies with action AUDIT.
    pub audit: Vec<Arc<AuthzPolicy>>,
    /// Policies with action DENY, dry ones included.
    pub deny: Vec<Arc<AuthzPolicy>>,
    /// Policies with action ALLOW, dry ones included.
    pub allow: Vec<Arc<AuthzPolicy>>,
    /// Tokens, by issuer.
    pub jwt: Vec<Arc<JwtRule>>,
}

/// What is done with what CUSTOM policies match.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum Custom {
    /// There are none.
    #[default]
    Nothing,
    /// This authorizer is asked.
    Ask(Arc<Authorizer>),
    /// It is denied: there is no authorizer of that name, or more than one.
    Refuse,
}

impl Security {
    /// Whether everything is let through unasked.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// All policies by namespace, in each oldest first.
#[derive(Debug, Clone)]
pub struct SecurityIndex {
    root: Arc<str>,
    policies: Shards<Arc<str>, Arc<[Arc<AuthzPolicy>]>>,
    jwt: Shards<Arc<str>, Arc<[Arc<JwtPolicy>]>>,
    authorizers: Arc<Authorizers>,
}

impl SecurityIndex {
    /// Without policies.
    pub(crate) fn new(root: &Arc<str>, authorizers: &Arc<Authorizers>) -> Self {
        let (root, authorizers) = (root.clone(), authorizers.clone());
        Self { root, policies: Shards::default(), jwt: Shards::default(), authorizers }
    }

    /// Puts a namespace's policies in the place of those it had.
    pub(crate) fn set(
        &mut self,
        namespace: &Arc<str>,
        policies: Vec<AuthzPolicy>,
        jwt: Vec<JwtPolicy>,
        found: &mut Vec<Diagnostic>,
    ) {
        for policy in policies.iter().filter(|p| p.action == Action::Custom) {
            if !self.authorizers.contains_key(&policy.provider) {
                let message =
                    format!("the mesh has no authorizer {:?}; what the policy matches is denied", policy.provider);
                found.push(finding(&policy.origin, codes::UNREADABLE, Severity::Error, "spec.provider.name", message));
            }
        }
        put(&mut self.policies, namespace, policies, |p| &p.origin);
        put(&mut self.jwt, namespace, jwt, |p| &p.origin);
    }

    /// The authorizers of the mesh, by name.
    pub fn authorizers(&self) -> &Authorizers {
        &self.authorizers
    }

    /// All policies that select a workload, oldest first.
    pub fn policies(&self, namespace: &str, labels: &Labels) -> Vec<Arc<AuthzPolicy>> {
        let subject = Subject { namespace, labels };
        self.selected(
            &self.policies,
            namespace,
            |p| subject.is_meant(&p.origin, &p.selector, p.gateways.as_deref()),
            |p| &p.origin,
        )
    }

    /// All RequestAuthentications that select a workload, oldest first.
    pub fn jwt_policies(&self, namespace: &str, labels: &Labels) -> Vec<Arc<JwtPolicy>> {
        let subject = Subject { namespace, labels };
        self.selected(
            &self.jwt,
            namespace,
            |p| subject.is_meant(&p.origin, &p.selector, p.gateways.as_deref()),
            |p| &p.origin,
        )
    }

    /// What is asked before a request reaches a workload of these labels: a sidecar's, or a gateway itself. `old` are the tokens and
    /// the denials of the old API's policies for it.
    pub(crate) fn of_workload(
        &self,
        namespace: &str,
        labels: &Labels,
        old: (Vec<Arc<JwtRule>>, Vec<Arc<AuthzPolicy>>),
    ) -> Arc<Security> {
        let mut out = Security::default();
        for policy in self.policies(namespace, labels) {
            match policy.action {
                Action::Custom => out.custom_policies.push(policy),
                Action::Audit => out.audit.push(policy),
                Action::Deny => out.deny.push(policy),
                Action::Allow => out.allow.push(policy),
            }
        }
        if let Some(first) = out.custom_policies.first() {
            let same = out.custom_policies.iter().all(|p| p.provider == first.provider);
            out.custom = match self.authorizers.get(&first.provider).filter(|_| same) {
                Some(authorizer) => Custom::Ask(authorizer.clone()),
                None => Custom::Refuse,
            };
        }
        let (jwt, demands) = old;
        out.deny.extend(demands);
        out.jwt =
            self.jwt_policies(namespace, labels).iter().flat_map(|p| p.rules.iter().cloned()).chain(jwt).collect();
        out.jwt.sort_by(|a, b| a.issuer.cmp(&b.issuer));
        Arc::new(out)
    }

    fn selected<T>(
        &self,
        all: &Shards<Arc<str>, Arc<[Arc<T>]>>,
        namespace: &str,
        meant: impl Fn(&T) -> bool,
        origin: fn(&T) -> &Origin,
    ) -> Vec<Arc<T>> {
        let own = Some(namespace).filter(|n| **n != *self.root);
        let places = std::iter::once(&*self.root).chain(own);
        let mut out: Vec<_> =
            places.filter_map(|n| all.get(n)).flat_map(|of| of.iter()).filter(|p| meant(p)).cloned().collect();
        out.sort_by(|a, b| origin(a).cmp(origin(b)));
        out
    }
}

fn put<T>(all: &mut Shards<Arc<str>, Arc<[Arc<T>]>>, namespace: &Arc<str>, mut own: Vec<T>, origin: fn(&T) -> &Origin) {
    own.sort_by(|a, b| origin(a).cmp(origin(b)));
    if own.is_empty() {
        all.remove(namespace);
    } else {
        all.insert(namespace.clone(), own.into_iter().map(Arc::new).collect());
    }
}

/// Whom policies are looked up for.
pub(crate) struct Subject<'a> {
    pub namespace: &'a str,
    pub labels: &'a Labels,
}

impl Subject<'_> {
    /// A policy with target references is for Gateways of the Gateway API alone, of its own namespace (§12.13).
    pub fn is_meant(&self, origin: &Origin, selector: &Labels, gateways: Option<&[Arc<str>]>) -> bool {
        let Some(gateways) = gateways else { return carries_all(self.labels, selector) };
        let own = self.labels.get(GATEWAY_NAME);
        **origin.namespace() == *self.namespace && own.is_some_and(|own| gateways.iter().any(|g| **g == **own))
    }
}
