//! From a WorkloadGroup and what a machine tells of itself to its WorkloadEntry (spec §11.8), and to what it is told when it joins.
//!
//! Invariant: pure. Identity is never taken from the machine's words: the entry's service account and namespace are the group's, which the
//! caller's certificate has to name.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Map, Value, json};

/// Which group made an entry.
pub const GROUP: &str = "istio.io/autoRegistrationGroup";
/// Which control plane its machine is connected to.
pub const CONTROLLER: &str = "istio.io/workloadController";
/// Since when.
pub const CONNECTED: &str = "istio.io/connectedAt";
/// Since when it is connected to none.
pub const DISCONNECTED: &str = "istio.io/disconnectedAt";
/// Whether health is checked.
pub const CHECKED: &str = "proxy.istio.io/health-checks-enabled";

/// Longest name of an object.
const MAX_NAME: usize = 253;

/// What a machine tells.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Its address.
    pub ip: Option<IpAddr>,
    /// Its network; empty when it says nothing.
    pub network: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// `region/zone/subzone`; empty when it says nothing.
    pub locality: String,
    /// Whether it checks its own health.
    pub checked: bool,
}

/// The entry's name: the last 253 characters of group, address and network.
pub fn name(group: &str, ip: IpAddr, network: &str) -> String {
    let network = if network.is_empty() { String::new() } else { format!("-{network}") };
    let name = format!("{group}-{}{network}", ip.to_string().replace(':', "-"));
    let cut = name.len().saturating_sub(MAX_NAME);
    name.get(cut..).unwrap_or(&name).trim_start_matches(['-', '.']).to_owned()
}

/// The service account of a group's workloads.
pub fn account(group: &Value) -> &str {
    group
        .pointer("/spec/template/serviceAccount")
        .and_then(Value::as_str)
        .filter(|a| !a.is_empty())
        .unwrap_or("default")
}

/// The entry, without the annotations that say to whom it is connected.
pub fn entry(group: &Value, name: &str, facts: &Facts) -> Value {
    let text = |path: &str| group.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let mut spec = group.pointer("/spec/template").and_then(Value::as_object).cloned().unwrap_or_default();
    let labels = labels(group, &facts.labels);
    spec.insert("address".to_owned(), json!(facts.ip.map(|ip| ip.to_string()).unwrap_or_default()));
    spec.insert("serviceAccount".to_owned(), json!(account(group)));
    spec.insert("labels".to_owned(), json!(labels));
    for (key, value) in [("network", &facts.network), ("locality", &facts.locality)] {
        if !value.is_empty() {
            spec.insert(key.to_owned(), json!(value));
        }
    }
    let mut annotations = map(group.pointer("/spec/metadata/annotations"));
    annotations.insert(GROUP.to_owned(), text("/metadata/name").to_owned());
    if facts.checked {
        annotations.insert(CHECKED.to_owned(), "true".to_owned());
    }
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {
            "name": name,
            "namespace": text("/metadata/namespace"),
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [{
                "apiVersion": "networking.istio.io/v1",
                "kind": "WorkloadGroup",
                "name": text("/metadata/name"),
                "uid": text("/metadata/uid"),
                "controller": true,
            }],
        },
        "spec": spec,
    })
}

/// What a machine is told of its group when it joins.
pub fn profile(group: &Value, trust_domain: &str, cluster: &str, domain: &str) -> Value {
    let text = |path: &str| group.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let mut profile = Map::new();
    for (key, value) in [
        ("group", text("/metadata/name")),
        ("namespace", text("/metadata/namespace")),
        ("serviceAccount", account(group)),
        ("network", text("/spec/template/network")),
        ("locality", text("/spec/template/locality")),
        ("trustDomain", trust_domain),
        ("cluster", cluster),
        ("domain", domain),
    ] {
        profile.insert(key.to_owned(), json!(value));
    }
    profile.insert("labels".to_owned(), json!(labels(group, &BTreeMap::new())));
    profile.insert("annotations".to_owned(), json!(map(group.pointer("/spec/metadata/annotations"))));
    for (key, path) in [("ports", "/spec/template/ports"), ("probe", "/spec/probe")] {
        if let Some(value) = group.pointer(path).filter(|value| !value.is_null()) {
            profile.insert(key.to_owned(), value.clone());
        }
    }
    Value::Object(profile)
}

