//! What is wrong with one object, as data: Istio's admission rules, one file per kind.
//!
//! Invariant: an object is judged alone; nothing here sees another object. Types and unknown fields are the schema's
//! business, so a value that passed the schema is expected, and a wrong type is reported, not assumed away.

mod attachment;
mod authorization_policy;
mod cel;
mod cert_manager;
mod connection_pool;
mod destination_rule;
mod envoy_filter;
mod export;
mod expression;
mod extension;
mod gateway;
mod gateway_api;
mod header;
mod host;
mod legacy;
mod load_balancer;
mod mesh_config;
mod names;
mod node;
mod peer_authentication;
mod proxy_config;
mod request_authentication;
mod selector;
mod server_tls;
mod service_entry;
mod sidecar;
mod telemetry;
mod tls;
mod virtual_service;
mod workload_entry;
mod workload_group;

pub use names::{is_label_key, is_label_value};

pub(crate) use self::node::Node;

use carrick_base::{Diagnostic, FieldPath, ObjectRef, Severity};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::kinds::split_api_version;
use crate::object::from_value;
use crate::protocol::Protocol;
use crate::scalar::Duration;

/// Istio's code for an object that does not follow its schema or its rules.
pub const CODE: &str = "IST0106";

/// Where objects for the whole mesh live.
const ROOT_NAMESPACE: &str = "istio-system";

/// Judges an object by the rules of its kind. Errors mean the object is to be refused; warnings are shown to the user.
///
/// An object of a kind without rules yields nothing.
pub fn object(value: &Value) -> Vec<Diagnostic> {
    let mut findings = Findings::of(value);
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
    let (group, _) = split_api_version(text("apiVersion"));
    if group.ends_with(".istio.io") {
        dry_run(value, text("kind"), &mut findings);
    }
    let root = Node::root(value);
    let found = &mut findings;
    match (group, text("kind")) {
        ("networking.istio.io", "DestinationRule") => {
            typed(value, found, destination_rule::check);
            destination_rule::untyped(&root, found);
        }
        ("networking.istio.io", "EnvoyFilter") => envoy_filter::check(&root, found),
        ("networking.istio.io", "Gateway") => gateway::check(&root, found),
        ("networking.istio.io", "ProxyConfig") => proxy_config::check(&root, found),
        ("networking.istio.io", "ServiceEntry") => service_entry::check(&root, found),
        ("networking.istio.io", "Sidecar") => sidecar::check(&root, found),
        ("networking.istio.io", "VirtualService") => virtual_service::check(&root, found),
        ("networking.istio.io", "WorkloadEntry") => workload_entry::check(&root, found),
        ("networking.istio.io", "WorkloadGroup") => workload_group::check(&root, found),
        ("security.istio.io", "AuthorizationPolicy") => authorization_policy::check(&root, found),
        ("security.istio.io", "PeerAuthentication") => typed(value, found, peer_authentication::check),
        ("security.istio.io", "RequestAuthentication") => request_authentication::check(&root, found),
        ("telemetry.istio.io", "Telemetry") => telemetry::check(&root, found),
        ("extensions.istio.io", "WasmPlugin") => extension::wasm_plugin(&root, found),
        ("extensions.istio.io", "TrafficExtension") => extension::traffic_extension(&root, found),
        ("authentication.istio.io", "Policy") => legacy::check(&root, false, found),
        ("authentication.istio.io", "MeshPolicy") => legacy::check(&root, true, found),
        ("gateway.networking.k8s.io", kind) => gateway_api::check(kind, &root, found),
        (crate::cert_manager::GROUP, kind) => cert_manager::check(kind, &root, found),
        ("", "ConfigMap") => mesh_config::config_map(value, found),
        _ => {}
    }
    findings.list
}

/// Judges what an object of any kind says of itself: its name, its namespace, its labels. A Kubernetes API does so where
/// it stores objects; this is for manifests that meet none.
pub fn metadata(value: &Value) -> Vec<Diagnostic> {
    let mut findings = Findings::of(value);
    let metadata = Node::root(value).field("metadata");
    let name = metadata.field("name");
    let subdomain = |text: &str| text.len() <= 253 && text.split('.').all(names::is_dns_label);
    if name.text().is_empty() {
        if metadata.field("generateName").text().is_empty() {
            findings.error(&name.path, "Required value: name or generateName is required");
        }
    } else if !subdomain(name.text()) {
        findings.error(
            &name.path,
            format!("Invalid value: {:?}: lower case letters, digits, '-' and '.' make a name, with a letter or a digit at both ends", name.text()),
        );
    }
    let namespace = metadata.field("namespace");
    if !namespace.text().is_empty() && !names::is_dns_label(namespace.text()) {
        findings.error(&namespace.path, format!("Invalid value: {:?} is no name of a namespace", namespace.text()));
    }
    for (key, label) in metadata.field("labels").entries() {
        if !is_label_key(key) {
            findings.error(&label.path, format!("Invalid value: invalid label key {key:?}"));
        } else if !is_label_value(label.text()) {
            findings.error(&label.path, format!("Invalid value: invalid label value {:?}", label.text()));
        }
    }
    findings.list
}

