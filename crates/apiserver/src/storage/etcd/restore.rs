//! A backup put into etcd.
//!
//! Invariant: while it is under way, and when it was cut short, a mark says so, and no server starts on it.

use super::super::{Key, Record, StorageError};
use super::client::Client;
use super::layout::{Layout, range_end};
use super::{EtcdOptions, asked, revision_of, wire};

/// Written in one transaction; etcd takes 128 operations and 1.5 MiB.
const TOGETHER: usize = 64;
const BYTES: usize = 512 << 10;
/// The mark's name.
const UNDER_WAY: &str = "restoring";

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There are so many objects.
    #[error("there are {0} objects already")]
    NotEmpty(usize),
    /// etcd.
    #[error("{0}")]
    Storage(#[from] StorageError),
}

/// Writes all of `records`, and `files` that servers share. Blocks; gives the revision of the last write.
///
/// # Errors
/// `NotEmpty` without `force`; what etcd says.
pub fn restore(
    options: &EtcdOptions,
    records: &[(Key, Record)],
    files: &[(&str, &[u8])],
    force: bool,
) -> Result<u64, RestoreError> {
    asked(options, async |client, layout| {
        let prefix = layout.prefix().as_bytes().to_vec();
        let there = count(&client, &prefix, &layout).await?;
        if there > 0 && !force {
            return Err(RestoreError::NotEmpty(there));
        }
        let put = |key: Vec<u8>, value: bytes::Bytes| {
            wire::step(wire::Request::Put(wire::PutRequest { key, value, lease: 0 }))
        };
        let delete = |key: Vec<u8>, range_end: Vec<u8>| {
            wire::step(wire::Request::Delete(wire::DeleteRangeRequest { key, range_end }))
        };
        let all = async |steps: Vec<wire::RequestOp>| -> Result<u64, StorageError> {
            let answer = client.txn(wire::TxnRequest { success: steps, ..wire::TxnRequest::default() }).await?;
            Ok(revision_of(answer.header.as_ref()))
        };
        all(vec![delete(prefix.clone(), range_end(&prefix))]).await?;
        all(vec![put(layout.own(UNDER_WAY), bytes::Bytes::new())]).await?;
        let mut steps: Vec<wire::RequestOp> = Vec::new();
        let mut size = 0_usize;
        for (key, record) in records {
            steps.push(put(layout.path(key), record.value.clone()));
            size = size.saturating_add(record.value.len());
            if steps.len() >= TOGETHER || size >= BYTES {
                all(std::mem::take(&mut steps)).await?;
                size = 0;
            }
        }
        for (name, content) in files {
            steps.push(put(layout.own(name), bytes::Bytes::copy_from_slice(content)));
        }
        steps.push(delete(layout.own(UNDER_WAY), Vec::new()));
        Ok(all(steps).await?)
    })
}

/// How many objects there are.
async fn count(client: &Client, prefix: &[u8], layout: &Layout) -> Result<usize, StorageError> {
    let (mut key, mut count) = (prefix.to_vec(), 0_usize);
    loop {
        let request = wire::RangeRequest {
            key: key.clone(),
            range_end: range_end(prefix),
            limit: 5_000,
            keys_only: true,
            ..wire::RangeRequest::default()
        };
        let answer = client.range(request).await?;
        count = count.saturating_add(answer.kvs.iter().filter(|kv| layout.key(&kv.key).is_some()).count());
        match answer.kvs.last() {
            Some(last) if answer.more => {
                key = last.key.clone();
                key.push(0);
            }
            _ => return Ok(count),
        }
    }
}

/// Whether a restoration was begun and not finished.
pub(super) async fn is_under_way(client: &Client, layout: &Layout) -> Result<bool, StorageError> {
    let key = layout.own(UNDER_WAY);
    let answer = client.range(wire::RangeRequest { key, ..wire::RangeRequest::default() }).await?;
    Ok(!answer.kvs.is_empty())
}
