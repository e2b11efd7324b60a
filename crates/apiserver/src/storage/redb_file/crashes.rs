//! A medium in memory that remembers each write and sync, so that every crash between two of them can be tried: what was
//! acknowledged is there, what was not is there whole or not at all.

use super::super::engine::{Engine, EngineOptions};
use super::*;
use crate::storage::{Claims, Expect, Key, Op, Record};
use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

#[derive(Debug, Clone)]
enum Step {
    Write(usize, Vec<u8>),
    Length(usize),
    Sync,
}

/// The medium; clones are handles of the same.
#[derive(Debug, Clone, Default)]
struct Disk {
    bytes: Arc<Mutex<Vec<u8>>>,
    steps: Arc<Mutex<Vec<Step>>>,
    /// Bytes that fit; 0: any number.
    room: Arc<AtomicUsize>,
    /// Writes fail.
    read_only: Arc<AtomicBool>,
    /// Syncs fail.
    unsynced: Arc<AtomicBool>,
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

impl Disk {
    fn holding(bytes: Vec<u8>) -> Self {
        Self { bytes: Arc::new(Mutex::new(bytes)), ..Self::default() }
    }

    fn file(&self) -> Result<RedbFile, StorageError> {
        let disk = self.clone();
        RedbFile::over(Box::new(move || database(disk.clone()).map_err(medium)))
    }

    fn bytes(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, step: Step) {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).push(step);
    }

