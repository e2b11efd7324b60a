//! What injection means for a pod of ours: `inject`'s decision and description, applied to a template.
//!
//! Invariant: pure, and no rule of its own; the decision, the labels and the container are `carrick-inject`'s.

use std::collections::BTreeMap;

use carrick_capture::sidecar::SidecarCapture;
use carrick_inject::{Config, MetadataFacts, PodFacts, ProxyFacts};
use serde_json::Value;

use crate::PodError;
use crate::options::{CLUSTER_DOMAIN, Engine, RunOptions};
use crate::template::Template;

/// The revision of a gateway that names none.
const DEFAULT_REVISION: &str = "default";

/// Whether the pod is injected; if it is, the template gets the labels and annotations of an injected pod.
///
/// # Errors
/// An annotation that Istio's injector refuses.
pub(crate) fn inject(
    options: &RunOptions,
    namespace_labels: &BTreeMap<String, String>,
    template: &mut Template,
) -> Result<bool, PodError> {
    if options.gateway {
        complete(options, template, DEFAULT_REVISION)?;
        return Ok(true);
    }
    let facts = PodFacts {
        namespace: &options.namespace,
        namespace_labels,
        labels: &template.labels,
        annotations: &template.annotations,
        host_network: template.host_network,
    };
    let decision = carrick_inject::decide(&Config::default(), &facts);
    let Some(revision) = decision.revision.filter(|_| decision.inject && !options.no_sidecar) else { return Ok(false) };
    complete(options, template, &revision)?;
    Ok(true)
}

/// Says how packets come to the proxy.
const INTERCEPTION: &str = "sidecar.istio.io/interceptionMode";

/// What is captured in the pod.
pub(crate) fn capture(template: &Template) -> Result<SidecarCapture, PodError> {
    let mut annotations = template.annotations.clone();
    annotations.insert(INTERCEPTION.to_owned(), interception(template));
    Ok(carrick_capture::annotations::parse(&annotations)?)
}

/// Gives the template the labels and annotations of a pod with a proxy.
fn complete(options: &RunOptions, template: &mut Template, revision: &str) -> Result<(), PodError> {
    if let Some(error) = carrick_inject::validate_annotations(&template.annotations).into_iter().next() {
        return Err(PodError::Request(format!("annotation {}: {}", error.annotation, error.message)));
    }
    let added = carrick_inject::added(&MetadataFacts {
        labels: &template.labels,
        annotations: &template.annotations,
        owner_name: &template.workload,
        containers: std::slice::from_ref(&template.container),
        revision,
        gateway: options.gateway,
        network: "",
    });
    template.labels.extend(added.labels);
    template.annotations.extend(added.annotations);
    Ok(())
}

/// The sidecar's entry in the Pod object.
pub(crate) fn container(options: &RunOptions, template: &Template) -> Value {
    let ports: Vec<(String, u16)> =
        template.ports.iter().map(|port| (port.name.clone().unwrap_or_default(), port.number)).collect();
    carrick_inject::proxy_container(&ProxyFacts {
        gateway: options.gateway,
        namespace: &options.namespace,
        domain_suffix: CLUSTER_DOMAIN,
        image: match options.engine {
            Engine::Native => concat!("carrick-proxy:", env!("CARGO_PKG_VERSION")),
            Engine::Envoy => "envoy",
        },
        ca_address: &options.ca_address,
        trust_domain: &options.trust_domain,
        cluster_id: &options.cluster_id,
        mesh_id: &options.trust_domain,
        workload_name: &template.workload,
        owner: &owner(options, template),
        containers: if options.gateway { &[] } else { std::slice::from_ref(&template.container) },
        ports: &ports,
        proxy_config: proxy_config(template).as_ref(),
        interception: &interception(template),
    })
}

/// How packets come to the proxy: the pod's annotation, or what its proxy starts with says it.
pub(crate) fn interception(template: &Template) -> String {
    let annotated = template.annotations.get(INTERCEPTION).filter(|mode| !mode.is_empty()).cloned();
    let configured = || Some(proxy_config(template)?.get("interceptionMode")?.as_str()?.to_owned());
    annotated.or_else(configured).unwrap_or_else(|| "REDIRECT".to_owned())
}

/// The workload that the pod is of, as Istio writes it; empty for a pod of its own.
pub(crate) fn owner(options: &RunOptions, template: &Template) -> String {
    let group = match template.kind.as_deref() {
        Some("Job" | "CronJob") => "batch/v1",
        Some("Pod") | None => return String::new(),
        Some(_) => "apps/v1",
    };
    let plural = format!("{}s", template.kind.as_deref().unwrap_or_default().to_lowercase());
    format!("kubernetes://apis/{group}/namespaces/{}/{plural}/{}", options.namespace, template.workload)
}

/// What the proxy starts with.
pub(crate) fn proxy_config(template: &Template) -> Option<Value> {
    template.proxy_config.clone().or_else(|| annotated(template))
}

/// The annotation `proxy.istio.io/config`, which is YAML.
pub(crate) fn annotated(template: &Template) -> Option<Value> {
    let text = template.annotations.get("proxy.istio.io/config")?;
    serde_saphyr::from_str::<Value>(text).ok().filter(Value::is_object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_injected_template_says_so_and_a_refused_one_stays() {
        let enabled = BTreeMap::from([("istio-injection".to_owned(), "enabled".to_owned())]);
        let options = RunOptions::new("basic", vec!["server".into()]);
        let mut template = crate::template::build(&options).unwrap();
        let before = template.labels.clone();
        assert!(!inject(&options, &BTreeMap::new(), &mut template).unwrap());
        assert!(!inject(&RunOptions { no_sidecar: true, ..options.clone() }, &enabled, &mut template).unwrap());
        assert_eq!(template.labels, before);
        assert!(inject(&options, &enabled, &mut template).unwrap());
        assert_eq!(template.labels["service.istio.io/canonical-name"], "server");
        assert_eq!(owner(&options, &template), "");
        template.kind = Some("Deployment".into());
        assert_eq!(owner(&options, &template), "kubernetes://apis/apps/v1/namespaces/basic/deployments/server");
    }
}
