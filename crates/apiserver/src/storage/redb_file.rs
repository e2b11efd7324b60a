//! The embedded backend: one redb file, exclusively ours, synced at every commit.
//!
//! Invariant: records, history and the revision counter change in one transaction, which is synced to the medium
//! (`fdatasync`) before it is answered: there is no mode that answers earlier. A transaction that a crash cut short is
//! not there at the next start; a page that is not what was written is found at the start (every page has a hash), and
//! then the file is refused and left alone, never guessed at. So is an unknown version of the format.
//! What it leaves to others: everything in memory (`image`), batching (`engine`).

use super::{Change, ChangeKind, Key, Loaded, Record, Storage, StorageError};
use bytes::Bytes;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

const RECORDS: TableDefinition<&str, &[u8]> = TableDefinition::new("records");
const HISTORY: TableDefinition<u64, &[u8]> = TableDefinition::new("history");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const FORMAT: u64 = 1;
/// Bytes read at once when a file is read ahead.
const READ_AHEAD: usize = 1 << 20;
/// Page cache; all reads are at start, so it serves the writer only.
const CACHE_BYTES: usize = 16 << 20;

type Open = Box<dyn Fn() -> Result<Database, StorageError> + Send>;

/// An open data file and the lock of its folder.
pub struct RedbFile {
    open: Open,
    /// Absent between a failed commit and the recovery from it.
    database: Option<Database>,
    _lock: Option<FolderLock>,
}

/// Held by whoever uses a data folder; given back when dropped, however the process ends.
#[derive(Debug)]
pub struct FolderLock(#[allow(dead_code, reason = "held for its lock")] File);

impl FolderLock {
    /// Takes the folder for this process.
    ///
    /// # Errors
    /// `Locked` when another process has it, `Medium` when the lock's file cannot be written.
    pub fn take(folder: &Path) -> Result<Self, StorageError> {
        lock(folder).map(Self)
    }
}

fn medium(error: impl std::fmt::Display) -> StorageError {
    StorageError::Medium(error.to_string())
}

impl RedbFile {
    /// Takes the folder for this process and opens (or creates) `api.redb` in it.
    ///
    /// # Errors
    /// `Locked` when another process has the folder, `Medium` when the file cannot be opened or repaired.
    pub fn open(folder: &Path) -> Result<Self, StorageError> {
        let lock = FolderLock::take(folder)?;
        let path = folder.join("api.redb");
        if !path.exists() {
            // Whole or not at all: a file that a crash left half made could not be told from a damaged one.
            place(folder, &Loaded { revision: 1, ..Loaded::default() })?;
        }
        let mut file = Self::over(Box::new(move || {
            let shown = |e: &dyn std::fmt::Display| StorageError::Medium(format!("{}: {e}", path.display()));
            let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
            let backend = file.map_err(|e| shown(&e)).and_then(|f| FileBackend::new(f).map_err(|e| shown(&e)))?;
            let opened = std::thread::scope(|scope| {
                scope.spawn(|| read_ahead(&path));
                database(backend)
            });
            opened.map_err(|e| match e {
                damaged @ redb::DatabaseError::Storage(redb::StorageError::Corrupted(_)) => {
                    StorageError::Medium(format!(
                        "{}: {damaged}; the file is left as it is: keep it, and restore a backup (`carrick restore`)",
                        path.display()
                    ))
                }
                other => shown(&other),
            })
        }))?;
        file._lock = Some(lock);
        Ok(file)
    }

    /// Puts what `content` makes of what is there in its place: aside, synced, and then by one renaming. Gives the new
    /// revision.
    ///
    /// # Errors
    /// What `content` says; `Locked` when a server uses the folder; `Medium`.
    pub fn replace<E: From<StorageError>>(
        folder: &Path,
        content: impl FnOnce(Loaded) -> Result<Loaded, E>,
    ) -> Result<u64, E> {
        let mut old = Self::open(folder)?;
        let content = content(old.load()?)?;
        // Closed before it is replaced; the folder's lock is held on.
        old.database = None;
        place(folder, &content)?;
        Ok(content.revision)
    }

    /// A data file wherever `open` finds it.
    fn over(open: Open) -> Result<Self, StorageError> {
        let database = Some(open()?);
        Ok(Self { open, database, _lock: None })
    }

    fn database(&self) -> Result<&Database, StorageError> {
        self.database.as_ref().ok_or_else(|| medium("the data file is closed after a failure"))
    }
}

/// Reads a file from its beginning to its end, beside whoever reads it page by page: a medium gives one long piece much faster than many
/// short ones from all over.
fn read_ahead(path: &Path) {
    let Ok(mut file) = File::open(path) else { return };
    let mut buffer = vec![0; READ_AHEAD];
    // Whoever needs a page that cannot be read finds that out.
    while file.read(&mut buffer).is_ok_and(|length| length > 0) {}
}

/// The database of a medium; every page is verified.
fn database(backend: impl StorageBackend) -> Result<Database, redb::DatabaseError> {
    Database::builder().set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true).create_with_backend(backend)
}

