//! The picture: read once, then kept by etcd's watch, over broken connections and compactions.
//!
//! Invariant: changes come into the picture in etcd's order, each once: a stream that broke is resumed after the last
//! change that is in. When etcd has forgotten what comes next, the picture is read anew and every watch begins anew.
//! What it leaves to others: writing (`write`).

use super::super::engine::EngineOptions;
use super::super::image::Retention;
use super::super::{Change, ChangeKind, Loaded, Record, StorageError};
use super::layout::range_end;
use super::{Shared, revision_of, signed, unsigned, wire};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Pairs read at once.
const PAGE: i64 = 2_000;
/// Between attempts to reach etcd again.
const PAUSE: Duration = Duration::from_millis(200);
/// For the replay of recent history at the start.
const REPLAY: Duration = Duration::from_secs(10);

pub struct Replica {
    shared: Shared,
    sizes: EngineOptions,
    /// Everything up to here is in the picture.
    at: u64,
}

/// How a stream ended.
enum End {
    /// Broken; go on where it was.
    Broken(StorageError),
    /// What comes next is forgotten.
    Compacted,
}

impl Replica {
    pub fn new(shared: Shared, sizes: EngineOptions) -> Self {
        Self { shared, sizes, at: 0 }
    }

    fn whole(&self) -> (Vec<u8>, Vec<u8>) {
        let prefix = self.shared.layout.prefix().as_bytes().to_vec();
        let end = range_end(&prefix);
        (prefix, end)
    }

    /// Reads everything at one revision, and the recent history that leads there.
    pub async fn load(&mut self) -> Result<(), StorageError> {
        if super::restore::is_under_way(&self.shared.client, &self.shared.layout).await? {
            let why = "a restoration of this etcd was begun and not finished: repeat it with --force";
            return Err(StorageError::Medium(why.into()));
        }
        // A write of our own: it proves that we may, and its event tells when the replay is complete.
        let mark = self.shared.tick().await?;
        let mut loaded = self.read(mark).await?;
        let history = match tokio::time::timeout(REPLAY, self.history(mark)).await {
            Ok(Ok(history)) => history,
            Ok(Err(error)) => {
                tracing::info!(%error, "recent history cannot be read: watches begin now");
                (mark, Vec::new())
            }
            Err(_) => (mark, Vec::new()),
        };
        (loaded.compacted, loaded.changes) = history;
        self.at = mark;
        self.shared.picture.with(|image| image.replace(loaded));
        self.shared.picture.advance(mark);
        self.shared.healthy.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// All objects as they were at `revision`.
    async fn read(&self, revision: u64) -> Result<Loaded, StorageError> {
        let (mut key, end) = self.whole();
        let mut loaded = Loaded { revision, compacted: revision, ..Loaded::default() };
        loop {
            let request = wire::RangeRequest {
                key: key.clone(),
                range_end: end.clone(),
                limit: PAGE,
                revision: signed(revision),
                keys_only: false,
            };
            let answer = self.shared.client.range(request).await?;
            let last = answer.kvs.last().map(|kv| kv.key.clone());
            for kv in answer.kvs {
                if let Some(key) = self.shared.layout.key(&kv.key) {
                    loaded.records.push((key, Record { revision: unsigned(kv.mod_revision), value: kv.value }));
                }
            }
            match last {
                Some(last) if answer.more => {
                    key = last;
                    key.push(0);
                }
                _ => return Ok(loaded),
            }
        }
    }

    /// The changes up to `mark` that etcd still has and we would keep, and where they begin.
    async fn history(&self, mark: u64) -> Result<(u64, Vec<Change>), StorageError> {
        let mut since = mark.saturating_sub(self.sizes.history_changes as u64).max(1);
        loop {
            let (key, range_end) = self.whole();
            let create = wire::WatchCreate { key, range_end, start_revision: signed(since), prev_kv: true };
            let mut stream = self.shared.client.watch(create).await?;
            let mut begins = since.saturating_sub(1);
            let mut changes: Vec<Change> = Vec::new();
            let mut bytes = 0_usize;
            let compacted = 'stream: loop {
                let message = stream.message().await.map_err(|s| super::client::told(&s))?;
                let Some(message) = message else { return Err(StorageError::Unanswered("the replay ended".into())) };
                if message.canceled {
                    break unsigned(message.compact_revision);
                }
                for event in message.events {
                    let Some(kv) = &event.kv else { continue };
                    let revision = unsigned(kv.mod_revision);
                    if revision >= mark {
                        break 'stream 0;
                    }
                    let Some(key) = self.shared.layout.key(&kv.key) else { continue };
                    let previous = event.prev_kv.as_ref();
                    let previous =
                        previous.map(|p| Record { revision: unsigned(p.mod_revision), value: p.value.clone() });
                    let created = kv.create_revision == kv.mod_revision;
                    let (kind, value) = match (event.kind, &previous) {
                        (0, _) if created => (ChangeKind::Created, kv.value.clone()),
                        (0, Some(_)) => (ChangeKind::Updated, kv.value.clone()),
                        (1, Some(p)) => (ChangeKind::Deleted, p.value.clone()),
                        // What was before is forgotten: history that can be told begins after this.
                        _ => {
                            begins = revision;
                            changes.clear();
                            bytes = 0;
                            continue;
                        }
                    };
                    let previous = previous.filter(|_| kind != ChangeKind::Created);
                    let change = Change { revision, kind, key, value, previous, decoded: OnceLock::new() };
                    bytes = bytes.saturating_add(change.weight());
                    changes.push(change);
                    if bytes > self.sizes.history_bytes {
                        // Its older half goes; the picture would not keep it either.
                        let half = changes.len() / 2;
                        begins = changes.get(half).map_or(revision, |c| c.revision);
                        changes.retain(|c| c.revision > begins);
                        bytes = changes.iter().map(Change::weight).sum();
                    }
                }
            };
            if compacted == 0 {
                return Ok((begins, changes));
            }
            if compacted >= mark || compacted <= since {
                return Ok((mark, Vec::new()));
            }
            since = compacted;
        }
    }

