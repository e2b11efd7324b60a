//! Kinds that are kept and not acted on: what Kubernetes fills in, and the rules without which they make no sense.
//!
//! Invariant: what a controller elsewhere would report (a bound volume, a used quota) is not made up here.

use serde_json::{Map, Value, json};

use super::{check, default, section, text};
use crate::admission::AdmitContext;
use crate::error::{ApiError, ApiResult, Cause};
use crate::store::name_of;

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
            immutable(object, context, &["provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"])
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
            needed(object, &["/spec/accessModes", "/spec/resources/requests/storage"])
        }
        "persistentvolumes" => {
            if let Some(spec) = section(object, "spec") {
                default(spec, "volumeMode", "Filesystem");
                default(spec, "persistentVolumeReclaimPolicy", "Retain");
            }
            phase(object, "Pending");
            needed(object, &["/spec/accessModes", "/spec/capacity/storage"])
        }
        "runtimeclasses.node.k8s.io" => needed(object, &["/handler"]),
        "limitranges" => needed(object, &["/spec/limits"]),
        _ => Vec::new(),
    };
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
        causes.push(Cause::invalid("spec", &json!([]), why));
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
    if !name.starts_with("system-") && value > 1_000_000_000 {
        let why = "maximum allowed value of a user defined priority is 1000000000";
        return Err(ApiError::forbidden(PRIORITIES, &name, why));
    }
    let mut causes = Vec::new();
    if name.starts_with("system-") && !matches!(name.as_str(), "system-node-critical" | "system-cluster-critical") {
        let why = "priority class names with 'system-' prefix are reserved for system use only. error: is not a known system priority class";
        causes.push(Cause::forbidden("metadata.name", why));
    }
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
