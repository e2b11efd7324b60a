//! The embedded backend: one redb file, exclusively ours, synced at every commit.
//!
//! Invariant: records, history and the revision counter change in one transaction, which is synced to the medium
//! (`fdatasync`) before it is answered: there is no mode that answers earlier. A transaction that a crash cut short is
//! not there at the next start; a page that is not what was written is found at the start (every page has a hash), and
//! then the file is refused and left alone, never guessed at. So is an unknown version of the format; an older one is
//! rewritten aside and put in its place, with everything that is in it.
//! What it leaves to others: rows as bytes (`rows`), everything in memory (`image`), batching (`engine`).

mod ahead;
mod rows;

use super::{Change, ChangeKind, Loaded, Storage, StorageError};
use ahead::Ahead;
use redb::backends::FileBackend;
use redb::{
    Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageBackend, TableDefinition, TableError,
};
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

const RECORDS: TableDefinition<&str, &[u8]> = TableDefinition::new("records");
const HISTORY: TableDefinition<u64, &[u8]> = TableDefinition::new("history");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// 2: a change is kept without its own value, which the next change of its object or the object has.
const FORMAT: u64 = 2;
/// Read still, and rewritten when it is opened: a change has its own value beside it.
const FULL_HISTORY: u64 = 1;
/// Page cache; all reads are at start, so it serves the writer only.
const CACHE_BYTES: usize = 16 << 20;

type Open = Box<dyn Fn() -> Result<Database, StorageError> + Send>;

/// An open data file and the lock of its folder.
pub struct RedbFile {
    open: Open,
    /// Absent between a failed commit and the recovery from it.
    database: Option<Database>,
    /// What is held of the file until everything is loaded.
    ahead: Ahead,
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
        let ahead = Ahead::default();
        let whole = ahead.clone();
        let mut file = Self::over(Box::new(move || {
            let shown = |e: &dyn std::fmt::Display| StorageError::Medium(format!("{}: {e}", path.display()));
            let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
            let backend = file.map_err(|e| shown(&e)).and_then(|f| whole.read(f).map_err(|e| shown(&e)))?;
            database(backend).map_err(|e| match e {
                damaged @ redb::DatabaseError::Storage(redb::StorageError::Corrupted(_)) => {
                    StorageError::Medium(format!(
                        "{}: {damaged}; the file is left as it is: keep it, and restore a backup (`carrick restore`)",
                        path.display()
                    ))
                }
                other => shown(&other),
            })
        }))?;
        file.ahead = ahead;
        file._lock = Some(lock);
        file.renew(folder)?;
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

    /// Rewrites a file of an older format.
    fn renew(&mut self, folder: &Path) -> Result<(), StorageError> {
        if format(self.database()?)? != Some(FULL_HISTORY) {
            return Ok(());
        }
        let content = read(self.database()?, FULL_HISTORY)?;
        tracing::info!(from = FULL_HISTORY, to = FORMAT, objects = content.records.len(), "the data file is rewritten");
        // Closed before it is replaced, as in `replace`.
        self.database = None;
        place(folder, &content)?;
        self.database = Some((self.open)()?);
        Ok(())
    }

    /// A data file wherever `open` finds it.
    fn over(open: Open) -> Result<Self, StorageError> {
        let database = Some(open()?);
        Ok(Self { open, database, ahead: Ahead::default(), _lock: None })
    }

