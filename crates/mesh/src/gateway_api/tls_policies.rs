//! BackendTLSPolicies: TLS from gateways (and sidecars) to a service.
//!
//! Invariant: a policy whose roots cannot be had makes its service unreachable, never plain. One service has one rule, whatever number of
//! policies there are for its ports.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use carrick_api::{
    gateway_api::{BackendTlsPolicy, GROUP},
    istio::{
        PortSelector, WorkloadSelector,
        destination_rule::{ClientTls, ClientTlsMode, DestinationRuleSpec, PortTrafficPolicy, TrafficPolicy},
    },
    object::{Meta, Object},
};
use carrick_base::ObjectRef;
use serde_json::{Value, json};

use super::{
    CONTROLLER, Translated,
    conditions::{Outcome, of},
    gateways::{Gateways, Shown},
    http::reference,
    references::{Authority, Backends, Unresolved},
};

pub(super) fn policies(
    all: &[Arc<BackendTlsPolicy>],
    backends: &Backends<'_>,
    gateways: &Gateways<'_>,
    out: &mut Translated,
) {
    let mut all: Vec<_> = all.iter().collect();
    all.sort_by(|a, b| a.metadata.age_order().cmp(&b.metadata.age_order()));
    let mut taken: BTreeSet<(String, Option<String>)> = BTreeSet::new();
    let mut rules: BTreeMap<String, Object<DestinationRuleSpec>> = BTreeMap::new();
    for policy in all {
        let meta = &policy.metadata;
        let (roots, resolved) = match roots(policy, backends) {
            Ok(roots) => (roots, Ok(())),
            Err(why) => (Roots::None, Err(why)),
        };
        if let Roots::Named(Authority { name, secret: true }) = &roots {
            // Certificates of authorities are nothing secret: whoever calls the service may have them.
            out.granted.insert((String::new(), name.clone()));
        }
        let mut told = Vec::new();
        for target in &policy.spec.target_refs {
            let service = backends.around.services.iter();
            let mut service =
                service.filter(|s| s.metadata.namespace == meta.namespace && s.metadata.name == target.name);
            let service = service.next().filter(|_| target.is("", "Service", "", "Service"));
            let host = format!("{}.{}.svc.{}", target.name, meta.namespace, backends.around.domain);
            let section = target.section_name.as_ref().filter(|s| !s.is_empty());
            let port = service.and_then(|s| s.spec.ports.iter().find(|p| section.is_some_and(|name| p.name == *name)));
            let key = (host.clone(), section.cloned());
            let accepted: Outcome = if service.is_none() {
                Err(("TargetNotFound", format!("service {}/{} does not exist", meta.namespace, target.name)))
            } else if section.is_some() && port.is_none() {
                let name = section.map_or("", String::as_str);
                Err(("TargetNotFound", format!("service {}/{} has no port {name}", meta.namespace, target.name)))
            } else if taken.contains(&key) {
                Err(("Conflicted", "an older policy names this target".to_owned()))
            } else if let Err((_, words)) = &resolved {
                Err(("NoValidCACertificate", words.clone()))
            } else {
                Ok(())
            };
            let named = !matches!(accepted, Err(("TargetNotFound" | "Conflicted", _)));
            if named {
                taken.insert(key);
                let rule = rules.entry(host.clone()).or_insert_with(|| rule(policy, &target.name, &host));
                let traffic = rule.spec.traffic_policy.get_or_insert_default();
                let tls = Some(tls(policy, &roots));
                match port {
                    Some(port) => traffic.port_level_settings.push(PortTrafficPolicy {
                        port: Some(PortSelector { number: u32::from(port.port) }),
                        tls,
                        ..PortTrafficPolicy::default()
                    }),
                    None => traffic.tls = tls,
                }
            }
            let conditions = json!([
                of("Accepted", "Accepted", &accepted, meta.generation),
                of("ResolvedRefs", "ResolvedRefs", &resolved, meta.generation),
            ]);
            let mut of_gateways: Vec<Value> = gateways
                .leading_to(&host)
                .map(|g| json!({"group": GROUP, "kind": "Gateway", "name": g.metadata.name, "namespace": g.metadata.namespace}))
                .collect();
            if of_gateways.is_empty() {
                // Nothing but the mesh leads to it.
                let mut own = reference(target);
                if let Some(map) = own.as_object_mut() {
                    map.insert("group".to_owned(), "".into());
                    map.insert("kind".to_owned(), "Service".into());
                }
                of_gateways.push(own);
            }
            for ancestor in of_gateways {
                let entry =
                    json!({"ancestorRef": ancestor, "controllerName": CONTROLLER, "conditions": conditions.clone()});
                // Of several targets behind one gateway the one in trouble is told of.
                match told.iter_mut().find(|t: &&mut Value| t.get("ancestorRef") == entry.get("ancestorRef")) {
                    None => told.push(entry),
                    Some(known) if accepted.is_err() => *known = entry,
                    Some(_) => {}
                }
            }
        }
        let reference = ObjectRef::new("BackendTLSPolicy", &meta.namespace, &meta.name);
        out.statuses.insert(reference, json!({"ancestors": told}));
    }
    for (host, rule) in &rules {
        let shown = gateways.certificates_towards(host, out);
        out.destination_rules.extend(std::iter::once(rule.clone()).chain(shown.map(|s| mutual(rule, s))).map(Arc::new));
    }
}

