//! The single writer: takes operations, checks preconditions, gives revisions, commits in groups, then answers.
//!
//! Invariant: one thread writes; a batch is made durable before any of its callers is answered and before any reader
//! sees it. A failed commit fails its callers; what became of it is asked of the medium before the next one, and only
//! then it is visible or never was.
//! What it leaves to others: the medium (`Storage`), the meaning of values (`store`).

use super::etcd::{self, EtcdOptions};
use super::image::{Image, Page, Retention, Tail};
use super::{Change, ChangeKind, Expect, Key, Op, Record, Storage, StorageError};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use tokio::sync::{mpsc, oneshot, watch};

/// Sizes of the engine.
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// Kept changes of all resources together.
    pub history_changes: usize,
    /// Bytes they may weigh.
    pub history_bytes: usize,
    /// Transactions that may wait for the writer; more callers wait.
    pub queue: usize,
    /// Transactions made durable together at most.
    pub group: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { history_changes: 100_000, history_bytes: 64 << 20, queue: 1024, group: 256 }
    }
}

/// One transaction, and who waits for it.
pub(super) struct Command {
    pub ops: Vec<Op>,
    pub answer: oneshot::Sender<Result<Vec<Arc<Change>>, StorageError>>,
}

/// Somebody who wants to see everything that was written before now, wherever.
pub(super) type Freshener = oneshot::Sender<Result<(), StorageError>>;

/// Handle to the running engine; clones share it. The writer ends when the last handle is gone.
#[derive(Clone)]
pub struct Engine {
    image: Arc<RwLock<Image>>,
    writer: mpsc::Sender<Command>,
    /// Only where others write too.
    fresheners: Option<mpsc::Sender<Freshener>>,
    healthy: Arc<AtomicBool>,
    ended: watch::Receiver<()>,
}

impl Engine {
    /// Loads `storage` and starts the writer thread.
    ///
    /// # Errors
    /// What the backend says while loading, or that no thread could be started.
    pub fn start(mut storage: impl Storage, options: EngineOptions) -> Result<Self, StorageError> {
        let loaded = storage.load()?;
        let image = Arc::new(RwLock::new(Image::new(loaded)));
        let (sender, receiver) = mpsc::channel(options.queue.max(1));
        let healthy = Arc::new(AtomicBool::new(true));
        let writer = Writer { storage, image: image.clone(), healthy: healthy.clone(), options, doubtful: None };
        let (alive, ended) = watch::channel(());
        std::thread::Builder::new()
            .name("api-store".into())
            .spawn(move || {
                writer.run(receiver);
                // The backend is closed by now.
                drop(alive);
            })
            .map_err(|e| StorageError::Medium(format!("cannot start the writer: {e}")))?;
        Ok(Self { image, writer: sender, fresheners: None, healthy, ended })
    }

    /// Follows an etcd, which several replicas may do at the same time; blocks until everything is read.
    ///
    /// # Errors
    /// `Unreachable` when it does not answer, `Medium` when it refuses or holds something that is not ours.
    pub fn over_etcd(cluster: EtcdOptions, options: EngineOptions) -> Result<Self, StorageError> {
        let (sender, receiver) = mpsc::channel(options.queue.max(1));
        let (fresh, fresheners) = mpsc::channel(options.queue.max(1));
        let (alive, ended) = watch::channel(());
        let healthy = Arc::new(AtomicBool::new(true));
        let (told, started) = std::sync::mpsc::sync_channel(1);
        let ends = etcd::Ends { commands: receiver, fresheners, healthy: healthy.clone() };
        std::thread::Builder::new()
            .name("api-store".into())
            .spawn(move || {
                etcd::run(cluster, options, ends, &told);
                drop(alive);
            })
            .map_err(|e| StorageError::Medium(format!("cannot start the writer: {e}")))?;
        let image = started.recv().map_err(|_| StorageError::Closed)??;
        Ok(Self { image, writer: sender, fresheners: Some(fresh), healthy, ended })
    }

    /// Returns when everything that was acknowledged to anybody before the call is visible here.
    ///
    /// # Errors
    /// `Unreachable` or `Unanswered` when that cannot be known now.
    pub async fn fresh(&self) -> Result<(), StorageError> {
        let Some(fresheners) = &self.fresheners else { return Ok(()) };
        let (answer, answered) = oneshot::channel();
        fresheners.send(answer).await.map_err(|_| StorageError::Closed)?;
        answered.await.map_err(|_| StorageError::Closed)?
    }

    fn read<T>(&self, f: impl FnOnce(&Image) -> T) -> T {
        f(&self.image.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the last commit worked.
    pub fn healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed) && !self.writer.is_closed()
    }

