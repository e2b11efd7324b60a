//! Filters that ask policies, in Istio's order (semantics §2.11, §2.12, §12.3): external authorizer, tokens, AUDIT, DENY, ALLOW.
//!
//! Invariant: what cannot be asked denies; nothing to ask is no filter. Names of rules, keys of metadata and prefixes of counters are
//! Istio's, since logs, dashboards and the access log's details show them.

mod ext_authz;
mod jwt;
mod rbac;
mod text;
mod wire;

use carrick_mesh::{
    Security,
    model::authz::{Action, AuthorizerKind, AuthzPolicy},
    security::Custom,
};
use envoy_types::pb::envoy::{
    config::listener::v3::Filter, extensions::filters::network::http_connection_manager::v3::HttpFilter,
};
use std::sync::Arc;

use crate::wire::{any_as, http_filter, network_filter};
use rbac::Kind;
use wire::{HttpRbac, NetworkRbac, Rbac};

const HTTP_RBAC: &str = "envoy.filters.http.rbac";
const NETWORK_RBAC: &str = "envoy.filters.network.rbac";
/// Prefix of counters of TCP filters.
const TCP_STATS: &str = "tcp.";
const DRY_ALLOW: &str = "istio_dry_run_allow_";
const DRY_DENY: &str = "istio_dry_run_deny_";
/// Prefix of what the rules of CUSTOM policies leave behind for the external authorizer's filter.
const CUSTOM: &str = "istio_ext_authz_";

/// The HTTP filters, to stand before the router's and whatever shapes traffic.
pub fn http_filters(security: &Security) -> Vec<HttpFilter> {
    let mut out = Vec::new();
    let rbac = |rules: Stage| {
        let message = HttpRbac {
            rules: rules.enforced,
            shadow_rules: rules.shadow,
            shadow_rules_stat_prefix: rules.shadow_prefix.to_owned(),
        };
        http_filter(HTTP_RBAC, any_as("envoy.extensions.filters.http.rbac.v3.RBAC", &message))
    };
    match &security.custom {
        Custom::Nothing => {}
        Custom::Refuse => out.push(rbac(refused(&security.custom_policies, Kind::Http))),
        Custom::Ask(authorizer) => {
            out.push(rbac(custom(&security.custom_policies, Kind::Http)));
            out.push(ext_authz::http(authorizer));
        }
    }
    out.extend(jwt::filter(&security.jwt));
    out.extend(stages(security, Kind::Http).into_iter().map(rbac));
    out
}

/// The network filters of a chain that ends in a TCP proxy, to stand before it.
pub fn network_filters(security: &Security) -> Vec<Filter> {
    let mut out = Vec::new();
    let rbac = |rules: Stage| {
        let message = NetworkRbac {
            rules: rules.enforced,
            shadow_rules: rules.shadow,
            stat_prefix: TCP_STATS.to_owned(),
            shadow_rules_stat_prefix: rules.shadow_prefix.to_owned(),
        };
        network_filter(NETWORK_RBAC, any_as("envoy.extensions.filters.network.rbac.v3.RBAC", &message))
    };
    match &security.custom {
        Custom::Nothing => {}
        Custom::Refuse => out.push(rbac(refused(&security.custom_policies, Kind::Tcp))),
        // One that is asked by HTTP cannot be asked about a connection (§12.12).
        Custom::Ask(authorizer) => {
            if authorizer.kind == AuthorizerKind::Grpc {
                out.push(rbac(custom(&security.custom_policies, Kind::Tcp)));
                out.push(ext_authz::network(authorizer));
            }
        }
    }
    out.extend(stages(security, Kind::Tcp).into_iter().map(rbac));
    out
}

/// What one RBAC filter holds.
struct Stage {
    enforced: Option<Rbac>,
    shadow: Option<Rbac>,
    shadow_prefix: &'static str,
}

fn stages(security: &Security, kind: Kind) -> Vec<Stage> {
    let stage = |policies: &[Arc<AuthzPolicy>], action: Action, prefix: &'static str| {
        let of = |dry: bool| {
            let applies = |p: &&Arc<AuthzPolicy>| p.dry_run == dry && (kind == Kind::Http || !p.requests_only);
            let some: Vec<_> = policies.iter().filter(applies).collect();
            (!some.is_empty()).then(|| rbac::rules(some.iter().map(|p| &***p), action, kind, rbac::name))
        };
        let (enforced, shadow) = (of(false), of(true));
        let shadow_prefix = if shadow.is_some() { prefix } else { "" };
        (enforced.is_some() || shadow.is_some()).then_some(Stage { enforced, shadow, shadow_prefix })
    };
    [
        stage(&security.audit, Action::Audit, ""),
        stage(&security.deny, Action::Deny, DRY_DENY),
        stage(&security.allow, Action::Allow, DRY_ALLOW),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Rules that only leave behind which of them matched.
fn custom(policies: &[Arc<AuthzPolicy>], kind: Kind) -> Stage {
    let rules = rbac::rules(policies.iter().map(|p| &**p), Action::Custom, kind, rbac::custom_name);
    Stage { enforced: None, shadow: Some(rules), shadow_prefix: CUSTOM }
}

/// The same rules, denying: nobody can be asked.
fn refused(policies: &[Arc<AuthzPolicy>], kind: Kind) -> Stage {
    let rules = rbac::rules(policies.iter().map(|p| &**p), Action::Custom, kind, rbac::refused_name);
    Stage { enforced: Some(rules), shadow: None, shadow_prefix: "" }
}
