//! Kinds that are kept and not acted on: what Kubernetes fills in, and the rules without which they make no sense.
//!
//! Invariant: what a controller elsewhere would report (a bound volume, a used quota) is not made up here.

use carrick_api::quantity::Quantity;
use serde_json::{Map, Value, json};

use super::{check, default, rules, section, text};
use crate::admission::AdmitContext;
use crate::error::{ApiError, ApiResult, Cause};
use crate::store::name_of;
use carrick_api::validate::is_label_key;

/// The resource of priority classes.
pub(super) const PRIORITIES: &str = "priorityclasses.scheduling.k8s.io";
const CLASSES: &str = "ingressclasses.networking.k8s.io";

/// Completes and checks; other kinds are left alone.
pub(super) fn admit(object: &mut Value, context: &AdmitContext<'_>) -> ApiResult<()> {
    let causes = match context.resource {
        "ingresses.networking.k8s.io" => ingress(object, context),
        PRIORITIES => return priority_class(object, context),
        "storageclasses.storage.k8s.io" => {
            if let Some(map) = object.as_object_mut() {
                default(map, "reclaimPolicy", "Delete");
                default(map, "volumeBindingMode", "Immediate");
            }
            let mut causes = rules::broken(context.resource, object);
            let fixed = ["provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"];
            causes.extend(immutable(object, context, &fixed));
            causes
        }
        "persistentvolumeclaims" => {
            let (missing, class) = (context.old.is_none(), default_class(context));
            if let Some(spec) = section(object, "spec") {
                default(spec, "volumeMode", "Filesystem");
                if let (true, Some(class), false) = (missing, class, spec.contains_key("storageClassName")) {
                    spec.insert("storageClassName".into(), json!(class));
                }
            }
            phase(object, "Pending");
            super::limits::claim(object, context)?;
            let mut causes = rules::broken("persistentvolumeclaims", object);
            if object.pointer("/spec/resources/requests/storage").is_none_or(Value::is_null) {
                causes.push(Cause::required("spec.resources[storage]", ""));
            }
            causes.extend(claim_changed(object, context.old));
            causes
        }
        "persistentvolumes" => {
            if let Some(spec) = section(object, "spec") {
                default(spec, "volumeMode", "Filesystem");
                default(spec, "persistentVolumeReclaimPolicy", "Retain");
                if let Some(path) = spec.get_mut("hostPath").and_then(Value::as_object_mut) {
                    default(path, "type", "");
                }
            }
            phase(object, "Pending");
            let mut causes = needed(object, &["/spec/accessModes"]);
            if object.pointer("/spec/capacity").is_none_or(Value::is_null) {
                causes.push(Cause::required("spec.capacity", ""));
            }
            if object.pointer("/spec/capacity/storage").is_none_or(Value::is_null) {
                let shown = object.pointer("/spec/capacity").cloned().unwrap_or(Value::Null);
                causes.push(Cause::unsupported("spec.capacity", &shown, &["storage"]));
            }
            if !object.pointer("/spec").and_then(Value::as_object).is_some_and(names_a_volume) {
                causes.push(Cause::required("spec", "must specify a volume type"));
            }
            causes
        }
        "runtimeclasses.node.k8s.io" => {
            let mut causes = needed(object, &["/handler"]);
            causes.extend(rules::broken(context.resource, object));
            causes
        }
        "limitranges" => {
            super::limits::complete(object);
            super::limits::wrong(object)
        }
        "resourcequotas" => {
            if let Some(map) = object.as_object_mut() {
                map.entry("status").or_insert_with(|| json!({}));
            }
            quota(object)
        }
        _ => Vec::new(),
    };
    check(object, context, causes)
}

/// Names that quotas know without a domain.
const COUNTABLE: [&str; 18] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
];
const SCOPES: [&str; 7] = [
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];

