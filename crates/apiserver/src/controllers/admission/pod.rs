//! Pods: defaults, the service account, and the rules without which nothing that reads pods could work.
//!
//! Invariant: a stored pod names its service account and has a phase.

mod parts;

use std::collections::BTreeSet;

use carrick_api::quantity::Quantity;
use serde_json::{Map, Value, json};

use super::{DNS_LABEL, PORT_RANGE, check, default, is_dns_label, is_port_name, section, text};
use crate::admission::{AdmitContext, Operation};
use crate::error::{ApiError, ApiResult, Cause};
use crate::store::{name_of, namespace_of};

pub(super) fn admit(object: &mut Value, operation: Operation, context: &AdmitContext<'_>) -> ApiResult<()> {
    fill_in(object);
    if operation == Operation::Create {
        let account = check_account(object, context)?;
        mount_token(object, account.as_ref());
        super::kept::pod(object, context)?;
        super::limits::pod(object, context)?;
        let class = quality(object);
        if let Some(status) = section(object, "status") {
            status.insert("qosClass".into(), class.into());
        }
    }
    let mut causes = problems(object);
    if let Some(old) = context.old {
        let mut old = old.clone();
        fill_in(&mut old);
        causes.extend(changed(&old, object));
    }
    check(object, context, causes)
}

/// What of a pod's spec may not change. Whoever places it may also add the sidecar, which webhooks do elsewhere.
fn changed(old: &Value, new: &Value) -> Option<Cause> {
    let spec = |object: &Value| {
        let mut spec = object.get("spec").cloned().unwrap_or(Value::Null);
        for field in ["initContainers", "containers"] {
            for container in spec.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
                container.as_object_mut().map(|c| c.shift_remove("image"));
            }
        }
        if let Some(map) = spec.as_object_mut() {
            for field in ["activeDeadlineSeconds", "terminationGracePeriodSeconds", "tolerations", "schedulingGates"] {
                map.shift_remove(field);
            }
        }
        spec
    };
    let placed =
        |object: &Value| object.pointer("/spec/nodeName").and_then(Value::as_str).is_some_and(|name| !name.is_empty());
    if (!placed(old) && placed(new)) || spec(old) == spec(new) {
        return None;
    }
    let why = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
    Some(Cause::forbidden("spec", why))
}

/// Nothing here starts containers: whoever asks for some is told so, and what to do instead.
pub(super) fn nothing_runs_it(object: &mut Value, resource: &str) -> Option<String> {
    let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    let name = name_of(object);
    let namespace = match namespace_of(object) {
        "" | "default" => String::new(),
        namespace => format!("-n {namespace} "),
    };
    let command = |of: &str| format!("`carrick run {namespace}--as {of}/{name} -- COMMAND`");
    match resource {
        "pods" => {
            let placed = object.pointer("/spec/nodeName").and_then(Value::as_str).is_some_and(|n| !n.is_empty());
            if placed {
                return None;
            }
            let how = format!(
                "there is no container runtime here, so nothing runs this pod: run its process with {}",
                command("pod")
            );
            let condition = json!({
                "type": "PodScheduled", "status": "False", "reason": "NoContainerRuntime", "message": how,
                "lastProbeTime": null, "lastTransitionTime": null,
            });
            let status = section(object, "status")?;
            let list = status.entry("conditions").or_insert_with(|| json!([]));
            if let Some(list) = list.as_array_mut().filter(|l| l.is_empty()) {
                list.push(condition);
            }
            Some(how)
        }
        "deployments.apps" | "statefulsets.apps" => Some(format!(
            "there is no container runtime here, so no pods are made of this {kind}: run each process with {}",
            command(&kind.to_lowercase())
        )),
        "daemonsets.apps" | "replicasets.apps" | "replicationcontrollers" | "jobs.batch" | "cronjobs.batch" => {
            Some(format!(
                "there is no container runtime here and nothing that schedules, so no pods are made of this {kind}"
            ))
        }
        _ => None,
    }
}

/// Completes a pod template.
pub(super) fn fill_in_spec(object: &mut Value) {
    let Some(spec) = section(object, "spec") else { return };
    default(spec, "restartPolicy", "Always");
    default(spec, "dnsPolicy", "ClusterFirst");
    default(spec, "schedulerName", "default-scheduler");
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "securityContext", json!({}));
    // The name that the field had before.
    let account = text(spec, "serviceAccountName").to_owned();
    if !account.is_empty() {
        spec.insert("serviceAccount".into(), account.into());
    }
    parts::fill_in_volumes(spec);
    for field in ["initContainers", "containers"] {
        if let Some(Value::Array(containers)) = spec.get_mut(field) {
            containers.iter_mut().filter_map(Value::as_object_mut).for_each(fill_in_container);
        }
    }
}

