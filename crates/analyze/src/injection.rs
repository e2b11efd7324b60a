//! Namespaces and pods that have, miss or mix up proxies.
//!
//! Invariant: who said no (a label, an annotation, the host's network) is not asked again.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::objects::{Labels, Object, items, labels, selects, text};
use crate::report::{Report, bracketed};

const INJECTION: &str = "istio-injection";
const REVISION: &str = "istio.io/rev";
const DATA_PLANE: &str = "istio.io/dataplane-mode";
const INJECT: &str = "sidecar.istio.io/inject";

/// The configuration of the injector of a revision.
fn injector<'a>(report: &Report<'a>, revision: &str) -> Option<Value> {
    let name = match revision {
        "" | "default" => "istio-sidecar-injector".to_owned(),
        revision => format!("istio-sidecar-injector-{revision}"),
    };
    let map = report.objects.of("", "ConfigMap").iter().find(|map| map.name() == name)?;
    serde_json::from_str(map.text_at("/data/values")).ok()
}

pub(crate) fn check(report: &mut Report<'_>) {
    let objects = report.objects;
    let mut injected = BTreeSet::new();
    for namespace in objects.of("", "Namespace").iter().filter(|n| n.name() != objects.root()) {
        let labels = namespace.labels();
        let wish = labels.get(INJECTION).copied();
        let mut said: Vec<String> = wish.iter().map(|wish| format!("{INJECTION}={wish}")).collect();
        for label in [REVISION, DATA_PLANE] {
            if let Some(value) = labels.get(label).filter(|_| wish.is_none() || wish == Some("enabled")) {
                said.push(format!("{label}={value}"));
            }
        }
        if said.len() > 1 {
            report.add("IST0123", namespace, "metadata.labels", format!("The namespace has more than one type of injection labels {}, which may lead to undefined behavior. Make sure only one injection label exists.", bracketed(said)));
        }
        if labels.get(DATA_PLANE) == Some(&"ambient") {
            continue;
        }
        let revision = labels.get(REVISION).copied();
        if wish.unwrap_or_default().is_empty() && revision.is_none() {
            let by_default = injector(report, "")
                .and_then(|v| v.pointer("/sidecarInjectorWebhook/enableNamespacesByDefault")?.as_bool())
                .unwrap_or(false);
            if by_default {
                report.add(
                    "IST0148",
                    namespace,
                    "",
                    "is enabled for Istio injection, as Istio is installed with enableNamespacesByDefault as true.",
                );
            } else {
                let name = namespace.name();
                report.add("IST0102", namespace, "metadata.name", format!("The namespace is not enabled for Istio injection. Run 'kubectl label namespace {name} istio-injection=enabled' to enable it, or 'kubectl label namespace {name} istio-injection=disabled' to explicitly mark it as not needing injection."));
            }
        } else if wish == Some("enabled") {
            injected.insert(namespace.name());
        }
    }
    for pod in objects.pods().iter().filter(|pod| injected.contains(pod.namespace())) {
        let labels = pod.labels();
        let annotations = pod.annotations();
        let wish = labels.get(INJECT).or(annotations.get(INJECT)).copied().unwrap_or_default();
        let own_network = pod.at("/spec/hostNetwork").as_bool() == Some(true);
        if !wish.eq_ignore_ascii_case("false") && !own_network && proxy(pod).is_none() {
            report.add("IST0103", pod, "", format!("The pod {} is missing the Istio proxy. This can often be resolved by restarting or redeploying the workload.", pod.full_name()));
        }
    }
}

/// The image of a pod's proxy.
fn proxy(pod: &Object) -> Option<&str> {
    let mut containers = items(pod.spec(), "containers").iter().chain(items(pod.spec(), "initContainers"));
    containers.find(|c| text(c, "name") == "istio-proxy").map(|c| text(c, "image")).filter(|i| !i.is_empty())
}

pub(crate) fn images(report: &mut Report<'_>) {
    let objects = report.objects;
    let mut wrong: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for pod in objects.pods().iter().filter(|pod| !pod.stand_in) {
        let Some(namespace) = objects.namespace_labels(pod.namespace()) else { continue };
        let revision = namespace.get(REVISION).copied();
        if revision.is_none() && namespace.get(INJECTION) != Some(&"enabled") {
            continue;
        }
        let annotations = pod.annotations();
        if annotations.get("sidecar.istio.io/proxyImage").is_some_and(|image| !image.is_empty()) {
            continue;
        }
        let Some(wanted) = injector(report, revision.unwrap_or_default()).map(|values| image(&values)) else {
            continue;
        };
        let variant = variant(report, pod);
        if proxy(pod).is_some_and(|found| found != wanted && found != format!("{wanted}-{variant}")) {
            wrong.entry(pod.namespace()).or_default().push(pod.name());
        }
    }
    for (namespace, mut pods) in wrong {
        pods.sort_unstable();
        let object = objects.of("", "Namespace").iter().find(|object| object.name() == namespace);
        if let Some(object) = object {
            report.add("IST0158", object, "", format!("The Istio proxy images of the pods running in the namespace do not match the image defined in the injection configuration (pod names: {}). This often happens after upgrading the Istio control-plane and can be fixed by redeploying the pods.", bracketed(pods)));
        }
    }
}

