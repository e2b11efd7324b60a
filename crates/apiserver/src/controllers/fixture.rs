//! A store for tests: on disk in a folder of its own, with loops running over it, and waits for conditions.

use std::sync::Arc;
use std::time::Duration;

use carrick_runtime::clock::SystemClock;
use carrick_runtime::tasks::TaskSet;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::RootPem;
use crate::admission::{AdmitContext, Operation};
use crate::authorize::User;
use crate::catalog::Catalog;
use crate::controllers::Admission;
use crate::error::ApiResult;
use crate::storage::{Engine, EngineOptions, RedbFile};
use crate::store::{Store, namespace_of};

pub(super) struct Fixture {
    pub store: Store,
    pub admission: Admission,
    pub root: watch::Sender<RootPem>,
    pub lists: watch::Sender<RootPem>,
    _tasks: TaskSet,
    _folder: tempfile::TempDir,
}

impl Fixture {
    /// A bootstrapped store; with the loops if asked for.
    pub async fn new(with_loops: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let engine = Engine::start(RedbFile::open(folder.path()).unwrap(), EngineOptions::default()).unwrap();
        let store = Store::new(engine, Catalog::of(carrick_api::kinds::registry()), SystemClock::shared());
        super::bootstrap(&store).await.unwrap();
        let (root, receiver) = watch::channel(None);
        let (lists, following) = watch::channel(None);
        let mut tasks = TaskSet::new();
        if with_loops {
            super::start(&store, "PEM".into(), receiver, following, super::TURN, &mut tasks);
        }
        Self { admission: Admission::new(store.clone()), store, root, lists, _tasks: tasks, _folder: folder }
    }

    pub async fn namespace(&self, name: &str) {
        let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        self.apply("namespaces", "Namespace", object).await.unwrap();
    }

    /// Admits as the administrator and creates or replaces.
    pub async fn apply(&self, resource: &str, kind: &str, object: Value) -> ApiResult<Value> {
        self.apply_as(
            &User { name: "admin".into(), groups: vec!["system:masters".into()], ..User::default() },
            resource,
            kind,
            object,
        )
        .await
    }

    pub async fn apply_as(&self, user: &User, resource: &str, kind: &str, mut object: Value) -> ApiResult<Value> {
        let namespace = namespace_of(&object).to_owned();
        let old = self.store.get(resource, &namespace, crate::store::name_of(&object));
        let context = AdmitContext {
            store: &self.store,
            resource,
            kind,
            subresource: "",
            namespace: &namespace,
            user,
            old: old.as_ref(),
            dry_run: false,
        };
        let operation = if old.is_some() { Operation::Update } else { Operation::Create };
        self.admission.admit(&mut object, operation, &context)?;
        if old.is_some() {
            self.store.update(resource, object).await
        } else {
            self.store.create(resource, object).await
        }
    }

    /// Waits until `condition` gives something; panics with `what` after five seconds.
    pub async fn until<T>(&self, what: &str, condition: impl Fn(&Store) -> Option<T>) -> T {
        let start = tokio::time::Instant::now();
        loop {
            if let Some(found) = condition(&self.store) {
                return found;
            }
            assert!(start.elapsed() < Duration::from_secs(5), "waited in vain for {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

pub(super) fn root_pem(text: &str) -> RootPem {
    Some(Arc::from(text))
}
