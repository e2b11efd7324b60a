//! ReplicaSets of a Deployment: one for each template that it has had, as `kubectl rollout history` and `undo` read them.
//!
//! Invariant: pure. Names, labels and annotations are Kubernetes'; the newest set is the one whose template is the Deployment's, and its revision
//! is the highest. A set counts pods, and makes none.

use serde_json::{Map, Value, json};

use super::Pod;
use crate::selector::Selectors;
use crate::store::name_of;

/// The label by which a set's pods are told from those of others.
pub(super) const HASH: &str = "pod-template-hash";
/// The annotation that numbers templates.
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Letters of a hash, as Kubernetes' safe encoding has them.
const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// What is to be written, in this order.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Steps {
    /// Sets to make.
    pub(super) create: Option<Value>,
    /// Sets as they should be.
    pub(super) put: Vec<Value>,
    /// Names of sets that history has no room for.
    pub(super) delete: Vec<String>,
    /// The Deployment's revision.
    pub(super) revision: String,
    /// The newest set's hash.
    pub(super) hash: String,
    /// Names of pods that are not wanted any more.
    pub(super) end: Vec<String>,
}

fn number(object: &Value, pointer: &str) -> Option<i64> {
    object.pointer(pointer).and_then(Value::as_i64)
}

fn annotation<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object.get("metadata")?.get("annotations")?.get(name)?.as_str()
}

fn revision(set: &Value) -> u64 {
    annotation(set, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Whether a set is this Deployment's.
pub(super) fn is_of(set: &Value, deployment: &Value) -> bool {
    let uid = deployment.pointer("/metadata/uid");
    let owners = set.pointer("/metadata/ownerReferences").and_then(Value::as_array).into_iter().flatten();
    uid.is_some() && owners.into_iter().any(|owner| owner.get("uid") == uid)
}

/// The hash that a set's pods carry.
pub(super) fn hash_of(set: &Value) -> &str {
    set.pointer("/metadata/labels").and_then(|labels| labels.get(HASH)).and_then(Value::as_str).unwrap_or_default()
}

/// A template without what a set adds to it.
fn bare(template: Option<&Value>) -> Value {
    let mut template = template.cloned().unwrap_or(Value::Null);
    if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.shift_remove(HASH);
    }
    template
}

/// A short word of a template and of how often that word was another's already.
fn hash(template: &Value, collisions: u64) -> String {
    let text = format!("{template}/{collisions}");
    let mut state: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in text.bytes() {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    // As long as Kubernetes' are: a number of 32 bits in decimal digits, each as a letter.
    let digits = ((state >> 32) ^ (state & 0xffff_ffff)).to_string();
    digits.bytes().filter_map(|byte| LETTERS.get(usize::from(byte) % LETTERS.len())).map(|b| char::from(*b)).collect()
}

fn put(object: &mut Value, path: [&str; 2], name: &str, value: Value) {
    let mut at = object;
    for field in path {
        let Some(map) = at.as_object_mut() else { return };
        at = map.entry(field).or_insert_with(|| json!({}));
    }
    if let Some(map) = at.as_object_mut() {
        map.insert(name.to_owned(), value);
    }
}

/// A Deployment as the owner of sets.
fn owner(deployment: &Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "name": name_of(deployment),
        "uid": deployment.pointer("/metadata/uid"), "controller": true, "blockOwnerDeletion": true,
    })
}

/// Makes a set the Deployment's, if it is nobody's.
fn own_it(set: &mut Value, deployment: &Value) {
    if !is_of(set, deployment)
        && let Some(metadata) = set.get_mut("metadata").and_then(Value::as_object_mut)
    {
        metadata.insert("ownerReferences".into(), json!([owner(deployment)]));
    }
}

