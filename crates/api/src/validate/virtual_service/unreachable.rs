//! Routes and matches that never are reached because an earlier one takes all they would get.
//!
//! Invariant: nothing here refuses an object; each finding has the code that the analysis prints it with.

use std::collections::BTreeMap;

use carrick_base::Severity;
use serde_json::Value;

use super::super::{Findings, Node};

const UNREACHABLE: &str = "IST0130";
const INEFFECTIVE: &str = "IST0131";

/// Judges one list of routes. `named`: routes and matches may have names (HTTP's).
pub(super) fn check(routes: &Node<'_>, named: bool, findings: &mut Findings) {
    let label = |node: &Node<'_>, index: usize| match node.field("name").text() {
        name if named && !name.is_empty() => format!("{name:?}"),
        _ => format!("#{index}"),
    };
    let mut seen: Vec<(Value, String)> = Vec::new();
    let mut catch_all = false;
    let mut prefixes: Vec<Prefix<'_>> = Vec::new();
    for (index, route) in routes.items().iter().enumerate() {
        let rule = label(route, index);
        let matches = route.field("match").items();
        if matches.is_empty() {
            if catch_all {
                unused(route, &rule, "only the last rule can have no matches", findings);
            }
            catch_all = true;
            continue;
        }
        let mut duplicates = 0;
        for (number, wanted) in matches.iter().enumerate() {
            if catch_all {
                unused(route, &rule, "route without matches defined before", findings);
                continue;
            }
            let number = label(wanted, number);
            let content = without_name(wanted, named);
            if let Some((_, first)) = seen.iter().find(|(other, _)| *other == content) {
                ineffective(wanted, &rule, &number, first, findings);
                duplicates += 1;
                continue;
            }
            seen.push((content, rule.clone()));
            let prefix = wanted.field("uri").field("prefix").text();
            if named && !prefix.is_empty() {
                prefixes.push(Prefix { node: wanted.clone(), rule: rule.clone(), number, prefix });
            }
        }
        if duplicates == matches.len() {
            unused(route, &rule, "all matches used by prior rules", findings);
        }
    }
    for (index, earlier) in prefixes.iter().enumerate() {
        for later in prefixes.iter().skip(index + 1) {
            if earlier.prefix != later.prefix && earlier.takes_all_of(later) {
                let number = format!("{} of prefix {}", later.number, later.prefix);
                let by = format!("{} of prefix {} on {}", earlier.number, earlier.prefix, earlier.rule);
                ineffective(&later.node, &later.rule, &number, &by, findings);
            }
        }
    }
}

fn unused(route: &Node<'_>, rule: &str, reason: &str, findings: &mut Findings) {
    let message = format!("VirtualService rule {rule} not used ({reason}).");
    findings.told(UNREACHABLE, Severity::Warning, &route.path, message);
}

fn ineffective(wanted: &Node<'_>, rule: &str, number: &str, by: &str, findings: &mut Findings) {
    let message =
        format!("VirtualService rule {rule} match {number} is not used (duplicate/overlapping match in rule {by}).");
    findings.told(INEFFECTIVE, Severity::Info, &wanted.path, message);
}

fn without_name(wanted: &Node<'_>, named: bool) -> Value {
    let mut content = wanted.value().cloned().unwrap_or_default();
    if named && let Some(map) = content.as_object_mut() {
        map.remove("name");
    }
    content
}

/// A match on a path's prefix.
struct Prefix<'a> {
    node: Node<'a>,
    rule: String,
    number: String,
    prefix: &'a str,
}

impl Prefix<'_> {
    /// Whether every request of `later` is matched here already, as far as the fields that are compared tell.
    fn takes_all_of(&self, later: &Self) -> bool {
        let (own, other) = (&self.node, &later.node);
        let fits = |field: &str, default: &str| {
            begins(&text_of(&own.field(field), default), &text_of(&other.field(field), default))
        };
        let maps = ["headers", "queryParams", "withoutHeaders"];
        later.prefix.starts_with(self.prefix)
            && own.field("port").number() == other.field("port").number()
            && fits("method", "exact:GET")
            && fits("authority", "")
            && maps.iter().all(|field| maps_fit(&own.field(field), &other.field(field)))
    }
}

fn begins(own: &str, other: &str) -> bool {
    own.starts_with(other)
}

fn maps_fit(own: &Node<'_>, other: &Node<'_>) -> bool {
    let others: BTreeMap<&str, Node<'_>> = other.entries().into_iter().collect();
    let fits = |(key, value): &(&str, Node<'_>)| {
        others.get(key).is_some_and(|other| begins(&text_of(value, ""), &text_of(other, "")))
    };
    own.len() == other.len() && own.entries().iter().all(fits)
}

/// A text match as one text; expressions are not compared.
fn text_of(wanted: &Node<'_>, default: &str) -> String {
    for kind in ["exact", "prefix"] {
        let text = wanted.field(kind).text();
        if !text.is_empty() {
            return format!("{kind}:{text}");
        }
    }
    default.to_owned()
}
