//! Authorization policies that select nothing or name nobody; key fetches that may go anywhere.
//!
//! Invariant: only pods in the mesh count, since a policy has no effect on others.

use std::collections::BTreeMap;

use crate::hosts::{in_ambient, in_mesh};
use crate::objects::{Labels, Object, items, labels, selector_text, selects, text, texts};
use crate::report::Report;

pub(crate) fn check(report: &mut Report<'_>) {
    let objects = report.objects;
    let mut pods: BTreeMap<&str, Vec<Labels<'_>>> = BTreeMap::new();
    for pod in objects.pods() {
        if in_mesh(objects, pod, "") || in_ambient(pod) {
            pods.entry(pod.namespace()).or_default().push(pod.labels());
        }
    }
    for policy in objects.of("security.istio.io", "AuthorizationPolicy") {
        workloads(policy, &pods, report);
        namespaces(policy, report);
    }
}

fn workloads(policy: &Object, pods: &BTreeMap<&str, Vec<Labels<'_>>>, report: &mut Report<'_>) {
    if policy.spec().get("targetRef").is_some() || !items(policy.spec(), "targetRefs").is_empty() {
        return;
    }
    let selector = policy.at("/spec/selector");
    let wanted = labels(selector.get("matchLabels").unwrap_or(&crate::objects::NOTHING));
    let mesh_wide = policy.namespace() == report.objects.root();
    let matches = if selector.is_null() {
        mesh_wide || pods.get(policy.namespace()).is_some_and(|pods| !pods.is_empty())
    } else if mesh_wide {
        pods.values().flatten().any(|labels| selects(&wanted, labels))
    } else {
        pods.get(policy.namespace()).into_iter().flatten().any(|labels| selects(&wanted, labels))
    };
    if !matches {
        let text =
            format!("No matching workloads for this resource with the following labels: {}", selector_text(&wanted));
        report.add("IST0127", policy, "", text);
    }
}

fn namespaces(policy: &Object, report: &mut Report<'_>) {
    let known = report.objects.namespaces();
    for (i, rule) in items(policy.spec(), "rules").iter().enumerate() {
        for (j, from) in items(rule, "from").iter().enumerate() {
            let source = from.get("source").unwrap_or(&crate::objects::NOTHING);
            for field in ["namespaces", "notNamespaces"] {
                for (k, name) in texts(source, field).into_iter().enumerate() {
                    if !known.iter().any(|known| fits(known, name)) {
                        let path = format!("spec.rules[{i}].from[{j}].source.{field}[{k}]");
                        report.not_found(policy, &path, "namespace", name);
                    }
                }
            }
        }
    }
}

fn fits(namespace: &str, pattern: &str) -> bool {
    if let Some(suffix) = pattern.strip_prefix('*') {
        return namespace.ends_with(suffix);
    }
    match pattern.strip_suffix('*') {
        Some(prefix) => namespace.starts_with(prefix),
        None => namespace.eq_ignore_ascii_case(pattern),
    }
}

pub(crate) fn key_fetches(report: &mut Report<'_>) {
    const SHOWN: usize = 5;
    let objects = report.objects;
    let names: Vec<String> =
        objects.of("security.istio.io", "RequestAuthentication").iter().map(Object::full_name).collect();
    if names.is_empty() {
        return;
    }
    let mut shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        shown = format!("{shown}, and {} more", names.len() - SHOWN);
    }
    for deployment in objects.of("apps", "Deployment").iter().filter(|d| d.labels().get("app") == Some(&"istiod")) {
        let template = deployment.at("/spec/template/spec");
        let restricted = items(template, "containers").iter().flat_map(|c| items(c, "env")).any(|variable| {
            text(variable, "name") == "BLOCKED_CIDRS_IN_JWKS_URIS" && !text(variable, "value").is_empty()
        });
        if !restricted {
            report.add("IST0175", deployment, "", format!("BLOCKED_CIDRS_IN_JWKS_URIS is not configured but {} RequestAuthentication resource(s) exist ({shown}). Consider configuring it to restrict JWKS URI fetches to trusted networks.", names.len()));
        }
    }
}