/// Judges a mesh configuration that stands by itself, such as a file given at the start.
pub fn mesh_config(config: &Value) -> Vec<Diagnostic> {
    let mut findings = Findings { object: ObjectRef::new("MeshConfig", "", "mesh"), list: Vec::new() };
    mesh_config::check(config, &mut findings);
    findings.list
}

/// Whether some of the findings forbid the object.
pub fn has_errors(findings: &[Diagnostic]) -> bool {
    findings.iter().any(|finding| finding.severity == Severity::Error)
}

fn typed<T: DeserializeOwned>(value: &Value, findings: &mut Findings, check: fn(&T, &mut Findings)) {
    match from_value::<T>(value) {
        Ok(object) => check(&object, findings),
        Err(error) => findings.error(&FieldPath::root(), error.message),
    }
}

/// `istio.io/dry-run` only means something on an authorization policy that allows or denies.
fn dry_run(value: &Value, kind: &str, findings: &mut Findings) {
    const ANNOTATION: &str = "istio.io/dry-run";
    let Some(wish) = value.pointer("/metadata/annotations").and_then(|a| a.get(ANNOTATION)).and_then(Value::as_str)
    else {
        return;
    };
    let path = FieldPath::new("metadata.annotations").key(ANNOTATION);
    let action = value.pointer("/spec/action").and_then(Value::as_str).unwrap_or("ALLOW");
    if kind != "AuthorizationPolicy" || !matches!(action, "ALLOW" | "DENY") {
        findings.error(&path, format!("unsupported annotation {ANNOTATION}: only an AuthorizationPolicy with action ALLOW or DENY can be tried"));
    } else if !matches!(
        wish,
        "1" | "t" | "T" | "true" | "TRUE" | "True" | "0" | "f" | "F" | "false" | "FALSE" | "False"
    ) {
        findings.error(&path, format!("annotation {ANNOTATION} must be a boolean, not {wish:?}"));
    }
}

/// Collects what is found about one object.
pub(crate) struct Findings {
    object: ObjectRef,
    list: Vec<Diagnostic>,
}

impl Findings {
    fn of(value: &Value) -> Self {
        let meta =
            |field: &str| value.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or_default();
        let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
        Self { object: ObjectRef::new(kind, meta("namespace"), meta("name")), list: Vec::new() }
    }

    fn add(&mut self, severity: Severity, field: &FieldPath, message: String) {
        self.list.push(Diagnostic { code: CODE, severity, object: self.object.clone(), field: field.clone(), message });
    }

    /// The object is to be refused.
    pub(crate) fn error(&mut self, field: &FieldPath, message: impl Into<String>) {
        self.add(Severity::Error, field, message.into());
    }

    /// The object is accepted, and its author told.
    pub(crate) fn warning(&mut self, field: &FieldPath, message: impl Into<String>) {
        self.add(Severity::Warning, field, message.into());
    }

    /// A finding with a code of its own.
    pub(crate) fn told(&mut self, code: &'static str, severity: Severity, field: &FieldPath, message: String) {
        self.list.push(Diagnostic { code, severity, object: self.object.clone(), field: field.clone(), message });
    }

    /// How many errors were found so far.
    pub(crate) fn errors(&self) -> usize {
        self.list.iter().filter(|finding| finding.severity == Severity::Error).count()
    }

    /// The name of a port: a label of a host name.
    pub(crate) fn port_name(&mut self, field: &FieldPath, name: &str) {
        if !names::is_label(name) {
            self.error(field, format!("invalid port name: {name}"));
        }
    }

    /// A protocol's word; none means that it is detected.
    pub(crate) fn protocol(&mut self, word: &Node<'_>) {
        if !word.text().is_empty() && Protocol::parse(word.text()).is_none() {
            self.error(&word.path, format!("unsupported protocol: {}", word.text()));
        }
    }

    /// A port number as it was written.
    pub(crate) fn port_number(&mut self, node: &Node<'_>) {
        if !(1..=65535).contains(&node.number()) {
            self.error(&node.path, format!("port number {} must be in the range 1..65535", node.number()));
        }
    }

    /// A percentage between 0 and 100.
    pub(crate) fn percent(&mut self, field: &FieldPath, value: f64) {
        if !(0.0..=100.0).contains(&value) {
            self.error(field, format!("percentage {value} is not in range 0..100"));
        }
    }

    /// A duration of at least a millisecond, in whole milliseconds.
    pub(crate) fn duration(&mut self, field: &FieldPath, value: Option<Duration>) {
        let Some(value) = value else { return };
        let nanos = value.get().as_nanos();
        if nanos < 1_000_000 {
            self.error(field, "duration must be greater than 1ms");
        } else if nanos % 1_000_000 != 0 {
            self.error(field, "only durations to ms precision are supported");
        }
    }

    /// A count that may not be negative.
    pub(crate) fn non_negative(&mut self, field: &FieldPath, value: i32) {
        if value < 0 {
            self.error(field, format!("must be non-negative, not {value}"));
        }
    }

    /// A port number.
    pub(crate) fn port(&mut self, field: &FieldPath, value: u32) {
        if !(1..=65535).contains(&value) {
            self.error(field, format!("port number {value} must be in the range 1..65535"));
        }
    }
}
