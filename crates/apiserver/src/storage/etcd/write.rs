//! Writes: one transaction on etcd for each, under the condition that nobody was faster; and what is needed to read
//! everything that was written anywhere.
//!
//! Invariant: a write is never sent twice. It is answered as done when etcd said so, as refused when its condition did not
//! hold, as unknown when no answer came.
//! What it leaves to others: the picture (`replica`).

use super::super::engine::{Command, Freshener};
use super::super::{Change, ChangeKind, Expect, Op, StorageError};
use super::{Shared, revision_of, signed, unsigned, wire};
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// For the picture to show what etcd acknowledged.
const SHOWN: Duration = Duration::from_secs(3);
/// How long a read waits for the watch before it asks for a sign by a write of its own.
const SIGN: Duration = Duration::from_millis(50);

/// Claims that one write takes at most, and gives back: etcd takes 128 operations. More are kept apart by the pictures alone.
const CLAIMS: usize = 60;

/// For a watch that was cut to come back.
const PATIENCE: Duration = Duration::from_millis(500);

/// Leases are shared by what is written within this part of their length.
const LEASE_SHARE: u32 = 20;

/// The newest lease of each length, and when it was granted.
type Leases = Arc<Mutex<HashMap<Duration, (i64, Instant)>>>;

/// Does what it is asked to, at most `together` at the same time, until nobody can ask any more.
pub async fn run(shared: Shared, mut commands: mpsc::Receiver<Command>, together: usize) {
    let mut underway = JoinSet::new();
    let leases = Leases::default();
    loop {
        tokio::select! {
            command = commands.recv(), if underway.len() < together.max(1) => {
                let Some(command) = command else { break };
                let (shared, leases) = (shared.clone(), leases.clone());
                underway.spawn(async move {
                    let outcome = commit(&shared, &leases, &command.ops).await;
                    // The caller may have gone away; then nobody is to be told.
                    drop(command.answer.send(outcome));
                });
            }
            Some(_) = underway.join_next() => {}
        }
    }
    while underway.join_next().await.is_some() {}
}

async fn commit(shared: &Shared, leases: &Leases, ops: &[Op]) -> Result<Vec<Arc<Change>>, StorageError> {
    shared.in_reach().await?;
    let mut txn = wire::TxnRequest::default();
    for op in ops {
        let key = shared.layout.path(&op.key);
        let revision = match op.expect {
            Expect::Absent => 0,
            Expect::Revision(revision) => signed(revision),
        };
        txn.compare.push(wire::changed_at(key.clone(), revision));
        let read = wire::RangeRequest { key: key.clone(), keys_only: true, ..wire::RangeRequest::default() };
        txn.failure.push(wire::step(wire::Request::Range(read)));
        txn.success.push(wire::step(match &op.value {
            Some(value) => {
                let lease = match op.ttl {
                    Some(ttl) => lease(shared, leases, ttl).await?,
                    None => 0,
                };
                wire::Request::Put(wire::PutRequest { key, value: value.clone(), lease })
            }
            None => wire::Request::Delete(wire::DeleteRangeRequest { key, range_end: Vec::new() }),
        }));
    }
    for op in ops {
        claim(shared, op, &mut txn);
    }
    let answer = shared.client.txn(txn).await?;
    let revision = revision_of(answer.header.as_ref());
    if answer.succeeded {
        // What was acknowledged is done, whether the picture shows it in time or not.
        let _shown = shared.picture.reaches(revision, SHOWN).await;
        return Ok(ops.iter().map(|op| change(op, revision)).collect());
    }
    let found: Vec<u64> = answer
        .responses
        .iter()
        .map(|r| match &r.response {
            Some(wire::Response::Range(range)) => range.kvs.first().map_or(0, |kv| unsigned(kv.mod_revision)),
            _ => 0,
        })
        .collect();
    // Whoever tries again has to see what was in the way; of a key that is gone, that it is gone.
    shared.freshen(revision).await?;
    for (op, now) in ops.iter().zip(found) {
        match (op.expect, now) {
            (Expect::Absent, 0) => {}
            (Expect::Absent, _) => return Err(StorageError::Exists(op.key.clone())),
            (Expect::Revision(_), 0) => return Err(StorageError::Missing(op.key.clone())),
            (Expect::Revision(wanted), now) if wanted != now => return Err(StorageError::Changed(op.key.clone())),
            (Expect::Revision(_), _) => {}
        }
    }
    let taken: Vec<&str> = ops.iter().flat_map(|op| op.claims.taken.iter().map(String::as_str)).collect();
    if taken.is_empty() {
        return Err(StorageError::Unanswered("etcd refused a write whose conditions hold".into()));
    }
    Err(StorageError::Claimed(taken.join(" or ")))
}

