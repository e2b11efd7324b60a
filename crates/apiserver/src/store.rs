//! Kubernetes' object semantics over revisioned bytes: metadata, optimistic concurrency, deletion, watches of objects.
//!
//! Invariant: objects are stored in their storage version, without `resourceVersion` (it is the revision); identity
//! fields (uid, creationTimestamp, …) are set here and nowhere else. Reads are synchronous and see the last durable
//! state; writes return when they are durable.
//! What it leaves to others: HTTP, authorization, admission (`rest`), order and durability (`storage`).

mod claims;
mod delete;
mod metadata;
mod watch;

pub use claims::{Claim, held};
pub use delete::{DeleteOptions, Deleted};
pub use metadata::{
    api_version_of, causes as metadata_causes, generated, name_of, namespace_of, resource_version_of, rfc3339,
};
pub use watch::{Event, EventType, Watch};

use crate::catalog::{Catalog, Resource};
use crate::error::{ApiError, ApiResult, Cause, Subject};
use crate::storage::{Change, Engine, Expect, Key, Op, Record, StorageError};
use bytes::Bytes;
use carrick_runtime::clock::SharedClock;
use serde_json::Value;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::Mutex;

/// Conflicts a writer without an own resourceVersion survives before the client is told.
const WRITE_ATTEMPTS: usize = 64;
/// Queues of losers; different keys may share one.
const TURNS: usize = 64;
/// How long an Event is kept after it was last written, as in Kubernetes.
pub(crate) const EVENT_LIFE: Duration = Duration::from_secs(3600);

/// For how long the objects of a resource are kept, if not for good.
fn ttl(resource: &str) -> Option<Duration> {
    matches!(resource, "events" | "events.events.k8s.io").then_some(EVENT_LIFE)
}

/// A list at one revision.
#[derive(Debug, Clone)]
pub struct List {
    /// `metadata.resourceVersion` of the list; a watch from here misses nothing.
    pub revision: u64,
    /// The objects, by namespace and name.
    pub items: Vec<Value>,
}

/// Handle to all objects; clones share them.
#[derive(Clone)]
pub struct Store {
    engine: Engine,
    catalog: Catalog,
    clock: SharedClock,
    /// Writers that lost a race queue here, by key, so that each of many gets its turn.
    turns: Arc<[Mutex<()>; TURNS]>,
}

/// What a read-modify-write wants.
pub enum Intent {
    /// Store this object.
    Put(Value),
    /// Leave everything as it is.
    Keep,
}

/// How a write is to be done.
#[derive(Debug, Clone, Copy, Default)]
pub struct WriteOptions {
    /// Go through everything, store nothing.
    pub dry_run: bool,
}

/// What a write did.
#[derive(Debug, Clone)]
pub struct Written {
    /// The object as it is now (with `dry_run`: as it would be).
    pub object: Value,
    /// It was not there before.
    pub created: bool,
}

impl Store {
    /// A store over a running engine.
    pub fn new(engine: Engine, catalog: Catalog, clock: SharedClock) -> Self {
        Self { engine, catalog, clock, turns: Arc::new(std::array::from_fn(|_| Mutex::new(()))) }
    }

    /// All served resources.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Wall time.
    pub fn now(&self) -> OffsetDateTime {
        self.clock.now().into()
    }

    /// The clock itself.
    pub fn clock(&self) -> &SharedClock {
        &self.clock
    }

    /// Whether the last write reached the disk.
    pub fn healthy(&self) -> bool {
        self.engine.healthy()
    }

    /// Last visible revision.
    pub fn revision(&self) -> u64 {
        self.engine.revision()
    }

    /// The layer below, for paged and historical reads.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Returns when everything that was acknowledged before, by this server or another one over the same storage, is seen
    /// by reads here.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout` when the storage is elsewhere and does not answer.
    pub async fn fresh(&self) -> ApiResult<()> {
        self.engine.fresh().await.map_err(|e| storage_error("", "", e))
    }

    fn resource(&self, resource: &str) -> ApiResult<Arc<Resource>> {
        self.catalog.get(resource).ok_or(ApiError::NoSuchPath)
    }

