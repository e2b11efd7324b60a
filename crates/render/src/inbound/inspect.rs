//! Which inspectors look at which ports (semantics §2.2).
//!
//! Invariant: a port that needs no inspector is never looked at by one: inspection waits for the client's first bytes, and a server that speaks
//! first would wait for ever.

use envoy_types::pb::{
    envoy::{
        config::listener::v3::{
            ListenerFilter, ListenerFilterChainMatchPredicate as Predicate,
            listener_filter_chain_match_predicate::{MatchSet, Rule},
        },
        extensions::filters::listener::{http_inspector::v3::HttpInspector, tls_inspector::v3::TlsInspector},
        r#type::v3::Int32Range,
    },
    google::protobuf::Any,
};

use super::{
    chains::{PLAIN_HTTP, Set},
    listener_filter,
};
use crate::wire;

/// Bytes the TLS inspector reads first; most ClientHellos need no second read.
const INITIAL_READ: u32 = 512;

/// The inspectors that at least one port needs, with the ports they leave alone.
pub fn inspectors(sets: &[Set<'_>]) -> Vec<ListenerFilter> {
    let tls = TlsInspector { initial_read_buffer_size: wire::number(INITIAL_READ), ..TlsInspector::default() };
    let http = wire::any(&HttpInspector::default());
    let needs_tls = |set: &Set<'_>| set.shapes.iter().any(|s| s.tls);
    let needs_http = |set: &Set<'_>| set.shapes.iter().any(|s| s.alpn == PLAIN_HTTP);
    [
        inspector("envoy.filters.listener.tls_inspector", wire::any(&tls), sets, needs_tls),
        inspector("envoy.filters.listener.http_inspector", http, sets, needs_http),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn inspector(name: &str, config: Any, sets: &[Set<'_>], needs: impl Fn(&Set<'_>) -> bool) -> Option<ListenerFilter> {
    let mut with: Vec<u16> = sets.iter().filter(|s| needs(s)).filter_map(|s| s.port).collect();
    let mut without: Vec<u16> = sets.iter().filter(|s| !needs(s)).filter_map(|s| s.port).collect();
    with.sort_unstable();
    without.sort_unstable();
    let others = sets.iter().find(|s| s.port.is_none()).is_some_and(needs);
    // Ports without chains of their own follow the passthrough chains.
    let disabled = match (others, with.is_empty(), without.is_empty()) {
        (true, _, true) => None,
        (true, _, false) => any_of(&without),
        (false, true, _) => return None,
        (false, false, _) => any_of(&with).map(|p| Predicate { rule: Some(Rule::NotMatch(Box::new(p))) }),
    };
    Some(ListenerFilter { filter_disabled: disabled, ..listener_filter(name, config) })
}

fn any_of(ports: &[u16]) -> Option<Predicate> {
    let one = |port: &u16| {
        let start = i32::from(*port);
        Predicate { rule: Some(Rule::DestinationPortRange(Int32Range { start, end: start.saturating_add(1) })) }
    };
    match ports {
        [] => None,
        [port] => Some(one(port)),
        _ => Some(Predicate { rule: Some(Rule::OrMatch(MatchSet { rules: ports.iter().map(one).collect() })) }),
    }
}
