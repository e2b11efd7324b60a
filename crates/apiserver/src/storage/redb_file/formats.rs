//! What a data file keeps of changes, and files of the format before.

use super::super::engine::{Engine, EngineOptions};
use super::super::{Claims, Expect, Key, Op, Record};
use super::*;
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::OnceLock;

type Shown = (u64, ChangeKind, Key, Bytes, Option<Record>);

fn shown(change: &Change) -> Shown {
    (change.revision, change.kind, change.key.clone(), change.value.clone(), change.previous.clone())
}

fn change(revision: u64, kind: ChangeKind, name: &str, value: &str, previous: Option<(u64, &str)>) -> Change {
    let previous =
        previous.map(|(revision, value)| Record { revision, value: Bytes::copy_from_slice(value.as_bytes()) });
    let value = Bytes::copy_from_slice(value.as_bytes());
    Change { revision, kind, key: Key::new("pods", "a", name), value, previous, decoded: OnceLock::new() }
}

/// Objects that come, change and go: what the writer held of them when it ended.
async fn lived(folder: &Path, options: EngineOptions) -> (Vec<Shown>, Vec<(Key, Record)>) {
    let engine = Engine::start(RedbFile::open(folder).unwrap(), options).unwrap();
    let mut random = StdRng::seed_from_u64(3);
    for _ in 0..60 {
        // Of one object more than one change in a transaction, too.
        let mut ops: Vec<Op> = Vec::new();
        for _ in 0..random.random_range(1..4) {
            let resource = ["pods", "configmaps", "pods.metrics"][random.random_range(0..3)];
            let namespace = ["", "a", "b"][random.random_range(0..3)];
            let key = Key::new(resource, namespace, &format!("n{}", random.random_range(0..4)));
            if ops.iter().any(|op| op.key == key) {
                continue;
            }
            let expect = engine.get(&key).map_or(Expect::Absent, |record| Expect::Revision(record.revision));
            let gone = expect != Expect::Absent && random.random_range(0..3) == 0;
            let value = vec![random.random_range(b'a'..=b'z'); random.random_range(1..5000)];
            ops.push(Op { key, expect, value: (!gone).then(|| value.into()), ttl: None, claims: Claims::default() });
        }
        engine.commit(ops).await.unwrap();
    }
    let mut changes = Vec::new();
    for resource in ["pods", "configmaps", "pods.metrics"] {
        let since = (0..).find(|since| engine.tail(resource, None, *since, 1).is_ok()).unwrap();
        changes.extend(engine.tail(resource, None, since, usize::MAX).unwrap().changes.iter().map(|c| shown(c)));
    }
    changes.sort_by_key(|c| c.0);
    let (_, records) = engine.everything();
    let ended = engine.ended();
    drop(engine);
    ended.await;
    (changes, records)
}

#[tokio::test]
async fn every_change_that_is_kept_has_its_value_again() {
    for kept in [10, 1000] {
        let folder = tempfile::tempdir().unwrap();
        let options = EngineOptions { history_changes: kept, ..EngineOptions::default() };
        let (changes, records) = lived(folder.path(), options).await;
        let loaded = RedbFile::open(folder.path()).unwrap().load().unwrap();
        assert_eq!(loaded.changes.iter().map(shown).collect::<Vec<_>>(), changes, "{kept}");
        assert_eq!(loaded.records, records);
        for kind in [ChangeKind::Created, ChangeKind::Updated, ChangeKind::Deleted] {
            assert!(kept == 10 || changes.iter().any(|c| c.1 == kind), "no change is {kind:?}");
        }
    }
}

#[test]
fn a_value_is_in_one_row_only() {
    let long = "x".repeat(5000);
    let (created, updated) = (
        change(5, ChangeKind::Created, "n", &long, None),
        change(6, ChangeKind::Updated, "n", &long, Some((5, "old"))),
    );
    assert!(rows::encode_change(&created).len() < 30 && rows::encode_change(&updated).len() < 50);
}

