//! Server-side apply: who owns which field, conflicts, merging, and giving up fields.
//!
//! Invariant: a field belongs to every manager that set it to its present value; an apply changes nothing that another
//! manager owns unless forced, and removes only what its manager alone had applied. What writers inside the server set
//! has no owner; where an object has no owners at all, an apply finds them all to be `before-first-apply`'s.
//! What it leaves to others: storing, admission.

mod creation;
mod fields;
mod merge;
mod typed;

pub use creation::note_creation;
pub use typed::{printed, unfit};

use super::request::ResourcePath;
use crate::catalog::Resource;
use crate::error::{ApiError, ApiResult, Cause};
use crate::store::rfc3339;
use carrick_api::schema::Cursor;
use fields::FieldSet;
use serde_json::{Value, json};
use time::OffsetDateTime;

/// Owners of an object by update that are kept apart; older ones are put together.
const UPDATERS: usize = 10;
/// kubectl's manager when it applies on the server.
const KUBECTL: &str = "kubectl";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const BEFORE: &str = "before-first-apply";

/// Parameters of an apply.
pub struct Options<'a> {
    /// Required.
    pub manager: Option<&'a str>,
    /// Take fields from their owners.
    pub force: bool,
    /// For the entry's time.
    pub now: OffsetDateTime,
}

/// One entry of `metadata.managedFields`.
#[derive(Debug, Clone)]
struct Entry {
    manager: String,
    apply: bool,
    version: String,
    subresource: String,
    time: Value,
    fields: FieldSet,
}

impl Entry {
    fn parse(value: &Value) -> Option<Self> {
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
        Some(Self {
            manager: text("manager"),
            apply: text("operation") == "Apply",
            version: text("apiVersion"),
            subresource: text("subresource"),
            time: value.get("time").cloned().unwrap_or_default(),
            fields: FieldSet::parse(value.get("fieldsV1")?),
        })
    }

    fn value(&self) -> Value {
        let mut entry = json!({
            "manager": self.manager, "operation": if self.apply { "Apply" } else { "Update" },
            "apiVersion": self.version, "time": self.time, "fieldsType": "FieldsV1", "fieldsV1": self.fields.value(),
        });
        if !self.subresource.is_empty()
            && let Some(map) = entry.as_object_mut()
        {
            map.insert("subresource".into(), json!(self.subresource));
        }
        entry
    }
}

fn entries(object: &Value) -> Vec<Entry> {
    let list = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Entry::parse).filter(|e| !e.fields.is_empty()).collect()
}

fn store_entries(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|e| !e.fields.is_empty());
    // Applied ones first, then by time, as Kubernetes lists them.
    entries.sort_by(|a, b| b.apply.cmp(&a.apply).then_with(|| a.time.as_str().cmp(&b.time.as_str())));
    while entries.iter().filter(|e| !e.apply).count() > UPDATERS {
        let mut old = entries.iter().enumerate().filter(|(_, e)| !e.apply).map(|(i, _)| i);
        let (Some(first), Some(second)) = (old.next(), old.next()) else { break };
        let gone = entries.remove(first);
        if let Some(entry) = entries.get_mut(second.saturating_sub(1)) {
            entry.fields = entry.fields.union(&gone.fields);
            entry.manager = "ancient-changes".into();
        }
    }
    let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if entries.is_empty() {
        meta.shift_remove("managedFields");
    } else {
        meta.insert("managedFields".into(), entries.iter().map(Entry::value).collect());
    }
}

fn cursor<'a>(resource: &'a Resource, path: &ResourcePath) -> Cursor<'a> {
    resource.schema(&path.version).cursor()
}

/// What `object` sets, without the fields nobody owns.
fn owned(resource: &Resource, path: &ResourcePath, object: &Value) -> FieldSet {
    FieldSet::of(&ownable(resource, path, object), Some(cursor(resource, path)))
}

/// The part of an object that has owners; only status for the status subresource, never status otherwise.
fn ownable(resource: &Resource, path: &ResourcePath, object: &Value) -> Value {
    let mut copy = object.clone();
    if let Some(map) = copy.as_object_mut() {
        map.shift_remove("apiVersion");
        map.shift_remove("kind");
        match path.subresource.as_str() {
            "" if resource.has_status => {
                map.shift_remove("status");
            }
            "" => {}
            only => map.retain(|key, _| key == only),
        }
        if let Some(meta) = map.get_mut("metadata").and_then(Value::as_object_mut) {
            const OWNED: [&str; 5] = ["labels", "annotations", "finalizers", "ownerReferences", "generateName"];
            meta.retain(|key, _| OWNED.contains(&key.as_str()));
            if meta.is_empty() {
                map.shift_remove("metadata");
            }
        }
    }
    copy
}