    /// One object of `resource` (`plural` or `plural.group`); `namespace` is empty for cluster scope.
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.engine.get(&Key::new(resource, namespace, name)).and_then(|r| decode(&r.value, r.revision))
    }

    /// Whether an object is there; cheaper than `get`.
    pub fn exists(&self, resource: &str, namespace: &str, name: &str) -> bool {
        self.engine.get(&Key::new(resource, namespace, name)).is_some()
    }

    /// All objects of a resource, of one namespace or of all (`None`), at one revision.
    pub fn list(&self, resource: &str, namespace: Option<&str>) -> List {
        // A list of now is never compacted.
        match self.engine.page(resource, namespace, None, None, None) {
            Ok(page) => List {
                revision: page.revision,
                items: page.items.iter().filter_map(|(_, r)| decode(&r.value, r.revision)).collect(),
            },
            Err(_) => List { revision: self.revision(), items: Vec::new() },
        }
    }

    /// Objects of a resource changed after `revision`, as they happen. Start it at a list's revision.
    ///
    /// # Errors
    /// `Expired` when the history does not reach back to `revision`.
    pub fn watch(&self, resource: &str, revision: u64) -> ApiResult<Watch> {
        Watch::start(self, resource, None, revision)
    }

    /// As [`Store::watch`], of one namespace.
    ///
    /// # Errors
    /// As [`Store::watch`].
    pub fn watch_within(&self, resource: &str, namespace: Option<&str>, revision: u64) -> ApiResult<Watch> {
        Watch::start(self, resource, namespace, revision)
    }

    /// Creates an object: sets its metadata, checks that its namespace is there. No admission.
    ///
    /// # Errors
    /// `AlreadyExists`, `NotFound`/`Forbidden` for the namespace, `Invalid` names.
    pub async fn create(&self, resource: &str, object: Value) -> ApiResult<Value> {
        self.create_with(resource, object, WriteOptions::default()).await
    }

    /// As `create`, with options.
    ///
    /// # Errors
    /// As `create`.
    pub async fn create_with(&self, resource: &str, mut object: Value, options: WriteOptions) -> ApiResult<Value> {
        let kind = self.resource(resource)?;
        let generated = metadata::needs_name(&object);
        for attempt in 0..WRITE_ATTEMPTS {
            metadata::prepare_create(&kind, &mut object, self.now())?;
            let (namespace, name) = (namespace_of(&object).to_owned(), name_of(&object).to_owned());
            self.check_namespace(&kind, &namespace, &name)?;
            let key = Key::new(resource, &namespace, &name);
            if options.dry_run {
                if self.engine.get(&key).is_some() {
                    return Err(ApiError::AlreadyExists(Subject::of(resource, &name)));
                }
                return Ok(object);
            }
            let op = op(&key, Expect::Absent, None, Some(&object))?;
            match self.engine.commit(vec![op]).await {
                Ok(changes) => return Ok(with_revision(object, revision_of(&changes))),
                Err(StorageError::Exists(_)) if generated && attempt + 1 < WRITE_ATTEMPTS => {
                    metadata::clear_name(&mut object);
                }
                // Another server was faster: what the object is to have has to be found anew.
                Err(StorageError::Claimed(_)) => return Err(ApiError::modified(resource, &name)),
                Err(error) => return Err(storage_error(resource, &name, error)),
            }
        }
        Err(ApiError::Internal("no free name was found".into()))
    }

    /// Replaces an object. A `resourceVersion` in it must be the current one; without one the write is unconditional.
    /// Status is replaced too. No admission.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, `Invalid` (changed uid).
    pub async fn update(&self, resource: &str, object: Value) -> ApiResult<Value> {
        let (namespace, name) = (namespace_of(&object).to_owned(), name_of(&object).to_owned());
        let written = self
            .modify(resource, &namespace, &name, WriteOptions::default(), |old| {
                if old.is_none() {
                    return Err(ApiError::not_found(resource, &name));
                }
                Ok(Intent::Put(object.clone()))
            })
            .await?;
        Ok(written.object)
    }

    /// Read–modify–write: `change` gets the current object (if any) and says what to store; it runs again when somebody
    /// else was faster. An object it returns with a `resourceVersion` other than the current one is a conflict. Creating through it is allowed.
    /// An object left without finalizers after its deletion was asked for is removed. A change to the same content
    /// stores nothing.
    ///
    /// # Errors
    /// What `change` returns, `Conflict`, `Invalid`.
    pub async fn modify(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
        options: WriteOptions,
        mut change: impl FnMut(Option<&Value>) -> ApiResult<Intent>,
    ) -> ApiResult<Written> {
        let kind = self.resource(resource)?;
        let key = Key::new(resource, namespace, name);
        let mut turn = None;
        for attempt in 0..WRITE_ATTEMPTS {
            if attempt > 0 && turn.is_none() {
                turn = Some(self.turn(&key).lock().await);
            }
            let record = self.engine.get(&key);
            let old = record.as_ref().and_then(|r| decode(&r.value, r.revision));
            let wanted = match change(old.as_ref())? {
                Intent::Put(object) => object,
                Intent::Keep => {
                    let object = old.ok_or_else(|| ApiError::not_found(resource, name))?;
                    return Ok(Written { object, created: false });
                }
            };
            let (Some(record), Some(old)) = (record, old) else {
                if resource_version_of(&wanted).is_some_and(|v| v != 0) {
                    return Err(ApiError::not_found(resource, name));
                }
                match self.create_with(resource, wanted, options).await {
                    Ok(object) => return Ok(Written { object, created: true }),
                    Err(ApiError::AlreadyExists(_) | ApiError::Conflict { .. }) => continue,
                    Err(error) => return Err(error),
                }
            };
            if resource_version_of(&wanted).is_some_and(|v| v != record.revision) {
                return Err(ApiError::modified(resource, name));
            }
            let Some(object) = metadata::prepare_update(&kind, &old, wanted)? else {
                return Ok(Written { object: old, created: false });
            };
            if options.dry_run {
                return Ok(Written { object: with_revision(object, record.revision), created: false });
            }
            let gone = delete::is_finished(&object);
            let op = op(&key, Expect::Revision(record.revision), Some(&old), (!gone).then_some(&object))?;
            match self.engine.commit(vec![op]).await {
                Ok(changes) => {
                    return Ok(Written { object: with_revision(object, revision_of(&changes)), created: false });
                }
                // Read again: a `resourceVersion` of its own makes `change` fail then.
                Err(StorageError::Changed(_) | StorageError::Missing(_) | StorageError::Claimed(_)) => {}
                Err(error) => return Err(storage_error(resource, name, error)),
            }
        }
        Err(ApiError::modified(resource, name))
    }

    /// Asks for an object's deletion; see [`DeleteOptions`] and [`Deleted`].
    ///
    /// # Errors
    /// `NotFound`, `Conflict` when a precondition fails.
    pub async fn delete(
        &self,
        resource: &str,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> ApiResult<Deleted> {
        delete::delete(self, resource, namespace, name, options).await
    }

    fn turn(&self, key: &Key) -> &Mutex<()> {
        let hash =
            usize::try_from(BuildHasherDefault::<DefaultHasher>::default().hash_one(key) % TURNS as u64).unwrap_or(0);
        &self.turns[hash % TURNS]
    }

    /// Namespaced objects need a namespace that is there and is not going away.
    ///
    /// # Errors
    /// `NotFound` or `Forbidden` for the namespace.
    pub fn check_namespace(&self, kind: &Resource, namespace: &str, name: &str) -> ApiResult<()> {
        if !kind.namespaced {
            return Ok(());
        }
        let Some(found) = self.get("namespaces", "", namespace) else {
            return Err(ApiError::not_found("namespaces", namespace));
        };
        if found.pointer("/metadata/deletionTimestamp").is_some() {
            let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
            let mut error = ApiError::forbidden(&kind.id, name, why);
            if let ApiError::Forbidden { cause, .. } = &mut error {
                *cause = Some(Box::new(Cause {
                    reason: "NamespaceTerminating",
                    message: format!("namespace {namespace} is being terminated"),
                    field: "metadata.namespace".into(),
                }));
            }
            return Err(error);
        }
        Ok(())
    }
}