fn fill_in(object: &mut Value) {
    fill_in_spec(object);
    let conditions = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten().filter_map(Value::as_object_mut) {
        for time in ["lastProbeTime", "lastTransitionTime"] {
            condition.entry(time).or_insert(Value::Null);
        }
    }
    let Some(spec) = section(object, "spec") else { return };
    default(spec, "enableServiceLinks", true);
    let account = match (text(spec, "serviceAccountName"), text(spec, "serviceAccount")) {
        ("", "") => "default",
        ("", old) => old,
        (name, _) => name,
    }
    .to_owned();
    spec.insert("serviceAccountName".into(), account.clone().into());
    spec.insert("serviceAccount".into(), account.into());
    for field in ["initContainers", "containers"] {
        for container in spec.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten() {
            let limits = container.pointer("/resources/limits").and_then(Value::as_object).cloned().unwrap_or_default();
            if limits.is_empty() {
                continue;
            }
            let requests = section(container, "resources").map(|r| r.entry("requests").or_insert_with(|| json!({})));
            if let Some(requests) = requests.and_then(Value::as_object_mut) {
                for (name, amount) in limits {
                    requests.entry(name).or_insert(amount);
                }
            }
        }
    }
    if let Some(status) = section(object, "status") {
        default(status, "phase", "Pending");
    }
}

fn fill_in_container(container: &mut Map<String, Value>) {
    default(container, "terminationMessagePath", "/dev/termination-log");
    default(container, "terminationMessagePolicy", "File");
    default(container, "resources", json!({}));
    let image = text(container, "image");
    let tagged = image.rsplit('/').next().unwrap_or(image).split_once(':');
    let latest = !image.contains('@') && tagged.is_none_or(|(_, tag)| tag == "latest");
    default(container, "imagePullPolicy", if latest { "Always" } else { "IfNotPresent" });
    parts::fill_in(container);
    if let Some(Value::Array(ports)) = container.get_mut("ports") {
        ports.iter_mut().filter_map(Value::as_object_mut).for_each(|port| default(port, "protocol", "TCP"));
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(Value::Object(probe)) = container.get_mut(probe) {
            for (field, value) in
                [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
            {
                default(probe, field, value);
            }
            if let Some(Value::Object(get)) = probe.get_mut("httpGet") {
                default(get, "scheme", "HTTP");
                default(get, "path", "/");
            }
        }
    }
    for variable in container.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(Value::Object(field)) = variable.pointer_mut("/valueFrom/fieldRef") {
            default(field, "apiVersion", "v1");
        }
    }
}

/// The account must exist. `default` may be on its way, since every namespace gets one.
fn check_account(object: &Value, context: &AdmitContext<'_>) -> ApiResult<Option<Value>> {
    let account = object.pointer("/spec/serviceAccountName").and_then(Value::as_str).unwrap_or("default");
    let namespace = match namespace_of(object) {
        "" => context.namespace,
        namespace => namespace,
    };
    let found = context.store.get("serviceaccounts", namespace, account);
    if found.is_some() || account == "default" {
        return Ok(found);
    }
    let why = format!("error looking up service account {namespace}/{account}: serviceaccount {account:?} not found");
    Err(ApiError::forbidden("pods", name_of(object), why))
}

/// Gives a pod what its account says: secrets to pull images with, and the account's token in every container, unless the pod or the
/// account wants none.
fn mount_token(object: &mut Value, account: Option<&Value>) {
    const PLACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
    const PREFIX: &str = "kube-api-access-";
    let Some(spec) = section(object, "spec") else { return };
    let pulls = account.and_then(|a| a.get("imagePullSecrets")).and_then(Value::as_array).filter(|l| !l.is_empty());
    if let (Some(pulls), true) = (pulls, spec.get("imagePullSecrets").is_none_or(Value::is_null)) {
        spec.insert("imagePullSecrets".into(), json!(pulls));
    }
    let wish = |map: Option<&Value>| map.and_then(Value::as_bool);
    let wanted = wish(spec.get("automountServiceAccountToken"))
        .or_else(|| wish(account.and_then(|a| a.get("automountServiceAccountToken"))));
    if wanted == Some(false) {
        return;
    }
    let volumes = spec.get("volumes").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let known = volumes.iter().filter_map(|v| v.get("name")?.as_str()).find(|name| name.starts_with(PREFIX));
    let (name, missing) = match known {
        Some(name) => (name.to_owned(), false),
        None => (crate::store::generated(PREFIX), true),
    };
    let mut used = false;
    for field in ["initContainers", "containers"] {
        let containers = spec.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten();
        for container in containers.filter_map(Value::as_object_mut) {
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            if mounts.is_null() {
                *mounts = json!([]);
            }
            let Some(mounts) = mounts.as_array_mut() else { continue };
            if !mounts.iter().any(|m| m.get("mountPath").and_then(Value::as_str) == Some(PLACE)) {
                mounts.push(json!({"name": name, "readOnly": true, "mountPath": PLACE}));
                used = true;
            }
        }
    }
    if !(used && missing) {
        return;
    }
    let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
    if volumes.is_null() {
        *volumes = json!([]);
    }
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(json!({"name": name, "projected": {"sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
            ]}},
        ], "defaultMode": 420}}));
    }
}

