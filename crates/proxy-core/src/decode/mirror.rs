//! Request mirrors.
//!
//! Invariant: a mirror names its cluster in exactly one way.

use std::sync::Arc;

use envoy_types::pb::envoy::config::common::mutation_rules::v3::{HeaderMutation, header_mutation::Action};
use envoy_types::pb::envoy::config::route::v3::route_action as pb;

use super::bad::{At, Bad, each, given};
use super::basic::runtime_fraction;
use super::headers;
use crate::model::headers::HeaderOps;
use crate::model::route::{Mirror, MirrorTarget};

/// The mirrors of a route, virtual host or table.
pub fn policies(all: &[pb::RequestMirrorPolicy]) -> Result<Arc<[Mirror]>, Bad> {
    each("request_mirror_policies", all, policy).map(Arc::from)
}

fn policy(value: &pb::RequestMirrorPolicy) -> Result<Mirror, Bad> {
    // Whether the copy is sampled for tracing has no effect without a tracer.
    let target = match (value.cluster.as_str(), value.cluster_header.as_str()) {
        ("", "") => return Err(Bad::field("cluster", "empty")),
        (name, "") => MirrorTarget::Cluster(name.into()),
        ("", header) => MirrorTarget::Header(headers::name(header).at("cluster_header")?),
        _ => return Err(Bad::field("cluster_header", "cluster is set too")),
    };
    let rewrite = (!value.host_rewrite_literal.is_empty()).then(|| value.host_rewrite_literal.as_str().into());
    Ok(Mirror {
        target,
        fraction: given("runtime_fraction", &value.runtime_fraction, runtime_fraction)?.unwrap_or(1_000_000),
        host_suffix: !value.disable_shadow_host_suffix_append && rewrite.is_none(),
        host_rewrite: rewrite,
        request: mutations(&value.request_headers_mutations)?,
    })
}

/// Removals come before additions in [`HeaderOps`], so only lists in that order are taken.
fn mutations(all: &[HeaderMutation]) -> Result<HeaderOps, Bad> {
    let mut ops = HeaderOps::default();
    for (number, mutation) in all.iter().enumerate() {
        let one = match &mutation.action {
            Some(Action::Remove(name)) if ops.add.is_empty() => {
                headers::ops("request", &[], std::slice::from_ref(name))
            }
            Some(Action::Remove(_)) => Err(Bad::field("remove", "stands after an addition")),
            Some(Action::Append(option)) => headers::ops("request", std::slice::from_ref(option), &[]),
            Some(Action::RemoveOnMatch(_)) => Err(Bad::unsupported("remove_on_match")),
            None => Err(Bad::new("empty mutation")),
        };
        let mut one = one.at_index("request_headers_mutations", number)?;
        ops.remove.append(&mut one.remove);
        ops.add.append(&mut one.add);
    }
    Ok(ops)
}