/// Limits have names that mean something, and are not below nothing.
fn quota(object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let hard = object.pointer("/spec/hard").and_then(Value::as_object).into_iter().flatten();
    let mut hard: Vec<_> = hard.collect();
    hard.sort_by_key(|(name, _)| name.as_str());
    for (name, value) in hard {
        let at = format!("spec.hard[{name}]");
        let known = COUNTABLE.contains(&name.as_str())
            || name == "services.loadbalancers"
            || name.starts_with("requests.hugepages-")
            || name.starts_with("hugepages-");
        if !is_label_key(name) && !name.starts_with("count/") {
            let why = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
            causes.push(Cause::invalid(at.clone(), &json!(name), why));
            causes.push(Cause::invalid(at.clone(), &json!(name), "must be a standard resource for quota"));
        } else if !known && !name.contains('/') {
            causes.push(Cause::invalid(
                at.clone(),
                &json!(name),
                "must be a standard resource type or fully qualified",
            ));
            causes.push(Cause::invalid(at.clone(), &json!(name), "must be a standard resource for quota"));
        }
        if Quantity::of(value).is_some_and(|q| q.nano() < 0) {
            causes.push(Cause::invalid(at, value, "must be greater than or equal to 0"));
        }
    }
    let scopes = object.pointer("/spec/scopes").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if scopes.iter().any(|s| !s.as_str().is_some_and(|s| SCOPES.contains(&s))) {
        causes.push(Cause::invalid("spec.scopes", &json!(scopes), "unsupported scope"));
    }
    causes
}

/// Whether a volume says where it is.
/// What of a claim may not change.
fn claim_changed(object: &Value, old: Option<&Value>) -> Option<Cause> {
    let fixed = |object: &Value| {
        let mut spec = object.get("spec").and_then(Value::as_object).cloned().unwrap_or_default();
        spec.shift_remove("resources");
        spec.shift_remove("volumeAttributesClassName");
        // Both are given by whoever binds it.
        spec.shift_remove("volumeName");
        spec.shift_remove("storageClassName");
        spec
    };
    let why =
        "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
    (fixed(old?) != fixed(object)).then(|| Cause::forbidden("spec", why))
}

fn names_a_volume(spec: &Map<String, Value>) -> bool {
    const OTHERS: [&str; 9] = [
        "accessModes",
        "capacity",
        "claimRef",
        "mountOptions",
        "nodeAffinity",
        "persistentVolumeReclaimPolicy",
        "storageClassName",
        "volumeAttributesClassName",
        "volumeMode",
    ];
    spec.iter().any(|(field, value)| value.is_object() && !OTHERS.contains(&field.as_str()))
}

/// Fields that Kubernetes' types write though there is nothing in them.
fn nothing_yet(object: &mut Value, context: &AdmitContext<'_>) {
    let nothing = match context.resource {
        "horizontalpodautoscalers.autoscaling" => json!({"status": {"currentMetrics": null, "desiredReplicas": 0}}),
        "events" => json!({
            "eventTime": null, "firstTimestamp": null, "lastTimestamp": null, "source": {}, "reportingComponent": "",
            "reportingInstance": "",
        }),
        "nodes" => json!({"status": {
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
            "nodeInfo": {
                "machineID": "", "systemUUID": "", "bootID": "", "kernelVersion": "", "osImage": "",
                "containerRuntimeVersion": "", "kubeletVersion": "", "kubeProxyVersion": "", "operatingSystem": "",
                "architecture": "",
            },
        }}),
        _ => return,
    };
    fill(object, &nothing);
}

/// Puts what `object` lacks of `from` into it.
fn fill(object: &mut Value, from: &Value) {
    let (Some(map), Some(from)) = (object.as_object_mut(), from.as_object()) else { return };
    for (key, value) in from {
        match map.get_mut(key) {
            Some(own) if own.is_object() && value.is_object() => fill(own, value),
            Some(_) => {}
            None => _ = map.insert(key.clone(), value.clone()),
        }
    }
}