    fn database(&self) -> Result<&Database, StorageError> {
        self.database.as_ref().ok_or_else(|| medium("the data file is closed after a failure"))
    }
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
        let database = self.database()?;
        let loaded = match format(database)? {
            Some(FORMAT) => read(database, FORMAT),
            Some(other) => Err(unknown(other)),
            None => {
                let new = Loaded { revision: 1, ..Loaded::default() };
                fill(database, &new)?;
                Ok(new)
            }
        };
        self.ahead.forget();
        loaded
    }

    fn commit(&mut self, changes: &[Arc<Change>], compact_through: u64) -> Result<(), StorageError> {
        let transaction = self.database()?.begin_write().map_err(medium)?;
        {
            let mut records = transaction.open_table(RECORDS).map_err(medium)?;
            let mut history = transaction.open_table(HISTORY).map_err(medium)?;
            let mut meta = transaction.open_table(META).map_err(medium)?;
            for change in changes {
                let key = rows::encode_key(&change.key);
                if change.kind == ChangeKind::Deleted {
                    records.remove(key.as_str()).map_err(medium)?;
                } else {
                    let record = rows::encode_record(change.revision, &change.value);
                    records.insert(key.as_str(), record.as_slice()).map_err(medium)?;
                }
                history.insert(change.revision, rows::encode_change(change).as_slice()).map_err(medium)?;
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
        self.ahead.forget();
        let read = database.begin_read().map_err(medium)?;
        let meta = read.open_table(META).map_err(medium)?;
        let revision = meta.get("revision").map_err(medium)?.map_or(1, |v| v.value());
        drop((meta, read));
        self.database = Some(database);
        Ok(revision)
    }
}

fn unknown(format: u64) -> StorageError {
    StorageError::Medium(format!("the data file has format {format}, this program reads {FULL_HISTORY} and {FORMAT}"))
}

/// The format of a file; `None` while nothing is in it.
fn format(database: &Database) -> Result<Option<u64>, StorageError> {
    let read = database.begin_read().map_err(medium)?;
    match read.open_table(META) {
        Ok(meta) => Ok(meta.get("format").map_err(medium)?.map(|v| v.value())),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(medium(error)),
    }
}

/// Everything in a file of this format.
fn read(database: &Database, format: u64) -> Result<Loaded, StorageError> {
    let read = database.begin_read().map_err(medium)?;
    let meta = read.open_table(META).map_err(medium)?;
    let get =
        |name: &str| -> Result<Option<u64>, StorageError> { Ok(meta.get(name).map_err(medium)?.map(|v| v.value())) };
    let (revision, compacted) = (get("revision")?.unwrap_or(1), get("compacted")?.unwrap_or(0));
    let table = read.open_table(RECORDS).map_err(medium)?;
    let mut records = Vec::with_capacity(usize::try_from(table.len().map_err(medium)?).unwrap_or_default());
    let mut keys = rows::Keys::default();
    for row in table.iter().map_err(medium)? {
        let (key, value) = row.map_err(medium)?;
        let key = keys.decode(key.value()).ok_or_else(|| medium("a damaged key"))?;
        let record = rows::decode_record(value.value()).ok_or_else(|| medium("a damaged record"))?;
        records.push((key, record));
    }
    let table = read.open_table(HISTORY).map_err(medium)?;
    let mut changes = Vec::with_capacity(usize::try_from(table.len().map_err(medium)?).unwrap_or_default());
    let mut later = rows::Later::of(&records);
    // From the last one back: what a change left is in the next one of its object, or in the object.
    for row in table.iter().map_err(medium)?.rev() {
        let (revision, value) = row.map_err(medium)?;
        let (revision, row) = (revision.value(), value.value());
        let change = if format == FULL_HISTORY {
            rows::decode_full_change(revision, row)
        } else {
            later.decode_change(revision, row)
        };
        changes.push(change.ok_or_else(|| medium(format_args!("a damaged history entry, of revision {revision}")))?);
    }
    changes.reverse();
    Ok(Loaded { revision, compacted, records, changes })
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
            let bytes = rows::encode_record(record.revision, &record.value);
            records.insert(rows::encode_key(key).as_str(), bytes.as_slice()).map_err(medium)?;
        }
        let mut history = transaction.open_table(HISTORY).map_err(medium)?;
        for change in &content.changes {
            history.insert(change.revision, rows::encode_change(change).as_slice()).map_err(medium)?;
        }
    }
    transaction.commit().map_err(medium)
}

#[cfg(test)]
mod crashes;
#[cfg(test)]
mod formats;
