//! Certificates that gateways name: their own, those of the authorities of their clients, and the one shown to backends.
//!
//! Invariant: what is missing, unreadable or not permitted has a reason of the specification, and nothing is served in its place.

use std::collections::BTreeMap;

use carrick_api::gateway_api::{K8sGateway, Reference, gateway::FrontendValidation};

use super::{Gateways, Listener, made::GRANTED};
use crate::gateway_api::{
    Translated,
    conditions::Outcome,
    references::{Authority, Grants, Unresolved},
};

/// Whose certificates clients must show.
#[derive(Debug)]
pub(super) struct Roots {
    /// SDS name, without the suffix for roots.
    pub(super) name: String,
    /// It may lie in another namespace.
    pub(super) granted: bool,
    /// Clients without a good certificate are let in too.
    pub(super) insecure: bool,
}

/// The certificate that the pods of a gateway show to backends.
#[derive(Debug)]
pub(in crate::gateway_api) struct Shown {
    pub(in crate::gateway_api) gateway: String,
    /// Of the pods.
    pub(in crate::gateway_api) namespace: String,
    pub(in crate::gateway_api) selector: BTreeMap<String, String>,
    /// What a rule calls the Secret.
    pub(in crate::gateway_api) secret: String,
}

impl Gateways<'_> {
    /// The certificates of gateways that lead to a host and show one.
    pub(in crate::gateway_api) fn certificates_towards(
        &self,
        host: &str,
        out: &mut Translated,
    ) -> impl Iterator<Item = Shown> + use<> {
        let mut all = Vec::new();
        for index in self.numbers_to(host) {
            let Some(gateway) = self.gateways.get(index).filter(|_| self.backend.get(index).is_some_and(Result::is_ok))
            else {
                continue;
            };
            let backend = gateway.spec.tls.as_ref().and_then(|t| t.backend.as_ref());
            let Some(to) = backend.and_then(|b| b.client_certificate_ref.as_ref()) else { continue };
            let (selector, namespace) = self.selector(gateway);
            let there = to.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(&gateway.metadata.namespace);
            let mut secret = to.name.clone();
            if there != namespace {
                secret = format!("{GRANTED}{there}/{}", to.name);
                out.granted.insert((namespace.clone(), secret.clone()));
            }
            all.push(Shown { gateway: gateway.metadata.name.clone(), namespace, selector, secret });
        }
        all.into_iter()
    }

    /// Whether the certificates a listener ends TLS with are there and may be used.
    pub(super) fn certificates(
        &self,
        listener: &Listener<'_>,
        kind: &str,
        namespace: &str,
        grants: &Grants<'_>,
    ) -> Outcome {
        let ends = matches!(listener.spec.protocol.as_str(), "HTTPS" | "TLS") && listener.terminates();
        if !ends {
            return Ok(());
        }
        let refs = listener.spec.tls.as_ref().map(|t| t.certificate_refs.as_slice()).unwrap_or_default();
        if refs.is_empty() {
            return Err(("InvalidCertificateRef", "tls.certificateRefs is empty".to_owned()));
        }
        refs.iter().try_for_each(|r| self.pair(r, kind, namespace, grants, "InvalidCertificateRef"))
    }

    /// Whether the certificate that a gateway shows to backends is there and may be used.
    pub(super) fn backend_certificate(&self, gateway: &K8sGateway, grants: &Grants<'_>) -> Outcome {
        let backend = gateway.spec.tls.as_ref().and_then(|t| t.backend.as_ref());
        match backend.and_then(|b| b.client_certificate_ref.as_ref()) {
            Some(to) => self.pair(to, "Gateway", &gateway.metadata.namespace, grants, "InvalidClientCertificateRef"),
            None => Ok(()),
        }
    }

    /// Whether a Secret with a certificate and its key is there and may be used.
    fn pair(&self, to: &Reference, kind: &str, namespace: &str, grants: &Grants<'_>, reason: &'static str) -> Outcome {
        if !to.is("", "Secret", "", "Secret") {
            return Err((reason, format!("{:?} is no Secret", to.name)));
        }
        let there = to.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(namespace);
        if !grants.allow(kind, namespace, "", "Secret", there, &to.name) {
            let message =
                format!("no ReferenceGrant in {there} lets a {kind} of {namespace} name secret {:?}", to.name);
            return Err(("RefNotPermitted", message));
        }
        let found = self.around.secrets.iter().find(|s| s.metadata.namespace == there && s.metadata.name == to.name);
        let secret = found.ok_or_else(|| (reason, format!("secret {there}/{} does not exist", to.name)))?;
        let holds = |keys: [&str; 2], what: &[u8]| {
            let value = keys.iter().find_map(|key| secret.data.get(*key));
            value.is_some_and(|bytes| contains(bytes, what))
        };
        for (keys, what) in [(["tls.crt", "cert"], "-----BEGIN CERTIFICATE"), (["tls.key", "key"], "PRIVATE KEY-----")]
        {
            if !holds(keys, what.as_bytes()) {
                let [key, _] = keys;
                return Err((reason, format!("secret {there}/{} has no usable {key}", to.name)));
            }
        }
        Ok(())
    }

    /// The authority whose certificates clients must show: the first that can be had.
    pub(super) fn roots(
        &self,
        validation: &FrontendValidation,
        namespace: &str,
        grants: &Grants<'_>,
    ) -> Result<Roots, Unresolved> {
        let insecure = validation.mode.as_deref() == Some("AllowInsecureFallback");
        let mut first = Err(("InvalidCACertificateRef", "caCertificateRefs is empty".to_owned()));
        for to in &validation.ca_certificate_refs {
            let found = Authority::of(to, namespace, self.around).and_then(|authority| {
                let there = to.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or(namespace);
                let kind = to.kind.as_deref().unwrap_or_default();
                if !grants.allow("Gateway", namespace, "", kind, there, &to.name) {
                    let message =
                        format!("no ReferenceGrant in {there} lets a Gateway of {namespace} name {:?}", to.name);
                    return Err(("RefNotPermitted", message));
                }
                Ok(Roots { name: authority.name, granted: authority.secret, insecure })
            });
            match found {
                Ok(roots) => return Ok(roots),
                Err(why) if first.is_err() => first = Err(why),
                Err(_) => {}
            }
        }
        first
    }
}

fn contains(all: &[u8], part: &[u8]) -> bool {
    all.windows(part.len()).any(|window| window == part)
}