#[test]
fn a_row_that_is_cut_or_fits_nothing_is_not_guessed_at() {
    let there = [(Key::new("pods", "a", "n"), Record { revision: 9, value: Bytes::from_static(b"new") })];
    let updated = change(9, ChangeKind::Updated, "n", "new", Some((7, "old")));
    let row = rows::encode_change(&updated);
    let decode = |revision: u64, row: &[u8], records: &[(Key, Record)]| {
        rows::Later::of(records).decode_change(revision, row).map(|c| shown(&c))
    };
    assert_eq!(decode(9, &row, &there), Some(shown(&updated)));
    for cut in 0..row.len() {
        assert_eq!(decode(9, &row[..cut], &there), None, "cut at {cut}");
    }
    assert_eq!(decode(9, &[row.as_slice(), b"x"].concat(), &there), None, "something behind it");
    assert_eq!(decode(8, &row, &there), None, "the object is of another change");
    assert_eq!(decode(9, &row, &[]), None, "nothing is left of it");
    let deleted = change(9, ChangeKind::Deleted, "n", "old", Some((7, "old")));
    assert_eq!(decode(9, &rows::encode_change(&deleted), &[]), Some(shown(&deleted)));
    assert_eq!(decode(9, &rows::encode_change(&deleted), &there), None, "gone, and there");
}

/// A row of format 1.
fn full(change: &Change) -> Vec<u8> {
    let row = rows::encode_change(change);
    let key = rows::encode_key(&change.key).len();
    let (before, previous) = row.split_at(5 + key);
    let length = u32::try_from(change.value.len()).unwrap().to_be_bytes();
    [before, &length, &change.value, previous].concat()
}

#[tokio::test]
async fn a_file_of_the_format_before_is_rewritten_with_everything_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let options = EngineOptions { history_changes: 50, ..EngineOptions::default() };
    let (changes, records) = lived(folder.path(), options).await;
    let mut file = RedbFile::open(folder.path()).unwrap();
    let new = file.load().unwrap();
    let older = file.database().unwrap().begin_write().unwrap();
    {
        let mut history = older.open_table(HISTORY).unwrap();
        for change in &new.changes {
            history.insert(change.revision, full(change).as_slice()).unwrap();
        }
        older.open_table(META).unwrap().insert("format", FULL_HISTORY).unwrap();
    }
    older.commit().unwrap();
    drop(file);
    // Twice: the second time there is nothing to rewrite.
    for _ in 0..2 {
        let mut file = RedbFile::open(folder.path()).unwrap();
        assert_eq!(format(file.database().unwrap()).unwrap(), Some(FORMAT));
        let loaded = file.load().unwrap();
        assert_eq!((loaded.revision, loaded.compacted), (new.revision, new.compacted));
        assert_eq!(loaded.changes.iter().map(shown).collect::<Vec<_>>(), changes);
        assert_eq!(loaded.records, records);
    }
    assert!(!folder.path().join("api.redb.new").exists());
    // Written to as any other.
    let engine = Engine::start(RedbFile::open(folder.path()).unwrap(), options).unwrap();
    let key = Key::new("pods", "a", "later");
    engine
        .commit(vec![Op { key, expect: Expect::Absent, value: Some("v".into()), ttl: None, claims: Claims::default() }])
        .await
        .unwrap();
    assert!(engine.revision() > new.revision);
}

#[test]
fn a_file_of_a_format_to_come_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = RedbFile::open(folder.path()).unwrap();
    let newer = file.database().unwrap().begin_write().unwrap();
    newer.open_table(META).unwrap().insert("format", FORMAT + 1).unwrap();
    newer.commit().unwrap();
    drop(file);
    let error = RedbFile::open(folder.path()).unwrap().load().unwrap_err();
    assert_eq!(error.to_string(), "storage failed: the data file has format 3, this program reads 1 and 2");
}
