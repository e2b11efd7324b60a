//! The checker over the store's own interface, without HTTP.
//!
//! Invariant: as over HTTP, a watcher that fell behind is told so and nothing else.

use super::run::{Access, Answer, Failure, Next, Stream, Write};
use super::{Event, Held, Kind};
use crate::error::{ApiError, ApiResult};
use crate::store::{DeleteOptions, EventType, Intent, Store, Watch, WriteOptions, name_of, resource_version_of};
use serde_json::{Value, json};

const RESOURCE: &str = "configmaps";
const NAMESPACE: &str = "default";

/// A store, and what its objects are called.
#[derive(Clone)]
pub struct StoreAccess {
    store: Store,
    prefix: String,
}

impl StoreAccess {
    /// Objects are config maps in `default` whose names begin with `prefix`.
    pub fn new(store: Store, prefix: &str) -> Self {
        Self { store, prefix: prefix.to_owned() }
    }

    fn name(&self, object: u32) -> String {
        format!("{}{object}", self.prefix)
    }
}

/// Object and content of a config map of this checker.
pub(super) fn read(object: &Value, prefix: &str) -> Option<(u32, Held)> {
    let number = name_of(object).strip_prefix(prefix)?.parse().ok()?;
    let revision = resource_version_of(object)?;
    let content = object.pointer("/data/n").and_then(Value::as_str)?.parse().ok()?;
    Some((number, Held { revision, number: content }))
}

fn failure(error: ApiError) -> Failure {
    match error {
        ApiError::NotFound(_) | ApiError::AlreadyExists(_) | ApiError::Conflict { .. } => Failure::Refused,
        ApiError::Timeout { .. } => Failure::Doubtful(error.to_string()),
        ApiError::Unavailable(_) => Failure::Doubtful(error.to_string()),
        other => Failure::Broken(other.to_string()),
    }
}

impl Access for StoreAccess {
    type Stream = StoreStream;

    async fn write(&self, write: &Write) -> Result<Answer, Failure> {
        let name = self.name(write.object());
        let body = |number: u64| {
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": NAMESPACE},
                "data": {"n": number.to_string()}})
        };
        let answered = |object: &Value| {
            read(object, &self.prefix).map(|(_, held)| Answer::Put(held)).ok_or(Failure::Broken("no answer".into()))
        };
        match write {
            Write::Create { number, .. } => {
                let made = self.store.create(RESOURCE, body(*number)).await;
                answered(&made.map_err(failure)?)
            }
            Write::Replace { number, .. } => {
                let change = |old: Option<&Value>| -> ApiResult<Intent> {
                    old.map(|_| Intent::Put(body(*number))).ok_or_else(|| ApiError::not_found(RESOURCE, &name))
                };
                let written = self.store.modify(RESOURCE, NAMESPACE, &name, WriteOptions::default(), change).await;
                answered(&written.map_err(failure)?.object)
            }
            Write::Exchange { number, revision, .. } => {
                let mut object = body(*number);
                object["metadata"]["resourceVersion"] = revision.to_string().into();
                answered(&self.store.update(RESOURCE, object).await.map_err(failure)?)
            }
            Write::Remove { revision, .. } => {
                let options =
                    DeleteOptions { resource_version: Some(revision.to_string()), ..DeleteOptions::default() };
                let gone = self.store.delete(RESOURCE, NAMESPACE, &name, &options).await;
                gone.map(|_| Answer::Removed).map_err(failure)
            }
        }
    }

    async fn list(&self) -> Result<(u64, Vec<(u32, Held)>), Failure> {
        self.store.engine().fresh().await.map_err(|e| Failure::Doubtful(e.to_string()))?;
        let list = self.store.list(RESOURCE, Some(NAMESPACE));
        Ok((list.revision, list.items.iter().filter_map(|o| read(o, &self.prefix)).collect()))
    }

    async fn watch(&self, since: u64) -> Result<StoreStream, Failure> {
        match self.store.watch(RESOURCE, since) {
            Ok(watch) => Ok(StoreStream { watch: Some(watch), prefix: self.prefix.clone() }),
            Err(ApiError::Expired(_)) => Ok(StoreStream { watch: None, prefix: self.prefix.clone() }),
            Err(error) => Err(failure(error)),
        }
    }
}

/// A place in the store's history.
pub struct StoreStream {
    /// `None` when it was too old from the start.
    watch: Option<Watch>,
    prefix: String,
}

impl Stream for StoreStream {
    async fn next(&mut self) -> Next {
        let Some(watch) = self.watch.as_mut() else { return Next::Expired };
        loop {
            let event = match watch.next().await {
                Ok(event) => event,
                Err(ApiError::Expired(_)) => return Next::Expired,
                Err(_) => return Next::Ended,
            };
            let Some((object, held)) = read(&event.object, &self.prefix) else { continue };
            let kind = match event.kind {
                EventType::Added => Kind::Added,
                EventType::Modified => Kind::Modified,
                EventType::Deleted => Kind::Deleted,
            };
            return Next::Event(Event { revision: held.revision, kind, object, number: held.number });
        }
    }
}
