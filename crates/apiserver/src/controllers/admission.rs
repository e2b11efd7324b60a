//! What a write is completed with and refused for, per kind.
//!
//! Invariant: admitting an object twice changes nothing the second time. Errors are Kubernetes' own in wording and field.
//! Types and unknown fields were checked before, by the schema; a value of a wrong type is left alone here.

mod kept;
mod limits;
mod pod;
mod policy;
mod rules;
mod service;
mod small;
mod webhook;
mod workload;

use carrick_api::validate;
use carrick_base::Severity;
use serde_json::{Map, Value, json};

use super::addresses::Addresses;
use crate::admission::{AdmitContext, Operation};
use crate::error::{ApiError, ApiResult, Cause};
use crate::rbac::Rbac;
use crate::store::{Store, name_of};

/// Kinds whose status is there from the beginning, be it empty.
const WITH_STATUS: [&str; 5] =
    ["cronjobs.batch", "jobs.batch", "resourcequotas", "certificatesigningrequests.certificates.k8s.io", "nodes"];

/// Admission for all kinds. One per server.
pub struct Admission {
    addresses: Addresses,
    rbac: Rbac,
}

impl Admission {
    /// Admission of writes to `store`.
    pub fn new(store: Store) -> Self {
        Self { addresses: Addresses::new(store.clone()), rbac: Rbac::new(store) }
    }

    /// Defaults and validates; returns warnings for the client.
    ///
    /// # Errors
    /// `Invalid` naming the fields, `Forbidden`, `BadRequest`.
    pub fn admit(
        &self,
        object: &mut Value,
        operation: Operation,
        context: &AdmitContext<'_>,
    ) -> ApiResult<Vec<String>> {
        if operation == Operation::Delete {
            small::check_delete(object, context)?;
            return Ok(Vec::new());
        }
        // A status is reported, not wished for: nothing is filled in and nothing is judged.
        if context.subresource == "status" {
            return Ok(Vec::new());
        }
        let empty_status = object.get("status").is_none() && WITH_STATUS.contains(&context.resource);
        if let (true, Some(map)) = (empty_status && operation == Operation::Create, object.as_object_mut()) {
            map.insert("status".into(), json!({}));
        }
        match context.resource {
            "services" => service::admit(&self.addresses, object, operation, context)?,
            "pods" => pod::admit(object, operation, context)?,
            "deployments.apps" | "replicasets.apps" | "statefulsets.apps" | "daemonsets.apps" | "jobs.batch"
            | "cronjobs.batch" => {
                workload::admit(object, operation, context)?;
            }
            "namespaces" => small::namespace(object),
            "secrets" => small::secret(object, context)?,
            "configmaps" => small::config_map(object, context)?,
            "certificatesigningrequests.certificates.k8s.io" | "certificaterequests.cert-manager.io" => {
                small::signing_request(object, context)?;
            }
            "roles.rbac.authorization.k8s.io" | "clusterroles.rbac.authorization.k8s.io" => {
                small::check_role(&self.rbac, object, context)?;
            }
            "rolebindings.rbac.authorization.k8s.io" | "clusterrolebindings.rbac.authorization.k8s.io" => {
                small::binding(&self.rbac, object, context)?;
            }
            crate::custom::RESOURCE => {
                crate::custom::check::complete(object);
                let mut causes = crate::custom::check::causes(object, context.old);
                if let Some(client) = object.pointer("/spec/conversion/webhook/clientConfig") {
                    webhook::client(client, "spec.conversion.webhookClientConfig", &mut causes);
                }
                check(object, context, causes)?;
            }
            "ingresses.networking.k8s.io"
            | "storageclasses.storage.k8s.io"
            | "persistentvolumeclaims"
            | "persistentvolumes"
            | "runtimeclasses.node.k8s.io"
            | "limitranges"
            | "resourcequotas"
            | kept::PRIORITIES => kept::admit(object, context)?,
            crate::webhooks::policies::POLICIES => policy::policy(object, context)?,
            crate::webhooks::policies::BINDINGS => policy::binding(object, context)?,
            crate::webhooks::MUTATING => webhook::admit(object, context, true)?,
            crate::webhooks::VALIDATING => webhook::admit(object, context, false)?,
            "poddisruptionbudgets.policy"
            | "horizontalpodautoscalers.autoscaling"
            | "endpoints"
            | "endpointslices.discovery.k8s.io"
            | "leases.coordination.k8s.io"
            | "events"
            | "networkpolicies.networking.k8s.io"
            | "ingressclasses.networking.k8s.io"
            | "nodes" => kept::judged(object, context)?,
            _ => {}
        }
        let mut warnings = istio_rules(object, context)?;
        if operation == Operation::Create {
            warnings.extend(pod::nothing_runs_it(object, context.resource));
        }
        Ok(warnings)
    }
}

