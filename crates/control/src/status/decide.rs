//! What a status says, from facts alone.
//!
//! Invariant: pure. *Accepted* is about the object itself; *Programmed* is about the proxies it concerns: true when each of them has
//! acknowledged a configuration that contains it, and none refused that configuration.

use crate::connections::Connection;
use crate::ledger::Object;
use crate::source::{Kind, Name};
use carrick_base::{Diagnostic, Labels, Severity};
use carrick_mesh::Snapshot;
use serde_json::{Value, json};
use std::collections::HashMap;

const ACCEPTED: &str = "Accepted";
const PROGRAMMED: &str = "Programmed";
/// The longest reason that is shown; proxies may answer at length.
const LONGEST: usize = 1024;

/// One condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) kind: &'static str,
    pub(crate) status: bool,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) generation: i64,
    /// When `status` became what it is; as read, empty for a new one.
    since: String,
}

impl Condition {
    /// Whether a condition in a status is one that is written here.
    pub(crate) fn is_ours(value: &Value) -> bool {
        value.get("type").and_then(Value::as_str).is_some_and(|t| t == ACCEPTED || t == PROGRAMMED)
    }

    /// Those of ours among all conditions of an object.
    pub(crate) fn ours(all: &[Value]) -> Vec<Self> {
        all.iter().filter_map(Self::read).collect()
    }

    /// A condition of ours, as it was written.
    fn read(value: &Value) -> Option<Self> {
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
        let kind = [ACCEPTED, PROGRAMMED].into_iter().find(|kind| *kind == text("type"))?;
        Some(Self {
            kind,
            status: text("status") == "True",
            reason: text("reason").to_owned(),
            message: text("message").to_owned(),
            generation: value.get("observedGeneration").and_then(Value::as_i64).unwrap_or_default(),
            since: text("lastTransitionTime").to_owned(),
        })
    }

    /// As it is stored; the time of the last transition is kept while the status stays.
    pub(crate) fn json(&self, before: &[Self], now: &str) -> Value {
        let kept = before.iter().find(|b| b.kind == self.kind && b.status == self.status && !b.since.is_empty());
        json!({
            "type": self.kind,
            "status": if self.status { "True" } else { "False" },
            "reason": self.reason,
            "message": self.message,
            "observedGeneration": self.generation,
            "lastTransitionTime": kept.map_or(now, |b| b.since.as_str()),
        })
    }
}

/// Whether two lists say the same, whenever they began to.
pub(crate) fn same(a: &[Condition], b: &[Condition]) -> bool {
    a.len() == b.len()
        && b.iter().all(|b| {
            a.iter().any(|a| {
                (a.kind, a.status, &a.reason, &a.message, a.generation)
                    == (b.kind, b.status, &b.reason, &b.message, b.generation)
            })
        })
}

/// What counts of a connected proxy.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) labels: Labels,
    /// The newest snapshot it has acknowledged without refusing anything.
    pub(crate) clean: Option<u64>,
    /// What it refuses now: the type and its words.
    pub(crate) refused: Option<(String, String)>,
}

impl Proxy {
    pub(crate) fn of(connection: &Connection, snapshot: &Snapshot) -> Self {
        let labels = match snapshot.workload_of(&connection.node) {
            Some(workload) => workload.labels.clone(),
            None => connection.node.labels.clone(),
        };
        Self {
            name: connection.name(),
            namespace: connection.node.namespace.to_string(),
            labels,
            clean: connection.acks.iter().filter(|ack| ack.clean).map(|ack| ack.sequence).max(),
            refused: connection.status.refused().map(|(t, nack)| (t.short().to_owned(), nack.message.clone())),
        }
    }
}

/// Proxies of one namespace with the same labels, which the same objects concern.
#[derive(Debug)]
struct Group {
    namespace: String,
    labels: Labels,
    /// Those that have acknowledged the least first; with their places among all.
    members: Vec<(usize, Proxy)>,
}

/// All proxies, so that an object is compared with each kind of them, not with each.
#[derive(Debug, Default)]
pub(crate) struct Proxies(Vec<Group>);

impl Proxies {
    pub(crate) fn of(all: impl IntoIterator<Item = Proxy>) -> Self {
        let mut groups: HashMap<(String, Labels), Vec<(usize, Proxy)>> = HashMap::new();
        for (place, mut proxy) in all.into_iter().enumerate() {
            let kind = (std::mem::take(&mut proxy.namespace), std::mem::take(&mut proxy.labels));
            groups.entry(kind).or_default().push((place, proxy));
        }
        let group = |((namespace, labels), mut members): ((String, Labels), Vec<(usize, Proxy)>)| {
            members.sort_by_key(|(place, proxy)| (proxy.clean, *place));
            Group { namespace, labels, members }
        };
        Self(groups.into_iter().map(group).collect())
    }
}