/// Kinds that are only judged.
pub(super) fn judged(object: &mut Value, context: &AdmitContext<'_>) -> ApiResult<()> {
    nothing_yet(object, context);
    if context.resource == "horizontalpodautoscalers.autoscaling"
        && let Some(spec) = section(object, "spec")
    {
        default(spec, "minReplicas", 1);
        if spec.get("metrics").and_then(Value::as_array).is_none_or(Vec::is_empty) {
            let target = json!({"type": "Utilization", "averageUtilization": 80});
            spec.insert("metrics".into(), json!([{"type": "Resource", "resource": {"name": "cpu", "target": target}}]));
        }
    }
    let lists: &[&str] = match context.resource {
        "endpoints" => &["/subsets"],
        "endpointslices.discovery.k8s.io" => &[""],
        _ => &[],
    };
    for place in lists {
        let holders = match object.pointer_mut(place) {
            Some(Value::Array(list)) => list.iter_mut().collect::<Vec<_>>(),
            Some(one) => vec![one],
            None => Vec::new(),
        };
        for holder in holders {
            for port in holder.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(port) = port.as_object_mut() {
                    default(port, "protocol", "TCP");
                }
            }
        }
    }
    if context.resource == "nodes"
        && let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut)
        && let Some(cidr) = spec.get("podCIDR").filter(|c| c.as_str().is_some_and(|c| !c.is_empty())).cloned()
    {
        spec.entry("podCIDRs").or_insert_with(|| json!([cidr]));
    }
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64);
    let given = |pointer: &str| object.pointer(pointer).is_some_and(|v| !v.is_null());
    let mut causes = Vec::new();
    match context.resource {
        "poddisruptionbudgets.policy" => {
            if given("/spec/minAvailable") && given("/spec/maxUnavailable") {
                let spec = |field: &str| object.pointer(&format!("/spec/{field}")).cloned().unwrap_or(Value::Null);
                let shown = json!({
                    "MinAvailable": spec("minAvailable"), "Selector": spec("selector"),
                    "MaxUnavailable": spec("maxUnavailable"),
                    "UnhealthyPodEvictionPolicy": spec("unhealthyPodEvictionPolicy"),
                });
                causes.push(Cause::invalid("spec", &shown, "minAvailable and maxUnavailable cannot be both set"));
            }
            causes.extend(rules::broken(context.resource, object));
            causes.extend(
                object.pointer("/spec/selector").map(|s| rules::selector(s, "spec.selector")).unwrap_or_default(),
            );
        }
        "horizontalpodautoscalers.autoscaling" => {
            let (least, most) = (number("/spec/minReplicas"), number("/spec/maxReplicas").unwrap_or(0));
            let broken = rules::broken(context.resource, object);
            causes.extend(broken.iter().filter(|c| c.field == "spec.minReplicas").cloned());
            if most < 1 {
                causes.push(Cause::required("spec.maxReplicas", "must be set and greater than 0"));
            } else if least.is_some_and(|least| most < least) {
                let why = "must be greater than or equal to `minReplicas`";
                causes.push(Cause::invalid("spec.maxReplicas", &json!(most), why));
            }
            causes.extend(broken.into_iter().filter(|c| c.field != "spec.minReplicas"));
            if text("/spec/scaleTargetRef/apiVersion").is_empty() {
                let why = "apiVersion must specify API group";
                causes.push(Cause::invalid("spec.scaleTargetRef.apiVersion", &json!(""), why));
            }
        }
        "events" => {
            let of = text("/involvedObject/namespace");
            if !of.is_empty() && of != context.namespace {
                let why = "does not match event.namespace";
                causes.push(Cause::invalid("involvedObject.namespace", &json!(of), why));
            }
        }
        CLASSES => {
            let controller = text("/spec/controller");
            let good =
                controller.split_once('/').is_some_and(|(domain, path)| domain.contains('.') && !path.is_empty());
            if !controller.is_empty() && !good {
                let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
                causes.push(Cause::invalid("spec.controller", &json!(controller), why));
            }
        }
        "endpoints" => {
            causes.extend(rules::broken(context.resource, object));
            for (index, subset) in object.get("subsets").and_then(Value::as_array).into_iter().flatten().enumerate() {
                let some = |field: &str| subset.get(field).and_then(Value::as_array).is_some_and(|l| !l.is_empty());
                if !some("addresses") && !some("notReadyAddresses") {
                    let why = "must specify `addresses` or `notReadyAddresses`";
                    causes.push(Cause::required(format!("subsets[{index}]"), why));
                }
            }
        }
        "endpointslices.discovery.k8s.io" => {
            causes.extend(rules::broken(context.resource, object));
            if text("/addressType") != "FQDN" {
                causes.extend(rules::held(object, "endpoints[].addresses[]", rules::Rule::Address));
            }
        }
        _ => causes.extend(rules::broken(context.resource, object)),
    }
    check(object, context, causes)
}

