//! References: which objects they name, and whether they may.
//!
//! Invariant: a reference into another namespace is followed only with a ReferenceGrant there that names both sides.

use std::sync::Arc;

use carrick_api::{
    gateway_api::{GROUP, Reference, ReferenceGrant, route::BackendRef},
    istio::{PortSelector, virtual_service::Destination},
};

use super::Surroundings;

/// A backend that exists, with its weight and what named it.
pub(super) type Weighted<'a> = (Destination, i32, &'a BackendRef);

/// All grants.
#[derive(Debug)]
pub(super) struct Grants<'a> {
    all: &'a [Arc<ReferenceGrant>],
}

impl<'a> Grants<'a> {
    pub(super) fn of(all: &'a [Arc<ReferenceGrant>]) -> Self {
        Self { all }
    }

    /// Whether an object of this kind may name that one. Group and kind of both; `from` is of group gateway.networking.k8s.io.
    pub(super) fn allow(&self, kind: &str, from: &str, to_group: &str, to_kind: &str, to: &str, name: &str) -> bool {
        from == to
            || self.all.iter().filter(|g| g.metadata.namespace == to).any(|g| {
                g.spec.from.iter().any(|f| f.group == GROUP && f.kind == kind && f.namespace == from)
                    && g.spec.to.iter().any(|t| {
                        t.group == to_group
                            && t.kind == to_kind
                            && t.name.as_ref().is_none_or(|n| n.is_empty() || n == name)
                    })
            })
    }
}

/// Finds backends.
#[derive(Debug)]
pub(super) struct Backends<'a> {
    pub(super) around: Surroundings<'a>,
    pub(super) grants: &'a Grants<'a>,
}

/// Why a reference leads nowhere: a reason of `ResolvedRefs`, and words.
pub(super) type Unresolved = (&'static str, String);

/// Where the certificates of an authority are.
#[derive(Debug)]
pub(super) struct Authority {
    /// SDS name, without the suffix for roots.
    pub(super) name: String,
    /// In a Secret, which is given to those only for whom it is meant.
    pub(super) secret: bool,
}

impl Authority {
    /// A ConfigMap or Secret with certificates in it.
    pub(super) fn of(to: &Reference, namespace: &str, around: Surroundings<'_>) -> Result<Self, Unresolved> {
        let there = to.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(namespace);
        let named = |m: &carrick_api::object::Meta| m.namespace == there && m.name == to.name;
        let certificates = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains("-----BEGIN CERTIFICATE");
        let (found, name, secret) = if to.is("", "ConfigMap", "", "ConfigMap") {
            let map = around.config_maps.iter().find(|c| named(&c.metadata));
            let good = map.is_some_and(|m| certificates(m.data.roots.as_bytes()));
            (good, format!("configmap://{there}/{}", to.name), false)
        } else if to.is("", "Secret", "", "ConfigMap") {
            let secret = around.secrets.iter().find(|s| named(&s.metadata));
            let good =
                secret.and_then(|s| s.data.get("cacert").or(s.data.get("ca.crt"))).is_some_and(|b| certificates(b));
            (good, format!("kubernetes-gateway://{there}/{}", to.name), true)
        } else {
            let kind = to.kind.as_deref().unwrap_or_default();
            return Err(("InvalidCACertificateKind", format!("{kind} {:?} is neither ConfigMap nor Secret", to.name)));
        };
        if !found {
            let kind = to.kind.as_deref().unwrap_or_default();
            let message = format!("{kind} {there}/{} is not there, or has no certificate in ca.crt", to.name);
            return Err(("InvalidCACertificateRef", message));
        }
        Ok(Self { name, secret })
    }
}

impl Backends<'_> {
    /// Where a backend of a route is.
    pub(super) fn destination(&self, kind: &str, namespace: &str, to: &Reference) -> Result<Destination, Unresolved> {
        let port = |needed: bool| match to.port {
            Some(number) => Ok(Some(PortSelector { number: u32::from(number) })),
            None if needed => Err(("UnsupportedValue", format!("backend {:?} needs a port", to.name))),
            None => Ok(None),
        };
        if to.is("networking.istio.io", "Hostname", "", "Service") {
            return Ok(Destination { host: to.name.clone(), subset: String::new(), port: port(true)? });
        }
        if !to.is("", "Service", "", "Service") {
            let (group, kind) = (to.group.as_deref().unwrap_or_default(), to.kind.as_deref().unwrap_or_default());
            return Err(("InvalidKind", format!("backends of kind {group}/{kind} are not known here")));
        }
        let there = to.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(namespace);
        if !self.grants.allow(kind, namespace, "", "Service", there, &to.name) {
            let message =
                format!("no ReferenceGrant in {there} lets a {kind} of {namespace} name service {:?}", to.name);
            return Err(("RefNotPermitted", message));
        }
        let service = self.around.services.iter().find(|s| s.metadata.namespace == there && s.metadata.name == to.name);
        let missing = || ("BackendNotFound", format!("service {}/{} does not exist", there, to.name));
        let service = service.ok_or_else(missing)?;
        let port = port(true)?;
        if port.as_ref().is_some_and(|p| !service.spec.ports.iter().any(|s| u32::from(s.port) == p.number)) {
            let number = port.map_or(0, |p| p.number);
            return Err(("BackendNotFound", format!("service {}/{} has no port {number}", there, to.name)));
        }
        let host = format!("{}.{}.svc.{}", to.name, there, self.around.domain);
        Ok(Destination { host, subset: String::new(), port })
    }

    /// The backends of a rule that exist, with their weights; the first reason why one does not; the weight that leads nowhere.
    pub(super) fn all<'b>(
        &self,
        kind: &str,
        namespace: &str,
        refs: &'b [BackendRef],
    ) -> (Vec<Weighted<'b>>, Option<Unresolved>, i32) {
        let (mut good, mut bad, mut lost) = (Vec::new(), None, 0i32);
        for backend in refs {
            let weight = backend.weight.unwrap_or(1).max(0);
            match self.destination(kind, namespace, &backend.to) {
                Ok(destination) => good.push((destination, weight, backend)),
                Err(reason) => {
                    bad = bad.or(Some(reason));
                    lost = lost.saturating_add(weight);
                }
            }
        }
        (good, bad, lost)
    }
}