/// How surely a pod gets what it asks for.
fn quality(pod: &Value) -> &'static str {
    let both = ["cpu", "memory"];
    let (mut any, mut all) = (false, true);
    for field in ["/spec/initContainers", "/spec/containers"] {
        for container in pod.pointer(field).and_then(Value::as_array).into_iter().flatten() {
            let amount = |part: &str, name: &str| {
                container.pointer(&format!("/resources/{part}/{name}")).and_then(Quantity::of).filter(|q| q.nano() > 0)
            };
            any |= both.iter().any(|name| amount("requests", name).is_some() || amount("limits", name).is_some());
            all &= both.iter().all(|name| {
                let limit = amount("limits", name);
                limit.is_some() && amount("requests", name).is_none_or(|asked| Some(asked) == limit)
            });
        }
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// What is wrong with a pod, or with a template of some.
pub(super) fn problems(object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let list = |field: &str| object.pointer(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let containers = list("/spec/containers");
    if containers.is_empty() {
        causes.push(Cause::required("spec.containers", ""));
    }
    let mut names = BTreeSet::new();
    for (field, containers) in [("spec.initContainers", list("/spec/initContainers")), ("spec.containers", containers)]
    {
        for (index, container) in containers.iter().enumerate() {
            check_container(&format!("{field}[{index}]"), container, &mut names, &mut causes);
        }
    }
    let policy = object.pointer("/spec/restartPolicy").and_then(Value::as_str).unwrap_or_default();
    if !matches!(policy, "Always" | "OnFailure" | "Never") {
        causes.push(Cause::unsupported("spec.restartPolicy", &json!(policy), &["Always", "OnFailure", "Never"]));
    }
    causes.extend(parts::problems(object));
    causes
}

fn check_container<'a>(at: &str, container: &'a Value, names: &mut BTreeSet<&'a str>, causes: &mut Vec<Cause>) {
    let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
    if name.is_empty() {
        causes.push(Cause::required(format!("{at}.name"), ""));
    } else if !is_dns_label(name) {
        causes.push(Cause::invalid(format!("{at}.name"), &json!(name), DNS_LABEL));
    } else if !names.insert(name) {
        causes.push(Cause {
            reason: "FieldValueDuplicate",
            message: format!("Duplicate value: {name:?}"),
            field: format!("{at}.name"),
        });
    }
    if container.get("image").and_then(Value::as_str).is_none_or(str::is_empty) {
        causes.push(Cause::required(format!("{at}.image"), ""));
    }
    parts::container(container, at, causes);
    for (index, port) in container.get("ports").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let number = port.get("containerPort").and_then(Value::as_u64).unwrap_or(0);
        if number == 0 {
            causes.push(Cause::required(format!("{at}.ports[{index}].containerPort"), ""));
        } else if !(1..=65535).contains(&number) {
            let value = port.get("containerPort").cloned().unwrap_or(Value::Null);
            causes.push(Cause::invalid(format!("{at}.ports[{index}].containerPort"), &value, PORT_RANGE));
        }
        if let Some(name) = port.get("name").and_then(Value::as_str).filter(|n| !n.is_empty() && !is_port_name(n)) {
            let why = match name {
                _ if name.len() > 15 => "must be no more than 15 characters",
                _ if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') => {
                    "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)"
                }
                _ if !name.bytes().any(|b| b.is_ascii_lowercase()) => "must contain at least one letter (a-z)",
                _ if name.contains("--") => "must not contain consecutive hyphens",
                _ => "must not begin or end with a hyphen",
            };
            causes.push(Cause::invalid(format!("{at}.ports[{index}].name"), &json!(name), why));
        }
    }
}