/// A new set of the Deployment's template.
fn fresh(deployment: &Value, template: &Value, hash: &str) -> Value {
    let name = name_of(deployment);
    let mut template = template.clone();
    put(&mut template, ["metadata", "labels"], HASH, hash.into());
    let labels = template.pointer("/metadata/labels").cloned().unwrap_or_else(|| json!({}));
    let mut selector = deployment.pointer("/spec/selector").cloned().unwrap_or_else(|| json!({}));
    if let Some(map) = selector.as_object_mut() {
        let matching = map.entry("matchLabels").or_insert_with(|| json!({}));
        if let Some(matching) = matching.as_object_mut() {
            matching.insert(HASH.into(), hash.into());
        }
    }
    let annotations: Map<String, Value> = deployment
        .pointer("/metadata/annotations")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter(|(key, _)| *key != LAST_APPLIED && *key != REVISION)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let mut spec = json!({"replicas": 0, "selector": selector, "template": template});
    if let (Some(seconds), Some(map)) = (deployment.pointer("/spec/minReadySeconds"), spec.as_object_mut()) {
        map.insert("minReadySeconds".into(), seconds.clone());
    }
    json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {
            "name": format!("{name}-{hash}"), "namespace": deployment.pointer("/metadata/namespace"),
            "labels": labels, "annotations": annotations,
            "ownerReferences": [owner(deployment)],
        },
        "spec": spec,
    })
}

/// A set's status from its pods.
fn status(set: &Value, pods: &[(&String, &Pod)]) -> Value {
    let own = || pods.iter().filter(|(_, pod)| pod.hash == hash_of(set));
    let (all, ready) = (own().count(), own().filter(|(_, pod)| pod.ready).count());
    let generation = number(set, "/metadata/generation").unwrap_or(1);
    let mut status = json!({"replicas": all, "observedGeneration": generation, "terminatingReplicas": 0});
    if let Some(map) = status.as_object_mut() {
        for (field, count) in [("fullyLabeledReplicas", all), ("readyReplicas", ready), ("availableReplicas", ready)] {
            if count > 0 {
                map.insert(field.into(), json!(count));
            }
        }
    }
    status
}

/// Whether nobody has a set that this Deployment's selector finds, as one that was left behind by `--cascade=orphan`.
pub(super) fn is_orphan(set: &Value, selectors: &Selectors) -> bool {
    let owned = set.pointer("/metadata/ownerReferences").and_then(Value::as_array).is_some_and(|all| !all.is_empty());
    let going = set.pointer("/metadata/deletionTimestamp").is_some();
    !owned && !going && !hash_of(set).is_empty() && selectors.matches(set)
}

/// What the sets of a Deployment should become: `sets` are its own, and those that it takes to itself. `taken` tells names that others have;
/// `pods` are those that its selector finds.
pub(super) fn plan(
    deployment: &Value,
    sets: &[&Value],
    taken: impl Fn(&str) -> bool,
    pods: &[(&String, &Pod)],
) -> Steps {
    let template = bare(deployment.pointer("/spec/template"));
    let wanted = number(deployment, "/spec/replicas").unwrap_or(1);
    let newest = sets.iter().map(|set| revision(set)).max().unwrap_or(0);
    let current = sets.iter().find(|set| bare(set.pointer("/spec/template")) == template);
    let mut steps = Steps::default();
    let (current, number_now) = match current {
        Some(set) if revision(set) == newest && newest > 0 => ((*set).clone(), newest),
        // A template of before: it is the newest once more.
        Some(set) => ((*set).clone(), newest.saturating_add(1)),
        None => {
            let taken = |hash: &str| {
                let name = format!("{}-{hash}", name_of(deployment));
                taken(&name) || sets.iter().any(|set| hash_of(set) == hash)
            };
            let hash = (0..).map(|n| hash(&template, n)).find(|hash| !taken(hash)).unwrap_or_default();
            (fresh(deployment, &template, &hash), newest.saturating_add(1))
        }
    };
    steps.revision = number_now.to_string();
    hash_of(&current).clone_into(&mut steps.hash);
    let before = number(&current, "/spec/replicas").unwrap_or(0);
    let mut now = current.clone();
    for (name, value) in
        [(REVISION, number_now.to_string()), (DESIRED, wanted.to_string()), (MAXIMUM, most(deployment, wanted))]
    {
        put(&mut now, ["metadata", "annotations"], name, value.into());
    }
    if let Some(spec) = now.get_mut("spec").and_then(Value::as_object_mut) {
        spec.insert("replicas".into(), wanted.into());
    }
    if current.pointer("/metadata/uid").is_none() {
        steps.create = Some(now);
        return steps;
    }
    now["status"] = status(&now, pods);
    own_it(&mut now, deployment);
    if now != current {
        steps.put.push(now);
    }
    let own = || pods.iter().filter(|(_, pod)| pod.hash == steps.hash);
    let ready = own().filter(|(_, pod)| pod.ready).count();
    // Fewer are wanted than were: the last to come go first, those that are not ready before those that are.
    if let Some(more) =
        usize::try_from(wanted).ok().filter(|_| wanted < before).and_then(|w| own().count().checked_sub(w))
    {
        let mut all: Vec<_> = own().collect();
        all.sort_by(|a, b| (a.1.ready, &b.1.created, b.0).cmp(&(b.1.ready, &a.1.created, a.0)));
        steps.end.extend(all.into_iter().take(more).map(|(name, _)| (*name).clone()));
    }
    let replaced = i64::try_from(ready).unwrap_or(i64::MAX) >= wanted;
    let mut idle = Vec::new();
    for set in sets.iter().filter(|set| hash_of(set) != steps.hash) {
        let mut then = (*set).clone();
        let theirs: Vec<&String> =
            pods.iter().filter(|(_, pod)| pod.hash == hash_of(set)).map(|(name, _)| *name).collect();
        // They stay until those that replace them serve.
        if replaced {
            steps.end.extend(theirs.iter().map(|name| (*name).clone()));
        }
        if let Some(spec) = then.get_mut("spec").and_then(Value::as_object_mut) {
            spec.insert("replicas".into(), if replaced { 0 } else { theirs.len() }.into());
        }
        then["status"] = status(&then, pods);
        own_it(&mut then, deployment);
        if theirs.is_empty() {
            idle.push((revision(set), name_of(set).to_owned()));
        }
        if then != **set {
            steps.put.push(then);
        }
    }
    let room = number(deployment, "/spec/revisionHistoryLimit").and_then(|n| usize::try_from(n).ok()).unwrap_or(10);
    idle.sort_unstable();
    let over = idle.len().saturating_sub(room);
    steps.delete = idle.into_iter().take(over).map(|(_, name)| name).collect();
    steps.put.retain(|set| !steps.delete.iter().any(|name| name == name_of(set)));
    steps
}

