//! The Gateway (Istio's) that a listener comes to: one server, for the pods that serve the gateway.
//!
//! Invariant: pods of another namespace never serve it, whatever their labels are.

use std::{collections::BTreeMap, sync::Arc};

use carrick_api::{
    Gateway,
    gateway_api::{K8sGateway, Reference},
    istio::{
        gateway::{GatewaySpec, Server, ServerPort},
        server_tls::{ServerTls, ServerTlsMode},
    },
    object::{Meta, Object},
};

use super::{Gateways, Listener};
use crate::gateway_api::{GATEWAY_LABEL, ONLY_NAMESPACE, Translated};

/// Names secrets of another namespace, where a ReferenceGrant was looked at.
pub(super) const GRANTED: &str = "kubernetes-gateway://";

impl Gateways<'_> {
    /// The Gateway of one listener; secrets of other namespaces that it may use are noted.
    pub(super) fn made(&self, gateway: &K8sGateway, listener: &Listener<'_>, out: &mut Translated) -> Arc<Gateway> {
        let spec = listener.spec;
        let (selector, pods) = self.selector(gateway);
        let server = Server {
            port: Some(ServerPort {
                number: u32::from(spec.port),
                protocol: spec.protocol.clone(),
                name: format!("{}-{}", spec.name, spec.port),
                target_port: 0,
            }),
            hosts: vec![format!("*/{}", listener.host())],
            tls: self.tls(gateway, listener, &pods, out),
            ..Server::default()
        };
        let (namespace, name) = listener.made.split_once('/').unwrap_or(("", &listener.made));
        let metadata = Meta {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            creation_timestamp: gateway.metadata.creation_timestamp,
            annotations: BTreeMap::from([(ONLY_NAMESPACE.to_owned(), pods)]),
            ..Meta::default()
        };
        Arc::new(Object {
            api_version: "networking.istio.io/v1".to_owned(),
            kind: "Gateway".to_owned(),
            metadata,
            spec: GatewaySpec { servers: vec![server], selector },
        })
    }

    /// Which pods serve a gateway, by labels and namespace: those behind the service that its addresses name, else those that carry its
    /// label.
    pub(super) fn selector(&self, gateway: &K8sGateway) -> (BTreeMap<String, String>, String) {
        match gateway.spec.addresses.iter().find_map(|a| self.service_of(gateway, &a.value)) {
            Some(service) => (service.spec.selector.clone(), service.metadata.namespace.clone()),
            None => (
                BTreeMap::from([(GATEWAY_LABEL.to_owned(), gateway.metadata.name.clone())]),
                gateway.metadata.namespace.clone(),
            ),
        }
    }

    pub(super) fn service_of(&self, gateway: &K8sGateway, host: &str) -> Option<&carrick_api::Service> {
        let mut parts = host.split('.');
        let (name, namespace) = (parts.next()?, parts.next().unwrap_or(&gateway.metadata.namespace));
        let found = |s: &&Arc<carrick_api::Service>| {
            s.metadata.name == name && s.metadata.namespace == namespace && !s.spec.selector.is_empty()
        };
        self.around.services.iter().find(found).map(|s| &**s)
    }

    fn tls(
        &self,
        gateway: &K8sGateway,
        listener: &Listener<'_>,
        pods: &str,
        out: &mut Translated,
    ) -> Option<ServerTls> {
        if !matches!(listener.spec.protocol.as_str(), "HTTPS" | "TLS") {
            return None;
        }
        if !listener.terminates() {
            return Some(ServerTls { mode: ServerTlsMode::Passthrough, ..ServerTls::default() });
        }
        let refs = listener.spec.tls.as_ref().map(|t| t.certificate_refs.as_slice()).unwrap_or_default();
        let owner = match listener.set.and_then(|n| self.sets.get(n)) {
            Some((set, ..)) => &set.metadata.namespace,
            None => &gateway.metadata.namespace,
        };
        // A secret of another namespace is named with it; the grant was looked at.
        let mut name = |r: &Reference| {
            let there = r.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(owner);
            if there == pods {
                return r.name.clone();
            }
            let name = format!("{GRANTED}{there}/{}", r.name);
            out.granted.insert((pods.to_owned(), name.clone()));
            name
        };
        let mut names: Vec<String> = refs.iter().map(&mut name).collect();
        let mut tls = ServerTls { mode: ServerTlsMode::Simple, ..ServerTls::default() };
        if names.len() == 1 {
            tls.credential_name = names.pop().unwrap_or_default();
        } else {
            tls.credential_names = names;
        }
        if let Some(roots) = &listener.roots {
            tls.mode = if roots.insecure { ServerTlsMode::OptionalMutual } else { ServerTlsMode::Mutual };
            tls.insecure_skip_verify = roots.insecure.then_some(true);
            tls.ca_cert_credential_name.clone_from(&roots.name);
            if roots.granted {
                out.granted.insert((pods.to_owned(), roots.name.clone()));
            }
        }
        Some(tls)
    }
}
