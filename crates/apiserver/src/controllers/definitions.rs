//! CustomResourceDefinitions come into force, and take their objects with them when they go.
//!
//! Invariant: a definition is served before its status says `Established`; one that is going away is served until its
//! last object is gone, and its finalizer is what keeps it until then.
//! What it leaves to others: whether a definition is acceptable (`custom::check`).

use serde_json::{Value, json};
use tracing::debug;

use super::follow::Follower;
use crate::catalog::Resource;
use crate::custom::{self, FINALIZER};
use crate::error::{ApiError, ApiResult};
use crate::store::{DeleteOptions, Intent, Store, WriteOptions, name_of, namespace_of, rfc3339};

/// While objects with finalizers of their own keep a definition.
const LOOK_AGAIN: std::time::Duration = std::time::Duration::from_millis(500);

/// Serves what the stored definitions say. Called before the first request, and whenever one changes.
pub fn serve(store: &Store) {
    let definitions = store.list(custom::RESOURCE, None).items;
    store.catalog().set_custom(definitions.iter().filter_map(Resource::defined).collect());
}

/// Runs until the store is closed.
pub async fn run(store: Store) {
    let mut follower = Follower::new(&store, custom::RESOURCE);
    loop {
        let waiting = match round(&store).await {
            Ok(waiting) => waiting,
            Err(error) => {
                debug!(%error, "a definition could not be brought up to date");
                true
            }
        };
        let news = async {
            follower.next().await?;
            while follower.ready()?.is_some() {}
            Ok::<_, ApiError>(())
        };
        if waiting {
            match tokio::time::timeout(LOOK_AGAIN, news).await {
                Err(_) | Ok(Ok(())) => {}
                Ok(Err(_)) => return,
            }
        } else if news.await.is_err() {
            return;
        }
    }
}

/// Brings every definition's status up to date; true when one waits for its objects to go.
async fn round(store: &Store) -> ApiResult<bool> {
    let definitions = store.list(custom::RESOURCE, None).items;
    store.catalog().set_custom(definitions.iter().filter_map(Resource::defined).collect());
    let mut waiting = false;
    for definition in &definitions {
        if definition.pointer("/metadata/deletionTimestamp").is_some() {
            waiting |= !empty(store, definition).await?;
        } else {
            establish(store, definition, &definitions).await?;
        }
    }
    Ok(waiting)
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The names of this definition that an older one of its group has: the field and the name, in Kubernetes' order.
fn taken(definition: &Value, all: &[Value]) -> Vec<(&'static str, String)> {
    let group = text(definition, "/spec/group");
    let created = |d: &Value| (text(d, "/metadata/creationTimestamp").to_owned(), text(d, "/metadata/uid").to_owned());
    let others = || {
        let own = |d: &&Value| name_of(d) != name_of(definition);
        all.iter().filter(own).filter(|d| text(d, "/spec/group") == group && created(d) < created(definition))
    };
    let fields = ["singular", "kind", "listKind"].into_iter().filter_map(|field| {
        let name = text(definition, &format!("/spec/names/{field}"));
        let same = others().any(|d| text(d, &format!("/spec/names/{field}")) == name);
        same.then(|| (field, name.to_owned()))
    });
    fields.collect()
}

async fn establish(store: &Store, definition: &Value, all: &[Value]) -> ApiResult<()> {
    let refused = taken(definition, all);
    let now = rfc3339(store.now());
    let change = |old: Option<&Value>| {
        let mut new = old.ok_or_else(|| ApiError::not_found(custom::RESOURCE, name_of(definition)))?.clone();
        if new.pointer("/metadata/deletionTimestamp").is_some() {
            return Ok(Intent::Keep);
        }
        let status = status(&new, &refused, &now);
        if let Some(map) = new.as_object_mut() {
            map.insert("status".into(), status);
        }
        Ok(Intent::Put(new))
    };
    match store.modify(custom::RESOURCE, "", name_of(definition), WriteOptions::default(), change).await {
        Ok(_) | Err(ApiError::NotFound(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

fn status(definition: &Value, refused: &[(&str, String)], now: &str) -> Value {
    let old = |kind: &str| {
        let list = definition.pointer("/status/conditions").and_then(Value::as_array);
        list.into_iter().flatten().find(|c| text(c, "/type") == kind).cloned()
    };
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        let since = old(kind).filter(|c| text(c, "/status") == status);
        let since = since.map_or(now.to_owned(), |c| text(&c, "/lastTransitionTime").to_owned());
        json!({"type": kind, "status": status, "lastTransitionTime": since, "reason": reason, "message": message})
    };
    let conditions = match refused.last() {
        None => vec![
            condition("NamesAccepted", "True", "NoConflicts", "no conflicts found"),
            condition("Established", "True", "InitialNamesAccepted", "the initial names have been accepted"),
        ],
        Some((field, name)) => vec![
            condition(
                "NamesAccepted",
                "False",
                match *field {
                    "singular" => "SingularConflict",
                    "kind" => "KindConflict",
                    _ => "ListKindConflict",
                },
                &format!("{name:?} is already in use"),
            ),
            condition("Established", "False", "NotAccepted", "not all names are accepted"),
        ],
    };
    let mut stored: Vec<Value> =
        definition.pointer("/status/storedVersions").and_then(Value::as_array).cloned().unwrap_or_default();
    let versions = definition.pointer("/spec/versions").and_then(Value::as_array).into_iter().flatten();
    for version in versions.filter(|v| v.get("storage") == Some(&Value::Bool(true))) {
        let name = version.get("name").cloned().unwrap_or_default();
        if !stored.contains(&name) {
            stored.push(name);
        }
    }
    let mut names = definition.pointer("/spec/names").cloned().unwrap_or_default();
    if let Some(map) = names.as_object_mut() {
        for (field, _) in refused {
            map.shift_remove(*field);
        }
        map.entry("kind").or_insert_with(|| json!(""));
    }
    json!({"acceptedNames": names, "conditions": conditions, "storedVersions": stored})
}

/// Deletes the objects of a kind whose definition goes; true when the definition has gone, too.
async fn empty(store: &Store, definition: &Value) -> ApiResult<bool> {
    let id = name_of(definition);
    if store.catalog().get(id).is_some() {
        for object in store.list(id, None).items {
            if object.pointer("/metadata/deletionTimestamp").is_some() {
                continue;
            }
            match store.delete(id, namespace_of(&object), name_of(&object), &DeleteOptions::default()).await {
                Ok(_) | Err(ApiError::NotFound(_) | ApiError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if store.engine().count(id) > 0 {
            return Ok(false);
        }
    }
    let change = |old: Option<&Value>| {
        let mut new = old.ok_or_else(|| ApiError::not_found(custom::RESOURCE, id))?.clone();
        if let Some(Value::Array(list)) = new.pointer_mut("/metadata/finalizers") {
            list.retain(|f| f != FINALIZER);
        }
        Ok(Intent::Put(new))
    };
    match store.modify(custom::RESOURCE, "", id, WriteOptions::default(), change).await {
        Ok(_) | Err(ApiError::NotFound(_)) => {
            serve(store);
            Ok(store.get(custom::RESOURCE, "", id).is_none())
        }
        Err(error) => Err(error),
    }
}