/// How many pods there may be while templates change; the surge is a quarter unless told otherwise.
fn most(deployment: &Value, wanted: i64) -> String {
    let surge = deployment.pointer("/spec/strategy/rollingUpdate/maxSurge");
    let recreate = deployment.pointer("/spec/strategy/type").and_then(Value::as_str) == Some("Recreate");
    let more = match surge {
        _ if recreate => 0,
        Some(Value::Number(number)) => number.as_i64().unwrap_or(0),
        surge => {
            let percent = surge.and_then(Value::as_str).and_then(|text| text.strip_suffix('%')).unwrap_or("25");
            wanted.saturating_mul(percent.parse().unwrap_or(25)).saturating_add(99) / 100
        }
    };
    wanted.saturating_add(more).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(image: &str, replicas: i64) -> Value {
        json!({
            "metadata": {"name": "shop", "namespace": "a", "uid": "d-1", "annotations": {"kubernetes.io/change-cause": image, LAST_APPLIED: "{}"}},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "shop"}},
                "template": {"metadata": {"labels": {"app": "shop"}}, "spec": {"containers": [{"name": "shop", "image": image}]}}},
        })
    }

    /// Does what a plan says.
    fn store(sets: &mut Vec<Value>, steps: &Steps) {
        for mut set in steps.create.iter().chain(&steps.put).cloned() {
            set["metadata"]["uid"] = json!(format!("uid-{}", name_of(&set)));
            sets.retain(|s| name_of(s) != name_of(&set));
            sets.push(set);
        }
        sets.retain(|set| !steps.delete.iter().any(|name| name == name_of(set)));
    }

    fn settle(deployment: &Value, sets: &mut Vec<Value>, pods: &[(&String, &Pod)]) -> Steps {
        let mut all = Steps::default();
        for _ in 0..5 {
            let steps = plan(deployment, &sets.iter().collect::<Vec<_>>(), |_| false, pods);
            store(sets, &steps);
            all.end.extend(steps.end.clone());
            all.hash.clone_from(&steps.hash);
            all.revision.clone_from(&steps.revision);
            if steps.create.is_none() && steps.put.is_empty() && steps.delete.is_empty() {
                return all;
            }
        }
        panic!("it does not come to rest");
    }

    #[test]
    fn a_template_is_a_revision_and_an_old_one_comes_back_as_the_newest() {
        let (mut sets, none) = (Vec::new(), []);
        let first = settle(&deployment("x:1", 1), &mut sets, &none);
        assert_eq!((first.revision.as_str(), sets.len()), ("1", 1));
        assert_eq!(name_of(&sets[0]), format!("shop-{}", first.hash));
        assert_eq!(sets[0]["spec"]["selector"]["matchLabels"][HASH], first.hash.as_str());
        assert_eq!(annotation(&sets[0], "kubernetes.io/change-cause"), Some("x:1"));
        assert_eq!(annotation(&sets[0], LAST_APPLIED), None);
        assert_eq!(annotation(&sets[0], MAXIMUM), Some("2"));
        let second = settle(&deployment("x:2", 1), &mut sets, &none);
        assert_eq!((second.revision.as_str(), sets.len()), ("2", 2));
        let back = settle(&deployment("x:1", 1), &mut sets, &none);
        assert_eq!((back.revision.as_str(), back.hash, sets.len()), ("3", first.hash, 2));
        for n in 0..20 {
            settle(&deployment(&format!("y:{n}"), 1), &mut sets, &none);
        }
        assert_eq!(sets.len(), 11, "ten are kept beside the newest");
    }

    #[test]
    fn a_set_that_was_left_behind_is_taken_back() {
        let mut sets = Vec::new();
        settle(&deployment("x:1", 1), &mut sets, &[]);
        sets[0]["metadata"].as_object_mut().unwrap().shift_remove("ownerReferences");
        let selectors = Selectors::parse("pods", Some("app=shop"), None).unwrap();
        assert!(is_orphan(&sets[0], &selectors));
        let again = settle(&deployment("x:1", 1), &mut sets, &[]);
        assert!(is_of(&sets[0], &deployment("x:1", 1)) && !is_orphan(&sets[0], &selectors));
        assert_eq!((sets.len(), again.revision.as_str()), (1, "1"));
        // A name that somebody else has is not used.
        let other = plan(&deployment("x:1", 1), &[], |name| name == name_of(&sets[0]), &[]).create.unwrap();
        assert_ne!(name_of(&other), name_of(&sets[0]));
    }

    #[test]
    fn pods_of_before_go_when_those_that_replace_them_serve() {
        let mut sets = Vec::new();
        let one = settle(&deployment("x:1", 1), &mut sets, &[]).hash;
        let two = settle(&deployment("x:2", 1), &mut sets, &[]).hash;
        let pod = |hash: &str, ready| Pod { labels: Value::Null, hash: hash.to_owned(), ready, created: String::new() };
        let names = ["old".to_owned(), "new".to_owned()];
        let both = |ready| [(&names[0], pod(&one, true)), (&names[1], pod(&two, ready))];
        let run = |sets: &mut Vec<Value>, all: &[(&String, Pod)]| {
            let seen: Vec<(&String, &Pod)> = all.iter().map(|(name, pod)| (*name, pod)).collect();
            settle(&deployment("x:2", 1), sets, &seen)
        };
        assert!(run(&mut sets, &both(false)).end.is_empty());
        assert!(run(&mut sets, &both(true)).end.contains(&names[0]));
        let found = |hash: &str| sets.iter().find(|set| hash_of(set) == hash).unwrap();
        assert_eq!(found(&two)["status"]["readyReplicas"], 1);
        assert_eq!(found(&one)["spec"]["replicas"], 0);
    }

    #[test]
    fn fewer_replicas_end_pods_and_more_replicas_do_not() {
        let mut sets = Vec::new();
        let hash = settle(&deployment("x:1", 1), &mut sets, &[]).hash;
        let pod =
            |ready, created: &str| Pod { labels: Value::Null, hash: hash.clone(), ready, created: created.to_owned() };
        let names = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let (old, young, sick) = (pod(true, "1"), pod(true, "2"), pod(false, "0"));
        let seen = [(&names[0], &old), (&names[1], &young), (&names[2], &sick)];
        // More are run than are wanted: whoever runs them wants them.
        assert!(settle(&deployment("x:1", 1), &mut sets, &seen).end.is_empty());
        assert!(settle(&deployment("x:1", 3), &mut sets, &seen).end.is_empty());
        assert_eq!(settle(&deployment("x:1", 1), &mut sets, &seen).end, [names[2].clone(), names[1].clone()]);
    }
}