fn phase(object: &mut Value, begins: &str) {
    if let Some(status) = section(object, "status") {
        default(status, "phase", begins);
    }
}

fn needed(object: &Value, pointers: &[&str]) -> Vec<Cause> {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    let missing = pointers.iter().filter(|p| object.pointer(p).is_none_or(empty));
    missing.map(|p| Cause::required(p.trim_start_matches('/').replace('/', "."), "")).collect()
}

fn immutable(object: &Value, context: &AdmitContext<'_>, fields: &[&str]) -> Vec<Cause> {
    let Some(old) = context.old else { return Vec::new() };
    let changed = fields.iter().filter(|field| old.get(**field) != object.get(**field));
    changed.map(|field| Cause::forbidden(*field, "updates to this field are forbidden.")).collect()
}

/// The one class that is marked as what others mean who name none.
fn marked(context: &AdmitContext<'_>, resource: &str, annotation: &str) -> Option<String> {
    let all = context.store.list(resource, None).items;
    let mut found = all
        .iter()
        .filter(|c| c.pointer("/metadata/annotations").and_then(|a| a.get(annotation)?.as_str()) == Some("true"));
    found.next().map(|class| name_of(class).to_owned())
}

fn default_class(context: &AdmitContext<'_>) -> Option<String> {
    marked(context, "storageclasses.storage.k8s.io", "storageclass.kubernetes.io/is-default-class")
}

fn ingress(object: &mut Value, context: &AdmitContext<'_>) -> Vec<Cause> {
    let annotated = object.pointer("/metadata/annotations/kubernetes.io~1ingress.class").is_some();
    if context.old.is_none() && !annotated && object.pointer("/spec/ingressClassName").is_none() {
        let class = marked(context, CLASSES, "ingressclass.kubernetes.io/is-default-class");
        if let (Some(class), Some(spec)) = (class, section(object, "spec")) {
            spec.insert("ingressClassName".into(), json!(class));
        }
    }
    if let Some(status) = section(object, "status") {
        status.entry("loadBalancer").or_insert_with(|| json!({}));
    }
    let mut causes = Vec::new();
    let rules = object.pointer("/spec/rules").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if rules.is_empty() && object.pointer("/spec/defaultBackend").is_none_or(Value::is_null) {
        let why = "either `defaultBackend` or `rules` must be specified";
        causes.push(Cause::invalid("spec", &Value::Null, why));
    }
    for (index, rule) in rules.iter().enumerate() {
        let paths = rule.pointer("/http/paths").and_then(Value::as_array);
        for (number, path) in paths.into_iter().flatten().enumerate() {
            let at = format!("spec.rules[{index}].http.paths[{number}]");
            let kind = path.get("pathType").and_then(Value::as_str).unwrap_or_default();
            let given = path.get("path").and_then(Value::as_str).unwrap_or_default();
            match kind {
                "" => causes.push(Cause::required(format!("{at}.pathType"), "pathType must be specified")),
                "Exact" | "Prefix" if !given.starts_with('/') => {
                    causes.push(Cause::invalid(format!("{at}.path"), &json!(given), "must be an absolute path"));
                }
                "Exact" | "Prefix" | "ImplementationSpecific" => {}
                other => {
                    let message = format!(
                        "Unsupported value: {other:?}: supported values: \"Exact\", \"ImplementationSpecific\", \"Prefix\""
                    );
                    let field = format!("{at}.pathType");
                    causes.push(Cause { reason: "FieldValueNotSupported", message, field });
                }
            }
            let backend = path.get("backend").and_then(Value::as_object).cloned().unwrap_or_default();
            backend_causes(&backend, &format!("{at}.backend"), &mut causes);
        }
    }
    causes
}