/// What became of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Why it is not accepted.
    invalid: Option<String>,
    /// What is odd in it.
    warnings: Vec<String>,
    applied: usize,
    concerned: usize,
    /// The first refusal: proxy, type and reason.
    refused: Option<(String, String, String)>,
}

impl Verdict {
    /// `since` is the first snapshot that contains the object as it is; `denied` tells by name why proxies' configurations were made
    /// without it.
    #[expect(clippy::too_many_arguments, reason = "facts of one object, gathered by the one caller")]
    pub(crate) fn of<'a>(
        kind: Kind,
        object: &Object,
        name: &Name,
        root: &str,
        since: u64,
        findings: impl Iterator<Item = &'a Diagnostic>,
        proxies: &Proxies,
        denied: &HashMap<&str, &str>,
    ) -> Self {
        let (mut invalid, mut warnings) = (object.broken.clone(), Vec::new());
        for finding in findings {
            let field = finding.field.as_str();
            let text = if field.is_empty() { finding.message.clone() } else { format!("{field}: {}", finding.message) };
            if finding.severity == Severity::Error && invalid.is_none() {
                invalid = Some(text);
            } else {
                warnings.push(text);
            }
        }
        let (mut applied, mut concerned) = (0, 0);
        let mut refused: Option<(usize, (String, String, String))> = None;
        for group in proxies.0.iter().filter(|group| concerns(kind, object, name, root, group)) {
            let behind = group.members.partition_point(|(_, proxy)| proxy.clean.is_none_or(|clean| clean < since));
            concerned += group.members.len();
            applied += group.members.len().saturating_sub(behind);
            // Who has everything is looked at only where somebody was denied something.
            let looked_at = if denied.is_empty() { behind } else { group.members.len() };
            for (at, (place, proxy)) in group.members.iter().enumerate().take(looked_at) {
                let told = match denied.get(&*proxy.name) {
                    Some(why) => {
                        applied -= usize::from(at >= behind);
                        Some((kind.info().name.to_owned(), (*why).to_owned()))
                    }
                    None if at >= behind => None,
                    None => proxy.refused.clone(),
                };
                if let Some((what, why)) = told
                    && refused.as_ref().is_none_or(|(first, _)| place < first)
                {
                    refused = Some((*place, (proxy.name.clone(), what, why)));
                }
            }
        }
        Self { invalid, warnings, applied, concerned, refused: refused.map(|(_, refused)| refused) }
    }

    /// The conditions that say so.
    pub(crate) fn conditions(&self, generation: i64) -> Vec<Condition> {
        let condition = |kind, status, reason: &str, message: String| Condition {
            kind,
            status,
            reason: reason.to_owned(),
            message: message.chars().take(LONGEST).collect(),
            generation,
            since: String::new(),
        };
        if let Some(why) = &self.invalid {
            return vec![
                condition(ACCEPTED, false, "Invalid", why.clone()),
                condition(PROGRAMMED, false, "Invalid", "not applied: the object is not accepted".to_owned()),
            ];
        }
        let count = format!("applied to {} of {} proxies", self.applied, self.concerned);
        let programmed = match &self.refused {
            _ if self.applied == self.concerned => condition(PROGRAMMED, true, "Programmed", count),
            Some((proxy, kind, why)) => {
                condition(PROGRAMMED, false, "Refused", format!("{count}; {proxy} refused {kind}: {why}"))
            }
            None => condition(PROGRAMMED, false, "Pending", count),
        };
        vec![condition(ACCEPTED, true, "Accepted", self.warnings.join("; ")), programmed]
    }
}

