//! Roles made of others.
//!
//! Invariant: every rule of the roles that are selected is there once, in the order of the list; a role is never part of itself.

use serde_json::Value;

use crate::selector::{Selectors, selector_text};
use crate::store::name_of;

const ROLES: &str = "clusterroles.rbac.authorization.k8s.io";

/// What a role is to hold; nothing for one that says so itself.
pub fn aggregated(role: &Value, all: &[Value]) -> Option<Value> {
    let selectors = role.pointer("/aggregationRule/clusterRoleSelectors")?.as_array()?;
    let mut rules: Vec<Value> = Vec::new();
    for selector in selectors {
        let text = selector_text(selector);
        let Ok(selected) = Selectors::parse(ROLES, Some(&text), None) else { continue };
        for other in all.iter().filter(|other| name_of(other) != name_of(role) && selected.matches(other)) {
            for rule in other.get("rules").and_then(Value::as_array).into_iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    Some(if rules.is_empty() { Value::Null } else { Value::Array(rules) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_role_holds_what_it_selects_once() {
        let role = |name: &str, label: &str, rules: Value| json!({"metadata": {"name": name, "labels": {"to": label}}, "rules": rules});
        let (read, write) = (json!({"verbs": ["get"]}), json!({"verbs": ["create"]}));
        let mut whole = role("whole", "x", json!([write]));
        assert_eq!(aggregated(&whole, &[]), None);
        whole["aggregationRule"] =
            json!({"clusterRoleSelectors": [{"matchLabels": {"to": "x"}}, {"matchLabels": {"to": "y"}}]});
        assert_eq!(aggregated(&whole, &[]), Some(Value::Null));
        let all = [
            whole.clone(),
            role("a", "x", json!([read])),
            role("b", "y", json!([read, write])),
            role("c", "z", json!([{"verbs": ["delete"]}])),
        ];
        assert_eq!(aggregated(&whole, &all), Some(json!([read, write])));
    }
}