fn backend_causes(backend: &Map<String, Value>, at: &str, causes: &mut Vec<Cause>) {
    let Some(service) = backend.get("service").and_then(Value::as_object) else {
        if backend.get("resource").is_none_or(Value::is_null) {
            let why = "at least one of `service` or `resource` must be specified";
            causes.push(Cause::required(at, why));
        }
        return;
    };
    if text(service, "name").is_empty() {
        causes.push(Cause::required(format!("{at}.service.name"), ""));
    }
    let port = |field: &str| service.get("port").and_then(|p| p.get(field)).filter(|v| !v.is_null());
    if port("name").is_none() && port("number").is_none() {
        let why = "port name or number is required";
        causes.push(Cause::required(at, why));
    }
}

fn priority_class(object: &mut Value, context: &AdmitContext<'_>) -> ApiResult<()> {
    let name = name_of(object).to_owned();
    if let Some(map) = object.as_object_mut() {
        default(map, "preemptionPolicy", "PreemptLowerPriority");
    }
    let value = object.get("value").and_then(Value::as_i64).unwrap_or(0);
    let mut causes = Vec::new();
    if !name.starts_with("system-") && value > 1_000_000_000 {
        let why = "maximum allowed value of a user defined priority is 1000000000";
        causes.push(Cause::forbidden("value", why));
    }
    if name.starts_with("system-") && !matches!(name.as_str(), "system-node-critical" | "system-cluster-critical") {
        let why = format!(
            "priority class names with 'system-' prefix are reserved for system use only. error: {name} is not a known system priority class"
        );
        causes.push(Cause::forbidden("metadata.name", why));
    }
    causes.extend(rules::broken(PRIORITIES, object));
    if let Some(old) = context.old {
        for field in ["value", "preemptionPolicy"] {
            if old.get(field) != object.get(field) {
                causes.push(Cause::invalid(field, object.get(field).unwrap_or(&Value::Null), "field is immutable"));
            }
        }
    }
    check(object, context, causes)
}

/// The number and the policy of a new pod's priority class, and how long it stays on a node that is in trouble.
pub(super) fn pod(object: &mut Value, context: &AdmitContext<'_>) -> ApiResult<()> {
    let wanted = object.pointer("/spec/priorityClassName").and_then(Value::as_str).unwrap_or_default().to_owned();
    let class = if wanted.is_empty() {
        let all = context.store.list(PRIORITIES, None).items;
        all.into_iter().find(|c| c.get("globalDefault") == Some(&Value::Bool(true)))
    } else {
        let missing = || {
            let why = format!("no PriorityClass with name {wanted} was found");
            ApiError::forbidden("pods", name_of(object), why)
        };
        Some(context.store.get(PRIORITIES, "", &wanted).ok_or_else(missing)?)
    };
    let runtime = object.pointer("/spec/runtimeClassName").and_then(Value::as_str).unwrap_or_default();
    if !runtime.is_empty() && !context.store.exists("runtimeclasses.node.k8s.io", "", runtime) {
        let why = format!("pod rejected: RuntimeClass {runtime:?} not found");
        return Err(ApiError::forbidden("pods", name_of(object), why));
    }
    let Some(spec) = section(object, "spec") else { return Ok(()) };
    let own = |field: &str| class.as_ref().and_then(|c| c.get(field)).cloned();
    if let Some(class) = class.as_ref().filter(|_| wanted.is_empty()) {
        spec.insert("priorityClassName".into(), json!(name_of(class)));
    }
    default(spec, "priority", own("value").unwrap_or_else(|| json!(0)));
    default(spec, "preemptionPolicy", own("preemptionPolicy").unwrap_or_else(|| json!("PreemptLowerPriority")));
    let tolerations = spec.entry("tolerations").or_insert_with(|| json!([]));
    if tolerations.is_null() {
        *tolerations = json!([]);
    }
    let Some(tolerations) = tolerations.as_array_mut() else { return Ok(()) };
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let is = |t: &Value, field: &str, all: &[&str]| {
            all.contains(&t.get(field).and_then(Value::as_str).unwrap_or_default())
        };
        if !tolerations.iter().any(|t| is(t, "key", &["", key]) && is(t, "effect", &["", "NoExecute"])) {
            tolerations
                .push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}));
        }
    }
    Ok(())
}