/// An exclusive lock that the kernel drops with the process, however it ends; holds the owner's pid for the message.
fn lock(folder: &Path) -> Result<File, StorageError> {
    let path = folder.join("api.lock");
    let describe = |e: std::io::Error| StorageError::Medium(format!("{}: {e}", path.display()));
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(describe)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(std::fs::TryLockError::WouldBlock) => {
            let mut owner = String::new();
            // Only for the message: an unreadable pid is left out.
            let _unreadable = (&mut file).take(32).read_to_string(&mut owner);
            let owner = owner.trim();
            let who = if owner.is_empty() { "another process".to_owned() } else { format!("process {owner}") };
            return Err(StorageError::Locked(format!("the data folder {} is in use by {who}", folder.display())));
        }
        Err(std::fs::TryLockError::Error(error)) => return Err(describe(error)),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(describe)?;
    Ok(file)
}

impl Storage for RedbFile {
    fn load(&mut self) -> Result<Loaded, StorageError> {
        let setup = self.database()?.begin_write().map_err(medium)?;
        let mut loaded = Loaded::default();
        {
            let mut meta = setup.open_table(META).map_err(medium)?;
            let get = |meta: &redb::Table<&str, u64>, key: &str| -> Result<Option<u64>, StorageError> {
                Ok(meta.get(key).map_err(medium)?.map(|v| v.value()))
            };
            match get(&meta, "format")? {
                None => {
                    meta.insert("format", FORMAT).map_err(medium)?;
                    meta.insert("revision", 1).map_err(medium)?;
                }
                Some(FORMAT) => {}
                Some(other) => {
                    return Err(StorageError::Medium(format!(
                        "the data file has format {other}, this program reads {FORMAT}"
                    )));
                }
            }
            loaded.revision = get(&meta, "revision")?.unwrap_or(1);
            loaded.compacted = get(&meta, "compacted")?.unwrap_or(0);
            setup.open_table(RECORDS).map_err(medium)?;
            setup.open_table(HISTORY).map_err(medium)?;
        }
        setup.commit().map_err(medium)?;
        let read = self.database()?.begin_read().map_err(medium)?;
        for row in read.open_table(RECORDS).map_err(medium)?.iter().map_err(medium)? {
            let (key, value) = row.map_err(medium)?;
            let key = decode_key(key.value()).ok_or_else(|| medium("a damaged key"))?;
            let record = decode_record(value.value()).ok_or_else(|| medium("a damaged record"))?;
            loaded.records.push((key, record));
        }
        for row in read.open_table(HISTORY).map_err(medium)?.iter().map_err(medium)? {
            let (revision, value) = row.map_err(medium)?;
            let change =
                decode_change(revision.value(), value.value()).ok_or_else(|| medium("a damaged history entry"))?;
            loaded.changes.push(change);
        }
        Ok(loaded)
    }

    fn commit(&mut self, changes: &[Arc<Change>], compact_through: u64) -> Result<(), StorageError> {
        let transaction = self.database()?.begin_write().map_err(medium)?;
        {
            let mut records = transaction.open_table(RECORDS).map_err(medium)?;
            let mut history = transaction.open_table(HISTORY).map_err(medium)?;
            let mut meta = transaction.open_table(META).map_err(medium)?;
            for change in changes {
                let key = encode_key(&change.key);
                if change.kind == ChangeKind::Deleted {
                    records.remove(key.as_str()).map_err(medium)?;
                } else {
                    let record = encode_record(change.revision, &change.value);
                    records.insert(key.as_str(), record.as_slice()).map_err(medium)?;
                }
                history.insert(change.revision, encode_change(change).as_slice()).map_err(medium)?;
                meta.insert("revision", change.revision).map_err(medium)?;
            }
            while history.first().map_err(medium)?.is_some_and(|(revision, _)| revision.value() <= compact_through) {
                history.pop_first().map_err(medium)?;
            }
            meta.insert("compacted", compact_through).map_err(medium)?;
        }
        transaction.commit().map_err(medium)
    }

    fn recover(&mut self) -> Result<u64, StorageError> {
        // Closed first: two handles of one file would not know of each other.
        self.database = None;
        let database = (self.open)()?;
        let read = database.begin_read().map_err(medium)?;
        let meta = read.open_table(META).map_err(medium)?;
        let revision = meta.get("revision").map_err(medium)?.map_or(1, |v| v.value());
        drop((meta, read));
        self.database = Some(database);
        Ok(revision)
    }
}

