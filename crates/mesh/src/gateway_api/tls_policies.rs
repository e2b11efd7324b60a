//! BackendTLSPolicies: TLS from gateways (and sidecars) to a service.
//!
//! Invariant: a policy whose roots cannot be had makes its service unreachable, never plain.

use std::sync::Arc;

use carrick_api::{
    DestinationRule,
    gateway_api::{BackendTlsPolicy, Reference},
    istio::{
        PortSelector,
        destination_rule::{ClientTls, ClientTlsMode, DestinationRuleSpec, PortTrafficPolicy, TrafficPolicy},
    },
    object::{Meta, Object},
};
use carrick_base::ObjectRef;
use serde_json::json;

use super::{
    CONTROLLER, Translated,
    conditions::{Outcome, of},
    http::reference,
    references::Backends,
};

pub(super) fn policies(all: &[Arc<BackendTlsPolicy>], backends: &Backends<'_>, out: &mut Translated) {
    let mut all: Vec<_> = all.iter().collect();
    all.sort_by(|a, b| a.metadata.age_order().cmp(&b.metadata.age_order()));
    let mut taken: Vec<(String, Option<String>)> = Vec::new();
    for policy in all {
        let meta = &policy.metadata;
        let mut told = Vec::new();
        for target in &policy.spec.target_refs {
            let service = backends
                .around
                .services
                .iter()
                .find(|s| s.metadata.namespace == meta.namespace && s.metadata.name == target.name);
            let key = (format!("{}/{}", meta.namespace, target.name), target.section_name.clone());
            let accepted: Outcome = if !target.is("", "Service", "", "Service") || service.is_none() {
                Err(("TargetNotFound", format!("service {}/{} does not exist", meta.namespace, target.name)))
            } else if taken.contains(&key) {
                Err(("Conflicted", "an older policy names this target".to_owned()))
            } else {
                Ok(())
            };
            let (roots, resolved) = roots(policy, &meta.namespace);
            if let (Ok(()), Some(service)) = (&accepted, service) {
                taken.push(key);
                let port =
                    target.section_name.as_ref().and_then(|name| service.spec.ports.iter().find(|p| p.name == *name));
                out.destination_rules.push(rule(
                    policy,
                    target,
                    roots,
                    port.map(|p| u32::from(p.port)),
                    backends.around.domain,
                ));
            }
            let mut ancestor = reference(target);
            if let Some(map) = ancestor.as_object_mut() {
                map.insert("group".to_owned(), "".into());
                map.insert("kind".to_owned(), "Service".into());
            }
            told.push(json!({
                "ancestorRef": ancestor,
                "controllerName": CONTROLLER,
                "conditions": [
                    of("Accepted", "Accepted", &accepted, meta.generation),
                    of("ResolvedRefs", "ResolvedRefs", &resolved, meta.generation),
                ],
            }));
        }
        let reference = ObjectRef::new("BackendTLSPolicy", &meta.namespace, &meta.name);
        out.statuses.insert(reference, json!({"ancestors": told}));
    }
}

/// Where the roots come from.
enum Roots {
    System,
    Named(String),
    None,
}

fn roots(policy: &BackendTlsPolicy, namespace: &str) -> (Roots, Outcome) {
    let validation = &policy.spec.validation;
    if validation.well_known_ca_certificates.as_deref() == Some("System") {
        return (Roots::System, Ok(()));
    }
    match validation.ca_certificate_refs.as_slice() {
        [one] if one.is("", "ConfigMap", "", "ConfigMap") => {
            (Roots::Named(format!("configmap://{namespace}/{}", one.name)), Ok(()))
        }
        [one] if one.is("", "Secret", "", "ConfigMap") => (Roots::Named(one.name.clone()), Ok(())),
        [] => (Roots::None, Err(("NoValidCACertificate", "validation names no certificates".to_owned()))),
        _ => (Roots::None, Err(("NoValidCACertificate", "one ConfigMap or Secret is understood".to_owned()))),
    }
}

fn rule(
    policy: &BackendTlsPolicy,
    target: &Reference,
    roots: Roots,
    port: Option<u32>,
    domain: &str,
) -> Arc<DestinationRule> {
    let validation = &policy.spec.validation;
    let mut sans: Vec<String> = validation
        .subject_alt_names
        .iter()
        .map(|s| if s.kind == "URI" { s.uri.clone() } else { s.hostname.clone() })
        .collect();
    if sans.is_empty() {
        sans.push(validation.hostname.clone());
    }
    let mut tls = ClientTls {
        mode: ClientTlsMode::Simple,
        sni: validation.hostname.clone(),
        subject_alt_names: sans,
        ..ClientTls::default()
    };
    match roots {
        Roots::System => tls.ca_certificates = "system".to_owned(),
        Roots::Named(name) => tls.credential_name = name,
        // Nobody has such a secret: nothing is trusted.
        Roots::None => tls.credential_name = "backend-tls-policy-without-certificates".to_owned(),
    }
    let traffic_policy = match port {
        Some(number) => TrafficPolicy {
            port_level_settings: vec![PortTrafficPolicy {
                port: Some(PortSelector { number }),
                tls: Some(tls),
                ..PortTrafficPolicy::default()
            }],
            ..TrafficPolicy::default()
        },
        None => TrafficPolicy { tls: Some(tls), ..TrafficPolicy::default() },
    };
    let meta = &policy.metadata;
    let host = format!("{}.{}.svc.{domain}", target.name, meta.namespace);
    let section = target.section_name.as_deref().unwrap_or_default();
    Arc::new(Object {
        api_version: "networking.istio.io/v1".to_owned(),
        kind: "DestinationRule".to_owned(),
        metadata: Meta {
            name: format!("{}-{}{section}-istio-autogenerated-k8s-gateway", meta.name, target.name),
            namespace: meta.namespace.clone(),
            creation_timestamp: meta.creation_timestamp,
            ..Meta::default()
        },
        spec: DestinationRuleSpec { host, traffic_policy: Some(traffic_policy), ..DestinationRuleSpec::default() },
    })
}
