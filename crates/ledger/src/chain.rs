//! Reading the folder: segment after segment, line after line, each checked against the one before.
//!
//! Invariant: memory does not grow with the ledger. Only the very end of the last segment may be incomplete, because only
//! there a process can have died while writing; everything else that does not fit is [`Broken`], with its place.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use crate::record::{GENESIS, LONGEST, Record};

/// Where and how the chain does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: record {seq} (line {line}): {reason}")]
pub struct Broken {
    /// The segment.
    pub file: String,
    /// The line in it, from 1.
    pub line: u64,
    /// The number the record should have.
    pub seq: u64,
    /// What does not fit.
    pub reason: String,
}

/// What a dying process left of its last record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Torn {
    /// The segment.
    pub file: PathBuf,
    /// Where the whole records end, in bytes.
    pub keep: u64,
    /// How many bytes are there behind.
    pub bytes: u64,
}

/// What was read.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Scan {
    /// Records read.
    pub records: u64,
    /// The number of the last record; 0 when there is none.
    pub seq: u64,
    /// Its hash.
    pub head: String,
    /// The segments, oldest first.
    pub segments: Vec<PathBuf>,
    /// Bytes in whole records of the last segment.
    pub length: u64,
    /// The first record's number, when older segments were taken away.
    pub begins_at: u64,
    /// The incomplete last record.
    pub torn: Option<Torn>,
}

/// Why reading ended early.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// A file or folder cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The chain does not hold.
    #[error("the ledger is broken: {0}")]
    Broken(#[from] Broken),
}

/// The name of a segment.
pub(crate) fn segment(number: u64) -> String {
    format!("ledger-{number:08}.log")
}

/// The number in a segment's name.
pub(crate) fn number(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    name.strip_prefix("ledger-")?.strip_suffix(".log")?.parse().ok()
}

fn io(path: &Path) -> impl FnOnce(io::Error) -> ScanError + '_ {
    move |source| ScanError::Io { path: path.display().to_string(), source }
}

/// Reads everything in `dir` and shows each record to `each`. Nothing is changed.
///
/// # Errors
/// Files that cannot be read; the first place at which the chain does not hold.
pub fn scan(dir: &Path, mut each: impl FnMut(&Record)) -> Result<Scan, ScanError> {
    let mut segments: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io(dir))? {
        let path = entry.map_err(io(dir))?.path();
        if number(&path).is_some() {
            segments.push(path);
        }
    }
    segments.sort_by_key(|path| number(path));
    let mut scan = Scan { head: GENESIS.to_owned(), ..Scan::default() };
    let count = segments.len();
    for (index, path) in segments.iter().enumerate() {
        let before = index.checked_sub(1).and_then(|before| number(segments.get(before)?));
        if let (Some(before), Some(own)) = (before, number(path))
            && own != before.saturating_add(1)
        {
            let reason = format!("the segment before it is missing: {}", segment(own.saturating_sub(1)));
            return Err(broken(path, 1, scan.seq.saturating_add(1), &reason).into());
        }
        one(path, index.saturating_add(1) == count, &mut scan, &mut each)?;
    }
    scan.segments = segments;
    Ok(scan)
}

fn broken(path: &Path, line: u64, seq: u64, reason: &str) -> Broken {
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Broken { file, line, seq, reason: reason.to_owned() }
}

fn one(path: &Path, last: bool, scan: &mut Scan, each: &mut impl FnMut(&Record)) -> Result<(), ScanError> {
    let mut file = BufReader::new(File::open(path).map_err(io(path))?);
    let mut line = Vec::new();
    scan.length = 0;
    for number in 1.. {
        line.clear();
        let limit = u64::try_from(LONGEST).unwrap_or(u64::MAX);
        let read = io::Read::take(&mut file, limit).read_until(b'\n', &mut line).map_err(io(path))?;
        if read == 0 {
            return Ok(());
        }
        let seq = scan.seq.saturating_add(1);
        let wrong = |reason: &str| Err(broken(path, number, seq, reason).into());
        let Some(whole) = line.strip_suffix(b"\n") else {
            if read >= LONGEST {
                return wrong("it is longer than any record");
            }
            if !last {
                return wrong("it is incomplete, and another segment follows");
            }
            let bytes = u64::try_from(read).unwrap_or(u64::MAX);
            scan.torn = Some(Torn { file: path.to_owned(), keep: scan.length, bytes });
            return Ok(());
        };
        let (record, hash) = match Record::read(whole) {
            Ok(read) => read,
            Err(reason) => return wrong(&reason),
        };
        if scan.records == 0 {
            // Old segments may have been taken away as a whole; what is left still hangs together.
            scan.begins_at = record.seq;
            if record.seq == 1 && record.prev != GENESIS {
                return wrong("it is the first and names one before");
            }
        } else if record.seq != seq {
            return wrong(&format!("its number is {}", record.seq));
        } else if record.prev != scan.head {
            return wrong("it does not follow the record before");
        }
        scan.records = scan.records.saturating_add(1);
        scan.seq = record.seq;
        scan.head = hash;
        scan.length = scan.length.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        each(&record);
    }
    Ok(())
}
