//! The built-in templates: what a pod with a proxy has more than a pod without, as a fragment to be laid over it.
//!
//! Invariant: a fragment depends on [`Context`] alone, and what Istio's template of the same name gives is given here: field for
//! field, in its order (spec §16). How it is laid over the pod is `pod`'s business.

mod gateway;
mod grpc;
mod parts;
mod program;
mod sidecar;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::owner::Owner;
use crate::values::{Values, plain};

pub(crate) use self::parts::installed_resources;
pub use self::program::Program;

/// A template of the installation's own.
#[derive(Debug, Clone, PartialEq)]
pub enum Own {
    /// A fragment of a pod, the same for every pod.
    Fragment(Value),
    /// A Go template that gives one.
    Program(Program),
}

impl Own {
    /// The fragment for a pod.
    ///
    /// # Errors
    /// Why a program gives none.
    pub(crate) fn render(&self, context: &Context<'_>) -> Result<Value, String> {
        match self {
            Self::Fragment(fragment) => Ok(fragment.clone()),
            Self::Program(program) => program.render(context),
        }
    }
}

/// The templates that every installation has.
pub const BUILT_IN: &[&str] = &["sidecar", "gateway", "grpc-agent", "grpc-simple"];

/// What a template depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context<'a> {
    pub labels: &'a BTreeMap<String, String>,
    pub annotations: &'a BTreeMap<String, String>,
    /// The pod's `metadata` before injection.
    pub metadata: &'a Value,
    /// The pod's `spec` before injection.
    pub spec: &'a Value,
    pub owner: &'a Owner,
    /// What holds for the pod's proxy.
    pub proxy_config: &'a Value,
    pub mesh: &'a Value,
    pub values: &'a Values,
    pub revision: &'a str,
    pub native: bool,
    pub uid: i64,
    pub gid: i64,
}

/// The fragment of a built-in template; `None` for a name that is not one.
///
/// # Errors
/// An annotation that a template has to read and cannot.
pub(crate) fn render(name: &str, context: &Context<'_>) -> Option<Result<Value, String>> {
    match name {
        "sidecar" => Some(sidecar::render(context)),
        "gateway" => Some(Ok(gateway::render(context))),
        "grpc-agent" => Some(grpc::agent(context)),
        "grpc-simple" => Some(Ok(grpc::simple(context))),
        _ => None,
    }
}

impl Context<'_> {
    /// An annotation, or else a value of the installation.
    pub(crate) fn annotation(&self, name: &str, value: &str) -> String {
        self.annotations.get(name).cloned().unwrap_or_else(|| self.values.text(value))
    }

    /// How connections are brought to the proxy.
    pub(crate) fn interception(&self) -> String {
        let annotated = self.annotations.get("sidecar.istio.io/interceptionMode").cloned();
        annotated.unwrap_or_else(|| self.mesh_interception())
    }

    /// How they are brought to a proxy whose pod says nothing.
    pub(crate) fn mesh_interception(&self) -> String {
        match self.proxy_config.get("interceptionMode") {
            None | Some(Value::Null) => "REDIRECT".to_owned(),
            Some(Value::Number(number)) => match number.as_i64() {
                Some(1) => "TPROXY".to_owned(),
                Some(2) => "NONE".to_owned(),
                _ => "REDIRECT".to_owned(),
            },
            Some(mode) => plain(mode),
        }
    }

    /// `proxyMetadata`, by name.
    pub(crate) fn proxy_metadata(&self) -> BTreeMap<String, String> {
        let map = self.proxy_config.get("proxyMetadata").and_then(Value::as_object);
        map.into_iter().flatten().map(|(key, value)| (key.clone(), plain(value))).collect()
    }

    /// Names of the application's containers.
    pub(crate) fn containers(&self) -> Vec<&str> {
        self.all_containers()
            .iter()
            .filter_map(|c| c.get("name")?.as_str())
            .filter(|n| *n != crate::CONTAINER_NAME)
            .collect()
    }

    /// All containers of the pod as it was.
    pub(crate) fn all_containers(&self) -> &[Value] {
        self.spec.get("containers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }

    /// Trust domain of the mesh, or else the installation's.
    pub(crate) fn trust_domain(&self) -> String {
        let of_mesh = self.mesh.get("trustDomain").and_then(Value::as_str).unwrap_or_default();
        if of_mesh.is_empty() { self.values.text("global.trustDomain") } else { of_mesh.to_owned() }
    }

    /// The first of these labels that says something, or else the workload's name.
    pub(crate) fn canonical_name(&self) -> String {
        self.first_label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"])
            .unwrap_or(&self.owner.name)
            .to_owned()
    }

    /// The version that telemetry tells.
    pub(crate) fn canonical_revision(&self) -> String {
        let labels = ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
        self.first_label(&labels).unwrap_or("latest").to_owned()
    }

    fn first_label(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.labels.get(*name).map(String::as_str).filter(|value| !value.is_empty()))
    }
}

/// An object of those entries that are there.
pub(crate) fn fields<const N: usize>(entries: [(&str, Option<Value>); N]) -> Value {
    let there = entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    Value::Object(there.collect::<Map<_, _>>())
}
