//! Forgets etcd's history, as kube-apiserver does: by one of all replicas in turn, and never what is younger than one
//! interval.
//!
//! Invariant: whoever writes the next number of the round is the one who compacts in it; the others take the round's
//! revision as the one to compact at next. The key is kube-apiserver's own, so the two do not get in each other's way.

use super::{Shared, revision_of, signed, wire};
use bytes::Bytes;
use std::time::Duration;

/// Outside of all prefixes, as in Kubernetes.
const KEY: &[u8] = b"compact_rev_key";

pub async fn run(shared: Shared, every: Duration) {
    let (mut round, mut revision) = (0_i64, 0_u64);
    loop {
        tokio::time::sleep(every).await;
        match turn(&shared, round, revision).await {
            Ok((next, at)) => (round, revision) = (next, at),
            Err(error) => tracing::debug!(%error, "etcd was not compacted"),
        }
    }
}

/// One round: compacts at `revision` if nobody else has; gives the next round and the revision it is to compact at.
async fn turn(shared: &Shared, round: i64, revision: u64) -> Result<(i64, u64), super::StorageError> {
    let compare = wire::Compare {
        result: 0,
        target: 0,
        key: KEY.to_vec(),
        value: Some(wire::Target::Version(round)),
        range_end: Vec::new(),
    };
    let value = Bytes::from(revision.to_string());
    let put = wire::PutRequest { key: KEY.to_vec(), value, lease: 0 };
    let read = wire::RangeRequest { key: KEY.to_vec(), ..wire::RangeRequest::default() };
    let txn = wire::TxnRequest {
        compare: vec![compare],
        success: vec![wire::step(wire::Request::Put(put))],
        failure: vec![wire::step(wire::Request::Range(read))],
    };
    let answer = shared.client.txn(txn).await?;
    let now = revision_of(answer.header.as_ref());
    if !answer.succeeded {
        let theirs = answer.responses.first().and_then(|r| r.response.as_ref());
        let version = match theirs {
            Some(wire::Response::Range(range)) => range.kvs.first().map_or(0, |kv| kv.version),
            _ => 0,
        };
        return Ok((version, now));
    }
    if revision > 0 {
        shared.client.compact(signed(revision)).await?;
        tracing::debug!(revision, "etcd forgets");
    }
    Ok((round.saturating_add(1), now))
}
