//! EnvoyFilters over rendered resources (semantics §24): the last word on what a proxy is given.
//!
//! Invariant: an object is applied to a resource whole or not at all; what fails leaves the resource as it was before that object, and is
//! told as a finding. The native engine runs none: they speak of Envoy's insides, and one that is half understood would be worse than one
//! that is refused. This crate decides nothing else about the mesh.

mod chains;
mod clusters;
mod list;
mod listeners;
mod memo;
mod routes;
mod select;
mod value;

use std::{collections::BTreeMap, sync::Arc};

use carrick_api::{EnvoyFilter, istio::envoy_filter::ApplyTo};
use carrick_base::ObjectRef;
use carrick_render::{Rendered, Resource, Resources};
use envoy_types::pb::google::protobuf::Any;

pub use memo::Memo;

/// What is told of an object whose proxy is native.
const NATIVE: &str = "the native engine runs no EnvoyFilters; run this workload's proxy with engine envoy";

/// Which resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Cluster,
    Listener,
    Route,
}

/// A proxy as filters match it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// A gateway, not a sidecar.
    pub gateway: bool,
    /// The native engine, not Envoy.
    pub native: bool,
    /// The proxy's version.
    pub version: Arc<str>,
    /// String values of the node's metadata.
    pub metadata: BTreeMap<Arc<str>, Arc<str>>,
}

/// Why an object is not in force, wholly or at some resource.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Finding {
    /// The object.
    pub object: ObjectRef,
    /// What is wrong, with the resource it is wrong at.
    pub reason: String,
}

/// Applies filters, in the order given, to everything a proxy gets.
pub fn apply(
    rendered: &Rendered,
    filters: &[Arc<EnvoyFilter>],
    target: &Target,
    memo: &mut Memo,
) -> (Rendered, Vec<Finding>) {
    if target.native {
        let refused = |f: &Arc<EnvoyFilter>| Finding { object: reference(f), reason: NATIVE.to_owned() };
        return (rendered.clone(), filters.iter().map(refused).collect());
    }
    let mut findings = Vec::new();
    for filter in filters {
        for patch in &filter.spec.config_patches {
            let what = match patch.apply_to {
                ApplyTo::Bootstrap => "BOOTSTRAP: what a proxy starts with is not changed by filters",
                ApplyTo::ExtensionConfig => {
                    "EXTENSION_CONFIG: put the filter's configuration where the filter is inserted"
                }
                ApplyTo::Invalid => "applyTo is missing",
                _ => continue,
            };
            findings.push(Finding { object: reference(filter), reason: what.to_owned() });
        }
    }
    let out = Rendered {
        clusters: kind(&rendered.clusters, filters, target, memo, &mut findings, Type::Cluster),
        listeners: kind(&rendered.listeners, filters, target, memo, &mut findings, Type::Listener),
        routes: kind(&rendered.routes, filters, target, memo, &mut findings, Type::Route),
        ..rendered.clone()
    };
    findings.sort();
    findings.dedup();
    (out, findings)
}

/// One kind of resource: those there are, then those that are added.
fn kind(
    all: &Arc<Resources>,
    filters: &[Arc<EnvoyFilter>],
    target: &Target,
    memo: &mut Memo,
    findings: &mut Vec<Finding>,
    of: Type,
) -> Arc<Resources> {
    let mut out = Resources::new();
    let mut touched = false;
    for (name, resource) in all.iter() {
        let patched = memo.get(resource, filters, target, || one(resource, filters, target, of));
        findings.extend(patched.findings.iter().cloned());
        touched |= patched.resource.as_ref().is_none_or(|r| !Arc::ptr_eq(r, resource));
        if let Some(resource) = patched.resource {
            out.insert(name.clone(), resource);
        }
    }
    for filter in filters {
        let added = match of {
            Type::Cluster => clusters::added(filter, target),
            Type::Listener => listeners::added(filter, target),
            Type::Route => Ok(Vec::new()),
        };
        match added {
            Ok(added) => {
                for (name, body) in added {
                    touched = true;
                    out.insert(name.clone(), Arc::new(Resource::of(name, body)));
                }
            }
            Err(reason) => findings.push(Finding { object: reference(filter), reason }),
        }
    }
    if touched { Arc::new(out) } else { all.clone() }
}

/// What one resource becomes.
pub(crate) struct Patched {
    /// `None` when it is removed.
    pub(crate) resource: Option<Arc<Resource>>,
    pub(crate) findings: Vec<Finding>,
}

fn one(resource: &Arc<Resource>, filters: &[Arc<EnvoyFilter>], target: &Target, of: Type) -> Patched {
    let mut body = resource.body.clone();
    let mut findings = Vec::new();
    let mut touched = false;
    for filter in filters {
        let result = match of {
            Type::Cluster => clusters::patch(&body, filter, target),
            Type::Listener => listeners::patch(&body, filter, target),
            Type::Route => routes::patch(&body, filter, target),
        };
        match result {
            Ok(Change::Nothing) => {}
            Ok(Change::To(new)) => {
                touched = true;
                body = new;
            }
            Ok(Change::Gone) => return Patched { resource: None, findings },
            Err(reason) => {
                findings.push(Finding { object: reference(filter), reason: format!("{}: {reason}", resource.name) });
            }
        }
    }
    let resource = if touched { Arc::new(Resource::of(resource.name.clone(), body)) } else { resource.clone() };
    Patched { resource: Some(resource), findings }
}

/// What an object does to a resource.
#[derive(Debug, PartialEq)]
pub(crate) enum Change {
    Nothing,
    To(Any),
    Gone,
}

fn reference(filter: &EnvoyFilter) -> ObjectRef {
    ObjectRef::new("EnvoyFilter", &filter.metadata.namespace, &filter.metadata.name)
}