/// Notes the fields that a write other than an apply has changed; for a creation `old` is an empty object.
pub fn track(
    resource: &Resource,
    path: &ResourcePath,
    manager: &str,
    old: &Value,
    new: &mut Value,
    now: OffsetDateTime,
) {
    let sent_empty = new.pointer("/metadata/managedFields").and_then(Value::as_array).is_some_and(|l| {
        l.is_empty()
            || (l.len() == 1 && l.first().is_some_and(|e| e.as_object().is_some_and(serde_json::Map::is_empty)))
    });
    if sent_empty {
        // An explicitly empty list makes everybody forget.
        return store_entries(new, Vec::new());
    }
    // Clients may correct the list (kubectl does, when it changes its way of applying).
    let given = new.pointer("/metadata/managedFields").is_some();
    let mut list = if given { entries(new) } else { entries(old) };
    let at = Some(cursor(resource, path));
    let (changed, removed) = FieldSet::compare(&ownable(resource, path, old), &ownable(resource, path, new), at);
    if changed.is_empty() && removed.is_empty() {
        return store_entries(new, list);
    }
    for entry in &mut list {
        entry.fields = entry.fields.minus(&removed);
        let own = !entry.apply && entry.manager == manager && entry.subresource == path.subresource;
        if !own {
            entry.fields = entry.fields.minus(&changed);
        }
    }
    if !changed.is_empty() {
        let version = resource.api_version(&path.version);
        let own = list.iter_mut().find(|e| !e.apply && e.manager == manager && e.subresource == path.subresource);
        match own {
            Some(entry) => {
                entry.fields = entry.fields.union(&changed);
                entry.time = json!(rfc3339(now));
                entry.version = version;
            }
            None => list.push(Entry {
                manager: manager.to_owned(),
                apply: false,
                version,
                subresource: path.subresource.clone(),
                time: json!(rfc3339(now)),
                fields: changed,
            }),
        }
    }
    store_entries(new, list);
}

/// The object after `manager` applied `config` on `old`.
///
/// # Errors
/// `BadRequest` without a manager, `ApplyConflict`.
pub fn apply(
    resource: &Resource,
    path: &ResourcePath,
    old: Option<&Value>,
    config: Value,
    options: &Options<'_>,
) -> ApiResult<Value> {
    let Some(manager) = options.manager else {
        let cause = Cause::required("fieldManager", "is required for apply patch");
        return Err(ApiError::invalid("meta.k8s.io", "PatchOptions", "", vec![cause]));
    };
    if config.pointer("/metadata/managedFields").and_then(Value::as_array).is_some_and(|l| !l.is_empty()) {
        return Err(ApiError::BadRequest("metadata.managedFields must be nil".into()));
    }
    let at = Some(cursor(resource, path));
    let applied = owned(resource, path, &config);
    let mut list = old.map(entries).unwrap_or_default();
    if let Some(old) = old
        && list.is_empty()
    {
        list.push(Entry {
            manager: BEFORE.into(),
            apply: false,
            version: resource.api_version(&path.version),
            subresource: String::new(),
            time: json!(rfc3339(options.now)),
            fields: owned(resource, &ResourcePath { subresource: String::new(), ..path.clone() }, old),
        });
    }
    let is_own = |e: &Entry| e.apply && e.manager == manager && e.subresource == path.subresource;
    let previous = list.iter().find(|e| is_own(e)).cloned();
    let nothing = json!({});
    let base = old.unwrap_or(&nothing);
    let taken = applied.filter(&|steps| {
        let (have, want) = (fields::lookup(base, steps, at), fields::lookup(&config, steps, at));
        have.is_some() && have != want
    });
    let changing_over = if manager == KUBECTL { last_applied(resource, path, base, at) } else { FieldSet::default() };
    let mut causes = Vec::new();
    for entry in list.iter_mut().filter(|e| !is_own(e)) {
        let conflict = entry.fields.intersection(&taken);
        if conflict.is_empty() {
            continue;
        }
        let refused = if options.force { FieldSet::default() } else { conflict.minus(&changing_over) };
        entry.fields = entry.fields.minus(&conflict);
        let by = if entry.apply { String::new() } else { format!(" using {}", entry.version) };
        for field in refused.paths() {
            causes.push(Cause {
                reason: "FieldManagerConflict",
                message: format!("conflict with {:?}{by}", entry.manager),
                field,
            });
        }
    }
    if !causes.is_empty() {
        let fields: Vec<&str> = causes.iter().map(|c| c.field.as_str()).collect();
        let (count, plural) = (causes.len(), if causes.len() == 1 { "" } else { "s" });
        let with = causes.first().map_or("", |c| c.message.as_str());
        let message = if count == 1 {
            format!("Apply failed with 1 conflict: {with}: {}", fields.concat())
        } else {
            format!("Apply failed with {count} conflict{plural}: {}", lines(&causes))
        };
        return Err(ApiError::ApplyConflict { message, causes });
    }
    let mut new = base.clone();
    merge::merge(&mut new, &config, at);
    if let Some(previous) = &previous {
        // What somebody sets a part of stays.
        let mut gone = previous.fields.minus(&applied.with_parents());
        for entry in list.iter().filter(|e| !is_own(e)) {
            gone = gone.minus(&entry.fields.with_parents());
        }
        merge::remove(&mut new, &gone, at);
    }
    list.retain(|e| !is_own(e));
    let version = resource.api_version(&path.version);
    let time = match previous {
        // Applying the same again changes nothing, not even the time.
        Some(p) if p.fields == applied && p.version == version => p.time,
        _ => json!(rfc3339(options.now)),
    };
    let subresource = path.subresource.clone();
    list.push(Entry { manager: manager.to_owned(), apply: true, version, subresource, time, fields: applied });
    store_entries(&mut new, list);
    Ok(new)
}