    /// Resolves when the backend is closed, which is after the last handle was dropped.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut ended = self.ended.clone();
        async move { while ended.changed().await.is_ok() {} }
    }

    /// Whether other servers may write to the same storage.
    pub fn is_shared(&self) -> bool {
        self.fresheners.is_some()
    }

    /// Last visible revision.
    pub fn revision(&self) -> u64 {
        self.read(Image::revision)
    }

    /// The record of one key.
    pub fn get(&self, key: &Key) -> Option<Record> {
        self.read(|image| image.record(key).cloned())
    }

    /// All records of all resources, and the revision they are at.
    pub fn everything(&self) -> (u64, Vec<(Key, Record)>) {
        self.read(Image::everything)
    }

    /// How many objects a resource has.
    pub fn count(&self, resource: &str) -> usize {
        self.read(|image| image.len(resource))
    }

    /// A page of a list, consistent at one revision.
    ///
    /// # Errors
    /// `Compacted` when `at` is older than the kept history.
    pub fn page(
        &self,
        resource: &str,
        namespace: Option<&str>,
        after: Option<(&str, &str)>,
        limit: Option<usize>,
        at: Option<u64>,
    ) -> Result<Page, StorageError> {
        self.read(|image| image.page(resource, namespace, after, limit, at))
    }

    /// Changes of a resource, of one namespace or all, after `since`.
    ///
    /// # Errors
    /// `Compacted` when `since` is older than the kept history.
    pub fn tail(
        &self,
        resource: &str,
        namespace: Option<&str>,
        since: u64,
        limit: usize,
    ) -> Result<Tail, StorageError> {
        self.read(|image| image.tail(resource, namespace, since, limit))
    }

    /// Tells of changes of one resource, of one namespace (and now and then of others') or all.
    pub fn subscribe(&self, resource: &str, namespace: Option<&str>) -> watch::Receiver<u64> {
        self.image.write().unwrap_or_else(PoisonError::into_inner).subscribe(resource, namespace)
    }

    /// Does all of `ops` or none; returns when the outcome is durable. Once sent it happens even if the caller goes away.
    ///
    /// # Errors
    /// The first failed precondition, or `Medium`/`Closed`.
    pub async fn commit(&self, ops: Vec<Op>) -> Result<Vec<Arc<Change>>, StorageError> {
        let (answer, answered) = oneshot::channel();
        self.writer.send(Command { ops, answer }).await.map_err(|_| StorageError::Closed)?;
        answered.await.map_err(|_| StorageError::Closed)?
    }
}

struct Writer<S> {
    storage: S,
    image: Arc<RwLock<Image>>,
    healthy: Arc<AtomicBool>,
    options: EngineOptions,
    /// A batch whose commit failed: nobody was told that it is there, but it may be.
    doubtful: Option<(Vec<Arc<Change>>, u64)>,
}

/// Keys changed earlier in the same batch.
type Overlay = HashMap<Key, Option<Record>>;

impl<S: Storage> Writer<S> {
    fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        while let Some(first) = commands.blocking_recv() {
            let mut group = vec![first];
            while group.len() < self.options.group {
                let Ok(next) = commands.try_recv() else { break };
                group.push(next);
            }
            self.batch(group);
        }
    }

    /// Learns what became of a failed commit.
    fn settle(&mut self) -> Result<(), StorageError> {
        let Some((changes, compact_through)) = self.doubtful.take() else { return Ok(()) };
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        let (before, after) = (image.revision(), changes.last().map_or(0, |c| c.revision));
        match self.storage.recover() {
            Ok(revision) if revision == before => {
                tracing::info!(revision, "the storage is back; the failed commit is not in it");
                Ok(())
            }
            Ok(revision) if revision == after => {
                tracing::info!(revision, "the storage is back; the failed commit is in it");
                image.apply(&changes, compact_through);
                Ok(())
            }
            Ok(revision) => {
                self.doubtful = Some((changes, compact_through));
                Err(StorageError::Medium(format!("the data file is at revision {revision}, not {before} or {after}")))
            }
            Err(error) => {
                self.doubtful = Some((changes, compact_through));
                Err(error)
            }
        }
    }

    fn batch(&mut self, group: Vec<Command>) {
        if let Err(error) = self.settle() {
            for command in group {
                drop(command.answer.send(Err(error.clone())));
            }
            return;
        }
        let mut changes: Vec<Arc<Change>> = Vec::new();
        let mut answers = Vec::new();
        let mut refused = Vec::new();
        let compact_through = {
            let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
            let mut overlay = Overlay::new();
            let mut revision = image.revision();
            for command in group {
                match plan(&image, &mut overlay, revision, &command.ops) {
                    Ok(planned) => {
                        revision = planned.last().map_or(revision, |c| c.revision);
                        changes.extend(planned.iter().cloned());
                        answers.push((command.answer, planned));
                    }
                    // It may be refused because of what comes before it in this group, and is told so when that can be read.
                    Err(error) => refused.push((command.answer, error)),
                }
            }
            let keep = Retention { changes: self.options.history_changes, bytes: self.options.history_bytes };
            image.compact_through(&changes, keep)
        };
        // Callers may have gone away; then nobody is to be told.
        if changes.is_empty() {
            for (answer, planned) in answers {
                drop(answer.send(Ok(planned)));
            }
            for (answer, error) in refused {
                drop(answer.send(Err(error)));
            }
            return;
        }
        let outcome = self.storage.commit(&changes, compact_through);
        self.healthy.store(outcome.is_ok(), Ordering::Relaxed);
        match outcome {
            Ok(()) => {
                self.image.write().unwrap_or_else(PoisonError::into_inner).apply(&changes, compact_through);
                for (answer, planned) in answers {
                    drop(answer.send(Ok(planned)));
                }
                for (answer, error) in refused {
                    drop(answer.send(Err(error)));
                }
            }
            Err(error) => {
                tracing::error!(%error, "a commit failed; nothing of it was acknowledged");
                self.doubtful = Some((changes, compact_through));
                let failed = answers.into_iter().map(|(answer, _)| answer);
                for answer in failed.chain(refused.into_iter().map(|(answer, _)| answer)) {
                    drop(answer.send(Err(error.clone())));
                }
            }
        }
    }
}