/// Istio's own rules: errors refuse the object, the rest is told to the client.
fn istio_rules(object: &Value, context: &AdmitContext<'_>) -> ApiResult<Vec<String>> {
    let (mut causes, mut warnings) = (Vec::new(), Vec::new());
    for finding in validate::object(object) {
        let field = finding.field.as_str().to_owned();
        if finding.severity == Severity::Error {
            let value = object.pointer(&pointer_of(&field)).unwrap_or(&Value::Null);
            causes.push(Cause::invalid(field, value, finding.message));
        } else if field.is_empty() {
            warnings.push(finding.message);
        } else {
            warnings.push(format!("{field}: {}", finding.message));
        }
    }
    if causes.is_empty() { Ok(warnings) } else { Err(invalid(object, context, causes)) }
}

/// The JSON pointer of a field path such as `spec.subsets[0].name`.
fn pointer_of(path: &str) -> String {
    let mut pointer = String::new();
    for step in path.split(['.', '[']).map(|s| s.trim_end_matches(']')).filter(|s| !s.is_empty()) {
        pointer.push('/');
        pointer.push_str(&step.replace('~', "~0").replace('/', "~1"));
    }
    pointer
}

fn invalid(object: &Value, context: &AdmitContext<'_>, causes: Vec<Cause>) -> ApiError {
    let group = context.resource.split_once('.').map_or("", |(_, group)| group);
    ApiError::invalid(group, context.kind, name_of(object), causes)
}

fn check(object: &Value, context: &AdmitContext<'_>, causes: Vec<Cause>) -> ApiResult<()> {
    if causes.is_empty() {
        return Ok(());
    }
    // What is wrong with a new object's metadata is told with the rest.
    let mut all = Vec::new();
    if let (None, Some(kind)) = (context.old, context.store.catalog().get(context.resource)) {
        all = crate::store::metadata_causes(&kind, object);
    }
    all.extend(causes);
    Err(invalid(object, context, all))
}

/// The object in a field, created when it is absent; `None` when the field holds something else.
fn section<'a>(object: &'a mut Value, field: &str) -> Option<&'a mut Map<String, Value>> {
    let value = object.as_object_mut()?.entry(field).or_insert(Value::Null);
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut()
}

fn text<'a>(map: &'a Map<String, Value>, field: &str) -> &'a str {
    map.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// Sets a field that is absent, null or an empty text.
fn default(map: &mut Map<String, Value>, field: &str, value: impl Into<Value>) {
    let absent = match map.get(field) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(_) => false,
    };
    if absent {
        map.insert(field.to_owned(), value.into());
    }
}

fn is_dns_label(name: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = name.as_bytes();
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

/// Names of container ports: at most 15 characters, at least one letter, no doubled dashes.
fn is_port_name(name: &str) -> bool {
    name.len() <= 15 && is_dns_label(name) && !name.contains("--") && name.bytes().any(|b| b.is_ascii_lowercase())
}

const DNS_LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";