fn revision_of(changes: &[Arc<Change>]) -> u64 {
    changes.last().map_or(0, |c| c.revision)
}

/// The operation that puts `new` in the place of `old`.
fn op(key: &Key, expect: Expect, old: Option<&Value>, new: Option<&Value>) -> ApiResult<Op> {
    let claims = claims::changed(&key.resource, old, new);
    let value = new.map(encode).transpose()?;
    Ok(Op { key: key.clone(), expect, value, ttl: ttl(&key.resource), claims })
}

/// Bytes as stored: compact JSON without a resourceVersion.
fn encode(object: &Value) -> ApiResult<Bytes> {
    let mut stored = object.clone();
    if let Some(meta) = stored.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.shift_remove("resourceVersion");
    }
    serde_json::to_vec(&stored).map(Bytes::from).map_err(|e| ApiError::Internal(e.to_string()))
}

/// A stored object with its resourceVersion; `None` only for bytes we did not write.
pub(crate) fn decode(bytes: &[u8], revision: u64) -> Option<Value> {
    serde_json::from_slice(bytes).ok().map(|object| with_revision(object, revision))
}

pub(crate) fn decode_record(record: &Record) -> Option<Value> {
    decode(&record.value, record.revision)
}

fn with_revision(mut object: Value, revision: u64) -> Value {
    if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.insert("resourceVersion".into(), Value::String(revision.to_string()));
    }
    object
}

pub(crate) fn storage_error(resource: &str, name: &str, error: StorageError) -> ApiError {
    match error {
        StorageError::Exists(_) => ApiError::AlreadyExists(Subject::of(resource, name)),
        StorageError::Missing(_) => ApiError::not_found(resource, name),
        StorageError::Changed(_) | StorageError::Claimed(_) => ApiError::modified(resource, name),
        StorageError::Compacted { asked, oldest } => {
            ApiError::Expired(format!("too old resource version: {asked} ({oldest})"))
        }
        StorageError::Closed => ApiError::Unavailable("the server is shutting down".into()),
        StorageError::TooLarge(message) => ApiError::TooLarge(message),
        StorageError::Unreachable(_) => ApiError::Unavailable(error.to_string()),
        StorageError::Unanswered(_) => ApiError::Timeout { message: error.to_string(), cause: None },
        StorageError::Locked(message) | StorageError::Medium(message) => ApiError::Internal(message),
    }
}
