//! A data file that is read in one piece when it is opened: to open one, each page is looked at three times, and a call to the kernel for
//! each costs more than all the rest.
//!
//! Invariant: what is held is what is in the file, also of pages that are written meanwhile; after [`Ahead::forget`] nothing is held.
//! What it leaves to others: whether the content is right (redb's hashes).

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};
use std::fs::File;
use std::io::{self, Read};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

/// Most that is held of a file; the pages behind it are read one by one.
const MOST: u64 = 512 << 20;

/// The beginning of a file; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Ahead(Arc<RwLock<Vec<u8>>>);

impl Ahead {
    /// Reads the file, and gives what is to be its backend.
    pub(super) fn read(&self, mut file: File) -> Result<Backend, redb::DatabaseError> {
        let mut held = Vec::new();
        if let Ok(meta) = file.metadata() {
            held.reserve_exact(usize::try_from(meta.len().min(MOST)).unwrap_or_default());
        }
        // Whoever needs a page that could not be read finds that out.
        let _whole = (&mut file).take(MOST).read_to_end(&mut held);
        self.put(held);
        Ok(Backend { file: FileBackend::new(file)?, ahead: self.clone() })
    }

    /// Gives the memory back.
    pub(super) fn forget(&self) {
        self.put(Vec::new());
    }

    fn put(&self, held: Vec<u8>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = held;
    }

    /// Copies out what is held of a place; whether all of it is.
    fn copy(&self, offset: u64, out: &mut [u8]) -> bool {
        let held = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let from = usize::try_from(offset).ok();
        let part = from.and_then(|from| held.get(from..from.checked_add(out.len())?));
        part.is_some_and(|part| {
            out.copy_from_slice(part);
            true
        })
    }

    /// Takes over what is written; where only a part of it would be held, nothing behind is held any more.
    fn take(&self, offset: u64, data: &[u8]) {
        let mut held = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        match from.checked_add(data.len()).and_then(|to| held.get_mut(from..to)) {
            Some(part) => part.copy_from_slice(data),
            None => held.truncate(from),
        }
    }
}

/// The file, and what is held of it.
#[derive(Debug)]
pub(super) struct Backend {
    file: FileBackend,
    ahead: Ahead,
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if self.ahead.copy(offset, out) { Ok(()) } else { self.file.read(offset, out) }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        // First: of what may be there or not nothing is held.
        self.ahead
            .0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .truncate(usize::try_from(len).unwrap_or(usize::MAX));
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let written = self.file.write(offset, data);
        match written {
            Ok(()) => self.ahead.take(offset, data),
            // Nobody knows what is there now.
            Err(_) => self.ahead.forget(),
        }
        written
    }

    fn close(&self) -> io::Result<()> {
        self.ahead.forget();
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_what_is_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, [1_u8; 100]).unwrap();
        let ahead = Ahead::default();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let backend = ahead.read(file).unwrap();
        let at = |offset: u64, length: usize| {
            let mut out = vec![0; length];
            backend.read(offset, &mut out).map(|()| out)
        };
        // Behind the back: shows that nothing is read again.
        std::fs::write(&path, [2_u8; 100]).unwrap();
        assert_eq!(at(0, 100).unwrap(), [1; 100]);
        backend.write(10, &[7; 5]).unwrap();
        assert_eq!(at(8, 9).unwrap(), [1, 1, 7, 7, 7, 7, 7, 1, 1]);
        assert_eq!(std::fs::read(&path).unwrap()[10..15], [7; 5]);
        // Over the end of what is held, and behind it.
        backend.set_len(200).unwrap();
        backend.write(95, &[8; 10]).unwrap();
        backend.write(150, &[9; 10]).unwrap();
        assert_eq!(at(94, 1).unwrap(), [1]);
        assert_eq!(at(95, 11).unwrap(), [8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 0]);
        assert_eq!(at(150, 10).unwrap(), [9; 10]);
        // What is cut off is not there, also when the file grows again.
        backend.set_len(50).unwrap();
        assert!(at(45, 10).is_err());
        backend.set_len(60).unwrap();
        assert_eq!((at(45, 5).unwrap(), at(50, 10).unwrap()), (vec![1; 5], vec![0; 10]));
        ahead.forget();
        assert_eq!(at(0, 10).unwrap(), [2; 10]);
    }
}
