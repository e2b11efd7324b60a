//! Everything a storage holds, as one file: lines of JSON, and a hash at the end. An object's line is what it is called, a tab,
//! and the object as it is stored, to the byte.
//!
//! Invariant: a backup is of one revision; one that was cut short or changed is not read. Restoring begins a new stretch of
//! history: revisions go on far above those that were given out, so that no watcher mistakes what came after the backup
//! for what came after the restoration (it is told to list again).
//! What it leaves to others: where the file lies and who may read it (there are Secrets and keys in it).

use crate::storage::etcd::{self, EtcdOptions};
use crate::storage::{Engine, Key, Loaded, Record, RedbFile, Storage, StorageError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::{self, BufRead, Write};
use std::path::Path;

const FORMAT: u32 = 1;
/// Added to the revision of a restored data file.
const LEAP: u64 = 1_000_000_000;
/// Longest line that is read; an object has 3 MiB at most.
const LINE: u64 = 64 << 20;

/// Everything, at one revision.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The revision.
    pub revision: u64,
    /// Objects.
    pub records: Vec<(Key, Record)>,
    /// Files of the data folder that go with them, by their path in it.
    pub files: Vec<(String, Vec<u8>)>,
}

/// Why there is no backup or no restoration.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The storage.
    #[error("{0}")]
    Storage(#[from] StorageError),
    /// The file.
    #[error("{0}")]
    File(#[from] io::Error),
    /// The file is no backup, or not a whole one.
    #[error("this is no whole backup: {0}")]
    Damaged(String),
    /// There is nothing to back up.
    #[error("there are no objects in {0}: choose another folder with --data-dir, or name --etcd-servers")]
    Nothing(String),
    /// There is something already.
    #[error("{place} holds {objects} objects already; --force replaces them")]
    NotEmpty {
        /// What.
        place: String,
        /// How many.
        objects: usize,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    carrick_backup: u32,
    revision: u64,
    objects: usize,
    files: usize,
    taken: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    resource: std::borrow::Cow<'a, str>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    namespace: std::borrow::Cow<'a, str>,
    name: std::borrow::Cow<'a, str>,
    revision: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLine {
    file: String,
    base64: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Foot {
    sha256: String,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

struct Hashed<W> {
    out: W,
    hash: Sha256,
}

impl<W: Write> Hashed<W> {
    fn line(&mut self, value: &impl Serialize, object: Option<&[u8]>) -> Result<(), BackupError> {
        let mut line = serde_json::to_vec(value).map_err(io::Error::other)?;
        if let Some(object) = object {
            line.push(b'\t');
            line.extend_from_slice(object);
        }
        line.push(b'\n');
        self.hash.update(&line);
        self.out.write_all(&line)?;
        Ok(())
    }
}

impl Snapshot {
    /// What an engine shows now.
    pub fn of(engine: &Engine) -> Self {
        let (revision, records) = engine.everything();
        Self { revision, records, files: Vec::new() }
    }

    /// What a data file holds that no server has open.
    ///
    /// # Errors
    /// As [`RedbFile::open`].
    pub fn of_folder(folder: &Path) -> Result<Self, BackupError> {
        let Loaded { revision, records, .. } = RedbFile::open(folder)?.load()?;
        Ok(Self { revision, records, files: Vec::new() })
    }

    /// What an etcd holds.
    ///
    /// # Errors
    /// As [`Engine::over_etcd`]. Blocks.
    pub fn of_etcd(cluster: EtcdOptions) -> Result<Self, BackupError> {
        Ok(Self::of(&Engine::over_etcd(cluster, crate::storage::EngineOptions::default())?))
    }

    /// Writes it; gives the hash.
    ///
    /// # Errors
    /// `File`; `Damaged` when an object is no JSON, which is none that we wrote.
    pub fn write(&self, out: impl Write, taken: &str) -> Result<String, BackupError> {
        let mut out = Hashed { out, hash: Sha256::new() };
        let head = Head {
            carrick_backup: FORMAT,
            revision: self.revision,
            objects: self.records.len(),
            files: self.files.len(),
            taken: taken.to_owned(),
        };
        out.line(&head, None)?;
        for (name, content) in &self.files {
            out.line(&FileLine { file: name.clone(), base64: STANDARD.encode(content) }, None)?;
        }
        for (key, record) in &self.records {
            // One line each: what is no compact JSON is none that we wrote.
            let compact = !record.value.contains(&b'\n') && serde_json::from_slice::<IgnoredAny>(&record.value).is_ok();
            if !compact {
                let Key { resource, namespace, name } = key;
                return Err(BackupError::Damaged(format!("{resource} {namespace}/{name} is no object")));
            }
            let line = Line {
                resource: (&*key.resource).into(),
                namespace: (&*key.namespace).into(),
                name: (&*key.name).into(),
                revision: record.revision,
            };
            out.line(&line, Some(&record.value))?;
        }
        let sha256 = hex(&out.hash.clone().finalize());
        out.line(&Foot { sha256: sha256.clone() }, None)?;
        out.out.flush()?;
        Ok(sha256)
    }

    /// Reads one whole, and believes it only then.
    ///
    /// # Errors
    /// `Damaged`, `File`.
    pub fn read(mut from: impl BufRead) -> Result<Self, BackupError> {
        let mut hash = Sha256::new();
        let damaged = |what: &dyn std::fmt::Display| BackupError::Damaged(what.to_string());
        let mut line = Vec::new();
        let mut next = |hash: &mut Sha256, last: bool| -> Result<Vec<u8>, BackupError> {
            line.clear();
            io::Read::take(&mut from, LINE).read_until(b'\n', &mut line)?;
            if line.last() != Some(&b'\n') {
                return Err(damaged(&"it ends in the middle"));
            }
            if !last {
                hash.update(&line);
            }
            Ok(line.clone())
        };
        let head: Head = serde_json::from_slice(&next(&mut hash, false)?).map_err(|e| damaged(&e))?;
        if head.carrick_backup != FORMAT {
            return Err(damaged(&format!("it has format {}, this program reads {FORMAT}", head.carrick_backup)));
        }
        let mut snapshot = Self { revision: head.revision, ..Self::default() };
        for _ in 0..head.files {
            let line: FileLine = serde_json::from_slice(&next(&mut hash, false)?).map_err(|e| damaged(&e))?;
            let escapes = Path::new(&line.file).components().any(|c| !matches!(c, std::path::Component::Normal(_)));
            if escapes {
                return Err(damaged(&format!("a file named {:?}", line.file)));
            }
            let content = STANDARD.decode(&line.base64).map_err(|e| damaged(&e))?;
            snapshot.files.push((line.file, content));
        }
        for _ in 0..head.objects {
            let bytes = next(&mut hash, false)?;
            let tab = bytes.iter().position(|b| *b == b'\t').ok_or_else(|| damaged(&"a line without an object"))?;
            let (line, object) = bytes.split_at(tab);
            let line: Line<'_> = serde_json::from_slice(line).map_err(|e| damaged(&e))?;
            let object = object.get(1..object.len().saturating_sub(1)).unwrap_or_default();
            let value = Bytes::copy_from_slice(object);
            let key = Key::new(&line.resource, &line.namespace, &line.name);
            snapshot.records.push((key, Record { revision: line.revision, value }));
        }
        let foot: Foot = serde_json::from_slice(&next(&mut hash, true)?).map_err(|e| damaged(&e))?;
        let found = hex(&hash.finalize());
        if foot.sha256 != found {
            return Err(damaged(&format!("its hash is {found}, not {}", foot.sha256)));
        }
        if !from.fill_buf()?.is_empty() {
            return Err(damaged(&"something follows its end"));
        }
        Ok(snapshot)
    }

    /// Puts the objects into a data file, in place of what is there if `force`. The file changes whole or not at all.
    ///
    /// # Errors
    /// `NotEmpty`, `Storage`.
    pub fn restore_folder(&self, folder: &Path, force: bool) -> Result<u64, BackupError> {
        RedbFile::replace(folder, |there| {
            let objects = there.records.len();
            if objects > 0 && !force {
                return Err(BackupError::NotEmpty { place: folder.display().to_string(), objects });
            }
            let revision = self.revision.max(there.revision).saturating_add(LEAP);
            let records = self.records.clone();
            Ok(Loaded { revision, compacted: revision, records, changes: Vec::new() })
        })
    }

    /// Puts the objects into an etcd, in place of what is there if `force`. Blocks. A restoration that was cut short is
    /// told of by servers that start on it, and is done anew with `force`.
    ///
    /// # Errors
    /// `NotEmpty`, `Storage`.
    pub fn restore_etcd(&self, cluster: &EtcdOptions, force: bool) -> Result<u64, BackupError> {
        let shared = |name: &str| self.files.iter().find(|(file, _)| file == &format!("pki/{name}"));
        let files: Vec<(&str, &[u8])> =
            crate::auth::certs::SHARED.iter().filter_map(|name| Some((*name, shared(name)?.1.as_slice()))).collect();
        etcd::restore(cluster, &self.records, &files, force).map_err(|error| match error {
            etcd::RestoreError::NotEmpty(objects) => {
                let place = cluster.servers.first().map_or_else(String::new, ToString::to_string);
                BackupError::NotEmpty { place, objects }
            }
            etcd::RestoreError::Storage(error) => BackupError::Storage(error),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::EngineOptions;

    fn sample() -> Snapshot {
        let record =
            |n: u64| Record { revision: n, value: Bytes::from(format!("{{\"kind\":\"ConfigMap\",\"n\":{n}}}")) };
        Snapshot {
            revision: 42,
            records: (0..5).map(|n| (Key::new("configmaps", "a", &format!("c{n}")), record(n + 7))).collect(),
            files: vec![("pki/api-ca.pem".into(), b"secret".to_vec())],
        }
    }

    fn text(snapshot: &Snapshot) -> Vec<u8> {
        let mut out = Vec::new();
        snapshot.write(&mut out, "2026-01-01T00:00:00Z").unwrap();
        out
    }

    #[test]
    fn a_backup_is_read_whole_or_not_at_all() {
        let bytes = text(&sample());
        let back = Snapshot::read(bytes.as_slice()).unwrap();
        assert_eq!((back.revision, &back.records, &back.files), (42, &sample().records, &sample().files));
        for cut in 0..bytes.len() {
            assert!(Snapshot::read(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            assert!(Snapshot::read(bytes.as_slice()).is_err(), "changed at {at}");
        }
        let mut longer = bytes.clone();
        longer.push(b'x');
        assert!(Snapshot::read(longer.as_slice()).is_err());
        let escaping = Snapshot { files: vec![("../x".into(), Vec::new())], ..sample() };
        assert!(Snapshot::read(text(&escaping).as_slice()).is_err());
    }

    #[tokio::test]
    async fn a_data_file_is_replaced_only_when_told_and_history_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let revision = sample().restore_folder(folder.path(), false).unwrap();
        assert!(revision > 42 + 1_000_000);
        assert!(matches!(sample().restore_folder(folder.path(), false), Err(BackupError::NotEmpty { objects: 5, .. })));
        let smaller = Snapshot { records: sample().records[..2].to_vec(), ..sample() };
        let again = smaller.restore_folder(folder.path(), true).unwrap();
        assert!(again > revision, "no revision is given out twice");
        let engine = Engine::start(RedbFile::open(folder.path()).unwrap(), EngineOptions::default()).unwrap();
        assert_eq!((engine.revision(), engine.count("configmaps")), (again, 2));
        assert_eq!(engine.get(&smaller.records[0].0), Some(smaller.records[0].1.clone()));
        assert!(matches!(engine.tail("configmaps", None, revision, 9), Err(StorageError::Compacted { .. })));
        assert!(matches!(
            sample().restore_folder(folder.path(), true),
            Err(BackupError::Storage(StorageError::Locked(_)))
        ));
        assert_eq!(Snapshot::of(&engine).records, smaller.records);
    }
}