/// Template, then the group's metadata, then the machine: the later wins.
fn labels(group: &Value, own: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut labels = map(group.pointer("/spec/template/labels"));
    labels.extend(map(group.pointer("/spec/metadata/labels")));
    labels.extend(own.iter().map(|(k, v)| (k.clone(), v.clone())));
    labels
}

fn map(value: Option<&Value>) -> BTreeMap<String, String> {
    let fields = value.and_then(Value::as_object).into_iter().flatten();
    fields.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group() -> Value {
        json!({
            "metadata": {"name": "ledger", "namespace": "gopay", "uid": "u1"},
            "spec": {
                "metadata": {"labels": {"app": "ledger", "tier": "group"}, "annotations": {"team": "pay"}},
                "template": {"serviceAccount": "ledger", "labels": {"tier": "template", "x": "y"}, "ports": {"http": 8080}, "network": "dc"},
                "probe": {"httpGet": {"port": 8080}},
            },
        })
    }

    #[test]
    fn names_as_istio_makes_them() {
        assert_eq!(name("ledger", "192.0.2.7".parse().unwrap(), ""), "ledger-192.0.2.7");
        assert_eq!(name("ledger", "2001:db8::7".parse().unwrap(), "dc-1"), "ledger-2001-db8--7-dc-1");
        let long = name(&"g".repeat(260), "192.0.2.7".parse().unwrap(), "");
        assert!(long.len() == 253 && long.ends_with("g-192.0.2.7"), "{long}");
    }

    #[test]
    fn the_machine_has_the_last_word_on_labels_and_none_on_its_account() {
        let facts = Facts {
            ip: Some("192.0.2.7".parse().unwrap()),
            labels: [("tier".to_owned(), "machine".to_owned())].into(),
            locality: "eu/a/1".into(),
            checked: true,
            ..Facts::default()
        };
        let made = entry(&group(), "ledger-192.0.2.7", &facts);
        let labels = json!({"app": "ledger", "tier": "machine", "x": "y"});
        assert_eq!((&made["spec"]["labels"], &made["metadata"]["labels"]), (&labels, &labels));
        assert_eq!(made["spec"]["address"], "192.0.2.7");
        assert_eq!((&made["spec"]["network"], &made["spec"]["locality"]), (&json!("dc"), &json!("eu/a/1")));
        assert_eq!(made["spec"]["serviceAccount"], "ledger");
        assert_eq!(made["spec"]["ports"], json!({"http": 8080}));
        let annotations = json!({"team": "pay", GROUP: "ledger", CHECKED: "true"});
        assert_eq!(made["metadata"]["annotations"], annotations);
        assert_eq!(made["metadata"]["ownerReferences"][0]["uid"], "u1");
        let bare = json!({"metadata": {"name": "g", "namespace": "n"}, "spec": {"template": {}}});
        assert_eq!(entry(&bare, "g-1", &Facts::default())["spec"]["serviceAccount"], "default");
    }

    #[test]
    fn a_profile_tells_what_the_machine_needs() {
        let told = profile(&group(), "cluster.local", "Kubernetes", "cluster.local");
        assert_eq!(told["labels"], json!({"app": "ledger", "tier": "group", "x": "y"}));
        assert_eq!((&told["ports"], &told["probe"]), (&json!({"http": 8080}), &json!({"httpGet": {"port": 8080}})));
        assert_eq!(
            (&told["group"], &told["serviceAccount"], &told["network"]),
            (&json!("ledger"), &json!("ledger"), &json!("dc"))
        );
    }
}
