//! DestinationRule objects (semantics §4).
//!
//! Invariant: a rule with a workload selector is for its own namespace alone, whatever its `exportTo` says (§4.2).

use carrick_base::{Diagnostic, HostPattern, Severity};

use super::{export_to, finding, origin, traffic};
use crate::{
    Settings, codes,
    model::{
        DestinationRule, ExportTo, Subset,
        policy::{ClientTls, ClientTlsMode, PortedPolicy},
    },
};

pub(crate) fn read(
    from: &carrick_api::DestinationRule,
    settings: &Settings,
    found: &mut Vec<Diagnostic>,
) -> Option<DestinationRule> {
    let origin = origin("DestinationRule", &from.metadata);
    if from.spec.host.is_empty() {
        found.push(finding(&origin, codes::UNREADABLE, Severity::Error, "spec.host", "a host is required"));
        return None;
    }
    let namespace = origin.namespace().clone();
    let workload_selector = from.spec.workload_labels().cloned();
    let export_to = if workload_selector.is_some() {
        ExportTo::Namespaces([namespace.clone()].into())
    } else {
        export_to(from.spec.export_to.iter().map(String::as_str), &settings.rule_export_to, &namespace)
    };
    let policy = from.spec.traffic_policy.as_ref().map(traffic::policy);
    let mut subsets: Vec<Subset> = Vec::new();
    for subset in &from.spec.subsets {
        if subsets.iter().any(|s| *s.name == *subset.name) {
            continue;
        }
        subsets.push(Subset {
            name: subset.name.as_str().into(),
            labels: subset.labels.clone(),
            policy: subset.traffic_policy.as_ref().map(traffic::policy),
            origin: origin.clone(),
        });
    }
    let rule = DestinationRule {
        host: HostPattern::resolve(&from.spec.host, &namespace, &settings.domain_suffix),
        export_to,
        workload_selector,
        policy,
        subsets,
        origin,
    };
    report_tls(&rule, found);
    Some(rule)
}

/// Why a sidecar cannot honour this TLS block, if it cannot. Istio would send plaintext in these cases (§3.8, §3.9); we refuse.
pub(crate) fn refusal(tls: &ClientTls, secrets: bool) -> Option<&'static str> {
    if matches!(tls.mode, ClientTlsMode::Disable | ClientTlsMode::IstioMutual) {
        return None;
    }
    let name = &tls.credential_name;
    if !name.is_empty() {
        let usable = secrets || name.starts_with("configmap://") || name.starts_with("kubernetes-gateway://");
        return (!usable).then_some("credentialName is for sidecars only in a rule with a workloadSelector");
    }
    match tls.mode {
        ClientTlsMode::Mutual if tls.client_certificate.is_empty() => Some("MUTUAL needs a clientCertificate"),
        ClientTlsMode::Mutual if tls.private_key.is_empty() => Some("MUTUAL needs a privateKey"),
        _ => None,
    }
}

fn report_tls(rule: &DestinationRule, found: &mut Vec<Diagnostic>) {
    let mut check = |policy: &PortedPolicy, at: &str| {
        let ports = policy.ports.iter().map(|(port, p)| (p, format!("{at}.portLevelSettings[{port}]")));
        for (policy, at) in std::iter::once((&policy.base, at.to_owned())).chain(ports) {
            let Some(tls) = &policy.tls else { continue };
            if let Some(reason) = refusal(tls, rule.workload_selector.is_some()) {
                let message =
                    format!("{reason}: connections to {} are refused rather than sent in plaintext", rule.host);
                found.push(finding(&rule.origin, codes::TLS_REFUSED, Severity::Error, &format!("{at}.tls"), message));
            }
        }
    };
    if let Some(policy) = &rule.policy {
        check(policy, "spec.trafficPolicy");
    }
    for (index, subset) in rule.subsets.iter().enumerate() {
        if let Some(policy) = &subset.policy {
            check(policy, &format!("spec.subsets[{index}].trafficPolicy"));
        }
    }
}
