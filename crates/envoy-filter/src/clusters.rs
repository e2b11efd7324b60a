//! CLUSTER.

use std::sync::Arc;

use carrick_api::{
    EnvoyFilter,
    istio::envoy_filter::{ApplyTo, ConfigPatch, PatchOperation},
};
use envoy_types::pb::{envoy::config::cluster::v3::Cluster, google::protobuf::Any};
use prost::{Message, Name};

use crate::{
    Change, Target,
    select::{self, Side},
    value,
};

fn patches(filter: &EnvoyFilter) -> impl Iterator<Item = &ConfigPatch> {
    filter.spec.config_patches.iter().filter(|p| p.apply_to == ApplyTo::Cluster)
}

pub(crate) fn patch(body: &Any, filter: &EnvoyFilter, target: &Target) -> Result<Change, String> {
    if patches(filter).next().is_none() {
        return Ok(Change::Nothing);
    }
    let mut cluster = Cluster::decode(&*body.value).map_err(|e| e.to_string())?;
    let inbound = cluster.name.starts_with("inbound|") || cluster.name.starts_with("InboundPassthrough");
    let side = if inbound { Side::Inbound } else { Side::Outbound };
    let mut touched = false;
    for patch in patches(filter).filter(|p| select::context(p, target, side)) {
        if !select::cluster(&cluster.name, patch.matches.cluster.as_ref()) {
            continue;
        }
        match patch.patch.operation {
            PatchOperation::Remove => return Ok(Change::Gone),
            operation if value::merges(operation) => {
                cluster = value::merged(&cluster, &patch.patch)?;
                touched = true;
            }
            _ => {}
        }
    }
    let value = cluster.encode_to_vec();
    Ok(if touched { Change::To(Any { type_url: Cluster::type_url(), value }) } else { Change::Nothing })
}

/// Clusters of its own that a filter brings.
pub(crate) fn added(filter: &EnvoyFilter, target: &Target) -> Result<Vec<(Arc<str>, Any)>, String> {
    let adds = patches(filter).filter(|p| p.patch.operation == PatchOperation::Add);
    let concerned =
        adds.filter(|p| [Side::Inbound, Side::Outbound].iter().any(|side| select::context(p, target, *side)));
    concerned
        .map(|p| {
            let cluster: Cluster = value::message(&p.patch)?;
            if cluster.name.is_empty() {
                return Err("patch.value.name: missing".to_owned());
            }
            Ok((cluster.name.as_str().into(), Any { type_url: Cluster::type_url(), value: cluster.encode_to_vec() }))
        })
        .collect()
}
