//! One rule of a role: what it allows, and whether other rules together allow all of it.
//!
//! Invariant: matching is exact but for the wildcards that Kubernetes defines: `*`, `*/subresource`, and a trailing `*` in
//! a path.

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

use crate::authorize::{Attributes, Rule};

/// A rule as roles hold it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyRule {
    pub verbs: Vec<String>,
    pub api_groups: Vec<String>,
    pub resources: Vec<String>,
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    pub non_resource_urls: Vec<String>,
}

const ALL: &str = "*";

fn has(list: &[String], value: &str) -> bool {
    list.iter().any(|item| item == ALL || item == value)
}

impl PolicyRule {
    /// The rules of a role. A rule that cannot be read allows nothing.
    pub fn list(role: &Value) -> Vec<Self> {
        let rules = role.get("rules").and_then(Value::as_array).into_iter().flatten();
        rules.filter_map(|rule| Self::deserialize(rule).ok()).collect()
    }

    /// Whether this rule allows what is asked.
    pub fn allows(&self, asked: &Attributes) -> bool {
        if !has(&self.verbs, &asked.verb) {
            return false;
        }
        if !asked.is_resource() {
            return self.non_resource_urls.iter().any(|pattern| path_matches(pattern, &asked.path));
        }
        has(&self.api_groups, &asked.group)
            && self.resources.iter().any(|pattern| resource_matches(pattern, &asked.resource, &asked.subresource))
            && (self.resource_names.is_empty() || (!asked.name.is_empty() && self.resource_names.contains(&asked.name)))
    }

    /// Whether everything that this rule allows is allowed by some of the others.
    pub fn covered_by(&self, held: &[Self]) -> bool {
        let paths = self.verbs.iter().all(|verb| {
            self.non_resource_urls.iter().all(|path| {
                held.iter().any(|rule| {
                    has(&rule.verbs, verb) && rule.non_resource_urls.iter().any(|p| path_pattern_covers(p, path))
                })
            })
        });
        let any_name = [None];
        let named: Vec<Option<&str>> = self.resource_names.iter().map(|n| Some(n.as_str())).collect();
        let names: &[Option<&str>] = if named.is_empty() { &any_name } else { &named };
        paths
            && self.verbs.iter().all(|verb| {
                self.api_groups.iter().all(|group| {
                    self.resources.iter().all(|resource| {
                        names.iter().all(|name| held.iter().any(|rule| rule.covers(verb, group, resource, *name)))
                    })
                })
            })
    }

    fn covers(&self, verb: &str, group: &str, resource: &str, name: Option<&str>) -> bool {
        has(&self.verbs, verb)
            && has(&self.api_groups, group)
            && self.resources.iter().any(|pattern| match resource.split_once('/') {
                Some((main, sub)) => resource_matches(pattern, main, sub) || pattern == resource,
                None => pattern == ALL || pattern == resource,
            })
            && (self.resource_names.is_empty()
                || name.is_some_and(|name| self.resource_names.iter().any(|n| n == name)))
    }

    /// The rule as rules of one group, one resource and one verb each.
    pub fn parts(&self) -> Vec<Self> {
        let mut parts = Vec::new();
        for verb in &self.verbs {
            let verbs = || vec![verb.clone()];
            for url in &self.non_resource_urls {
                parts.push(Self { verbs: verbs(), non_resource_urls: vec![url.clone()], ..Self::default() });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    let (api_groups, resources) = (vec![group.clone()], vec![resource.clone()]);
                    let resource_names = self.resource_names.clone();
                    parts.push(Self { verbs: verbs(), api_groups, resources, resource_names, ..Self::default() });
                }
            }
        }
        parts
    }

    /// The form that reviews show.
    pub fn to_rule(&self) -> Rule {
        Rule {
            verbs: self.verbs.clone(),
            api_groups: self.api_groups.clone(),
            resources: self.resources.clone(),
            resource_names: self.resource_names.clone(),
            non_resource_urls: self.non_resource_urls.clone(),
        }
    }
}

/// Rules about the same thing as one, with all their verbs, in the order of groups and resources.
pub fn compact(parts: Vec<PolicyRule>) -> Vec<PolicyRule> {
    let mut whole: Vec<PolicyRule> = Vec::new();
    for part in parts {
        let same = |rule: &&mut PolicyRule| {
            rule.api_groups == part.api_groups
                && rule.resources == part.resources
                && rule.resource_names == part.resource_names
                && rule.non_resource_urls == part.non_resource_urls
        };
        match whole.iter_mut().find(same) {
            Some(rule) => {
                let new = part.verbs.into_iter().filter(|verb| !rule.verbs.contains(verb)).collect::<Vec<_>>();
                rule.verbs.extend(new);
            }
            None => whole.push(part),
        }
    }
    whole.sort_by(|a, b| (&a.api_groups, &a.resources).cmp(&(&b.api_groups, &b.resources)));
    whole
}

