//! EnvoyFilters over rendered resources (semantics §24): the last word on what a proxy is given.
//!
//! Invariant: an object is applied to a resource whole or not at all; what fails leaves the resource as it was before that object, and is
//! told as a finding. For the native engine an object also fails where the engine would refuse the result, so that a filter made for Envoy
//! never freezes a native proxy's configuration. This crate decides nothing else about the mesh.

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
use carrick_proxy_core::{ConfigStore, nack_text, store::type_url};
use carrick_render::{Rendered, Resource, Resources};
use envoy_types::pb::google::protobuf::Any;

pub use memo::Memo;

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
        clusters: kind(&rendered.clusters, filters, target, memo, &mut findings, type_url::CLUSTER),
        listeners: kind(&rendered.listeners, filters, target, memo, &mut findings, type_url::LISTENER),
        routes: kind(&rendered.routes, filters, target, memo, &mut findings, type_url::ROUTE),
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
    type_url: &'static str,
) -> Arc<Resources> {
    let mut out = Resources::new();
    let mut touched = false;
    for (name, resource) in all.iter() {
        let patched = memo.get(resource, filters, target, || one(resource, filters, target, type_url));
        findings.extend(patched.findings.iter().cloned());
        touched |= patched.resource.as_ref().is_none_or(|r| !Arc::ptr_eq(r, resource));
        if let Some(resource) = patched.resource {
            out.insert(name.clone(), resource);
        }
    }
    for filter in filters {
        let added = match type_url {
            type_url::CLUSTER => clusters::added(filter, target),
            type_url::LISTENER => listeners::added(filter, target),
            _ => Ok(Vec::new()),
        };
        let checked = added
            .and_then(|all| all.iter().try_for_each(|(name, body)| check(target, type_url, name, body)).map(|()| all));
        match checked {
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

fn one(resource: &Arc<Resource>, filters: &[Arc<EnvoyFilter>], target: &Target, type_url: &str) -> Patched {
    let mut body = resource.body.clone();
    let mut findings = Vec::new();
    let mut touched = false;
    for filter in filters {
        let result = match type_url {
            type_url::CLUSTER => clusters::patch(&body, filter, target),
            type_url::LISTENER => listeners::patch(&body, filter, target),
            _ => routes::patch(&body, filter, target),
        };
        let checked = result.and_then(|change| {
            if let Change::To(body) = &change {
                check(target, type_url, &resource.name, body)?;
            }
            Ok(change)
        });
        match checked {
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

/// Whether the native engine takes the result.
fn check(target: &Target, type_url: &str, name: &Arc<str>, body: &Any) -> Result<(), String> {
    if !target.native {
        return Ok(());
    }
    let refused = ConfigStore::new().apply(type_url, vec![(name.clone(), body.clone())], &[]);
    refused.map_err(|rejections| format!("the native engine refuses it: {}", nack_text(&rejections)))
}

fn reference(filter: &EnvoyFilter) -> ObjectRef {
    ObjectRef::new("EnvoyFilter", &filter.metadata.namespace, &filter.metadata.name)
}