/// What kubectl's client-side apply had set and nobody has changed since: kubectl may take it when it goes over to
/// server-side apply.
fn last_applied(resource: &Resource, path: &ResourcePath, object: &Value, at: Option<Cursor<'_>>) -> FieldSet {
    let annotation = object.pointer("/metadata/annotations").and_then(|a| a.get(LAST_APPLIED)).and_then(Value::as_str);
    let Some(config) = annotation.and_then(|text| serde_json::from_str::<Value>(text).ok()) else {
        return FieldSet::default();
    };
    owned(resource, path, &config)
        .filter(&|steps| fields::lookup(&config, steps, at) == fields::lookup(object, steps, at))
}

fn lines(causes: &[Cause]) -> String {
    let mut text = String::new();
    let mut with = "";
    for cause in causes {
        if cause.message != with {
            with = &cause.message;
            if !text.is_empty() {
                text.push('\n');
            }
            let all = causes.iter().filter(|c| c.message == with).count() > 1;
            let with = if all { with.replacen("conflict ", "conflicts ", 1) } else { with.to_owned() };
            text.push_str(&format!("{with}:"));
        }
        text.push_str(&format!("\n- {}", cause.field));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;

    struct Bench {
        catalog: Catalog,
        object: Option<Value>,
    }

    impl Bench {
        fn apply(&mut self, manager: &str, config: Value, force: bool) -> ApiResult<Value> {
            let resource = self.catalog.get("services").unwrap().clone();
            let path = ResourcePath {
                version: "v1".into(),
                resource: "services".into(),
                name: "s".into(),
                ..Default::default()
            };
            let options = Options { manager: Some(manager), force, now: OffsetDateTime::UNIX_EPOCH };
            let new = apply(&resource, &path, self.object.as_ref(), config, &options)?;
            self.object = Some(new.clone());
            Ok(new)
        }

        fn update(&mut self, manager: &str, change: impl FnOnce(&mut Value)) {
            let resource = self.catalog.get("services").unwrap().clone();
            let path = ResourcePath {
                version: "v1".into(),
                resource: "services".into(),
                name: "s".into(),
                ..Default::default()
            };
            let old = self.object.clone().unwrap();
            let mut new = old.clone();
            change(&mut new);
            track(&resource, &path, manager, &old, &mut new, OffsetDateTime::UNIX_EPOCH);
            self.object = Some(new);
        }
    }

    fn bench() -> Bench {
        Bench { catalog: Catalog::of(carrick_api::kinds::registry()), object: None }
    }

    fn config(labels: Value, ports: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "labels": labels}, "spec": {"ports": ports}})
    }

    #[test]
    fn two_managers_share_an_object() {
        let mut bench = bench();
        bench.apply("a", config(json!({"x": "1"}), json!([{"port": 80, "protocol": "TCP"}])), false).unwrap();
        let both = bench
            .apply("b", config(json!({"y": "2"}), json!([{"port": 81, "protocol": "TCP", "name": "q"}])), false)
            .unwrap();
        assert_eq!(both["metadata"]["labels"], json!({"x": "1", "y": "2"}));
        assert_eq!(both["spec"]["ports"].as_array().unwrap().len(), 2);
        // Giving up what it had removes it, and only that.
        let left = bench.apply("a", config(json!({}), json!([])), false).unwrap();
        assert_eq!(left["metadata"]["labels"], json!({"y": "2"}));
        assert_eq!(left["spec"]["ports"], json!([{"port": 81, "protocol": "TCP", "name": "q"}]));
    }

    #[test]
    fn conflicts_name_field_and_owner() {
        let mut bench = bench();
        bench.apply("a", config(json!({"x": "1"}), json!([])), false).unwrap();
        let error = bench.apply("b", config(json!({"x": "2"}), json!([])), false).unwrap_err();
        assert_eq!(error.to_string(), "Apply failed with 1 conflict: conflict with \"a\": .metadata.labels.x");
        assert_eq!(error.code(), 409);
        let forced = bench.apply("b", config(json!({"x": "2"}), json!([])), true).unwrap();
        assert_eq!(forced["metadata"]["labels"]["x"], "2");
        // The loser no longer owns it, so its next apply without the field leaves it.
        let after = bench.apply("a", config(json!({}), json!([])), false).unwrap();
        assert_eq!(after["metadata"]["labels"]["x"], "2");
    }

    #[test]
    fn updates_take_over_and_equal_values_share() {
        let mut bench = bench();
        bench.apply("a", config(json!({"x": "1"}), json!([])), false).unwrap();
        bench.apply("b", config(json!({"x": "1"}), json!([])), false).unwrap();
        bench.update("kubectl-label", |o| o["metadata"]["labels"]["x"] = json!("3"));
        let error = bench.apply("a", config(json!({"x": "1"}), json!([])), false).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Apply failed with 1 conflict: conflict with \"kubectl-label\" using v1: .metadata.labels.x"
        );
    }

    #[test]
    fn what_is_one_whole_is_replaced() {
        let mut bench = bench();
        let config = |selector: Value| json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"selector": selector}});
        bench.apply("a", config(json!({"app": "x"})), false).unwrap();
        let error = bench.apply("b", config(json!({"tier": "y"})), false).unwrap_err();
        assert_eq!(error.to_string(), "Apply failed with 1 conflict: conflict with \"a\": .spec.selector");
        let forced = bench.apply("b", config(json!({"tier": "y"})), true).unwrap();
        assert_eq!(forced["spec"]["selector"], json!({"tier": "y"}));
    }

    #[test]
    fn a_map_goes_with_its_last_key_only() {
        let mut bench = bench();
        bench.apply("a", config(json!({"x": "1"}), json!([])), false).unwrap();
        bench.update("b", |o| o["metadata"]["annotations"] = json!({"n": "1"}));
        let managed = bench.object.as_ref().unwrap()["metadata"]["managedFields"].clone();
        assert_eq!(managed[1]["fieldsV1"], json!({"f:metadata": {"f:annotations": {".": {}, "f:n": {}}}}), "{managed}");
        // As kubectl does when it goes over to server-side apply: what it had set by updates was applied.
        bench.update("b", |o| {
            for entry in o["metadata"]["managedFields"].as_array_mut().unwrap() {
                entry["operation"] = json!("Apply");
            }
        });
        let kept = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "annotations": {"n": "1"}}});
        assert_eq!(bench.apply("b", kept, false).unwrap()["metadata"]["annotations"], json!({"n": "1"}));
        let none = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}});
        assert_eq!(bench.apply("b", none, false).unwrap()["metadata"].get("annotations"), None);
    }

    #[test]
    fn the_same_again_changes_nothing() {
        let mut bench = bench();
        let one = bench.apply("a", config(json!({"x": "1"}), json!([{"port": 80, "protocol": "TCP"}])), false).unwrap();
        let two = bench.apply("a", config(json!({"x": "1"}), json!([{"port": 80, "protocol": "TCP"}])), false).unwrap();
        assert_eq!(one, two);
    }
}
