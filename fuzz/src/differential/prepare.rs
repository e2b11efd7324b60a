//! From a case to what its proxies are given: read, joined and rendered as the control plane does it.
//!
//! Invariant: rendered once. What the engines get are the same bytes with other addresses; what is exchanged for that stands in
//! [`super::moved`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use carrick_base::Diagnostic;
use carrick_control::Reading;
use carrick_mesh::{ProxyKind, ProxyNode, Snapshot, Views};
use carrick_render::{Cache, Rendered};
use serde_json::Value;

use super::case::Case;
use super::keys::Keys;
use super::world::{self, Part};

/// A case, rendered.
pub struct Prepared {
    pub snapshot: Snapshot,
    pub rendered: Vec<(Part, Rendered)>,
    /// What is wrong in its objects.
    pub found: Vec<Diagnostic>,
}

/// Renders a case.
///
/// # Errors
/// When the mesh's configuration cannot be read.
pub fn prepare(case: &Case, keys: &Keys) -> anyhow::Result<Prepared> {
    let mesh = serde_json::from_value(case.mesh.clone())?;
    let mut reading = Reading::default();
    for object in world::objects().into_iter().chain(case.objects.iter().map(|o| filled(o, keys))) {
        anyhow::ensure!(reading.add(object.clone()), "nobody reads {object}");
    }
    let (snapshot, found) = reading.snapshot(&mesh, &Value::Null);
    let mut views = Views::new(snapshot.clone());
    let mut cache = Cache::default();
    let rendered = Part::ALL.map(|part| (part, carrick_render::resources(&views.of(&node(part)), &mut cache)));
    Ok(Prepared { snapshot, rendered: rendered.into(), found })
}

/// A proxy as it presents itself.
pub fn node(part: Part) -> ProxyNode {
    let (name, namespace, last, _) = part.pod();
    ProxyNode {
        id: format!("{part:?}~{name}.{namespace}").into(),
        kind: if part == Part::Gateway { ProxyKind::Router } else { ProxyKind::Sidecar },
        name: name.into(),
        namespace: namespace.into(),
        ips: world::at(last).parse::<IpAddr>().into_iter().collect(),
        ..ProxyNode::default()
    }
}

/// An object with the keys it names.
fn filled(object: &Value, keys: &Keys) -> Value {
    serde_json::from_str(&keys.fill(&object.to_string())).unwrap_or_else(|_| object.clone())
}

/// All resources of a type, for the simulator.
pub fn upserts(
    resources: &BTreeMap<std::sync::Arc<str>, std::sync::Arc<carrick_render::Resource>>,
) -> Vec<(std::sync::Arc<str>, envoy_types::pb::google::protobuf::Any)> {
    resources.iter().map(|(name, r)| (name.clone(), r.body.clone())).collect()
}