    fn steps(&self) -> Vec<Step> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn writable(&self) -> io::Result<()> {
        if self.read_only.load(Ordering::SeqCst) { Err(io::ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let (bytes, from) = (self.bytes(), at(offset));
        let part = bytes.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(part);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.writable()?;
        let room = self.room.load(Ordering::SeqCst);
        if room > 0 && at(len) > room {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bytes().resize(at(len), 0);
        self.note(Step::Length(at(len)));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.unsynced.load(Ordering::SeqCst) {
            return Err(io::Error::other("the medium does not sync"));
        }
        self.note(Step::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.writable()?;
        apply(&mut self.bytes(), &Step::Write(at(offset), data.to_vec()));
        self.note(Step::Write(at(offset), data.to_vec()));
        Ok(())
    }
}

fn apply(bytes: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Write(from, data) => {
            if bytes.len() < from + data.len() {
                bytes.resize(from + data.len(), 0);
            }
            bytes[*from..from + data.len()].copy_from_slice(data);
        }
        Step::Length(length) => bytes.resize(*length, 0),
        Step::Sync => {}
    }
}

type Records = BTreeMap<Key, Record>;

fn records(loaded: &Loaded) -> Records {
    loaded.records.iter().cloned().collect()
}

/// What a file went through: its steps, the state at each revision, and which revision was acknowledged after how many steps.
struct Story {
    steps: Vec<Step>,
    states: BTreeMap<u64, Records>,
    acknowledged: Vec<(usize, u64)>,
}

fn story(commits: usize) -> (Disk, Story) {
    let disk = Disk::default();
    let mut random = StdRng::seed_from_u64(7);
    let mut file = disk.file().unwrap();
    let mut now = records(&file.load().unwrap());
    let mut revision = 1;
    let mut states = BTreeMap::from([(revision, now.clone())]);
    let mut acknowledged = vec![(disk.steps().len(), revision)];
    for _ in 0..commits {
        let mut batch = Vec::new();
        for _ in 0..random.random_range(1..4) {
            revision += 1;
            let key = Key::new("configmaps", "default", &format!("c{}", random.random_range(0..6)));
            let previous = now.get(&key).cloned();
            let gone = previous.is_some() && random.random_range(0..4) == 0;
            let value = Bytes::from(vec![random.random::<u8>(); random.random_range(10..6000)]);
            let kind = match (&previous, gone) {
                (_, true) => ChangeKind::Deleted,
                (Some(_), _) => ChangeKind::Updated,
                (None, _) => ChangeKind::Created,
            };
            if gone {
                now.remove(&key);
            } else {
                now.insert(key.clone(), Record { revision, value: value.clone() });
            }
            states.insert(revision, now.clone());
            batch.push(Arc::new(Change { revision, kind, key, value, previous, decoded: OnceLock::new() }));
        }
        file.commit(&batch, revision.saturating_sub(8)).unwrap();
        acknowledged.push((disk.steps().len(), revision));
    }
    drop(file);
    let steps = disk.steps();
    (disk, Story { steps, states, acknowledged })
}

/// The bytes after a crash behind step `after`: everything that was synced, and some of the rest, one of it torn.
fn crashed(story: &Story, after: usize, random: &mut StdRng, in_order: bool) -> Vec<u8> {
    let steps = &story.steps[..after];
    let synced = steps.iter().rposition(|s| matches!(s, Step::Sync)).map_or(0, |i| i + 1);
    let mut bytes = Vec::new();
    for step in &steps[..synced] {
        apply(&mut bytes, step);
    }
    let rest = &steps[synced..];
    for (index, step) in rest.iter().enumerate() {
        let last = index + 1 == rest.len();
        match step {
            Step::Write(from, data) if last || !in_order && random.random_range(0..4) == 0 => {
                let torn = random.random_range(0..=data.len());
                apply(&mut bytes, &Step::Write(*from, data[..torn].to_vec()));
            }
            Step::Write(..) if !in_order && random.random_range(0..3) == 0 => {}
            step => apply(&mut bytes, step),
        }
    }
    bytes
}

#[test]
fn whatever_a_crash_tears_the_acknowledged_is_there() {
    let (_, story) = story(12);
    let mut random = StdRng::seed_from_u64(1);
    let mut newer = 0;
    // Before that the file does not lie in its place yet.
    for after in story.acknowledged[0].0..=story.steps.len() {
        let acknowledged = story.acknowledged.iter().rev().find(|(steps, _)| *steps <= after).map_or(0, |a| a.1);
        for in_order in [true, false] {
            let bytes = crashed(&story, after, &mut random, in_order);
            let loaded = Disk::holding(bytes).file().and_then(|mut file| file.load());
            let loaded = match loaded {
                Ok(loaded) => loaded,
                Err(error) => panic!("crash after step {after} of {}: {error}", story.steps.len()),
            };
            assert!(loaded.revision >= acknowledged, "step {after}: {} of {acknowledged}", loaded.revision);
            assert_eq!(Some(&records(&loaded)), story.states.get(&loaded.revision), "step {after}");
            newer += usize::from(loaded.revision > acknowledged);
        }
    }
    assert!(newer > 0, "no crash came between durability and acknowledgement");
}

#[test]
fn a_damaged_file_is_told_of_or_whole() {
    let (disk, story) = story(12);
    let whole = disk.bytes().clone();
    let (newest, state) = story.states.last_key_value().unwrap();
    // Where the last commits wrote: their pages, and the header.
    let tail: Vec<usize> = story.steps[story.acknowledged[9].0..]
        .iter()
        .filter_map(|s| if let Step::Write(from, data) = s { Some(*from..from + data.len()) } else { None })
        .flatten()
        .collect();
    let every = std::env::var("CARRICK_EVERY_OFFSET").is_ok();
    let stride = if every { 1 } else { (tail.len() / 100).max(1) };
    let (mut refused, mut good) = (0, 0);
    let mut check = |bytes: Vec<u8>, what: String| {
        let outcome = std::panic::catch_unwind(|| Disk::holding(bytes).file().and_then(|mut file| file.load()));
        match outcome.unwrap_or_else(|_| panic!("{what}: a panic")) {
            Ok(loaded) => {
                assert_eq!(loaded.revision, *newest, "{what}");
                assert_eq!(&records(&loaded), state, "{what}");
                good += 1;
            }
            Err(StorageError::Medium(_)) => refused += 1,
            Err(other) => panic!("{what}: {other}"),
        }
    };
    for offset in tail.iter().copied().step_by(stride).filter(|o| *o < whole.len()) {
        let mut bytes = whole.clone();
        bytes[offset] ^= 1 << (offset % 8);
        check(bytes, format!("a bit at {offset}"));
    }
    let header = 512.min(whole.len());
    for offset in (0..header).step_by(if every { 1 } else { 9 }) {
        let mut bytes = whole.clone();
        bytes[offset] ^= 0x40;
        check(bytes, format!("a bit of the header at {offset}"));
    }
    let step = if every { 512 } else { whole.len() / 25 };
    for length in (1..whole.len()).step_by(step.max(1)) {
        check(whole[..length].to_vec(), format!("cut to {length}"));
    }
    assert!(refused > 0 && good > 0, "{refused} refused, {good} good");
}

fn put(name: &str, expect: Expect, size: usize) -> Vec<Op> {
    let key = Key::new("configmaps", "default", name);
    vec![Op { key, expect, value: Some(Bytes::from(vec![b'x'; size])), ttl: None, claims: Claims::default() }]
}

#[tokio::test]
async fn a_medium_that_fails_for_a_while_is_used_again() {
    for fault in 0..3 {
        let disk = Disk::default();
        let engine = Engine::start(disk.file().unwrap(), EngineOptions::default()).unwrap();
        let first = engine.commit(put("a", Expect::Absent, 100)).await.unwrap();
        let break_it = |on: bool| match fault {
            0 => disk.room.store(if on { 1 } else { 0 }, Ordering::SeqCst),
            1 => disk.read_only.store(on, Ordering::SeqCst),
            _ => disk.unsynced.store(on, Ordering::SeqCst),
        };
        break_it(true);
        for attempt in 0..3 {
            // More than the file's spare room.
            let error = engine.commit(put(&format!("b{attempt}"), Expect::Absent, 6 << 20)).await.unwrap_err();
            assert!(matches!(error, StorageError::Medium(_)), "{fault}: {error}");
            assert!(!engine.healthy());
            assert_eq!(
                engine.get(&Key::new("configmaps", "default", "a")).map(|r| r.revision),
                Some(first[0].revision)
            );
        }
        break_it(false);
        let after = engine.commit(put("c", Expect::Absent, 100)).await.unwrap();
        assert!(after[0].revision > first[0].revision && engine.healthy());
        let shown = engine.page("configmaps", None, None, None, None).unwrap();
        let ended = engine.ended();
        drop(engine);
        ended.await;
        let loaded = disk.file().unwrap().load().unwrap();
        assert_eq!(loaded.revision, shown.revision, "{fault}");
        assert_eq!(records(&loaded), shown.items.into_iter().collect::<Records>(), "{fault}");
    }
}