/// The same rule for the pods of one gateway, which show its certificate.
fn mutual(rule: &Object<DestinationRuleSpec>, shown: Shown) -> Object<DestinationRuleSpec> {
    let mut rule = rule.clone();
    rule.metadata.name = format!("{}-{}", shown.gateway, rule.metadata.name);
    rule.metadata.namespace = shown.namespace;
    rule.spec.workload_selector = Some(WorkloadSelector { match_labels: shown.selector });
    let Some(traffic) = rule.spec.traffic_policy.as_mut() else { return rule };
    let ports = traffic.port_level_settings.iter_mut().filter_map(|p| p.tls.as_mut());
    for tls in ports.chain(traffic.tls.as_mut()) {
        tls.mode = ClientTlsMode::Mutual;
        if !tls.credential_name.is_empty() {
            tls.ca_certificates = std::mem::take(&mut tls.credential_name);
        }
        tls.credential_name.clone_from(&shown.secret);
    }
    rule
}

/// Where the roots come from.
enum Roots {
    System,
    Named(Authority),
    None,
}

fn roots(policy: &BackendTlsPolicy, backends: &Backends<'_>) -> Result<Roots, Unresolved> {
    let validation = &policy.spec.validation;
    if validation.well_known_ca_certificates.as_deref() == Some("System") {
        return Ok(Roots::System);
    }
    let mut first = Err(("InvalidCACertificateRef", "validation names no certificates".to_owned()));
    for to in &validation.ca_certificate_refs {
        match Authority::of(to, &policy.metadata.namespace, backends.around) {
            Ok(authority) => return Ok(Roots::Named(authority)),
            Err(("InvalidCACertificateKind", words)) if first.is_err() => first = Err(("InvalidKind", words)),
            Err(why) => first = Err(why),
        }
    }
    first
}

fn tls(policy: &BackendTlsPolicy, roots: &Roots) -> ClientTls {
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
        Roots::Named(authority) => tls.credential_name.clone_from(&authority.name),
        // Nobody has such a secret: nothing is trusted.
        Roots::None => tls.credential_name = "configmap://backend-tls-policy/without-certificates".to_owned(),
    }
    tls
}

/// A rule for a service's host, without any content yet.
fn rule(policy: &BackendTlsPolicy, service: &str, host: &str) -> Object<DestinationRuleSpec> {
    let meta = &policy.metadata;
    Object {
        api_version: "networking.istio.io/v1".to_owned(),
        kind: "DestinationRule".to_owned(),
        metadata: Meta {
            name: format!("{service}-istio-autogenerated-k8s-gateway"),
            namespace: meta.namespace.clone(),
            creation_timestamp: meta.creation_timestamp,
            ..Meta::default()
        },
        spec: DestinationRuleSpec {
            host: host.to_owned(),
            traffic_policy: Some(TrafficPolicy::default()),
            ..DestinationRuleSpec::default()
        },
    }
}