/// Makes a data file of `content`: aside, synced, and then in its place by one renaming.
fn place(folder: &Path, content: &Loaded) -> Result<(), StorageError> {
    let aside = folder.join("api.redb.new");
    let io = |e: std::io::Error| StorageError::Medium(format!("{}: {e}", aside.display()));
    let file =
        File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(&aside).map_err(io)?;
    let new = database(FileBackend::new(file).map_err(medium)?).map_err(medium)?;
    fill(&new, content)?;
    drop(new);
    std::fs::rename(&aside, folder.join("api.redb")).map_err(io)?;
    File::open(folder).and_then(|f| f.sync_all()).map_err(io)
}

/// Writes a whole state into a new file.
fn fill(database: &Database, content: &Loaded) -> Result<(), StorageError> {
    let transaction = database.begin_write().map_err(medium)?;
    {
        let mut meta = transaction.open_table(META).map_err(medium)?;
        for (name, value) in [("format", FORMAT), ("revision", content.revision), ("compacted", content.compacted)] {
            meta.insert(name, value).map_err(medium)?;
        }
        let mut records = transaction.open_table(RECORDS).map_err(medium)?;
        for (key, record) in &content.records {
            let bytes = encode_record(record.revision, &record.value);
            records.insert(encode_key(key).as_str(), bytes.as_slice()).map_err(medium)?;
        }
        let mut history = transaction.open_table(HISTORY).map_err(medium)?;
        for change in &content.changes {
            history.insert(change.revision, encode_change(change).as_slice()).map_err(medium)?;
        }
    }
    transaction.commit().map_err(medium)
}

fn encode_key(key: &Key) -> String {
    format!("{}\0{}\0{}", key.resource, key.namespace, key.name)
}

fn decode_key(text: &str) -> Option<Key> {
    let mut parts = text.split('\0');
    let key = Key::new(parts.next()?, parts.next()?, parts.next()?);
    parts.next().is_none().then_some(key)
}

fn encode_record(revision: u64, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len().saturating_add(8));
    out.extend_from_slice(&revision.to_be_bytes());
    out.extend_from_slice(value);
    out
}

fn decode_record(bytes: &[u8]) -> Option<Record> {
    let (revision, value) = bytes.split_first_chunk::<8>()?;
    Some(Record { revision: u64::from_be_bytes(*revision), value: Bytes::copy_from_slice(value) })
}

/// kind, key, value, then the previous record if there was one; every part with its length before it.
fn encode_change(change: &Change) -> Vec<u8> {
    let mut out = Vec::with_capacity(change.weight());
    out.push(match change.kind {
        ChangeKind::Created => 1,
        ChangeKind::Updated => 2,
        ChangeKind::Deleted => 3,
    });
    let mut part = |bytes: &[u8]| {
        out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(bytes);
    };
    part(encode_key(&change.key).as_bytes());
    part(&change.value);
    if let Some(previous) = &change.previous {
        part(&encode_record(previous.revision, &previous.value));
    }
    out
}

fn decode_change(revision: u64, bytes: &[u8]) -> Option<Change> {
    let (kind, mut rest) = bytes.split_first()?;
    let kind = match kind {
        1 => ChangeKind::Created,
        2 => ChangeKind::Updated,
        3 => ChangeKind::Deleted,
        _ => return None,
    };
    let mut part = || -> Option<&[u8]> {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let (part, after) = after.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        rest = after;
        Some(part)
    };
    let key = decode_key(std::str::from_utf8(part()?).ok()?)?;
    let value = Bytes::copy_from_slice(part()?);
    let previous = match kind {
        ChangeKind::Created => None,
        ChangeKind::Updated | ChangeKind::Deleted => Some(decode_record(part()?)?),
    };
    rest.is_empty().then_some(Change { revision, kind, key, value, previous, decoded: OnceLock::new() })
}

#[cfg(test)]
mod crashes;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_survive_the_file_form() {
        let previous = Record { revision: 7, value: Bytes::from_static(b"old") };
        for (kind, previous) in [
            (ChangeKind::Created, None),
            (ChangeKind::Updated, Some(previous.clone())),
            (ChangeKind::Deleted, Some(previous)),
        ] {
            let change = Change {
                revision: 9,
                kind,
                key: Key::new("pods", "a", "b"),
                value: Bytes::from_static(b"new"),
                previous,
                decoded: OnceLock::new(),
            };
            let bytes = encode_change(&change);
            let back = decode_change(9, &bytes).unwrap();
            assert_eq!(
                (back.kind, &back.key, &back.value, &back.previous),
                (change.kind, &change.key, &change.value, &change.previous)
            );
            for cut in 0..bytes.len() {
                assert!(decode_change(9, &bytes[..cut]).is_none(), "cut at {cut}");
            }
        }
    }
}