/// Whether these proxies' configuration may depend on the object: by namespace, selector and visibility.
fn concerns(kind: Kind, object: &Object, name: &Name, root: &str, proxy: &Group) -> bool {
    let namespace = match &object.export_to {
        Some(visible) => {
            visible.is_empty()
                || visible.iter().any(|v| v == "*" || *v == proxy.namespace || (v == "." && name.0 == proxy.namespace))
        }
        // A Gateway names its proxies by labels, wherever they are.
        None => kind.info().name == "Gateway" || name.0 == root || name.0 == proxy.namespace,
    };
    namespace && object.selector.iter().all(|(k, v)| proxy.labels.get(k) == Some(v))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;
    use crate::source::Change;

    fn proxy(name: &str, namespace: &str, clean: Option<u64>, refused: Option<&str>) -> Proxy {
        Proxy {
            name: format!("{name}.{namespace}"),
            namespace: namespace.into(),
            labels: Labels::from([("app".into(), name.into())]),
            clean,
            refused: refused.map(|why| ("LDS".into(), why.into())),
        }
    }

    fn told(kind: Kind, object: Value, proxies: &[Proxy]) -> Vec<(bool, String, String)> {
        told_without(kind, object, proxies, [])
    }

    fn told_without<const N: usize>(
        kind: Kind,
        object: Value,
        proxies: &[Proxy],
        denied: [(&str, &str); N],
    ) -> Vec<(bool, String, String)> {
        let mut ledger = Ledger::default();
        ledger.take(kind, &Change::Apply(object), 7, &[]);
        let (key, object) = ledger.all().next().expect("taken");
        let proxies = Proxies::of(proxies.to_vec());
        let verdict =
            Verdict::of(kind, object, &key.1, "istio-system", 5, [].into_iter(), &proxies, &HashMap::from(denied));
        verdict.conditions(1).into_iter().map(|c| (c.status, c.reason, c.message)).collect()
    }

    fn policy(namespace: &str, app: Option<&str>) -> Value {
        let selector = app.map(|app| json!({"matchLabels": {"app": app}}));
        json!({"kind": "PeerAuthentication", "metadata": {"name": "p", "namespace": namespace, "generation": 1},
               "spec": {"selector": selector, "mtls": {"mode": "STRICT"}}})
    }

    #[test]
    fn counts_the_proxies_it_concerns() {
        let proxies =
            [proxy("web", "shop", Some(5), None), proxy("db", "shop", Some(4), None), proxy("web", "bank", None, None)];
        let programmed = |namespace, app| told(Kind::PeerAuthentication, policy(namespace, app), &proxies)[1].clone();
        let said = |status, reason: &str, message: &str| (status, reason.to_owned(), message.to_owned());
        assert_eq!(programmed("istio-system", None), said(false, "Pending", "applied to 1 of 3 proxies"));
        assert_eq!(programmed("shop", None), said(false, "Pending", "applied to 1 of 2 proxies"));
        assert_eq!(programmed("shop", Some("web")), said(true, "Programmed", "applied to 1 of 1 proxies"));
        assert_eq!(programmed("shop", Some("nobody")), said(true, "Programmed", "applied to 0 of 0 proxies"));
    }

    #[test]
    fn tells_the_first_refusal_and_keeps_what_was_applied_before() {
        let refusing = [proxy("web", "shop", Some(4), Some("field x")), proxy("db", "shop", Some(5), Some("field y"))];
        let told = told(Kind::PeerAuthentication, policy("shop", None), &refusing);
        let message = "applied to 1 of 2 proxies; web.shop refused LDS: field x";
        assert_eq!(told[1], (false, "Refused".to_owned(), message.to_owned()));
    }

    #[test]
    fn many_of_a_kind_count_each_and_the_first_of_all_is_told() {
        let mut all: Vec<Proxy> = (0..6).map(|n| proxy("web", "shop", Some(3 + n % 3), None)).collect();
        all.insert(1, proxy("db", "shop", Some(4), Some("field y")));
        all[3].refused = Some(("CDS".into(), "field x".into()));
        all[3].clean = None;
        let said = |denied: &[(&str, &str)]| match denied {
            [] => told(Kind::PeerAuthentication, policy("shop", None), &all)[1].2.clone(),
            [one, ..] => told_without(Kind::PeerAuthentication, policy("shop", None), &all, [*one])[1].2.clone(),
        };
        assert_eq!(said(&[]), "applied to 1 of 7 proxies; db.shop refused LDS: field y");
        let denied = [("web.shop", "not possible")];
        assert_eq!(said(&denied), "applied to 0 of 7 proxies; web.shop refused PeerAuthentication: not possible");
    }

    #[test]
    fn visibility_counts_for_rules() {
        let proxies = [proxy("web", "shop", Some(5), None), proxy("web", "bank", Some(5), None)];
        let rule = |export: Value| json!({"kind": "DestinationRule", "metadata": {"name": "r", "namespace": "shop"}, "spec": {"host": "x", "exportTo": export}});
        for (export, count) in
            [(json!(null), 2), (json!(["*"]), 2), (json!(["."]), 1), (json!(["bank"]), 1), (json!(["x"]), 0)]
        {
            let told = told(Kind::DestinationRule, rule(export.clone()), &proxies);
            assert_eq!(told[1].2, format!("applied to {count} of {count} proxies"), "{export}");
        }
    }

    #[test]
    fn a_transition_keeps_its_time_while_nothing_turns() {
        let read = |status: &str| {
            Condition::read(
                &json!({"type": "Programmed", "status": status, "lastTransitionTime": "2026-01-01T00:00:00Z"}),
            )
        };
        let now = Condition { message: "other".into(), since: String::new(), ..read("True").expect("ours") };
        let time = |before: Option<Condition>| {
            let before: Vec<Condition> = before.into_iter().collect();
            now.json(&before, "now")["lastTransitionTime"].clone()
        };
        assert_eq!(time(read("True")), "2026-01-01T00:00:00Z");
        assert_eq!(time(read("False")), "now");
        assert_eq!(time(None), "now");
    }
}