impl fmt::Display for PolicyRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        let mut separator = "";
        for (name, list) in [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("ResourceNames", &self.resource_names),
            ("NonResourceURLs", &self.non_resource_urls),
            ("Verbs", &self.verbs),
        ] {
            if !list.is_empty() {
                let quoted: Vec<String> = list.iter().map(|text| format!("{text:?}")).collect();
                write!(f, "{separator}{name}:[{}]", quoted.join(" "))?;
                separator = ", ";
            }
        }
        f.write_str("}")
    }
}

fn resource_matches(pattern: &str, resource: &str, subresource: &str) -> bool {
    if pattern == ALL {
        return true;
    }
    match pattern.split_once('/') {
        None => subresource.is_empty() && pattern == resource,
        Some((main, sub)) => !subresource.is_empty() && sub == subresource && (main == ALL || main == resource),
    }
}

fn path_matches(pattern: &str, path: &str) -> bool {
    pattern == ALL || pattern == path || pattern.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
}

fn path_pattern_covers(held: &str, wanted: &str) -> bool {
    held == ALL
        || held == wanted
        || held.strip_suffix('*').is_some_and(|prefix| wanted.trim_end_matches('*').starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule(value: Value) -> PolicyRule {
        PolicyRule::deserialize(&value).unwrap()
    }

    fn asks(text: &str) -> Attributes {
        // verb group/resource/subresource:name
        let (verb, rest) = text.split_once(' ').unwrap();
        if rest.starts_with('/') {
            return Attributes { verb: verb.into(), path: rest.into(), ..Attributes::default() };
        }
        let (rest, name) = rest.split_once(':').unwrap_or((rest, ""));
        let mut parts = rest.split('/');
        let mut next = || parts.next().unwrap_or_default().to_owned();
        Attributes {
            verb: verb.into(),
            group: next(),
            resource: next(),
            subresource: next(),
            name: name.into(),
            ..Attributes::default()
        }
    }

    #[test]
    fn rules_allow_exactly_what_they_say() {
        let pods = json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "pods/log"]});
        let named = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["secrets"], "resourceNames": ["a"]});
        let status = json!({"verbs": ["update"], "apiGroups": ["apps"], "resources": ["*/status"]});
        let all = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]});
        let paths = json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/apis/*"]});
        for (rule_value, asked, expected) in [
            (&pods, "get /pods", false),
            (&pods, "list /pods/log", false),
            (&pods, "watch /pods", false),
            (&named, "delete x/secrets:b", false),
            (&named, "delete x/secrets:a", true),
            (&named, "list x/secrets", false),
            (&status, "update apps/things/status", true),
            (&status, "update apps/things", false),
            (&status, "update other/things/status", false),
            (&all, "anything any/thing/at:all", true),
            (&all, "get /healthz", false),
            (&paths, "get /healthz", true),
            (&paths, "get /healthz/x", false),
            (&paths, "get /apis/v1", true),
            (&paths, "get /apis", false),
            (&paths, "post /healthz", false),
        ] {
            assert_eq!(rule(rule_value.clone()).allows(&asks(asked)), expected, "{asked} by {rule_value}");
        }
        // The core group is the empty one, which the compact form above cannot say.
        let core = |verb: &str, sub: &str| Attributes {
            verb: verb.into(),
            resource: "pods".into(),
            subresource: sub.into(),
            ..Attributes::default()
        };
        assert!(rule(pods.clone()).allows(&core("get", "")));
        assert!(rule(pods.clone()).allows(&core("list", "log")));
        assert!(!rule(pods).allows(&core("get", "status")));
    }

    #[test]
    fn nobody_grants_more_than_they_hold() {
        let held = [
            rule(json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "*/status"]})),
            rule(json!({"verbs": ["*"], "apiGroups": ["apps"], "resources": ["*"]})),
            rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a", "b"]})),
            rule(json!({"verbs": ["get"], "nonResourceURLs": ["/api/*"]})),
        ];
        for (wanted, covered) in [
            (json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}), true),
            (json!({"verbs": ["get"], "apiGroups": ["", "apps"], "resources": ["pods"]}), true),
            (json!({"verbs": ["delete"], "apiGroups": [""], "resources": ["pods"]}), false),
            (json!({"verbs": ["*"], "apiGroups": [""], "resources": ["pods"]}), false),
            (json!({"verbs": ["*"], "apiGroups": ["apps"], "resources": ["x/y"]}), true),
            (json!({"verbs": ["get"], "apiGroups": [""], "resources": ["nodes/status"]}), true),
            (json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]}), false),
            (json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"]}), true),
            (
                json!({"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a", "c"]}),
                false,
            ),
            (json!({"verbs": ["get"], "nonResourceURLs": ["/api/v1/*"]}), true),
            (json!({"verbs": ["get"], "nonResourceURLs": ["/apis"]}), false),
            (json!({"verbs": ["get"], "nonResourceURLs": ["*"]}), false),
            (json!({"verbs": ["get"], "apiGroups": ["*"], "resources": ["pods"]}), false),
        ] {
            assert_eq!(rule(wanted.clone()).covered_by(&held), covered, "{wanted}");
        }
    }
}