/// What a write takes has a key of its own that must not be there before, and says whose it is.
fn claim(shared: &Shared, op: &Op, txn: &mut wire::TxnRequest) {
    let key = |name: &String| shared.layout.own(name);
    for key in op.claims.taken.iter().take(CLAIMS).map(key) {
        txn.compare.push(wire::changed_at(key.clone(), 0));
        let value = Bytes::from(shared.layout.path(&op.key));
        txn.success.push(wire::step(wire::Request::Put(wire::PutRequest { key, value, lease: 0 })));
    }
    // A key that is not there (of before there were claims) is none to remove.
    for key in op.claims.freed.iter().take(CLAIMS).map(key) {
        txn.success.push(wire::step(wire::Request::Delete(wire::DeleteRangeRequest { key, range_end: Vec::new() })));
    }
}

fn change(op: &Op, revision: u64) -> Arc<Change> {
    let kind = match (&op.value, op.expect) {
        (None, _) => ChangeKind::Deleted,
        (Some(_), Expect::Absent) => ChangeKind::Created,
        (Some(_), Expect::Revision(_)) => ChangeKind::Updated,
    };
    let value = op.value.clone().unwrap_or_default();
    Arc::new(Change { revision, kind, key: op.key.clone(), value, previous: None, decoded: OnceLock::new() })
}

/// A lease that keeps its keys for `ttl` at least, and a twentieth longer at most.
async fn lease(shared: &Shared, leases: &Leases, ttl: Duration) -> Result<i64, StorageError> {
    let share = ttl / LEASE_SHARE;
    let known = leases.lock().unwrap_or_else(PoisonError::into_inner).get(&ttl).copied();
    if let Some((id, since)) = known
        && since.elapsed() < share
    {
        return Ok(id);
    }
    let begun = Instant::now();
    let seconds = ttl.saturating_add(share).as_secs().max(1);
    let granted = shared.client.grant(signed(seconds)).await?;
    if !granted.error.is_empty() {
        return Err(StorageError::Medium(format!("etcd: {}", granted.error)));
    }
    leases.lock().unwrap_or_else(PoisonError::into_inner).insert(ttl, (granted.id, begun));
    Ok(granted.id)
}

impl Shared {
    /// While the watch is known to be cut, nobody is kept waiting for an answer that does not come.
    async fn in_reach(&self) -> Result<(), StorageError> {
        let until = Instant::now() + PATIENCE;
        while !self.healthy.load(Ordering::Relaxed) {
            if Instant::now() >= until {
                return Err(StorageError::Unreachable("etcd does not answer".into()));
            }
            tokio::time::sleep(SIGN).await;
        }
        Ok(())
    }

    /// A write that nobody's object is, for its place in the order.
    pub(super) async fn tick(&self) -> Result<u64, StorageError> {
        let request = wire::PutRequest { key: self.layout.own("tick"), value: Bytes::new(), lease: 0 };
        self.client.put(request).await.map(|answer| revision_of(answer.header.as_ref()))
    }

    /// Waits until the picture is as etcd was at `revision`.
    async fn freshen(&self, revision: u64) -> Result<(), StorageError> {
        if self.picture.reaches(revision, SIGN).await {
            return Ok(());
        }
        // The last revision may be of a key that is not watched; after one that is, the picture is beyond it.
        let mark = self.tick().await?;
        if self.picture.reaches(mark, SHOWN).await {
            return Ok(());
        }
        Err(StorageError::Unanswered("the watch of etcd is behind".into()))
    }
}

/// Answers those who want to see everything that was written before they asked. Whoever comes while etcd is being asked
/// waits for the next answer, together with all others.
pub async fn freshen(shared: Shared, mut asked: mpsc::Receiver<Freshener>) {
    while let Some(first) = asked.recv().await {
        let mut waiting = vec![first];
        while let Ok(next) = asked.try_recv() {
            waiting.push(next);
        }
        let outcome = async {
            shared.in_reach().await?;
            let key = shared.layout.own("tick");
            let read = wire::RangeRequest { key, keys_only: true, ..wire::RangeRequest::default() };
            let revision = revision_of(shared.client.range(read).await?.header.as_ref());
            shared.freshen(revision).await
        }
        .await;
        for answer in waiting {
            drop(answer.send(outcome.clone()));
        }
    }
}