/// Checks one transaction against the state and gives its changes their revisions.
fn plan(image: &Image, overlay: &mut Overlay, mut revision: u64, ops: &[Op]) -> Result<Vec<Arc<Change>>, StorageError> {
    let mut planned = Vec::with_capacity(ops.len());
    let mut own = Overlay::new();
    for op in ops {
        let current = match own.get(&op.key).or_else(|| overlay.get(&op.key)) {
            Some(record) => record.clone(),
            None => image.record(&op.key).cloned(),
        };
        match (op.expect, &current) {
            (Expect::Absent, Some(_)) => return Err(StorageError::Exists(op.key.clone())),
            (Expect::Revision(_), None) => return Err(StorageError::Missing(op.key.clone())),
            (Expect::Revision(wanted), Some(r)) if r.revision != wanted => {
                return Err(StorageError::Changed(op.key.clone()));
            }
            _ => {}
        }
        let (kind, value) = match (&op.value, &current) {
            (Some(value), None) => (ChangeKind::Created, value.clone()),
            (Some(value), Some(_)) => (ChangeKind::Updated, value.clone()),
            (None, Some(record)) => (ChangeKind::Deleted, record.value.clone()),
            (None, None) => continue,
        };
        revision = revision.saturating_add(1);
        own.insert(op.key.clone(), op.value.as_ref().map(|v| Record { revision, value: v.clone() }));
        planned.push(Arc::new(Change {
            revision,
            kind,
            key: op.key.clone(),
            value,
            previous: current,
            decoded: OnceLock::new(),
        }));
    }
    overlay.extend(own);
    Ok(planned)
}

#[cfg(test)]
mod tests {
    use super::super::{Claims, Loaded};
    use super::*;
    use std::time::Duration;

    /// A medium that takes its time.
    struct Slow;

    impl Storage for Slow {
        fn load(&mut self) -> Result<Loaded, StorageError> {
            Ok(Loaded::default())
        }

        fn commit(&mut self, _: &[Arc<Change>], _: u64) -> Result<(), StorageError> {
            std::thread::sleep(Duration::from_millis(100));
            Ok(())
        }

        fn recover(&mut self) -> Result<u64, StorageError> {
            Ok(0)
        }
    }

    #[tokio::test]
    async fn whoever_is_told_that_something_exists_can_read_it() {
        let engine = Engine::start(Slow, EngineOptions::default()).unwrap();
        let create = |name: &str| {
            let op = Op {
                key: Key::new("things", "", name),
                expect: Expect::Absent,
                value: Some(b"{}".to_vec().into()),
                ttl: None,
                claims: Claims::default(),
            };
            let engine = engine.clone();
            async move {
                let key = op.key.clone();
                let outcome = engine.commit(vec![op]).await;
                (outcome.is_ok(), engine.get(&key).is_some())
            }
        };
        // While the first is written, the other two come into one group.
        let first = tokio::spawn(create("first"));
        tokio::time::sleep(Duration::from_millis(30)).await;
        let (one, other) = tokio::join!(create("same"), create("same"));
        assert_eq!((one, other), ((true, true), (false, true)));
        assert_eq!(first.await.unwrap(), (true, true));
    }
}
