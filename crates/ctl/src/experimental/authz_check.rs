//! `carrick experimental authz check`: the AuthorizationPolicies a proxy enforces.
//!
//! Invariant: a policy is listed once, however many chains carry it; its rules are told apart by their number.

use std::collections::{BTreeMap, BTreeSet};

use super::chains;
use crate::{proxy_config::dump::Dump, table::Table};

/// In which order actions are shown.
const ORDER: [&str; 4] = ["DENY", "ALLOW", "LOG", "CUSTOM"];

/// The table.
pub fn show(dump: &Dump) -> String {
    let mut found: BTreeMap<(usize, String), BTreeSet<String>> = BTreeMap::new();
    let all = chains::inbound(dump).into_values().chain(chains::others(dump).into_values()).flatten();
    for (action, rule) in all.flat_map(|chain| chain.rules) {
        let (policy, index, custom) = parts(&rule);
        let action = if custom { "CUSTOM" } else { action.as_str() };
        let order = ORDER.iter().position(|known| *known == action).unwrap_or(ORDER.len());
        found.entry((order, policy)).or_default().insert(index);
    }
    let mut table = Table::new(3, ["ACTION", "AuthorizationPolicy", "RULES"]);
    for ((order, policy), rules) in found {
        let action = ORDER.get(order).copied().unwrap_or("?");
        table.row([action.to_owned(), policy, rules.len().to_string()]);
    }
    table.to_string()
}

/// `ns[a]-policy[b]-rule[0]` as policy `b.a` and index; names of other shapes stand for themselves.
fn parts(rule: &str) -> (String, String, bool) {
    let custom = rule.starts_with("istio-ext-authz-");
    let named = rule.trim_start_matches("istio-ext-authz-");
    let within = |key: &str| Some(named.split_once(&format!("{key}["))?.1.split_once(']')?.0);
    match (within("ns"), within("policy"), within("rule")) {
        (Some(namespace), Some(policy), Some(index)) => (format!("{policy}.{namespace}"), index.to_owned(), custom),
        _ => (rule.to_owned(), "0".into(), custom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn policies_are_counted_by_rule() {
        let rbac = |action: &str, names: &[&str]| {
            let policies: serde_json::Map<_, _> = names.iter().map(|n| ((*n).to_owned(), json!({}))).collect();
            json!({"typed_config": {"@type": "x.RBAC", "rules": {"action": action, "policies": policies}}})
        };
        let chain = |filters: Vec<serde_json::Value>| json!({"filter_chain_match": {"destination_port": 80}, "filters": filters});
        let allow = rbac("ALLOW", &["ns[a]-policy[web]-rule[0]", "ns[a]-policy[web]-rule[1]"]);
        let nothing = json!({"typed_config": {"@type": "x.RBAC", "rules": {}}});
        let listener = json!({"name": "virtualInbound", "filter_chains": [
            chain(vec![rbac("DENY", &["ns[a]-policy[no]-rule[0]"]), allow.clone()]), chain(vec![allow, nothing])]});
        let body = json!({"configs": [{"@type": "x.ListenersConfigDump",
            "dynamic_listeners": [{"active_state": {"listener": listener}}]}]});
        let dump = Dump::parse(&serde_json::to_vec(&body).unwrap(), None).unwrap();
        assert_eq!(
            show(&dump),
            "ACTION   AuthorizationPolicy         RULES\nDENY     no.a                        1\n\
             ALLOW    _anonymous_match_nothing_   1\nALLOW    web.a                       2\n"
        );
    }
}