/// The variant of the proxy's image that a pod is to have: what is said closest to it counts.
fn variant(report: &Report<'_>, pod: &Object) -> String {
    let objects = report.objects;
    let said = |value: &Value| {
        let kind = value.pointer("/image/imageType").and_then(Value::as_str).unwrap_or_default();
        (!kind.is_empty()).then(|| kind.to_owned())
    };
    let of_mesh = objects.mesh().get("defaultConfig").and_then(said);
    let configs = objects.networking("ProxyConfig");
    let chosen = |namespace: &str, selected: bool| {
        let own = configs.iter().filter(|config| config.namespace() == namespace);
        let mut fitting = own.filter(|config| {
            let selector = config.at("/spec/selector");
            selector.is_null() != selected && selects(&labels(config.at("/spec/selector/matchLabels")), &pod.labels())
        });
        fitting.find_map(|config| said(config.spec()))
    };
    let annotations = pod.annotations();
    let own = annotations.get("proxy.istio.io/config").and_then(|text| {
        let documents = carrick_api::parse::documents(text.as_bytes()).ok()?;
        documents.first().and_then(said)
    });
    let found = own
        .or_else(|| chosen(pod.namespace(), true))
        .or_else(|| chosen(pod.namespace(), false))
        .or_else(|| chosen(objects.root(), false))
        .or(of_mesh)
        .unwrap_or_default();
    if found == "default" { String::new() } else { found }
}

fn image(values: &Value) -> String {
    let part = |pointer: &str| values.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let image = part("/global/proxy/image");
    if image.contains('/') {
        return image.to_owned();
    }
    format!("{}/{image}:{}", part("/global/hub"), part("/global/tag"))
}

pub(crate) fn automatic_images(report: &mut Report<'_>) {
    let objects = report.objects;
    let automatic = |spec: &Value| {
        items(spec, "containers").iter().any(|c| text(c, "name") == "istio-proxy" && text(c, "image") == "auto")
    };
    let said = |kind: &str, name: &str| {
        format!("{kind} {name} contains `image: auto` but does not match any Istio injection webhook selectors.")
    };
    for pod in objects.pods().iter().filter(|pod| automatic(pod.spec())) {
        report.add("IST0147", pod, "", said("Pod", pod.name()));
    }
    let hooks: Vec<&Value> = objects
        .of("admissionregistration.k8s.io", "MutatingWebhookConfiguration")
        .iter()
        .flat_map(|configuration| items(&configuration.value, "webhooks"))
        .filter(|hook| text(hook, "name").ends_with("istio.io"))
        .collect();
    for deployment in objects.of("apps", "Deployment").iter().filter(|d| automatic(d.at("/spec/template/spec"))) {
        let namespace = objects.namespace_labels(deployment.namespace()).unwrap_or_default();
        let pod = labels(deployment.at("/spec/template/metadata/labels"));
        let taken = hooks
            .iter()
            .any(|hook| fits(hook.get("namespaceSelector"), &namespace) && fits(hook.get("objectSelector"), &pod));
        if !taken {
            report.add("IST0146", deployment, "", said("Deployment", deployment.name()));
        }
    }
}

/// Whether labels fit a label selector; an absent one takes everything.
pub(crate) fn fits(selector: Option<&Value>, own: &Labels<'_>) -> bool {
    let Some(selector) = selector else { return true };
    let wanted = labels(selector.get("matchLabels").unwrap_or(&Value::Null));
    let expressions = items(selector, "matchExpressions").iter().all(|expression| {
        let value = own.get(text(expression, "key")).copied();
        let values = crate::objects::texts(expression, "values");
        match text(expression, "operator") {
            "In" => value.is_some_and(|value| values.contains(&value)),
            "NotIn" => value.is_none_or(|value| !values.contains(&value)),
            "Exists" => value.is_some(),
            "DoesNotExist" => value.is_none(),
            _ => false,
        }
    });
    expressions && selects(&wanted, own)
}