    /// Keeps the picture, for ever.
    pub async fn follow(mut self) {
        loop {
            match self.stream().await {
                End::Broken(error) => {
                    if self.shared.healthy.swap(false, Ordering::Relaxed) {
                        tracing::warn!(%error, at = self.at, "etcd is out of reach");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                End::Compacted => {
                    tracing::warn!(at = self.at, "etcd has forgotten what comes next; reading everything anew");
                    if let Err(error) = self.load().await {
                        tracing::warn!(%error, "reading everything anew failed");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        }
    }

    async fn stream(&mut self) -> End {
        let (key, range_end) = self.whole();
        let start_revision = signed(self.at.saturating_add(1));
        let create = wire::WatchCreate { key, range_end, start_revision, prev_kv: false };
        let mut stream = match self.shared.client.watch(create).await {
            Ok(stream) => stream,
            Err(error) => return End::Broken(error),
        };
        loop {
            let message = match stream.message().await {
                Ok(Some(message)) => message,
                Ok(None) => return End::Broken(StorageError::Unanswered("the watch ended".into())),
                Err(status) => return End::Broken(super::client::told(&status)),
            };
            if message.canceled {
                return if message.compact_revision > 0 {
                    End::Compacted
                } else {
                    End::Broken(StorageError::Unanswered(message.cancel_reason))
                };
            }
            if message.created {
                if revision_of(message.header.as_ref()) < self.at {
                    // Another etcd, or one that was restored to an earlier state: what we show never was.
                    return End::Compacted;
                }
                if !self.shared.healthy.swap(true, Ordering::Relaxed) {
                    tracing::info!(at = self.at, "etcd is back");
                }
            }
            self.take(message.events);
        }
    }

    /// Makes the events of one answer visible; those of one revision are together in it.
    fn take(&mut self, events: Vec<wire::Event>) {
        let Some(last) = events.last().and_then(|e| e.kv.as_ref()).map(|kv| unsigned(kv.mod_revision)) else { return };
        let (at, layout) = (self.at, self.shared.layout.clone());
        let keep = Retention { changes: self.sizes.history_changes, bytes: self.sizes.history_bytes };
        self.shared.picture.with(|image| {
            for event in events {
                let Some(kv) = event.kv else { continue };
                let revision = unsigned(kv.mod_revision);
                let Some(key) = layout.key(&kv.key).filter(|_| revision > at) else { continue };
                let previous = image.record(&key).cloned();
                let (kind, value) = match (event.kind, &previous) {
                    (0, None) => (ChangeKind::Created, kv.value),
                    (0, Some(_)) => (ChangeKind::Updated, kv.value),
                    (_, Some(record)) => (ChangeKind::Deleted, record.value.clone()),
                    (_, None) => continue,
                };
                let change = Arc::new(Change { revision, kind, key, value, previous, decoded: OnceLock::new() });
                let through = image.compact_through(std::slice::from_ref(&change), keep);
                image.apply(&[change], through.min(revision.saturating_sub(1)));
            }
        });
        self.at = self.at.max(last);
        self.shared.picture.advance(self.at);
    }
}
