//! GRPCRoutes: methods are paths.

use std::sync::Arc;

use carrick_api::gateway_api::{GrpcRoute, route::GrpcMatch};

use super::{
    Translated,
    attach::Hosts,
    filters::escaped,
    gateways::Gateways,
    http::{Branch, Parents, PathKind, Rule, named},
    references::Backends,
};

const KIND: &str = "GRPCRoute";

pub(super) fn routes(
    all: &[Arc<GrpcRoute>],
    gateways: &mut Gateways<'_>,
    backends: &Backends<'_>,
    hosts: &mut Hosts,
    out: &mut Translated,
) {
    for route in all {
        let rules: Vec<Rule> = route
            .spec
            .rules
            .iter()
            .enumerate()
            .map(|(number, rule)| {
                let mut made = Rule::of(KIND, &route.metadata, number, &rule.filters, &rule.backend_refs, backends);
                made.branches = rule.matches.iter().map(branch).collect();
                if made.branches.is_empty() {
                    made.branches.push(Branch::default());
                }
                made
            })
            .collect();
        let parents =
            Parents { kind: KIND, meta: &route.metadata, refs: &route.spec.parent_refs, hosts: &route.spec.hostnames };
        parents.attach(&rules, gateways, backends, hosts, out);
    }
}

fn branch(matched: &GrpcMatch) -> Branch {
    let empty = |t: &Option<String>| t.clone().filter(|t| !t.is_empty());
    let path = match &matched.method {
        None => PathKind::default(),
        Some(m) => {
            let regular = m.kind.as_deref() == Some("RegularExpression");
            match (empty(&m.service), empty(&m.method)) {
                (None, None) => PathKind::default(),
                (Some(service), Some(method)) if regular => PathKind::Regex(format!("/{service}/{method}")),
                (Some(service), None) if regular => PathKind::Regex(format!("/{service}/.+")),
                (None, Some(method)) if regular => PathKind::Regex(format!("/[^/]+/{method}")),
                (Some(service), Some(method)) => PathKind::Exact(format!("/{service}/{method}")),
                (Some(service), None) => PathKind::Prefix(format!("/{service}")),
                (None, Some(method)) => PathKind::Regex(format!("/[^/]+/{}", escaped(&method))),
            }
        }
    };
    Branch { path, headers: named(&matched.headers), ..Branch::default() }
}
